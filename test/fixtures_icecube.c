/* test_icecube: runs the IceCube models on fixtures, which hold what PyTorch made of the same
 * parameters and pulses (dev/ref/icecube_ref.py), and compares every result: the grouping by DOM,
 * T1's output, directions, loss, gradients and their norm, parameters after one step of AdamW, the
 * losses of three or ten steps. The config says whether the model is hierarchical or flat. Pulses
 * come in recorded order and go through the program's own collation. Tolerances: test/fixtures.h.
 */
#include "test/fixtures.h"

#include "data/icecube_batch.h"
#include "models/icecube.h"
#include "models/icecube_flat.h"

/* One fixture and the model that it is about. */
typedef struct Case {
    Fixture *f;
    bool is_flat;
    IceConfig cfg;
    IceFlatConfig flat_cfg;
    Mask dom_mask, event_mask;
    Ice tree;
    IceFlat flat;
    float *xyz; /* (5160, 3) m */
    IceEvent *event;
    int B;
    IceBatch batch;
} Case;

/* ---- reading ---- */

static bool has_model(const char *json, const char *name) {
    cJSON *o = cJSON_Parse(json);
    const cJSON *model = cJSON_GetObjectItemCaseSensitive(o, "model");
    const bool same = cJSON_IsString(model) && !strcmp(model->valuestring, name);
    cJSON_Delete(o);
    return same;
}

/* Fixtures are made without dropout, and their gradients are clipped where the config says so. */
static int read_config(Case *k, Err *e) {
    const char *json = fixture_config(k->f, e);
    if (!json) return -1;
    k->is_flat = has_model(json, "flat");
    if (k->is_flat ? ice_flat_config_parse(&k->flat_cfg, json, e)
                   : ice_config_parse(&k->cfg, json, e))
        return -1;
    k->cfg.dropout = k->flat_cfg.dropout = 0;
    k->f->optim = optim_default();
    OptimRule *rule = &k->f->optim.rule[GROUP_ADAMW];
    const FixtureNumber row[] = {
        {"lr", &rule->lr}, {"weight_decay", &rule->weight_decay}, {"grad_clip", &k->f->clip}};
    fixture_config_numbers(json, row, sizeof row / sizeof *row);
    return 0;
}

/* The tensor NAME of n numbers, each of which is in least .. most. */
static const StEntry *read_column(const Case *k, const char *name, int64_t n, double least,
                                  double most, Err *e) {
    const StEntry *t = fixture_find(k->f, name, 1, e);
    if (!t) return NULL;
    if (t->numel != n) {
        err_set(e, "%s has %lld numbers, in.event %lld", name, (long long)t->numel, (long long)n);
        return NULL;
    }
    for (int64_t i = 0; i < n; i++) {
        const double x = fixture_number(t, i);
        if (x >= least && x <= most) continue;
        err_set(e, "%s holds %g; it must be from %g to %g", name, x, least, most);
        return NULL;
    }
    return t;
}

static int read_geometry(Case *k, Err *e) {
    const StEntry *t = fixture_find(k->f, "in.sensor_geometry", 2, e);
    if (!t) return -1;
    if (t->shape[0] != ICE_SENSORS || t->shape[1] != 3)
        return err_set(e, "in.sensor_geometry has not the (%d, 3) of the sensors", ICE_SENSORS);
    k->xyz = fixture_floats(t->numel);
    for (int64_t i = 0; i < t->numel; i++) k->xyz[i] = (float)fixture_number(t, i);
    return 0;
}

/* The events' pulses in recorded order. */
static int read_events(Case *k, Err *e) {
    const StEntry *truth = fixture_find(k->f, "in.direction", 2, e);
    const StEntry *number = truth ? fixture_find(k->f, "in.event", 1, e) : NULL;
    if (!number) return -1;
    k->B = (int)truth->shape[0];
    if (k->B < 1 || truth->shape[1] != 3)
        return err_set(e, "in.direction has not the (events, 3) of directions");
    const int64_t n = number->numel;
    const StEntry *sensor, *time, *charge, *auxiliary;
    if (!read_column(k, "in.event", n, 0, k->B - 1, e) ||
        !(sensor = read_column(k, "in.sensor_id", n, 0, ICE_SENSORS - 1, e)) ||
        !(time = read_column(k, "in.time", n, 0, 1e9, e)) ||
        !(charge = read_column(k, "in.charge", n, 0, 1e9, e)) ||
        !(auxiliary = read_column(k, "in.auxiliary", n, 0, 1, e)))
        return -1;
    k->event = fixture_alloc(sizeof *k->event * (size_t)k->B);
    memset(k->event, 0, sizeof *k->event * (size_t)k->B);
    for (int64_t i = 0; i < n; i++) {
        IceEvent *v = &k->event[(int)fixture_number(number, i)];
        ice_event_reserve(v, v->n + 1);
        v->sensor[v->n] = (int16_t)fixture_number(sensor, i);
        v->time[v->n] = (float)fixture_number(time, i);
        v->charge[v->n] = (float)fixture_number(charge, i);
        v->auxiliary[v->n++] = (uint8_t)fixture_number(auxiliary, i);
    }
    for (int i = 0; i < k->B; i++) {
        if (k->event[i].n == 0) return err_set(e, "event %d has no pulses", i);
        for (int j = 0; j < 3; j++)
            k->event[i].direction[j] = (float)fixture_number(truth, 3 * (int64_t)i + j);
    }
    return 0;
}

