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
    return f;
}

#endif
