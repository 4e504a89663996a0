#include "data/pong.h"

#include <stdbool.h>
#include <string.h>

#include "llmc_like/error.h"

const uint8_t PONG_BACKGROUND[3] = {6, 24, 24}, PONG_LEFT_COLOUR[3] = {255, 0, 0},
              PONG_RIGHT_COLOUR[3] = {0, 255, 255}, PONG_BALL_COLOUR[3] = {255, 255, 255};

static int min_int(int a, int b) { return a < b ? a : b; }
static int max_int(int a, int b) { return a > b ? a : b; }
static int clamp(int x, int lo, int hi) { return max_int(lo, min_int(x, hi)); }

/* The game. */

static void start_round(PongState *s) {
    s->left_y = s->right_y = PONG_PADDLE_START;
    s->ball_x = PONG_BALL_START_X;
    s->ball_y = PONG_BALL_START_Y;
    s->ball_vx = PONG_BALL_SPEED_X;
    s->ball_vy = -(int)rng_next_below(&s->rng, 2);
}

void pong_start(PongState *s, RngStream rng) {
    *s = (PongState){.rng = rng};
    start_round(s);
}

static void end_round(PongState *s, int *points) {
    if (++*points == PONG_GAME_POINTS) s->left_points = s->right_points = 0;
    start_round(s);
}

static bool ball_meets(const PongState *s, int paddle_y) {
    return s->ball_y + PONG_BALL > paddle_y && s->ball_y < paddle_y + PONG_PADDLE_HEIGHT;
}

static int move_paddle(int y, int by) {
    int limited = clamp(by, -PONG_PADDLE_SPEED, PONG_PADDLE_SPEED);
    return clamp(y + limited, PONG_PADDLE_MIN, PONG_PADDLE_MAX);
}

void pong_play(PongState *s, PongAction action) {
    CHECK((unsigned)action < PONG_N_ACTIONS, "action %d", (int)action);
    int direction = action == PONG_UP ? 1 : action == PONG_DOWN ? -1 : 0;
    s->right_y = move_paddle(s->right_y, direction * PONG_PADDLE_SPEED);
    s->left_y = move_paddle(s->left_y, s->ball_y - (s->left_y + PONG_PADDLE_HEIGHT / 2));

    s->ball_x += s->ball_vx;
    s->ball_y += s->ball_vy;
    if (s->ball_y < 0 || s->ball_y > PONG_HEIGHT - PONG_BALL) s->ball_vy = -s->ball_vy;
    if (s->ball_x < 0) {
        if (!ball_meets(s, s->left_y)) {
            end_round(s, &s->right_points);
            return;
        }
        s->ball_vx = -s->ball_vx;
    } else if (s->ball_x > PONG_WIDTH - PONG_BALL) {
        if (!ball_meets(s, s->right_y)) {
            end_round(s, &s->left_points);
            return;
        }
        s->ball_vx = -s->ball_vx;
        s->ball_vy = clamp(s->ball_vy + PONG_SPIN * direction, -PONG_BALL_MAX_SPEED_Y,
                           PONG_BALL_MAX_SPEED_Y);
        if (s->ball_vy == 0) s->ball_vy = PONG_SPIN;
    }
    s->ball_x = clamp(s->ball_x, 0, PONG_WIDTH - PONG_BALL);
    s->ball_y = clamp(s->ball_y, 0, PONG_HEIGHT - PONG_BALL);
}

/* The picture. */

typedef struct Box {
    int x0, x1, y0, y1; /* picture units, y downwards from the top */
    const uint8_t *colour;
} Box;

static Box box_at(int x, int y, int width, int height, const uint8_t *colour) {
    return (Box){x, x + width, PONG_HEIGHT - y - height, PONG_HEIGHT - y, colour};
}

/* How much of cell `cell` of n the interval lo .. hi covers, in units of 1/n: at most span, the
 * length of all n cells. In these units all borders are whole numbers. */
static int overlap(int lo, int hi, int cell, int n, int span) {
    return max_int(0, min_int(hi * n, (cell + 1) * span) - max_int(lo * n, cell * span));
}

static void draw_cell(const Box box[3], int row, int col, int h, int w, uint8_t *rgb) {
    const int area = PONG_PICTURE_WIDTH * PONG_HEIGHT;
    int sum[3];
    for (int c = 0; c < 3; c++) sum[c] = PONG_BACKGROUND[c] * area + area / 2;
    for (int k = 0; k < 3; k++) {
        int covered = overlap(box[k].x0, box[k].x1, col, w, PONG_PICTURE_WIDTH) *
                      overlap(box[k].y0, box[k].y1, row, h, PONG_HEIGHT);
        for (int c = 0; c < 3; c++) sum[c] += (box[k].colour[c] - PONG_BACKGROUND[c]) * covered;
    }
    for (int c = 0; c < 3; c++) rgb[c] = (uint8_t)(sum[c] / area);
}

