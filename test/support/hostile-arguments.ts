/** Arguments that no function can work with, put in the place of good ones one by one. */
import { ZipCacheError } from '../../lib/errors'

/**
 * What stands in an argument's place: of each kind of value one, and numbers at the edges. The text is
 * a path, too, of which nothing is ever made.
 */
const HOSTILE: readonly unknown[] = [
  ...[undefined, null, true, 0, -1, 0.5, Number.NaN, Number.POSITIVE_INFINITY, 1e300, 7n],
  ...['', 'no/thing', Symbol('nothing'), {}, [], [null], new Float32Array(1), () => {}],
]

/** One call that is wrong in one place. */
export interface HostileCall {
  /** The place, from the first argument on: `[0, 'classes', 0, 'ids']`. */
  readonly path: readonly (string | number)[]
  readonly value: unknown
  readonly args: unknown[]
}

/**
 * Calls with each value of HOSTILE and of `more` in the place of each argument, and of each field of
 * arguments that are plain objects or lists.
 */
export function* hostileCalls(
  args: readonly unknown[],
  more: readonly unknown[] = [],
): Generator<HostileCall> {
  for (const path of pathsIn(args, [])) {
    for (const value of [...HOSTILE, ...more]) {
      yield { path, value, args: replaced(args, path, value) as unknown[] }
    }
  }
}

function* pathsIn(
  value: unknown,
  path: readonly (string | number)[],
): Generator<(string | number)[]> {
  if (path.length > 0) yield [...path]
  if (Array.isArray(value)) {
    // A list that is no list of arguments has members of one kind.
    const n = path.length === 0 ? value.length : Math.min(1, value.length)
    for (let i = 0; i < n; i++) yield* pathsIn(value[i], [...path, i])
  } else if (isPlain(value)) {
    for (const key of Object.keys(value)) yield* pathsIn(value[key], [...path, key])
  }
}

function replaced(value: unknown, [key, ...rest]: readonly unknown[], by: unknown): unknown {
  if (key === undefined) return by
  const copy = (Array.isArray(value) ? [...value] : { ...(value as object) }) as {
    [key: string]: unknown
  }
  copy[String(key)] = replaced(copy[String(key)], rest, by)
  return copy
}

function isPlain(value: unknown): value is Record<string, unknown> {
  return (
    typeof value === 'object' && value !== null && Object.getPrototypeOf(value) === Object.prototype
  )
}

export type Call = (...args: unknown[]) => unknown

/** What a call did: gave something, or was refused; a promise's end is awaited. */
interface Outcome {
  readonly isPromise: boolean
  readonly error: unknown
  readonly isRefused: boolean
}

/** How a call ends. */
async function outcomeOf(call: () => unknown): Promise<Outcome> {
  let result: unknown
  try {
    result = call()
  } catch (error) {
    return { isPromise: false, error, isRefused: true }
  }
  const isPromise = result instanceof Promise
  try {
    await result
    return { isPromise, error: null, isRefused: false }
  } catch (error) {
    return { isPromise, error, isRefused: true }
  }
}

/**
 * What is wrong with how a call was refused; null where a `ZipCacheError` names the argument, or the
 * file or the like that it means, before anything else.
 */
export function faultOf(error: unknown): string | null {
  if (!(error instanceof ZipCacheError)) return `threw ${error}`
  if (error.code === 'ERR_ZC_INTERNAL') return `threw ${error.code}: ${error.message}`
  if (error.argument === undefined && !/^[^ ]*: /.test(error.message)) {
    return `named no argument: ${error.message}`
  }
  return null
}

/** A hostile call as a failing test prints it. */
export function describeCall(name: string, { path, value }: HostileCall): string {
  const what = typeof value === 'object' && value !== null ? value.constructor.name : typeof value
  const shown = typeof value === 'function' || what === 'object' ? what : String(value)
  return `${name}: ${path.join('.')} = ${shown} (${what})`
}

/**
 * What is wrong with how hostile calls were refused; those that are taken are let be. Where the good
 * call gives a promise, all others do.
 */
export async function faultsOf(
  name: string,
  call: Call,
  args: readonly unknown[],
  more: unknown[] = [],
) {
  const faults: string[] = []
  const good = await outcomeOf(() => call(...args))
  if (good.isRefused) faults.push(`${name} refused what is good: ${good.error}`)
  for (const hostile of hostileCalls(args, more)) {
    const { isRefused, isPromise, error } = await outcomeOf(() => call(...hostile.args))
    const fault = isRefused ? faultOf(error) : null
    if (fault) faults.push(`${describeCall(name, hostile)} ${fault}`)
    if (good.isPromise && !isPromise)
      faults.push(`${describeCall(name, hostile)} threw at the call`)
  }
  return faults
}
