/* Attention of documents: rows that see only rows of their own document, without padding.
 *
 * By a document's length:
 *   one row             p = 1, so out = v and dv = dout; only its score is worked out, for lse
 *   FLASH_FEW or fewer  whole, with all heads, by inner products of rows where they lie
 *   FLASH_ALONE or fewer  the tiles of flash.h relative to the document, by one thread
 *   more                the tiles of flash.h by all threads, one document after the other
 * Threads share all but the longest by tasks: documents in a row, or some heads of a long one, of
 * about equal work. The list is made in O(documents) and kept in the workspace. Each head of a
 * document is computed alone, so neither the tasks nor the threads change a bit of it. (Where the
 * expression learns, each task has sums of its own: then tasks do not depend on the threads.)
 *
 * Needs flash.h before it; also compiled at run time for flex. */
#if !defined(KERNELS_CPU_FLASH_DOCS_H) && !defined(FLASH_TEXT_ONLY)
#define KERNELS_CPU_FLASH_DOCS_H

#if FLEX_BY_DOCUMENT

enum { FLASH_FEW = 12, FLASH_ALONE = 256, TASKS_A_THREAD = 8, TASKS_THAT_LEARN = 64 };

typedef struct DocumentTask {
    int b, doc, doc_end, head, head_end;
} DocumentTask;

/* A document of a few rows. Its scores lie as (key, lane); lane i H + h is query i's of head h, so
 * that the softmax over keys runs in vectors of queries and heads. */
typedef struct Few {
    int b, first, n, lanes, ld; /* lanes n H; ld: whole vectors of them */
    int *row, *head;            /* (lanes): the query of each, by position, and its head */
    float *p, *ds, *slope;      /* (n, ld) */
    float *raw, *y;             /* (n, ld): scores before the expression; d loss / d score' */
    float *sums;                /* the task's own (FLEX_LEARNED) */
    float *lse, *delta;         /* (ld); forward: the largest score, and the sum of 2^(s - it) */
} Few;

static Few few_space(const FlashArgs *a, char *base, size_t *end) {
    const size_t lanes = (size_t)round_up(FLASH_FEW * a->H, VW);
    *end = 0;
    Few f = {0};
    f.row = (int *)(base + take(end, lanes));
    f.head = (int *)(base + take(end, lanes));
    f.p = (float *)(base + take(end, FLASH_FEW * lanes));
    f.ds = (float *)(base + take(end, FLASH_FEW * lanes));
    f.slope = (float *)(base + take(end, FLEX_HAS_SCORE ? FLASH_FEW * lanes : 0));
    f.raw = (float *)(base + take(end, FLEX_CAPTURES ? FLASH_FEW * lanes : 0));
    f.y = (float *)(base + take(end, FLEX_CAPTURES ? FLASH_FEW * lanes : 0));
    f.lse = (float *)(base + take(end, lanes));
    f.delta = (float *)(base + take(end, lanes));
    return f;
}

/* ---- one document's arguments for flash.h ---- */

static FlashArgs document_shape(const FlashArgs *a, int n) {
    FlashArgs d = *a;
    d.Tq = d.Tk = n;
    d.tile_rows = flash_tile_rows(n);
    return d;
}

static FlashArgs document_args(const FlashArgs *a, int doc, char *workspace) {
    const int begin = a->offsets[doc];
    FlashArgs d = document_shape(a, a->offsets[doc + 1] - begin);
    d.offset = d.first = begin;
    d.offsets = 0;
    d.in_document = 1;
    d.dense = FLEX_HAS_REST;
    d.q += begin * a->qs.t;
    d.k += begin * a->ks.t;
    d.v += begin * a->vs.t;
    d.out += begin * a->os.t;
    d.lse += begin;
    if (d.dout) d.dout += begin * a->os.t;
    if (d.dq) d.dq += begin * a->qs.t;
    if (d.dk) d.dk += begin * a->ks.t;
    if (d.dv) d.dv += begin * a->vs.t;
    d.workspace = workspace;
    return d;
}

