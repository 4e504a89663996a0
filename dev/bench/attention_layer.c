/* One attention layer of the IceCube model, forward, with every backend in turns:
 *
 *   ./bench_attention --case icecube [--batch 4|8|16] [--attn NAME] [--json FILE]
 *
 * One head of 128: pulses (N, 4) -> linear -> q, k, v -> attention among the pulses of each DOM ->
 * linear -> mean over each DOM, (M, 128). The batches have exactly the counts of three real ones,
 * of 4, 8 and 16 events. Work: the products, and in attention the visible pairs alone. max_error:
 * the largest difference of the means from those that the plain loops make. */
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dev/bench/attention_bench.h"
#include "kernels/ops.h"
#include "llmc_like/philox.h"
#include "llmc_like/run.h"

enum { FEATURES = 4, C = 128, MAX_DOMS = 895 };

typedef struct Batch {
    int events, pulses, doms, most; /* most: pulses of one DOM */
} Batch;

static const Batch batches[] = {{4, 290, 227, 6}, {8, 763, 502, 27}, {16, 1305, 895, 27}};
enum { N_BATCHES = sizeof batches / sizeof batches[0] };

typedef struct Layer {
    Linear input, qkv, out;
    Tensor tensor[6];
} Layer;

static void linear_make(Linear *w, Tensor tensor[2], uint32_t stream, int64_t out, int64_t in) {
    tensor[0] = (Tensor){.dtype = DT_F32, .ndim = 2, .shape = {out, in}};
    tensor[1] = (Tensor){.dtype = DT_F32, .ndim = 1, .shape = {out}};
    tensor[0].data = bench_normals(stream, (size_t)(out * in), 1, false);
    tensor[1].data = bench_normals(stream + 1, (size_t)out, 1, false);
    const float scale = 1 / sqrtf((float)in);
    for (int64_t i = 0; i < out * in; i++) ((float *)tensor[0].data)[i] *= scale;
    *w = (Linear){&tensor[0], &tensor[1]};
}

static void layer_make(Layer *l) {
    linear_make(&l->input, l->tensor, 0, C, FEATURES);
    linear_make(&l->qkv, l->tensor + 2, 2, 3 * C, C);
    linear_make(&l->out, l->tensor + 4, 4, C, C);
}

static Tensor *layer_forward(Ctx *c, const Layer *l, Tensor *x, Tensor *offsets, const Mask *mask) {
    x = op_linear(c, x, &l->input);                               /* (1, N, C)  */
    x = op_linear(c, x, &l->qkv);                                 /* (1, N, 3C) */
    x = op_attention_packed(c, x, 1, mask, 1 / sqrtf((float)C));  /* (1, N, C)  */
    return op_segment_mean(c, op_linear(c, x, &l->out), offsets); /* (1, M, C)  */
}

/* Pulses on DOMs: the first has the most, the next quarter share what the others, with one each,
 * leave; then the DOMs are shuffled. */
static void make_offsets(const Batch *b, int32_t offsets[MAX_DOMS + 1]) {
    int count[MAX_DOMS], sum = b->doms - 1 + b->most;
    RngStream random = {{1, 0, RNG_TEST}, 0};
    for (int i = 0; i < b->doms; i++) count[i] = i ? 1 : b->most;
    while (sum < b->pulses) {
        int *n = &count[rng_next_below(&random, (uint32_t)b->doms / 4)];
        if (*n < b->most - 1) ++*n, sum++;
    }
    for (int i = b->doms - 1; i > 0; i--) {
        const int j = (int)rng_next_below(&random, (uint32_t)i + 1), n = count[i];
        count[i] = count[j], count[j] = n;
    }
    offsets[0] = 0;
    for (int i = 0; i < b->doms; i++) offsets[i + 1] = offsets[i] + count[i];
}

/* The means by the plain loops, (doms, C); the caller frees them. NULL and a sentence where there
 * is no such device. */
static float *reference(const Layer *l, const Batch *b, Tensor *x, Tensor *offsets,
                        const Mask *mask, Err *e) {
    Ctx c;
    if (ctx_init(&c, "plain", 1, 1, false, e)) return NULL;
    c.recording = false;
    const size_t bytes = (size_t)b->doms * C * sizeof(float);
    float *y = malloc(bytes);
    CHECK(y, "no memory for the reference");
    memcpy(y, layer_forward(&c, l, x, offsets, mask)->data, bytes);
    ctx_free(&c);
    return y;
}

static double difference(const float *got, const float *expected, int n) {
    double worst = 0;
    for (int i = 0; i < n; i++)
        worst = bench_worse(worst, fabs((double)got[i] - (double)expected[i]));
    return worst;
}

/* The turns: the layer once with each backend, then the roof, whose GFLOP/s are returned. The first
 * turn warms up. */
