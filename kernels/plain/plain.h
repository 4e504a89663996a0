/* The plain device: every op as the loops that its formula says, one thread, in float32 and in
 * float64. It is what finite differences are taken of and what every other device is compared with,
 * so it has no trick at all. Attention and the optimisers have files of their own here. */
#ifndef KERNELS_PLAIN_PLAIN_H
#define KERNELS_PLAIN_PLAIN_H

#include "kernels/ops.h"

#define PLAIN_FORWARD(NAME, name) void plain_##name##_forward(Ctx *c, const OpCall *o);
#define PLAIN_BACKWARD(NAME, name) void plain_##name##_backward(Ctx *c, const OpCall *o);
OP_LIST(PLAIN_FORWARD)
OPS_WITH_BACKWARD(PLAIN_BACKWARD)

extern const struct OptimKernels plain_optim; /* optim.c */

#endif
