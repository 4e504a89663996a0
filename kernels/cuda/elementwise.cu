/* Sums of tensors: x + y, the mixture of two with learned factors, and what backward adds up.
 * Bound by memory: a thread moves 16 bytes of each tensor. */
#include "kernels/cuda/rows.cuh"

/* ---- x + y ---- */

template <typename T, int N>
static __global__ void add_forward(T *y, const T *a, const T *b, int64_t n) {
    const int64_t first = global_thread() * N;
    if (first >= n) return;
    const int count = part_count<N>(first, n);
    const Part<T, N> u = load_part<N>(a + first, count), v = load_part<N>(b + first, count);
    float out[N];
    for (int i = 0; i < N; i++) out[i] = to_float(u.at[i]) + to_float(v.at[i]);
    put_part<N>(y + first, out, false, count);
}

/* Both gradients take dy; NULL: nothing to do. */
template <typename T, int N>
static __global__ void add_backward(T *da, T *db, const T *dy, int64_t n, bool add_a, bool add_b) {
    const int64_t first = global_thread() * N;
    if (first >= n) return;
    const int count = part_count<N>(first, n);
    const Part<T, N> d = load_part<N>(dy + first, count);
    float out[N];
    for (int i = 0; i < N; i++) out[i] = to_float(d.at[i]);
    if (da) put_part<N>(da + first, out, add_a, count);
    if (db) put_part<N>(db + first, out, add_b, count);
}

void cuda_add_forward(Ctx *c, const OpCall *o) {
    with_dtype(c->dtype, [&](auto t) {
        typedef decltype(t) T;
        const T *a = (const T *)o->in[0]->data, *b = (const T *)o->in[1]->data;
        T *y = (T *)o->out[0]->data;
        const int64_t n = tensor_numel(o->in[0]);
        with_part<T>(is_packed<T>(0, a, b, y), [&](auto part) {
            enum { N = decltype(part)::N };
            launch(c, add_forward<T, N>, grid_for((n + N - 1) / N), BLOCK, 0, y, a, b, n);
        });
    });
}

void cuda_add_backward(Ctx *c, const OpCall *o) {
    with_dtype(c->dtype, [&](auto t) {
        typedef decltype(t) T;
        const T *dy = (const T *)o->out[0]->grad;
        T *da = grad_of<T>(o->in[0]), *db = grad_of<T>(o->in[1]);
        if (da == dy) da = NULL; /* the tape hands dy itself to the first input */
        if (!da && !db) return;
        const int64_t n = tensor_numel(o->in[0]);
        with_part<T>(is_packed<T>(0, dy, da, db), [&](auto part) {
            enum { N = decltype(part)::N };
            launch(c, add_backward<T, N>, grid_for((n + N - 1) / N), BLOCK, 0, da, db, dy, n,
                   o->in[0]->grad_set, o->in[1]->grad_set);
        });
    });
}

/* Device.accumulate: to += from. */
void cuda_accumulate(Ctx *c, DType dtype, void *to, const void *from, int64_t n) {
    with_dtype(dtype, [&](auto t) {
        typedef decltype(t) T;
        with_part<T>(is_packed<T>(0, to, from), [&](auto part) {
            enum { N = decltype(part)::N };
            launch(c, add_backward<T, N>, grid_for((n + N - 1) / N), BLOCK, 0, (T *)to, (T *)NULL,
                   (const T *)from, n, true, false);
        });
    });
}

/* ---- r[i] x + s[i] y ---- */

/* y may be x. */
template <typename T, int N>
static __global__ void mix_forward(T *out, const T *x, const T *y, const float *r, const float *s,
                                   int64_t n) {
    const int64_t first = global_thread() * N;
    if (first >= n) return;
    const int count = part_count<N>(first, n);
    const Part<T, N> u = load_part<N>(x + first, count), v = load_part<N>(y + first, count);
    float mixed[N];
    for (int i = 0; i < N; i++) mixed[i] = *r * to_float(u.at[i]) + *s * to_float(v.at[i]);
    put_part<N>(out + first, mixed, false, count);
}

/* dx = r d and dy = s d, and this block's sums of d x and d y to partial (blocks, 2). y may be x:
 * then dx = (r + s) d, and dy is NULL. */
template <typename T, int N>
static __global__ void mix_backward(T *dx, T *dy, double *partial, const T *x, const T *y,
                                    const T *d, const float *r, const float *s, int64_t n,
                                    bool add_x, bool add_y) {
    const float by_x = x == y ? *r + *s : *r, by_y = *s;
    double along_x = 0, along_y = 0;
    for (int64_t first = global_thread() * N; first < n;
         first += (int64_t)gridDim.x * blockDim.x * N) {
        const int count = part_count<N>(first, n);
        const Part<T, N> u = load_part<N>(x + first, count), v = load_part<N>(y + first, count),
                         g = load_part<N>(d + first, count);
        float to_x[N], to_y[N];
        for (int i = 0; i < N; i++) {
            const float slope = to_float(g.at[i]);
            along_x += (double)slope * (double)to_float(u.at[i]);
            along_y += (double)slope * (double)to_float(v.at[i]);
            to_x[i] = by_x * slope;
            to_y[i] = by_y * slope;
        }
        if (dx) put_part<N>(dx + first, to_x, add_x, count);
        if (dy) put_part<N>(dy + first, to_y, add_y, count);
    }
    along_x = block_sum(along_x);
    along_y = block_sum(along_y);
    if (threadIdx.x) return;
    partial[2 * blockIdx.x] = along_x;
    partial[2 * blockIdx.x + 1] = along_y;
}

