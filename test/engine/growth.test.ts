/** What a run may still take, told before it begins, against what it then takes. */
import { join } from 'node:path'
import { type CacheDemand, CacheMemory, PagePool, ProbeSlots } from '../../lib/cache/index'
import { createEngine, type PolicySpec, type Sequence } from '../../lib/index'
import { kFixtures } from './model-copies'
import { idsOf, someIds, useModel } from './running'

const model = useModel(join(kFixtures, 'llama'))
/** With sliding windows in three of four layers. */
const windowed = useModel(join(kFixtures, 'gemma3'))

/** With sliding windows in layers whose heads have another shape. */
const ofTwoShapes = useModel(join(kFixtures, 'gemma4'))
/** The same, and layers that attend to others' keys. */
const borrowing = useModel(join(kFixtures, 'gemma4-e'))

/** With recurrent layers, four of five. */
const recurrent = useModel(join(kFixtures, 'qwen3.5'))

/** Pages by their bytes, and probe rows. */
type Counts = Map<number | 'probes', number>

/** The demand of the first run, and the most that is given out at a time from then on. */
function watch() {
  const held: Counts = new Map()
  const most: Counts = new Map()
  let demand: CacheDemand | undefined
  const add = (what: number | 'probes', n: number) => {
    held.set(what, (held.get(what) ?? 0) + n)
    most.set(what, Math.max(most.get(what) ?? 0, held.get(what) as number))
  }
  const { allocateMany, free } = PagePool.prototype
  jest.spyOn(PagePool.prototype, 'allocateMany').mockImplementation(function (
    this: PagePool,
    n,
    bytes,
  ) {
    const pages = allocateMany.call(this, n, bytes)
    add(bytes, n)
    return pages
  })
  jest.spyOn(PagePool.prototype, 'free').mockImplementation(function (
    this: PagePool,
    address,
    bytes,
  ) {
    const { usedBytes } = this
    free.call(this, address, bytes)
    if (this.usedBytes < usedBytes) add(bytes, -1) // nobody shares it
  })
  const slots = ProbeSlots.prototype
  const { allocate, free: freeSlot } = slots
  jest.spyOn(slots, 'allocate').mockImplementation(function (this: ProbeSlots) {
    add('probes', 1)
    return allocate.call(this)
  })
  jest.spyOn(slots, 'free').mockImplementation(function (this: ProbeSlots, slot) {
    if (!this.isShared(slot)) add('probes', -1)
    freeSlot.call(this, slot)
  })
  const { hasRoomFor } = CacheMemory.prototype
  jest.spyOn(CacheMemory.prototype, 'hasRoomFor').mockImplementation(function (
    this: CacheMemory,
    wanted,
  ) {
    demand ??= wanted
    return hasRoomFor.call(this, wanted)
  })
  let before: Counts = new Map()
  return {
    begin() {
      demand = undefined
      before = new Map(held)
      most.clear()
    },
    /** What more was taken since it began than had been told: by how much. */
    untold(): Counts {
      const told: Counts = new Map<number | 'probes', number>(demand?.pages)
      told.set('probes', demand?.probeSlots ?? 0)
      const beyond = [...most].map(([what, n]) => {
        return [what, n - (before.get(what) ?? 0) - (told.get(what) ?? 0)] as const
      })
      return new Map(beyond.filter(([, n]) => n > 0))
    },
  }
}

afterEach(() => jest.restoreAllMocks())

const policies: PolicySpec[] = [
  ...['full', 'fp16', 'zipcache', 'zipcache-plus', 'uniform4'],
  // Windows and prompts round to different classes.
  ...[0.995, 0.005, 0.164].map((saliencyRatio) => ({ name: 'zipcache', saliencyRatio }) as const),
  { name: 'zipcache', window: 48, saliencyRatio: 0.335 },
  { name: 'zipcache', window: 1 },
  { name: 'zipcache', window: 400, probes: { random: 0.25 } },
  { name: 'zipcache', saliencyRatio: 'auto' },
]

describe.each([
  ['alone', false, model],
  ['beside forks that stay where it began', true, model],
  ['with sliding windows', false, windowed],
  ['with sliding windows, beside forks', true, windowed],
  ['with recurrent layers', false, recurrent],
  ['with recurrent layers, beside forks', true, recurrent],
  ['with heads of two shapes', false, ofTwoShapes],
  ['with heads of two shapes, beside forks', true, ofTwoShapes],
])('%s', (_, forks, model) => {
  test.each(policies)('no page is taken that was not counted: %j', async (policy) => {
    const watched = watch()
    await using engine = createEngine({ model: model(), kvMemory: 1 << 25 })
    const sequence = engine.createSequence({ policy })
    const kept: Sequence[] = []
    for (const [turn, [nPrompt, nAnswer]] of [
      [20, 5],
      [900, 230],
      [1, 120],
      [90, 300],
      [700, 1],
      [3, 107],
    ].entries()) {
      if (forks) kept.push(sequence.fork())
      watched.begin()
      await idsOf(sequence, someIds(nPrompt as number, 160, turn), nAnswer as number)
      expect([turn, watched.untold()]).toEqual([turn, new Map()])
    }
    for (const each of [sequence, ...kept]) each.dispose()
  })
})

describe.each([
  ['of full attention', model],
  ['with sliding windows', windowed],
  ['with recurrent layers', recurrent],
  ['with heads of two shapes', ofTwoShapes],
  ['with layers that borrow keys', borrowing],
])('%s', (_, model) => {
  test.each(policies)('nor by a prompt of several turns: %j', async (policy) => {
    const watched = watch()
    await using engine = createEngine({ model: model(), kvMemory: 1 << 25 })
    const sequence = engine.createSequence({ policy })
    for (const turns of [
      [20, 300, 40],
      [130, 1, 250, 7],
      [1, 70, 0],
      [60, 400],
    ]) {
      watched.begin()
      const sum = (some: number[]) => some.reduce((all, n) => all + n, 0)
      const places = turns.map((_, i) => ({ nBehind: sum(turns.slice(i + 1)), reached: () => {} }))
      const options = { maxTokens: 130, ignoreEos: true }
      const ids = someIds(sum(turns), 160)
      for await (const _ of sequence.generate(ids, options, { places }));
      expect([turns, watched.untold()]).toEqual([turns, new Map()])
    }
    sequence.dispose()
  })
})

/** Those that keep rows: pages are of states alone. */
const rowPolicies: PolicySpec[] = ['kivi2', 'h2o']

test.each(rowPolicies)(
  'nor for states beside rows, of which each token writes one: %j',
  async (policy) => {
    const watched = watch()
    await using engine = createEngine({ model: recurrent(), kvMemory: 1 << 25 })
    const sequence = engine.createSequence({ policy })
    const kept: Sequence[] = []
    for (const [turn, [nPrompt, nAnswer]] of [
      [20, 1],
      [20, 5],
      [1, 3],
      [30, 9],
    ].entries()) {
      if (turn === 3) kept.push(sequence.fork())
      watched.begin()
      await idsOf(sequence, someIds(nPrompt as number, 160, turn), nAnswer as number)
      expect([turn, watched.untold()]).toEqual([turn, new Map()])
    }
    for (const each of [sequence, ...kept]) each.dispose()
  },
)
