// A cell of llama.cpp in a process of its own, one thread. Below node-llama-cpp's queue of batches,
// so that no step pays for it: the addon's own calls, a batch of 512 tokens at a time in a prefill,
// one token and llama.cpp's greedy sampler in a decode step.
import { readFileSync, rmSync, writeFileSync } from 'node:fs'
import { repeatState } from './llama-state.mjs'
import { measured, serve } from './worker.mjs'

const kBatch = 512
const kSequence = 0

let cell
let context
let sampler
let position = 0
let nextToken = 0
/** The first turn in the cache, as text; see `answer`. */
let heldRecords = null

serve({
  async open(args) {
    cell = args
    const { getLlama } = await import(cell.nodeLlamaCpp)
    const llama = await getLlama({ build: 'never', gpu: false, maxThreads: 1, logLevel: 'error' })
    const model = await llama.loadModel({ modelPath: cell.ggufFile, gpuLayers: 0 })
    const outer = await model.createContext({
      contextSize: cell.positions,
      batchSize: kBatch,
      threads: 1,
      flashAttention: cell.flashAttention,
      experimentalKvCacheKeyType: cell.kvType,
      experimentalKvCacheValueType: cell.kvType,
    })
    context = outer._ctx
    sampler = new llama._bindings.AddonSampler(model._model)
    sampler.applyConfig({ temperature: 0 })
    return { info: `${llama.llamaCppRelease.release} (${llama.systemInfo.trim()})` }
  },

  /** Prefills an empty cache. */
  async prefill({ ids }) {
    forget()
    const { result: _, ...processor } = await measured(cell.cpu, () => evaluate(ids))
    return processor
  },

  /** Writes the cache to a file. */
  async save({ file }) {
    await context.saveSequenceStateToFile(file, kSequence, new Uint32Array())
  },

  /** Fills the cache with the tokens of a saved one, `times` times over. */
  async restore({ file, times }) {
    forget()
    const { state, tokens } = repeatState(readFileSync(file), times)
    const repeated = `${file}.${times}`
    writeFileSync(repeated, state)
    try {
      await context.loadSequenceStateFromFile(repeated, kSequence, 1)
    } finally {
      rmSync(repeated)
    }
    position = tokens
    if (context.getSequenceKvCacheMaxPosition(kSequence) !== tokens - 1) {
      throw new Error(`the restored cache does not end at position ${tokens - 1}`)
    }
  },

  /** Steps that are not measured. */
  async warmUp({ tokens }) {
    await decode(tokens)
  },

  /** Milliseconds of each of `tokens` steps. */
  async decode({ tokens }) {
    const { result: stepMs, ...processor } = await measured(cell.cpu, () => decode(tokens))
    return { stepMs, closes: stepMs.map(() => false), ...processor }
  },

  /** Logits after every token of `ids`: (ids, vocab_size). */
  async logits({ ids, vocabSize }) {
    forget()
    const all = new Float32Array(ids.length * vocabSize)
    for (let begin = 0; begin < ids.length; begin += kBatch) {
      const batch = ids.slice(begin, begin + kBatch)
      const rows = await evaluateBatch(batch, Uint32Array.from(batch.keys()))
      for (const [i, row] of rows.entries()) {
        const [, , , pairs] = await context.sampleToken(row, sampler, false, false, true)
        if (pairs.length !== 2 * vocabSize) throw new Error(`${pairs.length / 2} logits of a row`)
        const offset = (begin + i) * vocabSize
        for (let p = 0; p < pairs.length; p += 2) all[offset + pairs[p]] = pairs[p + 1]
      }
    }
    return all
  },

  /**
   * The greedy answer to a prompt of two turns. A first turn that the cache holds already stays there:
   * causal attention wrote it without knowing what would follow.
   */
  async answer({ turns: [records, question], maxTokens }) {
    if (records.join() !== heldRecords) {
      forget()
      await evaluate(records)
      heldRecords = records.join()
    }
    context.removeTokenCellsFromSequence(kSequence, records.length, -1)
    position = records.length
    await evaluate(question)
    const ids = [nextToken]
    while (ids.length < maxTokens) {
      await evaluate([nextToken])
      ids.push(nextToken)
    }
    return { ids, tokens: position }
  },
})

function forget() {
  context.removeTokenCellsFromSequence(kSequence, -1, -1)
  position = 0
  heldRecords = null
}

/** Runs tokens through the model and samples the one that comes next. */
async function evaluate(ids) {
  for (let begin = 0; begin < ids.length; begin += kBatch) {
    const batch = ids.slice(begin, begin + kBatch)
    const isLast = begin + batch.length === ids.length
    const rows = await evaluateBatch(batch, Uint32Array.from(isLast ? [batch.length - 1] : []))
    if (isLast) nextToken = await context.sampleToken(rows[0], sampler)
  }
}

async function evaluateBatch(ids, logitRows) {
  context.initBatch(ids.length)
  const rows = context.addToBatch(kSequence, position, Uint32Array.from(ids), logitRows)
  await context.decodeBatch()
  position += ids.length
  return rows
}

async function decode(tokens) {
  const stepMs = []
  let last = performance.now()
  for (let step = 0; step < tokens; step++) {
    await evaluate([nextToken])
    const now = performance.now()
    stepMs.push(now - last)
    last = now
  }
  return stepMs
}
