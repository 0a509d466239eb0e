/** Models whose matrices are rounded to 8 bits when they are loaded. */
import { join } from 'node:path'
import { createEngine, Device, loadModel, type Model } from '../../lib/index'
import { quantizeWeight } from '../../lib/reference/index'
import { readFixturePrompts } from '../eval/fixture-prompts'
import { expectRejected } from '../support/errors'
import {
  kFixtures,
  kTrainedModels,
  ModelCopies,
  readReference,
  type StoredTensors,
  untiedFixtures,
  withRoundedMatrices,
} from './model-copies'
import { idsOf, rowsApart, someIds, useModel, withModels } from './running'

const copies = new ModelCopies()
afterAll(() => copies.remove())

/** Matrices as their codes and scales say, in float32. */
function asInt8(tensors: StoredTensors): StoredTensors {
  return withRoundedMatrices(tensors, (x, n, k) => {
    const { codes, scales } = quantizeWeight({ x, n, k })
    return Float32Array.from(codes, (code, i) => code * scales[Math.floor(i / k)]!)
  })
}

test.each(untiedFixtures)(
  '%s computes as from a file that holds what 8 bits leave of its matrices',
  async (name) => {
    const dir = join(kFixtures, name)
    const rounded = copies.copy(dir, { tensors: asInt8 })
    const { ids } = readReference(name)
    await withModels([[dir, { weights: 'int8' }], [rounded]], async (int8, floats) => {
      const [own, expected] = await Promise.all(
        [int8, floats].map((model) => model.logits(ids, { policy: 'full' })),
      )
      // x is rounded to 16 bits on its way into every product.
      const { vocabSize, experts } = int8.config
      expect(rowsApart(own, expected, vocabSize, 5e-3)).toBeLessThanOrEqual(experts ? 1 : 0)
    })
  },
)

test.each(['line-retrieval', 'line-retrieval-base'])(
  '%s says nearly what it says from its file: KL divergence below 5e-4',
  async (name) => {
    const dir = join(kTrainedModels, name)
    const [prompt] = readFixturePrompts().filter(({ lines }) => lines === 100)
    await withModels([[dir], [dir, { weights: 'int8' }]], async (stored, int8) => {
      const [p, q] = await Promise.all(
        [stored, int8].map((model) => model.logits(prompt.ids, { policy: 'full' })),
      )
      const divergence = meanDivergence(p, q, stored.config.vocabSize)
      expect(divergence).toBeGreaterThan(0)
      expect(divergence).toBeLessThan(5e-4)
    })
  },
)

describe.each(['f32', 'bf16'] as const)('activations of %s', (dtype) => {
  const model = useModel(join(kFixtures, 'qwen3'), { dtype, weights: 'int8' })

  test('tokens of a batch are those of sequences alone', async () => {
    const prompts = [5, 40, 130].map((n) => someIds(n, 192, n))
    const ask = (ids: number[]) => idsOf(model(), ids, 20, { policy: 'zipcache' })
    const alone: number[][] = []
    for (const ids of prompts) alone.push(await ask(ids))
    expect(await Promise.all(prompts.map(ask))).toEqual(alone)
  })
})

test('matrices take a byte an element and four a row, embeddings what they took', async () => {
  const dir = join(kFixtures, 'llama')
  await withModels([[dir], [dir, { weights: 'int8' }]], async (stored, int8) => {
    const { hiddenSize: d, intermediateSize, nHeads, nKvHeads, headDim } = stored.config
    const { nLayers, vocabSize } = stored.config
    const rows = (2 * nKvHeads + nHeads) * headDim + 2 * intermediateSize
    const elements = rows * d + d * nHeads * headDim + d * intermediateSize
    const matrices = nLayers * elements + vocabSize * d
    const matrixRows = nLayers * (rows + 2 * d) + vocabSize
    const weightsOf = (model: Model) => model.estimate({ tokens: 1, policy: 'fp16' }).weights
    expect(weightsOf(stored) - weightsOf(int8)).toBe(matrices - 4 * matrixRows)
    expect([stored.weights, int8.weights]).toEqual(['stored', 'int8'])
    expect(await stored.fingerprint()).not.toBe(await int8.fingerprint())
  })
})

