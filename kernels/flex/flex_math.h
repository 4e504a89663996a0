/* The elementary functions of flex, without branches, tables or calls, so that a loop over them
 * vectorises on every instruction set. The same text is compiled into the interpreter and at the
 * head of every generated source, as C and as CUDA C++, so it includes nothing. Relative errors
 * against the exact value are at most about 2e-7 (flex_pow: see there); NaN goes in, NaN comes out.
 *
 * Coefficients: minimax fits of relative error (Lawson's iteration on Chebyshev nodes), except
 * log's, which are those of the series of atanh. */
#ifndef KERNELS_FLEX_FLEX_MATH_H
#define KERNELS_FLEX_FLEX_MATH_H

/* Device code, by NVRTC, has what is a few instructions there: quotients to 2 units in the last
 * place (0 for divisors from 2^126 on), division of ints, CUDA's exponentials and logarithms. */
#ifdef __CUDACC__
#define FLEX_INLINE static __device__ __forceinline__
#define FLEX_SQRT sqrtf
#define FLEX_DIVIDE(a, b) __fdividef(a, b)
#define FLEX_QUOTIENT(a, b) ((a) / (b))
#else
#define FLEX_INLINE static inline
#define FLEX_SQRT __builtin_sqrtf
#define FLEX_DIVIDE(a, b) ((a) / (b))
#define FLEX_QUOTIENT(a, b) (int)((double)(a) / (double)(b))
#endif

typedef union FlexBits {
    float f;
    int i;
} FlexBits;

FLEX_INLINE float flex_from_bits(int i) {
    FlexBits bits;
    bits.i = i;
    return bits.f;
}
FLEX_INLINE int flex_to_bits(float f) {
    FlexBits bits;
    bits.f = f;
    return bits.i;
}

/* c ? a : b by masking bits: of a choice the compiler may make a jump, and a jump around a square
 * root it does not undo. */
FLEX_INLINE int flex_iselect(int c, int a, int b) {
    const int mask = -(c != 0);
    return (a & mask) | (b & ~mask);
}
FLEX_INLINE float flex_select(int c, float a, float b) {
    return flex_from_bits(flex_iselect(c, flex_to_bits(a), flex_to_bits(b)));
}

/* Integers: two's complement that wraps. Division truncates as C's; by zero it gives 0. On a CPU it
 * goes through double, whose quotient of two ints truncates to the exact one, because processors
 * divide vectors of double but none of int. */
FLEX_INLINE int flex_add(int a, int b) { return (int)((unsigned)a + (unsigned)b); }
FLEX_INLINE int flex_sub(int a, int b) { return (int)((unsigned)a - (unsigned)b); }
FLEX_INLINE int flex_mul(int a, int b) { return (int)((unsigned)a * (unsigned)b); }

FLEX_INLINE int flex_div(int a, int b) {
    const int special = (b == 0) | (b == -1); /* -1: the least int has no positive counterpart */
    const int quotient = FLEX_QUOTIENT(a, flex_iselect(special, 2, b));
    return flex_iselect(special, flex_mul(a, b), quotient); /* a * 0 and a * -1 */
}
FLEX_INLINE int flex_mod(int a, int b) {
    return flex_iselect(b == 0, 0, flex_sub(a, flex_mul(flex_div(a, b), b)));
}

/* The index i of an array of n elements, brought inside. */
FLEX_INLINE int flex_clamp(int i, int n) {
    const int low = i < 0 ? 0 : i;
    return low < n ? low : n - 1;
}

FLEX_INLINE int flex_imin(int a, int b) { return a < b ? a : b; }
FLEX_INLINE int flex_imax(int a, int b) { return a > b ? a : b; }
FLEX_INLINE int flex_iabs(int a) { return a < 0 ? flex_sub(0, a) : a; }

/* If a is NaN, a != a holds; if b is, no comparison does: either way NaN is chosen. */
FLEX_INLINE float flex_min(float a, float b) { return flex_select((a < b) | (a != a), a, b); }
FLEX_INLINE float flex_max(float a, float b) { return flex_select((a > b) | (a != a), a, b); }
FLEX_INLINE float flex_divide(float a, float b) { return FLEX_DIVIDE(a, b); }
FLEX_INLINE float flex_abs(float a) { return flex_from_bits(flex_to_bits(a) & 0x7fffffff); }
FLEX_INLINE float flex_sign(float a) { return (float)((a > 0.0f) - (a < 0.0f)); }
FLEX_INLINE float flex_sqrt(float a) { return FLEX_SQRT(a); }

/* From 2^23 on every float is an integer already (and NaN is not below it). */
FLEX_INLINE float flex_floor(float x) {
    const int small = flex_abs(x) < 8388608.0f;
    const float t = (float)(int)flex_select(small, x, 0.0f);
    return flex_select(small, t - (float)(t > x), x);
}
FLEX_INLINE float flex_ceil(float x) { return -flex_floor(-x); }

