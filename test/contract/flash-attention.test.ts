import fc from 'fast-check'
import type { ErrorCode } from '../../lib/errors.js'
import { flashAttention, mergeAttention, type Tensor } from '../../lib/ops/index.js'
import { type FloatDtype, flashAttention as reference } from '../../lib/reference/index.js'
import { describeBackends, once } from '../support/backends.js'
import { expectClose, expectIdentical } from '../support/compare.js'
import { type DeviceTensors, floatDtypes } from '../support/device-tensors.js'
import { expectRefused, expectRejected } from '../support/errors.js'
import { propertyRuns } from '../support/properties.js'
import { cumulative, normals, randomKeys, randomValues, storeAs } from '../support/random-data.js'
import { type AttentionShape, attentionShapes } from '../support/shapes.js'
import { attentionTolerance, tolerance } from '../support/tolerance.js'

const square = (length: number) => ({ qLen: length, kvLen: length })
const plain = { nHeads: 2, nKvHeads: 1, headDim: 32, causal: true, slidingWindow: 0 }

/** What shapes.ts leaves out. */
const furtherShapes: readonly AttentionShape[] = [
  { ...plain, headDim: 128, sequences: [127, 128, 129].map(square) },
  { ...plain, headDim: 16, sequences: [square(33)] },
  { ...plain, headDim: 80, sequences: [square(33)] },
  // a group that fills more than one block of rows
  { ...plain, nHeads: 130, headDim: 16, sequences: [square(3)] },
  { ...plain, nHeads: 28, nKvHeads: 4, headDim: 64, sequences: [square(21)] },
  // a few thousand keys
  { ...plain, nHeads: 4, sequences: [{ qLen: 5, kvLen: 4099 }] },
  { ...plain, sequences: [{ qLen: 70, kvLen: 2051 }], slidingWindow: 1000 },
]

const shapes = [...attentionShapes, ...furtherShapes]

function nameOf({ nHeads, nKvHeads, headDim, sequences, causal, slidingWindow }: AttentionShape) {
  const lengths = sequences.map(({ qLen, kvLen }) => `${qLen}x${kvLen}`).join(' ')
  const mask = `${causal ? 'causal' : 'full'}${slidingWindow ? `, window ${slidingWindow}` : ''}`
  return `heads ${nHeads}/${nKvHeads}, dim ${headDim}, [${lengths}], ${mask}`
}

/** Inputs as the dtype stores them, and the reference's result for exactly these. */
function makeCase({
  shape,
  dtype,
  seed,
}: {
  shape: AttentionShape
  dtype: FloatDtype
  seed: number
}) {
  const { nHeads, nKvHeads, headDim, sequences, causal, slidingWindow } = shape
  const cuSeqlensQ = cumulative(sequences.map(({ qLen }) => qLen))
  const cuSeqlensK = cumulative(sequences.map(({ kvLen }) => kvLen))
  const totalQ = cuSeqlensQ.at(-1)!
  const kvShape = { nTokens: cuSeqlensK.at(-1)!, nKvHeads, headDim }
  const q = storeAs(dtype, normals(seed, totalQ * nHeads * headDim))
  const k = storeAs(dtype, randomKeys(seed + 1, kvShape))
  const v = storeAs(dtype, randomValues(seed + 2, kvShape))
  const scale = 1 / Math.sqrt(headDim)
  const options = { q: q.values, k: k.values, v: v.values, cuSeqlensQ, cuSeqlensK }
  const expected = reference({
    ...options,
    nHeads,
    nKvHeads,
    headDim,
    scale: Math.fround(scale),
    causal,
    slidingWindow,
  })
  return { shape, dtype, seed, q, k, v, cuSeqlensQ, cuSeqlensK, scale, totalQ, expected }
}

type Case = ReturnType<typeof makeCase>
const caseOf = once(makeCase)

