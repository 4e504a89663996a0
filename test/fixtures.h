/* What the programs on fixtures (fixtures_wm.c, fixtures_icecube.c) share: reading a fixture,
 * comparing it with what our model makes, and the command line.
 *
 * A fixture is a safetensors file that holds what PyTorch made of the same parameters and inputs
 * (dev/ref): param.NAME, in.*, and the results out.*, grad.NAME and step1.NAME, of which any may be
 * left out; its config is JSON in the metadata. Gradients are as the optimiser takes them: clipped
 * where the config says so.
 *
 * Tolerances: out.*: 1e-4. grad.*: 1e-3 of the tensor's largest entry. step1.*: what the step
 * changed, to 1e-2 of the largest change, see fixture_compare_step. */
#ifndef TEST_FIXTURES_H
#define TEST_FIXTURES_H

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/attention.h"
#include "kernels/device.h"
#include "llmc_like/optim.h"
#include "llmc_like/options.h"
#include "llmc_like/params.h"
#include "llmc_like/safetensors.h"

#define FORWARD_TOLERANCE 1e-4
#define GRAD_TOLERANCE 1e-3
#define STEP_TOLERANCE 1e-2

typedef struct FixtureSettings {
    const char *device, *attn, *mask, *cache;
    int threads;
    bool list_attn, list_devices;
} FixtureSettings;

/* What every model's case has. */
typedef struct Fixture {
    const char *path;
    StFile file;
    Ctx c;
    Optim optim;
    double clip;        /* of the gradients' norm; 0: never */
    ParamTable *params; /* the model's own */
    int passed, failed;
} Fixture;

static inline void *fixture_alloc(size_t bytes) {
    void *p = malloc(bytes + !bytes);
    CHECK(p, "no memory for %zu bytes", bytes);
    return p;
}

static inline float *fixture_floats(int64_t n) { return fixture_alloc(sizeof(float) * (size_t)n); }

/* ---- reading ---- */

/* Number i of a fixture's tensor, whatever its dtype. */
static inline double fixture_number(const StEntry *t, int64_t i) {
    switch (t->dtype) {
        case DT_F32:
            return ((const float *)t->data)[i];
        case DT_F64:
            return ((const double *)t->data)[i];
        case DT_I64:
            return (double)((const int64_t *)t->data)[i];
        case DT_I32:
            return ((const int32_t *)t->data)[i];
        case DT_U8:
            return ((const uint8_t *)t->data)[i];
        default:
            break;
    }
    return (double)bf16_value(((const uint16_t *)t->data)[i]); /* what is left */
}

static inline const StEntry *fixture_find(const Fixture *f, const char *name, int ndim, Err *e) {
    const StEntry *t = st_find(&f->file, name);
    if (t && t->ndim == ndim) return t;
    err_set(e,
            t ? "%s has %d dimensions, not the %d of a fixture"
              : "it holds no %s; a fixture made by dev/ref does",
            name, t ? t->ndim : 0, ndim);
    return NULL;
}

/* The config's text; NULL and a sentence where there is none. */
static inline const char *fixture_config(const Fixture *f, Err *e) {
    const char *json = st_meta(&f->file, "config");
    if (!json) err_set(e, "there is no config in its metadata; a fixture made by dev/ref has one");
    return json;
}

typedef struct FixtureNumber {
    const char *name;
    double *value;
} FixtureNumber;

/* Those of the config's numbers that are there; the others keep their values. */
static inline void fixture_config_numbers(const char *json, const FixtureNumber *row, size_t n) {
    cJSON *o = cJSON_Parse(json);
    for (size_t i = 0; i < n; i++) {
        const cJSON *v = cJSON_GetObjectItemCaseSensitive(o, row[i].name);
        if (cJSON_IsNumber(v)) *row[i].value = v->valuedouble;
    }
    cJSON_Delete(o);
}

