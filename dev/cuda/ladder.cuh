/* What does not change from the first rung with tensor cores to the last: the online softmax of a
 * warp's 16 rows, which lie in fragments. Lane 4 g + t has of rows g and g + 8 (half 0 and 1) the
 * columns 2t and 2t + 1 of every 8: s[n][2 half + e] is column 8 n + 2 t + e. */
#ifndef DEV_CUDA_LADDER_CUH
#define DEV_CUDA_LADDER_CUH

#include "dev/cuda/ladder.h"
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/flash_tile.cuh"

/* Of a lane's two rows: the weighted sum of values, the largest score in units of log 2, and this
 * lane's part of the sum of 2^(score - top). */
struct Rows {
    float out[HEAD_SIZE / 8][4], top[2], sum[2];
};

static __device__ __forceinline__ void rows_begin(Rows &r) {
    r.top[0] = r.top[1] = -INFINITY;
    r.sum[0] = r.sum[1] = 0;
#pragma unroll
    for (int n = 0; n < HEAD_SIZE / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) r.out[n][e] = 0;
}

/* s = -inf where key first + column is later than the row; `row` is the warp's first. */
template <int N>
static __device__ __forceinline__ void rows_hide(float (&s)[N][4], int row, int first) {
    const int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            if (first + 8 * n + 2 * t + e % 2 > row + g + e / 2 * 8) s[n][e] = -INFINITY;
}

/* s becomes 2^(scale s - top); top grows where it must, and so much the sum shrinks, and is out to
 * shrink: rows_shrink. */
template <int N>
static __device__ __forceinline__ void rows_softmax(Rows &r, float (&s)[N][4], float (&shrink)[2]) {
    const float scale = HEAD_SCALE * LOG2E;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float most = -INFINITY;
#pragma unroll
        for (int n = 0; n < N; n++) most = fmaxf(most, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
        most = fmaxf(most, __shfl_xor_sync(FULL_WARP, most, 1)); /* a row is spread over 4 lanes */
        most = fmaxf(most, __shfl_xor_sync(FULL_WARP, most, 2));
        const float top = fmaxf(r.top[half], scale * most);
        shrink[half] = exp2_fast(r.top[half] - top);
        r.top[half] = top;
        r.sum[half] *= shrink[half];
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int e = 2 * half; e < 2 * half + 2; e++) {
                s[n][e] = exp2_fast(fmaf(s[n][e], scale, -top));
                r.sum[half] += s[n][e];
            }
    }
}

static __device__ __forceinline__ void rows_shrink(Rows &r, const float (&shrink)[2]) {
#pragma unroll
    for (int n = 0; n < HEAD_SIZE / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) r.out[n][e] *= shrink[e / 2];
}

/* The warp's 16 rows of out, to `to`. */
static __device__ __forceinline__ void rows_store(const Rows &r, bf16 *to) {
    const int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum = r.sum[half];
        sum += __shfl_xor_sync(FULL_WARP, sum, 1);
        sum += __shfl_xor_sync(FULL_WARP, sum, 2);
        uint32_t *row = (uint32_t *)(to + (g + 8 * half) * HEAD_SIZE + 2 * t);
#pragma unroll
        for (int n = 0; n < HEAD_SIZE / 8; n++)
            row[4 * n] = pack_bf16(r.out[n][2 * half] / sum, r.out[n][2 * half + 1] / sum);
    }
}

#endif
