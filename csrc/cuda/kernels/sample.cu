#include "csrc/cuda/device/vector.h"
#include "csrc/cuda/launchers.h"
#include "csrc/math/random.h"

// Weights are added as whole numbers, which have the same sum in any order: what a row draws
// depends neither on its neighbours nor on how its tokens are spread over threads.
namespace zc::cuda {

namespace {

constexpr int kMaxThreads = 512;
constexpr int kFewThreads = 128;            // for rows shorter than a part
constexpr int64_t kPartTokens = 8192;       // of a row: each has a block that looks for the highest
constexpr int kQuad = 4;                    // tokens that a thread reads at a time
constexpr int kBins = 16;                   // of a histogram
constexpr int kListed = 4096;               // candidates that are kept in shared memory
constexpr float kUnit = 17592186044416.0f;  // 2^44: sums of up to 2^19 weights stay below 2^63
constexpr unsigned kAllLanes = 0xffffffffu;

// Increases with x, which is no NaN and no -0.
ZC_DEVICE uint32_t key_of(float x) {
  const uint32_t bits = float_to_bits(x);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}
ZC_DEVICE float value_of(uint32_t key) {
  return bits_to_float((key >> 31) != 0 ? key & 0x7fffffffu : ~key);
}

// One row of logits, its penalty applied where it is read.
struct LogitRow {
  const float* logits;
  const uint8_t* seen;  // null without a penalty
  float penalty;
  int64_t vocab_size;
  bool vectors;

