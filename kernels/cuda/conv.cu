/* Correlations as products (im2col): each pixel's k x k neighbours are gathered into a row, and the
 * rows go through cuda_gemm with the weight in the same order. The gradient of the input is again a
 * correlation, of dy with the weight turned by half a circle and its channels exchanged, so nothing
 * is scattered and no sum needs an atomic. A row is k^2 times a pixel, so rows are made in blocks
 * that bound the workspace.
 *
 * On Hopper in bf16, with channels by 64, the rows are never made: conv_sm90 takes what
 * conv_sm90_fits says, with the same order of the weight.
 *
 * D channels in, R channels out of such a correlation: I and O forward, O and I backward. */
#include "kernels/cuda/conv_sm90.cuh"
#include "kernels/cuda/gemm.cuh"
#include "kernels/cuda/rows.cuh"

enum { IM2COL_BYTES = 256 << 20 };

/* One correlation's sizes. Rows are padded with zeros to whole packs: cuBLASLt uses the matrix
 * units only where rows begin at multiples of 16 bytes, and three colours make 27 numbers. */
typedef struct Im2col {
    int64_t pixels; /* of all images */
    int h, w, k, D;
    int64_t cols;  /* k k D, padded */
    int64_t block; /* rows made at a time */
} Im2col;

static Im2col im2col_of(const Tensor *x, int k) {
    const int64_t pack = (int64_t)(16 / dtype_size(x->dtype)),
                  row = (int64_t)k * k * tensor_cols(x);
    Im2col p = {};
    p.pixels = tensor_rows(x);
    p.h = (int)x->shape[x->ndim - 3], p.w = (int)x->shape[x->ndim - 2];
    p.k = k, p.D = (int)tensor_cols(x);
    p.cols = div_up(row, pack) * pack;
    p.block = IM2COL_BYTES / (p.cols * (int64_t)dtype_size(x->dtype));
    if (p.block < 1) p.block = 1;
    if (p.block > p.pixels) p.block = p.pixels;
    return p;
}

