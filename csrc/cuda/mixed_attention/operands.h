#pragma once

#include <type_traits>

#include "csrc/cuda/mixed_attention/layout.h"

// Operands of matrix products straight from packed pages. A code of b bits that stands at bit b i
// of a half IS the float16 code 2^(b i - 24), a subnormal that tensor cores multiply exactly: one
// LOP3, and every second time a shift, make an operand.
namespace zc::cuda::mixed {

// Words of one tile's part as they lie in a slot (or in the pool): vectors of up to 16 bytes.
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

// Squares whose operands one vector of a lane's words makes; of 2 and 3 bits the whole part.
template <Format F, int kDim>
inline constexpr int kLoadSquares =
    F == Format::kU4 ? (kDim % 64 == 0 ? 4 : 2)
                     : (F == Format::kU8 ? 2 : (kIsCode<F> ? kDim / 16 : 1));

// A lane's words of kLoadSquares squares of one tile.
template <Format F, int kDim>
struct TileWords {
  static constexpr int kSquares = kLoadSquares<F, kDim>;
  static constexpr int kWords =
      F == Format::kU2 || F == Format::kU3 ? kDim / 32 : (F == Format::kU4 ? kSquares : 4);
  uint32_t words[kWords];
  uint32_t second[F == Format::kU3 ? kDim / 64 : 1];  // plane of u3

  // square: a multiple of kSquares.
  ZC_DEVICE void load(const uint8_t* part, int lane, int square) {
    load_words(part + (square / kSquares) * 128 * kWords, lane, words);
    if constexpr (F == Format::kU3) load_words(part + 4 * kDim, lane, second);
  }

