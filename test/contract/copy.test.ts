import { convert, countNonFinite, gatherRows } from '../../lib/ops/index.js'
import {
  MAX_F16,
  convert as referenceConvert,
  gatherRows as referenceGather,
} from '../../lib/reference/index.js'
import { describeBackends } from '../support/backends.js'
import { expectIdentical } from '../support/compare.js'
import { floatDtypes } from '../support/device-tensors.js'
import { expectRefused, expectRejected } from '../support/errors.js'
import { normals, storeAs } from '../support/random-data.js'

const everyHalf = Uint16Array.from({ length: 65_536 }, (_, bits) => bits)
const { NaN: nan, POSITIVE_INFINITY: inf } = Number

describeBackends('convert', (backend) => {
  const pairs = floatDtypes.flatMap((from) => floatDtypes.map((to) => ({ from, to })))

  test.each(pairs)('$from to $to, rounded to nearest even, f16 saturated', async ({ from, to }) => {
    const { tensors } = backend
    const ties = [1 + 2 ** -11, 1 + 3 * 2 ** -11, 1 + 2 ** -8, 1 + 3 * 2 ** -8]
    const small = [2 ** -24, 2 ** -25, 3 * 2 ** -26, 2 ** -14, 2 ** -14 - 2 ** -25, 1e-45, 0, -0]
    const large = [65504, 65519.99, 65520, 1e6, 3.4e38, inf]
    const all = [...ties, ...small, ...large]
    const numbers = [...all, ...all.map((x) => -x), nan, ...normals(1, 1000)]
    const bits = { stored: everyHalf, values: storedValues(from) }
    const { stored, values } = from === 'f32' ? storeAs('f32', numbers) : bits
    const out = tensors.output(to, [stored.length])
    convert({ x: tensors.input(from, stored as Uint16Array), out })
    const finite = values.map((x) =>
      to === 'f16' && !Number.isNaN(x) ? Math.min(Math.max(x, -MAX_F16), MAX_F16) : x,
    )
    const expected = referenceConvert({ x: finite, dtype: to })
    expectIdentical(await tensors.values(out), expected, { name: 'out', shape: [stored.length] })
  })

  /** The values of all 65536 bit patterns of a 16-bit dtype. */
  function storedValues(dtype: 'f32' | 'f16' | 'bf16'): Float64Array {
    if (dtype === 'f32') return new Float64Array(0)
    return Float64Array.from(everyHalf, (bits) => halfValue(bits, dtype))
  }

  /** From the definition: sign, exponent, fraction. */
  function halfValue(bits: number, dtype: 'f16' | 'bf16'): number {
    const [fractionBits, bias] = dtype === 'f16' ? [10, 15] : [7, 127]
    const fraction = bits % 2 ** fractionBits
    const exponent = Math.floor(bits / 2 ** fractionBits) % (2 * bias + 2)
    const sign = bits >= 0x8000 ? -1 : 1
    if (exponent === 2 * bias + 1) return fraction === 0 ? sign * inf : nan
    const hidden = exponent === 0 ? 0 : 1
    const power = Math.max(exponent, 1) - bias
    return sign * (hidden + fraction / 2 ** fractionBits) * 2 ** power
  }

  test.each([[[0]], [[5, 0, 3]], [[3, 5, 7]], [[70_003]]])('of shape %j', async (shape) => {
    const { tensors } = backend
    const length = shape.reduce((product, size) => product * size, 1)
    const x = normals(2, length)
    const out = tensors.output('bf16', shape)
    convert({ x: tensors.f32(x, shape), out })
    const expected = referenceConvert({ x, dtype: 'bf16' })
    expectIdentical(await tensors.values(out), expected, { name: 'out', shape })
  })

  test('refuses integers and other shapes', () => {
    const { tensors } = backend
    const x = tensors.output('f32', [2, 3])
    const refuse = (args: Parameters<typeof convert>[0]) => () => convert(args)
    const dtype = { code: 'ERR_ZC_DTYPE', op: 'convert' } as const
    const shape = { code: 'ERR_ZC_SHAPE', op: 'convert', argument: 'out' } as const
    expectRefused(refuse({ x: tensors.output('i32', [6]), out: x }), { ...dtype, argument: 'x' })
    expectRefused(refuse({ x, out: tensors.output('u8', [2, 3]) }), { ...dtype, argument: 'out' })
    expectRefused(refuse({ x, out: tensors.output('f16', [3, 2]) }), shape)
    expectRefused(refuse({ x, out: tensors.output('f16', [6]) }), shape)
  })
})

