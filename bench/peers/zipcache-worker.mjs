// A cell of zipcache in a process of its own. The package's public API, one thread.
import { loadModel } from '../../dist/index.mjs'
import { measured, serve } from './worker.mjs'

let cell
let model
let sequence
/** Tokens that went through the model one at a time since the prompt; null: none was asked for. */
let nSteps = null

function fresh() {
  sequence?.dispose()
  sequence = model.createSequence({ policy: cell.policy })
  nSteps = null
}

serve({
  async open(args) {
    cell = args
    model = await loadModel(cell.folder, {
      device: 'cpu',
      dtype: cell.dtype,
      weights: cell.weights,
      threads: 1,
    })
    return { info: `${model.device.info.name} (${model.device.info.isa})` }
  },

  /** Prefills a fresh cache. */
  async prefill({ ids }) {
    fresh()
    const prompt = Int32Array.from(ids)
    const { result: _, ...processor } = await measured(cell.cpu, () => sequence.prefill(prompt))
    return { ...processor, bytes: sequence.bytes.resident }
  },

  /** Tokens after which the sequence's cache is compressed; null: it is not. */
  async policy() {
    return { window: sequence.policy.compression?.window ?? null }
  },

  /**
   * Steps that are not measured: the first ones after another process had the caches of the
   * processor. The first token after a prompt costs no step at all, as its logits are there.
   */
  async warmUp({ tokens }) {
    const isFirst = nSteps === null
    await decode(tokens)
    nSteps = isFirst ? tokens - 1 : nSteps + tokens
  },

  /** Milliseconds of each of `tokens` steps, and which of them closed a window. */
  async decode({ tokens }) {
    const { result: stepMs, ...processor } = await measured(cell.cpu, () => decode(tokens))
    const window = sequence.policy.compression?.window ?? Number.POSITIVE_INFINITY
    const closes = stepMs.map(() => ++nSteps % window === 0)
    return { stepMs, closes, ...processor }
  },

  /** Logits after every token of `ids`: (ids, vocab_size). */
  async logits({ ids }) {
    return await model.logits(Int32Array.from(ids), { policy: cell.policy })
  },

  /** The greedy answer to a prompt, given as the turns that it is prefilled in. */
  async answer({ turns, maxTokens }) {
    fresh()
    for (const ids of turns) await sequence.prefill(Int32Array.from(ids))
    const ids = []
    for await (const { id } of sequence.generate(null, { maxTokens, temperature: 0 })) ids.push(id)
    return { ids, tokens: sequence.length, bytes: sequence.bytes.resident }
  },
})

async function decode(tokens) {
  const stepMs = []
  let last = performance.now()
  const options = { maxTokens: tokens, temperature: 0, ignoreEos: true }
  for await (const _ of sequence.generate(null, options)) {
    const now = performance.now()
    stepMs.push(now - last)
    last = now
  }
  return stepMs
}
