#include "llmc_like/permute.h"

#include "llmc_like/error.h"
#include "llmc_like/philox.h"

static uint64_t feistel(uint64_t seed, uint64_t pass, int half_bits, uint64_t x) {
    const uint64_t mask = (UINT64_C(1) << half_bits) - 1;
    uint64_t left = x >> half_bits, right = x & mask;
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    for (uint32_t round = 0; round < 4; round++) {
        /* half_bits <= 32, so the half fits the counter; purpose and round share its last word */
        const uint32_t counter[4] = {(uint32_t)right, (uint32_t)pass, (uint32_t)(pass >> 32),
                                     RNG_DATA + (round << 16)};
        uint32_t out[4];
        philox4x32(counter, key, out);
        uint64_t mixed = left ^ (out[0] & mask);
        left = right;
        right = mixed;
    }
    return left << half_bits | right;
}

uint64_t permute(uint64_t seed, uint64_t pass, uint64_t n, uint64_t index) {
    CHECK(index < n, "index %llu of %llu", (unsigned long long)index, (unsigned long long)n);
    int half_bits = 1;
    while (half_bits < 32 && (UINT64_C(1) << (2 * half_bits)) < n) half_bits++;
    do index = feistel(seed, pass, half_bits, index);
    while (index >= n);
    return index;
}
