import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { parseModelConfig, readModelConfig } from '../../lib/model/config'
import { readGenerationConfig } from '../../lib/model/generation-config'
import type { JsonObject } from '../../lib/model/model-files'
import {
  expectRefusal,
  expectZipCacheError,
  kFixtures,
  kModels,
  ModelFolders,
  readJson,
} from './model-folder'

const folders = new ModelFolders()
afterAll(() => folders.remove())

const llama: JsonObject = {
  architectures: ['LlamaForCausalLM'],
  model_type: 'llama',
  hidden_size: 128,
  intermediate_size: 256,
  num_hidden_layers: 4,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  vocab_size: 320,
  max_position_embeddings: 4096,
  bos_token_id: 1,
  eos_token_id: 2,
  rope_theta: 500000,
}
const mistral = { ...llama, architectures: ['MistralForCausalLM'], model_type: 'mistral' }
const qwen2 = { ...llama, architectures: ['Qwen2ForCausalLM'], model_type: 'qwen2' }
const qwen3 = {
  ...llama,
  architectures: ['Qwen3ForCausalLM'],
  model_type: 'qwen3',
  head_dim: 64,
}
const phi3 = { ...llama, architectures: ['Phi3ForCausalLM'], model_type: 'phi3' }
const smollm3 = { ...llama, architectures: ['SmolLM3ForCausalLM'], model_type: 'smollm3' }
const gemma3 = {
  ...llama,
  architectures: ['Gemma3ForCausalLM'],
  model_type: 'gemma3_text',
  sliding_window: 512,
  rope_theta: 1e6,
  rope_local_base_freq: 10_000,
}
/** As the files of the larger models are: little is said. */
const gemma3Images = {
  architectures: ['Gemma3ForConditionalGeneration'],
  model_type: 'gemma3',
  eos_token_id: [1, 106],
  text_config: {
    hidden_size: 2560,
    intermediate_size: 10_240,
    model_type: 'gemma3_text',
    num_hidden_layers: 34,
    rope_scaling: { factor: 8, rope_type: 'linear' },
    sliding_window: 1024,
  },
  vision_config: { hidden_size: 1152 },
}
/** What files of Gemma 4 say of a model that takes keys of earlier layers in its last ones. */
const gemma4E = {
  architectures: ['Gemma4ForConditionalGeneration'],
  model_type: 'gemma4',
  eos_token_id: [1, 106],
  text_config: {
    attention_bias: false,
    attention_k_eq_v: false,
    bos_token_id: 2,
    enable_moe_block: false,
    eos_token_id: 1,
    final_logit_softcapping: 30,
    global_head_dim: 512,
    head_dim: 256,
    hidden_activation: 'gelu_pytorch_tanh',
    hidden_size: 1536,
    hidden_size_per_layer_input: 256,
    intermediate_size: 6144,
    layer_types: Array.from({ length: 35 }, (_, layer) =>
      layer % 5 === 4 ? 'full_attention' : 'sliding_attention',
    ),
    max_position_embeddings: 131_072,
    model_type: 'gemma4_text',
    moe_intermediate_size: null,
    num_attention_heads: 8,
    num_experts: null,
    num_global_key_value_heads: null,
    num_hidden_layers: 35,
    num_key_value_heads: 1,
    num_kv_shared_layers: 20,
    rms_norm_eps: 1e-6,
    rope_parameters: {
      full_attention: {
        partial_rotary_factor: 0.25,
        rope_theta: 1_000_000,
        rope_type: 'proportional',
      },
      sliding_attention: { rope_theta: 10_000, rope_type: 'default' },
    },
    sliding_window: 512,
    tie_word_embeddings: true,
    top_k_experts: null,
    use_bidirectional_attention: null,
    use_double_wide_mlp: true,
    vocab_size: 262_144,
    vocab_size_per_layer_input: 262_144,
  },
  vision_config: { hidden_size: 768 },
}
const mixtral = {
  ...llama,
  architectures: ['MixtralForCausalLM'],
  model_type: 'mixtral',
  num_local_experts: 8,
  num_experts_per_tok: 2,
}
const qwen3Moe = {
  ...qwen3,
  architectures: ['Qwen3MoeForCausalLM'],
  model_type: 'qwen3_moe',
  num_experts: 16,
  num_experts_per_tok: 4,
  moe_intermediate_size: 48,
}
/** The fields of Qwen1.5-MoE-A2.7B. */
const qwen15Moe = {
  architectures: ['Qwen2MoeForCausalLM'],
  attention_dropout: 0,
  bos_token_id: 151_643,
  eos_token_id: 151_643,
  hidden_act: 'silu',
  hidden_size: 2048,
  initializer_range: 0.02,
  intermediate_size: 5632,
  max_position_embeddings: 8192,
  max_window_layers: 21,
  model_type: 'qwen2_moe',
  num_attention_heads: 16,
  num_hidden_layers: 24,
  num_key_value_heads: 16,
  rms_norm_eps: 1e-6,
  rope_theta: 1_000_000,
  sliding_window: 32_768,
  tie_word_embeddings: false,
  torch_dtype: 'bfloat16',
  transformers_version: '4.39.0.dev0',
  use_cache: true,
  use_sliding_window: false,
  vocab_size: 151_936,
  decoder_sparse_step: 1,
  moe_intermediate_size: 1408,
  shared_expert_intermediate_size: 5632,
  num_experts_per_tok: 4,
  num_experts: 60,
  norm_topk_prob: false,
  output_router_logits: false,
  router_aux_loss_coef: 0.001,
}
/** The fields of Ministral-3-8B-Instruct-2512, but for its eyes. */
const ministral3 = {
  architectures: ['Mistral3ForConditionalGeneration'],
  dtype: 'bfloat16',
  image_token_index: 10,
  model_type: 'mistral3',
  multimodal_projector_bias: false,
  projector_hidden_act: 'gelu',
  quantization_config: {
    activation_scheme: 'static',
    dequantize: false,
    modules_to_not_convert: ['model.vision_tower', 'model.multi_modal_projector', 'lm_head'],
    quant_method: 'fp8',
    weight_block_size: null,
  },
  spatial_merge_size: 2,
  text_config: {
    attention_dropout: 0,
    head_dim: 128,
    hidden_act: 'silu',
    hidden_size: 4096,
    initializer_range: 0.02,
    intermediate_size: 14_336,
    max_position_embeddings: 262_144,
    model_type: 'ministral3',
    num_attention_heads: 32,
    num_hidden_layers: 34,
    num_key_value_heads: 8,
    rms_norm_eps: 1e-5,
    rope_parameters: {
      beta_fast: 32,
      beta_slow: 1,
      factor: 16,
      llama_4_scaling_beta: 0.1,
      mscale: 1,
      mscale_all_dim: 1,
      original_max_position_embeddings: 16_384,
      rope_theta: 1_000_000,
      rope_type: 'yarn',
      type: 'yarn',
    },
    sliding_window: null,
    use_cache: true,
    vocab_size: 131_072,
  },
  transformers_version: '5.0.0.dev0',
  vision_feature_layer: -1,
}
/** The fields of GLM-4.5-Air. */
const glm45Air = {
  architectures: ['Glm4MoeForCausalLM'],
  attention_bias: true,
  attention_dropout: 0,
  pad_token_id: 151_329,
  eos_token_id: [151_329, 151_336, 151_338],
  head_dim: 128,
  hidden_act: 'silu',
  hidden_size: 4096,
  partial_rotary_factor: 0.5,
  initializer_range: 0.02,
  intermediate_size: 10_944,
  max_position_embeddings: 131_072,
  model_type: 'glm4_moe',
  moe_intermediate_size: 1408,
  norm_topk_prob: true,
  num_attention_heads: 96,
  n_group: 1,
  topk_group: 1,
  n_routed_experts: 128,
  n_shared_experts: 1,
  routed_scaling_factor: 1,
  num_experts_per_tok: 8,
  first_k_dense_replace: 1,
  num_hidden_layers: 46,
  num_key_value_heads: 8,
  num_nextn_predict_layers: 1,
  rms_norm_eps: 1e-5,
  rope_scaling: null,
  rope_theta: 1_000_000,
  tie_word_embeddings: false,
  torch_dtype: 'bfloat16',
  transformers_version: '4.54.0',
  use_cache: true,
  use_qk_norm: false,
  vocab_size: 151_552,
}
/** What files of dots.llm1 say. */
const dots1 = {
  architectures: ['Dots1ForCausalLM'],
  attention_bias: false,
  attention_dropout: 0,
  eos_token_id: 151_645,
  first_k_dense_replace: 1,
  hidden_act: 'silu',
  hidden_size: 4096,
  initializer_range: 0.02,
  intermediate_size: 10_944,
  max_position_embeddings: 32_768,
  max_window_layers: 62,
  model_type: 'dots1',
  moe_intermediate_size: 1408,
  moe_layer_freq: 1,
  n_routed_experts: 128,
  n_shared_experts: 2,
  norm_topk_prob: true,
  num_attention_heads: 32,
  num_experts_per_tok: 6,
  num_hidden_layers: 62,
  num_key_value_heads: 32,
  pretraining_tp: 1,
  rms_norm_eps: 1e-5,
  rope_scaling: null,
  rope_theta: 10_000_000,
  routed_scaling_factor: 2.5,
  sliding_window: null,
  scoring_func: 'noaux_tc',
  tie_word_embeddings: false,
  torch_dtype: 'bfloat16',
  use_cache: true,
  use_sliding_window: false,
  vocab_size: 152_064,
}
/** What files of MiniMax-M2 say. */
const minimaxM2 = {
  architectures: ['MiniMaxM2ForCausalLM'],
  attention_dropout: 0,
  head_dim: 128,
  hidden_act: 'silu',
  hidden_size: 3072,
  initializer_range: 0.02,
  intermediate_size: 1536,
  max_position_embeddings: 196_608,
  model_type: 'minimax_m2',
  num_attention_heads: 48,
  num_experts_per_tok: 8,
  num_hidden_layers: 62,
  num_key_value_heads: 8,
  num_local_experts: 256,
  num_mtp_modules: 3,
  output_router_logits: false,
  qk_norm_type: 'per_layer',
  quantization_config: {
    activation_scheme: 'dynamic',
    fmt: 'float8_e4m3fn',
    modules_to_not_convert: ['gate', 'e_score_correction_bias', 'lm_head'],
    quant_method: 'fp8',
    weight_block_size: [128, 128],
  },
  rms_norm_eps: 1e-6,
  rope_theta: 5_000_000,
  rotary_dim: 64,
  router_jitter_noise: 0,
  scoring_func: 'sigmoid',
  shared_intermediate_size: 0,
  sliding_window: null,
  tie_word_embeddings: false,
  use_cache: true,
  use_mtp: true,
  use_qk_norm: true,
  use_routing_bias: true,
  vocab_size: 200_064,
}
/** The fields of ERNIE-4.5-21B-A3B-PT. */
const ernie45Moe = {
  architectures: ['Ernie4_5_MoeForCausalLM'],
  bos_token_id: 1,
  eos_token_id: 2,
  hidden_act: 'silu',
  hidden_size: 2560,
  intermediate_size: 12_288,
  max_position_embeddings: 131_072,
  model_type: 'ernie4_5_moe',
  moe_capacity: [64, 64, 64],
  moe_gate: 'topk',
  moe_intermediate_size: 1536,
  moe_k: 6,
  moe_layer_interval: 1,
  moe_layer_start_index: 1,
  moe_num_experts: 64,
  moe_num_shared_experts: 2,
  moe_use_aux_free: true,
  num_attention_heads: 20,
  num_hidden_layers: 28,
  num_key_value_heads: 4,
  num_nextn_predict_layers: 1,
  pad_token_id: 0,
  rms_norm_eps: 1e-5,
  rope_scaling: null,
  rope_theta: 500_000,
  tie_word_embeddings: true,
  torch_dtype: 'bfloat16',
  use_bias: false,
  use_cache: true,
  vocab_size: 103_424,
}
const kindsOfEyes = { vision_config: { hidden_size: 1152 } }
const mistral3 = {
  architectures: ['Mistral3ForConditionalGeneration'],
  model_type: 'mistral3',
  text_config: { ...llama, architectures: undefined, model_type: 'mistral', sliding_window: null },
  ...kindsOfEyes,
}
/** As hubs have it: the text model's keys beside the others. */
const qwen25Vl = {
  ...llama,
  architectures: ['Qwen2_5_VLForConditionalGeneration'],
  model_type: 'qwen2_5_vl',
  rope_theta: 1e6,
  rope_scaling: { type: 'mrope', mrope_section: [4, 6, 6] },
  ...kindsOfEyes,
}
const full = ['full_attention', 'full_attention', 'full_attention', 'full_attention']

/** The refusal of a config; undefined where it is accepted. */
function refusal(raw: JsonObject): unknown {
  try {
    parseModelConfig(raw)
    return undefined
  } catch (error) {
    return error
  }
}

