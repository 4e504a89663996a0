/* The optimisers: against formulas in double and against PyTorch, on every device that runs here;
 * independence of the number of threads; clipping; what a NaN may do. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/device.h"
#include "llmc_like/optim.h"
#include "llmc_like/philox.h"
#include "llmc_like/safetensors.h"

typedef struct Shape {
    const char *name;
    ParamGroup group;
    int ndim;
    int64_t shape[3];
} Shape;

/* Odd sizes; the larger matrices have several panels of Newton-Schulz's triangles, the last of them
 * short. */
static const Shape SHAPES[] = {
    {"muon.tall", GROUP_MUON, 2, {201, 133}},  {"adam.vector", GROUP_ADAM, 1, {17}},
    {"muon.wide", GROUP_MUON, 2, {67, 150}},   {"muon.square", GROUP_MUON, 2, {35, 35}},
    {"adamw.cube", GROUP_ADAMW, 3, {3, 5, 7}}, {"muon.row", GROUP_MUON, 2, {1, 9}},
    {"muon.column", GROUP_MUON, 2, {19, 1}},   {"adam.large", GROUP_ADAM, 2, {331, 127}},
};
enum { N_SHAPES = sizeof SHAPES / sizeof *SHAPES };

typedef struct Rig {
    Ctx c;
    ParamTable p;
    Optim o;
    Tensor *t[N_SHAPES];
} Rig;

static void rig_init(Rig *r, const char *device, int threads, const Shape *s, int n) {
    Err e = {""};
    if (ctx_init(&r->c, device, threads, 1, false, &e)) fail_msg("%s", e.text);
    params_init(&r->p, &r->c);
    for (int i = 0; i < n; i++)
        params_add(&r->p, &r->t[i], s[i].group, INIT_NORMAL, 0.5f, s[i].ndim, s[i].shape, "%s",
                   s[i].name);
    if (params_commit(&r->p, true, &e)) fail_msg("%s", e.text);
    r->o = optim_default();
}

static void rig_free(Rig *r) {
    params_free(&r->p);
    ctx_free(&r->c);
}

/* The gradients of step `step`: normal, times `scale`. */
static void draw_grads(Rig *r, uint32_t step, float scale) {
    for (int i = 0; i < r->p.n; i++) {
        Tensor *t = &r->p.row[i].tensor;
        float *g = tensor_grad_f32(t);
        rng_normal((RngKey){3, 100 * step + (uint32_t)i, RNG_TEST}, 0, g, tensor_numel(t));
        for (int64_t j = 0; j < tensor_numel(t); j++) g[j] *= scale;
        t->grad_set = true;
    }
}

/* ---- The formulas in double ---- */

static void naive_adam(const OptimRule *o, double lr, int64_t t, int64_t n, double *w, double *m,
                       double *v, const double *g) {
    for (int64_t i = 0; i < n; i++) {
        m[i] = o->beta1 * m[i] + (1 - o->beta1) * g[i];
        v[i] = o->beta2 * v[i] + (1 - o->beta2) * g[i] * g[i];
        w[i] -= lr * o->weight_decay * w[i];
        w[i] -= lr * (m[i] / (1 - pow(o->beta1, (double)t))) /
                (sqrt(v[i] / (1 - pow(o->beta2, (double)t))) + o->eps);
    }
}

static double *zeros(int64_t n) {
    double *x = calloc((size_t)n, sizeof *x);
    assert_non_null(x);
    return x;
}

/* c (n, k) = a (n, m) b (m, k) */
static void naive_product(const double *a, const double *b, double *c, int64_t n, int64_t m,
                          int64_t k) {
    memset(c, 0, sizeof *c * (size_t)(n * k));
    for (int64_t i = 0; i < n; i++)
        for (int64_t l = 0; l < m; l++)
            for (int64_t j = 0; j < k; j++) c[i * k + j] += a[i * m + l] * b[l * k + j];
}

