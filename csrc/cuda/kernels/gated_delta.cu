#include <cmath>
#include <type_traits>

#include "csrc/cuda/launchers.h"
#include "csrc/cuda/state_page.h"
#include "csrc/math/recurrence.h"

namespace zc::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int kLanes = 4;  // that share a column: a warp owns 8, 32 bytes of a row of the state
constexpr int kColumns = kThreads / kLanes;
constexpr int kTileRows = 8;                            // of q, k and v that are loaded together
constexpr int kNormLanes = kThreads / (2 * kTileRows);  // that share a q or a k

struct DeltaParams {
  StatePlace place;
  const float* qkv;  // (rows, qkv_stride), aligned to 16 bytes as its rows are
  const float* decay;
  const float* beta;
  const float* decay_log;
  const float* decay_bias;
  float* out;  // (rows, n_heads, value_dim)
  int64_t qkv_stride;
  int32_t keys;  // channels of q, and of k
  int32_t heads_per_key;
  int32_t value_dim;
  int32_t n_slices;  // of value_dim
  float query_scale;
};

// What all columns of a row share.
struct alignas(16) DeltaRow {
  float query_norm;
  float key_norm_keep;
  float key_norm_write;
  float keep;
};

// The gated delta rule (Gated DeltaNet, arXiv 2412.06464, eq. 10), row by row. A block owns
// kColumns columns of the state of one value head of one sequence, which stay in registers over all
// rows: a column has kLanes threads, each of which holds the channels 4 lane to 4 lane + 3 of every
// 4 kLanes. Sums over channels end with a shuffle among them; that of a row's output waits for the
// next row's, so that both take the time of one. A tile of rows is copied while the one before is
// worked on.
// Shared memory: 2 kTileRows (2 kKeyDim + kColumns) floats, 34.9 KB at most. Bound by the state's
// bytes where a sequence has one row, by instructions and their latency where it has many: a row
// needs the state that the one before it has left.
template <int kKeyDim>
__global__ void __launch_bounds__(kThreads, kKeyDim <= 128 ? 4 : 2)
    gated_delta_kernel(FaultSink faults, const __grid_constant__ DeltaParams p) {
  constexpr int kVectors = kKeyDim / (4 * kLanes);  // of 4 channels, a thread's
  constexpr int kRow = 2 * kKeyDim + kColumns;      // q, k, v
  ZC_SHARED(float, tiles, [2][kTileRows * kRow]);
  ZC_SHARED(DeltaRow, shared_rows, [kTileRows]);
  simt::let_next_begin();
  simt::wait_for_kernels_before();
  const int thread = threadIdx.x;
  const int lane = thread % kLanes;
  const int column = thread / kLanes;
  const int n_heads = p.place.n_heads;
  const int first_column = blockIdx.x % p.n_slices * kColumns;
  const int seq = blockIdx.x / p.n_slices / n_heads;
  const int head = blockIdx.x / p.n_slices % n_heads;
  const int n_columns =
      p.value_dim - first_column < kColumns ? p.value_dim - first_column : kColumns;
  const NewRows rows = new_rows(faults, p.place, seq);
  const int begin = static_cast<int>(rows.begin);  // cuSeqlens are of 32 bits
  const int end = static_cast<int>(rows.end);
  const StatePage page =
      state_page(faults, p.place, seq, 1 + head, head_page_bytes(kKeyDim, p.value_dim));
  // Element (row, c) of the block's columns of the output.
  const auto out_at = [&](int row, int c) {
    return p.out + (int64_t{row} * n_heads + head) * p.value_dim + first_column + c;
  };
  if (page.data == nullptr) {
    if (page.is_masked && thread % kColumns < n_columns)
      for (int row = begin + thread / kColumns; row < end; row += kLanes)
        *out_at(row, thread % kColumns) = 0.0f;
    return;
  }

  const bool owns = column < n_columns;  // the same of a whole warp: there are 16 or 32
  float* const own = page.data + first_column + column;
  float state[kVectors][4];
  const auto element = [&](int m, int e) {
    return own + ((m * kLanes + lane) * 4 + e) * p.value_dim;
  };
  ZC_UNROLL for (int m = 0; m < kVectors; ++m) ZC_UNROLL for (int e = 0; e < 4; ++e) state[m][e] =
      owns && !p.place.from_zero ? *element(m, e) : 0.0f;

  const int q = head / p.heads_per_key * kKeyDim;  // columns of qkv
  const int v = 2 * p.keys + head * p.value_dim + first_column;
  const auto rows_of_tile = [&](int first) {
    return end - first < kTileRows ? end - first : kTileRows;
  };
  const auto copy_tile = [&](int first, float* to) {
    const int n = rows_of_tile(first);
    const auto copy = [&](int row, int c, int from) {
      simt::cp_async_16(simt::smem_u32(to + row * kRow + c),
                        p.qkv + (first + row) * p.qkv_stride + from);
    };
    for (int i = thread; i < n * (kKeyDim / 2); i += kThreads) {
      const int c = i % (kKeyDim / 2) * 4;
      copy(i / (kKeyDim / 2), c, q + (c < kKeyDim ? c : p.keys + c - kKeyDim));
    }
    for (int i = thread; i < n * (kColumns / 4); i += kThreads) {
      const int c = i % (kColumns / 4) * 4;
      if (c < n_columns) copy(i / (kColumns / 4), 2 * kKeyDim + c, v + c);
    }
    simt::cp_async_commit();
  };

  // kNormLanes threads take a vector of the tile, q or k of a row; one of those of k has the row's
  // gates, too, which it loads a tile ahead.
  const int norm_row = thread / (2 * kNormLanes);
  const bool is_key = thread / kNormLanes % 2 == 1;
  const int norm_lane = thread % kNormLanes;
  float decay = 0.0f;
  float beta = 0.0f;
  const auto load_gates = [&](int first) {
    if (!is_key || norm_lane != 0 || norm_row >= rows_of_tile(first)) return;
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
    copy_tile(begin, tiles[0]);
    load_gates(begin);
  }
  float result = 0.0f;  // this thread's part of the last row's output
  int next_tile = 1;
  for (int first = begin; first < end; first += kTileRows, next_tile ^= 1) {
    const float* const tile = tiles[next_tile ^ 1];
    const int n = rows_of_tile(first);
    simt::cp_async_wait<0>();
    __syncthreads();  // the tile is there, and nobody reads the other one any more
    share_row(tile, n);
    if (first + kTileRows < end) {
      copy_tile(first + kTileRows, tiles[next_tile]);
      load_gates(first + kTileRows);
    }
    __syncthreads();
    if (!owns) continue;
    const auto vector = [&](int row, int part, int m) {  // part 0: of q, 1: of k
      return *reinterpret_cast<const float4*>(tile + row * kRow + part * kKeyDim +
                                              (m * kLanes + lane) * 4);
    };
    float4 key[kVectors];
    ZC_UNROLL for (int m = 0; m < kVectors; ++m) key[m] = vector(0, 1, m);
    for (int r = 0; r < n; ++r) {
      const DeltaRow row = shared_rows[r];
      const float value = tile[r * kRow + 2 * kKeyDim + column];
      float sums[4] = {};
      ZC_UNROLL for (int m = 0; m < kVectors; ++m) {
        sums[0] = fmaf(key[m].x, state[m][0], sums[0]);
        sums[1] = fmaf(key[m].y, state[m][1], sums[1]);
        sums[2] = fmaf(key[m].z, state[m][2], sums[2]);
        sums[3] = fmaf(key[m].w, state[m][3], sums[3]);
      }
      float there = (sums[0] + sums[1]) + (sums[2] + sums[3]);
      ZC_UNROLL for (int step = 1; step < kLanes; step *= 2) {
        there += __shfl_xor_sync(0xffffffffu, there, step);
        result += __shfl_xor_sync(0xffffffffu, result, step);
      }
      if (lane == 0 && first + r > begin) *out_at(first + r - 1, column) = result;
      const float change = fmaf(-there, row.key_norm_keep, value) * row.key_norm_write;
      const int next = r + 1 < n ? r + 1 : r;
      float results[4] = {};
      ZC_UNROLL for (int m = 0; m < kVectors; ++m) {
        const float4 query = vector(r, 0, m);
        state[m][0] = fmaf(key[m].x, change, row.keep * state[m][0]);
        state[m][1] = fmaf(key[m].y, change, row.keep * state[m][1]);
        state[m][2] = fmaf(key[m].z, change, row.keep * state[m][2]);
        state[m][3] = fmaf(key[m].w, change, row.keep * state[m][3]);
        results[0] = fmaf(query.x, state[m][0], results[0]);
        results[1] = fmaf(query.y, state[m][1], results[1]);
        results[2] = fmaf(query.z, state[m][2], results[2]);
        results[3] = fmaf(query.w, state[m][3], results[3]);
        key[m] = vector(next, 1, m);  // under way while the rest is computed
      }
      result = ((results[0] + results[1]) + (results[2] + results[3])) * row.query_norm;
    }
  }
  if (!owns) return;
  ZC_UNROLL for (int step = 1; step < kLanes; step *= 2) result +=
      __shfl_xor_sync(0xffffffffu, result, step);
  if (lane == 0 && begin < end) *out_at(end - 1, column) = result;
  ZC_UNROLL for (int m = 0; m < kVectors; ++m) ZC_UNROLL for (int e = 0; e < 4; ++e) *
      element(m, e) = state[m][e];
}

