// Which whole steps are timed, the most important ones first.

/** LLaMA3-8B's shape, with room for 128k tokens of prompt and what is decoded after them. */
const kLlama3 = {
  architectures: ['LlamaForCausalLM'],
  model_type: 'llama',
  hidden_size: 4096,
  intermediate_size: 14336,
  num_hidden_layers: 32,
  num_attention_heads: 32,
  num_key_value_heads: 8,
  head_dim: 128,
  hidden_act: 'silu',
  rms_norm_eps: 1e-5,
  rope_theta: 500000,
  vocab_size: 128256,
  max_position_embeddings: 131072 + 1024,
  tie_word_embeddings: false,
}

/** Small enough for the emulator. */
const kTiny = {
  ...kLlama3,
  hidden_size: 64,
  intermediate_size: 96,
  num_hidden_layers: 2,
  num_attention_heads: 2,
  num_key_value_heads: 1,
  head_dim: 64,
  vocab_size: 128,
  max_position_embeddings: 1024,
}

/** Policies by the names that rows give them; all but fp16 take a window. */
export const kSpecs = {
  fp16: { name: 'fp16' },
  uniform4: { name: 'uniform', bits: 4 },
  uniform2: { name: 'uniform', bits: 2 },
  zipcache: { name: 'zipcache' },
  'zipcache-plus': { name: 'zipcache-plus' },
  mikv: { name: 'mikv' },
}
const kCaches = ['fp16', 'zipcache', 'uniform4', 'uniform2', 'zipcache-plus']
/** Of the paper's figure 6. */
const kFigure = ['fp16', 'zipcache', 'mikv']

/**
 * Model, window and rows of a run. `layers`: so many instead of the model's own. Whatever ends it
 * early, batch 8 at 4k and at 32k was there first, then figure 6.
 */
export function planSteps({ full, check, quick, layers }) {
  const window = check ? 16 : 100
  const model = check ? kTiny : kLlama3
  const name = check ? 'tiny' : 'LLaMA3-8B'
  const how = {
    model: layers === undefined ? model : { ...model, num_hidden_layers: layers },
    name: layers === undefined ? name : `${name} (layers: ${layers})`,
    // null: the policies' own
    window: check ? window : null,
    // Two windows close, or one; all sequences' at once.
    tokens: (quick || check ? 1 : 2) * window + 8,
    roofBytes: check ? 2 ** 20 : 2 ** 29,
  }
  const figure = check
    ? { batch: 2, contexts: [20, 32] }
    : { batch: 8, contexts: [1024, 2048, 4096] }
  const most = figure.contexts.at(-1)
  const cells = check
    ? [[2, most, kCaches]]
    : [
        [8, 4096, ['zipcache', 'fp16']],
        [8, 32768, ['zipcache', 'fp16']],
        ...figure.contexts.map((context) => [figure.batch, context, kFigure]),
        [1, 4096, kCaches],
        [8, 4096, kCaches],
        [1, 32768, kCaches],
        [64, 4096, kCaches],
        [8, 32768, kCaches],
        ...(full
          ? [
              [1, 131072, kCaches],
              [8, 131072, kCaches],
              [64, 32768, kCaches],
            ]
          : []),
      ]
  if (check) cells.push(...figure.contexts.map((context) => [figure.batch, context, kFigure]))
  const rows = new Map()
  for (const [batch, context, policies] of cells) {
    for (const policy of policies) {
      const inFigure =
        batch === figure.batch && figure.contexts.includes(context) && kFigure.includes(policy)
      rows.set(`${batch} ${context} ${policy}`, { batch, context, policy, figure6: inFigure })
    }
  }
  return { ...how, rows: [...rows.values()] }
}

/** A policy as the engine takes it. */
export function specOf(policy, window) {
  const spec = kSpecs[policy]
  return window === null || policy === 'fp16' ? spec : { ...spec, window }
}

/** Multiplications and additions of one prompt: what a row's time is guessed from. */
export function promptWork(config, context) {
  const { hiddenSize, intermediateSize, nLayers, nHeads, nKvHeads, headDim } = config
  const layer = hiddenSize * (headDim * (2 * nHeads + 2 * nKvHeads) + 3 * intermediateSize)
  return nLayers * context * (layer + nHeads * headDim * context)
}
