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
#include "kernels/device.h"
#include "llmc_like/ctx.h"
#include "llmc_like/philox.h"

enum { GAP = 5, GUARD = 32, N_TENSORS = 9 };
static const float SENTINEL = 12345.678f;

/* A call's tensors. Order: inputs q, k, v, dout, then out, dq, dk, dv, lse. */
enum { Q, K, V, DOUT, OUT, DQ, DK, DV, LSE };
static const char *const tensor_names[N_TENSORS] = {"q",  "k",  "v",  "dout", "out",
                                                    "dq", "dk", "dv", "lse"};

typedef struct Shape {
    int B, H, Tq, Tk, D;
} Shape;

typedef struct Call {
    AttnArgs a;
    void *block[N_TENSORS];                 /* with the guards */
    size_t n[N_TENSORS];                    /* elements between the guards, gaps included */
    size_t row[N_TENSORS], step[N_TENSORS]; /* elements of a row that count, and to the next row */
} Call;

static inline size_t element(DType t) { return t == DT_F64 ? sizeof(double) : sizeof(float); }

static inline double get(const Call *c, int tensor, size_t i) {
    return c->a.dtype == DT_F64 ? ((double *)c->block[tensor])[GUARD + i]
                                : (double)((float *)c->block[tensor])[GUARD + i];
}

static inline void set(const Call *c, int tensor, size_t i, double x) {
    if (c->a.dtype == DT_F64)
        ((double *)c->block[tensor])[GUARD + i] = x;
    else
        ((float *)c->block[tensor])[GUARD + i] = (float)x;
}

static inline Call call_make(Shape s, DType dtype, const Mask *mask, float scale) {
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
        c.row[t] = t == LSE ? (size_t)s.Tq : (size_t)(s.H * s.D);
        c.step[t] = t == LSE ? c.row[t] : c.row[t] + GAP;
        c.n[t] = c.step[t] * (size_t)(t == LSE ? s.B * s.H : s.B * (keys ? s.Tk : s.Tq));
        c.block[t] = malloc((c.n[t] + 2 * GUARD) * element(dtype));
        assert_non_null(c.block[t]);
        for (size_t i = 0; i < c.n[t] + 2 * GUARD; i++) set(&c, t, i - GUARD, SENTINEL);
        if (t > DOUT) continue;
        for (size_t i = 0; i < c.n[t]; i++) {
            float x;
            rng_normal((RngKey){7, (uint32_t)t, RNG_TEST}, i, &x, 1);
            if (i % c.step[t] < c.row[t]) set(&c, t, i, (double)x);
        }
    }
    void *p[N_TENSORS];
    for (int t = 0; t < N_TENSORS; t++) p[t] = (char *)c.block[t] + GUARD * element(dtype);
    c.a.q = p[Q], c.a.k = p[K], c.a.v = p[V], c.a.dout = p[DOUT], c.a.out = p[OUT];
    c.a.dq = p[DQ], c.a.dk = p[DK], c.a.dv = p[DV], c.a.lse = p[LSE];
    const int64_t row = s.H * s.D + GAP;
    c.a.qs = c.a.os = (AttnStride){s.Tq * row, row, s.D};
    c.a.ks = c.a.vs = (AttnStride){s.Tk * row, row, s.D};
    return c;
}

static inline void call_free(Call *c) {
    for (int t = 0; t < N_TENSORS; t++) free(c->block[t]);
}

static inline void run_plain(Call *c) {
    c->a.workspace = malloc(sizeof(double) * (size_t)c->a.Tk);
    plain_attn(&c->a, false);
    plain_attn(&c->a, true);
    free(c->a.workspace);
}

/* Forward and backward with exactly the workspace that was asked for, full of NaN. */
static inline void run_backend(Ctx *ctx, const AttnBackend *b, Call *c) {
    for (int backward = 0; backward < 2; backward++) {
        const size_t bytes = b->workspace(ctx, &c->a, backward);
        unsigned char *w = aligned_alloc(64, (bytes + 127) / 64 * 64);
        assert_non_null(w);
        memset(w, 0xff, bytes);
        memset(w + bytes, 0x5a, 64);
        c->a.workspace = w;
        (backward ? b->backward : b->forward)(ctx, &c->a);
        for (int i = 0; i < 64; i++)
            if (w[bytes + (size_t)i] != 0x5a) fail_msg("%s wrote behind its workspace", b->name);
        free(w);
    }
}

static inline void check_sentinels(const Call *c, const char *what) {
    for (int t = 0; t < N_TENSORS; t++)
        for (size_t i = 0; i < c->n[t] + 2 * GUARD; i++) {
            const size_t at = i - GUARD;
            const bool inside = i >= GUARD && at < c->n[t] && at % c->step[t] < c->row[t];
            if (!inside && get(c, t, at) != (double)SENTINEL)
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
