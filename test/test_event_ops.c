/* What the general tests of ops (test_ops.c) cannot know of those for events: GELU's error over its
 * whole range, dropout's statistics and its key, the end of a residual branch, ties in a maximum,
 * directions without length, rows of zeros, and angles known from geometry. On every device that
 * runs here, or on the one that the command line names. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h>
/* clang-format on */

#include "kernels/ops.h"
#include "llmc_like/philox.h"
#include "test/on_device.h"

/* Calls `check` with a fresh context of each device, the plain one among them. */
static void for_devices(void (*check)(Ctx *c)) {
    for (int d = 0; devices[d]; d++) {
        if (!device_tested(devices[d])) continue;
        Ctx c;
        Err e;
        assert_int_equal(ctx_init(&c, devices[d]->name, 2, 11, false, &e), 0);
        check(&c);
        ctx_free(&c);
    }
}

static Tensor *input(Ctx *c, int ndim, const int64_t *shape, const float *data) {
    Tensor *t = ctx_input(c, "x", DT_F32, ndim, shape, data);
    t->needs_grad = true;
    return t;
}

/* The tensor's gradient, holding `start`; its numbers are in the tensor that is returned. */
static Tensor *gradient(Ctx *c, Tensor *t, DType dtype, const void *start) {
    Tensor *g = ctx_input(c, "gradient", dtype, t->ndim, t->shape, start);
    t->grad = g->data;
    return g;
}

static void expect_near(const Ctx *c, const char *what, double got, double want, double allowed) {
    if (!(fabs(got - want) <= allowed))
        fail_msg("%s: %s is %.9g, not %.9g", c->dev->name, what, got, want);
}

static void check_gelu(Ctx *c) {
    enum { N = 24001 };
    static float x[N];
    for (int i = 0; i < N; i++) x[i] = (float)(i - N / 2) * 1e-3f;
    const float *y = ctx_read_f32(c, op_gelu(c, input(c, 1, (int64_t[]){N}, x)));
    for (int i = 0; i < N; i++) {
        const double v = x[i];
        expect_near(c, "gelu", y[i], v * 0.5 * erfc(-v / sqrt(2)), 1e-6 * fmax(1, fabs(v)));
    }
}

static void test_gelu_over_its_range(void **state) {
    (void)state;
    for_devices(check_gelu);
}

static void check_dropout(Ctx *c) {
    enum { N = 40003 };
    static float x[N];
    for (int i = 0; i < N; i++) x[i] = 1;
    const float p = 0.1f;
    Tensor *in = input(c, 1, (int64_t[]){N}, x);
    const float *y = ctx_read_f32(c, op_dropout(c, in, p, 5, 2));
    int kept = 0;
    for (int i = 0; i < N; i++) {
        kept += y[i] != 0;
        if (y[i] != 0) expect_near(c, "kept", y[i], 1 / 0.9, 1e-6);
    }
    expect_near(c, "share kept", (double)kept / N, 1 - p, 0.006); /* four sigma */

    assert_memory_equal(y, ctx_read_f32(c, op_dropout(c, in, p, 5, 2)), sizeof x);
    assert_memory_not_equal(y, ctx_read_f32(c, op_dropout(c, in, p, 6, 2)), sizeof x);
    assert_memory_not_equal(y, ctx_read_f32(c, op_dropout(c, in, p, 5, 3)), sizeof x);
    c->seed++;
    assert_memory_not_equal(y, ctx_read_f32(c, op_dropout(c, in, p, 5, 2)), sizeof x);
    assert_ptr_equal(op_dropout(c, in, 0, 5, 2), in);
    c->recording = false;
    assert_ptr_equal(op_dropout(c, in, p, 5, 2), in);
}

static void test_dropout_is_keyed_and_keeps_the_mean(void **state) {
    (void)state;
    for_devices(check_dropout);
}

/* Two equal largest numbers: the first has the gradient. A NaN is larger than any. */
static void check_segment_max(Ctx *c) {
    const float x[] = {1, 7, 7, 3, NAN, 5};
    const int32_t offsets[] = {0, 4, 6};
    Tensor *in = input(c, 2, (int64_t[]){6, 1}, x);
    Tensor *at = ctx_input(c, "offsets", DT_I32, 1, (int64_t[]){3}, offsets);
    Tensor *y = op_segment_max(c, in, at);
    const float *largest = ctx_read_f32(c, y);
    assert_true(largest[0] == 7 && isnan(largest[1]));
    float dy[] = {2, 3}, start[6] = {9, 9, 9, 9, 9, 9};
    const float want[] = {0, 2, 0, 0, 3, 0};
    gradient(c, y, DT_F32, dy);
    Tensor *d = gradient(c, in, DT_F32, start);
    c->dev->ops[OP_SEGMENT_MAX].backward(c, &c->tape.call[0]);
    const float *dx = ctx_read_f32(c, d);
    for (int i = 0; i < 6; i++) expect_near(c, "gradient of a maximum", dx[i], want[i], 0);
}

