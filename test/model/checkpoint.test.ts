import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import {
  type Checkpoint,
  checkTensors,
  expectedTensors,
  isExact,
  openCheckpoint,
  storedShape,
} from '../../lib/model/checkpoint'
import { type ModelConfig, parseModelConfig, readModelConfig } from '../../lib/model/config'
import {
  expectRefusal,
  expectZipCacheError,
  kFixtures,
  kModels,
  ModelFolders,
  safetensors,
  type TensorSpec,
} from './model-folder'

const folders = new ModelFolders()
afterAll(() => folders.remove())

const config = parseModelConfig({
  architectures: ['LlamaForCausalLM'],
  hidden_size: 32,
  intermediate_size: 48,
  num_hidden_layers: 2,
  num_attention_heads: 2,
  num_key_value_heads: 1,
  vocab_size: 10,
  max_position_embeddings: 64,
})

/** Every tensor of `config`, zero, in F16. */
function tensorsOf(of: ModelConfig): Record<string, TensorSpec> {
  const specs = expectedTensors(of).map(({ name, shape }): [string, TensorSpec] => {
    const sizeBytes = 2 * shape.reduce((a, b) => a * b, 1)
    return [name, { dtype: 'F16', shape: [...shape], sizeBytes }]
  })
  return Object.fromEntries(specs)
}

const kIndex = 'model.safetensors.index.json'
const a = { dtype: 'F32', shape: [2], sizeBytes: 8 }
const shards = {
  'model-00001-of-00002.safetensors': safetensors({ a, b: a }),
  'model-00002-of-00002.safetensors': safetensors({ c: a }),
}
const weightMap = {
  a: 'model-00001-of-00002.safetensors',
  c: 'model-00002-of-00002.safetensors',
  b: 'model-00001-of-00002.safetensors',
}

describe('openCheckpoint', () => {
  test.each(['llama', 'llama3-rope', 'mistral', 'qwen2', 'qwen3', 'gemma4', 'gemma4-e'])(
    'fixture %s has what its config asks for',
    async (name) => {
      const dir = join(kFixtures, 'hf', name)
      const checkpoint = await openCheckpoint(dir)
      expect(checkpoint.files).toEqual([join(dir, 'model.safetensors')])
      const weights = checkTensors(checkpoint, await readModelConfig(dir))
      // And nothing else: no weight of these models is left out. One tensor may be several weights.
      const tensors = new Map(weights.map(({ name, tensor }) => [name, tensor]))
      expect([...tensors.keys()].sort()).toEqual([...checkpoint.tensors.keys()].sort())
      expect(new Set([...tensors.values()].map(({ dtype }) => dtype))).toEqual(new Set(['BF16']))
      const sizes = [...tensors.values()].map(({ sizeBytes }) => sizeBytes)
      expect(checkpoint.sizeBytes).toBe(sizes.reduce((sum, size) => sum + size, 0))
    },
  )

  test.each(['line-retrieval', 'line-retrieval-base'])('model %s too', async (name) => {
    const dir = join(kModels, name)
    const weights = checkTensors(await openCheckpoint(dir), await readModelConfig(dir))
    expect(new Set(weights.map((weight) => weight.tensor.dtype))).toEqual(new Set(['F16']))
  })

  test('shards', async () => {
    const dir = folders.write({
      ...shards,
      [kIndex]: { metadata: { total_size: 1 }, weight_map: weightMap },
    })
    const { tensors, files, sizeBytes } = await openCheckpoint(dir)
    const [first, second] = Object.keys(shards).map((name) => join(dir, name))
    expect(files).toEqual([first, second])
    expect(sizeBytes).toBe(24)
    expect([...tensors].map(([name, { file, sizeBytes }]) => [name, file, sizeBytes])).toEqual([
      ['a', first, 8],
      ['c', second, 8],
      ['b', first, 8],
    ])
  })

  test('shards through links, as hubs cache them', async () => {
    const dir = folders.write({ [kIndex]: { weight_map: { c: 'x.safetensors' } } })
    const blobs = folders.write({ blob: safetensors({ c: a }) })
    symlinkSync(join(blobs, 'blob'), join(dir, 'x.safetensors'))
    expect((await openCheckpoint(dir)).tensors.get('c')?.sizeBytes).toBe(8)
  })

  test('one file outranks shards', async () => {
    const dir = folders.write({ 'model.safetensors': safetensors({ z: a }), [kIndex]: 'broken' })
    expect([...(await openCheckpoint(dir)).tensors.keys()]).toEqual(['z'])
  })
})

