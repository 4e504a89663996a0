/* train_wm: trains the toy video world model, samples from it, and shows what each attention kernel
 * costs. What is the model's own: data, mask, batches, evaluation, dreams. The loop is
 * llmc_like/trainer.h's. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/actions.h"
#include "data/dream.h"
#include "data/frames.h"
#include "llmc_like/fsio.h"
#include "llmc_like/trainer.h"
#include "models/wm_eval.h"
#include "models/wm_options.h"
#include "models/wm_sample.h"

typedef struct Program {
    Trainer t;
    WmSettings s;
    FrameData data;
    Mask mask;
    Wm m;
    WmSampler sampler;
    int32_t *actions; /* (n_actions) of the control clip */
    int64_t n_actions;
    uint8_t background[3]; /* what 0 looks like to people */
    char background_text[16];
} Program;

static int options(void *self, Option *row) {
    Program *p = self;
    p->s.model = wm_config_default();
    return wm_options(&p->s, row);
}

static int preset(void *self, Err *e) {
    Program *p = self;
    return preset_apply(wm_presets, p->s.train.preset, &p->t.options, e);
}

static int adopt(void *self, const char *config, Err *e) {
    Program *p = self;
    return wm_adopt_config(&p->t.options, &p->s, config, e);
}

/* ---- data ---- */

/* A batch in the loader's buffer. */
typedef struct Batch {
    float *x0, *t;
    int32_t *actions;
} Batch;

static Batch batch_at(const WmSettings *s, void *buffer, size_t *bytes) {
    const WmConfig *g = &s->model;
    const size_t frames = (size_t)s->train.batch * (size_t)g->n_frames;
    const size_t pixels = frames * (size_t)(g->height * g->width * 3);
    Batch b = {.x0 = buffer};
    b.t = b.x0 + pixels;
    b.actions = (int32_t *)(b.t + frames);
    if (bytes) *bytes = (pixels + 2 * frames) * sizeof(float);
    return b;
}

static size_t batch_bytes(void *self) {
    const Program *p = self;
    size_t bytes;
    batch_at(&p->s, NULL, &bytes);
    return bytes;
}

/* Batch number `index` of the run: a function of its number alone. Runs in the loader's thread. */
static int make_batch(void *self, uint64_t index, void *buffer, Err *e) {
    const Program *p = self;
    const WmSettings *s = &p->s;
    const WmConfig *g = &s->model;
    const Batch b = batch_at(s, buffer, NULL);
    const int64_t F = g->n_frames, pixels = F * g->height * g->width * 3, B = s->train.batch;
    (void)e;
    for (int64_t i = 0; i < B; i++)
        frames_clip(&p->data, false, index * (uint64_t)B + (uint64_t)i, b.x0 + i * pixels,
                    b.actions + i * F);
    const uint64_t accumulate = (uint64_t)s->train.accumulate, step = index / accumulate;
    wm_draw(g, s->train.seed, (uint32_t)step, (int64_t)(index % accumulate) * B, B,
            s->action_dropout, b.t, b.actions);
    return 0;
}

/* A batch is one part; clips are all of one length. */
static int parts(void *self, const void *batch) {
    (void)self, (void)batch;
    return 1;
}

static double share(void *self, const void *batch, int i, double units[RUN_UNITS]) {
    const Program *p = self;
    (void)batch, (void)i;
    units[0] += (double)p->s.train.batch * wm_tokens(&p->s.model);
    return 1;
}

static Tensor *loss(void *self, Ctx *c, const TrainPart *part) {
    const Program *p = self;
    const WmConfig *g = &p->s.model;
    const Batch b =
        part->batch ? batch_at(&p->s, (void *)(uintptr_t)part->batch, NULL) : (Batch){0};
    const int64_t pictures[] = {p->s.train.batch, g->n_frames, g->height, g->width, 3};
    Tensor *x0 = ctx_input(c, "x0", DT_F32, 5, pictures, b.x0);
    Tensor *z = wm_noise(c, g, p->s.train.seed, part->step,
                         (int64_t)part->number * p->s.train.batch, p->s.train.batch);
    Tensor *t = ctx_input(c, "t", DT_F32, 2, pictures, b.t);
    Tensor *actions = ctx_input(c, "actions", DT_I32, 2, pictures, b.actions);
    return wm_loss(c, &p->m, x0, z, t, actions);
}

static void held_out_clip(const void *user, uint64_t i, float *x, int32_t *actions) {
    frames_clip(user, true, i, x, actions);
}

/* ---- the model ---- */

static int shapes(void *self, const void *first, AttnArgs *shape) {
    const Program *p = self;
    const WmConfig *g = &p->s.model;
    (void)first;
    *shape =
        attn_shape(p->s.train.batch, g->n_heads, wm_tokens(g), g->d_model / g->n_heads, &p->mask);
    return 1;
}

