#include "csrc/emu/fragment.h"

#include <cstring>

#include "csrc/emu/bank_conflicts.h"
#include "csrc/emu/scheduler.h"

// In all layouts lane = 4 g + t.
namespace zc::emu {

namespace {

struct LoadArgument {
  unsigned char row[16];  // read by the lane itself, so that sanitizers blame the right thread
  uint32_t address;
  uint32_t* received;
};

template <bool kTransposed>
void compute_ldmatrix(uint32_t, void* const* arguments) {
  const auto of = [&](int lane) { return static_cast<LoadArgument*>(arguments[lane]); };
  Stats& stats = current->block->stats;
  ++stats.ldmatrix;
  // An 8 x 8 matrix is read in one cycle when its rows lie in different banks.
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint32_t rows[8];
    for (int r = 0; r < 8; ++r) rows[r] = of(8 * matrix + r)->address;
    stats.ldmatrix_conflicts += conflicts_of_16_byte_rows(rows);
  }
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4;
    const int t = lane % 4;
    for (int matrix = 0; matrix < 4; ++matrix) {
      uint32_t* to = of(lane)->received + matrix;
      if constexpr (kTransposed) {
        uint16_t pair[2];
        for (int odd = 0; odd < 2; ++odd)
          std::memcpy(&pair[odd], of(8 * matrix + 2 * t + odd)->row + 2 * g, 2);
        std::memcpy(to, pair, 4);
      } else {
        std::memcpy(to, of(8 * matrix + g)->row + 4 * t, 4);
      }
    }
  }
}

void load_matrices(uint32_t (&r)[4], uint32_t address, WarpFunction function, const char* name,
                   Site site) {
  const unsigned char* row = shared_at(address, 16, 16, name, site);
  tsan::note_read(row, 16);
  LoadArgument argument;
  std::memcpy(argument.row, row, 16);
  argument.address = address;
  uint32_t received[4];
  argument.received = received;
  warp_collective(~0u, function, &argument, name, site);
  std::memcpy(r, received, 16);
}

struct MoveArgument {
  uint32_t given;
  uint32_t received;
};

// In: (g, 2t), (g, 2t + 1). Out: (2t, g), (2t + 1, g).
void compute_movmatrix(uint32_t, void* const* arguments) {
  const auto of = [&](int lane) { return static_cast<MoveArgument*>(arguments[lane]); };
  uint32_t m[8][8];
  for (int lane = 0; lane < 32; ++lane) {
    const uint32_t pair = of(lane)->given;
    m[lane / 4][2 * (lane % 4)] = pair & 0xffffu;
    m[lane / 4][2 * (lane % 4) + 1] = pair >> 16;
  }
  for (int lane = 0; lane < 32; ++lane)
    of(lane)->received = m[2 * (lane % 4)][lane / 4] | m[2 * (lane % 4) + 1][lane / 4] << 16;
}

struct MmaArgument {
  float* d;
  const uint32_t* a;
  uint32_t b[2];
};

using Float4 = float __attribute__((vector_size(16)));

template <typename T>
void compute_mma(uint32_t, void* const* arguments) {
  const auto of = [&](int lane) { return static_cast<MmaArgument*>(arguments[lane]); };
  const auto widen = [](uint32_t bits) { return to_float(T{static_cast<uint16_t>(bits)}); };
  ++current->block->stats.mma;
  float a[16][16];
  alignas(16) float b[16][8];  // (k, n)
  for (int lane = 0; lane < 32; ++lane) {
    const MmaArgument& x = *of(lane);
    const int g = lane / 4;
    const int t2 = lane % 4 * 2;
    for (int r = 0; r < 4; ++r) {
      float* pair = &a[g + (r & 1) * 8][t2 + (r >> 1) * 8];
      pair[0] = widen(x.a[r] & 0xffffu);
      pair[1] = widen(x.a[r] >> 16);
    }
    for (int r = 0; r < 2; ++r) {
      b[t2 + 8 * r][g] = widen(x.b[r] & 0xffffu);
      b[t2 + 8 * r + 1][g] = widen(x.b[r] >> 16);
    }
  }
  for (int g = 0; g < 8; ++g) {
    Float4 sums[4] = {};  // rows g and g + 8, eight columns each
    for (int k = 0; k < 16; ++k) {
      const Float4 left = *reinterpret_cast<const Float4*>(&b[k][0]);
      const Float4 right = *reinterpret_cast<const Float4*>(&b[k][4]);
      sums[0] += a[g][k] * left;
      sums[1] += a[g][k] * right;
      sums[2] += a[g + 8][k] * left;
      sums[3] += a[g + 8][k] * right;
    }
    float row[16];
    std::memcpy(row, sums, sizeof(row));
    for (int t = 0; t < 4; ++t) {
      float* d = of(4 * g + t)->d;
      d[0] += row[2 * t];
      d[1] += row[2 * t + 1];
      d[2] += row[8 + 2 * t];
      d[3] += row[8 + 2 * t + 1];
    }
  }
}

}  // namespace

}  // namespace zc::emu

namespace zc::simt {

void ldmatrix_x4(uint32_t (&r)[4], uint32_t address, emu::Site site) {
  emu::load_matrices(r, address, emu::compute_ldmatrix<false>, "ldmatrix", site);
}

void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t address, emu::Site site) {
  emu::load_matrices(r, address, emu::compute_ldmatrix<true>, "ldmatrix.trans", site);
}

uint32_t movmatrix_trans(uint32_t x, emu::Site site) {
  emu::MoveArgument argument{x, 0};
  emu::warp_collective(~0u, emu::compute_movmatrix, &argument, "movmatrix", site);
  return argument.received;
}

void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, f16,
                  emu::Site site) {
  emu::MmaArgument argument{d, a, {b0, b1}};
  emu::warp_collective(~0u, emu::compute_mma<f16>, &argument, "mma.f16", site);
}

void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bf16,
                  emu::Site site) {
  emu::MmaArgument argument{d, a, {b0, b1}};
  emu::warp_collective(~0u, emu::compute_mma<bf16>, &argument, "mma.bf16", site);
}

}  // namespace zc::simt
