// One row: a batch of prompts, then steps of the whole batch, and the memory that both take. Needs
// dist/.
import { createRequire } from 'node:module'
import { createEngine } from '../../../dist/index.mjs'
import { decodedTokens, timeLockstep } from './lockstep.mjs'

const require = createRequire(import.meta.url)
const { summarize } = require('../../../dist/bench/summary.js')
const { toSeed, uniformInteger } = require('../../../dist/random.js')

/** Of a batch of one: a single prompt says nothing of the spread. */
const kLeastPrompts = 3
/** How many prompts a row of so many sequences takes: those beyond the batch come first. */
export const promptsOf = (batch) => Math.max(batch, kLeastPrompts)

/** How often memory is looked at while the last prompt runs: the driver's answer takes some time, too. */
const kLookMs = 10
/** Beyond what is counted: pages claim their room in steps. */
const kSpareMemory = 1 << 26

/**
 * What a batch comes to by `model.estimate`, whose prompts run one after another, and what its
 * engine is to be given: `decoded` tokens in windows come on top, each of which takes its parameters.
 */
export function batchMemory(model, { policy, window, batch, context, decoded }) {
  const cacheOf = (tokens) => model.estimate({ tokens, policy }).cache
  const { weights, cache, keysAndValues, activations } = model.estimate({ tokens: context, policy })
  const growth =
    window === null
      ? cacheOf(context + decoded) - cache
      : (Math.ceil(decoded / window) + 1) * cacheOf(window) + cacheOf(window - 1)
  const passing = keysAndValues + activations
  return {
    estimate: weights + batch * cache + passing,
    kvMemory: Math.ceil(1.02 * batch * (cache + growth)) + kSpareMemory,
    passing,
  }
}

/**
 * Times one row. `policy`: as the engine takes it; `unrelated`: bytes of the device that are the
 * benchmark's own.
 */
export async function measureRow(model, { policy, window, batch, context, tokens, unrelated }) {
  const { device } = model
  const decoded = decodedTokens(tokens, window)
  const { estimate, kvMemory } = batchMemory(model, { policy, window, batch, context, decoded })
  const { weights } = model.estimate({ tokens: context, policy })
  const before = device.memory.current
  const engine = createEngine({ model, kvMemory, maxBatch: batch, maxPrefills: batch })
  const memory = new MemoryWatch(engine, device, { before, weights, unrelated })
  const sequences = []
  try {
    const prompts = []
    const extra = promptsOf(batch) - batch
    for (let p = 0; p < extra + batch; p++) {
      const sequence = engine.createSequence({ policy, seed: p })
      sequences.push(sequence)
      const isLast = p + 1 === extra + batch
      const ids = randomIds(p, context, model.config.vocabSize)
      const begin = performance.now()
      const running = sequence.prefill(ids)
      if (isLast) memory.begin()
      await running.finally(() => memory.end())
      prompts.push(performance.now() - begin)
      if (p < extra) await drop(sequences.pop())
    }
    const readBefore = readBytes(sequences)
    const steps = await timeLockstep({ engine, sequences, tokens, window })
    return {
      prompts: summarize(prompts),
      promptsMs: prompts.slice(extra).reduce((sum, ms) => sum + ms, 0),
      steps,
      /** Of all caches, right behind the prompts. */
      cacheBytes: readBefore.resident,
      cacheRatio: readBefore.fp16 / readBefore.resident,
      /** What a step reads of them, in the middle of the steps. */
      readBytes: (readBefore.read + readBytes(sequences).read) / 2,
      memory: { estimate, ...memory.peak },
    }
  } finally {
    for (const sequence of sequences) sequence.dispose()
    await engine.dispose()
    await device.sync()
  }
}

async function drop(sequence) {
  sequence.dispose()
  await sequence.released
}

function randomIds(prompt, length, vocabSize) {
  const seed = toSeed(prompt)
  return Int32Array.from({ length }, (_, i) => uniformInteger(seed, i, vocabSize))
}

function readBytes(sequences) {
  const sum = { resident: 0, fp16: 0, read: 0 }
  for (const { bytes } of sequences) {
    const { high, low, tail, params } = bytes.byClass
    sum.resident += bytes.resident
    sum.fp16 += bytes.fp16
    sum.read += high + low + tail + params
  }
  return sum
}

/**
 * The most memory that was in use while prompts ran, in two ways: by tensors and pages that are alive, and by what the
 * driver has given away. Pages that the engine has reserved and no sequence has got are in neither.
 */
class MemoryWatch {
  #engine
  #device
  #from
  #timer = null
  peak = { counted: 0, driver: 0 }

  constructor(engine, device, from) {
    this.#engine = engine
    this.#device = device
    this.#from = from
  }

  begin() {
    this.look()
    this.#timer = setInterval(() => this.look(), kLookMs)
  }

  end() {
    clearInterval(this.#timer)
  }

  look() {
    const { kvMemory, bytesByClass } = this.#engine.stats()
    const { current, total, free } = this.#device.memory
    const { before, weights, unrelated } = this.#from
    const pages = kvMemory.used - bytesByClass.tables - bytesByClass.probes
    // The CPU's driver gives memory to everyone.
    const isGpu = this.#device.info.kind === 'gpu'
    const driver = isGpu ? total - free - unrelated - (kvMemory.capacity - pages) : 0
    this.peak = {
      counted: Math.max(this.peak.counted, current - before + weights + kvMemory.used),
      driver: Math.max(this.peak.driver, driver),
    }
  }
}
