/* Rows in segments. A task is a segment, and since their lengths differ by thousands, threads take
 * them a few at a time. Backward walks the rows in order and writes each once: nothing is cleared
 * first and nothing scattered. */
#include "kernels/cpu/cpu.h"

typedef struct Segments {
    int64_t M, C;
    const int32_t *at; /* segment m has rows at[m] .. at[m + 1] - 1 */
    bool large;        /* worth all threads */
} Segments;

static Segments segments_of(const OpCall *o) {
    return (Segments){o->in[1]->shape[0] - 1, tensor_cols(o->in[0]), o->in[1]->data,
                      tensor_numel(o->in[0]) >= PARALLEL_FROM};
}

#define EACH_SEGMENT(s) \
    DO_PRAGMA(omp parallel for num_threads(c->n_threads) schedule(dynamic, 16) if ((s).large))

static void put_row(float *dst, const float *src, float factor, int64_t C, bool add) {
#pragma omp simd
    for (int64_t j = 0; j < C; j++) put(&dst[j], src[j] * factor, add);
}

void ISA_FN(segment_mean_forward)(Ctx *c, const OpCall *o) {
    const Segments s = segments_of(o);
    EACH_SEGMENT(s)
    for (int64_t m = 0; m < s.M; m++) {
        const float *x = (const float *)o->in[0]->data + s.at[m] * s.C;
        float *y = (float *)o->out[0]->data + m * s.C;
        const int64_t n = s.at[m + 1] - s.at[m];
        memcpy(y, x, sizeof(float) * (size_t)s.C);
        for (int64_t r = 1; r < n; r++) put_row(y, x + r * s.C, 1.0f, s.C, true);
        if (n > 1) put_row(y, y, 1.0f / (float)n, s.C, false);
    }
}

void ISA_FN(segment_mean_backward)(Ctx *c, const OpCall *o) {
    const Segments s = segments_of(o);
    const float *dy = o->out[0]->grad;
    float *dx = o->in[0]->grad;
    EACH_SEGMENT(s)
    for (int64_t m = 0; m < s.M; m++) {
        const float share = 1.0f / (float)(s.at[m + 1] - s.at[m]);
        for (int64_t r = s.at[m]; r < s.at[m + 1]; r++)
            put_row(dx + r * s.C, dy + m * s.C, share, s.C, o->in[0]->grad_set);
    }
}

void ISA_FN(segment_max_forward)(Ctx *c, const OpCall *o) {
    const Segments s = segments_of(o);
    EACH_SEGMENT(s)
    for (int64_t m = 0; m < s.M; m++) {
        float *y = (float *)o->out[0]->data + m * s.C;
        int32_t *from = (int32_t *)o->saved[0]->data + m * s.C;
        memcpy(y, (const float *)o->in[0]->data + s.at[m] * s.C, sizeof(float) * (size_t)s.C);
        for (int64_t j = 0; j < s.C; j++) from[j] = s.at[m];
        for (int32_t r = s.at[m] + 1; r < s.at[m + 1]; r++) {
            const float *x = (const float *)o->in[0]->data + r * s.C;
#pragma omp simd
            for (int64_t j = 0; j < s.C; j++) {
                const bool more = (x[j] > y[j]) | (x[j] != x[j]); /* NaN is the largest of all */
                y[j] = more ? x[j] : y[j];
                from[j] = more ? r : from[j];
            }
        }
    }
}

void ISA_FN(segment_max_backward)(Ctx *c, const OpCall *o) {
    const Segments s = segments_of(o);
    const bool add = o->in[0]->grad_set;
    EACH_SEGMENT(s)
    for (int64_t m = 0; m < s.M; m++) {
        const float *dy = (const float *)o->out[0]->grad + m * s.C;
        const int32_t *from = (const int32_t *)o->saved[0]->data + m * s.C;
        for (int32_t r = s.at[m]; r < s.at[m + 1]; r++) {
            float *dx = (float *)o->in[0]->grad + r * s.C;
#pragma omp simd
            for (int64_t j = 0; j < s.C; j++) put(&dx[j], from[j] == r ? dy[j] : 0, add);
        }
    }
}

void ISA_FN(segment_first_forward)(Ctx *c, const OpCall *o) {
    const Segments s = segments_of(o);
    (void)c; /* the work of a copy of M rows */
    for (int64_t m = 0; m < s.M; m++)
        memcpy((float *)o->out[0]->data + m * s.C, (const float *)o->in[0]->data + s.at[m] * s.C,
               sizeof(float) * (size_t)s.C);
}

void ISA_FN(segment_first_backward)(Ctx *c, const OpCall *o) {
    const Segments s = segments_of(o);
    const bool add = o->in[0]->grad_set;
    EACH_SEGMENT(s)
    for (int64_t m = 0; m < s.M; m++) {
        float *dx = (float *)o->in[0]->grad + s.at[m] * s.C;
        const int64_t rest = (s.at[m + 1] - s.at[m] - 1) * s.C;
        put_row(dx, (const float *)o->out[0]->grad + m * s.C, 1.0f, s.C, add);
        if (!add) memset(dx + s.C, 0, sizeof(float) * (size_t)rest);
    }
}

void ISA_FN(segment_prepend_forward)(Ctx *c, const OpCall *o) {
    const Segments s = segments_of(o);
    const size_t row = sizeof(float) * (size_t)s.C;
    EACH_SEGMENT(s)
    for (int64_t m = 0; m < s.M; m++) {
        float *y = (float *)o->out[0]->data + (s.at[m] + m) * s.C;
        memcpy(y, o->in[2]->data, row);
        memcpy(y + s.C, (const float *)o->in[0]->data + s.at[m] * s.C,
               row * (size_t)(s.at[m + 1] - s.at[m]));
    }
}

void ISA_FN(segment_prepend_backward)(Ctx *c, const OpCall *o) {
    const Segments s = segments_of(o);
    const float *dy = o->out[0]->grad;
    float *dx = o->in[0]->grad, *dtoken = o->in[2]->grad;
    if (dx) {
        EACH_SEGMENT(s)
        for (int64_t m = 0; m < s.M; m++)
            put_row(dx + s.at[m] * s.C, dy + (s.at[m] + m + 1) * s.C, 1.0f,
                    (s.at[m + 1] - s.at[m]) * s.C, o->in[0]->grad_set);
    }
    if (!dtoken) return;
    const RowBlocks b = row_blocks(s.M);
    float *partial = ctx_workspace(c, sizeof(float) * (size_t)(b.n * s.C));
#pragma omp parallel for num_threads(c->n_threads) if (s.large)
    for (int64_t i = 0; i < b.n; i++) {
        const int64_t end = block_end(&b, i);
        memset(partial + i * s.C, 0, sizeof(float) * (size_t)s.C);
        for (int64_t m = i * b.size; m < end; m++)
            put_row(partial + i * s.C, dy + (s.at[m] + m) * s.C, 1.0f, s.C, true);
    }
    ISA_FN(sum_partials)(c, partial, b.n, s.C, dtoken, o->in[2]->grad_set);
}
