#pragma once

#include <cstdint>

#include "csrc/emu/site.h"

// Copies of boxes of a tensor, which the hardware calls TMA.
namespace zc::simt {

// Describes a tensor of three axes, the innermost first, and the box that one copy takes. Rows of
// the box are swizzled: 16-byte chunks of a row change places by the row's number, so that a column
// of chunks lies in different banks.
struct TensorMap {
  const unsigned char* base;
  uint64_t sizes[3];
  uint64_t strides[3];  // bytes; strides[0] is an element's
  uint32_t box[3];
  int swizzle;  // bytes of a row: 0 (none), 32, 64 or 128
};

// The box that begins at these coordinates, to shared memory, its bytes counted on the barrier.
// What lies outside of the tensor is zero.
void tma_load_3d(uint32_t to, const TensorMap* map, uint32_t barrier, int c0, int c1, int c2,
                 emu::Site site = emu::Site::here());

}  // namespace zc::simt

namespace zc::emu {

// Where a byte lies after swizzling rows of so many bytes: address bits 4.. are XORed with bits
// 7... Addresses count from a multiple of 1024.
inline uint32_t swizzled(uint32_t address, int swizzle) {
  switch (swizzle) {
    case 128:
      return address ^ ((address >> 7 & 7u) << 4);
    case 64:
      return address ^ ((address >> 7 & 3u) << 4);
    case 32:
      return address ^ ((address >> 7 & 1u) << 4);
    default:
      return address;
  }
}

}  // namespace zc::emu
