/* The judge on true games, which must pass untouched, and on spoiled ones, each of which must not.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "data/actions.h"
#include "data/judge.h"
#include "data/picture.h"

enum { SIZE = 24, FRAME = SIZE * SIZE * 3, LONG = 200 };

static void to_model(const uint8_t *frames, int n, int pixels, float *x) {
    pixels_from_bytes(frames, (int64_t)n * pixels, PONG_BACKGROUND, x);
}

/* A true film for the model: frames, the shifted actions, the states. */
typedef struct Film {
    float *x;
    int32_t actions[LONG];
    PongState truth[LONG];
} Film;

static Film film_of(uint64_t clip, int n, int h, int w) {
    Film f;
    int32_t taken[LONG];
    uint8_t *bytes = malloc((size_t)n * (size_t)(h * w * 3));
    f.x = malloc((size_t)n * (size_t)(h * w * 3) * sizeof *f.x);
    assert_non_null(bytes);
    assert_non_null(f.x);
    pong_clip(9, clip, n, h, w, bytes, taken, f.truth);
    to_model(bytes, n, h * w, f.x);
    f.actions[0] = ACTION_NONE;
    for (int i = 1; i < n; i++) f.actions[i] = taken[i - 1] + 1;
    free(bytes);
    return f;
}

static void near(float found, int truth, float tolerance) {
    if (fabsf(found - (float)truth) > tolerance)
        fail_msg("read %g, truth %d", (double)found, truth);
}

static void read_as_the_truth(int n, int h, int w, float tolerance) {
    static PongReading r[LONG];
    for (uint64_t clip = 0; clip < 2; clip++) {
        Film f = film_of(clip, n, h, w);
        judge_read(f.x, n, h, w, r);
        for (int i = 0; i < n; i++) {
            assert_true(r[i].ball_found && r[i].left_found && r[i].right_found);
            assert_false(r[i].ball_doubled);
            near(r[i].ball_x, f.truth[i].ball_x, tolerance);
            near(r[i].ball_y, f.truth[i].ball_y, tolerance);
            near(r[i].left_y, f.truth[i].left_y, 3.0f);
            near(r[i].right_y, f.truth[i].right_y, 3.0f);
        }
        free(f.x);
    }
}

static void true_frames_are_read_exactly(void **state) {
    (void)state;
    read_as_the_truth(100, 24, 24, 0.5f);
    read_as_the_truth(20, 36, 30, 0.5f);
}

static void true_games_pass(void **state) {
    (void)state;
    for (uint64_t clip = 10; clip < 12; clip++) {
        Film f = film_of(clip, LONG, SIZE, SIZE);
        JudgeResult j;
        judge_dream(f.x, LONG, SIZE, SIZE, 10, f.actions, &f.truth[9], &j);
        assert_int_equal(j.frames_dreamed, LONG - 10);
        assert_int_equal(j.frames_in_rules, LONG - 10);
        assert_int_equal(j.broken, RULE_KEPT);
        assert_int_equal(j.followed, j.asked);
        assert_true(j.asked > LONG / 2);
        for (int k = 0; k < JUDGE_HORIZONS; k++) {
            assert_true(j.ball_asked[k] && j.ball[k].found);
            assert_true(j.ball[k].units < 0.5f && j.ball[k].pixels < 0.02f);
        }
        free(f.x);
    }
}

/* The noise that a trained model leaves. */
static void noise_changes_little(void **state) {
    (void)state;
    enum { N = 60 };
    static PongReading r[N];
    Film f = film_of(13, N, SIZE, SIZE);
    float *noise = malloc(N * FRAME * sizeof *noise);
    assert_non_null(noise);
    rng_normal((RngKey){1, 0, RNG_TEST}, 0, noise, N * FRAME);
    for (int i = 0; i < N * FRAME; i++) f.x[i] += 0.04f * noise[i];
    judge_read(f.x, N, SIZE, SIZE, r);
    for (int i = 0; i < N; i++) {
        assert_true(r[i].ball_found && r[i].left_found && r[i].right_found && !r[i].ball_doubled);
        near(r[i].right_y, f.truth[i].right_y, 6.0f);
        near(r[i].ball_x, f.truth[i].ball_x, 6.0f);
        near(r[i].ball_y, f.truth[i].ball_y, 6.0f);
    }
    free(noise);
    free(f.x);
}

