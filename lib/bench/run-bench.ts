import { loadModel } from '../engine/load-model.js'
import { argumentError, ZipCacheError } from '../errors.js'
import { readModelConfig } from '../model/config.js'
import { type ComputeDtype, usualDtype, type WeightFormat } from '../model/weights.js'
import { Device } from '../ops/index.js'
import type { PolicySpec } from '../policy/index.js'
import { policyLabel } from '../policy/policy-label.js'
import { attentionCases } from './attention-cases.js'
import { BenchTensors } from './bench-tensors.js'
import { cacheCases } from './cache-cases.js'
import { expertCases } from './expert-cases.js'
import { linearCases } from './linear-cases.js'
import { withLongerContext } from './longer-context.js'
import { machineOf } from './machine.js'
import { modelOpCases } from './model-op-cases.js'
import { nameOf, type OpCase, type PreparedOp } from './op-case.js'
import { kRandomModelConfig, withRandomModel } from './random-model.js'
import type { BenchReport, OpRow } from './report.js'
import { achieved, Roofs, rooflineOf } from './roofs.js'
import { type DecodeTimes, type PrefillTimes, positionsOf, timeSteps, turnsOf } from './steps.js'
import { summarize } from './summary.js'
import { timeInTurns } from './turns.js'

/** Parts of a benchmark. */
export const BENCH_PARTS = ['ops', 'prefill', 'decode'] as const

/** One of `BENCH_PARTS`. */
export type BenchPart = (typeof BENCH_PARTS)[number]

/** A model whose steps are timed. */
export interface BenchModel {
  /** What rows and filters call it. */
  readonly name: string
  /** null: random weights, see `kRandomModelConfig`. */
  readonly dir: string | null
  /** Whether prompts may be longer than the model's positions. */
  readonly stretch: boolean
}

/** Options of `runBench`. */
export interface BenchOptions {
  readonly parts: readonly BenchPart[]
  /** As `Device.open` takes it. */
  readonly device?: string | undefined
  /** Default one a core. */
  readonly threads?: number | undefined
  /** What models compute in; default as `loadModel` has it. */
  readonly dtype?: ComputeDtype | undefined
  /** How matrices of models are kept; default `stored`. */
  readonly weights?: WeightFormat | undefined
  readonly models: readonly BenchModel[]
  /** Prompt lengths in tokens. */
  readonly contexts: readonly number[]
  /**
   * Decode steps over contexts that were decoded themselves, but for a hundred tokens, window by
   * window: as behind a long answer. Prefill is not timed then. Default false.
   */
  readonly generated?: boolean | undefined
  /** At least one. */
  readonly policies: readonly PolicySpec[]
  /** Decoded tokens of each row; default 208: two windows close. */
  readonly tokens?: number | undefined
  /** Of prompts and probes; default 0. */
  readonly seed?: number | undefined
  /** More shapes, more samples. */
  readonly full?: boolean | undefined
  /** Only rows whose name it finds: `linear m=1 k=512 n=1408 f16`, `decode MODEL 1024 fp16`. */
  readonly filter?: RegExp | undefined
  /** The folder of the package. */
  readonly root: string
  readonly signal?: AbortSignal | undefined
  readonly onProgress?: ((progress: { done: number; total: number }) => void) | undefined
  /** Default `OP_CASES`. */
  readonly cases?: readonly OpCase[] | undefined
}

/** Every op at every shape. */
export const OP_CASES: readonly OpCase[] = [
  ...linearCases,
  ...expertCases,
  ...attentionCases,
  ...cacheCases,
  ...modelOpCases,
]

/** Samples and seconds of a short run, and of a full one: a round ends early, not a sample. */
const kShort = { samples: 15, prefills: 3, groupMs: 2500, prefillMs: 5000 }
const kFull = { samples: 40, prefills: 5, groupMs: 12_000, prefillMs: 60_000 }
/** Every so many rounds the roofs are measured, too. */
const kRoundsPerRoof = 3
/** Cold inputs are together at least so many times the last-level cache, within these bounds. */
const kColdCaches = 2
const kMinColdBytes = 1 << 26
const kMaxColdBytes = 1 << 29

/**
 * Times ops and whole steps against the roofs of the device, which are measured in the same run.
 * Ops are checked against lib/reference before they are timed.
 *
 * Rejects with `ERR_ZC_ARGUMENT` if nothing is left to time or an option is out of its range,
 * `ERR_ZC_CONTEXT_LENGTH` if a prompt does not fit a model, `ERR_ZC_INTERNAL` if an op computes
 * something wrong, as `Device.open` and `loadModel` do, and with `signal.reason` when aborted.
 */
