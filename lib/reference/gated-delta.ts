import { softplus } from './softplus.js'

/** Rows of the gated delta rule, and the states behind the last one. */
export interface GatedDeltaResult {
  /** (rows, n_heads, value_dim). */
  out: Float64Array
  /** (n_heads, key_dim, value_dim). */
  state: Float64Array
}

/**
 * The gated delta rule over one sequence, row by row. A value head's state S (key_dim, value_dim) is
 * decayed, and what it gives for the row's key is moved towards the row's value:
 *
 *     S = alpha S;  S = S + k (beta (v - k^T S))^T;  out = q^T S
 *
 * with alpha = exp(-exp(decayLog) softplus(decay + decayBias)), beta = sigmoid(beta), q and k divided
 * by their lengths, sqrt(sum x^2 + 1e-6), and q by sqrt(key_dim) as well.
 *
 * - `qkv` (rows, 2 n_key_heads key_dim + n_heads value_dim): q, then k of all key heads, then v
 * - `decay`, `beta` (rows, n_heads); `decayLog`, `decayBias` (n_heads)
 * - `state` (n_heads, key_dim, value_dim): before the first row; default zeros
 *
 * Source: Gated DeltaNet (arXiv 2412.06464) eq. 10; transformers, modeling_qwen3_5.py,
 * torch_recurrent_gated_delta_rule.
 */
export function gatedDelta(options: {
  qkv: ArrayLike<number>
  decay: ArrayLike<number>
  beta: ArrayLike<number>
  decayLog: ArrayLike<number>
  decayBias: ArrayLike<number>
  nKeyHeads: number
  nHeads: number
  keyDim: number
  valueDim: number
  state?: ArrayLike<number>
}): GatedDeltaResult {
  const { decay, beta, decayLog, decayBias, nKeyHeads, nHeads, keyDim, valueDim } = options
  const qkv = Float64Array.from(options.qkv)
  const width = 2 * nKeyHeads * keyDim + nHeads * valueDim
  const state = new Float64Array(nHeads * keyDim * valueDim)
  if (options.state) state.set(options.state)
  const out = new Float64Array((qkv.length / width) * nHeads * valueDim)
  for (let i = 0; i * valueDim < out.length; i++) {
    const head = i % nHeads
    const keyHead = Math.floor((head * nKeyHeads) / nHeads)
    const row = qkv.subarray(Math.floor(i / nHeads) * width)
    const q = unit(row.subarray(keyHead * keyDim, (keyHead + 1) * keyDim))
    const k = unit(row.subarray((nKeyHeads + keyHead) * keyDim, (nKeyHeads + keyHead + 1) * keyDim))
    const v = row.subarray(2 * nKeyHeads * keyDim + head * valueDim)
    const S = state.subarray(head * keyDim * valueDim, (head + 1) * keyDim * valueDim)
    const rate = Math.exp(decayLog[head])
    const keep = Math.exp(-rate * softplus(decay[i] + decayBias[head]))
    const write = 1 / (1 + Math.exp(-beta[i]))
    for (let c = 0; c < valueDim; c++) {
      let there = 0
      for (let j = 0; j < keyDim; j++) there += k[j] * keep * S[j * valueDim + c]
      const change = write * (v[c] - there)
      let sum = 0
      for (let j = 0; j < keyDim; j++) {
        S[j * valueDim + c] = keep * S[j * valueDim + c] + k[j] * change
        sum += q[j] * S[j * valueDim + c]
      }
      out[i * valueDim + c] = sum / Math.sqrt(keyDim)
    }
  }
  return { out, state }
}

/** x divided by its length. */
function unit(x: Float64Array): Float64Array {
  const squares = x.reduce((sum, value) => sum + value * value, 0)
  return x.map((value) => value / Math.sqrt(squares + 1e-6))
}
