/* What each attention backend costs at a model's shape, in turns in one run, beside the matrix
 * product's roof measured in the same turns.
 *
 *   ./bench_attention [--case wm|tiny|toy-wm|sample|icecube|wm-layer] [--batch N] [--attn NAME]
 *                     [--mask M] [--score S] [--device NAME] [--dtype NAME] [--threads N]
 *                     [--repeats N] [--portable] [--cache FOLDER] [--json FILE]
 *
 * The flex backends get the mask as an expression where none is given, since that is what they are
 * for; the others get its name. Work is counted by visible pairs: 4 D flops a pair forward, 10 D
 * backward. The share of the roof is that work over the time, divided by the rate of a product of
 * 1024 x 1024 matrices (on a GPU: of 8192 x 8192 in the same dtype). max_error: the largest
 * difference of out, dq, dk and dv from the plain loops in float64, on the first head, over the
 * largest entry of each.
 *
 * prepare ms: the host's, before the first call: compiling the expressions, or reading what
 * --cache has of them. plan us, on a GPU: what the first call with a mask costs more than the next,
 * the median over masks of one expression whose array differs. --portable adds sdpa by the kernels
 * that every GPU runs, where there are faster ones for this one.
 *
 * --case icecube is a whole layer, forward, on batches of documents: see attention_layer.c;
 * --case wm-layer one of the world model: attention_wm_layer.c. */
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dev/bench/attention_bench.h"
#include "dev/bench/on_device.h"
#include "llmc_like/fsio.h"
#include "llmc_like/options.h"
#include "llmc_like/philox.h"
#include "llmc_like/run.h"

enum { ROOF_CALLS = 4 };

typedef struct Case {
    const char *name;
    int batch, heads, queries, keys, head_size, frame;
} Case;

static const Case cases[] = {{"wm", 1, 6, 1950, 1950, 64, 65},
                             {"tiny", 8, 4, 650, 650, 32, 65},
                             {"toy-wm", 1, 20, 1950, 1950, 16, 65},
                             {"sample", 1, 6, 65, 1950, 64, 65}};

/* What a call reads and writes, in the device's memory. */
enum { Q, K, V, DOUT, OUT, DQ, DK, DV, LSE, N_TENSORS };

typedef struct Tensors {
    Tensor t[N_TENSORS];
} Tensors;

float *bench_normals(uint32_t stream, size_t n, int D, bool unit) {
    float *x = aligned_alloc(64, (n * sizeof *x + 63) / 64 * 64);
    CHECK(x, "no memory for %zu numbers", n);
    rng_normal((RngKey){1, stream, RNG_TEST}, 0, x, (int64_t)n);
    for (size_t i = 0; unit && i < n; i += (size_t)D) {
        double sum = 0;
        for (int d = 0; d < D; d++) sum += (double)x[i + (size_t)d] * x[i + (size_t)d];
        const float f = (float)(1 / sqrt(sum / D));
        for (int d = 0; d < D; d++) x[i + (size_t)d] *= f;
    }
    return x;
}

static AttnArgs arguments(Ctx *c, const Case *s, Tensors *all) {
    const int64_t row = (int64_t)s->heads * s->head_size;
    Tensor *t = all->t;
    for (int i = 0; i < N_TENSORS; i++) {
        const bool of_keys = i == K || i == V || i == DK || i == DV;
        t[i] =
            (Tensor){.dtype = c->dtype,
                     .ndim = 4,
                     .shape = {s->batch, of_keys ? s->keys : s->queries, s->heads, s->head_size}};
        if (i == LSE)
            t[i] = (Tensor){.dtype = DT_F32, .ndim = 3, .shape = {s->batch, s->heads, s->queries}};
        float *x = bench_normals((uint32_t)i, (size_t)tensor_numel(&t[i]), s->head_size, i <= K);
        device_tensor(c, &t[i], x);
        free(x);
    }
    const AttnStride queries = {s->queries * row, row, s->head_size},
                     keys = {s->keys * row, row, s->head_size};
    return (AttnArgs){.B = s->batch,
                      .H = s->heads,
                      .Tq = s->queries,
                      .Tk = s->keys,
                      .D = s->head_size,
                      .dtype = c->dtype,
                      .scale = 1,
                      .offset = s->keys - s->queries,
                      .q = t[Q].data,
                      .k = t[K].data,
                      .v = t[V].data,
                      .qs = queries,
                      .ks = keys,
                      .vs = keys,
                      .os = queries,
                      .out = t[OUT].data,
                      .lse = t[LSE].data,
                      .dout = t[DOUT].data,
                      .dq = t[DQ].data,
                      .dk = t[DK].data,
                      .dv = t[DV].data};
}

