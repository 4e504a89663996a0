/* Stands in for kernels/cuda where nvcc is not found. */
#include "kernels/device.h"

static int check(Err *e) {
    return err_set(e,
                   "--device cuda: this program was built without CUDA (make found no nvcc); use "
                   "--device cpu");
}

const Device cuda_device = {.name = "cuda", .check = check};
