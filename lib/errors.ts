/**
 * Every code a `ZipCacheError` can carry. The native side holds the same list, in the same order,
 * in `csrc/core/error_codes.def`; a test keeps the two equal.
 *
 * - `ERR_ZC_ARGUMENT`: an argument has the wrong type or a value out of its range.
 * - `ERR_ZC_SHAPE`: a tensor has the wrong rank or extent.
 * - `ERR_ZC_DTYPE`: a tensor has the wrong element type.
 * - `ERR_ZC_DEVICE`: tensors live on different devices, or there is no such device.
 * - `ERR_ZC_HANDLE`: a native handle is disposed or of another kind.
 * - `ERR_ZC_UNSUPPORTED`: valid, but not supported here.
 * - `ERR_ZC_OUT_OF_MEMORY`: an allocation failed.
 * - `ERR_ZC_CHECKPOINT`: weight files are damaged, contradict themselves, or are missing.
 * - `ERR_ZC_CONFIG`: config.json or generation_config.json is unsupported, damaged or absurd.
 * - `ERR_ZC_TOKENIZER`: tokenizer files are damaged or cannot do what was asked.
 * - `ERR_ZC_CONTEXT_LENGTH`: more tokens than the model has positions.
 * - `ERR_ZC_NUMERIC`: NaN or infinity where a number is needed.
 * - `ERR_ZC_NATIVE`: the native addon cannot be loaded.
 * - `ERR_ZC_IO`: the operating system refused to read or write a file.
 * - `ERR_ZC_INTERNAL`: a promise of our own code is broken; please report it.
 * - `ERR_ZC_DEVICE_LOST`: the device failed beyond recovery; the process lives on.
 * - `ERR_ZC_BUSY`: the engine's queue is full, or its memory promised to what runs; try again later.
 * - `ERR_ZC_SNAPSHOT`: a saved sequence is damaged, of another version or of another model.
 */
export const ERROR_CODES = [
  'ERR_ZC_ARGUMENT',
  'ERR_ZC_SHAPE',
  'ERR_ZC_DTYPE',
  'ERR_ZC_DEVICE',
  'ERR_ZC_HANDLE',
  'ERR_ZC_UNSUPPORTED',
  'ERR_ZC_OUT_OF_MEMORY',
  'ERR_ZC_CHECKPOINT',
  'ERR_ZC_CONFIG',
  'ERR_ZC_TOKENIZER',
  'ERR_ZC_CONTEXT_LENGTH',
  'ERR_ZC_NUMERIC',
  'ERR_ZC_NATIVE',
  'ERR_ZC_IO',
  'ERR_ZC_INTERNAL',
  'ERR_ZC_DEVICE_LOST',
  'ERR_ZC_BUSY',
  'ERR_ZC_SNAPSHOT',
] as const

/** One of `ERROR_CODES`. */
export type ErrorCode = (typeof ERROR_CODES)[number]

/** What a `ZipCacheError` says beside its code and message; each field only where it is known. */
export interface ZipCacheErrorFields {
  /** The op that refused its arguments, e.g. `flashAttention`. */
  op?: string | undefined
  /** The argument, option, config key or tensor that is wrong. */
  argument?: string | undefined
  /** The backend that failed, e.g. `cpu`. */
  backend?: string | undefined
  /** The error underneath. */
  cause?: unknown
}

/**
 * The one error class of the library. Callers branch on `code`, never on the text, which names the
 * argument, what it was and what it must be.
 */
export class ZipCacheError extends Error {
  /** What went wrong: one of `ERROR_CODES`. */
  readonly code: ErrorCode
  // `declare`: a field that is not known is absent, not an own property that is undefined.
  /** The op that refused its arguments, e.g. `flashAttention`. */
  declare readonly op?: string
  /** The argument, option, config key or tensor that is wrong. */
  declare readonly argument?: string
  /** The backend that failed, e.g. `cpu`. */
  declare readonly backend?: string

  constructor(code: ErrorCode, message: string, fields: ZipCacheErrorFields = {}) {
    super(message, fields.cause === undefined ? undefined : { cause: fields.cause })
    this.code = code
    if (fields.op !== undefined) this.op = fields.op
    if (fields.argument !== undefined) this.argument = fields.argument
    if (fields.backend !== undefined) this.backend = fields.backend
  }
}

// On the prototype, as in Node's own errors: a stack reads `ZipCacheError: …` and the name is no
// own field.
Object.defineProperty(ZipCacheError.prototype, 'name', {
  value: 'ZipCacheError',
  configurable: true,
  writable: true,
})

/** A value as a message says it. Not JSON alone, which makes null of NaN and throws at a bigint. */
export function show(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value)
  if (typeof value !== 'object' || value === null) return String(value)
  try {
    return JSON.stringify(value)
  } catch {
    return 'an object'
  }
}

/** What is wrong with an argument: what it was, and what it must be. */
export function argumentError(argument: string, what: string, cause?: unknown): ZipCacheError {
  return new ZipCacheError('ERR_ZC_ARGUMENT', `${argument}: ${what}`, { argument, cause })
}

/** What an error says, for the message of another one; anything can be thrown. */
export function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
