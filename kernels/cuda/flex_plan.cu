/* Plans of masks that are expressions, made on the device by the compiled mask itself
 * (flex_plan.cuh) and kept by what they depend on: the code, the mask's numbers and the shape. Of
 * the few that are kept, the one that was not used for longest makes way. */
#include "kernels/cuda/flex_plan.cuh"

#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/flash_host.cuh"

enum { KEPT = 8 };

typedef struct KeptPlan {
    char *prelude;    /* own copy; NULL: free */
    uint64_t version; /* of the mask's numbers */
    int n_b, n_h;     /* as far as the mask asks */
    FlashMask mask;   /* its shape and the plan */
    Arena memory;     /* the device's */
    uint64_t last_use;
} KeptPlan;

struct FlexPlans {
    KeptPlan kept[KEPT];
    uint64_t n_uses;
};

FlexSource flex_plan_source(void) { return {"kernels/cuda/flex_plan.cuh", 0, 0}; }

static bool is_kept(const KeptPlan *k, const AttnArgs *a, const CudaMask *m, const CudaFlex *f,
                    int n_b, int n_h) {
    const FlashMask *x = &k->mask;
    return k->prelude && k->version == m->version && k->n_b == n_b && k->n_h == n_h &&
           x->Tq == a->Tq && x->Tk == a->Tk && x->offset == a->offset &&
           !strcmp(k->prelude, flex_prelude_kept(f->code));
}

static void make_plan(Ctx *c, KeptPlan *k, const AttnArgs *a, const CudaMask *m,
                      const CudaFlex *f) {
    const int cells = (int)div_up(a->Tq, CELL), words = (int)div_up(a->Tk, CELL * 32);
    const size_t bytes = sizeof(uint32_t) * (size_t)(k->n_b * k->n_h) * (size_t)cells * words;
    if (!k->memory.memory) arena_init(&k->memory, "a plan", c->dev->memory, false);
    arena_reset(&k->memory);
    uint32_t *visit = (uint32_t *)arena_alloc(&k->memory, bytes),
             *full = (uint32_t *)arena_alloc(&k->memory, bytes);
    CudaMask asked = *m;
    asked.flex = f;
    k->mask = flash_mask(a, &asked);
    k->mask.words = words;
    k->mask.plan_heads = k->n_b * k->n_h;
    k->mask.h_rows = k->n_h > 1 ? cells : 0;
    k->mask.b_rows = k->n_b > 1 ? k->n_h * cells : 0;
    const FlexPlanning p = {k->mask, visit, full, k->n_h, cells};
    auto kernel = (void (*)(FlexPlanning))flex_kernel(c, f->code, flex_plan_source(), "flex_plan");
    launch(c, kernel, dim3((unsigned)(k->mask.plan_heads * cells * words)), dim3(PLAN_THREADS),
           PLAN_SHARED, p);
    k->mask.visit = visit;
    k->mask.full = full;
}

void flex_plan_add(Ctx *c, const AttnArgs *a, const CudaMask *m, CudaFlex *f) {
    FlexPlans *all = cuda_of(c)->plans;
    if (!all) all = cuda_of(c)->plans = (FlexPlans *)calloc(1, sizeof *all);
    CHECK(all, "no memory for the list of plans");
    const int n_b = flex_mask_asks_batch(f->code) ? a->B : 1,
              n_h = flex_mask_asks_head(f->code) ? a->H : 1;
    KeptPlan *k = NULL, *oldest = all->kept;
    for (int i = 0; i < KEPT && !k; i++) {
        if (is_kept(&all->kept[i], a, m, f, n_b, n_h)) k = &all->kept[i];
        if (all->kept[i].last_use < oldest->last_use) oldest = &all->kept[i];
    }
    if (!k) {
        k = oldest;
        free(k->prelude);
        k->prelude = strdup(flex_prelude_kept(f->code));
        CHECK(k->prelude, "no memory for a plan");
        k->version = m->version;
        k->n_b = n_b;
        k->n_h = n_h;
        make_plan(c, k, a, m, f);
    }
    k->last_use = ++all->n_uses;
    f->visit = k->mask.visit;
    f->full = k->mask.full;
    f->words = k->mask.words;
    f->b_rows = k->mask.b_rows;
    f->h_rows = k->mask.h_rows;
    f->plan_heads = k->mask.plan_heads;
}

void flex_plans_free(FlexPlans *plans) {
    for (int i = 0; plans && i < KEPT; i++) {
        free(plans->kept[i].prelude);
        arena_free(&plans->kept[i].memory);
    }
    free(plans);
}
