#include "models/icecube_options.h"

#include <cjson/cJSON.h>
#include <stdio.h>
#include <string.h>

static const Preset presets[] = {
    {"demo", /* learns the simulator's events in minutes: times in 3 us, not 30, and positions in
                50 m, not 500, whose encoding else begins far below the pulses' */
     {{"t1-layers", "1"},
      {"d-ff", "256"},
      {"dropout", "0"},
      {"time-scale", "3e3"},
      {"position-scale", "50"},
      {"max-doms", "128"},
      {"batch", "64"},
      {"steps", "2000"},
      {"lr", "1e-3"},
      {"schedule", "warmup-cosine"},
      {"eval-every", "500"}}},
    {"paper", {{"model", "hierarchical"}}},
    {"flat-demo",
     {{"model", "flat"},
      {"k", "8"},
      {"d-ff", "256"},
      {"dropout", "0"},
      {"time-scale", "3e3"},
      {"position-scale", "50"},
      {"max-doms", "128"},
      {"batch", "64"},
      {"steps", "2000"},
      {"lr", "1e-3"},
      {"schedule", "warmup-cosine"},
      {"eval-every", "500"}}},
    {"flat-0.5m", {{"model", "flat"}, {"d-ff", "256"}, {"max-doms", "128"}, {"batch", "4096"}}},
    {"flat-5m",
     {{"model", "flat"},
      {"d-model", "256"},
      {"d-ff", "1024"},
      {"n-layers", "6"},
      {"head-hidden", "1024"},
      {"k", "41"},
      {"max-doms", "128"},
      {"batch", "4096"}}},
    {"flat-10m",
     {{"model", "flat"},
      {"d-model", "384"},
      {"d-ff", "1280"},
      {"n-layers", "6"},
      {"head-hidden", "1024"},
      {"k", "41"},
      {"max-doms", "128"},
      {"batch", "4096"}}},
    {NULL, {{NULL}}},
};

const char *const ice_own_options[] = {"predict", "csv", "skip-bad", NULL};

static const TrainWords words = {
    .preset = "demo",
    .gpu_preset = "paper",
    .presets = "auto|demo|paper|flat-demo|flat-0.5m|flat-5m|flat-10m",
    .preset_help =
        "sizes and schedule to begin with: paper is the specification's hierarchical "
        "model, flat-* are the flat one by parameters, auto is paper with cuda, else demo (with "
        "--model "
        "flat: flat-demo)",
    .out = "runs/icecube",
    .out_help =
        "folder for all that the run leaves; not named: runs/icecube, or the next free "
        "runs/icecube-N",
    .steps = "10000",
    .batch = "256",
    .batch_help = "events a batch, in as many forwards as --max-pulses makes of them",
    .eval_every = "1000",
    .save_every = "100",
    .warmup = "100",
    .warmup_help = "steps of linear warm-up (--schedule warmup-cosine)",
    .weight_decay = "1e-5",
    .clip = "1",
    .mask = "document",
    .mask_help =
        "document: a pulse sees its DOM's pulses (T1), a DOM its event's DOMs (T2); or an "
        "expression of q, k, b, h with doc[q] == doc[k] in it, of both",
    .score_help = "an expression of score, q, k, b, h: 'score - 0.01*(q - k)', of both",
};

