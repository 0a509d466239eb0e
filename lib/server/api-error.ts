import { ZipCacheError } from '../errors.js'

/** An error as OpenAI's API writes it. */
export interface ErrorBody {
  /** The only field. */
  readonly error: {
    /** What was wrong, for people. */
    readonly message: string
    /** `ApiError.type`. */
    readonly type: string
    /** `ApiError.param`. */
    readonly param: string | null
    /** `ApiError.code`. */
    readonly code: string | null
  }
}

/** What an `ApiError` says beside status and message. */
export interface ApiErrorFields {
  /** The field of the request that is wrong. */
  param?: string | undefined
  /** A word that programs branch on. */
  code?: string | undefined
  /** Seconds after which another try may succeed. */
  retryAfter?: number | undefined
  /** The error underneath. */
  cause?: unknown
}

/** Why a request is not answered, as its client is to see it. */
export class ApiError extends Error {
  /** Of HTTP. */
  readonly status: number
  /** The field of the request that is wrong. */
  readonly param: string | null
  /** A word that programs branch on. */
  readonly code: string | null
  /** Seconds after which another try may succeed. */
  readonly retryAfter: number | null

  constructor(status: number, message: string, fields: ApiErrorFields = {}) {
    super(message, fields.cause === undefined ? undefined : { cause: fields.cause })
    this.name = 'ApiError'
    this.status = status
    this.param = fields.param ?? null
    this.code = fields.code ?? null
    this.retryAfter = fields.retryAfter ?? null
  }

  /** OpenAI's class of the error, by its status. */
  get type(): string {
    if (this.status === 401) return 'authentication_error'
    if (this.status === 429) return 'rate_limit_error'
    return this.status >= 500 ? 'server_error' : 'invalid_request_error'
  }

  /** What the client gets. */
  get body(): ErrorBody {
    const { message, type, param, code } = this
    return { error: { message, type, param, code } }
  }
}

/** A request whose field `param` makes no sense. */
export function invalid(param: string, what: string): ApiError {
  return new ApiError(400, `${param}: ${what}`, { param, code: 'invalid_value' })
}

/** Seconds that a client is told to wait before it tries again. */
const RETRY_AFTER = 1

/**
 * The answer to a request that failed: an `ApiError` as it is, the engine's errors by their code, and
 * everything else as a 500 that says nothing of our insides.
 */
export function toApiError(error: unknown): ApiError {
  if (error instanceof ApiError) return error
  if (!(error instanceof ZipCacheError)) {
    return new ApiError(500, 'The server failed; its log says why.', { cause: error })
  }
  const { cause, argument } = error
  // Options of the engine have the names of OpenAI's fields, in camel case; one is vLLM's.
  const field = argument === 'stopTokens' ? 'stopTokenIds' : argument
  const param = field?.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)
  const isNamed = argument !== undefined && error.message.startsWith(`${argument}: `)
  const message = isNamed ? `${param}${error.message.slice(argument.length)}` : error.message
  const fields = { param, cause }
  switch (error.code) {
    case 'ERR_ZC_ARGUMENT':
    case 'ERR_ZC_UNSUPPORTED':
      return new ApiError(400, message, { ...fields, code: 'invalid_value' })
    case 'ERR_ZC_TOKENIZER':
      return new ApiError(400, message, { ...fields, code: 'invalid_prompt' })
    case 'ERR_ZC_CONTEXT_LENGTH':
      return new ApiError(400, message, { ...fields, code: 'context_length_exceeded' })
    case 'ERR_ZC_BUSY':
      return new ApiError(429, message, { code: 'queue_full', retryAfter: RETRY_AFTER, cause })
    case 'ERR_ZC_OUT_OF_MEMORY':
      return new ApiError(503, message, { code: 'out_of_memory', retryAfter: RETRY_AFTER, cause })
    case 'ERR_ZC_DEVICE_LOST':
      return new ApiError(503, message, { code: 'device_lost', cause })
    default:
      return new ApiError(500, message, { code: error.code, cause })
  }
}
