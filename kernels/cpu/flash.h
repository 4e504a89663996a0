/* Fused attention, forward and backward, without a score matrix in memory.
 *
 *   s = scale q k', softmax over the visible keys, out = p v       (FlashAttention-2, Dao 2023)
 *
 * One text, two uses. Built with the program it is `sdpa`: masks by intervals. Built at run time,
 * after a prelude that defines FLEX_HAS_MASK, FLEX_HAS_SCORE, flex_mask, flex_score,
 * flex_score_grad and FlexEnv from the user's expressions, it is `flex`. What those learn:
 * flash_score.h, before this text.
 *
 * The score matrix is cut into tiles. For each, the mask knows: hidden (skipped), full, or partial;
 * only a partial tile asks the mask cell by cell. Scores are kept in units of log 2: the factor
 * scale log2(e) goes into the packed queries, so that the softmax needs 2^x alone.
 *
 * Forward: keys are transposed once a head (values are read where they are, or copied where a row
 * is not of whole vectors); then each task is one tile of queries, which meets its tiles of keys
 * from left to right with a running maximum. Backward: each task is one head's tiles of keys, of
 * every chunk-th, which meet the tiles of queries; dk and dv stay in the task, dq goes to the
 * chunk's own sum, and the chunks are added in their order. Who computes a task changes no bit of
 * it, so neither does the number of threads.
 *
 * Masks that keep documents apart go document by document: flash_docs.h.
 *
 * B batch, H heads, T tokens, D head size; rows are queries, columns keys. */
#if !defined(KERNELS_CPU_FLASH_H) && !defined(FLASH_TEXT_ONLY)
#define KERNELS_CPU_FLASH_H

#ifndef FLEX_HAS_MASK
#define FLEX_HAS_MASK 0
#endif
#ifndef FLEX_BY_DOCUMENT /* sdpa: there may be documents */
#define FLEX_BY_DOCUMENT 1
#define FLEX_HAS_REST 0
#endif

#include <omp.h>

static const float SLACK = 8;

enum { FLASH_ALIGN = 64, FLASH_GROUP_BYTES = 32 << 20 };

/* Heads are packed a group at a time, so that scratch does not grow with the batch. */
typedef struct Geometry {
    int d_pad, heads, n_q, n_k, q_pad;
    int group;  /* heads packed at once */
    int chunks; /* sums of dq a head, from the shape alone */
    size_t head_bytes, thread_bytes, heads_at, threads_at, total;
} Geometry;

/* Of a tile of queries: the least and greatest first key, and the least and greatest end. */
typedef struct Limits {
    int lo_min, lo_max, hi_min, hi_max;
} Limits;

typedef struct Tile {
    int b, h, row, rows, col; /* rows: those that exist */
    int begin, end;           /* the columns worth computing, whole vectors */
    int cols;                 /* of these, the end of those that exist */
    int kind;
    int ask, asked; /* a partial tile: from where to where the mask expression is asked */
} Tile;

static int round_up(int n, int to) { return (n + to - 1) / to * to; }
static int least(int a, int b) { return a < b ? a : b; }
static int greatest(int a, int b) { return a > b ? a : b; }

static size_t take(size_t *end, size_t floats) {
    size_t at = *end;
    *end = (at + sizeof(float) * floats + FLASH_ALIGN - 1) / FLASH_ALIGN * FLASH_ALIGN;
    return at;
}

/* ---- where things lie in the workspace ---- */

typedef struct ForwardHead {
    float *k;        /* a tile of keys: (D, FLASH_COLS), transposed */
    float *v_packed; /* (Tk, d_pad), where D is no number of whole vectors */
    const float *v;  /* the values where they are read: packed, or where they came from */
    int64_t v_row;
} ForwardHead;

typedef struct ForwardThread {
    float *q, *s, *o; /* (rows, d_pad), (rows, FLASH_LD), (rows, d_pad) */
    float *max, *sum; /* (rows): of the scores; of 2^(score - max), a vector a row */
} ForwardThread;

