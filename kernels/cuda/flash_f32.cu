/* The host's side of float32 attention: launches, and where things lie in the workspace. */
#include "kernels/cuda/flash_f32.cuh"

#include "kernels/cuda/flash_host.cuh"

static unsigned blocks_of(const AttnArgs *a, int T, int rows) {
    return (unsigned)(a->B * a->H) * (unsigned)((T + rows - 1) / rows);
}

/* own, other: how many tiles a block holds of each side. */
template <typename S>
static size_t shared_of(int own, int other) {
    return sizeof(float) *
           (size_t)((own * S::ROWS + other * S::COLUMNS) * S::ROW + S::ROWS * S::SCORES);
}

static int64_t delta_count(const AttnArgs *a) { return (int64_t)a->B * a->H * a->Tq; }
static int group_count(const AttnArgs *a) { return (a->Tk + GROUP - 1) / GROUP; }

size_t flash_workspace_f32(const AttnArgs *a, bool backward) {
    if (!backward) return 0;
    return sizeof(float) * (size_t)delta_count(a) + sizeof(Span) * (size_t)group_count(a);
}

static View view(const void *data, AttnStride s) { return {(float *)data, s.b, s.t, s.h}; }

static Flash arguments(const AttnArgs *a, CudaMask m) {
    Span *queries = (Span *)a->workspace;
    return {view(a->q, a->qs),
            view(a->k, a->ks),
            view(a->v, a->vs),
            view(a->out, a->os),
            view(a->dout, a->os),
            view(a->dq, a->qs),
            view(a->dk, a->ks),
            view(a->dv, a->vs),
            (float *)a->lse,
            (float *)(queries + group_count(a)),
            queries,
            flash_mask(a, &m),
            a->B,
            a->H,
            a->D,
            a->scale,
            a->scale * LOG2E};
}

FlexSource flash_source_f32(const AttnArgs *a) {
    return {"kernels/cuda/flash_f32.cuh",
            a->D <= 16   ? 16
            : a->D <= 32 ? 32
            : a->D <= 64 ? 64
                         : 128,
            0};
}

template <int DP>
static void forward(Ctx *c, const AttnArgs *a, CudaMask m) {
    typedef ForwardTile<DP> S;
    flash_launch(c, &m, flash_source_f32(a), "flex_forward", forward_kernel<DP>,
                 blocks_of(a, a->Tq, S::ROWS), S::THREADS, shared_of<S>(1, 2), arguments(a, m));
}

void flash_forward_f32(Ctx *c, const AttnArgs *a, CudaMask m) {
    if (a->D <= 16)
        forward<16>(c, a, m);
    else if (a->D <= 32)
        forward<32>(c, a, m);
    else if (a->D <= 64)
        forward<64>(c, a, m);
    else
        forward<128>(c, a, m);
}

template <int DP>
static void backward(Ctx *c, const AttnArgs *a, CudaMask m, const Flash &p) {
    typedef BackwardTile<DP> S;
    const size_t shared = shared_of<S>(2, 2);
    if (a->dk || a->dv)
        flash_launch(c, &m, flash_source_f32(a), "flex_keys", keys_kernel<DP>,
                     blocks_of(a, a->Tk, S::ROWS), S::THREADS, shared, p);
    if (a->dq)
        flash_launch(c, &m, flash_source_f32(a), "flex_dq", dq_kernel<DP>,
                     blocks_of(a, a->Tq, S::ROWS), S::THREADS, shared, p);
}

void flash_backward_f32(Ctx *c, const AttnArgs *a, CudaMask m) {
    const Flash p = arguments(a, m);
    launch(c, delta_kernel, grid_for(delta_count(a) * 8), dim3(BLOCK), 0, p);
    launch(c, queries_kernel, grid_for((int64_t)group_count(a) * WARP), dim3(BLOCK), 0, p);
    if (a->D <= 16)
        backward<16>(c, a, m, p);
    else if (a->D <= 32)
        backward<32>(c, a, m, p);
    else if (a->D <= 64)
        backward<64>(c, a, m, p);
    else
        backward<128>(c, a, m, p);
}
