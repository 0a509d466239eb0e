import fc from 'fast-check'
import { bitmapBytes, pageCount, paramsBytes } from '../../lib/cache/format'
import {
  CacheDemand,
  CacheMemory,
  codeFormat,
  FORMATS,
  fp16CacheBytes,
  type GroupPlan,
  isQuantized,
  KvCache,
  type KvShape,
  type PagePool,
  pageBytes,
  SUPERBLOCK_BYTES,
} from '../../lib/cache/index'
import { ZipCacheError } from '../../lib/errors'
import { appendKv, Device, setTailLengths, unpackSegment } from '../../lib/ops/index'
import { expectRefused } from '../support/errors'
import { propertyRuns } from '../support/properties'
import { expectApart, expectedPageBytes, readTable, stretchesOf } from './table-words'

const shape: KvShape = { nLayers: 3, nKvHeads: 2, headDim: 32, slidingWindow: [0, 0, 0] }
const nEntries = shape.nLayers * shape.nKvHeads
const mixed: GroupPlan = {
  nTokens: 50,
  nSalient: 30,
  high: { k: 'u4', v: 'u4' },
  low: { k: 'u2', v: 'u2' },
}

let device: Device
let memory: CacheMemory
let pool: PagePool

const openMemory = (nSuperblocks: number) =>
  new CacheMemory(device, [{ ...shape, nHeads: 4, dtype: 'f16' }], nSuperblocks * SUPERBLOCK_BYTES)

beforeAll(async () => {
  device = await Device.open('cpu', { threads: 1 })
})
beforeEach(() => {
  memory = openMemory(64)
  pool = memory.pool
})
afterEach(async () => {
  expect([memory.usedBytes, pool.claimedBytes]).toEqual([0, 0])
  memory.dispose()
  await device.sync()
  expect(device.memory.current).toBe(0)
})
afterAll(() => device.dispose())

/** Runs `body` while no page table can grow. */
async function withoutTables(body: () => Promise<void>): Promise<void> {
  const { tables } = memory
  const { allocate } = tables
  tables.allocate = () => {
    throw new ZipCacheError('ERR_ZC_OUT_OF_MEMORY', 'as this test wants it')
  }
  try {
    await body()
  } finally {
    tables.allocate = allocate
  }
}

/** The table's words; the tail's length, which is a step's to set, set. */
async function wordsOf(cache: KvCache): Promise<Int32Array> {
  const starts = device.from(Int32Array.of(cache.start), [1])
  const lengths = device.from(Int32Array.of(cache.tailLength), [1])
  setTailLengths({ tables: cache.memory.tables.memory, starts, lengths })
  const view = cache.tableView()
  const words = await view.read()
  for (const tensor of [starts, lengths, view]) tensor.dispose()
  return words
}

const contentOf = async (cache: KvCache) => readTable(await wordsOf(cache))

/** Sum of all classes but the table, which is not of the pool. */
function pageBytesOf(cache: KvCache): number {
  const { tables, ...rest } = cache.bytesByClass()
  return Object.values(rest).reduce((sum, bytes) => sum + bytes, 0)
}

/** What must not change when something fails: books, pool and what ops see. */
async function stateOf(cache: KvCache) {
  return {
    content: await contentOf(cache),
    bytes: { ...cache.bytesByClass(), tables: 0 },
    length: cache.length,
    tail: [cache.tailStart, cache.tailLength],
    segments: cache.segments,
    used: cache.memory.pool.usedBytes,
  }
}

