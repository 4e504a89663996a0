/* padded: every document in a block of as many rows as the longest has, and dense attention on it:
 * how a framework without attention of varying lengths does it.
 *
 * The rows of q, k, v (and dout) are copied into a block, zero where the document has ended; the
 * block is computed from its first row to its last, with the padding's scores hidden; and the rows
 * that exist are copied out. A framework keeps the blocks of all documents, a rectangle of memory.
 * Here a thread has one, which stays in its cache: that makes it 2.7 times as fast on the events of
 * IceCube, and leaves of padding what cannot be helped, the work on rows that do not exist.
 *
 * Products are those of the flash kernel: a call of the library costs more than most of them. Who
 * computes a block changes no bit of it. Formulas as in vanilla. */
#include <omp.h>

#include "kernels/cpu/attention_rows.h"
#include "kernels/cpu/cpu.h"

#include "kernels/cpu/flash_tile.h"

enum { STRIP = 48 }; /* rows whose scores are in memory at a time */

/* A thread's memory: a block, and what is computed of it. */
typedef struct Block {
    int rows, cols, d_pad; /* queries, keys, numbers of a row; padded */
    int64_t ld; /* of scores: a little more than cols, so that a column is not in few sets of the
                   cache */
    float *q, *k_t, *v;    /* (rows, d_pad), (D, cols), (cols, d_pad) */
    float *s, *strip;      /* (STRIP, ld) scores, later p; (STRIP, d_pad) of out or dq */
    float *dout, *v_t, *k; /* backward alone, which has no v: as q, k_t, v */
    float *ds, *dk, *dv;   /* likewise: as s, v, v */
    size_t size;           /* floats */
} Block;

static float *take(float *memory, size_t *used, int64_t floats) {
    float *at = memory ? memory + *used : NULL;
    *used += (size_t)floats;
    return at;
}

/* memory NULL: only the sizes. */
static Block block_of(const AttnArgs *a, float *memory, bool backward) {
    const int longest = document_longest(a), most = longest < a->Tq ? longest : a->Tq;
    Block b = {.rows = (most + 3) / 4 * 4,
               .cols = (int)row_length(longest),
               .d_pad = (a->D + VW - 1) / VW * VW};
    b.ld = b.cols + ROW_FLOATS;
    const int64_t q = (int64_t)b.rows * b.d_pad, k = (int64_t)b.cols * b.d_pad,
                  k_t = (int64_t)b.cols * a->D, s = STRIP * b.ld;
    size_t used = 0;
    b.q = take(memory, &used, q);
    b.k_t = take(memory, &used, k_t);
    b.s = take(memory, &used, s);
    b.strip = take(memory, &used, STRIP * b.d_pad);
    if (backward) {
        b.dout = take(memory, &used, q);
        b.v_t = take(memory, &used, k_t);
        b.k = take(memory, &used, k);
        b.ds = take(memory, &used, s);
        b.dk = take(memory, &used, k);
        b.dv = take(memory, &used, k);
    } else {
        b.v = take(memory, &used, k);
    }
    b.size = used;
    return b;
}

static size_t workspace(Ctx *c, const AttnArgs *a, bool backward) {
    return sizeof(float) * (size_t)c->n_threads * block_of(a, NULL, backward).size;
}

/* One head of one document. */
typedef struct Part {
    int b, h;
    Document d;
    float *lse;
} Part;

static Part part_of(const AttnArgs *a, int64_t i) {
    const int64_t number = i / a->H;
    Part p = {(int)(number / a->mask->n_docs), (int)(i % a->H),
              document_of(a, (int)(number % a->mask->n_docs)), NULL};
    p.lse = (float *)a->lse + ((int64_t)p.b * a->H + p.h) * a->Tq + p.d.row;
    return p;
}

static float *at(const void *x, AttnStride s, const Part *p, int t) {
    return (float *)(uintptr_t)x + p->b * s.b + p->h * s.h + t * s.t;
}

/* Most columns are padding: cleared in one go, not column by column. */
static void pad_transposed(float *to, int cols, const float *from, int64_t t, int n, int D) {
    memset(to, 0, sizeof(float) * (size_t)cols * (size_t)D);
    pack_transposed(to, cols, from, t, n, n, D);
}

static void pad(const AttnArgs *a, const Block *b, const Part *p, bool backward) {
    const Document d = p->d;
    const float *k = at(a->k, a->ks, p, d.col), *v = at(a->v, a->vs, p, d.col);
    pack_rows(b->q, b->d_pad, at(a->q, a->qs, p, d.row), a->qs.t, d.rows, b->rows, a->D, 1);
    pad_transposed(b->k_t, b->cols, k, a->ks.t, d.cols, a->D);
    if (!backward) {
        pack_rows(b->v, b->d_pad, v, a->vs.t, d.cols, b->cols, a->D, 1);
        return;
    }
    pad_transposed(b->v_t, b->cols, v, a->vs.t, d.cols, a->D);
    pack_rows(b->k, b->d_pad, k, a->ks.t, d.cols, b->cols, a->D, 1);
    pack_rows(b->dout, b->d_pad, at(a->dout, a->os, p, d.row), a->os.t, d.rows, b->rows, a->D, 1);
}

