// Pages as the CPU lays them out. A part (K or V of 16 tokens) is head_dim / 16 squares of 16 terms
// by 16 lanes. A K square has channels as terms and tokens on the lanes, a V square tokens as terms
// and channels on the lanes: the sums that attention takes, over channels for Q K^T and over tokens
// for P V, run over terms, and need no sum across lanes.
//   f16, bf16, f32: element (term, lane) at term * 16 + lane
//   u4, u8: 2 or 4 rows of 32-bit words, a word a lane. The halves of a word hold an even and an odd
//     term, so that one multiplication of 16-bit pairs takes two terms; the next terms lie above
//     them, `bits` bits higher. Row w of u4 holds the terms from 8 w on, of u8 from 4 w on.
//   u2: one row: the fields of u4's row 0 and, 2 bits higher, those of its row 1
//   u3: the low bits as u2, then 16 bits a lane for the top bits (spread_tops)
namespace zc::cpu {
namespace ZC_ISA {

inline constexpr int kSquareVecs = kPageTokens / kWideLanes;  // vectors of one term

inline constexpr bool is_quantized(Format f) { return static_cast<int>(f) <= 8; }

// Codes of 2 and 3 bits are worked on in fields of 4.
template <Format F>
inline constexpr int kFieldBits = F == Format::kU8 ? 8 : 4;
template <Format F>
inline constexpr int kFields = 16 / kFieldBits<F>;  // in half a word
template <Format F>
inline constexpr int kSquareRows = 8 / kFields<F>;  // of words, once they hold fields

inline constexpr uint32_t kLowBits = 0x33333333u;  // of 4-bit fields: 2 bits
inline constexpr uint32_t kTopBits = 0x44444444u;  // and the third

inline int64_t square_bytes(Format f) { return part_bytes(f, kPageTokens); }

// The top bits of u3: where z holds a lane's 16, row 0's are z's bits 2, 6, 10, 14 in the lower
// half and 0, 4, 8, 12 in the upper one; row 1's lie one bit higher. This brings both to kTopBits.
inline WideU spread_tops(WideU z, int row) {
  return ((z | z << 18) >> static_cast<uint32_t>(row)) & kTopBits;
}

// Row w of a quantized square on the lanes of vector i, in fields of kFieldBits.
template <Format F>
inline WideU load_fields(const uint8_t* square, int w, int i) {
  constexpr bool kSplit = F == Format::kU2 || F == Format::kU3;
  WideU words;
  std::memcpy(&words, square + (kSplit ? 0 : w * 64) + i * 4 * kWideLanes, sizeof(words));
  if constexpr (kSplit) words = (words >> static_cast<uint32_t>(2 * w)) & kLowBits;
  if constexpr (F == Format::kU3) {
    typedef uint16_t Tops __attribute__((vector_size(2 * kWideLanes)));
    Tops z;
    std::memcpy(&z, square + 64 + i * 2 * kWideLanes, sizeof(z));
    words |= spread_tops(__builtin_convertvector(z, WideU), w);
  }
  return words;
}

inline WideF to_floats(WideU codes) {
  return __builtin_convertvector(__builtin_convertvector(codes, WideI), WideF);
}

// The type of a float format's elements.
template <Format F>
using Element =
    std::conditional_t<F == Format::kF16, f16, std::conditional_t<F == Format::kBF16, bf16, float>>;

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

// Codes (or values, of a float format) of one square: element (term, lane) to out[term * stride +
// lane].
inline void unpack_square(Format format, const uint8_t* square, float* out, int64_t stride) {
  dispatch_format(format, [&](auto tag) {
    constexpr Format kFormat = decltype(tag)::value;
    for (int i = 0; i < kSquareVecs; ++i) {
      float* at = out + i * kWideLanes;
      if constexpr (is_quantized(kFormat)) {
        constexpr uint32_t kMask = (1u << kFieldBits<kFormat>)-1;
        for (int w = 0; w < kSquareRows<kFormat>; ++w) {
          WideU fields = load_fields<kFormat>(square, w, i);
          for (int k = 0; k < kFields<kFormat>; ++k) {
            const int term = 2 * (w * kFields<kFormat> + k);
            store(at + term * stride, to_floats(fields & kMask));
            store(at + (term + 1) * stride, to_floats((fields >> 16) & kMask));
            fields >>= kFieldBits<kFormat>;
          }
        }
      } else {
        const auto* from = reinterpret_cast<const Element<kFormat>*>(square) + i * kWideLanes;
        for (int term = 0; term < kPageTokens; ++term)
          store(at + term * stride, load_wide(from + term * kPageTokens));
      }
    }
  });
}

// K of one page to k_t (head_dim, stride), V to v (16, head_dim).
inline void unpack_keys(Format format, const uint8_t* part, int head_dim, float* k_t,
                        int64_t stride) {
  for (int64_t c = 0; c < head_dim; c += kPageTokens)
    unpack_square(format, part + c / kPageTokens * square_bytes(format), k_t + c * stride, stride);
}
inline void unpack_values(Format format, const uint8_t* part, int head_dim, float* v) {
  for (int64_t c = 0; c < head_dim; c += kPageTokens)
    unpack_square(format, part + c / kPageTokens * square_bytes(format), v + c, head_dim);
}

// The codes of one square, before they are packed.
struct SquareCodes {
  uint32_t at[kPageTokens][kPageTokens];  // (term, lane)
};

// Writes one square of a quantized part.
inline void pack_square(Format format, uint8_t* square, const SquareCodes& codes) {
  dispatch_format(format, [&](auto tag) {
    constexpr Format kFormat = decltype(tag)::value;
    if constexpr (!is_quantized(kFormat)) {
      throw Error(ErrorCode::kInternal, "pack_square: not a quantized format");
    } else {
      constexpr int kFieldsOfRow = kFields<kFormat>;
      uint32_t rows[kSquareRows<kFormat>][kPageTokens];
      for (int row = 0; row < kSquareRows<kFormat>; ++row)
        for (int i = 0; i < kPageTokens; i += kLanes) {
          VecU word = {};
          ZC_UNROLL for (int k = 0; k < 2 * kFieldsOfRow; ++k) {
            VecU code;
            std::memcpy(&code, codes.at[row * 2 * kFieldsOfRow + k] + i, sizeof(code));
            word |= code << static_cast<uint32_t>(k % 2 * 16 + k / 2 * kFieldBits<kFormat>);
          }
          std::memcpy(rows[row] + i, &word, sizeof(word));
        }
      if constexpr (kFormat == Format::kU4 || kFormat == Format::kU8) {
        std::memcpy(square, rows, sizeof(rows));
      } else {
        for (int lane = 0; lane < kPageTokens; ++lane) {
          const uint32_t low = (rows[0][lane] & kLowBits) | (rows[1][lane] & kLowBits) << 2;
          std::memcpy(square + lane * 4, &low, sizeof(low));
          if constexpr (kFormat == Format::kU3) {
            const uint32_t top = (rows[0][lane] & kTopBits) | (rows[1][lane] & kTopBits) << 1;
            const uint16_t z = static_cast<uint16_t>(top | top >> 18);
            std::memcpy(square + 64 + lane * 2, &z, sizeof(z));
          }
        }
      }
    }
  });
}

// A segment of one (layer, kv head) with its addresses resolved. Every address is checked against
// the pool and the table when a view is made: they are data, written from outside.
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
  // The squares of 16 channels from c on.
  uint8_t* k_square(int64_t index, int64_t c) const {
    return k_part(index) + c / kPageTokens * square_bytes(segment.k_format);
  }
  uint8_t* v_square(int64_t index, int64_t c) const {
    return v_part(index) + c / kPageTokens * square_bytes(segment.v_format);
  }
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

