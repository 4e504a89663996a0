/* Arenas, pools, parameters and the tape. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "kernels/ops.h"
#include "llmc_like/params.h"

static void arena_grows_and_merges(void **state) {
    (void)state;
    Arena a;
    arena_init(&a, "test", &host_memory, false);
    char *first = arena_alloc(&a, 100);
    assert_int_equal((uintptr_t)first % ARENA_ALIGN, 0);
    memset(first, 1, 100);
    char *large = arena_alloc(&a, 16 << 20); /* beyond the first chunk: a second one */
    assert_int_equal(a.n_chunks, 2);
    large[(16 << 20) - 1] = 1;
    assert_int_equal(first[99], 1);
    const size_t peak = a.peak;
    arena_reset(&a);
    assert_int_equal(a.n_chunks, 1); /* merged: the same step fits one chunk now */
    arena_alloc(&a, 100);
    arena_alloc(&a, 16 << 20);
    assert_int_equal(a.n_chunks, 1);
    assert_int_equal(a.peak, peak);
    arena_free(&a);
}

/* What is reserved comes from one block after a reset, and a little more needs no new one. */
static void arena_reserves_ahead(void **state) {
    Arena a;
    Err e = {""};
    (void)state;
    arena_init(&a, "test", &host_memory, false);
    assert_int_equal(arena_reserve(&a, 8 << 20, &e), 0);
    assert_int_equal(arena_reserve(&a, 9 << 20, &e), 0);
    arena_reset(&a);
    assert_int_equal(a.n_chunks, 1);
    assert_true(a.chunk[0].size >= 12 << 20);
    assert_int_equal(arena_reserve(&a, 12 << 20, &e), 0);
    arena_alloc(&a, 12 << 20);
    assert_int_equal(a.n_chunks, 1);
    assert_int_equal(arena_reserve(&a, 64 << 20, &e), 0);
    arena_reset(&a);
    assert_true(a.n_chunks == 1 && a.chunk[0].size >= 64 << 20);
    arena_free(&a);
}

static void dry_arena_counts_the_same(void **state) {
    (void)state;
    Arena real, dry;
    arena_init(&real, "real", &host_memory, false);
    arena_init(&dry, "dry", &host_memory, true);
    for (size_t i = 1; i < 50; i++) {
        assert_non_null(arena_alloc(&real, 37 * i));
        assert_null(arena_alloc(&dry, 37 * i));
    }
    assert_int_equal(real.peak, dry.peak);
    arena_free(&real);
}

static void pool_gives_blocks_again(void **state) {
    (void)state;
    Arena a;
    Pool p;
    arena_init(&a, "test", &host_memory, false);
    pool_init(&p, &a);
    void *x = pool_take(&p, 1000), *y = pool_take(&p, 1000), *z = pool_take(&p, 64);
    assert_ptr_not_equal(x, y);
    pool_give(&p, x, 1000);
    pool_give(&p, z, 64);
    assert_ptr_equal(pool_take(&p, 1000), x);
    assert_ptr_equal(pool_take(&p, 64), z);
    assert_ptr_not_equal(pool_take(&p, 1000), y);
    pool_free(&p);
    arena_free(&a);
}

static void refuses_more_than_the_machine_has(void **state) {
    (void)state;
    Arena a;
    Err e = {{0}};
    arena_init(&a, "activations", &host_memory, false);
    assert_int_equal(arena_commit(&a, (size_t)1 << 60, &e), -1);
    assert_non_null(strstr(e.text, "activations"));
    assert_int_equal(a.n_chunks, 0);
}

/* y = silu(x W' + b), z = y + silu(y), loss = mean((z - 0)^2), on the plain device in float64. */
static double small_loss(Ctx *c, Tensor *x, const Linear *w, Tensor *target) {
    ctx_step_begin(c);
    Tensor *y = op_silu(c, op_linear(c, x, w));
    Tensor *loss = op_mse_loss(c, op_add(c, op_silu(c, y), y), target);
    const double value = *tensor_f64(loss);
    if (c->recording) tape_backward(c, loss, 1.0);
    return value;
}

