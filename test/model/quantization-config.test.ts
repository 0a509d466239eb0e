import fc from 'fast-check'
import { ZipCacheError } from '../../lib/errors'
import { parseModelConfig } from '../../lib/model/config'
import type { JsonObject } from '../../lib/model/model-files'
import { propertyRuns } from '../support/properties'
import { expectZipCacheError } from './model-folder'

const llama: JsonObject = {
  architectures: ['LlamaForCausalLM'],
  hidden_size: 128,
  intermediate_size: 256,
  num_hidden_layers: 4,
  num_attention_heads: 4,
  vocab_size: 320,
  max_position_embeddings: 4096,
}

const read = (quantization_config: unknown) =>
  parseModelConfig({ ...llama, quantization_config }).quantization

const int4 = { num_bits: 4, type: 'int', strategy: 'group', group_size: 128, symmetric: true }
const fp8 = { num_bits: 8, type: 'float', strategy: 'channel', symmetric: true }
const ct = (weights: unknown, more: object = {}) => ({
  quant_method: 'compressed-tensors',
  format: 'pack-quantized',
  config_groups: { group_0: { targets: ['Linear'], weights } },
  ...more,
})
const gptq = { quant_method: 'gptq', bits: 4, group_size: 128, desc_act: true, sym: true }
const awq = { quant_method: 'awq', bits: 4, group_size: 64, version: 'gemm', zero_point: true }

test('no quantization', () => {
  expect(parseModelConfig(llama).quantization).toBeNull()
  expect(read(null)).toBeNull()
})

test.each([
  [
    'Qwen3-8B-FP8',
    {
      activation_scheme: 'dynamic',
      fmt: 'e4m3',
      quant_method: 'fp8',
      weight_block_size: [128, 128],
    },
    { method: 'fp8', block: [128, 128] },
  ],
  [
    'AutoFP8, with a scale for all',
    { quant_method: 'fp8', activation_scheme: 'static', ignored_layers: ['lm_head'] },
    { method: 'fp8', block: null },
  ],
  [
    'gpt-oss',
    { quant_method: 'mxfp4', modules_to_not_convert: ['model.layers.*.self_attn', 'lm_head'] },
    { method: 'mxfp4' },
  ],
  [
    'NVFP4 of compressed-tensors',
    ct(
      { num_bits: 4, type: 'float', strategy: 'tensor_group', group_size: 16 },
      { format: 'nvfp4-pack-quantized' },
    ),
    { method: 'compressed-tensors', blocks: [[1, 16]] },
  ],
  [
    'NVFP4 of Model Optimizer',
    { quant_method: 'modelopt', quant_algo: 'NVFP4', config_groups: {}, ignore: ['lm_head'] },
    { method: 'modelopt' },
  ],
  [
    'FP8 of Model Optimizer',
    { quant_method: 'modelopt', quant_algo: 'FP8', kv_cache_scheme: { num_bits: 8 } },
    { method: 'modelopt' },
  ],
  ['groups', ct(int4), { method: 'compressed-tensors', blocks: [[1, 128]] }],
  [
    'channels',
    ct({ ...int4, strategy: 'channel', group_size: -1 }),
    { method: 'compressed-tensors', blocks: [] },
  ],
  ['one for all', ct({ num_bits: 8, type: 'int' }), { method: 'compressed-tensors', blocks: [] }],
  [
    'blocks, with quantized activations and cache',
    ct(
      { ...fp8, strategy: 'block', block_structure: [128, 64] },
      {
        format: 'float-quantized',
        kv_cache_scheme: { num_bits: 8, type: 'float' },
        transform_config: {},
        sparsity_config: {},
        ignore: ['lm_head'],
      },
    ),
    { method: 'compressed-tensors', blocks: [[128, 64]] },
  ],
  [
    'several groups, one of activations alone',
    {
      config_groups: {
        a: { weights: int4, input_activations: null },
        b: { weights: { ...int4, group_size: 32, actorder: 'group' } },
        c: { weights: null },
      },
      format: 'mixed-precision',
    },
    {
      method: 'compressed-tensors',
      blocks: [
        [1, 128],
        [1, 32],
      ],
    },
  ],
  ['GPTQ', gptq, { method: 'gptq', bits: 4, groupSize: 128, zerosLessOne: true }],
  [
    'GPTQ, version 2',
    { ...gptq, bits: 8, group_size: -1, checkpoint_format: 'gptq_v2' },
    { method: 'gptq', bits: 8, groupSize: null, zerosLessOne: false },
  ],
  ['AWQ', awq, { method: 'awq', groupSize: 64 }],
  [
    'AWQ in its own words',
    { quant_method: 'awq', w_bit: 4, q_group_size: 128, version: 'GEMM' },
    { method: 'awq', groupSize: 128 },
  ],
])('%s', (_, config, expected) => {
  expect(read(config)).toEqual(expected)
})

test('compression_config, as older files call it, and that of a text model', () => {
  const { quantization } = parseModelConfig({ ...llama, compression_config: ct(fp8) })
  expect(quantization?.method).toBe('compressed-tensors')
  const text = { ...llama, query_pre_attn_scalar: 32, quantization_config: gptq }
  const architectures = ['Gemma3ForConditionalGeneration']
  const images = parseModelConfig({ architectures, text_config: text })
  expect(images.quantization?.method).toBe('gptq')
})