/** Enqueues a case; the results stay on the device. */
function enqueue(
  tensors: DeviceTensors,
  from: Omit<Case, 'expected'>,
): { out: Tensor; lse: Tensor } {
  const { shape, dtype, q, k, v, cuSeqlensQ, cuSeqlensK, scale, totalQ } = from
  const { nHeads, nKvHeads, headDim, causal, slidingWindow } = shape
  const kvShape = [cuSeqlensK.at(-1)!, nKvHeads, headDim]
  const out = tensors.output(dtype, [totalQ, nHeads, headDim])
  const lse = tensors.output('f32', [totalQ, nHeads])
  flashAttention({
    q: tensors.input(dtype, q.stored as Uint16Array, [totalQ, nHeads, headDim]),
    k: tensors.input(dtype, k.stored as Uint16Array, kvShape),
    v: tensors.input(dtype, v.stored as Uint16Array, kvShape),
    out,
    lse,
    cuSeqlensQ: tensors.i32(cuSeqlensQ),
    cuSeqlensK: tensors.i32(cuSeqlensK),
    scale,
    causal,
    slidingWindow,
  })
  return { out, lse }
}

async function run(tensors: DeviceTensors, from: Omit<Case, 'expected'>) {
  const { out, lse } = enqueue(tensors, from)
  return { out: await tensors.values(out), lse: await tensors.values(lse) }
}

