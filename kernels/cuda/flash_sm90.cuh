/* What the flash kernels for Hopper are made of, beside flash_tile.cuh: rings of stages in shared
 * memory that one warp fills and warpgroups read, and products of matrices in panels
 * (ptx_sm90.cuh). Device code alone. */
#ifndef KERNELS_CUDA_FLASH_SM90_CUH
#define KERNELS_CUDA_FLASH_SM90_CUH

#include "kernels/cuda/flash_tile.cuh"
#include "kernels/cuda/ptx_sm90.cuh"

enum {
    WARPGROUP = 128, /* threads */
    PANEL = 64       /* columns */
};

/* ---- rings ---- */

/* Where somebody is in a ring of N stages. Each stage has two barriers, full and empty; who fills
 * it waits for (empty, parity ^ 1), which a new ring lets pass, who reads it for (full, parity). */
typedef struct RingPlace {
    int stage, parity;
} RingPlace;

template <int N>
static __device__ __forceinline__ void ring_next(RingPlace &r) {
    const bool around = r.stage + 1 == N;
    r.stage = around ? 0 : r.stage + 1;
    r.parity ^= (int)around;
}

/* One thread. `rows` rows from `row` on of a head, D columns in panels, begin to come; b is told of
 * their bytes by the caller. rows: those of the map's box. */
template <int D>
static __device__ __forceinline__ void panels_load(bf16 *to, const TensorMap *map, Barrier *b,
                                                   int rows, int row, int h, int batch) {
#pragma unroll
    for (int col = 0; col < D; col += PANEL)
        copy_box(to + rows * col, map, b, col, row, h, batch);
}

/* ---- products: begun; wgmma_commit and wgmma_wait are the caller's ---- */

/* d (64, 8 N) = a b': a (64, D) from its first row in panels of a_rows rows, b (8 N, D) likewise.
 */
template <int D, int N>
static __device__ __forceinline__ void product_along(float (&d)[N][4], const bf16 *a, int a_rows,
                                                     const bf16 *b, int b_rows) {
    wgmma_fence(d);
#pragma unroll
    for (int col = 0; col < D; col += 16)
        wgmma<false, false>(d, matrix_along(a + col / PANEL * PANEL * a_rows + col % PANEL),
                            matrix_along(b + col / PANEL * PANEL * b_rows + col % PANEL), col > 0);
}

/* d (64, 8 N) += a b: a (64, 16 K) in registers, fragments of 16 columns; b (16 K, 8 N) from its
 * first row in panels of b_rows rows. */
template <int N, int K>
static __device__ __forceinline__ void product_down(float (&d)[N][4], uint32_t (&a)[K][4],
                                                    const bf16 *b, int b_rows) {
    registers_pin(a);
    wgmma_fence(d);
#pragma unroll
    for (int k = 0; k < K; k++)
        wgmma<true>(d, a[k],
                    matrix_down(b + 16 * k * PANEL, b_rows * PANEL * (int)sizeof(bf16)), true);
}

#endif
