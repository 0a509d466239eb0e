#include "csrc/cuda/kernels/flash_attention.h"

#include "csrc/cuda/kernel.h"

namespace zc::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kLanes = 8;  // that share a row: a warp owns 4 rows
constexpr int kTileRows = kThreads / kLanes;

// Heads of so many channels at most, and keys of a block: as many as 99 KB of shared memory hold.
template <int kWidth_, int kBlockKeys_>
struct F32Shape {
  static constexpr int kBlockKeys = kBlockKeys_;
  static constexpr int kKeys = kBlockKeys / kLanes;  // a lane's, kLanes apart
  static constexpr int kVectors =
      kWidth_ / (4 * kLanes);  // of 4 channels, a lane's, 4 kLanes apart
};

// Rows of keys begin 16 bytes further on in the banks each, so that 8 lanes read 8 keys at once.
int padded_row(int head_dim) { return head_dim + 4; }

int64_t shared_bytes(int head_dim, int block_keys) {
  return (kTileRows * head_dim + block_keys * padded_row(head_dim)) * int64_t{sizeof(float)};
}

// Rows `stride` elements apart to rows `to_stride` apart; what lies beyond n_rows becomes 0.
ZC_DEVICE void load_rows(float* to, int to_stride, const float* from, int64_t stride, int n_rows,
                         int max_rows, int head_dim) {
  const int vectors = head_dim / 4;
  for (int i = threadIdx.x; i < max_rows * vectors; i += kThreads) {
    const int row = i / vectors;
    const int c = i % vectors * 4;
    *reinterpret_cast<float4*>(to + row * to_stride + c) =
        row < n_rows ? *reinterpret_cast<const float4*>(from + row * stride + c)
                     : make_float4(0, 0, 0, 0);
  }
}

