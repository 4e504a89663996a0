/* What an update costs: gradient norm, clipping, Muon and Adam on the paper preset's parameters,
 * and the matrix product's roof beside it, in turns in one run.
 * The share of the roof counts the formulas' operations, so it may exceed 1: symmetric products are
 * computed on one triangle only. On a GPU the masters are float32 and their roundings bf16, and
 * the roof is that of bf16.
 *
 *   ./bench_update [--device NAME] [--threads N] [--blocks N] [--d-model N] [--repeats N]
 *                  [--json FILE] */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dev/bench/on_device.h"
#include "llmc_like/fsio.h"
#include "llmc_like/optim.h"
#include "llmc_like/options.h"
#include "llmc_like/run.h"

enum { MAX_REPEATS = 1000, ROOF_N = 1024, ROOF_CALLS = 4 };

/* The matrices of a block of the world model, and vectors and matrices for Adam beside them. */
static void add_rows(ParamTable *p, Tensor **slot, int64_t d, int blocks) {
    const int64_t shape[][2] = {{3 * d, d}, {d, d}, {4 * d, d}, {4 * d, d}, {d, 4 * d}, {6 * d, d}};
    const char *name[] = {"qkv", "out", "up", "gate", "down", "modulation"};
    for (int b = 0; b < blocks; b++)
        for (int i = 0; i < 6; i++) {
            params_add(p, slot++, GROUP_MUON, INIT_NORMAL, 0.02f, 2, shape[i], "block.%d.%s.weight",
                       b, name[i]);
            params_add(p, slot++, GROUP_ADAM, INIT_ZERO, 0, 1, shape[i], "block.%d.%s.bias", b,
                       name[i]);
        }
    params_add(p, slot++, GROUP_ADAM, INIT_NORMAL, 0.02f, 2, (int64_t[]){d, 9 * d / 2}, "embed");
    params_add(p, slot++, GROUP_ADAM, INIT_NORMAL, 0.02f, 2, (int64_t[]){2 * d, d}, "head");
    params_add(p, slot++, GROUP_ADAM, INIT_NORMAL, 0.02f, 2, (int64_t[]){d, d}, "mixer");
}

/* Gradients as the host makes them, to where the device reads them. */
static void fill_gradients(ParamTable *p, const Memory *memory) {
    for (int i = 0; i < p->n; i++) {
        Tensor *t = &p->row[i].tensor;
        const int64_t n = tensor_numel(t);
        float *g = malloc(sizeof *g * (size_t)n);
        CHECK(g, "no memory for %lld numbers", (long long)n);
        for (int64_t j = 0; j < n; j++) g[j] = 1e-3f * (float)((j * 7919 + i) % 1009 - 504);
        memory->put(t->grad, g, sizeof *g * (size_t)n);
        t->grad_set = true;
        free(g);
    }
}

/* GFLOP/s of the device's product; of 1024 x 1024 matrices (block holds three) on the host. */
static double roof_gflops(Ctx *c, float *block) {
    if (c->dev->peak) return c->dev->peak(c);
    float *a = block, *b = a + ROOF_N * ROOF_N, *product = b + ROOF_N * ROOF_N;
    double best = INFINITY;
    for (int i = 0; i < ROOF_CALLS; i++) {
        const double t0 = now_s();
        c->dev->gemm(c, false, true, ROOF_N, ROOF_N, ROOF_N, 1, a, ROOF_N, b, ROOF_N, 0, product,
                     ROOF_N);
        best = fmin(best, now_s() - t0);
    }
    return 2e-9 * ROOF_N * ROOF_N * ROOF_N / best;
}

typedef struct Bench {
    int threads, blocks, d_model, repeats;
    const char *device, *json;
} Bench;

static int bench(const Bench *o, Err *e) {
    static double update_s[MAX_REPEATS], roof[MAX_REPEATS];
    Ctx c;
    if (ctx_init(&c, o->device, o->threads, 1, false, e)) return -1;
    if (ctx_set_dtype(&c, c.dev->has_bf16 ? "bf16" : "float32", e)) return -1;
    ParamTable p;
    Tensor **slot = calloc((size_t)o->blocks * 12 + 3, sizeof *slot);
    float *block = aligned_alloc(64, sizeof(float) * 3 * ROOF_N * ROOF_N);
    CHECK(slot && block, "no memory for the benchmark");
    params_init(&p, &c);
    add_rows(&p, slot, o->d_model, o->blocks);
    if (params_commit(&p, true, e)) return -1;
    fill_gradients(&p, c.dev->memory);
    for (int i = 0; i < 3 * ROOF_N * ROOF_N; i++) block[i] = (float)(i % 13) - 6.0f;
    Optim optim = optim_default();
    optim_step(&c, &optim, &p, 1, 10);
    roof_gflops(&c, block);
    for (int r = 0; r < o->repeats; r++) {
        roof[r] = roof_gflops(&c, block);
        const double t0 = done_s(&c);
        optim_step(&c, &optim, &p, 1, 10);
        update_s[r] = done_s(&c) - t0;
    }
    const double update = median(update_s, o->repeats);
    median(roof, o->repeats); /* sorts */
    /* The rates are of the fastest runs: another program's share of the machine only ever adds. */
    const double fastest = roof[o->repeats - 1];
    const double flops = optim_flops(&optim, &p), gflops = 1e-9 * flops / update_s[0];
    char text[512];
    snprintf(text, sizeof text,
             "{\"device\": \"%s\", \"dtype\": \"%s\", \"threads\": %d, \"parameters\": %lld, "
             "\"update_ms\": %.3f, \"update_min_ms\": %.3f, \"gflop\": %.1f, \"gflops\": %.1f, "
             "\"roof_gflops\": %.1f, \"share_of_roof\": %.3f}\n",
             c.dev->name, dtype_name(c.dtype), c.n_threads, (long long)p.numel, 1e3 * update,
             1e3 * update_s[0], 1e-9 * flops, gflops, fastest, gflops / fastest);
    printf("%s", text);
    int status = o->json ? atomic_save(o->json, text, strlen(text), e) : 0;
    params_free(&p);
    free(slot);
    free(block);
    ctx_free(&c);
    return status;
}

int main(int argc, char **argv) {
    Bench o;
    const Option table[] = {
        {"threads", OPT_INT, &o.threads, "0", 0, 1024, "threads; 0: all", NULL},
        {"blocks", OPT_INT, &o.blocks, "8", 1, 1000, "blocks of six matrices", NULL},
        {"d-model", OPT_INT, &o.d_model, "384", 32, 8192, "width of the residual stream", NULL},
        {"repeats", OPT_INT, &o.repeats, "9", 1, MAX_REPEATS, "medians are over these", NULL},
        {"device", OPT_STRING, &o.device, "cpu", 0, 0, "where it runs; cuda: in bf16", NULL},
        {"json", OPT_STRING, &o.json, NULL, 0, 0, "write the figures to this file too", NULL},
    };
    Options options;
    Err e = {""};
    options_init(&options, table, sizeof table / sizeof *table, false);
    int status = options_parse(&options, argc, argv, &e);
    if (!status && options.help)
        options_help(&options, "bench_update [OPTIONS]", stdout);
    else if (!status)
        status = bench(&o, &e);
    options_free(&options);
    if (status) fprintf(stderr, "%s\n", e.text);
    return status ? 1 : 0;
}
