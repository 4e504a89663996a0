/* A call of an attention backend for tests: tensors with gaps between their rows, all between
 * sentinels; runs with a workspace just as long as asked for and full of NaN; and the rule of
 * errors: the largest is at most twice that of the plain loops in float32, plus a floor of 16 units
 * in the last place of the largest entry. Include after cmocka.h. */
#ifndef TEST_ATTENTION_CALL_H
#define TEST_ATTENTION_CALL_H

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/attention.h"
#include "llmc_like/ctx.h"
#include "llmc_like/philox.h"
#include "test/on_device.h"

/* Gaps between rows: 5, and for an even number of heads 8, which leaves rows aligned where heads
 * are. */
enum { GUARD = 32, N_TENSORS = 11 };
static const float SENTINEL = 12345.678f;

/* A call's tensors. Order: inputs q, k, v, dout, then out, dq, dk, dv, lse, and what the mask's
 * score expression learns (an input, too; of no length where it learns nothing). */
enum { Q, K, V, DOUT, OUT, DQ, DK, DV, LSE, LEARNED, DLEARNED };
static const char *const tensor_names[N_TENSORS] = {"q",  "k",  "v",   "dout",    "out",     "dq",
                                                    "dk", "dv", "lse", "learned", "dlearned"};

typedef struct Shape {
    int B, H, Tq, Tk, D;
} Shape;

typedef struct Call {
    AttnArgs a;
    void *block[N_TENSORS];                 /* with the guards */
    size_t n[N_TENSORS];                    /* elements between the guards, gaps included */
    size_t row[N_TENSORS], step[N_TENSORS]; /* elements of a row that count, and to the next row */
} Call;

/* lse is float32 where the rest is bf16; what is learned always is. */
static inline DType dtype_of(DType t, int tensor) {
    if (tensor >= LEARNED) return DT_F32;
    return t == DT_BF16 && tensor == LSE ? DT_F32 : t;
}

static inline double get(const Call *c, int tensor, size_t i) {
    const DType t = dtype_of(c->a.dtype, tensor);
    if (t == DT_F64) return ((double *)c->block[tensor])[GUARD + i];
    if (t == DT_BF16) return (double)from_bf16(((uint16_t *)c->block[tensor])[GUARD + i]);
    return (double)((float *)c->block[tensor])[GUARD + i];
}

static inline void set(const Call *c, int tensor, size_t i, double x) {
    const DType t = dtype_of(c->a.dtype, tensor);
    if (t == DT_F64)
        ((double *)c->block[tensor])[GUARD + i] = x;
    else if (t == DT_BF16)
        ((uint16_t *)c->block[tensor])[GUARD + i] = to_bf16((float)x);
    else
        ((float *)c->block[tensor])[GUARD + i] = (float)x;
}

static inline size_t block_bytes(const Call *c, int tensor) {
    return (c->n[tensor] + 2 * GUARD) * dtype_size(dtype_of(c->a.dtype, tensor));
}

