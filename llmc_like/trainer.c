#include "llmc_like/trainer.h"

#include <cjson/cJSON.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/ops.h"
#include "llmc_like/compare.h"
#include "llmc_like/fsio.h"
#include "llmc_like/schedule.h"

/* ---- the plan: the same step, dry ---- */

static double profile_flops(const Ctx *c) {
    double flops = 0;
    for (int i = 0; i < OP_COUNT; i++)
        flops += c->profile[i].forward_flops + c->profile[i].backward_flops;
    return flops;
}

static int choose_attention(Trainer *t, const char *attn, Err *e) {
    AttnArgs shape[TRAIN_SHAPES];
    const int n = t->program->shapes(t->self, t->first, shape);
    for (int i = 0; i < n; i++)
        if (attn_choose(&t->c, i ? t->c.attn->name : attn, &shape[i], e)) return -1;
    return 0;
}

/* One batch of the step and the update, in a dry context, and what they take. */
static void count_step(Trainer *t) {
    const TrainProgram *g = t->program;
    Ctx *c = &t->c;
    ParamTable *p = t->params;
    const int n = g->parts(t->self, t->first);
    for (int i = 0; i < n; i++) {
        ctx_step_begin(c);
        tape_backward(c, g->loss(t->self, c, &(TrainPart){t->first, i, 0, 0}), 1);
    }
    optim_step(c, &t->optim, p, 1, t->s->clip);
    StepPlan *plan = &t->plan;
    *plan =
        (StepPlan){.activations = c->activations.peak,
                   .gradients = c->gradients.peak,
                   .workspace = c->workspace.peak,
                   .step_flops = t->s->accumulate * profile_flops(c) + optim_flops(&t->optim, p)};
    plan_add(plan, "parameters", p->values.peak);
    plan_add(plan, "parameter gradients", p->grads.peak);
    plan_add(plan, "optimiser state", p->state.peak);
    plan_add(plan, "activations", plan->activations);
    plan_add(plan, "activation gradients", plan->gradients);
    plan_add(plan, "workspace", plan->workspace);
    g->memory(t->self, plan);
}

static int make_plan(Trainer *t, const char *attn, Err *e) {
    const TrainProgram *g = t->program;
    const TrainSettings *s = t->s;
    if (g->first && !(t->first = g->first(t->self, e))) return -1;
    if (ctx_init(&t->c, s->device, s->threads, s->seed, true, e)) return -1;
    int status = choose_attention(t, attn, e);
    if (status == 0) status = g->model(t->self, &t->c, true, e);
    if (status == 0) count_step(t);
    g->model_free(t->self);
    ctx_free(&t->c);
    return status;
}

/* ---- memory of parts that differ ---- */

static size_t more_than(const Arena *wanted, const Arena *had) {
    return wanted->peak > had->peak ? wanted->peak - had->peak : 0;
}

int trainer_make_room(Trainer *t, TrainForward forward, const TrainPart *part, Err *e) {
    Ctx *c = &t->c, *d = &t->dry;
    if (!d->dev && ctx_init(d, t->s->device, t->s->threads, t->s->seed, true, e)) return -1;
    d->attn = c->attn;
    d->recording = c->recording;
    d->activations.peak = d->gradients.peak = d->workspace.peak = 0;
    ctx_step_begin(d);
    Tensor *out = forward(t->self, d, part);
    if (d->recording) tape_backward(d, out, 1);
    const double need = (double)more_than(&d->activations, &c->activations) +
                        (double)more_than(&d->gradients, &c->gradients) +
                        (double)more_than(&d->workspace, &c->workspace);
    const double left = need > 0 ? memory_left() : -1, MiB = 1024.0 * 1024.0;
    if (left >= 0 && need > left) {
        char name[PART_TEXT];
        t->program->part_name(t->self, part->batch, part->i, name);
        return err_set(e, "%s needs %.0f MiB more and the machine has %.0f MiB left; %s", name,
                       need / MiB, left / MiB, t->program->leaner);
    }
    if (arena_reserve(&c->activations, d->activations.peak, e)) return -1;
    if (arena_reserve(&c->gradients, d->gradients.peak, e)) return -1;
    return arena_reserve(&c->workspace, d->workspace.peak, e);
}