// Calls f(std::integral_constant<int, key_dim>{}).
template <int kKeyDim = 16, typename F>
void dispatch_key_dim(int64_t key_dim, const F& f) {
  if (key_dim == kKeyDim) return f(std::integral_constant<int, kKeyDim>{});
  if constexpr (kKeyDim < 256)
    dispatch_key_dim<2 * kKeyDim>(key_dim, f);
  else
    throw Error(ErrorCode::kUnsupported,
                format("qkv: key_dim is %lld", static_cast<long long>(key_dim)));
}

}  // namespace

void gated_delta(Context& context, const GatedDeltaArgs& a) {
  const int64_t n_seqs = a.states.size(0);
  if (n_seqs == 0) return;
  TensorView qkv = a.qkv;
  const int64_t n_slices = (a.value_dim() + kColumns - 1) / kColumns;
  with_aligned(context, {&qkv}, {}, 0, [&](void*) {
    const DeltaParams params{state_place(a, qkv.size(0), a.n_heads()),
                             qkv.as<float>(),
                             a.decay.as<float>(),
                             a.beta.as<float>(),
                             a.decay_log.as<float>(),
                             a.decay_bias.as<float>(),
                             a.out.as<float>(),
                             qkv.size(1),
                             static_cast<int32_t>(a.keys()),
                             static_cast<int32_t>(a.n_heads() / a.n_key_heads),
                             static_cast<int32_t>(a.value_dim()),
                             static_cast<int32_t>(n_slices),
                             1.0f / std::sqrt(static_cast<float>(a.key_dim()))};
    dispatch_key_dim(a.key_dim(), [&](auto key_dim) {
      launch_early(context, &gated_delta_kernel<decltype(key_dim)::value>,
                   blocks_for(n_seqs * a.n_heads() * n_slices, 1), kThreads, 0, context.faults(),
                   params);
    });
  });
}

}  // namespace zc::cuda
