/* test_wm: runs the world model on fixtures, which hold what PyTorch made of the same parameters
 * and inputs (dev/ref/wm_ref.py), and compares every result: velocity, loss, gradients, parameters
 * after one optimiser step, the losses of three or ten steps, dreamt frames.
 *
 * Tolerances: out.*: 1e-4. grad.*: 1e-3 of the tensor's largest entry. step1.*: what the step
 * changed, to 1e-2 of the largest change, see compare_step. Fixtures hold pictures as (B, F, 3, h,
 * w), the model has channels last. */
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/device.h"
#include "llmc_like/optim.h"
#include "llmc_like/options.h"
#include "llmc_like/safetensors.h"
#include "models/wm.h"
#include "models/wm_sample.h"

static const double FORWARD_TOLERANCE = 1e-4, GRAD_TOLERANCE = 1e-3, STEP_TOLERANCE = 1e-2;

typedef struct Settings {
    const char *device, *attn, *mask;
    int threads;
    bool list_attn, list_devices;
} Settings;

/* One fixture and the model that it is about. */
typedef struct Case {
    const char *path;
    StFile file;
    WmConfig cfg;
    Mask mask;
    Ctx c;
    Wm m;
    Optim optim;
    double clip;
    int sample_steps;
    int64_t B, F;
    float *x0, *z, *t; /* (B, F, h, w, 3), (B, F) */
    int32_t *actions;  /* (B, F)                  */
    int passed, failed;
} Case;

static float *new_floats(int64_t n) {
    float *x = malloc(sizeof *x * (size_t)n);
    CHECK(x, "no memory for %lld numbers", (long long)n);
    return x;
}

/* ---- reading ---- */

