/* Streams and events. Work is done when its call returns, but what a GPU does later the host does
 * not see before it has waited, and may not disturb: see emu_stream_arrives_late. All streams count
 * as one. */
#include "dev/emu/stream.h"

#include <pthread.h>
#include <time.h>

#include "dev/emu/parts.h"

struct CUstream_st {
    unsigned flags;
};
struct CUevent_st {
    unsigned flags;
    uint64_t number; /* what it was recorded behind; 0: never recorded */
    double at_s;
};

/* A copy that the host has not waited for. */
typedef struct Late {
    uint64_t number;
    char *host;
    char *bytes; /* what arrives there, or what must still be there */
    size_t n;
    bool arrives;
} Late;

static Late *late; /* oldest first */
static int n_late, max_late;
static uint64_t given, reached;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void late_add(char *host, size_t n, bool arrives) {
    pthread_mutex_lock(&lock);
    if (n_late == max_late) {
        max_late = 2 * max_late + 64;
        late = realloc(late, (size_t)max_late * sizeof *late);
    }
    char *bytes = malloc(n);
    if (!late || !bytes) emu_fail("no memory for an asynchronous copy of %zu bytes", n);
    memcpy(bytes, host, n);
    if (arrives) memset(host, 0xff, n);
    late[n_late++] = (Late){++given, host, bytes, n, arrives};
    pthread_mutex_unlock(&lock);
}

void emu_stream_arrives_late(void *to, size_t bytes) { late_add(to, bytes, true); }
void emu_stream_reads_late(const void *from, size_t bytes) {
    late_add((char *)(uintptr_t)from, bytes, false);
}

uint64_t emu_stream_end(void) { return given; }

static void settle(const Late *l) {
    if (l->arrives)
        memcpy(l->host, l->bytes, l->n);
    else if (memcmp(l->host, l->bytes, l->n))
        emu_fail(
            "%zu bytes of pinned memory at %p were changed before the host had waited for the "
            "asynchronous copy from there",
            l->n, (void *)l->host);
    free(l->bytes);
}

void emu_stream_reach(uint64_t number) {
    pthread_mutex_lock(&lock);
    int done = 0;
    while (done < n_late && late[done].number <= number) settle(&late[done++]);
    n_late -= done;
    if (done) memmove(late, late + done, (size_t)n_late * sizeof *late);
    if (number > reached) reached = number;
    pthread_mutex_unlock(&lock);
}

/* ---- streams ---- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    *stream = malloc(sizeof **stream);
    if (*stream) (*stream)->flags = flags;
    return emu_status(*stream ? cudaSuccess : cudaErrorMemoryAllocation);
}
cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    free(stream);
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    (void)stream;
    return cudaDeviceSynchronize();
}
cudaError_t cudaStreamQuery(cudaStream_t stream) { return cudaStreamSynchronize(stream); }
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
    (void)stream, (void)flags;
    return emu_status(event ? cudaSuccess : cudaErrorInvalidValue);
}

/* ---- events ---- */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    *event = malloc(sizeof **event);
    if (*event) **event = (struct CUevent_st){.flags = flags};
    return emu_status(*event ? cudaSuccess : cudaErrorMemoryAllocation);
}
cudaError_t cudaEventCreate(cudaEvent_t *event) {
    return cudaEventCreateWithFlags(event, cudaEventDefault);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    free(event);
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    (void)stream;
    pthread_mutex_lock(&lock);
    event->number = ++given;
    pthread_mutex_unlock(&lock);
    event->at_s = seconds();
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    emu_stream_reach(event->number);
    return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) { return cudaEventSynchronize(event); }

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to) {
    const bool untimed = (from->flags | to->flags) & cudaEventDisableTiming;
    if (untimed || !from->number || !to->number) return emu_status(cudaErrorInvalidValue);
    if (from->number > reached || to->number > reached) return emu_status(cudaErrorNotReady);
    *ms = (float)(1e3 * (to->at_s - from->at_s));
    return cudaSuccess;
}