static void test_segment_max_of_equals_and_nan(void **state) {
    (void)state;
    for_devices(check_segment_max);
}

static void check_no_direction(Ctx *c) {
    const float x[] = {0, 0, 0};
    Tensor *in = input(c, 2, (int64_t[]){1, 3}, x), *y = op_unit_vector(c, in);
    float dy[] = {1, -2, 3}, start[3] = {NAN, NAN, NAN};
    gradient(c, y, DT_F32, dy);
    Tensor *d = gradient(c, in, DT_F32, start);
    c->dev->ops[OP_UNIT_VECTOR].backward(c, &c->tape.call[0]);
    const float *dx = ctx_read_f32(c, d), *out = ctx_read_f32(c, y);
    for (int j = 0; j < 3; j++) {
        expect_near(c, "direction of nothing", out[j], 0, 0);
        expect_near(c, "its gradient", dx[j], dy[j] * 1e8, 1e3);
    }
}

static void test_direction_of_a_zero_vector(void **state) {
    (void)state;
    for_devices(check_no_direction);
}

/* Equal, opposite, at right angles and at 60 degrees: the first two are cut and have no slope. */
static void check_angles(Ctx *c) {
    static const float x[4][3] = {{0, 0, 1}, {0, 0, 1}, {0, 0, 1}, {0, 0, 1}};
    static const float target[4][3] = {{0, 0, 1}, {0, 0, -1}, {1, 0, 0}, {0.8660254f, 0, 0.5f}};
    const double cut = acos(1 - 1e-4);
    const double angle[] = {cut, M_PI - cut, M_PI / 2, M_PI / 3};
    const double slope[] = {0, 0, -1, -1 / sqrt(0.75)};
    for (int i = 0; i < 4; i++) {
        ctx_step_begin(c);
        Tensor *in = input(c, 2, (int64_t[]){1, 3}, x[i]);
        Tensor *to = ctx_input(c, "target", DT_F32, 2, (int64_t[]){1, 3}, target[i]);
        Tensor *y = op_angle_loss(c, in, to);
        double dy = 1;
        float start[3] = {NAN, NAN, NAN};
        expect_near(c, "angle", *(const double *)ctx_read(c, y), angle[i], 1e-7);
        gradient(c, y, DT_F64, &dy);
        Tensor *d = gradient(c, in, DT_F32, start);
        c->dev->ops[OP_ANGLE_LOSS].backward(c, &c->tape.call[0]);
        const float *dx = ctx_read_f32(c, d);
        for (int j = 0; j < 3; j++)
            expect_near(c, "its gradient", dx[j], slope[i] * target[i][j], 1e-6);
    }
    ctx_step_begin(c);
    Tensor *in = input(c, 2, (int64_t[]){4, 3}, x[0]);
    Tensor *to = ctx_input(c, "target", DT_F32, 2, (int64_t[]){4, 3}, target[0]);
    const double mean = (angle[0] + angle[1] + angle[2] + angle[3]) / 4;
    const double *loss = ctx_read(c, op_angle_loss(c, in, to));
    expect_near(c, "mean angle", *loss, mean, 1e-7);
}

static void test_angles_of_known_geometry(void **state) {
    (void)state;
    for_devices(check_angles);
}

/* The class token's way: put before each segment, found again as the first row of each. */
static void check_class_rows(Ctx *c) {
    const float x[] = {1, 2, 3, 4, 5, 6}, token[] = {-1, -2};
    const int32_t before[] = {0, 1, 3}, after[] = {0, 2, 5};
    const float want[] = {-1, -2, 1, 2, -1, -2, 3, 4, 5, 6};
    Tensor *in = input(c, 3, (int64_t[]){1, 3, 2}, x);
    Tensor *row = input(c, 3, (int64_t[]){1, 1, 2}, token);
    Tensor *y =
        op_segment_prepend(c, in, ctx_input(c, "before", DT_I32, 1, (int64_t[]){3}, before), row);
    assert_int_equal(tensor_numel(y), 10);
    assert_memory_equal(ctx_read_f32(c, y), want, sizeof want);
    Tensor *first = op_segment_first(c, y, ctx_input(c, "after", DT_I32, 1, (int64_t[]){3}, after));
    const float *rows = ctx_read_f32(c, first);
    for (int i = 0; i < 4; i++) expect_near(c, "class row", rows[i], token[i % 2], 0);
}

static void test_class_rows_come_back(void **state) {
    (void)state;
    for_devices(check_class_rows);
}

