import { readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Device, loadModel, type Model } from '../../lib/index'
import { checkTensors, openCheckpoint } from '../../lib/model/checkpoint'
import { readModelConfig } from '../../lib/model/config'
import { loadWeights, type Matrix } from '../../lib/model/weights'
import { quantizeWeight } from '../../lib/reference/index'
import {
  kFixtures as kPlain,
  ModelCopies,
  readReference,
  type StoredTensor,
  type StoredTensors,
  valuesOf,
} from '../engine/model-copies'
import { expectSame, idsOf, maxDifference, withModel } from '../engine/running'
import { expectRefusal } from './model-folder'

const kFixtures = join(kPlain, '..', 'quantized')
const names = readdirSync(kFixtures).filter((name) => !name.endsWith('.py'))
const copies = new ModelCopies()
afterAll(() => copies.remove())

const folder = (name: string) => join(kFixtures, name)
const referenceOf = (name: string) => readReference(join('..', 'quantized', name))

/** Whose matrices stay as codes; those of the others are widened. */
const kKept = [
  ...['int8-channel', 'gptq-8-channel', 'w4a16-group', 'w4a16-zeros', 'w4a16-channel'],
  ...['gptq-4', 'gptq-4-v2', 'awq', 'awq-experts', 'mxfp4', 'mxfp4-packed'],
]

/** Logits may differ from those of the widened weights by this much: sums have another order, and beside codes x is rounded to 16 bits. */
const toleranceOf = (name: string) => (kKept.includes(name) ? 2e-3 : 1e-4)

async function lastLogits(model: Model, ids: number[], length: number): Promise<Float32Array> {
  const logits = await model.logits(ids, { policy: 'full' })
  return logits.subarray(logits.length - length)
}

test('there is a checkpoint of every format', () => {
  expect(names).toHaveLength(20)
})

describe.each(names)('%s', (name) => {
  const { ids, logits, greedy } = referenceOf(name)

  test('agrees with the weights that its packers made of it', async () => {
    await withModel(folder(name), { dtype: 'f32' }, async (model) => {
      const own = await lastLogits(model, ids, logits.length)
      expect(maxDifference(own, logits)).toBeLessThan(toleranceOf(name))
      expect(await idsOf(model, ids, greedy.length, { policy: 'full' })).toEqual(greedy)
    })
  })

  test('in bfloat16 and as int8: close to them', async () => {
    for (const options of [{ dtype: 'bf16' }, { weights: 'int8' }] as const) {
      await withModel(folder(name), options, async (model) => {
        const own = await lastLogits(model, ids, logits.length)
        expect(maxDifference(own, logits)).toBeLessThan(0.15)
      })
    }
  })

  test('in shards: identical logits', async () => {
    const [one, three] = [folder(name), copies.copy(folder(name), { shards: 3 })]
    const [a, b] = await Promise.all(
      [one, three].map((dir) =>
        withModel(dir, {}, async (model) => (await lastLogits(model, ids, logits.length)).slice()),
      ),
    )
    expectSame(a!, b!)
  })
})

test('experts of all rows are read as others: codes of 8 bits are those that rounding makes', async () => {
  const dir = join(kPlain, 'qwen2-moe')
  const quantization_config = {
    quant_method: 'compressed-tensors',
    format: 'int-quantized',
    config_groups: { group_0: { weights: { num_bits: 8, type: 'int', strategy: 'channel' } } },
  }
  const coded = copies.copy(dir, {
    config: { quantization_config },
    tensors: (tensors) => {
      const all: StoredTensors = new Map()
      for (const [name, tensor] of tensors) {
        if (!/_proj\.weight$|lm_head/.test(name)) {
          all.set(name, tensor)
          continue
        }
        const [n, k] = tensor.shape as [number, number]
        const { codes, scales } = quantizeWeight({ x: valuesOf(tensor), n, k })
        const bytes = (values: Int8Array | Float32Array) => new Uint8Array(values.buffer)
        all.set(name, { dtype: 'I8', shape: [n, k], bytes: bytes(Int8Array.from(codes)) })
        const scale = { dtype: 'F32', shape: [n, 1], bytes: bytes(Float32Array.from(scales)) }
        all.set(`${name}_scale`, scale)
      }
      return all
    },
  })
  const { ids, logits } = readReference('qwen2-moe')
  const [own, expected] = await Promise.all([
    withModel(coded, {}, async (model) => (await lastLogits(model, ids, logits.length)).slice()),
    withModel(dir, { weights: 'int8' }, async (model) =>
      (await lastLogits(model, ids, logits.length)).slice(),
    ),
  ])
  expectSame(own!, expected!)
})

