#pragma once

#include "csrc/cuda/device/page.h"
#include "csrc/cuda/device/simt.h"
#include "csrc/cuda/device/vector.h"

// A warp at a square of a page: lane 4 g + t holds its rows g + 8 hi and columns 2 t + odd + 8 p
// (page.h), the eight elements whose words are its own.
namespace zc::cuda {

// Elements of one lane.
struct LaneSquare {
  float at[2][2][2];  // [p][hi][odd]
};

// Codes of one lane, a byte each: code (p, hi, odd) of up to 8 bits at bit 16 odd + 8 hi of word p.
struct LaneCodes {
  uint32_t word[2];
};

// Where an element of the lane lies in the page: token and channel, by part.
template <bool kKey>
ZC_DEVICE int lane_token(int lane, int p, int hi, int odd) {
  return kKey ? (lane >> 2) + 8 * hi : 2 * (lane & 3) + odd + 8 * p;
}
template <bool kKey>
ZC_DEVICE int lane_channel(int lane, int square, int p, int hi, int odd) {
  return 16 * square + (kKey ? 2 * (lane & 3) + odd + 8 * p : (lane >> 2) + 8 * hi);
}

ZC_DEVICE uint32_t rotate_left(uint32_t x, int n) { return x << (n & 31) | x >> (-n & 31); }

// Reads a lane's codes of one square of a quantized part, in either order of page.h.
template <bool kKey>
ZC_DEVICE LaneCodes read_codes(const uint8_t* part, Format f, int head_dim, int square, int lane) {
  LaneCodes codes{};
  if (!in_fragment_order(f, head_dim)) {
    ZC_UNROLL
    for (int i = 0; i < 8; ++i) {
      const int p = i >> 2, hi = (i >> 1) & 1, odd = i & 1;
      codes.word[p] |= read_code<kKey>(part, f, head_dim, lane_token<kKey>(lane, p, hi, odd),
                                       lane_channel<kKey>(lane, square, p, hi, odd))
                       << (16 * odd + 8 * hi);
    }
    return codes;
  }
  const uint32_t* words = reinterpret_cast<const uint32_t*>(part);
  const int n = lane_words(f, head_dim);
  if (f == Format::kU8) {
    codes.word[0] = words[word_index(n, lane, 2 * square)];
    codes.word[1] = words[word_index(n, lane, 2 * square + 1)];
  } else if (f == Format::kU4) {
    const uint32_t w = words[word_index(n, lane, square)];
    codes.word[0] = w & 0x0f0f0f0fu;
    codes.word[1] = (w >> 4) & 0x0f0f0f0fu;
  } else {
    const int w = square >> 1;
    const int i0 = 2 * (square & 1);
    const uint32_t low = words[word_index(n, lane, w)] >> (2 * i0);
    codes.word[0] = low & 0x03030303u;
    codes.word[1] = (low >> 2) & 0x03030303u;
    if (f == Format::kU3) {
      const uint32_t tops = words[32 * n + word_index(head_dim / 64, lane, w >> 1)];
      ZC_UNROLL
      for (int hi = 0; hi < 2; ++hi) {
        const uint32_t at = rotate_left(tops, -(top_rotation(w & 1, hi) + 2 * i0 + 2));
        codes.word[0] |= (at & 0x00010001u) << (2 + 8 * hi);
        codes.word[1] |= ((at >> 2) & 0x00010001u) << (2 + 8 * hi);
      }
    }
  }
  return codes;
}

ZC_DEVICE LaneSquare to_floats(const LaneCodes& codes) {
  LaneSquare x;
  ZC_UNROLL
  for (int i = 0; i < 8; ++i) {
    const int p = i >> 2, hi = (i >> 1) & 1, odd = i & 1;
    x.at[p][hi][odd] = static_cast<float>((codes.word[p] >> (16 * odd + 8 * hi)) & 0xffu);
  }
  return x;
}

// Codes, or values of a float format, of one square of a part.
template <bool kKey>
ZC_DEVICE LaneSquare read_square(const uint8_t* part, Format f, int head_dim, int square,
                                 int lane) {
  if (format_quantized(f)) return to_floats(read_codes<kKey>(part, f, head_dim, square, lane));
  LaneSquare x;
  if (f != Format::kF32) {  // one vector a lane
    const uint4 vector = reinterpret_cast<const uint4*>(part)[square * 32 + lane];
    const uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
    ZC_UNROLL
    for (int i = 0; i < 4; ++i) {
      float(&pair)[2] = x.at[i >> 1][i & 1];
      if (f == Format::kF16) {
        pair[0] = low_half(words[i], f16{});
        pair[1] = high_half(words[i], f16{});
      } else {
        pair[0] = low_half(words[i], bf16{});
        pair[1] = high_half(words[i], bf16{});
      }
    }
    return x;
  }
  ZC_UNROLL
  for (int i = 0; i < 8; ++i) {
    const int p = i >> 2, hi = (i >> 1) & 1, odd = i & 1;
    x.at[p][hi][odd] =
        read_float<kKey>(part, Format::kF32, head_dim, lane_token<kKey>(lane, p, hi, odd),
                         lane_channel<kKey>(lane, square, p, hi, odd));
  }
  return x;
}

// The words of one lane in their plane (word_index).
class LaneWords {
 public:
  ZC_DEVICE LaneWords(uint32_t* plane, int n_words, int lane)
      : plane_(plane), lane_(lane), shift_(n_words % 4 == 0 ? 2 : (n_words % 2 == 0 ? 1 : 0)) {}
  ZC_DEVICE uint32_t& operator[](int w) const {
    const int vector = (w >> shift_ << 5) + lane_;
    return plane_[(vector << shift_) + (w & ((1 << shift_) - 1))];
  }

