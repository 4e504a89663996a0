/* Every op of the list, on every device that this processor runs.
 *
 * Ring 1: plain float64 backward against central differences of plain float64 forward.
 * Ring 2: each device in float32 against plain float64, forward and backward. An error may be twice
 *         that of the plain float32 loops, plus a millionth of the tensor's largest number.
 * Beside them: gradients added to and asked for one by one, guard bands, NaN, numbers of threads,
 * repetition; and the comparison itself must go red when one element is spoiled. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h>
/* clang-format on */

#include "kernels/device.h"
#include "llmc_like/philox.h"
#include "test/op_cases.h"

enum { GUARD = 256, ARENA = 1 << 18, N_RESULTS = OP_MAX_OUT + OP_MAX_IN };
static const unsigned char GUARD_BYTE = 0xA5, UNSET_BYTE = 0xFF; /* 0xFF..FF is a NaN */

/* ---- one call of one case ---- */

typedef struct Run {
    const Device *dev;
    DType dtype;
    int threads;
    bool silent;   /* the context does not record */
    bool add;      /* gradients hold something already */
    bool hand_on;  /* in[0]'s gradient is the output's own buffer, as the tape does for some ops */
    int only;      /* the one input that gets a gradient; -1: all that want one */
    int nan_in;    /* the input whose middle element is NaN; -1: none */
    int perturbed; /* the input of which element `element` is moved by `by`; -1: none */
    int64_t element;
    double by;
    bool forward_only;
} Run;

static Run run_on(const Device *dev, DType dtype, int threads) {
    return (Run){
        .dev = dev, .dtype = dtype, .threads = threads, .only = -1, .nan_in = -1, .perturbed = -1};
}

typedef struct Values {
    char name[32];
    int64_t n;
    double *v;
} Values;

/* Outputs, then gradients of inputs (n 0 where there is none). */
typedef struct Result {
    Values t[N_RESULTS];
    bool guards_whole, inputs_whole;
} Result;

static void result_free(Result *r) {
    for (int i = 0; i < N_RESULTS; i++) free(r->t[i].v);
}

/* `bytes` between two guard bands; the block itself, aligned to 64. */
static unsigned char *guarded(size_t bytes) {
    const size_t all = (bytes + 2 * GUARD + 63) / 64 * 64;
    unsigned char *p = aligned_alloc(64, all);
    assert_non_null(p);
    memset(p, GUARD_BYTE, all);
    memset(p + GUARD, UNSET_BYTE, bytes);
    return p + GUARD;
}

static bool guards_whole(const unsigned char *block, size_t bytes) {
    for (int i = 0; i < GUARD; i++)
        if (block[i - GUARD] != GUARD_BYTE || block[bytes + (size_t)i] != GUARD_BYTE) return false;
    return true;
}

static void guarded_free(void *block) {
    if (block) free((unsigned char *)block - GUARD);
}

static double get(const void *data, DType t, int64_t i) {
    switch (t) {
        case DT_F64:
            return ((const double *)data)[i];
        case DT_I32:
            return ((const int32_t *)data)[i];
        default:
            return ((const float *)data)[i];
    }
}

static void set(void *data, DType t, int64_t i, double v) {
    if (t == DT_F64)
        ((double *)data)[i] = v;
    else if (t == DT_I32)
        ((int32_t *)data)[i] = (int32_t)v;
    else
        ((float *)data)[i] = (float)v;
}

/* Random numbers of stream `what` of the case; the same float32 numbers whatever the dtype. */
static void draw(void *data, DType t, int64_t n, int case_no, int what, bool uniform) {
    const RngKey key = {7, (uint32_t)case_no, RNG_TEST};
    float *v = malloc(sizeof(float) * (size_t)(n + 1));
    assert_non_null(v);
    (uniform ? rng_uniform : rng_normal)(key, (uint64_t)what << 32, v, n);
    for (int64_t i = 0; i < n; i++) set(data, t, i, v[i]);
    free(v);
}

/* Offsets of M segments: each but the last has 1 to 7 of the rows, as far as they go. */
static void cut(int32_t *at, int64_t M, int32_t rows, RngKey key) {
    at[0] = 0;
    for (int64_t m = 0; m < M; m++) {
        const int32_t spare = rows - at[m] - (int32_t)(M - m); /* with one row for each to come */
        const int32_t extra = (int32_t)(rng_bits(key, (uint64_t)m) % 7);
        at[m + 1] = m == M - 1 ? rows : at[m] + 1 + (extra < spare ? extra : spare);
    }
}