/* A strip: rows `row` .. row + n - 1 of the block, of which the first `real` exist. */
typedef struct Strip {
    int row, n, real;
} Strip;

static Strip strip_at(const Block *b, const Part *p, int row) {
    const int n = b->rows - row < STRIP ? b->rows - row : STRIP, left = p->d.rows - row;
    return (Strip){row, n, left < 0 ? 0 : left < n ? left : n};
}

/* C (M, N) = A B, A by rows. */
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

/* s (n, ld) = q k', and its rows that exist times scale, hidden where there are no keys. (The
 * factor is not put into q: a q that was rounded errs in all of its scores.) */
static void scores(const AttnArgs *a, const Block *b, const Part *p, Strip t) {
    multiply(t.n, b->cols, a->D, b->q + (int64_t)t.row * b->d_pad, b->d_pad, b->k_t, b->cols, b->s,
             b->ld);
    for (int i = 0; i < t.real; i++) {
        float *s = b->s + i * b->ld;
        for (int j = 0; j < p->d.cols; j++) s[j] *= a->scale;
        row_hide(s, p->d.cols, b->cols);
    }
}

/* to = factor x, row by row, without the padding. */
static void copy_rows(const AttnArgs *a, const Block *b, float *to, int64_t t, const float *x,
                      int rows, float factor) {
    for (int i = 0; i < rows; i++)
        for (int d = 0; d < a->D; d++) to[i * t + d] = factor * x[(int64_t)i * b->d_pad + d];
}

static void forward_part(const AttnArgs *a, const Block *b, const Part *p) {
    for (int row = 0; row < b->rows; row += STRIP) {
        const Strip t = strip_at(b, p, row);
        scores(a, b, p, t);
        for (int i = 0; i < t.real; i++) p->lse[row + i] = row_softmax(b->s + i * b->ld, b->cols);
        multiply(t.n, b->d_pad, b->cols, b->s, b->ld, b->v, b->d_pad, b->strip, b->d_pad);
        copy_rows(a, b, at(a->out, a->os, p, p->d.row + row), a->os.t, b->strip, t.real, 1);
    }
}

/* dst (cols, d_pad) = or += x' y, x (n, ld), y (n, d_pad). */
static void into_keys(const Block *b, int n, const float *x, const float *y, float *dst, bool add) {
    product(&(Product){.M = b->cols,
                       .N = b->d_pad,
                       .K = n,
                       .A = x,
                       .a_row = 1,
                       .a_col = b->ld,
                       .B = y,
                       .ldb = b->d_pad,
                       .C = dst,
                       .ldc = b->d_pad,
                       .add = add});
}

/* Rows that do not exist are zero in q and dout: whatever s and ds hold there, they add nothing. */
static void backward_part(const AttnArgs *a, const Block *b, const Part *p) {
    for (int row = 0; row < b->rows; row += STRIP) {
        const Strip t = strip_at(b, p, row);
        const float *q = b->q + (int64_t)row * b->d_pad, *dout = b->dout + (int64_t)row * b->d_pad,
                    *out = at(a->out, a->os, p, p->d.row + row);
        scores(a, b, p, t);
        multiply(t.n, b->cols, a->D, dout, b->d_pad, b->v_t, b->cols, b->ds, b->ld);
        for (int i = 0; i < t.real; i++)
            row_backward(b->s + i * b->ld, b->ds + i * b->ld, NULL, b->cols, p->lse[row + i],
                         row_dot(out + i * a->os.t, dout + (int64_t)i * b->d_pad, a->D));
        into_keys(b, t.n, b->s, dout, b->dv, row > 0);
        into_keys(b, t.n, b->ds, q, b->dk, row > 0);
        if (!a->dq) continue;
        multiply(t.n, b->d_pad, b->cols, b->ds, b->ld, b->k, b->d_pad, b->strip, b->d_pad);
        copy_rows(a, b, at(a->dq, a->qs, p, p->d.row + row), a->qs.t, b->strip, t.real, a->scale);
    }
    if (a->dk) copy_rows(a, b, at(a->dk, a->ks, p, p->d.col), a->ks.t, b->dk, p->d.cols, a->scale);
    if (a->dv) copy_rows(a, b, at(a->dv, a->vs, p, p->d.col), a->vs.t, b->dv, p->d.cols, 1);
}

static void run(Ctx *c, const AttnArgs *a, bool backward) {
    const size_t size = block_of(a, NULL, backward).size;
#pragma omp parallel num_threads(c->n_threads)
    {
        float *memory = (float *)a->workspace + (size_t)omp_get_thread_num() * size;
        const Block b = block_of(a, memory, backward);
#pragma omp for schedule(dynamic, 4)
        for (int64_t i = 0; i < (int64_t)a->B * a->mask->n_docs * a->H; i++) {
            const Part p = part_of(a, i);
            pad(a, &b, &p, backward);
            (backward ? backward_part : forward_part)(a, &b, &p);
        }
    }
}

static void forward(Ctx *c, const AttnArgs *a) { run(c, a, false); }
static void backward(Ctx *c, const AttnArgs *a) { run(c, a, true); }

const AttnBackend ISA_FN(attn_padded) = {.supports = documents_declined,
                                         .workspace = workspace,
                                         .forward = forward,
                                         .backward = backward};
