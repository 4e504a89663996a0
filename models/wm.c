#include "models/wm.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc_like/philox.h"

/* ---- sizes ---- */

WmConfig wm_config_default(void) {
    return (WmConfig){.d_model = 128,
                      .n_heads = 4,
                      .n_blocks = 4,
                      .n_frames = 10,
                      .height = 24,
                      .width = 24,
                      .patch = 3,
                      .expansion = 4,
                      .n_registers = 1,
                      .n_actions = 4,
                      .timesteps = 1000,
                      .rope = "rope",
                      .rope_base = 5000};
}

int wm_tokens_per_frame(const WmConfig *cfg) {
    return cfg->height / cfg->patch * (cfg->width / cfg->patch) + cfg->n_registers;
}

int wm_tokens(const WmConfig *cfg) { return cfg->n_frames * wm_tokens_per_frame(cfg); }

/* The originals leave the group norms out of models that are too narrow for 32 groups. */
static bool has_group_norm(const WmConfig *cfg) {
    return cfg->d_model % 32 == 0 && cfg->d_model > 32;
}

static const char *const rope_names[] = {"rope", "learn", "vid", NULL};

int wm_config_check(const WmConfig *g, Err *e) {
    if (g->d_model < 2 || g->n_heads < 1 || g->n_blocks < 1 || g->n_frames < 1 || g->patch < 1 ||
        g->expansion < 1 || g->n_registers < 0 || g->n_actions < 1 || g->timesteps < 2)
        return err_set(e, "sizes must be positive: d_model %d, heads %d, blocks %d, frames %d",
                       g->d_model, g->n_heads, g->n_blocks, g->n_frames);
    if (g->d_model % g->n_heads)
        return err_set(e, "d_model %d does not divide into %d heads; choose a multiple", g->d_model,
                       g->n_heads);
    if (g->d_model / g->n_heads % 2)
        return err_set(e, "a head of %d cannot be rotated in pairs; d_model / n_heads must be even",
                       g->d_model / g->n_heads);
    if (g->d_model % 2) return err_set(e, "d_model %d must be even", g->d_model);
    if (has_group_norm(g) && g->d_model / 2 % 32)
        return err_set(
            e,
            "d_model %d gives convolutions of %d channels, which do not divide into 32 groups; "
            "choose a multiple of 64",
            g->d_model, g->d_model / 2);
    if (g->height % g->patch || g->width % g->patch || g->height < g->patch || g->width < g->patch)
        return err_set(e, "pictures of %d x %d cannot be cut into patches of %d", g->height,
                       g->width, g->patch);
    const int64_t tokens = (int64_t)g->n_frames * (g->height / g->patch) * (g->width / g->patch) +
                           (int64_t)g->n_frames * g->n_registers;
    if (tokens > WM_MAX_TOKENS)
        return err_set(e,
                       "%d frames of %d x %d in patches of %d are %" PRId64
                       " tokens, at most %d are possible; choose fewer --frames, smaller pictures "
                       "or a larger --patch",
                       g->n_frames, g->height, g->width, g->patch, tokens, WM_MAX_TOKENS);
    if (!config_name(rope_names, g->rope))
        return err_set(e, "no rope variant '%s'; there are rope, learn and vid",
                       g->rope ? g->rope : "");
    return 0;
}

void wm_config_rows(WmConfig *g, ConfigRow row[WM_CONFIG_ROWS]) {
    const ConfigRow table[WM_CONFIG_ROWS] = {
        /* the first have no default that could be meant */
        {"d_model", "d-model", CONFIG_INT, &g->d_model, NULL, true},
        {"n_heads", "n-heads", CONFIG_INT, &g->n_heads, NULL, true},
        {"n_blocks", "n-blocks", CONFIG_INT, &g->n_blocks, NULL, true},
        {"n_window", "frames", CONFIG_INT, &g->n_frames, NULL, true},
        {"height", "height", CONFIG_INT, &g->height, NULL, false},
        {"width", "width", CONFIG_INT, &g->width, NULL, false},
        {"patch_size", "patch", CONFIG_INT, &g->patch, NULL, false},
        {"rope", "rope", CONFIG_NAME, &g->rope, rope_names, false},
        {"rope_base", "rope-base", CONFIG_DOUBLE, &g->rope_base, NULL, false},
        {"expansion", "expansion", CONFIG_INT, &g->expansion, NULL, false},
        {"n_registers", "n-registers", CONFIG_INT, &g->n_registers, NULL, false},
        {"n_actions", NULL, CONFIG_INT, &g->n_actions, NULL, false},
        {"timesteps", NULL, CONFIG_INT, &g->timesteps, NULL, false},
    };
    memcpy(row, table, sizeof table);
}

