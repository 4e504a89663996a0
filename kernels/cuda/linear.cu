/* y = act(x W' + b): products by cuBLASLt, with bias, ReLU and residual in the first one's
 * epilogue. GELU is a pass of its own, since the library's is the tanh approximation.
 *
 * The bias's gradient is a pass over dy, which the slope of the activation shares. cuBLASLt could
 * sum dy's columns beside dW (BGRADB), but it can only overwrite, in an order and for a set of
 * types that are not promised. */
#include "kernels/cuda/gelu.cuh"
#include "kernels/cuda/gemm.cuh"

/* ---- activations ---- */

/* y = gelu(sum), which may be y. Reads and writes each number once. */
template <typename T, int V>
static __global__ void gelu_rows(T *y, const T *sum, int64_t n) {
    const int64_t i = global_thread() * V;
    if (i >= n) return;
    Few<T, V> x = *(const Few<T, V> *)(sum + i);
    for (int j = 0; j < V; j++) x.at[j] = from_float<T>(gelu(to_float(x.at[j])));
    *(Few<T, V> *)(y + i) = x;
}

static void gelu_forward(Ctx *c, DType dtype, void *y, const void *sum, int64_t n) {
    with_dtype(dtype, [=](auto zero) {
        typedef decltype(zero) T;
        enum { V = Pack<T>::N };
        if (n % V == 0)
            launch(c, gelu_rows<T, V>, grid_for(n / V), dim3(BLOCK), 0, (T *)y, (const T *)sum, n);
        else
            launch(c, gelu_rows<T, 1>, grid_for(n), dim3(BLOCK), 0, (T *)y, (const T *)sum, n);
    });
}

/* dy times the activation's slope: GELU's at the sum, ReLU's at the output (NaN passes). */
template <int ACT>
static __device__ __forceinline__ float through(float dy, float at) {
    if (ACT == ACT_GELU) return dy * gelu_slope(at);
    return at <= 0 ? 0 : dy;
}

/* ---- column sums, and the activation's slope on the way ----
 *
 * Stage one: a block takes some rows of a tile of `width` times V columns, its threads side by side
 * in rows of `width`, and leaves one row of sums. Stage two adds those rows. The sizes follow from
 * the shape alone, so the order of the sums does. */

enum {
    TILE_WIDTH = 64,  /* threads across a tile at most: 1 KB of a row */
    MIN_ROWS = 32,    /* a block's rows at least, */
    MAX_CHUNKS = 512, /* and the most blocks in a column */
    SLICES = BLOCK / WARP
};

typedef struct Sums {
    int64_t rows, cols;
    int width;          /* threads across a tile */
    int64_t block_rows; /* rows of a block of stage one */
    int64_t chunks;     /* blocks in a column */
} Sums;

/* partial: (chunks, cols), or NULL where only dy is wanted. dy is rewritten unless ACT is NONE. One
 * pass: reads dy (and at), writes dy where it changes. */
template <typename T, int V, int ACT>
static __global__ void sum_chunk(T *dy, const T *at, Sums s, float *partial) {
    __shared__ float part[BLOCK * V];
    const int lane = (int)threadIdx.x % s.width, first = (int)threadIdx.x / s.width;
    const int step = BLOCK / s.width;
    const int64_t tile = (int64_t)blockIdx.x * s.width * V, col = tile + lane * V;
    const int64_t begin = blockIdx.y * s.block_rows, left = s.rows - begin;
    const int64_t end = begin + (left < s.block_rows ? left : s.block_rows);
    float sum[V] = {};
    if (first < step && col < s.cols) {
#pragma unroll 4
        for (int64_t r = begin + first; r < end; r += step) {
            Few<T, V> d = *(const Few<T, V> *)(dy + r * s.cols + col), x;
            if (ACT != ACT_NONE) x = *(const Few<T, V> *)(at + r * s.cols + col);
            for (int j = 0; j < V; j++) {
                float v = to_float(d.at[j]);
                if (ACT != ACT_NONE) v = through<ACT>(v, to_float(x.at[j]));
                if (ACT != ACT_NONE) d.at[j] = from_float<T>(v);
                sum[j] += v;
            }
            if (ACT != ACT_NONE) *(Few<T, V> *)(dy + r * s.cols + col) = d;
        }
    }
    if (!partial) return;
    for (int j = 0; j < V; j++) part[threadIdx.x * V + j] = sum[j];
    __syncthreads();
    for (int i = (int)threadIdx.x; i < s.width * V && tile + i < s.cols; i += BLOCK) {
        float total = 0;
        for (int g = 0; g < step; g++) total += part[g * s.width * V + i];
        partial[blockIdx.y * s.cols + tile + i] = total;
    }
}

/* A warp takes the same 32 columns of every eighth row. */
static __global__ void add_chunks(float *sums, const float *partial, int64_t chunks, int64_t cols,
                                  bool add) {
    __shared__ float part[SLICES][WARP];
    const int lane = (int)threadIdx.x % WARP, slice = (int)threadIdx.x / WARP;
    const int64_t col = (int64_t)blockIdx.x * WARP + lane;
    float sum = 0;
    if (col < cols) {
#pragma unroll 8
        for (int64_t i = slice; i < chunks; i += SLICES) sum += partial[i * cols + col];
    }
    part[slice][lane] = sum;
    __syncthreads();
    if (slice > 0 || col >= cols) return;
    for (int i = 1; i < SLICES; i++) sum += part[i][lane];
    sums[col] = add ? sums[col] + sum : sum;
}

