#pragma once

#include <cstdint>

#include "csrc/emu/site.h"
#include "csrc/math/float16.h"

// The warp's matrix instructions, under the names of csrc/cuda/device/hardware.h, where the layouts
// are described.
namespace zc::simt {

void ldmatrix_x4(uint32_t (&r)[4], uint32_t address, emu::Site site = emu::Site::here());
void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t address, emu::Site site = emu::Site::here());
uint32_t movmatrix_trans(uint32_t x, emu::Site site = emu::Site::here());

// Sums in float32, k ascending. The hardware's order is its own: results agree to a tolerance.
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, f16,
                  emu::Site site = emu::Site::here());
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bf16,
                  emu::Site site = emu::Site::here());

}  // namespace zc::simt
