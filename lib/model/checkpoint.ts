import { ZipCacheError } from '../errors.js'
import {
  type ExpertNames,
  type ExpertsConfig,
  headsOf,
  type JointExpertNames,
  type ModelConfig,
  type OwnExpertNames,
  type PerLayerInputs,
  type QuantizationConfig,
  type RecurrenceConfig,
} from './config.js'
import { isJsonObject, modelFile, quote, readJsonFile, regularFileSize } from './model-files.js'
import { findQuantized, findQuantizedExpert, type QuantizedMatrix } from './quantized-matrix.js'
import { readSafetensorsHeader, type SafetensorsHeader, type TensorEntry } from './safetensors.js'

/** Where one tensor of a checkpoint lies. */
export interface CheckpointTensor extends TensorEntry {
  /** The path of the file that holds it, one of `Checkpoint.files`. */
  readonly file: string
}

/** The tensors of a model folder, by name; no weight has been read. */
export interface Checkpoint {
  readonly tensors: ReadonlyMap<string, CheckpointTensor>
  /** Paths of the safetensors files, each once. */
  readonly files: readonly string[]
  /** Sizes of all tensors together, in bytes. */
  readonly sizeBytes: number
}

/**
 * What a weight is to the model. All exist once a layer but `embedding`, `norm`, `lmHead`, `perLayerEmbedding` and
 * `perLayerModelNorm`.
 */
export type WeightRole =
  | 'embedding'
  | 'inputNorm'
  | 'qProj'
  | 'kProj'
  | 'vProj'
  | 'oProj'
  | 'qBias'
  | 'kBias'
  | 'vBias'
  | 'oBias'
  | 'qNorm'
  | 'kNorm'
  | 'sinks'
  | 'attentionGate'
  | 'recurrentQkv'
  | 'recurrentGate'
  | 'recurrentDecay'
  | 'recurrentBeta'
  | 'recurrentConv'
  | 'recurrentConvBias'
  | 'recurrentDecayLog'
  | 'recurrentDecayBias'
  | 'recurrentSkip'
  | 'recurrentNorm'
  | 'recurrentOut'
  | 'attentionOutputNorm'
  | 'mlpNorm'
  | 'mlpOutputNorm'
  | 'router'
  | 'routerBias'
  | 'routerCorrection'
  | 'gateProj'
  | 'upProj'
  | 'downProj'
  | 'gateBias'
  | 'upBias'
  | 'downBias'
  | 'routerNorm'
  | 'expertScales'
  | 'expertsNorm'
  | 'expertsOutputNorm'
  | 'sharedGate'
  | 'sharedGateProj'
  | 'sharedUpProj'
  | 'sharedDownProj'
  | 'sharedOutputNorm'
  | 'perLayerGate'
  | 'perLayerProj'
  | 'perLayerNorm'
  | 'layerScalar'
  | 'perLayerEmbedding'
  | 'perLayerModelProj'
  | 'perLayerModelNorm'
  | 'norm'
  | 'lmHead'

const MATRICES = [
  'qProj',
  'kProj',
  'vProj',
  'oProj',
  'attentionGate',
  'recurrentQkv',
  'recurrentGate',
  'recurrentDecay',
  'recurrentBeta',
  'recurrentOut',
  'router',
  'gateProj',
  'upProj',
  'downProj',
  'sharedGate',
  'sharedGateProj',
  'sharedUpProj',
  'sharedDownProj',
  'perLayerGate',
  'perLayerProj',
  'perLayerModelProj',
  'lmHead',
] as const satisfies readonly WeightRole[]

/** The weights that multiply activations. */
export type MatrixRole = (typeof MATRICES)[number]

/** Whether a weight multiplies activations. */
export function isMatrix(role: WeightRole): role is MatrixRole {
  return (MATRICES as readonly WeightRole[]).includes(role)
}

const EXACT: readonly WeightRole[] = ['router', 'sharedGate', 'recurrentDecay', 'recurrentBeta']

/**
 * Whether a weight decides which experts are chosen, how much one is, or how long a state lasts and how much
 * enters it: it is never rounded.
 */
export function isExact(role: WeightRole): boolean {
  return EXACT.includes(role)
}

