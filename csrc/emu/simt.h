// simt_host.h - host emulation of the CUDA execution model (one fiber per CUDA thread)
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>
#include "csrc/emu/atomics.h"
#include "csrc/emu/intrinsics.h"
#include "csrc/emu/vector_types.h"
#include "csrc/math/float16.h"
#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#undef __align__
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
// static __shared__ arrays: one copy per OS worker thread (a worker runs one block at a time)
#define __shared__ static thread_local
#define ZC_DYNAMIC_SHARED(name) unsigned char* const name = ::zc::simt::host::cur->blk->smem
// ZC_SHARED(float, s, [64]): static shared memory inside the emulated block: poisoned per block,
// addressable by smem_u32, ASan red zones
#define ZC_SHARED(T, name, ...)                                                               \
  struct simt_tag_##name {};                                                                  \
  using simt_type_##name = T __VA_ARGS__;                                                     \
  auto& name = *static_cast<simt_type_##name*>(::zc::simt::host::shared_var<simt_tag_##name>( \
      sizeof(simt_type_##name), alignof(simt_type_##name)))
#define ZC_UNROLL
#define ZC_NO_UNROLL
#define ZC_DEVICE inline
static constexpr int warpSize = 32;

namespace zc::simt {

struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* f = __builtin_FILE(), int l = __builtin_LINE()) {
    return {f, l};
  }
};

struct TensorMap {  // host stand-in for CUtensorMap
  unsigned char* base;
  int rank;
  uint64_t dim[5];
  uint64_t stride[5]; /* bytes, stride[0]=elem */
  uint32_t box[5];
  int elem;
  int swizzle; /* 0,32,64,128 bytes */
};

struct Stats {
  uint64_t switches, warp_ops, mma, ldmatrix, ldmatrix_conflict_cycles, shfl, barriers, blocks,
      cp_async, wgmma, tma;
};

namespace host {
struct Block;
struct Warp;
struct CpOp {
  unsigned char* dst;
  const unsigned char* src;
  int n;
};
enum class Wait : uint8_t { Ready, Warp, Wg, Bar, Mbar, Exited };
struct Fiber {
  void* sp;
  uint3 tid;
  unsigned linear, lane, warp_id;
  Warp* warp;
  Block* blk;
  Wait wait;
  Site site;
  uint32_t wait_mask;
  uint32_t wait_addr, wait_parity;
  const char* what;
  unsigned char* stack_lo;
  size_t stack_size;
  void* fake;
  void* tsan;
  bool async_late;
  std::vector<CpOp> cp;
  std::vector<size_t> cp_groups;
  std::vector<uint64_t> wg_groups;
};
struct Block {
  uint3 bidx;
  dim3 bdim, gdim;
  unsigned char* smem;
  size_t smem_bytes, smem_top;
};
extern __thread Fiber* cur __attribute__((tls_model("initial-exec")));
extern __thread Stats stats __attribute__((tls_model("initial-exec")));

constexpr uint32_t kSmemBase = 1024;  // shared-space address of the first dynamic byte
[[noreturn]] void fail(const char* fmt, ...) __attribute__((format(printf, 1, 2)));
using OpFn = void (*)(uint32_t mask, void* const* arg);
void warp_op(uint32_t mask, OpFn fn, void* arg, const char* what, Site);
void wg_op(void (*fn)(void* const* arg), void* arg, const char* what, Site);
void barrier(int id, int count, bool wait, Site);
void syncwarp(uint32_t mask, Site);
struct BarrierCount {
  int count, threads;
};
BarrierCount barrier_count(int predicate, Site);
void yield_();
void* static_shared(unsigned id, size_t bytes, size_t align);
unsigned next_static_id();
template <class Tag>
inline void* shared_var(size_t bytes, size_t align) {
  static const unsigned id = next_static_id();
  return static_shared(id, bytes, align);
}
void count_cp();
bool async_is_late();
// exchange functions (runtime TU)
struct ShflArg {
  uint64_t in, out;
  uint32_t src;
};
void fn_shfl(uint32_t, void* const*);
struct RedArg {
  uint32_t in, out;
  int op;
};
void fn_reduce(uint32_t, void* const*);
struct LdmArg {
  unsigned char row[16];
  uint32_t addr;
  uint32_t* out;
};
void fn_ldm4(uint32_t, void* const*);
void fn_ldm4t(uint32_t, void* const*);
struct MmaArg {
  float* d;
  const uint32_t* a;
  uint32_t b0, b1;
};
void fn_mma_bf16(uint32_t, void* const*);
void fn_mma_f16(uint32_t, void* const*);
struct MovArg {
  uint32_t in, out;
};
void fn_movmatrix(uint32_t, void* const*);
struct WgArg {
  float* d;
  const uint32_t* a;
  uint32_t ra[4];
  uint64_t da, db;
  int scale, ta, tb, n;
};
void wgmma(WgArg&, Site);
void wgmma_commit();
void wgmma_wait(int n);
void run_grid(dim3 grid, dim3 block, size_t smem, void (*invoke)(void*), void* ctx);

inline unsigned char* smem_at(uint32_t a, uint32_t bytes, uint32_t align, const char* what,
                              Site s) {
  Block* b = cur->blk;
  if (__builtin_expect(a < kSmemBase || (uint64_t(a) + bytes > kSmemBase + b->smem_bytes &&
                                         (a < kSmemBase + b->smem_bytes ||
                                          uint64_t(a) + bytes > kSmemBase + b->smem_top)),
                       0))
    fail("%s:%d: %s: shared address %u (+%u) outside the %zu bytes of dynamic shared memory",
         s.file, s.line, what, a - kSmemBase, bytes, b->smem_bytes);
  if (__builtin_expect(a % align, 0))
    fail("%s:%d: %s: shared address %u not %u-byte aligned", s.file, s.line, what, a - kSmemBase,
         align);
  return b->smem + (a - kSmemBase);
}
// typed accesses (not memcpy): libtsan's memcpy interceptor does not see fiber accesses,
// compiler-inserted checks do
inline void copy16(unsigned char* d, const unsigned char* s, int n) {
  if (n == 16) {
    auto* D = (uint64_t*)d;
    auto* S = (const uint64_t*)s;
    D[0] = S[0];
    D[1] = S[1];
  } else
    for (int i = 0; i < 16; i++) d[i] = i < n ? s[i] : 0;
}
template <class T>
inline uint64_t bits64(T v) {
  static_assert(sizeof(T) <= 8);
  uint64_t u = 0;
  std::memcpy(&u, &v, sizeof v);
  return u;
}
template <class T>
inline T from64(uint64_t u) {
  T v;
  std::memcpy(&v, &u, sizeof v);
  return v;
}
template <class T>
inline T shfl(uint32_t mask, T v, uint32_t src, const char* what, Site s) {
  ShflArg a{bits64(v), 0, src};
  warp_op(mask, fn_shfl, &a, what, s);
  return from64<T>(a.out);
}
}  // namespace host

