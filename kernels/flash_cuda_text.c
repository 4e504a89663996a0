/* The assembler includes the files (paths from the project's root, where make runs, which knows
 * that this object is made from them). */
#include "kernels/flash_cuda_text.h"

#include <stddef.h>

#define FILES(X)                                                   \
    X(device_code, "kernels/cuda/device_code.cuh")                 \
    X(ptx, "kernels/cuda/ptx.cuh")                                 \
    X(ptx_sm90, "kernels/cuda/ptx_sm90.cuh")                       \
    X(flash_mask, "kernels/cuda/flash_mask.cuh")                   \
    X(flash_tile, "kernels/cuda/flash_tile.cuh")                   \
    X(flash_forward_bf16, "kernels/cuda/flash_forward_bf16.cuh")   \
    X(flash_backward, "kernels/cuda/flash_backward.cuh")           \
    X(flash_backward_bf16, "kernels/cuda/flash_backward_bf16.cuh") \
    X(flash_sm90, "kernels/cuda/flash_sm90.cuh")                   \
    X(flash_forward_sm90, "kernels/cuda/flash_forward_sm90.cuh")   \
    X(flash_backward_sm90, "kernels/cuda/flash_backward_sm90.cuh") \
    X(flash_f32_tile, "kernels/cuda/flash_f32_tile.cuh")           \
    X(flash_f32, "kernels/cuda/flash_f32.cuh")                     \
    X(flex_plan, "kernels/cuda/flex_plan.cuh")                     \
    X(nvrtc_std, "kernels/cuda/nvrtc_std.h")

#define INCLUDE(name, file)      \
    __asm__(                     \
        ".pushsection .rodata\n" \
        "cuda_text_" #name       \
        ":\n"                    \
        ".incbin \"" file        \
        "\"\n"                   \
        ".byte 0\n"              \
        ".popsection\n");        \
    extern const char cuda_text_##name[];
FILES(INCLUDE)

#define NAMED(name, file) {file, cuda_text_##name},
const FlashFile flash_cuda_files[] = {FILES(NAMED){NULL, NULL}};