/** A tensor that a model of some config needs. */
export interface ExpectedTensor {
  readonly name: string
  /** Row-major, matrices as (out, in), those of all experts (n_experts, out, in). */
  readonly shape: readonly number[]
  readonly role: WeightRole
  /** From 0; null for what exists once a model. */
  readonly layer: number | null
  /**
   * The weight is these rows of the tensor, or of its expert's matrix, from the first to before the
   * last; null: all of it.
   */
  readonly rows: readonly [begin: number, end: number] | null
  /** The weight is these rows of the tensor, one range behind the other, and `rows` are null. Absent: `rows` are all. */
  readonly pieces?: readonly (readonly [begin: number, end: number])[]
  /**
   * The weight is every other row of the tensor, or of its expert's matrix, from this one on: of biases
   * every other column. Absent: `rows` are all.
   */
  readonly everyOther?: 0 | 1
  /** How files have each expert's matrix; absent: (out, in). */
  readonly order?: 'either' | 'in, out'
  /** What is in the place of a tensor of all experts where files have no such: the expert's own; absent: nothing. */
  readonly own?: { readonly name: string; readonly shape: readonly number[] }
  /** Whose matrix it is, from 0; null: not an expert's. */
  readonly expert: number | null
}

/** An expected tensor and where it lies: floats (F32, F16 or BF16), or codes with what belongs to them. */
export interface ModelWeight extends ExpectedTensor {
  /** Floats, or codes. */
  readonly tensor: CheckpointTensor
  /** How codes are to be read; null where the weight is floats. Of matrices alone. */
  readonly quantized: QuantizedMatrix | null
  /** In the file the matrices of all experts are (n_experts, in, out). */
  readonly isTransposed: boolean
}

const kSingleFile = 'model.safetensors'
const kIndexFile = 'model.safetensors.index.json'
const kMaxIndexBytes = 1 << 26
const kWeightDtypes: readonly string[] = ['F32', 'F16', 'BF16']

/**
 * Reads the headers of a model folder: model.safetensors, or the shards that
 * model.safetensors.index.json names.
 *
 * `metadata.total_size` of an index is not compared: many published checkpoints have it wrong
 * (counted before tying or in another dtype), and each tensor's size is checked against its own
 * file.
 * @throws ERR_ZC_CHECKPOINT naming file and tensor when a file is missing, damaged or contradicts
 *   the index; ERR_ZC_IO when a file cannot be read
 */
export async function openCheckpoint(dir: string): Promise<Checkpoint> {
  const single = modelFile(dir, kSingleFile)
  if ((await regularFileSize(single, 'ERR_ZC_CHECKPOINT')) !== null) {
    const { tensors } = await readSafetensorsHeader(single)
    return makeCheckpoint([...tensors].map(([name, entry]) => [name, { file: single, ...entry }]))
  }
  const indexPath = modelFile(dir, kIndexFile)
  const index = await readJsonFile(indexPath, 'ERR_ZC_CHECKPOINT', kMaxIndexBytes)
  if (index === null) {
    refuse(`${dir}: has neither ${kSingleFile} nor ${kIndexFile}`, kSingleFile)
  }
  return openShards(dir, indexPath, index.weight_map)
}

async function openShards(dir: string, indexPath: string, weightMap: unknown): Promise<Checkpoint> {
  if (!isJsonObject(weightMap)) {
    refuse(`${indexPath}: weight_map is ${quote(weightMap)}, expected an object`, 'weight_map')
  }
  // One header after the other: a folder has some dozens at most, and a bad one should be named
  // alone.
  const headers = new Map<string, SafetensorsHeader>()
  const located: [string, CheckpointTensor][] = []
  for (const [name, shard] of Object.entries(weightMap)) {
    if (!isPlainFileName(shard)) {
      refuse(
        `${indexPath}: ${quote(name)} is in ${quote(shard)}, expected the name of a .safetensors file of this folder`,
        name,
      )
    }
    const file = modelFile(dir, shard)
    let header = headers.get(shard)
    if (header === undefined) {
      if ((await regularFileSize(file, 'ERR_ZC_CHECKPOINT')) === null) {
        refuse(`${file}: does not exist, but ${kIndexFile} puts ${quote(name)} there`, shard)
      }
      header = await readSafetensorsHeader(file)
      headers.set(shard, header)
    }
    const entry = header.tensors.get(name)
    if (entry === undefined) {
      refuse(`${file}: has no tensor ${quote(name)}, but ${kIndexFile} puts it there`, name)
    }
    located.push([name, { file, ...entry }])
  }
  if (located.length === 0) refuse(`${indexPath}: weight_map is empty`, 'weight_map')
  return makeCheckpoint(located)
}

