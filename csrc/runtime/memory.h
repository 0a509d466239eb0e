#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace zc {

// Bytes of tensors alive on one device, for Device.memory. Reservations do not count: who hands
// their pages out knows better what is used.
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

// What a device is still at.
class Pending {
 public:
  virtual ~Pending() = default;
  // On any thread, once. Throws the first thing that went wrong on the device since what was
  // pending before this.
  virtual void wait() = 0;
};

// The memory of a device. Tensors are given and taken on any thread; the bytes in them are touched
// on the stream's thread alone, in stream order.
class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;

  // Uninitialised, aligned for every op. Throws kOutOfMemory.
  virtual void* allocate(int64_t bytes) = 0;
  // Reads as zeros until it is written. Throws kOutOfMemory.
  virtual void* reserve(int64_t bytes) = 0;
  // Takes back what allocate or reserve gave for so many bytes, after everything that was enqueued.
  virtual void release(void* data, int64_t bytes, bool reserved) = 0;
  // How much there is, and how much of it could still be allocated.
  virtual int64_t total_bytes() const = 0;
  virtual int64_t free_bytes() const = 0;

  // Part of a reservation reads as zeros again, and costs nothing where the device can do that.
  virtual void discard(void* data, int64_t bytes) = 0;
  // Copies from the host's memory, which may change once this returns. Empty copies may have no
  // address.
  virtual void write(void* to, const void* from, int64_t bytes) = 0;
  // Begins a copy to the host's memory; it is there, and everything before it was done, once what
  // is returned was waited for. Null when that is so already.
  virtual std::unique_ptr<Pending> read(void* to, const void* from, int64_t bytes) = 0;
  // Whether the device can use the host's memory as it is.
  virtual bool is_host() const = 0;

  MemoryAccount& account() { return account_; }

 protected:
  MemoryAccount account_;
};

// Memory of the CPU.
class HostMemory final : public DeviceMemory {
 public:
  void* allocate(int64_t bytes) override;
  // Address space without memory behind it: a page costs something once it is touched.
  void* reserve(int64_t bytes) override;
  void release(void* data, int64_t bytes, bool reserved) override;
  int64_t total_bytes() const override;
  int64_t free_bytes() const override { return total_bytes() - account_.current.load(); }
  void discard(void* data, int64_t bytes) override;
  void write(void* to, const void* from, int64_t bytes) override;
  std::unique_ptr<Pending> read(void* to, const void* from, int64_t bytes) override;
  bool is_host() const override { return true; }
};

// One block of device memory; freed when the last tensor, view or queued command lets go of it.
class Storage {
 public:
  static std::shared_ptr<Storage> allocate(std::shared_ptr<DeviceMemory> memory, int64_t bytes);
  static std::shared_ptr<Storage> reserve(std::shared_ptr<DeviceMemory> memory, int64_t bytes);
  // Host memory owned by something else (a mapped file), kept alive by `owner`; read-only.
  static std::shared_ptr<Storage> borrow(std::shared_ptr<const void> owner, void* data,
                                         int64_t bytes);

  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  bool reserved() const { return kind_ == Kind::kReserved; }
  bool read_only() const { return read_only_; }
  void make_read_only() { read_only_ = true; }

  // [offset, offset + bytes) of a reservation reads as zeros again.
  void discard(int64_t offset, int64_t bytes) {
    memory_->discard(static_cast<char*>(data_) + offset, bytes);
  }

 private:
  enum class Kind { kAllocated, kReserved, kBorrowed };
  Storage(Kind kind, int64_t bytes) : kind_(kind), bytes_(bytes) {}

  Kind kind_;
  void* data_ = nullptr;
  int64_t bytes_;
  bool read_only_ = false;
  std::shared_ptr<DeviceMemory> memory_;  // null: nothing is to be released
  std::shared_ptr<const void> owner_;
};

}  // namespace zc
