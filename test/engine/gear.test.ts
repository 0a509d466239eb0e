/** What GEAR takes out of a matrix, and what it adds to one. */
import { lowRank } from '../../lib/engine/low-rank'
import { outliersPerLine, takeOutliers } from '../../lib/engine/outliers'
import { normals } from '../support/random-data'

describe('takeOutliers', () => {
  const x = [
    [1, -9, 3, 4],
    [5, 6, 70, 8],
    [0, 1, 2, -3],
  ]
  const places = ({ places }: { places: Uint8Array }) =>
    Array.from({ length: places.length / 2 }, (_, i) => places[2 * i] + 256 * places[2 * i + 1])

  test('takes the smallest and the largest of every row, and leaves its mean', () => {
    const matrix = Float32Array.from(x.flat())
    const taken = takeOutliers(matrix, 4, 'tokenwise', 0.5)
    expect([...taken.values]).toEqual([-9, 4, 5, 70, -3, 2])
    expect(places(taken)).toEqual([1, 3, 0, 2, 3, 2])
    const [a, b, c] = [-0.25, 22.25, 0]
    expect([...matrix]).toEqual([1, a, 3, a, b, 6, b, 8, 0, 1, c, c])
  })

  test('takes them of every channel', () => {
    const matrix = Float32Array.from(x.flat())
    const taken = takeOutliers(matrix, 4, 'channelwise', 0.6)
    expect([...taken.values]).toEqual([0, 5, -9, 6, 2, 70, -3, 8])
    expect(places(taken)).toEqual([2, 1, 0, 1, 2, 1, 2, 1])
    expect([...matrix.subarray(0, 4)].map((value) => Math.round(value))).toEqual([1, -1, 3, 4])
  })

  test('takes as many as a line has of its share, at either end alike', () => {
    expect([0, 24, 26, 49, 64, 128, 1000].map((n) => outliersPerLine(0.04, n))).toEqual([
      0, 0, 2, 2, 2, 6, 40,
    ])
    expect([1, 2, 3, 4].map((n) => outliersPerLine(0.5, n))).toEqual([0, 2, 2, 2])
    expect(outliersPerLine(0, 1000)).toBe(0)
  })

  test.each([
    ['equal elements', () => 3],
    ['infinities', (i: number) => (i % 3 ? i : i % 2 ? -1 / 0 : 1 / 0)],
    ['NaN', (i: number) => (i % 3 ? i : Number.NaN)],
    ['nothing but NaN', () => Number.NaN],
  ])('takes no place twice where there are %s', (_, at) => {
    const taken = takeOutliers(
      Float32Array.from({ length: 30 }, (_, i) => at(i)),
      10,
      'tokenwise',
      0.6,
    )
    const all = places(taken)
    for (let row = 0; row < 3; row++) {
      expect(new Set(all.slice(row * 6, row * 6 + 6)).size).toBe(6)
    }
  })

  test('places of more than a byte', () => {
    const column = Float32Array.from({ length: 65_536 }, (_, i) =>
      i === 300 ? -1 : i === 65_535 ? 1 : 0,
    )
    expect(places(takeOutliers(column, 1, 'channelwise', 2.1 / 65_536))).toEqual([300, 65_535])
  })
})

describe('lowRank', () => {
  const product =
    ({ left, right }: { left: Float32Array; right: Float32Array }, rank: number) =>
    (row: number, column: number) => {
      let sum = 0
      for (let k = 0; k < rank; k++) sum += left[row * rank + k] * right[column * rank + k]
      return sum
    }

  test('of a matrix of that rank is the matrix', () => {
    const [rows, columns, rank] = [50, 16, 3]
    const factors = {
      left: Float32Array.from(normals(1, rows * rank)),
      right: Float32Array.from(normals(2, columns * rank)),
    }
    const at = product(factors, rank)
    for (const wanted of [3, 5]) {
      const found = product(lowRank(rows, columns, wanted, at), wanted)
      for (let row = 0; row < rows; row++) {
        for (let column = 0; column < columns; column++) {
          expect(Math.abs(found(row, column) - at(row, column))).toBeLessThan(1e-4)
        }
      }
    }
  })

  test('of a diagonal keeps its largest entries', () => {
    const diagonal = [1, 100, 2, 50, 3]
    const at = (row: number, column: number) => (row === column ? diagonal[row] : 0)
    const found = product(lowRank(5, 5, 2, at), 2)
    expect(found(1, 1)).toBeCloseTo(100, 2)
    expect(found(3, 3)).toBeCloseTo(50, 2)
    expect(Math.abs(found(4, 4))).toBeLessThan(0.1)
  })

  test('of nothing is nothing', () => {
    const { left, right } = lowRank(4, 3, 2, () => 0)
    expect([...left, ...right].every((value) => Math.abs(value) <= 1)).toBe(true)
    expect([...right].every((value) => value === 0)).toBe(true)
    expect(lowRank(4, 3, 0, () => 1).left).toHaveLength(0)
  })
})
