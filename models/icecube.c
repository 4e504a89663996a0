#include "models/icecube.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- sizes ---- */

enum { MAX_LAYERS = 256 };

IceConfig ice_config_default(void) {
    return (IceConfig){.d_model = 128,
                       .n_heads = 8,
                       .t1_layers = 4,
                       .t2_layers = 4,
                       .d_ff = 512,
                       .pooling = "mean",
                       .dropout = 0.1,
                       .time_scale = 3e4,
                       .position_scale = 500,
                       .max_doms = 2048};
}

static const char *const poolings[] = {"mean", "max", "mean+max", "class", "embedding", NULL};

int ice_reading_check(double dropout, double time_scale, double position_scale, int max_doms,
                      Err *e) {
    if (!(dropout >= 0 && dropout < 1))
        return err_set(e, "dropout is %g; it must be from 0 to below 1", dropout);
    if (!(time_scale > 0 && time_scale <= 1e12))
        return err_set(e, "the time scale is %g ns; it must be positive", time_scale);
    if (!(position_scale > 0 && position_scale <= 1e12))
        return err_set(e, "the position scale is %g m; it must be positive", position_scale);
    if (max_doms < 1)
        return err_set(e, "at most %d DOMs an event are none; give at least 1", max_doms);
    return 0;
}

int ice_config_check(const IceConfig *g, Err *e) {
    if (g->d_model < 2 || g->n_heads < 1 || g->t1_layers < 0 || g->t2_layers < 1 || g->d_ff < 1)
        return err_set(e, "sizes must be positive: d_model %d, heads %d, layers %d and %d, d_ff %d",
                       g->d_model, g->n_heads, g->t1_layers, g->t2_layers, g->d_ff);
    if (g->t1_layers > MAX_LAYERS || g->t2_layers > MAX_LAYERS)
        return err_set(e, "%d and %d layers are too many; at most %d each", g->t1_layers,
                       g->t2_layers, MAX_LAYERS);
    if (g->d_model % g->n_heads || g->d_model % 2)
        return err_set(e, "d_model %d must be even and divide into %d heads; choose a multiple",
                       g->d_model, g->n_heads);
    if (!config_name(poolings, g->pooling))
        return err_set(e, "no pooling '%s'; there are mean, max, mean+max, class and embedding",
                       g->pooling ? g->pooling : "");
    return ice_reading_check(g->dropout, g->time_scale, g->position_scale, g->max_doms, e);
}

void ice_config_rows(IceConfig *g, ConfigRow row[ICE_CONFIG_ROWS]) {
    const ConfigRow table[ICE_CONFIG_ROWS] = {
        {"d_model", "d-model", CONFIG_INT, &g->d_model, NULL, false},
        {"n_heads", "n-heads", CONFIG_INT, &g->n_heads, NULL, false},
        {"t1_layers", "t1-layers", CONFIG_INT, &g->t1_layers, NULL, false},
        {"t2_layers", "t2-layers", CONFIG_INT, &g->t2_layers, NULL, false},
        {"d_ff", "d-ff", CONFIG_INT, &g->d_ff, NULL, false},
        {"pooling", "pooling", CONFIG_NAME, &g->pooling, poolings, false},
        {"dropout", "dropout", CONFIG_DOUBLE, &g->dropout, NULL, false},
        {"time_scale", "time-scale", CONFIG_DOUBLE, &g->time_scale, NULL, false},
        {"position_scale", "position-scale", CONFIG_DOUBLE, &g->position_scale, NULL, false},
        {"max_doms", "max-doms", CONFIG_INT, &g->max_doms, NULL, false},
    };
    memcpy(row, table, sizeof table);
}

void ice_config_json(const IceConfig *g, char *text, size_t size) {
    IceConfig copy = *g;
    ConfigRow row[ICE_CONFIG_ROWS];
    ice_config_rows(&copy, row);
    config_write(text, size, "hierarchical", row, ICE_CONFIG_ROWS);
}

