namespace zc::cpu {
namespace ZC_ISA {

inline constexpr int64_t kConvChannels = 256;  // of a task: a row's part is 1 KB

// The depthwise convolution in front of a recurrent layer, its inputs from before a call kept in a
// page. One task is a sequence's rows of some channels.
void causal_conv(const OpContext& ctx, const CausalConvArgs& a) {
  const int64_t channels = a.channels();
  const int64_t width = a.width();
  const int64_t kept = width - 1;
  const int32_t* cu = a.cu_seqlens.as<int32_t>();
  const int64_t page_bytes = conv_page_bytes(width, channels);
  check_cu_seqlens("cuSeqlens", a.cu_seqlens, a.x.size(0));
  check_state_pages(a, a.n_heads, 0, 1, page_bytes);
  const int64_t n_parts = (channels + kConvChannels - 1) / kConvChannels;
  ctx.threads->parallel_for(a.states.size(0) * n_parts, [&](int64_t task) {
    const int64_t seq = task / n_parts;
    const int64_t c0 = task % n_parts * kConvChannels;
    const int64_t n = std::min(kConvChannels, channels - c0);
    const size_t n_bytes = static_cast<size_t>(n) * sizeof(float);
    const int64_t rows = cu[seq + 1] - cu[seq];
    const float* x = a.x.as<float>() + cu[seq] * channels + c0;
    float* out = a.out.as<float>() + cu[seq] * channels + c0;
    const int32_t* words = state_words(a, seq, a.n_heads);
    if (!words) {
      for (int64_t t = 0; t < rows; ++t) std::memset(out + t * channels, 0, n_bytes);
      return;
    }
    float* page = state_page(a.pool, words[0], page_bytes) + c0;
    // (width + 1, n): the last row is the bias
    float* weight = thread_scratch(0, static_cast<size_t>((width + 1) * kConvChannels));
    float* bias = weight + width * n;
    for (int64_t c = 0; c < n; ++c)
      for (int64_t j = 0; j < width; ++j)
        weight[j * n + c] = a.weight.as<float>()[(c0 + c) * width + j];
    if (a.bias.defined())
      std::memcpy(bias, a.bias.as<float>() + c0, n_bytes);
    else
      std::memset(bias, 0, n_bytes);
    float* before = thread_scratch(1, static_cast<size_t>(kept * kConvChannels));  // (kept, n)
    for (int64_t j = 0; j < kept; ++j) {
      if (a.from_zero)
        std::memset(before + j * n, 0, n_bytes);
      else
        std::memcpy(before + j * n, page + j * channels, n_bytes);
    }
    const auto input = [&](int64_t t) {
      return t < 0 ? before + (kept + t) * n : x + t * channels;
    };
    const float* seen[kMaxConvWidth];
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t j = 0; j < width; ++j) seen[j] = input(t - kept + j);
      float* to = out + t * channels;
      int64_t c = 0;
      for (; c + kLanes <= n; c += kLanes) {
        VecF y = load(bias + c);
        for (int64_t j = 0; j < width; ++j) y = fma(load(weight + j * n + c), load(seen[j] + c), y);
        store(to + c, y * sigmoid(y));
      }
      for (; c < n; ++c) {  // the same of one lane
        VecF y = broadcast(bias[c]);
        for (int64_t j = 0; j < width; ++j)
          y = fma(broadcast(weight[j * n + c]), broadcast(seen[j][c]), y);
        to[c] = (y * sigmoid(y))[0];
      }
    }
    for (int64_t j = 0; j < kept; ++j)
      std::memcpy(page + j * channels, input(rows - kept + j), n_bytes);
  });
}

}  // namespace ZC_ISA
}  // namespace zc::cpu
