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
    IceStepBatch now;  /* of the plan, of evaluation and prediction */
    IceReader *reader; /* for a look at a single event */
    int64_t *bad;      /* ids of the events left out so far: n_bad, room for bad_room */
    int64_t n_bad, bad_room;
    AtomicFile csv;            /* of a prediction; */
    char csv_path[TRAIN_PATH]; /* "": not opened yet */
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

static size_t batch_bytes(void *self) {
    (void)self;
    return sizeof(IceStepBatch);
}

/* Runs in the loader's thread. */
static int make_batch(void *self, uint64_t index, void *buffer, Err *e) {
    const Program *p = self;
    const IceSettings *s = &p->s;
    return ice_step_make(buffer, &p->data, false, index * (uint64_t)s->train.batch, s->train.batch,
                         s->max_pulses, &p->how, false, e);
}

static void free_batch(void *buffer) { ice_step_free(buffer); }

/* Held-out events first .. first + count - 1 into p->now. */
static int make_held_out(Program *p, uint64_t first, int count, Err *e) {
    return ice_step_make(&p->now, &p->data, true, first, count, p->s.max_pulses, &p->how, true, e);
}

/* Counts an event that is left out; false where it was before. */
static bool leave_out(Program *p, int64_t id) {
    for (int64_t i = 0; i < p->n_bad; i++)
        if (p->bad[i] == id) return false;
    if (p->n_bad == p->bad_room) {
        p->bad_room = 2 * p->bad_room + 64;
        p->bad = realloc(p->bad, (size_t)p->bad_room * sizeof *p->bad);
        CHECK(p->bad, "no memory for the ids of %" PRId64 " damaged events", p->bad_room);
    }
    p->bad[p->n_bad++] = id;
    return true;
}

/* Names the damaged events of a step, each once in a run, and ten a step at most. */
static void name_bad(Program *p, bool held_out, const IceStepBatch *b) {
    enum { NAMED = 10 };
    int n = 0;
    for (int i = 0; i < b->n_bad; i++) {
        int64_t id;
        bool known;
        Err why;
        ice_data_event(&p->data, p->reader, held_out, b->bad[i], &id, &known, &why);
        if (leave_out(p, id) && n++ < NAMED) printf("left out   %s\n", why.text);
    }
    if (n > NAMED) printf("left out   and %d more of the same batch\n", n - NAMED);
}

static int parts(void *self, const void *batch) {
    Program *p = self;
    const IceStepBatch *b = batch;
    if (b != &p->now) name_bad(p, false, b);
    return b->n_parts;
}

static double share(void *self, const void *batch, int i, double units[RUN_UNITS]) {
    const IceStepBatch *b = batch;
    (void)self;
    units[0] += b->part[i].B;
    units[1] += b->part[i].N;
    return (double)b->part[i].B / b->n_events;
}

