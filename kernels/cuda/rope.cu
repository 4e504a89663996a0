/* The packed projections become queries, keys and values: RMSNorm of each head, rotation of pairs.
 * 8 lanes take the q, k and v of one token's head (32 where heads have more than 64 numbers), and
 * read the token's row of the tables once for both. Nothing is saved: backward, which reads q and k
 * again anyhow, sums their squares again. */
#include "kernels/cuda/rows.cuh"

enum { HEAD_PART = 8, MAX_HEAD_SIZE = HEAD_PART * WARP }; /* numbers a lane; a warp */

/* A lane has HEAD_PART numbers of a head in packs of N (N is even, so pairs stay together): pack k
 * begins at column (k LANES + lane) N. */
template <int n, int lanes>
struct HeadShape {
    enum { N = n, LANES = lanes, PACKS = HEAD_PART / n };
};

template <typename S>
static __device__ __forceinline__ int head_column(int k) {
    return (k * S::LANES + (int)threadIdx.x % S::LANES) * S::N;
}

/* Zeros behind column D. */
template <typename S, typename T>
static __device__ __forceinline__ void load_head(float *to, const T *x, int D) {
    for (int k = 0; k < S::PACKS; k++) {
        const int j = head_column<S>(k);
        const Pack<T, S::N> pack = j < D ? load_pack<S::N>(x + j) : Pack<T, S::N>();
        for (int i = 0; i < S::N; i++) to[k * S::N + i] = to_float(pack.at[i]);
    }
}

template <typename S, typename T>
static __device__ __forceinline__ void put_head(T *y, const float *v, int D, bool add) {
    for (int k = 0; k < S::PACKS; k++) {
        const int j = head_column<S>(k);
        Pack<float, S::N> pack;
        for (int i = 0; i < S::N; i++) pack.at[i] = v[k * S::N + i];
        if (j < D) put_pack(y + j, pack, add);
    }
}

template <typename S>
static __device__ __forceinline__ float head_rstd(const float *x, int D, float eps) {
    float squares = 0;
    for (int d = 0; d < HEAD_PART; d++) squares += x[d] * x[d];
    return 1.0f / sqrtf(warp_sum<S::LANES>(squares) / (float)D + eps);
}

template <typename T>
struct RopeForward {
    const T *qkv;
    const float *ln_q, *ln_k, *sine, *cosine;
    T *q, *k, *v;
    int64_t rows; /* B T */
    int T_k, H, D, first;
    float eps;
};

/* x becomes its rotated norm. All lanes of a warp call it. */
template <typename S>
static __device__ __forceinline__ void norm_rotate(float *x, const float *weight, const float *sine,
                                                   const float *cosine, int D, float eps) {
    const float rstd = head_rstd<S>(x, D, eps);
    for (int d = 0; d < HEAD_PART; d += 2) {
        const float a = x[d] * rstd * weight[d], b = x[d + 1] * rstd * weight[d + 1];
        x[d] = a * cosine[d] - b * sine[d];
        x[d + 1] = b * cosine[d + 1] + a * sine[d + 1];
    }
}

template <typename T, typename S>
static __global__ void rope_forward(RopeForward<T> p) {
    const int64_t unit = global_thread() / S::LANES, r = unit / p.H;
    const int h = (int)(unit - r * p.H), C = p.H * p.D;
    const int t = (int)(r % p.T_k), D = r < p.rows ? p.D : 0; /* behind the end: no columns */
    const T *x = p.qkv + r * 3 * C + h * p.D;
    float q[HEAD_PART], k[HEAD_PART], v[HEAD_PART], sine[HEAD_PART], cosine[HEAD_PART];
    float weight[HEAD_PART];
    load_head<S>(q, x, D);
    load_head<S>(k, x + C, D);
    load_head<S>(v, x + 2 * C, D);
    load_head<S>(sine, p.sine + (int64_t)t * p.D, D);
    load_head<S>(cosine, p.cosine + (int64_t)t * p.D, D);
    load_head<S>(weight, p.ln_q, D);
    norm_rotate<S>(q, weight, sine, cosine, p.D, p.eps);
    load_head<S>(weight, p.ln_k, D);
    norm_rotate<S>(k, weight, sine, cosine, p.D, p.eps);
    const int64_t at = r * C + h * p.D;
    put_head<S>(p.k + at, k, D, false);
    put_head<S>(p.v + at, v, D, false);
    if (t < p.first) return;
    const int64_t behind = (r / p.T_k + 1) * p.first; /* rows of q that are not there */
    put_head<S>(p.q + at - behind * C, q, D, false);
}

/* f(HeadShape<...>()) */
template <typename T, typename F>
static void with_head(int D, F f) {
    const bool packed = D % Pack<T>::N == 0;
    CHECK(D <= MAX_HEAD_SIZE, "heads of %d numbers, at most %d", D, MAX_HEAD_SIZE);
    if (packed && D <= 8 * HEAD_PART)
        f(HeadShape<Pack<T>::N, 8>());
    else if (packed)
        f(HeadShape<Pack<T>::N, WARP>());
    else
        f(HeadShape<2, WARP>());
}

