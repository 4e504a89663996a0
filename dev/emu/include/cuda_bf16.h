/* bfloat16 as the toolkit's cuda_bf16.h has it: the upper half of a float32. Conversions round to
 * nearest even and keep NaN. */
#ifndef DEV_EMU_CUDA_BF16_H
#define DEV_EMU_CUDA_BF16_H

#include <cuda_runtime.h>

static inline float emu_bf16_to_float(unsigned short bits) {
    const unsigned wide = (unsigned)bits << 16;
    float x;
    __builtin_memcpy(&x, &wide, sizeof x);
    return x;
}

static inline unsigned short emu_bf16_from_float(float x) {
    unsigned bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff; /* the toolkit's NaN */
    return (unsigned short)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

/* Without a constructor from float, which the toolkit's has: the compiler would guard arrays of
 * them in shared memory with a hidden flag. Kernels convert by name. */
typedef struct __nv_bfloat16 {
    unsigned short bits;
    operator float() const { return emu_bf16_to_float(bits); }
} __nv_bfloat16;
typedef __nv_bfloat16 nv_bfloat16;

typedef struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
} __nv_bfloat162;
typedef __nv_bfloat162 nv_bfloat162;

static inline float __bfloat162float(__nv_bfloat16 x) { return emu_bf16_to_float(x.bits); }
static inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    return __nv_bfloat16{emu_bf16_from_float(x)};
}
static inline __nv_bfloat16 __float2bfloat16(float x) {
    return __nv_bfloat16{emu_bf16_from_float(x)};
}

static inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 lo, __nv_bfloat16 hi) {
    return __nv_bfloat162{lo, hi};
}
static inline __nv_bfloat162 make_bfloat162(__nv_bfloat16 lo, __nv_bfloat16 hi) {
    return __nv_bfloat162{lo, hi};
}
static inline __nv_bfloat162 __floats2bfloat162_rn(float lo, float hi) {
    return __nv_bfloat162{__float2bfloat16_rn(lo), __float2bfloat16_rn(hi)};
}
static inline __nv_bfloat162 __float22bfloat162_rn(float2 v) {
    return __floats2bfloat162_rn(v.x, v.y);
}
static inline float2 __bfloat1622float2(__nv_bfloat162 v) {
    return make_float2(__bfloat162float(v.x), __bfloat162float(v.y));
}
static inline float __low2float(__nv_bfloat162 v) { return __bfloat162float(v.x); }
static inline float __high2float(__nv_bfloat162 v) { return __bfloat162float(v.y); }
static inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) { return v.x; }
static inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) { return v.y; }

static inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
static inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
    __nv_bfloat16 x;
    x.bits = bits;
    return x;
}

#endif
