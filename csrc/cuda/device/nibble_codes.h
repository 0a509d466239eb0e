#pragma once

#include "csrc/cuda/device/simt.h"
#include "csrc/math/float4_weight.h"

// Weights of 4 bits, of which a group of a row's elements shares a grid: value = (code - zero)
// scale, or float4 times a power of two. They become operands of 16 bits, the value rounded to
// them, by one function for all kernels: a row has the same bits in a prompt.
namespace zc::cuda {

// A byte of codes, two of them. A row is made of units of 64 codes, 16 half words: half word l has
// elements 16 j + l of its unit in bits 4 j to 4 j + 3. So a word has two neighbours of each of
// four times sixteen, as the operand of mma.m16n8k16 has them.
struct Nibbles {  // integers
  uint8_t bits;
};
struct Float4s {
  uint8_t bits;
};
inline constexpr int kUnit = 64;

// Elements that one W holds.
template <typename W>
inline constexpr int kElementsOf = 1;
template <>
inline constexpr int kElementsOf<Nibbles> = 2;
template <>
inline constexpr int kElementsOf<Float4s> = 2;
// Whether it has grids.
template <typename W>
inline constexpr bool kHasGrids = kElementsOf<W> == 2;

// The grids (n, k / group) of a weight (n, k) of 4 bits; other weights have none. `Grid` is one as
// it is stored, `Pair` what value_pair takes, `shift` says that 2^shift elements are a group.
template <typename W>
struct Grids {
  struct Pair {};
  // Of the rows from `row` on.
  ZC_HD Grids behind(int64_t, int64_t) const { return {}; }
};
template <>
struct Grids<Nibbles> {
  struct Grid {
    f16 scale;
    uint8_t zero;
  };
  // As operands, each twice: -(c + zero) for a c that stands in front of a code, and the scale.
  struct alignas(8) Pair {
    uint32_t zero;
    uint32_t scale;
  };
  const f16* scales;
  const uint8_t* zeros;
  int shift;  // 5, 6 or 7

  ZC_HD Grids behind(int64_t row, int64_t k) const {
    const int64_t groups = row * (k >> shift);
    return {scales + groups, zeros + groups, shift};
  }
  ZC_DEVICE Grid at(int64_t group) const { return {scales[group], zeros[group]}; }
};
template <>
struct Grids<Float4s> {
  using Grid = uint8_t;   // the exponent of its power of two, as float8_power takes it
  using Pair = uint32_t;  // the power as an operand, twice
  const uint8_t* exponents;
  static constexpr int shift = 5;
  static_assert(1 << shift == kFloat4Group);

  ZC_HD Grids behind(int64_t row, int64_t k) const { return {exponents + row * (k >> shift)}; }
  ZC_DEVICE Grid at(int64_t group) const { return exponents[group]; }
};

ZC_DEVICE Grids<Nibbles>::Pair grid_pair(Grids<Nibbles>::Grid grid, f16) {
  const uint32_t zero = grid.zero;
  return {zero * 0x10001u | 0xe400e400u, grid.scale.bits * 0x10001u};  // c = 1024
}
ZC_DEVICE Grids<Nibbles>::Pair grid_pair(Grids<Nibbles>::Grid grid, bf16) {
  const uint32_t zero = grid.zero;
  const float wide = to_float(grid.scale);
  return {zero * 0x10001u | 0xc300c300u, simt::pack2(wide, wide, bf16{})};  // c = 128
}
template <typename T>
ZC_DEVICE uint32_t grid_pair(uint8_t exponent, T) {
  const float power = float8_power(exponent);
  return simt::pack2(power, power, T{});
}

// Of a word, elements 16 j and 16 j + 1 behind those that j = 0 gives. j is known at compile time.
// What is before the scale is exact.
ZC_DEVICE uint32_t value_pair(uint32_t word, int j, Grids<Nibbles>::Pair grid, f16) {
  const uint32_t codes = j < 2 ? word : word >> 8;
  // Behind 0x64 four bits are 1024 + code; four bits higher, behind 0x54, they are 64 + code.
  const uint32_t shifted = j % 2 == 0 ? simt::select_bits(0x000f000fu, codes, 0x64006400u)
                                      : simt::select_bits(0x00f000f0u, codes, 0x54005400u);
  const uint32_t zero =
      j % 2 == 0 ? grid.zero : simt::add_pairs(grid.zero, 0x63806380u, f16{});  // + 960
  return simt::multiply_pairs(simt::add_pairs(shifted, zero, f16{}), grid.scale, f16{});
}
ZC_DEVICE uint32_t value_pair(uint32_t word, int j, Grids<Nibbles>::Pair grid, bf16) {
  // Behind 0x43 there are seven bits, so that all codes have to come down: 128 + code.
  const uint32_t shifted = simt::select_bits(0x000f000fu, word >> 4 * j, 0x43004300u);
  return simt::multiply_pairs(simt::add_pairs(shifted, grid.zero, bf16{}), grid.scale, bf16{});
}
// A float4's exponent and mantissa become the lowest of an exponent's bits and the highest of a
// mantissa's: subnormals of float4 are subnormals then, and one product brings all of them up.
ZC_DEVICE uint32_t value_pair(uint32_t word, int j, uint32_t power, f16) {
  const uint32_t magnitudes = (j < 3 ? word << (9 - 4 * j) : word >> 3) & 0x0e000e00u;
  const uint32_t signs = word << (12 - 4 * j) & 0x80008000u;
  const uint32_t float4s = simt::multiply_pairs(magnitudes | signs, 0x74007400u, f16{});  // 2^14
  return simt::multiply_pairs(float4s, power, f16{});
}
ZC_DEVICE uint32_t value_pair(uint32_t word, int j, uint32_t power, bf16) {
  const uint32_t magnitudes = (j < 2 ? word << (6 - 4 * j) : word >> (4 * j - 6)) & 0x01c001c0u;
  const uint32_t signs = word << (12 - 4 * j) & 0x80008000u;
  const uint32_t float4s = simt::multiply_pairs(magnitudes | signs, 0x7e807e80u, bf16{});  // 2^126
  return simt::multiply_pairs(float4s, power, bf16{});
}

}  // namespace zc::cuda
