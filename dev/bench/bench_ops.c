/* What each op costs at a preset's shapes: forward and backward, the number of calls in one
 * training step, and the share of what bounds it, measured in turns in the same run: oneDNN's sgemm
 * of 1024^3 for matrix products, a copy of 24 MiB for everything else. On a GPU (bf16) it is
 * cuBLAS's product of 8192^3, and to += from of 64 MiB each. Attention has bench_attention.
 *
 *   ./bench_ops [--preset paper|tiny] [--batch N] [--threads N] [--device NAME] [--repeats N]
 *               [--json FILE] */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dev/bench/on_device.h"
#include "kernels/ops.h"
#include "llmc_like/fsio.h"
#include "llmc_like/options.h"

typedef struct Size {
    int64_t B, F, S, C, H, blocks; /* batch, frames, tokens a frame, columns, heads, blocks */
} Size;

enum { SIDE = 24, PATCH = 3 };

typedef struct Bench {
    int batch, threads, repeats;
    const char *preset, *device, *json;
    Ctx c;
    Size s;
} Bench;

typedef enum { ACTIVATION, WEIGHT, EXACT } Kind; /* exact: float32 where activations are bf16 */

/* An input of that kind, or (like: the input) memory for its gradient. */
static Tensor *leaf(Ctx *c, Kind kind, const Tensor *like, int ndim, const int64_t *shape) {
    DType dtype = kind == EXACT ? ctx_exact(c) : c->dtype;
    if (like) dtype = like->is_param ? DT_F32 : like->dtype;
    Tensor *t = ctx_tensor(c, "leaf", dtype, ndim, shape);
    if (dtype == DT_F64) { /* of a loss */
        c->dev->memory->put(t->data, &(double){1}, sizeof(double));
        return t;
    }
    float *x = malloc(sizeof *x * (size_t)tensor_numel(t));
    CHECK(x, "no memory for %lld numbers", (long long)tensor_numel(t));
    for (int64_t i = 0; i < tensor_numel(t); i++) x[i] = (float)(i * 7919 % 1009 - 504) * 2e-3f;
    device_write(c, t, x);
    free(x);
    t->needs_grad = !like;
    t->is_param = kind != ACTIVATION;
    return t;
}

#define LEAF_OF(kind, ...)                                                         \
    leaf(c, kind, NULL, (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), \
         (int64_t[]){__VA_ARGS__})
#define LEAF(...) LEAF_OF(ACTIVATION, __VA_ARGS__)
#define WEIGHT_OF(...) LEAF_OF(WEIGHT, __VA_ARGS__)
#define EXACT_OF(...) LEAF_OF(EXACT, __VA_ARGS__)

static void linear(Ctx *c, Tensor *x, int64_t K, int64_t N) {
    op_linear(c, x, &(Linear){WEIGHT_OF(N, K), WEIGHT_OF(N)});
}

static void qkv(Ctx *c, const Size *s) { linear(c, LEAF(s->B, s->F * s->S, s->C), s->C, 3 * s->C); }
static void out(Ctx *c, const Size *s) { linear(c, LEAF(s->B, s->F * s->S, s->C), s->C, s->C); }
static void up(Ctx *c, const Size *s) { linear(c, LEAF(s->B, s->F * s->S, s->C), s->C, 4 * s->C); }
static void down(Ctx *c, const Size *s) {
    linear(c, LEAF(s->B, s->F * s->S, 4 * s->C), 4 * s->C, s->C);
}
static void modulation(Ctx *c, const Size *s) { linear(c, LEAF(s->B, s->F, s->C), s->C, 6 * s->C); }
static void embed(Ctx *c, const Size *s) {
    const int64_t K = PATCH * PATCH * s->C / 2;
    linear(c, LEAF(s->B, s->F, s->S - 1, K), K, s->C);
}