/* Number i of a fixture's tensor, whatever its dtype. */
static double number(const StEntry *t, int64_t i) {
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
    const uint32_t bits = (uint32_t)((const uint16_t *)t->data)[i] << 16; /* bfloat16 */
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static const StEntry *find(const Case *k, const char *name, int ndim, Err *e) {
    const StEntry *t = st_find(&k->file, name);
    if (t && t->ndim == ndim) return t;
    err_set(e,
            t ? "%s has %d dimensions, not the %d of a fixture"
              : "it holds no %s; a fixture of dev/ref/wm_ref.py does",
            name, t ? t->ndim : 0, ndim);
    return NULL;
}

/* Pictures (n, frames, 3, h, w), as floats with channels last; the caller frees them. */
static float *read_pictures(const Case *k, const char *name, int64_t n, int64_t frames, Err *e) {
    const StEntry *t = find(k, name, 5, e);
    const int64_t h = k->cfg.height, w = k->cfg.width;
    if (!t) return NULL;
    if (t->shape[0] != n || t->shape[1] != frames || t->shape[2] != 3 || t->shape[3] != h ||
        t->shape[4] != w) {
        char text[ST_SHAPE_TEXT];
        err_set(e, "%s is %s, not (%lld, %lld, 3, %lld, %lld)", name, st_shape_text(t, text),
                (long long)n, (long long)frames, (long long)h, (long long)w);
        return NULL;
    }
    float *x = new_floats(t->numel);
    for (int64_t i = 0; i < n * frames; i++)
        for (int64_t ch = 0; ch < 3; ch++)
            for (int64_t p = 0; p < h * w; p++)
                x[(i * h * w + p) * 3 + ch] = (float)number(t, (i * 3 + ch) * h * w + p);
    return x;
}

/* Action ids of a tensor (n, frames), in an array that the caller frees. */
static int32_t *read_actions(const Case *k, const char *name, int64_t n, int64_t frames, Err *e) {
    const StEntry *t = find(k, name, 2, e);
    if (!t) return NULL;
    if (t->shape[0] != n || t->shape[1] != frames) {
        err_set(e, "%s has not the (%lld, %lld) of the frames", name, (long long)n,
                (long long)frames);
        return NULL;
    }
    int32_t *ids = malloc(sizeof *ids * (size_t)t->numel);
    CHECK(ids, "no memory for %lld actions", (long long)t->numel);
    for (int64_t i = 0; i < t->numel; i++) {
        const double id = number(t, i);
        if (!(id >= 0 && id < k->cfg.n_actions)) {
            err_set(e, "%s holds %g; actions are 0 to %d", name, id, k->cfg.n_actions - 1);
            free(ids);
            return NULL;
        }
        ids[i] = (int32_t)id;
    }
    return ids;
}

static int read_inputs(Case *k, Err *e) {
    const StEntry *frames = find(k, "in.frames", 5, e);
    if (!frames) return -1;
    k->B = frames->shape[0];
    k->F = frames->shape[1];
    if (k->B < 1 || k->F < 1 || k->F > k->cfg.n_frames)
        return err_set(e, "in.frames has %lld clips of %lld frames; the window is %d",
                       (long long)k->B, (long long)k->F, k->cfg.n_frames);
    const StEntry *ts = find(k, "in.ts", 2, e);
    if (!ts) return -1;
    if (ts->shape[0] != k->B || ts->shape[1] != k->F)
        return err_set(e, "in.ts has not the (%lld, %lld) of in.frames", (long long)k->B,
                       (long long)k->F);
    k->t = new_floats(ts->numel);
    for (int64_t i = 0; i < ts->numel; i++) k->t[i] = (float)number(ts, i);
    k->x0 = read_pictures(k, "in.frames", k->B, k->F, e);
    if (k->x0) k->z = read_pictures(k, "in.noise", k->B, k->F, e);
    if (k->z) k->actions = read_actions(k, "in.actions", k->B, k->F, e);
    return k->actions ? 0 : -1;
}

/* Every parameter from param.NAME, and no param.NAME without its parameter. */
static int read_parameters(Case *k, Err *e) {
    char key[96], text[2][SHAPE_TEXT + ST_SHAPE_TEXT];
    int given = 0;
    for (int i = 0; i < k->file.n; i++) {
        const char *name = k->file.entry[i].name;
        if (strncmp(name, "param.", 6)) continue;
        given++;
        if (!params_find(&k->m.params, name + 6))
            return err_set(e, "its config gives a model without %s", name);
    }
    if (given < k->m.params.n)
        return err_set(e, "it holds %d parameters; its config asks for %d", given, k->m.params.n);
    for (int i = 0; i < k->m.params.n; i++) {
        const Tensor *w = &k->m.params.row[i].tensor;
        snprintf(key, sizeof key, "param.%s", w->name);
        const StEntry *t = find(k, key, w->ndim, e);
        if (!t) return -1;
        if (memcmp(t->shape, w->shape, sizeof *w->shape * (size_t)w->ndim))
            return err_set(e, "%s is %s; its config asks for %s", key, st_shape_text(t, text[0]),
                           tensor_shape_text(w, text[1]));
        for (int64_t j = 0; j < t->numel; j++) tensor_f32(w)[j] = (float)number(t, j);
    }
    return 0;
}

static int read_config(Case *k, Err *e) {
    const char *json = st_meta(&k->file, "config");
    if (!json)
        return err_set(e,
                       "there is no config in its metadata; a fixture of dev/ref/wm_ref.py "
                       "has one");
    if (wm_config_parse(&k->cfg, json, e)) return -1;
    k->optim = optim_default();
    k->clip = 10;
    OptimRule *muon = &k->optim.rule[GROUP_MUON], *adam = &k->optim.rule[GROUP_ADAM];
    double steps = 3;
    const struct {
        const char *name;
        double *value;
    } row[] = {{"lr_muon", &muon->lr},  {"lr_adam", &adam->lr},
               {"beta1", &adam->beta1}, {"beta2", &adam->beta2},
               {"grad_clip", &k->clip}, {"weight_decay", &adam->weight_decay},
               {"sample_steps", &steps}};
    cJSON *o = cJSON_Parse(json);
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        const cJSON *v = cJSON_GetObjectItemCaseSensitive(o, row[i].name);
        if (cJSON_IsNumber(v)) *row[i].value = v->valuedouble;
    }
    cJSON_Delete(o);
    muon->weight_decay = adam->weight_decay;
    k->sample_steps = (int)steps;
    if (!(steps >= 1 && steps <= 1000)) return err_set(e, "its config has sample_steps %g", steps);
    return 0;
}

/* ---- comparing ---- */

/* The entries of `got` against the fixture's tensor NAME, if it holds that. got may have another
 * shape of as many numbers. tolerance: absolute. skip: entries not to judge, or NULL. */
