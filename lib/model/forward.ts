/**
 * The forward pass of a LLaMA-like decoder as a list of ops over a block of rows. Attention is the
 * caller's: it knows the cache.
 */
import {
  addExperts,
  attentionSinks,
  causalConv,
  clampedSwiglu,
  convert,
  type Device,
  type DType,
  embedding,
  expertLinear,
  gatedDelta,
  gatherRows,
  geluGate,
  groupedLinear,
  linear,
  rmsNorm,
  rope,
  ropeTable,
  routeExperts,
  type StateArgs,
  selectiveScan,
  sigmoidGate,
  siluGate,
  softCap,
  type Tensor,
} from '../ops/index.js'
import { gateWidth, hasOutputNorms, type ModelConfig, type RecurrenceConfig } from './config.js'
import { channelsOf, headShapes } from './layer-kinds.js'
import type { Scratch } from './scratch.js'
import type {
  AttentionDtype,
  ComputeDtype,
  LayerWeights,
  Matrix,
  ModelWeights,
  WeightFormat,
} from './weights.js'

/** A model as the forward pass needs it. */
export interface ForwardModel {
  readonly device: Device
  readonly config: ModelConfig
  readonly weights: ModelWeights
  readonly dtype: ComputeDtype
  readonly weightFormat: WeightFormat
  /** Type of Q, K, V and of attention's output. */
  readonly attentionDtype: AttentionDtype
  /** The ways in which positions rotate in some layer. */
  readonly ropes: readonly Rope[]
  /** (n_layers) which of them a layer takes. */
  readonly ropeOfLayer: readonly number[]
  /**
   * Which of them attention takes where q and k come rotated, since their norms follow RoPE: the one that rotates
   * nothing. Null: it takes the layer's.
   */
  readonly ropeOfRotated: number | null
  /**
   * Which tokens are special or punctuation, one byte a token of the vocabulary; null without a
   * tokenizer.
   */
  readonly specialTokens: (() => Uint8Array) | null
}

/** One way in which positions rotate. */
export interface Rope {
  /** (rotary_dim / 2) f32 radians a position; none where nothing rotates. */
  readonly invFreq: Tensor<'f32'>
  /** Multiplies cos and sin. */
  readonly attentionScale: number
}

/** The rotations of rows, (rows, rotary_dim / 2) f32. */
export interface RopeTurns {
  readonly cos: Tensor<'f32'>
  readonly sin: Tensor<'f32'>
}

/** Those of keys and of queries: the same object, but where queries are multiplied as well. */
export interface RopeTable {
  readonly key: RopeTurns
  readonly query: RopeTurns
}

/** What attention reads and writes: q and k after RoPE. */
export interface AttentionHeads {
  /** (rows, n_heads, head_dim) */
  readonly q: Tensor
  /** (rows, n_kv_heads, head_dim) */
  readonly k: Tensor
  readonly v: Tensor
  /** Like q. */
  readonly out: Tensor
  /** (rows, n_heads) f32 */
  readonly lse: Tensor<'f32'>
}

/** Keys and values (rows, n_kv_heads, head_dim) in the attention's type. */
export interface KeyValueRows {
  readonly k: Tensor
  readonly v: Tensor
}

/** What lives from one block of rows to the next: the rest is work space. */
export interface StreamRows {
  /** Tokens (rows) i32. */
  readonly ids: Tensor<'i32'>
  /** The residual stream (rows, hidden_size) f32, whatever the model computes in. */
  readonly x: Tensor<'f32'>
  /** (n_shapes) of the last layer whose heads had the shape, and which made keys and values. */
  readonly ofShapes: readonly KeyValueRows[]
  /** One for each of the model's ropes. */
  readonly ropes: readonly RopeTable[]
}

/** What a gated MLP has of each row, or of each pair of a row and an expert: (rows, width). */
export interface GatedRows {
  readonly gate: Tensor
  readonly up: Tensor
  readonly gated: Tensor
}

/** Rows on their way through the expert that multiplies all of them. */
export interface SharedExpertRows extends GatedRows {
  /** (rows, hidden_size) f32: what it gives, where a gate multiplies that. */
  readonly given: Tensor<'f32'>
  /** What its gate needs as a router of one expert: as in `ExpertRows`. */
  readonly gateLogits: Tensor<'f32'>
  readonly weights: Tensor<'f32'>
  readonly chosen: Tensor<'i32'>
  readonly pairs: Tensor<'i32'>
  readonly offsets: Tensor<'i32'>
}

