#include "models/wm_eval.h"

#include "llmc_like/philox.h"

const float WM_LEVEL[WM_LEVELS] = {1.0f, 0.75f, 0.5f, 0.25f, 0.1f, 0.0f};

/* Mean loss of clips first .. first + B - 1; level < 0: levels drawn as in training. */
static double batch_loss(Ctx *c, const Wm *m, WmClipFn clip, const void *user, int first, int B,
                         uint64_t seed, float level) {
    const WmConfig *g = &m->cfg;
    const int64_t F = g->n_frames, pixels = F * g->height * g->width * 3;
    ctx_step_begin(c);
    float *x = ctx_host(c, sizeof *x * (size_t)(B * pixels));
    float *t = ctx_host(c, sizeof *t * (size_t)(B * F));
    int32_t *ids = ctx_host(c, sizeof *ids * (size_t)(B * F));
    for (int i = 0; i < B; i++) clip(user, (uint64_t)(first + i), x + i * pixels, ids + i * F);
    wm_draw(g, seed, 0, first, B, 0.0, t, ids);
    for (int64_t i = 0; i < B * F && level >= 0; i++) t[i] = level;
    const int64_t pictures[] = {B, F, g->height, g->width, 3};
    const Tensor *loss =
        wm_loss(c, m, ctx_input(c, "x0", DT_F32, 5, pictures, x), wm_noise(c, g, seed, 0, first, B),
                ctx_input(c, "t", DT_F32, 2, pictures, t),
                ctx_input(c, "actions", DT_I32, 2, pictures, ids));
    return *(const double *)ctx_read(c, loss);
}

WmEval wm_evaluate(Ctx *c, const Wm *m, WmClipFn clip, const void *user, int n_clips, int B,
                   uint64_t seed) {
    const uint64_t eval_seed = seed ^ ((uint64_t)RNG_EVAL << 56); /* never training's noise */
    const bool recording = c->recording;
    c->recording = false;
    WmEval e = {0};
    for (int first = 0; first < n_clips; first += B) {
        const int n = n_clips - first < B ? n_clips - first : B;
        const double share = (double)n / n_clips;
        e.loss += share * batch_loss(c, m, clip, user, first, n, eval_seed, -1.0f);
        for (int l = 0; l < WM_LEVELS; l++)
            e.level[l] += share * batch_loss(c, m, clip, user, first, n, eval_seed, WM_LEVEL[l]);
    }
    c->recording = recording;
    return e;
}
