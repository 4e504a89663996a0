/* What training and inference of the hierarchical IceCube model cost: events a second at batches of
 * events as icecube_law.h has them.
 *
 *   ./bench_icecube [--batch N] [--attn NAME] [--max-pulses N] [--device NAME] [--dtype NAME]
 *                   [--threads N] [--repeats N] [--profile] [--json FILE]
 *   ./bench_icecube --batch N --counts FILE
 *
 * A training step is forward, backward, gradient norm and AdamW; inference is forward alone. Both
 * go in parts of at most max-pulses pulses, as train_icecube's do. The batch is collated once:
 * loading is bench_loader's, but its way to the GPU counts. A time ends when the device is done.
 * roof: the share of the step's matrix products in what a product of 1024 x 1024 matrices (on a
 * GPU: of 8192 x 8192) reaches in the same turns. --counts writes the batch's DOMs by event and
 * pulses by DOM for a peer that is to do the same work, and measures nothing. */
#include <cjson/cJSON.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dev/bench/icecube_law.h"
#include "dev/bench/on_device.h"
#include "llmc_like/metrics.h"
#include "llmc_like/optim.h"
#include "llmc_like/options.h"
#include "llmc_like/run.h"
#include "models/icecube.h"

enum { MAX_REPEATS = 200, SIZES = 3 };

typedef struct Bench {
    int batch, max_pulses, threads, repeats;
    bool profile;
    const char *attn, *device, *dtype, *json, *counts;
    double dropout;
} Bench;

/* Some of a batch's events. */
typedef struct Part {
    int B, M, N;
    int32_t *dom_offsets, *event_offsets;
    float *pulse, *xyz, *direction;
} Part;

static float *normals(uint32_t stream, int64_t n) {
    float *x = malloc(sizeof *x * (size_t)n);
    CHECK(x, "no memory for %lld numbers", (long long)n);
    rng_normal((RngKey){1, stream, RNG_TEST}, 0, x, n);
    return x;
}

/* Events are added until there are `events` of them or max_pulses pulses; the last one may go
 * beyond by less than an event. */
static void part_make(Part *b, int events, int max_pulses, RngStream *r) {
    *b = (Part){0};
    b->event_offsets = malloc(sizeof(int32_t) * ((size_t)events + 1));
    b->dom_offsets = malloc(sizeof(int32_t) * ((size_t)events * LAW_MOST_DOMS + 1));
    CHECK(b->event_offsets && b->dom_offsets, "no memory for %d events", events);
    b->event_offsets[0] = b->dom_offsets[0] = 0;
    while (b->B < events && b->N < max_pulses) {
        for (int n = law_doms(r); n > 0; n--) b->dom_offsets[++b->M] = b->N += law_pulses(r);
        b->event_offsets[++b->B] = b->M;
    }
    b->pulse = normals(1, 4 * b->N);
    b->xyz = normals(2, 3 * b->M);
    b->direction = normals(3, 3 * b->B);
    for (float *d = b->direction; d < b->direction + 3 * b->B; d += 3) {
        const float length = sqrtf(d[0] * d[0] + d[1] * d[1] + d[2] * d[2]);
        for (int i = 0; i < 3; i++) d[i] /= length;
    }
}

static void part_free(Part *b) {
    free(b->dom_offsets);
    free(b->event_offsets);
    free(b->pulse);
    free(b->xyz);
    free(b->direction);
}

typedef struct Run {
    Ctx c;
    Ice m;
    Mask dom_mask, event_mask;
    Optim optim;
    int events, pulses, doms, n_parts;
    Part *part;
} Run;

/* The first of one sequence of events, whose means are near the law's at 64, 256 and 1024 (97 on 50
 * to 1 %). A part has an event at least, so there are no more parts than events. */