/* rounded: inputs are numbers of bf16, whatever the dtype. */
static inline Call call_make_from(Shape s, DType dtype, bool rounded, const Mask *mask,
                                  float scale) {
    const int gap = s.H % 2 ? 5 : 8;
    Call c = {.a = {.B = s.B,
                    .H = s.H,
                    .Tq = s.Tq,
                    .Tk = s.Tk,
                    .D = s.D,
                    .dtype = dtype,
                    .scale = scale,
                    .offset = s.Tk - s.Tq,
                    .mask = mask}};
    for (int t = 0; t < N_TENSORS; t++) {
        const bool keys = t == K || t == V || t == DK || t == DV;
        const size_t learned = (size_t)mask->n_learned;
        c.row[t] = t >= LEARNED ? learned : t == LSE ? (size_t)s.Tq : (size_t)(s.H * s.D);
        c.step[t] = t >= LSE ? c.row[t] : c.row[t] + (size_t)gap;
        c.n[t] = c.step[t] * (size_t)(t == LSE ? s.B * s.H : s.B * (keys ? s.Tk : s.Tq));
        if (t >= LEARNED) c.n[t] = learned;
        c.block[t] = malloc(block_bytes(&c, t));
        assert_non_null(c.block[t]);
        for (size_t i = 0; i < c.n[t] + 2 * GUARD; i++) set(&c, t, i - GUARD, SENTINEL);
        if (t > DOUT && t != LEARNED) continue;
        for (size_t i = 0; i < c.n[t]; i++) {
            float x;
            rng_normal((RngKey){7, (uint32_t)t, RNG_TEST}, i, &x, 1);
            if (rounded) x = from_bf16(to_bf16(x));
            if (i % c.step[t] < c.row[t]) set(&c, t, i, (double)x);
        }
    }
    void *p[N_TENSORS];
    for (int t = 0; t < N_TENSORS; t++)
        p[t] = (char *)c.block[t] + GUARD * dtype_size(dtype_of(dtype, t));
    c.a.q = p[Q], c.a.k = p[K], c.a.v = p[V], c.a.dout = p[DOUT], c.a.out = p[OUT];
    c.a.dq = p[DQ], c.a.dk = p[DK], c.a.dv = p[DV], c.a.lse = p[LSE];
    if (mask->n_learned) c.a.learned = p[LEARNED], c.a.dlearned = p[DLEARNED];
    const int64_t row = s.H * s.D + gap;
    c.a.qs = c.a.os = (AttnStride){s.Tq * row, row, s.D};
    c.a.ks = c.a.vs = (AttnStride){s.Tk * row, row, s.D};
    return c;
}

static inline Call call_make(Shape s, DType dtype, const Mask *mask, float scale) {
    return call_make_from(s, dtype, dtype == DT_BF16, mask, scale);
}

static inline void call_free(Call *c) {
    for (int t = 0; t < N_TENSORS; t++) free(c->block[t]);
}

static inline void run_plain(Call *c) {
    c->a.workspace = malloc(sizeof(double) * (size_t)(c->a.Tk + c->a.mask->n_learned));
    plain_attn(&c->a, false);
    plain_attn(&c->a, true);
    free(c->a.workspace);
}

static inline void round_results(Call *c, int first, int end) {
    for (int t = first; t < end; t++)
        for (size_t i = 0; i < c->n[t]; i++)
            if (i % c->step[t] < c->row[t])
                set(c, t, i, (double)from_bf16(to_bf16((float)get(c, t, i))));
}

/* What a call's pointer into a block is on the device. */
static inline void *moved(const Call *c, const Block *b, int tensor, const void *p) {
    return p ? b->at + ((const unsigned char *)p - (unsigned char *)c->block[tensor]) : NULL;
}

/* Forward and backward with exactly the workspace that was asked for, full of NaN. */
static inline void run_backend(Ctx *ctx, const AttnBackend *b, Call *c) {
    Block block[N_TENSORS];
    AttnArgs a = c->a;
    for (int t = 0; t < N_TENSORS; t++) {
        block[t] = block_make(ctx->dev, block_bytes(c, t));
        memcpy(block[t].host, c->block[t], block_bytes(c, t));
        block_push(&block[t]);
    }
    a.q = moved(c, &block[Q], Q, a.q), a.k = moved(c, &block[K], K, a.k);
    a.v = moved(c, &block[V], V, a.v), a.dout = moved(c, &block[DOUT], DOUT, a.dout);
    a.out = moved(c, &block[OUT], OUT, a.out), a.lse = moved(c, &block[LSE], LSE, a.lse);
    a.dq = moved(c, &block[DQ], DQ, a.dq), a.dk = moved(c, &block[DK], DK, a.dk);
    a.dv = moved(c, &block[DV], DV, a.dv);
    a.learned = moved(c, &block[LEARNED], LEARNED, a.learned);
    a.dlearned = moved(c, &block[DLEARNED], DLEARNED, a.dlearned);
    for (int backward = 0; backward < 2; backward++) {
        const size_t bytes = b->workspace(ctx, &a, backward);
        Block w = block_make(ctx->dev, bytes + 64);
        memset(w.host, 0xff, bytes);
        memset(w.host + bytes, 0x5a, 64);
        block_push(&w);
        a.workspace = w.at;
        (backward ? b->backward : b->forward)(ctx, &a);
        block_pull(&w);
        for (int i = 0; i < 64; i++)
            if (w.host[bytes + (size_t)i] != 0x5a)
                fail_msg("%s wrote behind its workspace", b->name);
        block_free(&w);
    }
    for (int t = 0; t < N_TENSORS; t++) {
        block_pull(&block[t]);
        memcpy(c->block[t], block[t].host, block_bytes(c, t));
        block_free(&block[t]);
    }
}

