#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace zc {

// Bytes of tensors alive on one device, for Device.memory. Reserved address space counts when it is
// committed.
struct MemoryAccount {
  std::atomic<int64_t> current{0};
  std::atomic<int64_t> peak{0};

  void add(int64_t bytes) {
    const int64_t now = current.fetch_add(bytes) + bytes;
    int64_t seen = peak.load();
    while (now > seen && !peak.compare_exchange_weak(seen, now)) {
    }
  }
};

// One block of device memory; freed when the last tensor, view or queued command lets go of it.
class Storage {
 public:
  // Uninitialised, 64-byte aligned. Throws kOutOfMemory.
  static std::shared_ptr<Storage> allocate(std::shared_ptr<MemoryAccount> account, int64_t bytes);

  // Address space without memory behind it: a page costs something once it is touched, and
  // discard() gives pages back.
  static std::shared_ptr<Storage> reserve(std::shared_ptr<MemoryAccount> account, int64_t bytes);

  // Memory owned by something else (a mapped file), kept alive by `owner`.
  static std::shared_ptr<Storage> borrow(std::shared_ptr<const void> owner, void* data,
                                         int64_t bytes);

  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  bool reserved() const { return kind_ == Kind::kReserved; }
  bool read_only() const { return kind_ == Kind::kBorrowed; }

  // Returns [offset, offset + bytes) of a reservation to the system; it reads as zeros when touched
  // again.
  void discard(int64_t offset, int64_t bytes);

 private:
  enum class Kind { kAllocated, kReserved, kBorrowed };
  Storage(Kind kind, void* data, int64_t bytes) : kind_(kind), data_(data), bytes_(bytes) {}

  Kind kind_;
  void* data_;
  int64_t bytes_;
  std::shared_ptr<MemoryAccount> account_;
  std::shared_ptr<const void> owner_;
};

// Physical memory of the machine, or of the container when it is limited further.
int64_t physical_memory_bytes();

}  // namespace zc
