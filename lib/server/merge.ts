/** An iterator and what it was last asked for. */
interface Pending<T> {
  readonly source: AsyncIterator<T, void>
  readonly next: Promise<{ pending: Pending<T>; result: IteratorResult<T, void> }>
}

/**
 * The items of several sources as they come, at most one of each ahead of the reader. Ends when all
 * have ended; rejects with the first that rejects. The caller ends the sources.
 */
export async function* merge<T>(
  sources: readonly AsyncIterator<T, void>[],
): AsyncGenerator<T, void, undefined> {
  const ask = (source: AsyncIterator<T, void>): Pending<T> => {
    const pending: Pending<T> = {
      source,
      next: source.next().then((result) => ({ pending, result })),
    }
    pending.next.catch(() => {}) // seen by the race, or too late for anybody
    return pending
  }
  const open = new Set(sources.map(ask))
  while (open.size > 0) {
    const { pending, result } = await Promise.race([...open].map(({ next }) => next))
    open.delete(pending)
    if (result.done) continue
    yield result.value
    open.add(ask(pending.source))
  }
}
