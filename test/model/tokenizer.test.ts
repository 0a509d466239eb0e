import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { type ChatMessage, loadTokenizer, type ModelTokenizer } from '../../lib/model/tokenizer'
import {
  expectRefusal,
  expectZipCacheError,
  kFixtures,
  kModels,
  ModelFolders,
  readJson,
} from './model-folder'
import { byteLevelTokenizer, sentencePieceTokenizer } from './tokenizer-files'

const folders = new ModelFolders()
afterAll(() => folders.remove())

async function load(json: unknown, files: Record<string, unknown> = {}): Promise<ModelTokenizer> {
  const tokenizer = await loadTokenizer(folders.write({ 'tokenizer.json': json, ...files }))
  if (tokenizer === null) throw new Error('tokenizer.json was not seen')
  return tokenizer
}

function thrown(run: () => unknown): unknown {
  try {
    run()
  } catch (error) {
    return error
  }
  return undefined
}

describe('line-retrieval', () => {
  interface Prompt {
    lines: number
    ids: number[]
    answer_ids: number[]
    answer_text: string
  }
  const prompts = readFileSync(join(kFixtures, 'prompts.jsonl'), 'utf8')
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as Prompt)
  const folder = join(kModels, 'line-retrieval')
  const model = readJson(join(folder, 'tokenizer.json')).model as { vocab: Record<string, number> }
  const words = new Map(Object.entries(model.vocab).map(([word, id]) => [id, word]))
  const textOf = (ids: number[]) => ids.map((id) => words.get(id)).join(' ')
  let tokenizer: ModelTokenizer
  beforeAll(async () => {
    tokenizer = (await loadTokenizer(folder)) as ModelTokenizer
  })

  test('text and ids of all 36 prompts are the same thing', () => {
    expect(prompts).toHaveLength(36)
    for (const { ids, answer_ids, answer_text } of prompts) {
      const text = textOf(ids)
      expect(tokenizer.encode(text)).toEqual(ids)
      expect(tokenizer.decode(ids)).toBe(text)
      expect(tokenizer.decode(answer_ids)).toBe(answer_text)
      expect(tokenizer.encode(answer_text)).toEqual(answer_ids)
    }
  })

  test('special tokens, unknown words, spaces', () => {
    const { bosId, eosId, unkId, padId, specialIds } = tokenizer
    expect({ bosId, eosId, unkId, padId }).toEqual({ bosId: 1, eosId: 2, unkId: 3, padId: 0 })
    expect([...specialIds]).toEqual([0, 1, 2, 3])
    expect(tokenizer.encode('<s> line   xyzzy\nline')).toEqual([1, 5, 3, 4, 5])
    expect(tokenizer.decode([1, 5, 4, 5, 2], { skipSpecialTokens: true })).toBe('line \n line')
    expect(tokenizer.encode('')).toEqual([])
    expect(tokenizer.decode([])).toBe('')
    expect(tokenizer.tokenId('line')).toBe(5)
    expect(tokenizer.token(5)).toBe('line')
    expect(tokenizer.token(192)).toBeUndefined()
  })
})

describe('byte-level and SentencePiece-like vocabularies', () => {
  test.each([
    ['byte-level', byteLevelTokenizer()],
    ['SentencePiece', sentencePieceTokenizer()],
  ])('%s: text survives', async (_, json) => {
    const tokenizer = await load(json)
    for (const text of ['a b', ' a', 'ab  a', 'the €5 😀é', 'a\n\n b ', '日本 語', "it 's a . b"]) {
      const ids = tokenizer.encode(text, { addSpecialTokens: false })
      expect(tokenizer.decode(ids)).toBe(text)
    }
  })

  test('special tokens: added, written out, left out', async () => {
    const tokenizer = await load(sentencePieceTokenizer())
    expect(tokenizer.encode('ab')).toEqual([
      1,
      ...tokenizer.encode('ab', { addSpecialTokens: false }),
    ])
    const bytes = await load(byteLevelTokenizer())
    expect(bytes.encode('t<|end|>h')).toEqual([0x74, 300, 0x68])
    expect(bytes.decode([0x74, 300, 0x68])).toBe('t<|end|>h')
    expect(bytes.decode([0x74, 300, 0x68], { skipSpecialTokens: true })).toBe('th')
  })

  test('ids beyond the vocabulary have no text', async () => {
    const tokenizer = await load(byteLevelTokenizer())
    expect(tokenizer.decode([0x61, 290, 5000, 0x62])).toBe('ab')
    expect(tokenizer.decode([5000])).toBe('')
    expect(tokenizer.decode(Int32Array.of(0x61, 0x62))).toBe('ab')
  })

  test.each([undefined, null, 5])('%j is no list of ids', async (ids) => {
    const tokenizer = await load(byteLevelTokenizer())
    expectZipCacheError(
      thrown(() => tokenizer.decode(ids as never)),
      'ERR_ZC_ARGUMENT',
      'expected token ids',
    )
  })
})

