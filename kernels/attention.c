#include "kernels/attention.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/device.h"
#include "llmc_like/ctx.h"
#include "llmc_like/philox.h"
#include "llmc_like/run.h"

/* ---- the registry ---- */

#define ATTN_ENUM(id, flag, text) ATTN_##id,
enum { ATTN_LIST(ATTN_ENUM) };

#define ATTN_ENTRY(id, flag, text)                                                       \
    static const AttnBackend *id##_of(const Ctx *c) { return c->dev->attn[ATTN_##id]; }  \
    static const char *id##_supports(const Ctx *c, const AttnArgs *a) {                  \
        return id##_of(c)->supports(c, a);                                               \
    }                                                                                    \
    static int id##_prepare(Ctx *c, const AttnArgs *a, Err *e) {                         \
        const AttnBackend *d = id##_of(c);                                               \
        return d->prepare ? d->prepare(c, a, e) : 0;                                     \
    }                                                                                    \
    static size_t id##_workspace(Ctx *c, const AttnArgs *a, bool backward) {             \
        return id##_of(c)->workspace(c, a, backward);                                    \
    }                                                                                    \
    static void id##_forward(Ctx *c, const AttnArgs *a) { id##_of(c)->forward(c, a); }   \
    static void id##_backward(Ctx *c, const AttnArgs *a) { id##_of(c)->backward(c, a); } \
    static const AttnBackend id##_entry = {                                              \
        flag, text, id##_supports, id##_prepare, id##_workspace, id##_forward, id##_backward};

ATTN_LIST(ATTN_ENTRY)

#define ATTN_ADDRESS(id, flag, text) &id##_entry,
const AttnBackend *const attn_backends[] = {ATTN_LIST(ATTN_ADDRESS) NULL};

#define ATTN_CHOICE(id, flag, text) flag "|"
const char attn_choices[] = ATTN_LIST(ATTN_CHOICE) "auto|all";

const AttnBackend *attn_find(const char *name) {
    for (int i = 0; attn_backends[i]; i++)
        if (!strcmp(attn_backends[i]->name, name)) return attn_backends[i];
    return NULL;
}

/* ---- the op ---- */

AttnArgs attn_shape(int B, int H, int T, int D, const Mask *mask) {
    const AttnStride rows = {(int64_t)T * H * D, (int64_t)H * D, D};
    return (AttnArgs){.B = B,
                      .H = H,
                      .Tq = T,
                      .Tk = T,
                      .D = D,
                      .dtype = DT_F32,
                      .scale = 1,
                      .mask = mask,
                      .qs = rows,
                      .ks = rows,
                      .vs = rows,
                      .os = rows};
}

/* The input behind q, k and v, where the mask has one. */
static void add_learned(AttnArgs *a, const Tensor *learned) {
    if (!learned) return;
    a->learned = learned->data;
    a->dlearned = learned->grad;
}

/* Packed: q, k and v are the thirds of each row of one tensor, and so are their gradients. */
static AttnArgs packed_args(const OpCall *o) {
    const Tensor *qkv = o->in[0], *out = o->out[0];
    const int64_t T = qkv->shape[1], C = qkv->shape[2] / 3, D = C / o->attr.heads;
    const size_t third = (size_t)C * dtype_size(qkv->dtype);
    const AttnStride rows = {3 * T * C, 3 * C, D};
    const char *q = qkv->data;
    char *dq = qkv->grad;
    AttnArgs a = {.B = (int)qkv->shape[0],
                  .H = o->attr.heads,
                  .Tq = (int)T,
                  .Tk = (int)T,
                  .D = (int)D,
                  .dtype = qkv->dtype,
                  .scale = o->attr.scale,
                  .mask = o->attr.mask,
                  .q = q,
                  .k = q ? q + third : NULL,
                  .v = q ? q + 2 * third : NULL,
                  .qs = rows,
                  .ks = rows,
                  .vs = rows,
                  .os = {T * C, C, D},
                  .out = out->data,
                  .lse = o->saved[0]->data,
                  .dout = out->grad,
                  .dq = dq,
                  .dk = dq ? dq + third : NULL,
                  .dv = dq ? dq + 2 * third : NULL};
    add_learned(&a, o->in[1]);
    return a;
}

AttnArgs attention_args(const OpCall *o) {
    if (o->attr.heads) return packed_args(o);
    const Tensor *q = o->in[0], *k = o->in[1], *v = o->in[2], *out = o->out[0];
    const int64_t Tq = q->shape[1], H = q->shape[2], D = q->shape[3], Tk = k->shape[1];
    const AttnStride queries = {Tq * H * D, H * D, D}, keys = {Tk * H * D, H * D, D};
    AttnArgs a = {.B = (int)q->shape[0],
                  .H = (int)H,
                  .Tq = (int)Tq,
                  .Tk = (int)Tk,
                  .D = (int)D,
                  .dtype = q->dtype,
                  .scale = o->attr.scale,
                  .offset = o->attr.offset,
                  .mask = o->attr.mask,
                  .q = q->data,
                  .k = k->data,
                  .v = v->data,
                  .qs = queries,
                  .ks = keys,
                  .vs = keys,
                  .os = queries,
                  .out = out->data,
                  .lse = o->saved[0]->data,
                  .dout = out->grad,
                  .dq = q->grad,
                  .dk = k->grad,
                  .dv = v->grad};
    add_learned(&a, o->in[3]);
    return a;
}

