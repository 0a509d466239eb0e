import fc from 'fast-check'
import type { ErrorCode } from '../../lib/errors.js'
import { probeAttention, type SaliencyMetric, type Tensor } from '../../lib/ops/index.js'
import {
  type FloatDtype,
  probeAttention as reference,
  flashAttention as referenceAttention,
} from '../../lib/reference/index.js'
import { describeBackends, once } from '../support/backends.js'
import { expectClose, expectIdentical } from '../support/compare.js'
import { type DeviceTensors, floatDtypes } from '../support/device-tensors.js'
import { expectRefused, expectRejected } from '../support/errors.js'
import { propertyRuns } from '../support/properties.js'
import { normals, randomKeys, randomNumbers, storeAs } from '../support/random-data.js'
import { headCounts, headDims } from '../support/shapes.js'
import { tolerance } from '../support/tolerance.js'

interface ProbeShape {
  nHeads: number
  nKvHeads: number
  headDim: number
  kvLen: number
  nProbes: number
  slidingWindow: number
  metric: SaliencyMetric
}

const plain = {
  nHeads: 4,
  nKvHeads: 2,
  headDim: 32,
  slidingWindow: 0,
  metric: 'normalized',
} as const

const shapes: readonly ProbeShape[] = [
  ...headCounts.map((heads) => ({ ...plain, ...heads, kvLen: 33, nProbes: 7 })),
  ...headDims.map((headDim) => ({ ...plain, headDim, kvLen: 31, nProbes: 5 })),
  { ...plain, headDim: 512, kvLen: 150, nProbes: 70 },
  { ...plain, headDim: 512, kvLen: 130, nProbes: 40, slidingWindow: 20 },
  ...[0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129].map((kvLen) => ({
    ...plain,
    kvLen,
    nProbes: Math.ceil(kvLen / 3),
  })),
  { ...plain, kvLen: 70, nProbes: 0 },
  { ...plain, kvLen: 70, nProbes: 70 },
  { ...plain, kvLen: 70, nProbes: 70, metric: 'accumulated' },
  { ...plain, nHeads: 14, kvLen: 129, nProbes: 11, metric: 'accumulated' },
  ...[1, 15, 16, 17, 500].map((slidingWindow) => ({
    ...plain,
    kvLen: 150,
    nProbes: 20,
    slidingWindow,
  })),
  // a group that fills more than one block of rows
  { ...plain, nHeads: 130, nKvHeads: 1, headDim: 16, kvLen: 19, nProbes: 3 },
  // long, with the share of probes that the paper takes
  { ...plain, nHeads: 2, nKvHeads: 1, kvLen: 3001, nProbes: 150 },
]

const nameOf = (s: ProbeShape) =>
  `heads ${s.nHeads}/${s.nKvHeads}, dim ${s.headDim}, ${s.nProbes} probes of ${s.kvLen} keys, ${s.metric}` +
  (s.slidingWindow ? `, window ${s.slidingWindow}` : '')

/** Distinct ascending numbers below n. */
function choose(seed: number, n: number, count: number): number[] {
  const next = randomNumbers(seed)
  return Array.from({ length: n }, (_, i) => ({ i, key: next() }))
    .sort((a, b) => a.key - b.key)
    .slice(0, count)
    .map(({ i }) => i)
    .sort((a, b) => a - b)
}

/** Rows of a causal prefill, of which some are probes, with the LSE that the reference gives them. */
const caseOf = once(
  ({ shape, dtype, seed }: { shape: ProbeShape; dtype: FloatDtype; seed: number }) => {
    const { nHeads, nKvHeads, headDim, kvLen, nProbes, slidingWindow, metric } = shape
    const q = storeAs(dtype, normals(seed, kvLen * nHeads * headDim))
    const k = storeAs(dtype, randomKeys(seed + 1, { nTokens: kvLen, nKvHeads, headDim }))
    const rows = choose(seed, kvLen, nProbes)
    const scale = 1 / Math.sqrt(headDim)
    const common = {
      k: k.values,
      nHeads,
      nKvHeads,
      headDim,
      slidingWindow,
      scale: Math.fround(scale),
    }
    // Only the probes' LSE is needed: one sequence for each of them, of the keys up to its own.
    const lse = new Float32Array(kvLen * nHeads)
    for (const row of rows) {
      const width = nHeads * headDim
      const { lse: own } = referenceAttention({
        ...common,
        q: q.values.subarray(row * width, (row + 1) * width),
        v: k.values,
        cuSeqlensQ: [0, 1],
        cuSeqlensK: [0, row + 1],
        causal: true,
      })
      lse.set(own, row * nHeads)
    }
    const expected = reference({
      ...common,
      q: q.values,
      lse,
      rows,
      positions: rows,
      kvLen,
      normalization: metric,
    })
    return { shape, dtype, q: q.stored, k: k.stored, lse, rows, scale, expected }
  },
)

