/* The options of train_wm: the model's sizes, training, data and sampling, and the presets. */
#ifndef MODELS_WM_OPTIONS_H
#define MODELS_WM_OPTIONS_H

#include "llmc_like/options.h"
#include "models/wm.h"

typedef struct WmSettings {
    const char *device, *preset, *attn, *mask, *score, *data, *background, *out, *resume, *init;
    const char *sample, *actions;
    int threads, steps, batch, accumulate, eval_every, save_every, eval_clips, warmup, sample_steps;
    uint64_t seed;
    double lr_muon, lr_adam, weight_decay, clip, action_dropout, cfg, held_out;
    bool plan, profile;
    WmConfig model;
} WmSettings;

enum { WM_MAX_OPTIONS = 64 };

/* Fills the table, whose values point into *s; returns the number of rows. */
int wm_options(WmSettings *s, Option row[WM_MAX_OPTIONS]);

/* A preset is a list of options with other defaults: tiny, paper, toy-wm. */
int wm_preset(Options *o, const char *name, Err *e);

/* The sizes of a checkpoint's config (NULL: none), where the user named none. */
int wm_adopt_config(Options *o, WmSettings *s, const char *json, Err *e);

/* -1 and a sentence for sizes out of all proportion: whose sums would leave 64 bits, or of which a
 * lower bound is more than the memory that is left (except with --plan and --sample). Comes before
 * anything is counted, since the plan of a mask's expression takes time that grows with T^2. */
int wm_check_sizes(const WmSettings *s, Err *e);

#endif
