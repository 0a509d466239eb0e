#pragma once

#include <cstddef>

#include "csrc/emu/sanitizer.h"

// Fibers: stacks that one host thread switches between, one for each CUDA thread of a block. A
// fiber never moves to another host thread, so that addresses of thread-local variables may be
// kept. Exceptions stay within their fiber.
namespace zc::emu {

struct Fiber {
  void* stack_pointer = nullptr;  // while it does not run
  const void* stack_bottom = nullptr;
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;  // of AddressSanitizer
  void* context = nullptr;     // of ThreadSanitizer
};

// Pushes the registers that a function must keep, stores the stack pointer in *save, goes on where
// `to` was stored. 14 instructions; swapcontext takes 20 times as long, since it asks the kernel
// for the signal mask.
extern "C" void zc_emu_switch_stack(void** save, void* to);

// Goes on at `to`; returns when somebody switches back to `from`.
inline void switch_fiber(Fiber& from, Fiber& to) {
  asan::start_switch(&from.fake_stack, to.stack_bottom, to.stack_bytes);
  tsan::switch_to(to.context);
  zc_emu_switch_stack(&from.stack_pointer, to.stack_pointer);
  asan::finish_switch(from.fake_stack, nullptr, nullptr);
}

// The same for good: nobody will switch back.
[[noreturn]] inline void leave_fiber(Fiber& from, Fiber& to) {
  asan::start_switch(nullptr, to.stack_bottom, to.stack_bytes);
  tsan::switch_to(to.context);
  zc_emu_switch_stack(&from.stack_pointer, to.stack_pointer);
  __builtin_unreachable();
}

// To be called first on a new fiber. `host`: whose stack the first fiber was entered from; its
// bounds are learned here.
inline void enter_fiber(Fiber& host) {
  const void* old_bottom = nullptr;
  size_t old_bytes = 0;
  asan::finish_switch(nullptr, &old_bottom, &old_bytes);
  if (host.stack_bottom == nullptr) {
    host.stack_bottom = old_bottom;
    host.stack_bytes = old_bytes;
  }
}

// Makes a fiber begin at entry, which must not return. `index` spreads the stacks' hot lines over
// the sets of the first-level cache: without it all 128 stacks of a block share one set (16% of a
// kernel's time).
void prepare_fiber(Fiber& fiber, void (*entry)(), unsigned index);

// Equal stacks in one piece of memory, each with a page below it that may not be touched.
class StackPool {
 public:
  StackPool() = default;
  ~StackPool();
  StackPool(const StackPool&) = delete;
  StackPool& operator=(const StackPool&) = delete;

  // Throws kOutOfMemory. Stacks given before are gone when it has to grow.
  void reserve(unsigned n_stacks, size_t stack_bytes);
  void give(Fiber& fiber, unsigned index) const;

 private:
  unsigned char* memory_ = nullptr;
  unsigned n_stacks_ = 0;
  size_t stack_bytes_ = 0;
};

}  // namespace zc::emu
