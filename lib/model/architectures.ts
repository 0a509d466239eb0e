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
  | 'Gemma4ForCausalLM'
  | 'Gemma4ForConditionalGeneration'
  | 'Gemma4UnifiedForCausalLM'
  | 'Gemma4UnifiedForConditionalGeneration'
  | 'MixtralForCausalLM'
  | 'Qwen3MoeForCausalLM'
  | 'MinistralForCausalLM'
  | 'Mistral3ForConditionalGeneration'
  | 'Qwen2_5_VLForConditionalGeneration'
  | 'Qwen3VLForConditionalGeneration'
  | 'SeedOssForCausalLM'
  | 'GraniteForCausalLM'
  | 'Olmo2ForCausalLM'
  | 'Olmo3ForCausalLM'
  | 'OlmoeForCausalLM'
  | 'Exaone4ForCausalLM'
  | 'Ernie4_5ForCausalLM'
  | 'GlmForCausalLM'
  | 'Glm4ForCausalLM'
  | 'GraniteMoeForCausalLM'
  | 'Qwen3VLMoeForConditionalGeneration'
  | 'GptOssForCausalLM'
  | 'Qwen2MoeForCausalLM'
  | 'Glm4MoeForCausalLM'
  | 'Ernie4_5_MoeForCausalLM'
  | 'Ministral3ForCausalLM'
  | 'Glm4vMoeForConditionalGeneration'
  | 'Dots1ForCausalLM'
  | 'MiniMaxM2ForCausalLM'
  | 'Qwen2VLForConditionalGeneration'
  | 'Glm4vForConditionalGeneration'
  | 'Exaone4_5_ForConditionalGeneration'
  | 'GemmaForCausalLM'
  | 'GraniteMoeHybridForCausalLM'
  | 'LlavaForConditionalGeneration'
  | 'LlavaNextForConditionalGeneration'
  | 'LlavaOnevisionForConditionalGeneration'
  | 'InternVLForConditionalGeneration'
  | 'Idefics3ForConditionalGeneration'
  | 'SmolVLMForConditionalGeneration'
  | 'HunYuanDenseV1ForCausalLM'
  | 'SolarOpenForCausalLM'
  | 'HYV3ForCausalLM'
  | 'ExaoneMoeForCausalLM'
  | 'MellumForCausalLM'
  | 'Qwen3_5ForCausalLM'
  | 'Qwen3_5ForConditionalGeneration'
  | 'Qwen3_5MoeForCausalLM'
  | 'Qwen3_5MoeForConditionalGeneration'
  | 'Qwen3NextForCausalLM'

/** How a checkpoint calls the tensors of a layer's experts. */
export interface ExpertNames {
  /** The part of a layer that holds them, and the router: `block.experts.0`, `block.gate`; null: they are its own parts. */
  readonly block: string | null
  /** In the place of `gate`, the router. */
  readonly router: string
  /** What is added to scores before some experts are chosen, `block.NAME`; null: nothing. */
  readonly correction: CorrectionName | null
  /** Of the tensors: each expert's own, or those of all experts. */
  readonly tensors: OwnExpertNames | JointExpertNames
  /** The expert of all rows, `block.NAME.gate_proj.weight`; null: there is none. */
  readonly shared: SharedExpertNames | null
  /** What there is where the expert of all rows is the layer's MLP (`ExpertsConfig.besideMlp`); absent: it is not. */
  readonly besideMlp?: BesideMlpNames
}

/** How a checkpoint calls what experts beside an MLP have. */
export interface BesideMlpNames {
  /** What multiplies the normalized rows that the router reads, `NAME` behind the block's. */
  readonly routerNorm: string
  /** (n_experts), behind the block's: multiplies what each expert gives. */
  readonly scales: string
  /** The layer's norm of what enters the experts, `NAME.weight`. */
  readonly input: string
  /** That of what they give. */
  readonly output: string
  /** That of what the MLP gives. */
  readonly mlpOutput: string
}

/** A bias of each expert's. */
export interface CorrectionName {
  /** Behind the block's. */
  readonly name: string
  /** Its shape is (1, n_experts), not (n_experts). */
  readonly isRow: boolean
}

/** How a checkpoint calls the MLP that all rows pass beside the experts that are chosen for them. */
export interface SharedExpertNames {
  /** Behind the block's. */
  readonly name: string
  /** (1, hidden_size), `block.NAME.weight`: the sigmoid of its product multiplies what the MLP gives; null: nothing does. */
  readonly gate: string | null
  /** Its gate and up lie in one tensor, and `block` is a part of the layer by itself; absent: they do not. */
  readonly joint?: MlpNames
}

/** Where each expert has tensors of its own, `block.experts.0.NAME.weight`. */
export interface OwnExpertNames {
  /** In the place of `gate_proj`. */
  readonly gateProj: string
  /** In the place of `up_proj`. */
  readonly upProj: string
  /** In the place of `down_proj`. */
  readonly downProj: string
}

/** Where those of all experts lie in one, `block.NAME`. */
export interface JointExpertNames {
  /** (n_experts, 2 x intermediate_size, hidden_size): each expert's gate, and its up. */
  readonly gateUp: string
  /** (n_experts, hidden_size, intermediate_size). */
  readonly down: string
  /**
   * How files have each matrix: (out, in), one of that and (in, out), or (in, out) where quantized ones are
   * (out, in).
   */
  readonly order: 'out, in' | 'either' | 'in, out'
  /**
   * Outputs of gate and up take turns, a gate's first, and there are biases, of the router and of both
   * matrices: `ROUTER.bias`, `NAME_bias`. Else all of the gate's come first.
   */
  readonly inTurnsWithBiases: boolean
  /** How tensors are called in files where each expert has its own, all the same; null: no file is like that. */
  readonly own: OwnExpertNames | null
}