static void collate(Case *k) {
    IceCollate how = {
        .xyz = k->xyz,
        .time_scale = k->is_flat ? k->flat_cfg.time_scale : k->cfg.time_scale,
        .position_scale = k->is_flat ? k->flat_cfg.position_scale : k->cfg.position_scale,
        .max_doms = k->is_flat ? k->flat_cfg.max_doms : k->cfg.max_doms,
        .K = k->is_flat ? k->flat_cfg.K : 0};
    const IceEvent **event = fixture_alloc(sizeof *event * (size_t)k->B);
    for (int i = 0; i < k->B; i++) event[i] = &k->event[i];
    ice_batch_make(&k->batch, event, k->B, &how, false);
    free(event);
}

/* ---- the batch ---- */

/* The hierarchical model's out.dom_*: a number a DOM. */
static void compare_doms(Case *k) {
    const IceBatch *b = &k->batch;
    double *event = fixture_alloc(sizeof *event * 3 * (size_t)b->M);
    double *sensor = event + b->M, *count = sensor + b->M;
    for (int e = 0; e < b->B; e++)
        for (int m = b->event_offsets[e]; m < b->event_offsets[e + 1]; m++) {
            event[m] = e;
            sensor[m] = b->sensor[m];
            count[m] = b->dom_offsets[m + 1] - b->dom_offsets[m];
        }
    fixture_compare(k->f, "out.dom_event", event, b->M, 0, NULL);
    fixture_compare(k->f, "out.dom_sensor_id", sensor, b->M, 0, NULL);
    fixture_compare(k->f, "out.dom_pulse_count", count, b->M, 0, NULL);
    free(event);
}

/* The flat model's: (B, max_doms, 4 + 3K) with zeros behind each event's DOMs, and where they are.
 */
static void compare_vectors(Case *k) {
    const IceBatch *b = &k->batch;
    const int64_t cols = 4 + 3 * k->flat_cfg.K, most = k->flat_cfg.max_doms;
    double *vector = calloc((size_t)(b->B * most * (cols + 1)), sizeof *vector);
    CHECK(vector, "no memory for the vectors of %d events", b->B);
    double *valid = vector + b->B * most * cols;
    for (int e = 0; e < b->B; e++)
        for (int m = b->event_offsets[e]; m < b->event_offsets[e + 1]; m++) {
            const int64_t row = e * most + m - b->event_offsets[e];
            valid[row] = 1;
            for (int64_t j = 0; j < cols; j++)
                vector[row * cols + j] = (double)b->dom_vector[m * cols + j];
        }
    fixture_compare(k->f, "out.dom_vectors", vector, b->B * most * cols, FORWARD_TOLERANCE, NULL);
    fixture_compare(k->f, "out.dom_valid", valid, b->B * most, 0, NULL);
    free(vector);
}

static Tensor *input_rows(Ctx *c, const char *name, int64_t rows, int64_t cols, const float *data) {
    return ctx_input(c, name, DT_F32, 3, (int64_t[]){1, rows, cols}, data);
}

static Tensor *input_offsets(Ctx *c, const char *name, int n, const int32_t *data) {
    return ctx_input(c, name, DT_I32, 1, (int64_t[]){n + 1}, data);
}

static IceInput make_input(Case *k) {
    const IceBatch *b = &k->batch;
    Ctx *c = &k->f->c;
    IceInput in = {.xyz = input_rows(c, "xyz", b->M, 3, b->xyz),
                   .dom_offsets = input_offsets(c, "dom_offsets", b->M, b->dom_offsets),
                   .dom_token = input_offsets(c, "dom_token", b->M, b->dom_token),
                   .event_offsets = input_offsets(c, "event_offsets", b->B, b->event_offsets),
                   .event_token = input_offsets(c, "event_token", b->B, b->event_token)};
    if (k->is_flat)
        in.dom_vector = input_rows(c, "dom_vector", b->M, 4 + 3 * k->flat_cfg.K, b->dom_vector);
    else
        in.pulse = input_rows(c, "pulse", b->N, 4, b->pulse);
    return in;
}

/* ---- running ---- */

