#include "csrc/cuda/device/floats.h"
#include "csrc/cuda/tail.h"
#include "csrc/cuda/launchers.h"
#include "csrc/math/rope.h"

namespace zc::cuda {

namespace {

constexpr int kMaxThreads = 512;

struct RopeAppendRows {
  AppendPlace place;
  const void* q;     // (rows, n_kv_heads, group, 2 half) of in_dtype
  const void* k;     // (rows, n_kv_heads, 2 half) of in_dtype
  const void* v;     // the same of out_dtype
  const float* cos;  // (rows, turned), of k
  const float* sin;
  const float* q_cos;  // the same, of q
  const float* q_sin;
  void* q_out;  // of out_dtype
  void* k_out;  // of out_dtype, or null
  DType in_dtype;
  DType out_dtype;
  int32_t group;
  int32_t half;
  int32_t turned;
};

// Two channels of a head, and their angle.
struct Pair {
  float first;
  float second;
  float cos;
  float sin;
};

// Rotates q and k, and writes k and v into the tail. A row has, for each KV head, the heads of the
// group, then k, then v; a thread takes a pair of channels of one of them. Bound by latency when
// decoding: a thread's loads are under way while the table, the segment and the page's address are
// read one after the other.
__global__ void __launch_bounds__(kMaxThreads)
    rope_append_kernel(FaultSink faults, RopeAppendRows a) {
  simt::let_next_begin();
  simt::wait_for_kernels_before();
  const int seq = blockIdx.x;
  const int kv_head = blockIdx.y;
  const int group = a.group;
  const int half = a.half;
  const int turned = a.turned;
  const int n_pairs = (group + 2) * half;
  const NewRows rows = new_rows(faults, a.place, seq);

  // The channels of pair i of a head: i and i + turned, where RoPE turns it; behind those the
  // others.
  const auto first_of = [&](int i) { return i < turned ? i : i + turned; };
  const auto second_of = [&](int i) { return i < turned ? i + turned : i + half; };
  // Where channel c of head h of a row's heads lies in q, or in k and v.
  const auto at = [&](int64_t row, int h, int c) {
    const int64_t head = row * a.place.n_kv_heads + kv_head;
    return (h < group ? head * group + h : head) * 2 * half + c;
  };
  const auto load = [&](int64_t row, int i) {
    const int h = i / half;
    const int c = i % half;
    const int64_t first = at(row, h, first_of(c));
    const int64_t second = at(row, h, second_of(c));
    const bool is_v = h > group;
    const void* const x = is_v ? a.v : h < group ? a.q : a.k;
    const DType dtype = is_v ? a.out_dtype : a.in_dtype;
    Pair pair{load_float(x, dtype, first), load_float(x, dtype, second), 1.0f, 0.0f};
    if (is_v || c >= turned) return pair;
    const bool is_q = h < group;
    pair.cos = (is_q ? a.q_cos : a.cos)[row * turned + c];
    pair.sin = (is_q ? a.q_sin : a.sin)[row * turned + c];
    return pair;
  };
  const int64_t first_row = rows.begin + blockIdx.z;
  const int own = static_cast<int>(threadIdx.x);
  Pair pair{};
  if (first_row < rows.end && own < n_pairs) pair = load(first_row, own);

  const SegmentView tail = append_tail(faults, a.place, seq, kv_head, 2 * half, rows);
  for (int64_t row = first_row; row < rows.end; row += gridDim.z) {
    TailSlot slot{};
    if (tail.valid()) slot = tail_slot(faults, a.place, tail, kv_head, rows, row);
    for (int i = own; i < n_pairs; i += static_cast<int>(blockDim.x)) {
      if (row != first_row || i != own) pair = load(row, i);
      const int h = i / half;
      const int c1 = first_of(i % half);
      const int c2 = second_of(i % half);
      if (h > group) {
        if (slot.v_part == nullptr) continue;
        const Format format = tail.segment.v_format;
        write_float<false>(slot.v_part, format, 2 * half, slot.token, c1, pair.first);
        write_float<false>(slot.v_part, format, 2 * half, slot.token, c2, pair.second);
        continue;
      }
      const RopePair rotated = rope_rotate(pair.first, pair.second, pair.cos, pair.sin);
      void* const out = h < group ? a.q_out : a.k_out;
      if (out != nullptr) {
        store_float(out, a.out_dtype, at(row, h, c1), rotated.first);
        store_float(out, a.out_dtype, at(row, h, c2), rotated.second);
      }
      if (h < group || slot.k_part == nullptr) continue;
      const float first = round_float(a.out_dtype, rotated.first);
      const float second = round_float(a.out_dtype, rotated.second);
      const Format format = tail.segment.k_format;
      write_float<true>(slot.k_part, format, 2 * half, slot.token, c1, first);
      write_float<true>(slot.k_part, format, 2 * half, slot.token, c2, second);
    }
  }
}

}  // namespace

void rope_append(Context& context, const RopeAppendArgs& a) {
  constexpr int64_t kRowsPerBlock = 4;
  const AppendPlace place = append_place(a);
  if (place.n_seqs == 0) return;
  const int32_t group = static_cast<int32_t>(a.q.size(1) / a.k.size(1));
  const int32_t half = static_cast<int32_t>(a.q.size(2) / 2);
  const int n_pairs = (group + 2) * half;
  const int threads = std::min(kMaxThreads, (n_pairs + 31) / 32 * 32);
  launch_early(context, &rope_append_kernel, append_grid(context, place, kRowsPerBlock),
               dim3(static_cast<unsigned>(threads)), 0, context.faults(),
               RopeAppendRows{place, a.q.data, a.k.data, a.v.data, a.cos.as<float>(),
                              a.sin.as<float>(), a.q_cos.as<float>(), a.q_sin.as<float>(),
                              a.q_out.data, a.k_out.defined() ? a.k_out.data : nullptr, a.q.dtype,
                              a.q_out.dtype, group, half, static_cast<int32_t>(a.cos.size(1))});
}

}  // namespace zc::cuda
