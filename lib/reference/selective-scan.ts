import { softplus } from './softplus.js'

/** Rows of a selective scan, and the states behind the last one. */
export interface SelectiveScanResult {
  /** (rows, n_heads, head_dim). */
  out: Float64Array
  /** (n_heads, state_dim, head_dim). */
  state: Float64Array
}

/**
 * A selective scan over one sequence, row by row. A head's state S (state_dim, head_dim) decays and takes the
 * row's x:
 *
 *     S = exp(-exp(decayLog) dt) S + B (dt x)^T;  out = C^T S + skip x
 *
 * with dt = softplus(step + stepBias).
 *
 * - `xbc` (rows, n_heads head_dim + 2 n_groups state_dim): x of all heads, then B, then C of all groups
 * - `step` (rows, n_heads); `stepBias`, `decayLog`, `skip` (n_heads)
 * - `state` (n_heads, state_dim, head_dim): before the first row; default zeros
 *
 * Source: Mamba 2 (arXiv 2405.21060) §2; transformers, modeling_granitemoehybrid.py,
 * mamba2_selective_state_update.
 */
export function selectiveScan(options: {
  xbc: ArrayLike<number>
  step: ArrayLike<number>
  stepBias: ArrayLike<number>
  decayLog: ArrayLike<number>
  skip: ArrayLike<number>
  nGroups: number
  nHeads: number
  stateDim: number
  headDim: number
  state?: ArrayLike<number>
}): SelectiveScanResult {
  const { step, stepBias, decayLog, skip, nGroups, nHeads, stateDim, headDim } = options
  const xbc = Float64Array.from(options.xbc)
  const width = nHeads * headDim + 2 * nGroups * stateDim
  const state = new Float64Array(nHeads * stateDim * headDim)
  if (options.state) state.set(options.state)
  const out = new Float64Array((xbc.length / width) * nHeads * headDim)
  for (let i = 0; i * headDim < out.length; i++) {
    const head = i % nHeads
    const group = Math.floor((head * nGroups) / nHeads)
    const row = xbc.subarray(Math.floor(i / nHeads) * width)
    const x = row.subarray(head * headDim)
    const B = row.subarray(nHeads * headDim + group * stateDim)
    const C = row.subarray(nHeads * headDim + (nGroups + group) * stateDim)
    const S = state.subarray(head * stateDim * headDim, (head + 1) * stateDim * headDim)
    const dt = softplus(step[i] + stepBias[head])
    const keep = Math.exp(-Math.exp(decayLog[head]) * dt)
    for (let c = 0; c < headDim; c++) {
      let sum = skip[head] * x[c]
      for (let n = 0; n < stateDim; n++) {
        S[n * headDim + c] = keep * S[n * headDim + c] + B[n] * dt * x[c]
        sum += C[n] * S[n * headDim + c]
      }
      out[i * headDim + c] = sum
    }
  }
  return { out, state }
}
