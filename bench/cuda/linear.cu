// Checks and times `linear` with 16-bit weights on a GPU, without Node. Results are first compared
// with a slow kernel in double precision, and those of wgmma with those of mma to the bit
// (docs/decisions.md says why); then the products of LLaMA3-8B are timed for prompts, in both
// forms, as the model calls them. One JSON line a case.
//   nvcc -std=c++20 -O3 -gencode arch=compute_90a,code=sm_90a -I. -o linear bench/cuda/linear.cu \
//     csrc/cuda/kernels/linear*.cu csrc/cuda/check_cuda.cu csrc/core/error.cc
//   ./linear [--check] [--quick]
#include <memory>

#include "bench/cuda/device.h"
#include "csrc/cuda/launchers.h"
#include "csrc/cuda/linear.h"

namespace {

using namespace zc;
using namespace zc::bench;

struct Product {
  const char* name;
  int64_t n;
  int64_t k;
  DType x;
  DType weight;
  bool accumulate;
  bool bias;
};

// The tensors of one call, out in float.
struct Linear {
  Linear(Device& device, const Product& p, int64_t m, int n_weights)
      : x(m * p.k * dtype_size(p.x)),
        bias(p.n * 4),
        before(m * p.n * 4),
        out(m * p.n * 4) {
    args.x = view(x, p.x, {m, p.k});
    args.out = view(out, DType::kF32, {m, p.n});
    args.accumulate = p.accumulate;
    fill_normal(device, args.x, 1);
    for (int i = 0; i < n_weights; ++i) {
      weights.push_back(std::make_unique<Buffer>(p.n * p.k * 2));
      fill_normal(device, view(*weights[i], p.weight, {p.n, p.k}), 2 + i);
    }
    use(0, p);
    if (p.bias) args.bias = view(bias, DType::kF32, {p.n});
    fill_normal(device, view(bias, DType::kF32, {p.n}), 100);
    fill_normal(device, view(before, DType::kF32, {m, p.n}), 101);
    device.wait();
  }
  void use(size_t weight, const Product& p) {
    args.weight = view(*weights[weight], p.weight, {p.n, p.k});
  }
  void run_once(Device& device) {
    device.copy(out.data, before.data, args.out.size_bytes());
    linear(device, args);
    device.wait();
  }
  Buffer x, bias, before, out;
  std::vector<std::unique_ptr<Buffer>> weights;
  LinearArgs args{};
};

// ---- the slow kernels ----

__device__ double element(const void* from, DType dtype, int64_t i) {
  return load_any(from, dtype, i);
}

// A thread owns one element of the rows from row0 on. Blocks: (columns / 128, rows).
__global__ void slow_linear_kernel(const void* x, DType x_dtype, const void* weight,
                                   DType weight_dtype, const float* bias, const float* before,
                                   float* out, int64_t row0, int64_t n, int64_t k) {
  const int64_t row = row0 + blockIdx.y;
  const int64_t column = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (column >= n) return;
  double sum = 0;
  for (int64_t c = 0; c < k; ++c)
    sum += element(x, x_dtype, row * k + c) * element(weight, weight_dtype, column * k + c);
  if (bias != nullptr) sum += bias[column];
  if (before != nullptr) sum += before[row * n + column];
  out[int64_t{blockIdx.y} * n + column] = static_cast<float>(sum);
}

__global__ void count_different_kernel(const uint32_t* a, const uint32_t* b, int64_t n,
                                       unsigned long long* different) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n;
       i += int64_t{gridDim.x} * blockDim.x)
    if (a[i] != b[i]) atomicAdd(different, 1ull);
}

// ---- checks ----

// Sums of thousands of products of normal numbers, by tensor cores that cut off: relative to the
// largest of a row.
constexpr double kTolerance = 5e-5;

