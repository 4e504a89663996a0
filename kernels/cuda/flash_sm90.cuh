/* What the flash kernels for Hopper are made of, beside flash_tile.cuh: rings of stages in shared
 * memory that one warp fills and warpgroups read, and products of matrices in panels
 * (ptx_sm90.cuh). Device code alone. */
#ifndef KERNELS_CUDA_FLASH_SM90_CUH
#define KERNELS_CUDA_FLASH_SM90_CUH

#include "kernels/cuda/flash_tile.cuh"
#include "kernels/cuda/ptx_sm90.cuh"

enum {
    WARPGROUP = 128, /* threads */
    PANEL = 64,      /* columns */
    PANEL_ROW = 128  /* bytes */
};

/* Which of the block's at most four warpgroups the thread is of. By votes, so that the compiler
 * knows that a warp's lanes agree: what follows from it, descriptors of matrices above all, then
 * lies in uniform registers. */
static __device__ __forceinline__ int warpgroup_number() {
    const int n = (int)threadIdx.x / WARPGROUP;
    return (__any_sync(FULL_WARP, n & 2) ? 2 : 0) | (__any_sync(FULL_WARP, n & 1) ? 1 : 0);
}

/* ---- rings ---- */

/* Where somebody is in a ring. Each stage has two barriers, full and empty; who fills
 * it waits for (empty, parity ^ 1), which a new ring lets pass, who reads it for (full, parity). */
typedef struct RingPlace {
    int stage, parity;
} RingPlace;

template <int STAGES>
static __device__ __forceinline__ void ring_next(RingPlace &r) {
    const bool around = r.stage + 1 == STAGES;
    r.stage = around ? 0 : r.stage + 1;
    r.parity ^= (int)around;
}

template <int STAGES>
static __device__ __forceinline__ RingPlace ring_before(RingPlace r) {
    return r.stage == 0 ? RingPlace{STAGES - 1, r.parity ^ 1} : RingPlace{r.stage - 1, r.parity};
}

/* A whole warp, once; all its lanes' accesses come before. */
static __device__ __forceinline__ void warp_arrive(Barrier *b) {
    __syncwarp();
    if (threadIdx.x % WARP == 0) barrier_arrive(b);
}

/* One thread. `rows` rows from `row` on of a head, D columns in panels, begin to come; b is told of
 * their bytes by the caller. rows: those of the map's box. */
template <int D>
static __device__ __forceinline__ void panels_load(bf16 *to, const TensorMap *map, Barrier *b,
                                                   int rows, int row, int h, int batch) {
#pragma unroll
    for (int col = 0; col < D; col += PANEL) copy_box(to + rows * col, map, b, col, row, h, batch);
}

/* ---- products: begun; wgmma_commit and wgmma_wait are the caller's ---- */

/* d (64, 8 N) = a b': a (64, D) from its first row in panels of a_rows rows, b (8 N, D) likewise.
 */
template <int D, int N>
static __device__ __forceinline__ void product_along(float (&d)[N][4], const bf16 *a, int a_rows,
                                                     const bf16 *b, int b_rows) {
    const Matrix from_a = matrix_along(a), from_b = matrix_along(b);
    wgmma_fence(d);
#pragma unroll
    for (int col = 0; col < D; col += 16) {
        const int panel = col / PANEL * PANEL_ROW, within = col % PANEL * (int)sizeof(bf16);
        wgmma<false, false>(d, matrix_further(from_a, panel * a_rows + within),
                            matrix_further(from_b, panel * b_rows + within), col > 0);
    }
}

/* d (64, 8 N) += a b: a (64, 16 K) in registers, fragments of 16 columns; b (16 K, 8 N) from its
 * first row in panels of b_rows rows. */
template <int K, int N>
static __device__ __forceinline__ void product_down(float (&d)[N][4], uint32_t a[][4],
                                                    const bf16 *b, int b_rows) {
    const Matrix from = matrix_down(b, b_rows * PANEL_ROW);
    registers_pin<K>(a);
    wgmma_fence(d);
#pragma unroll
    for (int k = 0; k < K; k++)
        wgmma<true>(d, a[k], matrix_further(from, 16 * k * PANEL_ROW), true);
}

#endif
