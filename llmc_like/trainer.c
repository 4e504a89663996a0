#include "llmc_like/trainer.h"

#include <cjson/cJSON.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/device.h"
#include "kernels/ops.h"
#include "llmc_like/compare.h"
#include "llmc_like/fsio.h"

int trainer_context(const Trainer *t, Ctx *c, bool dry, Err *e) {
    const TrainSettings *s = t->s;
    if (ctx_init(c, s->device, s->threads, s->seed, dry, e)) return -1;
    const bool automatic = !strcmp(s->dtype, "auto");
    return ctx_set_dtype(c, !automatic ? s->dtype : c->dev->has_bf16 ? "bf16" : "float32", e);
}

/* ---- the plan: the same step, dry ---- */

double trainer_flops(const Ctx *c) {
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

/* What a device's libraries, tables and the scratch of ops take beside what is counted. */
enum { LIBRARY_BYTES = 512 << 20 };

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
        (StepPlan){.largest = c->largest,
                   .activations = c->activations.peak,
                   .gradients = c->gradients.peak,
                   .workspace = c->workspace.peak,
                   .step_flops = t->s->accumulate * trainer_flops(c) + optim_flops(&t->optim, p)};
    plan_add(plan, c->dev->memory, "parameters", p->values.peak);
    plan_add(plan, c->dev->memory, "parameters in bf16", p->rounded.peak);
    plan_add(plan, c->dev->memory, "parameter gradients", p->grads.peak);
    plan_add(plan, c->dev->memory, "optimiser state", p->state.peak);
    plan_add(plan, c->dev->memory, "activations", plan->activations);
    plan_add(plan, c->dev->memory, "activation gradients", plan->gradients);
    plan_add(plan, c->dev->memory, "workspace", plan->workspace);
    if (c->dev->queue) plan_add(plan, c->dev->memory, "libraries", LIBRARY_BYTES);
    g->memory(t->self, plan);
}

static int make_plan(Trainer *t, const char *attn, Err *e) {
    const TrainProgram *g = t->program;
    if (g->first && !(t->first = g->first(t->self, e))) return -1;
    if (trainer_context(t, &t->c, true, e)) return -1;
    int status = choose_attention(t, attn, e);
    if (status == 0) status = g->model(t->self, &t->c, true, e);
    if (status == 0) count_step(t);
    g->model_free(t->self);
    ctx_free(&t->c);
    return status;
}

/* ---- checkpoints ---- */

#define LEARNED_KEY "learned" /* in their metadata: --learned, where there is any */

