import type { ApiError } from './api-error.js'

/** A line that clients skip: it keeps proxies from closing a stream in which nothing happens. */
const PING = ': ping\n\n'

/** How objects are written as events. */
export interface EventStyle {
  write(chunk: object): string
  /** After the last one. */
  readonly end: string
  /** The last ones of a stream that fails. */
  failure(error: ApiError): readonly object[]
}

/** As completions have them: data alone, an error's body where they fail, else `[DONE]` at the end. */
export const PLAIN_EVENTS: EventStyle = {
  write: dataOf,
  end: 'data: [DONE]\n\n',
  failure: (error) => [error.body],
}

/** As responses have them: each under the name of its `type`. */
export function typedEvents(
  failure: (error: ApiError) => readonly { readonly type: string }[],
): EventStyle {
  const write = (event: object) => `event: ${(event as { type: string }).type}\n${dataOf(event)}`
  return { write, end: '', failure }
}

function dataOf(chunk: object): string {
  return `data: ${JSON.stringify(chunk)}\n\n`
}

/**
 * Server-sent events of objects, with a ping whenever none came for `pingMs`.
 *
 * - `first`: the result of the first `next`, where the caller has waited for it
 * - `isLate`: it did not come in `pingMs`, so that the stream begins with a ping
 */
export async function* serverSentEvents(
  chunks: AsyncGenerator<object, void, undefined>,
  first: Promise<IteratorResult<object, void>>,
  {
    style,
    isLate,
    pingMs,
    onError,
  }: {
    style: EventStyle
    isLate: boolean
    pingMs: number
    onError: (error: unknown) => ApiError
  },
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
      yield style.write(result.value)
      next = chunks.next()
      next.catch(() => {}) // seen at the next turn, unless nobody reads on
    }
    if (style.end !== '') yield style.end
  } catch (error) {
    for (const event of style.failure(onError(error))) yield style.write(event)
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
