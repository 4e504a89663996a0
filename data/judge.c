#include "data/judge.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "data/actions.h"
#include "llmc_like/error.h"

const int JUDGE_HORIZON[JUDGE_HORIZONS] = {1, 5, 15};

static const float BALL_MAX_X = PONG_WIDTH - PONG_BALL, BALL_MAX_Y = PONG_HEIGHT - PONG_BALL,
                   MIN_X = PONG_MARGIN;

/* Reading. Positions here are of the picture, in field units, y downwards from the top; what leaves
 * judge_read is turned into field coordinates. */

typedef struct View {
    int h, w;
    float cell_h, cell_w; /* units */
    float *x;      /* (h, w, 3) a copy of the frame, from which a ball that was found is taken */
    float *base;   /* (h, w, 3) what the frame would be without a ball                          */
    float *paddle; /* (h, w) coverage by the paddle of this half: unmixed, then as fitted       */
} View;

static float clampf(float x, float lo, float hi) { return fminf(fmaxf(x, lo), hi); }

/* Share of cell `cell` of length `size` that lo .. hi covers. */
static float share(float lo, float hi, int cell, float size) {
    float start = (float)cell * size;
    return fmaxf(0.0f, fminf(hi, start + size) - fmaxf(lo, start)) / size;
}

static const uint8_t *paddle_colour(const View *v, int col) {
    return col < v->w / 2 ? PONG_LEFT_COLOUR : PONG_RIGHT_COLOUR;
}

/* pixel = background + ball * (white - background) + paddle * (colour - background), solved for
 * both coverages by least squares over the channels; the paddle's. */
static float unmix_paddle(const float x[3], const uint8_t colour[3]) {
    float largest = 0, aa = 0, ap = 0, pp = 0, ad = 0, pd = 0;
    for (int c = 0; c < 3; c++) {
        float background = PONG_BACKGROUND[c];
        float a = PONG_BALL_COLOUR[c] - background, p = colour[c] - background;
        float d = (clampf(x[c], -1.0f, 1.0f) + 1.0f) * 127.5f - background;
        largest = fmaxf(largest, fabsf(x[c]));
        aa += a * a;
        ap += a * p;
        pp += p * p;
        ad += a * d;
        pd += p * d;
    }
    if (largest <= JUDGE_NEAR_ZERO) return 0; /* background: no share of a paddle is near grey */
    return clampf((pd * aa - ad * ap) / (aa * pp - ap * ap), 0.0f, 1.0f);
}

/* The model's numbers for a cell with so much ball and paddle in it. */
static void expected_pixel(const View *v, int col, float ball, float paddle, float x[3]) {
    const uint8_t *colour = paddle_colour(v, col);
    for (int c = 0; c < 3; c++) {
        float background = PONG_BACKGROUND[c];
        float byte = background + ball * (PONG_BALL_COLOUR[c] - background) +
                     paddle * (colour[c] - background);
        x[c] = ball > 0 || paddle > 0 ? byte / 127.5f - 1.0f : 0.0f;
    }
}

/* Cells lo .. hi - 1 of n that start .. end touches. */
static int first_cell(float start, float size) { return start > 0 ? (int)(start / size) : 0; }
static int end_cell(float end, float size, int n) {
    int cell = (int)ceilf(end / size);
    return cell < n ? cell : n;
}

/* How well a ball at (x, y) (upper left) explains the frame. */
typedef struct Match {
    float x, y;
    float explained; /* squared error without the ball less squared error with it   */
    float amount;    /* projection on what a whole ball would change: 1 is a whole one */
} Match;