  ZC_DEVICE float penalized(float x, bool is_seen) const {
    if (seen != nullptr && is_seen) x = x > 0.0f ? x / penalty : x * penalty;
    return x + 0.0f;  // never -0
  }
  // Tokens i to i + 3; what lies at `end` or beyond is left out.
  ZC_DEVICE void read(int64_t i, int64_t end, float (&x)[kQuad]) const {
    if (vectors && i + kQuad <= end) {
      const float4 quad = *reinterpret_cast<const float4*>(logits + i);
      const uint32_t marks = seen != nullptr ? *reinterpret_cast<const uint32_t*>(seen + i) : 0u;
      x[0] = penalized(quad.x, (marks & 0xffu) != 0);
      x[1] = penalized(quad.y, (marks & 0xff00u) != 0);
      x[2] = penalized(quad.z, (marks & 0xff0000u) != 0);
      x[3] = penalized(quad.w, (marks & 0xff000000u) != 0);
      return;
    }
    ZC_UNROLL for (int j = 0; j < kQuad; ++j) x[j] =
        i + j < end ? penalized(logits[i + j], seen != nullptr && seen[i + j] != 0) : 0.0f;
  }
  // f(i, x) for the tokens of [begin, end) that belong to number `own` of `threads` threads, kAhead
  // reads in flight.
  template <int kAhead, typename F>
  ZC_DEVICE void for_each(int64_t begin, int64_t end, int own, int threads, const F& f) const {
    const int64_t step = int64_t{threads} * kQuad;
    for (int64_t i = begin + int64_t{own} * kQuad; i < end; i += kAhead * step) {
      float x[kAhead][kQuad];
      ZC_UNROLL for (int a = 0; a < kAhead; ++a) if (i + a * step < end)
          read(i + a * step, end, x[a]);
      ZC_UNROLL for (int a = 0; a < kAhead; ++a) ZC_UNROLL for (int j = 0; j < kQuad; ++j) {
        const int64_t at = i + a * step + j;
        if (at < end) f(at, x[a][j]);
      }
    }
  }
};

// The block's shared memory.
struct Workspace {
  uint64_t* bins;        // (kBins, threads): every thread has its own
  uint32_t* listed;      // (kListed)
  uint64_t* words;       // (kMaxThreads / 32): one a warp
  uint64_t* bin_totals;  // (kBins)
  int* n_listed;
};

ZC_DEVICE int n_warps() { return static_cast<int>(blockDim.x / 32); }

ZC_DEVICE uint64_t warp_sum(uint64_t x) {
  ZC_UNROLL for (int distance = 16; distance > 0; distance /= 2) x +=
      __shfl_xor_sync(kAllLanes, x, distance);
  return x;
}

// One word from every warp to all threads: combine(a, b) of all, in the order of warps.
template <typename T, typename F>
ZC_DEVICE T over_warps(const Workspace& work, T x, const F& combine) {
  static_assert(sizeof(T) == sizeof(uint64_t));
  T* words = reinterpret_cast<T*>(work.words);
  __syncthreads();
  if (threadIdx.x % 32 == 0) words[threadIdx.x / 32] = x;
  __syncthreads();
  T total = words[0];
  for (int w = 1; w < n_warps(); ++w) total = combine(total, words[w]);
  return total;
}

ZC_DEVICE uint64_t block_sum(const Workspace& work, uint64_t x) {
  return over_warps(work, warp_sum(x), [](uint64_t a, uint64_t b) { return a + b; });
}

// The first token i whose measure, together with those of all tokens before, is above
// target_of(sum of all measures); -1 if there is none. Every warp adds up a stretch, then the
// stretch is searched in the same way.
template <typename Measure, typename Target>
ZC_DEVICE int64_t token_at(const Workspace& work, const LogitRow& row, const Measure& measure,
                           const Target& target_of) {
  constexpr int64_t kWarpTokens = 32 * kQuad;
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int lane = static_cast<int>(threadIdx.x % 32);
  int64_t begin = 0;
  int64_t end = row.vocab_size;
  uint64_t target = 0;
  while (end - begin > kWarpTokens) {
    const int64_t per_warp = (end - begin + n_warps() - 1) / n_warps();
    const int64_t length = (per_warp + kWarpTokens - 1) / kWarpTokens * kWarpTokens;
    const int64_t own = begin + warp * length;
    uint64_t sum = 0;
    row.for_each<2>(own, own + length < end ? own + length : end, lane, 32,
                    [&](int64_t i, float x) { sum += measure(i, x); });
    sum = warp_sum(sum);
    __syncthreads();
    if (lane == 0) work.words[warp] = sum;
    __syncthreads();
    if (begin == 0 && end == row.vocab_size) {
      uint64_t total = 0;
      for (int w = 0; w < n_warps(); ++w) total += work.words[w];
      target = target_of(total);
    }
    int w = 0;
    for (; w < n_warps() && work.words[w] <= target; ++w) target -= work.words[w];
    begin += w * length;
    if (w == n_warps() || begin >= end) return -1;
    end = begin + length < end ? begin + length : end;
  }
  // Every warp does the rest alone, and finds the same.
  const int64_t own = begin + lane * kQuad;
  float x[kQuad];
  row.read(own, end, x);
  uint64_t measures[kQuad];
  uint64_t sum = 0;
  ZC_UNROLL for (int j = 0; j < kQuad; ++j) {
    measures[j] = own + j < end ? measure(own + j, x[j]) : 0;
    sum += measures[j];
  }
  uint64_t reached = sum;  // up to this lane's last token
  ZC_UNROLL for (int distance = 1; distance < 32; distance *= 2) {
    const uint64_t before = __shfl_up_sync(kAllLanes, reached, distance);
    if (lane >= distance) reached += before;
  }
  if (row.vocab_size <= kWarpTokens) target = target_of(__shfl_sync(kAllLanes, reached, 31));
  const unsigned found = __ballot_sync(kAllLanes, reached > target);
  if (found == 0) return -1;
  int place = 0;
  reached -= sum;
  for (; place < kQuad - 1; ++place) {
    reached += measures[place];
    if (reached > target) break;
  }
  const int source = __ffs(static_cast<int>(found)) - 1;
  return begin + source * kQuad + __shfl_sync(kAllLanes, place, source);
}

// Tokens in the order in which they are kept, highest logit first and the lower id first among
// equals, down to one of them.
struct Cut {
  uint32_t key;  // of the last one's logit
  int64_t id;    // of the last one

