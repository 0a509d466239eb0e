#include "csrc/runtime/stored_weight.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "csrc/core/error.h"
#include "csrc/math/float16.h"
#include "csrc/math/float4_weight.h"

namespace zc {

namespace {

constexpr int64_t kBandRows = 128;  // 64 bytes of a line of AWQ's, whole cache lines of GPTQ's
constexpr int64_t kBandColumns = 512;
constexpr int64_t kUnit = 64;                                     // codes of LinearArgs' units
constexpr std::array<int, 8> kAwqPlaces{0, 4, 1, 5, 2, 6, 3, 7};  // where a row's code stands

int64_t words(int64_t n_codes, int bits) { return (n_codes * bits + 31) / 32; }

uint32_t word_at(const char* base, int64_t i) {
  uint32_t word;
  std::memcpy(&word, base + 4 * i, sizeof(word));
  return word;
}

// Bytes of a row of MXFP4.
int64_t mx_row_bytes(int64_t k) {
  return (k + kFloat4Group - 1) / kFloat4Group * (kFloat4Group / 2);
}

bool has_float4_codes(CodeLayout layout) {
  return layout == CodeLayout::kMxfp4 || layout == CodeLayout::kNvfp4;
}
bool has_float_codes(CodeLayout layout) {
  return layout == CodeLayout::kF8 || has_float4_codes(layout);
}

float float8_value(uint32_t code) {
  const float sign = code & 0x80u ? -1.0f : 1.0f;
  const int exponent = static_cast<int>(code >> 3 & 15u);
  const auto mantissa = static_cast<float>(code & 7u);
  if ((code & 0x7fu) == 0x7fu) return std::nanf("");
  if (exponent == 0) return sign * std::ldexp(mantissa, -9);
  return sign * std::ldexp(8.0f + mantissa, exponent - 10);
}

float scale_at(const StoredWeight& w, int64_t i) {
  const char* at = w.scales + i * static_cast<int64_t>(dtype_size(w.scale_dtype));
  if (w.layout == CodeLayout::kNvfp4)
    return float8_value(static_cast<uint8_t>(*at)) * w.scale_factor / w.scale_divisor;
  if (w.scale_dtype == DType::kU8) return float8_power(static_cast<uint8_t>(*at));
  if (w.scale_dtype == DType::kF32) {
    float scale;
    std::memcpy(&scale, at, sizeof(scale));
    return scale;
  }
  uint16_t bits;
  std::memcpy(&bits, at, sizeof(bits));
  return w.scale_dtype == DType::kF16 ? to_float(f16{bits}) : to_float(bf16{bits});
}

bool has_rows_inside(CodeLayout layout) {
  return layout == CodeLayout::kGptq || layout == CodeLayout::kAwq;
}

std::array<float, 256> all_float_values(CodeLayout layout) {
  std::array<float, 256> values;
  for (uint32_t code = 0; code < 256; ++code)
    values[code] = has_float4_codes(layout) ? float4_value(code) : float8_value(code);
  return values;
}

void put(float* to, float value) { *to = value; }
void put(bf16* to, float value) { *to = to_bf16(value); }

// The codes of a word, a byte each.
uint64_t bytes_of(uint32_t word, int bits) {
  uint64_t x = word;
  if (bits == 8) return x;
  x = (x | x << 16) & 0x0000ffff0000ffffu;
  x = (x | x << 8) & 0x00ff00ff00ff00ffu;
  return (x | x << 4) & 0x0f0f0f0f0f0f0f0fu;
}

// The codes of columns [c0, c1) of a row, a byte each; signed ones plus 128. c0 is where a word
// begins.
void read_codes(const StoredWeight& w, int64_t row, int64_t c0, int64_t c1, uint8_t* codes) {
  switch (w.layout) {
    case CodeLayout::kF8:
      std::memcpy(codes, w.codes + row * w.k + c0, static_cast<size_t>(c1 - c0));
      return;
    case CodeLayout::kI8:
      for (int64_t c = c0; c < c1; ++c)
        codes[c - c0] = static_cast<uint8_t>(w.codes[row * w.k + c]) ^ 0x80u;
      return;
    case CodeLayout::kPacked:
    case CodeLayout::kMxfp4:
    case CodeLayout::kNvfp4: {
      const auto* bytes = reinterpret_cast<const uint8_t*>(w.codes + row * (w.code_bytes() / w.n));
      if (w.bits == 8) {
        std::memcpy(codes, bytes + c0, static_cast<size_t>(c1 - c0));
        return;
      }
      for (int64_t c = c0; c + 1 < c1; c += 2) {
        codes[c - c0] = bytes[c / 2] & 15;
        codes[c - c0 + 1] = bytes[c / 2] >> 4;
      }
      if (c1 % 2 == 1) codes[c1 - 1 - c0] = bytes[c1 / 2] & 15;
      return;
    }
    case CodeLayout::kGptq: {
      const int64_t per_word = 32 / w.bits;
      for (int64_t c = c0; c < c1; c += per_word) {
        const uint64_t spread = bytes_of(word_at(w.codes, c / per_word * w.n + row), w.bits);
        std::memcpy(codes + (c - c0), &spread, static_cast<size_t>(std::min(per_word, c1 - c)));
      }
      return;
    }
    case CodeLayout::kAwq: {
      const int64_t width = words(w.n, w.bits);
      const int shift = 4 * kAwqPlaces[static_cast<size_t>(row % 8)];
      for (int64_t c = c0; c < c1; ++c)
        codes[c - c0] = word_at(w.codes, c * width + row / 8) >> shift & 15u;
      return;
    }
  }
  throw Error(ErrorCode::kInternal, "unpack_weight: unknown layout");
}

// The zero point of a row's scale `group`; one that is no code is outside 0 to 2^bits - 1.
int zero_at(const StoredWeight& w, int64_t row, int64_t group) {
  const int middle = 1 << (w.bits - 1);
  const uint32_t mask = (1u << w.bits) - 1u;
  const int64_t per_word = 32 / w.bits;
  const auto code = [&](uint32_t word, int64_t i) {
    return static_cast<int>(word >> w.bits * (i % per_word) & mask);
  };
  switch (w.zero_layout) {
    case ZeroLayout::kNone:
      return has_float_codes(w.layout) ? 0 : middle;
    case ZeroLayout::kI8:
      return middle + static_cast<int8_t>(w.zeros[row / w.block_rows * w.scale_columns() + group]);
    case ZeroLayout::kPacked: {
      const int64_t r = row / w.block_rows;
      return code(word_at(w.zeros, r / per_word * w.scale_columns() + group), r);
    }
    case ZeroLayout::kGptq:
    case ZeroLayout::kGptqLess: {
      // Subtracting from a code of 0 borrowed from the next one: what is added to the whole word
      // gives it back.
      const uint32_t ones = w.bits == 4 ? 0x11111111u : 0x01010101u;
      const uint32_t word = word_at(w.zeros, group * words(w.n, w.bits) + row / per_word);
      return code(w.zero_layout == ZeroLayout::kGptq ? word : word + ones, row);
    }
    case ZeroLayout::kAwq: {
      const uint32_t word = word_at(w.zeros, group * words(w.n, w.bits) + row / 8);
      return static_cast<int>(word >> 4 * kAwqPlaces[static_cast<size_t>(row % 8)] & 15u);
    }
  }
  throw Error(ErrorCode::kInternal, "unpack_weight: unknown layout of zero points");
}

// The scales and zero points of a row.
struct RowParams {
  std::vector<float> scales, zeros;  // (scale_columns)
  float largest_scale;