static ForwardHead forward_head(const FlashArgs *a, const Geometry *g, int i, int number,
                                size_t *end) {
    char *base = a->workspace + g->heads_at + (size_t)i * g->head_bytes;
    const int packs = g->d_pad != a->D;
    *end = 0;
    ForwardHead h;
    h.k = (float *)(base + take(end, (size_t)g->n_k * FLASH_COLS * (size_t)a->D));
    h.v_packed = (float *)(base + take(end, packs ? (size_t)a->Tk * (size_t)g->d_pad : 0));
    h.v = packs ? h.v_packed : a->v + number / a->H * a->vs.b + number % a->H * a->vs.h;
    h.v_row = packs ? g->d_pad : a->vs.t;
    return h;
}

static ForwardThread forward_thread(const FlashArgs *a, const Geometry *g, int i, size_t *end) {
    char *base = a->workspace + g->threads_at + (size_t)i * g->thread_bytes;
    *end = 0;
    ForwardThread t;
    t.q = (float *)(base + take(end, (size_t)FLASH_ROWS * (size_t)g->d_pad));
    t.s = (float *)(base + take(end, (size_t)FLASH_ROWS * FLASH_LD));
    t.o = (float *)(base + take(end, (size_t)FLASH_ROWS * (size_t)g->d_pad));
    t.max = (float *)(base + take(end, FLASH_ROWS));
    t.sum = (float *)(base + take(end, (size_t)FLASH_ROWS * VW));
    return t;
}

typedef struct BackwardHead {
    float *q, *dout, *lse, *delta; /* (q_pad, d_pad) twice, (q_pad) twice */
    float *dq, *sums;              /* (chunks, q_pad, d_pad), (chunks, FLEX_LEARNED) */
} BackwardHead;

typedef struct BackwardThread {
    float *k_t, *v_t, *k, *dk, *dv; /* (D, FLASH_COLS) twice, (FLASH_COLS, d_pad) three times */
    float *p, *ds, *slope;          /* (rows, FLASH_LD); slope: d score' / d score */
    float *raw, *y; /* likewise: the score before the expression; d loss / d score' */
    float *sums;    /* the task's own (FLEX_LEARNED) */
} BackwardThread;

static BackwardHead backward_head(const FlashArgs *a, const Geometry *g, int i, size_t *end) {
    char *base = a->workspace + g->heads_at + (size_t)i * g->head_bytes;
    size_t n = (size_t)g->q_pad * (size_t)g->d_pad;
    *end = 0;
    BackwardHead h;
    h.q = (float *)(base + take(end, n));
    h.dout = (float *)(base + take(end, n));
    h.lse = (float *)(base + take(end, (size_t)g->q_pad));
    h.delta = (float *)(base + take(end, (size_t)g->q_pad));
    h.dq = (float *)(base + take(end, n * (size_t)g->chunks));
    h.sums = (float *)(base + take(end, (size_t)FLEX_LEARNED * (size_t)g->chunks));
    return h;
}

static BackwardThread backward_thread(const FlashArgs *a, const Geometry *g, int i, size_t *end) {
    char *base = a->workspace + g->threads_at + (size_t)i * g->thread_bytes;
    size_t t_size = (size_t)FLASH_COLS * (size_t)a->D, size = (size_t)FLASH_COLS * (size_t)g->d_pad,
           s_size = (size_t)FLASH_ROWS * FLASH_LD;
    *end = 0;
    BackwardThread t;
    t.k_t = (float *)(base + take(end, t_size));
    t.v_t = (float *)(base + take(end, t_size));
    t.k = (float *)(base + take(end, size));
    t.dk = (float *)(base + take(end, size));
    t.dv = (float *)(base + take(end, size));
    t.p = (float *)(base + take(end, s_size));
    t.ds = (float *)(base + take(end, s_size));
    t.slope = (float *)(base + take(end, FLEX_HAS_SCORE ? s_size : 0));
    t.raw = (float *)(base + take(end, FLEX_CAPTURES ? s_size : 0));
    t.y = (float *)(base + take(end, FLEX_CAPTURES ? s_size : 0));
    t.sums = 0;
    return t;
}