static double measure(Ctx *c, const Bench *o, const Layer *l, const Batch *b, Tensor *x,
                      Tensor *offsets, Row *row, int n, const float *expected) {
    double roof_s[MAX_REPEATS];
    float *gemm = bench_normals(7, 3 * ROOF_N * ROOF_N, 1, false);
    for (int r = -1; r < o->repeats; r++) {
        for (int i = 0; i < n; i++) {
            c->attn = row[i].backend;
            ctx_step_begin(c);
            ctx_profile_reset(c);
            const double t0 = now_s();
            const Tensor *y = layer_forward(c, l, x, offsets, row[i].mask);
            const double s = now_s() - t0;
            row[i].max_error =
                bench_worse(row[i].max_error, difference(y->data, expected, b->doms * C));
            if (r < 0) continue;
            row[i].forward_s[r] = s;
            row[i].attention_s[r] = c->profile[OP_ATTENTION].forward_s;
        }
        const double s = bench_roof(c, gemm);
        if (r >= 0) roof_s[r] = s;
    }
    free(gemm);
    return 2e-9 * ROOF_N * ROOF_N * ROOF_N / median(roof_s, o->repeats);
}

static void report(const Bench *o, const Ctx *c, const Batch *b, Row *row, int n, double rate,
                   cJSON *all) {
    double gflop = 0; /* the same with each: they were counted in the last run */
    for (int i = 0; i < OP_COUNT; i++) gflop += 1e-9 * c->profile[i].forward_flops;
    printf(
        "icecube  %d events  %d pulses on %d DOMs, at most %d  H 1  D %d  %s  threads %d  "
        "roof %.0f GFLOP/s\n",
        b->events, b->pulses, b->doms, b->most, C, c->dev->name, c->n_threads, rate);
    printf("backend     layer ms  of roof  attention ms  of layer  max error  mask\n");
    for (int i = 0; i < n; i++) {
        const double s = median(row[i].forward_s, o->repeats),
                     attention = median(row[i].attention_s, o->repeats);
        printf("%-10s  %8.3f  %6.1f%%  %12.3f  %7.1f%%  %9.1e  %s\n", row[i].backend->name, 1e3 * s,
               100 * gflop / s / rate, 1e3 * attention, 100 * attention / s, row[i].max_error,
               row[i].mask->text);
        cJSON *j = cJSON_CreateObject();
        cJSON_AddItemToArray(all, j);
        cJSON_AddStringToObject(j, "backend", row[i].backend->name);
        cJSON_AddStringToObject(j, "dtype", "float32");
        bench_number(j, "batch", b->events);
        bench_number(j, "pulses", b->pulses);
        bench_number(j, "doms", b->doms);
        bench_number(j, "forward_ms", 1e3 * s);
        bench_number(j, "attention_ms", 1e3 * attention);
        bench_number(j, "max_error", row[i].max_error);
        cJSON_AddStringToObject(j, "case", o->name);
        cJSON_AddStringToObject(j, "mask", row[i].mask->text);
        cJSON_AddStringToObject(j, "device", c->dev->name);
        bench_number(j, "threads", c->n_threads);
        bench_number(j, "forward_gflop", gflop);
        bench_number(j, "roof_gflops", rate);
    }
}

static int bench_batch(const Bench *o, Ctx *c, const Layer *l, const Batch *b, Mask *named,
                       Mask *written, cJSON *all, Err *e) {
    int32_t offsets[MAX_DOMS + 1];
    make_offsets(b, offsets);
    mask_set_documents(named, offsets, b->doms);
    mask_set_documents(written, offsets, b->doms);
    float *pulses = bench_normals(6, (size_t)b->pulses * FEATURES, 1, false);
    Row *row = calloc(MAX_BACKENDS, sizeof *row);
    CHECK(row, "no memory for the results");
    Tensor x = {.data = pulses, .dtype = DT_F32, .ndim = 3, .shape = {1, b->pulses, FEATURES}},
           at = {.data = offsets, .dtype = DT_I32, .ndim = 1, .shape = {b->doms + 1}};
    AttnArgs a = attn_shape(1, 1, b->pulses, C, named);
    float *expected = reference(l, b, &x, &at, named, e);
    const int n = expected ? bench_rows(o, c, &a, named, written, row, e) : -1;
    if (n > 0) {
        const double rate = measure(c, o, l, b, &x, &at, row, n, expected);
        report(o, c, b, row, n, rate, all);
    }
    free(expected);
    free(row);
    free(pulses);
    return n < 0 ? -1 : 0;
}

int layer_bench(const Bench *o, Err *e) {
    int wanted = 0, status = 0;
    for (int i = 0; i < N_BATCHES; i++) wanted += !o->batch || o->batch == batches[i].events;
    if (!wanted)
        return err_set(e,
                       "--batch %d: --case icecube has batches of 4, 8 and 16 events, and all "
                       "three for 0",
                       o->batch);
    Mask named, written;
    Ctx c;
    Layer l;
    if (mask_init_documents(&named, o->mask ? o->mask : "document", o->score, 1, e) ||
        mask_init_documents(&written, o->mask ? o->mask : "doc[q] == doc[k]", o->score, 1, e) ||
        ctx_init(&c, o->device, o->threads, 1, false, e))
        return -1;
    c.recording = false;
    layer_make(&l);
    cJSON *all = cJSON_CreateArray();
    for (int i = 0; i < N_BATCHES && !status; i++)
        if (!o->batch || o->batch == batches[i].events)
            status = bench_batch(o, &c, &l, &batches[i], &named, &written, all, e);
    if (status)
        cJSON_Delete(all);
    else
        status = bench_save(o, all, e);
    for (int i = 0; i < 6; i++) free(l.tensor[i].data);
    ctx_free(&c);
    mask_free(&named);
    mask_free(&written);
    return status;
}