static void naive_transpose(const double *a, double *b, int64_t rows, int64_t cols) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++) b[j * rows + i] = a[i * cols + j];
}

static void naive_muon(const OptimRule *o, double lr, int64_t rows, int64_t cols, double *w,
                       double *m, const double *g) {
    const int64_t n = rows * cols, r = rows < cols ? rows : cols, k = n / r;
    double *x = zeros(n), *y = zeros(n), *a = zeros(r * r), *aa = zeros(r * r), norm = 0;
    for (int64_t i = 0; i < n; i++) {
        m[i] = o->momentum * m[i] + (1 - o->momentum) * g[i];
        y[i] = (1 - o->momentum) * g[i] + o->momentum * m[i];
        norm += y[i] * y[i];
    }
    for (int64_t i = 0; i < n; i++) y[i] /= sqrt(norm) + 1e-7;
    if (rows > cols)
        naive_transpose(y, x, rows, cols);
    else
        memcpy(x, y, sizeof *x * (size_t)n);
    for (int step = 0; step < o->ns_steps; step++) {
        naive_transpose(x, y, r, k);
        naive_product(x, y, a, r, k, r);
        naive_product(a, a, aa, r, r, r);
        for (int64_t i = 0; i < r * r; i++) a[i] = -4.7750 * a[i] + 2.0315 * aa[i];
        naive_product(a, x, y, r, r, k);
        for (int64_t i = 0; i < n; i++) x[i] = 3.4445 * x[i] + y[i];
    }
    if (rows > cols)
        naive_transpose(x, y, r, k);
    else
        memcpy(y, x, sizeof *x * (size_t)n);
    const double shape = sqrt(fmax(1, (double)rows / (double)cols));
    for (int64_t i = 0; i < n; i++) {
        w[i] -= lr * o->weight_decay * w[i];
        w[i] -= lr * shape * y[i];
    }
    free(x);
    free(y);
    free(a);
    free(aa);
}

typedef struct Naive {
    double *w, *m, *v, *g;
} Naive;

static void naive_init(Naive *v, const Rig *r) {
    for (int i = 0; i < r->p.n; i++) {
        const int64_t n = tensor_numel(&r->p.row[i].tensor);
        v[i] = (Naive){zeros(n), zeros(n), zeros(n), zeros(n)};
        for (int64_t j = 0; j < n; j++) v[i].w[j] = (double)tensor_f32(&r->p.row[i].tensor)[j];
    }
}

static void naive_free(Naive *v, int n) {
    for (int i = 0; i < n; i++) {
        free(v[i].w);
        free(v[i].m);
        free(v[i].v);
        free(v[i].g);
    }
}

static double naive_step(Naive *v, const Rig *r, int64_t t, double lr_factor, double clip) {
    double norm = 0;
    for (int i = 0; i < r->p.n; i++)
        for (int64_t j = 0; j < tensor_numel(&r->p.row[i].tensor); j++) {
            v[i].g[j] = (double)tensor_grad_f32(&r->p.row[i].tensor)[j];
            norm += v[i].g[j] * v[i].g[j];
        }
    norm = sqrt(norm);
    for (int i = 0; i < r->p.n; i++) {
        const Param *row = &r->p.row[i];
        const OptimRule *o = &r->o.rule[row->group];
        const int64_t n = tensor_numel(&row->tensor);
        for (int64_t j = 0; j < n; j++)
            if (clip > 0) v[i].g[j] *= fmin(1, clip / (norm + 1e-6));
        if (row->group == GROUP_MUON)
            naive_muon(o, lr_factor * o->lr, row->tensor.shape[0], row->tensor.shape[1], v[i].w,
                       v[i].m, v[i].g);
        else
            naive_adam(o, lr_factor * o->lr, t, n, v[i].w, v[i].m, v[i].v, v[i].g);
    }
    return norm;
}

