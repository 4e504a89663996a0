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
#include "llmc_like/memory.h"
#include "llmc_like/tape.h"
#include "llmc_like/tensor.h"

struct AttnBackend; /* kernels/attention.h */
struct Optim;       /* llmc_like/optim.h */
struct ParamTable;  /* llmc_like/params.h */

/* Time and work per op since ctx_profile_reset. Index: the op's number in kernels/ops.h. */
enum { PROFILE_MAX_OPS = 64 };

typedef struct OpProfile {
    int64_t calls;
    double forward_s, backward_s; /* wall seconds */
    double forward_flops,
        backward_flops; /* floating-point operations, a multiply-add counts as two */
    double forward_bytes, backward_bytes; /* compulsory memory traffic */
} OpProfile;

/* What is timed: each op, the phases of a step, and steps. */
typedef enum { CLOCK_OP, CLOCK_PHASE, CLOCK_STEP, CLOCKS } Clock;

/* What a device has whose kernels run behind the host's back, in the order in which they were
 * started. A device without one has computed when a call returns. The functions of the context of
 * the same names (below) work on every device. */
typedef struct Queue {
    int (*open)(Ctx *c, Err *e); /* makes c->device_state; of a dry context too, without memory */
    /* Copies from the host's memory, which may be used again at once. */
    void (*upload)(Ctx *c, void *to, const void *from_host, size_t bytes);
    void (*fetch)(Ctx *c, double *to_host, const double *from); /* to_host: one of fetched */
    double *(*fetched)(Ctx *c); /* FETCH_MAX numbers that copies reach without a wait */
    uint64_t (*mark)(Ctx *c);
    void (*wait)(Ctx *c, uint64_t mark);
    void (*lap)(Ctx *c, Clock clock, double *sum);
} Queue;

/* A device: its ops and the few kernels that no tape records. One constant table each
 * (kernels/cpu/table.c, kernels/cuda/table.cu). */
typedef struct Device {
    const char *name; /* "cpu-avx512", "cpu-avx2", "cpu-portable", "plain", "cuda" */
    int (*check)(
        Err *e); /* -1 and a clause that says why it cannot run on this machine; NULL: it can */
    void (*release)(Ctx *c); /* frees c->device_state; NULL where there is none */
    const Memory *memory;
    const Queue *queue; /* NULL: none */
    bool has_bf16;      /* else it computes in float32 alone (plain: float64 too) */
    const OpKernel *ops;
    const struct AttnBackend *const *attn; /* in the registry's order, kernels/attention.h */
    /* to += from, n numbers of that dtype */
    void (*accumulate)(Ctx *c, DType dtype, void *to, const void *from, int64_t n);
    /* One update of all rows, llmc_like/optim.h: writes the gradients' norm before clipping to
     * *norm (the device's memory), and where it is NaN or infinite changes nothing else. */
    void (*update)(Ctx *c, struct Optim *o, struct ParamTable *p, double lr_factor, double clip,
                   double *norm);
    size_t (*update_workspace)(const Ctx *c, const struct ParamTable *p); /* its ctx_workspace */
    /* GFLOP/s of its matrix product in c->dtype, measured; NULL: peak_gflops measures gemm */
    double (*peak)(Ctx *c);
    /* The rest is for devices with host memory; NULL elsewhere. */
    /* C (M, N) = alpha op(A) op(B) + beta C, row-major; op(A) is (M, K), op(B) is (K, N); ta, tb:
     * stored transposed. Inside a parallel region (the update runs one matrix a thread) it computes
     * on the calling thread alone; it takes no ctx_workspace. */
    void (*gemm)(Ctx *c, bool ta, bool tb, int64_t M, int64_t N, int64_t K, float alpha,
                 const float *A, int64_t lda, const float *B, int64_t ldb, float beta, float *C,
                 int64_t ldc);
    double (*sum_squares)(Ctx *c, const float *x,
                          int64_t n); /* in double; the same for any number of threads */
    const struct OptimKernels *optim; /* llmc_like/optim.h */
} Device;

enum { FETCH_MAX = 8192 };