/* Of n factors the used one gets its sum over blocks; the others nothing, or (not add) zero. One
 * block. */
static __global__ void mix_factors(float *dr, float *ds, const double *partial, int blocks, int n,
                                   int used, bool add_r, bool add_s) {
    double along_x = 0, along_y = 0;
    for (int i = (int)threadIdx.x; i < blocks; i += (int)blockDim.x) {
        along_x += partial[2 * i];
        along_y += partial[2 * i + 1];
    }
    along_x = block_sum(along_x);
    along_y = block_sum(along_y);
    for (int i = (int)threadIdx.x; i < n; i += (int)blockDim.x) {
        if (dr) put(dr + i, i == used ? (float)along_x : 0.0f, add_r);
        if (ds) put(ds + i, i == used ? (float)along_y : 0.0f, add_s);
    }
}

void cuda_mix_forward(Ctx *c, const OpCall *o) {
    with_dtype(c->dtype, [&](auto t) {
        typedef decltype(t) T;
        const T *x = (const T *)o->in[0]->data, *y = o->in[1] ? (const T *)o->in[1]->data : x;
        const float *r = (const float *)o->in[2]->data + o->attr.part;
        const float *s = (const float *)o->in[3]->data + o->attr.part;
        T *out = (T *)o->out[0]->data;
        const int64_t n = tensor_numel(o->in[0]);
        with_part<T>(is_packed<T>(0, x, y, out), [&](auto part) {
            enum { N = decltype(part)::N };
            launch(c, mix_forward<T, N>, grid_for((n + N - 1) / N), BLOCK, 0, out, x, y, r, s, n);
        });
    });
}

void cuda_mix_backward(Ctx *c, const OpCall *o) {
    enum { MAX_BLOCKS = 1024 };
    double *partial = (double *)ctx_workspace(c, sizeof(double) * 2 * MAX_BLOCKS);
    const float *r = (const float *)o->in[2]->data + o->attr.part;
    const float *s = (const float *)o->in[3]->data + o->attr.part;
    unsigned blocks = 0;
    with_dtype(c->dtype, [&](auto t) {
        typedef decltype(t) T;
        const Tensor *ty = o->in[1];
        const T *x = (const T *)o->in[0]->data, *y = ty ? (const T *)ty->data : x;
        const T *d = (const T *)o->out[0]->grad;
        T *dx = grad_of<T>(o->in[0]), *dy = ty ? grad_of<T>(ty) : NULL;
        const int64_t n = tensor_numel(o->in[0]);
        with_part<T>(is_packed<T>(0, x, y, d, dx, dy), [&](auto part) {
            enum { N = decltype(part)::N };
            blocks = grid_for((n + N - 1) / N).x;
            if (blocks > MAX_BLOCKS) blocks = MAX_BLOCKS;
            launch(c, mix_backward<T, N>, blocks, BLOCK, 0, dx, dy, partial, x, y, d, r, s, n,
                   o->in[0]->grad_set, ty && ty->grad_set);
        });
    });
    launch(c, mix_factors, 1, BLOCK, 0, (float *)o->in[2]->grad, (float *)o->in[3]->grad, partial,
           (int)blocks, (int)tensor_numel(o->in[2]), o->attr.part, o->in[2]->grad_set,
           o->in[3]->grad_set);
}

/* ---- sums over blocks ---- */

/* A warp takes 32 columns of every blockDim.y-th row; then the warps' sums are added in order. */
static __global__ void sum_partials(const float *partial, int64_t blocks, int n, int vectors,
                                    ColumnSums to) {
    __shared__ float part[WARP][WARP + 1];
    const int lane = (int)threadIdx.x, warp = (int)threadIdx.y, cols = n * vectors;
    const int j = (int)blockIdx.x * WARP + lane;
    float sum = 0;
    if (j < cols)
        for (int64_t b = warp; b < blocks; b += blockDim.y) sum += partial[b * cols + j];
    part[warp][lane] = sum;
    __syncthreads();
    if (warp || j >= cols) return;
    for (int w = 1; w < (int)blockDim.y; w++) sum += part[w][lane];
    float *dst = j < n ? to.dst[0] : to.dst[1];
    if (dst) put(dst + j % n, sum, j < n ? to.add[0] : to.add[1]);
}

void cuda_sum_partials(Ctx *c, const float *partial, int64_t blocks, int n, int vectors,
                       ColumnSums to) {
    if (!to.dst[0] && !to.dst[1]) return;
    const unsigned warps = blocks < WARP ? (unsigned)blocks : (unsigned)WARP;
    launch(c, sum_partials, (unsigned)(n * vectors + WARP - 1) / WARP, dim3(WARP, warps), 0,
           partial, blocks, n, vectors, to);
}