/** What config.json of a model with experts says of them. */
export interface ExpertTraits {
  /** Keys of their number: the second is what transformers 5 writes. */
  readonly countKeys: readonly string[]
  /** It may be 0: layers have a plain MLP then. Absent: it may not. */
  readonly isOptional?: boolean
  /** Key of whether there are any; absent: there are. */
  readonly enabledKey?: string
  /** Key of the number that multiplies a row. */
  readonly perRowKey: string
  /** Key of their width. */
  readonly widthKey: string
  /** What weights are made of. */
  readonly scores: 'softmax' | 'sigmoid'
  /** Whether the weights of a row's experts are divided by their sum. */
  readonly normalized: 'yes' | 'from norm_topk_prob'
  /** What that sum is at least: a number, or the key of it. */
  readonly leastSum: number | string
  /** Key of what the weights are multiplied by; 1 where neither the file has it nor the class. */
  readonly scaleKey: string
  /** Which layers have them; `mlp_layer_types` is read where it is named alone. */
  readonly layers:
    | 'all'
    | 'all, or by mlp_layer_types'
    | 'by decoder_sparse_step'
    | 'from first_k_dense_replace'
    | 'from first_k_dense_replace, or by mlp_layer_types'
    | 'by moe_layer_interval'
  /** Key of the shared expert's width, or of how many experts wide it is; null: there is none. */
  readonly sharedKey: { readonly width: string } | { readonly count: string } | null
  readonly names: ExpertNames
}

/**
 * How a checkpoint calls the norms of a layer: of what enters attention and the MLP, and of what they add
 * to the residual stream. Null: there is none.
 */
export interface NormNames {
  /** Of what enters attention. */
  readonly attention: string | null
  /** Of what attention adds. */
  readonly attentionOutput: string | null
  /** Of what enters the MLP. */
  readonly mlp: string | null
  /** Of what the MLP adds. */
  readonly mlpOutput: string | null
}

/** How a checkpoint calls the norms of queries and keys, `self_attn.NAME.weight`. */
export interface QkNormNames {
  /** Of queries. */
  readonly q: string
  /** Of keys. */
  readonly k: string
}

/** How a checkpoint calls the tensors of a layer's MLP, `BLOCK.NAME.weight`. */
export interface MlpNames {
  /** The part of a layer that it is. */
  readonly block: string
  /** In the place of `gate_up_proj`, where gate and up lie in one tensor. */
  readonly gateUp: string
  /** In the place of `down_proj`. */
  readonly down: string
}

/** The MLP of layers without experts. */
export interface MlpTraits {
  /** Key of its width. */
  readonly widthKey: string
  readonly names: MlpNames
}

/** Where the text model of one that sees images is told of. */
export interface TextTraits {
  /** The `model_type` of its `text_config`. */
  readonly modelType: string
  /** What the first files have in its place; absent: the same. */
  readonly firstModelType?: string
  /** `text_config` may be missing: the file itself is it, as hubs have older ones. */
  readonly mayBeFlat: boolean
  /** What else it may be, with another `model_type` each; absent: nothing. */
  readonly others?: readonly ArchitectureTraits[]
}

/** Where transformers differs from one architecture to the next. */
export interface ArchitectureTraits {
  readonly modelType: string
  /**
   * What transformers' class says where the file has no such key. A size that is not here is one that
   * we do not guess.
   */
  readonly defaults: JsonObject
  /** What keys say that the class does not read, as files of the model have them: another value is another model. */
  readonly expects: JsonObject
  /** The text model of one that sees images, too; null: it is all there is. */
  readonly textOf: TextTraits | null
  /** Which projections of attention have one, or which keys say so. */
  readonly bias:
    | 'none'
    | 'qkv'
    | 'from attention_bias'
    | 'qkv from attention_bias'
    | 'qkv from qkv_bias'
    | 'from attention_bias and attention_out_bias'
  /** RMS norm of queries and keys: of each head, before RoPE or behind it, or of all heads together. */
  readonly qkNorm:
    | 'none'
    | 'each head'
    | 'each head, rotated'
    | 'all heads'
    | 'each head by use_qk_norm'
  readonly qkNormNames: QkNormNames
  readonly norms: NormNames
  /** Heads have sinks (`attentionSinks`). */
  readonly hasSinks: boolean
  /** Beside each head's queries `q_proj` has a gate (`ModelConfig.gatesAttention`). */
  readonly gatesAttention: boolean
  /**
   * Whether some layers have a recurrent state instead of keys and values: gated DeltaNet's, and how its
   * projections lie, or Mamba 2's (`RecurrenceConfig`). Which layers these are `layer_types` says, of the first
   * `full_attention_interval` too.
   */
  readonly recurrence: 'none' | 'projections apart' | 'projections by key heads' | 'mamba'
  /** What is "as layer_types says" is refused where it says nothing. */
  readonly window:
    | 'none'
    | 'none, as layer_types says'
    | 'all layers'
    | 'all layers by use_sliding_window'
    | 'all layers or by layer_types'
    | 'by use_sliding_window'
    | 'from max_window_layers'
    | 'every other layer by use_sliding_window'
    | 'by pattern'
    | 'by pattern or none'
    | 'by pattern, but for the last layer'
  /** Which layers rotate, and how. */
  readonly rope:
    | 'one'
    | 'one, of theta by alpha'
    | 'one by position_embedding_type'
    | 'some layers'
    | 'one for windows'
    | 'one for each type of layer'
    | 'windows alone'
  /** Queries of far positions are multiplied, as rope parameters say (`llama_4_scaling_beta`). */
  readonly scalesQueries: boolean
  /** The file may say that a part of each head rotates. */
  readonly partialRotary: boolean
  /** Channels 2i and 2i + 1 of a head rotate together, where others' are i and i + half of them. */
  readonly interleavedRope: boolean
  /** What lies in one tensor of the checkpoint: gate and up; Q, K and V in another. */
  readonly fusedProjections: 'none' | 'gate and up' | 'all'
  /** Of the MLP's gate: which key names it, or what it is; of the first Gemma "gelu" is its form by tanh, too. */
  readonly activation:
    | 'by hidden_act'
    | 'by hidden_act, any gelu by tanh'
    | 'by hidden_activation'
    | 'clamped swiglu'
  /** Norms multiply by 1 + weight. */
  readonly unitOffsetNorms: boolean
  /**
   * Gemma's ways: embeddings times the root of their width, scores divided by the root of
   * `query_pre_attn_scalar`, where the class has it.
   */
  readonly isGemma: boolean
  /**
   * Gemma 4's: layers that see all tokens have heads of another shape, the last layers keys and values of earlier ones, values
   * are normalized, scores divided by nothing, what each layer gives is multiplied by a number of its own, and logits
   * are bounded.
   */
  readonly isGemma4: boolean
  /** Layers read a vector of each token's beside the residual stream (`ModelConfig.perLayerInputs`). */
  readonly hasPerLayerInputs: boolean
  /** Embeddings, scores, what is added to the residual stream and logits are multiplied as the file says. */
  readonly isGranite: boolean
  readonly mlp: MlpTraits
  /** MLPs are several experts, of which a router chooses some for each row; null: they are not. */
  readonly experts: ExpertTraits | null
}