describe('openCheckpoint refuses', () => {
  const open = (index: unknown, files: Record<string, unknown> = shards) =>
    openCheckpoint(folders.write({ ...files, [kIndex]: index }))
  const code = 'ERR_ZC_CHECKPOINT'

  test('a folder without weights', async () => {
    const dir = folders.write({ 'pytorch_model.bin': 'x' })
    await expectRefusal(openCheckpoint(dir), code, 'has neither model.safetensors nor', kIndex)
    await expectRefusal(openCheckpoint(''), 'ERR_ZC_ARGUMENT', 'dir: is ""')
  })

  test('a missing shard', async () => {
    const [first] = Object.entries(shards) as [[string, Buffer]]
    await expectRefusal(
      open({ weight_map: weightMap }, Object.fromEntries([first])),
      code,
      'model-00002-of-00002.safetensors: does not exist',
      '"c"',
    )
  })

  test('a tensor that is not in its shard', async () => {
    await expectRefusal(
      open({ weight_map: { ...weightMap, d: weightMap.a } }),
      code,
      'model-00001-of-00002.safetensors: has no tensor "d"',
    )
  })

  test('a damaged shard', async () => {
    const broken = {
      ...shards,
      [weightMap.c]: shards[weightMap.c as keyof typeof shards].subarray(1),
    }
    await expectRefusal(open({ weight_map: weightMap }, broken), code, `${weightMap.c}: `)
  })

  test.each([
    '../model.safetensors',
    '/etc/x.safetensors',
    'sub/model.safetensors',
    'sub\\model.safetensors',
    'model.bin',
    '.safetensors/..',
    'a\0.safetensors',
    '',
    7,
    null,
  ])('the shard name %j', async (shard) => {
    await expectRefusal(
      open({ weight_map: { a: shard } }),
      code,
      `"a" is in ${JSON.stringify(shard)}, expected the name of a .safetensors file`,
    )
  })

  test('an index that is none', async () => {
    await expectRefusal(open('{'), code, `${kIndex}: is not valid JSON`)
    await expectRefusal(open('[]'), code, `${kIndex}: holds [], expected a JSON object`)
    await expectRefusal(open({}), code, 'weight_map is missing, expected an object')
    await expectRefusal(open({ weight_map: [] }), code, 'weight_map is [], expected an object')
    await expectRefusal(open({ weight_map: {} }), code, 'weight_map is empty')
  })

  test('a folder in the place of a file', async () => {
    const dir = folders.write({ [kIndex]: { weight_map: { a: 'x.safetensors' } } })
    mkdirSync(join(dir, 'x.safetensors'))
    await expectRefusal(openCheckpoint(dir), code, 'x.safetensors: is not a regular file')
  })
})

