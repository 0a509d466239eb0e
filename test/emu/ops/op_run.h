#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "csrc/core/tensor_view.h"
#include "csrc/emu/random.h"
#include "csrc/ops/backend.h"
#include "csrc/ops/op_check.h"

// Ops on the emulated CUDA backend against the CPU backend, which test/contract holds to the
// reference. A test's body makes tensors and calls ops; it runs once for each backend, with the
// same numbers, and what it declared as results is compared.
namespace zc::test {

using Shape = std::vector<int64_t>;

// How far a result may be from the CPU's: |difference| <= relative * the largest of its row of the
// last axis, and of `floor`. 0: the same bits (NaN of any).
struct Tolerance {
  double relative = 0;
  double floor = 0;
};
inline constexpr Tolerance kExact{};
// Both backends round a value of float32 accuracy to the dtype; one rounding may fall the other
// way.
Tolerance one_rounding(DType dtype, double f32 = 2e-6);

inline constexpr DType kFloatDTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

// One run of a test's body on one backend.
class OpRun {
 public:
  enum class On { kCpu, kEmulator };
  OpRun(On on, int ordinal, uint64_t seed);
  ~OpRun();
  OpRun(const OpRun&) = delete;
  OpRun& operator=(const OpRun&) = delete;

  // A source of numbers: equal in both runs.
  emu::Random& random() { return random_; }
  float normal();

  // Inputs. Each tensor ends where its memory ends, and begins at a multiple of its element's size
  // alone; of 16 bytes with aligned().
  TensorView normals(DType dtype, const Shape& shape, float scale = 1.0f);
  TensorView floats(DType dtype, const Shape& shape, const std::function<float(int64_t)>& at);
  TensorView ints(const std::vector<int32_t>& values, Shape shape = {});
  TensorView bytes(const Shape& shape, const std::function<uint8_t(int64_t)>& at);
  // A pool of pages, 256-byte aligned, full of NaN.
  TensorView pool(int64_t bytes);
  // What an op writes, 0x5a before. Compared under its name when the run has ended.
  TensorView result(const char* name, DType dtype, const Shape& shape, Tolerance allowed = kExact);
  // What an op writes and only other ops read.
  TensorView scratch(DType dtype, const Shape& shape);
  // Declares an input that an op changes as a result.
  void compare(const char* name, const TensorView& tensor, Tolerance allowed = kExact);
  // Tensors from here on begin at multiples of 16 bytes.
  void aligned() { is_aligned_ = true; }

  // Checks the arguments and runs the op. After one that failed, the next do nothing.
  template <typename Args>
  void op(void (*Backend::*function)(const OpContext*, const Args*, OpStatus*), const Args& args) {
    call([&](const Backend& backend, const OpContext& context, OpStatus* status) {
      check(args);
      (backend.*function)(&context, &args, status);
    });
  }
  // The ops are expected to launch so many kernels.
  void expects_launches(uint64_t n) { expected_launches_ = n; }
  // The ops are expected to fail, on both backends with the same code and the same argument.
  void expects_failure() { expects_failure_ = true; }

  // Waits for what runs, reads the results.
  void finish();
  // Fails the test unless this run's results are those of the CPU's.
  void expect_results_of(const OpRun& cpu) const;

 private:
  struct Result {
    std::string name;
    TensorView tensor;
    Tolerance allowed;
    std::vector<uint8_t> values;
  };
  using Call = std::function<void(const Backend&, const OpContext&, OpStatus*)>;
  void call(const Call& function);
  TensorView allocate(DType dtype, const Shape& shape, size_t bytes_before);
  TensorView allocate(DType dtype, const Shape& shape);
  void fill(const TensorView& tensor, const std::function<void(uint8_t*)>& write);

  On on_;
  emu::Random random_;
  bool is_aligned_ = false;
  bool expects_failure_ = false;
  std::optional<uint64_t> expected_launches_;
  OpStatus status_;
  DeviceContext* device_ = nullptr;
  std::vector<void*> memory_;
  std::vector<Result> results_;
};

// Registers a test of an op; `ordinals`: the emulated devices that it runs on, 0 of Hopper's
// architecture, 1 of an older one with little shared memory.
bool add_op_test(const std::string& name, std::function<void(OpRun&)> body,
                 std::vector<int> ordinals = {0});

}  // namespace zc::test

// A file of tests begins with it; its body calls add_op_test.
#define ZC_OP_TESTS(name)               \
  static void name();                   \
  static const bool added_##name = [] { \
    name();                             \
    return true;                        \
  }();                                  \
  static void name()
