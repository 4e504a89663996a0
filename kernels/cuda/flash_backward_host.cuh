/* The host's side that both bf16 backwards share, the portable and Hopper's: how the work is cut
 * into blocks, and the first passes. */
#ifndef KERNELS_CUDA_FLASH_BACKWARD_HOST_CUH
#define KERNELS_CUDA_FLASH_BACKWARD_HOST_CUH

#include "kernels/cuda/flash_backward.cuh"
#include "kernels/cuda/flash_host.cuh"

/* Heads padded to d_pad numbers, `tile` queries a tile; total is the bytes of the workspace.
 * documents: a's mask keeps them apart, and the kernels go by that. */
Cut flash_backward_cut(const AttnArgs *a, bool documents, int d_pad, int tile);

/* What the kernels are told, in a's workspace; starts those that make limits, intervals and row
 * sums there. */
Backward flash_backward_begin(Ctx *c, const AttnArgs *a, CudaMask m, Cut cut);

#endif