static Geometry geometry(const FlashArgs *a, int backward) {
    Geometry g = {.d_pad = round_up(a->D, VW),
                  .heads = a->B * a->H,
                  .n_q = (a->Tq + a->tile_rows - 1) / a->tile_rows,
                  .n_k = (a->Tk + FLASH_COLS - 1) / FLASH_COLS,
                  .q_pad = round_up(a->Tq, 4)};
    g.chunks = least(g.n_k, (15 + g.heads) / g.heads);
    if (backward) {
        backward_head(a, &g, 0, &g.head_bytes);
        backward_thread(a, &g, 0, &g.thread_bytes);
    } else {
        forward_head(a, &g, 0, 0, &g.head_bytes);
        forward_thread(a, &g, 0, &g.thread_bytes);
    }
    size_t fit = FLASH_GROUP_BYTES / g.head_bytes;
    g.group = least(g.heads, greatest(backward ? a->n_threads : 1, (int)fit));
    take(&g.heads_at, (size_t)g.n_q * sizeof(Limits) / sizeof(float));
    g.threads_at = g.heads_at + (size_t)g.group * g.head_bytes;
    g.total = g.threads_at + (size_t)a->n_threads * g.thread_bytes;
    return g;
}

static size_t tiles_workspace(const FlashArgs *a, int backward) {
    FlashArgs shape = *a;
    shape.workspace = 0;
    return geometry(&shape, backward).total;
}

/* ---- tiles and masks ---- */

static void find_limits(const FlashArgs *a, const Geometry *g) {
    Limits *l = (Limits *)a->workspace;
    for (int t = 0; a->lo && t < g->n_q; t++, l++) {
        *l = (Limits){a->Tk, 0, a->Tk, 0};
        int end = least(a->Tq, (t + 1) * a->tile_rows);
        for (int i = a->offset + t * a->tile_rows; i < a->offset + end; i++) {
            const int lo = a->lo[i] - a->first, hi = a->hi[i] - a->first;
            l->lo_min = least(l->lo_min, lo);
            l->lo_max = greatest(l->lo_max, lo);
            l->hi_min = least(l->hi_min, hi);
            l->hi_max = greatest(l->hi_max, least(hi, a->Tk));
        }
    }
}

/* A tile narrowed to what the bits of the plan see in it. */
static void narrow_by_plan(const FlashArgs *a, Tile *t, int tq, int tk) {
    enum { BITS = FLASH_COLS / FLASH_PLAN_COLS };
    const int64_t row = (int64_t)t->b * a->plan_b + (int64_t)t->h * a->plan_h + tq;
    const int64_t word = row * a->plan_words + tk * BITS / 64;
    const int shift = tk * BITS % 64;
    const unsigned all = (1u << BITS) - 1, visit = (unsigned)(a->visit[word] >> shift) & all;
    if (!visit) {
        t->kind = FLASH_SKIP;
        return;
    }
    const int first = __builtin_ctz(visit), last = 31 - __builtin_clz(visit);
    t->begin = first * FLASH_PLAN_COLS;
    t->end = round_up(least(t->cols, (last + 1) * FLASH_PLAN_COLS), VW);
    const unsigned between = (2u << last) - (1u << first);
    const unsigned ask = (((unsigned)(a->partial[word] >> shift) & all) | ~visit) & between;
    if (!ask) return;
    t->kind = FLASH_PARTIAL;
    t->ask = __builtin_ctz(ask) * FLASH_PLAN_COLS;
    t->asked = (32 - __builtin_clz(ask)) * FLASH_PLAN_COLS;
}