describe('sizes', () => {
  test('of a page, by hand', () => {
    // 16 tokens x head_dim x bits, both K and V, and 64 bytes of V's token parameters
    expect(pageBytes('u4', 'u4', 64)).toBe(1024 + 64)
    expect(pageBytes('u2', 'u2', 64)).toBe(512 + 64)
    expect(pageBytes('u3', 'u2', 64)).toBe(384 + 256 + 64)
    expect(pageBytes('u8', 'u8', 128)).toBe(4096 + 64)
    expect(pageBytes('f16', 'f16', 128)).toBe(8192)
    expect(pageBytes('bf16', 'bf16', 32)).toBe(2048)
    expect(pageBytes('f32', 'f32', 32)).toBe(4096)
    expect(pageBytes('u3', 'u2', 48)).toBe(576) // 288 + 192 + 64 = 544: rounded up to 9 units
  })

  test('of a page, for every pair of formats', () => {
    for (const [k, keyNumber] of Object.entries(FORMATS)) {
      for (const [v, valueNumber] of Object.entries(FORMATS)) {
        for (const d of [16, 32, 64, 96, 128, 256]) {
          const bytes = pageBytes(k as 'u2', v as 'u2', d)
          expect(bytes).toBe(expectedPageBytes(keyNumber, valueNumber, d))
          expect(bytes % 64).toBe(0)
        }
      }
    }
  })

  test('of parameters, bitmaps and page lists', () => {
    expect([16, 32, 64, 96, 128].map(paramsBytes)).toEqual([128, 192, 384, 576, 768])
    expect([1, 512, 513, 1024, 1025, 4096].map(bitmapBytes)).toEqual([64, 64, 128, 128, 256, 512])
    expect([0, 1, 15, 16, 17, 160].map(pageCount)).toEqual([0, 1, 1, 1, 2, 10])
  })

  test('of a 16-bit cache: 2 x tokens x n_kv_heads x head_dim x 2 bytes x n_layers', () => {
    const slidingWindow = new Array<number>(32).fill(0)
    const llama = { nLayers: 32, nKvHeads: 8, headDim: 128, slidingWindow }
    expect(fp16CacheBytes([llama], 4096)).toBe(2 ** 29)
    // A window of 1,024 in half of the layers.
    const windows = slidingWindow.map((_, layer) => 1024 * (layer % 2))
    expect(fp16CacheBytes([{ ...llama, slidingWindow: windows }], 4096)).toBe(0.625 * 2 ** 29)
    expect(fp16CacheBytes([{ ...llama, slidingWindow: windows }], 1000)).toBe(1000 * 2 ** 17)
    expect(fp16CacheBytes([shape], 1)).toBe(768)
  })

  test('formats by their bits', () => {
    expect(([2, 3, 4, 8] as const).map(codeFormat)).toEqual(['u2', 'u3', 'u4', 'u8'])
    expect(Object.keys(FORMATS).filter((f) => isQuantized(f as 'u2'))).toEqual([
      'u2',
      'u3',
      'u4',
      'u8',
    ])
  })
})

