#include "csrc/math/rope.h"

#include "csrc/cuda/device/vector.h"
#include "csrc/cuda/launchers.h"

namespace zc::cuda {

namespace {

constexpr int kThreads = 128;

// Turns the pairs (x[i], x[i + turned]) of every head by the row's angles, for i < turned; what is
// behind them stays, in pairs as well. A thread owns kVector neighbouring pairs, so that out may be
// x; bound by memory. n: pieces of kVector pairs in all, `pieces` of them in a head, the first
// `turned_pieces` of which turn.
template <typename T, typename Out>
__global__ void __launch_bounds__(kThreads)
    rope_kernel(const T* x, const float* cos, const float* sin, Out* out, int64_t n, int pieces,
                int turned_pieces, int n_heads, int half, int turned, bool vectors) {
  simt::let_next_begin();
  simt::wait_for_kernels_before();
  const int64_t piece = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (piece >= n) return;
  const int64_t head = piece / pieces;  // of all rows
  const int own = static_cast<int>(piece % pieces);
  const bool turns = own < turned_pieces;
  const int c = (turns ? own : own - turned_pieces) * kVector;
  const int n_pairs = turns ? turned : half - turned;
  const int left = n_pairs - c;
  const int64_t first = head * 2 * half + (turns ? 0 : 2 * turned) + c;
  const int64_t second = first + n_pairs;
  float a[kVector];
  float b[kVector];
  load_floats(x + first, left, vectors, a);
  load_floats(x + second, left, vectors, b);
  if (turns) {
    const int64_t angles = head / n_heads * turned + c;
    float cosines[kVector];
    float sines[kVector];
    load_floats(cos + angles, left, vectors, cosines);
    load_floats(sin + angles, left, vectors, sines);
    ZC_UNROLL for (int j = 0; j < kVector; ++j) {
      const RopePair pair = rope_rotate(a[j], b[j], cosines[j], sines[j]);
      a[j] = pair.first;
      b[j] = pair.second;
    }
  }
  store_floats(out + first, left, vectors, a);
  store_floats(out + second, left, vectors, b);
}

}  // namespace

void rope(Context& context, const RopeArgs& a) {
  const int n_heads = static_cast<int>(a.x.size(1));
  const int half = static_cast<int>(a.x.size(2) / 2);
  const int turned = static_cast<int>(a.cos.size(1));
  const int turned_pieces = (turned + kVector - 1) / kVector;
  const int pieces = turned_pieces + (half - turned + kVector - 1) / kVector;
  const int64_t n = a.x.size(0) * n_heads * pieces;
  const bool vectors = in_vectors(address_bits(a.x.data) | address_bits(a.out.data) |
                                      address_bits(a.cos.data) | address_bits(a.sin.data),
                                  half) &&
                       turned % kVector == 0;
  dispatch_float(a.x.dtype, [&](auto in) {
    dispatch_float(a.out.dtype, [&](auto out) {
      using T = typename decltype(in)::type;
      using Out = typename decltype(out)::type;
      launch_early(context, &rope_kernel<T, Out>, blocks_for(n, kThreads), kThreads, 0, a.x.as<T>(),
                   a.cos.as<float>(), a.sin.as<float>(), a.out.as<Out>(), n, pieces, turned_pieces,
                   n_heads, half, turned, vectors);
    });
  });
}

}  // namespace zc::cuda
