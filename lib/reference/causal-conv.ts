/** Rows of a convolution, and the inputs that the next rows see. */
export interface ConvResult {
  /** (rows, channels). */
  out: Float64Array
  /** (width - 1, channels), the oldest first. */
  last: Float64Array
}

/**
 * A convolution along each channel of one sequence, which sees no later row, and silu:
 * out_t = silu(sum_j weight_j x_(t - width + 1 + j) + bias).
 *
 * - `x` (rows, channels); `weight` (channels, width)
 * - `bias` (channels): default zeros
 * - `before` (width - 1, channels): inputs before the first row; default zeros
 *
 * Source: Mamba (arXiv 2312.00752) §3.4; transformers, modeling_qwen3_5.py, torch_causal_conv1d_update.
 */
export function causalConv(options: {
  x: ArrayLike<number>
  weight: ArrayLike<number>
  bias?: ArrayLike<number>
  channels: number
  width: number
  before?: ArrayLike<number>
}): ConvResult {
  const { x, weight, bias, channels, width } = options
  const kept = (width - 1) * channels
  const inputs = new Float64Array(kept + x.length)
  inputs.set(options.before ?? new Float64Array(kept))
  inputs.set(x, kept)
  const out = Float64Array.from(x, (_, i) => {
    let sum = bias ? bias[i % channels] : 0
    for (let j = 0; j < width; j++) {
      sum += weight[(i % channels) * width + j] * inputs[i + j * channels]
    }
    return sum / (1 + Math.exp(-sum))
  })
  return { out, last: inputs.slice(x.length) }
}
