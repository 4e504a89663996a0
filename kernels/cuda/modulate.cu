/* The two ops around a block's sublayers that are steered by the frame's modulation: adaptive
 * RMSNorm before it, gated addition after it. x (B, T, C), mod (B, F, n C); S = T / F tokens share
 * a frame's vectors. In backward a block of threads takes a frame: its modulation's gradient has
 * then one writer, and the sum over its S rows one order. */
#include "kernels/cuda/norm.cuh"

/* ---- adaptive RMSNorm ---- */

/* mod: the frames' shift, with scale C columns behind it, rows mod_cols apart. */
template <typename T, typename S>
static __global__ void modulate_forward(T *y, float *rstd, const T *x, const float *weight,
                                        const T *mod, int64_t rows, int C, int tokens, int mod_cols,
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
    const T *shift = mod + (uint32_t)p.row / (uint32_t)tokens * (int64_t)mod_cols;
    for (int k = 0; k < p.rounds; k++) {
        const int j = row_column<S>(p, k);
        if (j >= p.cols) continue;
        Part<T, S::N> &v = row[S::kept ? k : 0];
        if (!S::kept) v = load_part<S::N>(x + p.row * C + j);
        const Part<float, S::N> w = load_part<S::N>(weight + j);
        const Part<T, S::N> b = load_part<S::N>(shift + j), a = load_part<S::N>(shift + C + j);
        float out[S::N];
        for (int i = 0; i < S::N; i++)
            out[i] =
                to_float(v.at[i]) * s * (w.at[i] * (1.0f + to_float(a.at[i]))) + to_float(b.at[i]);
        put_part<S::N>(y + p.row * C + j, out, false);
    }
}

void cuda_rmsnorm_modulate_forward(Ctx *c, const OpCall *o) {
    with_dtype(c->dtype, [&](auto t) {
        typedef decltype(t) T;
        const Tensor *tx = o->in[0], *tmod = o->in[2];
        const int64_t rows = tensor_rows(tx);
        const int C = (int)tx->shape[2], tokens = (int)(tx->shape[1] / tmod->shape[1]);
        const T *x = (const T *)tx->data, *mod = (const T *)tmod->data + o->attr.part * C;
        const float *weight = (const float *)o->in[1]->data;
        T *y = (T *)o->out[0]->data;
        with_row<T>(is_packed<T>(C, x, mod, weight, y), C, [&](auto shape) {
            typedef decltype(shape) S;
            launch(c, modulate_forward<T, S>, grid_for(rows * S::LANES), BLOCK, 0, y,
                   (float *)o->saved[0]->data, x, weight, mod, rows, C, tokens, (int)tmod->shape[2],
                   o->attr.eps);
        });
    });
}

void cuda_rmsnorm_modulate_backward(Ctx *c, const OpCall *o) {
    const Tensor *tx = o->in[0], *tmod = o->in[2];
    const int64_t frames = tensor_rows(tmod);
    const int C = (int)tx->shape[2];
    float *partial = (float *)ctx_workspace(c, sizeof(float) * (size_t)(frames * C));
    with_dtype(c->dtype, [&](auto t) {
        typedef decltype(t) T;
        NormBackward<T> p = {};
        p.x = (const T *)tx->data;
        p.dy = (const T *)o->out[0]->grad;
        p.mod = (const T *)tmod->data;
        p.weight = (const float *)o->in[1]->data;
        p.rstd = (const float *)o->saved[0]->data;
        p.dx = grad_of<T>(tx);
        p.dmod = grad_of<T>(tmod);
        p.add_x = tx->grad_set;
        p.add_mod = tmod->grad_set;
        p.partial = partial;
        p.rows = tensor_rows(tx);
        p.block_rows = (int)(tx->shape[1] / tmod->shape[1]);
        p.C = C;
        p.mod_cols = (int)tmod->shape[2];
        p.part = o->attr.part;
        const bool packed = is_packed<T>(C, p.x, p.dy, p.mod, p.weight, p.dx);
        launch_norm_backward<T, true>(c, packed, frames, p);
    });
    const ColumnSums to = {{(float *)o->in[1]->grad, NULL}, {o->in[1]->grad_set, false}};
    cuda_sum_partials(c, partial, frames, C, 1, to);
}

/* ---- x + gate y ---- */

/* A warp a row. mod: the frames' gates, mod_cols apart. */
template <typename T, int N>
static __global__ void gate_add_forward(T *out, const T *x, const T *y, const T *mod, int64_t rows,
                                        int C, int tokens, int mod_cols) {
    const int64_t r = global_thread() / WARP;
    if (r >= rows) return;
    const T *gate = mod + (uint32_t)r / (uint32_t)tokens * (int64_t)mod_cols;
    for (int j = (int)threadIdx.x % WARP * N; j < C; j += WARP * N) {
        const Part<T, N> u = load_part<N>(x + r * C + j), v = load_part<N>(y + r * C + j),
                         g = load_part<N>(gate + j);
        float sum[N];
        for (int i = 0; i < N; i++)
            sum[i] = to_float(u.at[i]) + to_float(g.at[i]) * to_float(v.at[i]);
        put_part<N>(out + r * C + j, sum, false);
    }
}