  Unpacked read(const StoredWeight& w, int64_t row) {
    const int64_t n_groups = w.scale_columns();
    scales.resize(static_cast<size_t>(n_groups));
    zeros.resize(static_cast<size_t>(n_groups));
    largest_scale = 0.0f;
    for (int64_t g = 0; g < n_groups; ++g) {
      const float scale = scale_at(
          w, has_rows_inside(w.layout) ? g * w.n + row : row / w.block_rows * n_groups + g);
      const int zero = zero_at(w, row, g);
      if (!std::isfinite(scale)) return Unpacked::kBadScale;
      if (zero < 0 || zero >= 1 << w.bits) return Unpacked::kBadZero;
      scales[static_cast<size_t>(g)] = scale;
      zeros[static_cast<size_t>(g)] = static_cast<float>(zero);
      largest_scale = std::max(largest_scale, std::fabs(scale));
    }
    return Unpacked::kDone;
  }
};

// Which column of scales serves each column. compressed-tensors writes -1 where columns are in
// order.
std::vector<int32_t> column_groups(const StoredWeight& w) {
  std::vector<int32_t> groups(static_cast<size_t>(w.k));
  bool in_order = w.column_groups == nullptr;
  for (int64_t c = 0; c < w.k && !in_order; ++c) {
    const auto group = static_cast<int32_t>(word_at(w.column_groups, c));
    in_order = group == -1 && w.layout != CodeLayout::kGptq;
    groups[static_cast<size_t>(c)] = group;
  }
  for (int64_t c = 0; c < w.k && in_order; ++c)
    groups[static_cast<size_t>(c)] = static_cast<int32_t>(c / w.block_columns);
  return groups;
}

// Of each column, where the next one with another scale is.
std::vector<int32_t> run_ends(const std::vector<int32_t>& groups) {
  std::vector<int32_t> ends(groups.size(), static_cast<int32_t>(groups.size()));
  for (size_t c = groups.size() - 1; c > 0; --c)
    ends[c - 1] = groups[c - 1] == groups[c] ? ends[c] : static_cast<int32_t>(c);
  return ends;
}

struct Unpacker {
  const StoredWeight& from;
  const UnpackedWeight& to;
  std::vector<int32_t> groups;          // (k)
  std::vector<int32_t> run_ends;        // (k): where the columns of a column's scale end
  std::array<float, 256> float_values;  // of codes that are floats

