/* Held-out loss of the world model: on clips that training never reads, with noise that is the same
 * at every evaluation, so that two evaluations differ by the model alone. */
#ifndef MODELS_WM_EVAL_H
#define MODELS_WM_EVAL_H

#include "models/wm.h"

/* Gives clip i: x (F, h, w, 3) and actions (F). */
typedef void (*WmClipFn)(const void *user, uint64_t i, float *x, int32_t *actions);

enum { WM_LEVELS = 6 };
extern const float WM_LEVEL[WM_LEVELS]; /* 1, .75, .5, .25, .1, 0 */

typedef struct WmEval {
    double loss;             /* mean over clips, noise levels drawn as in training */
    double level[WM_LEVELS]; /* the same clips, every frame at one noise level     */
} WmEval;

/* n_clips clips in batches of at most B; actions are not hidden. */
WmEval wm_evaluate(Ctx *c, const Wm *m, WmClipFn clip, const void *user, int n_clips, int B,
                   uint64_t seed);

#endif
