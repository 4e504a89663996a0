/* The optimisers: against formulas in double and against PyTorch, on every device that runs here or
 * on the one that the command line names; repetition and independence of the number of threads;
 * clipping; what a NaN may do. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc_like/optim.h"
#include "llmc_like/philox.h"
#include "llmc_like/safetensors.h"
#include "test/on_device.h"

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

static void rig_init_in(Rig *r, const char *device, const char *dtype, int threads, const Shape *s,
                        int n) {
    Err e = {""};
    if (ctx_init(&r->c, device, threads, 1, false, &e)) fail_msg("%s", e.text);
    if (ctx_set_dtype(&r->c, dtype, &e)) fail_msg("%s", e.text);
    params_init(&r->p, &r->c);
    for (int i = 0; i < n; i++) {
        params_add(&r->p, &r->t[i], s[i].group, INIT_NORMAL, 0.5f, s[i].ndim, s[i].shape, "%s",
                   s[i].name);
        if (s[i].ndim == 1) params_set_exact(&r->p);
    }
    if (params_commit(&r->p, true, &e)) fail_msg("%s", e.text);
    r->o = optim_default();
}

static void rig_init(Rig *r, const char *device, int threads, const Shape *s, int n) {
    rig_init_in(r, device, "float32", threads, s, n);
}

static void rig_free(Rig *r) {
    params_free(&r->p);
    ctx_free(&r->c);
}

/* A row's float32 numbers (its master, m, v, grad) on the host, freed by the caller. */
static float *numbers(const Rig *r, int i, const void *from) {
    const size_t bytes = sizeof(float) * (size_t)tensor_numel(&r->p.row[i].tensor);
    float *x = malloc(bytes);
    assert_non_null(x);
    r->c.dev->memory->get(x, from, bytes);
    return x;
}

static void set_grad(Rig *r, int i, const float *g) {
    Tensor *t = &r->p.row[i].tensor;
    r->c.dev->memory->put(t->grad, g, sizeof *g * (size_t)tensor_numel(t));
    t->grad_set = true;
}

/* The gradients of step `step`: normal, times `scale`. */
static void draw_grads(Rig *r, uint32_t step, float scale) {
    for (int i = 0; i < r->p.n; i++) {
        const int64_t n = tensor_numel(&r->p.row[i].tensor);
        float *g = malloc(sizeof *g * (size_t)n);
        assert_non_null(g);
        rng_normal((RngKey){3, 100 * step + (uint32_t)i, RNG_TEST}, 0, g, n);
        for (int64_t j = 0; j < n; j++) g[j] *= scale;
        set_grad(r, i, g);
        free(g);
    }
}

/* One update; the norm. */
static double update(Rig *r, double factor, double clip) {
    const double *norm = optim_step(&r->c, &r->o, &r->p, factor, clip);
    ctx_wait(&r->c, ctx_mark(&r->c));
    return *norm;
}