describe('readModelConfig on the fixtures', () => {
  const shared = {
    nLayers: 3,
    hiddenSize: 128,
    intermediateSize: 256,
    intermediateSizes: [256, 256, 256],
    experts: null,
    nHeads: 4,
    nKvHeads: 2,
    globalHeads: null,
    kvSources: [0, 1, 2],
    vocabSize: 320,
    maxPositions: 4096,
    bosTokenId: 1,
    eosTokenIds: [2],
    slidingWindow: [0, 0, 0],
    activation: 'silu',
    embeddingScale: 1,
    roundsEmbeddingScale: false,
    logitsScale: 1,
    logitsCap: 0,
    perLayerInputs: null,
    scalesLayers: false,
    queryGrowth: null,
    unitOffsetNorms: false,
    norms: {
      attention: 'input_layernorm',
      attentionOutput: null,
      mlp: 'post_attention_layernorm',
      mlpOutput: null,
    },
    quantization: null,
    hasSinks: false,
    gatesAttention: false,
    recurrence: null,
    interleavedRope: false,
    qkNormNames: { q: 'q_norm', k: 'k_norm' },
    normalizesValues: false,
    mlpNames: { block: 'mlp', gateUp: 'gate_up_proj', down: 'down_proj' },
    fusedProjections: 'none',
  }
  const none = { qkv: false, output: false }
  const cases = {
    llama: {
      architecture: 'LlamaForCausalLM',
      headDim: 32,
      rmsNormEps: 1e-5,
      tieWordEmbeddings: false,
      attentionBias: none,
      qkNorm: 'none',
      rope: { type: 'default', theta: 10000 },
    },
    'llama3-rope': {
      architecture: 'LlamaForCausalLM',
      headDim: 64,
      rmsNormEps: 1e-5,
      tieWordEmbeddings: true,
      attentionBias: none,
      qkNorm: 'none',
      rope: {
        type: 'llama3',
        theta: 500000,
        factor: 8,
        lowFreqFactor: 1,
        highFreqFactor: 4,
        originalMaxPositions: 512,
      },
    },
    mistral: {
      architecture: 'MistralForCausalLM',
      headDim: 32,
      rmsNormEps: 1e-6,
      tieWordEmbeddings: false,
      attentionBias: none,
      qkNorm: 'none',
      rope: { type: 'default', theta: 1e6 },
    },
    qwen2: {
      architecture: 'Qwen2ForCausalLM',
      headDim: 32,
      rmsNormEps: 1e-6,
      tieWordEmbeddings: true,
      attentionBias: { qkv: true, output: false },
      qkNorm: 'none',
      rope: { type: 'default', theta: 1e6 },
    },
    qwen3: {
      architecture: 'Qwen3ForCausalLM',
      headDim: 64,
      rmsNormEps: 1e-6,
      tieWordEmbeddings: false,
      attentionBias: none,
      qkNorm: 'each head',
      rope: { type: 'default', theta: 1e6 },
    },
  }
  test.each(Object.entries(cases))('%s', async (name, { rope, ...expected }) => {
    const { headDim } = expected
    const heads = { rotaryDim: headDim, softmaxScale: 1 / Math.sqrt(headDim) }
    const ropes = [rope, rope, rope]
    const config = await readModelConfig(join(kFixtures, 'hf', name))
    expect(config).toEqual({ ...shared, ...heads, ropes, ...expected })
  })

  test.each(['line-retrieval', 'line-retrieval-base'])('%s', async (name) => {
    const config = await readModelConfig(join(kModels, name))
    expect(config).toMatchObject({ nLayers: 3, headDim: 64, eosTokenIds: [2], bosTokenId: 1 })
    expect(config.ropes[2]).toEqual({ type: 'default', theta: 1e8 })
  })
})

describe('defaults and forms', () => {
  test('head_dim and KV heads follow from the others', () => {
    const { num_key_value_heads, ...rest } = llama
    expect(parseModelConfig(rest)).toMatchObject({ nKvHeads: 4, headDim: 32, rmsNormEps: 1e-6 })
    expect(parseModelConfig({ ...mistral, num_key_value_heads: null }).nKvHeads).toBe(4)
    expect(parseModelConfig({ ...llama, head_dim: 64 }).headDim).toBe(64)
    const { head_dim, ...noHeadDim } = qwen3
    expect(parseModelConfig(noHeadDim).headDim).toBe(128)
    expect(parseModelConfig({ ...qwen3, head_dim: null }).headDim).toBe(32)
  })

  test('attention biases', () => {
    const bias = (raw: JsonObject) => parseModelConfig(raw).attentionBias
    expect(bias({ ...llama, attention_bias: true })).toEqual({ qkv: true, output: true })
    expect(bias({ ...qwen3, attention_bias: true })).toEqual({ qkv: true, output: true })
    expect(bias({ ...qwen2, attention_bias: true })).toEqual({ qkv: true, output: false })
    expect(bias(mistral)).toEqual({ qkv: false, output: false })
  })

  test('ends of text: one, several, none, from generation_config.json', async () => {
    expect(parseModelConfig({ ...llama, eos_token_id: [7, 9, 7] }).eosTokenIds).toEqual([7, 9])
    expect(parseModelConfig({ ...llama, eos_token_id: null }).eosTokenIds).toEqual([])
    const generation = { eos_token_id: [5, 6], bos_token_id: 3 }
    const dir = folders.write({ 'config.json': llama, 'generation_config.json': generation })
    expect(await readModelConfig(dir)).toMatchObject({ eosTokenIds: [5, 6], bosTokenId: 3 })
    const without = folders.write({ 'config.json': llama, 'generation_config.json': {} })
    expect(await readModelConfig(without)).toMatchObject({ eosTokenIds: [2], bosTokenId: 1 })
  })

  test('a byte order mark is read over', async () => {
    const dir = folders.write({ 'config.json': `\uFEFF${JSON.stringify(llama)}` })
    expect((await readModelConfig(dir)).hiddenSize).toBe(128)
  })
})

describe('sliding windows', () => {
  const window = (raw: JsonObject) => parseModelConfig(raw).slidingWindow

  test('llama has none', () => {
    expect(window({ ...llama, sliding_window: 8 })).toEqual([0, 0, 0, 0])
  })

  test('mistral: every layer; absent is 4096, null is none', () => {
    expect(window({ ...mistral, sliding_window: 8 })).toEqual([8, 8, 8, 8])
    const long = { ...mistral, max_position_embeddings: 32768 }
    expect(window(long)).toEqual([4096, 4096, 4096, 4096])
    expect(window({ ...long, sliding_window: 32768 })).toEqual([0, 0, 0, 0]) // hides nothing
    expect(window({ ...mistral, sliding_window: null })).toEqual([0, 0, 0, 0])
    expect(window({ ...mistral, sliding_window: null, layer_types: full })).toEqual([0, 0, 0, 0])
  })

  test.each([
    ['qwen2', qwen2],
    ['qwen3', qwen3],
  ])('%s: from max_window_layers on, or as layer_types says', (_, raw) => {
    const on = { ...raw, use_sliding_window: true, sliding_window: 8 }
    expect(window({ ...raw, sliding_window: 8, max_window_layers: 0 })).toEqual([0, 0, 0, 0])
    expect(window({ ...on, max_window_layers: 2 })).toEqual([0, 0, 8, 8])
    expect(window({ ...on, max_window_layers: 0 })).toEqual([8, 8, 8, 8])
    expect(window(on)).toEqual([0, 0, 0, 0]) // max_window_layers is 28 where it is absent
    const long = { ...on, max_position_embeddings: 32768 }
    const { sliding_window, ...unsaid } = long
    expect(window({ ...unsaid, max_window_layers: 3 })).toEqual([0, 0, 0, 4096])
    expect(window({ ...on, sliding_window: null, max_window_layers: 0 })).toEqual([0, 0, 0, 0])
    const types = [...full.slice(1), 'sliding_attention']
    expect(window({ ...on, max_window_layers: 0, layer_types: types })).toEqual([0, 0, 0, 8])
  })
})

describe('rope', () => {
  const rope = (raw: JsonObject) => parseModelConfig({ ...llama, ...raw }).ropes[0]

  test('default and linear, with either key for the type', () => {
    expect(rope({})).toEqual({ type: 'default', theta: 500000 })
    expect(rope({ rope_theta: undefined })).toEqual({ type: 'default', theta: 10000 })
    expect(rope({ rope_scaling: {} })).toEqual({ type: 'default', theta: 500000 })
    const linear = { type: 'linear', theta: 500000, factor: 2 }
    expect(rope({ rope_scaling: { type: 'linear', factor: 2 } })).toEqual(linear)
    expect(rope({ rope_scaling: { rope_type: 'linear', factor: 2.0 } })).toEqual(linear)
  })

  test('rope_parameters of transformers 5', () => {
    const parameters = {
      rope_type: 'llama3',
      rope_theta: 1e6,
      factor: 32,
      low_freq_factor: 1,
      high_freq_factor: 4,
      original_max_position_embeddings: 8192,
      partial_rotary_factor: 1.0,
    }
    const expected = {
      type: 'llama3',
      theta: 1e6,
      factor: 32,
      lowFreqFactor: 1,
      highFreqFactor: 4,
      originalMaxPositions: 8192,
    }
    expect(rope({ rope_theta: undefined, rope_parameters: parameters })).toEqual(expected)
    expect(rope({ rope_scaling: null, rope_parameters: parameters })).toEqual(expected)
    expect(rope({ rope_parameters: { rope_theta: 20000, rope_type: 'default' } })).toEqual({
      type: 'default',
      theta: 20000,
    })
  })

  test('yarn: what is not said', () => {
    expect(rope({ rope_scaling: { type: 'yarn', factor: 4 } })).toEqual({
      type: 'yarn',
      theta: 500000,
      factor: 4,
      originalMaxPositions: 4096,
      attentionFactor: null,
      mscale: null,
      mscaleAllDim: null,
      betaFast: 32,
      betaSlow: 1,
      truncate: true,
    })
    const all = {
      rope_type: 'yarn',
      factor: null,
      original_max_position_embeddings: 1024,
      attention_factor: 1.5,
      mscale: 0.7,
      mscale_all_dim: 0,
      beta_fast: 0,
      beta_slow: 2,
      truncate: false,
    }
    expect(rope({ rope_scaling: all, original_max_position_embeddings: 2048 })).toEqual({
      type: 'yarn',
      theta: 500000,
      factor: 2,
      originalMaxPositions: 2048,
      attentionFactor: 1.5,
      mscale: 0.7,
      mscaleAllDim: null,
      betaFast: 32,
      betaSlow: 2,
      truncate: false,
    })
  })
})

