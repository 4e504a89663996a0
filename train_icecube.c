/* train_icecube: trains a transformer that tells where a neutrino came from, predicts directions
 * with it, and shows what each attention kernel costs. What is the models' own: data, masks,
 * batches, evaluation, prediction. The loop is llmc_like/trainer.h's. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/icecube_data.h"
#include "data/icecube_report.h"
#include "llmc_like/fsio.h"
#include "llmc_like/trainer.h"
#include "models/icecube_options.h"

typedef struct Program {
    Trainer t;
    IceSettings s;
    IceData data;
    IceCollate how;
    Mask dom_mask, event_mask;
    Ice dom; /* one of these two is the model */
    IceFlat flat;
    IceStepBatch ahead[LOADER_BUFFERS]; /* what the loader's buffers point to */
    IceStepBatch now;     /* of the plan, of evaluation and prediction; and as a buffer */
    IceStepBatch *buffer; /* would have it: points there */
    int64_t n_bad;        /* damaged events left out so far */
} Program;

static int options(void *self, Option *row) {
    Program *p = self;
    p->s.dom = ice_config_default();
    p->s.flat = ice_flat_config_default();
    return ice_options(&p->s, row);
}

static int preset(void *self, Err *e) {
    Program *p = self;
    return ice_preset(&p->s, &p->t.options, e);
}

static int adopt(void *self, const char *config, Err *e) {
    Program *p = self;
    return ice_adopt_config(&p->s, &p->t.options, config, e);
}

/* ---- batches ---- */

/* A loader's buffer is a pointer to a batch that grows with its events. */
static size_t batch_bytes(void *self) {
    (void)self;
    return sizeof(IceStepBatch *);
}

/* Runs in the loader's thread; buffer `index` modulo their number is free again. */
static int make_batch(void *self, uint64_t index, void *buffer, Err *e) {
    Program *p = self;
    const IceSettings *s = &p->s;
    IceStepBatch *b = &p->ahead[index % LOADER_BUFFERS];
    memcpy(buffer, &b, sizeof b);
    return ice_step_make(b, &p->data, false, index * (uint64_t)s->train.batch, s->train.batch,
                         s->max_pulses, &p->how, false, e);
}

/* Held-out events first .. first + count - 1 into p->now. */
static int make_held_out(Program *p, uint64_t first, int count, Err *e) {
    return ice_step_make(&p->now, &p->data, true, first, count, p->s.max_pulses, &p->how, true, e);
}

static const IceStepBatch *step_batch(const void *buffer) {
    const IceStepBatch *b;
    memcpy(&b, buffer, sizeof b);
    return b;
}

static void name_bad(Program *p, const IceStepBatch *b) {
    if (b->n_bad) printf("left out   %s\n", b->first_bad.text);
    if (b->n_bad > 1) printf("left out   and %d more of the same batch\n", b->n_bad - 1);
    p->n_bad += b->n_bad;
}

static int parts(void *self, const void *batch, double units[RUN_UNITS]) {
    Program *p = self;
    const IceStepBatch *b = step_batch(batch);
    for (int i = 0; i < b->n_parts; i++) {
        units[0] += b->part[i].B;
        units[1] += b->part[i].N;
    }
    if (b != &p->now) name_bad(p, b);
    return b->n_parts;
}

static double share(void *self, const void *batch, int i) {
    const IceStepBatch *b = step_batch(batch);
    (void)self;
    return (double)b->part[i].B / b->n_events;
}

static void part_name(void *self, const void *batch, int i, char text[PART_TEXT]) {
    const IceBatch *b = &step_batch(batch)->part[i];
    const IceLabel *largest = b->label;
    (void)self;
    for (int j = 1; j < b->B; j++)
        if (b->label[j].n_pulses > largest->n_pulses) largest = &b->label[j];
    const int n =
        b->B == 1
            ? 0
            : snprintf(text, PART_TEXT,
                       "a forward of %d events with %d pulses, the largest of them ", b->B, b->N);
    snprintf(text + n, PART_TEXT - (size_t)n, "event %" PRId64 " with %d pulses on %d DOMs",
             largest->event_id, largest->n_pulses, largest->n_doms);
}

/* ---- forward and loss ---- */

static bool has_class_rows(const Program *p) { return !strcmp(p->s.dom.pooling, "class"); }

