/* Checks and times the ladder's rungs, and the shipped kernels behind them (ladder.h):
 *
 *   ./ladder [--heads 128] [--tokens 2048] [--causal] [--rung NAME] [--repeats 10] [--json FILE]
 *
 * Each in turn, medians. Work: 4 D flops a visible pair. error: |out - reference| / |reference|
 * over a sample of rows, the reference being a plain loop in float64 on the same bf16 numbers;
 * rounding p and out to bf16's 8 bits leaves 2e-3, and twice that is allowed. Every element of out
 * is NaN before, and must be a number then. Exit status 1 where a rung is wrong. */
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dev/bench/on_device.h"
#include "dev/cuda/ladder.h"
#include "kernels/attention.h"
#include "llmc_like/fsio.h"
#include "llmc_like/options.h"
#include "llmc_like/philox.h"
#include "llmc_like/run.h"

enum { D = HEAD_SIZE, SAMPLES = 1024, MAX_REPEATS = 200 };
static const double largest_error = 4e-3;

typedef struct Ladder {
    int heads, tokens, repeats;
    bool causal;
    const char *rung, *json;
} Ladder;

static bool shipped(Ctx *c, const RungArgs *a);
static bool shipped_portable(Ctx *c, const RungArgs *a);

static const struct {
    const char *name, *idea;
    RungFn *run;
} rungs[] = {{"naive", "a thread a query, online softmax", rung_naive},
             {"tiles", "keys and values through shared memory", rung_tiles},
             {"tensor", "mma.sync and ldmatrix", rung_tensor},
             {"pipeline", "cp.async, two stages, swizzled", rung_pipeline},
             {"portable", "what is shipped for every GPU", shipped_portable},
             {"wgmma", "Hopper's copy engine and products", rung_wgmma},
             {"roles", "a warpgroup copies, two compute", rung_roles},
             {"overlap", "softmax beside the products", rung_overlap},
             {"shipped", "what is shipped for this GPU", shipped}};
enum { RUNGS = sizeof rungs / sizeof rungs[0] };

/* ---- the shipped kernels, by the same arguments ---- */

static bool shipped(Ctx *c, const RungArgs *a) {
    const AttnStride s = {(int64_t)a->heads * a->T * D, D, (int64_t)a->T * D};
    AttnArgs args = attn_shape(1, a->heads, a->T, D, a->mask);
    args.dtype = DT_BF16;
    args.scale = HEAD_SCALE;
    args.q = a->q, args.k = a->k, args.v = a->v, args.out = a->out, args.lse = a->lse;
    args.qs = args.ks = args.vs = args.os = s;
    c->attn = attn_find("sdpa");
    attn_run(c, &args, false);
    return true;
}

static bool shipped_portable(Ctx *c, const RungArgs *a) {
    c->portable = true;
    shipped(c, a);
    c->portable = false;
    return true;
}

/* ---- data and reference ---- */

/* Normals that are bf16 numbers; the caller frees them. */
static float *numbers(uint32_t stream, int64_t n) {
    float *x = malloc((size_t)n * sizeof *x);
    CHECK(x, "no memory for %lld numbers", (long long)n);
    rng_normal((RngKey){1, stream, RNG_TEST}, 0, x, n);
    for (int64_t i = 0; i < n; i++) {
        const uint32_t bits = (uint32_t)bf16_of(x[i]) << 16;
        memcpy(&x[i], &bits, sizeof bits);
    }
    return x;
}

/* One query's row of out; x is q, k, v of its head. score: T numbers of scratch. */
static void attend(const float *const x[3], int row, int seen, double *score, double out[D]) {
    double top = -INFINITY, sum = 0;
    for (int key = 0; key < seen; key++) {
        double s = 0;
        for (int d = 0; d < D; d++) s += (double)x[0][row * D + d] * (double)x[1][key * D + d];
        score[key] = (double)HEAD_SCALE * s;
        top = fmax(top, score[key]);
    }
    for (int d = 0; d < D; d++) out[d] = 0;
    for (int key = 0; key < seen; key++) {
        const double p = exp(score[key] - top);
        sum += p;
        for (int d = 0; d < D; d++) out[d] += p * (double)x[2][key * D + d];
    }
    for (int d = 0; d < D; d++) out[d] /= sum;
}

/* Rows whose numbers go through all remainders, of heads from the first to the last. NaN where a
 * number of out is none. */
static double error_of(const Ladder *o, const float *const x[3], const float *got) {
    double *score = malloc(sizeof *score * (size_t)o->tokens), far = 0, all = 0;
    CHECK(score, "no memory for the reference");
    for (int i = 0; i < SAMPLES; i++) {
        const int row = i * 37 % o->tokens;
        const int64_t head = (int64_t)i * o->heads / SAMPLES, at = head * o->tokens * D;
        double expected[D];
        attend((const float *const[]){x[0] + at, x[1] + at, x[2] + at}, row,
               o->causal ? row + 1 : o->tokens, score, expected);
        for (int d = 0; d < D; d++) {
            const double e = (double)got[at + (int64_t)row * D + d] - expected[d];
            far += e * e;
            all += expected[d] * expected[d];
        }
    }
    free(score);
    for (int64_t i = 0; i < (int64_t)o->heads * o->tokens * D; i++)
        if (!isfinite(got[i])) return NAN;
    return sqrt(far / all);
}

/* ---- the turns ---- */

static double seconds(Ctx *c, RungFn *run, const RungArgs *a, int repeats) {
    double taken[MAX_REPEATS];
    for (int r = 0; r < repeats; r++) {
        taken[r] = 0;
        run(c, a); /* busy while the host starts the one that is timed */
        ctx_lap(c, CLOCK_PHASE, NULL);
        run(c, a);
        ctx_lap(c, CLOCK_PHASE, &taken[r]);
        ctx_wait(c, ctx_mark(c));
    }
    return median(taken, repeats);
}

