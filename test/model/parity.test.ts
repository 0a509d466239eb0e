import { join } from 'node:path'
import { loadModel, type Model } from '../../lib/index'
import {
  fixtureNames,
  kFixtures,
  kTrainedModels,
  ModelCopies,
  readReference,
  type StoredTensors,
  storedAs,
} from '../engine/model-copies'
import { argmaxRows, expectSame, idsOf, maxDifference, useModel } from '../engine/running'
import { type FixturePrompt, readFixturePrompts } from '../eval/fixture-prompts'

/** Logits of the last rows, as many as the reference has. */
async function lastLogits(model: Model, ids: number[], length: number): Promise<Float32Array> {
  const logits = await model.logits(ids, { policy: 'full' })
  expect(logits).toHaveLength(ids.length * model.config.vocabSize)
  return logits.subarray(logits.length - length)
}

async function withModel<R>(
  dir: string,
  options: Parameters<typeof loadModel>[1],
  body: (model: Model) => Promise<R>,
): Promise<R> {
  const model = await loadModel(dir, options)
  try {
    return await body(model)
  } finally {
    await model.dispose()
  }
}

describe.each(fixtureNames)('transformers and %s', (name) => {
  const dir = join(kFixtures, name)
  const { ids, logits, greedy } = readReference(name)

  describe('in float32', () => {
    const model = useModel(dir, { dtype: 'f32' })

    test('agree on logits', async () => {
      const own = await lastLogits(model(), ids, logits.length)
      // The promise is 5e-3; float32 sums in another order differ by a hundredth of this.
      expect(maxDifference(own, logits)).toBeLessThan(5e-4)
    })

    test('agree on greedy tokens', async () => {
      expect(await idsOf(model(), ids, greedy.length, { policy: 'full' })).toEqual(greedy)
    })

    test.each(['fp16', 'zipcache', 'uniform8', 'uniform2'])(
      'agree on logits of a prompt under %s, which is attended to before it is compressed',
      async (policy) => {
        const own = await model().logits(ids, { policy })
        expect(maxDifference(own.subarray(own.length - logits.length), logits)).toBeLessThan(5e-4)
      },
    )

    test('agree on greedy tokens over a float16 cache', async () => {
      expect(await idsOf(model(), ids, greedy.length, { policy: 'fp16' })).toEqual(greedy)
    })

    test.each(['zipcache', 'uniform4', 'uniform3', 'uniform2'])(
      'decode under %s',
      async (policy) => {
        const sequence = model().createSequence({ policy })
        const tokens = await idsOf(sequence, ids, 105)
        expect(tokens).toHaveLength(105)
        expect(tokens.every((id) => id >= 0 && id < model().config.vocabSize)).toBe(true)
        // the prompt, then a window of 100 decoded tokens; the 105th has not been through the model
        const packed = sequence.segments.reduce((sum, { nTokens }) => sum + nTokens, 0)
        expect([packed, sequence.length]).toEqual([ids.length + 100, ids.length + 104])
        sequence.dispose()
      },
    )
  })

  test('agree on the argmax of 98% of rows in bfloat16', async () => {
    await withModel(dir, { dtype: 'bf16' }, async (model) => {
      const width = model.config.vocabSize
      const own = argmaxRows(await lastLogits(model, ids, logits.length), width)
      const expected = argmaxRows(logits, width)
      const nEqual = own.filter((id, row) => id === expected[row]).length
      expect(nEqual / expected.length).toBeGreaterThanOrEqual(0.98)
    })
  })
})

describe('the same weights in other files', () => {
  const copies = new ModelCopies()
  afterAll(() => copies.remove())
  const from = join(kFixtures, 'qwen3')
  const { ids, logits } = readReference('qwen3')
  const original = useModel(from)
  const inDtype = (dtype: 'F32' | 'F16') => (tensors: StoredTensors) =>
    new Map([...tensors].map(([name, tensor]) => [name, storedAs(tensor, dtype)]))

  test.each([2, 7])('in %i shards: identical logits', async (shards) => {
    const expected = await lastLogits(original(), ids, logits.length)
    await withModel(copies.copy(from, { shards }), {}, async (model) => {
      expectSame(await lastLogits(model, ids, logits.length), expected)
    })
  })

  test('in float32, which holds bfloat16 exactly: the same logits, but for the order of sums', async () => {
    const expected = await lastLogits(original(), ids, logits.length)
    await withModel(copies.copy(from, { tensors: inDtype('F32') }), {}, async (model) => {
      const own = await lastLogits(model, ids, logits.length)
      expect(maxDifference(own, expected)).toBeLessThan(2e-5)
    })
  })

  test('in float16, which rounds only the smallest of them', async () => {
    await withModel(copies.copy(from, { tensors: inDtype('F16') }), {}, async (model) => {
      const own = await lastLogits(model, ids, logits.length)
      expect(maxDifference(own, logits)).toBeLessThan(5e-3)
    })
  })

  test.each(['F32', 'F16'] as const)(
    'in %s, computed in bfloat16: the same argmax',
    async (dtype) => {
      const copy = copies.copy(from, { tensors: inDtype(dtype) })
      await withModel(copy, { dtype: 'bf16' }, async (model) => {
        const width = model.config.vocabSize
        const own = argmaxRows(await lastLogits(model, ids, logits.length), width)
        const expected = argmaxRows(logits, width)
        expect(own.filter((id, row) => id !== expected[row]).length).toBeLessThanOrEqual(2)
      })
    },
  )
})

/** What transformers generates with either model; none for prompts of 300 lines. */
type GreedyPrompt = FixturePrompt & Record<`greedy_${string}`, number[]>

describe.each(['line-retrieval', 'line-retrieval-base'])('transformers and %s', (name) => {
  const model = useModel(join(kTrainedModels, name), { dtype: 'f32' })
  const prompts = readFixturePrompts() as GreedyPrompt[]
  const short = prompts.filter(({ lines }) => lines <= 100)
  const long = prompts.filter(({ lines }) => lines === 200).slice(0, 2)

  test.each([10, 20, 50, 100, 200])('agree on greedy tokens over %i lines', async (lines) => {
    const chosen = [...short, ...long].filter((prompt) => prompt.lines === lines)
    expect(chosen.length).toBeGreaterThanOrEqual(2)
    for (const prompt of chosen) {
      const expected = prompt[`greedy_${name}`]
      expect(await idsOf(model(), prompt.ids, expected.length, { policy: 'full' })).toEqual(
        expected,
      )
    }
  })
})
