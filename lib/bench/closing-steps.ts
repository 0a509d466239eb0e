import { summarize } from './summary.js'

/** A step of decoding as its reader sees it, from one token to the next. */
export interface TimedStep {
  readonly ms: number
  /** Windows that it fills: one for a sequence, more where a batch's fill together. */
  readonly closing: number
}

/** Milliseconds of steps by kind. */
export interface StepsByKind {
  /** What closing one step's windows costs, that step included: one figure a run of such steps. */
  readonly closing: number[]
  /** Steps that neither close a window nor follow one that does. */
  readonly others: number[]
}

/**
 * Tells what a step that closes a window costs apart from the others: t(i) + t(i + 1) - median(others).
 *
 * A window is compressed after its step's result is there, and the engine runs one token ahead of the
 * reader, so part of the compression falls into the time of the next step. What that step takes beyond
 * an ordinary one counts for the closing step, and it is not among the others itself. Where closing
 * steps follow each other, their excess over the others is divided among them. Closing steps at the
 * end of a turn are left out: the step after them was not timed.
 *
 * - `turns`: steps one after another; the first step of a turn does not follow the turn before
 * - `other`: milliseconds of an ordinary step, for turns without one; null: `closing` is empty then
 */
export function stepsByKind(
  turns: readonly (readonly TimedStep[])[],
  other: number | null = null,
): StepsByKind {
  const others = turns.flatMap((steps) =>
    steps.filter((_, i) => !isDisturbed(steps, i)).map(({ ms }) => ms),
  )
  const otherMs = others.length > 0 ? summarize(others).median : other
  const closing =
    otherMs === null ? [] : turns.flatMap(disturbedRuns).map((run) => closingMs(run, otherMs))
  return { closing, others }
}

const closes = ({ closing }: TimedStep) => closing > 0

function isDisturbed(steps: readonly TimedStep[], i: number): boolean {
  return [steps[i - 1], steps[i]].some((step) => step !== undefined && closes(step))
}

/** Closing steps, each with the one after it; those that touch are one run. */
function disturbedRuns(steps: readonly TimedStep[]): TimedStep[][] {
  const whole = steps.slice(0, 1 + steps.findLastIndex((step) => !closes(step)))
  const runs: TimedStep[][] = []
  whole.forEach((step, i) => {
    if (!isDisturbed(whole, i)) return
    if (i === 0 || !isDisturbed(whole, i - 1)) runs.push([])
    runs.at(-1)?.push(step)
  })
  return runs
}

function closingMs(run: readonly TimedStep[], otherMs: number): number {
  const nClosing = run.filter(closes).length
  const ms = run.reduce((sum, step) => sum + step.ms, 0)
  return (ms - (run.length - nClosing) * otherMs) / nClosing
}
