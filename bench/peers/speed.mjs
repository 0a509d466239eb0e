// Prefill and decode of every cell over one model.
import { mkdirSync, rmSync } from 'node:fs'
import path from 'node:path'
import { openCell } from './cell-process.mjs'
import {
  kLlamaCaches,
  kZipCacheCaches,
  llamaCacheBytes,
  llamaCell,
  zipcacheCell,
} from './cells.mjs'
import { randomIds } from './prompts.mjs'
import { median, quantile, spread } from './statistics.mjs'

/** Longest prompt that llama.cpp prefills; longer contexts are made of its state, repeated. */
export const kLongestPrefill = 4096
/** A run is disturbed when others took more of the processor than this. */
export const kDisturbed = 0.05
/** A disturbed decode run is repeated at most so often. */
const kMaxRetries = 2
const kWarmUpTokens = 2
const kTwoTicksMs = 20
const kPilotPrompt = 512
const kPilotRuns = 3

/**
 * @typedef {object} SpeedOptions
 * @property {number[]} contexts ascending; those above kLongestPrefill are multiples of the greatest
 *   of the others
 * @property {number} repeats runs of each cell
 * @property {number} tokens decoded in a run
 * @property {number} windows closed in a row, after the runs, where a cache has windows
 * @property {number} prefillSeconds no further prefill of a cell at a context once it took so long
 * @property {boolean} retries whether disturbed runs are repeated, a decode run twice at most
 * @property {string} scratch a folder for llama.cpp's states
 * @property {(step: string, cell: string) => void} onProgress
 */

/**
 * The weight type that llama.cpp is faster with: processor time of a prefill and of some decode
 * steps, the best of three runs in turns.
 * @returns {Promise<'F16' | 'BF16'>}
 */
export async function fasterWeights(model, host, tokens) {
  const types = ['F16', 'BF16']
  const best = types.map(() => Number.POSITIVE_INFINITY)
  const opened = []
  try {
    for (const type of types) {
      opened.push((await openCell(llamaCell(kLlamaCaches[0], type), model, host)).process)
    }
    for (let run = 0; run < kPilotRuns; run++) {
      for (const [t, process] of opened.entries()) {
        const ids = randomIds(model, kPilotPrompt, run)
        const prefill = await process.call('prefill', { ids })
        const decode = await process.call('decode', { tokens })
        best[t] = Math.min(best[t], prefill.ownMs + decode.ownMs)
      }
    }
  } finally {
    for (const process of opened) await process.stop()
  }
  return best[0] <= best[1] ? types[0] : types[1]
}

/**
 * All cells of a model, the engines in turns: of llama.cpp both 16-bit weight types with F16 caches,
 * then the faster; last both engines with weights of 8 bits. `weights` null: zipcache's alone.
 */
export function speedCells(weights) {
  const ours = kZipCacheCaches.map((cache) => zipcacheCell(cache, 'bf16'))
  for (const cache of kZipCacheCaches.slice(0, 3)) ours.push(zipcacheCell(cache, 'bf16', 'int8'))
  if (weights === null) return ours
  const other = weights === 'F16' ? 'BF16' : 'F16'
  const theirs = kLlamaCaches.map((cache) => llamaCell(cache, weights))
  for (const cache of kLlamaCaches) {
    if (cache.kvType === 'F16') theirs.push(llamaCell(cache, other))
  }
  theirs.push(llamaCell(kLlamaCaches[0], 'Q8_0'))
  return theirs.flatMap((cell, i) => (ours[i] ? [cell, ours[i]] : [cell]))
}

/**
 * Measures all cells over a model.
 * @param {import('./models.mjs').BenchModel} model
 * @param {object[]} cells
 * @param {SpeedOptions} options
 * @param {{ cpu: number, nodeLlamaCpp: string }} host
 * @returns {Promise<object[]>} a row for each context and cell; a cell whose process failed has
 *   `failed` instead of figures
 */
export async function measureSpeed(model, cells, options, host) {
  const { contexts, scratch } = options
  mkdirSync(scratch, { recursive: true })
  const stateFiles = new Map(cells.map((cell, i) => [cell, path.join(scratch, `${i}.state`)]))
  const longestPrefill = contexts.findLast((context) => context <= kLongestPrefill)
  try {
    const rows = []
    for (const context of contexts) {
      const measure = new ContextMeasurement(model, context, options, host)
      const runs = cells.map((cell) => ({
        cell,
        prefill: [],
        decode: [],
        closings: null,
        kinds: null,
        failed: null,
      }))
      try {
        await measure.open(runs)
        await measure.prefill(runs, longestPrefill, stateFiles)
        await measure.decode(runs)
        await measure.closings(runs)
      } finally {
        for (const run of runs) await run.process?.stop()
      }
      rows.push(...runs.map((run) => rowOf(model, context, run)))
    }
    return rows
  } finally {
    rmSync(scratch, { recursive: true, force: true })
  }
}

class ContextMeasurement {
  #model
  #context
  #options
  #host

  constructor(model, context, options, host) {
    this.#model = model
    this.#context = context
    this.#options = options
    this.#host = host
  }

