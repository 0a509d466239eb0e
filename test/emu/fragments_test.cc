// ldmatrix, movmatrix and mma against the layouts that CUTLASS publishes as CuTe strides: an
// independent description, written out here as numbers.
#include <cmath>
#include <vector>

#include "csrc/emu/simt.h"
#include "test/emu/harness.h"

namespace zc::test {

namespace {

// Where value v of lane t lies: A at m + 16 k, B at n + 8 k, D at m + 16 n.
int place_in_a(int t, int v) {
  return t % 4 * 32 + t / 4 + (v & 1) * 16 + (v >> 1 & 1) * 8 + (v >> 2) * 128;
}
int place_in_b(int t, int v) { return t % 4 * 16 + t / 4 + (v & 1) * 8 + (v >> 1) * 64; }
int place_in_d(int t, int v) { return t % 4 * 32 + t / 4 + (v & 1) * 16 + (v >> 1) * 8; }

template <typename T>
__global__ void mma_kernel(const float* a, const float* b, float* d) {
  const int t = static_cast<int>(threadIdx.x);
  uint32_t ra[4], rb[2];
  float rd[4];
  for (int r = 0; r < 4; ++r)
    ra[r] = simt::pack2(a[place_in_a(t, 2 * r)], a[place_in_a(t, 2 * r + 1)], T{});
  for (int r = 0; r < 2; ++r)
    rb[r] = simt::pack2(b[place_in_b(t, 2 * r)], b[place_in_b(t, 2 * r + 1)], T{});
  for (int v = 0; v < 4; ++v) rd[v] = d[place_in_d(t, v)];
  simt::mma_m16n8k16(rd, ra, rb[0], rb[1], T{});
  simt::mma_m16n8k16(rd, ra, rb[0], rb[1], T{});
  for (int v = 0; v < 4; ++v) d[place_in_d(t, v)] = rd[v];
}
template <typename T>
void expect_mma() {
  std::vector<float> a(256), b(128), d(128), expected(128);
  for (int i = 0; i < 256; ++i) a[i] = static_cast<float>(i * 7 % 13 - 6);
  for (int i = 0; i < 128; ++i) b[i] = static_cast<float>(i * 5 % 11 - 5);
  for (int i = 0; i < 128; ++i) d[i] = expected[i] = static_cast<float>(i);
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 8; ++n)
      for (int k = 0; k < 16; ++k) expected[m + 16 * n] += 2 * a[m + 16 * k] * b[n + 8 * k];
  simt::launch(&mma_kernel<T>, 1, 32, 0, a.data(), b.data(), d.data());
  ZC_EXPECT(d == expected);
}
ZC_TEST(fragments_mma) {
  each_mode([] {
    expect_mma<f16>();
    expect_mma<bf16>();
  });
}

// Subnormal halves are exact, and what is no number stays none.
ZC_TEST(fragments_mma_subnormal) {
  std::vector<float> a(256, 0.0f), b(128, 0.0f), d(128, 0.0f);
  a[0] = 0x1p-24f;
  b[0] = 3.0f;
  a[1] = INFINITY;
  simt::launch(&mma_kernel<f16>, 1, 32, 0, a.data(), b.data(), d.data());
  ZC_EXPECT(d[0] == 0x6p-24f && d[1] == INFINITY && std::isnan(d[17]));
}

// A tile of row * 16 + column: loaded as it lies it is an A operand, transposed a B operand.
__global__ void ldmatrix_kernel(int* n_wrong) {
  ZC_SHARED(uint16_t, tile, [256]);
  const int t = static_cast<int>(threadIdx.x);
  for (int i = t; i < 256; i += 32) tile[i] = static_cast<uint16_t>(i);
  __syncwarp();
  const uint32_t row = simt::smem_u32(&tile[(t & 15) * 16 + (t >> 4) * 8]);
  uint32_t r[4], transposed[4];
  simt::ldmatrix_x4(r, row);
  simt::ldmatrix_x4_trans(transposed, row);
  for (int v = 0; v < 8; ++v) {
    const int a = place_in_a(t, v);
    const int b = place_in_b(t, v & 3);
    const uint32_t in_a = static_cast<uint32_t>(a % 16 * 16 + a / 16);
    const uint32_t in_b = static_cast<uint32_t>(b / 8 * 16 + b % 8 + (v >> 2) * 8);
    if ((r[v / 2] >> (16 * (v & 1)) & 0xffffu) != in_a) atomicAdd(n_wrong, 1);
    if ((transposed[v / 2] >> (16 * (v & 1)) & 0xffffu) != in_b) atomicAdd(n_wrong, 1);
  }
}
ZC_TEST(fragments_ldmatrix) {
  each_mode([] {
    int n_wrong = 0;
    simt::launch(&ldmatrix_kernel, 1, 32, 0, &n_wrong);
    ZC_EXPECT(n_wrong == 0);
  });
}

__global__ void movmatrix_kernel(int* n_wrong) {
  const int g = static_cast<int>(threadIdx.x) / 4;
  const int t = static_cast<int>(threadIdx.x) % 4;
  const auto element = [](int row, int column) {
    return static_cast<uint32_t>(100 * row + column);
  };
  const uint32_t received = simt::movmatrix_trans(element(g, 2 * t) | element(g, 2 * t + 1) << 16);
  if (received != (element(2 * t, g) | element(2 * t + 1, g) << 16)) atomicAdd(n_wrong, 1);
}
ZC_TEST(fragments_movmatrix) {
  each_mode([] {
    int n_wrong = 0;
    simt::launch(&movmatrix_kernel, 1, 32, 0, &n_wrong);
    ZC_EXPECT(n_wrong == 0);
  });
}

}  // namespace

}  // namespace zc::test
