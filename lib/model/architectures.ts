import type { JsonObject } from './model-files.js'

/** The `architectures` entry of config.json, for those we compute. */
export type Architecture =
  | 'LlamaForCausalLM'
  | 'MistralForCausalLM'
  | 'Qwen2ForCausalLM'
  | 'Qwen3ForCausalLM'
  | 'Phi3ForCausalLM'
  | 'SmolLM3ForCausalLM'
  | 'Gemma3ForCausalLM'
  | 'Gemma3ForConditionalGeneration'

/** Where transformers differs from one architecture to the next. */
export interface ArchitectureTraits {
  readonly modelType: string
  /**
   * What transformers' class says where the file has no such key. A size that is not here is one that
   * we do not guess.
   */
  readonly defaults: JsonObject
  /** The text model of one that sees images, too: its config is `text_config`. */
  readonly isTextOf: boolean
  readonly bias: 'none' | 'qkv' | 'from attention_bias'
  /** RMS norm of each query and key head. */
  readonly qkNorm: boolean
  readonly window: 'none' | 'all layers' | 'by use_sliding_window' | 'by pattern'
  /** Which layers rotate, and how. */
  readonly rope: 'one' | 'some layers' | 'one for windows'
  /** The file may say that a part of each head rotates. */
  readonly partialRotary: boolean
  /** Q, K and V lie in one tensor of the checkpoint, gate and up in another. */
  readonly fusedProjections: boolean
  /**
   * Gemma's ways: norms multiply by 1 + weight, two more of them before the sums with the residual
   * stream, embeddings times the root of their width, scores divided by the root of
   * `query_pre_attn_scalar`.
   */
  readonly isGemma: boolean
}

const kPlain = {
  isTextOf: false,
  bias: 'none',
  qkNorm: false,
  window: 'none',
  rope: 'one',
  partialRotary: false,
  fusedProjections: false,
  isGemma: false,
} as const satisfies Partial<ArchitectureTraits>

const kQwenDefaults = {
  sliding_window: 4096,
  use_sliding_window: false,
  max_window_layers: 28,
}

const kGemma3Traits = {
  ...kPlain,
  modelType: 'gemma3_text',
  // Files of the larger models say little else than what differs from these.
  defaults: {
    vocab_size: 262_208,
    hidden_size: 2304,
    intermediate_size: 9216,
    num_hidden_layers: 26,
    num_attention_heads: 8,
    num_key_value_heads: 4,
    head_dim: 256,
    hidden_activation: 'gelu_pytorch_tanh',
    max_position_embeddings: 131_072,
    eos_token_id: 1,
    bos_token_id: 2,
    tie_word_embeddings: true,
    query_pre_attn_scalar: 256,
    sliding_window: 4096,
    sliding_window_pattern: 6,
    rope_theta: 1_000_000,
    rope_local_base_freq: 10_000,
  },
  bias: 'from attention_bias',
  qkNorm: true,
  window: 'by pattern',
  rope: 'one for windows',
  isGemma: true,
} as const satisfies ArchitectureTraits

export const ARCHITECTURES: Readonly<Record<Architecture, ArchitectureTraits>> = {
  LlamaForCausalLM: {
    ...kPlain,
    modelType: 'llama',
    defaults: { num_key_value_heads: null },
    bias: 'from attention_bias',
  },
  MistralForCausalLM: {
    ...kPlain,
    modelType: 'mistral',
    defaults: { sliding_window: 4096 },
    window: 'all layers',
  },
  Qwen2ForCausalLM: {
    ...kPlain,
    modelType: 'qwen2',
    defaults: kQwenDefaults,
    bias: 'qkv',
    window: 'by use_sliding_window',
  },
  Qwen3ForCausalLM: {
    ...kPlain,
    modelType: 'qwen3',
    // Without the key it is not hidden_size / num_attention_heads.
    defaults: { ...kQwenDefaults, head_dim: 128 },
    bias: 'from attention_bias',
    qkNorm: true,
    window: 'by use_sliding_window',
  },
  Phi3ForCausalLM: {
    ...kPlain,
    modelType: 'phi3',
    defaults: {
      num_key_value_heads: null,
      rms_norm_eps: 1e-5,
      sliding_window: null,
      original_max_position_embeddings: 4096,
    },
    window: 'all layers',
    partialRotary: true,
    fusedProjections: true,
  },
  SmolLM3ForCausalLM: {
    ...kPlain,
    modelType: 'smollm3',
    defaults: {
      use_sliding_window: false,
      sliding_window: null,
      no_rope_layer_interval: 4,
      tie_word_embeddings: true,
      rope_theta: 2_000_000,
    },
    bias: 'from attention_bias',
    window: 'by use_sliding_window',
    rope: 'some layers',
  },
  Gemma3ForCausalLM: kGemma3Traits,
  Gemma3ForConditionalGeneration: { ...kGemma3Traits, modelType: 'gemma3', isTextOf: true },
}
