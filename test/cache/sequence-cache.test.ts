/** Caches of layers whose heads have two shapes: all of the same tokens, whatever fails. */
import fc from 'fast-check'
import { pageCount, paramsBytes } from '../../lib/cache/format'
import {
  CacheDemand,
  CacheMemory,
  fp16CacheBytes,
  type GroupPlan,
  type KvCache,
  type KvShape,
  type PagePool,
  pageBytes,
  SequenceCache,
  SUPERBLOCK_BYTES,
  totalBytes,
} from '../../lib/cache/index'
import { ZipCacheError } from '../../lib/errors'
import { Device, setTailLengths } from '../../lib/ops/index'
import { propertyRuns } from '../support/properties'
import { expectApart, readTable, stretchesOf } from './table-words'

const shapes: readonly KvShape[] = [
  { nLayers: 3, nKvHeads: 2, headDim: 32, slidingWindow: [40, 40, 40] },
  { nLayers: 2, nKvHeads: 1, headDim: 64, slidingWindow: [0, 0] },
]
const mixed: GroupPlan = {
  nTokens: 50,
  nSalient: 30,
  high: { k: 'u4', v: 'u4' },
  low: { k: 'u2', v: 'u2' },
}

let device: Device
let memory: CacheMemory
let pool: PagePool

beforeAll(async () => {
  device = await Device.open('cpu', { threads: 1 })
})
beforeEach(() => {
  const own = shapes.map((shape) => ({ ...shape, nHeads: 4, dtype: 'f16' }) as const)
  memory = new CacheMemory(device, own, 64 * SUPERBLOCK_BYTES)
  pool = memory.pool
})
afterEach(async () => {
  expect([memory.usedBytes, pool.claimedBytes]).toEqual([0, 0])
  memory.dispose()
  await device.sync()
  expect(device.memory.current).toBe(0)
})
afterAll(() => device.dispose())

const contentOf = async (cache: KvCache) => {
  const starts = device.from(Int32Array.of(cache.start), [1])
  const lengths = device.from(Int32Array.of(cache.tailLength), [1])
  setTailLengths({ tables: memory.tables.memory, starts, lengths })
  const view = cache.tableView()
  const words = await view.read()
  for (const tensor of [starts, lengths, view]) tensor.dispose()
  return readTable(words)
}

const pageBytesOf = (cache: SequenceCache) => {
  const { tables, ...rest } = cache.bytesByClass()
  return Object.values(rest).reduce((sum, bytes) => sum + bytes, 0)
}

/** What must not change when something fails: books, pool and what ops see, of each shape. */
const stateOf = (cache: SequenceCache) =>
  Promise.all(
    cache.ofShapes.map(async (own) => ({
      content: await contentOf(own),
      bytes: { ...own.bytesByClass(), tables: 0 },
      tail: [own.tailStart, own.tailLength],
      segments: own.segments,
      used: pool.usedBytes,
    })),
  )

/** All of them hold the same tokens, and what the pool and the tables have handed out. */
function expectWhole(cache: SequenceCache): void {
  for (const { length, tailStart, tailLength, isStaged } of cache.ofShapes) {
    expect([length, tailStart, tailLength, isStaged]).toEqual([
      cache.length,
      cache.tailStart,
      cache.tailLength,
      cache.isStaged,
    ])
  }
  const demand = new CacheDemand()
  cache.addHeldTo(demand)
  expect(demand.bytes).toBe(totalBytes(cache.bytesByClass()))
}

test('bytes of a 16-bit cache are those of all shapes, each with its windows', () => {
  expect(fp16CacheBytes(shapes, 30)).toBe(30 * 4 * (3 * 2 * 32 + 2 * 64))
  expect(fp16CacheBytes(shapes, 100)).toBe(4 * (40 * 3 * 2 * 32 + 100 * 2 * 64))
})

test('bytes are the sum, and those of the tables', () => {
  const cache = SequenceCache.make(memory, 'f16')
  cache.extendTail(20)
  cache.stage(mixed)
  cache.publish(50)
  cache.extendTail(7)
  expect(cache.bytesByClass()).toEqual({
    high: 2 * (6 * pageBytes('u4', 'u4', 32) + 2 * pageBytes('u4', 'u4', 64)),
    low: 2 * (6 * pageBytes('u2', 'u2', 32) + 2 * pageBytes('u2', 'u2', 64)),
    tail: 6 * pageBytes('f16', 'f16', 32) + 2 * pageBytes('f16', 'f16', 64),
    params: 2 * (6 * paramsBytes(32) + 2 * paramsBytes(64)),
    bitmaps: 8 * 64,
    tables: memory.tables.usedBytes,
    probes: 0,
    states: 0,
  })
  expect(totalBytes(cache.bytesByClass())).toBe(memory.usedBytes)
  expectWhole(cache)
  cache.dispose()
})