/* The masks take the part's documents. */
static void set_documents(Program *p, const IceBatch *b) {
    if (ice_is_flat(&p->s)) {
        mask_set_documents(&p->event_mask, b->event_token, b->B);
        return;
    }
    mask_set_documents(&p->dom_mask, has_class_rows(p) ? b->dom_token : b->dom_offsets, b->M);
    mask_set_documents(&p->event_mask, b->event_offsets, b->B);
}

static Tensor *offsets_of(Ctx *c, const char *name, const int32_t *offsets, int n) {
    return ctx_input(c, name, DT_I32, 1, (int64_t[]){n + 1}, offsets);
}

static Tensor *rows_of(Ctx *c, const char *name, const float *x, int64_t n, int64_t cols) {
    return ctx_input(c, name, DT_F32, 3, (int64_t[]){1, n, cols}, x);
}

/* Unit vectors (1, B, 3). */
static Tensor *forward(void *self, Ctx *c, const TrainPart *part) {
    Program *p = self;
    const IceBatch *b = &step_batch(part->batch)->part[part->i];
    const bool flat = ice_is_flat(&p->s);
    set_documents(p, b);
    const IceInput in = {
        .pulse = flat ? NULL : rows_of(c, "pulse", b->pulse, b->N, 4),
        .dom_vector = flat ? rows_of(c, "dom_vector", b->dom_vector, b->M, 4 + 3 * p->how.K) : NULL,
        .xyz = rows_of(c, "xyz", b->xyz, b->M, 3),
        .dom_offsets = offsets_of(c, "dom_offsets", b->dom_offsets, b->M),
        .dom_token = offsets_of(c, "dom_token", b->dom_token, b->M),
        .event_offsets = offsets_of(c, "event_offsets", b->event_offsets, b->B),
        .event_token = offsets_of(c, "event_token", b->event_token, b->B),
        .step = part->step,
        .part = part->number % (1 << 14), /* as many have a dropout of their own */
    };
    return flat ? ice_flat_forward(c, &p->flat, &in) : ice_forward(c, &p->dom, &in);
}

static Tensor *loss(void *self, Ctx *c, const TrainPart *part) {
    const IceBatch *b = &step_batch(part->batch)->part[part->i];
    Tensor *direction = forward(self, c, part);
    return op_angle_loss(c, direction, rows_of(c, "direction", b->direction, b->B, 3));
}

/* ---- the model ---- */

static AttnArgs shape_of(const IceSettings *s, const Mask *mask, int rows) {
    return attn_shape(1, s->dom.n_heads, rows, s->dom.d_model / s->dom.n_heads, mask);
}

/* Of the last part, which has the longest events; T1's first, where it attends at all. */
static int shapes(void *self, const void *first, AttnArgs *shape) {
    Program *p = self;
    const IceStepBatch *s = step_batch(first);
    const IceBatch *b = &s->part[s->n_parts - 1];
    const IceConfig *g = &p->s.dom;
    set_documents(p, b);
    if (ice_is_flat(&p->s)) {
        shape[0] = shape_of(&p->s, &p->event_mask, b->M + b->B);
        return 1;
    }
    int n = 0;
    if (g->t1_layers && strcmp(g->pooling, "embedding"))
        shape[n++] = shape_of(&p->s, &p->dom_mask, has_class_rows(p) ? b->N + b->M : b->N);
    shape[n++] = shape_of(&p->s, &p->event_mask, b->M);
    return n;
}

/* The first batch there is: of training, or of what is to be predicted. */
static const void *first_batch(void *self, Err *e) {
    Program *p = self;
    const IceSettings *s = &p->s;
    if (!s->train.use) {
        const int status = ice_step_make(&p->now, &p->data, false, 0, s->train.batch, s->max_pulses,
                                         &p->how, false, e);
        return status ? NULL : &p->buffer;
    }
    for (int64_t i = 0; i < p->data.n_held; i++) {
        if (make_held_out(p, (uint64_t)i, 1, e)) return NULL;
        if (p->now.n_parts) return &p->buffer;
    }
    err_set(e, "%s: no event that can be read; the last: %s", s->data, p->now.first_bad.text);
    return NULL;
}

