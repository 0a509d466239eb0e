#pragma once

// ZC_HD marks arithmetic that CPU and GPU must do alike: one definition, compiled for both.
#if defined(__CUDACC__)
#define ZC_HD __host__ __device__ inline
#else
#define ZC_HD inline
#endif