static void expect_same_state(const Rig *a, const Rig *b) {
    assert_int_equal(a->p.n, b->p.n);
    for (int i = 0; i < a->p.n; i++) {
        const Param *x = &a->p.row[i], *y = &b->p.row[i];
        const void *of[2][3] = {{x->master, x->m, x->v}, {y->master, y->m, y->v}};
        for (int k = 0; k < 3; k++) {
            if (!of[0][k]) continue;
            float *u = numbers(a, i, of[0][k]), *v = numbers(b, i, of[1][k]);
            assert_memory_equal(u, v, sizeof *u * (size_t)tensor_numel(&x->tensor));
            free(u);
            free(v);
        }
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

static void round_all(double *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] = (double)from_bf16(to_bf16((float)x[i]));
}

/* rounded: each matrix is stored in bf16, as the matrix units want them. */
static void naive_muon(const OptimRule *o, double lr, int64_t rows, int64_t cols, double *w,
                       double *m, const double *g, bool rounded) {
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
    if (rounded) round_all(x, n);
    for (int step = 0; step < o->ns_steps; step++) {
        naive_transpose(x, y, r, k);
        naive_product(x, y, a, r, k, r);
        if (rounded) round_all(a, r * r);
        naive_product(a, a, aa, r, r, r);
        for (int64_t i = 0; i < r * r; i++) a[i] = -4.7750 * a[i] + 2.0315 * aa[i];
        if (rounded) round_all(a, r * r);
        naive_product(a, x, y, r, r, k);
        for (int64_t i = 0; i < n; i++) x[i] = 3.4445 * x[i] + y[i];
        if (rounded) round_all(x, n);
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
        float *w = numbers(r, i, r->p.row[i].master);
        for (int64_t j = 0; j < n; j++) v[i].w[j] = (double)w[j];
        free(w);
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

static double naive_step(Naive *v, const Rig *r, int64_t t, double lr_factor, double clip,
                         bool rounded) {
    double norm = 0;
    for (int i = 0; i < r->p.n; i++) {
        float *g = numbers(r, i, r->p.row[i].tensor.grad);
        for (int64_t j = 0; j < tensor_numel(&r->p.row[i].tensor); j++) {
            v[i].g[j] = (double)g[j];
            norm += v[i].g[j] * v[i].g[j];
        }
        free(g);
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
                       v[i].m, v[i].g, rounded);
        else
            naive_adam(o, lr_factor * o->lr, t, n, v[i].w, v[i].m, v[i].v, v[i].g);
    }
    return norm;
}

/* Largest error of an array, relative to the largest of the exact values. */
static double error(const double *x, const double *exact, int64_t n) {
    double worst = 0, scale = 0;
    for (int64_t i = 0; i < n; i++) {
        const double d = fabs(x[i] - exact[i]);
        worst = d > worst || isnan(d) ? d : worst;
        scale = fmax(scale, fabs(exact[i]));
    }
    return scale > 0 ? worst / scale : worst;
}

/* ---- Tests ---- */

static const float GRAD_SCALE[] = {0.02f, 3.0f, 0.2f, 1e-4f};
static const double FACTOR[] = {0.5, 1, 0.25, 3};
enum { N_STEPS = 4 };

typedef double Errors[N_SHAPES][3]; /* of weights, m and v */

static double error_on(const Rig *r, int i, const float *of, const double *exact) {
    if (!of) return 0;
    const int64_t n = tensor_numel(&r->p.row[i].tensor);
    float *x = numbers(r, i, of);
    double *y = zeros(n);
    for (int64_t j = 0; j < n; j++) y[j] = (double)x[j];
    const double e = error(y, exact, n);
    free(x);
    free(y);
    return e;
}

/* A parameter in bf16 is its master's rounding, and an exact one (a vector here) is its master. */
static void expect_rounded(const Rig *r, int i) {
    const Param *row = &r->p.row[i];
    const int64_t n = tensor_numel(&row->tensor);
    assert_int_equal(row->tensor.dtype == DT_BF16, r->c.dtype == DT_BF16 && row->tensor.ndim > 1);
    if (row->tensor.dtype != DT_BF16) {
        assert_ptr_equal(row->tensor.data, row->master);
        return;
    }
    float *master = numbers(r, i, row->master);
    uint16_t *data = malloc(sizeof *data * (size_t)n);
    assert_non_null(data);
    r->c.dev->memory->get(data, row->tensor.data, sizeof *data * (size_t)n);
    for (int64_t j = 0; j < n; j++) assert_int_equal(data[j], to_bf16(master[j]));
    free(master);
    free(data);
}

/* Errors after the four steps on a device; plain: of the formulas with bf16's rounding. */
static void errors_on(const char *device, const char *dtype, int threads, Errors err,
                      Errors plain) {
    Rig r;
    Naive v[N_SHAPES], rounded[N_SHAPES];
    rig_init_in(&r, device, dtype, threads, SHAPES, N_SHAPES);
    for (int g = 0; g < OPTIM_GROUPS; g++) r.o.rule[g].weight_decay = 0.1;
    naive_init(v, &r);
    naive_init(rounded, &r);
    for (int s = 0; s < N_STEPS; s++) {
        draw_grads(&r, (uint32_t)s, GRAD_SCALE[s]);
        const double exact = naive_step(v, &r, s + 1, FACTOR[s], 10, false);
        if (plain) naive_step(rounded, &r, s + 1, FACTOR[s], 10, true);
        const double norm = update(&r, FACTOR[s], 10);
        assert_true(fabs(norm - exact) <= 1e-6 * exact);
    }
    assert_int_equal(r.o.t, N_STEPS);
    for (int i = 0; i < N_SHAPES; i++) {
        const Param *row = &r.p.row[i];
        const int64_t n = tensor_numel(&row->tensor);
        expect_rounded(&r, i);
        err[i][0] = error_on(&r, i, row->master, v[i].w);
        err[i][1] = error_on(&r, i, row->m, v[i].m);
        err[i][2] = error_on(&r, i, row->v, v[i].v);
        if (plain) plain[i][0] = error(rounded[i].w, v[i].w, n);
        if (plain) plain[i][1] = plain[i][2] = 0;
    }
    naive_free(v, N_SHAPES);
    naive_free(rounded, N_SHAPES);
    rig_free(&r);
}

static void expect_within_rule(const char *device, Errors err, Errors plain) {
    static const char *const part[] = {"weights", "m", "v"};
    for (int i = 0; i < N_SHAPES; i++)
        for (int k = 0; k < 3; k++)
            if (!(err[i][k] <= 2 * plain[i][k] + 5e-7))
                fail_msg("%s: %s %s: error %.3g, plain %.3g", device, SHAPES[i].name, part[k],
                         err[i][k], plain[i][k]);
}

/* The rule: at most twice the plain device's error, plus a floor; in bf16 twice the error of the
 * formulas whose matrices are rounded. */
static void follows_the_formulas(void **state) {
    (void)state;
    Errors plain, rounded, err;
    errors_on("plain", "float32", 1, plain, NULL);
    for (int i = 0; i < N_SHAPES; i++)
        for (int k = 0; k < 3; k++) assert_true(plain[i][k] < 1e-5);
    for (int d = 0; devices[d]; d++) {
        if (!device_tested(devices[d])) continue;
        errors_on(devices[d]->name, "float32", 2, err, NULL);
        expect_within_rule(devices[d]->name, err, plain);
        if (!devices[d]->has_bf16) continue;
        errors_on(devices[d]->name, "bfloat16", 2, err, rounded);
        for (int i = 0; i < N_SHAPES; i++)
            for (int k = 0; k < 3; k++) rounded[i][k] = fmax(rounded[i][k], plain[i][k]);
        expect_within_rule(devices[d]->name, err, rounded);
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
        if (!device_tested(devices[d])) continue;
        Rig r;
        float x[128], want[128];
        rig_init(&r, devices[d]->name, 2, shapes, 7);
        for (int i = 0; i < r.p.n; i++) {
            load_into(x, &f, "start", r.t[i]);
            params_write(&r.p, &r.p.row[i], x);
        }
        for (int s = 0; s < 3; s++) {
            const char *name[] = {"grad0", "grad1", "grad2"};
            for (int i = 0; i < r.p.n; i++) {
                load_into(x, &f, name[s], r.t[i]);
                set_grad(&r, i, x);
            }
            const double norm = update(&r, factor[s], 10);
            assert_int_equal(norm > 10, s == 1);
        }
        for (int i = 0; i < r.p.n; i++) {
            load_into(want, &f, "step3", r.t[i]);
            params_read(&r.p, &r.p.row[i], x);
            for (int64_t j = 0; j < tensor_numel(r.t[i]); j++) {
                if (!(fabsf(x[j] - want[j]) <= 1e-6f))
                    fail_msg("%s: %s[%d] is %.8g, PyTorch's %.8g", devices[d]->name, r.t[i]->name,
                             (int)j, (double)x[j], (double)want[j]);
            }
        }
        rig_free(&r);
    }
    st_close(&f);
}

static void same_bits_with(const char *device, const char *dtype, int one, int other) {
    Rig a, b;
    rig_init_in(&a, device, dtype, one, SHAPES, N_SHAPES);
    rig_init_in(&b, device, dtype, other, SHAPES, N_SHAPES);
    for (uint32_t s = 0; s < 2; s++) {
        draw_grads(&a, s, 0.3f);
        draw_grads(&b, s, 0.3f);
        assert_true(update(&a, 1, 10) == update(&b, 1, 10));
    }
    expect_same_state(&a, &b);
    rig_free(&a);
    rig_free(&b);
}

static void repetition_and_threads_change_nothing(void **state) {
    (void)state;
    for (int d = 0; devices[d]; d++) {
        if (!device_tested(devices[d])) continue;
        same_bits_with(devices[d]->name, "float32", 2, 2);
        if (devices[d]->has_bf16) same_bits_with(devices[d]->name, "bfloat16", 2, 2);
    }
    for (int threads = 2; threads <= 5 && !only_device; threads++)
        same_bits_with("cpu", "float32", 1, threads);
}

/* The device that is tested alone, or the first CPU. */
static const char *a_device(void) { return only_device ? only_device : "cpu"; }

/* Clipping at c is the same as gradients scaled beforehand; 0 is none, and a generous bound too. */
static void clips_the_norm(void **state) {
    (void)state;
    Rig a, b;
    for (int kind = 0; kind < 3; kind++) {
        rig_init(&a, a_device(), 2, SHAPES, N_SHAPES);
        rig_init(&b, a_device(), 2, SHAPES, N_SHAPES);
        draw_grads(&a, 0, 0.5f);
        draw_grads(&b, 0, 0.5f);
        double squares = 0;
        for (int i = 0; i < N_SHAPES; i++) {
            float *g = numbers(&a, i, a.t[i]->grad);
            for (int64_t j = 0; j < tensor_numel(a.t[i]); j++)
                squares += (double)g[j] * (double)g[j];
            free(g);
        }
        const double norm = sqrt(squares);
        const double clip = kind == 0 ? norm / 4 : kind == 1 ? 0 : norm * 4;
        const float factor = kind == 0 ? (float)(clip / (norm + 1e-6)) : 1.0f;
        for (int i = 0; i < N_SHAPES; i++) {
            float *g = numbers(&b, i, b.t[i]->grad);
            for (int64_t j = 0; j < tensor_numel(b.t[i]); j++) g[j] *= factor;
            set_grad(&b, i, g);
            free(g);
        }
        assert_true(fabs(update(&a, 1, clip) - norm) <= 1e-12 * norm);
        update(&b, 1, 0);
        for (int i = 0; i < N_SHAPES; i++) {
            float *x = numbers(&a, i, a.p.row[i].m), *y = numbers(&b, i, b.p.row[i].m);
            for (int64_t j = 0; j < tensor_numel(b.t[i]); j++)
                assert_true(fabsf(x[j] - y[j]) <= 1e-6f * fabsf(y[j]));
            free(x);
            free(y);
        }
        rig_free(&a);
        rig_free(&b);
    }
}

static void spoil_grad(Rig *r, int i, int64_t at, float by) {
    float *g = numbers(r, i, r->t[i]->grad);
    g[at] = by;
    set_grad(r, i, g);
    free(g);
}

static void nan_changes_nothing(void **state) {
    (void)state;
    Rig a, b;
    rig_init(&a, a_device(), 2, SHAPES, N_SHAPES);
    rig_init(&b, a_device(), 2, SHAPES, N_SHAPES);
    draw_grads(&a, 0, 1);
    draw_grads(&b, 0, 1);
    update(&a, 1, 10);
    update(&b, 1, 10);
    spoil_grad(&a, 3, 17, NAN);
    assert_true(isnan(update(&a, 1, 10)));
    spoil_grad(&a, 3, 17, INFINITY);
    assert_false(isfinite(update(&a, 1, 10)));
    if (a.c.dev->memory->is_host) assert_int_equal(a.o.t, 1);
    expect_same_state(&a, &b);
    rig_free(&a);
    rig_free(&b);
}

/* What no backward has reached counts as a gradient of zero: weights only decay. */
static void zero_gradients_only_decay(void **state) {
    (void)state;
    Rig r;
    rig_init(&r, a_device(), 2, SHAPES, N_SHAPES);
    for (int g = 0; g < OPTIM_GROUPS; g++) r.o.rule[g].weight_decay = 0.5;
    float *before[N_SHAPES];
    for (int i = 0; i < N_SHAPES; i++) before[i] = numbers(&r, i, r.p.row[i].master);
    draw_grads(&r, 0, NAN); /* stale values that must not be read */
    params_zero_grad(&r.p);
    assert_true(update(&r, 1, 10) == 0);
    for (int i = 0; i < N_SHAPES; i++) {
        const double lr = r.o.rule[SHAPES[i].group].lr;
        float *after = numbers(&r, i, r.p.row[i].master);
        assert_true(fabs((double)after[0] - (1 - 0.5 * lr) * (double)before[i][0]) <
                    1e-7 * fabs((double)before[i][0]));
        free(after);
        free(before[i]);
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

int main(int argc, char **argv) {
    device_choose(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(follows_the_formulas),
        cmocka_unit_test(agrees_with_pytorch),
        cmocka_unit_test(repetition_and_threads_change_nothing),
        cmocka_unit_test(clips_the_norm),
        cmocka_unit_test(nan_changes_nothing),
        cmocka_unit_test(zero_gradients_only_decay),
    };
    const struct CMUnitTest of_the_cpu[] = {cmocka_unit_test(dry_counts_the_scratch)};
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    return failed + (only_device ? 0 : cmocka_run_group_tests(of_the_cpu, NULL, NULL));
}
