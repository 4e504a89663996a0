/* y = act(x W' + b) over many rows, by oneDNN's inner product on blocks of rows.
 *
 * A primitive is compiled for a number of rows, and batches of events have another one each time;
 * so it is compiled for one block, and threads take block after block. Against one sgemm over all
 * rows that saves the pass that writes the bias and the one that reads it back, which is a quarter
 * of the time where K is 128 (dev/bench/SPEED.md). Rows of the last, shorter block go through
 * sgemm. */
#include <omp.h>
#include <stdlib.h>

#include "kernels/cpu/onednn.h"

enum { BLOCK = 64, MAX_PRODUCTS = 128 };

typedef struct Key { /* all of one type: compared as bytes */
    int64_t N, K, transposed, bias, add, n_threads;
} Key;

/* What a thread needs of its own to run a primitive beside other threads. */
typedef struct Lane {
    dnnl_memory_t x, y, bias, scratch;
} Lane;

typedef struct Product {
    Key key;
    dnnl_primitive_t run, reorder;
    dnnl_memory_t packed, weight;
    size_t packed_bytes, scratch_bytes;
    int n_lanes;
    Lane *lane;
} Product;

typedef struct RowProducts {
    Product entry[MAX_PRODUCTS];
    int n, next; /* `next` is overwritten when all are in use */
} RowProducts;

static void product_free(Product *p) {
    for (int i = 0; i < p->n_lanes; i++) {
        dnnl_memory_destroy(p->lane[i].x);
        dnnl_memory_destroy(p->lane[i].y);
        dnnl_memory_destroy(p->lane[i].scratch);
        if (p->lane[i].bias) dnnl_memory_destroy(p->lane[i].bias);
    }
    dnnl_memory_destroy(p->packed);
    dnnl_memory_destroy(p->weight);
    dnnl_primitive_destroy(p->run);
    dnnl_primitive_destroy(p->reorder);
    free(p->lane);
}

void ISA_FN(row_products_free)(RowProducts *s) {
    for (int i = 0; s && i < s->n; i++) product_free(&s->entry[i]);
    free(s);
}

/* d: x, weight in any order, bias, y. Compiled for one thread: it runs inside a parallel region. */
static dnnl_primitive_desc_t describe(const OneDnn *s, const Key *k,
                                      const dnnl_memory_desc_t d[4]) {
    dnnl_inner_product_desc_t product;
    dnnl_primitive_attr_t attr;
    dnnl_primitive_desc_t plan = NULL;
    DNNL(dnnl_inner_product_forward_desc_init(&product, dnnl_forward_inference, &d[0], &d[1],
                                              k->bias ? &d[2] : NULL, &d[3]));
    DNNL(dnnl_primitive_attr_create(&attr));
    DNNL(dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user));
    if (k->add) {
        dnnl_post_ops_t sum;
        DNNL(dnnl_post_ops_create(&sum));
        DNNL(dnnl_post_ops_append_sum(sum, 1.0f));
        DNNL(dnnl_primitive_attr_set_post_ops(attr, sum));
        DNNL(dnnl_post_ops_destroy(sum));
    }
    DNNL(dnnl_primitive_desc_create(&plan, &product, attr, s->engine, NULL));
    DNNL(dnnl_primitive_attr_destroy(attr));
    return plan;
}

