/* train_wm: trains the toy video world model, samples from it, and shows what each attention kernel
 * costs. Options -> data -> loop (forward, backward, update) -> evaluation -> checkpoint. */
#include <cjson/cJSON.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/actions.h"
#include "data/dream.h"
#include "data/frames.h"
#include "llmc_like/checkpoint.h"
#include "llmc_like/compare.h"
#include "llmc_like/loader.h"
#include "llmc_like/optim.h"
#include "llmc_like/options.h"
#include "llmc_like/philox.h"
#include "llmc_like/resume.h"
#include "llmc_like/run.h"
#include "llmc_like/schedule.h"
#include "models/wm_eval.h"
#include "models/wm_options.h"
#include "models/wm_sample.h"

/* ---- the program ---- */

enum { PATH_TEXT = 4096 };

typedef struct Program {
    WmSettings s;
    Option row[WM_MAX_OPTIONS];
    Options options;
    FrameData data;
    Ctx c;
    Mask mask;
    Wm m;
    Optim optim;
    Loader loader;
    WmSampler sampler;
    RunLog log;
    StepPlan plan;
    CheckpointKeeper keeper;
    int32_t *actions; /* (n_actions) of the control clip */
    int64_t n_actions;
    uint8_t background[3]; /* what 0 looks like to people */
    char cache[PATH_TEXT]; /* for the code that flex compiles */
    int64_t first_step;
} Program;

/* ---- data ---- */

/* A batch in the loader's buffer. */
typedef struct Batch {
    float *x0, *z, *t;
    int32_t *actions;
} Batch;

static Batch batch_at(const WmSettings *s, void *buffer, size_t *bytes) {
    const WmConfig *g = &s->model;
    const size_t frames = (size_t)s->batch * (size_t)g->n_frames;
    const size_t pixels = frames * (size_t)(g->height * g->width * 3);
    Batch b = {.x0 = buffer};
    b.z = b.x0 + pixels;
    b.t = b.z + pixels;
    b.actions = (int32_t *)(b.t + frames);
    if (bytes) *bytes = (2 * pixels + 2 * frames) * sizeof(float);
    return b;
}

/* Forward number `index` of the run: a function of its number alone. Runs in the loader's thread.
 */
static int make_batch(void *user, uint64_t index, void *buffer, Err *e) {
    const Program *p = user;
    const WmSettings *s = &p->s;
    const WmConfig *g = &s->model;
    const Batch b = batch_at(s, buffer, NULL);
    const int64_t F = g->n_frames, pixels = F * g->height * g->width * 3;
    (void)e;
    for (int64_t i = 0; i < s->batch; i++)
        frames_clip(&p->data, false, index * (uint64_t)s->batch + (uint64_t)i, b.x0 + i * pixels,
                    b.actions + i * F);
    const uint64_t step = index / (uint64_t)s->accumulate, part = index % (uint64_t)s->accumulate;
    wm_draw(g, s->seed, (uint32_t)step, (int64_t)part * s->batch, s->batch, s->action_dropout, b.z,
            b.t, b.actions);
    return 0;
}

static void held_out_clip(const void *user, uint64_t i, float *x, int32_t *actions) {
    frames_clip(user, true, i, x, actions);
}

static Tensor *batch_loss(Ctx *c, const Program *p, Batch b) {
    const WmConfig *g = &p->s.model;
    const int64_t pictures[] = {p->s.batch, g->n_frames, g->height, g->width, 3};
    ctx_step_begin(c);
    Tensor *x0 = ctx_input(c, "x0", DT_F32, 5, pictures, b.x0);
    Tensor *z = ctx_input(c, "z", DT_F32, 5, pictures, b.z);
    Tensor *t = ctx_input(c, "t", DT_F32, 2, pictures, b.t);
    Tensor *actions = ctx_input(c, "actions", DT_I32, 2, pictures, b.actions);
    return wm_loss(c, &p->m, x0, z, t, actions);
}

