import {
  deriveSeed,
  type Seed,
  sampleWithoutReplacement,
  toSeed,
  uniformInteger,
} from '../random.js'
import type { TaskSetting } from './task.js'

/** Below 2^53, so that a question's seed is a number that JSON keeps exactly. */
const kMaxSeed = 2 ** 48

/** The seed of one of a task's questions; `seeds` is the task's. */
export function questionSeed(seeds: Seed, index: number): number {
  return uniformInteger(seeds, index, kMaxSeed)
}

/** Which of a file's `nItems` are asked about, ascending: as many as are wanted, or all. */
export function drawItems(
  { questions, seed }: Pick<TaskSetting, 'questions' | 'seed'>,
  nItems: number,
): Int32Array {
  const count = Math.min(questions, nItems)
  return sampleWithoutReplacement(nItems, count, deriveSeed(toSeed(seed), 0), 0)
}
