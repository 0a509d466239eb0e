import type { Machine } from './machine.js'
import type { Achieved, Roof } from './roofs.js'
import type { DecodeTimes, PrefillTimes } from './steps.js'
import type { Summary } from './summary.js'

/** One op at one shape. */
export interface OpRow extends Achieved {
  readonly op: string
  readonly shape: string
  readonly dtype: string
  /** Milliseconds of a call. */
  readonly ms: Summary
  readonly bytes: number
  readonly flops: number
}

export type PrefillRow = PrefillTimes & Achieved
export type DecodeRow = DecodeTimes & Achieved

/**
 * What `zipcache bench` found: the document of `--json`. Times are milliseconds, rates 10^9 bytes
 * or operations a second, sizes bytes.
 */
export interface BenchReport {
  /** Changes when a reader of this document must. */
  readonly schema: 'zipcache-bench-1'
  readonly machine: Machine
  readonly settings: {
    readonly device: string
    /** Instruction set of the kernels. */
    readonly isa: string
    readonly threads: number
    /** What the models compute in. */
    readonly dtype: string
    /** How matrices of the models are kept. */
    readonly weights: string
    /** Whether the contexts of decode steps were decoded. */
    readonly generated: boolean
    readonly full: boolean
    readonly filter: string | null
    readonly seed: number
  }
  readonly roofs: readonly Roof[]
  readonly ops: readonly OpRow[]
  readonly prefill: readonly PrefillRow[]
  readonly decode: readonly DecodeRow[]
  /** How long all of it took. */
  readonly seconds: number
}
