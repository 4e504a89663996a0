/* The host's side of the bf16 backward: how it is cut into blocks, and its launches. */
#include "kernels/cuda/flash_backward_bf16.cuh"
#include "kernels/cuda/flash_backward_host.cuh"

static size_t take(size_t *end, size_t bytes) {
    const size_t at = *end;
    *end = (at + bytes + 255) / 256 * 256;
    return at;
}

/* More than one chunk a head where there are few heads. A query of a document sees no key outside
 * of it, so a chunk's sums are those of its rows and of a longest document on either side. */
Cut flash_backward_cut(const AttnArgs *a, bool documents, int d_pad, int tile) {
    Cut c;
    c.heads = a->B * a->H;
    c.d_pad = d_pad;
    c.tile = tile;
    c.n_q = (int)div_up(a->Tq, c.tile);
    c.n_k = (int)div_up(a->Tk, KEYS);
    c.q_pad = c.n_q * c.tile;
    const size_t slot = sizeof(float) * (size_t)c.tile * (size_t)c.d_pad * (size_t)c.heads;
    for (int chunks = (int)div_up(BLOCKS, c.heads);; chunks = (chunks + 1) / 2) {
        c.chunk = (int)div_up(c.n_k, chunks);
        c.chunks = (int)div_up(c.n_k, c.chunk);
        c.width = c.n_q;
        if (documents) {
            const int64_t rows = (int64_t)c.chunk * KEYS + 2 * (int64_t)a->mask->longest;
            const int reach = (int)div_up(rows, c.tile) + 2;
            if (reach < c.width) c.width = reach;
        }
        if (c.chunks == 1 || slot * (size_t)c.width * (size_t)c.chunks <= MAX_SUMS) break;
    }
    c.total = 0;
    c.limits = take(&c.total, sizeof(Limits) * (size_t)c.n_q);
    c.intervals = take(&c.total, sizeof(Interval) * (size_t)c.q_pad);
    c.rows = take(&c.total, sizeof(RowSums) * (size_t)c.heads * (size_t)c.q_pad);
    c.starts = take(&c.total, sizeof(int) * (size_t)c.heads * (size_t)c.chunks);
    c.sums = take(&c.total, slot * (size_t)c.width * (size_t)c.chunks);
    return c;
}

/* The portable kernels' cut: heads padded, and as many queries a tile as shared memory holds. */
static Cut cut_portable(const Ctx *c, const AttnArgs *a, bool documents) {
    const int D = a->D, max_shared = cuda_of(c)->max_shared;
    const bool fits_96 = (int)sizeof(BackwardShared<96, 64>) <= max_shared;
    const bool fits_128 = (int)sizeof(BackwardShared<128, 32>) <= max_shared;
    const int d_pad = D <= 32 ? 32 : D <= 64 ? 64 : D <= 96 && fits_96 ? 96 : 128;
    return flash_backward_cut(a, documents, d_pad, d_pad <= 96 ? 64 : fits_128 ? 32 : 16);
}

size_t flash_workspace_bf16(const Ctx *c, const AttnArgs *a, bool dense, bool backward) {
    return backward ? cut_portable(c, a, a->mask->offsets && !dense).total : 0;
}

static FlexSource source_of(const Cut &cut) {
    return {"kernels/cuda/flash_backward_bf16.cuh", cut.d_pad, cut.tile};
}

FlexSource flash_source_backward_bf16(const Ctx *c, const AttnArgs *a) {
    return source_of(cut_portable(c, a, a->mask->offsets));
}

Backward flash_backward_begin(Ctx *c, const AttnArgs *a, CudaMask m, Cut cut) {
    char *work = (char *)a->workspace;
    const Backward p = {flash_view(a->q, a->qs, a->D),
                        flash_view(a->k, a->ks, a->D),
                        flash_view(a->v, a->vs, a->D),
                        flash_view(a->out, a->os, a->D),
                        flash_view(a->dout, a->os, a->D),
                        flash_view(a->dq, a->qs, a->D),
                        flash_view(a->dk, a->ks, a->D),
                        flash_view(a->dv, a->vs, a->D),
                        (const float *)a->lse,
                        flash_mask(a, &m),
                        (Limits *)(work + cut.limits),
                        (Interval *)(work + cut.intervals),
                        (RowSums *)(work + cut.rows),
                        (int *)(work + cut.starts),
                        (Pack<float> *)(work + cut.sums),
                        a->B,
                        a->H,
                        a->D,
                        a->scale,
                        cut};
    launch(c, limits_kernel, grid_for((int64_t)cut.n_q * WARP), dim3(BLOCK), 0, p);
    launch(c, rows_kernel, grid_for((int64_t)cut.heads * cut.q_pad * 8), dim3(BLOCK), 0, p);
    return p;
}

template <int D, int ROWS>
static void backward_start(Ctx *c, const CudaMask *m, const Backward &p) {
    flash_launch(c, m, source_of(p.cut), "flex_backward", tiles_kernel<D, ROWS>,
                 (unsigned)(p.cut.heads * p.cut.chunks), THREADS, sizeof(BackwardShared<D, ROWS>),
                 p);
    if (p.dq.data)
        launch(c, add_kernel<D, ROWS>, dim3((unsigned)(p.cut.heads * p.cut.n_q)), dim3(THREADS), 0,
               p);
}

void flash_backward_bf16(Ctx *c, const AttnArgs *a, CudaMask m) {
    const Cut cut = cut_portable(c, a, m.offsets);
    const Backward p = flash_backward_begin(c, a, m, cut);
    if (cut.d_pad == 32)
        backward_start<32, 64>(c, &m, p);
    else if (cut.d_pad == 64)
        backward_start<64, 64>(c, &m, p);
    else if (cut.d_pad == 96)
        backward_start<96, 64>(c, &m, p);
    else if (cut.tile == 32)
        backward_start<128, 32>(c, &m, p);
    else
        backward_start<128, 16>(c, &m, p);
}
