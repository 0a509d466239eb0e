import { type CachePolicy, type PolicySpec, resolvePolicy } from '../policy/index.js'
import { policyLabel } from '../policy/policy-label.js'
import type { Answer } from './asker.js'
import {
  bootstrapMean,
  type Estimate,
  mcnemar,
  meanOf,
  signFlipTest,
  wilson,
} from './statistics.js'
import type { Measure, TaskFacts } from './task.js'

/** What one policy reached at one task. */
export interface EvalRow {
  /** `TaskFacts.name`. */
  readonly task: string
  /** What tells the task from others of its name. */
  readonly facts: TaskFacts['facts']
  /** Its label. */
  readonly policy: string
  /** As it was given. */
  readonly spec: PolicySpec
  /** How many were answered. */
  readonly questions: number
  /** What `value` is. */
  readonly measure: Measure
  /** Percent of hits, mean score in percent, or perplexity. */
  readonly value: number
  /** Lower end of the 95% interval of `value`. */
  readonly low: number
  /** Upper end of it. */
  readonly high: number
  /** What else the task measures, by name: means with their intervals. */
  readonly values: Readonly<Record<string, Estimate>>
  /** Tokens in the cache after the last one of an answer, mean over the questions. */
  readonly tokens: number
  /** fp16 bytes / resident bytes then, mean. */
  readonly ratio: number
  /** The ratio as the paper counts; null for policies that it has no formula for. */
  readonly paperRatio: number | null
  /** Resident bytes then, mean. */
  readonly bytes: number
  /** The most there were at a time, mean. */
  readonly peakBytes: number
  /** Whether attention is computed over the packed codes, or over codes that were unpacked first. */
  readonly attention: CachePolicy['attention']
}

/** Two policies on the same questions. */
export interface EvalPair {
  /** `TaskFacts.name`. */
  readonly task: string
  /** What tells the task from others of its name. */
  readonly facts: TaskFacts['facts']
  /** One policy's label. */
  readonly a: string
  /** The other's. */
  readonly b: string
  /** How many both answered. */
  readonly questions: number
  /** Questions that a did better at than b. */
  readonly wins: number
  /** Questions that b did better at than a. */
  readonly losses: number
  /** Of the exact McNemar test for hits, else of the paired permutation test. */
  readonly p: number
}

/** One row for each task and policy that has answers, in the order of both. */
export function rowsOf(
  tasks: readonly TaskFacts[],
  policies: readonly PolicySpec[],
  answers: readonly Answer[],
): EvalRow[] {
  return tasks.flatMap((task) =>
    policies.flatMap((spec): EvalRow[] => {
      const own = answersOf(task, policyLabel(spec), answers)
      if (own.length === 0) return []
      const { value, low, high } = estimateOf(task.measure, own)
      const mean = (pick: (answer: Answer) => number) => meanOf(own.map(pick))
      const paperRatios = own.map(({ bytes }) => bytes.paperRatio)
      return [
        {
          task: task.name,
          facts: task.facts,
          policy: policyLabel(spec),
          spec,
          questions: own.length,
          measure: task.measure,
          ...{ value, low, high },
          values: valuesOf(own),
          tokens: mean(({ tokens }) => tokens),
          ratio: mean(({ bytes }) => bytes.ratio),
          paperRatio: paperRatios.every((ratio) => ratio !== null) ? meanOf(paperRatios) : null,
          bytes: Math.round(mean(({ bytes }) => bytes.resident)),
          peakBytes: Math.round(mean(({ bytes }) => bytes.peak)),
          attention: resolvePolicy(spec).attention,
        },
      ]
    }),
  )
}

/** All pairs of policies for each task: `a` stands before `b` in the list. */
export function pairsOf(
  tasks: readonly TaskFacts[],
  labels: readonly string[],
  answers: readonly Answer[],
): EvalPair[] {
  return tasks.flatMap((task) => {
    const scores = labels.map(
      (label) =>
        new Map(answersOf(task, label, answers).map(({ question, score }) => [question, score])),
    )
    return labels.flatMap((a, i) =>
      labels.slice(i + 1).flatMap((b, j): EvalPair[] => {
        const [own, others] = [scores[i], scores[i + 1 + j]]
        const differences = [...(own ?? [])].flatMap(([question, score]) => {
          const other = others?.get(question)
          // Of losses, the smaller is the better.
          if (other === undefined) return []
          return [task.measure === 'loss' ? other - score : score - other]
        })
        if (differences.length === 0) return []
        const wins = differences.filter((difference) => difference > 0).length
        const losses = differences.filter((difference) => difference < 0).length
        const p = task.measure === 'hits' ? mcnemar(wins, losses) : signFlipTest(differences)
        const { name, facts } = task
        return [{ task: name, facts, a, b, questions: differences.length, wins, losses, p }]
      }),
    )
  })
}

/** Sorted by question, so that no sum depends on who was asked first. */
function answersOf(task: TaskFacts, policy: string, answers: readonly Answer[]): Answer[] {
  return answers
    .filter((answer) => answer.task === task.key && answer.policy === policy)
    .sort((a, b) => a.question - b.question)
}

function estimateOf(measure: Measure, answers: readonly Answer[]): Estimate {
  const scores = answers.map(({ score }) => score)
  if (measure === 'hits') {
    return scale(wilson(scores.filter((score) => score === 1).length, scores.length), 100)
  }
  if (measure === 'score') return scale(bootstrapMean(scores), 100)
  const { value, low, high } = bootstrapMean(scores)
  return { value: Math.exp(value), low: Math.exp(low), high: Math.exp(high) }
}

const scale = ({ value, low, high }: Estimate, factor: number): Estimate => ({
  value: factor * value,
  low: factor * low,
  high: factor * high,
})

function valuesOf(answers: readonly Answer[]): Record<string, Estimate> {
  const names = Object.keys(answers[0]?.values ?? {})
  return Object.fromEntries(
    names.map((name) => [name, bootstrapMean(answers.map(({ values }) => values[name] ?? 0))]),
  )
}