void attention_forward(Ctx *c, const OpCall *o) {
    AttnArgs a = attention_args(o);
    attn_run(c, &a, false);
}

void attention_backward(Ctx *c, const OpCall *o) {
    AttnArgs a = attention_args(o);
    attn_run(c, &a, true);
}

void attn_run(Ctx *c, AttnArgs *a, bool backward) {
    CHECK(c->attn, "no attention backend was chosen (attn_choose)");
    a->workspace = ctx_workspace(c, c->attn->workspace(c, a, backward));
    (backward ? c->attn->backward : c->attn->forward)(c, a);
}

/* ---- the choice ---- */

static int refuse(const Ctx *c, const char *name, const char *reason, const AttnArgs *a, Err *e) {
    char would[256] = "";
    for (int i = 0; attn_backends[i]; i++) {
        if (a && attn_backends[i]->supports(c, a)) continue;
        strncat(would, *would ? ", " : "auto, ", sizeof would - strlen(would) - 1);
        strncat(would, attn_backends[i]->name, sizeof would - strlen(would) - 1);
    }
    if (!*would) return err_set(e, "--attn %s: %s; no backend does this mask here", name, reason);
    return err_set(e, "--attn %s: %s; these would work here: %s", name, reason, would);
}

/* Random tensors of one call, for timing: contiguous, in one block of the device's memory. */
typedef struct Trial {
    AttnArgs args;
    const Memory *memory;
    char *block;
    size_t bytes, results; /* of the block; of out, dq, dk and dv, which lie together */
} Trial;

static int no_memory(size_t bytes, Err *e) {
    return err_set(e, "--attn auto: no memory for a trial (%zu MiB); name a backend instead",
                   bytes >> 20);
}

/* Number i of a block. */
static double read_number(const void *block, DType t, size_t i) {
    return t == DT_BF16 ? (double)bf16_value(((const uint16_t *)block)[i])
                        : (double)((const float *)block)[i];
}

static int fill(const Trial *t, size_t inputs, Err *e) {
    void *host = calloc(t->bytes, 1);
    if (!host) return no_memory(t->bytes, e);
    for (size_t i = 0; i < inputs; i++) {
        float x;
        rng_normal((RngKey){1, 0, RNG_TEST}, i, &x, 1);
        if (t->args.dtype == DT_BF16)
            ((uint16_t *)host)[i] = bf16_round(x);
        else
            ((float *)host)[i] = x;
    }
    t->memory->put(t->block, host, t->bytes);
    free(host);
    return 0;
}

static int trial_make(Ctx *c, Trial *t, const AttnArgs *like, Err *e) {
    AttnArgs *a = &t->args;
    *a = *like;
    const size_t item = dtype_size(a->dtype), row = (size_t)a->H * (size_t)a->D;
    const size_t queries = (size_t)a->B * (size_t)a->Tq * row;
    const size_t keys = (size_t)a->B * (size_t)a->Tk * row;
    const size_t lse = (size_t)a->B * (size_t)a->H * (size_t)a->Tq;
    t->memory = c->dev->memory;
    const size_t learned = (size_t)a->mask->n_learned;
    t->results = 2 * (queries + keys);
    t->bytes = 2 * t->results * item + (lse + 2 * learned) * sizeof(float);
    t->block = t->memory->take(t->bytes);
    if (!t->block) return no_memory(t->bytes, e);
    if (fill(t, t->results, e)) return -1; /* as many inputs as results */
    char *p = t->block;
    a->q = p, p += queries * item;
    a->dout = p, p += queries * item;
    a->k = p, p += keys * item;
    a->v = p, p += keys * item;
    a->out = p, p += queries * item;
    a->dq = p, p += queries * item;
    a->dk = p, p += keys * item;
    a->dv = p, p += keys * item;
    a->lse = p, p += lse * sizeof(float);
    if (learned) a->learned = (float *)p, a->dlearned = (float *)p + learned; /* zeros to read */
    a->qs = a->os = (AttnStride){a->Tq * (int64_t)row, (int64_t)row, a->D};
    a->ks = a->vs = (AttnStride){a->Tk * (int64_t)row, (int64_t)row, a->D};
    a->scale = 1 / sqrtf((float)a->D);
    return 0;
}

static double now_done(Ctx *c) {
    ctx_wait(c, ctx_mark(c));
    return now_s();
}

/* Seconds of the fastest of three forwards and backwards; the first, which warms, is not timed, and
 * is all where it took ten times as long as `best`. */