static int open_model(void *self, const Ctx *c, bool training, Err *e) {
    Program *p = self;
    Trainer *t = &p->t;
    const WmConfig *g = &p->s.model;
    if (wm_init(&p->m, g, &p->mask, c, training, e)) return -1;
    t->params = &p->m.params;
    snprintf(t->model, sizeof t->model,
             "d %d, %d heads of %d, %d blocks, %d frames of %d tokens: T %d; rope %s; %.2f M "
             "parameters",
             g->d_model, g->n_heads, g->d_model / g->n_heads, g->n_blocks, g->n_frames,
             wm_tokens_per_frame(g), wm_tokens(g), g->rope, 1e-6 * (double)p->m.params.numel);
    return 0;
}

static void free_model(void *self) {
    Program *p = self;
    wm_sampler_free(&p->sampler);
    wm_free(&p->m);
}

/* The memory of sampling, for as long as the model lives. */
static int open_sampler(Program *p, Err *e) {
    if (p->sampler.m) return 0;
    return wm_sampler_init(&p->sampler, &p->m, &p->t.c, p->s.sample_steps, (float)p->s.cfg, e);
}

static void memory(void *self, StepPlan *plan) {
    Program *p = self;
    plan_add(plan, &host_memory, "batches ahead", LOADER_BUFFERS * batch_bytes(self));
    if (!p->s.train.eval_every) return;
    WmSampler dry;
    wm_sampler_init(&dry, &p->m, &p->t.c, 1, (float)p->s.cfg, NULL); /* the context is dry */
    plan_add(plan, p->t.c.dev->memory, "sampling window",
             (size_t)dry.n_branches * dry.cache[0].memory.peak);
    wm_sampler_free(&dry);
}

/* ---- evaluation: held-out loss, dreams, and what the rules of the game say of them ---- */

/* Dreams n frames into x (n, h, w, 3); the first n_context are given there already. */
static int dream(void *self, const int32_t *actions, int n, int n_context, uint32_t number,
                 float *x, Err *e) {
    Program *p = self;
    const int64_t size = (int64_t)p->s.model.height * p->s.model.width * 3;
    wm_sampler_reset(&p->sampler);
    for (int i = 0; i < n; i++) {
        if (interrupted()) return err_set(e, "stopped while dreaming");
        if (i < n_context)
            wm_sampler_observe(&p->t.c, &p->sampler, actions[i], p->s.train.seed, number,
                               (uint64_t)i, x + i * size);
        else
            wm_sampler_dream(&p->t.c, &p->sampler, actions[i], p->s.train.seed, number, (uint64_t)i,
                             x + i * size);
    }
    return 0;
}

static int dream_to(Program *p, const char *dir, const char *name, const int32_t *actions, int n,
                    Err *e) {
    const WmConfig *g = &p->s.model;
    return dream_picture(dream, p, dir, name, actions, n, g->height, g->width, p->background, e);
}

static int evaluate(void *self, int64_t step, double *held_out, Err *e) {
    Program *p = self;
    const WmSettings *s = &p->s;
    char pictures[TRAIN_PATH], name[64];
    const int64_t most = p->data.n_held < s->eval_clips ? p->data.n_held : s->eval_clips;
    const WmEval v = wm_evaluate(&p->t.c, &p->m, held_out_clip, &p->data, (int)most, s->train.batch,
                                 s->train.seed);
    if (!isfinite(v.loss)) return trainer_diverged(&p->t, step, "held-out loss", v.loss, e);
    *held_out = v.loss;
    printf("held-out loss %.5f  at noise", v.loss);
    Metrics *m = &p->t.log.metrics;
    metrics_begin(m, step - 1);
    metrics_number(m, "held_out_loss", v.loss);
    for (int l = 0; l < WM_LEVELS; l++) {
        printf(" %g: %.4f", (double)WM_LEVEL[l], v.level[l]);
        snprintf(name, sizeof name, "noise_%g", (double)WM_LEVEL[l]);
        metrics_number(m, name, v.level[l]);
    }
    printf("\n");
    snprintf(pictures, sizeof pictures, "%s/pictures", s->train.out);
    if (open_sampler(p, e) || make_dirs(pictures, e)) return -1;
    if (p->data.pong) {
        const WmConfig *g = &s->model;
        const int context = g->n_frames > 2 ? g->n_frames / 2 : 1;
        DreamScore score = {0};
        if (dream_judge(dream, p, s->train.seed, context, g->height, g->width, &score, e))
            return -1;
        dream_report(&score, m);
    }
    if (metrics_end(m, e)) return -1;
    int32_t *actions = malloc(sizeof *actions * (size_t)s->model.n_frames);
    float *x =
        malloc(sizeof *x * (size_t)(s->model.n_frames * s->model.height * s->model.width * 3));
    CHECK(actions && x, "no memory for a clip");
    frames_clip(&p->data, true, 0, x, actions);
    snprintf(name, sizeof name, "sample_%06" PRId64, step);
    int status = dream_to(p, pictures, name, actions, s->model.n_frames, e);
    free(actions);
    free(x);
    snprintf(name, sizeof name, "control_%06" PRId64, step);
    if (status) return -1;
    return dream_to(p, pictures, name, p->actions, (int)p->n_actions, e);
}