static void tape_gives_the_chain_rule(void **state) {
    (void)state;
    enum { ROWS = 3, IN = 4, OUT = 5 };
    double xs[ROWS * IN], ws[OUT * IN], bs[OUT], gw[OUT * IN], gb[OUT], zero[ROWS * OUT] = {0};
    for (int i = 0; i < ROWS * IN; i++) xs[i] = sin(i + 1.0);
    for (int i = 0; i < OUT * IN; i++) ws[i] = cos(2.0 * i);
    for (int i = 0; i < OUT; i++) bs[i] = 0.1 * i;
    Tensor x = {.data = xs, .dtype = DT_F64, .ndim = 2, .shape = {ROWS, IN}, .name = "x"};
    Tensor w = {
        .data = ws, .grad = gw, .dtype = DT_F64, .ndim = 2, .shape = {OUT, IN}, .name = "w"};
    Tensor b = {.data = bs, .grad = gb, .dtype = DT_F64, .ndim = 1, .shape = {OUT}, .name = "b"};
    Tensor target = {
        .data = zero, .dtype = DT_F64, .ndim = 2, .shape = {ROWS, OUT}, .name = "target"};
    w.needs_grad = w.is_param = b.needs_grad = b.is_param = true;
    Ctx c;
    Err e = {{0}};
    assert_int_equal(ctx_init(&c, "plain", 1, 1, false, &e), 0);
    c.dtype = DT_F64;
    Linear linear = {&w, &b};
    small_loss(&c, &x, &linear, &target);
    double once[OUT * IN];
    memcpy(once, gw, sizeof once);
    c.recording = false;
    for (int i = 0; i < OUT * IN; i++) { /* against finite differences */
        const double h = 1e-5, keep = ws[i];
        ws[i] = keep + h;
        const double up = small_loss(&c, &x, &linear, &target);
        ws[i] = keep - h;
        const double down = small_loss(&c, &x, &linear, &target);
        ws[i] = keep;
        assert_true(fabs((up - down) / (2 * h) - gw[i]) < 1e-8);
    }
    c.recording = true;
    assert_true(w.grad_set); /* a second backward adds, until grad_set is cleared */
    small_loss(&c, &x, &linear, &target);
    for (int i = 0; i < OUT * IN; i++) assert_true(fabs(gw[i] - 2 * once[i]) < 1e-12);
    w.grad_set = b.grad_set = false;
    small_loss(&c, &x, &linear, &target);
    for (int i = 0; i < OUT * IN; i++) assert_true(fabs(gw[i] - once[i]) < 1e-12);
    ctx_free(&c);
}

static void parameters_are_drawn_by_their_number(void **state) {
    (void)state;
    ParamTable p[2];
    Tensor *w, *b, *extra;
    Err e = {{0}};
    Ctx c;
    assert_int_equal(ctx_init(&c, "plain", 1, 7, false, &e), 0);
    for (int i = 0; i < 2; i++) {
        params_init(&p[i], &c);
        params_add_linear(&p[i], &w, &b, GROUP_MUON, INIT_UNIFORM, 30, 100, "layer");
        if (i) params_add(&p[i], &extra, GROUP_ADAM, INIT_NORMAL, 2, 1, (int64_t[]){5000}, "extra");
        assert_int_equal(params_commit(&p[i], true, &e), 0);
    }
    assert_memory_equal(p[0].row[0].tensor.data, p[1].row[0].tensor.data, 3000 * sizeof(float));
    float most = 0;
    double squares = 0;
    for (int i = 0; i < 3000; i++) most = fmaxf(most, fabsf(tensor_f32(w)[i]));
    for (int i = 0; i < 5000; i++) squares += (double)tensor_f32(extra)[i] * tensor_f32(extra)[i];
    assert_true(most <= 0.1f && most > 0.099f); /* 1 / sqrt(100) */
    assert_true(fabs(squares / 5000 - 4) < 0.4);
    assert_int_equal(params_find(&p[1], "layer.bias")->group, GROUP_ADAM);
    assert_null(params_find(&p[0], "layer.weight")->v); /* Muon keeps one moment */
    assert_null(params_find(&p[0], "extra"));
    params_free(&p[0]);
    params_free(&p[1]);
    ctx_free(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arena_grows_and_merges),
        cmocka_unit_test(arena_reserves_ahead),
        cmocka_unit_test(dry_arena_counts_the_same),
        cmocka_unit_test(pool_gives_blocks_again),
        cmocka_unit_test(refuses_more_than_the_machine_has),
        cmocka_unit_test(tape_gives_the_chain_rule),
        cmocka_unit_test(parameters_are_drawn_by_their_number),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