/* Largest error of a float32 array, relative to the largest of the exact values. */
static double error(const float *x, const double *exact, int64_t n) {
    double worst = 0, scale = 0;
    for (int64_t i = 0; i < n; i++) {
        const double d = fabs((double)x[i] - exact[i]);
        worst = d > worst || isnan(d) ? d : worst;
        scale = fmax(scale, fabs(exact[i]));
    }
    return scale > 0 ? worst / scale : worst;
}

/* ---- Tests ---- */

static const float GRAD_SCALE[] = {0.02f, 3.0f, 0.2f, 1e-4f};
static const double FACTOR[] = {0.5, 1, 0.25, 3};
enum { N_STEPS = 4 };

/* Errors of weights and moments after the four steps on a device. */
static void errors_on(const char *device, int threads, double err[N_SHAPES][3]) {
    Rig r;
    Naive v[N_SHAPES];
    rig_init(&r, device, threads, SHAPES, N_SHAPES);
    for (int g = 0; g < OPTIM_GROUPS; g++) r.o.rule[g].weight_decay = 0.1;
    naive_init(v, &r);
    for (int s = 0; s < N_STEPS; s++) {
        draw_grads(&r, (uint32_t)s, GRAD_SCALE[s]);
        const double exact = naive_step(v, &r, s + 1, FACTOR[s], 10);
        const double norm = *optim_step(&r.c, &r.o, &r.p, FACTOR[s], 10);
        assert_true(fabs(norm - exact) <= 1e-6 * exact);
    }
    assert_int_equal(r.o.t, N_STEPS);
    for (int i = 0; i < N_SHAPES; i++) {
        const Param *row = &r.p.row[i];
        const int64_t n = tensor_numel(&row->tensor);
        err[i][0] = error(tensor_f32(&row->tensor), v[i].w, n);
        err[i][1] = error(row->m, v[i].m, n);
        err[i][2] = row->v ? error(row->v, v[i].v, n) : 0;
    }
    naive_free(v, N_SHAPES);
    rig_free(&r);
}

/* The rule: at most twice the plain device's error, plus a floor. */
static void follows_the_formulas(void **state) {
    (void)state;
    double plain[N_SHAPES][3], err[N_SHAPES][3];
    errors_on("plain", 1, plain);
    for (int d = 0; devices[d]; d++) {
        if (!device_runs_here(devices[d])) continue;
        errors_on(devices[d]->name, 2, err);
        for (int i = 0; i < N_SHAPES; i++)
            for (int k = 0; k < 3; k++)
                if (!(plain[i][k] < 1e-5) || !(err[i][k] <= 2 * plain[i][k] + 5e-7))
                    fail_msg("%s: %s %s: error %.3g, plain %.3g", devices[d]->name, SHAPES[i].name,
                             k == 0   ? "weights"
                             : k == 1 ? "m"
                                      : "v",
                             err[i][k], plain[i][k]);
    }
}

static void load_into(float *dst, const StFile *f, const char *prefix, const Tensor *t) {
    char key[96];
    snprintf(key, sizeof key, "%s.%s", prefix, t->name);
    const StEntry *entry = st_find(f, key);
    if (!entry || entry->numel != tensor_numel(t)) fail_msg("the fixture has no %s", key);
    memcpy(dst, entry->data, entry->bytes);
}