/* Every parameter from param.NAME, and no param.NAME without its parameter. */
static inline int fixture_read_parameters(Fixture *f, Err *e) {
    char key[96], text[2][SHAPE_TEXT + ST_SHAPE_TEXT];
    int given = 0;
    for (int i = 0; i < f->file.n; i++) {
        const char *name = f->file.entry[i].name;
        if (strncmp(name, "param.", 6)) continue;
        given++;
        if (!params_find(f->params, name + 6))
            return err_set(e, "its config gives a model without %s", name);
    }
    if (given < f->params->n)
        return err_set(e, "it holds %d parameters; its config asks for %d", given, f->params->n);
    for (int i = 0; i < f->params->n; i++) {
        const Tensor *w = &f->params->row[i].tensor;
        snprintf(key, sizeof key, "param.%s", w->name);
        const StEntry *t = fixture_find(f, key, w->ndim, e);
        if (!t) return -1;
        if (memcmp(t->shape, w->shape, sizeof *w->shape * (size_t)w->ndim))
            return err_set(e, "%s is %s; its config asks for %s", key, st_shape_text(t, text[0]),
                           tensor_shape_text(w, text[1]));
        float *x = fixture_floats(t->numel);
        for (int64_t j = 0; j < t->numel; j++) x[j] = (float)fixture_number(t, j);
        params_write(f->params, &f->params->row[i], x);
        free(x);
    }
    return 0;
}

/* ---- comparing ---- */

/* The entries of `got` against the fixture's tensor NAME, if it holds that. got may have another
 * shape of as many numbers. tolerance: absolute. skip: entries not to judge, or NULL. */
static inline void fixture_compare(Fixture *f, const char *name, const double *got, int64_t n,
                                   double tolerance, const bool *skip) {
    const StEntry *t = st_find(&f->file, name);
    if (!t) return;
    int64_t worst = -1;
    double largest = 0;
    for (int64_t i = 0; i < n && t->numel == n; i++) {
        const double error = fabs(got[i] - fixture_number(t, i));
        if (skip && skip[i] && isfinite(got[i])) continue;
        if (error <= largest) continue;
        worst = i; /* also where the error is NaN, which then stays the worst */
        largest = isnan(error) ? INFINITY : error;
    }
    if (t->numel == n && largest <= tolerance) {
        f->passed++;
        return;
    }
    f->failed++;
    if (t->numel != n)
        printf("%s: %s: %lld numbers, expected %lld\n", f->path, name, (long long)n,
               (long long)t->numel);
    else
        printf("%s: %s: off by %.3g (allowed %.3g) at %lld: %.9g, expected %.9g\n", f->path, name,
               largest, tolerance, (long long)worst, got[worst], fixture_number(t, worst));
}

static inline void fixture_compare_f32(Fixture *f, const char *name, const float *x, int64_t n,
                                       double tolerance) {
    double *got = fixture_alloc(sizeof *got * (size_t)n);
    for (int64_t i = 0; i < n; i++) got[i] = (double)x[i];
    fixture_compare(f, name, got, n, tolerance, NULL);
    free(got);
}

static inline double fixture_largest(const StEntry *t) {
    double largest = 0;
    for (int64_t i = 0; i < t->numel; i++) largest = fmax(largest, fabs(fixture_number(t, i)));
    return largest;
}

/* A copy of the parameter's gradient on the host. */
static inline float *fixture_gradient(const Fixture *f, const Tensor *w) {
    float *g = fixture_floats(tensor_numel(w));
    f->params->grads.memory->get(g, w->grad, sizeof *g * (size_t)tensor_numel(w));
    return g;
}

/* norm: of all gradients, before clipping. */
static inline void fixture_compare_gradients(Fixture *f, double norm) {
    const double factor = f->clip > 0 ? fmin(1, f->clip / (norm + 1e-6)) : 1;
    char key[96];
    for (int i = 0; i < f->params->n; i++) {
        const Tensor *w = &f->params->row[i].tensor;
        snprintf(key, sizeof key, "grad.%s", w->name);
        const StEntry *t = st_find(&f->file, key);
        if (!t) continue;
        const int64_t n = tensor_numel(w);
        double *got = fixture_alloc(sizeof *got * (size_t)n);
        float *g = fixture_gradient(f, w);
        for (int64_t j = 0; j < n; j++) got[j] = factor * (double)g[j];
        fixture_compare(f, key, got, n, GRAD_TOLERANCE * fixture_largest(t), NULL);
        free(g);
        free(got);
    }
}