/* ---- one step ---- */

int trainer_diverged(Trainer *t, int64_t step, const char *what, double value, Err *e) {
    t->diverged = true;
    return err_set(e,
                   "step %" PRId64
                   ": the %s is %f; training stops, and the last good checkpoint in %s stays. Try "
                   "%s",
                   step, what, value, t->s->out, t->program->calmer);
}

static double rate_factor(const TrainSettings *s, int64_t step) {
    if (!strcmp(s->schedule, "one-cycle"))
        return schedule_one_cycle(step, (OneCycle){s->steps, 0.3, 25, 1e4});
    return schedule_warmup_cosine(step, s->warmup, s->steps);
}

/* Whether the part's forward can be run: 1, or 0 where it is left out for lack of room. */
static int admit(Trainer *t, const TrainPart *part, Err *e) {
    if (!t->program->parts_differ || !trainer_make_room(t, t->program->loss, part, e)) return 1;
    if (!t->skip_large) return err_prefix(e, "step %" PRIu32 ": ", part->step + 1);
    printf("left out   %s\n", e->text);
    t->n_left_out++;
    return 0;
}

/* Forward and backward of each part of one batch. *part: its step and number. */
static int run_batch(Trainer *t, TrainPart *part, StepFigures *f, Err *e) {
    const TrainProgram *g = t->program;
    const int n = g->parts(t->self, part->batch);
    for (part->i = 0; part->i < n; part->i++, part->number++) {
        const double t0 = now_s();
        const int admitted = admit(t, part, e);
        if (admitted < 0) return -1;
        if (!admitted) continue;
        const double share = g->share(t->self, part->batch, part->i, f->units) / t->s->accumulate;
        ctx_step_begin(&t->c);
        Tensor *loss = g->loss(t->self, &t->c, part);
        f->loss += share * *tensor_f64(loss);
        const double t1 = now_s();
        tape_backward(&t->c, loss, share);
        f->forward_s += t1 - t0;
        f->backward_s += now_s() - t1;
        f->kept += share;
    }
    return 0;
}

/* Where parts were left out, loss and gradient become the means over those that ran. */
static void make_up_for_left_out(Trainer *t, StepFigures *f) {
    const double rounding = 1e-9; /* of the sum of shares */
    if (f->kept == 0 || f->kept > 1 - rounding) return;
    f->loss /= f->kept;
    for (int i = 0; i < t->params->n; i++) {
        const Tensor *p = &t->params->row[i].tensor;
        float *grad = p->grad;
        for (int64_t j = 0, n = tensor_numel(p); j < n; j++) grad[j] /= (float)f->kept;
    }
}

/* `accumulate` batches, then the update, but for a step of which nothing was kept: f->kept is 0.
 * -1: the loader failed, a part found no room, or a loss or gradient is no number. */
static int train_step(Trainer *t, int64_t step, StepFigures *f, Err *e) {
    const TrainSettings *s = t->s;
    const OpProfile *attention = &t->c.profile[OP_ATTENTION];
    const double t0 = now_s(), forward0 = attention->forward_s, backward0 = attention->backward_s;
    const double flops0 = profile_flops(&t->c);
    TrainPart part = {.step = (uint32_t)step};
    *f = (StepFigures){0};
    params_zero_grad(t->params);
    for (int i = 0; i < s->accumulate; i++) {
        double waited;
        part.batch = loader_next(&t->loader, NULL, &waited, e);
        if (!part.batch || run_batch(t, &part, f, e)) return -1;
        f->wait_s += waited;
    }
    if (f->kept == 0) return 0;
    make_up_for_left_out(t, f);
    const double t3 = now_s(), factor = rate_factor(s, step);
    if (isfinite(f->loss)) f->grad_norm = *optim_step(&t->c, &t->optim, t->params, factor, s->clip);
    if (!isfinite(f->loss)) return trainer_diverged(t, step + 1, "loss", f->loss, e);
    if (!isfinite(f->grad_norm))
        return trainer_diverged(t, step + 1, "gradient norm", f->grad_norm, e);
    f->lr = factor * t->lr;
    f->step_s = now_s() - t0;
    f->update_s = now_s() - t3;
    f->attn_forward_s = attention->forward_s - forward0;
    f->attn_backward_s = attention->backward_s - backward0;
    f->flops = profile_flops(&t->c) - flops0 + optim_flops(&t->optim, t->params);
    return 0;
}

