/* The CPU device of one instruction set. */
#include "kernels/cpu/onednn.h"
#include "kernels/device.h"

/* Attention has its own registry of backends, which know the device. */
void ISA_FN(attention_forward)(Ctx *c, const OpCall *o) { attention_forward(c, o); }
void ISA_FN(attention_backward)(Ctx *c, const OpCall *o) { attention_backward(c, o); }

#define BOTH(NAME, name) [OP_##NAME] = {ISA_FN(name##_forward), ISA_FN(name##_backward)},
#define FORWARD(NAME, name) [OP_##NAME] = {ISA_FN(name##_forward), NULL},
static const OpKernel ops[OP_COUNT] = {OPS_WITH_BACKWARD(BOTH) OPS_WITHOUT_BACKWARD(FORWARD)};

#define QUOTE(x) #x
#define DEVICE_NAME(isa) "cpu-" QUOTE(isa)

const Device ISA_FN(cpu_device) = {
    .name = DEVICE_NAME(ISA),
    .ops = ops,
    .gemm = ISA_FN(gemm),
    .sum_squares = ISA_FN(sum_squares),
    .optim = &ISA_FN(cpu_optim),
    .release = ISA_FN(onednn_release),
};
