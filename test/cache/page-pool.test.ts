import fc from 'fast-check'
import { PagePool, SUPERBLOCK_BYTES } from '../../lib/cache/index'
import { Device } from '../../lib/ops/index'
import { expectRefused } from '../support/errors'
import { propertyRuns } from '../support/properties'

const UNIT = 64
/** Sizes that divide a superblock and that do not, down to a unit and up to all of it. */
const sizes = [64, 192, 576, 1088, 4096, 5120, 65536, 100_032, SUPERBLOCK_BYTES]
const CAPACITY = 4 * SUPERBLOCK_BYTES

let device: Device
let pool: PagePool

beforeAll(async () => {
  device = await Device.open('cpu', { threads: 1 })
})
beforeEach(() => {
  pool = new PagePool(device, CAPACITY, SUPERBLOCK_BYTES)
})
afterEach(() => pool.dispose())
afterAll(() => device.dispose())

/** Pages until the pool is full. */
function fill(bytes: number): number[] {
  const pages: number[] = []
  for (;;) {
    try {
      pages.push(pool.allocate(bytes))
    } catch {
      return pages
    }
  }
}

test('capacity is whole superblocks', () => {
  expect(pool.capacityBytes).toBe(CAPACITY)
  const odd = new PagePool(device, 3.7 * SUPERBLOCK_BYTES, SUPERBLOCK_BYTES)
  expect(odd.capacityBytes).toBe(3 * SUPERBLOCK_BYTES)
  expect(odd.memory.length).toBe(odd.capacityBytes)
  odd.dispose()
})

test('a small pool is divided among many sizes of page', () => {
  for (const [capacity, superblock] of [
    [2 ** 20, 2 ** 15],
    [2 ** 22, 2 ** 16],
    [3 * 2 ** 21, 2 ** 16],
    [2 ** 26, SUPERBLOCK_BYTES],
  ]) {
    const small = new PagePool(device, capacity)
    expect(small.capacityBytes).toBe(capacity)
    small.allocate(64)
    expect(small.claimedBytes).toBe(superblock)
    small.dispose()
  }
})

test('addresses stay within int32, whatever is asked for', () => {
  const huge = new PagePool(device, 2 ** 40)
  expect(huge.capacityBytes / UNIT).toBeLessThanOrEqual(2 ** 31)
  huge.dispose()
})

test('less than a superblock is refused', () => {
  for (const bytes of [0, SUPERBLOCK_BYTES - 1]) {
    expectRefused(() => new PagePool(device, bytes, SUPERBLOCK_BYTES), { code: 'ERR_ZC_SHAPE' })
  }
})

describe('any order of allocating and freeing', () => {
  type Step = { allocate: number } | { free: number }
  const steps = fc.array(
    fc.oneof(
      { weight: 3, arbitrary: fc.record({ allocate: fc.constantFrom(...sizes) }) },
      { weight: 2, arbitrary: fc.record({ free: fc.nat() }) },
    ),
    { maxLength: 200 },
  )

  function run(script: Step[]): void {
    const given: { address: number; bytes: number }[] = []
    const usedBytes = () => given.reduce((sum, { bytes }) => sum + bytes, 0)
    for (const step of script) {
      if ('free' in step) {
        if (given.length === 0) continue
        const [page] = given.splice(step.free % given.length, 1)
        pool.free(page.address, page.bytes)
      } else {
        const bytes = step.allocate
        const claimed = pool.claimedBytes
        try {
          const address = pool.allocate(bytes)
          const begin = address * UNIT
          const hit = given.find(
            (p) => begin < p.address * UNIT + p.bytes && p.address * UNIT < begin + bytes,
          )
          expect(hit).toBeUndefined()
          expect(Number.isInteger(address) && begin >= 0 && begin + bytes <= CAPACITY).toBe(true)
          given.push({ address, bytes })
        } catch (error) {
          expect(error).toMatchObject({ code: 'ERR_ZC_OUT_OF_MEMORY', argument: 'kvMemory' })
          // Full means that no superblock is left to claim, and nothing has moved.
          expect(claimed).toBe(CAPACITY)
          expect(pool.claimedBytes).toBe(CAPACITY)
        }
      }
      expect(pool.usedBytes).toBe(usedBytes())
      expect(pool.claimedBytes).toBeGreaterThanOrEqual(pool.usedBytes)
    }
    for (const { address, bytes } of given) pool.free(address, bytes)
    expect(pool.usedBytes).toBe(0)
    expect(pool.claimedBytes).toBe(0)
  }

  test('no pages overlap, and every byte comes back', () => {
    // One pool for all runs: each leaves it empty, which the next one relies on.
    fc.assert(fc.property(steps, run), propertyRuns(150))
  })
})