describe('architectures of their own', () => {
  test('ministral: windows by layer, or in all', () => {
    const ministral = {
      ...mistral,
      architectures: ['MinistralForCausalLM'],
      model_type: 'ministral',
    }
    const windows = (changes: JsonObject) =>
      parseModelConfig({ ...ministral, sliding_window: 99, ...changes }).slidingWindow
    expect(windows({})).toEqual([99, 99, 99, 99])
    expect(windows({ layer_types: ['sliding_attention', ...full.slice(1)] })).toEqual([99, 0, 0, 0])
    expect(windows({ sliding_window: null, layer_types: full })).toEqual([0, 0, 0, 0])
  })

  test('seed-oss: biases by two keys', () => {
    const seed = { ...llama, architectures: ['SeedOssForCausalLM'], model_type: 'seed_oss' }
    const biases = (changes: JsonObject) => parseModelConfig({ ...seed, ...changes }).attentionBias
    expect(biases({})).toEqual({ qkv: true, output: false })
    expect(biases({ attention_bias: false, attention_out_bias: true })).toEqual({
      ...{ qkv: false, output: true },
    })
    expect(parseModelConfig(seed).headDim).toBe(128)
  })

  test('granite: four numbers by which it multiplies, one of them for free', () => {
    const granite = { ...llama, architectures: ['GraniteForCausalLM'], model_type: 'granite' }
    const scales = {
      embedding_multiplier: 12,
      attention_multiplier: 0.015625,
      residual_multiplier: 0.25,
      logits_scaling: 8,
      rms_norm_eps: 1e-5,
    }
    const none = { embeddingScale: 1, logitsScale: 1, softmaxScale: 1, rmsNormEps: 1e-6 }
    expect(parseModelConfig({ ...granite, ...scales })).toMatchObject({
      embeddingScale: 48,
      roundsEmbeddingScale: false,
      rmsNormEps: 16e-5,
      softmaxScale: 0.015625,
      logitsScale: 0.125,
    })
    expect(parseModelConfig(granite)).toMatchObject(none)
    // No other architecture reads them.
    expect(parseModelConfig({ ...llama, ...scales }).logitsScale).toBe(1)
  })

  test('granite 4: MLPs have names of their own, layers of Mamba 2 a state', () => {
    const granite4 = {
      ...{ ...llama, architectures: ['GraniteMoeHybridForCausalLM'] },
      model_type: 'granitemoehybrid',
      ...{ embedding_multiplier: 12, residual_multiplier: 0.25 },
      ...{ attention_multiplier: 0.015625, logits_scaling: 8 },
      layer_types: full.map(() => 'attention'),
      ...{ num_local_experts: 0, num_experts_per_tok: 0, shared_intermediate_size: 192 },
      ...{ position_embedding_type: 'rope', mamba_n_heads: 8, normalization_function: 'rmsnorm' },
    }
    const own = (changes: JsonObject = {}) => parseModelConfig({ ...granite4, ...changes })
    expect(own()).toMatchObject({
      ...{ intermediateSize: 192, experts: null, softmaxScale: 0.015625, embeddingScale: 48 },
      mlpNames: { block: 'shared_mlp', gateUp: 'input_linear', down: 'output_linear' },
      ...{ fusedProjections: 'gate and up', slidingWindow: full.map(() => 0) },
      ropes: full.map(() => ({ type: 'default', theta: 500_000 })),
    })
    expect(own({ layer_types: full })).toEqual(own())
    for (const position_embedding_type of ['nope', null]) {
      expect(own({ position_embedding_type }).ropes).toEqual(full.map(() => null))
    }
    const refused = (changes: JsonObject, message: string) =>
      expect(() => own(changes)).toThrow(message)
    refused({ layer_types: ['sliding_attention', ...full.slice(1)] }, 'layer_types holds "sliding')
    refused({ layer_types: null }, 'layer_types is missing: no layer would attend')
    refused({ layer_types: full.map(() => 'mamba') }, 'layer_types holds no "full_attention"')
    const width = own().hiddenSize
    const hybrid = {
      layer_types: ['mamba', ...full.slice(2), 'linear_attention'],
      ...{
        mamba_d_state: 32,
        mamba_n_groups: 2,
        mamba_d_head: 'auto',
        position_embedding_type: 'nope',
      },
    }
    expect(own(hybrid)).toMatchObject({
      recurrence: {
        rule: 'selective scan',
        layers: full.map((_, layer) => layer === 0 || layer === full.length - 1),
        ...{ nKeyHeads: 2, nValueHeads: 8, keyDim: 32, valueDim: width / 4, convWidth: 4 },
        ...{ normEps: own().rmsNormEps * 0.25 ** 2, byKeyHeads: false },
      },
    })
    for (const [key, value] of [
      ['mamba_d_state', 48],
      ['mamba_n_groups', 3],
      ['mamba_d_head', 16],
      ['mamba_n_heads', 0],
      ['mamba_d_conv', 9],
      ['mamba_expand', 0],
      ['mamba_conv_bias', false],
      ['mamba_proj_bias', true],
      ['time_step_limit', [0.01, null]],
      ['time_step_limit', [0, 0.1]],
    ] as const) {
      const name = key === 'mamba_d_head' || key === 'mamba_n_groups' ? 'mamba_n_heads' : key
      refused({ ...hybrid, [key]: value }, `${name} `)
    }
    expect(own({ ...hybrid, time_step_limit: [0, { __float__: 'Infinity' }] })).toEqual(own(hybrid))
    expect(own({ num_local_experts: 6, num_experts_per_tok: 2 })).toMatchObject({
      experts: {
        ...{ count: 6, perRow: 2, sharedSize: 192, normalized: true },
        names: { block: 'block_sparse_moe', shared: { joint: { block: 'shared_mlp' } } },
      },
    })
    refused({ shared_intermediate_size: null }, 'shared_intermediate_size is missing')
  })

  test('olmo: norms behind attention and the MLP, and of all heads together', () => {
    const olmo2 = { ...llama, architectures: ['Olmo2ForCausalLM'], model_type: 'olmo2' }
    const norms = {
      ...{ attention: null, attentionOutput: 'post_attention_layernorm' },
      ...{ mlp: null, mlpOutput: 'post_feedforward_layernorm' },
    }
    const config = parseModelConfig(olmo2)
    expect(config).toMatchObject({ norms, qkNorm: 'all heads', rmsNormEps: 1e-5 })
    const olmo3 = { ...olmo2, architectures: ['Olmo3ForCausalLM'], model_type: 'olmo3' }
    const yarn = { rope_type: 'yarn', factor: 8, original_max_position_embeddings: 512 }
    const own = parseModelConfig({ ...olmo3, sliding_window: 99, rope_scaling: yarn })
    expect(own).toMatchObject({ norms, slidingWindow: [99, 99, 99, 0] })
    const local = { type: 'default', theta: 500_000 }
    expect(own.ropes).toMatchObject([local, local, local, { type: 'yarn', factor: 8 }])
  })

  test('exaone4: what has a window rotates, and nothing else where there are any', () => {
    const exaone4 = { ...llama, architectures: ['Exaone4ForCausalLM'], model_type: 'exaone4' }
    const layers = (changes: JsonObject) => {
      const { ropes, slidingWindow } = parseModelConfig({ ...exaone4, ...changes })
      return ropes.map((rope, layer) => [rope !== null, slidingWindow[layer]])
    }
    expect(layers({ sliding_window: 99, sliding_window_pattern: 2 })).toEqual([
      ...[
        [true, 99],
        [false, 0],
        [true, 99],
        [false, 0],
      ],
    ])
    // As long as the context: it hides nothing, and says still which layers rotate.
    expect(layers({})).toEqual([
      [true, 0],
      [true, 0],
      [true, 0],
      [false, 0],
    ])
    expect(layers({ sliding_window: null })).toEqual(full.map(() => [true, 0]))
    expect(layers({ sliding_window: null, layer_types: full })).toEqual(full.map(() => [true, 0]))
    const byText = { sliding_window: 99, sliding_window_pattern: 'LLLG' }
    expect(layers({ ...byText, layer_types: full })).toEqual(full.map(() => [false, 0]))
    expectZipCacheError(
      refusal({ ...exaone4, ...byText }),
      'ERR_ZC_CONFIG',
      'sliding_window_pattern is "LLLG", expected an integer',
    )
    const sliding = ['sliding_attention', ...full.slice(1)]
    expectZipCacheError(
      refusal({ ...exaone4, sliding_window: null, layer_types: sliding }),
      'ERR_ZC_CONFIG',
      'layer_types holds "sliding_attention" while sliding_window is null',
    )
  })

  test('glm and ernie: pairs of neighbours rotate, of glm in half of each head', () => {
    const glm = {
      ...{ ...llama, architectures: ['GlmForCausalLM'], model_type: 'glm' },
      ...{ head_dim: 64, attention_bias: true },
    }
    const interleavedRope = true
    const own = { interleavedRope, rotaryDim: 32, fusedProjections: 'gate and up' }
    const attentionBias = { qkv: true, output: false }
    expect(parseModelConfig(glm)).toMatchObject({ ...own, attentionBias, rmsNormEps: 1.5625e-7 })
    const glm4 = { ...glm, architectures: ['Glm4ForCausalLM'], model_type: 'glm4' }
    expect(parseModelConfig({ ...glm4, attention_bias: false })).toMatchObject({
      ...own,
      norms: { mlp: 'post_attention_layernorm', mlpOutput: 'post_mlp_layernorm' },
      attentionBias: { qkv: false, output: false },
    })
    const ernie = { ...llama, architectures: ['Ernie4_5ForCausalLM'], model_type: 'ernie4_5' }
    const plain = { interleavedRope, headDim: 128, rotaryDim: 128, tieWordEmbeddings: true }
    expect(parseModelConfig(ernie)).toMatchObject(plain)
    expectZipCacheError(
      refusal({ ...ernie, use_bias: true }),
      'ERR_ZC_CONFIG',
      'use_bias is true; biases in the MLP are not supported',
    )
  })

  test('hunyuan: norms of rotated heads, and a base that grows with alpha', () => {
    // As its files are.
    const rope_scaling = {
      ...{ alpha: 1000, beta_fast: 32, beta_slow: 1, factor: 1, mscale: 1, mscale_all_dim: 1 },
      type: 'dynamic',
    }
    const hunyuan = {
      ...{ ...llama, architectures: ['HunYuanDenseV1ForCausalLM'] },
      ...{ model_type: 'hunyuan_v1_dense', head_dim: 64, rope_theta: 10_000, rope_scaling },
      ...{ use_qk_norm: true, use_cla: false, attention_bias: false, mlp_bias: false },
    }
    const own = (changes: JsonObject = {}) => parseModelConfig({ ...hunyuan, ...changes })
    const theta = 10_000 * 1000 ** (64 / 62)
    expect(own()).toMatchObject({
      ...{ qkNorm: 'each head, rotated', rmsNormEps: 1e-5, headDim: 64, rotaryDim: 64 },
      qkNormNames: { q: 'query_layernorm', k: 'key_layernorm' },
      ropes: full.map(() => ({ type: 'default', theta })),
    })
    expect(own({ rope_scaling: null }).ropes[0]).toEqual({ type: 'default', theta: 10_000 })
    expect(own({ attention_bias: true }).attentionBias).toEqual({ qkv: true, output: true })
    expect(own({ num_key_value_heads: null }).nKvHeads).toBe(4)
    const refused = (changes: JsonObject, message: string) =>
      expect(() => own(changes)).toThrow(message)
    const withRope = (changes: JsonObject) => ({ rope_scaling: { ...rope_scaling, ...changes } })
    refused(withRope({ alpha: null }), 'rope_scaling.alpha is missing, expected a number > 0')
    refused(withRope({ alpha: 1e29 }), 'rope_scaling.alpha is 1e+29; with it rope_theta is ')
    refused({ use_qk_norm: false }, 'use_qk_norm is false, expected true')
    refused({ use_cla: true }, 'use_cla is true, expected false')
    expect(() => parseModelConfig({ ...llama, rope_scaling })).toThrow(
      'rope_scaling.rope_type is "dynamic", expected "default"',
    )
  })

  test('phi3: fused projections, partial rotation, factors for long contexts', () => {
    const factors = (first: number) => Array.from({ length: 12 }, (_, i) => first + i)
    const long = (type: string) => ({
      ...phi3,
      num_key_value_heads: 2,
      max_position_embeddings: 131_072,
      original_max_position_embeddings: 4096,
      partial_rotary_factor: 0.75,
      sliding_window: 262_144,
      rope_scaling: { type, short_factor: factors(1), long_factor: factors(2) },
    })
    const config = parseModelConfig(long('longrope'))
    expect(config).toMatchObject({ fusedProjections: 'all', headDim: 32, rotaryDim: 24 })
    expect(config).toMatchObject({ rmsNormEps: 1e-5, slidingWindow: [0, 0, 0, 0] })
    expect(config.ropes[0]).toEqual({
      type: 'longrope',
      theta: 500000,
      originalMaxPositions: 4096,
      shortFactor: factors(1),
      longFactor: factors(2),
      attentionFactor: Math.sqrt(1 + Math.log(32) / Math.log(4096)),
    })
    for (const type of ['su', 'yarn']) expect(parseModelConfig(long(type))).toEqual(config)
    expect(parseModelConfig({ ...phi3, sliding_window: 2047 }).slidingWindow[3]).toBe(2047)
    expect(parseModelConfig(phi3)).toMatchObject({ rotaryDim: 32, slidingWindow: [0, 0, 0, 0] })
  })

  test('smollm3: layers that do not rotate', () => {
    const turns = (raw: JsonObject) => parseModelConfig(raw).ropes.map((rope) => rope !== null)
    expect(turns(smollm3)).toEqual([true, true, true, false])
    expect(turns({ ...smollm3, no_rope_layer_interval: 2 })).toEqual([true, false, true, false])
    expect(turns({ ...smollm3, no_rope_layers: [0, 1, 1, 0, 1] })).toEqual([
      ...[false, true, true, false],
    ])
    expect(parseModelConfig(smollm3).tieWordEmbeddings).toBe(true)
    const windows = { use_sliding_window: true, sliding_window: 8 }
    expect(parseModelConfig({ ...smollm3, ...windows }).slidingWindow).toEqual([0, 0, 0, 8])
  })

  test('gemma: scales and norms of its own, and one norm before each part of a layer', () => {
    const gemma = { ...llama, architectures: ['GemmaForCausalLM'], model_type: 'gemma' }
    const own = (changes: JsonObject = {}) => parseModelConfig({ ...gemma, ...changes })
    expect(own()).toMatchObject({
      ...{ headDim: 256, qkNorm: 'none', softmaxScale: 1 / 16, tieWordEmbeddings: true },
      ...{ embeddingScale: Math.sqrt(128), roundsEmbeddingScale: true, unitOffsetNorms: true },
      norms: { attention: 'input_layernorm', attentionOutput: null, mlpOutput: null },
      slidingWindow: full.map(() => 0),
      attentionBias: { qkv: false, output: false },
    })
    expect(own({ head_dim: 64 }).softmaxScale).toBe(1 / 8)
    expect(own({ attention_bias: true }).attentionBias).toEqual({ qkv: true, output: true })
    // What the first files call "gelu" is meant by tanh.
    const activations = [undefined, 'gelu', 'gelu_pytorch_tanh', 'silu'].map(
      (hidden_act) => own(hidden_act === undefined ? {} : { hidden_act }).activation,
    )
    expect(activations).toEqual(['gelu_tanh', 'gelu_tanh', 'gelu_tanh', 'silu'])
    expect(() => own({ hidden_act: 'relu' })).toThrow('hidden_act is "relu", expected "silu" or')
    expect(() => own({ query_pre_attn_scalar: 64 })).toThrow(
      'query_pre_attn_scalar is 64, expected null',
    )
    expect(() => own({ use_bidirectional_attention: true })).toThrow(
      'rows that see later ones are not supported',
    )
    const others = { ...gemma, architectures: ['Gemma2ForCausalLM'], model_type: 'gemma2' }
    expect(() => parseModelConfig(others)).toThrow('architectures is "Gemma2ForCausalLM", expected')
  })

  test('gemma3: its norms and scales, windows by pattern, a rope for them', () => {
    const config = parseModelConfig(gemma3)
    expect(config).toMatchObject({
      headDim: 256,
      qkNorm: 'each head',
      activation: 'gelu_tanh',
      embeddingScale: Math.sqrt(128),
      unitOffsetNorms: true,
      norms: { attentionOutput: 'post_attention_layernorm', mlp: 'pre_feedforward_layernorm' },
      softmaxScale: 1 / 16,
      tieWordEmbeddings: true,
    })
    const windows = (raw: JsonObject) => parseModelConfig({ ...gemma3, ...raw }).slidingWindow
    expect(windows({})).toEqual([512, 512, 512, 512])
    expect(windows({ sliding_window_pattern: 2 })).toEqual([512, 0, 512, 0])
    expect(windows({ layer_types: full })).toEqual([0, 0, 0, 0])
    const pattern = { ...gemma3, sliding_window_pattern: 2 }
    const local = { type: 'default', theta: 10_000 }
    const linear = { type: 'linear', theta: 1e6, factor: 8 }
    const old = { ...pattern, rope_scaling: { rope_type: 'linear', factor: 8 } }
    expect(parseModelConfig(old).ropes).toEqual([local, linear, local, linear])
    const { rope_theta, rope_local_base_freq, ...rest } = pattern
    const byType = {
      full_attention: { rope_type: 'linear', factor: 8 },
      sliding_attention: { rope_type: 'default', rope_theta: 20_000 },
    }
    expect(parseModelConfig({ ...rest, rope_parameters: byType }).ropes.slice(0, 2)).toEqual([
      { type: 'default', theta: 20_000 },
      linear,
    ])
    // A window that hides nothing is none, and its layers keep their rope.
    const wide = parseModelConfig({ ...pattern, sliding_window: 4096 })
    expect(wide.slidingWindow).toEqual([0, 0, 0, 0])
    expect(wide.ropes[0]).toEqual(local)
  })

  const gemma4 = {
    ...{ ...llama, architectures: ['Gemma4ForCausalLM'], model_type: 'gemma4_text' },
    ...{ rope_theta: undefined, num_hidden_layers: 6, sliding_window: 512 },
    ...{ hidden_size_per_layer_input: 0, attention_k_eq_v: true, num_global_key_value_heads: 1 },
  }
  const ofGemma4 = (changes: JsonObject = {}) => parseModelConfig({ ...gemma4, ...changes })
  const local = { type: 'default', theta: 10_000 }
  const globally = { type: 'proportional', theta: 1e6, share: 0.25, factor: 1 }
  const kGlobal = [false, false, false, false, false, true]

  test('gemma4: layers that see all tokens have other heads, whose values are their keys', () => {
    const shape = { nKvHeads: 1, headDim: 512, rotaryDim: 512 }
    const globalHeads = { ...shape, layers: kGlobal, valuesAreKeys: true }
    expect(ofGemma4()).toMatchObject({
      ...{ nKvHeads: 2, headDim: 256, rotaryDim: 256, globalHeads, softmaxScale: 1 },
      ...{ kvSources: [0, 1, 2, 3, 4, 5], slidingWindow: [512, 512, 512, 512, 512, 0] },
      ...{ qkNorm: 'each head', normalizesValues: true, unitOffsetNorms: false },
      ...{ embeddingScale: Math.sqrt(128), roundsEmbeddingScale: true, tieWordEmbeddings: true },
      ...{ activation: 'gelu_tanh', scalesLayers: true, logitsCap: 0, experts: null },
      ...{ perLayerInputs: null, intermediateSizes: kGlobal.map(() => 256) },
      ropes: [local, local, local, local, local, globally],
      norms: { attentionOutput: 'post_attention_layernorm', mlp: 'pre_feedforward_layernorm' },
    })
    // Whatever there is, the last layer sees all.
    expect(ofGemma4({ num_hidden_layers: 4 }).slidingWindow).toEqual([512, 512, 512, 0])
    const windows = full.map(() => 'sliding_attention')
    const forced = ofGemma4({ num_hidden_layers: 4, layer_types: windows })
    expect(forced.globalHeads?.layers).toEqual([false, false, false, true])
    expect(forced.ropes.map((rope) => rope?.type)).toEqual([
      ...['default', 'default', 'default', 'proportional'],
    ])
    // A window that hides nothing is none, and its layers keep their heads.
    const wide = ofGemma4({ sliding_window: 4096 })
    expect([wide.slidingWindow, wide.globalHeads?.layers]).toEqual([kGlobal.map(() => 0), kGlobal])
    // The number of their key heads is nothing to a model with weights of values.
    const { globalHeads: own } = ofGemma4({ attention_k_eq_v: false, global_head_dim: 64 })
    expect(own).toEqual({
      ...{ nKvHeads: 2, headDim: 64, rotaryDim: 64, layers: kGlobal, valuesAreKeys: false },
    })
    expect(ofGemma4({ attention_k_eq_v: false, global_head_dim: 256 }).globalHeads).toBeNull()
    // Of one layer alone transformers has it see all tokens.
    expect(() => ofGemma4({ num_hidden_layers: 1 })).toThrow('holds no "sliding_attention"')
    expect(ofGemma4({ final_logit_softcapping: 30 }).logitsCap).toBe(30)
    expect(ofGemma4({ use_bidirectional_attention: 'vision' }).softmaxScale).toBe(1)
    expect(ofGemma4({ attention_bias: true }).attentionBias).toEqual({ qkv: true, output: true })
  })

  test('gemma4: heads by layer, as transformers 5 writes them', () => {
    const own = (byLayer: unknown, changes: JsonObject = {}) =>
      ofGemma4({ ...changes, per_layer_config: byLayer }).globalHeads
    const other = { head_dim: 64, num_key_value_heads: 1 }
    const expected = { nKvHeads: 1, headDim: 64, rotaryDim: 64, layers: kGlobal }
    expect(own({ '05': other })).toEqual({ ...expected, valuesAreKeys: true })
    expect(own({ 5: { head_dim: 64 } })).toMatchObject({ nKvHeads: 2, headDim: 64 })
    // Every layer told, though most are as all.
    const usual = { head_dim: 256, num_key_value_heads: 2 }
    expect(own({ 0: usual, 3: usual, 5: other })).toMatchObject(expected)
    expect(own({}, { attention_k_eq_v: false })).toBeNull()
    const refused = (byLayer: unknown, message: string, changes: JsonObject = {}) =>
      expect(() => own(byLayer, changes)).toThrow(message)
    refused([], 'per_layer_config is [], expected an object')
    refused({ 6: other }, 'per_layer_config holds "6", expected the number of one of 6 layers')
    refused({ 5: 64 }, 'per_layer_config.5 is 64, expected an object')
    refused({ 5: { head_dim: 24 } }, 'per_layer_config.5.head_dim is 24, expected a multiple of 16')
    refused({ 5: { num_key_value_heads: 3 } }, 'per_layer_config.5.num_key_value_heads is 3')
    refused(
      { 5: { intermediate_size: 64 } },
      'per_layer_config.5.intermediate_size is 64; layers that differ in it are not supported',
    )
    refused(
      { 2: other },
      'per_layer_config gives layer 2 heads of its own, expected them as head_dim and',
    )
    const types = {
      layer_types: kGlobal.map((_, layer) => (layer % 2 ? full[0] : 'sliding_attention')),
    }
    refused(
      { 1: other, 3: other },
      'per_layer_config gives layer 5 heads of its own, expected them as others without a window',
      types,
    )
  })

  test('gemma4: the last layers take keys of earlier ones, and may have wider MLPs', () => {
    const config = parseModelConfig(gemma4E)
    const layers = [...config.kvSources.keys()]
    expect(config.kvSources).toEqual(
      layers.map((layer) => (layer < 15 ? layer : layer % 5 === 4 ? 14 : 13)),
    )
    expect(config).toMatchObject({
      ...{ intermediateSize: 12_288, eosTokenIds: [1, 106], logitsCap: 30 },
      intermediateSizes: layers.map((layer) => (layer < 15 ? 6144 : 12_288)),
      perLayerInputs: { width: 256, vocabSize: 262_144 },
      globalHeads: { nKvHeads: 1, headDim: 512, rotaryDim: 512, valuesAreKeys: false },
    })
    const own = (changes: JsonObject) =>
      parseModelConfig({ ...gemma4E, text_config: { ...gemma4E.text_config, ...changes } })
    expect(own({ use_double_wide_mlp: false }).intermediateSizes).toEqual(layers.map(() => 6144))
    expect(own({ num_kv_shared_layers: 0 }).intermediateSize).toBe(6144)
    expect(own({ hidden_size_per_layer_input: 0 }).perLayerInputs).toBeNull()
    const { hidden_size_per_layer_input, vocab_size_per_layer_input, ...unsaid } =
      gemma4E.text_config
    const usual = parseModelConfig({ ...gemma4E, text_config: unsaid })
    expect(usual.perLayerInputs).toEqual({ width: 256, vocabSize: 262_144 })
  })

  test('gemma4: experts beside an MLP', () => {
    const experts = {
      ...{ enable_moe_block: true, num_experts: 16, top_k_experts: 4, moe_intermediate_size: 48 },
    }
    expect(ofGemma4(experts)).toMatchObject({
      intermediateSize: 256,
      experts: {
        ...{ count: 16, perRow: 4, intermediateSize: 48, sharedSize: 256, besideMlp: true },
        ...{ scores: 'softmax', normalized: true, scale: 1, layers: kGlobal.map(() => true) },
        names: { block: null, router: 'router.proj', shared: { name: 'mlp', gate: null } },
      },
    })
    expect(ofGemma4({ ...experts, enable_moe_block: false }).experts).toBeNull()
    expect(parseModelConfig(qwen3Moe).experts?.besideMlp).toBe(false)
    expect(() => ofGemma4({ ...experts, top_k_experts: null })).toThrow('top_k_experts is missing')
    const doubled = { ...experts, num_kv_shared_layers: 1, use_double_wide_mlp: true }
    const types = ['sliding_attention', ...full, 'full_attention']
    expect(() => ofGemma4({ ...doubled, layer_types: types })).toThrow(
      'use_double_wide_mlp is true; MLPs of two widths beside experts are not supported',
    )
  })

  test('gemma4 of one piece: neither experts nor inputs of layers', () => {
    const unified = (changes: JsonObject = {}) =>
      parseModelConfig({
        ...{
          architectures: ['Gemma4UnifiedForConditionalGeneration'],
          model_type: 'gemma4_unified',
        },
        text_config: {
          ...{ model_type: 'gemma4_unified_text', hidden_size: 3840, num_hidden_layers: 48 },
          ...{ attention_k_eq_v: true, num_global_key_value_heads: 1, ...changes },
        },
      })
    expect(unified()).toMatchObject({
      ...{ perLayerInputs: null, experts: null, maxPositions: 262_144, nKvHeads: 4 },
      ...{ globalHeads: { nKvHeads: 1, headDim: 512, valuesAreKeys: true }, scalesLayers: true },
    })
    expect(unified().slidingWindow.slice(0, 7)).toEqual([1024, 1024, 1024, 1024, 1024, 0, 1024])
    expect(() => unified({ enable_moe_block: true })).toThrow(
      'text_config.enable_moe_block is true, expected false',
    )
    const text = { ...gemma4, architectures: ['Gemma4UnifiedForCausalLM'] }
    const own = parseModelConfig({ ...text, model_type: 'gemma4_unified_text' })
    expect({ ...own, architecture: 'Gemma4ForCausalLM' }).toEqual(ofGemma4())
  })

  test('gemma4: what is refused by its name', () => {
    const refused = (changes: JsonObject, message: string) =>
      expect(() => ofGemma4(changes)).toThrow(message)
    refused(
      { use_bidirectional_attention: 'all' },
      'use_bidirectional_attention is "all"; rows that see later ones are not supported',
    )
    refused({ attn_logit_softcapping: 50 }, 'attn_logit_softcapping is 50; logit soft-capping')
    refused({ final_logit_softcapping: 0 }, 'final_logit_softcapping is 0, expected a number > 0')
    refused(
      { num_global_key_value_heads: 3 },
      'num_global_key_value_heads is 3, expected a divisor',
    )
    refused({ global_head_dim: 1024 }, 'global_head_dim is 1024, expected an integer from 1 to 512')
    refused(
      { num_kv_shared_layers: 6 },
      'num_kv_shared_layers is 6, expected an integer from 0 to 5',
    )
    refused(
      { num_kv_shared_layers: 1 },
      'num_kv_shared_layers is 1, expected a layer before them without a window, as layer 5 is',
    )
    refused(
      { hidden_size_per_layer_input: 8, vocab_size_per_layer_input: 319 },
      'vocab_size_per_layer_input is 319, expected an integer from 320',
    )
    refused({ sliding_window: null }, 'sliding_window is null, expected an integer')
    const ropes = (
      full_attention: unknown,
      sliding_attention: unknown = { rope_type: 'default' },
    ) => ({
      rope_parameters: { full_attention, sliding_attention },
    })
    refused({ rope_parameters: null }, 'rope_parameters is missing, expected an object')
    refused(ropes(undefined), 'rope_parameters.full_attention is missing, expected an object')
    refused(
      ropes({ rope_type: 'proportional', partial_rotary_factor: 2 }),
      'rope_parameters.full_attention.partial_rotary_factor is 2, expected a number above 0 and at',
    )
    refused(
      ropes({ rope_type: 'default', partial_rotary_factor: 0.25 }),
      'rope_parameters.full_attention.partial_rotary_factor is 0.25, expected 1',
    )
    const glm = { ...llama, architectures: ['GlmForCausalLM'], model_type: 'glm' }
    expect(() =>
      parseModelConfig({ ...glm, rope_parameters: { rope_type: 'proportional' } }),
    ).toThrow('rope_parameters.rope_type is "proportional", expected "default"')
    // As long factors are for pairs of a head that sees all tokens.
    const long = { rope_type: 'longrope', short_factor: [1], long_factor: [1] }
    refused(ropes(long), 'full_attention.short_factor is [1], expected 256 numbers > 0')
  })

  test('mixtral: every layer has experts, as wide as its MLP would be', () => {
    expect(parseModelConfig(mixtral)).toMatchObject({
      experts: {
        ...{ count: 8, perRow: 2, intermediateSize: 256, normalized: true },
        layers: [true, true, true, true],
        names: { tensors: { gateProj: 'w1', upProj: 'w3', downProj: 'w2' } },
      },
      rmsNormEps: 1e-5,
      slidingWindow: [0, 0, 0, 0],
      qkNorm: 'none',
    })
    const { rope_theta, ...rest } = mixtral as JsonObject
    expect(parseModelConfig(rest).ropes[0]).toEqual({ type: 'default', theta: 1e6 })
    expect(parseModelConfig({ ...mixtral, sliding_window: 99 }).slidingWindow).toEqual(
      new Array(4).fill(99),
    )
  })

  test('qwen3-moe: experts in some layers, their number by either key', () => {
    const experts = (changes: JsonObject) => parseModelConfig({ ...qwen3Moe, ...changes }).experts
    expect(experts({})).toMatchObject({
      ...{ count: 16, perRow: 4, intermediateSize: 48, normalized: false },
      layers: [true, true, true, true],
    })
    expect(experts({ norm_topk_prob: true })?.normalized).toBe(true)
    expect(experts({ num_experts: null, num_local_experts: 12 })?.count).toBe(12)
    expect(experts({ num_local_experts: 16 })?.count).toBe(16)
    expect(experts({ decoder_sparse_step: 2 })?.layers).toEqual([false, true, false, true])
    expect(experts({ mlp_only_layers: [0, 3] })?.layers).toEqual([false, true, true, false])
    expect(experts({ mlp_only_layers: null })?.layers).toEqual([true, true, true, true])
    expect(experts({ decoder_sparse_step: 2, mlp_only_layers: [1, 3] })).toBeNull()
    expect(parseModelConfig(qwen3Moe)).toMatchObject({ qkNorm: 'each head', headDim: 64 })
  })

  test('qwen2-moe: an expert of all rows, behind a gate', () => {
    const own = (changes: JsonObject) => parseModelConfig({ ...qwen15Moe, ...changes })
    expect(own({})).toMatchObject({
      experts: {
        ...{ count: 60, perRow: 4, intermediateSize: 1408, sharedSize: 5632 },
        ...{ scores: 'softmax', normalized: false, scale: 1, layers: new Array(24).fill(true) },
        names: { correction: null, shared: { name: 'shared_expert', gate: 'shared_expert_gate' } },
      },
      attentionBias: { qkv: true, output: false },
      ...{ qkNorm: 'none', headDim: 128, slidingWindow: new Array(24).fill(0) },
    })
    expect(own({ qkv_bias: false }).attentionBias).toEqual({ qkv: false, output: false })
    expect(own({ decoder_sparse_step: 2 }).experts?.layers.slice(0, 4)).toEqual([
      ...[false, true, false, true],
    ])
    // What transformers writes of one that is off.
    expect(own({ sliding_window: 0 }).slidingWindow).toEqual(new Array(24).fill(0))
    const used = { use_sliding_window: true, sliding_window: 64, max_window_layers: 4 }
    expect(own(used).slidingWindow.slice(0, 7)).toEqual([64, 0, 64, 0, 0, 0, 0])
  })

  test('glm4-moe: experts by sigmoids and a correction, behind layers without', () => {
    const own = (changes: JsonObject) => parseModelConfig({ ...glm45Air, ...changes })
    expect(own({})).toMatchObject({
      experts: {
        ...{ count: 128, perRow: 8, intermediateSize: 1408, sharedSize: 1408 },
        ...{ scores: 'sigmoid', normalized: true, leastSum: 1e-20, scale: 1 },
        layers: [false, ...new Array(45).fill(true)],
        names: {
          correction: { name: 'gate.e_score_correction_bias', isRow: false },
          shared: { name: 'shared_experts', gate: null },
        },
      },
      attentionBias: { qkv: true, output: false },
      ...{ qkNorm: 'none', headDim: 128, rotaryDim: 64, interleavedRope: false },
    })
    const large = {
      ...{ hidden_size: 5120, n_routed_experts: 160, moe_intermediate_size: 1536 },
      ...{ first_k_dense_replace: 3, num_hidden_layers: 92, routed_scaling_factor: 2.5 },
      ...{ use_qk_norm: true, n_shared_experts: 2 },
    }
    expect(own(large)).toMatchObject({
      qkNorm: 'each head',
      experts: { count: 160, sharedSize: 3072, scale: 2.5 },
    })
    expect(own(large).experts?.layers.filter((has) => has)).toHaveLength(89)
    expect(() => own({ n_group: 8, topk_group: 4 })).toThrow(
      'n_group is 8; groups of experts are not supported',
    )
    expect(() => own({ routed_scaling_factor: -1 })).toThrow('routed_scaling_factor is -1')
    expect(() => own({ n_shared_experts: 1e6 })).toThrow('n_shared_experts is 1000000')
  })

  test('ernie4.5-moe: softmax and a correction; which layers have experts', () => {
    const own = (changes: JsonObject) => parseModelConfig({ ...ernie45Moe, ...changes })
    expect(own({})).toMatchObject({
      experts: {
        ...{ count: 64, perRow: 6, intermediateSize: 1536, sharedSize: 3072 },
        ...{ scores: 'softmax', normalized: true, leastSum: 1e-12, scale: 1 },
        layers: [false, ...new Array(27).fill(true)],
        names: { correction: { isRow: true }, shared: { gate: null } },
      },
      ...{ headDim: 128, interleavedRope: true, tieWordEmbeddings: true },
    })
    const layers = (changes: JsonObject) =>
      [...own({ ...changes, num_hidden_layers: 6 }).experts!.layers.keys()].filter(
        (layer) => own({ ...changes, num_hidden_layers: 6 }).experts!.layers[layer],
      )
    expect(layers({ moe_layer_end_index: 3 })).toEqual([1, 2, 3])
    expect(layers({ moe_layer_end_index: -1, moe_layer_interval: 2 })).toEqual([1, 3, 5])
    expect(layers({ moe_layer_start_index: 4 })).toEqual([4, 5])
    expect(own({ moe_num_shared_experts: 0 }).experts?.sharedSize).toBe(0)
    expect(() => own({ use_bias: true })).toThrow('use_bias is true')
    expect(() => own({ moe_norm_min: -1 })).toThrow('moe_norm_min is -1, expected a number from 0')
  })

  test('dots1: as GLM-4.5 chooses, windows in the last layers', () => {
    const own = (changes: JsonObject) => parseModelConfig({ ...dots1, ...changes })
    expect(own({})).toMatchObject({
      experts: {
        ...{ count: 128, perRow: 6, intermediateSize: 1408, sharedSize: 2816 },
        ...{ scores: 'sigmoid', normalized: true, leastSum: 1e-20, scale: 2.5 },
        layers: [false, ...new Array(61).fill(true)],
      },
      ...{ qkNorm: 'each head', headDim: 128, nKvHeads: 32 },
      slidingWindow: new Array(62).fill(0),
    })
    const windows = own({ sliding_window: 64, max_window_layers: 60 }).slidingWindow
    expect(windows).toEqual([...new Array(60).fill(0), 64, 64])
    const refused = (changes: JsonObject, message: string) =>
      expect(() => own(changes)).toThrow(message)
    refused({ scoring_func: 'softmax' }, 'scoring_func is "softmax", expected "noaux_tc"')
    refused({ moe_layer_freq: 2 }, 'moe_layer_freq is 2, expected 1')
  })

  test('minimax-m2: sigmoids and a correction, no expert of all rows', () => {
    const own = (changes: JsonObject) => parseModelConfig({ ...minimaxM2, ...changes })
    expect(own({})).toMatchObject({
      experts: {
        ...{ count: 256, perRow: 8, intermediateSize: 1536, sharedSize: 0 },
        ...{ scores: 'sigmoid', normalized: true, scale: 1 },
        names: {
          block: 'block_sparse_moe',
          correction: { name: 'e_score_correction_bias', isRow: false },
          shared: null,
        },
      },
      ...{ qkNorm: 'all heads', headDim: 128, rotaryDim: 64, interleavedRope: false },
      quantization: { method: 'fp8', block: [128, 128] },
    })
    expect(own({ rotary_dim: null, partial_rotary_factor: 0.25 }).rotaryDim).toBe(32)
    const refused = (changes: JsonObject, message: string) =>
      expect(() => own(changes)).toThrow(message)
    refused({ rotary_dim: 63 }, 'rotary_dim is 63, expected an even number')
    refused({ rotary_dim: 256 }, 'rotary_dim is 256, expected an integer from 2 to 128')
    refused({ use_qk_norm: false }, 'use_qk_norm is false, expected true')
    refused({ qk_norm_type: 'per_head' }, 'qk_norm_type is "per_head", expected "per_layer"')
    refused({ scoring_func: 'softmax' }, 'scoring_func is "softmax", expected "sigmoid"')
    refused({ shared_intermediate_size: 8 }, 'shared_intermediate_size is 8, expected 0')
    refused({ use_routing_bias: false }, 'use_routing_bias is false, expected true')
  })

  test('solar open: as GLM-4.5 chooses, in every layer', () => {
    const { intermediate_size, partial_rotary_factor, ...glm } = glm45Air
    const solar: JsonObject = {
      ...{ ...glm, architectures: ['SolarOpenForCausalLM'], model_type: 'solar_open' },
      first_k_dense_replace: 0,
    }
    const own = (changes: JsonObject = {}) => parseModelConfig({ ...solar, ...changes })
    const { experts, nLayers } = parseModelConfig(glm45Air)
    expect(own()).toMatchObject({
      ...{ qkNorm: 'none', rotaryDim: 128, intermediateSize: experts?.intermediateSize },
      experts: { ...experts, layers: new Array(nLayers).fill(true) },
    })
    expect(own({ partial_rotary_factor: 0.5 }).rotaryDim).toBe(64)
    const { rope_theta, ...unsaid } = solar
    expect(parseModelConfig(unsaid).ropes[0]).toEqual({ type: 'default', theta: 1e6 })
    const refused = (changes: JsonObject, message: string) =>
      expect(() => own(changes)).toThrow(message)
    refused({ use_qk_norm: true }, 'use_qk_norm is true, expected false')
    refused({ first_k_dense_replace: 1 }, 'first_k_dense_replace is 1, expected 0')
    refused({ n_group: 2 }, 'n_group is 2; groups of experts are not supported')
  })

  test('hy3 and exaone with experts: which layers have them is said one by one, or by the first', () => {
    const sizes = {
      ...{ ...llama, num_experts: 16, num_experts_per_tok: 4, moe_intermediate_size: 48 },
      head_dim: 64,
    }
    const hy3 = { ...sizes, architectures: ['HYV3ForCausalLM'], model_type: 'hy_v3' }
    const exaone = { ...sizes, architectures: ['ExaoneMoeForCausalLM'], model_type: 'exaone_moe' }
    const usual = {
      ...{ count: 16, perRow: 4, intermediateSize: 48, sharedSize: 48, scores: 'sigmoid' },
      ...{ normalized: true, leastSum: 1e-20, layers: [false, true, true, true] },
    }
    const names = (router: string, correction: string, shared: string) => ({
      ...{ block: 'mlp', router, correction: { name: correction, isRow: false } },
      shared: { name: shared, gate: null },
    })
    expect(parseModelConfig(hy3)).toMatchObject({
      experts: { ...usual, scale: 2.826, names: names('router.gate', 'expert_bias', 'shared_mlp') },
      ...{ qkNorm: 'each head', rmsNormEps: 1e-5, slidingWindow: full.map(() => 0) },
    })
    expect(parseModelConfig({ ...hy3, router_scaling_factor: 2 }).experts?.scale).toBe(2)
    expect(parseModelConfig({ ...exaone, sliding_window: 99 })).toMatchObject({
      experts: {
        ...{ ...usual, scale: 2.5 },
        names: names('gate', 'e_score_correction_bias', 'shared_experts'),
      },
      ...{ qkNorm: 'each head', slidingWindow: [99, 99, 99, 0], ropes: [{}, {}, {}, null] },
      norms: { attention: 'input_layernorm', attentionOutput: null, mlpOutput: null },
    })
    const layers = ['sparse', 'dense', 'sparse', 'dense']
    for (const raw of [hy3, exaone]) {
      const own = (changes: JsonObject) => parseModelConfig({ ...raw, ...changes })
      expect(own({ mlp_layer_types: layers }).experts?.layers).toEqual([true, false, true, false])
      const refused = (changes: JsonObject, message: string) =>
        expect(() => own(changes)).toThrow(message)
      const expected = ', expected "dense" or "sparse" for each of 4 layers'
      refused({ mlp_layer_types: ['dense'] }, `mlp_layer_types is ["dense"]${expected}`)
      refused({ mlp_layer_types: [...layers.slice(1), 'moe'] }, expected)
    }
    const refused = (raw: JsonObject, message: string) =>
      expect(() => parseModelConfig(raw)).toThrow(message)
    refused({ ...hy3, first_k_dense_replace: 2 }, 'first_k_dense_replace is 2, expected 1')
    refused({ ...hy3, qk_norm: false }, 'qk_norm is false, expected true')
    refused({ ...hy3, moe_router_use_sigmoid: false }, 'moe_router_use_sigmoid is false')
    expect(parseModelConfig({ ...exaone, first_k_dense_replace: 3 }).experts?.layers).toEqual([
      ...[false, false, false, true],
    ])
    refused({ ...exaone, n_group: 4 }, 'n_group is 4; groups of experts are not supported')
  })

  test('mellum: as qwen3-moe, with windows and ropes by layer', () => {
    const mellum: JsonObject = {
      ...{ ...llama, architectures: ['MellumForCausalLM'], model_type: 'mellum' },
      ...{ num_experts: 16, num_experts_per_tok: 4, moe_intermediate_size: 48 },
    }
    const { rope_theta, ...unsaid } = mellum
    const plain = parseModelConfig(unsaid)
    expect(plain).toMatchObject({
      ...{ headDim: 128, qkNorm: 'each head', slidingWindow: full.map(() => 0) },
      experts: { scores: 'softmax', normalized: true, layers: full.map(() => true), sharedSize: 0 },
    })
    expect(plain.ropes[0]).toEqual({ type: 'default', theta: 500_000 })
    const layer_types = ['sliding_attention', ...full.slice(1)]
    const mlp_layer_types = ['sparse', 'sparse', 'dense', 'sparse']
    const yarn = { rope_type: 'yarn', factor: 4, original_max_position_embeddings: 1024 }
    const rope_parameters = {
      full_attention: { ...yarn, rope_theta: 1e6 },
      sliding_attention: { rope_type: 'default', rope_theta: 20_000 },
    }
    const own = parseModelConfig({ ...unsaid, layer_types, mlp_layer_types, rope_parameters })
    expect(own).toMatchObject({
      slidingWindow: [1024, 0, 0, 0],
      experts: { layers: [true, true, false, true] },
      ropes: [{ type: 'default', theta: 20_000 }, { type: 'yarn', theta: 1e6 }, {}, {}],
    })
    expect(() => parseModelConfig({ ...unsaid, mlp_layer_types: 'sparse' })).toThrow(
      'mlp_layer_types is "sparse", expected "dense" or "sparse" for each of 4 layers',
    )
  })

  test('qwen3.5: a recurrent state in most layers, gates of attention in the others', () => {
    const { rope_theta, ...sizes } = llama
    const text = { ...sizes, architectures: ['Qwen3_5ForCausalLM'], model_type: 'qwen3_5_text' }
    const own = (changes: JsonObject) => parseModelConfig({ ...text, ...changes })
    const recurrence = {
      ...{ layers: [true, true, true, false], nKeyHeads: 16, nValueHeads: 32, keyDim: 128 },
      ...{ valueDim: 128, convWidth: 4, byKeyHeads: false },
    }
    const rope = { type: 'default', theta: 10_000 }
    expect(own({})).toMatchObject({
      ...{ recurrence, gatesAttention: true, headDim: 256, rotaryDim: 64, qkNorm: 'each head' },
      ...{ unitOffsetNorms: true, embeddingScale: 1, roundsEmbeddingScale: false },
      ...{ softmaxScale: 1 / 16, slidingWindow: [0, 0, 0, 0], ropes: [null, null, null, rope] },
      ...{ experts: null, attentionBias: { qkv: false, output: false } },
    })
    expect(
      own({
        ...{ linear_num_key_heads: 2, linear_key_head_dim: 32, linear_conv_kernel_dim: 3 },
        ...{ linear_num_value_heads: 6, linear_value_head_dim: 48, full_attention_interval: 2 },
        ...{ head_dim: 32, rope_parameters: { rope_theta: 1e6, partial_rotary_factor: 0.5 } },
      }),
    ).toMatchObject({
      recurrence: {
        ...{ layers: [true, false, true, false], nKeyHeads: 2, nValueHeads: 6, keyDim: 32 },
        ...{ valueDim: 48, convWidth: 3 },
      },
      ...{ rotaryDim: 16, ropes: [null, { theta: 1e6 }, null, { theta: 1e6 }] },
    })
    const types = ['linear_attention', 'full_attention', 'linear_attention', 'linear_attention']
    const byType = own({ layer_types: types, full_attention_interval: 9 })
    expect(byType.recurrence?.layers).toEqual([true, false, true, true])
    const attending = own({ layer_types: full })
    expect(attending.recurrence).toBeNull()
  })

  test('qwen3.5 with images and with experts, as they are published', () => {
    const rope_parameters = {
      ...{ rope_type: 'default', rope_theta: 1e7, partial_rotary_factor: 0.25 },
      ...{ mrope_section: [11, 11, 10], mrope_interleaved: true },
    }
    const { architectures, model_type, rope_theta, intermediate_size, ...sizes } = llama
    const text = {
      ...{ ...sizes, attn_output_gate: true, full_attention_interval: 4, mtp_num_hidden_layers: 1 },
      ...{ mamba_ssm_dtype: 'float32', rope_parameters, tie_word_embeddings: true },
    }
    const dense = {
      ...{ architectures: ['Qwen3_5ForConditionalGeneration'], model_type: 'qwen3_5' },
      ...{ text_config: { ...text, intermediate_size, model_type: 'qwen3_5_text' } },
      tie_word_embeddings: true,
    }
    const rope = { type: 'default', theta: 1e7 }
    expect(parseModelConfig(dense)).toMatchObject({
      ...{ gatesAttention: true, headDim: 256, rotaryDim: 64, tieWordEmbeddings: true },
      ...{ ropes: [null, null, null, rope], experts: null, eosTokenIds: [2] },
    })
    const experts = {
      ...{ num_experts: 16, num_experts_per_tok: 4, moe_intermediate_size: 48 },
      ...{ shared_expert_intermediate_size: 64, mlp_only_layers: [] },
    }
    const moe = {
      ...{ architectures: ['Qwen3_5MoeForConditionalGeneration'], model_type: 'qwen3_5_moe' },
      ...{ text_config: { ...text, ...experts, model_type: 'qwen3_5_moe_text' } },
    }
    const expected = {
      ...{ count: 16, perRow: 4, intermediateSize: 48, sharedSize: 64, scores: 'softmax' },
      ...{ normalized: true, scale: 1, layers: [true, true, true, true] },
      names: {
        tensors: { gateUp: 'experts.gate_up_proj', order: 'out, in', own: { upProj: 'up_proj' } },
        shared: { name: 'shared_expert', gate: 'shared_expert_gate' },
      },
    }
    expect(parseModelConfig(moe)).toMatchObject({ experts: expected, gatesAttention: true })
    const alone = { architectures: ['Qwen3_5MoeForCausalLM'], model_type: 'qwen3_5_moe_text' }
    expect(parseModelConfig({ ...text, ...experts, ...alone })).toMatchObject({
      ...{ experts: expected, recurrence: { layers: [true, true, true, false] } },
    })
    const wrong = { ...dense, text_config: { ...text, model_type: 'qwen3_5_moe_text' } }
    expect(() => parseModelConfig(wrong)).toThrow(
      'text_config.model_type is "qwen3_5_moe_text", expected "qwen3_5_text"',
    )
  })

  test('qwen3-next: the same with projections by key heads, and experts as in qwen2-moe', () => {
    const { rope_theta, ...sizes } = llama
    const next = {
      ...{ ...sizes, architectures: ['Qwen3NextForCausalLM'], model_type: 'qwen3_next' },
      ...{ num_experts: 16, num_experts_per_tok: 4, moe_intermediate_size: 48 },
      ...{ shared_expert_intermediate_size: 64, mlp_only_layers: [1] },
    }
    expect(parseModelConfig(next)).toMatchObject({
      ...{ recurrence: { byKeyHeads: true, nValueHeads: 32 }, gatesAttention: true, rotaryDim: 64 },
      experts: {
        ...{ count: 16, normalized: true, sharedSize: 64, layers: [true, false, true, true] },
        names: { tensors: { upProj: 'up_proj' }, shared: { gate: 'shared_expert_gate' } },
      },
    })
    const unlike = parseModelConfig({ ...next, norm_topk_prob: false, decoder_sparse_step: 2 })
    expect(unlike.experts).toMatchObject({ normalized: false, layers: [false, false, false, true] })
  })

  test.each<[string, JsonObject, string]>([
    [
      'no layer attends',
      { full_attention_interval: 5 },
      'full_attention_interval is 5, expected at most num_hidden_layers 4: no layer would attend',
    ],
    [
      'nor does one by its type',
      { layer_types: full.map(() => 'linear_attention') },
      'layer_types holds no "full_attention", expected it once at least',
    ],
    [
      'another type',
      { layer_types: ['sliding_attention', ...full.slice(1)] },
      'layer_types holds "sliding_attention", expected "full_attention" or "linear_attention"',
    ],
    ['an interval of 0', { full_attention_interval: 0 }, 'full_attention_interval is 0, expected'],
    [
      'no heads',
      { linear_num_key_heads: 0 },
      'linear_num_key_heads is 0, expected an integer from 1',
    ],
    [
      'too many',
      { linear_num_value_heads: 1 << 15 },
      'linear_num_value_heads is 32768, expected an integer',
    ],
    [
      'heads that share no keys',
      { linear_num_value_heads: 24 },
      'linear_num_value_heads is 24, expected a multiple of linear_num_key_heads 16',
    ],
    [
      'keys of 96',
      { linear_key_head_dim: 96 },
      'linear_key_head_dim is 96, expected a power of two from 16 to 256',
    ],
    [
      'keys of 512',
      { linear_key_head_dim: 512 },
      'linear_key_head_dim is 512, expected an integer from 16 to 256',
    ],
    [
      'values of 40',
      { linear_value_head_dim: 40 },
      'linear_value_head_dim is 40, expected a multiple of 16 up to 256',
    ],
    [
      'rows too wide',
      { linear_num_value_heads: 8192 },
      'linear_num_value_heads is 8192; with 16 key heads of 128 channels and values of 128 a row has 1052672, expected at most 1048576',
    ],
    [
      'a convolution of 1',
      { linear_conv_kernel_dim: 1 },
      'linear_conv_kernel_dim is 1, expected an integer from 2 to 8',
    ],
    [
      'biases',
      { attention_bias: true },
      'attention_bias is true; biases beside gates of attention are not supported',
    ],
    [
      'another activation',
      { hidden_act: 'gelu_pytorch_tanh' },
      'hidden_act is "gelu_pytorch_tanh", expected "silu"',
    ],
    ['no gate', { attn_output_gate: false }, 'attn_output_gate is false, expected true'],
  ])('qwen3.5 refuses: %s', (_, changes, message) => {
    const text = { ...llama, architectures: ['Qwen3_5ForCausalLM'], model_type: 'qwen3_5_text' }
    expectZipCacheError(refusal({ ...text, ...changes }), 'ERR_ZC_CONFIG', message)
  })

  test('granite with experts, and those of qwen3-vl: whose matrices lie in one tensor', () => {
    const granite = {
      ...{ ...mixtral, architectures: ['GraniteMoeForCausalLM'], model_type: 'granitemoe' },
      logits_scaling: 8,
    }
    expect(parseModelConfig(granite)).toMatchObject({
      experts: { count: 8, perRow: 2, intermediateSize: 256, normalized: true },
      logitsScale: 0.125,
    })
    const { architectures, ...text } = qwen3Moe
    const images = {
      architectures: ['Qwen3VLMoeForConditionalGeneration'],
      model_type: 'qwen3_vl_moe',
      text_config: { ...text, model_type: 'qwen3_vl_moe_text' },
    }
    expect(parseModelConfig(images).experts).toMatchObject({
      ...{ count: 16, perRow: 4, intermediateSize: 48, normalized: true },
      names: { tensors: { gateUp: 'experts.gate_up_proj', order: 'either' } },
    })
  })

  test('gpt-oss: its own activation, gate and up in turns with biases', () => {
    const oss = (changes: JsonObject) =>
      parseModelConfig({
        ...{ ...mixtral, architectures: ['GptOssForCausalLM'], model_type: 'gpt_oss' },
        ...changes,
      })
    expect(oss({})).toMatchObject({
      activation: { alpha: 1.702, limit: 7 },
      experts: {
        ...{ count: 8, perRow: 2, intermediateSize: 256, normalized: true },
        names: { router: 'router', tensors: { order: 'in, out', inTurnsWithBiases: true } },
      },
    })
    expect(oss({ swiglu_limit: 5.5 }).activation).toEqual({ alpha: 1.702, limit: 5.5 })
    const refused = (changes: JsonObject, message: string) =>
      expect(() => oss(changes)).toThrow(message)
    refused({ swiglu_limit: 0 }, 'swiglu_limit is 0, expected')
    refused({ hidden_act: 'gelu' }, 'hidden_act is "gelu", expected "silu"')
  })

  test('qwen3-moe: a window is that of all layers, as transformers has it', () => {
    const windows = (changes: JsonObject) =>
      parseModelConfig({ ...qwen3Moe, ...changes }).slidingWindow
    expect(windows({ sliding_window: 99 })).toEqual([0, 0, 0, 0])
    const used = { use_sliding_window: true, max_window_layers: 2 }
    expect(windows({ sliding_window: 99, ...used })).toEqual([99, 99, 99, 99])
    expect(windows({ sliding_window: null, ...used })).toEqual([0, 0, 0, 0])
  })

  test('gemma3 with images: its text model, of whose sizes half are defaults', () => {
    expect(parseModelConfig(gemma3Images)).toMatchObject({
      nLayers: 34,
      hiddenSize: 2560,
      nHeads: 8,
      nKvHeads: 4,
      headDim: 256,
      vocabSize: 262_208,
      maxPositions: 131_072,
      bosTokenId: 2,
      eosTokenIds: [1, 106],
    })
  })
})

