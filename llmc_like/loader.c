#include "llmc_like/loader.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BUFFER_ALIGN = 64 };

static double clock_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Batches go round the buffers, so a batch's number alone says where it lies. */
static char *buffer_of(const Loader *l, uint64_t index) {
    return l->memory + (size_t)(index % (uint64_t)l->n_buffers) * l->stride;
}

/* Buffers that hold a batch that waits, or the one the caller works on. Under the lock. */
static uint64_t buffers_in_use(const Loader *l) {
    return l->made - l->taken + (l->holding ? 1 : 0);
}

static void *work(void *argument) {
    Loader *l = argument;
    pthread_mutex_lock(&l->lock);
    while (!l->stopping && !l->failed) {
        if (buffers_in_use(l) == (uint64_t)l->n_buffers) {
            pthread_cond_wait(&l->freed, &l->lock);
            continue;
        }
        /* The buffer of batch `made` is nobody else's until `made` is counted up, so fn runs
         * without the lock and the caller takes ready batches meanwhile. */
        uint64_t index = l->made;
        pthread_mutex_unlock(&l->lock);
        Err e = {""};
        int status = l->fn(l->user, index, buffer_of(l, index), &e);
        pthread_mutex_lock(&l->lock);
        if (status) {
            l->failed = true;
            l->error = e;
        } else {
            l->made++;
        }
        pthread_cond_signal(&l->filled);
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

int loader_init(Loader *l, LoaderFn fn, LoaderFree release, void *user, size_t batch_bytes,
                int n_buffers, uint64_t first, Err *e) {
    memset(l, 0, sizeof *l);
    if (!n_buffers) n_buffers = LOADER_BUFFERS;
    CHECK(n_buffers >= 2 && n_buffers <= LOADER_MAX_BUFFERS && batch_bytes > 0,
          "%d buffers of %zu bytes", n_buffers, batch_bytes);
    l->fn = fn;
    l->release = release;
    l->user = user;
    l->n_buffers = n_buffers;
    l->made = l->taken = first;
    l->stride = (batch_bytes + BUFFER_ALIGN - 1) / BUFFER_ALIGN * BUFFER_ALIGN;
    atomic_init(&l->stopping, false);
    size_t bytes;
    bool too_many = __builtin_mul_overflow(l->stride, (size_t)n_buffers, &bytes);
    l->memory = too_many ? NULL : aligned_alloc(BUFFER_ALIGN, bytes);
    if (!l->memory)
        return err_set(e, "no memory for %d batches of %zu bytes: choose a smaller batch",
                       n_buffers, batch_bytes);
    memset(l->memory, 0, bytes);
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->filled, NULL);
    pthread_cond_init(&l->freed, NULL);
    l->running = true;
    int number = pthread_create(&l->thread, NULL, work, l);
    if (!number) return 0;
    l->running = false;
    free(l->memory);
    l->memory = NULL;
    return err_set(e, "the system refused a thread for loading: %s", strerror(number));
}

const void *loader_next(Loader *l, uint64_t *index, double *waited_s, Err *e) {
    CHECK(l->running, "loader_next of a loader that is not running");
    double waited = 0.0;
    pthread_mutex_lock(&l->lock);
    if (l->holding) { /* the caller asks for the next one, so the one before is done with */
        l->holding = false;
        pthread_cond_signal(&l->freed);
    }
    if (l->taken == l->made && !l->failed) {
        double begin = clock_s();
        while (l->taken == l->made && !l->failed) pthread_cond_wait(&l->filled, &l->lock);
        waited = clock_s() - begin;
    }
    const void *batch = NULL;
    uint64_t number = l->taken;
    if (l->taken < l->made) {
        batch = buffer_of(l, number);
        l->taken++;
        l->holding = true;
    } else if (e) {
        *e = l->error;
    }
    pthread_mutex_unlock(&l->lock);
    if (index) *index = number;
    if (waited_s) *waited_s = waited;
    return batch;
}

void loader_stop(Loader *l) {
    if (!l->running) return;
    pthread_mutex_lock(&l->lock);
    l->stopping = true;
    pthread_cond_signal(&l->freed);
    pthread_mutex_unlock(&l->lock);
    pthread_join(l->thread, NULL);
    pthread_cond_destroy(&l->freed);
    pthread_cond_destroy(&l->filled);
    pthread_mutex_destroy(&l->lock);
    for (int i = 0; l->release && i < l->n_buffers; i++)
        l->release(l->memory + (size_t)i * l->stride);
    free(l->memory);
    l->memory = NULL;
    l->running = false;
}

bool loader_stopping(const Loader *l) { return l->stopping; }