describe('the table', () => {
  test('of an empty cache has a tail without pages', async () => {
    const cache = new KvCache(memory, 0, 'f16')
    const words = await wordsOf(cache)
    expect([...words.subarray(0, 4)]).toEqual([0, 0, shape.nLayers, shape.nKvHeads])
    const { entries } = await contentOf(cache)
    const tail = { keyFormat: 16, valueFormat: 16, nTokens: 0, start: 0, span: 0, pages: [] }
    for (const entry of entries.flat()) expect(entry).toEqual([{ ...tail, params: -1, bitmap: -1 }])
    expect(cache.bytesByClass()).toEqual({
      high: 0,
      low: 0,
      tail: 0,
      params: 0,
      bitmaps: 0,
      tables: memory.tables.usedBytes,
      probes: 0,
      states: 0,
    })
    cache.dispose()
  })

  test.each(['f16', 'bf16', 'f32'] as const)(
    'a tail of %s grows by pages of 16 tokens',
    async (format) => {
      const cache = new KvCache(memory, 0, format)
      let length = 0
      for (const step of [1, 14, 1, 1, 0, 31, 100]) {
        cache.extendTail(step)
        length += step
        const { tailLength, tailStart, entries } = await contentOf(cache)
        expect([tailLength, tailStart]).toEqual([length, 0])
        expect([cache.length, cache.tailLength, cache.tailStart]).toEqual([length, length, 0])
        for (const [tail, ...others] of entries.flat()) {
          expect(others).toEqual([])
          expect(tail).toMatchObject({ keyFormat: FORMATS[format], valueFormat: FORMATS[format] })
          expect(tail.pages).toHaveLength(Math.ceil(length / 16))
        }
        const bytes = nEntries * Math.ceil(length / 16) * pageBytes(format, format, shape.headDim)
        expect(cache.bytesByClass().tail).toBe(bytes)
        expect(pool.usedBytes).toBe(bytes)
        expectApart(stretchesOf(await contentOf(cache), 32), pool.capacityBytes)
      }
      cache.dispose()
    },
  )

  test('shows a group when it is published, and not before', async () => {
    const cache = new KvCache(memory, 0, 'f16')
    cache.extendTail(20)
    expect(cache.stage(mixed)).toEqual({ salient: 1, regular: 2 })
    const before = await contentOf(cache)
    expect(before.entries.flat().every((segments) => segments.length === 1)).toBe(true)
    expect(before.tailLength).toBe(20)
    expect(cache.segments).toEqual([])
    expect(cache.length).toBe(20)

    cache.publish(50)
    const { tailLength, tailStart, entries } = await contentOf(cache)
    expect([tailLength, tailStart, cache.length]).toEqual([0, 50, 50])
    for (const [tail, salient, regular, ...others] of entries.flat()) {
      expect(others).toEqual([])
      expect(tail).toMatchObject({ nTokens: 0, start: 50, pages: [] })
      expect(salient).toMatchObject({
        keyFormat: 4,
        valueFormat: 4,
        nTokens: 30,
        start: 0,
        span: 50,
      })
      expect(regular).toMatchObject({
        keyFormat: 2,
        valueFormat: 2,
        nTokens: 20,
        start: 0,
        span: -50,
      })
      expect(regular.bitmap).toBe(salient.bitmap)
      expect(regular.params).not.toBe(salient.params)
      expect(salient.pages).toHaveLength(2)
      expect(regular.pages).toHaveLength(2)
    }
    expect(cache.segments).toEqual([
      { precision: 'high', k: 'u4', v: 'u4', nTokens: 30, start: 0 },
      { precision: 'low', k: 'u2', v: 'u2', nTokens: 20, start: 0 },
    ])
    expect(cache.bytesByClass()).toEqual({
      high: nEntries * 2 * 576,
      low: nEntries * 2 * 320,
      tail: 0,
      params: nEntries * 2 * 192,
      bitmaps: nEntries * 64,
      tables: memory.tables.usedBytes,
      probes: 0,
      states: 0,
    })
    cache.dispose()
  })

  test.each([
    ['salient', 40, { salient: 1, regular: null }],
    ['regular', 0, { salient: null, regular: 1 }],
  ] as const)(
    'a group of %s tokens only is one segment without a bitmap',
    async (_, nSalient, staged) => {
      const cache = new KvCache(memory, 0, 'f16')
      expect(cache.stage({ ...mixed, nTokens: 40, nSalient })).toEqual(staged)
      cache.publish(40)
      for (const [, segment, ...others] of (await contentOf(cache)).entries.flat()) {
        expect(others).toEqual([])
        expect(segment).toMatchObject({ nTokens: 40, bitmap: -1, span: 0, start: 0 })
      }
      expect(cache.bytesByClass().bitmaps).toBe(0)
      cache.dispose()
    },
  )

  test('K and V have formats of their own', async () => {
    const cache = new KvCache(memory, 0, 'f16')
    const plan: GroupPlan = { ...mixed, high: { k: 'u8', v: 'u3' }, low: { k: 'u3', v: 'u2' } }
    cache.stage(plan)
    cache.publish(50)
    for (const [, salient, regular] of (await contentOf(cache)).entries.flat()) {
      expect([salient.keyFormat, salient.valueFormat]).toEqual([8, 3])
      expect([regular.keyFormat, regular.valueFormat]).toEqual([3, 2])
    }
    cache.dispose()
  })

  test('grows with the number of segments and pages, earlier ones unchanged', async () => {
    const cache = new KvCache(memory, 0, 'f16')
    let before: unknown[] = []
    for (let group = 0; group < 12; group++) {
      cache.extendTail(3)
      cache.stage({ ...mixed, nTokens: 17 + group, nSalient: 9 })
      cache.publish(17 + group)
      const content = await contentOf(cache)
      const flat = content.entries.flat()
      expect(flat.every((segments) => segments.length === 1 + 2 * (group + 1))).toBe(true)
      const packed = flat.map((segments) => segments.slice(1))
      before.forEach((segments, entry) => {
        expect(packed[entry].slice(0, -2)).toEqual(segments)
      })
      before = packed
      expectApart(stretchesOf(content, shape.headDim), pool.capacityBytes)
      expect(cache.bytesByClass().tables).toBe(memory.tables.usedBytes)
    }
    expect(cache.segments.map(({ start }) => start).filter((_, i) => i % 2 === 0)).toEqual(
      Array.from({ length: 12 }, (_, i) => 17 * i + (i * (i - 1)) / 2),
    )
    cache.dispose()
  })
})

test('only what changed is written to the table', async () => {
  const cache = new KvCache(memory, 0, 'f16')
  const tables = memory.tables.memory
  const writing = jest.spyOn(tables, 'write')
  const writtenWords = () => {
    writing.mockClear()
    void cache.start
    return writing.mock.calls.reduce((sum, [words]) => sum + words.length, 0)
  }
  const prompt = 4800
  cache.stage({ ...mixed, nTokens: prompt, nSalient: prompt / 2 })
  cache.publish(prompt)
  const promptLists = nEntries * 2 * pageCount(prompt / 2)
  expect(writtenWords()).toBeGreaterThan(promptLists)
  expect(writtenWords()).toBe(0)
  const content = await contentOf(cache)
  // one page, then room for more: what lies behind moves
  for (const n of [16, 16, 16]) {
    cache.extendTail(n)
    void cache.start
  }
  const header = 8
  const tailLists = nEntries * 9 // one page, and room for eight more
  cache.extendTail(16)
  expect(writtenWords()).toBe(header + tailLists)
  cache.stage({ ...mixed, nTokens: 64, nSalient: 32 })
  expect(writtenWords()).toBeGreaterThan(promptLists) // three segments become five
  cache.publish(64)
  const rows = header + nEntries * (8 + 5 * 8)
  expect(writtenWords()).toBe(rows)
  cache.extendTail(64)
  expect(writtenWords()).toBe(header + tailLists)
  cache.unstage()
  expect(writtenWords()).toBe(0)
  const { entries } = await contentOf(cache)
  expect(entries.map((heads) => heads.map(([, ...own]) => own.slice(0, 2)))).toEqual(
    content.entries.map((heads) => heads.map(([, ...own]) => own)),
  )
  cache.dispose()
})