static void compile(const OneDnn *s, const Key *k, Product *p) {
    const int n_threads = (int)k->n_threads;
    const dnnl_dims_t x = {BLOCK, k->K}, w = {k->N, k->K}, b = {k->N}, y = {BLOCK, k->N};
    dnnl_memory_desc_t d[4], plain; /* x, weight in any order, bias, y; weight as it is given */
    DNNL(dnnl_memory_desc_init_by_tag(&d[0], 2, x, dnnl_f32, dnnl_ab));
    DNNL(dnnl_memory_desc_init_by_tag(&d[1], 2, w, dnnl_f32, dnnl_format_tag_any));
    DNNL(dnnl_memory_desc_init_by_tag(&d[2], 1, b, dnnl_f32, dnnl_a));
    DNNL(dnnl_memory_desc_init_by_tag(&d[3], 2, y, dnnl_f32, dnnl_ab));
    DNNL(dnnl_memory_desc_init_by_tag(&plain, 2, w, dnnl_f32, k->transposed ? dnnl_ba : dnnl_ab));
    omp_set_num_threads(1);
    dnnl_primitive_desc_t plan = describe(s, k, d), reorder = NULL;
    const dnnl_memory_desc_t *packed = dnnl_primitive_desc_query_md(plan, dnnl_query_weights_md, 0),
                             *scratch =
                                 dnnl_primitive_desc_query_md(plan, dnnl_query_scratchpad_md, 0);
    DNNL(dnnl_primitive_create(&p->run, plan));
    omp_set_num_threads(n_threads);
    DNNL(dnnl_reorder_primitive_desc_create(&reorder, &plain, s->engine, packed, s->engine, NULL));
    DNNL(dnnl_primitive_create(&p->reorder, reorder));
    p->key = *k;
    p->packed = onednn_memory(s, packed);
    p->weight = onednn_memory(s, &plain);
    p->packed_bytes = dnnl_memory_desc_get_size(packed);
    p->scratch_bytes = dnnl_memory_desc_get_size(scratch);
    p->n_lanes = n_threads;
    p->lane = calloc((size_t)n_threads, sizeof *p->lane);
    CHECK(p->lane, "no memory for the lanes of %d threads", n_threads);
    for (int i = 0; i < n_threads; i++)
        p->lane[i] = (Lane){onednn_memory(s, &d[0]), onednn_memory(s, &d[3]),
                            k->bias ? onednn_memory(s, &d[2]) : NULL, onednn_memory(s, scratch)};
    DNNL(dnnl_primitive_desc_destroy(reorder));
    DNNL(dnnl_primitive_desc_destroy(plan));
}

static const Product *find(OneDnn *s, const Key *k) {
    if (!s->row_products) s->row_products = calloc(1, sizeof *s->row_products);
    RowProducts *t = s->row_products;
    CHECK(t, "no memory for the table of products (%zu bytes)", sizeof *t);
    for (int i = 0; i < t->n; i++)
        if (!memcmp(&t->entry[i].key, k, sizeof *k)) return &t->entry[i];
    const bool full = t->n == MAX_PRODUCTS;
    const int at = full ? t->next : t->n++;
    if (full) product_free(&t->entry[at]), t->next = (t->next + 1) % MAX_PRODUCTS;
    memset(&t->entry[at], 0, sizeof *t->entry);
    compile(s, k, &t->entry[at]);
    return &t->entry[at];
}

/* sum (K) = the column sums of x (rows, K) */
static void sum_block(const float *x, int64_t rows, int64_t K, float *sum) {
    memcpy(sum, x, sizeof(float) * (size_t)K);
    for (int64_t r = 1; r < rows; r++) {
#pragma omp simd
        for (int64_t j = 0; j < K; j++) sum[j] += x[r * K + j];
    }
}

/* Rows first .. first + rows - 1: what goes before their product, and after it. */
static void before_product(const RowProduct *a, int64_t first, int64_t rows) {
    const int64_t i = first * a->K;
    if (a->slope_at) ISA_FN(scale_by_slope)(a->act, rows * a->K, a->slope_at + i, a->x + i);
}

static float *product_of(const RowProduct *a) { return a->sum ? a->sum : a->y; }

static void after_product(const RowProduct *a, int64_t first, int64_t rows) {
    const int64_t i = first * a->N;
    if (!a->slope_at && a->act) ISA_FN(activate)(a->act, rows * a->N, product_of(a) + i, a->y + i);
    if (!a->residual) return;
#pragma omp simd
    for (int64_t j = i; j < i + rows * a->N; j++) a->y[j] += a->residual[j];
}

