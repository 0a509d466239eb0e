import { addExperts, expertLinear, routeExperts } from '../../lib/reference/index.js'

const [quarter, half] = [Math.log(1 / 4), Math.log(1 / 2)]

describe('routeExperts', () => {
  // Probabilities 1/4, 1/2, 1/8, 1/8 and 1/8, 1/8, 1/4, 1/2.
  const logits = [quarter, half, -3 * Math.LN2, -3 * Math.LN2]
  const others = [-3 * Math.LN2, -3 * Math.LN2, quarter, half]

  test('takes the likeliest with their probabilities, and orders pairs by expert', () => {
    const all = { logits: [...logits, ...others], nExperts: 4, nChosen: 2 }
    const { weights, experts, pairs, offsets } = routeExperts(all)
    expect([...experts]).toEqual([1, 0, 3, 2])
    for (const [i, expected] of [1 / 2, 1 / 4, 1 / 2, 1 / 4].entries()) {
      expect(weights[i]).toBeCloseTo(expected, 14)
    }
    expect([...pairs]).toEqual([1, 0, 3, 2])
    expect([...offsets]).toEqual([0, 1, 2, 3, 4])
    const normalized = routeExperts({ ...all, normalized: true })
    for (const [i, expected] of [2 / 3, 1 / 3, 2 / 3, 1 / 3].entries()) {
      expect(normalized.weights[i]).toBeCloseTo(expected, 14)
    }
  })

  test('of equal ones the smaller; a NaN spoils its row alone', () => {
    const rows = [...logits.slice(2), ...logits.slice(2), Number.NaN, 1, 2, 0]
    const { weights, experts, pairs, offsets } = routeExperts({
      ...{ logits: rows, nExperts: 4, nChosen: 3 },
    })
    expect([...experts]).toEqual([0, 1, 2, 2, 1, 3])
    expect([...weights]).toEqual([1 / 4, 1 / 4, 1 / 4, Number.NaN, Number.NaN, Number.NaN])
    expect([...pairs]).toEqual([0, 1, 4, 2, 3, 5])
    expect([...offsets]).toEqual([0, 1, 3, 5, 6])
  })
})

describe('routeExperts by sigmoids', () => {
  // Sigmoids 1/4, 3/4, 1/5, 1/2.
  const logits = [-Math.log(3), Math.log(3), -Math.log(4), 0]
  const sizes = { logits, nExperts: 4, nChosen: 2, scores: 'sigmoid' } as const
  const route = (options: object) => routeExperts({ ...sizes, ...options })
  const expectWeights = ({ weights }: { weights: Float64Array }, expected: number[]) => {
    for (const [i, own] of expected.entries()) expect(weights[i]).toBeCloseTo(own, 14)
  }

  test('weights are those of the largest, divided by their sum, and scaled', () => {
    const plain = route({})
    expect([...plain.experts]).toEqual([1, 3])
    expectWeights(plain, [3 / 4, 1 / 2])
    expectWeights(route({ normalized: true, scale: 2.5 }), [1.5, 1])
    expectWeights(route({ normalized: true, leastSum: 5 }), [3 / 20, 1 / 10])
    expectWeights(route({ normalized: true, leastSum: 1 }), [3 / 5, 2 / 5])
  })

  test('a correction chooses others, whose weights are as without', () => {
    const corrected = route({ correction: [0.6, 0, 0.5, 0] })
    expect([...corrected.experts]).toEqual([0, 1])
    expectWeights(corrected, [1 / 4, 3 / 4])
    const softmax = routeExperts({
      ...{ logits: [Math.log(2), 0, 0], nExperts: 3, nChosen: 1, correction: [0, 0, 0.3] },
    })
    expect([...softmax.experts]).toEqual([2])
    expectWeights(softmax, [1 / 4])
  })

  test("an expert's scale multiplies what is left of its score", () => {
    const scaled = route({ normalized: true, scale: 2.5, expertScales: [9, 4, 9, -2] })
    expect([...scaled.experts]).toEqual([1, 3])
    expectWeights(scaled, [6, -2])
  })

  test('a NaN spoils its row', () => {
    const { weights, experts } = route({ logits: [0, Number.NaN, 2, 1], normalized: true })
    expect([...experts]).toEqual([2, 3])
    expect([...weights]).toEqual([Number.NaN, Number.NaN])
  })
})

describe('expertLinear', () => {
  // Experts (1, 2), (3, 4) and (5, 6), each of one column.
  const weight = [1, 2, 3, 4, 5, 6]
  const shape = { n: 1, k: 2 }

  test('multiplies each row by the matrices of its experts', () => {
    const x = [1, 1, 10, 100]
    const out = expertLinear({ x, weight, experts: [2, 0, 1, 1], m: 2, ...shape })
    expect([...out]).toEqual([11, 3, 430, 430])
  })

  test('or a row for each pair; scales and bias are those of the expert', () => {
    const x = [1, 0, 0, 1]
    const out = expertLinear({ x, weight, scales: [1, 2, 3], experts: [2, 1], m: 2, ...shape })
    expect([...out]).toEqual([15, 8])
    const added = { x, weight, bias: [7, 0.5, -1], experts: [2, 1], m: 2, ...shape }
    expect([...expertLinear(added)]).toEqual([4, 4.5])
  })
})

test('addExperts adds weighted rows to what was there', () => {
  const x = [1, 2, 10, 20, 100, 200, 1000, 2000]
  const out = addExperts({ x, weights: [1, 0.5, 2, 0], before: [7, 0, 0, -400], nChosen: 2 })
  expect([...out]).toEqual([13, 12, 200, 0])
  expect([...addExperts({ x, weights: [1, 0.5, 2, 0], nChosen: 2 })]).toEqual([6, 12, 200, 400])
})
