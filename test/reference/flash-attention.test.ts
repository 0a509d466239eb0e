import { type AttentionResult, flashAttention, mergeAttention } from '../../lib/reference'
import { expectClose, expectIdentical } from '../support/compare'
import { cumulative, normals } from '../support/random-data'
import { attentionShapes, headCounts, lengths } from '../support/shapes'
import { tolerance } from '../support/tolerance'

const NOTHING = Number.NEGATIVE_INFINITY

/** One sequence with one head of dimension 1, so that scores can be read off. */
function single(q: number[], k: number[], v: number[], causal: boolean, slidingWindow = 0) {
  return flashAttention({
    q,
    k,
    v,
    causal,
    slidingWindow,
    cuSeqlensQ: [0, q.length],
    cuSeqlensK: [0, k.length],
    nHeads: 1,
    nKvHeads: 1,
    headDim: 1,
    scale: 1,
  })
}

describe('flashAttention, numbers by hand', () => {
  const log3 = Math.log(3)

  test('two keys weigh 1/4 and 3/4', () => {
    const { out, lse } = flashAttention({
      q: [2, 0],
      k: [0, 5, log3, 5],
      v: [4, 8, 0, 4],
      nHeads: 1,
      nKvHeads: 1,
      headDim: 2,
      scale: 0.5,
      causal: false,
      cuSeqlensQ: [0, 1],
      cuSeqlensK: [0, 2],
    })
    expectClose(out, [1, 5], { name: 'out', shape: [1, 1, 2], tolerance: tolerance.double })
    expectClose(lse, [Math.log(4)], { name: 'lse', shape: [1, 1], tolerance: tolerance.double })
  })

  test('causal rows see no key after their own', () => {
    const { out, lse } = single([1, 1], [0, log3], [8, 4], true)
    expectClose(out, [8, 5], { name: 'out', shape: [2, 1], tolerance: tolerance.double })
    expectClose(lse, [0, Math.log(4)], { name: 'lse', shape: [2], tolerance: tolerance.double })
  })

  test('the mask is aligned at the bottom right', () => {
    // more keys than rows: row 0 stands at position 1
    expect([...single([0, 0], [0, 0, 0], [3, 9, 24], true).out]).toEqual([6, 12])
    // more rows than keys: rows 0 and 1 stand before the first key
    const { out, lse } = single([0, 0, 0], [0], [7], true)
    expect([...out]).toEqual([0, 0, 7])
    expect([...lse]).toEqual([NOTHING, NOTHING, 0])
  })

  test('a sliding window bounds the past', () => {
    const zeros = [0, 0, 0, 0]
    const v = [1, 3, 5, 11]
    expect([...single(zeros, zeros, v, true, 1).out]).toEqual(v)
    expect([...single(zeros, zeros, v, true, 2).out]).toEqual([1, 2, 4, 8])
    // without the causal bound row 1 sees j > 1 - 2, keys 0 to 3, and row 3 keys 2 and 3
    expect([...single(zeros, zeros, v, false, 2).out]).toEqual([5, 5, 19 / 3, 8])
  })

  test('query heads of a group share a KV head', () => {
    const { out } = flashAttention({
      q: [0, 0, 0, 0],
      k: [1, 2],
      v: [10, 20],
      nHeads: 4,
      nKvHeads: 2,
      headDim: 1,
      scale: 1,
      causal: true,
      cuSeqlensQ: [0, 1],
      cuSeqlensK: [0, 1],
    })
    expect([...out]).toEqual([10, 10, 20, 20])
  })

  test('no sequences, no rows, no keys', () => {
    expect(single([], [], [], true).out).toHaveLength(0)
    expect(single([], [1], [1], true).out).toHaveLength(0)
    const { out, lse } = single([1], [], [], false)
    expect([out[0], lse[0]]).toEqual([0, NOTHING])
  })

  test('scores that would overflow exp do not', () => {
    const { out, lse } = single([1], [5000, 5000 - log3], [4, 8], false)
    expectClose(out, [5], { name: 'out', shape: [1], tolerance: 1e-9 })
    expect(lse[0]).toBeCloseTo(5000 + Math.log(4 / 3), 9)
  })
})

