#include "llmc_like/optim.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>

Optim optim_default(void) {
    return (Optim){
        .share = 1,
        .rule =
            {
                [GROUP_MUON] = {.lr = 0.02, .weight_decay = 1e-5, .momentum = 0.95, .ns_steps = 5},
                [GROUP_ADAM] =
                    {.lr = 3e-4, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-10, .weight_decay = 1e-5},
                [GROUP_ADAMW] =
                    {.lr = 3e-4, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 1e-5},
            },
    };
}

/* ---- Muon ---- */

/* What one thread works in. x and y take turns as the current and the next X. */
typedef struct MuonScratch {
    float *x, *y; /* as large as the largest matrix */
    float *a, *p; /* (r, r): A = X X', and the polynomial of it */
} MuonScratch;

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* Numbers in a block of scratch that holds n: a multiple of a cache line. */
static size_t padded(int64_t n) { return ((size_t)n + 15) / 16 * 16; }

/* Floats of scratch for one thread. */
static size_t scratch_floats(const ParamTable *p, size_t *matrix, size_t *square) {
    int64_t numel = 0, side = 0;
    for (int i = 0; i < p->n; i++) {
        const Tensor *t = &p->row[i].tensor;
        if (p->row[i].group != GROUP_MUON) continue;
        numel = larger(numel, tensor_numel(t));
        side = larger(side, smaller(t->shape[0], t->shape[1]));
    }
    *matrix = padded(numel);
    *square = padded(side * side);
    return 2 * *matrix + 2 * *square;
}

size_t optim_workspace(const Ctx *c, const ParamTable *p) {
    size_t matrix, square;
    return (size_t)c->n_threads * scratch_floats(p, &matrix, &square) * sizeof(float) +
           (size_t)p->n * sizeof(int);
}

static double muon_flops(const Param *row, int steps) {
    const double rows = (double)row->tensor.shape[0], cols = (double)row->tensor.shape[1];
    const double r = fmin(rows, cols), k = fmax(rows, cols);
    return steps * (4 * r * r * k + 2 * r * r * r);
}

/* The numbers of Muon's rows, by falling cost; how many there are. */
static int muon_order(const ParamTable *p, int *order) {
    int n = 0;
    for (int i = 0; i < p->n; i++) {
        const Param *row = &p->row[i];
        if (row->group != GROUP_MUON) continue;
        CHECK(row->tensor.ndim == 2, "%s: Muon is for matrices, this has %d dimensions",
              row->tensor.name, row->tensor.ndim);
        int at = n++;
        for (; at > 0 && muon_flops(&p->row[order[at - 1]], 1) < muon_flops(row, 1); at--)
            order[at] = order[at - 1];
        order[at] = i;
    }
    return n;
}

/* The lower triangle of the n x n matrix C = alpha op(A) op(B) + beta C, whose product is
 * symmetric: panel after panel of rows, each only as far as the diagonal's end. p panels do (p + 1)
 * / 2p of the work; panels of fewer than 48 rows make gemm itself slower than they save. */
static void gemm_lower(Ctx *c, bool ta, bool tb, int64_t n, int64_t K, float alpha, const float *A,
                       int64_t lda, const float *B, int64_t ldb, float beta, float *C) {
    const int64_t panel = larger(48, (n / 10 + 15) / 16 * 16);
    for (int64_t i = 0; i < n; i += panel) {
        const int64_t rows = smaller(panel, n - i);
        c->dev->gemm(c, ta, tb, rows, i + rows, K, alpha, ta ? A + i : A + i * lda, lda, B, ldb,
                     beta, C + i * n, n);
    }
}

/* The Newton-Schulz steps on s->x, a rows x cols matrix that counts as multiplied by `scale` (so
 * that the normalisation costs no pass of its own); the result is in s->x, to be multiplied by what
 * is returned.
 * X is (r, k) with r the shorter side, and may lie in memory as it is or transposed ("tall"): gemm
 * takes either. Between the steps it lies tall, which gemm likes better (long rows cost it 10 to 20
 * per cent), at the ends as the parameter does; since P is symmetric, no copy is ever needed.
 * Each step is  A = scale^2 X X',  P = a I + b A + c A A,  X = scale P X. */
static float newton_schulz(Ctx *c, MuonScratch *s, int64_t rows, int64_t cols, int steps,
                           float scale) {
    const float ca = 3.4445f, cb = -4.7750f, cc = 2.0315f;
    const OptimKernels *kernel = c->dev->optim;
    const int64_t r = smaller(rows, cols), k = larger(rows, cols);
    bool tall = rows > cols;
    for (int i = 0; i < steps; i++) {
        const bool next_tall = i < steps - 1 || rows > cols;
        const int64_t ld = tall ? r : k;
        gemm_lower(c, tall, !tall, r, k, scale * scale, s->x, ld, s->x, ld, 0, s->a);
        kernel->symmetrise(s->a, s->p, r, 0);
        gemm_lower(c, false, false, r, r, cc, s->a, r, s->a, r, cb, s->p);
        kernel->symmetrise(s->p, NULL, r, ca);
        if (next_tall)
            c->dev->gemm(c, !tall, false, k, r, r, scale, s->x, ld, s->p, r, 0, s->y, r);
        else
            c->dev->gemm(c, false, tall, r, k, r, scale, s->p, r, s->x, ld, 0, s->y, k);
        float *swap = s->x;
        s->x = s->y;
        s->y = swap;
        tall = next_tall;
        scale = 1;
    }
    return scale;
}