// Runs the forms there are on one product; whether all are right. Says in `different` how many
// elements of the two have other bits.
bool check_product(Device& device, const Product& p, int64_t m, int64_t& different) {
  Linear own(device, p, m, 1);
  const int64_t length = m * p.n;
  const int64_t n_rows = std::min<int64_t>(m, 64);
  Buffer first(length * 4);
  Buffer slow(n_rows * p.n * 4);
  Buffer count(8);
  bool good = true;
  different = 0;
  const bool has_two = device.own_architecture == 90;
  for (const int architecture : {device.own_architecture, 80}) {
    if (architecture == 80 && !has_two) continue;
    device.architecture = architecture;
    own.run_once(device);
    double error = 0;
    for (const int64_t row0 : {int64_t{0}, m - n_rows}) {
      launch(device, &slow_linear_kernel, dim3(blocks_for(p.n, 128), static_cast<unsigned>(n_rows)),
             128, 0, own.x.data, p.x, own.args.weight.data, p.weight,
             p.bias ? static_cast<float*>(own.bias.data) : nullptr,
             p.accumulate ? static_cast<float*>(own.before.data) : nullptr,
             static_cast<float*>(slow.data), row0, p.n, p.k);
      device.wait();
      const std::vector<float> expected = read<float>(slow, n_rows * p.n);
      std::vector<float> rows(expected.size());
      check(cudaMemcpy(rows.data(), static_cast<float*>(own.out.data) + row0 * p.n,
                       rows.size() * sizeof(float), cudaMemcpyDeviceToHost),
            "copy");
      error = std::max(error, worst(rows, expected, p.n, 1.0));
    }
    good &= error <= kTolerance;
    std::printf(
        "{\"check\": \"linear\", \"form\": \"%s\", \"x\": \"%s\", \"weight\": \"%s\", \"rows\": "
        "%lld, \"n\": %lld, \"k\": %lld, \"error\": %.2e, \"good\": %s}\n",
        form_of(device), dtype_name(p.x), dtype_name(p.weight), static_cast<long long>(m),
        static_cast<long long>(p.n), static_cast<long long>(p.k), error,
        error <= kTolerance ? "true" : "false");
    if (architecture != 80) device.copy(first.data, own.out.data, length * 4);
  }
  if (has_two) {
    device.fill(count.data, 0, 8);
    launch(device, &count_different_kernel, 1024, 256, 0, static_cast<uint32_t*>(first.data),
           static_cast<uint32_t*>(own.out.data), length,
           static_cast<unsigned long long*>(count.data));
    device.wait();
    check(cudaMemcpy(&different, count.data, 8, cudaMemcpyDeviceToHost), "copy");
    std::printf(
        "{\"check\": \"bits of wgmma and mma\", \"rows\": %lld, \"n\": %lld, \"k\": %lld, "
        "\"different\": %lld, \"of\": %lld}\n",
        static_cast<long long>(m), static_cast<long long>(p.n), static_cast<long long>(p.k),
        static_cast<long long>(different), static_cast<long long>(length));
  }
  device.architecture = device.own_architecture;
  return good;
}

bool check_all(Device& device) {
  bool good = true;
  int64_t different = 0;
  for (const DType weight : {DType::kBF16, DType::kF16})
    for (const DType x : {DType::kBF16, DType::kF16, DType::kF32}) {
      good &= check_product(device, {"", 36, 2112, x, weight, false, true}, 70, different);
      good &= check_product(device, {"", 521, 1096, x, weight, true, false}, 129, different);
      good &= check_product(device, {"", 1000, 4096, x, weight, true, true}, 300, different);
      good &= check_product(device, {"", 2000, 2080, x, weight, false, false}, 1100, different);
    }
  return good;
}

// ---- times ----

bool time_product(Device& device, const Product& p, int64_t m) {
  int64_t different = 0;
  if (!check_product(device, p, m, different)) return false;
  // As many weights as exceed L2 some times: in a model each layer has its own.
  const int n_weights =
      static_cast<int>(std::clamp<int64_t>((int64_t{1} << 28) / (p.n * p.k * 2), 1, 16));
  Linear own(device, p, m, n_weights);
  for (const int architecture : {device.own_architecture, 80}) {
    if (architecture == 80 && device.own_architecture != 90) continue;
    device.architecture = architecture;
    const Time t = time_of(device, 21, [&] {
      for (int i = 0; i < n_weights; ++i) {
        own.use(static_cast<size_t>(i), p);
        linear(device, own.args);
      }
    });
    std::printf(
        "{\"op\": \"linear\", \"form\": \"%s\", \"product\": \"%s\", \"x\": \"%s\", "
        "\"rows\": %lld, \"n\": %lld, \"k\": %lld, \"us\": %.1f, \"low_us\": %.1f, "
        "\"high_us\": %.1f, \"tflops\": %.1f, \"different\": %lld}\n",
        form_of(device), p.name, dtype_name(p.x), static_cast<long long>(m),
        static_cast<long long>(p.n), static_cast<long long>(p.k), t.median / n_weights,
        t.low / n_weights, t.high / n_weights, 2e-6 * m * p.n * p.k * n_weights / t.median,
        static_cast<long long>(different));
  }
  device.architecture = device.own_architecture;
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  const Mode mode(argc, argv);
  Device device;
  print_device(device);
  bool good = check_all(device);
  // LLaMA3-8B in bfloat16: attention gives float16, the residual stream is added to in float.
  const DType kBF16 = DType::kBF16;
  const Product products[] = {
      {"q", 4096, 4096, kBF16, kBF16, false, false},
      {"k or v", 1024, 4096, kBF16, kBF16, false, false},
      {"o", 4096, 4096, DType::kF16, kBF16, true, false},
      {"gate or up", 14336, 4096, kBF16, kBF16, false, false},
      {"down", 4096, 14336, kBF16, kBF16, true, false},
  };
  for (const int64_t rows : {4096, 512, 128, 1024, 2048, 8192}) {
    if (mode.check_only || (mode.quick && rows != 4096 && rows != 512)) continue;
    for (const Product& p : products) good = good && time_product(device, p, rows);
  }
  if (!good) std::printf("{\"failed\": true}\n");
  return good ? 0 : 1;
}
