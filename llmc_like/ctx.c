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
    c->n_threads = threads > 0 ? threads : omp_get_num_procs();
    omp_set_num_threads(
        c->n_threads); /* for the libraries; our kernels name c->n_threads themselves */
    c->dtype = DT_F32;
    c->dry = dry;
    c->recording = true;
    c->seed = seed;
    arena_init(&c->headers, "tensor headers", false);
    arena_init(&c->activations, "activations", dry);
    arena_init(&c->gradients, "activation gradients", dry);
    arena_init(&c->workspace, "workspace", dry);
    pool_init(&c->pool, &c->gradients);
    return 0;
}

void ctx_free(Ctx *c) {
    if (c->dev && c->dev->release) c->dev->release(c);
    arena_free(&c->headers);
    arena_free(&c->activations);
    arena_free(&c->gradients);
    arena_free(&c->workspace);
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
    arena_reset(&c->headers);
    arena_reset(&c->activations);
    arena_reset(&c->gradients);
    pool_reset(&c->pool);
}

static Tensor *header(Ctx *c, const char *name, DType dtype, int ndim, const int64_t *shape) {
    Tensor *t = arena_alloc(&c->headers, sizeof *t);
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
    return t;
}

Tensor *ctx_input(Ctx *c, const char *name, DType dtype, int ndim, const int64_t *shape,
                  const void *data) {
    Tensor *t = header(c, name, dtype, ndim, shape);
    t->data = (void *)(uintptr_t)data; /* inputs of ops are never written */
    return t;
}

void *ctx_workspace(Ctx *c, size_t bytes) {
    arena_reset(&c->workspace);
    return arena_alloc(&c->workspace, bytes);
}

void ctx_profile_reset(Ctx *c) { memset(c->profile, 0, sizeof c->profile); }