static Match match_ball(const View *v, float x, float y) {
    Match m = {x, y, 0, 0};
    float dot = 0, norm = 0;
    for (int row = first_cell(y, v->cell_h); row < end_cell(y + PONG_BALL, v->cell_h, v->h); row++)
        for (int col = first_cell(x, v->cell_w); col < end_cell(x + PONG_BALL, v->cell_w, v->w);
             col++) {
            int64_t at = (int64_t)row * v->w + col;
            float ball =
                share(x, x + PONG_BALL, col, v->cell_w) * share(y, y + PONG_BALL, row, v->cell_h);
            float wanted[3], here_dot = 0, here_norm = 0;
            expected_pixel(v, col, ball, v->paddle[at], wanted);
            for (int c = 0; c < 3; c++) {
                float change = wanted[c] - v->base[3 * at + c];
                here_dot += change * (v->x[3 * at + c] - v->base[3 * at + c]);
                here_norm += change * change;
            }
            float gain = 2 * here_dot - here_norm;
            if (ball < JUDGE_EDGE) { /* an edge that is not drawn does not count against the ball */
                m.explained += fmaxf(gain, 0.0f);
                continue;
            }
            m.explained += gain;
            dot += here_dot;
            norm += here_norm;
        }
    m.amount = norm > 0 ? dot / norm : 0;
    return m;
}

/* The best place near m, to an eighth of a unit. */
static Match refine(const View *v, Match m) {
    for (float step = 2.0f; step > 0.1f; step /= 4) {
        const float x0 = m.x, y0 = m.y;
        for (int i = -4; i <= 4; i++)
            for (int j = -4; j <= 4; j++) {
                Match at = match_ball(v, clampf(x0 + (float)i * step, MIN_X, MIN_X + BALL_MAX_X),
                                      clampf(y0 + (float)j * step, 0, BALL_MAX_Y));
                if (at.explained > m.explained) m = at;
            }
    }
    return m;
}

/* Near enough to touch it by the next frame. */
static bool near_side(const PongReading *r) {
    const float reach = PONG_BALL_SPEED_X + JUDGE_TOLERANCE;
    return r->ball_x <= reach || r->ball_x >= BALL_MAX_X - reach;
}

/* Where the ball may be expected: where it was, where it would be by its last step, and, near a
 * side, where a new round would put it. */
typedef struct Expected {
    int n;
    float x[3], y[3];
} Expected;

static void expect(Expected *e, float ball_x, float ball_y) {
    e->x[e->n] = MIN_X + ball_x;
    e->y[e->n++] = BALL_MAX_Y - ball_y;
}

static float surprise(const Expected *e, const Match *m) {
    float least = 1;
    for (int i = 0; i < e->n; i++) {
        float d = hypotf(m->x - e->x[i], m->y - e->y[i]) / PONG_BALL;
        least = fminf(least, d * d);
    }
    return e->n > 0 ? JUDGE_SURPRISE * least : 0;
}

/* A coarse grid over the field, then the finest places around the best few of its places. */
static Match find_ball(const View *v, const Expected *expected) {
    enum {
        STEP = 6,
        NX = (PONG_WIDTH - PONG_BALL) / STEP + 1,
        NY = (PONG_HEIGHT - PONG_BALL) / STEP + 2
    };
    float score[NX][NY];
    Match best = {0, 0, -INFINITY, 0};
    float best_score = -INFINITY;
    for (int i = 0; i < NX; i++)
        for (int j = 0; j < NY; j++)
            score[i][j] =
                match_ball(v, MIN_X + (float)(i * STEP), fminf((float)(j * STEP), BALL_MAX_Y))
                    .explained;
    for (int candidate = 0; candidate < JUDGE_CANDIDATES; candidate++) {
        int top_i = 0, top_j = 0;
        for (int i = 0; i < NX; i++)
            for (int j = 0; j < NY; j++)
                if (score[i][j] > score[top_i][top_j]) {
                    top_i = i;
                    top_j = j;
                }
        Match m = refine(v, match_ball(v, MIN_X + (float)(top_i * STEP),
                                       fminf((float)(top_j * STEP), BALL_MAX_Y)));
        if (m.explained - surprise(expected, &m) > best_score) {
            best_score = m.explained - surprise(expected, &m);
            best = m;
        }
        for (int i = 0; i < NX; i++) /* the next one from elsewhere */
            for (int j = 0; j < NY; j++)
                if (abs(i - top_i) <= 2 && abs(j - top_j) <= 2) score[i][j] = -INFINITY;
    }
    return best;
}

