#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "csrc/math/float16.h"

// The warp, tensor-core and asynchronous-copy instructions of NVIDIA's PTX ISA, one wrapper an
// instruction. csrc/emu/simt.h has the same functions for the CPU.

// Shared memory. ZC_DYNAMIC_SHARED: the block's dynamic bytes; ZC_SHARED(float, tile, [64]): an
// array of the kernel's own, at a multiple of 16 bytes, so that it can be read in vectors: left to
// nvcc it is aligned as one element is.
#define ZC_DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
#define ZC_SHARED(T, name, ...) __shared__ __align__(16) T name __VA_ARGS__
#define ZC_UNROLL _Pragma("unroll")
#define ZC_NO_UNROLL _Pragma("unroll 1")
#define ZC_DEVICE __device__ __forceinline__

namespace zc::simt {

// Where a generic pointer into shared memory lies in the shared address space.
ZC_DEVICE uint32_t smem_u32(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// ---- fragments (lane = 4 g + t) ----

// Four 8 x 8 matrices of 16-bit elements: lane 8 i + r gives the address of row r of matrix i, and
// receives (g, 2t) and (g, 2t + 1) of matrix i in r[i].
ZC_DEVICE void ldmatrix_x4(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
// The same of the transposed matrices: (2t, g) and (2t + 1, g).
ZC_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
// Transposes an 8 x 8 matrix held as (g, 2t), (g, 2t + 1).
ZC_DEVICE uint32_t movmatrix_trans(uint32_t x) {
  uint32_t y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}
// d (16, 8) += a (16, 16) b (16, 8). a: a0 (g, 2t), a1 (g + 8, 2t), a2 (g, 2t + 8), a3 (g + 8, 2t +
// 8); b: b0 (2t, g), b1 (2t + 8, g); d: d0, d1 (g, 2t), d2, d3 (g + 8, 2t); each names the first of
// two neighbours, in a and d along the row, in b down the column.
ZC_DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bf16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
ZC_DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, f16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two floats rounded to nearest into one register, `lo` in the lower half. Overflow gives infinity.
ZC_DEVICE uint32_t pack2(float lo, float hi, bf16) {
  uint32_t d;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
  return d;
}
ZC_DEVICE uint32_t pack2(float lo, float hi, f16) {
  uint32_t d;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
  return d;
}
// a + b of two pairs of elements, each rounded to nearest.
ZC_DEVICE uint32_t add_pairs(uint32_t a, uint32_t b, f16) {
  uint32_t d;
  asm("add.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
ZC_DEVICE uint32_t add_pairs(uint32_t a, uint32_t b, bf16) {
  uint32_t d;  // a times 1: before sm_90 there is no other sum
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(0x3f803f80u), "r"(b));
  return d;
}
// a b of two pairs of elements, each rounded to nearest.
ZC_DEVICE uint32_t multiply_pairs(uint32_t a, uint32_t b, f16) {
  uint32_t d;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
ZC_DEVICE uint32_t multiply_pairs(uint32_t a, uint32_t b, bf16) {
  uint32_t d;  // and -0: before sm_90 there is no other product
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(0x80008000u));
  return d;
}
// 2^x to about 2^-22 of itself; 2^-inf = 0.
ZC_DEVICE float ex2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// The bits of x where the mask has ones, those of y elsewhere: one instruction, whatever the
// compiler knows of the mask.
ZC_DEVICE uint32_t select_bits(uint32_t mask, uint32_t x, uint32_t y) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0xca;" : "=r"(d) : "r"(mask), "r"(x), "r"(y));
  return d;
}
// 1 / x to 1 ulp.
ZC_DEVICE float rcp(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// ---- asynchronous copies ----

// 16 bytes from global to shared memory; those from src_bytes on are zero. Both 16-byte aligned.
ZC_DEVICE void cp_async_16(uint32_t to, const void* from, int src_bytes = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(src_bytes)
               : "memory");
}
// L2 gives up bytes that are read by this policy before others: those that are read once.
ZC_DEVICE uint64_t evict_first() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
ZC_DEVICE void cp_async_16_once(uint32_t to, const void* from, int src_bytes) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(to),
               "l"(from), "r"(src_bytes), "l"(evict_first())
               : "memory");
}
ZC_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most N of this thread's committed groups are under way.
template <int N>
ZC_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// This thread arrives at an mbarrier, which counts on it, when its copies so far are done; no
// cp_async_wait is for them.
ZC_DEVICE void cp_async_mbarrier_arrive(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
}

// Asks for the 128 bytes around an address to be brought to L2, where all of the device sees one
// and the same: it may be done before the bytes are written.
ZC_DEVICE void prefetch_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// ---- words that blocks leave for each other ----

// 16 bytes, aligned to 16, that are seen whole or not at all: with a flag among them, whoever reads
// them needs no fence, which takes microseconds, to know that they are there. Nothing is said of
// other words. Memory to be read so holds zeros before.
ZC_DEVICE void store_whole(uint4* to, const uint4& x) {
  asm volatile(
      "{\n.reg .b64 lo, hi;\n.reg .b128 all;\nmov.b64 lo, {%1, %2};\nmov.b64 hi, {%3, %4};\n"
      "mov.b128 all, {lo, hi};\nst.relaxed.gpu.global.b128 [%0], all;\n}" ::"l"(to),
      "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w)
      : "memory");
}
ZC_DEVICE uint4 load_whole(const uint4* from) {
  uint4 x;
  asm volatile(
      "{\n.reg .b64 lo, hi;\n.reg .b128 all;\nld.relaxed.gpu.global.b128 all, [%4];\n"
      "mov.b128 {lo, hi}, all;\nmov.b64 {%0, %1}, lo;\nmov.b64 {%2, %3}, hi;\n}"
      : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
      : "l"(from)
      : "memory");
  return x;
}

// ---- kernels that overlap, from sm_90 on; no-ops before ----

// From here on the next kernel may begin, if it is one that was launched to (launch_early), as soon
// as all blocks of this one have come so far.
ZC_DEVICE void let_next_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// Waits until the kernels before this one have ended and all they wrote is seen. A kernel that was
// launched to begin early may read or write nothing of theirs before.
ZC_DEVICE void wait_for_kernels_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// ---- named barriers: n threads, a multiple of 32 ----

ZC_DEVICE void bar_sync(int id, int n) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n) : "memory");
}
ZC_DEVICE void bar_arrive(int id, int n) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(n) : "memory");
}