const kOwnExpertNames = {
  gateProj: 'gate_proj',
  upProj: 'up_proj',
  downProj: 'down_proj',
} as const satisfies OwnExpertNames

const kUsualExpertNames = {
  block: 'mlp',
  router: 'gate',
  correction: null,
  tensors: kOwnExpertNames,
  shared: null,
} as const satisfies ExpertNames

const kMixtralNames = {
  ...kUsualExpertNames,
  block: 'block_sparse_moe',
  tensors: { gateProj: 'w1', upProj: 'w3', downProj: 'w2' },
} as const satisfies ExpertNames

const kUsualExperts = {
  countKeys: ['num_experts', 'num_local_experts'],
  perRowKey: 'num_experts_per_tok',
  widthKey: 'moe_intermediate_size',
  scores: 'softmax',
  normalized: 'from norm_topk_prob',
  leastSum: 0,
  scaleKey: 'routed_scaling_factor',
  layers: 'by decoder_sparse_step',
  sharedKey: null,
  names: kUsualExpertNames,
} as const satisfies ExpertTraits

/** As DeepSeek-V3 chooses (arXiv 2412.19437, §2.1.2), of one group. */
const kDeepSeekExperts = {
  ...kUsualExperts,
  countKeys: ['n_routed_experts', 'num_local_experts'],
  scores: 'sigmoid',
  leastSum: 1e-20,
  layers: 'from first_k_dense_replace',
  sharedKey: { count: 'n_shared_experts' },
  names: {
    ...kUsualExpertNames,
    correction: { name: 'gate.e_score_correction_bias', isRow: false },
    shared: { name: 'shared_experts', gate: null },
  },
} as const satisfies ExpertTraits

/** Every layer has experts, as wide as its MLP would be. */
const kLocalExperts = {
  ...kUsualExperts,
  countKeys: ['num_local_experts'],
  widthKey: 'intermediate_size',
  normalized: 'yes',
  layers: 'all',
} as const satisfies ExpertTraits

const kPlain = {
  expects: {},
  textOf: null,
  bias: 'none',
  qkNorm: 'none',
  qkNormNames: { q: 'q_norm', k: 'k_norm' },
  norms: {
    attention: 'input_layernorm',
    attentionOutput: null,
    mlp: 'post_attention_layernorm',
    mlpOutput: null,
  },
  hasSinks: false,
  gatesAttention: false,
  recurrence: 'none',
  window: 'none',
  rope: 'one',
  scalesQueries: false,
  partialRotary: false,
  interleavedRope: false,
  fusedProjections: 'none',
  activation: 'by hidden_act',
  unitOffsetNorms: false,
  isGemma: false,
  isGemma4: false,
  hasPerLayerInputs: false,
  isGranite: false,
  mlp: {
    widthKey: 'intermediate_size',
    names: { block: 'mlp', gateUp: 'gate_up_proj', down: 'down_proj' },
  },
  experts: null,
} as const satisfies Partial<ArchitectureTraits>

const kQwenDefaults = {
  sliding_window: 4096,
  use_sliding_window: false,
  max_window_layers: 28,
}

const kQwen2Traits = {
  ...kPlain,
  modelType: 'qwen2',
  defaults: kQwenDefaults,
  bias: 'qkv',
  window: 'by use_sliding_window',
} as const satisfies ArchitectureTraits

const kQwen3Traits = {
  ...kPlain,
  modelType: 'qwen3',
  // Without the key it is not hidden_size / num_attention_heads.
  defaults: { ...kQwenDefaults, head_dim: 128 },
  bias: 'from attention_bias',
  qkNorm: 'each head',
  window: 'by use_sliding_window',
} as const satisfies ArchitectureTraits

