/* The events that benchmarks of the IceCube models measure: 20 to 80 DOMs each, of which 78 % have
 * one pulse, 16 % two or three, 4 % four to ten and 2 % eleven to 37: in the mean 97 pulses on 50
 * DOMs. */
#ifndef BENCH_ICECUBE_LAW_H
#define BENCH_ICECUBE_LAW_H

#include "llmc_like/philox.h"

enum { LAW_LEAST_DOMS = 20, LAW_MOST_DOMS = 80, LAW_MOST_OF_A_DOM = 37 };
enum { LAW_MOST_PULSES = LAW_MOST_DOMS * LAW_MOST_OF_A_DOM };

/* A whole number from low to high. */
static inline int law_between(RngStream *r, int low, int high) {
    return low + (int)rng_next_below(r, (uint32_t)(high - low + 1));
}

/* How many DOMs an event has. */
static inline int law_doms(RngStream *r) { return law_between(r, LAW_LEAST_DOMS, LAW_MOST_DOMS); }

/* How many pulses one of them has. */
static inline int law_pulses(RngStream *r) {
    const uint32_t u = rng_next_below(r, 100);
    return u < 78   ? 1
           : u < 94 ? law_between(r, 2, 3)
           : u < 98 ? law_between(r, 4, 10)
                    : law_between(r, 11, LAW_MOST_OF_A_DOM);
}

#endif
