#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "csrc/core/error.h"
#include "csrc/runtime/memory.h"

namespace zc {

// The queue of a device: commands run one after another on a native thread of its own, so nothing
// that JavaScript calls ever waits. Storage used by a command is kept alive by what the command
// captures, so freeing is in stream order too.
//
// On a device whose commands only start work, a second thread waits for what was started, and the
// next commands start meanwhile.
class Stream {
 public:
  // What a marker gives to the host: `bytes` bytes of `storage`, from `from` to `to`. Empty:
  // nothing.
  struct Read {
    std::shared_ptr<Storage> storage;
    void* to = nullptr;
    const void* from = nullptr;
    int64_t bytes = 0;
  };
  using Reached = std::function<void(const std::optional<Error>&)>;

  explicit Stream(std::shared_ptr<DeviceMemory> memory);
  ~Stream();  // stops without running what is still queued
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  // Appends work. After a command has thrown, later ones are skipped until a marker reports the
  // error. What a device finds wrong later, in its data, stops none of those before the marker.
  void enqueue(std::function<void()> command);

  // Appends a marker: `reached` runs on a thread of the stream's when all earlier commands are done
  // and the bytes are there, with the error of the first of them that failed since the last marker.
  void enqueue_marker(Read read, Reached reached);

  // Drops what is queued, waits for what runs and ends the threads. Idempotent.
  void stop();

 private:
  struct Entry {
    std::function<void()> command;
    Read read;
    Reached reached;  // empty: a command
  };
  // A marker that the device has not come to yet.
  struct Waiting {
    std::unique_ptr<Pending> pending;
    std::optional<Error> error;  // thrown before the marker, by the host
    Reached reached;
  };
  void push(Entry entry);
  void work();
  void run(const Entry& entry);
  void wait_for_device();

  std::shared_ptr<DeviceMemory> memory_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Entry> queue_;
  bool stop_ = false;
  std::optional<Error> error_;  // touched by the stream's thread only

  std::condition_variable wake_waiter_;
  std::deque<Waiting> waiting_;
  bool is_last_ = false;  // no marker comes any more

  std::thread waiter_;  // of a device that is not the host
  std::thread thread_;
};

}  // namespace zc
