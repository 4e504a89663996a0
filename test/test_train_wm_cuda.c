/* train_wm on CUDA as a user runs it: the CPU's losses, the same bits again and after --resume,
 * bf16, and too large a step. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "test/cli_wm.h"

#include "test/cli_cuda.h"

/* The preset is named, since that of "auto" depends on the device. */
static const char *const small[] = {"--preset", "tiny",         CLI_SMALL, "--batch",
                                    "1",        "--frames",     "2",       "--actions",
                                    "up",       "--eval-clips", "1",       NULL};

static void steps_of_the_cpu(void **state) { ten_steps(state, small); }
static void in_bf16(void **state) { steps_in_bf16(state, small); }

/* It names what is free, the largest tensor, and the largest batch that fits. */
static void out_of_memory(void **state) {
    need_cuda();
    static const char *const paper[] = {"--preset", "paper", "--device", "cuda", "--plan", NULL};
    char batch[32];
    Cli r =
        cli_run(state, "--preset", "paper", "--device", "cuda", "--batch", "2000", "--out", "@bad");
    const char *told = strstr(r.err, "; --batch ");
    const int fits = told ? atoi(told + strlen("; --batch ")) : 0;
    cli_refused(r,
                "this run needs|and the GPU has|MiB left|would fit|the largest tensor: |(2000, ");
    assert_false(cli_exists(state, "bad"));
    snprintf(batch, sizeof batch, "%d", fits);
    RUN(state, paper, "--batch", batch);
    snprintf(batch, sizeof batch, "%d", fits + 1);
    cli_refused(cli_run(state, "--preset", "paper", "--device", "cuda", "--plan", "--batch", batch),
                "and the GPU has");
    /* before a mask is planned whose expression would be tried on all pairs of positions */
    cli_refused(cli_run(state, "--preset", "paper", "--device", "cuda", "--batch", "2000", "--attn",
                        "flex", "--mask", "q >= k"),
                "this run needs|and the GPU has|MiB left; choose a smaller --batch");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_of_the_cpu),
        cmocka_unit_test(in_bf16),
        cmocka_unit_test(out_of_memory),
        cmocka_unit_test(without_a_gpu),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
