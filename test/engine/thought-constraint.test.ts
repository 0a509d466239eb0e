/** JSON behind what a model thinks between marks. */
import { copyFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import Ajv from 'ajv'
import { type GenerateOptions, loadModel, type Model } from '../../lib/index'
import { byteLevelTokenizer } from '../model/tokenizer-files'
import { expectRejected } from '../support/errors'
import { kFixtures } from './model-copies'
import { collect, someIds } from './running'

const kMarks = ['<think>', '</think>']
const [kOpen, kClose] = [302, 303]

/** A model whose marks are tokens, special or not; weights, and so what it says, are any. */
async function load(special: boolean): Promise<Model> {
  const folder = mkdtempSync(join(tmpdir(), 'zipcache-thoughts-'))
  for (const name of ['config.json', 'model.safetensors']) {
    copyFileSync(join(kFixtures, 'llama', name), join(folder, name))
  }
  const json = byteLevelTokenizer()
  const added = json.added_tokens as Record<string, unknown>[]
  for (const [i, content] of kMarks.entries()) {
    added.push({ ...added[0], id: kOpen + i, content, special })
  }
  writeFileSync(join(folder, 'tokenizer.json'), JSON.stringify(json))
  try {
    return await loadModel(folder, { threads: 1, kvMemory: 2 ** 26 })
  } finally {
    rmSync(folder, { recursive: true })
  }
}

const schema = {
  type: 'object',
  properties: { n: { type: 'integer', maximum: 99, minimum: 0 }, kind: { enum: ['a', 'b'] } },
  required: ['n', 'kind'],
}
const validate = new Ajv().compile(schema)

describe.each([
  ['special tokens', true],
  ['tokens of text', false],
])('marks that are %s', (_, special) => {
  let model: Model
  beforeAll(async () => {
    model = await load(special)
  })
  afterAll(() => model.dispose())

  async function answer(options: GenerateOptions) {
    const sequence = model.createSequence({ policy: 'full' })
    try {
      const { ids } = await collect(sequence.generate(someIds(30, 300), options))
      return { said: model.tokenizer!.decode(ids), finishReason: sequence.finishReason }
    } finally {
      sequence.dispose()
    }
  }
  const asked = (seed: number, own: Partial<GenerateOptions> = {}): GenerateOptions => ({
    json: schema,
    thoughts: { open: '<think>', close: '</think>' },
    seed,
    temperature: 2,
    maxTokens: 400,
    logitBias: { [kOpen]: -1, [kClose]: 4 },
    ...own,
  })

  test('JSON that the schema allows, with a thought before it or none', async () => {
    const seen = new Set<boolean>()
    for (let seed = 0; seed < 12; seed++) {
      const { said, finishReason } = await answer(asked(seed))
      expect(finishReason).toBe('stop')
      const [all, thought, json = ''] = /^(<think>.*?<\/think>\n{0,2})?(\{.*)$/s.exec(said) ?? []
      expect(all).toBe(said)
      seen.add(thought !== undefined)
      expect({ json, valid: validate(JSON.parse(json)) }).toEqual({ json, valid: true })
    }
    expect(seen.size).toBe(2)
  })

  test('a thought that the prompt begins', async () => {
    for (let seed = 0; seed < 4; seed++) {
      const { said } = await answer(asked(seed, { thoughts: { close: '</think>' } }))
      const [all, , json = ''] = /^(.*?)<\/think>\s{0,2}(\{.*)$/s.exec(said) ?? []
      expect(all).toBe(said)
      expect(validate(JSON.parse(json))).toBe(true)
    }
  })

  test('a mark that is spelled', async () => {
    const ids = ['<', '/', 't', 'h', 'th', 't>'].flatMap((text) => {
      const own = model.tokenizer!.encode(text, { addSpecialTokens: false })
      return own.length === 1 ? own : []
    })
    expect(ids.length).toBeGreaterThan(3)
    const logitBias = Object.fromEntries(ids.map((id) => [id, 60]))
    for (let seed = 0; seed < 6; seed++) {
      const { said } = await answer(asked(seed, { thoughts: { close: '</t' }, logitBias }))
      const at = said.indexOf('</t')
      expect(at).toBeGreaterThanOrEqual(0)
      const [, json = ''] = /^\n{0,2}(\{.*)/s.exec(said.slice(at + 3)) ?? []
      expect(validate(JSON.parse(json))).toBe(true)
    }
  })

  test('no thought ends the answer, but its room does', async () => {
    const logitBias = { 301: 50, [kOpen]: 50, [kClose]: -100 }
    const { said, finishReason } = await answer(asked(0, { logitBias, maxTokens: 20 }))
    expect(finishReason).toBe('length')
    expect(said).toMatch(/^<think>/)
    expect(said).not.toContain('</think>')
  })
})

test('what is wrong is named', async () => {
  const model = await load(true)
  const run = (options: GenerateOptions) =>
    collect(model.generate('a', { policy: 'full', ...options }))
  try {
    for (const [options, words] of [
      [{ thoughts: { close: '</think>' } }, /without json/],
      [{ json: true, thoughts: { close: ' ' } }, /expected { open, close }/],
      [{ json: true, thoughts: null as never }, /expected { open, close }/],
      [{ json: true, thoughts: { open: 1 as never, close: 'b' } }, /expected { open, close }/],
      [{ json: true, thoughts: { open: 'no token', close: 'b' } }, /expected one token/],
    ] satisfies [GenerateOptions, RegExp][]) {
      await expectRejected(run(options), {
        code: 'ERR_ZC_ARGUMENT',
        argument: 'thoughts',
        message: words,
      })
    }
  } finally {
    await model.dispose()
  }
})