static Tile tile_at(const FlashArgs *a, int b, int h, int tq, int tk) {
    Tile t = {.b = b, .h = h, .row = tq * a->tile_rows, .col = tk * FLASH_COLS};
    t.rows = least(a->tile_rows, a->Tq - t.row);
    t.cols = least(FLASH_COLS, a->Tk - t.col);
    t.end = round_up(t.cols, VW);
    t.kind = FLASH_FULL;
    if (a->dense) {
        t.kind = FLASH_PARTIAL;
        t.asked = t.cols;
    } else if (a->lo) {
        Limits l = ((const Limits *)a->workspace)[tq];
        if (l.lo_min >= t.col + t.cols || l.hi_max <= t.col) {
            t.kind = FLASH_SKIP;
            return t;
        }
        if (l.lo_max > t.col || l.hi_min < t.col + t.cols) t.kind = FLASH_PARTIAL;
        t.begin = greatest(0, l.lo_min - t.col) / VW * VW;
        t.end = round_up(least(t.cols, l.hi_max - t.col), VW);
    } else if (a->visit) {
        narrow_by_plan(a, &t, tq, tk);
    }
    t.cols = least(t.cols, t.end);
    t.asked = least(t.cols, t.asked);
    return t;
}

/* Rows of scores, FLASH_LD apart; what backward wants besides, NULL in forward. */
typedef struct Scores {
    float *s, *slope, *raw;
} Scores;

/* Row i of a tile, after the product: the score expression, then the mask, then what lies beyond
 * the last key. */
static void finish_row(const FlashArgs *a, const Tile *t, int i, const Scores *x) {
    float *s = x->s + i * FLASH_LD;
    const int q = a->offset + t->row + i;
#if FLEX_HAS_SCORE || FLEX_HAS_MASK
    const FlexEnv *env = a->env;
    const int b = t->b, h = t->h, col = a->first + t->col;
#endif
#if FLEX_HAS_SCORE
    if (FLEX_CAPTURES && x->raw) memcpy(x->raw + i * FLASH_LD, s, sizeof(float) * FLASH_COLS);
    score_row(env, b, h, q, col + t->begin, t->cols - t->begin, s + t->begin,
              x->slope ? x->slope + i * FLASH_LD + t->begin : 0);
#endif
    if (t->kind == FLASH_PARTIAL) {
#if FLEX_HAS_MASK
        if (a->in_document)
            for (int j = t->ask; j < t->asked; j++)
                s[j] = flex_rest(b, h, q, col + j, env) ? s[j] : -INFINITY;
        else
            for (int j = t->ask; j < t->asked; j++)
                s[j] = flex_mask(b, h, q, col + j, env) ? s[j] : -INFINITY;
#else
        if (a->lo) {
            const int col = a->first + t->col, last = a->hi[q] - col;
            const int first = least(t->end, a->lo[q] - col);
            for (int j = t->begin; j < first; j++) s[j] = -INFINITY;
            for (int j = greatest(last, t->begin); j < t->end; j++) s[j] = -INFINITY;
        }
#endif
    }
    if (t->cols < t->end) vec_fill_from(s + t->end - VW, t->cols - (t->end - VW), -INFINITY);
}

/* x->s = the tile's scores in units of log 2, -inf where hidden. */
static void tile_scores(const FlashArgs *a, const Geometry *g, const Tile *t, const float *q,
                        const float *k_t, const Scores *x) {
    product(&(Product){.M = round_up(t->rows, 4),
                       .N = t->end - t->begin,
                       .K = a->D,
                       .A = q,
                       .a_row = g->d_pad,
                       .a_col = 1,
                       .B = k_t + t->begin,
                       .ldb = FLASH_COLS,
                       .C = x->s + t->begin,
                       .ldc = FLASH_LD});
    if (FLEX_HAS_SCORE || t->kind == FLASH_PARTIAL || t->cols < t->end)
        for (int i = 0; i < t->rows; i++) finish_row(a, t, i, x);
}

