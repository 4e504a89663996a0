/* GELU, ReLU, its square and dropout: one element at a time. */
#include <math.h>

#include "kernels/cpu/cpu.h"
#include "llmc_like/philox.h"

/* Phi(-|x|), given e = exp(-x^2 / 2): the error function's rational approximation 7.1.26 of
 * Abramowitz and Stegun, which is off by at most 1.5e-7 and shares its e with the density. */
static inline float lower_tail(float x, float e) {
    const float t = 1.0f / (1.0f + 0.3275911f * 0.70710678f * fabsf(x));
    float p = 1.061405429f;
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    return 0.5f * p * t * e;
}

/* x Phi(x) = max(x, 0) - |x| Phi(-|x|): no difference of nearly equal numbers on either side. */
static inline float gelu(float x) {
    const float tail = lower_tail(x, exp_cut(-0.5f * x * x));
    return (x > 0 ? x : 0) - fabsf(x) * tail;
}

static inline float gelu_slope(float x) {
    const float e = exp_cut(-0.5f * x * x), tail = lower_tail(x, e);
    return (x > 0 ? 1.0f - tail : tail) + x * (0.39894228f * e);
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

/* The first `blocks` blocks of four numbers from block `first` on, which is a multiple of STRIP /
 * 4: philox4x32 of llmc_like/philox.c in a shape that vectorises over blocks. Backward draws them
 * again, which is cheaper than keeping them. */
static void draw(RngKey key, uint64_t first, int blocks, uint32_t *bits) {
    const uint32_t low = (uint32_t)first, high = (uint32_t)(first >> 32);
#pragma omp simd
    for (int i = 0; i < blocks; i++) {
        uint32_t c0 = low + (uint32_t)i, c1 = high, c2 = key.step, c3 = key.purpose;
        uint32_t k0 = (uint32_t)key.seed, k1 = (uint32_t)(key.seed >> 32);
#pragma GCC unroll 10
        for (int round = 0; round < 10; round++) {
            const uint64_t p0 = (uint64_t)c0 * 0xD2511F53u, p1 = (uint64_t)c2 * 0xCD9E8D57u;
            c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
            c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
            c1 = (uint32_t)p1;
            c3 = (uint32_t)p0;
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        bits[4 * i] = c0;
        bits[4 * i + 1] = c1;
        bits[4 * i + 2] = c2;
        bits[4 * i + 3] = c3;
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
