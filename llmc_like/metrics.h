/* metrics.jsonl: one JSON object a line, appended as the run goes; and run.json.
 *
 *   metrics_begin(&m, step);
 *   metrics_number(&m, "loss", loss);
 *   if (metrics_end(&m, e)) ...
 *
 * A line is written by one system call, so that a reader never sees half of one, and a line that
 * does not fit on the disk leaves nothing behind. Numbers are the shortest text that reads back as
 * the same double; NaN and infinity, which JSON has not, become null. */
#ifndef LLMC_LIKE_METRICS_H
#define LLMC_LIKE_METRICS_H

#include <stddef.h>
#include <stdint.h>

#include "llmc_like/error.h"

struct cJSON; /* cjson/cJSON.h */

typedef struct Metrics {
    int fd; /* -1: not open; then every call does nothing and succeeds */
    char *path;
    int64_t size; /* of the file, in bytes: whole lines only */
    char *line;   /* the line in the making; kept and grown */
    size_t used, cap;
} Metrics;

/* Opens PATH for appending. Of what is there already the lines with "step" below first_step are
 * kept (those without a step too), the others and half-written ones are dropped: 0 begins anew, a
 * resumed run gives the step it goes on with. */
int metrics_open(Metrics *m, const char *path, int64_t first_step, Err *e);
void metrics_close(Metrics *m);

/* Begins a line with {"step": step. The two below add a pair each; keys are not checked for
 * repetition. */
void metrics_begin(Metrics *m, int64_t step);
void metrics_number(Metrics *m, const char *key, double value);
void metrics_text(Metrics *m, const char *key, const char *value); /* UTF-8; NULL becomes null */

/* Writes the line. -1 and a sentence where that fails; the next line may be tried all the same. */
int metrics_end(Metrics *m, Err *e);

/* Writes a JSON object as indented text, atomically (fsio.h): run.json and other reports. */
int json_save(const char *path, const struct cJSON *json, Err *e);

#endif