type Case = ReturnType<typeof caseOf>

async function run(tensors: DeviceTensors, from: Omit<Case, 'expected'>): Promise<Float64Array> {
  const { nHeads, nKvHeads, headDim, kvLen, slidingWindow, metric } = from.shape
  const nRows = from.lse.length / nHeads
  const scores = tensors.output('f32', [nKvHeads, kvLen])
  probeAttention({
    q: tensors.input(from.dtype, from.q as Uint16Array, [nRows, nHeads, headDim]),
    lse: tensors.f32(from.lse, [nRows, nHeads]),
    k: tensors.input(from.dtype, from.k as Uint16Array, [kvLen, nKvHeads, headDim]),
    rows: tensors.i32(from.rows),
    positions: tensors.i32(from.rows),
    scores,
    scale: from.scale,
    slidingWindow,
    metric,
  })
  return tensors.values(scores)
}

describeBackends('probeAttention', (backend) => {
  describe.each(floatDtypes)('%s equals the reference', (dtype) => {
    test.each(shapes.map((shape, index) => ({ name: nameOf(shape), shape, seed: index * 10 })))(
      '$name',
      async ({ shape, seed }) => {
        const own = caseOf({ shape, dtype, seed })
        const scores = await run(backend.tensors, own)
        expectClose(scores, own.expected, {
          name: 'scores',
          shape: [shape.nKvHeads, shape.kvLen],
          tolerance: tolerance.probeScores,
          seed,
        })
      },
    )
  })

  test('a key that no probe sees scores exactly 0', async () => {
    const own = caseOf({ shape: { ...plain, kvLen: 70, nProbes: 3 }, dtype: 'f32', seed: 4 })
    const last = own.rows.at(-1)!
    expect(last).toBeLessThan(69)
    const scores = await run(backend.tensors, own)
    expect([...scores.subarray(last + 1, 70)]).toEqual(new Array(69 - last).fill(0))
  })

  test('positions need not be the rows: probes of a later turn see all earlier keys', async () => {
    const { tensors } = backend
    // two probes at positions 5 and 900 over 4 keys; q = 0 makes every score e^-lse
    const scores = tensors.output('f32', [1, 4])
    probeAttention({
      q: tensors.f32(new Float32Array(3 * 16), [3, 1, 16]),
      lse: tensors.f32([0, Math.log(2), Math.log(4)], [3, 1]),
      k: tensors.f32(normals(1, 64), [4, 1, 16]),
      rows: tensors.i32([1, 2]),
      positions: tensors.i32([2, 900]),
      scores,
      scale: 1,
    })
    const found = await tensors.values(scores)
    expectClose(found, [3 / 8, 3 / 8, 3 / 8, 1 / 4], {
      name: 'scores',
      shape: [4],
      tolerance: 1e-6,
    })
  })

  describe.each(floatDtypes)('of several layers, %s', (dtype) => {
    test.each([
      { nLayers: 1, nHeads: 4, nKvHeads: 2, headDim: 32 },
      { nLayers: 3, nHeads: 4, nKvHeads: 2, headDim: 32 },
      { nLayers: 5, nHeads: 7, nKvHeads: 1, headDim: 80 },
      { nLayers: 2, nHeads: 3, nKvHeads: 3, headDim: 128 },
      { nLayers: 2, nHeads: 2, nKvHeads: 1, headDim: 512 },
    ])('%j: the reference, and each layer by itself to the bit', async (shape) => {
      const { tensors } = backend
      const { nLayers, nHeads, nKvHeads, headDim } = shape
      const [nRows, kvLen, slidingWindow] = [9, 100, 61]
      const scale = Math.fround(1 / Math.sqrt(headDim))
      const q = storeAs(dtype, normals(1, nLayers * nRows * nHeads * headDim))
      const keys = { nTokens: kvLen, nKvHeads: nLayers * nKvHeads, headDim }
      const k = storeAs(dtype, randomKeys(2, keys))
      const lse = normals(3, nLayers * nRows * nHeads).map((x) => Math.fround(5 + x / 4))
      const rows = [7, 0, 3, 8]
      const positions = [12, 40, 77, 99]
      const all = {
        q: tensors.input(dtype, q.stored as Uint16Array, [nLayers, nRows, nHeads, headDim]),
        lse: tensors.f32(lse, [nLayers, nRows, nHeads]),
      }
      const score = (of: { q: Tensor; lse: Tensor; k: Tensor }) => {
        const scores = tensors.output('f32', [of.k.shape[1], kvLen])
        const probes = { rows: tensors.i32(rows), positions: tensors.i32(positions) }
        probeAttention({ ...of, ...probes, scores, scale, slidingWindow })
        return tensors.values(scores)
      }
      const keysOf = (first: number, count: number) => {
        const own = new (k.stored.constructor as Uint16ArrayConstructor)(
          kvLen * count * nKvHeads * headDim,
        )
        const width = nKvHeads * headDim
        for (let j = 0; j < kvLen; j++) {
          const from = (j * nLayers + first) * width
          own.set((k.stored as Uint16Array).subarray(from, from + count * width), j * count * width)
        }
        return tensors.input(dtype, own, [kvLen, count * nKvHeads, headDim])
      }
      const scores = await score({ ...all, k: keysOf(0, nLayers) })
      const expected = reference({
        ...{ q: q.values, lse, k: k.values, rows, positions, scale, slidingWindow, kvLen },
        ...shape,
        normalization: 'normalized',
      })
      const name = { name: 'scores', shape: [nLayers * nKvHeads, kvLen] }
      expectClose(scores, expected, { ...name, tolerance: tolerance.probeScores })
      for (let layer = 0; layer < nLayers; layer++) {
        const heads = nRows * nHeads
        const alone = await score({
          q: tensors.own(all.q.view([nRows, nHeads, headDim], layer * heads * headDim)),
          lse: tensors.own(all.lse.view([nRows, nHeads], layer * heads)),
          k: keysOf(layer, 1),
        })
        const size = nKvHeads * kvLen
        expectIdentical(scores.slice(layer * size, (layer + 1) * size), alone, name)
      }
    })
  })

  test.each([1, 2, 3])('does the same bit for bit with %i threads', async (threads) => {
    const own = caseOf({ shape: { ...plain, kvLen: 150, nProbes: 40 }, dtype: 'f32', seed: 9 })
    const here = await run(backend.tensors, own)
    const there = await backend.withDevice({ threads }, (_, tensors) => run(tensors, own))
    expectIdentical(there, here, { name: 'scores', shape: [2, 150] })
  })

  test('property: rows that are no probes do not change the saliency', async () => {
    const inputs = fc.record({
      kvLen: fc.integer({ min: 1, max: 90 }),
      share: fc.double({ min: 0.05, max: 1, noNaN: true }),
      nFurther: fc.integer({ min: 1, max: 9 }),
      seed: fc.nat(),
    })
    const property = fc.asyncProperty(inputs, async ({ kvLen, share, nFurther, seed }) => {
      const shape = { ...plain, kvLen, nProbes: Math.ceil(share * kvLen) }
      const own = caseOf({ shape, dtype: 'f32', seed })
      const width = plain.nHeads * plain.headDim
      const further = {
        ...own,
        q: Float32Array.of(...own.q, ...normals(seed + 7, nFurther * width)),
        lse: Float32Array.of(...own.lse, ...normals(seed + 8, nFurther * plain.nHeads)),
      }
      const { tensors } = backend
      const [few, more] = [await run(tensors, own), await run(tensors, further)]
      expectIdentical(more, few, { name: 'scores', shape: [plain.nKvHeads, kvLen], seed })
      tensors.dispose()
    })
    await fc.assert(property, propertyRuns(15))
  })

  describe('refuses', () => {
    const call = (tensors: DeviceTensors) => ({
      q: tensors.output('f32', [3, 4, 32]),
      lse: tensors.f32(new Float32Array(12), [3, 4]),
      k: tensors.output('f32', [5, 2, 32]),
      rows: tensors.i32([0, 2]),
      positions: tensors.i32([2, 4]),
      scores: tensors.output('f32', [2, 5]),
      scale: 0.5,
    })

    const refused: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
      ['another dtype of k', (t) => ({ k: t.output('bf16', [5, 2, 32]) }), 'ERR_ZC_DTYPE', 'k'],
      [
        'heads that do not divide',
        (t) => ({ k: t.output('f32', [5, 3, 32]) }),
        'ERR_ZC_SHAPE',
        'k',
      ],
      ['no heads', (t) => ({ q: t.output('f32', [3, 0, 32]) }), 'ERR_ZC_SHAPE', 'q'],
      ['no layers', (t) => ({ q: t.output('f32', [0, 3, 4, 32]) }), 'ERR_ZC_SHAPE', 'q'],
      ['q of two axes', (t) => ({ q: t.output('f32', [3, 128]) }), 'ERR_ZC_SHAPE', 'q'],
      ['layers unlike k', (t) => ({ q: t.output('f32', [3, 3, 4, 32]) }), 'ERR_ZC_SHAPE', 'k'],
      [
        'heads of a layer that do not divide',
        (t) => ({ q: t.output('f32', [2, 3, 3, 32]), k: t.output('f32', [5, 4, 32]) }),
        'ERR_ZC_SHAPE',
        'k',
      ],
      ['lse of one layer', (t) => ({ q: t.output('f32', [2, 3, 4, 32]) }), 'ERR_ZC_SHAPE', 'lse'],
      ['lse unlike q', (t) => ({ lse: t.output('f32', [2, 4]) }), 'ERR_ZC_SHAPE', 'lse'],
      ['f16 lse', (t) => ({ lse: t.output('f16', [3, 4]) }), 'ERR_ZC_DTYPE', 'lse'],
      ['float rows', (t) => ({ rows: t.f32([0, 2]) }), 'ERR_ZC_DTYPE', 'rows'],
      ['fewer positions', (t) => ({ positions: t.i32([1]) }), 'ERR_ZC_SHAPE', 'positions'],
      ['scores unlike k', (t) => ({ scores: t.output('f32', [2, 4]) }), 'ERR_ZC_SHAPE', 'scores'],
      ['scale -1', () => ({ scale: -1 }), 'ERR_ZC_ARGUMENT', 'scale'],
      ['a negative window', () => ({ slidingWindow: -3 }), 'ERR_ZC_ARGUMENT', 'slidingWindow'],
    ]
    test.each(refused)('%s', (_, fault, code, argument) => {
      const { tensors } = backend
      const refuse = () => probeAttention({ ...call(tensors), ...fault(tensors) })
      expectRefused(refuse, { code, op: 'probeAttention', argument })
    })

    test.each([3, -1, 2147483647, -2147483648])(
      'probe row %i of 3, at the next sync',
      async (row) => {
        const { tensors, device } = backend
        probeAttention({ ...call(tensors), rows: tensors.i32([0, row]) })
        const fault = { code: 'ERR_ZC_ARGUMENT', op: 'probeAttention', message: /^rows: / } as const
        await expectRejected(device.sync(), fault)
      },
    )

    test('nothing: positions may be anything', async () => {
      const { tensors } = backend
      const args = { ...call(tensors), positions: tensors.i32([-2147483648, 2147483647]) }
      args.q.write(new Float32Array(3 * 4 * 32))
      args.k.write(new Float32Array(5 * 2 * 32))
      probeAttention(args)
      expect([...(await tensors.values(args.scores))]).toEqual(new Array(10).fill(2)) // e^0, 2 heads
    })
  })
})
