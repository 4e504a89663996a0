/* Which of the fused kernels do a call: of float32, of bf16 on any GPU, of bf16 on Hopper. */
#include "kernels/cuda/tensor_map.cuh"

/* Whether the kernels for Hopper take these tensors, on this GPU. */
static bool fits_sm90(const Ctx *c, const AttnArgs *a, bool backward) {
    if (c->portable || cuda_of(c)->arch != 90 || a->dtype != DT_BF16) return false;
    if (a->D != 64 && a->D != 128) return false;
    return tensor_map_fits(a->q, a->qs) && tensor_map_fits(a->k, a->ks) &&
           tensor_map_fits(a->v, a->vs) && tensor_map_fits(a->out, a->os) &&
           (!backward || (tensor_map_fits(a->dout, a->os) && tensor_map_fits(a->dk, a->ks) &&
                          tensor_map_fits(a->dv, a->vs)));
}

FlexSource flash_source(const Ctx *c, const AttnArgs *a, bool backward) {
    if (a->dtype == DT_F32) return flash_source_f32(a);
    const bool hopper = fits_sm90(c, a, backward);
    if (backward) return hopper ? flash_source_backward_sm90(a) : flash_source_backward_bf16(c, a);
    return hopper ? flash_source_forward_sm90(a) : flash_source_forward_bf16(a);
}

size_t flash_workspace(const Ctx *c, const AttnArgs *a, bool dense, bool backward) {
    if (a->dtype == DT_F32) return flash_workspace_f32(a, backward);
    return fits_sm90(c, a, backward) ? flash_workspace_sm90(a, dense, backward)
                                     : flash_workspace_bf16(c, a, dense, backward);
}

void flash_forward(Ctx *c, const AttnArgs *a, CudaMask m) {
    if (a->dtype == DT_F32)
        flash_forward_f32(c, a, m);
    else if (fits_sm90(c, a, false))
        flash_forward_sm90(c, a, m);
    else
        flash_forward_bf16(c, a, m);
}

void flash_backward(Ctx *c, const AttnArgs *a, CudaMask m) {
    if (a->dtype == DT_F32)
        flash_backward_f32(c, a, m);
    else if (fits_sm90(c, a, true))
        flash_backward_sm90(c, a, m);
    else
        flash_backward_bf16(c, a, m);
}
