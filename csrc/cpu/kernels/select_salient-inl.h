namespace zc::cpu {
namespace ZC_ISA {

// A key whose unsigned order is the order of the scores; NaN ranks below everything.
inline uint32_t score_key(float score) {
  if (score != score) return 0;
  const uint32_t bits = float_to_bits(score + 0.0f);  // -0 becomes 0, its equal
  return (bits & 0x80000000u) ? ~bits : bits | 0x80000000u;
}

// The exact top `count` of each row (ZipCache, arXiv 2405.14256, §4.2), ties to the lowest index,
// by a radix select: four passes find the key of the last selected score, one pass writes both
// lists in ascending order. One task is a row.
void select_salient(const OpContext& ctx, const SelectSalientArgs& a) {
  const int64_t n = a.scores.size(1);
  const int64_t count = a.salient.size(1);
  ctx.threads->parallel_for(a.scores.size(0), [&](int64_t row) {
    const float* scores = a.scores.as<float>() + row * n;
    int32_t* salient = a.salient.as<int32_t>() + row * count;
    int32_t* regular = a.regular.as<int32_t>() + row * (n - count);

    uint32_t prefix = 0;  // the leading digits of the threshold key
    uint32_t prefix_mask = 0;
    int64_t wanted = count;  // how many keys with this prefix are selected
    for (int shift = 24; shift >= 0 && count > 0; shift -= 8) {
      int64_t histogram[256] = {};
      for (int64_t i = 0; i < n; ++i) {
        const uint32_t key = score_key(scores[i]);
        if ((key & prefix_mask) == prefix) ++histogram[(key >> shift) & 255u];
      }
      int digit = 255;
      while (digit > 0 && histogram[digit] < wanted) wanted -= histogram[digit--];
      prefix |= static_cast<uint32_t>(digit) << shift;
      prefix_mask |= 255u << shift;
    }
    int64_t equal_left =
        count > 0 ? wanted : 0;  // keys equal to the threshold that are still selected
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t key = score_key(scores[i]);
      const bool is_equal = key == prefix;
      const bool selected = count > 0 && (key > prefix || (is_equal && equal_left > 0));
      if (selected) {
        equal_left -= is_equal ? 1 : 0;
        *salient++ = static_cast<int32_t>(i);
      } else {
        *regular++ = static_cast<int32_t>(i);
      }
    }
  });
}

}  // namespace ZC_ISA
}  // namespace zc::cpu
