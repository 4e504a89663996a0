/* Blocks of a device's memory that tests fill and read: a copy on the host, and where kernels find
 * it. And which devices a test goes through: all that this machine runs, or the one that the
 * command line names. Include after cmocka.h. */
#ifndef TEST_ON_DEVICE_H
#define TEST_ON_DEVICE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/device.h"

static const char *only_device; /* argv[1] */

/* argv[1]: the device, argv[2]: which of the tests, as a pattern with *. Ends the program where the
 * device that is named does not run here: nothing would be tested. */
static inline void device_choose(int argc, char **argv) {
    if (argc < 2) return;
    if (argc > 2) cmocka_set_test_filter(argv[2]);
    Err e;
    const Device *d = device_find(argv[1], &e);
    if (d) only_device = d->name;
    if (d) return;
    fprintf(stderr, "%s\n", e.text);
    exit(1);
}

static inline bool device_tested(const Device *d) {
    return (!only_device || !strcmp(d->name, only_device)) && device_runs_here(d);
}

typedef struct Block {
    const Memory *memory;
    unsigned char *host; /* what the test reads and writes */
    unsigned char *at;   /* what kernels get: host itself where that is their memory */
    size_t bytes;
} Block;

/* Contents undefined until block_push. */
static inline Block block_make(const Device *d, size_t bytes) {
    const size_t all = (bytes + ARENA_ALIGN) / ARENA_ALIGN * ARENA_ALIGN;
    Block b = {.memory = d->memory, .host = aligned_alloc(ARENA_ALIGN, all), .bytes = bytes};
    assert_non_null(b.host);
    b.at = d->memory->is_host ? b.host : d->memory->take(all);
    assert_non_null(b.at);
    return b;
}

static inline void block_push(const Block *b) {
    if (b->at != b->host) b->memory->put(b->at, b->host, b->bytes);
}

static inline void block_pull(const Block *b) {
    if (b->at != b->host) b->memory->get(b->host, b->at, b->bytes);
}

static inline void block_free(Block *b) {
    if (b->host && b->at != b->host) b->memory->give(b->at, b->bytes);
    free(b->host);
    *b = (Block){0};
}

/* bfloat16 as the upper half of a float32, rounded to the nearest, ties to even. */
static inline uint16_t to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x != x) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline float from_bf16(uint16_t x) {
    const uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
}

#endif
