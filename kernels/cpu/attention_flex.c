/* flex: the fused kernel compiled once more, at run time, behind the user's expressions.
 * flex-dense: the same without the plan: every tile visited, every cell asked.
 *
 * A mask by name is an expression here as well, so that what flexibility costs shows on any mask.
 * flex goes through documents one by one and asks inside them only what the mask says besides;
 * flex-dense asks doc[q] == doc[k] of every pair.
 */
#include "kernels/cpu/flash_host.h"
#include "kernels/flex/flex.h"

#if defined(__AVX512F__)
static const char isa_flags[] = "-march=x86-64-v4 -mprefer-vector-width=512";
#elif defined(__AVX2__)
static const char isa_flags[] = "-march=x86-64-v3";
#else
static const char isa_flags[] = "-march=x86-64";
#endif

/* The kernel for a's expressions; NULL and a sentence where it cannot be compiled. */
static const FlashKernel *kernel(const AttnArgs *a, Err *e) {
    const Mask *m = a->mask;
    if (!m->code) return &ISA_FN(flash_builtin);
    const FlexModule *module = flex_module(m->code, flash_text, isa_flags, e);
    return module ? flex_module_symbol(module, "flash_kernel") : NULL;
}

static const FlashKernel *compiled(const AttnArgs *a) {
    Err e;
    const FlashKernel *k = kernel(a, &e);
    CHECK(k, "a backend runs without having been prepared: %s", e.text);
    return k;
}

static FlashArgs arguments(Ctx *c, const AttnArgs *a, bool dense) {
    FlashArgs f = ISA_FN(flash_args)(c, a);
    const FlexProgram *p = a->mask->code;
    f.dense = dense;
    if (dense) f.offsets = NULL;
    if (!p) return f;
    flex_set_learned(p, a->learned);
    f.env = flex_env(p);
    f.lo = f.hi = NULL; /* the expression says it, and so does its plan */
    if (dense || f.offsets) return f;
    const FlexPlan *plan =
        flex_plan(p, a->B, a->H, a->Tq, a->Tk, a->offset, f.tile_rows, FLASH_PLAN_COLS);
    f.visit = plan->visit;
    f.partial = plan->partial;
    f.plan_b = plan->b_rows;
    f.plan_h = plan->h_rows;
    f.plan_words = plan->words;
    return f;
}

static const char *supports(const Ctx *c, const AttnArgs *a) {
    (void)c;
    return a->dtype == DT_F32 ? NULL : "it computes in float32 alone";
}

static int prepare(Ctx *c, const AttnArgs *a, Err *e) {
    (void)c;
    return kernel(a, e) ? 0 : -1;
}

/* The bytes do not depend on the expressions' text, but the compiled kernel knows whether it keeps
 * slopes. */
static size_t workspace(Ctx *c, const AttnArgs *a, bool backward) {
    FlashArgs f = ISA_FN(flash_args)(c, a);
    return compiled(a)->workspace(&f, backward);
}

static size_t workspace_dense(Ctx *c, const AttnArgs *a, bool backward) {
    FlashArgs f = ISA_FN(flash_args)(c, a);
    f.offsets = NULL;
    return compiled(a)->workspace(&f, backward);
}

static void forward(Ctx *c, const AttnArgs *a) {
    FlashArgs f = arguments(c, a, false);
    compiled(a)->forward(&f);
}

static void backward(Ctx *c, const AttnArgs *a) {
    FlashArgs f = arguments(c, a, false);
    compiled(a)->backward(&f);
}

static void forward_dense(Ctx *c, const AttnArgs *a) {
    FlashArgs f = arguments(c, a, true);
    compiled(a)->forward(&f);
}

static void backward_dense(Ctx *c, const AttnArgs *a) {
    FlashArgs f = arguments(c, a, true);
    compiled(a)->backward(&f);
}

const AttnBackend ISA_FN(attn_flex) = {.supports = supports,
                                       .prepare = prepare,
                                       .workspace = workspace,
                                       .forward = forward,
                                       .backward = backward};

const AttnBackend ISA_FN(attn_flex_dense) = {.supports = supports,
                                             .prepare = prepare,
                                             .workspace = workspace_dense,
                                             .forward = forward_dense,
                                             .backward = backward_dense};