/* The first head of the first sample, (T, D) in float64, from or behind `to`; where it ends. */
static double *read_head(Ctx *c, const Tensor *t, double *to) {
    const int64_t T = t->shape[1], D = t->shape[3], row = t->shape[2] * D;
    Tensor sample = *t;
    sample.shape[0] = 1;
    const float *x = ctx_read_f32(c, &sample);
    for (int64_t i = 0; i < T * D; i++) to[i] = (double)x[i / D * row + i % D];
    return to + T * D;
}

/* Its out, dq, dk and dv by the plain loops in float64, behind each other; the caller frees them.
 */
static double *first_head(Ctx *c, const AttnArgs *a, const Tensors *t) {
    const size_t nq = (size_t)a->Tq * (size_t)a->D, nk = (size_t)a->Tk * (size_t)a->D;
    const size_t outputs = 2 * nq + 2 * nk;
    double *x = malloc(sizeof *x * (2 * outputs + (size_t)a->Tq + (size_t)a->Tk));
    CHECK(x, "no memory for the reference");
    AttnArgs one = *a;
    double *q = x + outputs, *k = read_head(c, &t->t[Q], q), *v = read_head(c, &t->t[K], k),
           *dout = read_head(c, &t->t[V], v), *lse = read_head(c, &t->t[DOUT], dout);
    one.B = one.H = 1;
    one.dtype = DT_F64;
    one.qs = one.ks = one.vs = one.os = (AttnStride){0, a->D, 0};
    one.q = q, one.dout = dout, one.k = k, one.v = v;
    one.out = x, one.dq = x + nq, one.dk = x + 2 * nq, one.dv = x + 2 * nq + nk;
    one.lse = lse;
    one.workspace = lse + a->Tq;
    plain_attn(&one, false);
    plain_attn(&one, true);
    return x;
}

static double max_error(Ctx *c, const Tensors *t, const double *expected) {
    static const int results[] = {OUT, DQ, DK, DV};
    double error = 0;
    for (size_t r = 0; r < sizeof results / sizeof *results; r++) {
        const Tensor *y = &t->t[results[r]];
        const int64_t n = y->shape[1] * y->shape[3];
        double worst = 0, largest = 0, *got = malloc(sizeof *got * (size_t)n);
        CHECK(got, "no memory for %lld numbers", (long long)n);
        read_head(c, y, got);
        for (int64_t i = 0; i < n; i++) {
            worst = bench_worse(worst, fabs(got[i] - expected[i]));
            largest = fmax(largest, fabs(expected[i]));
        }
        error = bench_worse(error, worst / largest);
        expected += n;
        free(got);
    }
    return error;
}

double bench_roof(Ctx *c, float *gemm) {
    if (c->dev->peak) return c->dev->peak(c);
    double best = INFINITY;
    float *a = gemm, *b = a + ROOF_N * ROOF_N, *product = b + ROOF_N * ROOF_N;
    for (int i = 0; i < ROOF_CALLS; i++) {
        const double t0 = now_s();
        c->dev->gemm(c, false, false, ROOF_N, ROOF_N, ROOF_N, 1, a, ROOF_N, b, ROOF_N, 0, product,
                     ROOF_N);
        best = fmin(best, now_s() - t0);
    }
    return 2e-9 * ROOF_N * ROOF_N * ROOF_N / best;
}

/* What the first forward with a mask costs more than the second: its plan. Each mask has the same
 * expression, or name, and other frames; the first ones warm up, until the context throws out old
 * ones. On a GPU, whose clock sees what the host hides; elsewhere 0 is left. */