describe('taking back', () => {
  test('tokens of the tail, page by page', async () => {
    const cache = new KvCache(memory, 0, 'f16')
    cache.extendTail(40)
    const { entries } = await contentOf(cache)
    cache.shrinkTail(10)
    expect([cache.length, pool.usedBytes]).toEqual([30, nEntries * 2 * 2048])
    const shrunk = await contentOf(cache)
    shrunk.entries.flat().forEach(([tail], i) => {
      expect(tail.pages).toEqual(entries.flat()[i][0].pages.slice(0, 2))
    })
    cache.shrinkTail(30)
    expect([cache.length, pool.usedBytes]).toEqual([0, 0])
    cache.dispose()
  })

  test('a staged group', async () => {
    const cache = new KvCache(memory, 0, 'f16')
    cache.extendTail(20)
    const before = await stateOf(cache)
    cache.stage(mixed)
    expect(pool.usedBytes).toBe(pageBytesOf(cache))
    cache.unstage()
    expect(await stateOf(cache)).toEqual(before)
    cache.unstage()
    expect(await stateOf(cache)).toEqual(before)
    cache.dispose()
  })

  test('everything, a staged group too, when it is disposed of', () => {
    const cache = new KvCache(memory, 0, 'f16')
    cache.extendTail(20)
    cache.stage(mixed)
    cache.publish(50)
    cache.extendTail(7)
    cache.stage(mixed)
    cache.dispose()
    expect(pool.usedBytes).toBe(0)
  })
})

describe('forks', () => {
  test('share pages until one of them writes, and return all of them', async () => {
    const cache = new KvCache(memory, 0, 'f16')
    cache.extendTail(20)
    cache.stage(mixed)
    cache.publish(50)
    cache.extendTail(20)
    const content = await contentOf(cache)
    const alone = pool.usedBytes
    const fork = cache.fork()
    expect(await contentOf(fork)).toEqual(content)
    expect(fork.segments).toEqual(cache.segments)
    expect(pool.usedBytes).toBe(alone)

    fork.extendTail(1) // into the second page of the tail, which is shared
    const page = pageBytes('f16', 'f16', shape.headDim)
    expect(pool.usedBytes).toBe(alone + nEntries * page)
    expect(await contentOf(cache)).toEqual(content)
    const forked = await contentOf(fork)
    content.entries.flat().forEach(([tail, ...packed], i) => {
      const [own, ...shared] = forked.entries.flat()[i]
      expect(shared).toEqual(packed)
      expect(own.pages[0]).toBe(tail.pages[0])
      expect(own.pages[1]).not.toBe(tail.pages[1])
    })

    cache.extendTail(1) // the page is its own now
    expect(pool.usedBytes).toBe(alone + nEntries * page)
    cache.dispose()
    expect(await contentOf(fork)).toEqual(forked)
    fork.stage({ ...mixed, nTokens: 21, nSalient: 4 })
    fork.publish(21)
    fork.dispose()
    expect(memory.usedBytes).toBe(0)
  })

  test('copy the page that they write, and the copy holds what was there', async () => {
    const { k, v, starts, lengths, cuSeqlens } = rowsOf(20)
    const cache = new KvCache(memory, 0, 'f16')
    cache.extendTail(20)
    const paged = { pool: pool.memory, tables: memory.tables.memory }
    starts.write(Int32Array.of(cache.start))
    setTailLengths({ ...paged, starts, lengths })
    for (let layer = 0; layer < shape.nLayers; layer++) {
      appendKv({ k, v, ...paged, starts, cuSeqlens, layer })
    }
    const fork = cache.fork()
    fork.extendTail(1)
    fork.shrinkTail(1)
    const [before, after] = [await tailOf(cache), await tailOf(fork)]
    expect(after).toEqual(before)
    expect(before.some((x) => x !== 0)).toBe(true)
    for (const each of [cache, fork, k, v, starts, lengths, cuSeqlens]) each.dispose()
  })

  /** Rows of K and V that are all different, and what appends them to one sequence. */
  function rowsOf(nTokens: number) {
    const extents = [nTokens, shape.nKvHeads, shape.headDim]
    const values = new Float32Array(nTokens * shape.nKvHeads * shape.headDim)
    return {
      k: device.from(
        values.map((_, i) => i + 1),
        extents,
      ),
      v: device.from(
        values.map((_, i) => -i - 1),
        extents,
      ),
      starts: device.tensor('i32', [1]),
      lengths: device.from(Int32Array.of(nTokens), [1]),
      cuSeqlens: device.from(Int32Array.of(0, nTokens), [2]),
    }
  }

  /** K and V of the tail, of all layers. */
  async function tailOf(cache: KvCache): Promise<number[]> {
    const all: number[] = []
    const view = cache.tableView()
    for (let layer = 0; layer < shape.nLayers; layer++) {
      const extents = [cache.tailLength, shape.nKvHeads, shape.headDim]
      const k = device.tensor('f32', extents)
      const v = device.tensor('f32', extents)
      unpackSegment({ pool: pool.memory, table: view, k, v, layer, segment: 0, base: 0 })
      all.push(...(await k.read()), ...(await v.read()))
      k.dispose()
      v.dispose()
    }
    view.dispose()
    return all
  }
})

