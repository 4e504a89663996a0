/* Rows: picked by number, and their columns summed in an order that follows from the shape alone,
 * so that a sum has the same bits each time. (Losses are summed in double: loss.cuh.)
 *
 *   sum_columns         what the threads of a block have, through shared memory
 *   sum_rows            many rows: in blocks, which leave a row of partial sums each
 *   cuda_sum_partials   adds those rows; also where another kernel left them */
#ifndef KERNELS_CUDA_ROWS_CUH
#define KERNELS_CUDA_ROWS_CUH

#include "kernels/cuda/cuda.cuh"

/* Row i of out = row index[i] of table. An index outside the table is a trap, which ends the run at
 * the next checked call. (rows.cu, as the next two) */
void cuda_pick_rows(Ctx *c, const Tensor *out, const Tensor *table, const Tensor *index);

/* The gradients of two parameters of n numbers = or += the sums over the rows of partial
 * (blocks, 2 n), which has the first one's columns, then the second's. NULL: no second one, and
 * partial is (blocks, n). A gradient that is NULL is not wanted. */
void cuda_sum_partials(Ctx *c, const float *partial, int64_t blocks, int64_t n, const Tensor *first,
                       const Tensor *second);

/* The gradient of a parameter = or += the sum over `rows` rows of x, which begin `stride` numbers
 * apart and are as long as the parameter. x: what a tensor has from a multiple of its rows' length
 * on. Takes ctx_workspace. */
void cuda_sum_rows(Ctx *c, DType dtype, const void *x, int64_t stride, int64_t rows,
                   const Tensor *param);

/* `lanes` neighbouring threads share a row of width = lanes PACKS N columns, of which a thread has
 * PACKS packs, lanes N columns apart. The sums over a block's rows come to total[0 .. width), rows
 * in order; threads that are left over behind the last row do not count. total: shared memory,
 * PACKS N floats a thread. All threads call it. */
template <int PACKS, int N>
static __device__ __forceinline__ void sum_columns(float *total, const float *v, int lanes) {
    const int width = lanes * PACKS * N, lane = (int)threadIdx.x % lanes;
    const int rows = (int)blockDim.x / lanes;
    float *mine = total + (int)threadIdx.x / lanes * width;
    __syncthreads(); /* the sums of the call before have been read */
    for (int k = 0; k < PACKS; k++)
        for (int i = 0; i < N; i++) mine[(k * lanes + lane) * N + i] = v[k * N + i];
    __syncthreads();
    for (int j = (int)threadIdx.x; j < width; j += (int)blockDim.x) {
        float sum = total[j];
        for (int r = 1; r < rows; r++) sum += total[r * width + j];
        total[j] = sum;
    }
    __syncthreads();
}

/* ---- many rows ---- */

enum {
    FEW_ROWS = 128,   /* one block takes them */
    MIN_ROWS = 32,    /* else a block takes these at least, */
    SUM_BLOCKS = 512, /* and there are these at most */
    WIDE_TILE = 64,   /* threads across a block's columns: 1 KB of a row, */
    NARROW_TILE = 8   /* or a line of 128 bytes, where one block has all rows: for more blocks */
};

/* How rows are shared out: a block takes block_rows of them in a tile of `width` packs. */
typedef struct RowBlocks {
    int64_t rows, cols; /* cols: in packs */
    int64_t block_rows;
    int width;
} RowBlocks;

/* to (blocks, columns) = or (add) += a block's sums; NULL: what add_row does on the way is all that
 * is wanted. add_row(rows, r, j, &sum) adds pack j of row r, and is overloaded for each kind of
 * rows. */
template <typename V, typename Rows>
static __global__ void sum_block_rows(Rows rows, RowBlocks s, float *to, bool add) {
    __shared__ float total[BLOCK * V::N];
    const int lane = (int)threadIdx.x % s.width, first = (int)threadIdx.x / s.width;
    const int step = BLOCK / s.width;
    const int64_t tile = (int64_t)blockIdx.x * s.width, j = tile + lane;
    const int64_t begin = blockIdx.y * s.block_rows, end = min(begin + s.block_rows, s.rows);
    Pack<float, V::N> sum = {};
    if (first < step && j < s.cols) {
#pragma unroll 4
        for (int64_t r = begin + first; r < end; r += step) add_row(rows, r, j, &sum);
    }
    if (!to) return;
    sum_columns<1, V::N>(total, sum.at, s.width);
    for (int i = (int)threadIdx.x; i < s.width * V::N && tile * V::N + i < s.cols * V::N;
         i += BLOCK)
        put(to + (blockIdx.y * s.cols + tile) * V::N + i, total[i], add);
}

/* The gradient of a parameter = or += the sums over n rows of cols packs; NULL: not wanted. Blocks
 * are most_blocks at most: SUM_BLOCKS, or 1 where partial sums would take too much memory. */
template <typename V, typename Rows>
static inline void sum_rows(Ctx *c, Rows rows, int64_t n, int64_t cols, int most_blocks,
                            const Tensor *param) {
    const bool whole = n <= FEW_ROWS || most_blocks == 1;
    const int64_t share = div_up(n, most_blocks);
    RowBlocks s = {n, cols, whole ? n : share < MIN_ROWS ? (int64_t)MIN_ROWS : share, 0};
    s.width = (int)div_up(cols, div_up(cols, whole ? NARROW_TILE : WIDE_TILE));
    const int64_t blocks = whole ? 1 : div_up(n, s.block_rows);
    float *to = param ? grad_of<float>(param) : NULL;
    const bool partial = to && !whole;
    if (partial) to = (float *)ctx_workspace(c, sizeof(float) * (size_t)(blocks * cols * V::N));
    const dim3 grid((unsigned)div_up(cols, s.width), (unsigned)blocks);
    launch(c, sum_block_rows<V, Rows>, grid, BLOCK, 0, rows, s, to,
           !partial && to && param->grad_set);
    if (partial) cuda_sum_partials(c, to, blocks, cols * V::N, param, NULL);
}

#endif
