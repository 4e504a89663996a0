/* --attn all: the same training steps with every attention backend, from the same start, each in a
 * process of its own, so that times and peak memory are a backend's own and nobody profits from
 * another's warm caches. The table answers "what does this kernel really cost?" end to end. */
#ifndef LLMC_LIKE_COMPARE_H
#define LLMC_LIKE_COMPARE_H

#include "llmc_like/ctx.h"
#include "llmc_like/params.h"

enum { COMPARE_MAX_STEPS = 1000 };

/* What one backend's steps give; medians over the steps after the first, where there are any. */
typedef struct CompareResult {
    int steps;
    double loss[COMPARE_MAX_STEPS], step_s[COMPARE_MAX_STEPS];
    double attn_forward_s[COMPARE_MAX_STEPS], attn_backward_s[COMPARE_MAX_STEPS];
    double units_per_step;
    double device_bytes; /* taken of a memory that is not the host's; 0: the process's own peak
                            counts */
} CompareResult;

/* Trains `steps` steps with that backend and fills the result. After the first backward it hands
 * its gradients to compare_gradients with the `gradients` it was given. -1 and a sentence where
 * the backend declines. Runs in a forked process: it must make its own context and threads. */
typedef int (*CompareFn)(void *self, const char *backend, int steps, CompareResult *r,
                         int gradients, Err *e);

/* Keeps all gradients, in the table's order, for the comparison (a scratch file, not memory). */
int compare_gradients(int gradients, const ParamTable *p, Err *e);

/* Runs train for each name (NULL at the end), prints the table to stdout and writes it to
 * json_path. unit: "tokens". The others are compared with the first that ran. A backend that
 * declines gets a line that says why ("declined" in the JSON); one whose memory the machine has not
 * must decline by itself (memory_check, llmc_like/run.h) before it takes any. Must be called before
 * this process has made any thread. -1 where none runs (with the last one's sentence), a child
 * dies, or Ctrl-C ends it between two. */
int compare_run(const char *const *names, int steps, const char *unit, const char *json_path,
                CompareFn train, void *self, Err *e);

#endif
