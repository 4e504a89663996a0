/* The streams of random numbers of llmc_like/philox.h, the same to the bit: a run draws the same
 * numbers on every device. */
#ifndef KERNELS_CUDA_PHILOX_CUH
#define KERNELS_CUDA_PHILOX_CUH

#include <curand_philox4x32_x.h>

#include "kernels/cuda/cuda.cuh"

extern "C" {
#include "llmc_like/philox.h"
}

typedef struct Stream {
    uint2 key;
    uint32_t step, purpose;
    uint64_t first; /* number of element 0 */
} Stream;

static inline Stream stream_of(const OpCall *o, uint32_t purpose, uint64_t first) {
    Stream s;
    s.key = make_uint2((uint32_t)o->attr.seed, (uint32_t)(o->attr.seed >> 32));
    s.step = o->attr.step;
    s.purpose = purpose;
    s.first = first;
    return s;
}

/* Numbers 4 block .. 4 block + 3. */
static __device__ __forceinline__ uint4 stream_block(const Stream &s, uint64_t block) {
    return curand_Philox4x32_10(
        make_uint4((uint32_t)block, (uint32_t)(block >> 32), s.step, s.purpose), s.key);
}

#endif
