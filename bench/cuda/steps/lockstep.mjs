// Decoding of a batch, one token of each sequence a step. Needs dist/.
import { setMaxListeners } from 'node:events'
import { createRequire } from 'node:module'

const require = createRequire(import.meta.url)
const { stepsByKind } = require('../../../dist/bench/closing-steps.js')
const { summarize } = require('../../../dist/bench/summary.js')

/** The first token needs no step, and the next ones find code and memory. */
const kWarmUpTokens = 4

/** Positions that `timeLockstep` needs after the prompt. */
export function decodedTokens(tokens, window) {
  return kWarmUpTokens + tokens + 2 * (window ?? 0) + 1
}

/**
 * Milliseconds of so many steps of all sequences together, from all tokens to all next ones. All
 * windows close in the same step, as nowhere but here: so, where there is more than one, sequences
 * are then set apart by their part of a window, and the steps of one more window are timed.
 *
 * `window`: tokens that are compressed together; null: none are.
 */
export async function timeLockstep({ engine, sequences, tokens, window }) {
  const controller = new AbortController()
  setMaxListeners(0, controller.signal)
  const options = {
    maxTokens: decodedTokens(tokens, window),
    temperature: 0,
    ignoreEos: true,
    signal: controller.signal,
  }
  const streams = sequences.map((one) => ({ tokens: one.generate(null, options), taken: 0 }))
  try {
    const first = take(streams)
    if (engine.stats().queued > 0) {
      controller.abort(new Error('decode: the cache memory does not hold the whole batch'))
    }
    await first
    for (let token = 1; token < kWarmUpTokens; token++) await take(streams)
    const together = await timed(engine, streams, tokens, window)
    const hasApart = window !== null && streams.length > 1
    return summarizeSteps(together, hasApart ? await timeApart(engine, streams, window) : null)
  } catch (error) {
    controller.abort(error) // what still waits for a token waits no longer
    throw error
  } finally {
    await Promise.allSettled(streams.map((stream) => stream.tokens.return()))
  }
}

async function timeApart(engine, streams, window) {
  const ahead = streams.map((_, s) => Math.floor((s * window) / streams.length))
  for (let step = 0; step < ahead.at(-1); step++) {
    await take(streams.filter((_, s) => ahead[s] > step))
  }
  return await timedFreely(engine, streams, window)
}

/**
 * The steps of one window where each reader goes its own way, as requests of a server do: a sequence
 * whose window closes leaves out a step, and nobody waits for it.
 */
async function timedFreely(engine, streams, window) {
  const before = engine.stats()
  const steps = []
  let step = null
  let isOver = false
  const arrived = (stream, closing) => {
    // Tokens of one step are told in one turn of the event loop; two steps may share it.
    if (step === null || step.from.has(stream)) {
      const own = { at: performance.now(), from: new Set(), closing: 0 }
      step = own
      steps.push(own)
      setImmediate(() => {
        if (step === own) step = null
      })
    }
    step.from.add(stream)
    step.closing += closing
  }
  const read = async (stream) => {
    for (let count = 0; count < window && !isOver; count++) {
      const closing = closesNext(stream, window) ? 1 : 0
      await take([stream])
      if (!isOver) arrived(stream, closing)
    }
    isOver = true
  }
  await Promise.all(streams.map(read))
  checkBatched(before, engine.stats(), steps.length)
  return steps.slice(1).map(({ at, closing }, s) => ({ ms: at - steps[s].at, closing }))
}

/** One more token of each stream. */
async function take(streams) {
  const results = await Promise.all(streams.map(({ tokens }) => tokens.next()))
  if (results.some(({ done }) => done)) throw new Error('generate: ended before its last token')
  for (const stream of streams) stream.taken++
}

/** Each step's milliseconds, and how many windows it filled. */
async function timed(engine, streams, count, window) {
  const before = engine.stats()
  const steps = []
  let last = performance.now()
  for (let step = 0; step < count; step++) {
    const closing = window === null ? 0 : streams.filter((one) => closesNext(one, window)).length
    await take(streams)
    const now = performance.now()
    steps.push({ ms: now - last, closing })
    last = now
  }
  checkBatched(before, engine.stats(), count)
  return steps
}

/**
 * The next step runs the last token that was taken: whether that fills a window. A prompt of a window
 * or more is compressed whole, so the first window begins behind it.
 */
const closesNext = ({ taken }, window) => taken > 0 && taken % window === 0

/** Steps of fewer sequences, one after another, are not what is said. */
function checkBatched(before, after, count) {
  const nSteps = after.steps - before.steps
  // The engine may be a step ahead at either end.
  if (Math.abs(nSteps - count) <= 2) return
  throw new Error(`decode: ${count} steps of the batch were ${nSteps} of the engine`)
}

/** What the steps say, by `stepsByKind`. */
export function summarizeSteps(together, apart) {
  const all = together.map(({ ms }) => ms)
  const atOnce = stepsByKind([together])
  const other = summarize(atOnce.others).median
  const byOne = apart && stepsByKind([apart], other)
  return {
    ms: summarize(all),
    other,
    /** All windows at once. */
    closingTogether: summaryOf(atOnce.closing),
    /** One sequence's window, or as many as a step must where there are more sequences than steps. */
    closingApart: byOne && summaryOf(byOne.closing),
    otherApart: byOne && (summaryOf(byOne.others)?.median ?? other),
  }
}

const summaryOf = (values) => (values.length > 0 ? summarize(values) : null)
