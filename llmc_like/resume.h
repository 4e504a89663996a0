/* Going on with a run: the options that it was started with travel in its checkpoints. */
#ifndef LLMC_LIKE_RESUME_H
#define LLMC_LIKE_RESUME_H

#include "llmc_like/options.h"

enum { RESUME_PATH = 4096 };

/* What --resume names, made a checkpoint's path: a .safetensors file is itself, a folder means
 * FOLDER/checkpoints/last.safetensors, and "" (--resume alone) that of `out`. *resume NULL
 * stays so; else it points into `path`. */
void resume_path(const char **resume, const char *out, char path[RESUME_PATH]);

/* The folder of a run that named none: base, base-2, base-3, ...: the first in which no run has
 * left checkpoints; with `last` the last in which one has (base where there is none). Into path,
 * which is returned. */
const char *run_folder(const char *base, bool last, char path[RESUME_PATH]);

/* The folder of the run that --resume names, for a run that goes on in it: the folder itself, or
 * RUN of RUN/checkpoints/FILE.safetensors; false where the file lies elsewhere. Into path. */
bool resume_folder(const char *resume, char path[RESUME_PATH]);

/* All options as JSON text {"steps": "600", ...}, for a checkpoint's metadata. The caller frees it.
 * Of those in `expressions` (NULL at its end) it holds only that there was one: what becomes code
 * comes from the user, never from a file. */
char *resume_text(const Options *o, const char *const *expressions);

/* They become this run's defaults: every option that the user did not give takes the checkpoint's
 * value, but for those about one run alone: out, device, threads, plan and the like, and those in
 * `own` (NULL at its end). text NULL: nothing happens. -1 and a sentence where an expression is
 * wanted and the user gave none, and where the user named another --preset. */
int resume_options(Options *o, const char *text, const char *const *own, Err *e);

#endif
