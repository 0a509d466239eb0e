/** Runs whose logits are changed between step and choice. */
import { copyFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import Ajv from 'ajv'
import { TokenMasker } from '../../lib/grammar/index'
import { createEngine, type GenerateOptions, loadModel, type Model } from '../../lib/index'
import { toSeed, uniform } from '../../lib/random'
import { sample } from '../../lib/reference/sample'
import { byteLevelTokenizer } from '../model/tokenizer-files'
import { expectRejected } from '../support/errors'
import { kFixtures } from './model-copies'
import { collect, someIds } from './running'

const folder = mkdtempSync(join(tmpdir(), 'zipcache-adjust-'))
let model: Model
beforeAll(async () => {
  for (const name of ['config.json', 'model.safetensors']) {
    copyFileSync(join(kFixtures, 'llama', name), join(folder, name))
  }
  writeFileSync(join(folder, 'tokenizer.json'), JSON.stringify(byteLevelTokenizer()))
  model = await loadModel(folder, { threads: 1, kvMemory: 2 ** 26 })
})
afterAll(async () => {
  await model.dispose()
  rmSync(folder, { recursive: true })
})

const prompt = someIds(30, 300)

/** The same generation, step by step, from the logits of the whole text and the reference's sampler. */
async function expected(n: number, options: GenerateOptions): Promise<number[]> {
  const { presencePenalty = 0, frequencyPenalty = 0, logitBias = {}, temperature = 0 } = options
  const biasOf = (id: number) =>
    (logitBias instanceof Map ? logitBias.get(id) : (logitBias as Record<number, number>)[id]) ?? 0
  const ids: number[] = []
  const { vocabSize } = model.config
  for (let i = 0; i < n; i++) {
    const all = await model.logits([...prompt, ...ids], { policy: 'full' })
    const logits = all.slice(-vocabSize)
    const seen = new Uint8Array(vocabSize)
    for (const id of [...prompt, ...ids]) seen[id] = 1
    const rp = options.repetitionPenalty ?? 1
    for (let id = 0; id < vocabSize; id++) {
      if (seen[id]) logits[id] = logits[id]! > 0 ? logits[id]! / rp : logits[id]! * rp
      const count = ids.filter((other) => other === id).length
      logits[id]! += biasOf(id) - (count > 0 ? presencePenalty : 0)
      logits[id]! -= frequencyPenalty * count
    }
    const params = { temperature, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1 }
    const u = uniform(toSeed(options.seed ?? 0), prompt.length + i)
    ids.push(sample({ logits, params, u }).id)
  }
  return ids
}

const run = async (n: number, options: GenerateOptions) =>
  collect(model.generate(prompt, { maxTokens: n, ignoreEos: true, policy: 'full', ...options }))

test.each<[string, GenerateOptions]>([
  ['presence', { presencePenalty: 2 }],
  ['frequency', { frequencyPenalty: 1.5, presencePenalty: 0.5 }],
  ['bias', { logitBias: new Map([[40, 100]]), frequencyPenalty: 2 }],
  ['bias of a plain object', { logitBias: { 40: 100, 7: -100 }, frequencyPenalty: 2 }],
  [
    'all, drawn',
    { frequencyPenalty: -1, presencePenalty: 1, repetitionPenalty: 1.3, temperature: 0.9, seed: 3 },
  ],
])('%s: the tokens that the reference chooses', async (_, options) => {
  expect((await run(16, options)).ids).toEqual(await expected(16, options))
})

// The last one is 0 in float32.
test.each([0, 0.5, 1e-300])('the likeliest tokens at a temperature of %p', async (temperature) => {
  const tokens = []
  const own = { temperature, topK: 1, topLogprobs: 5 } as const
  const options = { maxTokens: 12, ignoreEos: true, policy: 'full', ...own } as const
  for await (const token of model.generate(prompt, options)) tokens.push(token)
  const plain = await run(12, {})
  expect(tokens.map(({ id }) => id)).toEqual(plain.ids)
  for (const { id, logprob, top } of tokens) {
    expect(top).toHaveLength(5)
    expect(top?.[0]?.id).toBe(id)
    expect(top?.[0]?.logprob).toBeCloseTo(logprob, 4)
    const sorted = [...(top ?? [])].sort((a, b) => b.logprob - a.logprob)
    expect(top).toEqual(sorted)
  }
})

test('others in the batch do not notice, nor does it notice them; windows close', async () => {
  const adjusted = {
    presencePenalty: 1,
    maxTokens: 130,
    ignoreEos: true,
    policy: 'zipcache',
  } as const
  const plain = { maxTokens: 130, ignoreEos: true, policy: 'zipcache' } as const
  const alone = [adjusted, plain].map((options) => collect(model.generate(prompt, options)))
  const [one, other] = await Promise.all(alone)
  await using engine = createEngine({ model, kvMemory: 2 ** 26 })
  const together = [adjusted, plain, plain, adjusted, plain].map((options) =>
    collect(engine.generate(prompt, options)),
  )
  const all = (await Promise.all(together)).map(({ ids }) => ids)
  expect(all).toEqual([one, other, other, one, other].map((answer) => answer?.ids))
  expect(engine.stats().windowsClosed).toBe(5)
})

describe('json', () => {
  const schema = {
    type: 'object',
    properties: {
      name: { type: 'string', maxLength: 5 },
      kind: { enum: ['left', 'right'] },
      n: { type: 'array', items: { type: 'integer' }, maxItems: 3 },
    },
    required: ['name', 'kind', 'n'],
  }
  const validate = new Ajv().compile(schema)

  test('whatever the model likes, it writes what the schema allows, and ends', async () => {
    for (let seed = 0; seed < 8; seed++) {
      const sequence = model.createSequence({ policy: 'full' })
      const options = { json: schema, temperature: 2, seed, maxTokens: 400 }
      const { text } = await collect(sequence.generate(prompt, options))
      expect(sequence.finishReason).toBe('stop')
      expect({ text, valid: validate(JSON.parse(text)) }).toEqual({ text, valid: true })
      sequence.dispose()
    }
  })

  test.each(['full', 'zipcache'])(
    '%s: drafts change nothing of it, and save steps',
    async (policy) => {
      let nSaved = 0
      for (let seed = 0; seed < 6; seed++) {
        const asked = { json: schema, temperature: 1.5, seed, maxTokens: 400 }
        const answer = async (more: GenerateOptions) => {
          using sequence = model.createSequence({ policy })
          const { steps, acceptedTokens } = model.stats()
          const { ids, text, logprobs } = await collect(
            sequence.generate(prompt, { ...asked, ...more }),
          )
          const next = await collect(
            sequence.generate([5, 6, 7], { maxTokens: 4, ignoreEos: true }),
          )
          const { length, finishReason, tokens } = sequence
          const after = model.stats()
          nSaved += after.acceptedTokens - acceptedTokens
          return [{ ids, text, logprobs, next, length, finishReason, tokens }, after.steps - steps]
        }
        const likely = jest.spyOn(TokenMasker.prototype, 'likely').mockReturnValue([])
        const [plain, nSteps] = await answer({})
        likely.mockRestore()
        expect(nSaved).toBe(0)
        // Right, right but for some tokens, and nothing that JSON allows.
        const { ids } = plain as { ids: number[] }
        for (const prediction of [ids, ids.map((id, i) => (i % 5 === 3 ? 40 : id)), prompt]) {
          const [drafted, nLess] = await answer({ prediction })
          expect(drafted).toEqual(plain)
          expect(nLess).toBeLessThanOrEqual(nSteps as number)
        }
        expect(nSaved).toBeGreaterThan(ids.length / 2)
        nSaved = 0
      }
    },
  )

  test('whoever reads slowly is given all of what was drafted', async () => {
    for (let seed = 0; seed < 3; seed++) {
      const asked = { json: schema, temperature: 1.5, seed, maxTokens: 400 }
      const plain = await collect(model.generate(prompt, asked))
      const ids: number[] = []
      const drafted = model.generate(prompt, { ...asked, prediction: plain.ids })
      for await (const { id } of drafted) {
        ids.push(id)
        await new Promise((resolve) => setTimeout(resolve, 4)) // steps run on meanwhile
      }
      expect(ids).toEqual(plain.ids)
      expect(drafted.finishReason).toBe('stop')
    }
  })

  test('any object: what is there when the tokens run out is the beginning of one', async () => {
    const { text } = await run(60, { json: true, temperature: 1, seed: 1 })
    expect(text).toMatch(/^\{/)
  })

  test('a vocabulary of words, and no JSON', async () => {
    await using words = await loadModel(join(__dirname, '..', '..', 'models', 'line-retrieval'), {
      threads: 1,
      kvMemory: 2 ** 24,
    })
    await expectRejected(collect(words.generate('line', { json: true })), {
      code: 'ERR_ZC_UNSUPPORTED',
    })
    await expectRejected(run(1, { json: { type: 'x' } }), { code: 'ERR_ZC_ARGUMENT' })
    await expectRejected(run(1, { logitBias: new Map([[320, 1]]) }), {
      code: 'ERR_ZC_ARGUMENT',
      argument: 'logitBias',
    })
  })
})
