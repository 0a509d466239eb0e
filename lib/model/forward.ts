/**
 * The forward pass of a LLaMA-like decoder as a list of ops. Attention is the caller's: it knows
 * the cache.
 */
import {
  type Device,
  embedding,
  gatherRows,
  linear,
  rmsNorm,
  rope,
  ropeTable,
  siluGate,
  type Tensor,
} from '../ops/index.js'
import type { ModelConfig } from './config.js'
import type { Scratch } from './scratch.js'
import type { AttentionDtype, ComputeDtype, LayerWeights, ModelWeights } from './weights.js'

/** A model as the forward pass needs it. */
export interface ForwardModel {
  readonly device: Device
  readonly config: ModelConfig
  readonly weights: ModelWeights
  readonly dtype: ComputeDtype
  /** Type of Q, K, V and of attention's output. */
  readonly attentionDtype: AttentionDtype
  /** (head_dim / 2) f32. */
  readonly invFreq: Tensor<'f32'>
  readonly attentionScale: number
}

/** One pass of `nRows` tokens through the model. */
export interface Pass {
  readonly nRows: number
  /** (nRows) i32: tokens. */
  readonly ids: Tensor<'i32'>
  /** (nRows) i32. */
  readonly positions: Tensor<'i32'>
  readonly scratch: Scratch
  /** Throws when the pass is no longer wanted: it was aborted, or what it writes to is gone. */
  checkpoint?(): void
  /**
   * Attention of one layer: reads q (nRows, n_heads, head_dim), k and v (nRows, n_kv_heads,
   * head_dim), after RoPE, and writes `out` (like q) and `lse` (nRows, n_heads) f32.
   */
  attend(layer: number, heads: AttentionHeads): void
}

/** What `Pass.attend` reads and writes. */
export interface AttentionHeads {
  readonly q: Tensor
  readonly k: Tensor
  readonly v: Tensor
  readonly out: Tensor
  readonly lse: Tensor<'f32'>
}

/** Rows whose MLP activations exist at a time: they are wider than the others. */
const MLP_ROWS = 1024

/**
 * Runs all layers and returns the residual stream (nRows, hidden_size) f32, a tensor of
 * `pass.scratch`. The residual stream stays in float32 whatever the model computes in.
 *
 * Passes of more than one row stop between layers to see whether they are still wanted (rejecting
 * with what `pass.checkpoint` throws) and to let other work onto the stream.
 */
export async function forward(model: ForwardModel, pass: Pass): Promise<Tensor<'f32'>> {
  const { config, weights, device, dtype, attentionDtype } = model
  const { nRows, scratch } = pass
  const { hiddenSize, headDim, nHeads, nKvHeads } = config
  const qWidth = nHeads * headDim
  const kvWidth = nKvHeads * headDim

  const x = scratch.tensor('f32', [nRows, hiddenSize])
  const normed = scratch.tensor(dtype, [nRows, hiddenSize])
  // Q and K stay in float32 until they are rotated: one rounding instead of three.
  const rawQ = scratch.tensor('f32', [nRows, qWidth])
  const rawK = scratch.tensor('f32', [nRows, kvWidth])
  const isFloat32 = attentionDtype === 'f32'
  const q = isFloat32 ? rawQ : scratch.tensor(attentionDtype, [nRows, qWidth])
  const k = isFloat32 ? rawK : scratch.tensor(attentionDtype, [nRows, kvWidth])
  const v = scratch.tensor(attentionDtype, [nRows, kvWidth])
  const attended = scratch.tensor(attentionDtype, [nRows, qWidth])
  const lse = scratch.tensor('f32', [nRows, nHeads])
  const cos = scratch.tensor('f32', [nRows, headDim / 2])
  const sin = scratch.tensor('f32', [nRows, headDim / 2])
  const heads: AttentionHeads = {
    q: scratch.keep(q.view([nRows, nHeads, headDim])),
    k: scratch.keep(k.view([nRows, nKvHeads, headDim])),
    v: scratch.keep(v.view([nRows, nKvHeads, headDim])),
    out: scratch.keep(attended.view([nRows, nHeads, headDim])),
    lse,
  }
  const rawHeads = {
    q: scratch.keep(rawQ.view([nRows, nHeads, headDim])),
    k: scratch.keep(rawK.view([nRows, nKvHeads, headDim])),
  }
  const qRows = scratch.keep(rawQ.view([nRows * nHeads, headDim]))
  const kRows = scratch.keep(rawK.view([nRows * nKvHeads, headDim]))
  const mlp = makeMlp(model, pass, normed, x)

  embedding({ ids: pass.ids, weight: weights.embedding, out: x })
  ropeTable({
    positions: pass.positions,
    invFreq: model.invFreq,
    attentionScale: model.attentionScale,
    cos,
    sin,
  })
  for (let layer = 0; layer < config.nLayers; layer++) {
    const w = weights.layers[layer] as LayerWeights
    rmsNorm({ x, weight: need(w.inputNorm), out: normed, eps: config.rmsNormEps })
    linear({ x: normed, weight: need(w.qProj), bias: w.qBias, out: rawQ })
    linear({ x: normed, weight: need(w.kProj), bias: w.kBias, out: rawK })
    linear({ x: normed, weight: need(w.vProj), bias: w.vBias, out: v })
    if (w.qNorm) rmsNorm({ x: qRows, weight: w.qNorm, out: qRows, eps: config.rmsNormEps })
    if (w.kNorm) rmsNorm({ x: kRows, weight: w.kNorm, out: kRows, eps: config.rmsNormEps })
    rope({ x: rawHeads.q, cos, sin, out: heads.q })
    rope({ x: rawHeads.k, cos, sin, out: heads.k })
    pass.attend(layer, heads)
    linear({ x: attended, weight: need(w.oProj), bias: w.oBias, out: x, accumulate: true })
    mlp(w)
    if (nRows > 1) {
      await device.sync()
      pass.checkpoint?.()
    }
  }
  return x
}