static double trial_time(Ctx *c, Trial *t, double best, double *forward, double *backward) {
    *forward = *backward = INFINITY;
    for (int i = 0; i < 4; i++) {
        const double t0 = now_done(c);
        attn_run(c, &t->args, false);
        const double t1 = now_done(c);
        attn_run(c, &t->args, true);
        const double t2 = now_done(c);
        const bool hopeless = i == 0 && t2 - t0 > 10 * best;
        if (i || hopeless) *forward = fmin(*forward, t1 - t0), *backward = fmin(*backward, t2 - t1);
        if (hopeless) break;
    }
    return *forward + *backward;
}

/* The largest difference of outputs and gradients, as a share of the largest entry. */
static double trial_differs(const Trial *t, const char *got, const char *expected) {
    double worst = 0, most = 0;
    for (size_t i = 0; i < t->results; i++) {
        const double x = read_number(expected, t->args.dtype, i);
        const double d = fabs(read_number(got, t->args.dtype, i) - x);
        if (isnan(d)) return NAN;
        worst = fmax(worst, d);
        most = fmax(most, fabs(x));
    }
    return worst / most;
}

/* Whether a backend takes part; else why not, in *why. Half of the memory that is left is for the
 * model. */
static bool takes_part(Ctx *c, const AttnBackend *b, const AttnArgs *a, Err *why) {
    const char *reason = b->supports(c, a);
    if (reason) return err_set(why, "%s", reason), false;
    if (b->prepare(c, a, why)) return false;
    if (!memory_check(c->dev->memory, 2 * b->workspace(c, a, true), NULL)) return true;
    err_set(why, "its workspace would take more than half of the memory that is left");
    return false;
}

/* How far backends may be apart: rounding, and nothing that a wrong kernel would do. */
static double allowed_difference(DType t) { return t == DT_BF16 ? 3e-2 : 1e-3; }

/* Times one backend and compares it with the first, whose results go to `expected`. */
static int try_backend(Ctx *c, Trial *t, const AttnBackend *b, const AttnBackend *first,
                       double *best_s, const AttnBackend **best, char *got, char *expected,
                       Err *e) {
    double forward, backward;
    c->attn = b;
    const double s = trial_time(c, t, *best_s, &forward, &backward);
    t->memory->get(first ? got : expected, t->args.out, t->results * dtype_size(t->args.dtype));
    const double differs = first ? trial_differs(t, got, expected) : 0;
    printf("%-12s  %10.2f  %11.2f  %.1e\n", b->name, 1e3 * forward, 1e3 * backward, differs);
    if (s < *best_s) *best_s = s, *best = b;
    if (differs < allowed_difference(t->args.dtype)) return 0;
    return err_set(e,
                   "--attn auto: %s differs from %s by %.1e of the largest entry; this is a bug, "
                   "please report it; --attn %s works meanwhile",
                   b->name, first->name, differs, first->name);
}

static int choose_fastest(Ctx *c, const AttnArgs *a, Err *e) {
    Trial t = {.memory = c->dev->memory};
    const AttnBackend *before = c->attn, *first = NULL, *best = NULL;
    double best_s = INFINITY;
    int status = trial_make(c, &t, a, e);
    const size_t bytes = t.results * dtype_size(a->dtype);
    char *got = malloc(bytes), *expected = malloc(bytes);
    if (!status && !(got && expected)) status = no_memory(2 * bytes, e);
    if (!status) printf("attention     forward ms  backward ms  difference from the first\n");
    for (int i = 0; !status && attn_backends[i]; i++) {
        const AttnBackend *b = attn_backends[i];
        Err why = {""};
        if (!takes_part(c, b, a, &why)) {
            printf("%-12s  left out: %s\n", b->name, why.text);
            continue;
        }
        status = try_backend(c, &t, b, first, &best_s, &best, got, expected, e);
        if (!first) first = b;
    }
    free(got);
    free(expected);
    if (t.block) t.memory->give(t.block, t.bytes);
    arena_free(&c->workspace); /* the largest backend's, which may be none of the winner's */
    if (!status && !best) status = err_set(e, "--attn auto: no backend takes part, see above");
    c->attn = status ? before : best;
    if (!status) printf("attention: %s\n", best->name);
    return status;
}

int attn_choose(Ctx *c, const char *name, const AttnArgs *shape, Err *e) {
    AttnArgs in_dtype = *shape;
    const AttnArgs *a = &in_dtype;
    in_dtype.dtype = c->dtype;
    if (!strcmp(name, "auto") && !c->dry) return choose_fastest(c, a, e);
    /* a dry context measures nothing: the one that is expected to win */
    const AttnBackend *b = strcmp(name, "auto") ? attn_find(name) : attn_find("sdpa");
    if (!b) return refuse(c, name, "no such backend", a, e);
    const char *reason = b->supports(c, a);
    if (reason && !strcmp(name, "auto")) b = attn_find("flex"), reason = b->supports(c, a);
    if (reason) return refuse(c, name, reason, a, e);
    if (b->prepare(c, a, e)) return -1;
    c->attn = b;
    return 0;
}
