#include <cmath>

#include "csrc/cuda/launchers.h"
#include "csrc/cuda/state_columns.h"
#include "csrc/math/recurrence.h"

namespace zc::cuda {

namespace {

constexpr int kNormLanes = kStateThreads / (2 * kStateTileRows);  // that share a q or a k

struct DeltaParams {
  StateRows rows;
  const float* decay;
  const float* beta;
  const float* decay_log;
  const float* decay_bias;
  float query_scale;
};

// What all columns of a row share.
struct alignas(16) DeltaRow {
  float query_norm;
  float key_norm_keep;
  float key_norm_write;
  float keep;
};

// The gated delta rule (Gated DeltaNet, arXiv 2412.06464, eq. 10), row by row. Blocks and threads
// as csrc/cuda/state_columns.h has them. The sum of a row's output ends with the next row's first,
// so that both take the time of one. A tile of rows is copied while the one before is worked on.
// Shared memory: 2 kStateTileRows (2 kKeyDim + kStateColumns) floats, 34.9 KB at most. Bound by the
// state's bytes where a sequence has one row, by instructions and their latency where it has many:
// a row needs the state that the one before it has left.
template <int kKeyDim>
__global__ void __launch_bounds__(kStateThreads, kKeyDim <= 128 ? 4 : 2)
    gated_delta_kernel(FaultSink faults, const __grid_constant__ DeltaParams p) {
  constexpr int kRow = kStateRow<kKeyDim>;
  ZC_SHARED(float, tiles, [2][kStateTileRows * kRow]);
  ZC_SHARED(DeltaRow, shared_rows, [kStateTileRows]);
  simt::let_next_begin();
  simt::wait_for_kernels_before();
  const StateBlock<kKeyDim> block = state_block<kKeyDim>(faults, p.rows);
  if (block.page.data == nullptr) return block.clear_masked();
  constexpr int kVectors = StateBlock<kKeyDim>::kVectors;
  float state[kVectors][4];
  block.load(state);
  const int thread = threadIdx.x;
  const int lane = block.lane;
  const int n_heads = p.rows.place.n_heads;
  const int head = block.head;
  const int begin = block.begin;
  const int end = block.end;

  // kNormLanes threads take a vector of the tile, q or k of a row; one of those of k has the row's
  // gates, too, which it loads a tile ahead.
  const int norm_row = thread / (2 * kNormLanes);
  const bool is_key = thread / kNormLanes % 2 == 1;
  const int norm_lane = thread % kNormLanes;
  float decay = 0.0f;
  float beta = 0.0f;
  const auto load_gates = [&](int first) {
    if (!is_key || norm_lane != 0 || norm_row >= block.rows_of_tile(first)) return;
    decay = p.decay[int64_t{first + norm_row} * n_heads + head];
    beta = p.beta[int64_t{first + norm_row} * n_heads + head];
  };
  const auto share_row = [&](const float* tile, int n) {
    float sum = 0.0f;
    if (norm_row < n) {
      const float* x = tile + norm_row * kRow + (is_key ? kKeyDim : 0);
      for (int c = norm_lane * 4; c < kKeyDim; c += kNormLanes * 4) {
        const float4 y = *reinterpret_cast<const float4*>(x + c);
        sum = fmaf(y.x, y.x, fmaf(y.y, y.y, fmaf(y.z, y.z, fmaf(y.w, y.w, sum))));
      }
    }
    ZC_UNROLL for (int step = 1; step < kNormLanes; step *= 2) sum +=
        __shfl_xor_sync(0xffffffffu, sum, step);
    if (norm_row >= n || norm_lane != 0) return;
    const float norm = delta_norm(sum);
    DeltaRow& row = shared_rows[norm_row];
    if (is_key) {
      const DeltaGates gates = delta_gates(decay, p.decay_bias[head], p.decay_log[head], beta);
      row.key_norm_keep = norm * gates.keep;
      row.key_norm_write = norm * gates.write;
      row.keep = gates.keep;
    } else {
      row.query_norm = norm * p.query_scale;
    }
  };

  if (begin < end) {
    block.copy_tile(begin, tiles[0]);
    load_gates(begin);
  }
  float result = 0.0f;  // this thread's part of the last row's output
  int next_tile = 1;
  for (int first = begin; first < end; first += kStateTileRows, next_tile ^= 1) {
    const float* const tile = tiles[next_tile ^ 1];
    const int n = block.rows_of_tile(first);
    simt::cp_async_wait<0>();
    __syncthreads();  // the tile is there, and nobody reads the other one any more
    share_row(tile, n);
    if (first + kStateTileRows < end) {
      block.copy_tile(first + kStateTileRows, tiles[next_tile]);
      load_gates(first + kStateTileRows);
    }
    __syncthreads();
    if (!block.owns) continue;
    float4 key[kVectors];
    ZC_UNROLL for (int m = 0; m < kVectors; ++m) key[m] = block.key(tile, 0, m);
    for (int r = 0; r < n; ++r) {
      const DeltaRow row = shared_rows[r];
      const float value = block.value(tile, r);
      float sums[4] = {};
      ZC_UNROLL for (int m = 0; m < kVectors; ++m) {
        sums[0] = fmaf(key[m].x, state[m][0], sums[0]);
        sums[1] = fmaf(key[m].y, state[m][1], sums[1]);
        sums[2] = fmaf(key[m].z, state[m][2], sums[2]);
        sums[3] = fmaf(key[m].w, state[m][3], sums[3]);
      }
      float there = (sums[0] + sums[1]) + (sums[2] + sums[3]);
      ZC_UNROLL for (int step = 1; step < kStateLanes; step *= 2) {
        there += __shfl_xor_sync(0xffffffffu, there, step);
        result += __shfl_xor_sync(0xffffffffu, result, step);
      }
      if (lane == 0 && first + r > begin) *block.out_at(first + r - 1, block.column) = result;
      const float change = fmaf(-there, row.key_norm_keep, value) * row.key_norm_write;
      const int next = r + 1 < n ? r + 1 : r;
      float results[4] = {};
      ZC_UNROLL for (int m = 0; m < kVectors; ++m) {
        const float4 query = block.query(tile, r, m);
        state[m][0] = fmaf(key[m].x, change, row.keep * state[m][0]);
        state[m][1] = fmaf(key[m].y, change, row.keep * state[m][1]);
        state[m][2] = fmaf(key[m].z, change, row.keep * state[m][2]);
        state[m][3] = fmaf(key[m].w, change, row.keep * state[m][3]);
        results[0] = fmaf(query.x, state[m][0], results[0]);
        results[1] = fmaf(query.y, state[m][1], results[1]);
        results[2] = fmaf(query.z, state[m][2], results[2]);
        results[3] = fmaf(query.w, state[m][3], results[3]);
        key[m] = block.key(tile, next, m);  // under way while the rest is computed
      }
      result = ((results[0] + results[1]) + (results[2] + results[3])) * row.query_norm;
    }
  }
  if (!block.owns) return;
  ZC_UNROLL for (int step = 1; step < kStateLanes; step *= 2) result +=
      __shfl_xor_sync(0xffffffffu, result, step);
  if (lane == 0 && begin < end) *block.out_at(end - 1, block.column) = result;
  block.store(state);
}

}  // namespace

void gated_delta(Context& context, const GatedDeltaArgs& a) {
  if (a.states.size(0) == 0) return;
  TensorView qkv = a.qkv;
  with_aligned(context, {&qkv}, {}, 0, [&](void*) {
    const DeltaParams params{state_rows(a, qkv, 0, a.keys(), 2 * a.keys(), a.n_key_heads),
                             a.decay.as<float>(),
                             a.beta.as<float>(),
                             a.decay_log.as<float>(),
                             a.decay_bias.as<float>(),
                             1.0f / std::sqrt(static_cast<float>(a.key_dim()))};
    dispatch_key_dim(a.key_dim(), [&](auto key_dim) {
      launch_early(context, &gated_delta_kernel<decltype(key_dim)::value>,
                   state_blocks(params.rows), kStateThreads, 0, context.faults(), params);
    });
  });
}

}  // namespace zc::cuda