/* For one thread that packs one head after the other. */
static Geometry alone_geometry(const FlashArgs *d, int backward) {
    FlashArgs one = *d;
    one.n_threads = 1;
    Geometry g = geometry(&one, backward);
    g.threads_at = g.heads_at + g.head_bytes;
    g.group = 1;
    g.total = g.threads_at + g.thread_bytes;
    return g;
}

static void document_forward(const FlashArgs *a, const DocumentTask *t, int doc, char *scratch) {
    const FlashArgs d = document_args(a, doc, scratch);
    const Geometry g = alone_geometry(&d, 0);
    size_t unused;
    const ForwardThread w = forward_thread(&d, &g, 0, &unused);
    find_limits(&d, &g);
    for (int h = t->head; h < t->head_end; h++) {
        const ForwardHead head = forward_head(&d, &g, 0, t->b * a->H + h, &unused);
        for (int tk = 0; tk < g.n_k; tk++) forward_pack(&d, &g, head, t->b, h, tk);
        for (int tq = 0; tq < g.n_q; tq++) forward_rows(&d, &g, head, w, t->b, h, tq);
    }
}

static void document_backward(const FlashArgs *a, const DocumentTask *t, int doc, char *scratch,
                              float *sums) {
    const FlashArgs d = document_args(a, doc, scratch);
    const Geometry g = alone_geometry(&d, 1);
    size_t unused;
    BackwardThread w = backward_thread(&d, &g, 0, &unused);
    const BackwardHead head = backward_head(&d, &g, 0, &unused);
    w.sums = sums;
    find_limits(&d, &g);
    for (int h = t->head; h < t->head_end; h++) {
        for (int tq = 0; tq < g.n_q; tq++) backward_pack(&d, &g, head, t->b, h, tq);
        for (int n = 0; n < g.chunks; n++) backward_keys(&d, &g, head, w, t->b, h, n);
        for (int tq = 0; tq < (d.dq ? g.n_q : 0); tq++) add_chunks(&d, &g, head, t->b, h, tq);
    }
}

/* ---- one row ---- */

FLASH_INLINE float row_dot(const float *x, const float *y, int D) {
    Vec sum = {0};
    for (int d = 0; d < D; d += VW)
        sum += vec_load_some(x + d, D - d) * vec_load_some(y + d, D - d);
    return vec_reduce_add(sum);
}

/* The row's score with itself, natural; -inf where it is hidden from itself. */
static inline float own_score(const FlashArgs *a, int b, int h, int row) {
    float s = a->scale * row_dot(a->q + b * a->qs.b + row * a->qs.t + h * a->qs.h,
                                 a->k + b * a->ks.b + row * a->ks.t + h * a->ks.h, a->D);
#if FLEX_HAS_SCORE
    s = flex_score(s, b, h, row, row, a->env);
#endif
#if FLEX_HAS_REST
    if (!flex_rest(b, h, row, row, a->env)) s = -INFINITY;
#endif
    if (a->lo && (a->lo[row] > row || a->hi[row] <= row)) s = -INFINITY;
    return s;
}

/* The softmax of one score: 1, 0 for -inf, and NaN for what has none. */
static inline float own_share(float s) { return s == -INFINITY ? 0 : s - s + 1; }

static void single_forward(const FlashArgs *a, int b, int row) {
    for (int h = 0; h < a->H; h++) {
        const float s = own_score(a, b, h, row), p = own_share(s);
        const float *v = a->v + b * a->vs.b + row * a->vs.t + h * a->vs.h;
        float *out = a->out + b * a->os.b + row * a->os.t + h * a->os.h;
        for (int d = 0; d < a->D; d += VW)
            vec_store_some(out + d, p * vec_load_some(v + d, a->D - d), a->D - d);
        a->lse[((int64_t)b * a->H + h) * a->lse_rows + row] = s;
    }
}

