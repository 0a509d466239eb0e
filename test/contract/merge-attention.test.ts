import type { ErrorCode } from '../../lib/errors.js'
import { mergeAttention } from '../../lib/ops/index.js'
import { type FloatDtype, mergeAttention as reference } from '../../lib/reference/index.js'
import { describeBackends } from '../support/backends.js'
import { expectClose, expectIdentical } from '../support/compare.js'
import { type DeviceTensors, floatDtypes } from '../support/device-tensors.js'
import { expectRefused } from '../support/errors.js'
import { normals, storeAs } from '../support/random-data.js'
import { tolerance } from '../support/tolerance.js'

const allowed = { f32: tolerance.merge, f16: tolerance.f16Output, bf16: tolerance.bf16Output }

interface Merge {
  n: number
  nHeads: number
  headDim: number
  outA: ArrayLike<number>
  lseA: ArrayLike<number>
  outB: ArrayLike<number>
  lseB: ArrayLike<number>
  dtype: FloatDtype
  /** which inputs the results overwrite */
  into?: 'A' | 'B'
}

function randomMerge(n: number, nHeads: number, headDim: number, dtype: FloatDtype): Merge {
  const size = n * nHeads * headDim
  const wide = (x: number) => 12 * x
  return {
    ...{ n, nHeads, headDim, dtype },
    outA: normals(1, size),
    lseA: normals(2, n * nHeads).map(wide),
    outB: normals(3, size),
    lseB: normals(4, n * nHeads).map(wide),
  }
}

async function run(tensors: DeviceTensors, merge: Merge) {
  const { n, nHeads, headDim, dtype, into } = merge
  const shape = [n, nHeads, headDim]
  const [a, b] = [storeAs(dtype, merge.outA), storeAs(dtype, merge.outB)]
  const [lseA, lseB] = [storeAs('f32', merge.lseA), storeAs('f32', merge.lseB)]
  const args = {
    outA: tensors.input(dtype, a.stored as Uint16Array, shape),
    lseA: tensors.f32(lseA.values, [n, nHeads]),
    outB: tensors.input(dtype, b.stored as Uint16Array, shape),
    lseB: tensors.f32(lseB.values, [n, nHeads]),
  }
  const out = into ? args[`out${into}`] : tensors.output(dtype, shape)
  const lse = into ? args[`lse${into}`] : tensors.output('f32', [n, nHeads])
  mergeAttention({ ...args, out, lse })
  const expected = reference({
    ...{ outA: a.values, lseA: lseA.values, outB: b.values, lseB: lseB.values, headDim },
  })
  return { out: await tensors.values(out), lse: await tensors.values(lse), expected, shape }
}

