import fc from 'fast-check'
import { flashAttention, probeAttention } from '../../lib/reference'
import { expectClose } from '../support/compare'
import { normals, randomNumbers } from '../support/random-data'
import { headCounts } from '../support/shapes'
import { tolerance } from '../support/tolerance'

const heads1 = { nHeads: 1, nKvHeads: 1, headDim: 1, scale: 1 }

describe('probeAttention, numbers by hand', () => {
  // Two keys; row 0 sees the first alone, A = [1, 0], row 1 both, A = [1/4, 3/4].
  const shared = {
    q: [1, 1],
    k: [0, Math.log(3)],
    lse: [0, Math.log(4)],
    ...heads1,
    kvLen: 2,
    rows: [0, 1],
    positions: [0, 1],
  }

  test('accumulated, eq. 7: column sums', () => {
    const scores = probeAttention({ ...shared, normalization: 'accumulated' })
    expectClose(scores, [1.25, 0.75], {
      name: 'scores',
      shape: [1, 2],
      tolerance: tolerance.double,
    })
  })

  test('normalized, eq. 8: column sums over the rows that see the key, which turns the order round', () => {
    const scores = probeAttention({ ...shared, normalization: 'normalized' })
    expectClose(scores, [0.625, 0.75], {
      name: 'scores',
      shape: [1, 2],
      tolerance: tolerance.double,
    })
  })

  test('only probe rows count', () => {
    const scores = probeAttention({
      ...shared,
      rows: [1],
      positions: [1],
      normalization: 'normalized',
    })
    expectClose(scores, [0.25, 0.75], {
      name: 'scores',
      shape: [1, 2],
      tolerance: tolerance.double,
    })
  })

  test('a key that no probe sees has score 0', () => {
    const before = { ...shared, rows: [0], positions: [0] }
    expect([...probeAttention({ ...before, normalization: 'normalized' })]).toEqual([1, 0])
    const none = { ...shared, rows: [], positions: [] }
    expect([...probeAttention({ ...none, normalization: 'normalized' })]).toEqual([0, 0])
    expect(probeAttention({ ...none, k: [], kvLen: 0, normalization: 'accumulated' })).toHaveLength(
      0,
    )
  })

  test('a sliding window hides old keys', () => {
    const windowed = { ...shared, lse: [0, Math.log(3)], slidingWindow: 1 }
    const scores = probeAttention({ ...windowed, normalization: 'normalized' })
    expectClose(scores, [1, 1], { name: 'scores', shape: [1, 2], tolerance: tolerance.double })
  })

  test('query heads of a group are summed, and count as one row', () => {
    // one key, 4 query heads over 2 KV heads, each row all on that key but for the last head: exp(0
    // - ln 2)
    const scores = probeAttention({
      q: [0, 0, 0, 0],
      k: [0, 0],
      lse: [0, 0, 0, Math.log(2)],
      rows: [0],
      positions: [0],
      nHeads: 4,
      nKvHeads: 2,
      headDim: 1,
      scale: 1,
      kvLen: 1,
      normalization: 'normalized',
    })
    expectClose(scores, [2, 1.5], { name: 'scores', shape: [2, 1], tolerance: tolerance.double })
  })
})

describe('probeAttention, properties', () => {
  function randomCase(
    seed: number,
    n: number,
    { nHeads, nKvHeads }: { nHeads: number; nKvHeads: number },
  ) {
    const headDim = 8
    const shape = { nHeads, nKvHeads, headDim, scale: headDim ** -0.5 }
    const q = normals(seed, n * nHeads * headDim)
    const k = normals(seed + 1, n * nKvHeads * headDim)
    const cu = [0, n]
    const { lse } = flashAttention({
      ...shape,
      q,
      k,
      v: k,
      causal: true,
      cuSeqlensQ: cu,
      cuSeqlensK: cu,
    })
    return { ...shape, q, k, lse, kvLen: n }
  }

  test.each(headCounts)(
    '$nHeads/$nKvHeads heads: every probe row gives each head a mass of 1',
    (heads) => {
      const n = 33
      const rows = [0, 3, 17, 31, 32]
      const options = { ...randomCase(10, n, heads), rows, positions: rows }
      const scores = probeAttention({ ...options, normalization: 'accumulated' })
      for (let kvHead = 0; kvHead < heads.nKvHeads; kvHead++) {
        const mass = scores
          .slice(kvHead * n, (kvHead + 1) * n)
          .reduce((sum, score) => sum + score, 0)
        expect(mass).toBeCloseTo((rows.length * heads.nHeads) / heads.nKvHeads, 9)
      }
      const normalized = probeAttention({ ...options, normalization: 'normalized' })
      const divided = scores.map((score, i) => score / rows.filter((row) => row >= i % n).length)
      expectClose(normalized, divided, {
        name: 'scores',
        shape: [heads.nKvHeads, n],
        tolerance: tolerance.double,
        seed: 10,
      })
    },
  )

  test('appended queries that are no probes change nothing', () => {
    fc.assert(
      fc.property(fc.nat(1000), fc.integer({ min: 1, max: 20 }), fc.nat(5), (seed, n, extra) => {
        const heads = { nHeads: 4, nKvHeads: 2 }
        const before = randomCase(seed, n, heads)
        const next = randomNumbers(seed)
        const rows = Array.from({ length: n }, (_, row) => row).filter(() => next() < 0.3)
        const after = {
          ...before,
          q: [...before.q, ...normals(seed + 5, extra * 32)],
          lse: [...before.lse, ...normals(seed + 6, extra * 4)],
        }
        for (const normalization of ['normalized', 'accumulated'] as const) {
          const probes = { rows, positions: rows, normalization }
          expect(probeAttention({ ...after, ...probes })).toEqual(
            probeAttention({ ...before, ...probes }),
          )
        }
      }),
      { seed: 5, numRuns: 50 },
    )
  })
})