/** x += down(silu(gate(norm(x))) * up(norm(x))), a block of rows at a time. */
function makeMlp(
  model: ForwardModel,
  pass: Pass,
  normed: Tensor,
  x: Tensor,
): (w: LayerWeights) => void {
  const { config, dtype } = model
  const { nRows, scratch } = pass
  const { hiddenSize, intermediateSize } = config
  const blockRows = Math.min(nRows, MLP_ROWS)
  const gate = scratch.tensor('f32', [blockRows, intermediateSize])
  const up = scratch.tensor('f32', [blockRows, intermediateSize])
  const gated = dtype === 'f32' ? gate : scratch.tensor(dtype, [blockRows, intermediateSize])
  const blocks: { normed: Tensor; x: Tensor; gate: Tensor; up: Tensor; gated: Tensor }[] = []
  for (let row = 0; row < nRows; row += blockRows) {
    const n = Math.min(blockRows, nRows - row)
    blocks.push({
      normed: scratch.keep(normed.view([n, hiddenSize], row * hiddenSize)),
      x: scratch.keep(x.view([n, hiddenSize], row * hiddenSize)),
      gate: scratch.keep(gate.view([n, intermediateSize])),
      up: scratch.keep(up.view([n, intermediateSize])),
      gated: scratch.keep(gated.view([n, intermediateSize])),
    })
  }
  return (w) => {
    rmsNorm({ x, weight: need(w.postAttentionNorm), out: normed, eps: config.rmsNormEps })
    for (const block of blocks) {
      linear({ x: block.normed, weight: need(w.gateProj), out: block.gate })
      linear({ x: block.normed, weight: need(w.upProj), out: block.up })
      siluGate({ gate: block.gate, up: block.up, out: block.gated })
      linear({ x: block.gated, weight: need(w.downProj), out: block.x, accumulate: true })
    }
  }
}

/**
 * Logits of some rows of the residual stream: (rows.length, vocab_size) f32, a tensor of `scratch`.
 */
export function logitsOf(
  model: ForwardModel,
  x: Tensor<'f32'>,
  rows: Int32Array,
  scratch: Scratch,
): Tensor<'f32'> {
  const { config, weights, dtype } = model
  const picked = scratch.tensor('f32', [rows.length, config.hiddenSize])
  const normed = scratch.tensor(dtype, [rows.length, config.hiddenSize])
  const logits = scratch.tensor('f32', [rows.length, config.vocabSize])
  gatherRows({ x, rows: scratch.ints(rows), out: picked })
  rmsNorm({ x: picked, weight: weights.norm, out: normed, eps: config.rmsNormEps })
  linear({ x: normed, weight: weights.lmHead, out: logits })
  return logits
}

/** Weights were checked when the checkpoint was opened. */
function need(weight: Tensor | undefined): Tensor {
  return weight as Tensor
}