int ice_config_parse(IceConfig *g, const char *json, Err *e) {
    *g = ice_config_default();
    ConfigRow row[2 + ICE_CONFIG_ROWS] = {
        {"n_layers", NULL, CONFIG_INT, &g->t1_layers, NULL, false},
        {"n_layers", NULL, CONFIG_INT, &g->t2_layers, NULL, false}};
    ice_config_rows(g, row + 2);
    if (config_read(json, "hierarchical", false, row, 2 + ICE_CONFIG_ROWS, e)) return -1;
    return ice_config_check(g, e);
}

/* ---- parameters: one row each, under the originals' names ---- */

static void add_norm(ParamTable *p, LayerNorm *w, int64_t n, const char *name) {
    params_add(p, &w->weight, GROUP_ADAMW, INIT_ONE, 0, 1, (int64_t[]){n}, "%s.weight", name);
    params_set_exact(p);
    params_add(p, &w->bias, GROUP_ADAMW, INIT_ZERO, 0, 1, (int64_t[]){n}, "%s.bias", name);
    params_set_exact(p);
}

static void add_linear(ParamTable *p, Linear *w, ParamInit bias, int64_t out, int64_t in,
                       const char *name) {
    params_add_linear(p, &w->weight, &w->bias, GROUP_ADAMW, bias, out, in, name);
}

#define KEY(...) (snprintf(name, sizeof name, __VA_ARGS__), name)

static void add_pulse_layer(ParamTable *p, IceLayer *w, const IceConfig *g, int l) {
    const int C = g->d_model;
    char name[64];
    add_linear(p, &w->qkv, INIT_UNIFORM, 3 * C, C, KEY("t1.layers.%d.qkv_proj", l));
    add_linear(p, &w->out, INIT_UNIFORM, C, C, KEY("t1.layers.%d.out_proj", l));
    add_linear(p, &w->up, INIT_UNIFORM, g->d_ff, C, KEY("t1.layers.%d.ff.0", l));
    add_linear(p, &w->down, INIT_UNIFORM, C, g->d_ff, KEY("t1.layers.%d.ff.3", l));
    add_norm(p, &w->norm1, C, KEY("t1.layers.%d.norm1", l));
    add_norm(p, &w->norm2, C, KEY("t1.layers.%d.norm2", l));
}

/* torch.nn.TransformerEncoderLayer: its packed projection is Xavier's, its attention biases 0. */
static void add_dom_layer(ParamTable *p, IceLayer *w, const IceConfig *g, int l) {
    const int C = g->d_model;
    const float xavier = sqrtf(6.0f / (float)(C + 3 * C));
    char name[64];
    params_add(p, &w->qkv.weight, GROUP_ADAMW, INIT_UNIFORM, xavier, 2, (int64_t[]){3 * C, C},
               "t2.transformer.layers.%d.self_attn.in_proj_weight", l);
    params_add(p, &w->qkv.bias, GROUP_ADAMW, INIT_ZERO, 0, 1, (int64_t[]){3 * C},
               "t2.transformer.layers.%d.self_attn.in_proj_bias", l);
    add_linear(p, &w->out, INIT_ZERO, C, C, KEY("t2.transformer.layers.%d.self_attn.out_proj", l));
    add_linear(p, &w->up, INIT_UNIFORM, g->d_ff, C, KEY("t2.transformer.layers.%d.linear1", l));
    add_linear(p, &w->down, INIT_UNIFORM, C, g->d_ff, KEY("t2.transformer.layers.%d.linear2", l));
    add_norm(p, &w->norm1, C, KEY("t2.transformer.layers.%d.norm1", l));
    add_norm(p, &w->norm2, C, KEY("t2.transformer.layers.%d.norm2", l));
}

static bool pools_by(const Ice *m, const char *pooling) { return !strcmp(m->cfg.pooling, pooling); }

