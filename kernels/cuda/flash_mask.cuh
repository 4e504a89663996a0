/* What the flash kernels ask of a mask and of a score expression. One text, two uses: built with
 * the program it is sdpa's, masks that are row intervals; compiled at run time behind a prelude
 * (kernels/flex/flex.h; FLEX_RUNTIME 1) it is flex's. Without expressions the questions about plans
 * and scores are constants, so that they cost sdpa nothing.
 *
 * A kernel asks from the coarse to the fine:
 *   interval_of   of each row, once: between which keys it sees any
 *   mask_limits   of a group of rows, once, by a warp: the keys that somebody and that all see
 *   mask_next     the next tile of keys that a block has to load
 *   mask_meets    does somebody of a group see some key of a tile: if not, skip it
 *   mask_full     does everybody see all of it: if so, test nothing
 *   mask_sees     does this row see this key: in the tiles between
 *   mask_score, mask_slope   where FLEX_HAS_SCORE: the score that a score becomes, and the
 *                            derivative, both in natural units: scale q k', before log2(e)
 * Rows are counted from the first query (its position is offset), keys are positions. b, h: whose
 * rows; groups and tiles may hang over the last row and key, where nothing is seen.
 *
 * What is known of the mask, at run time:
 *   lo, hi         row intervals: bounds, and unless `asks` is set the mask itself
 *   visit, full    a plan, a bit a cell of 32 x 32: somebody of it sees something, all see all
 *   neither        flex-dense: every tile is visited and every element asked; sdpa: all is seen */
#ifndef KERNELS_CUDA_FLASH_MASK_CUH
#define KERNELS_CUDA_FLASH_MASK_CUH

#include <limits.h>

#include "kernels/cuda/device_code.cuh"

#define LOG2E 1.44269504f
#define LN2 0.693147181f

#ifndef FLEX_RUNTIME
#define FLEX_RUNTIME 0
#define FLEX_HAS_SCORE 0
extern "C" {
#include "kernels/flex/flex.h" /* FlexEnv, which a prelude defines itself */
}
#endif

enum { CELL = 32 }; /* rows and keys of a bit of the plan, and bits of a word of it */

/* Part of a kernel's arguments, for all batches and heads. */
typedef struct FlashMask {
    int Tq, Tk, offset;           /* queries, keys, position of query 0 */
    bool asks;                    /* what lo and hi show is asked all the same */
    const int32_t *lo, *hi;       /* by position, or NULL */
    const uint32_t *visit, *full; /* by b b_rows + h h_rows + row / CELL; or NULL */
    int words, b_rows, h_rows;    /* words a row; rows to the next b and h, 0: one for all */
    int plan_heads;               /* of how many heads there are rows */
    FlexEnv env;                  /* pointers of the device */
} FlashMask;

/* ---- intervals ---- */

/* A query sees the keys lo <= k < hi; one that sees none, or does not exist, has {INT_MAX, 0}. */
typedef struct Interval {
    int lo, hi;
} Interval;

static __device__ __forceinline__ Interval interval_of(const FlashMask &m, int row) {
    if (row >= m.Tq) return {INT_MAX, 0};
    if (!m.lo) return {0, m.Tk};
    const int from = m.lo[m.offset + row], to = min(m.hi[m.offset + row], m.Tk);
    return from < to ? Interval{from, to} : Interval{INT_MAX, 0};
}

/* Of several queries: some see keys from first .. end - 1 and nobody one outside; all of them see
 * what lies in full_first .. full_end - 1. */
typedef struct Limits {
    int first, end, full_first, full_end;
} Limits;

/* What the lanes of a warp know together. */
static __device__ __forceinline__ Limits warp_limits(Limits l) {
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) {
        l.first = min(l.first, __shfl_xor_sync(FULL_WARP, l.first, lanes));
        l.end = max(l.end, __shfl_xor_sync(FULL_WARP, l.end, lanes));
        l.full_first = max(l.full_first, __shfl_xor_sync(FULL_WARP, l.full_first, lanes));
        l.full_end = min(l.full_end, __shfl_xor_sync(FULL_WARP, l.full_end, lanes));
    }
    return l;
}

/* Of n intervals, by one warp. */
static __device__ __forceinline__ Limits intervals_limits(const Interval *x, int n) {
    Limits l = {INT_MAX, 0, 0, INT_MAX};
    for (int i = threadIdx.x % WARP; i < n; i += WARP) {
        l.first = min(l.first, x[i].lo);
        l.end = max(l.end, x[i].hi);
        l.full_first = max(l.full_first, x[i].lo);
        l.full_end = min(l.full_end, x[i].hi);
    }
    return warp_limits(l);
}

/* Whether somebody sees one of the keys first .. end - 1, and whether all see each of them. */
static __device__ __forceinline__ bool limits_see(const Limits &l, int first, int end) {
    return l.first < end && l.end > first;
}
static __device__ __forceinline__ bool limits_full(const Limits &l, int first, int end) {
    return l.full_first <= first && l.full_end >= end;
}

/* ---- plans ---- */

/* Whether one of the cells that rows row .. row + n - 1 and keys first .. end - 1 touch, as far as
 * there are such, has its bit set; with flip ~0: not set. */
