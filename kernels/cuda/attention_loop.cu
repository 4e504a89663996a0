/* loop: one document after the other, as one writes it first: the products of its heads by the
 * library, and a softmax between them. No score crosses documents and nothing is padded; but most
 * documents are a row or two, and there the three launches cost more than what they compute. */
#include "kernels/cuda/attention_scores.cuh"

static char *at(const void *x, AttnStride s, DType dtype, int b, int t) {
    return x ? (char *)(uintptr_t)x + (size_t)(b * s.b + t * s.t) * dtype_size(dtype) : NULL;
}

/* The call's tensors from the document's first query and key on. */
static AttnArgs part_of(const AttnArgs *a, Document d) {
    AttnArgs p = *a;
    p.B = 1;
    p.Tq = d.rows;
    p.Tk = d.cols;
    p.q = at(a->q, a->qs, a->dtype, d.b, d.row);
    p.k = at(a->k, a->ks, a->dtype, d.b, d.col);
    p.v = at(a->v, a->vs, a->dtype, d.b, d.col);
    p.out = at(a->out, a->os, a->dtype, d.b, d.row);
    p.dout = at(a->dout, a->os, a->dtype, d.b, d.row);
    p.dq = at(a->dq, a->qs, a->dtype, d.b, d.row);
    p.dk = at(a->dk, a->ks, a->dtype, d.b, d.col);
    p.dv = at(a->dv, a->vs, a->dtype, d.b, d.col);
    return p;
}

static size_t workspace(Ctx *c, const AttnArgs *a, bool backward) {
    (void)c;
    AttnArgs longest = *a;
    longest.B = 1;
    longest.Tq = longest.Tk = document_longest(a);
    return scores_bytes(&longest, backward);
}

static void forward(Ctx *c, const AttnArgs *a) {
    const CudaMask m = cuda_mask(c, a->mask, NULL);
    for (int n = 0; n < a->B * m.n_docs; n++) {
        const Document d = document_of(a, a->mask->offsets, m.n_docs, n);
        const AttnArgs part = part_of(a, d);
        if (d.rows) scores_forward(c, a, m, &part, n, a->workspace);
    }
}

template <typename T>
static __global__ void clear_rows(T *x, AttnStride s, int rows, int H, int D) {
    const int64_t i = global_thread();
    if (i >= (int64_t)rows * H * D) return;
    x[i / D / H * s.t + i / D % H * s.h + i % D] = from_float<T>(0);
}

/* Keys that no query sees. */
static void no_gradient(Ctx *c, const AttnArgs *part) {
    const dim3 grid = grid_for((int64_t)part->Tk * part->H * part->D);
    with_dtype(part->dtype, [&](auto zero) {
        typedef decltype(zero) T;
        if (part->dk)
            launch(c, clear_rows<T>, grid, BLOCK, 0, (T *)part->dk, part->ks, part->Tk, part->H,
                   part->D);
        if (part->dv)
            launch(c, clear_rows<T>, grid, BLOCK, 0, (T *)part->dv, part->vs, part->Tk, part->H,
                   part->D);
    });
}

static void backward(Ctx *c, const AttnArgs *a) {
    const CudaMask m = cuda_mask(c, a->mask, NULL);
    for (int n = 0; n < a->B * m.n_docs; n++) {
        const Document d = document_of(a, a->mask->offsets, m.n_docs, n);
        const AttnArgs part = part_of(a, d);
        if (d.rows)
            scores_backward(c, a, m, &part, n, a->workspace);
        else
            no_gradient(c, &part);
    }
}

extern const AttnBackend attn_loop_cuda = {.name = NULL,
                                           .help = NULL,
                                           .supports = documents_declined,
                                           .prepare = NULL,
                                           .workspace = workspace,
                                           .forward = forward,
                                           .backward = backward};
