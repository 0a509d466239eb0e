#pragma once

#include <condition_variable>
#include <functional>
#include <list>
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
  // Called once, and must not throw: what was promised is still to be answered without memory.
  using Reached = std::function<void(std::optional<Error>)>;

  explicit Stream(std::shared_ptr<DeviceMemory> memory);
  ~Stream();  // stops without running what is still queued
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  // Appends work. After a command has thrown, later ones are skipped until a marker reports the
  // error. What a device finds wrong later, in its data, stops none of those before the marker.
  void enqueue(std::function<void()> command);

  // Appends work, if `command` is any, and a marker behind it: both or, where this throws, neither.
  // `reached` runs on a thread of the stream's when all earlier commands are done and the bytes are
  // there, with the error of the first of them that failed since the last marker.
  void enqueue_marker(Read read, Reached reached, std::function<void()> command = nullptr);

  // Drops what is queued, waits for what runs and ends the threads. Idempotent.
  void stop();

 private:
  struct Entry {
    std::function<void()> command;  // empty: a marker alone
    Read read;
    Reached reached;  // empty: a command alone
    // Of a marker that the device has not come to yet.
    std::unique_ptr<Pending> pending;
    std::optional<Error> error;  // thrown before the marker, by the host
  };
  // Entries go from one list to the next as they are: the stream's threads, on which nobody could
  // be told, take no memory for it.
  using Entries = std::list<Entry>;
  void push(Entry entry);
  void work();
  void run(Entries one);
  void wait_for_device();

  std::shared_ptr<DeviceMemory> memory_;
  std::mutex mutex_;
  std::condition_variable wake_;
  Entries queue_;
  bool stop_ = false;
  std::optional<Error> error_;  // touched by the stream's thread only

  std::condition_variable wake_waiter_;
  Entries waiting_;
  bool is_last_ = false;  // no marker comes any more

  std::thread waiter_;  // of a device that is not the host
  std::thread thread_;
};

}  // namespace zc
