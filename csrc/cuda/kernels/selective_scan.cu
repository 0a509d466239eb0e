#include "csrc/cuda/launchers.h"
#include "csrc/cuda/state_columns.h"
#include "csrc/math/recurrence.h"

namespace zc::cuda {

namespace {

struct ScanParams {
  StateRows rows;  // q, k, v: C, B, x
  const float* step;
  const float* step_bias;
  const float* decay_log;
  const float* skip;
};

// The selective scan whose A is one number a head (Mamba 2, arXiv 2405.21060, §2), row by row.
// Blocks and threads as csrc/cuda/state_columns.h has them. The sum of a row's output ends while
// the next row is worked on, a tile of rows is copied while the one before is.
// Shared memory: 2 kStateTileRows (2 kStateDim + kStateColumns) floats, 34.9 KB at most. Bound by
// the state's bytes where a sequence has one row, by instructions where it has many.
template <int kStateDim>
__global__ void __launch_bounds__(kStateThreads, kStateDim <= 128 ? 4 : 2)
    selective_scan_kernel(FaultSink faults, const __grid_constant__ ScanParams p) {
  ZC_SHARED(float, tiles, [2][kStateTileRows * kStateRow<kStateDim>]);
  ZC_SHARED(ScanGates, shared_rows, [kStateTileRows]);
  simt::let_next_begin();
  simt::wait_for_kernels_before();
  const StateBlock<kStateDim> block = state_block<kStateDim>(faults, p.rows);
  if (block.page.data == nullptr) return block.clear_masked();
  constexpr int kVectors = StateBlock<kStateDim>::kVectors;
  float state[kVectors][4];
  block.load(state);
  const int head = block.head;
  const int thread = threadIdx.x;
  const float skip = p.skip[head];

  // A thread has a row's gates, which it loads a tile ahead.
  float step = 0.0f;
  const auto load_step = [&](int first) {
    if (thread < block.rows_of_tile(first))
      step = p.step[int64_t{first + thread} * p.rows.place.n_heads + head];
  };
  if (block.begin < block.end) {
    block.copy_tile(block.begin, tiles[0]);
    load_step(block.begin);
  }
  float result = 0.0f;  // this thread's part of the last row's output
  const auto sum_result = [&] {
    ZC_UNROLL for (int lanes = 1; lanes < kStateLanes; lanes *= 2) result +=
        __shfl_xor_sync(0xffffffffu, result, lanes);
  };
  int next_tile = 1;
  for (int first = block.begin; first < block.end; first += kStateTileRows, next_tile ^= 1) {
    const float* const tile = tiles[next_tile ^ 1];
    const int n = block.rows_of_tile(first);
    simt::cp_async_wait<0>();
    __syncthreads();  // the tile is there, and nobody reads the other one any more
    if (thread < n) shared_rows[thread] = scan_gates(step, p.step_bias[head], p.decay_log[head]);
    if (first + kStateTileRows < block.end) {
      block.copy_tile(first + kStateTileRows, tiles[next_tile]);
      load_step(first + kStateTileRows);
    }
    __syncthreads();
    if (!block.owns) continue;
    for (int r = 0; r < n; ++r) {
      const ScanGates row = shared_rows[r];
      const float x = block.value(tile, r);
      sum_result();
      if (block.lane == 0 && first + r > block.begin)
        *block.out_at(first + r - 1, block.column) = result;
      const float input = row.write * x;
      float results[4] = {};
      ZC_UNROLL for (int m = 0; m < kVectors; ++m) {
        const float4 in = block.key(tile, r, m);
        const float4 read = block.query(tile, r, m);
        state[m][0] = fmaf(in.x, input, row.keep * state[m][0]);
        state[m][1] = fmaf(in.y, input, row.keep * state[m][1]);
        state[m][2] = fmaf(in.z, input, row.keep * state[m][2]);
        state[m][3] = fmaf(in.w, input, row.keep * state[m][3]);
        results[0] = fmaf(read.x, state[m][0], results[0]);
        results[1] = fmaf(read.y, state[m][1], results[1]);
        results[2] = fmaf(read.z, state[m][2], results[2]);
        results[3] = fmaf(read.w, state[m][3], results[3]);
      }
      result = (results[0] + results[1]) + (results[2] + results[3]);
      if (block.lane == 0) result = fmaf(skip, x, result);
    }
  }
  if (!block.owns) return;
  sum_result();
  if (block.lane == 0 && block.begin < block.end)
    *block.out_at(block.end - 1, block.column) = result;
  block.store(state);
}

}  // namespace

void selective_scan(Context& context, const SelectiveScanArgs& a) {
  if (a.states.size(0) == 0) return;
  const int64_t b = a.inputs();
  const int64_t c = b + a.n_groups * a.state_dim();
  TensorView xbc = a.xbc;
  with_aligned(context, {&xbc}, {}, 0, [&](void*) {
    const ScanParams params{state_rows(a, xbc, c, b, 0, a.n_groups), a.step.as<float>(),
                            a.step_bias.as<float>(), a.decay_log.as<float>(), a.skip.as<float>()};
    dispatch_key_dim(a.state_dim(), [&](auto state_dim) {
      launch_early(context, &selective_scan_kernel<decltype(state_dim)::value>,
                   state_blocks(params.rows), kStateThreads, 0, context.faults(), params);
    });
  });
}

}  // namespace zc::cuda
