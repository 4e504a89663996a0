/* Layer normalisation of rows. Forward reads and writes each element once; backward reads x and dy
 * and writes dx, and each block of rows leaves its sums for weight and bias. */
#include "kernels/cuda/norm.cuh"

template <typename T, typename S>
static __global__ void layernorm_forward(T *y, float *mean, float *rstd, const T *x,
                                         const float *weight, const float *bias, int64_t rows,
                                         int C, float eps) {
    const RowPlace p = row_place<S>(rows, C);
    Pack<T, S::N> row[S::SLOTS];
    float sum = 0, squares = 0;
    x += p.row * C;
    each_pack<S>(p, [&](int j, int k) {
        const Pack<T, S::N> v = load_pack<S::N>(x + j);
        if (S::kept) row[k] = v;
        for (int i = 0; i < S::N; i++) sum += to_float(v.at[i]);
    });
    const float m = warp_sum<S::LANES>(sum) / (float)C;
    each_pack<S>(p, [&](int j, int k) {
        const Pack<T, S::N> v = row_pack<S>(row, x, j, k);
        for (int i = 0; i < S::N; i++) squares += (to_float(v.at[i]) - m) * (to_float(v.at[i]) - m);
    });
    const float s = 1.0f / sqrtf(warp_sum<S::LANES>(squares) / (float)C + eps);
    if (p.cols && p.lane == 0) {
        mean[p.row] = m;
        rstd[p.row] = s;
    }
    each_pack<S>(p, [&](int j, int k) {
        const Pack<T, S::N> v = row_pack<S>(row, x, j, k);
        const Pack<float, S::N> w = load_pack<S::N>(weight + j), b = load_pack<S::N>(bias + j);
        Pack<float, S::N> out;
        for (int i = 0; i < S::N; i++) out.at[i] = (to_float(v.at[i]) - m) * s * w.at[i] + b.at[i];
        put_pack(y + p.row * C + j, out, false);
    });
}

void cuda_layernorm_forward(Ctx *c, const OpCall *o) {
    with_dtype(c->dtype, [&](auto zero) {
        typedef decltype(zero) T;
        const int64_t rows = tensor_rows(o->in[0]);
        const int C = (int)tensor_cols(o->in[0]);
        with_row<T>(C, [&](auto shape) {
            typedef decltype(shape) S;
            launch(c, layernorm_forward<T, S>, grid_for(rows * S::LANES), BLOCK, 0,
                   (T *)o->out[0]->data, (float *)o->saved[0]->data, (float *)o->saved[1]->data,
                   (const T *)o->in[0]->data, (const float *)o->in[1]->data,
                   (const float *)o->in[2]->data, rows, C, o->attr.eps);
        });
    });
}

void cuda_layernorm_backward(Ctx *c, const OpCall *o) {
    /* few rows: enough blocks for all multiprocessors; many: partial sums that are few beside x */
    enum { MIN_BLOCK_ROWS = 32, MAX_BLOCKS = 2048 };
    const int64_t rows = tensor_rows(o->in[0]);
    const int C = (int)tensor_cols(o->in[0]);
    int64_t block_rows = div_up(rows, MAX_BLOCKS);
    if (block_rows < MIN_BLOCK_ROWS) block_rows = MIN_BLOCK_ROWS;
    const int64_t blocks = div_up(rows, block_rows);
    float *partial = (float *)ctx_workspace(c, sizeof(float) * (size_t)(2 * blocks * C));
    with_dtype(c->dtype, [&](auto zero) {
        typedef decltype(zero) T;
        NormBackward<T> p = {};
        p.x = (const T *)o->in[0]->data;
        p.dy = (const T *)o->out[0]->grad;
        p.weight = (const float *)o->in[1]->data;
        p.mean = (const float *)o->saved[0]->data;
        p.rstd = (const float *)o->saved[1]->data;
        p.dx = grad_of<T>(o->in[0]);
        p.add_x = o->in[0]->grad_set;
        p.partial = partial;
        p.rows = rows;
        p.block_rows = (int)block_rows;
        p.C = C;
        launch_norm_backward<T, false>(c, blocks, p);
    });
    cuda_sum_partials(c, partial, blocks, C, o->in[1], o->in[2]);
}