describe('expectedTensors', () => {
  const byName = (of: ModelConfig) =>
    Object.fromEntries(expectedTensors(of).map(({ name, shape }) => [name, shape]))

  test('names and shapes of a plain layer', () => {
    const shapes = byName(config)
    expect(shapes).toMatchObject({
      'model.embed_tokens.weight': [10, 32],
      'model.layers.1.self_attn.q_proj.weight': [32, 32],
      'model.layers.1.self_attn.k_proj.weight': [16, 32],
      'model.layers.1.self_attn.v_proj.weight': [16, 32],
      'model.layers.1.self_attn.o_proj.weight': [32, 32],
      'model.layers.1.mlp.gate_proj.weight': [48, 32],
      'model.layers.1.mlp.up_proj.weight': [48, 32],
      'model.layers.1.mlp.down_proj.weight': [32, 48],
      'model.layers.1.input_layernorm.weight': [32],
      'model.layers.1.post_attention_layernorm.weight': [32],
      'model.norm.weight': [32],
      'lm_head.weight': [10, 32],
    })
    expect(Object.keys(shapes)).toHaveLength(2 * 9 + 3)
  })

  test('ties, biases, norms of q and k, an explicit head_dim', () => {
    expect(byName({ ...config, tieWordEmbeddings: true })).not.toHaveProperty(['lm_head.weight'])
    const shapes = byName({
      ...config,
      attentionBias: { qkv: true, output: true },
      qkNorm: 'each head',
      headDim: 64,
    })
    expect(shapes).toMatchObject({
      'model.layers.0.self_attn.q_proj.weight': [128, 32],
      'model.layers.0.self_attn.o_proj.weight': [32, 128],
      'model.layers.0.self_attn.q_proj.bias': [128],
      'model.layers.0.self_attn.k_proj.bias': [64],
      'model.layers.0.self_attn.v_proj.bias': [64],
      'model.layers.0.self_attn.o_proj.bias': [32],
      'model.layers.0.self_attn.q_norm.weight': [64],
      'model.layers.0.self_attn.k_norm.weight': [64],
    })
  })
})

test('norms of what is added to the stream alone, and of all heads together', () => {
  const norms = { attention: null, attentionOutput: 'a', mlp: null, mlpOutput: 'b' }
  const shapes = expectedTensors({ ...config, norms, qkNorm: 'all heads' })
    .filter(({ layer, role }) => layer === 1 && role.endsWith('Norm'))
    .map(({ name, role, shape }) => [name, role, shape])
  expect(shapes).toEqual([
    ['model.layers.1.self_attn.q_norm.weight', 'qNorm', [32]],
    ['model.layers.1.self_attn.k_norm.weight', 'kNorm', [16]],
    ['model.layers.1.a.weight', 'attentionOutputNorm', [32]],
    ['model.layers.1.b.weight', 'mlpOutputNorm', [32]],
  ])
})

describe('weights that lie in one tensor', () => {
  test('are its rows, in order', () => {
    const fused = expectedTensors({ ...config, fusedProjections: 'all' })
    const rowsIn = (name: string) =>
      fused
        .filter((own) => own.name.endsWith(name))
        .map(({ role, shape, rows }) => ({ role, shape, rows }))
    expect(rowsIn('layers.1.self_attn.qkv_proj.weight')).toEqual([
      { role: 'qProj', shape: [64, 32], rows: [0, 32] },
      { role: 'kProj', shape: [64, 32], rows: [32, 48] },
      { role: 'vProj', shape: [64, 32], rows: [48, 64] },
    ])
    expect(rowsIn('layers.0.mlp.gate_up_proj.weight')).toEqual([
      { role: 'gateProj', shape: [96, 32], rows: [0, 48] },
      { role: 'upProj', shape: [96, 32], rows: [48, 96] },
    ])
    expect(fused.some(({ name }) => /\.(q|k|v|gate|up)_proj/.test(name))).toBe(false)
  })
})

