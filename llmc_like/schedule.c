#include "llmc_like/schedule.h"

#include <math.h>

#include "llmc_like/error.h"

/* From a (share 0) to b (share 1) along half a cosine. */
static double cosine(double a, double b, double share) {
    return b + 0.5 * (a - b) * (1.0 + cos(3.14159265358979323846 * share));
}

double schedule_warmup_cosine(int64_t step, int64_t warmup, int64_t total) {
    CHECK(step >= 0 && warmup >= 0, "step %lld, warmup %lld", (long long)step, (long long)warmup);
    if (step < warmup) return (double)step / (double)warmup;
    if (step >= total) return 0.0;
    return cosine(1.0, 0.0, (double)(step - warmup) / (double)(total - warmup));
}

double schedule_constant(int64_t step, int64_t warmup) {
    CHECK(step >= 0 && warmup >= 0, "step %lld, warmup %lld", (long long)step, (long long)warmup);
    return step < warmup ? (double)step / (double)warmup : 1.0;
}

/* The shape that rate and momentum share: a at step 0, `peak` at the peak, b at the end. */
static double one_cycle(int64_t step, OneCycle c, double a, double peak, double b) {
    CHECK(c.total > 0 && c.pct_start >= 0 && c.pct_start <= 1, "total %lld, pct_start %g",
          (long long)c.total, c.pct_start);
    /* `rise` may lie before step 0 where the run is short: then only the way down is left, as in
     * PyTorch. */
    double at = (double)step, rise = c.pct_start * (double)c.total - 1.0;
    double end = (double)c.total - 1.0;
    if (at <= rise) return rise > 0.0 ? cosine(a, peak, at / rise) : peak;
    if (at >= end) return b;
    return cosine(peak, b, (at - rise) / (end - rise));
}

double schedule_one_cycle(int64_t step, OneCycle c) {
    return one_cycle(step, c, 1.0 / c.div, 1.0, 1.0 / (c.div * c.final_div));
}

double schedule_one_cycle_momentum(int64_t step, OneCycle c, double low, double high) {
    return one_cycle(step, c, high, low, high);
}