/* ---- checkpoints ---- */

/* held_out_loss NAN: no evaluation was due, and the file is only the last one. */
static int save(Trainer *t, int64_t step, double held_out_loss, Err *e) {
    const char *const expressions[] = {t->mask_is_expression ? "mask" : "",
                                       t->s->score[0] ? "score" : "", NULL};
    char *options = resume_text(&t->options, expressions);
    MetaPair meta[TRAIN_META + 2] = {{"config", t->config}, {"options", options}};
    for (int i = 0; i < t->n_meta; i++) meta[2 + i] = t->meta[i];
    const int n = 2 + t->n_meta;
    const int status =
        isnan(held_out_loss)
            ? keeper_save_last(&t->keeper, t->params, &t->optim, meta, n, step, e)
            : keeper_save(&t->keeper, t->params, &t->optim, meta, n, step, held_out_loss, e);
    free(options);
    return status;
}

/* ---- the loop ---- */

static bool due(int every, int64_t step, int64_t last) {
    return every && (step % every == 0 || step == last);
}

/* What evaluation computes is no part of a step's profile. */
static int evaluate(Trainer *t, int64_t step, double *loss, Err *e) {
    OpProfile steps[PROFILE_MAX_OPS];
    memcpy(steps, t->c.profile, sizeof steps);
    const int status = t->program->evaluate(t->self, step, loss, e);
    memcpy(t->c.profile, steps, sizeof steps);
    return status;
}

/* Saves a run that ends before its time. */
static int stop(Trainer *t, int64_t step, Err *e) {
    if (save(t, step, NAN, e)) return -1;
    printf("stopped after step %" PRId64 "; go on with --resume %s\n", step, t->s->out);
    return 0;
}

/* A run that fails keeps what was trained before, unless that diverged: never over a good
 * checkpoint. Returns -1. */
static int fail(Trainer *t, int64_t step) {
    Err second = {{0}};
    if (t->s->save_every && !t->diverged && step > t->first_step) stop(t, step, &second);
    return -1;
}

static int log_step(Trainer *t, int64_t step, const StepFigures *f, Err *e) {
    if (f->kept > 0) return run_log_step(&t->log, step, f, e);
    printf("step %5" PRId64 "/%d  nothing is left of its %s: no update\n", step + 1, t->s->steps,
           t->program->examples);
    return 0;
}

static int train(Trainer *t, Err *e) {
    const TrainSettings *s = t->s;
    int64_t step = t->first_step; /* the first step touches fresh memory: no step to profile */
    const int64_t profiled = step + (s->steps - step > 1);
    for (; step < s->steps && !interrupted(); step++) {
        StepFigures f;
        double loss = NAN;
        if (step == profiled) ctx_profile_reset(&t->c);
        if (train_step(t, step, &f, e)) return fail(t, step);
        if (log_step(t, step, &f, e)) return -1;
        const bool failed =
            due(s->eval_every, step + 1, s->steps) && evaluate(t, step + 1, &loss, e);
        if (failed && isnan(loss)) return fail(t, step + 1);
        if ((due(s->save_every, step + 1, s->steps) || (s->save_every && !isnan(loss))) &&
            save(t, step + 1, loss, e)) /* also where a picture could not be written */
            return -1;
        if (failed && !interrupted()) return -1;
    }
    if (s->profile) profile_print(&t->c, step - profiled, t->log.peak, stdout);
    if (t->n_left_out)
        printf("%" PRId64 " parts were left out for lack of memory\n", t->n_left_out);
    return interrupted() ? stop(t, step, e) : 0;
}

/* ---- setting up ---- */