static void conv1(Ctx *c, const Size *s) {
    Tensor *x = LEAF(s->B, s->F, SIDE, SIDE, 3);
    x->needs_grad = false;
    op_conv2d(c, x, &(Conv2d){WEIGHT_OF(s->C / 2, 3, 5, 5), WEIGHT_OF(s->C / 2)});
}
static void conv2(Ctx *c, const Size *s) {
    const int64_t E = s->C / 2;
    op_conv2d(c, LEAF(s->B, s->F, SIDE, SIDE, E), &(Conv2d){WEIGHT_OF(E, E, 5, 5), WEIGHT_OF(E)});
}
static void silu(Ctx *c, const Size *s) { op_silu(c, LEAF(s->B, s->F, SIDE, SIDE, s->C / 2)); }
static void groupnorm(Ctx *c, const Size *s) {
    const int64_t E = s->C / 2;
    op_groupnorm(c, LEAF(s->B, s->F, SIDE, SIDE, E), &(GroupNorm){EXACT_OF(E), EXACT_OF(E), 32});
}
static void patchify(Ctx *c, const Size *s) {
    op_patchify(c, LEAF(s->B, s->F, SIDE, SIDE, s->C / 2), PATCH);
}
static void registers(Ctx *c, const Size *s) {
    op_append_registers(c, LEAF(s->B, s->F, s->S - 1, s->C), WEIGHT_OF(1, s->C));
}
static void rmsnorm(Ctx *c, const Size *s) {
    op_rmsnorm_modulate(c, LEAF(s->B, s->F * s->S, s->C), EXACT_OF(s->C),
                        LEAF(s->B, s->F, 6 * s->C), 3);
}
static void rope(Ctx *c, const Size *s) {
    const int64_t D = s->C / s->H, T = s->F * s->S;
    Rope r = {EXACT_OF(T, D), EXACT_OF(T, D)};
    r.sin->needs_grad = r.cos->needs_grad = false;
    op_qkv_rope(c, LEAF(s->B, T, 3 * s->C), EXACT_OF(D), EXACT_OF(D), &r, (int)s->H, 0);
}
/* x's gradient is handed on, as the tape does it, so none is wanted here. */
static void gate_add(Ctx *c, const Size *s) {
    Tensor *x = LEAF(s->B, s->F * s->S, s->C);
    x->needs_grad = false;
    op_gate_add(c, x, LEAF(s->B, s->F * s->S, s->C), LEAF(s->B, s->F, 6 * s->C), 2);
}
static void geglu(Ctx *c, const Size *s) {
    op_geglu(c, LEAF(s->B, s->F * s->S, 4 * s->C), LEAF(s->B, s->F * s->S, 4 * s->C));
}
static void mse(Ctx *c, const Size *s) {
    Tensor *target = EXACT_OF(s->B, s->F, SIDE, SIDE, 3);
    target->needs_grad = false;
    op_mse_loss(c, LEAF(s->B, s->F, SIDE, SIDE, 3), target);
}

typedef struct Row {
    const char *name;
    void (*call)(Ctx *c, const Size *s);
    int a_block, a_step; /* calls in each block, and outside of blocks */
} Row;

static const Row rows[] = {
    {"linear qkv", qkv, 1, 0},
    {"linear out", out, 1, 0},
    {"linear up, gate", up, 2, 0},
    {"linear down", down, 1, 0},
    {"linear modulation", modulation, 1, 0},
    {"linear patches", embed, 0, 1},
    {"conv2d 3 -> C/2", conv1, 0, 1},
    {"conv2d C/2 -> C/2", conv2, 0, 1},
    {"silu", silu, 0, 2},
    {"groupnorm", groupnorm, 0, 2},
    {"patchify", patchify, 0, 1},
    {"append_registers", registers, 0, 1},
    {"rmsnorm_modulate", rmsnorm, 2, 1},
    {"qkv_rope", rope, 1, 0},
    {"gate_add", gate_add, 2, 0},
    {"geglu", geglu, 1, 0},
    {"mse_loss", mse, 0, 1},
};
enum { N_ROWS = sizeof rows / sizeof *rows, ROOF_N = 1024, COPY = 24 << 20, PASS = 16 << 20 };

/* What bounds an op. On the host: a product of 1024 x 1024 matrices and a copy of 24 MiB, a and b
 * and product, from and to. Else in the device's memory: PASS numbers, from and to. */
typedef struct Roof {
    float *a, *b, *product;
    char *from, *to;
} Roof;