static size_t im2col_bytes(const Im2col *p, DType dtype) {
    const size_t bytes = (size_t)(p->block * p->cols) * dtype_size(dtype);
    return (bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
}

/* ---- im2col ---- */

/* rows (n, cols): row r, column (ky, kx, d) = x at (py + ky - k/2, px + kx - k/2, d) or zero, for
 * pixel `first` + r counted from the image where x begins. A thread makes 16 bytes; `whole`: they
 * lie in one pixel. Writes each number once and reads it k^2 times, mostly from the cache. */
template <typename T, bool whole>
static __global__ void im2col(T *rows, const T *x, Im2col p, unsigned first, unsigned n) {
    enum { V = Pack<T>::N };
    const unsigned packs = (unsigned)p.cols / V;
    const int64_t i = global_thread();
    if (i >= (int64_t)n * packs) return;
    const unsigned row = (unsigned)i / packs, pixel = first + row;
    const unsigned col = ((unsigned)i - row * packs) * V;
    const int px = (int)(pixel % p.w), py = (int)(pixel / p.w % p.h);
    Pack<T> out;
#pragma unroll
    for (int j = 0; j < V; j += whole ? (int)V : 1) {
        const int tap = (int)(col + j) / p.D, d = (int)(col + j) % p.D;
        const int dy = tap / p.k - p.k / 2, dx = tap % p.k - p.k / 2;
        const bool inside = tap < p.k * p.k && (unsigned)(py + dy) < (unsigned)p.h &&
                            (unsigned)(px + dx) < (unsigned)p.w;
        const T *from = x + ((int64_t)pixel + dy * p.w + dx) * p.D + d;
        if (!whole)
            out.at[j] = inside ? *from : from_float<T>(0);
        else if (inside)
            out = load_pack(from);
        else
            out = Pack<T>();
    }
    *(Pack<T> *)(rows + (int64_t)row * p.cols + col) = out;
}

static void im2col_block(Ctx *c, DType dtype, void *rows, const void *x, const Im2col *p,
                         int64_t first, int64_t n) {
    const int64_t image = (int64_t)p->h * p->w, start = first / image * image;
    with_dtype(dtype, [&](auto zero) {
        typedef decltype(zero) T;
        enum { V = Pack<T>::N };
        void (*const kernel)(T *, const T *, Im2col, unsigned, unsigned) =
            p->D % V == 0 ? im2col<T, true> : im2col<T, false>;
        launch(c, kernel, grid_for(n * p->cols / V), BLOCK, 0, (T *)rows,
               (const T *)x + start * p->D, *p, first - start, n);
    });
}

/* ---- the weight's order ---- */

/* packed (R, cols) from weight (O, I, k k), in a row's order: (tap, d); zeros behind. turned: R is
 * I, D is O, and the taps run backwards. */
template <typename T>
static __global__ void pack_weight(T *packed, const T *weight, int R, int taps, int D, int cols,
                                   bool turned) {
    const int64_t i = global_thread();
    if (i >= (int64_t)R * cols) return;
    const int r = (int)(i / cols), tap = (int)(i % cols) / D, d = (int)(i % cols) % D;
    const int64_t from =
        turned ? ((int64_t)d * R + r) * taps + taps - 1 - tap : ((int64_t)r * D + d) * taps + tap;
    packed[i] = tap < taps ? weight[from] : from_float<T>(0);
}

static void pack(Ctx *c, const Tensor *weight, int64_t R, const Im2col *p, bool turned, void *to) {
    with_dtype(weight->dtype, [&](auto zero) {
        typedef decltype(zero) T;
        launch(c, pack_weight<T>, grid_for(R * p->cols), BLOCK, 0, (T *)to, (const T *)weight->data,
               R, p->k * p->k, p->D, p->cols, turned);
    });
}

/* grad (O, I, k k) = or += packed (O, cols) */
static __global__ void unpack_gradient(float *grad, const float *packed, int64_t n, int taps, int I,
                                       int cols, bool add) {
    const int64_t i = global_thread();
    if (i >= n) return;
    const int64_t o = i / ((int64_t)I * taps);
    const int d = (int)(i / taps % I), tap = (int)(i % taps);
    put(grad + i, packed[o * cols + (int64_t)tap * I + d], add);
}

/* ---- the three correlations ---- */

static Correlation correlation_of(const Im2col *p, int64_t R) {
    return {p->pixels / p->h / p->w, p->h, p->w, p->k, p->D, (int)R};
}

/* y (pixels, R) = or (add) += the correlation of x (pixels, D) with the weight, plus bias. */
static void correlate(Ctx *c, const Im2col *p, DType dtype, const void *x, const Tensor *weight,
                      int64_t R, bool turned, const void *bias, void *y, bool add) {
    const Correlation s = correlation_of(p, R);
    const bool direct = conv_sm90_fits(c, dtype, &s);
    const size_t size = dtype_size(dtype), rows_bytes = direct ? 0 : im2col_bytes(p, dtype);
    char *rows = (char *)ctx_workspace(c, rows_bytes + (size_t)(R * p->cols) * size);
    char *packed = rows + rows_bytes;
    pack(c, weight, R, p, turned, packed);
    if (direct) {
        conv_sm90(c, &s, x, packed, bias, y, add);
        return;
    }
    Gemm g = {};
    g.N = R, g.K = p->cols;
    g.tb = true;
    g.in = g.out = dtype;
    g.A = rows, g.lda = p->cols;
    g.B = packed, g.ldb = p->cols;
    g.ldc = R;
    g.alpha = 1, g.beta = add;
    g.bias = bias;
    for (int64_t first = 0; first < p->pixels; first += g.M) {
        g.M = p->pixels - first < p->block ? p->pixels - first : p->block;
        g.C = (char *)y + (size_t)(first * R) * size;
        im2col_block(c, dtype, rows, x, p, first, g.M);
        cuda_gemm(c, &g);
    }
}

/* dW (O, I, k k) = or += dy' rows */
static void weight_gradient(Ctx *c, const Im2col *p, const Tensor *x, const Tensor *w,
                            const void *dy) {
    const int64_t O = w->shape[0];
    const size_t size = dtype_size(x->dtype);
    char *rows =
        (char *)ctx_workspace(c, im2col_bytes(p, x->dtype) + sizeof(float) * (size_t)(O * p->cols));
    float *packed = (float *)(rows + im2col_bytes(p, x->dtype));
    Gemm g = {};
    g.M = O, g.N = p->cols;
    g.ta = true;
    g.in = x->dtype, g.out = DT_F32;
    g.lda = O;
    g.B = rows, g.ldb = p->cols;
    g.C = packed, g.ldc = p->cols;
    g.alpha = 1;
    for (int64_t first = 0; first < p->pixels; first += g.K) {
        g.K = p->pixels - first < p->block ? p->pixels - first : p->block;
        g.A = (const char *)dy + (size_t)(first * O) * size;
        g.beta = first > 0;
        im2col_block(c, x->dtype, rows, x->data, p, first, g.K);
        cuda_gemm(c, &g);
    }
    const int64_t n = tensor_numel(w);
    launch(c, unpack_gradient, grid_for(n), BLOCK, 0, (float *)w->grad, packed, n, p->k * p->k,
           p->D, p->cols, w->grad_set);
}

void cuda_conv2d_forward(Ctx *c, const OpCall *o) {
    const Tensor *x = o->in[0], *w = o->in[1], *b = o->in[2], *y = o->out[0];
    const Im2col p = im2col_of(x, (int)w->shape[2]);
    correlate(c, &p, x->dtype, x->data, w, w->shape[0], false, b ? b->data : NULL, y->data, false);
}

void cuda_conv2d_backward(Ctx *c, const OpCall *o) {
    const Tensor *x = o->in[0], *w = o->in[1], *b = o->in[2], *y = o->out[0];
    const Im2col from_x = im2col_of(x, (int)w->shape[2]);
    const Im2col from_y = im2col_of(y, (int)w->shape[2]);
    if (b && b->grad) cuda_sum_rows(c, y->dtype, y->grad, tensor_cols(y), tensor_rows(y), b);
    const Correlation s = correlation_of(&from_x, w->shape[0]);
    if (w->grad && conv_sm90_fits(c, x->dtype, &s))
        conv_sm90_weight(c, &s, x->data, y->grad, w);
    else if (w->grad)
        weight_gradient(c, &from_x, x, w, y->grad);
    if (x->grad)
        correlate(c, &from_y, y->dtype, y->grad, w, w->shape[1], true, NULL, x->grad, x->grad_set);
}
