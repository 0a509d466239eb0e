// Pages as the CPU lays them out. A part (K or V of 16 tokens) is head_dim units of 16 elements: K's unit c holds the
// 16 tokens of channel c, V's unit t * head_dim / 16 + b the channels 16b..16b+15 of token t. So K unpacks with tokens on
// the lanes and V with channels on the lanes, which is how Q K^T and P V want them.
//   u2: one 32-bit word a unit, element i at bit 2i       u4: two words, element i at bit 4(i mod 8) of word i / 8
//   u3: the u2 words, then one 16-bit plane a unit with the top bits       u8, f16, bf16, f32: 16 elements in order
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

// Elements first .. first + kLanes - 1 of the codes in `word`, bits each.
template <int Bits>
inline VecU unpack_word(uint32_t word, uint32_t first) {
  constexpr uint32_t kMask = (1u << Bits) - 1u;
  return ((VecU{} + word) >> ((lane_index() + first) * Bits)) & kMask;
}

inline void store_codes(float* out, VecU codes) {
  store(out, __builtin_convertvector(__builtin_convertvector(codes, VecI), VecF));
}

// One unit to 16 floats: the codes of a quantized part, the values of a plain one.
template <Format F>
inline void unpack_unit(const uint8_t* part, int64_t n_units, int64_t unit, float* out) {
  if constexpr (F == Format::kU2) {
    const uint32_t word = load_u32(part + unit * 4);
    for (uint32_t i = 0; i < 16; i += kLanes) store_codes(out + i, unpack_word<2>(word, i));
  } else if constexpr (F == Format::kU3) {
    const uint32_t word = load_u32(part + unit * 4);
    uint16_t plane;
    std::memcpy(&plane, part + n_units * 4 + unit * 2, 2);
    for (uint32_t i = 0; i < 16; i += kLanes)
      store_codes(out + i, unpack_word<2>(word, i) | (unpack_word<1>(plane, i) << 2));
  } else if constexpr (F == Format::kU4) {
    for (uint32_t i = 0; i < 16; i += kLanes)
      store_codes(out + i, unpack_word<4>(load_u32(part + unit * 8 + i / 8 * 4), i % 8));
  } else if constexpr (F == Format::kU8) {
    for (int i = 0; i < 16; ++i) out[i] = static_cast<float>(part[unit * 16 + i]);
  } else if constexpr (F == Format::kF16) {
    widen(reinterpret_cast<const f16*>(part) + unit * 16, out, 16);
  } else if constexpr (F == Format::kBF16) {
    widen(reinterpret_cast<const bf16*>(part) + unit * 16, out, 16);
  } else {
    widen(reinterpret_cast<const float*>(part) + unit * 16, out, 16);
  }
}

// A whole part: unit u goes to out + u * stride.
inline void unpack_part(Format format, const uint8_t* part, int64_t n_units, float* out, int64_t stride) {
  const auto all = [&](auto tag) {
    for (int64_t u = 0; u < n_units; ++u)
      unpack_unit<decltype(tag)::value>(part, n_units, u, out + u * stride);
  };
  switch (format) {
    case Format::kU2:
      return all(std::integral_constant<Format, Format::kU2>{});
    case Format::kU3:
      return all(std::integral_constant<Format, Format::kU3>{});
    case Format::kU4:
      return all(std::integral_constant<Format, Format::kU4>{});
    case Format::kU8:
      return all(std::integral_constant<Format, Format::kU8>{});
    case Format::kF16:
      return all(std::integral_constant<Format, Format::kF16>{});
    case Format::kBF16:
      return all(std::integral_constant<Format, Format::kBF16>{});
    case Format::kF32:
      return all(std::integral_constant<Format, Format::kF32>{});
  }
  throw Error(ErrorCode::kInternal, "unpack_part: unknown format");
}

