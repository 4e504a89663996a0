/* The context: everything a step needs that is not the model. Device, threads, arenas, tape, chosen
 * attention, seed and profile live here and nowhere else; there are no mutable globals. One context
 * a thread of training.
 *
 * A context is dry or real. In a dry one the ops check shapes, record and count memory and flops,
 * and compute nothing:
 * `--plan`, the sizes of the arenas and the printed table come from running the same forward and
 * backward dry. */
#ifndef LLMC_LIKE_CTX_H
#define LLMC_LIKE_CTX_H

#include <stdint.h>

#include "llmc_like/arena.h"
#include "llmc_like/error.h"
#include "llmc_like/tape.h"
#include "llmc_like/tensor.h"

struct AttnBackend; /* kernels/attention.h */

/* Time and work per op since ctx_profile_reset. Index: the op's number in kernels/ops.h. */
enum { PROFILE_MAX_OPS = 64 };

typedef struct OpProfile {
    int64_t calls;
    double forward_s, backward_s; /* wall seconds */
    double forward_flops,
        backward_flops; /* floating-point operations, a multiply-add counts as two */
    double forward_bytes, backward_bytes; /* compulsory memory traffic */
} OpProfile;

/* A device: its ops and the few kernels that no tape records. One constant table each
 * (kernels/cpu/table.c). */
typedef struct Device {
    const char *name; /* "cpu-avx512", "cpu-avx2", "cpu-portable", "plain" */
    const OpKernel *ops;
    /* C (M, N) = alpha op(A) op(B) + beta C, row-major; op(A) is (M, K), op(B) is (K, N); ta, tb:
     * stored transposed. Inside a parallel region (the update runs one matrix a thread) it computes
     * on the calling thread alone; it takes no ctx_workspace. */
    void (*gemm)(Ctx *c, bool ta, bool tb, int64_t M, int64_t N, int64_t K, float alpha,
                 const float *A, int64_t lda, const float *B, int64_t ldb, float beta, float *C,
                 int64_t ldc);
    double (*sum_squares)(Ctx *c, const float *x,
                          int64_t n); /* in double; the same for any number of threads */
    const struct OptimKernels *optim; /* llmc_like/optim.h */
    void (*release)(Ctx *c);          /* frees c->device_state; NULL where there is none */
} Device;

struct Ctx {
    const Device *dev;
    DType dtype; /* of activations: F32, or F64 on the plain device (finite differences) */
    int n_threads;
    bool dry;
    bool recording; /* ops go on the tape; off in evaluation and sampling */
    uint64_t seed;

    Arena headers;     /* the tensors' own structs; real in a dry context too */
    Arena activations; /* refilled from its start by each step */
    Arena gradients;   /* behind the pool */
    Pool pool;
    Arena workspace; /* one kernel's scratch, see ctx_workspace */
    Tape tape;

    void *device_state; /* what the device keeps between calls (compiled convolutions); its own */
    const struct AttnBackend *attn; /* the backend that op_attention calls */
    OpProfile profile[PROFILE_MAX_OPS];
};

/* device: "cpu" (the best the processor has: AVX-512, AVX2, portable), or one of them by name, or
 * "plain". threads 0: as many as the processor has. -1 and a sentence where the device or the
 * processor cannot. */
int ctx_init(Ctx *c, const char *device, int threads, uint64_t seed, bool dry, Err *e);
void ctx_free(Ctx *c);

/* Maps what a dry run of the step has counted, so that the first step grows nothing. */
int ctx_commit(Ctx *c, size_t activations, size_t gradients, size_t workspace, Err *e);

/* Begins a step: forgets the tape and all activations of the step before. */
void ctx_step_begin(Ctx *c);

/* A new tensor in the activations arena (of c->dtype, or of the dtype given); contents undefined.
 */
Tensor *ctx_tensor(Ctx *c, const char *name, DType dtype, int ndim, const int64_t *shape);

/* A tensor over the caller's own memory, which must live as long as the step. */
Tensor *ctx_input(Ctx *c, const char *name, DType dtype, int ndim, const int64_t *shape,
                  const void *data);

/* `bytes` of scratch for the kernel that runs now: valid until the next ctx_workspace. One block,
 * kept and grown. */
void *ctx_workspace(Ctx *c, size_t bytes);

void ctx_profile_reset(Ctx *c);
double now_s(void); /* CLOCK_MONOTONIC in seconds */

#endif
