/* The plan of a mask that is an expression and no row interval: for each cell of 32 queries by 32
 * keys whether somebody of it sees something, and whether all of it is seen, a bit each
 * (FlashMask). Each pair of a query and a key is asked once, and nothing of their number is kept.
 *
 * A block makes a word, 32 cells of a row of them: a warp asks a cell of 32 keys at a time, a key a
 * lane, one query after the other. */
#ifndef KERNELS_CUDA_FLEX_PLAN_CUH
#define KERNELS_CUDA_FLEX_PLAN_CUH

#include "kernels/cuda/flash_mask.cuh"

enum { PLAN_THREADS = 256, PLAN_SHARED = 64 /* bytes */ };

/* Of the mask everything but visit and full is set. A word a block: (b, h, row of cells, word). */
typedef struct FlexPlanning {
    FlashMask mask;
    uint32_t *visit, *full;
    int n_h, cells; /* heads that are asked; rows of cells of each */
} FlexPlanning;

#if FLEX_RUNTIME
extern "C" __global__ void __launch_bounds__(PLAN_THREADS)
    flex_plan(const __grid_constant__ FlexPlanning p) {
    unsigned char *sees = (unsigned char *)shared_block(), *all = sees + 32; /* by cell */
    const int word = blockIdx.x % p.mask.words, row = blockIdx.x / p.mask.words;
    const int head = row / p.cells, b = head / p.n_h, h = head % p.n_h;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int first = row % p.cells * CELL, n = min(p.mask.Tq - first, (int)CELL);
    for (int cell = warp; cell < 32; cell += PLAN_THREADS / WARP) {
        const int key = (word * 32 + cell) * CELL + lane;
        bool some = false, every = true;
        for (int i = 0; i < (key < p.mask.Tk ? n : 0); i++) {
            const bool x = flex_mask(b, h, p.mask.offset + first + i, key, &p.mask.env);
            some |= x;
            every &= x;
        }
        some = __any_sync(FULL_WARP, some);
        every = __all_sync(FULL_WARP, every);
        if (lane == 0) {
            sees[cell] = some;
            all[cell] = every;
        }
    }
    __syncthreads();
    if (warp > 0) return;
    const unsigned visit = __ballot_sync(FULL_WARP, sees[lane]),
                   full = __ballot_sync(FULL_WARP, all[lane]);
    if (lane == 0) {
        p.visit[blockIdx.x] = visit;
        p.full[blockIdx.x] = full;
    }
}
#endif

#endif
