/* test_wm: runs the world model on fixtures, which hold what PyTorch made of the same parameters
 * and inputs (dev/ref/wm_ref.py), and compares every result: velocity, loss, gradients, parameters
 * after one optimiser step, the losses of three or ten steps, dreamt frames. Fixtures hold pictures
 * as (B, F, 3, h, w), the model has channels last. Tolerances: test/fixtures.h. */
#include "test/fixtures.h"

#include "models/wm.h"
#include "models/wm_sample.h"

/* One fixture and the model that it is about. */
typedef struct Case {
    Fixture *f;
    WmConfig cfg;
    Mask mask;
    Wm m;
    int sample_steps;
    int64_t B, F;
    float *x0, *z, *t; /* (B, F, h, w, 3), (B, F) */
    int32_t *actions;  /* (B, F)                  */
} Case;

/* ---- reading ---- */

/* Pictures (n, frames, 3, h, w), as floats with channels last; the caller frees them. */
static float *read_pictures(const Case *k, const char *name, int64_t n, int64_t frames, Err *e) {
    const StEntry *t = fixture_find(k->f, name, 5, e);
    const int64_t h = k->cfg.height, w = k->cfg.width;
    if (!t) return NULL;
    if (t->shape[0] != n || t->shape[1] != frames || t->shape[2] != 3 || t->shape[3] != h ||
        t->shape[4] != w) {
        char text[ST_SHAPE_TEXT];
        err_set(e, "%s is %s, not (%lld, %lld, 3, %lld, %lld)", name, st_shape_text(t, text),
                (long long)n, (long long)frames, (long long)h, (long long)w);
        return NULL;
    }
    float *x = fixture_floats(t->numel);
    for (int64_t i = 0; i < n * frames; i++)
        for (int64_t ch = 0; ch < 3; ch++)
            for (int64_t p = 0; p < h * w; p++)
                x[(i * h * w + p) * 3 + ch] = (float)fixture_number(t, (i * 3 + ch) * h * w + p);
    return x;
}

