// Times mixedAttention through a plugin (zipcache-cuda.so, or zipcache-cuda-emu.so to try the
// program itself), LLaMA3-8B's heads by default, caches of random codes, every layer its own: what
// one decode step reads is cold. Results are checked against double precision first, and those of the
// last replay against the first. One JSON line a case.
//   mixed_attention PLUGIN [--full | --check | --case POLICY BATCH CONTEXT]
#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "csrc/cuda/device/page.h"
#include "csrc/ops/plugin.h"

namespace {

using namespace zc;
using zc::cuda::SegmentView;

void fail(const char* what, const OpStatus& status) {
  std::fprintf(stderr, "%s: %s\n", what, status.message);
  std::exit(1);
}

struct Device {
  const Plugin* plugin;
  DeviceContext* context;
  OpContext op_context;

  explicit Device(const char* path) {
    void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
      std::fprintf(stderr, "%s\n", dlerror());
      std::exit(1);
    }
    plugin = reinterpret_cast<PluginEntry>(dlsym(library, kPluginEntry))();
    OpStatus status;
    context = plugin->open(0, &status);
    if (status.code) fail("open", status);
    op_context = {nullptr, context};
  }
  void* allocate(int64_t bytes) const {
    OpStatus status;
    void* memory = plugin->allocate(context, bytes, &status);
    if (status.code) fail("allocate", status);
    return memory;
  }
  void write(void* to, const void* from, int64_t bytes) const {
    OpStatus status;
    plugin->write(context, to, from, bytes, &status);
    if (status.code) fail("write", status);
  }
  void read(void* to, const void* from, int64_t bytes) const {
    OpStatus status;
    plugin->read(context, to, from, bytes, &status);
    if (status.code) fail("read", status);
  }
  void synchronize() const {
    OpStatus status;
    DeviceMark* mark = plugin->mark(context, nullptr, 0, &status);
    if (status.code) fail("mark", status);
    plugin->wait(context, mark, nullptr, &status);
    if (status.code) fail("wait", status);
  }
};

struct ClassPlan {
  Format k;
  Format v;
  double share;  // of the compressed tokens
};

struct Policy {
  const char* name;
  std::vector<ClassPlan> classes;
  int window = 0;  // tokens that were compressed together; 0: all, as those of a prompt
};

const Policy kPolicies[] = {
    {"fp16", {{Format::kF16, Format::kF16, 1.0}}},
    {"uniform8", {{Format::kU8, Format::kU8, 1.0}}},
    {"uniform4", {{Format::kU4, Format::kU4, 1.0}}},
    {"uniform2", {{Format::kU2, Format::kU2, 1.0}}},
    {"zipcache-60", {{Format::kU4, Format::kU4, 0.6}, {Format::kU2, Format::kU2, 0.4}}},
    {"zipcache-plus", {{Format::kU4, Format::kU4, 0.2}, {Format::kU3, Format::kU2, 0.8}}},
    {"zipcache-60-decoded", {{Format::kU4, Format::kU4, 0.6}, {Format::kU2, Format::kU2, 0.4}}, 100},
};

struct Case {
  const Policy* policy;
  std::vector<int> lengths;  // compressed tokens of each sequence, the longest first; kTail join them
  int n_heads;
  int n_kv_heads;
  int head_dim;
  int n_layers;

  int batch() const { return static_cast<int>(lengths.size()); }
};

constexpr int kTail = 50;

struct Part {
  Format k, v;
  int n;  // tokens
};

// One head's pages and parameters, which every head of every layer of sequences of one length gets:
// the addresses differ.
struct Head {
  std::vector<Part> parts;  // the tail first
  std::vector<uint8_t> bytes;
  std::vector<int64_t> page_at;
  std::vector<int> first_page;
  std::vector<int64_t> params_at;
  int64_t read_bytes = 0;

  int64_t size() const { return static_cast<int64_t>(bytes.size()); }
};

// The cache of one case: the tables on the host, all pages in one pool on the device.
struct Cache {
  std::map<int, Head> heads;  // by tokens
  std::vector<int32_t> tables;  // of all sequences
  std::vector<int32_t> starts;
  uint8_t* pool;
  int64_t pool_bytes = 0;
  int64_t read_bytes = 0;  // that one layer's call reads
};

struct Random {
  std::mt19937 engine{1};
  std::normal_distribution<float> normal;
  float operator()() { return normal(engine); }
};