  ZC_DEVICE bool keeps(uint32_t other_key, int64_t other_id) const {
    return other_key > key || (other_key == key && other_id <= id);
  }
};

// Adds up measures in bins: count(add) calls add(bin, measure) for a thread's tokens. Then the bin
// in which the measures, from bin 0 on, reach the goal: returns it, with what it holds in `held`,
// less those before in `goal`. Where goal is 0 it is set to goal_of(sum of all) first.
template <typename Count, typename Goal>
ZC_DEVICE int find_bin(const Workspace& work, uint64_t& goal, uint64_t& held, const Count& count,
                       const Goal& goal_of) {
  const int threads = static_cast<int>(blockDim.x);
  const int own = static_cast<int>(threadIdx.x);
  __syncthreads();
  ZC_UNROLL for (int bin = 0; bin < kBins; ++bin) work.bins[bin * threads + own] = 0;
  count([&](int bin, uint64_t measure) { work.bins[bin * threads + own] += measure; });
  __syncthreads();
  for (int bin = own / 32; bin < kBins; bin += n_warps()) {
    uint64_t sum = 0;
    for (int i = own % 32; i < threads; i += 32) sum += work.bins[bin * threads + i];
    sum = warp_sum(sum);
    if (own % 32 == 0) work.bin_totals[bin] = sum;
  }
  __syncthreads();
  if (goal == 0) {
    uint64_t total = 0;
    for (int bin = 0; bin < kBins; ++bin) total += work.bin_totals[bin];
    goal = goal_of(total);
  }
  int bin = 0;
  for (; bin < kBins - 1 && work.bin_totals[bin] < goal; ++bin) goal -= work.bin_totals[bin];
  held = work.bin_totals[bin];
  return bin;
}

// The fewest tokens, in the order of Cut, whose measures reach goal_of(sum of the measures of all
// that `before` keeps), at least one. `group` sorts tokens coarsely: 0 to kBins - 1, rising as the
// logit falls.
//
// One pass finds the group that the cut lies in, a second lists its logits; their keys then are
// narrowed down by four bits at a time. Where a group does not fit the list, all logits are read
// for each of the eight.
template <typename Group, typename Measure, typename Goal>
ZC_DEVICE Cut find_cut(const Workspace& work, const LogitRow& row, const Cut& before,
                       const Group& group, const Measure& measure, const Goal& goal_of) {
  const int threads = static_cast<int>(blockDim.x);
  const int own = static_cast<int>(threadIdx.x);
  uint64_t goal = 0;
  uint64_t held = 0;
  const int in_group = find_bin(
      work, goal, held,
      [&](const auto& add) {
        row.for_each<2>(0, row.vocab_size, own, threads, [&](int64_t i, float x) {
          if (before.keeps(key_of(x), i)) add(group(x), measure(x));
        });
      },
      goal_of);

  const auto for_each_candidate = [&](const auto& f) {
    row.for_each<2>(0, row.vocab_size, own, threads, [&](int64_t i, float x) {
      const uint32_t key = key_of(x);
      if (group(x) == in_group && before.keeps(key, i)) f(key);
    });
  };
  if (own == 0) *work.n_listed = 0;
  __syncthreads();
  for_each_candidate([&](uint32_t key) {
    const int place = atomicAdd(work.n_listed, 1);
    if (place < kListed) work.listed[place] = key;
  });
  __syncthreads();
  const int n_listed = *work.n_listed;

  uint32_t prefix = 0;
  ZC_NO_UNROLL for (int shift = 28; shift >= 0; shift -= 4) {
    const auto add_key = [&](uint32_t key, const auto& add) {
      if ((uint64_t{key} >> (shift + 4)) == prefix)
        add(15 - static_cast<int>((key >> shift) & 15u), measure(value_of(key)));
    };
    const int bin = find_bin(
        work, goal, held,
        [&](const auto& add) {
          if (n_listed <= kListed)
            for (int i = own; i < n_listed; i += threads) add_key(work.listed[i], add);
          else
            for_each_candidate([&](uint32_t key) { add_key(key, add); });
        },
        goal_of);
    prefix = prefix << 4 | static_cast<uint32_t>(15 - bin);
  }
  // What is left are equals.
  Cut cut{prefix, prefix == before.key ? before.id : row.vocab_size};
  const uint64_t each = measure(value_of(prefix));
  if (each == 0) return cut;
  const uint64_t n_kept = (goal + each - 1) / each;
  if (n_kept * each < held)
    cut.id = token_at(
        work, row,
        [&](int64_t i, float x) {
          return uint64_t{key_of(x) == prefix && before.keeps(prefix, i)};
        },
        [&](uint64_t) { return n_kept - 1; });
  return cut;
}

constexpr float kLog2E = 1.44269504f;

// The highest logit of a row, or of a part of one, and the sum of e^(x - highest).
struct Highest {
  uint64_t word;  // key of the logit, and ~id below it: the lowest id of those that have it
  double weight;  // the sum

