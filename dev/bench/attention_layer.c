/* One attention layer of the IceCube model, forward, with every backend in turns:
 *
 *   ./bench_attention --case icecube [--batch 4|8|16] [--attn NAME] [--json FILE]
 *
 * One head of 128: pulses (N, 4) -> linear -> q, k, v -> attention among the pulses of each DOM ->
 * linear -> mean over each DOM, (M, 128). The batches have exactly the counts of three real ones,
 * of 4, 8 and 16 events. Work: the products, and in attention the visible pairs alone. max_error:
 * the largest difference of the means from those that the plain loops make in float32 (in bf16:
 * with the rounding of pulses and weights). */
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dev/bench/attention_bench.h"
#include "dev/bench/on_device.h"
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

void bench_linear(Ctx *c, Linear *w, Tensor tensor[2], uint32_t stream, int64_t out, int64_t in) {
    tensor[0] = (Tensor){.dtype = c->dtype, .ndim = 2, .shape = {out, in}};
    tensor[1] = (Tensor){.dtype = c->dtype, .ndim = 1, .shape = {out}};
    const float scale = 1 / sqrtf((float)in);
    for (int i = 0; i < 2; i++) {
        const int64_t n = tensor_numel(&tensor[i]);
        float *x = bench_normals(stream + (uint32_t)i, (size_t)n, 1, false);
        for (int64_t j = 0; j < n && i == 0; j++) x[j] *= scale;
        device_tensor(c, &tensor[i], x);
        free(x);
    }
    *w = (Linear){&tensor[0], &tensor[1]};
}

static void layer_make(Ctx *c, Layer *l) {
    bench_linear(c, &l->input, l->tensor, 0, C, FEATURES);
    bench_linear(c, &l->qkv, l->tensor + 2, 2, 3 * C, C);
    bench_linear(c, &l->out, l->tensor + 4, 4, C, C);
}

static void layer_free(Ctx *c, Layer *l) {
    for (int i = 0; i < 6; i++) device_give(c, &l->tensor[i]);
}

/* A batch's pulses and its DOMs' offsets, in the device's memory. */
typedef struct Input {
    Tensor x, offsets;
} Input;

static Input input_make(Ctx *c, const Batch *b, const int32_t *offsets) {
    Input in = {.x = {.dtype = c->dtype, .ndim = 3, .shape = {1, b->pulses, FEATURES}},
                .offsets = {.dtype = DT_I32, .ndim = 1, .shape = {b->doms + 1}}};
    float *x = bench_normals(6, (size_t)b->pulses * FEATURES, 1, false);
    device_tensor(c, &in.x, x);
    device_tensor(c, &in.offsets, offsets);
    free(x);
    return in;
}

static void input_free(Ctx *c, Input *in) {
    device_give(c, &in->x);
    device_give(c, &in->offsets);
}

