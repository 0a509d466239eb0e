/**
 * The shapes every op is tested at: 1, odd, prime, one under / at / one over a tile (16 and 64),
 * GQA groups, every head_dim, empty and long. Lists are chosen so that each value of each extent
 * occurs, not each combination.
 */

/** Lengths: empty, one, odd, prime, around tiles of 16 and 64. */
export const lengths = [0, 1, 2, 3, 7, 15, 16, 17, 31, 63, 64, 65, 127] as const

/** A length of many tiles, prime, so that nothing divides it. */
export const longLength = 1031

/** Head dimensions that the attention ops support. */
export const headDims = [32, 64, 96, 128, 256, 320, 512] as const

/** Query and KV heads of the GQA groups 1, 4, 7 and 8. */
export const headCounts = [
  { nHeads: 1, nKvHeads: 1 },
  { nHeads: 3, nKvHeads: 3 },
  { nHeads: 4, nKvHeads: 1 },
  { nHeads: 8, nKvHeads: 2 },
  { nHeads: 14, nKvHeads: 2 },
  { nHeads: 8, nKvHeads: 1 },
] as const

/** One call of flashAttention: sequences of (q_len, kv_len) packed one after another. */
export interface AttentionShape {
  nHeads: number
  nKvHeads: number
  headDim: number
  sequences: readonly { qLen: number; kvLen: number }[]
  causal: boolean
  slidingWindow: number
}

const square = (length: number) => ({ qLen: length, kvLen: length })

/** Shapes of flashAttention. */
export const attentionShapes: readonly AttentionShape[] = [
  // one of everything, every head_dim, every group
  ...headDims.map((headDim) => ({
    ...headCounts[0],
    headDim,
    sequences: [square(1)],
    causal: true,
    slidingWindow: 0,
  })),
  ...headCounts.map((heads) => ({
    ...heads,
    headDim: 32,
    sequences: [square(17)],
    causal: true,
    slidingWindow: 0,
  })),
  ...headDims.map((headDim) => ({
    nHeads: 4,
    nKvHeads: 2,
    headDim,
    sequences: [square(65)],
    causal: true,
    slidingWindow: 0,
  })),
  // around tiles, several sequences in one call, some empty
  {
    nHeads: 2,
    nKvHeads: 1,
    headDim: 64,
    sequences: [15, 16, 17, 0, 1, 63, 64, 65].map(square),
    causal: true,
    slidingWindow: 0,
  },
  {
    nHeads: 2,
    nKvHeads: 1,
    headDim: 64,
    sequences: [3, 64, 7].map(square),
    causal: false,
    slidingWindow: 0,
  },
  // more keys than rows (a later chunk), more rows than keys (rows that see nothing), no keys, no
  // rows
  {
    nHeads: 7,
    nKvHeads: 1,
    headDim: 64,
    sequences: [
      { qLen: 5, kvLen: 67 },
      { qLen: 1, kvLen: 128 },
    ],
    causal: true,
    slidingWindow: 0,
  },
  {
    nHeads: 2,
    nKvHeads: 2,
    headDim: 32,
    sequences: [
      { qLen: 20, kvLen: 3 },
      { qLen: 2, kvLen: 0 },
      { qLen: 0, kvLen: 5 },
    ],
    causal: true,
    slidingWindow: 0,
  },
  { nHeads: 1, nKvHeads: 1, headDim: 32, sequences: [], causal: true, slidingWindow: 0 },
  // sliding windows: 1, under / at / over a tile, wider than the sequence, not causal
  ...[1, 15, 16, 17, 500].map((slidingWindow) => ({
    nHeads: 4,
    nKvHeads: 2,
    headDim: 32,
    sequences: [square(67), { qLen: 3, kvLen: 40 }],
    causal: true,
    slidingWindow,
  })),
  { nHeads: 2, nKvHeads: 1, headDim: 32, sequences: [square(33)], causal: false, slidingWindow: 9 },
  // wide heads: several sequences, a later chunk, a sliding window
  {
    nHeads: 3,
    nKvHeads: 1,
    headDim: 512,
    sequences: [square(17), { qLen: 5, kvLen: 67 }, { qLen: 0, kvLen: 3 }, { qLen: 4, kvLen: 2 }],
    causal: true,
    slidingWindow: 0,
  },
  {
    nHeads: 2,
    nKvHeads: 1,
    headDim: 384,
    sequences: [square(70)],
    causal: true,
    slidingWindow: 19,
  },
  {
    nHeads: 2,
    nKvHeads: 2,
    headDim: 512,
    sequences: [square(33)],
    causal: false,
    slidingWindow: 0,
  },
  // long
  {
    nHeads: 2,
    nKvHeads: 1,
    headDim: 64,
    sequences: [{ qLen: 33, kvLen: longLength }],
    causal: true,
    slidingWindow: 0,
  },
]

/** (rows, channels) of quantize: tokens by channels. */
export const matrixShapes: readonly (readonly [rows: number, channels: number])[] = [
  [0, 32],
  [1, 1],
  [1, 64],
  [3, 7],
  [7, 13],
  [15, 32],
  [16, 96],
  [17, 64],
  [63, 128],
  [64, 31],
  [65, 256],
  [longLength, 64],
]

/** (n_heads, n, count) of selectSalient. */
export const selectionShapes: readonly { nHeads: number; n: number; count: number }[] = [
  { nHeads: 1, n: 0, count: 0 },
  { nHeads: 1, n: 1, count: 0 },
  { nHeads: 1, n: 1, count: 1 },
  { nHeads: 2, n: 7, count: 3 },
  { nHeads: 3, n: 16, count: 16 },
  { nHeads: 8, n: 63, count: 38 },
  { nHeads: 2, n: 64, count: 0 },
  { nHeads: 4, n: 65, count: 64 },
  { nHeads: 2, n: 100, count: 60 },
  { nHeads: 2, n: longLength, count: 619 },
]
