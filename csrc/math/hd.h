#pragma once

// ZC_HD marks arithmetic that CPU and GPU must do alike: one definition, compiled for both. nvcc
// has to be told to inline it: a call in a kernel puts what it returns into memory. On the host no
// copy may stand by itself either: kernels are compiled for several instruction sets, and the
// linker keeps one of all functions of a name, which another processor may not run.
#if defined(__CUDACC__)
#define ZC_HD __host__ __device__ __forceinline__
#else
#define ZC_HD [[gnu::always_inline]] inline
#endif
