import type { ErrorCode } from '../../lib/errors.js'
import { selectiveScan } from '../../lib/ops/index.js'
import { selectiveScan as reference } from '../../lib/reference/index.js'
import { describeBackends } from '../support/backends.js'
import { expectClose, expectIdentical } from '../support/compare.js'
import type { DeviceTensors } from '../support/device-tensors.js'
import { expectRefused, expectRejected } from '../support/errors.js'
import { cumulative, normals } from '../support/random-data.js'
import { RecurrentStates } from '../support/recurrent-states.js'
import { tolerance } from '../support/tolerance.js'

const layer = 1

interface Scan {
  lengths: readonly number[]
  nGroups: number
  nHeads: number
  stateDim: number
  headDim: number
  masked?: readonly number[]
  fromZero?: boolean
}

const widthOf = ({ nGroups, nHeads, stateDim, headDim }: Scan) =>
  2 * nGroups * stateDim + nHeads * headDim

/** Random inputs of some sequences, and the pages of their states: numbers as models have them. */
function inputs(own: Scan) {
  const { lengths, nHeads, stateDim, headDim, fromZero = false } = own
  const headFloats = stateDim * headDim
  const states = new RecurrentStates({ nSeqs: lengths.length, nHeads, convFloats: 9, headFloats })
  for (let i = 0; i < (fromZero ? 0 : lengths.length * nHeads); i++) {
    const page = states.head(Math.floor(i / nHeads), layer, i % nHeads)
    page.set(normals(50 + i, headFloats).map((x) => x / 4))
  }
  const cu = cumulative(lengths)
  const rows = cu.at(-1)!
  const xbc = normals(1, rows * widthOf(own))
  // B of length 1 or so: what C reads is about as large as x.
  const [x, b] = [nHeads * headDim, own.nGroups * stateDim]
  for (let row = 0; row < rows; row++) {
    const begin = row * widthOf(own) + x
    for (let i = begin; i < begin + b; i++) xbc[i]! /= Math.sqrt(stateDim)
  }
  return {
    ...{ states, cu, rows },
    xbc,
    step: normals(2, rows * nHeads),
    // A of 1 / 64 to 16, as of the heads of a model.
    decayLog: Float32Array.from({ length: nHeads }, (_, h) => Math.log(16 / 4 ** ((h * 5) % 6))),
    stepBias: normals(3, nHeads).map((x) => x - 1),
    skip: normals(4, nHeads).map((x) => 1 + x / 4),
  }
}

/** What an op is given of rows [begin, end). */
function rowsOf(
  tensors: DeviceTensors,
  own: Scan,
  from: ReturnType<typeof inputs>,
  begin: number,
  end: number,
) {
  const { nHeads, headDim, nGroups } = own
  const width = widthOf(own)
  const n = end - begin
  const heads = (x: Float32Array) =>
    tensors.f32(x.subarray(begin * nHeads, end * nHeads), [n, nHeads])
  return {
    xbc: tensors.f32(from.xbc.subarray(begin * width, end * width), [n, width]),
    ...{ step: heads(from.step), stepBias: tensors.f32(from.stepBias) },
    ...{ decayLog: tensors.f32(from.decayLog), skip: tensors.f32(from.skip) },
    ...{ out: tensors.output('f32', [n, nHeads, headDim]), layer, nGroups },
  }
}

async function run(tensors: DeviceTensors, own: Scan) {
  const from = inputs(own)
  const { states, cu, rows } = from
  const given = states.on(tensors, own.masked)
  const args = rowsOf(tensors, own, from, 0, rows)
  selectiveScan({ ...args, ...given, cuSeqlens: tensors.i32(cu), fromZero: own.fromZero })
  return { ...from, actual: await tensors.read(args.out), bytes: await given.pool.read() }
}

