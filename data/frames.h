/* The data set that the world model reads: clips of frames with their actions, from one of three
 * sources behind one interface:
 *   "pong"            the built-in game (data/pong.h): endless, nothing on disk
 *   FOLDER            frames.npy, uint8 (N, h, w, 3), memory-mapped, and actions.npy or actions.csv
 *   FOLDER            numbered pictures NAME0000.png, ... without gaps, and actions.npy or .csv
 *
 * An example is F + 1 consecutive frames; frame i goes with the action taken at frame i - 1, so the
 * first frame and the last action are dropped and F of each remain. Examples are cut without
 * overlap: example i of a recording is its frames (F + 1) i .. (F + 1) i + F.
 *
 * Held out: the last examples of a recording, which training never reads; of the game, the clips
 * whose numbers have the top bit set.
 *
 * After frames_open everything is const: any number of threads may read clips at once. */
#ifndef DATA_FRAMES_H
#define DATA_FRAMES_H

#include <stdbool.h>
#include <stdint.h>

#include "data/pong.h"
#include "llmc_like/error.h"
#include "llmc_like/npy.h"

typedef struct FrameOptions {
    const char *source;     /* "pong" or a folder                                              */
    int n_frames;           /* F                                                               */
    int h, w;               /* a recording must be of this size; 0: whatever it is (pong: 24)  */
    uint64_t seed;          /* of the game and of the order of examples                        */
    const char *background; /* "R,G,B", or "auto" or NULL: a recording's commonest colour      */
    double held_out;        /* share of a recording's examples, 0 <= . < 1; at least 1 example */
} FrameOptions;

#define FRAMES_HELD_OUT_DEFAULT (1.0 / 16)

typedef struct FrameData {
    bool pong;
    int n_frames, h, w;
    uint64_t seed;
    uint8_t background[3];
    int64_t n_recorded;      /* frames of the recording; 0 for the game                        */
    int64_t n_train, n_held; /* examples; for the game n_train is 0 (endless), n_held 2^31 - 1 */
    const uint8_t *frames;   /* (n_recorded, h, w, 3), in the map or in decoded                */
    int32_t *actions;        /* (n_recorded), the model's numbers                              */
    NpyArray map;            /* frames.npy, where that is the source                           */
    uint8_t *decoded;        /* the pictures, where those are                                  */
    char description[256];   /* one line for a banner                                          */
} FrameData;

/* Opens and checks everything there is to check: sizes, dtypes, lengths, each action, numbering,
 * and that there is at least one example to train on and one held out. Returns 0, or -1 with a
 * sentence that says what was found, what was expected and what to do; then there is nothing to
 * close. */
int frames_open(FrameData *d, const FrameOptions *o, Err *e);
void frames_close(FrameData *d);

/* Example `index` for the model.
 *   x        (F, h, w, 3) NHWC, float in [-1, 1]: pixels_from_bytes of data/picture.h
 *   actions  (F), 1 to 3: actions[i] is what was done before frame i
 * Training: index counts examples since the start of training. Each run of n_train of them is a
 * pass over the recording in an order of its own: a bijection computed from (seed, pass) without
 * memory. Held out: example index modulo n_held, in the recording's order. */
void frames_clip(const FrameData *d, bool held_out, uint64_t index, float *x, int32_t *actions);

/* The same example before that: bytes (F + 1, h, w, 3), actions (F + 1) still at their own frames
 * but already the model's numbers, and what the game's frames show, truth (F + 1), or NULL (it must
 * be NULL for a recording). frames_clip's frame i is frame i + 1 here. */
void frames_clip_bytes(const FrameData *d, bool held_out, uint64_t index, uint8_t *frames,
                       int32_t *actions, PongState *truth);

/* The number of the recording's example that training example `index` is: a bijection of
 * 0..n_train-1 for each pass. */
int64_t frames_order(const FrameData *d, uint64_t index);

#endif