/* ---- the plan: the same step, dry ---- */

static AttnArgs attention_shape(const WmSettings *s, const Mask *mask) {
    const WmConfig *g = &s->model;
    const int T = wm_tokens(g), D = g->d_model / g->n_heads;
    const AttnStride stride = {(int64_t)T * g->d_model, g->d_model, D};
    return (AttnArgs){.B = s->batch,
                      .H = g->n_heads,
                      .Tq = T,
                      .Tk = T,
                      .D = D,
                      .dtype = DT_F32,
                      .scale = 1.0f,
                      .mask = mask,
                      .qs = stride,
                      .ks = stride,
                      .vs = stride,
                      .os = stride};
}

static int make_plan(Program *p, StepPlan *plan, Err *e) {
    const WmSettings *s = &p->s;
    Program dry = {.s = *s};
    size_t batch_bytes;
    batch_at(s, NULL, &batch_bytes);
    if (ctx_init(&dry.c, s->device, s->threads, s->seed, true, e)) return -1;
    const AttnArgs shape = attention_shape(s, &p->mask);
    const char *attn = strcmp(s->attn, "all") ? s->attn : "vanilla"; /* which needs the most */
    int status = attn_choose(&dry.c, attn, &shape, e);
    if (status == 0) status = wm_init(&dry.m, &s->model, &p->mask, s->seed, true, true, e);
    if (status == 0) {
        tape_backward(&dry.c, batch_loss(&dry.c, &dry, (Batch){0}), 1);
        optim_step(&dry.c, &p->optim, &dry.m.params, 1, s->clip);
        wm_sampler_init(&dry.sampler, &dry.m, 1, (float)s->cfg, true, e);
        const size_t sampling = dry.sampler.n_branches * dry.sampler.cache[0].memory.peak;
        wm_sampler_free(&dry.sampler);
        for (int i = 0; i < OP_COUNT; i++)
            plan->step_flops +=
                s->accumulate * (dry.c.profile[i].forward_flops + dry.c.profile[i].backward_flops);
        plan->step_flops += optim_flops(&p->optim, &dry.m.params);
        const MemoryRow row[] = {
            {"parameters", dry.m.params.values.peak},
            {"parameter gradients", dry.m.params.grads.peak},
            {"optimiser state", dry.m.params.state.peak},
            {"activations", dry.c.activations.peak},
            {"activation gradients", dry.c.gradients.peak},
            {"workspace", dry.c.workspace.peak},
            {"batches ahead", LOADER_BUFFERS * batch_bytes},
            {"sampling window", s->eval_every ? sampling : 0},
        };
        plan->n = sizeof row / sizeof *row;
        memcpy(plan->row, row, sizeof row);
        plan->activations = dry.c.activations.peak;
        plan->gradients = dry.c.gradients.peak;
        plan->workspace = dry.c.workspace.peak;
    }
    wm_free(&dry.m);
    ctx_free(&dry.c);
    return status;
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
            wm_sampler_observe(&p->c, &p->sampler, actions[i], p->s.seed, number, (uint64_t)i,
                               x + i * size);
        else
            wm_sampler_dream(&p->c, &p->sampler, actions[i], p->s.seed, number, (uint64_t)i,
                             x + i * size);
    }
    return 0;
}

static int dream_to(Program *p, const char *dir, const char *name, const int32_t *actions, int n,
                    Err *e) {
    const WmConfig *g = &p->s.model;
    return dream_picture(dream, p, dir, name, actions, n, g->height, g->width, p->background, e);
}

static int diverged(const Program *p, int64_t step, const char *what, double value, Err *e) {
    return err_set(e,
                   "step %" PRId64
                   ": the %s is %f; training stops, and the last good checkpoint in %s stays. Try "
                   "a smaller --lr-muon and --lr-adam, or a longer --warmup",
                   step, what, value, p->s.out);
}

