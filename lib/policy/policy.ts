import type { Seed } from '../random.js'

/** Bits of a quantized key or value. */
export type CodeBits = 2 | 3 | 4 | 8

/** How the range of a channel or token is found; see `quantize`. */
export type QuantRange =
  | 'minmax'
  | {
      /** The exponent of |error| in the sum that the search minimises. */
      norm: 2 | 3 | 4 | 5 | 6
    }

/**
 * How the attention that a token received becomes its saliency: divided by the number of probes that
 * see the token (`normalized`, Eq. 8), not divided (`accumulated`, Eq. 7), divided by the number of
 * all rows that see it, probes or not (`causal`, as the authors' code does); or no attention at all,
 * the newest tokens being the salient ones (`locality`, Table A).
 *
 * Source: ZipCache (arXiv 2405.14256) §4.2.
 */
export type SaliencyMetric = 'normalized' | 'accumulated' | 'causal' | 'locality'

/** How one class of tokens is stored. K and V have bits of their own. */
export interface PrecisionClass {
  /** Of a code of K. */
  keyBits: CodeBits
  /** Of a code of V. */
  valueBits: CodeBits
  /** How the range of K's channels is found. */
  keyRange: QuantRange
  /** How the range of V's tokens is found. */
  valueRange: QuantRange
}

/** r chosen for each layer and KV head from a prompt's scores; windows go on with it. */
export interface AutoRatio {
  /**
   * The share of a layer's saliency that salient tokens are to hold. Heads are weighted by how much
   * low bits disturb them.
   */
  readonly coverage: number
  /** The most bytes of the cache once a prompt is in it; null: the other limits alone decide. */
  readonly budgetBytes: number | null
  /** Share of a layer's tokens, its heads together, that may be salient. */
  readonly share: number
}

/** What a policy that compresses decides: pure functions of lengths and seeds. */
export interface Compression {
  /** New tokens stay in 16 bits until this many have gathered. */
  readonly window: number
  /** Salient tokens. */
  readonly high: PrecisionClass
  /** Regular tokens. */
  readonly low: PrecisionClass
  /** How the tokens of a prompt are scored. */
  readonly metric: SaliencyMetric
  /** The same for those of a window. */
  readonly windowMetric: SaliencyMetric
  /** How r is chosen head by head; null: `nSalient` says, for all alike. */
  readonly auto: AutoRatio | null
  /** Whether the bias of position is taken out of a prompt's scores. */
  readonly correctsPosition: boolean
  /** Whether `promptProbes` wants to know which tokens are special. */
  readonly usesSpecialTokens: boolean
  /**
   * How many of `nTokens` are salient, the same for every KV head. With `auto` it holds for windows
   * before the first prompt.
   */
  nSalient(nTokens: number): number
  /**
   * Rows of a prompt of `nTokens` tokens whose attention is looked at, ascending. Each layer draws its
   * own, but their number depends on `nTokens` alone; none when no attention is needed.
   *
   * - `specialRows`: rows whose token is special or punctuation, ascending, where `usesSpecialTokens`
   */
  promptProbes(
    nTokens: number,
    seed: Seed,
    layer: number,
    specialRows?: Int32Array | null,
  ): Int32Array
  /** The same for a window: which of its tokens, the one that closes it always among them. */
  windowProbes(seed: Seed): Int32Array
}

/** GEAR's L and S: a low-rank matrix that is added to what was dequantized, and outliers in 16 bits. */
export interface Correction {
  /**
   * Share of the elements that are kept as they are, half of them the smallest and half the largest:
   * of each channel with `channelwise`, else of each token.
   */
  readonly outliers: number
  /** Rank for each head, of `nRows` tokens that are quantized together. */
  rank(nRows: number): number
}

