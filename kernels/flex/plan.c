/* Plans and counts of expression masks, remembered by shape. */
#include <stdlib.h>
#include <string.h>

#include "kernels/flex/tree.h"

typedef struct FlexPlanEntry FlexPlanEntry;
struct FlexPlanEntry {
    FlexPlan plan;
    int B, H; /* as far as the mask asks */
    uint64_t *bits;
    FlexPlanEntry *next;
};

typedef struct FlexCount FlexCount;
struct FlexCount {
    int Tq, Tk, offset;
    double visible;
    FlexCount *next;
};

static void *allocate(size_t n, size_t size) {
    void *p = calloc(n, size);
    CHECK(p, "no memory for %zu elements of %zu bytes", n, size);
    return p;
}

/* How many of tile kt's columns each of the tile's queries sees, added up: one row of tiles at a
 * time, so that the interpreter runs over whole rows of keys. counts: k_tiles numbers. */
static void count_row(const FlexProgram *p, const FlexPlan *plan, int b, int h, int qt,
                      unsigned char *sees, int64_t *counts) {
    const int q_end = (qt + 1) * plan->BM < plan->Tq ? (qt + 1) * plan->BM : plan->Tq;
    memset(counts, 0, (size_t)plan->k_tiles * sizeof *counts);
    for (int q = qt * plan->BM; q < q_end; q++) {
        flex_eval_mask_row(p, b, h, plan->offset + q, 0, plan->Tk, sees);
        for (int kt = 0; kt < plan->k_tiles; kt++) {
            const int end = (kt + 1) * plan->BN < plan->Tk ? (kt + 1) * plan->BN : plan->Tk;
            int n = 0;
            for (int k = kt * plan->BN; k < end; k++) n += sees[k];
            counts[kt] += n;
        }
    }
}

static void fill(const FlexProgram *p, FlexPlanEntry *x, uint64_t *visit, uint64_t *partial) {
    FlexPlan *plan = &x->plan;
    const int rows = x->B * x->H * plan->q_tiles;
    int64_t full_tiles = 0, partial_tiles = 0;
#pragma omp parallel reduction(+ : full_tiles, partial_tiles)
    {
        unsigned char *sees = allocate((size_t)plan->Tk, 1);
        int64_t *counts = allocate((size_t)plan->k_tiles, sizeof *counts);
#pragma omp for schedule(dynamic)
        for (int row = 0; row < rows; row++) {
            const int qt = row % plan->q_tiles, bh = row / plan->q_tiles;
            const int left = plan->Tq - qt * plan->BM, height = left < plan->BM ? left : plan->BM;
            count_row(p, plan, bh / x->H, bh % x->H, qt, sees, counts);
            for (int kt = 0; kt < plan->k_tiles; kt++) {
                const int rest = plan->Tk - kt * plan->BN,
                          width = rest < plan->BN ? rest : plan->BN;
                const int64_t word = (int64_t)row * plan->words + (kt >> 6);
                const bool full = counts[kt] == (int64_t)height * width;
                if (counts[kt]) visit[word] |= (uint64_t)1 << (kt & 63);
                if (counts[kt] && !full) partial[word] |= (uint64_t)1 << (kt & 63);
                full_tiles += full;
                partial_tiles += counts[kt] && !full;
            }
        }
        free(sees);
        free(counts);
    }
    plan->n_full = full_tiles;
    plan->n_partial = partial_tiles;
    plan->n_skip = (int64_t)rows * plan->k_tiles - full_tiles - partial_tiles;
}

