import fc from 'fast-check'
import { ProbeSlots } from '../../lib/cache/probe-slots'
import { WindowProbes } from '../../lib/engine/window-probes'
import { Device } from '../../lib/ops/index'
import { expectRefused } from '../support/errors'
import { propertyRuns } from '../support/properties'

const outOfMemory = { code: 'ERR_ZC_OUT_OF_MEMORY', argument: 'kvMemory' } as const
const shape = { nLayers: 3, nHeads: 4, headDim: 32, dtype: 'f16' } as const
const CAPACITY = 12

let device: Device
let slots: ProbeSlots
beforeAll(async () => {
  device = await Device.open('cpu', { threads: 1 })
})
beforeEach(() => {
  slots = new ProbeSlots(device, [shape], CAPACITY)
})
afterEach(() => {
  expect(slots.usedBytes).toBe(0)
  slots.dispose()
})
afterAll(() => device.dispose())

describe('slots', () => {
  test('keep q and its log-sum-exp in every layer', () => {
    expect(slots.slotBytes).toBe(3 * (4 * 32 * 2 + 4 * 4))
    expect(
      slots.ofShapes[0].layers.map(({ q, lse }) => [q.dtype, q.shape, lse.dtype, lse.shape]),
    ).toEqual(new Array(3).fill(['f16', [CAPACITY, 4, 32], 'f32', [CAPACITY, 4]]))
  })

  test('of some layers are those of each', async () => {
    const { lse } = slots.ofShapes[0].layers[2]
    lse.write(new Float32Array(lse.length).fill(7))
    const some = slots.ofShapes[0].ofLayers(1, 2)
    expect([some.q.shape, some.lse.shape]).toEqual([
      [2, CAPACITY, 4, 32],
      [2, CAPACITY, 4],
    ])
    expect((await some.lse.read()).subarray(lse.length)).toEqual(await lse.read())
    for (const tensor of [some.q, some.lse]) tensor.dispose()
  })

  test('run out, say so, and serve again when one is freed', () => {
    const all = Array.from({ length: CAPACITY }, () => slots.allocate())
    expect(new Set(all)).toEqual(new Set(all.keys()))
    expectRefused(() => slots.allocate(), outOfMemory)
    expect(slots.usedBytes).toBe(CAPACITY * slots.slotBytes)
    slots.free(all[5])
    expect(slots.allocate()).toBe(all[5])
    for (const slot of all) slots.free(slot)
  })

  test('are free when their last holder frees them', () => {
    const slot = slots.allocate()
    slots.retain(slot)
    slots.retain(slot)
    slots.free(slot)
    slots.free(slot)
    expect(slots.usedBytes).toBe(slots.slotBytes)
    expect(slots.allocate()).not.toBe(slot)
    slots.free(slot)
    expect(slots.allocate()).toBe(slot)
    for (const each of [0, 1]) slots.free(each)
  })

  test('property: are never given out twice, and all come back', () => {
    type Step = 'allocate' | { retain: number } | { free: number }
    const steps: fc.Arbitrary<Step[]> = fc.array(
      fc.oneof(
        fc.constant('allocate' as const),
        fc.record({ retain: fc.nat() }),
        fc.record({ free: fc.nat() }),
      ),
      { maxLength: 100 },
    )
    const run = (script: Step[]) => {
      const held: number[] = []
      for (const step of script) {
        if (step === 'allocate') {
          if (new Set(held).size === CAPACITY) {
            expectRefused(() => slots.allocate(), outOfMemory)
          } else {
            const slot = slots.allocate()
            expect(held).not.toContain(slot)
            expect(slot >= 0 && slot < CAPACITY).toBe(true)
            held.push(slot)
          }
        } else if (held.length > 0 && 'retain' in step) {
          const slot = held[step.retain % held.length]
          slots.retain(slot)
          held.push(slot)
        } else if ('free' in step) {
          for (const slot of held.splice(step.free % Math.max(1, held.length), 1)) slots.free(slot)
        }
        expect(slots.usedBytes).toBe(new Set(held).size * slots.slotBytes)
      }
      for (const slot of held) slots.free(slot)
    }
    fc.assert(fc.property(steps, run), propertyRuns(100))
  })
})

describe('the probes of a window', () => {
  const open = () => new WindowProbes(slots, Int32Array.of(2, 3, 7, 9))

  test('take a slot for each of its steps, and none for the others', () => {
    const probes = open()
    expect([...probes.take(0, 2)]).toEqual([-1, -1])
    const [second, third] = probes.take(2, 2)
    expect([...probes.take(4, 6)].map((slot) => slot >= 0)).toEqual([
      ...[false, false, false, true, false, true],
    ])
    expect(probes.slots).toHaveLength(4)
    expect([...probes.slots].slice(0, 2)).toEqual([second, third])
    expect([probes.bytes, slots.usedBytes]).toEqual([4 * slots.slotBytes, 4 * slots.slotBytes])
    probes.dispose()
    probes.dispose()
  })

  test('give back what is taken back', () => {
    const probes = open()
    const before = [...probes.take(0, 4)]
    probes.take(4, 4)
    probes.truncate(7) // step 7 is gone
    expect([...probes.slots]).toEqual(before.slice(2))
    probes.truncate(4)
    expect([...probes.slots]).toEqual(before.slice(2))
    probes.truncate(3)
    expect([...probes.slots]).toEqual([before[2]])
    probes.truncate(0)
    expect([probes.slots.length, slots.usedBytes]).toEqual([0, 0])
  })

  test('without room take nothing', () => {
    const others = Array.from({ length: CAPACITY - 2 }, () => slots.allocate())
    const probes = open()
    probes.take(0, 3)
    expectRefused(() => probes.take(3, 7), outOfMemory)
    expect([probes.slots.length, slots.usedBytes]).toEqual([1, (CAPACITY - 1) * slots.slotBytes])
    probes.dispose()
    for (const slot of others) slots.free(slot)
  })

  test('share slots with their forks, and go on in slots of their own', () => {
    const probes = open()
    probes.take(0, 4)
    const fork = probes.fork()
    expect([...fork.slots]).toEqual([...probes.slots])
    expect(slots.usedBytes).toBe(2 * slots.slotBytes)
    const own = probes.take(4, 4)[3]
    expect(fork.take(4, 4)[3]).not.toBe(own)
    probes.dispose()
    expect(slots.usedBytes).toBe(3 * slots.slotBytes)
    fork.truncate(3)
    expect(slots.usedBytes).toBe(slots.slotBytes)
    fork.dispose()
  })

  test('a fork that takes a probe back does not write over the other one', () => {
    const probes = open()
    probes.take(0, 4)
    const fork = probes.fork()
    fork.truncate(3)
    const slot = fork.take(3, 1)[0]
    expect([...probes.slots]).not.toContain(slot)
    probes.dispose()
    fork.dispose()
  })
})
