/* vanilla: the score matrix of every head in memory, a masked softmax over its rows, and the
 * products by the library: what attention costs when it is written down as in the paper. Every
 * score is computed, also those that nobody sees. */
#include "kernels/cuda/attention_scores.cuh"

static const char *supports(const Ctx *c, const AttnArgs *a) {
    (void)c;
    if (a->dtype != DT_F32 && a->dtype != DT_BF16) return "it computes in float32 and bf16 alone";
    if (a->mask->has_mask_expr || a->mask->has_score_expr)
        return "on CUDA it takes masks by name alone, no expressions before flex is there";
    return NULL;
}

static size_t workspace(Ctx *c, const AttnArgs *a, bool backward) {
    (void)c;
    return scores_bytes(a, backward);
}

static void forward(Ctx *c, const AttnArgs *a) {
    scores_forward(c, a, cuda_mask(c, a->mask, NULL), a, WHOLE, a->workspace);
}

static void backward(Ctx *c, const AttnArgs *a) {
    scores_backward(c, a, cuda_mask(c, a->mask, NULL), a, WHOLE, a->workspace);
}

extern const AttnBackend attn_vanilla_cuda = {.name = NULL,
                                              .help = NULL,
                                              .supports = supports,
                                              .prepare = NULL,
                                              .workspace = workspace,
                                              .forward = forward,
                                              .backward = backward};