  // A logit is NaN or +infinity; above all others.
  static constexpr uint64_t kBroken = ~uint64_t{0};

  ZC_DEVICE float value() const { return value_of(static_cast<uint32_t>(word >> 32)); }
  ZC_DEVICE int64_t id() const { return int64_t{0xffffffffu - static_cast<uint32_t>(word)}; }
  // No logit is finite, or one is broken.
  ZC_DEVICE bool is_none() const { return word == kBroken || value() == -INFINITY; }
};

// Of the tokens [begin, end), in one pass: every thread keeps its own maximum, and scales its sum
// when that rises.
ZC_DEVICE Highest find_highest(const Workspace& work, const LogitRow& row, int64_t begin,
                               int64_t end) {
  const int own = static_cast<int>(threadIdx.x);
  float highest = -INFINITY;
  int64_t id = begin;
  float sum = 0.0f;
  bool broken = false;
  row.for_each<4>(begin, end, own, static_cast<int>(blockDim.x), [&](int64_t i, float x) {
    broken |= !(x < INFINITY);
    if (x > highest) {
      sum *= simt::ex2((highest - x) * kLog2E);
      highest = x;
      id = i;
    }
    sum += x == -INFINITY ? 0.0f : simt::ex2((x - highest) * kLog2E);
  });
  const auto higher = [](uint64_t a, uint64_t b) { return a > b ? a : b; };
  Highest found{};
  found.word = broken ? Highest::kBroken
                      : uint64_t{key_of(highest)} << 32 | (0xffffffffu - static_cast<uint32_t>(id));
  ZC_UNROLL for (int distance = 16; distance > 0; distance /= 2) found.word =
      higher(found.word, __shfl_xor_sync(kAllLanes, found.word, distance));
  found.word = over_warps(work, found.word, higher);
  if (found.is_none()) return found;

  double total = highest == -INFINITY
                     ? 0.0
                     : double{sum} * double{simt::ex2((highest - found.value()) * kLog2E)};
  ZC_UNROLL for (int distance = 16; distance > 0; distance /= 2) total +=
      __shfl_xor_sync(kAllLanes, total, distance);
  found.weight = over_warps(work, total, [](double a, double b) { return a + b; });
  return found;
}

// Of all parts of a row, in order.
ZC_DEVICE Highest join_parts(const Highest* parts, int n_parts) {
  Highest all{};
  for (int i = 0; i < n_parts; ++i) all.word = parts[i].word > all.word ? parts[i].word : all.word;
  if (all.is_none()) return all;
  for (int i = 0; i < n_parts; ++i)
    if (!parts[i].is_none())
      all.weight += parts[i].weight * double{simt::ex2((parts[i].value() - all.value()) * kLog2E)};
  return all;
}

struct SampleRows {
  const float* logits;      // (rows, vocab_size)
  const float* params;      // (rows, kSampleParams)
  uint8_t* seen;            // (n_contexts, vocab_size)
  const int32_t* contexts;  // (rows)
  int64_t vocab_size;
  int64_t n_contexts;
  bool vectors;
  Highest* parts;  // (rows, n_parts), null where a row is one
  int32_t n_parts;

