/* What both programs' tests on CUDA share: ten steps on the CPU and on CUDA, repeated and resumed;
 * a few in bf16; and what is said where there is no GPU. Include after cli_wm.h or cli_icecube.h.
 * args: the arguments of a small run that names neither device, dtype, steps nor folder. */
#ifndef TEST_CLI_CUDA_H
#define TEST_CLI_CUDA_H

#include "kernels/device.h"
#include "test/cli_checkpoint.h"

/* Skips the test, which is then counted as not run. */
static inline void need_cuda(void) {
    if (!device_runs_here(&cuda_device)) skip();
}

/* A run with these arguments and more that goes well; what it printed, which the caller frees. */
static inline char *run_more(void **state, const char *const *args, const char *const *more) {
    const char *all[CLI_ARGS] = {0};
    int n = 0;
    for (; *args; args++) all[n++] = *args;
    for (; *more; more++) {
        assert_true(n < CLI_ARGS - 1);
        all[n++] = *more;
    }
    return cli_good(cli_wait(state, cli_start(state, 0, all)));
}

#define RUN(state, args, ...) free(run_more(state, args, (const char *const[]){__VA_ARGS__, NULL}))

/* The largest relative difference of two runs' losses; NaN where they have not the same steps. */
static inline double relative_loss(void **state, const char *run, const char *other) {
    Lines a = metrics(state, run, "loss"), b = metrics(state, other, "loss");
    double diff = a.n && a.n == b.n ? 0 : NAN;
    for (int i = 0; i < a.n && i < b.n; i++) {
        const double x = number(a.line[i], "loss"), y = number(b.line[i], "loss");
        if (!(fabs(x - y) <= diff * fabs(x))) diff = fabs(x - y) / fabs(x);
    }
    free_lines(&a);
    free_lines(&b);
    return diff;
}

/* "parts" makes the steps of "whole" again, evaluates in between, which must not change them, and
 * then makes those after the fifth once more. */
static inline void ten_steps(void **state, const char *const *args) {
    need_cuda();
    RUN(state, args, "--steps", "10", "--dtype", "float32", "--device", "cpu", "--out", "@cpu");
    RUN(state, args, "--steps", "10", "--dtype", "float32", "--device", "cuda", "--save-every",
        "10", "--out", "@whole");
    const double diff = relative_loss(state, "cpu", "whole");
    if (!(diff <= 1e-4)) fail_msg("losses on CUDA differ by %g", diff);
    RUN(state, args, "--steps", "10", "--dtype", "float32", "--device", "cuda", "--save-every",
        "10", "--eval-every", "5", "--out", "@parts");
    same_run(state, "whole", "parts");
    char *out = cli_good(cli_run(state, "--resume", "@parts/checkpoints/step_000005.safetensors",
                                 "--device", "cuda", "--dtype", "float32", "--threads", "2"));
    assert_says(out, "after step 5");
    free(out);
    same_run(state, "whole", "parts");
}

/* bf16 is CUDA's dtype unless it is told otherwise. Its numbers have two to three digits, and so
 * have the losses; they repeat to the bit as well. */
static inline void steps_in_bf16(void **state, const char *const *args) {
    need_cuda();
    RUN(state, args, "--steps", "3", "--dtype", "float32", "--device", "cuda", "--out", "@single");
    RUN(state, args, "--steps", "3", "--device", "cuda", "--save-every", "3", "--out", "@bf16");
    RUN(state, args, "--steps", "3", "--device", "cuda", "--dtype", "bf16", "--save-every", "3",
        "--out", "@again");
    same_run(state, "bf16", "again");
    const double diff = relative_loss(state, "single", "bf16");
    if (!(diff > 0 && diff <= 2e-2)) fail_msg("losses in bf16 differ by %g", diff);
}

/* flex with a mask and a score expression: the CPU's losses, and in bf16 nearly. */
static inline void steps_with_flex(void **state, const char *const *args, const char *mask,
                                   const char *score) {
    need_cuda();
    RUN(state, args, "--steps", "3", "--dtype", "float32", "--device", "cpu", "--attn", "flex",
        "--mask", mask, "--score", score, "--out", "@flex_cpu");
    RUN(state, args, "--steps", "3", "--dtype", "float32", "--device", "cuda", "--attn", "flex",
        "--mask", mask, "--score", score, "--out", "@flex");
    RUN(state, args, "--steps", "3", "--device", "cuda", "--attn", "flex", "--mask", mask,
        "--score", score, "--out", "@flex_bf16");
    const double diff = relative_loss(state, "flex_cpu", "flex"),
                 rough = relative_loss(state, "flex", "flex_bf16");
    if (!(diff <= 1e-4)) fail_msg("losses of flex on CUDA differ by %g", diff);
    if (!(rough > 0 && rough <= 2e-2)) fail_msg("losses of flex in bf16 differ by %g", rough);
}

/* On machines without a GPU. */
static inline void without_a_gpu(void **state) {
    if (device_runs_here(&cuda_device)) skip();
    cli_refused(cli_run(state, CLI_SMALL, "--device", "cuda", "--out", "@bad"),
                "--device cuda: |use --device cpu");
    assert_false(cli_exists(state, "bad"));
}

#endif
