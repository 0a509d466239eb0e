#include "csrc/emu/fence.h"

#include "csrc/emu/scheduler.h"

namespace zc::emu {

// A token is a clock for ThreadSanitizer, and a block keeps two: what its threads had done before
// their fences, which its atomics publish; and what its atomics have read, which its fences make
// seen. Clocks move from token to token through contexts that do nothing else. A block's threads
// share them: whether a barrier lies between one thread's fence and another's atomic is not asked.
void thread_fence() {
  if constexpr (tsan::kOn) {
    const OrderTokens& tokens = *current->block->tokens;
    tsan::release(&tokens.published);
    tsan::acquire(&tokens.received);
  }
}

void block_fence() {
  if constexpr (tsan::kOn) {
    const OrderTokens& tokens = *current->block->tokens;
    tsan::release(&tokens.block_fence);
    tsan::acquire(&tokens.block_fence);
  }
}

void note_atomic(const void* p) {
  if constexpr (tsan::kOn) {
    if (!current) return;
    Block& block = *current->block;
    if (block.shared.contains(p)) return;
    const OrderTokens& tokens = *block.tokens;
    void* thread = tsan::current_context();
    tsan::switch_to(block.publisher());
    tsan::acquire(&tokens.published);
    tsan::release(p);
    tsan::switch_to(block.receiver());
    tsan::acquire(p);
    tsan::release(&tokens.received);
    tsan::switch_to(thread);
  }
}

}  // namespace zc::emu