// O = softmax(scale Q K^T) V as in flash_attention.cu, in f32 throughout. A block of threads owns
// kTileRows rows of one head, 8 lanes one of the rows: a score each of the keys, then a part of
// the channels of O each. K and V of a block follow each other through one buffer. Shared memory:
// shared_bytes, up to 97 KB. Bound by reading shared memory: for tests and small models.
template <typename Shape>
__global__ void __launch_bounds__(kThreads, 1)
    flash_attention_f32_kernel(const __grid_constant__ FlashParams p) {
  constexpr int kBlockKeys = Shape::kBlockKeys;
  constexpr int kKeys = Shape::kKeys;
  constexpr int kVectors = Shape::kVectors;
  ZC_DYNAMIC_SHARED(shared);
  const int d = p.head_dim;
  const int kv_row = d + 4;
  float* const q_rows = reinterpret_cast<float*>(shared);  // (kTileRows, d)
  float* const kv_rows = q_rows + kTileRows * d;           // (kBlockKeys, kv_row)

  if (blockIdx.x == 0) {
    check_cu_seqlens(p.faults, p.cu_seqlens_q, p.n_seqs, p.total_q, FaultReason::kSeqlensQ);
    check_cu_seqlens(p.faults, p.cu_seqlens_k, p.n_seqs, p.total_k, FaultReason::kSeqlensK);
  }
  const FlashTile tile = flash_tile(p, kTileRows, blockIdx.x);
  if (tile.n_rows == 0) return;
  const FlashBlocks blocks = flash_blocks(p, tile, kBlockKeys);
  const int64_t kv_first = int64_t{tile.k_row} * p.kv_stride + int64_t{tile.head / p.group} * d;
  const int64_t q_first = int64_t{tile.q_row} * p.q_stride + int64_t{tile.head} * d;
  load_rows(q_rows, d, static_cast<const float*>(p.q) + q_first, p.q_stride, tile.n_rows, kTileRows,
            d);

  const int row = threadIdx.x / kLanes;
  const int part = threadIdx.x % kLanes;
  const unsigned first_lane = threadIdx.x % 32 / kLanes * kLanes;
  float4 o[kVectors];
  ZC_UNROLL for (int i = 0; i < kVectors; ++i) o[i] = make_float4(0, 0, 0, 0);
  float max_score = -INFINITY;
  float sum = 0.0f;

  for (int block = blocks.last - 1; block >= blocks.first; --block) {
    const int key0 = block * kBlockKeys;
    const auto load_block = [&](const void* from) {
      __syncthreads();  // nobody reads what was there any more
      load_rows(kv_rows, kv_row,
                static_cast<const float*>(from) + kv_first + int64_t{key0} * p.kv_stride,
                p.kv_stride, tile.kv_len - key0, kBlockKeys, d);
      __syncthreads();
    };
    load_block(p.k);
    float s[kKeys] = {};
    for (int c = 0; c < d; c += 4) {
      const float4 a = *reinterpret_cast<const float4*>(q_rows + row * d + c);
      ZC_UNROLL for (int i = 0; i < kKeys; ++i) {
        const float4 b =
            *reinterpret_cast<const float4*>(kv_rows + (part + i * kLanes) * kv_row + c);
        s[i] = fmaf(a.x, b.x, fmaf(a.y, b.y, fmaf(a.z, b.z, fmaf(a.w, b.w, s[i]))));
      }
    }
    const SeenKeys seen = seen_keys(p, tile, row, key0, kBlockKeys);
    float now = max_score;
    ZC_UNROLL for (int i = 0; i < kKeys; ++i) {
      s[i] = seen.sees(part + i * kLanes) ? s[i] * p.scale : -INFINITY;
      now = fmaxf(now, s[i]);
    }
    ZC_UNROLL for (int step = 1; step < kLanes; step *= 2) now =
        fmaxf(now, __shfl_xor_sync(0xffffffffu, now, step));
    const float factor = max_score == now ? 1.0f : expf(max_score - now);
    const float offset = now == -INFINITY ? 0.0f : now;
    max_score = now;
    float total = 0.0f;
    ZC_UNROLL for (int i = 0; i < kKeys; ++i) {
      s[i] = expf(s[i] - offset);
      total += s[i];
    }
    sum = fmaf(sum, factor, total);
    ZC_UNROLL for (int i = 0; i < kVectors; ++i) {
      o[i].x *= factor, o[i].y *= factor, o[i].z *= factor, o[i].w *= factor;
    }

    load_block(p.v);
    ZC_UNROLL for (int i = 0; i < kKeys; ++i) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const float weight = __shfl_sync(0xffffffffu, s[i], first_lane + lane);
        const int key = i * kLanes + lane;
        if (!seen.sees(key)) continue;  // 0 times NaN is NaN
        ZC_UNROLL for (int j = 0; j < kVectors; ++j) {
          const int c = 4 * (part + j * kLanes);
          if (c >= d) break;
          const float4 v = *reinterpret_cast<const float4*>(kv_rows + key * kv_row + c);
          o[j].x = fmaf(weight, v.x, o[j].x);
          o[j].y = fmaf(weight, v.y, o[j].y);
          o[j].z = fmaf(weight, v.z, o[j].z);
          o[j].w = fmaf(weight, v.w, o[j].w);
        }
      }
    }
  }

  ZC_UNROLL for (int step = 1; step < kLanes; step *= 2) sum +=
      __shfl_xor_sync(0xffffffffu, sum, step);
  if (row >= tile.n_rows) return;
  const float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
  float* const out = static_cast<float*>(p.out) + q_first + int64_t{row} * p.q_stride;
  ZC_UNROLL for (int j = 0; j < kVectors; ++j) {
    const int c = 4 * (part + j * kLanes);
    if (c >= d) break;
    *reinterpret_cast<float4*>(out + c) =
        make_float4(o[j].x * factor, o[j].y * factor, o[j].z * factor, o[j].w * factor);
  }
  if (part == 0)
    p.lse[int64_t{tile.q_row + row} * p.n_heads + tile.head] =
        sum == 0.0f ? -INFINITY : max_score + logf(sum);
}

}  // namespace

void flash_attention_f32(Context& context, const FlashParams& p) {
  const auto run = [&](auto shape) {
    using Shape = decltype(shape);
    launch(context, &flash_attention_f32_kernel<Shape>, blocks_for(flash_items(p, kTileRows), 1),
           kThreads, static_cast<size_t>(shared_bytes(p.head_dim, Shape::kBlockKeys)), p);
  };
  p.head_dim <= 256 ? run(F32Shape<256, 32>{}) : run(F32Shape<kMaxHeadDim, 16>{});
}

}  // namespace zc::cuda
