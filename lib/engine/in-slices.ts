import type { Steps } from '../grammar/index.js'

/** Milliseconds that such work keeps JavaScript's thread from everything else, at a time. */
const SLICE_MS = 5

/** Those who wait for their next slice: each turn of the event loop has one, for all together. */
const waiting: (() => void)[] = []

/**
 * Does work that is too long for one turn of the event loop; what it yields is ignored. `check` is
 * called before each slice.
 *
 * Rejects with what the work or `check` throws.
 */
export async function inSlices<T>(steps: Steps<T>, check: () => void): Promise<T> {
  const first = steps.next() // often there is nothing to do
  if (first.done) return first.value
  for (;;) {
    await nextTurn()
    check()
    const end = performance.now() + SLICE_MS
    do {
      const step = steps.next()
      if (step.done) return step.value
    } while (performance.now() < end)
  }
}

async function nextTurn(): Promise<void> {
  return new Promise((resolve) => {
    waiting.push(resolve)
    if (waiting.length === 1) setImmediate(giveTurn)
  })
}

function giveTurn(): void {
  waiting.shift()?.()
  if (waiting.length > 0) setImmediate(giveTurn)
}