  // Whether the wanted type can say what the scales say. Codes of 4 bits share a scale with their
  // neighbours alone.
  bool columns_fit() const {
    if (to.dtype != DType::kU8) return true;
    for (int64_t c = 0; c < from.k; ++c)
      if (groups[static_cast<size_t>(c)] != groups[static_cast<size_t>(c / to.group * to.group)])
        return false;
    return true;
  }

  Unpacked put_params(int64_t r, const RowParams& params) const {
    if (to.dtype == DType::kU8 && from.layout == CodeLayout::kMxfp4) {
      const int64_t row = (to.first_row + r * to.row_step) / from.block_rows;
      const auto* exponents =
          reinterpret_cast<const uint8_t*>(from.scales) + row * from.scale_columns();
      for (int64_t g = 0; g < from.k / to.group; ++g)
        static_cast<uint8_t*>(to.scales)[r * (from.k / to.group) + g] =
            exponents[groups[static_cast<size_t>(g * to.group)]];
    } else if (to.dtype == DType::kI8) {
      if (params.zeros[0] != 128.0f) return Unpacked::kDoesNotFit;
      static_cast<float*>(to.scales)[r] = params.scales[0];
    } else if (to.dtype == DType::kU8) {
      const float most = params.largest_scale * 0x1p-11f;
      for (int64_t g = 0; g < from.k / to.group; ++g) {
        const auto own = static_cast<size_t>(groups[static_cast<size_t>(g * to.group)]);
        const f16 scale = to_f16(params.scales[own]);
        if (!(std::fabs(to_float(scale) - params.scales[own]) <= most))
          return Unpacked::kDoesNotFit;
        static_cast<f16*>(to.scales)[r * (from.k / to.group) + g] = scale;
        static_cast<uint8_t*>(to.zeros)[r * (from.k / to.group) + g] =
            static_cast<uint8_t>(params.zeros[own]);
      }
    }
    return Unpacked::kDone;
  }

  template <typename T>
  void put_values(int64_t r, int64_t c0, int64_t c1, const RowParams& params,
                  const uint8_t* codes) const {
    T* out = static_cast<T*>(to.weight) + r * from.k;
    for (int64_t c = c0; c < c1;) {
      const auto own = static_cast<size_t>(groups[static_cast<size_t>(c)]);
      const float zero = params.zeros[own];
      const float scale = params.scales[own];
      const int64_t end = std::min<int64_t>(c1, run_ends[static_cast<size_t>(c)]);
      if (has_float_codes(from.layout))
        for (; c < end; ++c) put(out + c, float_values[codes[c - c0]] * scale);
      else
        for (; c < end; ++c) put(out + c, (static_cast<float>(codes[c - c0]) - zero) * scale);
    }
  }

  void put_codes(int64_t r, int64_t c0, int64_t c1, const uint8_t* codes) const {
    if (to.dtype == DType::kI8) {
      uint8_t* out = static_cast<uint8_t*>(to.weight) + r * from.k;
      for (int64_t c = c0; c < c1; ++c) out[c] = codes[c - c0] ^ 0x80u;
      return;
    }
    for (int64_t c = c0; c < c1; c += kUnit, codes += kUnit) {
      uint16_t unit[kUnit / 4];
      for (int l = 0; l < kUnit / 4; ++l)
        unit[l] = static_cast<uint16_t>(codes[l] | codes[16 + l] << 4 | codes[32 + l] << 8 |
                                        codes[48 + l] << 12);
      std::memcpy(static_cast<uint8_t*>(to.weight) + (r * from.k + c) / 2, unit, sizeof(unit));
    }
  }