/** What the reference makes of a sequence. */
function expectedOf(own: Scan, from: ReturnType<typeof inputs>, seq: number) {
  const { nHeads, stateDim, headDim, nGroups, fromZero } = own
  const { states, cu, xbc, step, stepBias, decayLog, skip } = from
  const part = (x: Float32Array, width: number) =>
    x.subarray(cu[seq]! * width, cu[seq + 1]! * width)
  const before = Array.from({ length: nHeads }, (_, h) => [...states.head(seq, layer, h)]).flat()
  return reference({
    ...{ xbc: part(xbc, widthOf(own)), step: part(step, nHeads), stepBias, decayLog, skip },
    ...{ nHeads, nGroups, stateDim, headDim },
    ...(fromZero ? {} : { state: before }),
  })
}

describeBackends('selectiveScan', (backend) => {
  async function expectReference(own: Scan) {
    const { lengths, nHeads, stateDim, headDim, masked = [] } = own
    const ran = await run(backend.tensors, own)
    const { states, cu, actual, bytes } = ran
    const within = { tolerance: tolerance.selectiveScan, seed: 1 }
    const image = states.bytes.slice()
    for (const [seq, length] of lengths.entries()) {
      const shape = [length, nHeads, headDim]
      const row = nHeads * headDim
      const rows = actual.subarray(cu[seq]! * row, cu[seq + 1]! * row)
      if (masked.includes(seq)) {
        expectIdentical(rows, new Float32Array(rows.length), { name: 'out', shape })
        continue
      }
      const { out, state } = expectedOf(own, ran, seq)
      // The terms of a row are as large as its x, and may cancel.
      expectClose(rows, out, { ...within, name: 'out', shape, floor: 0.25 })
      for (let h = 0; h < nHeads; h++) {
        const size = stateDim * headDim
        const page = states.head(seq, layer, h, bytes)
        const expected = state.subarray(h * size, (h + 1) * size)
        const name = `state of sequence ${seq}, head ${h}`
        expectClose(page, expected, {
          ...within,
          name,
          shape: [stateDim, headDim],
          rowLength: size,
        })
        states.head(seq, layer, h, image).set(page)
      }
    }
    expectIdentical(bytes, image, { name: 'pool', shape: [image.length] })
  }

  test.each([16, 32, 64, 128, 256])('state_dim %i, every kind of head_dim', async (stateDim) => {
    for (const headDim of [16, 48, 128, 256]) {
      const own = { nGroups: 1, nHeads: 1, stateDim, headDim }
      await expectReference({ ...own, lengths: [1] })
      await expectReference({ ...own, lengths: [7], fromZero: true })
    }
  })

  test.each([
    { nGroups: 1, nHeads: 1 },
    { nGroups: 3, nHeads: 3 },
    { nGroups: 2, nHeads: 4 },
    { nGroups: 2, nHeads: 6 },
    { nGroups: 1, nHeads: 5 },
  ])('$nGroups groups of $nHeads', async (heads) => {
    await expectReference({ ...heads, lengths: [6], stateDim: 32, headDim: 48 })
    await expectReference({ ...heads, lengths: [5, 3], stateDim: 64, headDim: 64, fromZero: true })
  })

  const shape = { nGroups: 2, nHeads: 4, stateDim: 32, headDim: 32 }
  test.each([false, true])('sequences of all lengths, some masked; from zero: %s', async (zero) => {
    const own = { ...shape, fromZero: zero }
    await expectReference({ ...own, lengths: [3, 1, 0, 17, 2], masked: [1] })
    await expectReference({ ...own, lengths: [5, 6], masked: [0, 1] })
    await expectReference({ ...own, lengths: [0] })
    await expectReference({ ...own, lengths: [] })
  })

  test('one row of each of many sequences', async () => {
    const lengths = Array.from({ length: 40 }, () => 1)
    await expectReference({ ...shape, lengths, masked: [3, 39] })
  })

  test.each([15, 16, 17, 33, 131])('%i rows', async (rows) => {
    await expectReference({ ...shape, lengths: [rows], fromZero: true })
    await expectReference({
      ...shape,
      nGroups: 1,
      nHeads: 1,
      stateDim: 128,
      headDim: 128,
      lengths: [rows],
    })
  })

  test('rows cut into calls have the same bits', async () => {
    const { tensors } = backend
    for (const [stateDim, headDim] of [
      [16, 48],
      [128, 128],
    ] as const) {
      const own = { nGroups: 1, nHeads: 2, stateDim, headDim, lengths: [39], fromZero: true }
      const whole = await run(tensors, own)
      const given = whole.states.on(tensors)
      let begin = 0
      for (const n of [1, 2, 0, 17, 1, 5, 13]) {
        const args = rowsOf(tensors, own, whole, begin, begin + n)
        const cuSeqlens = tensors.i32([0, n])
        selectiveScan({ ...args, ...given, cuSeqlens, fromZero: begin === 0 })
        const row = 2 * headDim
        const expected = whole.actual.subarray(begin * row, (begin + n) * row)
        const name = `out, rows from ${begin} on`
        expectIdentical(await tensors.read(args.out), expected, { name, shape: [n, 2, headDim] })
        begin += n
      }
      const bytes = await given.pool.read()
      expectIdentical(bytes, whole.bytes, { name: 'pool', shape: [bytes.length] })
    }
  })

  test.each([1, 3])('with %i threads the same bits', async (threads) => {
    const own = { ...shape, lengths: [9, 4, 12], masked: [1] }
    const there = await run(backend.tensors, own)
    await backend.withDevice({ threads }, async (_, tensors) => {
      const here = await run(tensors, own)
      expectIdentical(here.actual, there.actual, { name: 'out', shape: [25, 4, 32] })
      expectIdentical(here.bytes, there.bytes, { name: 'pool', shape: [there.bytes.length] })
    })
  })

  /** One row of one head, its B and C the first unit vector, its x 3; what stays of a state of ones. */
  async function oneRow(own: { step: number; decayLog?: number; skip?: number }) {
    const { tensors } = backend
    const states = new RecurrentStates({ nSeqs: 1, nHeads: 1, convFloats: 9, headFloats: 256 })
    states.head(0, layer, 0).fill(1)
    const given = states.on(tensors)
    const unit = Array.from({ length: 16 }, (_, i) => (i === 0 ? 1 : 0))
    const out = tensors.output('f32', [1, 1, 16])
    selectiveScan({
      xbc: tensors.f32([...new Array<number>(16).fill(3), ...unit, ...unit], [1, 48]),
      ...{ step: tensors.f32([own.step], [1, 1]), stepBias: tensors.f32([0]), out },
      ...{ decayLog: tensors.f32([own.decayLog ?? 0]), skip: tensors.f32([own.skip ?? 0]) },
      ...{ ...given, cuSeqlens: tensors.i32([0, 1]), layer, nGroups: 1 },
    })
    const state = states.head(0, layer, 0, await given.pool.read())
    return { out: (await tensors.read(out))[0]!, written: state[0]!, kept: state[16]! }
  }

  test('steps at their ends: all is kept and nothing written, or all forgotten', async () => {
    const close = (x: number) => expect.closeTo(x, 5)
    expect(await oneRow({ step: -200 })).toEqual({ out: 1, written: 1, kept: 1 })
    expect(await oneRow({ step: -200, skip: -2 })).toEqual({ out: -5, written: 1, kept: 1 })
    expect(await oneRow({ step: 200 })).toEqual({ out: 600, written: 600, kept: 0 })
    // 2^-1 is kept, and ln 2 of x written: softplus(0) is ln 2.
    const ln2 = Math.log(2)
    expect(await oneRow({ step: 0, skip: 1 })).toEqual({
      out: close(0.5 + 3 * ln2 + 3),
      written: close(0.5 + 3 * ln2),
      kept: close(0.5),
    })
  })

  test('e^step may overflow, and no NaN comes of it', async () => {
    const far = await oneRow({ step: 1e30, decayLog: -80 })
    expect(far.kept).toBeCloseTo(Math.exp(-1e30 * Math.exp(-80)), 6)
    expect(far.written).toBeCloseTo(3e30, -24)
  })

  test('NaN of x stays in its column', async () => {
    const { tensors } = backend
    const own = { ...shape, nGroups: 1, nHeads: 1, lengths: [4], fromZero: true }
    const from = inputs(own)
    from.xbc[widthOf(own) + 5] = Number.NaN // row 1, x of channel 5
    const args = rowsOf(tensors, own, from, 0, 4)
    const cuSeqlens = tensors.i32([0, 4])
    selectiveScan({ ...args, ...from.states.on(tensors), cuSeqlens, fromZero: true })
    const found = [...(await tensors.read(args.out))].flatMap((y, i) =>
      Number.isNaN(y) ? [i] : [],
    )
    expect(found).toEqual([32 + 5, 64 + 5, 96 + 5])
  })

  /** A call of two sequences that is right. */
  function call(tensors: DeviceTensors) {
    const own = { ...shape, lengths: [2, 3] }
    const from = inputs(own)
    const args = {
      ...{ ...rowsOf(tensors, own, from, 0, 5), ...from.states.on(tensors) },
      cuSeqlens: tensors.i32(from.cu),
    }
    return { args, states: from.states }
  }

  const outside: [string, RegExp, (t: DeviceTensors, s: RecurrentStates) => object][] = [
    ['a table before the words', /^states: /, (t, s) => ({ states: t.i32([s.starts[0]!, -2]) })],
    ['a table behind them', /^states: /, (t, s) => ({ states: t.i32([0, s.words.length]) })],
    [
      'a layer outside',
      /^states: /,
      (t, s) => ({ states: t.i32([s.starts[0]!, s.wordOf(1, 1) - 4]) }),
    ],
    ['a layer that no table has', /^states: /, () => ({ layer: 2 ** 31 - 1 })],
    ...[-1, -(2 ** 31), 2 ** 31 - 1].map(
      (unit): [string, RegExp, (t: DeviceTensors, s: RecurrentStates) => object] => [
        ...([`a page at ${unit}`, /^tables: /] as const),
        (t, s) => {
          const words = s.words.slice()
          words[s.wordOf(1, layer) + 3] = unit
          return { tables: t.i32(words) }
        },
      ],
    ),
    ['rows that are no sequence', /^cuSeqlens: /, (t) => ({ cuSeqlens: t.i32([0, 2, 4]) })],
    ['sequences that fall', /^cuSeqlens: /, (t) => ({ cuSeqlens: t.i32([0, 6, 5]) })],
  ]
  test.each(outside)('%s is rejected at the next sync', async (_, message, fault) => {
    const { tensors, device } = backend
    const { args, states } = call(tensors)
    selectiveScan({ ...args, ...fault(tensors, states) })
    const error = { code: 'ERR_ZC_ARGUMENT', op: 'selectiveScan', message } as const
    await expectRejected(device.sync(), error)
  })

  // x (5, 4, 32), B, C (5, 2, 32) each
  const refused: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
    ['f16 rows', (t) => ({ xbc: t.output('f16', [5, 256]) }), 'ERR_ZC_DTYPE', 'xbc'],
    ['rows of one axis', (t) => ({ xbc: t.output('f32', [1280]) }), 'ERR_ZC_SHAPE', 'xbc'],
    ['fewer rows', (t) => ({ xbc: t.output('f32', [4, 256]) }), 'ERR_ZC_SHAPE', 'xbc'],
    ['rows of x alone', (t) => ({ xbc: t.output('f32', [5, 128]) }), 'ERR_ZC_SHAPE', 'xbc'],
    ['half a channel', (t) => ({ xbc: t.output('f32', [5, 258]) }), 'ERR_ZC_SHAPE', 'xbc'],
    ['a state_dim of 48', (t) => ({ xbc: t.output('f32', [5, 320]) }), 'ERR_ZC_UNSUPPORTED', 'xbc'],
    ['a state_dim of 8', (t) => ({ xbc: t.output('f32', [5, 160]) }), 'ERR_ZC_UNSUPPORTED', 'xbc'],
    [
      'a state_dim of 512',
      (t) => ({ xbc: t.output('f32', [5, 2176]) }),
      'ERR_ZC_UNSUPPORTED',
      'xbc',
    ],
    ['an f16 out', (t) => ({ out: t.output('f16', [5, 4, 32]) }), 'ERR_ZC_DTYPE', 'out'],
    ['an out of two axes', (t) => ({ out: t.output('f32', [5, 128]) }), 'ERR_ZC_SHAPE', 'out'],
    ['no heads', (t) => ({ out: t.output('f32', [5, 0, 32]) }), 'ERR_ZC_SHAPE', 'out'],
    [
      'a head_dim of 24',
      (t) => ({ out: t.output('f32', [5, 4, 24]) }),
      'ERR_ZC_UNSUPPORTED',
      'out',
    ],
    [
      'a head_dim of 272',
      (t) => ({ out: t.output('f32', [5, 4, 272]) }),
      'ERR_ZC_UNSUPPORTED',
      'out',
    ],
    ['f16 step', (t) => ({ step: t.output('f16', [5, 4]) }), 'ERR_ZC_DTYPE', 'step'],
    ['another step', (t) => ({ step: t.output('f32', [4, 5]) }), 'ERR_ZC_SHAPE', 'step'],
    ['f16 stepBias', (t) => ({ stepBias: t.output('f16', [4]) }), 'ERR_ZC_DTYPE', 'stepBias'],
    ['another stepBias', (t) => ({ stepBias: t.output('f32', [5]) }), 'ERR_ZC_SHAPE', 'stepBias'],
    ['f16 decayLog', (t) => ({ decayLog: t.output('f16', [4]) }), 'ERR_ZC_DTYPE', 'decayLog'],
    ['another decayLog', (t) => ({ decayLog: t.output('f32', [2]) }), 'ERR_ZC_SHAPE', 'decayLog'],
    ['f16 skip', (t) => ({ skip: t.output('f16', [4]) }), 'ERR_ZC_DTYPE', 'skip'],
    ['another skip', (t) => ({ skip: t.output('f32', [4, 1]) }), 'ERR_ZC_SHAPE', 'skip'],
    ['a pool of floats', (t) => ({ pool: t.output('f32', [99]) }), 'ERR_ZC_DTYPE', 'pool'],
    ['float tables', (t) => ({ tables: t.output('f32', [60]) }), 'ERR_ZC_DTYPE', 'tables'],
    ['float states', (t) => ({ states: t.f32([0, 0]) }), 'ERR_ZC_DTYPE', 'states'],
    ['float lengths', (t) => ({ cuSeqlens: t.f32([0, 2, 5]) }), 'ERR_ZC_DTYPE', 'cuSeqlens'],
    ['fewer lengths', (t) => ({ cuSeqlens: t.i32([0, 5]) }), 'ERR_ZC_SHAPE', 'cuSeqlens'],
    ['a negative layer', () => ({ layer: -1 }), 'ERR_ZC_ARGUMENT', 'layer'],
    ['no groups', () => ({ nGroups: 0 }), 'ERR_ZC_ARGUMENT', 'nGroups'],
    ['3 groups of 4', () => ({ nGroups: 3 }), 'ERR_ZC_ARGUMENT', 'nGroups'],
    ['8 groups of 4', () => ({ nGroups: 8 }), 'ERR_ZC_ARGUMENT', 'nGroups'],
  ]
  test.each(refused)('refuses %s', (_, fault, code, argument) => {
    const { tensors } = backend
    const { args } = call(tensors)
    const refuse = () => selectiveScan({ ...args, ...fault(tensors) })
    expectRefused(refuse, { code, op: 'selectiveScan', argument })
  })

  test('refuses rows without a sequence', () => {
    const { tensors } = backend
    const none = { states: tensors.i32([]), cuSeqlens: tensors.i32([0]) }
    const fault = { code: 'ERR_ZC_ARGUMENT', op: 'selectiveScan', argument: 'states' } as const
    expectRefused(() => selectiveScan({ ...call(tensors).args, ...none }), fault)
  })
})
