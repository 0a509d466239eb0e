import { BenchTensors } from '../bench/bench-tensors.js'
import { reasonOf } from '../errors.js'
import { Device } from '../ops/index.js'
import { OP_CHECKS } from './op-checks.js'

/** Random numbers: more than any check needs. */
const kDistinct = 1 << 14

/** How the ops of one backend did. */
export interface SelfTest {
  /** As `Device.open` takes it: `cpu:avx2`, `cuda:0`. */
  readonly device: string
  /** Ops whose result was the reference's. */
  readonly passed: number
  /** The others, and what was wrong. */
  readonly failed: readonly { readonly op: string; readonly reason: string }[]
  readonly ms: number
}

/**
 * Runs every op on a device once, and compares with lib/reference. An op that fails does not keep
 * the next from being tried, unless the device is gone.
 *
 * Rejects as `Device.open`, and with `signal.reason` when aborted.
 */
export async function selfTest(
  name: string,
  { signal }: { signal?: AbortSignal } = {},
): Promise<SelfTest> {
  const begin = performance.now()
  const device = await Device.open(name)
  const failed: { op: string; reason: string }[] = []
  try {
    const tensors = new BenchTensors(device, 0, kDistinct)
    for (const [op, check] of Object.entries(OP_CHECKS)) {
      signal?.throwIfAborted()
      try {
        await check(tensors)
      } catch (error) {
        failed.push({ op, reason: reasonOf(error) })
      } finally {
        tensors.dispose()
      }
    }
  } finally {
    await device.dispose()
  }
  const passed = Object.keys(OP_CHECKS).length - failed.length
  return { device: name, passed, failed, ms: performance.now() - begin }
}