/* Takes away the ball and its blur: one more cell on each side. */
static void take_away(View *v, const Match *m) {
    int row1 = end_cell(m->y + PONG_BALL + v->cell_h, v->cell_h, v->h);
    int col1 = end_cell(m->x + PONG_BALL + v->cell_w, v->cell_w, v->w);
    for (int row = first_cell(m->y - v->cell_h, v->cell_h); row < row1; row++)
        for (int col = first_cell(m->x - v->cell_w, v->cell_w); col < col1; col++)
            for (int c = 0; c < 3; c++) {
                int64_t at = 3 * ((int64_t)row * v->w + col) + c;
                v->x[at] = v->base[at];
            }
}

static Expected expected_from(const PongReading *r, int n_before) {
    Expected e = {0};
    if (n_before < 1 || !r[-1].ball_found) return e;
    expect(&e, r[-1].ball_x, r[-1].ball_y);
    if (near_side(&r[-1])) expect(&e, PONG_BALL_START_X, PONG_BALL_START_Y);
    if (n_before >= 2 && r[-2].ball_found)
        expect(&e, 2 * r[-1].ball_x - r[-2].ball_x, 2 * r[-1].ball_y - r[-2].ball_y);
    return e;
}

static void read_ball(View *v, int n_before, PongReading *r) {
    const Expected expected = expected_from(r, n_before), anywhere = {0};
    Match m = find_ball(v, &expected);
    r->ball_found = m.amount >= JUDGE_FOUND && m.explained >= JUDGE_EVIDENCE;
    if (!r->ball_found) return;
    r->ball_x = m.x - MIN_X;
    r->ball_y = BALL_MAX_Y - m.y;
    take_away(v, &m);
    m = find_ball(v, &anywhere);
    r->ball_doubled = m.amount >= JUDGE_FOUND && m.explained >= JUDGE_DOUBLE;
}

/* top: of the paddle, downwards. Squared error of that against the coverage of the rows; *found is
 * the share of the paddle's visible area that is there. */
static float paddle_cost(const View *v, const float *rows, float top, float *found) {
    float cost = 0, area = 0, there = 0;
    for (int row = 0; row < v->h; row++) {
        float expected = share(top, top + PONG_PADDLE_HEIGHT, row, v->cell_h);
        cost += (rows[row] - expected) * (rows[row] - expected);
        area += expected;
        there += fminf(rows[row], expected);
    }
    *found = there / area;
    return cost;
}

/* Finds the paddle in its columns and puts what was fitted, or nothing, in the place of what was
 * unmixed. rows (h) is scratch. */
static bool read_paddle(View *v, int x, float *rows, float *y) {
    float x1 = (float)(x + PONG_PADDLE_WIDTH);
    int col0 = first_cell((float)x, v->cell_w), col1 = end_cell(x1, v->cell_w, v->w);
    for (int row = 0; row < v->h; row++) {
        rows[row] = 0;
        for (int col = col0; col < col1; col++) rows[row] += v->paddle[row * v->w + col];
        rows[row] *= v->cell_w / PONG_PADDLE_WIDTH;
    }
    const float top_min = PONG_HEIGHT - PONG_PADDLE_HEIGHT - PONG_PADDLE_MAX;
    float best = INFINITY, best_top = 0, best_found = 0;
    for (int i = 0; i <= 2 * (PONG_PADDLE_MAX - PONG_PADDLE_MIN); i++) {
        float found, top = top_min + 0.5f * (float)i, cost = paddle_cost(v, rows, top, &found);
        if (cost >= best) continue;
        best = cost;
        best_top = top;
        best_found = found;
    }
    bool there = best_found >= JUDGE_FOUND;
    for (int row = 0; row < v->h; row++)
        for (int col = col0; col < col1; col++)
            v->paddle[row * v->w + col] =
                there ? share(best_top, best_top + PONG_PADDLE_HEIGHT, row, v->cell_h) *
                            share((float)x, x1, col, v->cell_w)
                      : 0;
    if (there) *y = PONG_HEIGHT - PONG_PADDLE_HEIGHT - best_top;
    return there;
}

