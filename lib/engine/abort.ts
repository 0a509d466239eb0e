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

/** Who is to be told of each signal, and the one listener that tells them. */
const listeners = new WeakMap<AbortSignal, { callbacks: Set<() => void>; tellAll: () => void }>()

/**
 * Calls back when a signal is aborted; what is returned takes that back. However many requests share
 * a signal it has one listener: of more than ten Node warns. It has none once nobody waits: Node keeps
 * a signal of `AbortSignal.any` or `timeout` for as long as somebody listens.
 */
export function onAbort(signal: AbortSignal, callback: () => void): () => void {
  let listener = listeners.get(signal)
  if (!listener) {
    const callbacks = new Set<() => void>()
    const tellAll = () => {
      for (const each of callbacks) each()
    }
    signal.addEventListener('abort', tellAll, { once: true })
    listener = { callbacks, tellAll }
    listeners.set(signal, listener)
  }
  const { callbacks, tellAll } = listener
  callbacks.add(callback)
  return () => {
    if (!callbacks.delete(callback) || callbacks.size > 0) return
    signal.removeEventListener('abort', tellAll)
    listeners.delete(signal)
  }
}

/** A promise and its resolver. */
export function deferred(): { promise: Promise<void>; resolve: () => void } {
  let resolve: () => void = () => {}
  const promise = new Promise<void>((settle) => {
    resolve = settle
  })
  return { promise, resolve }
}