static void fill_background(int64_t n, uint8_t *rgb) {
    int64_t done = n < 16 ? n : 16;
    for (int64_t i = 0; i < done; i++) memcpy(rgb + 3 * i, PONG_BACKGROUND, 3);
    while (done < n) { /* doubling copies: memcpy's speed for a 3-byte pattern */
        int64_t more = done < n - done ? done : n - done;
        memcpy(rgb + 3 * done, rgb, (size_t)(3 * more));
        done += more;
    }
}

void pong_render(const PongState *s, int h, int w, uint8_t *rgb) {
    CHECK(h >= 1 && h <= 4096 && w >= 1 && w <= 4096, "a picture of %d x %d", h, w);
    const Box box[3] = {
        box_at(PONG_LEFT_X, s->left_y, PONG_PADDLE_WIDTH, PONG_PADDLE_HEIGHT, PONG_LEFT_COLOUR),
        box_at(PONG_RIGHT_X, s->right_y, PONG_PADDLE_WIDTH, PONG_PADDLE_HEIGHT, PONG_RIGHT_COLOUR),
        box_at(PONG_MARGIN + s->ball_x, s->ball_y, PONG_BALL, PONG_BALL, PONG_BALL_COLOUR)};
    fill_background((int64_t)h * w, rgb);
    for (int k = 0; k < 3; k++) {
        int col0 = box[k].x0 * w / PONG_PICTURE_WIDTH;
        int col1 = (box[k].x1 * w - 1) / PONG_PICTURE_WIDTH;
        int row0 = max_int(0, box[k].y0) * h / PONG_HEIGHT;
        int row1 = (min_int(PONG_HEIGHT, box[k].y1) * h - 1) / PONG_HEIGHT;
        for (int row = row0; row <= row1; row++)
            for (int col = col0; col <= col1; col++)
                draw_cell(box, row, col, h, w, rgb + 3 * ((int64_t)row * w + col));
    }
}

/* The player: for a while it follows the ball with one error, then again, or it goes to some height
 * and waits there, or it holds one action. */

typedef struct Player {
    RngStream rng;
    int ticks_left;
    enum { FOLLOW, GO, HOLD } plan;
    int aim; /* FOLLOW: above the ball's centre; GO: height of the paddle's centre; HOLD: the action
              */
} Player;

static void make_plan(Player *p) {
    uint32_t kind = rng_next_below(&p->rng, 8);
    p->plan = kind == 0 ? HOLD : kind <= 2 ? GO : FOLLOW;
    if (p->plan == HOLD) p->aim = (int)rng_next_below(&p->rng, PONG_N_ACTIONS);
    if (p->plan == GO) p->aim = (int)rng_next_below(&p->rng, PONG_HEIGHT + 1);
    /* a hit needs less than 51, half of paddle and ball, at the end */
    if (p->plan == FOLLOW) p->aim = (int)rng_next_below(&p->rng, 91) - 45;
    /* 80 ticks take the paddle from end to end */
    p->ticks_left = 4 + (int)rng_next_below(&p->rng, p->plan == FOLLOW ? 60 : 100);
}

static PongAction choose(Player *p, const PongState *s) {
    if (p->ticks_left-- == 0) make_plan(p);
    if (p->plan == HOLD) return (PongAction)p->aim;
    int wanted = p->plan == GO ? p->aim : s->ball_y + PONG_BALL / 2 + p->aim;
    int above = wanted - (s->right_y + PONG_PADDLE_HEIGHT / 2);
    if (above >= PONG_PADDLE_SPEED) return PONG_UP;
    if (above <= -PONG_PADDLE_SPEED) return PONG_DOWN;
    return PONG_STAY;
}

void pong_clip(uint64_t seed, uint64_t clip, int n_frames, int h, int w, uint8_t *frames,
               int32_t *actions, PongState *truth) {
    CHECK(n_frames >= 1, "a clip of %d frames", n_frames);
    /* The key's step holds 32 bits of the number, so the rest chooses the place in the stream: game
     * and player of each clip have 2^31 numbers of their own. */
    RngStream rng = {{seed, (uint32_t)clip, RNG_GAME}, (clip >> 32) << 32};
    Player player = {.rng = {rng.key, rng.next + (UINT64_C(1) << 31)}};
    int warm_up = (int)rng_next_below(&rng, 1024);
    PongState s;
    pong_start(&s, rng);
    for (int i = 0; i < warm_up; i++) pong_play(&s, choose(&player, &s));
    for (int i = 0; i < n_frames; i++) {
        if (frames) pong_render(&s, h, w, frames + (int64_t)i * h * w * 3);
        if (truth) truth[i] = s;
        PongAction a = choose(&player, &s);
        actions[i] = a;
        pong_play(&s, a);
    }
}