static int open_model(void *self, bool training, bool dry, Err *e) {
    Program *p = self;
    Trainer *t = &p->t;
    const IceConfig *g = &p->s.dom;
    const IceFlatConfig *f = &p->s.flat;
    const uint64_t seed = p->s.train.seed;
    char what[160];
    if (ice_is_flat(&p->s)) {
        if (ice_flat_init(&p->flat, f, &p->event_mask, seed, training, dry, e)) return -1;
        t->params = &p->flat.params;
        snprintf(what, sizeof what, "flat: %d layers, input %s, %d pulses a DOM", f->n_layers,
                 f->input, f->K);
    } else {
        if (ice_init(&p->dom, g, &p->dom_mask, &p->event_mask, seed, training, dry, e)) return -1;
        t->params = &p->dom.params;
        snprintf(what, sizeof what, "hierarchical: %d + %d layers, pooling %s", g->t1_layers,
                 g->t2_layers, g->pooling);
    }
    snprintf(t->model, sizeof t->model,
             "%s; d %d, %d heads of %d; at most %d DOMs an event; %.2f M parameters", what,
             g->d_model, g->n_heads, g->d_model / g->n_heads, g->max_doms,
             1e-6 * (double)t->params->numel);
    return 0;
}

static void free_model(void *self) {
    Program *p = self;
    ice_free(&p->dom);
    ice_flat_free(&p->flat);
}

static void memory(void *self, StepPlan *plan) {
    const Program *p = self;
    size_t bytes = 0;
    for (int i = 0; i < p->now.n_parts; i++) bytes += p->now.part[i].block_bytes;
    plan_add(plan, "batches ahead", LOADER_BUFFERS * bytes);
}

/* ---- evaluation and prediction ---- */

static int infer_part(Program *p, const TrainPart *part, IceOutcome *o, int64_t *n, Err *e) {
    const IceBatch *b = &p->now.part[part->i];
    if (trainer_make_room(&p->t, forward, part, e)) {
        if (!p->s.skip_bad) return -1;
        printf("left out   %s\n", e->text);
        p->n_bad += b->B;
        return 0;
    }
    ctx_step_begin(&p->t.c);
    const float *direction = tensor_f32(forward(p, &p->t.c, part));
    for (int i = 0; i < b->B; i++, direction += 3) {
        IceOutcome *one = &o[(*n)++];
        one->label = b->label[i];
        memcpy(one->direction, direction, sizeof one->direction);
    }
    return 0;
}

/* Outcomes of the first `count` held-out events, those left out excepted: *n of them in *o, which
 * the caller frees. Ends early at Ctrl-C. */
static int infer(Program *p, int64_t count, IceOutcome **o, int64_t *n, Err *e) {
    const int most = p->s.train.batch;
    int status = 0;
    *n = 0;
    *o = malloc((size_t)count * sizeof **o);
    if (!*o) return err_set(e, "no memory for the outcomes of %" PRId64 " events", count);
    p->t.c.recording = false;
    for (int64_t at = 0; at < count && !status && !interrupted(); at += most) {
        TrainPart part = {.batch = &p->buffer};
        status = make_held_out(p, (uint64_t)at, (int)(count - at < most ? count - at : most), e);
        if (!status) name_bad(p, &p->now);
        for (; !status && part.i < p->now.n_parts; part.i++)
            status = infer_part(p, &part, *o, n, e);
    }
    p->t.c.recording = true;
    return status;
}

static int64_t held_out_events(const Program *p) {
    const int64_t most = p->s.eval_events;
    return p->data.n_held < most ? p->data.n_held : most;
}

/* Tables, eval.json and report.html of the run so far. */
static int report(Program *p, int64_t step, const IceScore *score, const IceOutcome *o, int64_t n,
                  Err *e) {
    const char *out = p->s.train.out;
    char path[TRAIN_PATH], title[2 * PART_TEXT];
    if (step == p->s.train.steps) ice_score_print(score);
    snprintf(path, sizeof path, "%s/eval.json", out);
    if (ice_score_save(score, path, e)) return -1;
    snprintf(path, sizeof path, "%s/report.html", out);
    snprintf(title, sizeof title, "%s model after step %" PRId64 ", %s", p->s.model, step,
             p->data.description);
    if (ice_report_html(score, o, n, out, title, path, e)) return -1;
    printf("  %s/eval.json, report.html\n", out);
    return 0;
}

