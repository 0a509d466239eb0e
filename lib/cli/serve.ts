import { readFile } from 'node:fs/promises'
import { basename, resolve } from 'node:path'
import { type Command, InvalidArgumentError, Option } from 'commander'
import { checkKvMemory } from '../engine/engine.js'
import { loadModel } from '../engine/load-model.js'
import type { Model } from '../engine/model.js'
import { reasonOf, ZipCacheError } from '../errors.js'
import { generateLineRetrieval } from '../eval/line-retrieval-prompt.js'
import type { ComputeDtype, WeightFormat } from '../model/weights.js'
import { Device } from '../ops/index.js'
import type { PolicySpec } from '../policy/index.js'
import {
  LOG_LEVELS,
  type LogLevel,
  type PageExample,
  Server,
  type ServerOptions,
} from '../server/index.js'
import { parseKeys } from '../server/keys.js'
import {
  choice,
  computeDtype,
  decimal,
  deviceOption,
  dtypeOption,
  integer,
  list,
  policyName,
  policySpec,
  weightFormat,
  weightsOption,
} from './options.js'
import { say } from './output.js'

/** Options as they come from flags, environment, configuration file and defaults. */
interface ServeOptions {
  readonly model?: string
  readonly servedName?: string[]
  readonly chatTemplate?: string
  readonly config?: string
  readonly host: string
  readonly port: number
  readonly device: string
  readonly dtype?: ComputeDtype
  readonly weights: WeightFormat
  readonly threads?: number
  readonly kvMemory?: number
  readonly maxPositions?: number
  readonly prefixMemory: number
  readonly policy: PolicySpec
  readonly allowPolicy?: string[]
  readonly maxBatch: number
  readonly maxQueue: number
  readonly maxPromptTokens?: number
  readonly maxTokens?: number
  readonly defaultMaxTokens?: number
  readonly promptLookup: number
  readonly maxChoices: number
  readonly bodyLimit: number
  readonly bodyTimeout: number
  readonly requestTimeout: number
  readonly ping: number
  readonly maxSessions: number
  readonly matchSessions: boolean
  readonly sessionTtl: number
  readonly apiKeyFile?: string
  readonly corsOrigin?: string[]
  readonly drainDelay: number
  readonly drainTimeout: number
  readonly page: boolean
  readonly logLevel: LogLevel
  readonly logPrompts: boolean
  readonly metricsCompat?: 'vllm'
}

const HELP = `
Every option is also read from the environment, as ZIPCACHE_ and its name (--kv-memory is
ZIPCACHE_KV_MEMORY), and from a JSON file given by --config, by its name in camel case
({ "model": "DIR", "kvMemory": "2g" }). A flag wins over the environment, that over the file, and
that over the default. Keys come from --api-key-file or, between commas, from ZIPCACHE_API_KEYS.

  POST /v1/responses, /v1/chat/completions, /v1/completions    OpenAI's API; GET /v1/models
  GET  /health/live, /health/ready              process up; 503 while it loads, drains or lost its device
  GET  /metrics                                 for Prometheus
  GET  /                                        a page to chat and to watch the cache

Requests may carry x-session-id (their conversation's compressed cache is kept for the next turn),
x-request-id (comes back, and stands in the log), and in the body "kv_cache", a cache policy.
SIGTERM drains and exits with 0. docs/server.md has the rest.`

/** `zipcache serve`: OpenAI's API over HTTP. */
export function addServeCommand(program: Command, signal: AbortSignal): void {
  const command = program
    .command('serve')
    .description("serve a model by OpenAI's API over HTTP, with compressed caches")
  for (const option of serveOptions()) command.addOption(option)
  command.addHelpText('after', HELP).action(async () => {
    readSwitches(command)
    await readConfigFile(command)
    await serve(command, command.opts<ServeOptions>(), signal)
  })
}