/* Device, attention and model. */
static int open_model(Trainer *t, const char *attn, bool training, Err *e) {
    const TrainSettings *s = t->s;
    if (ctx_init(&t->c, s->device, s->threads, s->seed, false, e)) return -1;
    if (choose_attention(t, attn, e)) return -1;
    return t->program->model(t->self, &t->c, training, e);
}

/* The plan of a step with this backend, and a model for it where the memory is there: all of it, or
 * where parts differ what does not depend on them, and the parts as they come. */
static int open_training(Trainer *t, const char *attn, Err *e) {
    if (make_plan(t, attn, e)) return -1;
    const StepPlan *plan = &t->plan;
    const size_t step = plan->activations + plan->gradients + plan->workspace;
    const bool differ = t->program->parts_differ;
    const size_t need = memory_total(plan->row, plan->n) - (differ ? step : 0);
    if (memory_check_or(need, t->program->leaner, e) || open_model(t, attn, true, e)) return -1;
    if (differ) return 0;
    return ctx_commit(&t->c, plan->activations, plan->gradients, plan->workspace, e);
}

static int open_loader(Trainer *t, Err *e) {
    const uint64_t first = (uint64_t)t->first_step * (uint64_t)t->s->accumulate;
    const TrainProgram *g = t->program;
    return loader_init(&t->loader, g->make, g->batch_free, t->self, g->batch_bytes(t->self),
                       LOADER_BUFFERS, first, e);
}

static void banner(const Trainer *t) {
    const TrainSettings *s = t->s;
    printf("model      %s\n", t->model);
    printf("data       %s\n", t->data);
    printf("device     %s, %d threads, %.0f GFLOP/s in a matrix product\n", t->c.dev->name,
           t->c.n_threads, t->log.peak);
    printf("attention  %s (%s): %s; mask %s%s%s\n", t->c.attn->name,
           strcmp(s->attn, "auto") ? "as asked" : "the fastest here", t->c.attn->help, s->mask,
           s->score[0] ? "; score " : "", s->score);
    printf("training   %d steps of %d x %d %s, %s, seed %" PRIu64 "\n", s->steps, s->batch,
           s->accumulate, t->program->examples, t->rates, s->seed);
    memory_print(t->plan.row, t->plan.n, stdout);
    printf("out        %s\n", s->out);
    if (t->first_step) printf("resumed    %s after step %" PRId64 "\n", s->resume, t->first_step);
}

static int save_run_json(const Trainer *t, Err *e) {
    char path[TRAIN_PATH];
    snprintf(path, sizeof path, "%s/run.json", t->s->out);
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "program", t->program->name);
    cJSON_AddItemToObject(o, "options", options_json(&t->options));
    cJSON_AddItemToObject(o, "model", cJSON_Parse(t->config));
    cJSON_AddNumberToObject(o, "parameters", (double)t->params->numel);
    cJSON_AddStringToObject(o, "data", t->data);
    cJSON_AddStringToObject(o, "device", t->c.dev->name);
    cJSON_AddNumberToObject(o, "threads", t->c.n_threads);
    cJSON_AddStringToObject(o, "attention", t->c.attn->name);
    cJSON_AddNumberToObject(o, "peak_gflops", t->log.peak);
    cJSON_AddNumberToObject(o, "step_gflop", 1e-9 * t->plan.step_flops);
    cJSON_AddNumberToObject(o, "memory_bytes", (double)memory_total(t->plan.row, t->plan.n));
    cJSON_AddNumberToObject(o, "first_step", (double)t->first_step);
    const int status = json_save(path, o, e);
    cJSON_Delete(o);
    return status;
}

/* A run goes on with the data that it began with: its steps and what it never read depend on them.
 */
static int same_data(const Trainer *t, const StFile *file, Err *e) {
    const char *was = st_meta(file, DATA_KEY);
    for (int i = 0; i < t->n_meta; i++)
        if (was && !strcmp(t->meta[i].key, DATA_KEY) && strcmp(t->meta[i].value, was))
            return err_set(e,
                           "%s began with other data: %s, and here are %s; give it the same, or "
                           "begin a new run with its parameters (--init)",
                           t->s->resume, was, t->meta[i].value);
    return 0;
}