 private:
  uint32_t* plane_;
  int lane_;
  int shift_;  // log2 of a vector's words
};

// Codes in a part that is not in fragment order and was zeroed, in shared memory: lanes share
// words.
template <bool kKey>
ZC_DEVICE void write_dense(uint32_t* words, int bits, int square, int lane,
                           const LaneCodes& codes) {
  for (int i = 0; i < 8; ++i) {
    const int p = i >> 2, hi = (i >> 1) & 1, odd = i & 1;
    const uint32_t code = (codes.word[p] >> (16 * odd + 8 * hi)) & 0xffu;
    const int at = (kPageTokens * lane_channel<kKey>(lane, square, p, hi, odd) +
                    lane_token<kKey>(lane, p, hi, odd)) *
                   bits;
    atomicOr(&words[at >> 5], code << (at & 31));
    if ((at & 31) + bits > 32) atomicOr(&words[(at >> 5) + 1], code >> (32 - (at & 31)));
  }
}

// Two squares of 2 bits (the low ones of 3) make a word: field i, of 2 bits, at 16 odd + 8 hi + 2
// i.
ZC_DEVICE uint32_t join_low(const LaneCodes& even, const LaneCodes& odd) {
  const auto low = [](uint32_t codes) { return codes & 0x03030303u; };
  return low(even.word[0]) | low(even.word[1]) << 2 | low(odd.word[0]) << 4 | low(odd.word[1]) << 6;
}

// The top bits of the same fields, u3's word of parity w % 2.
ZC_DEVICE uint32_t join_top(const LaneCodes& even, const LaneCodes& odd, int parity) {
  const auto top = [](uint32_t codes) { return codes >> 2 & 0x01010101u; };
  const uint32_t fields =
      top(even.word[0]) | top(even.word[1]) << 2 | top(odd.word[0]) << 4 | top(odd.word[1]) << 6;
  return rotate_left((fields & 0x00ff00ffu) << 2, top_rotation(parity, 0)) |
         rotate_left((fields >> 8 & 0x00ff00ffu) << 2, top_rotation(parity, 1));
}

template <bool kKey, Format F, typename CodesOf>
ZC_DEVICE void write_part_of(uint32_t* words, int head_dim, int lane, const CodesOf& codes_of) {
  const int n_squares = head_dim / 16;
  if (!in_fragment_order(F, head_dim)) {
    for (int square = 0; square < n_squares; ++square)
      write_dense<kKey>(words, format_bits(F), square, lane, codes_of(square));
    return;
  }
  const int n = lane_words(F, head_dim);
  const LaneWords own(words, n, lane);
  if constexpr (F == Format::kU8) {
    for (int square = 0; square < n_squares; ++square) {
      const LaneCodes codes = codes_of(square);
      own[2 * square] = codes.word[0];
      own[2 * square + 1] = codes.word[1];
    }
  } else if constexpr (F == Format::kU4) {
    for (int square = 0; square < n_squares; ++square) {
      const LaneCodes codes = codes_of(square);
      own[square] = codes.word[0] | codes.word[1] << 4;
    }
  } else if constexpr (F == Format::kU2) {
    for (int w = 0; w < n_squares / 2; ++w) own[w] = join_low(codes_of(2 * w), codes_of(2 * w + 1));
  } else {
    const LaneWords tops(words + 32 * n, head_dim / 64, lane);
    for (int w = 0; w < n_squares / 2; w += 2) {
      uint32_t top = 0;
      ZC_UNROLL
      for (int parity = 0; parity < 2; ++parity) {
        const LaneCodes even = codes_of(2 * (w + parity));
        const LaneCodes odd = codes_of(2 * (w + parity) + 1);
        own[w + parity] = join_low(even, odd);
        top |= join_top(even, odd, parity);
      }
      tops[w >> 1] = top;
    }
  }
}

// Writes a quantized part in shared memory, all of it by this warp: codes_of(square), in ascending
// order, gives a lane's codes. A part that is not in fragment order was zeroed.
template <bool kKey, typename CodesOf>
ZC_DEVICE void write_part(uint8_t* part, Format f, int head_dim, int lane,
                          const CodesOf& codes_of) {
  uint32_t* words = reinterpret_cast<uint32_t*>(part);
  switch (f) {
    case Format::kU2:
      return write_part_of<kKey, Format::kU2>(words, head_dim, lane, codes_of);
    case Format::kU3:
      return write_part_of<kKey, Format::kU3>(words, head_dim, lane, codes_of);
    case Format::kU4:
      return write_part_of<kKey, Format::kU4>(words, head_dim, lane, codes_of);
    default:
      return write_part_of<kKey, Format::kU8>(words, head_dim, lane, codes_of);
  }
}

}  // namespace zc::cuda
