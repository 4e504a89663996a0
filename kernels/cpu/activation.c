/* GELU, ReLU, its square and dropout: one element at a time. */
#include <math.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "kernels/cpu/cpu.h"
#include "llmc_like/philox.h"

/* Phi(x) = 1/2 + x P(x^2) / Q(x^2), a minimax fit of x Phi(x) on [-5.2, 5.2], which is off by 8e-8
 * beside what rounding costs; beyond, Phi is 0 or 1 to 1e-7. */
static inline float normal_cdf(float x) {
    x = x < -5.2f ? -5.2f : x;
    x = x > 5.2f ? 5.2f : x;
    const float u = x * x;
    float p = -1.72058101e-08f;
    p = p * u + 5.77319815e-06f;
    p = p * u + 0.000441560085f;
    p = p * u + 0.00625773519f;
    p = p * u + 0.0629921928f;
    p = p * u + 0.39894104f;
    float q = 0.000148990905f;
    q = q * u + 0.00341755059f;
    q = q * u + 0.0448014326f;
    q = q * u + 0.324549645f;
    q = q * u + 1.0f;
    return 0.5f + x * p / q;
}

static inline float gelu(float x) { return x * normal_cdf(x); }

static inline float gelu_slope(float x) {
    return normal_cdf(x) + x * (0.39894228f * exp_cut(-0.5f * x * x));
}

/* ReLU, forward and backward, and its square are written so that NaN fails the comparison and
 * passes through. */
void ISA_FN(activate)(Activation act, int64_t n, const float *x, float *y) {
    if (act == ACT_GELU) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) y[i] = gelu(x[i]);
    } else {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) y[i] = x[i] < 0 ? 0 : x[i];
    }
}

void ISA_FN(scale_by_slope)(Activation act, int64_t n, const float *x, float *d) {
    if (act == ACT_GELU) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) d[i] *= gelu_slope(x[i]);
    } else {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) d[i] = x[i] <= 0 ? 0 : d[i];
    }
}

/* Elements that a thread takes at a time: they stay in the first-level cache. */
enum { STRIP = 1024 };

static void activate_all(Ctx *c, const OpCall *o, Activation act) {
    const int64_t n = tensor_numel(o->in[0]);
    const float *x = o->in[0]->data;
    float *y = o->out[0]->data;
#pragma omp parallel for num_threads(c->n_threads) if (n >= PARALLEL_FROM)
    for (int64_t i = 0; i < n; i += STRIP)
        ISA_FN(activate)(act, n - i < STRIP ? n - i : STRIP, x + i, y + i);
}

void ISA_FN(gelu_forward)(Ctx *c, const OpCall *o) { activate_all(c, o, ACT_GELU); }

void ISA_FN(gelu_backward)(Ctx *c, const OpCall *o) {
    const int64_t n = tensor_numel(o->in[0]);
    const float *x = o->in[0]->data, *dy = o->out[0]->grad;
    float *dx = o->in[0]->grad;
    if (o->in[0]->grad_set) {
        EACH(n)
        for (int64_t i = 0; i < n; i++) dx[i] += dy[i] * gelu_slope(x[i]);
    } else {
        EACH(n)
        for (int64_t i = 0; i < n; i++) dx[i] = dy[i] * gelu_slope(x[i]);
    }
}

void ISA_FN(relu_forward)(Ctx *c, const OpCall *o) { activate_all(c, o, ACT_RELU); }

void ISA_FN(relu_backward)(Ctx *c, const OpCall *o) {
    const int64_t n = tensor_numel(o->in[0]);
    const bool add = o->in[0]->grad_set;
    const float *x = o->in[0]->data, *dy = o->out[0]->grad;
    float *dx = o->in[0]->grad;
    EACH(n)
    for (int64_t i = 0; i < n; i++) put(&dx[i], x[i] <= 0 ? 0 : dy[i], add);
}

void ISA_FN(relu_squared_forward)(Ctx *c, const OpCall *o) {
    const int64_t n = tensor_numel(o->in[0]);
    const float *x = o->in[0]->data;
    float *y = o->out[0]->data;
    EACH(n)
    for (int64_t i = 0; i < n; i++) y[i] = x[i] < 0 ? 0 : x[i] * x[i];
}

void ISA_FN(relu_squared_backward)(Ctx *c, const OpCall *o) {
    const int64_t n = tensor_numel(o->in[0]);
    const bool add = o->in[0]->grad_set;
    const float *x = o->in[0]->data, *dy = o->out[0]->grad;
    float *dx = o->in[0]->grad;
    EACH(n)
    for (int64_t i = 0; i < n; i++) put(&dx[i], x[i] <= 0 ? 0 : 2 * x[i] * dy[i], add);
}

/* 32-bit numbers in 64-bit lanes: the one product of 32 by 32 bits that processors have as a vector
 * instruction takes the low halves, whatever the high ones hold. */
