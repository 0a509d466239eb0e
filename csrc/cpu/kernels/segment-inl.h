// Rows of K and V into pages and back.
namespace zc::cpu {
namespace ZC_ISA {

inline constexpr int kPageVecs = kPageTokens / kLanes;

// Writes the newest rows of each sequence into the tail: row i of q_len goes to slot tail_length -
// q_len + i.
template <typename T>
void append_kv_typed(const OpContext& ctx, const AppendKvArgs& a) {
  const int64_t n_kv_heads = a.k.size(1);
  const int d = static_cast<int>(a.k.size(2));
  const int64_t n_seqs = a.starts.size(0);
  const int32_t* cu = a.cu_seqlens.as<int32_t>();
  check_cu_seqlens("cuSeqlens", a.cu_seqlens, a.k.size(0));
  ctx.threads->parallel_for(n_seqs * n_kv_heads, [&](int64_t task) {
    const int64_t seq = task / n_kv_heads;
    const int kv_head = static_cast<int>(task % n_kv_heads);
    const auto [table, table_words] = sequence_table(a.tables, a.starts, seq);
    if (!table) return;
    check_table(table, table_words, a.layer, n_kv_heads);
    const SegmentView tail = view_segment(table, table_words, a.pool, a.layer, kv_head, 0, d);
    const int64_t q_len = cu[seq + 1] - cu[seq];
    ZC_CHECK(q_len <= tail.n_tokens() && !tail.k_quantized() && !tail.v_quantized(),
             ErrorCode::kArgument,
             "table: the tail has %d slots, expected at least the %lld appended rows",
             tail.n_tokens(), static_cast<long long>(q_len));
    for (int64_t i = 0; i < q_len; ++i) {
      const int64_t slot = tail.n_tokens() - q_len + i;
      const int64_t place = slot % kPageTokens;
      uint8_t* k_part = tail.k_part(slot / kPageTokens);
      uint8_t* v_part = tail.v_part(slot / kPageTokens);
      const T* k = a.k.as<T>() + ((cu[seq] + i) * n_kv_heads + kv_head) * d;
      const T* v = a.v.as<T>() + ((cu[seq] + i) * n_kv_heads + kv_head) * d;
      dispatch_format(tail.segment.k_format, [&](auto format) {
        using E = Element<decltype(format)::value>;
        E* to = reinterpret_cast<E*>(k_part) + place;
        for (int c = 0; c < d; ++c) to[c * kPageTokens] = from_float<E>(to_float(k[c]));
      });
      dispatch_format(tail.segment.v_format, [&](auto format) {
        using E = Element<decltype(format)::value>;
        E* to = reinterpret_cast<E*>(v_part) + place * kPageTokens;
        for (int c0 = 0; c0 < d; c0 += kPageTokens)
          for (int c = 0; c < kPageTokens; ++c)
            to[c0 * kPageTokens + c] = from_float<E>(to_float(v[c0 + c]));
      });
    }
  });
}

void append_kv(const OpContext& ctx, const AppendKvArgs& a) {
  dispatch_float(a.k.dtype,
                 [&](auto type) { append_kv_typed<typename decltype(type)::type>(ctx, a); });
}

// How many tokens the tail of each sequence holds from now on.
void set_tail_lengths(const OpContext&, const SetTailLengthsArgs& a) {
  for (int64_t seq = 0; seq < a.starts.size(0); ++seq) {
    const int32_t length = a.lengths.as<int32_t>()[seq];
    const SequenceTable table = sequence_table(a.tables, a.starts, seq);
    if (!table.words) continue;
    ZC_CHECK(length >= 0, ErrorCode::kArgument, "lengths: %d, expected 0 or more", length);
    const_cast<int32_t*>(table.words)[kTableTailLength] = length;
  }
}

// Pages that two sequences share until one of them writes.
void copy_pages(const OpContext& ctx, const CopyPagesArgs& a) {
  const int64_t n = a.from.size(0);
  const auto page = [&](const TensorView& addresses, int64_t i) {
    const int64_t at = int64_t{addresses.as<int32_t>()[i]} * kPageUnitBytes;
    ZC_CHECK(at >= 0 && at + a.page_bytes <= a.pool.size(0), ErrorCode::kArgument,
             "%s: page %d lies outside the pool", &addresses == &a.from ? "from" : "to",
             addresses.as<int32_t>()[i]);
    return a.pool.as<uint8_t>() + at;
  };
  for (int64_t i = 0; i < n; ++i) page(a.from, i), page(a.to, i);
  ctx.threads->parallel_for(n, [&](int64_t i) {
    std::memmove(page(a.to, i), page(a.from, i), static_cast<size_t>(a.page_bytes));
  });
}

// That a table holds n_kv_heads KV heads, those of whole layers from `layer` on.
inline void check_heads(const TensorView& table, int layer, int64_t n_kv_heads) {
  const int32_t* words = table.as<int32_t>();
  const int32_t of_layer = words[kTableKvHeads];
  const int64_t n_layers = words[kTableLayers];
  ZC_CHECK(of_layer > 0 && n_kv_heads % of_layer == 0 && n_kv_heads / of_layer <= n_layers - layer,
           ErrorCode::kArgument,
           "table: has %lld layers and %d kv heads, expected whole layers of %lld kv heads from "
           "layer %d on",
           static_cast<long long>(n_layers), of_layer, static_cast<long long>(n_kv_heads), layer);
  check_table(words, table.size(0), layer, of_layer);
}

// A segment that may be read: one that the table counts.
inline SegmentView listed_segment(const TensorView& pool, const TensorView& table, int layer,
                                  int kv_head, int segment, int head_dim) {
  const int32_t* words = table.as<int32_t>();
  const int count = checked_segment_count(words, layer, kv_head);
  ZC_CHECK(segment < count, ErrorCode::kArgument,
           "segment: is %d, expected less than the table's %d", segment, count);
  return view_segment(words, table.size(0), pool, layer, kv_head, segment, head_dim);
}

// A segment that may be written. Not against the segment count: a segment is written first and
// counted, which makes it visible, afterwards.
inline SegmentView reserved_segment(const TensorView& pool, const TensorView& table, int layer,
                                    int kv_head, int segment, int head_dim) {
  const int32_t* words = table.as<int32_t>();
  ZC_CHECK(segment < words[kTableMaxSegments], ErrorCode::kArgument,
           "segment: is %d, expected less than the table's %d", segment, words[kTableMaxSegments]);
  return view_segment(words, table.size(0), pool, layer, kv_head, segment, head_dim);
}

inline void set_bit(uint8_t* bitmap, int64_t i) {
  bitmap[i >> 3] = static_cast<uint8_t>(bitmap[i >> 3] | 1u << (i & 7));
}

// The rows of one kv head that a segment takes, in the order of its slots.
inline const int32_t* checked_ids(const PackSegmentArgs& a, const SegmentView& view, int kv_head) {
  const int64_t n = a.ids.size(1);
  const int32_t* ids = a.ids.as<int32_t>() + kv_head * n;
  ZC_CHECK(view.n_tokens() == n, ErrorCode::kArgument,
           "ids: %lld tokens, expected the segment's %d", static_cast<long long>(n),
           view.n_tokens());
  for (int64_t i = 0; i < n; ++i)
    ZC_CHECK(ids[i] >= 0 && ids[i] < a.k.size(0) && (i == 0 || ids[i] > ids[i - 1]),
             ErrorCode::kArgument, "ids: must rise from 0 to below %lld",
             static_cast<long long>(a.k.size(0)));
  if (view.has_bitmap())
    ZC_CHECK(std::abs(int64_t{view.segment.span}) == a.k.size(0), ErrorCode::kArgument,
             "table: the segment's bitmap spans %d, expected one bit for each of %lld rows",
             view.segment.span, static_cast<long long>(a.k.size(0)));
  return ids;
}

// quant_code of each lane, the same codes: held between 0 and the last before it is rounded, which
// changes nothing and lets an addition do the rounding.
struct LaneGrid {
  VecF zero;
  VecF inverse;
  VecF levels;
  LaneGrid(VecF zeros, VecF inverses, int bits)
      : zero(zeros), inverse(inverses), levels(broadcast(static_cast<float>((1 << bits) - 1))) {}
  LaneGrid(QuantParams p, int bits)
      : LaneGrid(broadcast(p.zero), broadcast(quant_inverse(p.scale)), bits) {}
  VecU codes(VecF x) const {
    const VecF code = vmax((clamp_lanes(x) - zero) * inverse, VecF{});  // NaN too
    const VecF rounded = vmin(code, levels) + 12582912.0f;  // 1.5 * 2^23: rounds to an integer
    VecU bits;
    std::memcpy(&bits, &rounded, sizeof(bits));
    return bits & 0xffu;
  }
};

// Rows of K and V asked for in advance while channels are packed.
inline constexpr int64_t kRowsAhead = 16;

// Quantizes selected rows into a segment's pages: K channelwise, V channel-separable tokenwise
// (ZipCache, arXiv 2405.14256, Algs. 1 and 2). Two passes: one task a block of 16 channels (K's
// codes; V's normalisers), then one task a page (V's codes). Slots beyond the last token count as
// NaN, which has no part in a range and the code 0.
template <typename T>
void pack_segment_typed(const OpContext& ctx, const PackSegmentArgs& a) {
  const int64_t n_kv_heads = a.k.size(1);
  const int d = static_cast<int>(a.k.size(2));
  const int64_t n = a.ids.size(1);
  check_heads(a.table, a.layer, n_kv_heads);
  const auto view_of = [&](int kv_head) {
    return reserved_segment(a.pool, a.table, a.layer, kv_head, a.segment, d);
  };
  for (int h = 0; h < n_kv_heads; ++h) {
    const SegmentView view = view_of(h);
    ZC_CHECK(view.k_quantized() && view.v_quantized(), ErrorCode::kUnsupported,
             "segment: an unquantized one cannot be packed, expected 2, 3, 4 or 8 bits");
    const int32_t* ids = checked_ids(a, view, h);
    if (view.segment.span > 0) {  // the salient segment writes the bitmap that both classes share
      std::memset(view.bitmap(), 0, static_cast<size_t>((view.segment.span + 7) / 8));
      for (int64_t i = 0; i < n; ++i) set_bit(view.bitmap(), ids[i]);
    }
  }

  const int64_t channel_blocks = d / 16;
  const int64_t n_pages = (n + kPageTokens - 1) / kPageTokens;
  const int64_t n_padded = n_pages * kPageTokens;
  ctx.threads->parallel_for(n_kv_heads * channel_blocks, [&](int64_t task) {
    const int kv_head = static_cast<int>(task / channel_blocks);
    const int64_t c0 = task % channel_blocks * 16;
    const SegmentView view = view_of(kv_head);
    const int32_t* ids = a.ids.as<int32_t>() + kv_head * n;
    const RangeSearch search(format_bits(view.segment.k_format), a.k_norm);
    const auto row = [&](const TensorView& from, int64_t i) {
      return from.as<T>() + (ids[i] * n_kv_heads + kv_head) * d + c0;
    };
    float* keys = thread_scratch(0, static_cast<size_t>(n_padded) * 16);  // (n_padded, 16)
    RangeLanes ranges[kPageVecs];
    VecF largest[kPageVecs] = {};  // |V| of each channel
    for (int64_t i = 0; i < n; ++i) {
      // Rows lie n_kv_heads * head_dim apart, too far for the machine to fetch them unasked.
      if (i + kRowsAhead < n) {
        __builtin_prefetch(row(a.k, i + kRowsAhead));
        __builtin_prefetch(row(a.v, i + kRowsAhead));
      }
      for (int c = 0; c < kPageVecs; ++c) {
        const VecF x = load(row(a.k, i) + c * kLanes);
        store(keys + i * 16 + c * kLanes, x);
        ranges[c].add(clamp_lanes(x));
        const VecF y = clamp_lanes(load(row(a.v, i) + c * kLanes));
        largest[c] = vmax(vmax(y, -y), largest[c]);
      }
    }
    std::fill(keys + n * 16, keys + n_padded * 16, NAN);
    QuantParams params[16];
    float zeros[16];
    float inverses[16];
    for (int c = 0; c < kPageVecs; ++c)
      choose_lane_params([&](int64_t i) { return load(keys + i * 16 + c * kLanes); }, n, ranges[c],
                         search, params + c * kLanes);
    for (int c = 0; c < 16; ++c) {
      view.channel_params(0)[c0 + c] = to_f16(params[c].scale);
      view.channel_params(1)[c0 + c] = to_f16(params[c].zero);
      view.channel_params(2)[c0 + c] = to_f16(channel_normalizer(largest[c / kLanes][c % kLanes]));
      zeros[c] = params[c].zero;
      inverses[c] = quant_inverse(params[c].scale);
    }
    for (int64_t page = 0; page < n_pages; ++page) {
      SquareCodes codes;
      for (int c = 0; c < 16; c += kLanes) {
        const LaneGrid grid(load(zeros + c), load(inverses + c), search.bits);
        for (int t = 0; t < kPageTokens; t += kLanes) {
          VecF block[kLanes];  // codes as they lie: tokens, which become channels
          ZC_UNROLL for (int i = 0; i < kLanes; ++i) {
            const VecU code = grid.codes(load(keys + (page * kPageTokens + t + i) * 16 + c));
            std::memcpy(&block[i], &code, sizeof(code));
          }
          transpose(block);
          ZC_UNROLL for (int i = 0; i < kLanes; ++i)
              std::memcpy(&codes.at[c + i][t], &block[i], sizeof(block[i]));
        }
      }
      pack_square(view.segment.k_format, view.k_square(page, c0), codes);
    }
  });

  ctx.threads->parallel_for(n_kv_heads * n_pages, [&](int64_t task) {
    const int kv_head = static_cast<int>(task / n_pages);
    const int64_t page = task % n_pages;
    const SegmentView view = view_of(kv_head);
    const int32_t* ids = a.ids.as<int32_t>() + kv_head * n;
    const RangeSearch search(format_bits(view.segment.v_format), a.v_norm);
    float inverse[kMaxHeadDim];  // of the channel normalisers
    for (int c = 0; c < d; ++c) inverse[c] = 1.0f / to_float(view.channel_params(2)[c]);
    SquareCodes squares[kMaxHeadDim / kPageTokens];
    for (int64_t t = 0; t < kPageTokens; ++t) {
      const int64_t slot = page * kPageTokens + t;
      float value[kMaxHeadDim];
      if (slot < n) {
        widen(a.v.as<T>() + (ids[slot] * n_kv_heads + kv_head) * d, value, d);
        for (int c = 0; c < d; ++c) value[c] = value[c] * inverse[c];
      } else {
        std::fill(value, value + d, NAN);
      }
      const QuantParams p = choose_vector_params(value, d, search);
      const LaneGrid grid(p, search.bits);
      for (int c = 0; c < d; c += kLanes) {
        const VecU codes = grid.codes(load(value + c));
        std::memcpy(&squares[c / kPageTokens].at[t][c % kPageTokens], &codes, sizeof(codes));
      }
      view.token_scale(page)[t] = to_f16(p.scale);
      view.token_zero(page)[t] = to_f16(p.zero);
    }
    for (int64_t c0 = 0; c0 < d; c0 += kPageTokens)
      pack_square(view.segment.v_format, view.v_square(page, c0), squares[c0 / kPageTokens]);
  });
}

void pack_segment(const OpContext& ctx, const PackSegmentArgs& a) {
  dispatch_float(a.k.dtype,
                 [&](auto type) { pack_segment_typed<typename decltype(type)::type>(ctx, a); });
}

void pack_segments(const OpContext& ctx, const PackSegmentsArgs& a) {
  for (int i = 0; i < a.n_classes; ++i) pack_segment(ctx, a.one(i));
}

// Calls body(slot, position) for every token of a segment, in order.
template <typename Body>
inline void each_slot(const SegmentView& view, const Body& body) {
  if (!view.has_bitmap()) {
    for (int slot = 0; slot < view.n_tokens(); ++slot)
      body(slot, int64_t{view.segment.start} + slot);
    return;
  }
  int slot = 0;
  const int64_t span = std::abs(int64_t{view.segment.span});
  for (int64_t i = 0; i < span && slot < view.n_tokens(); ++i)
    if (view.holds(i)) body(slot++, view.segment.start + i);
  ZC_CHECK(slot == view.n_tokens(), ErrorCode::kArgument,
           "table: the bitmap holds %d tokens of the segment's %d", slot, view.n_tokens());
}

// Values of one page, dequantized: k and v (16, head_dim).
inline void dequantize_page(const SegmentView& view, int64_t page, float* k, float* v) {
  const int d = view.head_dim;
  for (int c0 = 0; c0 < d; c0 += kPageTokens) {
    float square[kPageTokens * kPageTokens];  // (channel, token)
    unpack_square(view.segment.k_format, view.k_square(page, c0), square, kPageTokens);
    for (int c = 0; c < kPageTokens && view.k_quantized(); ++c) {
      const VecF scale = broadcast(to_float(view.channel_params(0)[c0 + c]));
      const VecF zero = broadcast(to_float(view.channel_params(1)[c0 + c]));
      for (int t = 0; t < kPageTokens; t += kLanes) {
        float* at = square + c * kPageTokens + t;
        store(at, load(at) * scale + zero);
      }
    }
    for (int c = 0; c < kPageTokens; c += kLanes)
      for (int t = 0; t < kPageTokens; t += kLanes) {
        VecF block[kLanes];
        ZC_UNROLL for (int i = 0; i < kLanes; ++i) block[i] =
            load(square + (c + i) * kPageTokens + t);
        transpose(block);
        ZC_UNROLL for (int i = 0; i < kLanes; ++i) store(k + (t + i) * d + c0 + c, block[i]);
      }
  }
  unpack_values(view.segment.v_format, view.v_part(page), d, v);
  for (int t = 0; t < kPageTokens && view.v_quantized(); ++t) {
    const VecF scale = broadcast(to_float(view.token_scale(page)[t]));
    const VecF zero = broadcast(to_float(view.token_zero(page)[t]));
    for (int c = 0; c < d; c += kLanes) {
      float* at = v + t * d + c;
      store(at, (load(at) * scale + zero) * load(view.channel_params(2) + c));
    }
  }
}

// Pages back to rows, each token at its position.
template <typename T>
void unpack_segment_typed(const OpContext& ctx, const UnpackSegmentArgs& a) {
  const int64_t rows = a.k.size(0);
  const int64_t n_kv_heads = a.k.size(1);
  const int d = static_cast<int>(a.k.size(2));
  check_heads(a.table, a.layer, n_kv_heads);
  ctx.threads->parallel_for(n_kv_heads, [&](int64_t kv_head) {
    const SegmentView view =
        listed_segment(a.pool, a.table, a.layer, static_cast<int>(kv_head), a.segment, d);
    float* k = thread_scratch(0, static_cast<size_t>(kPageTokens) * d);
    float* v = thread_scratch(1, static_cast<size_t>(kPageTokens) * d);
    each_slot(view, [&](int slot, int64_t position) {
      const int t = slot % kPageTokens;
      if (t == 0) dequantize_page(view, slot / kPageTokens, k, v);
      const int64_t row = position - a.base;
      ZC_CHECK(row >= 0 && row < rows, ErrorCode::kArgument,
               "k: position %lld has no row, expected rows %d to %lld",
               static_cast<long long>(position), a.base, static_cast<long long>(a.base + rows - 1));
      const int64_t at = (row * n_kv_heads + kv_head) * d;
      narrow(k + t * d, a.k.as<T>() + at, d);
      narrow(v + t * d, a.v.as<T>() + at, d);
    });
  });
}

void unpack_segment(const OpContext& ctx, const UnpackSegmentArgs& a) {
  dispatch_float(a.k.dtype,
                 [&](auto type) { unpack_segment_typed<typename decltype(type)::type>(ctx, a); });
}

// A packed segment against the tokens of an exported content.
inline void check_content(const SegmentView& view, int64_t n) {
  ZC_CHECK(view.n_tokens() == n && view.k_quantized() && view.v_quantized(), ErrorCode::kArgument,
           "kCodes: %lld tokens, expected the segment's %d, quantized", static_cast<long long>(n),
           view.n_tokens());
}

// The logical content of a packed segment: codes, parameters and positions, the same on every
// backend.
void export_segment(const OpContext& ctx, const ExportSegmentArgs& a) {
  const int64_t n_kv_heads = a.k_codes.size(0);
  const int64_t n = a.k_codes.size(1);
  const int d = static_cast<int>(a.k_codes.size(2));
  check_heads(a.table, a.layer, n_kv_heads);
  ctx.threads->parallel_for(n_kv_heads, [&](int64_t kv_head) {
    const SegmentView view =
        listed_segment(a.pool, a.table, a.layer, static_cast<int>(kv_head), a.segment, d);
    check_content(view, n);
    float* k_t = thread_scratch(0, static_cast<size_t>(kPageTokens) * d);
    float* v = thread_scratch(1, static_cast<size_t>(kPageTokens) * d);
    for (int c = 0; c < d; ++c) {
      a.k_params.as<float>()[(kv_head * 2 + 0) * d + c] = to_float(view.channel_params(0)[c]);
      a.k_params.as<float>()[(kv_head * 2 + 1) * d + c] = to_float(view.channel_params(1)[c]);
      a.v_channel.as<float>()[kv_head * d + c] = to_float(view.channel_params(2)[c]);
    }
    each_slot(view, [&](int slot, int64_t position) {
      const int t = slot % kPageTokens;
      const int64_t page = slot / kPageTokens;
      if (t == 0) {
        unpack_keys(view.segment.k_format, view.k_part(page), d, k_t, kPageTokens);
        unpack_values(view.segment.v_format, view.v_part(page), d, v);
      }
      for (int c = 0; c < d; ++c) {
        a.k_codes.as<uint8_t>()[(kv_head * n + slot) * d + c] =
            static_cast<uint8_t>(k_t[c * kPageTokens + t]);
        a.v_codes.as<uint8_t>()[(kv_head * n + slot) * d + c] = static_cast<uint8_t>(v[t * d + c]);
      }
      a.v_params.as<float>()[(kv_head * 2 + 0) * n + slot] = to_float(view.token_scale(page)[t]);
      a.v_params.as<float>()[(kv_head * 2 + 1) * n + slot] = to_float(view.token_zero(page)[t]);
      a.positions.as<int32_t>()[kv_head * n + slot] = static_cast<int32_t>(position);
    });
  });
}

// The positions of one kv head into the bitmap, where the segment has one that it writes, and
// against it.
inline void import_positions(const SegmentView& view, const int32_t* positions) {
  const int n = view.n_tokens();
  const int64_t start = view.segment.start;
  if (view.segment.span > 0) {
    std::memset(view.bitmap(), 0, static_cast<size_t>((int64_t{view.segment.span} + 7) / 8));
    for (int slot = 0; slot < n; ++slot) {
      const int64_t i = positions[slot] - start;
      ZC_CHECK(i >= 0 && i < view.segment.span, ErrorCode::kArgument,
               "positions: %d, expected %lld to %lld", positions[slot],
               static_cast<long long>(start),
               static_cast<long long>(start + view.segment.span - 1));
      set_bit(view.bitmap(), i);
    }
  }
  each_slot(view, [&](int slot, int64_t position) {
    ZC_CHECK(positions[slot] == position, ErrorCode::kArgument,
             "positions: slot %d holds %d, expected ascending ones of the segment's, here %lld",
             slot, positions[slot], static_cast<long long>(position));
  });
}

// The inverse of export_segment.
void import_segment(const OpContext& ctx, const ImportSegmentArgs& a) {
  const int64_t n_kv_heads = a.k_codes.size(0);
  const int64_t n = a.k_codes.size(1);
  const int d = static_cast<int>(a.k_codes.size(2));
  check_heads(a.table, a.layer, n_kv_heads);
  const auto view_of = [&](int64_t kv_head) {
    return reserved_segment(a.pool, a.table, a.layer, static_cast<int>(kv_head), a.segment, d);
  };
  for (int64_t h = 0; h < n_kv_heads; ++h) {
    const SegmentView view = view_of(h);
    check_content(view, n);
    import_positions(view, a.positions.as<int32_t>() + h * n);
  }
  const auto half = [](const char* name, float x) {
    const f16 h = to_f16(x);
    ZC_CHECK(std::isfinite(to_float(h)) && to_float(h) == x, ErrorCode::kArgument,
             "%s: holds %g, expected numbers of float16", name, static_cast<double>(x));
    return h;
  };
  // The code of an element; slots beyond the last token get 0, as in pack_segment.
  const auto code = [&](const char* name, const TensorView& codes, Format format, int64_t kv_head,
                        int64_t slot, int64_t c) {
    if (slot >= n) return 0u;
    const uint32_t value = codes.as<uint8_t>()[(kv_head * n + slot) * d + c];
    ZC_CHECK(value < 1u << format_bits(format), ErrorCode::kArgument,
             "%s: holds %u, expected codes of %d bits", name, value, format_bits(format));
    return value;
  };
  ctx.threads->parallel_for(n_kv_heads, [&](int64_t kv_head) {
    const SegmentView view = view_of(kv_head);
    const Segment& s = view.segment;
    for (int c = 0; c < d; ++c) {
      view.channel_params(0)[c] = half("kParams", a.k_params.as<float>()[kv_head * 2 * d + c]);
      view.channel_params(1)[c] =
          half("kParams", a.k_params.as<float>()[(kv_head * 2 + 1) * d + c]);
      view.channel_params(2)[c] = half("vChannel", a.v_channel.as<float>()[kv_head * d + c]);
    }
    for (int64_t page = 0; page < view.n_pages(); ++page) {
      const int64_t slot0 = page * kPageTokens;
      for (int c0 = 0; c0 < d; c0 += kPageTokens) {
        SquareCodes keys;
        SquareCodes values;
        for (int t = 0; t < kPageTokens; ++t)
          for (int c = 0; c < kPageTokens; ++c) {
            keys.at[c][t] = code("kCodes", a.k_codes, s.k_format, kv_head, slot0 + t, c0 + c);
            values.at[t][c] = code("vCodes", a.v_codes, s.v_format, kv_head, slot0 + t, c0 + c);
          }
        pack_square(s.k_format, view.k_square(page, c0), keys);
        pack_square(s.v_format, view.v_square(page, c0), values);
      }
      for (int t = 0; t < kPageTokens; ++t) {
        const auto v_param = [&](int which) {
          if (slot0 + t >= n) return f16{0};
          return half("vParams", a.v_params.as<float>()[(kv_head * 2 + which) * n + slot0 + t]);
        };
        view.token_scale(page)[t] = v_param(0);
        view.token_zero(page)[t] = v_param(1);
      }
    }
  });
}

}  // namespace ZC_ISA
}  // namespace zc::cpu
