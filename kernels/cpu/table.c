/* The CPU device of one instruction set. */
#include "kernels/cpu/onednn.h"
#include "kernels/device.h"
#include "llmc_like/optim.h"

/* Attention has its own registry of backends, which know the device. */
void ISA_FN(attention_forward)(Ctx *c, const OpCall *o) { attention_forward(c, o); }
void ISA_FN(attention_backward)(Ctx *c, const OpCall *o) { attention_backward(c, o); }

#define BOTH(NAME, name) [OP_##NAME] = {ISA_FN(name##_forward), ISA_FN(name##_backward)},
#define FORWARD(NAME, name) [OP_##NAME] = {ISA_FN(name##_forward), NULL},
static const OpKernel ops[OP_COUNT] = {OPS_WITH_BACKWARD(BOTH) OPS_WITHOUT_BACKWARD(FORWARD)};

#define PASTE(a, b) a##b
#define BACKEND(id, isa) PASTE(attn_##id##_, isa)
#define EXTERN(id, flag, text) extern const AttnBackend BACKEND(id, ISA);
ATTN_LIST(EXTERN)
#define ADDRESS(id, flag, text) &BACKEND(id, ISA),
static const AttnBackend *const attn[] = {ATTN_LIST(ADDRESS)};

static void accumulate(Ctx *c, DType dtype, void *to, const void *from, int64_t n) {
    CHECK(dtype == DT_F32, "%s to add on the CPU", dtype_name(dtype));
    float *x = to;
    const float *y = from;
#pragma omp parallel for simd num_threads(c->n_threads)
    for (int64_t i = 0; i < n; i++) x[i] += y[i];
}

#define QUOTE(x) #x
#define DEVICE_NAME(isa) "cpu-" QUOTE(isa)

/* Whether the processor has the instructions that this copy of the sources was compiled for. */
static int check(Err *e) {
    __builtin_cpu_init();
    bool runs = true;
#ifdef __AVX512F__ /* x86-64-v4 */
    runs = runs && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
#endif
#ifdef __AVX2__ /* x86-64-v3 */
    runs = runs && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("bmi2");
#endif
    if (runs) return 0;
    return err_set(e, "this processor lacks its instructions");
}

const Device ISA_FN(cpu_device) = {
    .name = DEVICE_NAME(ISA),
    .check = check,
    .release = ISA_FN(onednn_release),
    .memory = &host_memory,
    .ops = ops,
    .attn = attn,
    .accumulate = accumulate,
    .update = optim_update,
    .update_workspace = optim_workspace,
    .gemm = ISA_FN(gemm),
    .sum_squares = ISA_FN(sum_squares),
    .optim = &ISA_FN(cpu_optim),
};