test('what Model Optimizer once wrote into a file of its own', async () => {
  const older = copies.copy(folder('nvfp4-modelopt'), { config: { quantization_config: null } })
  const write = (quantization: unknown) =>
    writeFileSync(join(older, 'hf_quant_config.json'), JSON.stringify({ quantization }))
  write({ quant_algo: 'NVFP4', kv_cache_quant_algo: 'FP8', exclude_modules: ['lm_head'] })
  const { ids, logits } = referenceOf('nvfp4-modelopt')
  const [a, b] = await Promise.all(
    [folder('nvfp4-modelopt'), older].map((dir) =>
      withModel(dir, {}, async (model) => (await lastLogits(model, ids, logits.length)).slice()),
    ),
  )
  expectSame(a!, b!)
  for (const [quantization, message] of [
    [{ quant_algo: 'MIXED_PRECISION' }, 'quantization.quant_algo is "MIXED_PRECISION", expected'],
    [7, 'quantization is 7, expected an object'],
  ] as const) {
    write(quantization)
    await expectRefusal(loadModel(older), 'ERR_ZC_CONFIG', 'hf_quant_config.json', message)
  }
})

test("Model Optimizer's float8 is that of others", async () => {
  const quantization_config = { quant_method: 'modelopt', quant_algo: 'FP8', ignore: ['lm_head'] }
  const scalar = (tensors: StoredTensors): StoredTensors =>
    new Map(
      [...tensors].map(([name, tensor]) => {
        if (!name.endsWith('.weight_scale')) return [name, tensor]
        const scale = Float32Array.from(valuesOf(tensor))
        return [name, { dtype: 'F32', shape: [], bytes: new Uint8Array(scale.buffer) }]
      }),
    )
  const { ids, logits } = referenceOf('fp8-tensor')
  const other = copies.copy(folder('fp8-tensor'), {
    config: { quantization_config },
    tensors: scalar,
  })
  const [a, b] = await Promise.all(
    [folder('fp8-tensor'), other].map((dir) =>
      withModel(dir, {}, async (model) => (await lastLogits(model, ids, logits.length)).slice()),
    ),
  )
  expectSame(a!, b!)
})

/** A copy with a change of one tensor; undefined leaves it out. */
function changed(
  name: string,
  tensor: string,
  change: (tensor: StoredTensor) => StoredTensor | undefined,
): string {
  return copies.copy(folder(name), {
    tensors: (tensors: StoredTensors) => {
      const others = new Map(tensors)
      const result = change(others.get(tensor)!)
      if (result) others.set(tensor, result)
      else others.delete(tensor)
      return others
    },
  })
}

const as = (more: Partial<StoredTensor>) => (tensor: StoredTensor) => ({ ...tensor, ...more })
const withByte = (at: number, byte: number) => (tensor: StoredTensor) => ({
  ...tensor,
  bytes: tensor.bytes.map((own, index) => (index === at ? byte : own)),
})
const ofOnes = (tensor: StoredTensor) => ({ ...tensor, bytes: tensor.bytes.map(() => 0xff) })
const kLayer = 'model.layers.0'

