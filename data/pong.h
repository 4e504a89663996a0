/* The built-in game: Pong by the rules of PufferLib's, and pictures of it.
 *
 * Everything is a whole number, so the same seed gives the same game and the same bytes on every
 * machine. Field coordinates: x to the right, y upwards, in units of the field (500 x 640); a
 * paddle or the ball is named by its lower left corner. The picture is the field with a margin of
 * 60 left and right, 620 x 640; paddles stand in the margins, so nothing ever covers anything else.
 *
 * A tick (pong_play): the right paddle moves by the action, the left one follows the ball, the ball
 * moves. It bounces off top and bottom; at either side it bounces off the paddle, or the round is
 * over, a point is given, and a new round starts in the same tick. At 21 points a new game starts.
 * Off the right paddle the vertical speed changes by PONG_SPIN in the direction the paddle was told
 * to move.
 *
 * Nothing here allocates or fails; a wrong argument is a bug (CHECK). */
#ifndef DATA_PONG_H
#define DATA_PONG_H

#include <stdint.h>

#include "llmc_like/philox.h"

enum {
    PONG_WIDTH = 500,
    PONG_HEIGHT = 640,
    PONG_MARGIN = 60,
    PONG_PICTURE_WIDTH = PONG_WIDTH + 2 * PONG_MARGIN,
    PONG_PADDLE_WIDTH = 20,
    PONG_PADDLE_HEIGHT = 70,
    PONG_PADDLE_SPEED = 8,
    PONG_PADDLE_MIN = -PONG_PADDLE_HEIGHT / 2,              /* lower edge, half of it below   */
    PONG_PADDLE_MAX = PONG_HEIGHT - PONG_PADDLE_HEIGHT / 2, /* ... and half of it above       */
    PONG_PADDLE_START = (PONG_HEIGHT - PONG_PADDLE_HEIGHT) / 2,
    PONG_LEFT_X = PONG_MARGIN - PONG_PADDLE_WIDTH, /* of the picture, as is PONG_RIGHT_X */
    PONG_RIGHT_X = PONG_MARGIN + PONG_WIDTH,
    PONG_BALL = 32,
    PONG_BALL_START_X = 100,
    PONG_BALL_START_Y = (PONG_HEIGHT - PONG_BALL) / 2,
    PONG_BALL_SPEED_X = 10,
    PONG_BALL_MAX_SPEED_Y = 13,
    PONG_SPIN = 3,
    PONG_GAME_POINTS = 21,
    PONG_FRAME_SIZE = 24 /* height and width of a frame where nobody says otherwise */
};

/* As recordings name them. A model's action is one more: 0 is "no action" (data/actions.h). */
typedef enum { PONG_STAY, PONG_UP, PONG_DOWN, PONG_N_ACTIONS } PongAction;

/* RGB. */
extern const uint8_t PONG_BACKGROUND[3], PONG_LEFT_COLOUR[3], PONG_RIGHT_COLOUR[3],
    PONG_BALL_COLOUR[3];

typedef struct PongState {
    int ball_x, ball_y;   /* 0..468, 0..608                                 */
    int ball_vx, ball_vy; /* per tick: +-10; -13..13                        */
    int left_y, right_y;  /* -35..605                                       */
    int left_points, right_points;
    RngStream rng; /* gives the first direction of each new round    */
} PongState;

/* A new game at the start of its first round. */
void pong_start(PongState *s, RngStream rng);

/* One tick. */
void pong_play(PongState *s, PongAction action);

/* The picture (h, w, 3), row 0 at the top, area-averaged from 620 x 640: each channel is
 * background + sum over objects of coverage * (colour - background), rounded to the nearest, where
 * coverage is the exact share of the cell that the object covers. 1 <= h, w <= 4096. */
void pong_render(const PongState *s, int h, int w, uint8_t *rgb);

/* Clip number `clip` of the endless data set, a function of (seed, clip) alone: a game that a
 * player has played for a random while, so that clips begin in all situations.
 *   frames   (n_frames, h, w, 3), or NULL: states and actions without pictures
 *   actions  (n_frames), PongAction: actions[i] is taken at frame i and shows in frame i + 1
 *   truth    (n_frames), the state that frame i shows, or NULL
 * The player follows the ball with an error that it redraws every second or so, and for a part of
 * the time holds an action or goes to some height instead, so that all actions occur in all
 * situations. */
void pong_clip(uint64_t seed, uint64_t clip, int n_frames, int h, int w, uint8_t *frames,
               int32_t *actions, PongState *truth);

#endif
