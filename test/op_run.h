/* One call of one case of op_cases.h on a device, for test_ops.c: inputs, gradients and activations
 * between guard bands, all of it in the device's own memory, and the numbers that come out.
 *
 * Float32 has three runs: exact (plain, float64), plain (float32), and the device. For bf16 inputs
 * and gradients that a device would have in bf16 are numbers of bf16 in all three, and the plain
 * loops round where a device must store: outputs, what is saved in the context's dtype, gradients
 * of activations. Include after cmocka.h. */
#ifndef TEST_OP_RUN_H
#define TEST_OP_RUN_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc_like/philox.h"
#include "test/on_device.h"
#include "test/op_cases.h"

enum { GUARD = ARENA_ALIGN, ARENA = 1 << 18, N_RESULTS = OP_MAX_OUT + OP_MAX_IN };
static const unsigned char GUARD_BYTE = 0xA5, UNSET_BYTE = 0xFF; /* 0xFF..FF is a NaN */

typedef struct Run {
    const Device *dev;
    DType dtype;
    bool rounded; /* numbers of bf16, whatever the dtype */
    int threads;
    bool silent;   /* the context does not record */
    bool add;      /* gradients hold something already */
    bool hand_on;  /* in[0]'s gradient is the output's own buffer, as the tape does for some ops */
    int only;      /* the one input that gets a gradient; -1: all that want one */
    int nan_in;    /* the input whose middle element is NaN; -1: none */
    int perturbed; /* the input of which element `element` is moved by `by`; -1: none */
    int64_t element;
    double by;
    bool forward_only;
} Run;

static inline Run run_on(const Device *dev, DType dtype, int threads) {
    return (Run){.dev = dev,
                 .dtype = dtype,
                 .rounded = dtype == DT_BF16,
                 .threads = threads,
                 .only = -1,
                 .nan_in = -1,
                 .perturbed = -1};
}

typedef struct Values {
    char name[32];
    int64_t n;
    double *v;
} Values;

/* Outputs, then gradients of inputs (n 0 where there is none). */
typedef struct Result {
    Values t[N_RESULTS];
    bool guards_whole, inputs_whole;
} Result;

static inline void result_free(Result *r) {
    for (int i = 0; i < N_RESULTS; i++) free(r->t[i].v);
}

/* ---- numbers ---- */

static inline double get(const void *data, DType t, int64_t i) {
    switch (t) {
        case DT_F64:
            return ((const double *)data)[i];
        case DT_I32:
            return ((const int32_t *)data)[i];
        case DT_BF16:
            return (double)from_bf16(((const uint16_t *)data)[i]);
        default:
            return (double)((const float *)data)[i];
    }
}

static inline void set(void *data, DType t, int64_t i, double v) {
    if (t == DT_F64)
        ((double *)data)[i] = v;
    else if (t == DT_I32)
        ((int32_t *)data)[i] = (int32_t)v;
    else if (t == DT_BF16)
        ((uint16_t *)data)[i] = to_bf16((float)v);
    else
        ((float *)data)[i] = (float)v;
}

static inline void round_all(void *data, DType t, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        set(data, t, i, (double)from_bf16(to_bf16((float)get(data, t, i))));
}

/* Random numbers of stream `what` of the case; the same whatever the dtype. */
static inline void draw(void *data, DType t, int64_t n, int case_no, int what, bool uniform,
                        bool rounded) {
    const RngKey key = {7, (uint32_t)case_no, RNG_TEST};
    float *v = malloc(sizeof(float) * (size_t)(n + 1));
    assert_non_null(v);
    (uniform ? rng_uniform : rng_normal)(key, (uint64_t)what << 32, v, n);
    for (int64_t i = 0; i < n; i++) set(data, t, i, (double)v[i]);
    if (rounded) round_all(data, t, n);
    free(v);
}

/* Offsets of M segments: each but the last has 1 to 7 of the rows, as far as they go. */
static inline void cut(int32_t *at, int64_t M, int32_t rows, RngKey key) {
    at[0] = 0;
    for (int64_t m = 0; m < M; m++) {
        const int32_t spare = rows - at[m] - (int32_t)(M - m); /* with one row for each to come */
        const int32_t extra = (int32_t)(rng_bits(key, (uint64_t)m) % 7);
        at[m + 1] = m == M - 1 ? rows : at[m] + 1 + (extra < spare ? extra : spare);
    }
}