// ---------------- launch
template <class... P, class... A>
inline void launch(void (*k)(P...), dim3 grid, dim3 block, size_t smem, A&&... a) {
  struct Ctx {
    void (*k)(P...);
    std::tuple<P...> args;
  } c{k, std::tuple<P...>(static_cast<P>(a)...)};
  host::run_grid(
      grid, block, smem,
      [](void* p) {
        auto* c = static_cast<Ctx*>(p);
        std::apply(c->k, c->args);
      },
      &c);
}
Stats take_stats();

// ---------------- wrappers with the same names as in simt_cuda.h
inline uint32_t smem_u32(const void* p, Site s = Site::here()) {
  auto* b = host::cur->blk;
  size_t off = (const unsigned char*)p - b->smem;
  if (off > b->smem_bytes + (50 << 10))
    host::fail("%s:%d: smem_u32: not a pointer into the block's shared memory", s.file, s.line);
  return uint32_t(off) + host::kSmemBase;
}
inline void ldmatrix_x4(uint32_t (&r)[4], uint32_t a, Site s = Site::here()) {
  host::LdmArg x;
  std::memcpy(x.row, host::smem_at(a, 16, 16, "ldmatrix", s), 16);
  x.addr = a;
  x.out = r;
  host::warp_op(~0u, host::fn_ldm4, &x, "ldmatrix", s);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t a, Site s = Site::here()) {
  host::LdmArg x;
  std::memcpy(x.row, host::smem_at(a, 16, 16, "ldmatrix.trans", s), 16);
  x.addr = a;
  x.out = r;
  host::warp_op(~0u, host::fn_ldm4t, &x, "ldmatrix.trans", s);
}
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bf16,
                         Site s = Site::here()) {
  host::MmaArg x{d, a, b0, b1};
  host::warp_op(~0u, host::fn_mma_bf16, &x, "mma.bf16", s);
}
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, f16,
                         Site s = Site::here()) {
  host::MmaArg x{d, a, b0, b1};
  host::warp_op(~0u, host::fn_mma_f16, &x, "mma.f16", s);
}
inline uint32_t movmatrix_trans(uint32_t v, Site s = Site::here()) {
  host::MovArg x{v, 0};
  host::warp_op(~0u, host::fn_movmatrix, &x, "movmatrix", s);
  return x.out;
}
inline void cp_async_16(uint32_t dst, const void* src, int n = 16, Site s = Site::here()) {
  auto* d = host::smem_at(dst, 16, 16, "cp.async", s);
  host::count_cp();
  if (reinterpret_cast<uintptr_t>(src) & 15)
    host::fail("%s:%d: cp.async: global address not 16-byte aligned", s.file, s.line);
  if (n < 0 || n > 16) host::fail("%s:%d: cp.async: src size %d", s.file, s.line, n);
  if (host::async_is_late()) {
    std::memset(d, 0xff, 16);
    host::cur->cp.push_back({d, (const unsigned char*)src, n});
    return;
  }
  host::copy16(d, (const unsigned char*)src, n);
}
inline void cp_async_commit() { host::cur->cp_groups.push_back(host::cur->cp.size()); }
template <int N>
inline void cp_async_wait() {
  auto* f = host::cur;
  if ((int)f->cp_groups.size() <= N) return;
  size_t upto = f->cp_groups[f->cp_groups.size() - 1 - N];
  for (size_t i = 0; i < upto; i++) {
    auto& o = f->cp[i];
    host::copy16(o.dst, o.src, o.n);
  }
  f->cp.erase(f->cp.begin(), f->cp.begin() + upto);
  f->cp_groups.erase(f->cp_groups.begin(), f->cp_groups.end() - N);
  for (auto& g : f->cp_groups) g -= upto;
}
// Results below the normal numbers are flushed to 0.
inline float ex2(float x) {
  const float y = exp2f(x);
  if (std::isnan(y)) return bits_to_float(0x7fffffffu);
  return y < FLT_MIN ? 0.0f : y;
}
inline void bar_sync(int id, int n, Site s = Site::here()) { host::barrier(id, n, true, s); }
inline void bar_arrive(int id, int n, Site s = Site::here()) { host::barrier(id, n, false, s); }
// NaN becomes the canonical one, as on the hardware.
inline uint32_t pack2(float lo, float hi, bf16) {
  return (std::isnan(lo) ? 0x7fffu : to_bf16(lo).bits) |
         (std::isnan(hi) ? 0x7fffu : uint32_t{to_bf16(hi).bits}) << 16;
}
inline uint32_t pack2(float lo, float hi, f16) {
  return (std::isnan(lo) ? 0x7fffu : to_f16(lo).bits) |
         (std::isnan(hi) ? 0x7fffu : uint32_t{to_f16(hi).bits}) << 16;
}
// Hopper
void mbarrier_init(uint32_t b, uint32_t n, Site s = Site::here());
void mbarrier_arrive(uint32_t b, Site s = Site::here());
void mbarrier_arrive_expect_tx(uint32_t b, uint32_t tx, Site s = Site::here());
void mbarrier_wait(uint32_t b, uint32_t parity, Site s = Site::here());
void bulk_copy(uint32_t dst, const void* src, uint32_t bytes, uint32_t bar, Site s = Site::here());
void tma_load_4d(uint32_t dst, const TensorMap* m, uint32_t bar, int c0, int c1, int c2, int c3,
                 Site s = Site::here());
