/* vanilla: the score matrix of every head in memory, a masked softmax over its rows, and the
 * products by the library: what attention costs when it is written down as in the paper.
 *
 *   forward    S = scale Q K', P = softmax(S), out = P V
 *   backward   P from S and the saved log-sum-exp; dV = P' dO, dP = dO V', dS = P (dP - delta),
 *              dQ = scale dS K, dK = scale dS' Q, with delta = rowsum(dO out)
 *
 * Masks by interval and by expression, and score expressions, through the interpreter. What those
 * learn is summed a head at a time, row after row, and the heads in their order: in the same order
 * whatever the number of threads. */
#include <omp.h>
#include <string.h>

#include "kernels/cpu/attention_rows.h"
#include "kernels/cpu/cpu.h"
#include "kernels/flex/flex.h"

typedef struct Scratch {
    float *s, *dp;          /* (B, H, Tq, ld) scores, later p; d loss / d p, later d loss / d s */
    float *slope;           /* (threads, ld): d score' / d score of one row */
    float *raw, *grad;      /* (threads, ld) each: scores before the expression; of a capture */
    int *index;             /* (threads, ld): of a capture */
    float *sums;            /* (B, H, n_learned): each head's d loss / d learned */
    unsigned char *visible; /* (threads, ld) */
    int64_t ld;             /* a row's length, whole vectors */
    size_t bytes;
} Scratch;

static Scratch scratch(Ctx *c, const AttnArgs *a, bool backward) {
    Scratch w = {.ld = row_length(a->Tk)};
    const size_t matrix = (size_t)a->B * (size_t)a->H * (size_t)a->Tq * (size_t)w.ld;
    const size_t rows = (size_t)c->n_threads * (size_t)w.ld;
    const size_t learned = backward ? (size_t)a->mask->n_learned : 0, more = learned ? rows : 0;
    const size_t sums = (size_t)a->B * (size_t)a->H * learned;
    w.s = a->workspace;
    w.bytes = sizeof(float) * (matrix * (backward ? 2 : 1) + rows + 3 * more + sums) + rows;
    if (!w.s) return w;
    w.dp = w.s + matrix;
    w.slope = backward ? w.dp + matrix : w.dp;
    w.raw = w.slope + rows;
    w.grad = w.raw + more;
    w.index = (int *)(w.grad + more);
    w.sums = w.grad + 2 * more;
    w.visible = (unsigned char *)(w.sums + sums);
    return w;
}

static const char *supports(const Ctx *c, const AttnArgs *a) {
    (void)c;
    return a->dtype == DT_F32 ? NULL : "it computes in float32 alone";
}

static size_t workspace(Ctx *c, const AttnArgs *a, bool backward) {
    AttnArgs shape = *a;
    shape.workspace = NULL;
    return scratch(c, &shape, backward).bytes;
}

/* Row number `row` of (B, H, Tq): the score expression, then -inf where the mask hides, and beyond
 * Tk. slope NULL: not wanted. */
static void finish_row(const AttnArgs *a, int64_t row, float *s, int64_t ld, float *slope,
                       unsigned char *visible) {
    const Mask *m = a->mask;
    const int q = a->offset + (int)(row % a->Tq), h = (int)(row / a->Tq % a->H),
              b = (int)(row / a->Tq / a->H);
    if (m->has_score_expr) {
        if (slope) flex_eval_score_grad_row(m->flex, s, b, h, q, 0, a->Tk, slope);
        flex_eval_score_row(m->flex, s, b, h, q, 0, a->Tk, s);
    }
    if (m->has_mask_expr) {
        flex_eval_mask_row(m->flex, b, h, q, 0, a->Tk, visible);
        for (int j = 0; j < a->Tk; j++) s[j] = visible[j] ? s[j] : -INFINITY;
    } else if (m->lo) {
        const int lo = m->lo[q] < a->Tk ? m->lo[q] : a->Tk, hi = m->hi[q];
        row_hide(s, 0, lo);
        row_hide(s, hi, a->Tk);
    }
    row_hide(s, a->Tk, ld);
}

static const float *of(const void *x, AttnStride s, int b, int h) {
    return (const float *)x + b * s.b + h * s.h;
}

static void scores(Ctx *c, const AttnArgs *a, const Scratch *w) {
    if (a->mask->flex) flex_set_learned(a->mask->flex, a->learned);
    for (int i = 0; i < a->B * a->H; i++)
        c->dev->gemm(c, false, true, a->Tq, a->Tk, a->D, a->scale,
                     of(a->q, a->qs, i / a->H, i % a->H), a->qs.t,
                     of(a->k, a->ks, i / a->H, i % a->H), a->ks.t, 0, w->s + i * a->Tq * w->ld,
                     w->ld);
}

static void forward(Ctx *c, const AttnArgs *a) {
    const Scratch w = scratch(c, a, false);
    scores(c, a, &w);
    float *lse = a->lse;
#pragma omp parallel for num_threads(c->n_threads)
    for (int64_t row = 0; row < (int64_t)a->B * a->H * a->Tq; row++) {
        float *s = w.s + row * w.ld;
        finish_row(a, row, s, w.ld, NULL, w.visible + omp_get_thread_num() * w.ld);
        lse[row] = row_softmax(s, w.ld);
    }
    for (int i = 0; i < a->B * a->H; i++)
        c->dev->gemm(c, false, false, a->Tq, a->D, a->Tk, 1, w.s + i * a->Tq * w.ld, w.ld,
                     of(a->v, a->vs, i / a->H, i % a->H), a->vs.t, 0,
                     (float *)a->out + i / a->H * a->os.b + i % a->H * a->os.h, a->os.t);
}

