#include "kernels/cpu/onednn.h"

#include <omp.h>
#include <stdlib.h>

OneDnn *ISA_FN(onednn)(Ctx *c) {
    omp_set_num_threads(c->n_threads);
    if (!c->device_state) {
        OneDnn *d = calloc(1, sizeof *d);
        CHECK(d, "no memory for oneDNN's handles (%zu bytes)", sizeof *d);
        DNNL(dnnl_engine_create(&d->engine, dnnl_cpu, 0));
        DNNL(dnnl_stream_create(&d->stream, d->engine, dnnl_stream_default_flags));
        c->device_state = d;
    }
    return c->device_state;
}

void ISA_FN(onednn_release)(Ctx *c) {
    OneDnn *d = c->device_state;
    if (!d) return;
    ISA_FN(convolutions_free)(d->convolutions);
    ISA_FN(row_products_free)(d->row_products);
    dnnl_stream_destroy(d->stream);
    dnnl_engine_destroy(d->engine);
    free(d);
    c->device_state = NULL;
}
