// The ops as functions of JavaScript: flat arguments in, checked, enqueued. lib/native/addon.ts has
// the same signatures.
#include <string>
#include <utility>
#include <vector>

#include "csrc/napi/state.h"
#include "csrc/ops/op_check.h"

namespace zc::napi {

namespace {

// Reads the arguments of a call in order, and remembers whose memory they use.
class Reader {
 public:
  explicit Reader(const Napi::CallbackInfo& info) : info_(info) {}

  TensorView tensor(const char* name) {
    TensorHandle& handle = tensor_of(info_[next_++], name);
    std::shared_ptr<DeviceHandle> device = device_of(handle, name);
    if (!device_)
      device_ = std::move(device);
    else if (device_ != device)
      throw Error(ErrorCode::kDevice,
                  std::string(name) + ": lives on another device than the first tensor", "", name);
    storage_.push_back(handle.storage);
    return handle.view;
  }
  // A tensor that the op writes: never a file's, whose pages cannot be written.
  TensorView output(const char* name) {
    const TensorView view = tensor(name);
    if (storage_.back()->read_only())
      throw Error(ErrorCode::kArgument,
                  std::string(name) + ": is a file's, which cannot be written", "", name);
    return view;
  }
  TensorView optional_tensor(const char* name) { return absent() ? TensorView{} : tensor(name); }
  TensorView optional_output(const char* name) { return absent() ? TensorView{} : output(name); }
  float f32(const char* name) { return static_cast<float>(number(name)); }
  int32_t i32(const char* name) {
    const double value = number(name);
    if (value != static_cast<double>(static_cast<int32_t>(value)))
      throw Error(ErrorCode::kArgument, format("%s: is %g, expected a 32-bit integer", name, value),
                  "", name);
    return static_cast<int32_t>(value);
  }
  // How many there are of what follows: 1 to `most`.
  int32_t count(const char* name, int32_t most) {
    const int32_t n = i32(name);
    if (n < 1 || n > most)
      throw Error(ErrorCode::kArgument, format("%s: %d of them, expected 1 to %d", name, n, most),
                  "", name);
    return n;
  }
  bool boolean(const char*) { return info_[next_++].ToBoolean(); }

  DeviceHandle& device() { return *device_; }
  std::vector<std::shared_ptr<Storage>> take_storage() { return std::move(storage_); }

 private:
  bool absent() {
    const bool is_absent = info_[next_].IsUndefined() || info_[next_].IsNull();
    if (is_absent) ++next_;
    return is_absent;
  }
  double number(const char* name) {
    const Napi::Value value = info_[next_++];
    if (!value.IsNumber())
      throw Error(ErrorCode::kArgument, std::string(name) + ": is not a number", "", name);
    const double number = value.As<Napi::Number>().DoubleValue();
    if (!(number >= -2147483648.0 && number <= 2147483647.0))
      throw Error(ErrorCode::kArgument, format("%s: is %g, expected a 32-bit number", name, number),
                  "", name);
    return number;
  }

