#include "test/emu/ops/op_run.h"

#include <cmath>
#include <cstdlib>
#include <cstring>

#include "csrc/core/error.h"
#include "csrc/core/thread_pool.h"
#include "csrc/cpu/dispatch.h"
#include "csrc/emu/stats.h"
#include "csrc/math/float16.h"
#include "csrc/ops/plugin.h"
#include "test/emu/harness.h"

extern "C" const zc::Plugin* zipcache_plugin();

namespace zc::test {

namespace {

constexpr uint8_t kUnwritten = 0x5a;
constexpr size_t kBaseAlignment = 256;

const Plugin& plugin() { return *zipcache_plugin(); }

// The pool without a second thread: ThreadSanitizer has CUDA's threads to watch.
ThreadPool& caller_alone() {
  static ThreadPool pool(1);
  return pool;
}

void throw_status(const OpStatus& status) {
  if (status.code != 0)
    throw Error(static_cast<ErrorCode>(status.code - 1), std::string(status.message));
}

double value_at(const TensorView& t, const std::vector<uint8_t>& values, int64_t i) {
  const uint8_t* p = values.data() + static_cast<size_t>(i) * dtype_size(t.dtype);
  const auto read = [&](auto x) {
    std::memcpy(&x, p, sizeof(x));
    return x;
  };
  switch (t.dtype) {
    case DType::kF32:
      return read(float{});
    case DType::kF16:
      return to_float(read(f16{}));
    case DType::kBF16:
      return to_float(read(bf16{}));
    case DType::kI32:
      return read(int32_t{});
    case DType::kU8:
      return *p;
    case DType::kI8:
      return read(int8_t{});
  }
  return NAN;
}

std::string index_text(const TensorView& t, int64_t flat) {
  std::string text;
  for (int axis = t.rank - 1; axis >= 0; --axis) {
    text = std::to_string(flat % t.size(axis)) + (text.empty() ? "" : ", ") + text;
    flat /= t.size(axis);
  }
  return "[" + text + "]";
}

// "ids" of "ids: token 7, expected 0 to 5".
std::string argument_of(const OpStatus& status) {
  const std::string message = status.message;
  return message.substr(0, message.find(':'));
}

}  // namespace

Tolerance one_rounding(DType dtype, double f32) {
  switch (dtype) {
    case DType::kF16:
      return {0x1p-10 + f32, 0x1p-14};  // below lie the subnormal ones
    case DType::kBF16:
      return {0x1p-7 + f32, 1e-30};
    default:
      return {f32, 1e-30};
  }
}

OpRun::OpRun(On on, int ordinal, uint64_t seed) : on_(on), random_(seed) {
  if (on == On::kCpu) return;
  emu::take_stats();
  device_ = plugin().open(ordinal, &status_);
  throw_status(status_);
}

OpRun::~OpRun() {
  for (void* p : memory_) {
    if (on_ == On::kEmulator)
      plugin().release(device_, p);
    else
      std::free(p);
  }
  if (device_) plugin().close(device_);
}

float OpRun::normal() {
  // Box and Muller's, of two numbers that are never 0.
  const double u = (random_.next() % 1000003 + 1) / 1000004.0;
  const double v = (random_.next() % 1000003 + 1) / 1000004.0;
  return static_cast<float>(std::sqrt(-2 * std::log(u)) * std::cos(6.283185307179586 * v));
}

TensorView OpRun::allocate(DType dtype, const Shape& shape) {
  return allocate(dtype, shape, is_aligned_ ? 16 : dtype_size(dtype));
}

TensorView OpRun::allocate(DType dtype, const Shape& shape, size_t before) {
  TensorView t;
  t.dtype = dtype;
  t.rank = static_cast<int>(shape.size());
  t.shape.fill(1);
  for (size_t axis = 0; axis < shape.size(); ++axis) t.shape[axis] = shape[axis];
  const size_t bytes = static_cast<size_t>(t.size_bytes());
  void* memory = nullptr;
  if (on_ == On::kEmulator) {
    memory = plugin().allocate(device_, static_cast<int64_t>(before + bytes), &status_);
    throw_status(status_);
  } else if (posix_memalign(&memory, kBaseAlignment, before + bytes) != 0) {
    throw Error(ErrorCode::kOutOfMemory, "no memory for a tensor");
  }
  memory_.push_back(memory);
  t.data = static_cast<uint8_t*>(memory) + before;
  return t;
}

void OpRun::fill(const TensorView& tensor, const std::function<void(uint8_t*)>& write) {
  const size_t bytes = static_cast<size_t>(tensor.size_bytes());
  if (bytes == 0) return;
  std::vector<uint8_t> values(bytes);
  write(values.data());
  if (on_ == On::kEmulator) {
    plugin().write(device_, tensor.data, values.data(), tensor.size_bytes(), &status_);
    throw_status(status_);
  } else {
    std::memcpy(tensor.data, values.data(), bytes);
  }
}

TensorView OpRun::floats(DType dtype, const Shape& shape, const std::function<float(int64_t)>& at) {
  const TensorView t = allocate(dtype, shape);
  fill(t, [&](uint8_t* to) {
    for (int64_t i = 0; i < t.length(); ++i) {
      const float x = at(i);
      const f16 half = to_f16(x);
      const bf16 brain = to_bf16(x);
      const void* bits = dtype == DType::kF16    ? static_cast<const void*>(&half)
                         : dtype == DType::kBF16 ? static_cast<const void*>(&brain)
                                                 : static_cast<const void*>(&x);
      std::memcpy(to + static_cast<size_t>(i) * dtype_size(dtype), bits, dtype_size(dtype));
    }
  });
  return t;
}

TensorView OpRun::normals(DType dtype, const Shape& shape, float scale) {
  return floats(dtype, shape, [&](int64_t) { return scale * normal(); });
}

TensorView OpRun::ints(const std::vector<int32_t>& values, Shape shape) {
  if (shape.empty()) shape = {static_cast<int64_t>(values.size())};
  const TensorView t = allocate(DType::kI32, shape);
  ZC_CHECK(t.length() == static_cast<int64_t>(values.size()), ErrorCode::kInternal,
           "%zu numbers for %lld elements", values.size(), static_cast<long long>(t.length()));
  fill(t, [&](uint8_t* to) { std::memcpy(to, values.data(), values.size() * 4); });
  return t;
}

TensorView OpRun::bytes(const Shape& shape, const std::function<uint8_t(int64_t)>& at) {
  const TensorView t = allocate(DType::kU8, shape);
  fill(t, [&](uint8_t* to) {
    for (int64_t i = 0; i < t.length(); ++i) to[i] = at(i);
  });
  return t;
}

TensorView OpRun::pool(int64_t bytes) {
  const TensorView t = allocate(DType::kU8, {bytes}, 0);
  fill(t, [&](uint8_t* to) { std::memset(to, 0xff, static_cast<size_t>(bytes)); });
  return t;
}

TensorView OpRun::scratch(DType dtype, const Shape& shape) {
  const TensorView t = allocate(dtype, shape);
  fill(t, [&](uint8_t* to) { std::memset(to, kUnwritten, static_cast<size_t>(t.size_bytes())); });
  return t;
}

TensorView OpRun::result(const char* name, DType dtype, const Shape& shape, Tolerance allowed) {
  const TensorView t = scratch(dtype, shape);
  compare(name, t, allowed);
  return t;
}

void OpRun::compare(const char* name, const TensorView& tensor, Tolerance allowed) {
  results_.push_back({name, tensor, allowed, {}});
}

void OpRun::call(const Call& function) {
  if (status_.code != 0) return;
  if (on_ == On::kCpu)
    function(cpu::kBaselineBackend, {&caller_alone()}, &status_);
  else
    function(*plugin().backend, {nullptr, device_}, &status_);
}

void OpRun::finish() {
  if (on_ == On::kEmulator && status_.code == 0) {
    DeviceMark* mark = plugin().mark(device_, nullptr, 0, &status_);
    if (mark) plugin().wait(device_, mark, nullptr, &status_);
    const uint64_t launches = emu::take_stats().launches - 1;  // but the mark's own
    if (expected_launches_ && launches != *expected_launches_)
      fail_test("launched %llu kernels, expected %llu", static_cast<unsigned long long>(launches),
                static_cast<unsigned long long>(*expected_launches_));
  }
  if (!expects_failure_) throw_status(status_);
  if (expects_failure_ && status_.code == 0)
    throw Error(ErrorCode::kInternal, "no op failed, which was expected");
  for (Result& r : results_) {
    r.values.resize(static_cast<size_t>(r.tensor.size_bytes()));
    if (r.values.empty()) continue;
    if (on_ == On::kCpu) {
      std::memcpy(r.values.data(), r.tensor.data, r.values.size());
      continue;
    }
    OpStatus reading;
    plugin().read(device_, r.values.data(), r.tensor.data, r.tensor.size_bytes(), &reading);
    throw_status(reading);
  }
}

void OpRun::expect_results_of(const OpRun& cpu) const {
  if (expects_failure_) {
    if (status_.code != cpu.status_.code || argument_of(status_) != argument_of(cpu.status_))
      fail_test("failed with '%s', on the CPU with '%s'", status_.message, cpu.status_.message);
    return;
  }
  for (size_t i = 0; i < results_.size(); ++i) {
    const Result& own = results_[i];
    const Result& expected = cpu.results_[i];
    const TensorView& t = own.tensor;
    const int64_t length = t.length();
    const int64_t row_length = t.rank > 0 && length > 0 ? t.size(t.rank - 1) : 1;
    double worst = -1;
    int64_t worst_at = 0;
    for (int64_t row = 0; row < length; row += row_length) {
      double size = own.allowed.floor;
      for (int64_t at = row; at < row + row_length; ++at) {
        const double x = std::fabs(value_at(t, expected.values, at));
        if (std::isfinite(x)) size = std::max(size, x);
      }
      for (int64_t at = row; at < row + row_length; ++at) {
        const double a = value_at(t, own.values, at);
        const double b = value_at(t, expected.values, at);
        if (a == b || (std::isnan(a) && std::isnan(b))) continue;
        double error = std::fabs(a - b) / size;
        if (std::isnan(error)) error = INFINITY;
        if (own.allowed.relative == 0) error = INFINITY;
        if (error > worst) {
          worst = error;
          worst_at = at;
        }
      }
    }
    if (worst > own.allowed.relative)
      fail_test("%s %s %s: %g of its row off, allowed %g; at %s it is %.9g, on the CPU %.9g",
                own.name.c_str(), dtype_name(t.dtype), shape_text(t).c_str(), worst,
                own.allowed.relative, index_text(t, worst_at).c_str(),
                value_at(t, own.values, worst_at), value_at(t, expected.values, worst_at));
  }
}

bool add_op_test(const std::string& name, std::function<void(OpRun&)> body,
                 std::vector<int> ordinals) {
  for (const int ordinal : ordinals) {
    const std::string suffix = ordinal == 0 ? "" : format(" on device %d", ordinal);
    add_test(name + suffix, [=] {
      const uint64_t seed = std::hash<std::string>{}(name);
      OpRun cpu(OpRun::On::kCpu, 0, seed);
      body(cpu);
      cpu.finish();
      OpRun emulator(OpRun::On::kEmulator, ordinal, seed);
      body(emulator);
      emulator.finish();
      emulator.expect_results_of(cpu);
    });
  }
  return true;
}

}  // namespace zc::test