static void part_name(void *self, const void *batch, int i, char text[PART_TEXT]) {
    const IceBatch *b = &((const IceStepBatch *)batch)->part[i];
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

static const IceBatch *batch_of(const TrainPart *part) {
    return &((const IceStepBatch *)part->batch)->part[part->i];
}

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
    const IceBatch *b = batch_of(part);
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
    const IceBatch *b = batch_of(part);
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
    const IceStepBatch *s = first;
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

/* The first batch of which anything is left: of training, or of what is to be predicted. */
static const void *first_batch(void *self, Err *e) {
    Program *p = self;
    const IceSettings *s = &p->s;
    const bool use = s->train.use;
    const int64_t n = use ? p->data.n_held : p->data.n_train;
    int64_t id;
    bool known;
    for (int64_t i = 0; i < n; i += s->train.batch) {
        if (ice_step_make(&p->now, &p->data, use, (uint64_t)i, s->train.batch, s->max_pulses,
                          &p->how, false, e))
            return NULL;
        if (p->now.n_parts) return &p->now;
    }
    ice_data_event(&p->data, p->reader, use, p->now.bad[0], &id, &known, e);
    err_prefix(e, "%s: no event that can be read; one of the last: ", s->data);
    return NULL;
}

static int open_model(void *self, const Ctx *c, bool training, Err *e) {
    Program *p = self;
    Trainer *t = &p->t;
    const IceConfig *g = &p->s.dom;
    const IceFlatConfig *f = &p->s.flat;
    char what[160];
    if (ice_is_flat(&p->s)) {
        if (ice_flat_init(&p->flat, f, &p->event_mask, c, training, e)) return -1;
        t->params = &p->flat.params;
        snprintf(what, sizeof what, "flat: %d layers, input %s, %d pulses a DOM", f->n_layers,
                 f->input, f->K);
    } else {
        if (ice_init(&p->dom, g, &p->dom_mask, &p->event_mask, c, training, e)) return -1;
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
    plan_add(plan, &host_memory, "batches ahead", LOADER_BUFFERS * bytes);
}

/* ---- evaluation and prediction ---- */

/* What the model says of events, those left out excepted. */
typedef struct Outcomes {
    int64_t n_events;      /* of all of them */
    int64_t n_known, room; /* kept, room for: those whose direction is known */
    IceOutcome *known;
} Outcomes;

/* Room for n more, where they begin. */
static IceOutcome *outcomes_reserve(Outcomes *o, int n) {
    if (o->n_known + n > o->room) {
        o->room = 2 * o->room + n;
        o->known = realloc(o->known, (size_t)o->room * sizeof *o->known);
        CHECK(o->known, "no memory for the outcomes of %" PRId64 " events", o->room);
    }
    return o->known + o->n_known;
}

static int infer_part(Program *p, const TrainPart *part, IceOutcome *o, int *n, Err *e) {
    const IceBatch *b = &p->now.part[part->i];
    if (trainer_make_room(&p->t, forward, part, e)) {
        if (!p->s.skip_bad) return -1;
        printf("left out   %s\n", e->text);
        for (int i = 0; i < b->B; i++) leave_out(p, b->label[i].event_id);
        return 0;
    }
    ctx_step_begin(&p->t.c);
    const float *direction = ctx_read_f32(&p->t.c, forward(p, &p->t.c, part));
    for (int i = 0; i < b->B; i++, direction += 3) {
        IceOutcome *one = &o[(*n)++];
        one->label = b->label[i];
        memcpy(one->direction, direction, sizeof one->direction);
    }
    return 0;
}

static int by_event(const void *a, const void *b) {
    const int64_t x = ((const IceOutcome *)a)->label.event_id,
                  y = ((const IceOutcome *)b)->label.event_id;
    return (x > y) - (x < y);
}

/* A batch's lines, by event_id: azimuth in [0, 2 pi), zenith in [0, pi], rad. */
static int write_lines(Program *p, IceOutcome *o, int n, Err *e) {
    const double radian = M_PI / 180;
    char *text = NULL;
    size_t size;
    int status = 0;
    FILE *f = open_memstream(&text, &size);
    CHECK(f, "no memory for %d lines", n);
    qsort(o, (size_t)n, sizeof *o, by_event);
    for (int i = 0; i < n && !status; i++) {
        const float *d = o[i].direction;
        const int64_t id = o[i].label.event_id;
        fprintf(f, "%" PRId64 ",%.7g,%.7g\n", id, radian * ice_azimuth_deg(d),
                radian * ice_zenith_deg(d));
        if (!isfinite(d[0] + d[1] + d[2]))
            status = err_set(e,
                             "event %" PRId64
                             ": the model's direction is (%g, %g, %g), expected numbers; %s "
                             "diverged in training or is damaged: give another checkpoint",
                             id, (double)d[0], (double)d[1], (double)d[2], p->s.train.use);
    }
    CHECK(!fclose(f), "no memory for %d lines", n);
    if (!status) status = atomic_write(&p->csv, text, size, e);
    free(text);
    return status;
}

/* The first `count` held-out events, in prediction each with its line of the CSV. Ends early at
 * Ctrl-C. The caller frees o->known, also after a failure, which leaves the batches before it. */
static int infer(Program *p, int64_t count, Outcomes *o, Err *e) {
    const int most = p->s.train.batch;
    int status = 0;
    *o = (Outcomes){0};
    p->t.c.recording = false;
    for (int64_t at = 0; at < count && !status && !interrupted(); at += most) {
        TrainPart part = {.batch = &p->now};
        IceOutcome *fresh = outcomes_reserve(o, most);
        int n = 0;
        status = make_held_out(p, (uint64_t)at, (int)(count - at < most ? count - at : most), e);
        if (!status) name_bad(p, true, &p->now);
        for (; !status && part.i < p->now.n_parts; part.i++)
            status = infer_part(p, &part, fresh, &n, e);
        if (!status && p->s.train.use) status = write_lines(p, fresh, n, e);
        for (int i = 0; i < n && !status; i++)
            if (fresh[i].label.known) o->known[o->n_known++] = fresh[i];
        if (!status) o->n_events += n;
    }
    p->t.c.recording = true;
    return status;
}

/* How many events an evaluation reads, or a prediction. */
static int64_t held_out_events(const Program *p) {
    const bool all = p->s.train.use && !p->data.sim;
    const int64_t most = all ? INT64_MAX : p->s.eval_events;
    return p->data.n_held < most ? p->data.n_held : most;
}

/* Reads what evaluations or the prediction will read: a damaged event shows before the first. */
static int check_held_out(Program *p, Err *e) {
    const int64_t count = held_out_events(p);
    int64_t n = 0, id;
    bool known;
    for (int64_t i = 0; i < count && !interrupted(); i++)
        if (ice_data_event(&p->data, p->reader, true, (uint64_t)i, &id, &known, e))
            n++;
        else if (!p->s.skip_bad)
            return -1;
    if (n || interrupted()) return 0;
    return err_prefix(e, "%s: no held-out event that can be read; the last: ", p->s.data);
}

/* Tables, eval.json and report.html of the run so far. */
static int report(Program *p, int64_t step, const IceScore *score, const Outcomes *o, Err *e) {
    const char *out = p->s.train.out;
    char path[TRAIN_PATH], title[2 * PART_TEXT];
    if (step == p->s.train.steps) ice_score_print(score);
    snprintf(path, sizeof path, "%s/eval.json", out);
    if (ice_score_save(score, path, e)) return -1;
    snprintf(path, sizeof path, "%s/report.html", out);
    snprintf(title, sizeof title, "%s model after step %" PRId64 ", %s", p->s.model, step,
             p->data.description);
    if (ice_report_html(score, o->known, o->n_known, out, title, path, e)) return -1;
    printf("  %s/eval.json, report.html\n", out);
    return 0;
}

static int evaluate(void *self, int64_t step, double *held_out, Err *e) {
    Program *p = self;
    Outcomes o;
    const double t0 = now_s();
    int status = infer(p, held_out_events(p), &o, e);
    const double rate = (double)o.n_events / (now_s() - t0);
    if (!status && !o.n_events && !interrupted()) status = err_set(e, "no held-out event is left");
    if (!status && !interrupted()) {
        IceScore score;
        ice_score(&score, o.known, o.n_known);
        const IceMean *all = &score.all;
        printf("held-out   %.2f deg, median %.2f; LineFit %.2f, median %.2f; a guess 90; %" PRId64
               " events, %.0f events/s\n",
               all->mean, all->median, all->linefit_mean, all->linefit_median, o.n_events, rate);
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
        if (!status) status = report(p, step, &score, &o, e);
    }
    free(o.known);
    return status;
}

/* Where directions go; before any is predicted. */
static int open_csv(Program *p, Err *e) {
    static const char head[] = "event_id,azimuth,zenith\n";
    const IceSettings *s = &p->s;
    if (!s->csv && make_dirs(s->train.out, e)) return -1;
    if (s->csv)
        snprintf(p->csv_path, sizeof p->csv_path, "%s", s->csv);
    else
        snprintf(p->csv_path, sizeof p->csv_path, "%s/predictions.csv", s->train.out);
    if (atomic_open(&p->csv, p->csv_path, e)) return -1;
    return atomic_write(&p->csv, head, sizeof head - 1, e);
}

/* The CSV of n events; of a prediction that ends early (status -1, the reason in *e), too. */
static int close_csv(Program *p, int64_t n, int status, Err *e) {
    if (!status) return atomic_commit(&p->csv, e);
    Err second = {{0}};
    if (!n || p->csv.fd < 0 || atomic_commit(&p->csv, &second)) return -1;
    return err_prefix(e, "%s holds %" PRId64 " of %" PRId64 " events: ", p->csv_path, n,
                      held_out_events(p));
}

static int predict(void *self, const StFile *file, Err *e) {
    Program *p = self;
    Outcomes o;
    (void)file;
    const double t0 = now_s();
    int status = infer(p, held_out_events(p), &o, e);
    const double rate = (double)o.n_events / (now_s() - t0);
    if (!status && interrupted()) status = err_set(e, "stopped as asked");
    status = close_csv(p, o.n_events, status, e);
    if (!status) printf("%s: %" PRId64 " events, %.0f events/s\n", p->csv_path, o.n_events, rate);
    if (!status && o.n_known) {
        IceScore score;
        ice_score(&score, o.known, o.n_known);
        printf("where the direction is known:\n");
        ice_score_print(&score);
    }
    free(o.known);
    return status;
}

/* ---- the program ---- */

static int open_data(Program *p, Err *e) {
    const IceSettings *s = &p->s;
    const bool use = s->train.use;
    const bool all = use && strcmp(s->data, "sim") && !option_was_set(&p->t.options, "held-out");
    const IceDataOptions o = {s->data, s->train.seed, all ? "all" : s->held_out, s->skip_bad, !use};
    if (ice_data_open(&p->data, &o, e)) return -1;
    p->reader = ice_reader_new(&p->data);
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
    t->optim.rule[GROUP_ADAM].lr = s->lr; /* of what the score expression learns */
    t->optim.rule[GROUP_ADAM].weight_decay = 0;
    t->mask_is_expression = strcmp(s->train.mask, "document") != 0;
    t->skip_large = s->skip_bad;
    snprintf(t->data, sizeof t->data, "%s", p->data.description);
    t->meta[t->n_meta++] = (MetaPair){DATA_KEY, p->data.contents};
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
    if (mask_init_documents(&p->dom_mask, r->mask, r->score, r->learned, H, e)) return -1;
    if (mask_init_documents(&p->event_mask, r->mask, r->score, r->learned, H, e)) return -1;
    mask_set_build(&p->dom_mask, p->t.cache, NULL);
    mask_set_build(&p->event_mask, p->t.cache, NULL);
    fill_in(p);
    if (r->plan) return 0;
    if (r->use && open_csv(p, e)) return -1;
    return (r->use || r->eval_every) && !p->data.sim ? check_held_out(p, e) : 0;
}

static void close_run(void *self) {
    Program *p = self;
    if (p->n_bad)
        printf("%" PRId64 " %s left out\n", p->n_bad, p->n_bad == 1 ? "event was" : "events were");
    if (p->csv_path[0]) atomic_abort(&p->csv);
    free(p->bad);
    mask_free(&p->dom_mask);
    mask_free(&p->event_mask);
    ice_step_free(&p->now);
    ice_reader_free(p->reader);
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
    .batch_free = free_batch,
    .first = first_batch,
    .parts = parts,
    .share = share,
    .loss = loss,
    .parts_differ = true,
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
