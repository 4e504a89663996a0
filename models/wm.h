/* The toy video world model: a frame-causal diffusion transformer that predicts the velocity of a
 * rectified flow, frame by frame, given the player's actions (Peebles and Xie, "Scalable diffusion
 * models with transformers", 2023; Chen et al., "Diffusion forcing", 2024; the model is toy-wm's).
 *
 * Dimensions: B batch, F frames, N patches a frame, R registers, S = N + R tokens a frame, T = F S
 * tokens, C d_model, H heads, D = C / H, P patch side, h and w the picture. Pictures are channels
 * last, in [-1, 1]. */
#ifndef MODELS_WM_H
#define MODELS_WM_H

#include "kernels/ops.h"
#include "llmc_like/config.h"
#include "llmc_like/params.h"

typedef struct WmConfig {
    int d_model, n_heads, n_blocks;
    int n_frames; /* frames a clip in training, and the window of sampling                       */
    int height, width; /* multiples of patch */
    int patch, expansion, n_registers, n_actions, timesteps;
    const char
        *rope; /* "rope" flat positions, "learn" tables that are parameters, "vid" x, y, t thirds */
    double rope_base;
} WmConfig;

/* The sizes that DESIGN's presets share: 24 x 24 pictures, patches of 3, one register, 4 actions.
 */
WmConfig wm_config_default(void);

/* -1 and a sentence for sizes that make no model, or more tokens than a float32 position counts.
 */
enum { WM_MAX_TOKENS = 1 << 22 };
int wm_config_check(const WmConfig *cfg, Err *e);

int wm_tokens_per_frame(const WmConfig *cfg); /* S */
int wm_tokens(const WmConfig *cfg);           /* T */

/* What the JSON text holds, and the options that set it (llmc_like/config.h); values point into
 * *cfg.
 */
enum { WM_CONFIG_ROWS = 13 };
void wm_config_rows(WmConfig *cfg, ConfigRow row[WM_CONFIG_ROWS]);

/* The config as JSON text with the originals' names, and back. wm_config_parse returns -1 and a
 * sentence for what is no config of this model (the originals' do not name it); `rope` then points
 * to static text. */
void wm_config_json(const WmConfig *cfg, char *text, size_t size);
int wm_config_parse(WmConfig *cfg, const char *json, Err *e);

typedef struct WmBlock {
    Tensor *norm1, *norm2; /* (C)                                        */
    Linear qkv, out;       /* (3C, C), (C, C)                            */
    Tensor *ln_q, *ln_k;   /* (D)                                        */
    Tensor *learned;       /* (mask->n_learned); NULL where that is 0    */
    Linear up, gate, down; /* (4C, C), (4C, C), (C, 4C)                  */
    Linear modulation;     /* (6C, C): shift, scale, gate, for two halves */
} WmBlock;

typedef struct Wm {
    WmConfig cfg;
    ParamTable params;
    struct {
        Conv2d conv1, conv2; /* (C/2, 3, 5, 5), (C/2, C/2, 5, 5)                */
        GroupNorm gn1, gn2;  /* 32 groups; weight NULL where there is no norm   */
        Linear embed;        /* (C, P P C/2)                                    */
    } patch;
    Tensor *registers;  /* (R, C)         */
    Tensor *action_emb; /* (n_actions, C) */
    Linear time_mixer;  /* (C, C)         */
    WmBlock *block;
    Tensor *norm;      /* (C)            */
    Linear modulation; /* (2C, C)        */
    Linear unpatch;    /* (3 P P, C)     */
    Rope rope;         /* (T, D) tables  */
    Tensor rope_table[2];
    Arena rope_memory;
    float *rope_data; /* sin, then cos, on the host: while wm_init runs */
    const Mask *mask; /* what training and sampling see through; the caller's */
} Wm;

/* Registers the parameters, allocates and initialises them; with `training` their gradients and
 * optimiser state too, in the memory of the context's device; drawn from its seed; a dry one
 * counts only. mask must outlive the model. */
int wm_init(Wm *m, const WmConfig *cfg, const Mask *mask, const Ctx *c, bool training, Err *e);
void wm_free(Wm *m);

/* The rolling window of sampling: per block the packed q, k, v rows of the frames before, as the
 * projections made them, so that keys get the QK norm and their positions 0 .. on each use. */
typedef struct WmCache {
    Tensor *rows; /* (n_blocks) buffers of (2 T, 3C) */
    Arena memory;
    int64_t first, n; /* committed rows: first .. first + n - 1 of each buffer */
} WmCache;

int wm_cache_init(WmCache *cache, const Wm *m, const Ctx *c, Err *e);
void wm_cache_free(WmCache *cache);
void wm_cache_reset(WmCache *cache);

/* Takes the rows that the last wm_forward left behind the window into it; the oldest frame leaves
 * when the window is full. */
void wm_cache_commit(Ctx *c, const Wm *m, WmCache *cache, int frames);

/* v = model(x_t, t, actions): x_t (B, F, h, w, 3), t float32 (B, F) in [0, 1], actions int32 (B,
 * F), 0 = none, 1 + action otherwise -> (B, F, h, w, 3). With a cache, B is 1 and the F frames come
 * behind the cached ones. */
Tensor *wm_forward(Ctx *c, const Wm *m, Tensor *x_t, Tensor *t, Tensor *actions, WmCache *cache);

/* What training draws for B examples, the first of which is number `first` of its step's batch: t
 * (B, F) = sigmoid(normal), one level a frame (diffusion forcing); each action (B, F) becomes 0
 * with probability `dropout`; and, where the model runs, z (B, F, h, w, 3) normal. Numbers depend
 * on (seed, step, example). */
void wm_draw(const WmConfig *cfg, uint64_t seed, uint32_t step, int64_t first, int64_t B,
             double dropout, float *t, int32_t *actions);
Tensor *wm_noise(Ctx *c, const WmConfig *cfg, uint64_t seed, uint32_t step, int64_t first,
                 int64_t B);

/* mean((model(x0 - t (x0 - z), t, actions) - (x0 - z))^2), float64 (1). */
Tensor *wm_loss(Ctx *c, const Wm *m, Tensor *x0, Tensor *z, Tensor *t, Tensor *actions);

#endif