static int model_options(IceSettings *s, Option *row) {
    IceConfig *g = &s->dom;
    IceFlatConfig *f = &s->flat;
    const Option table[] = {
        {"Model", OPT_HEADING, NULL, NULL, 0, 0, NULL, NULL},
        {"model", OPT_STRING, &s->model, "hierarchical", 0, 0,
         "hierarchical: pulses in DOMs, DOMs in events; flat: one vector a DOM",
         "hierarchical|flat"},
        {"d-model", OPT_INT, &g->d_model, "128", 2, 65536, "width of the residual stream", NULL},
        {"n-heads", OPT_INT, &g->n_heads, "8", 1, 4096, "attention heads", NULL},
        {"d-ff", OPT_INT, &g->d_ff, "512", 1, 1 << 20, "hidden width of the MLPs", NULL},
        {"dropout", OPT_DOUBLE, &g->dropout, "0.1", 0, 0.99,
         "on the residual branches and the head", NULL},
        {"time-scale", OPT_DOUBLE, &g->time_scale, "3e4", 1, 1e12,
         "what the pulses' times are divided by, ns", NULL},
        {"position-scale", OPT_DOUBLE, &g->position_scale, "500", 0.001, 1e12,
         "what the sensors' positions are divided by, m", NULL},
        {"max-doms", OPT_INT, &g->max_doms, "2048", 1, 5160,
         "DOMs of an event that the model reads, the earliest", NULL},
        {"t1-layers", OPT_INT, &g->t1_layers, "4", 0, 256, "hierarchical: layers over pulses",
         NULL},
        {"t2-layers", OPT_INT, &g->t2_layers, "4", 1, 256, "hierarchical: layers over DOMs", NULL},
        {"pooling", OPT_STRING, &g->pooling, "mean", 0, 0,
         "hierarchical: what becomes of a DOM's pulses; embedding: their mean, no layers",
         "mean|max|mean+max|class|embedding"},
        {"n-layers", OPT_INT, &f->n_layers, "4", 1, 256, "flat: layers", NULL},
        {"head-hidden", OPT_INT, &f->head_hidden, "128", 1, 65536, "flat: width of the head", NULL},
        {"k", OPT_INT, &f->K, "16", 1, 65536, "flat: pulses kept a DOM, the first ones", NULL},
        {"input", OPT_STRING, &f->input, "linear", 0, 0,
         "flat: from a DOM's vector to d-model; none: padded with zeros", "linear|mlp|none"},
    };
    memcpy(row, table, sizeof table);
    return sizeof table / sizeof *table;
}

int ice_options(IceSettings *s, Option row[TRAIN_MAX_OPTIONS]) {
    const double big = 1 << 30;
    const Option training[] = {
        {"lr", OPT_DOUBLE, &s->lr, "3e-4", 0, 10, "largest learning rate (AdamW)", NULL},
        {"schedule", OPT_STRING, &s->train.schedule, "one-cycle", 0, 0,
         "of the learning rate: up and down in two cosines, or warm-up and a cosine to 0",
         "one-cycle|warmup-cosine"},
        {"max-pulses", OPT_INT, &s->max_pulses, "16384", 0, big,
         "pulses a forward at most, but for an event that has more; 0: a batch is one forward",
         NULL},
        {"eval-events", OPT_INT, &s->eval_events, "2000", 1, big, "held-out events an evaluation",
         NULL},
    };
    const Option data[] = {
        {"Data", OPT_HEADING, NULL, NULL, 0, 0, NULL, NULL},
        {"data", OPT_STRING, &s->data, "sim", 0, 0,
         "sim: the built-in simulator; or a folder that data/icecube_convert.py made", NULL},
        {"held-out", OPT_STRING, &s->held_out, "auto", 0, 0,
         "batch files that training never reads: 655,656 or 655-659, none, or auto: the last one",
         NULL},
        {"skip-bad", OPT_FLAG, &s->skip_bad, "off", 0, 0,
         "leave damaged events out, and those that memory does not hold; name and count them",
         NULL},
        {"Prediction", OPT_HEADING, NULL, NULL, 0, 0, NULL, NULL},
        {"predict", OPT_STRING, &s->train.use, NULL, 0, 0,
         "write the directions of all events of --data by this checkpoint, and train nothing",
         NULL},
        {"csv", OPT_STRING, &s->csv, NULL, 0, 0,
         "file for event_id,azimuth,zenith; not named: predictions.csv in --out", NULL},
    };
    int n = train_options(&s->train, &words, row);
    memcpy(row + n, training, sizeof training);
    n += (int)(sizeof training / sizeof *training);
    n += model_options(s, row + n);
    memcpy(row + n, data, sizeof data);
    n += (int)(sizeof data / sizeof *data);
    CHECK(n <= TRAIN_MAX_OPTIONS, "%d options", n);
    return n;
}

