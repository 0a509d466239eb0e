#include "csrc/cuda/kernels/mixed_attention.h"

#include "csrc/cuda/aligned.h"
#include "csrc/cuda/device/segment.h"
#include "csrc/cuda/launchers.h"

// Attention straight over the packed cache, decoding's kernel. With K channelwise and V
// channel-separable tokenwise no element is ever dequantized; scales move to where there are fewer
// numbers (log2 domain, lambda = scale log2 e):
//   s_j = sum_c (lambda q_c a_c) code_jc + lambda sum_c q_c b_c       (a, b: K's channel scale and zero)
//   o_c = g_c (sum_j (p_j sigma_j) code_jc + sum_j p_j mu_j)          (sigma, mu: V's token scale and zero; g: channel)
// Nor are codes turned into numbers: a code of b bits that stands at bit b i of a half IS the
// float16 code 2^(b i - 24), a subnormal that tensor cores multiply exactly. One LOP3 and every
// second time one shift make an operand; the powers of two are folded into q, p and the output.
//
// mma has 8 columns, and 4 query heads share a KV head in most models. So each of q and p is two
// float16, the second what rounding left of the first, in neighbouring columns, which one lane
// holds in its accumulators: products of float32's accuracy for one addition.
namespace zc::cuda {

namespace {

constexpr int kWarps = 6;
constexpr int kThreads = 32 * kWarps;
constexpr int kColumns = 4;  // rows of q (query, head of the group) that one block attends with
constexpr int kTiles = 4;    // pages of a unit, at most
constexpr int kMaxGroup = 64;

// A sequence's cache is cut by its own length alone, so that no neighbour in the batch changes a
// sum: into splits of about so many tokens each, and at most this many.
constexpr int kMaxSplits = 8;
constexpr int kSplitTokens = 1024;

// Shared memory of one stage of a warp's ring: four pages of 2 bits, two of 4, one of 8, or the K
// or V part of one of 16.
template <int kDim>
constexpr int kSlotBytes = 34 * kDim;

template <Format F>
constexpr bool kIsCode = static_cast<int>(F) <= 8;

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

ZC_DEVICE float exp2i(int e) { return bits_to_float(static_cast<uint32_t>(e + 127) << 23); }

struct Params {
  const uint16_t* q;  // (total_q, n_heads, head_dim) f16|bf16
  uint16_t* out;      // the same
  float* lse;         // (total_q, n_heads)
  uint8_t* pool;
  int64_t pool_bytes;
  const int32_t* tables;
  int64_t tables_words;
  const int32_t* starts;
  const int32_t* cu_seqlens;
  float* partials;    // (total_q, n_heads, kMaxSplits, head_dim + 2): unnormalised O, max, sum
  int32_t* arrivals;  // (total_q, n_heads): how many splits of a block of columns are done
  bool whole;         // one block attends to all splits, one after the other: no partials
  int32_t n_seqs;
  int32_t total_q;
  int32_t n_heads;
  int32_t layer;
  float scale;
  bool bf16;  // q and out are bf16, else f16
  bool tail;
  bool causal;
  FaultSink faults;
};

// The lower half of a word as an element of q.
ZC_DEVICE float q_value(const Params& p, uint32_t bits) {
  const uint16_t half = static_cast<uint16_t>(bits);
  return p.bf16 ? to_float(zc::bf16{half}) : to_float(f16{half});
}
ZC_DEVICE float half_at(uint32_t word, int upper) {
  return to_float(f16{static_cast<uint16_t>(upper ? word >> 16 : word)});
}
ZC_DEVICE void store_out(const Params& p, int64_t index, float x) {
  p.out[index] = p.bf16 ? to_bf16(x).bits : from_float<f16>(x).bits;
}

// By the tokens that this op attends to, whatever the batch and however many rows.
ZC_DEVICE int splits_of(const Params& p, const int32_t* table) {
  const int64_t n_tokens = int64_t{table[kTableTailStart]} + (p.tail ? table[kTableTailLength] : 0);
  const int64_t n = (n_tokens + kSplitTokens / 2) / kSplitTokens;
  return static_cast<int>(n < 1 ? 1 : (n > kMaxSplits ? kMaxSplits : n));
}

// What the blocks of columns of one sequence are.
struct SequenceWork {
  SequenceTable table;
  int n_kv_heads;
  int group;
  int q_begin;
  int q_len;
  int n_column_blocks;
  int n_splits;
  int n_items;  // (kv head, split, block of columns), the last fastest; a masked sequence has one
};

ZC_DEVICE SequenceWork sequence_work(const Params& p, int seq) {
  SequenceWork w{};
  w.q_begin = p.cu_seqlens[seq];
  w.q_len = p.cu_seqlens[seq + 1] - w.q_begin;
  if (w.q_len <= 0) return w;
  w.n_items = 1;
  const int64_t start = p.starts[seq];
  if (start == -1) return w;
  if (!check_data(p.faults, start >= 0 && start + kTableHeader <= p.tables_words,
                  FaultReason::kTableStart, seq, start, p.tables_words))
    return w;
  const int n_kv_heads = p.tables[start + kTableKvHeads];
  const bool divides = n_kv_heads >= 1 && p.n_heads % n_kv_heads == 0;
  if (!check_data(p.faults, divides, FaultReason::kKvHeads, n_kv_heads, p.n_heads)) return w;
  const int group = p.n_heads / n_kv_heads;
  if (!check_data(p.faults, group <= kMaxGroup, FaultReason::kGroup, group, kMaxGroup)) return w;
  w.table = sequence_table(p.faults, p.tables, p.tables_words, p.starts, seq, p.layer, n_kv_heads);
  if (!w.table.words) return w;
  w.n_kv_heads = n_kv_heads;
  w.group = group;
  w.n_column_blocks = static_cast<int>((int64_t{w.q_len} * group + kColumns - 1) / kColumns);
  w.n_splits = splits_of(p, w.table.words);
  w.n_items = n_kv_heads * (p.whole ? 1 : w.n_splits) * w.n_column_blocks;
  return w;
}

// ---- the units of a warp ----

// The sizes of a segment's pages, in one word: how K and V are stored, the pages of a unit, bytes.
struct Layout {
  uint32_t word;

  ZC_DEVICE Format k_format() const { return static_cast<Format>(word & 0xff); }
  ZC_DEVICE Format v_format() const { return static_cast<Format>(word >> 8 & 0xff); }
  ZC_DEVICE int pages() const { return static_cast<int>(word >> 16 & 0x7); }
  ZC_DEVICE int page_bytes() const { return static_cast<int>(word >> 20) * kPageUnitBytes; }
  // Floats other than f16 become that on their way into a stage.
  ZC_DEVICE bool converts() const { return (word & 0x80000) != 0; }
};

template <int kDim>
ZC_DEVICE Layout layout_of(Format k, Format v) {
  const int bytes = static_cast<int>(page_bytes(k, v, kDim));
  const int pages = bytes * 4 <= kSlotBytes<kDim> ? 4 : (bytes * 2 <= kSlotBytes<kDim> ? 2 : 1);
  const auto foreign = [](Format f) { return f == Format::kF32 || f == Format::kBF16; };
  return {static_cast<uint32_t>(k) | static_cast<uint32_t>(v) << 8 |
          static_cast<uint32_t>(pages) << 16 | (foreign(k) || foreign(v) ? 0x80000u : 0u) |
          static_cast<uint32_t>(bytes / kPageUnitBytes) << 20};
}

// A segment's part in one item, as one lane of each warp keeps it.
struct LaneSegment {
  Layout layout;
  int32_t first_unit;  // of this warp; the others follow kWarps apart, up to end_unit
  int32_t end_unit;
};

// What a unit's arithmetic needs of it, at run time and, for the formats that policies use
// together, at compile time.
template <int kDim>
struct AnyShape {
  Layout layout;

