#include "csrc/cuda/device/byte_codes.h"
#include "csrc/cuda/device/nibble_codes.h"
#include "csrc/cuda/linear_16.h"

namespace zc::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kCodes = 16;    // of a thread: one vector of them, two of T
constexpr int kNibbles = 32;  // the like of 4 bits: one vector of them, four of T

// out = codes as T; a row of blocks takes those of one matrix. Bound by memory.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    widen_codes_kernel(const int8_t* codes, T* out, WidenedCodes shape, bool vectors) {
  simt::let_next_begin();
  simt::wait_for_kernels_before();
  const int64_t n = shape.n;
  codes += blockIdx.y * shape.step;
  out += blockIdx.y * n;
  const int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kCodes;
  if (at >= n) return;
  if (vectors && at + kCodes <= n) {
    const uint4 four = *reinterpret_cast<const uint4*>(codes + at);
    const uint32_t words[4] = {four.x, four.y, four.z, four.w};
    uint32_t pairs[8];
    ZC_UNROLL for (int i = 0; i < 4; ++i) {
      pairs[2 * i] = pair_of_codes(words[i] & 0xffffu, T{});
      pairs[2 * i + 1] = pair_of_codes(words[i] >> 16, T{});
    }
    uint4* const to = reinterpret_cast<uint4*>(out + at);
    to[0] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    to[1] = make_uint4(pairs[4], pairs[5], pairs[6], pairs[7]);
    return;
  }
  for (int64_t i = at; i < n && i < at + kCodes; ++i)
    out[i] = from_float<T>(static_cast<float>(codes[i]));
}

// The same of the values of codes of 4 bits, of whole rows. A thread takes one half of a unit:
// eight neighbours of each of four times sixteen. Bound by memory.
template <typename T, typename W>
__global__ void __launch_bounds__(kThreads)
    widen_nibbles_kernel(const W* codes, Grids<W> grids, T* out, WidenedCodes shape, bool vectors) {
  simt::let_next_begin();
  simt::wait_for_kernels_before();
  const int64_t n = shape.n;
  codes += blockIdx.y * shape.step / 2;
  out += blockIdx.y * n;
  const int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kNibbles;
  if (at >= n) return;
  uint32_t words[4] = {};
  if (vectors) {
    const uint4 four = *reinterpret_cast<const uint4*>(codes + at / 2);
    words[0] = four.x, words[1] = four.y, words[2] = four.z, words[3] = four.w;
  } else {
    ZC_UNROLL for (int i = 0; i < 16; ++i) words[i / 4] |=
        static_cast<uint32_t>(codes[at / 2 + i].bits) << 8 * (i % 4);
  }
  const int64_t unit = at / kUnit * kUnit;
  const int64_t first_group = blockIdx.y * shape.step >> grids.shift;
  T* const to = out + unit + at % kUnit / 4;
  ZC_UNROLL for (int two = 0; two < 2; ++two) {  // a group has 32 elements at least
    const auto grid = grid_pair(grids.at(first_group + ((unit + 32 * two) >> grids.shift)), T{});
    ZC_UNROLL for (int j = 2 * two; j < 2 * two + 2; ++j) {
      uint32_t pairs[4];
      ZC_UNROLL for (int i = 0; i < 4; ++i) pairs[i] = value_pair(words[i], j, grid, T{});
      *reinterpret_cast<uint4*>(to + 16 * j) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
  }
}

}  // namespace

namespace {

dim3 blocks_of(const WidenedCodes& shape, int64_t codes_of_block) {
  return {blocks_for(shape.n, codes_of_block), static_cast<unsigned>(shape.count)};
}

}  // namespace

template <typename T>
void widen_codes(Context& context, const int8_t* codes, const Grids<int8_t>&,
                 const WidenedCodes& shape, T* out) {
  const auto strides = static_cast<uint64_t>(shape.count > 1 ? shape.step | 2 * shape.n : 0);
  const bool vectors = (address_bits(codes) | address_bits(out) | strides) % 16 == 0;
  launch_early(context, &widen_codes_kernel<T>, blocks_of(shape, kThreads * kCodes), kThreads, 0,
               codes, out, shape, vectors);
}

template <typename T, typename W>
void widen_codes(Context& context, const W* codes, const Grids<W>& grids, const WidenedCodes& shape,
                 T* out) {
  const bool vectors = address_bits(codes) % 16 == 0;  // rows are whole units of 32 bytes
  launch_early(context, &widen_nibbles_kernel<T, W>, blocks_of(shape, kThreads * kNibbles),
               kThreads, 0, codes, grids, out, shape, vectors);
}

#define ZC_WIDEN(T, W) \
  template void widen_codes(Context&, const W*, const Grids<W>&, const WidenedCodes&, T*);
ZC_WIDEN(f16, int8_t)
ZC_WIDEN(bf16, int8_t)
ZC_WIDEN(f16, Nibbles)
ZC_WIDEN(bf16, Nibbles)
ZC_WIDEN(f16, Float4s)
ZC_WIDEN(bf16, Float4s)
#undef ZC_WIDEN

}  // namespace zc::cuda