test('segments whose heads differ list those of one shape after those of the other', () => {
  const cache = SequenceCache.make(memory, 'f16')
  const counts = [
    [
      [10, 20],
      [30, 40],
      [50, 0],
    ],
    [[7], [43]],
  ] as const
  for (const [shape, own] of cache.ofShapes.entries()) {
    own.stageUneven(mixed)
    for (const [layer, each] of counts[shape as 0 | 1].entries()) {
      own.stageCounts(layer, Int32Array.from(each))
    }
  }
  cache.publish(50)
  expectWhole(cache)
  const salient = counts.flat(2)
  const [high, low] = cache.segments
  expect(high).toMatchObject({ precision: 'high', start: 0, nTokens: 200 / 8 })
  expect(low).toMatchObject({ precision: 'low', start: 0, nTokens: 200 / 8 })
  expect([...(high?.counts ?? [])]).toEqual(salient)
  expect([...(low?.counts ?? [])]).toEqual(salient.map((n) => 50 - n))
  const pages = (n: readonly number[]) => n.reduce((sum, each) => sum + pageCount(each), 0)
  const { high: highBytes, low: lowBytes } = cache.bytesByClass()
  expect(highBytes).toBe(
    pages(salient.slice(0, 6)) * pageBytes('u4', 'u4', 32) +
      pages(salient.slice(6)) * pageBytes('u4', 'u4', 64),
  )
  const regular = salient.map((n) => 50 - n)
  expect(lowBytes).toBe(
    pages(regular.slice(0, 6)) * pageBytes('u2', 'u2', 32) +
      pages(regular.slice(6)) * pageBytes('u2', 'u2', 64),
  )
  expect(cache.isUneven).toBe(true)
  cache.dispose()
})

test('pages that windows hide are given back in the layers that have windows', () => {
  const cache = SequenceCache.make(memory, 'f16')
  cache.extendTail(200)
  const whole = cache.bytesByClass().tail
  const fork = cache.fork()
  cache.dropHiddenTail()
  // Rows from 200 on see positions from 161 on: 10 pages of 13 are hidden, one of them stands in.
  expect(whole - cache.bytesByClass().tail).toBe((6 * 10 - 1) * pageBytes('f16', 'f16', 32))
  expect(fork.bytesByClass().tail).toBe(whole)
  cache.dispose()
  const plan = { ...mixed, nTokens: 200, nSalient: 200 }
  fork.stage(plan)
  fork.publish(200)
  const packed = fork.bytesByClass().high
  fork.dropHidden()
  expect(packed - fork.bytesByClass().high).toBe((6 * 10 - 1) * pageBytes('u4', 'u4', 32))
  fork.dispose()
})

describe('without memory', () => {
  /** A cache with a compressed group and a tail that ends inside a page. */
  function makeCache(): SequenceCache {
    const cache = SequenceCache.make(memory, 'f16')
    cache.extendTail(20)
    cache.stage(mixed)
    cache.publish(50)
    cache.extendTail(7)
    return cache
  }

  /**
   * Runs `change` again and again, its first, second, … allocation failing, until none does; how often it failed.
   * Nothing may be different after each.
   */
  async function failEverywhere(
    cache: SequenceCache | null,
    [owner, name]:
      | readonly [PagePool, 'allocateMany']
      | readonly [CacheMemory['tables'], 'allocate'],
    change: () => void,
  ): Promise<number> {
    const methods = owner as unknown as Record<string, (...args: unknown[]) => unknown>
    const actual = methods[name] as (...args: unknown[]) => unknown
    const before = cache && (await stateOf(cache))
    const { usedBytes } = pool
    for (let nFailures = 0; ; nFailures++) {
      let left = nFailures
      const failing = jest.spyOn(methods, name).mockImplementation((...args) => {
        if (left-- === 0) throw new ZipCacheError('ERR_ZC_OUT_OF_MEMORY', 'as this test wants it')
        return actual.apply(owner, args)
      })
      let done = false
      try {
        change()
        done = true
      } catch (error) {
        expect(error).toMatchObject({ code: 'ERR_ZC_OUT_OF_MEMORY' })
      } finally {
        failing.mockRestore()
      }
      if (done) return nFailures
      expect(pool.usedBytes).toBe(usedBytes)
      if (!cache) continue
      expectWhole(cache)
      expect(await stateOf(cache)).toEqual(before)
    }
  }
  const pages = () => [pool, 'allocateMany'] as const
  const tables = () => [memory.tables, 'allocate'] as const

  test('extendTail leaves all as it was, wherever it fails', async () => {
    const cache = makeCache()
    expect(await failEverywhere(cache, pages(), () => cache.extendTail(30))).toBe(2)
    expect(await failEverywhere(cache, tables(), () => cache.extendTail(4000))).toBe(2)
    expect(cache.length).toBe(4087)
    expectWhole(cache)
    cache.dispose()
  })

  test('so does one whose last page others hold', async () => {
    const cache = makeCache()
    const fork = cache.fork()
    // A copy of the page, and one page more. A copy that was made stays.
    const { allocateMany } = pool
    for (let nFailures = 0; nFailures < 4; nFailures++) {
      const before = cache.ofShapes.map((own) => own.tailLength)
      let left = nFailures
      pool.allocateMany = (...args) => {
        if (left-- === 0) throw new ZipCacheError('ERR_ZC_OUT_OF_MEMORY', 'as this test wants it')
        return allocateMany.apply(pool, args)
      }
      const copy = cache.fork()
      expect(() => copy.extendTail(20)).toThrow('as this test wants it')
      pool.allocateMany = allocateMany
      expect(copy.ofShapes.map((own) => own.tailLength)).toEqual(before)
      expectWhole(copy)
      const tails = await Promise.all(copy.ofShapes.map(contentOf))
      expectApart(
        tails.flatMap((content, shape) => stretchesOf(content, shapes[shape]?.headDim as number)),
        pool.capacityBytes,
      )
      copy.dispose()
    }
    for (const each of [cache, fork]) each.dispose()
  })

  test('stage leaves all as it was, wherever it fails', async () => {
    const cache = makeCache()
    // of either shape bitmaps, then params and pages of either class
    expect(await failEverywhere(cache, pages(), () => cache.stage(mixed))).toBe(2 * 5)
    cache.unstage()
    const large = { ...mixed, nTokens: 6000, nSalient: 5000 }
    expect(await failEverywhere(cache, tables(), () => cache.stage(large))).toBe(2)
    cache.unstage()
    expect(pool.usedBytes).toBe(pageBytesOf(cache))
    cache.dispose()
  })

  test('a fork that cannot have both tables has none, and holds no page', async () => {
    const cache = makeCache()
    const before = await stateOf(cache)
    const used = memory.usedBytes
    const forks: SequenceCache[] = []
    const n = await failEverywhere(cache, tables(), () => forks.push(cache.fork()))
    expect(n).toBeGreaterThanOrEqual(2)
    const [fork] = forks as [SequenceCache]
    expect(await stateOf(fork)).toEqual(before)
    fork.dispose()
    expect(memory.usedBytes).toBe(used)
    cache.dispose()
  })

  test('nor does one that is made', async () => {
    const made: SequenceCache[] = []
    const change = () => made.push(SequenceCache.make(memory, 'f16'))
    expect(await failEverywhere(null, tables(), change)).toBe(2)
    for (const each of made) each.dispose()
  })
})

