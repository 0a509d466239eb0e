import type { ErrorCode } from '../../lib/errors.js'
import { groupedLinear, linear } from '../../lib/ops/index.js'
import {
  type FloatDtype,
  packInt4Codes,
  linear as reference,
  toF16,
} from '../../lib/reference/index.js'
import { describeBackends, isHost, once } from '../support/backends.js'
import { expectClose, expectIdentical } from '../support/compare.js'
import { type DeviceTensors, floatDtypes } from '../support/device-tensors.js'
import { expectRefused } from '../support/errors.js'
import { integers, normals, storeAs } from '../support/random-data.js'
import { tolerance } from '../support/tolerance.js'
import {
  type Grouping,
  groupings,
  groupLength,
  makeWeightOf4Bits,
  tensorsOf4Bits,
  valuesOf4Bits,
} from '../support/weights-of-4-bits.js'

/** One call with a weight of 4 bits. */
interface Layer {
  m: number
  n: number
  k: number
  group: Grouping
  x: FloatDtype
  bias: FloatDtype | null
  out: FloatDtype
  accumulate: boolean
  seed: number
}

const plain = { x: 'f32', bias: null, out: 'f32', accumulate: false, group: 64 } as const

/** Inputs as the dtypes store them: products are of size 1. */
function inputsOf(layer: Layer) {
  const { m, n, k, group, seed } = layer
  return {
    ...layer,
    x: storeAs(layer.x, normals(seed, m * k)),
    ...makeWeightOf4Bits(group, n * k, seed + 1),
    bias: layer.bias && storeAs(layer.bias, normals(seed + 4, n)),
    before: storeAs(layer.out, normals(seed + 5, m * n)),
    dtypes: { x: layer.x, bias: layer.bias, out: layer.out },
  }
}

type Inputs = ReturnType<typeof inputsOf>

function expectedOf(inputs: Inputs, onHost: boolean) {
  const { m, n, k, group, accumulate, dtypes, bias, before } = inputs
  return reference({
    ...{ x: inputs.x.values, m, n, k },
    weight: valuesOf4Bits(inputs, group, dtypes.x, onHost),
    ...(bias ? { bias: bias.values } : {}),
    ...(accumulate ? { accumulate: before.values } : {}),
  })
}

const caseOf = once(({ onHost, ...layer }: Layer & { onHost: boolean }) => {
  const inputs = inputsOf(layer)
  return { inputs, expected: expectedOf(inputs, onHost) }
})

