// Quantization: the arithmetic is csrc/math/quantize.h. The build compiles everything with
// -ffp-contract=off, so that no compiler fuses a product with a sum here and codes are bit-equal to
// the reference's.
namespace zc::cpu {
namespace ZC_ISA {

template <typename Get>
inline float choose_normalizer(const Get& get, int64_t n) {
  float max_abs = 0.0f;
  for (int64_t i = 0; i < n; ++i) {
    const float x = std::fabs(clamp_finite(get(i)));
    max_abs = x > max_abs ? x : max_abs;
  }
  return channel_normalizer(max_abs);
}

// Codes of one row in the plain format: element c at bit c * bits; 3 bits are a 2-bit plane and
// then a 1-bit plane.
inline void write_code(uint8_t* row, int64_t channels, int bits, int64_t c, uint32_t code) {
  const int low_bits = bits == 3 ? 2 : bits;
  const int64_t at = c * low_bits;
  row[at >> 3] = static_cast<uint8_t>(row[at >> 3] | (code & ((1u << low_bits) - 1u)) << (at & 7));
  if (bits == 3) {
    uint8_t* plane = row + (channels * 2 + 7) / 8;
    plane[c >> 3] = static_cast<uint8_t>(plane[c >> 3] | ((code >> 2) & 1u) << (c & 7));
  }
}

inline uint32_t read_code(const uint8_t* row, int64_t channels, int bits, int64_t c) {
  const int low_bits = bits == 3 ? 2 : bits;
  const int64_t at = c * low_bits;
  uint32_t code = (static_cast<uint32_t>(row[at >> 3]) >> (at & 7)) & ((1u << low_bits) - 1u);
  if (bits == 3) {
    const uint8_t* plane = row + (channels * 2 + 7) / 8;
    code |= ((static_cast<uint32_t>(plane[c >> 3]) >> (c & 7)) & 1u) << 2;
  }
  return code;
}

template <typename T>
void quantize_typed(const OpContext& ctx, const QuantizeArgs& a) {
  const int64_t rows = a.x.size(0);
  const int64_t channels = a.x.size(1);
  const T* x = a.x.as<T>();
  f16* scale = a.scale.as<f16>();
  f16* zero = a.zero.as<f16>();
  f16* channel = a.channel.as<f16>();
  const RangeSearch search(a.bits, a.norm);
  const auto keep = [&](int64_t group, QuantParams p) {  // exact: both are halves already
    scale[group] = to_f16(p.scale);
    zero[group] = to_f16(p.zero);
  };

  if (a.scheme == QuantScheme::kChannelwise) {
    ctx.threads->parallel_for(channels, [&](int64_t c) {
      keep(c,
           choose_params([&](int64_t r) { return to_float(x[r * channels + c]); }, rows, search));
    });
  } else if (a.scheme == QuantScheme::kCst) {
    ctx.threads->parallel_for(channels, [&](int64_t c) {
      channel[c] =
          to_f16(choose_normalizer([&](int64_t r) { return to_float(x[r * channels + c]); }, rows));
    });
  }

  const int64_t group_size = a.scheme == QuantScheme::kGroupwise ? a.group_size : channels;
  const int64_t groups_per_row = channels > 0 ? channels / group_size : 0;
  const int64_t row_bytes = a.codes.size(1);
  ctx.threads->parallel_for(rows, [&](int64_t r) {
    float* value = thread_scratch(0, static_cast<size_t>(channels));
    widen(x + r * channels, value, channels);
    if (a.scheme == QuantScheme::kCst)
      for (int64_t c = 0; c < channels; ++c) value[c] = value[c] * (1.0f / to_float(channel[c]));
    uint8_t* codes = a.codes.as<uint8_t>() + r * row_bytes;
    std::memset(codes, 0, static_cast<size_t>(row_bytes));
    if (a.scheme == QuantScheme::kChannelwise) {
      for (int64_t c = 0; c < channels; ++c) {
        const float inv = quant_inverse(to_float(scale[c]));
        write_code(codes, channels, a.bits, c,
                   quant_code(value[c], to_float(zero[c]), inv, a.bits));
      }
      return;
    }
    for (int64_t g = 0; g < groups_per_row; ++g) {
      const float* group = value + g * group_size;
      const QuantParams p = choose_params([&](int64_t i) { return group[i]; }, group_size, search);
      keep(r * groups_per_row + g, p);
      const float inv = quant_inverse(p.scale);
      for (int64_t i = 0; i < group_size; ++i)
        write_code(codes, channels, a.bits, g * group_size + i,
                   quant_code(group[i], p.zero, inv, a.bits));
    }
  });
}

void quantize(const OpContext& ctx, const QuantizeArgs& a) {
  dispatch_float(a.x.dtype,
                 [&](auto type) { quantize_typed<typename decltype(type)::type>(ctx, a); });
}

template <typename T>
void dequantize_typed(const OpContext& ctx, const DequantizeArgs& a) {
  const int64_t rows = a.out.size(0);
  const int64_t channels = a.out.size(1);
  const int64_t groups_per_row = a.scheme == QuantScheme::kGroupwise ? channels / a.group_size : 1;
  ctx.threads->parallel_for(rows, [&](int64_t r) {
    const uint8_t* codes = a.codes.as<uint8_t>() + r * a.codes.size(1);
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t group = a.scheme == QuantScheme::kChannelwise ? c
                            : a.scheme == QuantScheme::kGroupwise
                                ? r * groups_per_row + c / a.group_size
                                : r;
      const QuantParams p{to_float(a.scale.as<f16>()[group]), to_float(a.zero.as<f16>()[group])};
      float value = dequantize_code(read_code(codes, channels, a.bits, c), p);
      if (a.scheme == QuantScheme::kCst) value *= to_float(a.channel.as<f16>()[c]);
      a.out.as<T>()[r * channels + c] = from_float<T>(value);
    }
  });
}

void dequantize(const OpContext& ctx, const DequantizeArgs& a) {
  dispatch_float(a.out.dtype,
                 [&](auto type) { dequantize_typed<typename decltype(type)::type>(ctx, a); });
}

void restore_outliers(const OpContext& ctx, const RestoreOutliersArgs& a) {
  const int64_t n = a.values.size(1);
  const int64_t channels = a.out.size(1);
  const int64_t length = a.out.size(a.channelwise ? 0 : 1);  // of a line
  const uint8_t* places = a.places.as<uint8_t>();
  const auto place_of = [&](int64_t i) { return int64_t{places[2 * i]} + 256 * places[2 * i + 1]; };
  for (int64_t i = 0; i < a.values.length(); ++i)
    ZC_CHECK(place_of(i) < length, ErrorCode::kArgument, "places: %lld, expected 0 to %lld",
             static_cast<long long>(place_of(i)), static_cast<long long>(length - 1));
  dispatch_float(a.out.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    ctx.threads->parallel_for(a.values.size(0), [&](int64_t line) {
      for (int64_t i = line * n; i < (line + 1) * n; ++i) {
        const int64_t element =
            a.channelwise ? place_of(i) * channels + line : line * channels + place_of(i);
        a.out.as<T>()[element] = from_float<T>(to_float(a.values.as<f16>()[i]));
      }
    });
  });
}

}  // namespace ZC_ISA
}  // namespace zc::cpu
