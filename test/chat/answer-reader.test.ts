/** What is told apart of whole answers, and by `zipcache generate --chat`. */
import { copyFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { answerReader } from '../../lib/chat/answer-reader'
import type { ModelTokenizer } from '../../lib/model/tokenizer'
import { zipcache } from '../cli/command-line'
import { kFixtures } from '../engine/model-copies'
import { byteLevelTokenizer } from '../model/tokenizer-files'
import { kGemmaMarks, kGemmaTemplate } from '../server/gemma-template'
import { tokenizerWith } from '../server/scripted-model'

const kMarks = ['<|channel|>', '<|message|>', '<|call|>']
const harmonyTemplate = `{% for message in messages %}<|start|>{{ message.role }}<|message|>{{ message.content }}<|end|>{% endfor %}<|start|>assistant
{%- if false %}<|channel|><|call|>{% endif %}`
const thinkTemplate = "[user]{{ messages[0].content.split('</think>')[-1] }}[assistant]<think>\n"

let harmony: ModelTokenizer
let thinking: ModelTokenizer
beforeAll(async () => {
  harmony = await tokenizerWith(harmonyTemplate, kMarks)
  thinking = await tokenizerWith(thinkTemplate)
})

const said = '<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>'

function read(tokenizer: ModelTokenizer, prompt: string, answer: string, stop: string[] = []) {
  const encode = (text: string) => tokenizer.encode(text, { addSpecialTokens: false })
  const reader = answerReader(tokenizer, encode(prompt), stop)!
  const pieces: string[] = []
  for (const id of encode(answer)) {
    if (reader.isStopped) break
    pieces.push(reader.push({ id, text: tokenizer.decode([id]) }))
  }
  pieces.push(reader.end(true))
  expect(pieces.join('')).toBe(reader.text)
  return { text: reader.text, reasoning: reader.reasoning }
}

/** As `read`, of an answer whose special tokens have no text, as the engine gives it. */
function readSpecial(tokenizer: ModelTokenizer, prompt: string, answer: string, stop: string[]) {
  const encode = (text: string) => tokenizer.encode(text, { addSpecialTokens: false })
  const reader = answerReader(tokenizer, encode(prompt), stop)!
  for (const id of encode(answer)) {
    reader.push({ id, text: tokenizer.specialIds.has(id) ? '' : tokenizer.decode([id]) })
  }
  reader.end(true)
  return { text: reader.text, reasoning: reader.reasoning }
}

describe('what is said is told from what is thought', () => {
  test('between marks', () => {
    const open = '[assistant]<think>\n'
    expect(read(thinking, open, 'Hm.</think>\n\n4.')).toEqual({ text: '4.', reasoning: 'Hm.' })
    expect(read(thinking, open, 'Hm.', ['.'])).toEqual({ text: '', reasoning: 'Hm.' })
    const own = '<think>Hm. </think>It is 4. And'
    expect(read(thinking, '[assistant]', own, ['.'])).toEqual({ text: 'It is 4', reasoning: 'Hm.' })
    expect(read(thinking, '[assistant]', '<thin', ['n;'])).toEqual({ text: '<thin', reasoning: '' })
  })

  test("in harmony's messages", () => {
    const readIt = (answer: string, stop?: string[]) =>
      read(harmony, '<|start|>assistant', answer, stop)
    expect(readIt(`${said}It is 4.`)).toEqual({ text: 'It is 4.', reasoning: 'Hm.' })
    const cut = readIt(`${said}It is 4. And`, ['.', 'And'])
    expect(cut).toEqual({ text: 'It is 4', reasoning: 'Hm.' })
    // Held back until it could not become a stop text any more.
    expect(readIt(`${said}It is`, ['is 4'])).toEqual({ text: 'It is', reasoning: 'Hm.' })
  })

  test("in Gemma's channel", async () => {
    const gemma = await tokenizerWith(kGemmaTemplate, kGemmaMarks)
    const own = '<|channel>thought\nHm.\n<channel|>It is 4. And'
    const isThis = { text: 'It is 4', reasoning: 'Hm.' }
    expect(readSpecial(gemma, '<|turn>model\n', own, ['.'])).toEqual(isThis)
    const begun = '<tool_response|><|channel>thought\n'
    expect(readSpecial(gemma, begun, own.slice('<|channel>thought\n'.length), ['.'])).toEqual(
      isThis,
    )
    const ends = ['<turn|>', '<|tool_response>'].map((mark) => gemma.tokenId(mark))
    expect(answerReader(gemma, [], [])?.stopTokens).toEqual(ends)
  })

  test('other templates tell nothing apart', async () => {
    const plain = await tokenizerWith('{{ messages }}', kMarks)
    expect(answerReader(plain, [1], [])).toBe(null)
  })

  test('what was held back comes with a stop token, which is none of the answer', () => {
    const reader = answerReader(thinking, [], [])!
    const stop = { id: 1, text: '<think>a</think>b', isStop: true } as const
    expect(reader.push(stop)).toBe('b')
    expect(reader).toMatchObject({ text: 'b', reasoning: 'a' })
    const [start] = harmony.encode('<|start|>', { addSpecialTokens: false }) as [number]
    const other = answerReader(harmony, [], [])!
    expect(other.push({ id: start, text: 'b', isStop: true }) + other.end(false)).toBe('')
  })
})

test.each([
  // Weights are any: an answer has no header, and is text; or goes on with the thought that the prompt begins.
  ["harmony's", harmonyTemplate, { reasoning: '' }],
  ['of thoughts', thinkTemplate, { text: '' }],
])('from the command line, a template %s', async (_, template, expected) => {
  const folder = mkdtempSync(join(tmpdir(), 'zipcache-answers-'))
  try {
    for (const name of ['config.json', 'model.safetensors']) {
      copyFileSync(join(kFixtures, 'llama', name), join(folder, name))
    }
    const json = byteLevelTokenizer()
    const added = json.added_tokens as Record<string, unknown>[]
    for (const [i, content] of kMarks.entries()) added.push({ ...added[0], id: 302 + i, content })
    writeFileSync(join(folder, 'tokenizer.json'), JSON.stringify(json))
    writeFileSync(join(folder, 'chat_template.jinja'), template)
    const args = ['generate', '--model', folder, '--prompt', 'Hi', '--chat', '--max-tokens', '12']
    const { exitCode, stdout } = await zipcache([...args, '--json'])
    expect(exitCode).toBe(0)
    const answer = JSON.parse(stdout)
    expect(answer).toMatchObject(expected)
    expect(answer.text + answer.reasoning).not.toBe('')
    expect(answer.tokens).toHaveLength(12)
    const plain = await zipcache(args)
    expect(plain.stdout).toBe(`${answer.text}\n`)
    // Nobody is left before an empty line.
    const hint = /^zipcache: it has said nothing: 12 tokens of thoughts.*--max-tokens/
    if (answer.text === '') expect(plain.stderr).toMatch(hint)
    else expect(plain.stderr).toBe('')
    const empty = await zipcache([...args, '--stop', ''])
    expect(empty.stderr).toMatch(/^zipcache: --stop\[0\]: is an empty string/)
    expect(empty.exitCode).toBe(2)
  } finally {
    rmSync(folder, { recursive: true })
  }
})
