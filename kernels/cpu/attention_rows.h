/* What the backends that write their scores down share (vanilla, loop, padded): the softmax of a
 * whole row, forward and backward, and the documents that a call reaches. */
#ifndef KERNELS_CPU_ATTENTION_ROWS_H
#define KERNELS_CPU_ATTENTION_ROWS_H

#include <math.h>

#include "kernels/attention.h"
#include "kernels/cpu/flash_vec.h"

/* Rows of scores are of whole vectors in every build; what is hidden, or beyond the keys, is -inf.
 */
enum { ROW_FLOATS = 16 };

static inline int64_t row_length(int64_t keys) {
    return (keys + ROW_FLOATS - 1) / ROW_FLOATS * ROW_FLOATS;
}

/* s (n) becomes its softmax; returns the log-sum-exp. A row that sees nothing becomes 0. */
static inline float row_softmax(float *s, int64_t n) {
    const float log2e = 1.44269504f;
    Vec m = vec_load(s), total = {0};
    for (int64_t j = VW; j < n; j += VW) m = vec_max(m, vec_load(s + j));
    const float max = vec_reduce_max(m), base = max > -INFINITY ? max : 0;
    for (int64_t j = 0; j < n; j += VW) {
        const Vec p = vec_exp2((vec_load(s + j) - base) * log2e);
        vec_store(s + j, p);
        total += p;
    }
    const float sum = vec_reduce_add(total), share = sum == 0 ? 0 : 1 / sum;
    for (int64_t j = 0; j < n; j += VW) vec_store(s + j, vec_load(s + j) * share);
    return base + logf(sum);
}

/* s (n) becomes p = e^(s - lse), ds (n), which holds d loss / d p, becomes d loss / d s =
 * p (ds - delta), times slope where there is one: d score' / d score. delta = dout . out. */
static inline void row_backward(float *s, float *ds, const float *slope, int64_t n, float lse,
                                float delta) {
    const float log2e = 1.44269504f, base = lse == -INFINITY ? INFINITY : lse;
    for (int64_t j = 0; j < n; j += VW) {
        const Vec x = vec_load(s + j), p = vec_exp2((x - base) * log2e);
        Vec y = p * (vec_load(ds + j) - delta);
        if (slope) y *= vec_load(slope + j);
        /* hidden: ds and slope may be anything there */
        y = (Vec)((VecInt)y & ~(x == -INFINITY));
        vec_store(s + j, p);
        vec_store(ds + j, y);
    }
}

static inline float row_dot(const float *x, const float *y, int n) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < n; i++) sum += x[i] * y[i];
    return sum;
}

static inline void row_hide(float *s, int64_t from, int64_t n) {
    for (int64_t j = from; j < n; j++) s[j] = -INFINITY;
}

/* ---- documents ---- */

/* What a call has of one document: `rows` queries from `row` on and `cols` keys from `col` on. With
 * cached keys there may be documents without a query, and beyond Tk some without either. */
typedef struct Document {
    int row, rows, col, cols;
} Document;

static inline Document document_of(const AttnArgs *a, int d) {
    const int first = a->mask->offsets[d], end = a->mask->offsets[d + 1];
    const int row = first > a->offset ? first - a->offset : 0;
    const int last = end < a->offset + a->Tq ? end - a->offset : a->Tq;
    const int col_end = end < a->Tk ? end : a->Tk;
    return (Document){row, last > row ? last - row : 0, first,
                      col_end > first ? col_end - first : 0};
}

/* Keys of the longest document that the call has; its queries are no more. */
static inline int document_longest(const AttnArgs *a) {
    return a->mask->longest < a->Tk ? a->mask->longest : a->Tk;
}

/* Why a backend that knows nothing but documents declines, or NULL. */
static inline const char *documents_declined(const Ctx *c, const AttnArgs *a) {
    (void)c;
    if (a->dtype != DT_F32) return "it computes in float32 alone";
    if (!a->mask->offsets) return "it needs a mask of documents";
    if (a->mask->within) return "a query sees its whole document there, and this mask hides some";
    if (a->mask->has_score_expr) return "it has no score expressions";
    return NULL;
}

#endif