/** Rows on their way through a layer's experts. */
export interface ExpertRows extends GatedRows {
  /** (rows, n_experts) f32 */
  readonly logits: Tensor<'f32'>
  /** (rows, n_chosen) f32 */
  readonly weights: Tensor<'f32'>
  /** (rows, n_chosen) i32: which they are. */
  readonly chosen: Tensor<'i32'>
  /** (rows * n_chosen) i32: as `routeExperts` orders them. */
  readonly pairs: Tensor<'i32'>
  /** (n_experts + 1) i32 */
  readonly offsets: Tensor<'i32'>
  /** (rows * n_chosen, hidden_size) f32: what they give. */
  readonly given: Tensor<'f32'>
  /** (rows, hidden_size) f32: the sum of what they give, where that has a norm of its own; else null. */
  readonly besideMlp: Tensor<'f32'> | null
  /** The same memory, while the others do not need it; null: no expert multiplies all rows. */
  readonly shared: SharedExpertRows | null
}

/** Rows on their way through a recurrent layer. */
export interface RecurrentRows {
  /** (rows, channels) f32: queries, keys and values before the convolution, and behind it. */
  readonly raw: Tensor<'f32'>
  readonly qkv: Tensor<'f32'>
  /** (rows, n_value_heads) f32: what the decay and the share that is written are made of. */
  readonly decay: Tensor<'f32'>
  readonly beta: Tensor<'f32'>
  /** (rows, n_value_heads, value_dim) f32: what is read of the states. */
  readonly read: Tensor<'f32'>
  /** The same as (rows x n_value_heads, value_dim), for the norm of single heads. */
  readonly readHeads: Tensor<'f32'>
  /** (rows, n_value_heads x value_dim): what it is multiplied by, and the product. */
  readonly gate: Tensor<'f32'>
  readonly readRows: Tensor<'f32'>
  readonly gated: Tensor
}

/** Where the sequences of a block of rows keep their states. */
export type StateRows = Readonly<Omit<StateArgs, 'layer'>>

/** Rows on their way through attention, by heads of one shape. */
export interface AttentionRows {
  readonly rawQ: Tensor
  readonly rawK: Tensor
  /** What `v` is, or what it is the norm of. */
  readonly rawV: Tensor
  readonly attended: Tensor
  /** Before RoPE. */
  readonly rawHeads: { readonly q: Tensor; readonly k: Tensor }
  /** For norms of single heads: (rows x heads, head_dim); `rawV` before the norm that `v` is of. */
  readonly headRows: {
    readonly q: Tensor
    readonly k: Tensor
    readonly rawV: Tensor
    readonly v: Tensor
  }
  readonly heads: AttentionHeads
  /** (rows, n_heads x head_dim) f32: of attention that is gated; else null. */
  readonly gate: Tensor<'f32'> | null
}

/** Rows on their way through a layer: the stream, and views of the work space as the ops want it. */
export interface RowBlock extends StreamRows {
  readonly normed: Tensor
  /** (n_shapes) */
  readonly attention: readonly AttentionRows[]
  /** Of recurrent layers; null: there are none. */
  readonly recurrent: RecurrentRows | null
  /** Of layers with a plain MLP, by its width. */
  readonly plain: ReadonlyMap<number, GatedRows>
  /** Of the gate of per-layer inputs; null: there are none. */
  readonly perLayer: GatedRows | null
  /** Of layers with experts; null: there are none. */
  readonly experts: ExpertRows | null
  /** (rows, hidden_size) f32: what a layer adds to the stream, where that has a norm; else null. */
  readonly branch: Tensor<'f32'> | null
}

/** The stream of `nRows` rows, tensors of `scratch`; keys and values have room for `nKeys`. */
export function makeStream(
  model: ForwardModel,
  nRows: number,
  nKeys: number,
  scratch: Scratch,
): StreamRows {
  return {
    ids: scratch.tensor('i32', [nRows]),
    x: scratch.tensor('f32', [nRows, model.config.hiddenSize]),
    ofShapes: headShapes(model.config).map(({ nKvHeads, headDim }) => ({
      k: scratch.tensor<DType>(model.attentionDtype, [nKeys, nKvHeads, headDim]),
      v: scratch.tensor<DType>(model.attentionDtype, [nKeys, nKvHeads, headDim]),
    })),
    ropes: model.ropes.map(({ invFreq }) => {
      const turns = () => ({
        cos: scratch.tensor('f32', [nRows, invFreq.length]),
        sin: scratch.tensor('f32', [nRows, invFreq.length]),
      })
      const key = turns()
      return { key, query: model.config.queryGrowth ? turns() : key }
    }),
  }
}

/**
 * Work space for blocks of up to `capacity` rows, tensors of `scratch`. Returns how to see it as a
 * block of so many rows.
 */
