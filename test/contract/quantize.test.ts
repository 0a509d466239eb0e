import fc from 'fast-check'
import type { ErrorCode } from '../../lib/errors.js'
import {
  type CodeBits,
  codeBytesPerRow,
  dequantize,
  QUANT_SCHEMES,
  type QuantRange,
  type QuantScheme,
  quantize,
} from '../../lib/ops/index.js'
import {
  type FloatDtype,
  packCodes,
  type Quantized,
  dequantize as referenceDequantize,
  quantize as referenceQuantize,
  toF16,
  unpackCodes,
} from '../../lib/reference/index.js'
import { type Backend, describeBackends, once } from '../support/backends.js'
import { expectClose, expectIdentical } from '../support/compare.js'
import { type DeviceTensors, floatDtypes } from '../support/device-tensors.js'
import { expectRefused } from '../support/errors.js'
import { propertyRuns } from '../support/properties.js'
import { normals, randomKeys, randomNumbers, storeAs } from '../support/random-data.js'
import { longLength, matrixShapes } from '../support/shapes.js'
import { tolerance } from '../support/tolerance.js'

const allBits: readonly CodeBits[] = [2, 3, 4, 8]
const ranges: readonly QuantRange[] = [
  'minmax',
  ...([2, 3, 4, 5, 6] as const).map((norm) => ({ norm })),
]
const rangeName = (range: QuantRange) => (range === 'minmax' ? range : `norm ${range.norm}`)

interface Setting {
  scheme: QuantScheme
  bits: CodeBits
  range: QuantRange
  groupSize?: number | undefined
}

interface Matrix extends Setting {
  rows: number
  channels: number
  dtype: FloatDtype
  x: Float32Array | Uint16Array
}

/** Groups that divide the channels: 32 where it can be, else an odd one. */
const groupSizeOf = (channels: number) =>
  [32, 13, 7, 31].find((size) => channels % size === 0) ?? channels

function parameterShape({ scheme, rows, channels, groupSize }: Matrix): number[] {
  if (scheme === 'channelwise') return [channels]
  return scheme === 'groupwise' ? [rows, channels / groupSize!] : [rows]
}

function allocate(tensors: DeviceTensors, matrix: Matrix) {
  const { scheme, bits, rows, channels } = matrix
  return {
    codes: tensors.output('u8', [rows, codeBytesPerRow(channels, bits)]),
    scale: tensors.output('f16', parameterShape(matrix)),
    zero: tensors.output('f16', parameterShape(matrix)),
    ...(scheme === 'cst' ? { channel: tensors.output('f16', [channels]) } : {}),
  }
}

async function run(tensors: DeviceTensors, matrix: Matrix): Promise<Quantized> {
  const { dtype, rows, channels, scheme, bits, range, groupSize } = matrix
  const outputs = allocate(tensors, matrix)
  const x = tensors.input(dtype, matrix.x as Uint16Array, [rows, channels])
  quantize({ x, ...outputs, scheme, bits, range, groupSize })
  const { codes, scale, zero, channel } = outputs
  return {
    codes: await tensors.read(codes),
    scale: await tensors.values(scale),
    zero: await tensors.values(zero),
    channel: channel ? await tensors.values(channel) : new Float64Array(0),
  }
}

async function expectQuantized(
  backend: Backend,
  matrix: Matrix,
  expected: Quantized,
  seed?: number,
) {
  const actual = await run(backend.tensors, matrix)
  const { rows, channels, scheme, bits, range, dtype } = matrix
  const what = `${dtype} (${rows}, ${channels}), ${scheme}, ${bits} bits, ${rangeName(range)}`
  const compare = (name: 'zero' | 'scale' | 'channel', shape: number[]) =>
    expectIdentical(actual[name], expected[name], { name: `${name}, ${what}`, shape, seed })
  compare('channel', [channels])
  compare('zero', parameterShape(matrix))
  compare('scale', parameterShape(matrix))
  const shape = [rows, codeBytesPerRow(channels, bits)]
  expectIdentical(actual.codes, expected.codes, { name: `codes, ${what}`, shape, seed })
}