static double product_gflops(Ctx *c, const Roof *r) {
    if (c->dev->peak) return c->dev->peak(c);
    const double t0 = now_s();
    c->dev->gemm(c, false, false, ROOF_N, ROOF_N, ROOF_N, 1, r->a, ROOF_N, r->b, ROOF_N, 0,
                 r->product, ROOF_N);
    return 2e-9 * ROOF_N * ROOF_N * ROOF_N / (now_s() - t0);
}

static double copy_gb_s(Ctx *c, const Roof *r) {
    if (!c->dev->memory->is_host) { /* to += from: two numbers read, one written */
        double s = 0;
        ctx_lap(c, CLOCK_PHASE, NULL);
        c->dev->accumulate(c, DT_F32, r->to, r->from, PASS);
        ctx_lap(c, CLOCK_PHASE, &s);
        ctx_wait(c, ctx_mark(c));
        return 3e-9 * sizeof(float) * PASS / s;
    }
    const int64_t chunk = 1 << 18;
    const double t0 = now_s();
#pragma omp parallel for num_threads(c->n_threads)
    for (int64_t i = 0; i < COPY / chunk; i++)
        memcpy(r->to + i * chunk, r->from + i * chunk, (size_t)chunk);
    return 2e-9 * COPY / (now_s() - t0);
}

static Roof roof_make(const Memory *m) {
    Roof r = {NULL};
    const size_t copy = m->is_host ? COPY : PASS * sizeof(float);
    const size_t matrix = m->is_host ? 4 * (size_t)ROOF_N * ROOF_N : 0;
    char *block = m->take(3 * matrix + 2 * copy);
    CHECK(block, "no memory for the benchmark");
    m->zero(block, 3 * matrix + 2 * copy);
    r.a = (float *)block, r.b = (float *)(block + matrix);
    r.product = (float *)(block + 2 * matrix);
    r.from = block + 3 * matrix;
    r.to = r.from + copy;
    return r;
}

static void roof_free(Roof *r, const Memory *m) {
    m->give(r->a, (size_t)(r->to - (char *)r->a) + (size_t)(r->to - r->from));
}

typedef struct Figures {
    double forward, backward; /* seconds, the least */
    double product, copy;     /* GFLOP/s, GB/s, the most */
    double flops[2], bytes[2];
} Figures;

static Figures measure(Bench *b, const Row *row, const Roof *roof) {
    Ctx *c = &b->c;
    ctx_step_begin(c);
    row->call(c, &b->s);
    OpCall *o = &c->tape.call[0];
    for (int j = 0; j < o->n_out; j++)
        o->out[j]->grad = leaf(c, ACTIVATION, o->out[j], o->out[j]->ndim, o->out[j]->shape)->data;
    for (int i = 0; i < o->n_in; i++)
        if (o->in[i] && o->in[i]->needs_grad)
            o->in[i]->grad = leaf(c, ACTIVATION, o->in[i], o->in[i]->ndim, o->in[i]->shape)->data;
    const OpKernel *k = &c->dev->ops[o->op];
    Figures f = {INFINITY, INFINITY, 0, 0, {0}, {0}};
    for (int i = 0; i < b->repeats; i++) {
        double forward = 0, backward = 0;
        if (c->dev->queue) k->forward(c, o); /* busy while the host starts the rest */
        ctx_lap(c, CLOCK_PHASE, NULL);
        k->forward(c, o);
        ctx_lap(c, CLOCK_PHASE, &forward);
        k->backward(c, o);
        ctx_lap(c, CLOCK_PHASE, &backward);
        ctx_wait(c, ctx_mark(c));
        f.forward = fmin(f.forward, forward);
        f.backward = fmin(f.backward, backward);
        f.product = fmax(f.product, product_gflops(c, roof));
        f.copy = fmax(f.copy, copy_gb_s(c, roof));
    }
    for (int pass = 0; pass < 2; pass++) {
        f.flops[pass] = op_flops(o, pass);
        f.bytes[pass] = op_bytes(o, pass);
    }
    return f;
}

/* Share of the bound: of the product's rate where the op is one, of the copy's elsewhere. */
static double share(const Figures *f, int pass) {
    const double s = pass ? f->backward : f->forward;
    return f->flops[pass] > 0 ? 1e-9 * f->flops[pass] / s / f->product
                              : 1e-9 * f->bytes[pass] / s / f->copy;
}