  ZC_DEVICE int k_bytes() const { return format_bits(layout.k_format()) * 2 * kDim; }
  ZC_DEVICE int params_offset() const {  // from V's part on
    return format_bits(layout.v_format()) * 2 * kDim;
  }
  ZC_DEVICE int bytes() const { return layout.page_bytes(); }
  ZC_DEVICE int pages() const { return layout.pages(); }
  ZC_DEVICE bool is_split() const { return bytes() > kSlotBytes<kDim>; }
};

template <Format K, Format V, int kDim>
struct StaticShape {
  ZC_DEVICE static constexpr int k_bytes() { return static_cast<int>(K) * 2 * kDim; }
  ZC_DEVICE static constexpr int params_offset() { return static_cast<int>(V) * 2 * kDim; }
  ZC_DEVICE static constexpr int bytes() {
    return (k_bytes() + params_offset() + (kIsCode<V> ? 64 : 0) + 63) / 64 * 64;
  }
  ZC_DEVICE static constexpr int pages() {
    return bytes() * 4 <= kSlotBytes<kDim> ? 4 : (bytes() * 2 <= kSlotBytes<kDim> ? 2 : 1);
  }
  ZC_DEVICE static constexpr bool is_split() { return bytes() > kSlotBytes<kDim>; }
};

// What a stage of a warp's ring holds: where the cursor stood that filled it.
struct Stage {
  int segment;  // 32: nothing, the units are at their end
  int unit;
};

// A warp's own shared memory. One address leads to all of it: there are no registers to spare.
template <int kDim, int kStages>
struct WarpMemory {
  uint8_t ring[kStages][kSlotBytes<kDim>];
  uint64_t barriers[kStages];  // a stage has arrived
  Stage stages[kStages];
};

// Where a warp is in filling its stages.
struct Cursor {
  int segment;  // lane that holds it; 32: at the end
  int unit;
  int end;  // end_unit of the segment
  int n_pages;
  Layout layout;
  int32_t pages_begin;  // word of the table with the segment's first page
  int32_t address;      // what the table has for this lane's page of the unit, not yet looked at
  bool at_values;       // of a split unit: K is done
};

// ---- operands ----

// Words of one tile's part as they lie in a stage (or in the pool): vectors of up to 16 bytes.
template <int kWords>
ZC_DEVICE void load_words(const uint8_t* part, int lane, uint32_t (&words)[kWords]) {
  if constexpr (kWords % 4 == 0) {
    const uint4* from = reinterpret_cast<const uint4*>(part) + lane;
    ZC_UNROLL for (int i = 0; i < kWords / 4; ++i) {
      const uint4 x = from[32 * i];
      words[4 * i] = x.x;
      words[4 * i + 1] = x.y;
      words[4 * i + 2] = x.z;
      words[4 * i + 3] = x.w;
    }
  } else if constexpr (kWords % 2 == 0) {
    const uint2* from = reinterpret_cast<const uint2*>(part) + lane;
    ZC_UNROLL for (int i = 0; i < kWords / 2; ++i) {
      const uint2 x = from[32 * i];
      words[2 * i] = x.x;
      words[2 * i + 1] = x.y;
    }
  } else {
    const uint32_t* from = reinterpret_cast<const uint32_t*>(part) + lane;
    ZC_UNROLL for (int i = 0; i < kWords; ++i) words[i] = from[32 * i];
  }
}

ZC_DEVICE uint32_t rotate_right(uint32_t x, int n) { return n == 0 ? x : (x >> n | x << (32 - n)); }

// Calls f(square, a) with the A operand of every square of a tile's part.
template <Format F, int kDim, typename Body>
ZC_DEVICE void each_operand(const uint8_t* part, int lane, const Body& f) {
  constexpr int kSquares = kDim / 16;
  if constexpr (F == Format::kU2 || F == Format::kU3) {
    uint32_t low[kDim / 32];
    load_words(part, lane, low);
    uint32_t tops[F == Format::kU3 ? kDim / 64 : 1];
    if constexpr (F == Format::kU3) load_words(part + 4 * kDim, lane, tops);
    ZC_UNROLL for (int w = 0; w < kDim / 32; ++w) {
      const uint32_t x = low[w];
      const uint32_t y = x >> 8;
      uint32_t top_x = 0;
      uint32_t top_y = 0;
      if constexpr (F == Format::kU3) {
        top_x = rotate_right(tops[w / 2], top_rotation(w % 2, 0));
        top_y = rotate_right(tops[w / 2], top_rotation(w % 2, 1));
      }
      ZC_UNROLL for (int i = 0; i < 2; ++i) {  // squares 2 w and 2 w + 1
        const uint32_t m0 = 0x00030003u << (4 * i);
        const uint32_t m1 = 0x00030003u << (4 * i + 2);
        uint32_t a[4] = {x & m0, y & m0, x & m1, y & m1};
        if constexpr (F == Format::kU3) {
          const uint32_t t0 = 0x00040004u << (4 * i);
          const uint32_t t1 = 0x00040004u << (4 * i + 2);
          a[0] |= top_x & t0;
          a[1] |= top_y & t0;
          a[2] |= top_x & t1;
          a[3] |= top_y & t1;
        }
        f(2 * w + i, a);
      }
    }
  } else if constexpr (F == Format::kU4) {
    uint32_t words[kSquares];
    load_words(part, lane, words);
    ZC_UNROLL for (int s = 0; s < kSquares; ++s) {
      const uint32_t x = words[s];
      const uint32_t y = x >> 8;
      const uint32_t a[4] = {x & 0x000f000fu, y & 0x000f000fu, x & 0x00f000f0u, y & 0x00f000f0u};
      f(s, a);
    }
  } else if constexpr (F == Format::kU8) {
    ZC_UNROLL for (int s0 = 0; s0 < kSquares; s0 += 2) {  // four words: one load
      uint32_t words[4];
      load_words(part + s0 / 2 * 512, lane, words);
      ZC_UNROLL for (int i = 0; i < 2; ++i) {
        const uint32_t x = words[2 * i];
        const uint32_t y = words[2 * i + 1];
        const uint32_t a[4] = {x & 0x00ff00ffu, (x >> 8) & 0x00ff00ffu, y & 0x00ff00ffu,
                               (y >> 8) & 0x00ff00ffu};
        f(s0 + i, a);
      }
    }
  } else {
    ZC_UNROLL for (int s = 0; s < kSquares; ++s) {
      uint32_t a[4];
      load_words(part + s * 512, lane, a);
      f(s, a);
    }
  }
}

template <Format F>
constexpr std::integral_constant<Format, F> kTag{};

// Calls f with the format that a stage holds as a type: floats of every kind arrive as f16.
template <typename F>
ZC_DEVICE void with_format(Format format, const F& f) {
  switch (format) {
    case Format::kU2:
      return f(std::integral_constant<Format, Format::kU2>{});
    case Format::kU3:
      return f(std::integral_constant<Format, Format::kU3>{});
    case Format::kU4:
      return f(std::integral_constant<Format, Format::kU4>{});
    case Format::kU8:
      return f(std::integral_constant<Format, Format::kU8>{});
    default:
      return f(std::integral_constant<Format, Format::kF16>{});
  }
}

// Pages of a unit that may hold K or V of this format.
template <Format F>
constexpr int kTilesOf = F == Format::kU2 ? 4 : (F == Format::kU8 || F == Format::kF16 ? 1 : 2);

// log2 of the factor by which codes of square s, columns 8 p to 8 p + 7, stand too high in their
// halves.
ZC_DEVICE int shift_of(Format f, int s, int p) {
  return f == Format::kU2 || f == Format::kU3 ? 2 * (2 * (s & 1) + p)
                                              : (f == Format::kU4 ? 4 * p : 0);
}

// ---- one warp's attention over its units ----

// Lane 4 g + t: column t of the softmax state, channels 16 s + g and 16 s + g + 8 of its O.
template <int kDim>
struct WarpState {
  static constexpr int kSquares = kDim / 16;
  float o[kSquares][4];  // of channel g in [0], of g + 8 in [2]; [1] and [3] are the odd columns'
  float max;             // log2 domain, the same in all lanes of a column
  float sum;             // of this lane's tokens
  float rest;            // sum_j p_j mu_j of this lane's tokens
  uint32_t q[2 * kSquares];  // B operand of the running segment
  float step;                // score = sum of accumulators * step + beta
  float beta;
  float raw_max;         // `max` in units of that sum
  int shift;             // V's codes are weighed by p sigma 2^shift
  uint32_t scale_limit;  // bits of the largest sigma, a float16, that this shift allows

