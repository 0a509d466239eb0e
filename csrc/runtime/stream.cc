#include "csrc/runtime/stream.h"

#include <new>
#include <utility>

namespace zc {

namespace {

// What body throws.
template <typename Body>
std::optional<Error> caught(const Body& body) {
  try {
    body();
    return std::nullopt;
  } catch (const Error& e) {
    return e;
  } catch (const std::bad_alloc&) {
    return Error(ErrorCode::kOutOfMemory, "out of memory while running a command");
  } catch (const std::exception& e) {
    return Error(ErrorCode::kInternal, e.what());
  }
}

}  // namespace

Stream::Stream(std::shared_ptr<DeviceMemory> memory) : memory_(std::move(memory)) {
  if (!memory_->is_host()) waiter_ = std::thread([this] { wait_for_device(); });
  try {
    thread_ = std::thread([this] { work(); });
  } catch (...) {
    stop();  // a thread that nobody joins would end the process
    throw;
  }
}

Stream::~Stream() { stop(); }

void Stream::push(Entry entry) {
  {
    std::lock_guard lock(mutex_);
    ZC_CHECK(!stop_, ErrorCode::kHandle, "device: it was disposed");
    queue_.push_back(std::move(entry));
  }
  wake_.notify_one();
}

void Stream::enqueue(std::function<void()> command) { push({std::move(command), {}, nullptr}); }

void Stream::enqueue_marker(Read read, Reached reached) {
  push({nullptr, std::move(read), std::move(reached)});
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
  // The waiter goes on until then: who marks a place may wait for an earlier one.
  {
    std::lock_guard lock(mutex_);
    is_last_ = true;
  }
  wake_waiter_.notify_one();
  if (waiter_.joinable()) waiter_.join();
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
    run(entry);
  }
}

void Stream::run(const Entry& entry) {
  if (entry.command) {
    if (!error_) error_ = caught(entry.command);
    return;
  }
  std::optional<Error> error = std::exchange(error_, std::nullopt);
  std::unique_ptr<Pending> pending;
  const int64_t bytes = error ? 0 : entry.read.bytes;
  const std::optional<Error> fault =
      caught([&] { pending = memory_->read(entry.read.to, entry.read.from, bytes); });
  if (!error) error = fault;
  if (!pending) {
    entry.reached(error);
    return;
  }
  {
    std::lock_guard lock(mutex_);
    waiting_.push_back({std::move(pending), std::move(error), entry.reached});
  }
  wake_waiter_.notify_one();
}

void Stream::wait_for_device() {
  for (;;) {
    Waiting next;
    {
      std::unique_lock lock(mutex_);
      wake_waiter_.wait(lock, [&] { return is_last_ || !waiting_.empty(); });
      if (waiting_.empty()) return;
      next = std::move(waiting_.front());
      waiting_.pop_front();
    }
    // What the device found wrong was started before the command that could not be.
    const std::optional<Error> found = caught([&] { next.pending->wait(); });
    next.reached(found ? found : next.error);
  }
}

}  // namespace zc
