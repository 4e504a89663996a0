/* What rows.cuh declares. */
#include "kernels/cuda/rows.cuh"

/* ---- picking: each number is read once and written once ---- */

/* Rows of cols packs. */
template <typename V>
static __global__ void pick_rows(V *to, const V *from, const int32_t *index, int64_t n,
                                 int64_t cols, int64_t rows) {
    const int64_t i = global_thread();
    if (i >= n) return;
    const int64_t r = i / cols, picked = index[r];
    if (picked < 0 || picked >= rows) __trap();
    to[i] = from[picked * cols + i - r * cols];
}

void cuda_pick_rows(Ctx *c, const Tensor *out, const Tensor *table, const Tensor *index) {
    const int64_t C = tensor_cols(table), n = tensor_numel(out);
    with_pack(out->dtype, C, [&](auto pack) {
        typedef decltype(pack) V;
        launch(c, pick_rows<V>, grid_for(n / V::N), BLOCK, 0, (V *)out->data,
               (const V *)table->data, (const int32_t *)index->data, n / V::N, C / V::N,
               tensor_rows(table));
    });
}

/* ---- sums ---- */

/* Where the sums of a half of the columns go; NULL: nowhere. */
typedef struct SumTarget {
    float *to;
    bool add;
} SumTarget;

/* A warp takes 32 columns of every blockDim.y-th row; then the warps' sums are added in order. */
static __global__ void sum_partials(const float *partial, int64_t blocks, int64_t n, int64_t cols,
                                    SumTarget first, SumTarget second) {
    __shared__ float part[WARP][WARP + 1];
    const int lane = (int)threadIdx.x, warp = (int)threadIdx.y;
    const int64_t j = (int64_t)blockIdx.x * WARP + lane;
    float sum = 0;
    if (j < cols) {
#pragma unroll 4
        for (int64_t b = warp; b < blocks; b += blockDim.y) sum += partial[b * cols + j];
    }
    part[warp][lane] = sum;
    __syncthreads();
    if (warp || j >= cols) return;
    for (int w = 1; w < (int)blockDim.y; w++) sum += part[w][lane];
    const SumTarget target = j < n ? first : second;
    if (target.to) put(target.to + j % n, sum, target.add);
}

static SumTarget target_of(const Tensor *param) {
    return param ? SumTarget{grad_of<float>(param), param->grad_set} : SumTarget{};
}

void cuda_sum_partials(Ctx *c, const float *partial, int64_t blocks, int64_t n, const Tensor *first,
                       const Tensor *second) {
    const SumTarget to = target_of(first), to2 = target_of(second);
    if (!to.to && !to2.to) return;
    const int64_t cols = second ? 2 * n : n;
    const unsigned warps = blocks < WARP ? (unsigned)blocks : (unsigned)WARP;
    launch(c, sum_partials, (unsigned)div_up(cols, WARP), dim3(WARP, warps), 0, partial, blocks, n,
           cols, to, to2);
}

/* Counted in packs. */
template <typename V>
struct StridedRows {
    const V *x;
    int64_t stride;
};

template <typename V>
static __device__ __forceinline__ void add_row(StridedRows<V> rows, int64_t r, int64_t j,
                                               Pack<float, V::N> *sum) {
    const V x = rows.x[r * rows.stride + j];
    for (int k = 0; k < V::N; k++) sum->at[k] += to_float(x.at[k]);
}

void cuda_sum_rows(Ctx *c, DType dtype, const void *x, int64_t stride, int64_t rows,
                   const Tensor *param) {
    const int64_t cols = tensor_numel(param);
    with_pack(dtype, stride | cols, [&](auto pack) {
        typedef decltype(pack) V;
        const StridedRows<V> all = {(const V *)x, stride / V::N};
        sum_rows<V>(c, all, rows, cols / V::N, SUM_BLOCKS, param);
    });
}
