import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client'
import { PAGE_TOKENS, totalBytes } from '../cache/index.js'
import type { Engine, EngineStats } from '../engine/engine.js'
import type { Usage } from './generation.js'
import type { ServiceObserver } from './service.js'
import type { Sessions } from './sessions.js'
import type { StoredResponses } from './stored-responses.js'

/** What is measured; null before the model is loaded. */
export interface MetricSource {
  readonly engine: Engine
  readonly sessions: Sessions
  readonly responses: StoredResponses
  /** What a token takes in a 16-bit cache. */
  readonly fp16BytesPerToken: number
}

/** Seconds, from a token of a small model to an answer of a large one. */
const TOKEN_BUCKETS = [
  0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5,
]
const REQUEST_BUCKETS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 600]

/** Gauges of prom-client whose names end as counters' do, which promtool complains of. */
const MISNAMED = ['handles', 'requests', 'resources'].map((what) => `nodejs_active_${what}_total`)

/** A value read from the engine when somebody looks. */
interface Reading {
  readonly name: string
  readonly help: string
  /** Names that vLLM has for it. */
  readonly vllm?: readonly string[]
  read(stats: EngineStats, source: MetricSource): number
}

const GAUGES: readonly Reading[] = [
  {
    name: 'requests_running',
    help: 'Choices that generate, or whose prompt is under way.',
    vllm: ['num_requests_running'],
    read: (stats) => stats.prefilling + stats.decoding,
  },
  {
    name: 'requests_waiting',
    help: 'Choices that wait for a place or for memory.',
    vllm: ['num_requests_waiting'],
    read: (stats) => stats.queued,
  },
  {
    name: 'kv_memory_used_ratio',
    help: 'Share of the cache memory that is given out, 0 to 1.',
    vllm: ['kv_cache_usage_perc', 'gpu_cache_usage_perc'],
    read: ({ kvMemory }) => kvMemory.used / kvMemory.capacity,
  },
  {
    name: 'kv_memory_used_bytes',
    help: 'Cache memory that is given out.',
    read: ({ kvMemory }) => kvMemory.used,
  },
  {
    name: 'kv_memory_capacity_bytes',
    help: 'The most cache memory there may be.',
    read: ({ kvMemory }) => kvMemory.capacity,
  },
  {
    name: 'kv_cache_fp16_bytes',
    help: 'What 16-bit caches of the same sequences would take.',
    read: (stats) => stats.fp16Bytes,
  },
  {
    name: 'kv_cache_compression_ratio',
    help: 'zipcache_kv_cache_fp16_bytes over the sum of zipcache_kv_cache_bytes; 0 without sequences.',
    read: ({ fp16Bytes, bytesByClass }) => {
      const bytes = totalBytes(bytesByClass)
      return bytes > 0 ? fp16Bytes / bytes : 0
    },
  },
  {
    name: 'sequences',
    help: 'Sequences with a cache: choices under way and sessions that wait.',
    read: (stats) => stats.sequences,
  },
  {
    name: 'sessions',
    help: 'Sessions, and caches of stored responses, that wait for their next request.',
    read: (_, { sessions }) => sessions.size,
  },
  {
    name: 'stored_responses',
    help: 'Responses that can be gone on with.',
    read: (_, { responses }) => responses.size,
  },
  {
    name: 'session_bytes',
    help: 'Caches of sessions that wait, and of what is kept from before an answer under way; shared pages count in each.',
    read: (_, { sessions }) => sessions.bytes,
  },
  {
    name: 'prefixes',
    help: 'Beginnings of chats that are kept.',
    read: (stats) => stats.prefixes.count,
  },
  {
    name: 'prefix_bytes',
    help: 'Caches of beginnings that are kept.',
    read: (stats) => stats.prefixes.bytes,
  },
  {
    name: 'decode_workspace_bytes',
    help: 'Activations of decode steps.',
    read: (stats) => stats.stepBytes,
  },
]

