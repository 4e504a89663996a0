/* Counter-based random numbers: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as
 * 1, 2, 3", SC 2011).
 *
 * A number depends on what it is for, never on who draws it or in which order: the key is the seed,
 * the counter is (index / 4, step, purpose). So the numbers are the same on every device, for any
 * number of threads or ranks, and after a resume. No state, nothing to save. */
#ifndef LLMC_LIKE_PHILOX_H
#define LLMC_LIKE_PHILOX_H

#include <stdint.h>

/* What numbers are for. One row each, so that no two uses share a stream. */
typedef enum {
    RNG_INIT,           /* parameters; step = the parameter's number                     */
    RNG_NOISE,          /* z of the rectified flow; index = element of the global batch   */
    RNG_NOISE_LEVEL,    /* t, one a frame                                                  */
    RNG_ACTION_DROPOUT, /* one a frame                                                     */
    RNG_DATA,           /* which clip or event; step = the example's number                */
    RNG_GAME,           /* inside one generated example; step = the example's number       */
    RNG_SAMPLE,         /* the noise that sampling starts from; step = the frame           */
    RNG_EVAL,           /* noise and levels of held-out examples                           */
    RNG_DROPOUT,        /* step = training step, index from the layer and element          */
    RNG_TEST
} RngPurpose;

typedef struct RngKey {
    uint64_t seed;
    uint32_t step;
    uint32_t purpose; /* RngPurpose */
} RngKey;

/* The bare block function: ten rounds. */
void philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

/* Number `index` of the stream: 32 bits. */
uint32_t rng_bits(RngKey k, uint64_t index);

/* Numbers index0 .. index0 + n - 1 of the stream, uniform in (0, 1): (bits + 0.5) 2^-32 rounded to
 * float, at most 1 - 2^-24. */
void rng_uniform(RngKey k, uint64_t index0, float *out, int64_t n);

/* Likewise standard normals, by Box and Muller from lanes (0, 1) and (2, 3) of each block. */
void rng_normal(RngKey k, uint64_t index0, float *out, int64_t n);

/* A sequential reader for code that asks for one number after another (games, shuffles). */
typedef struct RngStream {
    RngKey key;
    uint64_t next;
} RngStream;

float rng_next_uniform(RngStream *s); /* (0, 1)   */
float rng_next_normal(RngStream *s);  /* uses two */
uint32_t rng_next_below(RngStream *s,
                        uint32_t n); /* 0 .. n-1, without bias that matters: 64-bit multiply */

#endif
