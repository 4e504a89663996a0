/* What the copy engine of sm_90 is told of tensors; host code. */
#ifndef KERNELS_CUDA_TENSOR_MAP_CUH
#define KERNELS_CUDA_TENSOR_MAP_CUH

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/ptx_sm90.cuh"

/* Whether the copy engine takes a (B, T, H, D) view in bf16: it begins at a multiple of 16 bytes,
 * and so do its rows, heads and batches. */
bool tensor_map_fits(const void *data, AttnStride s);

/* The map of that view for copy_box and store_box: boxes of 64 columns and `rows` rows of one head
 * (at most 256) in panels; coordinates (column, row, head, batch). What lies outside of D columns
 * or T rows is zero, and is not stored. Ends the run with a sentence where the driver refuses. */
TensorMap tensor_map(Ctx *c, const void *data, AttnStride s, int B, int T, int H, int D, int rows);

/* The map of images (n, h, w, D) in bf16, D a multiple of 64: boxes of 64 channels of `rows` rows
 * of `across` pixels (at most 256 each) of one image, which become panels of rows across rows;
 * coordinates (channel, x, y, image). What lies outside of an image, or is no image, is zero. */
TensorMap tensor_map_image(Ctx *c, const void *data, int n, int h, int w, int D, int across,
                           int rows);

#endif
