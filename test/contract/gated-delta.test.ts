import type { ErrorCode } from '../../lib/errors.js'
import { gatedDelta } from '../../lib/ops/index.js'
import { gatedDelta as reference } from '../../lib/reference/index.js'
import { describeBackends } from '../support/backends.js'
import { expectClose, expectIdentical } from '../support/compare.js'
import type { DeviceTensors } from '../support/device-tensors.js'
import { expectRefused, expectRejected } from '../support/errors.js'
import { cumulative, normals } from '../support/random-data.js'
import { RecurrentStates } from '../support/recurrent-states.js'
import { tolerance } from '../support/tolerance.js'

const layer = 1

interface Delta {
  lengths: readonly number[]
  nKeyHeads: number
  nHeads: number
  keyDim: number
  valueDim: number
  masked?: readonly number[]
  fromZero?: boolean
}

const widthOf = ({ nKeyHeads, nHeads, keyDim, valueDim }: Delta) =>
  2 * nKeyHeads * keyDim + nHeads * valueDim

/** Random inputs of some sequences, and the pages of their states: numbers as models have them. */
function inputs(own: Delta) {
  const { lengths, nHeads, keyDim, valueDim, fromZero = false } = own
  const headFloats = keyDim * valueDim
  const states = new RecurrentStates({ nSeqs: lengths.length, nHeads, convFloats: 9, headFloats })
  for (let i = 0; i < (fromZero ? 0 : lengths.length * nHeads); i++) {
    const page = states.head(Math.floor(i / nHeads), layer, i % nHeads)
    page.set(normals(50 + i, headFloats).map((x) => x / 4))
  }
  const cu = cumulative(lengths)
  const rows = cu.at(-1)!
  return {
    ...{ states, cu, rows },
    qkv: normals(1, rows * widthOf(own)),
    decay: normals(2, rows * nHeads),
    beta: normals(3, rows * nHeads).map((x) => 2 * x),
    // A of 1 / 64 to 16, as of the heads of a model.
    decayLog: Float32Array.from({ length: nHeads }, (_, h) => Math.log(16 / 4 ** ((h * 5) % 6))),
    decayBias: normals(4, nHeads),
  }
}

/** What an op is given of rows [begin, end). */
function rowsOf(
  tensors: DeviceTensors,
  own: Delta,
  from: ReturnType<typeof inputs>,
  begin: number,
  end: number,
) {
  const { nHeads, valueDim, nKeyHeads } = own
  const width = widthOf(own)
  const n = end - begin
  const heads = (x: Float32Array) =>
    tensors.f32(x.subarray(begin * nHeads, end * nHeads), [n, nHeads])
  return {
    qkv: tensors.f32(from.qkv.subarray(begin * width, end * width), [n, width]),
    ...{ decay: heads(from.decay), beta: heads(from.beta) },
    ...{ decayLog: tensors.f32(from.decayLog), decayBias: tensors.f32(from.decayBias) },
    ...{ out: tensors.output('f32', [n, nHeads, valueDim]), layer, nKeyHeads },
  }
}

async function run(tensors: DeviceTensors, own: Delta) {
  const from = inputs(own)
  const { states, cu, rows } = from
  const given = states.on(tensors, own.masked)
  const args = rowsOf(tensors, own, from, 0, rows)
  gatedDelta({ ...args, ...given, cuSeqlens: tensors.i32(cu), fromZero: own.fromZero })
  return { ...from, actual: await tensors.read(args.out), bytes: await given.pool.read() }
}

/** What the reference makes of a sequence. */
function expectedOf(own: Delta, from: ReturnType<typeof inputs>, seq: number) {
  const { nHeads, keyDim, valueDim, nKeyHeads, fromZero } = own
  const { states, cu, qkv, decay, beta, decayLog, decayBias } = from
  const part = (x: Float32Array, width: number) =>
    x.subarray(cu[seq]! * width, cu[seq + 1]! * width)
  const before = Array.from({ length: nHeads }, (_, h) => [...states.head(seq, layer, h)]).flat()
  return reference({
    ...{ qkv: part(qkv, widthOf(own)), decay: part(decay, nHeads), beta: part(beta, nHeads) },
    ...{ decayLog, decayBias, nHeads, nKeyHeads, keyDim, valueDim },
    ...(fromZero ? {} : { state: before }),
  })
}

