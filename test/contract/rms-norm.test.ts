import type { ErrorCode } from '../../lib/errors.js'
import { rmsNorm } from '../../lib/ops/index.js'
import { type FloatDtype, rmsNorm as reference } from '../../lib/reference/index.js'
import { describeBackends } from '../support/backends.js'
import { expectClose, expectIdentical } from '../support/compare.js'
import { type DeviceTensors, floatDtypes } from '../support/device-tensors.js'
import { expectRefused } from '../support/errors.js'
import { normals, storeAs } from '../support/random-data.js'
import { tolerance } from '../support/tolerance.js'

const eps = 1e-5
const allowed = {
  f32: tolerance.f32Norm,
  f16: tolerance.f16Output,
  bf16: tolerance.bf16Output,
}

interface Norm {
  x: ArrayLike<number>
  /** default none: ones */
  weight?: ArrayLike<number>
  width: number
  dtypes?: readonly [x: FloatDtype, weight: FloatDtype, out: FloatDtype]
  eps?: number
  scale?: number
  inPlace?: boolean
}

/** The op's result and the reference's, for values as the dtypes store them. */
async function run(tensors: DeviceTensors, norm: Norm) {
  const { width, dtypes = ['f32', 'f32', 'f32'], scale, inPlace = false } = norm
  const x = storeAs(dtypes[0], norm.x)
  const weight = norm.weight && storeAs(dtypes[1], norm.weight)
  const shape = [width === 0 ? 3 : norm.x.length / width, width]
  const input = tensors.input(dtypes[0], x.stored as Uint16Array, shape)
  const out = inPlace ? input : tensors.output(dtypes[2], shape)
  const weights = weight && tensors.input(dtypes[1], weight.stored as Uint16Array, [width])
  rmsNorm({ x: input, weight: weights, out, eps: norm.eps ?? eps, scale })
  const options = {
    ...{ x: x.values, weight: weight?.values, width, eps: Math.fround(norm.eps ?? eps) },
    scale: scale && Math.fround(scale),
  }
  return { actual: await tensors.values(out), expected: () => reference(options), shape }
}

