import { loadAddon } from '../../lib/native/load.js'
import { pluginFolder, pluginKind } from '../../lib/native/plugin.js'
import { Device, type DeviceOptions } from '../../lib/ops/index.js'
import { DeviceTensors } from './device-tensors.js'

/**
 * Every backend there is: one suite runs over all of them. `cuda-emu` runs the kernels of `cuda` on
 * the CPU.
 */
export const backendNames = [
  'cpu:baseline',
  'cpu:avx2',
  'cpu:avx512',
  'cpu:neon',
  'cuda-emu',
  'cuda',
] as const

/** Subjects of suites whose tensors are also aligned to 16 bytes for CUDA. */
const CUDA_VECTOR_SUBJECTS = [
  'linear with a weight of 4 bits',
  'expertLinear with weights of 4 bits',
  ...`
  attentionSinks
  convert
  copyPages
  countNonFinite
  dequantize
  embedding
  expertLinear
  gatherRows
  groupedLinear
  linear
  mergeAttention
  mixedAttention
  quantize
  readStream
  rmsNorm
  rope
  sample
  siluGate
  sigmoidGate
  softCap
  gatedDelta
  selectiveScan
  geluGate
  clampedSwiglu
  storeProbes
`
    .trim()
    .split(/\s+/),
]

/** Subjects of suites whose kernels for Hopper, as `cuda-emu` is, differ from those for others. */
const CUDA_HOPPER_SUBJECTS = ['flashAttention', 'linear', 'probeAttention']

/** A backend under test; a device that stays open for the suite, tensors that live for one test. */
export interface Backend {
  readonly name: string
  readonly device: Device
  readonly tensors: DeviceTensors
  /** Runs `body` with a device and tensors of its own, for other numbers of threads. */
  withDevice<R>(
    options: DeviceOptions,
    body: (device: Device, tensors: DeviceTensors) => Promise<R>,
  ): Promise<R>
}

/** Declares a suite for each backend; one that this machine lacks is skipped and says why. */
export function describeBackends(subject: string, suite: (backend: Backend) => void): void {
  for (const name of backendNames) {
    const hasOther = name === 'cuda-emu' && CUDA_HOPPER_SUBJECTS.includes(subject)
    // Kernels of memory-bound ops have a second way for tensors that vectors can be read from.
    const hasVectors = name.startsWith('cuda') && CUDA_VECTOR_SUBJECTS.includes(subject)
    for (const device of hasOther ? [name, 'cuda-emu:1'] : [name]) {
      const title = `${subject} on ${device}${device === name ? '' : ', of sm_80'}`
      describeDevice(title, name, () => suite(openForSuite(device)))
      if (!hasVectors) continue
      describeDevice(`${title}, aligned to 16 bytes`, name, () => suite(openForSuite(device, 16)))
    }
  }
}

/** Declares a suite for kinds of device; as above, one that is lacking says why. */
export function describeDevices(
  subject: string,
  suite: (name: string) => void,
  names: readonly string[] = ['cpu:baseline', 'cpu', 'cuda-emu', 'cuda'],
): void {
  for (const name of names) describeDevice(`${subject} of ${name}`, name, () => suite(name))
}

/** The only devices to run suites on, `ZC_TEST_DEVICES=cuda`: then they have to be there. */
const asked = process.env.ZC_TEST_DEVICES?.split(',')

function describeDevice(title: string, name: string, suite: () => void): void {
  if (asked && !asked.includes(name)) return
  const reason = whyUnavailable(name)
  if (!reason) {
    describe(title, suite)
  } else if (asked) {
    test(title, () => {
      throw new Error(reason)
    })
  } else {
    describe.skip(`${title} (skipped: ${reason})`, suite)
  }
}

/** Whether ops run at once, so that one which fails ends what follows; else they are started. */
export function isHost(name: string): boolean {
  return name.startsWith('cpu')
}

function openForSuite(name: string, elementsBefore?: 16): Backend {
  let device: Device | undefined
  let tensors: DeviceTensors | undefined
  beforeAll(async () => {
    device = await Device.open(name, { threads: 2 })
  })
  beforeEach(() => {
    tensors = new DeviceTensors(device!, elementsBefore)
  })
  afterEach(async () => {
    tensors!.dispose()
    await device!.sync() // a queued op holds its tensors until it has run
    expect(device!.memory.current).toBe(0)
  })
  afterAll(() => device?.dispose())
  return {
    name,
    get device() {
      return device!
    },
    get tensors() {
      return tensors!
    },
    async withDevice(options, body) {
      const own = await Device.open(name, options)
      try {
        return await body(own, new DeviceTensors(own, elementsBefore))
      } finally {
        await own.dispose()
      }
    },
  }
}

/**
 * Why there is no such device here; undefined when there is. Suites are declared before anything can
 * be awaited: the addon is asked directly.
 */
function whyUnavailable(name: string): string | undefined {
  const addon = loadAddon()
  try {
    const kind = pluginKind(name)
    const folder = (kind && pluginFolder(kind)) ?? ''
    addon.disposeDevice(addon.openDevice(name, 1, folder))
    return undefined
  } catch (error) {
    return (error as Error).message
  }
}

/** A function that computes once what the suites of all backends need. */
export function once<Key, Value>(compute: (key: Key) => Value): (key: Key) => Value {
  const known = new Map<string, Value>()
  return (key) => {
    const text = JSON.stringify(key)
    if (!known.has(text)) known.set(text, compute(key))
    return known.get(text)!
  }
}
