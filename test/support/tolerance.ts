/**
 * The largest relative error each comparison allows, with its reason. Relative means
 * max |difference| / max |reference| over a row; see `expectClose`.
 *
 * u = 2^-24 for float32, 2^-11 for f16, 2^-8 (half a step) for bf16: one rounding changes a value
 * by at most that share.
 */
export const tolerance = {
  /**
   * f32 attention: scores of size ~30 from up to 256 products, whose errors (~100 u) exp turns
   * relative.
   */
  f32Attention: 2e-5,
  /**
   * f16 outputs: u of the output, u of p where the kernel stores it as f16, inputs exact.
   * design.md.
   */
  f16Attention: 2e-3,
  /**
   * bf16 outputs: u = 4e-3 of the output, and where p is stored as bf16 up to u of sum p |v|, which
   * is a few times the output where values cancel. design.md.
   */
  bf16Attention: 1e-2,
  /**
   * The same at head_dim 32 and less: of few channels the largest is less of a measure, and 1.5e-2
   * was seen.
   */
  bf16SmallHeads: 2e-2,
  /**
   * Attention over packed codes against dequantized values in double; the promise of the project.
   */
  mixedAttention: 2e-3,
  /** LSE is a score plus a logarithm, both with f32 errors of ~100 u; compared with floor 1. */
  lse: 2e-5,
  /**
   * Packed scores: q is rounded to multiples of 2^-15 of its largest element before it meets the codes.
   */
  packedLse: 5e-4,
  /**
   * Probe scores are exp(s - lse): the absolute error of s, ~1e-5 at |s| ~ 30, becomes relative.
   */
  probeScores: 1e-4,
  /** Merging two softmax states: a dozen f32 operations. */
  merge: 2e-6,
  /**
   * x^ = c (code scale + zero): three f32 roundings, of terms as large as the row's largest value.
   */
  dequantize: 5e-7,
  /** A dot product of up to 4096 f32 products, accumulated in f32 over a few partial sums. */
  f32Linear: 1e-5,
  /** The same with a weight of i8: of 256 elements of x each is within 2^-16 of the largest. */
  i8Linear: 1e-4,
  /** A value of f32 accuracy stored as f16: u, and the f32 error before it. */
  f16Output: 6e-4,
  /** A value of f32 accuracy stored as bf16: u, and the f32 error before it. */
  bf16Output: 4.5e-3,
  /** silu of a sum of up to 8 f32 products, which may cancel. */
  causalConv: 1e-6,
  /** Sums over up to 256 channels of keys, row after row of a state that keeps what was rounded. */
  gatedDelta: 3e-6,
  /** A sum over up to 256 channels of such a state, B and C not divided by their lengths: it may cancel. */
  selectiveScan: 1e-5,
  /** A handful of f32 operations an element, rsqrt or a sum over the width among them. */
  f32Norm: 3e-6,
  /** exp, division and product in f32. */
  f32Activation: 2e-6,
  /** The same where e^x is of a cubic in f32: at |x| ~ 90 its error of 3 u becomes relative. */
  f32Gelu: 2e-5,
  /** The same where e^x is of a product rounded in f32: at |x| ~ 50 its error of u / 2 becomes relative. */
  f32ClampedSwiglu: 6e-6,
  /** Rotation of a pair by stored f32 cosines: two products, one sum. */
  f32Rope: 5e-7,
  /**
   * Cosine of position * invFreq, the angle reduced in more than f32: the result's rounding alone.
   */
  ropeTable: 5e-7,
  /** log softmax over a vocabulary in f32; compared with floor 1. */
  logprob: 2e-5,
  /** A dozen steps of y = factor y + summand, |factor| < 1: a rounding or two each. */
  multiplyAdd: 2e-6,
  /** Two ways to compute the same in double precision, large sums included. */
  double: 1e-12,
} as const

/** What attention may differ by, per dtype of q, k, v and out. */
export const attentionTolerance = {
  f32: tolerance.f32Attention,
  f16: tolerance.f16Attention,
  bf16: tolerance.bf16Attention,
} as const