describe('text models of those that see images', () => {
  test('mistral3: the one of its text_config', () => {
    expect(parseModelConfig(mistral3)).toEqual({
      ...parseModelConfig({ ...mistral, sliding_window: null }),
      architecture: 'Mistral3ForConditionalGeneration',
    })
  })

  test('ministral 3: the other one that mistral3 has, whose queries grow', () => {
    const own = parseModelConfig(ministral3)
    expect(own).toMatchObject({
      architecture: 'Mistral3ForConditionalGeneration',
      queryGrowth: { growth: 0.1, period: 16_384 },
      ...{ nLayers: 34, headDim: 128, maxPositions: 262_144, tieWordEmbeddings: false },
      slidingWindow: new Array(34).fill(0),
      quantization: { method: 'fp8', block: null },
    })
    const yarn = { type: 'yarn', theta: 1e6, factor: 16, originalMaxPositions: 16_384 }
    expect(own.ropes[33]).toMatchObject({ ...yarn, mscale: 1, mscaleAllDim: 1 })
    const { text_config } = ministral3
    const alone = { ...text_config, architectures: ['Ministral3ForCausalLM'] }
    expect(parseModelConfig(alone)).toEqual({
      ...{ ...own, architecture: 'Ministral3ForCausalLM', quantization: null },
    })
    const tied = { ...ministral3, text_config: { ...text_config, tie_word_embeddings: true } }
    expect(parseModelConfig(tied).tieWordEmbeddings).toBe(true)
    const withRope = (changes: JsonObject) => {
      const rope_parameters = { ...text_config.rope_parameters, ...changes }
      return () => parseModelConfig({ ...alone, rope_parameters })
    }
    expect(withRope({ llama_4_scaling_beta: 0 })().queryGrowth).toBeNull()
    const named = 'rope_parameters.llama_4_scaling_beta is '
    expect(withRope({ llama_4_scaling_beta: null })).toThrow(`${named}missing, expected a number`)
    expect(withRope({ llama_4_scaling_beta: -1 })).toThrow(`${named}-1`)
    expect(withRope({ original_max_position_embeddings: null })).toThrow(
      'rope_parameters.original_max_position_embeddings is missing',
    )
    expect(() =>
      parseModelConfig({ ...mistral, rope_scaling: { llama_4_scaling_beta: 1 } }),
    ).toThrow('rope_scaling.llama_4_scaling_beta is 1; queries that grow are not supported')
  })

  test('qwen2.5-vl: flat or not, its rope is that of text', () => {
    const flat = parseModelConfig(qwen25Vl)
    expect(flat.ropes[0]).toEqual({ type: 'default', theta: 1e6 })
    expect(flat).toMatchObject({
      rmsNormEps: 1e-5,
      attentionBias: { qkv: true, output: false },
      slidingWindow: [0, 0, 0, 0],
    })
    const { architectures, model_type, vision_config, ...text } = qwen25Vl
    const text_config = { ...text, model_type: 'qwen2_5_vl_text' }
    expect(parseModelConfig({ architectures, model_type, vision_config, text_config })).toEqual(
      flat,
    )
  })

  test('qwen2-vl: as qwen2.5-vl, flat or not', () => {
    const { vision_config, ...flat } = qwen25Vl
    const own = { architectures: ['Qwen2VLForConditionalGeneration'], model_type: 'qwen2_vl' }
    const expected = {
      ...parseModelConfig(qwen25Vl),
      architecture: 'Qwen2VLForConditionalGeneration',
    }
    expect(parseModelConfig({ ...flat, vision_config, ...own })).toEqual(expected)
    const { architectures, ...text } = flat
    const withText = (model_type: string) =>
      parseModelConfig({ ...own, vision_config, text_config: { ...text, model_type } })
    expect(withText('qwen2_vl_text')).toEqual(expected)
    expect(() => withText('qwen2_5_vl_text')).toThrow(
      'text_config.model_type is "qwen2_5_vl_text", expected "qwen2_vl_text"',
    )
  })

  test('glm4v-moe: as glm4-moe, but that no norm of queries is known', () => {
    const { architectures, model_type, ...text } = glm45Air
    const rope_scaling = { rope_type: 'default', mrope_section: [8, 12, 12] }
    const own = (changes: JsonObject) =>
      parseModelConfig({
        architectures: ['Glm4vMoeForConditionalGeneration'],
        model_type: 'glm4v_moe',
        text_config: { ...text, model_type: 'glm4v_moe_text', rope_scaling, ...changes },
        ...kindsOfEyes,
      })
    expect(own({})).toEqual({
      ...{ ...parseModelConfig(glm45Air), architecture: 'Glm4vMoeForConditionalGeneration' },
    })
    expect(() => own({ use_qk_norm: true })).toThrow(
      'text_config.use_qk_norm is true, expected false',
    )
  })

  test('glm4v: as glm4, with biases whatever the file says', () => {
    const text = { ...llama, head_dim: 64, rms_norm_eps: 1e-5, partial_rotary_factor: 0.5 }
    const own = (changes: JsonObject) =>
      parseModelConfig({
        architectures: ['Glm4vForConditionalGeneration'],
        model_type: 'glm4v',
        text_config: { ...text, model_type: 'glm4v_text', ...changes },
        ...kindsOfEyes,
      })
    const expected = parseModelConfig({
      ...{ ...text, architectures: ['Glm4ForCausalLM'], model_type: 'glm4', attention_bias: true },
    })
    const architecture = 'Glm4vForConditionalGeneration'
    expect(expected).toMatchObject({ rotaryDim: 32, interleavedRope: true, qkNorm: 'none' })
    const rope_scaling = { type: 'default', mrope_section: [8, 12, 12] }
    expect(own({ rope_scaling })).toEqual({ ...expected, architecture })
    expect(own({ attention_bias: false })).toEqual({ ...expected, architecture })
    expect(own({ partial_rotary_factor: null })).toMatchObject({ rotaryDim: 64 })
    expect(own({ num_key_value_heads: null })).toMatchObject({ nKvHeads: 4 })
  })

  test('exaone 4.5: as exaone4, by either name', () => {
    const text = {
      ...llama,
      sliding_window: 99,
      layer_types: ['sliding_attention', ...full.slice(1)],
    }
    const own = (model_type?: string) =>
      parseModelConfig({
        architectures: ['Exaone4_5_ForConditionalGeneration'],
        model_type: 'exaone4_5',
        text_config: { ...text, model_type },
        ...kindsOfEyes,
      })
    const alone = { architectures: ['Exaone4ForCausalLM'], model_type: 'exaone4' }
    const expected = {
      ...parseModelConfig({ ...text, ...alone }),
      architecture: 'Exaone4_5_ForConditionalGeneration',
    }
    for (const name of ['exaone4', 'exaone4_5_text', undefined]) expect(own(name)).toEqual(expected)
    expect(() => own('exaone_moe')).toThrow(
      'text_config.model_type is "exaone_moe", expected "exaone4"',
    )
  })

  test('llava: one of several, of which little is said', () => {
    // As the file of LLaVA 1.5 is.
    const llava15 = {
      architectures: ['LlavaForConditionalGeneration'],
      model_type: 'llava',
      text_config: {
        architectures: ['LlamaForCausalLM'],
        max_position_embeddings: 4096,
        model_type: 'llama',
        rms_norm_eps: 1e-5,
        vocab_size: 32_064,
      },
      tie_word_embeddings: false,
      ...kindsOfEyes,
    }
    expect(parseModelConfig(llava15)).toMatchObject({
      architecture: 'LlavaForConditionalGeneration',
      ...{ nLayers: 32, hiddenSize: 4096, intermediateSize: 11_008, nHeads: 32, nKvHeads: 32 },
      ...{ headDim: 128, vocabSize: 32_064, maxPositions: 4096, tieWordEmbeddings: false },
      ...{ bosTokenId: 1, eosTokenIds: [2], rmsNormEps: 1e-5, qkNorm: 'none' },
      attentionBias: { qkv: false, output: false },
    })
    const withText = (text_config: JsonObject) => parseModelConfig({ ...llava15, text_config })
    expect(withText({ model_type: 'mistral', sliding_window: null })).toMatchObject({
      ...{ nKvHeads: 8, intermediateSize: 14_336, maxPositions: 131_072, vocabSize: 32_000 },
      slidingWindow: new Array(32).fill(0),
    })
    expect(withText({ model_type: 'mistral' }).slidingWindow).toEqual(new Array(32).fill(4096))
    const qwen = { nKvHeads: 32, intermediateSize: 22_016, vocabSize: 151_936, eosTokenIds: [] }
    expect(withText({ model_type: 'qwen2' })).toMatchObject({
      ...{ ...qwen, attentionBias: { qkv: true, output: false } },
    })
    expect(withText({ model_type: 'qwen3' })).toMatchObject({ ...qwen, qkNorm: 'each head' })
    expect(() => withText({ model_type: 'cohere2' })).toThrow(
      'text_config.model_type is "cohere2", expected "llama" or "mistral" or "qwen2" or "qwen3"',
    )
    expect(() => withText({ model_type: 'llama', attn_logit_softcapping: 50 })).toThrow(
      'text_config.attn_logit_softcapping is 50; logit soft-capping is not supported',
    )
  })

  test.each([
    ['LlavaForConditionalGeneration', 'llava', 'llama'],
    ['LlavaNextForConditionalGeneration', 'llava_next', 'llama'],
    ['LlavaOnevisionForConditionalGeneration', 'llava_onevision', 'qwen2'],
    ['InternVLForConditionalGeneration', 'internvl', 'qwen2'],
    ['Idefics3ForConditionalGeneration', 'idefics3', 'llama'],
    ['SmolVLMForConditionalGeneration', 'smolvlm', 'llama'],
  ])('%s: llama, mistral, qwen2 and qwen3; which, if it is not said', (name, model_type, usual) => {
    const alone = { llama, mistral, qwen2, qwen3 }
    const own = (text: JsonObject) =>
      parseModelConfig({ architectures: [name], model_type, text_config: text, ...kindsOfEyes })
    for (const text of Object.values(alone)) {
      expect(own(text)).toEqual({ ...parseModelConfig(text), architecture: name })
    }
    const { model_type: _, ...unsaid } = alone[usual as keyof typeof alone]
    expect(own(unsaid)).toEqual({ ...parseModelConfig(unsaid), architecture: name })
  })

  test('their embeddings are tied where the file says so, and the text model says nothing else', () => {
    const ties = (whole?: boolean, text?: boolean) =>
      parseModelConfig({
        ...mistral3,
        tie_word_embeddings: whole,
        text_config: { ...mistral3.text_config, tie_word_embeddings: text },
      }).tieWordEmbeddings
    expect([ties(), ties(true), ties(undefined, true), ties(true, true)]).toEqual([
      ...[false, true, true, true],
    ])
    expect([ties(true, false), ties(false, true), ties(false)]).toEqual([false, false, false])
  })
})

