/* Dropout: the numbers are the CPU's, so that a run drops the same elements on every device.
 * Element i of a call has number (layer << 40) + i of the stream, four numbers to a block of Philox
 * (llmc_like/philox.h); backward draws them again. */
#include "kernels/cuda/philox.cuh"

typedef struct Dropout {
    Stream stream;  /* element 0's number is a multiple of 4 */
    uint32_t below; /* dropped where the number is below it */
    float scale;    /* of what is kept: 1 / (1 - p) */
} Dropout;

static Dropout dropout_of(const OpCall *o) {
    Dropout d;
    d.stream = stream_of(o, RNG_DROPOUT, (uint64_t)o->attr.layer << 40);
    d.below = (uint32_t)ceil((double)o->attr.p * 0x1p32);
    d.scale = 1.0f / (1.0f - o->attr.p);
    return d;
}

/* What the elements of pack i are multiplied by. */
template <int N>
static __device__ __forceinline__ Pack<float, N> factors(Dropout d, int64_t i) {
    const uint64_t number = d.stream.first + (uint64_t)i * N;
    const int skip = N % 4 ? (int)(number % 4) : 0;
    Pack<float, N> factor = {};
    for (int k = 0; k < N; k += 4) {
        const uint4 bits = stream_block(d.stream, number / 4 + (uint64_t)(k / 4));
        const uint32_t word[4] = {bits.x, bits.y, bits.z, bits.w};
        for (int j = 0; j < 4; j++)
            if (j >= skip && k + j - skip < N)
                factor.at[k + j - skip] = word[j] < d.below ? 0 : d.scale;
    }
    return factor;
}

/* y = x + src times its factors; x NULL: 0. A product, so that a NaN stays one. */
template <typename V>
static __global__ void drop_forward(V *y, const V *x, const V *src, Dropout d, int64_t n) {
    const int64_t i = global_thread();
    if (i >= n) return;
    const V v = src[i], base = x ? x[i] : V();
    Pack<float, V::N> out = factors<V::N>(d, i);
    for (int j = 0; j < V::N; j++) out.at[j] = to_float(base.at[j]) + to_float(v.at[j]) * out.at[j];
    put(y + i, out, false);
}

/* dx takes dy, dsrc dy times its factors; NULL: nothing to do. */
template <typename V>
static __global__ void drop_backward(V *dx, V *dsrc, const V *dy, Dropout d, int64_t n, bool add_x,
                                     bool add_src) {
    const int64_t i = global_thread();
    if (i >= n) return;
    const V v = dy[i];
    if (dx) put(dx + i, v, add_x);
    if (!dsrc) return;
    Pack<float, V::N> out = factors<V::N>(d, i);
    for (int j = 0; j < V::N; j++) out.at[j] *= to_float(v.at[j]);
    put(dsrc + i, out, add_src);
}

static void forward(Ctx *c, const OpCall *o, const Tensor *base, const Tensor *src) {
    const int64_t n = tensor_numel(src);
    with_pack(c->dtype, n, [&](auto pack) {
        typedef decltype(pack) V;
        launch(c, drop_forward<V>, grid_for(n / V::N), BLOCK, 0, (V *)o->out[0]->data,
               base ? (const V *)base->data : NULL, (const V *)src->data, dropout_of(o), n / V::N);
    });
}

static void backward(Ctx *c, const OpCall *o, const Tensor *base, const Tensor *src) {
    const int64_t n = tensor_numel(src);
    with_pack(c->dtype, n, [&](auto pack) {
        typedef decltype(pack) V;
        const V *dy = (const V *)o->out[0]->grad;
        V *dx = base ? grad_of<V>(base) : NULL, *dsrc = grad_of<V>(src);
        if (dx == dy) dx = NULL; /* the tape hands dy itself to x */
        if (dx || dsrc)
            launch(c, drop_backward<V>, grid_for(n / V::N), BLOCK, 0, dx, dsrc, dy, dropout_of(o),
                   n / V::N, base && base->grad_set, src->grad_set);
    });
}

void cuda_dropout_forward(Ctx *c, const OpCall *o) { forward(c, o, NULL, o->in[0]); }
void cuda_dropout_backward(Ctx *c, const OpCall *o) { backward(c, o, NULL, o->in[0]); }
void cuda_dropout_add_forward(Ctx *c, const OpCall *o) { forward(c, o, o->in[0], o->in[1]); }
void cuda_dropout_add_backward(Ctx *c, const OpCall *o) { backward(c, o, o->in[0], o->in[1]); }