static float squared_distance(const float a[3], const float b[3]) {
    float sum = 0;
    for (int c = 0; c < 3; c++) sum += (a[c] - b[c]) * (a[c] - b[c]);
    return sum;
}

/* What cell `at` would be without a ball. At a paddle's edge this jumps, from the background's 0 to
 * the dark of a cell that is hardly covered, so that the smallest error in its place would look
 * like a ball's edge: there whatever is nearest to the frame is taken. */
static void set_base(View *v, int at) {
    int col = at % v->w;
    const float paddle = v->paddle[at], hardly = 1e-6f, *x = v->x + 3 * at;
    float *base = v->base + 3 * at, other[3];
    expected_pixel(v, col, 0, paddle, base);
    bool above = at >= v->w && v->paddle[at - v->w] > 0;
    bool below = at + v->w < v->h * v->w && v->paddle[at + v->w] > 0;
    if (paddle >= JUDGE_EDGE || !(paddle > 0 || above || below)) return;
    const float choice[2] = {0, hardly};
    for (int i = 0; i < 2; i++) {
        expected_pixel(v, col, 0, choice[i], other);
        if (squared_distance(other, x) < squared_distance(base, x))
            memcpy(base, other, sizeof other);
    }
}

/* r[-n_before .. -1] are the frames before. rows (h) is scratch. */
static void read_frame(View *v, const float *x, float *rows, int n_before, PongReading *r) {
    int n = v->h * v->w;
    memset(v->paddle, 0, (size_t)n * sizeof *v->paddle);
    for (int i = 0; i < 3 * n; i++) v->x[i] = clampf(x[i], -1.0f, 1.0f);
    for (int side = 0; side < 2; side++) {
        int x0 = side ? PONG_RIGHT_X : PONG_LEFT_X, col = first_cell((float)x0, v->cell_w);
        for (; col < end_cell((float)(x0 + PONG_PADDLE_WIDTH), v->cell_w, v->w); col++)
            for (int at = col; at < n; at += v->w)
                v->paddle[at] = unmix_paddle(v->x + 3 * at, paddle_colour(v, col));
    }
    *r = (PongReading){0};
    r->left_found = read_paddle(v, PONG_LEFT_X, rows, &r->left_y);
    r->right_found = read_paddle(v, PONG_RIGHT_X, rows, &r->right_y);
    for (int i = 0; i < n; i++) set_base(v, i);
    read_ball(v, n_before, r);
}

void judge_read(const float *x, int n, int h, int w, PongReading *r) {
    CHECK(h >= 4 && w >= 8 && h <= 4096 && w <= 4096, "a frame of %d x %d", h, w);
    size_t cells = (size_t)h * (size_t)w;
    float *memory = malloc((7 * cells + (size_t)h) * sizeof *memory);
    CHECK(memory, "no memory to read a frame of %d x %d", h, w);
    View v = {.h = h,
              .w = w,
              .cell_h = (float)PONG_HEIGHT / (float)h,
              .cell_w = (float)PONG_PICTURE_WIDTH / (float)w,
              .x = memory,
              .base = memory + 3 * cells,
              .paddle = memory + 6 * cells};
    for (int i = 0; i < n; i++)
        read_frame(&v, x + 3 * cells * (size_t)i, memory + 7 * cells, i, &r[i]);
    free(memory);
}

/* Rules. */

const char *judge_rule_name(PongRule rule) {
    static const char *const name[RULE_COUNT] = {
        "kept all rules",     "ball missing",   "ball doubled",  "ball jumped",
        "ball changed speed", "paddle missing", "paddle jumped", "round restarted"};
    return (unsigned)rule < RULE_COUNT ? name[rule] : "?";
}

static bool within(float a, float b, float tolerance) { return fabsf(a - b) <= tolerance; }

