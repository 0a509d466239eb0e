import type { EvalPair, EvalRow } from './rows.js'

/** What `zipcache eval` found, and how: the document of `--json`. Sizes are bytes. */
export interface EvalReport {
  /** Changes when a reader of this document must. */
  readonly schema: 'zipcache-eval-1'
  /** The command line that makes these numbers. */
  readonly command: string
  /** The model's folder. */
  readonly model: string
  /** Its fingerprint, device, dtype and seed. */
  readonly identity: Readonly<Record<string, string | number>>
  /** Questions asked for of each task. */
  readonly questions: number
  /** Versions and revisions of zipcache that computed the answers, oldest first. */
  readonly builds: readonly string[]
  /** In the order of tasks, then of policies. */
  readonly rows: readonly EvalRow[]
  /** In the same order. */
  readonly pairs: readonly EvalPair[]
}
