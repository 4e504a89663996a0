/* Group normalisation on channels-last images. A block takes an image: a thread the same pack of
 * each of its pixels, so that the sums per channel are in registers, and a group's are then added
 * up in double. The image is read twice, the second time from the cache: in device memory's traffic
 * forward reads x and writes y, backward reads x and dy and writes dx. */
#include "kernels/cuda/rows.cuh"

enum { IMAGE_BLOCK = 512 };

typedef struct Images {
    int pixels, C, groups, per; /* per: channels a group */
} Images;

/* Which of an image's numbers a thread takes, for columns from j0 on: pack j of pixels row, row +
 * rows, ... A thread that is left over has j = C. */
typedef struct ImagePlace {
    int width, rows, row, j; /* width: packs of a pixel side by side in a block */
} ImagePlace;

template <int N>
static __device__ __forceinline__ ImagePlace image_place(const Images &s, int j0) {
    ImagePlace p;
    p.width = min(s.C / N, (int)IMAGE_BLOCK);
    p.rows = IMAGE_BLOCK / p.width;
    p.row = (int)threadIdx.x / p.width;
    p.j = j0 + (int)threadIdx.x % p.width * N;
    if (p.row >= p.rows || p.j > s.C) p.j = s.C;
    return p;
}

/* first (C) and second (C) = the sums over an image's pixels of what f(at, j, u, v) adds to u[N]
 * and v[N] for the pack at x[at], columns j .. j + N - 1. All threads call it; ends with a barrier.
 */
template <int N, typename F>
static __device__ __forceinline__ void channel_sums(const Images &s, float *first, float *second,
                                                    F f) {
    __shared__ float total[IMAGE_BLOCK * N];
    const int step = min(s.C / N, (int)IMAGE_BLOCK) * N;
    for (int j0 = 0; j0 < s.C; j0 += step) {
        const ImagePlace p = image_place<N>(s, j0);
        float sum[2][N] = {};
        if (p.j < s.C)
            for (int pixel = p.row; pixel < s.pixels; pixel += p.rows)
                f((int64_t)pixel * s.C + p.j, p.j, sum[0], sum[1]);
        for (int which = 0; which < 2; which++) {
            float *to = which ? second : first;
            sum_columns<1, N>(total, sum[which], p.width);
            for (int i = (int)threadIdx.x; i < step && j0 + i < s.C; i += IMAGE_BLOCK)
                to[j0 + i] = total[i];
        }
    }
    __syncthreads();
}

/* mean and rstd (images, groups) are saved; sums (images, 2 C) is scratch. Numbers are summed less
 * the first one of their group, so that the square of a large mean does not swallow the variance.
 */
template <typename T, int N>
static __global__ void __launch_bounds__(IMAGE_BLOCK, 2)
    groupnorm_forward(T *y, float *mean, float *rstd, float *sums, const T *x, const float *weight,
                      const float *bias, Images s, float eps) {
    const int64_t image = blockIdx.x, size = (int64_t)s.pixels * s.C;
    x += image * size;
    y += image * size;
    mean += image * s.groups;
    rstd += image * s.groups;
    float *sum = sums + image * 2 * s.C, *squares = sum + s.C;
    channel_sums<N>(s, sum, squares, [&](int64_t at, int j, float *u, float *v) {
        const Pack<T, N> values = load_pack<N>(x + at);
        for (int i = 0; i < N; i++) {
            const float d = to_float(values.at[i]) - to_float(x[(j + i) / s.per * s.per]);
            u[i] += d;
            v[i] += d * d;
        }
    });
    for (int g = (int)threadIdx.x; g < s.groups; g += IMAGE_BLOCK) {
        const double n = (double)s.pixels * s.per;
        double d = 0, d2 = 0;
        for (int j = g * s.per; j < (g + 1) * s.per; j++) d += sum[j], d2 += squares[j];
        mean[g] = (float)((double)to_float(x[g * s.per]) + d / n);
        rstd[g] = (float)(1.0 / sqrt((d2 - d * d / n) / n + (double)eps));
    }
    __syncthreads();
    const int step = min(s.C / N, (int)IMAGE_BLOCK) * N;
    for (int j0 = 0; j0 < s.C; j0 += step) {
        const ImagePlace p = image_place<N>(s, j0);
        if (p.j >= s.C) continue;
        float centre[N], scale[N], shift[N];
        for (int i = 0; i < N; i++) {
            centre[i] = mean[(p.j + i) / s.per];
            scale[i] = rstd[(p.j + i) / s.per] * weight[p.j + i];
            shift[i] = bias[p.j + i];
        }
        for (int pixel = p.row; pixel < s.pixels; pixel += p.rows) {
            const int64_t at = (int64_t)pixel * s.C + p.j;
            const Pack<T, N> v = load_pack<N>(x + at);
            Pack<float, N> out;
            for (int i = 0; i < N; i++)
                out.at[i] = (to_float(v.at[i]) - centre[i]) * scale[i] + shift[i];
            put_pack(y + at, out, false);
        }
    }
}

/* With n = (x - mean) rstd and g = dy weight: dx = rstd (g - mean(g) - n mean(g n)), the means over
 * the group. sums (images, 2 C): each image's sums of dy n and of dy; means (images, 2 groups) is
 * scratch. */
