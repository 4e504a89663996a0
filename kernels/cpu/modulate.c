/* The two ops around a block's sublayers that are steered by the frame's modulation: adaptive
 * RMSNorm before it, gated addition after it. x (B, T, C), mod (B, F, n C); S = T / F tokens share
 * a frame's vectors. Backward's task is one frame: its modulation's gradient has then one writer,
 * and the sum over its S rows one order. */
#include <math.h>

#include "kernels/cpu/cpu.h"

typedef struct Frames {
    int64_t n, S, C, stride; /* frames of all in the batch; tokens each; columns; columns of mod */
} Frames;

static Frames frames_of(const Tensor *x, const Tensor *mod) {
    return (Frames){tensor_rows(mod), x->shape[1] / mod->shape[1], x->shape[2], mod->shape[2]};
}

void ISA_FN(rmsnorm_modulate_forward)(Ctx *c, const OpCall *o) {
    const Frames f = frames_of(o->in[0], o->in[2]);
    const int64_t rows = tensor_rows(o->in[0]), C = f.C;
    const float *weight = o->in[1]->data;
    float *rstd = o->saved[0]->data;
#pragma omp parallel for num_threads(c->n_threads)
    for (int64_t r = 0; r < rows; r++) {
        const float *x = (const float *)o->in[0]->data + r * C;
        const float *shift = (const float *)o->in[2]->data + r / f.S * f.stride + o->attr.part * C;
        const float *scale = shift + C;
        float *y = (float *)o->out[0]->data + r * C;
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t j = 0; j < C; j++) squares += x[j] * x[j];
        const float s = 1.0f / sqrtf(squares / (float)C + o->attr.eps);
        rstd[r] = s;
#pragma omp simd
        for (int64_t j = 0; j < C; j++)
            y[j] = x[j] * s * (weight[j] * (1.0f + scale[j])) + shift[j];
    }
}

/* One row, n = x rstd: sum_d += dy, sum_dn += dy n, and where wanted dx = rstd (g - n mean(g n))
 * with g = dy a, a = weight (1 + scale). */
static void rmsnorm_row(const float *x, const float *dy, const float *a, float rstd, int64_t C,
                        float *sum_d, float *sum_dn, float *dx, bool add) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < C; j++) {
        const float dn = dy[j] * (x[j] * rstd);
        sum_d[j] += dy[j];
        sum_dn[j] += dn;
        sum += dn * a[j];
    }
    if (!dx) return;
    const float mean = sum / (float)C;
#pragma omp simd
    for (int64_t j = 0; j < C; j++) put(&dx[j], rstd * (dy[j] * a[j] - x[j] * rstd * mean), add);
}

void ISA_FN(rmsnorm_modulate_backward)(Ctx *c, const OpCall *o) {
    const Frames f = frames_of(o->in[0], o->in[2]);
    const int64_t C = f.C;
    const float *weight = o->in[1]->data, *rstd = o->saved[0]->data;
    float *dweight = o->in[1]->grad, *dmod = o->in[2]->grad;
    /* per frame: sums of dy, of dy n, and a; dweight's share takes the place of the first */
    float *scratch = ctx_workspace(c, sizeof(float) * (size_t)(3 * f.n * C));
#pragma omp parallel for num_threads(c->n_threads)
    for (int64_t i = 0; i < f.n; i++) {
        const float *scale = (const float *)o->in[2]->data + i * f.stride + (o->attr.part + 1) * C;
        float *sum_d = scratch + i * C, *sum_dn = sum_d + f.n * C, *a = sum_dn + f.n * C;
        memset(sum_d, 0, sizeof(float) * (size_t)C);
        memset(sum_dn, 0, sizeof(float) * (size_t)C);
        for (int64_t j = 0; j < C; j++) a[j] = weight[j] * (1.0f + scale[j]);
        for (int64_t r = i * f.S; r < (i + 1) * f.S; r++) {
            float *dx = o->in[0]->grad;
            rmsnorm_row((const float *)o->in[0]->data + r * C, (float *)o->out[0]->grad + r * C, a,
                        rstd[r], C, sum_d, sum_dn, dx ? dx + r * C : NULL, o->in[0]->grad_set);
        }
        if (dmod) {
            float *d = dmod + i * f.stride, *dshift = d + o->attr.part * C;
            if (!o->in[2]->grad_set) memset(d, 0, sizeof(float) * (size_t)f.stride);
            for (int64_t j = 0; j < C; j++) {
                dshift[j] += sum_d[j];
                dshift[C + j] += weight[j] * sum_dn[j];
            }
        }
        for (int64_t j = 0; j < C; j++) sum_d[j] = (1.0f + scale[j]) * sum_dn[j];
    }
    if (dweight) ISA_FN(sum_partials)(c, scratch, f.n, C, dweight, o->in[1]->grad_set);
}

void ISA_FN(gate_add_forward)(Ctx *c, const OpCall *o) {
    const Frames f = frames_of(o->in[0], o->in[2]);
    const int64_t rows = tensor_rows(o->in[0]), C = f.C;
#pragma omp parallel for num_threads(c->n_threads)
    for (int64_t r = 0; r < rows; r++) {
        const float *x = (const float *)o->in[0]->data + r * C;
        const float *y = (const float *)o->in[1]->data + r * C;
        const float *gate = (const float *)o->in[2]->data + r / f.S * f.stride + o->attr.part * C;
        float *out = (float *)o->out[0]->data + r * C;
#pragma omp simd
        for (int64_t j = 0; j < C; j++) out[j] = x[j] + gate[j] * y[j];
    }
}

void ISA_FN(gate_add_backward)(Ctx *c, const OpCall *o) {
    const Frames f = frames_of(o->in[0], o->in[2]);
    const int64_t C = f.C;
    const bool handed_on = o->in[0]->grad == o->out[0]->grad;
    const bool add_x = o->in[0]->grad_set, add_y = o->in[1]->grad_set;
    float *dx0 = handed_on ? NULL : o->in[0]->grad, *dy0 = o->in[1]->grad;
    float *dmod = o->in[2]->grad;
    float *sums = ctx_workspace(c, sizeof(float) * (size_t)(f.n * C));
#pragma omp parallel for num_threads(c->n_threads)
    for (int64_t i = 0; i < f.n; i++) {
        const float *gate = (const float *)o->in[2]->data + i * f.stride + o->attr.part * C;
        float *sum = sums + i * C;
        memset(sum, 0, sizeof(float) * (size_t)C);
        for (int64_t r = i * f.S; r < (i + 1) * f.S; r++) {
            const float *d = (const float *)o->out[0]->grad + r * C;
            const float *y = (const float *)o->in[1]->data + r * C;
            float *dx = dx0 ? dx0 + r * C : NULL, *dy = dy0 ? dy0 + r * C : NULL;
#pragma omp simd
            for (int64_t j = 0; j < C; j++) sum[j] += d[j] * y[j];
            if (dy) {
#pragma omp simd
                for (int64_t j = 0; j < C; j++) put(&dy[j], d[j] * gate[j], add_y);
            }
            if (dx) {
#pragma omp simd
                for (int64_t j = 0; j < C; j++) put(&dx[j], d[j], add_x);
            }
        }
        if (!dmod) continue;
        float *d = dmod + i * f.stride, *dgate = d + o->attr.part * C;
        if (!o->in[2]->grad_set) memset(d, 0, sizeof(float) * (size_t)f.stride);
        for (int64_t j = 0; j < C; j++) dgate[j] += sum[j];
    }
}
