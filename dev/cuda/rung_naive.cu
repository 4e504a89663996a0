/* Rung 1: a thread a query.
 *
 * The softmax is online: of the keys so far a thread knows the largest score (top), the sum of
 * 2^(score - top), and the sum of those times the rows of v. A larger score shrinks both sums. So
 * no score is ever written to memory, T x T of them least of all: that is what makes attention
 * "flash"; all that follows is about speed.
 *
 * Scores are in units of log 2: scale log2(e) is in q, and 2^x is one instruction.
 *
 * What it costs, a pair of query and key: 128 loads of 2 bytes, 64 + 64 conversions, 64 products
 * for the score and twice 64 for the sums. Every thread of a warp loads the same number of the same
 * key, so that a load serves 32 pairs; the load unit takes one a clock: 128 clocks for 32 pairs of
 * 256 flops, 64 flops a clock and multiprocessor. 132 of them at 1.7 GHz: 14 TFLOP/s, of 919. */
#include "dev/cuda/ladder.h"
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/flash_tile.cuh"

enum { D = HEAD_SIZE, THREADS = 128 };

static __global__ void __launch_bounds__(THREADS)
    naive_kernel(const bf16 *q, const bf16 *k, const bf16 *v, bf16 *out, int T, bool causal) {
    const int row = blockIdx.x * THREADS + threadIdx.x, end = causal ? row + 1 : T;
    const int64_t head = (int64_t)blockIdx.y * T * D, mine = head + (int64_t)row * D;
    float x[D], sum[D], top = -INFINITY, total = 0;
#pragma unroll
    for (int d = 0; d < D; d++) {
        x[d] = to_float(q[mine + d]) * (HEAD_SCALE * LOG2E);
        sum[d] = 0;
    }
    for (int key = 0; key < end; key++) {
        const int64_t at = head + (int64_t)key * D;
        float score = 0;
#pragma unroll
        for (int d = 0; d < D; d++) score += x[d] * to_float(k[at + d]);
        const float now = fmaxf(top, score);
        const float shrink = exp2_fast(top - now), p = exp2_fast(score - now);
        top = now;
        total = total * shrink + p;
#pragma unroll
        for (int d = 0; d < D; d++) sum[d] = sum[d] * shrink + p * to_float(v[at + d]);
    }
#pragma unroll
    for (int d = 0; d < D; d++) out[mine + d] = from_float<bf16>(sum[d] / total);
}

extern "C" bool rung_naive(Ctx *c, const RungArgs *a) {
    launch(c, naive_kernel, dim3((unsigned)(a->T / THREADS), (unsigned)a->heads), dim3(THREADS), 0,
           (const bf16 *)a->q, (const bf16 *)a->k, (const bf16 *)a->v, (bf16 *)a->out, a->T,
           a->causal);
    return true;
}
