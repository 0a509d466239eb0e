import type { ErrorCode } from '../../lib/errors.js'
import { causalConv } from '../../lib/ops/index.js'
import { causalConv as reference } from '../../lib/reference/index.js'
import { describeBackends } from '../support/backends.js'
import { expectClose, expectIdentical } from '../support/compare.js'
import type { DeviceTensors } from '../support/device-tensors.js'
import { expectRefused, expectRejected } from '../support/errors.js'
import { cumulative, normals } from '../support/random-data.js'
import { RecurrentStates } from '../support/recurrent-states.js'
import { tolerance } from '../support/tolerance.js'

const nHeads = 3
const layer = 1

interface Conv {
  lengths: readonly number[]
  channels: number
  width: number
  masked?: readonly number[]
  fromZero?: boolean
  /** whether there is a bias */
  biased?: boolean
}

/** Random inputs of some sequences, and the pages of their states. */
function inputs({ lengths, channels, width, fromZero = false }: Conv) {
  const kept = (width - 1) * channels
  const shape = { nSeqs: lengths.length, nHeads, convFloats: kept, headFloats: 40 }
  const states = new RecurrentStates(shape)
  for (let seq = 0; seq < (fromZero ? 0 : lengths.length); seq++) {
    states.conv(seq, layer).set(normals(50 + seq, kept))
  }
  const cu = cumulative(lengths)
  const x = normals(1, cu.at(-1)! * channels)
  return { states, cu, x, weight: normals(2, channels * width), bias: normals(3, channels) }
}

async function run(tensors: DeviceTensors, own: Conv) {
  const { lengths, channels, width, masked = [], fromZero = false, biased = false } = own
  const { states, cu, x, weight, bias } = inputs(own)
  const rows = cu.at(-1)!
  const out = tensors.output('f32', [rows, channels])
  const given = states.on(tensors, masked)
  causalConv({
    ...{ x: tensors.f32(x, [rows, channels]), weight: tensors.f32(weight, [channels, width]) },
    ...(biased ? { bias: tensors.f32(bias) } : {}),
    ...{ ...given, out, cuSeqlens: tensors.i32(cu), layer, nHeads, fromZero },
  })
  const actual = await tensors.read(out)
  const bytes = await given.pool.read()
  const expected = lengths.map((_, seq) => {
    const own = x.subarray(cu[seq]! * channels, cu[seq + 1]! * channels)
    const options = { x: own, weight, ...(biased ? { bias } : {}), channels, width }
    return reference(fromZero ? options : { ...options, before: states.conv(seq, layer) })
  })
  return { states, cu, actual, bytes, expected }
}

