/* Philox 4x32-10 as in cuRAND's header of this name: counter and key to four numbers.
 * Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011. */
#ifndef DEV_EMU_CURAND_PHILOX4X32_X_H
#define DEV_EMU_CURAND_PHILOX4X32_X_H

#include <cuda_runtime.h>

static inline uint4 emu_philox_round(uint4 c, uint2 key) {
    const uint64_t p0 = (uint64_t)0xD2511F53u * c.x, p1 = (uint64_t)0xCD9E8D57u * c.z;
    return make_uint4((unsigned)(p1 >> 32) ^ c.y ^ key.x, (unsigned)p1,
                      (unsigned)(p0 >> 32) ^ c.w ^ key.y, (unsigned)p0);
}

static inline uint4 curand_Philox4x32_10(uint4 counter, uint2 key) {
    for (int round = 0; round < 10; round++) {
        counter = emu_philox_round(counter, key);
        key = make_uint2(key.x + 0x9E3779B9u, key.y + 0xBB67AE85u);
    }
    return counter;
}

#endif
