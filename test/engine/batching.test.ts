/** A sequence's tokens do not depend on what else is in its batch. */
import { join } from 'node:path'
import fc from 'fast-check'
import { createEngine, loadModel, type Model, ZipCacheError } from '../../lib/index'
import { loadAddon } from '../../lib/native/load'
import { DTYPES } from '../../lib/ops/dtype'
import { SAMPLE_PARAMS } from '../../lib/ops/index'
import { expectRejected } from '../support/errors'
import { propertyRuns } from '../support/properties'
import { kFixtures, kTrainedModels, ModelCopies } from './model-copies'
import { expectIdle, Oracle, type Request, requests, serve, testPolicies } from './requests'
import { expectSame, idsOf, someIds, useModel } from './running'

const kLlama = join(kFixtures, 'llama')
const kvMemory = 1 << 26

const plain: Request = {
  promptLength: 30,
  promptSeed: 1,
  policy: 'fp16',
  seed: 0,
  temperature: 0,
  repetitionPenalty: 1,
  promptLookup: 0,
  maxTokens: 30,
  joinAt: 0,
  pause: 0,
  leaveAfter: 1e9,
  abortAfter: 0,
}

/** Serves all requests at once, and checks each answer against what it is alone; how many steps it took. */
async function expectIndependent(
  model: Model,
  oracle: Oracle,
  all: readonly Request[],
  limits: { maxBatch?: number; maxPrefills?: number } = {},
): Promise<number> {
  await using engine = createEngine({ model, kvMemory, ...limits })
  const { vocabSize } = model.config
  const answers = await Promise.all(all.map((request) => serve(engine, request, vocabSize)))
  for (const [i, request] of all.entries()) await oracle.check(request, answers[i])
  await expectIdle(engine)
  return engine.stats().steps
}

describe.each([
  ['llama', kLlama],
  ['qwen3.5', join(kFixtures, 'qwen3.5')],
])('any requests at once give each the tokens that it gets alone: %s', (_, dir) => {
  const model = useModel(dir)
  const oracle = new Oracle(model)

  test('property: whoever joins, leaves, aborts or is slow', async () => {
    const batches = fc.record({
      all: fc.array(requests, { minLength: 1, maxLength: 16, size: 'max' }),
      maxBatch: fc.constantFrom(1, 3, 5, 16, 64),
      maxPrefills: fc.constantFrom(1, 2, 4),
    })
    const property = fc.asyncProperty(batches, async ({ all, ...limits }) => {
      await expectIndependent(model(), oracle, all, limits)
    })
    await fc.assert(property, propertyRuns(10))
  })

  test('16 that stay, of every policy, with windows that close at different steps', async () => {
    const all = Array.from({ length: 16 }, (_, i) => ({
      ...plain,
      promptLength: 3 + 11 * i,
      promptSeed: 1 + i,
      policy: testPolicies[i % testPolicies.length],
      seed: i,
      temperature: [0, 1][i % 2],
      repetitionPenalty: [1, 1.2, 1][i % 3],
      maxTokens: 50,
    }))
    const steps = await expectIndependent(model(), oracle, all)
    // Else nothing was tested: one by one they take 16 x 49 steps.
    expect(steps).toBeGreaterThanOrEqual(49)
    expect(steps).toBeLessThan(4 * 49)
  })

  test.each([1, 2, 3, 7, 16])('with %i rows a step at most', async (maxBatch) => {
    const all = Array.from({ length: 16 }, (_, i) => ({
      ...plain,
      promptLength: 90 + i,
      policy: testPolicies[i % 5],
      seed: 3,
      temperature: 0.9,
    }))
    await expectIndependent(model(), oracle, all, { maxBatch })
  })

  test('the same request many times over', async () => {
    const request = { ...plain, policy: testPolicies[4], temperature: 1, promptLength: 95 }
    const all = Array.from({ length: 16 }, (_, i) => ({ ...request, joinAt: 3 * i }))
    await expectIndependent(model(), oracle, all)
  })

  test('on 1, 2 and 3 threads', async () => {
    const all = Array.from({ length: 6 }, (_, i) => ({
      ...plain,
      promptLength: 20 + 30 * i,
      policy: testPolicies[i],
      temperature: i % 2,
    }))
    for (const threads of [1, 2, 3]) {
      const other = await loadModel(dir, { threads })
      await expectIndependent(other, oracle, all)
      await other.dispose()
    }
  })
})

test('16 sequences of a trained model', async () => {
  const model = await loadModel(join(kTrainedModels, 'line-retrieval'))
  const all = Array.from({ length: 16 }, (_, i) => ({
    ...plain,
    promptLength: 40 + 37 * i, // the last ones in two slices
    promptSeed: i + 1,
    policy: testPolicies[i % 5],
    temperature: [0, 0, 1][i % 3],
    maxTokens: 24,
    joinAt: 5 * i,
  }))
  await expectIndependent(model, new Oracle(() => model), all)
  await model.dispose()
})