static int measure_plan(const Bench *o, Ctx *c, AttnArgs *a, const Case *s, Row *row, Err *e) {
    enum { WARM = 9, MASKS = 21 };
    double extra[MASKS];
    const bool flex = !strncmp(row->backend->name, "flex", 4);
    const Mask *usual = row->mask;
    if (!c->dev->queue || o->mask || row->portable) return 0;
    row_take(c, row);
    for (int i = 0; i < MASKS; i++) {
        double first = 0, again = 0;
        Mask m;
        if (mask_init(&m, flex ? "frame[q] >= frame[k]" : "frame-causal", o->score, "", s->keys,
                      s->frame + 1 + i, s->batch, s->heads, e))
            return -1;
        mask_set_build(&m, o->cache, NULL);
        a->mask = &m;
        if (row->backend->prepare(c, a, e)) return -1;
        a->mask = usual;
        attn_run(c, a, false);
        attn_run(c, a, false);
        a->mask = &m;
        ctx_lap(c, CLOCK_PHASE, NULL);
        attn_run(c, a, false);
        ctx_lap(c, CLOCK_PHASE, &first);
        attn_run(c, a, false);
        ctx_lap(c, CLOCK_PHASE, &again);
        ctx_wait(c, ctx_mark(c));
        extra[i] = first - again;
        mask_free(&m);
    }
    row->plan_s = median(extra + WARM, MASKS - WARM);
    return 0;
}

/* The turns: each backend once, forward and backward, then the roof, whose GFLOP/s are returned.
 * The first turn warms up. */
static double measure(Ctx *c, AttnArgs *a, Row *row, int n, int repeats) {
    static double roof[MAX_REPEATS];
    float *gemm = bench_normals(9, 3 * ROOF_N * ROOF_N, 1, false);
    for (int r = -1; r < repeats; r++) {
        for (int i = 0; i < n; i++) {
            double forward_s = 0, backward_s = 0;
            row_take(c, &row[i]);
            a->mask = row[i].mask;
            if (c->dev->queue) attn_run(c, a, false); /* busy while the host starts the rest */
            ctx_lap(c, CLOCK_PHASE, NULL);
            attn_run(c, a, false);
            ctx_lap(c, CLOCK_PHASE, &forward_s);
            attn_run(c, a, true);
            ctx_lap(c, CLOCK_PHASE, &backward_s);
            ctx_wait(c, ctx_mark(c));
            if (r < 0) continue;
            row[i].forward_s[r] = forward_s;
            row[i].backward_s[r] = backward_s;
        }
        const double gflops = bench_roof(c, gemm);
        if (r >= 0) roof[r] = gflops;
    }
    free(gemm);
    return median(roof, repeats);
}

void bench_number(cJSON *o, const char *name, double x) { cJSON_AddNumberToObject(o, name, x); }

