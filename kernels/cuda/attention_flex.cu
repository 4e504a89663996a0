/* flex: sdpa's kernels compiled once more, at run time, behind the user's expressions.
 * flex-dense: the same without the plan: every tile visited, every cell asked.
 *
 * A mask by name is an expression here as well, so that what flexibility costs shows on any mask;
 * its intervals are the plan. So are documents, inside which only what the mask says besides is
 * asked; flex-dense asks doc[q] == doc[k] of every pair. */
#include "kernels/cuda/attention.cuh"

enum { LARGEST_HEAD = 128 }; /* as sdpa's */

static const char *supports(const Ctx *c, const AttnArgs *a) {
    (void)c;
    if (a->dtype != DT_F32 && a->dtype != DT_BF16) return "it computes in float32 and bf16 alone";
    if (a->mask->n_learned) return "on CUDA its score expressions learn no arrays yet";
    if (a->D > LARGEST_HEAD) return "its heads have at most 128 numbers";
    if (a->dtype == DT_BF16 && !(a->scale > 0)) return "in bf16 its scale is more than 0";
    return NULL;
}

/* Whether the mask is to be asked tile by tile: it is neither intervals nor documents. */
static bool needs_plan(const Mask *m) { return !m->lo && !m->offsets; }

static int prepare(Ctx *c, const AttnArgs *a, Err *e) {
    const FlexProgram *p = a->mask->code;
    if (!p || c->dry) return 0; /* without code sdpa's kernels do it; and nothing is computed */
    FlexSource sources[3] = {flash_source(c, a, false)};
    int n = 1; /* of float32, one has both passes */
    if (a->dtype != DT_F32) sources[n++] = flash_source(c, a, true);
    if (needs_plan(a->mask)) sources[n++] = flex_plan_source();
    return flex_compile(c, p, sources, n, e);
}

/* The mask on the device; *f: what flex knows of it. */
static CudaMask mask_of(Ctx *c, const AttnArgs *a, bool dense, CudaFlex *f) {
    const Mask *mask = a->mask;
    *f = {};
    f->code = mask->code;
    if (!f->code) return cuda_mask(c, mask, NULL);
    CudaMask m = cuda_mask(c, mask, &f->env);
    f->asks = dense || !mask->lo;
    if (dense)
        m.lo = m.hi = m.offsets = NULL;
    else if (needs_plan(mask))
        flex_plan_add(c, a, &m, f);
    m.flex = f;
    return m;
}

static size_t workspace(Ctx *c, const AttnArgs *a, bool backward) {
    return flash_workspace(c, a, false, backward);
}

static size_t workspace_dense(Ctx *c, const AttnArgs *a, bool backward) {
    return flash_workspace(c, a, true, backward);
}

static void run(Ctx *c, const AttnArgs *a, bool dense, bool backward) {
    CudaFlex f;
    const CudaMask m = mask_of(c, a, dense, &f);
    (backward ? flash_backward : flash_forward)(c, a, m);
}

static void forward(Ctx *c, const AttnArgs *a) { run(c, a, false, false); }
static void backward(Ctx *c, const AttnArgs *a) { run(c, a, false, true); }
static void forward_dense(Ctx *c, const AttnArgs *a) { run(c, a, true, false); }
static void backward_dense(Ctx *c, const AttnArgs *a) { run(c, a, true, true); }

extern const AttnBackend attn_flex_cuda = {.name = NULL,
                                           .help = NULL,
                                           .supports = supports,
                                           .prepare = prepare,
                                           .workspace = workspace,
                                           .forward = forward,
                                           .backward = backward};

extern const AttnBackend attn_flex_dense_cuda = {.name = NULL,
                                                 .help = NULL,
                                                 .supports = supports,
                                                 .prepare = prepare,
                                                 .workspace = workspace_dense,
                                                 .forward = forward_dense,
                                                 .backward = backward_dense};
