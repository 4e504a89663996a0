/* What every training program does around its loop: memory table, the line of a step, the profile,
 * the machine's measured peak, Ctrl-C. Knows no model. */
#ifndef LLMC_LIKE_RUN_H
#define LLMC_LIKE_RUN_H

#include <stdbool.h>
#include <stdio.h>

#include "llmc_like/ctx.h"
#include "llmc_like/metrics.h"

/* ---- memory ---- */

typedef struct MemoryRow {
    const Memory *memory;
    const char *name;
    size_t bytes;
} MemoryRow;

/* The rows of that memory; NULL: all. */
size_t memory_total(const Memory *m, const MemoryRow *row, int n);

/* One line a row in MiB (with its memory's name where that is not the host's), and their sum. */
void memory_print(const MemoryRow *row, int n, FILE *out);

/* -1 and a sentence where `bytes` is more than the memory can still give (the system: MemAvailable,
 * or what is left under the memory limit of this process's control group). Asked before anything is
 * allocated. */
int memory_check(const Memory *m, size_t bytes, Err *e);

/* The same with the program's own words for what to do then, where a smaller batch is not it. */
int memory_check_or(const Memory *m, size_t bytes, const char *leaner, Err *e);
#define RUN_LEANER \
    "choose a smaller --batch (with --accumulate for the same gradient), --preset or --attn sdpa"

/* What a dry step has counted. */
enum { PLAN_ROWS = 12 };

typedef struct StepPlan {
    MemoryRow row[PLAN_ROWS];
    int n;
    Tensor largest;                           /* of the activations */
    size_t activations, gradients, workspace; /* bytes, of the rows of these names */
    double step_flops; /* matrix products of one step: its forwards, backwards and update */
} StepPlan;

void plan_add(StepPlan *plan, const Memory *m, const char *name, size_t bytes); /* one row more */

/* The memory table, and the time of the steps at PLAN_SHARE_OF_PEAK of `peak` GFLOP/s. */
void plan_print(const StepPlan *plan, int steps, double peak);

/* The middle of n numbers, or the mean of the two in the middle; sorts x. */
double median(double *x, int n);

/* ---- the machine ---- */

/* GFLOP/s of the device's matrix product (Device.peak), or float32's: the best product of 1024 x
 * 1024 matrices
 * within a second, since other programs may want the processor meanwhile. What "share of the peak"
 * is a share of. */
double peak_gflops(Ctx *c);

/* OpenMP's threads spin while they wait, unless told otherwise before the program starts: where
 * another program wants a processor, a step then takes 2 to 5 times as long (dev/bench/SPEED.md).
 * Starts this program anew with a short spin; returns where that fails, and then they spin. Call
 * first of all, and only where the user has not chosen (OMP_WAIT_POLICY, GOMP_SPINCOUNT). */
void threads_wait_asleep(char **argv);

/* ---- Ctrl-C ---- */

/* From here on SIGINT and SIGTERM wait for interrupted(): the program asks between two steps, saves
 * and leaves. Call before any thread is made. (Ctrl-\ still ends it at once.) */
void interrupts_hold(void);
bool interrupted(void);

/* ---- one step's figures ---- */

enum { RUN_UNITS = 2 };

typedef struct StepFigures {
    double loss, grad_norm, lr;
    double step_s, forward_s, backward_s, update_s, wait_s; /* wall; wait_s: for the loader */
    double attn_forward_s, attn_backward_s;                 /* share of the two passes */
    double flops;                                           /* of the step's matrix products */
    double units[RUN_UNITS];                                /* what it went through, see RunLog */
    double kept; /* the share of its batches that ran: 1 but for parts that were left out */
} StepFigures;

typedef struct RunLog {
    Metrics metrics;
    const char *unit[RUN_UNITS]; /* what rates count: "tokens"; NULL: no second one */
    bool radians;                /* the loss is an angle, and shown in degrees, too */
    double peak;                 /* GFLOP/s; 0: not measured */
    int64_t total_steps;
    double mean_step_s; /* running mean of what a step takes, evaluations included, for the ETA */
    double last_s;
    int64_t lines; /* steps logged so far: the first touches fresh memory and says little */
} RunLog;

/* Prints the line of step `step` (from 0) and appends it to metrics.jsonl. */
int run_log_step(RunLog *r, int64_t step, const StepFigures *f, Err *e);

/* Share of the step by op: calls, forward and backward ms, GFLOP/s, share of the peak for products
 * and GB/s for the rest, sorted by time. steps: how many steps the profile holds. */
void profile_print(const Ctx *c, int64_t steps, double peak, FILE *out);

#endif
