/* y = act(x W' + b): products by cuBLASLt, with bias and residual in the first one's epilogue. The
 * activation is a pass of its own, since the library's GELU is the tanh approximation and its ReLU
 * makes a number of NaN, which a trainer must see.
 *
 * The bias's gradient is a pass over dy, which the slope of the activation shares. cuBLASLt could
 * sum dy's columns beside dW (BGRADB), but it can only overwrite, in an order and for a set of
 * types that are not promised. */
#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/gemm.cuh"
#include "kernels/cuda/rows.cuh"

/* ---- the activation's slope, and the bias's gradient on the way ---- */

/* Rows of dy, which take the slope: GELU's at the sum, ReLU's at the output. */
template <typename V, typename Act>
struct SlopedRows {
    V *dy;
    const V *at;
    int64_t cols; /* packs */
};

/* Reads dy and at, and writes dy, once. */
template <typename V, typename Act>
static __device__ __forceinline__ void add_row(SlopedRows<V, Act> rows, int64_t r, int64_t j,
                                               Pack<float, V::N> *sum) {
    V *dy = rows.dy + r * rows.cols + j;
    const V d = *dy, at = rows.at[r * rows.cols + j];
    Pack<float, V::N> out;
    for (int k = 0; k < V::N; k++) {
        out.at[k] = Act::back(to_float(at.at[k]), to_float(d.at[k]));
        sum->at[k] += out.at[k];
    }
    put(dy, out, false);
}

template <typename Act>
static void slope_rows(Ctx *c, const Tensor *y, const void *at, int64_t n, int64_t cols,
                       const Tensor *b) {
    with_pack(y->dtype, cols, [&](auto pack) {
        typedef decltype(pack) V;
        const SlopedRows<V, Act> rows = {(V *)y->grad, (const V *)at, cols / V::N};
        sum_rows<V>(c, rows, n, cols / V::N, SUM_BLOCKS, b);
    });
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
    cuda_gemm(c, &g);
    if (o->attr.activation == ACT_GELU) cuda_gelu(c, x->dtype, y->data, g.C, rows * N);
    if (o->attr.activation == ACT_RELU) cuda_relu(c, x->dtype, y->data, g.C, rows * N);
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
    const int64_t rows = tensor_rows(x), N = w->shape[0];
    if (o->attr.activation == ACT_GELU)
        slope_rows<Gelu>(c, y, o->saved[0]->data, rows, N, b);
    else if (o->attr.activation == ACT_RELU)
        slope_rows<Relu>(c, y, y->data, rows, N, b);
    else if (b && b->grad)
        cuda_sum_rows(c, y->dtype, y->grad, N, rows, b);
    if (x->grad) input_gradient(c, x, w, y->grad);
    if (w->grad) weight_gradient(c, x, w, y->grad);
}