/** Keys as models have them, by tokens and channels. */
const inputOf = once((key: { rows: number; channels: number; dtype: FloatDtype; seed: number }) =>
  storeAs(
    key.dtype,
    randomKeys(key.seed, { nTokens: key.rows, nKvHeads: 1, headDim: key.channels }),
  ),
)

const caseOf = once(
  (key: { rows: number; channels: number; dtype: FloatDtype; seed: number } & Setting) => {
    const x = inputOf({ rows: key.rows, channels: key.channels, dtype: key.dtype, seed: key.seed })
    return { x: x.stored, expected: referenceQuantize({ ...key, x: x.values }) }
  },
)

/** Values that numbers have trouble with, one kind a row. */
function awkwardRows(): number[][] {
  const channels = 16
  const rowOf = (f: (c: number) => number) => Array.from({ length: channels }, (_, c) => f(c))
  const next = randomNumbers(8)
  return [
    rowOf(() => 0),
    rowOf(() => -0),
    rowOf((c) => (c % 2 ? 0 : -0)),
    rowOf(() => 3.7),
    rowOf(() => -1e-8),
    rowOf(() => Number.NaN),
    rowOf((c) => (c === 3 ? Number.NaN : c - 7.3)),
    rowOf((c) => (c === 3 ? Number.POSITIVE_INFINITY : c)),
    rowOf((c) => (c === 3 ? Number.NEGATIVE_INFINITY : c)),
    rowOf((c) => [Number.NEGATIVE_INFINITY, Number.NaN, Number.POSITIVE_INFINITY, 1][c % 4]),
    rowOf((c) => (c - 8) * 3e38),
    rowOf((c) => (c - 8) * 1e37),
    rowOf((c) => (c + 1) * 1e6),
    rowOf((c) => -(c + 1) * 1e6),
    rowOf((c) => (c - 8) * 1e-45),
    rowOf((c) => (c - 8) * 1e-20),
    rowOf((c) => (c - 8) * 2e-8),
    rowOf((c) => 1000 + c * 1e-4),
    rowOf((c) => c / 2), // exact ties
    rowOf((c) => 65504 + c),
    rowOf((c) => -65504 - c),
    rowOf(() => (next() - 0.5) * 10 ** Math.floor(next() * 12 - 6)),
  ]
}

