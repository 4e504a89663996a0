/* Arenas: one allocation a lifetime. Memory is taken from the system once, touched once, and used
 * again and again: in a steady-state step there is no malloc and no page fault.
 *
 * An arena is a bump allocator. arena_commit takes a known size at once; beyond it the arena grows
 * by doubling, and the next arena_reset merges what it grew into one block, which stays. A dry
 * arena hands out no memory and only counts, so that the very same code that computes a step also
 * plans it (--plan). */
#ifndef LLMC_LIKE_ARENA_H
#define LLMC_LIKE_ARENA_H

#include <stdbool.h>
#include <stddef.h>

#include "llmc_like/error.h"
#include "llmc_like/memory.h"

/* 256: what cudaMalloc promises and cuBLASLt likes best. */
enum { ARENA_MAX_CHUNKS = 24, ARENA_ALIGN = 256 };

typedef struct Arena {
    const char *name; /* for the table: "parameters", "activations", ... */
    const Memory *memory;
    bool dry;
    struct {
        char *base;
        size_t size, used;
    } chunk[ARENA_MAX_CHUNKS];
    int n_chunks;
    size_t used, peak; /* bytes now and at most, alignment included */
} Arena;

void arena_init(Arena *a, const char *name, const Memory *memory, bool dry);

/* Takes `bytes` from the memory now. -1 and a sentence where there is not that much. */
int arena_commit(Arena *a, size_t bytes, Err *e);

/* The same for sizes that rise from step to step: where it must grow, it grows at least by half of
 * what it has, or by 1 GiB. */
int arena_reserve(Arena *a, size_t bytes, Err *e);

/* `bytes` of memory aligned to 256, not cleared (the host's fresh pages are zero). NULL from a dry
 * arena. Never fails otherwise: when the system refuses to grow an arena inside a step, the run
 * cannot go on and CHECK says by how much. */
void *arena_alloc(Arena *a, size_t bytes);

void arena_reset(Arena *a);
void arena_free(Arena *a);

/* A free list over an arena, for gradients of activations: each lives from its consumer's backward
 * to its producer's, and blocks of equal size come round again, still warm in the cache. */
enum { POOL_MAX_SIZES = 64 };

typedef struct Pool {
    Arena *arena;
    struct {
        size_t size;
        void **free; /* the blocks, last come first; a dry pool counts them only */
        int n_free, cap;
    } bin[POOL_MAX_SIZES];
    int n_bins;
} Pool;

void pool_init(Pool *p, Arena *a);
void *pool_take(Pool *p, size_t bytes);
void pool_give(Pool *p, void *block, size_t bytes);
void pool_reset(Pool *p); /* forgets all blocks; the arena is reset by its owner */
void pool_free(Pool *p);

#endif
