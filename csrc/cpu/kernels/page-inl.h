// Pages as the CPU lays them out. A part (K or V of 16 tokens) is head_dim units of 16 elements:
// K's unit c holds the 16 tokens of channel c, V's unit 16 b + t the channels 16b..16b+15 of token
// t. So K unpacks with tokens on the lanes and V with channels on the lanes, which is how Q K^T and
// P V want them.
//   u8, f16, bf16, f32: 16 elements in order
//   u4: 8 bytes a unit, element i in the low half of byte i, element 8 + i in the high half
//   u2: 8 bytes a pair of units, byte i = elements i and 8 + i of the even unit, then of the odd one
//   u3: the low bits as u2, then 8 bytes for two pairs: byte i = the top bits of those 8 elements
// One load, widened from bytes to lanes, serves 16 or 32 codes; which of them a byte gives is told
// by a mask alone, and the power of two that is left in the code goes to where there are fewer
// numbers.
namespace zc::cpu {
namespace ZC_ISA {

inline constexpr int kUnitVecs = 16 / kLanes;

// The 16 elements of one unit on kUnitVecs vectors.
struct UnitVecs {
  VecF v[kUnitVecs];
};

// Two neighbouring units as they come out of a page: elements 8 to 15 (`is_upper` vectors) are
// 1 / upper_scale too large, and all of the odd unit 1 / odd_scale. Users put the odd unit's factor
// into what they multiply it by, and the upper elements' into the sum.
struct UnitPair {
  UnitVecs even;
  UnitVecs odd;
};

template <Format F>
inline constexpr float upper_scale = F == Format::kU2 || F == Format::kU3 ? 0.25f
                                     : F == Format::kU4                   ? 0.0625f
                                                                          : 1.0f;
inline float odd_scale(Format f) { return f == Format::kU2 || f == Format::kU3 ? 0.0625f : 1.0f; }

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

// One unit of a format that does not pair them.
template <Format F>
inline UnitVecs load_unit(const uint8_t* part, int64_t unit) {
  UnitVecs out;
  if constexpr (F == Format::kU4) {
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

// Units 2 pair and 2 pair + 1 of a part of n_units.
template <Format F>
inline UnitPair load_pair(const uint8_t* part, int64_t n_units, int64_t pair) {
  if constexpr (F == Format::kU2 || F == Format::kU3) {
    UnitPair out;
    for (int i = 0; i < kUnitVecs / 2; ++i) {
      const VecU low = load_bytes(part + pair * 8 + i * kLanes);
      VecU codes[4] = {low & 0x3u, low & 0xcu, low & 0x30u, low & 0xc0u};
      if constexpr (F ==
                    Format::kU3) {  // top bit s of this pair to bit 2 s + 2, above its low bits
        const VecU top = load_bytes(part + n_units * 4 + pair / 2 * 8 + i * kLanes) >>
                         static_cast<uint32_t>(pair % 2 * 4);
        codes[0] |= (top << 2) & 0x4u;
        codes[1] |= (top << 3) & 0x10u;
        codes[2] |= (top << 4) & 0x40u;
        codes[3] |= (top << 5) & 0x100u;
      }
      out.even.v[i] = to_floats(codes[0]);
      out.even.v[i + kUnitVecs / 2] = to_floats(codes[1]);
      out.odd.v[i] = to_floats(codes[2]);
      out.odd.v[i + kUnitVecs / 2] = to_floats(codes[3]);
    }
    return out;
  } else {
    return {load_unit<F>(part, 2 * pair), load_unit<F>(part, 2 * pair + 1)};
  }
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

// A whole part as codes (or values, of a plain one): unit u goes to the 16 floats at place(u).
template <typename Place>
inline void unpack_part(Format format, const uint8_t* part, int64_t n_units, const Place& place) {
  dispatch_format(format, [&](auto tag) {
    constexpr Format kFormat = decltype(tag)::value;
    const auto put = [](const UnitVecs& unit, float scale, float* to) {
      for (int i = 0; i < kUnitVecs; ++i)
        store(to + i * kLanes,
              unit.v[i] * broadcast(is_upper(i) ? scale * upper_scale<kFormat> : scale));
    };
    for (int64_t pair = 0; pair < n_units / 2; ++pair) {
      const UnitPair units = load_pair<kFormat>(part, n_units, pair);
      put(units.even, 1.0f, place(2 * pair));
      put(units.odd, odd_scale(kFormat), place(2 * pair + 1));
    }
  });
}

// K of one page to k_t (head_dim, stride), V to v (16, head_dim).
inline void unpack_keys(Format format, const uint8_t* part, int head_dim, float* k_t,
                        int64_t stride) {
  unpack_part(format, part, head_dim, [&](int64_t unit) { return k_t + unit * stride; });
}
inline void unpack_values(Format format, const uint8_t* part, int head_dim, float* v) {
  unpack_part(format, part, head_dim, [&](int64_t unit) {
    return v + unit % kPageTokens * head_dim + unit / kPageTokens * 16;
  });
}

// V's unit of token t and the 16 channels from c on.
inline int64_t value_unit(int64_t t, int64_t c) { return c / 16 * kPageTokens + t; }

// Replaces the bits of `mask` in a byte.
inline void put_bits(uint8_t& byte, uint32_t mask, uint32_t bits) {
  byte = static_cast<uint8_t>((byte & ~mask) | bits);
}

// Writes the codes of one unit of a quantized part. Units share bytes: those of a pair (u3: of two
// pairs) must be written by the same thread.
inline void pack_unit(Format format, uint8_t* part, int64_t n_units, int64_t unit,
                      const uint32_t* codes) {
  switch (format) {
    case Format::kU2:
    case Format::kU3: {
      const int place = static_cast<int>(unit % 2) * 4;
      const int top_place = static_cast<int>(unit % 4) * 2;
      uint8_t* low = part + unit / 2 * 8;
      uint8_t* top = part + n_units * 4 + unit / 4 * 8;
      for (int i = 0; i < 8; ++i) {
        const uint32_t pair = (codes[i] & 3u) | (codes[8 + i] & 3u) << 2;
        put_bits(low[i], 0xfu << place, pair << place);
        if (format == Format::kU2) continue;
        const uint32_t tops = (codes[i] >> 2 & 1u) | (codes[8 + i] >> 2 & 1u) << 1;
        put_bits(top[i], 0x3u << top_place, tops << top_place);
      }
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
  int n_pages() const {  // no sum that a lying count could overflow
    return segment.n_tokens / kPageTokens + (segment.n_tokens % kPageTokens != 0);
  }
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
    const int64_t span = std::min<int64_t>(n, std::abs(int64_t{segment.span}));
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
  bool good = s.n_tokens == 0 ||
              (s.pages_begin >= 0 && int64_t{s.pages_begin} + view.n_pages() <= table_words);
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

// How many segments a checked table lists for one kv head.
inline int checked_segment_count(const int32_t* table, int layer, int kv_head) {
  const int count = segment_count(table, layer, kv_head);
  ZC_CHECK(count >= 0 && count <= table[kTableMaxSegments], ErrorCode::kArgument,
           "table: layer %d, kv head %d has %d segments, expected at most %d", layer, kv_head,
           count, table[kTableMaxSegments]);
  return count;
}

// The page table of one sequence among those of a batch.
struct SequenceTable {
  const int32_t* words;  // null for a masked row of the batch
  int64_t n_words;
};

inline SequenceTable sequence_table(const TensorView& tables, const TensorView& starts,
                                    int64_t seq) {
  const int64_t start = starts.as<int32_t>()[seq];
  if (start == -1) return {nullptr, 0};
  ZC_CHECK(start >= 0 && start + kTableHeader <= tables.size(0), ErrorCode::kArgument,
           "starts: sequence %lld begins at word %lld, expected -1 or a table within %lld words",
           static_cast<long long>(seq), static_cast<long long>(start),
           static_cast<long long>(tables.size(0)));
  return {tables.as<int32_t>() + start, tables.size(0) - start};
}

// The header of a table against what an op expects.
inline void check_table(const int32_t* table, int64_t table_words, int layer, int64_t n_kv_heads) {
  // Divided, since the product of three words that lie may overflow.
  const int64_t entry_words = kEntryHeader + int64_t{table[kTableMaxSegments]} * kSegmentWords;
  const bool good = table[kTableKvHeads] == n_kv_heads && layer >= 0 &&
                    layer < table[kTableLayers] && table[kTableMaxSegments] >= 1 &&
                    table[kTableTailLength] >= 0 &&
                    table[kTableLayers] * n_kv_heads <= (table_words - kTableHeader) / entry_words;
  ZC_CHECK(good, ErrorCode::kArgument,
           "table: has %d layers and %d kv heads, expected layer %d of it and %lld kv heads",
           table[kTableLayers], table[kTableKvHeads], layer, static_cast<long long>(n_kv_heads));
}

}  // namespace ZC_ISA
}  // namespace zc::cpu
