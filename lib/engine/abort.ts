/** Promises that somebody else settles, or a signal gives up. */

/** What a promise comes to; rejects with `signal.reason` if that is aborted before. */
export async function orAborted<T>(
  promise: Promise<T>,
  signal: AbortSignal | undefined,
): Promise<T> {
  if (!signal) return promise
  signal.throwIfAborted()
  const { promise: aborted, resolve } = deferred()
  const forget = onAbort(signal, resolve)
  try {
    return await Promise.race([promise, aborted.then(() => Promise.reject(signal.reason))])
  } finally {
    forget()
  }
}

/** Who is to be told of each signal that somebody listens to. */
const listeners = new WeakMap<AbortSignal, Set<() => void>>()

/**
 * Calls back when a signal is aborted; what is returned takes that back. However many requests share
 * a signal it has one listener: of more than ten Node warns.
 */
export function onAbort(signal: AbortSignal, callback: () => void): () => void {
  let callbacks = listeners.get(signal)
  if (!callbacks) {
    const all = new Set<() => void>()
    const tellAll = () => {
      for (const each of all) each()
    }
    signal.addEventListener('abort', tellAll, { once: true })
    listeners.set(signal, all)
    callbacks = all
  }
  callbacks.add(callback)
  return () => callbacks.delete(callback)
}

/** A promise and its resolver. */
export function deferred(): { promise: Promise<void>; resolve: () => void } {
  let resolve: () => void = () => {}
  const promise = new Promise<void>((settle) => {
    resolve = settle
  })
  return { promise, resolve }
}
