#include "csrc/runtime/memory.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <utility>

#include "csrc/core/error.h"
#include "csrc/runtime/limits.h"

namespace zc {

void* HostMemory::allocate(int64_t bytes) {
  // The system promises more memory than it has and kills whoever touches it; refuse what cannot be
  // there.
  ZC_CHECK(bytes <= free_bytes(), ErrorCode::kOutOfMemory,
           "%lld bytes do not fit: the device has %lld bytes, %lld of them free",
           static_cast<long long>(bytes), static_cast<long long>(total_bytes()),
           static_cast<long long>(free_bytes()));
  const size_t rounded = (static_cast<size_t>(bytes) + 63) / 64 * 64;
  void* data = std::aligned_alloc(64, rounded ? rounded : 64);
  ZC_CHECK(data, ErrorCode::kOutOfMemory, "a tensor of %lld bytes could not be allocated",
           static_cast<long long>(bytes));
  return data;
}

int64_t HostMemory::total_bytes() const {
  static const int64_t usable = usable_memory_bytes();
  return usable;
}

void* HostMemory::reserve(int64_t bytes) {
  void* data = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ZC_CHECK(data != MAP_FAILED, ErrorCode::kOutOfMemory,
           "%lld bytes of address space could not be reserved", static_cast<long long>(bytes));
  return data;
}

void HostMemory::release(void* data, int64_t bytes, bool reserved) {
  if (reserved)
    munmap(data, static_cast<size_t>(bytes));
  else
    std::free(data);
}

void HostMemory::discard(void* data, int64_t bytes) {
  madvise(data, static_cast<size_t>(bytes), MADV_DONTNEED);
}

// An empty array may have no address, which memcpy does not take.
void HostMemory::write(void* to, const void* from, int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
}

std::unique_ptr<Pending> HostMemory::read(void* to, const void* from, int64_t bytes) {
  write(to, from, bytes);
  return nullptr;
}

// Each is there before it has memory: nothing is lost where it cannot be made.
std::shared_ptr<Storage> Storage::allocate(std::shared_ptr<DeviceMemory> memory, int64_t bytes) {
  std::shared_ptr<Storage> storage(new Storage(Kind::kAllocated, bytes));
  storage->data_ = memory->allocate(bytes);
  memory->account().add(bytes);
  storage->memory_ = std::move(memory);
  return storage;
}

std::shared_ptr<Storage> Storage::reserve(std::shared_ptr<DeviceMemory> memory, int64_t bytes) {
  std::shared_ptr<Storage> storage(new Storage(Kind::kReserved, bytes));
  storage->data_ = memory->reserve(bytes);
  storage->memory_ = std::move(memory);
  return storage;
}

std::shared_ptr<Storage> Storage::borrow(std::shared_ptr<const void> owner, void* data,
                                         int64_t bytes) {
  std::shared_ptr<Storage> storage(new Storage(Kind::kBorrowed, bytes));
  storage->data_ = data;
  storage->owner_ = std::move(owner);
  storage->make_read_only();
  return storage;
}

Storage::~Storage() {
  if (!memory_) return;  // borrowed, or nothing was to be had
  memory_->release(data_, bytes_, reserved());
  if (kind_ == Kind::kAllocated) memory_->account().current.fetch_sub(bytes_);
}

}  // namespace zc
