#pragma once

#include <cstdint>

#include "csrc/emu/site.h"

// mbarriers: 64-bit objects in shared memory that count arrivals and the bytes of bulk copies. A
// phase completes when as many threads have arrived as the barrier is for, and as many bytes were
// written as they had announced.
namespace zc::emu {

struct Block;

// Throws kInternal unless an mbarrier was initialised there.
void mbarrier_check(uint32_t barrier, Site site);
// Bytes have been written.
void mbarrier_complete_bytes(Block& block, uint32_t barrier, uint32_t bytes, Site site);
// A thread's copies are done: it arrives.
void mbarrier_complete_arrival(Block& block, uint32_t barrier, Site site);
// What a thread that waits for the barrier's running phase acquires.
const void* mbarrier_token(const Block& block, uint32_t barrier);

// Throws kInternal when bytes were announced that did not come, or came unannounced.
void check_mbarriers(const Block& block);

}  // namespace zc::emu

namespace zc::simt {

void mbarrier_init(uint32_t barrier, uint32_t n, emu::Site site = emu::Site::here());
void mbarrier_arrive(uint32_t barrier, emu::Site site = emu::Site::here());
void mbarrier_arrive_expect_tx(uint32_t barrier, uint32_t bytes,
                               emu::Site site = emu::Site::here());
// Returns when the phase of this parity has completed.
void mbarrier_wait(uint32_t barrier, uint32_t parity, emu::Site site = emu::Site::here());
inline void fence_mbarrier_init() {}

}  // namespace zc::simt