describe('what is damaged is refused, and named', () => {
  const q = `${kLayer}.self_attn.q_proj`
  const down = `${kLayer}.mlp.down_proj`
  const gateUp = `${kLayer}.mlp.experts.gate_up_proj`
  const gone = () => undefined
  test.each([
    ['fp8-block', `${q}.weight_scale_inv`, gone, 'weight_scale is missing, expected shape'],
    ['fp8-block', `${q}.weight_scale_inv`, as({ shape: [4, 2] }), 'has shape [4, 2], expected'],
    [
      'fp8-block',
      `${q}.weight`,
      as({ shape: [64, 256] }),
      'has shape [64, 256], expected [128, 128]',
    ],
    ['fp8-block', `${q}.weight`, as({ dtype: 'F8_E5M2' }), 'has dtype F8_E5M2'],
    ['fp8-channel', `${q}.weight_scale`, gone, 'is missing, expected shape'],
    ['fp8-channel', `${q}.weight`, as({ dtype: 'U8' }), 'has dtype U8'],
    [
      'int8-channel',
      `${down}.weight_scale`,
      as({ dtype: 'I16' }),
      'has dtype I16, expected one of F32',
    ],
    [
      'w4a16-group',
      `${down}.weight_packed`,
      as({ dtype: 'F32' }),
      'has dtype F32, expected one of I32',
    ],
    [
      'w4a16-group',
      `${down}.weight_packed`,
      as({ shape: [64, 48] }),
      'has shape [64, 48], expected [128, 24] or',
    ],
    ['w4a16-group', `${down}.weight_packed`, gone, `${down}.weight is missing`],
    ['w4a16-group', `${down}.weight_scale`, as({ shape: [96, 8] }), 'has shape [96, 8], expected'],
    [
      'w4a16-zeros',
      `${down}.weight_zero_point`,
      as({ shape: [3, 16] }),
      'has shape [3, 16], expected [16, 3]',
    ],
    [
      'w4a16-order',
      `${down}.weight_g_idx`,
      as({ shape: [96, 2] }),
      'has shape [96, 2], expected [192]',
    ],
    ['w4a16-order', `${down}.weight_g_idx`, withByte(40, 6), 'holds a group without a scale'],
    ['gptq-4', `${q}.qzeros`, gone, 'is missing, expected shape [4, 16]'],
    ['gptq-4', `${q}.scales`, gone, 'is missing, expected shape [4, 128]'],
    ['gptq-4', `${q}.qweight`, as({ shape: [32, 64] }), 'has shape [32, 64], expected [16, 128]'],
    ['gptq-4', `${q}.g_idx`, withByte(7, 255), 'holds a group without a scale'],
    ['gptq-4-order', `${q}.g_idx`, withByte(0, 2), 'holds a group without a scale'],
    ['mxfp4', `${gateUp}_scales`, gone, 'is missing, expected shape [4, 192, 2]'],
    ['mxfp4', `${gateUp}_blocks`, gone, 'is missing, expected shape [4, 192, 2, 16]'],
    [
      'mxfp4',
      `${gateUp}_blocks`,
      as({ shape: [4, 192, 4, 8] }),
      'has shape [4, 192, 4, 8], expected [4, 192, 2, 16]',
    ],
    ['mxfp4', `${gateUp}_blocks`, as({ dtype: 'I8' }), 'has dtype I8, expected one of U8'],
    [
      'mxfp4',
      `${gateUp}_scales`,
      as({ dtype: 'F8_E4M3' }),
      'has dtype F8_E4M3, expected one of U8',
    ],
    ['mxfp4', `${gateUp}_bias`, as({ shape: [192, 4] }), 'has shape [192, 4], expected [4, 192]'],
    ['nvfp4', `${q}.weight_global_scale`, gone, 'is missing, expected shape [] or [1]'],
    ['nvfp4', `${q}.weight_scale`, gone, 'is missing, expected shape [128, 8]'],
    ['nvfp4', `${q}.weight_scale`, as({ dtype: 'U8' }), 'has dtype U8, expected one of F8_E4M3'],
    ['nvfp4', `${q}.weight_packed`, as({ shape: [64, 128] }), 'expected [128, 64]'],
    [
      'nvfp4',
      `${q}.weight_global_scale`,
      as({ shape: [1, 1] }),
      'has shape [1, 1], expected [] or',
    ],
    [
      'nvfp4-modelopt',
      `${kLayer}.self_attn.o_proj.weight_scale_2`,
      gone,
      'is missing, expected shape []',
    ],
    [
      'mxfp4-packed',
      `${q}.weight_scale`,
      as({ shape: [4, 128] }),
      'has shape [4, 128], expected [128, 4]',
    ],
    ['awq', `${q}.qweight`, as({ shape: [16, 128] }), 'has shape [16, 128], expected [128, 16]'],
    [
      'awq-experts',
      `${kLayer}.mlp.experts.2.up_proj.qzeros`,
      as({ dtype: 'F32' }),
      'has dtype F32',
    ],
  ] as const)('%s: %s', async (name, tensor, change, message) => {
    const dir = changed(name, tensor, change)
    const named = message.includes('.weight is') || message.includes('_scale is') ? '' : tensor
    await expectRefusal(loadModel(dir), 'ERR_ZC_CHECKPOINT', named, message)
  })

  test('zero points of 4 bits in bytes: read, unless they are no codes', async () => {
    const name = `${down}.weight_zero_point`
    const unpack = (tensor: StoredTensor): StoredTensor => {
      const words = new DataView(tensor.bytes.slice().buffer)
      const [n, groups] = [8 * tensor.shape[0]!, tensor.shape[1]!]
      const zeros = Int8Array.from({ length: n * groups }, (_, i) => {
        const [row, group] = [Math.floor(i / groups), i % groups]
        const word = words.getUint32(4 * (Math.floor(row / 8) * groups + group), true)
        return ((word >>> (4 * (row % 8))) & 15) - 8
      })
      return { dtype: 'I8', shape: [n, groups], bytes: new Uint8Array(zeros.buffer) }
    }
    const { ids, logits } = referenceOf('w4a16-zeros')
    const [a, b] = await Promise.all(
      [folder('w4a16-zeros'), changed('w4a16-zeros', name, unpack)].map((dir) =>
        withModel(dir, {}, async (model) => (await lastLogits(model, ids, logits.length)).slice()),
      ),
    )
    expectSame(a!, b!)
    const damaged = changed('w4a16-zeros', name, (tensor) => withByte(5, 8)(unpack(tensor)))
    const message = 'holds a zero point that is no code'
    await expectRefusal(loadModel(damaged), 'ERR_ZC_CHECKPOINT', name, message)
  })

  test.each([
    ['fp8-block', `${q}.weight`, withByte(77, 0xff), 'elements are NaN or infinite'],
    ['fp8-channel', `${q}.weight_scale`, withByte(1, 0x7f), 'NaN'],
    [
      'int8-channel',
      `${q}.weight_scale`,
      withByte(1, 0x7f),
      'holds a scale that is NaN or infinite',
    ],
    ['mxfp4', `${gateUp}_scales`, withByte(700, 0xff), 'holds a scale that is NaN or infinite'],
    ['mxfp4', `${gateUp}_bias`, ofOnes, 'elements are NaN or infinite'],
    ['nvfp4', `${q}.weight_global_scale`, ofOnes, 'expected a finite number other than 0'],
    ['awq', `${q}.scales`, withByte(9, 0x7e), 'holds a scale that is NaN or infinite'],
  ] as const)('%s: %s is no number', async (name, tensor, change, message) => {
    const twice = (own: StoredTensor) => {
      const bytes = change(own).bytes
      if (tensor.endsWith('weight_scale')) bytes[0] = 0xff
      return { ...own, bytes }
    }
    await expectRefusal(loadModel(changed(name, tensor, twice)), 'ERR_ZC_NUMERIC', tensor, message)
  })
})

