/* sdpa: the fused kernel with the built-in masks. */
#include "kernels/cpu/flash_host.h"

/* the kernel, in the order in which it is also compiled at run time */
#include "kernels/cpu/flash_vec.h"

#include "kernels/cpu/flash_tile.h"

#include "kernels/cpu/flash_score.h"

#include "kernels/cpu/flash.h"

#include "kernels/cpu/flash_docs.h"

const FlashKernel ISA_FN(flash_builtin) = {flash_workspace, flash_forward, flash_backward};

static FlashStride stride(AttnStride s) { return (FlashStride){s.b, s.t, s.h}; }

FlashArgs ISA_FN(flash_args)(Ctx *c, const AttnArgs *a) {
    const Mask *m = a->mask;
    /* whole documents alone: cached keys, or fewer rows than the mask knows, go by intervals */
    const bool documents = m->offsets && a->offset == 0 && a->Tq == m->T && a->Tk == m->T;
    const bool intervals = !documents || m->within;
    return (FlashArgs){.B = a->B,
                       .H = a->H,
                       .Tq = a->Tq,
                       .Tk = a->Tk,
                       .D = a->D,
                       .scale = a->scale,
                       .offset = a->offset,
                       .n_threads = c->n_threads,
                       .tile_rows = flash_tile_rows(a->Tq),
                       .lse_rows = a->Tq,
                       .lo = intervals ? m->lo : NULL,
                       .hi = intervals ? m->hi : NULL,
                       .offsets = documents ? m->offsets : NULL,
                       .n_docs = m->n_docs,
                       .longest = m->longest,
                       .q = a->q,
                       .k = a->k,
                       .v = a->v,
                       .out = a->out,
                       .lse = a->lse,
                       .dout = a->dout,
                       .dq = a->dq,
                       .dk = a->dk,
                       .dv = a->dv,
                       .dlearned = a->dlearned,
                       .qs = stride(a->qs),
                       .ks = stride(a->ks),
                       .vs = stride(a->vs),
                       .os = stride(a->os),
                       .workspace = a->workspace};
}

static const char *supports(const Ctx *c, const AttnArgs *a) {
    (void)c;
    if (a->dtype != DT_F32) return "it computes in float32 alone";
    if (a->mask->has_score_expr) return "it has no score expressions";
    if (a->mask->has_mask_expr) return "it has no mask expressions";
    return NULL;
}

static size_t workspace(Ctx *c, const AttnArgs *a, bool backward) {
    FlashArgs f = ISA_FN(flash_args)(c, a);
    return flash_workspace(&f, backward);
}

static void forward(Ctx *c, const AttnArgs *a) {
    FlashArgs f = ISA_FN(flash_args)(c, a);
    flash_forward(&f);
}

static void backward(Ctx *c, const AttnArgs *a) {
    FlashArgs f = ISA_FN(flash_args)(c, a);
    flash_backward(&f);
}

const AttnBackend ISA_FN(attn_sdpa) = {
    .supports = supports, .workspace = workspace, .forward = forward, .backward = backward};
