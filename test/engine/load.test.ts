/** Folders and options that cannot be loaded: each is named, nothing stays allocated, and the process goes on. */
import { readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { createEngine, Device, type LoadOptions, loadModel } from '../../lib/index'
import { checkTensors, openCheckpoint } from '../../lib/model/checkpoint'
import { readModelConfig } from '../../lib/model/config'
import { loadWeights } from '../../lib/model/weights'
import { expectRejected, type Fault } from '../support/errors'
import { kFixtures, ModelCopies, type StoredTensors, storedAs, valuesOf } from './model-copies'
import { collect, idsOf, someIds } from './running'

const kLlama = join(kFixtures, 'llama')
const copies = new ModelCopies()
let device: Device

beforeAll(async () => {
  device = await Device.open('cpu', { threads: 2 })
})
afterEach(async () => {
  await device.sync()
  expect(device.memory.current).toBe(0)
})
afterAll(async () => {
  copies.remove()
  await device.dispose()
})

async function expectUnloadable(
  dir: string,
  fault: Fault,
  options: LoadOptions = {},
): Promise<void> {
  await expectRejected(loadModel(dir, { device, ...options }), fault)
}

/** Puts a number, given as the bits of its dtype, somewhere into a bfloat16 tensor. */
const poke = (name: string, bits: number, index: number) => (tensors: StoredTensors) => {
  const { bytes } = tensors.get(name)!
  new Uint16Array(bytes.buffer)[index] = bits
  return tensors
}

describe('weights that are no numbers', () => {
  const kNan = 0x7fc0
  const kInfinity = 0x7f80

  test.each<[string, number, number]>([
    ['model.embed_tokens.weight', kNan, 12345],
    ['model.layers.1.mlp.up_proj.weight', kNan, 0],
    ['model.layers.2.self_attn.k_proj.weight', kInfinity, 77],
    ['model.layers.0.input_layernorm.weight', 0xffff, 127],
    ['model.norm.weight', kInfinity | 0x8000, 3],
    ['lm_head.weight', kNan, 320 * 128 - 1],
  ])('%s', async (name, bits, index) => {
    const dir = copies.copy(kLlama, { tensors: poke(name, bits, index) })
    for (const dtype of ['f32', 'bf16'] as const) {
      const fault = { code: 'ERR_ZC_NUMERIC', argument: name, message: /1 of its/ } as const
      await expectUnloadable(dir, fault, { dtype })
    }
  })

  test.each(['F32', 'F16'] as const)('in a tensor of %s', async (dtype) => {
    const name = 'model.layers.1.self_attn.v_proj.weight'
    const dir = copies.copy(kLlama, {
      tensors: (tensors) => {
        const stored = storedAs(tensors.get(name)!, dtype)
        // the highest byte of both types' NaN, all ones below
        stored.bytes.fill(0xff, 0, stored.bytes.length / stored.shape[0] / stored.shape[1])
        return tensors.set(name, stored)
      },
    })
    await expectUnloadable(dir, { code: 'ERR_ZC_NUMERIC', argument: name })
  })
})

describe('experts', () => {
  const from = join(kFixtures, 'mixtral')
  const name = 'model.layers.1.block_sparse_moe.experts.4.w3.weight'

  test('one with a NaN is named', async () => {
    const dir = copies.copy(from, { tensors: poke(name, 0x7fc0, 77) })
    for (const options of [
      {},
      { dtype: 'bf16' },
      { weights: 'int8' },
      { weights: 'int4' },
    ] as const) {
      await expectUnloadable(dir, { code: 'ERR_ZC_NUMERIC', argument: name }, options)
    }
  })

  test('one that is missing, or of another shape', async () => {
    const without = (tensors: StoredTensors) => {
      tensors.delete(name)
      return tensors
    }
    const code = 'ERR_ZC_CHECKPOINT' as const
    const missing = /experts\.4\.w3\.weight is missing, expected shape \[112, 128\]/
    await expectUnloadable(copies.copy(from, { tensors: without }), { code, message: missing })
    const turned = (tensors: StoredTensors) => {
      const own = tensors.get(name)!
      return tensors.set(name, { ...own, shape: [...own.shape].reverse() })
    }
    const other = /experts\.4\.w3\.weight has shape \[128, 112\], expected \[112, 128\]/
    await expectUnloadable(copies.copy(from, { tensors: turned }), { code, message: other })
  })

  test('of two types are kept in one only where that is asked for', async () => {
    const mixed = (tensors: StoredTensors) => tensors.set(name, storedAs(tensors.get(name)!, 'F16'))
    const dir = copies.copy(from, { tensors: mixed })
    const message = /experts\.4\.w3\.weight: dtype is f16, expected bf16/
    await expectUnloadable(dir, { code: 'ERR_ZC_CHECKPOINT', argument: name, message })
    for (const options of [{ dtype: 'bf16' }, { weights: 'int8' }, { weights: 'int4' }] as const) {
      const model = await loadModel(dir, { device, ...options })
      await model.dispose()
    }
  })

  test('take what they take in the file, and the file itself is let go', async () => {
    const checkpoint = await openCheckpoint(from)
    const before = device.memory.current
    const model = await loadModel(from, { device })
    const { weights } = model.estimate({ tokens: 1, policy: 'fp16' })
    expect(weights).toBe(checkpoint.sizeBytes)
    const experts = [...checkpoint.tensors].filter(([own]) => own.includes('.experts.'))
    const bytes = experts.reduce((sum, [, { sizeBytes }]) => sum + sizeBytes, 0)
    // The rest is mapped, but for the frequencies of rope.
    await device.sync()
    expect(device.memory.current - before).toBeGreaterThanOrEqual(bytes)
    expect(device.memory.current - before).toBeLessThan(bytes + 4096)
    await model.dispose()
  })
})

describe('numbers that overflow on their way', () => {
  test('end a generation with a typed error, not with some token', async () => {
    const dir = copies.copy(kLlama, {
      tensors: (tensors) => {
        const head = tensors.get('lm_head.weight')!
        const huge = Float32Array.from(valuesOf(head), (x) => Math.sign(x) * 3e38)
        const bytes = new Uint8Array(huge.buffer)
        return tensors.set('lm_head.weight', { ...head, dtype: 'F32', bytes })
      },
    })
    const model = await loadModel(dir, { device, kvMemory: 2 ** 22 })
    const before = device.memory.current
    for (const options of [{}, { temperature: 1 }, { topK: 3, temperature: 0.5 }]) {
      await expectRejected(collect(model.generate(someIds(20, 320), options)), {
        code: 'ERR_ZC_NUMERIC',
        message: /NaN or infinity/,
      })
    }
    await device.sync()
    expect([device.memory.current, model.kvMemory.used]).toEqual([before, 0])
    await model.dispose()
  })
})

describe('computed in bfloat16', () => {
  const output = 'model.layers.0.self_attn.o_proj.weight'
  const huge = 0x4796 // 76,800

  test('a GPU keeps what follows attention in float16, unless something in it is too large', async () => {
    const ids = someIds(40, 320)
    for (const tensors of [undefined, poke(output, huge, 5)]) {
      const dir = tensors ? copies.copy(kLlama, { tensors }) : kLlama
      const [exact, rounded] = await Promise.all(
        (['f32', 'bf16'] as const).map(async (dtype) => {
          const where = dtype === 'f32' ? device : 'cuda-emu'
          const model = await loadModel(dir, { device: where, dtype })
          const logits = await model.logits(ids)
          await model.dispose()
          return logits
        }),
      )
      const error = Math.max(...rounded!.map((x, i) => Math.abs(x - exact![i]!)))
      const largest = Math.max(...exact!.map(Math.abs))
      expect(error / largest).toBeLessThan(0.05)
    }
  })

  test('keeps matrices in the types that they multiply, by device', async () => {
    const typesOn = async (where: Device, dir: string) => {
      const config = await readModelConfig(dir)
      const checked = checkTensors(await openCheckpoint(dir), config)
      const kept = { config, dtype: 'bf16', format: 'stored', signal: undefined } as const
      const weights = await loadWeights(where, checked, kept)
      const types = weights.layers.map(({ oProj, qProj }) => [
        oProj?.weight.dtype,
        qProj?.weight.dtype,
      ])
      weights.dispose()
      return types.slice(0, 2)
    }
    const gpu = await Device.open('cuda-emu')
    const withHuge = copies.copy(kLlama, { tensors: poke(output, huge, 5) })
    expect(await typesOn(gpu, kLlama)).toEqual([
      ['f16', 'bf16'],
      ['f16', 'bf16'],
    ])
    expect(await typesOn(gpu, withHuge)).toEqual([
      ['bf16', 'bf16'],
      ['f16', 'bf16'],
    ])
    expect(await typesOn(device, kLlama)).toEqual([
      ['bf16', 'bf16'],
      ['bf16', 'bf16'],
    ])
    await gpu.dispose()
  })

  test('is usual on a GPU and not on a CPU', async () => {
    const model = await loadModel(kLlama, { device })
    expect(model.dtype).toBe('f32')
    await model.dispose()
    const gpu = await loadModel(kLlama, { device: 'cuda-emu' })
    expect(gpu.dtype).toBe('bf16')
    await gpu.dispose()
  })
})

describe('files that are damaged', () => {
  const damaged = { code: 'ERR_ZC_CHECKPOINT' } as const

  test.each([0, 7, 8, 500, 5000, 1_053_519])('cut off after %i bytes', async (size) => {
    const dir = copies.copy(kLlama)
    truncateSync(join(dir, 'model.safetensors'), size)
    await expectUnloadable(dir, damaged)
  })

  test('a shard that is missing, or cut off', async () => {
    const dir = copies.copy(kLlama, { shards: 3 })
    const shard = join(dir, 'model-00002-of-00003.safetensors')
    truncateSync(shard, 9000)
    await expectUnloadable(dir, damaged)
    rmSync(shard)
    await expectUnloadable(dir, { ...damaged, message: /model-00002-of-00003/ })
  })

  test('a tensor that is missing or of another shape', async () => {
    const name = 'model.layers.2.mlp.down_proj.weight'
    const without = (tensors: StoredTensors) => {
      tensors.delete(name)
      return tensors
    }
    await expectUnloadable(copies.copy(kLlama, { tensors: without }), {
      ...damaged,
      message: /down_proj/,
    })
    await expectUnloadable(copies.copy(kLlama, { config: { intermediate_size: 255 } }), damaged)
    await expectUnloadable(copies.copy(kLlama, { config: { vocab_size: 321 } }), damaged)
  })

  test('a config that is not supported, or absurd', async () => {
    const config = (changes: Record<string, unknown>) => copies.copy(kLlama, { config: changes })
    const unsupported = { code: 'ERR_ZC_CONFIG' } as const
    await expectUnloadable(config({ architectures: ['GPT2LMHeadModel'] }), {
      ...unsupported,
      message: /GPT2LMHeadModel/,
    })
    await expectUnloadable(config({ hidden_act: 'gelu' }), { ...unsupported, message: /gelu/ })
    await expectUnloadable(config({ num_hidden_layers: 1e9 }), unsupported)
    await expectUnloadable(config({ hidden_size: -1 }), unsupported)
    await expectUnloadable(config({ rope_scaling: { rope_type: 'spiral' } }), {
      ...unsupported,
      message: /spiral/,
    })
  })

  test('a tokenizer that is damaged', async () => {
    const dir = copies.copy(kLlama, { files: { 'tokenizer.json': '{"model": 5' } })
    await expectUnloadable(dir, { code: 'ERR_ZC_TOKENIZER' })
  })

  test('no folder, an empty one, a file', async () => {
    await expectUnloadable(join(kLlama, 'nowhere'), { code: 'ERR_ZC_CONFIG' })
    const dir = copies.copy(kLlama)
    rmSync(join(dir, 'model.safetensors'))
    await expectUnloadable(dir, damaged)
    rmSync(join(dir, 'config.json'))
    await expectUnloadable(dir, { code: 'ERR_ZC_CONFIG' })
    await expectUnloadable(join(kLlama, 'config.json'), { code: 'ERR_ZC_CONFIG' })
  })

  test('a model next to a damaged one still runs', async () => {
    const model = await loadModel(kLlama, { device })
    const expected = await idsOf(model, [5, 6, 7], 10)
    const dir = copies.copy(kLlama)
    const path = join(dir, 'model.safetensors')
    writeFileSync(path, readFileSync(path).fill(0xff, 20, 60))
    await expectRejected(loadModel(dir, { device }), damaged)
    expect(await idsOf(model, [5, 6, 7], 10)).toEqual(expected)
    await model.dispose()
  })
})

test("a folder's URL is its path", async () => {
  const model = await loadModel(pathToFileURL(kLlama), { device })
  expect(await idsOf(model, [5, 6], 3)).toHaveLength(3)
  await model.dispose()
})

describe('options that are refused', () => {
  const bad: [option: string, value: unknown][] = [
    ...['f16', 'float32', 7, null].map((v): [string, unknown] => ['dtype', v]),
    ...['i8', 'int2', 8, null].map((v): [string, unknown] => ['weights', v]),
    ...[0, 1000, -1, Number.NaN, Number.POSITIVE_INFINITY, '1 GiB', {}].map(
      (v): [string, unknown] => ['kvMemory', v],
    ),
  ]
  test.each(bad)('%s: %p', async (option, value) => {
    const fault = { code: 'ERR_ZC_ARGUMENT', argument: option } as const
    await expectUnloadable(kLlama, fault, { [option]: value })
  })

  test.each([-1, 1.5, Number.NaN, 5000, '2'])('threads: %p', async (threads) => {
    await expectRejected(loadModel(kLlama, { threads: threads as number }), {
      code: 'ERR_ZC_ARGUMENT',
      argument: 'threads',
    })
  })

  test.each(['cuda:999', 'cpu:sse9', '', 'CPU'])('device: %p', async (name) => {
    await expectRejected(loadModel(kLlama, { device: name }), { code: 'ERR_ZC_DEVICE' })
  })

  test('a device that was disposed of', async () => {
    const gone = await Device.open('cpu')
    await gone.dispose()
    await expectRejected(loadModel(kLlama, { device: gone }), { code: 'ERR_ZC_HANDLE' })
  })

  test('half of what the device has free is for caches, if nobody says how much', async () => {
    const model = await loadModel(kLlama, { device })
    const { free } = device.memory
    const half = Math.min(free / 2, 2 ** 37)
    expect(model.kvMemory.capacity).toBeGreaterThan(0.95 * half)
    expect(model.kvMemory.capacity).toBeLessThan(1.05 * half)
    await model.dispose()
  })

  test('more memory for caches than there is', async () => {
    for (const kvMemory of [device.memory.total + 1, 2 ** 60]) {
      const message = /^kvMemory: is \d+ bytes, but cpu has no more than \d+$/
      const fault = { code: 'ERR_ZC_ARGUMENT', argument: 'kvMemory', message } as const
      await expectUnloadable(kLlama, fault, { kvMemory })
    }
  })

  test.each([5, '', 'a\0b', null, new URL('https://example.com/model')])(
    'a folder: %p',
    async (dir) => {
      const fault = { code: 'ERR_ZC_ARGUMENT', argument: 'dir' } as const
      await expectRejected(loadModel(dir as string), fault)
    },
  )
})

describe("the model's own engine", () => {
  test('takes memory when it is asked for, or first used', async () => {
    const model = await loadModel(kLlama, { device })
    const { current } = device.memory
    const engine = createEngine({ model, kvMemory: 2 ** 22 })
    await engine.dispose()
    await device.sync()
    expect(device.memory.current).toBe(current)
    const sequence = model.createSequence()
    expect(device.memory.current).toBeGreaterThan(current)
    sequence.dispose()
    await model.dispose()
    const asked = await loadModel(kLlama, { device, kvMemory: 2 ** 22 })
    expect(device.memory.current).toBeGreaterThan(current)
    await asked.dispose()
  })
})
