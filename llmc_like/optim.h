/* The optimisers: Adam, AdamW and Muon over the rows of a parameter table, chosen by each row's
 * group.
 *
 * With the gradient g = clip factor * (gradient of the row), all in float32, lr the group's rate
 * times the schedule's factor:
 *
 *   Adam, AdamW (GROUP_ADAM, GROUP_ADAMW: the same rule with other numbers), t = 1, 2, ...
 *     m = b1 m + (1 - b1) g;   v = b2 v + (1 - b2) g^2
 *     w = w - lr wd w;         w = w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
 *     Kingma & Ba, ICLR 2015, algorithm 1; Loshchilov & Hutter, ICLR 2019, for the decoupled decay;
 *     torch.optim.AdamW.
 *
 *   Muon (GROUP_MUON, matrices only; Jordan et al., kellerjordan.github.io/posts/muon, 2024)
 *     m = mu m + (1 - mu) g;   n = mu m + (1 - mu) g                            Nesterov
 *     X = n / (||n||_F + 1e-7), transposed where rows > cols
 *     ns_steps times:  A = X X';  X = a X + (b A + c A A) X                     Newton-Schulz
 *     w = w - lr wd w;         w = w - lr sqrt(max(1, rows / cols)) X
 *     with a, b, c = 3.4445, -4.7750, 2.0315: five steps bring the singular values of X near 1
 *     (between about 0.7 and 1.2), but for those that were below some thousandths of the norm.
 *
 * All results are the same to the bit for any number of threads. */
#ifndef LLMC_LIKE_OPTIM_H
#define LLMC_LIKE_OPTIM_H

#include <stdint.h>

#include "llmc_like/ctx.h"
#include "llmc_like/params.h"

typedef struct OptimRule {
    double lr;           /* the group's base or largest rate; the schedule's factor comes on top */
    double beta1, beta2; /* Adam, AdamW */
    double eps;          /* Adam, AdamW: outside the root */
    double weight_decay; /* per unit of lr */
    double momentum;     /* Muon: mu */
    int ns_steps;        /* Muon: Newton-Schulz steps */
} OptimRule;

enum { OPTIM_GROUPS = GROUP_ADAMW + 1 };

/* What an optimiser is besides the moments, which lie in the parameter table (Param.m, Param.v). A
 * plain value; numbers in it may be changed between steps (a cycled beta1, say). */
typedef struct Optim {
    OptimRule rule[OPTIM_GROUPS]; /* by ParamGroup */
    int64_t t;                    /* updates made so far: Adam's step count */
    double
        share; /* gradients are sums over this share of the batch, and count as divided by it; 1 */
} Optim;

/* The specifications' numbers, t = 0, share 1: Muon lr 0.02, decay 1e-5, mu 0.95, 5 steps; Adam lr
 * 3e-4, betas 0.9 and 0.95, eps 1e-10, decay 1e-5; AdamW lr 3e-4, betas 0.9 and 0.999, eps 1e-8,
 * decay 1e-5. */
Optim optim_default(void);

/* One update of all rows from their gradients (which stay as they are); returns where the
 * gradients' norm before clipping will be on the host (ctx_fetch). clip > 0: the gradients count as
 * multiplied by min(1, clip / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_ does; clip 0:
 * never. lr_factor: the schedule's. Where the norm is NaN or infinite no parameter and no moment is
 * changed, and the caller, who sees the norm, stops (or goes on: then t has counted an update too
 * many). Muon's rows are matrices of two dimensions (a bug otherwise). Scratch comes from
 * ctx_workspace: optim_workspace bytes. In a dry context only that scratch is counted, and the norm
 * is 0. */
const double *optim_step(Ctx *c, Optim *o, ParamTable *p, double lr_factor, double clip);

/* Device.update of the devices with host memory, and the bytes of scratch that it takes: per thread
 * two matrices as large as the largest of Muon's and two squares of the longest shorter side. */
void optim_update(Ctx *c, Optim *o, ParamTable *p, double lr_factor, double clip, double *norm);
size_t optim_workspace(const Ctx *c, const ParamTable *p);

/* Floating-point operations of one update's matrix products as the formulas above have them (a
 * multiply-add is two): ns_steps (4 r^2 k + 2 r^3) for each r x k matrix of Muon, r <= k. */
double optim_flops(const Optim *o, const ParamTable *p);

/* ---- Kernels of a device ---- */

/* The numbers of one Adam update, already combined. */
typedef struct AdamStep {
    float grad_scale;      /* clip factor                                  */
    float beta1, beta2;    /*                                              */
    float one_minus_beta1; /* rounded from double, not from float's 1 - b1 */
    float one_minus_beta2; /*                                              */
    float keep;            /* 1 - lr wd                                    */
    float step;            /* lr / (1 - b1^t)                              */
    float v_scale;         /* 1 / sqrt(1 - b2^t)                           */
    float eps;
} AdamStep;

/* One table per device: cpu_optim of each instruction set, plain_optim. float32; arrays that do not
 * overlap. Each makes one pass over memory. */
typedef struct OptimKernels {
    /* m = b1 m + (1 - b1) s g;  v = b2 v + (1 - b2) (s g)^2;
     * w = keep w - step m / (v_scale sqrt(v) + eps); s = grad_scale. n numbers, shared by
     * c->n_threads threads. */
    void (*adam)(Ctx *c, float *w, float *m, float *v, const float *g, int64_t n,
                 const AdamStep *s);

    /* The rest runs in the calling thread alone: optim_step gives each thread matrices of its own.
     * m = mu m + (1 - mu) s g;  out = mu m + (1 - mu) s g. Returns the sum of out's squares, in
     * double. */
    double (*muon_momentum)(float *out, float *m, const float *g, int64_t n, float mu,
                            float one_minus_mu, float grad_scale);
    /* w = keep w - step x */
    void (*muon_apply)(float *w, const float *x, int64_t n, float keep, float step);
    /* Completes a symmetric n x n matrix of which only the lower triangle counts, adds `diagonal`
     * to its diagonal, and copies the result to `copy` unless that is NULL. */
    void (*symmetrise)(float *a, float *copy, int64_t n, float diagonal);
} OptimKernels;

extern const OptimKernels plain_optim;

#endif