  async open(runs) {
    await this.#inTurns(runs, 'starting', async (run) => {
      const opened = await openCell(run.cell, this.#model, this.#host)
      run.process = opened.process
      run.info = opened.info
    })
  }

  /** Leaves every cell with the context in its cache. */
  async prefill(runs, longestPrefill, stateFiles) {
    const { repeats, prefillSeconds, retries } = this.#options
    const context = this.#context
    const isRestored = ({ cell }) => cell.engine === 'llama.cpp' && context > longestPrefill
    const ids = randomIds(this.#model, context, 1)
    const wantsMore = (run) => {
      if (isRestored(run)) return false
      const good = retries ? run.prefill.filter((sample) => !isDisturbed(sample)) : run.prefill
      const spentMs = sum(run.prefill.map(({ ms }) => ms))
      const isEnough = good.length >= repeats || spentMs >= 1000 * prefillSeconds
      return run.prefill.length === 0 || !isEnough
    }
    for (let round = 1; ; round++) {
      const running = runs.filter((run) => run.failed === null && wantsMore(run))
      if (running.length === 0) break
      await this.#inTurns(running, `prefill, round ${round}`, async (run) => {
        const { bytes, ...sample } = await run.process.call('prefill', { ids })
        run.prefill.push(sample)
        run.bytes = bytes ?? llamaCacheBytes(this.#model.shape, run.cell.kvType, context)
      })
    }
    const saves = context === longestPrefill && this.#options.contexts.at(-1) > longestPrefill
    await this.#inTurns(runs, 'saving and restoring', async (run) => {
      if (run.cell.engine !== 'llama.cpp') return
      const file = stateFiles.get(run.cell)
      if (isRestored(run)) {
        await run.process.call('restore', { file, times: context / longestPrefill })
        run.bytes = llamaCacheBytes(this.#model.shape, run.cell.kvType, context)
      } else if (saves) {
        await run.process.call('save', { file })
      }
    })
  }

  async decode(runs) {
    const { repeats, tokens, retries } = this.#options
    for (let repeat = 1; repeat <= repeats; repeat++) {
      await this.#inTurns(runs, `decode, round ${repeat} of ${repeats}`, async (run) => {
        for (let attempt = 0; attempt <= (retries ? kMaxRetries : 0); attempt++) {
          await run.process.call('warmUp', { tokens: kWarmUpTokens })
          const sample = await run.process.call('decode', { tokens })
          run.decode.push(sample)
          if (!isDisturbed(sample)) break
        }
      })
    }
  }

  /** One long run of each cache with windows: runs of `decode` close one now and then. */
  async closings(runs) {
    const { windows } = this.#options
    await this.#inTurns(runs, `closing ${windows} windows`, async (run) => {
      if (run.cell.engine !== 'zipcache') return
      const { window } = await run.process.call('policy')
      if (window === null) return
      await run.process.call('warmUp', { tokens: kWarmUpTokens })
      // One more: the last window's closing step needs the step after it.
      run.closings = await run.process.call('decode', { tokens: windows * window + 1 })
      run.kinds = await kindsOf(run.closings)
    })
  }

  /** One cell after the other; one that fails is left out from then on. */
  async #inTurns(runs, what, body) {
    for (const run of runs) {
      if (run.failed !== null) continue
      const { name, cache } = run.cell
      this.#options.onProgress(
        `${this.#model.name}, ${this.#context} tokens: ${what}`,
        `${name} ${cache}`,
      )
      try {
        await body(run)
      } catch (error) {
        run.failed = error.message
        await run.process?.stop()
      }
    }
  }
}

/** The run's steps by kind, as the package's own benchmark counts them. */
async function kindsOf({ stepMs, closes }) {
  const { stepsByKind } = await import('../../dist/bench/closing-steps.js') // built since the start
  return stepsByKind([stepMs.map((ms, i) => ({ ms, closing: closes[i] ? 1 : 0 }))])
}

/** Both are known to a tick, so that one of them in a short run says nothing. */
function isDisturbed({ ms, stepMs, stealMs, othersMs }) {
  const lost = stealMs + othersMs
  return lost > kTwoTicksMs && lost > kDisturbed * (ms ?? sum(stepMs))
}

function rowOf(model, context, { cell, prefill, decode, closings, kinds, bytes, info, failed }) {
  const about = { model: model.name, context, ...cell, info }
  if (failed !== null) return { ...about, failed }
  const all = undisturbed(decode).flatMap(({ stepMs }) => stepMs)
  return {
    ...about,
    failed: null,
    bytes,
    fp16Bytes: llamaCacheBytes(model.shape, 'F16', context),
    prefillTokensPerSecond:
      prefill.length === 0
        ? null
        : spread(undisturbed(prefill).map(({ ms }) => (1000 * context) / ms)),
    decodeTokensPerSecond: spread(
      undisturbed(decode).map(({ stepMs }) => (1000 * stepMs.length) / sum(stepMs)),
    ),
    cpu: {
      prefillTokensPerSecond:
        prefill.length === 0 ? null : median(prefill.map(({ ownMs }) => (1000 * context) / ownMs)),
      decodeTokensPerSecond: median(
        decode.map(({ stepMs, ownMs }) => (1000 * stepMs.length) / ownMs),
      ),
    },
    stepMs: { p50: quantile(all, 0.5), p99: quantile(all, 0.99) },
    closingStepMs: kinds && spread(kinds.closing),
    otherStepMs: kinds && spread(kinds.others),
    isDisturbed: {
      prefill: prefill.length > 0 && prefill.every(isDisturbed),
      decode: decode.every(isDisturbed),
      closings: closings !== null && isDisturbed(closings),
    },
    samples: { prefill, decode, closings },
  }
}

/** The runs that nobody disturbed; all of them where there is none, which the report marks. */
function undisturbed(runs) {
  const good = runs.filter((run) => !isDisturbed(run))
  return good.length === 0 ? runs : good
}

function sum(values) {
  return values.reduce((total, value) => total + value, 0)
}