static void agrees_with_pytorch(void **state) {
    (void)state;
    const Shape shapes[] = {
        {"muon.tall", GROUP_MUON, 2, {13, 6}},    {"muon.wide", GROUP_MUON, 2, {5, 17}},
        {"muon.square", GROUP_MUON, 2, {8, 8}},   {"muon.row", GROUP_MUON, 2, {1, 7}},
        {"adam.matrix", GROUP_ADAM, 2, {7, 3}},   {"adam.vector", GROUP_ADAM, 1, {11}},
        {"adamw.cube", GROUP_ADAMW, 3, {2, 3, 5}}};
    const double factor[] = {0.5, 1, 0.25};
    Err e = {""};
    StFile f;
    if (st_open("test/fixtures/optim.safetensors", &f, &e)) fail_msg("%s", e.text);
    for (int d = 0; devices[d]; d++) {
        if (!device_runs_here(devices[d])) continue;
        Rig r;
        rig_init(&r, devices[d]->name, 2, shapes, 7);
        for (int i = 0; i < r.p.n; i++) load_into(tensor_f32(r.t[i]), &f, "start", r.t[i]);
        for (int s = 0; s < 3; s++) {
            const char *name[] = {"grad0", "grad1", "grad2"};
            for (int i = 0; i < r.p.n; i++) {
                load_into(tensor_grad_f32(r.t[i]), &f, name[s], r.t[i]);
                r.t[i]->grad_set = true;
            }
            const double norm = *optim_step(&r.c, &r.o, &r.p, factor[s], 10);
            assert_int_equal(norm > 10, s == 1);
        }
        for (int i = 0; i < r.p.n; i++) {
            float want[128];
            load_into(want, &f, "step3", r.t[i]);
            for (int64_t j = 0; j < tensor_numel(r.t[i]); j++) {
                const float got = tensor_f32(r.t[i])[j];
                if (!(fabsf(got - want[j]) <= 1e-6f))
                    fail_msg("%s: %s[%d] is %.8g, PyTorch's %.8g", devices[d]->name, r.t[i]->name,
                             (int)j, (double)got, (double)want[j]);
            }
        }
        rig_free(&r);
    }
    st_close(&f);
}

static void threads_change_nothing(void **state) {
    (void)state;
    Rig a, b;
    for (int threads = 2; threads <= 5; threads++) {
        rig_init(&a, "cpu", 1, SHAPES, N_SHAPES);
        rig_init(&b, "cpu", threads, SHAPES, N_SHAPES);
        for (uint32_t s = 0; s < 2; s++) {
            draw_grads(&a, s, 0.3f);
            draw_grads(&b, s, 0.3f);
            const double norm = *optim_step(&a.c, &a.o, &a.p, 1, 10);
            assert_true(norm == *optim_step(&b.c, &b.o, &b.p, 1, 10));
        }
        for (int i = 0; i < N_SHAPES; i++)
            assert_memory_equal(a.t[i]->data, b.t[i]->data, tensor_bytes(a.t[i]));
        rig_free(&a);
        rig_free(&b);
    }
}

/* Clipping at c is the same as gradients scaled beforehand; 0 is none, and a generous bound too. */
static void clips_the_norm(void **state) {
    (void)state;
    Rig a, b;
    for (int kind = 0; kind < 3; kind++) {
        rig_init(&a, "cpu", 2, SHAPES, N_SHAPES);
        rig_init(&b, "cpu", 2, SHAPES, N_SHAPES);
        draw_grads(&a, 0, 0.5f);
        draw_grads(&b, 0, 0.5f);
        double squares = 0;
        for (int i = 0; i < N_SHAPES; i++)
            squares += a.c.dev->sum_squares(&a.c, a.t[i]->grad, tensor_numel(a.t[i]));
        const double norm = sqrt(squares);
        const double clip = kind == 0 ? norm / 4 : kind == 1 ? 0 : norm * 4;
        const float factor = kind == 0 ? (float)(clip / (norm + 1e-6)) : 1.0f;
        for (int i = 0; i < N_SHAPES; i++)
            for (int64_t j = 0; j < tensor_numel(b.t[i]); j++) tensor_grad_f32(b.t[i])[j] *= factor;
        assert_true(*optim_step(&a.c, &a.o, &a.p, 1, clip) == norm);
        optim_step(&b.c, &b.o, &b.p, 1, 0);
        for (int i = 0; i < N_SHAPES; i++)
            for (int64_t j = 0; j < tensor_numel(b.t[i]); j++) {
                const float d = a.p.row[i].m[j] - b.p.row[i].m[j];
                assert_true(fabsf(d) <= 1e-6f * fabsf(b.p.row[i].m[j]));
            }
        rig_free(&a);
        rig_free(&b);
    }
}