  ZC_DEVICE void clear() {
    ZC_UNROLL for (int s = 0; s < kSquares; ++s) o[s][0] = o[s][1] = o[s][2] = o[s][3] = 0.0f;
    max = -INFINITY;
    sum = 0.0f;
    rest = 0.0f;
  }

  // What a segment makes of q: q_c a_c as two float16, scaled so that the largest of a column lies
  // just below 2^15, and what no code takes part in. row: where column g / 2 begins in q; -1: no
  // such column. Even g take the first of the two, odd g the second.
  ZC_DEVICE void fold_keys(const Params& p, const SegmentView& view, int64_t row, int lane) {
    const int t = lane & 3;
    const bool quantized = view.k_quantized();
    const float lambda = p.scale * kLog2E;
    const f16* scales = quantized ? view.channel_params(0) : nullptr;
    const f16* zeros = quantized ? view.channel_params(1) : nullptr;
    float folded[4 * kSquares];  // q_c a_c of channels 8 i + 2t and the next
    float largest = 0.0f;
    float constant = 0.0f;
    ZC_UNROLL for (int i = 0; i < 2 * kSquares; ++i) {
      const int channel = 8 * i + 2 * t;
      const uint32_t pair = row < 0 ? 0u : *reinterpret_cast<const uint32_t*>(p.q + row + channel);
      float x = q_value(p, pair);
      float y = q_value(p, pair >> 16);
      if (quantized) {
        const uint32_t a = *reinterpret_cast<const uint32_t*>(scales + channel);
        const uint32_t b = *reinterpret_cast<const uint32_t*>(zeros + channel);
        constant = fmaf(x, half_at(b, 0), fmaf(y, half_at(b, 1), constant));
        x *= half_at(a, 0);
        y *= half_at(a, 1);
      }
      folded[2 * i] = x;
      folded[2 * i + 1] = y;
      largest = fmaxf(largest, fmaxf(fabsf(x), fabsf(y)));
      if (i % 4 == 3) __syncwarp();  // keeps the compiler from loading everything at once
    }
    ZC_UNROLL for (int m = 1; m < 4; m *= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, m));
      constant += __shfl_xor_sync(~0u, constant, m);
    }
    // largest in [2^e, 2^(e + 1)) becomes [2^14, 2^15); nothing to scale when it is (nearly) zero
    // or not finite.
    int e = static_cast<int>(float_to_bits(largest) >> 23) - 127;
    e = e < -100 ? -100 : (e > 100 ? 100 : e);
    const int up = 14 - e;
    ZC_UNROLL for (int i = 0; i < 2 * kSquares; ++i) {
      const float factor = exp2i(up - shift_of(view.segment.k_format, i >> 1, i & 1));
      const float x = folded[2 * i] * factor;
      const float y = folded[2 * i + 1] * factor;
      q[i] = simt::pack2(x, y, f16{});
      if (lane & 4) q[i] = simt::pack2(x - half_at(q[i], 0), y - half_at(q[i], 1), f16{});
    }
    const float own_step = lambda * exp2i(quantized ? 24 - up : -up);
    step = __shfl_sync(~0u, own_step, 8 * t);  // a lane whose g is column t's
    beta = lambda * __shfl_sync(~0u, constant, 8 * t);
    raw_max = (max - beta) / step;
  }

  // O of the running segment counts in units of its own (V's channel scale, the powers of two of
  // its codes). Here it leaves them.
  ZC_DEVICE void leave_units(const SegmentView& view, int lane) {
    const Format v = view.segment.v_format;
    const f16* channel = view.v_quantized() ? view.channel_params(2) + (lane >> 2) : nullptr;
    ZC_UNROLL for (int m = 4; m < 32; m *= 2) rest += __shfl_xor_sync(~0u, rest, m);
    ZC_UNROLL for (int s = 0; s < kSquares; ++s) {
      const float factor = exp2i((channel ? 24 : 0) - shift - shift_of(v, s, 0));
      const float c0 = channel ? to_float(channel[16 * s]) : 1.0f;
      const float c1 = channel ? to_float(channel[16 * s + 8]) : 1.0f;
      o[s][0] = c0 * fmaf(o[s][0], factor, rest);
      o[s][2] = c1 * fmaf(o[s][2], factor, rest);
      if (s % 2 == 1) __syncwarp();
    }
    rest = 0.0f;
  }

  // And here it enters those of the next one.
  ZC_DEVICE void enter_units(const SegmentView& view, int lane) {
    const Format v = view.segment.v_format;
    const f16* channel = view.v_quantized() ? view.channel_params(2) + (lane >> 2) : nullptr;
    // Float values: weights down to 2^-24 stay normal numbers. Codes: the first unit sets both.
    shift = channel ? 0 : 10;
    scale_limit = channel ? 0u : 0xffffu;
    ZC_UNROLL for (int s = 0; s < kSquares; ++s) {
      const float factor = exp2i((channel ? -24 : 0) + shift + shift_of(v, s, 0));
      o[s][0] *= channel ? factor / to_float(channel[16 * s]) : factor;
      o[s][2] *= channel ? factor / to_float(channel[16 * s + 8]) : factor;
      if (s % 2 == 1) __syncwarp();
    }
  }