static void compare(Case *k, const char *name, const double *got, int64_t n, double tolerance,
                    const bool *skip) {
    const StEntry *t = st_find(&k->file, name);
    if (!t) return;
    int64_t worst = -1;
    double largest = 0;
    for (int64_t i = 0; i < n && t->numel == n; i++) {
        const double error = fabs(got[i] - number(t, i));
        if (skip && skip[i] && isfinite(got[i])) continue;
        if (error <= largest) continue;
        worst = i; /* also where the error is NaN, which then stays the worst */
        largest = isnan(error) ? INFINITY : error;
    }
    if (t->numel == n && largest <= tolerance) {
        k->passed++;
        return;
    }
    k->failed++;
    if (t->numel != n)
        printf("%s: %s: %lld numbers, expected %lld\n", k->path, name, (long long)n,
               (long long)t->numel);
    else
        printf("%s: %s: off by %.3g (allowed %.3g) at %lld: %.9g, expected %.9g\n", k->path, name,
               largest, tolerance, (long long)worst, got[worst], number(t, worst));
}

static double largest_entry(const StEntry *t) {
    double largest = 0;
    for (int64_t i = 0; i < t->numel; i++) largest = fmax(largest, fabs(number(t, i)));
    return largest;
}

/* x (n, h, w, 3) against a tensor of as many pictures (n, 3, h, w). */
static void compare_pictures(Case *k, const char *name, const float *x, int64_t n) {
    const int64_t area = (int64_t)k->cfg.height * k->cfg.width;
    double *got = malloc(sizeof *got * (size_t)(n * area * 3));
    CHECK(got, "no memory for %lld pictures", (long long)n);
    for (int64_t i = 0; i < n; i++)
        for (int64_t p = 0; p < area; p++)
            for (int64_t ch = 0; ch < 3; ch++)
                got[(i * 3 + ch) * area + p] = (double)x[(i * area + p) * 3 + ch];
    compare(k, name, got, n * area * 3, FORWARD_TOLERANCE, NULL);
    free(got);
}

static void compare_gradients(Case *k) {
    char key[96];
    for (int i = 0; i < k->m.params.n; i++) {
        const Tensor *w = &k->m.params.row[i].tensor;
        snprintf(key, sizeof key, "grad.%s", w->name);
        const StEntry *t = st_find(&k->file, key);
        if (!t) continue;
        const int64_t n = tensor_numel(w);
        double *got = calloc((size_t)n, sizeof *got);
        CHECK(got, "no memory for %lld numbers", (long long)n);
        for (int64_t j = 0; j < n && w->grad_set; j++) got[j] = (double)tensor_grad_f32(w)[j];
        compare(k, key, got, n, GRAD_TOLERANCE * largest_entry(t), NULL);
        free(got);
    }
}

/* Parameters after one step. They are compared by what the step changed: the change is small beside
 * the parameter and would hide in a tolerance of the whole. Adam's first step is lr * sign(g), so
 * entries whose gradient is within the gradient's own tolerance of 0 may go either way: those are
 * held to twice the largest change only. */
static void compare_step(Case *k) {
    char key[96];
    for (int i = 0; i < k->m.params.n; i++) {
        const Param *p = &k->m.params.row[i];
        const int64_t n = tensor_numel(&p->tensor);
        snprintf(key, sizeof key, "param.%s", p->tensor.name);
        const StEntry *before = st_find(&k->file, key);
        snprintf(key, sizeof key, "step1.%s", p->tensor.name);
        const StEntry *after = st_find(&k->file, key);
        if (!after || after->numel != n) {
            k->failed += after != NULL;
            if (after) printf("%s: %s has another shape than its parameter\n", k->path, key);
            continue;
        }
        const float *w = tensor_f32(&p->tensor), *g = tensor_grad_f32(&p->tensor);
        double change = 0, steepest = 0;
        for (int64_t j = 0; j < n; j++) {
            change = fmax(change, fabs(number(after, j) - number(before, j)));
            steepest = fmax(steepest, fabs((double)g[j]));
        }
        double *got = malloc(sizeof *got * (size_t)n);
        bool *undecided = calloc((size_t)n, sizeof *undecided);
        CHECK(got && undecided, "no memory for %lld numbers", (long long)n);
        for (int64_t j = 0; j < n; j++) {
            got[j] = (double)w[j];
            undecided[j] = p->group == GROUP_ADAM &&
                           fabs((double)g[j]) <= GRAD_TOLERANCE * steepest &&
                           fabs(got[j] - number(after, j)) <= 2.01 * change;
        }
        compare(k, key, got, n, STEP_TOLERANCE * change, undecided);
        free(got);
        free(undecided);
    }
}