void wm_config_json(const WmConfig *g, char *text, size_t size) {
    WmConfig copy = *g;
    ConfigRow row[WM_CONFIG_ROWS];
    wm_config_rows(&copy, row);
    config_write(text, size, "wm", row, WM_CONFIG_ROWS);
}

int wm_config_parse(WmConfig *g, const char *json, Err *e) {
    *g = wm_config_default();
    ConfigRow row[WM_CONFIG_ROWS];
    wm_config_rows(g, row);
    if (config_read(json, "wm", true, row, WM_CONFIG_ROWS, e)) return -1;
    return wm_config_check(g, e);
}

/* ---- parameters: one row each, under the originals' names ---- */

/* of a norm */
static void add_weight(ParamTable *p, Tensor **slot, int64_t n, const char *name) {
    params_add(p, slot, GROUP_ADAM, INIT_ONE, 0, 1, (int64_t[]){n}, "%s", name);
    params_set_exact(p);
}

static void add_conv(ParamTable *p, Conv2d *w, int64_t out, int64_t in, int number) {
    const float bound = 1.0f / sqrtf((float)(in * 25));
    params_add(p, &w->weight, GROUP_ADAM, INIT_UNIFORM, bound, 4, (int64_t[]){out, in, 5, 5},
               "patch.init_conv_seq.%d.weight", number);
    params_add(p, &w->bias, GROUP_ADAM, INIT_UNIFORM, bound, 1, (int64_t[]){out},
               "patch.init_conv_seq.%d.bias", number);
}

static void add_group_norm(ParamTable *p, GroupNorm *w, int64_t channels, int number) {
    w->groups = 32;
    params_add(p, &w->weight, GROUP_ADAM, INIT_ONE, 0, 1, (int64_t[]){channels},
               "patch.init_conv_seq.%d.weight", number);
    params_set_exact(p);
    params_add(p, &w->bias, GROUP_ADAM, INIT_ZERO, 0, 1, (int64_t[]){channels},
               "patch.init_conv_seq.%d.bias", number);
    params_set_exact(p);
}

static void add_block(ParamTable *p, WmBlock *w, const WmConfig *g, int l) {
    const int C = g->d_model, D = C / g->n_heads, M = g->expansion * C;
    char prefix[32], name[64];
    snprintf(prefix, sizeof prefix, "blocks.%d", l);
#define KEY(suffix) (snprintf(name, sizeof name, "%s." suffix, prefix), name)
    add_weight(p, &w->norm1, C, KEY("norm1.w"));
    params_add_linear(p, &w->qkv.weight, &w->qkv.bias, GROUP_MUON, INIT_UNIFORM, 3 * C, C,
                      KEY("selfattn.QKV"));
    params_add_linear(p, &w->out.weight, &w->out.bias, GROUP_MUON, INIT_UNIFORM, C, C,
                      KEY("selfattn.O"));
    add_weight(p, &w->ln_q, D, KEY("selfattn.lnq.w"));
    add_weight(p, &w->ln_k, D, KEY("selfattn.lnk.w"));
    add_weight(p, &w->norm2, C, KEY("norm2.w"));
    params_add_linear(p, &w->up.weight, &w->up.bias, GROUP_MUON, INIT_ZERO, M, C,
                      KEY("geglu.up_proj"));
    params_add_linear(p, &w->gate.weight, &w->gate.bias, GROUP_MUON, INIT_ZERO, M, C,
                      KEY("geglu.up_gate"));
    params_add_linear(p, &w->down.weight, &w->down.bias, GROUP_MUON, INIT_ZERO, C, M,
                      KEY("geglu.down"));
    params_add_linear(p, &w->modulation.weight, &w->modulation.bias, GROUP_MUON, INIT_UNIFORM,
                      6 * C, C, KEY("modulation.1"));
#undef KEY
}