struct Ctx {
    const Device *dev;
    DType dtype; /* of activations: F32 or BF16, or F64 on the plain device (finite differences) */
    int n_threads;
    bool dry;
    bool recording; /* ops go on the tape; off in evaluation and sampling */
    bool portable;  /* by kernels that all GPUs of the device run, where there are faster ones for
                       this one: for tests and benchmarks */
    uint64_t seed;

    Arena host;        /* ctx_host: the tensors' own structs, and more; real in a dry context too */
    Arena activations; /* refilled from its start by each step */
    Arena gradients;   /* behind the pool */
    Pool pool;
    Arena workspace; /* one kernel's scratch, see ctx_workspace */
    Tape tape;

    void *device_state; /* what the device keeps between calls (compiled convolutions); its own */
    const struct AttnBackend *attn; /* the backend that op_attention calls */
    Tensor largest;                 /* of a dry context's activations: name and shape */
    const OpCall *op; /* the call that runs, for messages about a device's errors; NULL: none */
    double *fetched;  /* a ring of FETCH_MAX numbers */
    uint64_t n_fetched;
    bool profiling; /* ops are timed; where there is a queue that is not for free: false there */
    double lap_s[CLOCKS]; /* when the last lap began */
    OpProfile profile[PROFILE_MAX_OPS];
};

/* device: "auto" (cuda where there is a GPU that can, else cpu), "cuda", "cpu" (the best the
 * processor has: AVX-512, AVX2, portable), or one of them by name, or "plain". threads 0: as many
 * as the processor has. Activations are float32: see ctx_set_dtype. -1 and a sentence where the
 * device or the processor cannot. */
int ctx_init(Ctx *c, const char *device, int threads, uint64_t seed, bool dry, Err *e);

/* Activations of "float32" or "bfloat16" ("bf16" for short), before the first tensor is made. -1
 * and a sentence where the device does not compute in it. */
int ctx_set_dtype(Ctx *c, const char *dtype, Err *e);

/* What stays exact where activations are bf16, and has their dtype elsewhere: statistics that an op
 * saves, norm weights, tables, targets, directions. */
DType ctx_exact(const Ctx *c);
void ctx_free(Ctx *c);

/* Maps what a dry run of the step has counted, so that the first step grows nothing. */
int ctx_commit(Ctx *c, size_t activations, size_t gradients, size_t workspace, Err *e);

/* Begins a step: forgets the tape and all activations of the step before. */
void ctx_step_begin(Ctx *c);

/* A new tensor in the activations arena (of c->dtype, or of the dtype given); contents undefined.
 */
Tensor *ctx_tensor(Ctx *c, const char *name, DType dtype, int ndim, const int64_t *shape);

/* A tensor with the caller's numbers: over the caller's own memory, which must live as long as the
 * step, where the device computes there; else copied to the device. */
Tensor *ctx_input(Ctx *c, const char *name, DType dtype, int ndim, const int64_t *shape,
                  const void *data);

/* `bytes` of the host's memory, for as long as the step. */
void *ctx_host(Ctx *c, size_t bytes);

/* `bytes` of scratch for the kernel that runs now: valid until the next ctx_workspace. One block,
 * kept and grown. */
void *ctx_workspace(Ctx *c, size_t bytes);

/* The number that a kernel has made (a loss, a norm: one float64) on its way to the host: *returned
 * holds it after ctx_wait for a mark that was set behind this call, and until FETCH_MAX calls
 * later. */
const double *ctx_fetch(Ctx *c, const double *from);

/* A mark behind everything that was started so far, and the wait until all before it is done. A
 * mark can be waited for until the eighth one after it is set. */
uint64_t ctx_mark(Ctx *c);
void ctx_wait(Ctx *c, uint64_t mark);

/* The tensor's numbers on the host, waiting for them: its own memory where that is the host's, else
 * a copy that lives as long as the step. ctx_read_f32 makes float32 of bf16. */
const void *ctx_read(Ctx *c, const Tensor *t);
const float *ctx_read_f32(Ctx *c, const Tensor *t);

/* Ends the clock's lap that began at its last call, and adds its seconds to *sum (NULL: to
 * nothing). Where the device has a queue the sum is there after ctx_wait for a mark behind it. */
void ctx_lap(Ctx *c, Clock clock, double *sum);

void ctx_profile_reset(Ctx *c);
double now_s(void); /* CLOCK_MONOTONIC in seconds */

#endif