static void muon_update(Ctx *c, const OptimRule *o, Param *row, MuonScratch s, double lr,
                        float grad_scale) {
    Tensor *t = &row->tensor;
    const int64_t n = tensor_numel(t), rows = t->shape[0], cols = t->shape[1];
    const double sum = c->dev->optim->muon_momentum(s.x, row->m, t->grad, n, (float)o->momentum,
                                                    (float)(1 - o->momentum), grad_scale);
    const float scale =
        newton_schulz(c, &s, rows, cols, o->ns_steps, (float)(1 / (sqrt(sum) + 1e-7)));
    const double shape = sqrt(fmax(1, (double)rows / (double)cols));
    c->dev->optim->muon_apply(t->data, s.x, n, (float)(1 - lr * o->weight_decay),
                              (float)(lr * shape * (double)scale));
}

/* Each thread takes whole matrices, the costly ones first. Called inside a parallel region, gemm
 * uses the calling thread alone: so no thread waits inside a product (15 % faster than products
 * shared by two threads), and the result cannot depend on the number of threads. */
static void muon_step(Ctx *c, const OptimRule *o, ParamTable *p, double lr, float grad_scale) {
    float *scratch = ctx_workspace(c, optim_workspace(c, p));
    size_t matrix, square;
    const size_t size = scratch_floats(p, &matrix, &square);
    int *order = (int *)(scratch + (size_t)c->n_threads * size);
    const int n = muon_order(p, order);
#pragma omp parallel for num_threads(c->n_threads) schedule(dynamic, 1)
    for (int i = 0; i < n; i++) {
        float *own = scratch + (size_t)omp_get_thread_num() * size;
        const MuonScratch s = {own, own + matrix, own + 2 * matrix, own + 2 * matrix + square};
        muon_update(c, o, &p->row[order[i]], s, lr, grad_scale);
    }
}

/* ---- Adam ---- */

static void adam_update(Ctx *c, const OptimRule *o, Param *row, double lr, int64_t t,
                        float grad_scale) {
    const AdamStep s = {
        .grad_scale = grad_scale,
        .beta1 = (float)o->beta1,
        .beta2 = (float)o->beta2,
        .one_minus_beta1 = (float)(1 - o->beta1),
        .one_minus_beta2 = (float)(1 - o->beta2),
        .keep = (float)(1 - lr * o->weight_decay),
        .step = (float)(lr / (1 - pow(o->beta1, (double)t))),
        .v_scale = (float)(1 / sqrt(1 - pow(o->beta2, (double)t))),
        .eps = (float)o->eps,
    };
    c->dev->optim->adam(c, row->tensor.data, row->m, row->v, row->tensor.grad,
                        tensor_numel(&row->tensor), &s);
}

/* ---- Both ---- */

/* sqrt(sum of squares of all gradients), in an order that threads do not change. */
static double gradient_norm(Ctx *c, const ParamTable *p) {
    double sum = 0;
    for (int i = 0; i < p->n; i++) {
        const Tensor *t = &p->row[i].tensor;
        sum += c->dev->sum_squares(c, t->grad, tensor_numel(t));
    }
    return sqrt(sum);
}

void optim_update(Ctx *c, Optim *o, ParamTable *p, double lr_factor, double clip, double *norm) {
    *norm = gradient_norm(c, p) / o->share;
    if (!isfinite(*norm)) {
        o->t--; /* no update */
        return;
    }
    const double clipped = clip > 0 ? fmin(1, clip / (*norm + 1e-6)) : 1;
    const float grad_scale = (float)(clipped / o->share);
    muon_step(c, &o->rule[GROUP_MUON], p, lr_factor * o->rule[GROUP_MUON].lr, grad_scale);
    for (int i = 0; i < p->n; i++) {
        const OptimRule *rule = &o->rule[p->row[i].group];
        if (p->row[i].group != GROUP_MUON)
            adam_update(c, rule, &p->row[i], lr_factor * rule->lr, o->t, grad_scale);
    }
}

const double *optim_step(Ctx *c, Optim *o, ParamTable *p, double lr_factor, double clip) {
    Tensor *norm = ctx_tensor(c, "gradient norm", DT_F64, 1, (int64_t[]){1});
    if (c->dry) {
        ctx_workspace(c, c->dev->update_workspace(c, p));
    } else {
        params_settle_grad(p);
        o->t++;
        c->dev->update(c, o, p, lr_factor, clip, norm->data);
    }
    return ctx_fetch(c, norm->data);
}

double optim_flops(const Optim *o, const ParamTable *p) {
    double flops = 0;
    for (int i = 0; i < p->n; i++)
        if (p->row[i].group == GROUP_MUON)
            flops += muon_flops(&p->row[i], o->rule[GROUP_MUON].ns_steps);
    return flops;
}
