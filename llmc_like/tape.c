#include "llmc_like/tape.h"

#include "kernels/ops.h"
#include "llmc_like/ctx.h"

static void *take(Ctx *c, const Tensor *t) {
    void *p = pool_take(&c->pool, tensor_bytes(t));
    return c->dry ? c : p; /* no memory: any pointer says "has a gradient" */
}

static void give(Ctx *c, Tensor *t) {
    if (t->is_param || !t->grad) return;
    pool_give(&c->pool, t->grad, tensor_bytes(t));
    t->grad = NULL;
    t->grad_set = false;
}

static void call_backward(Ctx *c, OpCall *o) {
    const bool passes = o->op == OP_GATE_ADD || o->op == OP_ADD ||
                        o->op == OP_DROPOUT_ADD; /* d out / d in[0] = 1 */
    const bool overwrites = o->op == OP_ATTENTION;
    for (int j = 0; j < o->n_out; j++) /* an output that nobody used has gradient zero */
        if (o->out[j]->needs_grad && !o->out[j]->grad) {
            o->out[j]->grad = take(c, o->out[j]);
            if (!c->dry) c->dev->memory->zero(o->out[j]->grad, tensor_bytes(o->out[j]));
        }
    void *before[OP_MAX_IN] = {0};
    bool passed = false;
    for (int i = 0; i < o->n_in; i++) {
        Tensor *t = o->in[i];
        if (!t || !t->needs_grad) continue;
        if (t->grad_set && overwrites) {
            before[i] = t->grad;
            t->grad = take(c, t);
            t->grad_set = false;
        } else if (!t->grad && passes && i == 0 && !t->is_param) {
            t->grad = o->out[0]->grad; /* the buffer changes hands instead of being copied */
            t->grad_set = true;
            passed = true;
        } else if (!t->grad) {
            t->grad = take(c, t);
        }
    }
    ctx_lap(c, CLOCK_OP, NULL);
    c->op = o;
    if (!c->dry) c->dev->ops[o->op].backward(c, o);
    c->op = NULL;
    OpProfile *p = &c->profile[o->op];
    ctx_lap(c, CLOCK_OP, &p->backward_s);
    p->backward_flops += op_flops(o, true);
    p->backward_bytes += op_bytes(o, true);
    for (int i = 0; i < o->n_in; i++) {
        Tensor *t = o->in[i];
        if (!t || !t->needs_grad) continue;
        if (before[i]) {
            if (!c->dry) /* for the few ops whose backward can only overwrite */
                c->dev->accumulate(c, t->dtype, before[i], t->grad, tensor_numel(t));
            pool_give(&c->pool, t->grad, tensor_bytes(t));
            t->grad = before[i];
        }
        if (!c->dry || !t->is_param) t->grad_set = true; /* a dry one leaves a model as it was */
    }
    for (int j = 0; j < o->n_out; j++) {
        if (passed) o->out[j]->grad = NULL, o->out[j]->grad_set = false;
        give(c, o->out[j]);
    }
}

void tape_backward(Ctx *c, Tensor *loss, double seed) {
    CHECK(tensor_numel(loss) == 1 && loss->dtype == DT_F64, "a loss is one float64, not %s",
          loss->name);
    loss->grad = take(c, loss);
    if (!c->dry && c->dev->memory->is_host)
        *(double *)loss->grad = seed;
    else if (!c->dry)
        c->dev->queue->upload(c, loss->grad, &seed, sizeof seed);
    for (int i = c->tape.n - 1; i >= 0; i--) {
        OpCall *o = &c->tape.call[i];
        bool wanted = false; /* nothing behind this call leads to the loss: skip it */
        for (int j = 0; j < o->n_out; j++) wanted |= o->out[j]->grad != NULL;
        if (wanted) call_backward(c, o);
    }
}