  // Rows [r0, r1) of the result.
  Unpacked unpack(int64_t r0, int64_t r1) const {
    std::vector<RowParams> params(static_cast<size_t>(r1 - r0));
    for (int64_t r = r0; r < r1; ++r) {
      RowParams& own = params[static_cast<size_t>(r - r0)];
      Unpacked result = own.read(from, to.first_row + r * to.row_step);
      if (result == Unpacked::kDone) result = put_params(r, own);
      if (result != Unpacked::kDone) return result;
    }
    uint8_t codes[kBandColumns];
    for (int64_t c0 = 0; c0 < from.k; c0 += kBandColumns) {
      const int64_t c1 = std::min(from.k, c0 + kBandColumns);
      for (int64_t r = r0; r < r1; ++r) {
        const RowParams& own = params[static_cast<size_t>(r - r0)];
        read_codes(from, to.first_row + r * to.row_step, c0, c1, codes);
        if (to.dtype == DType::kF32)
          put_values<float>(r, c0, c1, own, codes);
        else if (to.dtype == DType::kBF16)
          put_values<bf16>(r, c0, c1, own, codes);
        else
          put_codes(r, c0, c1, codes);
      }
    }
    return Unpacked::kDone;
  }
};

}  // namespace

int64_t StoredWeight::code_bytes() const {
  switch (layout) {
    case CodeLayout::kF8:
    case CodeLayout::kI8:
      return n * k;
    case CodeLayout::kPacked:
      return 4 * n * words(k, bits);
    case CodeLayout::kGptq:
      return 4 * words(k, bits) * n;
    case CodeLayout::kAwq:
      return 4 * k * words(n, bits);
    case CodeLayout::kMxfp4:
      return n * mx_row_bytes(k);
    case CodeLayout::kNvfp4:
      return n * ((k + 1) / 2);
  }
  throw Error(ErrorCode::kInternal, "unpack_weight: unknown layout");
}

int64_t StoredWeight::scale_bytes() const {
  return scale_rows() * scale_columns() * static_cast<int64_t>(dtype_size(scale_dtype));
}

int64_t StoredWeight::zero_bytes() const {
  switch (zero_layout) {
    case ZeroLayout::kNone:
      return 0;
    case ZeroLayout::kI8:
      return scale_rows() * scale_columns();
    case ZeroLayout::kPacked:
      return 4 * words(scale_rows(), bits) * scale_columns();
    case ZeroLayout::kGptq:
    case ZeroLayout::kGptqLess:
    case ZeroLayout::kAwq:
      return 4 * scale_columns() * words(n, bits);
  }
  throw Error(ErrorCode::kInternal, "unpack_weight: unknown layout of zero points");
}

Unpacked unpack_weight(ThreadPool& threads, const StoredWeight& from, const UnpackedWeight& to) {
  std::vector<int32_t> groups = column_groups(from);
  std::vector<int32_t> ends = run_ends(groups);
  const Unpacker unpacker{from, to, std::move(groups), std::move(ends),
                          all_float_values(from.layout)};
  for (const int32_t group : unpacker.groups)
    if (group < 0 || group >= from.scale_columns()) return Unpacked::kBadGroup;
  if (!unpacker.columns_fit()) return Unpacked::kDoesNotFit;
  // The first fault in the order of rows, whichever thread finds one first.
  const int64_t n_bands = (to.n_rows + kBandRows - 1) / kBandRows;
  std::vector<Unpacked> results(static_cast<size_t>(n_bands), Unpacked::kDone);
  threads.parallel_for(n_bands, [&](int64_t band) {
    const int64_t end = std::min(to.n_rows, (band + 1) * kBandRows);
    results[static_cast<size_t>(band)] = unpacker.unpack(band * kBandRows, end);
  });
  // What is damaged is told before what does not fit.
  Unpacked worst = Unpacked::kDone;
  for (const Unpacked result : results)
    if (static_cast<int>(result) > static_cast<int>(worst)) worst = result;
  return worst;
}

}  // namespace zc
