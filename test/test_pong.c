/* The built-in game: rules, determinism, and pictures against a brute-force drawing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "data/pong.h"

static PongState started(uint64_t seed) {
    PongState s;
    pong_start(&s, (RngStream){{seed, 0, RNG_TEST}, 0});
    return s;
}

static void round_starts_as_the_rules_say(void **state) {
    (void)state;
    int seen[2] = {0, 0};
    for (uint64_t seed = 0; seed < 64; seed++) {
        PongState s = started(seed);
        assert_int_equal(s.ball_x, 100);
        assert_int_equal(s.ball_y, 304);
        assert_int_equal(s.ball_vx, 10);
        assert_in_range(-s.ball_vy, 0, 1);
        assert_int_equal(s.left_y, 285);
        assert_int_equal(s.right_y, 285);
        seen[-s.ball_vy]++;
    }
    assert_true(seen[0] > 10 && seen[1] > 10);
}

static void paddle_moves_8_and_stops_at_the_ends(void **state) {
    (void)state;
    PongState s = started(1);
    pong_play(&s, PONG_UP);
    assert_int_equal(s.right_y, 293);
    pong_play(&s, PONG_STAY);
    assert_int_equal(s.right_y, 293);
    pong_play(&s, PONG_DOWN);
    assert_int_equal(s.right_y, 285);
    s.right_y = 600;
    pong_play(&s, PONG_UP);
    assert_int_equal(s.right_y, 605);
    s.right_y = -30;
    pong_play(&s, PONG_DOWN);
    assert_int_equal(s.right_y, -35);
}

static void left_paddle_follows_the_ball_by_at_most_8(void **state) {
    (void)state;
    PongState s = started(1);
    s.ball_y = 500;
    pong_play(&s, PONG_STAY);
    assert_int_equal(s.left_y, 293);
    s.left_y = s.ball_y - 35 - 3; /* 3 short */
    int wanted = s.ball_y - 35;
    pong_play(&s, PONG_STAY);
    assert_int_equal(s.left_y, wanted);
}

static void ball_bounces_off_top_and_bottom(void **state) {
    (void)state;
    PongState s = started(1);
    s.ball_y = 3;
    s.ball_vy = -7;
    pong_play(&s, PONG_STAY);
    assert_int_equal(s.ball_y, 0);
    assert_int_equal(s.ball_vy, 7);
    s.ball_y = 605;
    pong_play(&s, PONG_STAY);
    assert_int_equal(s.ball_y, 608);
    assert_int_equal(s.ball_vy, -7);
}

static PongState about_to_meet_right(int vy) {
    PongState s = started(1);
    s.ball_x = 460;
    s.ball_y = 300;
    s.right_y = 280;
    s.ball_vy = vy;
    return s;
}

static void right_paddle_gives_spin(void **state) {
    (void)state;
    static const struct {
        int vy, expected;
        PongAction action;
    } row[] = {{-1, 2, PONG_UP}, {-1, -4, PONG_DOWN}, {5, 5, PONG_STAY},    {0, 3, PONG_STAY},
               {-3, 3, PONG_UP}, {12, 13, PONG_UP},   {-12, -13, PONG_DOWN}};
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        PongState s = about_to_meet_right(row[i].vy);
        pong_play(&s, row[i].action);
        assert_int_equal(s.ball_vx, -10);
        assert_int_equal(s.ball_vy, row[i].expected);
        assert_int_equal(s.ball_x, 468);
        assert_int_equal(s.left_points + s.right_points, 0);
    }
}

static void missing_the_ball_ends_the_round(void **state) {
    (void)state;
    PongState s = about_to_meet_right(4);
    s.right_y = 100;
    pong_play(&s, PONG_STAY);
    assert_int_equal(s.left_points, 1);
    assert_int_equal(s.right_points, 0);
    assert_int_equal(s.ball_x, 100);
    assert_int_equal(s.ball_y, 304);
    assert_int_equal(s.right_y, 285);
    s.ball_x = 5;
    s.ball_vx = -10;
    s.left_y = 500;
    pong_play(&s, PONG_STAY);
    assert_int_equal(s.right_points, 1);
    s.left_points = 20;
    s.ball_x = 465;
    s.right_y = -35;
    pong_play(&s, PONG_STAY);
    assert_int_equal(s.left_points, 0);
    assert_int_equal(s.right_points, 0);
}

static void left_paddle_returns_without_spin(void **state) {
    (void)state;
    PongState s = started(1);
    s.ball_x = 5;
    s.ball_vx = -10;
    s.ball_vy = 4;
    pong_play(&s, PONG_UP);
    assert_int_equal(s.ball_x, 0);
    assert_int_equal(s.ball_vx, 10);
    assert_int_equal(s.ball_vy, 4);
}

/* Draws 620 x 640 unit squares and averages them: h must divide 640 and w 620. */
static void draw_by_units(const PongState *s, int h, int w, uint8_t *rgb) {
    int ch = 640 / h, cw = 620 / w;
    for (int row = 0; row < h; row++)
        for (int col = 0; col < w; col++) {
            long sum[3] = {0, 0, 0};
            for (int k = 0; k < ch * cw; k++) {
                int x = col * cw + k % cw, y = 639 - (row * ch + k / cw); /* y of the field */
                const uint8_t *colour = PONG_BACKGROUND;
                if (x >= 40 && x < 60 && y >= s->left_y && y < s->left_y + 70)
                    colour = PONG_LEFT_COLOUR;
                if (x >= 560 && x < 580 && y >= s->right_y && y < s->right_y + 70)
                    colour = PONG_RIGHT_COLOUR;
                if (x - 60 >= s->ball_x && x - 60 < s->ball_x + 32 && y >= s->ball_y &&
                    y < s->ball_y + 32)
                    colour = PONG_BALL_COLOUR;
                for (int c = 0; c < 3; c++) sum[c] += colour[c];
            }
            for (int c = 0; c < 3; c++)
                rgb[3 * (row * w + col) + c] = (uint8_t)((2 * sum[c] + ch * cw) / (2 * ch * cw));
        }
}

