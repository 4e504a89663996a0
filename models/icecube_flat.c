#include "models/icecube_flat.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- sizes ---- */

enum { MAX_LAYERS = 256 };

IceFlatConfig ice_flat_config_default(void) {
    return (IceFlatConfig){.d_model = 128,
                           .n_heads = 8,
                           .n_layers = 4,
                           .d_ff = 256,
                           .head_hidden = 128,
                           .K = 16,
                           .input = "linear",
                           .dropout = 0.1,
                           .time_scale = 3e4,
                           .position_scale = 500,
                           .max_doms = 128};
}

static const char *const inputs[] = {"linear", "mlp", "none", NULL};

/* Columns of dom_vector. */
static int n_features(const IceFlatConfig *g) { return 4 + 3 * g->K; }

int ice_flat_config_check(const IceFlatConfig *g, Err *e) {
    if (g->d_model < 1 || g->n_heads < 1 || g->n_layers < 1 || g->d_ff < 1 || g->head_hidden < 1)
        return err_set(e,
                       "sizes must be positive: d_model %d, heads %d, layers %d, d_ff %d, head %d",
                       g->d_model, g->n_heads, g->n_layers, g->d_ff, g->head_hidden);
    if (g->n_layers > MAX_LAYERS)
        return err_set(e, "%d layers are too many; at most %d", g->n_layers, MAX_LAYERS);
    if (g->d_model % g->n_heads)
        return err_set(e, "d_model %d does not divide into %d heads; choose a multiple", g->d_model,
                       g->n_heads);
    if (g->K < 1 || g->K > 1 << 16)
        return err_set(e, "K is %d; a DOM's vector has 1 to %d pulses", g->K, 1 << 16);
    if (!config_name(inputs, g->input))
        return err_set(e, "no input '%s'; there are linear, mlp and none",
                       g->input ? g->input : "");
    if (!strcmp(g->input, "none") && n_features(g) > g->d_model)
        return err_set(e,
                       "input none pads a DOM's %d numbers (4 + 3 K) to d_model, which is %d: "
                       "choose K up to %d, or input linear",
                       n_features(g), g->d_model, (g->d_model - 4) / 3);
    return ice_reading_check(g->dropout, g->time_scale, g->position_scale, g->max_doms, e);
}

void ice_flat_config_rows(IceFlatConfig *g, ConfigRow row[ICE_FLAT_CONFIG_ROWS]) {
    const ConfigRow table[ICE_FLAT_CONFIG_ROWS] = {
        {"d_model", "d-model", CONFIG_INT, &g->d_model, NULL, false},
        {"num_heads", "n-heads", CONFIG_INT, &g->n_heads, NULL, false},
        {"num_layers", "n-layers", CONFIG_INT, &g->n_layers, NULL, false},
        {"hidden_dim", "d-ff", CONFIG_INT, &g->d_ff, NULL, false},
        {"head_hidden_dim", "head-hidden", CONFIG_INT, &g->head_hidden, NULL, false},
        {"max_pulses_per_dom", "k", CONFIG_INT, &g->K, NULL, false},
        {"input_mode", "input", CONFIG_NAME, &g->input, inputs, false},
        {"dropout", "dropout", CONFIG_DOUBLE, &g->dropout, NULL, false},
        {"time_scale", "time-scale", CONFIG_DOUBLE, &g->time_scale, NULL, false},
        {"position_scale", "position-scale", CONFIG_DOUBLE, &g->position_scale, NULL, false},
        {"max_doms", "max-doms", CONFIG_INT, &g->max_doms, NULL, false},
    };
    memcpy(row, table, sizeof table);
}

void ice_flat_config_json(const IceFlatConfig *g, char *text, size_t size) {
    IceFlatConfig copy = *g;
    ConfigRow row[ICE_FLAT_CONFIG_ROWS];
    ice_flat_config_rows(&copy, row);
    config_write(text, size, "flat", row, ICE_FLAT_CONFIG_ROWS);
}

