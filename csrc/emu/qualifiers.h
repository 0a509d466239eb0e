#pragma once

// CUDA's keywords for a compiler that does not know them.
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

// Shared arrays are declared by ZC_SHARED: they lie in the emulated block, where they are checked.
#define __shared__ shared_memory_is_declared_by_ZC_SHARED

// The block's dynamic bytes.
#define ZC_DYNAMIC_SHARED(name) unsigned char* const name = ::zc::emu::current->block->shared.base()
// ZC_SHARED(float, tile, [64]): an array of the kernel's own.
#define ZC_SHARED(T, name, ...)                                                                   \
  struct ZcSharedTag_##name {};                                                                   \
  using ZcSharedType_##name = T __VA_ARGS__;                                                      \
  auto& name = *static_cast<ZcSharedType_##name*>(::zc::emu::shared_variable<ZcSharedTag_##name>( \
      sizeof(ZcSharedType_##name), alignof(ZcSharedType_##name)))

#define ZC_UNROLL
#define ZC_NO_UNROLL
#define ZC_DEVICE inline
