/* padded: every document in a block of as many rows as the longest has, and dense attention on it:
 * how a framework without attention of varying lengths does it.
 *
 * The rows of q, k, v (and dout) are copied into blocks, zero where the document has ended; the
 * products of all blocks and heads are one call of the library each; and the rows that exist are
 * copied out. A framework keeps the blocks of all documents at once; here it is as many as fit into
 * CHUNK_BYTES, so that one long document among thousands of short ones does not fill the device.
 *
 * A result takes the place of an input that is no longer needed (attention_scores.cuh says which).
 */
#include "kernels/cuda/attention_scores.cuh"

enum {
    CHUNK_BYTES = 256 << 20,
    MOST_PRODUCTS = 65535, /* of one call of the library: as far as a grid's z goes */
    ROWS = 8,              /* blocks have a multiple: fewer shapes to plan, and 16 bytes of bf16 */
    ALIGN = 256
};

/* Documents first .. first + part.B - 1 of the call in blocks: (B, H, Tq or Tk, D) each tensor. */
typedef struct Chunk {
    AttnArgs a, part;
    CudaMask m;
    int first;
    void *scores;
    size_t bytes;
} Chunk;

/* n documents from the first on. */
static Chunk chunk_of(const AttnArgs *a, bool backward, int n) {
    const int longest = document_longest(a), most = longest < a->Tq ? longest : a->Tq;
    Chunk k = {*a, *a, {}, 0, NULL, 0};
    AttnArgs *p = &k.part;
    p->B = n;
    p->Tq = (int)round_up(most, ROWS);
    p->Tk = (int)round_up(longest, ROWS);
    const int64_t rows = (int64_t)p->Tq * a->D, cols = (int64_t)p->Tk * a->D;
    p->qs = p->os = {a->H * rows, a->D, rows};
    p->ks = p->vs = {a->H * cols, a->D, cols};
    const int64_t size = (int64_t)dtype_size(a->dtype),
                  queries = round_up(n * p->qs.b * size, ALIGN),
                  keys = round_up(n * p->ks.b * size, ALIGN);
    const uintptr_t q = (uintptr_t)a->workspace, k0 = q + (size_t)queries, v = k0 + (size_t)keys,
                    dout = v + (size_t)keys, scores = dout + (backward ? (size_t)queries : 0);
    p->q = p->out = (void *)q;
    p->k = (void *)k0;
    p->v = (void *)v;
    p->dout = (void *)dout;
    p->dq = a->dq ? (void *)dout : NULL;
    p->dk = a->dk ? (void *)k0 : NULL;
    p->dv = a->dv ? (void *)v : NULL;
    k.scores = (void *)scores;
    k.bytes = scores - q + scores_bytes(p, backward);
    return k;
}

/* As many documents as are computed at a time: no fewer than one, no more than the call has. */
static Chunk largest_chunk(const AttnArgs *a, bool backward) {
    const size_t fit = CHUNK_BYTES / chunk_of(a, backward, 1).bytes,
                 all = (size_t)a->B * (size_t)a->mask->n_docs, most = MOST_PRODUCTS / (size_t)a->H;
    size_t n = all < most ? all : most;
    if (fit < n) n = fit ? fit : 1;
    return chunk_of(a, backward, (int)n);
}

static size_t workspace(Ctx *c, const AttnArgs *a, bool backward) {
    (void)c;
    return largest_chunk(a, backward).bytes;
}

/* ---- rows into blocks and back ---- */

/* One tensor of the call and its blocks. Counts and strides are in whatever is moved at a time: 16
 * bytes, or one number. */
typedef struct Move {
    Chunk chunk;
    void *tensor, *block;
    AttnStride s;
    int width, rows; /* of a row and of a block */
    int64_t n;
    bool keys, in; /* rows of keys, else of queries; into the blocks, else out of them */
} Move;

