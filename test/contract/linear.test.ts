import fc from 'fast-check'
import type { ErrorCode } from '../../lib/errors.js'
import { linear } from '../../lib/ops/index.js'
import { type FloatDtype, linear as reference } from '../../lib/reference/index.js'
import { type Backend, describeBackends, once } from '../support/backends.js'
import { expectClose, expectIdentical } from '../support/compare.js'
import { type DeviceTensors, floatDtypes } from '../support/device-tensors.js'
import { expectRefused } from '../support/errors.js'
import { propertyRuns } from '../support/properties.js'
import { normals, storeAs } from '../support/random-data.js'
import { tolerance } from '../support/tolerance.js'

/** One call. */
interface Layer {
  m: number
  n: number
  k: number
  x: FloatDtype
  weight: FloatDtype
  bias: FloatDtype | null
  out: FloatDtype
  accumulate: boolean
  seed: number
}

const plain = { x: 'f32', weight: 'f32', bias: null, out: 'f32', accumulate: false } as const

/** Inputs as the dtypes store them, and the reference's result for exactly these. */
function makeCase(layer: Layer) {
  const { m, n, k, seed } = layer
  const x = storeAs(layer.x, normals(seed, m * k))
  const weight = storeAs(layer.weight, normals(seed + 1, n * k))
  const bias = layer.bias ? storeAs(layer.bias, normals(seed + 2, n)) : undefined
  const before = storeAs(layer.out, normals(seed + 3, m * n))
  const expected = reference({
    x: x.values,
    weight: weight.values,
    ...(bias ? { bias: bias.values } : {}),
    ...(layer.accumulate ? { accumulate: before.values } : {}),
    m,
    n,
    k,
  })
  return { ...layer, x, weight, bias, before, expected, dtypes: layer }
}

type Case = ReturnType<typeof makeCase>
const caseOf = once(makeCase)

type Inputs = Omit<Case, 'expected' | 'dtypes'> & {
  dtypes: Pick<Layer, 'x' | 'weight' | 'bias' | 'out'>
}

async function run(tensors: DeviceTensors, own: Inputs) {
  const { m, n, k, dtypes, accumulate } = own
  const out = accumulate
    ? tensors.input(dtypes.out, own.before.stored as Uint16Array, [m, n])
    : tensors.output(dtypes.out, [m, n])
  linear({
    x: tensors.input(dtypes.x, own.x.stored as Uint16Array, [m, k]),
    weight: tensors.input(dtypes.weight, own.weight.stored as Uint16Array, [n, k]),
    bias: own.bias && tensors.input(dtypes.bias!, own.bias.stored as Uint16Array, [n]),
    out,
    accumulate,
  })
  return tensors.values(out)
}

/** The same elements again and again, `length` in all. */
function repeatTo(data: Float32Array | Uint16Array, length: number) {
  const all = data instanceof Float32Array ? new Float32Array(length) : new Uint16Array(length)
  for (let at = 0; at < length; at += data.length) {
    all.set(data.subarray(0, length - at), at)
  }
  return all
}

const allowed = {
  f32: tolerance.f32Linear,
  f16: tolerance.f16Output,
  bf16: tolerance.bf16Output,
}

async function expectReference(backend: Backend, layer: Layer) {
  const own = caseOf(layer)
  const { m, n, out, seed } = layer
  expectClose(await run(backend.tensors, own), own.expected, {
    name: 'out',
    shape: [m, n],
    tolerance: allowed[out],
    // A row of few columns may cancel out; products are of size 1.
    floor: 1,
    seed,
  })
  backend.tensors.dispose()
}

/**
 * (m, n, k): nothing, one, primes, under / at / over vectors, tiles and panels (24 rows of the
 * weight by 256 of k), parts of 1024 and more of k.
 */
const shapes: readonly (readonly [m: number, n: number, k: number])[] = [
  [0, 5, 7],
  [3, 0, 7],
  [3, 5, 0],
  [1, 1, 1],
  [1, 7, 13],
  [1, 8, 16],
  [2, 3, 8],
  [3, 9, 15],
  [4, 3, 17],
  [5, 4, 7],
  [7, 11, 31],
  [8, 47, 32],
  [9, 48, 33],
  [4, 49, 64],
  [63, 50, 5],
  [64, 97, 9],
  [65, 13, 19],
  [131, 53, 37],
  [1, 211, 1021],
  [6, 101, 512],
  [4, 24, 255],
  [5, 23, 256],
  [6, 25, 257],
  [95, 24, 264],
  [96, 48, 512],
  [97, 49, 523],
  [5, 19, 2056],
  [37, 131, 4100],
  [70, 9, 1088],
]

