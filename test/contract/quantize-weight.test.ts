import type { ErrorCode } from '../../lib/errors.js'
import { quantizeWeight } from '../../lib/ops/index.js'
import { quantizeWeight as reference } from '../../lib/reference/index.js'
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
    ['bytes without a sign', (t) => ({ out: t.output('u8', [3, 7]) }), 'ERR_ZC_DTYPE', 'out'],
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