static void add_parameters(Ice *m) {
    const IceConfig *g = &m->cfg;
    ParamTable *p = &m->params;
    const int C = g->d_model;
    add_linear(p, &m->t1.input, INIT_UNIFORM, C, 4, "t1.input_projection");
    if (pools_by(m, "class"))
        params_add(p, &m->t1.class_token, GROUP_ADAMW, INIT_NORMAL, 1, 1, (int64_t[]){C},
                   "t1.class_token");
    if (!pools_by(m, "embedding")) {
        for (int l = 0; l < g->t1_layers; l++) add_pulse_layer(p, &m->t1.layer[l], g, l);
        add_norm(p, &m->t1.norm, C, "t1.norm");
    }
    if (pools_by(m, "mean+max"))
        add_linear(p, &m->t1.projection, INIT_UNIFORM, C, 2 * C, "t1.projection");
    add_linear(p, &m->t2.geometry1, INIT_UNIFORM, C / 2, 3, "t2.geometry_encoder.0");
    add_linear(p, &m->t2.geometry2, INIT_UNIFORM, C, C / 2, "t2.geometry_encoder.2");
    for (int l = 0; l < g->t2_layers; l++) add_dom_layer(p, &m->t2.layer[l], g, l);
    add_linear(p, &m->t2.head1, INIT_UNIFORM, C, C, "t2.prediction_head.0");
    add_linear(p, &m->t2.head2, INIT_UNIFORM, 3, C, "t2.prediction_head.3");
    char name[64];
    for (int l = 0; l < (pools_by(m, "embedding") ? 0 : g->t1_layers); l++)
        mask_add_learned(p, &m->t1.layer[l].learned, GROUP_ADAM, m->dom_mask,
                         KEY("t1.layers.%d.learned", l));
    for (int l = 0; l < g->t2_layers; l++)
        mask_add_learned(p, &m->t2.layer[l].learned, GROUP_ADAM, m->event_mask,
                         KEY("t2.transformer.layers.%d.learned", l));
}

int ice_init(Ice *m, const IceConfig *cfg, const Mask *dom_mask, const Mask *event_mask,
             const Ctx *c, bool training, Err *e) {
    memset(m, 0, sizeof *m);
    if (ice_config_check(cfg, e)) return -1;
    m->cfg = *cfg;
    m->dom_mask = dom_mask;
    m->event_mask = event_mask;
    m->t1.layer = calloc((size_t)cfg->t1_layers + 1, sizeof *m->t1.layer);
    m->t2.layer = calloc((size_t)cfg->t2_layers, sizeof *m->t2.layer);
    CHECK(m->t1.layer && m->t2.layer, "no memory for the tables of %d and %d layers",
          cfg->t1_layers, cfg->t2_layers);
    params_init(&m->params, c);
    add_parameters(m);
    return params_commit(&m->params, training, e);
}

void ice_free(Ice *m) {
    params_free(&m->params);
    free(m->t1.layer);
    free(m->t2.layer);
    memset(m, 0, sizeof *m);
}

/* ---- the model ---- */

/* Of a residual branch. Each call of a step draws numbers of its own: layers are counted. */
typedef struct Dropout {
    float p;
    uint32_t step, layer;
} Dropout;

/* After so many parts of a step the numbers come again. */
enum { LAYERS_OF_A_PART = 2048, PARTS_OF_A_STEP = 8192 };

static Dropout dropout_begin(const Ice *m, const IceInput *in, uint32_t first) {
    const uint32_t part = in->part % PARTS_OF_A_STEP;
    return (Dropout){(float)m->cfg.dropout, in->step, part * LAYERS_OF_A_PART + first};
}

/* x + drop(y W' + b) */
static Tensor *residual(Ctx *c, Dropout *d, Tensor *x, Tensor *y, const Linear *w) {
    return op_linear_dropout_add(c, x, y, w, d->p, d->step, d->layer++);
}