describeBackends('mergeAttention', (backend) => {
  async function expectReference(merge: Merge) {
    const { out, lse, expected, shape } = await run(backend.tensors, merge)
    // Of two opposite sides little may be left: errors are shares of the sides, which are of size 1.
    const comparison = { shape, tolerance: allowed[merge.dtype], floor: 1 }
    expectClose(out, expected.out, { ...comparison, name: 'out' })
    expectClose(lse, expected.lse, {
      name: 'lse',
      shape: shape.slice(0, 2),
      tolerance: tolerance.merge,
      rowLength: 1,
      floor: 1,
    })
  }

  test.each(floatDtypes)('%s equals the reference', async (dtype) => {
    for (const [n, nHeads, headDim] of [
      [0, 2, 32],
      [1, 1, 1],
      [1, 1, 16],
      [3, 7, 33],
      [17, 2, 64],
      [65, 3, 96],
      [2, 1, 256],
      [3, 2, 512],
    ]) {
      await expectReference(randomMerge(n, nHeads, headDim, dtype))
    }
  })

  const { NEGATIVE_INFINITY: none } = Number
  const sides = {
    ...{ n: 4, nHeads: 1, headDim: 3, dtype: 'f32' as const },
    outA: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
    outB: [-1, -2, -3, -4, -5, -6, -7, -8, -9, -10, -11, -12],
  }

  test('a side that saw no key leaves the other as it is; neither gives 0 and -infinity', async () => {
    const lse = { lseA: [none, 2, none, 500], lseB: [1, none, none, -500] }
    const { out, lse: joined } = await run(backend.tensors, { ...sides, ...lse })
    expect([...out]).toEqual([-1, -2, -3, 4, 5, 6, 0, 0, 0, 10, 11, 12])
    expect([...joined]).toEqual([1, 2, none, 500])
  })

  test('what such a side holds does not matter', async () => {
    const { NaN: nan, POSITIVE_INFINITY: inf } = Number
    const { out } = await run(backend.tensors, {
      ...sides,
      outA: [nan, inf, -inf, 4, 5, 6, nan, inf, 9, 10, 11, 12],
      outB: [-1, -2, -3, nan, inf, -inf, nan, inf, 9, -10, -11, -12],
      lseA: [none, 0, none, 0],
      lseB: [0, none, none, 0],
    })
    expect([...out]).toEqual([-1, -2, -3, 4, 5, 6, 0, 0, 0, 0, 0, 0])
  })

  test('a NaN among what was seen shows', async () => {
    const outA = Float64Array.from(sides.outA)
    outA[4] = Number.NaN
    const lse = { lseA: [0, 0, 0, Number.NaN], lseB: [0, 0, 0, 0] }
    const { out } = await run(backend.tensors, { ...sides, ...lse, outA })
    const found = [...out.keys()].filter((i) => Number.isNaN(out[i]))
    expect(found).toEqual([4, 9, 10, 11])
  })

  test.each([-1e4, -100, 100, 1e4, 1e30])('LSEs around %p', async (size) => {
    const lse = { lseA: [size, size, size + 3, 0], lseB: [size, size + 1, size, size] }
    await expectReference({ ...sides, ...lse })
  })

  test.each(['A', 'B'] as const)('over the inputs %s, the same bits', async (into) => {
    for (const dtype of floatDtypes) {
      const merge = randomMerge(19, 2, 32, dtype)
      const there = await run(backend.tensors, merge)
      const here = await run(backend.tensors, { ...merge, into })
      expectIdentical(here.out, there.out, { name: 'out', shape: here.shape })
      expectIdentical(here.lse, there.lse, { name: 'lse', shape: [19, 2] })
    }
  })

  test.each([1, 3])('does the same bit for bit with %i threads', async (threads) => {
    const merge = randomMerge(40, 3, 32, 'f32')
    const here = await run(backend.tensors, merge)
    const there = await backend.withDevice({ threads }, (_, tensors) => run(tensors, merge))
    expectIdentical(there.out, here.out, { name: 'out', shape: here.shape })
  })

  const refused: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
    ['integers', (t) => ({ outA: t.output('i32', [3, 2, 8]) }), 'ERR_ZC_DTYPE', 'outA'],
    ['two axes', (t) => ({ outA: t.output('f32', [3, 16]) }), 'ERR_ZC_SHAPE', 'outA'],
    ['outB of f16', (t) => ({ outB: t.output('f16', [3, 2, 8]) }), 'ERR_ZC_DTYPE', 'outB'],
    ['another outB', (t) => ({ outB: t.output('f32', [3, 2, 4]) }), 'ERR_ZC_SHAPE', 'outB'],
    ['another out', (t) => ({ out: t.output('f32', [2, 3, 8]) }), 'ERR_ZC_SHAPE', 'out'],
    ['f16 lseA', (t) => ({ lseA: t.output('f16', [3, 2]) }), 'ERR_ZC_DTYPE', 'lseA'],
    ['another lseA', (t) => ({ lseA: t.output('f32', [2, 3]) }), 'ERR_ZC_SHAPE', 'lseA'],
    ['another lseB', (t) => ({ lseB: t.output('f32', [3]) }), 'ERR_ZC_SHAPE', 'lseB'],
    ['another lse', (t) => ({ lse: t.output('f32', [3, 1]) }), 'ERR_ZC_SHAPE', 'lse'],
  ]
  test.each(refused)('refuses %s', (_, fault, code, argument) => {
    const { tensors } = backend
    const args = {
      outA: tensors.output('f32', [3, 2, 8]),
      lseA: tensors.output('f32', [3, 2]),
      outB: tensors.output('f32', [3, 2, 8]),
      lseB: tensors.output('f32', [3, 2]),
      out: tensors.output('f32', [3, 2, 8]),
      lse: tensors.output('f32', [3, 2]),
    }
    const refuse = () => mergeAttention({ ...args, ...fault(tensors) })
    expectRefused(refuse, { code, op: 'mergeAttention', argument })
  })
})
