#include "llmc_like/train_options.h"

#include <string.h>

#include "kernels/attention.h"
#include "kernels/device.h"

static int run_options(TrainSettings *s, const TrainWords *w, Option *row) {
    const double big = 1 << 20;
    const Option table[] = {
        {"Run", OPT_HEADING, NULL, NULL, 0, 0, NULL, NULL},
        {"preset", OPT_STRING, &s->preset, "auto", 0, 0, w->preset_help, w->presets},
        {"device", OPT_STRING, &s->device, "auto", 0, 0,
         "auto: cuda where there is a GPU, else cpu, the best this processor has (cpu-avx512, "
         "cpu-avx2, cpu-portable)",
         NULL},
        {"dtype", OPT_STRING, &s->dtype, "auto", 0, 0,
         "of activations and of what products read; auto: bf16 with cuda, else float32",
         "auto|float32|bf16"},
        {"threads", OPT_INT, &s->threads, "0", 0, 1024, "threads; 0: one a processor", NULL},
        {"out", OPT_STRING, &s->out, w->out, 0, 0, w->out_help, NULL},
        {"steps", OPT_INT, &s->steps, w->steps, 1, 1e9, "optimiser steps", NULL},
        {"batch", OPT_INT, &s->batch, w->batch, 1, big, w->batch_help, NULL},
        {"accumulate", OPT_INT, &s->accumulate, "1", 1, big, "batches a step", NULL},
        {"seed", OPT_U64, &s->seed, "1", 0, 0, "of parameters, data and noise", NULL},
        {"eval-every", OPT_INT, &s->eval_every, w->eval_every, 0, 1e9,
         "steps between evaluations, and after the last; 0: none", NULL},
        {"save-every", OPT_INT, &s->save_every, w->save_every, 0, 1e9,
         "steps between checkpoints, and after the last; 0: none", NULL},
        {"resume", OPT_OPTIONAL, &s->resume, NULL, 0, 0,
         "go on from a checkpoint, a run's folder, or (alone) from --out's last one", NULL},
        {"init", OPT_STRING, &s->init, NULL, 0, 0,
         "begin with the parameters (param.NAME) of a safetensors file", NULL},
        {"plan", OPT_FLAG, &s->plan, "off", 0, 0, "print memory and estimated time, and leave",
         NULL},
        {"profile", OPT_FLAG, &s->profile, "off", 0, 0, "print time and rate of each op at the end",
         NULL},
    };
    memcpy(row, table, sizeof table);
    return sizeof table / sizeof *table;
}

int train_options(TrainSettings *s, const TrainWords *w, Option *row) {
    const Option table[] = {
        {"Attention", OPT_HEADING, NULL, NULL, 0, 0, NULL, NULL},
        {"attn", OPT_STRING, &s->attn, "sdpa", 0, 0,
         "backend; auto: the fastest here; all: --steps steps (10 unless given) with each, and a "
         "table",
         attn_choices},
        {"mask", OPT_STRING, &s->mask, w->mask, 0, 0, w->mask_help, NULL},
        {"score", OPT_STRING, &s->score, "", 0, 0, w->score_help, NULL},
        {"learned", OPT_STRING, &s->learned, "", 0, 0,
         "arrays of numbers that --score names and each layer learns: 'slope:6', "
         "'bias:127,slope:6'",
         NULL},
        {"Training", OPT_HEADING, NULL, NULL, 0, 0, NULL, NULL},
        {"warmup", OPT_INT, &s->warmup, w->warmup, 0, 1e9, w->warmup_help, NULL},
        {"weight-decay", OPT_DOUBLE, &s->weight_decay, w->weight_decay, 0, 1,
         "decoupled weight decay", NULL},
        {"clip", OPT_DOUBLE, &s->clip, w->clip, 0, 1e9, "largest gradient norm; 0: no clipping",
         NULL},
    };
    const int n = run_options(s, w, row);
    s->cpu_preset = w->preset;
    s->gpu_preset = w->gpu_preset;
    memcpy(row + n, table, sizeof table);
    return n + (int)(sizeof table / sizeof *table);
}

int train_resolve(TrainSettings *s, Err *e) {
    const Device *d = device_find(s->device, e);
    if (!d) return -1;
    if (!strcmp(s->device, "auto")) s->device = d == &cuda_device ? "cuda" : "cpu";
    s->preset_is_auto = !strcmp(s->preset, "auto");
    if (s->preset_is_auto) s->preset = d == &cuda_device ? s->gpu_preset : s->cpu_preset;
    return 0;
}

int preset_apply(const Preset *list, const char *name, Options *o, Err *e) {
    for (; list->name; list++) {
        if (strcmp(list->name, name)) continue;
        for (int i = 0; i < PRESET_OPTIONS && list->option[i][0]; i++)
            if (options_preset(o, list->option[i][0], list->option[i][1], e)) return -1;
    }
    return 0;
}
