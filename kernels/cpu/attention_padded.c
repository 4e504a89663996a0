/* padded: documents in a rectangle of as many rows as the longest has, and dense attention on it:
 * how a framework without attention of varying lengths does it.
 *
 * The rows of q, k, v (and dout) are copied into blocks, one for each document and head, zero where
 * the document has ended. All blocks are then computed alike, from their first row to their last;
 * the padding's scores are hidden, and the rows that exist are copied out. Products are those of
 * the flash kernel: blocks are small, and a library call costs more than most of them. A block's
 * scores are computed a strip of rows at a time, in scratch that stays in the cache; but the
 * rectangle is memory, documents x longest rows of it, and one long document makes it huge.
 *
 * Who computes a block changes no bit of it. Formulas as in vanilla. */
#include <omp.h>

#include "kernels/cpu/attention_rows.h"
#include "kernels/cpu/cpu.h"

#include "kernels/cpu/flash_tile.h"

enum { STRIP = 48 }; /* rows whose scores are in memory at a time: whole blocks of products */

typedef struct Rectangle {
    int rows, cols, d_pad; /* of a block: queries, keys, numbers of a row; padded */
    int64_t ld;            /* of scores: a little more than cols, so that a column is not in
                              few sets of the cache */
    int64_t blocks;        /* (B, documents, H) */
    size_t block_size, scratch_size; /* floats: of a block, of a thread */
} Rectangle;

/* (rows, d_pad) q, dout; (D, cols) k_t, v_t; (cols, d_pad) k, v. Forward has neither dout nor v_t
 * nor k, backward no v. */
typedef struct Block {
    float *q, *k_t, *v, *dout, *v_t, *k;
} Block;

/* (STRIP, ld) scores, later p; d loss / d p, later d loss / d s. (STRIP, d_pad) of out or dq.
 * (cols, d_pad) dk, dv. Forward has s and rows alone. */
typedef struct Scratch {
    float *s, *rows, *ds, *dk, *dv;
} Scratch;

static Rectangle rectangle(const AttnArgs *a, bool backward) {
    const int longest = document_longest(a), most = longest < a->Tq ? longest : a->Tq;
    Rectangle r = {.rows = (most + 3) / 4 * 4,
                   .cols = (int)row_length(longest),
                   .d_pad = (a->D + VW - 1) / VW * VW,
                   .blocks = (int64_t)a->B * a->mask->n_docs * a->H};
    r.ld = r.cols + ROW_FLOATS;
    const size_t q = (size_t)r.rows * (size_t)r.d_pad, k = (size_t)r.cols * (size_t)r.d_pad,
                 k_t = (size_t)r.cols * (size_t)a->D, s = STRIP * (size_t)r.ld,
                 rows = STRIP * (size_t)r.d_pad;
    r.block_size = backward ? 2 * q + 2 * k_t + k : q + k_t + k;
    r.scratch_size = backward ? 2 * s + rows + 2 * k : s + rows;
    return r;
}

static size_t workspace(Ctx *c, const AttnArgs *a, bool backward) {
    const Rectangle r = rectangle(a, backward);
    return sizeof(float) *
           ((size_t)r.blocks * r.block_size + (size_t)c->n_threads * r.scratch_size);
}

static Block block_at(const AttnArgs *a, const Rectangle *r, int64_t i, bool backward) {
    const int64_t q = (int64_t)r->rows * r->d_pad, k_t = (int64_t)r->cols * a->D;
    Block b = {.q = (float *)a->workspace + (size_t)i * r->block_size};
    b.k_t = b.q + q;
    if (!backward) {
        b.v = b.k_t + k_t;
        return b;
    }
    b.v_t = b.k_t + k_t;
    b.dout = b.v_t + k_t;
    b.k = b.dout + q;
    return b;
}

