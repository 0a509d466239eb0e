/**
 * The gated activation of LLaMA's feed-forward layer: out = silu(gate) * up, silu(x) = x / (1 +
 * exp(-x)).
 *
 * - `gate`, `up` (n, width)
 * - returns (n, width)
 *
 * Source: GLU variants (arXiv 2002.05202) eq. 6, SwiGLU with beta = 1.
 */
export function siluGate(options: {
  gate: ArrayLike<number>
  up: ArrayLike<number>
}): Float64Array {
  const { gate, up } = options
  return Float64Array.from(gate, (g, i) => (g / (1 + Math.exp(-g))) * up[i])
}
