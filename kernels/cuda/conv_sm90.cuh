/* Correlations on Hopper without im2col; host code. */
#ifndef KERNELS_CUDA_CONV_SM90_CUH
#define KERNELS_CUDA_CONV_SM90_CUH

#include "kernels/cuda/cuda.cuh"

/* The sizes of a correlation of images (n, h, w, D) with k x k windows to (n, h, w, R): stride 1,
 * zeros outside, k odd. */
typedef struct Correlation {
    int64_t n;
    int h, w, k, D, R;
} Correlation;

/* Whether the two functions below take it: bf16, a GPU with Hopper's instructions, D and R
 * multiples of 64, k up to 5, and images of which tiles of 8 x 8 pixels are at least a third. */
bool conv_sm90_fits(const Ctx *c, DType dtype, const Correlation *s);

/* y (n, h, w, R) = or (add) += the correlation of x (n, h, w, D) with packed (R, k k D), whose rows
 * are (ky, kx, d), plus bias (R) or NULL. All bf16, sums in float32 and rounded once. */
void conv_sm90(Ctx *c, const Correlation *s, const void *x, const void *packed, const void *bias,
               void *y, bool add);

/* The gradient of weight (R, D, k, k) = or (grad_set) += the sums over all pixels of dy (n, h, w,
 * R) times x at each place of a window; the same bits each time and on each GPU. Takes
 * ctx_workspace. */
void conv_sm90_weight(Ctx *c, const Correlation *s, const void *x, const void *dy,
                      const Tensor *weight);

#endif