  const Napi::CallbackInfo& info_;
  size_t next_ = 0;
  std::shared_ptr<DeviceHandle> device_;
  std::vector<std::shared_ptr<Storage>> storage_;
};

template <typename Args>
using BackendOp = void (*Backend::*)(const OpContext*, const Args*, OpStatus*);

// Reads, checks and enqueues one op. What fails while it runs is reported by the next sync() or
// read().
template <typename Args>
Napi::Value enqueue(const Napi::CallbackInfo& info, const char* name, void (*read)(Reader&, Args&),
                    BackendOp<Args> op) {
  return guarded(
      info.Env(),
      [&]() -> Napi::Value {
        Reader reader(info);
        Args args{};
        read(reader, args);
        check(args);
        const std::shared_ptr<Device>& device = reader.device().device;
        Device* running_on = device.get();  // the command runs on this device's own thread
        auto command = [args, op, name, running_on, storage = reader.take_storage()] {
          OpStatus status;
          (running_on->backend().*op)(&running_on->context(), &args, &status);
          check_status(status, name);
        };
        if (Program* recording = reader.device().recording.get())
          recording->add(std::move(command));
        else
          device->stream().enqueue(std::move(command));
        return info.Env().Undefined();
      },
      name);
}

// One line an argument, in the order of lib/native/addon.ts.
#define ZC_BIND(js_name, op, Args, ...)                                       \
  Napi::Value op##_js(const Napi::CallbackInfo& info) {                       \
    return enqueue<Args>(                                                     \
        info, js_name, [](Reader& r, Args& a) { __VA_ARGS__ }, &Backend::op); \
  }

ZC_BIND("flashAttention", flash_attention, FlashAttentionArgs, a.q = r.tensor("q");
        a.k = r.tensor("k"); a.v = r.tensor("v"); a.out = r.output("out"); a.lse = r.output("lse");
        a.cu_seqlens_q = r.tensor("cuSeqlensQ"); a.cu_seqlens_k = r.tensor("cuSeqlensK");
        a.scale = r.f32("scale"); a.sliding_window = r.i32("slidingWindow");
        a.causal = r.boolean("causal");)

ZC_BIND("probeAttention", probe_attention, ProbeAttentionArgs, a.q = r.tensor("q");
        a.lse = r.tensor("lse"); a.k = r.tensor("k"); a.rows = r.tensor("rows");
        a.positions = r.tensor("positions"); a.scores = r.output("scores");
        a.scale = r.f32("scale"); a.sliding_window = r.i32("slidingWindow");
        a.normalized = r.boolean("normalized");)

ZC_BIND("selectSalient", select_salient, SelectSalientArgs, a.scores = r.tensor("scores");
        a.salient = r.output("salient"); a.regular = r.output("regular");)

ZC_BIND("quantize", quantize, QuantizeArgs, a.x = r.tensor("x"); a.codes = r.output("codes");
        a.scale = r.output("scale"); a.zero = r.output("zero");
        a.channel = r.optional_output("channel");
        a.scheme = static_cast<QuantScheme>(r.i32("scheme")); a.bits = r.i32("bits");
        a.group_size = r.i32("groupSize"); a.norm = r.i32("range");)

ZC_BIND("dequantize", dequantize, DequantizeArgs, a.codes = r.tensor("codes");
        a.scale = r.tensor("scale"); a.zero = r.tensor("zero");
        a.channel = r.optional_tensor("channel"); a.out = r.output("out");
        a.scheme = static_cast<QuantScheme>(r.i32("scheme")); a.bits = r.i32("bits");
        a.group_size = r.i32("groupSize");)

ZC_BIND("restoreOutliers", restore_outliers, RestoreOutliersArgs, a.values = r.tensor("values");
        a.places = r.tensor("places"); a.out = r.output("out");
        a.channelwise = r.boolean("channelwise");)

ZC_BIND("appendKv", append_kv, AppendKvArgs, a.k = r.tensor("k"); a.v = r.tensor("v");
        a.pool = r.output("pool"); a.tables = r.tensor("tables"); a.starts = r.tensor("starts");
        a.cu_seqlens = r.tensor("cuSeqlens"); a.layer = r.i32("layer");)

ZC_BIND("ropeAppend", rope_append, RopeAppendArgs, a.q = r.tensor("q"); a.k = r.tensor("k");
        a.v = r.tensor("v"); a.cos = r.tensor("cos"); a.sin = r.tensor("sin");
        a.q_cos = r.tensor("qCos"); a.q_sin = r.tensor("qSin"); a.q_out = r.output("qOut");
        a.k_out = r.optional_output("kOut"); a.pool = r.output("pool");
        a.tables = r.tensor("tables"); a.starts = r.tensor("starts");
        a.cu_seqlens = r.tensor("cuSeqlens"); a.layer = r.i32("layer");)

ZC_BIND("setTailLengths", set_tail_lengths, SetTailLengthsArgs, a.tables = r.output("tables");
        a.starts = r.tensor("starts"); a.lengths = r.tensor("lengths");)

ZC_BIND("copyPages", copy_pages, CopyPagesArgs, a.pool = r.output("pool");
        a.from = r.tensor("from"); a.to = r.tensor("to"); a.page_bytes = r.i32("pageBytes");)

ZC_BIND("packSegment", pack_segment, PackSegmentArgs, a.k = r.tensor("k"); a.v = r.tensor("v");
        a.ids = r.tensor("ids"); a.pool = r.output("pool"); a.table = r.output("table");
        a.layer = r.i32("layer"); a.segment = r.i32("segment"); a.k_norm = r.i32("keyRange");
        a.v_norm = r.i32("valueRange");)

ZC_BIND(
    "packSegments", pack_segments, PackSegmentsArgs, a.k = r.tensor("k"); a.v = r.tensor("v");
    a.pool = r.output("pool"); a.table = r.output("table"); a.layer = r.i32("layer");
    a.n_classes = r.count("classes", kMaxClasses); for (int i = 0; i < a.n_classes; ++i) {
      a.classes[i].ids = r.tensor("ids");
      a.classes[i].segment = r.i32("segment");
      a.classes[i].k_norm = r.i32("keyRange");
      a.classes[i].v_norm = r.i32("valueRange");
    })

ZC_BIND("unpackSegment", unpack_segment, UnpackSegmentArgs, a.pool = r.tensor("pool");
        a.table = r.tensor("table"); a.k = r.output("k"); a.v = r.output("v");
        a.layer = r.i32("layer"); a.segment = r.i32("segment"); a.base = r.i32("base");)

ZC_BIND("exportSegment", export_segment, ExportSegmentArgs, a.pool = r.tensor("pool");
        a.table = r.tensor("table"); a.k_codes = r.output("kCodes"); a.v_codes = r.output("vCodes");
        a.k_params = r.output("kParams"); a.v_params = r.output("vParams");
        a.v_channel = r.output("vChannel"); a.positions = r.output("positions");
        a.layer = r.i32("layer"); a.segment = r.i32("segment");)

ZC_BIND("importSegment", import_segment, ImportSegmentArgs, a.pool = r.output("pool");
        a.table = r.tensor("table"); a.k_codes = r.tensor("kCodes"); a.v_codes = r.tensor("vCodes");
        a.k_params = r.tensor("kParams"); a.v_params = r.tensor("vParams");
        a.v_channel = r.tensor("vChannel"); a.positions = r.tensor("positions");
        a.layer = r.i32("layer"); a.segment = r.i32("segment");)

ZC_BIND("mixedAttention", mixed_attention, MixedAttentionArgs, a.q = r.tensor("q");
        a.out = r.output("out"); a.lse = r.output("lse"); a.pool = r.tensor("pool");
        a.tables = r.tensor("tables"); a.starts = r.tensor("starts");
        a.cu_seqlens = r.tensor("cuSeqlens"); a.positions = r.tensor("positions");
        a.layer = r.i32("layer"); a.scale = r.f32("scale");
        a.sliding_window = r.i32("slidingWindow"); a.tail = r.boolean("tail");
        a.causal = r.boolean("causal");)

ZC_BIND("mergeAttention", merge_attention, MergeAttentionArgs, a.out_a = r.tensor("outA");
        a.lse_a = r.tensor("lseA"); a.out_b = r.tensor("outB"); a.lse_b = r.tensor("lseB");
        a.out = r.output("out"); a.lse = r.output("lse");)

ZC_BIND("attentionSinks", attention_sinks, AttentionSinksArgs, a.sinks = r.tensor("sinks");
        a.out = r.output("out"); a.lse = r.output("lse");)

ZC_BIND("storeProbes", store_probes, StoreProbesArgs, a.q = r.tensor("q"); a.lse = r.tensor("lse");
        a.slots = r.tensor("slots"); a.probe_q = r.output("probeQ");
        a.probe_lse = r.output("probeLse");)

ZC_BIND("causalConv", causal_conv, CausalConvArgs, a.x = r.tensor("x");
        a.weight = r.tensor("weight"); a.bias = r.optional_tensor("bias"); a.out = r.output("out");
        a.pool = r.output("pool"); a.tables = r.tensor("tables"); a.states = r.tensor("states");
        a.cu_seqlens = r.tensor("cuSeqlens"); a.layer = r.i32("layer"); a.n_heads = r.i32("nHeads");
        a.from_zero = r.boolean("fromZero");)

ZC_BIND("gatedDelta", gated_delta, GatedDeltaArgs, a.qkv = r.tensor("qkv");
        a.decay = r.tensor("decay"); a.beta = r.tensor("beta"); a.decay_log = r.tensor("decayLog");
        a.decay_bias = r.tensor("decayBias"); a.out = r.output("out"); a.pool = r.output("pool");
        a.tables = r.tensor("tables"); a.states = r.tensor("states");
        a.cu_seqlens = r.tensor("cuSeqlens"); a.layer = r.i32("layer");
        a.n_key_heads = r.i32("nKeyHeads"); a.from_zero = r.boolean("fromZero");)

ZC_BIND("selectiveScan", selective_scan, SelectiveScanArgs, a.xbc = r.tensor("xbc");
        a.step = r.tensor("step"); a.step_bias = r.tensor("stepBias");
        a.decay_log = r.tensor("decayLog"); a.skip = r.tensor("skip"); a.out = r.output("out");
        a.pool = r.output("pool"); a.tables = r.tensor("tables"); a.states = r.tensor("states");
        a.cu_seqlens = r.tensor("cuSeqlens"); a.layer = r.i32("layer");
        a.n_groups = r.i32("nGroups"); a.from_zero = r.boolean("fromZero");)

ZC_BIND("embedding", embedding, EmbeddingArgs, a.ids = r.tensor("ids");
        a.weight = r.tensor("weight"); a.out = r.output("out"); a.scale = r.f32("scale");
        a.column = r.i32("column");)

ZC_BIND("rmsNorm", rms_norm, RmsNormArgs, a.x = r.tensor("x");
        a.weight = r.optional_tensor("weight"); a.out = r.output("out"); a.eps = r.f32("eps");
        a.accumulate = r.boolean("accumulate"); a.scale = r.f32("scale");)

ZC_BIND("linear", linear, LinearArgs, a.x = r.tensor("x"); a.weight = r.tensor("weight");
        a.scales = r.optional_tensor("scales"); a.zeros = r.optional_tensor("zeros");
        a.bias = r.optional_tensor("bias"); a.out = r.output("out");
        a.accumulate = r.boolean("accumulate");)

ZC_BIND(
    "groupedLinear", grouped_linear, GroupedLinearArgs, a.x = r.tensor("x");
    a.n_products = r.count("products", kMaxProducts); for (int i = 0; i < a.n_products; ++i) {
      a.products[i].weight = r.tensor("weight");
      a.products[i].scales = r.optional_tensor("scales");
      a.products[i].zeros = r.optional_tensor("zeros");
      a.products[i].bias = r.optional_tensor("bias");
      a.products[i].out = r.output("out");
    })

ZC_BIND("quantizeWeight", quantize_weight, QuantizeWeightArgs, a.x = r.tensor("x");
        a.out = r.output("out"); a.scales = r.output("scales");
        a.zeros = r.optional_output("zeros");)

ZC_BIND("routeExperts", route_experts, RouteExpertsArgs, a.logits = r.tensor("logits");
        a.correction = r.optional_tensor("correction");
        a.expert_scales = r.optional_tensor("expertScales"); a.weights = r.output("weights");
        a.experts = r.output("experts"); a.pairs = r.output("pairs");
        a.offsets = r.output("offsets"); a.sigmoid = r.boolean("scores");
        a.normalized = r.boolean("normalized"); a.least_sum = r.f32("leastSum");
        a.scale = r.f32("scale");)

ZC_BIND("expertLinear", expert_linear, ExpertLinearArgs, a.x = r.tensor("x");
        a.weight = r.tensor("weight"); a.scales = r.optional_tensor("scales");
        a.zeros = r.optional_tensor("zeros"); a.bias = r.optional_tensor("bias");
        a.pairs = r.tensor("pairs"); a.offsets = r.tensor("offsets"); a.out = r.output("out");)

ZC_BIND("addExperts", add_experts, AddExpertsArgs, a.x = r.tensor("x");
        a.weights = r.tensor("weights"); a.out = r.output("out");
        a.accumulate = r.boolean("accumulate");)

ZC_BIND("ropeTable", rope_table, RopeTableArgs, a.positions = r.tensor("positions");
        a.inv_freq = r.tensor("invFreq"); a.cos = r.output("cos"); a.sin = r.output("sin");
        a.attention_scale = r.f32("attentionScale"); a.growth = r.f32("growth");
        a.period = r.i32("period");)

ZC_BIND("rope", rope, RopeArgs, a.x = r.tensor("x"); a.cos = r.tensor("cos");
        a.sin = r.tensor("sin"); a.out = r.output("out");)

ZC_BIND("siluGate", silu_gate, GateArgs, a.gate = r.tensor("gate"); a.up = r.tensor("up");
        a.out = r.output("out");)

ZC_BIND("geluGate", gelu_gate, GateArgs, a.gate = r.tensor("gate"); a.up = r.tensor("up");
        a.out = r.output("out");)

ZC_BIND("clampedSwiglu", clamped_swiglu, ClampedSwigluArgs, a.gate = r.tensor("gate");
        a.up = r.tensor("up"); a.out = r.output("out"); a.alpha = r.f32("alpha");
        a.limit = r.f32("limit");)

ZC_BIND("sigmoidGate", sigmoid_gate, SigmoidGateArgs, a.gate = r.tensor("gate");
        a.x = r.tensor("x"); a.out = r.output("out");)

ZC_BIND("softCap", soft_cap, SoftCapArgs, a.x = r.tensor("x"); a.out = r.output("out");
        a.cap = r.f32("cap");)

ZC_BIND("sample", sample, SampleArgs, a.logits = r.tensor("logits"); a.params = r.tensor("params");
        a.seen = r.output("seen"); a.contexts = r.tensor("contexts"); a.ids = r.output("ids");
        a.logprobs = r.output("logprobs");)

ZC_BIND("feedTokens", feed_tokens, FeedTokensArgs, a.sampled = r.tensor("sampled");
        a.source = r.tensor("source"); a.given = r.tensor("given"); a.out = r.output("out");)

ZC_BIND("convert", convert, ConvertArgs, a.x = r.tensor("x"); a.out = r.output("out");)

ZC_BIND("gatherRows", gather_rows, GatherRowsArgs, a.x = r.tensor("x"); a.rows = r.tensor("rows");
        a.out = r.output("out");)

ZC_BIND("countNonFinite", count_non_finite, CountNonFiniteArgs, a.x = r.tensor("x");
        a.count = r.output("count");)

ZC_BIND("readStream", read_stream, ReadStreamArgs, a.x = r.tensor("x"); a.out = r.output("out");)

ZC_BIND("multiplyAdd", multiply_add, MultiplyAddArgs, a.x = r.tensor("x"); a.out = r.output("out");
        a.factor = r.f32("factor"); a.summand = r.f32("summand"); a.steps = r.i32("steps");)

#undef ZC_BIND

}  // namespace