#ifdef __CUDACC__
FLEX_INLINE float flex_exp2(float x) { return exp2f(x); }
FLEX_INLINE float flex_exp(float x) { return expf(x); }
FLEX_INLINE float flex_log(float x) { return logf(x); }
FLEX_INLINE float flex_log2(float x) { return log2f(x); }
#else
FLEX_INLINE float flex_power_of_2(int n) {
    return flex_from_bits((int)((unsigned)(n + 127) << 23));
}

/* 2^n e^r for |r| <= ln 2 / 2 and an n that is a whole number of -400 .. 400, given as
 * 1.5 2^23 + n, whose low bits are n. Two factors, since 2^n alone may overflow or be
 * subnormal where the product is not. */
FLEX_INLINE float flex_scale_exp(float shifted, float r) {
    const int n = flex_to_bits(shifted) - flex_to_bits(12582912.0f);
    const int half = n >> 1;
    const float p =
        (((1.38144648e-3f * r + 8.36878062e-3f) * r + 4.16683943e-2f) * r + 0.166665201f) * r +
        0.499999934f;
    const float y = p * (r * r) + r + 1.0f;
    return y * flex_power_of_2(half) * flex_power_of_2(n - half);
}

FLEX_INLINE float flex_exp2(float x) {
    const float y = flex_min(flex_max(x, -200.0f), 200.0f);
    const float shifted = y + 12582912.0f;
    return flex_scale_exp(shifted, (y - (shifted - 12582912.0f)) * 0.693147181f);
}

FLEX_INLINE float flex_exp(float x) {
    const float y = flex_min(flex_max(x, -140.0f), 140.0f);
    const float shifted = y * 1.44269504f + 12582912.0f;
    const float n = shifted - 12582912.0f;
    /* ln 2 in two parts, the first of few enough bits that n times it is exact */
    return flex_scale_exp(shifted, (y - n * 0.693359375f) - n * -2.12194440e-4f);
}

/* x = 2^e m with m in [sqrt(1/2), sqrt(2)); log m = 2 atanh(s), s = (m - 1) / (m + 1). The result
 * is e high + (e low + log m) factor, with 2^e's logarithm in two parts. */
FLEX_INLINE float flex_log_parts(float x, float high, float low, float factor) {
    const int tiny = x < 1.17549435e-38f; /* subnormal (or not positive, chosen away below) */
    const int bits = flex_to_bits(flex_select(tiny, x * 8388608.0f, x));
    const int e = flex_sub(bits, 0x3f3504f3) >> 23;
    const float m = flex_from_bits(flex_sub(bits, (int)((unsigned)e << 23)));
    const float n = (float)(e - flex_iselect(tiny, 23, 0));
    const float s = flex_divide(m - 1.0f, m + 1.0f), z = s * s;
    const float series = (((z * 0.111111111f + 0.142857143f) * z + 0.2f) * z + 0.333333333f) * z;
    const float y = n * high + (n * low + (2.0f * s + 2.0f * s * series) * factor);
    const float infinity = flex_from_bits(0x7f800000), nan = flex_from_bits(0x7fc00000);
    const float positive = flex_select(x < infinity, y, x); /* infinity stays, NaN too */
    const float other = flex_select(x == 0.0f, -infinity, x + nan);
    return flex_select(x > 0.0f, positive, other);
}
FLEX_INLINE float flex_log(float x) {
    return flex_log_parts(x, 0.693359375f, -2.12194440e-4f, 1.0f);
}
FLEX_INLINE float flex_log2(float x) { return flex_log_parts(x, 1.0f, 0.0f, 1.44269504f); }
#endif

/* x^n for |n| <= 64, n a literal: by squaring; squares that n does not use cost nothing then. */
FLEX_INLINE float flex_powi(float x, int n) {
    const int m = n < 0 ? -n : n;
    const float x2 = x * x, x4 = x2 * x2, x8 = x4 * x4, x16 = x8 * x8, x32 = x16 * x16;
    float y = m & 1 ? x : 1.0f;
    y = m & 2 ? y * x2 : y;
    y = m & 4 ? y * x4 : y;
    y = m & 8 ? y * x8 : y;
    y = m & 16 ? y * x16 : y;
    y = m & 32 ? y * x32 : y;
    y = m & 64 ? y * (x32 * x32) : y;
    return n < 0 ? flex_divide(1.0f, y) : y;
}

/* x^c for a c that is no whole number: 2^(c log2 x), relative error about 1e-7 (1 + |c log2 x|). */
FLEX_INLINE float flex_pow(float x, float c) { return flex_exp2(c * flex_log2(x)); }

FLEX_INLINE float flex_sigmoid(float x) { return flex_divide(1.0f, 1.0f + flex_exp(-x)); }

/* An odd polynomial near 0, where 1 - 2 / (e^2x + 1) would cancel. */
FLEX_INLINE float flex_tanh(float x) {
    const float z = x * x, a = flex_abs(x);
    const float near =
        x +
        x * z *
            ((((-5.66698032e-3f * z + 2.06061799e-2f) * z - 5.37300083e-2f) * z + 0.13331331f) * z -
             0.333332781f);
    const float far = 1.0f - flex_divide(2.0f, flex_exp(2.0f * a) + 1.0f);
    return flex_select(a < 0.625f, near, flex_select(x < 0.0f, -far, far));
}

#endif