export async function runBench(options: BenchOptions): Promise<BenchReport> {
  const { full = false, weights = 'stored', seed = 0, signal } = options
  const begin = performance.now()
  const { threads } = options
  const device = await Device.open(options.device, threads === undefined ? {} : { threads })
  try {
    const { name, isa, nThreads } = device.info
    const dtype = options.dtype ?? usualDtype(device)
    const plan = planBench(options)
    await checkPositions(plan)
    const machine = machineOf(options.root)
    const roofs = new Roofs(device)
    await roofs.check()
    await roofs.sample()

    const progress = new Progress(plan.total, options.onProgress)
    const coldBytes = Math.min(
      kMaxColdBytes,
      Math.max(kMinColdBytes, kColdCaches * (machine.lastLevelCacheBytes ?? 0)),
    )
    const tensors = new BenchTensors(device, coldBytes)
    const ops: OpTimes[] = []
    for (const group of plan.groups) {
      signal?.throwIfAborted()
      ops.push(...(await timeGroup(group, tensors, { device, roofs, plan, progress, signal })))
    }
    const prefill: PrefillTimes[] = []
    const decode: DecodeTimes[] = []
    for (const model of plan.models) {
      const running = { device, dtype, weights, seed, roofs, plan, progress, signal }
      await withSteps(model, running, (times) => {
        prefill.push(...times.prefill)
        decode.push(...times.decode)
      })
    }

    await roofs.sample()
    const measured = roofs.measured
    roofs.dispose()
    const roofline = rooflineOf(measured)
    const held = <T extends Parameters<typeof achieved>[0]>(row: T) => ({
      ...row,
      ...achieved(row, roofline),
    })
    return {
      schema: 'zipcache-bench-1',
      machine,
      settings: {
        ...{ device: name, isa, threads: nThreads, dtype, weights, full },
        generated: plan.generated,
        filter: options.filter?.source ?? null,
        seed,
      },
      roofs: measured,
      ops: ops.map(held),
      prefill: prefill.map(held),
      decode: decode.map(held),
      seconds: (performance.now() - begin) / 1000,
    }
  } finally {
    await device.dispose()
  }
}

// ---- what is to be done ----

interface ModelPlan extends BenchModel {
  readonly contexts: readonly ContextPlan[]
}

interface ContextPlan {
  readonly context: number
  /** Of which a row is wanted. */
  readonly policies: readonly PolicySpec[]
  /** Labels of those whose prefill is. */
  readonly prefill: readonly string[]
  readonly decode: readonly string[]
}

type Plan = ReturnType<typeof planBench>

/** What the options leave to do, and in how many equal strokes of a progress bar. */
function planBench(options: BenchOptions) {
  const { filter, full = false, contexts, policies, models, tokens = 208 } = options
  const { generated = false } = options
  const parts = generated ? options.parts.filter((part) => part !== 'prefill') : options.parts
  if (generated && parts.length === 0)
    throw argumentError('generated', 'contexts are decoded: no prefill is timed')
  for (const context of contexts) checkPositive('context', context)
  checkPositive('tokens', tokens)
  const effort = full ? kFull : kShort
  // A stateful expression would find every other row.
  const pattern = filter && new RegExp(filter.source, filter.flags.replace(/[gy]/g, ''))
  const wanted = (part: BenchPart, name: string) =>
    parts.includes(part) && (pattern === undefined || pattern.test(name))

  const groups = new Map<string, OpCase[]>()
  for (const one of options.cases ?? OP_CASES) {
    if (!wanted('ops', nameOf(one)) || (one.full && !full)) continue
    groups.set(one.group, [...(groups.get(one.group) ?? []), one])
  }
  const modelPlans: ModelPlan[] = models.flatMap((model) => {
    const own = contexts.flatMap((context): ContextPlan[] => {
      const of = (part: 'prefill' | 'decode') =>
        policies
          .map(policyLabel)
          .filter((policy) => wanted(part, `${part} ${model.name} ${context} ${policy}`))
      const [prefill, decode] = [of('prefill'), of('decode')]
      const union = policies.filter((p) => [...prefill, ...decode].includes(policyLabel(p)))
      return union.length > 0 ? [{ context, policies: union, prefill, decode }] : []
    })
    return own.length > 0 ? [{ ...model, contexts: own }] : []
  })

  if (groups.size === 0 && modelPlans.length === 0) {
    throw argumentError(
      'filter',
      `no row of ${parts.join(', ')} has ${filter?.source ?? 'any name'} in it`,
    )
  }
  const strokes = modelPlans
    .flatMap(({ contexts }) => contexts)
    .map((context) => {
      const turns = context.decode.length > 0 ? turnsOf(tokens) : 0
      return context.policies.length * (prefillsOf(context, effort.prefills) + turns)
    })
  const total = groups.size * effort.samples + strokes.reduce((sum, n) => sum + n, 0)
  return { groups: [...groups.values()], models: modelPlans, generated, effort, tokens, total }
}

