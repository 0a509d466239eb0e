import { stepsByKind } from '../../lib/bench/closing-steps'

/** Steps of hand-made times; `closing`: which of them close a window, each one. */
const steps = (ms: readonly number[], ...closing: readonly number[]) =>
  ms.map((own, i) => ({ ms: own, closing: closing.includes(i) ? 1 : 0 }))

describe('steps by kind', () => {
  test('a closing step is its own time and what the next one is beyond the others', () => {
    const turn = steps([10, 10, 10, 13, 18, 10, 10], 3)
    expect(stepsByKind([turn])).toEqual({ closing: [13 + 18 - 10], others: [10, 10, 10, 10, 10] })
  })

  test('as published: 1.33 times another by itself, 1.41 with the next one', () => {
    const { closing, others } = stepsByKind([steps([6.74, 6.74, 8.94, 7.31, 6.74], 2)])
    expect(others).toEqual([6.74, 6.74, 6.74])
    expect((closing[0] as number) / 6.74).toBeCloseTo(1.41, 2)
  })

  test('a next step that is faster than the others takes from the closing one', () => {
    expect(stepsByKind([steps([10, 15, 8, 10], 1)]).closing).toEqual([13])
  })

  test('what touching closing steps are beyond the others is shared out', () => {
    const turn = steps([10, 11, 12, 10, 10, 11, 11, 12, 10], 1, 5, 6)
    expect(stepsByKind([turn]).closing).toEqual([13, (11 + 11 + 12 - 10) / 2])
    // The step after the first one closes, too, but two later: one run, of which one step is none.
    expect(stepsByKind([steps([10, 14, 12, 16, 12, 10], 1, 3)]).closing).toEqual([17])
  })

  test('several windows that close in one step are that step', () => {
    const turn = [...steps([10, 10]), { ms: 30, closing: 4 }, ...steps([12, 10])]
    expect(stepsByKind([turn]).closing).toEqual([32])
  })

  test('a closing step at the end of a turn is left out, and nothing else', () => {
    expect(stepsByKind([steps([10, 13, 12, 10, 13], 1, 4)])).toEqual({
      closing: [15],
      others: [10, 10],
    })
    expect(stepsByKind([steps([10, 13, 12, 13, 13], 1, 3, 4)]).closing).toEqual([15])
    expect(stepsByKind([steps([10, 10, 13], 2)])).toEqual({ closing: [], others: [10, 10] })
  })

  test('the first step of a turn follows no step of the turn before', () => {
    const { closing, others } = stepsByKind([steps([10, 10, 13], 2), steps([11, 15, 12, 10], 1)])
    expect(others).toEqual([10, 10, 11, 10])
    expect(closing).toEqual([17])
  })

  test('where no step is another, the one that is given is', () => {
    const turn = steps([14, 12, 14, 12], 0, 2)
    expect(stepsByKind([turn])).toEqual({ closing: [], others: [] })
    expect(stepsByKind([turn], 10)).toEqual({ closing: [16], others: [] })
  })

  test('of no step nothing is told', () => {
    expect(stepsByKind([])).toEqual({ closing: [], others: [] })
    expect(stepsByKind([[]], 10)).toEqual({ closing: [], others: [] })
  })
})
