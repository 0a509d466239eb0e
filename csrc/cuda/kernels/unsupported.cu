// Ops whose kernels are still to be written.
#include "csrc/cuda/launchers.h"

namespace zc::cuda {

#define ZC_UNSUPPORTED(op, Args)                                                    \
  void op(Context&, const Args&) {                                                  \
    throw Error(ErrorCode::kUnsupported, "device: " #op " has no CUDA kernel yet"); \
  }
ZC_UNSUPPORTED(flash_attention, FlashAttentionArgs)
ZC_UNSUPPORTED(probe_attention, ProbeAttentionArgs)
ZC_UNSUPPORTED(select_salient, SelectSalientArgs)
ZC_UNSUPPORTED(quantize, QuantizeArgs)
ZC_UNSUPPORTED(dequantize, DequantizeArgs)
ZC_UNSUPPORTED(pack_segment, PackSegmentArgs)
ZC_UNSUPPORTED(export_segment, ExportSegmentArgs)
ZC_UNSUPPORTED(import_segment, ImportSegmentArgs)
ZC_UNSUPPORTED(mixed_attention, MixedAttentionArgs)
ZC_UNSUPPORTED(merge_attention, MergeAttentionArgs)
ZC_UNSUPPORTED(store_probes, StoreProbesArgs)
ZC_UNSUPPORTED(embedding, EmbeddingArgs)
ZC_UNSUPPORTED(rms_norm, RmsNormArgs)
ZC_UNSUPPORTED(linear, LinearArgs)
ZC_UNSUPPORTED(rope_table, RopeTableArgs)
ZC_UNSUPPORTED(rope, RopeArgs)
ZC_UNSUPPORTED(sample, SampleArgs)
ZC_UNSUPPORTED(feed_tokens, FeedTokensArgs)
ZC_UNSUPPORTED(convert, ConvertArgs)
ZC_UNSUPPORTED(gather_rows, GatherRowsArgs)
ZC_UNSUPPORTED(count_non_finite, CountNonFiniteArgs)
ZC_UNSUPPORTED(read_stream, ReadStreamArgs)
ZC_UNSUPPORTED(multiply_add, MultiplyAddArgs)
#undef ZC_UNSUPPORTED

}  // namespace zc::cuda
