#pragma once

#include <cstdint>

#include "csrc/emu/site.h"

// Warps and what their lanes do together. Every lane that reaches a collective leaves a pointer to
// its arguments; the last one computes the results of all.
namespace zc::emu {

// Computes a collective: arguments[lane] of each lane in the mask.
using WarpFunction = void (*)(uint32_t mask, void* const* arguments);

struct Warp {
  uint32_t ready;    // lanes that can run
  uint32_t waiting;  // lanes that are in a collective
  uint32_t exited;
  uint32_t present;  // lanes that the block has
  void* arguments[32];
  WarpFunction functions[32];
  uint32_t masks[32];
};

// Returns when all lanes of the mask have come here with the same function. Throws kInternal when
// that cannot be: lanes in different collectives, or lanes that have exited.
void warp_collective(uint32_t mask, WarpFunction function, void* argument, const char* name,
                     Site site);

// Waits for the lanes of the mask and orders their memory accesses. (Other collectives order none.)
void syncwarp(uint32_t mask, Site site);

// What source_lane gave. All ones when that lane is not in the mask.
uint64_t shuffle(uint32_t mask, uint64_t value, uint32_t source_lane, const char* name, Site site);

// Votes and reductions over the lanes of a mask.
enum class Reduction { kBallot, kAdd, kMin, kMax, kMinSigned, kMaxSigned, kAnd, kOr, kXor, kMatch };
uint32_t reduce(uint32_t mask, uint32_t value, Reduction reduction, const char* name, Site site);

}  // namespace zc::emu
