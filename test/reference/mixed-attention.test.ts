import {
  flashAttention,
  keyRows,
  type MixedAttentionOptions,
  mergeAttention,
  mixedAttention,
  mixedAttentionFolded,
  packSegment,
  type Segment,
  type SegmentFormat,
  selectSalient,
  valueRows,
} from '../../lib/reference'
import { expectClose } from '../support/compare'
import { normals, randomKeys, randomValues } from '../support/random-data'
import { headCounts, headDims } from '../support/shapes'
import { tolerance } from '../support/tolerance'

const both = [mixedAttention, mixedAttentionFolded]

describe.each(both)('%p, numbers by hand', (attention) => {
  const heads1 = { nHeads: 1, nKvHeads: 1, headDim: 2, scale: 1 }

  // Keys [0, 1], [ln 3, 1] as codes; values [4, 8], [0, 4] as c (code scale + zero), c = [2, 4].
  const coded: Segment = {
    nTokens: 2,
    kCodes: [0, 3, 1, 3],
    kScale: [Math.log(3), 0],
    kZero: [0, 1],
    vCodes: [2, 2, 1, 3],
    vScale: [1, 0.5],
    vZero: [0, -0.5],
    vChannel: [2, 4],
  }

  test('codes stand for their values', () => {
    expect([...keyRows(coded, 0, 2)]).toEqual([0, 1, Math.log(3), 1])
    expect([...valueRows(coded, 0, 2)]).toEqual([4, 8, 0, 4])
    const { out, lse } = attention({ q: [1, 0], segments: [coded], ...heads1 })
    expectClose(out, [1, 5], { name: 'out', shape: [1, 1, 2], tolerance: tolerance.double })
    expectClose(lse, [Math.log(4)], { name: 'lse', shape: [1], tolerance: tolerance.double })
  })

  test('segments share one softmax, plain rows among them', () => {
    // a third key of score ln 4, as heavy as both others together
    const tail: Segment = { nTokens: 1, k: [Math.log(4), 7], v: [3, 3] }
    const { out, lse } = attention({ q: [1, 0], segments: [coded, tail], ...heads1 })
    expectClose(out, [2, 4], { name: 'out', shape: [1, 1, 2], tolerance: tolerance.double })
    expectClose(lse, [Math.log(8)], { name: 'lse', shape: [1], tolerance: tolerance.double })
  })

  test('no tokens: out 0, lse -infinity', () => {
    for (const segments of [[], [{ nTokens: 0, k: [], v: [] }]]) {
      const { out, lse } = attention({ q: [1, 0], segments, ...heads1 })
      expect([...out, ...lse]).toEqual([0, 0, Number.NEGATIVE_INFINITY])
    }
  })

  test('positions bound what a row sees', () => {
    const tail: Segment = {
      nTokens: 3,
      positions: [2, 0, 1],
      k: new Float64Array(6),
      v: [9, 9, 1, 1, 5, 5],
    }
    const rows = {
      q: new Float64Array(8),
      queryPositions: [0, 1, 2, 5],
      segments: [tail],
      ...heads1,
    }
    const firstChannel = ({ out }: { out: Float64Array }) => [...out].filter((_, i) => i % 2 === 0)
    expect(firstChannel(attention(rows))).toEqual([1, 3, 5, 5])
    const windowed = attention({ ...rows, slidingWindow: 2 })
    expect(firstChannel(windowed)).toEqual([1, 3, 7, 0])
    expect(windowed.lse[3]).toBe(Number.NEGATIVE_INFINITY)
  })
})

/**
 * A cache as ZipCache leaves it: salient 4 bits, regular 2 bits, one more format pair, an f16 tail.
 */
