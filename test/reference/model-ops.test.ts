import {
  causalConv,
  clampedSwiglu,
  embedding,
  gatedDelta,
  gatherRows,
  geluGate,
  linear,
  rmsNorm,
  rope,
  ropeTable,
  selectiveScan,
  sigmoidGate,
  siluGate,
  softCap,
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

  test('by hand: without a weight, added to what was there, and scaled', () => {
    const own = { x: [3, 4, 0, 0], width: 2, eps: 3.5 }
    expect([...rmsNorm(own)]).toEqual([0.75, 1, 0, 0])
    expect([...rmsNorm({ ...own, before: [0.25, 1, 2, 3], scale: 2 })]).toEqual([2, 4, 4, 6])
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

test('softCap by hand: tanh(ln 2) = 3 / 5', () => {
  const x = [10 * Math.LN2, -10 * Math.LN2, 0, Infinity, -Infinity, NaN]
  const out = softCap({ x, cap: 10 })
  expect(out[0]).toBeCloseTo(6, 14)
  expect(out[1]).toBeCloseTo(-6, 14)
  expect([...out.subarray(2)]).toEqual([0, 10, -10, NaN])
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

test('sigmoidGate by hand', () => {
  const log3 = Math.log(3) // sigmoid is 3 / 4
  const out = sigmoidGate({ gate: [0, log3, -log3, 1000, -1000], x: [5, 4, -4, 2, 2] })
  const expected = [2.5, 3, -1, 2, 0]
  expectClose(out, expected, { name: 'out', shape: [5, 1], tolerance: tolerance.double })
})

describe('causalConv', () => {
  const silu = (x: number) => x / (1 + Math.exp(-x))
  const weight = [1, 10, 100, -1, 0, 2] // of two channels
  const options = { weight, channels: 2, width: 3 }

  test('by hand: zeros before the first row', () => {
    const { out, last } = causalConv({ x: [1, 5, 2, 6, 3, 7], ...options })
    const sums = [100, 10, 210, 12, 321, 14 - 5]
    expectClose(out, sums.map(silu), { name: 'out', shape: [3, 2], tolerance: tolerance.double })
    expect([...last]).toEqual([2, 6, 3, 7])
  })

  test('by hand: inputs from before, of which some stay', () => {
    const { out, last } = causalConv({ x: [3, 7], before: [1, 5, 2, 6], ...options })
    const sums = [321, 14 - 5]
    expectClose(out, sums.map(silu), { name: 'out', shape: [1, 2], tolerance: tolerance.double })
    expect([...last]).toEqual([2, 6, 3, 7])
  })

  test('by hand: a bias of each channel', () => {
    const { out } = causalConv({ x: [1, 5, 2, 6], bias: [-100, 3], ...options })
    const sums = [0, 13, 110, 15]
    expectClose(out, sums.map(silu), { name: 'out', shape: [2, 2], tolerance: tolerance.double })
  })
})

describe('selectiveScan', () => {
  // Of one head, state_dim 2, head_dim 2: softplus(0) is ln 2, so that half is kept.
  const half = { step: [0], stepBias: [0], decayLog: [0] }
  const one = { nGroups: 1, nHeads: 1, stateDim: 2, headDim: 2 }
  const within = { tolerance: tolerance.double, shape: [2, 2] }
  const dt = Math.LN2

  test('by hand: what is kept, what is written, what goes past', () => {
    // x (6, 10), B (0, 2), C (3, 4)
    const xbc = [6, 10, 0, 2, 3, 4]
    const { out, state } = selectiveScan({
      ...{ xbc, ...half, ...one, skip: [5], state: [8, 2, 4, 6] },
    })
    const expected = [4, 1, 2 + 12 * dt, 3 + 20 * dt]
    expectClose(state, expected, { name: 'state', ...within })
    const read = [12 + 4 * (2 + 12 * dt) + 30, 3 + 4 * (3 + 20 * dt) + 50]
    expectClose(out, read, { name: 'out', ...within })
  })

  test('by hand: from zero, two heads of a group, each with its step and its skip', () => {
    const { out, state } = selectiveScan({
      ...{ xbc: [2, 4, 6, 8, 1, 0, 1, 0], nGroups: 1, nHeads: 2, stateDim: 2, headDim: 2 },
      ...{ step: [0, 90], stepBias: [0, 10], decayLog: [0, 0], skip: [0, 1] },
    })
    const expected = [2 * dt, 4 * dt, 0, 0, 600, 800, 0, 0]
    expectClose(state, expected, { name: 'state', ...within, rowLength: 8 })
    expectClose(out, [2 * dt, 4 * dt, 606, 808], { name: 'out', ...within })
  })

  test('by hand: four heads of two groups', () => {
    const { out } = selectiveScan({
      ...{ xbc: [1, 1, 1, 1, 2, 3, 10, 100], nGroups: 2, nHeads: 4, stateDim: 1, headDim: 1 },
      ...{ step: [0, 0, 0, 0], stepBias: [0, 0, 0, 0], decayLog: [0, 0, 0, 0], skip: [0, 0, 0, 0] },
    })
    const expected = [20, 20, 300, 300].map((x) => x * dt)
    expectClose(out, expected, { name: 'out', ...within, shape: [4, 1] })
  })

  test('the decay: e^(-A softplus(step + bias))', () => {
    const gates = { step: [3], stepBias: [-3], decayLog: [Math.log(3)], skip: [0] }
    const xbc = [0, 0, 0, 0, 1, 1]
    const { state } = selectiveScan({ xbc, ...gates, ...one, state: [8, 16, 24, 32] })
    expectClose(state, [1, 2, 3, 4], { name: 'state', ...within })
  })

  test('rows one after the other, as in several calls', () => {
    const shape = { nGroups: 1, nHeads: 2, stateDim: 4, headDim: 3 }
    const [xbc, step] = [normals(1, 5 * 14), normals(2, 10)]
    const own = { stepBias: [0.5, -1], decayLog: [0, 1], skip: [1, -2], ...shape }
    const whole = selectiveScan({ xbc, step, ...own })
    const part = (begin: number, end: number) => ({
      ...{ xbc: xbc.subarray(begin * 14, end * 14), step: step.subarray(begin * 2, end * 2) },
    })
    const first = selectiveScan({ ...part(0, 2), ...own })
    const second = selectiveScan({ ...part(2, 5), ...own, state: first.state })
    expect([...first.out, ...second.out]).toEqual([...whole.out])
    expect(second.state).toEqual(whole.state)
  })
})

describe('gatedDelta', () => {
  // Of one head, key_dim 2, value_dim 2: softplus(0) is ln 2, so that half is kept; half is written.
  const half = { decay: [0], beta: [0], decayLog: [0], decayBias: [0] }
  const one = { nKeyHeads: 1, nHeads: 1, keyDim: 2, valueDim: 2 }
  const within = { tolerance: 1e-6, shape: [2, 2] } // of the 1e-6 under the root

  test('by hand: a key that is there already is moved towards its value', () => {
    // q (3, 4), k (0, 2), v (6, 10); S / 2 gives (2, 3) for k.
    const qkv = [3, 4, 0, 2, 6, 10]
    const { out, state } = gatedDelta({ qkv, ...half, ...one, state: [8, 2, 4, 6] })
    expectClose(state, [4, 1, 2 + 2, 3 + 3.5], { name: 'state', ...within })
    const attended = [0.6 * 4 + 0.8 * 4, 0.6 * 1 + 0.8 * 6.5].map((x) => x / Math.SQRT2)
    expectClose(out, attended, { name: 'out', ...within })
  })

  test('by hand: from zero, two value heads of a key head, each with its gates', () => {
    const { out, state } = gatedDelta({
      ...{ qkv: [1, 0, 1, 0, 2, 4, 6, 8], nKeyHeads: 1, nHeads: 2, keyDim: 2, valueDim: 2 },
      ...{ decay: [0, 0], beta: [0, 1000], decayLog: [0, 0], decayBias: [0, 0] },
    })
    expectClose(state, [1, 2, 0, 0, 6, 8, 0, 0], { name: 'state', ...within, rowLength: 8 })
    const attended = [1, 2, 6, 8].map((x) => x / Math.SQRT2)
    expectClose(out, attended, { name: 'out', ...within })
  })

  test('the decay: e^(-A softplus(a + bias))', () => {
    const gates = { decay: [3], decayBias: [-3], decayLog: [Math.log(3)], beta: [-1000] }
    const { state } = gatedDelta({
      qkv: [0, 0, 0, 0, 1, 1],
      ...gates,
      ...one,
      state: [8, 16, 24, 32],
    })
    expectClose(state, [1, 2, 3, 4], { name: 'state', ...within, tolerance: tolerance.double })
  })

  test('rows one after the other, as in several calls', () => {
    const shape = { nKeyHeads: 1, nHeads: 2, keyDim: 4, valueDim: 3 }
    const qkv = normals(1, 5 * 14)
    const [decay, beta] = [normals(2, 10), normals(3, 10)]
    const own = { decayLog: [0, 1], decayBias: [0.5, -1], ...shape }
    const whole = gatedDelta({ qkv, decay, beta, ...own })
    const part = (begin: number, end: number) => ({
      qkv: qkv.subarray(begin * 14, end * 14),
      ...{ decay: decay.subarray(begin * 2, end * 2), beta: beta.subarray(begin * 2, end * 2) },
    })
    const first = gatedDelta({ ...part(0, 2), ...own })
    const second = gatedDelta({ ...part(2, 5), ...own, state: first.state })
    expect([...first.out, ...second.out]).toEqual([...whole.out])
    expect(second.state).toEqual(whole.state)
  })
})
