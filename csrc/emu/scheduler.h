#pragma once

#include "csrc/emu/block.h"

// Who runs next. A thread runs until it waits; then the next ready lane of its own warp goes on, or
// else of the next warp that has one. There is no loop in the middle: threads switch to each other.
namespace zc::emu {

// Throws kInternal with the block and thread that run.
[[noreturn, gnu::format(printf, 1, 2)]] void fail(const char* fmt, ...);

// The thread that goes on next, null when all wait. Asynchronous copies advance when nobody can.
Thread* next_thread(Block& block);

// Suspends the current thread, whose ready bit is already clear, until something set it again.
// Throws kInternal when that cannot happen: a deadlock, reported with who waits where.
void suspend(Wait wait, const char* name, Site site);

// Lets the others go on first. A loop that waits for memory to change must call it, as __nanosleep.
void yield();

// Ends the current thread: switches away for good.
[[noreturn]] void exit_thread();

// Ends the current thread's block after an error.
[[noreturn]] void abandon_block();

inline void make_ready(Thread& thread) { thread.warp->ready |= 1u << thread.lane; }
inline void make_waiting(Thread& thread) { thread.warp->ready &= ~(1u << thread.lane); }

}  // namespace zc::emu
