/* The host's side of the backward for Hopper. */
#include "kernels/cuda/flash_backward_host.cuh"
#include "kernels/cuda/flash_backward_sm90.cuh"
#include "kernels/cuda/tensor_map.cuh"

size_t flash_workspace_sm90(const AttnArgs *a, bool dense, bool backward) {
    return backward ? flash_backward_cut(a, a->mask->offsets && !dense, a->D, QUERIES).total : 0;
}

FlexSource flash_source_backward_sm90(const AttnArgs *a) {
    return {"kernels/cuda/flash_backward_sm90.cuh", a->D, QUERIES};
}

/* The map of a view of T rows; of nothing where it is not wanted. */
static TensorMap map_of(Ctx *c, const AttnArgs *a, const void *data, AttnStride s, int T,
                        int rows) {
    return data ? tensor_map(c, data, s, a->B, T, a->H, a->D, rows) : TensorMap{};
}

template <int D>
static void backward_start(Ctx *c, const AttnArgs *a, const CudaMask *m, const BackwardSm90 &p) {
    const Cut &cut = p.b.cut;
    flash_launch(c, m, flash_source_backward_sm90(a), "flex_backward", backward_sm90_kernel<D>,
                 (unsigned)(cut.heads * cut.chunks), SM90_THREADS, sizeof(BackwardSm90Shared<D>),
                 p);
    if (p.b.dq.data)
        launch(c, add_kernel<D, QUERIES>, dim3((unsigned)(cut.heads * cut.n_q)), dim3(THREADS), 0,
               p.b);
}

void flash_backward_sm90(Ctx *c, const AttnArgs *a, CudaMask m) {
    const Cut cut = flash_backward_cut(a, m.offsets, a->D, QUERIES);
    const BackwardSm90 p = {
        flash_backward_begin(c, a, m, cut),           map_of(c, a, a->q, a->qs, a->Tq, QUERIES),
        map_of(c, a, a->k, a->ks, a->Tk, KEYS),       map_of(c, a, a->v, a->vs, a->Tk, KEYS),
        map_of(c, a, a->dout, a->os, a->Tq, QUERIES), map_of(c, a, a->dk, a->ks, a->Tk, HALF),
        map_of(c, a, a->dv, a->vs, a->Tk, HALF)};
    (a->D == 64 ? backward_start<64> : backward_start<128>)(c, a, &m, p);
}
