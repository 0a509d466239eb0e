#include "csrc/cuda/launchers.h"
#include "csrc/cuda/linear_16.h"

namespace zc::cuda {

namespace {

int64_t padded(int64_t bytes) { return (bytes + 255) / 256 * 256; }

bool are_few(const AllRows&, int64_t x_rows) { return x_rows <= kFewPlanes; }
bool are_few(const ExpertRows& rows, int64_t) { return rows.n_pairs / rows.n_experts <= 8; }

Tiling tiling_of(const Context& context, const AllRows&, int64_t m, int64_t n, int64_t k,
                 int planes, bool vectors) {
  return takes_wgmma(context, m * planes, n, k, vectors) ? hopper_result(context, m, n, k, planes)
                                                         : tile_result(context, m, n, k, planes);
}
Tiling tiling_of(const Context&, const ExpertRows& rows, int64_t, int64_t n, int64_t k, int planes,
                 bool) {
  return tile_experts(rows, n, k, planes);
}

// Weights of 16 bits. A few rows take x as it is; where more do not have the weight's type, and
// where x does not lie as it should, planes of it are made in scratch. Of experts, `a` is the first
// one's product.
template <typename X, typename T, typename Rows>
void linear_16(Context& context, const LinearArgs& a, const Rows& rows) {
  constexpr int planes = kPlanes<X, T>;
  const int64_t m = a.x.size(0);
  const int64_t n = a.weight.size(0);
  const int64_t k = a.x.size(1);
  const int64_t x_rows = m * planes;
  const bool vectors = in_vectors(address_bits(a.weight.data), k);
  const bool x_vectors = in_vectors(address_bits(a.x.data), k);
  const LinearOut out = linear_out(a);
  const auto operands = [&](auto* x, int64_t stride, const float* scales) {
    Operands<T, std::remove_pointer_t<decltype(x)>> in{};
    in.weight = a.weight.as<T>();
    in.x = x;
    in.scales = scales;
    in.n = n;
    in.k = k;
    in.x_rows = x_rows;
    in.x_stride = stride;
    in.planes = planes;
    in.part_length = part_length(k);
    in.vectors = vectors;
    in.x_vectors = x_vectors;
    return in;
  };

  const bool few = are_few(rows, x_rows);
  const Tiling tiling = few ? Tiling{} : tiling_of(context, rows, m, n, k, planes, vectors);
  const auto multiply_tiles = [&](const Operands<T>& in, void* scratch) {
    if (tiling.form == Tiling::Form::kWgmma)
      linear_hopper(context, in, tiling, scratch, out);
    else
      linear_tiles(context, in, tiling, scratch, out, rows);
  };
  const bool as_it_is = std::is_same_v<X, T> ? x_vectors : few;
  if (as_it_is) {
    if (few)
      linear_few_rows(context, operands(a.x.as<X>(), k, nullptr), out, rows);
    else
      multiply_tiles(operands(a.x.as<T>(), k, nullptr), context.scratch(tiling.bytes));
    return;
  }

  const int64_t stride = (k + kVector - 1) / kVector * kVector;
  const int64_t scale_bytes =
      kScaled<X, T> ? padded(m * part_count(k) * int64_t{sizeof(float)}) : 0;
  const int64_t plane_bytes = padded(x_rows * stride * int64_t{sizeof(T)});
  auto* const scratch =
      static_cast<uint8_t*>(context.scratch(scale_bytes + plane_bytes + tiling.bytes));
  auto* const scales = kScaled<X, T> ? reinterpret_cast<float*>(scratch) : nullptr;
  auto* const x = reinterpret_cast<T*>(scratch + scale_bytes);
  linear_planes<X, T>(context, a.x, stride, x, scales);
  const Operands<T> in = operands(x, stride, scales);
  if (few)
    linear_few_rows(context, in, out, rows);
  else
    multiply_tiles(in, scratch + scale_bytes + plane_bytes);
}

template <typename Rows>
void multiply(Context& context, const LinearArgs& a, const Rows& rows) {
  ZC_CHECK(a.weight.dtype != DType::kI8, ErrorCode::kUnsupported,
           "weight: dtype is i8, which is multiplied on the CPU alone");
  if (a.out.length() == 0) return;
  ZC_CHECK(a.x.size(1) < 1 << 23, ErrorCode::kUnsupported, "x: rows of %lld, expected below 2^23",
           static_cast<long long>(a.x.size(1)));
  if (a.weight.dtype == DType::kF32) {
    linear_f32(context, a, rows);
    return;
  }
  dispatch_float(a.x.dtype, [&](auto type) {
    using X = typename decltype(type)::type;
    if (a.weight.dtype == DType::kF16)
      linear_16<X, f16>(context, a, rows);
    else
      linear_16<X, bf16>(context, a, rows);
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

void quantize_weight(Context&, const QuantizeWeightArgs&) {
  throw Error(ErrorCode::kUnsupported, "out: dtype is i8, which is multiplied on the CPU alone");
}

}  // namespace zc::cuda