const COUNTERS: readonly Reading[] = [
  {
    name: 'prompt_tokens_total',
    help: 'Prompt tokens that were run.',
    vllm: ['prompt_tokens_total'],
    read: (stats) => stats.promptTokens,
  },
  {
    name: 'generation_tokens_total',
    help: 'Tokens generated.',
    vllm: ['generation_tokens_total'],
    read: (stats) => stats.generatedTokens,
  },
  {
    name: 'decode_steps_total',
    help: 'Decode steps of the batch.',
    read: (stats) => stats.steps,
  },
  {
    name: 'narrowed_steps_total',
    help: 'Decode steps that left sequences for the next, since there was no memory for more rows.',
    read: (stats) => stats.narrowedSteps,
  },
  {
    name: 'unrecorded_steps_total',
    help: 'Decode steps run op by op, since there was no memory for their graph.',
    read: (stats) => stats.unrecordedSteps,
  },
  {
    name: 'windows_closed_total',
    help: 'Windows of new tokens that were compressed.',
    read: (stats) => stats.windowsClosed,
  },
  {
    name: 'draft_tokens_total',
    help: 'Tokens that were drafted from the text so far and tried.',
    read: (stats) => stats.draftTokens,
    vllm: ['spec_decode_num_draft_tokens_total'],
  },
  {
    name: 'accepted_tokens_total',
    help: 'Drafted tokens that the model chose, too.',
    read: (stats) => stats.acceptedTokens,
    vllm: ['spec_decode_num_accepted_tokens_total'],
  },
  {
    name: 'sessions_resumed_total',
    help: 'Requests that went on with a kept conversation.',
    read: (_, { sessions }) => sessions.counters.resumed,
  },
  {
    name: 'sessions_restarted_total',
    help: 'Requests of a kept session whose prompt did not go on with it.',
    read: (_, { sessions }) => sessions.counters.restarted,
  },
  {
    name: 'sessions_evicted_total',
    help: 'Sessions given up for memory or number.',
    read: (_, { sessions }) => sessions.counters.evicted,
  },
  {
    name: 'sessions_expired_total',
    help: 'Sessions given up because nobody went on with them.',
    read: (_, { sessions }) => sessions.counters.expired,
  },
  {
    name: 'session_reused_tokens_total',
    help: "Prompt tokens that were in a session's cache already.",
    read: (_, { sessions }) => sessions.counters.reusedTokens,
  },
  {
    name: 'prefix_reused_tokens_total',
    help: "Prompt tokens that were in a kept beginning's cache already.",
    read: (stats) => stats.prefixTokens,
  },
  {
    name: 'prefix_hits_total',
    help: 'Requests that went on from a kept beginning.',
    read: (stats) => stats.prefixHits,
  },
  {
    name: 'cached_prompt_tokens_total',
    help: 'Prompt tokens that were in a kept cache already, of either kind.',
    vllm: ['prefix_cache_hits_total', 'gpu_prefix_cache_hits_total'],
    read: (stats, { sessions }) => sessions.counters.reusedTokens + stats.prefixTokens,
  },
]

/** All readings, each with its kind of metric. */
const READINGS = [
  ...GAUGES.map((reading) => [Gauge, reading] as const),
  ...COUNTERS.map((reading) => [Counter, reading] as const),
]

/** The server's metrics: its own names, and vLLM's where they are wanted. */
export class ServerMetrics implements ServiceObserver {
  readonly #registry = new Registry()
  readonly #requests: Counter
  readonly #timeToFirstToken: Latency
  readonly #interTokenLatency: Latency
  readonly #duration: Latency
  readonly #queried: Counter
  readonly #finished: Counter
  #source: MetricSource | null = null

