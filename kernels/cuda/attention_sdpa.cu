/* sdpa: the fused flash kernels, with masks that are row intervals. The scores never leave the
 * multiprocessor; in bf16 by tensor cores, in float32 with the sums that float32 promises. */
#include "kernels/cuda/attention.cuh"

enum { LARGEST_HEAD = 128 }; /* a row of keys and values in shared memory, of sums in registers */

static const char *supports(const Ctx *c, const AttnArgs *a) {
    (void)c;
    if (a->dtype != DT_F32 && a->dtype != DT_BF16) return "it computes in float32 and bf16 alone";
    if (a->mask->has_score_expr) return "it has no score expressions";
    if (a->mask->has_mask_expr) return "it has no mask expressions";
    if (a->D > LARGEST_HEAD) return "its heads have at most 128 numbers";
    if (a->dtype == DT_BF16 && !(a->scale > 0)) return "in bf16 its scale is more than 0";
    return NULL;
}

static size_t workspace(Ctx *c, const AttnArgs *a, bool backward) {
    return flash_workspace(c, a, false, backward);
}

static void forward(Ctx *c, const AttnArgs *a) { flash_forward(c, a, cuda_mask(c, a->mask, NULL)); }
static void backward(Ctx *c, const AttnArgs *a) {
    flash_backward(c, a, cuda_mask(c, a->mask, NULL));
}

extern const AttnBackend attn_sdpa_cuda = {.name = NULL,
                                           .help = NULL,
                                           .supports = supports,
                                           .prepare = NULL,
                                           .workspace = workspace,
                                           .forward = forward,
                                           .backward = backward};
