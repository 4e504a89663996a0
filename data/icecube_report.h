/* How good are the directions? Tables for the terminal, eval.json, and report.html, one
 * self-contained page of plots (inline SVG, no script, nothing loaded).
 *
 * All angles in degrees. LineFit's figures are from the same events; where LineFit is undefined its
 * direction is (0, 0, 1), as ice_linefit leaves it. The same input gives the same bytes. */
#ifndef DATA_ICECUBE_REPORT_H
#define DATA_ICECUBE_REPORT_H

#include "data/icecube_batch.h"
#include "llmc_like/error.h"

/* What a guess without looking is off, in the mean and in the median. */
#define ICE_GUESS_DEG 90.0

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

/* A direction as two angles: zenith in [0, 180], azimuth in [0, 360), counted from x towards y. v
 * need not be of unit length. */
double ice_zenith_deg(const float v[3]);
double ice_azimuth_deg(const float v[3]);

/* mean / linefit_mean; NaN where LineFit is never off. */
double ice_mean_ratio(const IceMean *m);

/* The name of bin i for people: "8 to 16", "1024 or more". */
void ice_bin_label(const IceTable *t, int i, char label[32]);

/* The tables, to stdout, for a terminal of 100 columns. Empty bins are left out. */
void ice_score_print(const IceScore *s);

/* eval.json: everything in *s; mean_angle_deg, median_angle_deg, linefit_mean_angle_deg,
 * linefit_median_angle_deg, n_events, guess_angle_deg; the first five again with track_ and
 * cascade_ before them; bias_x, _y, _z, linefit_bias_x, _y, _z; n_linefit_undefined; and by_doms,
 * by_pulses, by_zenith: a list of bins with from, below and the five. null: an angle where n_events
 * is 0, or NaN, or an end that is infinite. Atomic; -1 and a sentence where it cannot be
 * written. */
int ice_score_save(const IceScore *s, const char *path, Err *e);

/* report.html, from s = ice_score(o, n). Plots: the curves; the distribution of angles, model and
 * LineFit; mean angle by DOMs, pulses and zenith, model, LineFit and the guess; the bias; true
 * against predicted zenith and azimuth as a heat map; the tables. title: one line, any bytes.
 *
 * run: the run's folder, whose metrics.jsonl gives the curves by "step": "loss" (radians), and
 * "held_out_deg" and "held_out_linefit_deg". Left out: the plot, where run is NULL or has no such
 * file or none of the keys is in it; lines that are no JSON, as a half-written last one; what is no
 * finite number; a step below the one before it. A long curve is thinned to mean, least and largest
 * of 200 pieces.
 *
 * Atomic. -1 and a sentence where metrics.jsonl cannot be read or the page not be written. */
int ice_report_html(const IceScore *s, const IceOutcome *o, int64_t n, const char *run,
                    const char *title, const char *path, Err *e);

#endif
