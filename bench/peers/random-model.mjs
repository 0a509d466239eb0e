// LLaMA-type models with random weights, to measure time with: what they write means nothing.
import { toBf16 } from './float16.mjs'
import { writeHfFolder } from './hf-folder.mjs'

/** Shapes by name. `positions` leaves room for 16,384 tokens and what is decoded after them. */
export const kRandomShapes = {
  /** 25.2M parameters, as many KV heads as heads. */
  '25m': {
    hiddenSize: 512,
    intermediateSize: 1024,
    nLayers: 8,
    nHeads: 8,
    nKvHeads: 8,
    headDim: 64,
    vocabSize: 4096,
    positions: 20480,
  },
  /** 125.3M parameters, four heads to a KV head. */
  '125m': {
    hiddenSize: 1024,
    intermediateSize: 2816,
    nLayers: 10,
    nHeads: 8,
    nKvHeads: 2,
    headDim: 128,
    vocabSize: 6144,
    positions: 20480,
  },
}

/**
 * Writes a Hugging Face folder with random bfloat16 weights.
 *
 * A matrix is uniform with variance 1 / inputs, so that activations keep their size; the two that
 * write to the residual stream are smaller by sqrt(2 * layers), which keeps a small difference of
 * arithmetic small from layer to layer, and the output projection is larger by 3, so that there is a
 * best token. Norms are 1.
 *
 * @param {string} dir
 * @param {typeof kRandomShapes['25m']} shape
 * @param {number} seed the same seed gives the same bytes
 */
export function writeRandomModel(dir, shape, seed) {
  const { hiddenSize, intermediateSize, nLayers, nHeads, nKvHeads, headDim, vocabSize } = shape
  const tensors = []
  const matrix = (name, rows, columns, size = 1) => {
    const bits = randomBits(seed + tensors.length, size * Math.sqrt(1 / columns))
    tensors.push({ name, shape: [rows, columns], bits: () => bits(rows * columns) })
  }
  const norm = (name) =>
    tensors.push({
      name,
      shape: [hiddenSize],
      bits: () => new Uint16Array(hiddenSize).fill(toBf16(1)),
    })

  const intoResidual = 1 / Math.sqrt(2 * nLayers)
  matrix('model.embed_tokens.weight', vocabSize, hiddenSize, Math.sqrt(hiddenSize))
  for (let layer = 0; layer < nLayers; layer++) {
    const of = (name) => `model.layers.${layer}.${name}.weight`
    norm(of('input_layernorm'))
    matrix(of('self_attn.q_proj'), nHeads * headDim, hiddenSize)
    matrix(of('self_attn.k_proj'), nKvHeads * headDim, hiddenSize)
    matrix(of('self_attn.v_proj'), nKvHeads * headDim, hiddenSize)
    matrix(of('self_attn.o_proj'), hiddenSize, nHeads * headDim, intoResidual)
    norm(of('post_attention_layernorm'))
    matrix(of('mlp.gate_proj'), intermediateSize, hiddenSize)
    matrix(of('mlp.up_proj'), intermediateSize, hiddenSize)
    matrix(of('mlp.down_proj'), hiddenSize, intermediateSize, intoResidual)
  }
  norm('model.norm.weight')
  matrix('lm_head.weight', vocabSize, hiddenSize, 3)

  writeHfFolder(
    dir,
    {
      architectures: ['LlamaForCausalLM'],
      model_type: 'llama',
      hidden_size: hiddenSize,
      intermediate_size: intermediateSize,
      num_hidden_layers: nLayers,
      num_attention_heads: nHeads,
      num_key_value_heads: nKvHeads,
      head_dim: headDim,
      hidden_act: 'silu',
      rms_norm_eps: 1e-5,
      rope_theta: 500000,
      vocab_size: vocabSize,
      max_position_embeddings: shape.positions,
      tie_word_embeddings: false,
      bos_token_id: 1,
      eos_token_id: 2,
      torch_dtype: 'bfloat16',
    },
    tensors,
  )
}

/**
 * A source of bfloat16 bits of numbers uniform in +-sqrt(3) * deviation that float16 holds exactly
 * too: both have them from 2^-17 up (bfloat16 has 8 significant bits, float16 a step of 2^-24 down
 * there); smaller ones become 0.
 */
function randomBits(seed, deviation) {
  const kSmallest = 2 ** -17
  return (count) => {
    let state = Math.imul(seed + 1, 0x9e3779b9) >>> 0 || 1
    const width = 2 * Math.sqrt(3) * deviation
    const bits = new Uint16Array(count)
    for (let i = 0; i < count; i++) {
      // xorshift32 (Marsaglia, "Xorshift RNGs", 2003).
      state ^= state << 13
      state ^= state >>> 17
      state = (state ^ (state << 5)) >>> 0
      const value = (state / 2 ** 32 - 0.5) * width
      bits[i] = Math.abs(value) < kSmallest ? 0 : toBf16(value)
    }
    return bits
  }
}