static void wrong_actions_are_noticed(void **state) {
    (void)state;
    Film f = film_of(14, LONG, SIZE, SIZE);
    for (int i = 1; i < LONG; i++)
        f.actions[i] = f.actions[i] == ACTION_UP ? ACTION_DOWN : ACTION_UP;
    JudgeResult j;
    judge_dream(f.x, LONG, SIZE, SIZE, 1, f.actions, &f.truth[0], &j);
    assert_true(j.asked > LONG / 2);
    assert_int_equal(j.followed, 0);
    for (int i = 0; i < LONG; i++) f.actions[i] = ACTION_NONE;
    judge_dream(f.x, LONG, SIZE, SIZE, 1, f.actions, &f.truth[0], &j);
    assert_int_equal(j.asked, 0);
    free(f.x);
}

static void ball_error_is_the_distance(void **state) {
    (void)state;
    enum { N = 20, AT = 4 };
    PongState s;
    pong_start(&s, (RngStream){{1, 0, RNG_TEST}, 0});
    uint8_t bytes[FRAME];
    float *x = malloc(N * FRAME * sizeof *x);
    int32_t actions[N];
    PongState context = s;
    assert_non_null(x);
    for (int i = 0; i < N; i++) {
        if (i == AT) context = s;
        if (i > AT) s.ball_y += 30; /* shown 30 too high, but played on from the truth */
        pong_render(&s, SIZE, SIZE, bytes);
        if (i > AT) s.ball_y -= 30;
        to_model(bytes, 1, SIZE * SIZE, x + i * FRAME);
        actions[i] = ACTION_STAY;
        pong_play(&s, PONG_STAY);
    }
    JudgeResult j;
    judge_dream(x, N, SIZE, SIZE, AT + 1, actions, &context, &j);
    for (int k = 0; k < JUDGE_HORIZONS; k++) {
        assert_true(j.ball[k].found);
        assert_true(fabsf(j.ball[k].units - 30) < 1);
        assert_true(fabsf(j.ball[k].pixels - 30 * 24.0f / 640) < 0.05f);
    }
    judge_dream(x, AT + 4, SIZE, SIZE, AT + 1, actions, &context, &j);
    assert_true(j.ball_asked[0] && !j.ball_asked[1] && !j.ball_asked[2]);
    free(x);
}

/* Spoiling: a quiet stretch of a game of N frames, in which frame AT and what follows is changed.
 */
enum { N = 24, AT = 15 };

static void quiet_game(PongState s[N]) {
    pong_start(&s[0], (RngStream){{1, 0, RNG_TEST}, 0});
    s[0].ball_vy = 2;
    s[0].ball_x = 120;
    for (int i = 1; i < N; i++) {
        s[i] = s[i - 1];
        pong_play(&s[i], PONG_STAY);
    }
}

static PongRule judged(const PongState s[N], int *frames) {
    static float x[N * FRAME];
    static PongReading r[N];
    uint8_t bytes[FRAME];
    PongRule broken;
    for (int i = 0; i < N; i++) {
        pong_render(&s[i], SIZE, SIZE, bytes);
        to_model(bytes, 1, SIZE * SIZE, x + i * FRAME);
    }
    judge_read(x, N, SIZE, SIZE, r);
    *frames = judge_rules(r, N, 1, &broken);
    return broken;
}

static void expect_broken(const PongState s[N], PongRule rule, int at_most) {
    int frames;
    PongRule broken = judged(s, &frames);
    assert_string_equal(judge_rule_name(broken), judge_rule_name(rule));
    assert_in_range(frames, AT - 1, at_most);
}

