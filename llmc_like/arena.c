#include "llmc_like/arena.h"

#include <stdlib.h>
#include <string.h>

static size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

void arena_init(Arena *a, const char *name, const Memory *memory, bool dry) {
    memset(a, 0, sizeof *a);
    a->name = name;
    a->memory = memory;
    a->dry = dry;
}

static int add_chunk(Arena *a, size_t bytes, Err *e) {
    enum { HUGE_PAGE = 2 << 20 };
    bytes = round_up(bytes, HUGE_PAGE);
    CHECK(a->n_chunks < ARENA_MAX_CHUNKS, "arena %s has %d chunks", a->name, a->n_chunks);
    void *p = a->memory->take(bytes);
    if (!p)
        return err_set(e,
                       "the %s refuses %.1f MiB for %s (%.1f MiB are left): choose a smaller model "
                       "or batch (--plan shows the sizes)",
                       a->memory->name, (double)bytes / 1048576, a->name,
                       a->memory->left() / 1048576);
    a->chunk[a->n_chunks].base = p;
    a->chunk[a->n_chunks].size = bytes;
    a->chunk[a->n_chunks++].used = 0;
    return 0;
}

static size_t committed(const Arena *a) {
    size_t n = 0;
    for (int i = 0; i < a->n_chunks; i++) n += a->chunk[i].size;
    return n;
}

int arena_commit(Arena *a, size_t bytes, Err *e) {
    if (a->dry || bytes <= committed(a)) return 0;
    return add_chunk(a, bytes - committed(a), e);
}

int arena_reserve(Arena *a, size_t bytes, Err *e) {
    const size_t have = committed(a), most = (size_t)1 << 30;
    const size_t spare = have / 2 < most ? have / 2 : most;
    if (a->dry || bytes <= have) return 0;
    return arena_commit(a, bytes > have + spare ? bytes : have + spare, e);
}

void *arena_alloc(Arena *a, size_t bytes) {
    bytes = round_up(bytes ? bytes : 1, ARENA_ALIGN);
    a->used += bytes;
    if (a->used > a->peak) a->peak = a->used;
    if (a->dry) return NULL;
    for (int i = 0; i < a->n_chunks; i++) {
        if (a->chunk[i].size - a->chunk[i].used < bytes) continue;
        void *p = a->chunk[i].base + a->chunk[i].used;
        a->chunk[i].used += bytes;
        return p;
    }
    size_t grow = committed(a) > bytes ? committed(a) : bytes;
    Err e = {{0}};
    CHECK(add_chunk(a, grow, &e) == 0, "%s", e.text);
    a->chunk[a->n_chunks - 1].used = bytes;
    return a->chunk[a->n_chunks - 1].base;
}

void arena_reset(Arena *a) {
    a->used = 0;
    if (a->n_chunks > 1) {
        size_t all = committed(a), peak = a->peak;
        arena_free(a);
        Err e = {{0}};
        CHECK(add_chunk(a, all, &e) == 0, "%s", e.text);
        a->peak = peak;
    }
    if (a->n_chunks) a->chunk[0].used = 0;
}

void arena_free(Arena *a) {
    for (int i = 0; i < a->n_chunks; i++) a->memory->give(a->chunk[i].base, a->chunk[i].size);
    arena_init(a, a->name, a->memory, a->dry);
}

void pool_init(Pool *p, Arena *a) {
    memset(p, 0, sizeof *p);
    p->arena = a;
}

static int pool_bin(Pool *p, size_t bytes) {
    for (int i = 0; i < p->n_bins; i++)
        if (p->bin[i].size == bytes) return i;
    CHECK(p->n_bins < POOL_MAX_SIZES, "more than %d sizes of gradients", POOL_MAX_SIZES);
    p->bin[p->n_bins].size = bytes;
    p->bin[p->n_bins].n_free = 0;
    return p->n_bins++;
}

void *pool_take(Pool *p, size_t bytes) {
    bytes = round_up(bytes ? bytes : 1, ARENA_ALIGN);
    int i = pool_bin(p, bytes);
    if (p->bin[i].n_free == 0) return arena_alloc(p->arena, bytes);
    p->bin[i].n_free--;
    return p->arena->dry ? NULL : p->bin[i].free[p->bin[i].n_free];
}

void pool_give(Pool *p, void *block, size_t bytes) {
    int i = pool_bin(p, round_up(bytes ? bytes : 1, ARENA_ALIGN));
    if (p->bin[i].n_free == p->bin[i].cap) {
        p->bin[i].cap = p->bin[i].cap ? 2 * p->bin[i].cap : 16;
        p->bin[i].free = realloc(p->bin[i].free, (size_t)p->bin[i].cap * sizeof(void *));
        CHECK(p->bin[i].free, "no memory for a list of %d blocks", p->bin[i].cap);
    }
    p->bin[i].free[p->bin[i].n_free++] = block;
}

void pool_reset(Pool *p) { p->n_bins = 0; }

void pool_free(Pool *p) {
    for (int i = 0; i < POOL_MAX_SIZES; i++) free(p->bin[i].free);
    pool_init(p, p->arena);
}
