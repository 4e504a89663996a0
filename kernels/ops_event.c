/* The ops that models of events add: rows without padding in segments, normalisations, GELU, ReLU,
 * dropout, learned mixtures, and the angle between directions. */
#include "kernels/op_call.h"

Tensor *op_layernorm(Ctx *c, Tensor *x, const LayerNorm *w) {
    OpCall o = {.op = OP_LAYERNORM, .in = {x, w->weight, w->bias}, .n_in = 3, .n_out = 1};
    o.attr.eps = 1e-5f;
    need_dtype(c, &o, 1);
    NEED(o, is_vector(w->weight, tensor_cols(x)), w->weight);
    NEED(o, is_vector(w->bias, tensor_cols(x)), w->bias);
    o.saved[0] = exact_output(c, &o, 1, (int64_t[]){tensor_rows(x)});
    o.saved[1] = exact_output(c, &o, 1, (int64_t[]){tensor_rows(x)});
    o.out[0] = output_like(c, &o, x);
    run(c, &o);
    return o.out[0];
}

static Tensor *map(Ctx *c, OpCall *o) {
    need_dtype(c, o, o->n_in);
    o->out[0] = output_like(c, o, o->in[0]);
    run(c, o);
    return o->out[0];
}

Tensor *op_gelu(Ctx *c, Tensor *x) {
    return map(c, &(OpCall){.op = OP_GELU, .in = {x}, .n_in = 1, .n_out = 1});
}

Tensor *op_relu(Ctx *c, Tensor *x) {
    return map(c, &(OpCall){.op = OP_RELU, .in = {x}, .n_in = 1, .n_out = 1});
}

Tensor *op_relu_squared(Ctx *c, Tensor *x) {
    return map(c, &(OpCall){.op = OP_RELU_SQUARED, .in = {x}, .n_in = 1, .n_out = 1});
}

Tensor *op_rmsnorm(Ctx *c, Tensor *x) {
    OpCall o = {.op = OP_RMSNORM, .in = {x}, .n_in = 1, .n_out = 1, .attr.eps = 0x1p-23f};
    o.saved[0] = exact_output(c, &o, 1, (int64_t[]){tensor_rows(x)});
    return map(c, &o);
}

Tensor *op_mix(Ctx *c, Tensor *x, Tensor *y, Tensor *r, Tensor *s, int i) {
    OpCall o = {.op = OP_MIX, .in = {x, y == x ? NULL : y, r, s}, .n_in = 4, .n_out = 1};
    o.attr.part = i;
    need_dtype(c, &o, 2);
    NEED(o, tensor_same_shape(x, y), y);
    NEED(o, r->ndim == 1 && i >= 0 && i < r->shape[0], r);
    NEED(o, tensor_same_shape(r, s), s);
    o.out[0] = output_like(c, &o, x);
    run(c, &o);
    return o.out[0];
}

Tensor *op_pad(Ctx *c, Tensor *x, int64_t cols) {
    OpCall o = {.op = OP_PAD, .in = {x}, .n_in = 1, .n_out = 1};
    need_dtype(c, &o, 0);
    NEED(o, tensor_cols(x) <= cols, x);
    o.out[0] = output_cols(c, &o, x, cols);
    run(c, &o);
    return o.out[0];
}

Tensor *op_cast(Ctx *c, Tensor *x) {
    return x->dtype == c->dtype ? x : op_pad(c, x, tensor_cols(x));
}

static OpCall dropout(const Ctx *c, Op op, const Tensor *x, float p, uint32_t step,
                      uint32_t layer) {
    CHECK(p >= 0 && p < 1, "dropout: the probability is %g", (double)p);
    CHECK(layer < 1u << 24 && tensor_numel(x) <= (int64_t)1 << 40,
          "dropout: layer %u, %lld numbers", layer, (long long)tensor_numel(x));
    return (OpCall){
        .op = op, .n_out = 1, .attr = {.p = p, .seed = c->seed, .step = step, .layer = layer}};
}

Tensor *op_dropout(Ctx *c, Tensor *x, float p, uint32_t step, uint32_t layer) {
    OpCall o = dropout(c, OP_DROPOUT, x, p, step, layer);
    if (p == 0 || !c->recording) return x;
    o.in[o.n_in++] = x;
    return map(c, &o);
}

Tensor *op_dropout_add(Ctx *c, Tensor *x, Tensor *y, float p, uint32_t step, uint32_t layer) {
    OpCall o = dropout(c, OP_DROPOUT_ADD, y, p, step, layer);
    if (p == 0 || !c->recording) return op_add(c, x, y);
    NEED(o, tensor_same_shape(x, y), y);
    o.in[o.n_in++] = x;
    o.in[o.n_in++] = y;
    return map(c, &o);
}