/* Opens the run's folder and, with --resume or --init, takes what the file holds. */
static int open_folder(Trainer *t, Err *e) {
    const TrainSettings *s = t->s;
    char dir[TRAIN_PATH], metrics[TRAIN_PATH];
    snprintf(dir, sizeof dir, "%s/checkpoints", s->out);
    snprintf(metrics, sizeof metrics, "%s/metrics.jsonl", s->out);
    if (s->init && checkpoint_load(s->init, t->params, NULL, NULL, e)) return -1;
    if (s->resume) {
        StFile file;
        if (checkpoint_load(s->resume, t->params, &t->optim, &file, e)) return -1;
        const char *step = st_meta(&file, "step");
        t->first_step = step ? strtoll(step, NULL, 10) : 0;
        const int status = same_data(t, &file, e);
        st_close(&file);
        if (status) return -1;
        if (t->first_step >= s->steps)
            return err_set(e, "%s has made %" PRId64 " steps already; ask for more with --steps",
                           s->resume, t->first_step);
    }
    if (make_dirs(s->out, e) || keeper_open(&t->keeper, dir, 5, s->resume != NULL, e)) return -1;
    return metrics_open(&t->log.metrics, metrics, t->first_step, e);
}

/* ---- what a program can do ---- */

static int run_training(Trainer *t, Err *e) {
    const TrainProgram *g = t->program;
    if (open_training(t, t->s->attn, e)) return -1;
    t->log.peak = peak_gflops(&t->c); /* before the loader's thread takes its share */
    if (open_folder(t, e) || open_loader(t, e)) return -1;
    for (int i = 0; i < RUN_UNITS; i++) t->log.unit[i] = g->unit[i];
    t->log.radians = g->radians;
    t->log.total_steps = t->s->steps;
    banner(t);
    if (save_run_json(t, e)) return -1;
    t->s->attn = t->c.attn->name; /* auto chooses once: a resumed run has the same bits */
    return train(t, e);
}

static int run_plan(Trainer *t, Err *e) {
    const TrainSettings *s = t->s;
    const char *attn = strcmp(s->attn, "all") ? s->attn : "vanilla"; /* which needs the most */
    if (make_plan(t, attn, e)) return -1;
    if (ctx_init(&t->c, s->device, s->threads, s->seed, false, e)) return -1;
    plan_print(&t->plan, s->steps, peak_gflops(&t->c));
    return memory_check_or(memory_total(t->plan.row, t->plan.n), t->program->leaner, e);
}

static int run_use(Trainer *t, Err *e) {
    StFile file;
    if (t->program->first && !(t->first = t->program->first(t->self, e))) return -1;
    if (open_model(t, t->s->attn, false, e) ||
        checkpoint_load(t->s->use, t->params, NULL, &file, e))
        return -1;
    const int status = t->program->run_use(t->self, &file, e);
    st_close(&file);
    return status;
}

/* One backend's share of --attn all; in a process of its own. */
static int compare_one(void *self, const char *backend, int steps, CompareResult *r, int gradients,
                       Err *e) {
    Trainer *t = self;
    if (open_training(t, backend, e) || open_loader(t, e)) return -1;
    if (t->s->init && checkpoint_load(t->s->init, t->params, NULL, NULL, e)) return -1;
    for (; r->steps < steps; r->steps++) {
        StepFigures f;
        if (interrupted()) return err_set(e, "stopped after %d steps", r->steps);
        if (train_step(t, r->steps, &f, e)) return -1;
        if (f.kept == 0) return err_set(e, "nothing is left of step %d to compare", r->steps + 1);
        r->units_per_step = f.units[0];
        r->loss[r->steps] = f.loss;
        r->step_s[r->steps] = f.step_s;
        r->attn_forward_s[r->steps] = f.attn_forward_s;
        r->attn_backward_s[r->steps] = f.attn_backward_s;
        if (r->steps == 0 && compare_gradients(gradients, t->params, e)) return -1;
    }
    loader_stop(&t->loader);
    return 0;
}