static void add_parameters(Wm *m) {
    const WmConfig *g = &m->cfg;
    ParamTable *p = &m->params;
    const int C = g->d_model, E = C / 2, P = g->patch, T = wm_tokens(g), D = C / g->n_heads;
    const bool norm = has_group_norm(g);
    params_add(p, &m->registers, GROUP_ADAM, INIT_NORMAL, 1.0f / sqrtf((float)C), 2,
               (int64_t[]){g->n_registers, C}, "registers");
    if (!strcmp(g->rope, "learn")) {
        params_add(p, &m->rope.sin, GROUP_ADAM, INIT_COPY, 0, 4, (int64_t[]){1, T, 1, D},
                   "rope_seq.sins");
        params_set_init_data(p, m->rope_data);
        params_set_exact(p);
        params_add(p, &m->rope.cos, GROUP_ADAM, INIT_COPY, 0, 4, (int64_t[]){1, T, 1, D},
                   "rope_seq.coss");
        params_set_init_data(p, m->rope_data ? m->rope_data + (size_t)T * D : NULL);
        params_set_exact(p);
    }
    for (int l = 0; l < g->n_blocks; l++) add_block(p, &m->block[l], g, l);
    add_conv(p, &m->patch.conv1, E, 3, 0);
    if (norm) add_group_norm(p, &m->patch.gn1, E, 2);
    add_conv(p, &m->patch.conv2, E, E, norm ? 3 : 2);
    if (norm) add_group_norm(p, &m->patch.gn2, E, 5);
    params_add_linear(p, &m->patch.embed.weight, &m->patch.embed.bias, GROUP_ADAM, INIT_UNIFORM, C,
                      P * P * E, "patch.x_embedder");
    add_weight(p, &m->norm, C, "norm.w");
    params_add_linear(p, &m->unpatch.weight, &m->unpatch.bias, GROUP_ADAM, INIT_UNIFORM, 3 * P * P,
                      C, "unpatch.unpatch");
    params_add(p, &m->action_emb, GROUP_ADAM, INIT_NORMAL, 1, 2, (int64_t[]){g->n_actions, C},
               "action_emb.weight");
    params_add_linear(p, &m->time_mixer.weight, &m->time_mixer.bias, GROUP_ADAM, INIT_UNIFORM, C, C,
                      "time_emb_mixer");
    params_add_linear(p, &m->modulation.weight, &m->modulation.bias, GROUP_ADAM, INIT_UNIFORM,
                      2 * C, C, "modulation.1");
    for (int l = 0; l < g->n_blocks; l++) {
        char name[64];
        snprintf(name, sizeof name, "blocks.%d.selfattn.learned", l);
        mask_add_learned(p, &m->block[l].learned, GROUP_ADAMW, m->mask, name);
    }
}

/* ---- rotary tables ---- */

/* Columns at .. at + d - 1 of row p get sin and cos of position * base^(-2i/d), each for two
 * columns. */
static void rope_columns(float *sin_row, float *cos_row, int at, int d, int position, double base) {
    for (int i = 0; i < d; i++) {
        const float theta = expf((float)-log(base) * (float)(i / 2 * 2) / (float)d);
        const float angle = (float)position * theta;
        sin_row[at + i] = sinf(angle);
        cos_row[at + i] = cosf(angle);
    }
}

/* `vid` splits a head into x, y, t thirds (even ones; what is left stays unrotated), each with a
 * third of the base; a register stands right of and below the last patch. */
static void rope_fill(const WmConfig *g, float *sin_table, float *cos_table) {
    const int T = wm_tokens(g), S = wm_tokens_per_frame(g), D = g->d_model / g->n_heads;
    const int columns = g->width / g->patch, rows = g->height / g->patch, N = rows * columns;
    const int third = D / 3 / 2 * 2;
    const double third_base = floor(g->rope_base / 3);
    for (int p = 0; p < T; p++) {
        float *s = sin_table + (size_t)p * D, *c = cos_table + (size_t)p * D;
        if (strcmp(g->rope, "vid")) {
            rope_columns(s, c, 0, D, p, g->rope_base);
            continue;
        }
        const int token = p % S;
        rope_columns(s, c, 0, D, 0, g->rope_base);
        rope_columns(s, c, 0, third, token < N ? token % columns : columns, third_base);
        rope_columns(s, c, third, third, token < N ? token / columns : rows, third_base);
        rope_columns(s, c, 2 * third, third, p / S, third_base);
    }
}

