#include "csrc/emu/whole.h"

#include "csrc/emu/block.h"
#include "csrc/emu/copy.h"

namespace zc::simt {

// A host may have no atomic access of 16 bytes. The second half, with the flag, is stored last and
// loaded first. ThreadSanitizer, which does not see this file, takes no order from it.
void store_whole(uint4* to, const uint4& x) {
  uint64_t* const halves = reinterpret_cast<uint64_t*>(to);
  __atomic_store_n(halves, uint64_t{x.y} << 32 | x.x, __ATOMIC_RELAXED);
  __atomic_store_n(halves + 1, uint64_t{x.w} << 32 | x.z, __ATOMIC_RELEASE);
}

uint4 load_whole(const uint4* from) {
  emu::Thread& me = *emu::current;
  if (me.asked_words.insert(from).second && emu::is_late(*me.block)) return {};
  const uint64_t* const halves = reinterpret_cast<const uint64_t*>(from);
  const uint64_t high = __atomic_load_n(halves + 1, __ATOMIC_ACQUIRE);
  const uint64_t low = __atomic_load_n(halves, __ATOMIC_RELAXED);
  return {static_cast<unsigned>(low), static_cast<unsigned>(low >> 32), static_cast<unsigned>(high),
          static_cast<unsigned>(high >> 32)};
}

}  // namespace zc::simt
