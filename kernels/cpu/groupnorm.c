/* Group normalisation on channels-last images. A task is one image. Sums run per channel, side by
 * side over the channels, and a group's are then added up; an image stays in the second-level cache
 * between the passes over it. */
#include <math.h>

#include "kernels/cpu/cpu.h"

typedef struct Images {
    int64_t n, pixels, C, groups, per; /* per: channels a group */
} Images;

static Images images_of(const OpCall *o) {
    const Tensor *x = o->in[0];
    const int64_t pixels = x->shape[x->ndim - 2] * x->shape[x->ndim - 3], C = tensor_cols(x);
    return (Images){tensor_rows(x) / pixels, pixels, C, o->attr.groups, C / o->attr.groups};
}

/* Each channel's value becomes its group's sum times `factor`. */
static void sum_groups(float *v, const Images *s, float factor) {
    for (int64_t g = 0; g < s->groups; g++) {
        float sum = 0;
        for (int64_t j = 0; j < s->per; j++) sum += v[g * s->per + j];
        for (int64_t j = 0; j < s->per; j++) v[g * s->per + j] = sum * factor;
    }
}

/* mean and rstd (C): of the group that each channel belongs to. */
static void statistics(const float *x, const Images *s, float eps, float *mean, float *rstd) {
    const int64_t C = s->C;
    const float inverse = 1.0f / (float)(s->pixels * s->per);
    memset(mean, 0, sizeof(float) * (size_t)C);
    memset(rstd, 0, sizeof(float) * (size_t)C);
    for (int64_t p = 0; p < s->pixels; p++) {
#pragma omp simd
        for (int64_t j = 0; j < C; j++) mean[j] += x[p * C + j];
    }
    sum_groups(mean, s, inverse);
    for (int64_t p = 0; p < s->pixels; p++) {
#pragma omp simd
        for (int64_t j = 0; j < C; j++) {
            const float centred = x[p * C + j] - mean[j];
            rstd[j] += centred * centred;
        }
    }
    sum_groups(rstd, s, inverse);
    for (int64_t j = 0; j < C; j++) rstd[j] = 1.0f / sqrtf(rstd[j] + eps);
}

void ISA_FN(groupnorm_forward)(Ctx *c, const OpCall *o) {
    const Images s = images_of(o);
    const int64_t C = s.C, size = s.pixels * C;
    const float *weight = o->in[1]->data, *bias = o->in[2]->data;
    float *scratch = ctx_workspace(c, sizeof(float) * (size_t)(2 * s.n * C));
#pragma omp parallel for num_threads(c->n_threads)
    for (int64_t i = 0; i < s.n; i++) {
        const float *x = (const float *)o->in[0]->data + i * size;
        float *y = (float *)o->out[0]->data + i * size;
        float *mean = scratch + 2 * i * C, *scale = mean + C;
        statistics(x, &s, o->attr.eps, mean, scale);
        for (int64_t g = 0; g < s.groups; g++) {
            ((float *)o->saved[0]->data)[i * s.groups + g] = mean[g * s.per];
            ((float *)o->saved[1]->data)[i * s.groups + g] = scale[g * s.per];
        }
        for (int64_t j = 0; j < C; j++) scale[j] *= weight[j];
        for (int64_t p = 0; p < s.pixels; p++) {
#pragma omp simd
            for (int64_t j = 0; j < C; j++)
                y[p * C + j] = (x[p * C + j] - mean[j]) * scale[j] + bias[j];
        }
    }
}

/* Rows of C numbers that one image's backward works with. */
enum { SUM_D, SUM_DN, MEAN, RSTD, GROUP_D, GROUP_DN, SCRATCH_ROWS };

/* With n = (x - mean) rstd and g = dy weight: dx = rstd (g - mean(g) - n mean(g n)). */
static void backward_image(const float *x, const float *dy, const float *weight, const Images *s,
                           float *const row[SCRATCH_ROWS], float *dx, bool add) {
    const int64_t C = s->C;
    const float inverse = 1.0f / (float)(s->pixels * s->per);
    float *sum_d = row[SUM_D], *sum_dn = row[SUM_DN], *mean = row[MEAN], *rstd = row[RSTD];
    float *centre = row[GROUP_D], *slope = row[GROUP_DN];
    for (int64_t p = 0; p < s->pixels; p++) {
#pragma omp simd
        for (int64_t j = 0; j < C; j++) {
            sum_d[j] += dy[p * C + j];
            sum_dn[j] += dy[p * C + j] * ((x[p * C + j] - mean[j]) * rstd[j]);
        }
    }
    if (!dx) return;
    for (int64_t j = 0; j < C; j++) {
        centre[j] = sum_d[j] * weight[j];
        slope[j] = sum_dn[j] * weight[j];
    }
    sum_groups(centre, s, inverse);
    sum_groups(slope, s, inverse);
    for (int64_t j = 0; j < C; j++) slope[j] *= rstd[j];
    for (int64_t p = 0; p < s->pixels; p++) {
#pragma omp simd
        for (int64_t j = 0; j < C; j++) {
            const float n = x[p * C + j] - mean[j];
            const float d = dy[p * C + j] * weight[j] - centre[j] - n * slope[j];
            put(&dx[p * C + j], rstd[j] * d, add);
        }
    }
}

void ISA_FN(groupnorm_backward)(Ctx *c, const OpCall *o) {
    const Images s = images_of(o);
    const int64_t C = s.C, size = s.pixels * C;
    float *scratch = ctx_workspace(c, sizeof(float) * (size_t)(SCRATCH_ROWS * s.n * C));
#pragma omp parallel for num_threads(c->n_threads)
    for (int64_t i = 0; i < s.n; i++) {
        float *row[SCRATCH_ROWS], *dx = o->in[0]->grad;
        for (int k = 0; k < SCRATCH_ROWS; k++) row[k] = scratch + (k * s.n + i) * C;
        memset(row[SUM_D], 0, sizeof(float) * (size_t)C);
        memset(row[SUM_DN], 0, sizeof(float) * (size_t)C);
        for (int64_t j = 0; j < C; j++) {
            row[MEAN][j] = ((const float *)o->saved[0]->data)[i * s.groups + j / s.per];
            row[RSTD][j] = ((const float *)o->saved[1]->data)[i * s.groups + j / s.per];
        }
        backward_image((const float *)o->in[0]->data + i * size,
                       (const float *)o->out[0]->grad + i * size, o->in[1]->data, &s, row,
                       dx ? dx + i * size : NULL, o->in[0]->grad_set);
    }
    const float *sum_d = scratch + SUM_D * s.n * C, *sum_dn = scratch + SUM_DN * s.n * C;
    if (o->in[1]->grad) ISA_FN(sum_partials)(c, sum_dn, s.n, C, o->in[1]->grad, o->in[1]->grad_set);
    if (o->in[2]->grad) ISA_FN(sum_partials)(c, sum_d, s.n, C, o->in[2]->grad, o->in[2]->grad_set);
}