  /** `vllmModel`: the model's name on metrics named as vLLM's; null: there are none. */
  constructor(vllmModel: string | null) {
    const registers = [this.#registry]
    collectDefaultMetrics({ register: this.#registry })
    for (const name of MISNAMED) this.#registry.removeSingleMetric(name)
    this.#requests = new Counter({
      name: 'zipcache_http_requests_total',
      help: 'Requests answered, by route and status.',
      labelNames: ['route', 'status'],
      registers,
    })
    this.#finished = new Counter({
      name: 'zipcache_choices_finished_total',
      help: 'Choices generated in full, by why they ended.',
      labelNames: ['reason'],
      registers,
    })
    this.#queried = new Counter({
      name: 'zipcache_requested_prompt_tokens_total',
      help: 'Prompt tokens of requests, those in a kept cache included.',
      registers,
    })
    const registry = this.#registry
    this.#timeToFirstToken = new Latency(
      registry,
      'time_to_first_token_seconds',
      'From a request to its first token.',
      REQUEST_BUCKETS,
    )
    this.#interTokenLatency = new Latency(
      registry,
      'inter_token_latency_seconds',
      'From a token of a choice to its next.',
      TOKEN_BUCKETS,
    )
    this.#duration = new Latency(
      registry,
      'request_duration_seconds',
      'From a request for tokens to the end of its answer.',
      REQUEST_BUCKETS,
    )
    this.#addReadings()
    if (vllmModel !== null) this.#addVllmNames(vllmModel)
  }

  /** What engine readings come from, once there is one. */
  attach(source: MetricSource): void {
    this.#source = source
  }

  get contentType(): string {
    return this.#registry.contentType
  }

  /** The page that Prometheus reads. */
  async page(): Promise<string> {
    return this.#registry.metrics()
  }

  request(route: string, status: number): void {
    this.#requests.inc({ route, status })
  }

  begin() {
    const startedAt = performance.now()
    const lastAt = new Map<number, number>()
    let isFirst = true
    return {
      prompt: (_: Readonly<Usage>) => {},
      token: (choice: number) => {
        const now = performance.now()
        if (isFirst) this.#timeToFirstToken.observe(now - startedAt)
        isFirst = false
        const last = lastAt.get(choice)
        if (last !== undefined) this.#interTokenLatency.observe(now - last)
        lastAt.set(choice, now)
      },
      end: (_choice: number, reason: string) => this.#finished.inc({ reason }),
      done: ({ promptTokens }: Readonly<Usage>) => {
        this.#queried.inc(promptTokens)
        this.#duration.observe(performance.now() - startedAt)
      },
    }
  }

  #addReadings(): void {
    for (const [Kind, reading] of READINGS)
      this.#read(Kind, `zipcache_${reading.name}`, reading, {})
    const source = () => this.#source
    new Gauge({
      name: 'zipcache_kv_cache_bytes',
      help: 'Bytes of caches by what they hold: salient (high) and regular (low) tokens, the 16-bit tail, …',
      labelNames: ['class'],
      registers: [this.#registry],
      collect() {
        const stats = source()?.engine.stats()
        if (!stats) return
        for (const [name, bytes] of Object.entries(stats.bytesByClass)) {
          this.set({ class: name }, bytes)
        }
      },
    })
  }

  #addVllmNames(model_name: string): void {
    for (const [Kind, reading] of READINGS) {
      for (const name of reading.vllm ?? []) {
        this.#read(Kind, `vllm:${name}`, reading, { model_name })
      }
    }
    const registers = [this.#registry]
    const queried = () => this.#queried.get()
    for (const name of ['prefix_cache_queries_total', 'gpu_prefix_cache_queries_total']) {
      new Counter({
        name: `vllm:${name}`,
        help: 'See zipcache_requested_prompt_tokens_total.',
        labelNames: ['model_name'],
        registers,
        async collect() {
          const { values } = await queried()
          this.reset()
          this.inc({ model_name }, values[0]?.value ?? 0)
        },
      })
    }
    const source = () => this.#source
    new Gauge({
      name: 'vllm:cache_config_info',
      help: 'Pages of 16 tokens; how many fit depends on their precision, so that this is the 16-bit number.',
      labelNames: ['model_name', 'block_size', 'num_gpu_blocks'],
      registers,
      collect() {
        const from = source()
        if (!from) return
        const { capacity } = from.engine.kvMemory
        const blocks = Math.floor(capacity / (PAGE_TOKENS * from.fp16BytesPerToken))
        this.set({ model_name, block_size: PAGE_TOKENS, num_gpu_blocks: blocks }, 1)
      },
    })
    this.#timeToFirstToken.alias('time_to_first_token_seconds', model_name)
    this.#interTokenLatency.alias('inter_token_latency_seconds', model_name)
    this.#duration.alias('e2e_request_latency_seconds', model_name)
  }

  /** A metric that is read from the engine whenever somebody looks; 0 before the model is loaded. */
  #read(
    Kind: typeof Gauge | typeof Counter,
    name: string,
    { help, read }: Reading,
    labels: Record<string, string>,
  ): void {
    const value = () => (this.#source ? read(this.#source.engine.stats(), this.#source) : 0)
    new Kind({
      name,
      help,
      labelNames: Object.keys(labels),
      registers: [this.#registry],
      collect(this: Gauge | Counter) {
        this.reset()
        this.inc(labels, value())
      },
    })
  }
}

/** One measurement under all its names. */
class Latency {
  readonly #observers: { observe(seconds: number): void }[]
  readonly #shape: { help: string; buckets: number[]; registers: Registry[] }

  constructor(registry: Registry, name: string, help: string, buckets: number[]) {
    this.#shape = { help, buckets, registers: [registry] }
    this.#observers = [new Histogram({ name: `zipcache_${name}`, ...this.#shape })]
  }

  alias(name: string, model_name: string): void {
    const histogram = new Histogram({
      name: `vllm:${name}`,
      ...this.#shape,
      labelNames: ['model_name'],
    })
    this.#observers.push(histogram.labels({ model_name }))
  }

  observe(milliseconds: number): void {
    for (const observer of this.#observers) observer.observe(milliseconds / 1000)
  }
}