  // Takes the larger maximum of a unit, `raw` in units of the accumulators, and, where V's token
  // scales have outgrown it, another shift.
  ZC_DEVICE void rescale(float raw, uint32_t scale) {
    ZC_UNROLL for (int m = 4; m < 32; m *= 2) {
      raw = fmaxf(raw, __shfl_xor_sync(~0u, raw, m));
      const uint32_t other = __shfl_xor_sync(~0u, scale, m);
      scale = scale > other ? scale : other;
    }
    float factor = 1.0f;
    if (scale > scale_limit) {
      const float sigma = to_float(f16{static_cast<uint16_t>(scale)});  // at least 2^-24
      const int next = 12 - (static_cast<int>(float_to_bits(sigma) >> 23) - 127);
      factor = exp2i(next - shift);
      shift = next;  // weights of this unit lie below 2^13, and may grow to 2^15
      scale_limit = to_f16(exp2i(15 - next)).bits;
    }
    const float larger = fmaxf(max, fmaf(raw, step, beta));
    const float alpha = larger == -INFINITY ? 1.0f : simt::ex2(max - larger);
    max = larger;
    raw_max = fmaxf(raw_max, raw);
    sum *= alpha;
    rest *= alpha;
    factor *= alpha;
    ZC_UNROLL for (int s = 0; s < kSquares; ++s) {
      o[s][0] *= factor;
      o[s][2] *= factor;
    }
  }
};

// ---- one warp's share of one item ----

// What the threads of a block work on, in shared memory. column = query * group + head of the
// group.
struct Item {
  SequenceTable table;
  int q_begin;  // of the sequence
  int q_len;
  int group;
  int first_column;
  int n_columns;  // of this block, up to kColumns
  int kv_head;
  int n_splits;
  int split;  // to begin with

  ZC_DEVICE int query(int column) const { return (first_column + column) / group; }
  // Index of a column in (total_q, n_heads).
  ZC_DEVICE int64_t row(const Params& p, int column) const {
    const int c = first_column + column;
    return (int64_t{q_begin} + c / group) * p.n_heads + kv_head * group + c % group;
  }
};

template <int kDim, bool kBulk, int kStages>
class WarpAttention {
 public:
  using Memory = WarpMemory<kDim, kStages>;

  ZC_DEVICE WarpAttention(const Params& p, const Item& item, Memory* memory, uint32_t& phases)
      : p_(p),
        item_(item),
        lane_(static_cast<int>(threadIdx.x) & 31),
        memory_(memory[threadIdx.x >> 5]),
        phases_(phases) {}

  // Attends to this warp's units of one split.
  ZC_DEVICE void attend(int split, WarpState<kDim>& state) {
    const int first = p_.tail ? 0 : 1;
    const int n_segments =
        checked_segment_count(p_.faults, item_.table.words, p_.layer, item_.kv_head);
    int total = 0;
    for (int base = first; base < n_segments; base += 32) {
      int weight;
      lane_segment(base, n_segments, weight);
      total += __shfl_sync(~0u, inclusive_sum(weight), 31);
    }
    const int begin = static_cast<int>(int64_t{total} * split / item_.n_splits);
    const int end = static_cast<int>(int64_t{total} * (split + 1) / item_.n_splits);
    int weight_before = 0;
    int units_before = 0;
    for (int base = first; base < n_segments; base += 32) {
      int weight;
      LaneSegment own = lane_segment(base, n_segments, weight);
      const int through = inclusive_sum(weight);
      const int before = weight_before + through - weight;
      const int n_units = own.end_unit;
      if (n_units > 0) {
        const int unit_weight = weight / n_units;
        own.first_unit = units_below(begin - before, unit_weight, n_units);
        own.end_unit = units_below(end - before, unit_weight, n_units);
      }
      const int own_units = own.end_unit - own.first_unit;
      if (own_units > 0) prefetch_params(base + lane_, own.layout);
      const int units_through = inclusive_sum(own_units);
      const int index = units_before + units_through - own_units;  // of its first unit in the split
      own.first_unit += (static_cast<int>(threadIdx.x >> 5) + kWarps - index % kWarps) % kWarps;
      units_before += __shfl_sync(~0u, units_through, 31);
      weight_before += __shfl_sync(~0u, through, 31);
      attend_units(base, own, state);
    }
  }

 private:
  // The segment that this lane holds; end_unit is its number of units, weight their bytes in units
  // of a page address (2^31 of which are more than a pool has).
  ZC_DEVICE LaneSegment lane_segment(int base, int n_segments, int& weight) const {
    LaneSegment own{};
    weight = 0;
    if (base + lane_ >= n_segments) return own;
    const SegmentView view = view_segment(p_.faults, item_.table, p_.pool, p_.pool_bytes, p_.layer,
                                          item_.kv_head, base + lane_, kDim);
    const Segment& s = view.segment;
    if (s.n_tokens == 0) return own;
    own.layout = layout_of<kDim>(s.k_format, s.v_format);
    const int pages = own.layout.pages();
    own.end_unit = (view.n_pages() + pages - 1) / pages;
    weight = own.end_unit * pages * (own.layout.page_bytes() / kPageUnitBytes);
    return own;
  }

  // Asks for a segment's channel parameters, which its first unit waits for: 6 head_dim bytes that
  // nobody has read yet, in steps of registers that would each wait for memory.
  ZC_DEVICE void prefetch_params(int segment, Layout layout) const {
    if (!format_quantized(layout.k_format()) && !format_quantized(layout.v_format())) return;
    const Segment s = read_segment(item_.table.words, p_.layer, item_.kv_head, segment);
    const uint8_t* params = p_.pool + int64_t{s.params_unit} * kPageUnitBytes;
    ZC_UNROLL for (int at = 0; at < 6 * kDim; at += 128) simt::prefetch_l2(params + at);
  }

  // How many of n_units units of so much weight begin below `weight`.
  ZC_DEVICE static int units_below(int weight, int unit_weight, int n_units) {
    if (weight <= 0) return 0;
    const int n = (weight - 1) / unit_weight + 1;
    return n < n_units ? n : n_units;
  }

  ZC_DEVICE int inclusive_sum(int x) const {
    ZC_UNROLL for (int d = 1; d < 32; d *= 2) {
      const int y = __shfl_up_sync(~0u, x, d);
      if (lane_ >= d) x += y;
    }
    return x;
  }

  ZC_DEVICE bool has_page(const Cursor& at) const {
    return lane_ < at.layout.pages() && at.unit * at.layout.pages() + lane_ < at.n_pages;
  }

  // Asks the table for this lane's page of the unit where the cursor stands. What it has is looked
  // at when the page is copied, a unit later, so that nothing waits for it here.
  ZC_DEVICE void ask_page(Cursor& at) const {
    const int page = at.unit * at.layout.pages() + lane_;
    if (has_page(at)) at.address = item_.table.words[at.pages_begin + page];
  }

  // The page that was asked for; -1 for none, and for one outside the pool.
  ZC_DEVICE int32_t found_page(int base, const Cursor& at) const {
    if (!has_page(at)) return -1;
    const int64_t address = at.address;
    const bool inside =
        address >= 0 && address * kPageUnitBytes + at.layout.page_bytes() <= p_.pool_bytes;
    return check_data(p_.faults, inside, FaultReason::kTableOutside, p_.layer, item_.kv_head,
                      base + at.segment)
               ? at.address
               : -1;
  }

  // On to the first unit of the next segment that has any.
  ZC_DEVICE void next_segment(int base, Cursor& at, const LaneSegment& own) const {
    const uint32_t with_units = __ballot_sync(~0u, own.first_unit < own.end_unit);
    const uint32_t rest = at.segment >= 31 ? 0u : with_units & (~0u << (at.segment + 1));
    at.segment = rest == 0u ? 32 : __ffs(static_cast<int>(rest)) - 1;
    if (at.segment == 32) return;
    at.unit = __shfl_sync(~0u, own.first_unit, at.segment);
    at.end = __shfl_sync(~0u, own.end_unit, at.segment);
    at.layout.word = __shfl_sync(~0u, own.layout.word, at.segment);
    const Segment s = read_segment(item_.table.words, p_.layer, item_.kv_head, base + at.segment);
    at.pages_begin = s.pages_begin;
    at.n_pages = (s.n_tokens + kPageTokens - 1) / kPageTokens;
  }

