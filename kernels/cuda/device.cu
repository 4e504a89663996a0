/* The CUDA device's half of a context: memory, the stream, what goes there and comes back. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gemm.cuh"

/* ---- errors ---- */

[[noreturn]] void cuda_fail(const Ctx *c, const char *call, const char *error) {
    fflush(stdout);
    fprintf(stderr, "CUDA: %s: %s", call, error);
    if (c && c->op) {
        char text[SHAPE_TEXT];
        fprintf(stderr, "; in op %s of", op_name(c->op->op));
        for (int i = 0; i < c->op->n_in; i++)
            if (c->op->in[i])
                fprintf(stderr, "%s %s %s %s", i ? "," : "", c->op->in[i]->name,
                        dtype_name(c->op->in[i]->dtype), tensor_shape_text(c->op->in[i], text));
    }
    fprintf(stderr, "\n");
    _Exit(1); /* the library's own clean-up may wait for a device that does not answer */
}

/* ---- memory ---- */

static void *take(size_t bytes) {
    void *p = NULL;
    const cudaError_t status = cudaMalloc(&p, bytes);
    if (status == cudaErrorMemoryAllocation) {
        cudaGetLastError(); /* it is not sticky */
        return NULL;
    }
    CUDA(NULL, status);
    return p;
}

static void give(void *p, size_t bytes) {
    (void)bytes;
    CUDA(NULL, cudaFree(p));
}

/* The context's stream is a blocking one: these wait for what it was given before. */
static void put(void *to, const void *from, size_t bytes) {
    CUDA(NULL, cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice));
}

static void get(void *to, const void *from, size_t bytes) {
    CUDA(NULL, cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost));
}

static void zero(void *p, size_t bytes) { CUDA(NULL, cudaMemset(p, 0, bytes)); }

static double left(void) {
    size_t free_bytes = 0, total = 0;
    CUDA(NULL, cudaMemGetInfo(&free_bytes, &total));
    return (double)free_bytes;
}

extern const Memory cuda_memory = {.name = "GPU",
                                   .is_host = false,
                                   .take = take,
                                   .give = give,
                                   .put = put,
                                   .get = get,
                                   .zero = zero,
                                   .left = left};

/* ---- whether there is a GPU ---- */

enum { OLDEST_ARCH = 80 }; /* of mma on bf16 and of cp.async */

static int probe(Err *e) {
    int n = 0, driver = 0, major = 0, minor = 0;
    const cudaError_t status = cudaGetDeviceCount(&n);
    if (status == cudaErrorInsufficientDriver || status == cudaErrorNoDevice || n == 0) {
        cudaGetLastError();
        cudaDriverGetVersion(&driver);
        if (driver == 0) return err_set(e, "there is no NVIDIA driver here");
        if (status == cudaErrorInsufficientDriver)
            return err_set(e, "the driver is for CUDA %d.%d and this program was built with %d.%d",
                           driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000,
                           CUDART_VERSION % 1000 / 10);
        return err_set(e, "the driver finds no GPU");
    }
    if (status != cudaSuccess) return err_set(e, "%s", cudaGetErrorString(status));
    CUDA(NULL, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
    CUDA(NULL, cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0));
    if (10 * major + minor < OLDEST_ARCH)
        return err_set(e, "this GPU has compute capability %d.%d and the kernels need 8.0 or later",
                       major, minor);
    return 0;
}

/* The answer cannot change while the program runs, and takes the driver tenths of a second. */
typedef struct Probed {
    bool done, runs;
    Err why;
} Probed;

/* In a process of its own: a process that has asked the driver can fork no other that uses the GPU,
 * and --attn all forks one for each backend (llmc_like/compare.h). */