describeBackends('gatherRows', (backend) => {
  test.each(floatDtypes)('copies rows of %s in any order', async (dtype) => {
    const { tensors } = backend
    for (const width of [0, 1, 7, 33]) {
      for (const rows of [[], [0], [4, 0, 4, 2, 3], Array.from({ length: 50 }, (_, i) => i % 5)]) {
        const x = storeAs(dtype, normals(width, 5 * width))
        const out = tensors.output(dtype, [rows.length, width])
        const from = tensors.input(dtype, x.stored as Uint16Array, [5, width])
        gatherRows({ x: from, rows: tensors.i32(rows), out })
        const expected = referenceGather({ x: x.values, rows, width })
        expectIdentical(await tensors.values(out), expected, { name: 'out', shape: out.shape })
      }
    }
  })

  test.each([-1, 5, 2 ** 31 - 1, -(2 ** 31)])('row %i of 5, at the next sync', async (row) => {
    const { tensors, device } = backend
    const x = tensors.f32(normals(1, 15), [5, 3])
    gatherRows({ x, rows: tensors.i32([0, row]), out: tensors.output('f32', [2, 3]) })
    const fault = { code: 'ERR_ZC_ARGUMENT', op: 'gatherRows', message: /^rows: / } as const
    await expectRejected(device.sync(), fault)
  })

  test('refuses other dtypes and shapes', () => {
    const { tensors } = backend
    const x = tensors.output('f32', [5, 3])
    const rows = tensors.i32([0, 1])
    const out = tensors.output('f32', [2, 3])
    const refuse = (change: object) => () => gatherRows({ x, rows, out, ...change })
    const dtype = { code: 'ERR_ZC_DTYPE', op: 'gatherRows' } as const
    const shape = { code: 'ERR_ZC_SHAPE', op: 'gatherRows' } as const
    const output = tensors.output.bind(tensors)
    expectRefused(refuse({ x: output('i32', [5, 3]) }), { ...dtype, argument: 'x' })
    expectRefused(refuse({ x: output('f32', [15]) }), { ...shape, argument: 'x' })
    expectRefused(refuse({ rows: output('f32', [2]) }), { ...dtype, argument: 'rows' })
    expectRefused(refuse({ out: output('f16', [2, 3]) }), { ...dtype, argument: 'out' })
    expectRefused(refuse({ out: output('f32', [3, 3]) }), { ...shape, argument: 'out' })
  })
})

describeBackends('countNonFinite', (backend) => {
  test.each(floatDtypes)('counts NaN and infinities of %s', async (dtype) => {
    const { tensors } = backend
    for (const length of [0, 1, 17, 70_003]) {
      const numbers = normals(length, length)
      const at = [0, 5, 16, 65_535, 65_536, 70_002].filter((i) => i < length)
      for (const [index, i] of at.entries()) numbers[i] = [nan, inf, -inf][index % 3]
      const { stored } = storeAs(dtype, numbers)
      const count = tensors.output('i32', [1])
      countNonFinite({ x: tensors.input(dtype, stored as Uint16Array), count })
      expect([...(await tensors.read(count))]).toEqual([at.length])
    }
  })

  test('the largest and the smallest numbers are finite', async () => {
    const { tensors } = backend
    const count = tensors.output('i32', [1])
    countNonFinite({ x: tensors.f32([3.4e38, -3.4e38, 1e-45, -0], [2, 2]), count })
    expect([...(await tensors.read(count))]).toEqual([0])
  })

  test('refuses integers, and another count', () => {
    const { tensors } = backend
    const x = tensors.output('f32', [3])
    const count = tensors.output('i32', [1])
    const refuse = (change: object) => () => countNonFinite({ x, count, ...change })
    const op = 'countNonFinite'
    const x8 = tensors.output('u8', [3])
    expectRefused(refuse({ x: x8 }), { code: 'ERR_ZC_DTYPE', op, argument: 'x' })
    expectRefused(refuse({ count: x }), { code: 'ERR_ZC_DTYPE', op, argument: 'count' })
    const two = tensors.output('i32', [2])
    expectRefused(refuse({ count: two }), { code: 'ERR_ZC_SHAPE', op, argument: 'count' })
  })
})