/* A row of zeros stays one, and its slope is that of 1 / sqrt(eps): no 0 / 0. */
static void check_norm_of_zeros(Ctx *c) {
    const float x[] = {0, 0, 0};
    Tensor *in = input(c, 2, (int64_t[]){1, 3}, x), *y = op_rmsnorm(c, in);
    float dy[] = {1, -2, 3}, start[3] = {NAN, NAN, NAN};
    gradient(c, y, DT_F32, dy);
    Tensor *d = gradient(c, in, DT_F32, start);
    c->dev->ops[OP_RMSNORM].backward(c, &c->tape.call[0]);
    const float *dx = ctx_read_f32(c, d), *out = ctx_read_f32(c, y);
    for (int j = 0; j < 3; j++) {
        expect_near(c, "norm of nothing", out[j], 0, 0);
        expect_near(c, "its gradient", dx[j], dy[j] * 0x1p11 * sqrt(2), 1e-3);
    }
}

static void test_norm_of_a_row_of_zeros(void **state) {
    (void)state;
    for_devices(check_norm_of_zeros);
}

/* A tensor mixed with itself through the tape: its gradient is the sum of both shares. */
static void check_mix_with_itself(Ctx *c) {
    const float one[] = {3, 4}, factors[] = {9, 2, 9}, others[] = {9, 0.5f, 9};
    float start[3][3] = {{0}};
    Tensor *d[3];
    Tensor *x = input(c, 2, (int64_t[]){1, 2}, one);
    Tensor *r = input(c, 1, (int64_t[]){3}, factors), *s = input(c, 1, (int64_t[]){3}, others);
    Tensor *const wanted[] = {x, r, s};
    for (int i = 0; i < 3; i++) {
        wanted[i]->is_param = true; /* its gradient outlives backward */
        d[i] = gradient(c, wanted[i], DT_F32, start[i]);
    }
    const float target[] = {0, 0};
    Tensor *y = op_mix(c, x, x, r, s, 1);
    expect_near(c, "mixture", ctx_read_f32(c, y)[1], 10, 0);
    Tensor *zero = ctx_input(c, "target", DT_F32, 2, (int64_t[]){1, 2}, target);
    tape_backward(c, op_mse_loss(c, y, zero), 1); /* d loss / d y = y = 2.5 x */
    const float *dx = ctx_read_f32(c, d[0]);
    for (int j = 0; j < 2; j++) expect_near(c, "gradient", dx[j], 6.25 * one[j], 1e-5);
    for (int i = 1; i < 3; i++) {
        const float *df = ctx_read_f32(c, d[i]);
        expect_near(c, "a factor's gradient", df[1], 2.5 * 25, 1e-4);
        expect_near(c, "another factor's", df[0] + df[2], 0, 0);
    }
}

static void test_a_tensor_mixed_with_itself(void **state) {
    (void)state;
    for_devices(check_mix_with_itself);
}

/* The end of a residual branch is what two ops give, recording or not, in blocks and rest. To the
 * bit where the kernels are ours; a library that adds bias and residual does so in its own order,
 * and test_ops bounds its error. */
static void check_residual_branch(Ctx *c) {
    if (!c->dev->memory->is_host) return;
    enum { ROWS = 145, K = 33, N = 67 };
    static float number[ROWS * (N + K) + N * K + N];
    rng_normal((RngKey){7, 0, RNG_TEST}, 0, number, sizeof number / sizeof *number);
    Tensor *x = input(c, 2, (int64_t[]){ROWS, N}, number);
    Tensor *y = input(c, 2, (int64_t[]){ROWS, K}, number + ROWS * N);
    const Linear w = {input(c, 2, (int64_t[]){N, K}, number + ROWS * (N + K)),
                      input(c, 1, (int64_t[]){N}, number + ROWS * (N + K) + N * K)};
    for (int recording = 0; recording < 2; recording++) {
        c->recording = recording;
        const Tensor *one = op_linear_dropout_add(c, x, y, &w, 0.3f, 5, 7);
        const Tensor *two = op_dropout_add(c, x, op_linear(c, y, &w), 0.3f, 5, 7);
        assert_memory_equal(one->data, two->data, tensor_bytes(two));
    }
}

static void test_end_of_a_residual_branch(void **state) {
    (void)state;
    for_devices(check_residual_branch);
}

int main(int argc, char **argv) {
    device_choose(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gelu_over_its_range),
        cmocka_unit_test(test_dropout_is_keyed_and_keeps_the_mean),
        cmocka_unit_test(test_segment_max_of_equals_and_nan),
        cmocka_unit_test(test_direction_of_a_zero_vector),
        cmocka_unit_test(test_angles_of_known_geometry),
        cmocka_unit_test(test_class_rows_come_back),
        cmocka_unit_test(test_norm_of_a_row_of_zeros),
        cmocka_unit_test(test_a_tensor_mixed_with_itself),
        cmocka_unit_test(test_end_of_a_residual_branch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
