/* What the flash kernels need of <cuda_bf16.h>, <limits.h>, <stdint.h> and <string.h> where NVRTC
 * compiles them: it has no headers, and who runs the program need not have the toolkit's. NVRTC is
 * given this text under each of these names. */
#ifndef KERNELS_CUDA_NVRTC_STD_H
#define KERNELS_CUDA_NVRTC_STD_H

typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
typedef unsigned long long uintptr_t;

#define INT_MAX 2147483647
#define INFINITY __int_as_float(0x7f800000)

struct alignas(2) __nv_bfloat16 {
    unsigned short bits;
};
struct __nv_bfloat162 {
    unsigned bits; /* the first in the lower half; taken apart they would cost instructions */
};

static __device__ __forceinline__ float __bfloat162float(__nv_bfloat16 x) {
    return __int_as_float((int)x.bits << 16);
}
static __device__ __forceinline__ __nv_bfloat16 __float2bfloat16_rn(float x) {
    __nv_bfloat16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
static __device__ __forceinline__ __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    __nv_bfloat162 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both.bits) : "f"(y), "f"(x));
    return both;
}

#endif
