// Parameters of groups: of their extremes, or of a range that is searched for
// (math/range_search.h).
namespace zc::cpu {
namespace ZC_ISA {

// What a search needs of its bits and norm.
struct RangeSearch {
  int bits;
  int norm;  // 0: none, 2 to 6
  float last;
  float spread[kRangeCandidates] = {};
  float unit[kRangeCandidates] = {};
  double weight[kRangeCandidates] = {};

  RangeSearch(int bits_of, int norm_of) : bits(bits_of), norm(norm_of), last(range_last(bits_of)) {
    for (int i = 0; i < kRangeCandidates && norm != 0; ++i) {
      spread[i] = range_spread(i, bits);
      unit[i] = power_of_two(range_exponent(i, bits, norm));
      weight[i] = range_weight(i, bits, norm);
    }
  }
  // From sums of range_units (kRangeCandidates); of the extremes where nothing is searched.
  QuantParams params(Range full, const uint64_t* sums) const {
    const int best = best_range([&](int i) { return sums[i]; }, [&](int i) { return weight[i]; });
    return quant_params(shrink_range(full, best), bits);
  }
};

// Parameters of the group get(0) .. get(n - 1).
template <typename Get>
inline QuantParams choose_params(const Get& get, int64_t n, const RangeSearch& search) {
  Range full{INFINITY, -INFINITY};
  for (int64_t i = 0; i < n; ++i) {
    const float x = clamp_finite(get(i));
    full.lo = x < full.lo ? x : full.lo;
    full.hi = x > full.hi ? x : full.hi;
  }
  if (!(full.lo <= full.hi)) return {0.0f, 0.0f};  // empty, or nothing but NaN
  if (search.norm == 0) return quant_params(full, search.bits);
  const float inverse = range_inverse(full);
  uint64_t sums[kRangeCandidates] = {};
  for (int64_t i = 0; i < n; ++i) {
    const float x = get(i);
    if (x != x) continue;
    const float place = range_place(x, full.lo, inverse);
    for (int c = 0; c < kRangeCandidates; ++c) {
      const float error = range_error(place, search.spread[c], search.last);
      sums[c] += range_units(range_power(error, search.norm), search.unit[c]);
    }
  }
  return search.params(full, sums);
}

// clamp_finite of each lane; NaN stays.
inline VecF clamp_lanes(VecF x) {
  const VecF limit = broadcast(zc::clamp_finite(INFINITY));
  x = x > limit ? limit : x;
  return x < -limit ? -limit : x;
}

// The extremes of vectors of elements, lane by lane.
struct RangeLanes {
  VecF lo;
  VecF hi;
  RangeLanes() : lo(broadcast(INFINITY)), hi(broadcast(-INFINITY)) {}
  void add(VecF x) {  // clamped; NaN has no part in it
    lo = vmin(x, lo);
    hi = vmax(x, hi);
  }
  Range lane(int i) const { return {lo[i], hi[i]}; }
};

// Sums of range_units of vectors of elements, lane by lane.
struct ErrorLanes {
  VecF lo;
  VecF inverse;
  VecU sums[kRangeCandidates];

  ErrorLanes(VecF from, VecF across) : lo(from), inverse(across), sums{} {}
  template <int kNorm>
  void add(const RangeSearch& search, VecF x) {
    const VecF share = vmin(vmax((x - lo) * inverse, VecF{}), broadcast(1.0f));
    const VecF from_middle = (share + broadcast(kRoundsPlace)) - broadcast(kRoundsPlace + 0.5f);
    const VecF place = vmax(from_middle, -from_middle);
    const VecI counts = x == x;  // NaN has no error
    ZC_UNROLL for (int c = 0; c < kRangeCandidates; ++c) {
      const VecF code = fma(place, broadcast(search.spread[c]), broadcast(-0.5f));
      const VecF nearest =
          vmin((code + broadcast(kRoundsCode)) - broadcast(kRoundsCode), broadcast(search.last));
      const VecF difference = code - nearest;
      const VecF error = kNorm % 2 == 0 ? difference : vmax(difference, -difference);
      const VecF square = error * error;
      const VecF even = kNorm < 4 ? square : kNorm < 6 ? square * square : square * square * square;
      const VecF power = kNorm % 2 == 0 ? even : even * error;
      const VecF units = fma(power, broadcast(search.unit[c]), broadcast(kRoundsCode));
      VecU whole;
      std::memcpy(&whole, &units, sizeof(whole));
      sums[c] += (whole - float_to_bits(kRoundsCode)) & reinterpret_cast<VecU>(counts);
    }
  }
};

// Parameters of kLanes groups, a lane each: of vectors x(0) .. x(n - 1), with their extremes.
template <typename Get>
inline void choose_lane_params(const Get& x, int64_t n, const RangeLanes& ranges,
                               const RangeSearch& search, QuantParams* params) {
  uint64_t sums[kLanes][kRangeCandidates] = {};
  if (search.norm != 0) {
    float inverse[kLanes];
    for (int i = 0; i < kLanes; ++i) inverse[i] = range_inverse(ranges.lane(i));
    ErrorLanes errors(ranges.lo, load(inverse));
    for (int64_t first = 0; first < n; first += kRangeTogether) {
      const int64_t last = first + kRangeTogether < n ? first + kRangeTogether : n;
      with_norm(search.norm, [&](auto norm) {
        for (int64_t i = first; i < last; ++i) errors.add<decltype(norm)::value>(search, x(i));
      });
      for (int c = 0; c < kRangeCandidates; ++c) {
        for (int i = 0; i < kLanes; ++i) sums[i][c] += errors.sums[c][i];
        errors.sums[c] = VecU{};
      }
    }
  }
  for (int i = 0; i < kLanes; ++i) {
    const Range full = ranges.lane(i);
    params[i] = full.lo <= full.hi ? search.params(full, sums[i]) : QuantParams{0.0f, 0.0f};
  }
}

// choose_params of x (n, a multiple of kLanes, at most kRangeTogether * kLanes).
inline QuantParams choose_vector_params(const float* x, int64_t n, const RangeSearch& search) {
  RangeLanes ranges;
  for (int64_t i = 0; i < n; i += kLanes) ranges.add(clamp_lanes(load(x + i)));
  Range full = ranges.lane(0);
  for (int i = 1; i < kLanes; ++i) {
    full.lo = ranges.lo[i] < full.lo ? ranges.lo[i] : full.lo;
    full.hi = ranges.hi[i] > full.hi ? ranges.hi[i] : full.hi;
  }
  if (!(full.lo <= full.hi)) return {0.0f, 0.0f};  // empty, or nothing but NaN
  if (search.norm == 0) return quant_params(full, search.bits);
  ErrorLanes errors(broadcast(full.lo), broadcast(range_inverse(full)));
  with_norm(search.norm, [&](auto norm) {
    for (int64_t i = 0; i < n; i += kLanes) errors.add<decltype(norm)::value>(search, load(x + i));
  });
  uint64_t sums[kRangeCandidates] = {};
  for (int c = 0; c < kRangeCandidates; ++c)
    for (int i = 0; i < kLanes; ++i) sums[c] += errors.sums[c][i];
  return search.params(full, sums);
}

}  // namespace ZC_ISA
}  // namespace zc::cpu