static Tensor make_input(const Case *k, int case_no, int i, const Run *run) {
    const Kind kind = k->in[i].kind;
    const bool integers = kind == IDS || kind == OFFSETS;
    Tensor t = {.dtype = kind == UNIFORM ? DT_F32 : integers ? DT_I32 : run->dtype};
    while (t.ndim < TENSOR_MAX_DIMS && k->in[i].shape[t.ndim]) {
        t.shape[t.ndim] = k->in[i].shape[t.ndim];
        t.ndim++;
    }
    snprintf(t.name, sizeof t.name, "in[%d]", i);
    t.needs_grad = kind == REAL;
    t.data = guarded(tensor_bytes(&t));
    const int64_t n = tensor_numel(&t);
    const RngKey key = {7, (uint32_t)case_no, RNG_TEST};
    if (kind == IDS)
        for (int64_t j = 0; j < n; j++) set(t.data, DT_I32, j, rng_bits(key, (uint64_t)j) % k->a);
    else if (kind == OFFSETS)
        cut(t.data, n - 1, k->a, key);
    else
        draw(t.data, t.dtype, n, case_no, i, kind == UNIFORM);
    if (run->nan_in == i) set(t.data, t.dtype, n / 2, NAN);
    if (run->perturbed == i)
        set(t.data, t.dtype, run->element, get(t.data, t.dtype, run->element) + run->by);
    return t;
}

static Values values_of(const char *name, const void *data, DType t, int64_t n) {
    Values r = {.n = n, .v = malloc(sizeof(double) * (size_t)n)};
    assert_non_null(r.v);
    snprintf(r.name, sizeof r.name, "%s", name);
    for (int64_t i = 0; i < n; i++) r.v[i] = get(data, t, i);
    return r;
}

/* Whether every byte of the activations arena outside the outputs and what was saved is as before.
 */
static bool arena_guards_whole(const Ctx *c, const OpCall *o) {
    const unsigned char *base = (unsigned char *)c->activations.chunk[0].base;
    for (size_t i = 0; i < ARENA; i++) {
        bool owned = false;
        for (int j = 0; j < OP_MAX_OUT + OP_MAX_SAVED; j++) {
            const Tensor *t = j < OP_MAX_OUT ? o->out[j] : o->saved[j - OP_MAX_OUT];
            if (!t) continue;
            const unsigned char *p = t->data;
            if (base + i >= p && base + i < p + tensor_bytes(t)) owned = true, i += tensor_bytes(t);
        }
        if (!owned && i < ARENA && base[i] != GUARD_BYTE) return false;
    }
    return true;
}

static void backward(Ctx *c, const Case *k, int case_no, const Run *run, const OpCall *o,
                     Result *r) {
    void *dout[OP_MAX_OUT] = {0};
    for (int j = 0; j < o->n_out; j++) {
        Tensor *t = o->out[j];
        dout[j] = t->grad = guarded(tensor_bytes(t));
        draw(t->grad, t->dtype, tensor_numel(t), case_no, 20 + j, false);
    }
    for (int i = 0; i < o->n_in; i++) {
        Tensor *t = o->in[i];
        if (!t || !t->needs_grad || (run->only >= 0 && run->only != i)) continue;
        t->grad_set = run->add;
        if (run->hand_on && i == 0) {
            t->grad = dout[0];
            t->grad_set = true;
            continue;
        }
        t->grad = guarded(tensor_bytes(t));
        if (run->add) draw(t->grad, t->dtype, tensor_numel(t), case_no, 10 + i, false);
    }
    run->dev->ops[k->op].backward(c, o);
    for (int i = 0; i < o->n_in; i++) {
        Tensor *t = o->in[i];
        if (!t || !t->grad) continue;
        char name[32];
        snprintf(name, sizeof name, "grad of in[%d]", i);
        r->t[OP_MAX_OUT + i] = values_of(name, t->grad, t->dtype, tensor_numel(t));
        r->guards_whole &= guards_whole(t->grad, tensor_bytes(t));
        if (t->grad != dout[0]) guarded_free(t->grad);
    }
    for (int j = 0; j < o->n_out; j++) {
        r->guards_whole &= guards_whole(dout[j], tensor_bytes(o->out[j]));
        guarded_free(dout[j]);
    }
}

