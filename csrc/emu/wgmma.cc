#include "csrc/emu/wgmma.h"

#include <algorithm>
#include <cmath>
#include <cstring>
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
void note_fenced_reads(Block& block, int group, const Descriptor& d, bool mn_major, int n_mn) {
  if constexpr (tsan::kOn) {
    const ProxyScope view(block, block.fenced_view(), &block.tokens->fenced);
    tsan::acquire(&block.tokens->async_written);
    for (int mn = 0; mn < n_mn; mn += mn_major ? 8 : 1)
      for (int k = 0; k < kDepth; k += mn_major ? 1 : 8)
        tsan::note_read(shared_at(element_address(d, mn_major, static_cast<uint32_t>(mn),
                                                  static_cast<uint32_t>(k)),
                                  16, 16, "operand of wgmma", {"descriptor", 0}),
                        16);
    tsan::release(&block.tokens->wgmma_done[group]);
  }
}

// Where a lane's registers lie: row 16 warp + g (+ 8), columns 2 t and on.
struct LanePlace {
  int row;
  int column;
  explicit LanePlace(int lane) : row(lane / 32 * 16 + lane % 32 / 4), column(lane % 4 * 2) {}
};

template <typename T>
void compute(Block& block, int group, WgmmaProduct& product) {
  const WgmmaCall& call = product.call;
  const size_t n = static_cast<size_t>(call.n);
  ++block.stats.wgmma;
  std::vector<float> left(kRows * kDepth);
  std::vector<float> right(kDepth * n);
  {
    const ProxyScope proxy(block, block.next_proxy(), &block.tokens->wgmma_issued[group]);
    if (!call.a)
      read_operand<T>(decode(call.a_descriptor), call.transposes_a, kRows,
                      [&](int m, int k, float x) { left[m * kDepth + k] = x; });
    read_operand<T>(decode(call.b_descriptor), call.transposes_b, call.n,
                    [&](int column, int k, float x) { right[k * n + column] = x; });
    tsan::release(&block.tokens->wgmma_done[group]);
  }
  if (!call.a) note_fenced_reads(block, group, decode(call.a_descriptor), call.transposes_a, kRows);
  note_fenced_reads(block, group, decode(call.b_descriptor), call.transposes_b, call.n);

  if (call.a)
    for (int lane = 0; lane < kLanes; ++lane) {
      const LanePlace place(lane);
      for (int r = 0; r < 4; ++r) {
        const uint32_t pair = product.a[lane][r];
        float* to = &left[(place.row + (r & 1) * 8) * kDepth + place.column + (r >> 1) * 8];
        to[0] = to_float(T{static_cast<uint16_t>(pair)});
        to[1] = to_float(T{static_cast<uint16_t>(pair >> 16)});
      }
    }
  product.values.assign(kRows * n, 0.0f);
  for (int m = 0; m < kRows; ++m) {
    float* sums = &product.values[m * n];
    for (int k = 0; k < kDepth; ++k) {
      const float x = left[m * kDepth + k];
      const float* row = &right[k * n];
      for (size_t i = 0; i < n; ++i) sums[i] += x * row[i];
    }
  }
}

void compute_once(Block& block, int group, WgmmaProduct& product) {
  if (!product.values.empty()) return;
  if (product.call.is_bf16)
    compute<bf16>(block, group, product);
  else
    compute<f16>(block, group, product);
}

// Adds a product to a lane's sums, or puts it in their place.
void receive(const WgmmaProduct& product, int lane, float* d) {
  const LanePlace place(lane);
  const int n = product.call.n;
  for (int j = 0; j < n / 8; ++j)
    for (int e = 0; e < 4; ++e) {
      const float x =
          product.values[(place.row + (e >> 1) * 8) * n + 8 * j + place.column + (e & 1)];
      float& sum = d[4 * j + e];
      sum = product.call.accumulates ? sum + x : x;
    }
}

// Sums that a product under way will write hold NaN until then, so that reading them early shows.
void hide_sums(WgmmaQueue& queue) {
  for (size_t i = 0; i < queue.entries.size(); ++i) {
    WgmmaQueue::Entry& entry = queue.entries[i];
    bool is_first = entry.hidden.empty();
    for (size_t j = 0; j < i; ++j) is_first &= queue.entries[j].d != entry.d;
    if (!is_first) continue;
    const int n_sums = entry.product->call.n / 2;
    entry.hidden.assign(entry.d, entry.d + n_sums);
    std::fill(entry.d, entry.d + n_sums, NAN);
  }
}

bool same_product(const WgmmaCall& x, const WgmmaCall& y) {
  return x.a_descriptor == y.a_descriptor && x.b_descriptor == y.b_descriptor && x.n == y.n &&
         x.accumulates == y.accumulates && x.transposes_a == y.transposes_a &&
         x.transposes_b == y.transposes_b && x.is_bf16 == y.is_bf16 && !x.a == !y.a;
}

