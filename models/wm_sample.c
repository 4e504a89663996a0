#include "models/wm_sample.h"

#include <string.h>

#include "llmc_like/philox.h"

int wm_sampler_init(WmSampler *s, const Wm *m, const Ctx *c, int steps, float cfg, Err *e) {
    memset(s, 0, sizeof *s);
    s->m = m;
    s->steps = steps;
    s->cfg = cfg;
    s->n_branches = cfg == 1.0f ? 1 : 2;
    for (int b = 0; b < s->n_branches; b++)
        if (wm_cache_init(&s->cache[b], m, c, e)) return -1;
    return 0;
}

void wm_sampler_free(WmSampler *s) {
    for (int b = 0; b < s->n_branches; b++) wm_cache_free(&s->cache[b]);
}

void wm_sampler_reset(WmSampler *s) {
    for (int b = 0; b < s->n_branches; b++) wm_cache_reset(&s->cache[b]);
}

/* One forward of one branch on one frame (h, w, 3): its velocity. */
static const float *velocity(Ctx *c, WmSampler *s, int branch, int action, float t,
                             const float *z) {
    const WmConfig *g = &s->m->cfg;
    const int64_t picture[] = {1, 1, g->height, g->width, 3}, one[] = {1, 1};
    s->level = t;
    s->action = branch ? 0 : action;
    Tensor *x = op_cast(c, ctx_input(c, "frame", DT_F32, 5, picture, z));
    Tensor *level = ctx_input(c, "noise level", DT_F32, 2, one, &s->level);
    Tensor *id = ctx_input(c, "action", DT_I32, 2, one, &s->action);
    Tensor *v = wm_forward(c, s->m, x, level, id, &s->cache[branch]);
    return c->dry ? NULL : ctx_read_f32(c, v);
}

static void commit(Ctx *c, WmSampler *s) {
    for (int b = 0; b < s->n_branches; b++) wm_cache_commit(c, s->m, &s->cache[b], 1);
}

static float level(const WmSampler *s, int i) {
    const float t = 1.0f - (float)i / (float)s->steps;
    return 3.0f * t / (2.0f * t + 1.0f);
}

void wm_sampler_frame(Ctx *c, WmSampler *s, int action, const float *noise, float *out) {
    const int n = s->m->cfg.height * s->m->cfg.width * 3;
    const bool recording = c->recording;
    c->recording = false;
    if (out != noise && !c->dry) memcpy(out, noise, (size_t)n * sizeof *out);
    for (int i = 0; i < s->steps; i++) {
        ctx_step_begin(c);
        const float t = level(s, i), dt = t - level(s, i + 1);
        const float *v = velocity(c, s, 0, action, t, out);
        const float *none = s->n_branches == 2 ? velocity(c, s, 1, action, t, out) : v;
        for (int j = 0; j < n && !c->dry; j++) out[j] += dt * (none[j] + s->cfg * (v[j] - none[j]));
    }
    commit(c, s);
    c->recording = recording;
}

static int64_t noise(const WmSampler *s, uint64_t seed, uint32_t number, uint64_t index, float *z) {
    const int64_t n = (int64_t)s->m->cfg.height * s->m->cfg.width * 3;
    rng_normal((RngKey){seed, number, RNG_SAMPLE}, index * (uint64_t)n, z, n);
    return n;
}

void wm_sampler_observe(Ctx *c, WmSampler *s, int action, uint64_t seed, uint32_t number,
                        uint64_t index, const float *frame) {
    const WmConfig *g = &s->m->cfg;
    const bool recording = c->recording;
    c->recording = false;
    for (int b = 0; b < s->n_branches; b++) {
        ctx_step_begin(c);
        float *x = ctx_host(c, sizeof *x * (size_t)(g->height * g->width * 3));
        const int64_t n = noise(s, seed, number, index, x);
        for (int64_t i = 0; i < n; i++) x[i] = frame[i] - WM_OBSERVED * (frame[i] - x[i]);
        velocity(c, s, b, action, WM_OBSERVED, x);
    }
    commit(c, s);
    c->recording = recording;
}

void wm_sampler_dream(Ctx *c, WmSampler *s, int action, uint64_t seed, uint32_t number,
                      uint64_t index, float *out) {
    noise(s, seed, number, index, out);
    wm_sampler_frame(c, s, action, out, out);
}