  // A float part of one page as f16, in fragment order, by ordinary loads and stores.
  template <bool kKey>
  ZC_DEVICE void convert_part(const uint8_t* part, Format format, uint8_t* to) const {
    uint32_t* words = reinterpret_cast<uint32_t*>(to);
    ZC_NO_UNROLL for (int i = 0; i < kDim / 4; ++i) {
      const int row = (lane_ >> 2) + 8 * (i & 1);
      const int column = 2 * (lane_ & 3) + 8 * ((i >> 1) & 1);
      const int square = i >> 2;
      const auto element = [&](int odd) {
        const int token = kKey ? row : column + odd;
        const int channel = 16 * square + (kKey ? column + odd : row);
        return read_float<kKey>(part, format, kDim, token, channel);
      };
      words[word_index(kDim / 4, lane_, i)] =
          from_float<f16>(element(0)).bits | static_cast<uint32_t>(from_float<f16>(element(1)).bits)
                                                 << 16;
    }
  }

  // Begins to copy what the cursor stands at into a stage, and moves it on.
  ZC_DEVICE void fill(int base, int stage, Cursor& at, const LaneSegment& own) const {
    if (lane_ == 0) memory_.stages[stage] = {at.segment, at.unit};
    if (at.segment < 32) {
      const int page_bytes = at.layout.page_bytes();
      const int k_bytes = format_bits(at.layout.k_format()) * 2 * kDim;
      const bool is_split = page_bytes > kSlotBytes<kDim>;
      const int from_byte = at.at_values ? k_bytes : 0;
      const int n_bytes = is_split && !at.at_values ? k_bytes : page_bytes - from_byte;
      uint8_t* slot = memory_.ring[stage];
      const int32_t page = found_page(base, at);
      if (at.layout.converts() && convert(at, page, slot)) {
        if constexpr (kBulk) {
          simt::fence_async();  // the stage's next copy comes by another road
          if (lane_ == 0) simt::mbarrier_arrive(barrier(stage));
        }
      } else if constexpr (kBulk) {
        const uint32_t copies = __ballot_sync(~0u, page >= 0);
        if (lane_ == 0)
          simt::mbarrier_arrive_expect_tx(barrier(stage),
                                          static_cast<uint32_t>(__popc(copies) * n_bytes));
        if (page >= 0)
          simt::bulk_copy(simt::smem_u32(slot) + lane_ * page_bytes,
                          p_.pool + int64_t{page} * kPageUnitBytes + from_byte,
                          static_cast<uint32_t>(n_bytes), barrier(stage));
      } else {
        const uint32_t to = simt::smem_u32(slot) + 16 * lane_;
        for (int i = 0; i < at.layout.pages(); ++i) {
          const int32_t own = __shfl_sync(~0u, page, i);
          if (own < 0) continue;
          const uint8_t* from = p_.pool + int64_t{own} * kPageUnitBytes + from_byte;
          for (int b = 16 * lane_; b < n_bytes; b += 512)
            simt::cp_async_16(to + i * page_bytes + b - 16 * lane_, from + b);
        }
      }
      at.at_values = is_split && !at.at_values;
      if (!at.at_values) {
        at.unit += kWarps;
        if (at.unit >= at.end) next_segment(base, at, own);
        if (at.segment < 32) ask_page(at);
      }
    }
    if constexpr (!kBulk) simt::cp_async_commit();
  }

  // Stores the part where the cursor stands as f16, when it is of another float type.
  ZC_DEVICE bool convert(const Cursor& at, int32_t own_page, uint8_t* slot) const {
    const Format format = at.at_values ? at.layout.v_format() : at.layout.k_format();
    if (format != Format::kF32 && format != Format::kBF16) return false;
    const int32_t page = __shfl_sync(~0u, own_page, 0);
    if (page < 0) return true;
    const uint8_t* from = p_.pool + int64_t{page} * kPageUnitBytes;
    if (at.at_values)
      convert_part<false>(from + format_bits(at.layout.k_format()) * 2 * kDim, format, slot);
    else
      convert_part<true>(from, format, slot);
    return true;
  }

  ZC_DEVICE uint32_t barrier(int stage) const { return simt::smem_u32(memory_.barriers + stage); }

  // The stage has arrived: waited for by all lanes.
  ZC_DEVICE void wait(int stage) const {
    if constexpr (kBulk) {
      simt::mbarrier_wait(barrier(stage), phases_ >> stage & 1u);
      phases_ ^= 1u << stage;
    }
  }

  // All units of the segments that the lanes hold, segment `base` being lane 0's.
  ZC_DEVICE void attend_units(int base, const LaneSegment& own, WarpState<kDim>& state) const {
    Cursor next{};
    next.segment = -1;
    next_segment(base, next, own);
    if (next.segment == 32) return;
    ask_page(next);
    __syncwarp();  // the stages were read to the end
    ZC_UNROLL for (int i = 0; i < kStages - 1; ++i) fill(base, i, next, own);

    SegmentView view{};
    view.pool = p_.pool;
    view.head_dim = kDim;
    Layout layout{};
    int current = -1;
    int stage = 0;
    const auto turn = [&] {  // to the stage to use; the one used before is refilled
      if constexpr (!kBulk) simt::cp_async_wait<kStages - 2>();
      __syncwarp();
      fill(base, stage == 0 ? kStages - 1 : stage - 1, next, own);
    };
    ZC_NO_UNROLL for (;;) {
      turn();
      const Stage at = memory_.stages[stage];
      if (at.segment != current) {
        if (current >= 0) state.leave_units(view, lane_);
        if (at.segment == 32) break;
        current = at.segment;
        view.segment = read_segment(item_.table.words, p_.layer, item_.kv_head, base + current);
        layout.word = __shfl_sync(~0u, own.layout.word, current);
        const int column = lane_ >> 3;
        const int64_t row = column < item_.n_columns ? item_.row(p_, column) * kDim : -1;
        state.fold_keys(p_, view, row, lane_);
        state.enter_units(view, lane_);
      }
      wait(stage);
      const bool is_causal = p_.causal && base + current == 0;
      // on_key and on_value call what they are given with the format of K and of V as a type.
      const auto attend_unit = [&](const auto& shape, const auto& on_key, const auto& on_value) {
        float raw[kTiles][2];
        on_key([&](auto k) { score<decltype(k)::value>(shape, memory_.ring[stage], state, raw); });
        if (shape.is_split()) {
          stage = stage == kStages - 1 ? 0 : stage + 1;
          turn();
          wait(stage);
        }
        const uint8_t* values = memory_.ring[stage] + (shape.is_split() ? 0 : shape.k_bytes());
        const int first = at.unit * shape.pages() * kPageTokens;
        // Tokens that every column sees.
        const int common = view.segment.n_tokens - (is_causal ? item_.q_len - 1 : 0);
        on_value([&](auto v) {
          if (first + shape.pages() * kPageTokens <= common)
            weigh<decltype(v)::value, false>(shape, first, 0, 0, values, state, raw);
          else
            weigh<decltype(v)::value, true>(
                shape, first, view.segment.n_tokens,
                is_causal ? common + item_.query(lane_ & 3) : view.segment.n_tokens, values, state,
                raw);
        });
      };
      const auto known = [&](auto k, auto v) {
        attend_unit(
            StaticShape<decltype(k)::value, decltype(v)::value, kDim>{},
            [&](const auto& f) { f(k); }, [&](const auto& f) { f(v); });
      };
      constexpr auto pair = [](Format k, Format v) {
        return static_cast<uint32_t>(k) | static_cast<uint32_t>(v) << 8;
      };
      switch (layout.word & 0xffff) {
        case pair(Format::kU2, Format::kU2):
          known(kTag<Format::kU2>, kTag<Format::kU2>);
          break;
        case pair(Format::kU3, Format::kU2):
          known(kTag<Format::kU3>, kTag<Format::kU2>);
          break;
        case pair(Format::kU4, Format::kU4):
          known(kTag<Format::kU4>, kTag<Format::kU4>);
          break;
        case pair(Format::kF16, Format::kF16):
          known(kTag<Format::kF16>, kTag<Format::kF16>);
          break;
        default:
          attend_unit(
              AnyShape<kDim>{layout}, [&](const auto& f) { with_format(layout.k_format(), f); },
              [&](const auto& f) { with_format(layout.v_format(), f); });
      }
      stage = stage == kStages - 1 ? 0 : stage + 1;
    }
    if constexpr (!kBulk) simt::cp_async_wait<0>();
  }