/* A result that nothing above compares would pass unseen. */
static void refuse_unknown(Case *k) {
    static const char *const known[] = {"out.velocity", "out.loss",        "out.losses3",
                                        "out.losses10", "out.sample.cfg1", "out.sample.cfg1.5"};
    for (int i = 0; i < k->file.n; i++) {
        const char *name = k->file.entry[i].name;
        bool found = !strncmp(name, "in.", 3) || !strncmp(name, "param.", 6);
        for (size_t j = 0; j < sizeof known / sizeof *known; j++)
            found = found || !strcmp(name, known[j]);
        if (!strncmp(name, "grad.", 5)) found = params_find(&k->m.params, name + 5);
        if (!strncmp(name, "step1.", 6)) found = params_find(&k->m.params, name + 6);
        if (found) continue;
        k->failed++;
        printf("%s: %s: no result that is compared here\n", k->path, name);
    }
}

/* ---- running ---- */

static int run_sampling(Case *k, const char *name, float guidance, Err *e) {
    if (!st_find(&k->file, name)) return 0;
    const StEntry *t = find(k, "in.sample.noise", 5, e);
    if (!t) return -1;
    const int64_t n = t->shape[1], size = (int64_t)k->cfg.height * k->cfg.width * 3;
    float *x = read_pictures(k, "in.sample.noise", 1, n, e);
    if (!x) return -1;
    WmSampler sampler = {0};
    int32_t *actions = read_actions(k, "in.sample.actions", 1, n, e);
    int status =
        actions ? wm_sampler_init(&sampler, &k->m, k->sample_steps, guidance, false, e) : -1;
    if (status == 0) {
        for (int64_t i = 0; i < n; i++)
            wm_sampler_frame(&k->c, &sampler, actions[i], x + i * size, x + i * size);
        compare_pictures(k, name, x, n);
    }
    wm_sampler_free(&sampler);
    free(actions);
    free(x);
    return status;
}

typedef struct Inputs {
    Tensor *x0, *z, *t, *actions;
} Inputs;

static Inputs begin_step(Case *k) {
    const int64_t pictures[] = {k->B, k->F, k->cfg.height, k->cfg.width, 3};
    ctx_step_begin(&k->c);
    return (Inputs){ctx_input(&k->c, "x0", DT_F32, 5, pictures, k->x0),
                    ctx_input(&k->c, "z", DT_F32, 5, pictures, k->z),
                    ctx_input(&k->c, "t", DT_F32, 2, pictures, k->t),
                    ctx_input(&k->c, "actions", DT_I32, 2, pictures, k->actions)};
}

static void run_velocity(Case *k) {
    k->c.recording = false;
    const Inputs in = begin_step(k);
    const Flow flow = op_flow_noise(&k->c, in.x0, in.z, in.t);
    const Tensor *v = wm_forward(&k->c, &k->m, flow.x_t, in.t, in.actions, NULL);
    compare_pictures(k, "out.velocity", tensor_f32(v), k->B * k->F);
    k->c.recording = true;
}

/* Three or ten steps on the fixture's one batch; gradients and parameters are compared after the
 * first. */
static void run_training(Case *k) {
    double loss[10];
    const int steps = st_find(&k->file, "out.losses10") ? 10 : 3;
    for (int step = 0; step < steps; step++) {
        const Inputs in = begin_step(k);
        params_zero_grad(&k->m.params);
        Tensor *l = wm_loss(&k->c, &k->m, in.x0, in.z, in.t, in.actions);
        loss[step] = *tensor_f64(l);
        tape_backward(&k->c, l, 1);
        if (step == 0) compare_gradients(k);
        optim_step(&k->c, &k->optim, &k->m.params, 1, k->clip);
        if (step == 0) compare_step(k);
    }
    compare(k, "out.loss", loss, 1, FORWARD_TOLERANCE, NULL);
    compare(k, "out.losses3", loss, 3, FORWARD_TOLERANCE, NULL);
    compare(k, "out.losses10", loss, 10, FORWARD_TOLERANCE, NULL);
}