static Tensor *layer_forward(Ctx *c, const Layer *l, Input *in, const Mask *mask) {
    ctx_step_begin(c);
    Tensor *x = op_linear(c, &in->x, &l->input);                       /* (1, N, C)  */
    x = op_linear(c, x, &l->qkv);                                      /* (1, N, 3C) */
    x = op_attention_packed(c, x, 1, mask, NULL, 1 / sqrtf((float)C)); /* (1, N, C)  */
    return op_segment_mean(c, op_linear(c, x, &l->out), &in->offsets); /* (1, M, C)  */
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

/* The means by the plain loops in float32, (doms, C); the caller frees them. NULL and a sentence
 * where there is no such device. */
static float *reference(const Batch *b, const int32_t *offsets, const Mask *mask, Err *e) {
    Ctx c;
    Layer l;
    if (ctx_init(&c, "plain", 1, 1, false, e)) return NULL;
    c.recording = false;
    layer_make(&c, &l);
    Input in = input_make(&c, b, offsets);
    const size_t bytes = (size_t)b->doms * C * sizeof(float);
    float *y = malloc(bytes);
    CHECK(y, "no memory for the reference");
    memcpy(y, layer_forward(&c, &l, &in, mask)->data, bytes);
    input_free(&c, &in);
    layer_free(&c, &l);
    ctx_free(&c);
    return y;
}

static double difference(const float *got, const float *expected, int n) {
    double worst = 0;
    for (int i = 0; i < n; i++)
        worst = bench_worse(worst, fabs((double)got[i] - (double)expected[i]));
    return worst;
}

/* One layer's seconds; attention's share of them is in the profile. Where a device has a queue, to
 * time its ops takes time: it is done in a run before, which keeps the device busy while the host
 * starts the one that is timed. */
static double layer_time(Ctx *c, const Layer *l, Input *in, const Mask *mask, Tensor **y) {
    double s = 0;
    ctx_profile_reset(c);
    c->profiling = true;
    if (c->dev->queue) {
        layer_forward(c, l, in, mask);
        ctx_profile_reset(c); /* the times of its ops come with the wait, their work goes */
        c->profiling = false;
    }
    ctx_lap(c, CLOCK_PHASE, NULL);
    *y = layer_forward(c, l, in, mask);
    ctx_lap(c, CLOCK_PHASE, &s);
    ctx_wait(c, ctx_mark(c));
    return s;
}

/* The turns: the layer once with each backend, then the roof, whose GFLOP/s are returned. The first
 * turn warms up. */
static double measure(Ctx *c, const Bench *o, const Layer *l, const Batch *b, Input *in, Row *row,
                      int n, const float *expected) {
    double roof[MAX_REPEATS];
    float *gemm = bench_normals(7, 3 * ROOF_N * ROOF_N, 1, false);
    for (int r = -1; r < o->repeats; r++) {
        for (int i = 0; i < n; i++) {
            Tensor *y;
            row_take(c, &row[i]);
            const double s = layer_time(c, l, in, row[i].mask, &y);
            row[i].max_error = bench_worse(row[i].max_error,
                                           difference(ctx_read_f32(c, y), expected, b->doms * C));
            if (r < 0) continue;
            row[i].forward_s[r] = s;
            row[i].attention_s[r] = c->profile[OP_ATTENTION].forward_s;
        }
        const double gflops = bench_roof(c, gemm);
        if (r >= 0) roof[r] = gflops;
    }
    free(gemm);
    return median(roof, o->repeats);
}

static void report(const Bench *o, const Ctx *c, const Batch *b, Row *row, int n, double rate,
                   cJSON *all) {
    double gflop = 0; /* the same with each: they were counted in the last run */
    for (int i = 0; i < OP_COUNT; i++) gflop += 1e-9 * c->profile[i].forward_flops;
    printf(
        "icecube  %d events  %d pulses on %d DOMs, at most %d  H 1  D %d  %s  %s  "
        "threads %d  roof %.0f GFLOP/s\n",
        b->events, b->pulses, b->doms, b->most, C, dtype_name(c->dtype), c->dev->name, c->n_threads,
        rate);
    printf("backend        layer ms  of roof  attention ms  of layer  max error  mask\n");
    for (int i = 0; i < n; i++) {
        const double s = median(row[i].forward_s, o->repeats),
                     attention = median(row[i].attention_s, o->repeats);
        printf("%-13s  %8.3f  %6.1f%%  %12.3f  %7.1f%%  %9.1e  %s\n", row_name(&row[i]), 1e3 * s,
               100 * gflop / s / rate, 1e3 * attention, 100 * attention / s, row[i].max_error,
               row[i].mask->text);
        cJSON *j = cJSON_CreateObject();
        cJSON_AddItemToArray(all, j);
        cJSON_AddStringToObject(j, "backend", row_name(&row[i]));
        cJSON_AddStringToObject(j, "dtype", dtype_name(c->dtype));
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
    Row *row = calloc(MAX_BACKENDS, sizeof *row);
    CHECK(row, "no memory for the results");
    AttnArgs a = attn_shape(1, 1, b->pulses, C, named);
    a.dtype = c->dtype;
    Input in = input_make(c, b, offsets);
    float *expected = reference(b, offsets, named, e);
    const int n = expected ? bench_rows(o, c, &a, named, written, row, e) : -1;
    if (n > 0) {
        const double rate = measure(c, o, l, b, &in, row, n, expected);
        report(o, c, b, row, n, rate, all);
    }
    free(expected);
    free(row);
    input_free(c, &in);
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
    if (mask_init_documents(&named, o->mask ? o->mask : "document", o->score, "", 1, e) ||
        mask_init_documents(&written, o->mask ? o->mask : "doc[q] == doc[k]", o->score, "", 1, e) ||
        bench_context(o, &c, e))
        return -1;
    mask_set_build(&written, o->cache, NULL);
    mask_set_build(&named, o->cache, NULL);
    c.recording = false;
    layer_make(&c, &l);
    cJSON *all = cJSON_CreateArray();
    for (int i = 0; i < N_BATCHES && !status; i++)
        if (!o->batch || o->batch == batches[i].events)
            status = bench_batch(o, &c, &l, &batches[i], &named, &written, all, e);
    if (status)
        cJSON_Delete(all);
    else
        status = bench_save(o, all, e);
    layer_free(&c, &l);
    ctx_free(&c);
    mask_free(&named);
    mask_free(&written);
    return status;
}
