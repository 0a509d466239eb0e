import type { Scratch } from '../model/scratch.js'
import { convert, gatherRows, type Tensor } from '../ops/index.js'
import type { Probes } from './compress.js'

/** Rows of K, and of Q, that are looked at. */
const MAX_KEYS = 256
const MAX_QUERIES = 64

/**
 * How much a quantized K disturbs each KV head's logits, up to a factor: the mean over probe rows and
 * the group's query heads of sum over channels q_c^2 range(K_c)^2, since an error of K_c is uniform
 * over a step, which is a share of the channel's range. From up to 64 queries and 256 keys.
 *
 * - `k` (n_tokens, n_kv_heads, head_dim)
 */
export async function keyErrorGains(
  k: Tensor,
  probes: Pick<Probes, 'q' | 'rows'>,
  scratch: Scratch,
): Promise<Float64Array> {
  const [nTokens, nKvHeads, headDim] = k.shape as [number, number, number]
  const nHeads = probes.q.shape[1] as number
  const nProbes = probes.rows.length
  const everySlot = evenly(nProbes, MAX_QUERIES)
  const queries = await rowsOf(probes.q, everySlot, scratch)
  const keys = await rowsOf(k, evenly(nTokens, MAX_KEYS), scratch)
  const width = nKvHeads * headDim
  const group = nHeads / nKvHeads
  const gains = new Float64Array(nKvHeads)
  for (let channel = 0; channel < width; channel++) {
    const head = Math.floor(channel / headDim)
    let least = Number.POSITIVE_INFINITY
    let most = Number.NEGATIVE_INFINITY
    for (let at = channel; at < keys.length; at += width) {
      least = Math.min(least, keys[at] as number)
      most = Math.max(most, keys[at] as number)
    }
    let squares = 0
    for (let row = 0; row < everySlot.length; row++) {
      for (let member = 0; member < group; member++) {
        const at = (row * nHeads + head * group + member) * headDim + (channel % headDim)
        squares += (queries[at] as number) ** 2
      }
    }
    const mean = squares / (everySlot.length * group)
    gains[head] = (gains[head] as number) + mean * (most - least) ** 2
  }
  return gains
}

/** Some rows of x (rows, heads, head_dim), in float32. */
async function rowsOf(x: Tensor, rows: Int32Array, scratch: Scratch): Promise<Float32Array> {
  const [n, ...rest] = x.shape as [number, ...number[]]
  const width = rest.reduce((product, size) => product * size, 1)
  const picked = scratch.tensor(x.dtype, [rows.length, width])
  gatherRows({ x: scratch.keep(x.view([n, width])), rows: scratch.ints(rows), out: picked })
  const values = scratch.tensor('f32', [rows.length, width])
  convert({ x: picked, out: values })
  return values.read()
}

/** Up to `most` of n rows, evenly spaced. */
function evenly(n: number, most: number): Int32Array {
  const count = Math.min(n, most)
  return Int32Array.from({ length: count }, (_, i) => Math.floor(((i + 0.5) * n) / count))
}