static bool at_start(const PongReading *r) {
    return r->ball_found && r->left_found && r->right_found &&
           within(r->ball_x, PONG_BALL_START_X, JUDGE_TOLERANCE) &&
           within(r->ball_y, PONG_BALL_START_Y, JUDGE_TOLERANCE) &&
           within(r->left_y, PONG_PADDLE_START, JUDGE_TOLERANCE) &&
           within(r->right_y, PONG_PADDLE_START, JUDGE_TOLERANCE);
}

static bool near_wall(const PongReading *r) {
    const float reach = PONG_BALL_MAX_SPEED_Y + JUDGE_TOLERANCE;
    return r->ball_y <= reach || r->ball_y >= BALL_MAX_Y - reach;
}

static bool ball_jumped(const PongReading *a, const PongReading *b) {
    return !within(a->ball_x, b->ball_x, PONG_BALL_SPEED_X + JUDGE_TOLERANCE) ||
           !within(a->ball_y, b->ball_y, PONG_BALL_MAX_SPEED_Y + JUDGE_TOLERANCE);
}

static bool paddle_jumped(const PongReading *a, const PongReading *b) {
    return !within(a->left_y, b->left_y, PONG_PADDLE_SPEED + JUDGE_TOLERANCE) ||
           !within(a->right_y, b->right_y, PONG_PADDLE_SPEED + JUDGE_TOLERANCE);
}

/* Frame r[0] begins a round that r[-1] gave reason for. */
static bool round_begins(const PongReading *r) {
    return at_start(r) && r[-1].ball_found && near_side(&r[-1]) && ball_jumped(&r[-1], r);
}

static bool meets(float ball_y, bool paddle_found, float paddle_y) {
    return paddle_found && ball_y + PONG_BALL > paddle_y - JUDGE_TOLERANCE &&
           ball_y < paddle_y + PONG_PADDLE_HEIGHT + JUDGE_TOLERANCE;
}

/* In r[-1] the ball turned at a side where no paddle was. */
static bool turned_on_nothing(const PongReading *r) {
    const PongReading *turn = &r[-1];
    float before = turn->ball_x - r[-2].ball_x, after = r->ball_x - turn->ball_x;
    if (turn->ball_x <= JUDGE_TOLERANCE && before <= JUDGE_MOVES && after > JUDGE_MOVES)
        return !meets(turn->ball_y, turn->left_found, turn->left_y);
    if (turn->ball_x >= BALL_MAX_X - JUDGE_TOLERANCE && before >= -JUDGE_MOVES &&
        after < -JUDGE_MOVES)
        return !meets(turn->ball_y, turn->right_found, turn->right_y);
    return false;
}

/* Four frames without a move: it always has +-10 across, and turning takes no longer. */
static bool stands_still(const PongReading *r) {
    float lo = r->ball_x, hi = r->ball_x;
    for (int k = 1; k < 4; k++) {
        lo = fminf(lo, r[-k].ball_x);
        hi = fmaxf(hi, r[-k].ball_x);
    }
    return hi - lo < JUDGE_MOVES;
}

/* r[0] is frame `age` of its round. */
static bool speed_changed(const PongReading *r, int age) {
    int lag = age / 2 < JUDGE_LAG ? age / 2 : JUDGE_LAG;
    if (age >= 2 && turned_on_nothing(r)) return true;
    if (age >= 3 && stands_still(r)) return true;
    if (lag < 1) return false;
    for (int k = 0; k <= 2 * lag; k++)
        if (near_side(&r[-k]) || near_wall(&r[-k])) return false;
    const PongReading *middle = &r[-lag], *start = &r[-2 * lag];
    return !within(r->ball_x - middle->ball_x, middle->ball_x - start->ball_x, JUDGE_TOLERANCE) ||
           !within(r->ball_y - middle->ball_y, middle->ball_y - start->ball_y, JUDGE_TOLERANCE);
}

