import type { ErrorCode } from '../../lib/errors.js'
import { rope, ropeTable } from '../../lib/ops/index.js'
import {
  type FloatDtype,
  rope as reference,
  ropeTable as referenceTable,
} from '../../lib/reference/index.js'
import { describeBackends } from '../support/backends.js'
import { expectClose, expectIdentical } from '../support/compare.js'
import { type DeviceTensors, floatDtypes } from '../support/device-tensors.js'
import { expectRefused } from '../support/errors.js'
import { normals, storeAs } from '../support/random-data.js'
import { tolerance } from '../support/tolerance.js'

const frequencies = (half: number) =>
  Float32Array.from({ length: half }, (_, c) => 10_000 ** (-c / half))

describeBackends('ropeTable', (backend) => {
  async function run(
    tensors: DeviceTensors,
    positions: readonly number[],
    invFreq: Float32Array,
    attentionScale?: number,
  ) {
    const shape = [positions.length, invFreq.length]
    const cos = tensors.output('f32', shape)
    const sin = tensors.output('f32', shape)
    ropeTable({
      positions: tensors.i32(positions),
      invFreq: tensors.f32(invFreq),
      cos,
      sin,
      ...(attentionScale === undefined ? {} : { attentionScale }),
    })
    return { cos: await tensors.values(cos), sin: await tensors.values(sin), shape }
  }

  /** The reference of angles as transformers forms them: a float32 product of float32 numbers. */
  function expected(positions: readonly number[], invFreq: Float32Array, attentionScale: number) {
    const rows = positions.map((position) => {
      const angles = invFreq.map((frequency) => Math.fround(position) * frequency) // rounds to f32
      return referenceTable({ positions: [1], invFreq: angles, attentionScale })
    })
    return {
      cos: rows.flatMap((row) => [...row.cos]),
      sin: rows.flatMap((row) => [...row.sin]),
    }
  }

  test.each([1, 7, 16, 32, 64])('%i frequencies', async (half) => {
    const positions = [0, 1, 2, 3, 17, 1000, 4097, 131_071, 1_048_576, 2 ** 24 + 1, 2 ** 31 - 1]
    const invFreq = frequencies(half)
    for (const attentionScale of [undefined, 1, 1.25]) {
      const { cos, sin, shape } = await run(backend.tensors, positions, invFreq, attentionScale)
      const own = expected(positions, invFreq, attentionScale ?? 1)
      const comparison = { shape, tolerance: tolerance.ropeTable, rowLength: 1, floor: 1 }
      expectClose(cos, own.cos, { ...comparison, name: 'cos' })
      expectClose(sin, own.sin, { ...comparison, name: 'sin' })
    }
  })

  test.each([
    [0.1, 16_384],
    [0.5, 1],
    [3, 7],
  ])('growth of %d every %i positions', async (growth, period) => {
    const positions = [0, 1, 6, 7, 13, 14, 16_383, 16_384, 262_143, 2 ** 31 - 1]
    const { tensors } = backend
    const [cos, sin] = [tensors.output('f32', [10, 1]), tensors.output('f32', [10, 1])]
    const invFreq = tensors.f32([0])
    const options = { attentionScale: 1.25, growth, period }
    ropeTable({ positions: tensors.i32(positions), invFreq, cos, sin, ...options })
    const expected = referenceTable({ positions, invFreq: [0], ...options })
    const comparison = { shape: [10, 1], tolerance: tolerance.ropeTable, rowLength: 1 }
    expectClose(await tensors.values(cos), expected.cos, { ...comparison, name: 'cos' })
    expect([...(await tensors.values(sin))]).toEqual(new Array(10).fill(0))
  })

  test('position 0 turns nothing', async () => {
    const { cos, sin } = await run(backend.tensors, [0], frequencies(32))
    expect(cos.every((x) => x === 1)).toBe(true)
    expect(sin.every((x) => x === 0)).toBe(true)
  })

  test('a position has the same bits alone and among others, for any number of threads', async () => {
    const positions = Array.from({ length: 50 }, (_, i) => i * 37)
    const invFreq = frequencies(16)
    const { cos, sin } = await run(backend.tensors, positions, invFreq)
    const alone = await run(backend.tensors, [positions[33]], invFreq)
    const at = [33 * 16, 34 * 16]
    expectIdentical(alone.cos, cos.subarray(...at), { name: 'cos', shape: [1, 16] })
    expectIdentical(alone.sin, sin.subarray(...at), { name: 'sin', shape: [1, 16] })
    for (const threads of [1, 3]) {
      const there = await backend.withDevice({ threads }, (_, own) => run(own, positions, invFreq))
      expectIdentical(there.cos, cos, { name: 'cos', shape: [50, 16] })
    }
  })

  test('no positions, and no frequencies', async () => {
    expect((await run(backend.tensors, [], frequencies(4))).cos).toHaveLength(0)
    expect((await run(backend.tensors, [1, 2], frequencies(0))).cos).toHaveLength(0)
  })

  const refused: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
    ['float positions', (t) => ({ positions: t.f32([1, 2]) }), 'ERR_ZC_DTYPE', 'positions'],
    ['f16 invFreq', (t) => ({ invFreq: t.output('f16', [4]) }), 'ERR_ZC_DTYPE', 'invFreq'],
    ['other invFreq', (t) => ({ invFreq: t.output('f32', [5]) }), 'ERR_ZC_SHAPE', 'cos'],
    [
      'invFreq of two axes',
      (t) => ({ invFreq: t.output('f32', [2, 2]) }),
      'ERR_ZC_SHAPE',
      'invFreq',
    ],
    ['f16 cos', (t) => ({ cos: t.output('f16', [2, 4]) }), 'ERR_ZC_DTYPE', 'cos'],
    ['a period of 0', () => ({ period: 0 }), 'ERR_ZC_ARGUMENT', 'period'],
    ['half a period', () => ({ period: 1.5 }), 'ERR_ZC_ARGUMENT', 'period'],
    ['other sin', (t) => ({ sin: t.output('f32', [4, 2]) }), 'ERR_ZC_SHAPE', 'sin'],
  ]
  test.each(refused)('refuses %s', (_, fault, code, argument) => {
    const { tensors } = backend
    const args = {
      positions: tensors.i32([1, 2]),
      invFreq: tensors.output('f32', [4]),
      cos: tensors.output('f32', [2, 4]),
      sin: tensors.output('f32', [2, 4]),
    }
    const refuse = () => ropeTable({ ...args, ...fault(tensors) })
    expectRefused(refuse, { code, op: 'ropeTable', argument })
  })
})