export function makeWorkspace(
  model: ForwardModel,
  capacity: number,
  scratch: Scratch,
): (nRows: number, stream: StreamRows) => RowBlock {
  const { config, dtype } = model
  const { hiddenSize, intermediateSizes, experts, perLayerInputs } = config
  const normed = scratch.tensor(dtype, [capacity, hiddenSize])
  const attentionOf = makeAttentionRows(model, capacity, scratch)
  const width = gateWidth(config)
  const gate = scratch.tensor('f32', [capacity, width])
  const up = scratch.tensor('f32', [capacity, width])
  const gated = dtype === 'f32' ? gate : scratch.tensor(dtype, [capacity, width])
  const routed = experts && {
    logits: scratch.tensor('f32', [capacity, experts.count]),
    weights: scratch.tensor('f32', [capacity, experts.perRow]),
    chosen: scratch.tensor('i32', [capacity, experts.perRow]),
    pairs: scratch.tensor('i32', [capacity * experts.perRow]),
    offsets: scratch.tensor('i32', [experts.count + 1]),
    given: scratch.tensor('f32', [capacity * experts.perRow, hiddenSize]),
  }
  const branch = hasOutputNorms(config) ? scratch.tensor('f32', [capacity, hiddenSize]) : null
  const besideMlp = experts?.besideMlp ? scratch.tensor('f32', [capacity, hiddenSize]) : null
  const recurrentOf = makeRecurrentRows(model, capacity, scratch)
  const plainWidths = [...new Set(intermediateSizes.filter((_, layer) => !experts?.layers[layer]))]

  return (nRows, stream) => {
    const view = <T extends Tensor>(tensor: T, ...rest: number[]) =>
      scratch.keep(tensor.view([nRows, ...rest]) as T)
    const gatedRows = (rows: number, width: number): GatedRows => ({
      gate: scratch.keep(gate.view([rows, width])),
      up: scratch.keep(up.view([rows, width])),
      gated: scratch.keep(gated.view([rows, width])),
    })
    const plain = new Map(plainWidths.map((width) => [width, gatedRows(nRows, width)]))
    return {
      ...stream,
      normed: view(normed, hiddenSize),
      attention: attentionOf(nRows, stream),
      recurrent: recurrentOf(nRows),
      plain,
      perLayer: perLayerInputs && gatedRows(nRows, perLayerInputs.width),
      experts: routed && {
        ...gatedRows(nRows * experts.perRow, experts.intermediateSize),
        logits: view(routed.logits, experts.count),
        weights: view(routed.weights, experts.perRow),
        chosen: view(routed.chosen, experts.perRow),
        pairs: scratch.keep(routed.pairs.view([nRows * experts.perRow])),
        offsets: routed.offsets,
        given: scratch.keep(routed.given.view([nRows * experts.perRow, hiddenSize])),
        besideMlp: besideMlp && view(besideMlp, hiddenSize),
        shared:
          experts.sharedSize === 0
            ? null
            : {
                ...gatedRows(nRows, experts.sharedSize),
                given: view(routed.given, hiddenSize),
                gateLogits: view(routed.logits, 1),
                weights: view(routed.weights, 1),
                chosen: view(routed.chosen, 1),
                pairs: view(routed.pairs),
                offsets: scratch.keep(routed.offsets.view([2])),
              },
      },
      branch: branch && view(branch, hiddenSize),
    }
  }
}