bool ice_is_flat(const IceSettings *s) { return !strcmp(s->model, "flat"); }

int ice_preset(IceSettings *s, Options *o, Err *e) {
    const bool of_flat = !strncmp(s->train.preset, "flat-", 5);
    const bool named = option_was_set(o, "preset") && !s->train.preset_is_auto;
    if (option_was_set(o, "model") && named && of_flat != ice_is_flat(s))
        return err_set(e,
                       "--preset %s is of the %s model, and --model is %s; leave one of them out",
                       s->train.preset, of_flat ? "flat" : "hierarchical", s->model);
    if (ice_is_flat(s) && !named) s->train.preset = "flat-demo";
    return preset_apply(presets, s->train.preset, o, e);
}

static int adopt_dom(Options *o, const char *json, Err *e) {
    IceConfig g;
    ConfigRow row[ICE_CONFIG_ROWS];
    ice_config_rows(&g, row);
    if (ice_config_parse(&g, json, e)) return -1;
    return config_adopt(o, row, ICE_CONFIG_ROWS, e);
}

static int adopt_flat(Options *o, const char *json, Err *e) {
    IceFlatConfig g;
    ConfigRow row[ICE_FLAT_CONFIG_ROWS];
    ice_flat_config_rows(&g, row);
    if (ice_flat_config_parse(&g, json, e)) return -1;
    return config_adopt(o, row, ICE_FLAT_CONFIG_ROWS, e);
}

int ice_adopt_config(IceSettings *s, Options *o, const char *json, Err *e) {
    if (!json) return 0;
    cJSON *config = cJSON_Parse(json);
    const cJSON *model = cJSON_GetObjectItemCaseSensitive(config, "model");
    const char *name = cJSON_IsString(model) ? model->valuestring : "";
    const bool flat = !strcmp(name, "flat"), ours = flat || !strcmp(name, "hierarchical");
    cJSON_Delete(config);
    if (!ours)
        return err_set(
            e,
            "it holds another program's model: its config names neither the "
            "hierarchical nor the flat IceCube model; give a checkpoint of train_icecube");
    if (options_adopt(o, "model", flat ? "flat" : "hierarchical", e)) return -1;
    if (flat != ice_is_flat(s))
        return err_set(e, "it holds the %s model, and --model is %s; leave --model out",
                       flat ? "flat" : "hierarchical", s->model);
    return flat ? adopt_flat(o, json, e) : adopt_dom(o, json, e);
}

int ice_settings_check(IceSettings *s, const Options *o, Err *e) {
    static const char *const of_dom[] = {"t1-layers", "t2-layers", "pooling", NULL};
    static const char *const of_flat[] = {"n-layers", "head-hidden", "k", "input", NULL};
    const bool flat = ice_is_flat(s);
    for (const char *const *name = flat ? of_dom : of_flat; *name; name++)
        if (option_was_set(o, *name))
            return err_set(e, "--%s is for --model %s, and this is the %s model; leave it out",
                           *name, flat ? "hierarchical" : "flat", s->model);
    s->flat.d_model = s->dom.d_model;
    s->flat.n_heads = s->dom.n_heads;
    s->flat.d_ff = s->dom.d_ff;
    s->flat.dropout = s->dom.dropout;
    s->flat.time_scale = s->dom.time_scale;
    s->flat.position_scale = s->dom.position_scale;
    s->flat.max_doms = s->dom.max_doms;
    return flat ? ice_flat_config_check(&s->flat, e) : ice_config_check(&s->dom, e);
}