static void batch_make(Run *r, int events, int max_pulses) {
    RngStream numbers = {.key = {2, 0, RNG_TEST}};
    r->part = calloc((size_t)events, sizeof *r->part);
    CHECK(r->part, "no memory for %d events", events);
    while (r->events < events) {
        Part *b = &r->part[r->n_parts++];
        part_make(b, events - r->events, max_pulses, &numbers);
        r->events += b->B, r->doms += b->M, r->pulses += b->N;
    }
}

static void batch_free(Run *r) {
    for (int i = 0; i < r->n_parts; i++) part_free(&r->part[i]);
    free(r->part);
}

/* {"doms": [of each event], "pulses": [of each DOM]} */
static int counts_save(const Bench *o, Err *e) {
    if (!o->batch) return err_set(e, "--counts is of one batch; say which with --batch");
    Run r = {0};
    cJSON *all = cJSON_CreateObject(), *doms = cJSON_AddArrayToObject(all, "doms"),
          *pulses = cJSON_AddArrayToObject(all, "pulses");
    batch_make(&r, o->batch, INT_MAX);
    const Part *b = &r.part[0];
    for (int i = 0; i < b->B; i++)
        cJSON_AddItemToArray(doms,
                             cJSON_CreateNumber(b->event_offsets[i + 1] - b->event_offsets[i]));
    for (int i = 0; i < b->M; i++)
        cJSON_AddItemToArray(pulses, cJSON_CreateNumber(b->dom_offsets[i + 1] - b->dom_offsets[i]));
    batch_free(&r);
    const int status = json_save(o->counts, all, e);
    cJSON_Delete(all);
    return status;
}

static Tensor *forward(Run *r, int part, uint32_t step) {
    const Part *b = &r->part[part];
    Ctx *c = &r->c;
    ctx_step_begin(c);
    mask_set_documents(&r->dom_mask, b->dom_offsets, b->M);
    mask_set_documents(&r->event_mask, b->event_offsets, b->B);
    const IceInput in = {
        .pulse = ctx_input(c, "pulse", DT_F32, 3, (int64_t[]){1, b->N, 4}, b->pulse),
        .xyz = ctx_input(c, "xyz", DT_F32, 3, (int64_t[]){1, b->M, 3}, b->xyz),
        .dom_offsets = ctx_input(c, "doms", DT_I32, 1, (int64_t[]){b->M + 1}, b->dom_offsets),
        .event_offsets = ctx_input(c, "events", DT_I32, 1, (int64_t[]){b->B + 1}, b->event_offsets),
        .step = step,
        .part = (uint32_t)part};
    return ice_forward(c, &r->m, &in);
}

static double train_step(Run *r, int step) {
    const double t0 = now_s();
    params_zero_grad(&r->m.params);
    for (int i = 0; i < r->n_parts; i++) {
        Tensor *x = forward(r, i, (uint32_t)step);
        Tensor *y = ctx_input(&r->c, "direction", DT_F32, 3, x->shape, r->part[i].direction);
        const double share = (double)r->part[i].B / r->events;
        tape_backward(&r->c, op_angle_loss(&r->c, x, y), share);
    }
    optim_step(&r->c, &r->optim, &r->m.params, 1, 1);
    return done_s(&r->c) - t0;
}

static double inference(Run *r) {
    const double t0 = now_s();
    r->c.recording = false;
    for (int i = 0; i < r->n_parts; i++) forward(r, i, 0);
    r->c.recording = true;
    return done_s(&r->c) - t0;
}

static double step_flops(const Run *r) {
    double flops = 0;
    for (int i = 0; i < OP_COUNT; i++)
        flops += r->c.profile[i].forward_flops + r->c.profile[i].backward_flops;
    return flops;
}

static double arenas_mib(const Ctx *c) {
    return (double)(c->activations.peak + c->gradients.peak + c->workspace.peak) / (1 << 20);
}