describe('refusals', () => {
  const code = 'ERR_ZC_TOKENIZER'

  test('a folder without tokenizer.json has no tokenizer', async () => {
    expect(await loadTokenizer(join(kFixtures, 'hf', 'llama'))).toBeNull()
    expect(await loadTokenizer(folders.write({ 'tokenizer_config.json': 'broken' }))).toBeNull()
    await expectRefusal(loadTokenizer(''), 'ERR_ZC_ARGUMENT', 'dir: is ""')
  })

  const whole = byteLevelTokenizer()
  const model = whole.model as Record<string, unknown>
  const cases: [string, unknown, string][] = [
    ['no JSON', '{"model": ', 'is not valid JSON'],
    ['an array', '[]', 'holds [], expected a JSON object'],
    ['no model', { ...whole, model: undefined }, 'model is missing, expected an object'],
    ['an unknown model', { ...whole, model: { type: 'New' } }, 'model.vocab is missing'],
    ['no vocabulary', { ...whole, model: { ...model, vocab: {} } }, 'model.vocab is empty'],
    [
      'ids that are none',
      { ...whole, model: { ...model, vocab: { a: -1 } } },
      'model.vocab gives "a" the id -1, expected an integer from 0 to 16777215',
    ],
    [
      'huge ids',
      { ...whole, model: { ...model, vocab: { a: 4e9 } } },
      'model.vocab gives "a" the id 4000000000',
    ],
    ['no merges', { ...whole, model: { ...model, merges: null } }, 'model.merges is null'],
    ['merges of numbers', { ...whole, model: { ...model, merges: [1] } }, 'model.merges holds 1'],
    [
      'pieces without scores',
      { ...whole, model: { type: 'Unigram', vocab: [['a']] } },
      'model.vocab is no array of [piece, score]',
    ],
    ['added tokens as text', { ...whole, added_tokens: 'x' }, 'added_tokens is "x"'],
    [
      'an added token without content',
      { ...whole, added_tokens: [{ id: 1 }] },
      'added_tokens holds {"id":1}, expected { id, content }',
    ],
    ['an unknown decoder', { ...whole, decoder: { type: 'New' } }, 'Unknown Decoder type: New'],
    ['a decoder of text', { ...whole, decoder: 'ByteLevel' }, 'decoder is "ByteLevel"'],
    [
      'an unknown step',
      { ...whole, pre_tokenizer: { type: 'Sequence', pretokenizers: [{ type: 'New' }] } },
      'tokenizer.json',
    ],
    [
      'a pattern that is none',
      { ...whole, pre_tokenizer: { type: 'Split', pattern: {}, behavior: 'Isolated' } },
      'pre_tokenizer.pattern is {}, expected { String } or { Regex }',
    ],
    [
      'a broken regular expression',
      { ...whole, pre_tokenizer: { type: 'Split', pattern: { Regex: '(' }, behavior: 'Isolated' } },
      'tokenizer.json',
    ],
  ]
  test.each(cases)('%s', async (_, json, message) => {
    await expectRefusal(load(json), code, 'tokenizer.json', message)
  })

  test('a damaged tokenizer_config.json', async () => {
    const withConfig = (config: unknown) => load(whole, { 'tokenizer_config.json': config })
    await expectRefusal(withConfig('{'), code, 'tokenizer_config.json: is not valid JSON')
    await expectRefusal(withConfig({ bos_token: 5 }), code, 'bos_token is 5, expected a string')
    await expectRefusal(withConfig({ chat_template: [{}] }), code, 'chat_template holds {}')
    await expectRefusal(withConfig({ chat_template: 5 }), code, 'chat_template holds 5')
  })

  test('arguments', async () => {
    const tokenizer = await load(whole)
    const encode = (text: unknown) => thrown(() => tokenizer.encode(text as string))
    expectZipCacheError(encode(5), 'ERR_ZC_ARGUMENT', 'text: is 5, expected a string')
    for (const id of [-1, 1.5, Number.NaN, '3']) {
      const error = thrown(() => tokenizer.decode([0x61, id as number]))
      expectZipCacheError(error, 'ERR_ZC_ARGUMENT', 'ids: holds', 'expected token ids')
    }
  })

  test('a piece without an id', async () => {
    const words = { type: 'WordLevel', vocab: { a: 0 }, unk_token: '<unk>' }
    const tokenizer = await load({ model: words, pre_tokenizer: { type: 'WhitespaceSplit' } })
    expect(tokenizer.encode('a a')).toEqual([0, 0])
    const error = thrown(() => tokenizer.encode('a b'))
    expectZipCacheError(error, code, 'a piece outside of the vocabulary')
  })
})

