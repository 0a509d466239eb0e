#pragma once

#include <cstdint>

#include "csrc/cuda/device/simt.h"
#include "csrc/cuda/kernel.h"

namespace zc::cuda {

// Describes (rows, heads, head_dim) of 16-bit elements to tma_load_3d, which then copies boxes of
// 64 channels of one head of `box_rows` rows, as csrc/cuda/device/operand.h describes slabs.
// Coordinates are channel, head, row. `data` is a multiple of 16 and no extent is 0.
#if defined(__CUDACC__)
inline simt::TensorMap slab_map(const void* data, DType dtype, int64_t rows, int64_t heads,
                                int64_t head_dim, int box_rows) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  check_cuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                              cudaEnableDefault, &found),
             "cudaGetDriverEntryPointByVersion");
  ZC_CHECK(found == cudaDriverEntryPointSuccess, ErrorCode::kDevice,
           "device: the driver has no tensor maps");
  const cuuint64_t sizes[3] = {static_cast<cuuint64_t>(head_dim), static_cast<cuuint64_t>(heads),
                               static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[2] = {sizes[0] * 2, sizes[0] * sizes[1] * 2};
  const cuuint32_t box[3] = {64, 1, static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[3] = {1, 1, 1};
  simt::TensorMap map;
  const CUresult result = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function)(
      &map,
      dtype == DType::kBF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 3,
      const_cast<void*>(data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  ZC_CHECK(result == CUDA_SUCCESS, ErrorCode::kDevice,
           "device: no tensor map of (%lld, %lld, %lld), error %d", static_cast<long long>(rows),
           static_cast<long long>(heads), static_cast<long long>(head_dim),
           static_cast<int>(result));
  return map;
}
#else
inline simt::TensorMap slab_map(const void* data, DType, int64_t rows, int64_t heads,
                                int64_t head_dim, int box_rows) {
  const auto unsigned_of = [](int64_t x) { return static_cast<uint64_t>(x); };
  return {static_cast<const unsigned char*>(data),
          {unsigned_of(head_dim), unsigned_of(heads), unsigned_of(rows)},
          {2, unsigned_of(head_dim * 2), unsigned_of(heads * head_dim * 2)},
          {64, 1, static_cast<uint32_t>(box_rows)},
          128};
}
#endif

}  // namespace zc::cuda
