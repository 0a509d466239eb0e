/** Models whose matrices are rounded to 4 bits when they are loaded. */
import { join } from 'node:path'
import { createEngine, Device, loadModel, type Model } from '../../lib/index'
import { dequantizeInt4Weight, quantizeInt4Weight, quantizeWeight } from '../../lib/reference/index'
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

/** A matrix (n, k) as its codes say: of 4 bits, or of 8 where rows are no multiple of 64. */
function roundedValues(x: ArrayLike<number>, n: number, k: number): Float32Array {
  if (k % 64 === 0) return Float32Array.from(dequantizeInt4Weight(quantizeInt4Weight(x, 32), 32))
  const { codes, scales } = quantizeWeight({ x, n, k })
  return Float32Array.from(codes, (code, i) => code * (scales[Math.floor(i / k)] as number))
}

/** Matrices as their codes say, in float32. */
function asInt4(tensors: StoredTensors): StoredTensors {
  return withRoundedMatrices(tensors, roundedValues)
}

test.each(untiedFixtures)(
  '%s computes as from a file that holds what 4 bits leave of its matrices',
  async (name) => {
    const dir = join(kFixtures, name)
    const rounded = copies.copy(dir, { tensors: asInt4 })
    const { ids } = readReference(name)
    await withModels([[dir, { weights: 'int4' }], [rounded]], async (int4, floats) => {
      const [own, expected] = await Promise.all(
        [int4, floats].map((model) => model.logits(ids, { policy: 'full' })),
      )
      // x is rounded to 16 bits on its way into every product.
      const { vocabSize, experts } = int4.config
      expect(rowsApart(own, expected, vocabSize, 5e-3)).toBeLessThanOrEqual(experts ? 1 : 0)
    })
  },
)

test.each(['line-retrieval', 'line-retrieval-base'])(
  '%s says nearly what it says from its file: KL divergence below 4e-3',
  async (name) => {
    const dir = join(kTrainedModels, name)
    const [prompt] = readFixturePrompts().filter(({ lines }) => lines === 100)
    await withModels([[dir], [dir, { weights: 'int4' }]], async (stored, int4) => {
      const [p, q] = await Promise.all(
        [stored, int4].map((model) => model.logits(prompt.ids, { policy: 'full' })),
      )
      const divergence = meanDivergence(p, q, stored.config.vocabSize)
      expect(divergence).toBeGreaterThan(0)
      expect(divergence).toBeLessThan(4e-3)
    })
  },
)

describe.each(['f32', 'bf16'] as const)('activations of %s', (dtype) => {
  const model = useModel(join(kFixtures, 'qwen3'), { dtype, weights: 'int4' })

  test('tokens of a batch are those of sequences alone', async () => {
    const prompts = [5, 40, 130].map((n) => someIds(n, 192, n))
    const ask = (ids: number[]) => idsOf(model(), ids, 20, { policy: 'zipcache' })
    const alone: number[][] = []
    for (const ids of prompts) alone.push(await ask(ids))
    expect(await Promise.all(prompts.map(ask))).toEqual(alone)
  })
})

test('matrices take half a byte an element and three a group, embeddings what they took', async () => {
  const dir = join(kFixtures, 'llama')
  await withModels([[dir], [dir, { weights: 'int4' }]], async (stored, int4) => {
    const { hiddenSize: d, intermediateSize, nHeads, nKvHeads, headDim } = stored.config
    const { nLayers, vocabSize } = stored.config
    const rows = (2 * nKvHeads + nHeads) * headDim + 2 * intermediateSize
    const elements = rows * d + d * nHeads * headDim + d * intermediateSize
    const matrices = nLayers * elements + vocabSize * d
    const weightsOf = (model: Model) => model.estimate({ tokens: 1, policy: 'fp16' }).weights
    expect(weightsOf(stored) - weightsOf(int4)).toBe(1.5 * matrices - 3 * (matrices / 32))
    expect([stored.weights, int4.weights]).toEqual(['stored', 'int4'])
    expect(await stored.fingerprint()).not.toBe(await int4.fingerprint())
  })
})

test('experts whose rows are no multiple of 64 keep 8 bits', async () => {
  const dir = join(kFixtures, 'mixtral')
  await withModels(
    [
      [dir, { weights: 'int8' }],
      [dir, { weights: 'int4' }],
    ],
    async (int8, int4) => {
      const { hiddenSize: d, nHeads, nKvHeads, headDim, nLayers, vocabSize } = int4.config
      const experts = int4.config.experts!
      expect(experts.intermediateSize % 64).not.toBe(0) // the rows of what leads back
      const rows = 2 * (nKvHeads + nHeads) * headDim + 2 * experts.count * experts.intermediateSize
      const inFour = nLayers * rows + vocabSize
      const weightsOf = (model: Model) => model.estimate({ tokens: 1, policy: 'fp16' }).weights
      // Half a byte an element and 3 a group, instead of a byte and 4 a row.
      expect(weightsOf(int8) - weightsOf(int4)).toBe(inFour * (d / 2 + 4 - 3 * (d / 32)))
    },
  )
})

test('a saved sequence is not gone on with by the same model in other weights', async () => {
  const dir = join(kFixtures, 'llama')
  await withModels([[dir], [dir, { weights: 'int4' }]], async (stored, int4) => {
    const sequence = int4.createSequence()
    await sequence.prefill(someIds(120, 192))
    const path = join(copies.copy(dir), 'saved')
    await sequence.save(path)
    sequence.dispose()
    const [other, same] = [stored, int4].map((model) => createEngine({ model, kvMemory: 2 ** 24 }))
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
  await expectRejected(loadModel(dir, { device, weights: 'int4' }), fault)
  await device.sync()
  expect(device.memory.current).toBe(0)
  await device.dispose()
})

describe('on a GPU, emulated', () => {
  const dir = join(kFixtures, 'qwen3')

  test('the codes of a CPU, as values of 16 bits', async () => {
    const { ids } = readReference('qwen3')
    const load = { weights: 'int4', dtype: 'f32' } as const
    const loads = ['cpu', 'cuda-emu'].map((device) => [dir, { ...load, device }] as const)
    await withModels(loads, async (cpu, gpu) => {
      const [own, expected] = await Promise.all(
        [gpu, cpu].map((model) => model.logits(ids, { policy: 'full' })),
      )
      // A GPU rounds the weight to 11 bits, a CPU x to 16.
      expect(rowsApart(own, expected, cpu.config.vocabSize, 1e-2)).toBe(0)
    })
  })

  const model = useModel(dir, { device: 'cuda-emu', weights: 'int4' })
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
