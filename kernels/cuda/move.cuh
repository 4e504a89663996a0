/* Rows of numbers that move, are picked, or are summed, 16 bytes a load where their lengths allow
 * it. Tensors begin at multiples of 256 bytes, so a row begins at a multiple of 16 when all rows
 * before it have such lengths. */
#ifndef KERNELS_CUDA_MOVE_CUH
#define KERNELS_CUDA_MOVE_CUH

#include "kernels/cuda/cuda.cuh"

/* V neighbours of a row, moved at once. */
template <typename T, int V>
struct alignas(V * sizeof(T)) Piece {
    typedef T Type;
    enum { N = V };
    T at[V];
};

/* Calls f with a piece of the dtype: of 16 bytes where `lengths` (of rows, and what lies between
 * them; or'ed together) are multiples of that, else of one number. */
template <typename F>
static inline void with_piece(DType dtype, int64_t lengths, F f) {
    with_dtype(dtype, [=](auto zero) {
        typedef decltype(zero) T;
        enum { N = Pack<T>::N };
        if (lengths % N == 0)
            f(Piece<T, N>());
        else
            f(Piece<T, 1>());
    });
}

/* Of a parameter (llmc_like/tape.h), or of anything else. */
static inline DType grad_dtype(const Tensor *t) { return t->is_param ? DT_F32 : t->dtype; }

/* *to = or += value, rounded once. */
template <typename T, typename S, int V>
static __device__ __forceinline__ void put(Piece<T, V> *to, const Piece<S, V> &value, bool add) {
    Piece<T, V> sum;
    if (add) sum = *to;
    for (int j = 0; j < V; j++) {
        const float x = to_float(value.at[j]);
        sum.at[j] = from_float<T>(add ? to_float(sum.at[j]) + x : x);
    }
    *to = sum;
}

/* to[r] = from[index[r]], rows of cols pieces. An index outside 0 .. rows - 1 is a trap, which ends
 * the run at the next checked call. */
template <typename Row>
static __global__ void pick_rows(Row *to, const Row *from, const int32_t *index, int64_t n,
                                 int64_t cols, int64_t rows) {
    const int64_t i = global_thread();
    if (i >= n) return;
    const int64_t r = i / cols, picked = index[r];
    if (picked < 0 || picked >= rows) __trap();
    to[i] = from[picked * cols + i - r * cols];
}

/* ---- sums over rows ----
 *
 * A block sums a chunk of rows for 32 columns: a warp takes every eighth row, and the eight sums
 * are added in order. Where there are several chunks a second launch adds theirs. Chunks follow
 * from the number of rows alone, so a sum has the same bits each time. */

enum { SUM_WARPS = 8, SUM_ROWS = 128, SUM_CHUNKS = 256 };

struct FloatRows {
    const float *x;
    int64_t cols;
};

/* The number in column j of row i, overloaded for each kind of rows; NULL: none. */
static __device__ __forceinline__ const float *number_at(FloatRows rows, int64_t i, int64_t j) {
    return rows.x + i * rows.cols + j;
}

/* to (chunks, cols) = or += the sums over rows chunk * size .. */
template <typename Rows, typename T>
static __global__ void sum_chunk(Rows rows, int64_t n, int64_t size, int64_t cols, T *to,
                                 bool add) {
    __shared__ float part[SUM_WARPS][WARP];
    const int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
    const int64_t j = (int64_t)blockIdx.x * WARP + lane, begin = blockIdx.y * size;
    const int64_t end = j >= cols ? 0 : begin + size < n ? begin + size : n;
    float sum = 0;
#pragma unroll 4
    for (int64_t i = begin + warp; i < end; i += SUM_WARPS) {
        const auto *x = number_at(rows, i, j);
        if (x) sum += to_float(*x);
    }
    part[warp][lane] = sum;
    __syncthreads();
    if (warp || j >= cols) return;
    Piece<float, 1> total = {0};
    for (int w = 0; w < SUM_WARPS; w++) total.at[0] += part[w][lane];
    put((Piece<T, 1> *)to + blockIdx.y * cols + j, total, add);
}

/* t's gradient, of cols numbers, = or += the sums over n rows, `size` of them a block. */
template <typename Rows>
static inline void sum_rows(Ctx *c, Rows rows, int64_t n, int64_t size, int64_t cols,
                            const Tensor *t) {
    const int64_t chunks = (n + size - 1) / size;
    const unsigned tiles = (unsigned)((cols + WARP - 1) / WARP);
    const dim3 block(SUM_WARPS * WARP);
    with_dtype(grad_dtype(t), [=](auto zero) {
        typedef decltype(zero) T;
        T *to = (T *)t->grad;
        if (chunks == 1) {
            launch(c, sum_chunk<Rows, T>, dim3(tiles), block, 0, rows, n, size, cols, to,
                   t->grad_set);
            return;
        }
        const FloatRows part = {(float *)ctx_workspace(c, sizeof(float) * (size_t)(chunks * cols)),
                                cols};
        launch(c, sum_chunk<Rows, float>, dim3(tiles, (unsigned)chunks), block, 0, rows, n, size,
               cols, (float *)part.x, false);
        launch(c, sum_chunk<FloatRows, T>, dim3(tiles), block, 0, part, chunks, chunks, cols, to,
               t->grad_set);
    });
}

/* Rows a block, so that there are at most SUM_CHUNKS. */
static inline int64_t sum_size(int64_t n) {
    const int64_t size = (n + SUM_CHUNKS - 1) / SUM_CHUNKS;
    return size < SUM_ROWS ? (int64_t)SUM_ROWS : size;
}

#endif