void register_ops(Napi::Object exports) {
  define<flash_attention_js>(exports, "flashAttention");
  define<probe_attention_js>(exports, "probeAttention");
  define<select_salient_js>(exports, "selectSalient");
  define<quantize_js>(exports, "quantize");
  define<dequantize_js>(exports, "dequantize");
  define<restore_outliers_js>(exports, "restoreOutliers");
  define<append_kv_js>(exports, "appendKv");
  define<rope_append_js>(exports, "ropeAppend");
  define<set_tail_lengths_js>(exports, "setTailLengths");
  define<copy_pages_js>(exports, "copyPages");
  define<pack_segment_js>(exports, "packSegment");
  define<pack_segments_js>(exports, "packSegments");
  define<unpack_segment_js>(exports, "unpackSegment");
  define<export_segment_js>(exports, "exportSegment");
  define<import_segment_js>(exports, "importSegment");
  define<mixed_attention_js>(exports, "mixedAttention");
  define<merge_attention_js>(exports, "mergeAttention");
  define<attention_sinks_js>(exports, "attentionSinks");
  define<store_probes_js>(exports, "storeProbes");
  define<causal_conv_js>(exports, "causalConv");
  define<gated_delta_js>(exports, "gatedDelta");
  define<selective_scan_js>(exports, "selectiveScan");
  define<embedding_js>(exports, "embedding");
  define<rms_norm_js>(exports, "rmsNorm");
  define<linear_js>(exports, "linear");
  define<grouped_linear_js>(exports, "groupedLinear");
  define<quantize_weight_js>(exports, "quantizeWeight");
  define<route_experts_js>(exports, "routeExperts");
  define<expert_linear_js>(exports, "expertLinear");
  define<add_experts_js>(exports, "addExperts");
  define<rope_table_js>(exports, "ropeTable");
  define<rope_js>(exports, "rope");
  define<silu_gate_js>(exports, "siluGate");
  define<gelu_gate_js>(exports, "geluGate");
  define<clamped_swiglu_js>(exports, "clampedSwiglu");
  define<sigmoid_gate_js>(exports, "sigmoidGate");
  define<soft_cap_js>(exports, "softCap");
  define<sample_js>(exports, "sample");
  define<feed_tokens_js>(exports, "feedTokens");
  define<convert_js>(exports, "convert");
  define<gather_rows_js>(exports, "gatherRows");
  define<count_non_finite_js>(exports, "countNonFinite");
  define<read_stream_js>(exports, "readStream");
  define<multiply_add_js>(exports, "multiplyAdd");
}

}  // namespace zc::napi