static inline Values values_of(const char *name, const void *data, DType t, int64_t n) {
    Values r = {.n = n, .v = malloc(sizeof(double) * (size_t)n)};
    assert_non_null(r.v);
    snprintf(r.name, sizeof r.name, "%s", name);
    for (int64_t i = 0; i < n; i++) r.v[i] = get(data, t, i);
    return r;
}

/* ---- guard bands ---- */

/* `bytes` between two bands; they begin at GUARD. */
static inline Block guarded(const Device *dev, size_t bytes) {
    Block b = block_make(dev, bytes + 2 * GUARD);
    memset(b.host, GUARD_BYTE, b.bytes);
    memset(b.host + GUARD, UNSET_BYTE, bytes);
    return b;
}

static inline bool guards_whole(const Block *b) {
    for (int i = 0; i < GUARD; i++)
        if (b->host[i] != GUARD_BYTE || b->host[b->bytes - 1 - (size_t)i] != GUARD_BYTE)
            return false;
    return true;
}

/* ---- dtypes of a case ---- */

static inline bool wants_gradient(Kind k) { return k == REAL || k == WEIGHT || k == EXACT; }

static inline DType kind_dtype(Kind k, DType context) {
    switch (k) {
        case IDS:
        case OFFSETS:
            return DT_I32;
        case UNIFORM:
            return DT_F32;
        case EXACT:
        case TARGET:
            return context == DT_BF16 ? DT_F32 : context;
        default:
            return context;
    }
}

/* A parameter's gradient is float32. */
static inline DType gradient_dtype(Kind k, DType context) {
    return k == WEIGHT && context == DT_BF16 ? DT_F32 : kind_dtype(k, context);
}

/* What a device in bf16 has in bf16. */
static inline bool input_rounds(Kind k) { return kind_dtype(k, DT_BF16) == DT_BF16; }
static inline bool gradient_rounds(Kind k) { return gradient_dtype(k, DT_BF16) == DT_BF16; }
static inline bool output_rounds(Op op, int j) {
    return op != OP_MSE_LOSS && op != OP_ANGLE_LOSS && op != OP_UNIT_VECTOR && op != OP_NORMAL &&
           (op != OP_FLOW_NOISE || j == 0);
}

/* ---- one run ---- */

typedef struct Rig {
    Ctx c;
    const Case *k;
    int case_no;
    const Run *run;
    Block arena; /* of activations */
    Tensor in[OP_MAX_IN];
    Block data[OP_MAX_IN];
} Rig;

static inline Tensor *rig_input(Rig *g, int i) {
    const Kind kind = g->k->in[i].kind;
    const Run *run = g->run;
    Tensor *t = &g->in[i];
    t->dtype = kind_dtype(kind, run->dtype);
    while (t->ndim < TENSOR_MAX_DIMS && g->k->in[i].shape[t->ndim]) {
        t->shape[t->ndim] = g->k->in[i].shape[t->ndim];
        t->ndim++;
    }
    snprintf(t->name, sizeof t->name, "in[%d]", i);
    t->needs_grad = wants_gradient(kind);
    t->is_param = kind == WEIGHT;
    g->data[i] = guarded(run->dev, tensor_bytes(t));
    t->data = g->data[i].at + GUARD;
    void *host = g->data[i].host + GUARD;
    const int64_t n = tensor_numel(t);
    const RngKey key = {7, (uint32_t)g->case_no, RNG_TEST};
    if (kind == IDS)
        for (int64_t j = 0; j < n; j++) set(host, DT_I32, j, rng_bits(key, (uint64_t)j) % g->k->a);
    else if (kind == OFFSETS)
        cut(host, n - 1, g->k->a, key);
    else
        draw(host, t->dtype, n, g->case_no, i, kind == UNIFORM, run->rounded && input_rounds(kind));
    if (run->nan_in == i) set(host, t->dtype, n / 2, NAN);
    if (run->perturbed == i)
        set(host, t->dtype, run->element, get(host, t->dtype, run->element) + run->by);
    block_push(&g->data[i]);
    return t;
}

/* Where the host sees what lies at p on the device: in the arena or in an input. */
static inline void *rig_seen(const Rig *g, const void *p) {
    const unsigned char *at = p;
    for (int i = 0; i < OP_MAX_IN; i++)
        if (g->data[i].at && at >= g->data[i].at && at < g->data[i].at + g->data[i].bytes)
            return g->data[i].host + (at - g->data[i].at);
    return g->arena.host + (at - g->arena.at);
}

/* Whether every byte of the activations arena outside the outputs and what was saved is as before.
 */
