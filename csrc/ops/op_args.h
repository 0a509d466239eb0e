#pragma once

#include <cstdint>

#include "csrc/core/tensor_view.h"

// One plain struct an op. A backend receives nothing else; what the values mean is documented at
// lib/ops/<op>.ts.
namespace zc {

// Channels of a head at most, of attention and its cache; a recurrent state has 256.
inline constexpr int kMaxHeadDim = 512;
inline constexpr int kMaxStateDim = 256;

struct FlashAttentionArgs {
  TensorView q;             // (total_q, n_heads, head_dim) f32|f16|bf16
  TensorView k;             // (total_k, n_kv_heads, head_dim), q's dtype
  TensorView v;             // (total_k, n_kv_heads, head_dim), q's dtype
  TensorView out;           // (total_q, n_heads, head_dim), q's dtype
  TensorView lse;           // (total_q, n_heads) f32
  TensorView cu_seqlens_q;  // (n_seqs + 1) i32
  TensorView cu_seqlens_k;  // (n_seqs + 1) i32
  float scale;
  int32_t sliding_window;  // 0: off
  bool causal;
};

struct ProbeAttentionArgs {
  TensorView q;          // (n_layers, n, n_heads, head_dim) f32|f16|bf16, or without the first axis
  TensorView lse;        // (n_layers, n, n_heads) f32, or without the first axis, as q
  TensorView k;          // (kv_len, n_layers * n_kv_heads, head_dim), q's dtype
  TensorView rows;       // (n_probes) i32, the same of every layer
  TensorView positions;  // (n_probes) i32
  TensorView scores;     // (n_layers * n_kv_heads, kv_len) f32
  float scale;
  int32_t sliding_window;
  bool normalized;

  int64_t n_layers() const { return q.rank == 4 ? q.size(0) : 1; }
  int64_t n_rows() const { return q.size(q.rank - 3); }
  int64_t n_heads() const { return q.size(q.rank - 2); }
  int64_t head_dim() const { return q.size(q.rank - 1); }
  // Query heads to a KV head.
  int64_t group() const { return n_layers() * n_heads() / k.size(1); }
};

struct SelectSalientArgs {
  TensorView scores;   // (n_heads, n) f32
  TensorView salient;  // (n_heads, count) i32
  TensorView regular;  // (n_heads, n - count) i32
};

enum class QuantScheme : int32_t { kChannelwise = 0, kTokenwise = 1, kGroupwise = 2, kCst = 3 };

struct QuantizeArgs {
  TensorView x;        // (rows, channels) f32|f16|bf16
  TensorView codes;    // (rows, bytes_per_row) u8
  TensorView scale;    // (groups) f16
  TensorView zero;     // (groups) f16
  TensorView channel;  // (channels) f16, kCst only
  QuantScheme scheme;
  int32_t bits;
  int32_t group_size;
  int32_t norm;  // 0: min/max; 2 to 6: searched range
};

struct DequantizeArgs {
  TensorView codes;
  TensorView scale;
  TensorView zero;
  TensorView channel;
  TensorView out;  // (rows, channels) f32|f16|bf16
  QuantScheme scheme;
  int32_t bits;
  int32_t group_size;
};

struct RestoreOutliersArgs {
  TensorView values;  // (n_lines, n) f16
  TensorView places;  // (n_lines, n, 2) u8: where in its line, 16 bits, the low byte first
  TensorView out;     // (rows, channels) f32|f16|bf16; a line is a channel, or a row
  bool channelwise;
};

struct AppendKvArgs {
  TensorView k;           // (rows, n_kv_heads, head_dim) f32|f16|bf16
  TensorView v;           // the same
  TensorView pool;        // (bytes) u8
  TensorView tables;      // (words) i32
  TensorView starts;      // (n_seqs) i32: word where a sequence's table begins; -1: none
  TensorView cu_seqlens;  // (n_seqs + 1) i32
  int32_t layer;
};

struct RopeAppendArgs {
  TensorView q;           // (rows, n_heads, head_dim) f32|f16|bf16
  TensorView k;           // (rows, n_kv_heads, head_dim), q's dtype
  TensorView v;           // k's shape, q_out's dtype
  TensorView cos;         // (rows, rotary_dim / 2) f32, rotary_dim at most head_dim
  TensorView sin;         // the same
  TensorView q_cos;       // (rows, rotary_dim / 2) f32, of q where cos is of k; may be cos
  TensorView q_sin;       // the same
  TensorView q_out;       // q's shape, f32|f16|bf16; may be q
  TensorView k_out;       // k's shape, q_out's dtype; may be k, may be undefined
  TensorView pool;        // (bytes) u8
  TensorView tables;      // (words) i32
  TensorView starts;      // (n_seqs) i32: word where a sequence's table begins; -1: none
  TensorView cu_seqlens;  // (n_seqs + 1) i32
  int32_t layer;
};

struct SetTailLengthsArgs {
  TensorView tables;   // (words) i32
  TensorView starts;   // (n_seqs) i32
  TensorView lengths;  // (n_seqs) i32
};

struct CopyPagesArgs {
  TensorView pool;  // (bytes) u8
  TensorView from;  // (n) i32: page addresses
  TensorView to;    // (n) i32
  int32_t page_bytes;
};

// The ops on segments take the KV heads of one layer or of several: n_kv_heads of a tensor are
// those of `layer`, then those of the next one, and so on.
struct PackSegmentArgs {
  TensorView k;      // (rows, n_kv_heads, head_dim) f32|f16|bf16
  TensorView v;      // the same
  TensorView ids;    // (n_kv_heads, n_tokens) i32, ascending rows of k and v
  TensorView pool;   // (bytes) u8
  TensorView table;  // (table_words) i32
  int32_t layer;
  int32_t segment;
  int32_t k_norm;  // 0: min/max; 2 to 6: searched range
  int32_t v_norm;
};

inline constexpr int kMaxClasses = 2;

struct PackSegmentsArgs {
  struct Class {
    TensorView ids;  // (n_kv_heads, n_tokens) i32, ascending rows of k and v, n_tokens its own
    int32_t segment;
    int32_t k_norm;
    int32_t v_norm;
  };
  TensorView k;
  TensorView v;
  TensorView pool;
  TensorView table;
  int32_t layer;
  Class classes[kMaxClasses];  // n_classes of them
  int32_t n_classes;

