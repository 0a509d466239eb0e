#include "csrc/runtime/stream.h"

#include <new>
#include <utility>

namespace zc {

Stream::Stream(std::function<void()> synchronize)
    : synchronize_(std::move(synchronize)), thread_([this] { work(); }) {}

Stream::~Stream() { stop(); }

void Stream::push(Entry entry) {
  {
    std::lock_guard lock(mutex_);
    ZC_CHECK(!stop_, ErrorCode::kHandle, "device: it was disposed");
    queue_.push_back(std::move(entry));
  }
  wake_.notify_one();
}

void Stream::enqueue(std::function<void()> command) { push({std::move(command), nullptr}); }

void Stream::enqueue_marker(std::function<void(const std::optional<Error>&)> reached) {
  push({nullptr, std::move(reached)});
}

void Stream::stop() {
  std::deque<Entry> dropped;
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
    dropped.swap(queue_);
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void Stream::work() {
  for (;;) {
    Entry entry;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return stop_ || !queue_.empty(); });
      if (stop_) return;
      entry = std::move(queue_.front());
      queue_.pop_front();
    }
    if (entry.marker) {
      // What a device found wrong was started before the command that could not be.
      std::optional<Error> thrown = std::exchange(error_, std::nullopt);
      if (synchronize_) run(synchronize_);
      entry.marker(error_ ? error_ : thrown);
      error_.reset();
    } else if (!error_) {
      run(entry.command);
    }
  }
}

void Stream::run(const std::function<void()>& command) {
  try {
    command();
  } catch (const Error& e) {
    error_ = e;
  } catch (const std::bad_alloc&) {
    error_ = Error(ErrorCode::kOutOfMemory, "out of memory while running a command");
  } catch (const std::exception& e) {
    error_ = Error(ErrorCode::kInternal, e.what());
  }
}

}  // namespace zc
