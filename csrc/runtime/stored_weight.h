#pragma once

#include <cstdint>

#include "csrc/core/dtype.h"
#include "csrc/core/thread_pool.h"

namespace zc {

// How a checkpoint lays out the codes of a quantized weight (n, k). The numbers cross N-API
// (lib/ops/unpack-weight.ts). Words are little-endian, of 32 bits; a word's first code is in its
// lowest bits.
enum class CodeLayout : int32_t {
  kF8 = 0,      // (n, k) float8 e4m3, of which the largest number is 448
  kI8 = 1,      // (n, k) signed bytes
  kPacked = 2,  // (n, k * bits / 32) words: compressed-tensors; a code is a value + 2^(bits - 1)
  kGptq = 3,    // (k * bits / 32, n) words of codes that lie below each other
  kAwq = 4,     // (k, n / 8) words of eight rows' codes, in the order 0, 2, 4, 6, 1, 3, 5, 7
  kMxfp4 = 5,   // (n, k / 32 rounded up, 16) bytes of two float4 e2m1, the first in the low bits
  kNvfp4 = 6,   // (n, k / 2) bytes of the same
};

// And of its zero points, one for each scale.
enum class ZeroLayout : int32_t {
  kNone = 0,      // 2^(bits - 1), or 0 where codes are floats
  kI8 = 1,        // like the scales, signed bytes, to which 2^(bits - 1) is added
  kPacked = 2,    // (rows of scales * bits / 32, columns) words
  kGptq = 3,      // (columns of scales, n * bits / 32) words
  kGptqLess = 4,  // the same of words from which a 1 was subtracted at each code
  kAwq = 5,       // (columns of scales, n / 8) words in AWQ's order
};

// A weight as a checkpoint stores it: value = (code - zero) * scale. A scale serves block_rows rows
// and block_columns columns; scales are (scale_rows, scale_columns), those of GPTQ and AWQ
// (scale_columns, n).
struct StoredWeight {
  CodeLayout layout;
  ZeroLayout zero_layout;
  int bits;  // 8, or 4 of packed codes
  int64_t n, k;
  int64_t block_rows, block_columns;
  // f32|f16|bf16; u8 of MXFP4: float8 e8m0, 2^(byte - 127), 255 is NaN; u8 of NVFP4: float8 e4m3,
  // to be multiplied by scale_factor and divided by scale_divisor.
  DType scale_dtype;
  float scale_factor = 1.0f;
  float scale_divisor = 1.0f;
  const char* codes = nullptr;
  const char* scales = nullptr;
  const char* zeros = nullptr;
  const char* column_groups = nullptr;  // (k) i32: which column of scales serves a column; or null

  int64_t scale_rows() const { return (n + block_rows - 1) / block_rows; }
  int64_t scale_columns() const { return (k + block_columns - 1) / block_columns; }
  // Sizes of what the pointers point to.
  int64_t code_bytes() const;
  int64_t scale_bytes() const;
  int64_t zero_bytes() const;
  int64_t column_group_bytes() const { return 4 * k; }
};

// What a weight is unpacked to, of rows first_row, first_row + row_step and so on, n_rows of them.
struct UnpackedWeight {
  int64_t first_row, row_step, n_rows;
  DType dtype;   // f32|bf16: values; i8: codes with a scale a row; u8: codes of 4 bits
  void* weight;  // (n_rows, k), of u8 (n_rows, k / 2) in the order of LinearArgs
  void* scales;  // (n_rows) f32, with u8 (n_rows, k / group) f16, of MXFP4 u8; else null
  void* zeros;   // (n_rows, k / group) u8 with scales of f16; else null
  int64_t group;
};

// What came of it; the numbers cross N-API.
enum class Unpacked : int32_t {
  kDone = 0,
  kDoesNotFit = 1,  // codes or scales that the wanted type cannot say; it can be unpacked to values
  kBadGroup = 2,    // a column group that is none
  kBadZero = 3,     // a zero point that is no code
  kBadScale = 4,    // a scale that is no finite number
};

// Unpacks a weight, and says how that went; unless it was done, the result is not whole. Scales as
// f16 lose no more than half a rounding step of the row's largest scale. A band of rows is one
// thread's; it reads the codes of 512 columns at a time, which the first cache holds in any layout.
Unpacked unpack_weight(ThreadPool& threads, const StoredWeight& from, const UnpackedWeight& to);

}  // namespace zc
