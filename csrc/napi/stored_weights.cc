// Quantized weights of checkpoints, unpacked from a mapped file into tensors.
#include <utility>
#include <vector>

#include "csrc/math/float4_weight.h"
#include "csrc/napi/state.h"
#include "csrc/runtime/limits.h"
#include "csrc/runtime/stored_weight.h"

namespace zc::napi {

namespace {

// The numbers of a call, in the order of lib/native/addon.ts; TypeScript has checked what they say
// of each other.
class Numbers {
 public:
  explicit Numbers(const Napi::CallbackInfo& info, size_t first) : info_(info), next_(first) {}
  int64_t integer(int64_t least, int64_t most) {
    const Napi::Value value = info_[next_++];
    const double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : -1.0;
    ZC_CHECK(number >= static_cast<double>(least) && number <= static_cast<double>(most),
             ErrorCode::kArgument, "unpackWeight: argument %zu is %g, expected %lld to %lld",
             next_ - 1, number, static_cast<long long>(least), static_cast<long long>(most));
    return static_cast<int64_t>(number);
  }

 private:
  const Napi::CallbackInfo& info_;
  size_t next_;
};

constexpr int64_t kMaxSize = int64_t{1} << 40;
constexpr int64_t kMaxExtent = int64_t{1} << 24;

// Where a tensor's bytes lie in a file: arguments `at` and `at + 1`, a file and an offset; null
// where there is no file.
std::shared_ptr<const MappedRange> range_of(const Napi::CallbackInfo& info, size_t at,
                                            const char* argument, int64_t bytes) {
  if (info[at].IsUndefined()) return nullptr;
  const std::shared_ptr<MappedFile>& file = file_of(info[at], argument);
  const int64_t offset = Numbers(info, at + 1).integer(0, kMaxSize);
  ZC_CHECK(offset <= file->bytes() - bytes, ErrorCode::kCheckpoint,
           "%s: %lld bytes at %lld reach beyond the file's end at %lld", argument,
           static_cast<long long>(bytes), static_cast<long long>(offset),
           static_cast<long long>(file->bytes()));
  return std::make_shared<const MappedRange>(file, offset, bytes);
}

struct Source {
  StoredWeight weight;
  std::vector<std::shared_ptr<const MappedRange>> ranges;
};

const char* pointer(Source& source, std::shared_ptr<const MappedRange> range) {
  if (!range) return nullptr;
  const char* data = range->data();
  source.ranges.push_back(std::move(range));
  return data;
}

float number_at(const Napi::CallbackInfo& info, size_t at, const char* argument) {
  ZC_CHECK(info[at].IsNumber(), ErrorCode::kArgument, "%s: is no number", argument);
  return info[at].As<Napi::Number>().FloatValue();
}

// Arguments 5 to 22.
Source read_source(const Napi::CallbackInfo& info) {
  Source source;
  StoredWeight& w = source.weight;
  Numbers numbers(info, 13);
  w.layout = static_cast<CodeLayout>(numbers.integer(0, 6));
  w.zero_layout = static_cast<ZeroLayout>(numbers.integer(0, 5));
  w.bits = static_cast<int>(numbers.integer(4, 8));
  ZC_CHECK(w.bits == 4 || w.bits == 8, ErrorCode::kArgument, "bits: is %d, expected 4 or 8",
           w.bits);
  w.n = numbers.integer(1, kMaxExtent);
  w.k = numbers.integer(1, kMaxExtent);
  w.block_rows = numbers.integer(1, kMaxExtent);
  w.block_columns = numbers.integer(1, kMaxExtent);
  w.scale_dtype = static_cast<DType>(numbers.integer(0, static_cast<int64_t>(DType::kU8)));
  const bool is_float4 = w.layout == CodeLayout::kMxfp4 || w.layout == CodeLayout::kNvfp4;
  ZC_CHECK(is_float4 ? w.scale_dtype == DType::kU8 : w.scale_dtype <= DType::kBF16,
           ErrorCode::kArgument, "scaleDtype: is %s, expected %s", dtype_name(w.scale_dtype),
           is_float4 ? "u8" : "f32, f16 or bf16");
  w.scale_factor = number_at(info, 21, "scaleFactor");
  w.scale_divisor = number_at(info, 22, "scaleDivisor");
  ZC_CHECK(!is_float4 || (w.bits == 4 && w.zero_layout == ZeroLayout::kNone), ErrorCode::kArgument,
           "unpackWeight: float4 has 4 bits and no zero points");
  w.codes = pointer(source, range_of(info, 5, "codes", w.code_bytes()));
  w.scales = pointer(source, range_of(info, 7, "scales", w.scale_bytes()));
  w.zeros = pointer(source, range_of(info, 9, "zeros", w.zero_bytes()));
  w.column_groups = pointer(source, range_of(info, 11, "columnGroups", w.column_group_bytes()));
  ZC_CHECK(w.codes && w.scales && (w.zeros || w.zero_layout == ZeroLayout::kNone),
           ErrorCode::kArgument, "unpackWeight: codes, scales or zeros are missing");
  return source;
}

// A tensor that is written, and the bytes that are to be written into it.
struct Target {
  TensorView view;
  std::shared_ptr<Storage> storage;
  std::vector<char> staged;  // of memory that is no host's