describe('layers with a recurrent state, and those between', () => {
  const hybrid = (changes: Parameters<typeof parseModelConfig>[0]) =>
    parseModelConfig({
      ...{ hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, vocab_size: 10 },
      ...{ num_attention_heads: 2, num_key_value_heads: 1, max_position_embeddings: 64 },
      ...{ head_dim: 16, linear_num_key_heads: 2, linear_num_value_heads: 4 },
      ...{ linear_key_head_dim: 16, linear_value_head_dim: 32, full_attention_interval: 2 },
      ...changes,
    })
  const ofLayer = (of: ModelConfig, layer: number) =>
    expectedTensors(of).filter((own) => own.layer === layer)

  test('have tensors of their own, then what other layers have', () => {
    const qwen = hybrid({ architectures: ['Qwen3_5ForCausalLM'] })
    const prefix = 'model.layers.0'
    const [delta, mlp] = [`${prefix}.linear_attn`, `${prefix}.mlp`]
    expect(ofLayer(qwen, 0).map(({ name, role, shape }) => [role, name, shape])).toEqual([
      ['inputNorm', `${prefix}.input_layernorm.weight`, [32]],
      ['recurrentQkv', `${delta}.in_proj_qkv.weight`, [192, 32]],
      ['recurrentGate', `${delta}.in_proj_z.weight`, [128, 32]],
      ['recurrentDecay', `${delta}.in_proj_a.weight`, [4, 32]],
      ['recurrentBeta', `${delta}.in_proj_b.weight`, [4, 32]],
      ['recurrentConv', `${delta}.conv1d.weight`, [192, 1, 4]],
      ['recurrentDecayLog', `${delta}.A_log`, [4]],
      ['recurrentDecayBias', `${delta}.dt_bias`, [4]],
      ['recurrentNorm', `${delta}.norm.weight`, [32]],
      ['recurrentOut', `${delta}.out_proj.weight`, [32, 128]],
      ['mlpNorm', `${prefix}.post_attention_layernorm.weight`, [32]],
      ['gateProj', `${mlp}.gate_proj.weight`, [48, 32]],
      ['upProj', `${mlp}.up_proj.weight`, [48, 32]],
      ['downProj', `${mlp}.down_proj.weight`, [32, 48]],
    ])
    const own = ofLayer(qwen, 1).slice(1, 5)
    expect(own.map(({ role, shape, rows, pieces }) => ({ role, shape, rows, pieces }))).toEqual([
      {
        role: 'qProj',
        shape: [64, 32],
        rows: null,
        pieces: [
          [0, 16],
          [32, 48],
        ],
      },
      {
        role: 'attentionGate',
        shape: [64, 32],
        rows: null,
        pieces: [
          [16, 32],
          [48, 64],
        ],
      },
      { role: 'kProj', shape: [16, 32], rows: null },
      { role: 'vProj', shape: [16, 32], rows: null },
    ])
    expect(own.slice(0, 2).map(({ name }) => name)).toEqual([
      'model.layers.1.self_attn.q_proj.weight',
      'model.layers.1.self_attn.q_proj.weight',
    ])
    expect(isExact('recurrentDecay') && isExact('recurrentBeta') && !isExact('recurrentOut')).toBe(
      true,
    )
  })

  test("of qwen3-next: a key head's rows of all projections lie together", () => {
    const experts = { num_experts: 2, num_experts_per_tok: 1, moe_intermediate_size: 16 }
    const next = hybrid({
      ...{ ...experts, architectures: ['Qwen3NextForCausalLM'] },
      shared_expert_intermediate_size: 16,
    })
    const [all, rates] = ['in_proj_qkvz', 'in_proj_ba'].map(
      (name) => `model.layers.0.linear_attn.${name}.weight`,
    )
    const own = ofLayer(next, 0).slice(1, 5)
    expect(own.map(({ name, role, shape, pieces }) => ({ name, role, shape, pieces }))).toEqual([
      {
        ...{ name: all, role: 'recurrentQkv', shape: [320, 32] },
        // Queries, keys, values of both.
        pieces: [
          [0, 16],
          [160, 176],
          [16, 32],
          [176, 192],
          [32, 96],
          [192, 256],
        ],
      },
      {
        name: all,
        role: 'recurrentGate',
        shape: [320, 32],
        pieces: [
          [96, 160],
          [256, 320],
        ],
      },
      {
        name: rates,
        role: 'recurrentBeta',
        shape: [8, 32],
        pieces: [
          [0, 2],
          [4, 6],
        ],
      },
      {
        name: rates,
        role: 'recurrentDecay',
        shape: [8, 32],
        pieces: [
          [2, 4],
          [6, 8],
        ],
      },
    ])
  })
})

