/* The host's side of the flash kernels: what their launches are made from. */
#ifndef KERNELS_CUDA_FLASH_HOST_CUH
#define KERNELS_CUDA_FLASH_HOST_CUH

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/flash_tile.cuh"

static inline FlashView flash_view(const void *data, AttnStride s, int D) {
    const bool wide = (D % 8 | s.b % 8 | s.t % 8 | s.h % 8) == 0 && (uintptr_t)data % 16 == 0;
    CHECK(s.t <= INT_MAX, "attention: rows are %lld numbers apart", (long long)s.t);
    return {(bf16 *)data, s.b, s.h, (int)s.t, wide};
}

static inline FlashMask flash_mask(const AttnArgs *a, const CudaMask *m) {
    FlashMask f = {};
    f.Tq = a->Tq;
    f.Tk = a->Tk;
    f.offset = a->offset;
    f.lo = m->lo;
    f.hi = m->hi;
    const CudaFlex *flex = m->flex;
    if (!flex) return f;
    f.asks = flex->asks;
    f.visit = flex->visit;
    f.full = flex->full;
    f.words = flex->words;
    f.b_rows = flex->b_rows;
    f.h_rows = flex->h_rows;
    f.plan_heads = flex->plan_heads;
    f.env = flex->env;
    return f;
}

/* Launches a kernel that was built with the program, or, where the mask has expressions, the one of
 * that name of the source compiled behind them. */
template <typename P>
static inline void flash_launch(Ctx *c, const CudaMask *m, FlexSource source, const char *name,
                                void (*built_in)(P), unsigned blocks, unsigned threads,
                                size_t shared, const P &p) {
    void (*kernel)(P) = built_in;
    if (m->flex) kernel = (void (*)(P))flex_kernel(c, m->flex->code, source, name);
    launch(c, kernel, dim3(blocks), dim3(threads), shared, p);
}

#endif
