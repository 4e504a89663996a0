/* How good are the directions? Tables for the terminal, eval.json, and report.html, one
 * self-contained page of plots (inline SVG, no script, nothing loaded).
 *
 * All angles in degrees. A guess without looking is 90 degrees off in the mean. LineFit's figures
 * are from the same events; where LineFit is undefined its direction is (0, 0, 1), as
 * ice_linefit leaves it. */
#ifndef DATA_ICECUBE_REPORT_H
#define DATA_ICECUBE_REPORT_H

#include "data/icecube_batch.h"
#include "llmc_like/error.h"

/* One event's outcome. */
typedef struct IceOutcome {
    IceLabel label;
    float direction[3]; /* the model's: a unit vector */
} IceOutcome;

/* Of n events, all 0 where there is none; the median of an even number is the mean of the middle
 * two. */
typedef struct IceMean {
    int64_t n;
    double mean, median, linefit_mean, linefit_median;
} IceMean;

enum { ICE_MAX_BINS = 12 };

/* A table by a quantity: bin i is from edge[i] to below edge[i + 1]; the last one has no end.
 * DOMs and pulses of the whole event: 0, 8, 16, 32, ..., 1024, infinity. The true zenith: bins of
 * equal angle, 0, 15, ..., 180 degrees, so that the horizon is an edge; isotropic events are few at
 * both poles. */
typedef struct IceTable {
    char name[32]; /* "DOMs", "pulses", "zenith" (degrees) */
    int n;
    double edge[ICE_MAX_BINS + 1];
    IceMean bin[ICE_MAX_BINS];
} IceTable;

typedef struct IceScore {
    IceMean all, track, cascade;     /* track, cascade: n 0 where unknown */
    double bias[3], linefit_bias[3]; /* mean of predicted - true component x, y, z */
    IceTable doms, pulses, zenith;
    int64_t n_linefit_undefined;
} IceScore;

/* From n outcomes, all with known truth, n >= 1. A direction that is NaN makes every mean that it
 * is in NaN, and counts as the largest angle in a median. */
void ice_score(IceScore *s, const IceOutcome *o, int64_t n);

/* The name of bin i for people: "8 to 16", "1024 or more". */
void ice_bin_label(const IceTable *t, int i, char label[32]);

/* The tables, to stdout, for a terminal of 100 columns. Empty bins are left out. */
void ice_score_print(const IceScore *s);

/* eval.json: everything in *s; mean_angle_deg, median_angle_deg, linefit_mean_angle_deg,
 * linefit_median_angle_deg, guess_angle_deg (90), n_events, track_* and cascade_*, bias_x.., and
 * the tables as lists. Atomic. */
int ice_score_save(const IceScore *s, const char *path, Err *e);

/* report.html. run: the run's folder, whose metrics.jsonl gives the curves of loss and of held-out
 * error by step (left out where there is none). Plots: the curves; the distribution of angles,
 * model and LineFit; mean angle by DOMs, pulses and zenith, model, LineFit and the guess; the bias;
 * true against predicted zenith and azimuth as a heat map; the tables. title: one line. Atomic. */
int ice_report_html(const IceScore *s, const IceOutcome *o, int64_t n, const char *run,
                    const char *title, const char *path, Err *e);

#endif