static inline bool arena_whole(const Rig *g, const OpCall *o) {
    for (size_t i = 0; i < ARENA; i++) {
        bool owned = false;
        for (int j = 0; j < OP_MAX_OUT + OP_MAX_SAVED; j++) {
            const Tensor *t = j < OP_MAX_OUT ? o->out[j] : o->saved[j - OP_MAX_OUT];
            if (!t) continue;
            const unsigned char *p = t->data, *here = g->arena.at + i;
            if (here >= p && here < p + tensor_bytes(t)) owned = true, i += tensor_bytes(t);
        }
        if (!owned && i < ARENA && g->arena.host[i] != GUARD_BYTE) return false;
    }
    return true;
}

static inline void attention_rounded(Ctx *c, const OpCall *o, bool backward) {
    AttnArgs a = attention_args(o);
    a.workspace = ctx_workspace(c, sizeof(float) * (size_t)a.Tk);
    plain_attn_rounded(&a, backward);
}

/* The plain loops' results as a device in bf16 has them. A layer with GELU stores the sum before it
 * and goes on from what it stored, so it is here what it is there: two ops. */
static inline void round_forward(Rig *g, const OpCall *o) {
    Tensor *sum = g->k->op == OP_LINEAR ? o->saved[0] : NULL;
    if (sum) {
        round_all(sum->data, sum->dtype, tensor_numel(sum));
        plain_device.ops[OP_GELU].forward(&g->c, &(OpCall){.in = {sum}, .out = {o->out[0]}});
    }
    if (o->op == OP_ATTENTION) attention_rounded(&g->c, o, false);
    for (int j = 0; j < OP_MAX_OUT; j++)
        if (o->out[j] && output_rounds(g->k->op, j))
            round_all(o->out[j]->data, o->out[j]->dtype, tensor_numel(o->out[j]));
}

/* Likewise of its backward: d loss / d sum is stored before the products. */
static inline void round_before_backward(Ctx *c, OpCall *o) {
    if (o->op != OP_LINEAR || !o->saved[0]) return;
    Tensor sum = *o->saved[0];
    const int64_t n = tensor_numel(&sum);
    sum.grad = malloc(tensor_bytes(&sum));
    assert_non_null(sum.grad);
    plain_device.ops[OP_GELU].backward(c, &(OpCall){.in = {&sum}, .out = {o->out[0]}});
    round_all(sum.grad, sum.dtype, n);
    memcpy(o->out[0]->grad, sum.grad, tensor_bytes(&sum));
    free(sum.grad);
    o->attr.activation = ACT_NONE;
}

/* Gradients of the inputs: grad[i] where one is wanted. */
static inline void rig_gradients(Rig *g, const OpCall *o, void *handed_on, Block *grad) {
    const Run *run = g->run;
    for (int i = 0; i < o->n_in; i++) {
        Tensor *t = o->in[i];
        if (!t || !t->needs_grad || (run->only >= 0 && run->only != i)) continue;
        t->grad_set = run->add;
        if (run->hand_on && i == 0) {
            t->grad = handed_on;
            t->grad_set = true;
            continue;
        }
        const Kind kind = g->k->in[i].kind;
        const DType dtype = gradient_dtype(kind, run->dtype);
        const int64_t n = tensor_numel(t);
        grad[i] = guarded(run->dev, (size_t)n * dtype_size(dtype));
        if (run->add)
            draw(grad[i].host + GUARD, dtype, n, g->case_no, 10 + i, false,
                 run->rounded && gradient_rounds(kind));
        block_push(&grad[i]);
        t->grad = grad[i].at + GUARD;
    }
}