  PackSegmentArgs one(int i) const {
    const Class& c = classes[i];
    return {k, v, c.ids, pool, table, layer, c.segment, c.k_norm, c.v_norm};
  }
};

struct UnpackSegmentArgs {
  TensorView pool;
  TensorView table;
  TensorView k;  // (rows, n_kv_heads, head_dim) f32|f16|bf16
  TensorView v;  // the same
  int32_t layer;
  int32_t segment;
  int32_t base;  // position of row 0
};

struct ExportSegmentArgs {
  TensorView pool;
  TensorView table;
  TensorView k_codes;    // (n_kv_heads, n_tokens, head_dim) u8
  TensorView v_codes;    // (n_kv_heads, n_tokens, head_dim) u8
  TensorView k_params;   // (n_kv_heads, 2, head_dim) f32: scale, zero
  TensorView v_params;   // (n_kv_heads, 2, n_tokens) f32: scale, zero
  TensorView v_channel;  // (n_kv_heads, head_dim) f32
  TensorView positions;  // (n_kv_heads, n_tokens) i32
  int32_t layer;
  int32_t segment;
};

// The same tensors the other way: the content is read and written into the segment.
struct ImportSegmentArgs : ExportSegmentArgs {};

struct MixedAttentionArgs {
  TensorView q;           // (total_q, n_heads, head_dim) f32|f16|bf16
  TensorView out;         // q's shape and dtype
  TensorView lse;         // (total_q, n_heads) f32
  TensorView pool;        // (bytes) u8
  TensorView tables;      // (words) i32
  TensorView starts;      // (n_seqs) i32: word where a sequence's table begins; -1: none
  TensorView cu_seqlens;  // (n_seqs + 1) i32
  TensorView positions;   // (total_q) i32
  int32_t layer;
  float scale;
  int32_t sliding_window;
  bool tail;    // whether the tail takes part
  bool causal;  // the last q_len tokens of the tail are the rows themselves
};

struct MergeAttentionArgs {
  TensorView out_a;  // (n, n_heads, head_dim) f32|f16|bf16
  TensorView lse_a;  // (n, n_heads) f32
  TensorView out_b;
  TensorView lse_b;
  TensorView out;
  TensorView lse;
};

struct AttentionSinksArgs {
  TensorView sinks;  // (n_heads) f32
  TensorView out;    // (n, n_heads, head_dim) f32|f16|bf16, in and out
  TensorView lse;    // (n, n_heads) f32, in and out
};

struct StoreProbesArgs {
  TensorView q;          // (n_layers, rows, n_heads, head_dim), or of one layer without that axis
  TensorView lse;        // (n_layers, rows, n_heads) f32
  TensorView slots;      // (rows) i32; -1: not a probe
  TensorView probe_q;    // (n_layers, capacity, n_heads, head_dim), q's dtype
  TensorView probe_lse;  // (n_layers, capacity, n_heads) f32