/* Without the last projection, which residual does. */
static Tensor *attention(Ctx *c, const IceConfig *g, const IceLayer *w, Tensor *x,
                         const Mask *mask) {
    const float scale = 1.0f / sqrtf((float)(g->d_model / g->n_heads));
    x = op_linear(c, x, &w->qkv);                                          /* (1, N, 3C) */
    return op_attention_packed(c, x, g->n_heads, mask, w->learned, scale); /* (1, N, C)  */
}

static Tensor *pool(Ctx *c, const Ice *m, const IceInput *in, Tensor *x) {
    if (pools_by(m, "class")) return op_segment_first(c, x, in->dom_token); /* (1, M, C) */
    if (pools_by(m, "max")) return op_segment_max(c, x, in->dom_offsets);   /* (1, M, C) */
    Tensor *mean = op_segment_mean(c, x, in->dom_offsets);                  /* (1, M, C) */
    if (!pools_by(m, "mean+max")) return mean;
    Tensor *max = op_segment_max(c, x, in->dom_offsets);             /* (1, M, C) */
    return op_linear(c, op_concat(c, mean, max), &m->t1.projection); /* (1, M, C) */
}

Tensor *ice_dom_embedding(Ctx *c, const Ice *m, const IceInput *in) {
    Dropout d = dropout_begin(m, in, 0);
    Tensor *x = op_linear(c, op_cast(c, in->pulse), &m->t1.input); /* (1, N, C) */
    if (pools_by(m, "embedding")) return pool(c, m, in, x);
    if (pools_by(m, "class"))
        x = op_segment_prepend(c, x, in->dom_offsets, m->t1.class_token); /* (1, N + M, C) */
    for (int l = 0; l < m->cfg.t1_layers; l++) { /* the norm comes after the sum */
        const IceLayer *w = &m->t1.layer[l];
        Tensor *y = attention(c, &m->cfg, w, x, m->dom_mask); /* (1, N, C)    */
        x = residual(c, &d, x, y, &w->out);                   /* (1, N, C)    */
        x = op_layernorm(c, x, &w->norm1);                    /* (1, N, C)    */
        y = op_linear_gelu(c, x, &w->up);                     /* (1, N, d_ff) */
        x = residual(c, &d, x, y, &w->down);                  /* (1, N, C)    */
        x = op_layernorm(c, x, &w->norm2);                    /* (1, N, C)    */
    }
    return pool(c, m, in, op_layernorm(c, x, &m->t1.norm)); /* (1, M, C) */
}

Tensor *ice_forward(Ctx *c, const Ice *m, const IceInput *in) {
    Dropout d = dropout_begin(m, in, LAYERS_OF_A_PART / 2);
    Tensor *x = ice_dom_embedding(c, m, in);                              /* (1, M, C)   */
    Tensor *y = op_linear_gelu(c, op_cast(c, in->xyz), &m->t2.geometry1); /* (1, M, C/2) */
    x = op_add(c, x, op_linear(c, y, &m->t2.geometry2));                  /* (1, M, C)   */
    for (int l = 0; l < m->cfg.t2_layers; l++) { /* the norm stands in the branch */
        const IceLayer *w = &m->t2.layer[l];
        y = attention(c, &m->cfg, w, op_layernorm(c, x, &w->norm1), m->event_mask);
        x = residual(c, &d, x, y, &w->out);                           /* (1, M, C)    */
        y = op_linear_relu(c, op_layernorm(c, x, &w->norm2), &w->up); /* (1, M, d_ff) */
        x = residual(c, &d, x, y, &w->down);                          /* (1, M, C)    */
    }
    x = op_segment_mean(c, x, in->event_offsets); /* (1, B, C) */
    x = op_linear_relu(c, x, &m->t2.head1);       /* (1, B, C) */
    x = op_dropout(c, x, d.p, d.step, d.layer);   /* (1, B, C) */
    x = op_linear(c, x, &m->t2.head2);            /* (1, B, 3) */
    return op_unit_vector(c, x);                  /* (1, B, 3) */
}
