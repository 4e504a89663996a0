/* A loader that runs ahead of the training step in its own thread, and knows no data: a function
 * fills batch number `index` into a buffer. Batches come in order, each once, and depend on nothing
 * but their number (the generator is counter-based, philox.h), so a resumed run starts at any
 * number with no state to restore.
 *
 *      thread:   fn(first) fn(first+1) fn(first+2) ... as long as a buffer is free
 *      caller:   loader_next -> first    (compute)    loader_next -> first+1 ...
 *
 * One caller at a time. The buffers are taken once, zeroed; nothing is allocated afterwards, but
 * what fn lets a buffer own: a batch whose size varies is a struct of pointers in the buffer, which
 * grows as fn fills it again and again, and which `release` takes apart at the end. */
#ifndef LLMC_LIKE_LOADER_H
#define LLMC_LIKE_LOADER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "llmc_like/error.h"

/* Fills `buffer` (batch_bytes, aligned to 64; holds an older batch) with batch `index`. Runs in the
 * loader's thread: what it reaches through `user` must be its own or constant. 0, or -1 with the
 * sentence in *e. */
typedef int (*LoaderFn)(void *user, uint64_t index, void *buffer, Err *e);

/* Frees what fn let the buffer own; the buffer itself is the loader's. It may still be zeroed. */
typedef void (*LoaderFree)(void *buffer);

enum { LOADER_BUFFERS = 3, LOADER_MAX_BUFFERS = 64 };

typedef struct Loader {
    LoaderFn fn;
    LoaderFree release;
    void *user;
    char *memory;
    size_t stride; /* bytes from one buffer to the next */
    int n_buffers;
    pthread_t thread;
    pthread_mutex_t lock;  /* guards the numbers below */
    pthread_cond_t filled; /* a batch was made, or making one failed */
    pthread_cond_t freed;  /* a buffer is free again, or the end has come */
    uint64_t made, taken;  /* numbers of the next batch to make and to hand out */
    bool holding;          /* the caller has batch taken - 1 */
    bool failed;           /* making batch `made` failed: error says why */
    Err error;
    atomic_bool stopping;
    bool running; /* the thread is to be joined; the caller's own */
} Loader;

/* Starts the thread at batch `first`. release NULL: buffers own nothing. n_buffers 0:
 * LOADER_BUFFERS; at least 2 (one in use, one being filled). *l must not move until loader_stop. -1
 * and a sentence where there is no memory or no thread; then no loader_stop is needed. */
int loader_init(Loader *l, LoaderFn fn, LoaderFree release, void *user, size_t batch_bytes,
                int n_buffers, uint64_t first, Err *e);

/* The next batch, valid until the next call (or loader_stop). *index: its number; *waited_s:
 * seconds this call stood waiting, 0 where the batch was ready. Either may be NULL. NULL and the
 * sentence where fn failed on this batch: all batches before it have been handed out, and every
 * later call says the same. */
const void *loader_next(Loader *l, uint64_t *index, double *waited_s, Err *e);

/* Ends: at most the one call of fn that is under way is waited for, no other begins, and each
 * buffer is released. Fine on a
 * zeroed or stopped one. */
void loader_stop(Loader *l);

/* For an fn that takes long: true once loader_stop was called; fn may then return -1 at once, and
 * nobody reads its error. */
bool loader_stopping(const Loader *l);

#endif
