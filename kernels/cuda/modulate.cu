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
    Pack<T, S::N> row[S::SLOTS];
    x += p.row * C;
    const float s = row_rstd<S>(row, p, x, C, eps, rstd);
    const T *shift = mod + (uint32_t)p.row / (uint32_t)tokens * (int64_t)mod_cols;
    each_pack<S>(p, [&](int j, int k) {
        const Pack<float, S::N> w = load_pack<S::N>(weight + j);
        const Pack<T, S::N> v = row_pack<S>(row, x, j, k), b = load_pack<S::N>(shift + j),
                            a = load_pack<S::N>(shift + C + j);
        Pack<float, S::N> out;
        for (int i = 0; i < S::N; i++) {
            const float factor = w.at[i] * (1.0f + to_float(a.at[i]));
            out.at[i] = to_float(v.at[i]) * s * factor + to_float(b.at[i]);
        }
        put_pack(y + p.row * C + j, out, false);
    });
}

void cuda_rmsnorm_modulate_forward(Ctx *c, const OpCall *o) {
    with_dtype(c->dtype, [&](auto zero) {
        typedef decltype(zero) T;
        const Tensor *tx = o->in[0], *tmod = o->in[2];
        const int64_t rows = tensor_rows(tx);
        const int C = (int)tx->shape[2], tokens = (int)(tx->shape[1] / tmod->shape[1]);
        with_row<T>(C, [&](auto shape) {
            typedef decltype(shape) S;
            launch(c, modulate_forward<T, S>, grid_for(rows * S::LANES), BLOCK, 0,
                   (T *)o->out[0]->data, (float *)o->saved[0]->data, (const T *)tx->data,
                   (const float *)o->in[1]->data, (const T *)tmod->data + o->attr.part * C, rows, C,
                   tokens, (int)tmod->shape[2], o->attr.eps);
        });
    });
}

void cuda_rmsnorm_modulate_backward(Ctx *c, const OpCall *o) {
    const Tensor *tx = o->in[0], *tmod = o->in[2];
    const int64_t frames = tensor_rows(tmod);
    const int C = (int)tx->shape[2];
    float *partial = (float *)ctx_workspace(c, sizeof(float) * (size_t)(frames * C));
    with_dtype(c->dtype, [&](auto zero) {
        typedef decltype(zero) T;
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
        launch_norm_backward<T, true>(c, frames, p);
    });
    cuda_sum_partials(c, partial, frames, C, o->in[1], NULL);
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
        const Pack<T, N> u = load_pack<N>(x + r * C + j), v = load_pack<N>(y + r * C + j),
                         g = load_pack<N>(gate + j);
        Pack<float, N> sum;
        for (int i = 0; i < N; i++)
            sum.at[i] = to_float(u.at[i]) + to_float(g.at[i]) * to_float(v.at[i]);
        put_pack(out + r * C + j, sum, false);
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
        const Pack<T, N> gate = load_pack<N>(gates + j);
        for (int s = (int)threadIdx.x / WARP; s < p.tokens; s += BLOCK / WARP) {
            const int64_t at = (start + s) * p.C + j;
            const Pack<T, N> d = load_pack<N>(p.d + at), y = load_pack<N>(p.y + at);
            Pack<float, N> to_y;
            for (int i = 0; i < N; i++) {
                to_y.at[i] = to_float(d.at[i]) * to_float(gate.at[i]);
                sum[i] += to_float(d.at[i]) * to_float(y.at[i]);
            }
            if (p.dx) put_pack(p.dx + at, d, p.add_x);
            if (p.dy) put_pack(p.dy + at, to_y, p.add_y);
        }
    }
    if (!p.dmod) return;
    sum_columns<1, N>(total, sum, WARP);
    for (int i = (int)threadIdx.x; i < WARP * N && first + i < p.C; i += BLOCK) {
        put(p.dmod + mod + p.part * p.C + first + i, total[i], p.add_mod);
        if (!p.add_mod)
            clear_modulation(p.dmod + mod, p.mod_cols, p.C, p.part, p.part + 1, first + i);
    }
}

void cuda_gate_add_forward(Ctx *c, const OpCall *o) {
    with_dtype(c->dtype, [&](auto zero) {
        typedef decltype(zero) T;
        const Tensor *tx = o->in[0], *tmod = o->in[2];
        const int64_t rows = tensor_rows(tx);
        const int C = (int)tx->shape[2], tokens = (int)(tx->shape[1] / tmod->shape[1]);
        with_pack<T>(C, [&](auto pack) {
            launch(c, gate_add_forward<T, decltype(pack)::N>, grid_for(rows * WARP), BLOCK, 0,
                   (T *)o->out[0]->data, (const T *)tx->data, (const T *)o->in[1]->data,
                   (const T *)tmod->data + o->attr.part * C, rows, C, tokens, (int)tmod->shape[2]);
        });
    });
}

void cuda_gate_add_backward(Ctx *c, const OpCall *o) {
    with_dtype(c->dtype, [&](auto zero) {
        typedef decltype(zero) T;
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
        with_pack<T>(p.C, [&](auto pack) {
            enum { N = decltype(pack)::N };
            const dim3 grid((unsigned)tensor_rows(tmod), (unsigned)div_up(p.C, WARP * N));
            launch(c, gate_add_backward<T, N>, grid, BLOCK, 0, p);
        });
    });
}
