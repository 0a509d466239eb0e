// Checks and times flashAttention and probeAttention on a GPU, without Node. Every kernel is first
// compared with a slow one that is easy to see through; then causal prefill of 32 query and 8 KV
// heads is timed, and beside it the probes that ZipCache takes of it (5% recent rows, 5% random
// ones). One JSON line a case.
//   nvcc -std=c++20 -O3 -gencode arch=compute_90a,code=sm_90a -I. -o flash_attention \
//     bench/cuda/flash_attention.cu csrc/cuda/kernels/flash_attention*.cu \
//     csrc/cuda/kernels/probe_attention.cu csrc/cuda/check_cuda.cu csrc/core/error.cc
//   ./flash_attention [--check] [--quick]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "bench/cuda/device.h"
#include "csrc/cuda/launchers.h"
#include "csrc/math/key_range.h"

namespace {

using namespace zc;
using namespace zc::bench;

struct Shape {
  DType dtype;
  int n_heads;
  int n_kv_heads;
  int head_dim;
  std::vector<int> q_lens;
  std::vector<int> kv_lens;
  bool causal = true;
  int window = 0;
};

int64_t sum(const std::vector<int>& x) {
  int64_t total = 0;
  for (const int n : x) total += n;
  return total;
}

std::vector<int32_t> cumulative(const std::vector<int>& x) {
  std::vector<int32_t> cu = {0};
  for (const int n : x) cu.push_back(cu.back() + n);
  return cu;
}

// The tensors of one call.
struct Attention {
  explicit Attention(Device& device, const Shape& s)
      : shape(s),
        total_q(sum(s.q_lens)),
        total_k(sum(s.kv_lens)),
        q(bytes(total_q * s.n_heads)),
        k(bytes(total_k * s.n_kv_heads)),
        v(bytes(total_k * s.n_kv_heads)),
        out(bytes(total_q * s.n_heads)),
        lse(total_q * s.n_heads * 4),
        cu_q(static_cast<int64_t>(s.q_lens.size() + 1) * 4),
        cu_k(static_cast<int64_t>(s.kv_lens.size() + 1) * 4) {
    const int64_t n_seqs = static_cast<int64_t>(s.q_lens.size());
    args = {view(q, s.dtype, {total_q, s.n_heads, s.head_dim}),
            view(k, s.dtype, {total_k, s.n_kv_heads, s.head_dim}),
            view(v, s.dtype, {total_k, s.n_kv_heads, s.head_dim}),
            view(out, s.dtype, {total_q, s.n_heads, s.head_dim}),
            view(lse, DType::kF32, {total_q, s.n_heads}),
            view(cu_q, DType::kI32, {n_seqs + 1}),
            view(cu_k, DType::kI32, {n_seqs + 1}),
            1.0f / std::sqrt(static_cast<float>(s.head_dim)),
            s.window,
            s.causal};
    fill_normal(device, args.q, 1);
    fill_normal(device, args.k, 2);
    fill_normal(device, args.v, 3);
    write(device, cu_q, cumulative(s.q_lens));
    write(device, cu_k, cumulative(s.kv_lens));
    poison(device);
  }
  void poison(Device& device) {
    device.fill(out.data, 0xff, args.out.size_bytes());
    device.fill(lse.data, 0xff, args.lse.size_bytes());
    device.wait();
  }
  int64_t bytes(int64_t rows) const {
    return rows * shape.head_dim * (shape.dtype == DType::kF32 ? 4 : 2);
  }

