import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import {
  checkTensors,
  expectedTensors,
  type ModelWeight,
  openCheckpoint,
} from '../../lib/model/checkpoint'
import { type ModelConfig, readModelConfig } from '../../lib/model/config'
import { loadWeights, namedTensors, type WeightOptions } from '../../lib/model/weights'
import { Device, type Tensor } from '../../lib/ops'
import { fromBf16, quantizeWeight } from '../../lib/reference/index'
import {
  kFixtures,
  ModelCopies,
  readSafetensors,
  type StoredTensor,
  type StoredTensors,
  storedAs,
  valuesOf,
} from '../engine/model-copies'
import { expectRefusal } from './model-folder'

const copies = new ModelCopies()
let device: Device
beforeAll(async () => {
  device = await Device.open('cpu')
})
afterAll(async () => {
  copies.remove()
  await device.dispose()
})

type Loaded = Map<string, Tensor>

/** The tensors of a folder's model by place: `3.qProj`, `norm`. */
async function withLoaded<R>(
  dir: string,
  options: Partial<Pick<WeightOptions, 'dtype' | 'format'>>,
  body: (tensors: Loaded, config: ModelConfig) => Promise<R>,
  change: (weights: ModelWeight[]) => ModelWeight[] = (weights) => weights,
  on = device,
): Promise<R> {
  const config = await readModelConfig(dir)
  const checked = change(checkTensors(await openCheckpoint(dir), config))
  const all = { config, dtype: 'f32', format: 'stored', signal: undefined, ...options } as const
  const weights = await loadWeights(on, checked, all)
  try {
    return await body(new Map(namedTensors(weights)), config)
  } finally {
    weights.dispose()
  }
}

/** As text: lists of thousands are compared element by element, which takes seconds. */
const textOf = async (tensor: Tensor | undefined) => (await numbersOf(tensor)).join()
const numbersOf = async (tensor: Tensor | undefined) => [...(await tensor!.read())]
const kHybrid = join(kFixtures, 'qwen3.5')
const stored = readSafetensors(join(kHybrid, 'model.safetensors'))
const kLayers = 'model.language_model.layers'

describe('of layers that attend with a gate and of those with a state', () => {
  test.each(['F32', 'F16', 'BF16'] as const)(
    '%s: heads of q_proj are a query and its gate, one behind the other',
    async (type) => {
      const dir = copies.copy(kHybrid, {
        tensors: (own) => new Map([...own].map(([name, one]) => [name, storedAs(one, type)])),
      })
      const name = `${kLayers}.2.self_attn.q_proj.weight`
      const whole = storedAs(stored.get(name)!, type)
      const bits = type === 'F32' ? Float32Array : Uint16Array
      const rows = [...new bits(Uint8Array.from(whole.bytes).buffer)]
      await withLoaded(dir, {}, async (loaded, { nHeads, headDim, hiddenSize }) => {
        expect(whole.shape).toEqual([2 * nHeads * headDim, hiddenSize])
        const ofHeads = (first: number) =>
          Array.from({ length: nHeads }, (_, head) => {
            const begin = (2 * head * headDim + first) * hiddenSize
            return rows.slice(begin, begin + headDim * hiddenSize)
          }).flat()
        for (const [role, first] of [
          ['qProj', 0],
          ['attentionGate', headDim],
        ] as const) {
          const own = loaded.get(`2.${role}`)!
          expect([own.dtype, own.shape]).toEqual([
            type.toLowerCase(),
            [nHeads * headDim, hiddenSize],
          ])
          expect(await textOf(own)).toBe(ofHeads(first).join())
        }
      })
    },
  )

  test('what a state needs in float32 is widened; its norm multiplies as it is', async () => {
    await withLoaded(kHybrid, { dtype: 'bf16' }, async (loaded, { recurrence }) => {
      const { nKeyHeads, nValueHeads, keyDim, valueDim, convWidth } = recurrence!
      const channels = 2 * nKeyHeads * keyDim + nValueHeads * valueDim
      const delta = `${kLayers}.1.linear_attn`
      for (const [role, name, shape] of [
        ['recurrentConv', 'conv1d.weight', [channels, convWidth]],
        ['recurrentDecayLog', 'A_log', [nValueHeads]],
        ['recurrentDecayBias', 'dt_bias', [nValueHeads]],
      ] as const) {
        const own = loaded.get(`1.${role}`)!
        expect([own.dtype, own.shape]).toEqual(['f32', shape])
        expect(await numbersOf(own)).toEqual([...valuesOf(stored.get(`${delta}.${name}`)!)])
      }
      const norm = loaded.get('1.recurrentNorm')!
      expect([norm.dtype, norm.shape]).toEqual(['bf16', [valueDim]])
      const { bytes } = stored.get(`${delta}.norm.weight`)!
      expect(await numbersOf(norm)).toEqual([...new Uint16Array(bytes.buffer)])
      // Others do by 1 + weight.
      const others = valuesOf(stored.get(`${kLayers}.1.input_layernorm.weight`)!)
      expect(await numbersOf(loaded.get('1.inputNorm'))).toEqual(
        [...others].map((weight) => Math.fround(1 + weight)),
      )
    })
  })

  test.each(['int8', 'int4'] as const)(
    '%s leaves what decides how long a state lasts',
    async (format) => {
      await withLoaded(kHybrid, { format }, async (loaded) => {
        const typesOf = (role: string) => loaded.get(`0.${role}`)?.dtype
        expect(['recurrentDecay', 'recurrentBeta'].map(typesOf)).toEqual(['bf16', 'bf16'])
        const codes = format === 'int8' ? 'i8' : 'u8'
        expect(['recurrentQkv', 'recurrentGate', 'recurrentOut'].map(typesOf)).toEqual([
          codes,
          codes,
          codes,
        ])
        expect(loaded.get('2.attentionGate')?.dtype).toBe(codes)
      })
    },
  )

  test('a GPU has the same', async () => {
    const gpu = await Device.open('cuda-emu')
    for (const name of ['qwen3.5', 'qwen3-next']) {
      const read = (on: Device) =>
        withLoaded(
          join(kFixtures, name),
          {},
          async (loaded) => {
            const own = [...loaded].filter(([place]) => /recurrent|attentionGate|qProj/.test(place))
            return Promise.all(own.map(async ([place, tensor]) => [place, await textOf(tensor)]))
          },
          undefined,
          on,
        )
      expect(await read(gpu)).toEqual(await read(device))
    }
    await gpu.dispose()
  })

  test('what holds NaN is named, though it is one row of a gate', async () => {
    const name = `${kLayers}.2.self_attn.q_proj.weight`
    const dir = copies.copy(kHybrid, {
      tensors: (own) => {
        const { bytes, shape, ...rest } = own.get(name)!
        const values = new Uint16Array(bytes.slice().buffer)
        values[40 * shape[1]!] = 0x7fc0
        return new Map([...own, [name, { ...rest, shape, bytes: new Uint8Array(values.buffer) }]])
      },
    })
    const message = `${name}: 1 of its 8192 elements are NaN or infinite`
    await expectRefusal(
      withLoaded(dir, {}, async () => {}),
      'ERR_ZC_NUMERIC',
      message,
    )
  })
})

