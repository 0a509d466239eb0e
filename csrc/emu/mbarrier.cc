#include "csrc/emu/mbarrier.h"

#include "csrc/emu/scheduler.h"

namespace zc::emu {

namespace {

// Memory that was never written has every bit set.
struct Mbarrier {
  int64_t missing_bytes : 22;
  uint64_t pending : 20;
  uint64_t expected : 20;
  uint64_t phase : 1;
  uint64_t uninitialised : 1;
};
static_assert(sizeof(Mbarrier) == 8);

Mbarrier& mbarrier_at(Block& block, uint32_t address) {
  return *reinterpret_cast<Mbarrier*>(block.shared.base() + (address - kSharedBase));
}

Mbarrier& checked(Block& block, uint32_t address, Site site) {
  mbarrier_check(address, site);
  return mbarrier_at(block, address);
}

// The event that the running phase (of this parity) completes: bytes 0 and 1 of the object.
const void* token_of(const Block& block, uint32_t address, uint32_t parity) {
  return block.shared.base() + (address - kSharedBase) + (parity & 1);
}

void complete_phase_if_due(Block& block, Mbarrier& m, uint32_t address) {
  if (m.pending != 0 || m.missing_bytes != 0) return;
  m.phase ^= 1;
  m.pending = m.expected;
  for (unsigned i = 0; i < block.n_threads; ++i) {
    Thread& t = block.threads[i];
    if (t.wait == Wait::kMbarrier && t.wait_address == address && t.wait_parity != m.phase)
      make_ready(t);
  }
}

void check_pending(const Mbarrier& m, uint32_t address, Site site) {
  if (m.pending == 0)
    fail("%s:%d: mbarrier at shared address %u: more arrivals than the %u it is for", site.file,
         site.line, address - kSharedBase, static_cast<unsigned>(m.expected));
}

void arrive(uint32_t address, uint32_t bytes, Site site) {
  Block& block = *current->block;
  Mbarrier& m = checked(block, address, site);
  tsan::release(token_of(block, address, m.phase));
  check_pending(m, address, site);
  m.missing_bytes = m.missing_bytes + static_cast<int>(bytes);
  m.pending = m.pending - 1;
  complete_phase_if_due(block, m, address);
}

}  // namespace

void mbarrier_check(uint32_t barrier, Site site) {
  const unsigned char* p = shared_at(barrier, 8, 8, "mbarrier", site);
  if (reinterpret_cast<const Mbarrier*>(p)->uninitialised)
    fail("%s:%d: the mbarrier at shared address %u is not initialised", site.file, site.line,
         barrier - kSharedBase);
}

void mbarrier_complete_bytes(Block& block, uint32_t barrier, uint32_t bytes, Site) {
  Mbarrier& m = mbarrier_at(block, barrier);
  m.missing_bytes = m.missing_bytes - static_cast<int>(bytes);
  complete_phase_if_due(block, m, barrier);
}

void mbarrier_complete_arrival(Block& block, uint32_t barrier, Site site) {
  Mbarrier& m = mbarrier_at(block, barrier);
  check_pending(m, barrier, site);
  m.pending = m.pending - 1;
  complete_phase_if_due(block, m, barrier);
}

const void* mbarrier_token(const Block& block, uint32_t barrier) {
  const Mbarrier& m = mbarrier_at(const_cast<Block&>(block), barrier);
  return token_of(block, barrier, m.phase);
}

void check_mbarriers(const Block& block) {
  for (const uint32_t address : block.mbarriers) {
    const Mbarrier& m = mbarrier_at(const_cast<Block&>(block), address);
    if (m.missing_bytes != 0)
      fail("the mbarrier at shared address %u ended with %d bytes announced and not written",
           address - kSharedBase, static_cast<int>(m.missing_bytes));
  }
}

}  // namespace zc::emu

namespace zc::simt {

void mbarrier_init(uint32_t barrier, uint32_t n, emu::Site site) {
  const emu::tsan::IgnoreAccesses ignore;
  emu::Block& block = *emu::current->block;
  emu::shared_at(barrier, 8, 8, "mbarrier", site);
  emu::Mbarrier& m = emu::mbarrier_at(block, barrier);
  m = {};
  m.pending = n;
  m.expected = n;
  block.mbarriers.push_back(barrier);
}

void mbarrier_arrive(uint32_t barrier, emu::Site site) { emu::arrive(barrier, 0, site); }

void mbarrier_arrive_expect_tx(uint32_t barrier, uint32_t bytes, emu::Site site) {
  emu::arrive(barrier, bytes, site);
}

void mbarrier_wait(uint32_t barrier, uint32_t parity, emu::Site site) {
  emu::Thread& me = *emu::current;
  emu::Block& block = *me.block;
  parity &= 1;
  while (emu::checked(block, barrier, site).phase == parity) {
    me.wait_address = barrier;
    me.wait_parity = parity;
    emu::make_waiting(me);
    emu::suspend(emu::Wait::kMbarrier, "mbarrier", site);
  }
  emu::tsan::acquire(emu::token_of(block, barrier, parity));
}

}  // namespace zc::simt
