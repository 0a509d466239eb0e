#pragma once

#include "csrc/emu/barrier.h"

namespace zc::emu {

// What ThreadSanitizer's orders hang on: the address of a member stands for an event that threads
// release before and acquire after. Every block has its own, since an address that two blocks used
// would order them.
struct OrderTokens {
  struct Lane {
    char arrived;
    char released;
  };
  char begin;
  // In turn: a thread that already arrives at the next barrier must not seem ordered before one
  // that still leaves this one.
  char barriers[kBarriers][2];
  Lane lanes[1024];  // of __syncwarp, by the thread's number in the block
  char wgmma_issued[8];
  char wgmma_done[8];
  char bulk_issued;
  char fenced;         // what threads wrote before a proxy fence
  char async_written;  // what bulk copies wrote
  char published;      // see fence.cc
  char received;
  char block_fence;
};

}  // namespace zc::emu