/* Reads what evaluations will read: a damaged event shows before the first step. */
static int check_held_out(Program *p, Err *e) {
    const int64_t count = held_out_events(p);
    int64_t n = 0;
    for (int64_t i = 0; i < count && !interrupted(); i++, n += p->now.n_events)
        if (make_held_out(p, (uint64_t)i, 1, e)) return -1;
    if (n || interrupted()) return 0;
    return err_set(e, "%s: no held-out event that can be read; the last: %s", p->s.data,
                   p->now.first_bad.text);
}

static int evaluate(void *self, int64_t step, double *held_out, Err *e) {
    Program *p = self;
    IceOutcome *o;
    int64_t n;
    const double t0 = now_s();
    int status = infer(p, held_out_events(p), &o, &n, e);
    const double rate = (double)n / (now_s() - t0);
    if (!status && !n && !interrupted()) status = err_set(e, "no held-out event is left");
    if (!status && !interrupted()) {
        IceScore score;
        ice_score(&score, o, n);
        const IceMean *all = &score.all;
        printf("held-out   %.2f deg, median %.2f; LineFit %.2f, median %.2f; a guess 90; %" PRId64
               " events, %.0f events/s\n",
               all->mean, all->median, all->linefit_mean, all->linefit_median, n, rate);
        Metrics *m = &p->t.log.metrics;
        metrics_begin(m, step - 1);
        metrics_number(m, "held_out_deg", all->mean);
        metrics_number(m, "held_out_median_deg", all->median);
        metrics_number(m, "held_out_linefit_deg", all->linefit_mean);
        if (!isfinite(all->mean))
            status = trainer_diverged(&p->t, step, "held-out error", all->mean, e);
        else
            *held_out = all->mean;
        if (metrics_end(m, e)) status = -1;
        if (!status) status = report(p, step, &score, o, n, e);
    }
    free(o);
    return status;
}

static int by_event(const void *a, const void *b) {
    const int64_t x = ((const IceOutcome *)a)->label.event_id,
                  y = ((const IceOutcome *)b)->label.event_id;
    return (x > y) - (x < y);
}

/* azimuth in [0, 2 pi), zenith in [0, pi], rad; by event_id */
static int save_csv(const char *path, IceOutcome *o, int64_t n, Err *e) {
    char *text = NULL;
    size_t size;
    FILE *f = open_memstream(&text, &size);
    CHECK(f, "no memory for %" PRId64 " lines", n);
    qsort(o, (size_t)n, sizeof *o, by_event);
    fprintf(f, "event_id,azimuth,zenith\n");
    for (int64_t i = 0; i < n; i++) {
        const float *d = o[i].direction;
        const double azimuth = atan2((double)d[1], (double)d[0]);
        fprintf(f, "%" PRId64 ",%.7g,%.7g\n", o[i].label.event_id,
                azimuth < 0 ? azimuth + 2 * M_PI : fabs(azimuth),
                acos(fmax(-1, fmin(1, (double)d[2]))));
    }
    CHECK(!fclose(f), "no memory for %" PRId64 " lines", n);
    const int status = atomic_save(path, text, size, e);
    free(text);
    return status;
}

static void print_known(IceOutcome *o, int64_t n) {
    int64_t known = 0;
    for (int64_t i = 0; i < n; i++)
        if (o[i].label.known) o[known++] = o[i];
    if (!known) return;
    IceScore score;
    ice_score(&score, o, known);
    printf("where the direction is known:\n");
    ice_score_print(&score);
}

static int predict(void *self, const StFile *file, Err *e) {
    Program *p = self;
    const IceSettings *s = &p->s;
    char path[TRAIN_PATH];
    IceOutcome *o;
    int64_t n;
    (void)file;
    if (!s->csv && make_dirs(s->train.out, e)) return -1;
    if (s->csv)
        snprintf(path, sizeof path, "%s", s->csv);
    else
        snprintf(path, sizeof path, "%s/predictions.csv", s->train.out);
    const double t0 = now_s();
    int status = infer(p, p->data.sim ? held_out_events(p) : p->data.n_held, &o, &n, e);
    const double rate = (double)n / (now_s() - t0);
    if (!status && interrupted())
        status = err_set(e, "stopped after %" PRId64 " events; nothing is written", n);
    if (!status) status = save_csv(path, o, n, e);
    if (!status) {
        printf("%s: %" PRId64 " events, %.0f events/s\n", path, n, rate);
        print_known(o, n);
    }
    free(o);
    return status;
}

/* ---- the program ---- */

