import { MOST_DRAFTED } from '../engine/drafts.js'
import { checkKvMemory } from '../engine/engine.js'
import { planGeneration } from '../engine/generation.js'
import { checkInteger, checkOptions } from '../engine/options.js'
import { argumentError, show, ZipCacheError } from '../errors.js'
import type { GenerationConfig } from '../model/generation-config.js'
import { POLICY_NAMES, type PolicySpec, resolvePolicy } from '../policy/index.js'
import type { SamplingDefaults } from './request.js'

/** Settings of a server; each has a default. */
export interface ServerOptions {
  /** Address to listen on; default 127.0.0.1, this machine alone. */
  readonly host?: string | undefined
  /** Default 8000; 0 takes a free one. */
  readonly port?: number | undefined
  /** Names that requests may call the model by; default `zipcache`. */
  readonly modelNames?: readonly string[] | undefined
  /** A Jinja template for chats instead of the model's own. */
  readonly chatTemplate?: string | undefined
  /** Requests to `/v1` must show one of these keys; no spaces. Default none: everybody is let in. */
  readonly apiKeys?: readonly string[] | undefined
  /** Origins whose pages may call the server; default none. */
  readonly corsOrigins?: readonly string[] | undefined

  /** The policy of requests that name none; default `zipcache`. */
  readonly policy?: PolicySpec | undefined
  /** Policies that requests may ask for by `kv_cache`; default all names, `*` with options too. */
  readonly allowedPolicies?: readonly string[] | undefined
  /** Bytes for all caches together, no more than the device has; default half of what is free. */
  readonly kvMemory?: number | undefined
  /**
   * Bytes of `kvMemory` that may keep what chats of one `prompt_cache_key` begin with: their tools and
   * system messages. Default 0: nothing is kept, and the key means nothing.
   */
  readonly prefixMemory?: number | undefined
  /** Most requests that generate at a time; default 64. */
  readonly maxBatch?: number | undefined
  /** Most requests that wait; further ones are told 429. Default 256. */
  readonly maxQueue?: number | undefined

  /** Most tokens of a prompt; default what the model's context holds, less one. */
  readonly maxPromptTokens?: number | undefined
  /** Most new tokens of a choice; default the model's context. */
  readonly maxTokens?: number | undefined
  /** New tokens of a chat's answer whose request does not say; default 4096, or 16384 of models that think. */
  readonly defaultMaxTokens?: number | undefined
  /**
   * Tokens to draft for a step from the text so far, at most 15, where a request says neither
   * `prompt_lookup` nor `prediction`; default 0, none. See `GenerateOptions.promptLookup`.
   */
  readonly promptLookup?: number | undefined
  /** Most choices of one request; default 16. */
  readonly maxChoices?: number | undefined
  /** Most bytes of a request's body; default 2 MiB. */
  readonly bodyLimit?: number | undefined
  /** A request whose head and body are not there after so long is told 408. Default 30 s. */
  readonly bodyTimeoutMs?: number | undefined
  /** A request that is not answered in full after so long is given up. Default 600 s; 0: never. */
  readonly requestTimeoutMs?: number | undefined
  /** A stream in which nothing happens for so long gets a comment line. Default 15 s. */
  readonly pingMs?: number | undefined
  /**
   * Sampling of requests that do not say how; default what the model's generation_config.json advises,
   * else OpenAI's, temperature 1.
   */
  readonly sampling?: Partial<SamplingDefaults> | undefined

  /** Most conversations, and most responses, kept between requests; default 1024, 0 none. */
  readonly maxSessions?: number | undefined
  /** How long a conversation, or a response, is kept; default an hour. */
  readonly sessionTtlMs?: number | undefined
  /**
   * Whether a chat that names no session is one: it goes on over the cache that an earlier one of its key
   * left, if its prompt begins with what is there. Default false, where each begins anew.
   */
  readonly matchSessions?: boolean | undefined

  /** How long a server that ends still takes requests, for routers to notice. Default 0. */
  readonly drainDelayMs?: number | undefined
  /** How long a server that ends waits for answers under way, then cuts them. Default 30 s. */
  readonly drainTimeoutMs?: number | undefined

  /** Whether there is a page at `/` to chat and to watch the cache. Default true. */
  readonly page?: boolean | undefined

  /** Least serious lines to log, `silent` for none; default `info`. */
  readonly logLevel?: LogLevel | undefined
  /** Also logs the bodies of requests, prompts and all. Default false. */
  readonly logPrompts?: boolean | undefined
  /** Also names metrics as vLLM does, which routers read. Default false: their names have colons. */
  readonly vllmMetrics?: boolean | undefined
}

/** How serious a line of the log is, least first; `silent`: none is written. */
export const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const
/** One of `LOG_LEVELS`. */
export type LogLevel = (typeof LOG_LEVELS)[number]

/** Options with the defaults filled in; undefined where the model decides. */
export type ServerSettings = Required<Omit<ServerOptions, ModelDecides>> &
  Pick<ServerOptions, ModelDecides>
type ModelDecides =
  | 'kvMemory'
  | 'maxPromptTokens'
  | 'maxTokens'
  | 'defaultMaxTokens'
  | 'chatTemplate'
  | 'sampling'

/** Throws `ERR_ZC_ARGUMENT` naming the option whose value is wrong. */
type Check = (name: string, value: unknown) => void

function expected(accepts: (value: unknown) => boolean, what: string): Check {
  return (name, value) => {
    if (!accepts(value)) throw argumentError(name, `is ${show(value)}, expected ${what}`)
  }
}