/** Work space of attention, which all shapes of heads share: how to see it as so many rows. */
function makeAttentionRows(
  { config, attentionDtype }: ForwardModel,
  capacity: number,
  scratch: Scratch,
): (nRows: number, stream: StreamRows) => AttentionRows[] {
  const { nHeads, normalizesValues, gatesAttention } = config
  const shapes = headShapes(config)
  const qWidth = nHeads * Math.max(...shapes.map(({ headDim }) => headDim))
  const kvWidth = Math.max(...shapes.map(({ nKvHeads, headDim }) => nKvHeads * headDim))
  const isFloat32 = attentionDtype === 'f32'
  // Q and K stay in float32 until they are rotated, and V until it is normalized: one rounding instead of three.
  const rawQ = scratch.tensor('f32', [capacity, qWidth])
  const rawK = isFloat32 ? null : scratch.tensor('f32', [capacity, kvWidth])
  const rawV = isFloat32 || !normalizesValues ? null : scratch.tensor('f32', [capacity, kvWidth])
  const q = isFloat32 ? rawQ : scratch.tensor(attentionDtype, [capacity, qWidth])
  const attended = scratch.tensor<DType>(attentionDtype, [capacity, qWidth])
  const lse = scratch.tensor('f32', [capacity, nHeads])
  const gate = gatesAttention ? scratch.tensor('f32', [capacity, qWidth]) : null

  return (nRows, { ofShapes }) =>
    shapes.map(({ nKvHeads, headDim }, shape) => {
      const view = <T extends Tensor>(tensor: T, ...size: number[]) =>
        scratch.keep(tensor.view(size) as T)
      const { k, v } = ofShapes[shape] as KeyValueRows
      const rowK = rawK ?? k
      const rowV = rawV ?? v
      const [ofQ, ofKv] = [nHeads * headDim, nKvHeads * headDim]
      return {
        rawQ: view(rawQ, nRows, ofQ),
        rawK: view(rowK, nRows, ofKv),
        rawV: view(rowV, nRows, ofKv),
        attended: view(attended, nRows, ofQ),
        rawHeads: {
          q: view(rawQ, nRows, nHeads, headDim),
          k: view(rowK, nRows, nKvHeads, headDim),
        },
        headRows: {
          q: view(rawQ, nRows * nHeads, headDim),
          k: view(rowK, nRows * nKvHeads, headDim),
          rawV: view(rowV, nRows * nKvHeads, headDim),
          v: view(v, nRows * nKvHeads, headDim),
        },
        heads: {
          q: view(q, nRows, nHeads, headDim),
          k,
          v,
          out: view(attended, nRows, nHeads, headDim),
          lse: view(lse, nRows, nHeads),
        },
        gate: gate && view(gate, nRows, ofQ),
      }
    })
}

/** Work space of recurrent layers: how to see it as so many rows; null where there are none. */
function makeRecurrentRows(
  { config, dtype }: ForwardModel,
  capacity: number,
  scratch: Scratch,
): (nRows: number) => RecurrentRows | null {
  const { recurrence } = config
  if (!recurrence) return () => null
  const { nValueHeads, valueDim } = recurrence
  const channels = channelsOf(recurrence)
  const width = nValueHeads * valueDim
  const raw = scratch.tensor('f32', [capacity, channels])
  const qkv = scratch.tensor('f32', [capacity, channels])
  const decay = scratch.tensor('f32', [capacity, nValueHeads])
  const beta = scratch.tensor('f32', [capacity, nValueHeads])
  const read = scratch.tensor('f32', [capacity, width])
  const gate = scratch.tensor('f32', [capacity, width])
  const gated = scratch.tensor<DType>(dtype, [capacity, width])
  return (nRows) => {
    const view = <T extends Tensor>(tensor: T, ...shape: number[]) =>
      scratch.keep(tensor.view(shape) as T)
    return {
      raw: view(raw, nRows, channels),
      qkv: view(qkv, nRows, channels),
      decay: view(decay, nRows, nValueHeads),
      beta: view(beta, nRows, nValueHeads),
      read: view(read, nRows, nValueHeads, valueDim),
      readHeads: view(read, nRows * nValueHeads, valueDim),
      readRows: view(read, nRows, width),
      gate: view(gate, nRows, width),
      gated: view(gated, nRows, width),
    }
  }
}

/**
 * What comes before the first layer: token embeddings, and RoPE's table.
 *
 * - `positions` (rows) i32
 */
export function embedRows(
  model: ForwardModel,
  { ids, x, ropes }: Pick<StreamRows, 'ids' | 'x' | 'ropes'>,
  positions: Tensor<'i32'>,
): void {
  const { queryGrowth } = model.config
  embedTokens(model, ids, x)
  for (const [i, own] of model.ropes.entries()) {
    if (own.invFreq.length === 0) continue
    const { key, query } = ropes[i] as RopeTable
    ropeTable({ positions, ...own, ...key })
    if (queryGrowth) ropeTable({ positions, ...own, ...query, ...queryGrowth })
  }
}

function embedTokens(model: ForwardModel, ids: Tensor<'i32'>, out: Tensor): void {
  const { embeddingScale, roundsEmbeddingScale } = model.config
  const scale = roundsEmbeddingScale ? roundedTo(model.dtype, embeddingScale) : embeddingScale
  embedding({ ids, weight: model.weights.embedding, out, scale })
}

/** A scale above 0 in the type that a model computes in: Gemma was trained with its own so rounded. */
export function roundedTo(dtype: ComputeDtype, scale: number): number {
  if (dtype === 'f32') return scale
  const unit = 2 ** (Math.floor(Math.log2(scale)) - 7) // of bfloat16's eight bits
  return Math.round(scale / unit) * unit
}

