/* The plain device: one table of its kernels. */
#include <string.h>

#include "kernels/device.h"
#include "kernels/plain/plain.h"
#include "llmc_like/optim.h"

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

/* It has no backends of its own: those of the portable CPU. */
#define EXTERN(id, flag, text) extern const AttnBackend attn_##id##_portable;
ATTN_LIST(EXTERN)
#define ADDRESS(id, flag, text) &attn_##id##_portable,
static const AttnBackend *const attn[] = {ATTN_LIST(ADDRESS)};

static void accumulate(Ctx *c, DType dtype, void *to, const void *from, int64_t n) {
    (void)c;
    for (int64_t i = 0; i < n; i++)
        if (dtype == DT_F64)
            ((double *)to)[i] += ((const double *)from)[i];
        else
            ((float *)to)[i] += ((const float *)from)[i];
}

const Device plain_device = {
    .name = "plain",
    .memory = &host_memory,
    .ops = ops,
    .attn = attn,
    .accumulate = accumulate,
    .update = optim_update,
    .update_workspace = optim_workspace,
    .gemm = gemm,
    .sum_squares = sum_squares,
    .optim = &plain_optim,
};