const FlexPlan *flex_plan(const FlexProgram *p, int B, int H, int Tq, int Tk, int offset, int BM,
                          int BN) {
    CHECK(B > 0 && H > 0 && Tq > 0 && Tk > 0 && BM > 0 && BN > 0 && offset >= 0,
          "B %d, H %d, Tq %d, Tk %d, offset %d, BM %d, BN %d", B, H, Tq, Tk, offset, BM, BN);
    CHECK(offset + Tq <= p->T + FLEX_PAD && Tk <= p->T + FLEX_PAD,
          "queries %d .. %d and %d keys, but the mask knows %d positions", offset, offset + Tq - 1,
          Tk, p->T);
    const int asked_b = flex_mask_asks_batch(p) ? B : 1, asked_h = flex_mask_asks_head(p) ? H : 1;
    for (FlexPlanEntry *x = p->memory->plans; x; x = x->next) {
        const FlexPlan *y = &x->plan;
        if (x->B == asked_b && x->H == asked_h && y->Tq == Tq && y->Tk == Tk &&
            y->offset == offset && y->BM == BM && y->BN == BN)
            return y;
    }
    FlexPlanEntry *x = allocate(1, sizeof *x);
    x->B = asked_b;
    x->H = asked_h;
    x->plan = (FlexPlan){.Tq = Tq, .Tk = Tk, .offset = offset, .BM = BM, .BN = BN};
    FlexPlan *plan = &x->plan;
    plan->q_tiles = (Tq + BM - 1) / BM;
    plan->k_tiles = (Tk + BN - 1) / BN;
    plan->words = (plan->k_tiles + 63) / 64;
    plan->h_rows = asked_h > 1 ? plan->q_tiles : 0;
    plan->b_rows = asked_b > 1 ? asked_h * plan->q_tiles : 0;
    const size_t words =
        (size_t)asked_b * (size_t)asked_h * (size_t)plan->q_tiles * (size_t)plan->words;
    x->bits = allocate(2 * words, sizeof *x->bits);
    plan->visit = x->bits;
    plan->partial = x->bits + words;
    fill(p, x, x->bits, x->bits + words);
    x->next = p->memory->plans;
    p->memory->plans = x;
    return plan;
}

/* Visible pairs of queries q0 .. q1 - 1 and keys k0 .. k1 - 1, over the b and h that are asked. */
static int64_t count_visible(const FlexProgram *p, int q0, int q1, int k0, int k1,
                             unsigned char *sees) {
    const int B = flex_mask_asks_batch(p) ? p->B : 1, H = flex_mask_asks_head(p) ? p->H : 1;
    int64_t n = 0;
    for (int bh = 0; bh < B * H; bh++) {
        for (int q = q0; q < q1; q++) {
            flex_eval_mask_row(p, bh / H, bh % H, q, k0, k1 - k0, sees);
            for (int k = 0; k < k1 - k0; k++) n += sees[k];
        }
    }
    return n;
}

double flex_visible_within(const FlexProgram *p, const int32_t *offsets, int n_docs, int Tq, int Tk,
                           int offset) {
    if (!p->mask) return (double)Tq * Tk;
    FlexMemory *m = p->memory;
    for (FlexCount *x = m->counts; x; x = x->next)
        if (x->Tq == Tq && x->Tk == Tk && x->offset == offset) return x->visible;
    unsigned char *sees = allocate((size_t)Tk, 1);
    int64_t n = 0;
    for (int d = 0; d < n_docs; d++) {
        const int begin = offsets[d], end = offsets[d + 1];
        n +=
            count_visible(p, begin > offset ? begin : offset, end < offset + Tq ? end : offset + Tq,
                          begin < Tk ? begin : Tk, end < Tk ? end : Tk, sees);
    }
    free(sees);
    const int rows = (flex_mask_asks_batch(p) ? p->B : 1) * (flex_mask_asks_head(p) ? p->H : 1);
    FlexCount *x = allocate(1, sizeof *x);
    *x = (FlexCount){Tq, Tk, offset, (double)n / rows, m->counts};
    m->counts = x;
    return x->visible;
}

double flex_visible(const FlexProgram *p, int Tq, int Tk, int offset) {
    const int32_t all[] = {0, Tk > offset + Tq ? Tk : offset + Tq};
    return flex_visible_within(p, all, 1, Tq, Tk, offset);
}

void flex_forget_plans(FlexMemory *m) {
    for (FlexPlanEntry *x = m->plans, *next; x; x = next) {
        next = x->next;
        free(x->bits);
        free(x);
    }
    for (FlexCount *x = m->counts, *next; x; x = next) {
        next = x->next;
        free(x);
    }
    m->plans = NULL;
    m->counts = NULL;
}