test('books are those of the pool whatever happens, now and then without memory', async () => {
  type Step =
    | { extend: number }
    | { shrink: number }
    | { compress: number; salient: number; publish: boolean }
    | { fork: number }
    | { drop: boolean }
  const step: fc.Arbitrary<Step> = fc.oneof(
    fc.record({ extend: fc.integer({ min: 1, max: 60 }) }),
    fc.record({ shrink: fc.nat(30) }),
    fc.record({ compress: fc.nat(200), salient: fc.nat(100), publish: fc.boolean() }),
    fc.record({ fork: fc.nat(3) }),
    fc.record({ drop: fc.boolean() }),
  )
  const steps = fc.array(fc.tuple(fc.nat(3), step, fc.nat(9)), { maxLength: 30 })
  const { allocateMany } = pool

  const apply = (caches: SequenceCache[], which: number, one: Step) => {
    const cache = caches[which] as SequenceCache
    if ('extend' in one) cache.extendTail(one.extend)
    else if ('shrink' in one) {
      // What was given back is not taken back.
      const held = Math.min(one.shrink, cache.tailLength % 16)
      cache.shrinkTail(held)
    } else if ('fork' in one) {
      if (caches.length < 4) caches.push(cache.fork())
    } else if ('drop' in one) cache.dropHidden()
    else {
      const nTokens = cache.tailLength + one.compress
      if (nTokens === 0) return
      cache.stage({ ...mixed, nTokens, nSalient: Math.floor((nTokens * one.salient) / 100) })
      if (one.publish) cache.publish(nTokens)
      else cache.unstage()
    }
  }

  const run = async (script: [number, Step, number][]) => {
    const caches = [SequenceCache.make(memory, 'f16')]
    for (const [which, one, failsAt] of script) {
      let left = failsAt
      pool.allocateMany = (...args) => {
        if (left-- === 0) throw new ZipCacheError('ERR_ZC_OUT_OF_MEMORY', 'as this test wants it')
        return allocateMany.apply(pool, args)
      }
      const { usedBytes } = pool
      try {
        apply(caches, which % caches.length, one)
      } catch (error) {
        expect(error).toMatchObject({ code: 'ERR_ZC_OUT_OF_MEMORY' })
        if (caches.length === 1) expect(pool.usedBytes).toBe(usedBytes)
      } finally {
        pool.allocateMany = allocateMany
      }
      for (const each of caches) expectWhole(each)
      const tables = caches.reduce((sum, each) => sum + each.bytesByClass().tables, 0)
      expect(tables).toBe(memory.tables.usedBytes)
      if (caches.length === 1) expect(pool.usedBytes).toBe(pageBytesOf(caches[0] as SequenceCache))
    }
    for (const each of caches) each.dispose()
    expect(memory.usedBytes).toBe(0)
  }
  await fc.assert(fc.asyncProperty(steps, run), propertyRuns(100))
})