/* The tables of rotation, drawn up on the host (m->rope_data) and given to the device. */
static int rope_make(Wm *m, const Ctx *c, Err *e) {
    const int64_t T = wm_tokens(&m->cfg), D = m->cfg.d_model / m->cfg.n_heads, n = T * D;
    const Memory *memory = c->dev->memory;
    arena_init(&m->rope_memory, "rope tables", memory, c->dry);
    if (arena_commit(&m->rope_memory, 2 * sizeof(float) * (size_t)n, e)) return -1;
    if (!c->dry) {
        m->rope_data = malloc(2 * sizeof(float) * (size_t)n);
        CHECK(m->rope_data, "no memory for tables of %lld positions", (long long)T);
        rope_fill(&m->cfg, m->rope_data, m->rope_data + n);
    }
    for (int i = 0; i < 2; i++) {
        Tensor *t = &m->rope_table[i];
        *t = (Tensor){.dtype = DT_F32, .ndim = 2, .shape = {T, D}, .name = "rope table"};
        t->data = arena_alloc(&m->rope_memory, tensor_bytes(t));
        if (!c->dry) memory->put(t->data, m->rope_data + i * n, tensor_bytes(t));
    }
    return 0;
}

int wm_init(Wm *m, const WmConfig *cfg, const Mask *mask, const Ctx *c, bool training, Err *e) {
    memset(m, 0, sizeof *m);
    if (wm_config_check(cfg, e)) return -1;
    m->cfg = *cfg;
    m->mask = mask;
    m->block = calloc((size_t)cfg->n_blocks, sizeof *m->block);
    CHECK(m->block, "no memory for the tables of %d blocks", cfg->n_blocks);
    m->rope = (Rope){&m->rope_table[0], &m->rope_table[1]};
    params_init(&m->params, c);
    const int status = rope_make(m, c, e);
    if (status == 0) add_parameters(m);
    const int committed = status ? -1 : params_commit(&m->params, training, e);
    free(m->rope_data); /* the device has it */
    m->rope_data = NULL;
    return committed;
}

void wm_free(Wm *m) {
    params_free(&m->params);
    free(m->block);
    if (m->rope_memory.memory) arena_free(&m->rope_memory);
    memset(m, 0, sizeof *m);
}

/* ---- the window of sampling ---- */

int wm_cache_init(WmCache *cache, const Wm *m, const Ctx *c, Err *e) {
    const int64_t rows = 2 * wm_tokens(&m->cfg), cols = 3 * m->cfg.d_model;
    memset(cache, 0, sizeof *cache);
    arena_init(&cache->memory, "sampling window", c->dev->memory, c->dry);
    if (arena_commit(&cache->memory, (size_t)(m->cfg.n_blocks * rows * cols) * dtype_size(c->dtype),
                     e))
        return -1;
    cache->rows = calloc((size_t)m->cfg.n_blocks, sizeof *cache->rows);
    CHECK(cache->rows, "no memory for %d caches", m->cfg.n_blocks);
    for (int l = 0; l < m->cfg.n_blocks; l++) {
        Tensor *t = &cache->rows[l];
        *t = (Tensor){.dtype = c->dtype, .ndim = 2, .shape = {rows, cols}, .name = "kv cache"};
        t->data = arena_alloc(&cache->memory, tensor_bytes(t));
    }
    return 0;
}

void wm_cache_free(WmCache *cache) {
    arena_free(&cache->memory);
    free(cache->rows);
    memset(cache, 0, sizeof *cache);
}

void wm_cache_reset(WmCache *cache) { cache->first = cache->n = 0; }

void wm_cache_commit(Ctx *c, const Wm *m, WmCache *cache, int frames) {
    const int64_t S = wm_tokens_per_frame(&m->cfg), T = wm_tokens(&m->cfg), keep = T - S;
    cache->n += frames * S;
    if (cache->n > keep) {
        cache->first += cache->n - keep;
        cache->n = keep;
    }
    if (cache->first < T) return; /* else there may be no room for a frame behind the window */
    for (int l = 0; l < m->cfg.n_blocks; l++)
        op_cache_rewind(c, &cache->rows[l], cache->first, cache->n);
    cache->first = 0;
}

/* ---- the model ---- */

static Tensor *patch_embedding(Ctx *c, const Wm *m, Tensor *x) {
    Tensor *y = op_silu(c, op_conv2d(c, x, &m->patch.conv1));           /* (B, F, h, w, C/2) */
    if (m->patch.gn1.weight) y = op_groupnorm(c, y, &m->patch.gn1);     /* (B, F, h, w, C/2) */
    y = op_silu(c, op_conv2d(c, y, &m->patch.conv2));                   /* (B, F, h, w, C/2) */
    if (m->patch.gn2.weight) y = op_groupnorm(c, y, &m->patch.gn2);     /* (B, F, h, w, C/2) */
    y = op_linear(c, op_patchify(c, y, m->cfg.patch), &m->patch.embed); /* (B, F, N, C)      */
    return op_append_registers(c, y, m->registers);                     /* (B, T, C)         */
}