static Result run_case(int case_no, Run run) {
    const Case *k = &cases[case_no];
    Result r = {.guards_whole = true, .inputs_whole = true};
    Ctx c;
    Err e;
    assert_int_equal(ctx_init(&c, run.dev->name, run.threads, 1, false, &e), 0);
    c.dtype = run.dtype;
    c.recording = !run.silent;
    assert_int_equal(arena_commit(&c.activations, ARENA, &e), 0);
    memset(c.activations.chunk[0].base, GUARD_BYTE, ARENA);
    arena_alloc(&c.activations, GUARD);

    Tensor in[OP_MAX_IN], *arg[OP_MAX_IN] = {0}, *out[OP_MAX_OUT] = {0};
    Values before[OP_MAX_IN];
    for (int i = 0; i < OP_MAX_IN; i++) {
        if (k->in[i].kind == ABSENT) continue;
        in[i] = make_input(k, case_no, i, &run);
        arg[i] = &in[i];
        before[i] = values_of("", in[i].data, in[i].dtype, tensor_numel(&in[i]));
    }
    k->call(&c, k, arg, out);
    OpCall o = {.op = k->op};
    if (c.tape.n) o = c.tape.call[0];
    for (int j = 0; j < OP_MAX_OUT && out[j]; j++) {
        o.out[j] = out[j];
        r.t[j] = values_of("output", out[j]->data, out[j]->dtype, tensor_numel(out[j]));
    }
    if (c.tape.n && !run.forward_only) backward(&c, k, case_no, &run, &o, &r);
    if (!run.forward_only) r.guards_whole &= arena_guards_whole(&c, &o);
    for (int i = 0; i < OP_MAX_IN; i++) {
        if (!arg[i]) continue;
        r.guards_whole &= guards_whole(in[i].data, tensor_bytes(&in[i]));
        for (int64_t j = 0; k->in[i].kind != BUFFER && j < before[i].n; j++) {
            const double now = get(in[i].data, in[i].dtype, j);
            r.inputs_whole &= !memcmp(&now, &before[i].v[j], sizeof now);
        }
        free(before[i].v);
        guarded_free(in[i].data);
    }
    ctx_free(&c);
    return r;
}

/* ---- comparing ---- */

static double largest(const Values *a) {
    double m = 0;
    for (int64_t i = 0; i < a->n; i++) m = fmax(m, fabs(a->v[i]));
    return m;
}

/* The largest difference; infinite where one alone is NaN. */
static double difference(const Values *a, const Values *b) {
    assert_int_equal(a->n, b->n);
    double m = 0;
    for (int64_t i = 0; i < a->n; i++) {
        if (isnan(a->v[i]) != isnan(b->v[i])) return INFINITY;
        if (!isnan(a->v[i])) m = fmax(m, fabs(a->v[i] - b->v[i]));
    }
    return m;
}

static bool within_rule(const Values *x, const Values *plain32, const Values *exact, double *error,
                        double *allowed) {
    *error = difference(x, exact);
    *allowed = 2 * difference(plain32, exact) + 1e-6 * largest(exact);
    return *error <= *allowed;
}

static void expect_within_rule(int case_no, const char *device, const Result *x,
                               const Result *plain32, const Result *exact) {
    const char *op = op_name(cases[case_no].op);
    if (!x->guards_whole)
        fail_msg("%s, case %d, %s: a guard band was written", op, case_no, device);
    if (!x->inputs_whole) fail_msg("%s, case %d, %s: an input was written", op, case_no, device);
    for (int i = 0; i < N_RESULTS; i++) {
        double error, allowed;
        if (x->t[i].n && !within_rule(&x->t[i], &plain32->t[i], &exact->t[i], &error, &allowed))
            fail_msg("%s, case %d, %s: %s is off by %g, allowed %g", op, case_no, device,
                     x->t[i].name, error, allowed);
    }
}

static void expect_same_bits(int case_no, const char *device, const char *what, const Result *a,
                             const Result *b) {
    for (int i = 0; i < N_RESULTS; i++)
        if (a->t[i].n && memcmp(a->t[i].v, b->t[i].v, sizeof(double) * (size_t)a->t[i].n))
            fail_msg("%s, case %d, %s: %s differs by %g %s", op_name(cases[case_no].op), case_no,
                     device, a->t[i].name, difference(&a->t[i], &b->t[i]), what);
}

