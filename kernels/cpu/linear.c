/* y = act(x W' + b). Three matrix products by oneDNN. */
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
                      .y = o->out[0]->data,
                      .act = o->attr.activation,
                      .residual = o->in[3] ? o->in[3]->data : NULL,
                      .sum = o->saved[0] ? o->saved[0]->data : NULL});
}

/* dW = dy' x sums over all rows. oneDNN's sgemm reads two long matrices with large strides badly
 * there; in pieces of about this many rows it is 10 to 25 % faster where dW is not square. */
enum { WEIGHT_ROWS = 400, WEIGHT_GROUPS = 8 };

/* dw (N, K) = or += the sum over rows first .. end - 1, piece by piece. */
static void add_pieces(Ctx *c, const OpCall *o, int64_t first, int64_t end, bool add, float *dw) {
    const int64_t K = tensor_cols(o->in[0]), N = o->in[1]->shape[0], rows = end - first;
    const int64_t pieces = (rows + WEIGHT_ROWS - 1) / WEIGHT_ROWS;
    const int64_t size = (rows + pieces - 1) / pieces;
    const float *x = o->in[0]->data, *dy = o->out[0]->grad;
    for (int64_t r = first; r < end; r += size) ISA_FN(gemm)
    (c, true, false, N, K, r + size < end ? size : end - r, 1, dy + r * N, N, x + r * K, K,
     r > first || add, dw, K);
}

/* Where rows are many and dW is small, threads take groups of rows, with a sum each, added in their
 * order: two threads that share each piece wait for each other 16 times as often, which costs a
 * sixth of the time. */
static void weight_gradient(Ctx *c, const OpCall *o) {
    const Tensor *w = o->in[1];
    const int64_t rows = tensor_rows(o->in[0]), K = tensor_cols(o->in[0]), N = w->shape[0];
    const bool groups =
        rows >= WEIGHT_GROUPS * WEIGHT_ROWS / 2 && WEIGHT_GROUPS * N * K <= rows * (N + K);
    if (!groups) {
        add_pieces(c, o, 0, rows, w->grad_set, w->grad);
        return;
    }
    float *partial = ctx_workspace(c, sizeof(float) * (size_t)(WEIGHT_GROUPS * N * K));
#pragma omp parallel for num_threads(c->n_threads) schedule(dynamic, 1)
    for (int64_t g = 0; g < WEIGHT_GROUPS; g++)
        add_pieces(c, o, g * rows / WEIGHT_GROUPS, (g + 1) * rows / WEIGHT_GROUPS, false,
                   partial + g * N * K);
    ISA_FN(sum_partials)(c, partial, WEIGHT_GROUPS, N * K, w->grad, w->grad_set);
}

/* Where the activation's slope is read: at the sum, or at the output. */
static const float *slope_at(const OpCall *o) {
    if (o->attr.activation == ACT_NONE) return NULL;
    return o->saved[0] ? o->saved[0]->data : o->out[0]->data;
}

static void scale_rows(Ctx *c, const RowProduct *a) {
#pragma omp parallel for num_threads(c->n_threads) if (a->rows * a->K >= PARALLEL_FROM)
    for (int64_t r = 0; r < a->rows; r++)
        ISA_FN(scale_by_slope)(a->act, a->K, a->slope_at + r * a->K, a->x + r * a->K);
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
                           .act = o->attr.activation,
                           .slope_at = slope_at(o),
                           .sums = b ? b->grad : NULL,
                           .add_sums = b && b->grad_set};
    if (dx.y) {
        ISA_FN(row_product)(c, &dx);
    } else {
        if (dx.slope_at) scale_rows(c, &dx);
        if (dx.sums) ISA_FN(sum_rows)(c, dx.x, rows, N, dx.sums, dx.add_sums);
    }
    if (w->grad) weight_gradient(c, o);
}
