/* What the two backends made from the flash kernel share. */
#ifndef KERNELS_CPU_FLASH_HOST_H
#define KERNELS_CPU_FLASH_HOST_H

#include "kernels/attention.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/flash_abi.h"

/* The kernel as built with the program: interval masks, no expressions (attention_sdpa.c). */
extern const FlashKernel ISA_FN(flash_builtin);

/* The kernel's arguments for `a`, with the intervals of its mask and without a plan. */
FlashArgs ISA_FN(flash_args)(Ctx *c, const AttnArgs *a);

/* The kernel's whole source, for compiling it once more behind expressions (flash_text.c). */
extern const char flash_text[];

#endif