/** The rotations that attention owes to a block's rows in a layer. */
function ropeOf(model: ForwardModel, layer: number, { ropes }: StreamRows): RopeTable {
  return ropes[model.ropeOfRotated ?? (model.ropeOfLayer[layer] as number)] as RopeTable
}

/** The rotations of a block's rows in a layer, as `ropeAppend` takes them. */
export function turnsOf(model: ForwardModel, layer: number, block: StreamRows) {
  const { key, query } = ropeOf(model, layer, block)
  return { ...key, qCos: query.cos, qSin: query.sin }
}

/** RoPE of a block's q, and of its k where the layer has such, where no tail takes k and v (`ropeAppend`). */
export function rotateHeads(
  model: ForwardModel,
  layer: number,
  block: StreamRows,
  { rawHeads, heads }: Pick<AttentionRows, 'rawHeads' | 'heads'>,
): void {
  const { key } = ropeOf(model, layer, block)
  rotateQueries(model, layer, block, { rawHeads, heads })
  if (hasKeys(model, layer)) rope({ x: rawHeads.k, ...key, out: heads.k })
}

/** RoPE of a block's q alone, where a layer makes no keys. */
export function rotateQueries(
  model: ForwardModel,
  layer: number,
  block: StreamRows,
  { rawHeads, heads }: Pick<AttentionRows, 'rawHeads'> & { heads: Pick<AttentionHeads, 'q'> },
): void {
  const { query } = ropeOf(model, layer, block)
  rope({ x: rawHeads.q, ...query, out: heads.q })
}

/** Whether a layer makes keys and values: others attend to those of an earlier one. */
function hasKeys({ config }: ForwardModel, layer: number): boolean {
  return config.kvSources[layer] === layer
}

/** RoPE of a block's q and k in their place, before norms. */
function rotateRaw(
  model: ForwardModel,
  layer: number,
  { ropes }: StreamRows,
  { rawHeads }: AttentionRows,
): void {
  const { key, query } = ropes[model.ropeOfLayer[layer] as number] as RopeTable
  rope({ x: rawHeads.q, ...query })
  rope({ x: rawHeads.k, ...key })
}

/** Attention of all keys, as it is with the layer's sinks: before anything looks at it, or at its LSE. */
export function addSinks(
  model: ForwardModel,
  layer: number,
  { out, lse }: Pick<AttentionHeads, 'out' | 'lse'>,
): void {
  const { sinks } = model.weights.layers[layer] as LayerWeights
  if (sinks) attentionSinks({ sinks, out, lse })
}

/**
 * A layer that attends, by heads of a shape, for one block of rows. `attend` finds q before the RoPE that it owes (`rawHeads`), and
 * k and v where the layer makes such, and writes `heads.out`; it knows where keys are.
 */
export function runLayer(
  model: ForwardModel,
  layer: number,
  shape: number,
  block: RowBlock,
  attend: (rows: AttentionRows) => void,
): void {
  const { rmsNormEps: eps, qkNorm } = model.config
  const w = model.weights.layers[layer] as LayerWeights
  const rows = block.attention[shape] as AttentionRows
  const { attended, gate } = rows
  const x = enterBranch(block, w.inputNorm, eps)
  multiplyHeads(model, layer, x, rows)
  if (gate) linear({ x, ...need(w.attentionGate), out: gate })
  if (qkNorm === 'each head, rotated') rotateRaw(model, layer, block, rows)
  const { q, k } = qkNorm === 'all heads' ? { q: rows.rawQ, k: rows.rawK } : rows.headRows
  if (w.qNorm) rmsNorm({ x: q, weight: w.qNorm, out: q, eps })
  if (w.kNorm) rmsNorm({ x: k, weight: w.kNorm, out: k, eps })
  attend(rows)
  if (gate) sigmoidGate({ gate, x: attended, out: attended })
  const attention = { ...need(w.oProj), bias: w.oBias }
  addBranch(block, attended, attention, w.attentionOutputNorm, eps)
  runMlp(model, layer, block)
}

/** The products that queries, keys and values are made of; values with their norm, where they have one. */
function multiplyHeads(
  model: ForwardModel,
  layer: number,
  x: Tensor,
  { rawQ, rawK, rawV, headRows }: AttentionRows,
): void {
  const { rmsNormEps: eps, normalizesValues } = model.config
  const w = model.weights.layers[layer] as LayerWeights
  const products = [{ ...need(w.qProj), bias: w.qBias, out: rawQ }]
  if (w.kProj) products.push({ ...w.kProj, bias: w.kBias, out: rawK })
  if (w.vProj) products.push({ ...w.vProj, bias: w.vBias, out: rawV })
  groupedLinear({ x, products })
  if (!normalizesValues || !hasKeys(model, layer)) return
  rmsNorm({ x: w.vProj ? headRows.rawV : headRows.k, out: headRows.v, eps })
}

