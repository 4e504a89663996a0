/* The host's side of the bf16 forward: how it is cut into blocks, and its launches. */
#include "kernels/cuda/flash_forward_bf16.cuh"
#include "kernels/cuda/flash_host.cuh"

/* Heads whose keys and values stay in L2 together are computed together. */
enum { GROUP_BYTES = 16 << 20 };

FlexSource flash_source_forward_bf16(const AttnArgs *a) {
    return {"kernels/cuda/flash_forward_bf16.cuh",
            a->D <= 32   ? 32
            : a->D <= 64 ? 64
            : a->D <= 96 ? 96
                         : 128,
            ROWS};
}

template <int D>
static void forward_start(Ctx *c, const AttnArgs *a, const CudaMask *m, const Forward &p) {
    flash_launch(c, m, flash_source_forward_bf16(a), "flex_forward", forward_kernel<D>,
                 (unsigned)(p.heads * p.n_tiles), THREADS, sizeof(ForwardShared<D>), p);
}

void flash_forward_bf16(Ctx *c, const AttnArgs *a, CudaMask m) {
    const int64_t head_bytes = 2 * (int64_t)sizeof(bf16) * a->Tk * a->D;
    const int fit = (int)(GROUP_BYTES / (head_bytes + 1)) + 1;
    const Forward p = {flash_view(a->q, a->qs, a->D),
                       flash_view(a->k, a->ks, a->D),
                       flash_view(a->v, a->vs, a->D),
                       flash_view(a->out, a->os, a->D),
                       (float *)a->lse,
                       flash_mask(a, &m),
                       a->B * a->H,
                       a->H,
                       a->D,
                       (a->Tq + ROWS - 1) / ROWS,
                       fit < a->B * a->H ? fit : a->B * a->H,
                       a->scale,
                       a->scale * LOG2E};
    if (a->D <= 32)
        forward_start<32>(c, a, &m, p);
    else if (a->D <= 64)
        forward_start<64>(c, a, &m, p);
    else if (a->D <= 96)
        forward_start<96>(c, a, &m, p);
    else
        forward_start<128>(c, a, &m, p);
}
