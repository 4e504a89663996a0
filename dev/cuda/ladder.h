/* The ladder: fused attention, forward, from a loop to the shipped kernel, one idea a rung.
 *
 *   make ladder && ./ladder               checks and times every rung on this GPU
 *   make emu ladder && build/emu/bin/ladder --heads 1 --tokens 384 --repeats 1      on the CPU
 *
 *   rung_naive.cu              a thread a query; scores never reach memory (online softmax)
 *   rung_tiles.cu              keys and values through shared memory, a tile for many queries
 *   rung_tensor.cu             the products by tensor cores: mma.sync, ldmatrix
 *   rung_pipeline.cu           the next tile is copied while this one is computed: cp.async
 *   rung_wgmma_sm90.cu         Hopper: the copy engine, and products of a whole warpgroup
 *   rung_roles_sm90.cu         one warpgroup copies, two compute: rings of barriers, setmaxnreg
 *   rung_overlap_sm90.cu       a warpgroup's softmax beside its own products
 *   kernels/cuda/flash_forward_sm90.cuh    what is shipped for Hopper;
 *   kernels/cuda/flash_forward_bf16.cuh    for all other GPUs, the fourth rung grown up
 *
 * Read them in this order, each beside the one before. To keep one idea in sight a rung does one
 * case: D 64, bf16, T a multiple of 128, no mask or a causal one. The shipped kernels take any.
 * Each file begins with what its idea costs, in clocks of a multiprocessor, counted; what a comment
 * expects is reckoned from that and from what others published, not measured. */
#ifndef DEV_CUDA_LADDER_H
#define DEV_CUDA_LADDER_H

#include <stdbool.h>

#include "llmc_like/ctx.h"

enum { HEAD_SIZE = 64, TOKENS_STEP = 128 /* T is a multiple of it */ };
#define HEAD_SCALE 0.125f /* 1 / sqrt(HEAD_SIZE) */

/* out = softmax(q k' / 8, masked) v. All (heads, T, 64) bf16 in the device's memory, heads one
 * after the other, rows of 128 bytes. */
typedef struct RungArgs {
    const void *q, *k, *v;
    void *out;
    int heads, T;
    bool causal; /* query i sees the keys 0 .. i; else all */
    /* What the shipped kernels want besides: room for (heads, T) float32, and `causal` as a mask */
    void *lse;
    const struct Mask *mask;
} RungArgs;

/* Starts the rung's kernel; false where this GPU cannot run it. */
typedef bool RungFn(Ctx *c, const RungArgs *a);

#ifdef __cplusplus
extern "C" {
#endif
RungFn rung_naive, rung_tiles, rung_tensor, rung_pipeline, rung_wgmma, rung_roles, rung_overlap;
#ifdef __cplusplus
}
#endif

#endif