/* ---- the tests ---- */

static void test_every_op_has_a_case(void **state) {
    (void)state;
    for (int op = 0; op < OP_COUNT; op++) {
        int n = 0;
        for (int i = 0; i < N_CASES; i++) n += cases[i].op == (Op)op;
        if (!n) fail_msg("op %s has no case in op_cases.h", op_name(op));
    }
}

/* sum over outputs of output * d loss / d output, the function whose gradient backward gives */
static double weighted_sum(int case_no, const Result *r) {
    double sum = 0;
    for (int j = 0; j < OP_MAX_OUT; j++) {
        if (!r->t[j].n) continue;
        double *w = malloc(sizeof(double) * (size_t)r->t[j].n);
        assert_non_null(w);
        draw(w, DT_F64, r->t[j].n, case_no, 20 + j, false);
        for (int64_t i = 0; i < r->t[j].n; i++) sum += w[i] * r->t[j].v[i];
        free(w);
    }
    return sum;
}

static void test_backward_against_finite_differences(void **state) {
    (void)state;
    enum { ELEMENTS = 12 }; /* of each input, spread out */
    const double h = 1e-5;
    for (int k = 0; k < N_CASES; k++) {
        Run run = run_on(&plain_device, DT_F64, 1);
        Result exact = run_case(k, run);
        for (int i = 0; i < OP_MAX_IN; i++) {
            const Values *g = &exact.t[OP_MAX_OUT + i];
            const int64_t step = g->n > ELEMENTS ? g->n / ELEMENTS : 1;
            for (int64_t j = 0; j < g->n; j += step) {
                double f[2];
                for (int side = 0; side < 2; side++) {
                    run.perturbed = i;
                    run.element = j;
                    run.by = side ? h : -h;
                    run.forward_only = true;
                    Result moved = run_case(k, run);
                    f[side] = weighted_sum(k, &moved);
                    result_free(&moved);
                }
                const double slope = (f[1] - f[0]) / (2 * h);
                if (!(fabs(slope - g->v[j]) <= 1e-6 * (1 + largest(g))))
                    fail_msg("%s, case %d: gradient of in[%d][%lld] is %.9g, the slope %.9g",
                             op_name(cases[k].op), k, i, (long long)j, g->v[j], slope);
            }
        }
        result_free(&exact);
    }
}

typedef void (*Check)(int case_no, const Device *dev, const Result *plain32, const Result *exact);

/* Calls `check` for each case and each device that runs here, with the two plain results. */
static void for_devices(Run plain, Check check) {
    for (int k = 0; k < N_CASES; k++) {
        plain.dtype = DT_F64;
        Result exact = run_case(k, plain);
        plain.dtype = DT_F32;
        Result plain32 = run_case(k, plain);
        for (int d = 0; devices[d]; d++)
            if (device_runs_here(devices[d])) check(k, devices[d], &plain32, &exact);
        result_free(&exact);
        result_free(&plain32);
    }
}

static void check_overwrite(int k, const Device *dev, const Result *plain32, const Result *exact) {
    Result x = run_case(k, run_on(dev, DT_F32, 2));
    expect_within_rule(k, dev->name, &x, plain32, exact);
    Run run = run_on(dev, DT_F32, 2);
    for (int i = 0; i < OP_MAX_IN; i++) { /* the same when one gradient alone is wanted */
        if (cases[k].in[i].kind != REAL || cases[k].op == OP_ATTENTION) continue;
        run.only = i;
        Result one = run_case(k, run);
        expect_within_rule(k, dev->name, &one, plain32, exact);
        result_free(&one);
    }
    result_free(&x);
}

static void test_devices_against_plain(void **state) {
    (void)state;
    for (int d = 0; devices[d]; d++)
        if (!device_runs_here(devices[d]))
            print_message("skipped: %s, which this processor cannot run\n", devices[d]->name);
    for_devices(run_on(&plain_device, DT_F64, 1), check_overwrite);
}

static void check_add(int k, const Device *dev, const Result *plain32, const Result *exact) {
    if (cases[k].op == OP_ATTENTION) return; /* overwrites, by its contract */
    Run run = run_on(dev, DT_F32, 2);
    run.add = true;
    Result x = run_case(k, run);
    expect_within_rule(k, dev->name, &x, plain32, exact);
    result_free(&x);
}

