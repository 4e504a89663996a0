/* RMS normalisation of rows without weights. A row may be as short as a head. */
#include <math.h>

#include "kernels/cpu/cpu.h"

void ISA_FN(rmsnorm_forward)(Ctx *c, const OpCall *o) {
    const int64_t rows = tensor_rows(o->in[0]), C = tensor_cols(o->in[0]);
    float *rstd = o->saved[0]->data;
#pragma omp parallel for num_threads(c->n_threads) if (rows * C >= PARALLEL_FROM)
    for (int64_t r = 0; r < rows; r++) {
        const float *x = (const float *)o->in[0]->data + r * C;
        float *y = (float *)o->out[0]->data + r * C;
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t j = 0; j < C; j++) squares += x[j] * x[j];
        const float s = 1.0f / sqrtf(squares / (float)C + o->attr.eps);
        rstd[r] = s;
#pragma omp simd
        for (int64_t j = 0; j < C; j++) y[j] = x[j] * s;
    }
}

/* dx = rstd (dy - y mean(dy y)) */
void ISA_FN(rmsnorm_backward)(Ctx *c, const OpCall *o) {
    const int64_t rows = tensor_rows(o->in[0]), C = tensor_cols(o->in[0]);
    const float *rstd = o->saved[0]->data;
    const bool add = o->in[0]->grad_set;
#pragma omp parallel for num_threads(c->n_threads) if (rows * C >= PARALLEL_FROM)
    for (int64_t r = 0; r < rows; r++) {
        const float *y = (const float *)o->out[0]->data + r * C;
        const float *dy = (const float *)o->out[0]->grad + r * C;
        float *dx = (float *)o->in[0]->grad + r * C;
        float along = 0;
#pragma omp simd reduction(+ : along)
        for (int64_t j = 0; j < C; j++) along += dy[j] * y[j];
        const float mean = along / (float)C;
#pragma omp simd
        for (int64_t j = 0; j < C; j++) put(&dx[j], rstd[r] * (dy[j] - y[j] * mean), add);
    }
}