function tensorsOf(tensors: DeviceTensors, own: Inputs) {
  const { m, n, k, group, dtypes } = own
  return {
    x: tensors.input(dtypes.x, own.x.stored as Uint16Array, [m, k]),
    ...tensorsOf4Bits(tensors, own, group, [n, k]),
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

/** (m, n, k): nothing, one, primes, under / at / over vectors, panels (16 of n) and blocks (256 of k). */
const shapes: readonly (readonly [m: number, n: number, k: number])[] = [
  ...([
    [0, 5, 128],
    [3, 0, 128],
    [1, 1, 128],
    [1, 7, 128],
    [2, 8, 256],
    [3, 9, 384],
    [4, 15, 256],
    [5, 16, 512],
    [6, 17, 128],
  ] as const),
  ...([
    [7, 31, 640],
    [8, 47, 128],
    [12, 48, 256],
    [13, 49, 384],
    [1, 211, 1024],
    [4, 24, 1152],
    [96, 48, 512],
    [97, 33, 384],
    [131, 53, 128],
  ] as const),
  // A few rows of which x fits in L1, and does not.
  ...([
    [4, 29, 2048],
    [4, 29, 2176],
    [3, 27, 4096],
    [2, 25, 8320],
    [1, 26, 9088],
  ] as const),
]

const title = 'linear with a weight of 4 bits'

describeBackends(title, (backend) => {
  const onHost = isHost(backend.name)

  async function expectReference(layer: Layer) {
    const { inputs, expected } = caseOf({ ...layer, onHost })
    const { m, n, k, seed } = layer
    // A sum of so many products of size 1.
    const comparison = { name: 'out', shape: [m, n], floor: Math.sqrt(k), seed }
    const actual = await run(backend.tensors, inputs)
    expectClose(actual, expected, { ...comparison, tolerance: allowed[layer.out] })
    backend.tensors.dispose()
  }

  describe.each(groupings)('groups of %s', (group) => {
    test.each(shapes)('(%i, %i, %i) equals the reference', async (m, n, k) => {
      const seed = m * 10_000 + n * 100 + k
      for (const bias of [null, 'f32'] as const) {
        const accumulate = bias !== null
        await expectReference({ ...plain, group, m, n, k, bias, accumulate, seed })
      }
    })

    test('rows of an odd number of groups', async () => {
      for (const k of group === 128 ? [] : [64, 192, 320]) {
        for (const m of [1, 2, 9]) {
          await expectReference({ ...plain, group, m, n: 37, k, seed: k })
        }
      }
    })
  })

  describe.each(floatDtypes)('x of %s', (x) => {
    test.each(floatDtypes)('out of %s', async (out) => {
      for (const bias of [null, ...floatDtypes]) {
        for (const accumulate of [false, true]) {
          for (const m of [1, 7]) {
            for (const group of [64, 'mxfp4'] as const) {
              const shape = { m, n: 53, k: 192 }
              await expectReference({
                ...plain,
                ...shape,
                group,
                x,
                bias,
                out,
                accumulate,
                seed: 8,
              })
            }
          }
        }
      }
    })
  })

  // x holds whole numbers of its block's step, which is a power of two.
  test.each(groupings)('is exact where x is one of 16 bits, groups of %s', async (group) => {
    const [n, k] = [31, 640]
    for (const m of [1, 2, 5]) {
      const own = inputsOf({ ...plain, group, m, n, k, seed: 3 })
      const x = Float32Array.from(integers(4, m * k, 65535), (factor) => factor - 32767)
      for (let i = 0; i < x.length; i += 64) x[i] = 32767
      own.scales.fill(group === 'mxfp4' ? 117 : (toF16([2 ** -10])[0] as number))
      const exact = { ...own, x: { stored: x, values: Float64Array.from(x) } }
      // Groups of integers are exact, and added in float32.
      const comparison = { name: 'out', shape: [m, n], tolerance: 5e-7 }
      expectClose(await run(backend.tensors, exact), expectedOf(exact, onHost), comparison)
    }
  })

  // Of equal elements what a group gives is the largest there is, and zero points cancel it.
  test('sums of the largest codes and elements do not overflow', async () => {
    const [m, n, k] = [3, 17, 512]
    for (const group of groupings) {
      for (const [code, zero] of [
        [15, 0],
        [0, 15],
        [15, 15],
        [7, 0],
      ] as const) {
        const own = inputsOf({ ...plain, group, m, n, k, seed: 5 })
        own.weight.fill(code * 17)
        own.zeros?.fill(zero)
        const x = Float32Array.from({ length: m * k }, () => -1)
        const same = { ...own, x: { stored: x, values: Float64Array.from(x) } }
        const comparison = { name: 'out', shape: [m, n], tolerance: 1e-6 }
        expectClose(await run(backend.tensors, same), expectedOf(same, onHost), comparison)
      }
    }
  })

  describe('gives a row the same bits', () => {
    test.each([192, 512, 2048, 4160])('however many rows there are, k = %i', async (k) => {
      for (const group of k % 128 === 0 ? groupings : ([32, 64, 'mxfp4'] as const)) {
        for (const x of floatDtypes) {
          const layer = { ...plain, group, x, m: 101, n: 53, k, bias: 'f32', seed: 17 } as const
          const { inputs } = caseOf({ ...layer, onHost })
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
      }
    })

    test.each([64, 'mxfp4'] as const)('however many columns there are, of %s', async (group) => {
      const inputs = inputsOf({ ...plain, group, m: 5, n: 53, k: 320, seed: 17 })
      const nGroups = 320 / groupLength(group)
      const together = await run(backend.tensors, inputs)
      for (const n of [1, 2, 3, 7, 8, 24, 50]) {
        const few = await run(backend.tensors, {
          ...{ ...inputs, n },
          weight: inputs.weight.slice(0, n * 160),
          scales: inputs.scales.slice(0, n * nGroups),
          zeros: inputs.zeros?.slice(0, n * nGroups) ?? null,
        })
        const expected = together.filter((_, i) => i % 53 < n)
        expectIdentical(few, expected, { name: 'out', shape: [5, n] })
      }
    })

    test.each([1, 2, 3, 5])('with %i threads', async (threads) => {
      for (const m of [1, 3, 67]) {
        for (const group of [64, 'mxfp4'] as const) {
          const inputs = inputsOf({ ...plain, group, m, n: 1013, k: 192, seed: 18 })
          const here = await run(backend.tensors, inputs)
          const there = await backend.withDevice({ threads }, (_, tensors) => run(tensors, inputs))
          expectIdentical(there, here, { name: 'out', shape: [m, 1013] })
        }
      }
    })

    test.each([
      [64, 64, 64],
      ['mxfp4', 'mxfp4', 'mxfp4'],
      [64, 'mxfp4', 32],
      [128, 'mxfp4', null],
    ] as const)('alone and in a group of %s, %s and %s', async (...groups) => {
      const { tensors } = backend
      const [m, k] = [3, 384]
      const x = tensors.f32(normals(8, m * k), [m, k])
      const products = groups.map((group, i) => {
        const n = [40, 0, 23][i] as number
        const out = tensors.output('f32', [m, n])
        if (group === null) return { weight: tensors.f32(normals(9, n * k), [n, k]), out }
        return {
          ...tensorsOf4Bits(tensors, makeWeightOf4Bits(group, n * k, i), group, [n, k]),
          out,
        }
      })
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
    for (const k of [64, 1088]) {
      for (const repeats of [1, 4]) {
        const rows = Array.from({ length: repeats }, () => sizes).flat()
        const [m, n] = [rows.length, 19]
        const own = inputsOf({ ...plain, m, n, k, seed: 3 })
        const scaled = own.x.values.map((value, i) => value * (rows[Math.floor(i / k)] as number))
        const sized = { ...own, x: storeAs('f32', scaled) }
        const comparison = { name: 'out', shape: [m, n], tolerance: tolerance.i8Linear }
        expectClose(await run(backend.tensors, sized), expectedOf(sized, onHost), comparison)
      }
    }
  })

  test.each([1, 3, 7])('NaN and infinities reach their row and no other, of %i rows', async (m) => {
    const { NaN: nan, POSITIVE_INFINITY: inf } = Number
    const k = 320
    for (const bad of [nan, inf, -inf]) {
      for (const at of [0, 255, 319]) {
        const inputs = inputsOf({ ...plain, m, n: 5, k, seed: 2 })
        const values = Float32Array.from(inputs.x.values)
        values[(m - 1) * k + at] = bad
        const broken = { stored: values, values: Float64Array.from(values) }
        const out = await run(backend.tensors, { ...inputs, x: broken })
        const good = await run(backend.tensors, inputs)
        // A CPU has no step for such a row; a GPU multiplies it as it is.
        const row = [...out.slice((m - 1) * 5)]
        if (onHost) expect(row).toEqual([nan, nan, nan, nan, nan])
        else expect(row.some(Number.isFinite)).toBe(false)
        const rest = (m - 1) * 5
        expectIdentical(out.slice(0, rest), good.slice(0, rest), { name: 'out', shape: [m - 1, 5] })
      }
    }
  })

  test.each([1, 7])('a scale of NaN reaches its column and no other, of %i rows', async (m) => {
    for (const [group, scaleOfNaN] of [
      [64, 0x7e00],
      ['mxfp4', 255],
    ] as const) {
      const own = inputsOf({ ...plain, group, m, n: 19, k: 320, seed: 2 })
      const good = await run(backend.tensors, own)
      const scales = own.scales.slice()
      scales[(4 * 320) / groupLength(group) - 1] = scaleOfNaN
      const out = await run(backend.tensors, { ...own, scales })
      const expected = good.map((y, i) => (i % 19 === 3 ? Number.NaN : y))
      expectIdentical(out, expected, { name: 'out', shape: [m, 19] })
    }
  })

  // Of x one element of a row is not 0, and is a whole number of steps.
  test('all codes and exponents of MXFP4', async () => {
    // Below 2 there are subnormals of bfloat16.
    const exponents = [...(onHost ? [0, 1] : []), 2, 3, 100, 126, 127, 128, 150, 200, 230]
    const [n, k, largest] = [exponents.length, 64, 32767]
    const own = inputsOf({ ...plain, group: 'mxfp4', m: k, n, k, seed: 1 })
    own.scales.set(exponents.flatMap((exponent) => [exponent, exponent]))
    own.weight.set(packInt4Codes(Array.from({ length: n * k }, (_, i) => i % 16)))
    const x = Float32Array.from({ length: k * k }, (_, i) => (i % (k + 1) === 0 ? largest : 0))
    const diagonal = { ...own, x: { stored: x, values: Float64Array.from(x) } }
    const comparison = { name: 'out', shape: [k, n] }
    expectIdentical(await run(backend.tensors, diagonal), expectedOf(diagonal, onHost), comparison)
  })
})

describeBackends(`${title}, refused`, (backend) => {
  const refused: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
    ['no scales', () => ({ scales: undefined }), 'ERR_ZC_ARGUMENT', 'scales'],
    ['no zeros', () => ({ zeros: undefined }), 'ERR_ZC_ARGUMENT', 'zeros'],
    ['zeros of float4', (t) => ({ scales: t.output('u8', [5, 6]) }), 'ERR_ZC_ARGUMENT', 'zeros'],
    ['float4 in 64', (t) => float4(t.output('u8', [5, 3])), 'ERR_ZC_SHAPE', 'scales'],
    ['float4 of another n', (t) => float4(t.output('u8', [4, 6])), 'ERR_ZC_SHAPE', 'scales'],
    ['float4 with a scale a row', (t) => float4(t.output('u8', [5])), 'ERR_ZC_SHAPE', 'scales'],
    ['neither', () => ({ scales: undefined, zeros: undefined }), 'ERR_ZC_DTYPE', 'weight'],
    ['signed bytes', (t) => ({ weight: t.output('i8', [5, 96]) }), 'ERR_ZC_DTYPE', 'weight'],
    ['floats', (t) => ({ weight: t.output('f32', [5, 192]) }), 'ERR_ZC_DTYPE', 'weight'],
    ['a byte a code', (t) => ({ weight: t.output('u8', [5, 192]) }), 'ERR_ZC_SHAPE', 'weight'],
    ['rows of 96', (t) => ({ x: t.output('f32', [3, 96]) }), 'ERR_ZC_SHAPE', 'weight'],
    ['rows of nothing', (t) => emptyRows(t), 'ERR_ZC_SHAPE', 'scales'],
    ['scales of f32', (t) => ({ scales: t.output('f32', [5, 3]) }), 'ERR_ZC_DTYPE', 'scales'],
    ['a scale a row', (t) => ({ scales: t.output('f16', [5]) }), 'ERR_ZC_SHAPE', 'scales'],
    ['scales of another n', (t) => ({ scales: t.output('f16', [4, 3]) }), 'ERR_ZC_SHAPE', 'scales'],
    ['groups of 192', (t) => ({ scales: t.output('f16', [5, 1]) }), 'ERR_ZC_SHAPE', 'scales'],
    ['groups of 16', (t) => ({ scales: t.output('f16', [5, 12]) }), 'ERR_ZC_SHAPE', 'scales'],
    ['no groups', (t) => ({ scales: t.output('f16', [5, 0]) }), 'ERR_ZC_SHAPE', 'scales'],
    ['zeros of i8', (t) => ({ zeros: t.output('i8', [5, 3]) }), 'ERR_ZC_DTYPE', 'zeros'],
    ['zeros of other groups', (t) => ({ zeros: t.output('u8', [5, 6]) }), 'ERR_ZC_SHAPE', 'zeros'],
    ['zeros of another n', (t) => ({ zeros: t.output('u8', [6, 3]) }), 'ERR_ZC_SHAPE', 'zeros'],
    ['an out of u8', (t) => ({ out: t.output('u8', [3, 5]) }), 'ERR_ZC_DTYPE', 'out'],
  ]
  const float4 = (scales: object) => ({ scales, zeros: undefined })
  const emptyRows = (t: DeviceTensors) => ({
    x: t.output('f32', [3, 0]),
    weight: t.output('u8', [5, 0]),
    scales: t.output('f16', [5, 0]),
    zeros: t.output('u8', [5, 0]),
  })
  test.each(refused)('refuses %s', (_, fault, code, argument) => {
    const { tensors } = backend
    const args = {
      x: tensors.output('f32', [3, 192]),
      weight: tensors.output('u8', [5, 96]),
      scales: tensors.output('f16', [5, 3]),
      zeros: tensors.output('u8', [5, 3]),
      out: tensors.output('f32', [3, 5]),
    }
    const own = { ...args, ...fault(tensors) }
    expectRefused(() => linear(own), { code, op: 'linear', argument })
    const { x, ...product } = own
    const fails = { code, op: 'groupedLinear', argument: `products[0].${argument}` }
    expectRefused(() => groupedLinear({ x, products: [product] }), fails)
  })
})
