/* Matrix products by oneDNN, and sums over all elements. */
#include <dnnl.h>
#include <omp.h>

#include "kernels/cpu/cpu.h"

void ISA_FN(gemm)(Ctx *c, bool ta, bool tb, int64_t M, int64_t N, int64_t K, float alpha,
                  const float *A, int64_t lda, const float *B, int64_t ldb, float beta, float *C,
                  int64_t ldc) {
    omp_set_num_threads(c->n_threads); /* oneDNN takes OpenMP's default */
    dnnl_status_t s =
        dnnl_sgemm(ta ? 'T' : 'N', tb ? 'T' : 'N', M, N, K, alpha, A, lda, B, ldb, beta, C, ldc);
    CHECK(s == dnnl_success, "oneDNN: sgemm of (%lld, %lld, %lld) failed with status %d",
          (long long)M, (long long)N, (long long)K, (int)s);
}

double ISA_FN(sum_squares)(Ctx *c, const float *x, int64_t n) {
    double partial[MAX_ROW_BLOCKS], sum = 0;
    const RowBlocks b = row_blocks(n);
#pragma omp parallel for num_threads(c->n_threads)
    for (int64_t i = 0; i < b.n; i++) {
        const int64_t end = block_end(&b, i);
        double s = 0;
#pragma omp simd reduction(+ : s)
        for (int64_t j = i * b.size; j < end; j++) s += (double)x[j] * (double)x[j];
        partial[i] = s;
    }
    for (int64_t i = 0; i < b.n; i++) sum += partial[i];
    return sum;
}

void ISA_FN(sum_partials)(Ctx *c, const float *partial, int64_t blocks, int64_t cols, float *dst,
                          bool add) {
    enum { STRIP = 64 };
#pragma omp parallel for num_threads(c->n_threads) if (blocks * cols > 16384)
    for (int64_t j0 = 0; j0 < cols; j0 += STRIP) {
        const int64_t n = cols - j0 < STRIP ? cols - j0 : STRIP;
        float s[STRIP] = {0};
        for (int64_t i = 0; i < blocks; i++) {
            const float *p = partial + i * cols + j0;
#pragma omp simd
            for (int64_t j = 0; j < n; j++) s[j] += p[j];
        }
        for (int64_t j = 0; j < n; j++) dst[j0 + j] = add ? dst[j0 + j] + s[j] : s[j];
    }
}

void ISA_FN(sum_rows)(Ctx *c, const float *x, int64_t rows, int64_t cols, float *dst, bool add) {
    const RowBlocks b = row_blocks(rows);
    float *partial = ctx_workspace(c, sizeof(float) * (size_t)(b.n * cols));
#pragma omp parallel for num_threads(c->n_threads)
    for (int64_t i = 0; i < b.n; i++) {
        float *p = partial + i * cols;
        memcpy(p, x + i * b.size * cols, sizeof(float) * (size_t)cols);
        for (int64_t r = i * b.size + 1; r < block_end(&b, i); r++) {
            const float *row = x + r * cols;
#pragma omp simd
            for (int64_t j = 0; j < cols; j++) p[j] += row[j];
        }
    }
    ISA_FN(sum_partials)(c, partial, b.n, cols, dst, add);
}
