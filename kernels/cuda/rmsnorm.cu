/* RMS normalisation of rows without weights. A row may be as short as a head. Each element is read
 * and written once in forward; backward reads x and dy and writes dx.
 * (It could read y, but where activations are bf16 that has lost what x and rstd still have.) */
#include "kernels/cuda/norm.cuh"

template <typename T, typename S>
static __global__ void rmsnorm_forward(T *y, float *rstd, const T *x, int64_t rows, int C,
                                       float eps) {
    const RowPlace p = row_place<S>(rows, C);
    Part<T, S::N> row[S::SLOTS];
    float squares = 0;
    for (int k = 0; k < p.rounds; k++) {
        const int j = row_column<S>(p, k);
        if (j >= p.cols) continue;
        Part<T, S::N> &v = row[S::kept ? k : 0];
        v = load_part<S::N>(x + p.row * C + j);
        for (int i = 0; i < S::N; i++) squares += to_float(v.at[i]) * to_float(v.at[i]);
    }
    const float s = 1.0f / sqrtf(lanes_sum<S::LANES>(squares) / (float)C + eps);
    if (p.cols && p.lane == 0) rstd[p.row] = s;
    for (int k = 0; k < p.rounds; k++) {
        const int j = row_column<S>(p, k);
        if (j >= p.cols) continue;
        Part<T, S::N> &v = row[S::kept ? k : 0];
        if (!S::kept) v = load_part<S::N>(x + p.row * C + j);
        float out[S::N];
        for (int i = 0; i < S::N; i++) out[i] = to_float(v.at[i]) * s;
        put_part<S::N>(y + p.row * C + j, out, false);
    }
}

/* With n = x rstd: dx = rstd (dy - n mean(dy n)). */
template <typename T, typename S>
static __global__ void rmsnorm_backward(T *dx, const T *x, const T *dy, const float *rstd,
                                        int64_t rows, int C, bool add) {
    const RowPlace p = row_place<S>(rows, C);
    Part<T, S::N> row[S::SLOTS], dys[S::SLOTS];
    float along = 0;
    for (int k = 0; k < p.rounds; k++) {
        const int j = row_column<S>(p, k);
        if (j >= p.cols) continue;
        Part<T, S::N> &v = row[S::kept ? k : 0], &d = dys[S::kept ? k : 0];
        v = load_part<S::N>(x + p.row * C + j);
        d = load_part<S::N>(dy + p.row * C + j);
        for (int i = 0; i < S::N; i++) along += to_float(v.at[i]) * to_float(d.at[i]);
    }
    const float s = p.cols ? rstd[p.row] : 0, slope = s * s * lanes_sum<S::LANES>(along) / (float)C;
    for (int k = 0; k < p.rounds; k++) {
        const int j = row_column<S>(p, k);
        if (j >= p.cols) continue;
        Part<T, S::N> &v = row[S::kept ? k : 0], &d = dys[S::kept ? k : 0];
        if (!S::kept) {
            v = load_part<S::N>(x + p.row * C + j);
            d = load_part<S::N>(dy + p.row * C + j);
        }
        float out[S::N];
        for (int i = 0; i < S::N; i++) out[i] = s * (to_float(d.at[i]) - to_float(v.at[i]) * slope);
        put_part<S::N>(dx + p.row * C + j, out, add);
    }
}

void cuda_rmsnorm_forward(Ctx *c, const OpCall *o) {
    with_dtype(c->dtype, [&](auto t) {
        typedef decltype(t) T;
        const int64_t rows = tensor_rows(o->in[0]);
        const int C = (int)tensor_cols(o->in[0]);
        const T *x = (const T *)o->in[0]->data;
        T *y = (T *)o->out[0]->data;
        with_row<T>(is_packed<T>(C, x, y), C, [&](auto shape) {
            typedef decltype(shape) S;
            launch(c, rmsnorm_forward<T, S>, grid_for(rows * S::LANES), BLOCK, 0, y,
                   (float *)o->saved[0]->data, x, rows, C, o->attr.eps);
        });
    });
}

void cuda_rmsnorm_backward(Ctx *c, const OpCall *o) {
    with_dtype(c->dtype, [&](auto t) {
        typedef decltype(t) T;
        const int64_t rows = tensor_rows(o->in[0]);
        const int C = (int)tensor_cols(o->in[0]);
        const T *x = (const T *)o->in[0]->data, *dy = (const T *)o->out[0]->grad;
        T *dx = grad_of<T>(o->in[0]);
        with_row<T>(is_packed<T>(C, x, dy, dx), C, [&](auto shape) {
            typedef decltype(shape) S;
            launch(c, rmsnorm_backward<T, S>, grid_for(rows * S::LANES), BLOCK, 0, dx, x, dy,
                   (const float *)o->saved[0]->data, rows, C, o->in[0]->grad_set);
        });
    });
}