const isText = (value: unknown) => typeof value === 'string' && value !== ''
const text = expected(isText, 'a text that is not empty')
const texts = expected(
  (value) => Array.isArray(value) && value.every(isText),
  'a list of texts, none empty',
)
const truth = expected((value) => typeof value === 'boolean', 'true or false')
const whole =
  (min: number, max = Number.MAX_SAFE_INTEGER): Check =>
  (name, value) =>
    void checkInteger(name, value, min, max)
/** What Node's timers take. */
const MAX_TIMER_MS = 2 ** 31 - 1
const timer = whole(0, MAX_TIMER_MS)

const checkNames: Check = (name, value) => {
  texts(name, value)
  if ((value as string[]).length === 0)
    throw argumentError(name, 'is an empty list, expected a name')
}

/** Says nothing of what the keys are. */
const checkKeys: Check = (name, value) => {
  const isKey = (key: unknown) => typeof key === 'string' && /^\S+$/.test(key)
  if (Array.isArray(value) && value.every(isKey)) return
  throw argumentError(name, 'expected a list of keys, texts without spaces, none empty')
}

const checkAllowed: Check = (name, value) => {
  texts(name, value)
  for (const policy of value as string[]) {
    try {
      if (policy !== '*') resolvePolicy(policy)
    } catch (error) {
      if (!(error instanceof ZipCacheError)) throw error
      throw argumentError(name, error.message)
    }
  }
}

const SAMPLING = { temperature: 1, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1 }

function checkSampling(sampling: Partial<SamplingDefaults>): void {
  checkOptions(sampling, Object.keys(SAMPLING))
  // Whoever generates knows the ranges.
  planGeneration(sampling, { eosTokenIds: [], vocabSize: 1 }, null)
}

const CHECKS: { readonly [Name in keyof ServerOptions]-?: Check } = {
  host: text,
  port: whole(0, 65535),
  modelNames: checkNames,
  chatTemplate: expected((value) => typeof value === 'string', 'a text'),
  apiKeys: checkKeys,
  corsOrigins: texts,
  policy: (_, value) => void resolvePolicy(value as PolicySpec),
  allowedPolicies: checkAllowed,
  kvMemory: (_, value) => void checkKvMemory(value as number, null),
  prefixMemory: whole(0),
  maxBatch: whole(1),
  maxQueue: whole(0),
  maxPromptTokens: whole(1),
  maxTokens: whole(1),
  defaultMaxTokens: whole(1),
  promptLookup: whole(0, MOST_DRAFTED),
  maxChoices: whole(1),
  bodyLimit: whole(1),
  bodyTimeoutMs: timer,
  requestTimeoutMs: timer,
  pingMs: timer,
  sampling: (_, value) => checkSampling(value as Partial<SamplingDefaults>),
  maxSessions: whole(0),
  sessionTtlMs: whole(0),
  matchSessions: truth,
  drainDelayMs: timer,
  drainTimeoutMs: timer,
  page: truth,
  logLevel: expected(
    (value) => LOG_LEVELS.includes(value as LogLevel),
    `one of ${LOG_LEVELS.join(', ')}`,
  ),
  logPrompts: truth,
  vllmMetrics: truth,
}

/** Names of all options. */
const SERVER_OPTIONS = Object.keys(CHECKS) as (keyof ServerOptions)[]

/**
 * Fills in the defaults.
 *
 * - `known`: the options there are
 *
 * Throws `ERR_ZC_ARGUMENT` naming the option that is unknown, or whose value is wrong.
 */
export function settingsOf(
  options: ServerOptions,
  known: readonly (keyof ServerOptions)[] = SERVER_OPTIONS,
): ServerSettings {
  checkOptions(options, known)
  const given = withoutUndefined(options)
  for (const [name, value] of Object.entries(given)) {
    CHECKS[name as keyof ServerOptions](name, value)
  }
  return {
    host: '127.0.0.1',
    port: 8000,
    modelNames: ['zipcache'],
    apiKeys: [],
    corsOrigins: [],
    policy: 'zipcache',
    allowedPolicies: POLICY_NAMES,
    prefixMemory: 0,
    maxBatch: 64,
    maxQueue: 256,
    promptLookup: 0,
    maxChoices: 16,
    bodyLimit: 2 * 2 ** 20,
    bodyTimeoutMs: 30_000,
    requestTimeoutMs: 600_000,
    pingMs: 15_000,
    maxSessions: 1024,
    sessionTtlMs: 3_600_000,
    matchSessions: false,
    drainDelayMs: 0,
    drainTimeoutMs: 30_000,
    page: true,
    logLevel: 'info',
    logPrompts: false,
    vllmMetrics: false,
    ...given,
  }
}

/**
 * Sampling of requests that do not say how: as the options say, else as the model's authors advise.
 *
 * Throws `ERR_ZC_ARGUMENT` for advice out of range.
 */
export function samplingOf(
  { sampling = {} }: ServerSettings,
  advice: GenerationConfig | null,
): SamplingDefaults {
  const { temperature, topK, topP, minP, repetitionPenalty, doSample } = advice ?? {}
  const advised = { temperature, topK, topP, minP, repetitionPenalty }
  const all = {
    ...SAMPLING,
    ...Object.fromEntries(Object.entries(advised).filter(([, value]) => value != null)),
    ...(doSample === false ? { temperature: 0 } : {}),
    ...withoutUndefined(sampling),
  }
  checkSampling(all)
  return all
}

function withoutUndefined<T extends object>(options: T): T {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as T
}