describe('books', () => {
  type Step =
    | { extend: number }
    | { shrink: number }
    | { compress: number; salient: number; publish: boolean }
  const steps = fc.array(
    fc.tuple(
      fc.integer({ min: 0, max: 1 }),
      fc.oneof(
        fc.record({ extend: fc.integer({ min: 1, max: 40 }) }),
        fc.record({ shrink: fc.nat(50) }),
        fc.record({ compress: fc.nat(600), salient: fc.nat(100), publish: fc.boolean() }),
      ),
    ),
    { maxLength: 25 },
  )

  function apply(cache: KvCache, step: Step): void {
    if ('extend' in step) cache.extendTail(step.extend)
    else if ('shrink' in step) cache.shrinkTail(Math.min(step.shrink, cache.tailLength))
    else compress(cache, step)
  }

  function compress(cache: KvCache, step: Extract<Step, { compress: number }>): void {
    const nTokens = cache.tailLength + step.compress
    if (nTokens === 0) return
    cache.stage({ ...mixed, nTokens, nSalient: Math.floor((nTokens * step.salient) / 100) })
    if (step.publish) cache.publish(nTokens)
    else cache.unstage()
  }

  test('of two sequences are what the pool handed out, page for page', async () => {
    const run = async (script: [number, Step][]) => {
      const caches = [new KvCache(memory, 0, 'f16'), new KvCache(memory, 0, 'f32')]
      for (const [which, step] of script) {
        apply(caches[which], step)
        expect(caches.reduce((sum, cache) => sum + pageBytesOf(cache), 0)).toBe(pool.usedBytes)
      }
      const contents = await Promise.all(caches.map(contentOf))
      expectApart(
        contents.flatMap((content) => stretchesOf(content, shape.headDim)),
        pool.capacityBytes,
      )
      contents.forEach((content, i) => {
        const { length, segments } = caches[i]
        expect(content.tailStart + content.tailLength).toBe(length)
        const nPacked = segments.reduce((sum, { nTokens }) => sum + nTokens, 0)
        expect(nPacked).toBe(content.tailStart)
      })
      caches[0].dispose()
      expect(pool.usedBytes).toBe(pageBytesOf(caches[1]))
      caches[1].dispose()
      expect(pool.usedBytes).toBe(0)
    }
    await fc.assert(fc.asyncProperty(steps, run), propertyRuns(60))
  })
})