describeBackends('causalConv', (backend) => {
  async function expectReference(own: Conv) {
    const { lengths, channels, width, masked = [] } = own
    const { states, cu, actual, bytes, expected } = await run(backend.tensors, own)
    const within = { name: 'out', tolerance: tolerance.causalConv }
    const image = states.bytes.slice()
    for (const [seq, { out, last }] of expected.entries()) {
      const shape = [lengths[seq]!, channels]
      const rows = actual.subarray(cu[seq]! * channels, cu[seq + 1]! * channels)
      if (masked.includes(seq)) {
        expectIdentical(rows, new Float32Array(rows.length), { name: 'out', shape })
        continue
      }
      expectClose(rows, out, { ...within, shape })
      states.conv(seq, layer, image).set(last)
    }
    // The last inputs as they are, and nothing else.
    expectIdentical(bytes, image, { name: `pool, width ${width}`, shape: [image.length] })
  }

  test.each([2, 3, 4, 5, 6, 7, 8])('a width of %i', async (width) => {
    for (const lengths of [[1], [width - 1], [width], [20]]) {
      await expectReference({ lengths, channels: 24, width })
      await expectReference({ lengths, channels: 24, width, fromZero: true })
    }
  })

  test.each([1, 3, 7, 8, 9, 31, 64, 65, 127, 255, 256, 257, 520])(
    '%i channels',
    async (channels) => {
      await expectReference({ lengths: [9], channels, width: 4 })
      await expectReference({ lengths: [9], channels, width: 4, biased: true })
    },
  )

  test.each([false, true])('sequences of all lengths, some masked; from zero: %s', async (zero) => {
    const own = { channels: 70, width: 4, fromZero: zero }
    await expectReference({ ...own, lengths: [3, 1, 0, 17, 2], masked: [1] })
    await expectReference({ ...own, lengths: [5, 6], masked: [0, 1] })
    await expectReference({ ...own, lengths: [0] })
    await expectReference({ ...own, lengths: [] })
  })

  test('one row of each of many sequences', async () => {
    const lengths = Array.from({ length: 70 }, () => 1)
    await expectReference({ lengths, channels: 40, width: 4, masked: [3, 69] })
  })

  test('long sequences', async () => {
    await expectReference({ lengths: [301, 130], channels: 300, width: 4 })
  })

  test('a bias, sequences of all lengths, some masked', async () => {
    const own = { channels: 70, width: 4, biased: true }
    await expectReference({ ...own, lengths: [3, 1, 0, 17, 2], masked: [1] })
    await expectReference({ ...own, lengths: [41, 6], fromZero: true })
  })

  test('a bias of zeros, the same bits as none', async () => {
    const { tensors } = backend
    const own = { lengths: [9], channels: 45, width: 3, fromZero: true }
    const without = await run(tensors, own)
    const { states, x, weight } = inputs(own)
    const out = tensors.output('f32', [9, 45])
    causalConv({
      ...{ x: tensors.f32(x, [9, 45]), weight: tensors.f32(weight, [45, 3]), out },
      ...{ ...states.on(tensors), bias: tensors.f32(new Float32Array(45)), layer, nHeads },
      ...{ cuSeqlens: tensors.i32([0, 9]), fromZero: true },
    })
    expectIdentical(await tensors.read(out), without.actual, { name: 'out', shape: [9, 45] })
  })

  test('rows cut into calls have the same bits', async () => {
    const { tensors } = backend
    const own = { lengths: [37], channels: 45, width: 5, fromZero: true, biased: true }
    const whole = await run(tensors, own)
    const { states, x, weight, bias } = inputs(own)
    const given = states.on(tensors)
    const weights = { weight: tensors.f32(weight, [45, 5]), bias: tensors.f32(bias) }
    let begin = 0
    for (const n of [1, 2, 0, 17, 1, 3, 13]) {
      const part = x.subarray(begin * 45, (begin + n) * 45)
      const out = tensors.output('f32', [n, 45])
      causalConv({
        ...{ ...given, x: tensors.f32(part, [n, 45]), ...weights, out, layer, nHeads },
        ...{ cuSeqlens: tensors.i32([0, n]), fromZero: begin === 0 },
      })
      const expected = whole.actual.subarray(begin * 45, (begin + n) * 45)
      expectIdentical(await tensors.read(out), expected, { name: 'out', shape: [n, 45] })
      begin += n
    }
    const shape = [whole.bytes.length]
    expectIdentical(await given.pool.read(), whole.bytes, { name: 'pool', shape })
  })

  test.each([1, 3])('with %i threads the same bits', async (threads) => {
    const own = { lengths: [9, 4, 12], channels: 600, width: 4 }
    const there = await run(backend.tensors, own)
    await backend.withDevice({ threads }, async (_, tensors) => {
      const here = await run(tensors, own)
      const shape = [25, 600]
      expectIdentical(here.actual, there.actual, { name: 'out', shape })
      expectIdentical(here.bytes, there.bytes, { name: 'pool', shape: [there.bytes.length] })
    })
  })

  test('NaN stays in the rows that see it', async () => {
    const { tensors } = backend
    const x = normals(1, 9)
    x[2] = Number.NaN
    const given = new RecurrentStates({ nSeqs: 1, nHeads, convFloats: 2, headFloats: 16 }).on(
      tensors,
    )
    const out = tensors.output('f32', [9, 1])
    causalConv({
      ...{ ...given, x: tensors.f32(x, [9, 1]), weight: tensors.f32([1, 2, 3], [1, 3]), out },
      ...{ cuSeqlens: tensors.i32([0, 9]), layer, nHeads, fromZero: true },
    })
    const found = [...(await tensors.read(out))].flatMap((y, i) => (Number.isNaN(y) ? [i] : []))
    expect(found).toEqual([2, 3, 4])
  })

  /** A call of two sequences that is right. */
  function call(tensors: DeviceTensors) {
    const states = new RecurrentStates({ nSeqs: 2, nHeads, convFloats: 3 * 6, headFloats: 16 })
    const args = {
      ...{ x: tensors.output('f32', [5, 6]), weight: tensors.output('f32', [6, 4]) },
      ...{ out: tensors.output('f32', [5, 6]), ...states.on(tensors), layer, nHeads },
      cuSeqlens: tensors.i32([0, 2, 5]),
    }
    return { args, states }
  }

  const outside: [string, RegExp, (t: DeviceTensors, s: RecurrentStates) => object][] = [
    ['a table before the words', /^states: /, (t, s) => ({ states: t.i32([s.starts[0]!, -2]) })],
    ['a table behind them', /^states: /, (t, s) => ({ states: t.i32([0, s.words.length]) })],
    [
      'a layer outside',
      /^states: /,
      (t, s) => ({ states: t.i32([s.starts[0]!, s.wordOf(1, 1) - 3]) }),
    ],
    ['a layer that no table has', /^states: /, () => ({ layer: 2 ** 31 - 1 })],
    ...[-1, -(2 ** 31), 2 ** 31 - 1].map(
      (unit): [string, RegExp, (t: DeviceTensors, s: RecurrentStates) => object] => [
        ...([`a page at ${unit}`, /^tables: /] as const),
        (t, s) => {
          const words = s.words.slice()
          words[s.wordOf(1, layer)] = unit
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
    causalConv({ ...args, ...fault(tensors, states) })
    const error = { code: 'ERR_ZC_ARGUMENT', op: 'causalConv', message } as const
    await expectRejected(device.sync(), error)
  })

  const refused: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
    ['f16 inputs', (t) => ({ x: t.output('f16', [5, 6]) }), 'ERR_ZC_DTYPE', 'x'],
    ['inputs of one axis', (t) => ({ x: t.output('f32', [30]) }), 'ERR_ZC_SHAPE', 'x'],
    ['a bf16 weight', (t) => ({ weight: t.output('bf16', [6, 4]) }), 'ERR_ZC_DTYPE', 'weight'],
    ['another weight', (t) => ({ weight: t.output('f32', [4, 6]) }), 'ERR_ZC_SHAPE', 'weight'],
    ['a width of 1', (t) => ({ weight: t.output('f32', [6, 1]) }), 'ERR_ZC_UNSUPPORTED', 'weight'],
    ['a width of 9', (t) => ({ weight: t.output('f32', [6, 9]) }), 'ERR_ZC_UNSUPPORTED', 'weight'],
    ['a bf16 bias', (t) => ({ bias: t.output('bf16', [6]) }), 'ERR_ZC_DTYPE', 'bias'],
    ['another bias', (t) => ({ bias: t.output('f32', [5]) }), 'ERR_ZC_SHAPE', 'bias'],
    ['an f16 out', (t) => ({ out: t.output('f16', [5, 6]) }), 'ERR_ZC_DTYPE', 'out'],
    ['another out', (t) => ({ out: t.output('f32', [6, 5]) }), 'ERR_ZC_SHAPE', 'out'],
    ['a pool of floats', (t) => ({ pool: t.output('f32', [99]) }), 'ERR_ZC_DTYPE', 'pool'],
    ['float tables', (t) => ({ tables: t.output('f32', [60]) }), 'ERR_ZC_DTYPE', 'tables'],
    ['tables of two axes', (t) => ({ tables: t.output('i32', [2, 30]) }), 'ERR_ZC_SHAPE', 'tables'],
    ['float states', (t) => ({ states: t.f32([0, 0]) }), 'ERR_ZC_DTYPE', 'states'],
    ['states of two axes', (t) => ({ states: t.i32([0, 0], [2, 1]) }), 'ERR_ZC_SHAPE', 'states'],
    ['float lengths', (t) => ({ cuSeqlens: t.f32([0, 2, 5]) }), 'ERR_ZC_DTYPE', 'cuSeqlens'],
    ['fewer lengths', (t) => ({ cuSeqlens: t.i32([0, 5]) }), 'ERR_ZC_SHAPE', 'cuSeqlens'],
    ['a negative layer', () => ({ layer: -1 }), 'ERR_ZC_ARGUMENT', 'layer'],
    ['half a layer', () => ({ layer: 0.5 }), 'ERR_ZC_ARGUMENT', 'layer'],
    ['no heads', () => ({ nHeads: 0 }), 'ERR_ZC_ARGUMENT', 'nHeads'],
    ['too many heads', () => ({ nHeads: 2 ** 16 + 1 }), 'ERR_ZC_ARGUMENT', 'nHeads'],
  ]
  test.each(refused)('refuses %s', (_, fault, code, argument) => {
    const { tensors } = backend
    const { args } = call(tensors)
    const refuse = () => causalConv({ ...args, ...fault(tensors) })
    expectRefused(refuse, { code, op: 'causalConv', argument })
  })

  test('refuses rows without a sequence', () => {
    const { tensors } = backend
    const none = { states: tensors.i32([]), cuSeqlens: tensors.i32([0]) }
    const fault = { code: 'ERR_ZC_ARGUMENT', op: 'causalConv', argument: 'states' } as const
    expectRefused(() => causalConv({ ...call(tensors).args, ...none }), fault)
  })

  test('refuses an out that is x', () => {
    const { args } = call(backend.tensors)
    const fault = { code: 'ERR_ZC_ARGUMENT', op: 'causalConv', argument: 'out' } as const
    expectRefused(() => causalConv({ ...args, out: args.x }), fault)
  })
})
