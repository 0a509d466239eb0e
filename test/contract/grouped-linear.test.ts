import fc from 'fast-check'
import type { ErrorCode } from '../../lib/errors.js'
import { groupedLinear, linear } from '../../lib/ops/index.js'
import { type FloatDtype, linear as reference } from '../../lib/reference/index.js'
import { describeBackends } from '../support/backends.js'
import { expectClose, expectIdentical } from '../support/compare.js'
import { type DeviceTensors, floatDtypes } from '../support/device-tensors.js'
import { expectRefused } from '../support/errors.js'
import { propertyRuns } from '../support/properties.js'
import { normals, storeAs } from '../support/random-data.js'
import { tolerance } from '../support/tolerance.js'

/** One call. */
interface Group {
  m: number
  k: number
  x: FloatDtype
  products: readonly Product[]
  seed: number
}

interface Product {
  n: number
  weight: FloatDtype
  bias: FloatDtype | null
  out: FloatDtype
}

const plain = { weight: 'bf16', bias: null, out: 'f32' } as const
/** Q, K and V; gate and up. */
const widths: readonly (readonly number[])[] = [[96, 32, 32], [131, 131], [53]]
/** Few rows and many, whatever x is made of. */
const rowCounts = [1, 2, 4, 5, 8, 16, 17]