/* ---- forward ---- */

/* One row of a tile: s becomes p = 2^(s - max). Where the maximum grows, what was summed before
 * shrinks; while it grows by less than SLACK nothing is done, p just exceeds 1 a little: numbers
 * between 1 and 2^SLACK are as exact, and a branch that is seldom taken is seldom mispredicted. */
static void softmax_row(float *s, int n, float *max, float *sum, float *o, int d_pad) {
    Vec m = vec_load(s);
    for (int j = VW; j < n; j += VW) m = vec_max(m, vec_load(s + j));
    float row_max = vec_reduce_max(m);
    Vec total = vec_load(sum);
    if (row_max > *max + SLACK) {
        Vec shrink = vec_exp2(vec_all(*max - row_max));
        *max = row_max;
        total *= shrink;
        for (int d = 0; d < d_pad; d += VW) vec_store(o + d, vec_load(o + d) * shrink);
    }
    Vec base = vec_all(*max > -INFINITY ? *max : 0.0f); /* nothing visible yet: all p are 0 */
    for (int j = 0; j < n; j += VW) {
        Vec p = vec_exp2(vec_load(s + j) - base);
        vec_store(s + j, p);
        total += p;
    }
    vec_store(sum, total);
}

static void forward_rows(const FlashArgs *a, const Geometry *g, ForwardHead head, ForwardThread w,
                         int b, int h, int tq) {
    const int d_pad = g->d_pad, row = tq * a->tile_rows, rows = least(a->tile_rows, a->Tq - row);
    const float factor = a->scale * (FLEX_HAS_SCORE ? 1.0f : LOG2E);
    pack_rows(w.q, d_pad, a->q + b * a->qs.b + h * a->qs.h + row * a->qs.t, a->qs.t, rows,
              round_up(rows, 4), a->D, factor);
    memset(w.o, 0, sizeof(float) * (size_t)(round_up(rows, 4) * d_pad));
    memset(w.sum, 0, sizeof(float) * (size_t)(rows * VW));
    for (int i = 0; i < rows; i++) w.max[i] = -INFINITY;

    for (int tk = 0; tk < g->n_k; tk++) {
        Tile t = tile_at(a, b, h, tq, tk);
        if (t.kind == FLASH_SKIP) continue;
        tile_scores(a, g, &t, w.q, head.k + (int64_t)tk * FLASH_COLS * a->D, &(Scores){.s = w.s});
        for (int i = 0; i < rows; i++)
            softmax_row(w.s + i * FLASH_LD + t.begin, t.end - t.begin, w.max + i, w.sum + i * VW,
                        w.o + i * d_pad, d_pad);
        product(&(Product){.M = round_up(rows, 4),
                           .N = d_pad,
                           .K = t.cols - t.begin,
                           .A = w.s + t.begin,
                           .a_row = FLASH_LD,
                           .a_col = 1,
                           .B = head.v + (t.col + t.begin) * head.v_row,
                           .ldb = head.v_row,
                           .C = w.o,
                           .ldc = d_pad,
                           .add = 1});
    }
    for (int i = 0; i < rows; i++) {
        float sum = vec_reduce_add(vec_load(w.sum + i * VW)), share = sum == 0 ? 0 : 1 / sum;
        float *o = a->out + b * a->os.b + h * a->os.h + (row + i) * a->os.t;
        for (int d = 0; d < a->D; d++) o[d] = w.o[i * d_pad + d] * share;
        a->lse[((int64_t)b * a->H + h) * a->lse_rows + row + i] = w.max[i] * LN2 + logf(sum);
    }
}