describe('of Gemma 4', () => {
  const gemma = (changes: Parameters<typeof parseModelConfig>[0]) =>
    parseModelConfig({
      ...{ architectures: ['Gemma4ForCausalLM'], hidden_size: 32, intermediate_size: 48 },
      ...{ num_hidden_layers: 4, num_attention_heads: 4, num_key_value_heads: 2, vocab_size: 10 },
      ...{ head_dim: 16, global_head_dim: 32, max_position_embeddings: 64, sliding_window: 8 },
      ...{
        layer_types: [0, 1, 0, 1].map((sees) => (sees ? 'full_attention' : 'sliding_attention')),
      },
      ...{ hidden_size_per_layer_input: 0, ...changes },
    })
  const ofLayer = (of: ModelConfig, layer: number | null) =>
    expectedTensors(of)
      .filter((own) => own.layer === layer)
      .map(({ name, role, shape }) => [role, name.replace(`model.layers.${layer}.`, ''), shape])
  const attention = (of: ModelConfig, layer: number) =>
    ofLayer(of, layer).filter(([, name]) => /self_attn/.test(name as string))

  test('heads are as the layer has them; where values are keys there is no v_proj', () => {
    const own = gemma({ attention_k_eq_v: true, num_global_key_value_heads: 1 })
    expect(attention(own, 0)).toEqual([
      ['qProj', 'self_attn.q_proj.weight', [64, 32]],
      ['kProj', 'self_attn.k_proj.weight', [32, 32]],
      ['vProj', 'self_attn.v_proj.weight', [32, 32]],
      ['qNorm', 'self_attn.q_norm.weight', [16]],
      ['kNorm', 'self_attn.k_norm.weight', [16]],
      ['oProj', 'self_attn.o_proj.weight', [32, 64]],
    ])
    expect(attention(own, 1)).toEqual([
      ['qProj', 'self_attn.q_proj.weight', [128, 32]],
      ['kProj', 'self_attn.k_proj.weight', [32, 32]],
      ['qNorm', 'self_attn.q_norm.weight', [32]],
      ['kNorm', 'self_attn.k_norm.weight', [32]],
      ['oProj', 'self_attn.o_proj.weight', [32, 128]],
    ])
    const biased = attention(gemma({ attention_k_eq_v: true, attention_bias: true }), 1)
    expect(biased.filter(([role]) => /Bias$/.test(role as string))).toEqual([
      ['qBias', 'self_attn.q_proj.bias', [128]],
      ['kBias', 'self_attn.k_proj.bias', [64]],
      ['oBias', 'self_attn.o_proj.bias', [32]],
    ])
  })

  test('layers that take keys of others have none, a wider MLP, and inputs of their own', () => {
    const own = gemma({
      ...{ num_kv_shared_layers: 2, use_double_wide_mlp: true },
      ...{ hidden_size_per_layer_input: 16, vocab_size_per_layer_input: 12 },
    })
    expect(ofLayer(own, 3)).toEqual([
      ['inputNorm', 'input_layernorm.weight', [32]],
      ['qProj', 'self_attn.q_proj.weight', [128, 32]],
      ['qNorm', 'self_attn.q_norm.weight', [32]],
      ['oProj', 'self_attn.o_proj.weight', [32, 128]],
      ['attentionOutputNorm', 'post_attention_layernorm.weight', [32]],
      ['mlpNorm', 'pre_feedforward_layernorm.weight', [32]],
      ['gateProj', 'mlp.gate_proj.weight', [96, 32]],
      ['upProj', 'mlp.up_proj.weight', [96, 32]],
      ['downProj', 'mlp.down_proj.weight', [32, 96]],
      ['mlpOutputNorm', 'post_feedforward_layernorm.weight', [32]],
      ['perLayerModelProj', 'model.per_layer_model_projection.weight', [64, 32]],
      ['perLayerGate', 'per_layer_input_gate.weight', [16, 32]],
      ['perLayerProj', 'per_layer_projection.weight', [32, 16]],
      ['perLayerNorm', 'post_per_layer_input_norm.weight', [32]],
      ['layerScalar', 'layer_scalar', [1]],
    ])
    expect(ofLayer(own, null)).toEqual([
      ['embedding', 'model.embed_tokens.weight', [10, 32]],
      ['perLayerEmbedding', 'model.embed_tokens_per_layer.weight', [12, 64]],
      ['perLayerModelNorm', 'model.per_layer_projection_norm.weight', [16]],
      ['norm', 'model.norm.weight', [32]],
    ])
  })

  test('experts have norms of their own beside the MLP', () => {
    const own = gemma({
      ...{ enable_moe_block: true, num_experts: 2, top_k_experts: 1, moe_intermediate_size: 16 },
    })
    expect(ofLayer(own, 0).slice(9)).toEqual([
      ['router', 'router.proj.weight', [2, 32]],
      ['routerNorm', 'router.scale', [32]],
      ['expertScales', 'router.per_expert_scale', [2]],
      ['expertsNorm', 'pre_feedforward_layernorm_2.weight', [32]],
      ['expertsOutputNorm', 'post_feedforward_layernorm_2.weight', [32]],
      ['sharedOutputNorm', 'post_feedforward_layernorm_1.weight', [32]],
      ...[0, 1].flatMap(() => [
        ['gateProj', 'experts.gate_up_proj', [2, 32, 32]],
        ['upProj', 'experts.gate_up_proj', [2, 32, 32]],
        ['downProj', 'experts.down_proj', [2, 32, 16]],
      ]),
      ['sharedGateProj', 'mlp.gate_proj.weight', [48, 32]],
      ['sharedUpProj', 'mlp.up_proj.weight', [48, 32]],
      ['sharedDownProj', 'mlp.down_proj.weight', [32, 48]],
      ['mlpOutputNorm', 'post_feedforward_layernorm.weight', [32]],
      ['layerScalar', 'layer_scalar', [1]],
    ])
  })
})

