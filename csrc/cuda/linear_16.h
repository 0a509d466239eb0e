#pragma once

#include <cstdint>
#include <type_traits>

#include "csrc/cuda/device/nibble_codes.h"
#include "csrc/cuda/linear.h"

// Products with weights of 16 bits. They meet x in the tensor cores, as the first operand of
// mma.m16n8k16: 16 rows of the weight, 8 rows of x, so that one row of x wastes little; for prompts
// on Hopper as the second of wgmma, 256 by 64. Every kernel gives either the same 16 elements of k
// at a time, in order, which makes a row's bits the same in all of them.
//
// x must be of the weight's type. Where it is not, a row of x becomes up to three rows, its planes,
// whose sum is the row, and the rows of the result are added up again in the end: no product loses
// more than float would.
namespace zc::cuda {

inline constexpr int kDepth = 64;             // of k, in shared memory at a time
inline constexpr int kRowBytes = kDepth * 2;  // of a row of such a panel: 8 chunks of 16 bytes
inline constexpr int kChunk = 8;              // elements of a chunk

// Where a chunk of a panel's row lies. The chunks of eight rows lie in different banks, whether a
// row is written or a column of chunks is read (ldmatrix).
ZC_DEVICE uint32_t panel_offset(int row, int chunk) {
  return static_cast<uint32_t>(row * kRowBytes + ((chunk ^ (row & 7)) << 4));
}

// Planes that a row of x takes.
template <typename X, typename T>
inline constexpr int kPlanes = 1;
template <>
inline constexpr int kPlanes<float, bf16> = 3;  // 24 bits are 8 + 8 + 8
template <>
inline constexpr int kPlanes<f16, bf16> = 2;  // 11 are 8 + 3
template <>
inline constexpr int kPlanes<float, f16> = 2;  // 22 of 24
// f16 holds no large numbers: what a row has of a part of k is scaled by a power of two that brings
// its largest element just below 2^15.
template <typename X, typename T>
inline constexpr bool kScaled = std::is_same_v<T, f16> && !std::is_same_v<X, f16>;

struct PlaneScale {
  float to;    // of the planes: 2^-113 to 2^126
  float back;  // of their products
};

// `most`: bits of the largest |x| that is finite.
ZC_DEVICE PlaneScale plane_scale(uint32_t most) {
  const int exponent = static_cast<int>(most >> 23) - 127;
  const int shift = most == 0 ? 0 : min(14 - exponent, 126);
  return {bits_to_float(static_cast<uint32_t>(127 + shift) << 23),
          bits_to_float(static_cast<uint32_t>(127 - shift) << 23)};
}

ZC_DEVICE bool is_finite(float x) { return (float_to_bits(x) & 0x7f800000u) != 0x7f800000u; }

// Bits of the largest finite |x|, and of `most`.
ZC_DEVICE uint32_t largest_bits(const float (&x)[kVector], uint32_t most) {
  ZC_UNROLL for (int j = 0; j < kVector; ++j) if (is_finite(x[j])) most =
      max(most, float_to_bits(x[j]) & 0x7fffffffu);
  return most;
}

ZC_DEVICE uint4 join_bits(const uint32_t (&bits)[kVector]) {
  return make_uint4(bits[0] | bits[1] << 16, bits[2] | bits[3] << 16, bits[4] | bits[5] << 16,
                    bits[6] | bits[7] << 16);
}

// What planes are taken of: x, scaled where it has to be. A NaN of float is made one that its upper
// bits alone tell from an infinity; one that was a half's is.
template <typename X, typename T>
ZC_DEVICE float whole_of_planes(float x, const PlaneScale& scale) {
  if constexpr (kScaled<X, T>)
    return x * scale.to;
  else if constexpr (std::is_same_v<X, float>)
    return x == x ? x : bits_to_float(0x7fc00000u);
  else
    return x;
}

// A plane's share of `rest`, which keeps what is left for the planes after it. bf16: the bits are
// cut off, not rounded, so that what is left has eight less; f16: rounded. What is no number is in
// the first plane alone.
ZC_DEVICE uint4 take_plane(float (&rest)[kVector], bf16) {
  uint32_t bits[kVector];
  ZC_UNROLL for (int j = 0; j < kVector; ++j) {
    bits[j] = float_to_bits(rest[j]) >> 16;
    const float left = rest[j] - bits_to_float(bits[j] << 16);
    rest[j] = left == left ? left : 0.0f;  // inf - inf, NaN - NaN
  }
  return join_bits(bits);
}
ZC_DEVICE uint4 take_plane(float (&rest)[kVector], f16) {
  uint32_t bits[kVector];
  ZC_UNROLL for (int j = 0; j < kVector; ++j) {
    const f16 taken = to_f16(rest[j]);
    bits[j] = taken.bits;
    rest[j] = is_finite(rest[j]) ? rest[j] - to_float(taken) : 0.0f;
  }
  return join_bits(bits);
}

// The type in which codes are multiplied. Either holds those of 8 bits exactly; values of integers
// of 4 bits are rounded to it, so that float meets them in f16, the finer one. bf16 holds float4
// times any power of two.
template <typename W, typename X>
using CodeProduct = std::conditional_t<
    std::is_same_v<X, f16> || (std::is_same_v<X, float> && std::is_same_v<W, Nibbles>), f16, bf16>;

// What is multiplied: weight (n, k) and x (rows, x_stride), X being T if x holds planes of a row
// one after another, else its own type. W is T, or int8_t, Nibbles or Float4s for codes, which
// become T.
template <typename T, typename X = T, typename W = T>
struct Operands {
  const W* weight;
  Grids<W> grids;
  const X* x;
  const float* scales;  // (rows of out, parts): `back` of planes that were scaled; else null
  int64_t n;
  int64_t k;
  int64_t x_rows;  // planes
  int64_t x_stride;
  int planes;  // of a row
  int part_length;
  bool vectors;    // rows of the weight are aligned to 16 bytes
  bool x_vectors;  // rows of x are; always where X is T
};

template <typename W>
Grids<W> grids_of(const LinearArgs& a) {
  Grids<W> grids{};
  if constexpr (std::is_same_v<W, Nibbles>) {
    grids.scales = a.scales.as<f16>();
    grids.zeros = a.zeros.as<uint8_t>();
    while (int64_t{1} << grids.shift < a.group()) ++grids.shift;
  } else if constexpr (std::is_same_v<W, Float4s>) {
    grids.exponents = a.scales.as<uint8_t>();
  }
  return grids;
}

// Whether rows of k elements of a weight can be read 16 bytes at a time.
template <typename W>
bool weight_in_vectors(const W* weight, int64_t k) {
  return (address_bits(weight) | static_cast<uint64_t>(k) * sizeof(W) / kElementsOf<W>) % 16 == 0;
}

ZC_DEVICE uint32_t byte_of(int8_t code) { return static_cast<uint32_t>(code) & 0xffu; }
ZC_DEVICE uint32_t byte_of(Nibbles codes) { return codes.bits; }
ZC_DEVICE uint32_t byte_of(Float4s codes) { return codes.bits; }

// Writes 16 bytes of shared memory: the first n elements behind `from`, zeros for the rest. Of
// codes of 4 bits n is a multiple of 32.
template <typename Element>
ZC_DEVICE void copy_elements(unsigned char* to, const Element* from, int64_t n) {
  uint32_t words[4];
  ZC_UNROLL for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(Element) == 1) {
      words[i] = 0;
      ZC_UNROLL for (int j = 0; j < 4; ++j) if ((4 * i + j) * kElementsOf<Element> < n) words[i] |=
          byte_of(from[4 * i + j]) << 8 * j;
    } else if constexpr (sizeof(Element) == 4) {
      words[i] = i < n ? float_to_bits(from[i]) : 0;
    } else {
      const uint32_t low = 2 * i < n ? from[2 * i].bits : 0;
      const uint32_t high = 2 * i + 1 < n ? from[2 * i + 1].bits : 0;
      words[i] = low | high << 16;
    }
  }
  *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
}

