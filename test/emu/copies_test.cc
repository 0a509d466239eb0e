// Copies that go on beside the threads: cp.async, bulk copies, tensor copies, and the mbarriers
// that count them.
#include <cstring>
#include <vector>

#include "csrc/emu/simt.h"
#include "test/emu/harness.h"

namespace zc::test {

namespace {

// Three stages of 32 x 16 bytes, each thread its own 16 bytes of a stage.
__global__ void cp_async_kernel(const unsigned char* from, unsigned char* to, int n_stages,
                                int last_bytes) {
  ZC_DYNAMIC_SHARED(memory);
  const uint32_t base = simt::smem_u32(memory) + 16 * threadIdx.x;
  const auto load = [&](int stage) {
    if (stage < n_stages)
      simt::cp_async_16(base + static_cast<uint32_t>(stage % 3) * 512,
                        from + stage * 512 + 16 * threadIdx.x,
                        stage == n_stages - 1 ? last_bytes : 16);
    simt::cp_async_commit();
  };
  load(0);
  load(1);
  for (int stage = 0; stage < n_stages; ++stage) {
    load(stage + 2);
    simt::cp_async_wait<2>();
    std::memcpy(to + stage * 512 + 16 * threadIdx.x, memory + stage % 3 * 512 + 16 * threadIdx.x,
                16);
  }
}
ZC_TEST(copies_cp_async) {
  each_mode([] {
    for (const int last_bytes : {0, 4, 16}) {
      const int n_stages = 7;
      alignas(16) unsigned char from[7 * 512], to[7 * 512], expected[7 * 512];
      for (int i = 0; i < n_stages * 512; ++i) {
        from[i] = static_cast<unsigned char>(i * 7 + i / 512);
        const bool beyond = i >= 6 * 512 && i % 16 >= last_bytes;
        expected[i] = beyond ? 0 : from[i];
      }
      std::memset(to, 0xaa, sizeof(to));
      simt::launch(&cp_async_kernel, 1, 32, 3 * 512, from, to, n_stages, last_bytes);
      ZC_EXPECT(!std::memcmp(to, expected, sizeof(to)));
    }
  });
}

__global__ void unaligned_copy_kernel(const unsigned char* from) {
  ZC_DYNAMIC_SHARED(memory);
  simt::cp_async_16(simt::smem_u32(memory), from);
}
__global__ void forgotten_copy_kernel(const unsigned char* from) {
  ZC_DYNAMIC_SHARED(memory);
  simt::cp_async_16(simt::smem_u32(memory) + 16 * threadIdx.x, from);
  simt::cp_async_commit();
}
ZC_TEST(copies_cp_async_misuse) {
  each_mode([] {
    alignas(16) unsigned char from[32] = {};
    expect_error("is not a multiple of 16",
                 [&] { simt::launch(&unaligned_copy_kernel, 1, 1, 16, from + 8); });
    expect_error("ended with 1 cp.async that it never waited for",
                 [&] { simt::launch(&forgotten_copy_kernel, 1, 32, 512, from); });
  });
}

// A producer fills two stages by bulk copies; 64 consumers sum them and hand them back.
__global__ void bulk_kernel(const int* from, int n_stages, int* sums) {
  ZC_DYNAMIC_SHARED(memory);
  constexpr uint32_t kStageBytes = 64 * 4;
  const uint32_t base = simt::smem_u32(memory);
  const uint32_t full = base + 2 * kStageBytes;
  const uint32_t empty = full + 16;
  if (threadIdx.x == 0) {
    for (uint32_t stage = 0; stage < 2; ++stage) {
      simt::mbarrier_init(full + 8 * stage, 1);
      simt::mbarrier_init(empty + 8 * stage, 64);
    }
    simt::fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x >= 64) {
    if (threadIdx.x > 64) return;
    for (int i = 0; i < n_stages; ++i) {
      const uint32_t stage = static_cast<uint32_t>(i % 2);
      simt::mbarrier_wait(empty + 8 * stage, static_cast<uint32_t>(i / 2 & 1) ^ 1u);
      simt::mbarrier_arrive_expect_tx(full + 8 * stage, kStageBytes);
      simt::bulk_copy(base + stage * kStageBytes, from + 64 * i, kStageBytes / 2, full + 8 * stage);
      simt::bulk_copy(base + stage * kStageBytes + kStageBytes / 2, from + 64 * i + 32,
                      kStageBytes / 2, full + 8 * stage);
    }
    return;
  }
  const int* values = reinterpret_cast<const int*>(memory);
  int sum = 0;
  for (int i = 0; i < n_stages; ++i) {
    const uint32_t stage = static_cast<uint32_t>(i % 2);
    simt::mbarrier_wait(full + 8 * stage, static_cast<uint32_t>(i / 2 & 1));
    sum += values[stage * 64 + threadIdx.x];
    simt::mbarrier_arrive(empty + 8 * stage);
  }
  sums[threadIdx.x] = sum;
}
ZC_TEST(copies_bulk) {
  each_mode([] {
    for (const int n_stages : {1, 2, 7}) {
      alignas(16) int from[7 * 64];
      for (int i = 0; i < 7 * 64; ++i) from[i] = i * i % 1000;
      int sums[64];
      simt::launch(&bulk_kernel, 1, 96, 2 * 256 + 32, from, n_stages, sums);
      for (int i = 0; i < 64; ++i) {
        int sum = 0;
        for (int stage = 0; stage < n_stages; ++stage) sum += from[64 * stage + i];
        ZC_EXPECT(sums[i] == sum);
      }
    }
  });
}

enum class MbarrierFault { kNone, kUninitialised, kTooManyArrivals, kBytesMissing, kNobody };
__global__ void mbarrier_fault_kernel(MbarrierFault fault, const int* from) {
  ZC_DYNAMIC_SHARED(memory);
  const uint32_t base = simt::smem_u32(memory);
  const uint32_t barrier = base + 64;
  if (fault != MbarrierFault::kUninitialised) simt::mbarrier_init(barrier, 1);
  switch (fault) {
    case MbarrierFault::kNone:
      simt::mbarrier_arrive_expect_tx(barrier, 64);
      simt::bulk_copy(base, from, 64, barrier);
      simt::mbarrier_wait(barrier, 0);
      break;
    case MbarrierFault::kUninitialised:
      simt::mbarrier_wait(barrier, 0);
      break;
    case MbarrierFault::kTooManyArrivals:
      simt::mbarrier_arrive_expect_tx(barrier, 64);
      simt::mbarrier_arrive(barrier);
      break;
    case MbarrierFault::kBytesMissing:
      simt::mbarrier_arrive_expect_tx(barrier, 64);
      simt::bulk_copy(base, from, 48, barrier);
      break;
    case MbarrierFault::kNobody:
      simt::mbarrier_wait(barrier, 0);
      break;
  }
}
ZC_TEST(copies_mbarrier_misuse) {
  each_mode([] {
    alignas(16) int from[16] = {};
    const auto run = [&](MbarrierFault fault) {
      return [&from, fault] { simt::launch(&mbarrier_fault_kernel, 1, 1, 128, fault, from); };
    };
    run(MbarrierFault::kNone)();
    expect_error("is not initialised", run(MbarrierFault::kUninitialised));
    expect_error("more arrivals than the 1", run(MbarrierFault::kTooManyArrivals));
    expect_error("16 bytes announced and not written", run(MbarrierFault::kBytesMissing));
    expect_error("threads 0 wait for parity 0 of the mbarrier at shared address 64",
                 run(MbarrierFault::kNobody));
  });
}

// A box of a (5, 3, 70) tensor of 16-bit elements, the innermost axis last; parts of it outside.
__global__ void tensor_kernel(const simt::TensorMap map, int c0, int c1, int c2, uint16_t* out) {
  ZC_DYNAMIC_SHARED(memory);
  const uint32_t base = simt::smem_u32(memory);
  const uint32_t barrier = base + 4096;
  if (threadIdx.x == 0) {
    simt::mbarrier_init(barrier, 1);
    simt::mbarrier_arrive_expect_tx(barrier, 4 * 64 * 2);
    simt::tma_load_3d(base, &map, barrier, c0, c1, c2);
  }
  __syncthreads();
  simt::mbarrier_wait(barrier, 0);
  const uint16_t* rows = reinterpret_cast<const uint16_t*>(memory);
  for (unsigned i = threadIdx.x; i < 4 * 64; i += 32) {
    const unsigned row = i / 64;
    const unsigned column = i % 64;
    // 128-byte rows: chunk ^= row within each group of eight.
    const unsigned chunk = map.swizzle == 128 ? (column / 8) ^ (row & 7) : column / 8;
    out[i] = rows[row * 64 + chunk * 8 + column % 8];
  }
}
ZC_TEST(copies_tensor) {
  each_mode([] {
    constexpr int kTokens = 5, kHeads = 3, kWidth = 72;
    alignas(16) uint16_t tensor[kTokens * kHeads * kWidth];
    for (int i = 0; i < kTokens * kHeads * kWidth; ++i) tensor[i] = static_cast<uint16_t>(i + 1);
    for (const int swizzle : {0, 128})
      for (const int c0 : {0, 16, -8})
        for (const int c2 : {0, 3, -1}) {
          const simt::TensorMap map = {reinterpret_cast<const unsigned char*>(tensor),
                                       {70, kHeads, kTokens},
                                       {2, kWidth * 2, kHeads * kWidth * 2},
                                       {64, 1, 4},
                                       swizzle};
          uint16_t out[4 * 64];
          simt::launch(&tensor_kernel, 1, 32, 4096 + 8, map, c0, 1, c2, out);
          int n_wrong = 0;
          for (int row = 0; row < 4; ++row)
            for (int column = 0; column < 64; ++column) {
              const int token = c2 + row;
              const int channel = c0 + column;
              const bool inside = token >= 0 && token < kTokens && channel >= 0 && channel < 70;
              const uint16_t expected =
                  inside ? tensor[(token * kHeads + 1) * kWidth + channel] : 0;
              n_wrong += out[row * 64 + column] != expected;
            }
          ZC_EXPECT(n_wrong == 0);
        }
  });
}

}  // namespace

}  // namespace zc::test
