/* What the files of the device itself share: table.cu lists what device.cu and optim.cu have. */
#ifndef KERNELS_CUDA_DEVICE_CUH
#define KERNELS_CUDA_DEVICE_CUH

#include "kernels/cuda/cuda.cuh"

extern "C" {
#include "llmc_like/optim.h"
}

extern const Memory cuda_memory; /* device.cu */
extern const Queue cuda_queue;
int cuda_check(Err *e);
void cuda_release(Ctx *c);

/* Device.accumulate (elementwise.cu), Device.update, .update_workspace (optim.cu) and .peak
 * (gemm.cu) */
void cuda_accumulate(Ctx *c, DType dtype, void *to, const void *from, int64_t n);
void cuda_update(Ctx *c, Optim *o, ParamTable *p, double lr_factor, double clip, double *norm);
size_t cuda_update_workspace(const Ctx *c, const ParamTable *p);
double cuda_peak(Ctx *c);

#endif
