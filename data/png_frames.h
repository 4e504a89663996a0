/* A folder of numbered pictures as one array of frames. */
#ifndef DATA_PNG_FRAMES_H
#define DATA_PNG_FRAMES_H

#include <stdint.h>

#include "llmc_like/error.h"

/* Decodes every NAME<number>.png of the folder in the order of the numbers, with stb_image, as RGB
 * (alpha is dropped, grey is spread). The numbers may start anywhere and must have no gap and no
 * double; all pictures must be of the first one's size. Everything is decoded at once, so that what
 * is damaged is known before training starts.
 *   frames   (n, h, w, 3), malloc'd for the caller
 * Returns 0, or -1 with a sentence (then there is nothing to free). */
int png_frames_read(const char *folder, uint8_t **frames, int64_t *n, int *h, int *w, Err *e);

#endif
