/** Cosines and sines of rotary position embedding, each (n, rotary_dim / 2). */
export interface RopeTable {
  /** (n, rotary_dim / 2). */
  cos: Float64Array
  /** (n, rotary_dim / 2). */
  sin: Float64Array
}

/**
 * The rotation of each position and frequency: cos, sin of position_i * invFreq_c, times
 * attentionScale.
 *
 * - `positions` (n), absolute, from 0; `invFreq` (rotary_dim / 2), radians per position
 * - `attentionScale`: 1, or YaRN's factor on both tables (so that q . k grows by its square)
 * - `growth`, `period`: both are times 1 + growth ln(1 + floor(position / period)), too; default 0
 * - returns cos, sin (n, rotary_dim / 2)
 *
 * Source: RoFormer (arXiv 2104.09864) eq. 34; YaRN (arXiv 2309.00071) §3.4 for the scale.
 */
export function ropeTable(options: {
  positions: ArrayLike<number>
  invFreq: ArrayLike<number>
  attentionScale: number
  growth?: number
  period?: number
}): RopeTable {
  const { positions, invFreq, attentionScale, growth = 0, period = 1 } = options
  const half = invFreq.length
  const cos = new Float64Array(positions.length * half)
  const sin = new Float64Array(positions.length * half)
  for (let i = 0; i < positions.length; i++) {
    const scale = attentionScale * (1 + growth * Math.log(1 + Math.floor(positions[i] / period)))
    for (let c = 0; c < half; c++) {
      const angle = positions[i] * invFreq[c]
      cos[i * half + c] = Math.cos(angle) * scale
      sin[i * half + c] = Math.sin(angle) * scale
    }
  }
  return { cos, sin }
}

/**
 * Rotates each pair of channels (c, c + d / 2) of row i by the table's angle (i, c), d = rotary_dim:
 *
 *     out_c          = x_c cos - x_(c + d/2) sin
 *     out_(c + d/2)  = x_(c + d/2) cos + x_c sin
 *
 * Channels from rotary_dim on stay as they are.
 * The half-split pairing of Hugging Face's `rotate_half`; RoFormer's own pairs are neighbours, and
 * checkpoints for the two differ by a permutation of the rows of W_q and W_k.
 *
 * - `x` (n, n_heads, head_dim); `cos`, `sin` (n, rotary_dim / 2)
 * - returns (n, n_heads, head_dim); the op itself works in place
 */
export function rope(options: {
  x: ArrayLike<number>
  cos: ArrayLike<number>
  sin: ArrayLike<number>
  nHeads: number
  headDim: number
}): Float64Array {
  const { x, cos, sin, nHeads, headDim } = options
  const half = (cos.length * nHeads * headDim) / x.length
  const out = Float64Array.from(x)
  for (let row = 0; row * headDim < x.length; row++) {
    const angle = Math.floor(row / nHeads) * half
    for (let c = 0; c < half; c++) {
      const low = row * headDim + c
      const high = low + half
      out[low] = x[low] * cos[angle + c] - x[high] * sin[angle + c]
      out[high] = x[high] * cos[angle + c] + x[low] * sin[angle + c]
    }
  }
  return out
}