describeBackends('quantize', (backend) => {
  describe.each(QUANT_SCHEMES)(
    '%s, codes and parameters equal the reference bit for bit',
    (scheme) => {
      const settingsOf = (channels: number) => ({
        scheme,
        groupSize: scheme === 'groupwise' ? groupSizeOf(channels) : undefined,
      })

      test.each(allBits)('%i bits at every shape, the ranges in turn', async (bits) => {
        for (const [index, [rows, channels]] of matrixShapes.entries()) {
          const dtype = floatDtypes[index % 3]
          const range = ranges[(index + bits) % ranges.length]
          const key = { rows, channels, dtype, seed: index, bits, range, ...settingsOf(channels) }
          const { x, expected } = caseOf(key)
          await expectQuantized(backend, { ...key, x }, expected, index)
        }
      })

      test.each(ranges.map((range) => ({ name: rangeName(range), range })))(
        '$name, every dtype and width',
        async ({ range }) => {
          for (const bits of allBits) {
            for (const dtype of floatDtypes) {
              const shape = { rows: 37, channels: 26, seed: bits }
              const key = { ...shape, dtype, bits, range, ...settingsOf(26) }
              const { x, expected } = caseOf(key)
              await expectQuantized(backend, { ...key, x }, expected, bits)
            }
          }
        },
      )

      test('a few thousand tokens, searched range', async () => {
        const key = {
          ...({ rows: 2053, channels: 32, dtype: 'f16', seed: 5, bits: 2 } as const),
          range: { norm: 4 } as const,
          ...settingsOf(32),
        }
        const { x, expected } = caseOf(key)
        await expectQuantized(backend, { ...key, x }, expected, 5)
      })

      test.each(floatDtypes)('awkward values as %s', async (dtype) => {
        const rows = awkwardRows()
        // by rows, where every kind of value is a group of its own, and by columns
        const across = rows.flat()
        const down = rows[0].flatMap((_, c) => rows.map((row) => row[c]))
        for (const [x, shape] of [
          [across, { rows: rows.length, channels: rows[0].length }],
          [down, { rows: rows[0].length, channels: rows.length }],
        ] as const) {
          const { stored, values } = storeAs(dtype, x)
          for (const bits of allBits) {
            for (const range of ['minmax', { norm: 2 }, { norm: 5 }] as const) {
              const setting = { ...shape, ...settingsOf(shape.channels), bits, range }
              const expected = referenceQuantize({ ...setting, x: values })
              await expectQuantized(backend, { ...setting, dtype, x: stored }, expected)
            }
          }
        }
      })

      test('property: any float32 values', async () => {
        const inputs = fc.record({
          channels: fc.integer({ min: 1, max: 12 }),
          values: fc.array(fc.oneof(fc.float(), fc.float({ min: -8, max: 8 })), { maxLength: 60 }),
          bits: fc.constantFrom(...allBits),
          range: fc.constantFrom(...ranges),
        })
        const property = fc.asyncProperty(inputs, async ({ channels, values, bits, range }) => {
          const rows = Math.floor(values.length / channels)
          const x = Float32Array.from(values.slice(0, rows * channels))
          const groupSize = scheme === 'groupwise' ? channels : undefined
          const setting = { rows, channels, scheme, bits, range, groupSize }
          await expectQuantized(
            backend,
            { ...setting, dtype: 'f32', x },
            referenceQuantize({ ...setting, x }),
          )
          backend.tensors.dispose()
        })
        await fc.assert(property, propertyRuns(30))
      })

      test('property: codes in range, and no value further off than half a step', async () => {
        const inputs = fc.record({
          rows: fc.integer({ min: 1, max: 20 }),
          channels: fc.integer({ min: 1, max: 20 }),
          bits: fc.constantFrom(...allBits),
          seed: fc.nat(),
        })
        const property = fc.asyncProperty(inputs, async ({ rows, channels, bits, seed }) => {
          const x = randomKeys(seed, { nTokens: rows, nKvHeads: 1, headDim: channels })
          const groupSize = scheme === 'groupwise' ? channels : undefined
          const matrix = {
            rows,
            channels,
            scheme,
            bits,
            range: 'minmax',
            groupSize,
            dtype: 'f32',
            x,
          } as const
          const quantized = await run(backend.tensors, matrix)
          backend.tensors.dispose()
          const codes = unpackCodes({ packed: quantized.codes, rows, channels, bits })
          for (const code of codes) expect(code).toBeLessThan(2 ** bits)
          const restored = referenceDequantize({ ...matrix, ...quantized })
          for (let i = 0; i < x.length; i++) {
            const [row, c] = [Math.floor(i / channels), i % channels]
            const scale = quantized.scale[scheme === 'channelwise' ? c : row]
            const bound = (quantized.channel[c] ?? 1) * (scale / 2)
            // The stored zero and scale cover the range, so only float32's roundings come on top.
            const rounding = 1e-5 * Math.max(1, Math.abs(x[i]), bound)
            expect(Math.abs(x[i] - restored[i])).toBeLessThanOrEqual(bound + rounding)
          }
        })
        await fc.assert(property, propertyRuns(20))
      })
    },
  )

  test.each([1, 2, 3])('does the same bit for bit with %i threads', async (threads) => {
    for (const scheme of QUANT_SCHEMES) {
      const key = { rows: 63, channels: 64, dtype: 'f32', seed: 9, scheme, bits: 3 } as const
      const matrix = {
        ...key,
        range: { norm: 3 } as const,
        groupSize: scheme === 'groupwise' ? 16 : undefined,
      }
      const { x, expected } = caseOf(matrix)
      await backend.withDevice({ threads }, (device, tensors) =>
        expectQuantized({ ...backend, device, tensors }, { ...matrix, x }, expected),
      )
    }
  })

  describe('refuses', () => {
    const call = (tensors: DeviceTensors) => ({
      x: tensors.output('f32', [5, 12]),
      codes: tensors.output('u8', [5, 6]),
      scale: tensors.output('f16', [5]),
      zero: tensors.output('f16', [5]),
      scheme: 'tokenwise' as QuantScheme,
      bits: 4 as CodeBits,
    })
    const refused: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
      ['integers', (t) => ({ x: t.output('i32', [5, 12]) }), 'ERR_ZC_DTYPE', 'x'],
      ['a vector', (t) => ({ x: t.output('f32', [60]) }), 'ERR_ZC_SHAPE', 'x'],
      ['5 bits', () => ({ bits: 5 }), 'ERR_ZC_ARGUMENT', 'bits'],
      ['2.5 bits', () => ({ bits: 2.5 }), 'ERR_ZC_ARGUMENT', 'bits'],
      ['an unknown scheme', () => ({ scheme: 'blockwise' }), 'ERR_ZC_ARGUMENT', 'scheme'],
      ['room for other codes', () => ({ bits: 8 }), 'ERR_ZC_SHAPE', 'codes'],
      ['float codes', (t) => ({ codes: t.output('f32', [5, 6]) }), 'ERR_ZC_DTYPE', 'codes'],
      ['f32 scales', (t) => ({ scale: t.output('f32', [5]) }), 'ERR_ZC_DTYPE', 'scale'],
      ['too few scales', (t) => ({ scale: t.output('f16', [4]) }), 'ERR_ZC_SHAPE', 'scale'],
      ['other zeros', (t) => ({ zero: t.output('f16', [4]) }), 'ERR_ZC_SHAPE', 'zero'],
      ['scales by token for channels', () => ({ scheme: 'channelwise' }), 'ERR_ZC_SHAPE', 'scale'],
      ['groups of no size', () => ({ scheme: 'groupwise' }), 'ERR_ZC_ARGUMENT', 'groupSize'],
      [
        'groups that do not divide',
        () => ({ scheme: 'groupwise', groupSize: 5 }),
        'ERR_ZC_ARGUMENT',
        'groupSize',
      ],
      [
        'groups of -3',
        () => ({ scheme: 'groupwise', groupSize: -3 }),
        'ERR_ZC_ARGUMENT',
        'groupSize',
      ],
      ['cst without channels', () => ({ scheme: 'cst' }), 'ERR_ZC_DTYPE', 'channel'],
      [
        'channels without cst',
        (t) => ({ channel: t.output('f16', [12]) }),
        'ERR_ZC_ARGUMENT',
        'channel',
      ],
      ['norm 1', () => ({ range: { norm: 1 } }), 'ERR_ZC_ARGUMENT', 'range'],
      ['norm 7', () => ({ range: { norm: 7 } }), 'ERR_ZC_ARGUMENT', 'range'],
    ]
    test.each(refused)('%s', (_, fault, code, argument) => {
      const { tensors } = backend
      const refuse = () => quantize({ ...call(tensors), ...fault(tensors) })
      expectRefused(refuse, { code, argument })
    })
  })
})