static Tensor *directions(Case *k) {
    const IceInput in = make_input(k);
    return k->is_flat ? ice_flat_forward(&k->f->c, &k->flat, &in)
                      : ice_forward(&k->f->c, &k->tree, &in);
}

static void run_forward(Case *k) {
    Ctx *c = &k->f->c;
    c->recording = false;
    ctx_step_begin(c);
    fixture_compare_f32(k->f, "out.direction", ctx_read_f32(c, directions(k)), 3 * (int64_t)k->B,
                        FORWARD_TOLERANCE);
    if (!k->is_flat) {
        const IceInput in = make_input(k);
        const Tensor *x = ice_dom_embedding(c, &k->tree, &in);
        fixture_compare_f32(k->f, "out.dom_embedding", ctx_read_f32(c, x), tensor_numel(x),
                            FORWARD_TOLERANCE);
    }
    c->recording = true;
}

static Tensor *training_loss(void *self) {
    Case *k = self;
    Tensor *truth = input_rows(&k->f->c, "direction", k->B, 3, k->batch.direction);
    return op_angle_loss(&k->f->c, directions(k), truth);
}

/* A mask for documents of these offsets, and a backend that does it for calls of this model. */
static int open_mask(Case *k, Mask *m, const FixtureSettings *s, const char *attn,
                     const int32_t *offsets, int n, Err *e) {
    const int H = k->is_flat ? k->flat_cfg.n_heads : k->cfg.n_heads;
    const int C = k->is_flat ? k->flat_cfg.d_model : k->cfg.d_model;
    if (mask_init_documents(m, s->mask, "", "", H, e)) return -1;
    mask_set_documents(m, offsets, n);
    mask_set_build(m, s->cache, NULL);
    const AttnArgs shape = attn_shape(1, H, offsets[n], C / H, m);
    return attn_choose(&k->f->c, attn, &shape, e);
}

/* Of the hierarchical model two calls have masks, pulses by DOM and DOMs by event; the second takes
 * the backend that the first has chosen. */
static int open_masks(Case *k, const FixtureSettings *s, Err *e) {
    const IceBatch *b = &k->batch;
    if (k->is_flat) return open_mask(k, &k->event_mask, s, s->attn, b->event_token, b->B, e);
    const bool class_rows = !strcmp(k->cfg.pooling, "class");
    const int32_t *doms = class_rows ? b->dom_token : b->dom_offsets;
    if (open_mask(k, &k->dom_mask, s, s->attn, doms, b->M, e)) return -1;
    return open_mask(k, &k->event_mask, s, k->f->c.attn->name, b->event_offsets, b->B, e);
}

static int run_case(Case *k, const FixtureSettings *s, Err *e) {
    static const char *const known[] = {
        "out.direction",     "out.loss",        "out.losses3",       "out.losses10",
        "out.grad_norm",     "out.dom_event",   "out.dom_sensor_id", "out.dom_pulse_count",
        "out.dom_embedding", "out.dom_vectors", "out.dom_valid"};
    Fixture *f = k->f;
    if (read_config(k, e) || read_geometry(k, e) || read_events(k, e)) return -1;
    collate(k);
    if (ctx_init(&f->c, s->device, s->threads, 0, false, e) || open_masks(k, s, e) ||
        (k->is_flat ? ice_flat_init(&k->flat, &k->flat_cfg, &k->event_mask, &f->c, true, e)
                    : ice_init(&k->tree, &k->cfg, &k->dom_mask, &k->event_mask, &f->c, true, e)))
        return -1;
    f->params = k->is_flat ? &k->flat.params : &k->tree.params;
    if (fixture_read_parameters(f, e)) return -1;
    fixture_refuse_unknown(f, known, sizeof known / sizeof *known);
    if (k->is_flat)
        compare_vectors(k);
    else
        compare_doms(k);
    run_forward(k);
    fixture_train(f, training_loss, k);
    return 0;
}

static int run_fixture(Fixture *f, const FixtureSettings *s, Err *e) {
    Case k = {.f = f};
    const int status = run_case(&k, s, e);
    ice_free(&k.tree);
    ice_flat_free(&k.flat);
    mask_free(&k.dom_mask);
    mask_free(&k.event_mask);
    ice_batch_free(&k.batch);
    for (int i = 0; k.event && i < k.B; i++) ice_event_free(&k.event[i]);
    free(k.event);
    free(k.xyz);
    return status;
}

static int sample_mask(Mask *m, const char *text, Err *e) {
    if (mask_init_documents(m, text, "", "", 1, e)) return -1;
    mask_set_documents(m, (const int32_t[]){0, 1, 4}, 2);
    return 0;
}

int main(int argc, char **argv) {
    const FixtureProgram program = {"test_icecube", "document", run_fixture, sample_mask};
    return fixture_main(&program, argc, argv);
}
