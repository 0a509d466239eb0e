#include "csrc/cuda/device/floats.h"
#include "csrc/cuda/tail.h"
#include "csrc/cuda/launchers.h"

namespace zc::cuda {

namespace {

struct AppendRows {
  AppendPlace place;
  const void* k;  // (rows, n_kv_heads, head_dim) of dtype
  const void* v;
  DType dtype;
};

// Writes the newest rows of each sequence into its tail. A thread takes one channel of K and of V.
// Bound by latency where there are few rows (the row, table, segment and page address are read one
// after the other), by scattered 2-byte stores where there are many.
__global__ void append_kv_kernel(FaultSink faults, AppendRows a) {
  const int seq = blockIdx.x;
  const int kv_head = blockIdx.y;
  const int channel = threadIdx.x;
  const int d = blockDim.x;
  const NewRows rows = new_rows(faults, a.place, seq);

  int64_t row = rows.begin + blockIdx.z;
  float k = 0.0f;
  float v = 0.0f;
  const auto load_row = [&] {
    const int64_t at = (row * a.place.n_kv_heads + kv_head) * d + channel;
    k = load_float(a.k, a.dtype, at);
    v = load_float(a.v, a.dtype, at);
  };
  if (row < rows.end) load_row();  // under way while the table is read

  const SegmentView tail = append_tail(faults, a.place, seq, kv_head, d, rows);
  if (!tail.valid()) return;
  while (row < rows.end) {
    const TailSlot slot = tail_slot(faults, a.place, tail, kv_head, rows, row);
    if (slot.k_part == nullptr) return;
    write_float<true>(slot.k_part, tail.segment.k_format, d, slot.token, channel, k);
    write_float<false>(slot.v_part, tail.segment.v_format, d, slot.token, channel, v);
    row += gridDim.z;
    if (row < rows.end) load_row();
  }
}

}  // namespace

void append_kv(Context& context, const AppendKvArgs& a) {
  constexpr int64_t kRowsPerBlock = 16;
  const AppendPlace place = append_place(a);
  if (place.n_seqs == 0) return;
  launch(context, &append_kv_kernel, append_grid(context, place, kRowsPerBlock),
         dim3(static_cast<unsigned>(a.k.size(2))), 0, context.faults(),
         AppendRows{place, a.k.data, a.v.data, a.k.dtype});
}

}  // namespace zc::cuda
