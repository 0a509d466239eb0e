#pragma once

#include "csrc/cuda/device/page.h"
#include "csrc/cuda/device/simt.h"

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
  ZC_UNROLL
  for (int i = 0; i < 8; ++i) {
    const int p = i >> 2, hi = (i >> 1) & 1, odd = i & 1;
    x.at[p][hi][odd] = read_float<kKey>(part, f, head_dim, lane_token<kKey>(lane, p, hi, odd),
                                        lane_channel<kKey>(lane, square, p, hi, odd));
  }
  return x;
}

// Writes the squares of a quantized part in ascending order. The part lies in shared memory that
// only this warp writes; where it is not in fragment order it was zeroed.
template <bool kKey>
class CodeWriter {
 public:
  ZC_DEVICE CodeWriter(uint8_t* part, Format f, int head_dim, int lane)
      : words_(reinterpret_cast<uint32_t*>(part)),
        format_(f),
        head_dim_(head_dim),
        lane_(lane),
        n_(lane_words(f, head_dim)) {}

  ZC_DEVICE void write(int square, const LaneCodes& codes) {
    if (!in_fragment_order(format_, head_dim_)) {
      write_dense(square, codes);
      return;
    }
    if (format_ == Format::kU8) {
      words_[word_index(n_, lane_, 2 * square)] = codes.word[0];
      words_[word_index(n_, lane_, 2 * square + 1)] = codes.word[1];
      return;
    }
    if (format_ == Format::kU4) {
      words_[word_index(n_, lane_, square)] = codes.word[0] | codes.word[1] << 4;
      return;
    }
    // Two squares make a word, and four a word of top bits.
    const int w = square >> 1;
    const uint32_t both = (codes.word[0] & 0x03030303u) | (codes.word[1] & 0x03030303u) << 2;
    const uint32_t top = ((codes.word[0] >> 2) & 0x01010101u) | (codes.word[1] & 0x04040404u);
    if ((square & 1) == 0) {
      low_ = both;
      top_ = top;
      return;
    }
    words_[word_index(n_, lane_, w)] = low_ | both << 4;
    if (format_ != Format::kU3) return;
    const uint32_t all = top_ | top << 4;  // field i of u2 has its top bit at 16 odd + 8 hi + 2 i
    ZC_UNROLL
    for (int hi = 0; hi < 2; ++hi) {
      const uint32_t fields = (all >> (8 * hi) & 0x00ff00ffu) << 2;
      const uint32_t rotated = rotate_left(fields, top_rotation(w & 1, hi));
      tops_ = (w & 1) == 0 && hi == 0 ? rotated : tops_ | rotated;
    }
    if ((w & 1) != 0) words_[32 * n_ + word_index(head_dim_ / 64, lane_, w >> 1)] = tops_;
  }

 private:
  // Lanes share words here.
  ZC_DEVICE void write_dense(int square, const LaneCodes& codes) {
    const int bits = format_bits(format_);
    for (int i = 0; i < 8; ++i) {
      const int p = i >> 2, hi = (i >> 1) & 1, odd = i & 1;
      const uint32_t code = (codes.word[p] >> (16 * odd + 8 * hi)) & 0xffu;
      const int at = (kPageTokens * lane_channel<kKey>(lane_, square, p, hi, odd) +
                      lane_token<kKey>(lane_, p, hi, odd)) *
                     bits;
      atomicOr(&words_[at >> 5], code << (at & 31));
      if ((at & 31) + bits > 32) atomicOr(&words_[(at >> 5) + 1], code >> (32 - (at & 31)));
    }
  }

  uint32_t* words_;
  Format format_;
  int head_dim_;
  int lane_;
  int n_;              // 32-bit words of a lane, without the top bits of u3
  uint32_t low_ = 0;   // of the even square
  uint32_t top_ = 0;   // of the even square, u3
  uint32_t tops_ = 0;  // of the squares before, u3
};

}  // namespace zc::cuda