void cuda_qkv_rope_forward(Ctx *c, const OpCall *o) {
    with_dtype(c->dtype, [&](auto zero) {
        typedef decltype(zero) T;
        RopeForward<T> p;
        p.qkv = (const T *)o->in[0]->data;
        p.ln_q = (const float *)o->in[1]->data;
        p.ln_k = (const float *)o->in[2]->data;
        p.sine = (const float *)o->in[3]->data;
        p.cosine = (const float *)o->in[4]->data;
        p.q = (T *)o->out[0]->data;
        p.k = (T *)o->out[1]->data;
        p.v = (T *)o->out[2]->data;
        p.rows = tensor_rows(o->in[0]);
        p.T_k = (int)o->in[0]->shape[1];
        p.H = o->attr.heads;
        p.D = (int)(o->in[0]->shape[2] / 3 / p.H);
        p.first = o->attr.offset;
        p.eps = o->attr.eps;
        with_head<T>(p.D, [&](auto shape) {
            typedef decltype(shape) S;
            launch(c, rope_forward<T, S>, grid_for(p.rows * p.H * S::LANES), BLOCK, 0, p);
        });
    });
}

/* ---- backward ---- */

template <typename T>
struct RopeBackward {
    const T *qkv, *dq, *dk, *dv;
    const float *ln_q, *ln_k, *sine, *cosine;
    T *dqkv;                /* NULL: not wanted */
    float *partial;         /* (T, 2 D): each position's sums for ln_q and ln_k */
    float *dsine, *dcosine; /* (positions, D) or NULL */
    int B, T_k, H, D, first;
    float eps;
    bool add, add_sine, add_cosine;
};

/* The sums over one position's heads that a lane keeps, for its columns. */
typedef struct HeadSums {
    float ln_q[HEAD_PART], ln_k[HEAD_PART], sine[HEAD_PART], cosine[HEAD_PART];
} HeadSums;

/* One head, in place of dy: with n = x rstd and a, b the weighted pair, dy is turned back to the
 * gradient by a and b; then dx = rstd (g - n mean(g n)) with g = turned weight. All lanes of a warp
 * call it. TABLES: the tables want gradients. */
template <typename S, bool TABLES>
static __device__ __forceinline__ void rotate_back(float *dy, const float *x, const float *weight,
                                                   const float *sine, const float *cosine, int D,
                                                   float eps, float *dweight, HeadSums *sums) {
    const float rstd = head_rstd<S>(x, D, eps);
    float sum = 0;
    for (int d = 0; d < HEAD_PART; d += 2) {
        const float n0 = x[d] * rstd, n1 = x[d + 1] * rstd;
        if (TABLES) {
            sums->cosine[d] += dy[d] * n0 * weight[d];
            sums->cosine[d + 1] += dy[d + 1] * n1 * weight[d + 1];
            sums->sine[d] -= dy[d] * n1 * weight[d + 1];
            sums->sine[d + 1] += dy[d + 1] * n0 * weight[d];
        }
        const float turned0 = dy[d] * cosine[d] + dy[d + 1] * sine[d + 1];
        const float turned1 = dy[d + 1] * cosine[d + 1] - dy[d] * sine[d];
        dweight[d] += turned0 * n0;
        dweight[d + 1] += turned1 * n1;
        sum += turned0 * n0 * weight[d] + turned1 * n1 * weight[d + 1];
        dy[d] = turned0;
        dy[d + 1] = turned1;
    }
    const float mean = warp_sum<S::LANES>(sum) / (float)D;
    for (int d = 0; d < HEAD_PART; d++) dy[d] = rstd * (dy[d] * weight[d] - x[d] * rstd * mean);
}

/* Head `unit` of position t, of all heads in the batch. */
template <typename T, typename S, bool TABLES>
static __device__ __forceinline__ void backward_head(const RopeBackward<T> &p, int t, int unit,
                                                     const float *sine, const float *cosine,
                                                     HeadSums *sums) {
    const int D = unit < p.B * p.H ? p.D : 0, D_q = t < p.first ? 0 : D, C = p.H * p.D;
    const int b = unit / p.H, h = unit - b * p.H;
    const int64_t r = (int64_t)b * p.T_k + t, at = r * C + h * p.D, x_at = r * 3 * C + h * p.D;
    const int64_t q_at = at - (int64_t)(b + 1) * p.first * C;
    float x[HEAD_PART], d[HEAD_PART], weight[HEAD_PART];
    T *dx = p.dqkv ? p.dqkv + x_at : NULL;
    load_head<S>(x, p.qkv + x_at, D_q);
    load_head<S>(d, p.dq + q_at, D_q);
    load_head<S>(weight, p.ln_q, D);
    rotate_back<S, TABLES>(d, x, weight, sine, cosine, p.D, p.eps, sums->ln_q, sums);
    if (dx) put_head<S>(dx, d, D, p.add); /* zeros where there is no query */
    load_head<S>(x, p.qkv + x_at + C, D);
    load_head<S>(d, p.dk + at, D);
    load_head<S>(weight, p.ln_k, D);
    rotate_back<S, TABLES>(d, x, weight, sine, cosine, p.D, p.eps, sums->ln_k, sums);
    if (!dx) return;
    put_head<S>(dx + C, d, D, p.add);
    load_head<S>(d, p.dv + at, D);
    put_head<S>(dx + 2 * C, d, D, p.add);
}

