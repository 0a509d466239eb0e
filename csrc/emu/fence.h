#pragma once

// Orders between blocks. CUDA's memory model takes two fences and an atomic: what block A wrote
// before its __threadfence is seen by block B behind its own, when B's atomic, before that fence,
// read what A's atomic, behind A's fence, had written. The emulator runs blocks one after the
// other; ThreadSanitizer is told of such pairs and reports whatever relies on less.
namespace zc::emu {

struct Block;

// __threadfence.
void thread_fence();
// __threadfence_block: orders the threads of a block alone.
void block_fence();

// An atomic of global memory by the current thread, which others may read.
void note_atomic(const void* p);

}  // namespace zc::emu