// Writes the codes of one unit of a quantized part.
inline void pack_unit(Format format, uint8_t* part, int64_t n_units, int64_t unit, const uint32_t* codes) {
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
      uint32_t words[2] = {};
      for (int i = 0; i < 16; ++i) words[i / 8] |= (codes[i] & 15u) << (4 * (i % 8));
      std::memcpy(part + unit * 8, words, 8);
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

// A segment of one (layer, kv head) with its addresses resolved. Every address is checked against the pool and the table
// here: they are data, written from outside.
struct SegmentView {
  Segment segment;
  const int32_t* pages;
  uint8_t* pool;
  int head_dim;
  int64_t v_offset;       // of the V part in a page
  int64_t params_offset;  // of the token parameters in a page

  int n_tokens() const { return segment.n_tokens; }
  int n_pages() const { return (segment.n_tokens + kPageTokens - 1) / kPageTokens; }
  uint8_t* page(int64_t index) const { return pool + static_cast<int64_t>(pages[index]) * kPageUnitBytes; }
  uint8_t* k_part(int64_t index) const { return page(index); }
  uint8_t* v_part(int64_t index) const { return page(index) + v_offset; }
  f16* token_scale(int64_t index) const { return reinterpret_cast<f16*>(page(index) + params_offset); }
  f16* token_zero(int64_t index) const { return token_scale(index) + kPageTokens; }
  f16* channel_params(int which) const {  // 0: K scale, 1: K zero, 2: V channel c
    return reinterpret_cast<f16*>(pool + static_cast<int64_t>(segment.params_unit) * kPageUnitBytes) +
           static_cast<int64_t>(which) * head_dim;
  }
  bool k_quantized() const { return format_quantized(segment.k_format); }
  bool v_quantized() const { return format_quantized(segment.v_format); }

  bool has_bitmap() const { return segment.span != 0; }
  uint8_t* bitmap() const { return pool + static_cast<int64_t>(segment.bitmap_unit) * kPageUnitBytes; }
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

inline SegmentView view_segment(const int32_t* table, int64_t table_words, const TensorView& pool, int layer,
                                int kv_head, int index, int head_dim) {
  const int64_t entry = entry_index(table, layer, kv_head);
  ZC_CHECK(entry + kEntryHeader + (index + 1) * int64_t{kSegmentWords} <= table_words,
           ErrorCode::kArgument, "table: layer %d, kv head %d, segment %d lies outside", layer, kv_head, index);
  SegmentView view{};
  view.segment = read_segment(table, layer, kv_head, index);
  const Segment& s = view.segment;
  const bool good_format = format_known(static_cast<int32_t>(s.k_format)) && format_known(static_cast<int32_t>(s.v_format));
  ZC_CHECK(good_format && s.n_tokens >= 0, ErrorCode::kArgument,
           "table: layer %d, kv head %d, segment %d is damaged", layer, kv_head, index);
  view.pages = table + s.pages_begin;
  view.pool = pool.as<uint8_t>();
  view.head_dim = head_dim;
  view.v_offset = part_bytes(s.k_format, head_dim);
  view.params_offset = view.v_offset + part_bytes(s.v_format, head_dim);
  const int64_t page_size = page_bytes(s.k_format, s.v_format, head_dim);
  bool good = s.n_tokens == 0 || (s.pages_begin >= 0 && s.pages_begin + view.n_pages() <= table_words);
  const auto inside = [&](int64_t unit, int64_t bytes) {
    return unit >= 0 && unit * kPageUnitBytes + bytes <= pool.size(0);
  };
  for (int p = 0; good && p < view.n_pages(); ++p) good = inside(view.pages[p], page_size);
  if (good && (view.k_quantized() || view.v_quantized())) good = inside(s.params_unit, params_bytes(head_dim));
  if (good && view.has_bitmap()) good = inside(s.bitmap_unit, (std::abs(int64_t{s.span}) + 7) / 8);
  ZC_CHECK(good, ErrorCode::kArgument, "table: layer %d, kv head %d, segment %d points outside the pool", layer,
           kv_head, index);
  return view;
}

// The header of a table against what an op expects; returns the number of segments' slots to come.
inline void check_table(const int32_t* table, int64_t table_words, int layer, int64_t n_kv_heads) {
  const bool good = table[kTableKvHeads] == n_kv_heads && layer >= 0 && layer < table[kTableLayers] &&
                    table[kTableMaxSegments] >= 1 && table[kTableTailLength] >= 0 &&
                    entry_index(table, table[kTableLayers], 0) <= table_words;
  ZC_CHECK(good, ErrorCode::kArgument,
           "table: has %d layers and %d kv heads, expected layer %d of it and %lld kv heads", table[kTableLayers],
           table[kTableKvHeads], layer, static_cast<long long>(n_kv_heads));
}

}  // namespace ZC_ISA
}  // namespace zc::cpu
