/* loop: one document after the other, as one writes it first: for each head the products by the
 * library, and a softmax between them. No score crosses documents and nothing is padded; but most
 * documents are a row or two, and there a call of the library costs more than its product does.
 *
 * Formulas as in vanilla. The scores of one document and one head are in memory at a time. */
#include "kernels/cpu/attention_rows.h"
#include "kernels/cpu/cpu.h"

static size_t workspace(Ctx *c, const AttnArgs *a, bool backward) {
    (void)c;
    const size_t longest = (size_t)document_longest(a);
    return sizeof(float) * longest * (size_t)row_length((int64_t)longest) * (backward ? 2 : 1);
}

static float *at(const void *x, AttnStride s, int b, int h, int t) {
    return (float *)(uintptr_t)x + b * s.b + h * s.h + t * s.t;
}

static float *lse_at(const AttnArgs *a, int b, int h, int row) {
    return (float *)a->lse + ((int64_t)b * a->H + h) * a->Tq + row;
}

/* s (rows, ld) = scale q k', hidden beyond the keys */
static void scores(Ctx *c, const AttnArgs *a, int b, int h, Document d, float *s, int64_t ld) {
    c->dev->gemm(c, false, true, d.rows, d.cols, a->D, a->scale, at(a->q, a->qs, b, h, d.row),
                 a->qs.t, at(a->k, a->ks, b, h, d.col), a->ks.t, 0, s, ld);
    for (int i = 0; i < d.rows; i++) row_hide(s + i * ld, d.cols, ld);
}

static void forward_document(Ctx *c, const AttnArgs *a, int b, int h, Document d) {
    const int64_t ld = row_length(d.cols);
    float *s = a->workspace, *lse = lse_at(a, b, h, d.row);
    scores(c, a, b, h, d, s, ld);
    for (int i = 0; i < d.rows; i++) lse[i] = row_softmax(s + i * ld, ld);
    c->dev->gemm(c, false, false, d.rows, a->D, d.cols, 1, s, ld, at(a->v, a->vs, b, h, d.col),
                 a->vs.t, 0, at(a->out, a->os, b, h, d.row), a->os.t);
}

static void backward_document(Ctx *c, const AttnArgs *a, int b, int h, Document d) {
    const int64_t ld = row_length(d.cols);
    const float *q = at(a->q, a->qs, b, h, d.row), *k = at(a->k, a->ks, b, h, d.col),
                *v = at(a->v, a->vs, b, h, d.col), *out = at(a->out, a->os, b, h, d.row),
                *dout = at(a->dout, a->os, b, h, d.row), *lse = lse_at(a, b, h, d.row);
    float *p = a->workspace, *ds = p + d.rows * ld;
    scores(c, a, b, h, d, p, ld);
    c->dev->gemm(c, false, true, d.rows, d.cols, a->D, 1, dout, a->os.t, v, a->vs.t, 0, ds, ld);
    for (int i = 0; i < d.rows; i++)
        row_backward(p + i * ld, ds + i * ld, NULL, ld, lse[i],
                     row_dot(out + i * a->os.t, dout + i * a->os.t, a->D));
    if (a->dv)
        c->dev->gemm(c, true, false, d.cols, a->D, d.rows, 1, p, ld, dout, a->os.t, 0,
                     at(a->dv, a->vs, b, h, d.col), a->vs.t);
    if (a->dk)
        c->dev->gemm(c, true, false, d.cols, a->D, d.rows, a->scale, ds, ld, q, a->qs.t, 0,
                     at(a->dk, a->ks, b, h, d.col), a->ks.t);
    if (a->dq)
        c->dev->gemm(c, false, false, d.rows, a->D, d.cols, a->scale, ds, ld, k, a->ks.t, 0,
                     at(a->dq, a->qs, b, h, d.row), a->qs.t);
}

/* Keys that no query sees. */
static void no_gradient(const AttnArgs *a, int b, int h, Document d) {
    const size_t bytes = sizeof(float) * (size_t)a->D;
    for (int i = d.col; i < d.col + d.cols; i++) {
        if (a->dk) memset(at(a->dk, a->ks, b, h, i), 0, bytes);
        if (a->dv) memset(at(a->dv, a->vs, b, h, i), 0, bytes);
    }
}

static void forward(Ctx *c, const AttnArgs *a) {
    for (int b = 0; b < a->B; b++)
        for (int i = 0; i < a->mask->n_docs; i++) {
            const Document d = document_of(a, i);
            for (int h = 0; d.rows && h < a->H; h++) forward_document(c, a, b, h, d);
        }
}

static void backward(Ctx *c, const AttnArgs *a) {
    for (int b = 0; b < a->B; b++)
        for (int i = 0; i < a->mask->n_docs; i++) {
            const Document d = document_of(a, i);
            for (int h = 0; h < a->H; h++)
                if (d.rows)
                    backward_document(c, a, b, h, d);
                else
                    no_gradient(a, b, h, d);
        }
}

const AttnBackend ISA_FN(attn_loop) = {.supports = documents_declined,
                                       .workspace = workspace,
                                       .forward = forward,
                                       .backward = backward};
