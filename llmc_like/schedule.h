/* Learning-rate schedules: the factor on the base (or largest) rate at a step. Steps count from 0.
 */
#ifndef LLMC_LIKE_SCHEDULE_H
#define LLMC_LIKE_SCHEDULE_H

#include <stdint.h>

/* step < warmup:  step / warmup           so step 0 changes nothing
 * otherwise:      0.5 (1 + cos(pi (step - warmup) / (total - warmup)))
 * and 0 from step `total` on. warmup 0: no warm-up. */
double schedule_warmup_cosine(int64_t step, int64_t warmup, int64_t total);

/* step < warmup: step / warmup; then 1. */
double schedule_constant(int64_t step, int64_t warmup);

/* PyTorch's OneCycleLR with two phases and cosine annealing, as a factor on max_lr. With
 *   first = 1 / div,   last = first / final_div,   peak = pct_start total - 1,   end = total - 1
 * the factor goes from first to 1 over steps 0 .. peak, then from 1 to last over peak .. end, and
 *   from a to b at share s of the way:   b + (a - b) / 2 (1 + cos(pi s)).
 * PyTorch's defaults: pct_start 0.3, div 25, final_div 1e4. Past the end the factor stays `last`
 * (PyTorch raises an error). */
typedef struct OneCycle {
    int64_t total;
    double pct_start, div, final_div;
} OneCycle;

double schedule_one_cycle(int64_t step, OneCycle c);

/* The momentum (SGD) or beta1 (Adam) that PyTorch's OneCycleLR cycles the other way unless told not
 * to: from `high` down to `low` at the peak of the rate and back. PyTorch's defaults: low 0.85,
 * high 0.95. */
double schedule_one_cycle_momentum(int64_t step, OneCycle c, double low, double high);

#endif
