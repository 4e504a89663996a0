/* Matrix products by cuBLASLt, and what their callers share. The library (540 MB) is opened by the
 * first product: a program that stays on the CPU does not wait for it. */
#ifndef KERNELS_CUDA_GEMM_CUH
#define KERNELS_CUDA_GEMM_CUH

#include "kernels/cuda/cuda.cuh"

/* C (M, N) = alpha op(A) op(B) + beta E + bias, row-major, rows ld apart; op(A) is (M, K),
 * op(B) is (K, N); ta, tb: stored transposed. `batch` such products at strides in elements (a
 * stride may be 0 for A and B). A and B have dtype `in`, C, E and bias have `out`: float32 from
 * either, or bf16 from bf16. Sums are float32: never tf32. E: NULL means C itself, else it lies as
 * C does, and C is only written. bias: (N), aligned to 16 bytes, or NULL. Rows that are no
 * multiples of 16 bytes are valid, and slow: the matrix units need those. */
typedef struct Gemm {
    int64_t M, N, K;
    bool ta, tb;
    DType in, out;
    const void *A, *B;
    void *C;
    const void *E;
    int64_t lda, ldb, ldc;
    int64_t batch, stride_a, stride_b, stride_c;
    float alpha, beta;
    const void *bias;
} Gemm;

/* Zero-initialised fields: batch 0 counts as 1, alpha must be set. Workspace of the library is
 * its own, not ctx_workspace. Plans are kept by shape. Ends the run where cuBLASLt cannot
 * (cuda_fail). */
void cuda_gemm(Ctx *c, const Gemm *g);

/* Frees what cuda_gemm keeps; NULL is allowed. */
void cublas_free(struct CublasLt *blas);

#endif