static int report(const Bench *o, const Ctx *c, const AttnArgs *a, Row *row, int n, double rate,
                  Err *e) {
    cJSON *all = cJSON_CreateArray();
    printf("%s  B %d  H %d  Tq %d  Tk %d  D %d  %s  %s  threads %d  roof %.0f GFLOP/s\n", o->name,
           a->B, a->H, a->Tq, a->Tk, a->D, dtype_name(a->dtype), c->dev->name, c->n_threads, rate);
    printf(
        "backend        forward ms  TFLOP/s  of roof  backward ms  TFLOP/s  of roof  sum ms  "
        "max error  prepare ms  plan us  mask\n");
    for (int i = 0; i < n; i++) {
        const double visible = mask_visible(row[i].mask, a->Tq, a->Tk, a->offset) * a->B * a->H;
        const double forward = median(row[i].forward_s, o->repeats),
                     backward = median(row[i].backward_s, o->repeats),
                     forward_gflop = 4e-9 * visible * a->D, backward_gflop = 2.5 * forward_gflop;
        printf(
            "%-13s  %10.3f  %7.2f  %6.1f%%  %11.3f  %7.2f  %6.1f%%  %6.2f  %9.1e  %10.1f  %7.1f  "
            "%s\n",
            row_name(&row[i]), 1e3 * forward, 1e-3 * forward_gflop / forward,
            100 * forward_gflop / forward / rate, 1e3 * backward, 1e-3 * backward_gflop / backward,
            100 * backward_gflop / backward / rate, 1e3 * (forward + backward), row[i].max_error,
            1e3 * row[i].prepare_s, 1e6 * row[i].plan_s, row[i].mask->text);
        cJSON *j = cJSON_CreateObject();
        cJSON_AddItemToArray(all, j);
        cJSON_AddStringToObject(j, "backend", row_name(&row[i]));
        cJSON_AddStringToObject(j, "dtype", dtype_name(a->dtype));
        bench_number(j, "forward_ms", 1e3 * forward);
        bench_number(j, "backward_ms", 1e3 * backward);
        bench_number(j, "max_error", row[i].max_error);
        bench_number(j, "prepare_ms", 1e3 * row[i].prepare_s);
        bench_number(j, "plan_us", 1e6 * row[i].plan_s);
        cJSON_AddStringToObject(j, "case", o->name);
        cJSON_AddStringToObject(j, "mask", row[i].mask->text);
        cJSON_AddStringToObject(j, "device", c->dev->name);
        bench_number(j, "threads", c->n_threads);
        bench_number(j, "batch", a->B);
        bench_number(j, "forward_gflop", forward_gflop);
        bench_number(j, "backward_gflop", backward_gflop);
        bench_number(j, "roof_gflops", rate);
    }
    return bench_save(o, all, e);
}

int bench_save(const Bench *o, cJSON *all, Err *e) {
    char *text = cJSON_Print(all);
    cJSON_Delete(all);
    CHECK(text, "no memory for the JSON text");
    const int status = o->json ? atomic_save(o->json, text, strlen(text), e) : 0;
    free(text);
    return status;
}

int bench_rows(const Bench *o, Ctx *c, AttnArgs *a, const Mask *named, const Mask *written,
               Row *row, Err *e) {
    int n = 0;
    if (strcmp(o->attn, "all") && !attn_find(o->attn))
        return attn_choose(c, o->attn, a, e); /* which says the names */
    for (int i = 0; attn_backends[i] && n < MAX_BACKENDS; i++) {
        const AttnBackend *b = attn_backends[i];
        if (strcmp(o->attn, "all") && strcmp(o->attn, b->name)) continue;
        a->mask = !strncmp(b->name, "flex", 4) ? written : named;
        const char *reason = b->supports(c, a);
        if (reason && strcmp(o->attn, "all")) return attn_choose(c, b->name, a, e);
        if (reason) {
            printf("%s is left out: %s\n", b->name, reason);
            continue;
        }
        const double t0 = now_s();
        if (b->prepare(c, a, e)) return -1;
        row[n++] = (Row){.backend = b, .mask = a->mask, .prepare_s = now_s() - t0};
        if (o->portable && !strcmp(b->name, "sdpa") && n < MAX_BACKENDS)
            row[n++] = (Row){.backend = b, .mask = a->mask, .portable = true};
    }
    return n;
}

int bench_context(const Bench *o, Ctx *c, Err *e) {
    if (ctx_init(c, o->device, o->threads, 1, false, e)) return -1;
    if (o->portable && !c->dev->queue)
        return err_set(e,
                       "--portable: a CPU's kernels are chosen as a device: --device cpu-portable");
    if (!strcmp(o->dtype, "auto"))
        return ctx_set_dtype(c, c->dev->has_bf16 ? "bf16" : "float32", e);
    return ctx_set_dtype(c, o->dtype, e);
}

