/* Dropout: the numbers are the CPU's, so that a run drops the same elements on every device.
 * Element i of a call has number (layer << 40) + i of the stream, four numbers to a block of Philox
 * (llmc_like/philox.h); backward draws them again. */
#include <curand_philox4x32_x.h>

#include "kernels/cuda/rows.cuh"

extern "C" {
#include "llmc_like/philox.h"
}

struct Dropout {
    uint64_t first; /* number of element 0; a multiple of 4 */
    uint2 key;
    uint32_t step, below; /* dropped where the number is below it */
    float scale;          /* of what is kept: 1 / (1 - p) */
};

static Dropout dropout_of(const OpCall *o) {
    Dropout d;
    d.first = (uint64_t)o->attr.layer << 40;
    d.key = make_uint2((uint32_t)o->attr.seed, (uint32_t)(o->attr.seed >> 32));
    d.step = o->attr.step;
    d.below = (uint32_t)ceil((double)o->attr.p * 0x1p32);
    d.scale = 1.0f / (1.0f - o->attr.p);
    return d;
}

/* What elements first .. first + N - 1 are multiplied by; first is a multiple of N. */
template <int N>
static __device__ __forceinline__ void factors(Dropout d, int64_t first, float *factor) {
    const uint64_t number = d.first + (uint64_t)first;
    const int skip = N % 4 ? (int)(number % 4) : 0;
    for (int i = 0; i < N; i += 4) {
        const uint64_t block = number / 4 + (uint64_t)(i / 4);
        const uint4 bits = curand_Philox4x32_10(
            make_uint4((uint32_t)block, (uint32_t)(block >> 32), d.step, RNG_DROPOUT), d.key);
        const uint32_t word[4] = {bits.x, bits.y, bits.z, bits.w};
        for (int j = 0; j < 4; j++)
            if (j >= skip && i + j - skip < N)
                factor[i + j - skip] = word[j] < d.below ? 0 : d.scale;
    }
}

/* y = x + src times its factors; x NULL: 0. A product, so that a NaN stays one. */
template <typename T, int N>
static __global__ void drop_forward(T *y, const T *x, const T *src, Dropout d, int64_t n) {
    const int64_t first = global_thread() * N;
    if (first >= n) return;
    const int count = part_count<N>(first, n);
    const Part<T, N> v = load_part<N>(src + first, count);
    const Part<T, N> base = x ? load_part<N>(x + first, count) : zero_part<N, T>();
    float factor[N], out[N];
    factors<N>(d, first, factor);
    for (int i = 0; i < N; i++) out[i] = to_float(base.at[i]) + to_float(v.at[i]) * factor[i];
    put_part<N>(y + first, out, false, count);
}

/* dx takes dy, dsrc dy times its factors; NULL: nothing to do. */
template <typename T, int N>
static __global__ void drop_backward(T *dx, T *dsrc, const T *dy, Dropout d, int64_t n, bool add_x,
                                     bool add_src) {
    const int64_t first = global_thread() * N;
    if (first >= n) return;
    const int count = part_count<N>(first, n);
    const Part<T, N> v = load_part<N>(dy + first, count);
    float factor[N], out[N];
    for (int i = 0; i < N; i++) out[i] = to_float(v.at[i]);
    if (dx) put_part<N>(dx + first, out, add_x, count);
    if (!dsrc) return;
    factors<N>(d, first, factor);
    for (int i = 0; i < N; i++) out[i] *= factor[i];
    put_part<N>(dsrc + first, out, add_src, count);
}

static void forward(Ctx *c, const OpCall *o, const Tensor *base, const Tensor *src) {
    with_dtype(c->dtype, [&](auto t) {
        typedef decltype(t) T;
        const T *x = base ? (const T *)base->data : NULL, *v = (const T *)src->data;
        T *y = (T *)o->out[0]->data;
        const int64_t n = tensor_numel(src);
        with_part<T>(is_packed<T>(0, x, v, y), [&](auto part) {
            enum { N = decltype(part)::N };
            launch(c, drop_forward<T, N>, grid_for((n + N - 1) / N), BLOCK, 0, y, x, v,
                   dropout_of(o), n);
        });
    });
}

static void backward(Ctx *c, const OpCall *o, const Tensor *base, const Tensor *src) {
    with_dtype(c->dtype, [&](auto t) {
        typedef decltype(t) T;
        const T *dy = (const T *)o->out[0]->grad;
        T *dx = base ? grad_of<T>(base) : NULL, *dsrc = grad_of<T>(src);
        if (dx == dy) dx = NULL; /* the tape hands dy itself to x */
        if (!dx && !dsrc) return;
        const int64_t n = tensor_numel(src);
        with_part<T>(is_packed<T>(0, dy, dx, dsrc), [&](auto part) {
            enum { N = decltype(part)::N };
            launch(c, drop_backward<T, N>, grid_for((n + N - 1) / N), BLOCK, 0, dx, dsrc, dy,
                   dropout_of(o), n, base && base->grad_set, src->grad_set);
        });
    });
}

void cuda_dropout_forward(Ctx *c, const OpCall *o) { forward(c, o, NULL, o->in[0]); }
void cuda_dropout_backward(Ctx *c, const OpCall *o) { backward(c, o, NULL, o->in[0]); }
void cuda_dropout_add_forward(Ctx *c, const OpCall *o) { forward(c, o, o->in[0], o->in[1]); }
void cuda_dropout_add_backward(Ctx *c, const OpCall *o) { backward(c, o, o->in[0], o->in[1]); }