/** All options; each has its variable in the environment. */
function serveOptions(): Option[] {
  const texts = list((text: string) => text)
  const flag = (flags: string, description: string) => {
    const option = new Option(flags, description)
    const name = option.long?.slice(2).replaceAll('-', '_').toUpperCase()
    return option.env(`ZIPCACHE_${name}`)
  }
  const seconds = (flags: string, description: string, value: number) =>
    flag(flags, `${description}, in seconds`).argParser(decimal(0, 1e6)).default(value)
  const whole = (flags: string, description: string, min: number, value?: number) =>
    flag(flags, description).argParser(integer(min)).default(value)
  return [
    flag('--model <dir>', 'Hugging Face model folder (required)'),
    flag(
      '--served-name <names>',
      "names of the model in requests (default: its folder's)",
    ).argParser(texts),
    flag('--chat-template <file>', "a Jinja template instead of the model's own"),
    flag('--config <file>', 'a JSON file with any of these options'),
    flag('--host <address>', 'address to listen on; 0.0.0.0 for all').default('127.0.0.1'),
    flag('--port <n>', '0 takes a free one').argParser(integer(0, 65535)).default(8000),

    flag(...deviceOption),
    flag(...dtypeOption).argParser(computeDtype),
    flag(...weightsOption)
      .argParser(weightFormat)
      .default('stored'),
    flag('--threads <n>', 'threads that compute (default: one a core)').argParser(integer(1, 1024)),
    flag('--max-positions <n>', "longest context, in tokens (default: the model's)").argParser(
      integer(1),
    ),
    flag(
      '--kv-memory <bytes>',
      'memory of all caches, as 512m or 8g (default: half of what is free)',
    ).argParser(bytes(2 ** 20)),
    flag(
      '--prefix-memory <bytes>',
      'of that, what may keep the beginnings of chats that name a prompt_cache_key',
    )
      .argParser(bytes(0))
      .default(0),
    flag('--policy <spec>', 'cache policy of requests that name none: a name, or a JSON object')
      .argParser(policySpec)
      .default('zipcache'),
    flag(
      '--allow-policy <names>',
      'policies that requests may ask for; * with any options (default: all names)',
    ).argParser(list((name) => (name === '*' ? name : policyName(name)))),
    whole('--max-batch <n>', 'most choices that generate at a time', 1, 64),
    whole('--max-queue <n>', 'most choices that wait; others get 429', 0, 256),

    whole('--max-prompt-tokens <n>', "most tokens of a prompt (default: the model's context)", 1),
    whole('--max-tokens <n>', 'most new tokens of a choice', 1),
    whole(
      '--default-max-tokens <n>',
      "new tokens of a chat's answer that asks for no number (default: 4096, 16384 of models that think)",
      1,
    ),
    whole(
      '--prompt-lookup <n>',
      'draft up to n tokens (15 at most) of a step from the text so far',
      0,
      0,
    ),
    whole('--max-choices <n>', 'most choices of one request', 1, 16),
    flag('--body-limit <bytes>', "most bytes of a request's body")
      .argParser(bytes(1))
      .default(2 ** 21),
    seconds('--body-timeout <s>', 'a request has to be there by then', 30),
    seconds('--request-timeout <s>', 'an answer has to be there by then; 0: any time', 600),
    seconds('--ping <s>', 'a comment line in streams where nothing happens', 15),

    whole(
      '--max-sessions <n>',
      'most conversations, and most responses, kept for their next turn',
      0,
      1024,
    ),
    seconds('--session-ttl <s>', 'a conversation, or a response, is kept so long', 3600),
    flag(
      '--match-sessions',
      'a chat that names no session goes on with the one that its prompt begins with',
    ).default(false),

    flag('--api-key-file <file>', 'keys that requests must show one of, one a line'),
    flag(
      '--cors-origin <origins>',
      'origins whose pages may call, * for all (default: none)',
    ).argParser(texts),

    seconds('--drain-delay <s>', 'after SIGTERM requests are still taken for so long', 0),
    seconds('--drain-timeout <s>', 'after SIGTERM answers under way are waited for so long', 30),
    flag('--no-page', 'no page at /').default(true),
    flag('--log-level <level>', `least serious lines to log: ${LOG_LEVELS.join(', ')}`)
      .argParser(choice(...LOG_LEVELS))
      .default('info'),
    flag('--log-prompts', 'log the bodies of requests, prompts and all').default(false),
    flag('--metrics-compat <names>', 'name metrics as vLLM does, too').argParser(choice('vllm')),
  ]
}