/* A tile of keys, and of values where they are packed. */
static void forward_pack(const FlashArgs *a, const Geometry *g, ForwardHead head, int b, int h,
                         int tk) {
    const int col = tk * FLASH_COLS, cols = least(FLASH_COLS, a->Tk - col);
    pack_transposed(head.k + (int64_t)col * a->D, FLASH_COLS,
                    a->k + b * a->ks.b + h * a->ks.h + col * a->ks.t, a->ks.t, cols,
                    round_up(cols, VW), a->D);
    if (head.v == head.v_packed)
        pack_rows(head.v_packed + (int64_t)col * g->d_pad, g->d_pad,
                  a->v + b * a->vs.b + h * a->vs.h + col * a->vs.t, a->vs.t, cols, cols, a->D,
                  1.0f);
}

static void tiles_forward(const FlashArgs *a) {
    const Geometry g = geometry(a, 0);
    find_limits(a, &g);
#pragma omp parallel num_threads(a->n_threads)
    {
        size_t unused;
        ForwardThread w = forward_thread(a, &g, omp_get_thread_num(), &unused);
        for (int first = 0; first < g.heads; first += g.group) {
            const int n = least(g.group, g.heads - first);
#pragma omp for schedule(dynamic, 1)
            for (int i = 0; i < n * g.n_k; i++) {
                const int number = first + i / g.n_k;
                forward_pack(a, &g, forward_head(a, &g, i / g.n_k, number, &unused), number / a->H,
                             number % a->H, i % g.n_k);
            }
            /* the last queries see the most keys under a causal mask: the longest tasks first */
#pragma omp for schedule(dynamic, 1)
            for (int i = 0; i < n * g.n_q; i++) {
                const int number = first + i / g.n_q;
                forward_rows(a, &g, forward_head(a, &g, i / g.n_q, number, &unused), w,
                             number / a->H, number % a->H, g.n_q - 1 - i % g.n_q);
            }
        }
    }
}

/* ---- backward ---- */

/* The queries of one tile: packed, with delta = rowsum(dout out) and the log-sum-exp in units of
 * log 2 (+inf where there is none, so that p = 0). */
static void backward_pack(const FlashArgs *a, const Geometry *g, BackwardHead head, int b, int h,
                          int tq) {
    const int row = tq * a->tile_rows, rows = least(a->tile_rows, a->Tq - row);
    const float factor = a->scale * (FLEX_HAS_SCORE ? 1.0f : LOG2E);
    const float *lse = a->lse + ((int64_t)b * a->H + h) * a->lse_rows;
    pack_rows(head.q + (int64_t)row * g->d_pad, g->d_pad,
              a->q + b * a->qs.b + h * a->qs.h + row * a->qs.t, a->qs.t, rows, round_up(rows, 4),
              a->D, factor);
    pack_rows(head.dout + (int64_t)row * g->d_pad, g->d_pad,
              a->dout + b * a->os.b + h * a->os.h + row * a->os.t, a->os.t, rows, round_up(rows, 4),
              a->D, 1.0f);
    for (int i = row; i < row + rows; i++) {
        const float *o = a->out + b * a->os.b + h * a->os.h + i * a->os.t,
                    *d_o = head.dout + (int64_t)i * g->d_pad;
        float delta = 0;
#pragma omp simd reduction(+ : delta)
        for (int d = 0; d < a->D; d++) delta += o[d] * d_o[d];
        head.delta[i] = delta;
        head.lse[i] = lse[i] == -INFINITY ? INFINITY : lse[i] * LOG2E;
    }
}

/* A vector of p: it holds scores and becomes 2^(s - lse); ds holds d loss / d p and becomes d loss
 * / d s; score: becomes d loss / d score', where that is asked for. */
FLASH_INLINE void backward_cells(float *p, float *ds, const float *slope, float *score, Vec lse,
                                 Vec delta) {
    Vec s = vec_load(p), x = vec_exp2(s - lse), y = x * (vec_load(ds) - delta);
    (void)score;
#if FLEX_CAPTURES
    vec_store(score, (Vec)((VecInt)y & ~(s == -INFINITY)));
#endif
#if FLEX_HAS_SCORE
    /* a slope is anything, infinite too, where the score is hidden */
    y = (Vec)((VecInt)(y * vec_load(slope)) & ~(s == -INFINITY));
#else
    (void)slope;
#endif
    vec_store(p, x);
    vec_store(ds, y);
}

