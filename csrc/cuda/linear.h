#pragma once

#include <cstdint>

#include "csrc/core/dtype.h"
#include "csrc/cuda/device/vector.h"
#include "csrc/cuda/expert_rows.h"
#include "csrc/cuda/kernel.h"

// What the kernels of `linear` share. A product of two rows is summed in one order for any number
// of rows and columns: k is cut into at most four parts, which depend on k alone; a part is added
// up from its first element to its last, and the parts are added in order. How a kernel spreads the
// work over blocks, warps and lanes decides nothing else, so a row has the same bits alone, in a
// batch and in any slice of a prompt.
namespace zc::cuda {

inline constexpr int kMaxParts = 4;

// Elements of k in a part, a multiple of 64.
inline int part_length(int64_t k) {
  constexpr int64_t kLeast = 1024;
  const int64_t quarter = ((k + kMaxParts - 1) / kMaxParts + 63) / 64 * 64;
  return static_cast<int>(quarter > kLeast ? quarter : kLeast);
}
// At least one, which may be empty.
inline int part_count(int64_t k) {
  const int64_t length = part_length(k);
  return k == 0 ? 1 : static_cast<int>((k + length - 1) / length);
}

ZC_DEVICE float load_any(const void* from, DType dtype, int64_t i) {
  if (dtype == DType::kF32) return static_cast<const float*>(from)[i];
  if (dtype == DType::kF16) return to_float(static_cast<const f16*>(from)[i]);
  return to_float(static_cast<const bf16*>(from)[i]);
}

ZC_DEVICE void store_any(void* to, DType dtype, int64_t i, float x) {
  if (dtype == DType::kF32)
    static_cast<float*>(to)[i] = x;
  else if (dtype == DType::kF16)
    static_cast<f16*>(to)[i] = from_float<f16>(x);
  else
    static_cast<bf16*>(to)[i] = from_float<bf16>(x);
}

// What becomes of sums: out = sum scale + bias (+ what was there), rounded to out's type. Types are
// looked at while running: a result is written once for k products.
struct LinearOut {
  void* out;            // (m, n) of rows of `stride`
  const float* scales;  // (n), or null
  const void* bias;     // (n), or null
  int64_t m;
  int64_t n;
  int64_t stride;
  int64_t params_stride;  // from an expert's scales and bias to the next one's
  DType out_dtype;
  DType bias_dtype;
  bool accumulate;
  bool vectors;  // four neighbours of a row can be written at once

  ZC_DEVICE float finished(int64_t column, float sum) const {
    if (scales != nullptr) sum = __fmul_rn(sum, scales[column]);  // alike in every kernel
    return bias != nullptr ? sum + load_any(bias, bias_dtype, column) : sum;
  }
  ZC_DEVICE void write(int64_t row, int64_t column, float sum) const {
    float y = finished(column, sum);
    const int64_t at = row * stride + column;
    if (accumulate) y = load_any(out, out_dtype, at) + y;
    store_any(out, out_dtype, at, y);
  }
  // Four neighbours, as far as the row has them. column is a multiple of 4.
  ZC_DEVICE void write4(int64_t row, int64_t column, const float (&sums)[4]) const {
    if (!vectors || column + 4 > n) {
      ZC_UNROLL for (int i = 0; i < 4; ++i) if (column + i < n) write(row, column + i, sums[i]);
      return;
    }
    float y[4];
    ZC_UNROLL for (int i = 0; i < 4; ++i) y[i] = finished(column + i, sums[i]);
    const int64_t at = row * stride + column;
    if (accumulate) {
      float before[4];
      read_vector(at, before);
      ZC_UNROLL for (int i = 0; i < 4; ++i) y[i] = before[i] + y[i];
    }
    write_vector(at, y);
  }

  // Four neighbours that can be read and written at once, from element `at` on.
  ZC_DEVICE void read_vector(int64_t at, float (&y)[4]) const {
    if (out_dtype == DType::kF32) {
      const float4 quad = *reinterpret_cast<const float4*>(static_cast<const float*>(out) + at);
      y[0] = quad.x, y[1] = quad.y, y[2] = quad.z, y[3] = quad.w;
      return;
    }
    const uint2 pairs = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(out) + at);
    const uint32_t words[2] = {pairs.x, pairs.y};
    ZC_UNROLL for (int i = 0; i < 2; ++i) {
      const bool is_f16 = out_dtype == DType::kF16;
      y[2 * i] = is_f16 ? low_half(words[i], f16{}) : low_half(words[i], bf16{});
      y[2 * i + 1] = is_f16 ? high_half(words[i], f16{}) : high_half(words[i], bf16{});
    }
  }
  ZC_DEVICE void write_vector(int64_t at, const float (&y)[4]) const {
    if (out_dtype == DType::kF32) {
      *reinterpret_cast<float4*>(static_cast<float*>(out) + at) =
          make_float4(y[0], y[1], y[2], y[3]);
      return;
    }
    const uint2 pairs =
        out_dtype == DType::kF16
            ? make_uint2(join_halves<f16>(y[0], y[1]), join_halves<f16>(y[2], y[3]))
            : make_uint2(join_halves<bf16>(y[0], y[1]), join_halves<bf16>(y[2], y[3]));
    *reinterpret_cast<uint2*>(static_cast<uint16_t*>(out) + at) = pairs;
  }
};

