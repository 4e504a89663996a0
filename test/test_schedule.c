/* Schedules at their corners, and OneCycleLR against numbers of PyTorch's own. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>

#include "llmc_like/schedule.h"

static void close_to(double got, double want) {
    if (!(fabs(got - want) <= 1e-12 * fmax(1.0, fabs(want))))
        fail_msg("%.17g, not %.17g", got, want);
}

static void warmup_cosine(void **state) {
    (void)state;
    close_to(schedule_warmup_cosine(0, 100, 2500), 0.0);
    close_to(schedule_warmup_cosine(50, 100, 2500), 0.5);
    close_to(schedule_warmup_cosine(99, 100, 2500), 0.99);
    close_to(schedule_warmup_cosine(100, 100, 2500), 1.0);
    close_to(schedule_warmup_cosine(1300, 100, 2500), 0.5);
    close_to(schedule_warmup_cosine(700, 100, 2500), 0.5 * (1 + sqrt(0.5)));
    close_to(schedule_warmup_cosine(2500, 100, 2500), 0.0);
    close_to(schedule_warmup_cosine(9999, 100, 2500), 0.0);
    close_to(schedule_warmup_cosine(0, 0, 10), 1.0);
    close_to(schedule_warmup_cosine(3, 5, 5), 0.6);
    close_to(schedule_warmup_cosine(5, 5, 5), 0.0);
    for (int64_t s = 101; s <= 2500; s++)
        assert_true(schedule_warmup_cosine(s, 100, 2500) <
                    schedule_warmup_cosine(s - 1, 100, 2500));
}

static void constant(void **state) {
    (void)state;
    close_to(schedule_constant(0, 0), 1.0);
    close_to(schedule_constant(3, 4), 0.75);
    close_to(schedule_constant(4, 4), 1.0);
    close_to(schedule_constant(INT64_C(1) << 40, 4), 1.0);
}

/* torch.optim.lr_scheduler.OneCycleLR(AdamW, max_lr=1): step, rate, beta1. */
static void one_cycle(void **state) {
    (void)state;
    static const struct {
        int64_t step;
        double rate, momentum;
    } ten[] =
        {
            {0, 0.040000000000000036, 0.94999999999999996},
            {1, 0.52000000000000002, 0.89999999999999991},
            {2, 1, 0.84999999999999998},
            {3, 0.95048463201347366, 0.85495155660487898},
            {5, 0.61126202193628931, 0.88887395330218422},
            {8, 0.049519367986526286, 0.94504844339512095},
            {9, 3.9999999999999998e-06, 0.94999999999999996},
        },
      short_rise[] = {
          {0, 0.95623539212588249, 0.85437821207224063},
          {3, 0.39562096047609746, 0.91046208878790535},
          {6, 0.00040000000000000002, 0.94999999999999996},
      };
    OneCycle c = {.total = 10, .pct_start = 0.3, .div = 25, .final_div = 1e4};
    for (size_t i = 0; i < sizeof ten / sizeof *ten; i++) {
        close_to(schedule_one_cycle(ten[i].step, c), ten[i].rate);
        close_to(schedule_one_cycle_momentum(ten[i].step, c, 0.85, 0.95), ten[i].momentum);
    }
    close_to(schedule_one_cycle(10, c), 4e-6);
    close_to(schedule_one_cycle(999, c), 4e-6);
    OneCycle d = {.total = 7, .pct_start = 0.01, .div = 25, .final_div = 100};
    for (size_t i = 0; i < sizeof short_rise / sizeof *short_rise; i++) {
        close_to(schedule_one_cycle(short_rise[i].step, d), short_rise[i].rate);
        close_to(schedule_one_cycle_momentum(short_rise[i].step, d, 0.85, 0.95),
                 short_rise[i].momentum);
    }
    OneCycle single = {.total = 1, .pct_start = 0.3, .div = 25, .final_div = 1e4};
    close_to(schedule_one_cycle(0, single), 4e-6);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(warmup_cosine),
        cmocka_unit_test(constant),
        cmocka_unit_test(one_cycle),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