// Brings a chunk to shared memory, zeros from k on: `from` is element c of a row.
template <typename T, typename X>
ZC_DEVICE void copy_weight(const Operands<T, X>& in, unsigned char* to, const T* from, int64_t c) {
  if (in.vectors)
    simt::cp_async_16(simt::smem_u32(to), from, c < in.k ? 16 : 0);
  else
    copy_elements(to, from, in.k - c);
}
template <typename T>
ZC_DEVICE void copy_x(const Operands<T>& in, unsigned char* to, const T* from, int64_t c) {
  simt::cp_async_16(simt::smem_u32(to), from, c < in.x_stride ? 16 : 0);
}

// What a kernel of a product does first: brings `lines` lines of 128 bytes of each of its `rows`
// rows of the weight, from `from` to k_end, to L2, and waits for the kernels before it. Only L2 may
// see the weight before that: one of those kernels may have made it. Called by `threads` threads
// that share the rows. The next kernel is let begin late or not at all: blocks that wait where
// others have yet to come take their shared memory, and come to lie two on one multiprocessor with
// none on another (an H200 took 36 us longer for a layer of a decode step so).
template <typename T>
ZC_DEVICE void begin_product(const T* from, int64_t row_stride, int rows, int lines,
                             int64_t k_begin, int64_t k_end, int own, int threads) {
  ZC_NO_UNROLL for (int line = 0; line < lines && k_begin + line * kDepth < k_end; ++line)
      ZC_NO_UNROLL for (int row = own; row < rows; row += threads)
          simt::prefetch_l2(from + row * row_stride + k_begin + line * kDepth);
  simt::wait_for_kernels_before();
}

