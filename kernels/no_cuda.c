/* Stands in for kernels/cuda where nvcc is not found. */
#include "kernels/device.h"

static int check(Err *e) {
    return err_set(e, "this program was built without CUDA (make found no nvcc)");
}

const Device cuda_device = {.name = "cuda", .check = check};
