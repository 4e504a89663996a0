/* What the kernels that run oneDNN's primitives share. A primitive is compiled for one shape, so
 * each of these files keeps a table of those it has made; all hang at c->device_state. */
#ifndef KERNELS_CPU_ONEDNN_H
#define KERNELS_CPU_ONEDNN_H

#include <dnnl.h>

#include "kernels/cpu/cpu.h"

#define DNNL(call)                                                               \
    do {                                                                         \
        const dnnl_status_t status_ = (call);                                    \
        CHECK(status_ == dnnl_success, "oneDNN: %s: status %d", #call, status_); \
    } while (0)

typedef struct OneDnn {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    struct Convolutions *convolutions; /* conv.c */
    struct RowProducts *row_products;  /* row_product.c */
} OneDnn;

/* The context's, made at the first call. Also tells OpenMP, whose default oneDNN takes, how many
 * threads the context has. */
OneDnn *ISA_FN(onednn)(Ctx *c);

/* Frees all of it: Device.release. */
void ISA_FN(onednn_release)(Ctx *c);

/* The tables; NULL is allowed. */
void ISA_FN(convolutions_free)(struct Convolutions *s);
void ISA_FN(row_products_free)(struct RowProducts *s);

/* A memory object without an address yet, and its address. */
static inline dnnl_memory_t onednn_memory(const OneDnn *d, const dnnl_memory_desc_t *desc) {
    dnnl_memory_t m = NULL;
    DNNL(dnnl_memory_create(&m, desc, d->engine, DNNL_MEMORY_NONE));
    return m;
}

static inline void onednn_place(dnnl_memory_t m, const void *data) {
    DNNL(dnnl_memory_set_data_handle(m, (void *)(uintptr_t)data));
}

/* Scratch of a primitive comes from ctx_workspace; pieces of it are aligned like arenas. */
static inline size_t onednn_aligned(size_t bytes) {
    return (bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
}

#endif
