/* bench_icecube: its batch is what it says, also to a peer, and what it cannot do is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define CLI_PROGRAM "bench_icecube"
#include "dev/bench/icecube_law.h"
#include "test/cli.h"

/* The means of 2000 events lie within three of their deviations of the law's. */
static void law(void **state) {
    enum { EVENTS = 2000 };
    (void)state;
    RngStream r = {{1, 0, RNG_TEST}, 0};
    double doms = 0, pulses = 0;
    int most = 0, ones = 0;
    for (int i = 0; i < EVENTS; i++) {
        const int n = law_doms(&r);
        assert_in_range(n, LAW_LEAST_DOMS, LAW_MOST_DOMS);
        doms += n;
        for (int j = 0; j < n; j++) {
            const int k = law_pulses(&r);
            assert_in_range(k, 1, LAW_MOST_OF_A_DOM);
            most = k > most ? k : most;
            ones += k == 1;
            pulses += k;
        }
    }
    assert_true(fabs(doms / EVENTS - 50) < 1.2);
    assert_true(fabs(pulses / EVENTS - 97) < 3);
    assert_true(fabs(ones / doms - 0.78) < 0.005);
    assert_int_equal(most, LAW_MOST_OF_A_DOM);
}

static cJSON *json(void **state, const char *name) {
    char *text = cli_text(state, name);
    cJSON *o = cJSON_Parse(text);
    assert_non_null(o);
    free(text);
    return o;
}

static double sum(const cJSON *array) {
    double s = 0;
    const cJSON *x;
    cJSON_ArrayForEach(x, array) s += x->valuedouble;
    return s;
}

/* What is measured is what --counts says, also in parts. */
static void counts(void **state) {
    free(cli_good(cli_run(state, "--batch", "3", "--counts", "@counts.json")));
    free(cli_good(cli_run(state, "--batch", "3", "--max-pulses", "1", "--repeats", "1", "--threads",
                          "2", "--json", "@figures.json")));
    cJSON *o = json(state, "counts.json"), *figures = json(state, "figures.json");
    const cJSON *doms = cJSON_GetObjectItem(o, "doms"), *pulses = cJSON_GetObjectItem(o, "pulses"),
                *row = cJSON_GetArrayItem(figures, 0);
    assert_int_equal(cJSON_GetArraySize(doms), 3);
    assert_true(sum(doms) == cJSON_GetArraySize(pulses));
    assert_true(number(row, "doms") == sum(doms));
    assert_true(number(row, "pulses") == sum(pulses));
    assert_true(number(row, "batch") == 3);
    cJSON_Delete(o);
    cJSON_Delete(figures);
    cli_refused(cli_run(state, "--counts", "@counts.json"), "--counts|--batch");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(law), cmocka_unit_test(counts)};
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
