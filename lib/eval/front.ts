import type { EvalPair, EvalRow } from './rows.js'

/** Below this a difference between two policies on the same questions counts. */
const kSignificant = 0.05

/**
 * Rows of the same task whose caches take no more bytes and that do better beyond chance (paired
 * test, p < 0.05). A row without any lies on the front of accuracy against bytes.
 */
export function dominatorsOf(
  row: EvalRow,
  rows: readonly EvalRow[],
  pairs: readonly EvalPair[],
): EvalRow[] {
  return rows.filter((other) => {
    if (other === row || !isSameTask(other, row) || other.bytes > row.bytes) return false
    const isBetter = row.measure === 'loss' ? other.value < row.value : other.value > row.value
    const pair = pairOf(other, row, pairs)
    return isBetter && pair !== undefined && pair.p < kSignificant
  })
}

/** What was found about two policies at one task, whichever stands first. */
export function pairOf(a: EvalRow, b: EvalRow, pairs: readonly EvalPair[]): EvalPair | undefined {
  return pairs.find(
    (pair) =>
      isSameTask(pair, a) &&
      isSameTask(pair, b) &&
      ((pair.a === a.policy && pair.b === b.policy) ||
        (pair.a === b.policy && pair.b === a.policy)),
  )
}

function isSameTask(
  a: Pick<EvalRow, 'task' | 'facts'>,
  b: Pick<EvalRow, 'task' | 'facts'>,
): boolean {
  return a.task === b.task && JSON.stringify(a.facts) === JSON.stringify(b.facts)
}
