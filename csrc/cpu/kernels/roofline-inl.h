// The roofs that every other kernel is measured against: how fast memory is read, and how fast
// multiplied and added.
namespace zc::cpu {
namespace ZC_ISA {

inline constexpr int kReadStreams = 8;  // vectors read at a time: the XORs must not wait on another

// out[p] = XOR of the words of part p. One task is a part; bounded by memory alone.
void read_stream(const OpContext& ctx, const ReadStreamArgs& a) {
  const int64_t n = a.x.size(0);
  const int64_t parts = a.out.size(0);
  const int32_t* x = a.x.as<int32_t>();
  int32_t* out = a.out.as<int32_t>();

  ctx.threads->parallel_for(parts, [&](int64_t part) {
    const int64_t length = (n + parts - 1) / parts;
    int64_t i = std::min(n, part * length);
    const int64_t end = std::min(n, i + length);
    WideI sums[kReadStreams] = {};
    for (; i + kReadStreams * kWideLanes <= end; i += kReadStreams * kWideLanes)
      for (int s = 0; s < kReadStreams; ++s)
        sums[s] ^= reinterpret_cast<WideI>(load_streamed(x + i + s * kWideLanes));
    int32_t total = 0;
    for (; i < end; ++i) total ^= x[i];
    for (int s = 0; s < kReadStreams; ++s)
      for (int lane = 0; lane < kWideLanes; ++lane) total ^= sums[s][lane];
    out[part] = total;
  });
}

// N vectors held in registers; N chains that do not wait on each other hide the latency of an FMA.
template <int N>
inline void multiply_add_vectors(const float* x, float* out, const MultiplyAddArgs& a) {
  const WideF factor = broadcast_wide(a.factor);
  const WideF summand = broadcast_wide(a.summand);
  WideF y[N];
  for (int i = 0; i < N; ++i) y[i] = load_wide(x + i * kWideLanes);
  for (int32_t step = 0; step < a.steps; ++step)
    for (int i = 0; i < N; ++i) y[i] = fma(y[i], factor, summand);
  for (int i = 0; i < N; ++i) store(out + i * kWideLanes, y[i]);
}

// out = `steps` times y = factor y + summand, from y = x. One task is a row; bounded by the rate of
// FMAs, as many accumulators in flight as in the tile of `linear`.
void multiply_add(const OpContext& ctx, const MultiplyAddArgs& a) {
  constexpr int kChains = 12;
  const int64_t width = a.x.size(1);

  ctx.threads->parallel_for(a.x.size(0), [&](int64_t row) {
    const float* x = a.x.as<float>() + row * width;
    float* out = a.out.as<float>() + row * width;
    int64_t i = 0;
    for (; i + kChains * kWideLanes <= width; i += kChains * kWideLanes)
      multiply_add_vectors<kChains>(x + i, out + i, a);
    for (; i < width; i += kWideLanes) {  // the last vector may be a part of one
      const size_t bytes =
          sizeof(float) * static_cast<size_t>(std::min<int64_t>(kWideLanes, width - i));
      float y[kWideLanes] = {};
      std::memcpy(y, x + i, bytes);
      multiply_add_vectors<1>(y, y, a);
      std::memcpy(out + i, y, bytes);
    }
  });
}

}  // namespace ZC_ISA
}  // namespace zc::cpu