template <typename T, int V>
static void sum_chunks(Ctx *c, T *dy, const T *at, int activation, const Sums *s, float *partial) {
    const int64_t lanes = s->cols / V;
    const dim3 grid((unsigned)((lanes + s->width - 1) / s->width), (unsigned)s->chunks);
    void (*const kernel)(T *, const T *, Sums, float *) =
        activation == ACT_GELU   ? sum_chunk<T, V, ACT_GELU>
        : activation == ACT_RELU ? sum_chunk<T, V, ACT_RELU>
                                 : sum_chunk<T, V, ACT_NONE>;
    launch(c, kernel, grid, dim3(BLOCK), 0, dy, at, *s, partial);
}

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* dy (rows, cols), times the slope where there is an activation; and the sums of its columns
 * where they are wanted. */
static void backward_rows(Ctx *c, DType dtype, void *dy, const void *at, int activation,
                          int64_t rows, int64_t cols, float *sums, bool add) {
    const int V = (int)(16 / dtype_size(dtype));
    const bool whole = cols % V == 0;
    const int64_t lanes = whole ? cols / V : cols;
    Sums s = {};
    s.rows = rows, s.cols = cols;
    s.width = (int)ceil_div(lanes, ceil_div(lanes, TILE_WIDTH));
    s.block_rows = ceil_div(rows, MAX_CHUNKS);
    if (s.block_rows < MIN_ROWS) s.block_rows = MIN_ROWS;
    s.chunks = ceil_div(rows, s.block_rows);
    float *partial =
        sums ? (float *)ctx_workspace(c, sizeof(float) * (size_t)(s.chunks * cols)) : NULL;
    with_dtype(dtype, [=](auto zero) {
        typedef decltype(zero) T;
        if (whole)
            sum_chunks<T, Pack<T>::N>(c, (T *)dy, (const T *)at, activation, &s, partial);
        else
            sum_chunks<T, 1>(c, (T *)dy, (const T *)at, activation, &s, partial);
    });
    if (sums)
        launch(c, add_chunks, dim3((unsigned)ceil_div(cols, WARP)), dim3(BLOCK), 0, sums, partial,
               s.chunks, cols, add);
}

void cuda_column_sums(Ctx *c, DType dtype, const void *x, int64_t rows, int64_t N, float *sums,
                      bool add) {
    backward_rows(c, dtype, (void *)x, NULL, ACT_NONE, rows, N, sums, add);
}

/* ---- the op ---- */

void cuda_linear_forward(Ctx *c, const OpCall *o) {
    const Tensor *x = o->in[0], *w = o->in[1], *b = o->in[2], *residual = o->in[3];
    const Tensor *y = o->out[0], *sum = o->saved[0];
    const int64_t rows = tensor_rows(x), K = tensor_cols(x), N = w->shape[0];
    Gemm g = {};
    g.M = rows, g.N = N, g.K = K;
    g.tb = true;
    g.in = g.out = x->dtype;
    g.A = x->data, g.lda = K;
    g.B = w->data, g.ldb = K;
    g.C = sum ? sum->data : y->data, g.ldc = N;
    g.E = residual ? residual->data : NULL;
    g.alpha = 1, g.beta = residual != NULL;
    g.bias = b ? b->data : NULL;
    g.relu = o->attr.activation == ACT_RELU;
    cuda_gemm(c, &g);
    if (o->attr.activation == ACT_GELU) gelu_forward(c, x->dtype, y->data, g.C, rows * N);
}

/* dx (rows, K) = or += dy W */
static void input_gradient(Ctx *c, const Tensor *x, const Tensor *w, const void *dy) {
    const int64_t K = tensor_cols(x), N = w->shape[0];
    Gemm g = {};
    g.M = tensor_rows(x), g.N = K, g.K = N;
    g.in = g.out = x->dtype;
    g.A = dy, g.lda = N;
    g.B = w->data, g.ldb = K;
    g.C = x->grad, g.ldc = K;
    g.alpha = 1, g.beta = x->grad_set;
    cuda_gemm(c, &g);
}

/* dW (N, K) = or += dy' x, float32 */
static void weight_gradient(Ctx *c, const Tensor *x, const Tensor *w, const void *dy) {
    const int64_t K = tensor_cols(x), N = w->shape[0];
    Gemm g = {};
    g.M = N, g.N = K, g.K = tensor_rows(x);
    g.ta = true;
    g.in = x->dtype, g.out = DT_F32;
    g.A = dy, g.lda = N;
    g.B = x->data, g.ldb = K;
    g.C = w->grad, g.ldc = K;
    g.alpha = 1, g.beta = w->grad_set;
    cuda_gemm(c, &g);
}

void cuda_linear_backward(Ctx *c, const OpCall *o) {
    const Tensor *x = o->in[0], *w = o->in[1], *b = o->in[2], *y = o->out[0];
    const Tensor *at = o->saved[0] ? o->saved[0] : y;
    float *db = b ? (float *)b->grad : NULL;
    if (o->attr.activation != ACT_NONE || db)
        backward_rows(c, x->dtype, y->grad, at->data, o->attr.activation, tensor_rows(x),
                      w->shape[0], db, b && b->grad_set);
    if (x->grad) input_gradient(c, x, w, y->grad);
    if (w->grad) weight_gradient(c, x, w, y->grad);
}
