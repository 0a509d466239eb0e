#pragma once

#include <cstdint>

#include "csrc/math/float16.h"
#include "csrc/math/hd.h"
#include "csrc/ops/kv_table.h"

// Pages as CUDA lays them out, so that a lane's words are the operand of mma.m16n8k16 that it
// needs: attention takes them from memory straight into registers.
//
// A part (K or V of 16 tokens) is head_dim / 16 squares of 16 x 16 elements, square s holding the
// channels from 16 s on. In a square, K has tokens as rows and channels as columns, V has channels
// as rows and tokens as columns: rows x columns is the A operand of mma. Lane 4 g + t owns rows g
// and g + 8 (hi = 0, 1) and columns 2t + odd + 8 p (odd, p = 0, 1). Its words of all squares:
//   f16, bf16  words 4 s + 2 p + hi: `odd` in the upper half
//   u8         words 2 s + p: bit 16 odd + 8 hi
//   u4         word s: bit 16 odd + 8 hi + 4 p
//   u2         word s / 2: bit 16 odd + 8 hi + 2 i, i = 2 (s % 2) + p
//   u3         four squares in three words: 2 j and 2 j + 1, and j of a second plane behind all of
//              those, j = s / 4. Half a word (of `odd`) has five codes, at bits 0, 3, 6, 10 and 13,
//              and at bit 9 a bit of a sixteenth; triple_at says whose they are. With the word
//              shifted right by 7 all stand at bits 0, 3 and 6, as high for two rows of a column
//              of K, which are summed over columns, and for two columns of a row of V
// Each lane's words lie in vectors of up to 16 bytes (word_index): one coalesced load for a warp.
//   f32        row-major, (16, head_dim)
// After K and V, 16 words of token parameters of a quantized V: scale f16 in the lower half, zero
// in the upper one.
//
// Where head_dim is no multiple of 32 (64 for u3) codes lie densely instead, channel-major: code
// (channel, token) at bit (16 channel + token) bits. Only kernels of any shape read those.
namespace zc::cuda {

ZC_HD constexpr bool in_fragment_order(Format f, int head_dim) {
  return f == Format::kU2   ? head_dim % 32 == 0
         : f == Format::kU3 ? head_dim % 64 == 0
                            : f != Format::kF32;
}

// 32-bit words a lane owns of a part (of u3: of its first plane).
ZC_HD int lane_words(Format f, int head_dim) {
  const int bits = f == Format::kU3 ? 2 : format_bits(f);
  return head_dim * bits / 64;
}
ZC_HD int second_plane_words(int head_dim) { return head_dim / 64; }

// Where word w of a lane's `n_words` lies in their plane, counted in words.
ZC_HD int word_index(int n_words, int lane, int w) {
  const int vector = n_words % 4 == 0 ? 4 : (n_words % 2 == 0 ? 2 : 1);
  return (w / vector * 32 + lane) * vector + w % vector;
}

// An element within its part: a word, counted in words from the part's beginning, and a bit.
struct ElementAt {
  int word;
  int bit;
};

// row and column as above; `square` of the part.
ZC_HD ElementAt element_at(Format f, int head_dim, int square, int row, int column) {
  const int lane = 4 * (row & 7) + ((column & 7) >> 1);
  const int hi = row >> 3;
  const int p = column >> 3;
  const int odd = column & 1;
  const int n = lane_words(f, head_dim);
  switch (f) {
    case Format::kF16:
    case Format::kBF16:
      return {word_index(n, lane, 4 * square + 2 * p + hi), 16 * odd};
    case Format::kU8:
      return {word_index(n, lane, 2 * square + p), 16 * odd + 8 * hi};
    case Format::kU4:
      return {word_index(n, lane, square), 16 * odd + 8 * hi + 4 * p};
    default:  // u2
      return {word_index(n, lane, square >> 1), 16 * odd + 8 * hi + 2 * (2 * (square & 1) + p)};
  }
}

// Of u3: which of the three words of four squares has a lane's code of square s, column half p and
// row half hi, and from which bit of each half on. Word kSpare: bit i of the code is in word i.
inline constexpr int kSpare = 3;
inline constexpr int kSpareBit = 9;
template <bool kKey>
ZC_HD constexpr ElementAt triple_at(int s, int p, int hi) {
  const int square = s & 3;
  if (square < 2) return {hi, 3 + 3 * square + 7 * p};
  if (square == 2) return {2 * p + hi, 0};
  return {2, kKey ? 3 + 3 * p + 7 * hi : 3 + 3 * hi + 7 * p};
}

// The three words of a lane that hold squares 4 j to 4 j + 3 of u3, counted from the part's
// beginning.
ZC_HD int triple_word(int head_dim, int lane, int j, int i) {
  const int n = lane_words(Format::kU3, head_dim);
  return i < 2 ? word_index(n, lane, 2 * j + i)
               : 32 * n + word_index(second_plane_words(head_dim), lane, j);
}

// The code of a token and a channel: one element at a time, for kernels of any shape.
template <bool kKey>
ZC_HD uint32_t read_code(const uint8_t* part, Format f, int head_dim, int token, int channel) {
  const uint32_t* words = reinterpret_cast<const uint32_t*>(part);
  const int bits = format_bits(f);
  if (!in_fragment_order(f, head_dim)) {
    const int at = (16 * channel + token) * bits;
    uint32_t code = 0;
    for (int b = 0; b < bits; ++b) code |= ((words[(at + b) >> 5] >> ((at + b) & 31)) & 1u) << b;
    return code;
  }
  const int row = kKey ? token : channel & 15;
  const int column = kKey ? channel & 15 : token;
  const int square = channel >> 4;
  if (f == Format::kU3) {
    const int lane = 4 * (row & 7) + ((column & 7) >> 1);
    const int half = 16 * (column & 1);
    const ElementAt at = triple_at<kKey>(square, column >> 3, row >> 3);
    const auto word = [&](int i) { return words[triple_word(head_dim, lane, square >> 2, i)]; };
    if (at.word != kSpare) return word(at.word) >> (half + at.bit) & 7u;
    uint32_t code = 0;
    for (int i = 0; i < 3; ++i) code |= (word(i) >> (half + kSpareBit) & 1u) << i;
    return code;
  }
  const ElementAt at = element_at(f, head_dim, square, row, column);
  return (words[at.word] >> at.bit) & ((1u << bits) - 1u);
}

// Index of a 16-bit element in a part of f16 or bf16, counted in elements.
template <bool kKey>
ZC_HD int half_index(int head_dim, int token, int channel) {
  const int row = kKey ? token : channel & 15;
  const int column = kKey ? channel & 15 : token;
  const ElementAt at = element_at(Format::kF16, head_dim, channel >> 4, row, column);
  return 2 * at.word + (at.bit >> 4);
}

// A float element, whatever the float format.
template <bool kKey>
ZC_HD float read_float(const uint8_t* part, Format f, int head_dim, int token, int channel) {
  if (f == Format::kF32) return reinterpret_cast<const float*>(part)[token * head_dim + channel];
  const int at = half_index<kKey>(head_dim, token, channel);
  return f == Format::kF16 ? to_float(reinterpret_cast<const f16*>(part)[at])
                           : to_float(reinterpret_cast<const bf16*>(part)[at]);
}

template <bool kKey>
ZC_HD void write_float(uint8_t* part, Format f, int head_dim, int token, int channel, float x) {
  if (f == Format::kF32) {
    reinterpret_cast<float*>(part)[token * head_dim + channel] = x;
    return;
  }
  const int at = half_index<kKey>(head_dim, token, channel);
  if (f == Format::kF16)
    reinterpret_cast<f16*>(part)[at] = from_float<f16>(x);
  else
    reinterpret_cast<bf16*>(part)[at] = to_bf16(x);
}

// Token parameters of a quantized V: scale and zero of one token in one word.
ZC_HD uint32_t pack_token_params(f16 scale, f16 zero) {
  return scale.bits | static_cast<uint32_t>(zero.bits) << 16;
}
ZC_HD f16 token_scale(uint32_t params) { return {static_cast<uint16_t>(params)}; }
ZC_HD f16 token_zero(uint32_t params) { return {static_cast<uint16_t>(params >> 16)}; }

// A segment of one (layer, kv head) with its addresses resolved.
struct SegmentView {
  Segment segment;
  const int32_t* pages;  // addresses in units of kPageUnitBytes
  uint8_t* pool;
  int head_dim;
  int32_t v_offset;       // of the V part in a page, bytes
  int32_t params_offset;  // of the token parameters in a page, bytes

  ZC_HD bool valid() const { return pool != nullptr; }
  ZC_HD int n_pages() const {
    return segment.n_tokens / kPageTokens + (segment.n_tokens % kPageTokens != 0);
  }
  ZC_HD uint8_t* k_part(int page) const {
    return pool + static_cast<int64_t>(pages[page]) * kPageUnitBytes;
  }
  ZC_HD uint8_t* v_part(int page) const { return k_part(page) + v_offset; }
  ZC_HD uint32_t* token_params(int page) const {
    return reinterpret_cast<uint32_t*>(k_part(page) + params_offset);
  }
  // which: 0 K scale, 1 K zero, 2 V channel c; head_dim of each.
  ZC_HD f16* channel_params(int which) const {
    return reinterpret_cast<f16*>(pool +
                                  static_cast<int64_t>(segment.params_unit) * kPageUnitBytes) +
           which * head_dim;
  }
  ZC_HD bool k_quantized() const { return format_quantized(segment.k_format); }
  ZC_HD bool v_quantized() const { return format_quantized(segment.v_format); }
};

}  // namespace zc::cuda