static Scratch scratch_at(const AttnArgs *a, const Rectangle *r, int thread, bool backward) {
    Scratch w = {.s = (float *)a->workspace + (size_t)r->blocks * r->block_size +
                      (size_t)thread * r->scratch_size};
    w.rows = w.s + STRIP * r->ld;
    if (!backward) return w;
    w.ds = w.rows + STRIP * r->d_pad;
    w.dk = w.ds + STRIP * r->ld;
    w.dv = w.dk + (int64_t)r->cols * r->d_pad;
    return w;
}

/* What block i is of. */
typedef struct Place {
    int b, h;
    Document d;
} Place;

static Place place_of(const AttnArgs *a, int64_t i) {
    const int64_t number = i / a->H;
    return (Place){(int)(number / a->mask->n_docs), (int)(i % a->H),
                   document_of(a, (int)(number % a->mask->n_docs))};
}

static float *at(const void *x, AttnStride s, const Place *p, int t) {
    return (float *)(uintptr_t)x + p->b * s.b + p->h * s.h + t * s.t;
}

static void pad(const AttnArgs *a, const Rectangle *r, int64_t i, bool backward) {
    const Place p = place_of(a, i);
    const Document d = p.d;
    const Block b = block_at(a, r, i, backward);
    const float *k = at(a->k, a->ks, &p, d.col), *v = at(a->v, a->vs, &p, d.col);
    pack_rows(b.q, r->d_pad, at(a->q, a->qs, &p, d.row), a->qs.t, d.rows, r->rows, a->D, 1);
    pack_transposed(b.k_t, r->cols, k, a->ks.t, d.cols, r->cols, a->D);
    if (!backward) {
        pack_rows(b.v, r->d_pad, v, a->vs.t, d.cols, r->cols, a->D, 1);
        return;
    }
    pack_transposed(b.v_t, r->cols, v, a->vs.t, d.cols, r->cols, a->D);
    pack_rows(b.k, r->d_pad, k, a->ks.t, d.cols, r->cols, a->D, 1);
    pack_rows(b.dout, r->d_pad, at(a->dout, a->os, &p, d.row), a->os.t, d.rows, r->rows, a->D, 1);
}

static int strip_rows(const Rectangle *r, int row) {
    return r->rows - row < STRIP ? r->rows - row : STRIP;
}

/* Of a strip from `row` on, those that exist. */
static int real_rows(const Document *d, int row, int rows) {
    const int left = d->rows - row;
    return left < 0 ? 0 : left < rows ? left : rows;
}

/* (M, N) = A B with A by rows; see Product. */
static void multiply(int M, int N, int K, const float *A, int64_t lda, const float *B, int64_t ldb,
                     float *C, int64_t ldc) {
    product(&(Product){.M = M,
                       .N = N,
                       .K = K,
                       .A = A,
                       .a_row = lda,
                       .a_col = 1,
                       .B = B,
                       .ldb = ldb,
                       .C = C,
                       .ldc = ldc});
}

/* The score's factor is not put into q before: a rounded q errs in all of its scores. */
static void finish_row(float *s, float scale, int keys, int cols) {
    for (int j = 0; j < keys; j++) s[j] *= scale;
    row_hide(s, keys, cols);
}

static void forward_block(const AttnArgs *a, const Rectangle *r, int64_t i, Scratch w) {
    const Place p = place_of(a, i);
    const Block b = block_at(a, r, i, false);
    float *lse = (float *)a->lse + ((int64_t)p.b * a->H + p.h) * a->Tq + p.d.row;
    for (int row = 0; row < r->rows; row += STRIP) {
        const int n = strip_rows(r, row), real = real_rows(&p.d, row, n);
        multiply(n, r->cols, a->D, b.q + (int64_t)row * r->d_pad, r->d_pad, b.k_t, r->cols, w.s,
                 r->ld);
        for (int j = 0; j < real; j++) {
            finish_row(w.s + j * r->ld, a->scale, p.d.cols, r->cols);
            lse[row + j] = row_softmax(w.s + j * r->ld, r->cols);
        }
        multiply(n, r->d_pad, r->cols, w.s, r->ld, b.v, r->d_pad, w.rows, r->d_pad);
        for (int j = 0; j < real; j++)
            memcpy(at(a->out, a->os, &p, p.d.row + row + j), w.rows + j * r->d_pad,
                   sizeof(float) * (size_t)a->D);
    }
}