static __device__ __forceinline__ bool plan_any(const FlashMask &m, const uint32_t *bits,
                                                uint32_t flip, int b, int h, int row, int n,
                                                int first, int end) {
    const int last_row = min(row + n, m.Tq) - 1, last = min(end, m.Tk) - 1;
    const int from = first / CELL, to = last / CELL;
    if (last < first) return false;
    for (int cell = row / CELL; cell <= last_row / CELL; cell++) {
        const uint32_t *words =
            bits + ((int64_t)b * m.b_rows + (int64_t)h * m.h_rows + cell) * m.words;
        for (int w = from / 32; w <= to / 32; w++) {
            uint32_t x = words[w] ^ flip;
            if (w == from / 32) x &= ~0u << from % 32;
            if (w == to / 32) x &= ~0u >> (31 - to % 32);
            if (x) return true;
        }
    }
    return false;
}

/* By one warp: from the first to the last key of the cells that these rows visit, over `heads`
 * heads whose rows of the plan follow each other from `start` on. */
static __device__ __forceinline__ Limits plan_limits(const FlashMask &m, int64_t start, int heads,
                                                     int row, int n) {
    const int cells = (m.Tq + CELL - 1) / CELL, end_cell = (min(row + n, m.Tq) + CELL - 1) / CELL;
    Limits l = {INT_MAX, 0, INT_MAX, 0};
    for (int i = 0; i < heads; i++)
        for (int cell = row / CELL; cell < end_cell; cell++) {
            const uint32_t *words = m.visit + (start + (int64_t)i * cells + cell) * m.words;
            for (int w = threadIdx.x % WARP; w < m.words; w += WARP) {
                const int bits = (int)words[w];
                if (!bits) continue;
                l.first = min(l.first, (w * 32 + __ffs(bits) - 1) * CELL);
                l.end = max(l.end, (w * 32 + 32 - __clz(bits)) * CELL);
            }
        }
    l = warp_limits(l);
    l.end = min(l.end, m.Tk);
    return l;
}

/* ---- both ---- */

/* Of rows row .. row + n - 1, whose intervals are x; by one warp. */
static __device__ __forceinline__ Limits mask_limits(const FlashMask &m, int b, int h,
                                                     const Interval *x, int row, int n) {
    if (FLEX_RUNTIME && m.visit)
        return plan_limits(m, (int64_t)b * m.b_rows + (int64_t)h * m.h_rows, 1, row, n);
    return intervals_limits(x, n);
}

/* Of all heads together, for kernels that are built with the program and serve flex as well. */
static __device__ __forceinline__ Limits mask_limits_all(const FlashMask &m, const Interval *x,
                                                         int row, int n) {
    return m.visit ? plan_limits(m, 0, m.plan_heads, row, n) : intervals_limits(x, n);
}

/* As far as a plan knows: whether somebody of rows row .. row + n - 1 sees a key of first .. end
 * - 1.
 */
static __device__ __forceinline__ bool plan_meets(const FlashMask &m, int b, int h, int row, int n,
                                                  int first, int end) {
    return !FLEX_RUNTIME || !m.visit || plan_any(m, m.visit, 0, b, h, row, n, first, end);
}

/* Whether somebody of rows row .. row + n - 1, whose limits are l, sees a key of first .. end - 1.
 */
static __device__ __forceinline__ bool mask_meets(const FlashMask &m, const Limits &l, int b, int h,
                                                  int row, int n, int first, int end) {
    return limits_see(l, first, end) && plan_meets(m, b, h, row, n, first, end);
}

/* Whether all of them see each of these keys. */
static __device__ __forceinline__ bool mask_full(const FlashMask &m, const Limits &l, int b, int h,
                                                 int row, int n, int first, int end) {
    if (FLEX_RUNTIME && m.visit)
        return row + n <= m.Tq && end <= m.Tk &&
               !plan_any(m, m.full, ~0u, b, h, row, n, first, end);
    return !(FLEX_RUNTIME && m.asks) && limits_full(l, first, end);
}

/* The first tile of `size` keys, at `tile` or after it, that these rows meet; where there is none,
 * one that begins at l.end or after it. */
static __device__ __forceinline__ int mask_next(const FlashMask &m, const Limits &l, int b, int h,
                                                int row, int n, int tile, int size) {
    if (FLEX_RUNTIME && m.visit)
        while (tile * size < l.end && !plan_meets(m, b, h, row, n, tile * size, (tile + 1) * size))
            tile++;
    return tile;
}

/* ---- elements ---- */

#if FLEX_RUNTIME

/* Whether the row, whose interval is x, sees the key. Arrays are padded, so that rows and keys that
 * do not exist may be asked: no branch keeps them apart. */
static __device__ __forceinline__ bool mask_sees(const FlashMask &m, Interval x, int b, int h,
                                                 int row, int key) {
    const int q = m.offset + row, asked = FLEX_BY_DOCUMENT && m.lo
                                              ? flex_rest(b, h, q, key, &m.env)
                                              : flex_mask(b, h, q, key, &m.env);
    return (key >= x.lo) & (key < x.hi) & asked;
}

/* The score that `score` = scale q k' becomes, and d of it / d score. */
static __device__ __forceinline__ float mask_score(const FlashMask &m, float score, int b, int h,
                                                   int row, int key) {
    return flex_score(score, b, h, m.offset + row, key, &m.env);
}
static __device__ __forceinline__ float mask_slope(const FlashMask &m, float score, int b, int h,
                                                   int row, int key) {
    return flex_score_grad(score, b, h, m.offset + row, key, &m.env);
}

#else

static __device__ __forceinline__ bool mask_sees(const FlashMask &, Interval x, int, int, int,
                                                 int key) {
    return key >= x.lo && key < x.hi;
}
static __device__ __forceinline__ float mask_score(const FlashMask &, float score, int, int, int,
                                                   int) {
    return score;
}
static __device__ __forceinline__ float mask_slope(const FlashMask &, float, int, int, int, int) {
    return 1.0f;
}

#endif

#endif