  // The A operand of square s of those loaded.
  template <bool kKey>
  ZC_DEVICE void operand(int s, uint32_t (&a)[4]) const {
    if constexpr (F == Format::kU2) {
      const uint32_t x = words[s / 2];
      const uint32_t y = x >> 8;
      const uint32_t m0 = 0x00030003u << (4 * (s % 2));
      const uint32_t m1 = m0 << 2;
      a[0] = x & m0, a[1] = y & m0, a[2] = x & m1, a[3] = y & m1;
    } else if constexpr (F == Format::kU3) {
      const uint32_t triple[3] = {words[s / 4 * 2], words[s / 4 * 2 + 1], second[s / 4]};
      ZC_UNROLL for (int p = 0; p < 2; ++p) ZC_UNROLL for (int hi = 0; hi < 2; ++hi) {
        const ElementAt at = triple_at<kKey>(s, p, hi);
        uint32_t& own = a[2 * p + hi];
        if (at.word == kSpare) {
          own =
              simt::select_bits(0x00010001u, triple[0] >> kSpareBit, triple[1] >> (kSpareBit - 1));
          own = simt::select_bits(0x00030003u, own, triple[2] >> (kSpareBit - 2)) & 0x00070007u;
        } else if (at.bit < kSpareBit) {
          own = triple[at.word] & (0x00070007u << at.bit);
        } else {
          own = triple[at.word] >> 7 & (0x00070007u << (at.bit - 7));
        }
      }
    } else if constexpr (F == Format::kU4) {
      const uint32_t x = words[s];
      const uint32_t y = x >> 8;
      a[0] = x & 0x000f000fu, a[1] = y & 0x000f000fu;
      a[2] = x & 0x00f000f0u, a[3] = y & 0x00f000f0u;
    } else if constexpr (F == Format::kU8) {
      const uint32_t x = words[2 * s];
      const uint32_t y = words[2 * s + 1];
      a[0] = x & 0x00ff00ffu, a[1] = (x >> 8) & 0x00ff00ffu;
      a[2] = y & 0x00ff00ffu, a[3] = (y >> 8) & 0x00ff00ffu;
    } else {
      ZC_UNROLL for (int i = 0; i < 4; ++i) a[i] = words[i];
    }
  }
};

// The A operand of a square of 3 bits that lie densely: 16 tokens of a channel are six bytes.
template <bool kKey>
ZC_DEVICE void dense_operand(const uint8_t* part, int lane, int square, uint32_t (&a)[4]) {
  const uint32_t* const words = reinterpret_cast<const uint32_t*>(part);
  const int g = lane >> 2;
  const int t = lane & 3;
  ZC_UNROLL for (int i = 0; i < 2; ++i) {
    if constexpr (kKey) {
      // Two channels, of columns 2 t + 8 i and the next: tokens 0 to 7 and 8 to 15 of each.
      const uint32_t* const own = words + 24 * square + 12 * i + 3 * t;
      const uint32_t first[2] = {own[0], __funnelshift_r(own[0], own[1], 24)};
      const uint32_t second[2] = {__funnelshift_r(own[1], own[2], 16), own[2] >> 8};
      ZC_UNROLL for (int hi = 0; hi < 2; ++hi) a[2 * i + hi] =
          __byte_perm(first[hi] >> 3 * g, second[hi] >> 3 * g, 0x5410) & 0x00070007u;
    } else {
      // The channel of row g + 8 i: its columns 2 t and 2 t + 1, and those 8 behind.
      const int at = 6 * (16 * square + 8 * i + g);
      const int shift = 8 * (at & 2);
      const uint32_t low = __funnelshift_r(words[at >> 2], words[(at >> 2) + 1], shift);
      const uint32_t high = __funnelshift_r(low, words[(at >> 2) + 1] >> shift, 24);
      ZC_UNROLL for (int p = 0; p < 2; ++p) {
        const uint32_t pair = (p == 0 ? low : high) >> 6 * t;
        a[2 * p + i] = (pair & 7u) | (pair & 0x38u) << 13;
      }
    }
  }
}

// Calls f(square, a) with the A operand of every square of a page's part.
template <bool kKey, Format F, int kDim, typename Body>
ZC_DEVICE void each_operand(const uint8_t* part, int lane, const Body& f) {
  if constexpr (!in_fragment_order(F, kDim)) {
    static_assert(F == Format::kU3);
    ZC_UNROLL for (int s = 0; s < kDim / 16; ++s) {
      uint32_t a[4];
      dense_operand<kKey>(part, lane, s, a);
      f(s, a);
    }
    return;
  }
  constexpr int kSquares = kLoadSquares<F, kDim>;
  ZC_UNROLL for (int s0 = 0; s0 < kDim / 16; s0 += kSquares) {
    TileWords<F, kDim> words;
    words.load(part, lane, s0);
    ZC_UNROLL for (int s = 0; s < kSquares; ++s) {
      uint32_t a[4];
      words.template operand<kKey>(s, a);
      f(s0 + s, a);
    }
  }
}

template <Format F>
inline constexpr std::integral_constant<Format, F> kTag{};

// Calls f with the format that a slot holds as a type: floats of every kind arrive as f16.
template <typename F>
ZC_DEVICE void with_format(Format format, const F& f) {
  switch (format) {
    case Format::kU2:
      return f(kTag<Format::kU2>);
    case Format::kU3:
      return f(kTag<Format::kU3>);
    case Format::kU4:
      return f(kTag<Format::kU4>);
    case Format::kU8:
      return f(kTag<Format::kU8>);
    default:
      return f(kTag<Format::kF16>);
  }
}

// log2 of the factor by which codes stand too high in their halves: K's of square s and columns
// 8 p to 8 p + 7.
template <int kDim>
ZC_DEVICE int key_shift(Format f, int s, int p) {
  if (kDim % 64 != 0 && f == Format::kU3) return 0;  // they lie densely
  if (f == Format::kU2) return 2 * (2 * (s & 1) + p);
  if (f == Format::kU3) return (s & 3) == 3 ? 3 + 3 * p : ((s & 3) == 2 ? 0 : 3 + 3 * (s & 3));
  return f == Format::kU4 ? 4 * p : 0;
}
// And V's: of square s and rows 8 hi to 8 hi + 7, in the first columns; in columns 8 to 15 so much
// more.
template <int kDim>
ZC_DEVICE int value_shift(Format f, int s, int hi) {
  if (f == Format::kU2) return 4 * (s & 1);
  return f == Format::kU3 ? key_shift<kDim>(f, s, hi) : 0;
}
ZC_HD constexpr int column_shift(Format f) {
  return f == Format::kU2 ? 2 : (f == Format::kU4 ? 4 : 0);
}

}  // namespace zc::cuda::mixed
