/* The options of train_icecube: which model, its sizes, data, training and prediction, and the
 * presets. The specification's numbers are the defaults, the presets' are beside them. */
#ifndef MODELS_ICECUBE_OPTIONS_H
#define MODELS_ICECUBE_OPTIONS_H

#include "llmc_like/train_options.h"
#include "models/icecube.h"
#include "models/icecube_flat.h"

typedef struct IceSettings {
    TrainSettings train; /* use: --predict */
    const char *model;   /* "hierarchical" or "flat" */
    const char *data, *held_out, *csv;
    int eval_events, max_pulses;
    double lr;
    bool skip_bad;
    IceConfig dom;      /* the hierarchical model's; holds what both have until ... */
    IceFlatConfig flat; /* ... ice_settings_check has copied it here */
} IceSettings;

/* Fills the table, whose values point into *s; returns the number of rows. */
int ice_options(IceSettings *s, Option row[TRAIN_MAX_OPTIONS]);

extern const char
    *const ice_own_options[]; /* about one run: a checkpoint does not bring them back */

/* Applies --preset (demo, paper, flat-demo, flat-0.5m, flat-5m, flat-10m); where the user asked for
 * --model flat and no preset, flat-demo. -1 and a sentence for a preset of the other model than
 * --model's. */
int ice_preset(IceSettings *s, Options *o, Err *e);

bool ice_is_flat(const IceSettings *s);

/* Which model and its sizes from a checkpoint's config (NULL: none), where the user named none. -1
 * and a sentence for a config of neither model, and for one of a model that the user did not ask
 * for. */
int ice_adopt_config(IceSettings *s, Options *o, const char *json, Err *e);

/* -1 and a sentence for sizes that do not fit together, and for an option of the other model. */
int ice_settings_check(IceSettings *s, const Options *o, Err *e);

#endif