  void stage(bool is_host) {
    if (storage && !is_host) staged.resize(static_cast<size_t>(view.size_bytes()));
  }
  void* data() { return staged.empty() ? view.data : staged.data(); }
  void write(DeviceMemory& memory) const {
    if (!staged.empty()) memory.write(view.data, staged.data(), view.size_bytes());
  }
};

Target target_of(const Napi::CallbackInfo& info, size_t at, const char* argument,
                 const std::shared_ptr<DeviceHandle>& device) {
  if (info[at].IsUndefined()) return {};
  const TensorHandle& tensor = tensor_of(info[at], argument);
  ZC_CHECK(device_of(tensor, argument) == device, ErrorCode::kDevice, "%s: lives on another device",
           argument);
  ZC_CHECK(!tensor.storage->read_only(), ErrorCode::kArgument,
           "%s: is a file's, which cannot be written", argument);
  return {tensor.view, tensor.storage, {}};
}

void expect(const Target& target, const char* argument, DType dtype, int64_t rows,
            int64_t columns) {
  const TensorView& view = target.view;
  ZC_CHECK(view.defined() && view.dtype == dtype, ErrorCode::kDtype, "%s: expected %s", argument,
           dtype_name(dtype));
  ZC_CHECK(view.size(0) == rows && view.length() == rows * columns, ErrorCode::kShape,
           "%s: shape is %s, expected (%lld, %lld)", argument, shape_text(view).c_str(),
           static_cast<long long>(rows), static_cast<long long>(columns));
}

struct Unpacking {
  Source source;
  UnpackedWeight to;
  Target weight, scales, zeros, status;

