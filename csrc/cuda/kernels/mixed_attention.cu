#include "csrc/cuda/kernels/mixed_attention.h"

#include "csrc/cuda/aligned.h"
#include "csrc/cuda/launchers.h"
#include "csrc/cuda/mixed_attention/merger.h"
#include "csrc/cuda/mixed_attention/producer.h"

// Attention straight over the packed cache, decoding's kernel. With K channelwise and V
// channel-separable tokenwise no element is ever dequantized; scales move to where there are fewer
// numbers (log2 domain, lambda = scale log2 e):
//   s_j = sum_c (lambda q_c a_c) code_jc + lambda sum_c q_c b_c       (a, b: K's channel scale and zero)
//   o_c = g_c (sum_j (p_j sigma_j) code_jc + sum_j p_j mu_j)          (sigma, mu: V's token scale and zero; g: channel)
// Nor are codes turned into numbers (csrc/cuda/mixed_attention/operands.h); the powers of two are
// folded into q, p and the output.
//
// mma has 8 columns, and 4 query heads share a KV head in most models. So q is two float16, the
// second what rounding left of the first, in neighbouring columns, which one lane holds in its
// accumulators: scores of float32's accuracy for one addition. p is one, and its neighbour zero.
//
// One warp of a block, the producer, follows tables to pages and has them copied into rings of
// slots, one ring for each of six others, the consumers. It goes on from a split, and from an item,
// to the next without waiting for what they make of it, and they go on while another warp, the
// merger, adds up what they have.
namespace zc::cuda {

namespace {

using namespace mixed;

// What the warps of one block do.
template <typename Block>
ZC_DEVICE void attend_items(const Params& p) {
  constexpr int kConsumers = Block::kConsumers;
  ZC_DYNAMIC_SHARED(shared);
  BlockMemory<Block>& memory = *reinterpret_cast<BlockMemory<Block>*>(shared);
  int64_t* cost_before = reinterpret_cast<int64_t*>(&memory + 1);
  const int thread = static_cast<int>(threadIdx.x);
  // Each warp a few: lanes take turns at it.
  const int warp = thread >> 5;
  const int lane = thread & 31;
  if (warp < kConsumers && lane < Block::kStages) {
    simt::mbarrier_init(simt::smem_u32(&memory.full[warp][lane]), Block::kBulk ? 1 : kLaneArrivals);
    simt::mbarrier_init(simt::smem_u32(&memory.empty[warp][lane]), 1);
  }
  if (warp >= kConsumers && lane < 2) {
    const bool producer = warp == kConsumers;
    simt::mbarrier_init(simt::smem_u32((producer ? memory.item_free : memory.results_free) + lane),
                        1);
    if (!producer) simt::mbarrier_init(simt::smem_u32(memory.results_full + lane), kConsumers);
  }
  if (thread == 0) memory.team = 1;
  if constexpr (Block::kBulk) simt::fence_mbarrier_init();
  __syncthreads();
  simt::wait_for_kernels_before();
  const WorkLine line = line_up<Block::kThreads>(p, cost_before, memory.works, &memory.team);
  if (thread < 32 * kConsumers)
    Consumer<Block>(p, memory).run();
  else if (thread < 32 * (kConsumers + 1))
    Producer<Block>(p, memory).run(line);
  else
    Merger<Block>(p, memory).run();
}

// How many blocks run on a multiprocessor at once: what there is shared memory and registers for.
ZC_HD constexpr int resident_blocks(int head_dim, int architecture) {
  return has_little_memory(architecture) || (architecture == 80 && head_dim > 64) || head_dim == 256
             ? 1
             : 2;
}

// Which forms of the kernel code for one architecture has. Older GPUs' code may be run by others,
// from PTX, and has both.
#if defined(__CUDA_ARCH__)
template <int kDim, bool kBulk, bool kLittleMemory>
constexpr bool kIsBuilt =
    kBulk == (__CUDA_ARCH__ >= 900) &&
    (kDim <= 64 || __CUDA_ARCH__ == 800 || has_little_memory(__CUDA_ARCH__ / 10) == kLittleMemory);
template <int kDim>
constexpr int kBlocks = resident_blocks(kDim, __CUDA_ARCH__ / 10);
#else
template <int kDim, bool kBulk, bool kLittleMemory>
constexpr bool kIsBuilt = true;
template <int kDim>
constexpr int kBlocks = resident_blocks(kDim, 90);
#endif

// Attention of 4 columns (rows of q and heads that share a KV head) over one or more splits of a
// sequence at a time. A block owns a piece of the line of all splits; consumer w owns the w-th
// part of a split's units (64 tokens of 2 to 4 bits, 32 of 8, 16 of floats). Splits that blocks
// share are merged by the block that comes last. Bound by memory bandwidth from about 25 MB a call
// on; below that by latency. Shared memory: BlockMemory, most of it kConsumers kStages
// (32 head_dim + 256) bytes of slots, and 8 bytes a sequence.
template <int kDim, bool kBulk, bool kLittleMemory>
__global__ void __launch_bounds__(BlockShape<kDim, kBulk, kLittleMemory>::kThreads, kBlocks<kDim>)
    mixed_attention_kernel(Params p) {
  if constexpr (kIsBuilt<kDim, kBulk, kLittleMemory>)
    attend_items<BlockShape<kDim, kBulk, kLittleMemory>>(p);
}

template <int kDim, bool kBulk, bool kLittleMemory>
void launch_kernel(Context& context, int blocks, const Params& p) {
  using Block = BlockShape<kDim, kBulk, kLittleMemory>;
  const size_t shared_bytes =
      sizeof(BlockMemory<Block>) + (static_cast<size_t>(p.n_seqs) + 1) * sizeof(int64_t);
  launch_early(context, &mixed_attention_kernel<kDim, kBulk, kLittleMemory>,
               static_cast<unsigned>(blocks), Block::kThreads, shared_bytes, p);
}

template <int kDim>
void launch_mixed_attention(Context& context, const MixedAttentionArgs& a) {
  Params p{};
  p.q = a.q.as<uint16_t>();
  p.out = a.out.as<uint16_t>();
  p.lse = a.lse.as<float>();
  p.pool = a.pool.as<uint8_t>();
  p.pool_bytes = a.pool.size(0);
  p.tables = a.tables.as<int32_t>();
  p.tables_words = a.tables.size(0);
  p.starts = a.starts.as<int32_t>();
  p.cu_seqlens = a.cu_seqlens.as<int32_t>();
  p.positions = a.positions.as<int32_t>();
  p.sliding_window = a.sliding_window;
  p.n_seqs = static_cast<int32_t>(a.starts.size(0));
  p.total_q = static_cast<int32_t>(a.q.size(0));
  p.n_heads = static_cast<int32_t>(a.q.size(1));
  p.layer = a.layer;
  p.scale = a.scale;
  p.bf16 = a.q.dtype == DType::kBF16;
  p.tail = a.tail;
  p.causal = a.causal;
  p.faults = context.faults();
  if (p.n_seqs == 0) return;
  const int code = code_architecture(context, &mixed_attention_kernel<kDim, false, false>);
  const bool bulk = code >= 90;
  const bool little = has_little_memory(code == 80 ? context.architecture : code);
  const int blocks = (little ? 1 : resident_blocks(kDim, code)) * context.n_multiprocessors;
  // Left zeroed, as counters are.
  const int64_t n_words = int64_t{blocks} * kMaxSplits * LeftPart<kDim>::kWarpWords;
  int32_t* const zeros = context.counters(4 * n_words + blocks);
  p.partials = reinterpret_cast<uint4*>(zeros);
  p.arrivals = zeros + 4 * n_words;
  if constexpr (kDim > 64) {
    if (little)
      return bulk ? launch_kernel<kDim, true, true>(context, blocks, p)
                  : launch_kernel<kDim, false, true>(context, blocks, p);
  }
  bulk ? launch_kernel<kDim, true, false>(context, blocks, p)
       : launch_kernel<kDim, false, false>(context, blocks, p);
}

}  // namespace

void mixed_attention(Context& context, const MixedAttentionArgs& a) {
  check_pool(a.pool);
  // float32 queries ask for float32 products, which tensor cores do not give. q is read in pairs,
  // out written in fours.
  const bool half =
      a.q.dtype != DType::kF32 && is_aligned(a.q.data, 4) && is_aligned(a.out.data, 8);
  switch (half ? a.q.size(2) : 0) {
    case 64:
      return launch_mixed_attention<64>(context, a);
    case 96:
      return launch_mixed_attention<96>(context, a);
    case 128:
      return launch_mixed_attention<128>(context, a);
    case 256:
      return launch_mixed_attention<256>(context, a);
    default:
      return mixed_attention_any_shape(context, a);
  }
}

}  // namespace zc::cuda