describe('how a prompt is sliced changes nothing', () => {
  const copies = new ModelCopies()
  afterAll(() => copies.remove())
  const model = useModel(kLlama) // slices of 512 rows
  // The same function as a sum of more terms, which are 0: slices of 128 rows.
  const nHidden = 10_752
  const padded = useModel(
    copies.copy(kLlama, {
      config: { intermediate_size: nHidden },
      tensors: (tensors) => {
        for (const [name, { dtype, shape, bytes }] of tensors) {
          const [rows, columns] = shape
          if (/(gate|up)_proj/.test(name)) {
            const wider = new Uint8Array(nHidden * columns * 2)
            wider.set(bytes)
            tensors.set(name, { dtype, shape: [nHidden, columns], bytes: wider })
          } else if (name.includes('down_proj')) {
            const wider = new Uint8Array(rows * nHidden * 2)
            const rowBytes = columns * 2
            for (let row = 0; row < rows; row++) {
              const own = bytes.subarray(row * rowBytes, (row + 1) * rowBytes)
              wider.set(own, row * nHidden * 2)
            }
            tensors.set(name, { dtype, shape: [rows, nHidden], bytes: wider })
          }
        }
        return tensors
      },
    }),
  )

  test.each(['full', 'zipcache', testPolicies[4]])('%j', async (policy) => {
    const results: Float32Array[] = []
    const answers: number[][] = []
    for (const each of [model(), padded()]) {
      const sequence = each.createSequence({ policy })
      await sequence.prefill(someIds(150, 320, 1)) // 128 and 22 rows
      answers.push(await idsOf(sequence, null, 7))
      results.push(await sequence.logits(someIds(300, 320, 2))) // 128, 128 and 44 rows
      answers.push(await idsOf(sequence, null, 20))
      sequence.dispose()
    }
    expectSame(results[1], results[0])
    expect(answers.slice(2)).toEqual(answers.slice(0, 2))
  })
})

describe('without memory for the rows of a batch', () => {
  const model = useModel(kLlama)
  const oracle = new Oracle(model)

  /** Refuses tensors of so many rows or more, while it is asked to. */
  function refusing(nRows: () => number) {
    const addon = loadAddon()
    const actual = addon.createTensor
    return jest.spyOn(addon, 'createTensor').mockImplementation((device, dtype, shape) => {
      // What a step's rows are looked up in: (nRows + 1) positions of i32, an odd number of them.
      if (dtype === DTYPES.indexOf('i32') && shape.length === 1 && shape[0] > nRows()) {
        throw new ZipCacheError('ERR_ZC_OUT_OF_MEMORY', 'a tensor was not to be had')
      }
      return actual(device, dtype, shape)
    })
  }

  test('sequences take turns, get their tokens, and are counted; later there is room again', async () => {
    let nRows = 2
    const words = (rows: number) => rows * (7 + SAMPLE_PARAMS)
    const spy = refusing(() => Math.max(words(nRows), 30))
    try {
      await using engine = createEngine({ model: model(), kvMemory })
      const serveAll = async () => {
        const all = Array.from({ length: 7 }, (_, i) => ({ ...plain, promptSeed: i + 1 }))
        const { vocabSize } = model().config
        const answers = await Promise.all(all.map((one) => serve(engine, one, vocabSize)))
        for (const [i, one] of all.entries()) await oracle.check(one, answers[i])
        return engine.stats()
      }
      const first = await serveAll()
      // 7 x 29 tokens enter the caches, two at a time.
      expect(first.steps).toBeGreaterThanOrEqual((7 * 29) / 2)
      expect(first.narrowedSteps).toBeGreaterThan(50)
      nRows = 64
      const second = await serveAll() // and after 64 steps at most there is room
      const third = await serveAll()
      expect(third.narrowedSteps).toBe(second.narrowedSteps)
      expect(third.steps - second.steps).toBeLessThan(60)
    } finally {
      spy.mockRestore()
    }
  })

  test('not even for one: who waits is told, and the next request is served', async () => {
    let nRows = 0
    const spy = refusing(() => (nRows === 0 ? 6 + SAMPLE_PARAMS : 1e9))
    try {
      await using engine = createEngine({ model: model(), kvMemory })
      const refused = idsOf(engine, someIds(5, 300), 5)
      await expectRejected(refused, { code: 'ERR_ZC_OUT_OF_MEMORY' })
      await expectIdle(engine)
      nRows = 64
      expect(await idsOf(engine, someIds(5, 300), 5)).toHaveLength(5)
    } finally {
      spy.mockRestore()
    }
  })
})