// By the last lane that arrives.
void issue(Block& block, int group, bool must_be_late, Site site) {
  Warpgroup& warpgroup = block.warpgroups[group];
  const WgmmaCall* const* calls = warpgroup.calls;
  for (int lane = 1; lane < kLanes; ++lane)
    if (!same_product(*calls[0], *calls[lane]))
      fail("%s:%d: wgmma: lanes 0 and %d of the warpgroup disagree on the product", site.file,
           site.line, lane);
  auto product = std::make_shared<WgmmaProduct>();
  product->call = *calls[0];
  product->is_late = must_be_late || is_late(block);
  if (calls[0]->a)
    for (int lane = 0; lane < kLanes; ++lane)
      std::memcpy(product->a[lane], calls[lane]->a, sizeof(product->a[lane]));
  if (!product->is_late) compute_once(block, group, *product);
  warpgroup.issued = std::move(product);
}

}  // namespace

void wgmma(const WgmmaCall& call, Site site) {
  const tsan::IgnoreAccesses ignore;
  Thread& me = *current;
  Block& block = *me.block;
  const int group = static_cast<int>(me.warp_index / 4);
  const int lane = static_cast<int>(me.linear % kLanes);
  if ((static_cast<unsigned>(group) + 1) * kLanes > block.n_threads)
    fail("%s:%d: wgmma: the block's last warpgroup is not complete", site.file, site.line);
  if (call.n % 8 != 0 || call.n < 8 || call.n > kMaxColumns)
    fail("%s:%d: wgmma: %d columns, expected a multiple of 8 up to %d", site.file, site.line,
         call.n, kMaxColumns);
  if (!me.wgmma.is_fenced)
    fail("%s:%d: wgmma: no wgmma_fence since the registers could be touched", site.file, site.line);
  tsan::release(&block.tokens->wgmma_issued[group]);
  Warpgroup& warpgroup = block.warpgroups[group];
  warpgroup.calls[lane] = &call;
  if (++warpgroup.arrived == kLanes) {
    // A product cannot overtake one that writes the same sums.
    issue(block, group, !me.wgmma.entries.empty(), site);
    warpgroup.arrived = 0;
    for (int i = 0; i < 4; ++i) {
      block.warps[group * 4 + i].ready |= warpgroup.waiting[i];
      warpgroup.waiting[i] = 0;
    }
  } else {
    warpgroup.waiting[me.warp_index % 4] |= 1u << me.lane;
    make_waiting(me);
    suspend(Wait::kWarpgroup, "wgmma", site);
  }
  // The next product cannot be issued before every lane has been here.
  if (!warpgroup.issued->is_late) {
    receive(*warpgroup.issued, lane, call.d);
    return;
  }
  me.wgmma.entries.push_back({warpgroup.issued, call.d, {}});
  hide_sums(me.wgmma);
}

void wait_wgmma(size_t n_groups) {
  Thread& me = *current;
  Block& block = *me.block;
  const int group = static_cast<int>(me.warp_index / 4);
  WgmmaQueue& queue = me.wgmma;
  queue.is_fenced = false;
  if (queue.group_ends.size() <= n_groups) return;
  const size_t n_finished = queue.group_ends.size() - n_groups;
  const size_t end = queue.group_ends[n_finished - 1];
  {
    const tsan::IgnoreAccesses ignore;
    for (size_t i = 0; i < end; ++i) {
      WgmmaQueue::Entry& entry = queue.entries[i];
      compute_once(block, group, *entry.product);
      std::copy(entry.hidden.begin(), entry.hidden.end(), entry.d);
      receive(*entry.product, static_cast<int>(me.linear % kLanes), entry.d);
    }
    queue.entries.erase(queue.entries.begin(), queue.entries.begin() + static_cast<ptrdiff_t>(end));
    queue.group_ends.erase(queue.group_ends.begin(),
                           queue.group_ends.begin() + static_cast<ptrdiff_t>(n_finished));
    for (size_t& group_end : queue.group_ends) group_end -= end;
    hide_sums(queue);
  }
  tsan::acquire(&block.tokens->wgmma_done[group]);
}

void check_wgmma(const Thread& thread) {
  if (!thread.wgmma.entries.empty())
    fail("thread %u ended with a wgmma that it never waited for", thread.linear);
}

}  // namespace zc::emu

namespace zc::simt {

void wgmma_fence() { emu::current->wgmma.is_fenced = true; }

void wgmma_commit() {
  emu::WgmmaQueue& queue = emu::current->wgmma;
  queue.group_ends.push_back(queue.entries.size());
}

}  // namespace zc::simt