describe('pages that several hold', () => {
  test('are free when the last of them frees', () => {
    const page = pool.allocate(576)
    expect(pool.isShared(page, 576)).toBe(false)
    pool.retain(page, 576)
    pool.retain(page, 576)
    expect([pool.isShared(page, 576), pool.usedBytes]).toEqual([true, 576])
    pool.free(page, 576)
    expect([pool.isShared(page, 576), pool.usedBytes]).toEqual([true, 576])
    pool.free(page, 576)
    expect([pool.isShared(page, 576), pool.usedBytes]).toEqual([false, 576])
    pool.free(page, 576)
    expect([pool.usedBytes, pool.claimedBytes]).toEqual([0, 0])
    const refused = { code: 'ERR_ZC_INTERNAL' } as const
    expectRefused(() => pool.free(page, 576), refused)
    expectRefused(() => pool.retain(page, 576), refused)
    expectRefused(() => pool.isShared(page, 576), refused)
  })

  test('property: each page is free exactly when nobody holds it', () => {
    type Step = { allocate: number } | { retain: number } | { free: number }
    const index = fc.nat()
    const steps: fc.Arbitrary<Step[]> = fc.array(
      fc.oneof(
        fc.record({ allocate: fc.constantFrom(...sizes) }),
        fc.record({ retain: index }),
        fc.record({ free: index }),
      ),
      { maxLength: 120 },
    )
    const run = (script: Step[]) => {
      const held: { address: number; bytes: number }[] = []
      const holdersOf = (page: (typeof held)[0]) => held.filter((other) => other === page).length
      for (const step of script) {
        if ('allocate' in step) {
          try {
            const page = { address: pool.allocate(step.allocate), bytes: step.allocate }
            expect(held.some(({ address }) => address === page.address)).toBe(false)
            held.push(page)
          } catch (error) {
            expect(error).toMatchObject({ code: 'ERR_ZC_OUT_OF_MEMORY' })
          }
        } else if (held.length > 0) {
          const at = ('retain' in step ? step.retain : step.free) % held.length
          const page = held[at]
          if ('retain' in step) held.push(page)
          else held.splice(at, 1)
          pool['retain' in step ? 'retain' : 'free'](page.address, page.bytes)
          if (held.includes(page)) {
            expect(pool.isShared(page.address, page.bytes)).toBe(holdersOf(page) > 1)
          }
        }
        const used = [...new Set(held)].reduce((sum, { bytes }) => sum + bytes, 0)
        expect(pool.usedBytes).toBe(used)
      }
      for (const { address, bytes } of held) pool.free(address, bytes)
      expect([pool.usedBytes, pool.claimedBytes]).toEqual([0, 0])
    }
    fc.assert(fc.property(steps, run), propertyRuns(100))
  })
})

describe('superblocks', () => {
  test.each(sizes)('are filled to the last page of %i bytes', (bytes) => {
    const pages = fill(bytes)
    expect(pages).toHaveLength(4 * Math.floor(SUPERBLOCK_BYTES / bytes))
    expect(new Set(pages).size).toBe(pages.length)
  })

  test('serve one size after another, so that nothing is stranded', () => {
    for (const bytes of [...sizes, ...sizes.toReversed()]) {
      const pages = fill(bytes)
      expect(pool.claimedBytes).toBe(CAPACITY)
      for (const page of pages) pool.free(page, bytes)
      expect(pool.claimedBytes).toBe(0)
    }
  })

  test('one that empties can be claimed by another size while the others are in use', () => {
    const small = fill(64)
    const perBlock = SUPERBLOCK_BYTES / 64
    for (const page of small.slice(perBlock, 2 * perBlock)) pool.free(page, 64)
    expect(pool.claimedBytes).toBe(3 * SUPERBLOCK_BYTES)
    const large = pool.allocate(SUPERBLOCK_BYTES)
    expect(large).toBe(small[perBlock])
  })

  test('half-empty ones are filled before a new one is claimed', () => {
    const pages = [...Array(10)].map(() => pool.allocate(65536)) // 4 + 4 + 2
    pool.free(pages[1], 65536)
    pool.free(pages[6], 65536)
    expect(pool.claimedBytes).toBe(3 * SUPERBLOCK_BYTES)
    for (let i = 0; i < 4; i++) pool.allocate(65536)
    expect(pool.claimedBytes).toBe(3 * SUPERBLOCK_BYTES)
  })
})

