#include "csrc/emu/wgmma.h"

#include <cmath>
#include <cstring>
#include <set>
#include <utility>

#include "csrc/emu/order.h"
#include "csrc/emu/proxy.h"
#include "csrc/emu/scheduler.h"
#include "csrc/emu/tensor_map.h"

namespace zc::emu {

namespace {

constexpr int kLanes = 128;
constexpr int kRows = 64;
constexpr int kDepth = 16;
constexpr int kMaxColumns = 256;

// An operand in shared memory. MN stands for A's rows or B's columns, K for what is summed over.
struct Descriptor {
  uint32_t start;
  uint32_t leading;  // byte offset
  uint32_t stride;   // byte offset
  int swizzle;       // bytes of a row of 16-byte chunks, 0 without swizzling
};

Descriptor decode(uint64_t bits) {
  constexpr int kSwizzles[4] = {0, 128, 64, 32};
  if ((bits >> 49) & 7u) fail("wgmma: the descriptor has a base offset, which is not emulated");
  const auto field = [&](int shift) { return static_cast<uint32_t>(bits >> shift & 0x3fffu) << 4; };
  return {field(0), field(16), field(32), kSwizzles[bits >> 62]};
}

// Byte address of the element (mn, k), from the canonical layouts of the PTX ISA.
uint32_t element_address(const Descriptor& d, bool mn_major, uint32_t mn, uint32_t k) {
  uint32_t address = d.start;
  const uint32_t row_bytes = static_cast<uint32_t>(d.swizzle);
  if (!mn_major) {
    // Rows of K, eight to a group; without swizzling a row is one chunk of 8 elements.
    address += mn / 8 * d.stride;
    address += row_bytes ? mn % 8 * row_bytes + k * 2 : k / 8 * d.leading + mn % 8 * 16 + k % 8 * 2;
  } else if (row_bytes) {
    // Rows of MN, as wide as the swizzle, eight values of K to a group.
    const uint32_t width = row_bytes / 2;
    address += mn / width * d.leading + k / 8 * d.stride + k % 8 * row_bytes + mn % width * 2;
  } else {
    address += mn / 8 * d.stride + k / 8 * d.leading + k % 8 * 16 + mn % 8 * 2;
  }
  return swizzled(address, d.swizzle);
}

// Calls put(mn, k, value) for every element, read in chunks of 16 bytes: 8 along the contiguous
// direction.
template <typename T, typename Put>
void read_operand(const Descriptor& d, bool mn_major, int n_mn, const Put& put) {
  for (int mn = 0; mn < n_mn; mn += mn_major ? 8 : 1)
    for (int k = 0; k < kDepth; k += mn_major ? 1 : 8) {
      const uint32_t address =
          element_address(d, mn_major, static_cast<uint32_t>(mn), static_cast<uint32_t>(k));
      const unsigned char* chunk =
          shared_at(address, 16, 16, "operand of wgmma", {"descriptor", 0});
      tsan::note_read(chunk, 16);
      uint16_t bits[8];
      std::memcpy(bits, chunk, 16);
      for (int i = 0; i < 8; ++i)
        put(mn_major ? mn + i : mn, mn_major ? k : k + i, to_float(T{bits[i]}));
    }
}

// ThreadSanitizer's view alone: what a thread wrote is seen by wgmma only behind a proxy fence,
// what bulk copies wrote is seen as it is.
void note_fenced_reads(Block& block, const Descriptor& d, bool mn_major, int n_mn) {
  if constexpr (tsan::kOn) {
    const ProxyScope proxy(block, &block.tokens->fenced);
    tsan::acquire(&block.tokens->async_written);
    for (int mn = 0; mn < n_mn; mn += mn_major ? 8 : 1)
      for (int k = 0; k < kDepth; k += mn_major ? 1 : 8)
        tsan::note_read(shared_at(element_address(d, mn_major, static_cast<uint32_t>(mn),
                                                  static_cast<uint32_t>(k)),
                                  16, 16, "operand of wgmma", {"descriptor", 0}),
                        16);
  }
}

// Where a lane's registers lie: row 16 warp + g (+ 8), columns 2 t and on.
struct LanePlace {
  int row;
  int column;
  explicit LanePlace(int lane) : row(lane / 32 * 16 + lane % 32 / 4), column(lane % 4 * 2) {}
};

// What one product works with: too large for a fiber's stack, and for the thread-local memory of a
// library that is loaded late.
struct Matrices {
  float left[kRows][kDepth];
  float right[kDepth][kMaxColumns];
  float sums[kRows][kMaxColumns];
};

template <typename T>
void compute(Block& block, int group, const WgmmaCall* const* calls, const uint32_t (*a)[4]) {
  static thread_local const std::unique_ptr<Matrices> matrices = std::make_unique<Matrices>();
  auto& [left, right, sums] = *matrices;
  const WgmmaCall& call = *calls[0];
  const int n = call.n;
  ++block.stats.wgmma;
  {
    const ProxyScope proxy(block, &block.tokens->wgmma_issued[group]);
    if (!call.a)
      read_operand<T>(decode(call.a_descriptor), call.transposes_a, kRows,
                      [&](int m, int k, float x) { left[m][k] = x; });
    read_operand<T>(decode(call.b_descriptor), call.transposes_b, n,
                    [&](int column, int k, float x) { right[k][column] = x; });
    tsan::release(&block.tokens->wgmma_done[group]);
  }
  if (!call.a) note_fenced_reads(block, decode(call.a_descriptor), call.transposes_a, kRows);
  note_fenced_reads(block, decode(call.b_descriptor), call.transposes_b, n);

  if (call.a)
    for (int lane = 0; lane < kLanes; ++lane) {
      const LanePlace place(lane);
      for (int r = 0; r < 4; ++r) {
        float* pair = &left[place.row + (r & 1) * 8][place.column + (r >> 1) * 8];
        pair[0] = to_float(T{static_cast<uint16_t>(a[lane][r])});
        pair[1] = to_float(T{static_cast<uint16_t>(a[lane][r] >> 16)});
      }
    }
  for (int m = 0; m < kRows; ++m) {
    for (int i = 0; i < n; ++i) sums[m][i] = 0.0f;
    for (int k = 0; k < kDepth; ++k) {
      const float x = left[m][k];
      for (int i = 0; i < n; ++i) sums[m][i] += x * right[k][i];
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    const LanePlace place(lane);
    float* d = calls[lane]->d;
    for (int j = 0; j < n / 8; ++j)
      for (int e = 0; e < 4; ++e) {
        const float x = sums[place.row + (e >> 1) * 8][8 * j + place.column + (e & 1)];
        d[4 * j + e] = call.accumulates ? d[4 * j + e] + x : x;
      }
  }
}

void compute_pending(Block& block, int group, PendingWgmma& pending) {
  const size_t n_sums = static_cast<size_t>(pending.calls[0].n) / 2;
  const WgmmaCall* calls[kLanes];
  for (size_t lane = 0; lane < kLanes; ++lane) {
    calls[lane] = &pending.calls[lane];
    if (!pending.hidden.empty())
      std::memcpy(calls[lane]->d, pending.hidden.data() + lane * n_sums, n_sums * sizeof(float));
  }
  if (calls[0]->is_bf16)
    compute<bf16>(block, group, calls, pending.a);
  else
    compute<f16>(block, group, calls, pending.a);
}

// Sums that a pending product will write hold NaN until then, so that reading them early shows.
void hide_sums(Warpgroup& warpgroup) {
  std::set<const float*> seen;
  for (const auto& pending : warpgroup.pending) {
    if (!seen.insert(pending->calls[0].d).second || !pending->hidden.empty()) continue;
    const size_t n_sums = static_cast<size_t>(pending->calls[0].n) / 2;
    pending->hidden.resize(kLanes * n_sums);
    for (size_t lane = 0; lane < kLanes; ++lane) {
      float* d = pending->calls[lane].d;
      std::memcpy(pending->hidden.data() + lane * n_sums, d, n_sums * sizeof(float));
      for (size_t i = 0; i < n_sums; ++i) d[i] = NAN;
    }
  }
}

bool same_product(const WgmmaCall& x, const WgmmaCall& y) {
  return x.a_descriptor == y.a_descriptor && x.b_descriptor == y.b_descriptor && x.n == y.n &&
         x.accumulates == y.accumulates && x.transposes_a == y.transposes_a &&
         x.transposes_b == y.transposes_b && x.is_bf16 == y.is_bf16 && !x.a == !y.a;
}

// By the last lane that arrives.
void issue(Block& block, int group, Site site) {
  const tsan::IgnoreAccesses ignore;
  Warpgroup& warpgroup = block.warpgroups[group];
  const auto of = [&](int lane) -> const WgmmaCall& {
    return *static_cast<const WgmmaCall*>(warpgroup.arguments[lane]);
  };
  for (int lane = 1; lane < kLanes; ++lane)
    if (!same_product(of(0), of(lane)))
      fail("%s:%d: wgmma: lanes 0 and %d of the warpgroup disagree on the product", site.file,
           site.line, lane);
  auto pending = std::make_unique<PendingWgmma>();
  for (int lane = 0; lane < kLanes; ++lane) {
    pending->calls[lane] = of(lane);
    if (of(lane).a) std::memcpy(pending->a[lane], of(lane).a, sizeof(pending->a[lane]));
  }
  ++warpgroup.n_issued;
  if (warpgroup.pending.empty() && !is_late(block)) {
    compute_pending(block, group, *pending);
    ++warpgroup.n_done;
    return;
  }
  warpgroup.pending.push_back(std::move(pending));
  hide_sums(warpgroup);
}

}  // namespace

void wgmma(const WgmmaCall& call, Site site) {
  Thread& me = *current;
  Block& block = *me.block;
  const int group = static_cast<int>(me.warp_index / 4);
  if ((static_cast<unsigned>(group) + 1) * kLanes > block.n_threads)
    fail("%s:%d: wgmma: the block's last warpgroup is not complete", site.file, site.line);
  if (call.n % 8 != 0 || call.n < 8 || call.n > kMaxColumns)
    fail("%s:%d: wgmma: %d columns, expected a multiple of 8 up to %d", site.file, site.line,
         call.n, kMaxColumns);
  if (!me.wgmma.is_fenced)
    fail("%s:%d: wgmma: no wgmma_fence since the registers could be touched", site.file, site.line);
  tsan::release(&block.tokens->wgmma_issued[group]);
  Warpgroup& warpgroup = block.warpgroups[group];
  warpgroup.arguments[me.linear % kLanes] = const_cast<WgmmaCall*>(&call);
  if (++warpgroup.arrived == kLanes) {
    issue(block, group, site);
    warpgroup.arrived = 0;
    for (int i = 0; i < 4; ++i) {
      block.warps[group * 4 + i].ready |= warpgroup.waiting[i];
      warpgroup.waiting[i] = 0;
    }
    return;
  }
  warpgroup.waiting[me.warp_index % 4] |= 1u << me.lane;
  make_waiting(me);
  suspend(Wait::kWarpgroup, "wgmma", site);
}

void wait_wgmma(size_t n_groups) {
  Thread& me = *current;
  Block& block = *me.block;
  const int group = static_cast<int>(me.warp_index / 4);
  Warpgroup& warpgroup = block.warpgroups[group];
  me.wgmma.is_fenced = false;
  std::vector<uint64_t>& ends = me.wgmma.ends;
  if (ends.size() <= n_groups) return;
  const size_t n_finished = ends.size() - n_groups;
  const uint64_t end = ends[n_finished - 1];
  {
    const tsan::IgnoreAccesses ignore;
    ends.erase(ends.begin(), ends.begin() + static_cast<ptrdiff_t>(n_finished));
    if (warpgroup.n_done < end) {
      while (warpgroup.n_done < end) {
        compute_pending(block, group, *warpgroup.pending.front());
        warpgroup.pending.pop_front();
        ++warpgroup.n_done;
      }
      hide_sums(warpgroup);
    }
  }
  tsan::acquire(&block.tokens->wgmma_done[group]);
}

void check_wgmma(const Block& block) {
  for (const Warpgroup& warpgroup : block.warpgroups)
    if (!warpgroup.pending.empty()) fail("the block ended with a wgmma that it never waited for");
}

}  // namespace zc::emu

namespace zc::simt {

void wgmma_fence() { emu::current->wgmma.is_fenced = true; }

void wgmma_commit() {
  emu::Thread& me = *emu::current;
  me.wgmma.ends.push_back(me.block->warpgroups[me.warp_index / 4].n_issued);
}

}  // namespace zc::simt
