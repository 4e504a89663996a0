/* How kernels/cuda/cuda.cuh starts a kernel in the emulator, and where its dynamic shared memory
 * is. */
#ifndef DEV_EMU_LAUNCH_H
#define DEV_EMU_LAUNCH_H

#include <cuda_runtime.h>

template <typename F>
static void emu_run(const void *closure) {
    (*(const F *)closure)();
}

/* Calls body(), which calls kernel, once for each thread of the grid; returns when all have ended.
 * Ends the process with a sentence where a limit of the launch is passed or a thread goes wrong.
 * cudaErrorLaunchFailure: see emu_launch_raw. */
template <typename K, typename F>
static inline cudaError_t emu_launch(K *kernel, dim3 grid, dim3 block, size_t shared, F body) {
    const bool ran =
        emu_launch_raw((const void *)kernel, grid, block, shared, emu_run<F>, &body, sizeof body);
    return ran ? cudaSuccess : cudaErrorLaunchFailure;
}

#endif
