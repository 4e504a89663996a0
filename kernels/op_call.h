/* The one way every op goes: check, allocate, compute, record. For the files that hold the ops'
 * shapes (ops.c, ops_event.c) and nobody else; kernels/ops.h is the contract.
 *
 * An op fills in an OpCall (op, in, n_in, n_out, attr), checks its inputs with NEED and need_dtype,
 * makes its outputs with output*, and calls run. Whatever is wrong here is a bug in the model that
 * calls, so all of it aborts with a sentence (CHECK) and nothing returns an error. Outputs live in
 * the context's activations until the next step; in a dry context they have no data. */
#ifndef KERNELS_OP_CALL_H
#define KERNELS_OP_CALL_H

#include <stdlib.h>

#include "kernels/ops.h"

/* A new output of the context's dtype, named after the op. */
static inline Tensor *output(Ctx *c, const OpCall *o, int ndim, const int64_t *shape) {
    return ctx_tensor(c, op_name(o->op), c->dtype, ndim, shape);
}

/* What an op saves, or makes for a loss: ctx_exact. */
static inline Tensor *exact_output(Ctx *c, const OpCall *o, int ndim, const int64_t *shape) {
    return ctx_tensor(c, op_name(o->op), ctx_exact(c), ndim, shape);
}

/* Likewise with the shape of t; t keeps its data. */
static inline Tensor *output_like(Ctx *c, const OpCall *o, const Tensor *t) {
    return output(c, o, t->ndim, t->shape);
}

/* Whether two tensors share memory. */
static inline bool overlap(const Tensor *a, const Tensor *b) {
    const char *p = a->data, *q = b->data;
    return p && q && p < q + tensor_bytes(b) && q < p + tensor_bytes(a);
}

/* Computes the call on the context's device, counts it in the profile, and leaves it on the tape
 * where an input wants a gradient. Aborts where an input overlaps an output, or where an input that
 * wants a gradient is given twice. */
static inline void run(Ctx *c, OpCall *o) {
    bool grad = false;
    for (int i = 0; i < o->n_in; i++) {
        if (!o->in[i]) continue;
        grad |= o->in[i]->needs_grad;
        for (int j = 0; j < o->n_out; j++)
            CHECK(!overlap(o->in[i], o->out[j]), "%s: input %s overlaps the output", op_name(o->op),
                  o->in[i]->name);
        for (int j = 0; j < i; j++)
            CHECK(o->in[i] != o->in[j] || !o->in[i]->needs_grad, "%s: %s is given twice",
                  op_name(o->op), o->in[i]->name);
    }
    const OpKernel *k = &c->dev->ops[o->op];
    CHECK(k->forward, "%s has no op %s", c->dev->name, op_name(o->op));
    ctx_lap(c, CLOCK_OP, NULL);
    c->op = o;
    if (!c->dry) k->forward(c, o);
    c->op = NULL;
    OpProfile *p = &c->profile[o->op];
    p->calls++;
    ctx_lap(c, CLOCK_OP, &p->forward_s);
    p->forward_flops += op_flops(o, false);
    p->forward_bytes += op_bytes(o, false);
    if (!c->recording || !grad || !k->backward) return;
    for (int j = 0; j < o->n_out; j++) o->out[j]->needs_grad = true;
    Tape *t = &c->tape;
    if (t->n == t->cap) {
        t->cap = t->cap ? 2 * t->cap : 256;
        t->call = realloc(t->call, (size_t)t->cap * sizeof *t->call);
        CHECK(t->call, "no memory for a tape of %d calls", t->cap);
    }
    t->call[t->n++] = *o;
}

/* Aborts with the op's name and the shape of tensor t where cond is false. */
#define NEED(o, cond, t)                                               \
    do {                                                               \
        char text_[SHAPE_TEXT];                                        \
        CHECK(cond, "%s: %s has shape %s", op_name((o).op), (t)->name, \
              tensor_shape_text(t, text_));                            \
    } while (0)

/* Aborts where one of the inputs first .. end - 1 is there and has another dtype. */
static inline void need_dtypes(const OpCall *o, int first, int end, DType want) {
    for (int i = first; i < end; i++)
        CHECK(!o->in[i] || o->in[i]->dtype == want, "%s: %s is %s, not %s", op_name(o->op),
              o->in[i]->name, dtype_name(o->in[i]->dtype), dtype_name(want));
}

/* The first n inputs have the context's dtype, and those behind them are exact (ctx_exact). */
static inline void need_dtype(const Ctx *c, const OpCall *o, int n) {
    need_dtypes(o, 0, n, c->dtype);
    need_dtypes(o, n, o->n_in, ctx_exact(c));
}

/* Whether t is left out or has shape (n). */
static inline bool is_vector(const Tensor *t, int64_t n) {
    return !t || (t->ndim == 1 && t->shape[0] == n);
}

/* x's shape with another last dimension */
static inline Tensor *output_cols(Ctx *c, const OpCall *o, const Tensor *x, int64_t cols) {
    int64_t shape[TENSOR_MAX_DIMS];
    for (int i = 0; i < x->ndim; i++) shape[i] = x->shape[i];
    shape[x->ndim - 1] = cols;
    return output(c, o, x->ndim, shape);
}

#endif