  bool stored_like(const SegmentView& other) const {
    return segment.k_format == other.segment.k_format && segment.v_format == other.segment.v_format;
  }

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
    int64_t salient = 0;
    int64_t i = 0;
    for (; i + 64 <= span; i += 64) {
      uint64_t bits;
      std::memcpy(&bits, bitmap() + i / 8, sizeof(bits));
      salient += std::popcount(bits);
    }
    for (; i < span; ++i) salient += (bitmap()[i >> 3] >> (i & 7)) & 1;
    return static_cast<int>(segment.span > 0 ? salient : span - salient);
  }
};

inline void check_inside(bool good, int layer, int kv_head, int index) {
  ZC_CHECK(good, ErrorCode::kArgument,
           "table: layer %d, kv head %d, segment %d points outside the pool", layer, kv_head,
           index);
}

// The view of a segment of which few pages are read, by those who call check_pages for them.
inline SegmentView view_header(const int32_t* table, int64_t table_words, const TensorView& pool,
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
  view.pool = pool.as<uint8_t>();
  view.head_dim = head_dim;
  view.v_offset = part_bytes(s.k_format, head_dim);
  view.params_offset = view.v_offset + part_bytes(s.v_format, head_dim);
  const auto inside = [&](int64_t unit, int64_t bytes) {
    return unit >= 0 && unit * kPageUnitBytes + bytes <= pool.size(0);
  };
  bool good = s.n_tokens == 0 ||
              (s.pages_begin >= 0 && int64_t{s.pages_begin} + view.n_pages() <= table_words);
  view.pages = good && s.n_tokens > 0 ? table + s.pages_begin : nullptr;
  if (good && (view.k_quantized() || view.v_quantized()))
    good = inside(s.params_unit, params_bytes(head_dim));
  if (good && view.has_bitmap()) good = inside(s.bitmap_unit, (std::abs(int64_t{s.span}) + 7) / 8);
  check_inside(good, layer, kv_head, index);
  return view;
}

// That pages [first, end) of a segment lie in the pool.
inline void check_pages(const SegmentView& view, const TensorView& pool, int layer, int kv_head,
                        int index, int64_t first, int64_t end) {
  const Segment& s = view.segment;
  const int64_t last = pool.size(0) - page_bytes(s.k_format, s.v_format, view.head_dim);
  bool good = true;
  for (int64_t p = first; p < end; ++p)
    good = good && view.pages[p] >= 0 && int64_t{view.pages[p]} * kPageUnitBytes <= last;
  check_inside(good, layer, kv_head, index);
}

inline SegmentView view_segment(const int32_t* table, int64_t table_words, const TensorView& pool,
                                int layer, int kv_head, int index, int head_dim) {
  const SegmentView view = view_header(table, table_words, pool, layer, kv_head, index, head_dim);
  check_pages(view, pool, layer, kv_head, index, 0, view.n_pages());
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
