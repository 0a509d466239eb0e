import type { ErrorCode } from '../../lib/errors.js'
import { quantizeWeight } from '../../lib/ops/index.js'
import {
  fromF16,
  quantizeInt4Weight,
  quantizeWeight as reference,
} from '../../lib/reference/index.js'
import { describeBackends } from '../support/backends.js'
import { expectIdentical } from '../support/compare.js'
import { type DeviceTensors, floatDtypes } from '../support/device-tensors.js'
import { expectRefused } from '../support/errors.js'
import { normals, storeAs } from '../support/random-data.js'

describeBackends('quantizeWeight', (backend) => {
  async function run(
    tensors: DeviceTensors,
    x: ArrayLike<number>,
    n: number,
    dtype = floatDtypes[0],
  ) {
    const k = n === 0 ? 5 : x.length / n
    const { stored, values } = storeAs(dtype, x)
    const out = tensors.output('i8', [n, k])
    const scales = tensors.output('f32', [n])
    quantizeWeight({ x: tensors.input(dtype, stored as Uint16Array, [n, k]), out, scales })
    return {
      codes: await tensors.values(out),
      scales: await tensors.values(scales),
      expected: reference({ x: values, n, k }),
      shape: [n, k],
    }
  }

  describe.each(floatDtypes)('of %s', (dtype) => {
    test.each([1, 3, 7, 8, 16, 17, 255, 1031])(
      'rows of %i equal the reference, bit for bit',
      async (k) => {
        for (const n of [1, 2, 37]) {
          const { codes, scales, expected, shape } = await run(
            ...([backend.tensors, normals(n + k, n * k), n, dtype] as const),
          )
          expectIdentical(codes, expected.codes, { name: 'codes', shape, seed: n + k })
          expectIdentical(scales, expected.scales, { name: 'scales', shape: [n], seed: n + k })
        }
      },
    )
  })

  test('the largest of a row is 127, halves go to the even code', async () => {
    const rows = [254, -3, 1, 5, 7, 0, 0, -127, 63.5, 0.5]
    const { codes, scales } = await run(backend.tensors, rows, 2)
    expect([...codes]).toEqual([127, -2, 0, 2, 4, 0, 0, -127, 64, 0])
    expect([...scales]).toEqual([2, 1])
  })

  test('rows of zeros, of the smallest and of the largest numbers', async () => {
    const sizes = [0, 1e-45, 1e-43, 1e-38, 1e-20, 1e20, 3e38]
    const rows = sizes.flatMap((size) => [size, -size, size / 2, 0])
    const { codes, scales, expected, shape } = await run(backend.tensors, rows, sizes.length)
    expectIdentical(codes, expected.codes, { name: 'codes', shape })
    expectIdentical(scales, expected.scales, { name: 'scales', shape: [sizes.length] })
  })

  test('NaN and infinities make the scale of their row NaN, and no other', async () => {
    const { NaN: nan, POSITIVE_INFINITY: inf } = Number
    const rows = [1, 2, nan, 4, inf, 5, 6, 127, 127]
    const { scales } = await run(backend.tensors, rows, 3)
    expect([...scales]).toEqual([nan, nan, 1])
  })

  test('no rows', async () => {
    const { codes, scales } = await run(backend.tensors, [], 0)
    expect([codes.length, scales.length]).toEqual([0, 0])
  })

  test('any number of threads', async () => {
    const x = normals(5, 301 * 77)
    const here = await run(backend.tensors, x, 301)
    for (const threads of [1, 3]) {
      await backend.withDevice({ threads }, async (_, tensors) => {
        const there = await run(tensors, x, 301)
        expectIdentical(there.codes, here.codes, { name: 'codes', shape: here.shape })
      })
    }
  })

  const refused: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
    ['integers for x', (t) => ({ x: t.output('i32', [3, 7]) }), 'ERR_ZC_DTYPE', 'x'],
    ['x of one axis', (t) => ({ x: t.output('f32', [21]) }), 'ERR_ZC_SHAPE', 'x'],
    ['floats for out', (t) => ({ out: t.output('f32', [3, 7]) }), 'ERR_ZC_DTYPE', 'out'],
    ['bytes without a sign', (t) => ({ out: t.output('u8', [3, 7]) }), 'ERR_ZC_ARGUMENT', 'zeros'],
    ['zeros', (t) => ({ zeros: t.output('u8', [3, 1]) }), 'ERR_ZC_DTYPE', 'out'],
    ['another out', (t) => ({ out: t.output('i8', [7, 3]) }), 'ERR_ZC_SHAPE', 'out'],
    ['scales of f16', (t) => ({ scales: t.output('f16', [3]) }), 'ERR_ZC_DTYPE', 'scales'],
    ['scales of columns', (t) => ({ scales: t.output('f32', [7]) }), 'ERR_ZC_SHAPE', 'scales'],
  ]
  test.each(refused)('refuses %s', (_, fault, code, argument) => {
    const { tensors } = backend
    const args = {
      x: tensors.output('f32', [3, 7]),
      out: tensors.output('i8', [3, 7]),
      scales: tensors.output('f32', [3]),
    }
    const call = () => quantizeWeight({ ...args, ...fault(tensors) })
    expectRefused(call, { code, op: 'quantizeWeight', argument })
  })
})

const title = 'quantizeWeight in 4 bits'