Head make_head(const Case& c, int n_tokens, Random& random) {
  const int d = c.head_dim;
  Head head;
  head.parts = {{Format::kF16, Format::kF16, kTail}};
  const int window = c.policy->window > 0 ? c.policy->window : n_tokens;
  for (int begin = 0; begin < n_tokens; begin += window) {
    const int n_window = std::min(window, n_tokens - begin);
    int left = n_window;
    for (const ClassPlan& plan : c.policy->classes) {
      const bool is_last = &plan == &c.policy->classes.back();
      const int n = is_last ? left : static_cast<int>(plan.share * n_window);
      head.parts.push_back({plan.k, plan.v, n});
      left -= n;
    }
  }
  for (const Part& part : head.parts) {
    const int64_t bytes = page_bytes(part.k, part.v, d);
    const int n_pages = (part.n + kPageTokens - 1) / kPageTokens;
    head.first_page.push_back(static_cast<int>(head.page_at.size()));
    for (int i = 0; i < n_pages; ++i) {
      head.page_at.push_back(head.size());
      head.bytes.resize(head.bytes.size() + static_cast<size_t>(bytes));
      uint8_t* page = head.bytes.data() + head.page_at.back();
      uint32_t* words = reinterpret_cast<uint32_t*>(page);
      for (int64_t w = 0; w < bytes / 4; ++w) words[w] = random.engine();
      uint8_t* values = page + part_bytes(part.k, d);
      for (int t = 0; t < kPageTokens; ++t)
        for (int ch = 0; ch < d; ++ch) {
          if (!format_quantized(part.k))
            cuda::write_float<true>(page, part.k, d, t, ch, random());
          if (!format_quantized(part.v))
            cuda::write_float<false>(values, part.v, d, t, ch, random());
        }
      if (format_quantized(part.v)) {
        uint32_t* params = reinterpret_cast<uint32_t*>(values + part_bytes(part.v, d));
        const float levels = static_cast<float>((1 << format_bits(part.v)) - 1);
        for (int t = 0; t < kPageTokens; ++t)
          params[t] = cuda::pack_token_params(to_f16((4.0f + 0.5f * random()) / levels),
                                              to_f16(-2.0f + 0.2f * random()));
      }
    }
    head.params_at.push_back(head.size());
    head.bytes.resize(head.bytes.size() + static_cast<size_t>(params_bytes(d) + 63) / 64 * 64);
    f16* params = reinterpret_cast<f16*>(head.bytes.data() + head.params_at.back());
    const float levels = static_cast<float>((1 << format_bits(part.k)) - 1);
    for (int ch = 0; ch < d; ++ch) {  // some channels eight times as wide as others
      const float width = (ch % 37 == 0 ? 8.0f : 1.0f) * (5.0f + 0.5f * random());
      params[ch] = to_f16(width / levels);
      params[d + ch] = to_f16(-width * 0.5f + 0.3f * random());
      params[2 * d + ch] = to_f16(ch % 41 == 0 ? 2.5f : 1.0f + 0.1f * std::fabs(random()));
    }
    head.read_bytes += bytes * n_pages + (format_quantized(part.k) ? params_bytes(d) : 0);
  }
  head.bytes.resize((head.bytes.size() + 255) / 256 * 256);
  return head;
}