/**
 * A recurrent layer for one block of rows, the `index`th of its kind. Rows of one sequence follow each other,
 * and those before them have run.
 */
export function runRecurrentLayer(
  model: ForwardModel,
  layer: number,
  index: number,
  block: RowBlock,
  states: StateRows,
): void {
  const { rmsNormEps: eps, recurrence } = model.config
  const w = model.weights.layers[layer] as LayerWeights
  const rows = need(block.recurrent)
  const own = { ...need(recurrence), place: { ...states, layer: index } }
  const x = enterBranch(block, w.inputNorm, eps)
  if (own.rule === 'gated delta') runGatedDelta(w, x, rows, own)
  else runSelectiveScan(w, x, rows, own)
  addBranch(block, rows.gated, need(w.recurrentOut), undefined, eps)
  runMlp(model, layer, block)
}

/** A recurrence, and where the layer's part of the states is. */
type PlacedRecurrence = RecurrenceConfig & { readonly place: StateArgs }

/** gated = silu(gate) norm(read), of what gated DeltaNet (arXiv 2412.06464) reads of the states. */
function runGatedDelta(
  w: LayerWeights,
  x: Tensor,
  { raw, qkv, decay, beta, read, readHeads, readRows, gate, gated }: RecurrentRows,
  { nKeyHeads, nValueHeads: nHeads, normEps: eps, place }: PlacedRecurrence,
): void {
  const mixed = { ...need(w.recurrentQkv), out: raw }
  groupedLinear({ x, products: [mixed, { ...need(w.recurrentGate), out: gate }] })
  const [ofDecay, ofBeta] = [need(w.recurrentDecay), need(w.recurrentBeta)]
  groupedLinear({
    x,
    products: [
      { ...ofDecay, out: decay },
      { ...ofBeta, out: beta },
    ],
  })
  causalConv({ x: raw, weight: need(w.recurrentConv), out: qkv, ...place, nHeads })
  const [decayLog, decayBias] = [need(w.recurrentDecayLog), need(w.recurrentDecayBias)]
  gatedDelta({ qkv, decay, beta, decayLog, decayBias, out: read, ...place, nKeyHeads })
  rmsNorm({ x: readHeads, weight: need(w.recurrentNorm), out: readHeads, eps })
  siluGate({ gate, up: readRows, out: gated })
}

/** gated = norm(silu(gate) read), of what Mamba 2 (arXiv 2405.21060) reads of the states. */
function runSelectiveScan(
  w: LayerWeights,
  x: Tensor,
  { raw, qkv, decay: step, read, readRows, gate, gated }: RecurrentRows,
  { nKeyHeads: nGroups, nValueHeads: nHeads, normEps: eps, place }: PlacedRecurrence,
): void {
  const products = [
    { ...need(w.recurrentQkv), out: raw },
    { ...need(w.recurrentGate), out: gate },
    { ...need(w.recurrentDecay), out: step },
  ]
  groupedLinear({ x, products })
  const [weight, bias] = [need(w.recurrentConv), need(w.recurrentConvBias)]
  causalConv({ x: raw, weight, bias, out: qkv, ...place, nHeads })
  const [stepBias, decayLog] = [need(w.recurrentDecayBias), need(w.recurrentDecayLog)]
  const own = { step, stepBias, decayLog, skip: need(w.recurrentSkip) }
  selectiveScan({ xbc: qkv, ...own, out: read, ...place, nGroups })
  siluGate({ gate, up: readRows, out: gate })
  rmsNorm({ x: gate, weight: need(w.recurrentNorm), out: gated, eps })
}

/**
 * x += down(activation(gate(norm(x))) * up(norm(x))), or that of the experts of each row; then what the layer adds of its
 * own vectors of tokens, and its scale.
 */
function runMlp(model: ForwardModel, layer: number, block: RowBlock): void {
  const { rmsNormEps: eps, intermediateSizes, experts } = model.config
  const w = model.weights.layers[layer] as LayerWeights
  const scale = model.weights.layerScales[layer] as number
  const scaleBehind = block.perLayer ? 1 : scale
  if (w.router && experts?.besideMlp) runExpertsBesideMlp(model, w, w.router, block, scaleBehind)
  else {
    const input = enterBranch(block, w.mlpNorm, eps)
    if (w.router) {
      const stream = { x: block.x, input }
      const rows = need(block.experts)
      runExperts(model, w, w.router, stream, rows)
      if (rows.shared) runSharedExpert(model, w, stream, rows.shared)
    } else {
      const rows = need(block.plain.get(intermediateSizes[layer] as number))
      enterMlp(model.config, [w.gateProj, w.upProj], input, rows)
      addBranch(block, rows.gated, need(w.downProj), w.mlpOutputNorm, eps, scaleBehind)
    }
  }
  if (block.perLayer) addPerLayerInput(model, layer, block, block.perLayer, scale)
}