inline void fence_async() {}
inline void fence_mbarrier_init() {}
inline void wgmma_fence() {}
inline void wgmma_commit() { host::wgmma_commit(); }
template <int N>
inline void wgmma_wait() {
  host::wgmma_wait(N);
}
template <int R>
inline void setmaxnreg_inc() {}
template <int R>
inline void setmaxnreg_dec() {}
template <int TA, int TB>
inline void wgmma_m64n64k16_bf16(float (&d)[32], uint64_t da, uint64_t db, int sc,
                                 Site s = Site::here()) {
  host::WgArg x{d, nullptr, {}, da, db, sc, TA, TB, 64};
  host::wgmma(x, s);
}
template <int TB>
inline void wgmma_m64n64k16_bf16(float (&d)[32], const uint32_t (&a)[4], uint64_t db, int sc,
                                 Site s = Site::here()) {
  host::WgArg x{d, a, {a[0], a[1], a[2], a[3]}, 0, db, sc, 0, TB, 64};
  host::wgmma(x, s);
}
}  // namespace zc::simt

// ---------------- CUDA builtins (global namespace, original names)
#define threadIdx (::zc::simt::host::cur->tid)
#define blockIdx (::zc::simt::host::cur->blk->bidx)
#define blockDim (::zc::simt::host::cur->blk->bdim)
#define gridDim (::zc::simt::host::cur->blk->gdim)
inline void __syncthreads(zc::simt::Site s = zc::simt::Site::here()) {
  zc::simt::host::barrier(0, -1, true, s);
}
inline void __syncwarp(unsigned m = ~0u, zc::simt::Site s = zc::simt::Site::here()) {
  zc::simt::host::syncwarp(m, s);
}
template <class T>
inline T __shfl_xor_sync(unsigned m, T v, int x, int w = 32,
                         zc::simt::Site s = zc::simt::Site::here()) {
  uint32_t l = zc::simt::host::cur->lane, j = l ^ x;
  if (j / w > l / w) j = l;
  return zc::simt::host::shfl(m, v, j, "shfl.xor", s);
}
template <class T>
inline T __shfl_down_sync(unsigned m, T v, unsigned d, int w = 32,
                          zc::simt::Site s = zc::simt::Site::here()) {
  uint32_t l = zc::simt::host::cur->lane;
  uint32_t j = (l % w) + d < (uint32_t)w ? l + d : l;
  return zc::simt::host::shfl(m, v, j, "shfl.down", s);
}
template <class T>
inline T __shfl_up_sync(unsigned m, T v, unsigned d, int w = 32,
                        zc::simt::Site s = zc::simt::Site::here()) {
  uint32_t l = zc::simt::host::cur->lane;
  uint32_t j = (l % w) >= d ? l - d : l;
  return zc::simt::host::shfl(m, v, j, "shfl.up", s);
}
template <class T>
inline T __shfl_sync(unsigned m, T v, int src, int w = 32,
                     zc::simt::Site s = zc::simt::Site::here()) {
  uint32_t l = zc::simt::host::cur->lane;
  return zc::simt::host::shfl(m, v, (l / w) * w + (uint32_t(src) % w), "shfl", s);
}
namespace zc::simt::host {
enum ReduceOp : int { kBallot, kAdd, kMin, kMax, kMinSigned, kMaxSigned, kAnd, kOr, kXor, kMatch };
inline uint32_t reduce(uint32_t mask, uint32_t value, ReduceOp op, const char* what, Site s) {
  RedArg a{value, 0, op};
  warp_op(mask, fn_reduce, &a, what, s);
  return a.out;
}
}  // namespace zc::simt::host
#define ZC_EMU_REDUCE(name, Result, Value, value, op)                                              \
  inline Result name(unsigned mask, Value x, zc::simt::Site s = zc::simt::Site::here()) {          \
    return static_cast<Result>(                                                                    \
        zc::simt::host::reduce(mask, static_cast<uint32_t>(value), zc::simt::host::op, #name, s)); \
  }
ZC_EMU_REDUCE(__ballot_sync, unsigned, int, x != 0, kBallot)
ZC_EMU_REDUCE(__reduce_add_sync, unsigned, unsigned, x, kAdd)
ZC_EMU_REDUCE(__reduce_add_sync, int, int, x, kAdd)
ZC_EMU_REDUCE(__reduce_min_sync, unsigned, unsigned, x, kMin)
ZC_EMU_REDUCE(__reduce_min_sync, int, int, x, kMinSigned)
ZC_EMU_REDUCE(__reduce_max_sync, unsigned, unsigned, x, kMax)
ZC_EMU_REDUCE(__reduce_max_sync, int, int, x, kMaxSigned)
ZC_EMU_REDUCE(__reduce_and_sync, unsigned, unsigned, x, kAnd)
ZC_EMU_REDUCE(__reduce_or_sync, unsigned, unsigned, x, kOr)
ZC_EMU_REDUCE(__reduce_xor_sync, unsigned, unsigned, x, kXor)
ZC_EMU_REDUCE(__match_any_sync, unsigned, unsigned, x, kMatch)
ZC_EMU_REDUCE(__match_any_sync, unsigned, int, x, kMatch)
ZC_EMU_REDUCE(__match_any_sync, unsigned, float, __float_as_uint(x), kMatch)
#undef ZC_EMU_REDUCE
inline int __any_sync(unsigned m, int p, zc::simt::Site s = zc::simt::Site::here()) {
  return zc::simt::host::reduce(m, p != 0, zc::simt::host::kOr, "__any_sync", s) != 0;
}
inline int __all_sync(unsigned m, int p, zc::simt::Site s = zc::simt::Site::here()) {
  return zc::simt::host::reduce(m, p != 0, zc::simt::host::kAnd, "__all_sync", s) != 0;
}
// __syncthreads that counts (ands, ors) a predicate over the block.
inline int __syncthreads_count(int p, zc::simt::Site s = zc::simt::Site::here()) {
  return zc::simt::host::barrier_count(p != 0, s).count;
}
inline int __syncthreads_and(int p, zc::simt::Site s = zc::simt::Site::here()) {
  const auto result = zc::simt::host::barrier_count(p != 0, s);
  return result.count == result.threads;
}
inline int __syncthreads_or(int p, zc::simt::Site s = zc::simt::Site::here()) {
  return zc::simt::host::barrier_count(p != 0, s).count != 0;
}
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __nanosleep(unsigned) { zc::simt::host::yield_(); }
inline void __threadfence_system() { __threadfence(); }
[[noreturn]] inline void __trap() { zc::simt::host::fail("__trap"); }
inline long long clock64() { return static_cast<long long>(__builtin_ia32_rdtsc()); }
