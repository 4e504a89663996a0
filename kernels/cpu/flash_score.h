/* What a score expression does to a row, and what it learns: the way from y = p (dp - delta) =
 * d loss / d score' of a tile to
 *
 *   d loss / d learned[i] = the sum of y d score' / d learned[i] over all b, h, q, k that read it.
 *
 * A task adds to sums of its own, FLEX_LEARNED floats; the tasks' are then added in their order, so
 * neither threads nor chance change a bit. The captures' functions and kinds come with the prelude
 * (kernels/flex/flex.h). */
#if !defined(KERNELS_CPU_FLASH_SCORE_H) && !defined(FLASH_TEXT_ONLY)
#define KERNELS_CPU_FLASH_SCORE_H

#ifndef FLEX_HAS_SCORE
#define FLEX_HAS_SCORE 0
#endif
#ifndef FLEX_CAPTURES /* sdpa */
#define FLEX_CAPTURES 0
#define FLEX_LEARNED 0
#define FLEX_EACH_CAPTURE(X)
#endif

static const float LOG2E = 1.44269504f, LN2 = 0.693147181f;

/* Rows of the tile's scratch are a little longer than the tile, so that a column of it does not
 * fall into few sets of the cache. */
enum { FLASH_LD = FLASH_COLS + 16 };

/* Queries q .. q + rows - 1 and keys k .. k + cols - 1; y is 0 where a key is hidden. */
typedef struct Captured {
    const void *env;
    int b, h, q, k, rows, cols;
    const float *score, *y; /* (rows, FLASH_LD): before the expression; d loss / d score' */
} Captured;

#if FLEX_HAS_SCORE
/* s becomes the scores in units of log 2, slope (NULL: not wanted) d score' / d score. restrict:
 * the arrays that expressions read are not these rows. */
static inline void score_row(const FlexEnv *env, int b, int h, int q, int k, int n,
                             float *restrict s, float *restrict slope) {
    if (slope)
        for (int j = 0; j < n; j++) slope[j] = flex_score_grad(s[j], b, h, q, k + j, env);
    for (int j = 0; j < n; j++) s[j] = LOG2E * flex_score(s[j], b, h, q, k + j, env);
}
#endif

#if FLEX_CAPTURES

typedef int (*CaptureIndex)(int b, int h, int q, int k, const FlexEnv *env);
typedef float (*CaptureGrad)(float score, int b, int h, int q, int k, const FlexEnv *env);

/* Sums by k - q, as they lie: number FLASH_ROWS - 1 is the diagonal through the first cell. */
static inline void add_distances(const Captured *t, CaptureIndex index, const float *by_distance,
                                 float *sums) {
    for (int d = FLASH_ROWS - t->rows; d < FLASH_ROWS - 1 + t->cols; d++) {
        const int apart = d - FLASH_ROWS + 1, i = apart < 0 ? -apart : 0, j = apart < 0 ? 0 : apart;
        sums[index(t->b, t->h, t->q + i, t->k + j, t->env)] += by_distance[d];
    }
}

FLASH_INLINE void capture_tile(const Captured *t, CaptureIndex index, CaptureGrad grad,
                               const int kind, float *restrict sums) {
    float part[FLASH_COLS], by_distance[FLASH_ROWS + FLASH_COLS] = {0};
    int at[FLASH_COLS];
    for (int i = 0; i < t->rows; i++) {
        const float *score = t->score + i * FLASH_LD, *y = t->y + i * FLASH_LD;
        const int q = t->q + i;
        for (int j = 0; j < t->cols; j++) {
            const float x = y[j] * grad(score[j], t->b, t->h, q, t->k + j, t->env);
            part[j] = y[j] == 0 ? 0 : x; /* a hidden key's slope is anything, infinite too */
        }
        if (kind == FLEX_ONE_PLACE) {
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int j = 0; j < t->cols; j++) sum += part[j];
            sums[index(t->b, t->h, q, t->k, t->env)] += sum;
        } else if (kind == FLEX_BY_DISTANCE) {
            float *to = by_distance + FLASH_ROWS - 1 - i;
            for (int j = 0; j < t->cols; j++) to[j] += part[j];
        } else {
            for (int j = 0; j < t->cols; j++) at[j] = index(t->b, t->h, q, t->k + j, t->env);
            for (int j = 0; j < t->cols; j++) sums[at[j]] += part[j];
        }
    }
    if (kind == FLEX_BY_DISTANCE) add_distances(t, index, by_distance, sums);
}

#endif

static inline void capture(const Captured *t, float *sums) {
    (void)t, (void)sums;
#define CAPTURE(J, KIND) capture_tile(t, flex_capture_index_##J, flex_capture_grad_##J, KIND, sums);
    FLEX_EACH_CAPTURE(CAPTURE)
#undef CAPTURE
}

/* The same of one query and key. */
static inline void capture_pair(const void *env, int b, int h, int q, int k, float score, float y,
                                float *sums) {
    (void)env, (void)b, (void)h, (void)q, (void)k, (void)score, (void)y, (void)sums;
#define CAPTURE(J, KIND)                             \
    sums[flex_capture_index_##J(b, h, q, k, env)] += \
        y * flex_capture_grad_##J(score, b, h, q, k, env);
    FLEX_EACH_CAPTURE(CAPTURE)
#undef CAPTURE
}

/* dlearned += n sums that lie one behind the other, in their order; by all threads of a region,
 * who do not wait for each other at the end. */
static inline void add_sums(float *dlearned, const float *sums, int n) {
#pragma omp for schedule(static) nowait
    for (int i = 0; i < FLEX_LEARNED; i++)
        for (int j = 0; j < n; j++) dlearned[i] += sums[(int64_t)j * FLEX_LEARNED + i];
}

#endif
