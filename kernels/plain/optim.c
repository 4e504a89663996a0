/* The optimisers' kernels as the formulas read, every step in double: the reference. */
#include "llmc_like/optim.h"

#include <math.h>

static void adam(Ctx *c, float *w, float *m, float *v, const float *g, int64_t n,
                 const AdamStep *s) {
    (void)c;
    for (int64_t i = 0; i < n; i++) {
        const double gi = (double)s->grad_scale * (double)g[i];
        m[i] = (float)((double)s->beta1 * (double)m[i] + (double)s->one_minus_beta1 * gi);
        v[i] = (float)((double)s->beta2 * (double)v[i] + (double)s->one_minus_beta2 * gi * gi);
        const double root = (double)s->v_scale * sqrt((double)v[i]);
        w[i] = (float)((double)s->keep * (double)w[i] -
                       (double)s->step * (double)m[i] / (root + (double)s->eps));
    }
}

static double muon_momentum(float *out, float *m, const float *g, int64_t n, float mu,
                            float one_minus_mu, float grad_scale) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        const double gi = (double)one_minus_mu * (double)grad_scale * (double)g[i];
        m[i] = (float)((double)mu * (double)m[i] + gi);
        out[i] = (float)((double)mu * (double)m[i] + gi);
        sum += (double)out[i] * (double)out[i];
    }
    return sum;
}

static void muon_apply(float *w, const float *x, int64_t n, float keep, float step) {
    for (int64_t i = 0; i < n; i++)
        w[i] = (float)((double)keep * (double)w[i] - (double)step * (double)x[i]);
}

static void symmetrise(float *a, float *copy, int64_t n, float diagonal) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = i + 1; j < n; j++) a[i * n + j] = a[j * n + i];
    for (int64_t i = 0; i < n; i++) a[i * n + i] += diagonal;
    for (int64_t i = 0; copy && i < n * n; i++) copy[i] = a[i];
}

const OptimKernels plain_optim = {adam, muon_momentum, muon_apply, symmetrise};
