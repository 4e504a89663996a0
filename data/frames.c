#include "data/frames.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "data/actions.h"
#include "data/picture.h"
#include "data/png_frames.h"
#include "llmc_like/permute.h"

static const int64_t GAME_HELD_OUT = INT32_MAX;
static const uint64_t HELD_OUT_BIT = UINT64_C(1) << 63;

enum { PATH_SIZE = 4096, BACKGROUND_SAMPLE = 1 << 18 };

/* Background. */

static int by_colour(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* The commonest colour of pixels spread evenly over the recording. The step is odd and so falls on
 * other places of the picture from frame to frame. */
static int commonest_colour(FrameData *d, Err *e) {
    int64_t n_pixels = d->n_recorded * d->h * d->w;
    int64_t step = n_pixels / BACKGROUND_SAMPLE | 1, n = (n_pixels + step - 1) / step;
    uint32_t *colour = malloc(sizeof *colour * (size_t)n);
    if (!colour) return err_set(e, "no memory to find the background; name it with \"R,G,B\"");
    for (int64_t i = 0; i < n; i++) {
        const uint8_t *p = d->frames + 3 * i * step;
        colour[i] = (uint32_t)p[0] << 16 | (uint32_t)p[1] << 8 | p[2];
    }
    qsort(colour, (size_t)n, sizeof *colour, by_colour);
    int64_t longest = 0;
    uint32_t best = 0;
    for (int64_t i = 0, start = 0; i < n; i++) {
        if (colour[i] != colour[start]) start = i;
        if (i - start + 1 > longest) {
            longest = i - start + 1;
            best = colour[i];
        }
    }
    free(colour);
    for (int c = 0; c < 3; c++) d->background[c] = (uint8_t)(best >> (16 - 8 * c));
    return 0;
}

static int parse_colour(const char *text, uint8_t rgb[3], Err *e) {
    int value[3], end = 0;
    bool good =
        sscanf(text, "%3d,%3d,%3d%n", &value[0], &value[1], &value[2], &end) == 3 && text[end] == 0;
    for (int c = 0; good && c < 3; c++) good = value[c] >= 0 && value[c] <= 255;
    if (!good)
        return err_set(
            e,
            "background \"%.40s\": expected \"auto\", or three numbers of 0 to 255 such as "
            "\"6,24,24\"",
            text);
    for (int c = 0; c < 3; c++) rgb[c] = (uint8_t)value[c];
    return 0;
}

static int find_background(FrameData *d, const char *text, Err *e) {
    if (text && strcmp(text, "auto") != 0) return parse_colour(text, d->background, e);
    if (!d->pong) return commonest_colour(d, e);
    memcpy(d->background, PONG_BACKGROUND, 3);
    return 0;
}

/* Recordings. */

static int join(char path[PATH_SIZE], const char *folder, const char *name, Err *e) {
    if (snprintf(path, PATH_SIZE, "%s/%s", folder, name) >= PATH_SIZE)
        return err_set(e, "%.60s...: the path is too long; use a shorter one", folder);
    return 0;
}

static int open_npy(FrameData *d, const char *path, Err *e) {
    char shape[NPY_SHAPE_TEXT];
    if (npy_open(path, &d->map, e)) return -1;
    const NpyArray *a = &d->map;
    if (a->dtype != NPY_U1)
        return err_set(e, "%s: dtype %s, expected uint8; save frames.astype('uint8'), 0 to 255",
                       path, npy_name(a->dtype));
    bool good = a->ndim == 4 && a->shape[3] == 3;
    for (int i = 1; good && i < 3; i++) good = a->shape[i] >= 1 && a->shape[i] <= 4096;
    if (!good)
        return err_set(e,
                       "%s: shape %s, expected (N, height, width, 3): RGB pictures, one after "
                       "another; transpose or reshape it",
                       path, npy_shape_text(a, shape));
    d->n_recorded = a->shape[0];
    d->h = (int)a->shape[1];
    d->w = (int)a->shape[2];
    d->frames = a->data;
    return 0;
}

static int open_actions(FrameData *d, const char *folder, Err *e) {
    char npy[PATH_SIZE], csv[PATH_SIZE];
    if (join(npy, folder, "actions.npy", e) || join(csv, folder, "actions.csv", e)) return -1;
    const char *path = access(npy, F_OK) == 0 ? npy : csv;
    if (access(path, F_OK))
        return err_set(
            e,
            "%s: neither actions.npy nor actions.csv is there; put one beside the frames, "
            "one action (0 stay, 1 up, 2 down) a frame",
            folder);
    int64_t n;
    if (actions_read(path, &d->actions, &n, e)) {
        d->actions = NULL;
        return -1;
    }
    if (n != d->n_recorded)
        return err_set(
            e,
            "%s: %lld actions for %lld frames, expected one action a frame; cut the longer "
            "one",
            path, (long long)n, (long long)d->n_recorded);
    return 0;
}

static int open_recording(FrameData *d, const char *folder, Err *e) {
    struct stat info;
    char path[PATH_SIZE];
    if (stat(folder, &info) || !S_ISDIR(info.st_mode))
        return err_set(
            e,
            "%s: no such folder; name one with frames.npy (or numbered .png pictures) and "
            "actions.npy, or \"pong\" for the built-in game",
            folder);
    if (join(path, folder, "frames.npy", e)) return -1;
    if (access(path, F_OK) == 0) {
        if (open_npy(d, path, e)) return -1;
    } else {
        if (png_frames_read(folder, &d->decoded, &d->n_recorded, &d->h, &d->w, e)) {
            d->decoded = NULL;
            return -1;
        }
        d->frames = d->decoded;
    }
    return open_actions(d, folder, e);
}

static int check_size(const FrameData *d, const FrameOptions *o, Err *e) {
    if ((o->h == 0 || o->h == d->h) && (o->w == 0 || o->w == d->w)) return 0;
    return err_set(e,
                   "%s: its frames are %d high and %d wide, expected %d and %d; scale them, or ask "
                   "for their own size",
                   o->source, d->h, d->w, o->h ? o->h : d->h, o->w ? o->w : d->w);
}

static int split(FrameData *d, const FrameOptions *o, Err *e) {
    int64_t length = d->n_frames + 1, n = d->n_recorded / length;
    if (n < 2)
        return err_set(
            e,
            "%s: %lld frames make %lld examples of %lld, expected at least 2, one to train "
            "on and one held out; record %lld frames or more, or use shorter clips",
            o->source, (long long)d->n_recorded, (long long)n, (long long)length,
            (long long)(2 * length));
    if (!(o->held_out >= 0 && o->held_out < 1))
        return err_set(e, "held-out share %g, expected at least 0 and below 1, such as 0.0625",
                       o->held_out);
    d->n_held = (int64_t)floor((double)n * o->held_out);
    if (d->n_held < 1) d->n_held = 1;
    if (d->n_held > n - 1) d->n_held = n - 1;
    d->n_train = n - d->n_held;
    return 0;
}

static void describe(FrameData *d, const char *source) {
    const uint8_t *b = d->background;
    if (d->pong) {
        snprintf(d->description, sizeof d->description,
                 "built-in Pong, endless, %dx%d, clips of %d frames, background %d,%d,%d", d->h,
                 d->w, d->n_frames, b[0], b[1], b[2]);
        return;
    }
    snprintf(d->description, sizeof d->description,
             "%.100s: %lld %s of %dx%d, %lld clips of %d to train on, %lld held out, background "
             "%d,%d,%d",
             source, (long long)d->n_recorded, d->decoded ? "pictures" : "frames", d->h, d->w,
             (long long)d->n_train, d->n_frames, (long long)d->n_held, b[0], b[1], b[2]);
}

static int open_checked(FrameData *d, const FrameOptions *o, Err *e) {
    if (d->pong) {
        d->h = o->h ? o->h : PONG_FRAME_SIZE;
        d->w = o->w ? o->w : PONG_FRAME_SIZE;
        d->n_held = GAME_HELD_OUT;
    } else if (open_recording(d, o->source, e) || check_size(d, o, e) || split(d, o, e)) {
        return -1;
    }
    return find_background(d, o->background, e);
}

int frames_open(FrameData *d, const FrameOptions *o, Err *e) {
    CHECK(o->n_frames >= 1 && o->h >= 0 && o->w >= 0, "%d frames of %d x %d", o->n_frames, o->h,
          o->w);
    *d = (FrameData){
        .pong = strcmp(o->source, "pong") == 0, .n_frames = o->n_frames, .seed = o->seed};
    if (open_checked(d, o, e)) {
        frames_close(d);
        return -1;
    }
    describe(d, o->source);
    return 0;
}

void frames_close(FrameData *d) {
    npy_close(&d->map);
    free(d->decoded);
    free(d->actions);
    *d = (FrameData){0};
}

/* Examples. */

int64_t frames_order(const FrameData *d, uint64_t index) {
    CHECK(!d->pong, "the game has no order: it is endless");
    uint64_t n = (uint64_t)d->n_train;
    return (int64_t)permute(d->seed, index / n, n, index % n);
}

/* Where example `index` of a recording begins. */
static int64_t first_frame(const FrameData *d, bool held_out, uint64_t index) {
    int64_t example =
        held_out ? d->n_train + (int64_t)(index % (uint64_t)d->n_held) : frames_order(d, index);
    return example * (d->n_frames + 1);
}

void frames_clip_bytes(const FrameData *d, bool held_out, uint64_t index, uint8_t *frames,
                       int32_t *actions, PongState *truth) {
    int length = d->n_frames + 1;
    if (d->pong) {
        uint64_t clip = held_out ? HELD_OUT_BIT | index % (uint64_t)d->n_held : index;
        pong_clip(d->seed, clip, length, d->h, d->w, frames, actions, truth);
        for (int i = 0; i < length; i++) actions[i] += ACTION_STAY - PONG_STAY;
        return;
    }
    CHECK(!truth, "nobody knows the truth of a recording");
    int64_t first = first_frame(d, held_out, index), size = (int64_t)d->h * d->w * 3;
    memcpy(frames, d->frames + first * size, (size_t)(length * size));
    memcpy(actions, d->actions + first, sizeof *actions * (size_t)length);
}

void frames_clip(const FrameData *d, bool held_out, uint64_t index, float *x, int32_t *actions) {
    int64_t size = (int64_t)d->h * d->w * 3;
    if (!d->pong) { /* straight from the map */
        int64_t first = first_frame(d, held_out, index);
        pixels_from_bytes(d->frames + (first + 1) * size, d->n_frames * size / 3, d->background, x);
        memcpy(actions, d->actions + first, sizeof *actions * (size_t)d->n_frames);
        return;
    }
    size_t n_actions = (size_t)d->n_frames + 1, n_bytes = n_actions * (size_t)size;
    int32_t *taken = malloc(n_actions * sizeof *taken + n_bytes);
    CHECK(taken, "no memory for one clip of %d frames of %d x %d", d->n_frames, d->h, d->w);
    uint8_t *frames = (uint8_t *)(taken + n_actions);
    frames_clip_bytes(d, held_out, index, frames, taken, NULL);
    pixels_from_bytes(frames + size, d->n_frames * size / 3, d->background, x);
    memcpy(actions, taken, sizeof *actions * (size_t)d->n_frames);
    free(taken);
}
