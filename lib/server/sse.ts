import type { ApiError } from './api-error.js'

const DONE = 'data: [DONE]\n\n'
/** A line that clients skip: it keeps proxies from closing a stream in which nothing happens. */
const PING = ': ping\n\n'

/**
 * Server-sent events of objects, with a ping whenever none came for `pingMs`. A stream that fails
 * ends with an event that has the error and without `[DONE]`.
 *
 * - `first`: the result of the first `next`, where the caller has waited for it
 * - `isLate`: it did not come in `pingMs`, so that the stream begins with a ping
 */
export async function* serverSentEvents(
  chunks: AsyncGenerator<object, void, undefined>,
  first: Promise<IteratorResult<object, void>>,
  {
    isLate,
    pingMs,
    onError,
  }: { isLate: boolean; pingMs: number; onError: (error: unknown) => ApiError },
): AsyncGenerator<string, void, undefined> {
  let next = first
  try {
    if (isLate) yield PING
    for (;;) {
      const result = await orAfter(next, pingMs)
      if (result === null) {
        yield PING
        continue
      }
      if (result.done) break
      yield `data: ${JSON.stringify(result.value)}\n\n`
      next = chunks.next()
      next.catch(() => {}) // seen at the next turn, unless nobody reads on
    }
    yield DONE
  } catch (error) {
    yield `data: ${JSON.stringify(onError(error).body)}\n\n`
  } finally {
    await chunks.return()
  }
}

/** What a promise resolves to, or null when it takes longer than `ms`. */
export async function orAfter<T>(promise: Promise<T>, ms: number): Promise<T | null> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<null>((resolve) => {
    timer = setTimeout(resolve, ms, null)
  })
  try {
    return await Promise.race([promise, late])
  } finally {
    clearTimeout(timer)
  }
}