/* One batch size, all its turns; the first ones touch fresh memory. */
static void measure(const Bench *o, Run *r, cJSON *all) {
    static double train_s[MAX_REPEATS], inference_s[MAX_REPEATS], roof[MAX_REPEATS];
    for (int i = 0; i < 2; i++) train_step(r, i), inference(r);
    ctx_profile_reset(&r->c);
    train_step(r, 2);
    const double flops = step_flops(r);
    const double memory = arenas_mib(&r->c);
    ctx_profile_reset(&r->c);
    r->c.profiling |= o->profile;
    for (int i = 0; i < o->repeats; i++) {
        train_s[i] = train_step(r, 3 + i);
        if (!o->profile) inference_s[i] = inference(r), roof[i] = peak_gflops(&r->c);
    }
    const double train = median(train_s, o->repeats);
    if (o->profile) {
        const double peak = peak_gflops(&r->c);
        printf("batch %d: %.1f ms a step\n", r->events, 1e3 * train);
        profile_print(&r->c, o->repeats, peak, stdout);
        return;
    }
    const double infer = median(inference_s, o->repeats), gflops = median(roof, o->repeats);
    printf("%6d %7d %6d %9.1f %9.0f %6.1f%% %9.1f %9.0f %9.0f\n", r->events, r->pulses, r->doms,
           1e3 * train, r->events / train, 1e-7 * flops / train / gflops, 1e3 * infer,
           r->events / infer, memory);
    cJSON *j = cJSON_CreateObject();
    cJSON_AddItemToArray(all, j);
    const struct {
        const char *name;
        double value;
    } row[] = {{"batch", r->events},
               {"pulses", r->pulses},
               {"doms", r->doms},
               {"train_events_per_s", r->events / train},
               {"inference_events_per_s", r->events / infer},
               {"train_ms", 1e3 * train},
               {"inference_ms", 1e3 * infer},
               {"step_gflop", 1e-9 * flops},
               {"roof_gflops", gflops},
               {"arenas_mib", memory},
               {"threads", r->c.n_threads}};
    for (size_t i = 0; i < sizeof row / sizeof *row; i++)
        cJSON_AddNumberToObject(j, row[i].name, row[i].value);
    cJSON_AddStringToObject(j, "attn", r->c.attn->name);
    cJSON_AddStringToObject(j, "device", r->c.dev->name);
    cJSON_AddStringToObject(j, "dtype", dtype_name(r->c.dtype));
}

/* Device, attention and model for r's batch; dry: they count and compute nothing. */
static int run_open(Run *r, const Bench *o, bool dry, Err *e) {
    IceConfig g = ice_config_default();
    g.dropout = o->dropout;
    r->optim = optim_default();
    if (mask_init_documents(&r->dom_mask, "document", "", "", g.n_heads, e) ||
        mask_init_documents(&r->event_mask, "document", "", "", g.n_heads, e) ||
        ctx_init(&r->c, o->device, o->threads, 1, dry, e))
        return -1;
    const char *best = r->c.dev->has_bf16 ? "bf16" : "float32";
    if (ctx_set_dtype(&r->c, strcmp(o->dtype, "auto") ? o->dtype : best, e)) return -1;
    const Part *b = &r->part[0];
    mask_set_documents(&r->dom_mask, b->dom_offsets, b->M);
    const AttnArgs shape = attn_shape(1, g.n_heads, b->N, g.d_model / g.n_heads, &r->dom_mask);
    if (attn_choose(&r->c, o->attn, &shape, e)) return -1;
    return ice_init(&r->m, &g, &r->dom_mask, &r->event_mask, &r->c, true, e);
}

static void run_close(Run *r) {
    ice_free(&r->m);
    ctx_free(&r->c);
    mask_free(&r->dom_mask);
    mask_free(&r->event_mask);
}