describe('without memory', () => {
  const outOfMemory = { code: 'ERR_ZC_OUT_OF_MEMORY' } as const

  /** A cache with a compressed group and a tail that ends inside a page. */
  function makeCache(): KvCache {
    const cache = new KvCache(memory, 0, 'f16')
    cache.extendTail(20)
    cache.stage(mixed)
    cache.publish(50)
    cache.extendTail(7)
    return cache
  }

  /** Runs `change` on the cache again and again, the pool being full at its first, second, … allocation. */
  async function failEverywhere(cache: KvCache, change: () => void): Promise<number> {
    const { allocateMany } = pool
    const before = await stateOf(cache)
    for (let nFailures = 0; ; nFailures++) {
      let left = nFailures
      pool.allocateMany = (...args) => {
        if (left-- === 0) throw new ZipCacheError('ERR_ZC_OUT_OF_MEMORY', 'as this test wants it')
        return allocateMany.apply(pool, args)
      }
      let done = false
      try {
        change()
        done = true
      } catch (error) {
        expect(error).toMatchObject(outOfMemory)
      } finally {
        pool.allocateMany = allocateMany
      }
      if (done) return nFailures
      expect(await stateOf(cache)).toEqual(before)
    }
  }

  test('extendTail leaves all as it was, wherever it fails', async () => {
    const cache = makeCache()
    expect(await failEverywhere(cache, () => cache.extendTail(30))).toBe(1)
    expect(cache.length).toBe(87)
    cache.dispose()
  })

  test('a shared page that cannot be copied leaves all as it was', async () => {
    const cache = makeCache()
    const fork = cache.fork()
    const before = await stateOf(cache)
    const { usedBytes } = pool
    const from = device.from.bind(device)
    const copying = jest.spyOn(device, 'from')
    for (const nCopied of [0, 1]) {
      for (let i = 0; i < nCopied; i++) copying.mockImplementationOnce((...args) => from(...args))
      copying.mockImplementationOnce(() => {
        throw new ZipCacheError('ERR_ZC_OUT_OF_MEMORY', 'as this test wants it')
      })
      expectRefused(() => cache.extendTail(1), outOfMemory)
      expect(pool.usedBytes).toBe(usedBytes)
      expect(await stateOf(cache)).toEqual(before)
    }
    copying.mockRestore()
    cache.extendTail(1)
    for (const each of [cache, fork]) each.dispose()
  })

  test('stage leaves all as it was, wherever it fails', async () => {
    const cache = makeCache()
    // bitmaps, then params and pages of either class
    const nAllocations = 1 + 2 + 2
    expect(await failEverywhere(cache, () => cache.stage(mixed))).toBe(nAllocations)
    cache.unstage()
    expect(pool.usedBytes).toBe(pageBytesOf(cache))
    cache.dispose()
  })

  test('stageUneven leaves all as it was, wherever it fails', async () => {
    const cache = makeCache()
    const uneven = { nTokens: 27, high: mixed.high, low: mixed.low }
    // bitmaps, then params and no pages yet of either class: `stageCounts` finds those
    expect(await failEverywhere(cache, () => cache.stageUneven(uneven))).toBe(1 + 2 + 2)
    cache.unstage()
    expect(pool.usedBytes).toBe(pageBytesOf(cache))
    cache.dispose()
  })

  test('extendTail that cannot write its table does not move what is in it', async () => {
    const cache = makeCache()
    await contentOf(cache)
    const before = await stateOf(cache)
    await withoutTables(async () => {
      expectRefused(() => cache.extendTail(4000), outOfMemory)
      // in part, at the places that the table has
      cache.shrinkTail(1)
      cache.extendTail(1)
      expect(await stateOf(cache)).toEqual(before)
    })
    cache.dispose()
  })

  test('a table that cannot grow leaves all as it was', async () => {
    const cache = makeCache()
    const before = await stateOf(cache)
    await withoutTables(async () => {
      expectRefused(() => cache.extendTail(4000), outOfMemory)
      expect(await stateOf(cache)).toEqual(before)
      expectRefused(() => cache.stage({ ...mixed, nTokens: 6000, nSalient: 5000 }), outOfMemory)
      expect(await stateOf(cache)).toEqual(before)
    })
    cache.extendTail(4000)
    expect(cache.length).toBe(4057)
    cache.dispose()
  })

  test('a table that cannot take more segments leaves all as it was', async () => {
    const cache = new KvCache(memory, 0, 'f16')
    const states: unknown[] = []
    await withoutTables(async () => {
      let refused = false
      while (!refused) {
        states.push(await stateOf(cache))
        try {
          cache.stage({ ...mixed, nTokens: 2, nSalient: 1 })
          cache.publish(2)
        } catch (error) {
          expect(error).toMatchObject(outOfMemory)
          refused = true
        }
      }
      expect(await stateOf(cache)).toEqual(states.at(-1))
    })
    cache.stage({ ...mixed, nTokens: 2, nSalient: 1 })
    cache.publish(2)
    expect(cache.segments).toHaveLength(2 * states.length)
    cache.dispose()
  })

  test('a pool that is really full: the cache keeps what it has, and more fits when another is gone', async () => {
    const small = openMemory(4)
    const first = new KvCache(small, 0, 'f16')
    const second = new KvCache(small, 0, 'f16')
    first.extendTail(480)
    second.extendTail(100)
    const before = await stateOf(second)
    expectRefused(() => second.extendTail(1000), outOfMemory)
    expectRefused(() => second.stage({ ...mixed, nTokens: 4000, nSalient: 3000 }), outOfMemory)
    expect(await stateOf(second)).toEqual(before)
    first.dispose()
    second.extendTail(480)
    second.dispose()
    expect([small.usedBytes, small.pool.claimedBytes]).toEqual([0, 0])
    small.dispose()
  })
})