describe('of Gemma 4', () => {
  const storedOf = (fixture: string) =>
    readSafetensors(join(kFixtures, fixture, 'model.safetensors'))
  const scaled = (tensors: StoredTensors, name: string, scale: number) =>
    [...valuesOf(tensors.get(name)!)].map((value) => Math.fround(scale * value))

  test('norms hold what multiplies what they give; scales of layers are numbers', async () => {
    const own = storedOf('gemma4-e')
    const prefix = 'model.language_model'
    await withLoaded(join(kFixtures, 'gemma4-e'), { dtype: 'bf16' }, async (loaded, config) => {
      const norm = loaded.get('perLayer.norm')!
      expect([norm.dtype, norm.shape]).toEqual(['f32', [16]])
      const name = `${prefix}.per_layer_projection_norm.weight`
      expect(await numbersOf(norm)).toEqual(scaled(own, name, Math.SQRT1_2))
      expect(loaded.get('perLayer.embedding')).toMatchObject({ dtype: 'bf16', shape: [176, 96] })
      const projection = valuesOf(own.get(`${prefix}.per_layer_model_projection.weight`)!)
      for (let layer = 0; layer < config.nLayers; ++layer) {
        const has = (role: string) => loaded.has(`${layer}.${role}`)
        const isOwn = config.kvSources[layer] === layer
        expect(['kProj', 'vProj', 'kNorm'].map(has)).toEqual([isOwn, isOwn, isOwn])
        const proj = loaded.get(`${layer}.perLayerModelProj`)!
        expect([proj.dtype, proj.shape]).toEqual(['bf16', [16, 64]])
        const rows = projection.subarray(layer * 16 * 64, (layer + 1) * 16 * 64)
        expect([...fromBf16(await numbersOf(proj))]).toEqual([...rows])
      }
    })
    const read = async (fixture: string) => {
      const config = await readModelConfig(join(kFixtures, fixture))
      const checked = checkTensors(await openCheckpoint(join(kFixtures, fixture)), config)
      const all = { config, dtype: 'f32', format: 'stored', signal: undefined } as const
      const { layerScales, perLayer, dispose } = await loadWeights(device, checked, all)
      dispose()
      return { layerScales, hasInputs: perLayer !== null }
    }
    const scalars = Array.from({ length: 6 }, (_, layer) =>
      valuesOf(own.get(`${prefix}.layers.${layer}.layer_scalar`)!),
    )
    expect(await read('gemma4-e')).toEqual({
      layerScales: scalars.map(([scalar]) => scalar),
      hasInputs: true,
    })
    expect(await read('qwen3')).toEqual({ layerScales: [1, 1, 1], hasInputs: false })
  })

  test.each(['int8', 'stored'] as const)('%s: what routes is never rounded', async (format) => {
    const own = storedOf('gemma4-moe')
    await withLoaded(join(kFixtures, 'gemma4-moe'), { format }, async (loaded, config) => {
      const { hiddenSize } = config
      const name = 'model.layers.1.router'
      expect(loaded.get('1.routerNorm')?.dtype).toBe('f32')
      expect(await numbersOf(loaded.get('1.routerNorm'))).toEqual(
        scaled(own, `${name}.scale`, 1 / Math.sqrt(hiddenSize)),
      )
      expect(loaded.get('1.expertScales')).toMatchObject({ dtype: 'f32', shape: [6] })
      expect(await numbersOf(loaded.get('1.expertScales'))).toEqual(
        scaled(own, `${name}.per_expert_scale`, 1),
      )
      expect(loaded.get('1.router')).toMatchObject({ dtype: 'bf16', shape: [6, 64] })
      const codes = format === 'int8' ? 'i8' : 'bf16'
      expect(loaded.get('1.gateProj')).toMatchObject({ dtype: codes, shape: [6, 48, 64] })
      expect(loaded.get('1.sharedDownProj')).toMatchObject({ dtype: codes, shape: [64, 96] })
      expect([loaded.has('1.vProj'), loaded.has('2.vProj')]).toEqual([true, false])
    })
  })

  test('keys of layers that take others are passed over', async () => {
    const key = 'model.language_model.layers.4.self_attn.k_proj.weight'
    const dir = copies.copy(join(kFixtures, 'gemma4-e'), {
      tensors: (own) =>
        new Map([...own, [key, { dtype: 'F32', shape: [1], bytes: new Uint8Array(4) }]]),
    })
    await withLoaded(dir, {}, async (loaded) => expect(loaded.has('4.kProj')).toBe(false))
  })
})