static inline void check_sentinels(const Call *c, const char *what) {
    for (int t = 0; t < N_TENSORS; t++)
        for (size_t i = 0; i < c->n[t] + 2 * GUARD; i++) {
            const size_t at = i - GUARD;
            const bool inside = i >= GUARD && at < c->n[t] && at % c->step[t] < c->row[t];
            const double sentinel = dtype_of(c->a.dtype, t) == DT_BF16
                                        ? (double)from_bf16(to_bf16(SENTINEL))
                                        : (double)SENTINEL;
            if (!inside && get(c, t, at) != sentinel)
                fail_msg("%s: %s was written outside its elements", what, tensor_names[t]);
        }
}

typedef struct Error {
    double error[N_TENSORS], largest[N_TENSORS];
} Error;

static inline Error compare(const Call *got, const Call *expected) {
    Error e = {0};
    for (int t = OUT; t < N_TENSORS; t++)
        for (size_t i = 0; i < got->n[t]; i++) {
            if (i % got->step[t] >= got->row[t]) continue;
            const double x = get(got, t, i), y = get(expected, t, i);
            const double d = x == y ? 0 : fabs(x - y); /* a row that sees nothing has lse -inf */
            if (!(d <= e.error[t])) e.error[t] = d;
            if (isfinite(y)) e.largest[t] = fmax(e.largest[t], fabs(y));
        }
    return e;
}

static inline void run_plain_rounded(Call *c, bool backward) {
    c->a.workspace = malloc(sizeof(float) * (size_t)(c->a.Tk + c->a.mask->n_learned));
    plain_attn_rounded(&c->a, backward);
    round_results(c, backward ? DQ : OUT, backward ? LSE : DQ);
    free(c->a.workspace);
}

/* The plain loops' error by which a call in bf16 is measured: float32 on the same numbers of bf16,
 * rounded where a kernel must round. Their backward reads the output that the backend wrote: what
 * its rounding does to delta is then the same for both, and no matter of luck. */
static inline Error plain_error_rounded(const Call *got, const Call *exact) {
    const AttnArgs *a = &got->a;
    Call c =
        call_make_from((Shape){a->B, a->H, a->Tq, a->Tk, a->D}, DT_F32, true, a->mask, a->scale);
    run_plain_rounded(&c, false);
    const Error forward = compare(&c, exact);
    for (size_t i = 0; i < c.n[OUT]; i++)
        if (i % c.step[OUT] < c.row[OUT]) set(&c, OUT, i, get(got, OUT, i));
    run_plain_rounded(&c, true);
    Error e = compare(&c, exact);
    e.error[OUT] = forward.error[OUT];
    call_free(&c);
    return e;
}

static inline void check_errors(const Error *got, const Error *plain, const char *what) {
    for (int t = OUT; t < N_TENSORS; t++) {
        const double bound = 2 * plain->error[t] + 16 * (double)FLT_EPSILON * plain->largest[t];
        if (!(got->error[t] <= bound))
            fail_msg("%s: %s is off by %.3g, more than %.3g (plain float32: %.3g, largest %.3g)",
                     what, tensor_names[t], got->error[t], bound, plain->error[t],
                     plain->largest[t]);
    }
}

static inline void ctx_for(Ctx *c, const Device *d, int threads) {
    Err e;
    if (ctx_init(c, d->name, threads, 1, false, &e)) fail_msg("%s", e.text);
}

#endif