static int bench(const Bench *o, Err *e) {
    if (!strcmp(o->name, "icecube")) return layer_bench(o, e);
    if (!strcmp(o->name, "wm-layer")) return wm_layer_bench(o, e);
    Case s = cases[0];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        if (!strcmp(o->name, cases[i].name)) s = cases[i];
    if (o->batch) s.batch = o->batch;
    char expression[64];
    snprintf(expression, sizeof expression, "q >= k || q / %d == k / %d", s.frame, s.frame);
    Mask named, written;
    Ctx c;
    if (mask_init(&named, o->mask ? o->mask : "frame-causal", o->score, "", s.keys, s.frame,
                  s.batch, s.heads, e) ||
        mask_init(&written, o->mask ? o->mask : expression, o->score, "", s.keys, s.frame, s.batch,
                  s.heads, e) ||
        bench_context(o, &c, e))
        return -1;
    mask_set_build(&written, o->cache, NULL);
    mask_set_build(&named, o->cache, NULL);
    Tensors t;
    AttnArgs a = arguments(&c, &s, &t);
    Row *row = calloc(MAX_BACKENDS, sizeof *row);
    CHECK(row, "no memory for the results");
    a.mask = &named;
    int n = bench_rows(o, &c, &a, &named, &written, row, e), status = n < 0 ? -1 : 0;
    for (int i = 0; i < n && !status; i++) status = measure_plan(o, &c, &a, &s, &row[i], e);
    if (!status) {
        const double rate = measure(&c, &a, row, n, o->repeats);
        a.mask = &named;
        double *expected = first_head(&c, &a, &t);
        for (int i = 0; i < n; i++) { /* once more each, since all wrote to the same tensors */
            c.attn = row[i].backend;
            a.mask = row[i].mask;
            attn_run(&c, &a, false);
            attn_run(&c, &a, true);
            row[i].max_error = max_error(&c, &t, expected);
        }
        free(expected);
        status = report(o, &c, &a, row, n, rate, e);
    }
    free(row);
    for (int i = 0; i < N_TENSORS; i++) device_give(&c, &t.t[i]);
    ctx_free(&c);
    mask_free(&named);
    mask_free(&written);
    return status;
}

int main(int argc, char **argv) {
    if (!getenv("OMP_WAIT_POLICY") && !getenv("GOMP_SPINCOUNT")) threads_wait_asleep(argv);
    Bench o = {0};
    const Option table[] = {
        {"case", OPT_STRING, &o.name, "wm", 0, 0, "the shape",
         "wm|tiny|toy-wm|sample|icecube|wm-layer"},
        {"batch", OPT_INT, &o.batch, "0", 0, 4096,
         "batch; 0: the case's own (icecube: 4, 8 and 16)", NULL},
        {"attn", OPT_STRING, &o.attn, "all", 0, 0, "one backend, or all", NULL},
        {"mask", OPT_STRING, &o.mask, NULL, 0, 0,
         "mask by name or expression; without it frame-causal (icecube: document), which flex gets "
         "as "
         "an expression",
         NULL},
        {"score", OPT_STRING, &o.score, "", 0, 0, "score expression", NULL},
        {"device", OPT_STRING, &o.device, "cpu", 0, 0, "cpu, one of its builds by name, or cuda",
         NULL},
        {"dtype", OPT_STRING, &o.dtype, "auto", 0, 0, "auto: bf16 with cuda, else float32",
         "auto|float32|bf16"},
        {"threads", OPT_INT, &o.threads, "0", 0, 1024, "threads; 0: one a processor", NULL},
        {"portable", OPT_FLAG, &o.portable, "off", 0, 0,
         "sdpa also by the kernels that every GPU runs", NULL},
        {"cache", OPT_STRING, &o.cache, NULL, 0, 0, "folder for compiled expressions", NULL},
        {"repeats", OPT_INT, &o.repeats, "15", 1, MAX_REPEATS, "turns; medians count", NULL},
        {"json", OPT_STRING, &o.json, NULL, 0, 0, "file for the results", NULL},
    };
    Err e = {""};
    Options options;
    options_init(&options, table, (int)(sizeof table / sizeof table[0]), false);
    int status = options_parse(&options, argc, argv, &e);
    if (!status && options.help)
        options_help(&options, "bench_attention [options]", stdout);
    else if (!status)
        status = bench(&o, &e);
    options_free(&options);
    if (status) fprintf(stderr, "bench_attention: %s\n", e.text);
    return status ? 1 : 0;
}
