/* The host's side of the forward for Hopper. */
#include "kernels/cuda/flash_forward_sm90.cuh"
#include "kernels/cuda/flash_host.cuh"
#include "kernels/cuda/tensor_map.cuh"

/* Heads whose keys and values stay in L2 together are computed together. */
enum { GROUP_BYTES = 16 << 20 };

FlexSource flash_source_forward_sm90(const AttnArgs *a) {
    return {"kernels/cuda/flash_forward_sm90.cuh", a->D,
            a->D == 64 ? ForwardShape<64>::ROWS : ForwardShape<128>::ROWS};
}

template <int D>
static void forward_start(Ctx *c, const AttnArgs *a, CudaMask m) {
    typedef ForwardShape<D> S;
    const int heads = a->B * a->H, n_tiles = (int)div_up(a->Tq, S::ROWS);
    const int fit = (int)(GROUP_BYTES / (2 * (int64_t)sizeof(bf16) * a->Tk * D + 1)) + 1;
    const Forward p = {tensor_map(c, a->q, a->qs, a->B, a->Tq, a->H, D, S::ROWS),
                       tensor_map(c, a->k, a->ks, a->B, a->Tk, a->H, D, KEYS),
                       tensor_map(c, a->v, a->vs, a->B, a->Tk, a->H, D, KEYS),
                       tensor_map(c, a->out, a->os, a->B, a->Tq, a->H, D, STRIP),
                       (float *)a->lse,
                       cuda_of(c)->drawn,
                       flash_mask(a, &m),
                       heads,
                       a->H,
                       n_tiles,
                       fit < heads ? fit : heads,
                       a->scale,
                       a->scale * LOG2E};
    const int items = heads * n_tiles, n_sm = cuda_of(c)->n_sm;
    flash_launch(c, &m, flash_source_forward_sm90(a), "flex_forward", forward_sm90_kernel<D>,
                 (unsigned)(items < n_sm ? items : n_sm), S::THREADS, sizeof(ForwardShared<D>), p);
}

void flash_forward_sm90(Ctx *c, const AttnArgs *a, CudaMask m) {
    (a->D == 64 ? forward_start<64> : forward_start<128>)(c, a, m);
}
