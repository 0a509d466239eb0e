#pragma once

#include "csrc/cuda/device/simt.h"

// Codes of 8 bits, -128 to 127, as operands of 16 bits, which hold them exactly.
namespace zc::cuda {

// Two elements of the lower half of `bytes`, the first in the lower half.
ZC_DEVICE uint32_t pair_of_codes(uint32_t bytes, f16) {
  // Behind 0x64 a byte b is 1024 + b, of which the top bit's turn makes 1152 + code.
  const uint32_t shifted = __byte_perm(bytes, 0x64646464u, 0x4140) ^ 0x00800080u;
  return simt::add_pairs(shifted, 0xe480e480u, f16{});  // - 1152
}
ZC_DEVICE uint32_t pair_of_codes(uint32_t bytes, bf16) {
  // 0x4300 is 128, and has room for seven bits behind it: less 128, or less 256 where the code is
  // negative.
  const uint32_t spread = __byte_perm(bytes, 0u, 0x4140);
  return simt::add_pairs((spread & 0x007f007fu) | 0x43004300u, (spread & 0x00800080u) | 0xc300c300u,
                         bf16{});
}

}  // namespace zc::cuda
