// The plain quantizer: codes and parameters to the bit.
#include "test/emu/ops/op_run.h"

namespace zc::test {

namespace {

const char* scheme_name(QuantScheme scheme) {
  switch (scheme) {
    case QuantScheme::kChannelwise:
      return "channelwise";
    case QuantScheme::kTokenwise:
      return "tokenwise";
    case QuantScheme::kGroupwise:
      return "groupwise";
    case QuantScheme::kCst:
      return "cst";
  }
  return "?";
}

int64_t bytes_per_row(int64_t channels, int32_t bits) {
  if (bits == 3) return (channels * 2 + 7) / 8 + (channels + 7) / 8;
  return (channels * bits + 7) / 8;
}

void quantize_there_and_back(OpRun& run, QuantScheme scheme, int32_t bits, int32_t norm,
                             DType dtype, int64_t rows, int64_t channels, int32_t group_size) {
  Shape groups = {rows};
  if (scheme == QuantScheme::kChannelwise) groups = {channels};
  if (scheme == QuantScheme::kGroupwise) groups = {rows, channels / group_size};
  const TensorView codes = run.result("codes", DType::kU8, {rows, bytes_per_row(channels, bits)});
  const TensorView scale = run.result("scale", DType::kF16, groups);
  const TensorView zero = run.result("zero", DType::kF16, groups);
  const TensorView channel =
      scheme == QuantScheme::kCst ? run.result("channel", DType::kF16, {channels}) : TensorView{};
  // Channels of different size, one of them constant.
  const TensorView x = run.floats(dtype, {rows, channels}, [&](int64_t i) {
    const int64_t c = i % channels;
    return c == 3 ? 0.5f : run.normal() * (c % 7 == 0 ? 8.0f : 1.0f) + (c % 5 == 0 ? 2.0f : 0.0f);
  });
  run.op(&Backend::quantize,
         QuantizeArgs{x, codes, scale, zero, channel, scheme, bits, group_size, norm});
  for (const DType out : kFloatDTypes)
    run.op(&Backend::dequantize,
           DequantizeArgs{codes, scale, zero, channel,
                          run.result("out", out, {rows, channels}, one_rounding(out, 5e-7)), scheme,
                          bits, group_size});
}

ZC_OP_TESTS(quantize_tests) {
  for (const QuantScheme scheme : {QuantScheme::kChannelwise, QuantScheme::kTokenwise,
                                   QuantScheme::kGroupwise, QuantScheme::kCst})
    for (const int32_t bits : {2, 3, 4, 8}) {
      const std::string name = format("quantize %s, %d bits", scheme_name(scheme), bits);
      add_op_test(name, [=](OpRun& run) {
        for (const DType dtype : kFloatDTypes)
          quantize_there_and_back(run, scheme, bits, 0, dtype, 17, 96, 32);
        quantize_there_and_back(run, scheme, bits, 0, DType::kF16, 1, 7, 7);
        quantize_there_and_back(run, scheme, bits, 0, DType::kF32, 0, 32, 32);
        quantize_there_and_back(run, scheme, bits, 0, DType::kF32, 65, 13, 13);
        run.aligned();
        quantize_there_and_back(run, scheme, bits, 0, DType::kBF16, 40, 128, 64);
      });
      add_op_test(name + ", searched", [=](OpRun& run) {
        quantize_there_and_back(run, scheme, bits, 2, DType::kF32, 33, 64, 32);
        quantize_there_and_back(run, scheme, bits, 3, DType::kF16, 9, 26, 13);
      });
    }
}

}  // namespace

}  // namespace zc::test
