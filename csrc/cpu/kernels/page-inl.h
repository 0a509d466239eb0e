// Pages as the CPU lays them out. A part (K or V of 16 tokens) is head_dim units of 16 elements:
// K's unit c holds the 16 tokens of channel c, V's unit t * head_dim / 16 + b the channels
// 16b..16b+15 of token t. So K unpacks with tokens on the lanes and V with channels on the lanes,
// which is how Q K^T and P V want them.
//   u2: one 32-bit word a unit, element i at bit 2i
//   u3: the u2 words, then one 16-bit plane a unit with the top bits
//   u4: 8 bytes a unit, element i in the low half of byte i, element 8 + i in the high half
//   u8, f16, bf16, f32: 16 elements in order
namespace zc::cpu {
namespace ZC_ISA {

inline uint32_t load_u32(const uint8_t* p) {
  uint32_t w;
  std::memcpy(&w, p, 4);
  return w;
}

inline VecU lane_index() {
  VecU lanes;
  for (uint32_t i = 0; i < kLanes; ++i) lanes[i] = i;
  return lanes;
}

inline constexpr int kUnitVecs = 16 / kLanes;

// The 16 elements of one unit on kUnitVecs vectors. Where it saves a shift, codes of the upper 8
// elements come multiplied by a power of two, which `upper_scale` undoes where it is cheapest: on
// sums.
struct UnitVecs {
  VecF v[kUnitVecs];
};

template <Format F>
inline constexpr float upper_scale = F == Format::kU2 || F == Format::kU3 ? 0x1p-16f
                                     : F == Format::kU4                   ? 0x1p-4f
                                                                          : 1.0f;

inline bool is_upper(int vec) { return vec >= kUnitVecs / 2; }

inline VecF to_floats(VecU codes) {
  return __builtin_convertvector(__builtin_convertvector(codes, VecI), VecF);
}

// kLanes bytes, each on a 32-bit lane.
inline VecU load_bytes(const uint8_t* p) {
#if defined(ZC_ISA_AVX2)
  return reinterpret_cast<VecU>(
      _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  VecU bytes;
  for (int i = 0; i < kLanes; ++i) bytes[i] = p[i];
  return bytes;
#endif
}

template <Format F>
inline UnitVecs load_unit(const uint8_t* part, int64_t n_units, int64_t unit) {
  UnitVecs out;
  if constexpr (F == Format::kU2 || F == Format::kU3) {
    const VecU word = VecU{} + load_u32(part + unit * 4);
    VecU plane{};
    if constexpr (F ==
                  Format::kU3) {  // element i's top bit to bit 2 + i, element 8 + i's to bit 18 + i
      const uint32_t top = part[n_units * 4 + unit * 2];
      const uint32_t upper_top = part[n_units * 4 + unit * 2 + 1];
      plane = VecU{} + (top << 2 | upper_top << 18);
    }
    for (uint32_t i = 0; i < kUnitVecs / 2; ++i) {
      const VecU index = lane_index() + i * kLanes;
      const VecU low = word >> (index * 2);
      VecU lower = low & 0x3u;
      VecU upper = low & 0x30000u;
      if constexpr (F == Format::kU3) {
        const VecU high = plane >> index;
        lower |= high & 0x4u;
        upper |= high & 0x40000u;
      }
      out.v[i] = to_floats(lower);
      out.v[i + kUnitVecs / 2] = to_floats(upper);
    }
  } else if constexpr (F == Format::kU4) {
    for (int i = 0; i < kUnitVecs / 2; ++i) {
      const VecU bytes = load_bytes(part + unit * 8 + i * kLanes);
      out.v[i] = to_floats(bytes & 0xfu);
      out.v[i + kUnitVecs / 2] = to_floats(bytes & 0xf0u);
    }
  } else if constexpr (F == Format::kU8) {
    for (int i = 0; i < kUnitVecs; ++i)
      out.v[i] = to_floats(load_bytes(part + unit * 16 + i * kLanes));
  } else {
    using T = std::conditional_t<F == Format::kF16, f16,
                                 std::conditional_t<F == Format::kBF16, bf16, float>>;
    for (int i = 0; i < kUnitVecs; ++i)
      out.v[i] = load(reinterpret_cast<const T*>(part) + unit * 16 + i * kLanes);
  }
  return out;
}

// One unit to 16 floats: the codes of a quantized part, the values of a plain one.
template <Format F>
inline void unpack_unit(const uint8_t* part, int64_t n_units, int64_t unit, float* out) {
  const UnitVecs vecs = load_unit<F>(part, n_units, unit);
  for (int i = 0; i < kUnitVecs; ++i)
    store(out + i * kLanes, is_upper(i) ? vecs.v[i] * broadcast(upper_scale<F>) : vecs.v[i]);
}

// Calls f with the format as a type, std::integral_constant<Format, ...>.
template <typename F>
inline void dispatch_format(Format format, const F& f) {
  switch (format) {
    case Format::kU2:
      return f(std::integral_constant<Format, Format::kU2>{});
    case Format::kU3:
      return f(std::integral_constant<Format, Format::kU3>{});
    case Format::kU4:
      return f(std::integral_constant<Format, Format::kU4>{});
    case Format::kU8:
      return f(std::integral_constant<Format, Format::kU8>{});
    case Format::kF16:
      return f(std::integral_constant<Format, Format::kF16>{});
    case Format::kBF16:
      return f(std::integral_constant<Format, Format::kBF16>{});
    case Format::kF32:
      return f(std::integral_constant<Format, Format::kF32>{});
  }
  throw Error(ErrorCode::kInternal, "page: unknown format");
}

// A whole part: unit u goes to out + u * stride.
inline void unpack_part(Format format, const uint8_t* part, int64_t n_units, float* out,
                        int64_t stride) {
  dispatch_format(format, [&](auto tag) {
    for (int64_t u = 0; u < n_units; ++u)
      unpack_unit<decltype(tag)::value>(part, n_units, u, out + u * stride);
  });
}

// Writes the codes of one unit of a quantized part.
inline void pack_unit(Format format, uint8_t* part, int64_t n_units, int64_t unit,
                      const uint32_t* codes) {
  switch (format) {
    case Format::kU2:
    case Format::kU3: {
      uint32_t word = 0;
      uint16_t plane = 0;
      for (int i = 0; i < 16; ++i) {
        word |= (codes[i] & 3u) << (2 * i);
        plane = static_cast<uint16_t>(plane | ((codes[i] >> 2) & 1u) << i);
      }
      std::memcpy(part + unit * 4, &word, 4);
      if (format == Format::kU3) std::memcpy(part + n_units * 4 + unit * 2, &plane, 2);
      return;
    }
    case Format::kU4: {
      for (int i = 0; i < 8; ++i)
        part[unit * 8 + i] = static_cast<uint8_t>((codes[i] & 15u) | (codes[8 + i] & 15u) << 4);
      return;
    }
    case Format::kU8:
      for (int i = 0; i < 16; ++i) part[unit * 16 + i] = static_cast<uint8_t>(codes[i]);
      return;
    case Format::kF16:
    case Format::kBF16:
    case Format::kF32:
      break;
  }
  throw Error(ErrorCode::kInternal, "pack_unit: not a quantized format");
}

// Writes element `index` (unit * 16 + place) of an unquantized part.
inline void store_element(Format format, uint8_t* part, int64_t index, float value) {
  switch (format) {
    case Format::kF16:
      reinterpret_cast<f16*>(part)[index] = from_float<f16>(value);
      return;
    case Format::kBF16:
      reinterpret_cast<bf16*>(part)[index] = from_float<bf16>(value);
      return;
    case Format::kF32:
      reinterpret_cast<float*>(part)[index] = value;
      return;
    default:
      throw Error(ErrorCode::kInternal, "store_element: a quantized format");
  }
}

// A segment of one (layer, kv head) with its addresses resolved. Every address is checked against
// the pool and the table here: they are data, written from outside.
struct SegmentView {
  Segment segment;
  const int32_t* pages;
  uint8_t* pool;
  int head_dim;
  int64_t v_offset;       // of the V part in a page
  int64_t params_offset;  // of the token parameters in a page

  int n_tokens() const { return segment.n_tokens; }
  int n_pages() const { return (segment.n_tokens + kPageTokens - 1) / kPageTokens; }
  uint8_t* page(int64_t index) const {
    return pool + static_cast<int64_t>(pages[index]) * kPageUnitBytes;
  }
  uint8_t* k_part(int64_t index) const { return page(index); }
  uint8_t* v_part(int64_t index) const { return page(index) + v_offset; }
  f16* token_scale(int64_t index) const {
    return reinterpret_cast<f16*>(page(index) + params_offset);
  }
  f16* token_zero(int64_t index) const { return token_scale(index) + kPageTokens; }
  f16* channel_params(int which) const {  // 0: K scale, 1: K zero, 2: V channel c
    return reinterpret_cast<f16*>(pool +
                                  static_cast<int64_t>(segment.params_unit) * kPageUnitBytes) +
           static_cast<int64_t>(which) * head_dim;
  }
  bool k_quantized() const { return format_quantized(segment.k_format); }
  bool v_quantized() const { return format_quantized(segment.v_format); }

  bool has_bitmap() const { return segment.span != 0; }
  uint8_t* bitmap() const {
    return pool + static_cast<int64_t>(segment.bitmap_unit) * kPageUnitBytes;
  }
  // Whether the token at start + i belongs to this segment.
  bool holds(int64_t i) const {
    const bool set = (bitmap()[i >> 3] >> (i & 7)) & 1;
    return set == (segment.span > 0);
  }

  // How many of the segment's tokens lie before `position`: slots are in order of position.
  int slots_before(int64_t position) const {
    const int64_t n = position - segment.start;
    if (n <= 0) return 0;
    if (!has_bitmap()) return static_cast<int>(std::min<int64_t>(n, segment.n_tokens));
    const int64_t span = std::min<int64_t>(n, std::abs(segment.span));
    int count = 0;
    for (int64_t i = 0; i < span; ++i) count += holds(i);
    return count;
  }
};

inline SegmentView view_segment(const int32_t* table, int64_t table_words, const TensorView& pool,
                                int layer, int kv_head, int index, int head_dim) {
  const int64_t entry = entry_index(table, layer, kv_head);
  ZC_CHECK(entry + kEntryHeader + (index + 1) * int64_t{kSegmentWords} <= table_words,
           ErrorCode::kArgument, "table: layer %d, kv head %d, segment %d lies outside", layer,
           kv_head, index);
  SegmentView view{};
  view.segment = read_segment(table, layer, kv_head, index);
  const Segment& s = view.segment;
  const bool good_format = format_known(static_cast<int32_t>(s.k_format)) &&
                           format_known(static_cast<int32_t>(s.v_format));
  ZC_CHECK(good_format && s.n_tokens >= 0, ErrorCode::kArgument,
           "table: layer %d, kv head %d, segment %d is damaged", layer, kv_head, index);
  view.pages = table + s.pages_begin;
  view.pool = pool.as<uint8_t>();
  view.head_dim = head_dim;
  view.v_offset = part_bytes(s.k_format, head_dim);
  view.params_offset = view.v_offset + part_bytes(s.v_format, head_dim);
  const int64_t page_size = page_bytes(s.k_format, s.v_format, head_dim);
  bool good =
      s.n_tokens == 0 || (s.pages_begin >= 0 && s.pages_begin + view.n_pages() <= table_words);
  const auto inside = [&](int64_t unit, int64_t bytes) {
    return unit >= 0 && unit * kPageUnitBytes + bytes <= pool.size(0);
  };
  for (int p = 0; good && p < view.n_pages(); ++p) good = inside(view.pages[p], page_size);
  if (good && (view.k_quantized() || view.v_quantized()))
    good = inside(s.params_unit, params_bytes(head_dim));
  if (good && view.has_bitmap()) good = inside(s.bitmap_unit, (std::abs(int64_t{s.span}) + 7) / 8);
  ZC_CHECK(good, ErrorCode::kArgument,
           "table: layer %d, kv head %d, segment %d points outside the pool", layer, kv_head,
           index);
  return view;
}

// The header of a table against what an op expects; returns the number of segments' slots to come.
inline void check_table(const int32_t* table, int64_t table_words, int layer, int64_t n_kv_heads) {
  const bool good = table[kTableKvHeads] == n_kv_heads && layer >= 0 &&
                    layer < table[kTableLayers] && table[kTableMaxSegments] >= 1 &&
                    table[kTableTailLength] >= 0 &&
                    entry_index(table, table[kTableLayers], 0) <= table_words;
  ZC_CHECK(good, ErrorCode::kArgument,
           "table: has %d layers and %d kv heads, expected layer %d of it and %lld kv heads",
           table[kTableLayers], table[kTableKvHeads], layer, static_cast<long long>(n_kv_heads));
}

}  // namespace ZC_ISA
}  // namespace zc::cpu