template <typename V>
static __global__ void __launch_bounds__(BLOCK) move_rows(Move w) {
    const int64_t i = global_thread();
    if (i >= w.n) return;
    const int64_t row = i / w.width, head = row / w.rows;
    const int t = (int)(row % w.rows), h = (int)(head % w.chunk.a.H),
              n = w.chunk.first + (int)(head / w.chunk.a.H);
    const Document d = document_of(&w.chunk.a, w.chunk.m.offsets, w.chunk.m.n_docs, n);
    const bool real = t < (w.keys ? d.cols : d.rows);
    V *block = (V *)w.block + i, *tensor = (V *)w.tensor + d.b * w.s.b + h * w.s.h +
                                           ((w.keys ? d.col : d.row) + t) * w.s.t + i % w.width;
    if (!w.in && real) *tensor = *block;
    if (w.in) *block = real ? *tensor : V{};
}

static void move(Ctx *c, const Chunk *k, const void *tensor, AttnStride s, const void *block,
                 bool keys, bool in) {
    const int64_t size = (int64_t)dtype_size(k->a.dtype), pack = 16 / size;
    const bool packs = (uintptr_t)tensor % 16 == 0 && (uintptr_t)block % 16 == 0 &&
                       k->a.D % pack == 0 && s.b % pack == 0 && s.t % pack == 0 && s.h % pack == 0;
    const int64_t unit = packs ? pack : 1;
    const int rows = keys ? k->part.Tk : k->part.Tq, width = (int)(k->a.D / unit);
    const Move w = {*k,
                    (void *)(uintptr_t)tensor,
                    (void *)(uintptr_t)block,
                    {s.b / unit, s.t / unit, s.h / unit},
                    width,
                    rows,
                    (int64_t)k->part.B * k->a.H * rows * width,
                    keys,
                    in};
    launch(c,
           packs       ? move_rows<uint4>
           : size == 4 ? move_rows<uint32_t>
                       : move_rows<uint16_t>,
           grid_for(w.n), BLOCK, 0, w);
}

static void rows_in(Ctx *c, const Chunk *k, const void *tensor, AttnStride s, const void *block,
                    bool keys) {
    move(c, k, tensor, s, block, keys, true);
}

static void rows_out(Ctx *c, const Chunk *k, void *tensor, AttnStride s, const void *block,
                     bool keys) {
    if (tensor) move(c, k, tensor, s, block, keys, false);
}

/* ---- a chunk ---- */

static void forward_chunk(Ctx *c, const Chunk *k) {
    const AttnArgs *a = &k->a, *p = &k->part;
    rows_in(c, k, a->q, a->qs, p->q, false);
    rows_in(c, k, a->k, a->ks, p->k, true);
    rows_in(c, k, a->v, a->vs, p->v, true);
    scores_forward(c, a, k->m, p, k->first, k->scores);
    rows_out(c, k, a->out, a->os, p->out, false);
}

static void backward_chunk(Ctx *c, const Chunk *k) {
    const AttnArgs *a = &k->a, *p = &k->part;
    rows_in(c, k, a->q, a->qs, p->q, false);
    rows_in(c, k, a->k, a->ks, p->k, true);
    rows_in(c, k, a->v, a->vs, p->v, true);
    rows_in(c, k, a->dout, a->os, p->dout, false);
    scores_backward(c, a, k->m, p, k->first, k->scores);
    rows_out(c, k, a->dq, a->qs, p->dq, false);
    rows_out(c, k, a->dk, a->ks, p->dk, true);
    rows_out(c, k, a->dv, a->vs, p->dv, true);
}

static void run(Ctx *c, const AttnArgs *a, bool backward) {
    const int all = a->B * a->mask->n_docs, most = largest_chunk(a, backward).part.B;
    const CudaMask m = cuda_mask(c, a->mask, NULL);
    for (int first = 0; first < all; first += most) {
        Chunk k = chunk_of(a, backward, all - first < most ? all - first : most);
        k.m = m;
        k.first = first;
        (backward ? backward_chunk : forward_chunk)(c, &k);
    }
}

static void forward(Ctx *c, const AttnArgs *a) { run(c, a, false); }
static void backward(Ctx *c, const AttnArgs *a) { run(c, a, true); }

extern const AttnBackend attn_padded_cuda = {.name = NULL,
                                             .help = NULL,
                                             .supports = documents_declined,
                                             .prepare = NULL,
                                             .workspace = workspace,
                                             .forward = forward,
                                             .backward = backward};