function randomCache(seed: number, nTokens: number, heads: { nKvHeads: number; headDim: number }) {
  const k = randomKeys(seed, { nTokens, ...heads })
  const v = randomValues(seed + 1, { nTokens, ...heads })
  const { nKvHeads } = heads
  const tailLength = Math.floor(nTokens / 5)
  const n = nTokens - tailLength
  const { salient, regular } = selectSalient({
    scores: normals(seed + 2, nKvHeads * n),
    nHeads: nKvHeads,
    n,
    count: Math.floor(n * 0.6),
  })
  const tail = Int32Array.from({ length: nKvHeads * tailLength }, (_, i) => n + (i % tailLength))
  const pack = (rows: Int32Array, keyFormat: SegmentFormat, valueFormat: SegmentFormat) =>
    packSegment({ k, v, rows, ...heads, keyFormat, valueFormat })
  return {
    k,
    v,
    segments: [pack(salient, 'u4', 'u3'), pack(regular, 'u2', 'u8'), pack(tail, 'f16', 'bf16')],
  }
}

const cases = [
  ...headCounts.map((heads) => ({ ...heads, headDim: 32, nTokens: 65, qLen: 2 })),
  ...headDims.map((headDim) => ({ nHeads: 4, nKvHeads: 1, headDim, nTokens: 40, qLen: 1 })),
  ...[1, 2, 7, 17, 257].map((nTokens) => ({
    nHeads: 4,
    nKvHeads: 2,
    headDim: 32,
    nTokens,
    qLen: 3,
  })),
]

describe.each(cases)(
  'mixedAttention, $nHeads/$nKvHeads heads, d $headDim, $nTokens tokens, $qLen rows',
  (shape) => {
    const { nHeads, nKvHeads, headDim, nTokens, qLen } = shape
    const seed = nTokens * 1000 + headDim
    const { segments } = randomCache(seed, nTokens, { nKvHeads, headDim })
    const q = normals(seed + 9, qLen * nHeads * headDim)
    const options: MixedAttentionOptions = {
      q,
      segments,
      nHeads,
      nKvHeads,
      headDim,
      scale: headDim ** -0.5,
    }
    const outShape = [qLen, nHeads, headDim]
    const result = mixedAttention(options)

    function expectSame(actual: { out: Float64Array; lse: Float64Array }, expected = result) {
      expectClose(actual.out, expected.out, {
        name: 'out',
        shape: outShape,
        tolerance: 1e-11,
        seed,
      })
      expectClose(actual.lse, expected.lse, {
        name: 'lse',
        shape: [qLen, nHeads],
        tolerance: 1e-11,
        seed,
        floor: 1,
      })
    }

    test('the fold algebra gives the same', () => {
      expectSame(mixedAttentionFolded(options))
    })

    test('is flashAttention over the dequantized rows', () => {
      const interleaved = (rowsOf: typeof keyRows) => {
        const rows = new Float64Array(nTokens * nKvHeads * headDim)
        for (let kvHead = 0; kvHead < nKvHeads; kvHead++) {
          const headRows = segments.flatMap((segment) => [...rowsOf(segment, kvHead, headDim)])
          headRows.forEach((x, i) => {
            rows[(Math.floor(i / headDim) * nKvHeads + kvHead) * headDim + (i % headDim)] = x
          })
        }
        return rows
      }
      const plain = flashAttention({
        q,
        k: interleaved(keyRows),
        v: interleaved(valueRows),
        causal: false,
        nHeads,
        nKvHeads,
        headDim,
        scale: options.scale,
        cuSeqlensQ: [0, qLen],
        cuSeqlensK: [0, nTokens],
      })
      expectSame(plain)
    })

    test('the order of segments does not matter, nor splitting and merging them', () => {
      expectSame(mixedAttention({ ...options, segments: segments.toReversed() }))
      const [first, ...rest] = segments
      const a = mixedAttention({ ...options, segments: [first] })
      const b = mixedAttention({ ...options, segments: rest })
      expectSame(mergeAttention({ outA: a.out, lseA: a.lse, outB: b.out, lseB: b.lse, headDim }))
    })

    test('positions that all rows see change nothing; a window agrees with the fold', () => {
      const queryPositions = Array.from({ length: qLen }, (_, i) => nTokens + i)
      expectSame(mixedAttention({ ...options, queryPositions }))
      const windowed = { ...options, queryPositions, slidingWindow: Math.ceil(nTokens / 2) + qLen }
      expectSame(mixedAttentionFolded(windowed), mixedAttention(windowed))
    })
  },
)

