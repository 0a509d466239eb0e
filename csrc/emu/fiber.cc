#include "csrc/emu/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstring>

#include "csrc/core/error.h"

#if defined(__x86_64__)
asm(R"(
.text
.p2align 4
.globl zc_emu_switch_stack
.hidden zc_emu_switch_stack
.type zc_emu_switch_stack, @function
zc_emu_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size zc_emu_switch_stack, .-zc_emu_switch_stack
)");
#elif defined(__aarch64__)
asm(R"(
.text
.p2align 4
.globl zc_emu_switch_stack
.hidden zc_emu_switch_stack
.type zc_emu_switch_stack, %function
zc_emu_switch_stack:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size zc_emu_switch_stack, .-zc_emu_switch_stack
)");
#else
#error "csrc/emu/fiber.cc switches stacks on x86-64 and on AArch64"
#endif

namespace zc::emu {

namespace {

constexpr size_t kPageBytes = 4096;

}  // namespace

void prepare_fiber(Fiber& fiber, void (*entry)(), unsigned index) {
  // What abandoned frames have left poisoned would be found when the stack is used again.
  asan::unpoison(fiber.stack_bottom, fiber.stack_bytes);
  fiber.fake_stack = nullptr;

  // 7 lines of 64 bytes between neighbours, 64 different places.
  const size_t color = (size_t{index} * 448) & 0xfc0;
  const auto bottom = reinterpret_cast<uintptr_t>(fiber.stack_bottom);
  const uintptr_t top = (bottom + fiber.stack_bytes - color) & ~uintptr_t{63};
  void** slot = reinterpret_cast<void**>(top);
#if defined(__x86_64__)
  // As after a call of entry: a return address (none) at 8 modulo 16, six zeroed registers below.
  *--slot = nullptr;
  *--slot = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--slot = nullptr;
#else
  constexpr int kSavedWords = 20;
  constexpr int kLinkRegister = 11;
  slot -= kSavedWords;
  std::memset(slot, 0, kSavedWords * sizeof(void*));
  slot[kLinkRegister] = reinterpret_cast<void*>(entry);
#endif
  fiber.stack_pointer = slot;
}

StackPool::~StackPool() {
  if (memory_) munmap(memory_, n_stacks_ * stack_bytes_);
}

void StackPool::reserve(unsigned n_stacks, size_t stack_bytes) {
  if (n_stacks <= n_stacks_ && stack_bytes == stack_bytes_) return;
  if (memory_) munmap(memory_, n_stacks_ * stack_bytes_);
  memory_ = nullptr;
  void* memory = mmap(nullptr, n_stacks * stack_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ZC_CHECK(memory != MAP_FAILED, ErrorCode::kOutOfMemory, "no memory for %u stacks of %zu bytes",
           n_stacks, stack_bytes);
  memory_ = static_cast<unsigned char*>(memory);
  n_stacks_ = n_stacks;
  stack_bytes_ = stack_bytes;
  for (unsigned i = 0; i < n_stacks; ++i)
    mprotect(memory_ + i * stack_bytes, kPageBytes, PROT_NONE);
}

void StackPool::give(Fiber& fiber, unsigned index) const {
  fiber.stack_bottom = memory_ + index * stack_bytes_ + kPageBytes;
  fiber.stack_bytes = stack_bytes_ - kPageBytes;
}

}  // namespace zc::emu