/**
 * No folder, no `..`: an index may not point out of its own folder. (A link inside it may: that is
 * how hubs cache files.)
 */
function isPlainFileName(name: unknown): name is string {
  return typeof name === 'string' && /^[^/\\\0]+\.safetensors$/.test(name)
}

function makeCheckpoint(located: Iterable<readonly [string, CheckpointTensor]>): Checkpoint {
  const tensors = new Map(located)
  let sizeBytes = 0
  for (const tensor of tensors.values()) sizeBytes += tensor.sizeBytes
  return { tensors, files: [...new Set([...tensors.values()].map(({ file }) => file))], sizeBytes }
}

/**
 * Every weight that a model of `config` needs, in the order in which the forward pass meets them.
 * With tied embeddings there is no `lmHead`: the embedding serves.
 */
export function expectedTensors(config: ModelConfig): ExpectedTensor[] {
  const { hiddenSize, vocabSize, attentionBias, nLayers } = config
  const { fusedProjections, norms, experts, perLayerInputs } = config
  const expected: ExpectedTensor[] = []
  const add = (layer: number | null, role: WeightRole, name: string, ...shape: number[]) =>
    expected.push({ name, shape, role, layer, rows: null, expert: null })
  /** Weights that lie below each other in one tensor. */
  const addFused = (layer: number, name: string, width: number, parts: [WeightRole, number][]) => {
    const shape = [parts.reduce((sum, [, height]) => sum + height, 0), width]
    let row = 0
    for (const [role, height] of parts) {
      expected.push({ name, shape, role, layer, rows: [row, row + height], expert: null })
      row += height
    }
  }

  /**
   * Weights whose rows lie in one tensor by heads: each head has so many of every part. A weight of several parts has all
   * heads' rows of the first of them, then those of the next.
   */
  const addByHeads = (
    layer: number,
    name: string,
    nHeads: number,
    parts: readonly (readonly [WeightRole, number])[],
  ) => {
    const ofHead = parts.reduce((sum, [, height]) => sum + height, 0)
    const nRows = nHeads * ofHead
    const own = { name, shape: [nRows, hiddenSize], layer, rows: null, expert: null }
    const pieces = new Map<WeightRole, [begin: number, end: number][]>()
    let first = 0
    for (const [role, height] of parts) {
      const ranges = pieces.get(role) ?? []
      for (let begin = first; begin < nRows; begin += ofHead) ranges.push([begin, begin + height])
      pieces.set(role, ranges)
      first += height
    }
    for (const [role, ranges] of pieces) expected.push({ ...own, role, pieces: ranges })
  }

  /** Those that belong to one expert alone. */
  const ownMatrices = (block: string, expert: number, names: OwnExpertNames, width: number) => {
    const path = (name: string) => `${block}.experts.${expert}.${name}.weight`
    return {
      gateProj: { name: path(names.gateProj), shape: [width, hiddenSize] },
      upProj: { name: path(names.upProj), shape: [width, hiddenSize] },
      downProj: { name: path(names.downProj), shape: [hiddenSize, width] },
    }
  }

  const addExperts = (layer: number, prefix: string, { count, names, ...own }: ExpertsConfig) => {
    const block = blockOf(prefix, names)
    const { tensors } = names
    const width = own.intermediateSize
    const joint = [count, 2 * width, hiddenSize]
    const router = `${block}.${names.router}`
    const { besideMlp } = names
    add(layer, 'router', `${router}.weight`, count, hiddenSize)
    if (besideMlp) {
      add(layer, 'routerNorm', `${block}.${besideMlp.routerNorm}`, hiddenSize)
      add(layer, 'expertScales', `${block}.${besideMlp.scales}`, count)
      add(layer, 'expertsNorm', `${prefix}.${besideMlp.input}.weight`, hiddenSize)
      add(layer, 'expertsOutputNorm', `${prefix}.${besideMlp.output}.weight`, hiddenSize)
      add(layer, 'sharedOutputNorm', `${prefix}.${besideMlp.mlpOutput}.weight`, hiddenSize)
    }
    if (names.correction) {
      const { name, isRow } = names.correction
      add(layer, 'routerCorrection', `${block}.${name}`, ...(isRow ? [1, count] : [count]))
    }
    if ('gateUp' in tensors && tensors.inTurnsWithBiases) {
      addExpertBiases(layer, block, router, tensors)
    }
    for (let expert = 0; expert < count; ++expert) {
      if ('gateUp' in tensors) {
        const { gateUp, down, own: names, order, inTurnsWithBiases } = tensors
        const [gate, up] = inTurnsWithBiases
          ? ([{ everyOther: 0 }, { everyOther: 1 }] as const)
          : ([{ rows: [0, width] }, { rows: [width, 2 * width] }] as const)
        const owned = names && ownMatrices(block, expert, names, width)
        for (const [role, name, shape, part] of [
          ['gateProj', gateUp, joint, gate],
          ['upProj', gateUp, joint, up],
          ['downProj', down, [count, hiddenSize, width], {}],
        ] as const) {
          const all = { name: `${block}.${name}`, shape, role, layer, rows: null, expert, ...part }
          expected.push({
            ...all,
            ...(order !== 'out, in' && { order }),
            ...(owned && { own: owned[role] }),
          })
        }
        continue
      }
      const owned = ownMatrices(block, expert, tensors, width)
      for (const role of ['gateProj', 'upProj', 'downProj'] as const)
        expected.push({ ...owned[role], role, layer, rows: null, expert })
    }
  }

  const addSharedExpert = (layer: number, prefix: string, { names, sharedSize }: ExpertsConfig) => {
    if (names.shared === null || sharedSize === 0) return
    const block = blockOf(prefix, names)
    const { name, gate, joint } = names.shared
    if (gate !== null) add(layer, 'sharedGate', `${block}.${gate}.weight`, 1, hiddenSize)
    if (joint) {
      const mlp = `${prefix}.${joint.block}`
      addFused(layer, `${mlp}.${joint.gateUp}.weight`, hiddenSize, [
        ['sharedGateProj', sharedSize],
        ['sharedUpProj', sharedSize],
      ])
      add(layer, 'sharedDownProj', `${mlp}.${joint.down}.weight`, hiddenSize, sharedSize)
      return
    }
    const shared = `${block}.${name}`
    add(layer, 'sharedGateProj', `${shared}.gate_proj.weight`, sharedSize, hiddenSize)
    add(layer, 'sharedUpProj', `${shared}.up_proj.weight`, sharedSize, hiddenSize)
    add(layer, 'sharedDownProj', `${shared}.down_proj.weight`, hiddenSize, sharedSize)
  }

  const addExpertBiases = (
    layer: number,
    block: string,
    router: string,
    { gateUp, down }: JointExpertNames,
  ) => {
    const { count, intermediateSize: width } = experts as ExpertsConfig
    add(layer, 'routerBias', `${router}.bias`, count)
    const own = { layer, rows: null, expert: null }
    const joint = { name: `${block}.${gateUp}_bias`, shape: [count, 2 * width], ...own }
    expected.push({ ...joint, role: 'gateBias', everyOther: 0 })
    expected.push({ ...joint, role: 'upBias', everyOther: 1 })
    add(layer, 'downBias', `${block}.${down}_bias`, count, hiddenSize)
  }

  const addAttention = (layer: number, attention: string) => {
    const { nKvHeads, headDim, valuesAreKeys } = headsOf(config, layer)
    const qWidth = config.nHeads * headDim
    const kvWidth = nKvHeads * headDim
    const hasKeys = config.kvSources[layer] === layer
    const qkv = [
      ['qProj', 'q_proj', qWidth],
      ...(hasKeys ? ([['kProj', 'k_proj', kvWidth]] as const) : []),
      ...(hasKeys && !valuesAreKeys ? ([['vProj', 'v_proj', kvWidth]] as const) : []),
    ] as const
    if (fusedProjections === 'all') {
      const parts = qkv.map(([role, , height]): [WeightRole, number] => [role, height])
      addFused(layer, `${attention}.qkv_proj.weight`, hiddenSize, parts)
    } else {
      for (const [role, name, height] of qkv) {
        if (role === 'qProj' && config.gatesAttention) addGatedQueries(layer, attention, headDim)
        else add(layer, role, `${attention}.${name}.weight`, height, hiddenSize)
      }
    }
    if (attentionBias.qkv) {
      const biases = { qProj: 'qBias', kProj: 'kBias', vProj: 'vBias' } as const
      for (const [role, name, height] of qkv)
        add(layer, biases[role], `${attention}.${name}.bias`, height)
    }
    if (config.qkNorm !== 'none') {
      const isOfAll = config.qkNorm === 'all heads'
      const { q, k } = config.qkNormNames
      add(layer, 'qNorm', `${attention}.${q}.weight`, isOfAll ? qWidth : headDim)
      if (hasKeys) add(layer, 'kNorm', `${attention}.${k}.weight`, isOfAll ? kvWidth : headDim)
    }
    add(layer, 'oProj', `${attention}.o_proj.weight`, hiddenSize, qWidth)
    if (attentionBias.output) add(layer, 'oBias', `${attention}.o_proj.bias`, hiddenSize)
    if (config.hasSinks) add(layer, 'sinks', `${attention}.sinks`, config.nHeads)
  }

  /** Of each head the rows of its queries, then those of their gate. */
  const addGatedQueries = (layer: number, attention: string, headDim: number) =>
    addByHeads(layer, `${attention}.q_proj.weight`, config.nHeads, [
      ['qProj', headDim],
      ['attentionGate', headDim],
    ])

  /** Of each key head the rows of its queries, of its keys, of its heads' values and of their gates. */
  const addByKeyHeads = (
    layer: number,
    delta: string,
    { nKeyHeads, nValueHeads, keyDim, valueDim }: RecurrenceConfig,
  ) => {
    const group = nValueHeads / nKeyHeads
    addByHeads(layer, `${delta}.in_proj_qkvz.weight`, nKeyHeads, [
      ['recurrentQkv', keyDim],
      ['recurrentQkv', keyDim],
      ['recurrentQkv', group * valueDim],
      ['recurrentGate', group * valueDim],
    ])
    addByHeads(layer, `${delta}.in_proj_ba.weight`, nKeyHeads, [
      ['recurrentBeta', group],
      ['recurrentDecay', group],
    ])
  }

  const addRecurrence = (layer: number, prefix: string, recurrence: RecurrenceConfig) => {
    const { rule, nKeyHeads, nValueHeads, keyDim, valueDim, convWidth } = recurrence
    const width = nValueHeads * valueDim
    const channels = 2 * nKeyHeads * keyDim + width
    if (rule === 'selective scan') {
      const mamba = `${prefix}.mamba`
      addFused(layer, `${mamba}.in_proj.weight`, hiddenSize, [
        ['recurrentGate', width],
        ['recurrentQkv', channels],
        ['recurrentDecay', nValueHeads],
      ])
      add(layer, 'recurrentConv', `${mamba}.conv1d.weight`, channels, 1, convWidth)
      add(layer, 'recurrentConvBias', `${mamba}.conv1d.bias`, channels)
      add(layer, 'recurrentDecayLog', `${mamba}.A_log`, nValueHeads)
      add(layer, 'recurrentDecayBias', `${mamba}.dt_bias`, nValueHeads)
      add(layer, 'recurrentSkip', `${mamba}.D`, nValueHeads)
      add(layer, 'recurrentNorm', `${mamba}.norm.weight`, width)
      add(layer, 'recurrentOut', `${mamba}.out_proj.weight`, hiddenSize, width)
      return
    }
    const delta = `${prefix}.linear_attn`
    if (recurrence.byKeyHeads) addByKeyHeads(layer, delta, recurrence)
    else {
      add(layer, 'recurrentQkv', `${delta}.in_proj_qkv.weight`, channels, hiddenSize)
      add(layer, 'recurrentGate', `${delta}.in_proj_z.weight`, width, hiddenSize)
      add(layer, 'recurrentDecay', `${delta}.in_proj_a.weight`, nValueHeads, hiddenSize)
      add(layer, 'recurrentBeta', `${delta}.in_proj_b.weight`, nValueHeads, hiddenSize)
    }
    add(layer, 'recurrentConv', `${delta}.conv1d.weight`, channels, 1, convWidth)
    add(layer, 'recurrentDecayLog', `${delta}.A_log`, nValueHeads)
    add(layer, 'recurrentDecayBias', `${delta}.dt_bias`, nValueHeads)
    add(layer, 'recurrentNorm', `${delta}.norm.weight`, valueDim)
    add(layer, 'recurrentOut', `${delta}.out_proj.weight`, hiddenSize, width)
  }

  const addPerLayerInputs = (layer: number, prefix: string, { width }: PerLayerInputs) => {
    const projection = 'model.per_layer_model_projection.weight'
    const shape = [nLayers * width, hiddenSize]
    const rows = [layer * width, (layer + 1) * width] as const
    expected.push({ name: projection, shape, role: 'perLayerModelProj', layer, rows, expert: null })
    add(layer, 'perLayerGate', `${prefix}.per_layer_input_gate.weight`, width, hiddenSize)
    add(layer, 'perLayerProj', `${prefix}.per_layer_projection.weight`, hiddenSize, width)
    add(layer, 'perLayerNorm', `${prefix}.post_per_layer_input_norm.weight`, hiddenSize)
  }

  add(null, 'embedding', 'model.embed_tokens.weight', vocabSize, hiddenSize)
  if (perLayerInputs) {
    const { width, vocabSize: nRows } = perLayerInputs
    add(null, 'perLayerEmbedding', 'model.embed_tokens_per_layer.weight', nRows, nLayers * width)
    add(null, 'perLayerModelNorm', 'model.per_layer_projection_norm.weight', width)
  }
  for (let layer = 0; layer < nLayers; ++layer) {
    const prefix = `model.layers.${layer}`
    const norm = (role: WeightRole, name: string | null) => {
      if (name !== null) add(layer, role, `${prefix}.${name}.weight`, hiddenSize)
    }
    norm('inputNorm', norms.attention)
    if (config.recurrence?.layers[layer]) addRecurrence(layer, prefix, config.recurrence)
    else addAttention(layer, `${prefix}.self_attn`)
    norm('attentionOutputNorm', norms.attentionOutput)
    norm('mlpNorm', norms.mlp)
    const mlp = `${prefix}.${config.mlpNames.block}`
    const { gateUp, down } = config.mlpNames
    const intermediateSize = config.intermediateSizes[layer] as number
    if (experts?.layers[layer]) {
      addExperts(layer, prefix, experts)
      addSharedExpert(layer, prefix, experts)
    } else if (fusedProjections !== 'none') {
      addFused(layer, `${mlp}.${gateUp}.weight`, hiddenSize, [
        ['gateProj', intermediateSize],
        ['upProj', intermediateSize],
      ])
      add(layer, 'downProj', `${mlp}.${down}.weight`, hiddenSize, intermediateSize)
    } else {
      add(layer, 'gateProj', `${mlp}.gate_proj.weight`, intermediateSize, hiddenSize)
      add(layer, 'upProj', `${mlp}.up_proj.weight`, intermediateSize, hiddenSize)
      add(layer, 'downProj', `${mlp}.${down}.weight`, hiddenSize, intermediateSize)
    }
    norm('mlpOutputNorm', norms.mlpOutput)
    if (perLayerInputs) addPerLayerInputs(layer, prefix, perLayerInputs)
    if (config.scalesLayers) add(layer, 'layerScalar', `${prefix}.layer_scalar`, 1)
  }
  add(null, 'norm', 'model.norm.weight', hiddenSize)
  if (!config.tieWordEmbeddings) add(null, 'lmHead', 'lm_head.weight', vocabSize, hiddenSize)
  return expected
}

