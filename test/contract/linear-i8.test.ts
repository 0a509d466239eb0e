import type { ErrorCode } from '../../lib/errors.js'
import { groupedLinear, linear } from '../../lib/ops/index.js'
import { type FloatDtype, linear as reference } from '../../lib/reference/index.js'
import { describeBackends, isHost, once } from '../support/backends.js'
import { expectClose, expectIdentical } from '../support/compare.js'
import { type DeviceTensors, floatDtypes } from '../support/device-tensors.js'
import { expectRefused } from '../support/errors.js'
import { integers, normals, storeAs } from '../support/random-data.js'
import { tolerance } from '../support/tolerance.js'

/** One call with a weight of 8 bits. */
interface Layer {
  m: number
  n: number
  k: number
  x: FloatDtype
  bias: FloatDtype | null
  out: FloatDtype
  accumulate: boolean
  seed: number
}

const plain = { x: 'f32', bias: null, out: 'f32', accumulate: false } as const

/** Inputs as the dtypes store them: products are of size 1. */
function inputsOf(layer: Layer) {
  const { m, n, k, seed } = layer
  return {
    ...layer,
    x: storeAs(layer.x, normals(seed, m * k)),
    weight: Int8Array.from(integers(seed + 1, n * k, 256), (code) => code - 128),
    scales: Float32Array.from(normals(seed + 2, n), (s) => (1 + Math.abs(s)) / 73),
    bias: layer.bias && storeAs(layer.bias, normals(seed + 3, n)),
    before: storeAs(layer.out, normals(seed + 4, m * n)),
    dtypes: { x: layer.x, bias: layer.bias, out: layer.out },
  }
}

type Inputs = ReturnType<typeof inputsOf>
const caseOf = once((layer: Layer) => {
  const inputs = inputsOf(layer)
  const { m, n, k, accumulate, weight, scales } = inputs
  const expected = reference({
    ...{ x: inputs.x.values, weight, scales, m, n, k },
    ...(inputs.bias ? { bias: inputs.bias.values } : {}),
    ...(accumulate ? { accumulate: inputs.before.values } : {}),
  })
  return { inputs, expected }
})

function tensorsOf(tensors: DeviceTensors, own: Inputs) {
  const { m, n, k, dtypes } = own
  return {
    x: tensors.input(dtypes.x, own.x.stored as Uint16Array, [m, k]),
    weight: tensors.input('i8', own.weight, [n, k]),
    scales: tensors.f32(own.scales),
    ...(own.bias && dtypes.bias
      ? { bias: tensors.input(dtypes.bias, own.bias.stored as Uint16Array, [n]) }
      : {}),
    out: own.accumulate
      ? tensors.input(dtypes.out, own.before.stored as Uint16Array, [m, n])
      : tensors.output(dtypes.out, [m, n]),
  }
}

async function run(tensors: DeviceTensors, own: Inputs) {
  const args = tensorsOf(tensors, own)
  linear({ ...args, accumulate: own.accumulate })
  return tensors.values(args.out)
}

/** Rows [first, last) of x alone. */
function rowsOf(own: Inputs, first: number, last: number): Inputs {
  const part = (data: Inputs['x'], width: number) => ({
    stored: data.stored.slice(first * width, last * width),
    values: data.values.slice(first * width, last * width),
  })
  return { ...own, m: last - first, x: part(own.x, own.k), before: part(own.before, own.n) }
}

const allowed = {
  f32: tolerance.i8Linear,
  f16: tolerance.f16Output,
  bf16: tolerance.bf16Output,
}

/** (m, n, k): nothing, one, primes, under / at / over vectors, tiles and blocks (256 of k). */
const shapes: readonly (readonly [m: number, n: number, k: number])[] = [
  ...([
    [0, 5, 7],
    [3, 0, 7],
    [3, 5, 0],
    [20, 5, 0],
    [1, 1, 1],
    [1, 7, 13],
    [1, 8, 16],
    [2, 3, 8],
  ] as const),
  ...([
    [3, 9, 15],
    [4, 3, 17],
    [5, 4, 7],
    [7, 11, 31],
    [8, 47, 32],
    [9, 48, 33],
  ] as const),
  ...([
    [4, 49, 64],
    [63, 50, 5],
    [64, 97, 9],
    [131, 53, 37],
    [1, 211, 1021],
    [6, 101, 512],
  ] as const),
  ...([
    [4, 24, 255],
    [5, 23, 256],
    [6, 25, 257],
    [96, 48, 512],
    [97, 49, 523],
  ] as const),
  // A few rows of which x fits in L1, and does not.
  ...([
    [4, 29, 2048],
    [4, 29, 2049],
    [3, 27, 4100],
    [2, 25, 8300],
    [1, 26, 9001],
  ] as const),
]