static void picture_equals_brute_force(void **state) {
    (void)state;
    enum { H = 20, W = 31 };
    static uint8_t drawn[H * W * 3], rendered[H * W * 3 + 1];
    for (uint64_t clip = 0; clip < 20; clip++) {
        int32_t action;
        PongState s;
        rendered[H * W * 3] = 77;
        pong_clip(5, clip, 1, H, W, rendered, &action, &s);
        assert_int_equal(rendered[H * W * 3], 77);
        draw_by_units(&s, H, W, drawn);
        assert_memory_equal(drawn, rendered, sizeof drawn);
    }
}

static void picture_of_24_has_the_right_light(void **state) {
    (void)state;
    uint8_t rgb[24 * 24 * 3];
    PongState s = started(1);
    pong_render(&s, 24, 24, rgb);
    double red = 0, blue = 0, cells = 620.0 * 640 / (24 * 24);
    for (int i = 0; i < 24 * 24; i++) {
        red += rgb[3 * i] - 6;
        blue += rgb[3 * i + 2] - 24;
    }
    double paddle = 20 * 70 / cells, ball = 32 * 32 / cells;
    assert_true(abs((int)(red - 249 * (paddle + ball) + 6 * paddle)) <= 4);
    assert_true(abs((int)(blue - 231 * (paddle + ball) + 24 * paddle)) <= 4);
    assert_memory_equal(rgb, PONG_BACKGROUND, 3);
    const uint8_t *left = rgb + 3 * (12 * 24 + 1), *right = rgb + 3 * (12 * 24 + 22);
    assert_true(left[0] > 60 && left[1] < 24);
    assert_true(right[0] < 6 && right[1] > 60 && right[1] == right[2]);
}

static void clip_is_a_function_of_seed_and_number(void **state) {
    (void)state;
    enum { N = 31, SIZE = N * 24 * 24 * 3 };
    uint8_t *a = malloc(SIZE), *b = malloc(SIZE);
    int32_t x[N], y[N], z[N];
    assert_non_null(a);
    assert_non_null(b);
    pong_clip(1, 7, N, 24, 24, a, x, NULL);
    pong_clip(1, 8, N, 24, 24, b, y, NULL);
    assert_memory_not_equal(a, b, SIZE);
    pong_clip(1, 7, N, 24, 24, b, y, NULL);
    assert_memory_equal(a, b, SIZE);
    assert_memory_equal(x, y, sizeof x);
    pong_clip(2, 7, N, 24, 24, b, z, NULL);
    assert_memory_not_equal(a, b, SIZE);
    pong_clip(1, 7 + (UINT64_C(1) << 63), N, 24, 24, b, z, NULL);
    assert_memory_not_equal(a, b, SIZE);
    free(a);
    free(b);
}

static void frames_follow_from_truth_and_actions(void **state) {
    (void)state;
    enum { N = 31 };
    static uint8_t frames[N][24 * 24 * 3], again[24 * 24 * 3];
    int32_t actions[N];
    PongState truth[N];
    pong_clip(3, 11, N, 24, 24, frames[0], actions, truth);
    PongState s = truth[0];
    for (int i = 0; i < N; i++) {
        pong_render(&s, 24, 24, again);
        assert_memory_equal(again, frames[i], sizeof again);
        assert_int_equal(s.right_y, truth[i].right_y);
        pong_play(&s, (PongAction)actions[i]);
    }
}

static void all_actions_occur_everywhere(void **state) {
    (void)state;
    enum { N = 31 };
    int seen[3][3][3] = {{{0}}}; /* action, third of the paddle's way, third of the ball's */
    for (uint64_t clip = 0; clip < 2000; clip++) {
        int32_t actions[N];
        PongState truth[N];
        pong_clip(4, clip, N, 24, 24, NULL, actions, truth);
        for (int i = 0; i < N; i++)
            seen[actions[i]][(truth[i].right_y + 35) / 214][truth[i].ball_y / 203]++;
    }
    for (int i = 0; i < 27; i++) assert_true(seen[i / 9][i / 3 % 3][i % 3] > 40);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_starts_as_the_rules_say),
        cmocka_unit_test(paddle_moves_8_and_stops_at_the_ends),
        cmocka_unit_test(left_paddle_follows_the_ball_by_at_most_8),
        cmocka_unit_test(ball_bounces_off_top_and_bottom),
        cmocka_unit_test(right_paddle_gives_spin),
        cmocka_unit_test(missing_the_ball_ends_the_round),
        cmocka_unit_test(left_paddle_returns_without_spin),
        cmocka_unit_test(picture_equals_brute_force),
        cmocka_unit_test(picture_of_24_has_the_right_light),
        cmocka_unit_test(clip_is_a_function_of_seed_and_number),
        cmocka_unit_test(frames_follow_from_truth_and_actions),
        cmocka_unit_test(all_actions_occur_everywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
