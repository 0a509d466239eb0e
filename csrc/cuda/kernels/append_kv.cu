#include <algorithm>

#include "csrc/cuda/aligned.h"
#include "csrc/cuda/device/floats.h"
#include "csrc/cuda/device/segment.h"
#include "csrc/cuda/launchers.h"

namespace zc::cuda {

namespace {

struct AppendRows {
  const void* k;  // (rows, n_kv_heads, head_dim) of dtype
  const void* v;
  uint8_t* pool;
  int64_t pool_bytes;
  const int32_t* tables;
  int64_t tables_words;
  const int32_t* starts;      // (n_seqs)
  const int32_t* cu_seqlens;  // (n_seqs + 1)
  int64_t rows;
  int32_t n_seqs;
  int32_t n_kv_heads;
  int32_t layer;
  DType dtype;
};

// Writes the newest rows of each sequence into its tail: row i of q_len goes to slot tail_length -
// q_len + i. Block (x, y, z) takes the rows z, z + gridDim.z, ... of sequence x and KV head y; a
// thread takes one channel of K and of V. Bound by latency when decoding (the row, table, segment
// and page address are read one after the other), by scattered 2-byte stores in a prefill.
__global__ void append_kv_kernel(FaultSink faults, AppendRows a) {
  const int seq = blockIdx.x;
  const int kv_head = blockIdx.y;
  const int channel = threadIdx.x;
  const int d = blockDim.x;
  const int64_t begin = a.cu_seqlens[seq];
  const int64_t end = a.cu_seqlens[seq + 1];
  const bool rises = (seq > 0 ? begin >= 0 : begin == 0) && begin <= end &&
                     (seq < a.n_seqs - 1 ? end <= a.rows : end == a.rows);
  if (!check_data(faults, rises, FaultReason::kSeqlens, a.rows)) return;

  int64_t row = begin + blockIdx.z;
  float k = 0.0f;
  float v = 0.0f;
  const auto load_row = [&] {
    const int64_t at = (row * a.n_kv_heads + kv_head) * d + channel;
    k = load_float(a.k, a.dtype, at);
    v = load_float(a.v, a.dtype, at);
  };
  if (row < end) load_row();  // under way while the table is read

  const SequenceTable table =
      sequence_table(faults, a.tables, a.tables_words, a.starts, seq, a.layer, a.n_kv_heads);
  if (!table.words) return;
  const SegmentView tail =
      view_segment(faults, table, a.pool, a.pool_bytes, a.layer, kv_head, 0, d);
  if (!tail.valid()) return;
  const bool fits =
      end - begin <= tail.segment.n_tokens && !tail.k_quantized() && !tail.v_quantized();
  if (!check_data(faults, fits, FaultReason::kTailSlots, tail.segment.n_tokens, end - begin))
    return;

  while (row < end) {
    const int64_t slot = tail.segment.n_tokens - (end - row);
    const int page = static_cast<int>(slot / kPageTokens);
    const int token = static_cast<int>(slot % kPageTokens);
    if (!page_inside(faults, tail, a.pool_bytes, page, a.layer, kv_head, 0)) return;
    write_float<true>(tail.k_part(page), tail.segment.k_format, d, token, channel, k);
    write_float<false>(tail.v_part(page), tail.segment.v_format, d, token, channel, v);
    row += gridDim.z;
    if (row < end) load_row();
  }
}

}  // namespace

void append_kv(Context& context, const AppendKvArgs& a) {
  const int64_t rows = a.k.size(0);
  const int64_t n_seqs = a.starts.size(0);
  const int64_t n_kv_heads = a.k.size(1);
  if (n_seqs == 0) {
    ZC_CHECK(rows == 0, ErrorCode::kArgument,
             "cuSeqlens: must rise from 0 to the number of rows, %lld",
             static_cast<long long>(rows));
    return;
  }
  if (rows > 0) check_pool(a.pool);
  const AppendRows args{a.k.data,
                        a.v.data,
                        a.pool.as<uint8_t>(),
                        a.pool.size(0),
                        a.tables.as<int32_t>(),
                        a.tables.size(0),
                        a.starts.as<int32_t>(),
                        a.cu_seqlens.as<int32_t>(),
                        rows,
                        static_cast<int32_t>(n_seqs),
                        static_cast<int32_t>(n_kv_heads),
                        a.layer,
                        a.k.dtype};
  // How long each sequence is lies on the device. One block a sequence and head when decoding; more
  // when there are rows for more, up to a few waves of the whole device.
  constexpr int64_t kRowsPerBlock = 16;
  const int64_t pairs = n_seqs * std::max<int64_t>(n_kv_heads, 1);
  const int64_t wanted = blocks_for(rows, kRowsPerBlock);
  const int64_t room = std::max<int64_t>(1, 64 * int64_t{context.n_multiprocessors} / pairs);
  const int64_t parts = std::clamp<int64_t>(wanted, 1, std::min<int64_t>(room, 1024));
  launch(
      context, &append_kv_kernel,
      dim3(blocks_for(n_seqs, 1), static_cast<unsigned>(n_kv_heads), static_cast<unsigned>(parts)),
      dim3(static_cast<unsigned>(a.k.size(2))), 0, context.faults(), args);
}

}  // namespace zc::cuda
