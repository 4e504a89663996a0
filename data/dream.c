#include "data/dream.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/picture.h"
#include "llmc_like/ctx.h"

int dream_write(const char *dir, const char *name, const float *x, int n, int h, int w,
                const uint8_t background[3], Err *e) {
    enum { MOST = 60, COLUMNS = 10, SCALE = 4, FPS = 30 };
    char path[4096];
    const size_t frame = (size_t)h * (size_t)w * 3;
    const int shown = n < MOST ? n : MOST;
    uint8_t *bytes = malloc((size_t)n * frame), *sheet = malloc((size_t)shown * frame);
    CHECK(bytes && sheet, "no memory for %d frames of %d x %d", n, h, w);
    pixels_to_bytes(x, (int64_t)n * h * w, background, bytes);
    for (int i = 0; i < shown; i++)
        memcpy(sheet + (size_t)i * frame, bytes + (size_t)(i * (int64_t)n / shown) * frame, frame);
    snprintf(path, sizeof path, "%s/%s.png", dir, name);
    int status = picture_sheet(path, sheet, shown, h, w, COLUMNS, SCALE, e);
    snprintf(path, sizeof path, "%s/%s.apng", dir, name);
    if (status == 0) status = picture_apng(path, bytes, n, h, w, 2 * SCALE, FPS, e);
    free(bytes);
    free(sheet);
    return status;
}

void dream_opening(uint64_t seed, uint64_t number, int n, int n_context, int h, int w, float *x,
                   int32_t *actions, PongState *context) {
    const int64_t frame = (int64_t)h * w * 3;
    uint8_t *bytes = malloc((size_t)((n + 1) * frame));
    int32_t *played = malloc((size_t)(n + 1) * sizeof *played);
    PongState *truth = malloc((size_t)(n + 1) * sizeof *truth);
    CHECK(bytes && played && truth, "no memory for %d frames of %d x %d", n, h, w);
    pong_clip(seed, UINT64_C(1) << 63 | (INT32_MAX - number), n + 1, h, w, bytes, played, truth);
    pixels_from_bytes(bytes + frame, (int64_t)n * h * w, PONG_BACKGROUND, x);
    for (int i = 0; i < n; i++) actions[i] = played[i] + 1;
    *context = truth[n_context];
    free(bytes);
    free(played);
    free(truth);
}

void dream_score_add(DreamScore *s, const JudgeResult *r) {
    s->dreams++;
    s->asked += r->asked;
    s->followed += r->followed;
    for (int i = 0; i < JUDGE_HORIZONS; i++) {
        s->ball_asked[i] += r->ball_asked[i];
        s->ball_found[i] += r->ball_asked[i] && r->ball[i].found;
        if (r->ball_asked[i] && r->ball[i].found) s->ball_pixels[i] += r->ball[i].pixels;
    }
    s->frames_in_rules += r->frames_in_rules;
    s->frames_dreamed += r->frames_dreamed;
    s->broken[r->broken]++;
}

static double ratio(double a, int b) { return b ? a / b : NAN; }

double dream_following(const DreamScore *s) { return ratio(100.0 * s->followed, s->asked); }

double dream_ball_error(const DreamScore *s, int horizon) {
    return ratio(s->ball_pixels[horizon], s->ball_found[horizon]);
}

double dream_ball_lost(const DreamScore *s, int horizon) {
    return ratio(100.0 * (s->ball_asked[horizon] - s->ball_found[horizon]), s->ball_asked[horizon]);
}

double dream_frames_in_rules(const DreamScore *s) { return ratio(s->frames_in_rules, s->dreams); }

int dream_picture(DreamFn dream, void *self, const char *dir, const char *name,
                  const int32_t *actions, int n, int h, int w, const uint8_t background[3],
                  Err *e) {
    float *x = malloc(sizeof *x * (size_t)n * (size_t)(h * w * 3));
    CHECK(x, "no memory for a dream of %d frames", n);
    const double t0 = now_s();
    int status = dream(self, actions, n, 0, UINT32_MAX, x, e);
    const double took = now_s() - t0;
    if (status == 0) status = dream_write(dir, name, x, n, h, w, background, e);
    if (status == 0)
        printf("  %s/%s.png, .apng: %d frames, %.1f frames/s\n", dir, name, n, n / took);
    free(x);
    return status;
}

int dream_judge(DreamFn dream, void *self, uint64_t seed, int n_context, int h, int w,
                DreamScore *score, Err *e) {
    enum { DREAMS = 8, DREAMT = 15 };
    const int n = n_context + DREAMT;
    float *x = malloc(sizeof *x * (size_t)n * (size_t)(h * w * 3));
    int32_t *actions = malloc(sizeof *actions * (size_t)n);
    CHECK(x && actions, "no memory for dreams of %d frames", n);
    int status = 0;
    for (uint32_t i = 0; i < DREAMS && status == 0; i++) {
        PongState state;
        JudgeResult r;
        dream_opening(seed, i, n, n_context, h, w, x, actions, &state);
        status = dream(self, actions, n, n_context, i, x, e);
        if (status) break;
        judge_dream(x, n, h, w, n_context, actions, &state, &r);
        dream_score_add(score, &r);
    }
    free(x);
    free(actions);
    return status;
}

void dream_report(const DreamScore *s, Metrics *m) {
    char name[64];
    printf("  dreams: paddle follows the action %.0f %%; ball off by", dream_following(s));
    metrics_number(m, "paddle_follows_percent", dream_following(s));
    for (int i = 0; i < JUDGE_HORIZONS; i++) {
        printf(" %.2f px after %d,", dream_ball_error(s, i), JUDGE_HORIZON[i]);
        snprintf(name, sizeof name, "ball_error_px_%d", JUDGE_HORIZON[i]);
        metrics_number(m, name, dream_ball_error(s, i));
        snprintf(name, sizeof name, "ball_lost_percent_%d", JUDGE_HORIZON[i]);
        metrics_number(m, name, dream_ball_lost(s, i));
    }
    printf(" lost in %.0f %%; %.1f of %d frames within the rules\n",
           dream_ball_lost(s, JUDGE_HORIZONS - 1), dream_frames_in_rules(s),
           s->dreams ? s->frames_dreamed / s->dreams : 0);
    metrics_number(m, "frames_in_rules", dream_frames_in_rules(s));
}