/* A block takes a position with all its heads in the batch: a row of a learned table has then one
 * writer. Blocks behind the last position clear rows that no token has. */
template <typename T, typename S, bool TABLES>
static __global__ void __launch_bounds__(BLOCK) rope_backward(RopeBackward<T> p) {
    __shared__ float total[BLOCK * HEAD_PART];
    const int t = (int)blockIdx.x, thread = (int)threadIdx.x, threads = (int)blockDim.x;
    const int64_t row = (int64_t)t * p.D;
    HeadSums sums = {};
    if (t < p.T_k) {
        float sine[HEAD_PART], cosine[HEAD_PART];
        load_head<S>(sine, p.sine + row, p.D);
        load_head<S>(cosine, p.cosine + row, p.D);
        for (int unit = thread / S::LANES; unit - thread / S::LANES < p.B * p.H;
             unit += threads / S::LANES)
            backward_head<T, S, TABLES>(p, t, unit, sine, cosine, &sums);
        sum_columns<S::PACKS, S::N>(total, sums.ln_q, S::LANES);
        for (int j = thread; j < p.D; j += threads) p.partial[2 * row + j] = total[j];
        sum_columns<S::PACKS, S::N>(total, sums.ln_k, S::LANES);
        for (int j = thread; j < p.D; j += threads) p.partial[2 * row + p.D + j] = total[j];
    }
    if (TABLES && p.dsine) {
        sum_columns<S::PACKS, S::N>(total, sums.sine, S::LANES);
        for (int j = thread; j < p.D; j += threads) put(p.dsine + row + j, total[j], p.add_sine);
    }
    if (TABLES && p.dcosine) {
        sum_columns<S::PACKS, S::N>(total, sums.cosine, S::LANES);
        for (int j = thread; j < p.D; j += threads)
            put(p.dcosine + row + j, total[j], p.add_cosine);
    }
}

template <typename T>
static RopeBackward<T> rope_backward_of(const OpCall *o, float *partial) {
    RopeBackward<T> p;
    p.qkv = (const T *)o->in[0]->data;
    p.dq = (const T *)o->out[0]->grad;
    p.dk = (const T *)o->out[1]->grad;
    p.dv = (const T *)o->out[2]->grad;
    p.ln_q = (const float *)o->in[1]->data;
    p.ln_k = (const float *)o->in[2]->data;
    p.sine = (const float *)o->in[3]->data;
    p.cosine = (const float *)o->in[4]->data;
    p.dqkv = grad_of<T>(o->in[0]);
    p.partial = partial;
    p.dsine = (float *)o->in[3]->grad;
    p.dcosine = (float *)o->in[4]->grad;
    p.B = (int)o->in[0]->shape[0];
    p.T_k = (int)o->in[0]->shape[1];
    p.H = o->attr.heads;
    p.D = (int)(o->in[0]->shape[2] / 3 / p.H);
    p.first = o->attr.offset;
    p.eps = o->attr.eps;
    p.add = o->in[0]->grad_set;
    p.add_sine = o->in[3]->grad_set;
    p.add_cosine = o->in[4]->grad_set;
    return p;
}

void cuda_qkv_rope_backward(Ctx *c, const OpCall *o) {
    const int64_t T_k = o->in[0]->shape[1];
    const int D = (int)(o->in[0]->shape[2] / 3 / o->attr.heads);
    float *partial = (float *)ctx_workspace(c, sizeof(float) * (size_t)(2 * T_k * D));
    with_dtype(c->dtype, [&](auto zero) {
        typedef decltype(zero) T;
        const RopeBackward<T> p = rope_backward_of<T>(o, partial);
        with_head<T>(D, [&](auto shape) {
            typedef decltype(shape) S;
            int64_t threads = div_up((int64_t)p.B * p.H * S::LANES, WARP) * WARP;
            if (threads > BLOCK) threads = BLOCK;
            if (p.dsine || p.dcosine)
                launch(c, rope_backward<T, S, true>, (unsigned)tensor_rows(o->in[3]),
                       (unsigned)threads, 0, p);
            else
                launch(c, rope_backward<T, S, false>, (unsigned)T_k, (unsigned)threads, 0, p);
        });
    });
    cuda_sum_partials(c, partial, T_k, D, o->in[1], o->in[2]);
}