/** The part of a layer that holds its experts. */
function blockOf(prefix: string, { block }: ExpertNames): string {
  return block === null ? prefix : `${prefix}.${block}`
}

/**
 * Finds every tensor that a model of `config` needs and checks its shape and dtype, before anything
 * is allocated: floats, or where the config says so, matrices of quantized weights. Further tensors of the
 * checkpoint are ignored, as transformers does (rotary buffers, an lm_head beside tied embeddings, …).
 * @throws ERR_ZC_CHECKPOINT naming the tensor when it is missing, has another shape, or a dtype
 *   other than F32, F16 and BF16, or than that of quantized weights
 */
export function checkTensors(checkpoint: Checkpoint, config: ModelConfig): ModelWeight[] {
  const nameOf = textNames(checkpoint)
  return expectedTensors(config).map(({ own, ...joint }) => {
    const isOwn = own !== undefined && !checkpoint.tensors.has(nameOf(joint.name))
    const expected = isOwn ? { ...joint, ...own, rows: null } : joint
    const { shape, order, expert } = expected
    const name = nameOf(expected.name)
    const tensor = checkpoint.tensors.get(name)
    const quantized =
      config.quantization && isMatrix(expected.role)
        ? findCodes(checkpoint, config.quantization, { name, shape, expert })
        : null
    if (quantized) {
      return { ...expected, name, tensor: quantized.codes, quantized, isTransposed: false }
    }
    if (tensor === undefined) {
      const where = checkpoint.files.join(', ')
      refuse(`${where}: ${name} is missing, expected shape [${shape.join(', ')}]`, name)
    }
    if (!kWeightDtypes.includes(tensor.dtype)) {
      const allowed = kWeightDtypes.join(', ')
      refuse(`${tensor.file}: ${name} has dtype ${tensor.dtype}, expected one of ${allowed}`, name)
    }
    // Where (out, in) and (in, out) are one shape and may be either it is the former, as transformers has it.
    const isTransposed =
      order === 'in, out' ||
      (order === 'either' && !hasShape(tensor, shape) && hasShape(tensor, transposed(shape)))
    const stored = isTransposed ? transposed(shape) : shape
    if (!hasShape(tensor, stored)) {
      refuse(
        `${tensor.file}: ${name} has shape [${tensor.shape.join(', ')}], expected [${stored.join(', ')}]`,
        name,
      )
    }
    return { ...expected, name, tensor, quantized, isTransposed }
  })
}

