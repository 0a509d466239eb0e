// Shuffles, votes, reductions, atomics and the arithmetic built-ins against what the CUDA C++
// Programming Guide says of them.
#include "csrc/emu/simt.h"
#include "test/emu/harness.h"

namespace zc::test {

namespace {

// Counts lanes that saw something else than expected.
struct Checker {
  int* n_wrong;
  void operator()(bool holds) const {
    if (!holds) atomicAdd(n_wrong, 1);
  }
};

template <typename Kernel>
int count_wrong(Kernel kernel, dim3 block = 32) {
  int n_wrong = 0;
  simt::launch(kernel, 2, block, 0, &n_wrong);
  return n_wrong;
}

__global__ void shuffle_kernel(int* n_wrong) {
  const Checker check{n_wrong};
  const int lane = static_cast<int>(threadIdx.x) % 32;
  check(__shfl_sync(~0u, lane, 7) == 7);
  check(__shfl_sync(~0u, lane, 5, 8) == (lane & ~7) + 5);
  check(__shfl_sync(~0u, lane, 13, 8) == (lane & ~7) + 5);
  check(__shfl_up_sync(~0u, lane, 1) == (lane ? lane - 1 : 0));
  check(__shfl_up_sync(~0u, lane, 3, 16) == (lane % 16 >= 3 ? lane - 3 : lane));
  check(__shfl_down_sync(~0u, lane, 4) == (lane + 4 < 32 ? lane + 4 : lane));
  check(__shfl_down_sync(~0u, lane, 1, 4) == (lane % 4 < 3 ? lane + 1 : lane));
  check(__shfl_xor_sync(~0u, lane, 16) == (lane ^ 16));
  check(__shfl_xor_sync(~0u, lane, 9, 8) == ((lane ^ 9) / 8 > lane / 8 ? lane : (lane ^ 9)));
  // Every type that fits, and its sign.
  check(__shfl_xor_sync(~0u, 0.5f * lane, 1) == 0.5f * (lane ^ 1));
  check(__shfl_xor_sync(~0u, -1.5 * lane, 1) == -1.5 * (lane ^ 1));
  const uint64_t wide = 0x100000000ull * static_cast<unsigned>(lane) + 3;
  check(__shfl_down_sync(~0u, wide, 1) == (lane < 31 ? wide + 0x100000000ull : wide));
  check(__shfl_sync(~0u, int64_t{-lane}, 9) == -9);
  // Halves of a warp in different shuffles.
  if (lane < 16)
    check(__shfl_xor_sync(0x0000ffffu, lane, 8) == (lane ^ 8));
  else
    check(__shfl_down_sync(0xffff0000u, lane, 1) == (lane == 31 ? 31 : lane + 1));
  // A lane outside of the mask gives nothing that could be used: NaN.
  if (lane < 8) check(isnan(__shfl_sync(0xffu, 1.0f, 20)));
}
ZC_TEST(collectives_shuffle) {
  each_mode([] { ZC_EXPECT(count_wrong(&shuffle_kernel, 96) == 0); });
}

__global__ void vote_kernel(int* n_wrong) {
  const Checker check{n_wrong};
  const int lane = static_cast<int>(threadIdx.x) % 32;
  check(__ballot_sync(~0u, lane & 1) == 0xaaaaaaaau);
  check(__any_sync(~0u, lane == 31) && !__any_sync(~0u, lane == 32));
  check(__all_sync(~0u, lane < 32) && !__all_sync(~0u, lane != 3));
  check(__reduce_add_sync(~0u, lane) == 496);
  check(__reduce_add_sync(~0u, 0x80000000u) == 0u);
  check(__reduce_min_sync(~0u, lane - 5) == -5);
  check(__reduce_min_sync(~0u, static_cast<unsigned>(lane - 5)) == 0u);
  check(__reduce_max_sync(~0u, -lane - 1) == -1);
  check(__reduce_max_sync(~0u, 3u * lane) == 93u);
  check(__reduce_and_sync(~0u, ~(1u << lane)) == 0u);
  check(__reduce_or_sync(~0u, 1u << lane) == ~0u);
  check(__reduce_xor_sync(~0u, 3u << (lane & 30)) == 0u);
  unsigned equal = 0;
  for (int other = 0; other < 32; ++other)
    if (other % 3 == lane % 3) equal |= 1u << other;
  check(__match_any_sync(~0u, lane % 3) == equal);
  if (lane >= 20) check(__ballot_sync(0xfff00000u, lane != 25) == 0xfdf00000u);
}
ZC_TEST(collectives_vote) {
  each_mode([] { ZC_EXPECT(count_wrong(&vote_kernel, 64) == 0); });
}

__global__ void block_vote_kernel(int* n_wrong) {
  const Checker check{n_wrong};
  const int i = static_cast<int>(threadIdx.x);
  for (int round = 0; round < 5; ++round) {
    check(__syncthreads_count(i % 3 == 0) == 34);
    check(__syncthreads_or(i == 99 - round));
    check(!__syncthreads_or(i == 100));
    check(__syncthreads_and(i < 100));
    check(!__syncthreads_and(i != round));
  }
}
ZC_TEST(collectives_block_vote) {
  each_mode([] { ZC_EXPECT(count_wrong(&block_vote_kernel, 100) == 0); });
}

struct AtomicCells {
  float sum;
  double wide_sum;
  int highest, lowest, difference, exchanged;
  unsigned bits, cleared, flipped, wrapped, counted_down, compared;
  unsigned long long total;
};
__global__ void atomics_kernel(AtomicCells* cells) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(&cells->sum, 1.0f);
  atomicAdd(&cells->wide_sum, 0.5);
  atomicAdd(&cells->total, 1ull << 33);
  atomicMax(&cells->highest, static_cast<int>(i));
  atomicMin(&cells->lowest, -static_cast<int>(i));
  atomicSub(&cells->difference, 2);
  atomicOr(&cells->bits, 1u << (i % 32));
  atomicAnd(&cells->cleared, ~(1u << (i % 16)));
  atomicXor(&cells->flipped, 1u << (i % 32));
  atomicInc(&cells->wrapped, 6);
  atomicDec(&cells->counted_down, 9);
  // A lock-free increment.
  for (unsigned old = cells->compared, seen;; old = seen) {
    seen = atomicCAS(&cells->compared, old, old + 3);
    if (seen == old) break;
  }
  if (i == 5) atomicExch(&cells->exchanged, 7);
}
ZC_TEST(collectives_atomics) {
  if (kBuild == Build::kTsan) return;  // cells->compared is read plainly, on purpose
  for (const int n_threads : {1, 3}) {
    emu::settings().n_host_threads = n_threads;
    AtomicCells cells{};
    cells.lowest = 1;
    cells.cleared = ~0u;
    simt::launch(&atomics_kernel, 4, 256, 0, &cells);
    ZC_EXPECT(cells.sum == 1024.0f && cells.wide_sum == 512.0 && cells.total == 1024ull << 33);
    ZC_EXPECT(cells.highest == 1023 && cells.lowest == -1023 && cells.difference == -2048);
    ZC_EXPECT(cells.bits == ~0u && cells.cleared == 0xffff0000u && cells.flipped == 0u);
    ZC_EXPECT(cells.wrapped == 1024 % 7 && cells.compared == 3072 && cells.exchanged == 7);
    ZC_EXPECT(cells.counted_down == 6);  // 0, 9, 8, ... 0, 9, ...: 1024 steps of a cycle of 10
  }
}

ZC_TEST(collectives_bits) {
  ZC_EXPECT(__brev(1u) == 0x80000000u && __brev(0x12345678u) == 0x1e6a2c48u);
  ZC_EXPECT(__brevll(1ull) == 1ull << 63);
  ZC_EXPECT(__clz(0) == 32 && __clz(1) == 31 && __clz(-1) == 0 && __clzll(1) == 63);
  ZC_EXPECT(__ffs(0) == 0 && __ffs(8) == 4 && __popc(0xf0f0u) == 8 && __popcll(~0ull) == 64);
  ZC_EXPECT(__byte_perm(0x33221100u, 0x77665544u, 0x7410) == 0x77441100u);
  ZC_EXPECT(__byte_perm(0x000080ffu, 0u, 0xa981) == 0x00ffff80u);
  ZC_EXPECT(__funnelshift_r(0x12345678u, 0x9abcdef0u, 8) == 0xf0123456u);
  ZC_EXPECT(__funnelshift_l(0x12345678u, 0x9abcdef0u, 8) == 0xbcdef012u);
  ZC_EXPECT(__funnelshift_r(1u, 2u, 32) == 1u && __funnelshift_rc(1u, 2u, 32) == 2u);
  ZC_EXPECT(__dp4a(0x01020304, 0x01010101, 5) == 15);
  ZC_EXPECT(__dp4a(static_cast<int>(0xff000000u), 0x02000000, 0) == -2);
  ZC_EXPECT(__umulhi(0x80000000u, 4u) == 2u && __mulhi(-1, 1) == -1);
  ZC_EXPECT(min(3, 4u) == 3u && max(-1, 1u) == 0xffffffffu && min(-2l, 3l) == -2l);
  ZC_EXPECT(max(NAN, 1.0f) == 1.0f && min(1.0f, NAN) == 1.0f);
}

ZC_TEST(collectives_rounding) {
  ZC_EXPECT(__float2int_rn(2.5f) == 2 && __float2int_rn(3.5f) == 4 && __float2int_rz(-2.9f) == -2);
  ZC_EXPECT(__float2int_rd(-0.5f) == -1 && __float2int_ru(0.5f) == 1);
  ZC_EXPECT(__float2int_rn(3e9f) == INT_MAX && __float2int_rn(-3e9f) == INT_MIN);
  ZC_EXPECT(__float2int_rn(NAN) == 0 && __float2uint_rn(-1.0f) == 0u);
  ZC_EXPECT(__float2uint_rz(5e9f) == UINT_MAX);
  // What is beyond float16 is infinite in a packed pair, NaN is the hardware's.
  ZC_EXPECT(simt::pack2(65520.0f, -1e6f, f16{}) == 0xfc007c00u);
  ZC_EXPECT(simt::pack2(65519.0f, 1.0f, f16{}) == 0x3c007bffu);
  ZC_EXPECT(simt::pack2(-NAN, 1.0f, f16{}) == 0x3c007fffu);
  ZC_EXPECT(simt::pack2(1.0f, NAN, bf16{}) == 0x7fff3f80u);
  ZC_EXPECT(simt::pack2(3.4e38f, 1.00390625f, bf16{}) == 0x3f807f80u);  // a tie goes to even
  ZC_EXPECT(simt::ex2(-INFINITY) == 0.0f && simt::ex2(3.0f) == 8.0f);
  ZC_EXPECT(simt::ex2(-126.0f) == 0x1p-126f && simt::ex2(-126.5f) == 0.0f);
  ZC_EXPECT(__float_as_uint(simt::ex2(-NAN)) == 0x7fffffffu);
  ZC_EXPECT(__fdividef(1.0f, 0x1p127f) == 0.0f && __fdividef(6.0f, 3.0f) == 2.0f);
  ZC_EXPECT(__saturatef(NAN) == 0.0f && __saturatef(2.0f) == 1.0f);
}

__global__ void divergent_kernel() {
  if (threadIdx.x == 3)
    __ballot_sync(~0u, 1);
  else
    __shfl_xor_sync(~0u, 1, 1);
}
__global__ void divergent_votes_kernel() {
  if (threadIdx.x == 3)
    __ballot_sync(~0u, 1);
  else
    __reduce_add_sync(~0u, 1);
}
__global__ void own_mask_kernel() { __shfl_sync(0xffffu, 1, 0); }
__global__ void exited_lanes_kernel() {
  if (threadIdx.x >= 16) return;
  __shfl_xor_sync(~0u, 1, 1);
}
__global__ void half_warp_kernel() { __shfl_xor_sync(~0u, 1, 1); }
ZC_TEST(collectives_misuse) {
  each_mode([] {
    expect_error("different collectives", [] { simt::launch(&divergent_kernel, 1, 32, 0); });
    expect_error("different collectives", [] { simt::launch(&divergent_votes_kernel, 1, 32, 0); });
    expect_error("not in its own mask", [] { simt::launch(&own_mask_kernel, 1, 32, 0); });
    // By the order in which lanes come: those 16 wait for ever, or find the others gone.
    expect_error("exited", [] { simt::launch(&exited_lanes_kernel, 1, 32, 0); });
    expect_error("never were", [] { simt::launch(&half_warp_kernel, 1, 16, 0); });
  });
}

}  // namespace

}  // namespace zc::test