/* d loss / d s is 0, or NaN where lse is. (A NaN in v or dout alone reaches out and dv, as it must,
 * but not dq and dk, where the general formula would have 0 times it.) */
static void single_backward(const FlashArgs *a, int b, int row, float *sums) {
    for (int h = 0; h < a->H; h++) {
        const float p = own_share(a->lse[((int64_t)b * a->H + h) * a->lse_rows + row]);
        const Vec zero = vec_all(p - p);
        if (FLEX_CAPTURES && p != p) capture_pair(a->env, b, h, row, row, p, p, sums);
        const float *dout = a->dout + b * a->os.b + row * a->os.t + h * a->os.h;
        float *dq = a->dq ? a->dq + b * a->qs.b + row * a->qs.t + h * a->qs.h : 0,
              *dk = a->dk ? a->dk + b * a->ks.b + row * a->ks.t + h * a->ks.h : 0,
              *dv = a->dv ? a->dv + b * a->vs.b + row * a->vs.t + h * a->vs.h : 0;
        for (int d = 0; d < a->D; d += VW) {
            const int left = a->D - d;
            if (dq) vec_store_some(dq + d, zero, left);
            if (dk) vec_store_some(dk + d, zero, left);
            if (dv) vec_store_some(dv + d, p * vec_load_some(dout + d, left), left);
        }
    }
}

/* ---- a few rows ---- */

/* to (key, lane) = factor x y', for rows x of the queries and y of the keys; lanes beyond are 0. */
FLASH_INLINE void few_products(const FlashArgs *a, const Few *f, float *to, float factor,
                               const float *x, FlashStride xs, const float *y, FlashStride ys,
                               const int D) {
    x += f->b * xs.b + f->first * xs.t;
    y += f->b * ys.b + f->first * ys.t;
    for (int i = 0; i < f->n; i++)
        for (int h = 0; h < a->H; h++)
            for (int j = 0; j < f->n; j++)
                to[j * f->ld + i * a->H + h] =
                    factor * row_dot(x + i * xs.t + h * xs.h, y + j * ys.t + h * ys.h, D);
    for (int j = 0; j < f->n; j++)
        for (int c = f->lanes; c < f->ld; c++) to[j * f->ld + c] = 0;
}

/* to = factor (the sum over n rows of w x): w and x with the steps given. */
FLASH_INLINE void few_sum(float *to, const float *w, int w_step, const float *x, int64_t x_step,
                          int n, float factor, const int D) {
    for (int d = 0; d < D; d += VW) {
        Vec sum = {0};
        for (int i = 0; i < n; i++) sum += w[i * w_step] * vec_load_some(x + i * x_step + d, D - d);
        vec_store_some(to + d, sum * factor, D - d);
    }
}

/* f->p = the scores in units of log 2, -inf where hidden. slope NULL: not wanted. */
FLASH_INLINE void few_scores(const FlashArgs *a, const Few *f, float *slope, const int D) {
    few_products(a, f, f->p, a->scale * (FLEX_HAS_SCORE ? 1.0f : LOG2E), a->q, a->qs, a->k, a->ks,
                 D);
    for (int j = 0; j < f->n; j++) {
        float *s = f->p + j * f->ld;
        const int key = f->first + j;
        if (FLEX_CAPTURES && slope) memcpy(f->raw + j * f->ld, s, sizeof(float) * (size_t)f->ld);
        (void)s, (void)key, (void)slope;
#if FLEX_HAS_SCORE
        for (int c = 0; c < (slope ? f->lanes : 0); c++)
            slope[j * f->ld + c] =
                flex_score_grad(s[c], f->b, f->head[c], f->first + f->row[c], key, a->env);
        for (int c = 0; c < f->lanes; c++)
            s[c] = LOG2E * flex_score(s[c], f->b, f->head[c], f->first + f->row[c], key, a->env);
#endif
#if FLEX_HAS_REST
        for (int c = 0; c < f->lanes; c++)
            s[c] =
                flex_rest(f->b, f->head[c], f->first + f->row[c], key, a->env) ? s[c] : -INFINITY;
#endif
        for (int c = 0; c < (a->lo ? f->lanes : 0); c++) {
            const int q = f->first + f->row[c];
            s[c] = a->lo[q] <= key && key < a->hi[q] ? s[c] : -INFINITY;
        }
    }
}