describe('chat templates', () => {
  const messages = [
    { role: 'user', content: 'Hi' },
    { role: 'assistant', content: 'Ho' },
  ]
  const template = [
    '{{ bos_token }}',
    '{% for message in messages %}',
    '[{{ message.role }}]{{ message.content }}{{ eos_token }}',
    '{% endfor %}',
    '{% if tools %}{{ tools | length }} tools{% endif %}',
    '{% if add_generation_prompt %}[assistant]{% endif %}',
    '{% if enable_thinking is defined and not enable_thinking %}quick{% endif %}',
  ].join('')
  const tokens = { bos_token: '<s>', eos_token: { content: '</s>', lstrip: false } }
  const make = (config: object, files: Record<string, unknown> = {}) =>
    load(sentencePieceTokenizer(), { 'tokenizer_config.json': { ...tokens, ...config }, ...files })

  test('one of tokenizer_config.json', async () => {
    const tokenizer = await make({ chat_template: template })
    expect(tokenizer.chatTemplates).toEqual(['default'])
    expect(tokenizer.applyChatTemplate(messages)).toBe('<s>[user]Hi</s>[assistant]Ho</s>')
    const options = { addGenerationPrompt: true, tools: [{}, {}] }
    expect(tokenizer.applyChatTemplate(messages, options)).toBe(
      '<s>[user]Hi</s>[assistant]Ho</s>2 tools[assistant]',
    )
    const variables = { enable_thinking: false }
    expect(tokenizer.applyChatTemplate([], { variables })).toBe('<s>quick')
  })

  test('several by name; tool_use where there are tools', async () => {
    const tokenizer = await make({
      chat_template: [
        { name: 'default', template: 'plain' },
        { name: 'tool_use', template: 'tools' },
        { name: 'rag', template: 'documents' },
      ],
    })
    expect(tokenizer.applyChatTemplate(messages)).toBe('plain')
    expect(tokenizer.applyChatTemplate(messages, { tools: [] })).toBe('tools')
    expect(tokenizer.applyChatTemplate(messages, { template: 'rag' })).toBe('documents')
    const error = thrown(() => tokenizer.applyChatTemplate(messages, { template: 'x' }))
    expectZipCacheError(
      error,
      'ERR_ZC_TOKENIZER',
      'the model has no chat template "x" (it has default, tool_use, rag)',
    )
  })

  test('files outrank the config', async () => {
    const config = { chat_template: 'config' }
    const json = { 'chat_template.json': { chat_template: 'json' } }
    expect((await make(config, json)).applyChatTemplate([])).toBe('json')
    const jinja = { ...json, 'chat_template.jinja': 'jinja {{ eos_token }}' }
    expect((await make(config, jinja)).applyChatTemplate([])).toBe('jinja </s>')
  })

  test('refusals', async () => {
    const none = await make({})
    expect(none.chatTemplates).toEqual([])
    expectZipCacheError(
      thrown(() => none.applyChatTemplate(messages)),
      'ERR_ZC_TOKENIZER',
      'the model has no chat template "default" (it has none)',
    )
    const broken = await make({ chat_template: '{% for x in %}' })
    expectZipCacheError(
      thrown(() => broken.applyChatTemplate(messages)),
      'ERR_ZC_TOKENIZER',
      'chat template "default": ',
    )
    const strict = await make({ chat_template: "{{ raise_exception('roles must alternate') }}" })
    expectZipCacheError(
      thrown(() => strict.applyChatTemplate(messages)),
      'ERR_ZC_TOKENIZER',
      'roles must alternate',
    )
    expectZipCacheError(
      thrown(() => strict.applyChatTemplate('Hi' as never)),
      'ERR_ZC_ARGUMENT',
      'messages: is "Hi", expected an array',
    )
  })

  test.each([
    [null, 'is null'],
    [{ content: 'Hi' }, 'is {"content":"Hi"}, expected { role, content } with a text for a role'],
    [{ role: 'user' }, 'has no content'],
    [{ role: 'tool', content: null }, 'has no content'],
  ])('a message like %j is named', async (message, complaint) => {
    const tokenizer = await make({ chat_template: '{{ messages[1].content }}' })
    expectZipCacheError(
      thrown(() => tokenizer.applyChatTemplate([...messages, message as ChatMessage])),
      'ERR_ZC_ARGUMENT',
      `messages[2]: ${complaint}`,
    )
  })

  test('an assistant may call tools without a word', async () => {
    const tokenizer = await make({ chat_template: '{{ messages[0].role }}' })
    const call = { role: 'assistant', tool_calls: [] } as unknown as ChatMessage
    expect(tokenizer.applyChatTemplate([call])).toBe('assistant')
  })
})