static void backward_row(float *p, float *ds, const float *slope, float *score, int n, float lse,
                         float delta) {
    const Vec l = vec_all(lse), d = vec_all(delta);
    for (int j = 0; j < n; j += VW) backward_cells(p + j, ds + j, slope + j, score + j, l, d);
}

static void backward_tile(const FlashArgs *a, const Geometry *g, const Tile *t, BackwardHead head,
                          BackwardThread w, float *dq) {
    const int d_pad = g->d_pad, rows = round_up(t->rows, 4), n = t->end - t->begin;
    const float *q = head.q + (int64_t)t->row * d_pad, *d_o = head.dout + (int64_t)t->row * d_pad;
    float *p = w.p + t->begin, *ds = w.ds + t->begin;
    tile_scores(a, g, t, q, w.k_t, &(Scores){w.p, FLEX_HAS_SCORE ? w.slope : 0, w.raw});
    product(&(Product){.M = rows,
                       .N = n,
                       .K = a->D,
                       .A = d_o,
                       .a_row = d_pad,
                       .a_col = 1,
                       .B = w.v_t + t->begin,
                       .ldb = FLASH_COLS,
                       .C = ds,
                       .ldc = FLASH_LD});
    for (int i = 0; i < t->rows; i++)
        backward_row(p + i * FLASH_LD, ds + i * FLASH_LD, w.slope + i * FLASH_LD + t->begin,
                     w.y + i * FLASH_LD + t->begin, n, head.lse[t->row + i],
                     head.delta[t->row + i]);
    if (FLEX_CAPTURES && a->dlearned)
        capture(&(Captured){a->env, t->b, t->h, a->offset + t->row, a->first + t->col + t->begin,
                            t->rows, t->cols - t->begin, w.raw + t->begin, w.y + t->begin},
                w.sums);
    for (int i = t->rows; i < rows; i++) {
        memset(p + i * FLASH_LD, 0, sizeof(float) * (size_t)n);
        memset(ds + i * FLASH_LD, 0, sizeof(float) * (size_t)n);
    }
    Product into_keys = {.M = n,
                         .N = d_pad,
                         .K = rows,
                         .a_row = 1,
                         .a_col = FLASH_LD,
                         .ldb = d_pad,
                         .ldc = d_pad,
                         .add = 1};
    into_keys.A = p, into_keys.B = d_o, into_keys.C = w.dv + t->begin * d_pad;
    product(&into_keys);
    into_keys.A = ds, into_keys.B = q, into_keys.C = w.dk + t->begin * d_pad;
    product(&into_keys);
    product(&(Product){.M = rows,
                       .N = d_pad,
                       .K = n,
                       .A = ds,
                       .a_row = FLASH_LD,
                       .a_col = 1,
                       .B = w.k + t->begin * d_pad,
                       .ldb = d_pad,
                       .C = dq + (int64_t)t->row * d_pad,
                       .ldc = d_pad,
                       .add = 1});
}

