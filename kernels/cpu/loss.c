/* The mean squared error, in double. */
#include "kernels/cpu/cpu.h"

void ISA_FN(mse_loss_forward)(Ctx *c, const OpCall *o) {
    const int64_t n = tensor_numel(o->in[0]);
    const float *x = o->in[0]->data, *target = o->in[1]->data;
    const RowBlocks b = row_blocks(n);
    double partial[MAX_ROW_BLOCKS], sum = 0;
#pragma omp parallel for num_threads(c->n_threads) if (n >= PARALLEL_FROM)
    for (int64_t i = 0; i < b.n; i++) {
        const int64_t end = block_end(&b, i);
        double s = 0;
#pragma omp simd reduction(+ : s)
        for (int64_t j = i * b.size; j < end; j++) {
            const double d = x[j] - target[j];
            s += d * d;
        }
        partial[i] = s;
    }
    for (int64_t i = 0; i < b.n; i++) sum += partial[i];
    *(double *)o->out[0]->data = sum / (double)n;
}

void ISA_FN(mse_loss_backward)(Ctx *c, const OpCall *o) {
    const int64_t n = tensor_numel(o->in[0]);
    const float *x = o->in[0]->data, *target = o->in[1]->data;
    const double scale = 2.0 * *(const double *)o->out[0]->grad / (double)n;
    for (int j = 0; j < 2; j++) {
        const float factor = (float)(j ? -scale : scale);
        const bool add = o->in[j]->grad_set;
        float *d = o->in[j]->grad;
        if (!d) continue;
#pragma omp parallel for simd num_threads(c->n_threads) if (parallel : n >= PARALLEL_FROM)
        for (int64_t i = 0; i < n; i++) put(&d[i], factor * (x[i] - target[i]), add);
    }
}
