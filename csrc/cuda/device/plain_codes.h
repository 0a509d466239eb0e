#pragma once

#include <cstdint>

#include "csrc/cuda/device/simt.h"

// Codes of a row in the plain format: element c at bit c * bits; 3 bits are a plane of the two low
// bits and then a plane of the top ones. A thread has kCodes neighbours, which begin at a whole
// byte of each plane.
namespace zc::cuda {

inline constexpr int kCodes = 8;

struct PlainCodes {
  uint32_t at[kCodes];
};

ZC_HD int64_t plane_bytes(int64_t channels, int bits) { return (channels * bits + 7) / 8; }

// A plane of `bits` bits an element begins at `plane`; bit `from` of a code is its first.
ZC_DEVICE void read_plane(const uint8_t* plane, int64_t channels, int64_t first, int bits, int from,
                          PlainCodes& codes) {
  const uint8_t* bytes = plane + first * bits / 8;
  const int64_t left = plane_bytes(channels, bits) - first * bits / 8;
  uint64_t word = 0;
  for (int i = 0; i < bits && i < left; ++i) word |= uint64_t{bytes[i]} << (8 * i);
  ZC_UNROLL
  for (int i = 0; i < kCodes; ++i)
    codes.at[i] |= (static_cast<uint32_t>(word >> (i * bits)) & ((1u << bits) - 1u)) << from;
}
ZC_DEVICE void write_plane(uint8_t* plane, int64_t channels, int64_t first, int bits, int from,
                           const PlainCodes& codes) {
  uint8_t* bytes = plane + first * bits / 8;
  const int64_t left = plane_bytes(channels, bits) - first * bits / 8;
  uint64_t word = 0;
  ZC_UNROLL
  for (int i = 0; i < kCodes; ++i)
    word |= uint64_t{(codes.at[i] >> from) & ((1u << bits) - 1u)} << (i * bits);
  for (int i = 0; i < bits && i < left; ++i) bytes[i] = static_cast<uint8_t>(word >> (8 * i));
}

// The codes of the elements from `first` on, a multiple of kCodes; 0 behind the row's last.
ZC_DEVICE PlainCodes read_plain(const uint8_t* row, int64_t channels, int64_t first, int bits) {
  PlainCodes codes{};
  read_plane(row, channels, first, bits == 3 ? 2 : bits, 0, codes);
  if (bits == 3) read_plane(row + plane_bytes(channels, 2), channels, first, 1, 2, codes);
  return codes;
}

// Writes them; those behind the row's last are 0.
ZC_DEVICE void write_plain(uint8_t* row, int64_t channels, int64_t first, int bits,
                           const PlainCodes& codes) {
  write_plane(row, channels, first, bits == 3 ? 2 : bits, 0, codes);
  if (bits == 3) write_plane(row + plane_bytes(channels, 2), channels, first, 1, 2, codes);
}

}  // namespace zc::cuda
