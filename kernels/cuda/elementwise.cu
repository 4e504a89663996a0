/* Sums of tensors: x + y, the mixture of two with learned factors, and what backward adds up.
 * Bound by memory: each tensor is read or written once. */
#include "kernels/cuda/device.cuh"

/* ---- x + y ---- */

template <typename V>
static __global__ void add_forward(V *y, const V *a, const V *b, int64_t n) {
    const int64_t i = global_thread();
    if (i >= n) return;
    const V u = a[i], v = b[i];
    Pack<float, V::N> sum;
    for (int j = 0; j < V::N; j++) sum.at[j] = to_float(u.at[j]) + to_float(v.at[j]);
    put(y + i, sum, false);
}

/* Both gradients take dy; NULL: nothing to do. */
template <typename V>
static __global__ void add_backward(V *da, V *db, const V *dy, int64_t n, bool add_a, bool add_b) {
    const int64_t i = global_thread();
    if (i >= n) return;
    const V d = dy[i];
    if (da) put(da + i, d, add_a);
    if (db) put(db + i, d, add_b);
}

void cuda_add_forward(Ctx *c, const OpCall *o) {
    const int64_t n = tensor_numel(o->in[0]);
    with_pack(c->dtype, n, [&](auto pack) {
        typedef decltype(pack) V;
        launch(c, add_forward<V>, grid_for(n / V::N), BLOCK, 0, (V *)o->out[0]->data,
               (const V *)o->in[0]->data, (const V *)o->in[1]->data, n / V::N);
    });
}

void cuda_add_backward(Ctx *c, const OpCall *o) {
    const Tensor *a = o->in[0], *b = o->in[1];
    const int64_t n = tensor_numel(a);
    with_pack(c->dtype, n, [&](auto pack) {
        typedef decltype(pack) V;
        const V *dy = (const V *)o->out[0]->grad;
        V *da = grad_of<V>(a), *db = grad_of<V>(b);
        if (da == dy) da = NULL; /* the tape hands dy itself to the first input */
        if (da || db)
            launch(c, add_backward<V>, grid_for(n / V::N), BLOCK, 0, da, db, dy, n / V::N,
                   a->grad_set, b->grad_set);
    });
}

/* Device.accumulate: to += from. */
void cuda_accumulate(Ctx *c, DType dtype, void *to, const void *from, int64_t n) {
    with_pack(dtype, n, [&](auto pack) {
        typedef decltype(pack) V;
        launch(c, add_backward<V>, grid_for(n / V::N), BLOCK, 0, (V *)to, (V *)NULL,
               (const V *)from, n / V::N, true, false);
    });
}

/* ---- r[i] x + s[i] y ---- */

/* y may be x. */
template <typename V>
static __global__ void mix_forward(V *out, const V *x, const V *y, const float *r, const float *s,
                                   int64_t n) {
    const int64_t i = global_thread();
    if (i >= n) return;
    const V u = x[i], v = y[i];
    Pack<float, V::N> mixed;
    for (int j = 0; j < V::N; j++) mixed.at[j] = *r * to_float(u.at[j]) + *s * to_float(v.at[j]);
    put(out + i, mixed, false);
}

/* dx = r d and dy = s d, and this block's sums of d x and d y to partial (2, blocks). y may be x:
 * then dx = (r + s) d, and dy is NULL. */
template <typename V>
static __global__ void mix_backward(V *dx, V *dy, double *partial, const V *x, const V *y,
                                    const V *d, const float *r, const float *s, int64_t n,
                                    bool add_x, bool add_y) {
    const float by_x = x == y ? *r + *s : *r, by_y = *s;
    double along_x = 0, along_y = 0;
    for (int64_t i = global_thread(); i < n; i += (int64_t)gridDim.x * BLOCK) {
        const V u = x[i], v = y[i], g = d[i];
        Pack<float, V::N> to_x, to_y;
        for (int j = 0; j < V::N; j++) {
            const float slope = to_float(g.at[j]);
            along_x += (double)slope * (double)to_float(u.at[j]);
            along_y += (double)slope * (double)to_float(v.at[j]);
            to_x.at[j] = by_x * slope;
            to_y.at[j] = by_y * slope;
        }
        if (dx) put(dx + i, to_x, add_x);
        if (dy) put(dy + i, to_y, add_y);
    }
    along_x = block_sum(along_x);
    along_y = block_sum(along_y);
    if (threadIdx.x) return;
    partial[blockIdx.x] = along_x;
    partial[gridDim.x + blockIdx.x] = along_y;
}

/* Of n factors the used one gets its sum over blocks; the others nothing, or (not add) zero. One
 * block. */
static __global__ void mix_factors(float *dr, float *ds, const double *partial, int64_t blocks,
                                   int n, int used, bool add_r, bool add_s) {
    const double along_x = block_sum(partial, blocks);
    const double along_y = block_sum(partial + blocks, blocks);
    for (int i = (int)threadIdx.x; i < n; i += BLOCK) {
        if (dr) put(dr + i, i == used ? (float)along_x : 0.0f, add_r);
        if (ds) put(ds + i, i == used ? (float)along_y : 0.0f, add_s);
    }
}

void cuda_mix_forward(Ctx *c, const OpCall *o) {
    const Tensor *x = o->in[0], *y = o->in[1] ? o->in[1] : x;
    const int64_t n = tensor_numel(x);
    with_pack(c->dtype, n, [&](auto pack) {
        typedef decltype(pack) V;
        launch(c, mix_forward<V>, grid_for(n / V::N), BLOCK, 0, (V *)o->out[0]->data,
               (const V *)x->data, (const V *)y->data, (const float *)o->in[2]->data + o->attr.part,
               (const float *)o->in[3]->data + o->attr.part, n / V::N);
    });
}

void cuda_mix_backward(Ctx *c, const OpCall *o) {
    enum { MAX_BLOCKS = 1024 };
    const Tensor *x = o->in[0], *y = o->in[1] ? o->in[1] : x, *r = o->in[2], *s = o->in[3];
    const int64_t n = tensor_numel(x);
    double *partial = (double *)ctx_workspace(c, sizeof(double) * 2 * MAX_BLOCKS);
    unsigned blocks = 0;
    with_pack(c->dtype, n, [&](auto pack) {
        typedef decltype(pack) V;
        blocks = grid_for(n / V::N).x;
        if (blocks > MAX_BLOCKS) blocks = MAX_BLOCKS;
        launch(c, mix_backward<V>, blocks, BLOCK, 0, grad_of<V>(x), y == x ? NULL : grad_of<V>(y),
               partial, (const V *)x->data, (const V *)y->data, (const V *)o->out[0]->grad,
               (const float *)r->data + o->attr.part, (const float *)s->data + o->attr.part,
               n / V::N, x->grad_set, y->grad_set);
    });
    launch(c, mix_factors, 1, BLOCK, 0, grad_of<float>(r), grad_of<float>(s), partial, blocks,
           (int)tensor_numel(r), o->attr.part, r->grad_set, s->grad_set);
}