  // Sums of accumulators over a unit's pages: of tokens g and g + 8 of each.
  template <Format kFormat, typename Shape>
  ZC_DEVICE void score(const Shape& shape, const uint8_t* keys, const WarpState<kDim>& state,
                       float (&raw)[kTiles][2]) const {
    ZC_UNROLL for (int tile = 0; tile < kTilesOf<kFormat>; ++tile) {
      if (tile >= shape.pages()) continue;
      float products[4] = {};
      each_operand<kFormat, kDim>(
          keys + tile * shape.bytes(), lane_, [&](int s, const uint32_t(&a)[4]) {
            simt::mma_m16n8k16(products, a, state.q[2 * s], state.q[2 * s + 1], f16{});
          });
      raw[tile][0] = products[0] + products[1];
      raw[tile][1] = products[2] + products[3];
    }
  }

  // The running softmax over a unit whose first token is `first`, and O += P V. kMasked: this
  // lane's column sees tokens before `limit`, and the segment ends at n_tokens, within the unit.
  template <Format kFormat, bool kMasked, typename Shape>
  ZC_DEVICE void weigh(const Shape& shape, int first, int n_tokens, int limit,
                       const uint8_t* values, WarpState<kDim>& state,
                       float (&raw)[kTiles][2]) const {
    const int g = lane_ >> 2;
    uint32_t params[kTiles][2];
    float largest = -INFINITY;
    uint32_t largest_scale = 0;
    ZC_UNROLL for (int tile = 0; tile < kTilesOf<kFormat>; ++tile) {
      if (tile >= shape.pages()) continue;
      const uint32_t* words =
          reinterpret_cast<const uint32_t*>(values + tile * shape.bytes() + shape.params_offset());
      ZC_UNROLL for (int hi = 0; hi < 2; ++hi) {
        const int token = first + 16 * tile + g + 8 * hi;
        if (kMasked && token >= limit) raw[tile][hi] = -INFINITY;
        largest = fmaxf(largest, raw[tile][hi]);
        if constexpr (kIsCode<kFormat>) {
          // Slots behind the last token hold anything.
          params[tile][hi] = kMasked && token >= n_tokens ? 0u : words[g + 8 * hi];
          const uint32_t scale = params[tile][hi] & 0xffff;
          largest_scale = scale > largest_scale ? scale : largest_scale;
        }
      }
    }
    const bool outgrown = largest > state.raw_max || largest_scale > state.scale_limit;
    if (__any_sync(~0u, outgrown)) state.rescale(largest, largest_scale);

    const float offset = state.beta - (state.max == -INFINITY ? 0.0f : state.max);
    const float unit_scale[2] = {exp2i(state.shift), exp2i(state.shift - shift_of(kFormat, 0, 1))};
    ZC_UNROLL for (int tile = 0; tile < kTilesOf<kFormat>; ++tile) {
      if (tile >= shape.pages()) continue;
      uint32_t weights[2];  // B operand: P^T in units of 2^-shift; the odd columns are zero
      ZC_UNROLL for (int hi = 0; hi < 2; ++hi) {
        const float p = simt::ex2(fmaf(raw[tile][hi], state.step, offset));
        state.sum += p;
        float sigma = unit_scale[hi];
        if constexpr (kIsCode<kFormat>) {
          state.rest = fmaf(p, to_float(token_zero(params[tile][hi])), state.rest);
          sigma *= to_float(token_scale(params[tile][hi]));
        }
        weights[hi] = simt::movmatrix_trans(simt::pack2(p * sigma, 0.0f, f16{}));
      }
      // Floats behind the last token may be NaN, which a weight of zero would not take away.
      uint32_t exists[2] = {~0u, ~0u};
      if constexpr (kMasked && !kIsCode<kFormat>) {
        const int n_here = n_tokens - first - 16 * tile - 2 * (lane_ & 3);
        exists[0] = (n_here > 0 ? 0xffffu : 0u) | (n_here > 1 ? 0xffff0000u : 0u);
        exists[1] = (n_here > 8 ? 0xffffu : 0u) | (n_here > 9 ? 0xffff0000u : 0u);
      }
      each_operand<kFormat, kDim>(
          values + tile * shape.bytes(), lane_, [&](int s, const uint32_t(&a)[4]) {
            const uint32_t seen[4] = {a[0] & exists[0], a[1] & exists[0], a[2] & exists[1],
                                      a[3] & exists[1]};
            simt::mma_m16n8k16(state.o[s], seen, weights[0], weights[1], f16{});
          });
    }
  }

  const Params& p_;
  const Item& item_;
  const int lane_;
  Memory& memory_;
  uint32_t& phases_;  // bit i: parity of the next wait for stage i
};

// ---- merging, always in the same order ----

// Results of one block of columns: O not divided by the sum yet. What is merged last has its maxima
// and sums in `side`, so that none is overwritten while another thread still reads it.
template <int kDim>
struct BlockState {
  float o[kColumns * kDim];
  float max[2][kColumns];
  float sum[2][kColumns];
};

// One element of O with the softmax state of its column.
struct Element {
  float o;
  float max;
  float sum;

  ZC_DEVICE void add(float other_o, float other_max, float other_sum) {
    const float larger = fmaxf(max, other_max);
    if (larger == -INFINITY) {  // nothing seen yet; a sum may be NaN all the same
      o += other_o;
      sum += other_sum;
      return;
    }
    const float own_factor = simt::ex2(max - larger);
    const float other_factor = simt::ex2(other_max - larger);
    o = o * own_factor + other_o * other_factor;
    sum = sum * own_factor + other_sum * other_factor;
    max = larger;
  }
};

// Calls f(index, column, channel) for each element that a thread owns, kThreads apart.
template <int kDim, typename Body>
ZC_DEVICE void each_element(const Body& f) {
  ZC_NO_UNROLL for (int index = static_cast<int>(threadIdx.x); index < kColumns * kDim;
                    index += kThreads) f(index, index / kDim, index % kDim);
}