/** Before minutes of other measurements: whether the models have as many positions as they need. */
async function checkPositions({ models, tokens }: Plan): Promise<void> {
  for (const { dir, stretch, contexts } of models) {
    if (dir === null) continue
    const { maxPositions } = await readModelConfig(dir)
    for (const { context, decode } of contexts) {
      const needed = positionsOf(context, decode.length > 0 ? tokens : 0)
      if (stretch || needed <= maxPositions) continue
      throw new ZipCacheError(
        'ERR_ZC_CONTEXT_LENGTH',
        `context: is ${context}, which with the decoded tokens needs ${needed} positions, ` +
          `expected at most the model's ${maxPositions}`,
        { argument: 'context' },
      )
    }
  }
}

/** Once where only what comes after it is asked for. */
function prefillsOf({ prefill }: ContextPlan, prefills: number): number {
  return prefill.length > 0 ? prefills : 1
}

class Progress {
  readonly #total: number
  readonly #listen: BenchOptions['onProgress']
  #done = 0

  constructor(total: number, listen: BenchOptions['onProgress']) {
    this.#total = total
    this.#listen = listen
  }

  get done(): number {
    return this.#done
  }

  /** Something may end before all of its strokes were made. */
  reach(done: number): void {
    this.#done = Math.max(this.#done, done)
    this.#listen?.({ done: this.#done, total: this.#total })
  }
}

// ---- doing it ----

interface Running {
  readonly device: Device
  readonly roofs: Roofs
  readonly plan: Plan
  readonly progress: Progress
  readonly signal: AbortSignal | undefined
}

type OpTimes = Pick<OpRow, 'op' | 'shape' | 'dtype' | 'ms' | 'bytes' | 'flops'>

async function timeGroup(
  group: readonly OpCase[],
  tensors: BenchTensors,
  { device, roofs, plan, progress, signal }: Running,
): Promise<OpTimes[]> {
  const { samples, groupMs } = plan.effort
  const before = progress.done
  try {
    const prepared: PreparedOp[] = []
    for (const one of group) {
      const ready = await one.prepare(tensors)
      ready.run()
      await ready.check()
      prepared.push(ready)
      signal?.throwIfAborted()
    }
    const times = await timeInTurns(prepared, {
      sync: () => device.sync(),
      samples,
      budgetMs: groupMs,
      signal,
      afterRound: async (rounds) => {
        progress.reach(before + rounds)
        if (rounds % kRoundsPerRoof === 0) await roofs.sample()
      },
    })
    progress.reach(before + samples)
    return group.map(({ op, shape, dtype }, i) => {
      const { bytes, flops } = prepared[i] as PreparedOp
      return { op, shape, dtype, ms: summarize(times[i] as number[]), bytes, flops }
    })
  } finally {
    tensors.dispose()
  }
}

async function withSteps(
  model: ModelPlan,
  running: Running & { dtype: ComputeDtype; weights: WeightFormat; seed: number },
  receive: (times: { prefill: PrefillTimes[]; decode: DecodeTimes[] }) => void,
): Promise<void> {
  const { device, dtype, weights, seed, roofs, plan, progress, signal } = running
  const { generated, tokens, effort } = plan
  const use = async (dir: string) => {
    const loaded = await loadModel(dir, { device, dtype, weights, ...(signal ? { signal } : {}) })
    try {
      for (const { context, policies, ...rows } of model.contexts) {
        const before = progress.done
        let strokes = 0
        const decoded = rows.decode.length > 0 ? tokens : 0
        const prefills = prefillsOf({ context, policies, ...rows }, effort.prefills)
        const times = await timeSteps({
          ...{ model: loaded, dir, name: model.name, context, generated, policies },
          ...{ tokens: decoded, prefills },
          budgetMs: effort.prefillMs,
          seed,
          signal,
          onProgress: () => progress.reach(before + ++strokes),
          between: () => roofs.sample(),
        })
        progress.reach(before + policies.length * (prefills + (decoded ? turnsOf(decoded) : 0)))
        receive({
          prefill: times.prefill.filter(({ policy }) => rows.prefill.includes(policy)),
          decode: times.decode.filter(({ policy }) => rows.decode.includes(policy)),
        })
      }
    } finally {
      await loaded.dispose()
    }
  }
  if (model.dir === null) return withRandomModel(kRandomModelConfig, use)
  if (!model.stretch) return use(model.dir)
  const positions = model.contexts.map(({ context }) => positionsOf(context, tokens))
  return withLongerContext(model.dir, Math.max(...positions), use)
}

function checkPositive(argument: string, value: number): void {
  if (Number.isInteger(value) && value > 0) return
  throw argumentError(argument, `is ${value}, expected a whole number above 0`)
}
