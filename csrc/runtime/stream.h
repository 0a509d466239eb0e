#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>

#include "csrc/core/error.h"

namespace zc {

// The queue of a device: commands run one after another on a native thread of its own, so nothing
// that JavaScript calls ever waits. Storage used by a command is kept alive by what the command
// captures, so freeing is in stream order too.
class Stream {
 public:
  // synchronize: waits on the stream's thread until what the commands started has ended, and throws
  // what went wrong; empty: commands have done all when they return.
  explicit Stream(std::function<void()> synchronize);
  ~Stream();  // stops without running what is still queued
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  // Appends work. After a command has thrown, later ones are skipped until a marker reports the
  // error. What only synchronize() finds stops none of those before the marker.
  void enqueue(std::function<void()> command);

  // Appends a marker: `reached` runs on the stream's thread when all earlier commands are done,
  // with the error of the first of them that failed since the last marker.
  void enqueue_marker(std::function<void(const std::optional<Error>&)> reached);

  // Drops what is queued, waits for the running command and ends the thread. Idempotent.
  void stop();

 private:
  struct Entry {
    std::function<void()> command;
    std::function<void(const std::optional<Error>&)> marker;
  };
  void push(Entry entry);
  void work();
  void run(const std::function<void()>& command);

  std::function<void()> synchronize_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Entry> queue_;
  bool stop_ = false;
  std::optional<Error> error_;  // touched by the stream's thread only
  std::thread thread_;
};

}  // namespace zc
