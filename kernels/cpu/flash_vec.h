/* The vectors of the attention kernels. One text for every instruction set: the compiler's generic
 * vectors, as wide as the target has them, with intrinsics only where the generic form costs
 * something. Part of what is compiled at run time for flex, so it includes nothing of the project.
 */
#if !defined(KERNELS_CPU_FLASH_VEC_H) && !defined(FLASH_TEXT_ONLY)
#define KERNELS_CPU_FLASH_VEC_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__AVX512F__)
enum { VW = 16, MAX_VECS = 4 }; /* floats a vector; vectors of a row held in registers */
#elif defined(__AVX2__)
enum { VW = 8, MAX_VECS = 2 };
#else
enum { VW = 4, MAX_VECS = 2 };
#endif

typedef float Vec __attribute__((vector_size(4 * VW), aligned(4), may_alias));
typedef int32_t VecInt __attribute__((vector_size(4 * VW), aligned(4), may_alias));

#if defined(__AVX512F__)
static const VecInt vec_lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif defined(__AVX2__)
static const VecInt vec_lane = {0, 1, 2, 3, 4, 5, 6, 7};
#else
static const VecInt vec_lane = {0, 1, 2, 3};
#endif

#define FLASH_INLINE static inline __attribute__((always_inline))

FLASH_INLINE Vec vec_load(const float *p) { return *(const Vec *)p; }
FLASH_INLINE void vec_store(float *p, Vec x) { *(Vec *)p = x; }

/* The first n of a vector, all where n is VW or more; zeros beyond, of which nothing is read. */
FLASH_INLINE Vec vec_load_some(const float *p, int n) {
    if (n >= VW) return vec_load(p);
#if defined(__AVX512F__)
    return (Vec)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#elif defined(__AVX2__)
    return (Vec)_mm256_maskload_ps(p, (__m256i)(vec_lane < n));
#else
    Vec x = {0};
    for (int i = 0; i < n; i++) x[i] = p[i];
    return x;
#endif
}

FLASH_INLINE void vec_store_some(float *p, Vec x, int n) {
    if (n >= VW) {
        vec_store(p, x);
        return;
    }
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)x);
#elif defined(__AVX2__)
    _mm256_maskstore_ps(p, (__m256i)(vec_lane < n), (__m256)x);
#else
    for (int i = 0; i < n; i++) p[i] = x[i];
#endif
}

/* The lanes of the vector at p from number n on become x. */
FLASH_INLINE void vec_fill_from(float *p, int n, float x) {
    const VecInt keep = vec_lane < n, fill = (VecInt)(x - (Vec){0});
    vec_store(p, (Vec)(((VecInt)vec_load(p) & keep) | (fill & ~keep)));
}

FLASH_INLINE Vec vec_all(float x) { return x - (Vec){0}; }

/* Where a is NaN the result is either of both: a NaN score comes out of the exponential anyway. */
FLASH_INLINE Vec vec_max(Vec a, Vec b) {
#if defined(__AVX512F__)
    return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#else
    VecInt greater = a > b;
    return (Vec)(((VecInt)a & greater) | ((VecInt)b & ~greater));
#endif
}

FLASH_INLINE float vec_reduce_max(Vec x) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)x);
#else
    float m = x[0];
    for (int i = 1; i < VW; i++) m = x[i] > m ? x[i] : m;
    return m;
#endif
}

FLASH_INLINE float vec_reduce_add(Vec x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)x);
#else
    float s = 0;
    for (int i = 0; i < VW; i++) s += x[i];
    return s;
#endif
}

/* 2^x for x <= 127: 2^n 2^r with n the nearest integer, and a polynomial of degree 5 for 2^r on
 * [-1/2, 1/2] (minimax, relative error 9e-8). Below 2^-126, and so for -inf, exactly 0: a denormal
 * would slow the products that follow. NaN stays NaN. */
FLASH_INLINE Vec vec_exp2(Vec x) {
#if defined(__AVX512F__)
    Vec n = (Vec)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    const float round = 12582912.0f; /* 1.5 2^23: adding it leaves the nearest integer below */
    Vec shifted = x + round;
    Vec n = shifted - round;
#endif
    Vec r = x - n;
    Vec p = 0.00132647272f * r + 0.00967151269f;
    p = p * r + 0.0555073374f;
    p = p * r + 0.240222421f;
    p = p * r + 0.693146978f;
    p = p * r + 1.0f;
#if defined(__AVX512F__)
    __mmask16 normal = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
    return (Vec)_mm512_maskz_scalef_ps(normal, (__m512)p, (__m512)n);
#else
    VecInt exponent = ((VecInt)shifted - 0x4b400000 + 127) << 23;
    return (Vec)((VecInt)(p * (Vec)exponent) & ~(x < -126.0f));
#endif
}

#endif
