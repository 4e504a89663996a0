/* The CPU's kernels. Every source in this folder is compiled once for each instruction set, with
 * -DISA=avx512, avx2 or portable; ISA_FN(name) gives a function that set's suffix, and the context
 * chooses one table of them at run time (kernels/device.c).
 *
 * Rules for kernels here. Input is valid: ops.c has checked it. Threads: `omp parallel for
 * num_threads(c->n_threads)` over rows; a result must not depend on how many there are, so a sum
 * over rows goes through RowBlocks below. Scratch comes from ctx_workspace, never from malloc.
 * Float32 throughout. Gradients: overwrite where grad_set is false, else add (llmc_like/tape.h). */
#ifndef KERNELS_CPU_CPU_H
#define KERNELS_CPU_CPU_H

#include <stdint.h>
#include <string.h>

#include "kernels/ops.h"

#define ISA_PASTE(name, isa) name##_##isa
#define ISA_EXPAND(name, isa) ISA_PASTE(name, isa)
#define ISA_FN(name) ISA_EXPAND(name, ISA) /* linear_forward -> linear_forward_avx512 */

#define ISA_FORWARD(NAME, name) void ISA_FN(name##_forward)(Ctx * c, const OpCall *o);
#define ISA_BACKWARD(NAME, name) void ISA_FN(name##_backward)(Ctx * c, const OpCall *o);
OP_LIST(ISA_FORWARD)
OPS_WITH_BACKWARD(ISA_BACKWARD)

extern const struct OptimKernels ISA_FN(cpu_optim); /* optim.c */

/* Device.gemm and Device.sum_squares, see llmc_like/ctx.h. */
void ISA_FN(gemm)(Ctx *c, bool ta, bool tb, int64_t M, int64_t N, int64_t K, float alpha,
                  const float *A, int64_t lda, const float *B, int64_t ldb, float beta, float *C,
                  int64_t ldc);
double ISA_FN(sum_squares)(Ctx *c, const float *x, int64_t n);

/* One thread, n numbers. y = act(x), in place if they are the same; and d = d times act's slope at
 * x, for which ReLU takes act(x) as well. */
void ISA_FN(activate)(Activation act, int64_t n, const float *x, float *y);
void ISA_FN(scale_by_slope)(Activation act, int64_t n, const float *x, float *d);

/* y (rows, N) = act(x (rows, K) W' + bias), or (add) y += x W'. All contiguous. Takes
 * ctx_workspace. Whatever goes before and after the product goes block by block, while a block is
 * in the cache. Only the last rows, fewer than a block, may depend on the number of threads in
 * their last bits, since oneDNN's sgemm does. */
typedef struct RowProduct {
    int64_t rows, N, K;
    float *x;       /* written only where slope_at is given */
    const float *w; /* (N, K), or (transposed) stored as (K, N) */
    bool transposed;
    const float *bias; /* (N), or NULL */
    float *y;
    bool add;
    Activation act;
    const float *residual; /* (rows, N), added to y after act; NULL: none */
    float *sum;            /* (rows, N): x W' + bias is kept here; NULL: not wanted */
    const float *slope_at; /* (rows, K): first x = x times act's slope there, and y has no act */
    float *sums; /* (K): = or (add_sums) += the column sums of x, on the way; NULL: not wanted */
    bool add_sums;
} RowProduct;
void ISA_FN(row_product)(Ctx *c, const RowProduct *a);

/* dst (cols) = or += the column sums of x (rows, cols): the gradient of a bias. */
void ISA_FN(sum_rows)(Ctx *c, const float *x, int64_t rows, int64_t cols, float *dst, bool add);

/* A sum over rows that does not depend on the number of threads: rows are cut into at most
 * MAX_ROW_BLOCKS blocks by their number alone, each block has a partial sum of its own, and
 * partials are added in order. */
enum { MAX_ROW_BLOCKS = 64, MIN_BLOCK_ROWS = 16 };

typedef struct RowBlocks {
    int64_t rows, size, n; /* block i has rows i size .. min((i + 1) size, rows) - 1 */
} RowBlocks;

static inline RowBlocks row_blocks(int64_t rows) {
    int64_t size = (rows + MAX_ROW_BLOCKS - 1) / MAX_ROW_BLOCKS;
    if (size < MIN_BLOCK_ROWS) size = MIN_BLOCK_ROWS;
    return (RowBlocks){rows, size, (rows + size - 1) / size};
}

static inline int64_t block_end(const RowBlocks *b, int64_t i) {
    return (i + 1) * b->size < b->rows ? (i + 1) * b->size : b->rows;
}

/* dst (cols) = or += the sum of partial (blocks, cols), in order. */
void ISA_FN(sum_partials)(Ctx *c, const float *partial, int64_t blocks, int64_t cols, float *dst,
                          bool add);

/* e^x to 1e-7 relative without a branch, so that loops over it vectorise; NaN gives NaN. x is cut
 * to
 * [-60, 60], which is enough for a sigmoid: e^-60 is 1e-26. (Up to where e^x ends, 88, would be as
 * easy, but compilers work out the two ends of silu apart, for all lanes, and there a number times
 * e^-88 is denormal: 20 times slower.)
 * e^x = 2^n e^r with n = round(x / ln 2), |r| <= ln 2 / 2; e^r by its Taylor polynomial, whose
 * first term left out is r^8 / 8! < 6e-9. Adding 1.5 * 2^23 rounds to an integer and leaves it in
 * the low bits. */
static inline float exp_cut(float x) {
    const float round_bias = 12582912.0f;
    x = x < -60.0f ? -60.0f : x;
    x = x > 60.0f ? 60.0f : x;
    const float biased = x * 1.44269504f + round_bias, n = biased - round_bias;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f; /* ln 2 in two parts */
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    uint32_t bits; /* memcpy, which is a move of registers, and unlike a union vectorises */
    memcpy(&bits, &biased, sizeof bits);
    bits = (bits + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

/* Below this many elements a parallel region costs more than it gains. */
enum { PARALLEL_FROM = 8192 };

/* Before a loop over n elements i: threads and vectors. */
#define DO_PRAGMA(text) _Pragma(#text)
#define EACH(n) \
    DO_PRAGMA(omp parallel for simd num_threads(c->n_threads) if (parallel : (n) >= PARALLEL_FROM))

/* A backward's store. `add` is the same for the whole loop, and the compiler makes two loops of it;
 * where the body is long it does not, nor does it vectorise then: there the source has two. */
static inline void put(float *dst, float value, bool add) { *dst = add ? *dst + value : value; }

static inline float sigmoid(float x) { return 1.0f / (1.0f + exp_cut(-x)); }

#endif
