#pragma once

#include <cstdint>

#include "csrc/math/hd.h"

namespace zc {

// Keys [first, last) of a sequence.
struct KeyRange {
  int64_t first;
  int64_t last;
};

// Keys j of [0, n_keys) that a query at position `query` sees: j <= query (causal) and j > query -
// window (0: no window).
ZC_HD KeyRange visible_keys(int64_t query, int64_t n_keys, bool causal, int64_t window) {
  int64_t first = 0;
  int64_t last = n_keys;
  if (causal && query + 1 < last) last = query + 1;
  if (window > 0 && query - window + 1 > first) first = query - window + 1;
  if (last < 0) last = 0;
  if (first > last) first = last;
  return {first, last};
}

}  // namespace zc