/** Matrices in int8, each with a scale a row, as compressed-tensors has them. */
function withCodes(tensors: StoredTensors, isCoded: (name: string) => boolean): StoredTensors {
  const all: StoredTensors = new Map()
  for (const [name, tensor] of tensors) {
    if (!isCoded(name)) {
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
}

const kInt8 = {
  quant_method: 'compressed-tensors',
  format: 'int-quantized',
  config_groups: { group_0: { weights: { num_bits: 8, type: 'int', strategy: 'channel' } } },
}

describe('of a quantized checkpoint', () => {
  test('matrices of such layers are codes, but for those that are never rounded', async () => {
    const coded = copies.copy(kHybrid, {
      config: { quantization_config: kInt8 },
      tensors: (own) => withCodes(own, (name) => /_proj(_\w+)?\.weight$/.test(name)),
    })
    const read = async (dir: string, format: 'int8' | 'stored') =>
      withLoaded(dir, { format }, async (loaded) => {
        const own: Record<string, unknown> = {}
        for (const [place, tensor] of loaded) {
          if (!/recurrent|attentionGate|qProj/.test(place)) continue
          own[place] = [tensor.dtype, tensor.shape, await textOf(tensor)]
        }
        return own
      })
    const [own, expected] = [await read(coded, 'stored'), await read(kHybrid, 'int8')]
    expect(Object.keys(own)).toEqual(Object.keys(expected))
    for (const [place, tensor] of Object.entries(own)) {
      if (!/recurrentDecay$|recurrentBeta/.test(place))
        expect([place, tensor]).toEqual([place, expected[place]])
    }
    // Were they codes in the file they are widened.
    expect((own['0.recurrentDecay'] as unknown[]).slice(0, 2)).toEqual(['bf16', [4, 64]])
  })

  const kQuantized = join(kFixtures, '..', 'quantized')
  const names = readdirSync(kQuantized).filter((name) => !name.endsWith('.py'))
  test.each(names)('%s: rows in several pieces are those of the matrix', async (name) => {
    const dir = join(kQuantized, name)
    const read = (change?: (weights: ModelWeight[]) => ModelWeight[]) =>
      withLoaded(
        dir,
        {},
        async (loaded) => {
          const own = [...loaded].filter(([place]) => /^0\.(qProj|oProj)/.test(place))
          return Promise.all(
            own.map(async ([place, tensor]) => {
              return [place, tensor.dtype, tensor.shape, await numbersOf(tensor)] as const
            }),
          )
        },
        change,
      )
    // Not the first rows first, and a piece that begins and ends between words of codes.
    const inPieces = (weights: ModelWeight[]) =>
      weights.map((weight) => {
        if (weight.role !== 'qProj' && weight.role !== 'oProj') return weight
        const [begin, end] = weight.rows ?? [0, weight.shape[0] as number]
        const half = (begin + end) / 2
        const pieces = [
          [half, end],
          [begin, begin + 3],
          [begin + 3, half],
        ] as const
        return { ...weight, rows: null, pieces }
      })
    const [whole, cut] = [await read(), await read(inPieces)]
    const halves = whole.map(([place, dtype, shape, numbers]) => {
      const half = numbers.length / 2
      return [place, dtype, shape, [...numbers.slice(half), ...numbers.slice(0, half)].join()]
    })
    expect(
      cut.map(([place, dtype, shape, numbers]) => [place, dtype, shape, numbers.join()]),
    ).toEqual(halves)
  })
})

describe('of experts that may lie in one tensor', () => {
  const dir = join(kFixtures, 'qwen3.5-moe')
  const kOwn = /^(.*\.experts)\.(\d+)\.(gate|up|down)_proj\.weight$/

  /** As the family is published: those of all experts in two tensors a layer. */
  function joined(tensors: StoredTensors): StoredTensors {
    const parts = new Map<string, StoredTensor[]>()
    const others: StoredTensors = new Map()
    const order = [...tensors].sort(([a], [b]) =>
      a.replace('up_', 'z') < b.replace('up_', 'z') ? -1 : 1,
    )
    for (const [name, tensor] of order) {
      const [, experts, , kind] = kOwn.exec(name) ?? []
      if (!experts) others.set(name, tensor)
      else {
        const joint = `${experts}.${kind === 'down' ? 'down_proj' : 'gate_up_proj'}`
        parts.set(joint, [...(parts.get(joint) ?? []), tensor])
      }
    }
    for (const [name, own] of parts) {
      const [n, k] = own[0]!.shape as [number, number]
      const shape = name.endsWith('down_proj') ? [own.length, n, k] : [own.length / 2, 2 * n, k]
      others.set(name, {
        dtype: 'BF16',
        shape,
        bytes: Buffer.concat(own.map(({ bytes }) => bytes)),
      })
    }
    return others
  }

  test('are read from there, or from tensors of their own', async () => {
    const together = copies.copy(dir, { tensors: joined })
    const config = await readModelConfig(together)
    const names = checkTensors(await openCheckpoint(together), config).map(({ name }) => name)
    expect(names).toContain('model.layers.3.mlp.experts.gate_up_proj')
    expect(names.some((name) => kOwn.test(name))).toBe(false)
    const read = (from: string) =>
      withLoaded(from, {}, async (loaded) => {
        const own = [...loaded].filter(([place]) => /\.(gate|up|down)Proj$/.test(place))
        return Promise.all(
          own.map(async ([place, tensor]) => [place, tensor.shape, await textOf(tensor)]),
        )
      })
    const own = await read(together)
    expect(own).toHaveLength(4 * 3)
    expect(own).toEqual(await read(dir))
  })

  test('are codes of their own where they are quantized', async () => {
    const coded = copies.copy(dir, {
      config: { quantization_config: kInt8 },
      tensors: (own) => withCodes(own, (name) => kOwn.test(name)),
    })
    await withLoaded(coded, {}, async (loaded) => {
      expect(loaded.get('2.gateProj')).toMatchObject({ dtype: 'i8', shape: [6, 48, 64] })
      expect(loaded.get('2.downProj.scales')).toMatchObject({ dtype: 'f32', shape: [6, 64] })
    })
  })

  test('are missing: the name of one of its own is told', async () => {
    const name = 'model.layers.2.mlp.experts.5.up_proj.weight'
    const without = copies.copy(dir, {
      tensors: (own) => new Map([...own].filter(([other]) => other !== name)),
    })
    await expect(withLoaded(without, {}, async () => {})).rejects.toThrow(
      `${name} is missing, expected shape [48, 64]`,
    )
  })

  test('every weight that is asked for is there, and nothing else but for what sees', async () => {
    for (const folder of [kHybrid, dir, join(kFixtures, 'qwen3-next')]) {
      const checkpoint = await openCheckpoint(folder)
      const config = await readModelConfig(folder)
      const names = new Set(checkTensors(checkpoint, config).map(({ name }) => name))
      const others = [...checkpoint.tensors.keys()].filter((name) => !names.has(name))
      expect(others.filter((name) => !name.startsWith('model.visual.'))).toEqual([])
      // Two matrices share q_proj.
      expect(expectedTensors(config).length).toBeGreaterThan(names.size)
    }
  })
})