describe('experts', () => {
  const sizes = {
    ...{ hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, vocab_size: 10 },
    ...{ num_attention_heads: 2, num_key_value_heads: 1, max_position_embeddings: 64 },
    num_experts_per_tok: 2,
  }
  const mlpOf = (raw: Parameters<typeof parseModelConfig>[0], layer: number) =>
    expectedTensors(parseModelConfig({ ...sizes, ...raw }))
      .filter((own) => own.layer === layer && /router|(gate|up|down)Proj/.test(own.role))
      .map(({ name, role, shape, expert }) => [name, role, shape, expert])

  test('are matrices by name, one after another, behind their router', () => {
    const mixtral = { architectures: ['MixtralForCausalLM'], num_local_experts: 3 }
    const block = 'model.layers.1.block_sparse_moe'
    expect(mlpOf(mixtral, 1)).toEqual([
      [`${block}.gate.weight`, 'router', [3, 32], null],
      ...[0, 1, 2].flatMap((expert) => [
        [`${block}.experts.${expert}.w1.weight`, 'gateProj', [48, 32], expert],
        [`${block}.experts.${expert}.w3.weight`, 'upProj', [48, 32], expert],
        [`${block}.experts.${expert}.w2.weight`, 'downProj', [32, 48], expert],
      ]),
    ])
  })

  test('with one of all rows, its gate, and what corrects scores', () => {
    const widths = { moe_intermediate_size: 8, shared_expert_intermediate_size: 24, moe_k: 1 }
    const of = (raw: Parameters<typeof parseModelConfig>[0]) =>
      expectedTensors(parseModelConfig({ ...sizes, ...widths, ...raw }))
        .filter(({ layer, role }) => layer === 1 && /^(shared|routerC)/.test(role))
        .map(({ name, role, shape }) => [name, role, shape])
    const mlp = 'model.layers.1.mlp'
    const shared = (name: string, width: number) => [
      [`${mlp}.${name}.gate_proj.weight`, 'sharedGateProj', [width, 32]],
      [`${mlp}.${name}.up_proj.weight`, 'sharedUpProj', [width, 32]],
      [`${mlp}.${name}.down_proj.weight`, 'sharedDownProj', [32, width]],
    ]
    expect(of({ architectures: ['Qwen2MoeForCausalLM'], num_experts: 3 })).toEqual([
      [`${mlp}.shared_expert_gate.weight`, 'sharedGate', [1, 32]],
      ...shared('shared_expert', 24),
    ])
    const glm = { architectures: ['Glm4MoeForCausalLM'], n_routed_experts: 3, head_dim: 16 }
    expect(of(glm)).toEqual([
      [`${mlp}.gate.e_score_correction_bias`, 'routerCorrection', [3]],
      ...shared('shared_experts', 8),
    ])
    const ernie = { architectures: ['Ernie4_5_MoeForCausalLM'], moe_num_experts: 3 }
    const correction = [`${mlp}.moe_statics.e_score_correction_bias`, 'routerCorrection', [1, 3]]
    expect(of(ernie)).toEqual([correction, ...shared('shared_experts', 16)])
    expect(of({ ...ernie, moe_num_shared_experts: 0 })).toEqual([correction])
  })

  test('lie in two tensors, the gate of each before its up', () => {
    const granite = { architectures: ['GraniteMoeForCausalLM'], num_local_experts: 2 }
    const block = 'model.layers.1.block_sparse_moe'
    const [both, down] = [`${block}.input_linear.weight`, `${block}.output_linear.weight`]
    expect(mlpOf(granite, 1)).toEqual([
      [`${block}.router.layer.weight`, 'router', [2, 32], null],
      ...[0, 1].flatMap((expert) => [
        [both, 'gateProj', [2, 96, 32], expert],
        [both, 'upProj', [2, 96, 32], expert],
        [down, 'downProj', [2, 32, 48], expert],
      ]),
    ])
    const rows = expectedTensors(parseModelConfig({ ...sizes, ...granite }))
      .filter(({ expert, layer }) => expert === 1 && layer === 0)
      .map((own) => own.rows)
    expect(rows).toEqual([[0, 48], [48, 96], null])
  })

  test('of gpt-oss: gate and up in turns, with biases, (in, out) but where they are quantized', async () => {
    const raw = { ...sizes, architectures: ['GptOssForCausalLM'], num_local_experts: 2 }
    const own = parseModelConfig({ ...raw, head_dim: 16 })
    const block = 'model.layers.1.mlp'
    const [both, down] = [`${block}.experts.gate_up_proj`, `${block}.experts.down_proj`]
    const expected = expectedTensors(own).filter(({ layer }) => layer === 1)
    const of = (pattern: RegExp) =>
      expected
        .filter(({ role }) => pattern.test(role))
        .map(({ name, role, shape, expert, everyOther }) => [name, role, shape, expert, everyOther])
    expect(of(/router|(gate|up|down)(Proj|Bias)/)).toEqual([
      [`${block}.router.weight`, 'router', [2, 32], null, undefined],
      [`${block}.router.bias`, 'routerBias', [2], null, undefined],
      [`${both}_bias`, 'gateBias', [2, 96], null, 0],
      [`${both}_bias`, 'upBias', [2, 96], null, 1],
      [`${down}_bias`, 'downBias', [2, 32], null, undefined],
      ...[0, 1].flatMap((expert) => [
        [both, 'gateProj', [2, 96, 32], expert, 0],
        [both, 'upProj', [2, 96, 32], expert, 1],
        [down, 'downProj', [2, 32, 48], expert, undefined],
      ]),
    ])
    const stored = Object.fromEntries(
      expectedTensors(own).map((one) => [one.name, storedShape(one)] as const),
    )
    expect([stored[both], stored[down]]).toEqual([
      [2, 32, 96],
      [2, 48, 32],
    ])
    const specs = (changes: Record<string, number[]>) =>
      Object.fromEntries(
        Object.entries({ ...stored, ...changes }).map(([name, shape]): [string, TensorSpec] => {
          const sizeBytes = 2 * shape.reduce((product, size) => product * size, 1)
          return [name, { dtype: 'BF16', shape: [...shape], sizeBytes }]
        }),
      )
    const check = async (changes: Record<string, number[]>) =>
      checkTensors(
        await openCheckpoint(folders.write({ 'model.safetensors': safetensors(specs(changes)) })),
        own,
      )
    const transposed = (await check({})).filter(({ isTransposed }) => isTransposed)
    expect(transposed).toHaveLength(2 * 2 * 3)
    const message = `${both} has shape [2, 96, 32], expected [2, 32, 96]`
    await expect(check({ [both]: [2, 96, 32] })).rejects.toThrow(message)
  })

  test('are not in every layer', () => {
    const qwen = {
      ...{ architectures: ['Qwen3MoeForCausalLM'], num_experts: 2, moe_intermediate_size: 16 },
      mlp_only_layers: [0],
    }
    expect(mlpOf(qwen, 0).map(([, role, shape]) => [role, shape])).toEqual([
      ['gateProj', [48, 32]],
      ['upProj', [48, 32]],
      ['downProj', [32, 48]],
    ])
    expect(mlpOf(qwen, 1).slice(0, 2)).toEqual([
      ['model.layers.1.mlp.gate.weight', 'router', [2, 32], null],
      ['model.layers.1.mlp.experts.0.gate_proj.weight', 'gateProj', [16, 32], 0],
    ])
  })
})

