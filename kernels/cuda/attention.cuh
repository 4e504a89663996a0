/* What the attention backends on CUDA share. */
#ifndef KERNELS_CUDA_ATTENTION_CUH
#define KERNELS_CUDA_ATTENTION_CUH

#include "kernels/cuda/cuda.cuh"

/* A mask's arrays on the device; NULL where the mask has none. They stay until the context's masks
 * are freed; kept by content, so that a mask whose documents change with each batch costs one
 * upload a batch. */
typedef struct CudaMask {
    const int32_t *lo, *hi; /* (T): of interval masks and of documents: query at position q sees
                               lo[q] <= k < hi[q] */
    const int32_t *offsets; /* (n_docs + 1) */
    int T, n_docs, longest;
} CudaMask;

CudaMask cuda_mask(Ctx *c, const Mask *m); /* attention_mask.cu */
void cuda_masks_free(struct CudaMasks *masks);

/* sdpa. Queries are taken in tiles of consecutive rows, and a tile visits the keys from the
 * smallest lo to the largest hi of its rows; a tile of 64 keys that every row of a warp sees whole
 * needs no test. Documents of a few rows therefore cost one or two tiles a tile of queries, all in
 * one launch. Head sizes: 1 .. 128, padded in shared memory to the next of 16, 32, 64 or 128
 * (float32) or of 32, 64, 96 or 128 (bf16). Strides are any; 16-byte loads where addresses and
 * strides allow them.
 *
 * delta (B, H, Tq) float32 = rowsum(dout out), the first pass of backward, into the workspace. */
void flash_forward_bf16(Ctx *c, const AttnArgs *a, CudaMask m);  /* flash_forward_bf16.cu */
void flash_backward_bf16(Ctx *c, const AttnArgs *a, CudaMask m); /* flash_backward_bf16.cu */
size_t flash_workspace_bf16(const Ctx *c, const AttnArgs *a, bool backward);

/* The same for Hopper: bf16, heads of 64 and 128 numbers, tensors that the copy engine takes
 * (tensor_map.cuh). fits: whether this GPU and these tensors are such. */
bool flash_sm90_fits(const Ctx *c, const AttnArgs *a, bool backward); /* attention_sdpa.cu */
void flash_forward_sm90(Ctx *c, const AttnArgs *a, CudaMask m);       /* flash_forward_sm90.cu */
void flash_backward_sm90(Ctx *c, const AttnArgs *a, CudaMask m);      /* flash_backward_sm90.cu */
size_t flash_workspace_sm90(const AttnArgs *a, bool backward);

void flash_forward_f32(Ctx *c, const AttnArgs *a, CudaMask m); /* flash_f32.cu */
void flash_backward_f32(Ctx *c, const AttnArgs *a, CudaMask m);
size_t flash_workspace_f32(const AttnArgs *a, bool backward);

#endif
