/* flex and flex-dense on CUDA: declined. */
#include "kernels/cuda/attention.cuh"

static const char *supports(const Ctx *c, const AttnArgs *a) {
    (void)c;
    (void)a;
    return "it is not there on CUDA yet; --attn sdpa takes masks by name";
}

extern const AttnBackend attn_flex_cuda = {NULL, NULL, supports, NULL, NULL, NULL, NULL};
extern const AttnBackend attn_flex_dense_cuda = {NULL, NULL, supports, NULL, NULL, NULL, NULL};
