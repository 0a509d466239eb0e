import fc from 'fast-check'
import { TableArena } from '../../lib/cache/table-arena'
import { Device } from '../../lib/ops/index'
import { expectRefused } from '../support/errors'
import { propertyRuns } from '../support/properties'

const outOfMemory = { code: 'ERR_ZC_OUT_OF_MEMORY', argument: 'kvMemory' } as const
const CAPACITY = 20_000

let device: Device
let arena: TableArena
beforeAll(async () => {
  device = await Device.open('cpu', { threads: 1 })
})
beforeEach(() => {
  arena = new TableArena(device, CAPACITY)
})
afterEach(() => arena.dispose())
afterAll(() => device.dispose())

describe('what a table is given', () => {
  test('is a quarter of an octave more at most, and 256 words at least', () => {
    expect([0, 1, 255, 256, 257, 320, 321, 512, 513, 1000].map(TableArena.capacityOf)).toEqual([
      256, 256, 256, 256, 320, 320, 384, 512, 640, 1024,
    ])
  })

  test('property: fits, is never lavish, and is a size of its own', () => {
    const property = fc.property(fc.integer({ min: 1, max: 2 ** 30 }), (n) => {
      const capacity = TableArena.capacityOf(n)
      expect(capacity).toBeGreaterThanOrEqual(n)
      expect(capacity).toBeLessThan(Math.max(257, n * 1.25))
      expect(TableArena.capacityOf(capacity)).toBe(capacity)
    })
    fc.assert(property, propertyRuns(300))
  })
})

test('property: tables never overlap, and all words come back', () => {
  type Step = { allocate: number } | { free: number }
  const steps: fc.Arbitrary<Step[]> = fc.array(
    fc.oneof(
      fc.record({ allocate: fc.integer({ min: 1, max: 3000 }) }),
      fc.record({ free: fc.nat() }),
    ),
    { maxLength: 120 },
  )
  const run = (script: Step[]) => {
    const own = new TableArena(device, CAPACITY)
    const given: { start: number; nWords: number }[] = []
    const words = () => given.reduce((sum, { nWords }) => sum + TableArena.capacityOf(nWords), 0)
    for (const step of script) {
      if ('free' in step) {
        const [gone] = given.splice(step.free % Math.max(1, given.length), 1)
        if (gone) own.free(gone.start, gone.nWords)
      } else {
        const nWords = step.allocate
        const before = own.usedBytes
        try {
          const start = own.allocate(nWords)
          const end = start + TableArena.capacityOf(nWords)
          const hit = given.find(
            (t) => start < t.start + TableArena.capacityOf(t.nWords) && t.start < end,
          )
          expect(hit).toBeUndefined()
          expect(start >= 0 && end <= CAPACITY).toBe(true)
          given.push({ start, nWords })
        } catch (error) {
          expect(error).toMatchObject(outOfMemory)
          expect(own.usedBytes).toBe(before)
        }
      }
      expect(own.usedBytes).toBe(4 * words())
    }
    for (const { start, nWords } of given) own.free(start, nWords)
    expect(own.usedBytes).toBe(0)
    own.dispose()
  }
  fc.assert(fc.property(steps, run), propertyRuns(80))
})

test('room that is given back serves the same size again, whatever it was asked for', () => {
  const first = arena.allocate(600)
  const second = arena.allocate(600)
  arena.free(first, 600)
  expect(arena.allocate(1000)).toBe(second + 640)
  expect(arena.allocate(640)).toBe(first) // as large, once rounded up
})

test('a full one says so, keeps its state, and goes on when a table is freed', () => {
  const starts: number[] = []
  for (let i = 0; i < Math.floor(CAPACITY / 1024); i++) starts.push(arena.allocate(1024))
  const used = arena.usedBytes
  expectRefused(() => arena.allocate(1024), outOfMemory)
  expectRefused(() => arena.allocate(100_000), outOfMemory)
  expect(arena.usedBytes).toBe(used)
  arena.free(starts[4], 1024)
  expect(arena.allocate(1024)).toBe(starts[4])
  expect(arena.allocate(256)).toBeGreaterThan(starts.at(-1)!) // what a larger one did not fit into
})

test('words that were not written read as 0', async () => {
  const start = arena.allocate(256)
  arena.memory.write(Int32Array.of(7), start + 255)
  const view = arena.memory.view([256], start)
  expect([...(await view.read())]).toEqual([...new Array(255).fill(0), 7])
  view.dispose()
})
