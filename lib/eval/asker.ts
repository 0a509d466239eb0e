import type { CacheBytes } from '../engine/context.js'
import type { PolicySpec } from '../policy/index.js'
import type { TaskFacts } from './task.js'

/** One question for some policies. */
export interface Unit {
  /** Index into the asker's tasks. */
  readonly task: number
  /** Index into the questions of the task. */
  readonly question: number
  /** Who is asked, one after the other. */
  readonly policies: readonly PolicySpec[]
}

/** One policy's answer to one question, and what its cache took. */
export interface Answer {
  /** `TaskFacts.key`. */
  readonly task: string
  /** Index into the questions of the task. */
  readonly question: number
  /** `policyLabel`. */
  readonly policy: string
  /** As `Outcome.score`. */
  readonly score: number
  /** As `Outcome.answer`. */
  readonly answer: string | null
  /** As `Outcome.expected`. */
  readonly expected: string | null
  /** As `Outcome.values`; empty where there are none. */
  readonly values: Readonly<Record<string, number>>
  /** After the last token. */
  readonly bytes: Pick<CacheBytes, 'resident' | 'peak' | 'fp16' | 'ratio' | 'paperRatio'>
  /** Tokens in the cache then. */
  readonly tokens: number
}

/** Somebody who asks a model: in this thread or in another one. */
export interface Asker {
  /** What can be asked. */
  readonly tasks: readonly TaskFacts[]
  /** What answers depend on beside task and policy: the model's fingerprint, its seed and so on. */
  readonly identity: Readonly<Record<string, string | number>>
  /** Asks the policies of a unit one after the other. */
  ask(unit: Unit, onAnswer: (answer: Answer) => Promise<void>, signal?: AbortSignal): Promise<void>
  /** Lets go of the model or thread. */
  close(): Promise<void>
}
