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
static void with_flex(void **state) {
    steps_with_flex(state, small, "frame[k] <= frame[q] && (q - k < 40 || h == 0)",
                    "score - 0.01*abs(q - k)");
}

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

/* A run in folder `out` that ends at that launch of a kernel (a variable of the emulator's). */
static Cli failing_run(void **state, int launch, const char *out) {
    char number[16];
    snprintf(number, sizeof number, "%d", launch);
    setenv("EMU_FAIL_LAUNCH", number, 1);
    const Cli r = cli_run(state, "--preset", "tiny", CLI_SMALL, "--batch", "1", "--frames", "2",
                          "--device", "cuda", "--save-every", "1", "--out", out);
    unsetenv("EMU_FAIL_LAUNCH");
    return r;
}

/* A kernel that fails ends the run at once with a sentence, and the steps up to the last checkpoint
 * are not lost: the run goes on from there as if nothing had been. */
static void failing_kernel(void **state) {
    need_cuda();
    char out[32] = "@broken0";
    Cli r = failing_run(state, 1, out);
    if (r.status == 0) { /* on a GPU nothing fails when told to */
        cli_free(&r);
        skip();
    }
    for (int launch = 64; !has_checkpoint(state, out + 1) || !strstr(r.err, "; in op ");
         launch += launch / 2) {
        assert_int_equal(r.status, 1);
        cli_free(&r);
        snprintf(out, sizeof out, "@broken%d", launch);
        r = failing_run(state, launch, out);
    }
    assert_int_equal(r.status, 1);
    assert_int_equal(strncmp(r.err, "CUDA: ", 6), 0);
    assert_says(r.err, "unspecified launch failure; in op ");
    assert_non_null(strchr(strstr(r.err, "; in op "), '(')); /* a shape */
    assert_ptr_equal(strchr(r.err, '\n') + 1, r.err + strlen(r.err));
    cli_free(&r);
    free(cli_good(cli_run(state, "--resume", out)));
    RUN(state, small, "--device", "cuda", "--save-every", "1", "--out", "@unbroken");
    same_run(state, "unbroken", out + 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_of_the_cpu), cmocka_unit_test(in_bf16),
        cmocka_unit_test(with_flex),        cmocka_unit_test(out_of_memory),
        cmocka_unit_test(failing_kernel),   cmocka_unit_test(without_a_gpu),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