describeBackends('dequantize', (backend) => {
  async function restore(matrix: Matrix, quantized: Quantized): Promise<Float64Array> {
    const { tensors } = backend
    const { rows, channels, dtype, scheme, bits, groupSize } = matrix
    const shape = parameterShape(matrix)
    const out = tensors.output(dtype, [rows, channels])
    dequantize({
      codes: tensors.input('u8', quantized.codes, [rows, codeBytesPerRow(channels, bits)]),
      scale: tensors.input('f16', toF16(quantized.scale), shape),
      zero: tensors.input('f16', toF16(quantized.zero), shape),
      ...(scheme === 'cst' ? { channel: tensors.input('f16', toF16(quantized.channel)) } : {}),
      out,
      scheme,
      bits,
      groupSize,
    })
    return tensors.values(out)
  }

  const allowed = {
    f32: tolerance.dequantize,
    f16: tolerance.f16Output,
    bf16: tolerance.bf16Output,
  }

  describe.each(QUANT_SCHEMES)('%s equals the reference', (scheme) => {
    test.each(allBits)('%i bits at every shape and dtype', async (bits) => {
      for (const [index, [rows, channels]] of matrixShapes.entries()) {
        const groupSize = scheme === 'groupwise' ? groupSizeOf(channels) : undefined
        const range = ranges[(index + bits) % ranges.length]
        const quantizedAs = floatDtypes[index % 3]
        const setting = { rows, channels, scheme, bits, range, groupSize }
        const { x, expected } = caseOf({ ...setting, dtype: quantizedAs, seed: index })
        for (const dtype of rows === longLength ? (['f32'] as const) : floatDtypes) {
          const actual = await restore({ ...setting, dtype, x }, expected)
          expectClose(actual, referenceDequantize({ ...setting, ...expected }), {
            name: `${dtype} out`,
            shape: [rows, channels],
            tolerance: allowed[dtype],
            seed: index,
          })
        }
      }
    })
  })

  test('property: packing is undone', async () => {
    const inputs = fc.record({
      rows: fc.integer({ min: 0, max: 9 }),
      channels: fc.integer({ min: 1, max: 40 }),
      bits: fc.constantFrom(...allBits),
      seed: fc.nat(),
    })
    const property = fc.asyncProperty(inputs, async ({ rows, channels, bits, seed }) => {
      const next = randomNumbers(seed)
      const codes = Uint8Array.from({ length: rows * channels }, () =>
        Math.floor(next() * 2 ** bits),
      )
      const matrix = {
        ...({ rows, channels, bits, scheme: 'tokenwise', range: 'minmax', dtype: 'f32' } as const),
        x: new Float32Array(0),
      }
      const restored = await restore(matrix, {
        codes: packCodes({ codes, rows, channels, bits }),
        scale: new Float64Array(rows).fill(1),
        zero: new Float64Array(rows),
        channel: new Float64Array(0),
      })
      expectIdentical(restored, Float64Array.from(codes), {
        name: 'codes',
        shape: [rows, channels],
        seed,
      })
      backend.tensors.dispose()
    })
    await fc.assert(property, propertyRuns(30))
  })

  test('restores what quantize stored on the same device', async () => {
    const { tensors } = backend
    const x = tensors.f32(normals(3, 40 * 24), [40, 24])
    const setting = { scheme: 'cst', bits: 8 } as const
    const stored = {
      codes: tensors.output('u8', [40, 24]),
      scale: tensors.output('f16', [40]),
      zero: tensors.output('f16', [40]),
      channel: tensors.output('f16', [24]),
    }
    const out = tensors.output('f32', [40, 24])
    quantize({ x, ...stored, ...setting })
    dequantize({ ...stored, out, ...setting })
    const shape = [40, 24]
    expectClose(await tensors.values(out), normals(3, 40 * 24), {
      name: 'out',
      shape,
      tolerance: 0.01,
    })
  })

  test('refuses codes of another width', () => {
    const { tensors } = backend
    const args = {
      codes: tensors.output('u8', [5, 6]),
      scale: tensors.output('f16', [5]),
      zero: tensors.output('f16', [5]),
      out: tensors.output('f32', [5, 12]),
      scheme: 'tokenwise',
    } as const
    const fault = { code: 'ERR_ZC_SHAPE', op: 'dequantize', argument: 'codes' } as const
    expectRefused(() => dequantize({ ...args, bits: 3 }), fault)
  })
})
