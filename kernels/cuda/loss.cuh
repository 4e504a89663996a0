/* The mean of a loss over rows or numbers, in double, in an order that follows from their number
 * alone. A first launch leaves one sum a block in loss_sums, a second one adds them. */
#ifndef KERNELS_CUDA_LOSS_CUH
#define KERNELS_CUDA_LOSS_CUH

#include "kernels/cuda/cuda.cuh"

enum { LOSS_BLOCKS = 512 };

/* For a loop over n by all threads of all blocks; a thread takes at least 4 where there are so
 * many. */
static inline dim3 loss_grid(int64_t n) {
    const int64_t blocks = div_up(n, 4 * BLOCK);
    return dim3(blocks < LOSS_BLOCKS ? (unsigned)blocks : (unsigned)LOSS_BLOCKS);
}

/* Room for a sum a block, in the workspace. */
static inline double *loss_sums(Ctx *c) {
    return (double *)ctx_workspace(c, sizeof(double) * LOSS_BLOCKS);
}

static __global__ void add_loss_sums(double *loss, const double *sums, unsigned blocks, double n) {
    const double sum = block_sum(sums, blocks);
    if (threadIdx.x == 0) *loss = sum / n;
}

/* loss = the blocks' sums / n */
static inline void loss_mean(Ctx *c, const Tensor *loss, const double *sums, dim3 grid, int64_t n) {
    launch(c, add_loss_sums, 1, BLOCK, 0, (double *)loss->data, sums, grid.x, (double)n);
}

#endif
