/* What the host hands to the flash kernel (flash.h). Plain C types only: this text is also part of
 * what is compiled at run time for flex, where no other header of the project exists. */
#ifndef KERNELS_CPU_FLASH_ABI_H
#define KERNELS_CPU_FLASH_ABI_H

#include <stddef.h>
#include <stdint.h>

/* What a tile of the score matrix needs. */
enum { FLASH_SKIP, FLASH_FULL, FLASH_PARTIAL };

/* Tiles: at most FLASH_ROWS queries by FLASH_COLS keys. All queries' tiles but the last have
 * FlashArgs.tile_rows rows. A plan of an expression knows FLASH_PLAN_COLS keys a bit, so that a
 * tile can be narrowed to what is visible in it. */
enum { FLASH_ROWS = 96, FLASH_COLS = 128, FLASH_PLAN_COLS = 32 };

typedef struct FlashStride {
    int64_t b, t, h;
} FlashStride;

typedef struct FlashArgs {
    int B, H, Tq, Tk, D;
    float scale;
    int offset;    /* position of query 0 */
    int first;     /* position of key 0 */
    int lse_rows;  /* from one head's lse to the next; Tq but for a document's */
    int n_threads; /* changes the speed, never a bit of the result */
    int tile_rows; /* flash_tile_rows(Tq) */
    int dense;     /* visit every tile and test every cell, whatever lo, hi or plan know */

    /* The mask: intervals by position; else, where the kernel has one compiled in, flex_mask with
     * what is known of its tiles (the bits of a FlexPlan, kernels/flex/flex.h); else nothing is
     * hidden. */
    const int32_t *lo, *hi;
    const uint64_t *visit, *partial;
    int plan_b, plan_h, plan_words; /* rows to the next b and h; words a row, one row a tile row */
    const void *env;                /* FlexEnv: the arrays that expressions name */

    /* Documents: rows offsets[d] .. offsets[d + 1] - 1 see each other alone (where lo and hi are
     * given, less). NULL: none. Then Tq = Tk and positions are rows. */
    const int32_t *offsets; /* (n_docs + 1) */
    int n_docs, longest;
    int in_document; /* these are one document's rows: the mask's rest is asked, not the mask */

    const float *q, *k, *v;
    float *out, *lse; /* lse (B, H, Tq), natural log */
    const float *dout;
    float *dq, *dk, *dv; /* NULL: not wanted */
    float *dlearned;     /* likewise; (FLEX_LEARNED) */
    FlashStride qs, ks, vs, os;
    char *workspace; /* flash_workspace() bytes, aligned to 64 */
} FlashArgs;

/* About 64 rows a tile, chosen so that the last tile is not a sliver; a multiple of 4. */
static inline int flash_tile_rows(int Tq) {
    int n = (Tq + 31) / 64;
    if (n < 1) n = 1;
    return ((Tq + n - 1) / n + 3) / 4 * 4;
}

typedef struct FlashKernel {
    size_t (*workspace)(const FlashArgs *a, int backward);
    void (*forward)(const FlashArgs *a);
    void (*backward)(const FlashArgs *a);
} FlashKernel;

#endif