static void each_spoiled_rule_is_noticed(void **state) {
    (void)state;
    PongState s[N];
    int frames;
    quiet_game(s);
    assert_int_equal(judged(s, &frames), RULE_KEPT);
    assert_int_equal(frames, N - 1);

    for (int i = AT; i < N; i++) s[i].ball_x += 40;
    expect_broken(s, RULE_BALL_JUMPED, AT - 1);

    quiet_game(s);
    for (int i = AT; i < N; i++) s[i].ball_y -= 60;
    expect_broken(s, RULE_BALL_JUMPED, AT - 1);

    quiet_game(s);
    for (int i = AT; i < N; i++) s[i].ball_x = 2 * s[AT - 1].ball_x - s[i].ball_x; /* turns */
    expect_broken(s, RULE_BALL_SPEED, AT);

    quiet_game(s);
    for (int i = AT; i < N; i++) s[i].ball_y += 8 * (i - AT + 1);
    expect_broken(s, RULE_BALL_SPEED, AT + 1);

    quiet_game(s);
    for (int i = AT; i < N; i++) s[i].ball_x = s[AT - 1].ball_x; /* stands still */
    expect_broken(s, RULE_BALL_SPEED, AT + 1);

    quiet_game(s);
    for (int i = AT; i < N; i++) s[i].left_y += 40;
    expect_broken(s, RULE_PADDLE_JUMPED, AT - 1);

    quiet_game(s);
    for (int i = AT; i < N; i++) s[i].right_y -= 40;
    expect_broken(s, RULE_PADDLE_JUMPED, AT - 1);

    quiet_game(s);
    for (int i = AT; i < N; i++) { /* the round starts again in the middle of the field */
        s[i] = s[i - AT];
        s[i].ball_x = 100 + 10 * (i - AT);
    }
    expect_broken(s, RULE_ROUND, AT - 1);
}

/* The ball turns at the right side without a paddle. */
static void bounce_off_nothing_is_noticed(void **state) {
    (void)state;
    PongState s[N];
    int frames;
    quiet_game(s);
    for (int i = 0; i < N; i++) {
        int x = 468 - 10 * (AT - 1) + 10 * i;
        s[i].ball_x = x <= 468 ? x : 2 * 468 - x;
        s[i].left_y = s[i].right_y = 285;
        s[i].ball_y = 304;
    }
    assert_int_equal(judged(s, &frames), RULE_KEPT);
    for (int i = 0; i < N; i++) s[i].right_y = 100;
    expect_broken(s, RULE_BALL_SPEED, AT);
}

/* Colours whole cells of frame AT. */
static PongRule judged_with(int row0, int row1, int col0, int col1, const float colour[3]) {
    static float x[N * FRAME];
    static PongReading r[N];
    uint8_t bytes[FRAME];
    PongState s[N];
    PongRule broken;
    quiet_game(s);
    for (int i = 0; i < N; i++) {
        pong_render(&s[i], SIZE, SIZE, bytes);
        to_model(bytes, 1, SIZE * SIZE, x + i * FRAME);
    }
    for (int row = row0; row < row1; row++)
        for (int col = col0; col < col1; col++)
            memcpy(x + AT * FRAME + 3 * (row * SIZE + col), colour, 3 * sizeof *colour);
    judge_read(x, N, SIZE, SIZE, r);
    int frames = judge_rules(r, N, 1, &broken);
    if (broken != RULE_KEPT) assert_int_equal(frames, AT - 1);
    return broken;
}

static void missing_and_doubled_things_are_noticed(void **state) {
    (void)state;
    const float background[3] = {0, 0, 0}, white[3] = {1, 1, 1}, faint[3] = {0.1f, -0.1f, 0.1f};
    assert_int_equal(judged_with(0, SIZE, 3, 21, background), RULE_BALL_MISSING);
    assert_int_equal(judged_with(0, SIZE, 0, 3, background), RULE_PADDLE_MISSING);
    assert_int_equal(judged_with(0, SIZE, 21, SIZE, background), RULE_PADDLE_MISSING);
    assert_int_equal(judged_with(3, 4, 8, 9, white), RULE_BALL_DOUBLED);
    assert_int_equal(judged_with(3, 5, 8, 11, faint), RULE_KEPT);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(true_frames_are_read_exactly),
        cmocka_unit_test(true_games_pass),
        cmocka_unit_test(noise_changes_little),
        cmocka_unit_test(wrong_actions_are_noticed),
        cmocka_unit_test(ball_error_is_the_distance),
        cmocka_unit_test(each_spoiled_rule_is_noticed),
        cmocka_unit_test(bounce_off_nothing_is_noticed),
        cmocka_unit_test(missing_and_doubled_things_are_noticed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