int ice_flat_config_parse(IceFlatConfig *g, const char *json, Err *e) {
    *g = ice_flat_config_default();
    ConfigRow row[ICE_FLAT_CONFIG_ROWS];
    ice_flat_config_rows(g, row);
    if (config_read(json, "flat", false, row, ICE_FLAT_CONFIG_ROWS, e)) return -1;
    return ice_flat_config_check(g, e);
}

/* ---- parameters: one row each, under the originals' names ---- */

static void add(ParamTable *p, Tensor **slot, ParamInit init, double size, int64_t rows,
                int64_t cols, const char *name) {
    params_add(p, slot, GROUP_ADAMW, init, (float)size, 2, (int64_t[]){rows, cols}, "%s.weight",
               name);
}

/* With a bias of zeros and weights N(0, 2 / (out + in)): torch.nn.init.xavier_normal_. */
static void add_xavier(ParamTable *p, Linear *w, int64_t out, int64_t in, const char *name) {
    add(p, &w->weight, INIT_NORMAL, sqrt(2.0 / (double)(out + in)), out, in, name);
    params_add(p, &w->bias, GROUP_ADAMW, INIT_ZERO, 0, 1, (int64_t[]){out}, "%s.bias", name);
}

/* The last projection of each branch is zero, so that a block begins as the identity. */
static void add_block(ParamTable *p, IceFlatBlock *w, const IceFlatConfig *g, int l) {
    const int C = g->d_model;
    const double bound = sqrt(3.0 / C); /* of variance 1 / C */
    char name[64];
#define KEY(suffix) (snprintf(name, sizeof name, "blocks.%d." suffix, l), name)
    add(p, &w->q.weight, INIT_UNIFORM, bound, C, C, KEY("attn.c_q"));
    add(p, &w->k.weight, INIT_UNIFORM, bound, C, C, KEY("attn.c_k"));
    add(p, &w->v.weight, INIT_UNIFORM, bound, C, C, KEY("attn.c_v"));
    add(p, &w->out.weight, INIT_ZERO, 0, C, C, KEY("attn.c_proj"));
    add(p, &w->up.weight, INIT_UNIFORM, bound, g->d_ff, C, KEY("ffn.c_fc"));
    add(p, &w->down.weight, INIT_ZERO, 0, C, g->d_ff, KEY("ffn.c_proj"));
#undef KEY
}

static void add_parameters(IceFlat *m) {
    const IceFlatConfig *g = &m->cfg;
    ParamTable *p = &m->params;
    const int C = g->d_model, L = g->n_layers;
    if (!strcmp(g->input, "linear")) {
        add_xavier(p, &m->input1, C, n_features(g), "input_proj");
    } else if (!strcmp(g->input, "mlp")) {
        add_xavier(p, &m->input1, C, n_features(g), "input_proj.0");
        add_xavier(p, &m->input2, C, C, "input_proj.2");
    }
    params_add(p, &m->class_token, GROUP_ADAMW, INIT_NORMAL, 0.02f, 3, (int64_t[]){1, 1, C},
               "cls_token");
    params_add(p, &m->resid_lambdas, GROUP_ADAMW, INIT_ONE, 0, 1, (int64_t[]){L}, "resid_lambdas");
    params_set_exact(p);
    params_add(p, &m->x0_lambdas, GROUP_ADAMW, INIT_VALUE, 0.1f, 1, (int64_t[]){L}, "x0_lambdas");
    params_set_exact(p);
    for (int l = 0; l < L; l++) add_block(p, &m->block[l], g, l);
    params_add_linear(p, &m->head1.weight, &m->head1.bias, GROUP_ADAMW, INIT_UNIFORM,
                      g->head_hidden, C, "direction_head.fc1");
    add_xavier(p, &m->head2, 3, g->head_hidden, "direction_head.fc2");
    for (int l = 0; l < L; l++) {
        char name[64];
        snprintf(name, sizeof name, "blocks.%d.attn.learned", l);
        mask_add_learned(p, &m->block[l].learned, GROUP_ADAM, m->event_mask, name);
    }
}