const kQwen2VlTraits = {
  ...kPlain,
  modelType: 'qwen2_vl',
  defaults: {
    ...kQwenDefaults,
    max_window_layers: 80,
    rms_norm_eps: 1e-5,
    rope_theta: 1_000_000,
  },
  textOf: { modelType: 'qwen2_vl_text', mayBeFlat: true },
  bias: 'qkv',
  window: 'by use_sliding_window',
} as const satisfies ArchitectureTraits

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
  qkNorm: 'each head',
  window: 'by pattern',
  rope: 'one for windows',
  norms: {
    attention: 'input_layernorm',
    attentionOutput: 'post_attention_layernorm',
    mlp: 'pre_feedforward_layernorm',
    mlpOutput: 'post_feedforward_layernorm',
  },
  activation: 'by hidden_activation',
  unitOffsetNorms: true,
  isGemma: true,
} as const satisfies ArchitectureTraits

/** Of Gemma 4 what there is without vectors of each layer's, and without experts. */
const kGemma4UnifiedTraits = {
  ...kGemma3Traits,
  modelType: 'gemma4_unified_text',
  defaults: {
    ...{ vocab_size: 262_144, hidden_size: 2304, intermediate_size: 9216 },
    ...{ num_hidden_layers: 30, num_attention_heads: 8, num_key_value_heads: 4 },
    ...{ head_dim: 256, global_head_dim: 512, hidden_activation: 'gelu_pytorch_tanh' },
    ...{ max_position_embeddings: 262_144, sliding_window: 1024, sliding_window_pattern: 6 },
    ...{ eos_token_id: 1, bos_token_id: 2, tie_word_embeddings: true },
    rope_parameters: {
      full_attention: {
        ...{ rope_type: 'proportional', partial_rotary_factor: 0.25, rope_theta: 1_000_000 },
      },
      sliding_attention: { rope_type: 'default', rope_theta: 10_000 },
    },
  },
  expects: { enable_moe_block: false },
  window: 'by pattern, but for the last layer',
  rope: 'one for each type of layer',
  unitOffsetNorms: false,
  isGemma4: true,
} as const satisfies ArchitectureTraits

const kGemma4Traits = {
  ...kGemma4UnifiedTraits,
  modelType: 'gemma4_text',
  defaults: {
    ...kGemma4UnifiedTraits.defaults,
    ...{ max_position_embeddings: 131_072, sliding_window: 512 },
    ...{ hidden_size_per_layer_input: 256, vocab_size_per_layer_input: 262_144 },
    enable_moe_block: false,
  },
  expects: {},
  hasPerLayerInputs: true,
  experts: {
    ...kUsualExperts,
    enabledKey: 'enable_moe_block',
    countKeys: ['num_experts'],
    perRowKey: 'top_k_experts',
    normalized: 'yes',
    layers: 'all',
    sharedKey: { width: 'intermediate_size' },
    names: {
      ...kUsualExpertNames,
      block: null,
      router: 'router.proj',
      tensors: {
        ...{ gateUp: 'experts.gate_up_proj', down: 'experts.down_proj', own: kOwnExpertNames },
        ...{ order: 'out, in', inTurnsWithBiases: false },
      },
      shared: { name: 'mlp', gate: null },
      besideMlp: {
        ...{ routerNorm: 'router.scale', scales: 'router.per_expert_scale' },
        ...{ input: 'pre_feedforward_layernorm_2', output: 'post_feedforward_layernorm_2' },
        mlpOutput: 'post_feedforward_layernorm_1',
      },
    },
  },
} as const satisfies ArchitectureTraits

const kOutputNorms = {
  attention: null,
  attentionOutput: 'post_attention_layernorm',
  mlp: null,
  mlpOutput: 'post_feedforward_layernorm',
} as const satisfies NormNames

const kOlmo2Traits = {
  ...kPlain,
  modelType: 'olmo2',
  defaults: { num_key_value_heads: null, rms_norm_eps: 1e-5 },
  bias: 'from attention_bias',
  qkNorm: 'all heads',
  norms: kOutputNorms,
} as const satisfies ArchitectureTraits

const kGraniteTraits = {
  ...kPlain,
  modelType: 'granite',
  defaults: {
    num_key_value_heads: null,
    embedding_multiplier: 1,
    attention_multiplier: 1,
    residual_multiplier: 1,
    logits_scaling: 1,
  },
  bias: 'from attention_bias',
  isGranite: true,
} as const satisfies ArchitectureTraits

const kGraniteExperts = {
  ...kLocalExperts,
  names: {
    ...kUsualExpertNames,
    block: 'block_sparse_moe',
    router: 'router.layer',
    tensors: {
      gateUp: 'input_linear.weight',
      down: 'output_linear.weight',
      ...{ order: 'out, in', own: null, inTurnsWithBiases: false },
    },
  },
} as const satisfies ExpertTraits

const kGraniteSharedMlp = {
  block: 'shared_mlp',
  gateUp: 'input_linear',
  down: 'output_linear',
} as const satisfies MlpNames

const kGlmTraits = {
  ...kPlain,
  modelType: 'glm',
  defaults: {
    head_dim: 128,
    attention_bias: true,
    rms_norm_eps: 1.5625e-7,
    partial_rotary_factor: 0.5,
  },
  bias: 'qkv from attention_bias',
  partialRotary: true,
  interleavedRope: true,
  fusedProjections: 'gate and up',
} as const satisfies ArchitectureTraits

const kGlm4Traits = {
  ...kGlmTraits,
  modelType: 'glm4',
  norms: {
    attention: 'input_layernorm',
    attentionOutput: 'post_self_attn_layernorm',
    mlp: 'post_attention_layernorm',
    mlpOutput: 'post_mlp_layernorm',
  },
} as const satisfies ArchitectureTraits

