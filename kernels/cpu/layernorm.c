/* Layer normalisation of rows. Backward's task is a block of rows, whose sums for weight and bias
 * stay in the first-level cache; blocks are added up in order. */
#include <math.h>

#include "kernels/cpu/cpu.h"

void ISA_FN(layernorm_forward)(Ctx *c, const OpCall *o) {
    const int64_t rows = tensor_rows(o->in[0]), C = tensor_cols(o->in[0]);
    const float *weight = o->in[1]->data, *bias = o->in[2]->data;
    float *mean = o->saved[0]->data, *rstd = o->saved[1]->data;
#pragma omp parallel for num_threads(c->n_threads) if (rows * C >= PARALLEL_FROM)
    for (int64_t r = 0; r < rows; r++) {
        const float *x = (const float *)o->in[0]->data + r * C;
        float *y = (float *)o->out[0]->data + r * C;
        float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < C; j++) sum += x[j];
        const float m = sum / (float)C;
#pragma omp simd reduction(+ : squares)
        for (int64_t j = 0; j < C; j++) squares += (x[j] - m) * (x[j] - m);
        const float s = 1.0f / sqrtf(squares / (float)C + o->attr.eps);
        mean[r] = m;
        rstd[r] = s;
#pragma omp simd
        for (int64_t j = 0; j < C; j++) y[j] = (x[j] - m) * s * weight[j] + bias[j];
    }
}

/* One row, n = (x - mean) rstd: sum_d += dy, sum_dn += dy n, and where wanted, with g = dy weight,
 * dx = rstd (g - mean(g) - n mean(g n)). */
static void backward_row(const float *x, const float *dy, const float *weight, float mean,
                         float rstd, int64_t C, float *sum_d, float *sum_dn, float *dx, bool add) {
    float sum_g = 0, sum_gn = 0;
#pragma omp simd reduction(+ : sum_g, sum_gn)
    for (int64_t j = 0; j < C; j++) {
        const float dn = dy[j] * ((x[j] - mean) * rstd);
        sum_d[j] += dy[j];
        sum_dn[j] += dn;
        sum_g += dy[j] * weight[j];
        sum_gn += dn * weight[j];
    }
    if (!dx) return;
    const float centre = sum_g / (float)C, slope = sum_gn / (float)C;
#pragma omp simd
    for (int64_t j = 0; j < C; j++)
        put(&dx[j], rstd * (dy[j] * weight[j] - centre - (x[j] - mean) * rstd * slope), add);
}

void ISA_FN(layernorm_backward)(Ctx *c, const OpCall *o) {
    const int64_t rows = tensor_rows(o->in[0]), C = tensor_cols(o->in[0]);
    const float *x = o->in[0]->data, *dy = o->out[0]->grad, *weight = o->in[1]->data;
    const float *mean = o->saved[0]->data, *rstd = o->saved[1]->data;
    float *dx = o->in[0]->grad, *dweight = o->in[1]->grad, *dbias = o->in[2]->grad;
    const RowBlocks b = row_blocks(rows);
    float *sum_d = ctx_workspace(c, sizeof(float) * (size_t)(2 * b.n * C)),
          *sum_dn = sum_d + b.n * C;
#pragma omp parallel for num_threads(c->n_threads) if (rows * C >= PARALLEL_FROM)
    for (int64_t i = 0; i < b.n; i++) {
        const int64_t end = block_end(&b, i);
        memset(sum_d + i * C, 0, sizeof(float) * (size_t)C);
        memset(sum_dn + i * C, 0, sizeof(float) * (size_t)C);
        for (int64_t r = i * b.size; r < end; r++)
            backward_row(x + r * C, dy + r * C, weight, mean[r], rstd[r], C, sum_d + i * C,
                         sum_dn + i * C, dx ? dx + r * C : NULL, o->in[0]->grad_set);
    }
    if (dweight) ISA_FN(sum_partials)(c, sum_dn, b.n, C, dweight, o->in[1]->grad_set);
    if (dbias) ISA_FN(sum_partials)(c, sum_d, b.n, C, dbias, o->in[2]->grad_set);
}