Tensor *op_unit_vector(Ctx *c, Tensor *x) {
    OpCall o = {.op = OP_UNIT_VECTOR, .in = {x}, .n_in = 1, .n_out = 1, .attr.eps = 1e-8f};
    need_dtype(c, &o, 1);
    o.out[0] = exact_output(c, &o, x->ndim, x->shape);
    run(c, &o);
    return o.out[0];
}

Tensor *op_concat(Ctx *c, Tensor *a, Tensor *b) {
    OpCall o = {.op = OP_CONCAT, .in = {a, b}, .n_in = 2, .n_out = 1};
    need_dtype(c, &o, o.n_in);
    NEED(o, a->ndim == b->ndim, b);
    for (int i = 0; i < a->ndim - 1; i++) NEED(o, a->shape[i] == b->shape[i], b);
    o.out[0] = output_cols(c, &o, a, tensor_cols(a) + tensor_cols(b));
    run(c, &o);
    return o.out[0];
}

/* ---- segments ---- */

static void need_segments(const Ctx *c, const OpCall *o) {
    const Tensor *x = o->in[0], *offsets = o->in[1];
    CHECK(x->dtype == c->dtype && offsets->dtype == DT_I32, "%s: x is %s, offsets are %s",
          op_name(o->op), dtype_name(x->dtype), dtype_name(offsets->dtype));
    NEED(*o, x->ndim == 2 || (x->ndim == 3 && x->shape[0] == 1), x);
    NEED(*o, offsets->ndim == 1 && offsets->shape[0] > 1, offsets);
    if (c->dry || !c->dev->memory->is_host) return; /* else the caller's batch was checked */
    const int32_t *at = offsets->data;
    const int64_t M = offsets->shape[0] - 1;
    CHECK(at[0] == 0 && at[M] == tensor_rows(x),
          "%s: offsets go from %d to %d, rows from 0 to %lld", op_name(o->op), at[0], at[M],
          (long long)tensor_rows(x));
    for (int64_t m = 0; m < M; m++)
        CHECK(at[m] < at[m + 1], "%s: segment %lld goes from row %d to %d", op_name(o->op),
              (long long)m, at[m], at[m + 1]);
}

/* x's shape with another number of rows */
static Tensor *output_rows(Ctx *c, const OpCall *o, const Tensor *x, int64_t rows) {
    int64_t shape[TENSOR_MAX_DIMS];
    for (int i = 0; i < x->ndim; i++) shape[i] = x->shape[i];
    shape[x->ndim - 2] = rows;
    return output(c, o, x->ndim, shape);
}

static Tensor *pool(Ctx *c, Op op, Tensor *x, Tensor *offsets) {
    OpCall o = {.op = op, .in = {x, offsets}, .n_in = 2, .n_out = 1};
    need_segments(c, &o);
    const int64_t M = offsets->shape[0] - 1;
    if (op == OP_SEGMENT_MAX)
        o.saved[0] = ctx_tensor(c, op_name(op), DT_I32, 2, (int64_t[]){M, tensor_cols(x)});
    o.out[0] = output_rows(c, &o, x, M);
    run(c, &o);
    return o.out[0];
}

Tensor *op_segment_mean(Ctx *c, Tensor *x, Tensor *offsets) {
    return pool(c, OP_SEGMENT_MEAN, x, offsets);
}

Tensor *op_segment_max(Ctx *c, Tensor *x, Tensor *offsets) {
    return pool(c, OP_SEGMENT_MAX, x, offsets);
}

Tensor *op_segment_first(Ctx *c, Tensor *x, Tensor *offsets) {
    return pool(c, OP_SEGMENT_FIRST, x, offsets);
}

Tensor *op_segment_prepend(Ctx *c, Tensor *x, Tensor *offsets, Tensor *token) {
    OpCall o = {.op = OP_SEGMENT_PREPEND, .in = {x, offsets, token}, .n_in = 3, .n_out = 1};
    need_segments(c, &o);
    NEED(o, token->dtype == c->dtype && tensor_numel(token) == tensor_cols(x), token);
    o.out[0] = output_rows(c, &o, x, tensor_rows(x) + offsets->shape[0] - 1);
    run(c, &o);
    return o.out[0];
}

/* ---- the task: a direction ---- */

Tensor *op_angle_loss(Ctx *c, Tensor *x, Tensor *target) {
    OpCall o = {.op = OP_ANGLE_LOSS, .in = {x, target}, .n_in = 2, .n_out = 1};
    need_dtype(c, &o, 0);
    NEED(o, tensor_same_shape(x, target), target);
    o.out[0] = ctx_tensor(c, op_name(o.op), DT_F64, 1, (int64_t[]){1});
    run(c, &o);
    return o.out[0];
}
