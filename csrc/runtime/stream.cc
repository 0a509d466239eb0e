#include "csrc/runtime/stream.h"

#include <utility>

namespace zc {

namespace {

// What body throws.
template <typename Body>
std::optional<Error> caught(const Body& body) {
  try {
    body();
    return std::nullopt;
  } catch (...) {
    return current_error();
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
  Entries one;
  one.push_back(std::move(entry));
  {
    std::lock_guard lock(mutex_);
    ZC_CHECK(!stop_, ErrorCode::kHandle, "device: it was disposed");
    queue_.splice(queue_.end(), one);
  }
  wake_.notify_one();
}

void Stream::enqueue(std::function<void()> command) {
  push({std::move(command), {}, nullptr, nullptr, {}});
}

void Stream::enqueue_marker(Read read, Reached reached, std::function<void()> command) {
  push({std::move(command), std::move(read), std::move(reached), nullptr, {}});
}

void Stream::stop() {
  Entries dropped;
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
    Entries one;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return stop_ || !queue_.empty(); });
      if (stop_) return;
      one.splice(one.end(), queue_, queue_.begin());
    }
    run(std::move(one));
  }
}

void Stream::run(Entries one) {
  Entry& entry = one.front();
  if (entry.command) {
    if (!error_) error_ = caught(entry.command);
    entry.command = nullptr;  // what it holds is not kept until the device is there
  }
  if (!entry.reached) return;
  entry.error = std::exchange(error_, std::nullopt);
  const int64_t bytes = entry.error ? 0 : entry.read.bytes;
  std::optional<Error> fault =
      caught([&] { entry.pending = memory_->read(entry.read.to, entry.read.from, bytes); });
  if (!entry.error) entry.error = std::move(fault);
  if (!entry.pending) {
    entry.reached(std::move(entry.error));
    return;
  }
  {
    std::lock_guard lock(mutex_);
    waiting_.splice(waiting_.end(), one);
  }
  wake_waiter_.notify_one();
}

void Stream::wait_for_device() {
  for (;;) {
    Entries one;
    {
      std::unique_lock lock(mutex_);
      wake_waiter_.wait(lock, [&] { return is_last_ || !waiting_.empty(); });
      if (waiting_.empty()) return;
      one.splice(one.end(), waiting_, waiting_.begin());
    }
    Entry& entry = one.front();
    // What the device found wrong was started before the command that could not be.
    std::optional<Error> found = caught([&] { entry.pending->wait(); });
    entry.reached(std::move(found ? found : entry.error));
  }
}

}  // namespace zc
