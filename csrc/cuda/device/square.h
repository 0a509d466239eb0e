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

// Of u3: the codes at a place (triple_at) of both halves of a lane's three words, each at the
// beginning of its half; and adding them to words that have none there.
ZC_DEVICE uint32_t take_codes(const uint32_t (&triple)[3], ElementAt at) {
  if (at.word != kSpare) {  // selected: registers have no index
    const uint32_t word = at.word == 0 ? triple[0] : (at.word == 1 ? triple[1] : triple[2]);
    return word >> at.bit & 0x00070007u;
  }
  uint32_t codes = 0;
  ZC_UNROLL for (int i = 0; i < 3; ++i) codes |= (triple[i] >> kSpareBit & 0x00010001u) << i;
  return codes;
}
ZC_DEVICE void add_codes(uint32_t (&triple)[3], ElementAt at, uint32_t codes) {
  if (at.word != kSpare) {
    triple[at.word] |= codes << at.bit;
    return;
  }
  ZC_UNROLL for (int i = 0; i < 3; ++i) triple[i] |= (codes >> i & 0x00010001u) << kSpareBit;
}

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
  } else if (f == Format::kU2) {
    const uint32_t w = words[word_index(n, lane, square >> 1)] >> (4 * (square & 1));
    codes.word[0] = w & 0x03030303u;
    codes.word[1] = (w >> 2) & 0x03030303u;
  } else {
    uint32_t triple[3];
    ZC_UNROLL
    for (int i = 0; i < 3; ++i) triple[i] = words[triple_word(head_dim, lane, square >> 2, i)];
    ZC_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int p = i >> 1, hi = i & 1;
      codes.word[p] |= take_codes(triple, triple_at<kKey>(square, p, hi)) << (8 * hi);
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

// Two squares of 2 bits make a word: field i at 16 odd + 8 hi + 2 i.
ZC_DEVICE uint32_t join_squares(const LaneCodes& even, const LaneCodes& odd) {
  return even.word[0] | even.word[1] << 2 | odd.word[0] << 4 | odd.word[1] << 6;
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
    for (int w = 0; w < n_squares / 2; ++w) {
      const LaneCodes even = codes_of(2 * w);
      own[w] = join_squares(even, codes_of(2 * w + 1));
    }
  } else {
    const LaneWords second(words + 32 * n, second_plane_words(head_dim), lane);
    for (int j = 0; j < n_squares / 4; ++j) {
      uint32_t triple[3] = {};
      ZC_UNROLL
      for (int square = 0; square < 4; ++square) {
        const LaneCodes codes = codes_of(4 * j + square);
        ZC_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int p = i >> 1, hi = i & 1;
          add_codes(triple, triple_at<kKey>(square, p, hi),
                    codes.word[p] >> (8 * hi) & 0x00070007u);
        }
      }
      own[2 * j] = triple[0];
      own[2 * j + 1] = triple[1];
      second[j] = triple[2];
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