const kExaone4Traits = {
  ...kPlain,
  modelType: 'exaone4',
  defaults: { rms_norm_eps: 1e-5, sliding_window: 4096, sliding_window_pattern: 4 },
  qkNorm: 'each head',
  norms: kOutputNorms,
  window: 'by pattern or none',
  rope: 'windows alone',
} as const satisfies ArchitectureTraits

const kErnieTraits = {
  ...kPlain,
  modelType: 'ernie4_5',
  defaults: { rms_norm_eps: 1e-5, tie_word_embeddings: true, rope_theta: 500_000 },
  interleavedRope: true,
} as const satisfies ArchitectureTraits

const kLlamaTraits = {
  ...kPlain,
  modelType: 'llama',
  defaults: { num_key_value_heads: null },
  bias: 'from attention_bias',
} as const satisfies ArchitectureTraits

const kMistralTraits = {
  ...kPlain,
  modelType: 'mistral',
  defaults: { sliding_window: 4096 },
  window: 'all layers',
} as const satisfies ArchitectureTraits

const kMinistral3Traits = {
  ...kPlain,
  modelType: 'ministral3',
  defaults: { head_dim: 128, rms_norm_eps: 1e-5, sliding_window: null },
  window: 'all layers',
  scalesQueries: true,
} as const satisfies ArchitectureTraits

const kGlm4MoeTraits = {
  ...kPlain,
  modelType: 'glm4_moe',
  defaults: {
    rms_norm_eps: 1e-5,
    partial_rotary_factor: 0.5,
    use_qk_norm: false,
    n_shared_experts: 1,
    routed_scaling_factor: 1,
    n_group: 1,
    topk_group: 1,
    first_k_dense_replace: 1,
    norm_topk_prob: true,
  },
  bias: 'qkv from attention_bias',
  qkNorm: 'each head by use_qk_norm',
  partialRotary: true,
  experts: kDeepSeekExperts,
} as const satisfies ArchitectureTraits

const kQwen3_5Traits = {
  ...kPlain,
  modelType: 'qwen3_5_text',
  defaults: {
    head_dim: 256,
    partial_rotary_factor: 0.25,
    full_attention_interval: 4,
    ...{ linear_num_key_heads: 16, linear_key_head_dim: 128, linear_conv_kernel_dim: 4 },
    ...{ linear_num_value_heads: 32, linear_value_head_dim: 128 },
  },
  // The second the class does not read; the first is of the convolutions of states, too.
  expects: { hidden_act: 'silu', attn_output_gate: true },
  qkNorm: 'each head',
  gatesAttention: true,
  recurrence: 'projections apart',
  partialRotary: true,
  unitOffsetNorms: true,
} as const satisfies ArchitectureTraits

const kQwen3_5MoeTraits = {
  ...kQwen3_5Traits,
  modelType: 'qwen3_5_moe_text',
  // No layer has another MLP, whose width need not be told.
  mlp: { ...kPlain.mlp, widthKey: 'moe_intermediate_size' },
  experts: {
    ...kUsualExperts,
    normalized: 'yes',
    layers: 'all',
    sharedKey: { width: 'shared_expert_intermediate_size' },
    names: {
      ...kUsualExpertNames,
      // As published; each expert has its own where it is quantized, or written by transformers.
      tensors: {
        ...{ gateUp: 'experts.gate_up_proj', down: 'experts.down_proj', own: kOwnExpertNames },
        ...{ order: 'out, in', inTurnsWithBiases: false },
      },
      shared: { name: 'shared_expert', gate: 'shared_expert_gate' },
    },
  },
} as const satisfies ArchitectureTraits

const kQwen3NextTraits = {
  ...kQwen3_5Traits,
  modelType: 'qwen3_next',
  defaults: { ...kQwen3_5Traits.defaults, decoder_sparse_step: 1, norm_topk_prob: true },
  recurrence: 'projections by key heads',
  experts: {
    ...kUsualExperts,
    sharedKey: kQwen3_5MoeTraits.experts.sharedKey,
    names: { ...kUsualExpertNames, shared: kQwen3_5MoeTraits.experts.names.shared },
  },
} as const satisfies ArchitectureTraits

/** Sizes that classes of text models have, where files of models that see images say what differs from them alone. */
const kTextSizes = { hidden_size: 4096, num_hidden_layers: 32, num_attention_heads: 32 }
const kLlamaText = asText(kLlamaTraits, {
  ...{ vocab_size: 32_000, intermediate_size: 11_008, max_position_embeddings: 2048 },
  ...{ bos_token_id: 1, eos_token_id: 2 },
})
const kMistralText = asText(kMistralTraits, {
  ...{ vocab_size: 32_000, intermediate_size: 14_336, max_position_embeddings: 131_072 },
  ...{ num_key_value_heads: 8, bos_token_id: 1, eos_token_id: 2 },
})
const kQwenSizes = {
  ...{ vocab_size: 151_936, intermediate_size: 22_016, max_position_embeddings: 32_768 },
  num_key_value_heads: 32,
}
const kQwen2Text = asText(kQwen2Traits, kQwenSizes)
const kQwen3Text = asText(kQwen3Traits, kQwenSizes)
const kLlamaFirst = [kLlamaText, kMistralText, kQwen2Text, kQwen3Text] as const
const kQwen2First = [kQwen2Text, kQwen3Text, kLlamaText, kMistralText] as const

