/** Chats that name a `prompt_cache_key` share the cache of their tools and system messages. */
import { generateLineRetrieval, loadModel, type Model } from '../../lib/index.js'
import { createService, type OpenAiService, type ServiceOptions } from '../../lib/server/index.js'
import type { ChatRequest } from '../../lib/server/request.js'
import { Beginnings, countShared } from '../../lib/server/shared-tokens.js'
import { kLineRetrieval } from './running.js'

let model: Model
beforeAll(async () => {
  model = await loadModel(kLineRetrieval, { threads: 1, kvMemory: 2 ** 24 })
})
afterAll(() => model.dispose())

const prompt = generateLineRetrieval({ lines: 20, seed: 3 }).text
// The question is the last line of the prompt: what stands before it is everybody's.
const cut = prompt.lastIndexOf('question')
const [system, question] = [prompt.slice(0, cut), prompt.slice(cut)]

interface Body {
  readonly choices: readonly { readonly message: { readonly content: string } }[]
  readonly usage: {
    readonly prompt_tokens: number
    readonly prompt_tokens_details: { readonly cached_tokens: number }
  }
}

async function withService(
  options: ServiceOptions,
  body: (ask: (fields?: object, owner?: string) => Promise<Body>) => Promise<void>,
): Promise<void> {
  const service: OpenAiService = createService(model, { kvMemory: 2 ** 26, ...options })
  const ask = async (fields: object = {}, owner = '') => {
    const messages = [
      { role: 'system', content: system },
      { role: 'user', content: question },
    ]
    const request = { messages, max_tokens: 8, temperature: 0, ...fields }
    const call = { signal: new AbortController().signal, session: null, owner }
    const answer = await service.chat(request, call)
    if (answer.kind !== 'whole') throw new Error('not a whole answer')
    return answer.body as Body
  }
  try {
    await body(ask)
  } finally {
    await service.dispose()
  }
}

const cached = ({ usage }: Body) => usage.prompt_tokens_details.cached_tokens
const text = ({ choices }: Body) => choices[0]?.message.content

test('the second chat of a key finds what the first left, and answers the same', async () => {
  await withService({ prefixMemory: 2 ** 24 }, async (ask) => {
    const first = await ask({ prompt_cache_key: 'records' })
    expect(cached(first)).toBe(0)
    const second = await ask({ prompt_cache_key: 'records' })
    expect(cached(second)).toBeGreaterThan(200)
    expect(cached(second)).toBeLessThan(second.usage.prompt_tokens)
    expect(second.usage.prompt_tokens).toBe(first.usage.prompt_tokens)
    expect(text(second)).toBe(text(first))
    // Another question about the same, and several answers to it.
    const messages = [
      { role: 'system', content: system },
      { role: 'user', content: 'is that all ?' },
    ]
    const other = await ask({ prompt_cache_key: 'records', messages, n: 2 })
    expect(cached(other)).toBe(cached(second))
    expect(other.choices).toHaveLength(2)
  })
})

test('chats that come at the same time compute it once, and answer the same', async () => {
  await withService({ prefixMemory: 2 ** 24 }, async (ask) => {
    const bodies = await Promise.all(
      [1, 2, 3, 4].map(() => ask({ prompt_cache_key: 'records', max_tokens: 14 })),
    )
    const [first, ...others] = bodies.map(cached)
    expect(first).toBe(0)
    for (const count of others) expect(count).toBeGreaterThan(200)
    const after = text(await ask({ prompt_cache_key: 'records', max_tokens: 14 }))
    expect(bodies.map(text)).toEqual([after, after, after, after])
  })
})

test('nothing is shared with another key, owner, policy or beginning, or without a key', async () => {
  await withService({ prefixMemory: 2 ** 24 }, async (ask) => {
    await ask({ prompt_cache_key: 'records' }, 'me')
    const messages = [
      { role: 'system', content: `${system} line` },
      { role: 'user', content: question },
    ]
    const others: [object, string][] = [
      [{ prompt_cache_key: 'others' }, 'me'],
      [{ prompt_cache_key: 'records' }, 'you'],
      [{ prompt_cache_key: 'records', kv_cache: 'uniform4' }, 'me'],
      [{ prompt_cache_key: 'records', messages }, 'me'],
      [{}, 'me'],
    ]
    for (const [fields, owner] of others) expect(cached(await ask(fields, owner))).toBe(0)
    expect(cached(await ask({ prompt_cache_key: 'records' }, 'me'))).toBeGreaterThan(0)
  })
})

test('a beginning of a few tokens, or of none, is not kept', async () => {
  await withService({ prefixMemory: 2 ** 24 }, async (ask) => {
    for (const messages of [
      [{ role: 'user', content: prompt }],
      [
        { role: 'system', content: 'line' },
        { role: 'user', content: prompt },
      ],
    ]) {
      for (let i = 0; i < 2; i++) {
        expect(cached(await ask({ prompt_cache_key: 'records', messages }))).toBe(0)
      }
    }
  })
})

test('without memory for it the key changes nothing', async () => {
  await withService({}, async (ask) => {
    const plain = await ask()
    const keyed = await ask({ prompt_cache_key: 'records' })
    expect(text(keyed)).toBe(text(plain))
    expect(cached(await ask({ prompt_cache_key: 'records' }))).toBe(0)
  })
})

test('a template that refuses what the beginning is looked for with shares nothing', async () => {
  const chatTemplate = `{% for m in messages %}{% if m.content | length < 2 %}{{
    raise_exception('too short') }}{% endif %}{{ m.content }}{% endfor %}`
  await withService({ prefixMemory: 2 ** 24, chatTemplate }, async (ask) => {
    const plain = await ask()
    for (let i = 0; i < 2; i++) {
      const keyed = await ask({ prompt_cache_key: 'records' })
      expect(cached(keyed)).toBe(0)
      expect(text(keyed)).toBe(text(plain))
    }
  })
})

test('a beginning is looked for once, and again where the template writes another', () => {
  const beginnings = new Beginnings()
  let today = 'line '
  let nRenders = 0
  const tokenizer = {
    encode: (all: string) => [...all].map((letter) => letter.charCodeAt(0)),
    applyChatTemplate: (messages: { content: string }[]) => {
      nRenders++
      return today + messages.map(({ content }) => content).join('')
    },
  }
  const count = (content: string, user = 'question') => {
    const messages = [
      { role: 'system', content },
      { role: 'user', content: user },
    ]
    const request = { messages, tooling: { tools: [] }, templateVariables: undefined }
    const ids = tokenizer.encode(today + content + user)
    return countShared(
      { tokenizer } as unknown as Model,
      request as unknown as ChatRequest,
      undefined,
      { ids, text: null },
      beginnings,
    )
  }
  const long = 'word '.repeat(40)
  expect([count(long), count(long, 'another'), nRenders]).toEqual([204, 204, 2])
  expect([count(`${long} more`), nRenders]).toEqual([209, 4])
  today = 'image'
  expect([count(long), count(long), nRenders]).toEqual([204, 204, 6])
})
