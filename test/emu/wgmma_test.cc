// wgmma: operands through descriptors in every canonical layout, and the order that it asks for.
#include <cmath>
#include <cstring>
#include <vector>

#include "csrc/emu/simt.h"
#include "test/emu/harness.h"

namespace zc::test {

namespace {

constexpr int kDepth = 16;
constexpr int kOperandBytes = 32 * 1024;

// One operand in shared memory: n rows of MN by 16 of K. Layouts as CUTLASS writes them
// (cute/atom/mma_traits_sm90_gmma.hpp), in 16-bit elements; swizzle 0, 32, 64 or 128 bytes.
struct Layout {
  int swizzle;
  bool mn_major;
  int n_mn;

  int chunks() const { return swizzle ? swizzle / 16 : 1; }
  // Byte offsets; unswizzled layouts give them the other way round where MN is major.
  int stride() const {
    if (!swizzle) return mn_major ? 128 : 256;
    return mn_major ? 8 * swizzle * (n_mn * 2 / swizzle) : 8 * swizzle;
  }
  int leading() const {
    if (!swizzle) return mn_major ? 128 * (n_mn / 8) : 128;
    return mn_major ? 8 * swizzle : 16;
  }
  int element(int mn, int k) const {
    const int s = stride() / 2;
    const int l = leading() / 2;
    const int w = 8 * chunks();
    if (!swizzle)
      return mn_major ? mn % 8 + mn / 8 * s + k % 8 * 8 + k / 8 * l
                      : mn % 8 * 8 + mn / 8 * s + k % 8 + k / 8 * l;
    return mn_major ? mn % w + mn / w * l + k % 8 * w + k / 8 * s : mn % 8 * w + mn / 8 * s + k;
  }
  int swizzled_element(int mn, int k) const {
    const int byte = 2 * element(mn, k);
    return (byte ^ ((byte >> 7 & (chunks() - 1)) << 4)) / 2;
  }
  uint64_t descriptor() const {
    const uint64_t mode = swizzle == 128 ? 1 : swizzle == 64 ? 2 : swizzle == 32 ? 3 : 0;
    return static_cast<uint64_t>(leading() >> 4) << 16 |
           static_cast<uint64_t>(stride() >> 4) << 32 | mode << 62;
  }
};

struct Product {
  const uint16_t* a;
  const uint16_t* b;
  uint64_t a_descriptor;
  uint64_t b_descriptor;
  float* d;  // at m + 64 n
};

template <int kSums, bool kTransposesA, bool kTransposesB, typename T>
__global__ void product_kernel(Product p) {
  ZC_DYNAMIC_SHARED(memory);
  uint16_t* shared = reinterpret_cast<uint16_t*>(memory);
  const int t = static_cast<int>(threadIdx.x);
  for (int i = t; i < kOperandBytes / 2; i += 128) {
    shared[i] = p.a[i];
    shared[kOperandBytes / 2 + i] = p.b[i];
  }
  simt::fence_async();
  __syncthreads();
  const uint64_t base = simt::smem_u32(memory) >> 4;
  float d[kSums];
  for (int v = 0; v < kSums; ++v) d[v] = 1000.0f;
  simt::wgmma_fence();
  // Overwrites, then adds the same again.
  for (const bool accumulates : {false, true})
    simt::wgmma_m64k16<kTransposesA, kTransposesB>(
        d, p.a_descriptor + base, p.b_descriptor + base + kOperandBytes / 16, accumulates, T{});
  simt::wgmma_commit();
  simt::wgmma_wait<0>();
  for (int v = 0; v < kSums; ++v) {
    const int m = t / 32 * 16 + t % 32 / 4 + (v >> 1 & 1) * 8;
    const int n = t % 4 * 2 + (v & 1) + (v >> 2) * 8;
    p.d[m + 64 * n] = d[v];
  }
}

template <int kSums, bool kTransposesA, bool kTransposesB, typename T>
int count_wrong(int swizzle) {
  constexpr int kColumns = 2 * kSums;
  const Layout a{swizzle, kTransposesA, 64};
  const Layout b{swizzle, kTransposesB, kColumns};
  const uint16_t nan = 0x7fff;
  std::vector<uint16_t> a_bits(kOperandBytes / 2, nan), b_bits(kOperandBytes / 2, nan);
  const auto bits = [](int x) {
    return static_cast<uint16_t>(simt::pack2(static_cast<float>(x), 0.0f, T{}));
  };
  const auto in_a = [](int m, int k) { return (m * 5 + k * 3) % 17 - 8; };
  const auto in_b = [](int n, int k) { return (n * 7 + k * 11) % 13 - 6; };
  for (int k = 0; k < kDepth; ++k) {
    for (int m = 0; m < 64; ++m) a_bits[a.swizzled_element(m, k)] = bits(in_a(m, k));
    for (int n = 0; n < kColumns; ++n) b_bits[b.swizzled_element(n, k)] = bits(in_b(n, k));
  }
  std::vector<float> d(64 * kColumns, NAN);
  simt::launch(&product_kernel<kSums, kTransposesA, kTransposesB, T>, 1, 128, 2 * kOperandBytes,
               Product{a_bits.data(), b_bits.data(), a.descriptor(), b.descriptor(), d.data()});
  int n_wrong = 0;
  for (int m = 0; m < 64; ++m)
    for (int n = 0; n < kColumns; ++n) {
      float sum = 0;
      for (int k = 0; k < kDepth; ++k) sum += 2.0f * in_a(m, k) * in_b(n, k);
      n_wrong += d[m + 64 * n] != sum;
    }
  return n_wrong;
}
ZC_TEST(wgmma_descriptors) {
  each_mode([] {
    for (const int swizzle : {0, 32, 64, 128}) {
      ZC_EXPECT((count_wrong<32, false, false, bf16>(swizzle)) == 0);
      ZC_EXPECT((count_wrong<32, false, true, bf16>(swizzle)) == 0);
      ZC_EXPECT((count_wrong<32, true, false, f16>(swizzle)) == 0);
      ZC_EXPECT((count_wrong<32, true, true, f16>(swizzle)) == 0);
      ZC_EXPECT((count_wrong<64, false, false, f16>(swizzle)) == 0);
      ZC_EXPECT((count_wrong<128, false, true, bf16>(swizzle)) == 0);
    }
  });
}

// A in registers, B in shared memory: row m of A is m everywhere, column n of B is one at k = n.
enum class Order { kRight, kNoFence, kNoWait, kReadsEarly, kNoProxyFence };
__global__ void register_kernel(Order order, float* d_out) {
  ZC_DYNAMIC_SHARED(memory);
  uint16_t* shared = reinterpret_cast<uint16_t*>(memory);
  const int t = static_cast<int>(threadIdx.x);
  const Layout b{0, false, 16};
  for (int i = t; i < 256; i += 128)
    shared[b.element(i / 16, i % 16)] =
        static_cast<uint16_t>(simt::pack2(i / 16 == i % 16 ? 1.0f : 0.0f, 0.0f, bf16{}));
  if (order != Order::kNoProxyFence) simt::fence_async();
  __syncthreads();
  const int row = t / 32 * 16 + t % 32 / 4;
  uint32_t a[4];
  for (int r = 0; r < 4; ++r) {
    const float x = static_cast<float>(row + (r & 1) * 8);
    a[r] = simt::pack2(x, x, bf16{});
  }
  float d[8] = {};
  if (order != Order::kNoFence) simt::wgmma_fence();
  simt::wgmma_m64k16<false>(d, a, b.descriptor() + (simt::smem_u32(memory) >> 4), true, bf16{});
  simt::wgmma_commit();
  const float early = d[0];
  if (order != Order::kNoWait) simt::wgmma_wait<0>();
  if (order == Order::kReadsEarly) d[0] = early;
  for (int v = 0; v < 8; ++v)
    d_out[(row + (v >> 1 & 1) * 8) * 16 + t % 4 * 2 + (v & 1) + (v >> 2) * 8] = d[v];
}
int count_wrong_rows(Order order) {
  std::vector<float> d(64 * 16, NAN);
  simt::launch(&register_kernel, 1, 128, 1024, order, d.data());
  int n_wrong = 0;
  for (int i = 0; i < 64 * 16; ++i) n_wrong += d[i] != static_cast<float>(i / 16);
  return n_wrong;
}
ZC_TEST(wgmma_a_in_registers) {
  each_mode([] { ZC_EXPECT(count_wrong_rows(Order::kRight) == 0); });
}
ZC_TEST(wgmma_misuse) {
  each_mode([] { expect_error("no wgmma_fence", [] { count_wrong_rows(Order::kNoFence); }); });
  kLate.enter();
  ZC_EXPECT(count_wrong_rows(Order::kReadsEarly) == 128);  // one sum of each lane
  expect_error("a wgmma that it never waited for", [] { count_wrong_rows(Order::kNoWait); });
}
const bool added_no_fence =
    kBuild != Build::kTsan || add_defect("defect_no_proxy_fence", "ThreadSanitizer: data race",
                                         [] { count_wrong_rows(Order::kNoProxyFence); });

}  // namespace

}  // namespace zc::test
