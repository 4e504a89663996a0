/* Does a dream keep to the game? What only the built-in game allows to be said, because only there
 * the truth is known.
 *
 * Frames are read back into positions first (judge_read), each frame by itself, and the readings
 * are then judged. Lengths are units of the field (data/pong.h); one pixel of a frame 24 wide
 * is 25.8 x 26.7 of them.
 *
 * Reading. A paddle: its two columns are unmixed into coverage by paddle and by ball, and it stands
 * where its coverage of the rows explains them best (least squares). The ball: at each place that
 * it can have, the model's numbers that it would leave there are compared with the frame; it is at
 * the place that explains most of the squared difference from a frame without ball. So a true frame
 * is read to a fraction of a unit, and noise on the background (which is grey to the model, see
 * data/picture.h) is not taken for a ball. As a cell that is half ball looks like background, some
 * frames allow two places a cell apart: then the one nearer to the frame before decides.
 */
#ifndef DATA_JUDGE_H
#define DATA_JUDGE_H

#include <stdbool.h>
#include <stdint.h>

#include "data/pong.h"

/* Every threshold there is. */
#define JUDGE_NEAR_ZERO \
    0.2f                 /* model units: a pixel within that of 0 is background, as in pictures  */
#define JUDGE_EDGE 0.25f /* share of a cell: edges of a ball below that may be missing */
#define JUDGE_FOUND                                                               \
    0.5f /* share of an object that must be there to be found, also a second ball \
          */
#define JUDGE_EVIDENCE \
    0.15f /* squared error that a ball must explain to be found                    */
#define JUDGE_DOUBLE \
    0.5f /* squared error that a second ball must explain                         */
#define JUDGE_CANDIDATES \
    4 /* places for the ball that are looked at closely                        */
#define JUDGE_SURPRISE \
    0.1f /* squared error that a place a ball's size from the expected must make up */
#define JUDGE_MOVES 4.0f      /* units a tick: more is a move (a paddle's is 8), less is none     */
#define JUDGE_TOLERANCE 13.0f /* units: half a pixel of 24, given on all jumps, speeds, places */
#define JUDGE_LAG 4           /* frames over which the ball's speed is measured                   */

typedef struct PongReading {
    bool ball_found, ball_doubled, left_found, right_found;
    float ball_x, ball_y, left_y,
        right_y; /* lower left corners, as in PongState; 0 where not found */
} PongReading;

/* Reads the frames x (n, h, w, 3) of one film, the model's numbers with the game's background at 0,
 * into r (n). h >= 4, w >= 8. */
void judge_read(const float *x, int n, int h, int w, PongReading *r);

/* The rules a dream can break, and their names for people (judge_rule_name). */
typedef enum {
    RULE_KEPT,
    RULE_BALL_MISSING,
    RULE_BALL_DOUBLED,
    RULE_BALL_JUMPED, /* more than its largest speed and the tolerance in one tick              */
    RULE_BALL_SPEED,  /* speed changed with no wall or side near, or off a side without a paddle */
    RULE_PADDLE_MISSING, /* either one */
    RULE_PADDLE_JUMPED,  /* either one: more than 8 and the tolerance in one tick  */
    RULE_ROUND, /* a new round though the ball was at neither side                         */
    RULE_COUNT
} PongRule;
const char *judge_rule_name(PongRule rule);

/* Frames from `first` on that keep to the rules, up to n - first; *broken is what ended it, or
 * RULE_KEPT. Frames before `first` are context: they only give the speeds. first >= 1.
 * A new round is a frame with both paddles and the ball within the tolerance of their starting
 * places after a frame in which the ball was within its speed and the tolerance of a side; only
 * there things may jump. */
int judge_rules(const PongReading *r, int n, int first, PongRule *broken);

/* Does the right paddle follow? actions (n), the model's numbers: actions[i] is what was done
 * before frame i. Frame i >= first counts (asked) when its action is not none, it is no new round,
 * and the paddle is not within a tick of the end it is told to move to. It has followed when the
 * paddle is found in frames i - 1 and i, and up: y rises by more than JUDGE_MOVES; down: it falls
 * by more; stay: it moves by less. */
void judge_actions(const PongReading *r, const int32_t *actions, int n, int first, int *asked,
                   int *followed);

/* The distance of the ball's centre in a dreamed frame from where the game has it, in units of the
 * field, and in pixels of a frame of 24 x 24. */
typedef struct BallError {
    bool found; /* else the others are 0 */
    float units, pixels;
} BallError;

#define JUDGE_HORIZONS 3
extern const int JUDGE_HORIZON[JUDGE_HORIZONS]; /* 1, 5, 15 frames */

typedef struct JudgeResult {
    int asked, followed;                 /* judge_actions                                 */
    BallError ball[JUDGE_HORIZONS];      /* after 1, 5, 15 frames                         */
    bool ball_asked[JUDGE_HORIZONS];     /* the dream is long enough                      */
    int frames_in_rules, frames_dreamed; /* judge_rules                                   */
    PongRule broken;
} JudgeResult;

/* All three for one dream: frames x (n, h, w, 3), of which the first `first` are true context
 * (first
 * >= 1), actions (n), and the game's state at frame first - 1, from which the game goes on by the
 * same actions (none plays as stay). The game's state carries its generator, so a new round starts
 * the way it would have in truth. */
void judge_dream(const float *x, int n, int h, int w, int first, const int32_t *actions,
                 const PongState *context, JudgeResult *out);

#endif
