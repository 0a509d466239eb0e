import { randomUUID } from 'node:crypto'
import type { Socket } from 'node:net'
import { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import fastify, {
  type FastifyError,
  type FastifyInstance,
  type FastifyReply,
  type FastifyRequest,
  LogController,
} from 'fastify'
import { fp16CacheBytes } from '../cache/index.js'
import type { Engine } from '../engine/engine.js'
import type { Model } from '../engine/model.js'
import { disposedError } from '../engine/refusals.js'
import { argumentError, reasonOf, ZipCacheError } from '../errors.js'
import { attentionShapes } from '../model/layer-kinds.js'
import { POLICY_NAMES } from '../policy/index.js'
import { ApiError, invalid, toApiError } from './api-error.js'
import { type Backend, createBackend } from './backend.js'
import { describe, type JsonObject } from './fields.js'
import { parseJsonBody } from './json-body.js'
import { ApiKeys } from './keys.js'
import { ServerMetrics } from './metrics.js'
import { type ServerOptions, type ServerSettings, settingsOf } from './options.js'
import { addPage, type PageExample } from './page.js'
import { policyName } from './policies.js'
import { modelNotFound } from './request.js'
import type { Answer, Call, ResponsesAnswer } from './service.js'
import type { SessionName } from './sessions.js'
import { orAfter, PLAIN_EVENTS, serverSentEvents, typedEvents } from './sse.js'

/** What a server can do now. */
export type ServerState = 'loading' | 'ready' | 'draining' | 'lost' | 'closed'

/** What a client may have looked for, where it has asked for something else. */
const API = ['/v1/responses', '/v1/chat/completions', '/v1/completions', '/v1/models']

/** The beginning of one of these without its `/v1`. */
const BARE = /^\/+(chat\/completions|completions|responses|models)(?=[/?]|$)/
const REQUEST_ID = /^[\w.:-]{1,128}$/
const MAX_SESSION_ID = 256
/** How long connections may take to end by themselves, once answers are given, or given up. */
const CLOSE_MS = 500

/**
 * OpenAI's API over HTTP. It listens before its model is loaded, and says that it is not ready yet;
 * `serve` gives it the model.
 */
export class Server {
  /** @internal What `/metrics` shows. */
  readonly metrics: ServerMetrics
  readonly #settings: ServerSettings
  readonly #keys: ApiKeys
  readonly #app: FastifyInstance
  /** Of requests for tokens that are under way. */
  readonly #inFlight = new Set<AbortController>()
  /** What requests took, for their line in the log. */
  readonly #used = new WeakMap<FastifyRequest, object>()
  #backend: Backend | null = null
  #examples: readonly PageExample[] = []
  #isLost = false
  #isDraining = false
  #refusesNew = false
  #isClosed = false
  #noneInFlight: (() => void) | null = null

  /** Throws `ERR_ZC_ARGUMENT` for an option that is unknown or out of range. */
  constructor(options: ServerOptions = {}) {
    const settings = settingsOf(options)
    this.#settings = settings
    this.#keys = new ApiKeys(settings.apiKeys)
    this.metrics = new ServerMetrics(
      settings.vllmMetrics ? (settings.modelNames[0] as string) : null,
    )
    this.#app = fastify({
      bodyLimit: settings.bodyLimit,
      rewriteUrl: ({ url = '/' }) => underV1(url),
      routerOptions: {
        // Names of sessions stand in paths.
        maxParamLength: 4 * MAX_SESSION_ID,
        // Programs join a base URL and a path, each with a slash or without.
        ignoreDuplicateSlashes: true,
        ignoreTrailingSlash: true,
      },
      requestTimeout: settings.bodyTimeoutMs,
      // Node looks for requests that take too long this often.
      http: {
        headersTimeout: settings.bodyTimeoutMs,
        connectionsCheckingInterval: Math.min(1000, settings.bodyTimeoutMs),
      },
      forceCloseConnections: 'idle',
      logger: settings.logLevel === 'silent' ? false : { level: settings.logLevel },
      logController: new LogController({ disableRequestLogging: true }),
      requestIdHeader: false,
      genReqId: ({ headers }) => {
        const given = headers['x-request-id']
        return typeof given === 'string' && REQUEST_ID.test(given) ? given : randomUUID()
      },
      clientErrorHandler: answerBrokenRequest,
      frameworkErrors: (error, request, reply) => void this.#fail(error, request, reply),
    })
    this.#addHooks()
    this.#addRoutes()
  }

  /** What it can do now. */
  get state(): ServerState {
    if (this.#isClosed) return 'closed'
    if (this.#isDraining) return 'draining'
    if (this.#isLost) return 'lost'
    return this.#backend ? 'ready' : 'loading'
  }

  /** @internal The engine that it runs on: for tests. */
  get engine(): Engine | null {
    return this.#backend?.engine ?? null
  }

  /** Structured log lines, on stdout unless it is silent. */
  get log(): FastifyInstance['log'] {
    return this.#app.log
  }

  /** Listens; resolves to the address, `http://127.0.0.1:8000`. Rejects with `ERR_ZC_IO`. */
  async listen(): Promise<string> {
    const { host, port } = this.#settings
    try {
      const listenTextResolver = (address: string) => `listening on ${address}`
      return await this.#app.listen({ host, port, listenTextResolver })
    } catch (cause) {
      throw new ZipCacheError('ERR_ZC_IO', `${host}:${port}: cannot listen: ${reasonOf(cause)}`, {
        cause,
      })
    }
  }

  /**
   * Answers from a model from now on. The model is the caller's to dispose of, once the server is
   * closed.
   *
   * - `examples`: texts that the page offers to send to this model
   *
   * Throws as `createEngine`; `ERR_ZC_ARGUMENT` for a second model, `ERR_ZC_HANDLE` once it is closed.
   */
  serve(
    model: Model,
    { examples = [] }: { examples?: readonly PageExample[] | undefined } = {},
  ): void {
    if (this.#isClosed) throw disposedError('server')
    if (this.#backend) {
      throw argumentError('model', 'the server answers from one already')
    }
    const backend = createBackend(model, this.#settings, this.metrics)
    this.metrics.attach({
      ...backend,
      fp16BytesPerToken: fp16CacheBytes(attentionShapes(model.config), 1),
    })
    this.#examples = examples
    this.#backend = backend
  }

  /**
   * Ends in good order: it is not ready from now on, takes requests for `drainDelayMs` more, answers
   * what is under way, cuts what is not done after `drainTimeoutMs`, and closes. Resolves to how many
   * answers were cut.
   */
  async drain(): Promise<number> {
    this.#isDraining = true
    const { drainDelayMs, drainTimeoutMs } = this.#settings
    await sleep(drainDelayMs)
    this.#refusesNew = true
    const allDone = new Promise<true>((resolve) => {
      this.#noneInFlight = () => resolve(true)
      if (this.#inFlight.size === 0) resolve(true)
    })
    const isDone = await orAfter(allDone, drainTimeoutMs)
    const nCut = isDone ? 0 : this.#inFlight.size
    await this.close()
    return nCut
  }

  /** Closes at once; answers under way are cut. Idempotent. */
  async close(): Promise<void> {
    this.#isClosed = true
    this.#refusesNew = true
    for (const abort of this.#inFlight) abort.abort(shuttingDown())
    const closed = this.#app.close().then(() => true as const)
    // Clients that keep a connection open without a request, or do not end the one they have begun.
    if (!(await orAfter(closed, CLOSE_MS))) this.#app.server.closeAllConnections()
    await closed
    await this.#backend?.service.dispose()
  }

  // ---- routes ----

  #addRoutes(): void {
    const app = this.#app
    app.removeAllContentTypeParsers()
    app.addContentTypeParser(
      'application/json',
      { parseAs: 'buffer' },
      // Some say the type of a body that they do not send.
      async ({ method }: FastifyRequest, bytes: Buffer) =>
        method === 'DELETE' && bytes.length === 0 ? undefined : parseJsonBody(bytes),
    )
    app.get('/health/live', async () => ({ status: 'live' }))
    for (const url of ['/health', '/health/ready']) {
      app.get(url, async (_, reply) => {
        const { state } = this
        return reply.code(state === 'ready' ? 200 : 503).send({ status: state })
      })
    }
    app.get('/metrics', async (_, reply) =>
      reply.type(this.metrics.contentType).send(await this.metrics.page()),
    )
    app.get('/v1/models', async () => this.#ready().service.models())
    // Names have slashes: org/model.
    app.get<{ Params: { '*': string } }>('/v1/models/*', async ({ params: { '*': id } }) => {
      const model = this.#ready().service.model(id)
      if (model) return model
      throw modelNotFound(id, this.#settings.modelNames)
    })
    app.get<{ Params: { id: string } }>('/v1/sessions/:id/cache', async (request) => {
      const { service } = this.#ready()
      const cache = await service.sessionCache(this.#nameOf(request.params.id, request))
      if (cache) return cache
      throw sessionNotFound()
    })
    app.delete<{ Params: { id: string } }>('/v1/sessions/:id', async (request) => {
      const { service } = this.#ready()
      const ended = service.endSession(this.#nameOf(request.params.id, request))
      if (ended) return ended
      throw sessionNotFound()
    })
    app.get<{ Params: { id: string }; Querystring: { stream?: unknown } }>(
      '/v1/responses/:id',
      async (request) => {
        const { service } = this.#ready()
        if (request.query.stream === 'true') {
          throw invalid('stream', 'is true, but a response that is whole is not streamed again')
        }
        const { id } = request.params
        const response = service.response({ id, owner: this.#ownerOf(request) })
        if (response) return response
        throw responseNotFound(id)
      },
    )
    app.get<{ Params: { id: string }; Querystring: JsonObject }>(
      '/v1/responses/:id/input_items',
      async (request) => {
        const { id } = request.params
        const { service } = this.#ready()
        const items = service.inputItems({ id, owner: this.#ownerOf(request) }, request.query)
        if (items) return items
        throw responseNotFound(id)
      },
    )
    app.delete<{ Params: { id: string } }>('/v1/responses/:id', async (request) => {
      const { id } = request.params
      const { service } = this.#ready()
      const deleted = service.deleteResponse({ id, owner: this.#ownerOf(request) })
      if (deleted) return deleted
      throw responseNotFound(id)
    })
    if (this.#settings.page) addPage(app, () => this.#pageSettings())
    app.post('/v1/chat/completions', (request, reply) =>
      this.#answer(request, reply, (call) => this.#ready().service.chat(request.body, call)),
    )
    app.post('/v1/responses', (request, reply) =>
      this.#answer(request, reply, (call) => this.#ready().service.respond(request.body, call)),
    )
    app.post('/v1/completions', (request, reply) =>
      this.#answer(request, reply, (call) => this.#ready().service.complete(request.body, call)),
    )
    app.setNotFoundHandler(async ({ method, url }) => {
      const path = url.split('?')[0] as string
      const methods = ['GET', 'POST', 'DELETE'].filter((other) =>
        app.hasRoute({ method: other, url: path }),
      )
      throw methods.length > 0
        ? new ApiError(405, `${method} is no method of this path, ${methods.join(', ')} is`, {
            code: 'method_not_allowed',
          })
        : new ApiError(
            404,
            `there is no ${JSON.stringify(short(path))}; this server has ${API.join(', ')}`,
            {
              code: 'not_found',
            },
          )
    })
    app.setErrorHandler<FastifyError>((error, request, reply) => this.#fail(error, request, reply))
  }

  #addHooks(): void {
    const { corsOrigins } = this.#settings
    this.#app.addHook('onRequest', async (request, reply) => {
      void reply.header('x-request-id', request.id)
      const { origin } = request.headers
      if (origin !== undefined && (corsOrigins.includes(origin) || corsOrigins.includes('*'))) {
        void reply
          .header('access-control-allow-origin', origin)
          .header('access-control-expose-headers', 'retry-after, x-request-id, x-should-retry')
          .header('vary', 'origin')
        if (request.method === 'OPTIONS') {
          // OpenAI's client has a dozen of its own.
          const asked = request.headers['access-control-request-headers']
          if (asked !== undefined) void reply.header('access-control-allow-headers', asked)
          return reply
            .header('access-control-allow-methods', 'GET, POST, DELETE')
            .header('access-control-max-age', '600')
            .code(204)
            .send()
        }
      }
      // By the route where there is one: its path may be written in other ways.
      if ((request.routeOptions.url ?? request.url).startsWith('/v1/')) {
        // Before the body is read.
        this.#keys.check(request.headers.authorization)
      }
      return undefined
    })
    this.#app.addHook('onResponse', async (request, reply) =>
      this.#record(request, reply, reply.statusCode),
    )
  }

  /** Tells metrics and log of a request that is over. */
  #record(request: FastifyRequest, reply: FastifyReply, status: number): void {
    const route = request.routeOptions.url ?? 'none'
    this.metrics.request(route, status)
    const { method, url } = request
    const path = url.split('?')[0]
    const ms = Math.round(reply.elapsedTime)
    const isRoutine = route.startsWith('/health') || route === '/metrics'
    const line = { method, path, status, ms, ...this.#used.get(request) }
    request.log[isRoutine ? 'debug' : 'info'](line, 'answered')
  }

  /** What answers requests; throws an `ApiError` 503 while nothing can. */
  #ready(): Backend {
    if (this.#refusesNew) throw shuttingDown()
    if (this.#isLost) {
      throw new ApiError(503, 'the device is lost; the server has to be restarted', {
        code: 'device_lost',
      })
    }
    if (this.#backend) return this.#backend
    throw new ApiError(503, 'the model is being loaded', { code: 'loading', retryAfter: 1 })
  }

  async #answer(
    request: FastifyRequest,
    reply: FastifyReply,
    run: (call: Call) => Promise<Answer | ResponsesAnswer>,
  ): Promise<void> {
    const session = this.#sessionOf(request)
    const abort = new AbortController()
    const { requestTimeoutMs, pingMs } = this.#settings
    let timer: NodeJS.Timeout | undefined
    const giveUp = () => {
      abort.abort(timeoutError(requestTimeoutMs))
      // Whoever has stopped reading is not told, and holds the caches until the connection ends.
      timer = setTimeout(() => reply.raw.destroy(), CLOSE_MS)
    }
    if (requestTimeoutMs > 0) timer = setTimeout(giveUp, requestTimeoutMs)
    // Also after an answer in full; nothing listens to the signal then.
    reply.raw.once('close', () => {
      abort.abort(new ApiError(499, 'the client has gone', { code: 'client_closed_request' }))
      if (!reply.raw.writableFinished) {
        this.#record(request, reply, (abort.signal.reason as ApiError).status)
      }
      clearTimeout(timer)
      this.#inFlight.delete(abort)
      if (this.#inFlight.size === 0) this.#noneInFlight?.()
    })
    this.#inFlight.add(abort)
    const done: Call['done'] = (usage, policy) => {
      this.#used.set(request, { ...usage, policy })
    }
    const owner = this.#ownerOf(request)
    if (this.#settings.logPrompts) request.log.info({ body: request.body }, 'asked')
    const answer = await run({ signal: abort.signal, session, owner, done })
    if (answer.kind === 'whole') {
      await reply.send(answer.body)
      return
    }
    const isTyped = answer.kind === 'events'
    const chunks: AsyncGenerator<object, void> = isTyped ? answer.events : answer.chunks
    const style = isTyped ? typedEvents((error) => answer.failure(error)) : PLAIN_EVENTS
    // Errors before the first token have a status of their own, unless it takes long to come.
    const first = chunks.next()
    const isLate = (await orAfter(first, pingMs)) === null
    if (reply.raw.destroyed) {
      await chunks.return()
      return
    }
    const onError = (error: unknown) => this.#see(error, request)
    const events = serverSentEvents(chunks, first, { style, isLate, pingMs, onError })
    await reply
      .header('content-type', 'text/event-stream; charset=utf-8')
      .header('cache-control', 'no-cache')
      .header('x-accel-buffering', 'no')
      .send(Readable.from(events, { objectMode: false, highWaterMark: 1 }))
  }

  #pageSettings() {
    const { policy, allowedPolicies } = this.#settings
    const policies = allowedPolicies.includes('*') ? POLICY_NAMES : allowedPolicies
    return { policy: policyName(policy), policies, examples: this.#examples }
  }

  #sessionOf(request: FastifyRequest): SessionName | null {
    const id = request.headers['x-session-id']
    return id === undefined ? null : this.#nameOf(id, request)
  }

  /** A conversation of whoever asks. Throws an `ApiError` 400 for what is no name. */
  #nameOf(id: string | string[], request: FastifyRequest): SessionName {
    if (typeof id !== 'string' || id === '' || id.length > MAX_SESSION_ID) {
      throw new ApiError(400, `x-session-id: expected at most ${MAX_SESSION_ID} characters`, {
        param: 'x-session-id',
        code: 'invalid_value',
      })
    }
    return { id, owner: this.#ownerOf(request) }
  }

  /** Whose request it is. Throws an `ApiError` 401. */
  #ownerOf(request: FastifyRequest): string {
    return this.#keys.check(request.headers.authorization)
  }

  // ---- errors ----

  /** What a client is told of an error; the log has more of those that are ours. */
  #see(error: unknown, request: FastifyRequest): ApiError {
    const answer = toApiError(error)
    if (answer.code === 'device_lost') this.#isLost = true
    if (answer.status >= 500 && answer.code !== 'shutting_down' && answer.code !== 'loading') {
      request.log.error({ err: error }, 'request failed')
    }
    return answer
  }

  async #fail(error: unknown, request: FastifyRequest, reply: FastifyReply): Promise<void> {
    const { bodyLimit } = this.#settings
    const ours = isFastifyError(error) ? ofFastify(error, request, bodyLimit) : error
    const answer = this.#see(ours, request)
    if (answer.retryAfter !== null) void reply.header('retry-after', String(answer.retryAfter))
    if (answer.status === 401) void reply.header('www-authenticate', 'Bearer')
    // OpenAI's clients would ask twice more, each time as long.
    if (answer.code === 'timeout') void reply.header('x-should-retry', 'false')
    if (this.#refusesNew) void reply.header('connection', 'close')
    await reply.code(answer.status).send(answer.body)
  }
}

/** A path as an error names it. */
function short(path: string): string {
  return path.length > 100 ? `${path.slice(0, 100)}...` : path
}

/** The path of a client whose base URL lacks `/v1`, with it. */
function underV1(url: string): string {
  return BARE.test(url) ? `/v1/${url.replace(/^\/+/, '')}` : url
}

/** `retryAfter`: another server may take the request by then, or this one's successor. */
function shuttingDown(): ApiError {
  return new ApiError(503, 'the server is shutting down', { code: 'shutting_down', retryAfter: 1 })
}

function sessionNotFound(): ApiError {
  return new ApiError(404, 'there is no such session', { code: 'session_not_found' })
}

function responseNotFound(id: string): ApiError {
  return new ApiError(404, `there is no response ${describe(id)}`, { code: 'response_not_found' })
}

function timeoutError(ms: number): ApiError {
  return new ApiError(504, `the request took longer than ${ms / 1000} s`, { code: 'timeout' })
}

function isFastifyError(error: unknown): error is FastifyError {
  return error instanceof Error && 'statusCode' in error && typeof error.statusCode === 'number'
}

function ofFastify(error: FastifyError, request: FastifyRequest, bodyLimit: number): ApiError {
  const { statusCode = 500 } = error
  if (statusCode >= 500)
    return new ApiError(500, 'The server failed; its log says why.', { cause: error })
  const type = describe(request.headers['content-type'] ?? 'none')
  const message =
    {
      413: `the body has more than ${bodyLimit} bytes`,
      415: `content-type: is ${type}, expected application/json`,
    }[statusCode] ?? error.message
  return new ApiError(statusCode, message, { code: 'invalid_request' })
}

/** Bytes that are no HTTP, or a request that does not come to its end. */
function answerBrokenRequest(error: NodeJS.ErrnoException, socket: Socket): void {
  if (error.code === 'ECONNRESET' || socket.destroyed || !socket.writable) {
    socket.destroy()
    return
  }
  const [status, text, message] = BROKEN[error.code ?? ''] ?? BROKEN_OTHERWISE
  const { body } = new ApiError(status, message, { code: 'invalid_request' })
  const json = JSON.stringify(body)
  socket.end(
    `HTTP/1.1 ${status} ${text}\r\nconnection: close\r\ncontent-type: application/json\r\n` +
      `content-length: ${Buffer.byteLength(json)}\r\n\r\n${json}`,
  )
}

type Broken = readonly [status: number, text: string, message: string]
const BROKEN: Readonly<Record<string, Broken>> = {
  ERR_HTTP_REQUEST_TIMEOUT: [408, 'Request Timeout', 'the request did not come to its end in time'],
  HPE_HEADER_OVERFLOW: [431, 'Request Header Fields Too Large', 'the headers are too large'],
}
const BROKEN_OTHERWISE: Broken = [400, 'Bad Request', 'the request is no HTTP']