// Floats between two columns of a warp's O in shared memory: lanes hit different banks.
template <int kDim>
constexpr int kColumnStride = kDim + 8;

// total += the warps' states, warp 0's first, through the shared memory of the first warp's ring.
template <int kDim, bool kBulk, int kStages>
ZC_DEVICE void merge_warps(WarpState<kDim>& state, WarpMemory<kDim, kStages>& memory,
                           BlockState<kDim>& total, int side) {
  constexpr int kStride = kColumnStride<kDim>;
  constexpr int kWarpFloats = kColumns * kStride;
  static_assert(kWarps * kWarpFloats * sizeof(float) <= sizeof(memory.ring));
  float* shared = reinterpret_cast<float*>(memory.ring);
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int g = lane >> 2;
  const int t = lane & 3;
  float* own = shared + (threadIdx.x >> 5) * kWarpFloats;
  ZC_UNROLL for (int m = 4; m < 32; m *= 2) state.sum += __shfl_xor_sync(~0u, state.sum, m);
  __syncthreads();  // the ring lies where the states go
  ZC_UNROLL for (int s = 0; s < kDim / 16; ++s) {
    own[t * kStride + 16 * s + g] = state.o[s][0];
    own[t * kStride + 16 * s + g + 8] = state.o[s][2];
  }
  if (g == 0) {
    own[t * kStride + kDim] = state.max;  // behind O there is room
    own[t * kStride + kDim + 1] = state.sum;
  }
  __syncthreads();
  each_element<kDim>([&](int index, int column, int channel) {
    Element block{0.0f, -INFINITY, 0.0f};
    ZC_UNROLL for (int w = 0; w < kWarps; ++w) {
      const float* other = shared + w * kWarpFloats + column * kStride;
      block.add(other[channel], other[kDim], other[kDim + 1]);
    }
    Element sum{total.o[index], total.max[side ^ 1][column], total.sum[side ^ 1][column]};
    sum.add(block.o, block.max, block.sum);
    total.o[index] = sum.o;
    if (channel == 0) {
      total.max[side][column] = sum.max;
      total.sum[side][column] = sum.sum;
    }
  });
  if constexpr (kBulk) simt::fence_async();
  __syncthreads();  // the states were read: what follows may write the ring
}

template <int kDim>
ZC_DEVICE void clear_block(BlockState<kDim>& block) {
  each_element<kDim>([&](int index, int column, int channel) {
    block.o[index] = 0.0f;
    if (channel == 0) {
      block.max[0][column] = -INFINITY;
      block.sum[0][column] = 0.0f;
    }
  });
}

ZC_DEVICE void store_element(const Params& p, int64_t row, int head_dim, int channel,
                             const Element& x) {
  store_out(p, row * head_dim + channel, x.sum == 0.0f ? 0.0f : x.o / x.sum);
  if (channel == 0) p.lse[row] = x.sum == 0.0f ? -INFINITY : x.max * kLn2 + logf(x.sum);
}

// Leaves a split's result for whoever comes last, which merges them all in order.
template <int kDim>
ZC_DEVICE void merge_splits(const Params& p, const Item& item, int* is_last,
                            const BlockState<kDim>& block, int side) {
  constexpr int kFloats = kDim + 2;
  each_element<kDim>([&](int index, int column, int channel) {
    if (column >= item.n_columns) return;
    float* to = p.partials + (item.row(p, column) * kMaxSplits + item.split) * kFloats;
    to[channel] = block.o[index];
    if (channel == 0) {
      to[kDim] = block.max[side][column];
      to[kDim + 1] = block.sum[side][column];
    }
  });
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    int32_t* arrivals = p.arrivals + item.row(p, 0);
    *is_last = atomicAdd(arrivals, 1) == item.n_splits - 1;
    if (*is_last) *arrivals = 0;  // for the next op
  }
  __syncthreads();
  if (*is_last == 0) return;
  __threadfence();
  each_element<kDim>([&](int, int column, int channel) {
    if (column >= item.n_columns) return;
    const int64_t row = item.row(p, column);
    const float* from = p.partials + row * kMaxSplits * kFloats;
    Element sum{0.0f, -INFINITY, 0.0f};
    constexpr int kTogether = 8;  // loads under way: each takes most of a microsecond
    for (int first = 0; first < item.n_splits; first += kTogether) {
      Element part[kTogether];
      ZC_UNROLL for (int i = 0; i < kTogether; ++i) {
        part[i] = {0.0f, -INFINITY, 0.0f};
        if (first + i >= item.n_splits) continue;
        const float* at = from + (first + i) * kFloats;
        part[i] = {__ldcg(at + channel), __ldcg(at + kDim), __ldcg(at + kDim + 1)};
      }
      ZC_UNROLL for (int i = 0; i < kTogether; ++i) if (first + i < item.n_splits)
          sum.add(part[i].o, part[i].max, part[i].sum);
    }
    store_element(p, row, kDim, channel, sum);
  });
}

// ---- the kernel ----

// first_item[i]: items of the sequences before i; 0 throughout when cu_seqlens lies.
ZC_DEVICE void count_items(const Params& p, int32_t* first_item) {
  const int thread = static_cast<int>(threadIdx.x);
  ZC_SHARED(int32_t, bad, [1]);
  if (thread == 0) bad[0] = p.cu_seqlens[0] != 0 || p.cu_seqlens[p.n_seqs] != p.total_q;
  __syncthreads();
  for (int i = thread; i < p.n_seqs; i += kThreads)
    if (p.cu_seqlens[i] > p.cu_seqlens[i + 1]) bad[0] = 1;
  __syncthreads();
  const bool good = bad[0] == 0;
  if (thread == 0) {
    check_data(p.faults, good, FaultReason::kSeqlens, p.total_q);
    first_item[0] = 0;
  }
  for (int i = thread; i < p.n_seqs; i += kThreads)
    first_item[i + 1] = good ? sequence_work(p, i).n_items : 0;
  __syncthreads();
  if (thread < 32) {
    int before = 0;
    for (int i = 0; i < p.n_seqs; i += 32) {
      const bool inside = i + thread < p.n_seqs;
      int x = inside ? first_item[i + thread + 1] : 0;
      ZC_UNROLL for (int d = 1; d < 32; d *= 2) {
        const int y = __shfl_up_sync(~0u, x, d);
        if (thread >= d) x += y;
      }
      x += before;
      if (inside) first_item[i + thread + 1] = x;
      before = __shfl_sync(~0u, x, 31);
    }
  }
  __syncthreads();
}