describe('refusals name the key, what it was and what it must be', () => {
  const llama3 = {
    rope_type: 'llama3',
    factor: 8,
    low_freq_factor: 1,
    high_freq_factor: 4,
    original_max_position_embeddings: 512,
  }
  const cases: [string, JsonObject, string][] = [
    [
      'another architecture',
      { ...llama, architectures: ['GPT2LMHeadModel'] },
      'architectures is "GPT2LMHeadModel", expected one of LlamaForCausalLM, Mistral',
    ],
    ['an inherited name', { ...llama, architectures: ['toString'] }, 'architectures is "toString"'],
    ['no architecture', { ...llama, architectures: [] }, 'architectures is []'],
    [
      'a contradiction',
      { ...llama, model_type: 'qwen2' },
      'model_type is "qwen2", expected "llama"',
    ],
    ['gelu', { ...llama, hidden_act: 'gelu' }, 'hidden_act is "gelu", expected "silu"'],
    ['mlp_bias', { ...llama, mlp_bias: true }, 'mlp_bias is true'],
    ['a bias mistral lacks', { ...mistral, attention_bias: true }, 'attention_bias is true'],
    ['partial rotary', { ...llama, partial_rotary_factor: 0.5 }, 'partial_rotary_factor is 0.5'],
    [
      'partial rotary in rope_parameters',
      { ...llama, rope_parameters: { partial_rotary_factor: 0.25 } },
      'rope_parameters.partial_rotary_factor is 0.25, expected 1',
    ],
    ['soft-capping', { ...llama, final_logit_softcapping: 30 }, 'final_logit_softcapping is 30'],
    ['attention capping', { ...llama, attn_logit_softcapping: 50 }, 'attn_logit_softcapping is 50'],
    [
      'a missing size',
      { ...llama, hidden_size: undefined },
      'hidden_size is missing, expected an integer from 1 to 1048576',
    ],
    ['zero', { ...llama, num_hidden_layers: 0 }, 'num_hidden_layers is 0, expected an integer'],
    ['negative', { ...llama, vocab_size: -5 }, 'vocab_size is -5, expected an integer'],
    ['a fraction', { ...llama, hidden_size: 128.5 }, 'hidden_size is 128.5, expected an integer'],
    ['a string', { ...llama, hidden_size: '128' }, 'hidden_size is "128", expected an integer'],
    [
      'absurd width',
      { ...llama, intermediate_size: 2 ** 40 },
      'intermediate_size is 1099511627776',
    ],
    ['absurd depth', { ...llama, num_hidden_layers: 1e6 }, 'num_hidden_layers is 1000000'],
    ['absurd vocabulary', { ...llama, vocab_size: 2 ** 31 }, 'vocab_size is 2147483648'],
    [
      'absurd context',
      { ...llama, max_position_embeddings: 2 ** 40 },
      'max_position_embeddings is',
    ],
    ['NaN', { ...llama, rms_norm_eps: Number.NaN }, 'rms_norm_eps is null, expected a number'],
    ['eps of 0', { ...llama, rms_norm_eps: 0 }, 'rms_norm_eps is 0'],
    [
      'KV heads that do not divide',
      { ...llama, num_key_value_heads: 3 },
      'num_key_value_heads is 3, expected a divisor of num_attention_heads 4',
    ],
    ['more KV heads', { ...llama, num_key_value_heads: 8 }, 'num_key_value_heads is 8'],
    [
      'KV heads not said',
      { ...qwen2, num_key_value_heads: undefined },
      'num_key_value_heads is missing',
    ],
    [
      'hidden size between',
      { ...llama, hidden_size: 130 },
      'hidden_size is 130, expected a multiple',
    ],
    ['odd head_dim', { ...llama, head_dim: 33 }, 'head_dim is 33, expected a multiple of 16'],
    ['large head_dim', { ...llama, head_dim: 528 }, 'head_dim is 528, expected an integer from 1'],
    ['derived head_dim', { ...llama, hidden_size: 4096 }, 'head_dim is 1024, expected a multiple'],
    ['tied as text', { ...llama, tie_word_embeddings: 'no' }, 'tie_word_embeddings is "no"'],
    ['eos outside', { ...llama, eos_token_id: 320 }, 'eos_token_id is 320, expected less than'],
    ['negative eos', { ...llama, eos_token_id: [-1] }, 'eos_token_id is [-1], expected a token id'],
    [
      'unknown layer type',
      { ...qwen2, layer_types: [...full.slice(1), 'linear_attention'] },
      'layer_types holds "linear_attention"',
    ],
    [
      'too few layer types',
      { ...qwen2, layer_types: ['full_attention'] },
      'expected one entry for',
    ],
    [
      'a sliding llama',
      { ...llama, layer_types: full.map(() => 'sliding_attention') },
      'layer_types holds "sliding_attention", which LlamaForCausalLM does not have',
    ],
    [
      'a mistral of two kinds of layers',
      { ...mistral, sliding_window: 8, layer_types: full },
      'expected "sliding_attention" for every layer',
    ],
    [
      'a switched off window that is used',
      { ...qwen3, sliding_window: 8, layer_types: full.map(() => 'sliding_attention') },
      'layer_types holds "sliding_attention" while use_sliding_window is false',
    ],
    ['window of 0', { ...mistral, sliding_window: 0 }, 'sliding_window is 0, expected an integer'],
    ['theta', { ...llama, rope_theta: -1 }, 'rope_theta is -1, expected a number above 1'],
    ['theta as text', { ...llama, rope_theta: '1e6' }, 'rope_theta is "1e6"'],
    [
      'dynamic rope',
      { ...llama, rope_scaling: { type: 'dynamic', factor: 2 } },
      'rope_scaling.rope_type is "dynamic", expected "default", "linear", "llama3", "yarn", "longrope" or "proportional"',
    ],
    [
      'longrope',
      { ...llama, rope_parameters: { rope_type: 'longrope' } },
      'rope_parameters.short_factor is missing, expected 16 numbers > 0',
    ],
    [
      'longrope of too few factors',
      { ...llama, rope_scaling: { type: 'longrope', short_factor: [1, 2], long_factor: [1, 2] } },
      'rope_scaling.short_factor is [1,2], expected 16 numbers > 0',
    ],
    [
      'su but in phi3',
      { ...llama, rope_scaling: { type: 'su' } },
      'rope_scaling.rope_type is "su"',
    ],
    ['a part of a pair', { ...phi3, partial_rotary_factor: 0.1 }, 'partial_rotary_factor is 0.1'],
    ['more than all', { ...phi3, partial_rotary_factor: 2 }, 'partial_rotary_factor is 2'],
    ['no flags', { ...smollm3, no_rope_layers: [1, 0, 1] }, 'no_rope_layers is [1,0,1], expected'],
    ['other flags', { ...smollm3, no_rope_layers: [1, 2, 1, 1] }, 'no_rope_layers is [1,2,1,1]'],
    ['a Gemma without windows', { ...gemma3, sliding_window: null }, 'sliding_window is null'],
    [
      'a Gemma that looks ahead',
      { ...gemma3, use_bidirectional_attention: true },
      'use_bidirectional_attention is true',
    ],
    [
      'a Gemma of other activations',
      { ...gemma3, hidden_activation: 'gelu' },
      'hidden_activation is "gelu", expected "silu" or "gelu_pytorch_tanh"',
    ],
    [
      'no experts',
      { ...mixtral, num_local_experts: 0 },
      'num_local_experts is 0, expected an integer',
    ],
    [
      'too many experts',
      { ...qwen3Moe, num_experts: 1025 },
      'num_experts is 1025, expected an integer from 1 to 1024',
    ],
    ['uncounted experts', { ...qwen3Moe, num_experts: null }, 'num_experts is missing'],
    [
      'experts counted twice',
      { ...qwen3Moe, num_local_experts: 8 },
      'num_local_experts is 8, but num_experts is 16',
    ],
    [
      'more experts than there are',
      { ...mixtral, num_experts_per_tok: 9 },
      'num_experts_per_tok is 9, expected an integer from 1 to 8',
    ],
    [
      'experts of no width',
      { ...qwen3Moe, moe_intermediate_size: null },
      'moe_intermediate_size is missing',
    ],
    ['no step', { ...qwen3Moe, decoder_sparse_step: 0 }, 'decoder_sparse_step is 0'],
    [
      'layers that are none',
      { ...qwen3Moe, mlp_only_layers: ['1'] },
      'mlp_only_layers is ["1"], expected an array of layers',
    ],
    [
      'a window in layers of experts that have none',
      { ...qwen3Moe, layer_types: full.map(() => 'sliding_attention') },
      'expected "full_attention" for every layer',
    ],
    ['a text model as text', { ...gemma3Images, text_config: 'x' }, 'text_config is "x"'],
    [
      'what is wrong within the text model',
      { ...gemma3Images, text_config: { ...gemma3Images.text_config, hidden_size: -1 } },
      'text_config.hidden_size is -1',
    ],
    [
      'a text model that is not the one known',
      { ...mistral3, text_config: { ...mistral3.text_config, model_type: 'mixtral' } },
      'text_config.model_type is "mixtral", expected "mistral"',
    ],
    [
      'positions of images where there are none',
      { ...llama, rope_scaling: { type: 'mrope', mrope_section: [4, 6, 6] } },
      'rope_scaling.rope_type is "mrope"',
    ],
    [
      'ministral: layers with a window that is none',
      {
        ...mistral,
        architectures: ['MinistralForCausalLM'],
        model_type: 'ministral',
        sliding_window: null,
        layer_types: ['sliding_attention', ...full.slice(1)],
      },
      'layer_types holds "sliding_attention" while sliding_window is null',
    ],
    [
      'queries, keys and values within bounds',
      { ...llama, clip_qkv: 8 },
      'clip_qkv is 8; clipping is not supported',
    ],
    [
      'a multiplier that is none',
      {
        ...llama,
        architectures: ['GraniteForCausalLM'],
        model_type: 'granite',
        residual_multiplier: 0,
      },
      'residual_multiplier is 0, expected a number > 0',
    ],
    [
      'rope per layer type',
      { ...llama, rope_parameters: { full_attention: { rope_type: 'default' } } },
      'rope_parameters.full_attention is an object',
    ],
    ['rope as text', { ...llama, rope_scaling: 'linear' }, 'rope_scaling is "linear"'],
    [
      'linear without factor',
      { ...llama, rope_scaling: { type: 'linear' } },
      'rope_scaling.factor is missing, expected a number > 0',
    ],
    [
      'llama3 without a band',
      { ...llama, rope_scaling: { ...llama3, high_freq_factor: 1 } },
      'rope_scaling.high_freq_factor is 1, expected more than low_freq_factor 1',
    ],
    [
      'llama3 with an absurd context',
      { ...llama, rope_scaling: { ...llama3, original_max_position_embeddings: 0 } },
      'rope_scaling.original_max_position_embeddings is 0',
    ],
    [
      'yarn without any factor',
      { ...llama, rope_scaling: { rope_type: 'yarn' } },
      'rope_scaling.factor is missing',
    ],
    [
      'yarn with a negative factor',
      { ...llama, rope_scaling: { rope_type: 'yarn', factor: -4 } },
      'rope_scaling.factor is -4',
    ],
  ]
  test.each(cases)('%s', (_, raw, message) => {
    expectZipCacheError(refusal(raw), 'ERR_ZC_CONFIG', 'config.json: ', message)
  })

  test('files that are no config', async () => {
    const read = (content: unknown) => readModelConfig(folders.write({ 'config.json': content }))
    await expectRefusal(readModelConfig(folders.write({})), 'ERR_ZC_CONFIG', 'does not exist')
    const hubId = 'Qwen/Qwen3-0.6B'
    const missing = `${hubId}: does not exist; expected a folder with a Hugging Face model`
    await expectRefusal(readModelConfig(hubId), 'ERR_ZC_CONFIG', missing)
    const file = join(folders.write({ 'model.gguf': 'GGUF' }), 'model.gguf')
    await expectRefusal(readModelConfig(file), 'ERR_ZC_CONFIG', `${file}: is a file; expected`)
    await expectRefusal(
      read('{"hidden_size": 12'),
      'ERR_ZC_CONFIG',
      'config.json: is not valid JSON',
    )
    await expectRefusal(read('{"rms_norm_eps": NaN}'), 'ERR_ZC_CONFIG', 'is not valid JSON')
    await expectRefusal(read('[1, 2]'), 'ERR_ZC_CONFIG', 'holds [1,2], expected a JSON object')
    await expectRefusal(read(''), 'ERR_ZC_CONFIG', 'is not valid JSON')
    await expectRefusal(read(Buffer.from([0x7b, 0xff, 0x7d])), 'ERR_ZC_CONFIG', 'is not UTF-8')
    await expectRefusal(read('['.repeat(1 << 20)), 'ERR_ZC_CONFIG', 'is not valid JSON')
    const huge = Buffer.alloc((1 << 24) + 1, 0x20)
    await expectRefusal(read(huge), 'ERR_ZC_CONFIG', 'is 16777217 bytes long, expected at most')
    const nested = `${'['.repeat(1e5)}${']'.repeat(1e5)}`
    const deep = JSON.stringify(llama).replace('"LlamaForCausalLM"', nested)
    await expectRefusal(read(deep), 'ERR_ZC_CONFIG', 'architectures is a deeply nested array')
  })

  test('a folder in its place, and a path that is none', async () => {
    const dir = folders.write({})
    mkdirSync(join(dir, 'config.json'))
    await expectRefusal(readModelConfig(dir), 'ERR_ZC_CONFIG', 'is not a regular file')
    await expectRefusal(readModelConfig(''), 'ERR_ZC_ARGUMENT', 'dir: is "", expected the path')
    const notAPath = undefined as unknown as string
    await expectRefusal(readModelConfig(notAPath), 'ERR_ZC_ARGUMENT', 'dir: is missing')
    await expectRefusal(readModelConfig('a\0b'), 'ERR_ZC_ARGUMENT', 'dir: is "a')
  })
})

