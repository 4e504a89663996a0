/* Between bytes and the model's numbers, and pictures for people.
 *
 * The model's numbers: byte b is b / 127.5 - 1, except that a pixel of exactly the background
 * colour is (0, 0, 0). So 0 means "background", and grey at the same time: the encoding is the
 * originals'. On the way back a pixel whose channels are all within PICTURE_NEAR_ZERO of 0 is
 * background; the rest is clamped to [-1, 1] and rounded. */
#ifndef DATA_PICTURE_H
#define DATA_PICTURE_H

#include <stdint.h>

#include "llmc_like/error.h"

#define PICTURE_NEAR_ZERO 0.2f

/* n pixels of RGB, (n, 3) -> (n, 3). */
void pixels_from_bytes(const uint8_t *rgb, int64_t n, const uint8_t background[3], float *x);

/* n pixels, (n, 3) -> (n, 3). NaN becomes the darkest value. */
void pixels_to_bytes(const float *x, int64_t n, const uint8_t background[3], uint8_t *rgb);

/* A PNG contact sheet of n frames (n, h, w, 3), in reading order, `columns` to a row, each pixel
 * `scale` pixels wide and high, with lines of 1 pixel between frames. Places without a frame are
 * left in the lines' grey. Written whole or not at all; 0, or -1 with a sentence. */
int picture_sheet(const char *path, const uint8_t *frames, int n, int h, int w, int columns,
                  int scale, Err *e);

/* An animated PNG of n frames (n, h, w, 3) at fps frames a second, repeating for ever: any browser
 * shows it, and what knows only PNG shows the first frame (PNG specification, third
 * edition, 11.3.6). Written whole or not at all; 0, or -1 with a sentence. */
int picture_apng(const char *path, const uint8_t *frames, int n, int h, int w, int scale, int fps,
                 Err *e);

/* One frame as a PNG. */
int picture_png(const char *path, const uint8_t *rgb, int h, int w, Err *e);

#endif