describeBackends('linear', (backend) => {
  test.each(shapes)('(%i, %i, %i) equals the reference', async (m, n, k) => {
    const seed = m * 10_000 + n * 100 + k
    for (const bias of [null, 'f32'] as const) {
      for (const accumulate of [false, true]) {
        await expectReference(backend, { ...plain, m, n, k, bias, accumulate, seed })
      }
    }
  })

  describe.each(floatDtypes)('x of %s', (x) => {
    describe.each(floatDtypes)('weight of %s', (weight) => {
      test.each(floatDtypes)('out of %s', async (out) => {
        for (const bias of [null, ...floatDtypes]) {
          for (const accumulate of [false, true]) {
            const dtypes = { x, weight, bias, out, accumulate }
            await expectReference(backend, { ...dtypes, m: 6, n: 53, k: 37, seed: 8 })
          }
        }
      })
    })
  })

  test('without products: 0, the bias, or what was there', async () => {
    for (const bias of [null, 'f16'] as const) {
      for (const accumulate of [false, true]) {
        const own = caseOf({ ...plain, m: 3, n: 5, k: 0, bias, accumulate, seed: 4 })
        const out = await run(backend.tensors, own)
        const sums = Float32Array.from(own.expected)
        expectIdentical(out, sums, { name: 'out', shape: [3, 5] })
      }
    }
  })

  describe('gives a row the same bits', () => {
    const layer = { ...plain, n: 53, k: 83, bias: 'f32', seed: 17 } as const
    const types = floatDtypes.flatMap((x) => floatDtypes.map((weight) => ({ x, weight })))

    const lengths = [523, 2568, 4100].flatMap((k) => types.map((pair) => ({ ...pair, k })))

    test.each(lengths)(
      'however many rows there are, x of $x, weight of $weight, k = $k',
      async (own) => {
        const layer = { ...plain, ...own, n: 53, bias: 'f32', seed: 17 } as const
        const all = caseOf({ ...layer, m: 101 })
        const together = await run(backend.tensors, all)
        for (const [first, last] of [
          [0, 1],
          [100, 101],
          [3, 5],
          [1, 4],
          [2, 6],
          [5, 10],
          [5, 101],
          [0, 96],
          [95, 99],
        ]) {
          const stored = all.x.stored.slice(first * layer.k, last * layer.k)
          const part = { ...all, m: last - first, x: { ...all.x, stored } }
          const alone = await run(backend.tensors, part)
          expectIdentical(alone, together.slice(first * layer.n, last * layer.n), {
            name: `out of rows ${first} to ${last}`,
            shape: [last - first, layer.n],
          })
        }
      },
    )

    // A prompt that Hopper multiplies by wgmma, in tiles of 256 columns, because its multiprocessors,
    // 132 or the emulator's four, would have more than one tile of 128 each. Slices of it are
    // multiplied in narrow tiles, by mma, in parts.
    const types16 = [
      ['f16', 'f16'],
      ['bf16', 'bf16'],
      ['f32', 'f16'],
      ['f32', 'bf16'],
    ] as const
    test.each(types16)('in a long prompt, x of %s, weight of %s', async (xType, weightType) => {
      const emulated = backend.name.startsWith('cuda-emu')
      const [m, n] = backend.name === 'cuda' ? [1100, 2000] : emulated ? [400, 140] : [140, 40]
      const k = 2080
      const dtypes = { x: xType, weight: weightType, bias: weightType, out: 'f32' } as const
      const own = {
        ...{ ...dtypes, dtypes, m, n, k, accumulate: true, seed: 19 },
        x: storeAs(xType, normals(19, m * k)),
        weight: storeAs(weightType, normals(20, n * k)),
        bias: storeAs(weightType, normals(21, n)),
        before: storeAs('f32', normals(22, m * n)),
      }
      const together = await run(backend.tensors, own)
      for (const [first, last] of [
        [0, 1],
        [m - 1, m],
        [40, 46],
        [50, 83],
        [3, 83],
        [m - 100, m],
      ] as const) {
        const slice = (data: (typeof own)['x'], width: number) => ({
          ...data,
          stored: data.stored.slice(first * width, last * width),
        })
        const alone = await run(backend.tensors, {
          ...{ ...own, m: last - first, x: slice(own.x, k), before: slice(own.before, n) },
        })
        expectIdentical(alone, together.slice(first * n, last * n), {
          name: `out of rows ${first} to ${last}`,
          shape: [last - first, n],
        })
      }
    })

    test('however many columns there are', async () => {
      const all = caseOf({ ...layer, m: 5 })
      const together = await run(backend.tensors, all)
      for (const n of [1, 2, 3, 7, 8, 9, 50]) {
        const part = {
          ...all,
          n,
          weight: { ...all.weight, stored: all.weight.stored.slice(0, n * layer.k) },
          bias: { ...all.bias!, stored: all.bias!.stored.slice(0, n) },
        }
        const few = await run(backend.tensors, part)
        const expected = together.filter((_, i) => i % layer.n < n)
        expectIdentical(few, expected, { name: 'out', shape: [5, n] })
      }
    })

    // CUDA multiplies a few rows in tiles of 16, 32 or 48 columns, whichever its multiprocessors,
    // the emulator's four or a GPU's 132, share best. So many columns are the same 53 again and again.
    test.each(types)(
      'in tiles of every width, x of $x, weight of $weight',
      async ({ x, weight }) => {
        const width = backend.name === 'cuda' ? 2112 : 64
        for (const m of [3, 8, 11]) {
          const few = caseOf({ ...layer, x, weight, m, k: 1160 })
          const expected = await run(backend.tensors, few)
          for (const n of [width - 1, 2 * width - 3, 3 * width - 5]) {
            const many = {
              ...few,
              n,
              weight: { ...few.weight, stored: repeatTo(few.weight.stored, n * few.k) },
              bias: { ...few.bias!, stored: repeatTo(few.bias!.stored, n) },
            }
            expectIdentical(
              await run(backend.tensors, many),
              Float64Array.from({ length: m * n }, (_, i) => {
                const [row, column] = [Math.floor(i / n), i % n]
                return expected[row * few.n + (column % few.n)]
              }),
              { name: 'out', shape: [m, n] },
            )
          }
          backend.tensors.dispose()
        }
      },
    )

    test.each([1, 2, 3, 5])('with %i threads', async (threads) => {
      for (const m of [1, 67]) {
        const own = caseOf({ ...plain, m, n: 1013, k: 83, seed: 18 })
        const here = await run(backend.tensors, own)
        const there = await backend.withDevice({ threads }, (_, tensors) => run(tensors, own))
        expectIdentical(there, here, { name: 'out', shape: [m, 1013] })
      }
    })
  })

  test.each(floatDtypes)('rows of every size, weight of %s', async (weight) => {
    const sizes = [1e30, 1e6, 1, 1e-6, 1e-30, 0]
    for (const k of [40, 1100]) {
      for (const repeats of [1, 4]) {
        const rows = Array.from({ length: repeats }, () => sizes).flat()
        const [m, n] = [rows.length, 19]
        const plainly = makeCase({ ...plain, weight, m, n, k, seed: 3 })
        const values = plainly.x.values.map((x, i) => x * rows[Math.floor(i / k)])
        const own = { ...plainly, x: storeAs('f32', values) }
        const expected = reference({
          ...{ x: own.x.values, weight: own.weight.values, m, n, k },
        })
        const comparison = { name: 'out', shape: [m, n], tolerance: tolerance.f32Linear }
        expectClose(await run(backend.tensors, own), expected, comparison)
      }
    }
  })

  const { NaN: nan, POSITIVE_INFINITY: inf } = Number
  test('NaN and infinities reach their row and no other', async () => {
    const { tensors } = backend
    const x = tensors.f32([1, 2, nan, 1, 1, 1, inf, 1, 1], [3, 3])
    const out = tensors.output('f32', [3, 2])
    linear({ x, weight: tensors.f32([1, 1, 1, -1, 1, 1], [2, 3]), out })
    expect([...(await tensors.values(out))]).toEqual([nan, nan, 3, 1, inf, -inf])
  })

  describe.each(floatDtypes)('NaN and infinities in x of %s', (x) => {
    test.each(floatDtypes)('weight of %s', async (weight) => {
      for (const m of [4, 21]) {
        const own = makeCase({ ...plain, x, weight, m, n: 2, k: 3, seed: 23 })
        const values = Array.from(
          { length: m },
          (_, row) =>
            [
              [1, 2, nan],
              [1, 1, 1],
              [inf, 1, 1],
              [1, -inf, 1],
            ][row % 4],
        ).flat()
        const out = await run(backend.tensors, {
          ...own,
          x: storeAs(x, Float64Array.from(values)),
          weight: storeAs(weight, Float64Array.from([1, 1, 1, -1, 1, 1])),
        })
        const rows = Array.from(
          { length: m },
          (_, row) =>
            [
              [nan, nan],
              [3, 1],
              [inf, -inf],
              [-inf, -inf],
            ][row % 4],
        ).flat()
        expect([...out]).toEqual(rows)
      }
    })
  })

  // Whose few set bits are in none but the last plane, or are rounded away.
  describe.each([
    { x: 'f16', nan: 0x7c01, one: 0x3c00 },
    { x: 'bf16', nan: 0x7f81, one: 0x3f80 },
  ] as const)('a signalling NaN of $x', ({ x, nan: signalling, one }) => {
    test.each(floatDtypes)('weight of %s', async (weight) => {
      for (const m of [2, 21]) {
        const own = makeCase({ ...plain, x, weight, m, n: 1, k: 3, seed: 24 })
        const stored = new Uint16Array(3 * m).fill(one)
        stored[1] = signalling
        const out = await run(backend.tensors, {
          ...own,
          x: { ...own.x, stored },
          weight: storeAs(weight, Float64Array.of(1, 1, 1)),
        })
        expect([...out]).toEqual(Array.from({ length: m }, (_, row) => (row === 0 ? nan : 3)))
      }
    })
  })

  test('f16 outputs saturate', async () => {
    const { tensors } = backend
    const out = tensors.output('f16', [1, 2])
    linear({ x: tensors.f32([1e6], [1, 1]), weight: tensors.f32([1, -1], [2, 1]), out })
    expect([...(await tensors.values(out))]).toEqual([65504, -65504])
  })

  test('property: any small layer', async () => {
    const size = fc.integer({ min: 0, max: 24 })
    const dtype = fc.constantFrom(...floatDtypes)
    const inputs = fc.record({
      ...{ m: size, n: size, k: size, x: dtype, weight: dtype, out: dtype },
      bias: fc.option(dtype),
      accumulate: fc.boolean(),
      seed: fc.nat({ max: 1e6 }),
    })
    const property = fc.asyncProperty(inputs, (layer) => expectReference(backend, layer))
    await fc.assert(property, propertyRuns(60))
  })

  const refused: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
    ['integers for x', (t) => ({ x: t.output('i32', [3, 7]) }), 'ERR_ZC_DTYPE', 'x'],
    ['x of one axis', (t) => ({ x: t.output('f32', [21]) }), 'ERR_ZC_SHAPE', 'x'],
    ['bytes for weight', (t) => ({ weight: t.output('u8', [5, 7]) }), 'ERR_ZC_DTYPE', 'weight'],
    ['weight of another k', (t) => ({ weight: t.output('f32', [5, 6]) }), 'ERR_ZC_SHAPE', 'weight'],
    ['a transposed weight', (t) => ({ weight: t.output('f32', [7, 5]) }), 'ERR_ZC_SHAPE', 'weight'],
    ['bias of another n', (t) => ({ bias: t.output('f32', [4]) }), 'ERR_ZC_SHAPE', 'bias'],
    ['integer bias', (t) => ({ bias: t.output('i32', [5]) }), 'ERR_ZC_DTYPE', 'bias'],
    ['another out', (t) => ({ out: t.output('f32', [5, 3]) }), 'ERR_ZC_SHAPE', 'out'],
    ['integers for out', (t) => ({ out: t.output('i32', [3, 5]) }), 'ERR_ZC_DTYPE', 'out'],
  ]
  test.each(refused)('refuses %s', (_, fault, code, argument) => {
    const { tensors } = backend
    const args = {
      x: tensors.output('f32', [3, 7]),
      weight: tensors.output('f32', [5, 7]),
      bias: tensors.output('f32', [5]),
      out: tensors.output('f32', [3, 5]),
    }
    expectRefused(() => linear({ ...args, ...fault(tensors) }), { code, op: 'linear', argument })
  })
})
