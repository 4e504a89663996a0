/* Directions and the angle between them: a row an event, so one thread is enough. */
#include <math.h>

#include "kernels/cpu/cpu.h"

static const double LIMIT = 1 - 1e-4; /* where the dot product is cut: arccos is vertical at 1 */

static float length(const float *x, int64_t C) {
    float squares = 0;
    for (int64_t j = 0; j < C; j++) squares += x[j] * x[j];
    return sqrtf(squares);
}

void ISA_FN(unit_vector_forward)(Ctx *c, const OpCall *o) {
    const int64_t rows = tensor_rows(o->in[0]), C = tensor_cols(o->in[0]);
    (void)c;
    for (int64_t r = 0; r < rows; r++) {
        const float *x = (const float *)o->in[0]->data + r * C;
        float *y = (float *)o->out[0]->data + r * C;
        const float s = length(x, C) + o->attr.eps;
        for (int64_t j = 0; j < C; j++) y[j] = x[j] / s;
    }
}

/* With u = x / |x| and s = |x| + eps: dx = (dy - u (dy . x) / s) / s. */
void ISA_FN(unit_vector_backward)(Ctx *c, const OpCall *o) {
    const int64_t rows = tensor_rows(o->in[0]), C = tensor_cols(o->in[0]);
    (void)c;
    for (int64_t r = 0; r < rows; r++) {
        const float *x = (const float *)o->in[0]->data + r * C;
        const float *dy = (const float *)o->out[0]->grad + r * C;
        float *dx = (float *)o->in[0]->grad + r * C;
        const float n = length(x, C), s = n + o->attr.eps;
        float dot = 0;
        for (int64_t j = 0; j < C; j++) dot += dy[j] * (x[j] / s);
        const float along = n == 0 ? 0 : dot / n;
        for (int64_t j = 0; j < C; j++) put(&dx[j], (dy[j] - x[j] * along) / s, o->in[0]->grad_set);
    }
}

static double cosine(const OpCall *o, int64_t r) {
    const int64_t C = tensor_cols(o->in[0]);
    const float *x = o->in[0]->data, *target = o->in[1]->data;
    double dot = 0;
    for (int64_t j = r * C; j < (r + 1) * C; j++) dot += (double)x[j] * (double)target[j];
    return dot;
}

void ISA_FN(angle_loss_forward)(Ctx *c, const OpCall *o) {
    const int64_t rows = tensor_rows(o->in[0]);
    double sum = 0;
    (void)c;
    for (int64_t r = 0; r < rows; r++) {
        const double dot = cosine(o, r); /* compared, not fmin: a NaN stays one */
        sum += acos(dot > LIMIT ? LIMIT : dot < -LIMIT ? -LIMIT : dot);
    }
    *(double *)o->out[0]->data = sum / (double)rows;
}

void ISA_FN(angle_loss_backward)(Ctx *c, const OpCall *o) {
    const int64_t rows = tensor_rows(o->in[0]), C = tensor_cols(o->in[0]);
    const double d = *(const double *)o->out[0]->grad / (double)rows;
    (void)c;
    for (int64_t r = 0; r < rows; r++) {
        const double dot = cosine(o, r);
        const float slope = (float)(fabs(dot) > LIMIT ? 0 : -d / sqrt(1 - dot * dot));
        for (int i = 0; i < 2; i++) {
            const float *other = o->in[1 - i]->data;
            float *dst = o->in[i]->grad;
            for (int64_t j = r * C; dst && j < (r + 1) * C; j++)
                put(&dst[j], slope * other[j], o->in[i]->grad_set);
        }
    }
}