Tensor *wm_forward(Ctx *c, const Wm *m, Tensor *x_t, Tensor *t, Tensor *actions, WmCache *cache) {
    const WmConfig *g = &m->cfg;
    const int F = (int)x_t->shape[1], past = cache ? (int)cache->n : 0;

    Tensor *time = op_timestep_embedding(c, t, g->d_model, g->timesteps); /* (B, F, C)       */
    Tensor *action = op_embedding(c, actions, m->action_emb);             /* (B, F, C)       */
    Tensor *cond = op_add(c, op_linear(c, time, &m->time_mixer), action); /* (B, F, C)       */
    cond = op_silu(c, cond);                                              /* (B, F, C)       */

    Tensor *x = patch_embedding(c, m, x_t); /* (B, T, C) */
    for (int l = 0; l < g->n_blocks; l++) {
        const WmBlock *w = &m->block[l];
        Tensor *mod = op_linear(c, cond, &w->modulation); /* (B, F, 6C) shift, scale, gate, twice */

        Tensor *y = op_rmsnorm_modulate(c, x, w->norm1, mod, 0); /* (B, T, C)  */
        y = op_linear(c, y, &w->qkv);                            /* (B, T, 3C) */
        if (cache) y = op_cache_extend(c, &cache->rows[l], cache->first, past, y);
        Qkv a = op_qkv_rope(c, y, w->ln_q, w->ln_k, &m->rope, g->n_heads, past); /* (B, T, H, D) */
        y = op_attention(c, a.q, a.k, a.v, m->mask, w->learned, 1.0f);           /* (B, T, C)  */
        x = op_gate_add(c, x, op_linear(c, y, &w->out), mod, 2);                 /* (B, T, C)  */

        y = op_rmsnorm_modulate(c, x, w->norm2, mod, 3);                     /* (B, T, C)  */
        y = op_geglu(c, op_linear(c, y, &w->up), op_linear(c, y, &w->gate)); /* (B, T, 4C) */
        x = op_gate_add(c, x, op_linear(c, y, &w->down), mod, 5);            /* (B, T, C)  */
    }
    Tensor *mod = op_linear(c, cond, &m->modulation);          /* (B, F, 2C) shift, scale   */
    x = op_rmsnorm_modulate(c, x, m->norm, mod, 0);            /* (B, T, C)                 */
    x = op_drop_registers(c, x, F, g->n_registers);            /* (B, F, N, C)              */
    x = op_linear(c, x, &m->unpatch);                          /* (B, F, N, 3 P P)          */
    return op_unpatchify(c, x, g->patch, g->height, g->width); /* (B, F, h, w, 3)  */
}

void wm_draw(const WmConfig *g, uint64_t seed, uint32_t step, int64_t first, int64_t B,
             double dropout, float *t, int32_t *actions) {
    const int64_t F = g->n_frames;
    rng_normal((RngKey){seed, step, RNG_NOISE_LEVEL}, (uint64_t)(first * F), t, B * F);
    for (int64_t i = 0; i < B * F; i++) {
        float u;
        rng_uniform((RngKey){seed, step, RNG_ACTION_DROPOUT}, (uint64_t)(first * F + i), &u, 1);
        if (u < dropout) actions[i] = 0;
        t[i] = 1.0f / (1.0f + expf(-t[i]));
    }
}

Tensor *wm_noise(Ctx *c, const WmConfig *g, uint64_t seed, uint32_t step, int64_t first,
                 int64_t B) {
    const int64_t clip = (int64_t)g->n_frames * g->height * g->width * 3;
    const int64_t pictures[] = {B, g->n_frames, g->height, g->width, 3};
    return op_normal(c, 5, pictures, (RngKey){seed, step, RNG_NOISE}, (uint64_t)(first * clip));
}

Tensor *wm_loss(Ctx *c, const Wm *m, Tensor *x0, Tensor *z, Tensor *t, Tensor *actions) {
    Flow flow = op_flow_noise(c, x0, z, t);                   /* x_t = x0 - t v, v = x0 - z */
    Tensor *v = wm_forward(c, m, flow.x_t, t, actions, NULL); /* (B, F, h, w, 3)            */
    return op_mse_loss(c, v, flow.v);
}