describe('checkTensors', () => {
  const open = async (tensors: Record<string, TensorSpec>): Promise<Checkpoint> =>
    openCheckpoint(folders.write({ 'model.safetensors': safetensors(tensors) }))
  const refusal = async (tensors: Record<string, TensorSpec>): Promise<unknown> => {
    const checkpoint = await open(tensors)
    try {
      checkTensors(checkpoint, config)
    } catch (error) {
      return error
    }
    return undefined
  }
  const name = 'model.layers.1.self_attn.k_proj.weight'

  test('pairs each expected tensor with its place and passes over others', async () => {
    const extra = {
      'model.layers.0.self_attn.rotary_emb.inv_freq': { dtype: 'F32', shape: [8], sizeBytes: 32 },
      position_ids: { dtype: 'I64', shape: [2], sizeBytes: 16 },
    }
    const checkpoint = await open({ ...tensorsOf(config), ...extra })
    const weights = checkTensors(checkpoint, config)
    expect(weights).toHaveLength(expectedTensors(config).length)
    const weight = weights.find((w) => w.role === 'kProj' && w.layer === 1)
    expect(weight).toMatchObject({ name, tensor: checkpoint.tensors.get(name) })
  })

  test('a missing tensor', async () => {
    const { [name]: _, ...rest } = tensorsOf(config)
    const error = await refusal(rest)
    expectZipCacheError(error, 'ERR_ZC_CHECKPOINT', `${name} is missing, expected shape [16, 32]`)
  })

  test('another shape, though of the same size', async () => {
    const wrong = { dtype: 'F16', shape: [32, 16], sizeBytes: 1024 }
    const error = await refusal({ ...tensorsOf(config), [name]: wrong })
    expectZipCacheError(
      error,
      'ERR_ZC_CHECKPOINT',
      `${name} has shape [32, 16], expected [16, 32]`,
      'model.safetensors',
    )
  })

  test.each([
    ['I8', 512],
    ['F64', 4096],
    ['F8_E4M3', 512],
    ['I32', 2048],
  ])('dtype %s', async (dtype, sizeBytes) => {
    const wrong = { dtype, shape: [16, 32], sizeBytes }
    const error = await refusal({ ...tensorsOf(config), [name]: wrong })
    expectZipCacheError(
      error,
      'ERR_ZC_CHECKPOINT',
      `${name} has dtype ${dtype}, expected one of F32, F16, BF16`,
    )
  })

  test('a config that asks for more than the file has costs nothing', async () => {
    const dir = folders.write({ 'model.safetensors': safetensors(tensorsOf(config)) })
    writeFileSync(join(dir, 'unused'), '')
    const checkpoint = await openCheckpoint(dir)
    const huge = { ...config, hiddenSize: 1 << 20, vocabSize: 1 << 22 }
    expect(() => checkTensors(checkpoint, huge)).toThrow(
      'model.embed_tokens.weight has shape [10, 32], expected [4194304, 1048576]',
    )
  })
})
