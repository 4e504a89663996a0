/* The CUDA device: one table of its kernels. */
#include "kernels/cuda/device.cuh"

/* Attention has its own registry of backends, which know the device. */
static void cuda_attention_forward(Ctx *c, const OpCall *o) { attention_forward(c, o); }
static void cuda_attention_backward(Ctx *c, const OpCall *o) { attention_backward(c, o); }

#define DECLARE_BOTH(NAME, name)                         \
    void cuda_##name##_forward(Ctx *c, const OpCall *o); \
    void cuda_##name##_backward(Ctx *c, const OpCall *o);
#define DECLARE_FORWARD(NAME, name) void cuda_##name##_forward(Ctx *c, const OpCall *o);
OPS_WITH_BACKWARD(DECLARE_BOTH)
OPS_WITHOUT_BACKWARD(DECLARE_FORWARD)

/* in OP_LIST's order */
#define BOTH(NAME, name) {cuda_##name##_forward, cuda_##name##_backward},
#define FORWARD(NAME, name) {cuda_##name##_forward, NULL},
static const OpKernel ops[OP_COUNT] = {OPS_WITH_BACKWARD(BOTH) OPS_WITHOUT_BACKWARD(FORWARD)};

#define EXTERN(id, flag, text) extern const AttnBackend attn_##id##_cuda;
ATTN_LIST(EXTERN)
#define ADDRESS(id, flag, text) &attn_##id##_cuda,
static const AttnBackend *const attn[] = {ATTN_LIST(ADDRESS)};

extern "C" const Device cuda_device = {
    .name = "cuda",
    .check = cuda_check,
    .release = cuda_release,
    .memory = &cuda_memory,
    .queue = &cuda_queue,
    .has_bf16 = true,
    .ops = ops,
    .attn = attn,
    .accumulate = cuda_accumulate,
    .update = cuda_update,
    .update_workspace = cuda_update_workspace,
    .peak = cuda_peak,
    .gemm = NULL, /* what host memory is for */
    .sum_squares = NULL,
    .optim = NULL,
};
