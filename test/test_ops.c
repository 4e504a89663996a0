/* Every op of the list, on every device that runs here, or on the one that the command line names.
 *
 * Ring 1: plain float64 backward against central differences of plain float64 forward.
 * Ring 2: each device in float32, and in bf16 where it has that, against plain float64, forward and
 *         backward. An error may be twice that of the plain float32 loops (op_run.h says what they
 *         round for bf16), plus a millionth of the tensor's largest number.
 * Beside them: gradients added to and asked for one by one, guard bands, NaN, numbers of threads,
 * repetition; and the comparison itself must go red when one element is spoiled. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

/* clang-format off */
#include <cmocka.h>
/* clang-format on */

#include "test/op_run.h"

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

/* "op silu, case 3, cuda in bfloat16" */
static const char *name_of(int case_no, const Run *on) {
    static char text[128];
    snprintf(text, sizeof text, "%s, case %d, %s in %s", op_name(cases[case_no].op), case_no,
             on->dev->name, dtype_name(on->dtype));
    return text;
}

static void expect_within_rule(int case_no, const Run *on, const Result *x, const Result *plain32,
                               const Result *exact) {
    if (!x->guards_whole) fail_msg("%s: a guard band was written", name_of(case_no, on));
    if (!x->inputs_whole) fail_msg("%s: an input was written", name_of(case_no, on));
    for (int i = 0; i < N_RESULTS; i++) {
        double error, allowed;
        if (x->t[i].n && !within_rule(&x->t[i], &plain32->t[i], &exact->t[i], &error, &allowed))
            fail_msg("%s: %s is off by %g, allowed %g", name_of(case_no, on), x->t[i].name, error,
                     allowed);
    }
}

