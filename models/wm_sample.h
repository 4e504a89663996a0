/* Sampling: the model dreams, frame by frame, with a rolling window of the frames before.
 *
 * A frame starts as noise z and goes through `steps` Euler steps, z += (t_i - t_{i+1}) v, where t
 * runs from 1 to 0 linearly and then through 3t / (2t + 1). With classifier-free guidance v =
 * v_none + cfg (v_action - v_none), and each branch keeps a window of its own; cfg 1 needs one
 * forward a step and one window. The window takes the keys and values of the last Euler step. */
#ifndef MODELS_WM_SAMPLE_H
#define MODELS_WM_SAMPLE_H

#include "models/wm.h"

typedef struct WmSampler {
    const Wm *m;
    int steps;
    float cfg;
    int n_branches; /* 1: the action's; 2: and that of no action */
    float level;    /* of the forward that runs */
    int32_t action; /* likewise */
    WmCache cache[2];
} WmSampler;

/* -1 and a sentence where the memory of the windows is refused. */
int wm_sampler_init(WmSampler *s, const Wm *m, const Ctx *c, int steps, float cfg, Err *e);
void wm_sampler_free(WmSampler *s);

void wm_sampler_reset(WmSampler *s); /* an empty window: a new clip */

/* Takes a true frame (h, w, 3) and the action that led to it into the window, at noise level
 * WM_OBSERVED: training draws its levels logit-normally and hardly ever sees a frame without any
 * noise. The noise is that of frame `index` of dream `number`. */
#define WM_OBSERVED 0.1f
void wm_sampler_observe(Ctx *c, WmSampler *s, int action, uint64_t seed, uint32_t number,
                        uint64_t index, const float *frame);

/* Dreams the next frame from noise (h, w, 3) into out (h, w, 3), not clamped; may be the same
 * place. */
void wm_sampler_frame(Ctx *c, WmSampler *s, int action, const float *noise, float *out);

/* The same from the noise that belongs to frame `index` of dream `number`. */
void wm_sampler_dream(Ctx *c, WmSampler *s, int action, uint64_t seed, uint32_t number,
                      uint64_t index, float *out);

#endif