describeBackends('gatedDelta', (backend) => {
  async function expectReference(own: Delta) {
    const { lengths, nHeads, keyDim, valueDim, masked = [] } = own
    const ran = await run(backend.tensors, own)
    const { states, cu, actual, bytes } = ran
    const within = { tolerance: tolerance.gatedDelta, seed: 1 }
    const image = states.bytes.slice()
    for (const [seq, length] of lengths.entries()) {
      const shape = [length, nHeads, valueDim]
      const row = nHeads * valueDim
      const rows = actual.subarray(cu[seq]! * row, cu[seq + 1]! * row)
      if (masked.includes(seq)) {
        expectIdentical(rows, new Float32Array(rows.length), { name: 'out', shape })
        continue
      }
      const { out, state } = expectedOf(own, ran, seq)
      // Where q and k of all rows so far happen to be at right angles, next to nothing is left of a row.
      expectClose(rows, out, { ...within, name: 'out', shape, floor: 0.01 })
      for (let h = 0; h < nHeads; h++) {
        const size = keyDim * valueDim
        const page = states.head(seq, layer, h, bytes)
        const expected = state.subarray(h * size, (h + 1) * size)
        const name = `state of sequence ${seq}, head ${h}`
        expectClose(page, expected, { ...within, name, shape: [keyDim, valueDim], rowLength: size })
        states.head(seq, layer, h, image).set(page)
      }
    }
    expectIdentical(bytes, image, { name: 'pool', shape: [image.length] })
  }

  test.each([16, 32, 64, 128, 256])('key_dim %i, every kind of value_dim', async (keyDim) => {
    for (const valueDim of [16, 48, 128, 256]) {
      const own = { nKeyHeads: 1, nHeads: 1, keyDim, valueDim }
      await expectReference({ ...own, lengths: [1] })
      await expectReference({ ...own, lengths: [7], fromZero: true })
    }
  })

  test.each([
    { nKeyHeads: 1, nHeads: 1 },
    { nKeyHeads: 3, nHeads: 3 },
    { nKeyHeads: 2, nHeads: 4 },
    { nKeyHeads: 2, nHeads: 6 },
    { nKeyHeads: 1, nHeads: 5 },
  ])('$nKeyHeads key heads of $nHeads', async (heads) => {
    await expectReference({ ...heads, lengths: [6], keyDim: 32, valueDim: 48 })
    await expectReference({ ...heads, lengths: [5, 3], keyDim: 64, valueDim: 64, fromZero: true })
  })

  const shape = { nKeyHeads: 2, nHeads: 4, keyDim: 32, valueDim: 32 }
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
      nKeyHeads: 1,
      nHeads: 1,
      keyDim: 128,
      valueDim: 128,
      lengths: [rows],
    })
  })

  test('rows cut into calls have the same bits', async () => {
    const { tensors } = backend
    for (const [keyDim, valueDim] of [
      [16, 48],
      [128, 128],
    ] as const) {
      const own = { nKeyHeads: 1, nHeads: 2, keyDim, valueDim, lengths: [39], fromZero: true }
      const whole = await run(tensors, own)
      const given = whole.states.on(tensors)
      let begin = 0
      for (const n of [1, 2, 0, 17, 1, 5, 13]) {
        const args = rowsOf(tensors, own, whole, begin, begin + n)
        const cuSeqlens = tensors.i32([0, n])
        gatedDelta({ ...args, ...given, cuSeqlens, fromZero: begin === 0 })
        const row = 2 * valueDim
        const expected = whole.actual.subarray(begin * row, (begin + n) * row)
        const name = `out, rows from ${begin} on`
        expectIdentical(await tensors.read(args.out), expected, { name, shape: [n, 2, valueDim] })
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

  /** One row of one head, its q and k the first unit vector; what stays of a state of ones. */
  async function oneRow(own: { decay: number; beta: number; decayLog?: number; length?: number }) {
    const { tensors } = backend
    const states = new RecurrentStates({ nSeqs: 1, nHeads: 1, convFloats: 9, headFloats: 256 })
    states.head(0, layer, 0).fill(1)
    const given = states.on(tensors)
    const unit = Array.from({ length: 16 }, (_, i) => (i === 0 ? (own.length ?? 1) : 0))
    const out = tensors.output('f32', [1, 1, 16])
    gatedDelta({
      qkv: tensors.f32([...unit, ...unit, ...new Array<number>(16).fill(3)], [1, 48]),
      ...{ decay: tensors.f32([own.decay], [1, 1]), beta: tensors.f32([own.beta], [1, 1]) },
      ...{ decayLog: tensors.f32([own.decayLog ?? 0]), decayBias: tensors.f32([0]), out },
      ...{ ...given, cuSeqlens: tensors.i32([0, 1]), layer, nKeyHeads: 1 },
    })
    const state = states.head(0, layer, 0, await given.pool.read())
    return { out: (await tensors.read(out))[0]!, written: state[0]!, kept: state[16]! }
  }

  test('gates at their ends: all is kept or nothing, all is written or nothing', async () => {
    const close = (x: number) => expect.closeTo(x, 5)
    const [keep, forget] = [{ decay: -200 }, { decay: 200 }]
    const [write, leave] = [{ beta: 200 }, { beta: -200 }]
    expect(await oneRow({ ...keep, ...write })).toEqual({
      out: close(0.75),
      written: close(3),
      kept: 1,
    })
    expect(await oneRow({ ...keep, ...leave })).toEqual({ out: close(0.25), written: 1, kept: 1 })
    expect(await oneRow({ ...forget, ...write })).toEqual({
      out: close(0.75),
      written: close(3),
      kept: 0,
    })
    expect(await oneRow({ ...forget, ...leave })).toEqual({ out: 0, written: 0, kept: 0 })
    // 2^-1 is kept: softplus(0) is ln 2; half is written.
    const half = await oneRow({ decay: 0, beta: 0 })
    expect(half).toEqual({ out: close(0.4375), written: close(1.75), kept: close(0.5) })
  })

  test('e^a may overflow, a length may be 0, and no NaN comes of it', async () => {
    const far = await oneRow({ decay: 1e30, beta: 0, decayLog: -80 })
    expect(far.kept).toBeCloseTo(Math.exp(-1e30 * Math.exp(-80)), 6)
    expect(await oneRow({ decay: -200, beta: 200, length: 0 })).toEqual({
      out: 0,
      written: 1,
      kept: 1,
    })
  })

  test('NaN of a value stays in its column', async () => {
    const { tensors } = backend
    const own = { ...shape, nKeyHeads: 1, nHeads: 1, lengths: [4], fromZero: true }
    const from = inputs(own)
    from.qkv[widthOf(own) + 64 + 5] = Number.NaN // row 1, v of channel 5
    const args = rowsOf(tensors, own, from, 0, 4)
    const cuSeqlens = tensors.i32([0, 4])
    gatedDelta({ ...args, ...from.states.on(tensors), cuSeqlens, fromZero: true })
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
    gatedDelta({ ...args, ...fault(tensors, states) })
    const error = { code: 'ERR_ZC_ARGUMENT', op: 'gatedDelta', message } as const
    await expectRejected(device.sync(), error)
  })

  // q, k (5, 2, 32) each, v (5, 4, 32)
  const refused: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
    ['f16 rows', (t) => ({ qkv: t.output('f16', [5, 256]) }), 'ERR_ZC_DTYPE', 'qkv'],
    ['rows of one axis', (t) => ({ qkv: t.output('f32', [1280]) }), 'ERR_ZC_SHAPE', 'qkv'],
    ['fewer rows', (t) => ({ qkv: t.output('f32', [4, 256]) }), 'ERR_ZC_SHAPE', 'qkv'],
    ['rows of v alone', (t) => ({ qkv: t.output('f32', [5, 128]) }), 'ERR_ZC_SHAPE', 'qkv'],
    ['half a channel', (t) => ({ qkv: t.output('f32', [5, 258]) }), 'ERR_ZC_SHAPE', 'qkv'],
    ['a key_dim of 48', (t) => ({ qkv: t.output('f32', [5, 320]) }), 'ERR_ZC_UNSUPPORTED', 'qkv'],
    ['a key_dim of 8', (t) => ({ qkv: t.output('f32', [5, 160]) }), 'ERR_ZC_UNSUPPORTED', 'qkv'],
    ['a key_dim of 512', (t) => ({ qkv: t.output('f32', [5, 2176]) }), 'ERR_ZC_UNSUPPORTED', 'qkv'],
    ['an f16 out', (t) => ({ out: t.output('f16', [5, 4, 32]) }), 'ERR_ZC_DTYPE', 'out'],
    ['an out of two axes', (t) => ({ out: t.output('f32', [5, 128]) }), 'ERR_ZC_SHAPE', 'out'],
    ['no heads', (t) => ({ out: t.output('f32', [5, 0, 32]) }), 'ERR_ZC_SHAPE', 'out'],
    [
      'a value_dim of 24',
      (t) => ({ out: t.output('f32', [5, 4, 24]) }),
      'ERR_ZC_UNSUPPORTED',
      'out',
    ],
    [
      'a value_dim of 272',
      (t) => ({ out: t.output('f32', [5, 4, 272]) }),
      'ERR_ZC_UNSUPPORTED',
      'out',
    ],
    ['f16 decay', (t) => ({ decay: t.output('f16', [5, 4]) }), 'ERR_ZC_DTYPE', 'decay'],
    ['another decay', (t) => ({ decay: t.output('f32', [4, 5]) }), 'ERR_ZC_SHAPE', 'decay'],
    ['f16 beta', (t) => ({ beta: t.output('f16', [5, 4]) }), 'ERR_ZC_DTYPE', 'beta'],
    ['another beta', (t) => ({ beta: t.output('f32', [5, 2]) }), 'ERR_ZC_SHAPE', 'beta'],
    ['f16 decayLog', (t) => ({ decayLog: t.output('f16', [4]) }), 'ERR_ZC_DTYPE', 'decayLog'],
    ['another decayLog', (t) => ({ decayLog: t.output('f32', [2]) }), 'ERR_ZC_SHAPE', 'decayLog'],
    ['f16 decayBias', (t) => ({ decayBias: t.output('f16', [4]) }), 'ERR_ZC_DTYPE', 'decayBias'],
    [
      'another decayBias',
      (t) => ({ decayBias: t.output('f32', [5]) }),
      'ERR_ZC_SHAPE',
      'decayBias',
    ],
    ['a pool of floats', (t) => ({ pool: t.output('f32', [99]) }), 'ERR_ZC_DTYPE', 'pool'],
    ['float tables', (t) => ({ tables: t.output('f32', [60]) }), 'ERR_ZC_DTYPE', 'tables'],
    ['float states', (t) => ({ states: t.f32([0, 0]) }), 'ERR_ZC_DTYPE', 'states'],
    ['float lengths', (t) => ({ cuSeqlens: t.f32([0, 2, 5]) }), 'ERR_ZC_DTYPE', 'cuSeqlens'],
    ['fewer lengths', (t) => ({ cuSeqlens: t.i32([0, 5]) }), 'ERR_ZC_SHAPE', 'cuSeqlens'],
    ['a negative layer', () => ({ layer: -1 }), 'ERR_ZC_ARGUMENT', 'layer'],
    ['no key heads', () => ({ nKeyHeads: 0 }), 'ERR_ZC_ARGUMENT', 'nKeyHeads'],
    ['3 key heads of 4', () => ({ nKeyHeads: 3 }), 'ERR_ZC_ARGUMENT', 'nKeyHeads'],
    ['8 key heads of 4', () => ({ nKeyHeads: 8 }), 'ERR_ZC_ARGUMENT', 'nKeyHeads'],
  ]
  test.each(refused)('refuses %s', (_, fault, code, argument) => {
    const { tensors } = backend
    const { args } = call(tensors)
    const refuse = () => gatedDelta({ ...args, ...fault(tensors) })
    expectRefused(refuse, { code, op: 'gatedDelta', argument })
  })

  test('refuses rows without a sequence', () => {
    const { tensors } = backend
    const none = { states: tensors.i32([]), cuSeqlens: tensors.i32([0]) }
    const fault = { code: 'ERR_ZC_ARGUMENT', op: 'gatedDelta', argument: 'states' } as const
    expectRefused(() => gatedDelta({ ...call(tensors).args, ...none }), fault)
  })
})