/* Block after block; only addresses change. at: scratch; partial (blocks, K), or NULL: column sums
 * of each block of x, taken while it is in the cache. */
static void run_blocks(const OneDnn *s, const Product *p, const RowProduct *a, char *at,
                       float *partial) {
    const size_t each = onednn_aligned(p->scratch_bytes);
    onednn_place(p->packed, at);
    onednn_place(p->weight, a->w);
    const dnnl_exec_arg_t pack[] = {{DNNL_ARG_FROM, p->weight}, {DNNL_ARG_TO, p->packed}};
    DNNL(dnnl_primitive_execute(p->reorder, s->stream, 2, pack));
    at += onednn_aligned(p->packed_bytes);
#pragma omp parallel num_threads(p->n_lanes)
    {
        const int thread = omp_get_thread_num();
        const Lane *l = &p->lane[thread];
        onednn_place(l->scratch, at + (size_t)thread * each);
        if (l->bias) onednn_place(l->bias, a->bias);
        const dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, l->x},
                                        {DNNL_ARG_WEIGHTS, p->packed},
                                        {DNNL_ARG_DST, l->y},
                                        {DNNL_ARG_SCRATCHPAD, l->scratch},
                                        {DNNL_ARG_BIAS, l->bias}};
#pragma omp for schedule(dynamic, 1)
        for (int64_t b = 0; b < a->rows / BLOCK; b++) {
            onednn_place(l->x, a->x + b * BLOCK * a->K);
            onednn_place(l->y, product_of(a) + b * BLOCK * a->N);
            before_product(a, b * BLOCK, BLOCK);
            DNNL(dnnl_primitive_execute(p->run, s->stream, 4 + (int)p->key.bias, args));
            after_product(a, b * BLOCK, BLOCK);
            if (partial) sum_block(a->x + b * BLOCK * a->K, BLOCK, a->K, partial + b * a->K);
        }
    }
}

/* The last rows, fewer than a block. */
static void run_rest(Ctx *c, const RowProduct *a, int64_t first) {
    float *y = product_of(a) + first * a->N;
    const float *x = a->x + first * a->K;
    const int64_t rows = a->rows - first;
    before_product(a, first, rows);
    for (int64_t r = 0; a->bias && r < rows; r++)
        memcpy(y + r * a->N, a->bias, sizeof(float) * (size_t)a->N);
    ISA_FN(gemm)
    (c, false, !a->transposed, rows, a->N, a->K, 1, x, a->K, a->w, a->transposed ? a->N : a->K,
     a->bias || a->add, y, a->N);
    after_product(a, first, rows);
}

void ISA_FN(row_product)(Ctx *c, const RowProduct *a) {
    CHECK(!(a->bias && a->add), "a product that adds has no bias");
    const int64_t blocks = a->rows / BLOCK, done = blocks * BLOCK, rest = a->rows - done;
    const Key key = {a->N, a->K, a->transposed, a->bias != NULL, a->add, c->n_threads};
    OneDnn *s = ISA_FN(onednn)(c);
    const Product *p = blocks ? find(s, &key) : NULL;
    const size_t sums = onednn_aligned(a->sums ? sizeof(float) * (size_t)((blocks + 1) * a->K) : 0);
    const size_t scratch =
        p ? onednn_aligned(p->packed_bytes) + (size_t)p->n_lanes * onednn_aligned(p->scratch_bytes)
          : 0;
    char *at = ctx_workspace(c, sums + scratch);
    float *partial = a->sums ? (float *)at : NULL;
    if (p) run_blocks(s, p, a, at + sums, partial);
    if (rest) run_rest(c, a, done);
    if (!partial) return;
    if (rest) sum_block(a->x + done * a->K, rest, a->K, partial + blocks * a->K);
    ISA_FN(sum_partials)(c, partial, blocks + (rest > 0), a->K, a->sums, a->add_sums);
}