static int evaluate(Program *p, int64_t step, double *loss, Err *e) {
    const WmSettings *s = &p->s;
    char pictures[PATH_TEXT], name[64];
    const int64_t most = p->data.n_held < s->eval_clips ? p->data.n_held : s->eval_clips;
    const WmEval v =
        wm_evaluate(&p->c, &p->m, held_out_clip, &p->data, (int)most, s->batch, s->seed);
    if (!isfinite(v.loss)) return diverged(p, step, "held-out loss", v.loss, e);
    *loss = v.loss;
    printf("held-out loss %.5f  at noise", v.loss);
    Metrics *m = &p->log.metrics;
    metrics_begin(m, step - 1);
    metrics_number(m, "held_out_loss", v.loss);
    for (int l = 0; l < WM_LEVELS; l++) {
        printf(" %g: %.4f", (double)WM_LEVEL[l], v.level[l]);
        snprintf(name, sizeof name, "noise_%g", (double)WM_LEVEL[l]);
        metrics_number(m, name, v.level[l]);
    }
    printf("\n");
    snprintf(pictures, sizeof pictures, "%s/pictures", s->out);
    if (make_dirs(pictures, e)) return -1;
    if (p->data.pong) {
        const WmConfig *g = &s->model;
        const int context = g->n_frames > 2 ? g->n_frames / 2 : 1;
        DreamScore score = {0};
        if (dream_judge(dream, p, s->seed, context, g->height, g->width, &score, e)) return -1;
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

/* ---- one step ---- */

/* accumulate forwards and backwards, then the update. -1: the loader failed, or a loss or gradient
 * is no number. */
static int train_step(Program *p, int64_t step, StepFigures *f, Err *e) {
    const WmSettings *s = &p->s;
    const OpProfile *attention = &p->c.profile[OP_ATTENTION];
    const double t0 = now_s(), forward0 = attention->forward_s, backward0 = attention->backward_s;
    *f = (StepFigures){0};
    params_zero_grad(&p->m.params);
    for (int i = 0; i < s->accumulate; i++) {
        double waited;
        void *buffer = (void *)(uintptr_t)loader_next(&p->loader, NULL, &waited, e);
        if (!buffer) return -1;
        const double t1 = now_s();
        Tensor *loss = batch_loss(&p->c, p, batch_at(s, buffer, NULL));
        f->loss += *tensor_f64(loss) / s->accumulate;
        const double t2 = now_s();
        tape_backward(&p->c, loss, 1.0 / s->accumulate);
        f->wait_s += waited;
        f->forward_s += t2 - t1;
        f->backward_s += now_s() - t2;
    }
    const double t3 = now_s(), factor = schedule_warmup_cosine(step, s->warmup, s->steps);
    if (isfinite(f->loss))
        f->grad_norm = optim_step(&p->c, &p->optim, &p->m.params, factor, s->clip);
    if (!isfinite(f->loss)) return diverged(p, step + 1, "loss", f->loss, e);
    if (!isfinite(f->grad_norm)) return diverged(p, step + 1, "gradient norm", f->grad_norm, e);
    f->lr = factor * s->lr_adam;
    f->step_s = now_s() - t0;
    f->update_s = now_s() - t3;
    f->attn_forward_s = attention->forward_s - forward0;
    f->attn_backward_s = attention->backward_s - backward0;
    f->flops = p->plan.step_flops;
    return 0;
}

/* ---- setting up ---- */

static void set_rules(Program *p) {
    const WmSettings *s = &p->s;
    p->optim = optim_default();
    p->optim.rule[GROUP_MUON].lr = s->lr_muon;
    p->optim.rule[GROUP_ADAM].lr = s->lr_adam;
    p->optim.rule[GROUP_MUON].weight_decay = p->optim.rule[GROUP_ADAM].weight_decay =
        s->weight_decay;
}

/* What needs no memory worth the name: data, mask, and the plan of a step. */
static int open_run(Program *p, Err *e) {
    const WmSettings *s = &p->s;
    const WmConfig *g = &s->model;
    const FrameOptions data = {s->data, g->n_frames,   g->height,  g->width,
                               s->seed, s->background, s->held_out};
    if (wm_config_check(g, e) || wm_check_sizes(s, e)) return -1;
    if ((s->eval_every || s->sample) && actions_parse(s->actions, &p->actions, &p->n_actions, e)) {
        p->actions = NULL;
        return -1;
    }
    if (!s->sample && frames_open(&p->data, &data, e)) return -1; /* a dream needs no data */
    memcpy(p->background, p->data.background, 3);
    if (mask_init(&p->mask, s->mask, s->score, wm_tokens(g), wm_tokens_per_frame(g), s->batch,
                  g->n_heads, e))
        return -1;
    mask_set_build(&p->mask, p->cache, NULL);
    set_rules(p);
    return make_plan(p, &p->plan, e);
}

/* Device, attention and model, on the memory that the plan said. */
static int open_model(Program *p, const char *attn, bool training, Err *e) {
    const WmSettings *s = &p->s;
    if (ctx_init(&p->c, s->device, s->threads, s->seed, false, e)) return -1;
    const AttnArgs shape = attention_shape(s, &p->mask);
    const StepPlan *plan = &p->plan;
    if (attn_choose(&p->c, attn, &shape, e)) return -1;
    if (training && ctx_commit(&p->c, plan->activations, plan->gradients, plan->workspace, e))
        return -1;
    return wm_init(&p->m, &s->model, &p->mask, s->seed, training, false, e);
}

static int open_loader(Program *p, Err *e) {
    size_t bytes;
    batch_at(&p->s, NULL, &bytes);
    const uint64_t first = (uint64_t)p->first_step * (uint64_t)p->s.accumulate;
    return loader_init(&p->loader, make_batch, p, bytes, LOADER_BUFFERS, first, e);
}

static void banner(const Program *p, double peak) {
    const WmConfig *g = &p->s.model;
    printf(
        "model      d %d, %d heads of %d, %d blocks, %d frames of %d tokens: T %d; rope %s; %.2f M "
        "parameters\n",
        g->d_model, g->n_heads, g->d_model / g->n_heads, g->n_blocks, g->n_frames,
        wm_tokens_per_frame(g), wm_tokens(g), g->rope, 1e-6 * (double)p->m.params.numel);
    printf("data       %s\n", p->data.description);
    printf("device     %s, %d threads, %.0f GFLOP/s in a matrix product\n", p->c.dev->name,
           p->c.n_threads, peak);
    printf("attention  %s (%s): %s; mask %s%s%s\n", p->c.attn->name,
           strcmp(p->s.attn, "auto") ? "as asked" : "the fastest here", p->c.attn->help,
           p->mask.text, p->s.score[0] ? "; score " : "", p->s.score);
    printf("training   %d steps of %d x %d clips, Muon %g, Adam %g, warm-up %d, seed %" PRIu64 "\n",
           p->s.steps, p->s.batch, p->s.accumulate, p->s.lr_muon, p->s.lr_adam, p->s.warmup,
           p->s.seed);
    memory_print(p->plan.row, p->plan.n, stdout);
    printf("out        %s\n", p->s.out);
}

/* ---- checkpoints ---- */

/* held_out_loss NAN: no evaluation was due, and the file is only the last one. */
static int save(Program *p, int64_t step, double held_out_loss, Err *e) {
    char config[1024], background[16];
    wm_config_json(&p->s.model, config, sizeof config);
    const char *const expressions[] = {p->mask.has_mask_expr ? "mask" : "",
                                       p->mask.has_score_expr ? "score" : "", NULL};
    char *options = resume_text(&p->options, expressions);
    snprintf(background, sizeof background, "%d,%d,%d", p->background[0], p->background[1],
             p->background[2]);
    const MetaPair meta[] = {{"config", config}, {"options", options}, {"background", background}};
    const int n = sizeof meta / sizeof *meta;
    const int status =
        isnan(held_out_loss)
            ? keeper_save_last(&p->keeper, &p->m.params, &p->optim, meta, n, step, e)
            : keeper_save(&p->keeper, &p->m.params, &p->optim, meta, n, step, held_out_loss, e);
    free(options);
    return status;
}

/* ---- the loop ---- */

static bool due(int every, int64_t step, int64_t last) {
    return every && (step % every == 0 || step == last);
}

static int train(Program *p, Err *e) {
    const WmSettings *s = &p->s;
    int64_t step = p->first_step; /* the first step touches fresh memory: no step to profile */
    const int64_t profiled = step + (s->steps - step > 1);
    for (; step < s->steps && !interrupted(); step++) {
        StepFigures f;
        double loss = NAN;
        if (step == profiled) ctx_profile_reset(&p->c);
        if (train_step(p, step, &f, e)) return -1;
        if (run_log_step(&p->log, step, &f, e)) return -1;
        const bool failed =
            due(s->eval_every, step + 1, s->steps) && evaluate(p, step + 1, &loss, e);
        if (failed && !isfinite(loss)) return -1; /* never over a good checkpoint */
        if ((due(s->save_every, step + 1, s->steps) || (s->save_every && !isnan(loss))) &&
            save(p, step + 1, loss, e)) /* also where a picture could not be written */
            return -1;
        if (failed && !interrupted()) return -1;
    }
    if (s->profile) profile_print(&p->c, step - profiled, p->log.peak, stdout);
    if (!interrupted()) return 0;
    if (save(p, step, NAN, e)) return -1;
    printf("stopped after step %" PRId64 "; go on with --resume %s\n", step, s->out);
    return 0;
}

/* ---- what the program can do ---- */

static int save_run_json(const Program *p, Err *e) {
    char path[PATH_TEXT], config[1024];
    snprintf(path, sizeof path, "%s/run.json", p->s.out);
    wm_config_json(&p->s.model, config, sizeof config);
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "program", "train_wm");
    cJSON_AddItemToObject(o, "options", options_json(&p->options));
    cJSON_AddItemToObject(o, "model", cJSON_Parse(config));
    cJSON_AddNumberToObject(o, "parameters", (double)p->m.params.numel);
    cJSON_AddStringToObject(o, "data", p->data.description);
    cJSON_AddStringToObject(o, "device", p->c.dev->name);
    cJSON_AddNumberToObject(o, "threads", p->c.n_threads);
    cJSON_AddStringToObject(o, "attention", p->c.attn->name);
    cJSON_AddNumberToObject(o, "peak_gflops", p->log.peak);
    cJSON_AddNumberToObject(o, "step_gflop", 1e-9 * p->plan.step_flops);
    cJSON_AddNumberToObject(o, "memory_bytes", (double)memory_total(p->plan.row, p->plan.n));
    cJSON_AddNumberToObject(o, "first_step", (double)p->first_step);
    const int status = json_save(path, o, e);
    cJSON_Delete(o);
    return status;
}

/* Opens the run's folder and, with --resume or --init, takes what the file holds. */
static int open_folder(Program *p, Err *e) {
    const WmSettings *s = &p->s;
    char dir[PATH_TEXT], metrics[PATH_TEXT];
    snprintf(dir, sizeof dir, "%s/checkpoints", s->out);
    snprintf(metrics, sizeof metrics, "%s/metrics.jsonl", s->out);
    if (s->init && checkpoint_load(s->init, &p->m.params, NULL, NULL, e)) return -1;
    if (s->resume) {
        StFile file;
        if (checkpoint_load(s->resume, &p->m.params, &p->optim, &file, e)) return -1;
        const char *step = st_meta(&file, "step");
        p->first_step = step ? strtoll(step, NULL, 10) : 0;
        st_close(&file);
        if (p->first_step >= s->steps)
            return err_set(e, "%s has made %" PRId64 " steps already; ask for more with --steps",
                           s->resume, p->first_step);
    }
    if (make_dirs(s->out, e) || keeper_open(&p->keeper, dir, 5, s->resume != NULL, e)) return -1;
    return metrics_open(&p->log.metrics, metrics, p->first_step, e);
}

static int run_training(Program *p, Err *e) {
    const WmSettings *s = &p->s;
    if (memory_check(memory_total(p->plan.row, p->plan.n), e)) return -1;
    if (open_model(p, s->attn, true, e)) return -1;
    p->log.peak = peak_gflops(&p->c); /* before the loader's thread takes its share */
    if (open_folder(p, e) || open_loader(p, e)) return -1;
    if (wm_sampler_init(&p->sampler, &p->m, s->sample_steps, (float)s->cfg, false, e)) return -1;
    p->log.unit = "tokens";
    p->log.units_per_step = (double)s->accumulate * s->batch * wm_tokens(&s->model);
    p->log.total_steps = s->steps;
    banner(p, p->log.peak);
    if (p->first_step) printf("resumed    %s after step %" PRId64 "\n", s->resume, p->first_step);
    if (save_run_json(p, e)) return -1;
    p->s.attn = p->c.attn->name; /* auto chooses once: a resumed run has the same bits */
    return train(p, e);
}

static int run_plan(Program *p, Err *e) {
    if (ctx_init(&p->c, p->s.device, p->s.threads, p->s.seed, false, e)) return -1;
    plan_print(&p->plan, p->s.steps, peak_gflops(&p->c));
    return memory_check(memory_total(p->plan.row, p->plan.n), e);
}

static int run_sample(Program *p, Err *e) {
    const WmSettings *s = &p->s;
    StFile file;
    if (open_model(p, s->attn, false, e) ||
        checkpoint_load(s->sample, &p->m.params, NULL, &file, e))
        return -1;
    const char *background = st_meta(&file, "background");
    int rgb[3];
    if (background && sscanf(background, "%d,%d,%d", &rgb[0], &rgb[1], &rgb[2]) == 3)
        for (int i = 0; i < 3; i++) p->background[i] = (uint8_t)rgb[i];
    st_close(&file);
    if (wm_sampler_init(&p->sampler, &p->m, s->sample_steps, (float)s->cfg, false, e)) return -1;
    if (make_dirs(s->out, e)) return -1;
    return dream_to(p, s->out, "sample", p->actions, (int)p->n_actions, e);
}

/* One backend's share of --attn all; in a process of its own. */
static int compare_one(void *self, const char *backend, int steps, CompareResult *r, int gradients,
                       Err *e) {
    Program *p = self;
    if (open_model(p, backend, true, e) || open_loader(p, e)) return -1;
    if (p->s.init && checkpoint_load(p->s.init, &p->m.params, NULL, NULL, e)) return -1;
    r->units_per_step = (double)p->s.accumulate * p->s.batch * wm_tokens(&p->s.model);
    for (; r->steps < steps; r->steps++) {
        StepFigures f;
        if (interrupted()) return err_set(e, "stopped after %d steps", r->steps);
        if (train_step(p, r->steps, &f, e)) return -1;
        r->loss[r->steps] = f.loss;
        r->step_s[r->steps] = f.step_s;
        r->attn_forward_s[r->steps] = f.attn_forward_s;
        r->attn_backward_s[r->steps] = f.attn_backward_s;
        if (r->steps == 0 && compare_gradients(gradients, &p->m.params, e)) return -1;
    }
    loader_stop(&p->loader);
    return 0;
}

static int run_compare(Program *p, Err *e) {
    char path[PATH_TEXT];
    const char *names[16] = {0};
    for (int i = 0; attn_backends[i] && i < 15; i++) names[i] = attn_backends[i]->name;
    snprintf(path, sizeof path, "%s/attn_all.json", p->s.out);
    if (memory_check(memory_total(p->plan.row, p->plan.n), e) || make_dirs(p->s.out, e)) return -1;
    if (p->s.steps > COMPARE_MAX_STEPS)
        return err_set(e, "--attn all with --steps %d: at most %d", p->s.steps, COMPARE_MAX_STEPS);
    return compare_run(names, p->s.steps, "tokens", path, compare_one, p, e);
}

/* ---- from the command line to one of them ---- */

static int parse(Program *p, int argc, char **argv, char resume[RESUME_PATH], char out[RESUME_PATH],
                 Err *e) {
    WmSettings *s = &p->s;
    s->model = wm_config_default();
    options_init(&p->options, p->row, wm_options(s, p->row), false);
    if (options_parse(&p->options, argc, argv, e)) return -1;
    if (p->options.help) return 0;
    if (s->resume && !strcmp(s->attn, "all"))
        return err_set(e, "--attn all begins anew with each backend; give --init, not --resume");
    if ((s->resume != NULL) + (s->init != NULL) + (s->sample != NULL) > 1)
        return err_set(e, "--resume, --init and --sample exclude each other; give one");
    if (wm_preset(&p->options, s->preset, e)) return -1;
    if (!option_was_set(&p->options, "out"))
        s->out =
            s->resume && *s->resume && resume_folder(s->resume, out)
                ? out
                : run_folder("runs/wm", (s->resume && !*s->resume) || s->sample || s->plan, out);
    resume_path(&s->resume, s->out, resume);
    const char *from = s->resume ? s->resume : s->init ? s->init : s->sample;
    if (!from) return 0;
    StFile file;
    if (st_open(from, &file, e)) return -1;
    int status = wm_adopt_config(&p->options, s, st_meta(&file, "config"), e);
    if (status == 0 && !s->init) status = resume_options(&p->options, st_meta(&file, "options"), e);
    if (status) err_prefix(e, "%s: ", from);
    st_close(&file);
    return status;
}

static void close_program(Program *p) {
    loader_stop(&p->loader);
    wm_sampler_free(&p->sampler);
    metrics_close(&p->log.metrics);
    wm_free(&p->m);
    mask_free(&p->mask);
    frames_close(&p->data);
    ctx_free(&p->c);
    options_free(&p->options);
    free(p->actions);
}

int main(int argc, char **argv) {
    if (!getenv("OMP_WAIT_POLICY") && !getenv("GOMP_SPINCOUNT")) threads_wait_asleep(argv);
    static Program p; /* large, and zero to begin with */
    char resume[RESUME_PATH], out[RESUME_PATH];
    Err e = {{0}};
    int status = parse(&p, argc, argv, resume, out, &e);
    if (status == 0 && p.options.help) {
        options_help(&p.options, "train_wm [options]: trains a video world model of Pong", stdout);
        options_free(&p.options);
        return 0;
    }
    if (status == 0) {
        const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
        const bool named = cache && *cache;
        snprintf(p.cache, sizeof p.cache, "%s%s/llmc_like",
                 named  ? cache
                 : home ? home
                        : "/tmp",
                 named ? "" : "/.cache");
        interrupts_hold();
        status = open_run(&p, &e);
    }
    if (status == 0) {
        if (p.s.plan)
            status = run_plan(&p, &e);
        else if (p.s.sample)
            status = run_sample(&p, &e);
        else if (!strcmp(p.s.attn, "all"))
            status = run_compare(&p, &e);
        else
            status = run_training(&p, &e);
    }
    if (status) fprintf(stderr, "train_wm: %s\n", e.text);
    close_program(&p);
    return status ? 1 : 0;
}