  int64_t n_layers() const { return q.rank == 4 ? q.size(0) : 1; }
  int64_t capacity() const { return probe_q.size(probe_q.rank - 3); }
  int64_t n_heads() const { return q.size(q.rank - 2); }
  int64_t head_dim() const { return q.size(q.rank - 1); }
};

// Inputs that a convolution sees at most.
inline constexpr int kMaxConvWidth = 8;

// State pages as in csrc/ops/state_table.h.
struct CausalConvArgs {
  TensorView x;           // (rows, channels) f32
  TensorView weight;      // (channels, width) f32, width 2 to 8
  TensorView bias;        // (channels) f32, may be undefined
  TensorView out;         // (rows, channels) f32, not x
  TensorView pool;        // (bytes) u8
  TensorView tables;      // (words) i32
  TensorView states;      // (n_seqs) i32: word where a sequence's state table begins; -1: none
  TensorView cu_seqlens;  // (n_seqs + 1) i32
  int32_t layer;          // of the recurrent ones
  int32_t n_heads;        // that a layer has pages for
  bool from_zero;         // what a page holds is not read: zeros

  int64_t channels() const { return weight.size(0); }
  int64_t width() const { return weight.size(1); }
};

struct GatedDeltaArgs {
  // (rows, 2 * n_key_heads * key_dim + n_heads * value_dim) f32: q of all key heads, then k, then v
  TensorView qkv;
  TensorView decay;       // (rows, n_heads) f32
  TensorView beta;        // (rows, n_heads) f32
  TensorView decay_log;   // (n_heads) f32
  TensorView decay_bias;  // (n_heads) f32
  TensorView out;         // (rows, n_heads, value_dim) f32
  TensorView pool;        // (bytes) u8
  TensorView tables;      // (words) i32
  TensorView states;      // (n_seqs) i32: word where a sequence's state table begins; -1: none
  TensorView cu_seqlens;  // (n_seqs + 1) i32
  int32_t layer;          // of the recurrent ones
  int32_t n_key_heads;    // a divisor of n_heads
  bool from_zero;         // what a page holds is not read: zeros

  int64_t n_heads() const { return out.size(1); }
  int64_t value_dim() const { return out.size(2); }
  // Channels of q and of k, each.
  int64_t keys() const { return (qkv.size(1) - n_heads() * value_dim()) / 2; }
  int64_t key_dim() const { return keys() / n_key_heads; }
};

struct SelectiveScanArgs {
  // (rows, n_heads * head_dim + 2 * n_groups * state_dim) f32: x of all heads, then B of all
  // groups, then C
  TensorView xbc;
  TensorView step;        // (rows, n_heads) f32
  TensorView step_bias;   // (n_heads) f32
  TensorView decay_log;   // (n_heads) f32
  TensorView skip;        // (n_heads) f32
  TensorView out;         // (rows, n_heads, head_dim) f32
  TensorView pool;        // (bytes) u8
  TensorView tables;      // (words) i32
  TensorView states;      // (n_seqs) i32: word where a sequence's state table begins; -1: none
  TensorView cu_seqlens;  // (n_seqs + 1) i32
  int32_t layer;          // of the recurrent ones
  int32_t n_groups;       // a divisor of n_heads
  bool from_zero;         // what a page holds is not read: zeros

  int64_t n_heads() const { return out.size(1); }
  int64_t head_dim() const { return out.size(2); }
  // Channels of x.
  int64_t inputs() const { return n_heads() * head_dim(); }
  int64_t state_dim() const { return (xbc.size(1) - inputs()) / (2 * int64_t{n_groups}); }
};

struct EmbeddingArgs {
  TensorView ids;     // (n) i32
  TensorView weight;  // (vocab_size, width or more) f32|f16|bf16
  TensorView out;     // (n, width) f32
  float scale;        // multiplies out
  int column;         // the first of `width` columns; -1: there are no others