  ZC_DEVICE bool context_exists(int64_t r) const {
    return contexts[r] >= -1 && contexts[r] < n_contexts;
  }
  // Marks of tokens that the row's context has seen; null without one.
  ZC_DEVICE uint8_t* seen_of(int64_t r) const {
    return context_exists(r) && contexts[r] >= 0 ? seen + contexts[r] * vocab_size : nullptr;
  }
  ZC_DEVICE LogitRow row(int64_t r) const {
    const float penalty = params[r * kSampleParams + kSampleRepetitionPenalty];
    return {logits + r * vocab_size, penalty != 1.0f ? seen_of(r) : nullptr, penalty, vocab_size,
            vectors};
  }
};

// The highest logit of each part of each row. A block owns a part. Bound by reading logits from L2.
__global__ void __launch_bounds__(kMaxThreads) highest_of_parts_kernel(SampleRows a) {
  simt::let_next_begin();
  simt::wait_for_kernels_before();
  ZC_SHARED(uint64_t, words, [kMaxThreads / 32]);
  Workspace work{};
  work.words = words;
  const int64_t r = blockIdx.x;
  const int64_t begin = blockIdx.y * kPartTokens;
  const int64_t end = begin + kPartTokens < a.vocab_size ? begin + kPartTokens : a.vocab_size;
  const Highest own = find_highest(work, a.row(r), begin, end);
  if (threadIdx.x == 0) a.parts[r * a.n_parts + blockIdx.y] = own;
}

// Picks the next token of a row: repetition penalty, temperature, top-k, top-p, min-p, one uniform
// number (lib/ops/sample.ts). A block owns a row. Dynamic shared memory: kBins words of 8 bytes a
// thread and kListed of 4, 80 KB. Bound by reading the logits from L2: once for the likeliest
// token, where no block has looked at the parts; for others twice more, and twice for each of top-k
// and top-p.
__global__ void __launch_bounds__(kMaxThreads, 1)
    sample_kernel(FaultSink faults, SampleRows a, int32_t* ids, float* logprobs) {
  simt::let_next_begin();
  simt::wait_for_kernels_before();
  ZC_DYNAMIC_SHARED(dynamic);
  ZC_SHARED(uint64_t, words, [kMaxThreads / 32]);
  ZC_SHARED(uint64_t, bin_totals, [kBins]);
  ZC_SHARED(int, n_listed, [1]);
  Workspace work;
  work.bins = reinterpret_cast<uint64_t*>(dynamic);
  work.listed = reinterpret_cast<uint32_t*>(work.bins + kBins * blockDim.x);
  work.words = words;
  work.bin_totals = bin_totals;
  work.n_listed = n_listed;

  const int64_t r = blockIdx.x;
  const int own = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  const int64_t vocab_size = a.vocab_size;
  const float* params = a.params + r * kSampleParams;
  const bool exists = a.context_exists(r);
  if (own == 0)
    check_data(faults, exists, FaultReason::kSampleContext, a.contexts[r], a.n_contexts - 1);
  uint8_t* const seen = a.seen_of(r);
  const LogitRow row = a.row(r);

  const Highest best = a.parts != nullptr ? join_parts(a.parts + r * a.n_parts, a.n_parts)
                                          : find_highest(work, row, 0, vocab_size);
  if (best.is_none() || !exists) {
    if (own == 0) {
      ids[r] = -1;
      logprobs[r] = bits_to_float(0x7fc00000u);
    }
    return;
  }
  int64_t chosen = best.id();
  double logprob = -log(best.weight);
  const float temperature = params[kSampleTemperature];
  if (temperature > 0.0f) {
    // A token's weight relative to the likeliest one's, in units of 2^-44.
    const auto weight = [&](float x) { return expf((x - best.value()) / temperature); };
    const auto units = [](float w) {
      return w > 0.0f ? static_cast<uint64_t>(w * kUnit) : uint64_t{0};
    };
    // By whole powers of e.
    const auto group = [&](float x) {
      const float t = (best.value() - x) / temperature;
      return t < kBins - 1 ? static_cast<int>(t) : kBins - 1;
    };
    uint64_t total = 0;
    row.for_each<2>(0, vocab_size, own, threads,
                    [&](int64_t, float x) { total += units(weight(x)); });
    total = block_sum(work, total);

    Cut cut{0, vocab_size};
    const auto top_k = static_cast<int32_t>(float_to_bits(params[kSampleTopK]));
    if (top_k > 0 && top_k < vocab_size)
      cut = find_cut(
          work, row, cut, group, [](float) { return uint64_t{1}; },
          [&](uint64_t) { return static_cast<uint64_t>(top_k); });
    const float top_p = params[kSampleTopP];
    if (top_p < 1.0f)
      cut = find_cut(
          work, row, cut, group, [&](float x) { return units(weight(x)); },
          [&](uint64_t mass) {
            const double goal = ceil(double{top_p} * static_cast<double>(mass));
            return goal > 1.0 ? static_cast<uint64_t>(goal) : uint64_t{1};
          });

    const float least = params[kSampleMinP];
    const auto kept = [&](int64_t i, float x) {
      const float w = weight(x);
      return w >= least && cut.keeps(key_of(x), i) ? units(w) : uint64_t{0};
    };
    const uint64_t seed = float_to_bits(params[kSampleSeedLow]) |
                          static_cast<uint64_t>(float_to_bits(params[kSampleSeedHigh])) << 32;
    const double u = uniform(seed, float_to_bits(params[kSampleStep]));
    const int64_t drawn = token_at(work, row, kept, [&](uint64_t mass) {
      return static_cast<uint64_t>(u * static_cast<double>(mass));
    });
    if (drawn >= 0) chosen = drawn;
    const float x = row.penalized(row.logits[chosen], row.seen != nullptr && seen[chosen] != 0);
    logprob = (double{x} - double{best.value()}) / double{temperature} -
              log(static_cast<double>(total) / double{kUnit});
  }
  __syncthreads();  // the mark below belongs to the next step
  if (own == 0) {
    ids[r] = static_cast<int32_t>(chosen);
    logprobs[r] = static_cast<float>(logprob);
    if (seen != nullptr) seen[chosen] = 1;
  }
}

}  // namespace

void sample(Context& context, const SampleArgs& a) {
  const int64_t vocab_size = a.logits.size(1);
  const int threads = vocab_size < kPartTokens ? kFewThreads : kMaxThreads;
  const size_t shared_bytes =
      static_cast<size_t>(kBins * threads) * sizeof(uint64_t) + kListed * sizeof(uint32_t);
  const bool vectors =
      (address_bits(a.logits.data) | static_cast<uint64_t>(vocab_size * 4)) % 16 == 0 &&
      address_bits(a.seen.data) % 4 == 0;
  SampleRows rows{};
  rows.logits = a.logits.as<float>();
  rows.params = a.params.as<float>();
  rows.seen = a.seen.as<uint8_t>();
  rows.contexts = a.contexts.as<int32_t>();
  rows.vocab_size = vocab_size;
  rows.n_contexts = a.seen.size(0);
  rows.vectors = vectors;
  const unsigned n_rows = blocks_for(a.logits.size(0), 1);
  if (vocab_size > kPartTokens) {
    const unsigned n_parts = blocks_for(vocab_size, kPartTokens);
    rows.n_parts = static_cast<int32_t>(n_parts);
    rows.parts = static_cast<Highest*>(
        context.scratch(int64_t{n_rows} * n_parts * static_cast<int64_t>(sizeof(Highest))));
    launch_early(context, &highest_of_parts_kernel, dim3(n_rows, n_parts), kMaxThreads, 0, rows);
  }
  launch_early(context, &sample_kernel, n_rows, threads, shared_bytes, context.faults(), rows,
               a.ids.as<int32_t>(), a.logprobs.as<float>());
}

}  // namespace zc::cuda
