// Preloaded into a process: allocations of one library fail when they are told to. Those of Node
// and V8 do not, which would end the process.
//
//   process.env.ZC_FAIL_ALLOCATION = 'N'    the N-th from now on fails; 'N+': it and all after it;
//                                           '0': none, and all are counted from now on
//   process.env.ZC_ALLOCATIONS              how many there were since then
#include <dlfcn.h>
#include <execinfo.h>
#include <link.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {

constexpr const char* kLibrary = "/zipcache.node";

std::atomic<int64_t> n_allocations{0};
std::atomic<int64_t> first_failure{0};  // 0: none fails
std::atomic<bool> all_after{false};
std::atomic<bool> is_on{false};

// Where a library's code lies.
struct Span {
  const char* name;
  uintptr_t first = 0;
  uintptr_t last = 0;
  bool holds(const void* place) const {
    const auto address = reinterpret_cast<uintptr_t>(place);
    return first <= address && address < last;
  }
};
Span library{kLibrary};
Span standard{"/libstdc++.so"};
Span own{"/fail-allocation.so"};

int find_spans(dl_phdr_info* info, size_t, void*) {
  for (Span* span : {&library, &standard, &own}) {
    if (!std::strstr(info->dlpi_name, span->name)) continue;
    for (int i = 0; i < info->dlpi_phnum; ++i) {
      const auto& header = info->dlpi_phdr[i];
      if (header.p_type != PT_LOAD || !(header.p_flags & PF_X)) continue;
      span->first = info->dlpi_addr + header.p_vaddr;
      span->last = span->first + header.p_memsz;
    }
  }
  return 0;
}

// Whether it is the library's, be it by way of the standard library.
bool is_library_call() {
  void* frames[16];
  const int n = backtrace(frames, 16);
  for (int i = 0; i < n; ++i) {
    if (own.holds(frames[i]) || standard.holds(frames[i])) continue;
    return library.holds(frames[i]);
  }
  return false;
}

bool fails() {
  if (!is_on.load() || !is_library_call()) return false;
  const int64_t n = ++n_allocations;
  const int64_t first = first_failure.load();
  return first > 0 && (all_after.load() ? n >= first : n == first);
}

void* allocated(size_t bytes, size_t alignment) {
  void* memory =
      fails()
          ? nullptr
          : (alignment ? aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment)
                       : std::malloc(bytes ? bytes : 1));
  if (!memory) throw std::bad_alloc();
  return memory;
}

template <typename F>
F next(const char* name) {
  return reinterpret_cast<F>(dlsym(RTLD_NEXT, name));
}

}  // namespace

void* operator new(size_t bytes) { return allocated(bytes, 0); }
void* operator new[](size_t bytes) { return allocated(bytes, 0); }
void* operator new(size_t bytes, std::align_val_t alignment) {
  return allocated(bytes, static_cast<size_t>(alignment));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }

extern "C" {

void* aligned_alloc(size_t alignment, size_t bytes) noexcept {
  static const auto actual = next<void* (*)(size_t, size_t)>("aligned_alloc");
  return fails() ? nullptr : actual(alignment, bytes);
}

int setenv(const char* name, const char* value, int overwrite) noexcept {
  static const auto actual = next<int (*)(const char*, const char*, int)>("setenv");
  if (std::strcmp(name, "ZC_FAIL_ALLOCATION")) return actual(name, value, overwrite);
  is_on = false;
  void* frames[4];
  backtrace(frames, 4);  // takes memory of its own the first time
  dl_iterate_phdr(find_spans, nullptr);
  n_allocations = 0;
  first_failure = std::atoll(value);
  all_after = std::strchr(value, '+') != nullptr;
  is_on = true;
  return 0;
}

char* getenv(const char* name) noexcept {
  static const auto actual = next<char* (*)(const char*)>("getenv");
  if (std::strcmp(name, "ZC_ALLOCATIONS")) return actual(name);
  static char text[24];
  std::snprintf(text, sizeof(text), "%lld", static_cast<long long>(n_allocations.load()));
  return text;
}
}