  int64_t first_column() const { return column < 0 ? 0 : column; }
};

struct RmsNormArgs {
  TensorView x;       // (rows, width) f32|f16|bf16
  TensorView weight;  // (width) f32|f16|bf16; may be undefined: ones
  TensorView out;     // (rows, width) f32|f16|bf16; may be x
  float eps;
  bool accumulate;
  float scale;  // multiplies the result, with what it was added to
};

// A weight (n, k) is one of floats, one of i8 with a scale a row, or one of 4 bits. That is a u8
// tensor (n, k / 2): a row is units of 64 codes in 32 bytes, 16 little-endian words of 16 bits, of
// which word l holds the codes of the unit's elements l, 16 + l, 32 + l and 48 + l, the first one
// in its lowest bits; k is a multiple of 64. `group` elements of a row, 32, 64 or 128, share a
// scale of f16 and a zero point, value = (code - zero) * scale. Or codes are float4 e2m1 and 32
// elements share a scale of u8, which is float8 e8m0 (MXFP4): value = float4 * 2^(scale - 127).
struct LinearArgs {
  TensorView x;       // (m, k) f32|f16|bf16
  TensorView weight;  // (n, k) f32|f16|bf16|i8, or (n, k / 2) u8
  // (n) f32, of a weight of i8; (n, k / group) f16|u8, of one of u8; else undefined
  TensorView scales;
  TensorView zeros;  // (n, k / group) u8, 0 to 15, beside scales of f16; else undefined
  TensorView bias;   // (n) f32|f16|bf16, may be undefined
  TensorView out;    // (m, n) f32|f16|bf16
  bool accumulate;

  // Elements that share a scale, of a weight of u8.
  int64_t group() const { return x.size(1) / scales.size(1); }
  bool is_float4() const { return scales.defined() && scales.dtype == DType::kU8; }
};

inline constexpr int kMaxProducts = 3;

struct GroupedLinearArgs {
  struct Product {
    TensorView weight;  // (n, k) f32|f16|bf16|i8, or (n, k / 2) u8, n its own
    TensorView scales;  // as in LinearArgs
    TensorView zeros;   // as in LinearArgs
    TensorView bias;    // (n) f32|f16|bf16, may be undefined
    TensorView out;     // (m, n) f32|f16|bf16
  };
  TensorView x;                    // (m, k) f32|f16|bf16
  Product products[kMaxProducts];  // n_products of them
  int32_t n_products;

  LinearArgs product(int i) const {
    const Product& own = products[i];
    return {x, own.weight, own.scales, own.zeros, own.bias, own.out, false};
  }
};

struct QuantizeWeightArgs {
  TensorView x;       // (n, k) f32|f16|bf16
  TensorView out;     // (n, k) i8, or (n, k / 2) u8
  TensorView scales;  // (n) f32, with an out of i8; (n, k / group) f16, with one of u8
  TensorView zeros;   // (n, k / group) u8, with an out of u8; else undefined

  // Elements that share a scale, with an out of u8.
  int64_t group() const { return x.size(1) / scales.size(1); }
};

// How many experts there may be: a GPU's warp keeps the logits of a row in shared memory.
inline constexpr int kMaxExperts = 1024;

struct RouteExpertsArgs {
  TensorView logits;         // (n, n_experts) f32
  TensorView correction;     // (n_experts) f32, added to scores that choose; may be undefined
  TensorView expert_scales;  // (n_experts) f32, multiply weights last; may be undefined
  TensorView weights;        // (n, n_chosen) f32 out
  TensorView experts;        // (n, n_chosen) i32 out
  TensorView pairs;          // (n * n_chosen) i32 out: places in `experts`, those of expert 0 first
  TensorView offsets;        // (n_experts + 1) i32 out: where an expert's pairs begin
  bool sigmoid;              // scores are sigmoid(logits), not softmax(logits)
  bool normalized;           // a row's weights are divided by their sum, or by
  float least_sum;           // this, where that is smaller; at least 0
  float scale;               // multiplies weights
};

struct ExpertLinearArgs {
  TensorView x;        // (m, k) f32|f16|bf16, m a divisor of n_pairs
  TensorView weight;   // (n_experts, n, k) f32|f16|bf16|i8, or (n_experts, n, k / 2) u8
  TensorView scales;   // as in LinearArgs, with n_experts in front
  TensorView zeros;    // as in LinearArgs, with n_experts in front
  TensorView bias;     // (n_experts, n) f32|f16|bf16, may be undefined
  TensorView pairs;    // (n_pairs) i32
  TensorView offsets;  // (n_experts + 1) i32
  TensorView out;      // (n_pairs, n) f32|f16|bf16

