import { expectClose, expectIdentical, worstDifference } from './compare'

describe('worstDifference', () => {
  test('measures each row against its own largest value', () => {
    // rows [1, 100] and [1, 2]: 0.5 off is 0.5 % of the first, 25 % of the second
    expect(worstDifference([1.5, 100, 1, 2.5], [1, 100, 1, 2], 2)).toEqual({
      relative: 0.25,
      index: 3,
    })
  })

  test('asks a zero row to be zero unless there is a floor', () => {
    expect(worstDifference([1e-9], [0], 1).relative).toBe(Number.POSITIVE_INFINITY)
    expect(worstDifference([1e-9], [0], 1, 1).relative).toBe(1e-9)
    expect(worstDifference([0], [0], 1).relative).toBe(0)
  })

  test('takes NaN and infinities only as themselves', () => {
    const { NaN: nan, POSITIVE_INFINITY: inf } = Number
    expect(worstDifference([nan, inf, -inf], [nan, inf, -inf], 1).relative).toBe(0)
    expect(worstDifference([nan], [1], 1).relative).toBe(inf)
    expect(worstDifference([1], [nan], 1).relative).toBe(inf)
    expect(worstDifference([inf], [-inf], 1).relative).toBe(inf)
  })
})

test('expectClose says shape, seed, index and both values', () => {
  const compare = () =>
    expectClose([1, 2, 3, 5], [1, 2, 3, 4], {
      name: 'out',
      shape: [2, 2],
      tolerance: 1e-3,
      seed: 7,
    })
  expect(compare).toThrow(
    [
      'out: differs by 2.500e-1 of its row, allowed 0.001',
      '  shape     [2, 2], seed 7',
      '  worst at  [1, 1] (flat 3)',
      '  actual    5',
      '  reference 4',
    ].join('\n'),
  )
  expect(() => expectClose([1], [1, 2], { name: 'out', shape: [2], tolerance: 1 })).toThrow(
    'has 1 elements',
  )
  expectClose([], [], { name: 'out', shape: [0, 4], tolerance: 0 })
})

test('expectIdentical tells bits apart that compare equal', () => {
  expectIdentical([1, Number.NaN], [1, Number.NaN], { name: 'codes', shape: [2] })
  expect(() => expectIdentical([0, -0], [0, 0], { name: 'codes', shape: [1, 2] })).toThrow(
    'codes: 1 of 2 elements differ',
  )
})
