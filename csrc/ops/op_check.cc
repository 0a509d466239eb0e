#include "csrc/ops/op_check.h"

#include <cmath>
#include <initializer_list>
#include <string>

#include "csrc/core/error.h"
#include "csrc/math/float4_weight.h"
#include "csrc/math/int4_weight.h"
#include "csrc/ops/kv_table.h"

namespace zc {

namespace {

[[noreturn]] void fail(ErrorCode code, const char* argument, const std::string& message) {
  throw Error(code, std::string(argument) + ": " + message, "", argument);
}

// An expected axis: a size, or kAny.
constexpr int64_t kAny = -1;

void expect_shape(const char* name, const TensorView& t, std::initializer_list<int64_t> sizes) {
  bool same = t.rank == static_cast<int>(sizes.size());
  int axis = 0;
  for (const int64_t size : sizes) {
    if (same && size != kAny && t.size(axis) != size) same = false;
    ++axis;
  }
  if (same) return;
  std::string expected = "(";
  axis = 0;
  for (const int64_t size : sizes) {
    if (axis++) expected += ", ";
    expected += size == kAny ? "*" : std::to_string(size);
  }
  fail(ErrorCode::kShape, name, "shape is " + shape_text(t) + ", expected " + expected + ")");
}

void expect_dtype(const char* name, const TensorView& t, DType dtype) {
  if (t.dtype != dtype)
    fail(ErrorCode::kDtype, name,
         std::string("dtype is ") + dtype_name(t.dtype) + ", expected " + dtype_name(dtype));
}

void expect_float(const char* name, const TensorView& t) {
  if (t.dtype != DType::kF32 && t.dtype != DType::kF16 && t.dtype != DType::kBF16)
    fail(ErrorCode::kDtype, name,
         std::string("dtype is ") + dtype_name(t.dtype) + ", expected f32, f16 or bf16");
}

void expect_same(const char* name, const TensorView& t, const char* other_name,
                 const TensorView& other) {
  if (t.dtype != other.dtype)
    fail(ErrorCode::kDtype, name,
         std::string("dtype is ") + dtype_name(t.dtype) + ", expected that of " + other_name +
             ", " + dtype_name(other.dtype));
  if (t.rank != other.rank || t.shape != other.shape)
    fail(ErrorCode::kShape, name,
         "shape is " + shape_text(t) + ", expected that of " + other_name + ", " +
             shape_text(other));
}

void expect(bool holds, const char* argument, const std::string& message) {
  if (!holds) fail(ErrorCode::kArgument, argument, message);
}

// Checks the i-th of a list of arguments; an error says which one it was.
template <typename Check>
void in_list(const char* list, int i, const Check& check) {
  try {
    check();
  } catch (Error& e) {
    const std::string place = format("%s[%d].", list, i);
    e.message = place + e.message;
    e.argument = place + e.argument;
    throw;
  }
}

void expect_scale(float scale) {
  expect(std::isfinite(scale) && scale > 0.0f, "scale",
         "is " + std::to_string(scale) + ", expected a positive number");
}

void expect_window(int32_t window) {
  expect(window >= 0, "slidingWindow", "is " + std::to_string(window) + ", expected 0 or more");
}

void expect_bits(int32_t bits) {
  expect(bits == 2 || bits == 3 || bits == 4 || bits == 8, "bits",
         "is " + std::to_string(bits) + ", expected 2, 3, 4 or 8");
}

void expect_norm(const char* name, int32_t norm) {
  expect(norm == 0 || (norm >= 2 && norm <= 6), name,
         "norm is " + std::to_string(norm) + ", expected 2 to 6");
}

constexpr int64_t kMaxHeads = 1 << 16;

void expect_head_count(const char* name, int64_t n_heads) {
  if (n_heads < 1 || n_heads > kMaxHeads)
    fail(ErrorCode::kShape, name,
         "n_heads is " + std::to_string(n_heads) + ", expected 1 to " + std::to_string(kMaxHeads));
}

// Heads of q against those of k: (n_heads, head_dim) and (n_kv_heads, k_head_dim).
void expect_group(int64_t n_heads, int64_t head_dim, const char* k_name, int64_t n_kv_heads,
                  int64_t k_head_dim) {
  expect_head_count("q", n_heads);
  if (k_head_dim != head_dim)
    fail(ErrorCode::kShape, k_name,
         "head_dim is " + std::to_string(k_head_dim) + ", expected that of q, " +
             std::to_string(head_dim));
  if (n_kv_heads < 1 || n_heads % n_kv_heads != 0)
    fail(ErrorCode::kShape, k_name,
         "n_kv_heads is " + std::to_string(n_kv_heads) + ", expected a divisor of n_heads, " +
             std::to_string(n_heads));
}
void expect_heads(const TensorView& q, const char* k_name, const TensorView& k) {
  expect_group(q.size(1), q.size(2), k_name, k.size(1), k.size(2));
}

void expect_head_dim(const char* name, int64_t head_dim, int most = kMaxHeadDim) {
  if (head_dim < 16 || head_dim > most || head_dim % 16 != 0)
    fail(ErrorCode::kUnsupported, name,
         "head_dim is " + std::to_string(head_dim) + ", expected a multiple of 16 up to " +
             std::to_string(most));
}

// RoPE's tables for heads of so many channels, or for the first of them.
void expect_turns(const TensorView& cos, const TensorView& sin, int64_t rows, int64_t head_dim) {
  expect_dtype("cos", cos, DType::kF32);
  expect_shape("cos", cos, {rows, kAny});
  if (2 * cos.size(1) > head_dim)
    fail(ErrorCode::kShape, "cos",
         std::to_string(cos.size(1)) + " angles a row, expected at most " +
             std::to_string(head_dim / 2) + ", one for two channels");
  expect_same("sin", sin, "cos", cos);
}

void expect_pool(const TensorView& pool) {
  expect_dtype("pool", pool, DType::kU8);
  expect_shape("pool", pool, {kAny});
}

void expect_table(const TensorView& table) {
  expect_dtype("table", table, DType::kI32);
  expect_shape("table", table, {kAny});
  if (table.size(0) < kTableHeader)
    fail(ErrorCode::kShape, "table",
         "shape is " + shape_text(table) + ", too short for a page table");
}

void expect_tables(const TensorView& tables, const TensorView& starts) {
  expect_dtype("tables", tables, DType::kI32);
  expect_shape("tables", tables, {kAny});
  expect_dtype("starts", starts, DType::kI32);
  expect_shape("starts", starts, {kAny});
}

// Rows of a recurrent state.
void expect_state_dim(const char* name, const char* what, int64_t dim) {
  if (dim < 16 || dim > kMaxStateDim || (dim & (dim - 1)) != 0)
    fail(ErrorCode::kUnsupported, name,
         std::string(what) + " is " + std::to_string(dim) +
             ", expected a power of two from 16 to " + std::to_string(kMaxStateDim));
}

// What an op of a recurrent layer is given of its states, for so many rows.
template <typename Args>
void expect_states(const Args& a, int64_t rows) {
  expect_pool(a.pool);
  expect_dtype("tables", a.tables, DType::kI32);
  expect_shape("tables", a.tables, {kAny});
  expect_dtype("states", a.states, DType::kI32);
  expect_shape("states", a.states, {kAny});
  expect_dtype("cuSeqlens", a.cu_seqlens, DType::kI32);
  expect_shape("cuSeqlens", a.cu_seqlens, {a.states.size(0) + 1});
  expect(a.states.size(0) > 0 || rows == 0, "states",
         "is empty, expected a sequence for " + std::to_string(rows) + " rows");
  expect(a.layer >= 0, "layer", "is " + std::to_string(a.layer) + ", expected 0 or more");
}

// What sorts pairs of a row and one of its experts by expert.
void expect_pairs(int64_t n_pairs, const TensorView& pairs, int64_t n_experts,
                  const TensorView& offsets) {
  expect_dtype("pairs", pairs, DType::kI32);
  expect_shape("pairs", pairs, {n_pairs});
  expect_dtype("offsets", offsets, DType::kI32);
  expect_shape("offsets", offsets, {n_experts + 1});
}

int64_t bytes_per_row(int64_t channels, int32_t bits) {
  if (bits == 3) return (channels * 2 + 7) / 8 + (channels + 7) / 8;
  return (channels * bits + 7) / 8;
}

// Parameters and codes of the plain quantizer, the same for both directions.
void expect_quantized(const TensorView& x, const TensorView& codes, const TensorView& scale,
                      const TensorView& zero, const TensorView& channel, QuantScheme scheme,
                      int32_t bits, int32_t group_size) {
  expect_bits(bits);
  const int64_t rows = x.size(0);
  const int64_t channels = x.size(1);
  expect_dtype("codes", codes, DType::kU8);
  expect_shape("codes", codes, {rows, bytes_per_row(channels, bits)});
  expect_dtype("scale", scale, DType::kF16);
  expect_dtype("zero", zero, DType::kF16);
  switch (scheme) {
    case QuantScheme::kChannelwise:
      expect_shape("scale", scale, {channels});
      break;
    case QuantScheme::kTokenwise:
    case QuantScheme::kCst:
      expect_shape("scale", scale, {rows});
      break;
    case QuantScheme::kGroupwise:
      expect(group_size > 0 && channels % group_size == 0, "groupSize",
             "is " + std::to_string(group_size) + ", expected a divisor of the channels, " +
                 std::to_string(channels));
      expect_shape("scale", scale, {rows, channels / group_size});
      break;
    default:
      fail(ErrorCode::kArgument, "scheme", "unknown");
  }
  expect_same("zero", zero, "scale", scale);
  if (scheme == QuantScheme::kCst) {
    expect_dtype("channel", channel, DType::kF16);
    expect_shape("channel", channel, {channels});
  } else if (channel.defined()) {
    fail(ErrorCode::kArgument, "channel", "is given, expected only with the scheme cst");
  }
}

void expect_kv_rows(const TensorView& k, const TensorView& v) {
  expect_float("k", k);
  expect_shape("k", k, {kAny, kAny, kAny});
  expect_same("v", v, "k", k);
  expect_head_dim("k", k.size(2));
}

// A weight (n, k), of experts (n_experts, n, k), where n may be any: floats have no scales, codes
// of 8 bits have scales, codes of 4 have scales and zeros or, where they are floats, scales of u8
// (LinearArgs).
void expect_weight(const char* name, const TensorView& weight, const TensorView& scales,
                   const TensorView& zeros, int rank, int64_t n, int64_t k) {
  const auto expect_rows = [&](const char* own, const TensorView& t, int64_t experts, int64_t rows,
                               int64_t last) {
    rank == 3 ? expect_shape(own, t, {experts, rows, last}) : expect_shape(own, t, {rows, last});
  };
  const bool in_4_bits = zeros.defined() || (scales.defined() && weight.dtype == DType::kU8);
  if (!in_4_bits) {
    scales.defined() ? expect_dtype(name, weight, DType::kI8) : expect_float(name, weight);
    expect_rows(name, weight, kAny, n, k);
    if (!scales.defined()) return;
    expect_dtype("scales", scales, DType::kF32);
    rank == 3 ? expect_shape("scales", scales, {weight.size(0), weight.size(1)})
              : expect_shape("scales", scales, {weight.size(0)});
    return;
  }
  expect(scales.defined(), "scales", "is undefined, expected f16 beside zeros");
  expect_dtype(name, weight, DType::kU8);
  const bool are_floats = scales.dtype == DType::kU8;
  if (are_floats)
    expect(!zeros.defined(), "zeros", "is given, expected only with scales of f16");
  else
    expect(zeros.defined(), "zeros", "is undefined, expected u8 with scales of f16");
  if (k % kInt4Unit != 0)
    fail(ErrorCode::kShape, name,
         "has codes of 4 bits of rows of " + std::to_string(k) + ", expected a multiple of " +
             std::to_string(kInt4Unit));
  expect_rows(name, weight, kAny, n, k / 2);
  if (!are_floats) expect_dtype("scales", scales, DType::kF16);
  expect_rows("scales", scales, weight.size(0), weight.size(rank - 2), kAny);
  const int64_t groups = scales.size(rank - 1);
  if (are_floats) {
    if (k == 0 || groups * kFloat4Group != k)
      fail(ErrorCode::kShape, "scales",
           std::to_string(groups) + " of a row of " + std::to_string(k) +
               ", expected one for each " + std::to_string(kFloat4Group) + " elements");
    return;
  }
  if (k == 0 || (groups * 32 != k && groups * 64 != k && groups * 128 != k))
    fail(ErrorCode::kShape, "scales",
         std::to_string(groups) + " of a row of " + std::to_string(k) +
             ", expected one for each 32, 64 or 128 elements");
  expect_dtype("zeros", zeros, DType::kU8);
  expect_rows("zeros", zeros, weight.size(0), weight.size(rank - 2), groups);
}

}  // namespace

void check(const FlashAttentionArgs& a) {
  expect_float("q", a.q);
  expect_shape("q", a.q, {kAny, kAny, kAny});
  expect_shape("k", a.k, {kAny, kAny, kAny});
  if (a.k.dtype != a.q.dtype) expect_dtype("k", a.k, a.q.dtype);
  expect_heads(a.q, "k", a.k);
  expect_same("v", a.v, "k", a.k);
  expect_same("out", a.out, "q", a.q);
  expect_head_dim("q", a.q.size(2));
  expect_dtype("lse", a.lse, DType::kF32);
  expect_shape("lse", a.lse, {a.q.size(0), a.q.size(1)});
  expect_dtype("cuSeqlensQ", a.cu_seqlens_q, DType::kI32);
  expect_shape("cuSeqlensQ", a.cu_seqlens_q, {kAny});
  if (a.cu_seqlens_q.size(0) < 1) fail(ErrorCode::kShape, "cuSeqlensQ", "is empty");
  expect_dtype("cuSeqlensK", a.cu_seqlens_k, DType::kI32);
  expect_shape("cuSeqlensK", a.cu_seqlens_k, {a.cu_seqlens_q.size(0)});
  expect_scale(a.scale);
  expect_window(a.sliding_window);
}

void check(const ProbeAttentionArgs& a) {
  const bool layered = a.q.rank == 4;
  expect_float("q", a.q);
  if (!layered) expect_shape("q", a.q, {kAny, kAny, kAny});
  expect_shape("k", a.k, {kAny, kAny, kAny});
  if (a.k.dtype != a.q.dtype) expect_dtype("k", a.k, a.q.dtype);
  expect_head_count("q", a.n_layers() * a.n_heads());
  if (a.k.size(1) % a.n_layers() != 0)
    fail(ErrorCode::kShape, "k",
         "n_kv_heads of all layers are " + std::to_string(a.k.size(1)) +
             ", expected a multiple of the " + std::to_string(a.n_layers()) + " layers of q");
  expect_group(a.n_heads(), a.head_dim(), "k", a.k.size(1) / a.n_layers(), a.k.size(2));
  expect_head_dim("q", a.head_dim());
  expect_dtype("lse", a.lse, DType::kF32);
  layered ? expect_shape("lse", a.lse, {a.n_layers(), a.n_rows(), a.n_heads()})
          : expect_shape("lse", a.lse, {a.n_rows(), a.n_heads()});
  expect_dtype("rows", a.rows, DType::kI32);
  expect_shape("rows", a.rows, {kAny});
  expect_same("positions", a.positions, "rows", a.rows);
  expect_dtype("scores", a.scores, DType::kF32);
  expect_shape("scores", a.scores, {a.k.size(1), a.k.size(0)});
  expect_scale(a.scale);
  expect_window(a.sliding_window);
}

void check(const SelectSalientArgs& a) {
  expect_dtype("scores", a.scores, DType::kF32);
  expect_shape("scores", a.scores, {kAny, kAny});
  expect_dtype("salient", a.salient, DType::kI32);
  expect_shape("salient", a.salient, {a.scores.size(0), kAny});
  if (a.salient.size(1) > a.scores.size(1))
    fail(ErrorCode::kShape, "salient",
         "shape is " + shape_text(a.salient) + ", more than the scores' " +
             std::to_string(a.scores.size(1)) + " tokens");
  expect_dtype("regular", a.regular, DType::kI32);
  expect_shape("regular", a.regular, {a.scores.size(0), a.scores.size(1) - a.salient.size(1)});
}

void check(const QuantizeArgs& a) {
  expect_float("x", a.x);
  expect_shape("x", a.x, {kAny, kAny});
  expect_quantized(a.x, a.codes, a.scale, a.zero, a.channel, a.scheme, a.bits, a.group_size);
  expect_norm("range", a.norm);
}

void check(const DequantizeArgs& a) {
  expect_float("out", a.out);
  expect_shape("out", a.out, {kAny, kAny});
  expect_quantized(a.out, a.codes, a.scale, a.zero, a.channel, a.scheme, a.bits, a.group_size);
}

void check(const RestoreOutliersArgs& a) {
  expect_float("out", a.out);
  expect_shape("out", a.out, {kAny, kAny});
  expect_dtype("values", a.values, DType::kF16);
  expect_shape("values", a.values, {a.out.size(a.channelwise ? 1 : 0), kAny});
  expect_dtype("places", a.places, DType::kU8);
  expect_shape("places", a.places, {a.values.size(0), a.values.size(1), 2});
}

void check(const AppendKvArgs& a) {
  expect_kv_rows(a.k, a.v);
  expect_pool(a.pool);
  expect_tables(a.tables, a.starts);
  expect_dtype("cuSeqlens", a.cu_seqlens, DType::kI32);
  expect_shape("cuSeqlens", a.cu_seqlens, {a.starts.size(0) + 1});
}

void check(const RopeAppendArgs& a) {
  expect_float("q", a.q);
  expect_shape("q", a.q, {kAny, kAny, kAny});
  const int64_t rows = a.q.size(0);
  expect_dtype("k", a.k, a.q.dtype);
  expect_shape("k", a.k, {rows, kAny, kAny});
  expect_heads(a.q, "k", a.k);
  expect_head_dim("q", a.q.size(2));
  expect_float("qOut", a.q_out);
  expect_shape("qOut", a.q_out, {rows, a.q.size(1), a.q.size(2)});
  expect_dtype("v", a.v, a.q_out.dtype);
  expect_shape("v", a.v, {rows, a.k.size(1), a.k.size(2)});
  if (a.k_out.defined()) expect_same("kOut", a.k_out, "v", a.v);
  expect_turns(a.cos, a.sin, rows, a.q.size(2));
  expect_same("qCos", a.q_cos, "cos", a.cos);
  expect_same("qSin", a.q_sin, "cos", a.cos);
  expect_pool(a.pool);
  expect_tables(a.tables, a.starts);
  expect_dtype("cuSeqlens", a.cu_seqlens, DType::kI32);
  expect_shape("cuSeqlens", a.cu_seqlens, {a.starts.size(0) + 1});
}

void check(const SetTailLengthsArgs& a) {
  expect_tables(a.tables, a.starts);
  expect_same("lengths", a.lengths, "starts", a.starts);
}

void check(const CopyPagesArgs& a) {
  expect_pool(a.pool);
  expect_dtype("from", a.from, DType::kI32);
  expect_shape("from", a.from, {kAny});
  expect_same("to", a.to, "from", a.from);
  expect(a.page_bytes > 0, "pageBytes", "is " + std::to_string(a.page_bytes) + ", expected more");
}

void check(const PackSegmentArgs& a) {
  expect_kv_rows(a.k, a.v);
  expect_dtype("ids", a.ids, DType::kI32);
  expect_shape("ids", a.ids, {a.k.size(1), kAny});
  expect_pool(a.pool);
  expect_table(a.table);
  expect(a.segment > 0, "segment", "is the tail, expected 1 or more");
  expect_norm("keyRange", a.k_norm);
  expect_norm("valueRange", a.v_norm);
}

void check(const PackSegmentsArgs& a) {
  expect_kv_rows(a.k, a.v);
  expect_pool(a.pool);
  expect_table(a.table);
  for (int i = 0; i < a.n_classes; ++i) {
    in_list("classes", i, [&] { check(a.one(i)); });
    for (int other = 0; other < i; ++other)
      expect(a.classes[i].segment != a.classes[other].segment, "classes",
             "share a segment, expected one each");
  }
}

void check(const UnpackSegmentArgs& a) {
  expect_kv_rows(a.k, a.v);
  expect_pool(a.pool);
  expect_table(a.table);
  expect(a.segment >= 0, "segment", "is negative");
}

void check(const ExportSegmentArgs& a) {
  expect_pool(a.pool);
  expect_table(a.table);
  expect(a.segment > 0, "segment", "is the tail, which holds no codes");
  expect_dtype("kCodes", a.k_codes, DType::kU8);
  expect_shape("kCodes", a.k_codes, {kAny, kAny, kAny});
  expect_same("vCodes", a.v_codes, "kCodes", a.k_codes);
  const int64_t n_kv_heads = a.k_codes.size(0);
  const int64_t n_tokens = a.k_codes.size(1);
  const int64_t head_dim = a.k_codes.size(2);
  expect_head_dim("kCodes", head_dim);
  expect_dtype("kParams", a.k_params, DType::kF32);
  expect_shape("kParams", a.k_params, {n_kv_heads, 2, head_dim});
  expect_dtype("vParams", a.v_params, DType::kF32);
  expect_shape("vParams", a.v_params, {n_kv_heads, 2, n_tokens});
  expect_dtype("vChannel", a.v_channel, DType::kF32);
  expect_shape("vChannel", a.v_channel, {n_kv_heads, head_dim});
  expect_dtype("positions", a.positions, DType::kI32);
  expect_shape("positions", a.positions, {n_kv_heads, n_tokens});
}

void check(const ImportSegmentArgs& a) { check(static_cast<const ExportSegmentArgs&>(a)); }

void check(const MixedAttentionArgs& a) {
  expect_float("q", a.q);
  expect_shape("q", a.q, {kAny, kAny, kAny});
  expect_head_count("q", a.q.size(1));
  expect_head_dim("q", a.q.size(2));
  expect_same("out", a.out, "q", a.q);
  expect_dtype("lse", a.lse, DType::kF32);
  expect_shape("lse", a.lse, {a.q.size(0), a.q.size(1)});
  expect_pool(a.pool);
  expect_tables(a.tables, a.starts);
  expect_dtype("cuSeqlens", a.cu_seqlens, DType::kI32);
  expect_shape("cuSeqlens", a.cu_seqlens, {a.starts.size(0) + 1});
  expect_dtype("positions", a.positions, DType::kI32);
  expect_shape("positions", a.positions, {a.q.size(0)});
  expect_scale(a.scale);
  expect_window(a.sliding_window);
}

void check(const MergeAttentionArgs& a) {
  expect_float("outA", a.out_a);
  expect_shape("outA", a.out_a, {kAny, kAny, kAny});
  expect_same("outB", a.out_b, "outA", a.out_a);
  expect_same("out", a.out, "outA", a.out_a);
  expect_dtype("lseA", a.lse_a, DType::kF32);
  expect_shape("lseA", a.lse_a, {a.out_a.size(0), a.out_a.size(1)});
  expect_same("lseB", a.lse_b, "lseA", a.lse_a);
  expect_same("lse", a.lse, "lseA", a.lse_a);
}

void check(const AttentionSinksArgs& a) {
  expect_float("out", a.out);
  expect_shape("out", a.out, {kAny, kAny, kAny});
  expect_dtype("lse", a.lse, DType::kF32);
  expect_shape("lse", a.lse, {a.out.size(0), a.out.size(1)});
  expect_dtype("sinks", a.sinks, DType::kF32);
  expect_shape("sinks", a.sinks, {a.out.size(1)});
}

void check(const StoreProbesArgs& a) {
  const bool layered = a.q.rank == 4;
  const int64_t n_layers = a.n_layers();
  expect_float("q", a.q);
  if (!layered) expect_shape("q", a.q, {kAny, kAny, kAny});
  const int64_t rows = a.q.size(layered ? 1 : 0);
  expect_dtype("lse", a.lse, DType::kF32);
  layered ? expect_shape("lse", a.lse, {n_layers, rows, a.n_heads()})
          : expect_shape("lse", a.lse, {rows, a.n_heads()});
  expect_dtype("slots", a.slots, DType::kI32);
  expect_shape("slots", a.slots, {rows});
  expect_dtype("probeQ", a.probe_q, a.q.dtype);
  layered ? expect_shape("probeQ", a.probe_q, {n_layers, kAny, a.n_heads(), a.head_dim()})
          : expect_shape("probeQ", a.probe_q, {kAny, a.n_heads(), a.head_dim()});
  expect_dtype("probeLse", a.probe_lse, DType::kF32);
  layered ? expect_shape("probeLse", a.probe_lse, {n_layers, a.capacity(), a.n_heads()})
          : expect_shape("probeLse", a.probe_lse, {a.capacity(), a.n_heads()});
}

void check(const CausalConvArgs& a) {
  expect_dtype("x", a.x, DType::kF32);
  expect_shape("x", a.x, {kAny, kAny});
  expect_dtype("weight", a.weight, DType::kF32);
  expect_shape("weight", a.weight, {a.x.size(1), kAny});
  if (a.width() < 2 || a.width() > kMaxConvWidth)
    fail(ErrorCode::kUnsupported, "weight",
         "width is " + std::to_string(a.width()) + ", expected 2 to " +
             std::to_string(kMaxConvWidth));
  if (a.bias.defined()) {
    expect_dtype("bias", a.bias, DType::kF32);
    expect_shape("bias", a.bias, {a.x.size(1)});
  }
  expect_same("out", a.out, "x", a.x);
  expect(a.out.data != a.x.data || a.x.length() == 0, "out", "is x, expected another tensor");
  expect_states(a, a.x.size(0));
  expect(a.n_heads >= 1 && a.n_heads <= kMaxHeads, "nHeads",
         "is " + std::to_string(a.n_heads) + ", expected 1 to " + std::to_string(kMaxHeads));
}

void check(const GatedDeltaArgs& a) {
  expect_dtype("out", a.out, DType::kF32);
  expect_shape("out", a.out, {kAny, kAny, kAny});
  const int64_t rows = a.out.size(0);
  const int64_t n_heads = a.n_heads();
  const int64_t value_dim = a.value_dim();
  expect_head_count("out", n_heads);
  expect_head_dim("out", value_dim, kMaxStateDim);
  expect(a.n_key_heads >= 1 && n_heads % a.n_key_heads == 0, "nKeyHeads",
         "is " + std::to_string(a.n_key_heads) + ", expected a divisor of the " +
             std::to_string(n_heads) + " value heads");
  expect_dtype("qkv", a.qkv, DType::kF32);
  expect_shape("qkv", a.qkv, {rows, kAny});
  const int64_t keys = a.qkv.size(1) - n_heads * value_dim;
  if (keys < 1 || keys % (2 * int64_t{a.n_key_heads}) != 0)
    fail(ErrorCode::kShape, "qkv",
         "rows are " + std::to_string(a.qkv.size(1)) + " wide, expected q and k of " +
             std::to_string(a.n_key_heads) + " heads, and " + std::to_string(n_heads * value_dim) +
             " for v");
  expect_state_dim("qkv", "key_dim", a.key_dim());
  expect_dtype("decay", a.decay, DType::kF32);
  expect_shape("decay", a.decay, {rows, n_heads});
  expect_dtype("beta", a.beta, DType::kF32);
  expect_shape("beta", a.beta, {rows, n_heads});
  expect_dtype("decayLog", a.decay_log, DType::kF32);
  expect_shape("decayLog", a.decay_log, {n_heads});
  expect_dtype("decayBias", a.decay_bias, DType::kF32);
  expect_shape("decayBias", a.decay_bias, {n_heads});
  expect_states(a, rows);
}

void check(const SelectiveScanArgs& a) {
  expect_dtype("out", a.out, DType::kF32);
  expect_shape("out", a.out, {kAny, kAny, kAny});
  const int64_t rows = a.out.size(0);
  const int64_t n_heads = a.n_heads();
  expect_head_count("out", n_heads);
  expect_head_dim("out", a.head_dim(), kMaxStateDim);
  expect(a.n_groups >= 1 && n_heads % a.n_groups == 0, "nGroups",
         "is " + std::to_string(a.n_groups) + ", expected a divisor of the " +
             std::to_string(n_heads) + " heads");
  expect_dtype("xbc", a.xbc, DType::kF32);
  expect_shape("xbc", a.xbc, {rows, kAny});
  const int64_t pairs = a.xbc.size(1) - a.inputs();
  if (pairs < 1 || pairs % (2 * int64_t{a.n_groups}) != 0)
    fail(ErrorCode::kShape, "xbc",
         "rows are " + std::to_string(a.xbc.size(1)) + " wide, expected " +
             std::to_string(a.inputs()) + " for x, then B and C of " + std::to_string(a.n_groups) +
             " groups");
  expect_state_dim("xbc", "state_dim", a.state_dim());
  expect_dtype("step", a.step, DType::kF32);
  expect_shape("step", a.step, {rows, n_heads});
  expect_dtype("stepBias", a.step_bias, DType::kF32);
  expect_shape("stepBias", a.step_bias, {n_heads});
  expect_dtype("decayLog", a.decay_log, DType::kF32);
  expect_shape("decayLog", a.decay_log, {n_heads});
  expect_dtype("skip", a.skip, DType::kF32);
  expect_shape("skip", a.skip, {n_heads});
  expect_states(a, rows);
}

void check(const EmbeddingArgs& a) {
  expect_dtype("ids", a.ids, DType::kI32);
  expect_shape("ids", a.ids, {kAny});
  expect_float("weight", a.weight);
  expect_shape("weight", a.weight, {kAny, kAny});
  expect_dtype("out", a.out, DType::kF32);
  expect_shape("out", a.out, {a.ids.size(0), a.column < 0 ? a.weight.size(1) : kAny});
  expect(a.column >= -1 && a.first_column() + a.out.size(1) <= a.weight.size(1), "column",
         "is " + std::to_string(a.column) + ", expected a column with " +
             std::to_string(a.out.size(1)) + " of " + std::to_string(a.weight.size(1)) +
             " from there on");
  expect_scale(a.scale);
}

void check(const RmsNormArgs& a) {
  expect_float("x", a.x);
  expect_shape("x", a.x, {kAny, kAny});
  if (a.weight.defined()) {
    expect_float("weight", a.weight);
    expect_shape("weight", a.weight, {a.x.size(1)});
  }
  expect_float("out", a.out);
  expect_shape("out", a.out, {a.x.size(0), a.x.size(1)});
  expect(std::isfinite(a.eps) && a.eps >= 0.0f, "eps", "expected a number of 0 or more");
  expect(std::isfinite(a.scale), "scale", "expected a finite number");
}

void check(const LinearArgs& a) {
  expect_float("x", a.x);
  expect_shape("x", a.x, {kAny, kAny});
  expect_weight("weight", a.weight, a.scales, a.zeros, 2, kAny, a.x.size(1));
  if (a.bias.defined()) {
    expect_float("bias", a.bias);
    expect_shape("bias", a.bias, {a.weight.size(0)});
  }
  expect_float("out", a.out);
  expect_shape("out", a.out, {a.x.size(0), a.weight.size(0)});
}

void check(const GroupedLinearArgs& a) {
  expect_float("x", a.x);
  expect_shape("x", a.x, {kAny, kAny});
  for (int i = 0; i < a.n_products; ++i) in_list("products", i, [&] { check(a.product(i)); });
}

void check(const QuantizeWeightArgs& a) {
  expect_float("x", a.x);
  expect_shape("x", a.x, {kAny, kAny});
  if (a.scales.defined() && a.scales.dtype == DType::kU8)
    expect_dtype("scales", a.scales, a.out.dtype == DType::kU8 ? DType::kF16 : DType::kF32);
  expect_weight("out", a.out, a.scales, a.zeros, 2, a.x.size(0), a.x.size(1));
}

void check(const RouteExpertsArgs& a) {
  expect_dtype("logits", a.logits, DType::kF32);
  expect_shape("logits", a.logits, {kAny, kAny});
  const int64_t n = a.logits.size(0);
  const int64_t n_experts = a.logits.size(1);
  if (n_experts < 1 || n_experts > kMaxExperts)
    fail(ErrorCode::kShape, "logits",
         std::to_string(n_experts) + " experts, expected 1 to " + std::to_string(kMaxExperts));
  if (a.correction.defined()) {
    expect_dtype("correction", a.correction, DType::kF32);
    expect_shape("correction", a.correction, {n_experts});
  }
  if (a.expert_scales.defined()) {
    expect_dtype("expertScales", a.expert_scales, DType::kF32);
    expect_shape("expertScales", a.expert_scales, {n_experts});
  }
  expect(a.least_sum >= 0.0f, "leastSum", "must be at least 0");
  expect_dtype("weights", a.weights, DType::kF32);
  expect_shape("weights", a.weights, {n, kAny});
  const int64_t n_chosen = a.weights.size(1);
  if (n_chosen < 1 || n_chosen > n_experts)
    fail(ErrorCode::kShape, "weights",
         std::to_string(n_chosen) + " experts a row, expected 1 to " + std::to_string(n_experts));
  expect_dtype("experts", a.experts, DType::kI32);
  expect_shape("experts", a.experts, {n, n_chosen});
  expect_pairs(n * n_chosen, a.pairs, n_experts, a.offsets);
}

void check(const ExpertLinearArgs& a) {
  expect_float("x", a.x);
  expect_shape("x", a.x, {kAny, kAny});
  expect_weight("weight", a.weight, a.scales, a.zeros, 3, kAny, a.x.size(1));
  if (a.n_experts() < 1 || a.n_experts() > kMaxExperts)
    fail(ErrorCode::kShape, "weight",
         std::to_string(a.n_experts()) + " experts, expected 1 to " + std::to_string(kMaxExperts));
  if (a.bias.defined()) {
    expect_float("bias", a.bias);
    expect_shape("bias", a.bias, {a.n_experts(), a.weight.size(1)});
  }
  expect_pairs(kAny, a.pairs, a.n_experts(), a.offsets);
  const int64_t m = a.x.size(0);
  if (m == 0 ? a.n_pairs() > 0 : a.n_pairs() % m != 0)
    fail(ErrorCode::kShape, "pairs",
         std::to_string(a.n_pairs()) + " of them, expected a multiple of the " + std::to_string(m) +
             " rows of x");
  expect_float("out", a.out);
  expect_shape("out", a.out, {a.n_pairs(), a.weight.size(1)});
}

void check(const AddExpertsArgs& a) {
  expect_dtype("weights", a.weights, DType::kF32);
  expect_shape("weights", a.weights, {kAny, kAny});
  expect_dtype("x", a.x, DType::kF32);
  expect_shape("x", a.x, {a.weights.length(), kAny});
  expect_dtype("out", a.out, DType::kF32);
  expect_shape("out", a.out, {a.weights.size(0), a.x.size(1)});
}

void check(const RopeTableArgs& a) {
  expect_dtype("positions", a.positions, DType::kI32);
  expect_shape("positions", a.positions, {kAny});
  expect_dtype("invFreq", a.inv_freq, DType::kF32);
  expect_shape("invFreq", a.inv_freq, {kAny});
  expect_dtype("cos", a.cos, DType::kF32);
  expect_shape("cos", a.cos, {a.positions.size(0), a.inv_freq.size(0)});
  expect_same("sin", a.sin, "cos", a.cos);
  expect(a.period >= 1, "period", "must be at least 1");
}

void check(const RopeArgs& a) {
  expect_float("x", a.x);
  expect_shape("x", a.x, {kAny, kAny, kAny});
  if (a.x.size(2) % 2 != 0) fail(ErrorCode::kShape, "x", "head_dim is odd, expected even");
  expect_turns(a.cos, a.sin, a.x.size(0), a.x.size(2));
  expect_float("out", a.out);
  expect_shape("out", a.out, {a.x.size(0), a.x.size(1), a.x.size(2)});
}

void check(const GateArgs& a) {
  expect_float("gate", a.gate);
  expect_shape("gate", a.gate, {kAny, kAny});
  expect_same("up", a.up, "gate", a.gate);
  expect_float("out", a.out);
  expect_shape("out", a.out, {a.gate.size(0), a.gate.size(1)});
}

void check(const ClampedSwigluArgs& a) {
  check(a.rows());
  expect(std::isfinite(a.alpha), "alpha", "expected a finite number");
  expect(std::isfinite(a.limit) && a.limit > 0.0f, "limit",
         "is " + std::to_string(a.limit) + ", expected a positive number");
}

void check(const SigmoidGateArgs& a) {
  expect_dtype("gate", a.gate, DType::kF32);
  expect_shape("gate", a.gate, {kAny, kAny});
  expect_float("x", a.x);
  expect_shape("x", a.x, {a.gate.size(0), a.gate.size(1)});
  expect_same("out", a.out, "x", a.x);
}

void check(const SoftCapArgs& a) {
  expect_dtype("x", a.x, DType::kF32);
  expect_shape("x", a.x, {kAny, kAny});
  expect_same("out", a.out, "x", a.x);
  expect(std::isfinite(a.cap) && a.cap > 0.0f, "cap",
         "is " + std::to_string(a.cap) + ", expected a positive number");
}

void check(const SampleArgs& a) {
  expect_dtype("logits", a.logits, DType::kF32);
  expect_shape("logits", a.logits, {kAny, kAny});
  if (a.logits.size(1) < 1) fail(ErrorCode::kShape, "logits", "the vocabulary is empty");
  expect_dtype("params", a.params, DType::kF32);
  expect_shape("params", a.params, {a.logits.size(0), kSampleParams});
  expect_dtype("seen", a.seen, DType::kU8);
  expect_shape("seen", a.seen, {kAny, a.logits.size(1)});
  expect_dtype("contexts", a.contexts, DType::kI32);
  expect_shape("contexts", a.contexts, {a.logits.size(0)});
  expect_dtype("ids", a.ids, DType::kI32);
  expect_shape("ids", a.ids, {a.logits.size(0)});
  expect_dtype("logprobs", a.logprobs, DType::kF32);
  expect_shape("logprobs", a.logprobs, {a.logits.size(0)});
}

void check(const FeedTokensArgs& a) {
  expect_dtype("sampled", a.sampled, DType::kI32);
  expect_shape("sampled", a.sampled, {kAny});
  expect_dtype("source", a.source, DType::kI32);
  expect_shape("source", a.source, {kAny});
  expect_same("given", a.given, "source", a.source);
  expect_same("out", a.out, "source", a.source);
}

void check(const ConvertArgs& a) {
  expect_float("x", a.x);
  expect_float("out", a.out);
  if (a.x.rank != a.out.rank || a.x.shape != a.out.shape)
    fail(ErrorCode::kShape, "out",
         "shape is " + shape_text(a.out) + ", expected that of x, " + shape_text(a.x));
}

void check(const GatherRowsArgs& a) {
  expect_float("x", a.x);
  expect_shape("x", a.x, {kAny, kAny});
  expect_dtype("rows", a.rows, DType::kI32);
  expect_shape("rows", a.rows, {kAny});
  expect_dtype("out", a.out, a.x.dtype);
  expect_shape("out", a.out, {a.rows.size(0), a.x.size(1)});
}

void check(const CountNonFiniteArgs& a) {
  expect_float("x", a.x);
  expect_dtype("count", a.count, DType::kI32);
  expect_shape("count", a.count, {1});
}

void check(const ReadStreamArgs& a) {
  expect_dtype("x", a.x, DType::kI32);
  expect_shape("x", a.x, {kAny});
  expect_dtype("out", a.out, DType::kI32);
  expect_shape("out", a.out, {kAny});
}

void check(const MultiplyAddArgs& a) {
  expect_dtype("x", a.x, DType::kF32);
  expect_shape("x", a.x, {kAny, kAny});
  expect_same("out", a.out, "x", a.x);
  expect(a.steps >= 0, "steps", "is " + std::to_string(a.steps) + ", expected 0 or more");
}

}  // namespace zc
