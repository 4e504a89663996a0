/* sdpa: the fused flash kernels, with masks that are row intervals. The scores never leave the
 * multiprocessor; in bf16 by tensor cores, in float32 with the sums that float32 promises. */
#include "kernels/cuda/tensor_map.cuh"

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

bool flash_sm90_fits(const Ctx *c, const AttnArgs *a, bool backward) {
    const Cuda *cuda = cuda_of(c); /* none in a dry context */
    if (!cuda || cuda->arch != 90 || a->dtype != DT_BF16 || (a->D != 64 && a->D != 128))
        return false;
    return tensor_map_fits(a->q, a->qs) && tensor_map_fits(a->k, a->ks) &&
           tensor_map_fits(a->v, a->vs) && tensor_map_fits(a->out, a->os) &&
           (!backward || (tensor_map_fits(a->dout, a->os) && tensor_map_fits(a->dq, a->qs) &&
                          tensor_map_fits(a->dk, a->ks) && tensor_map_fits(a->dv, a->vs)));
}

static size_t workspace(Ctx *c, const AttnArgs *a, bool backward) {
    if (flash_sm90_fits(c, a, backward)) return flash_workspace_sm90(a, backward);
    return a->dtype == DT_BF16 ? flash_workspace_bf16(c, a, backward)
                               : flash_workspace_f32(a, backward);
}

static void forward(Ctx *c, const AttnArgs *a) {
    const CudaMask m = cuda_mask(c, a->mask);
    if (flash_sm90_fits(c, a, false))
        flash_forward_sm90(c, a, m);
    else
        (a->dtype == DT_BF16 ? flash_forward_bf16 : flash_forward_f32)(c, a, m);
}

static void backward(Ctx *c, const AttnArgs *a) {
    const CudaMask m = cuda_mask(c, a->mask);
    if (flash_sm90_fits(c, a, true))
        flash_backward_sm90(c, a, m);
    else
        (a->dtype == DT_BF16 ? flash_backward_bf16 : flash_backward_f32)(c, a, m);
}

extern const AttnBackend attn_sdpa_cuda = {.name = NULL,
                                           .help = NULL,
                                           .supports = supports,
                                           .prepare = NULL,
                                           .workspace = workspace,
                                           .forward = forward,
                                           .backward = backward};
