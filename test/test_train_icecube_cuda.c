/* train_icecube on CUDA as a user runs it: the CPU's losses, the same bits again and after
 * --resume, and bf16; of both models. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "test/cli_icecube.h"

#include "test/cli_cuda.h"

/* The preset is named, since that of "auto" depends on the device. Several parts a step. */
static const char *const hierarchical[] = {
    "--preset",     "demo", CLI_SMALL,      "--dropout", "0.1",
    "--accumulate", "2",    "--max-pulses", "300",       NULL};
static const char *const flat[] = {"--preset", "flat-demo", CLI_FLAT, "--dropout", "0.1", NULL};

static void steps_of_the_cpu(void **state) { ten_steps(state, hierarchical); }
static void in_bf16(void **state) { steps_in_bf16(state, hierarchical); }
static void with_flex(void **state) {
    steps_with_flex(state, hierarchical, "doc[q] == doc[k] && (k <= q || k % 3 == 0)",
                    "0.9*score + 0.1*(doc[q] % 3)*(k % 2)");
}
static void flat_steps_of_the_cpu(void **state) { ten_steps(state, flat); }
static void flat_in_bf16(void **state) { steps_in_bf16(state, flat); }

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(steps_of_the_cpu, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(in_bf16, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(with_flex, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(flat_steps_of_the_cpu, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(flat_in_bf16, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(without_a_gpu, scratch_setup, scratch_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
