/* A dream on disk and in figures: pictures for people, and for the built-in game what its rules say
 * of many dreams together. */
#ifndef DATA_DREAM_H
#define DATA_DREAM_H

#include "data/judge.h"
#include "llmc_like/error.h"
#include "llmc_like/metrics.h"

/* Dreams n frames into x (n, h, w, 3), of which the first n_context are given there; actions (n).
 * number: which dream, so that each has noise of its own. */
typedef int (*DreamFn)(void *self, const int32_t *actions, int n, int n_context, uint32_t number,
                       float *x, Err *e);

/* A dream of these actions from nothing, written by dream_write; prints where, and frames/s. */
int dream_picture(DreamFn dream, void *self, const char *dir, const char *name,
                  const int32_t *actions, int n, int h, int w, const uint8_t background[3], Err *e);

/* Writes DIR/NAME.png, a contact sheet of at most 60 frames evenly taken, and DIR/NAME.apng, all of
 * them at 30 fps. x (n, h, w, 3), the model's numbers. */
int dream_write(const char *dir, const char *name, const float *x, int n, int h, int w,
                const uint8_t background[3], Err *e);

/* A held-out opening of the built-in game, to be dreamt on: frames x (n, h, w, 3) as the game
 * really goes on, actions (n) with actions[i] done before frame i, both the model's numbers, and
 * the game's state at frame n_context - 1. */
void dream_opening(uint64_t seed, uint64_t number, int n, int n_context, int h, int w, float *x,
                   int32_t *actions, PongState *context);

/* Sums over dreams. */
typedef struct DreamScore {
    int dreams, asked, followed;
    int ball_asked[JUDGE_HORIZONS], ball_found[JUDGE_HORIZONS];
    double ball_pixels[JUDGE_HORIZONS]; /* sum of errors where found */
    int frames_in_rules, frames_dreamed, broken[RULE_COUNT];
} DreamScore;

void dream_score_add(DreamScore *s, const JudgeResult *r);

/* Eight held-out openings of n_context frames, dreamt on for 15 frames by the recorded actions, and
 * judged. */
int dream_judge(DreamFn dream, void *self, uint64_t seed, int n_context, int h, int w,
                DreamScore *score, Err *e);

/* One line to stdout, and the numbers into the line of metrics that is being made. */
void dream_report(const DreamScore *s, Metrics *m);

double dream_following(const DreamScore *s); /* percent; NaN where nothing was asked */
double dream_ball_error(const DreamScore *s, int horizon); /* mean pixels; NaN where never found  */
double dream_ball_lost(const DreamScore *s, int horizon);  /* percent of dreams without a ball    */
double dream_frames_in_rules(const DreamScore *s);         /* mean a dream                        */

#endif