/* -1 and a sentence where a step, made dry, counts more memory than there is. */
static int step_fits(Run *r, Err *e) {
    train_step(r, 0);
    const ParamTable *p = &r->m.params;
    const double model = (double)(p->values.peak + p->grads.peak + p->state.peak) / (1 << 20);
    const double MiB = model + arenas_mib(&r->c), left = r->c.dev->memory->left() / (1 << 20);
    if (left < 0 || MiB <= left) return 0;
    return err_set(e,
                   "a step of %d events needs %.0f MiB and the machine has %.0f MiB left; choose a "
                   "smaller --batch, or --max-pulses for smaller parts",
                   r->events, MiB, left);
}

/* A model of its own for each size, so that memory is a size's own. */
static int bench_size(const Bench *o, int events, cJSON *all, Err *e) {
    Run r = {0};
    batch_make(&r, events, o->max_pulses ? o->max_pulses : INT_MAX);
    int status = run_open(&r, o, true, e) || step_fits(&r, e) ? -1 : 0;
    run_close(&r);
    if (!status) {
        status = run_open(&r, o, false, e);
        if (!status) measure(o, &r, all);
        run_close(&r);
    }
    batch_free(&r);
    return status;
}

static int bench(const Bench *o, Err *e) {
    if (o->counts) return counts_save(o, e);
    static const int sizes[SIZES] = {64, 256, 1024};
    cJSON *all = cJSON_CreateArray();
    int status = 0;
    if (!o->profile)
        printf("%6s %7s %6s %9s %9s %7s %9s %9s %9s\n", "events", "pulses", "DOMs", "train ms",
               "events/s", "roof", "infer ms", "events/s", "MiB");
    if (o->batch) status = bench_size(o, o->batch, all, e);
    for (int i = 0; !status && !o->batch && i < SIZES; i++)
        status = bench_size(o, sizes[i], all, e);
    if (!status && o->json) status = json_save(o->json, all, e);
    cJSON_Delete(all);
    return status;
}

int main(int argc, char **argv) {
    if (!getenv("OMP_WAIT_POLICY") && !getenv("GOMP_SPINCOUNT")) threads_wait_asleep(argv);
    Bench o;
    const Option table[] = {
        {"batch", OPT_INT, &o.batch, "0", 0, 1 << 16, "events; 0: 64, 256 and 1024", NULL},
        {"max-pulses", OPT_INT, &o.max_pulses, "8192", 0, INT_MAX, "pulses a part; 0: no limit",
         NULL},
        {"attn", OPT_STRING, &o.attn, "sdpa", 0, 0, "backend, or auto", NULL},
        {"dropout", OPT_DOUBLE, &o.dropout, "0.1", 0, 0.99, "of the model", NULL},
        {"threads", OPT_INT, &o.threads, "0", 0, 1024, "threads; 0: one a processor", NULL},
        {"repeats", OPT_INT, &o.repeats, "7", 1, MAX_REPEATS, "turns; medians count", NULL},
        {"device", OPT_STRING, &o.device, "cpu", 0, 0, "cpu, one of its builds by name, or cuda",
         NULL},
        {"dtype", OPT_STRING, &o.dtype, "auto", 0, 0, "auto: bf16 with cuda, else float32",
         "auto|float32|bf16"},
        {"profile", OPT_FLAG, &o.profile, "off", 0, 0, "time by op of training, no inference",
         NULL},
        {"json", OPT_STRING, &o.json, NULL, 0, 0, "file for the results", NULL},
        {"counts", OPT_STRING, &o.counts, NULL, 0, 0,
         "file for the batch's DOMs by event and pulses by DOM; measures nothing", NULL},
    };
    Err e = {""};
    Options options;
    options_init(&options, table, sizeof table / sizeof *table, false);
    int status = options_parse(&options, argc, argv, &e);
    if (!status && options.help)
        options_help(&options, "bench_icecube [options]", stdout);
    else if (!status)
        status = bench(&o, &e);
    options_free(&options);
    if (status) fprintf(stderr, "bench_icecube: %s\n", e.text);
    return status ? 1 : 0;
}