FLASH_INLINE void few_forward(const FlashArgs *a, const Few *f, const int D) {
    const int ld = f->ld, n = f->n;
    few_scores(a, f, 0, D);
    for (int c = 0; c < ld; c += VW) {
        Vec max = vec_load(f->p + c), sum = {0};
        for (int j = 1; j < n; j++) max = vec_max(max, vec_load(f->p + j * ld + c));
        const VecInt hidden = max == -INFINITY;
        const Vec base = (Vec)((VecInt)max & ~hidden);
        for (int j = 0; j < n; j++) {
            const Vec p = vec_exp2(vec_load(f->p + j * ld + c) - base);
            vec_store(f->p + j * ld + c, p);
            sum += p;
        }
        const Vec share = (Vec)((VecInt)(1 / sum) & ~hidden);
        for (int j = 0; j < n; j++)
            vec_store(f->p + j * ld + c, vec_load(f->p + j * ld + c) * share);
        vec_store(f->lse + c, max * LN2);
        vec_store(f->delta + c, sum);
    }
    for (int i = 0, c = 0; i < n; i++)
        for (int h = 0; h < a->H; h++, c++) {
            const int row = f->first + i;
            few_sum(a->out + f->b * a->os.b + row * a->os.t + h * a->os.h, f->p + c, ld,
                    a->v + f->b * a->vs.b + f->first * a->vs.t + h * a->vs.h, a->vs.t, n, 1, D);
            a->lse[((int64_t)f->b * a->H + h) * a->lse_rows + row] = f->lse[c] + logf(f->delta[c]);
        }
}

static inline void few_learn(const FlashArgs *a, const Few *f) {
    for (int j = 0; j < f->n; j++)
        for (int c = 0; c < f->lanes; c++) {
            const float y = f->y[j * f->ld + c];
            if (y != 0) /* hidden: its slope is anything, infinite too */
                capture_pair(a->env, f->b, f->head[c], f->first + f->row[c], f->first + j,
                             f->raw[j * f->ld + c], y, f->sums);
        }
}

FLASH_INLINE void few_backward(const FlashArgs *a, const Few *f, const int D) {
    const int ld = f->ld, n = f->n, H = a->H;
    const float *q = a->q + f->b * a->qs.b + f->first * a->qs.t,
                *k = a->k + f->b * a->ks.b + f->first * a->ks.t,
                *out = a->out + f->b * a->os.b + f->first * a->os.t,
                *dout = a->dout + f->b * a->os.b + f->first * a->os.t;
    few_scores(a, f, f->slope, D);
    few_products(a, f, f->ds, 1, a->dout, a->os, a->v, a->vs, D);
    for (int c = f->lanes; c < ld; c++) f->lse[c] = f->delta[c] = 0;
    for (int i = 0, c = 0; i < n; i++)
        for (int h = 0; h < H; h++, c++) {
            const int64_t at = i * a->os.t + h * a->os.h;
            const float lse = a->lse[((int64_t)f->b * H + h) * a->lse_rows + f->first + i];
            f->lse[c] = lse == -INFINITY ? INFINITY : lse * LOG2E;
            f->delta[c] = row_dot(out + at, dout + at, D);
        }
    for (int j = 0; j < n; j++)
        for (int c = 0; c < ld; c += VW)
            backward_cells(f->p + j * ld + c, f->ds + j * ld + c, f->slope + j * ld + c,
                           f->y + j * ld + c, vec_load(f->lse + c), vec_load(f->delta + c));
    if (FLEX_CAPTURES && a->dlearned) few_learn(a, f);
    for (int i = 0, c = 0; i < n; i++)
        for (int h = 0; h < H; h++, c++) {
            const int64_t at_q = f->b * a->qs.b + (f->first + i) * a->qs.t + h * a->qs.h,
                          at_k = f->b * a->ks.b + (f->first + i) * a->ks.t + h * a->ks.h,
                          at_v = f->b * a->vs.b + (f->first + i) * a->vs.t + h * a->vs.h;
            const float *ds = f->ds + i * ld + h, *p = f->p + i * ld + h; /* of key i */
            if (a->dq)
                few_sum(a->dq + at_q, f->ds + c, ld, k + h * a->ks.h, a->ks.t, n, a->scale, D);
            if (a->dk) few_sum(a->dk + at_k, ds, H, q + h * a->qs.h, a->qs.t, n, a->scale, D);
            if (a->dv) few_sum(a->dv + at_v, p, H, dout + h * a->os.h, a->os.t, n, 1, D);
        }
}

