import type { ErrorCode } from '../../lib/errors.js'
import { attentionSinks } from '../../lib/ops/index.js'
import { type FloatDtype, attentionSinks as reference } from '../../lib/reference/index.js'
import { describeBackends } from '../support/backends.js'
import { expectClose, expectIdentical } from '../support/compare.js'
import { type DeviceTensors, floatDtypes } from '../support/device-tensors.js'
import { expectRefused } from '../support/errors.js'
import { normals, storeAs } from '../support/random-data.js'
import { tolerance } from '../support/tolerance.js'

const allowed = { f32: tolerance.merge, f16: tolerance.f16Output, bf16: tolerance.bf16Output }
const { NEGATIVE_INFINITY: none, NaN: nan } = Number

interface Case {
  n: number
  nHeads: number
  headDim: number
  dtype: FloatDtype
  out: ArrayLike<number>
  lse: ArrayLike<number>
  sinks: ArrayLike<number>
}

function randomCase(n: number, nHeads: number, headDim: number, dtype: FloatDtype): Case {
  const wide = (x: number) => 12 * x
  return {
    ...{ n, nHeads, headDim, dtype },
    out: normals(1, n * nHeads * headDim),
    lse: normals(2, n * nHeads).map(wide),
    sinks: normals(3, nHeads).map(wide),
  }
}

async function run(tensors: DeviceTensors, of: Case) {
  const { n, nHeads, headDim, dtype } = of
  const shape = [n, nHeads, headDim]
  const before = storeAs(dtype, of.out)
  const [lseBefore, logits] = [storeAs('f32', of.lse), storeAs('f32', of.sinks)]
  const out = tensors.input(dtype, before.stored as Uint16Array, shape)
  const lse = tensors.f32(lseBefore.values, [n, nHeads])
  attentionSinks({ sinks: tensors.f32(logits.values, [nHeads]), out, lse })
  const expected = reference({
    ...{ out: before.values, lse: lseBefore.values, sinks: logits.values, headDim },
  })
  return { out: await tensors.values(out), lse: await tensors.values(lse), expected, shape }
}

describeBackends('attentionSinks', (backend) => {
  test.each(floatDtypes)('%s equals the reference', async (dtype) => {
    for (const [n, nHeads, headDim] of [
      [0, 2, 32],
      [1, 1, 1],
      [1, 5, 16],
      [3, 7, 33],
      [17, 2, 64],
      [65, 3, 96],
      [2, 1, 256],
      [3, 2, 512],
    ] as const) {
      const { out, lse, expected, shape } = await run(
        backend.tensors,
        randomCase(n, nHeads, headDim, dtype),
      )
      expectClose(out, expected.out, { name: 'out', shape, tolerance: allowed[dtype], floor: 1 })
      expectClose(lse, expected.lse, {
        name: 'lse',
        shape: shape.slice(0, 2),
        tolerance: tolerance.merge,
        rowLength: 1,
        floor: 1,
      })
    }
  })

  const few = { n: 2, nHeads: 3, headDim: 2, dtype: 'f32' as const }
  const ones = Array<number>(12).fill(1)

  test("each head's own sink; one of -infinity changes nothing, one far above takes all", async () => {
    const { out, lse } = await run(backend.tensors, {
      ...{ ...few, out: ones, lse: [0, 0, 0, 1, 1, 1] },
      sinks: [none, 0, 500],
    })
    expect([...out.slice(0, 6)]).toEqual([1, 1, 0.5, 0.5, 0, 0])
    expect(out[8]).toBeCloseTo(Math.E / (Math.E + 1), 6)
    expect([lse[0], lse[2], lse[3]]).toEqual([0, 500, 1])
    expect(lse[1]).toBeCloseTo(Math.log(2), 6)
  })

  test('a row that saw no key is 0, whatever it holds, and its LSE the sink', async () => {
    const out = [nan, nan, Number.POSITIVE_INFINITY, 2, 1, 1, 5, 5, 1, 1, 1, 1]
    const { out: after, lse } = await run(backend.tensors, {
      ...{ ...few, out, lse: [none, none, 0, none, 0, 0] },
      sinks: [2, -3, none],
    })
    expect([...after.slice(0, 8)]).toEqual([0, 0, 0, 0, 1, 1, 0, 0])
    expect([...lse.slice(0, 4)]).toEqual([2, -3, 0, 2])
  })

  test('a NaN among what was seen shows', async () => {
    const { out } = await run(backend.tensors, {
      ...{ ...few, out: Float64Array.from(ones, (x, i) => (i === 3 ? nan : x)) },
      ...{ lse: [0, 0, nan, 0, 0, 0], sinks: [0, 0, 0] },
    })
    expect([...out.keys()].filter((i) => Number.isNaN(out[i]))).toEqual([3, 4, 5])
  })

  test.each([1, 3])('does the same bit for bit with %i threads', async (threads) => {
    const random = randomCase(40, 3, 32, 'f32')
    const here = await run(backend.tensors, random)
    const there = await backend.withDevice({ threads }, (_, tensors) => run(tensors, random))
    expectIdentical(there.out, here.out, { name: 'out', shape: here.shape })
    expectIdentical(there.lse, here.lse, { name: 'lse', shape: [40, 3] })
  })

  const refused: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
    ['integers', (t) => ({ out: t.output('i32', [3, 2, 8]) }), 'ERR_ZC_DTYPE', 'out'],
    ['two axes', (t) => ({ out: t.output('f32', [3, 16]) }), 'ERR_ZC_SHAPE', 'out'],
    ['f16 lse', (t) => ({ lse: t.output('f16', [3, 2]) }), 'ERR_ZC_DTYPE', 'lse'],
    ['another lse', (t) => ({ lse: t.output('f32', [2, 3]) }), 'ERR_ZC_SHAPE', 'lse'],
    ['f16 sinks', (t) => ({ sinks: t.output('f16', [2]) }), 'ERR_ZC_DTYPE', 'sinks'],
    ['a sink too many', (t) => ({ sinks: t.output('f32', [3]) }), 'ERR_ZC_SHAPE', 'sinks'],
  ]
  test.each(refused)('refuses %s', (_, fault, code, argument) => {
    const { tensors } = backend
    const args = {
      sinks: tensors.output('f32', [2]),
      out: tensors.output('f32', [3, 2, 8]),
      lse: tensors.output('f32', [3, 2]),
    }
    const refuse = () => attentionSinks({ ...args, ...fault(tensors) })
    expectRefused(refuse, { code, op: 'attentionSinks', argument })
  })
})