describe('generation_config.json', () => {
  const read = (content: unknown) =>
    readGenerationConfig(folders.write({ 'generation_config.json': content }))

  test('is optional', async () => {
    expect(await readGenerationConfig(folders.write({}))).toBeNull()
  })

  test('is read whole', async () => {
    const raw = {
      bos_token_id: 1,
      eos_token_id: [2, 3],
      do_sample: true,
      temperature: 0.6,
      top_k: 20,
      top_p: 0.95,
      min_p: 0,
      repetition_penalty: 1.05,
      max_new_tokens: 512,
      transformers_version: '5.0.0',
    }
    expect(await read(raw)).toEqual({
      bosTokenId: 1,
      eosTokenIds: [2, 3],
      doSample: true,
      temperature: 0.6,
      topK: 20,
      topP: 0.95,
      minP: 0,
      repetitionPenalty: 1.05,
      maxNewTokens: 512,
    })
    expect(await read({ temperature: null })).toEqual({
      bosTokenId: null,
      eosTokenIds: [],
      doSample: null,
      temperature: null,
      topK: null,
      topP: null,
      minP: null,
      repetitionPenalty: null,
      maxNewTokens: null,
    })
  })

  test.each([
    [{ temperature: -1 }, 'temperature is -1, expected a number >= 0'],
    [{ top_k: 1.5 }, 'top_k is 1.5, expected an integer >= 0'],
    [{ top_p: 0 }, 'top_p is 0, expected a number above 0 and at most 1'],
    [{ min_p: 2 }, 'min_p is 2, expected a number from 0 to 1'],
    [{ repetition_penalty: 0 }, 'repetition_penalty is 0, expected a number > 0'],
    [{ max_new_tokens: '9' }, 'max_new_tokens is "9", expected an integer >= 1'],
    [{ do_sample: 1 }, 'do_sample is 1, expected true or false'],
    [{ eos_token_id: '</s>' }, 'eos_token_id is "</s>", expected a token id'],
  ])('%j is refused', async (raw, message) => {
    await expectRefusal(read(raw), 'ERR_ZC_CONFIG', 'generation_config.json: ', message)
  })

  test('its ids must exist in the model', async () => {
    const generation = { eos_token_id: 320 }
    const dir = folders.write({ 'config.json': llama, 'generation_config.json': generation })
    await expectRefusal(readModelConfig(dir), 'ERR_ZC_CONFIG', 'eos_token_id is 320, expected less')
  })
})

test('the copied fixtures keep the form their authors wrote', () => {
  const raw = readJson(join(kFixtures, 'hf', 'llama3-rope', 'config.json'))
  expect(parseModelConfig(raw).tieWordEmbeddings).toBe(true)
})
