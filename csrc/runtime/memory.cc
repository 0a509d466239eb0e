#include "csrc/runtime/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "csrc/core/error.h"

namespace zc {

int64_t physical_memory_bytes() {
  int64_t bytes = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  if (FILE* file = std::fopen("/sys/fs/cgroup/memory.max", "r")) {
    long long limit = 0;
    if (std::fscanf(file, "%lld", &limit) == 1 && limit > 0 && limit < bytes) bytes = limit;
    std::fclose(file);
  }
  return bytes;
}

std::shared_ptr<Storage> Storage::allocate(std::shared_ptr<MemoryAccount> account, int64_t bytes) {
  // The system promises more memory than it has and kills whoever touches it; refuse what cannot be
  // there.
  static const int64_t physical = physical_memory_bytes();
  ZC_CHECK(bytes <= physical - account->current.load(), ErrorCode::kOutOfMemory,
           "a tensor of %lld bytes does not fit: the device has %lld bytes, %lld in use",
           static_cast<long long>(bytes), static_cast<long long>(physical),
           static_cast<long long>(account->current.load()));
  const size_t rounded = (static_cast<size_t>(bytes) + 63) / 64 * 64;
  void* data = std::aligned_alloc(64, rounded ? rounded : 64);
  ZC_CHECK(data, ErrorCode::kOutOfMemory, "a tensor of %lld bytes could not be allocated",
           static_cast<long long>(bytes));
  std::shared_ptr<Storage> storage(new Storage(Kind::kAllocated, data, bytes));
  account->add(bytes);
  storage->account_ = std::move(account);
  return storage;
}

std::shared_ptr<Storage> Storage::reserve(std::shared_ptr<MemoryAccount> account, int64_t bytes) {
  void* data = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ZC_CHECK(data != MAP_FAILED, ErrorCode::kOutOfMemory,
           "%lld bytes of address space could not be reserved", static_cast<long long>(bytes));
  std::shared_ptr<Storage> storage(new Storage(Kind::kReserved, data, bytes));
  storage->account_ = std::move(account);
  return storage;
}

std::shared_ptr<Storage> Storage::borrow(std::shared_ptr<const void> owner, void* data,
                                         int64_t bytes) {
  std::shared_ptr<Storage> storage(new Storage(Kind::kBorrowed, data, bytes));
  storage->owner_ = std::move(owner);
  return storage;
}

Storage::~Storage() {
  if (kind_ == Kind::kAllocated) {
    std::free(data_);
    account_->current.fetch_sub(bytes_);
  } else if (kind_ == Kind::kReserved) {
    munmap(data_, static_cast<size_t>(bytes_));
  }
}

void Storage::discard(int64_t offset, int64_t bytes) {
  madvise(static_cast<char*>(data_) + offset, static_cast<size_t>(bytes), MADV_DONTNEED);
}

}  // namespace zc