/* age: frames of this round before r[0]; 0 right after a new round. */
static PongRule broken_rule(const PongReading *r, int age) {
    if (!r->ball_found) return RULE_BALL_MISSING;
    if (r->ball_doubled) return RULE_BALL_DOUBLED;
    if (!r->left_found || !r->right_found) return RULE_PADDLE_MISSING;
    if (age == 0) return RULE_KEPT;
    if (ball_jumped(&r[-1], r)) return at_start(r) ? RULE_ROUND : RULE_BALL_JUMPED;
    if (paddle_jumped(&r[-1], r)) return RULE_PADDLE_JUMPED;
    return speed_changed(r, age) ? RULE_BALL_SPEED : RULE_KEPT;
}

int judge_rules(const PongReading *r, int n, int first, PongRule *broken) {
    CHECK(first >= 1 && first <= n, "%d frames, %d of them context", n, first);
    *broken = RULE_KEPT;
    int age = 0;
    for (int i = 1; i < n; i++) {
        /* nothing is compared with a frame in which something was missing, which context may have
         */
        bool whole = r[i - 1].ball_found && r[i - 1].left_found && r[i - 1].right_found;
        age = round_begins(&r[i]) || !whole ? 0 : age + 1;
        if (i < first) continue;
        *broken = broken_rule(&r[i], age);
        if (*broken != RULE_KEPT) return i - first;
    }
    return n - first;
}

static bool followed_action(float from, float to, int action) {
    if (action == ACTION_UP) return to - from > JUDGE_MOVES;
    if (action == ACTION_DOWN) return from - to > JUDGE_MOVES;
    return fabsf(to - from) < JUDGE_MOVES;
}

void judge_actions(const PongReading *r, const int32_t *actions, int n, int first, int *asked,
                   int *followed) {
    CHECK(first >= 1 && first <= n, "%d frames, %d of them context", n, first);
    *asked = *followed = 0;
    for (int i = first; i < n; i++) {
        const PongReading *from = &r[i - 1], *to = &r[i];
        int action = actions[i];
        if (action == ACTION_NONE || round_begins(to)) continue;
        if (from->right_found) {
            if (action == ACTION_UP && from->right_y > PONG_PADDLE_MAX - PONG_PADDLE_SPEED)
                continue;
            if (action == ACTION_DOWN && from->right_y < PONG_PADDLE_MIN + PONG_PADDLE_SPEED)
                continue;
        }
        ++*asked;
        if (from->right_found && to->right_found &&
            followed_action(from->right_y, to->right_y, action))
            ++*followed;
    }
}

static BallError ball_error(const PongReading *r, const PongState *truth) {
    if (!r->ball_found) return (BallError){0};
    float dx = r->ball_x - (float)truth->ball_x, dy = r->ball_y - (float)truth->ball_y;
    const float across = (float)PONG_FRAME_SIZE / PONG_PICTURE_WIDTH,
                along = (float)PONG_FRAME_SIZE / PONG_HEIGHT;
    return (BallError){true, hypotf(dx, dy), hypotf(dx * across, dy * along)};
}

void judge_dream(const float *x, int n, int h, int w, int first, const int32_t *actions,
                 const PongState *context, JudgeResult *out) {
    CHECK(first >= 1 && first <= n, "%d frames, %d of them context", n, first);
    *out = (JudgeResult){.frames_dreamed = n - first};
    PongReading *r = malloc((size_t)n * sizeof *r);
    CHECK(r, "no memory for %d readings", n);
    judge_read(x, n, h, w, r);
    judge_actions(r, actions, n, first, &out->asked, &out->followed);
    out->frames_in_rules = judge_rules(r, n, first, &out->broken);
    PongState truth = *context;
    for (int i = first, k = 0; i < n && k < JUDGE_HORIZONS; i++) {
        pong_play(&truth,
                  actions[i] == ACTION_NONE ? PONG_STAY : (PongAction)(actions[i] - ACTION_STAY));
        if (i - first + 1 != JUDGE_HORIZON[k]) continue;
        out->ball_asked[k] = true;
        out->ball[k++] = ball_error(&r[i], &truth);
    }
    free(r);
}