/** Tensors for rows of `k` numbers. */
function int4TensorsOf(tensors: DeviceTensors, x: ArrayLike<number>, k: number, group: number) {
  const n = x.length / k
  return {
    out: tensors.output('u8', [n, k / 2]),
    scales: tensors.output('f16', [n, k / group]),
    zeros: tensors.output('u8', [n, k / group]),
  }
}

describeBackends(title, (backend) => {
  async function expectReference(
    x: ArrayLike<number>,
    k: number,
    group: number,
    dtype = floatDtypes[0],
  ) {
    const { tensors } = backend
    const shape = [x.length / k, k]
    const { stored, values } = storeAs(dtype, x)
    const own = int4TensorsOf(tensors, x, k, group)
    quantizeWeight({ x: tensors.input(dtype, stored as Uint16Array, shape), ...own })
    const expected = quantizeInt4Weight(values, group)
    const [codes, zeros] = [await tensors.read(own.out), await tensors.read(own.zeros)]
    const scales = fromF16(await tensors.read(own.scales))
    const seed = k + group
    expectIdentical(scales, expected.scales, { name: 'scales', shape: own.scales.shape, seed })
    expectIdentical(zeros, expected.zeros, { name: 'zeros', shape: own.zeros.shape, seed })
    expectIdentical(codes, expected.weight, { name: 'codes', shape: own.out.shape, seed })
  }

  describe.each(floatDtypes)('of %s', (dtype) => {
    test.each([32, 64, 128])('groups of %i equal the reference, bit for bit', async (group) => {
      for (const k of [128, 384, 1024, ...(group < 128 ? [64, 320] : [])]) {
        for (const n of [1, 2, 37]) {
          const x = normals(n + k, n * k).map((value, i) => (i % 97 === 5 ? 6 * value : value) / 30)
          await expectReference(x, k, group, dtype)
        }
      }
    })
  })

  test('groups of one sign, off centre, of zeros, of the smallest and largest numbers', async () => {
    const sizes = [0, 1e-45, 1e-38, 1e-20, 1e-8, 1e-7, 1e-6, 1, 1e5, 1e6, 1e20, 3e38]
    for (const group of [32, 64, 128]) {
      const rows = sizes.flatMap((size) => [
        ...normals(3, group).map((x) => (x * size) / 8),
        ...normals(4, group).map((x) => (Math.abs(x) * size) / 8),
        ...normals(5, group).map((x) => (-Math.abs(x) * size) / 8),
        ...normals(6, group).map((x) => (x / 20 + 0.9) * size),
      ])
      await expectReference(rows, 4 * group, group)
    }
  })

  test('halves go to the even code', async () => {
    const x = new Float32Array(64)
    x.set([-4, 3.5, 0.25, 0.75, -0.25, -0.75, 1.25])
    await expectReference(x, 64, 64)
  })

  test('NaN and infinities make the scale of their group NaN, and no other', async () => {
    const { NaN: nan, POSITIVE_INFINITY: inf } = Number
    for (const bad of [nan, inf, -inf]) {
      const x = normals(8, 3 * 192)
      x[192 + 64] = bad
      x[2 * 192 + 191] = bad
      await expectReference(x, 192, 64)
      await expectReference(x, 192, 32)
    }
  })

  test('no rows', async () => {
    await expectReference([], 64, 64)
  })

  test('any number of threads', async () => {
    const x = normals(5, 301 * 128)
    const quantized = async (tensors: DeviceTensors) => {
      const own = int4TensorsOf(tensors, x, 128, 64)
      quantizeWeight({ x: tensors.f32(x, [301, 128]), ...own })
      return tensors.values(own.out)
    }
    const here = await quantized(backend.tensors)
    for (const threads of [1, 3]) {
      const there = await backend.withDevice({ threads }, (_, tensors) => quantized(tensors))
      expectIdentical(there, here, { name: 'codes', shape: [301, 64] })
    }
  })
})

describeBackends(`${title}, refused`, (backend) => {
  const refused: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
    ['no zeros', () => ({ zeros: undefined }), 'ERR_ZC_ARGUMENT', 'zeros'],
    ['rows of 96', (t) => ({ x: t.output('f32', [3, 96]) }), 'ERR_ZC_SHAPE', 'out'],
    ['a byte a code', (t) => ({ out: t.output('u8', [3, 128]) }), 'ERR_ZC_SHAPE', 'out'],
    ['other rows', (t) => ({ out: t.output('u8', [4, 64]) }), 'ERR_ZC_SHAPE', 'out'],
    ['signed bytes', (t) => ({ out: t.output('i8', [3, 64]) }), 'ERR_ZC_DTYPE', 'out'],
    ['scales of f32', (t) => ({ scales: t.output('f32', [3, 2]) }), 'ERR_ZC_DTYPE', 'scales'],
    ['groups of 16', (t) => ({ scales: t.output('f16', [3, 8]) }), 'ERR_ZC_SHAPE', 'scales'],
    ['zeros of f16', (t) => ({ zeros: t.output('f16', [3, 2]) }), 'ERR_ZC_DTYPE', 'zeros'],
    ['other zeros', (t) => ({ zeros: t.output('u8', [3, 4]) }), 'ERR_ZC_SHAPE', 'zeros'],
  ]
  test.each(refused)('refuses %s', (_, fault, code, argument) => {
    const { tensors } = backend
    const args = {
      x: tensors.output('f32', [3, 128]),
      ...int4TensorsOf(tensors, new Float32Array(3 * 128), 128, 64),
    }
    const call = () => quantizeWeight({ ...args, ...fault(tensors) })
    expectRefused(call, { code, op: 'quantizeWeight', argument })
  })
})
