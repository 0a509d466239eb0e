#include <algorithm>

#include "csrc/cuda/launchers.h"
#include "csrc/cuda/linear_16.h"

namespace zc::cuda {

namespace {

int64_t padded(int64_t bytes) { return (bytes + 255) / 256 * 256; }

// Whether rows of x are a few. Of experts it is what one has on average: to widen codes of all of
// them takes as long as to read them for some more eights of rows (docs/decisions.md).
template <bool kCodes>
bool are_few(const AllRows&, int64_t x_rows) {
  return x_rows <= kFewPlanes;
}
template <bool kCodes>
bool are_few(const ExpertRows& rows, int64_t) {
  return rows.n_pairs / rows.n_experts <= (kCodes ? 64 : 8);
}

Tiling tiling_of(const Context& context, const AllRows&, int64_t m, int64_t n, int64_t k,
                 int planes, bool vectors) {
  return takes_wgmma(context, m * planes, n, k, vectors) ? hopper_result(context, m, n, k, planes)
                                                         : tile_result(context, m, n, k, planes);
}
Tiling tiling_of(const Context&, const ExpertRows& rows, int64_t, int64_t n, int64_t k, int planes,
                 bool) {
  return tile_experts(rows, n, k, planes);
}

// Codes that are widened at a time, for tiles: they stay in L2, and scratch is bounded.
#if defined(__CUDACC__)
constexpr int64_t kWidenedElements = int64_t{1} << 24;
#else
constexpr int64_t kWidenedElements = int64_t{1} << 18;  // so that small tests widen several times
#endif

// Of one matrix, or of each expert's.
int64_t widened_columns(const AllRows&, int64_t n, int64_t k) {
  const int64_t fit = kWidenedElements / std::max<int64_t>(k, 1) / 256 * 256;
  return n < fit ? n : (fit > 256 ? fit : 256);
}
int64_t widened_columns(const ExpertRows& rows, int64_t n, int64_t k) {
  constexpr int64_t kTile = 128;
  const int64_t fit = kWidenedElements / (std::max<int64_t>(k, 1) * rows.n_experts);
  return std::min(n, (fit / kTile + 1) * kTile);
}

WidenedCodes widened_of(const AllRows&, int64_t columns, int64_t, int64_t k) {
  return {columns * k, 0, 1};
}
WidenedCodes widened_of(const ExpertRows& rows, int64_t columns, int64_t n, int64_t k) {
  return {columns * k, n * k, rows.n_experts};
}

// Weights of 16 bits, and codes of 8 and 4. A few rows take x as it is; where more do not have the
// type that is multiplied, and where x does not lie as it should, planes of it are made in scratch.
// More rows take codes that were widened before. Of experts, `a` is the first one's product.
template <typename X, typename T, typename W, typename Rows>
void multiply_16(Context& context, const LinearArgs& a, const Rows& rows) {
  constexpr int planes = kPlanes<X, T>;
  constexpr bool kCodes = !std::is_same_v<W, T>;
  const int64_t m = a.x.size(0);
  const int64_t n = a.weight.size(0);
  const int64_t k = a.x.size(1);
  const int64_t x_rows = m * planes;
  const bool x_vectors = in_vectors(address_bits(a.x.data), k);
  const LinearOut out = linear_out(a);
  const auto operands = [&](const auto* weight, auto* x, int64_t stride, const float* scales) {
    using Weight = std::remove_const_t<std::remove_pointer_t<decltype(weight)>>;
    Operands<T, std::remove_pointer_t<decltype(x)>, Weight> in{};
    in.weight = weight;
    if constexpr (std::is_same_v<Weight, W>) in.grids = grids_of<W>(a);
    in.x = x;
    in.scales = scales;
    in.n = n;
    in.k = k;
    in.x_rows = x_rows;
    in.x_stride = stride;
    in.planes = planes;
    in.part_length = part_length(k);
    in.vectors = weight_in_vectors(weight, k);
    in.x_vectors = x_vectors;
    return in;
  };

  const bool few = are_few<kCodes>(rows, x_rows);
  const bool as_it_is = std::is_same_v<X, T> ? x_vectors : few;
  const int64_t stride = as_it_is ? k : (k + kVector - 1) / kVector * kVector;
  const int64_t columns = few || !kCodes ? n : widened_columns(rows, n, k);
  const bool vectors = kCodes ? in_vectors(0, k) : weight_in_vectors(a.weight.as<W>(), k);
  const auto tiling = [&](int64_t of) {
    return tiling_of(context, rows, m, of, k, planes, vectors);
  };
  const int64_t rest = n % columns;
  int64_t tiling_bytes = few ? 0 : tiling(columns).bytes;
  if (!few && rest != 0) tiling_bytes = std::max(tiling_bytes, tiling(rest).bytes);
  const int64_t scale_bytes =
      !as_it_is && kScaled<X, T> ? padded(m * part_count(k) * int64_t{sizeof(float)}) : 0;
  const int64_t plane_bytes = as_it_is ? 0 : padded(x_rows * stride * int64_t{sizeof(T)});
  const WidenedCodes most = widened_of(rows, columns, n, k);
  const int64_t widened_bytes =
      few || !kCodes ? 0 : padded(most.count * most.n * int64_t{sizeof(T)});
  auto* const scratch = static_cast<uint8_t*>(
      context.scratch(scale_bytes + plane_bytes + widened_bytes + tiling_bytes));

  const auto with_x = [&](auto* x, const float* scales) {
    if (few) {
      linear_few_rows(context, operands(a.weight.as<W>(), x, stride, scales), out, rows);
      return;
    }
    if constexpr (std::is_same_v<std::remove_pointer_t<decltype(x)>, T>) {
      uint8_t* const behind = scratch + scale_bytes + plane_bytes;
      for (int64_t first = 0; first < n; first += columns) {
        const int64_t last = first + columns < n ? first + columns : n;
        auto* const widened = reinterpret_cast<T*>(behind);
        if constexpr (kCodes)
          widen_codes(context, a.weight.as<W>() + first * k / kElementsOf<W>,
                      grids_of<W>(a).behind(first, k), widened_of(rows, last - first, n, k),
                      widened);
        auto in = operands(kCodes ? widened : a.weight.as<T>(), x, stride, scales);
        in.n = last - first;
        const Tiling own_tiling = tiling(in.n);
        const LinearOut own = columns_of(out, first, last);
        if (own_tiling.form == Tiling::Form::kWgmma)
          linear_hopper(context, in, own_tiling, behind + widened_bytes, own);
        else
          linear_tiles(context, in, own_tiling, behind + widened_bytes, own, rows);
      }
    }
  };
  if (as_it_is) {
    with_x(a.x.as<X>(), nullptr);
  } else {
    auto* const scales = kScaled<X, T> ? reinterpret_cast<float*>(scratch) : nullptr;
    auto* const x = reinterpret_cast<T*>(scratch + scale_bytes);
    linear_planes<X, T>(context, a.x, stride, x, scales);
    with_x(x, scales);
  }
}

template <typename Rows>
void multiply(Context& context, const LinearArgs& a, const Rows& rows) {
  if (a.out.length() == 0) return;
  ZC_CHECK(a.x.size(1) < 1 << 23, ErrorCode::kUnsupported, "x: rows of %lld, expected below 2^23",
           static_cast<long long>(a.x.size(1)));
  if (a.weight.dtype == DType::kF32) {
    linear_f32(context, a, rows);
    return;
  }
  dispatch_float(a.x.dtype, [&](auto type) {
    using X = typename decltype(type)::type;
    if (a.is_float4())
      multiply_16<X, CodeProduct<Float4s, X>, Float4s>(context, a, rows);
    else if (a.weight.dtype == DType::kU8)
      multiply_16<X, CodeProduct<Nibbles, X>, Nibbles>(context, a, rows);
    else if (a.weight.dtype == DType::kI8)
      multiply_16<X, CodeProduct<int8_t, X>, int8_t>(context, a, rows);
    else if (a.weight.dtype == DType::kF16)
      multiply_16<X, f16, f16>(context, a, rows);
    else
      multiply_16<X, bf16, bf16>(context, a, rows);
  });
}

}  // namespace

void linear(Context& context, const LinearArgs& a) { multiply(context, a, AllRows{}); }

void expert_linear(Context& context, const ExpertLinearArgs& a) {
  ZC_CHECK(a.n_pairs() <= INT32_MAX, ErrorCode::kUnsupported, "pairs: %lld of them",
           static_cast<long long>(a.n_pairs()));
  ExpertRows rows{};
  rows.faults = context.faults();
  rows.pairs = a.pairs.as<int32_t>();
  rows.offsets = a.offsets.as<int32_t>();
  rows.n_experts = static_cast<int>(a.n_experts());
  rows.n_pairs = static_cast<int>(a.n_pairs());
  rows.pairs_per_row = static_cast<int>(a.pairs_per_row());
  multiply(context, a.product(0), rows);
}

}  // namespace zc::cuda