test.each([
  [
    'nothing in it',
    {},
    'quantization_config.quant_method is missing, expected one of fp8, compressed-tensors',
  ],
  ['no object', 'fp8', 'quantization_config is "fp8", expected an object'],
  [
    'bitsandbytes',
    { quant_method: 'bitsandbytes' },
    'quant_method is "bitsandbytes", expected one of',
  ],
  ['mxfp8', { quant_method: 'mxfp8' }, 'quant_method is "mxfp8", expected one of'],
  ['e5m2', { quant_method: 'fp8', fmt: 'e5m2' }, 'fmt is "e5m2", expected one of e4m3'],
  ['ue8m0', { quant_method: 'fp8', scale_fmt: 'ue8m0' }, 'scale_fmt is "ue8m0", expected "float"'],
  [
    'a block',
    { quant_method: 'fp8', weight_block_size: [128] },
    'weight_block_size is [128], expected two integers',
  ],
  [
    'a block of 0',
    { quant_method: 'fp8', weight_block_size: [0, 128] },
    'weight_block_size is [0,128]',
  ],
  [
    'no groups',
    { quant_method: 'compressed-tensors' },
    'config_groups is missing, expected an object',
  ],
  [
    'NVFP4 with another smoothing',
    { quant_method: 'modelopt', quant_algo: 'NVFP4_AWQ' },
    'quant_algo is "NVFP4_AWQ", expected one of FP8, NVFP4',
  ],
  ['marlin-24', ct(int4, { format: 'marlin-24' }), 'format is "marlin-24"'],
  [
    'a preset',
    ct(int4, { config_groups: { W4A16: ['Linear'] } }),
    'config_groups.W4A16 is ["Linear"], expected an object',
  ],
  ['weights', ct(7), 'config_groups.group_0.weights is 7, expected an object'],
  ['3 bits', ct({ ...int4, num_bits: 3 }), 'weights.num_bits is 3, expected 4 or 8'],
  ['float6', ct({ ...fp8, num_bits: 6 }), 'weights.num_bits is 6, expected 4 or 8'],
  ['a type', ct({ ...int4, type: 'lut' }), 'weights.type is "lut", expected "int" or "float"'],
  ['a strategy', ct({ ...int4, strategy: 'token' }), 'weights.strategy is "token", expected'],
  ['a group', ct({ ...int4, group_size: 0.5 }), 'weights.group_size is 0.5, expected an integer'],
  [
    'transforms',
    ct(int4, { transform_config: { config_groups: { u: {} } } }),
    'transform_config is set',
  ],
  [
    'sparsity',
    ct(int4, { sparsity_config: { format: 'sparse-24-bitmask' } }),
    'sparsity_config.format is "sparse-24-bitmask"',
  ],
  ['GPTQ of 3 bits', { ...gptq, bits: 3 }, 'bits is 3, expected 4 or 8'],
  [
    'GPTQ for Marlin',
    { ...gptq, checkpoint_format: 'marlin' },
    'checkpoint_format is "marlin", expected "gptq"',
  ],
  ['GPTQ for Marlin, older', { ...gptq, is_marlin_format: true }, 'is_marlin_format is true'],
  [
    'GPTQ without group_size',
    { ...gptq, group_size: undefined },
    'group_size is missing, expected an integer',
  ],
  ['AWQ for GEMV', { ...awq, version: 'gemv' }, 'version is "gemv", expected "gemm"'],
  ['AWQ of llm-awq', { ...awq, backend: 'llm-awq' }, 'backend is "llm-awq"'],
  ['AWQ without zeros', { ...awq, zero_point: false }, 'zero_point is false, expected true'],
  ['AWQ of 8 bits', { ...awq, bits: 8 }, 'bits is 8, expected 4'],
])('%s is refused by name', (_, config, message) => {
  let error: unknown
  try {
    read(config)
  } catch (caught) {
    error = caught
  }
  expectZipCacheError(error, 'ERR_ZC_CONFIG', 'quantization_config', message)
})

test('whatever it says, it is read or refused', () => {
  const key = fc.constantFrom(
    ...['quant_method', 'bits', 'group_size', 'config_groups', 'format', 'version', 'weights', 'a'],
    ...['weight_block_size', 'strategy', 'num_bits', 'type', 'block_structure', 'transform_config'],
  )
  const word = fc.constantFrom(
    'fp8',
    'compressed-tensors',
    'gptq',
    'awq',
    'gemm',
    'int',
    'group',
    4,
    8,
    -1,
  )
  const { value } = fc.letrec((tie) => ({
    value: fc.oneof(
      { maxDepth: 4, withCrossShrink: true },
      word,
      fc.jsonValue({ maxDepth: 1 }),
      fc.dictionary(key, tie('value'), { maxKeys: 5 }),
    ),
  }))
  const config = fc.dictionary(key, value, { maxKeys: 8 })
  fc.assert(
    fc.property(
      config,
      fc.constantFrom(undefined, 'fp8', 'compressed-tensors', 'gptq', 'awq'),
      (raw, method) => {
        try {
          const found = read(method ? { ...raw, quant_method: method } : raw)
          expect(['fp8', 'compressed-tensors', 'gptq', 'awq']).toContain(found?.method)
        } catch (error) {
          expect(error).toBeInstanceOf(ZipCacheError)
          expect(error).toMatchObject({ code: 'ERR_ZC_CONFIG' })
        }
      },
    ),
    propertyRuns(500),
  )
})
