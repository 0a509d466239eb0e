#include "csrc/cuda/launchers.h"
#include "csrc/cuda/linear_16.h"

namespace zc::cuda {

namespace {

// Launches all products at once if they can be: a few rows of x as it is, weights of one type.
template <typename X, typename T, typename W>
bool launch_together(Context& context, const GroupedLinearArgs& a) {
  const int64_t k = a.x.size(1);
  Operands<T, X, W> in{};
  in.x = a.x.as<X>();
  in.k = k;
  in.planes = kPlanes<X, T>;
  in.x_rows = a.x.size(0) * in.planes;
  in.x_stride = k;
  in.part_length = part_length(k);
  in.vectors = true;
  in.x_vectors = in_vectors(address_bits(a.x.data), k);
  if (in.x_rows == 0 || in.x_rows > kFewPlanes || k >= 1 << 23) return false;
  if (std::is_same_v<X, T> && !in.x_vectors) return false;  // linear copies such an x first
  const LinearArgs first = a.product(0);
  Products<W> products{};
  for (int i = 0; i < a.n_products; ++i) {
    const LinearArgs own = a.product(i);
    if (own.weight.dtype != a.products[0].weight.dtype || own.is_float4() != first.is_float4())
      return false;
    in.vectors = in.vectors && weight_in_vectors(own.weight.as<W>(), k);
    products.of[products.count++] = {own.weight.as<W>(), grids_of<W>(own), own.weight.size(0), 0,
                                     linear_out(own)};
  }
  linear_few_rows(context, in, products, AllRows{});
  return true;
}

}  // namespace

void grouped_linear(Context& context, const GroupedLinearArgs& a) {
  bool done = false;
  const DType weight = a.products[0].weight.dtype;
  if (weight != DType::kF32)
    dispatch_float(a.x.dtype, [&](auto type) {
      using X = typename decltype(type)::type;
      if (a.product(0).is_float4())
        done = launch_together<X, CodeProduct<Float4s, X>, Float4s>(context, a);
      else if (weight == DType::kU8)
        done = launch_together<X, CodeProduct<Nibbles, X>, Nibbles>(context, a);
      else if (weight == DType::kI8)
        done = launch_together<X, CodeProduct<int8_t, X>, int8_t>(context, a);
      else if (weight == DType::kF16)
        done = launch_together<X, f16, f16>(context, a);
      else
        done = launch_together<X, bf16, bf16>(context, a);
    });
  for (int i = 0; i < a.n_products && !done; ++i) linear(context, a.product(i));
}

}  // namespace zc::cuda
