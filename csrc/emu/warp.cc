#include "csrc/emu/warp.h"

#include <algorithm>

#include "csrc/emu/scheduler.h"

namespace zc::emu {

namespace {

[[noreturn]] void fail_divergent(const Thread& me, unsigned other_lane, const char* name,
                                 Site site) {
  const Thread& other = me.block->threads[me.warp_index * 32 + other_lane];
  fail(
      "lanes of a warp are in different collectives: lane %u in %s at %s:%d, lane %u in %s at "
      "%s:%d",
      me.lane, name, site.file, site.line, other.lane, other.wait_name, other.wait_site.file,
      other.wait_site.line);
}

// Calls f with each lane of a mask.
template <typename F>
inline void each_lane(uint32_t mask, const F& f) {
  for (; mask; mask &= mask - 1) f(static_cast<unsigned>(__builtin_ctz(mask)));
}

}  // namespace

void warp_collective(uint32_t mask, WarpFunction function, void* argument, const char* name,
                     Site site) {
  Thread& me = *current;
  Warp& warp = *me.warp;
  const uint32_t bit = 1u << me.lane;
  ++me.block->stats.collectives;
  if (!(mask & bit)) [[unlikely]]
    fail("%s:%d: %s: lane %u is not in its own mask %08x", site.file, site.line, name, me.lane,
         mask);
  if (const uint32_t gone = mask & (warp.exited | ~warp.present)) [[unlikely]]
    fail("%s:%d: %s: the mask %08x names lanes that have exited or never were: %08x", site.file,
         site.line, name, mask, gone);
  warp.arguments[me.lane] = argument;
  warp.functions[me.lane] = function;
  warp.masks[me.lane] = mask;
  warp.waiting |= bit;
  if ((warp.waiting & mask) == mask) {
    bool same_mask = true;
    each_lane(mask, [&](unsigned lane) {
      same_mask &= warp.masks[lane] == mask;
      if (warp.masks[lane] == mask && warp.functions[lane] != function) [[unlikely]]
        fail_divergent(me, lane, name, site);
    });
    if (same_mask) {
      function(mask, warp.arguments);
      warp.waiting &= ~mask;
      warp.ready |= mask;
      return;
    }
  }
  make_waiting(me);
  me.wait_mask = mask;
  suspend(Wait::kWarp, name, site);
}

namespace {

// Every lane releases a token of its own when it arrives. The last one acquires them all and
// releases what each lane acquires when it leaves.
void compute_syncwarp(uint32_t mask, void* const*) {
  if constexpr (tsan::kOn) {
    const Thread& me = *current;
    auto* tokens = me.block->tokens->lanes + me.warp_index * 32;
    each_lane(mask, [&](unsigned lane) { tsan::acquire(&tokens[lane].arrived); });
    each_lane(mask, [&](unsigned lane) { tsan::release(&tokens[lane].released); });
  }
}

}  // namespace

void syncwarp(uint32_t mask, Site site) {
  const Thread& me = *current;
  const OrderTokens::Lane* token = &me.block->tokens->lanes[me.linear];
  tsan::release(&token->arrived);
  warp_collective(mask, compute_syncwarp, nullptr, "__syncwarp", site);
  tsan::acquire(&token->released);
}

namespace {

struct ShuffleArgument {
  uint64_t given;
  uint64_t received;
  uint32_t source_lane;
};

void compute_shuffle(uint32_t mask, void* const* arguments) {
  const auto of = [&](unsigned lane) { return static_cast<ShuffleArgument*>(arguments[lane]); };
  ++current->block->stats.shuffles;
  each_lane(mask, [&](unsigned lane) {
    const uint32_t source = of(lane)->source_lane;
    of(lane)->received = (mask >> source) & 1u ? of(source)->given : ~uint64_t{0};
  });
}

}  // namespace

uint64_t shuffle(uint32_t mask, uint64_t value, uint32_t source_lane, const char* name, Site site) {
  ShuffleArgument argument{value, 0, source_lane};
  warp_collective(mask, compute_shuffle, &argument, name, site);
  return argument.received;
}

namespace {

struct ReduceArgument {
  uint32_t given;
  uint32_t result;
};

uint32_t combine(Reduction reduction, uint32_t a, uint32_t b) {
  const int32_t signed_a = static_cast<int32_t>(a);
  const int32_t signed_b = static_cast<int32_t>(b);
  switch (reduction) {
    case Reduction::kAdd:
      return a + b;
    case Reduction::kMin:
      return std::min(a, b);
    case Reduction::kMax:
      return std::max(a, b);
    case Reduction::kMinSigned:
      return static_cast<uint32_t>(std::min(signed_a, signed_b));
    case Reduction::kMaxSigned:
      return static_cast<uint32_t>(std::max(signed_a, signed_b));
    case Reduction::kAnd:
      return a & b;
    case Reduction::kXor:
      return a ^ b;
    default:
      return a | b;
  }
}

// A function for each reduction, so that lanes in different ones are found out.
template <Reduction kReduction>
void compute_reduction(uint32_t mask, void* const* arguments) {
  const auto of = [&](unsigned lane) { return static_cast<ReduceArgument*>(arguments[lane]); };
  const unsigned first = static_cast<unsigned>(__builtin_ctz(mask));
  if constexpr (kReduction == Reduction::kMatch) {
    each_lane(mask, [&](unsigned lane) {
      uint32_t equal = 0;
      each_lane(mask, [&](unsigned other) {
        if (of(other)->given == of(lane)->given) equal |= 1u << other;
      });
      of(lane)->result = equal;
    });
  } else {
    uint32_t result = kReduction == Reduction::kBallot ? 0 : of(first)->given;
    if constexpr (kReduction == Reduction::kBallot)
      each_lane(mask, [&](unsigned lane) { result |= of(lane)->given << lane; });
    else
      each_lane(mask & (mask - 1),
                [&](unsigned lane) { result = combine(kReduction, result, of(lane)->given); });
    each_lane(mask, [&](unsigned lane) { of(lane)->result = result; });
  }
}

constexpr WarpFunction kReductions[] = {
    compute_reduction<Reduction::kBallot>,    compute_reduction<Reduction::kAdd>,
    compute_reduction<Reduction::kMin>,       compute_reduction<Reduction::kMax>,
    compute_reduction<Reduction::kMinSigned>, compute_reduction<Reduction::kMaxSigned>,
    compute_reduction<Reduction::kAnd>,       compute_reduction<Reduction::kOr>,
    compute_reduction<Reduction::kXor>,       compute_reduction<Reduction::kMatch>,
};

}  // namespace

uint32_t reduce(uint32_t mask, uint32_t value, Reduction reduction, const char* name, Site site) {
  ReduceArgument argument{value, 0};
  warp_collective(mask, kReductions[static_cast<int>(reduction)], &argument, name, site);
  return argument.result;
}

}  // namespace zc::emu