static void test_gradients_are_added(void **state) {
    (void)state;
    Run run = run_on(&plain_device, DT_F64, 1);
    run.add = true;
    for_devices(run, check_add);
}

/* Adding to d is d plus what overwriting gives: the reference of the test above is itself right. */
static void test_plain_adds(void **state) {
    (void)state;
    for (int k = 0; k < N_CASES; k++) {
        if (cases[k].op == OP_ATTENTION) continue;
        Run run = run_on(&plain_device, DT_F64, 1);
        Result over = run_case(k, run);
        run.add = true;
        Result added = run_case(k, run);
        for (int i = 0; i < OP_MAX_IN; i++) {
            const Values *a = &added.t[OP_MAX_OUT + i], *b = &over.t[OP_MAX_OUT + i];
            double *start = malloc(sizeof(double) * (size_t)(a->n + 1));
            assert_non_null(start);
            draw(start, DT_F64, a->n, k, 10 + i, false);
            for (int64_t j = 0; j < a->n; j++)
                if (!(fabs(a->v[j] - start[j] - b->v[j]) <= 1e-12 * (1 + largest(a))))
                    fail_msg("%s, case %d: %g added to %g gave %g", op_name(cases[k].op), k,
                             b->v[j], start[j], a->v[j]);
            free(start);
        }
        result_free(&over);
        result_free(&added);
    }
}

static void check_hand_on(int k, const Device *dev, const Result *plain32, const Result *exact) {
    if (cases[k].op != OP_GATE_ADD && cases[k].op != OP_ADD && cases[k].op != OP_DROPOUT_ADD)
        return;
    Run run = run_on(dev, DT_F32, 2);
    run.hand_on = true;
    Result x = run_case(k, run);
    expect_within_rule(k, dev->name, &x, plain32, exact);
    result_free(&x);
}

static void test_a_gradient_handed_on(void **state) {
    (void)state;
    for_devices(run_on(&plain_device, DT_F64, 1), check_hand_on);
}

static void test_nan_comes_out(void **state) {
    (void)state;
    for (int k = 0; k < N_CASES; k++)
        for (int i = 0; i < OP_MAX_IN; i++) {
            if (cases[k].in[i].kind != REAL && cases[k].in[i].kind != FIXED) continue;
            Run run = run_on(&plain_device, DT_F32, 1);
            run.nan_in = i;
            Result plain = run_case(k, run);
            run.threads = 2;
            for (int d = 0; devices[d]; d++) {
                if (!device_runs_here(devices[d])) continue;
                run.dev = devices[d];
                Result x = run_case(k, run);
                for (int t = 0; t < N_RESULTS; t++)
                    for (int64_t j = 0; j < plain.t[t].n; j++)
                        if (isnan(plain.t[t].v[j]) && !isnan(x.t[t].v[j]))
                            fail_msg("%s, case %d, %s: NaN in in[%d] is lost in %s [%lld]",
                                     op_name(cases[k].op), k, devices[d]->name, i, x.t[t].name,
                                     (long long)j);
                result_free(&x);
            }
            result_free(&plain);
        }
}

/* oneDNN splits its work by the number of threads, so its sums may differ in the last bits. */
static bool by_library(int op) { return op == OP_LINEAR || op == OP_CONV2D; }

static void check_threads(int k, const Device *dev, const Result *plain32, const Result *exact) {
    const bool drops = cases[k].op == OP_DROPOUT || cases[k].op == OP_DROPOUT_ADD;
    Result one = run_case(k, run_on(dev, DT_F32, 1));
    for (int n = 1; n <= 3; n++) {
        Result x = run_case(k, run_on(dev, DT_F32, n));
        Result again = run_case(k, run_on(dev, DT_F32, n));
        Run run = run_on(dev, DT_F32, n);
        run.silent = true;
        Result silent = run_case(k, run);
        expect_same_bits(k, dev->name, "when repeated", &x, &again);
        if (!drops) expect_same_bits(k, dev->name, "when not recorded", &silent, &x);
        if (!by_library(cases[k].op))
            expect_same_bits(k, dev->name, "with other threads", &one, &x);
        expect_within_rule(k, dev->name, &x, plain32, exact);
        result_free(&x);
        result_free(&again);
        result_free(&silent);
    }
    result_free(&one);
}

