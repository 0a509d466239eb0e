#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <tuple>

#include "csrc/emu/site.h"

// Conflicts of shared memory's 32 banks of 4 bytes. A warp's access is served in phases: 32 lanes
// of 4 bytes, 16 of 8 or 8 of 16; a phase takes a cycle for every different word that its busiest
// bank has to give.
namespace zc::emu {

// Cycles beyond the first that one phase of 8 rows of 16 bytes takes.
int conflicts_of_16_byte_rows(const uint32_t (&addresses)[8]);

// One instruction of a warp, as far as its lanes have come to it.
struct WarpAccess {
  uint32_t addresses[32];
  uint32_t lanes;
  uint32_t bytes;
};

// The plain accesses of a block that are not complete. Lanes do not run in step: the n-th access of
// every lane to a site is taken for one instruction.
struct AccessLog {
  struct SiteLog {
    uint64_t n_accesses[32] = {};
    uint64_t first = 0;  // number of open.front()
    std::deque<WarpAccess> open;
  };
  std::map<std::tuple<const char*, int, unsigned>, SiteLog> sites;  // file, line, warp
};

// One lane's plain access: throws kInternal outside of shared memory. Counted with ZC_SIMT_BANKS=1,
// since that takes longer than the access.
void note_shared_access(const void* p, uint32_t bytes, Site site);

struct Block;
// Counts what is left of accesses in which not all lanes took part.
void finish_shared_accesses(Block& block);

}  // namespace zc::emu

namespace zc::simt {

// A plain access to shared memory that checks its bounds and its alignment and counts its bank
// conflicts; on a GPU nothing but the access. For the inner loops of kernels. T has 4, 8 or 16
// bytes.
template <typename T>
inline T shared_load(const T* p, emu::Site site = emu::Site::here()) {
  emu::note_shared_access(p, sizeof(T), site);
  return *p;
}
template <typename T>
inline void shared_store(T* p, T x, emu::Site site = emu::Site::here()) {
  emu::note_shared_access(p, sizeof(T), site);
  *p = x;
}

}  // namespace zc::simt