/* One chunk of a head: every chunks-th tile of keys. */
static void backward_keys(const FlashArgs *a, const Geometry *g, BackwardHead head,
                          BackwardThread w, int b, int h, int chunk) {
    const size_t dq_size = (size_t)g->q_pad * (size_t)g->d_pad;
    float *dq = head.dq + (size_t)chunk * dq_size;
    memset(dq, 0, sizeof(float) * dq_size);
    for (int tk = chunk; tk < g->n_k; tk += g->chunks) {
        const int col = tk * FLASH_COLS, cols = least(FLASH_COLS, a->Tk - col);
        const int cols_pad = round_up(cols, VW);
        const int64_t at_k = b * a->ks.b + h * a->ks.h + col * a->ks.t,
                      at_v = b * a->vs.b + h * a->vs.h + col * a->vs.t;
        pack_transposed(w.k_t, FLASH_COLS, a->k + at_k, a->ks.t, cols, cols_pad, a->D);
        pack_transposed(w.v_t, FLASH_COLS, a->v + at_v, a->vs.t, cols, cols_pad, a->D);
        pack_rows(w.k, g->d_pad, a->k + at_k, a->ks.t, cols, cols_pad, a->D, 1.0f);
        memset(w.dk, 0, sizeof(float) * (size_t)(cols_pad * g->d_pad));
        memset(w.dv, 0, sizeof(float) * (size_t)(cols_pad * g->d_pad));
        for (int tq = 0; tq < g->n_q; tq++) {
            Tile t = tile_at(a, b, h, tq, tk);
            if (t.kind != FLASH_SKIP) backward_tile(a, g, &t, head, w, dq);
        }
        const float back = FLEX_HAS_SCORE ? 1.0f : LN2; /* the packed queries hold log2(e) */
        for (int j = 0; j < cols; j++) {
            float *dk = a->dk ? a->dk + at_k + j * a->ks.t : 0,
                  *dv = a->dv ? a->dv + at_v + j * a->vs.t : 0;
            for (int d = 0; dk && d < a->D; d++) dk[d] = w.dk[j * g->d_pad + d] * back;
            for (int d = 0; dv && d < a->D; d++) dv[d] = w.dv[j * g->d_pad + d];
        }
    }
}

static void add_chunks(const FlashArgs *a, const Geometry *g, BackwardHead head, int b, int h,
                       int tq) {
    const int row = tq * a->tile_rows, rows = least(a->tile_rows, a->Tq - row);
    for (int i = row; i < row + rows; i++) {
        float *dq = a->dq + b * a->qs.b + h * a->qs.h + i * a->qs.t;
        const float *part = head.dq + (int64_t)i * g->d_pad;
        const int64_t next = (int64_t)g->q_pad * g->d_pad;
        for (int d = 0; d < a->D; d++) {
            float sum = part[d];
            for (int n = 1; n < g->chunks; n++) sum += part[n * next + d];
            dq[d] = a->scale * sum;
        }
    }
}

static void tiles_backward(const FlashArgs *a) {
    const Geometry g = geometry(a, 1);
    find_limits(a, &g);
#pragma omp parallel num_threads(a->n_threads)
    {
        size_t unused;
        BackwardThread w = backward_thread(a, &g, omp_get_thread_num(), &unused);
        for (int first = 0; first < g.heads; first += g.group) {
            const int n = least(g.group, g.heads - first);
#pragma omp for schedule(dynamic, 1)
            for (int i = 0; i < n * g.n_q; i++) {
                const int head = first + i / g.n_q;
                backward_pack(a, &g, backward_head(a, &g, i / g.n_q, &unused), head / a->H,
                              head % a->H, i % g.n_q);
            }
#pragma omp for schedule(dynamic, 1)
            for (int i = 0; i < n * g.chunks; i++) {
                const int number = first + i / g.chunks;
                const BackwardHead head = backward_head(a, &g, i / g.chunks, &unused);
                w.sums = head.sums + (int64_t)(i % g.chunks) * FLEX_LEARNED;
                memset(w.sums, 0, sizeof(float) * FLEX_LEARNED);
                backward_keys(a, &g, head, w, number / a->H, number % a->H, i % g.chunks);
            }
#pragma omp for schedule(static)
            for (int i = 0; i < (a->dq ? n * g.n_q : 0); i++) {
                const int head = first + i / g.n_q;
                add_chunks(a, &g, backward_head(a, &g, i / g.n_q, &unused), head / a->H,
                           head % a->H, i % g.n_q);
            }
            for (int i = 0; i < (a->dlearned ? n : 0); i++)
                add_sums(a->dlearned, backward_head(a, &g, i, &unused).sums, g.chunks);
        }
    }
}

#endif
