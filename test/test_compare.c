/* --attn all: what becomes of backends that decline, and with what the others are compared. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cjson/cJSON.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "llmc_like/compare.h"
#include "test/scratch.h"

/* "declines", "reference", "other": the loss and gradient of the last differ by a tenth. */
static int train(void *self, const char *backend, int steps, CompareResult *r, int gradients,
                 Err *e) {
    (void)self;
    if (!strncmp(backend, "declines", 8))
        return err_set(e, "--attn %s: it needs what is not there", backend);
    const float difference = strcmp(backend, "other") ? 0 : 0.1f;
    float gradient[3] = {1, -2, 0.5f + difference};
    Tensor t = {.grad = gradient, .dtype = DT_F32, .ndim = 1, .shape = {3}};
    Param row = {.tensor = t};
    const ParamTable params = {.row = &row, .n = 1, .numel = 3, .grads.memory = &host_memory};
    r->units_per_step = 10;
    for (; r->steps < steps; r->steps++) {
        r->loss[r->steps] = 1.0 / (r->steps + 1) + (double)difference;
        r->step_s[r->steps] = 0.002;
        r->attn_forward_s[r->steps] = r->attn_backward_s[r->steps] = 0.001;
    }
    return compare_gradients(gradients, &params, e);
}

/* Runs the comparison with stdout in a file; its text, which the caller frees. */
static char *compare(const char *const *names, const char *json, int *status, Err *e) {
    FILE *f = tmpfile();
    assert_non_null(f);
    fflush(stdout);
    const int out = dup(STDOUT_FILENO);
    dup2(fileno(f), STDOUT_FILENO);
    *status = compare_run(names, 3, "tokens", json, train, NULL, e);
    fflush(stdout);
    dup2(out, STDOUT_FILENO);
    close(out);
    rewind(f);
    char *text = calloc(1, 8192);
    assert_non_null(text);
    text[fread(text, 1, 8191, f)] = 0;
    fclose(f);
    return text;
}

static double number(const cJSON *all, int i, const char *key) {
    const cJSON *o = cJSON_GetObjectItemCaseSensitive(cJSON_GetArrayItem(all, i), key);
    assert_non_null(o);
    return o->valuedouble;
}

static cJSON *read_json(const char *path) {
    char text[8192];
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    text[fread(text, 1, sizeof text - 1, f)] = 0;
    fclose(f);
    cJSON *all = cJSON_Parse(text);
    assert_non_null(all);
    return all;
}

/* Wherever they stand, they have a line with their sentence; the others go on without them. */
static void declined(void **state) {
    static const char *const names[] = {"declines1", "reference", "declines2", "other", NULL};
    static const char why[] = "--attn declines1: it needs what is not there";
    char path[SCRATCH_PATH];
    scratch_path(state, "all.json", path);
    Err e = {""};
    int status;
    char *text = compare(names, path, &status, &e);
    if (status) fail_msg("%s", e.text);
    assert_non_null(strstr(text, "\ndeclines1   --attn declines1: it needs what is not there\n"));
    assert_non_null(strstr(text, "\ndeclines2   --attn declines2: it needs what is not there\n"));
    assert_non_null(strstr(text, "Differences are from reference."));
    free(text);
    cJSON *all = read_json(path);
    assert_int_equal(cJSON_GetArraySize(all), 4);
    for (int i = 0; i < 4; i++) {
        const cJSON *row = cJSON_GetArrayItem(all, i),
                    *reason = cJSON_GetObjectItemCaseSensitive(row, "declined");
        assert_string_equal(cJSON_GetObjectItemCaseSensitive(row, "backend")->valuestring,
                            names[i]);
        if (i == 0) assert_string_equal(reason->valuestring, why);
        assert_int_equal(reason != NULL, i % 2 == 0);
        assert_int_equal(cJSON_GetObjectItemCaseSensitive(row, "step_ms") != NULL, i % 2 == 1);
    }
    assert_true(number(all, 1, "loss_diff") == 0 && number(all, 1, "grad_diff") == 0);
    assert_float_equal(number(all, 3, "loss_diff"), 0.1, 1e-6);
    assert_float_equal(number(all, 3, "grad_diff"), 0.1 / 2, 1e-6);
    assert_float_equal(number(all, 3, "step_ms"), 2, 1e-9);
    assert_float_equal(number(all, 3, "tokens_per_s"), 5000, 1e-6);
    cJSON_Delete(all);
}

/* Where none runs there is nothing to compare: a sentence, no table and no file. */
static void none_runs(void **state) {
    static const char *const names[] = {"declines1", "declines2", NULL};
    char path[SCRATCH_PATH];
    scratch_path(state, "none.json", path);
    Err e = {""};
    int status;
    char *text = compare(names, path, &status, &e);
    assert_int_equal(status, -1);
    assert_string_equal(e.text, "--attn declines2: it needs what is not there");
    assert_string_equal(text, "");
    assert_int_equal(access(path, F_OK), -1);
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(declined), cmocka_unit_test(none_runs)};
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
