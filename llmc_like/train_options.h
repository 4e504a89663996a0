/* The options that every training program has, and presets. A program's table is these rows and its
 * own behind them:
 *
 *   int n = train_options(&s->train, &words, row);
 *   n += model_options(s, row + n);
 *
 * What differs from program to program in a shared row (its default, what it says) is in
 * TrainWords. */
#ifndef LLMC_LIKE_TRAIN_OPTIONS_H
#define LLMC_LIKE_TRAIN_OPTIONS_H

#include "llmc_like/options.h"

typedef struct TrainSettings {
    const char *preset, *device, *dtype, *out, *attn, *mask, *score, *learned;
    const char *resume, *init; /* checkpoints to go on from, to begin with; NULL: none */
    const char *use;      /* the checkpoint of the program's own mode (--sample, --predict), which
                             trains nothing; NULL: train. The program has its row */
    const char *schedule; /* of the rate: "warmup-cosine" or "one-cycle"; the program has its row */
    int threads, steps, batch, accumulate, eval_every, save_every, warmup;
    const char *cpu_preset, *gpu_preset; /* what --preset auto is */
    bool preset_is_auto;
    uint64_t seed;
    double weight_decay, clip;
    bool plan, profile;
} TrainSettings;

/* A preset is a list of options with other defaults: pairs of a name and a value, up to a NULL. */
enum { PRESET_OPTIONS = 20 };

typedef struct Preset {
    const char *name, *option[PRESET_OPTIONS][2];
} Preset;

/* Defaults are as the user would type them. */
typedef struct TrainWords {
    /* The default on a CPU and on a GPU; "a|b|c", what they are. */
    const char *preset, *gpu_preset, *presets, *preset_help;
    const char *out, *out_help; /* "runs/wm": the folder of a run that names none */
    const char *steps, *batch, *batch_help, *eval_every, *save_every, *warmup, *warmup_help;
    const char *weight_decay, *clip;
    const char *mask, *mask_help, *score_help;
} TrainWords;

enum { TRAIN_MAX_OPTIONS = 80 };

/* Fills the rows of the headings Run, Attention and Training, whose values point into *s, and
 * returns their number: the program's own rows of Training come next. */
int train_options(TrainSettings *s, const TrainWords *w, Option *row);

/* What "auto" stands for: device by what the machine has, preset by the device (dtype too, but that
 * is asked anew by each run that goes on from a checkpoint: trainer_context). Call after the
 * command line was read. -1 and a sentence for a device that is not there. */
int train_resolve(TrainSettings *s, Err *e);

/* Gives the options of the preset `name` of the list (a preset without a name ends it) their other
 * defaults, where the user did not set them. -1 and a sentence for a value that does not fit. */
int preset_apply(const Preset *list, const char *name, Options *o, Err *e);

#endif
