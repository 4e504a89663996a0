/* The plain device: one table of its kernels. */
#include <string.h>

#include "kernels/device.h"
#include "kernels/plain/plain.h"

#define BOTH(NAME, name) [OP_##NAME] = {plain_##name##_forward, plain_##name##_backward},
#define FORWARD(NAME, name) [OP_##NAME] = {plain_##name##_forward, NULL},
static const OpKernel ops[OP_COUNT] = {OPS_WITH_BACKWARD(BOTH) OPS_WITHOUT_BACKWARD(FORWARD)};

static void gemm(Ctx *c, bool ta, bool tb, int64_t M, int64_t N, int64_t K, float alpha,
                 const float *A, int64_t lda, const float *B, int64_t ldb, float beta, float *C,
                 int64_t ldc) {
    (void)c;
    for (int64_t i = 0; i < M; i++)
        for (int64_t j = 0; j < N; j++) {
            float sum = 0;
            for (int64_t k = 0; k < K; k++)
                sum += A[ta ? k * lda + i : i * lda + k] * B[tb ? j * ldb + k : k * ldb + j];
            C[i * ldc + j] = alpha * sum + (beta == 0 ? 0 : beta * C[i * ldc + j]);
        }
}

static double sum_squares(Ctx *c, const float *x, int64_t n) {
    (void)c;
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    return sum;
}

const Device plain_device = {
    .name = "plain", .ops = ops, .gemm = gemm, .sum_squares = sum_squares, .optim = &plain_optim};
