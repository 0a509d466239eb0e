#include "csrc/cuda/kernels/probe_attention.h"

#include "csrc/cuda/aligned.h"
#include "csrc/cuda/launchers.h"
#include "csrc/math/key_range.h"

namespace zc::cuda {

namespace {

// Fills ProbeRows. Block (x, y) owns a tile for KV head y, a thread one of its rows; what is the
// same for all heads is the first one's. Bound by latency.
__global__ void __launch_bounds__(kTileRows)
    list_probes_kernel(const __grid_constant__ ProbeParams p) {
  ZC_SHARED(TileKeys, of_warps, [2]);
  simt::let_next_begin();
  simt::wait_for_kernels_before();
  const ProbeRows& probes = p.probes;
  const int kv_head = blockIdx.y;
  const int64_t row = int64_t{blockIdx.x} * kTileRows + threadIdx.x;
  const int64_t probe = row / p.group;
  const int head = static_cast<int>(row % p.group);
  bool good = row < probes.n_rows;
  int64_t q_row = 0;
  if (good) {
    q_row = p.rows[probe];
    good = check_data(p.faults, q_row >= 0 && q_row < p.n_q, FaultReason::kProbeRow, probe, q_row,
                      p.n_q - 1);
    if (!good) q_row = 0;
  }
  q_row = q_row * p.n_heads + head;
  probes.offsets[kv_head * probes.n_tiles * kTileRows + row] =
      good ? -p.lse[first_query_head(p, kv_head) + q_row] * kLog2E : -INFINITY;
  if (kv_head > 0) return;
  SeenKeys seen = {0, 0};
  TileKeys keys = {INT_MAX, 0, 0, INT_MAX};
  if (good) {
    const KeyRange range = visible_keys(p.positions[probe], p.kv_len, true, p.window);
    seen = {static_cast<int>(range.first), static_cast<int>(range.last)};
    keys = {seen.first, seen.last, seen.first, seen.last};
  }
  probes.q_rows[row] = static_cast<int32_t>(q_row);
  probes.seen[row] = seen;

  const auto join = [](const TileKeys& a, const TileKeys& b) {
    return TileKeys{min(a.some_first, b.some_first), max(a.some_last, b.some_last),
                    max(a.all_first, b.all_first), min(a.all_last, b.all_last)};
  };
  ZC_UNROLL for (int step = 16; step > 0; step /= 2) keys =
      join(keys, {__shfl_xor_sync(0xffffffffu, keys.some_first, step),
                  __shfl_xor_sync(0xffffffffu, keys.some_last, step),
                  __shfl_xor_sync(0xffffffffu, keys.all_first, step),
                  __shfl_xor_sync(0xffffffffu, keys.all_last, step)});
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = keys;
  __syncthreads();
  if (threadIdx.x == 0) probes.tiles[blockIdx.x] = join(of_warps[0], of_warps[1]);
}

// ---- f16 and bf16: tensor cores (mma.sync), sm_80 and later ----

constexpr int kThreads = 128;

template <int kWidth>
struct ProbeShape {
  static constexpr int kKeyTiles = kWidth <= 256 ? 2 : 1;  // of 16 keys, a warp's
  static constexpr int kBlockKeys = kThreads / 32 * kKeyTiles * 16;
  // Of a tile, whose scores are in registers at a time. K takes kKeyTiles kWidth / 4 registers;
  // with these three blocks of threads fit a multiprocessor up to width 128, two above.
  static constexpr int kRows = kWidth <= 64 ? 64 : 32;
  // Tiles of rows in shared memory: of 512 channels two would not fit that of every GPU.
  static constexpr int kStages = kWidth <= 256 ? 2 : 1;
  static constexpr int kRowBytes = kTileRows * kWidth * 2;
  static constexpr int kSeenBytes = kTileRows * 8;
  static constexpr int kOffsetBytes = kTileRows * 4;
  static constexpr int kStageBytes = kRowBytes + kSeenBytes + kOffsetBytes;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static_assert(kBlockKeys * kWidth * 2 <= kSharedBytes);
};

// Scores of keys: sum over the probes that see the key, and over the heads of its group, of
// e^(scale q k - lse) (ZipCache, arXiv 2405.14256, Eqs. 7 to 9). With the LSE at hand one pass over
// Q K^T gives the attention probabilities.
//
// A block owns kBlockKeys keys of one KV head, a warp 16 kKeyTiles of them: as the rows of the
// products, their fragments in registers from begin to end, so that a key's sum is a sum along a
// row of accumulators and nothing is added between warps. Rows of probes pass by in tiles of
// kTileRows, kStages of them in shared memory; tiles that see none of the keys are left out. Sums
// run in the order of the probes within a lane, then over the four lanes of a row. Shared memory:
// ProbeShape::kSharedBytes. Bound by the tensor cores, and nearly as much by exponentials; with one
// stage by latency.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads, kWidth <= 128 ? 3 : 2)
    probe_attention_kernel(const __grid_constant__ ProbeParams p) {
  using Shape = ProbeShape<kWidth>;
  constexpr int kKeyTiles = Shape::kKeyTiles;
  constexpr int kBlockKeys = Shape::kBlockKeys;
  ZC_DYNAMIC_SHARED(shared);
  const uint32_t shared_at = simt::smem_u32(shared);
  const ProbeRows& probes = p.probes;
  simt::let_next_begin();
  simt::wait_for_kernels_before();
  const OwnKeys own = own_keys<kBlockKeys>(p);
  const auto [kv_head, key0, n_keys] = own;
  const int n_chunks = p.head_dim / 8;
  const int lane = threadIdx.x % 32;
  const int warp_key = static_cast<int>(threadIdx.x) / 32 * 16 * kKeyTiles;

  load_keys<T, kBlockKeys, kWidth, kThreads>(p, own, shared_at);
  TileSearch search = {probes, key0, n_keys};
  TileSearch::Found tile = search.next();  // while the keys are on their way
  simt::cp_async_wait<0>();
  __syncthreads();
  uint32_t k[kWidth / 16][kKeyTiles][4];
  const uint32_t k_at = a_lane<kWidth>(shared_at, warp_key);
  ZC_UNROLL for (int i = 0; i < kWidth / 16; ++i) ZC_UNROLL for (int m = 0; m < kKeyTiles; ++m)
      load_a<kWidth>(k[i][m], k_at, 16 * m, i);
  __syncthreads();

  const float* const offsets = probes.offsets + kv_head * probes.n_tiles * kTileRows;
  const T* const q = static_cast<const T*>(p.q) + first_query_head(p, kv_head) * p.head_dim;
  const auto load_stage = [&](int stage, int64_t tile) {
    const uint32_t to = shared_at + stage * Shape::kStageBytes;
    const int64_t row0 = tile * kTileRows;
    gather_tile<kTileRows, kWidth, kThreads>(to, q, probes.q_rows + row0, p.head_dim, n_chunks);
    const int i = threadIdx.x;
    if (i < Shape::kSeenBytes / 16)
      simt::cp_async_16(to + Shape::kRowBytes + 16 * i, probes.seen + row0 + 2 * i);
    else if (i < (Shape::kSeenBytes + Shape::kOffsetBytes) / 16)
      simt::cp_async_16(to + Shape::kRowBytes + 16 * i,
                        offsets + row0 + 4 * (i - Shape::kSeenBytes / 16));
    simt::cp_async_commit();
  };

  float totals[kKeyTiles][2] = {};
  int n_seen[kKeyTiles][2] = {};  // of this lane's columns, in tiles that are not full
  int n_full = 0;                 // rows in tiles that are
  const float scale_log2 = p.scale * kLog2E;
  if (tile.tile < probes.n_tiles) load_stage(0, tile.tile);
  ZC_NO_UNROLL for (int stage = 0; tile.tile < probes.n_tiles; stage ^= Shape::kStages - 1) {
    const TileSearch::Found following = search.next();
    simt::cp_async_wait<0>();
    __syncthreads();  // the tile is here, and no warp reads the other stage any more
    if (Shape::kStages == 2 && following.tile < probes.n_tiles)
      load_stage(stage ^ 1, following.tile);

    if (tile.full) n_full += rows_of_tile(probes, tile.tile);
    uint8_t* const stage_bytes = shared + stage * Shape::kStageBytes;
    const SeenKeys* const seen = reinterpret_cast<SeenKeys*>(stage_bytes + Shape::kRowBytes);
    const float2* const row_offsets =
        reinterpret_cast<float2*>(stage_bytes + Shape::kRowBytes + Shape::kSeenBytes);
    const uint32_t q_at = b_lane<kWidth>(shared_at + stage * Shape::kStageBytes);
    ZC_NO_UNROLL for (int row0 = 0; row0 < kTileRows; row0 += Shape::kRows) {
      float s[kKeyTiles][Shape::kRows / 8][4] = {};
      ZC_UNROLL for (int i = 0; i < kWidth / 16; ++i) {
        ZC_UNROLL for (int n = 0; n < Shape::kRows / 16; ++n) {
          uint32_t b[4];
          load_b<kWidth>(b, q_at, row0 + 16 * n, i);
          ZC_UNROLL for (int m = 0; m < kKeyTiles; ++m) {
            simt::mma_m16n8k16(s[m][2 * n], k[i][m], b[0], b[1], T{});
            simt::mma_m16n8k16(s[m][2 * n + 1], k[i][m], b[2], b[3], T{});
          }
        }
      }
      if (!tile.full) {
        ZC_UNROLL for (int n = 0; n < Shape::kRows / 8; ++n) ZC_UNROLL for (int e = 0; e < 2; ++e) {
          const SeenKeys range = seen[row0 + 8 * n + lane % 4 * 2 + e];
          ZC_UNROLL for (int m = 0; m < kKeyTiles; ++m) ZC_UNROLL for (int r = 0; r < 2; ++r) {
            const bool sees = range.sees(key0 + warp_key + 16 * m + 8 * r + lane / 4);
            n_seen[m][r] += sees;
            if (!sees) s[m][n][2 * r + e] = -INFINITY;
          }
        }
      }
      ZC_UNROLL for (int n = 0; n < Shape::kRows / 8; ++n) {
        const float2 offset = row_offsets[row0 / 2 + 4 * n + lane % 4];
        ZC_UNROLL for (int m = 0; m < kKeyTiles; ++m) ZC_UNROLL for (int e = 0; e < 4; ++e)
            totals[m][e / 2] +=
            simt::ex2(fmaf(s[m][n][e], scale_log2, e % 2 ? offset.y : offset.x));
      }
    }
    if constexpr (Shape::kStages == 1) {
      __syncthreads();  // no warp reads the tile any more
      if (following.tile < probes.n_tiles) load_stage(stage, following.tile);
    }
    tile = following;
  }

  ZC_UNROLL for (int m = 0; m < kKeyTiles; ++m) ZC_UNROLL for (int r = 0; r < 2; ++r) {
    ZC_UNROLL for (int step = 1; step < 4; step *= 2) {
      totals[m][r] += __shfl_xor_sync(0xffffffffu, totals[m][r], step);
      n_seen[m][r] += __shfl_xor_sync(0xffffffffu, n_seen[m][r], step);
    }
    const int key = warp_key + 16 * m + 8 * r + lane / 4;
    if (lane % 4 == 0 && key < n_keys)
      p.scores[int64_t{kv_head} * p.kv_len + key0 + key] =
          probe_score(p, totals[m][r], n_full + n_seen[m][r]);
  }
}

// ---- f32 ----

constexpr int kF32Threads = 256;
constexpr int kF32TileRows = 16;  // of a tile's, in shared memory at a time

int64_t f32_shared_bytes(int head_dim, int block_keys) {
  return (block_keys * (head_dim + 4) + kF32TileRows * head_dim) * int64_t{sizeof(float)};
}

// The same in f32 without tensor cores. A block owns kF32BlockKeys keys of one KV head; the threads
// of a key take turns with the rows. Shared memory: f32_shared_bytes, up to 97 KB.
template <int kF32BlockKeys>
__global__ void __launch_bounds__(kF32Threads, 1)
    probe_attention_f32_kernel(const __grid_constant__ ProbeParams p) {
  constexpr int kF32Parts = kF32Threads / kF32BlockKeys;
  constexpr int kF32PartRows = kF32TileRows / kF32Parts;
  ZC_DYNAMIC_SHARED(shared);
  ZC_SHARED(float, part_totals, [kF32Parts][kF32BlockKeys]);
  ZC_SHARED(int, part_seen, [kF32Parts][kF32BlockKeys]);
  const ProbeRows& probes = p.probes;
  const int d = p.head_dim;
  const int k_row = d + 4;  // 16 bytes further on in the banks from key to key
  float* const keys = reinterpret_cast<float*>(shared);  // (kF32BlockKeys, k_row)
  float* const rows = keys + kF32BlockKeys * k_row;      // (kF32TileRows, d)
  simt::let_next_begin();
  simt::wait_for_kernels_before();
  const int work = work_of_block(p);
  const int kv_head = work % p.n_kv_heads;
  const int key0 = work / p.n_kv_heads * kF32BlockKeys;
  const int n_keys = min(kF32BlockKeys, p.kv_len - key0);
  const int vectors = d / 4;
  const float* const k = static_cast<const float*>(p.k);
  for (int i = threadIdx.x; i < kF32BlockKeys * vectors; i += kF32Threads) {
    const int key = i / vectors;
    const int c = i % vectors * 4;
    const int64_t at = (int64_t{key0 + key} * p.n_kv_heads + kv_head) * d + c;
    *reinterpret_cast<float4*>(keys + key * k_row + c) =
        key < n_keys ? *reinterpret_cast<const float4*>(k + at) : make_float4(0, 0, 0, 0);
  }

  const int key = threadIdx.x % kF32BlockKeys;
  const int part = threadIdx.x / kF32BlockKeys;
  float total = 0.0f;
  int n_seen = 0;
  const float* const offsets = probes.offsets + kv_head * probes.n_tiles * kTileRows;
  const float* const q = static_cast<const float*>(p.q) + first_query_head(p, kv_head) * d;
  TileSearch search = {probes, key0, n_keys};
  for (TileSearch::Found tile = search.next(); tile.tile < probes.n_tiles; tile = search.next()) {
    for (int first = 0; first < kTileRows; first += kF32TileRows) {
      const int64_t row0 = tile.tile * kTileRows + first;
      __syncthreads();  // nobody reads the last rows any more
      for (int i = threadIdx.x; i < kF32TileRows * vectors; i += kF32Threads)
        reinterpret_cast<float4*>(rows)[i] = *reinterpret_cast<const float4*>(
            q + int64_t{probes.q_rows[row0 + i / vectors]} * d + i % vectors * 4);
      __syncthreads();
      float s[kF32PartRows] = {};
      for (int c = 0; c < d; c += 4) {
        const float4 a = *reinterpret_cast<const float4*>(keys + key * k_row + c);
        ZC_UNROLL for (int r = 0; r < kF32PartRows; ++r) {
          const float4 b =
              *reinterpret_cast<const float4*>(rows + (part * kF32PartRows + r) * d + c);
          s[r] = fmaf(a.x, b.x, fmaf(a.y, b.y, fmaf(a.z, b.z, fmaf(a.w, b.w, s[r]))));
        }
      }
      ZC_UNROLL for (int r = 0; r < kF32PartRows; ++r) {
        const int64_t row = row0 + part * kF32PartRows + r;
        if (!probes.seen[row].sees(key0 + key)) continue;
        ++n_seen;
        total += simt::ex2(fmaf(s[r], p.scale * kLog2E, offsets[row]));
      }
    }
  }
  part_totals[part][key] = total;
  part_seen[part][key] = n_seen;
  __syncthreads();
  if (part != 0 || key >= n_keys) return;
  for (int i = 1; i < kF32Parts; ++i) {
    total += part_totals[i][key];
    n_seen += part_seen[i][key];
  }
  p.scores[int64_t{kv_head} * p.kv_len + key0 + key] = probe_score(p, total, n_seen);
}

unsigned blocks_of_keys(const ProbeParams& p, int block_keys) {
  return blocks_for((int64_t{p.kv_len} + block_keys - 1) / block_keys * p.n_kv_heads, 1);
}

template <typename T, int kWidth>
void launch_probe_attention(Context& context, const ProbeParams& p) {
  launch_early(context, &probe_attention_kernel<T, kWidth>,
               blocks_of_keys(p, ProbeShape<kWidth>::kBlockKeys), kThreads,
               ProbeShape<kWidth>::kSharedBytes, p);
}

template <typename T>
void probe_attention_16(Context& context, const ProbeParams& p) {
  if (takes_probe_hopper(context, p)) return probe_attention_hopper<T>(context, p);
  if (p.head_dim <= 64) return launch_probe_attention<T, 64>(context, p);
  if (p.head_dim <= 128) return launch_probe_attention<T, 128>(context, p);
  if (p.head_dim <= 256) return launch_probe_attention<T, 256>(context, p);
  launch_probe_attention<T, kMaxHeadDim>(context, p);
}

void probe_attention_f32(Context& context, const ProbeParams& p) {
  const auto run = [&](auto keys) {
    constexpr int kKeys = decltype(keys)::value;
    launch_early(context, &probe_attention_f32_kernel<kKeys>, blocks_of_keys(p, kKeys), kF32Threads,
                 static_cast<size_t>(f32_shared_bytes(p.head_dim, kKeys)), p);
  };
  p.head_dim <= 256 ? run(std::integral_constant<int, 64>{})
                    : run(std::integral_constant<int, 32>{});
}

}  // namespace

void probe_attention(Context& context, const ProbeAttentionArgs& args) {
  ProbeAttentionArgs a = args;
  ProbeParams p{};
  p.n_q = a.n_rows();
  p.n_heads = static_cast<int>(a.n_heads());
  p.n_kv_heads = static_cast<int>(a.k.size(1));
  p.group = static_cast<int>(a.group());
  p.head_dim = static_cast<int>(a.head_dim());
  ZC_CHECK(p.n_q * p.n_heads <= INT_MAX && a.k.size(0) <= INT_MAX, ErrorCode::kUnsupported,
           "q: %lld rows of all heads, expected fewer than 2^31",
           static_cast<long long>(p.n_q * p.n_heads));
  p.kv_len = static_cast<int32_t>(a.k.size(0));
  p.scale = a.scale;
  p.window = a.sliding_window;
  p.normalized = a.normalized;
  p.n_multiprocessors = context.n_multiprocessors;
  p.faults = context.faults();
  p.probes.n_rows = a.rows.size(0) * p.group;
  p.probes.n_tiles = (p.probes.n_rows + kTileRows - 1) / kTileRows;
  const int64_t n_rows = p.probes.n_tiles * kTileRows;

  const int64_t bytes_a_row = sizeof(int32_t) + sizeof(SeenKeys) + sizeof(float) * p.n_kv_heads;
  const int64_t scratch_bytes = p.probes.n_tiles * int64_t{sizeof(TileKeys)} + n_rows * bytes_a_row;
  with_aligned(context, {&a.q, &a.k}, {}, scratch_bytes, [&](uint8_t* scratch) {
    p.q = a.q.data;
    p.lse = a.lse.as<float>();
    p.k = a.k.data;
    p.rows = a.rows.as<int32_t>();
    p.positions = a.positions.as<int32_t>();
    p.scores = a.scores.as<float>();
    p.probes.tiles = reinterpret_cast<TileKeys*>(scratch);
    p.probes.seen = reinterpret_cast<SeenKeys*>(p.probes.tiles + p.probes.n_tiles);
    p.probes.q_rows = reinterpret_cast<int32_t*>(p.probes.seen + n_rows);
    p.probes.offsets = reinterpret_cast<float*>(p.probes.q_rows + n_rows);
    launch_early(context, &list_probes_kernel,
                 dim3(blocks_for(p.probes.n_tiles, 1), static_cast<unsigned>(p.n_kv_heads)),
                 kTileRows, 0, p);
    switch (a.q.dtype) {
      case DType::kF16:
        return probe_attention_16<f16>(context, p);
      case DType::kBF16:
        return probe_attention_16<bf16>(context, p);
      case DType::kF32:
        return probe_attention_f32(context, p);
      default:
        throw Error(ErrorCode::kDtype,
                    format("q: dtype is %s, expected f32, f16 or bf16", dtype_name(a.q.dtype)));
    }
  });
}

}  // namespace zc::cuda