// ---- csrc/cuda/kernels/linear_*.cu ----

// Planes (m kPlanes, stride) of x, and where they are scaled scales (m, parts).
template <typename X, typename T>
void linear_planes(Context& context, const TensorView& x, int64_t stride, T* planes, float* scales);

// Up to so many planes are a few.
inline constexpr int kFewPlanes = 16;
// Products of one x that share a launch, each of a weight (n, k) of its own.
template <typename W>
struct Products {
  struct Product {
    const W* weight;
    Grids<W> grids;
    int64_t n;
    unsigned end_block;  // blocks of this product and of those before it
    LinearOut out;
  };
  Product of[kMaxProducts];
  int count;
};
// `in` says all but the weights, what `vectors` says holds for all of them. Rows of experts are of
// one product.
template <typename T, typename X, typename W, typename Rows>
void linear_few_rows(Context& context, const Operands<T, X, W>& in, const Products<W>& products,
                     const Rows& rows);
template <typename T, typename X, typename W, typename Rows>
void linear_few_rows(Context& context, const Operands<T, X, W>& in, const LinearOut& out,
                     const Rows& rows) {
  linear_few_rows(context, in, Products<W>{{{in.weight, in.grids, in.n, 0, out}}, 1}, rows);
}

// Codes that become values: n from each of `count` matrices, whose first elements lie `step` apart.
struct WidenedCodes {
  int64_t n;
  int64_t step;
  int count;
};
// out (count, n) = codes as T; those of 4 bits are values of whole rows, from a row's first element
// on.
template <typename T>
void widen_codes(Context& context, const int8_t* codes, const Grids<int8_t>& grids,
                 const WidenedCodes& shape, T* out);
template <typename T, typename W>
void widen_codes(Context& context, const W* codes, const Grids<W>& grids, const WidenedCodes& shape,
                 T* out);

// How tiles cover the result, for more planes than a few.
struct Tiling {
  enum class Form { kMma, kWgmma };
  Form form;
  int tile_rows;  // planes of a tile
  int tile_columns;
  int64_t m_tiles;
  int64_t tiles;
  Split split;
  int64_t bytes;  // of scratch
};
template <typename T, typename Rows>
void linear_tiles(Context& context, const Operands<T>& in, Tiling tiling, void* scratch,
                  const LinearOut& out, const Rows& rows);
Tiling tile_experts(const ExpertRows& rows, int64_t n, int64_t k, int planes);
Tiling tile_result(const Context& context, int64_t m, int64_t n, int64_t k, int planes);

// Whether prompts are multiplied by wgmma where there is one. That keeps a row's bits as they are
// if 16 products are added to a sum alike by wgmma and by mma.m16n8k16, as the models of arXiv
// 2511.10909 say of Hopper, and the emulator does. Where the contract suite of linear finds other
// bits on a GPU, this becomes false: then the kernel is never launched.
inline constexpr bool kWgmmaProducts = true;

// linear_hopper.cu takes more than kMmaPlanes planes of x. Up to 64, reading the weight bounds a
// product: 64 rows do 64 operations for a byte of it, and an H200 can do some 180 in the time of
// one. There two blocks of linear_tiles on a multiprocessor read as fast, and half of a wgmma tile
// of 128 rows would be empty. From 65 on linear_tiles has one block with 64 KB on its way, a wgmma
// tile 96 to 160 KB.
inline constexpr int kMmaPlanes = 64;
// Tensor copies ask for rows of the weight (`vectors`) and of x, which always are, at multiples of
// 16 bytes, and count coordinates in 32 bits.
bool takes_wgmma(const Context& context, int64_t x_rows, int64_t n, int64_t k, bool vectors);
template <typename T>
void linear_hopper(Context& context, const Operands<T>& in, Tiling tiling, void* scratch,
                   const LinearOut& out);
Tiling hopper_result(const Context& context, int64_t m, int64_t n, int64_t k, int planes);

}  // namespace zc::cuda
