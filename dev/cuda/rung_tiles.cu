/* Rung 2: tiles in shared memory.
 *
 * A block copies 32 keys and values to shared memory, as float32, and each of its 128 queries uses
 * all of them before the next tile comes: a number is loaded from memory and converted once for 128
 * queries instead of once for 32. A thread reads four numbers with one instruction, and the same
 * four as all others of its warp, which shared memory gives to all at once.
 *
 * Second, eight scores are made before the maximum is asked: the sums shrink once for eight keys.
 *
 * What it costs, a warp's 32 pairs: 128 + 8 products, which a multiprocessor's four schedulers
 * issue in 34 clocks, and 32 loads, which shared memory serves in 32, for 8.2 kflop. So it is bound
 * by what the FMA units can do at all, 256 flops a clock, 57 TFLOP/s; expect half of it. */
#include "dev/cuda/ladder.h"
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/flash_tile.cuh"

enum { D = HEAD_SIZE, THREADS = 128, KEYS = 32, STEP = 8 };

struct Tile {
    alignas(16) float k[KEYS][D], v[KEYS][D];
};

static __device__ void load_rows(float (*to)[D], const bf16 *from) {
    for (int i = threadIdx.x; i < KEYS * D / 8; i += THREADS) {
        const Pack<bf16> x = load_pack(from + 8 * i);
        for (int e = 0; e < 8; e++) to[i / (D / 8)][i % (D / 8) * 8 + e] = to_float(x.at[e]);
    }
}

static __global__ void __launch_bounds__(THREADS)
    tiles_kernel(const bf16 *q, const bf16 *k, const bf16 *v, bf16 *out, int T, bool causal) {
    __shared__ Tile tile;
    const int row = blockIdx.x * THREADS + threadIdx.x, last = (blockIdx.x + 1) * THREADS;
    const int64_t head = (int64_t)blockIdx.y * T * D, mine = head + (int64_t)row * D;
    float x[D], sum[D], top = -INFINITY, total = 0;
#pragma unroll
    for (int d = 0; d < D; d++) {
        x[d] = to_float(q[mine + d]) * (HEAD_SCALE * LOG2E);
        sum[d] = 0;
    }
    for (int first = 0; first < (causal ? last : T); first += KEYS) {
        __syncthreads(); /* all have done with the tile before */
        load_rows(tile.k, k + head + (int64_t)first * D);
        load_rows(tile.v, v + head + (int64_t)first * D);
        __syncthreads();
        for (int step = 0; step < KEYS; step += STEP) {
            float p[STEP], now = top;
#pragma unroll
            for (int j = 0; j < STEP; j++) {
                p[j] = 0;
#pragma unroll
                for (int d = 0; d < D; d++) p[j] += x[d] * tile.k[step + j][d];
                if (causal && first + step + j > row) p[j] = -INFINITY;
                now = fmaxf(now, p[j]);
            }
            const float shrink = exp2_fast(top - now);
            top = now;
            total *= shrink;
#pragma unroll
            for (int d = 0; d < D; d++) sum[d] *= shrink;
#pragma unroll
            for (int j = 0; j < STEP; j++) {
                p[j] = exp2_fast(p[j] - top);
                total += p[j];
#pragma unroll
                for (int d = 0; d < D; d++) sum[d] += p[j] * tile.v[step + j][d];
            }
        }
    }
#pragma unroll
    for (int d = 0; d < D; d++) out[mine + d] = from_float<bf16>(sum[d] / total);
}

extern "C" bool rung_tiles(Ctx *c, const RungArgs *a) {
    launch(c, tiles_kernel, dim3((unsigned)(a->T / THREADS), (unsigned)a->heads), dim3(THREADS), 0,
           (const bf16 *)a->q, (const bf16 *)a->k, (const bf16 *)a->v, (bf16 *)a->out, a->T,
           a->causal);
    return true;
}
