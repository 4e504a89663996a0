/* bench_attention: its column of errors shows one where there is one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define CLI_PROGRAM "bench_attention"
#include "dev/bench/attention_bench.h"
#include "test/cli.h"

static void worse(void **state) {
    (void)state;
    assert_true(bench_worse(1, 2) == 2 && bench_worse(2, 1) == 2);
    assert_true(isnan(bench_worse(NAN, 1)) && isnan(bench_worse(1, NAN)));
}

/* NaN where the file has null. */
static double max_error(void **state, const char *case_name, const char *attn, const char *score) {
    free(cli_good(cli_run(state, "--case", case_name, "--batch", "4", "--repeats", "1", "--threads",
                          "2", "--attn", attn, "--score", score, "--json", "@bench.json")));
    char *text = cli_text(state, "bench.json");
    cJSON *o = cJSON_Parse(text);
    assert_non_null(o);
    const cJSON *x = cJSON_GetObjectItem(cJSON_GetArrayItem(o, 0), "max_error");
    assert_non_null(x);
    const double error = cJSON_IsNumber(x) ? x->valuedouble : NAN;
    cJSON_Delete(o);
    free(text);
    return error;
}

/* One backend alone has something to differ from. */
static void alone(void **state) {
    const double error = max_error(state, "icecube", "sdpa", "");
    assert_true(error > 0 && error < 1e-5);
}

/* A query in the middle whose scores are no number, and all others are fine. */
static void no_number(void **state) {
    static const char score[] = "q == 5 || q == 1900 ? (score - score) / (score - score) : score";
    assert_true(isnan(max_error(state, "icecube", "vanilla", score)));
    assert_true(isnan(max_error(state, "sample", "vanilla", score)));
}

/* What the device does not compute in is refused, not measured in something else. */
static void dtype(void **state) {
    cli_refused(cli_run(state, "--case", "sample", "--dtype", "bf16"), "--dtype|float32 alone");
}

/* A CPU's kernels are devices of their own, so that asking it for portable ones is a mistake. */
static void portable(void **state) {
    cli_refused(cli_run(state, "--case", "sample", "--portable"), "--portable|cpu-portable");
}

/* The world model's layer comes out the same with every backend, and not by comparing one with
 * itself. */
static void wm_layer(void **state) {
    free(cli_good(cli_run(state, "--case", "wm-layer", "--repeats", "1", "--threads", "2",
                          "--cache", "@flex", "--json", "@layer.json")));
    char *text = cli_text(state, "layer.json");
    cJSON *rows = cJSON_Parse(text), *row;
    int n = 0;
    cJSON_ArrayForEach(row, rows) {
        const double far = cJSON_GetObjectItem(row, "difference")->valuedouble;
        assert_true(n++ == 0 ? far == 0 : far > 0 && far < 1e-5);
    }
    assert_int_equal(n, 4); /* vanilla, sdpa, flex and flex-dense; the others want documents */
    cJSON_Delete(rows);
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(worse),     cmocka_unit_test(alone),
                                       cmocka_unit_test(no_number), cmocka_unit_test(dtype),
                                       cmocka_unit_test(portable),  cmocka_unit_test(wm_layer)};
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