  int64_t n_experts() const { return weight.size(0); }
  int64_t n_pairs() const { return pairs.size(0); }
  // Pairs of a row of x.
  int64_t pairs_per_row() const { return x.size(0) == 0 ? 1 : n_pairs() / x.size(0); }
  // One expert's product as if all rows of x were its own.
  LinearArgs product(int64_t expert) const {
    const auto part = [expert](const TensorView& of) {
      TensorView one = of;
      one.rank = of.rank - 1;
      for (int axis = 0; axis < kMaxRank; ++axis)
        one.shape[static_cast<size_t>(axis)] = axis < one.rank ? of.size(axis + 1) : 1;
      one.data = of.as<uint8_t>() + expert * one.size_bytes();
      return one;
    };
    const auto part_if_any = [&](const TensorView& of) {
      return of.defined() ? part(of) : TensorView{};
    };
    return {x,   part(weight), part_if_any(scales), part_if_any(zeros), part_if_any(bias),
            out, false};
  }
};

struct AddExpertsArgs {
  TensorView x;        // (n * n_chosen, width) f32
  TensorView weights;  // (n, n_chosen) f32
  TensorView out;      // (n, width) f32
  bool accumulate;     // out is added to, not written
};

struct RopeTableArgs {
  TensorView positions;  // (n) i32
  TensorView inv_freq;   // (rotary_dim / 2) f32
  TensorView cos;        // (n, rotary_dim / 2) f32
  TensorView sin;        // (n, rotary_dim / 2) f32
  float attention_scale;
  float growth;    // both are times 1 + growth ln(1 + floor(position / period)), too
  int32_t period;  // 1 or more
};

struct RopeArgs {
  TensorView x;    // (n, heads, head_dim) f32|f16|bf16
  TensorView cos;  // (n, rotary_dim / 2) f32, rotary_dim at most head_dim
  TensorView sin;  // the same
  TensorView out;  // x's shape, f32|f16|bf16; may be x
};

// Of silu_gate and gelu_gate.
struct GateArgs {
  TensorView gate;  // (n, width) f32|f16|bf16
  TensorView up;    // the same
  TensorView out;   // gate's shape, f32|f16|bf16; may be gate or up
};

struct ClampedSwigluArgs {
  TensorView gate;  // (n, width) f32|f16|bf16
  TensorView up;    // the same
  TensorView out;   // gate's shape, f32|f16|bf16; may be gate or up
  float alpha;
  float limit;  // above 0

  GateArgs rows() const { return {gate, up, out}; }
};

struct SigmoidGateArgs {
  TensorView gate;  // (n, width) f32
  TensorView x;     // (n, width) f32|f16|bf16
  TensorView out;   // x's shape and dtype; may be x
};

struct SoftCapArgs {
  TensorView x;    // (rows, width) f32
  TensorView out;  // (rows, width) f32; may be x
  float cap;       // above 0
};

// Columns of SampleArgs.params, bit patterns for the integers (lib/ops/sample.ts writes them).
enum SampleParam : int32_t {
  kSampleTemperature = 0,
  kSampleTopP = 1,
  kSampleMinP = 2,
  kSampleRepetitionPenalty = 3,
  kSampleTopK = 4,      // int32 bits
  kSampleSeedLow = 5,   // uint32 bits
  kSampleSeedHigh = 6,  // uint32 bits
  kSampleStep = 7,      // uint32 bits
  kSampleParams = 8,
};

struct SampleArgs {
  TensorView logits;    // (n, vocab_size) f32
  TensorView params;    // (n, kSampleParams) f32
  TensorView seen;      // (n_contexts, vocab_size) u8: tokens of a context; updated
  TensorView contexts;  // (n) i32: row of `seen`, -1 for none
  TensorView ids;       // (n) i32 out
  TensorView logprobs;  // (n) f32 out
};

struct FeedTokensArgs {
  TensorView sampled;  // (n_sampled) i32
  TensorView source;   // (n) i32
  TensorView given;    // (n) i32
  TensorView out;      // (n) i32
};

struct ConvertArgs {
  TensorView x;    // any shape, f32|f16|bf16
  TensorView out;  // x's shape, f32|f16|bf16
};

struct GatherRowsArgs {
  TensorView x;     // (n, width) f32|f16|bf16
  TensorView rows;  // (m) i32
  TensorView out;   // (m, width), x's dtype
};

struct CountNonFiniteArgs {
  TensorView x;      // any shape, f32|f16|bf16
  TensorView count;  // (1) i32 out, saturating
};

struct ReadStreamArgs {
  TensorView x;    // (n) i32
  TensorView out;  // (parts) i32
};

struct MultiplyAddArgs {
  TensorView x;    // (rows, width) f32
  TensorView out;  // (rows, width) f32
  float factor;
  float summand;
  int32_t steps;
};

}  // namespace zc