describeBackends('flashAttention', (backend) => {
  describe.each(floatDtypes)('%s equals the reference', (dtype) => {
    test.each(shapes.map((shape, index) => ({ name: nameOf(shape), shape, seed: index * 10 })))(
      '$name',
      async ({ shape, seed }) => {
        const own = caseOf({ shape, dtype, seed })
        const { out, lse } = await run(backend.tensors, own)
        const { nHeads, headDim } = shape
        expectClose(out, own.expected.out, {
          name: 'out',
          shape: [own.totalQ, nHeads, headDim],
          tolerance:
            dtype === 'bf16' && headDim <= 32
              ? tolerance.bf16SmallHeads
              : attentionTolerance[dtype],
          seed,
        })
        expectClose(lse, own.expected.lse, {
          name: 'lse',
          shape: [own.totalQ, nHeads],
          tolerance: tolerance.lse,
          rowLength: 1,
          floor: 1,
          seed,
        })
      },
    )
  })

  test('a row that sees no key gets exactly 0 and -infinity', async () => {
    const shape = {
      ...plain,
      sequences: [
        { qLen: 20, kvLen: 3 },
        { qLen: 2, kvLen: 0 },
      ],
    }
    const { out, lse } = await run(backend.tensors, caseOf({ shape, dtype: 'f16', seed: 5 }))
    const blind = [...Array.from({ length: 17 }, (_, i) => i), 20, 21]
    for (const row of blind) {
      const width = plain.nHeads * plain.headDim
      expect(out.subarray(row * width, (row + 1) * width).every((x) => x === 0)).toBe(true)
      expect([...lse.subarray(row * 2, row * 2 + 2)]).toEqual([-Infinity, -Infinity])
    }
  })

  describe('does the same bit for bit', () => {
    const shape = {
      ...plain,
      nHeads: 14,
      nKvHeads: 2,
      headDim: 64,
      sequences: [
        square(67),
        { qLen: 1, kvLen: 130 },
        { qLen: 0, kvLen: 3 },
        { qLen: 9, kvLen: 70 },
      ],
    }

    test.each([1, 2, 3, 5])('with %i threads', async (threads) => {
      const own = caseOf({ shape, dtype: 'f32', seed: 77 })
      const here = await run(backend.tensors, own)
      const there = await backend.withDevice({ threads }, (_, tensors) => run(tensors, own))
      expectIdentical(there.out, here.out, { name: 'out', shape: [own.totalQ, 14, 64], seed: 77 })
      expectIdentical(there.lse, here.lse, { name: 'lse', shape: [own.totalQ, 14], seed: 77 })
    })

    test('for a sequence alone and in a batch', async () => {
      const own = caseOf({ shape, dtype: 'bf16', seed: 78 })
      const batch = await run(backend.tensors, own)
      const { nHeads, nKvHeads, headDim } = shape
      for (const [index, sequence] of shape.sequences.entries()) {
        const rowsOf = (stored: Float32Array | Uint16Array, cu: Int32Array, width: number) =>
          stored.slice(cu[index] * width, cu[index + 1] * width)
        const alone = await run(backend.tensors, {
          ...own,
          shape: { ...shape, sequences: [sequence] },
          q: { ...own.q, stored: rowsOf(own.q.stored, own.cuSeqlensQ, nHeads * headDim) },
          k: { ...own.k, stored: rowsOf(own.k.stored, own.cuSeqlensK, nKvHeads * headDim) },
          v: { ...own.v, stored: rowsOf(own.v.stored, own.cuSeqlensK, nKvHeads * headDim) },
          cuSeqlensQ: Int32Array.of(0, sequence.qLen),
          cuSeqlensK: Int32Array.of(0, sequence.kvLen),
          totalQ: sequence.qLen,
        })
        const first = own.cuSeqlensQ[index] * nHeads
        const last = own.cuSeqlensQ[index + 1] * nHeads
        expectIdentical(alone.out, batch.out.slice(first * headDim, last * headDim), {
          name: `out of sequence ${index}`,
          shape: [sequence.qLen, nHeads, headDim],
        })
        expectIdentical(alone.lse, batch.lse.slice(first, last), {
          name: `lse of sequence ${index}`,
          shape: [sequence.qLen, nHeads],
        })
      }
    })
  })

  describe('in slices of rows does the same bit for bit', () => {
    // Slices begin and end under, at and over blocks of keys and of rows.
    const cuts = [0, 1, 63, 64, 70, 128, 200, 256, 257, 333]
    test.each([
      { nHeads: 2, nKvHeads: 2, headDim: 64, slidingWindow: 0 },
      { nHeads: 6, nKvHeads: 2, headDim: 80, slidingWindow: 0 },
      { nHeads: 4, nKvHeads: 1, headDim: 32, slidingWindow: 90 },
      { nHeads: 1, nKvHeads: 1, headDim: 512, slidingWindow: 0 },
    ])('heads $nHeads/$nKvHeads, dim $headDim, window $slidingWindow', async (heads) => {
      const length = cuts.at(-1)!
      const shape = { ...plain, ...heads, sequences: [square(length)] }
      const { nHeads, nKvHeads, headDim } = shape
      const own = caseOf({ shape, dtype: 'f16', seed: 79 })
      const whole = await run(backend.tensors, own)
      for (const [index, last] of cuts.slice(1).entries()) {
        const first = cuts[index]
        const width = nHeads * headDim
        const slice = await run(backend.tensors, {
          ...own,
          shape: { ...shape, sequences: [{ qLen: last - first, kvLen: last }] },
          q: { ...own.q, stored: own.q.stored.slice(first * width, last * width) },
          k: { ...own.k, stored: own.k.stored.slice(0, last * nKvHeads * headDim) },
          v: { ...own.v, stored: own.v.stored.slice(0, last * nKvHeads * headDim) },
          cuSeqlensQ: Int32Array.of(0, last - first),
          cuSeqlensK: Int32Array.of(0, last),
          totalQ: last - first,
        })
        expectIdentical(slice.out, whole.out.slice(first * width, last * width), {
          name: `out of rows ${first} to ${last}`,
          shape: [last - first, nHeads, headDim],
        })
        expectIdentical(slice.lse, whole.lse.slice(first * nHeads, last * nHeads), {
          name: `lse of rows ${first} to ${last}`,
          shape: [last - first, nHeads],
        })
      }
    })
  })

  describe('NaN and infinities reach the rows that see them and no other', () => {
    const length = 150
    const shape = { ...plain, nHeads: 4, nKvHeads: 2, sequences: [square(length)] }
    const broken = [
      { part: 'k', value: Number.NaN },
      { part: 'v', value: Number.NaN },
      { part: 'v', value: Number.POSITIVE_INFINITY },
    ] as const

    const faults = [0, 40].flatMap((slidingWindow) =>
      [0, 5, 64, 101, 149].flatMap((position) =>
        broken.map((fault) => ({ ...fault, position, slidingWindow })),
      ),
    )
    // In either half of a wide head's channels, which a GPU leaves to different warps.
    const wide = [7, 300].flatMap((channel) =>
      broken.flatMap((fault) =>
        [0, 40].map((slidingWindow) => ({
          ...{ ...fault, slidingWindow, channel, headDim: 512, position: 101 },
        })),
      ),
    )
    const all = [...faults.map((fault) => ({ ...fault, headDim: 32, channel: 7 })), ...wide]
    test.each([
      ...all.map((fault) => ({ ...fault, dtype: 'f32' as const })),
      ...all.map((fault) => ({ ...fault, dtype: 'bf16' as const })),
    ])(
      '$dtype: $part $value at $position, $channel of $headDim, window $slidingWindow',
      async ({ part, value, ...fault }) => {
        const { position, slidingWindow, dtype, headDim, channel } = fault
        const { nHeads, nKvHeads } = shape
        const own = caseOf({ shape: { ...shape, headDim, slidingWindow }, dtype, seed: 80 })
        const stored = own[part].stored.slice()
        // One channel of KV head 1, which query heads 2 and 3 share.
        stored[(position * nKvHeads + 1) * headDim + channel] =
          dtype === 'f32' ? value : storeAs(dtype, [value]).stored[0]
        const sound = await run(backend.tensors, own)
        const { out } = await run(backend.tensors, { ...own, [part]: { ...own[part], stored } })
        for (let row = 0; row < length; row++) {
          const sees = position <= row && (slidingWindow === 0 || position > row - slidingWindow)
          for (let head = 0; head < nHeads; head++) {
            const begin = (row * nHeads + head) * headDim
            const name = `out of row ${row}, head ${head}`
            const values = out.slice(begin, begin + headDim)
            if (sees && head >= 2) {
              expect({ name, finite: Number.isFinite(values[channel]) }).toEqual({
                name,
                finite: false,
              })
            } else {
              const expected = sound.out.slice(begin, begin + headDim)
              expectIdentical(values, expected, { name, shape: [headDim] })
            }
          }
        }
      },
    )
  })

  test('property: attention split into two sets of keys and merged equals unsplit', async () => {
    const lengths = fc.record({
      qLen: fc.integer({ min: 1, max: 20 }),
      kvLen: fc.integer({ min: 1, max: 200 }),
      split: fc.double({ min: 0, max: 1, noNaN: true }),
      seed: fc.nat(),
    })
    const property = fc.asyncProperty(lengths, async ({ qLen, kvLen, split, seed }) => {
      const { tensors } = backend
      const shape = { ...plain, causal: false, sequences: [{ qLen, kvLen }] }
      const whole = makeCase({ shape, dtype: 'f32', seed })
      const cut = Math.round(split * kvLen)
      const part = (first: number, last: number) =>
        enqueue(tensors, {
          ...whole,
          shape: { ...shape, sequences: [{ qLen, kvLen: last - first }] },
          k: { ...whole.k, stored: whole.k.stored.slice(first * 32, last * 32) },
          v: { ...whole.v, stored: whole.v.stored.slice(first * 32, last * 32) },
          cuSeqlensK: Int32Array.of(0, last - first),
        })
      const a = part(0, cut)
      const b = part(cut, kvLen)
      const out = tensors.output('f32', [qLen, 2, 32])
      const lse = tensors.output('f32', [qLen, 2])
      mergeAttention({ outA: a.out, lseA: a.lse, outB: b.out, lseB: b.lse, out, lse })
      const { out: expected, lse: expectedLse } = whole.expected
      const { f32: allowed } = attentionTolerance
      expectClose(await tensors.values(out), expected, {
        name: 'out',
        shape: [qLen, 2, 32],
        tolerance: allowed + tolerance.merge,
        seed,
      })
      expectClose(await tensors.values(lse), expectedLse, {
        name: 'lse',
        shape: [qLen, 2],
        tolerance: tolerance.lse,
        rowLength: 1,
        floor: 1,
        seed,
      })
      tensors.dispose()
    })
    await fc.assert(property, propertyRuns(15))
  })

  describe('refuses', () => {
    /** A call that is right, for one fault at a time. */
    function call(tensors: DeviceTensors) {
      return {
        q: tensors.output('f32', [3, 4, 32]),
        k: tensors.output('f32', [5, 2, 32]),
        v: tensors.output('f32', [5, 2, 32]),
        out: tensors.output('f32', [3, 4, 32]),
        lse: tensors.output('f32', [3, 4]),
        cuSeqlensQ: tensors.i32([0, 3]),
        cuSeqlensK: tensors.i32([0, 5]),
        scale: 0.5,
        causal: true,
      }
    }

    const refused: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
      ['another dtype of k', (t) => ({ k: t.output('f16', [5, 2, 32]) }), 'ERR_ZC_DTYPE', 'k'],
      ['integers for q', (t) => ({ q: t.output('i32', [3, 4, 32]) }), 'ERR_ZC_DTYPE', 'q'],
      ['another rank', (t) => ({ q: t.output('f32', [3, 128]) }), 'ERR_ZC_SHAPE', 'q'],
      ['another head_dim', (t) => ({ k: t.output('f32', [5, 2, 16]) }), 'ERR_ZC_SHAPE', 'k'],
      [
        'heads that do not divide',
        (t) => ({ k: t.output('f32', [5, 3, 32]) }),
        'ERR_ZC_SHAPE',
        'k',
      ],
      ['no KV heads', (t) => ({ k: t.output('f32', [5, 0, 32]) }), 'ERR_ZC_SHAPE', 'k'],
      ['no heads', (t) => ({ q: t.output('f32', [3, 0, 32]) }), 'ERR_ZC_SHAPE', 'q'],
      ['2^40 heads', (t) => ({ q: t.output('f32', [0, 2 ** 40, 32]) }), 'ERR_ZC_SHAPE', 'q'],
      ['v unlike k', (t) => ({ v: t.output('f32', [4, 2, 32]) }), 'ERR_ZC_SHAPE', 'v'],
      ['out unlike q', (t) => ({ out: t.output('f32', [3, 4, 16]) }), 'ERR_ZC_SHAPE', 'out'],
      ['lse unlike q', (t) => ({ lse: t.output('f32', [3, 2]) }), 'ERR_ZC_SHAPE', 'lse'],
      ['no cuSeqlensQ', (t) => ({ cuSeqlensQ: t.i32([]) }), 'ERR_ZC_SHAPE', 'cuSeqlensQ'],
      ['float cuSeqlensQ', (t) => ({ cuSeqlensQ: t.f32([0, 3]) }), 'ERR_ZC_DTYPE', 'cuSeqlensQ'],
      ['fewer cuSeqlensK', (t) => ({ cuSeqlensK: t.i32([0]) }), 'ERR_ZC_SHAPE', 'cuSeqlensK'],
      ['scale 0', () => ({ scale: 0 }), 'ERR_ZC_ARGUMENT', 'scale'],
      ['scale NaN', () => ({ scale: Number.NaN }), 'ERR_ZC_ARGUMENT', 'scale'],
      ['a negative window', () => ({ slidingWindow: -1 }), 'ERR_ZC_ARGUMENT', 'slidingWindow'],
      ['half a window', () => ({ slidingWindow: 1.5 }), 'ERR_ZC_ARGUMENT', 'slidingWindow'],
    ]
    test.each(refused)('%s', (_, fault, code, argument) => {
      const { tensors } = backend
      const refuse = () => flashAttention({ ...call(tensors), ...fault(tensors) })
      expectRefused(refuse, { code, op: 'flashAttention', argument })
    })

    test.each([24, 8, 264, 528])('head_dim %i', (headDim) => {
      const { tensors } = backend
      const refuse = () =>
        flashAttention({
          ...call(tensors),
          q: tensors.output('f32', [3, 4, headDim]),
          k: tensors.output('f32', [5, 2, headDim]),
          v: tensors.output('f32', [5, 2, headDim]),
          out: tensors.output('f32', [3, 4, headDim]),
        })
      expectRefused(refuse, { code: 'ERR_ZC_UNSUPPORTED', argument: 'q' })
    })

    test.each([
      ['not from 0', [1, 3]],
      ['beyond the rows', [0, 4]],
      ['short of the rows', [0, 2]],
      ['falling', [0, 5, 3]],
      ['negative', [0, -2147483648, 3]],
    ])('cuSeqlensQ %s, at the next sync', async (_, cuSeqlensQ) => {
      const { tensors, device } = backend
      const cuSeqlensK = cuSeqlensQ.map((_, i) => (i === 0 ? 0 : 5))
      flashAttention({
        ...call(tensors),
        cuSeqlensQ: tensors.i32(cuSeqlensQ),
        cuSeqlensK: tensors.i32(cuSeqlensK),
      })
      await expectRejected(device.sync(), {
        code: 'ERR_ZC_ARGUMENT',
        op: 'flashAttention',
        message: /^cuSeqlensQ: /,
      })
    })
  })
})
