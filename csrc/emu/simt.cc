// simt_host.cpp - runtime: fibers, scheduler, collectives. Compile with -fno-sanitize=thread (and
// -DSIMT_TSAN when the rest is TSan)
#include "csrc/emu/simt.h"
#include <atomic>
#include <cstdarg>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <sys/mman.h>
#include <thread>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#include <pthread.h>
#endif
#if defined(SIMT_TSAN)
extern "C" {
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned);
void __tsan_destroy_fiber(void*);
void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(void*);
void __tsan_release(void*);
void __tsan_read_range(void*, unsigned long);
void __tsan_write_range(void*, unsigned long);
}
extern "C" {
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
// the runtime is not instrumented, but libtsan still sees its memcpy/memset/new/delete calls:
// ignore them
struct TsanIgnore {
  TsanIgnore() {
    AnnotateIgnoreReadsBegin("", 0);
    AnnotateIgnoreWritesBegin("", 0);
  }
  ~TsanIgnore() {
    AnnotateIgnoreWritesEnd("", 0);
    AnnotateIgnoreReadsEnd("", 0);
  }
};
#define REL(p) __tsan_release((void*)(p))
#define ACQ(p) __tsan_acquire((void*)(p))
#else
struct TsanIgnore {
  TsanIgnore() {}
  ~TsanIgnore() {}
};
#define REL(p) ((void)(p))
#define ACQ(p) ((void)(p))
#endif
#ifdef SIMT_UCONTEXT
#include <ucontext.h>
#endif

#if defined(__x86_64__)
asm(R"(
.text
.p2align 4
.type simt_switch_ctx,@function
simt_switch_ctx:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch_ctx,.-simt_switch_ctx
)");
#elif defined(__aarch64__)
asm(R"(
.text
.p2align 4
.type simt_switch_ctx,%function
simt_switch_ctx:
  sub sp, sp, #160
  stp x19,x20,[sp,#0]
  stp x21,x22,[sp,#16]
  stp x23,x24,[sp,#32]
  stp x25,x26,[sp,#48]
  stp x27,x28,[sp,#64]
  stp x29,x30,[sp,#80]
  stp d8,d9,[sp,#96]
  stp d10,d11,[sp,#112]
  stp d12,d13,[sp,#128]
  stp d14,d15,[sp,#144]
  mov x9, sp
  str x9,[x0]
  mov sp, x1
  ldp x19,x20,[sp,#0]
  ldp x21,x22,[sp,#16]
  ldp x23,x24,[sp,#32]
  ldp x25,x26,[sp,#48]
  ldp x27,x28,[sp,#64]
  ldp x29,x30,[sp,#80]
  ldp d8,d9,[sp,#96]
  ldp d10,d11,[sp,#112]
  ldp d12,d13,[sp,#128]
  ldp d14,d15,[sp,#144]
  add sp, sp, #160
  ret
.size simt_switch_ctx,.-simt_switch_ctx
)");
#endif
extern "C" void simt_switch_ctx(void** save, void* to);

namespace zc::simt {
namespace host {
__thread Fiber* cur;
__thread Stats stats;

struct Warp {
  uint32_t ready, waiting, exited, all;
  void* arg[32];
  OpFn fn[32];
  uint32_t mask[32];
  int tsan_phase;
};
struct Bar {
  int arrived = 0, expected = 0;
  uint32_t wait[32] = {};
  Site site{};
  uint64_t phase = 0;
  BarrierCount counted[2] = {};
};
struct WgPending {
  WgArg a[128];
};
struct Wg {
  int arrived;
  void* arg[128];
  uint32_t wait[4];
  void (*fn)(void* const*);
  std::deque<std::unique_ptr<WgPending>> pend;
  uint64_t issued, done;
};

struct Cfg {
  int sched = 0;
  bool async_late = false, async_rand = false;
  uint64_t seed = 1;
  size_t stack = 64 << 10;
  int threads = 0;
  bool strict = true;
  Cfg() {
    if (const char* s = getenv("SIMT_SCHED")) {
      if (!strncmp(s, "rev", 3))
        sched = 1;
      else if (!strncmp(s, "rand", 4)) {
        sched = 2;
        if (s[4] == ':') seed = atoi(s + 5) * 2 + 1;
      }
    }
    if (const char* s = getenv("SIMT_ASYNC")) {
      async_late = !strcmp(s, "late");
      async_rand = !strcmp(s, "rand");
    }
    if (const char* s = getenv("SIMT_STACK_KB")) stack = size_t(atoi(s)) << 10;
#if defined(__SANITIZE_ADDRESS__) || defined(SIMT_TSAN)
    else
      stack = 256 << 10;
#endif
    threads = getenv("SIMT_THREADS") ? atoi(getenv("SIMT_THREADS")) : 1;
  }
};
static Cfg& cfg() {
  static Cfg c;
  return c;
}

struct Worker {  // one per OS thread: fiber pool + state of the block being run
  Block blk;
  unsigned n = 0, alive = 0, nwarps = 0;
  std::vector<Fiber> f;
  Warp warps[32];
  Bar bars[16];
  Wg wgs[8];
  std::deque<std::function<void()>> async;
  int ops_since_yield = 0;
  uint64_t rng;
  void* main_sp = nullptr;
  void* main_fake = nullptr;
  const void* main_lo = nullptr;
  size_t main_size = 0;
  void* main_tsan = nullptr;
  std::exception_ptr err;
  void (*invoke)(void*);
  void* ctx;
  unsigned char* pool = nullptr;
  size_t pool_n = 0, pool_stack = 0;
  unsigned char* arena = nullptr;
  size_t arena_bytes = 0;
  char tok_begin, tok_end;
  bool started_in_main = true;
  uint64_t yields = 0;
  char wg_issue_tok[8], wg_done_tok[8], tma_tok;
  void* proxy[8] = {};
  unsigned proxy_i = 0;
  std::vector<uint32_t> mbars;
  struct Stat {
    unsigned id;
    size_t off;
  };
  std::vector<Stat> stat;
  size_t stat_top = 0;
  ~Worker() {
    if (pool) munmap(pool, pool_n * pool_stack);
    free(arena);
#if defined(SIMT_TSAN)
    for (auto& x : f)
      if (x.tsan) __tsan_destroy_fiber(x.tsan);
#endif
  }
  uint32_t rnd() {
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return uint32_t(rng >> 11);
  }
};
static thread_local Worker* W;

void fail(const char* fmt, ...) {
  char b[4096];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(b, sizeof b, fmt, ap);
  va_end(ap);
  std::string m = b;
  if (cur) {
    char t[128];
    snprintf(t, sizeof t, " [block (%u,%u,%u) thread %u]", cur->blk->bidx.x, cur->blk->bidx.y,
             cur->blk->bidx.z, cur->linear);
    m += t;
  }
  throw std::runtime_error(m);
}
void count_cp() { stats.cp_async++; }
unsigned next_static_id() {
  static std::atomic<unsigned> n{0};
  return n++;
}
void* static_shared(unsigned id, size_t bytes, size_t align) {
  TsanIgnore ig;
  for (auto& x : W->stat)
    if (x.id == id) return W->arena + x.off;
  size_t off = (W->stat_top + align - 1) & ~(align - 1);
  W->stat_top = (off + bytes + 63) & ~size_t(31);
  if (W->stat_top > W->arena_bytes || W->stat_top - W->blk.smem_bytes > (48 << 10) + 64)
    fail("static shared memory above 48 KB");
  W->stat.push_back({id, off});
  W->blk.smem_top = off + bytes;
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(W->arena + off, bytes);
#endif
  return W->arena + off;
}
bool async_is_late() { return cfg().async_late || (cfg().async_rand && (W->rnd() & 1)); }

// ---- switching
static inline void pre_switch([[maybe_unused]] void** fake, [[maybe_unused]] Fiber* to) {
#if defined(__SANITIZE_ADDRESS__)
  if (to)
    __sanitizer_start_switch_fiber(fake, to->stack_lo, to->stack_size);
  else
    __sanitizer_start_switch_fiber(fake, W->main_lo, W->main_size);
#endif
#if defined(SIMT_TSAN)
  __tsan_switch_to_fiber(to ? to->tsan : W->main_tsan,
                         1 /* no sync: happens-before only through barriers */);
#endif
}
static inline void switch_to(Fiber* to) {
  Fiber* me = cur;
  stats.switches++;
  pre_switch(&me->fake, to);
  cur = to;
  simt_switch_ctx(&me->sp, to->sp);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(me->fake, nullptr, nullptr);
#endif
}
[[noreturn]] static void to_main(Fiber* me) {
  REL(&W->tok_end);
  pre_switch(nullptr, nullptr);
  cur = nullptr;
  simt_switch_ctx(&me->sp, W->main_sp);
  __builtin_unreachable();
}
static std::string describe() {  // who waits where
  std::map<std::string, std::vector<unsigned>> g;
  for (unsigned i = 0; i < W->n; i++) {
    Fiber& f = W->f[i];
    char b[256];
    switch (f.wait) {
      case Wait::Exited:
        snprintf(b, sizeof b, "exited");
        break;
      case Wait::Warp:
        snprintf(b, sizeof b, "%s (mask %08x) at %s:%d", f.what, f.wait_mask, f.site.file,
                 f.site.line);
        break;
      case Wait::Wg:
        snprintf(b, sizeof b, "%s (warpgroup) at %s:%d", f.what, f.site.file, f.site.line);
        break;
      case Wait::Bar:
        snprintf(b, sizeof b, "barrier %u (%d of %d arrived) at %s:%d", f.wait_addr,
                 W->bars[f.wait_addr].arrived, W->bars[f.wait_addr].expected, f.site.file,
                 f.site.line);
        break;
      case Wait::Mbar:
        snprintf(b, sizeof b, "mbarrier smem+%u parity %u at %s:%d", f.wait_addr - kSmemBase,
                 f.wait_parity, f.site.file, f.site.line);
        break;
      default:
        snprintf(b, sizeof b, "ready");
    }
    g[b].push_back(i);
  }
  std::string s;
  for (auto& [k, v] : g) {
    s += "\n  threads ";
    for (size_t i = 0; i < v.size();) {
      size_t j = i;
      while (j + 1 < v.size() && v[j + 1] == v[j] + 1) j++;
      s += (i ? "," : "") + std::to_string(v[i]) + (j > i ? "-" + std::to_string(v[j]) : "");
      i = j + 1;
      if (i > 40 && i < v.size()) {
        s += ",...";
        break;
      }
    }
    s += ": " + k;
  }
  return s;
}
static Fiber* pick() {
  Worker& w = *W;
  const int sched = cfg().sched;
  for (;;) {
    if (__builtin_expect(sched == 2, 0)) {
      if (!w.async.empty() && (w.rnd() & 15) == 0) {
        TsanIgnore ig;
        auto op = std::move(w.async.front());
        w.async.pop_front();
        op();
      }
      unsigned k = w.rnd() % w.nwarps;
      if (cur && cur->warp->ready && (w.rnd() & 7)) k = cur->warp_id;
      for (unsigned i = 0; i < w.nwarps; i++, k = k + 1 == w.nwarps ? 0 : k + 1)
        if (uint32_t r = w.warps[k].ready) {
          unsigned rot = w.rnd() & 31;
          uint32_t rr = (r >> rot) | (rot ? r << (32 - rot) : 0);
          return &w.f[k * 32 + ((__builtin_ctz(rr) + rot) & 31)];
        }
    } else {
      unsigned k = cur ? cur->warp_id : 0;
      if (uint32_t r = w.warps[k].ready)
        return &w.f[k * 32 + (sched ? 31 - __builtin_clz(r) : __builtin_ctz(r))];
      for (unsigned i = 1; i < w.nwarps; i++) {
        k = sched ? (k ? k - 1 : w.nwarps - 1) : (k + 1 == w.nwarps ? 0 : k + 1);
        if (uint32_t r = w.warps[k].ready)
          return &w.f[k * 32 + (sched ? 31 - __builtin_clz(r) : __builtin_ctz(r))];
      }
    }
    if (w.async.empty()) return nullptr;
    TsanIgnore ig;
    auto op = std::move(w.async.front());
    w.async.pop_front();
    op();  // nothing can run: let the async proxies make progress
  }
}
static void block_(Wait k, const char* what,
                   Site s) {  // suspend the current fiber (its ready bit is already clear)
  Fiber* me = cur;
  me->wait = k;
  me->what = what;
  me->site = s;
  W->yields = 0;
  Fiber* n = pick();
  if (!n) fail("deadlock, no thread of the block can run:%s\n", describe().c_str());
  if (n != me) switch_to(n);
  me->wait = Wait::Ready;
  if (W->err) {
    to_main(me);
  }
}
void yield_() {
  Fiber* me = cur;
  if (++W->yields > 2000000) fail("livelock: only spinning threads:%s", describe().c_str());
  uint32_t bit = 1u << me->lane;
  me->warp->ready &= ~bit;
  Fiber* n = pick();
  me->warp->ready |= bit;
  if (n) switch_to(n);
}
static void release_bar(Bar& b) {
  for (unsigned i = 0; i < W->nwarps; i++) {
    W->warps[i].ready |= b.wait[i];
    b.wait[i] = 0;
  }
  b.arrived = 0;
  b.phase++;
  stats.barriers++;
}
static void finish(Fiber* me) {
  Warp& w = *me->warp;
  uint32_t bit = 1u << me->lane;
  w.ready &= ~bit;
  w.exited |= bit;
  me->wait = Wait::Exited;
  W->alive--;
  if (W->bars[0].arrived && W->bars[0].arrived >= (int)W->alive) release_bar(W->bars[0]);
  if (W->err || !W->alive) to_main(me);
  Fiber* n = pick();
  if (!n) {
    try {
      fail("deadlock, no thread of the block can run:%s\n", describe().c_str());
    } catch (...) {
      W->err = std::current_exception();
    }
    to_main(me);
  }
  pre_switch(nullptr, n);
  cur = n;
  stats.switches++;
  simt_switch_ctx(&me->sp, n->sp);
  __builtin_unreachable();
}
static void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  {
    const void* lo;
    size_t sz;
    __sanitizer_finish_switch_fiber(nullptr, &lo, &sz);
    if (!W->main_lo) {
      W->main_lo = lo;
      W->main_size = sz;
    }
  }
#endif
  ACQ(&W->tok_begin);
  try {
    W->invoke(W->ctx);
  } catch (...) {
    if (!W->err) W->err = std::current_exception();
  }
  REL(&W->tok_end);
  finish(cur);
}

// ---- warp collectives: the last lane to arrive computes the result for all
void warp_op(uint32_t mask, OpFn fn, void* arg, const char* what, Site s) {
  Fiber* me = cur;
  Warp& w = *me->warp;
  unsigned l = me->lane;
  uint32_t bit = 1u << l;
  stats.warp_ops++;
  if (__builtin_expect(!(mask & bit), 0))
    fail("%s:%d: %s: lane %u is not in its own mask %08x", s.file, s.line, what, l, mask);
  if (__builtin_expect(mask & (w.exited | ~w.all), 0))
    fail("%s:%d: %s: mask %08x names exited or absent lanes %08x", s.file, s.line, what, mask,
         mask & (w.exited | ~w.all));
  w.arg[l] = arg;
  w.fn[l] = fn;
  w.mask[l] = mask;
  w.waiting |= bit;
  if ((w.waiting & mask) == mask) {
    bool same = true;
    for (uint32_t m = mask; m; m &= m - 1) {
      unsigned j = __builtin_ctz(m);
      same &= w.mask[j] == mask;
      if (w.mask[j] == mask && w.fn[j] != fn) {
        Fiber& o = W->f[me->warp_id * 32 + j];
        fail("divergent warp collective: lane %u does %s at %s:%d, lane %u does %s at %s:%d", l,
             what, s.file, s.line, j, o.what, o.site.file, o.site.line);
      }
    }
    if (same) {
      fn(mask, w.arg);
      w.waiting &= ~mask;
      w.ready |= mask;
      return;
    }
  }
  w.ready &= ~bit;
  me->wait_mask = mask;
  block_(Wait::Warp, what, s);
}
static void fn_sync(uint32_t, void* const*) {}
void syncwarp(uint32_t mask, Site s) {
#if defined(SIMT_TSAN)
  Warp* w = cur->warp;
  char* tok = (char*)&w->tsan_phase;
  static thread_local std::vector<int> ph(1024);
  int& p = ph[cur->linear];
  p ^= 1;
  REL(tok + p);
  warp_op(mask, fn_sync, nullptr, "syncwarp", s);
  ACQ(tok + p);
#else
  warp_op(mask, fn_sync, nullptr, "syncwarp", s);
#endif
}
void barrier(int id, int count, bool wait, Site s) {
  Fiber* me = cur;
  Bar& b = W->bars[id & 15];
  if (count >= 0 &&
      (count % 32 || count > (int)W->blk.bdim.x * (int)W->blk.bdim.y * (int)W->blk.bdim.z))
    fail("%s:%d: barrier count %d", s.file, s.line, count);
  int exp = count < 0 ? (int)W->alive : count;
  if (b.arrived == 0) {
    b.site = s;
    b.expected = exp;
  } else if (cfg().strict && id == 0 && count < 0 &&
             (b.site.line != s.line || strcmp(b.site.file, s.file)))
    fail("divergent __syncthreads: thread %u at %s:%d, others at %s:%d", me->linear, s.file, s.line,
         b.site.file, b.site.line);
  else if (count >= 0 && b.expected != count)
    fail("%s:%d: barrier %d used with counts %d and %d", s.file, s.line, id, b.expected, count);
  [[maybe_unused]] char* tok = (char*)&b.phase + (b.phase & 1);
  REL(tok);
  b.arrived++;
  if (b.arrived >= (count < 0 ? (int)W->alive : count)) {
    release_bar(b);
    ACQ(tok);
    return;
  }
  if (!wait) return;
  b.wait[me->warp_id] |= 1u << me->lane;
  me->warp->ready &= ~(1u << me->lane);
  me->wait_addr = id;
  block_(Wait::Bar, "barrier", s);
  ACQ(tok);
}
BarrierCount barrier_count(int predicate, Site s) {
  Bar& b = W->bars[0];
  // A phase's slot is cleared by the first to arrive; by the next phase but one all have read it.
  const unsigned slot = b.phase & 1;
  if (b.arrived == 0) b.counted[slot] = {};
  b.counted[slot].count += predicate;
  b.counted[slot].threads += 1;
  barrier(0, -1, true, s);
  return b.counted[slot];
}
// ---- warp functions
void fn_shfl(uint32_t mask, void* const* a) {
  stats.shfl++;
  for (uint32_t m = mask; m; m &= m - 1) {
    auto* x = (ShflArg*)a[__builtin_ctz(m)];
    x->out = (mask >> x->src & 1) ? ((ShflArg*)a[x->src])->in : ~0ull;
  }
}
void fn_reduce(uint32_t mask, void* const* a) {
  const auto arg = [&](uint32_t m) -> RedArg& { return *(RedArg*)a[__builtin_ctz(m)]; };
  const int op = arg(mask).op;
  if (op == kMatch) {
    for (uint32_t m = mask; m; m &= m - 1) {
      uint32_t equal = 0;
      for (uint32_t k = mask; k; k &= k - 1)
        if (arg(k).in == arg(m).in) equal |= k & -k;
      arg(m).out = equal;
    }
    return;
  }
  uint32_t r = op == kBallot ? 0 : arg(mask).in;
  if (op == kBallot) r = arg(mask).in << __builtin_ctz(mask);
  for (uint32_t m = mask & (mask - 1); m; m &= m - 1) {
    const uint32_t v = arg(m).in;
    switch (op) {
      case kBallot:
        r |= v << __builtin_ctz(m);
        break;
      case kAdd:
        r += v;
        break;
      case kMin:
        r = std::min(r, v);
        break;
      case kMax:
        r = std::max(r, v);
        break;
      case kMinSigned:
        r = uint32_t(std::min(int32_t(r), int32_t(v)));
        break;
      case kMaxSigned:
        r = uint32_t(std::max(int32_t(r), int32_t(v)));
        break;
      case kAnd:
        r &= v;
        break;
      case kOr:
        r |= v;
        break;
      default:
        r ^= v;
    }
  }
  for (uint32_t m = mask; m; m &= m - 1) arg(m).out = r;
}
static void ldm_stats(void* const* a) {
  stats.ldmatrix++;
  for (int i = 0; i < 4; i++) {
    int cnt[8] = {}, mx = 0;
    for (int r = 0; r < 8; r++) {
      int c = ++cnt[(((LdmArg*)a[8 * i + r])->addr >> 4) & 7];
      if (c > mx) mx = c;
    }
    stats.ldmatrix_conflict_cycles += mx - 1;
  }
}
void fn_ldm4(uint32_t, void* const* a) {  // matrix i: rows from lanes 8i..8i+7; lane l gets row
                                          // l/4, elements 2*(l%4), +1
  ldm_stats(a);
  uint32_t o[32][4];
  for (int l = 0; l < 32; l++)
    for (int i = 0; i < 4; i++) memcpy(&o[l][i], ((LdmArg*)a[8 * i + l / 4])->row + 4 * (l % 4), 4);
  for (int l = 0; l < 32; l++) memcpy(((LdmArg*)a[l])->out, o[l], 16);
}
void fn_ldm4t(uint32_t,
              void* const* a) {  // transposed: lane l gets elements (row 2*(l%4), +1; column l/4)
  ldm_stats(a);
  uint32_t o[32][4];
  for (int l = 0; l < 32; l++)
    for (int i = 0; i < 4; i++) {
      uint16_t h[2];
      for (int e = 0; e < 2; e++)
        memcpy(&h[e], ((LdmArg*)a[8 * i + 2 * (l % 4) + e])->row + 2 * (l / 4), 2);
      memcpy(&o[l][i], h, 4);
    }
  for (int l = 0; l < 32; l++) memcpy(((LdmArg*)a[l])->out, o[l], 16);
}
static inline float bf(uint32_t h) {
  uint32_t u = h << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}
static inline float hf(uint32_t h) {
  uint32_t s = (h & 0x8000) << 16, x = h & 0x7fff, u;
  float f;
  if (x >= 0x7c00)
    u = 0x7f800000 | (x & 0x3ff) << 13;
  else {
    uint32_t y = x << 13;
    float m, k;
    uint32_t kk = 0x77800000;
    memcpy(&m, &y, 4);
    memcpy(&k, &kk, 4);
    m *= k;
    memcpy(&u, &m, 4);
  }
  u |= s;
  memcpy(&f, &u, 4);
  return f;
}
typedef float v4 __attribute__((vector_size(16)));
template <bool BF>
static inline void mma_impl(void* const* a) {
  auto cv = [](uint32_t h) { return BF ? bf(h) : hf(h); };
  stats.mma++;
  float A[16][16];
  alignas(16) float B[16][8];
  for (int l = 0; l < 32;
       l++) {  // A: a0 (g,2t) a1 (g+8,2t) a2 (g,2t+8) a3 (g+8,2t+8); B: b0 (2t,g) b1 (2t+8,g)
    auto* x = (MmaArg*)a[l];
    int g = l >> 2, t = (l & 3) * 2;
    for (int r = 0; r < 4; r++) {
      uint32_t v = x->a[r];
      int row = g + (r & 1) * 8, k = t + (r >> 1) * 8;
      A[row][k] = cv(v & 0xffff);
      A[row][k + 1] = cv(v >> 16);
    }
    B[t][g] = cv(x->b0 & 0xffff);
    B[t + 1][g] = cv(x->b0 >> 16);
    B[t + 8][g] = cv(x->b1 & 0xffff);
    B[t + 9][g] = cv(x->b1 >> 16);
  }
  for (int g = 0; g < 8; g++) {  // C/D: d0,d1 (g,2t..) d2,d3 (g+8,2t..)
    v4 c[4] = {};
    for (int k = 0; k < 16; k++) {
      v4 b0 = *(v4*)&B[k][0], b1 = *(v4*)&B[k][4];
      float p = A[g][k], q = A[g + 8][k];
      c[0] += p * b0;
      c[1] += p * b1;
      c[2] += q * b0;
      c[3] += q * b1;
    }
    float* cc = (float*)c;
    for (int t = 0; t < 4; t++) {
      float* d = ((MmaArg*)a[g * 4 + t])->d;
      d[0] += cc[2 * t];
      d[1] += cc[2 * t + 1];
      d[2] += cc[8 + 2 * t];
      d[3] += cc[8 + 2 * t + 1];
    }
  }
}
void fn_mma_bf16(uint32_t, void* const* a) { mma_impl<true>(a); }
void fn_mma_f16(uint32_t, void* const* a) { mma_impl<false>(a); }
void fn_movmatrix(uint32_t,
                  void* const* a) {  // in: (g, 2t), (g, 2t + 1); out: (2t, g), (2t + 1, g)
  uint16_t m[8][8];
  for (int l = 0; l < 32; l++) {
    uint32_t v = ((MovArg*)a[l])->in;
    m[l / 4][2 * (l % 4)] = uint16_t(v);
    m[l / 4][2 * (l % 4) + 1] = uint16_t(v >> 16);
  }
  for (int l = 0; l < 32; l++)
    ((MovArg*)a[l])->out = m[2 * (l % 4)][l / 4] | uint32_t(m[2 * (l % 4) + 1][l / 4]) << 16;
}

// ---- warpgroup (128 lanes) collectives
void wg_op(void (*fn)(void* const*), void* arg, const char* what, Site s) {
  Fiber* me = cur;
  unsigned g = me->warp_id / 4, i = me->linear % 128;
  Wg& q = W->wgs[g];
  if ((g + 1) * 128 > W->n) fail("%s:%d: %s: incomplete warpgroup", s.file, s.line, what);
  if (q.arrived && q.fn != fn)
    fail("%s:%d: %s: divergent warpgroup collective", s.file, s.line, what);
  q.fn = fn;
  q.arg[i] = arg;
  if (++q.arrived == 128) {
    fn(q.arg);
    q.arrived = 0;
    for (int k = 0; k < 4; k++) {
      W->warps[g * 4 + k].ready |= q.wait[k];
      q.wait[k] = 0;
    }
    return;
  }
  q.wait[me->warp_id & 3] |= 1u << me->lane;
  me->warp->ready &= ~(1u << me->lane);
  block_(Wait::Wg, what, s);
}
struct Desc {
  uint32_t start, lbo, sbo;
  int swz;
};
static Desc decode(uint64_t d) {
  static const int sz[4] = {0, 128, 64, 32};
  if ((d >> 49) & 7) fail("wgmma descriptor: base offset != 0 not supported");
  return {uint32_t(d & 0x3fff) << 4, uint32_t(d >> 16 & 0x3fff) << 4,
          uint32_t(d >> 32 & 0x3fff) << 4, sz[d >> 62]};
}
static uint32_t swz(uint32_t a, int s) {
  return s == 128  ? a ^ ((a >> 7 & 7) << 4)
         : s == 64 ? a ^ ((a >> 7 & 3) << 4)
         : s == 32 ? a ^ ((a >> 7 & 1) << 4)
                   : a;
}
// byte address of 16-bit element (mn, k) of an operand tile
static uint32_t desc_addr(const Desc& d, bool mn_major, int mn, int k) {
  uint32_t a = d.start;
  if (!mn_major) {  // K-major: 8-row groups SBO apart
    if (d.swz)
      a += (mn / 8) * d.sbo + (mn % 8) * d.swz + k * 2;
    else
      a += (mn / 8) * d.sbo + (k / 8) * d.lbo + (mn % 8) * 16 + (k % 8) * 2;
  } else {  // MN-major: atoms of swz bytes along MN, LBO apart; 8-k groups SBO apart
    if (d.swz) {
      int e = d.swz / 2;
      a += (mn / e) * d.lbo + (k / 8) * d.sbo + (k % 8) * d.swz + (mn % e) * 2;
    } else
      a += (mn / 8) * d.sbo + (k / 8) * d.lbo + (k % 8) * 16 + (mn % 8) * 2;
  }
  return swz(a, d.swz);
}
// async proxies (wgmma reads, TMA writes) are TSan contexts of their own: ordered after the issuer,
// before whoever waits
#if defined(SIMT_TSAN)
static void tsan_enter_proxy(char* acq) {
  if (!W->proxy[0])
    for (auto& p : W->proxy) p = __tsan_create_fiber(0);
  __tsan_switch_to_fiber(W->proxy[W->proxy_i++ % 8], 1);
  ACQ(acq);
}
static void tsan_leave_proxy(char* rel) {
  REL(rel);
  __tsan_switch_to_fiber(cur->tsan, 1);
}
static void tsan_read(const void* p, size_t n) { __tsan_read_range((void*)p, n); }
static void tsan_write(void* p, size_t n) { __tsan_write_range(p, n); }
#else
static void tsan_enter_proxy(char*) {}
static void tsan_leave_proxy(char*) {}
static void tsan_read(const void*, size_t) {}
static void tsan_write(void*, size_t) {}
#endif
static void wg_exec(WgArg* const* a) {
  stats.wgmma++;
  const WgArg& x = *a[0];
  const int N = x.n;
  // On the heap: a library that is loaded at run time gets little thread-local memory.
  struct Tiles {
    float A[64][16], B[16][256], D[64][256];
  };
  static thread_local std::unique_ptr<Tiles> tiles;
  if (!tiles) tiles = std::make_unique<Tiles>();
  auto& [A, B, D] = *tiles;
  // 16-byte chunks (8 elements along the contiguous direction) through the descriptor's address map
  auto ld = [](const Desc& d, bool t, int MN, auto&& put) {
    for (int mn = 0; mn < MN; mn += t ? 8 : 1)
      for (int k = 0; k < 16; k += t ? 1 : 8) {
        const unsigned char* p =
            smem_at(desc_addr(d, t, mn, k), 16, 16, "wgmma operand", {"descriptor", 0});
        tsan_read(p, 16);
        uint16_t h[8];
        memcpy(h, p, 16);
        for (int i = 0; i < 8; i++) put(t ? mn + i : mn, t ? k : k + i, bf(h[i]));
      }
  };
  tsan_enter_proxy(W->wg_issue_tok + cur->warp_id / 4);
  if (x.a == nullptr)
    ld(decode(x.da), x.ta, 64, [&](int m, int k, float v) { A[m][k] = v; });
  else
    for (int i = 0; i < 128; i++) {
      int w = i / 32, g = (i & 31) >> 2, t = (i & 3) * 2;
      for (int r = 0; r < 4; r++) {
        uint32_t v = a[i]->ra[r];
        int m = 16 * w + g + (r & 1) * 8, k = t + (r >> 1) * 8;
        A[m][k] = bf(v & 0xffff);
        A[m][k + 1] = bf(v >> 16);
      }
    }
  ld(decode(x.db), x.tb, N, [&](int n, int k, float v) { B[k][n] = v; });
  tsan_leave_proxy(W->wg_done_tok + cur->warp_id / 4);
  for (int m = 0; m < 64; m++) {
    for (int n = 0; n < N; n++) D[m][n] = 0;
    for (int k = 0; k < 16; k++) {
      float p = A[m][k];
      for (int n = 0; n < N; n++) D[m][n] += p * B[k][n];
    }
  }
  for (int i = 0; i < 128; i++) {
    int w = i / 32, g = (i & 31) >> 2, t = (i & 3) * 2;
    float* d = a[i]->d;
    for (int j = 0; j < N / 8; j++)
      for (int e = 0; e < 4; e++) {
        float v = D[16 * w + g + (e >> 1) * 8][8 * j + t + (e & 1)];
        d[4 * j + e] = x.scale ? d[4 * j + e] + v : v;
      }
  }
}
static void wg_issue(void* const* arg) {
  TsanIgnore ig;
  Wg& q = W->wgs[cur->warp_id / 4];
  auto* a = (WgArg* const*)arg;
  for (int i = 1; i < 128; i++)
    if (a[i]->da != a[0]->da || a[i]->db != a[0]->db || a[i]->scale != a[0]->scale)
      fail("wgmma: descriptors/scale differ between lanes of the warpgroup");
  q.issued++;
  if (!async_is_late() && q.pend.empty()) {
    wg_exec(a);
    q.done++;
    return;
  }
  auto p = std::make_unique<WgPending>();
  for (int i = 0; i < 128; i++) {
    p->a[i] = *a[i];
  }
  q.pend.push_back(std::move(p));
}
void wgmma(WgArg& x, Site s) {
  REL(W->wg_issue_tok + cur->warp_id / 4);
  wg_op(wg_issue, &x, "wgmma", s);
}
void wgmma_commit() { cur->wg_groups.push_back(W->wgs[cur->warp_id / 4].issued); }
static void wait_all_done(Wg& q, uint64_t upto) {
  TsanIgnore ig;
  while (q.done < upto) {
    WgArg* p[128];
    for (int i = 0; i < 128; i++) p[i] = &q.pend.front()->a[i];
    wg_exec(p);
    q.pend.pop_front();
    q.done++;
  }
}
void wgmma_wait(int n) {
  Fiber* f = cur;
  Wg& q = W->wgs[f->warp_id / 4];
  if ((int)f->wg_groups.size() <= n) return;
  uint64_t upto = f->wg_groups[f->wg_groups.size() - 1 - n];
  f->wg_groups.erase(f->wg_groups.begin(), f->wg_groups.end() - n);
  wait_all_done(q, upto);
  ACQ(W->wg_done_tok + f->warp_id / 4);
}
}  // namespace host
using namespace host;

// ---- mbarrier: 64-bit object in shared memory
struct MBar {
  int64_t tx : 22;
  uint64_t pending : 20, expected : 20, phase : 1, poison : 1;
};
static_assert(sizeof(MBar) == 8);
static MBar* mb(uint32_t b, Site s) {
  auto* m = (MBar*)smem_at(b, 8, 8, "mbarrier", s);
  if (m->poison)
    fail("%s:%d: mbarrier at smem+%u is not initialised", s.file, s.line, b - kSmemBase);
  return m;
}
static void mb_check(MBar* m, uint32_t addr) {
  if (m->pending == 0 && m->tx == 0) {
    m->phase ^= 1;
    m->pending = m->expected;
    for (unsigned i = 0; i < W->n; i++) {
      Fiber& f = W->f[i];
      if (f.wait == Wait::Mbar && f.wait_addr == addr && m->phase != f.wait_parity)
        f.warp->ready |= 1u << f.lane;
    }
  }
}
void mbarrier_init(uint32_t b, uint32_t n, Site s) {
  auto* m = (MBar*)smem_at(b, 8, 8, "mbarrier", s);
  *m = MBar{};
  m->pending = m->expected = n;
  m->phase = 0;
  m->poison = 0;
  W->mbars.push_back(b);
}
static void arrive(uint32_t b, int tx, Site s) {
  MBar* m = mb(b, s);
  REL(m);
  if (m->pending == 0)
    fail("%s:%d: mbarrier smem+%u: more arrivals than its count %u", s.file, s.line, b - kSmemBase,
         (unsigned)m->expected);
  m->tx = m->tx + tx;
  m->pending = m->pending - 1;
  mb_check(m, b);
}
void mbarrier_arrive(uint32_t b, Site s) { arrive(b, 0, s); }
void mbarrier_arrive_expect_tx(uint32_t b, uint32_t tx, Site s) { arrive(b, tx, s); }
void mbarrier_wait(uint32_t b, uint32_t parity,
                   Site s) {  // returns when the phase with this parity has completed
  MBar* m = mb(b, s);
  Fiber* me = cur;
  while (m->phase == (parity & 1)) {
    me->wait_addr = b;
    me->wait_parity = parity & 1;
    me->warp->ready &= ~(1u << me->lane);
    me->wait = Wait::Mbar;
    block_(Wait::Mbar, "mbarrier", s);
  }
  ACQ(m);
}
void tma_load_4d(uint32_t dst, const TensorMap* m, uint32_t bar, int c0, int c1, int c2, int c3,
                 Site s) {
  stats.tma++;
  int c[4] = {c0, c1, c2, c3};
  TensorMap t = *m;
  mb(bar, s);
  uint32_t bytes = t.elem;
  for (int i = 0; i < 4; i++) bytes *= t.box[i];
  smem_at(dst, bytes, 128, "TMA", s);
  if (t.swizzle && t.box[0] * t.elem > (uint32_t)t.swizzle)
    fail("%s:%d: TMA: inner box %u bytes exceeds the %d-byte swizzle span", s.file, s.line,
         t.box[0] * t.elem, t.swizzle);
  REL(&W->tma_tok);
  auto op = [=] {
    tsan_enter_proxy(&W->tma_tok);
    tsan_write(W->blk.smem + (dst - kSmemBase), bytes);
    uint32_t o = dst;
    unsigned char* sm = W->blk.smem - kSmemBase;
    for (uint32_t i3 = 0; i3 < t.box[3]; i3++)
      for (uint32_t i2 = 0; i2 < t.box[2]; i2++)
        for (uint32_t i1 = 0; i1 < t.box[1]; i1++)
          for (uint32_t i0 = 0; i0 < t.box[0]; i0++, o += t.elem) {
            uint64_t p[4] = {uint64_t(int64_t(c[0]) + i0), uint64_t(int64_t(c[1]) + i1),
                             uint64_t(int64_t(c[2]) + i2), uint64_t(int64_t(c[3]) + i3)};
            bool in = true;
            uint64_t off = 0;
            for (int k = 0; k < 4; k++) {
              in &= p[k] < t.dim[k];
              off += p[k] * t.stride[k];
            }  // out-of-range (negative too): zero fill
            unsigned char* d = sm + swz(o, t.swizzle);
            if (in)
              memcpy(d, t.base + off, t.elem);
            else
              memset(d, 0, t.elem);
          }
    MBar* b = mb(bar, s);
    tsan_leave_proxy((char*)b);
    b->tx = b->tx - (int)bytes;
    mb_check(b, bar);
  };
  TsanIgnore ig;
  if (async_is_late()) {
    memset(smem_at(dst, bytes, 128, "TMA", s), 0xff, bytes);
    W->async.push_back(op);
  } else
    op();
}
void bulk_copy(uint32_t dst, const void* src, uint32_t bytes, uint32_t bar, Site s) {
  if (bytes % 16 || reinterpret_cast<uintptr_t>(src) % 16)
    fail("%s:%d: bulk copy: source or size %u is not a multiple of 16", s.file, s.line, bytes);
  unsigned char* d = smem_at(dst, bytes, 16, "bulk copy", s);
  mb(bar, s);
  auto op = [=] {
    memcpy(d, src, bytes);
    MBar* b = mb(bar, s);
    b->tx = b->tx - (int)bytes;
    mb_check(b, bar);
  };
  TsanIgnore ig;
  if (async_is_late()) {
    memset(d, 0xff, bytes);
    W->async.push_back(op);
  } else
    op();
}
Stats take_stats() {
  Stats s = stats;
  stats = Stats{};
  return s;
}

namespace host {
static void prepare(Worker& w, dim3 bd, size_t smem) {
  TsanIgnore ig;
  unsigned n = bd.x * bd.y * bd.z;
  if (n == 0 || n > 1024) throw std::runtime_error("block size");
  size_t ss = cfg().stack;
  if (w.pool_n < n || w.pool_stack != ss) {
    if (w.pool) munmap(w.pool, w.pool_n * w.pool_stack);
    w.pool = (unsigned char*)mmap(nullptr, n * ss, PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    w.pool_n = n;
    w.pool_stack = ss;
    for (unsigned i = 0; i < n; i++) mprotect(w.pool + i * ss, 4096, PROT_NONE);
  }
  if (w.f.size() < n) w.f.resize(n);
  for (unsigned i = 0; i < n; i++) {
    Fiber& f = w.f[i];
    f.stack_lo = w.pool + i * ss + 4096;
    f.stack_size = ss - 4096;
    f.linear = i;
    f.lane = i & 31;
    f.warp_id = i >> 5;
    f.warp = &w.warps[i >> 5];
    f.blk = &w.blk;
    f.tid = uint3{i % bd.x, i / bd.x % bd.y, i / (bd.x * bd.y)};
#if defined(SIMT_TSAN)
    if (!f.tsan) f.tsan = __tsan_create_fiber(0);
#endif
  }
  if (w.arena_bytes < smem + (50 << 10) || !w.arena) {
    free(w.arena);
    w.arena_bytes = (smem + (50 << 10) + 1023) / 1024 * 1024;
    w.arena = (unsigned char*)aligned_alloc(1024, w.arena_bytes);
  }
  w.n = n;
  w.nwarps = (n + 31) / 32;
  w.blk.bdim = bd;
  w.blk.smem = w.arena;
  w.blk.smem_bytes = smem;
}
static void run_block(Worker& w) {
  const unsigned n = w.n;
  stats.blocks++;
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(w.arena, w.arena_bytes);
  memset(w.arena, 0xff, w.arena_bytes);
  ASAN_POISON_MEMORY_REGION(w.arena + w.blk.smem_bytes, w.arena_bytes - w.blk.smem_bytes);
#elif defined(SIMT_TSAN)
  __tsan_write_range(w.arena, w.arena_bytes);
  memset(w.arena, 0xff, w.arena_bytes);
#else
  memset(
      w.arena, 0xff,
      w.arena_bytes);  // 0xff.. = NaN in f32, f16 and bf16: reads of unwritten shared memory show
#endif
  for (unsigned i = 0; i < w.nwarps; i++) {
    Warp& q = w.warps[i];
    unsigned c = std::min(32u, n - i * 32);
    q = Warp{};
    q.all = q.ready = c == 32 ? ~0u : (1u << c) - 1;
  }
  for (auto& b : w.bars) b = Bar{};
  for (auto& g : w.wgs) {
    g.arrived = 0;
    memset(g.wait, 0, sizeof g.wait);
    g.pend.clear();
    g.issued = g.done = 0;
  }
  w.async.clear();
  w.mbars.clear();
  w.stat.clear();
  w.stat_top = (w.blk.smem_bytes + 63) & ~size_t(31);
  w.blk.smem_top = w.blk.smem_bytes;
  w.alive = n;
  w.err = nullptr;
  w.yields = 0;
  for (unsigned i = 0; i < n; i++) {
    Fiber& f = w.f[i];
    f.cp.clear();
    f.cp_groups.clear();
    f.wg_groups.clear();
    f.wait = Wait::Ready;
    f.fake = nullptr;
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(f.stack_lo, f.stack_size);
#endif
#ifndef SIMT_NO_COLOR
    size_t color = (size_t(i) * 448) & 0xfc0;  // spread the hot stack lines over the L1 sets
#else
    size_t color = 0;
#endif
    auto top = (uintptr_t)(f.stack_lo + f.stack_size - color) & ~uintptr_t(63);
    auto* p = (void**)top;
#if defined(__x86_64__)
    *--p = nullptr;
    *--p = (void*)fiber_main;
    for (int k = 0; k < 6; k++) *--p = nullptr;
#else
    p -= 20;
    memset(p, 0, 160);
    p[11] = (void*)fiber_main;
#endif
    f.sp = p;
  }
  REL(&w.tok_begin);
  cur = nullptr;
  Fiber* first = pick();
#if defined(SIMT_TSAN)
  w.main_tsan = __tsan_get_current_fiber();
#endif
  pre_switch(&w.main_fake, first);
  cur = first;
  simt_switch_ctx(&w.main_sp, first->sp);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(w.main_fake, nullptr, nullptr);
  for (unsigned i = 0; i < n; i++) ASAN_UNPOISON_MEMORY_REGION(w.f[i].stack_lo, w.f[i].stack_size);
#endif
#if defined(SIMT_TSAN)
  if (w.err)
    for (unsigned i = 0; i < n; i++) {
      __tsan_switch_to_fiber(w.f[i].tsan, 1);
      REL(&w.tok_end);
      __tsan_switch_to_fiber(w.main_tsan, 1);
    }  // abandoned fibers
#endif
  ACQ(&w.tok_end);
  TsanIgnore ig;
  if (!w.err) try {  // end-of-block lints
      while (!w.async.empty()) {
        auto op = std::move(w.async.front());
        w.async.pop_front();
        cur = &w.f[0];
        op();
      }
      cur = nullptr;
      for (uint32_t b : w.mbars) {
        auto* m = (MBar*)(w.arena + (b - kSmemBase));
        if (m->tx)
          fail("mbarrier smem+%u: transaction bytes do not balance at block end (%+d)",
               b - kSmemBase, (int)m->tx);
      }
      for (auto& g : w.wgs)
        if (!g.pend.empty()) fail("block ended with wgmma never waited for");
      for (unsigned i = 0; i < n; i++)
        if (!w.f[i].cp.empty()) fail("thread %u ended with cp.async never waited for", i);
      for (auto& b : w.bars)
        if (b.arrived)
          fail("block ended with %d threads arrived at an incomplete barrier", b.arrived);
    } catch (...) {
      w.err = std::current_exception();
      cur = nullptr;
    }
  if (w.err) {
    auto e = w.err;
    w.err = nullptr;
    std::rethrow_exception(e);
  }
}
void run_grid(dim3 grid, dim3 block, size_t smem, void (*invoke)(void*), void* ctx) {
  if (smem > 227 * 1024) throw std::runtime_error("dynamic shared memory above 227 KB");
  uint64_t total = uint64_t(grid.x) * grid.y * grid.z;
  unsigned nt = std::max(1, cfg().threads);
  nt = unsigned(std::min<uint64_t>(nt, total));
  auto work = [&](Worker& w, auto&& next) {
    Worker* saved = W;
    W = &w;
    w.rng = cfg().seed * 0x9E3779B97F4A7C15ull + 1;
    w.invoke = invoke;
    w.ctx = ctx;
    prepare(w, block, smem);
    w.blk.gdim = grid;
    for (uint64_t i; (i = next()) < total;) {
      w.blk.bidx = uint3{unsigned(i % grid.x), unsigned(i / grid.x % grid.y),
                         unsigned(i / (uint64_t(grid.x) * grid.y))};
      run_block(w);
    }
    W = saved;
  };
  static thread_local Worker* mine;
  static std::vector<Worker*>* all = new std::vector<Worker*>;
  static std::mutex mu;  // never destroyed; kept reachable for LeakSanitizer
  if (!mine) {
    mine = new Worker;
    std::lock_guard<std::mutex> l(mu);
    all->push_back(mine);
  }
  if (nt == 1) {
    uint64_t i = 0;
    work(*mine, [&] { return i++; });
    return;
  }
  std::atomic<uint64_t> i{0};
  std::vector<std::thread> ts;
  std::vector<std::exception_ptr> errs(nt);
  std::vector<Stats> st(nt);
  for (unsigned t = 0; t < nt; t++)
    ts.emplace_back([&, t] {
      Worker w{};
      try {
        work(w, [&] { return i.fetch_add(1); });
      } catch (...) {
        errs[t] = std::current_exception();
        i = total;
      }
      st[t] = stats;
    });
  for (auto& t : ts) t.join();
  for (auto& s : st) {
    auto* d = (uint64_t*)&stats;
    auto* q = (uint64_t*)&s;
    for (size_t k = 0; k < sizeof(Stats) / 8; k++) d[k] += q[k];
  }
  for (auto& e : errs)
    if (e) std::rethrow_exception(e);
}
}  // namespace host
}  // namespace zc::simt