/** How K or V is stored by a policy whose rows are dequantized; the schemes are `quantize`'s. */
export interface RowCodec {
  /** What shares one scale and zero. */
  readonly scheme: 'channelwise' | 'tokenwise' | 'groupwise' | 'cst'
  /** Of a code. */
  readonly bits: CodeBits
  /** How the range of a group is found. */
  readonly range: QuantRange
  /** Channels of a group, with `groupwise`; 0: a head's. */
  readonly groupSize: number
  /** Tokens that share a channel's parameters; 0: all that are quantized together. */
  readonly tokenGroup: number
  /** Whether each head's channels are rotated by a Hadamard matrix first. */
  readonly rotated: boolean
  /** What is kept beside the codes to make up for their errors; null: nothing. */
  readonly correction: Correction | null
  /**
   * How many of `nTokens` tokens, the oldest, are quantized, of which `nBefore` are already. It grows by
   * a multiple of 16 or past every older token, because rows in 16 bits lie in blocks of 16 that are
   * freed whole.
   */
  nQuantized(nTokens: number, nBefore: number): number
}

/** Every token is kept, quantized or, the newest ones, in 16 bits. */
export interface QuantizedPlan {
  /** Tells the plans apart. */
  readonly kind: 'quantized'
  /** How K is stored. */
  readonly key: RowCodec
  /** How V is stored. */
  readonly value: RowCodec
}

/** The rows there are when tokens have come, those included. */
export interface KeptFacts {
  /** Rows of each KV head, the new ones included. */
  readonly nRows: number
  /** Tokens that there had been, dropped ones included, when the last prompt ended. */
  readonly promptLength: number
  /** Whether the new tokens are a prompt's. */
  readonly isPrompt: boolean
}

/** Some tokens of each KV head are kept in 16 bits, the others are dropped for good. */
export interface KeptPlan {
  /** Tells the plans apart. */
  readonly kind: 'kept'
  /** Whether the attention that a row received is remembered and added to. */
  readonly accumulates: boolean
  /** How many rows are kept; the same for every KV head. */
  nKept(facts: KeptFacts): number
  /** How many of the `nNew` newest rows are looked at, to score all rows. */
  nObservers(facts: KeptFacts, nNew: number): number
  /**
   * The rows that one KV head keeps, `nKept` of them, ascending.
   *
   * - `scores` (n_rows): the attention that its rows received, oldest first
   */
  select(scores: Float32Array, facts: KeptFacts): Int32Array
}

/**
 * The most important tokens of each KV head stay in 16 bits, the others are quantized once and for
 * all, each half of a head's channels with a scale and zero of its own. Keys' channels are balanced
 * before, by how large the queries of the first prompt are there.
 */
export interface TieredPlan {
  /** Tells the plans apart. */
  readonly kind: 'tiered'
  /** Of a code of what is quantized. */
  readonly bits: CodeBits
  /** Of `nRows` rows in 16 bits, how many stay so when there are `nTokens` tokens in all. */
  nKept(nRows: number, nTokens: number): number
  /**
   * The rows that one KV head keeps in 16 bits, `nKept` of them, ascending.
   *
   * - `scores` (n_rows): the attention that its rows in 16 bits received, oldest first
   */
  select(scores: Float32Array, nKept: number): Int32Array
}

/** What a policy decides whose rows do not lie in pages. */
export type RowPlan = QuantizedPlan | KeptPlan | TieredPlan

/**
 * How a sequence's cache is kept. Facts go in and plans come out; a policy touches no tensor, no
 * clock and no hidden state, so that the same seed gives the same cache.
 */
export interface CachePolicy {
  /** As `PolicySpec` has it. */
  readonly name: string
  /** Type of tokens that are not compressed: float16, or the type the model computes in. */
  readonly tail: 'f16' | 'compute'
  /**
   * How rows attend to the cache: `packed`, straight over the codes; or `dequantized`, over rows that
   * every step makes of them first, which is slower and for comparison.
   */
  readonly attention: 'packed' | 'dequantized'
  /** What lies in pages. null: every token stays in the tail. */
  readonly compression: Compression | null
  /** What lies in rows, where attention is `dequantized`; null elsewhere. */
  readonly rows: RowPlan | null
}