Cache build(const Device& device, const Case& c, Random& random) {
  Cache cache;
  int64_t layer_bytes = 0;
  for (const int n : c.lengths) {
    if (cache.heads.count(n) == 0) cache.heads[n] = make_head(c, n, random);
    layer_bytes += cache.heads[n].size() * c.n_kv_heads;
    cache.read_bytes += cache.heads[n].read_bytes * c.n_kv_heads;
  }
  cache.pool_bytes = layer_bytes * c.n_layers;
  cache.pool = static_cast<uint8_t*>(device.allocate(cache.pool_bytes));

  int64_t sequence_at = 0;  // bytes of a layer
  for (const int n : c.lengths) {
    const Head& head = cache.heads[n];
    const int n_segments = static_cast<int>(head.parts.size());
    const int n_pages = static_cast<int>(head.page_at.size());
    const int entry_words = kEntryHeader + n_segments * kSegmentWords;
    const int n_lists = c.n_layers * c.n_kv_heads;
    const size_t start = cache.tables.size();
    cache.starts.push_back(static_cast<int32_t>(start));
    cache.tables.resize(start + static_cast<size_t>(kTableHeader) +
                        static_cast<size_t>(n_lists) * static_cast<size_t>(entry_words + n_pages));
    int32_t* table = cache.tables.data() + start;
    table[kTableTailLength] = kTail;
    table[kTableTailStart] = n;
    table[kTableLayers] = c.n_layers;
    table[kTableKvHeads] = c.n_kv_heads;
    table[kTableMaxSegments] = n_segments;
    int32_t at = kTableHeader + n_lists * entry_words;
    for (int layer = 0; layer < c.n_layers; ++layer)
      for (int h = 0; h < c.n_kv_heads; ++h) {
        const int64_t byte = layer * layer_bytes + sequence_at + h * head.size();
        device.write(cache.pool + byte, head.bytes.data(), head.size());
        const int64_t base = byte / kPageUnitBytes;
        int32_t* entry = table + entry_index(table, layer, h);
        entry[0] = n_segments;
        for (int i = 0; i < n_segments; ++i) {
          const auto index = static_cast<size_t>(i);
          int32_t* w = entry + kEntryHeader + i * kSegmentWords;
          w[0] = static_cast<int32_t>(head.parts[index].k);
          w[1] = static_cast<int32_t>(head.parts[index].v);
          w[2] = head.parts[index].n;
          w[3] = at + head.first_page[index];
          w[4] = static_cast<int32_t>(base + head.params_at[index] / kPageUnitBytes);
          w[5] = -1;
        }
        for (const int64_t page : head.page_at)
          table[at++] = static_cast<int32_t>(base + page / kPageUnitBytes);
      }
    sequence_at += head.size() * c.n_kv_heads;
  }
  device.synchronize();
  return cache;
}

// Attention of one head of the first sequence, in double precision over dequantized values.
std::vector<double> reference(const Case& c, Cache& cache, const float* q, double scale) {
  const int d = c.head_dim;
  const int32_t* table = cache.tables.data();
  std::vector<double> out(static_cast<size_t>(d), 0.0);
  double max = -INFINITY, sum = 0.0;
  for (int index = 0; index < segment_count(table, 0, 0); ++index) {
    SegmentView view{};
    view.segment = read_segment(table, 0, 0, index);
    view.pages = table + view.segment.pages_begin;
    view.pool = cache.heads[c.lengths[0]].bytes.data();
    view.head_dim = d;
    view.v_offset = static_cast<int32_t>(part_bytes(view.segment.k_format, d));
    view.params_offset = view.v_offset + static_cast<int32_t>(part_bytes(view.segment.v_format, d));
    for (int j = 0; j < view.segment.n_tokens; ++j) {
      const int page = j / kPageTokens, t = j % kPageTokens;
      double score = 0.0;
      for (int ch = 0; ch < d; ++ch) {
        const double k =
            view.k_quantized()
                ? double{to_float(view.channel_params(0)[ch])} *
                          cuda::read_code<true>(view.k_part(page), view.segment.k_format, d, t, ch) +
                      double{to_float(view.channel_params(1)[ch])}
                : double{cuda::read_float<true>(view.k_part(page), view.segment.k_format, d, t, ch)};
        score += q[ch] * k;
      }
      score *= scale;
      const double larger = std::max(max, score);
      const double correction = std::exp(max - larger), p = std::exp(score - larger);
      max = larger;
      sum = sum * correction + p;
      for (int ch = 0; ch < d; ++ch) {
        double v;
        if (view.v_quantized()) {
          const uint32_t params = view.token_params(page)[t];
          v = double{to_float(view.channel_params(2)[ch])} *
              (double{to_float(cuda::token_scale(params))} *
                   cuda::read_code<false>(view.v_part(page), view.segment.v_format, d, t, ch) +
               double{to_float(cuda::token_zero(params))});
        } else {
          v = double{cuda::read_float<false>(view.v_part(page), view.segment.v_format, d, t, ch)};
        }
        double& o = out[static_cast<size_t>(ch)];
        o = o * correction + p * v;
      }
    }
  }
  for (double& o : out) o /= sum;
  return out;
}

TensorView view_of(void* memory, DType dtype, std::initializer_list<int64_t> shape) {
  TensorView view;
  view.data = memory;
  view.dtype = dtype;
  view.rank = static_cast<int>(shape.size());
  view.shape.fill(1);
  std::copy(shape.begin(), shape.end(), view.shape.begin());
  return view;
}