describeBackends('rmsNorm', (backend) => {
  async function expectReference(norm: Norm) {
    const { actual, expected, shape } = await run(backend.tensors, norm)
    const out = norm.dtypes?.[2] ?? 'f32'
    expectClose(actual, expected(), { name: 'out', shape, tolerance: allowed[out] })
  }

  test.each([1, 8, 16, 127, 1031, 4100])('added to what is there, rows of %i', async (width) => {
    const { tensors } = backend
    const [x, weight, before] = [1, 2, 3].map((seed) => storeAs('f32', normals(seed, 3 * width)))
    const shape = [3, width]
    const own = weight!.values.subarray(0, width)
    const sum = reference({ x: x!.values, weight: own, width, eps: Math.fround(eps) })
    const input = tensors.f32(x!.values, shape)
    // What it adds to may be x itself.
    for (const start of [before!.values, x!.values]) {
      const out = start === before!.values ? tensors.f32(start, shape) : input
      rmsNorm({ x: input, weight: tensors.f32(own, [width]), out, eps, accumulate: true })
      const expected = sum.map((y, i) => y + start[i]!)
      expectClose(await tensors.values(out), expected, {
        name: 'out',
        shape,
        tolerance: allowed.f32,
      })
    }
  })

  test.each([1, 7, 15, 16, 17, 64, 127, 1031])('rows of %i', async (width) => {
    for (const rows of [0, 1, 2, 17]) {
      const x = normals(rows, rows * width)
      await expectReference({ x, weight: normals(width, width), width })
    }
  })

  test.each([1, 16, 127, 1031])('without a weight, rows of %i', async (width) => {
    for (const rows of [0, 1, 17]) await expectReference({ x: normals(rows, rows * width), width })
  })

  test.each(floatDtypes)('without a weight, in %s', async (dtype) => {
    const dtypes = [dtype, 'f32', dtype] as const
    await expectReference({ x: normals(1, 5 * 64), width: 64, dtypes })
    await expectReference({ x: normals(1, 5 * 67), width: 67, dtypes, inPlace: true })
  })

  test('ones give the bits that no weight gives', async () => {
    const norm = { x: normals(1, 3 * 200), width: 200 }
    const without = await run(backend.tensors, norm)
    const ones = await run(backend.tensors, { ...norm, weight: new Float32Array(200).fill(1) })
    expectIdentical(without.actual, ones.actual, { name: 'out', shape: ones.shape })
  })

  test.each([-3, 0, 0.1, 2 ** 20])('times %p', async (scale) => {
    for (const width of [16, 127, 1031]) {
      const x = normals(1, 3 * width)
      await expectReference({ x, weight: normals(2, width), width, scale })
      await expectReference({ x, width, scale })
    }
  })

  test.each([16, 67, 1031])('times a scale with what it is added to, rows of %i', async (width) => {
    const { tensors } = backend
    const shape = [3, width]
    const [x, before] = [1, 2].map((seed) => storeAs('f32', normals(seed, 3 * width)))
    const weight = storeAs('bf16', normals(3, width))
    for (const own of [undefined, weight]) {
      const out = tensors.f32(before!.values, shape)
      const given = own && tensors.input('bf16', own.stored as Uint16Array)
      const scale = 0.0625 // exact in float32
      rmsNorm({
        x: tensors.f32(x!.values, shape),
        ...{ weight: given, out, eps, accumulate: true, scale },
      })
      const expected = reference({
        ...{ x: x!.values, weight: own?.values, width, eps: Math.fround(eps) },
        ...{ before: before!.values, scale },
      })
      const within = { name: 'out', shape, tolerance: allowed.f32 }
      expectClose(await tensors.values(out), expected, within)
    }
  })

  const triples = floatDtypes.flatMap((x) =>
    floatDtypes.flatMap((weight) => floatDtypes.map((out) => ({ x, weight, out }))),
  )
  test.each(triples)('x of $x, weight of $weight, out of $out', async ({ x, weight, out }) => {
    const dtypes = [x, weight, out] as const
    await expectReference({ x: normals(1, 5 * 67), weight: normals(2, 67), width: 67, dtypes })
  })

  test.each(floatDtypes)('in place in %s, the same bits', async (dtype) => {
    const dtypes = [dtype, 'f32', dtype] as const
    const norm = { x: normals(1, 20 * 33), weight: normals(2, 33), width: 33, dtypes }
    const there = await run(backend.tensors, norm)
    const here = await run(backend.tensors, { ...norm, inPlace: true })
    expectIdentical(here.actual, there.actual, { name: 'out', shape: here.shape })
  })

  test.each([1e-30, 1e-4, 1e4, 1e18, 1e30])('values of size %p', async (size) => {
    const x = normals(3, 4 * 64).map((value) => value * size)
    await expectReference({ x, weight: normals(4, 64), width: 64, eps: 1e-6 })
  })

  test('zeros stay zeros', async () => {
    const norm = { x: new Float32Array(32), weight: normals(1, 16), width: 16 }
    const { actual } = await run(backend.tensors, norm)
    expect(actual.every((y) => y === 0)).toBe(true)
  })

  test('without eps', async () => {
    await expectReference({ x: normals(5, 48), weight: normals(6, 16), width: 16, eps: 0 })
  })

  test('rows of no width', async () => {
    const { actual } = await run(backend.tensors, { x: [], weight: [], width: 0 })
    expect(actual).toHaveLength(0)
  })

  test.each([1, 2, 3])('does the same bit for bit with %i threads', async (threads) => {
    const norm = { x: normals(1, 70 * 65), weight: normals(2, 65), width: 65 }
    const here = await run(backend.tensors, norm)
    const there = await backend.withDevice({ threads }, (_, tensors) => run(tensors, norm))
    expectIdentical(there.actual, here.actual, { name: 'out', shape: here.shape })
  })

  const refused: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
    ['integers', (t) => ({ x: t.output('i32', [3, 7]) }), 'ERR_ZC_DTYPE', 'x'],
    ['x of one axis', (t) => ({ x: t.output('f32', [21]) }), 'ERR_ZC_SHAPE', 'x'],
    ['a weight of 6', (t) => ({ weight: t.output('f32', [6]) }), 'ERR_ZC_SHAPE', 'weight'],
    ['bytes for weight', (t) => ({ weight: t.output('u8', [7]) }), 'ERR_ZC_DTYPE', 'weight'],
    ['another out', (t) => ({ out: t.output('f32', [7, 3]) }), 'ERR_ZC_SHAPE', 'out'],
    ['integers for out', (t) => ({ out: t.output('i32', [3, 7]) }), 'ERR_ZC_DTYPE', 'out'],
    ['eps below 0', () => ({ eps: -1e-6 }), 'ERR_ZC_ARGUMENT', 'eps'],
    ['eps NaN', () => ({ eps: Number.NaN }), 'ERR_ZC_ARGUMENT', 'eps'],
    ['a scale of NaN', () => ({ scale: Number.NaN }), 'ERR_ZC_ARGUMENT', 'scale'],
    ['no eps', () => ({ eps: undefined }), 'ERR_ZC_ARGUMENT', 'eps'],
  ]
  test.each(refused)('refuses %s', (_, fault, code, argument) => {
    const { tensors } = backend
    const args = {
      x: tensors.output('f32', [3, 7]),
      weight: tensors.output('f32', [7]),
      out: tensors.output('f32', [3, 7]),
      eps,
    }
    expectRefused(() => rmsNorm({ ...args, ...fault(tensors) }), { code, op: 'rmsNorm', argument })
  })
})
