import { freemem, totalmem } from 'node:os'
import { machineOf } from '../bench/machine.js'
import { reasonOf, ZipCacheError } from '../errors.js'
import { exampleModel } from '../model/example-model.js'
import { type Driver, findDriver, kMinimumDriver } from '../native/driver.js'
import { type AddonAttempt, addonAttempts, loadAddon } from '../native/load.js'
import {
  kMinimumGlibc,
  kPackageRoot,
  kPrebuiltPlatforms,
  kVersion,
  type Platform,
  platformFacts,
} from '../native/platform.js'
import { Device, type DeviceFacts } from '../ops/index.js'
import { type SelfTest, selfTest } from './self-test.js'

/** What `zipcache doctor` finds. */
export interface Examination {
  readonly version: string
  readonly platform: Platform
  readonly required: {
    readonly platforms: readonly string[]
    readonly glibc: string
    readonly node: string
    readonly driver: typeof kMinimumDriver
  }
  readonly cpu: {
    readonly model: string
    readonly cores: number
    readonly flags: readonly string[] | null
  }
  readonly memory: { readonly total: number; readonly free: number }
  readonly driver: Driver
  readonly addon: {
    readonly attempts: readonly AddonAttempt[]
    /** Why there is none; null: it was loaded. */
    readonly failure: string | null
  }
  readonly devices: readonly DeviceFacts[]
  /** Folder of the model that examples use, or why there is none. */
  readonly exampleModel: { readonly folder: string } | { readonly failure: string }
  readonly selfTests: readonly SelfTest[]
  /** Whether the CPU can be used, and every backend that is there computes what it should. */
  readonly healthy: boolean
}

/** Instruction sets that `cpu` can be pinned to. */
const kInstructionSets = ['baseline', 'avx2', 'avx512', 'neon']

/**
 * Looks at all that zipcache needs and has here, and runs every op on every backend. Rejects with
 * `signal.reason` when aborted, with nothing else: what is wrong is what it reports.
 */
export async function examine({ signal }: { signal?: AbortSignal } = {}): Promise<Examination> {
  const { cpu, cores, cpuFlags } = machineOf(kPackageRoot)
  const { engines } = require('../../package.json') as { engines: { node: string } }
  let failure: string | null = null
  try {
    loadAddon()
  } catch (error) {
    failure = reasonOf(error)
  }
  const devices = failure === null ? await Device.list({ fresh: true }) : []
  const selfTests: SelfTest[] = []
  for (const name of failure === null ? await backends(devices) : []) {
    try {
      selfTests.push(await selfTest(name, signal ? { signal } : {}))
    } catch (error) {
      signal?.throwIfAborted()
      selfTests.push({
        ...{ device: name, passed: 0, ms: 0 },
        failed: [{ op: 'opening', reason: reasonOf(error) }],
      })
    }
  }
  return {
    version: kVersion,
    platform: platformFacts(),
    required: {
      platforms: kPrebuiltPlatforms,
      glibc: kMinimumGlibc,
      node: engines.node,
      driver: kMinimumDriver,
    },
    driver: findDriver(),
    cpu: { model: cpu, cores, flags: cpuFlags },
    memory: { total: totalmem(), free: freemem() },
    addon: { attempts: addonAttempts(), failure },
    devices,
    exampleModel: findExampleModel(),
    selfTests,
    healthy: failure === null && selfTests.every(({ failed }) => failed.length === 0),
  }
}

/** What can be opened: the CPU once for each instruction set that it has, and every GPU. */
async function backends(devices: readonly DeviceFacts[]): Promise<string[]> {
  const names: string[] = []
  for (const isa of kInstructionSets) {
    try {
      await (await Device.open(`cpu:${isa}`, { threads: 1 })).dispose()
      names.push(`cpu:${isa}`)
    } catch (error) {
      if (!(error instanceof ZipCacheError && error.code === 'ERR_ZC_DEVICE')) throw error
    }
  }
  const others = devices.filter(({ name, available }) => available && name !== 'cpu')
  return [...names, ...others.map(({ name }) => name)]
}

function findExampleModel(): Examination['exampleModel'] {
  try {
    return { folder: exampleModel() }
  } catch (error) {
    return { failure: reasonOf(error) }
  }
}