static int run_compare(Trainer *t, Err *e) {
    const TrainSettings *s = t->s;
    char path[TRAIN_PATH];
    const char *names[16] = {0};
    for (int i = 0; attn_backends[i] && i < 15; i++) names[i] = attn_backends[i]->name;
    snprintf(path, sizeof path, "%s/attn_all.json", s->out);
    if (s->steps > COMPARE_MAX_STEPS)
        return err_set(e, "--attn all with --steps %d: at most %d", s->steps, COMPARE_MAX_STEPS);
    if (make_dirs(s->out, e)) return -1;
    return compare_run(names, s->steps, t->program->unit[0], path, compare_one, t, e);
}

/* ---- from the command line to one of them ---- */

/* Sizes and options of the checkpoint that the run begins with. */
static int adopt(Trainer *t, const char *from, Err *e) {
    const TrainProgram *g = t->program;
    StFile file;
    if (st_open(from, &file, e)) return -1;
    int status = g->adopt(t->self, st_meta(&file, "config"), e);
    if (status == 0 && !t->s->init)
        status = resume_options(&t->options, st_meta(&file, "options"), g->own, e);
    if (status) err_prefix(e, "%s: ", from);
    st_close(&file);
    return status;
}

#define COMPARED_STEPS "10" /* with --attn all, unless --steps says otherwise */

static int parse(Trainer *t, int argc, char **argv, Err *e) {
    const TrainProgram *g = t->program;
    TrainSettings *s = t->s;
    options_init(&t->options, t->row, g->options(t->self, t->row), false);
    const char *base = s->out;
    if (options_parse(&t->options, argc, argv, e)) return -1;
    if (t->options.help) return 0;
    if (s->resume && !strcmp(s->attn, "all"))
        return err_set(e, "--attn all begins anew with each backend; give --init, not --resume");
    if (s->use && !strcmp(s->attn, "all"))
        return err_set(e, "--attn all trains with each backend, and --%s trains nothing; name one",
                       g->use);
    if ((s->resume != NULL) + (s->init != NULL) + (s->use != NULL) > 1)
        return err_set(e, "--resume, --init and --%s exclude each other; give one", g->use);
    if (g->preset(t->self, e)) return -1;
    if (!strcmp(s->attn, "all") && options_preset(&t->options, "steps", COMPARED_STEPS, e))
        return -1;
    if (!option_was_set(&t->options, "out"))
        s->out = s->resume && *s->resume && resume_folder(s->resume, t->out)
                     ? t->out
                     : run_folder(base, (s->resume && !*s->resume) || s->use || s->plan, t->out);
    resume_path(&s->resume, s->out, t->resume);
    const char *from = s->resume ? s->resume : s->init ? s->init : s->use;
    return from ? adopt(t, from, e) : 0;
}

static int run_asked(Trainer *t, Err *e) {
    interrupts_hold();
    if (t->program->open(t->self, e)) return -1;
    if (t->s->plan) return run_plan(t, e);
    if (t->s->use) return run_use(t, e);
    return strcmp(t->s->attn, "all") ? run_training(t, e) : run_compare(t, e);
}

void trainer_set_cache(Trainer *t, const char *xdg_cache_home, const char *home) {
    const bool named = xdg_cache_home && *xdg_cache_home;
    const char *base = named ? xdg_cache_home : home ? home : "/tmp";
    snprintf(t->cache, sizeof t->cache, "%s%s/llmc_like", base, named ? "" : "/.cache");
}

int trainer_main(Trainer *t, const TrainProgram *program, TrainSettings *s, void *self, int argc,
                 char **argv) {
    Err e = {{0}};
    t->program = program;
    t->self = self;
    t->s = s;
    int status = parse(t, argc, argv, &e);
    if (status == 0 && t->options.help) {
        char usage[256];
        snprintf(usage, sizeof usage, "%s [options]: %s", program->name, program->summary);
        options_help(&t->options, usage, stdout);
    } else if (status == 0) {
        status = run_asked(t, &e);
        loader_stop(&t->loader);
        metrics_close(&t->log.metrics);
        program->model_free(self);
        program->close(self);
        ctx_free(&t->dry);
        ctx_free(&t->c);
    }
    if (status) fprintf(stderr, "%s: %s\n", program->name, e.text);
    options_free(&t->options);
    return status ? 1 : 0;
}
