/* The devices that this build knows. A CPU device is the same sources built for one instruction
 * set; the best that the processor has is chosen at run time. "plain" is the naive reference in
 * float32 and float64, for tests. */
#ifndef KERNELS_DEVICE_H
#define KERNELS_DEVICE_H

#include "llmc_like/ctx.h"

extern const Device cuda_device; /* where nvcc was not found: one that runs nowhere */
extern const Device cpu_device_avx512, cpu_device_avx2, cpu_device_portable, plain_device;

extern const Device *const devices[]; /* best first, NULL at the end */

/* Whether this machine can run it. */
bool device_runs_here(const Device *d);

/* "auto": the first of devices[] that runs here; "cpu": the first CPU device; or a device by its
 * own name. NULL and a sentence otherwise. */
const Device *device_find(const char *name, Err *e);

#endif