function findCodes(
  checkpoint: Checkpoint,
  quantization: QuantizationConfig,
  { name, shape, expert }: Pick<ExpectedTensor, 'name' | 'shape' | 'expert'>,
): QuantizedMatrix | null {
  if (shape.length === 2)
    return findQuantized(checkpoint, quantization, name, shape as [number, number])
  return findQuantizedExpert(checkpoint, quantization, { name, shape, expert: expert ?? 0 })
}

/** Of a tensor of floats, as files have it. */
export function storedShape({ shape, order }: ExpectedTensor): readonly number[] {
  return order === 'in, out' ? transposed(shape) : shape
}

function hasShape(tensor: CheckpointTensor, shape: readonly number[]): boolean {
  return tensor.shape.length === shape.length && tensor.shape.every((size, i) => size === shape[i])
}

function transposed([count, out, input]: readonly number[]): number[] {
  return [count, input, out] as number[]
}

/** How the text model's tensors are called in files of models that see images, too. */
function textNames({ tensors }: Checkpoint): (name: string) => string {
  const prefixed = [
    (name: string) => `language_model.${name}`,
    (name: string) => name.replace(/^model\./, 'model.language_model.'),
    (name: string) => name.replace(/^model\./, 'model.text_model.'),
  ]
  const embedding = 'model.embed_tokens.weight'
  return prefixed.find((nameOf) => tensors.has(nameOf(embedding))) ?? ((name) => name)
}

function refuse(message: string, argument: string): never {
  throw new ZipCacheError('ERR_ZC_CHECKPOINT', message, { argument })
}
