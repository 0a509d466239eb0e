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
  type Tensor,
} from '../ops/index.js'
import { gateWidth, hasOutputNorms, type ModelConfig, type RecurrenceConfig } from './config.js'
import { channelsOf } from './layer-kinds.js'
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

/** What lives from one block of rows to the next: the rest is work space. */
export interface StreamRows {
  /** The residual stream (rows, hidden_size) f32, whatever the model computes in. */
  readonly x: Tensor<'f32'>
  /** (rows, n_kv_heads, head_dim) in the attention's type. */
  readonly k: Tensor
  readonly v: Tensor
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
  /** The same memory, once the others are done; null: no expert multiplies all rows. */
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

/** Rows on their way through a layer: the stream, and views of the work space as the ops want it. */
export interface RowBlock extends StreamRows {
  readonly normed: Tensor
  readonly rawQ: Tensor
  readonly rawK: Tensor
  readonly vRows: Tensor
  readonly attended: Tensor
  /** Before RoPE. */
  readonly rawHeads: { readonly q: Tensor; readonly k: Tensor }
  /** For norms of single heads: (rows x heads, head_dim). */
  readonly headRows: { readonly q: Tensor; readonly k: Tensor }
  readonly heads: AttentionHeads
  /** (rows, n_heads x head_dim) f32: of attention that is gated; else null. */
  readonly attentionGate: Tensor<'f32'> | null
  /** Of recurrent layers; null: there are none. */
  readonly recurrent: RecurrentRows | null
  /** Of layers with a plain MLP; null: there are none. */
  readonly plain: GatedRows | null
  /** Of layers with experts; null: there are none. */
  readonly experts: ExpertRows | null
  /** (rows, hidden_size) f32: what a layer adds to the stream, where that has a norm; else null. */
  readonly branch: Tensor | null
}

/** The stream of `nRows` rows, tensors of `scratch`; k and v have room for `nKeys`. */
export function makeStream(
  model: ForwardModel,
  nRows: number,
  nKeys: number,
  scratch: Scratch,
): StreamRows {
  const { hiddenSize, headDim, nKvHeads } = model.config
  const kv = [nKeys, nKvHeads, headDim]
  return {
    x: scratch.tensor('f32', [nRows, hiddenSize]),
    k: scratch.tensor(model.attentionDtype, kv),
    v: scratch.tensor(model.attentionDtype, kv),
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
  const { config, dtype, attentionDtype } = model
  const { hiddenSize, intermediateSize, experts, headDim, nHeads, nKvHeads } = config
  const qWidth = nHeads * headDim
  const kvWidth = nKvHeads * headDim
  const isFloat32 = attentionDtype === 'f32'
  const normed = scratch.tensor(dtype, [capacity, hiddenSize])
  // Q and K stay in float32 until they are rotated: one rounding instead of three.
  const rawQ = scratch.tensor('f32', [capacity, qWidth])
  const rawK = isFloat32 ? null : scratch.tensor('f32', [capacity, kvWidth])
  const q = isFloat32 ? rawQ : scratch.tensor(attentionDtype, [capacity, qWidth])
  const attended = scratch.tensor(attentionDtype, [capacity, qWidth])
  const lse = scratch.tensor('f32', [capacity, nHeads])
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
  const attentionGate = config.gatesAttention ? scratch.tensor('f32', [capacity, qWidth]) : null
  const recurrentOf = makeRecurrentRows(model, capacity, scratch)

  return (nRows, stream) => {
    const view = <T extends Tensor>(tensor: T, ...rest: number[]) =>
      scratch.keep(tensor.view([nRows, ...rest]) as T)
    const rowK = rawK ?? stream.k
    const gatedRows = (rows: number, width: number): GatedRows => ({
      gate: scratch.keep(gate.view([rows, width])),
      up: scratch.keep(up.view([rows, width])),
      gated: scratch.keep(gated.view([rows, width])),
    })
    return {
      ...stream,
      normed: view(normed, hiddenSize),
      rawQ: view(rawQ, qWidth),
      rawK: view(rowK, kvWidth),
      vRows: view(stream.v, kvWidth),
      attended: view(attended, qWidth),
      rawHeads: { q: view(rawQ, nHeads, headDim), k: view(rowK, nKvHeads, headDim) },
      headRows: {
        q: scratch.keep(rawQ.view([nRows * nHeads, headDim])),
        k: scratch.keep(rowK.view([nRows * nKvHeads, headDim])),
      },
      heads: {
        q: view(q, nHeads, headDim),
        k: stream.k,
        v: stream.v,
        out: view(attended, nHeads, headDim),
        lse: view(lse, nHeads),
      },
      attentionGate: attentionGate && view(attentionGate, qWidth),
      recurrent: recurrentOf(nRows),
      plain: experts?.layers.every(Boolean) ? null : gatedRows(nRows, intermediateSize),
      experts: routed && {
        ...gatedRows(nRows * experts.perRow, experts.intermediateSize),
        logits: view(routed.logits, experts.count),
        weights: view(routed.weights, experts.perRow),
        chosen: view(routed.chosen, experts.perRow),
        pairs: scratch.keep(routed.pairs.view([nRows * experts.perRow])),
        offsets: routed.offsets,
        given: scratch.keep(routed.given.view([nRows * experts.perRow, hiddenSize])),
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
 * - `ids`, `positions` (rows) i32
 */
export function embedRows(
  model: ForwardModel,
  { x, ropes }: Pick<StreamRows, 'x' | 'ropes'>,
  ids: Tensor<'i32'>,
  positions: Tensor<'i32'>,
): void {
  const { embeddingScale, roundsEmbeddingScale, queryGrowth } = model.config
  const scale = roundsEmbeddingScale ? roundedTo(model.dtype, embeddingScale) : embeddingScale
  embedding({ ids, weight: model.weights.embedding, out: x, scale })
  for (const [i, own] of model.ropes.entries()) {
    if (own.invFreq.length === 0) continue
    const { key, query } = ropes[i] as RopeTable
    ropeTable({ positions, ...own, ...key })
    if (queryGrowth) ropeTable({ positions, ...own, ...query, ...queryGrowth })
  }
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

/** RoPE of a block's q and k, where no tail takes k and v (`ropeAppend`). */
export function rotateHeads(model: ForwardModel, layer: number, block: RowBlock): void {
  const { rawHeads, heads } = block
  const { key, query } = ropeOf(model, layer, block)
  rope({ x: rawHeads.q, ...query, out: heads.q })
  rope({ x: rawHeads.k, ...key, out: heads.k })
}

/** RoPE of a block's q and k in their place, before norms. */
function rotateRaw(model: ForwardModel, layer: number, { rawHeads, ropes }: RowBlock): void {
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
 * A layer that attends, for one block of rows. `attend` finds q and k before the RoPE that it owes (`rawHeads`) and v, and writes
 * `heads.out`; it knows where keys go.
 */
export function runLayer(
  model: ForwardModel,
  layer: number,
  block: RowBlock,
  attend: () => void,
): void {
  const { rmsNormEps: eps, qkNorm } = model.config
  const w = model.weights.layers[layer] as LayerWeights
  const { rawQ, rawK } = block
  const products = [
    { ...need(w.qProj), bias: w.qBias, out: rawQ },
    { ...need(w.kProj), bias: w.kBias, out: rawK },
    { ...need(w.vProj), bias: w.vBias, out: block.vRows },
  ]
  const { attended, attentionGate: gate } = block
  const x = enterBranch(block, w.inputNorm, eps)
  groupedLinear({ x, products })
  if (gate) linear({ x, ...need(w.attentionGate), out: gate })
  if (qkNorm === 'each head, rotated') rotateRaw(model, layer, block)
  const { q, k } = qkNorm === 'all heads' ? { q: rawQ, k: rawK } : block.headRows
  if (w.qNorm) rmsNorm({ x: q, weight: w.qNorm, out: q, eps })
  if (w.kNorm) rmsNorm({ x: k, weight: w.kNorm, out: k, eps })
  attend()
  if (gate) sigmoidGate({ gate, x: attended, out: attended })
  const attention = { ...need(w.oProj), bias: w.oBias }
  addBranch(block, attended, attention, w.attentionOutputNorm, eps)
  runMlp(model, w, block)
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
  runMlp(model, w, block)
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

/** x += down(activation(gate(norm(x))) * up(norm(x))), or that of the experts of each row. */
function runMlp(model: ForwardModel, w: LayerWeights, block: RowBlock): void {
  const { rmsNormEps: eps } = model.config
  const input = enterBranch(block, w.mlpNorm, eps)
  if (w.router) {
    const stream = { x: block.x, input }
    const rows = need(block.experts)
    runExperts(model, w, w.router, stream, rows)
    if (rows.shared) runSharedExpert(model, w, stream, rows.shared)
    return
  }
  const rows = need(block.plain)
  enterMlp(model.config, [w.gateProj, w.upProj], input, rows)
  addBranch(block, rows.gated, need(w.downProj), w.mlpOutputNorm, eps)
}

/** x += sum of weight down(activation(gate(norm(x))) * up(norm(x))) over the experts of each row. */
function runExperts(
  { config }: ForwardModel,
  w: LayerWeights,
  router: Matrix,
  { x, input }: { readonly x: Tensor<'f32'>; readonly input: Tensor },
  rows: ExpertRows,
): void {
  const { logits, weights, chosen: experts, pairs, offsets, given } = rows
  linear({ x: input, ...router, bias: w.routerBias, out: logits })
  const { scores, normalized, leastSum, scale } = need(config.experts)
  const routed = { pairs, offsets }
  const scoring = { correction: w.routerCorrection, scores, normalized, leastSum, scale }
  routeExperts({ logits, weights, experts, ...routed, ...scoring })
  expertLinear({ x: input, ...need(w.gateProj), bias: w.gateBias, ...routed, out: rows.gate })
  expertLinear({ x: input, ...need(w.upProj), bias: w.upBias, ...routed, out: rows.up })
  applyGate(config.activation, rows)
  expertLinear({ x: rows.gated, ...need(w.downProj), bias: w.downBias, ...routed, out: given })
  addExperts({ x: given, weights, out: x })
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
function enterBranch({ x, normed }: RowBlock, weight: Tensor | undefined, eps: number): Tensor {
  if (weight) rmsNorm({ x, weight, out: normed, eps })
  else if (normed.dtype === 'f32') return x
  else convert({ x, out: normed })
  return normed
}

/** Adds a product to the residual stream, normalized where there is a norm. */
function addBranch(
  { x, branch }: RowBlock,
  input: Tensor,
  matrix: Matrix & { readonly bias?: Tensor | undefined },
  norm: Tensor | undefined,
  eps: number,
): void {
  if (!norm) {
    linear({ x: input, ...matrix, out: x, accumulate: true })
    return
  }
  const own = branch as Tensor
  linear({ x: input, ...matrix, out: own })
  rmsNorm({ x: own, weight: norm, out: x, eps, accumulate: true })
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
