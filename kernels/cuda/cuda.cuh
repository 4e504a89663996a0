/* What every kernel file of the CUDA device shares: the context, checked calls, the launch. What
 * lies where:
 *
 *   device, table                 memory, the queue, time; the list of kernels
 *   gemm, linear, conv            products by cuBLASLt, and what is made of them; conv_sm90: the
 *                                 convolutions that Hopper makes itself
 *   rows                          rows picked by number; columns summed in a fixed order
 *   activation, elementwise       a number at a time; dropout, noise: with philox's random ones
 *   layernorm, rmsnorm, modulate  norms of rows, by norm.cuh; groupnorm: of images
 *   rope, embedding, layout       positions, tables, and what only moves
 *   segment, direction, loss      events in segments; what is learned from
 *   optim                         the update of all parameters
 *   attention_*                   a backend each; flash_*: sdpa's kernels, attention_scores: those
 *                                 of the backends that have their scores in memory
 *   flex_*                        sdpa's kernels compiled at run time with expressions; plans
 *   device_code, ptx              what kernels are written with; instructions that C++ has no word
 *                                 for, ptx_sm90: Hopper's; tensor_map: its copy engine's maps
 *
 * The same sources are built twice: by nvcc for a GPU, and by the host's C++ compiler for the
 * emulator (dev/emu), which finds races, reads past ends and misused instructions on machines
 * without one. For that they keep to a subset of CUDA:
 *   - kernels are started by launch() and nothing else; one stream, the context's;
 *   - inline PTX lives in ptx.cuh alone, one wrapper an instruction;
 *   - no cooperative groups, no dynamic parallelism, no textures, no floating-point atomics;
 *   - shared memory is `__shared__` variables, or the dynamic block that shared_block() gives;
 *   - threads of a warp that exchange data through shared memory call __syncwarp between; a
 *     shuffle or vote orders no memory. Shared memory is written before it is read;
 *   - no block touches what another of the launch writes, and of a block's threads no two write one
 *     place without a barrier between, not even the same value;
 *   - all threads that a barrier waits for come to it at one place of the source, and so do the
 *     lanes of a warp to a shuffle, vote or instruction of ptx.cuh, with one mask that names them;
 *   - numbers become bf16 by from_float or the toolkit's functions, not by conversion.
 * A kernel checks nothing: ops.c has.
 *
 * Activations and their gradients have the context's dtype, T below: float or bf16. A kernel
 * computes in float32. Gradients of parameters are float32, and are overwritten or added to by
 * grad_set (llmc_like/tape.h). */
#ifndef KERNELS_CUDA_CUDA_CUH
#define KERNELS_CUDA_CUDA_CUH

#include <cuda_runtime.h>
#include <stdint.h>

#include "kernels/cuda/device_code.cuh"

extern "C" {
#include "kernels/ops.h"
}

/* ---- the context's half on the device (c->device_state; device.cu) ---- */

struct CublasLt; /* gemm.cuh */

typedef struct Cuda {
    cudaStream_t stream;
    struct CublasLt *blas;   /* opened at the first product */
    struct CudaMasks *masks; /* intervals and documents on the device, attention.cuh */
    struct FlexCodes *codes; /* kernels compiled at run time, flex_code.cu */
    struct FlexPlans *plans; /* of expression masks, flex_plan.cu */
    struct CudaTimes *times; /* events not yet read, device.cu */
    struct Staging *staging; /* pinned memory for inputs, device.cu */
    double *fetched;         /* pinned: Ctx.fetched */
    cudaEvent_t mark[8];     /* a ring */
    uint64_t n_marks;
    unsigned *drawn; /* on the device, 0 between kernels: items of work that blocks drew */
    int n_sm;        /* multiprocessors */
    int max_shared;  /* bytes of dynamic shared memory that a block may ask for */
    int arch;        /* 80, 90, ... */
} Cuda;

static inline Cuda *cuda_of(const Ctx *c) { return (Cuda *)c->device_state; }

/* Ends the run with one sentence on stderr that names the call, the op that ran (c->op) with the
 * shapes of its inputs, and the error; exit status 1. Checkpoints on disk stay as they are.
 * c may be NULL. */
[[noreturn]] void cuda_fail(const Ctx *c, const char *call, const char *error);

#define CUDA(c, call)                                                                 \
    do {                                                                              \
        const cudaError_t status_ = (call);                                           \
        if (status_ != cudaSuccess) cuda_fail(c, #call, cudaGetErrorString(status_)); \
    } while (0)

/* ---- launch ---- */

#ifdef LLMC_EMU
#include "dev/emu/launch.h" /* emu_launch */
#endif

/* The kernel on the context's stream with `shared` bytes of dynamic shared memory. An empty grid is
 * no launch. */
template <typename... P, typename... A>
static inline void launch(Ctx *c, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared,
                          A... args) {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
#ifdef LLMC_EMU
    const auto body = [=] { kernel(P(args)...); };
    CUDA(c, emu_launch(kernel, grid, block, shared, body));
#else
    enum { WITHOUT_ASKING = 48 << 10 };
    if (shared > WITHOUT_ASKING)
        CUDA(c, cudaFuncSetAttribute((const void *)kernel,
                                     cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared;
    config.stream = cuda_of(c)->stream;
    CUDA(c, cudaLaunchKernelEx(&config, kernel, P(args)...));
#endif
}

static inline int64_t round_up(int64_t n, int64_t to) { return div_up(n, to) * to; }

/* One thread an element of n, in blocks of 256; for kernels that begin with
 *     const int64_t i = global_thread(); if (i >= n) return; */
enum { BLOCK = 256 };
static inline dim3 grid_for(int64_t n) { return dim3((unsigned)div_up(n, BLOCK)); }

/* ---- dtypes ---- */

/* Calls f with a value of the C++ type of dtype: f(float()) or f(bf16()). */
template <typename F>
static inline void with_dtype(DType dtype, F f) {
    if (dtype == DT_BF16)
        f(bf16());
    else
        f(float());
}

/* ---- packs ---- */

/* Calls f with a pack: f(Pack<T>()) where `lengths` are multiples of that, else f(Pack<T, 1>()).
 * lengths, or'ed together: of rows, and of what lies between them. A tensor begins at a multiple of
 * 256 bytes, so a row begins at a multiple of 16 when all that is before it has such lengths. */
template <typename T, typename F>
static inline void with_pack(int64_t lengths, F f) {
    if (lengths % Pack<T>::N == 0)
        f(Pack<T>());
    else
        f(Pack<T, 1>());
}

template <typename F>
static inline void with_pack(DType dtype, int64_t lengths, F f) {
    with_dtype(dtype, [&](auto zero) { with_pack<decltype(zero)>(lengths, f); });
}

template <typename T>
static constexpr size_t number_size(const T *) {
    return sizeof(T);
}
template <typename T, int N>
static constexpr size_t number_size(const Pack<T, N> *) {
    return sizeof(T);
}

/* t's gradient, NULL: not wanted. V is the type of its numbers, or a pack of them: float for a
 * parameter, else the dtype of t's data. */
template <typename V>
static inline V *grad_of(const Tensor *t) {
    const DType dtype = t->is_param ? DT_F32 : t->dtype;
    V *grad = (V *)t->grad;
    CHECK(!grad || number_size(grad) == dtype_size(dtype), "%s: its gradient is %s", t->name,
          dtype_name(dtype));
    return grad;
}

#endif