test('a causal window over positions is flashAttention with that window', () => {
  const [nHeads, nKvHeads, headDim, n, qLen, slidingWindow] = [4, 2, 16, 37, 5, 9]
  const k = randomKeys(1, { nTokens: n, nKvHeads, headDim })
  const v = randomValues(2, { nTokens: n, nKvHeads, headDim })
  const q = normals(3, qLen * nHeads * headDim)
  const heads = { nHeads, nKvHeads, headDim, scale: 0.25, slidingWindow }
  const rows = Int32Array.from({ length: nKvHeads * n }, (_, i) => n - 1 - (i % n)) // any order
  const segment = packSegment({
    k,
    v,
    rows,
    nKvHeads,
    headDim,
    keyFormat: 'f32',
    valueFormat: 'f32',
  })
  const queryPositions = Array.from({ length: qLen }, (_, i) => n - qLen + i)
  const mixed = mixedAttention({ ...heads, q, segments: [segment], queryPositions })
  const flash = flashAttention({
    ...heads,
    q,
    k,
    v,
    causal: true,
    cuSeqlensQ: [0, qLen],
    cuSeqlensK: [0, n],
  })
  const shape = [qLen, nHeads, headDim]
  expectClose(mixed.out, flash.out, { name: 'out', shape, tolerance: tolerance.double, seed: 1 })
})

test('4 bits stay close to the exact attention, 2 bits less so', () => {
  const [nHeads, nKvHeads, headDim, n] = [4, 2, 64, 200]
  const heads = { nHeads, nKvHeads, headDim, scale: headDim ** -0.5 }
  const k = normals(21, n * nKvHeads * headDim)
  const v = normals(22, k.length)
  const q = normals(23, nHeads * headDim)
  const rows = Int32Array.from({ length: nKvHeads * n }, (_, i) => i % n)
  const [exact, four, two] = (['f32', 'u4', 'u2'] as const).map((format) => {
    const segment = packSegment({
      k,
      v,
      rows,
      nKvHeads,
      headDim,
      keyFormat: format,
      valueFormat: format,
    })
    return mixedAttention({ q, segments: [segment], ...heads }).out
  })
  const error = (out: Float64Array) =>
    Math.hypot(...out.map((x, i) => x - exact[i])) / Math.hypot(...exact)
  expect(error(four)).toBeLessThan(0.25)
  expect(error(two)).toBeLessThan(1)
  expect(error(four)).toBeLessThan(error(two) / 3)
})

describe('packSegment', () => {
  test('gathers rows per head and quantizes each head by itself, by hand', () => {
    // 3 tokens, 2 heads, d = 1; head 0 takes rows 0 and 2, head 1 rows 1 and 2
    const k = [0, 100, 1, 110, 3, 113]
    const v = [4, 0, 0, 16, 1, 9]
    const segment = packSegment({
      k,
      v,
      rows: [0, 2, 1, 2],
      nKvHeads: 2,
      headDim: 1,
      keyFormat: 'u2',
      valueFormat: 'u4',
    })
    expect(segment).toEqual({
      nTokens: 2,
      positions: [0, 2, 1, 2],
      kCodes: [0, 3, 0, 3],
      kScale: [1, 1],
      kZero: [0, 110],
      // c = sqrt(4) and sqrt(16); a row of one channel is constant: zero v / c, scale 0
      vCodes: [0, 0, 0, 0],
      vScale: [0, 0, 0, 0],
      vZero: [2, 0.5, 4, 2.25],
      vChannel: [2, 4],
    })
  })

  test('refuses unknown formats', () => {
    const options = { k: [], v: [], rows: [], nKvHeads: 1, headDim: 1, valueFormat: 'u4' } as const
    expect(() => packSegment({ ...options, keyFormat: 'u5' as SegmentFormat })).toThrow(
      'format: is u5, expected u2, u3, u4, u8, f16, bf16 or f32',
    )
  })
})