/* ---- tasks ---- */

/* About what a head of a document of n rows costs: its rows are read and written, which a small
 * product hides. */
static double document_cost(int n) { return (double)n * (n + 32); }

static void add_task(DocumentTask *task, int *made, DocumentTask t) {
    if (task) task[*made] = t;
    *made += 1;
}

/* Makes the list in `task` (NULL: counts only) and returns its length: at most B n_docs + 3
 * TASKS_A_THREAD n_threads, since a document that is split into heads has more than a task's share
 * of the work. */
static int make_tasks(const FlashArgs *a, DocumentTask *task) {
    double total = 0;
    for (int d = 0; d < a->n_docs; d++) {
        const int n = a->offsets[d + 1] - a->offsets[d];
        if (n <= FLASH_ALONE) total += document_cost(n);
    }
    const int wanted = FLEX_CAPTURES ? TASKS_THAT_LEARN : TASKS_A_THREAD * a->n_threads;
    const double share = total * a->B / wanted;
    int made = 0;
    for (int b = 0; b < a->B; b++) {
        double cost = 0;
        int begin = 0; /* documents from here on are in no task yet */
        for (int d = 0; d < a->n_docs; d++) {
            const int n = a->offsets[d + 1] - a->offsets[d];
            const double own = document_cost(n);
            const int alone = n > FLASH_ALONE || (n > FLASH_FEW && own > share);
            if (!alone) cost += own;
            if (begin < d + !alone && (alone || cost >= share || d == a->n_docs - 1))
                add_task(task, &made, (DocumentTask){b, begin, d + !alone, 0, a->H});
            if (alone || cost >= share) begin = d + 1, cost = 0;
            const int heads = greatest(1, (int)(a->H * share / own));
            for (int h = 0; alone && n <= FLASH_ALONE && h < a->H; h += heads)
                add_task(task, &made, (DocumentTask){b, d, d + 1, h, least(a->H, h + heads)});
        }
    }
    return made;
}

static void run_task(const FlashArgs *a, const DocumentTask *t, Few f, char *scratch,
                     int backward) {
    for (int doc = t->doc; doc < t->doc_end; doc++) {
        f.b = t->b;
        f.first = a->offsets[doc];
        f.n = a->offsets[doc + 1] - f.first;
        f.lanes = f.n * a->H;
        f.ld = round_up(f.lanes, VW);
        if (f.n == 1)
            backward ? single_backward(a, t->b, f.first, f.sums) : single_forward(a, t->b, f.first);
        else if (f.n > FLASH_FEW)
            backward ? document_backward(a, t, doc, scratch, f.sums)
                     : document_forward(a, t, doc, scratch);
        else if (a->D == 16) /* known when compiled: rows of one vector, or of few */
            backward ? few_backward(a, &f, 16) : few_forward(a, &f, 16);
        else
            backward ? few_backward(a, &f, a->D) : few_forward(a, &f, a->D);
    }
}

/* The workspace of all but the longest documents: the list of tasks, then each thread's scratch,
 * then the tasks' sums. */
