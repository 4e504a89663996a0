/* SHA-256 (FIPS 180-4), for the names of compiled code and for telling whether it is still what was
 * written. */
#ifndef KERNELS_FLEX_SHA256_H
#define KERNELS_FLEX_SHA256_H

#include <stddef.h>
#include <stdint.h>

enum { SHA256_HEX = 65 }; /* 64 digits and the end */

typedef struct Sha256 {
    uint32_t state[8];
    uint64_t length; /* bytes so far */
    unsigned char block[64];
} Sha256;

void sha256_init(Sha256 *s);
void sha256_add(Sha256 *s, const void *data, size_t n);
/* The digest in lower-case hexadecimal; s is used up. */
void sha256_hex(Sha256 *s, char out[SHA256_HEX]);

#endif