#if defined(__AVX512F__)
enum { LANES = 8 };
#elif defined(__AVX2__)
enum { LANES = 4 };
#else
enum { LANES = 2 };
#endif
typedef uint64_t Lanes __attribute__((vector_size(8 * LANES)));

static inline Lanes product_of_low(Lanes a, uint32_t b) {
    const Lanes all = b - (Lanes){0};
#if defined(__AVX512F__)
    return (Lanes)_mm512_mul_epu32((__m512i)a, (__m512i)all);
#elif defined(__AVX2__)
    return (Lanes)_mm256_mul_epu32((__m256i)a, (__m256i)all);
#else
    return (a & 0xffffffffu) * all;
#endif
}

/* At least the first `blocks` blocks of four numbers from block `first` on, which is a multiple of
 * STRIP / 4; bits has room for a strip. philox4x32 of llmc_like/philox.c, a block a lane. Backward
 * draws them again, which is cheaper than keeping them. */
static void draw(RngKey key, uint64_t first, int blocks, uint32_t *bits) {
    Lanes lane;
    for (int i = 0; i < LANES; i++) lane[i] = (uint64_t)i;
    const Lanes pairs = lane / 2 + lane % 2 * LANES; /* 0, LANES, 1, LANES + 1, ... */
    for (int i = 0; i < blocks; i += LANES) {
        Lanes c0 = lane + (first + (uint64_t)i), c1 = (first >> 32) - (Lanes){0};
        Lanes c2 = key.step - (Lanes){0}, c3 = key.purpose - (Lanes){0};
        uint32_t k0 = (uint32_t)key.seed, k1 = (uint32_t)(key.seed >> 32);
#pragma GCC unroll 10
        for (int round = 0; round < 10; round++) {
            const Lanes p0 = product_of_low(c0, 0xD2511F53u), p1 = product_of_low(c2, 0xCD9E8D57u);
            c0 = (p1 >> 32) ^ c1 ^ k0;
            c2 = (p0 >> 32) ^ c3 ^ k1;
            c1 = p1;
            c3 = p0;
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        const Lanes c01 = (c0 & 0xffffffffu) | c1 << 32, c23 = (c2 & 0xffffffffu) | c3 << 32;
        const Lanes out[2] = {__builtin_shuffle(c01, c23, pairs),
                              __builtin_shuffle(c01, c23, pairs + LANES / 2)};
        memcpy(bits + 4 * i, out, sizeof out);
    }
}

/* dst = base + src times each element's 0 or 1 / (1 - p); base NULL: 0. base may be dst. */
static void drop(const Ctx *c, const OpCall *o, const float *base, const float *src, float *dst) {
    const int64_t n = tensor_numel(o->out[0]);
    const RngKey key = {o->attr.seed, o->attr.step, RNG_DROPOUT};
    const uint32_t below = (uint32_t)ceil((double)o->attr.p * 0x1p32);
    const float scale = 1.0f / (1.0f - o->attr.p);
#pragma omp parallel for num_threads(c->n_threads) if (n >= PARALLEL_FROM)
    for (int64_t start = 0; start < n; start += STRIP) {
        uint32_t bits[STRIP];
        const int count = n - start < STRIP ? (int)(n - start) : STRIP;
        draw(key, (((uint64_t)o->attr.layer << 40) + (uint64_t)start) / 4, (count + 3) / 4, bits);
        const float *x = base ? base + start : NULL, *y = src + start;
        float *out = dst + start;
#pragma omp simd
        for (int i = 0; i < count; i++) { /* a product, so that a NaN stays one */
            const float kept = y[i] * (bits[i] < below ? 0 : scale);
            out[i] = x ? x[i] + kept : kept;
        }
    }
}

static void drop_backward(const Ctx *c, const OpCall *o, const Tensor *y) {
    if (y->grad) drop(c, o, y->grad_set ? y->grad : NULL, o->out[0]->grad, y->grad);
}

void ISA_FN(dropout_forward)(Ctx *c, const OpCall *o) {
    drop(c, o, NULL, o->in[0]->data, o->out[0]->data);
}

void ISA_FN(dropout_backward)(Ctx *c, const OpCall *o) { drop_backward(c, o, o->in[0]); }

void ISA_FN(dropout_add_forward)(Ctx *c, const OpCall *o) {
    drop(c, o, o->in[0]->data, o->in[1]->data, o->out[0]->data);
}

void ISA_FN(dropout_add_backward)(Ctx *c, const OpCall *o) {
    const float *d = o->out[0]->grad;
    float *dx = o->in[0]->grad;
    const int64_t n = tensor_numel(o->out[0]);
    const bool add = o->in[0]->grad_set;
    drop_backward(c, o, o->in[1]);
    if (!dx || dx == d) return; /* the tape hands d itself to x */
    EACH(n)
    for (int64_t i = 0; i < n; i++) put(&dx[i], d[i], add);
}