describeBackends('rope', (backend) => {
  interface Turn {
    n: number
    nHeads: number
    headDim: number
    /** default headDim */
    rotaryDim?: number
    dtype?: FloatDtype
    /** of `out`; without it the op works in place */
    out?: FloatDtype
  }

  async function run(tensors: DeviceTensors, turn: Turn) {
    const { n, nHeads, headDim, rotaryDim = headDim, dtype = 'f32', out } = turn
    const half = rotaryDim / 2
    const shape = [n, nHeads, headDim]
    const positions = Array.from({ length: n }, (_, i) => i * 3 + 1)
    const table = referenceTable({ positions, invFreq: frequencies(half), attentionScale: 1 })
    const cos = storeAs('f32', table.cos)
    const sin = storeAs('f32', table.sin)
    const x = storeAs(dtype, normals(n + headDim, n * nHeads * headDim))
    const input = tensors.input(dtype, x.stored as Uint16Array, shape)
    const result = out ? tensors.output(out, shape) : input
    rope({
      x: input,
      cos: tensors.f32(cos.values, [n, half]),
      sin: tensors.f32(sin.values, [n, half]),
      ...(out ? { out: result } : {}),
    })
    const options = { x: x.values, cos: cos.values, sin: sin.values, nHeads, headDim }
    const untouched = !out || (await tensors.values(input)).every((v, i) => v === x.values[i])
    expect(untouched).toBe(true)
    return { actual: await tensors.values(result), expected: reference(options), shape }
  }

  const allowed = { f32: tolerance.f32Rope, f16: tolerance.f16Output, bf16: tolerance.bf16Output }

  async function expectReference(turn: Turn) {
    const { actual, expected, shape } = await run(backend.tensors, turn)
    const dtype = turn.out ?? turn.dtype ?? 'f32'
    expectClose(actual, expected, { name: 'out', shape, tolerance: allowed[dtype] })
  }

  test.each([2, 6, 16, 32, 64, 96, 128, 256, 320, 512])('head_dim %i', async (headDim) => {
    for (const [n, nHeads] of [
      [0, 2],
      [1, 1],
      [17, 3],
      [33, 2],
    ]) {
      await expectReference({ n, nHeads, headDim })
      await expectReference({ n, nHeads, headDim, out: 'f32' })
    }
  })

  test.each([
    [128, 96],
    [80, 32],
    [64, 2],
    [16, 10],
    [32, 0],
  ])('of %i channels the first %i', async (headDim, rotaryDim) => {
    for (const out of [undefined, ...floatDtypes]) {
      const turn = { n: 19, nHeads: 3, headDim, rotaryDim, ...(out ? { out } : {}) }
      await expectReference(turn)
      const { actual, expected } = await run(backend.tensors, turn)
      if (out !== undefined && out !== 'f32') continue
      const stays = (_: number, i: number) => i % headDim >= rotaryDim
      expect(actual.filter(stays)).toEqual(expected.filter(stays))
    }
  })

  test.each(floatDtypes)('x of %s, in place and into every dtype', async (dtype) => {
    for (const out of [undefined, ...floatDtypes]) {
      await expectReference({ n: 19, nHeads: 3, headDim: 32, dtype, ...(out ? { out } : {}) })
    }
  })

  test('in place gives the bits that another tensor gets', async () => {
    const turn = { n: 21, nHeads: 2, headDim: 64 }
    const here = await run(backend.tensors, turn)
    const there = await run(backend.tensors, { ...turn, out: 'f32' })
    expectIdentical(here.actual, there.actual, { name: 'out', shape: here.shape })
  })

  test.each([1, 3])('does the same bit for bit with %i threads', async (threads) => {
    const turn = { n: 70, nHeads: 2, headDim: 32 }
    const here = await run(backend.tensors, turn)
    const there = await backend.withDevice({ threads }, (_, tensors) => run(tensors, turn))
    expectIdentical(there.actual, here.actual, { name: 'out', shape: here.shape })
  })

  const refused: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
    ['integers', (t) => ({ x: t.output('i32', [3, 2, 8]) }), 'ERR_ZC_DTYPE', 'x'],
    ['x of two axes', (t) => ({ x: t.output('f32', [3, 16]) }), 'ERR_ZC_SHAPE', 'x'],
    ['an odd head_dim', (t) => ({ x: t.output('f32', [3, 2, 9]) }), 'ERR_ZC_SHAPE', 'x'],
    ['f16 cos', (t) => ({ cos: t.output('f16', [3, 4]) }), 'ERR_ZC_DTYPE', 'cos'],
    ['cos of other rows', (t) => ({ cos: t.output('f32', [2, 4]) }), 'ERR_ZC_SHAPE', 'cos'],
    ['cos of whole heads', (t) => ({ cos: t.output('f32', [3, 8]) }), 'ERR_ZC_SHAPE', 'cos'],
    ['cos of one axis', (t) => ({ cos: t.output('f32', [12]) }), 'ERR_ZC_SHAPE', 'cos'],
    ['other sin', (t) => ({ sin: t.output('f32', [3, 5]) }), 'ERR_ZC_SHAPE', 'sin'],
    ['another out', (t) => ({ out: t.output('f32', [3, 1, 8]) }), 'ERR_ZC_SHAPE', 'out'],
    ['integers for out', (t) => ({ out: t.output('i32', [3, 2, 8]) }), 'ERR_ZC_DTYPE', 'out'],
  ]
  test.each(refused)('refuses %s', (_, fault, code, argument) => {
    const { tensors } = backend
    const args = {
      x: tensors.output('f32', [3, 2, 8]),
      cos: tensors.output('f32', [3, 4]),
      sin: tensors.output('f32', [3, 4]),
    }
    expectRefused(() => rope({ ...args, ...fault(tensors) }), { code, op: 'rope', argument })
  })
})