static int bench(Bench *b, Err *e) {
    const Size paper = {1, 30, 65, 384, 6, 8}, tiny = {8, 10, 65, 128, 4, 4};
    b->s = strcmp(b->preset, "tiny") ? paper : tiny;
    if (ctx_init(&b->c, b->device, b->threads, 1, false, e)) return -1;
    if (ctx_set_dtype(&b->c, b->c.dev->has_bf16 ? "bf16" : "float32", e)) return -1;
    if (b->batch) b->s.B = b->batch;
    char *json = NULL;
    Roof roof = roof_make(b->c.dev->memory);
    size_t size;
    FILE *out_json = open_memstream(&json, &size);
    CHECK(out_json, "no memory for the figures");
    fprintf(
        out_json,
        "{\"device\": \"%s\", \"dtype\": \"%s\", \"threads\": %d, \"preset\": \"%s\", \"batch\": "
        "%lld, \"ops\": [",
        b->c.dev->name, dtype_name(b->c.dtype), b->c.n_threads, b->preset, (long long)b->s.B);
    printf("%-18s %5s %9s %9s %7s %7s %9s\n", "op", "calls", "forward", "backward", "share",
           "share", "a step");
    double products_s = 0, rest_s = 0;
    for (int i = 0; i < N_ROWS; i++) {
        const Figures f = measure(b, &rows[i], &roof);
        const int calls = rows[i].a_block * (int)b->s.blocks + rows[i].a_step;
        const double step_s = calls * (f.forward + f.backward);
        *(f.flops[0] > 0 ? &products_s : &rest_s) += step_s;
        printf("%-18s %5d %6.3f ms %6.3f ms %6.0f%% %6.0f%% %6.1f ms\n", rows[i].name, calls,
               1e3 * f.forward, 1e3 * f.backward, 100 * share(&f, 0), 100 * share(&f, 1),
               1e3 * step_s);
        fprintf(out_json,
                "%s\n{\"op\": \"%s\", \"calls\": %d, \"forward_ms\": %.4f, \"backward_ms\": %.4f, "
                "\"forward_share\": %.3f, \"backward_share\": %.3f, \"sgemm_gflops\": %.0f, "
                "\"copy_gb_s\": %.1f}",
                i ? "," : "", rows[i].name, calls, 1e3 * f.forward, 1e3 * f.backward, share(&f, 0),
                share(&f, 1), f.product, f.copy);
    }
    printf("a step without attention: %.0f ms in products, %.0f ms in the rest\n", 1e3 * products_s,
           1e3 * rest_s);
    fprintf(out_json, "\n]}\n");
    fclose(out_json);
    int status = b->json ? atomic_save(b->json, json, size, e) : 0;
    free(json);
    roof_free(&roof, b->c.dev->memory);
    ctx_free(&b->c);
    return status;
}

int main(int argc, char **argv) {
    Bench b;
    const Option table[] = {
        {"preset", OPT_STRING, &b.preset, "paper", 0, 0, "whose shapes", "paper|tiny"},
        {"batch", OPT_INT, &b.batch, "0", 0, 4096, "clips; 0: 1 of paper, 8 of tiny", NULL},
        {"threads", OPT_INT, &b.threads, "0", 0, 1024, "threads; 0: all", NULL},
        {"device", OPT_STRING, &b.device, "cpu", 0, 0, "where it runs; cuda: in bf16", NULL},
        {"repeats", OPT_INT, &b.repeats, "9", 1, 1000, "each figure is the least of so many", NULL},
        {"json", OPT_STRING, &b.json, NULL, 0, 0, "write the figures to this file too", NULL},
    };
    Options options;
    Err e = {""};
    options_init(&options, table, sizeof table / sizeof *table, false);
    int status = options_parse(&options, argc, argv, &e);
    if (!status && options.help)
        options_help(&options, "bench_ops [OPTIONS]", stdout);
    else if (!status)
        status = bench(&b, &e);
    options_free(&options);
    if (status) fprintf(stderr, "bench_ops: %s\n", e.text);
    return status ? 1 : 0;
}
