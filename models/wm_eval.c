#include "models/wm_eval.h"

#include "llmc_like/philox.h"

const float WM_LEVEL[WM_LEVELS] = {1.0f, 0.75f, 0.5f, 0.25f, 0.1f, 0.0f};

/* Mean loss of clips first .. first + B - 1; level < 0: levels drawn as in training. */
static double batch_loss(Ctx *c, const Wm *m, WmClipFn clip, const void *user, int first, int B,
                         uint64_t seed, float level) {
    const WmConfig *g = &m->cfg;
    const int64_t F = g->n_frames, pixels = F * g->height * g->width * 3;
    ctx_step_begin(c);
    Tensor *x = ctx_tensor(c, "x0", DT_F32, 5, (int64_t[]){B, F, g->height, g->width, 3});
    Tensor *z = ctx_tensor(c, "z", DT_F32, 5, x->shape);
    Tensor *t = ctx_tensor(c, "t", DT_F32, 2, (int64_t[]){B, F});
    Tensor *ids = ctx_tensor(c, "actions", DT_I32, 2, t->shape);
    for (int i = 0; i < B; i++)
        clip(user, (uint64_t)(first + i), tensor_f32(x) + i * pixels, tensor_i32(ids) + i * F);
    wm_draw(g, seed, 0, first, B, 0.0, tensor_f32(z), tensor_f32(t), tensor_i32(ids));
    for (int64_t i = 0; i < B * F && level >= 0; i++) tensor_f32(t)[i] = level;
    return *tensor_f64(wm_loss(c, m, x, z, t, ids));
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