test('a saved sequence is not gone on with by the same model in other weights', async () => {
  const dir = join(kFixtures, 'llama')
  await withModels([[dir], [dir, { weights: 'int8' }]], async (stored, int8) => {
    const sequence = int8.createSequence()
    await sequence.prefill(someIds(120, 192))
    const path = join(copies.copy(dir), 'saved')
    await sequence.save(path)
    sequence.dispose()
    const [other, same] = [stored, int8].map((model) => createEngine({ model, kvMemory: 2 ** 24 }))
    await expectRejected(other.restore(path), { code: 'ERR_ZC_SNAPSHOT' })
    expect((await same.restore(path)).length).toBe(120)
  })
})

test.each([
  ['NaN', 0x7fc0],
  ['infinity', 0x7f80],
])('%s in a matrix is told', async (_, bits) => {
  const name = 'model.layers.1.mlp.up_proj.weight'
  const poke = (tensors: StoredTensors) => {
    new Uint16Array(tensors.get(name)!.bytes.buffer)[77] = bits
    return tensors
  }
  const dir = copies.copy(join(kFixtures, 'llama'), { tensors: poke })
  const device = await Device.open('cpu')
  const fault = { code: 'ERR_ZC_NUMERIC', argument: name } as const
  await expectRejected(loadModel(dir, { device, weights: 'int8' }), fault)
  await device.sync()
  expect(device.memory.current).toBe(0)
  await device.dispose()
})

describe('on a GPU, emulated', () => {
  const dir = join(kFixtures, 'qwen3')

  test.each(['qwen3', 'mixtral', 'qwen2-moe', 'glm4-moe'])(
    '%s: the codes of a CPU, x as it is',
    async (name) => {
      const { ids } = readReference(name)
      const load = { weights: 'int8', dtype: 'f32' } as const
      const loads = ['cpu', 'cuda-emu'].map(
        (device) => [join(kFixtures, name), { ...load, device }] as const,
      )
      await withModels(loads, async (cpu, gpu) => {
        const [own, expected] = await Promise.all(
          [gpu, cpu].map((model) => model.logits(ids, { policy: 'full' })),
        )
        // A CPU rounds x to 16 bits on its way into every product.
        const { vocabSize, experts } = cpu.config
        expect(rowsApart(own, expected, vocabSize, 5e-3)).toBeLessThanOrEqual(experts ? 1 : 0)
      })
    },
  )

  const model = useModel(dir, { device: 'cuda-emu', weights: 'int8' })
  test('tokens of a batch are those of sequences alone', async () => {
    const prompts = [5, 130].map((n) => someIds(n, 192, n))
    const ask = (ids: number[]) => idsOf(model(), ids, 8, { policy: 'zipcache' })
    const alone: number[][] = []
    for (const ids of prompts) alone.push(await ask(ids))
    expect(await Promise.all(prompts.map(ask))).toEqual(alone)
  })
})

/** Of the distributions that rows of logits say, from those of `p`. */
function meanDivergence(p: Float32Array, q: Float32Array, width: number): number {
  const nRows = p.length / width
  let sum = 0
  for (let row = 0; row < nRows; row++) {
    const [a, b] = [p, q].map((x) => logSoftmax(x.subarray(row * width, (row + 1) * width)))
    a.forEach((x, i) => {
      sum += Math.exp(x) * (x - b[i])
    })
  }
  return sum / nRows
}

function logSoftmax(x: Float32Array): Float64Array {
  const max = x.reduce((most, value) => Math.max(most, value))
  const total = x.reduce((sum, value) => sum + Math.exp(value - max), 0)
  return Float64Array.from(x, (value) => value - max - Math.log(total))
}