/**
 * Takes variables of options without a value by what they say: commander takes any for a yes, and so
 * ZIPCACHE_LOG_PROMPTS=0 for a wish to log prompts. Ends the command for one that says neither.
 */
function readSwitches(command: Command): void {
  for (const option of command.options) {
    const name = option.attributeName()
    if (option.required || command.getOptionValueSource(name) !== 'env') continue
    const variable = option.envVar as string
    const value = process.env[variable] as string
    if (/^(1|true)$/i.test(value)) continue
    if (!/^(0|false|)$/i.test(value)) {
      command.error(`${variable} is ${JSON.stringify(value)}, expected 1, true, 0 or false`)
    }
    command.setOptionValueWithSource(name, option.defaultValue, 'env')
  }
}

/**
 * Puts the values of `--config` where neither a flag nor the environment says otherwise.
 *
 * Rejects with `ERR_ZC_IO`, `ERR_ZC_CONFIG`, or as a flag with such a value does.
 */
async function readConfigFile(command: Command): Promise<void> {
  const { config: path } = command.opts<ServeOptions>()
  if (path === undefined) return
  const known = new Map(command.options.map((option) => [option.attributeName(), option]))
  known.delete('config')
  for (const [key, value] of Object.entries(await readJsonObject(path))) {
    const option = known.get(key)
    if (!option)
      throw configError(path, key, `is no option, expected some of ${[...known.keys()].join(', ')}`)
    const source = command.getOptionValueSource(key)
    if (source === 'cli' || source === 'env') continue
    command.setOptionValueWithSource(key, parseConfigValue(path, option, value), 'config')
  }
}

function parseConfigValue(path: string, option: Option, value: unknown): unknown {
  const key = option.attributeName()
  if (!option.required) {
    if (typeof value === 'boolean') return value
    throw configError(path, key, `is ${JSON.stringify(value)}, expected true or false`)
  }
  const isSpec = key === 'policy' && typeof value === 'object' && value !== null
  const isText = (one: unknown) => typeof one === 'string' || typeof one === 'number'
  const texts = isSpec ? [JSON.stringify(value)] : Array.isArray(value) ? value : [value]
  if (!texts.every(isText)) {
    throw configError(path, key, `is ${JSON.stringify(value)}, expected a text or a number`)
  }
  const text = texts.join(',')
  try {
    return option.parseArg ? option.parseArg(text, undefined) : text
  } catch (error) {
    if (!(error instanceof InvalidArgumentError)) throw error
    throw configError(path, key, `is ${text}. ${error.message}`)
  }
}

async function readJsonObject(path: string): Promise<object> {
  const text = await readText(path, '--config')
  try {
    const value: unknown = JSON.parse(text)
    if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value
  } catch (cause) {
    throw new ZipCacheError('ERR_ZC_CONFIG', `${path}: is no JSON`, { argument: 'config', cause })
  }
  throw new ZipCacheError('ERR_ZC_CONFIG', `${path}: expected a JSON object`, {
    argument: 'config',
  })
}

function configError(path: string, key: string, what: string): ZipCacheError {
  return new ZipCacheError('ERR_ZC_CONFIG', `${path}: ${key} ${what}`, { argument: key })
}

async function readText(path: string, flag: string): Promise<string> {
  try {
    return await readFile(path, 'utf8')
  } catch (cause) {
    throw new ZipCacheError('ERR_ZC_IO', `${flag} ${path}: cannot be read: ${reasonOf(cause)}`, {
      cause,
    })
  }
}

/** Bytes, as a number or with k, m or g behind it for powers of 1024. */
function bytes(min: number): (value: string) => number {
  return (value) => {
    const [, digits, unit = ''] = /^(\d+(?:\.\d+)?)([kmg]?)$/i.exec(value) ?? []
    const number = Math.floor(Number(digits) * 1024 ** ' kmg'.indexOf(unit.toLowerCase() || ' '))
    if (Number.isSafeInteger(number) && number >= min) return number
    throw new InvalidArgumentError(
      `Expected bytes, ${min} at least: a number, or one of k, m or g, as 512m.`,
    )
  }
}

