/* RMS normalisation of rows without weights. A row may be as short as a head. Each element is read
 * and written once in forward; backward reads x and dy and writes dx.
 * (It could read y, but where activations are bf16 that has lost what x and rstd still have.) */
#include "kernels/cuda/norm.cuh"

template <typename T, typename S>
static __global__ void rmsnorm_forward(T *y, float *rstd, const T *x, int64_t rows, int C,
                                       float eps) {
    const RowPlace p = row_place<S>(rows, C);
    Pack<T, S::N> row[S::SLOTS];
    x += p.row * C;
    const float s = row_rstd<S>(row, p, x, C, eps, rstd);
    each_pack<S>(p, [&](int j, int k) {
        const Pack<T, S::N> v = row_pack<S>(row, x, j, k);
        Pack<float, S::N> out;
        for (int i = 0; i < S::N; i++) out.at[i] = to_float(v.at[i]) * s;
        put_pack(y + p.row * C + j, out, false);
    });
}

/* With n = x rstd: dx = rstd (dy - n mean(dy n)). */
template <typename T, typename S>
static __global__ void rmsnorm_backward(T *dx, const T *x, const T *dy, const float *rstd,
                                        int64_t rows, int C, bool add) {
    const RowPlace p = row_place<S>(rows, C);
    Pack<T, S::N> row[S::SLOTS], dys[S::SLOTS];
    float along = 0;
    x += p.row * C;
    dy += p.row * C;
    each_pack<S>(p, [&](int j, int k) {
        const Pack<T, S::N> v = load_pack<S::N>(x + j), d = load_pack<S::N>(dy + j);
        if (S::kept) row[k] = v, dys[k] = d;
        for (int i = 0; i < S::N; i++) along += to_float(v.at[i]) * to_float(d.at[i]);
    });
    const float s = p.cols ? rstd[p.row] : 0, slope = s * s * warp_sum<S::LANES>(along) / (float)C;
    each_pack<S>(p, [&](int j, int k) {
        const Pack<T, S::N> v = row_pack<S>(row, x, j, k), d = row_pack<S>(dys, dy, j, k);
        Pack<float, S::N> out;
        for (int i = 0; i < S::N; i++)
            out.at[i] = s * (to_float(d.at[i]) - to_float(v.at[i]) * slope);
        put_pack(dx + p.row * C + j, out, add);
    });
}

void cuda_rmsnorm_forward(Ctx *c, const OpCall *o) {
    with_dtype(c->dtype, [&](auto zero) {
        typedef decltype(zero) T;
        const int64_t rows = tensor_rows(o->in[0]);
        const int C = (int)tensor_cols(o->in[0]);
        with_row<T>(C, [&](auto shape) {
            typedef decltype(shape) S;
            launch(c, rmsnorm_forward<T, S>, grid_for(rows * S::LANES), BLOCK, 0,
                   (T *)o->out[0]->data, (float *)o->saved[0]->data, (const T *)o->in[0]->data,
                   rows, C, o->attr.eps);
        });
    });
}

void cuda_rmsnorm_backward(Ctx *c, const OpCall *o) {
    with_dtype(c->dtype, [&](auto zero) {
        typedef decltype(zero) T;
        const int64_t rows = tensor_rows(o->in[0]);
        const int C = (int)tensor_cols(o->in[0]);
        with_row<T>(C, [&](auto shape) {
            typedef decltype(shape) S;
            launch(c, rmsnorm_backward<T, S>, grid_for(rows * S::LANES), BLOCK, 0,
                   grad_of<T>(o->in[0]), (const T *)o->in[0]->data, (const T *)o->out[0]->grad,
                   (const float *)o->saved[0]->data, rows, C, o->in[0]->grad_set);
        });
    });
}