void run(const Device& device, const Case& c, int replays) {
  Random random;
  Cache cache = build(device, c, random);
  const int batch = c.batch();
  const int64_t rows = int64_t{batch} * c.n_heads * c.head_dim;
  std::vector<f16> q(static_cast<size_t>(rows));
  for (f16& x : q) x = to_f16(random());
  std::vector<int32_t> cu(static_cast<size_t>(batch) + 1);
  for (size_t i = 0; i < cu.size(); ++i) cu[i] = static_cast<int32_t>(i);
  std::vector<int32_t> positions;
  for (const int n : c.lengths) positions.push_back(n + kTail - 1);
  const auto upload = [&](const void* from, int64_t bytes) {
    void* memory = device.allocate(bytes);
    device.write(memory, from, bytes);
    return memory;
  };
  MixedAttentionArgs a{};
  a.q = view_of(upload(q.data(), rows * 2), DType::kF16, {batch, c.n_heads, c.head_dim});
  a.out = a.q;
  a.out.data = device.allocate(rows * 2);
  a.lse = view_of(device.allocate(int64_t{batch} * c.n_heads * 4), DType::kF32,
                  {batch, c.n_heads});
  a.pool = view_of(cache.pool, DType::kU8, {cache.pool_bytes});
  const auto n_words = static_cast<int64_t>(cache.tables.size());
  a.tables = view_of(upload(cache.tables.data(), n_words * 4), DType::kI32, {n_words});
  a.starts = view_of(upload(cache.starts.data(), int64_t{batch} * 4), DType::kI32, {batch});
  a.cu_seqlens = view_of(upload(cu.data(), int64_t{batch} * 4 + 4), DType::kI32, {batch + 1});
  a.positions = view_of(upload(positions.data(), int64_t{batch} * 4), DType::kI32, {batch});
  a.scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  a.tail = true;
  a.causal = true;
  const auto attend = [&](int layer) {
    OpStatus status;
    a.layer = layer;
    device.plugin->backend->mixed_attention(&device.op_context, &a, &status);
    if (status.code) fail("mixed_attention", status);
  };

  attend(0);
  device.synchronize();
  std::vector<f16> out(static_cast<size_t>(rows));
  device.read(out.data(), a.out.data, rows * 2);
  double worst = 0.0;
  const int group = c.n_heads / c.n_kv_heads;
  for (int h = 0; h < group; ++h) {
    std::vector<float> row(static_cast<size_t>(c.head_dim));
    for (int ch = 0; ch < c.head_dim; ++ch)
      row[static_cast<size_t>(ch)] = to_float(q[static_cast<size_t>(h * c.head_dim + ch)]);
    const std::vector<double> expected = reference(c, cache, row.data(), a.scale);
    double largest = 0.0, difference = 0.0;
    for (int ch = 0; ch < c.head_dim; ++ch) {
      const double e = expected[static_cast<size_t>(ch)];
      largest = std::max(largest, std::fabs(e));
      difference = std::max(
          difference,
          std::fabs(e - double{to_float(out[static_cast<size_t>(h * c.head_dim + ch)])}));
    }
    worst = std::max(worst, difference / largest);
  }
  if (!(worst < 2e-3)) {
    std::fprintf(stderr, "%s, %d tokens: relative error %g, expected below 2e-3\n", c.policy->name,
                 c.lengths[0], worst);
    std::exit(1);
  }

  DeviceGraph* graph = nullptr;
  OpStatus status;
  if (device.plugin->begin_recording) {
    device.plugin->begin_recording(device.context, &status);
    for (int layer = 0; layer < c.n_layers; ++layer) attend(layer);
    graph = device.plugin->end_recording(device.context, &status);
    if (!graph) fail("end_recording", status);
  }
  std::vector<double> times;
  for (int i = 0; i < replays + 2; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    if (graph)
      device.plugin->launch_graph(device.context, graph, &status);
    else
      for (int layer = 0; layer < c.n_layers; ++layer) attend(layer);
    device.synchronize();
    const std::chrono::duration<double, std::micro> time = std::chrono::steady_clock::now() - begin;
    if (i >= 2) times.push_back(time.count() / c.n_layers);
  }
  // Layers differ in addresses alone, and sums do not depend on who adds them: so the last layer of the
  // last replay has the first call's bits, unless a call found what one in front of it had left.
  std::vector<f16> again(out.size());
  device.read(again.data(), a.out.data, rows * 2);
  if (std::memcmp(again.data(), out.data(), out.size() * sizeof(f16)) != 0) {
    std::fprintf(stderr, "%s, %d tokens: the last replay is not the first call to the bit\n",
                 c.policy->name, c.lengths[0]);
    std::exit(1);
  }
  std::sort(times.begin(), times.end());
  const double median = times[times.size() / 2];
  std::printf(
      "{\"op\": \"mixedAttention\", \"policy\": \"%s\", \"batch\": %d, \"context\": %d, "
      "\"shortest\": %d, \"heads\": \"%d/%d/%d\", \"layers\": %d, \"us\": %.2f, \"min\": %.2f, \"max\": %.2f, \"MB\": %.2f, "
      "\"GB/s\": %.0f, \"error\": %.1e}\n",
      c.policy->name, batch, c.lengths.front(), c.lengths.back(), c.n_heads, c.n_kv_heads, c.head_dim,
      c.n_layers, median,
      times.front(), times.back(), static_cast<double>(cache.read_bytes) / 1e6,
      static_cast<double>(cache.read_bytes) / median / 1e3, worst);
  std::fflush(stdout);
  if (graph) device.plugin->release_graph(device.context, graph);
  for (void* memory : {static_cast<void*>(cache.pool), a.q.data, a.out.data, a.lse.data,
                       a.tables.data, a.starts.data, a.cu_seqlens.data, a.positions.data})
    device.plugin->release(device.context, memory);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr,
                 "usage: mixed_attention PLUGIN [--full | --check | --case POLICY BATCH CONTEXT "
                 "[HEADS KV_HEADS HEAD_DIM]]\n");
    return 1;
  }
  const Device device(argv[1]);
  const std::string mode = argc > 2 ? argv[2] : "";
  struct Heads {
    int n_heads, n_kv_heads, head_dim;
  };
  const Heads llama{32, 8, 128};  // LLaMA3-8B's
  const auto measure = [&](const Policy& policy, const std::vector<int>& lengths,
                           const Heads& heads) {
    // As many layers as it takes to pass the second-level cache several times over.
    const double mb = 4e-6 * heads.head_dim * heads.n_kv_heads *
                      std::accumulate(lengths.begin(), lengths.end(), 0.0);
    const double share = std::strcmp(policy.name, "fp16") == 0 ? 1.0 : 0.2;
    const int n_layers = std::clamp(static_cast<int>(300.0 / (mb * share)) + 1, 4, 32);
    run(device,
        {&policy, lengths, heads.n_heads, heads.n_kv_heads, heads.head_dim, n_layers}, 20);
  };
  const auto equal = [](int batch, int n_tokens) {
    return std::vector<int>(static_cast<size_t>(batch), n_tokens);
  };
  if (mode == "--case" && (argc == 6 || argc == 9)) {
    const Heads heads =
        argc == 9 ? Heads{std::atoi(argv[6]), std::atoi(argv[7]), std::atoi(argv[8])} : llama;
    for (const Policy& policy : kPolicies)
      if (std::strcmp(policy.name, argv[3]) == 0)
        measure(policy, equal(std::atoi(argv[4]), std::atoi(argv[5])), heads);
    return 0;
  }
  if (mode == "--check") {  // small enough for the emulator
    for (const Policy& policy : kPolicies)
      for (int d : {64, 96, 128, 256})
        for (const std::vector<int>& lengths : {equal(2, 300), {1500, 300, 40}})
          run(device, {&policy, lengths, 8, 2, d, 1}, 1);
    return 0;
  }
  std::vector<std::vector<int>> batches = {equal(1, 4096), equal(1, 32768), equal(8, 4096),
                                           equal(8, 32768), equal(64, 4096)};
  // As servers have them: lengths of every size, and one long sequence among short ones.
  std::vector<int> spread;
  for (int i = 0; i < 32; ++i)
    spread.push_back(static_cast<int>(std::lround(32768 * std::pow(64.0, -i / 31.0))));
  batches.push_back(spread);
  batches.push_back(equal(64, 1024));
  batches.back().front() = 131072;
  if (mode == "--full") {
    batches.push_back(equal(1, 131072));
    batches.push_back(equal(64, 1024));
  }
  for (const std::vector<int>& lengths : batches)
    for (const Policy& policy : kPolicies) measure(policy, lengths, llama);
  if (mode == "--full")
    for (const Heads& heads : {Heads{8, 4, 256}, Heads{32, 32, 96}})  // Gemma 3 4B's, Phi-3-mini's
      for (const std::vector<int>& lengths : {equal(8, 4096), equal(8, 32768)})
        for (const Policy& policy : kPolicies) measure(policy, lengths, heads);
  return 0;
}