describe('memory', () => {
  const bytesOf = (dir: string, options: Parameters<typeof loadModel>[1] = {}) =>
    withModel(dir, options, async (model) => {
      const { weights } = model.estimate({ tokens: 1, policy: 'full' })
      expect(model.device.memory.current).toBeLessThanOrEqual(weights + 4096)
      return weights
    })
  /** Elements of the matrices: q and o, k and v, gate, up and down. */
  const kElements = 2 * 128 * 128 + 2 * 64 * 128 + 3 * 128 * 192
  const kRows = 128 + 128 + 64 + 64 + 192 + 192 + 128

  test('codes take what the file has, others 16 bits', async () => {
    const wide = await bytesOf(folder('fp8-channel'))
    const others = wide - 2 * kElements
    expect(await bytesOf(folder('gptq-8'))).toBe(wide)
    expect(await bytesOf(folder('gptq-4-order'))).toBe(wide)
    expect(await bytesOf(folder('gptq-8-channel'))).toBe(others + kElements + 4 * kRows)
    expect(await bytesOf(folder('w4a16-group'))).toBe(others + kElements / 2 + (3 * kElements) / 32)
    expect(await bytesOf(folder('awq'))).toBe(others + kElements / 2 + (3 * kElements) / 64)
    // A scale for a row is repeated: 128 columns, and of 192 each 64.
    const perRow = 3 * (kRows - 128) + 3 * 3 * 128
    expect(await bytesOf(folder('w4a16-channel'))).toBe(others + kElements / 2 + perRow)
  })

  test('a scale that float16 cannot say: that matrix alone is widened', async () => {
    const name = `${kLayer}.self_attn.q_proj.weight_scale`
    const large = (tensor: StoredTensor) => {
      const bytes = tensor.bytes.slice()
      new Uint16Array(bytes.buffer)[3] = 0x4790 // 73,728 in bfloat16
      return { ...tensor, bytes }
    }
    const dir = changed('w4a16-group', name, large)
    const [n, k] = [128, 128]
    const more = 2 * n * k - (n * k) / 2 - (3 * n * k) / 32
    expect(await bytesOf(dir)).toBe((await bytesOf(folder('w4a16-group'))) + more)
  })

  test('of experts, all are as the first that does not fit', async () => {
    const name = `${kLayer}.mlp.experts.1.up_proj.scales`
    const large = (tensor: StoredTensor): StoredTensor => {
      const scales = new Float32Array(tensor.shape[0]! * tensor.shape[1]!).fill(0.01)
      scales[7] = 1e5
      return { ...tensor, dtype: 'F32', bytes: new Uint8Array(scales.buffer) }
    }
    const [n, k] = [64, 128]
    const more = 3 * (2 * n * k - (n * k) / 2 - (3 * n * k) / 32)
    const before = await bytesOf(folder('awq-experts'))
    expect(await bytesOf(changed('awq-experts', name, large))).toBe(before + more)
  })

  // Rows of down_proj are 96 long, which units of 64 do not fill.
  test.each([
    ['stored', 'bf16', undefined],
    ['int8', 'i8', 'f32'],
    ['int4', 'i8', 'f32'],
  ] as const)('MXFP4 as %s: stays what it is, in rows of whole units', async (...expected) => {
    const [format, codes, scales] = expected
    const device = await Device.open('cpu')
    const config = await readModelConfig(folder('mxfp4'))
    const own = checkTensors(await openCheckpoint(folder('mxfp4')), config)
    const options = { config, dtype: 'f32', format, signal: undefined } as const
    const weights = await loadWeights(device, own, options)
    const typesOf = ({ weight, scales, zeros }: Matrix) => [
      ...[weight.dtype, weight.shape, scales?.dtype, scales?.shape, zeros],
    ]
    for (const { gateProj, upProj, downProj } of weights.layers) {
      const halves = ['u8', [4, 96, 32], 'u8', [4, 96, 2], undefined]
      expect([gateProj, upProj].map((matrix) => matrix && typesOf(matrix))).toEqual([
        halves,
        halves,
      ])
      const scaleShape = scales && [4, 64]
      const wide = [codes, [4, 64, 96], scales, scaleShape, undefined]
      expect(downProj && typesOf(downProj)).toEqual(wide)
    }
    weights.dispose()
    await device.dispose()
  })

  test('int8 keeps codes of 4 bits', async () => {
    const head = 2 * 96 * 128 - 96 * 128 - 4 * 96
    const own = await bytesOf(folder('w4a16-group'), { weights: 'int8' })
    expect(own).toBe((await bytesOf(folder('w4a16-group'))) - head)
  })

  test('int4 keeps 4 bits, and makes 4 bits of others', async () => {
    const head = 2 * 96 * 128 - (96 * 128) / 2 - (3 * 96 * 128) / 32
    const own = await bytesOf(folder('w4a16-group'), { weights: 'int4' })
    expect(own).toBe((await bytesOf(folder('w4a16-group'))) - head)
    expect(await bytesOf(folder('fp8-channel'), { weights: 'int4' })).toBe(own)
  })

  test('nothing stays allocated behind one that is damaged', async () => {
    const device = await Device.open('cpu')
    const name = `${kLayer}.mlp.down_proj.g_idx`
    const dir = changed('gptq-4', name, withByte(7, 255))
    await expectRefusal(loadModel(dir, { device }), 'ERR_ZC_CHECKPOINT', name)
    await device.sync()
    expect(device.memory.current).toBe(0)
    await device.dispose()
  })
})

test('a GPU unpacks on the host: the same argmax', async () => {
  for (const name of ['fp8-block', 'int8-channel', 'gptq-4', 'awq-experts', 'mxfp4']) {
    const { ids, logits } = referenceOf(name)
    await withModel(folder(name), { device: 'cuda-emu', dtype: 'f32' }, async (model) => {
      const own = await lastLogits(model, ids, logits.length)
      expect(maxDifference(own, logits)).toBeLessThan(0.04)
    })
  }
})