int ice_flat_init(IceFlat *m, const IceFlatConfig *cfg, const Mask *event_mask, const Ctx *c,
                  bool training, Err *e) {
    memset(m, 0, sizeof *m);
    if (ice_flat_config_check(cfg, e)) return -1;
    m->cfg = *cfg;
    m->event_mask = event_mask;
    m->block = calloc((size_t)cfg->n_layers, sizeof *m->block);
    CHECK(m->block, "no memory for the table of %d layers", cfg->n_layers);
    params_init(&m->params, c);
    add_parameters(m);
    return params_commit(&m->params, training, e);
}

void ice_flat_free(IceFlat *m) {
    params_free(&m->params);
    free(m->block);
    memset(m, 0, sizeof *m);
}

/* ---- the model ---- */

/* Each call of a step's dropout draws numbers of its own: layers are counted. */
enum { LAYERS_OF_A_PART = 1024, PARTS_OF_A_STEP = 16384 };

static Tensor *input_rows(Ctx *c, const IceFlat *m, Tensor *x) {
    if (!strcmp(m->cfg.input, "none")) return op_pad(c, x, m->cfg.d_model); /* (1, M, C) */
    x = op_cast(c, x);
    if (!strcmp(m->cfg.input, "linear")) return op_linear(c, x, &m->input1); /* (1, M, C) */
    x = op_linear_gelu(c, x, &m->input1);                                    /* (1, M, C) */
    return op_linear(c, x, &m->input2);                                      /* (1, M, C) */
}

Tensor *ice_flat_forward(Ctx *c, const IceFlat *m, const IceInput *in) {
    const IceFlatConfig *g = &m->cfg;
    const int H = g->n_heads;
    const float scale = 1.0f / sqrtf((float)(g->d_model / H)), p = (float)g->dropout;
    uint32_t layer = in->part % PARTS_OF_A_STEP * LAYERS_OF_A_PART;

    Tensor *x = op_rmsnorm(c, input_rows(c, m, in->dom_vector));     /* (1, M, C)     */
    x = op_segment_prepend(c, x, in->event_offsets, m->class_token); /* (1, M + B, C) */
    Tensor *x0 = x;
    for (int l = 0; l < g->n_layers; l++) {
        const IceFlatBlock *w = &m->block[l];
        x = op_mix(c, x, x0, m->resid_lambdas, m->x0_lambdas, l); /* r_l x + s_l x0 */

        Tensor *y = op_rmsnorm(c, x);                                      /* (1, M + B, C)    */
        Tensor *q = op_rmsnorm(c, op_linear_heads(c, y, &w->q, H));        /* (1, M + B, H, D) */
        Tensor *k = op_rmsnorm(c, op_linear_heads(c, y, &w->k, H));        /* (1, M + B, H, D) */
        Tensor *v = op_linear_heads(c, y, &w->v, H);                       /* (1, M + B, H, D) */
        y = op_attention(c, q, k, v, m->event_mask, w->learned, scale);    /* (1, M + B, C)    */
        x = op_linear_dropout_add(c, x, y, &w->out, p, in->step, layer++); /* (1, M + B, C)    */

        y = op_linear(c, op_rmsnorm(c, x), &w->up);                         /* (1, M + B, d_ff) */
        y = op_relu_squared(c, y);                                          /* (1, M + B, d_ff) */
        x = op_linear_dropout_add(c, x, y, &w->down, p, in->step, layer++); /* (1, M + B, C)    */
    }
    x = op_segment_first(c, x, in->event_token);                       /* (1, B, C)           */
    x = op_linear_gelu(c, op_rmsnorm(c, x), &m->head1);                /* (1, B, head_hidden) */
    x = op_linear(c, op_dropout(c, x, p, in->step, layer), &m->head2); /* (1, B, 3)           */
    return op_unit_vector(c, x);                                       /* (1, B, 3)           */
}