async function serve(command: Command, options: ServeOptions, signal: AbortSignal): Promise<void> {
  const { model: dir, device: name, dtype, weights, threads, maxPositions } = options
  if (dir === undefined) {
    command.error("required option '--model <dir>' not specified", {
      code: 'commander.missingMandatoryOptionValue',
    })
  }
  const server = new Server(await serverOptions(dir, options))
  const url = await server.listen()
  say(`zipcache: listening on ${url}`)
  try {
    const startedAt = performance.now()
    const device = await Device.open(name, threads === undefined ? {} : { threads })
    try {
      // Before a model is loaded for nothing.
      if (options.kvMemory !== undefined) checkKvMemory(options.kvMemory, device)
      const model = await loadModel(dir, { device, dtype, weights, maxPositions, signal })
      try {
        server.serve(model, { examples: examplesOf(model) })
        const seconds = (performance.now() - startedAt) / 1000
        server.log.info({ model: dir, device: device.info.name, seconds }, 'ready')
        await aborted(signal)
        server.log.info('draining')
        const nCut = await server.drain()
        server.log.info({ cut: nCut }, 'drained')
      } finally {
        await server.close()
        await model.dispose()
      }
    } finally {
      await device.dispose()
    }
  } catch (error) {
    await server.close()
    // Told to end before there was anything to serve.
    if (!signal.aborted) throw error
  }
}

async function serverOptions(dir: string, options: ServeOptions): Promise<ServerOptions> {
  const { apiKeyFile, chatTemplate, policy } = options
  const fileKeys = apiKeyFile ? parseKeys(await readText(apiKeyFile, '--api-key-file')) : []
  if (apiKeyFile && fileKeys.length === 0) {
    throw new ZipCacheError('ERR_ZC_CONFIG', `--api-key-file ${apiKeyFile}: holds no key`, {
      argument: 'api-key-file',
    })
  }
  const envKeys = (process.env.ZIPCACHE_API_KEYS ?? '').split(',').map((key) => key.trim())
  return {
    host: options.host,
    port: options.port,
    modelNames: options.servedName ?? [basename(resolve(dir))],
    apiKeys: [...fileKeys, ...envKeys.filter((key) => key !== '')],
    corsOrigins: options.corsOrigin,
    policy,
    allowedPolicies: options.allowPolicy,
    chatTemplate: chatTemplate && (await readText(chatTemplate, '--chat-template')),
    kvMemory: options.kvMemory,
    prefixMemory: options.prefixMemory,
    maxBatch: options.maxBatch,
    maxQueue: options.maxQueue,
    maxPromptTokens: options.maxPromptTokens,
    maxTokens: options.maxTokens,
    defaultMaxTokens: options.defaultMaxTokens,
    promptLookup: options.promptLookup,
    maxChoices: options.maxChoices,
    bodyLimit: options.bodyLimit,
    bodyTimeoutMs: milliseconds(options.bodyTimeout),
    requestTimeoutMs: milliseconds(options.requestTimeout),
    pingMs: milliseconds(options.ping),
    maxSessions: options.maxSessions,
    matchSessions: options.matchSessions,
    sessionTtlMs: milliseconds(options.sessionTtl),
    drainDelayMs: milliseconds(options.drainDelay),
    drainTimeoutMs: milliseconds(options.drainTimeout),
    page: options.page,
    logLevel: options.logLevel,
    logPrompts: options.logPrompts,
    vllmMetrics: options.metricsCompat === 'vllm',
  }
}

const milliseconds = (seconds: number) => Math.round(seconds * 1000)

async function aborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return
  await new Promise((resolve) => {
    signal.addEventListener('abort', resolve, { once: true })
  })
}

/** Models that were trained for line retrieval know this word, and their own form of prompts alone. */
function examplesOf({ tokenizer }: Model): PageExample[] {
  if (tokenizer?.encode('REGISTER_CONTENT').length !== 1) return []
  const first = generateLineRetrieval({ lines: 100, seed: 1 })
  const other = generateLineRetrieval({ lines: 100, seed: 1, targetLine: 7 })
  return [
    { title: '100 records and a question', message: first.text, maxTokens: 14 },
    { title: 'then another question', message: other.questionText, maxTokens: 14 },
  ]
}
