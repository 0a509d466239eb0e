// Where the states of recurrent layers lie. Tables are data, written from outside: all of a call's
// are checked before one page is written.
namespace zc::cpu {
namespace ZC_ISA {

// The words of a layer in a sequence's state table; null for a masked sequence.
template <typename Args>
inline const int32_t* state_words(const Args& a, int64_t seq, int64_t n_heads) {
  const int64_t start = a.states.template as<int32_t>()[seq];
  if (start == -1) return nullptr;
  const int64_t first = start + state_word(a.layer, n_heads);
  ZC_CHECK(start >= 0 && first + 1 + n_heads <= a.tables.size(0), ErrorCode::kArgument,
           "states: sequence %lld begins at word %lld, expected -1 or a table with layer %d within "
           "%lld words",
           static_cast<long long>(seq), static_cast<long long>(start), a.layer,
           static_cast<long long>(a.tables.size(0)));
  return a.tables.template as<int32_t>() + first;
}

inline float* state_page(const TensorView& pool, int32_t address, int64_t bytes) {
  const int64_t at = int64_t{address} * kPageUnitBytes;
  ZC_CHECK(at >= 0 && at + bytes <= pool.size(0), ErrorCode::kArgument,
           "tables: state page %d lies outside the pool", address);
  return reinterpret_cast<float*>(pool.as<uint8_t>() + at);
}

// The pages that words[first] to words[first + n_pages - 1] of every sequence name, each of so many
// bytes.
template <typename Args>
inline void check_state_pages(const Args& a, int64_t n_heads, int64_t first, int64_t n_pages,
                              int64_t bytes) {
  for (int64_t seq = 0; seq < a.states.size(0); ++seq) {
    const int32_t* words = state_words(a, seq, n_heads);
    if (!words) continue;
    for (int64_t i = 0; i < n_pages; ++i) state_page(a.pool, words[first + i], bytes);
  }
}

}  // namespace ZC_ISA
}  // namespace zc::cpu