test('property: there is room for pages exactly when they can all be allocated', () => {
  const counts = fc.array(fc.tuple(fc.constantFrom(...sizes), fc.integer({ min: 1, max: 5000 })), {
    maxLength: 4,
  })
  const property = fc.property(counts, counts, (before, more) => {
    const given: [address: number, bytes: number][] = []
    const allocate = (bytes: number) => given.push([pool.allocate(bytes), bytes])
    try {
      for (const [bytes, count] of before) {
        for (let i = 0; i < count; i++) allocate(bytes)
        for (const [address, own] of given.splice(0, count >> 2)) pool.free(address, own)
      }
    } catch {
      // full: there is room in what was freed
    }
    const pages = new Map<number, number>()
    for (const [bytes, count] of more) pages.set(bytes, (pages.get(bytes) ?? 0) + count)
    const hasRoom = pool.hasRoomFor(pages)
    let fits = true
    try {
      for (const [bytes, count] of pages) for (let i = 0; i < count; i++) allocate(bytes)
    } catch {
      fits = false
    }
    for (const [address, bytes] of given) pool.free(address, bytes)
    expect({ hasRoom, claimed: pool.claimedBytes }).toEqual({ hasRoom: fits, claimed: 0 })
  })
  fc.assert(property, propertyRuns(40))
})

describe('a full pool', () => {
  test('says so, keeps its state, and goes on when a page is freed', () => {
    const pages = fill(100_032)
    const used = pool.usedBytes
    const fault = { code: 'ERR_ZC_OUT_OF_MEMORY', argument: 'kvMemory' } as const
    for (const bytes of sizes) {
      if (bytes !== 100_032) expectRefused(() => pool.allocate(bytes), fault)
    }
    expectRefused(() => pool.allocate(100_032), fault)
    expect(pool.usedBytes).toBe(used)
    const message = `4800 bytes are wanted; of ${CAPACITY}, ${used} are given out and 0 left`
    expectRefused(() => pool.allocateMany(3, 1600), { ...fault, message: new RegExp(message) })
    pool.free(pages[3], 100_032)
    expect(pool.allocate(100_032)).toBe(pages[3])
  })
})

describe('what was not given out cannot be freed', () => {
  const refused = { code: 'ERR_ZC_INTERNAL' } as const

  test('twice', () => {
    const [first] = [pool.allocate(576), pool.allocate(576)]
    pool.free(first, 576)
    expectRefused(() => pool.free(first, 576), refused)
    expect(pool.usedBytes).toBe(576)
  })

  test('twice, the superblock given back in between', () => {
    const page = pool.allocate(576)
    pool.free(page, 576)
    expectRefused(() => pool.free(page, 576), refused)
    pool.allocate(1088)
    expectRefused(() => pool.free(page, 576), refused)
  })

  test('as another size', () => {
    const page = pool.allocate(576)
    expectRefused(() => pool.free(page, 1088), refused)
    expect(pool.usedBytes).toBe(576)
  })

  test.each([1, -1, 0.5, 4096, 1e9, Number.NaN, Number.POSITIVE_INFINITY])(
    'at an address %p beside it',
    (offset) => {
      const page = pool.allocate(576)
      expectRefused(() => pool.free(page + offset, 576), refused)
      expectRefused(() => pool.free(page + 9, 576), refused) // the next slot, free
      expect(pool.usedBytes).toBe(576)
      pool.free(page, 576)
    },
  )
})

test('a page larger than a superblock is refused', () => {
  expectRefused(() => pool.allocate(SUPERBLOCK_BYTES + 64), { code: 'ERR_ZC_UNSUPPORTED' })
  expect(pool.usedBytes).toBe(0)
})

test('of superblocks given back, the last 64 keep their memory, and are claimed first', async () => {
  const nWarm = 64
  const nCold = 6
  const large = new PagePool(device, (nWarm + nCold) * SUPERBLOCK_BYTES)
  const pages = large.allocateMany(nWarm + nCold, SUPERBLOCK_BYTES)
  for (const page of pages) large.memory.write(Uint8Array.of(7), page * UNIT)
  large.freeMany(pages, SUPERBLOCK_BYTES)
  const again = large.allocateMany(nWarm + nCold, SUPERBLOCK_BYTES)
  expect(again).toEqual(pages.toReversed())
  const firstBytes: (number | undefined)[] = []
  for (const page of again) {
    const view = large.memory.view([1], page * UNIT)
    firstBytes.push((await view.read())[0])
    view.dispose()
  }
  expect(firstBytes).toEqual([...Array(nWarm).fill(7), ...Array(nCold).fill(0)])
  large.dispose()
})

test('many pages are given out together or not at all', () => {
  const held = pool.allocateMany(3, SUPERBLOCK_BYTES)
  const fault = { code: 'ERR_ZC_OUT_OF_MEMORY', argument: 'kvMemory' } as const
  expectRefused(() => pool.allocateMany(2, SUPERBLOCK_BYTES), fault)
  expect(pool.usedBytes).toBe(3 * SUPERBLOCK_BYTES)
  expect(pool.allocateMany(1, SUPERBLOCK_BYTES)).toHaveLength(1)
  pool.freeMany(held, SUPERBLOCK_BYTES)
  expect(pool.usedBytes).toBe(SUPERBLOCK_BYTES)
})