// All items of a block.
template <int kDim, bool kBulk, int kStages>
ZC_DEVICE void attend_items(const Params& p) {
  ZC_DYNAMIC_SHARED(shared);
  ZC_SHARED(int, is_last, [1]);
  ZC_SHARED(BlockState<kDim>, blocks, [1]);
  ZC_SHARED(Item, items, [1]);
  WarpMemory<kDim, kStages>* memory = reinterpret_cast<WarpMemory<kDim, kStages>*>(shared);
  uint32_t phases = 0;
  if constexpr (kBulk) {
    if (threadIdx.x < kWarps * kStages)
      simt::mbarrier_init(
          simt::smem_u32(memory[threadIdx.x / kStages].barriers + threadIdx.x % kStages), 1);
    simt::fence_mbarrier_init();
  }
  BlockState<kDim>& block = blocks[0];
  Item& item = items[0];
  int32_t* first_item = reinterpret_cast<int32_t*>(memory + kWarps);
  count_items(p, first_item);
  const int n_items = first_item[p.n_seqs];
  ZC_NO_UNROLL for (int i = static_cast<int>(blockIdx.x); i < n_items;
                    i += static_cast<int>(gridDim.x)) {
    int seq = 0;
    for (int end = p.n_seqs; end - seq > 1;) {  // the last sequence that begins at or before i
      const int middle = (seq + end) / 2;
      if (first_item[middle] <= i)
        seq = middle;
      else
        end = middle;
    }
    const SequenceWork work = sequence_work(p, seq);
    if (!work.table.words) {  // masked
      const int64_t first = int64_t{work.q_begin} * p.n_heads;
      const int64_t n = int64_t{work.q_len} * p.n_heads;
      for (int64_t j = threadIdx.x; j < n * kDim; j += kThreads)
        store_out(p, first * kDim + j, 0.0f);
      for (int64_t j = threadIdx.x; j < n; j += kThreads) p.lse[first + j] = -INFINITY;
      continue;
    }
    if (threadIdx.x == 0) {
      int index = i - first_item[seq];
      const int first_column = index % work.n_column_blocks * kColumns;
      index /= work.n_column_blocks;
      const int n_parts = p.whole ? 1 : work.n_splits;
      const int n_columns = work.q_len * work.group - first_column;
      item = {work.table,      work.q_begin,  work.q_len,
              work.group,      first_column,  n_columns < kColumns ? n_columns : kColumns,
              index / n_parts, work.n_splits, index % n_parts};
    }
    clear_block(block);
    __syncthreads();
    const int end_split = p.whole ? item.n_splits : item.split + 1;
    int side = 0;
    ZC_NO_UNROLL for (int split = item.split; split < end_split; ++split) {
      side ^= 1;
      WarpState<kDim> state;
      state.clear();
      WarpAttention<kDim, kBulk, kStages>(p, item, memory, phases).attend(split, state);
      merge_warps<kDim, kBulk>(state, memory[0], block, side);
    }
    if (p.whole || item.n_splits == 1) {
      each_element<kDim>([&](int index, int column, int channel) {
        if (column < item.n_columns)
          store_element(p, item.row(p, column), kDim, channel,
                        {block.o[index], block.max[side][column], block.sum[side][column]});
      });
    } else {
      merge_splits(p, item, is_last, block, side);
    }
    __syncthreads();  // the item and its block's state were read
  }
}

// GPUs for graphics have 99 KB of shared memory a block, less than four stages of head_dim 128
// take.
constexpr bool has_little_memory(int architecture) {
  return architecture == 86 || architecture == 89 || architecture >= 120;
}

// Which forms of the kernel code for one architecture has: copies in bulk are sm_90's; three stages
// are for little memory. Older GPUs' code may be run by others, from PTX, and has both.
#if defined(__CUDA_ARCH__)
template <int kDim, bool kBulk, int kStages>
constexpr bool kIsBuilt =
    kBulk == (__CUDA_ARCH__ >= 900) &&
    (kDim <= 64 || __CUDA_ARCH__ == 800 || has_little_memory(__CUDA_ARCH__ / 10) == (kStages == 3));
#else
template <int kDim, bool kBulk, int kStages>
constexpr bool kIsBuilt = true;
#endif

// Attention of 4 columns (rows of q and heads that share a KV head) over one split of a sequence,
// or over all splits in turn. A block owns items blockIdx.x, blockIdx.x + gridDim.x, ...; a warp
// owns every sixth unit (64 tokens of 2 bits, 32 of 4, 16 of more) and streams them through a ring
// of kStages stages of its own, without waiting for other warps. Bound by memory bandwidth from
// about 25 MB a call on; below that by latency. Shared memory: 6 kStages (34 head_dim + 16) bytes,
// a word a sequence, and 16 head_dim bytes of results.
template <int kDim, bool kBulk, int kStages>
__global__ void __launch_bounds__(kThreads, kStages == 3 ? 1 : 2) mixed_attention_kernel(Params p) {
  if constexpr (kIsBuilt<kDim, kBulk, kStages>) attend_items<kDim, kBulk, kStages>(p);
}

template <int kDim, int kStages>
void launch_kernel(Context& context, bool bulk, const Params& p) {
  const size_t shared_bytes = kWarps * sizeof(WarpMemory<kDim, kStages>) +
                              (static_cast<size_t>(p.n_seqs) + 1) * sizeof(int32_t);
  const auto kernel = bulk ? &mixed_attention_kernel<kDim, true, kStages>
                           : &mixed_attention_kernel<kDim, false, kStages>;
  launch(context, kernel, static_cast<unsigned>(2 * context.n_multiprocessors), kThreads,
         shared_bytes, p);
}

template <int kDim>
void launch_mixed_attention(Context& context, const MixedAttentionArgs& a) {
  Params p{};
  p.q = a.q.as<uint16_t>();
  p.out = a.out.as<uint16_t>();
  p.lse = a.lse.as<float>();
  p.pool = a.pool.as<uint8_t>();
  p.pool_bytes = a.pool.size(0);
  p.tables = a.tables.as<int32_t>();
  p.tables_words = a.tables.size(0);
  p.starts = a.starts.as<int32_t>();
  p.cu_seqlens = a.cu_seqlens.as<int32_t>();
  p.n_seqs = static_cast<int32_t>(a.starts.size(0));
  p.total_q = static_cast<int32_t>(a.q.size(0));
  p.n_heads = static_cast<int32_t>(a.q.size(1));
  p.layer = a.layer;
  p.scale = a.scale;
  p.bf16 = a.q.dtype == DType::kBF16;
  p.tail = a.tail;
  p.causal = a.causal;
  p.faults = context.faults();
  if (p.n_seqs == 0) return;
  // With this many rows and heads, blocks that take all splits fill the device; fewer need to be
  // cut. The arithmetic is the same.
  const int64_t rows = int64_t{p.total_q} * p.n_heads;
  p.whole = rows >= int64_t{12} * context.n_multiprocessors;
  if (!p.whole) {
    p.partials = static_cast<float*>(
        context.scratch(rows * kMaxSplits * (kDim + 2) * static_cast<int64_t>(sizeof(float))));
    p.arrivals = context.counters(rows);
  }
  const int code = code_architecture(context, &mixed_attention_kernel<kDim, false, 4>);
  if constexpr (kDim > 64) {
    if (has_little_memory(code == 80 ? context.architecture : code))
      return launch_kernel<kDim, 3>(context, code >= 90, p);
  }
  launch_kernel<kDim, 4>(context, code >= 90, p);
}

}  // namespace

void mixed_attention(Context& context, const MixedAttentionArgs& a) {
  check_pool(a.pool);
  // float32 queries ask for float32 products, which tensor cores do not give; a sliding window
  // needs to know which slots it has left behind.
  const bool half = a.q.dtype != DType::kF32 && a.sliding_window == 0 &&
                    is_aligned(a.q.data, 4);  // read in pairs
  if (half && a.q.size(2) == 128)
    launch_mixed_attention<128>(context, a);
  else if (half && a.q.size(2) == 64)
    launch_mixed_attention<64>(context, a);
  else
    mixed_attention_any_shape(context, a);
}

}  // namespace zc::cuda
