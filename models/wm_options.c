#include "models/wm_options.h"

#include <stdio.h>
#include <string.h>

#include "llmc_like/run.h"

const Preset wm_presets[] = {
    {"tiny", /* x, y and t have rotations of their own: learns the game in minutes */
     {{"d-model", "128"},
      {"n-heads", "4"},
      {"n-blocks", "4"},
      {"frames", "10"},
      {"rope", "vid"},
      {"batch", "4"},
      {"steps", "1000"},
      {"lr-adam", "1.5e-3"},
      {"warmup", "50"},
      {"eval-every", "500"}}},
    {"paper",
     {{"d-model", "384"}, {"n-heads", "6"}, {"n-blocks", "8"}, {"frames", "30"}, {"batch", "32"}}},
    {"toy-wm",
     {{"d-model", "320"}, {"n-heads", "20"}, {"n-blocks", "8"}, {"frames", "30"}, {"batch", "64"}}},
    {NULL, {{NULL}}},
};

const char *const wm_own_options[] = {"sample", "actions", NULL};

static const TrainWords words = {
    .preset = "tiny",
    .gpu_preset = "paper",
    .presets = "auto|tiny|paper|toy-wm",
    .preset_help =
        "sizes and schedule to begin with; paper and toy-wm are the originals', auto is paper with "
        "cuda, else tiny",
    .out = "runs/wm",
    .out_help =
        "folder for all that the run leaves; not named: runs/wm, or the next free runs/wm-N",
    .steps = "2500",
    .batch = "8",
    .batch_help = "clips a forward",
    .eval_every = "500",
    .save_every = "100",
    .warmup = "100",
    .warmup_help = "steps of linear warm-up; then a cosine to 0",
    .weight_decay = "1e-5",
    .clip = "10",
    .mask = "frame-causal",
    .mask_help =
        "full, causal, frame-causal, window:W, document:LEN, several joined by &, or an "
        "expression of q, k, b, h, frame[]",
    .score_help = "an expression of score, q, k, b, h, frame[]: 'score - 0.01*(q - k)'",
};

int wm_options(WmSettings *s, Option row[TRAIN_MAX_OPTIONS]) {
    const double big = 1 << 20;
    WmConfig *g = &s->model;
    const Option table[] = {
        {"lr-muon", OPT_DOUBLE, &s->lr_muon, "0.02", 0, 10,
         "learning rate of the blocks' matrices (Muon)", NULL},
        {"lr-adam", OPT_DOUBLE, &s->lr_adam, "3e-4", 0, 10, "learning rate of all the rest (Adam)",
         NULL},
        {"action-dropout", OPT_DOUBLE, &s->action_dropout, "0.2", 0, 1,
         "probability that training hides an action", NULL},
        {"eval-clips", OPT_INT, &s->eval_clips, "16", 1, big, "held-out clips an evaluation", NULL},
        {"Model", OPT_HEADING, NULL, NULL, 0, 0, NULL, NULL},
        {"d-model", OPT_INT, &g->d_model, "128", 2, 65536, "width of the residual stream", NULL},
        {"n-heads", OPT_INT, &g->n_heads, "4", 1, 4096, "attention heads", NULL},
        {"n-blocks", OPT_INT, &g->n_blocks, "4", 1, 1024, "transformer blocks", NULL},
        {"frames", OPT_INT, &g->n_frames, "30", 1, 4096,
         "frames a clip, and the window of sampling", NULL},
        {"height", OPT_INT, &g->height, "24", 1, 4096, "pixels", NULL},
        {"width", OPT_INT, &g->width, "24", 1, 4096, "pixels", NULL},
        {"patch", OPT_INT, &g->patch, "3", 1, 256, "side of a patch in pixels", NULL},
        {"n-registers", OPT_INT, &g->n_registers, "1", 1, 1024,
         "learned tokens behind each frame's patches", NULL},
        {"expansion", OPT_INT, &g->expansion, "4", 1, 64,
         "hidden width of the gated MLP, in d-model", NULL},
        {"rope", OPT_STRING, &g->rope, "rope", 0, 0,
         "rotary tables: flat positions, learned, or x, y and t thirds", "rope|learn|vid"},
        {"rope-base", OPT_DOUBLE, &g->rope_base, "5000", 1, 1e9, "base of the rotary angles", NULL},
        {"Data", OPT_HEADING, NULL, NULL, 0, 0, NULL, NULL},
        {"data", OPT_STRING, &s->data, "pong", 0, 0,
         "pong: the built-in game; or a folder with frames.npy or numbered PNGs, and actions.npy "
         "or .csv",
         NULL},
        {"background", OPT_STRING, &s->background, "auto", 0, 0,
         "background colour R,G,B; auto: the commonest", NULL},
        {"held-out", OPT_DOUBLE, &s->held_out, "0.0625", 0, 0.9,
         "share of a recording that training never reads", NULL},
        {"Sampling", OPT_HEADING, NULL, NULL, 0, 0, NULL, NULL},
        {"sample", OPT_STRING, &s->train.use, NULL, 0, 0,
         "dream from this checkpoint instead of training", NULL},
        {"actions", OPT_STRING, &s->actions, "stay*30,up*60,down*60,none*30", 0, 0,
         "what to do in the dream: a file (.npy, .csv) or a pattern", NULL},
        {"sample-steps", OPT_INT, &s->sample_steps, "10", 1, 10000, "Euler steps a frame", NULL},
        {"cfg", OPT_DOUBLE, &s->cfg, "1", 0, 100,
         "classifier-free guidance; 1: none, at half the cost", NULL},
    };
    const int n = train_options(&s->train, &words, row);
    CHECK(n + sizeof table / sizeof *table <= TRAIN_MAX_OPTIONS, "more than %d options",
          TRAIN_MAX_OPTIONS);
    memcpy(row + n, table, sizeof table);
    s->train.schedule = "warmup-cosine";
    return n + (int)(sizeof table / sizeof *table);
}

/* Sizes from a checkpoint's config, where the user named none. */
int wm_adopt_config(Options *o, WmSettings *s, const char *json, Err *e) {
    if (!json) return 0;
    WmConfig g;
    ConfigRow row[WM_CONFIG_ROWS];
    wm_config_rows(&g, row);
    if (wm_config_parse(&g, json, e)) return -1;
    s->model.n_actions = g.n_actions;
    s->model.timesteps = g.timesteps;
    return config_adopt(o, row, WM_CONFIG_ROWS, e);
}

int wm_check_sizes(const WmSettings *s, double *least, Err *e) {
    const WmConfig *g = &s->model;
    if (wm_config_check(g, e)) return -1;
    const double T = wm_tokens(g), tokens = s->train.batch * T, C = g->d_model;
    *least = 10 * tokens * C * g->n_blocks; /* ten rows of C a token and block */
    const double most =
        4 * (*least + tokens * g->n_heads * T + 3 * tokens * C * g->patch * g->patch);
    if (most > 1e16)
        return err_set(e,
                       "a run of this size needs about %.0f TiB; choose a smaller --batch, "
                       "--frames, --d-model or --preset",
                       most / (1024.0 * 1024 * 1024 * 1024));
    return 0;
}
