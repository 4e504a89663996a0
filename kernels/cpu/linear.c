/* y = x W' + b. Three matrix products by oneDNN. */
#include "kernels/cpu/cpu.h"

void ISA_FN(linear_forward)(Ctx *c, const OpCall *o) {
    const Tensor *x = o->in[0], *w = o->in[1], *b = o->in[2];
    ISA_FN(row_product)
    (c, &(RowProduct){.rows = tensor_rows(x),
                      .N = w->shape[0],
                      .K = tensor_cols(x),
                      .x = x->data,
                      .w = w->data,
                      .bias = b ? b->data : NULL,
                      .y = o->out[0]->data});
}

/* dW = dy' x sums over all rows. oneDNN's sgemm reads two long matrices with large strides badly
 * there; in pieces of about this many rows it is 10 to 25 % faster where dW is not square. */
enum { WEIGHT_ROWS = 400 };

static void weight_gradient(Ctx *c, const OpCall *o, int64_t rows, int64_t K, int64_t N) {
    const Tensor *w = o->in[1];
    const float *x = o->in[0]->data, *dy = o->out[0]->grad;
    const int64_t pieces = (rows + WEIGHT_ROWS - 1) / WEIGHT_ROWS;
    const int64_t size = (rows + pieces - 1) / pieces;
    for (int64_t r = 0; r < rows; r += size) {
        const int64_t n = r + size < rows ? size : rows - r;
        ISA_FN(gemm)
        (c, true, false, N, K, n, 1, dy + r * N, N, x + r * K, K, r || w->grad_set, w->grad, K);
    }
}

void ISA_FN(linear_backward)(Ctx *c, const OpCall *o) {
    const Tensor *x = o->in[0], *w = o->in[1], *b = o->in[2];
    const int64_t rows = tensor_rows(x), K = tensor_cols(x), N = w->shape[0];
    const RowProduct dx = {.rows = rows,
                           .N = K,
                           .K = N,
                           .x = o->out[0]->grad,
                           .w = w->data,
                           .transposed = true,
                           .y = x->grad,
                           .add = x->grad_set,
                           .sums = b ? b->grad : NULL,
                           .add_sums = b && b->grad_set};
    if (dx.y)
        ISA_FN(row_product)(c, &dx);
    else if (dx.sums)
        ISA_FN(sum_rows)(c, dx.x, rows, N, dx.sums, dx.add_sums);
    if (w->grad) weight_gradient(c, o, rows, K, N);
}
