#include "csrc/emu/shared_memory.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

#include "csrc/core/error.h"
#include "csrc/emu/block.h"
#include "csrc/emu/scheduler.h"

namespace zc::emu {

namespace {

constexpr size_t kBlockLimit = 227 * 1024;    // of an H100; less on others
constexpr size_t kVariableLimit = 48 * 1024;  // arrays of the kernel's own
constexpr size_t kAlignment = 1024;           // what 128-byte swizzling asks for
constexpr size_t kMargin = 32;
constexpr unsigned char kUnwritten = 0xff;

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

}  // namespace

SharedMemory::~SharedMemory() { std::free(memory_); }

void SharedMemory::begin(size_t dynamic_bytes) {
  ZC_CHECK(dynamic_bytes <= kBlockLimit, ErrorCode::kInternal,
           "a launch asks for %zu bytes of dynamic shared memory, expected at most %zu",
           dynamic_bytes, kBlockLimit);
  const size_t capacity = round_up(dynamic_bytes + kVariableLimit + 64 * kMargin, kAlignment);
  // Under ThreadSanitizer blocks are not ordered, and memory that two of them use would be a race:
  // each gets its own.
  if (tsan::kOn || capacity > capacity_) {
    std::free(memory_);
    memory_ = static_cast<unsigned char*>(std::aligned_alloc(kAlignment, capacity));
    capacity_ = memory_ ? capacity : 0;
    if (!memory_) throw std::bad_alloc();
  }
  variables_.clear();
  dynamic_bytes_ = dynamic_bytes;
  used_bytes_ = 0;
  asan::poison(memory_, capacity_);
  claim(0, dynamic_bytes);
}

// Gives bytes to the block, and a margin behind them.
void SharedMemory::claim(size_t offset, size_t bytes) {
  const size_t end = round_up(offset + bytes, 8) + kMargin;
  asan::unpoison(memory_ + used_bytes_, end - used_bytes_);
  std::memset(memory_ + used_bytes_, kUnwritten, end - used_bytes_);
  asan::poison(memory_ + used_bytes_, end - used_bytes_);
  asan::unpoison(memory_ + offset, bytes);
  used_bytes_ = end;
}

void* SharedMemory::variable(unsigned id, size_t bytes, size_t alignment) {
  for (const Variable& v : variables_)
    if (v.id == id) return memory_ + v.offset;
  const size_t offset = round_up(used_bytes_, alignment < 16 ? 16 : alignment);
  size_t all = bytes;
  for (const Variable& v : variables_) all += v.bytes;
  if (all > kVariableLimit || offset + round_up(bytes, 8) + kMargin > capacity_)
    fail("the kernel's own shared arrays need %zu bytes, expected at most %zu", all,
         kVariableLimit);
  if (all + dynamic_bytes_ > kBlockLimit)
    fail("the block needs %zu bytes of shared memory, expected at most %zu", all + dynamic_bytes_,
         kBlockLimit);
  variables_.push_back({id, offset, bytes});
  claim(offset, bytes);
  return memory_ + offset;
}

bool SharedMemory::holds(size_t offset, size_t bytes) const {
  if (offset + bytes <= dynamic_bytes_) return true;
  for (const Variable& v : variables_)
    if (offset >= v.offset && offset + bytes <= v.offset + v.bytes) return true;
  return false;
}

void SharedMemory::check_margins() const {
  // AddressSanitizer has found these where they happened.
  if (kSanitized) return;
  size_t end = dynamic_bytes_;
  const auto check = [&](size_t next) {
    for (size_t i = end; i < next; ++i)
      if (memory_[i] != kUnwritten)
        fail("the block wrote past the end of shared memory: byte %zu, %zu behind %s", i, i - end,
             end == dynamic_bytes_ ? "the dynamic bytes" : "an array");
  };
  for (const Variable& v : variables_) {
    check(v.offset);
    end = v.offset + v.bytes;
  }
  check(used_bytes_);
}

unsigned char* shared_at(uint32_t address, uint32_t bytes, uint32_t alignment, const char* what,
                         Site site) {
  const SharedMemory& shared = current->block->shared;
  const size_t offset = size_t{address} - kSharedBase;  // huge when it is below the base
  if (!shared.holds(offset, bytes)) [[unlikely]]
    fail("%s:%d: %s: %u bytes at shared address %lld are outside of the %zu dynamic bytes",
         site.file, site.line, what, bytes, static_cast<long long>(address) - kSharedBase,
         shared.dynamic_bytes());
  if (address % alignment != 0) [[unlikely]]
    fail("%s:%d: %s: shared address %lld is not a multiple of %u", site.file, site.line, what,
         static_cast<long long>(address) - kSharedBase, alignment);
  return shared.base() + offset;
}

unsigned next_variable_id() {
  static std::atomic<unsigned> next{0};
  return next++;
}

void* shared_variable(unsigned id, size_t bytes, size_t alignment) {
  const tsan::IgnoreAccesses ignore;
  return current->block->shared.variable(id, bytes, alignment);
}

}  // namespace zc::emu

namespace zc::simt {

uint32_t smem_u32(const void* p, emu::Site site) {
  const emu::SharedMemory& shared = emu::current->block->shared;
  const size_t offset = static_cast<size_t>(static_cast<const unsigned char*>(p) - shared.base());
  // The address one past the end may be formed.
  if (offset != shared.dynamic_bytes() && !shared.holds(offset, 0))
    emu::fail("%s:%d: smem_u32: not a pointer into the block's shared memory", site.file,
              site.line);
  return static_cast<uint32_t>(offset) + emu::kSharedBase;
}

}  // namespace zc::simt