template <typename T>
struct GroupBackward {
    const T *x, *dy;
    const float *weight, *mean, *rstd;
    T *dx; /* NULL: not wanted */
    float *sums, *means;
    Images s;
    bool add;
};

template <typename T, int N>
static __global__ void __launch_bounds__(IMAGE_BLOCK, 2) groupnorm_backward(GroupBackward<T> p) {
    const Images s = p.s;
    const int64_t image = blockIdx.x, start = image * s.pixels * s.C;
    const T *x = p.x + start, *dy = p.dy + start;
    const float *mean = p.mean + image * s.groups, *rstd = p.rstd + image * s.groups;
    float *sum_dn = p.sums + image * 2 * s.C, *sum_d = sum_dn + s.C;
    float *slope = p.means + image * 2 * s.groups, *centre = slope + s.groups;
    channel_sums<N>(s, sum_dn, sum_d, [&](int64_t at, int j, float *u, float *v) {
        const Pack<T, N> values = load_pack<N>(x + at), d = load_pack<N>(dy + at);
        for (int i = 0; i < N; i++) {
            const int g = (j + i) / s.per;
            u[i] += to_float(d.at[i]) * ((to_float(values.at[i]) - mean[g]) * rstd[g]);
            v[i] += to_float(d.at[i]);
        }
    });
    if (!p.dx) return;
    for (int g = (int)threadIdx.x; g < s.groups; g += IMAGE_BLOCK) {
        const double n = (double)s.pixels * s.per;
        double dn = 0, d = 0;
        for (int j = g * s.per; j < (g + 1) * s.per; j++) {
            dn += (double)p.weight[j] * sum_dn[j];
            d += (double)p.weight[j] * sum_d[j];
        }
        slope[g] = (float)(dn / n);
        centre[g] = (float)(d / n);
    }
    __syncthreads();
    const int step = min(s.C / N, (int)IMAGE_BLOCK) * N;
    for (int j0 = 0; j0 < s.C; j0 += step) {
        const ImagePlace q = image_place<N>(s, j0);
        if (q.j >= s.C) continue;
        float m[N], w[N], a[N], b[N]; /* dx = dy w - a - (x - m) b */
        for (int i = 0; i < N; i++) {
            const int g = (q.j + i) / s.per;
            m[i] = mean[g];
            w[i] = rstd[g] * p.weight[q.j + i];
            a[i] = rstd[g] * centre[g];
            b[i] = rstd[g] * rstd[g] * slope[g];
        }
        for (int pixel = q.row; pixel < s.pixels; pixel += q.rows) {
            const int64_t at = (int64_t)pixel * s.C + q.j;
            const Pack<T, N> v = load_pack<N>(x + at), d = load_pack<N>(dy + at);
            Pack<float, N> out;
            for (int i = 0; i < N; i++)
                out.at[i] = to_float(d.at[i]) * w[i] - a[i] - (to_float(v.at[i]) - m[i]) * b[i];
            put_pack(p.dx + start + at, out, p.add);
        }
    }
}

static Images images_of(const OpCall *o) {
    const Tensor *x = o->in[0];
    Images s;
    s.pixels = (int)(x->shape[x->ndim - 2] * x->shape[x->ndim - 3]);
    s.C = (int)tensor_cols(x);
    s.groups = o->attr.groups;
    s.per = s.C / s.groups;
    return s;
}

void cuda_groupnorm_forward(Ctx *c, const OpCall *o) {
    const Images s = images_of(o);
    const int64_t images = tensor_rows(o->in[0]) / s.pixels;
    float *sums = (float *)ctx_workspace(c, sizeof(float) * (size_t)(2 * images * s.C));
    with_dtype(c->dtype, [&](auto zero) {
        typedef decltype(zero) T;
        with_pack<T>(s.C, [&](auto pack) {
            launch(c, groupnorm_forward<T, decltype(pack)::N>, (unsigned)images, IMAGE_BLOCK, 0,
                   (T *)o->out[0]->data, (float *)o->saved[0]->data, (float *)o->saved[1]->data,
                   sums, (const T *)o->in[0]->data, (const float *)o->in[1]->data,
                   (const float *)o->in[2]->data, s, o->attr.eps);
        });
    });
}

void cuda_groupnorm_backward(Ctx *c, const OpCall *o) {
    const Images s = images_of(o);
    const int64_t images = tensor_rows(o->in[0]) / s.pixels;
    float *sums =
        (float *)ctx_workspace(c, sizeof(float) * (size_t)(2 * images * (s.C + s.groups)));
    with_dtype(c->dtype, [&](auto zero) {
        typedef decltype(zero) T;
        GroupBackward<T> p;
        p.x = (const T *)o->in[0]->data;
        p.dy = (const T *)o->out[0]->grad;
        p.weight = (const float *)o->in[1]->data;
        p.mean = (const float *)o->saved[0]->data;
        p.rstd = (const float *)o->saved[1]->data;
        p.dx = grad_of<T>(o->in[0]);
        p.sums = sums;
        p.means = sums + 2 * images * s.C;
        p.s = s;
        p.add = o->in[0]->grad_set;
        with_pack<T>(s.C, [&](auto pack) {
            launch(c, groupnorm_backward<T, decltype(pack)::N>, (unsigned)images, IMAGE_BLOCK, 0,
                   p);
        });
    });
    cuda_sum_partials(c, sums, images, s.C, o->in[1], o->in[2]);
}