int cuda_check(Err *e) {
    static Probed *probed;
    if (!probed) {
        probed = (Probed *)mmap(NULL, sizeof *probed, PROT_READ | PROT_WRITE,
                                MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        CHECK(probed != MAP_FAILED, "no memory to ask for a GPU");
        fflush(stdout);
        const pid_t child = fork();
        if (child == 0) {
            probed->runs = probe(&probed->why) == 0;
            probed->done = true;
            _exit(0);
        }
        while (child > 0 && waitpid(child, NULL, 0) < 0 && errno == EINTR) continue;
    }
    if (!probed->done) { /* the child died, as it may under a debugger: ask here after all */
        probed->runs = probe(&probed->why) == 0;
        probed->done = true;
    }
    return probed->runs ? 0 : err_set(e, "%s", probed->why.text);
}

/* ---- the context ---- */

enum { MARKS = sizeof(Cuda::mark) / sizeof(cudaEvent_t), STAGING_BYTES = 16 << 20 };

/* Inputs are copied to pinned memory and go on from there while the host works: two halves, each
 * refilled when the copies out of it are done. A half holds more than a step's inputs (6.6 MB in
 * the paper preset), or the host would wait for the step before. */
typedef struct Staging {
    char *half[2];
    cudaEvent_t done[2];
    bool pending[2];
    int now;
    size_t used;
} Staging;

/* Events that time laps: `sum` gets the seconds between an event and the one before it. */
typedef struct Lap {
    cudaEvent_t event;
    double *sum;
    uint64_t mark; /* the mark that comes behind it */
} Lap;

typedef struct CudaTimes { /* of one clock */
    Lap *lap;              /* a ring: first .. first + n - 1 */
    int first, n, cap;
} CudaTimes;

static int cuda_open(Ctx *c, Err *e) {
    Cuda *d = (Cuda *)calloc(1, sizeof *d);
    int major = 0, minor = 0;
    if (!d) return err_set(e, "no memory for the device's context");
    c->device_state = d;
    CUDA(c, cudaSetDevice(0));
    CUDA(c, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
    CUDA(c, cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0));
    CUDA(c, cudaDeviceGetAttribute(&d->n_sm, cudaDevAttrMultiProcessorCount, 0));
    CUDA(c, cudaDeviceGetAttribute(&d->max_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
    d->arch = 10 * major + minor;
    if (c->dry) return 0;
    CUDA(c, cudaStreamCreate(&d->stream));
    CUDA(c, cudaMallocHost((void **)&d->fetched, FETCH_MAX * sizeof *d->fetched));
    CUDA(c, cudaMalloc((void **)&d->drawn, sizeof *d->drawn));
    CUDA(c, cudaMemset(d->drawn, 0, sizeof *d->drawn));
    for (int i = 0; i < MARKS; i++)
        CUDA(c, cudaEventCreateWithFlags(&d->mark[i], cudaEventDisableTiming));
    return 0;
}

static void staging_free(const Ctx *c, Staging *s) {
    for (int i = 0; s && i < 2 && s->half[i]; i++) {
        CUDA(c, cudaFreeHost(s->half[i]));
        CUDA(c, cudaEventDestroy(s->done[i]));
    }
    free(s);
}

static void times_free(const Ctx *c, CudaTimes *t) {
    for (int clock = 0; t && clock < CLOCKS; clock++) {
        for (int i = 0; i < t[clock].cap; i++) CUDA(c, cudaEventDestroy(t[clock].lap[i].event));
        free(t[clock].lap);
    }
    free(t);
}

void cuda_release(Ctx *c) {
    Cuda *d = cuda_of(c);
    if (!d) return;
    if (!c->dry) {
        CUDA(c, cudaStreamSynchronize(d->stream));
        cublas_free(d->blas);
        cuda_masks_free(d->masks);
        flex_plans_free(d->plans);
        flex_codes_free(d->codes);
        staging_free(c, d->staging);
        times_free(c, d->times);
        for (int i = 0; i < MARKS; i++) CUDA(c, cudaEventDestroy(d->mark[i]));
        CUDA(c, cudaFree(d->drawn));
        CUDA(c, cudaFreeHost(d->fetched));
        CUDA(c, cudaStreamDestroy(d->stream));
    }
    free(d);
    c->device_state = NULL;
}

/* ---- to the device ---- */

static void staging_half(Ctx *c, Staging *s) {
    CUDA(c, cudaMallocHost((void **)&s->half[s->now], STAGING_BYTES));
    CUDA(c, cudaEventCreateWithFlags(&s->done[s->now], cudaEventDisableTiming));
}

static Staging *staging_of(Ctx *c) {
    Cuda *d = cuda_of(c);
    if (d->staging) return d->staging;
    Staging *s = d->staging = (Staging *)calloc(1, sizeof *s);
    CHECK(s, "no memory for the staging buffers");
    staging_half(c, s);
    return s;
}

/* Turns to the other half. */
static void staging_turn(Ctx *c, Staging *s) {
    CUDA(c, cudaEventRecord(s->done[s->now], cuda_of(c)->stream));
    s->pending[s->now] = true;
    s->now = 1 - s->now;
    s->used = 0;
    if (!s->half[s->now]) staging_half(c, s);
    if (s->pending[s->now]) CUDA(c, cudaEventSynchronize(s->done[s->now]));
    s->pending[s->now] = false;
}

static void upload(Ctx *c, void *to, const void *from, size_t bytes) {
    Staging *s = staging_of(c);
    for (size_t at = 0; at < bytes;) {
        if (s->used == STAGING_BYTES) staging_turn(c, s);
        const size_t room = STAGING_BYTES - s->used, n = bytes - at < room ? bytes - at : room;
        char *pinned = s->half[s->now] + s->used;
        memcpy(pinned, (const char *)from + at, n);
        CUDA(c, cudaMemcpyAsync((char *)to + at, pinned, n, cudaMemcpyHostToDevice,
                                cuda_of(c)->stream));
        s->used += (n + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
        at += n;
    }
}

/* ---- from the device ---- */

static void fetch(Ctx *c, double *to, const double *from) {
    CUDA(c, cudaMemcpyAsync(to, from, sizeof *to, cudaMemcpyDeviceToHost, cuda_of(c)->stream));
}

static double *fetched(Ctx *c) { return cuda_of(c)->fetched; }

static uint64_t mark(Ctx *c) {
    Cuda *d = cuda_of(c);
    CUDA(c, cudaEventRecord(d->mark[d->n_marks % MARKS], d->stream));
    return d->n_marks++;
}

/* Adds up the laps that ended before the mark, which has been reached. */
static void read_laps(Ctx *c, CudaTimes *t, uint64_t reached) {
    while (t->n > 1 && t->lap[(t->first + 1) % t->cap].mark <= reached) {
        const Lap *a = &t->lap[t->first], *b = &t->lap[(t->first + 1) % t->cap];
        float ms = 0;
        if (b->sum) CUDA(c, cudaEventElapsedTime(&ms, a->event, b->event));
        if (b->sum) *b->sum += 1e-3 * (double)ms;
        t->first = (t->first + 1) % t->cap;
        t->n--;
    }
}

static void wait(Ctx *c, uint64_t which) {
    Cuda *d = cuda_of(c);
    CHECK(which < d->n_marks && which + MARKS >= d->n_marks, "mark %llu of %llu",
          (unsigned long long)which, (unsigned long long)d->n_marks);
    CUDA(c, cudaEventSynchronize(d->mark[which % MARKS]));
    for (int clock = 0; d->times && clock < CLOCKS; clock++) read_laps(c, &d->times[clock], which);
}

static void laps_grow(Ctx *c, CudaTimes *t) {
    const int cap = t->cap ? 2 * t->cap : 1024;
    Lap *lap = (Lap *)malloc((size_t)cap * sizeof *lap);
    CHECK(lap, "no memory for %d events", cap);
    for (int i = 0; i < t->cap; i++) lap[i] = t->lap[(t->first + i) % t->cap];
    for (int i = t->cap; i < cap; i++) CUDA(c, cudaEventCreate(&lap[i].event));
    free(t->lap);
    *t = (CudaTimes){lap, 0, t->n, cap};
}

static void lap(Ctx *c, Clock clock, double *sum) {
    Cuda *d = cuda_of(c);
    if (!d->times) d->times = (CudaTimes *)calloc(CLOCKS, sizeof *d->times);
    CHECK(d->times, "no memory for times");
    CudaTimes *t = &d->times[clock];
    if (t->n == t->cap) laps_grow(c, t);
    Lap *l = &t->lap[(t->first + t->n++) % t->cap];
    l->sum = sum;
    l->mark = d->n_marks;
    CUDA(c, cudaEventRecord(l->event, d->stream));
}

extern const Queue cuda_queue = {.open = cuda_open,
                                 .upload = upload,
                                 .fetch = fetch,
                                 .fetched = fetched,
                                 .mark = mark,
                                 .wait = wait,
                                 .lap = lap};
