#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace zc::emu {

// What kernels have done, for tests and for whoever wonders where the time goes.
struct Stats {
  uint64_t launches;
  uint64_t blocks;
  uint64_t switches;
  uint64_t collectives;
  uint64_t barriers;
  uint64_t shuffles;
  uint64_t ldmatrix;
  uint64_t mma;
  uint64_t cp_async;
  uint64_t bulk_copies;  // of tensors too
  uint64_t wgmma;
  // Cycles lost to accesses of different words in one bank: of ldmatrix, and of plain accesses by
  // shared_load and shared_store.
  uint64_t ldmatrix_conflicts;
  uint64_t shared_conflicts;
};

// The sum over all host threads since the last call, which it clears.
Stats take_stats();

// Where conflicts were counted since the last call: "kernel.cu:40: 24 cycles".
std::vector<std::string> take_conflict_sites();

}  // namespace zc::emu
