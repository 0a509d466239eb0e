/** How many pages of salient tokens a budget in bytes leaves, layer by layer. */
import fc from 'fast-check'
import { pageCount } from '../../lib/cache/format'
import { CacheMemory, type KvShape, SequenceCache } from '../../lib/cache/index'
import { allRegularBytes, classPageBytes, salientBudget } from '../../lib/engine/salient-budget'
import { Device } from '../../lib/ops/index'
import { resolvePolicy } from '../../lib/policy/index'
import type { Compression } from '../../lib/policy/policy'
import { propertyRuns } from '../support/properties'

let device: Device
beforeAll(async () => {
  device = await Device.open('cpu', { threads: 1 })
})
afterAll(() => device.dispose())

const shapeOf = (nLayers: number, nKvHeads: number, headDim: number): KvShape => ({
  ...{ nLayers, nKvHeads, headDim },
  slidingWindow: new Array<number>(nLayers).fill(0),
})

const compressionOf = (budgetBytes: number | undefined, bits: object = {}): Compression => {
  const auto = budgetBytes === undefined ? {} : { budgetBytes }
  const policy = resolvePolicy({ name: 'zipcache', saliencyRatio: 'auto', auto, ...bits })
  return policy.compression as Compression
}

/** Runs `body` with an empty cache of heads of these shapes. */
function withCache<R>(shapes: readonly KvShape[], body: (cache: SequenceCache) => R): R {
  const probes = shapes.map((shape) => ({ ...shape, nHeads: 8, dtype: 'f16' }) as const)
  const memory = new CacheMemory(device, probes, 1 << 22)
  const cache = SequenceCache.make(memory, 'f16')
  try {
    return body(cache)
  } finally {
    cache.dispose()
    memory.dispose()
  }
}

/** What there is to share: bytes beyond those of a prompt of regular tokens. */
function spareOf(cache: SequenceCache, compression: Compression, nTokens: number): number {
  const { shapes } = cache.memory
  const least = cache.ofShapes.map(
    (own, i) =>
      allRegularBytes(shapes[i] as KvShape, compression, nTokens) +
      own.tableBytesWith(2, pageCount(nTokens) + 1),
  )
  const budgetBytes = compression.auto?.budgetBytes as number
  return budgetBytes - least.reduce((sum, bytes) => sum + bytes, 0)
}

const extraOf = ({ high, low }: Compression, { headDim }: KvShape) =>
  classPageBytes(high, headDim) - classPageBytes(low, headDim)

const sizes = fc.record({
  nLayers: fc.integer({ min: 1, max: 6 }),
  nKvHeads: fc.integer({ min: 1, max: 4 }),
  headDim: fc.constantFrom(16, 32, 64, 256),
})
/** Of what it may have a layer takes some. */
const wishes = fc.array(fc.double({ min: 0, max: 1, noNaN: true }), {
  minLength: 12,
  maxLength: 12,
})

test('of heads of one shape: what is left in pages, by the layers that are left', () => {
  const run = (
    size: typeof sizes extends fc.Arbitrary<infer T> ? T : never,
    spare: number,
    takes: number[],
    n: number,
  ) => {
    const shape = shapeOf(size.nLayers, size.nKvHeads, size.headDim)
    withCache([shape], (cache) => {
      const least = -spareOf(cache, compressionOf(1), n) + 1
      const compression = compressionOf(Math.max(1, least + spare))
      const budget = salientBudget(cache, compression, n)
      const extra = extraOf(compression, shape)
      let left = Math.max(0, Math.floor(spareOf(cache, compression, n) / extra))
      for (let layer = 0; layer < shape.nLayers; layer++) {
        const pages = budget.pagesFor(shape)
        expect(pages).toBe(Math.floor(left / (shape.nLayers - layer)))
        const taken = Math.floor(pages * (takes[layer] as number))
        budget.take(shape, taken)
        left -= taken
      }
    })
  }
  const spare = fc.integer({ min: -5000, max: 10_000_000 })
  fc.assert(
    fc.property(sizes, spare, wishes, fc.integer({ min: 2, max: 500 }), run),
    propertyRuns(200),
  )
})

test('of heads of two shapes: all layers together keep it, and use it but for less than a page each', () => {
  const run = (
    first: { nLayers: number; nKvHeads: number },
    second: { nLayers: number; nKvHeads: number },
    spare: number,
    order: number[],
  ) => {
    const shapes = [
      shapeOf(first.nLayers, first.nKvHeads, 32),
      shapeOf(second.nLayers, second.nKvHeads, 128),
    ]
    withCache(shapes, (cache) => {
      const n = 100
      const least = 1 - spareOf(cache, compressionOf(1), n)
      const compression = compressionOf(least + spare)
      const budget = salientBudget(cache, compression, n)
      const toCome = shapes.flatMap((shape) => new Array<KvShape>(shape.nLayers).fill(shape))
      let used = 0
      let largest = 0
      for (let i = 0; toCome.length > 0; i++) {
        const at = Math.floor((order[i] as number) * toCome.length * 0.999)
        const [shape] = toCome.splice(at, 1) as [KvShape]
        const pages = budget.pagesFor(shape)
        expect(pages).toBeGreaterThanOrEqual(0)
        budget.take(shape, pages)
        used += pages * extraOf(compression, shape)
        largest = Math.max(largest, extraOf(compression, shape))
      }
      expect(used).toBeLessThanOrEqual(spare)
      expect(used).toBeGreaterThan(spare - largest)
    })
  }
  fc.assert(
    fc.property(sizes, sizes, fc.integer({ min: 0, max: 1_000_000 }), wishes, run),
    propertyRuns(200),
  )
})

test('heads of layers to come have as many pages each, whatever their size', () => {
  const shapes = [shapeOf(4, 4, 32), shapeOf(2, 1, 128)]
  withCache(shapes, (cache) => {
    const least = 1 - spareOf(cache, compressionOf(1), 100)
    const [small, large] = shapes.map((shape) => extraOf(compressionOf(1), shape)) as [
      number,
      number,
    ]
    const compression = compressionOf(least + 3 * (16 * small + 2 * large))
    const budget = salientBudget(cache, compression, 100)
    expect(shapes.map((shape) => budget.pagesFor(shape))).toEqual([12, 3])
    budget.take(shapes[0] as KvShape, 0) // what it leaves is the others'
    expect(budget.pagesFor(shapes[1] as KvShape)).toBe(
      Math.floor((3 * (16 * small + 2 * large)) / (12 * small + 2 * large)),
    )
  })
})

test('without a budget, or where salient pages are no larger, any number', () => {
  const shapes = [shapeOf(2, 2, 16), shapeOf(2, 1, 128)]
  withCache(shapes, (cache) => {
    const any = shapes.map(() => Number.POSITIVE_INFINITY)
    const of = (compression: Compression) => {
      const budget = salientBudget(cache, compression, 100)
      return shapes.map((shape) => budget.pagesFor(shape))
    }
    expect(of(compressionOf(undefined))).toEqual(any)
    // 6 bits and 5 of 16 channels come to pages of the same bytes, those of 128 do not.
    const close = { keyBits: { high: 3, low: 2 }, valueBits: { high: 3, low: 3 } }
    const pages = shapes.map((shape) => extraOf(compressionOf(1, close), shape))
    expect(pages).toEqual([0, 256])
    expect(of(compressionOf(1, close))).toEqual([Number.POSITIVE_INFINITY, 0])
  })
})