/* Parameters after one step. They are compared by what the step changed: the change is small beside
 * the parameter and would hide in a tolerance of the whole. Adam's first step is lr * sign(g), so
 * entries whose gradient is within the gradient's own tolerance of 0 may go either way: those are
 * held to twice the largest change only. */
static inline void fixture_compare_step(Fixture *f) {
    char key[96];
    for (int i = 0; i < f->params->n; i++) {
        const Param *p = &f->params->row[i];
        const int64_t n = tensor_numel(&p->tensor);
        snprintf(key, sizeof key, "param.%s", p->tensor.name);
        const StEntry *before = st_find(&f->file, key);
        snprintf(key, sizeof key, "step1.%s", p->tensor.name);
        const StEntry *after = st_find(&f->file, key);
        if (!after || after->numel != n) {
            f->failed += after != NULL;
            if (after) printf("%s: %s has another shape than its parameter\n", f->path, key);
            continue;
        }
        float *w = fixture_floats(n), *g = fixture_gradient(f, &p->tensor);
        params_read(f->params, p, w);
        double change = 0, steepest = 0;
        for (int64_t j = 0; j < n; j++) {
            change = fmax(change, fabs(fixture_number(after, j) - fixture_number(before, j)));
            steepest = fmax(steepest, fabs((double)g[j]));
        }
        double *got = fixture_alloc(sizeof *got * (size_t)n);
        bool *undecided = fixture_alloc(sizeof *undecided * (size_t)n);
        for (int64_t j = 0; j < n; j++) {
            got[j] = (double)w[j];
            undecided[j] = p->group != GROUP_MUON &&
                           fabs((double)g[j]) <= GRAD_TOLERANCE * steepest &&
                           fabs(got[j] - fixture_number(after, j)) <= 2.01 * change;
        }
        fixture_compare(f, key, got, n, STEP_TOLERANCE * change, undecided);
        free(got);
        free(undecided);
        free(w);
        free(g);
    }
}

/* A result that nothing compares would pass unseen. known: the names of this model's out.*. */
static inline void fixture_refuse_unknown(Fixture *f, const char *const *known, size_t n) {
    for (int i = 0; i < f->file.n; i++) {
        const char *name = f->file.entry[i].name;
        bool found = !strncmp(name, "in.", 3) || !strncmp(name, "param.", 6);
        for (size_t j = 0; j < n; j++) found = found || !strcmp(name, known[j]);
        if (!strncmp(name, "grad.", 5)) found = params_find(f->params, name + 5);
        if (!strncmp(name, "step1.", 6)) found = params_find(f->params, name + 6);
        if (found) continue;
        f->failed++;
        printf("%s: %s: no result that is compared here\n", f->path, name);
    }
}

/* Ten or three steps on the fixture's one batch, or one; the first one's gradients and parameters
 * are compared, and all losses. loss: runs the forward of a new step. */
static inline void fixture_train(Fixture *f, Tensor *(*loss)(void *self), void *self) {
    double value[10], norm = 0;
    const int steps = st_find(&f->file, "out.losses10")  ? 10
                      : st_find(&f->file, "out.losses3") ? 3
                                                         : 1;
    for (int step = 0; step < steps; step++) {
        ctx_step_begin(&f->c);
        params_zero_grad(f->params);
        Tensor *l = loss(self);
        const double *at = ctx_fetch(&f->c, l->data);
        tape_backward(&f->c, l, 1);
        const double *norm_at = optim_step(&f->c, &f->optim, f->params, 1, f->clip);
        ctx_wait(&f->c, ctx_mark(&f->c));
        value[step] = *at;
        const double before_clipping = *norm_at;
        if (step) continue;
        norm = before_clipping;
        fixture_compare_gradients(f, norm);
        fixture_compare_step(f);
    }
    fixture_compare(f, "out.loss", value, 1, FORWARD_TOLERANCE, NULL);
    fixture_compare(f, "out.losses3", value, 3, FORWARD_TOLERANCE, NULL);
    fixture_compare(f, "out.losses10", value, 10, FORWARD_TOLERANCE, NULL);
    fixture_compare(f, "out.grad_norm", &norm, 1, GRAD_TOLERANCE * norm, NULL);
}

/* ---- the program ---- */

