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
    /* float32, tensor's shape, in the device's memory: the values that the optimiser updates
     * (tensor.data itself unless that is bf16: then tensor.data is their rounding), */
    float *master;
    /* and its state; NULL where the rule has none. Muon: m. Adam: m and v. */
    float *m, *v;
} Param;

typedef struct ParamTable {
    Param *row; /* its address may change until params_commit; tensors are handed out by pointer to
                   pointer */
    Tensor ***slot;
    int n, cap;
    int64_t numel;
    DType dtype;   /* of those that are not exact */
    Arena values;  /* float32: the masters */
    Arena rounded; /* bf16; empty elsewhere */
    Arena grads, state;
    uint64_t seed;
} ParamTable;

/* An empty table for models in this context: its device's memory, dtype, seed, and dryness. */
void params_init(ParamTable *p, const Ctx *c);

/* One row. *slot becomes valid at params_commit. name_fmt is a printf format for the key. shape:
 * ndim numbers. */
void params_add(ParamTable *p, Tensor **slot, ParamGroup group, ParamInit init, float init_arg,
                int ndim, const int64_t *shape, const char *name_fmt, ...)
    __attribute__((format(printf, 8, 9)));
void params_set_init_data(ParamTable *p, const float *data); /* of the last row, with INIT_COPY */
void params_set_exact(
    ParamTable *p); /* the last row is exact: a norm's weight, a table, a factor */

/* Two rows, NAME.weight (out, in) in `group` and NAME.bias (out), as torch.nn.Linear has them: both
 * U(-1/sqrt(in), 1/sqrt(in)), or the bias zero (bias_init INIT_ZERO). A bias is no matrix: where
 * the weight goes to Muon, it goes to Adam. */
void params_add_linear(ParamTable *p, Tensor **weight, Tensor **bias, ParamGroup group,
                       ParamInit bias_init, int64_t out, int64_t in, const char *name);

/* Allocates values (and, for training, gradients and optimiser state, zero) in one go each, fills
 * the slots, and draws the initial values on the host: number i of parameter r is element i of the
 * stream (seed, step r, RNG_INIT). */
int params_commit(ParamTable *p, bool training, Err *e);
void params_free(ParamTable *p);

/* A row's float32 values to the host, and from there (rounded anew where it is bf16). Both wait for
 * the device. Gradients, m and v: the memory's own get and put. */
void params_read(const ParamTable *p, const Param *r, float *x);
void params_write(ParamTable *p, Param *r, const float *x);

Param *params_find(ParamTable *p, const char *name); /* NULL: no such key */
void params_zero_grad(ParamTable *p); /* clears grad_set; the next backward overwrites */

/* Clears the gradients that no backward has reached since params_zero_grad. */
void params_settle_grad(ParamTable *p);

#endif