// ---- barriers in shared memory ----

ZC_DEVICE void mbarrier_init(uint32_t barrier, uint32_t n) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(n) : "memory");
}
ZC_DEVICE void mbarrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
ZC_DEVICE void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
ZC_DEVICE void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
ZC_DEVICE void mbarrier_arrive_expect_tx(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
// Returns when the phase of this parity has completed.
ZC_DEVICE void mbarrier_wait(uint32_t barrier, uint32_t parity) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .pred p;\nL_%=:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra "
      "D_%=;\nbra L_%=;\nD_%=:\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
#else
  asm volatile(
      "{\n.reg .pred p;\nL_%=:\nmbarrier.test_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra "
      "D_%=;\nbra L_%=;\nD_%=:\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
#endif
}

// ---- sm_90: bulk and tensor copies, warpgroup products ----

// `bytes` (a multiple of 16) from global to shared memory, counted on the barrier; both aligned to
// 16.
ZC_DEVICE void bulk_copy(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}
// The same of bytes that are read once.
ZC_DEVICE void bulk_copy_once(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1], %2, [%3], %4;" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier), "l"(evict_first())
      : "memory");
}
ZC_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
ZC_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
ZC_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

}  // namespace zc::simt

#include "csrc/cuda/device/wgmma.h"
