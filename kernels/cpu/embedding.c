/* What the model is told besides pixels: rows of a table, and noise levels. Small work: a row for
 * each frame. */
#include <math.h>

#include "kernels/cpu/cpu.h"

void ISA_FN(embedding_forward)(Ctx *c, const OpCall *o) {
    const int64_t rows = tensor_numel(o->in[0]), C = tensor_cols(o->in[1]);
    const int32_t *ids = o->in[0]->data;
#pragma omp parallel for num_threads(c->n_threads) if (rows * C >= PARALLEL_FROM)
    for (int64_t r = 0; r < rows; r++)
        memcpy((float *)o->out[0]->data + r * C, (const float *)o->in[1]->data + ids[r] * C,
               sizeof(float) * (size_t)C);
}

/* Many rows may add to one row of the table, so threads share out columns. */
void ISA_FN(embedding_backward)(Ctx *c, const OpCall *o) {
    const int64_t rows = tensor_numel(o->in[0]), C = tensor_cols(o->in[1]);
    const int32_t *ids = o->in[0]->data;
    const float *dy = o->out[0]->grad;
    float *dtable = o->in[1]->grad;
    if (!o->in[1]->grad_set) memset(dtable, 0, tensor_bytes(o->in[1]));
    enum { STRIP = 64 };
#pragma omp parallel for num_threads(c->n_threads) if (rows * C >= PARALLEL_FROM)
    for (int64_t j0 = 0; j0 < C; j0 += STRIP) {
        const int64_t n = C - j0 < STRIP ? C - j0 : STRIP;
        for (int64_t r = 0; r < rows; r++) {
            float *d = dtable + ids[r] * C + j0;
            for (int64_t j = 0; j < n; j++) d[j] += dy[r * C + j0 + j];
        }
    }
}

void ISA_FN(timestep_embedding_forward)(Ctx *c, const OpCall *o) {
    const int64_t rows = tensor_numel(o->in[0]), C = tensor_cols(o->out[0]);
    const float *t = o->in[0]->data;
    float *y = o->out[0]->data;
#pragma omp parallel for num_threads(c->n_threads)
    for (int64_t j = 0; j < C; j += 2) {
        const double frequency = pow(1e4, -(double)j / (double)C);
        for (int64_t r = 0; r < rows; r++) {
            const double angle = (double)floorf(t[r] * (float)(o->attr.steps - 1)) * frequency;
            y[r * C + j] = (float)sin(angle);
            y[r * C + j + 1] = (float)cos(angle);
        }
    }
}