typedef struct TaskSpace {
    size_t few_bytes, thread_bytes, threads_at, sums_at, total;
} TaskSpace;

static TaskSpace task_space(const FlashArgs *a, int backward) {
    const FlashArgs longest = document_shape(a, least(a->longest, FLASH_ALONE));
    const size_t learn = FLEX_CAPTURES ? (size_t)make_tasks(a, 0) : 0;
    const size_t tasks =
        learn + (size_t)a->B * (size_t)a->n_docs + 3 * TASKS_A_THREAD * (size_t)a->n_threads;
    TaskSpace s = {0};
    few_space(a, 0, &s.few_bytes);
    s.thread_bytes = s.few_bytes + alone_geometry(&longest, backward).total;
    take(&s.threads_at, tasks * sizeof(DocumentTask) / sizeof(float));
    s.total = s.sums_at = s.threads_at + (size_t)a->n_threads * s.thread_bytes;
    if (backward) take(&s.total, learn * FLEX_LEARNED);
    return s;
}

static size_t documents_workspace(const FlashArgs *a, int backward) {
    size_t most = task_space(a, backward).total;
    for (int d = 0; d < (a->longest > FLASH_ALONE ? a->n_docs : 0); d++) {
        const FlashArgs one = document_shape(a, a->offsets[d + 1] - a->offsets[d]);
        const size_t tiles = one.Tq > FLASH_ALONE ? tiles_workspace(&one, backward) : 0;
        if (most < tiles) most = tiles;
    }
    return most;
}

static void run_documents(const FlashArgs *a, int backward) {
    for (int d = 0; d < (a->longest > FLASH_ALONE ? a->n_docs : 0); d++) {
        if (a->offsets[d + 1] - a->offsets[d] <= FLASH_ALONE) continue;
        const FlashArgs one = document_args(a, d, a->workspace);
        (backward ? tiles_backward : tiles_forward)(&one);
    }
    const TaskSpace s = task_space(a, backward);
    DocumentTask *task = (DocumentTask *)a->workspace;
    const int n_tasks = make_tasks(a, task);
#pragma omp parallel num_threads(a->n_threads)
    {
        char *scratch = a->workspace + s.threads_at + (size_t)omp_get_thread_num() * s.thread_bytes;
        size_t unused;
        Few f = few_space(a, scratch, &unused);
        for (int c = 0; c < FLASH_FEW * a->H; c++) f.row[c] = c / a->H, f.head[c] = c % a->H;
        float *sums = (float *)(a->workspace + s.sums_at);
#pragma omp for schedule(dynamic, 1)
        for (int i = 0; i < n_tasks; i++) {
            f.sums = sums + (int64_t)i * FLEX_LEARNED;
            if (backward) memset(f.sums, 0, sizeof(float) * FLEX_LEARNED);
            run_task(a, &task[i], f, scratch + s.few_bytes, backward);
        }
        if (backward && a->dlearned) add_sums(a->dlearned, sums, n_tasks);
    }
}

#endif

/* ---- with documents or without ---- */

static size_t flash_workspace(const FlashArgs *a, int backward) {
#if FLEX_BY_DOCUMENT
    if (a->offsets) return documents_workspace(a, backward);
#endif
    return tiles_workspace(a, backward);
}

static void flash_forward(const FlashArgs *a) {
#if FLEX_BY_DOCUMENT
    if (a->offsets) {
        run_documents(a, 0);
        return;
    }
#endif
    tiles_forward(a);
}

static void flash_backward(const FlashArgs *a) {
    if (a->dlearned) memset(a->dlearned, 0, sizeof(float) * FLEX_LEARNED);
#if FLEX_BY_DOCUMENT
    if (a->offsets) {
        run_documents(a, 1);
        return;
    }
#endif
    tiles_backward(a);
}

#ifdef FLEX_RUNTIME /* what the host looks for in the compiled object */
extern const FlashKernel flash_kernel;
const FlashKernel flash_kernel = {flash_workspace, flash_forward, flash_backward};
#endif

#endif
