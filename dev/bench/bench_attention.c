/* What each attention backend costs at a model's shape, in turns in one run, beside the matrix
 * product's roof measured in the same turns.
 *
 *   ./bench_attention [--case wm|tiny|toy-wm|sample|icecube] [--batch N] [--attn NAME]
 *                     [--mask M] [--score S] [--threads N] [--repeats N] [--json FILE]
 *
 * The flex backends get the mask as an expression where none is given, since that is what they are
 * for; the others get its name. Work is counted by visible pairs: 4 D flops a pair forward, 10 D
 * backward. The share of the roof is that work over the time, divided by the rate of a product of
 * 1024 x 1024 matrices. max_error: the largest difference of out, dq, dk and dv from the plain
 * loops in float64, on the first head, over the largest entry of each.
 *
 * --case icecube is a whole layer, forward, on batches of documents: see attention_layer.c. */
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dev/bench/attention_bench.h"
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

typedef struct Tensors {
    float *q, *k, *v, *dout, *out, *dq, *dk, *dv, *lse, *gemm;
    size_t queries, keys;
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

static AttnArgs arguments(const Case *s, Tensors *t) {
    const int64_t row = (int64_t)s->heads * s->head_size;
    t->queries = (size_t)s->batch * (size_t)s->queries * (size_t)row;
    t->keys = (size_t)s->batch * (size_t)s->keys * (size_t)row;
    t->q = bench_normals(0, t->queries, s->head_size, true);
    t->k = bench_normals(1, t->keys, s->head_size, true);
    t->v = bench_normals(2, t->keys, s->head_size, false);
    t->dout = bench_normals(3, t->queries, s->head_size, false);
    t->out = bench_normals(4, t->queries, s->head_size, false);
    t->dq = bench_normals(5, t->queries, s->head_size, false);
    t->dk = bench_normals(6, t->keys, s->head_size, false);
    t->dv = bench_normals(7, t->keys, s->head_size, false);
    t->lse = bench_normals(8, (size_t)s->batch * (size_t)s->heads * (size_t)s->queries, 1, false);
    t->gemm = bench_normals(9, 3 * ROOF_N * ROOF_N, 1, false);
    const AttnStride queries = {s->queries * row, row, s->head_size},
                     keys = {s->keys * row, row, s->head_size};
    return (AttnArgs){.B = s->batch,
                      .H = s->heads,
                      .Tq = s->queries,
                      .Tk = s->keys,
                      .D = s->head_size,
                      .dtype = DT_F32,
                      .scale = 1,
                      .offset = s->keys - s->queries,
                      .q = t->q,
                      .k = t->k,
                      .v = t->v,
                      .qs = queries,
                      .ks = keys,
                      .vs = keys,
                      .os = queries,
                      .out = t->out,
                      .lse = t->lse,
                      .dout = t->dout,
                      .dq = t->dq,
                      .dk = t->dk,
                      .dv = t->dv};
}

static void tensors_free(Tensors *t) {
    float *all[] = {t->q, t->k, t->v, t->dout, t->out, t->dq, t->dk, t->dv, t->lse, t->gemm};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
}

/* The first head in float64 by the plain loops: out, dq, dk, dv behind each other, (T, D) each. */
static double *first_head(const AttnArgs *a) {
    const size_t nq = (size_t)a->Tq * (size_t)a->D, nk = (size_t)a->Tk * (size_t)a->D;
    const size_t inputs = 2 * nq + 2 * nk, outputs = inputs;
    double *x = malloc(sizeof *x * (inputs + outputs + (size_t)a->Tq + (size_t)a->Tk));
    CHECK(x, "no memory for the reference");
    AttnArgs one = *a;
    double *q = x + outputs, *dout = q + nq, *k = dout + nq, *v = k + nk;
    for (size_t i = 0; i < nq; i++) {
        const size_t at = i / (size_t)a->D * (size_t)a->qs.t + i % (size_t)a->D;
        q[i] = (double)((const float *)a->q)[at];
        dout[i] = (double)((const float *)a->dout)[at];
    }
    for (size_t i = 0; i < nk; i++) {
        const size_t at = i / (size_t)a->D * (size_t)a->ks.t + i % (size_t)a->D;
        k[i] = (double)((const float *)a->k)[at];
        v[i] = (double)((const float *)a->v)[at];
    }
    one.B = one.H = 1;
    one.dtype = DT_F64;
    one.qs = one.ks = one.vs = one.os = (AttnStride){0, a->D, 0};
    one.q = q, one.dout = dout, one.k = k, one.v = v;
    one.out = x, one.dq = x + nq, one.dk = x + 2 * nq, one.dv = x + 2 * nq + nk;
    one.lse = x + outputs + inputs;
    one.workspace = x + outputs + inputs + a->Tq;
    plain_attn(&one, false);
    plain_attn(&one, true);
    return x;
}

static double error_of(const float *got, int64_t stride, const double *expected, int T, int D) {
    double worst = 0, largest = 0;
    for (int t = 0; t < T; t++)
        for (int d = 0; d < D; d++) {
            const double e = expected[(size_t)t * (size_t)D + (size_t)d];
            worst = bench_worse(worst, fabs((double)got[t * stride + d] - e));
            largest = fmax(largest, fabs(e));
        }
    return worst / largest;
}

static double max_error(const AttnArgs *a, const double *x) {
    const size_t nq = (size_t)a->Tq * (size_t)a->D, nk = (size_t)a->Tk * (size_t)a->D;
    double e = error_of(a->out, a->os.t, x, a->Tq, a->D);
    e = bench_worse(e, error_of(a->dq, a->qs.t, x + nq, a->Tq, a->D));
    e = bench_worse(e, error_of(a->dk, a->ks.t, x + 2 * nq, a->Tk, a->D));
    return bench_worse(e, error_of(a->dv, a->vs.t, x + 2 * nq + nk, a->Tk, a->D));
}

double bench_roof(Ctx *c, float *gemm) {
    double best = INFINITY;
    float *a = gemm, *b = a + ROOF_N * ROOF_N, *product = b + ROOF_N * ROOF_N;
    for (int i = 0; i < ROOF_CALLS; i++) {
        const double t0 = now_s();
        c->dev->gemm(c, false, false, ROOF_N, ROOF_N, ROOF_N, 1, a, ROOF_N, b, ROOF_N, 0, product,
                     ROOF_N);
        best = fmin(best, now_s() - t0);
    }
    return best;
}

/* The turns: each backend once, forward and backward, then the roof. The first turn warms up. */
static double measure(Ctx *c, AttnArgs *a, const Tensors *t, Row *row, int n, int repeats) {
    static double roof_s[MAX_REPEATS];
    for (int r = -1; r < repeats; r++) {
        for (int i = 0; i < n; i++) {
            c->attn = row[i].backend;
            a->mask = row[i].mask;
            const double t0 = now_s();
            attn_run(c, a, false);
            const double t1 = now_s();
            attn_run(c, a, true);
            if (r < 0) continue;
            row[i].forward_s[r] = t1 - t0;
            row[i].backward_s[r] = now_s() - t1;
        }
        const double s = bench_roof(c, t->gemm);
        if (r >= 0) roof_s[r] = s;
    }
    return 2.0 * ROOF_N * ROOF_N * ROOF_N / median(roof_s, repeats);
}

void bench_number(cJSON *o, const char *name, double x) { cJSON_AddNumberToObject(o, name, x); }

static int report(const Bench *o, const Ctx *c, const AttnArgs *a, Row *row, int n, double rate,
                  Err *e) {
    cJSON *all = cJSON_CreateArray();
    printf("%s  B %d  H %d  Tq %d  Tk %d  D %d  %s  threads %d  roof %.0f GFLOP/s\n", o->name, a->B,
           a->H, a->Tq, a->Tk, a->D, c->dev->name, c->n_threads, 1e-9 * rate);
    printf("backend     forward ms  of roof  backward ms  of roof  sum ms  max error  mask\n");
    for (int i = 0; i < n; i++) {
        const double visible = mask_visible(row[i].mask, a->Tq, a->Tk, a->offset) * a->B * a->H;
        const double forward = median(row[i].forward_s, o->repeats),
                     backward = median(row[i].backward_s, o->repeats),
                     forward_flops = 4.0 * visible * a->D, backward_flops = 2.5 * forward_flops;
        printf("%-10s  %10.2f  %6.1f%%  %11.2f  %6.1f%%  %6.2f  %9.1e  %s\n", row[i].backend->name,
               1e3 * forward, 100 * forward_flops / forward / rate, 1e3 * backward,
               100 * backward_flops / backward / rate, 1e3 * (forward + backward), row[i].max_error,
               row[i].mask->text);
        cJSON *j = cJSON_CreateObject();
        cJSON_AddItemToArray(all, j);
        cJSON_AddStringToObject(j, "backend", row[i].backend->name);
        cJSON_AddStringToObject(j, "dtype", dtype_name(a->dtype));
        bench_number(j, "forward_ms", 1e3 * forward);
        bench_number(j, "backward_ms", 1e3 * backward);
        bench_number(j, "max_error", row[i].max_error);
        cJSON_AddStringToObject(j, "case", o->name);
        cJSON_AddStringToObject(j, "mask", row[i].mask->text);
        cJSON_AddStringToObject(j, "device", c->dev->name);
        bench_number(j, "threads", c->n_threads);
        bench_number(j, "batch", a->B);
        bench_number(j, "forward_gflop", 1e-9 * forward_flops);
        bench_number(j, "backward_gflop", 1e-9 * backward_flops);
        bench_number(j, "roof_gflops", 1e-9 * rate);
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
        if (reason)
            printf("%s is left out: %s\n", b->name, reason);
        else if (b->prepare(c, a, e))
            return -1;
        else
            row[n].backend = b, row[n++].mask = a->mask;
    }
    return n;
}

static int bench(const Bench *o, Err *e) {
    if (!strcmp(o->name, "icecube")) return layer_bench(o, e);
    Case s = cases[0];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        if (!strcmp(o->name, cases[i].name)) s = cases[i];
    if (o->batch) s.batch = o->batch;
    char expression[64];
    snprintf(expression, sizeof expression, "q >= k || q / %d == k / %d", s.frame, s.frame);
    Mask named, written;
    Ctx c;
    if (mask_init(&named, o->mask ? o->mask : "frame-causal", o->score, s.keys, s.frame, s.batch,
                  s.heads, e) ||
        mask_init(&written, o->mask ? o->mask : expression, o->score, s.keys, s.frame, s.batch,
                  s.heads, e) ||
        ctx_init(&c, o->device, o->threads, 1, false, e))
        return -1;
    Tensors t;
    AttnArgs a = arguments(&s, &t);
    Row *row = calloc(MAX_BACKENDS, sizeof *row);
    CHECK(row, "no memory for the results");
    a.mask = &named;
    int n = bench_rows(o, &c, &a, &named, &written, row, e), status = n < 0 ? -1 : 0;
    if (!status) {
        const double rate = measure(&c, &a, &t, row, n, o->repeats);
        a.mask = &named;
        double *expected = first_head(&a);
        for (int i = 0; i < n; i++) { /* once more each, since all wrote to the same tensors */
            c.attn = row[i].backend;
            a.mask = row[i].mask;
            attn_run(&c, &a, false);
            attn_run(&c, &a, true);
            row[i].max_error = max_error(&a, expected);
        }
        free(expected);
        status = report(o, &c, &a, row, n, rate, e);
    }
    free(row);
    tensors_free(&t);
    ctx_free(&c);
    mask_free(&named);
    mask_free(&written);
    return status;
}

int main(int argc, char **argv) {
    if (!getenv("OMP_WAIT_POLICY") && !getenv("GOMP_SPINCOUNT")) threads_wait_asleep(argv);
    Bench o = {0};
    const Option table[] = {
        {"case", OPT_STRING, &o.name, "wm", 0, 0, "the shape", "wm|tiny|toy-wm|sample|icecube"},
        {"batch", OPT_INT, &o.batch, "0", 0, 4096,
         "batch; 0: the case's own (icecube: 4, 8 and 16)", NULL},
        {"attn", OPT_STRING, &o.attn, "all", 0, 0, "one backend, or all", NULL},
        {"mask", OPT_STRING, &o.mask, NULL, 0, 0,
         "mask by name or expression; without it frame-causal (icecube: document), which flex gets "
         "as "
         "an expression",
         NULL},
        {"score", OPT_STRING, &o.score, "", 0, 0, "score expression", NULL},
        {"device", OPT_STRING, &o.device, "cpu", 0, 0, "cpu, or one of its builds by name", NULL},
        {"threads", OPT_INT, &o.threads, "0", 0, 1024, "threads; 0: one a processor", NULL},
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