typedef struct FixtureProgram {
    const char *name, *default_mask;
    /* Compares the open file f->file, makes f->c (which the caller frees), counts in f->passed and
     * f->failed. -1 and a sentence, without the path, for what is no fixture of this model. */
    int (*run)(Fixture *f, const FixtureSettings *s, Err *e);
    /* A small mask of that text, for --list-attn. */
    int (*sample_mask)(Mask *m, const char *text, Err *e);
} FixtureProgram;

/* The backends that do this program's mask on the device. */
static inline int fixture_list_attn(const FixtureProgram *p, const FixtureSettings *s, Err *e) {
    Mask mask;
    const Ctx c = {.dev = device_find(s->device, e)};
    if (!c.dev || p->sample_mask(&mask, s->mask, e)) return -1;
    const AttnArgs shape = attn_shape(1, 1, mask.T, 16, &mask);
    for (int i = 0; attn_backends[i]; i++)
        if (!attn_backends[i]->supports(&c, &shape)) printf("%s\n", attn_backends[i]->name);
    mask_free(&mask);
    return 0;
}

/* One file, whatever it holds. */
static inline int fixture_file(Fixture *f, const FixtureProgram *p, const FixtureSettings *s,
                               Err *e) {
    if (st_open(f->path, &f->file, e)) return -1; /* its sentence begins with the path */
    int status = p->run(f, s, e);
    if (status == 0 && f->passed + f->failed == 0)
        status =
            err_set(e, "it holds no result to compare; a fixture has out.*, grad.* or step1.*");
    ctx_free(&f->c);
    st_close(&f->file);
    return status ? err_prefix(e, "%s: ", f->path) : 0;
}

static inline int fixture_files(const FixtureProgram *p, const FixtureSettings *s,
                                const Options *options, Err *e) {
    int passed = 0, failed = 0;
    for (int i = 0; i < options->n_args; i++) {
        Fixture f = {.path = options->arg[i]};
        if (fixture_file(&f, p, s, e)) {
            fprintf(stderr, "%s\n", e->text);
            f.failed++;
        }
        passed += f.passed;
        failed += f.failed;
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed ? -1 : 0;
}

/* Its exit status. */
static inline int fixture_main(const FixtureProgram *p, int argc, char **argv) {
    FixtureSettings s;
    const Option row[] = {
        {"attn", OPT_STRING, &s.attn, "sdpa", 0, 0, "attention backend", NULL},
        {"mask", OPT_STRING, &s.mask, p->default_mask, 0, 0,
         "the same mask in other words, for instance an expression", NULL},
        {"cache", OPT_STRING, &s.cache, NULL, 0, 0,
         "folder where compiled expressions are kept; without it nowhere", NULL},
        {"device", OPT_STRING, &s.device, "cpu", 0, 0, "where the ops run", NULL},
        {"threads", OPT_INT, &s.threads, "0", 0, 1024, "threads; 0: one a processor", NULL},
        {"list-attn", OPT_FLAG, &s.list_attn, "off", 0, 0,
         "print the names of the backends that do the mask on the device, and leave", NULL},
        {"list-devices", OPT_FLAG, &s.list_devices, "off", 0, 0,
         "print the names of the devices that this processor has, and leave", NULL},
    };
    Options options;
    Err e = {""};
    char usage[80];
    snprintf(usage, sizeof usage, "%s [options] FILE.safetensors...", p->name);
    options_init(&options, row, sizeof row / sizeof *row, true);
    int status = options_parse(&options, argc, argv, &e);
    if (status == 0 && options.help) {
        options_help(&options, usage, stdout);
    } else if (status == 0 && s.list_attn) {
        status = fixture_list_attn(p, &s, &e);
    } else if (status == 0 && s.list_devices) {
        for (int i = 0; devices[i]; i++)
            if (device_runs_here(devices[i])) printf("%s\n", devices[i]->name);
    } else if (status == 0 && options.n_args == 0) {
        status = err_set(&e, "no fixture was named; try ./%s test/fixtures/*.safetensors", p->name);
    } else if (status == 0) {
        status = fixture_files(p, &s, &options, &e);
        e.text[0] = 0; /* printed */
    }
    if (status && e.text[0]) fprintf(stderr, "%s\n", e.text);
    options_free(&options);
    return status ? 1 : 0;
}

#endif