describeBackends('groupedLinear', (backend) => {
  function tensorsOf(tensors: DeviceTensors, group: Group) {
    const { m, k, seed } = group
    const input = (dtype: FloatDtype, shape: number[], own: number) => {
      const n = shape.reduce((product, size) => product * size, 1)
      const { stored } = storeAs(dtype, normals(seed + own, n))
      return tensors.input(dtype, stored as Uint16Array, shape)
    }
    const x = input(group.x, [m, k], 0)
    const products = group.products.map(({ n, weight, bias, out }, i) => ({
      weight: input(weight, [n, k], 3 * i + 1),
      ...(bias ? { bias: input(bias, [n], 3 * i + 2) } : {}),
      out: tensors.output(out, [m, n]),
    }))
    return { x, products }
  }

  /** Each product against `linear` of the same backend. */
  async function expectLinear(group: Group) {
    const { tensors } = backend
    const { x, products } = tensorsOf(tensors, group)
    groupedLinear({ x, products })
    for (const [i, product] of products.entries()) {
      const alone = tensors.output(product.out.dtype, product.out.shape)
      linear({ x, ...product, out: alone })
      expectIdentical(await tensors.values(product.out), await tensors.values(alone), {
        name: `products[${i}].out`,
        shape: product.out.shape,
        seed: group.seed,
      })
    }
    tensors.dispose()
  }

  test.each(rowCounts)('%i rows', async (m) => {
    for (const k of [64, 83, 1096]) {
      for (const ns of widths) {
        const products = ns.map((n) => ({ ...plain, n }))
        await expectLinear({ m, k, x: 'bf16', products, seed: m + k })
      }
    }
  })

  describe.each(floatDtypes)('x of %s', (x) => {
    test.each(floatDtypes)('weights of %s', async (weight) => {
      for (const m of [1, 6, 9]) {
        for (const bias of [null, 'f32'] as const) {
          const products = [48, 16, 17].map((n) => ({ n, weight, bias, out: 'f32' as const }))
          await expectLinear({ m, k: 128, x, products, seed: 5 })
        }
      }
    })
  })

  test('products that differ in all they may', async () => {
    const products: Product[] = [
      { n: 40, weight: 'bf16', bias: 'f32', out: 'f32' },
      { n: 0, weight: 'bf16', bias: null, out: 'f32' },
      { n: 23, weight: 'bf16', bias: null, out: 'f16' },
    ]
    await expectLinear({ m: 3, k: 72, x: 'f32', products, seed: 1 })
    const mixed = products.map((product, i) => ({ ...product, weight: floatDtypes[i] }))
    await expectLinear({ m: 3, k: 72, x: 'f32', products: mixed, seed: 1 })
  })

  test('a weight that is not aligned, among others that are', async () => {
    const { tensors } = backend
    const [m, n, k] = [2, 24, 64]
    const weights = storeAs('bf16', normals(3, 2 * n * k + 8)).stored as Uint16Array
    const all = tensors.own(backend.device.tensor('bf16', [weights.length]).write(weights))
    const x = tensors.input('bf16', storeAs('bf16', normals(4, m * k)).stored as Uint16Array, [
      m,
      k,
    ])
    const products = [0, n * k + 1].map((first) => ({
      weight: tensors.own(all.view([n, k], first)),
      out: tensors.output('f32', [m, n]),
    }))
    groupedLinear({ x, products })
    for (const { weight, out } of products) {
      const alone = tensors.output('f32', [m, n])
      linear({ x, weight, out: alone })
      const own = { name: 'out', shape: [m, n] }
      expectIdentical(await tensors.values(out), await tensors.values(alone), own)
    }
  })

  test('nothing to multiply: no rows, no columns, no products of their elements', async () => {
    const products = [{ ...plain, n: 5, bias: 'f32' as const }]
    await expectLinear({ m: 0, k: 7, x: 'bf16', products, seed: 1 })
    await expectLinear({ m: 3, k: 0, x: 'bf16', products, seed: 1 })
    await expectLinear({ m: 3, k: 7, x: 'bf16', products: [{ ...plain, n: 0 }], seed: 1 })
  })

  test('equals the reference', async () => {
    const { tensors } = backend
    const [m, k] = [4, 200]
    const products = [31, 16].map((n) => ({ ...plain, n }))
    const made = tensorsOf(tensors, { m, k, x: 'f32', products, seed: 2 })
    groupedLinear(made)
    const x = await tensors.values(made.x)
    for (const [i, { weight, out }] of made.products.entries()) {
      const { n } = products[i]
      const expected = reference({ x, weight: await tensors.values(weight), m, n, k })
      expectClose(await tensors.values(out), expected, {
        name: `products[${i}].out`,
        shape: [m, n],
        tolerance: tolerance.f32Linear,
        floor: 1,
      })
    }
  })

  test('property: any small group', async () => {
    const size = fc.integer({ min: 0, max: 24 })
    const dtype = fc.constantFrom(...floatDtypes)
    const product = fc.record({ n: size, weight: dtype, bias: fc.option(dtype), out: dtype })
    const groups = fc.record({
      ...{ m: size, k: size, x: dtype, seed: fc.nat({ max: 1e6 }) },
      products: fc.array(product, { minLength: 1, maxLength: 3 }),
    })
    await fc.assert(fc.asyncProperty(groups, expectLinear), propertyRuns(40))
  })

  const refused: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
    ['integers for x', (t) => ({ x: t.output('i32', [3, 7]) }), 'ERR_ZC_DTYPE', 'x'],
    ['x of one axis', (t) => ({ x: t.output('f32', [21]) }), 'ERR_ZC_SHAPE', 'x'],
    ['no products', () => ({ products: [] }), 'ERR_ZC_ARGUMENT', 'products'],
  ]
  const wrong: [string, (t: DeviceTensors) => object, ErrorCode, string][] = [
    [
      'a weight of another k',
      (t) => ({ weight: t.output('f32', [5, 6]) }),
      'ERR_ZC_SHAPE',
      'weight',
    ],
    ['bytes for weight', (t) => ({ weight: t.output('u8', [5, 7]) }), 'ERR_ZC_DTYPE', 'weight'],
    ['bias of another n', (t) => ({ bias: t.output('f32', [4]) }), 'ERR_ZC_SHAPE', 'bias'],
    ['another out', (t) => ({ out: t.output('f32', [5, 3]) }), 'ERR_ZC_SHAPE', 'out'],
    ['integers for out', (t) => ({ out: t.output('i32', [3, 5]) }), 'ERR_ZC_DTYPE', 'out'],
  ]
  const call = (t: DeviceTensors) => {
    const product = () => ({ weight: t.output('f32', [5, 7]), out: t.output('f32', [3, 5]) })
    return { x: t.output('f32', [3, 7]), products: [product(), product(), product()] }
  }
  test.each(refused)('refuses %s', (_, fault, code, argument) => {
    const args = { ...call(backend.tensors), ...fault(backend.tensors) }
    expectRefused(() => groupedLinear(args), { code, op: 'groupedLinear', argument })
  })
  test.each(wrong)('refuses %s, and says of which product', (_, fault, code, name) => {
    const { x, products } = call(backend.tensors)
    Object.assign(products[1], fault(backend.tensors))
    const argument = `products[1].${name}`
    expectRefused(() => groupedLinear({ x, products }), { code, op: 'groupedLinear', argument })
  })
  test('refuses four products', () => {
    const { x, products } = call(backend.tensors)
    const fault = { code: 'ERR_ZC_ARGUMENT', op: 'groupedLinear', argument: 'products' } as const
    expectRefused(() => groupedLinear({ x, products: [...products, products[0]] }), fault)
  })
})