static void test_threads_and_repetition(void **state) {
    (void)state;
    for_devices(run_on(&plain_device, DT_F64, 1), check_threads);
}

/* The kernels that are no ops: every transposition of the matrix product, inside larger matrices
 * and with what was there before, and the sum of squares. */
static void test_matrix_product_and_sum_of_squares(void **state) {
    (void)state;
    enum { M = 19, N = 23, K = 37, LD = 41, SIZE = LD * LD };
    static float a[SIZE], b[SIZE], start[SIZE], want[SIZE], got[SIZE];
    draw(a, DT_F32, SIZE, 0, 1, false);
    draw(b, DT_F32, SIZE, 0, 2, false);
    draw(start, DT_F32, SIZE, 0, 3, false);
    for (int d = 0; devices[d]; d++) {
        if (!device_runs_here(devices[d])) continue;
        Ctx c;
        Err e;
        assert_int_equal(ctx_init(&c, devices[d]->name, 2, 1, false, &e), 0);
        for (int mode = 0; mode < 8; mode++) {
            const bool ta = mode & 1, tb = mode & 2;
            const float beta = mode & 4 ? 0.5f : 0;
            memcpy(want, start, sizeof want);
            memcpy(got, start, sizeof got);
            if (beta == 0) got[0] = NAN; /* what is overwritten must not be read */
            plain_device.gemm(&c, ta, tb, M, N, K, 1.5f, a, LD, b, LD, beta, want, LD);
            devices[d]->gemm(&c, ta, tb, M, N, K, 1.5f, a, LD, b, LD, beta, got, LD);
            for (int i = 0; i < SIZE; i++)
                if (!(fabsf(got[i] - want[i]) <= 1e-4f))
                    fail_msg("%s: gemm, mode %d: [%d] is %g, not %g", devices[d]->name, mode, i,
                             (double)got[i], (double)want[i]);
        }
        const double want_sum = plain_device.sum_squares(&c, a, SIZE);
        const double sum = devices[d]->sum_squares(&c, a, SIZE);
        assert_true(fabs(sum - want_sum) <= 1e-12 * want_sum);
        c.n_threads = 3;
        assert_true(devices[d]->sum_squares(&c, a, SIZE) == sum);
        ctx_free(&c);
    }
}

/* The self-test: one element of each output and each gradient is moved, and the rule must say no;
 * one byte beside a block is written, and the guard must say no. */
static void check_spoiled(int k, const Device *dev, const Result *plain32, const Result *exact) {
    Result x = run_case(k, run_on(dev, DT_F32, 1));
    for (int i = 0; i < N_RESULTS; i++) {
        Values *t = &x.t[i];
        double error, allowed;
        if (!t->n) continue;
        const double good = t->v[t->n / 2];
        t->v[t->n / 2] += 1e-3 * (1 + largest(&exact->t[i]));
        if (within_rule(t, &plain32->t[i], &exact->t[i], &error, &allowed))
            fail_msg("%s, case %d: a spoiled %s passed", op_name(cases[k].op), k, t->name);
        t->v[t->n / 2] = NAN;
        if (within_rule(t, &plain32->t[i], &exact->t[i], &error, &allowed))
            fail_msg("%s, case %d: a NaN in %s passed", op_name(cases[k].op), k, t->name);
        t->v[t->n / 2] = good;
    }
    result_free(&x);
}

static void test_spoiled_results_are_found(void **state) {
    (void)state;
    for_devices(run_on(&plain_device, DT_F64, 1), check_spoiled);
    unsigned char *block = guarded(100);
    assert_true(guards_whole(block, 100));
    block[100] = 0;
    assert_false(guards_whole(block, 100));
    block[100] = GUARD_BYTE;
    block[-1] = 0;
    assert_false(guards_whole(block, 100));
    guarded_free(block);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_op_has_a_case),
        cmocka_unit_test(test_backward_against_finite_differences),
        cmocka_unit_test(test_plain_adds),
        cmocka_unit_test(test_devices_against_plain),
        cmocka_unit_test(test_gradients_are_added),
        cmocka_unit_test(test_a_gradient_handed_on),
        cmocka_unit_test(test_nan_comes_out),
        cmocka_unit_test(test_threads_and_repetition),
        cmocka_unit_test(test_matrix_product_and_sum_of_squares),
        cmocka_unit_test(test_spoiled_results_are_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
