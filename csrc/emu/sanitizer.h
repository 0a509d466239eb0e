#pragma once

#include <cstddef>

// What AddressSanitizer and ThreadSanitizer have to be told of fibers. Without a sanitizer all of
// it is nothing.
//
// ThreadSanitizer finds races between CUDA threads: each has a context of its own, and only what
// orders threads in CUDA's memory model (barriers, __syncwarp, mbarriers, fences) is told as
// acquire and release. For that the emulator itself is compiled without -fsanitize=thread and with
// ZC_EMU_TSAN, the kernels with both; accesses that the emulator makes for a thread are told one by
// one.

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(ZC_EMU_TSAN)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void __tsan_read_range(void* address, unsigned long bytes);
void __tsan_write_range(void* address, unsigned long bytes);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace zc::emu {

#if defined(__SANITIZE_ADDRESS__) || defined(ZC_EMU_TSAN)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

namespace asan {

#if defined(__SANITIZE_ADDRESS__)
inline void start_switch(void** fake_stack, const void* bottom, size_t bytes) {
  __sanitizer_start_switch_fiber(fake_stack, bottom, bytes);
}
inline void finish_switch(void* fake_stack, const void** old_bottom, size_t* old_bytes) {
  __sanitizer_finish_switch_fiber(fake_stack, old_bottom, old_bytes);
}
inline void poison(const void* p, size_t bytes) { __asan_poison_memory_region(p, bytes); }
inline void unpoison(const void* p, size_t bytes) { __asan_unpoison_memory_region(p, bytes); }
#else
inline void start_switch(void**, const void*, size_t) {}
inline void finish_switch(void*, const void**, size_t*) {}
inline void poison(const void*, size_t) {}
inline void unpoison(const void*, size_t) {}
#endif

}  // namespace asan

namespace tsan {

#if defined(ZC_EMU_TSAN)
inline constexpr bool kOn = true;
inline void* create_context() { return __tsan_create_fiber(0); }
inline void destroy_context(void* context) {
  if (context) __tsan_destroy_fiber(context);
}
inline void* current_context() { return __tsan_get_current_fiber(); }
// 1: switching orders nothing.
inline void switch_to(void* context) { __tsan_switch_to_fiber(context, 1); }
inline void acquire(const void* token) { __tsan_acquire(const_cast<void*>(token)); }
inline void release(const void* token) { __tsan_release(const_cast<void*>(token)); }
inline void note_read(const void* p, size_t bytes) {
  __tsan_read_range(const_cast<void*>(p), bytes);
}
inline void note_write(void* p, size_t bytes) { __tsan_write_range(p, bytes); }

// While one lives, the memory functions that libtsan replaces (memcpy, new) count as no access.
class IgnoreAccesses {
 public:
  IgnoreAccesses() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~IgnoreAccesses() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
  IgnoreAccesses(const IgnoreAccesses&) = delete;
  IgnoreAccesses& operator=(const IgnoreAccesses&) = delete;
};
#else
inline constexpr bool kOn = false;
inline void* create_context() { return nullptr; }
inline void destroy_context(void*) {}
inline void* current_context() { return nullptr; }
inline void switch_to(void*) {}
inline void acquire(const void*) {}
inline void release(const void*) {}
inline void note_read(const void*, size_t) {}
inline void note_write(void*, size_t) {}
class IgnoreAccesses {
 public:
  IgnoreAccesses() {}
  ~IgnoreAccesses() {}
};
#endif

}  // namespace tsan

}  // namespace zc::emu
