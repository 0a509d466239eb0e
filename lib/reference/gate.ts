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

/**
 * The same with GELU in its form by tanh, as in Gemma: out = gelu(gate) * up, gelu(x) = x (1 + tanh(y)) / 2,
 * y = sqrt(2 / pi) (x + 0.044715 x^3). Written as x / (1 + exp(-2y)), in which nothing cancels.
 *
 * - `gate`, `up` (n, width)
 * - returns (n, width)
 *
 * Source: GLU variants (arXiv 2002.05202) eq. 6, GEGLU; GELU (arXiv 1606.08415) §2.
 */
export function geluGate(options: {
  gate: ArrayLike<number>
  up: ArrayLike<number>
}): Float64Array {
  const { gate, up } = options
  const gelu = (x: number) =>
    x / (1 + Math.exp(-2 * Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)))
  return Float64Array.from(gate, (g, i) => gelu(g) * up[i])
}

/**
 * The gated activation of gpt-oss: out = (clamp(up, -limit, limit) + 1) g / (1 + exp(-alpha g)), g =
 * min(gate, limit).
 *
 * - `gate`, `up` (n, width)
 * - returns (n, width)
 *
 * Source: https://github.com/openai/gpt-oss, swiglu in gpt_oss/torch/model.py.
 */
export function clampedSwiglu(options: {
  gate: ArrayLike<number>
  up: ArrayLike<number>
  alpha: number
  limit: number
}): Float64Array {
  const { gate, up, alpha, limit } = options
  return Float64Array.from(gate, (value, i) => {
    const g = Math.min(value, limit)
    const u = Math.max(-limit, Math.min(up[i] as number, limit))
    return (u + 1) * (g / (1 + Math.exp(-alpha * g)))
  })
}

/**
 * What attention gives, gated: out = x / (1 + exp(-gate)).
 *
 * - `gate`, `x` (n, width)
 * - returns (n, width)
 *
 * Source: gated attention (arXiv 2505.06708).
 */
export function sigmoidGate(options: {
  gate: ArrayLike<number>
  x: ArrayLike<number>
}): Float64Array {
  const { gate, x } = options
  return Float64Array.from(gate, (g, i) => x[i] / (1 + Math.exp(-g)))
}