static void nan_changes_nothing(void **state) {
    (void)state;
    Rig a, b;
    rig_init(&a, "cpu", 2, SHAPES, N_SHAPES);
    rig_init(&b, "cpu", 2, SHAPES, N_SHAPES);
    draw_grads(&a, 0, 1);
    draw_grads(&b, 0, 1);
    optim_step(&a.c, &a.o, &a.p, 1, 10);
    optim_step(&b.c, &b.o, &b.p, 1, 10);
    tensor_grad_f32(a.t[3])[17] = NAN;
    assert_true(isnan(*optim_step(&a.c, &a.o, &a.p, 1, 10)));
    tensor_grad_f32(a.t[3])[17] = INFINITY;
    assert_false(isfinite(*optim_step(&a.c, &a.o, &a.p, 1, 10)));
    assert_int_equal(a.o.t, 1);
    for (int i = 0; i < N_SHAPES; i++) {
        const size_t bytes = tensor_bytes(a.t[i]);
        assert_memory_equal(a.t[i]->data, b.t[i]->data, bytes);
        assert_memory_equal(a.p.row[i].m, b.p.row[i].m, bytes);
        if (a.p.row[i].v) assert_memory_equal(a.p.row[i].v, b.p.row[i].v, bytes);
    }
    rig_free(&a);
    rig_free(&b);
}

/* What no backward has reached counts as a gradient of zero: weights only decay. */
static void zero_gradients_only_decay(void **state) {
    (void)state;
    Rig r;
    rig_init(&r, "cpu", 2, SHAPES, N_SHAPES);
    for (int g = 0; g < OPTIM_GROUPS; g++) r.o.rule[g].weight_decay = 0.5;
    float before[N_SHAPES];
    for (int i = 0; i < N_SHAPES; i++) before[i] = tensor_f32(r.t[i])[0];
    draw_grads(&r, 0, NAN); /* stale values that must not be read */
    params_zero_grad(&r.p);
    assert_true(*optim_step(&r.c, &r.o, &r.p, 1, 10) == 0);
    for (int i = 0; i < N_SHAPES; i++) {
        const double lr = r.o.rule[SHAPES[i].group].lr;
        assert_true(fabs((double)tensor_f32(r.t[i])[0] - (1 - 0.5 * lr) * (double)before[i]) <
                    1e-7 * fabs((double)before[i]));
    }
    rig_free(&r);
}

static void dry_counts_the_scratch(void **state) {
    (void)state;
    Ctx c;
    ParamTable p;
    Tensor *slot;
    Err e = {""};
    assert_int_equal(ctx_init(&c, "cpu", 3, 1, true, &e), 0);
    params_init(&p, &c);
    params_add(&p, &slot, GROUP_MUON, INIT_ZERO, 0, 2, (int64_t[]){64, 32}, "w");
    assert_int_equal(params_commit(&p, true, &e), 0);
    Optim o = optim_default();
    assert_true(*optim_step(&c, &o, &p, 1, 10) == 0);
    assert_int_equal(o.t, 0);
    const size_t at_least = 3 * sizeof(float) * (2 * 64 * 32 + 2 * 32 * 32);
    assert_true(c.workspace.peak >= at_least && c.workspace.peak < at_least + 1024);
    assert_true(optim_flops(&o, &p) == 5.0 * (4 * 32 * 32 * 64 + 2 * 32 * 32 * 32));
    params_free(&p);
    ctx_free(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(follows_the_formulas),   cmocka_unit_test(agrees_with_pytorch),
        cmocka_unit_test(threads_change_nothing), cmocka_unit_test(clips_the_norm),
        cmocka_unit_test(nan_changes_nothing),    cmocka_unit_test(zero_gradients_only_decay),
        cmocka_unit_test(dry_counts_the_scratch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
