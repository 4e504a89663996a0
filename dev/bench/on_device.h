/* Tensors of a benchmark's own in the device's memory, and the wait for what it was given to do. */
#ifndef BENCH_ON_DEVICE_H
#define BENCH_ON_DEVICE_H

#include <stdlib.h>
#include <string.h>

#include "llmc_like/ctx.h"

/* The upper half of a float32, rounded to the nearest, ties to even. */
static inline uint16_t bf16_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* The host's numbers x to t (float32, bf16, int32): float32, which bf16 rounds, or int32. */
static inline void device_write(Ctx *c, Tensor *t, const void *x) {
    const size_t bytes = tensor_bytes(t);
    uint16_t *rounded = NULL;
    if (t->dtype == DT_BF16) {
        rounded = malloc(bytes);
        CHECK(rounded, "no memory for %zu MiB", bytes >> 20);
        for (int64_t i = 0; i < tensor_numel(t); i++) rounded[i] = bf16_of(((const float *)x)[i]);
    }
    c->dev->memory->put(t->data, rounded ? rounded : x, bytes);
    free(rounded);
}

/* Memory of its own for t, whose shape and dtype are set, with those numbers. */
static inline void device_tensor(Ctx *c, Tensor *t, const void *x) {
    t->data = c->dev->memory->take(tensor_bytes(t));
    CHECK(t->data, "no memory for %zu MiB", tensor_bytes(t) >> 20);
    device_write(c, t, x);
}

static inline void device_give(Ctx *c, Tensor *t) {
    if (t->data) c->dev->memory->give(t->data, tensor_bytes(t));
    t->data = NULL;
}

/* The time when all that was started is done. */
static inline double done_s(Ctx *c) {
    ctx_wait(c, ctx_mark(c));
    return now_s();
}

#endif