/* Action ids of a tensor (n, frames), in an array that the caller frees. */
static int32_t *read_actions(const Case *k, const char *name, int64_t n, int64_t frames, Err *e) {
    const StEntry *t = fixture_find(k->f, name, 2, e);
    if (!t) return NULL;
    if (t->shape[0] != n || t->shape[1] != frames) {
        err_set(e, "%s has not the (%lld, %lld) of the frames", name, (long long)n,
                (long long)frames);
        return NULL;
    }
    int32_t *ids = fixture_alloc(sizeof *ids * (size_t)t->numel);
    for (int64_t i = 0; i < t->numel; i++) {
        const double id = fixture_number(t, i);
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
    const StEntry *frames = fixture_find(k->f, "in.frames", 5, e);
    if (!frames) return -1;
    k->B = frames->shape[0];
    k->F = frames->shape[1];
    if (k->B < 1 || k->F < 1 || k->F > k->cfg.n_frames)
        return err_set(e, "in.frames has %lld clips of %lld frames; the window is %d",
                       (long long)k->B, (long long)k->F, k->cfg.n_frames);
    const StEntry *ts = fixture_find(k->f, "in.ts", 2, e);
    if (!ts) return -1;
    if (ts->shape[0] != k->B || ts->shape[1] != k->F)
        return err_set(e, "in.ts has not the (%lld, %lld) of in.frames", (long long)k->B,
                       (long long)k->F);
    k->t = fixture_floats(ts->numel);
    for (int64_t i = 0; i < ts->numel; i++) k->t[i] = (float)fixture_number(ts, i);
    k->x0 = read_pictures(k, "in.frames", k->B, k->F, e);
    if (k->x0) k->z = read_pictures(k, "in.noise", k->B, k->F, e);
    if (k->z) k->actions = read_actions(k, "in.actions", k->B, k->F, e);
    return k->actions ? 0 : -1;
}

static int read_config(Case *k, Err *e) {
    const char *json = fixture_config(k->f, e);
    if (!json || wm_config_parse(&k->cfg, json, e)) return -1;
    k->f->optim = optim_default();
    k->f->clip = 10;
    OptimRule *muon = &k->f->optim.rule[GROUP_MUON], *adam = &k->f->optim.rule[GROUP_ADAM];
    double steps = 3;
    const FixtureNumber row[] = {{"lr_muon", &muon->lr},     {"lr_adam", &adam->lr},
                                 {"beta1", &adam->beta1},    {"beta2", &adam->beta2},
                                 {"grad_clip", &k->f->clip}, {"weight_decay", &adam->weight_decay},
                                 {"sample_steps", &steps}};
    fixture_config_numbers(json, row, sizeof row / sizeof *row);
    muon->weight_decay = adam->weight_decay;
    k->sample_steps = (int)steps;
    if (!(steps >= 1 && steps <= 1000)) return err_set(e, "its config has sample_steps %g", steps);
    return 0;
}

/* ---- comparing ---- */

/* x (n, h, w, 3) against a tensor of as many pictures (n, 3, h, w). */
static void compare_pictures(Case *k, const char *name, const float *x, int64_t n) {
    const int64_t area = (int64_t)k->cfg.height * k->cfg.width;
    double *got = fixture_alloc(sizeof *got * (size_t)(n * area * 3));
    for (int64_t i = 0; i < n; i++)
        for (int64_t p = 0; p < area; p++)
            for (int64_t ch = 0; ch < 3; ch++)
                got[(i * 3 + ch) * area + p] = (double)x[(i * area + p) * 3 + ch];
    fixture_compare(k->f, name, got, n * area * 3, FORWARD_TOLERANCE, NULL);
    free(got);
}

/* ---- running ---- */

static int run_sampling(Case *k, const char *name, float guidance, Err *e) {
    if (!st_find(&k->f->file, name)) return 0;
    const StEntry *t = fixture_find(k->f, "in.sample.noise", 5, e);
    if (!t) return -1;
    const int64_t n = t->shape[1], size = (int64_t)k->cfg.height * k->cfg.width * 3;
    float *x = read_pictures(k, "in.sample.noise", 1, n, e);
    if (!x) return -1;
    WmSampler sampler = {0};
    int32_t *actions = read_actions(k, "in.sample.actions", 1, n, e);
    int status =
        actions ? wm_sampler_init(&sampler, &k->m, &k->f->c, k->sample_steps, guidance, e) : -1;
    if (status == 0) {
        for (int64_t i = 0; i < n; i++)
            wm_sampler_frame(&k->f->c, &sampler, actions[i], x + i * size, x + i * size);
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

static Inputs make_inputs(Case *k) {
    const int64_t pictures[] = {k->B, k->F, k->cfg.height, k->cfg.width, 3};
    return (Inputs){ctx_input(&k->f->c, "x0", DT_F32, 5, pictures, k->x0),
                    ctx_input(&k->f->c, "z", DT_F32, 5, pictures, k->z),
                    ctx_input(&k->f->c, "t", DT_F32, 2, pictures, k->t),
                    ctx_input(&k->f->c, "actions", DT_I32, 2, pictures, k->actions)};
}

static void run_velocity(Case *k) {
    k->f->c.recording = false;
    ctx_step_begin(&k->f->c);
    const Inputs in = make_inputs(k);
    const Flow flow = op_flow_noise(&k->f->c, in.x0, in.z, in.t);
    const Tensor *v = wm_forward(&k->f->c, &k->m, flow.x_t, in.t, in.actions, NULL);
    compare_pictures(k, "out.velocity", ctx_read_f32(&k->f->c, v), k->B * k->F);
    k->f->c.recording = true;
}

static Tensor *training_loss(void *self) {
    Case *k = self;
    const Inputs in = make_inputs(k);
    return wm_loss(&k->f->c, &k->m, in.x0, in.z, in.t, in.actions);
}

static int run_case(Case *k, const FixtureSettings *s, Err *e) {
    static const char *const known[] = {"out.velocity", "out.loss",        "out.losses3",
                                        "out.losses10", "out.sample.cfg1", "out.sample.cfg1.5"};
    Fixture *f = k->f;
    if (read_config(k, e) || read_inputs(k, e)) return -1;
    const int T = wm_tokens_per_frame(&k->cfg) * (int)k->F, H = k->cfg.n_heads;
    const AttnArgs shape = attn_shape((int)k->B, H, T, k->cfg.d_model / H, &k->mask);
    if (mask_init(&k->mask, s->mask, "", "", wm_tokens(&k->cfg), wm_tokens_per_frame(&k->cfg),
                  (int)k->B, H, e))
        return -1;
    mask_set_build(&k->mask, s->cache, NULL);
    if (ctx_init(&f->c, s->device, s->threads, 0, false, e) ||
        attn_choose(&f->c, s->attn, &shape, e) || wm_init(&k->m, &k->cfg, &k->mask, &f->c, true, e))
        return -1;
    f->params = &k->m.params;
    if (fixture_read_parameters(f, e)) return -1;
    fixture_refuse_unknown(f, known, sizeof known / sizeof *known);
    run_velocity(k);
    if (run_sampling(k, "out.sample.cfg1", 1, e) || run_sampling(k, "out.sample.cfg1.5", 1.5f, e))
        return -1;
    fixture_train(f, training_loss, k);
    return 0;
}

static void free_case(Case *k) {
    wm_free(&k->m);
    mask_free(&k->mask);
    free(k->x0);
    free(k->z);
    free(k->t);
    free(k->actions);
}

static int run_fixture(Fixture *f, const FixtureSettings *s, Err *e) {
    Case k = {.f = f};
    const int status = run_case(&k, s, e);
    free_case(&k);
    return status;
}

static int sample_mask(Mask *m, const char *text, Err *e) {
    return mask_init(m, text, "", "", 8, 2, 1, 1, e);
}

int main(int argc, char **argv) {
    const FixtureProgram program = {"test_wm", "frame-causal", run_fixture, sample_mask};
    return fixture_main(&program, argc, argv);
}
