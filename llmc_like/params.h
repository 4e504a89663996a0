/* The parameter table: one row a parameter, and everything else follows from the rows: the model's
 * pointers, the one allocation, the initial values, the optimiser's groups, and the keys of a
 * checkpoint. */
#ifndef LLMC_LIKE_PARAMS_H
#define LLMC_LIKE_PARAMS_H

#include <stdint.h>

#include "llmc_like/arena.h"
#include "llmc_like/ctx.h"
#include "llmc_like/error.h"
#include "llmc_like/tensor.h"

/* Optimiser groups: which rule updates a parameter. */
typedef enum { GROUP_MUON, GROUP_ADAM, GROUP_ADAMW } ParamGroup;

/* Initial values, as PyTorch's modules have them. */
typedef enum {
    INIT_ZERO,
    INIT_ONE,
    INIT_VALUE,   /* a */
    INIT_UNIFORM, /* U(-a, a), a the row's argument: Linear and Conv2d use a = 1 / sqrt(fan in) */
    INIT_NORMAL,  /* N(0, a^2) */
    INIT_COPY     /* from the table that the model gives: param->init_data */
} ParamInit;

typedef struct Param {
    Tensor tensor; /* tensor.name is the state_dict key */
    ParamGroup group;
    ParamInit init;
    float init_arg;
    const float *init_data;
    /* optimiser state, float32, tensor's shape; NULL where the rule has none. Muon: m. Adam: m and
     * v. */
    float *m, *v;
} Param;

typedef struct ParamTable {
    Param *row; /* its address may change until params_commit; tensors are handed out by pointer to
                   pointer */
    Tensor ***slot;
    int n, cap;
    int64_t numel;
    Arena values, grads, state;
} ParamTable;

void params_init(ParamTable *p, bool dry);

/* One row. *slot becomes valid at params_commit. name_fmt is a printf format for the key. shape:
 * ndim numbers. */
void params_add(ParamTable *p, Tensor **slot, ParamGroup group, ParamInit init, float init_arg,
                int ndim, const int64_t *shape, const char *name_fmt, ...)
    __attribute__((format(printf, 8, 9)));
void params_set_init_data(ParamTable *p, const float *data); /* of the last row, with INIT_COPY */

/* Two rows, NAME.weight (out, in) in `group` and NAME.bias (out), as torch.nn.Linear has them: both
 * U(-1/sqrt(in), 1/sqrt(in)), or the bias zero (bias_init INIT_ZERO). A bias is no matrix: where
 * the weight goes to Muon, it goes to Adam. */
void params_add_linear(ParamTable *p, Tensor **weight, Tensor **bias, ParamGroup group,
                       ParamInit bias_init, int64_t out, int64_t in, const char *name);

/* Allocates values (and, for training, gradients and optimiser state, zeroed) in one go each, fills
 * the slots, and draws the initial values: number i of parameter r is element i of the stream
 * (seed, step r, RNG_INIT). */
int params_commit(ParamTable *p, uint64_t seed, bool training, Err *e);
void params_free(ParamTable *p);

Param *params_find(ParamTable *p, const char *name); /* NULL: no such key */
void params_zero_grad(ParamTable *p); /* clears grad_set; the next backward overwrites */

/* sqrt(sum of squares of all gradients), in double, in an order that threads do not change.
 * Parameters that no backward has reached since params_zero_grad count as zero (and their gradient
 * is cleared here). */
double params_grad_norm(Ctx *c, ParamTable *p);

#endif
