#include "csrc/cuda/device/vector.h"
#include "csrc/cuda/launchers.h"

namespace zc::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kAhead = 4;  // vectors a thread has in flight: 16 KB a block

ZC_DEVICE int32_t block_xor(int32_t x, int32_t* warp_words) {
  ZC_UNROLL for (int distance = 16; distance > 0; distance /= 2) x ^=
      __shfl_xor_sync(0xffffffffu, x, distance);
  if (threadIdx.x % 32 == 0) warp_words[threadIdx.x / 32] = x;
  __syncthreads();
  int32_t total = 0;
  for (int w = 0; w < kThreads / 32; ++w) total ^= warp_words[w];
  return total;
}

// out[part, slice] = XOR of the words of a slice of a part: blocks (slice, part). A slice is whole
// vectors counted from x, but at the ends of its part. Bound by memory.
__global__ void __launch_bounds__(kThreads)
    read_stream_kernel(const int32_t* x, int32_t* out, int64_t n, int64_t part_length,
                       int64_t slice_length, bool vectors) {
  ZC_SHARED(int32_t, warp_words, [kThreads / 32]);
  const int64_t part = int64_t{blockIdx.y} * part_length;
  const int64_t part_end = part + part_length < n ? part + part_length : n;
  int64_t begin = part + int64_t{blockIdx.x} * slice_length;
  int64_t end = begin + slice_length < part_end ? begin + slice_length : part_end;
  if (begin > part_end) begin = part_end;
  if (end < begin) end = begin;

  int32_t total = 0;
  int64_t middle = vectors ? (begin + 3) / 4 * 4 : end;
  if (middle > end) middle = end;
  for (int64_t i = begin + threadIdx.x; i < middle; i += kThreads) total ^= x[i];
  const int64_t last = end / 4 * 4 > middle ? end / 4 * 4 : middle;
  const int4* quads = reinterpret_cast<const int4*>(x);
  int64_t i = middle / 4 + threadIdx.x;
  for (; i + (kAhead - 1) * kThreads < last / 4; i += kAhead * kThreads) {
    int4 words[kAhead];
    ZC_UNROLL for (int a = 0; a < kAhead; ++a) words[a] = quads[i + a * kThreads];
    ZC_UNROLL for (int a = 0; a < kAhead; ++a) total ^=
        words[a].x ^ words[a].y ^ words[a].z ^ words[a].w;
  }
  if (vectors)
    for (; i < last / 4; i += kThreads) {
      const int4 words = quads[i];
      total ^= words.x ^ words.y ^ words.z ^ words.w;
    }
  for (int64_t j = last + threadIdx.x; j < end; j += kThreads) total ^= x[j];

  total = block_xor(total, warp_words);
  if (threadIdx.x == 0) out[int64_t{blockIdx.y} * gridDim.x + blockIdx.x] = total;
}

// out[part] = XOR of a part's slices. A block owns a part.
__global__ void __launch_bounds__(kThreads)
    join_slices_kernel(const int32_t* slices, int32_t* out, int n_slices) {
  ZC_SHARED(int32_t, warp_words, [kThreads / 32]);
  int32_t total = 0;
  for (int s = static_cast<int>(threadIdx.x); s < n_slices; s += kThreads)
    total ^= slices[int64_t{blockIdx.x} * n_slices + s];
  total = block_xor(total, warp_words);
  if (threadIdx.x == 0) out[blockIdx.x] = total;
}

}  // namespace

void read_stream(Context& context, const ReadStreamArgs& a) {
  const int64_t n = a.x.size(0);
  const int64_t parts = a.out.size(0);
  if (parts == 0) return;
  ZC_CHECK(parts <= 65535, ErrorCode::kUnsupported, "out: %lld parts, expected at most 65535",
           static_cast<long long>(parts));
  const int64_t part_length = (n + parts - 1) / parts;
  // Few parts are cut into slices, eight blocks a multiprocessor, of no less than a block's reach.
  constexpr int64_t kLeast = kThreads * kAhead * 4;
  const int64_t wanted = (8 * int64_t{context.n_multiprocessors} + parts - 1) / parts;
  const int64_t possible = (part_length + kLeast - 1) / kLeast;
  int64_t n_slices = wanted < possible ? wanted : possible;
  if (n_slices < 1) n_slices = 1;
  const int64_t slice_length = (part_length + n_slices * 4 - 1) / (n_slices * 4) * 4;
  const bool vectors = address_bits(a.x.data) % 16 == 0;
  int32_t* out = a.out.as<int32_t>();
  auto* slices =
      n_slices == 1
          ? out
          : static_cast<int32_t*>(context.scratch(parts * n_slices * int64_t{sizeof(int32_t)}));
  launch(context, &read_stream_kernel,
         dim3(static_cast<unsigned>(n_slices), static_cast<unsigned>(parts)), kThreads, 0,
         a.x.as<int32_t>(), slices, n, part_length, slice_length, vectors);
  if (n_slices > 1)
    launch(context, &join_slices_kernel, static_cast<unsigned>(parts), kThreads, 0, slices, out,
           static_cast<int>(n_slices));
}

}  // namespace zc::cuda
