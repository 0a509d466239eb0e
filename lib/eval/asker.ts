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

/**
 * What a policy is called in reports, the same for equal options in any order: `zipcache`,
 * `zipcache saliencyRatio=0.2`.
 */
export function policyLabel(policy: PolicySpec): string {
  if (typeof policy === 'string') return policy
  const { name, ...options } = policy
  const parts = Object.entries(options)
    .filter(([, value]) => value !== undefined && value !== null)
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([key, value]) => `${key}=${showOption(value)}`)
  return [name, ...parts].join(' ')
}

function showOption(value: unknown): string {
  if (typeof value !== 'object' || value === null) return String(value)
  const parts = Object.entries(value)
    .filter(([, inner]) => inner !== undefined && inner !== null)
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([key, inner]) => `${key}:${showOption(inner)}`)
  return `{${parts.join(',')}}`
}
