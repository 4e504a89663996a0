/* Layer normalisation of rows. Forward reads and writes each element once; backward reads x and dy
 * and writes dx, and each block of rows leaves its sums for weight and bias. */
#include "kernels/cuda/norm.cuh"

template <typename T, typename S>
static __global__ void layernorm_forward(T *y, float *mean, float *rstd, const T *x,
                                         const float *weight, const float *bias, int64_t rows,
                                         int C, float eps) {
    const RowPlace p = row_place<S>(rows, C);
    Part<T, S::N> row[S::SLOTS];
    float sum = 0, squares = 0;
    for (int k = 0; k < p.rounds; k++) {
        const int j = row_column<S>(p, k);
        if (j >= p.cols) continue;
        Part<T, S::N> &v = row[S::kept ? k : 0];
        v = load_part<S::N>(x + p.row * C + j);
        for (int i = 0; i < S::N; i++) sum += to_float(v.at[i]);
    }
    const float m = lanes_sum<S::LANES>(sum) / (float)C;
    for (int k = 0; k < p.rounds; k++) {
        const int j = row_column<S>(p, k);
        if (j >= p.cols) continue;
        Part<T, S::N> &v = row[S::kept ? k : 0];
        if (!S::kept) v = load_part<S::N>(x + p.row * C + j);
        for (int i = 0; i < S::N; i++) squares += (to_float(v.at[i]) - m) * (to_float(v.at[i]) - m);
    }
    const float s = 1.0f / sqrtf(lanes_sum<S::LANES>(squares) / (float)C + eps);
    if (p.cols && p.lane == 0) {
        mean[p.row] = m;
        rstd[p.row] = s;
    }
    for (int k = 0; k < p.rounds; k++) {
        const int j = row_column<S>(p, k);
        if (j >= p.cols) continue;
        Part<T, S::N> &v = row[S::kept ? k : 0];
        if (!S::kept) v = load_part<S::N>(x + p.row * C + j);
        const Part<float, S::N> w = load_part<S::N>(weight + j), b = load_part<S::N>(bias + j);
        float out[S::N];
        for (int i = 0; i < S::N; i++) out[i] = (to_float(v.at[i]) - m) * s * w.at[i] + b.at[i];
        put_part<S::N>(y + p.row * C + j, out, false);
    }
}

void cuda_layernorm_forward(Ctx *c, const OpCall *o) {
    with_dtype(c->dtype, [&](auto t) {
        typedef decltype(t) T;
        const int64_t rows = tensor_rows(o->in[0]);
        const int C = (int)tensor_cols(o->in[0]);
        const T *x = (const T *)o->in[0]->data;
        const float *weight = (const float *)o->in[1]->data, *bias = (const float *)o->in[2]->data;
        T *y = (T *)o->out[0]->data;
        with_row<T>(is_packed<T>(C, x, weight, bias, y), C, [&](auto shape) {
            typedef decltype(shape) S;
            launch(c, layernorm_forward<T, S>, grid_for(rows * S::LANES), BLOCK, 0, y,
                   (float *)o->saved[0]->data, (float *)o->saved[1]->data, x, weight, bias, rows, C,
                   o->attr.eps);
        });
    });
}

void cuda_layernorm_backward(Ctx *c, const OpCall *o) {
    /* few rows: enough blocks for all multiprocessors; many: partial sums that are few beside x */
    enum { MIN_ROWS = 32, MAX_BLOCKS = 2048 };
    const int64_t rows = tensor_rows(o->in[0]);
    const int C = (int)tensor_cols(o->in[0]);
    int64_t block_rows = (rows + MAX_BLOCKS - 1) / MAX_BLOCKS;
    if (block_rows < MIN_ROWS) block_rows = MIN_ROWS;
    const int64_t blocks = (rows + block_rows - 1) / block_rows;
    float *partial = (float *)ctx_workspace(c, sizeof(float) * (size_t)(2 * blocks * C));
    with_dtype(c->dtype, [&](auto t) {
        typedef decltype(t) T;
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
        launch_norm_backward<T, false>(c, is_packed<T>(C, p.x, p.dy, p.weight, p.dx), blocks, p);
    });
    const ColumnSums to = {{(float *)o->in[1]->grad, (float *)o->in[2]->grad},
                           {o->in[1]->grad_set, o->in[2]->grad_set}};
    cuda_sum_partials(c, partial, blocks, C, 2, to);
}