function asText(traits: ArchitectureTraits, sizes: JsonObject): ArchitectureTraits {
  return {
    ...traits,
    defaults: { ...kTextSizes, ...sizes, ...traits.defaults },
    textOf: { modelType: traits.modelType, mayBeFlat: false },
  }
}

/** A model that sees images, whose text model is one of several: the first where its file does not say which. */
function seeing(
  modelType: string,
  [text, ...others]: readonly [ArchitectureTraits, ...ArchitectureTraits[]],
): ArchitectureTraits {
  return { ...text, modelType, textOf: { modelType: text.modelType, mayBeFlat: false, others } }
}

export const ARCHITECTURES: Readonly<Record<Architecture, ArchitectureTraits>> = {
  LlamaForCausalLM: kLlamaTraits,
  MistralForCausalLM: kMistralTraits,
  MinistralForCausalLM: {
    ...kMistralTraits,
    modelType: 'ministral',
    window: 'all layers or by layer_types',
  },
  Mistral3ForConditionalGeneration: {
    ...kMistralTraits,
    modelType: 'mistral3',
    textOf: {
      modelType: 'mistral',
      mayBeFlat: false,
      others: [
        {
          ...kMinistral3Traits,
          modelType: 'mistral3',
          textOf: { modelType: 'ministral3', mayBeFlat: false },
        },
      ],
    },
  },
  Ministral3ForCausalLM: kMinistral3Traits,
  Qwen2ForCausalLM: kQwen2Traits,
  Qwen3ForCausalLM: kQwen3Traits,
  LlavaForConditionalGeneration: seeing('llava', kLlamaFirst),
  LlavaNextForConditionalGeneration: seeing('llava_next', kLlamaFirst),
  LlavaOnevisionForConditionalGeneration: seeing('llava_onevision', kQwen2First),
  InternVLForConditionalGeneration: seeing('internvl', kQwen2First),
  Idefics3ForConditionalGeneration: seeing('idefics3', kLlamaFirst),
  SmolVLMForConditionalGeneration: seeing('smolvlm', kLlamaFirst),
  Qwen2VLForConditionalGeneration: kQwen2VlTraits,
  Qwen2_5_VLForConditionalGeneration: {
    ...kQwen2VlTraits,
    modelType: 'qwen2_5_vl',
    textOf: { modelType: 'qwen2_5_vl_text', mayBeFlat: true },
  },
  Qwen3VLForConditionalGeneration: {
    ...kPlain,
    modelType: 'qwen3_vl',
    defaults: { head_dim: 128, rope_theta: 500_000 },
    textOf: { modelType: 'qwen3_vl_text', mayBeFlat: false },
    bias: 'from attention_bias',
    qkNorm: 'each head',
  },
  Qwen3VLMoeForConditionalGeneration: {
    ...kPlain,
    modelType: 'qwen3_vl_moe',
    defaults: { rope_theta: 500_000, decoder_sparse_step: 1 },
    textOf: { modelType: 'qwen3_vl_moe_text', mayBeFlat: false },
    bias: 'from attention_bias',
    qkNorm: 'each head',
    experts: {
      ...kUsualExperts,
      normalized: 'yes',
      names: {
        ...kUsualExpertNames,
        tensors: {
          gateUp: 'experts.gate_up_proj',
          down: 'experts.down_proj',
          ...{ order: 'either', own: null, inTurnsWithBiases: false },
        },
      },
    },
  },
  Qwen3_5ForCausalLM: kQwen3_5Traits,
  Qwen3_5ForConditionalGeneration: {
    ...kQwen3_5Traits,
    modelType: 'qwen3_5',
    textOf: { modelType: 'qwen3_5_text', mayBeFlat: false },
  },
  Qwen3_5MoeForCausalLM: kQwen3_5MoeTraits,
  Qwen3_5MoeForConditionalGeneration: {
    ...kQwen3_5MoeTraits,
    modelType: 'qwen3_5_moe',
    textOf: { modelType: 'qwen3_5_moe_text', mayBeFlat: false },
  },
  Qwen3NextForCausalLM: kQwen3NextTraits,
  SeedOssForCausalLM: {
    ...kPlain,
    modelType: 'seed_oss',
    defaults: { attention_bias: true, head_dim: 128 },
    bias: 'from attention_bias and attention_out_bias',
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
    fusedProjections: 'all',
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
  GemmaForCausalLM: {
    ...kPlain,
    modelType: 'gemma',
    defaults: {
      head_dim: 256,
      hidden_act: 'gelu_pytorch_tanh',
      bos_token_id: 2,
      eos_token_id: 1,
      tie_word_embeddings: true,
    },
    expects: { query_pre_attn_scalar: null },
    bias: 'from attention_bias',
    activation: 'by hidden_act, any gelu by tanh',
    unitOffsetNorms: true,
    isGemma: true,
  },
  Gemma3ForCausalLM: kGemma3Traits,
  Gemma3ForConditionalGeneration: {
    ...kGemma3Traits,
    modelType: 'gemma3',
    textOf: { modelType: 'gemma3_text', mayBeFlat: false },
  },
  Gemma4ForCausalLM: kGemma4Traits,
  Gemma4ForConditionalGeneration: {
    ...kGemma4Traits,
    modelType: 'gemma4',
    textOf: { modelType: 'gemma4_text', mayBeFlat: false },
  },
  Gemma4UnifiedForCausalLM: kGemma4UnifiedTraits,
  Gemma4UnifiedForConditionalGeneration: {
    ...kGemma4UnifiedTraits,
    modelType: 'gemma4_unified',
    textOf: { modelType: 'gemma4_unified_text', mayBeFlat: false },
  },
  MixtralForCausalLM: {
    ...kPlain,
    modelType: 'mixtral',
    defaults: { rms_norm_eps: 1e-5, sliding_window: null, rope_theta: 1_000_000 },
    window: 'all layers',
    experts: {
      ...kLocalExperts,
      names: kMixtralNames,
    },
  },
  Qwen3MoeForCausalLM: {
    ...kPlain,
    modelType: 'qwen3_moe',
    defaults: {
      use_sliding_window: false,
      sliding_window: 4096,
      decoder_sparse_step: 1,
      norm_topk_prob: false,
    },
    bias: 'from attention_bias',
    qkNorm: 'each head',
    window: 'all layers by use_sliding_window',
    experts: kUsualExperts,
  },
  Qwen2MoeForCausalLM: {
    ...kPlain,
    modelType: 'qwen2_moe',
    defaults: {
      ...kQwenDefaults,
      qkv_bias: true,
      decoder_sparse_step: 1,
      norm_topk_prob: false,
    },
    bias: 'qkv from qkv_bias',
    window: 'every other layer by use_sliding_window',
    experts: {
      ...kUsualExperts,
      sharedKey: { width: 'shared_expert_intermediate_size' },
      names: {
        ...kUsualExpertNames,
        shared: { name: 'shared_expert', gate: 'shared_expert_gate' },
      },
    },
  },
  GptOssForCausalLM: {
    ...kPlain,
    modelType: 'gpt_oss',
    defaults: {
      head_dim: 64,
      attention_bias: true,
      rms_norm_eps: 1e-5,
      sliding_window: 128,
      sliding_window_pattern: 2,
      rope_theta: 150_000,
      swiglu_limit: 7,
    },
    bias: 'from attention_bias',
    hasSinks: true,
    window: 'by pattern',
    activation: 'clamped swiglu',
    experts: {
      ...kLocalExperts,
      names: {
        ...kUsualExpertNames,
        router: 'router',
        tensors: {
          gateUp: 'experts.gate_up_proj',
          down: 'experts.down_proj',
          ...{ order: 'in, out', own: null, inTurnsWithBiases: true },
        },
      },
    },
  },
  GraniteForCausalLM: kGraniteTraits,
  GraniteMoeForCausalLM: {
    ...kGraniteTraits,
    modelType: 'granitemoe',
    experts: kGraniteExperts,
  },
  GraniteMoeHybridForCausalLM: {
    ...kGraniteTraits,
    modelType: 'granitemoehybrid',
    defaults: {
      ...kGraniteTraits.defaults,
      num_local_experts: 8,
      ...{ mamba_n_heads: 128, mamba_n_groups: 1, mamba_d_state: 256, mamba_d_head: 'auto' },
      ...{ mamba_d_conv: 4, mamba_expand: 2 },
    },
    expects: { mamba_proj_bias: false, mamba_conv_bias: true },
    recurrence: 'mamba',
    rope: 'one by position_embedding_type',
    fusedProjections: 'gate and up',
    mlp: { widthKey: 'shared_intermediate_size', names: kGraniteSharedMlp },
    experts: {
      ...kGraniteExperts,
      isOptional: true,
      sharedKey: { width: 'shared_intermediate_size' },
      names: {
        ...kGraniteExperts.names,
        shared: { name: kGraniteSharedMlp.block, gate: null, joint: kGraniteSharedMlp },
      },
    },
  },
  Olmo2ForCausalLM: kOlmo2Traits,
  Olmo3ForCausalLM: {
    ...kOlmo2Traits,
    modelType: 'olmo3',
    defaults: {
      ...kOlmo2Traits.defaults,
      sliding_window: 4096,
      sliding_window_pattern: 4,
      rope_theta: 500_000,
    },
    window: 'by pattern',
    rope: 'one for windows',
  },
  OlmoeForCausalLM: {
    ...kPlain,
    modelType: 'olmoe',
    defaults: { num_key_value_heads: null, rms_norm_eps: 1e-5 },
    bias: 'from attention_bias',
    qkNorm: 'all heads',
    experts: { ...kUsualExperts, widthKey: 'intermediate_size', layers: 'all' },
  },
  Exaone4ForCausalLM: kExaone4Traits,
  Exaone4_5_ForConditionalGeneration: {
    ...kExaone4Traits,
    modelType: 'exaone4_5',
    textOf: { modelType: 'exaone4', firstModelType: 'exaone4_5_text', mayBeFlat: false },
  },
  HunYuanDenseV1ForCausalLM: {
    ...kPlain,
    modelType: 'hunyuan_v1_dense',
    defaults: { num_key_value_heads: null, rms_norm_eps: 1e-5 },
    // What the class does not read: no file of it says otherwise.
    expects: { use_qk_norm: true, use_cla: false },
    bias: 'from attention_bias',
    qkNorm: 'each head, rotated',
    qkNormNames: { q: 'query_layernorm', k: 'key_layernorm' },
    rope: 'one, of theta by alpha',
  },
  ExaoneMoeForCausalLM: {
    ...kExaone4Traits,
    modelType: 'exaone_moe',
    defaults: {
      ...kExaone4Traits.defaults,
      first_k_dense_replace: 1,
      num_shared_experts: 1,
      norm_topk_prob: true,
      routed_scaling_factor: 2.5,
    },
    norms: kPlain.norms,
    experts: {
      ...kDeepSeekExperts,
      countKeys: ['num_experts', 'num_local_experts'],
      layers: 'from first_k_dense_replace, or by mlp_layer_types',
      sharedKey: { count: 'num_shared_experts' },
      names: {
        ...kUsualExpertNames,
        correction: { name: 'e_score_correction_bias', isRow: false },
        shared: { name: 'shared_experts', gate: null },
      },
    },
  },
  MellumForCausalLM: {
    ...kPlain,
    modelType: 'mellum',
    defaults: {
      head_dim: 128,
      sliding_window: 1024,
      // Of a file that names no layers none has a window.
      sliding_window_pattern: 1,
      norm_topk_prob: true,
      rope_theta: 500_000,
      rope_local_base_freq: 10_000,
    },
    bias: 'from attention_bias',
    qkNorm: 'each head',
    window: 'by pattern',
    rope: 'one for windows',
    experts: { ...kUsualExperts, layers: 'all, or by mlp_layer_types' },
  },
  Ernie4_5ForCausalLM: {
    ...kErnieTraits,
    defaults: { ...kErnieTraits.defaults, head_dim: 128 },
  },
  Ernie4_5_MoeForCausalLM: {
    ...kErnieTraits,
    modelType: 'ernie4_5_moe',
    defaults: {
      ...kErnieTraits.defaults,
      moe_num_shared_experts: 2,
      moe_layer_start_index: 1,
      moe_layer_end_index: -1,
      moe_layer_interval: 1,
      moe_norm_min: 1e-12,
    },
    experts: {
      ...kUsualExperts,
      countKeys: ['moe_num_experts'],
      perRowKey: 'moe_k',
      normalized: 'yes',
      leastSum: 'moe_norm_min',
      layers: 'by moe_layer_interval',
      sharedKey: { count: 'moe_num_shared_experts' },
      names: {
        ...kUsualExpertNames,
        correction: { name: 'moe_statics.e_score_correction_bias', isRow: true },
        shared: { name: 'shared_experts', gate: null },
      },
    },
  },
  GlmForCausalLM: kGlmTraits,
  Glm4ForCausalLM: kGlm4Traits,
  Glm4vForConditionalGeneration: {
    ...kGlm4Traits,
    modelType: 'glm4v',
    defaults: { rms_norm_eps: 1e-5 },
    textOf: { modelType: 'glm4v_text', mayBeFlat: false },
    bias: 'qkv',
  },
  Dots1ForCausalLM: {
    ...kPlain,
    modelType: 'dots1',
    defaults: {
      num_key_value_heads: null,
      sliding_window: 4096,
      max_window_layers: 62,
      first_k_dense_replace: 0,
      norm_topk_prob: false,
    },
    expects: { scoring_func: 'noaux_tc', moe_layer_freq: 1 },
    bias: 'from attention_bias',
    qkNorm: 'each head',
    window: 'from max_window_layers',
    experts: kDeepSeekExperts,
  },
  MiniMaxM2ForCausalLM: {
    ...kPlain,
    modelType: 'minimax_m2',
    defaults: { head_dim: 128, rope_theta: 5_000_000 },
    expects: {
      scoring_func: 'sigmoid',
      use_qk_norm: true,
      qk_norm_type: 'per_layer',
      use_routing_bias: true,
      shared_intermediate_size: 0,
    },
    qkNorm: 'all heads',
    partialRotary: true,
    experts: {
      ...kLocalExperts,
      scores: 'sigmoid',
      names: {
        ...kMixtralNames,
        correction: { name: 'e_score_correction_bias', isRow: false },
      },
    },
  },
  Glm4MoeForCausalLM: kGlm4MoeTraits,
  SolarOpenForCausalLM: {
    ...kGlm4MoeTraits,
    modelType: 'solar_open',
    defaults: {
      head_dim: 128,
      rms_norm_eps: 1e-5,
      rope_theta: 1_000_000,
      n_shared_experts: 1,
      norm_topk_prob: true,
    },
    expects: { use_qk_norm: false, first_k_dense_replace: 0 },
    qkNorm: 'none',
    // No layer has another MLP, whose width need not be told.
    mlp: { ...kPlain.mlp, widthKey: 'moe_intermediate_size' },
    experts: { ...kDeepSeekExperts, layers: 'all' },
  },
  HYV3ForCausalLM: {
    ...kPlain,
    modelType: 'hy_v3',
    defaults: {
      head_dim: 128,
      rms_norm_eps: 1e-5,
      rope_theta: 11_158_840,
      num_shared_experts: 1,
      router_scaling_factor: 2.826,
      first_k_dense_replace: 1,
    },
    // Of these the class reads none.
    expects: {
      ...{ qk_norm: true, route_norm: true, first_k_dense_replace: 1 },
      ...{ moe_router_use_sigmoid: true, moe_router_enable_expert_bias: true },
    },
    bias: 'from attention_bias',
    qkNorm: 'each head',
    experts: {
      ...kDeepSeekExperts,
      countKeys: ['num_experts', 'num_local_experts'],
      normalized: 'yes',
      scaleKey: 'router_scaling_factor',
      layers: 'from first_k_dense_replace, or by mlp_layer_types',
      sharedKey: { count: 'num_shared_experts' },
      names: {
        ...kUsualExpertNames,
        router: 'router.gate',
        correction: { name: 'expert_bias', isRow: false },
        shared: { name: 'shared_mlp', gate: null },
      },
    },
  },
  Glm4vMoeForConditionalGeneration: {
    ...kGlm4MoeTraits,
    modelType: 'glm4v_moe',
    defaults: { ...kGlm4MoeTraits.defaults, attention_bias: true },
    expects: { use_qk_norm: false },
    textOf: { modelType: 'glm4v_moe_text', mayBeFlat: false },
    qkNorm: 'none',
  },
}
