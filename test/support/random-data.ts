import type { DType, TypedArrays } from '../../lib/ops/index.js'
import {
  type FloatDtype,
  f32ToBf16,
  f32ToF16,
  fromBf16,
  fromF16,
} from '../../lib/reference/index.js'

/**
 * Seeded numbers in [0, 1), fast enough for large inputs.
 *
 * Source: mulberry32, T. Ettinger, in the public domain.
 */
export function randomNumbers(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let z = Math.imul(state ^ (state >>> 15), state | 1)
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61)
    return ((z ^ (z >>> 14)) >>> 0) / 2 ** 32
  }
}

/** Standard normal numbers (Box-Muller), rounded to float32. */
export function normals(seed: number, length: number): Float32Array {
  const next = randomNumbers(seed)
  return Float32Array.from({ length }, () => {
    const radius = Math.sqrt(-2 * Math.log(1 - next()))
    return radius * Math.cos(2 * Math.PI * next())
  })
}

/** Tokens by KV heads by channels, as K and V are laid out. */
export interface KvShape {
  nTokens: number
  nKvHeads: number
  headDim: number
}

/**
 * Keys as models have them: normal, with every 16th channel 8 times as large and every 8th channel
 * off centre by 2. The channels differ per head. Returns (n_tokens, n_kv_heads, head_dim).
 */
export function randomKeys(seed: number, { nTokens, nKvHeads, headDim }: KvShape): Float32Array {
  const width = nKvHeads * headDim
  return normals(seed, nTokens * width).map((x, i) => {
    const head = Math.floor((i % width) / headDim)
    const c = (i + head) % headDim
    return x * (c % 16 === 3 ? 8 : 1) + (c % 8 === 5 ? 2 : 0)
  })
}

/**
 * Values as models have them: normal, with every 16th channel 6 times as large. Returns
 * (n_tokens, n_kv_heads, head_dim).
 */
export function randomValues(seed: number, { nTokens, nKvHeads, headDim }: KvShape): Float32Array {
  const width = nKvHeads * headDim
  return normals(seed, nTokens * width).map((x, i) => {
    const head = Math.floor((i % width) / headDim)
    return x * (((i + head) % headDim) % 16 === 7 ? 6 : 1)
  })
}

/** Whole numbers of [0, bound). */
export function integers(seed: number, length: number, bound: number): Int32Array {
  const next = randomNumbers(seed)
  return Int32Array.from({ length }, () => Math.floor(next() * bound))
}

/** Numbers as a tensor of some dtype stores them, beside the values they then have. */
export interface StoredValues {
  /** what `Tensor.write` takes: f32 values, or raw f16 or bf16 bits */
  stored: Float32Array | Uint16Array
  /** the exact values of `stored` */
  values: Float64Array
}

/** Rounds numbers to a dtype, for the device and for the reference. */
export function storeAs(dtype: FloatDtype, x: ArrayLike<number>): StoredValues {
  switch (dtype) {
    case 'f32': {
      const stored = Float32Array.from(x)
      return { stored, values: Float64Array.from(stored) }
    }
    case 'f16': {
      const stored = Uint16Array.from(x, f32ToF16)
      return { stored, values: fromF16(stored) }
    }
    case 'bf16': {
      const stored = Uint16Array.from(x, f32ToBf16)
      return { stored, values: fromBf16(stored) }
    }
  }
}

/**
 * The same numbers, one element past the start of their buffer: aligned to the element and no
 * further.
 */
export function atOddOffset<T extends TypedArrays[DType]>(array: T): T {
  const { BYTES_PER_ELEMENT, length } = array
  const View = array.constructor as new (buffer: ArrayBuffer, offset: number, length: number) => T
  const view = new View(
    new ArrayBuffer((length + 1) * BYTES_PER_ELEMENT),
    BYTES_PER_ELEMENT,
    length,
  )
  view.set(array)
  return view
}

/** The starts of rows of these lengths in a packed tensor: 0, l0, l0 + l1, … */
export function cumulative(rowCounts: readonly number[]): Int32Array {
  const starts = new Int32Array(rowCounts.length + 1)
  rowCounts.forEach((count, i) => {
    starts[i + 1] = starts[i] + count
  })
  return starts
}