/* dst (cols, d_pad) = or += x' y with x (rows, ld), y (rows, d_pad). */
static void into_keys(const Rectangle *r, int rows, const float *x, const float *y, float *dst,
                      bool add) {
    product(&(Product){.M = r->cols,
                       .N = r->d_pad,
                       .K = rows,
                       .A = x,
                       .a_row = 1,
                       .a_col = r->ld,
                       .B = y,
                       .ldb = r->d_pad,
                       .C = dst,
                       .ldc = r->d_pad,
                       .add = add});
}

/* Rows that do not exist are zero in q and dout, so whatever their scores are, they add nothing. */
static void backward_block(const AttnArgs *a, const Rectangle *r, int64_t i, Scratch w) {
    const Place p = place_of(a, i);
    const Block b = block_at(a, r, i, true);
    const float *lse = (const float *)a->lse + ((int64_t)p.b * a->H + p.h) * a->Tq + p.d.row;
    for (int row = 0; row < r->rows; row += STRIP) {
        const int n = strip_rows(r, row), real = real_rows(&p.d, row, n);
        const float *q = b.q + (int64_t)row * r->d_pad, *dout = b.dout + (int64_t)row * r->d_pad;
        multiply(n, r->cols, a->D, q, r->d_pad, b.k_t, r->cols, w.s, r->ld);
        multiply(n, r->cols, a->D, dout, r->d_pad, b.v_t, r->cols, w.ds, r->ld);
        for (int j = 0; j < real; j++) {
            finish_row(w.s + j * r->ld, a->scale, p.d.cols, r->cols);
            row_backward(w.s + j * r->ld, w.ds + j * r->ld, NULL, r->cols, lse[row + j],
                         row_dot(at(a->out, a->os, &p, p.d.row + row + j),
                                 dout + (int64_t)j * r->d_pad, a->D));
        }
        into_keys(r, n, w.s, dout, w.dv, row > 0);
        into_keys(r, n, w.ds, q, w.dk, row > 0);
        if (!a->dq) continue;
        multiply(n, r->d_pad, r->cols, w.ds, r->ld, b.k, r->d_pad, w.rows, r->d_pad);
        for (int j = 0; j < real; j++) {
            float *dq = at(a->dq, a->qs, &p, p.d.row + row + j);
            for (int d = 0; d < a->D; d++) dq[d] = a->scale * w.rows[(int64_t)j * r->d_pad + d];
        }
    }
    for (int j = 0; j < p.d.cols; j++) {
        const int64_t from = (int64_t)j * r->d_pad;
        float *dk = a->dk ? at(a->dk, a->ks, &p, p.d.col + j) : NULL,
              *dv = a->dv ? at(a->dv, a->vs, &p, p.d.col + j) : NULL;
        for (int d = 0; dk && d < a->D; d++) dk[d] = a->scale * w.dk[from + d];
        for (int d = 0; dv && d < a->D; d++) dv[d] = w.dv[from + d];
    }
}

static void run(Ctx *c, const AttnArgs *a, bool backward) {
    const Rectangle r = rectangle(a, backward);
#pragma omp parallel num_threads(c->n_threads)
    {
        const Scratch w = scratch_at(a, &r, omp_get_thread_num(), backward);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < r.blocks; i++) pad(a, &r, i, backward);
#pragma omp for schedule(dynamic, 4)
        for (int64_t i = 0; i < r.blocks; i++)
            (backward ? backward_block : forward_block)(a, &r, i, w);
    }
}

static void forward(Ctx *c, const AttnArgs *a) { run(c, a, false); }
static void backward(Ctx *c, const AttnArgs *a) { run(c, a, true); }

const AttnBackend ISA_FN(attn_padded) = {.supports = documents_declined,
                                         .workspace = workspace,
                                         .forward = forward,
                                         .backward = backward};