static int choose_attention(Case *k, const char *name, Err *e) {
    const int T = wm_tokens_per_frame(&k->cfg) * (int)k->F, H = k->cfg.n_heads;
    const int D = k->cfg.d_model / H;
    const AttnStride rows = {(int64_t)T * H * D, H * D, D};
    const AttnArgs shape = {.B = (int)k->B,
                            .H = H,
                            .Tq = T,
                            .Tk = T,
                            .D = D,
                            .dtype = DT_F32,
                            .scale = 1,
                            .mask = &k->mask,
                            .qs = rows,
                            .ks = rows,
                            .vs = rows,
                            .os = rows};
    return attn_choose(&k->c, name, &shape, e);
}

static int run_case(Case *k, const Settings *s, Err *e) {
    if (st_open(k->path, &k->file, e)) return -1; /* its sentence begins with the path */
    int status = read_config(k, e) || read_inputs(k, e) ||
                 mask_init(&k->mask, s->mask, "", wm_tokens(&k->cfg), wm_tokens_per_frame(&k->cfg),
                           (int)k->B, k->cfg.n_heads, e) ||
                 ctx_init(&k->c, s->device, s->threads, 0, false, e) ||
                 choose_attention(k, s->attn, e) ||
                 wm_init(&k->m, &k->cfg, &k->mask, 0, true, false, e) || read_parameters(k, e);
    if (status == 0) {
        refuse_unknown(k);
        run_velocity(k);
        status = run_sampling(k, "out.sample.cfg1", 1, e) ||
                 run_sampling(k, "out.sample.cfg1.5", 1.5f, e);
    }
    if (status == 0) run_training(k);
    if (status == 0 && k->passed + k->failed == 0)
        status =
            err_set(e, "it holds no result to compare; a fixture has out.*, grad.* or step1.*");
    return status ? err_prefix(e, "%s: ", k->path) : 0;
}

static void free_case(Case *k) {
    wm_free(&k->m);
    ctx_free(&k->c);
    mask_free(&k->mask);
    free(k->x0);
    free(k->z);
    free(k->t);
    free(k->actions);
    st_close(&k->file);
}

int main(int argc, char **argv) {
    Settings s;
    const Option row[] = {
        {"attn", OPT_STRING, &s.attn, "sdpa", 0, 0, "attention backend", NULL},
        {"mask", OPT_STRING, &s.mask, "frame-causal", 0, 0,
         "the same mask in other words, for instance an expression", NULL},
        {"device", OPT_STRING, &s.device, "cpu", 0, 0, "where the ops run", NULL},
        {"threads", OPT_INT, &s.threads, "0", 0, 1024, "threads; 0: one a processor", NULL},
        {"list-attn", OPT_FLAG, &s.list_attn, "off", 0, 0, "print the backends' names, and leave",
         NULL},
        {"list-devices", OPT_FLAG, &s.list_devices, "off", 0, 0,
         "print the names of the devices that this processor has, and leave", NULL},
    };
    Options options;
    Err e = {""};
    options_init(&options, row, sizeof row / sizeof *row, true);
    int passed = 0, failed = 0;
    if (options_parse(&options, argc, argv, &e)) {
        fprintf(stderr, "%s\n", e.text);
        failed = 1;
    } else if (options.help) {
        options_help(&options, "test_wm [options] FILE.safetensors...", stdout);
    } else if (s.list_attn) {
        for (int i = 0; attn_backends[i]; i++) printf("%s\n", attn_backends[i]->name);
    } else if (s.list_devices) {
        for (int i = 0; devices[i]; i++)
            if (device_runs_here(devices[i])) printf("%s\n", devices[i]->name);
    } else if (options.n_args == 0) {
        fprintf(stderr, "no fixture was named; try ./test_wm test/fixtures/*.safetensors\n");
        failed = 1;
    } else {
        for (int i = 0; i < options.n_args; i++) {
            Case k = {.path = options.arg[i]};
            if (run_case(&k, &s, &e)) {
                fprintf(stderr, "%s\n", e.text);
                k.failed++;
            }
            passed += k.passed;
            failed += k.failed;
            free_case(&k);
        }
        printf("%d passed, %d failed\n", passed, failed);
    }
    options_free(&options);
    return failed ? 1 : 0;
}
