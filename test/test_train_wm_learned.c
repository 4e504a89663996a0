/* train_wm with a score expression that learns: what it learns changes what is learned, goes into
 * checkpoints and comes back from them, and other arrays are refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "test/cli_wm.h"

#include "test/cli_checkpoint.h"

#define SCORE "--score", "score*(1 + slope[h]) + bias[q - k + 194]"
#define LEARNED "--learned", "slope:2,bias:389"
#define RUN                                                                                   \
    CLI_SMALL, "--steps", "6", "--accumulate", "2", "--save-every", "3", "--lr-adam", "0.01", \
        "--attn", "flex"

/* The loss of a run's line number i. */
static double loss_at(void **state, const char *run, int i) {
    char *list = losses(state, run), *line = list;
    for (; i > 0; i--) assert_non_null(line = strchr(line, '\n') + 1);
    const char *key = "\"loss\":", *at = strstr(line, key);
    assert_non_null(at);
    const double loss = strtod(at + strlen(key), NULL);
    free(list);
    return loss;
}

static void whole_run(void **state) {
    if (!cli_exists(state, "whole"))
        free(cli_good(cli_run(state, RUN, SCORE, LEARNED, "--out", "@whole")));
}

/* Arrays of 0 change no score, so both runs begin alike. */
static void learns(void **state) {
    char path[SCRATCH_PATH];
    StFile f;
    Err e = {""};
    whole_run(state);
    free(cli_good(cli_run(state, RUN, "--out", "@without")));
    assert_true(fabs(loss_at(state, "whole", 0) - loss_at(state, "without", 0)) < 1e-6);
    assert_true(loss_at(state, "whole", 5) < loss_at(state, "whole", 0));
    assert_true(fabs(loss_at(state, "whole", 5) - loss_at(state, "without", 5)) > 1e-5);
    scratch_path(state, "whole/checkpoints/last.safetensors", path);
    if (st_open(path, &f, &e)) fail_msg("%s", e.text);
    const StEntry *x = st_find(&f, "param.blocks.0.selfattn.learned");
    assert_non_null(x);
    assert_int_equal(x->ndim, 1);
    assert_int_equal(x->shape[0], 2 + 389);
    const float *value = x->data;
    assert_true(value[0] != 0 && value[1] != 0 && value[2 + 194] != 0);
    assert_string_equal(st_meta(&f, "learned"), "slope:2,bias:389");
    st_close(&f);
}

/* The arrays travel in the checkpoint, the expression does not. */
static void resumed(void **state) {
    char path[SCRATCH_PATH], other[SCRATCH_PATH];
    whole_run(state);
    free(cli_good(cli_run(state, RUN, SCORE, LEARNED, "--eval-every", "3", "--out", "@third")));
    same_run(state, "whole", "third");
    scratch_path(state, "third/checkpoints/step_000003.safetensors", path);
    scratch_path(state, "third.safetensors", other);
    assert_int_equal(rename(path, other), 0);
    cli_refused(cli_run(state, "--resume", "@third.safetensors", "--out", "@bad"),
                "give --score again");
    free(cli_good(cli_run(state, "--resume", "@third.safetensors", "--threads", "2", SCORE, "--out",
                          "@elsewhere")));
    same_tensors(state, "whole", "elsewhere");
}

static void sampled(void **state) {
    whole_run(state);
    free(cli_good(cli_run(state, "--sample", "@whole/checkpoints/last.safetensors", SCORE, "--out",
                          "@dream")));
    assert_true(cli_exists(state, "dream/sample.png"));
}

static void refused(void **state) {
    whole_run(state);
    cli_refused(
        cli_run(state, "--resume", "@whole", "--steps", "9", "--score",
                "score*(1 + bias[h]) + slope[q - k + 194]", "--learned", "bias:2,slope:389"),
        "last.safetensors|it learned the arrays 'slope:2,bias:389'|is 'bias:2,slope:389'");
    cli_refused(cli_run(state, CLI_SMALL, "--attn", "flex", "--init",
                        "@whole/checkpoints/last.safetensors", "--out", "@bad"),
                "last.safetensors|it learned the arrays 'slope:2,bias:389'|--learned is ''");
    free(cli_good(
        cli_run(state, CLI_SMALL, "--steps", "2", "--save-every", "2", "--out", "@plain")));
    cli_refused(cli_run(state, CLI_SMALL, "--attn", "flex", SCORE, LEARNED, "--init",
                        "@plain/checkpoints/last.safetensors", "--out", "@bad"),
                "missing|param.blocks.0.selfattn.learned (391)");
    cli_refused(cli_run(state, CLI_SMALL, "--attn", "flex", LEARNED, "--out", "@bad"),
                "--learned slope:2,bias:389|--score|not given");
    cli_refused(cli_run(state, CLI_SMALL, "--attn", "flex", "--score", "score + bias[h]",
                        "--learned", "bias:1", "--out", "@bad"),
                "--score|bias[1] is outside the array|\n  score + bias[h]\n          ^");
    cli_refused(cli_run(state, CLI_SMALL, SCORE, LEARNED, "--attn", "sdpa", "--out", "@bad"),
                "no score expressions|vanilla, flex, flex-dense");
    assert_false(cli_exists(state, "bad"));
}

/* The backends that take it make the same of it. */
static void compared(void **state) {
    char *out = cli_good(
        cli_run(state, RUN, SCORE, LEARNED, "--attn", "all", "--steps", "2", "--out", "@all"));
    static const char *const names[] = {"flex ", "flex-dense"};
    for (int i = 0; i < 2; i++) {
        const char *row = strstr(out, names[i]), *end = row ? strchr(row, '\n') : NULL;
        assert_non_null(end);
        while (end[-1] != ' ') end--;
        assert_true(strtod(end, NULL) < 1e-4); /* the difference of gradients */
    }
    free(out);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(learns),  cmocka_unit_test(resumed),  cmocka_unit_test(sampled),
        cmocka_unit_test(refused), cmocka_unit_test(compared),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