/**
 * x = scale (x + norm(proj(activation(gate x) * y))), y the layer's own vector of the row's token and, as much, a
 * product of its embedding.
 */
function addPerLayerInput(
  model: ForwardModel,
  layer: number,
  block: RowBlock,
  rows: GatedRows,
  scale: number,
): void {
  const { rmsNormEps: eps, hiddenSize, activation } = model.config
  const w = model.weights.layers[layer] as LayerWeights
  const { embedding: weight, norm } = need(model.weights.perLayer)
  const { ids, normed } = block
  const { gate, up } = rows
  const width = up.shape[1] as number
  const own = roundedTo(model.dtype, Math.sqrt(width)) * Math.SQRT1_2
  embedding({ ids, weight, out: up, scale: own, column: layer * width })
  const tokens = need(block.branch)
  embedTokens(model, ids, tokens)
  const entered = enterBranch({ x: tokens, normed }, undefined, eps)
  linear({ x: entered, ...need(w.perLayerModelProj), out: gate })
  // Of the product divided by the root of hidden_size.
  rmsNorm({ x: gate, weight: norm, out: up, eps: eps * hiddenSize, accumulate: true })
  linear({ x: enterBranch(block, undefined, eps), ...need(w.perLayerGate), out: gate })
  applyGate(activation, rows)
  addBranch(block, rows.gated, need(w.perLayerProj), w.perLayerNorm, eps, scale)
}

/**
 * x = scale (x + norm(norm(mlp(norm(x))) + norm(experts(norm(x))))), with a norm of its own each time; so has
 * what the router sees.
 */
function runExpertsBesideMlp(
  model: ForwardModel,
  w: LayerWeights,
  router: Matrix,
  block: RowBlock,
  scale: number,
): void {
  const { config } = model
  const { rmsNormEps: eps } = config
  const { x, normed } = block
  const rows = need(block.experts)
  const [mlp, ofExperts, branch] = [need(rows.shared), need(rows.besideMlp), need(block.branch)]
  enterMlp(config, [w.sharedGateProj, w.sharedUpProj], enterBranch(block, w.mlpNorm, eps), mlp)
  linear({ x: mlp.gated, ...need(w.sharedDownProj), out: branch })
  rmsNorm({ x: branch, weight: w.sharedOutputNorm, out: branch, eps })
  rmsNorm({ x, weight: w.routerNorm, out: normed, eps })
  route(model, w, router, normed, rows)
  rmsNorm({ x, weight: w.expertsNorm, out: normed, eps })
  multiplyExperts(model, w, normed, rows)
  addExperts({ x: rows.given, weights: rows.weights, out: ofExperts, accumulate: false })
  rmsNorm({ x: ofExperts, weight: w.expertsOutputNorm, out: branch, eps, accumulate: true })
  rmsNorm({ x: branch, weight: w.mlpOutputNorm, out: x, eps, accumulate: true, scale })
}

/** x += sum of weight down(activation(gate(norm(x))) * up(norm(x))) over the experts of each row. */
function runExperts(
  model: ForwardModel,
  w: LayerWeights,
  router: Matrix,
  { x, input }: { readonly x: Tensor<'f32'>; readonly input: Tensor },
  rows: ExpertRows,
): void {
  route(model, w, router, input, rows)
  multiplyExperts(model, w, input, rows)
  addExperts({ x: rows.given, weights: rows.weights, out: x })
}

/** Which experts multiply each row, and their weights. */
function route(
  { config }: ForwardModel,
  w: LayerWeights,
  router: Matrix,
  x: Tensor,
  { logits, weights, chosen: experts, pairs, offsets }: ExpertRows,
): void {
  linear({ x, ...router, bias: w.routerBias, out: logits })
  const { scores, normalized, leastSum, scale } = need(config.experts)
  const scoring = { correction: w.routerCorrection, scores, normalized, leastSum, scale }
  const { expertScales } = w
  routeExperts({ logits, weights, experts, pairs, offsets, ...scoring, expertScales })
}