// Columns [first, last) of it; first is a multiple of 4.
inline LinearOut columns_of(LinearOut out, int64_t first, int64_t last) {
  out.out = static_cast<uint8_t*>(out.out) + first * dtype_size(out.out_dtype);
  if (out.scales != nullptr) out.scales += first;
  if (out.bias != nullptr)
    out.bias = static_cast<const uint8_t*>(out.bias) + first * dtype_size(out.bias_dtype);
  out.n = last - first;
  return out;
}

// Of an expert, where scales and bias are those of all.
ZC_DEVICE LinearOut of_expert(LinearOut out, int expert) {
  const int64_t first = expert * out.params_stride;
  if (out.scales != nullptr) out.scales += first;
  if (out.bias != nullptr)
    out.bias =
        static_cast<const uint8_t*>(out.bias) + first * (out.bias_dtype == DType::kF32 ? 4 : 2);
  return out;
}

inline LinearOut linear_out(const LinearArgs& a) {
  LinearOut out{};
  out.out = a.out.data;
  out.scales = a.weight.dtype == DType::kI8 ? a.scales.as<float>() : nullptr;
  out.bias = a.bias.defined() ? a.bias.data : nullptr;
  out.m = a.out.size(0);
  out.n = a.out.size(1);
  out.stride = out.n;
  out.params_stride = out.n;
  out.out_dtype = a.out.dtype;
  out.bias_dtype = a.bias.dtype;
  out.accumulate = a.accumulate;
  out.vectors = address_bits(a.out.data) % 16 == 0 && out.n % 4 == 0;
  return out;
}

// Blocks of a grid that share the parts of one tile of the result.
struct Split {
  int groups;           // blocks along k; with one, parts are added up in registers
  int parts_per_group;  // of the n_parts
  int n_parts;
  float4* sums;       // (tiles, n_parts, quads, threads): with more, each part's sums
  int32_t* arrivals;  // (tiles), zero

  int64_t bytes(int64_t tiles, int quads, int threads) const {
    if (groups == 1) return 0;
    return tiles * n_parts * quads * threads * static_cast<int64_t>(sizeof(float4));
  }
};

// So many groups that `slots` blocks, which run at once, have work.
inline Split split_parts(int64_t k, int64_t tiles, int64_t slots) {
  Split split{};
  split.n_parts = part_count(k);
  int64_t groups = tiles * 4 >= slots * 3 ? 1 : slots / tiles;
  if (groups > split.n_parts) groups = split.n_parts;
  split.parts_per_group = static_cast<int>((split.n_parts + groups - 1) / groups);
  split.groups = (split.n_parts + split.parts_per_group - 1) / split.parts_per_group;
  return split;
}

// A part's sums, in scratch for those who will be last. `thread` is one of the `n_threads` that
// share the tile.
template <int kQuads>
ZC_DEVICE void store_part(const Split& split, int64_t tile, int part,
                          const float (&sums)[kQuads][4], int thread, int n_threads) {
  float4* to = split.sums + (tile * split.n_parts + part) * kQuads * n_threads + thread;
  ZC_UNROLL for (int q = 0; q < kQuads; ++q) to[q * n_threads] =
      make_float4(sums[q][0], sums[q][1], sums[q][2], sums[q][3]);
}

// Whether these threads are the last ones of their tile to come here: they then see what all others
// have stored. `is_last` is a word of shared memory, `sync` their barrier.
template <typename Sync>
ZC_DEVICE bool arrive_last(const Split& split, int64_t tile, int* is_last, bool leads,
                           const Sync& sync) {
  __threadfence();
  sync();
  if (leads) {
    *is_last = atomicAdd(split.arrivals + tile, 1) == split.groups - 1;
    if (*is_last) atomicExch(split.arrivals + tile, 0);
  }
  sync();
  __threadfence();
  return *is_last != 0;
}

// The sum of all parts, in order.
template <int kQuads>
ZC_DEVICE void add_parts(const Split& split, int64_t tile, float (&total)[kQuads][4], int thread,
                         int n_threads) {
  const float4* from = split.sums + tile * split.n_parts * kQuads * n_threads + thread;
  for (int part = 0; part < split.n_parts; ++part) ZC_UNROLL for (int q = 0; q < kQuads; ++q) {
      const float4 x = from[(part * kQuads + q) * static_cast<int64_t>(n_threads)];
      total[q][0] = part == 0 ? x.x : total[q][0] + x.x;
      total[q][1] = part == 0 ? x.y : total[q][1] + x.y;
      total[q][2] = part == 0 ? x.z : total[q][2] + x.z;
      total[q][3] = part == 0 ? x.w : total[q][3] + x.w;
    }
}

// The same where a whole block shares a tile.
template <int kQuads>
ZC_DEVICE void store_part(const Split& split, int64_t tile, int part,
                          const float (&sums)[kQuads][4]) {
  store_part(split, tile, part, sums, threadIdx.x, blockDim.x);
}
ZC_DEVICE bool arrive_last(const Split& split, int64_t tile, int* is_last) {
  return arrive_last(split, tile, is_last, threadIdx.x == 0, [] { __syncthreads(); });
}
template <int kQuads>
ZC_DEVICE void add_parts(const Split& split, int64_t tile, float (&total)[kQuads][4]) {
  add_parts(split, tile, total, threadIdx.x, blockDim.x);
}

// csrc/cuda/kernels/linear_f32.cu: weights of float; of experts, `a` is the first one's product.
void linear_f32(Context& context, const LinearArgs& a, const AllRows& rows);
void linear_f32(Context& context, const LinearArgs& a, const ExpertRows& rows);

}  // namespace zc::cuda
