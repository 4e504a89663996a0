/* One attention layer of the world model's paper preset, forward, with every backend in turns:
 *
 *   ./bench_attention --case wm-layer [--batch 1] [--attn NAME] [--json FILE]
 *
 * x (B, T, C) -> linear -> q, k, v, q and k normed and rotated -> frame-causal attention -> linear:
 * what the original's author timed. Work: the products, and in attention the visible pairs alone.
 * difference: the largest from what the first backend makes, over its largest entry; errors of the
 * kernels themselves are --case wm's. */
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dev/bench/attention_bench.h"
#include "dev/bench/on_device.h"
#include "llmc_like/run.h"

enum { T = 1950, S = 65, H = 6, D = 64, C = H * D };

typedef struct Layer {
    Linear qkv, out;
    Tensor tensor[4], norm[2], table[2]; /* weights and biases; of q and k; sin and cos */
    Rope rope;
    Tensor x;
} Layer;

static void layer_make(Ctx *c, Layer *l, int batch) {
    bench_linear(c, &l->qkv, l->tensor, 0, 3 * C, C);
    bench_linear(c, &l->out, l->tensor + 2, 2, C, C);
    float *x = bench_normals(4, (size_t)batch * T * C, C, true), ones[D];
    l->x = (Tensor){.dtype = c->dtype, .ndim = 3, .shape = {batch, T, C}};
    device_tensor(c, &l->x, x);
    for (int i = 0; i < D; i++) ones[i] = 1;
    for (int i = 0; i < 2; i++) {
        l->norm[i] = (Tensor){.dtype = DT_F32, .ndim = 1, .shape = {D}};
        device_tensor(c, &l->norm[i], ones);
        for (int j = 0; j < T * D; j++) {
            const double angle = j / D * pow(5000, -(j % D / 2 * 2.0) / D);
            x[j] = (float)(i ? cos(angle) : sin(angle));
        }
        l->table[i] = (Tensor){.dtype = DT_F32, .ndim = 2, .shape = {T, D}};
        device_tensor(c, &l->table[i], x);
    }
    l->rope = (Rope){&l->table[0], &l->table[1]};
    free(x);
}

static void layer_free(Ctx *c, Layer *l) {
    for (int i = 0; i < 4; i++) device_give(c, &l->tensor[i]);
    for (int i = 0; i < 2; i++) device_give(c, &l->norm[i]), device_give(c, &l->table[i]);
    device_give(c, &l->x);
}

static Tensor *layer_forward(Ctx *c, Layer *l, const Mask *mask) {
    ctx_step_begin(c);
    Tensor *y = op_linear(c, &l->x, &l->qkv);                            /* (B, T, 3C)   */
    Qkv a = op_qkv_rope(c, y, &l->norm[0], &l->norm[1], &l->rope, H, 0); /* (B, T, H, D) */
    y = op_attention(c, a.q, a.k, a.v, mask, NULL, 1.0f);                /* (B, T, C)    */
    return op_linear(c, y, &l->out);                                     /* (B, T, C)    */
}

/* The turns: the layer once with each backend. The first turn warms up, and compares. */
static void measure(Ctx *c, const Bench *o, Layer *l, Row *row, int n) {
    float *first = NULL, largest = 0;
    for (int r = -1; r < o->repeats; r++)
        for (int i = 0; i < n; i++) {
            double s = 0;
            row_take(c, &row[i]);
            if (c->dev->queue) layer_forward(c, l, row[i].mask); /* busy while the host goes on */
            ctx_lap(c, CLOCK_PHASE, NULL);
            Tensor *y = layer_forward(c, l, row[i].mask);
            ctx_lap(c, CLOCK_PHASE, &s);
            ctx_wait(c, ctx_mark(c));
            if (r >= 0) {
                row[i].forward_s[r] = s;
                continue;
            }
            const int64_t numbers = tensor_numel(y);
            const float *got = ctx_read_f32(c, y);
            if (!first) {
                first = malloc(sizeof *first * (size_t)numbers);
                CHECK(first, "no memory for %lld numbers", (long long)numbers);
                memcpy(first, got, sizeof *first * (size_t)numbers);
                for (int64_t j = 0; j < numbers; j++) largest = fmaxf(largest, fabsf(got[j]));
            }
            for (int64_t j = 0; j < numbers; j++)
                row[i].max_error =
                    bench_worse(row[i].max_error, fabs((double)got[j] - (double)first[j]));
            row[i].max_error /= (double)largest;
        }
    free(first);
}

static int report(const Bench *o, const Ctx *c, int batch, Row *row, int n, Err *e) {
    cJSON *all = cJSON_CreateArray();
    printf("wm-layer  B %d  T %d  C %d  H %d  %s  %s  threads %d\n", batch, T, C, H,
           dtype_name(c->dtype), c->dev->name, c->n_threads);
    printf("backend        layer ms  100 calls s  TFLOP/s  difference  mask\n");
    for (int i = 0; i < n; i++) {
        const double s = median(row[i].forward_s, o->repeats),
                     visible = mask_visible(row[i].mask, T, T, 0) * H * batch,
                     gflop = 1e-9 * (8.0 * batch * T * C * C + 4 * visible * D);
        printf("%-13s  %8.3f  %11.3f  %7.2f  %10.1e  %s\n", row_name(&row[i]), 1e3 * s, 100 * s,
               1e-3 * gflop / s, row[i].max_error, row[i].mask->text);
        cJSON *j = cJSON_CreateObject();
        cJSON_AddItemToArray(all, j);
        cJSON_AddStringToObject(j, "backend", row_name(&row[i]));
        cJSON_AddStringToObject(j, "dtype", dtype_name(c->dtype));
        cJSON_AddStringToObject(j, "case", o->name);
        cJSON_AddStringToObject(j, "mask", row[i].mask->text);
        cJSON_AddStringToObject(j, "device", c->dev->name);
        bench_number(j, "batch", batch);
        bench_number(j, "threads", c->n_threads);
        bench_number(j, "forward_ms", 1e3 * s);
        bench_number(j, "forward_gflop", gflop);
        bench_number(j, "difference", row[i].max_error);
    }
    return bench_save(o, all, e);
}

int wm_layer_bench(const Bench *o, Err *e) {
    const int batch = o->batch ? o->batch : 1;
    char expression[64];
    snprintf(expression, sizeof expression, "q >= k || q / %d == k / %d", S, S);
    Mask named, written;
    Ctx c;
    Layer l;
    if (mask_init(&named, o->mask ? o->mask : "frame-causal", o->score, "", T, S, batch, H, e) ||
        mask_init(&written, o->mask ? o->mask : expression, o->score, "", T, S, batch, H, e) ||
        bench_context(o, &c, e))
        return -1;
    mask_set_build(&written, o->cache, NULL);
    mask_set_build(&named, o->cache, NULL);
    c.recording = false;
    layer_make(&c, &l, batch);
    Row *row = calloc(MAX_BACKENDS, sizeof *row);
    CHECK(row, "no memory for the results");
    AttnArgs a = attn_shape(batch, H, T, D, &named);
    a.dtype = c.dtype;
    const int n = bench_rows(o, &c, &a, &named, &written, row, e);
    int status = n < 0 ? -1 : 0;
    if (!status) {
        measure(&c, o, &l, row, n);
        status = report(o, &c, batch, row, n, e);
    }
    free(row);
    layer_free(&c, &l);
    ctx_free(&c);
    mask_free(&named);
    mask_free(&written);
    return status;
}
