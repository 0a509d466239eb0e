#include "csrc/cuda/launchers.h"

namespace zc::cuda {

namespace {

constexpr int kThreads = 128;

// out[place of its line] = value, for n values of every line; a line is a channel, or a row. A
// thread owns one value; bound by memory, whose sectors it uses badly. A place that a line does not
// have is a fault and is skipped.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    restore_outliers_kernel(FaultSink faults, const f16* values, const uint8_t* places, T* out,
                            int64_t n_values, int64_t n, int64_t rows, int64_t channels,
                            bool channelwise) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= n_values) return;
  const int64_t line = i / n;
  const int64_t place = int64_t{places[2 * i]} + 256 * places[2 * i + 1];
  const int64_t length = channelwise ? rows : channels;
  if (!check_data(faults, place < length, FaultReason::kOutlierPlace, place, length - 1)) return;
  const int64_t element = channelwise ? place * channels + line : line * channels + place;
  out[element] = from_float<T>(to_float(values[i]));
}

}  // namespace

void restore_outliers(Context& context, const RestoreOutliersArgs& a) {
  const int64_t n_values = a.values.length();
  dispatch_float(a.out.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    launch(context, &restore_outliers_kernel<T>, blocks_for(n_values, kThreads), kThreads, 0,
           context.faults(), a.values.as<f16>(), a.places.as<uint8_t>(), a.out.as<T>(), n_values,
           a.values.size(1), a.out.size(0), a.out.size(1), a.channelwise);
  });
}

}  // namespace zc::cuda