  void check() {
    const int64_t k = source.weight.k;
    const int64_t n = weight.view.size(0);
    to.n_rows = n;
    to.dtype = weight.view.dtype;
    to.group = 0;
    const int64_t end = n == 0 ? to.first_row : to.first_row + (n - 1) * to.row_step + 1;
    ZC_CHECK(end <= source.weight.n, ErrorCode::kShape,
             "out: rows %lld to %lld, expected them within %lld",
             static_cast<long long>(to.first_row), static_cast<long long>(end),
             static_cast<long long>(source.weight.n));
    switch (to.dtype) {
      case DType::kF32:
      case DType::kBF16:
        expect(weight, "out", to.dtype, n, k);
        break;
      case DType::kI8:
        expect(weight, "out", DType::kI8, n, k);
        expect(scales, "scales", DType::kF32, n, 1);
        ZC_CHECK(source.weight.bits == 8 && source.weight.layout != CodeLayout::kF8 &&
                     source.weight.scale_columns() == 1,
                 ErrorCode::kArgument, "out: codes of 8 bits with a scale a row are not stored");
        break;
      case DType::kU8:
        expect(weight, "out", DType::kU8, n, k / 2);
        to.group = scales.view.defined() && scales.view.rank == 2 && scales.view.size(1) > 0
                       ? k / scales.view.size(1)
                       : 0;
        ZC_CHECK(source.weight.bits == 4 && source.weight.layout != CodeLayout::kNvfp4 &&
                     k % 64 == 0 && to.group > 0 && k % to.group == 0,
                 ErrorCode::kArgument, "out: codes of 4 bits in such groups are not stored");
        if (source.weight.layout == CodeLayout::kMxfp4) {
          ZC_CHECK(to.group == kFloat4Group && source.weight.block_columns == kFloat4Group,
                   ErrorCode::kArgument, "out: float4 shares a scale with 32 elements");
          ZC_CHECK(!zeros.view.defined(), ErrorCode::kArgument, "zeros: is given, float4 has none");
          expect(scales, "scales", DType::kU8, n, k / to.group);
          break;
        }
        expect(scales, "scales", DType::kF16, n, k / to.group);
        expect(zeros, "zeros", DType::kU8, n, k / to.group);
        break;
      default:
        throw Error(ErrorCode::kDtype, "out: expected f32, bf16, i8 or u8", "", "out");
    }
    expect(status, "status", DType::kI32, 1, 1);
  }

  void run(Device& device) {
    DeviceMemory& memory = *device.memory();
    for (Target* target : {&weight, &scales, &zeros, &status}) target->stage(memory.is_host());
    to.weight = weight.data();
    to.scales = scales.data();
    to.zeros = zeros.data();
    Unpacked result;
    if (memory.is_host()) {
      result = unpack_weight(*device.context().threads, source.weight, to);
    } else {
      ThreadPool threads(usable_processors());  // a GPU's device has one, which waits for it
      result = unpack_weight(threads, source.weight, to);
    }
    *static_cast<int32_t*>(status.data()) = static_cast<int32_t>(result);
    for (const Target* target : {&weight, &scales, &zeros, &status}) target->write(memory);
  }
};

// unpackWeight(device, out, scales, zeros, status, codes, codesOffset, scales, scalesOffset, zeros,
// zerosOffset, columnGroups, columnGroupsOffset, layout, zeroLayout, bits, n, k, blockRows,
// blockColumns, scaleDtype, scaleFactor, scaleDivisor, firstRow, rowStep): enqueued; the codes of
// lib/ops/unpack-weight.ts go to status
Napi::Value unpack_weight_js(const Napi::CallbackInfo& info) {
  return guarded(
      info.Env(),
      [&]() -> Napi::Value {
        const std::shared_ptr<DeviceHandle>& handle = device_of(info[0], "device");
        refuse_while_recording(*handle);
        auto own = std::make_shared<Unpacking>();
        own->source = read_source(info);
        Numbers rows(info, 23);
        own->to.first_row = rows.integer(0, kMaxExtent);
        own->to.row_step = rows.integer(1, kMaxExtent);
        own->weight = target_of(info, 1, "out", handle);
        own->scales = target_of(info, 2, "scales", handle);
        own->zeros = target_of(info, 3, "zeros", handle);
        own->status = target_of(info, 4, "status", handle);
        own->check();
        Device* device = handle->device.get();  // the command runs on this device's own thread
        handle->device->stream().enqueue([own, device] { own->run(*device); });
        return info.Env().Undefined();
      },
      "unpackWeight");
}

}  // namespace

void register_stored_weights(Napi::Object exports) {
  define<unpack_weight_js>(exports, "unpackWeight");
}

}  // namespace zc::napi
