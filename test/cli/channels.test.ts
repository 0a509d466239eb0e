/** `zipcache generate --chat` of models that answer in OpenAI's harmony format. */
import { copyFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { channelsOf } from '../../lib/cli/channels'
import type { ModelTokenizer } from '../../lib/model/tokenizer'
import { kFixtures } from '../engine/model-copies'
import { byteLevelTokenizer } from '../model/tokenizer-files'
import { tokenizerWith } from '../server/scripted-model'
import { zipcache } from './command-line'

const kMarks = ['<|channel|>', '<|message|>', '<|call|>']
const template = `{% for message in messages %}<|start|>{{ message.role }}<|message|>{{ message.content }}<|end|>{% endfor %}<|start|>assistant
{%- if false %}<|channel|><|call|>{% endif %}`

let tokenizer: ModelTokenizer
beforeAll(async () => {
  tokenizer = await tokenizerWith(template, kMarks)
})

const said = '<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>'

function read(answer: string, stop: string[] = []) {
  const encode = (text: string) => tokenizer.encode(text, { addSpecialTokens: false })
  const channels = channelsOf({ tokenizer }, encode('<|start|>assistant'), stop)!
  const pieces: string[] = []
  for (const id of encode(answer)) {
    if (channels.isStopped) break
    pieces.push(channels.push(id))
  }
  pieces.push(channels.end(true))
  expect(pieces.join('')).toBe(channels.text)
  return { text: channels.text, reasoning: channels.reasoning }
}

test('what is said is told from what is thought', () => {
  expect(read(`${said}It is 4.`)).toEqual({ text: 'It is 4.', reasoning: 'Hm.' })
  expect(read(`${said}It is 4. And`, ['.', 'And'])).toEqual({ text: 'It is 4', reasoning: 'Hm.' })
  // Held back until it could not become a stop text any more.
  expect(read(`${said}It is`, ['is 4'])).toEqual({ text: 'It is', reasoning: 'Hm.' })
})

test('other templates, and text, have no channels', async () => {
  const plain = await tokenizerWith('{{ messages }}', kMarks)
  expect(channelsOf({ tokenizer: plain }, [1], [])).toBe(null)
  expect(channelsOf({ tokenizer: null }, [1], [])).toBe(null)
  expect(channelsOf({ tokenizer }, 'text', [])).toBe(null)
})

test('from the command line', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'zipcache-channels-'))
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
    const { text, reasoning, tokens } = JSON.parse(stdout)
    // Weights are any: what it says has no header, and is text.
    expect(reasoning).toBe('')
    expect(tokens).toHaveLength(12)
    const plain = await zipcache(args)
    expect(plain.stdout).toBe(`${text}\n`)
  } finally {
    rmSync(folder, { recursive: true })
  }
})
