/* The tape. Each op call starts its kernel and leaves one record; backward walks the records from
 * the last to the first and calls each op's own backward. So a model is its forward function, and
 * nothing else.
 *
 * Gradients. Before an op's backward runs, the tape has given every input that wants one a gradient
 * buffer; after it, the buffers of the op's outputs go back to the pool, since nobody reads them
 * again. (A gradient has its tensor's dtype; a parameter's is float32 where that is bf16.) A kernel
 * looks at
 *
 *     in[i]->grad == NULL        nothing wanted
 *     in[i]->grad_set == false   overwrite all of grad
 *     in[i]->grad_set == true    add to it
 *
 * and the tape sets grad_set afterwards. A parameter's grad is its own and stays (grad_set is
 * cleared by params_zero_grad, so no pass over memory is spent on zeroing). */
#ifndef LLMC_LIKE_TAPE_H
#define LLMC_LIKE_TAPE_H

#include "llmc_like/tensor.h"

typedef struct Ctx Ctx;

enum { OP_MAX_IN = 6, OP_MAX_OUT = 3, OP_MAX_SAVED = 2 };

/* The numbers of a call that are no tensors. Each op's contract in kernels/ops.h says which it
 * uses. */
typedef struct OpAttr {
    int heads, offset, groups, patch, registers, part, steps;
    int activation;       /* enum Activation, kernels/ops.h */
    uint32_t step, layer; /* whose random numbers, and */
    uint64_t seed, first; /* of which run: their key; from which number on */
    float scale, eps, p;  /* p: a probability */
    const void *mask;     /* const Mask *, kernels/attention.h */
} OpAttr;

typedef struct OpCall {
    int op;
    Tensor *in[OP_MAX_IN]; /* NULL: an optional input left out */
    Tensor *out[OP_MAX_OUT];
    Tensor *
        saved[OP_MAX_SAVED]; /* what forward keeps for backward (statistics); NULL where not used */
    int n_in, n_out;
    OpAttr attr;
} OpCall;

typedef void (*OpFn)(Ctx *c, const OpCall *o);

typedef struct OpKernel {
    OpFn forward, backward; /* backward NULL: not differentiable */
} OpKernel;

typedef struct Tape {
    OpCall *call;
    int n, cap;
} Tape;

/* Walks the tape backwards from `loss` (one number), with d loss / d loss = seed (1 / accumulation
 * steps, usually). */
void tape_backward(Ctx *c, Tensor *loss, double seed);

#endif