/* What a row's y = d loss / d score' (0 where hidden) is to the numbers it was made with. */
static void learn_row(const AttnArgs *a, int64_t row, const float *y, const float *raw, int *index,
                      float *grad, float *sums) {
    const int q = a->offset + (int)(row % a->Tq), h = (int)(row / a->Tq % a->H),
              b = (int)(row / a->Tq / a->H);
    for (int i = 0; i < flex_captures(a->mask->flex); i++) {
        flex_eval_capture_row(a->mask->flex, i, raw, b, h, q, 0, a->Tk, index, grad);
        for (int j = 0; j < a->Tk; j++)
            if (y[j] != 0) sums[index[j]] += y[j] * grad[j]; /* hidden: grad may be anything */
    }
}

/* s becomes p, dp becomes d loss / d s. */
static void backward_row(const AttnArgs *a, int64_t row, float *s, float *dp, const float *slope,
                         int64_t ld) {
    const int q = (int)(row % a->Tq), h = (int)(row / a->Tq % a->H), b = (int)(row / a->Tq / a->H);
    const float *out = of(a->out, a->os, b, h) + q * a->os.t,
                *dout = of(a->dout, a->os, b, h) + q * a->os.t;
    row_backward(s, dp, slope, ld, ((const float *)a->lse)[row], row_dot(out, dout, a->D));
}

/* The rows of backward where the expression learns: a thread takes whole heads. */
static void learn_heads(Ctx *c, const AttnArgs *a, const Scratch *w) {
    const int64_t n = a->mask->n_learned;
    memset(w->sums, 0, sizeof(float) * (size_t)(a->B * a->H * n));
#pragma omp parallel for num_threads(c->n_threads) schedule(dynamic)
    for (int i = 0; i < a->B * a->H; i++) {
        const int64_t at = omp_get_thread_num() * w->ld;
        float *slope = w->slope + at, *raw = w->raw + at;
        for (int64_t row = (int64_t)i * a->Tq; row < (int64_t)(i + 1) * a->Tq; row++) {
            float *s = w->s + row * w->ld, *y = w->dp + row * w->ld;
            memcpy(raw, s, sizeof(float) * (size_t)a->Tk);
            finish_row(a, row, s, w->ld, slope, w->visible + at);
            backward_row(a, row, s, y, NULL, w->ld);
            learn_row(a, row, y, raw, w->index + at, w->grad + at, w->sums + i * n);
            for (int j = 0; j < a->Tk; j++) y[j] = y[j] == 0 ? 0 : y[j] * slope[j];
        }
    }
    for (int64_t j = 0; j < n; j++) {
        a->dlearned[j] = 0;
        for (int i = 0; i < a->B * a->H; i++) a->dlearned[j] += w->sums[i * n + j];
    }
}

static void backward(Ctx *c, const AttnArgs *a) {
    const Scratch w = scratch(c, a, true);
    const bool slopes = a->mask->has_score_expr;
    const int64_t size = a->Tq * w.ld;
    scores(c, a, &w);
    for (int i = 0; i < a->B * a->H; i++)
        c->dev->gemm(c, false, true, a->Tq, a->Tk, a->D, 1, of(a->dout, a->os, i / a->H, i % a->H),
                     a->os.t, of(a->v, a->vs, i / a->H, i % a->H), a->vs.t, 0, w.dp + i * size,
                     w.ld);
    if (a->dlearned)
        learn_heads(c, a, &w);
    else
#pragma omp parallel for num_threads(c->n_threads)
        for (int64_t row = 0; row < (int64_t)a->B * a->H * a->Tq; row++) {
            const int t = omp_get_thread_num();
            float *s = w.s + row * w.ld, *slope = slopes ? w.slope + t * w.ld : NULL;
            finish_row(a, row, s, w.ld, slope, w.visible + t * w.ld);
            backward_row(a, row, s, w.dp + row * w.ld, slope, w.ld);
        }
    for (int i = 0; i < a->B * a->H; i++) {
        const int b = i / a->H, h = i % a->H;
        const float *p = w.s + i * size, *ds = w.dp + i * size;
        if (a->dv)
            c->dev->gemm(c, true, false, a->Tk, a->D, a->Tq, 1, p, w.ld, of(a->dout, a->os, b, h),
                         a->os.t, 0, (float *)a->dv + b * a->vs.b + h * a->vs.h, a->vs.t);
        if (a->dk)
            c->dev->gemm(c, true, false, a->Tk, a->D, a->Tq, a->scale, ds, w.ld,
                         of(a->q, a->qs, b, h), a->qs.t, 0,
                         (float *)a->dk + b * a->ks.b + h * a->ks.h, a->ks.t);
        if (a->dq)
            c->dev->gemm(c, false, false, a->Tq, a->D, a->Tk, a->scale, ds, w.ld,
                         of(a->k, a->ks, b, h), a->ks.t, 0,
                         (float *)a->dq + b * a->qs.b + h * a->qs.h, a->qs.t);
    }
}

const AttnBackend ISA_FN(attn_vanilla) = {
    .supports = supports, .workspace = workspace, .forward = forward, .backward = backward};
