#include "csrc/cuda/device/vector.h"
#include "csrc/cuda/launchers.h"

namespace zc::cuda {

namespace {

constexpr int kThreads = 256;

// out = x rounded to nearest even, f16 saturated, of n elements. A thread owns kVector neighbours;
// bound by memory.
template <typename T, typename Out>
__global__ void __launch_bounds__(kThreads)
    convert_kernel(const T* x, Out* out, int64_t n, bool vectors) {
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kVector;
  if (i >= n) return;
  float values[kVector];
  load_floats(x + i, n - i, vectors, values);
  store_floats(out + i, n - i, vectors, values);
}

}  // namespace

void convert(Context& context, const ConvertArgs& a) {
  const int64_t n = a.x.length();
  const bool vectors = (address_bits(a.x.data) | address_bits(a.out.data)) % 16 == 0;
  dispatch_float(a.x.dtype, [&](auto in) {
    dispatch_float(a.out.dtype, [&](auto out) {
      using T = typename decltype(in)::type;
      using Out = typename decltype(out)::type;
      launch(context, &convert_kernel<T, Out>, blocks_for(n, kThreads * kVector), kThreads, 0,
             a.x.as<T>(), a.out.as<Out>(), n, vectors);
    });
  });
}

}  // namespace zc::cuda
