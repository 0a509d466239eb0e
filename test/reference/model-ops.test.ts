import {
  clampedSwiglu,
  embedding,
  gatherRows,
  geluGate,
  linear,
  rmsNorm,
  rope,
  ropeTable,
  siluGate,
} from '../../lib/reference'
import { expectClose } from '../support/compare'
import { normals } from '../support/random-data'
import { tolerance } from '../support/tolerance'

describe('embedding and gatherRows', () => {
  test('copy rows by index, repeats allowed', () => {
    const weight = [1, 2, 3, 4, 5, 6]
    expect([...embedding({ ids: [2, 0, 2], weight, width: 2 })]).toEqual([5, 6, 1, 2, 5, 6])
    expect([...gatherRows({ x: weight, rows: [1], width: 3 })]).toEqual([4, 5, 6])
    expect(gatherRows({ x: weight, rows: [], width: 3 })).toHaveLength(0)
  })
})

describe('rmsNorm', () => {
  test('by hand: mean square 12.5 + eps 3.5 gives 16', () => {
    const out = rmsNorm({ x: [3, 4, 0, 0], weight: [4, 8], width: 2, eps: 3.5 })
    expect([...out]).toEqual([3, 8, 0, 0])
  })

  test('does not depend on the scale of x when eps is 0', () => {
    const x = normals(1, 3 * 17)
    const weight = normals(2, 17)
    const scaled = x.map((value) => value * 4)
    expectClose(
      rmsNorm({ x: scaled, weight, width: 17, eps: 0 }),
      rmsNorm({ x, weight, width: 17, eps: 0 }),
      { name: 'out', shape: [3, 17], tolerance: tolerance.double, seed: 1 },
    )
  })
})

describe('linear', () => {
  const shape = { m: 2, n: 3, k: 2 }
  const x = [1, 2, 3, 4]
  const weight = [1, 0, 0, 1, 10, 100]

  test('by hand: x W^T', () => {
    expect([...linear({ x, weight, ...shape })]).toEqual([1, 2, 210, 3, 4, 430])
  })

  test('adds the bias, and what is there already', () => {
    const bias = [0.5, 0, -10]
    expect([...linear({ x, weight, bias, ...shape })]).toEqual([1.5, 2, 200, 3.5, 4, 420])
    const accumulate = [1, 1, 1, 2, 2, 2]
    expect([...linear({ x, weight, bias, accumulate, ...shape })]).toEqual([
      2.5, 3, 201, 5.5, 6, 422,
    ])
  })

  test('no rows, no inputs', () => {
    expect(linear({ x: [], weight, m: 0, n: 3, k: 2 })).toHaveLength(0)
    expect([...linear({ x: [], weight: [], bias: [7], m: 2, n: 1, k: 0 })]).toEqual([7, 7])
  })
})

describe('rope', () => {
  test('by hand: quarter and half turns of the pairs (0, 2) and (1, 3)', () => {
    const { cos, sin } = ropeTable({
      positions: [0, 1],
      invFreq: [Math.PI / 2, Math.PI],
      attentionScale: 1,
    })
    const shape = [2, 1, 4]
    const out = rope({ x: [1, 2, 3, 4, 1, 2, 3, 4], cos, sin, nHeads: 1, headDim: 4 })
    const expected = [1, 2, 3, 4, -3, -2, 1, -4]
    expectClose(out, expected, { name: 'out', shape, tolerance: tolerance.double })
  })

  test('the attention scale multiplies both tables', () => {
    const { cos, sin } = ropeTable({ positions: [0, 2], invFreq: [0.5], attentionScale: 3 })
    expect([...cos]).toEqual([3, 3 * Math.cos(1)])
    expect([...sin]).toEqual([0, 3 * Math.sin(1)])
  })

  test('tables grow with the logarithm of whole periods', () => {
    const options = { invFreq: [0], attentionScale: 2, growth: 0.5, period: 10 }
    const { cos } = ropeTable({ positions: [0, 9, 10, 35], ...options })
    expect([...cos]).toEqual([2, 2, 2 + Math.log(2), 2 + Math.log(4)])
  })

  test('all heads of a row turn by its position; q . k depends on the distance alone', () => {
    const [nHeads, headDim] = [3, 8]
    const invFreq = [1, 0.1, 0.01, 0.001]
    const vector = normals(3, nHeads * headDim)
    const at = (position: number) => {
      const table = ropeTable({ positions: [position], invFreq, attentionScale: 1 })
      return rope({ x: vector, ...table, nHeads, headDim })
    }
    const products = (a: Float64Array, b: Float64Array) =>
      Array.from({ length: nHeads }, (_, head) =>
        a
          .subarray(head * headDim, (head + 1) * headDim)
          .reduce((sum, x, c) => sum + x * b[head * headDim + c], 0),
      )
    expectClose(products(at(1007), at(1000)), products(at(7), at(0)), {
      name: 'q . k',
      shape: [nHeads],
      tolerance: 1e-9,
      seed: 3,
    })
    expectClose(products(at(50), at(50)), products(vector as never, vector as never), {
      name: 'norms',
      shape: [nHeads],
      tolerance: 1e-9,
      seed: 3,
    })
  })
})

test('siluGate by hand', () => {
  // silu(0) = 0, silu(ln 3) = ln 3 * 3/4, silu(-ln 3) = -ln 3 / 4; large negatives vanish
  const log3 = Math.log(3)
  const out = siluGate({ gate: [0, log3, -log3, -1000, 1000], up: [5, 4, 4, 1, 2] })
  expectClose(out, [0, 3 * log3, -log3, -0, 2000], {
    name: 'out',
    shape: [5, 1],
    tolerance: tolerance.double,
  })
})

test('clampedSwiglu by hand', () => {
  const log3 = Math.log(3) // sigmoid is 3 / 4
  const gate = [log3 / 2, 0, 10, -log3 / 2, 1, Number.NaN, 1]
  const up = [1, 5, -10, 0.5, 10, 1, Number.NaN]
  const out = clampedSwiglu({ gate, up, alpha: 2, limit: log3 / 2 })
  const half = log3 / 2
  const expected = [
    ...[(1 + half) * half * 0.75, 0, (1 - half) * half * 0.75, 1.5 * -half * 0.25],
    ...[(1 + half) * half * 0.75, Number.NaN, Number.NaN],
  ]
  for (const [i, y] of out.entries()) {
    const own = expected[i] as number
    if (Number.isNaN(own)) expect(y).toBeNaN()
    else expect(y).toBeCloseTo(own, 14)
  }
})

test('geluGate by hand', () => {
  // gelu(x) - gelu(-x) = x, and y = sqrt(2 / pi) (x + 0.044715 x^3)
  const tanh = (x: number) =>
    (x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)))) / 2
  const out = geluGate({ gate: [0, 1, -1, 2.5, -1000, 1000], up: [5, 1, 1, 4, 1, 2] })
  const expected = [0, tanh(1), tanh(1) - 1, 4 * tanh(2.5), -0, 2000]
  expectClose(out, expected, { name: 'out', shape: [6, 1], tolerance: tolerance.double })
  expect(out[1]).toBeCloseTo(0.841192, 6)
})