/* held_out_loss NAN: no evaluation was due, and the file is only the last one. */
static int save(Trainer *t, int64_t step, double held_out_loss, Err *e) {
    const char *const expressions[] = {t->mask_is_expression ? "mask" : "",
                                       t->s->score[0] ? "score" : "", NULL};
    char *options = resume_text(&t->options, expressions);
    MetaPair meta[TRAIN_META + 3] = {{"config", t->config}, {"options", options}};
    int n = 2;
    for (int i = 0; i < t->n_meta; i++) meta[n++] = t->meta[i];
    if (t->s->learned[0]) meta[n++] = (MetaPair){LEARNED_KEY, t->s->learned};
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
    ctx_wait(&t->c, ctx_mark(&t->c));
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

/* What follows a step: its line, and where they are due evaluation and checkpoint. */
static int after_step(Trainer *t, StepRun *r, Err *e) {
    const TrainSettings *s = t->s;
    const int64_t step = r->step;
    double loss = NAN;
    if (trainer_finish(t, r, e)) return fail(t, step);
    if (log_step(t, step, &r->f, e)) return -1;
    const bool failed = due(s->eval_every, step + 1, s->steps) && evaluate(t, step + 1, &loss, e);
    if (failed && isnan(loss)) return fail(t, step + 1);
    if ((due(s->save_every, step + 1, s->steps) || (s->save_every && !isnan(loss))) &&
        save(t, step + 1, loss, e)) /* also where a picture could not be written */
        return -1;
    return failed && !interrupted() ? -1 : 0;
}

/* Whether step's figures must be there before the next one begins. */
static bool must_finish(const Trainer *t, int64_t step) {
    const TrainSettings *s = t->s;
    return !t->c.dev->queue || due(s->eval_every, step + 1, s->steps) ||
           due(s->save_every, step + 1, s->steps) || step + 1 == s->steps || interrupted();
}

/* A device with a queue has the next step to work on while the host logs the one before. */
static int train(Trainer *t, Err *e) {
    const TrainSettings *s = t->s;
    int64_t step = t->first_step; /* the first step touches fresh memory: no step to profile */
    const int64_t profiled = step + (s->steps - step > 1);
    StepRun *behind = NULL;
    t->c.profiling = t->c.profiling || s->profile;
    for (; step < s->steps && !interrupted(); step++) {
        StepRun *now = &t->run[step % 2];
        if (step == profiled) {
            if (behind && after_step(t, behind, e)) return -1;
            behind = NULL;
            ctx_profile_reset(&t->c);
            t->attn_forward_s = t->attn_backward_s = 0;
        }
        if (trainer_start(t, step, now, e)) {
            const Err why = *e;
            if (behind && after_step(t, behind, e)) return -1; /* what it has to say comes first */
            *e = why;
            return fail(t, step);
        }
        if (behind && after_step(t, behind, e)) return -1;
        behind = now;
        if (!must_finish(t, step)) continue;
        if (after_step(t, now, e)) return -1;
        behind = NULL;
    }
    if (behind && after_step(t, behind, e)) return -1;
    if (s->profile) profile_print(&t->c, step - profiled, t->log.peak, stdout);
    if (t->n_left_out)
        printf("%" PRId64 " parts were left out for lack of memory\n", t->n_left_out);
    return interrupted() ? stop(t, step, e) : 0;
}

/* ---- setting up ---- */

/* Device, attention and model. */
static int open_model(Trainer *t, const char *attn, bool training, Err *e) {
    if (trainer_context(t, &t->c, false, e) || choose_attention(t, attn, e)) return -1;
    return t->program->model(t->self, &t->c, training, e);
}

/* The largest batch, below the one that was planned, whose step has room in `left` bytes; 0: none.
 * Bytes grow a little less than in proportion, so each estimate is that batch or more, and a few
 * plans find it. */
static int fitting_batch(Trainer *t, const char *attn, const Memory *memory, double left) {
    const StepPlan planned = t->plan;
    const int batch = t->s->batch;
    int fits = batch;
    Err e;
    while (fits > 0) {
        const StepPlan *plan = &t->plan;
        const double need = (double)memory_total(memory, plan->row, plan->n);
        if (need <= left) break;
        const double step = (double)(plan->activations + plan->gradients + plan->workspace);
        const double next = floor(fits * (left - need + step) / step);
        fits = next < 1 ? 0 : next < fits ? (int)next : fits - 1;
        t->s->batch = fits;
        if (fits > 0 && make_plan(t, attn, &e)) fits = 0;
    }
    t->plan = planned;
    t->s->batch = batch;
    return fits;
}

/* -1 and a sentence where the plan, but for `less` bytes of the device's, finds no room. */
static int check_memory(Trainer *t, const char *attn, size_t less, Err *e) {
    const StepPlan *plan = &t->plan;
    const Memory *memory = device_find(t->s->device, NULL)->memory;
    const size_t need = memory_total(memory, plan->row, plan->n) - less;
    const size_t host = memory->is_host ? 0 : memory_total(&host_memory, plan->row, plan->n);
    if (memory_check_or(&host_memory, host, t->program->leaner, e)) return -1;
    if (!memory_check_or(memory, need, t->program->leaner, e)) return 0;
    const Err refused = *e;
    const int fits = less ? 0 : fitting_batch(t, attn, memory, memory->left());
    char text[SHAPE_TEXT], batch[64] = "";
    if (fits) snprintf(batch, sizeof batch, "; --batch %d would fit", fits);
    return err_set(e, "%.1500s%s (the largest tensor: %s %s, %.0f MiB)", refused.text, batch,
                   plan->largest.name, tensor_shape_text(&plan->largest, text),
                   (double)tensor_bytes(&plan->largest) / 1048576);
}

/* The plan of a step with this backend, and a model for it where the memory is there: all of it, or
 * where parts differ what does not depend on them, and the parts as they come. */
static int open_training(Trainer *t, const char *attn, Err *e) {
    if (make_plan(t, attn, e)) return -1;
    const StepPlan *plan = &t->plan;
    const size_t step = plan->activations + plan->gradients + plan->workspace;
    const bool differ = t->program->parts_differ;
    if (check_memory(t, attn, differ ? step : 0, e) || open_model(t, attn, true, e)) return -1;
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
    Err no_gpu = {""};
    if (t->device_is_auto && t->c.dev != &cuda_device) cuda_device.check(&no_gpu);
    printf("device     %s, %s, %d threads, %.0f GFLOP/s in a matrix product%s%s\n", t->c.dev->name,
           dtype_name(t->c.dtype), t->c.n_threads, t->log.peak, no_gpu.text[0] ? "; no cuda: " : "",
           no_gpu.text);
    printf("attention  %s (%s): %s; mask %s%s%s%s%s\n", t->c.attn->name,
           strcmp(s->attn, "auto") ? "as asked" : "the fastest here", t->c.attn->help, s->mask,
           s->score[0] ? "; score " : "", s->score, s->learned[0] ? "; learned " : "", s->learned);
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
    cJSON_AddNumberToObject(o, "memory_bytes", (double)memory_total(NULL, t->plan.row, t->plan.n));
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

static int measure_peak(Trainer *t, Err *e) {
    if (trainer_context(t, &t->c, false, e)) return -1;
    t->log.peak = peak_gflops(&t->c);
    ctx_free(&t->c);
    return 0;
}

static int run_training(Trainer *t, Err *e) {
    const TrainProgram *g = t->program;
    /* before the loader's thread takes its share, and in a context that leaves no memory behind */
    if (measure_peak(t, e) || open_training(t, t->s->attn, e)) return -1;
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
    if (measure_peak(t, e)) return -1;
    plan_print(&t->plan, s->steps, t->log.peak);
    return check_memory(t, attn, 0, e);
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

/* What the run has of a device's memory. */
static double device_bytes(const Trainer *t) {
    const ParamTable *p = t->params;
    const Arena *const all[] = {&t->c.activations, &t->c.gradients, &t->c.workspace, &p->values,
                                &p->rounded,       &p->grads,       &p->state};
    double bytes = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        bytes += all[i]->memory->is_host ? 0 : (double)all[i]->peak;
    return bytes;
}

/* One backend's share of --attn all; in a process of its own. */
static int compare_one(void *self, const char *backend, int steps, CompareResult *r, int gradients,
                       Err *e) {
    Trainer *t = self;
    if (open_training(t, backend, e) || open_loader(t, e)) return -1;
    if (t->s->init && checkpoint_load(t->s->init, t->params, NULL, NULL, e)) return -1;
    t->c.profiling = true;
    for (; r->steps < steps; r->steps++) {
        StepRun *run = &t->run[0];
        if (interrupted()) return err_set(e, "stopped after %d steps", r->steps);
        if (trainer_start(t, r->steps, run, e) || trainer_finish(t, run, e)) return -1;
        const StepFigures f = run->f;
        if (f.kept == 0) return err_set(e, "nothing is left of step %d to compare", r->steps + 1);
        r->units_per_step = f.units[0];
        r->loss[r->steps] = f.loss;
        r->step_s[r->steps] = f.step_s;
        r->attn_forward_s[r->steps] = f.attn_forward_s;
        r->attn_backward_s[r->steps] = f.attn_backward_s;
        if (r->steps == 0 && compare_gradients(gradients, t->params, e)) return -1;
    }
    r->device_bytes = device_bytes(t);
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

/* Arrays of other names may have the same shape in a file. */
static int same_learned(const Trainer *t, const StFile *file, Err *e) {
    const char *was = st_meta(file, LEARNED_KEY);
    if (!was || !strcmp(was, t->s->learned)) return 0;
    return err_set(e,
                   "it learned the arrays '%s', and --learned is '%s'; give the same, with the "
                   "--score that names them",
                   was, t->s->learned);
}

/* Sizes and options of the checkpoint that the run begins with. */
static int adopt(Trainer *t, const char *from, Err *e) {
    const TrainProgram *g = t->program;
    StFile file;
    if (st_open(from, &file, e)) return -1;
    int status = g->adopt(t->self, st_meta(&file, "config"), e);
    if (status == 0 && !t->s->init)
        status = resume_options(&t->options, st_meta(&file, "options"), g->own, e);
    if (status == 0) status = same_learned(t, &file, e);
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
    t->device_is_auto = !strcmp(s->device, "auto");
    if (train_resolve(s, e) || g->preset(t->self, e)) return -1;
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

/* Whether to plan the step evaluates an expression for every pair of positions: the user's, or what
 * flex makes of a mask's name. */
static bool plan_is_slow(const TrainSettings *s) {
    return !mask_is_named(s->mask) || s->score[0] || !strncmp(s->attn, "flex", 4) ||
           !strcmp(s->attn, "all");
}

/* -1 and a sentence for sizes that have no room, whatever a slow plan would count; a quick one says
 * more. Does not ask a GPU before --attn all: a process that did could fork none that uses it
 * (llmc_like/compare.h). */
static int check_sizes(Trainer *t, Err *e) {
    const TrainSettings *s = t->s;
    const bool forks = !strcmp(s->attn, "all") && !device_find(s->device, NULL)->memory->is_host;
    double least = 0;
    if (t->program->check && t->program->check(t->self, &least, e)) return -1;
    if (least == 0 || s->plan || s->use || forks || !plan_is_slow(s)) return 0;
    if (trainer_context(t, &t->c, true, e)) return -1;
    const size_t bytes = (size_t)least * dtype_size(t->c.dtype);
    const int status = memory_check_or(t->c.dev->memory, bytes, t->program->leaner, e);
    ctx_free(&t->c);
    return status;
}

static int run_asked(Trainer *t, Err *e) {
    interrupts_hold();
    if (check_sizes(t, e)) return -1;
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