describe('layers with a sliding window', () => {
  const windowed: KvShape = { ...shape, slidingWindow: [0, 40, 0] }
  const group = { ...mixed, nTokens: 200, nSalient: 120 }
  const [highBytes, lowBytes] = [pageBytes('u4', 'u4', 32), pageBytes('u2', 'u2', 32)]
  let own: CacheMemory

  beforeEach(() => {
    own = new CacheMemory(device, [{ ...windowed, nHeads: 4, dtype: 'f16' }], 64 * SUPERBLOCK_BYTES)
  })
  afterEach(() => {
    expect([own.usedBytes, own.pool.claimedBytes]).toEqual([0, 0])
    own.dispose()
  })

  const publish = (cache: KvCache, plan = group) => {
    cache.extendTail(plan.nTokens)
    cache.stage(plan)
    cache.publish(plan.nTokens)
    cache.dropHidden()
  }
  /** Pages of the first group's classes of every (layer, KV head). */
  const listsOf = async (cache: KvCache) => {
    const { entries } = await contentOf(cache)
    return entries.map((heads) => heads.map(([, high, low]) => [high!.pages, low!.pages] as const))
  }

  test('give back what no row sees of a group, page by page', async () => {
    const cache = new KvCache(own, 0, 'f16')
    publish(cache)
    // Rows from 200 on see positions from 161 on: 39 of them. So at least 81 of 120 tokens are hidden,
    // and 41 of 80: 5 pages of 8, and 2 of 5. One page of each class stands in for the others.
    const { high, low } = cache.bytesByClass()
    expect(high).toBe((6 * 8 - (2 * 5 - 1)) * highBytes)
    expect(low).toBe((6 * 5 - (2 * 2 - 1)) * lowBytes)
    expect(own.pool.usedBytes).toBe(pageBytesOf(cache))
    const lists = await listsOf(cache)
    for (const [layer, heads] of lists.entries()) {
      for (const [highPages, lowPages] of heads) {
        const nDropped = layer === 1 ? [5, 2] : [1, 1]
        for (const [c, pages] of [highPages, lowPages].entries()) {
          expect(new Set(pages.slice(0, nDropped[c])).size).toBe(1)
          expect(new Set(pages).size).toBe(pages.length - nDropped[c]! + 1)
        }
      }
    }
    const standIns = lists[1]!.map((classes) => classes.map(([first]) => first))
    expect(standIns[0]).toEqual(standIns[1])
    cache.dispose()
  })

  test('keep what the next row may see while tokens come, then nothing but the stand-ins', async () => {
    const cache = new KvCache(own, 0, 'f16')
    publish(cache)
    const before = cache.bytesByClass()
    cache.extendTail(30)
    cache.dropHidden()
    expect(cache.bytesByClass()).toMatchObject({ high: before.high, low: before.low })
    cache.shrinkTail(30)
    publish(cache, { ...group, nTokens: 39, nSalient: 20 })
    // Rows from 239 on see positions from 200 on: nothing of the first group, all of the second.
    const others = [4 * 8 + 1 + 6 * 2, 4 * 5 + 1 + 6 * 2]
    const { high, low, bitmaps, params } = cache.bytesByClass()
    expect([high, low]).toEqual([others[0]! * highBytes, others[1]! * lowBytes])
    expect([bitmaps, params]).toEqual([12 * 64, 24 * paramsBytes(32)])
    expect(own.pool.usedBytes).toBe(pageBytesOf(cache))
    for (const classes of (await listsOf(cache))[1]!) {
      for (const pages of classes) expect(new Set(pages).size).toBe(1)
    }
    cache.dispose()
  })

  test('keep the page of the one token that the next row may still see', () => {
    const cache = new KvCache(own, 0, 'f16')
    publish(cache)
    publish(cache, { ...group, nTokens: 38, nSalient: 20 })
    // Rows from 238 on see positions from 199 on, which is either class's for all that is known here.
    const { high, low } = cache.bytesByClass()
    expect(high).toBe((4 * 8 + 2 * 1 + 1 + 6 * 2) * highBytes)
    expect(low).toBe((4 * 5 + 2 * 1 + 1 + 6 * 2) * lowBytes)
    cache.dispose()
  })

  test('leave a fork its pages', async () => {
    const cache = new KvCache(own, 0, 'f16')
    cache.extendTail(200)
    cache.stage(group)
    cache.publish(200)
    const whole = await listsOf(cache)
    const fork = cache.fork()
    cache.dropHidden()
    const half = await listsOf(cache)
    const later = cache.fork()
    publish(cache, { ...group, nTokens: 39, nSalient: 20 })
    expect(await listsOf(fork)).toEqual(whole)
    expect(await listsOf(later)).toEqual(half)
    expect(fork.bytesByClass().high).toBe(6 * 8 * highBytes)
    expect(later.bytesByClass().high).toBe((6 * 8 - 9) * highBytes)
    cache.dispose()
    expect(own.pool.usedBytes).toBe(pageBytesOf(fork)) // which holds all that the other does
    fork.dispose()
    expect(own.pool.usedBytes).toBe(pageBytesOf(later))
    later.dispose()
  })

  test('whose heads differ give back whole pages', async () => {
    const cache = new KvCache(own, 0, 'f16')
    cache.extendTail(200)
    cache.stageUneven(group)
    for (const layer of [0, 1, 2]) cache.stageCounts(layer, Int32Array.of(100, 10))
    cache.publish(200)
    cache.dropHidden()
    // In layer 1 61 of 100 and of 100, 0 of 10 and 151 of 190: 3 pages, 3, 0 and 9.
    const { high, low } = cache.bytesByClass()
    expect(high).toBe((3 * 8 - (3 - 1)) * highBytes)
    expect(low).toBe((3 * (7 + 12) - (3 + 9 - 1)) * lowBytes)
    expect(own.pool.usedBytes).toBe(pageBytesOf(cache))
    cache.dispose()
  })

  test('give back what no row sees of a tail that is never compressed', async () => {
    const cache = new KvCache(own, 0, 'f16')
    const bytes = pageBytes('f16', 'f16', 32)
    cache.extendTail(200)
    const { tail: whole } = cache.bytesByClass()
    expect(whole).toBe(6 * 13 * bytes)
    const fork = cache.fork()
    cache.dropHiddenTail()
    // Rows from 200 on see positions from 161 on: 10 pages of each head are hidden, one stands in.
    expect(cache.bytesByClass().tail).toBe(whole - (2 * 10 - 1) * bytes)
    expect(fork.bytesByClass().tail).toBe(whole)
    expect([cache.sharesTail, cache.nSharedTailPages]).toEqual([true, 13])
    const pages = async (of: KvCache) =>
      (await contentOf(of)).entries.map((heads) => heads.map(([tail]) => tail!.pages))
    const [lists, before] = await Promise.all([pages(cache), pages(fork)])
    expect([lists[0], lists[2]]).toEqual([before[0], before[2]])
    for (const [head, list] of lists[1]!.entries()) {
      expect(new Set(list.slice(0, 10))).toEqual(new Set([lists[1]![0]![0]]))
      expect(list.slice(10)).toEqual(before[1]![head]!.slice(10))
    }
    fork.dispose()
    expect(own.pool.usedBytes).toBe(pageBytesOf(cache))
    // Tokens that come after are taken back, down to where it was.
    cache.extendTail(100)
    cache.shrinkTail(100)
    expect(cache.bytesByClass().tail).toBe(whole - (2 * 10 - 1) * bytes)
    const later = cache.fork()
    cache.extendTail(8)
    cache.dropHiddenTail()
    expect(cache.bytesByClass().tail).toBe(whole - (2 * 10 - 1) * bytes)
    cache.extendTail(1) // position 168 is the first that row 209 sees
    cache.dropHiddenTail()
    expect(cache.bytesByClass().tail).toBe(whole + 6 * bytes - (2 * 10 - 1) * bytes)
    cache.extendTail(8)
    cache.dropHiddenTail() // of row 217 it is 178
    expect(cache.bytesByClass().tail).toBe(whole + 6 * bytes - (2 * 11 - 1) * bytes)
    cache.dispose()
    expect(own.pool.usedBytes).toBe(pageBytesOf(later))
    later.dispose()
  })

  test('want no more than is counted before', () => {
    const cache = new KvCache(own, 0, 'f16')
    const window = { ...group, nTokens: 20, nSalient: 12 }
    let most = 0
    for (let i = 0; i < 30; i++) {
      cache.extendTail(20)
      cache.stage(window)
      const { high, low, params, bitmaps } = cache.bytesByClass()
      most = Math.max(most, high + low + params + bitmaps)
      cache.publish(20)
      cache.dropHidden()
    }
    const counted = (of: KvShape) => {
      const demand = new CacheDemand()
      demand.addGroups(of, window, 30)
      return demand.bytes
    }
    expect(most).toBeLessThanOrEqual(counted(windowed))
    expect(most).toBeGreaterThan(0.95 * counted(windowed))
    expect(counted(windowed)).toBeLessThan(0.93 * counted(shape))
    cache.dispose()
  })
})