static int open_data(Program *p, Err *e) {
    const IceSettings *s = &p->s;
    const bool use = s->train.use;
    const bool all = use && strcmp(s->data, "sim") && !option_was_set(&p->t.options, "held-out");
    const IceDataOptions o = {s->data, s->train.seed, all ? "all" : s->held_out, s->skip_bad, !use};
    if (ice_data_open(&p->data, &o, e)) return -1;
    if (use ? !p->data.n_held : !p->data.n_train)
        return err_set(e, "%s: no event is left to %s; change --held-out %s", s->data,
                       use ? "predict" : "train on", o.held_out);
    if (!use && s->train.eval_every && !p->data.n_held)
        return err_set(e, "%s: --held-out %s leaves nothing to evaluate on; give --eval-every 0",
                       s->data, o.held_out);
    return 0;
}

static void fill_in(Program *p) {
    const IceSettings *s = &p->s;
    Trainer *t = &p->t;
    const bool flat = ice_is_flat(s);
    p->how = (IceCollate){.xyz = p->data.xyz,
                          .time_scale = s->dom.time_scale,
                          .position_scale = s->dom.position_scale,
                          .max_doms = s->dom.max_doms,
                          .K = flat ? s->flat.K : 0};
    t->optim = optim_default();
    t->optim.rule[GROUP_ADAMW].lr = t->lr = s->lr;
    t->optim.rule[GROUP_ADAMW].weight_decay = s->train.weight_decay;
    t->mask_is_expression = strcmp(s->train.mask, "document") != 0;
    t->skip_large = s->skip_bad;
    snprintf(t->data, sizeof t->data, "%s", p->data.description);
    snprintf(t->rates, sizeof t->rates, "AdamW %g, %s", s->lr, s->train.schedule);
    if (flat)
        ice_flat_config_json(&s->flat, t->config, sizeof t->config);
    else
        ice_config_json(&s->dom, t->config, sizeof t->config);
}

static int open_run(void *self, Err *e) {
    Program *p = self;
    IceSettings *s = &p->s;
    const TrainSettings *r = &s->train;
    const int H = s->dom.n_heads;
    if (ice_settings_check(s, &p->t.options, e) || open_data(p, e)) return -1;
    if (mask_init_documents(&p->dom_mask, r->mask, r->score, H, e)) return -1;
    if (mask_init_documents(&p->event_mask, r->mask, r->score, H, e)) return -1;
    mask_set_build(&p->dom_mask, p->t.cache, NULL);
    mask_set_build(&p->event_mask, p->t.cache, NULL);
    p->buffer = &p->now;
    fill_in(p);
    return !r->use && r->eval_every && !p->data.sim ? check_held_out(p, e) : 0;
}

static void close_run(void *self) {
    Program *p = self;
    if (p->n_bad) printf("%" PRId64 " times an event was left out\n", p->n_bad);
    mask_free(&p->dom_mask);
    mask_free(&p->event_mask);
    for (int i = 0; i < LOADER_BUFFERS; i++) ice_step_free(&p->ahead[i]);
    ice_step_free(&p->now);
    ice_data_close(&p->data);
}

static const TrainProgram train_icecube = {
    .name = "train_icecube",
    .summary = "trains a transformer that tells where a neutrino came from",
    .use = "predict",
    .examples = "events",
    .unit = {"events", "pulses"},
    .radians = true,
    .calmer = "a smaller --lr or a smaller --clip",
    .leaner =
        "choose a smaller --max-pulses, --max-doms or --d-model, or --attn sdpa, or leave such "
        "events out with --skip-bad",
    .own = ice_own_options,
    .options = options,
    .preset = preset,
    .adopt = adopt,
    .open = open_run,
    .model = open_model,
    .model_free = free_model,
    .shapes = shapes,
    .batch_bytes = batch_bytes,
    .make = make_batch,
    .first = first_batch,
    .parts = parts,
    .share = share,
    .loss = loss,
    .part_name = part_name,
    .memory = memory,
    .evaluate = evaluate,
    .run_use = predict,
    .close = close_run,
};

int main(int argc, char **argv) {
    if (!getenv("OMP_WAIT_POLICY") && !getenv("GOMP_SPINCOUNT")) threads_wait_asleep(argv);
    static Program p; /* large, and zero to begin with */
    trainer_set_cache(&p.t, getenv("XDG_CACHE_HOME"), getenv("HOME"));
    return trainer_main(&p.t, &train_icecube, &p.s.train, &p, argc, argv);
}