/* dx takes d, dy takes gate d, and the frame's gate the sum of d y; NULL: nothing to do. */
template <typename T>
struct GateBackward {
    const T *y, *mod, *d;
    T *dx, *dy, *dmod;
    int C, tokens, mod_cols, part;
    bool add_x, add_y, add_mod;
};

template <typename T, int N>
static __global__ void gate_add_backward(GateBackward<T> p) {
    __shared__ float total[BLOCK * N];
    const int first = (int)blockIdx.y * WARP * N, j = first + (int)threadIdx.x % WARP * N;
    const int64_t start = (int64_t)blockIdx.x * p.tokens;
    const int64_t mod = (int64_t)blockIdx.x * p.mod_cols;
    const T *gates = p.mod + mod + p.part * p.C;
    float sum[N] = {};
    if (j < p.C) {
        const Part<T, N> gate = load_part<N>(gates + j);
        for (int s = (int)threadIdx.x / WARP; s < p.tokens; s += BLOCK / WARP) {
            const int64_t at = (start + s) * p.C + j;
            const Part<T, N> d = load_part<N>(p.d + at), y = load_part<N>(p.y + at);
            float to_x[N], to_y[N];
            for (int i = 0; i < N; i++) {
                to_x[i] = to_float(d.at[i]);
                to_y[i] = to_x[i] * to_float(gate.at[i]);
                sum[i] += to_x[i] * to_float(y.at[i]);
            }
            if (p.dx) put_part<N>(p.dx + at, to_x, p.add_x);
            if (p.dy) put_part<N>(p.dy + at, to_y, p.add_y);
        }
    }
    if (!p.dmod) return;
    sum_columns<WARP, 1, N>(total, sum);
    for (int i = (int)threadIdx.x; i < WARP * N && first + i < p.C; i += BLOCK) {
        put(p.dmod + mod + p.part * p.C + first + i, total[i], p.add_mod);
        if (!p.add_mod)
            clear_modulation(p.dmod + mod, p.mod_cols, p.C, p.part, p.part + 1, first + i);
    }
}

void cuda_gate_add_forward(Ctx *c, const OpCall *o) {
    with_dtype(c->dtype, [&](auto t) {
        typedef decltype(t) T;
        const Tensor *tx = o->in[0], *tmod = o->in[2];
        const int64_t rows = tensor_rows(tx);
        const int C = (int)tx->shape[2], tokens = (int)(tx->shape[1] / tmod->shape[1]);
        const T *x = (const T *)tx->data, *y = (const T *)o->in[1]->data;
        const T *mod = (const T *)tmod->data + o->attr.part * C;
        T *out = (T *)o->out[0]->data;
        with_part<T>(is_packed<T>(C, x, y, mod, out), [&](auto part) {
            launch(c, gate_add_forward<T, decltype(part)::N>, grid_for(rows * WARP), BLOCK, 0, out,
                   x, y, mod, rows, C, tokens, (int)tmod->shape[2]);
        });
    });
}

void cuda_gate_add_backward(Ctx *c, const OpCall *o) {
    with_dtype(c->dtype, [&](auto t) {
        typedef decltype(t) T;
        const Tensor *tx = o->in[0], *tmod = o->in[2];
        GateBackward<T> p;
        p.y = (const T *)o->in[1]->data;
        p.mod = (const T *)tmod->data;
        p.d = (const T *)o->out[0]->grad;
        p.dx = grad_of<T>(tx);
        if (p.dx == p.d) p.dx = NULL; /* the tape hands d itself to x */
        p.dy = grad_of<T>(o->in[1]);
        p.dmod = grad_of<T>(tmod);
        p.C = (int)tx->shape[2];
        p.tokens = (int)(tx->shape[1] / tmod->shape[1]);
        p.mod_cols = (int)tmod->shape[2];
        p.part = o->attr.part;
        p.add_x = tx->grad_set;
        p.add_y = o->in[1]->grad_set;
        p.add_mod = tmod->grad_set;
        with_part<T>(is_packed<T>(p.C, p.y, p.mod, p.d, p.dx, p.dy), [&](auto part) {
            enum { N = decltype(part)::N };
            const dim3 grid((unsigned)tensor_rows(tmod),
                            (unsigned)((p.C + WARP * N - 1) / (WARP * N)));
            launch(c, gate_add_backward<T, N>, grid, BLOCK, 0, p);
        });
    });
}
