import type { MemoryRow } from './memory.js'
import type { EvalReport } from './report.js'

/** What `zipcache eval paper` found: the document of `--json`. Sizes are bytes. */
export interface PaperReport extends Omit<EvalReport, 'schema'> {
  /** Changes when a reader of this document must. */
  readonly schema: 'zipcache-paper-1'
  /** Record lines of the tables and the front. */
  readonly lines: number
  /** What the tables are asked at. */
  readonly tableTask: 'line-retrieval' | 'gsm8k'
  /**
   * For each policy of the front the ones that do better beyond chance in no more bytes; see
   * `dominatorsOf`.
   */
  readonly front: readonly {
    readonly ask: 'inside' | 'after'
    readonly policy: string
    readonly beatenBy: readonly string[]
  }[]
  readonly memory: readonly MemoryRow[]
  /** Shares of salient tokens in equal parts of a prompt, and the bias; see `inspectSaliency`. */
  readonly saliency: readonly {
    readonly policy: string
    readonly shares: readonly number[]
    readonly position: number
    readonly frequency: number
  }[]
}
