import type { BenchTensors } from './bench-tensors.js'

/** One op at one shape, described before anything is allocated. */
export interface OpCase {
  readonly op: string
  /** `m=1 k=512 n=1408`: what tells it from the other cases of its op and dtype. */
  readonly shape: string
  /** Of the operands that decide the bytes. */
  readonly dtype: string
  /** Cases of one group are timed in turns; they are compared with each other. */
  readonly group: string
  /** Left out of a short run. */
  readonly full?: boolean
  prepare(tensors: BenchTensors): Promise<PreparedOp>
}

/** One op at one shape, its tensors filled. */
export interface PreparedOp {
  /** What one call must read and write, every byte once. */
  readonly bytes: number
  /** Multiplications and additions of one call that its result cannot do without. */
  readonly flops: number
  /** Enqueues one call; calls after each other take different copies of the inputs. */
  run(): void
  /**
   * Compares what the first `run` computed with lib/reference, on rows that were picked out where
   * all would take too long. Rejects with `ERR_ZC_INTERNAL`.
   */
  check(): Promise<void>
}

/** How a case is called: in the table, and for `--filter`. */
export function nameOf({ op, shape, dtype }: Pick<OpCase, 'op' | 'shape' | 'dtype'>): string {
  return `${op} ${shape} ${dtype}`
}