static int run_sample(void *self, const StFile *file, Err *e) {
    Program *p = self;
    const char *background = st_meta(file, "background");
    int rgb[3];
    if (background && sscanf(background, "%d,%d,%d", &rgb[0], &rgb[1], &rgb[2]) == 3)
        for (int i = 0; i < 3; i++) p->background[i] = (uint8_t)rgb[i];
    if (open_sampler(p, e) || make_dirs(p->s.train.out, e)) return -1;
    return dream_to(p, p->s.train.out, "sample", p->actions, (int)p->n_actions, e);
}

/* ---- the program ---- */

static void fill_in(Program *p) {
    const WmSettings *s = &p->s;
    Trainer *t = &p->t;
    t->optim = optim_default();
    t->optim.rule[GROUP_MUON].lr = s->lr_muon;
    t->optim.rule[GROUP_ADAM].lr = t->lr = s->lr_adam;
    t->optim.rule[GROUP_MUON].weight_decay = t->optim.rule[GROUP_ADAM].weight_decay =
        s->train.weight_decay;
    t->optim.rule[GROUP_ADAMW].lr = s->lr_adam; /* of what the score expression learns */
    t->optim.rule[GROUP_ADAMW].weight_decay = 0;
    t->mask_is_expression = p->mask.has_mask_expr;
    snprintf(t->data, sizeof t->data, "%s", p->data.description);
    snprintf(t->rates, sizeof t->rates, "Muon %g, Adam %g, warm-up %d", s->lr_muon, s->lr_adam,
             s->train.warmup);
    wm_config_json(&s->model, t->config, sizeof t->config);
    snprintf(p->background_text, sizeof p->background_text, "%d,%d,%d", p->background[0],
             p->background[1], p->background[2]);
    t->meta[t->n_meta++] = (MetaPair){"background", p->background_text};
}

static int check_run(void *self, double *least, Err *e) {
    return wm_check_sizes(&((Program *)self)->s, least, e);
}

static int open_run(void *self, Err *e) {
    Program *p = self;
    const WmSettings *s = &p->s;
    const WmConfig *g = &s->model;
    const TrainSettings *r = &s->train;
    const FrameOptions data = {s->data, g->n_frames,   g->height,  g->width,
                               r->seed, s->background, s->held_out};
    if ((r->eval_every || r->use) && actions_parse(s->actions, &p->actions, &p->n_actions, e)) {
        p->actions = NULL;
        return -1;
    }
    if (!r->use && frames_open(&p->data, &data, e)) return -1; /* a dream needs no data */
    memcpy(p->background, p->data.background, 3);
    if (mask_init(&p->mask, r->mask, r->score, r->learned, wm_tokens(g), wm_tokens_per_frame(g),
                  r->batch, g->n_heads, e))
        return -1;
    mask_set_build(&p->mask, p->t.cache, NULL);
    fill_in(p);
    return 0;
}

static void close_run(void *self) {
    Program *p = self;
    mask_free(&p->mask);
    frames_close(&p->data);
    free(p->actions);
}

static const TrainProgram train_wm = {
    .name = "train_wm",
    .summary = "trains a video world model of Pong",
    .use = "sample",
    .examples = "clips",
    .unit = {"tokens"},
    .calmer = "a smaller --lr-muon and --lr-adam, or a longer --warmup",
    .leaner = RUN_LEANER,
    .own = wm_own_options,
    .options = options,
    .preset = preset,
    .adopt = adopt,
    .check = check_run,
    .open = open_run,
    .model = open_model,
    .model_free = free_model,
    .shapes = shapes,
    .batch_bytes = batch_bytes,
    .make = make_batch,
    .parts = parts,
    .share = share,
    .loss = loss,
    .memory = memory,
    .evaluate = evaluate,
    .run_use = run_sample,
    .close = close_run,
};

int main(int argc, char **argv) {
    if (!getenv("OMP_WAIT_POLICY") && !getenv("GOMP_SPINCOUNT")) threads_wait_asleep(argv);
    static Program p; /* large, and zero to begin with */
    trainer_set_cache(&p.t, getenv("XDG_CACHE_HOME"), getenv("HOME"));
    return trainer_main(&p.t, &train_wm, &p.s.train, &p, argc, argv);
}