/* How many are wrong. */
static int climb(const Ladder *o, Ctx *c, const RungArgs *a, Tensor *out, const float *const x[3],
                 cJSON *all) {
    const int64_t n = tensor_numel(out);
    const double T = o->tokens, pairs = o->heads * (o->causal ? T * (T + 1) / 2 : T * T);
    float *nothing = malloc((size_t)n * sizeof *nothing);
    int wrong = 0;
    CHECK(nothing, "no memory for %lld numbers", (long long)n);
    for (int64_t i = 0; i < n; i++) nothing[i] = NAN;
    printf("%d heads, T %d, D %d, %s, %s\n", o->heads, o->tokens, D, o->causal ? "causal" : "full",
           c->dev->name);
    printf("rung             ms  TFLOP/s    error  idea\n");
    for (int i = 0; i < RUNGS; i++) {
        if (strcmp(o->rung, "all") && strcmp(o->rung, rungs[i].name)) continue;
        ctx_step_begin(c);
        device_write(c, out, nothing);
        if (!rungs[i].run(c, a)) {
            printf("%-9s  needs a Hopper GPU\n", rungs[i].name);
            continue;
        }
        const double error = error_of(o, x, ctx_read_f32(c, out));
        const double s = seconds(c, rungs[i].run, a, o->repeats);
        const bool good = error <= largest_error;
        wrong += !good;
        printf("%-9s  %8.3f  %7.1f  %7.1e  %s%s\n", rungs[i].name, 1e3 * s, 4e-12 * D * pairs / s,
               error, rungs[i].idea, good ? "" : "  WRONG");
        cJSON *j = cJSON_CreateObject();
        cJSON_AddItemToArray(all, j);
        cJSON_AddStringToObject(j, "rung", rungs[i].name);
        cJSON_AddNumberToObject(j, "ms", 1e3 * s);
        cJSON_AddNumberToObject(j, "tflops", 4e-12 * D * pairs / s);
        cJSON_AddNumberToObject(j, "error", error);
    }
    free(nothing);
    return wrong;
}

static int save(const Ladder *o, const cJSON *all, Err *e) {
    char *text = cJSON_Print(all);
    CHECK(text, "no memory for the JSON text");
    const int status = o->json ? atomic_save(o->json, text, strlen(text), e) : 0;
    free(text);
    return status;
}

static int ladder(const Ladder *o, Err *e) {
    enum { Q, K, V, OUT, LSE, TENSORS };
    Ctx c;
    Mask mask;
    Tensor t[TENSORS];
    float *x[TENSORS];
    if (o->tokens % TOKENS_STEP)
        return err_set(e, "--tokens %d: the rungs take multiples of %d", o->tokens, TOKENS_STEP);
    if (ctx_init(&c, "cuda", 0, 1, false, e) || ctx_set_dtype(&c, "bf16", e) ||
        mask_init(&mask, o->causal ? "causal" : "full", "", "", o->tokens, o->tokens, 1, o->heads,
                  e))
        return -1;
    for (int i = 0; i < TENSORS; i++) {
        t[i] = (Tensor){.dtype = DT_BF16, .ndim = 3, .shape = {o->heads, o->tokens, D}};
        if (i == LSE) t[i] = (Tensor){.dtype = DT_F32, .ndim = 2, .shape = {o->heads, o->tokens}};
        x[i] = numbers((uint32_t)i, tensor_numel(&t[i]));
        device_tensor(&c, &t[i], x[i]);
    }
    const RungArgs a = {.q = t[Q].data,
                        .k = t[K].data,
                        .v = t[V].data,
                        .out = t[OUT].data,
                        .heads = o->heads,
                        .T = o->tokens,
                        .causal = o->causal,
                        .lse = t[LSE].data,
                        .mask = &mask};
    cJSON *all = cJSON_CreateArray();
    const int wrong = climb(o, &c, &a, &t[OUT], (const float *const[]){x[Q], x[K], x[V]}, all);
    int status = save(o, all, e);
    if (wrong)
        status =
            err_set(e, "%d rungs differ from the reference by more than %g", wrong, largest_error);
    cJSON_Delete(all);
    for (int i = 0; i < TENSORS; i++) device_give(&c, &t[i]), free(x[i]);
    mask_free(&mask);
    ctx_free(&c);
    return status;
}

int main(int argc, char **argv) {
    Ladder o = {0};
    const Option table[] = {
        {"heads", OPT_INT, &o.heads, "128", 1, 65535, "batch times heads", NULL},
        {"tokens", OPT_INT, &o.tokens, "2048", TOKENS_STEP, 1 << 20, "queries and keys of a head",
         NULL},
        {"causal", OPT_FLAG, &o.causal, "off", 0, 0, "query i sees the keys 0 .. i", NULL},
        {"rung", OPT_STRING, &o.rung, "all", 0, 0, "one of them alone",
         "all|naive|tiles|tensor|pipeline|portable|wgmma|roles|overlap|shipped"},
        {"repeats", OPT_INT, &o.repeats, "10", 1, MAX_REPEATS, "turns; medians count", NULL},
        {"json", OPT_STRING, &o.json, NULL, 0, 0, "file for the results", NULL},
    };
    Err e = {""};
    Options options;
    options_init(&options, table, (int)(sizeof table / sizeof table[0]), false);
    int status = options_parse(&options, argc, argv, &e);
    if (!status && options.help)
        options_help(&options, "ladder [options]", stdout);
    else if (!status)
        status = ladder(&o, &e);
    options_free(&options);
    if (status) fprintf(stderr, "ladder: %s\n", e.text);
    return status ? 1 : 0;
}