/** given = down(activation(gate x) * up x) of each row's experts. */
function multiplyExperts(
  { config }: ForwardModel,
  w: LayerWeights,
  x: Tensor,
  rows: ExpertRows,
): void {
  const { pairs, offsets, given } = rows
  const routed = { pairs, offsets }
  expertLinear({ x, ...need(w.gateProj), bias: w.gateBias, ...routed, out: rows.gate })
  expertLinear({ x, ...need(w.upProj), bias: w.upBias, ...routed, out: rows.up })
  applyGate(config.activation, rows)
  expertLinear({ x: rows.gated, ...need(w.downProj), bias: w.downBias, ...routed, out: given })
}

/**
 * x += down(activation(gate(norm(x))) * up(norm(x))) of the expert of all rows, times sigmoid(w norm(x)) where it has
 * such a gate: the weight that a router gives to its only expert.
 */
function runSharedExpert(
  { config }: ForwardModel,
  w: LayerWeights,
  { x, input }: { readonly x: Tensor<'f32'>; readonly input: Tensor },
  rows: SharedExpertRows,
): void {
  enterMlp(config, [w.sharedGateProj, w.sharedUpProj], input, rows)
  const down = { x: rows.gated, ...need(w.sharedDownProj) }
  if (!w.sharedGate) {
    linear({ ...down, out: x, accumulate: true })
    return
  }
  const { gateLogits: logits, given, weights, chosen: experts, pairs, offsets } = rows
  linear({ ...down, out: given })
  linear({ x: input, ...w.sharedGate, out: logits })
  routeExperts({ logits, weights, experts, pairs, offsets, scores: 'sigmoid' })
  addExperts({ x: given, weights, out: x })
}

/** gated = activation(gate x) * up x */
function enterMlp(
  { activation }: ModelConfig,
  [gate, up]: readonly [gate: Matrix | undefined, up: Matrix | undefined],
  x: Tensor,
  rows: GatedRows,
): void {
  const products = [
    { ...need(gate), out: rows.gate },
    { ...need(up), out: rows.up },
  ]
  groupedLinear({ x, products })
  applyGate(activation, rows)
}

function applyGate(activation: ModelConfig['activation'], { gate, up, gated }: GatedRows): void {
  const rows = { gate, up, out: gated }
  if (activation === 'silu') siluGate(rows)
  else if (activation === 'gelu_tanh') geluGate(rows)
  else clampedSwiglu({ ...rows, ...activation })
}

/** What attention or the MLP reads of the residual stream: normalized where there is a norm. */
function enterBranch(
  { x, normed }: Pick<RowBlock, 'x' | 'normed'>,
  weight: Tensor | undefined,
  eps: number,
): Tensor {
  if (weight) rmsNorm({ x, weight, out: normed, eps })
  else if (normed.dtype === 'f32') return x
  else convert({ x, out: normed })
  return normed
}

/** Adds a product to the residual stream, normalized where there is a norm; that sum may have a scale then. */
function addBranch(
  { x, branch }: RowBlock,
  input: Tensor,
  matrix: Matrix & { readonly bias?: Tensor | undefined },
  norm: Tensor | undefined,
  eps: number,
  scale = 1,
): void {
  if (!norm) {
    linear({ x: input, ...matrix, out: x, accumulate: true })
    return
  }
  const own = branch as Tensor
  linear({ x: input, ...matrix, out: own })
  rmsNorm({ x: own, weight: norm, out: x, eps, accumulate: true, scale })
}

/**
 * Logits of all rows of the residual stream `x` (rows, hidden_size) f32: (rows, vocab_size) f32,
 * tensors of `scratch`.
 */
export function logitsOfAll(
  model: ForwardModel,
  x: Tensor<'f32'>,
  scratch: Scratch,
): Tensor<'f32'> {
  const { config, weights, dtype } = model
  const nRows = x.shape[0] as number
  const normed = scratch.tensor(dtype, [nRows, config.hiddenSize])
  const logits = scratch.tensor('f32', [nRows, config.vocabSize])
  rmsNorm({ x, weight: weights.norm, out: normed, eps: config.rmsNormEps })
  linear({ x: normed, ...weights.lmHead, out: logits })
  if (config.logitsCap > 0) softCap({ x: logits, cap: config.logitsCap, out: logits })
  return logits
}

/** The same for some rows. */
export function logitsOf(
  model: ForwardModel,
  x: Tensor<'f32'>,
  rows: Int32Array,
  scratch: Scratch,
): Tensor<'f32'> {
  const picked = scratch.tensor('f32', [rows.length, model.config.hiddenSize])
  gatherRows({ x, rows: scratch.ints(rows), out: picked })
  return logitsOfAll(model, picked, scratch)
}

/** What the config says there is: weights were checked when the checkpoint was opened. */
function need<Own>(own: Own | null | undefined): Own {
  return own as Own
}