  Shape shape;
  int64_t total_q;
  int64_t total_k;
  Buffer q, k, v, out, lse, cu_q, cu_k;
  FlashAttentionArgs args;
};

// ---- the slow kernels ----

// A block owns one row of one head, its scores in shared memory.
template <typename T>
__global__ void slow_attention_kernel(const T* q, const T* k, const T* v, float* out, float* lse,
                                      const int32_t* cu_q, const int32_t* cu_k, int n_heads,
                                      int n_kv_heads, int d, float scale, int window, bool causal) {
  ZC_DYNAMIC_SHARED(shared);
  float* const scores = reinterpret_cast<float*>(shared);
  const int64_t row = blockIdx.x;
  const int head = blockIdx.y;
  const int kv_head = head / (n_heads / n_kv_heads);
  int seq = 0;
  while (row >= cu_q[seq + 1]) ++seq;
  const int64_t kv_len = cu_k[seq + 1] - cu_k[seq];
  const int64_t position = kv_len - (cu_q[seq + 1] - cu_q[seq]) + row - cu_q[seq];
  const KeyRange seen = visible_keys(position, kv_len, causal, window);
  const int lane = threadIdx.x;
  const auto at = [&](int64_t key) { return ((cu_k[seq] + key) * n_kv_heads + kv_head) * d; };
  float most = -INFINITY;
  for (int64_t key = seen.first + lane; key < seen.last; key += 32) {
    float s = 0.0f;
    for (int c = 0; c < d; ++c)
      s = fmaf(to_float(q[(row * n_heads + head) * d + c]), to_float(k[at(key) + c]), s);
    scores[key] = s * scale;
    most = fmaxf(most, s * scale);
  }
  for (int step = 16; step > 0; step /= 2)
    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
  float total = 0.0f;
  for (int64_t key = seen.first + lane; key < seen.last; key += 32) {
    scores[key] = expf(scores[key] - most);
    total += scores[key];
  }
  for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(0xffffffffu, total, step);
  __syncwarp();
  for (int c = lane; c < d; c += 32) {
    float o = 0.0f;
    for (int64_t key = seen.first; key < seen.last; ++key)
      o = fmaf(scores[key], to_float(v[at(key) + c]), o);
    out[(row * n_heads + head) * d + c] = total == 0.0f ? 0.0f : o / total;
  }
  if (lane == 0) lse[row * n_heads + head] = total == 0.0f ? -INFINITY : most + logf(total);
}

// A thread owns one key of one KV head.
template <typename T>
__global__ void slow_probes_kernel(const T* q, const float* lse, const T* k, const int32_t* rows,
                                   const int32_t* positions, float* scores, int n_probes,
                                   int kv_len, int n_heads, int n_kv_heads, int d, float scale) {
  const int key = blockIdx.x * blockDim.x + threadIdx.x;
  const int kv_head = blockIdx.y;
  if (key >= kv_len) return;
  const int group = n_heads / n_kv_heads;
  float total = 0.0f;
  int n_seen = 0;
  for (int p = 0; p < n_probes; ++p) {
    if (positions[p] < key) continue;
    ++n_seen;
    for (int g = 0; g < group; ++g) {
      const int64_t row = int64_t{rows[p]} * n_heads + kv_head * group + g;
      float s = 0.0f;
      for (int c = 0; c < d; ++c)
        s = fmaf(to_float(q[row * d + c]),
                 to_float(k[(int64_t{key} * n_kv_heads + kv_head) * d + c]), s);
      total += expf(s * scale - lse[row]);
    }
  }
  scores[int64_t{kv_head} * kv_len + key] = n_seen ? total / n_seen : 0.0f;
}

// ---- checks ----

template <typename T>
bool check_attention(Device& device, const Shape& s, double tolerance) {
  Attention a(device, s);
  const int64_t n_rows = a.total_q * s.n_heads;
  Buffer slow_out(n_rows * s.head_dim * 4);
  Buffer slow_lse(n_rows * 4);
  const int longest = *std::max_element(s.kv_lens.begin(), s.kv_lens.end());
  launch(device, &slow_attention_kernel<T>,
         dim3(static_cast<unsigned>(a.total_q), static_cast<unsigned>(s.n_heads)), 32,
         static_cast<size_t>(longest) * 4, a.args.q.as<T>(), a.args.k.as<T>(), a.args.v.as<T>(),
         static_cast<float*>(slow_out.data), static_cast<float*>(slow_lse.data),
         a.args.cu_seqlens_q.as<int32_t>(), a.args.cu_seqlens_k.as<int32_t>(), s.n_heads,
         s.n_kv_heads, s.head_dim, a.args.scale, s.window, s.causal);
  flash_attention(device, a.args);
  device.wait();
  const double out_error = worst(read<T>(a.out, n_rows * s.head_dim),
                                 read<float>(slow_out, n_rows * s.head_dim), s.head_dim, 1e-6);
  const double lse_error = worst(read<float>(a.lse, n_rows), read<float>(slow_lse, n_rows), 1, 1.0);
  const bool good = out_error <= tolerance && lse_error <= 2e-5;
  std::printf(
      "{\"check\": \"flash\", \"form\": \"%s\", \"dtype\": \"%s\", \"head_dim\": %d, \"heads\": "
      "\"%d/%d\", \"total_q\": %lld, \"total_k\": %lld, \"causal\": %s, \"window\": %d, "
      "\"out_error\": %.2e, \"lse_error\": %.2e, \"good\": %s}\n",
      s.dtype == DType::kF32 ? "f32" : form_of(device), dtype_name(s.dtype), s.head_dim, s.n_heads,
      s.n_kv_heads, static_cast<long long>(a.total_q), static_cast<long long>(a.total_k),
      s.causal ? "true" : "false", s.window, out_error, lse_error, good ? "true" : "false");
  return good;
}

// Probes of one sequence: the last 5% of its rows and 5% of those before, ascending.
std::vector<int32_t> choose_probes(int length) {
  const int recent = (length + 19) / 20;
  std::mt19937 random(7);
  std::vector<int32_t> rows;
  for (int row = 0; row < length; ++row)
    if (row >= length - recent || random() % 19 == 0) rows.push_back(row);
  return rows;
}

struct Probes {
  Probes(Device& device, const Attention& a, int length)
      : list(choose_probes(length)),
        rows(static_cast<int64_t>(list.size()) * 4),
        scores(int64_t{a.shape.n_kv_heads} * length * 4) {
    write(device, rows, list);
    const auto n = static_cast<int64_t>(list.size());
    args.q = a.args.q;
    args.lse = a.args.lse;
    args.k = a.args.k;
    args.rows = args.positions = view(rows, DType::kI32, {n});
    args.scores = view(scores, DType::kF32, {a.shape.n_kv_heads, length});
    args.scale = a.args.scale;
    args.sliding_window = 0;
    args.normalized = true;
  }
  std::vector<int32_t> list;
  Buffer rows;
  Buffer scores;
  ProbeAttentionArgs args;
};

template <typename T>
bool check_probes(Device& device, const Shape& s) {
  Attention a(device, s);
  flash_attention(device, a.args);
  const int length = s.q_lens[0];
  Probes p(device, a, length);
  const int64_t n = int64_t{s.n_kv_heads} * length;
  Buffer slow(n * 4);
  device.fill(p.scores.data, 0xff, n * 4);
  launch(device, &slow_probes_kernel<T>,
         dim3(blocks_for(length, 128), static_cast<unsigned>(s.n_kv_heads)), 128, 0,
         a.args.q.as<T>(), a.args.lse.as<float>(), a.args.k.as<T>(), p.args.rows.as<int32_t>(),
         p.args.rows.as<int32_t>(), static_cast<float*>(slow.data),
         static_cast<int>(p.list.size()), length, s.n_heads, s.n_kv_heads, s.head_dim,
         a.args.scale);
  probe_attention(device, p.args);
  device.wait();
  const double error = worst(read<float>(p.scores, n), read<float>(slow, n), length, 1e-6);
  const bool good = error <= 1e-4;
  std::printf(
      "{\"check\": \"probes\", \"dtype\": \"%s\", \"head_dim\": %d, \"heads\": \"%d/%d\", "
      "\"length\": %d, \"n_probes\": %zu, \"error\": %.2e, \"good\": %s}\n",
      dtype_name(s.dtype), s.head_dim, s.n_heads, s.n_kv_heads, length, p.list.size(), error,
      good ? "true" : "false");
  return good;
}

bool check_all(Device& device) {
  bool good = true;
  const auto both = [&](Shape s) {
    s.dtype = DType::kBF16;
    good &= check_attention<bf16>(device, s, 2e-2);
    s.dtype = DType::kF16;
    good &= check_attention<f16>(device, s, 4e-3);
  };
  for (const int architecture : {device.own_architecture, 80}) {
    if (architecture == 80 && device.own_architecture != 90 && device.architecture == 80) continue;
    device.architecture = architecture;
    for (const int d : {64, 128, 256, 96, 32}) {
      both({DType::kBF16, 4, 2, d, {1000, 1, 129, 0, 64}, {1000, 777, 300, 5, 64}});
      both({DType::kBF16, 4, 4, d, {333}, {700}, false});
    }
    both({DType::kBF16, 8, 2, 128, {900, 20}, {900, 3}, true, 300});
    both({DType::kBF16, 32, 8, 128, {2048}, {2048}});
  }
  device.architecture = device.own_architecture;
  good &= check_attention<float>(
      device, {DType::kF32, 4, 2, 80, {1000, 1, 129}, {1000, 777, 300}}, 2e-5);
  for (const int d : {64, 128, 256}) {
    good &= check_probes<bf16>(device, {DType::kBF16, 8, 2, d, {1500}, {1500}});
    good &= check_probes<f16>(device, {DType::kF16, 7, 1, d, {600}, {600}});
  }
  good &= check_probes<float>(device, {DType::kF32, 8, 2, 96, {1000}, {1000}});
  return good;
}

// ---- times ----

void time_case(Device& device, int batch, int length, int d, bool causal) {
  const Shape s = {DType::kBF16,
                   32,
                   8,
                   d,
                   std::vector<int>(static_cast<size_t>(batch), length),
                   std::vector<int>(static_cast<size_t>(batch), length),
                   causal};
  Attention a(device, s);
  const double scores = double(length) * length * (causal ? 0.5 : 1.0) * batch * s.n_heads;
  const int repeats = length > 8192 ? 11 : 21;
  Time wgmma{};
  for (const int architecture : {device.own_architecture, 80}) {
    if (architecture == 80 && device.architecture == 80 && wgmma.median > 0) continue;
    device.architecture = architecture;
    const Time t = time_of(device, repeats, [&] { flash_attention(device, a.args); });
    if (wgmma.median == 0) wgmma = t;
    std::printf(
        "{\"op\": \"flash\", \"form\": \"%s\", \"batch\": %d, \"length\": %d, \"head_dim\": %d, "
        "\"causal\": %s, \"us\": %.1f, \"low_us\": %.1f, \"high_us\": %.1f, \"tflops\": %.1f}\n",
        form_of(device), batch, length, d, causal ? "true" : "false", t.median, t.low, t.high,
        scores * d * 4 / t.median * 1e-6);
  }
  device.architecture = device.own_architecture;
  if (batch != 1 || !causal) return;
  Probes p(device, a, length);
  double probe_scores = 0;
  for (const int32_t row : p.list) probe_scores += (row + 1.0) * s.n_heads;
  const Time t = time_of(device, repeats, [&] { probe_attention(device, p.args); });
  std::printf(
      "{\"op\": \"probes\", \"length\": %d, \"head_dim\": %d, \"n_probes\": %zu, \"us\": %.1f, "
      "\"low_us\": %.1f, \"high_us\": %.1f, \"tflops\": %.1f, \"of_flash\": %.3f}\n",
      length, d, p.list.size(), t.median, t.low, t.high, probe_scores * d * 2 / t.median * 1e-6,
      t.median / wgmma.median);
}

}  // namespace

int main(int argc, char** argv) {
  const Mode mode(argc, argv);
  Device device;
  print_device(device);
  if (!check_all(device)) {
    std::printf("{\"failed\": true}\n");
    return 1;
  }
  if (mode.check_only) return 0;
  for (const int d : {128, 64, 256})
    for (const int length : {2048, 4096, 8192, 16384}) {
      if (mode.quick && length != 8192) continue;
      time_case(device, 1, length, d, true);
      if (d != 256) time_case(device, 2, length, d, true);
      if (length == 8192) time_case(device, 1, length, d, false);
    }
  return 0;
}