describe('flashAttention, properties', () => {
  test.each(attentionShapes)(
    '$nHeads/$nKvHeads heads, d $headDim: a batch is its sequences alone',
    (shape) => {
      const { nHeads, nKvHeads, headDim, sequences, causal, slidingWindow } = shape
      const options = { nHeads, nKvHeads, headDim, causal, slidingWindow, scale: headDim ** -0.5 }
      const cuSeqlensQ = cumulative(sequences.map(({ qLen }) => qLen))
      const cuSeqlensK = cumulative(sequences.map(({ kvLen }) => kvLen))
      const q = normals(1, (cuSeqlensQ.at(-1) ?? 0) * nHeads * headDim)
      const k = normals(2, (cuSeqlensK.at(-1) ?? 0) * nKvHeads * headDim)
      const v = normals(3, k.length)
      const together = flashAttention({ ...options, q, k, v, cuSeqlensQ, cuSeqlensK })
      sequences.forEach(({ qLen, kvLen }, seq) => {
        const rows = [cuSeqlensQ[seq] * nHeads, cuSeqlensQ[seq + 1] * nHeads]
        const kvRange = [cuSeqlensK[seq], cuSeqlensK[seq + 1]].map(
          (row) => row * nKvHeads * headDim,
        )
        const alone = flashAttention({
          ...options,
          q: q.slice(rows[0] * headDim, rows[1] * headDim),
          k: k.slice(...kvRange),
          v: v.slice(...kvRange),
          cuSeqlensQ: [0, qLen],
          cuSeqlensK: [0, kvLen],
        })
        expectIdentical(together.out.slice(rows[0] * headDim, rows[1] * headDim), alone.out, {
          name: 'out',
          shape: [qLen, nHeads, headDim],
          seed: 1,
        })
        expectIdentical(together.lse.slice(...rows), alone.lse, {
          name: 'lse',
          shape: [qLen, nHeads],
          seed: 1,
        })
      })
    },
  )

  test.each(lengths)(
    'attention over %d keys, split in blocks and merged, equals unsplit',
    (kvLen) => {
      for (const { nHeads, nKvHeads } of headCounts) {
        const headDim = 8
        const qLen = 3
        const heads = { nHeads, nKvHeads, headDim, scale: 0.7, causal: false }
        const q = normals(4, qLen * nHeads * headDim)
        const k = normals(5, kvLen * nKvHeads * headDim)
        const v = normals(6, k.length)
        const whole = flashAttention({
          ...heads,
          q,
          k,
          v,
          cuSeqlensQ: [0, qLen],
          cuSeqlensK: [0, kvLen],
        })

        let merged: AttentionResult = {
          out: new Float64Array(q.length).fill(Number.NaN), // takes no part while lse is -infinity
          lse: new Float64Array(qLen * nHeads).fill(NOTHING),
        }
        for (let start = 0; start < kvLen; start += 16) {
          const end = Math.min(start + 16, kvLen)
          const range = [start * nKvHeads * headDim, end * nKvHeads * headDim]
          const block = flashAttention({
            ...heads,
            q,
            k: k.slice(...range),
            v: v.slice(...range),
            cuSeqlensQ: [0, qLen],
            cuSeqlensK: [0, end - start],
          })
          merged = mergeAttention({
            outA: merged.out,
            lseA: merged.lse,
            outB: block.out,
            lseB: block.lse,
            headDim,
          })
        }
        const shape = [qLen, nHeads, headDim]
        if (kvLen > 0) {
          expectClose(merged.out, whole.out, {
            name: 'out',
            shape,
            tolerance: tolerance.double,
            seed: 4,
          })
        }
        expectClose(merged.lse, whole.lse, {
          name: 'lse',
          shape: [qLen, nHeads],
          tolerance: tolerance.double,
          seed: 4,
          floor: 1,
        })
      }
    },
  )

  test('a window as long as the sequence changes nothing', () => {
    const shared = {
      q: normals(7, 20 * 4),
      k: normals(8, 20 * 4),
      v: normals(9, 20 * 4),
      cuSeqlensQ: [0, 20],
      cuSeqlensK: [0, 20],
      nHeads: 1,
      nKvHeads: 1,
      headDim: 4,
      scale: 0.5,
      causal: true,
    }
    expect(flashAttention({ ...shared, slidingWindow: 20 })).toEqual(flashAttention(shared))
  })
})

describe('mergeAttention', () => {
  test('weighs both sides by their denominators', () => {
    const { out, lse } = mergeAttention({
      outA: [1, 0],
      lseA: [Math.log(3)],
      outB: [5, 8],
      lseB: [0],
      headDim: 2,
    })
    expectClose(out, [2, 2], { name: 'out', shape: [1, 2], tolerance: tolerance.double })
    expect(lse[0]).toBeCloseTo(Math.log(4), 12)
  })

  test('ignores a side that saw nothing, even its NaN', () => {
    const nan = Number.NaN
    expect([
      ...mergeAttention({ outA: [nan], lseA: [NOTHING], outB: [3], lseB: [2], headDim: 1 }).out,
    ]).toEqual([3])
    expect([
      ...mergeAttention({ outA: [3], lseA: [2], outB: [nan], lseB: [NOTHING], headDim: 1 }).out,
    ]).toEqual([3])
    const none = mergeAttention({
      outA: [nan],
      lseA: [NOTHING],
      outB: [nan],
      lseB: [NOTHING],
      headDim: 1,
    })
    expect([none.out[0], none.lse[0]]).toEqual([0, NOTHING])
  })

  test('passes NaN on otherwise', () => {
    const { out } = mergeAttention({
      outA: [1],
      lseA: [Number.NaN],
      outB: [3],
      lseB: [2],
      headDim: 1,
    })
    expect(out[0]).toBeNaN()
  })
})
