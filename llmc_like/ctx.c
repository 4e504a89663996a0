#include "llmc_like/ctx.h"

#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/device.h"

double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int ctx_init(Ctx *c, const char *device, int threads, uint64_t seed, bool dry, Err *e) {
    memset(c, 0, sizeof *c);
    c->dev = device_find(device, e);
    if (!c->dev) return -1;
    const Memory *memory = c->dev->memory;
    c->n_threads = threads > 0 ? threads : omp_get_num_procs();
    omp_set_num_threads(
        c->n_threads); /* for the libraries; our kernels name c->n_threads themselves */
    c->dtype = DT_F32;
    c->dry = dry;
    c->recording = true;
    c->seed = seed;
    arena_init(&c->host, "host memory", &host_memory, false);
    arena_init(&c->activations, "activations", memory, dry);
    arena_init(&c->gradients, "activation gradients", memory, dry);
    arena_init(&c->workspace, "workspace", memory, dry);
    pool_init(&c->pool, &c->gradients);
    const Queue *queue = c->dev->queue;
    c->profiling = !queue || dry;
    if (queue && queue->open(c, e)) {
        memset(c, 0, sizeof *c);
        return -1;
    }
    c->fetched = queue && !dry ? queue->fetched(c) : calloc(FETCH_MAX, sizeof *c->fetched);
    CHECK(c->fetched, "no memory for %d numbers", FETCH_MAX);
    return 0;
}

int ctx_set_dtype(Ctx *c, const char *dtype, Err *e) {
    const bool bf16 = !strcmp(dtype, "bfloat16") || !strcmp(dtype, "bf16");
    if (!bf16 && strcmp(dtype, "float32"))
        return err_set(e, "--dtype %s: no such dtype; known are float32 and bf16", dtype);
    if (bf16 && !c->dev->has_bf16)
        return err_set(e, "--dtype %s: %s computes in float32 alone; bf16 needs --device cuda",
                       dtype, c->dev->name);
    c->dtype = bf16 ? DT_BF16 : DT_F32;
    return 0;
}

DType ctx_exact(const Ctx *c) { return c->dtype == DT_BF16 ? DT_F32 : c->dtype; }

void ctx_free(Ctx *c) {
    if (c->dev && (c->dry || !c->dev->queue)) free(c->fetched);
    arena_free(&c->host);
    arena_free(&c->activations);
    arena_free(&c->gradients);
    arena_free(&c->workspace);
    pool_free(&c->pool);
    if (c->dev && c->dev->release) c->dev->release(c);
    free(c->tape.call);
    memset(c, 0, sizeof *c);
}

int ctx_commit(Ctx *c, size_t activations, size_t gradients, size_t workspace, Err *e) {
    if (arena_commit(&c->activations, activations, e)) return -1;
    if (arena_commit(&c->gradients, gradients, e)) return -1;
    return arena_commit(&c->workspace, workspace, e);
}

void ctx_step_begin(Ctx *c) {
    c->tape.n = 0;
    arena_reset(&c->host);
    arena_reset(&c->activations);
    arena_reset(&c->gradients);
    pool_reset(&c->pool);
}

static Tensor *header(Ctx *c, const char *name, DType dtype, int ndim, const int64_t *shape) {
    Tensor *t = ctx_host(c, sizeof *t);
    memset(t, 0, sizeof *t);
    t->dtype = dtype;
    t->ndim = ndim;
    for (int i = 0; i < ndim; i++) t->shape[i] = shape[i];
    snprintf(t->name, sizeof t->name, "%s", name);
    return t;
}

Tensor *ctx_tensor(Ctx *c, const char *name, DType dtype, int ndim, const int64_t *shape) {
    Tensor *t = header(c, name, dtype, ndim, shape);
    t->data = arena_alloc(&c->activations, tensor_bytes(t));
    if (c->dry && (!c->largest.ndim || tensor_bytes(t) > tensor_bytes(&c->largest)))
        c->largest = *t;
    return t;
}

Tensor *ctx_input(Ctx *c, const char *name, DType dtype, int ndim, const int64_t *shape,
                  const void *data) {
    if (!c->dev->memory->is_host) {
        Tensor *t = ctx_tensor(c, name, dtype, ndim, shape);
        if (!c->dry) c->dev->queue->upload(c, t->data, data, tensor_bytes(t));
        return t;
    }
    Tensor *t = header(c, name, dtype, ndim, shape);
    t->data = (void *)(uintptr_t)data; /* inputs of ops are never written */
    return t;
}

const double *ctx_fetch(Ctx *c, const double *from) {
    double *to = &c->fetched[c->n_fetched++ % FETCH_MAX];
    if (c->dry)
        *to = 0;
    else if (c->dev->queue)
        c->dev->queue->fetch(c, to, from);
    else
        *to = *from;
    return to;
}

uint64_t ctx_mark(Ctx *c) { return c->dev->queue && !c->dry ? c->dev->queue->mark(c) : 0; }

void ctx_wait(Ctx *c, uint64_t mark) {
    if (c->dev->queue && !c->dry) c->dev->queue->wait(c, mark);
}

const void *ctx_read(Ctx *c, const Tensor *t) {
    if (c->dev->memory->is_host) return t->data;
    void *copy = ctx_host(c, tensor_bytes(t));
    c->dev->memory->get(copy, t->data, tensor_bytes(t));
    return copy;
}

const float *ctx_read_f32(Ctx *c, const Tensor *t) {
    if (t->dtype == DT_F32) return ctx_read(c, t);
    CHECK(t->dtype == DT_BF16, "tensor %s is %s", t->name, dtype_name(t->dtype));
    const int64_t n = tensor_numel(t);
    const uint16_t *from = ctx_read(c, t);
    float *to = ctx_host(c, (size_t)n * sizeof *to);
    for (int64_t i = 0; i < n; i++) to[i] = bf16_value(from[i]);
    return to;
}

void ctx_lap(Ctx *c, Clock clock, double *sum) {
    if (clock == CLOCK_OP && !c->profiling) return;
    if (c->dev->queue && !c->dry) {
        c->dev->queue->lap(c, clock, sum);
        return;
    }
    const double now = now_s();
    if (sum) *sum += now - c->lap_s[clock];
    c->lap_s[clock] = now;
}

void *ctx_host(Ctx *c, size_t bytes) { return arena_alloc(&c->host, bytes); }

void *ctx_workspace(Ctx *c, size_t bytes) {
    arena_reset(&c->workspace);
    return arena_alloc(&c->workspace, bytes);
}

void ctx_profile_reset(Ctx *c) { memset(c->profile, 0, sizeof c->profile); }
