/* The order of a data set's examples, without a list of them. */
#ifndef LLMC_LIKE_PERMUTE_H
#define LLMC_LIKE_PERMUTE_H

#include <stdint.h>

/* A bijection of 0..n-1, keyed: a Feistel network of four rounds over the next power of four, whose
 * walk is followed until it is back inside (Black and Rogaway, "Ciphers with arbitrary finite
 * domains", 2002). n >= 1, index < n. The rounds are Philox's (RNG_DATA), so the order is the same
 * on every machine; a pass (an epoch) has an order of its own. */
uint64_t permute(uint64_t seed, uint64_t pass, uint64_t n, uint64_t index);

#endif