static void expect_same_bits(int case_no, const Run *on, const char *what, const Result *a,
                             const Result *b) {
    for (int i = 0; i < N_RESULTS; i++)
        if (a->t[i].n && memcmp(a->t[i].v, b->t[i].v, sizeof(double) * (size_t)a->t[i].n))
            fail_msg("%s: %s differs by %g %s", name_of(case_no, on), a->t[i].name,
                     difference(&a->t[i], &b->t[i]), what);
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
        draw(w, DT_F64, r->t[j].n, case_no, 20 + j, false, false);
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

/* on: the device, its dtype and two threads */
typedef void (*Check)(int case_no, Run on, const Result *plain32, const Result *exact);

/* Calls `check` for each case, each device that runs here and each dtype that it has, with the two
 * plain results in that dtype's numbers. */
static void for_devices(Run plain, Check check) {
    for (int d = 0; devices[d]; d++) {
        if (!device_tested(devices[d])) continue;
        for (int rounded = 0; rounded <= devices[d]->has_bf16; rounded++)
            for (int k = 0; k < N_CASES; k++) {
                plain.rounded = rounded;
                plain.dtype = DT_F64;
                Result exact = run_case(k, plain);
                plain.dtype = DT_F32;
                Result plain32 = run_case(k, plain);
                check(k, run_on(devices[d], rounded ? DT_BF16 : DT_F32, 2), &plain32, &exact);
                result_free(&exact);
                result_free(&plain32);
            }
    }
}

static void check_overwrite(int k, Run on, const Result *plain32, const Result *exact) {
    Result x = run_case(k, on);
    expect_within_rule(k, &on, &x, plain32, exact);
    result_free(&x);
    for (int i = 0; i < OP_MAX_IN; i++) { /* the same when one gradient alone is wanted */
        if (!wants_gradient(cases[k].in[i].kind) || cases[k].op == OP_ATTENTION) continue;
        on.only = i;
        x = run_case(k, on);
        expect_within_rule(k, &on, &x, plain32, exact);
        result_free(&x);
    }
}

static void test_devices_against_plain(void **state) {
    (void)state;
    for (int d = 0; devices[d]; d++)
        if (!only_device && !device_tested(devices[d]))
            print_message("skipped: %s, which this machine cannot run\n", devices[d]->name);
    for_devices(run_on(&plain_device, DT_F64, 1), check_overwrite);
}

static void check_add(int k, Run on, const Result *plain32, const Result *exact) {
    if (cases[k].op == OP_ATTENTION) return; /* overwrites, by its contract */
    on.add = true;
    Result x = run_case(k, on);
    expect_within_rule(k, &on, &x, plain32, exact);
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
            draw(start, DT_F64, a->n, k, 10 + i, false, false);
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

static void check_hand_on(int k, Run on, const Result *plain32, const Result *exact) {
    if (cases[k].op != OP_GATE_ADD && cases[k].op != OP_ADD && cases[k].op != OP_DROPOUT_ADD)
        return;
    on.hand_on = true;
    Result x = run_case(k, on);
    expect_within_rule(k, &on, &x, plain32, exact);
    result_free(&x);
}

static void test_a_gradient_handed_on(void **state) {
    (void)state;
    for_devices(run_on(&plain_device, DT_F64, 1), check_hand_on);
}

/* Where the plain loops give NaN for a NaN in one input, so must the device. */
static void check_nan(int k, Run on, const Result *plain32, const Result *exact) {
    (void)plain32, (void)exact;
    for (int i = 0; i < OP_MAX_IN; i++) {
        const Kind kind = cases[k].in[i].kind;
        if (!wants_gradient(kind) && kind != FIXED && kind != TARGET) continue;
        Run run = run_on(&plain_device, DT_F32, 1);
        run.rounded = on.rounded;
        run.nan_in = on.nan_in = i;
        Result plain = run_case(k, run), x = run_case(k, on);
        for (int t = 0; t < N_RESULTS; t++)
            for (int64_t j = 0; j < plain.t[t].n; j++)
                if (isnan(plain.t[t].v[j]) && !isnan(x.t[t].v[j]))
                    fail_msg("%s: NaN in in[%d] is lost in %s [%lld]", name_of(k, &on), i,
                             x.t[t].name, (long long)j);
        result_free(&plain);
        result_free(&x);
    }
}

static void test_nan_comes_out(void **state) {
    (void)state;
    for_devices(run_on(&plain_device, DT_F64, 1), check_nan);
}

/* oneDNN splits its work by the number of threads, so its sums may differ in the last bits. */
static bool by_library(int op) { return op == OP_LINEAR || op == OP_CONV2D; }

static void check_repetition(int k, Run on, const Result *plain32, const Result *exact) {
    const bool drops = cases[k].op == OP_DROPOUT || cases[k].op == OP_DROPOUT_ADD;
    on.threads = 1;
    Result one = run_case(k, on);
    for (int n = 1; n <= (on.dev->queue ? 1 : 3); n++) { /* a queue knows no threads */
        on.threads = n;
        Result x = run_case(k, on), again = run_case(k, on);
        Run run = on;
        run.silent = true;
        Result silent = run_case(k, run);
        expect_same_bits(k, &on, "when repeated", &x, &again);
        if (!drops) expect_same_bits(k, &on, "when not recorded", &silent, &x);
        if (!by_library(cases[k].op)) expect_same_bits(k, &on, "with other threads", &one, &x);
        expect_within_rule(k, &on, &x, plain32, exact);
        result_free(&x);
        result_free(&again);
        result_free(&silent);
    }
    result_free(&one);
}

static void test_threads_and_repetition(void **state) {
    (void)state;
    for_devices(run_on(&plain_device, DT_F64, 1), check_repetition);
}

/* The sum that the tape asks for where a gradient could only be overwritten. */
static void test_accumulate(void **state) {
    (void)state;
    static const int64_t sizes[] = {1, 7, 48, 4099};
    for (int d = 0; devices[d]; d++)
        for (int bf16 = 0; bf16 <= devices[d]->has_bf16 && device_tested(devices[d]); bf16++)
            for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
                const Device *dev = devices[d];
                const DType t = bf16 ? DT_BF16 : DT_F32;
                const int64_t n = sizes[s];
                Ctx c;
                Err e;
                if (ctx_init(&c, dev->name, 2, 1, false, &e)) fail_msg("%s", e.text);
                Block to = guarded(dev, (size_t)n * dtype_size(t));
                Block from = guarded(dev, (size_t)n * dtype_size(t));
                draw(to.host + GUARD, t, n, 0, 1, false, false);
                draw(from.host + GUARD, t, n, 0, 2, false, false);
                Values before = values_of("", to.host + GUARD, t, n);
                block_push(&to);
                block_push(&from);
                dev->accumulate(&c, t, to.at + GUARD, from.at + GUARD, n);
                block_pull(&to);
                assert_true(guards_whole(&to));
                for (int64_t i = 0; i < n; i++) {
                    const double sum = before.v[i] + get(from.host + GUARD, t, i);
                    const float want = bf16 ? from_bf16(to_bf16((float)sum)) : (float)sum;
                    assert_true(get(to.host + GUARD, t, i) == (double)want);
                }
                free(before.v);
                block_free(&to);
                block_free(&from);
                ctx_free(&c);
            }
}

/* The kernels that are no ops: every transposition of the matrix product, inside larger matrices
 * and with what was there before, and the sum of squares. */
static void test_matrix_product_and_sum_of_squares(void **state) {
    (void)state;
    enum { M = 19, N = 23, K = 37, LD = 41, SIZE = LD * LD };
    static float a[SIZE], b[SIZE], start[SIZE], want[SIZE], got[SIZE];
    draw(a, DT_F32, SIZE, 0, 1, false, false);
    draw(b, DT_F32, SIZE, 0, 2, false, false);
    draw(start, DT_F32, SIZE, 0, 3, false, false);
    for (int d = 0; devices[d]; d++) {
        if (!devices[d]->gemm || !device_runs_here(devices[d])) continue;
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

/* The self-test: one element of each output and each gradient is moved by more than the rule
 * allows, and the rule must say no; one byte beside a block is written, and the guard must say no.
 */
static void check_spoiled(int k, Run on, const Result *plain32, const Result *exact) {
    Result x = run_case(k, on);
    for (int i = 0; i < N_RESULTS; i++) {
        Values *t = &x.t[i];
        double error, allowed;
        if (!t->n) continue;
        const double good = t->v[t->n / 2];
        t->v[t->n / 2] += (on.rounded ? 3e-2 : 1e-3) * (1 + largest(&exact->t[i]));
        if (within_rule(t, &plain32->t[i], &exact->t[i], &error, &allowed))
            fail_msg("%s: a spoiled %s passed", name_of(k, &on), t->name);
        t->v[t->n / 2] = NAN;
        if (within_rule(t, &plain32->t[i], &exact->t[i], &error, &allowed))
            fail_msg("%s: a NaN in %s passed", name_of(k, &on), t->name);
        t->v[t->n / 2] = good;
    }
    result_free(&x);
}

static void test_spoiled_results_are_found(void **state) {
    (void)state;
    for_devices(run_on(&plain_device, DT_F64, 1), check_spoiled);
    Block b = guarded(&plain_device, 100);
    assert_true(guards_whole(&b));
    b.host[GUARD + 100] = 0;
    assert_false(guards_whole(&b));
    b.host[GUARD + 100] = GUARD_BYTE;
    b.host[GUARD - 1] = 0;
    assert_false(guards_whole(&b));
    block_free(&b);
}

int main(int argc, char **argv) {
    device_choose(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_devices_against_plain),
        cmocka_unit_test(test_gradients_are_added),
        cmocka_unit_test(test_a_gradient_handed_on),
        cmocka_unit_test(test_nan_comes_out),
        cmocka_unit_test(test_threads_and_repetition),
        cmocka_unit_test(test_accumulate),
        cmocka_unit_test(test_spoiled_results_are_found),
    };
    const struct CMUnitTest of_the_cpu[] = {
        cmocka_unit_test(test_every_op_has_a_case),
        cmocka_unit_test(test_backward_against_finite_differences),
        cmocka_unit_test(test_plain_adds),
        cmocka_unit_test(test_matrix_product_and_sum_of_squares),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    return failed + (only_device ? 0 : cmocka_run_group_tests(of_the_cpu, NULL, NULL));
}