describeBackends('linear with a weight of i8', (backend) => {
  async function expectReference(layer: Layer) {
    const { inputs, expected } = caseOf(layer)
    const { m, n, seed } = layer
    const comparison = { name: 'out', shape: [m, n], floor: 1, seed }
    const actual = await run(backend.tensors, inputs)
    expectClose(actual, expected, { ...comparison, tolerance: allowed[layer.out] })
    backend.tensors.dispose()
  }

  test.each(shapes)('(%i, %i, %i) equals the reference', async (m, n, k) => {
    const seed = m * 10_000 + n * 100 + k
    for (const bias of [null, 'f32'] as const) {
      for (const accumulate of [false, true]) {
        await expectReference({ ...plain, m, n, k, bias, accumulate, seed })
      }
    }
  })

  describe.each(floatDtypes)('x of %s', (x) => {
    test.each(floatDtypes)('out of %s', async (out) => {
      for (const bias of [null, ...floatDtypes]) {
        for (const accumulate of [false, true]) {
          await expectReference({ x, bias, out, accumulate, m: 6, n: 53, k: 37, seed: 8 })
        }
      }
    })
  })

  // x holds whole numbers of its block's step, which is a power of two.
  test('is exact where x is one of 16 bits', async () => {
    const [m, n, k] = [5, 31, 700]
    const own = inputsOf({ ...plain, m, n, k, seed: 3 })
    const x = Float32Array.from(integers(4, m * k, 65535), (factor) => factor - 32767)
    for (let i = 0; i < x.length; i += 64) x[i] = 32767
    own.scales.fill(2 ** -20)
    const values = Float64Array.from(x)
    const expected = reference({ x: values, weight: own.weight, scales: own.scales, m, n, k })
    const actual = await run(backend.tensors, { ...own, x: { stored: x, values } })
    // Blocks of integers are exact, and added in float32.
    expectClose(actual, expected, { name: 'out', shape: [m, n], tolerance: 5e-7 })
  })

  describe('gives a row the same bits', () => {
    test.each([83, 523, 2056, 4100])('however many rows there are, k = %i', async (k) => {
      for (const x of floatDtypes) {
        const { inputs } = caseOf({ ...plain, x, m: 101, n: 53, k, bias: 'f32', seed: 17 })
        const together = await run(backend.tensors, inputs)
        for (const [first, last] of [
          ...([
            [0, 1],
            [100, 101],
            [3, 5],
            [1, 4],
            [2, 6],
            [5, 10],
            [5, 101],
            [0, 96],
          ] as const),
        ]) {
          const alone = await run(backend.tensors, rowsOf(inputs, first, last))
          const name = `rows ${first} to ${last}, x of ${x}`
          const expected = together.slice(first * 53, last * 53)
          expectIdentical(alone, expected, { name, shape: [last - first, 53] })
        }
      }
    })

    test('however many columns there are', async () => {
      const { inputs } = caseOf({ ...plain, m: 5, n: 53, k: 300, seed: 17 })
      const together = await run(backend.tensors, inputs)
      for (const n of [1, 2, 3, 7, 8, 24, 50]) {
        const few = await run(backend.tensors, {
          ...{ ...inputs, n },
          weight: inputs.weight.slice(0, n * 300),
          scales: inputs.scales.slice(0, n),
        })
        const expected = together.filter((_, i) => i % 53 < n)
        expectIdentical(few, expected, { name: 'out', shape: [5, n] })
      }
    })

    test.each([1, 2, 3, 5])('with %i threads', async (threads) => {
      for (const m of [1, 3, 67]) {
        const { inputs } = caseOf({ ...plain, m, n: 1013, k: 83, seed: 18 })
        const here = await run(backend.tensors, inputs)
        const there = await backend.withDevice({ threads }, (_, tensors) => run(tensors, inputs))
        expectIdentical(there, here, { name: 'out', shape: [m, 1013] })
      }
    })

    test('alone and in a group', async () => {
      const { tensors } = backend
      const layers = [40, 0, 23].map((n, i) => inputsOf({ ...plain, m: 3, n, k: 72, seed: i }))
      const [first] = layers.map((own) => tensorsOf(tensors, own))
      const x = first!.x
      const floats = {
        weight: tensors.f32(normals(9, 5 * 72), [5, 72]),
        out: tensors.output('f32', [3, 5]),
      }
      const products = [
        ...layers.map((own) => ({ ...tensorsOf(tensors, own), x: undefined })),
        floats,
      ].slice(1)
      groupedLinear({ x, products })
      for (const [i, product] of products.entries()) {
        const out = tensors.output('f32', product.out.shape)
        linear({ ...product, x, out })
        const name = `products[${i}]`
        const [together, alone] = [await tensors.values(product.out), await tensors.values(out)]
        expectIdentical(together, alone, { name, shape: out.shape })
      }
    })
  })

  test('rows of every size', async () => {
    const sizes = [1e30, 1e6, 1, 1e-6, 1e-30, 0]
    for (const k of [40, 1100]) {
      for (const repeats of [1, 4]) {
        const rows = Array.from({ length: repeats }, () => sizes).flat()
        const [m, n] = [rows.length, 19]
        const own = inputsOf({ ...plain, m, n, k, seed: 3 })
        const x = storeAs(
          'f32',
          own.x.values.map((value, i) => value * (rows[Math.floor(i / k)] as number)),
        )
        const { weight, scales } = own
        const expected = reference({ x: x.values, weight, scales, m, n, k })
        const comparison = { name: 'out', shape: [m, n], tolerance: tolerance.i8Linear }
        expectClose(await run(backend.tensors, { ...own, x }), expected, comparison)
      }
    }
  })

  test('an outlier of x costs what is beside it in its 256 elements', async () => {
    const [m, n, k] = [1, 17, 512]
    const own = inputsOf({ ...plain, m, n, k, seed: 6 })
    const values = own.x.values.slice()
    values[300] = 1e4
    own.weight.forEach((_, i) => {
      if (i % k === 300) own.weight[i] = 0
    })
    const x = {
      stored: Float32Array.from(values),
      values: Float64Array.from(Float32Array.from(values)),
    }
    const expected = reference({ x: x.values, weight: own.weight, scales: own.scales, m, n, k })
    const actual = await run(backend.tensors, { ...own, x })
    // 256 roundings of up to 1e4 / 2^16, of products of size 1.
    const worst = 256 * (1e4 / 65534) * Math.max(...own.scales) * 127
    for (const [i, y] of actual.entries()) {
      expect(Math.abs(y - (expected[i] as number))).toBeLessThan(worst)
    }
    // What stands in the other 256 has lost nothing by it.
    own.weight.forEach((_, i) => {
      if (i % k >= 256) own.weight[i] = 0
    })
    const other = reference({ x: x.values, weight: own.weight, scales: own.scales, m, n, k })
    const comparison = { name: 'out', shape: [m, n], tolerance: tolerance.i8Linear, floor: 1 }
    expectClose(await run(backend.tensors, { ...own, x }), other, comparison)
  })

  test.each([1, 3, 6])('NaN and infinities reach their row and no other, of %i rows', async (m) => {
    const { NaN: nan, POSITIVE_INFINITY: inf } = Number
    const k = 300
    for (const bad of [nan, inf, -inf]) {
      for (const at of [0, 255, 299]) {
        const inputs = inputsOf({ ...plain, m, n: 5, k, seed: 2 })
        const values = Float32Array.from(inputs.x.values)
        values[(m - 1) * k + at] = bad
        const broken = { stored: values, values: Float64Array.from(values) }
        const out = await run(backend.tensors, { ...inputs, x: broken })
        const good = await run(backend.tensors, inputs)
        // A CPU has no step for such a row; a GPU multiplies it as it is.
        const own = [...out.slice((m - 1) * 5)]
        if (isHost(backend.name)) expect(own).toEqual([nan, nan, nan, nan, nan])
        else expect(own.some(Number.isFinite)).toBe(false)
        const rest = (m - 1) * 5
        expectIdentical(out.slice(0, rest), good.slice(0, rest), { name: 'out', shape: [m - 1, 5] })
      }
    }
  })

  const refused: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
    ['a weight of i8 without scales', () => ({ scales: undefined }), 'ERR_ZC_DTYPE', 'weight'],
    ['scales of floats', (t) => ({ weight: t.output('f32', [5, 7]) }), 'ERR_ZC_DTYPE', 'weight'],
    ['codes of 4 bits', (t) => ({ weight: t.output('u8', [5, 7]) }), 'ERR_ZC_ARGUMENT', 'zeros'],
    ['zeros', (t) => ({ zeros: t.output('u8', [5, 1]) }), 'ERR_ZC_DTYPE', 'weight'],
    [
      'a weight of another k',
      (t) => ({ weight: t.output('i8', [5, 6]) }),
      'ERR_ZC_SHAPE',
      'weight',
    ],
    ['scales of f16', (t) => ({ scales: t.output('f16', [5]) }), 'ERR_ZC_DTYPE', 'scales'],
    ['scales of another n', (t) => ({ scales: t.output('f32', [7]) }), 'ERR_ZC_SHAPE', 'scales'],
    ['x of i8', (t) => ({ x: t.output('i8', [3, 7]) }), 'ERR_ZC_DTYPE', 'x'],
    ['an out of i8', (t) => ({ out: t.output('i8', [3, 5]) }), 'ERR_ZC_DTYPE', 'out'],
  ]
  test.each(refused)('refuses %s', (_, fault, code, argument) => {
    const { tensors } = backend
    const args = {
      x: tensors.output('f32', [3, 7]),
      weight: tensors.output('i8', [5, 7]),
      scales: tensors.output('f32', [5]),
      out: tensors.output('f32', [3, 5]),
    }
    const own = { ...args, ...fault(tensors) }
    expectRefused(() => linear(own), { code, op: 'linear', argument })
    const { x, ...product } = own
    const inGroup = argument === 'x' ? 'x' : `products[0].${argument}`
    const fails = { code, op: 'groupedLinear', argument: inGroup }
    expectRefused(() => groupedLinear({ x, products: [product] }), fails)
  })
})
