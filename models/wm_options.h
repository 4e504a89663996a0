/* The options of train_wm: the model's sizes, training, data and sampling, and the presets. */
#ifndef MODELS_WM_OPTIONS_H
#define MODELS_WM_OPTIONS_H

#include "llmc_like/train_options.h"
#include "models/wm.h"

typedef struct WmSettings {
    TrainSettings train; /* use: --sample */
    const char *data, *background, *actions;
    int eval_clips, sample_steps;
    double lr_muon, lr_adam, action_dropout, cfg, held_out;
    WmConfig model;
} WmSettings;

/* Fills the table, whose values point into *s; returns the number of rows. */
int wm_options(WmSettings *s, Option row[TRAIN_MAX_OPTIONS]);

extern const Preset wm_presets[]; /* tiny, paper, toy-wm */
extern const char
    *const wm_own_options[]; /* about one run: a checkpoint does not bring them back */

/* The sizes of a checkpoint's config (NULL: none), where the user named none. */
int wm_adopt_config(Options *o, WmSettings *s, const char *json, Err *e);

/* -1 and a sentence for sizes that make no model, or whose sums would leave 64 bits. *least: how
 * many numbers of activations a step has at the least (TrainProgram.check). */
int wm_check_sizes(const WmSettings *s, double *least, Err *e);

#endif
