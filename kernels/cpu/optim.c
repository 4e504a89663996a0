/* Kernels of the optimisers, see llmc_like/optim.h. All but `symmetrise` are bound by memory: what
 * counts is that each array is read and written once. */
#include "llmc_like/optim.h"

#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

static void adam(Ctx *c, float *restrict w, float *restrict m, float *restrict v,
                 const float *restrict g, int64_t n, const AdamStep *s) {
    const AdamStep a = *s;
#pragma omp parallel for simd num_threads(c->n_threads) if (n > 32768)
    for (int64_t i = 0; i < n; i++) {
        const float gi = a.grad_scale * g[i];
        const float mi = a.beta1 * m[i] + a.one_minus_beta1 * gi;
        const float vi = a.beta2 * v[i] + a.one_minus_beta2 * (gi * gi);
        m[i] = mi;
        v[i] = vi;
        w[i] = a.keep * w[i] - a.step * mi / (a.v_scale * sqrtf(vi) + a.eps);
    }
}

static double muon_momentum(float *restrict out, float *restrict m, const float *restrict g,
                            int64_t n, float mu, float one_minus_mu, float grad_scale) {
    const float share = one_minus_mu * grad_scale;
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) {
        const float gi = share * g[i], mi = mu * m[i] + gi, x = mu * mi + gi;
        m[i] = mi;
        out[i] = x;
        sum += (double)x * (double)x;
    }
    return sum;
}

static void muon_apply(float *restrict w, const float *restrict x, int64_t n, float keep,
                       float step) {
    for (int64_t i = 0; i < n; i++) w[i] = keep * w[i] - step * x[i];
}

/* By tiles, so that the column that a row becomes stays in the first cache. */
static void symmetrise(float *a, float *copy, int64_t n, float diagonal) {
    enum { TILE = 32 };
    for (int64_t i0 = 0; i0 < n; i0 += TILE)
        for (int64_t j0 = i0; j0 < n; j0 += TILE) {
            const int64_t i1 = i0 + TILE < n ? i0 + TILE : n, j1 = j0 + TILE < n ? j0 + TILE : n;
            for (int64_t i = i0; i < i1; i++)
                for (int64_t j = j0 > i ? j0 : i + 1; j < j1; j++) a[i * n + j] = a[j * n + i];
        }
    for (int64_t i = 0; i < n; i++) a[i * n + i] += diagonal;
    if (copy) memcpy(copy, a, sizeof(float) * (size_t)(n * n));
}

const OptimKernels ISA_FN(cpu_optim) = {adam, muon_momentum, muon_apply, symmetrise};