static inline void rig_backward(Rig *g, OpCall *o, Result *r) {
    const Run *run = g->run;
    const bool rounds = run->rounded && run->dtype == DT_F32; /* the plain loops in bf16's stead */
    Block dout[OP_MAX_OUT] = {0}, grad[OP_MAX_IN] = {0};
    for (int j = 0; j < o->n_out; j++) {
        Tensor *t = o->out[j];
        dout[j] = guarded(run->dev, tensor_bytes(t));
        draw(dout[j].host + GUARD, t->dtype, tensor_numel(t), g->case_no, 20 + j, false,
             run->rounded && output_rounds(g->k->op, j));
        block_push(&dout[j]);
        t->grad = dout[j].at + GUARD;
    }
    rig_gradients(g, o, dout[0].at + GUARD, grad);
    if (rounds) round_before_backward(&g->c, o);
    if (rounds && o->op == OP_ATTENTION)
        attention_rounded(&g->c, o, true);
    else
        run->dev->ops[o->op].backward(&g->c, o);
    for (int j = 0; j < o->n_out; j++) {
        block_pull(&dout[j]);
        r->guards_whole &= guards_whole(&dout[j]);
    }
    for (int i = 0; i < o->n_in; i++) {
        if (!o->in[i] || !o->in[i]->grad) continue;
        const Kind kind = g->k->in[i].kind;
        const DType dtype = gradient_dtype(kind, run->dtype);
        const int64_t n = tensor_numel(o->in[i]);
        const bool handed_on = run->hand_on && i == 0;
        if (!handed_on) block_pull(&grad[i]);
        void *numbers = (handed_on ? dout[0].host : grad[i].host) + GUARD;
        if (rounds && gradient_rounds(kind)) round_all(numbers, dtype, n);
        char name[32];
        snprintf(name, sizeof name, "grad of in[%d]", i);
        r->t[OP_MAX_OUT + i] = values_of(name, numbers, dtype, n);
        if (!handed_on) r->guards_whole &= guards_whole(&grad[i]);
        block_free(&grad[i]);
    }
    for (int j = 0; j < o->n_out; j++) block_free(&dout[j]);
}

static inline void rig_begin(Rig *g, int case_no, const Run *run) {
    *g = (Rig){.k = &cases[case_no], .case_no = case_no, .run = run};
    Err e;
    if (ctx_init(&g->c, run->dev->name, run->threads, 1, false, &e)) fail_msg("%s", e.text);
    g->c.dtype = run->dtype;
    g->c.recording = !run->silent;
    assert_int_equal(arena_commit(&g->c.activations, ARENA, &e), 0);
    unsigned char *base = (unsigned char *)g->c.activations.chunk[0].base;
    const Memory *memory = run->dev->memory;
    g->arena = (Block){memory, memory->is_host ? base : malloc(ARENA), base, ARENA};
    assert_non_null(g->arena.host);
    memset(g->arena.host, GUARD_BYTE, ARENA);
    block_push(&g->arena);
    arena_alloc(&g->c.activations, GUARD);
}

static inline void rig_end(Rig *g) {
    for (int i = 0; i < OP_MAX_IN; i++) block_free(&g->data[i]);
    if (g->arena.host != g->arena.at) free(g->arena.host);
    ctx_free(&g->c);
}

static inline Result run_case(int case_no, Run run) {
    Result r = {.guards_whole = true, .inputs_whole = true};
    Rig g;
    rig_begin(&g, case_no, &run);
    const bool rounds = run.rounded && run.dtype == DT_F32;
    Tensor *arg[OP_MAX_IN] = {0}, *out[OP_MAX_OUT] = {0};
    unsigned char *before[OP_MAX_IN] = {0};
    for (int i = 0; i < OP_MAX_IN; i++) {
        if (g.k->in[i].kind == ABSENT) continue;
        arg[i] = rig_input(&g, i);
        before[i] = malloc(g.data[i].bytes);
        assert_non_null(before[i]);
        memcpy(before[i], g.data[i].host, g.data[i].bytes);
    }
    g.k->call(&g.c, g.k, arg, out);
    OpCall o = {.op = g.k->op};
    if (g.c.tape.n) o = g.c.tape.call[0];
    for (int j = 0; j < OP_MAX_OUT; j++) o.out[j] = out[j];
    if (rounds) round_forward(&g, &o);
    block_pull(&g.arena);
    for (int i = 0; i < OP_MAX_IN; i++)
        if (arg[i]) block_pull(&g.data[i]);
    for (int j = 0; j < OP_MAX_OUT && out[j]; j++) {
        if (run.dtype == DT_BF16)
            assert_int_equal(out[j]->dtype == DT_BF16, output_rounds(g.k->op, j));
        r.t[j] =
            values_of("output", rig_seen(&g, out[j]->data), out[j]->dtype, tensor_numel(out[j]));
    }
    if (g.c.tape.n && !run.forward_only) rig_backward(&g, &o, &r);
    block_pull(&g.arena);
    if (!run.forward_only) r.guards_whole &= arena_whole(&g, &o);
    for (int i = 0; i < OP_MAX_IN; i++) {
        if (!arg[i]) continue;
        block_pull(&g.data[i]);
        r.guards_whole &= guards_whole(&g.data[i]);
        if (g.k->in[i].kind != BUFFER)
            r.inputs_whole &= !memcmp(g.data[i].host, before[i], g.data[i].bytes);
        free(before[i]);
    }
    rig_end(&g);
    return r;
}

#endif
