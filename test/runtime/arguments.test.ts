/** Whatever a caller without types gives, it is told which argument is wrong, by a `ZipCacheError`. */
import { BenchTensors } from '../../lib/bench/bench-tensors'
import { OP_CHECKS } from '../../lib/doctor/op-checks'
import * as ops from '../../lib/ops/index'
import { Device } from '../../lib/ops/index'
import {
  type Call,
  describeCall,
  faultOf,
  faultsOf,
  hostileCalls,
} from '../support/hostile-arguments'

/** Called with an op's name and arguments before it runs. */
let watch: ((name: string, op: Call, args: unknown[]) => void) | null = null

jest.mock('../../lib/ops/index', () => {
  const actual = jest.requireActual('../../lib/ops/index') as Record<string, unknown>
  const watched = (name: string, op: Call): Call => {
    return (...args) => {
      const told = watch
      watch = null // what a hostile call calls is not watched
      told?.(name, op, args)
      watch = told
      return op(...args)
    }
  }
  return Object.fromEntries(
    Object.entries(actual).map(([name, value]) => [
      name,
      typeof value === 'function' && /^[a-z]/.test(name) ? watched(name, value as Call) : value,
    ]),
  )
})

const names = Object.entries(ops)
  .filter(([name, value]) => typeof value === 'function' && /^[a-z]/.test(name))
  .map(([name]) => name)

describe('functions of zipcache/ops', () => {
  let device: Device
  const tried = new Set<string>()
  const faults: string[] = []

  beforeAll(async () => {
    device = await Device.open('cpu', { threads: 1 })
    const disposed = device.tensor('f32', [2])
    disposed.dispose()
    const others = [
      disposed,
      device.tensor('i8', [1, 1, 1, 1]),
      device,
      { shape: [1], dtype: 'f32' },
    ]
    watch = (name, op, args) => {
      if (tried.has(name)) return
      tried.add(name)
      // What is taken is recorded, and never runs.
      const attempt = () => {
        for (const call of [...hostileCalls(args, others), { path: [], value: 'none', args: [] }]) {
          try {
            op(...call.args)
          } catch (error) {
            const fault = faultOf(error)
            if (fault) faults.push(`${describeCall(name, call)} ${fault}`)
          }
        }
      }
      device.record(attempt).dispose()
    }
    const tensors = new BenchTensors(device, 0, 1 << 14)
    for (const check of Object.values(OP_CHECKS)) {
      await check(tensors)
      tensors.dispose()
    }
    watch = null
  })
  afterAll(() => device.dispose())

  test('all are tried', () => {
    // Below.
    const others = ['tensorBytes']
    expect(names.filter((name) => !tried.has(name))).toEqual(others)
  })
  test('refuse by name', () => {
    expect(faults).toEqual([])
  })
})

describe('what zipcache/ops has beside ops', () => {
  let device: Device
  beforeAll(async () => {
    device = await Device.open('cpu', { threads: 1 })
  })
  afterAll(() => device.dispose())

  const seed = { lo: 1, hi: 2 }
  const chosen = { temperature: 1, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1, seed, step: 0 }
  const file = () => device.mapFile(__filename)
  const tensor = () => device.tensor('f32', [2, 3])
  const program = () => device.record(() => {})
  const calls: [string, Call, () => unknown[]][] = [
    ['tensorBytes', ops.tensorBytes as Call, () => ['f32', [2, 3]]],
    ['codeBytesPerRow', ops.codeBytesPerRow as Call, () => [40, 3]],
    ['packSampleParams', ops.packSampleParams as Call, () => [chosen]],
    ['Device.open', openAndDispose, () => ['cpu', { threads: 1 }]],
    ['Device.list', (...args) => Device.list(...(args as [])), () => [{ fresh: false }]],
    ['tensor', (...args) => device.tensor(...(args as ['f32', []])), () => ['f32', [2, 3]]],
    [
      'from',
      (...args) => device.from(...(args as [never, []])),
      () => [new Float32Array(2), [2], 'f32'],
    ],
    ['reserve', (...args) => device.reserve(...(args as ['u8', []])), () => ['u8', [4096]]],
    [
      'discard',
      (...args) => device.discard(...(args as [never, 0, 0])),
      () => [device.reserve('u8', [4096]), 0, 4096],
    ],
    ['mapFile', (...args) => device.mapFile(...(args as [string])), () => [__filename]],
    [
      'fromFile',
      (...args) => device.fromFile(...(args as [never, 0, 'u8', []])),
      () => [file(), 0, 'u8', [8]],
    ],
    ['record', (...args) => device.record(...(args as [() => void])), () => [() => {}]],
    ['write', (...args) => tensor().write(...(args as [never, 0])), () => [new Float32Array(2), 1]],
    ['view', (...args) => tensor().view(...(args as [[], 0])), () => [[2], 1]],
    [
      'reinterpret',
      (...args) => tensor().reinterpret(...(args as ['i32', [], 0])),
      () => ['i32', [2], 1],
    ],
    [
      'run',
      (...args) => program().run(...(args as [never, never, never])),
      () => [tensor(), new Float32Array(2), tensor()],
    ],
  ]
  test.each(calls)('%s refuses by name', async (name, call, args) => {
    expect(await faultsOf(name, call, args(), [device, device.tensor('i8', [1])])).toEqual([])
  })
})

async function openAndDispose(...args: unknown[]): Promise<void> {
  await (await Device.open(...(args as []))).dispose()
}
