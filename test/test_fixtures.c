/* Can test_wm fail? Fixtures with one entry of every result spoilt must fail tensor by tensor, and
 * files that are no fixtures must give one sentence. TEST_WM: the program, from the Makefile. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "llmc_like/safetensors.h"
#include "test/scratch.h"

static const char *const FIXTURES[] = {
    "test/fixtures/wm_rope.safetensors", "test/fixtures/wm_learn.safetensors",
    "test/fixtures/wm_vid.safetensors", "test/fixtures/wm_groupnorm.safetensors"};

enum { OUTPUT = 1 << 16 };

/* Exit status of test_wm with these arguments; what it prints goes to output (OUTPUT bytes). */
static int run(const char *arguments, char *output) {
    char command[2 * SCRATCH_PATH];
    snprintf(command, sizeof command, "%s --threads 1 %s 2>&1", TEST_WM, arguments);
    FILE *f = popen(command, "r");
    assert_non_null(f);
    const size_t n = fread(output, 1, OUTPUT - 1, f);
    output[n] = 0;
    const int status = pclose(f);
    assert_true(WIFEXITED(status)); /* no crash */
    return WEXITSTATUS(status);
}

static double entry(const StEntry *t, int64_t i) {
    if (t->dtype == DT_F64) return ((const double *)t->data)[i];
    if (t->dtype == DT_F32) return (double)((const float *)t->data)[i];
    const uint32_t bits = (uint32_t)((const uint16_t *)t->data)[i] << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return (double)x;
}

static const StEntry *counterpart(const StFile *f, const char *kind, const char *name) {
    char key[160];
    snprintf(key, sizeof key, "%s%s", kind, strchr(name, '.'));
    return st_find(f, key);
}

static int64_t largest_at(const StEntry *t) {
    int64_t at = 0;
    for (int64_t i = 1; i < t->numel; i++)
        if (fabs(entry(t, i)) > fabs(entry(t, at))) at = i;
    return at;
}

/* A copy of a result with one entry wrong by a few times what is allowed: 1e-3 for out.*, 1 % of
 * the largest entry for grad.*, 5 % of the largest change for step1.*. */
static void *spoilt(const StFile *f, const StEntry *t) {
    void *copy = malloc(t->bytes);
    assert_non_null(copy);
    memcpy(copy, t->data, t->bytes);
    int64_t at = largest_at(t);
    double by = 1e-3;
    if (!strncmp(t->name, "grad.", 5)) by = 0.01 * fabs(entry(t, at));
    if (!strncmp(t->name, "step1.", 6)) {
        const StEntry *before = counterpart(f, "param", t->name);
        const StEntry *grad = counterpart(f, "grad", t->name);
        assert_true(before && grad);
        by = 0;
        for (int64_t i = 0; i < t->numel; i++)
            by = fmax(by, 0.05 * fabs(entry(t, i) - entry(before, i)));
        at = largest_at(grad); /* where Adam's first step has a sign that is not in doubt */
    }
    if (t->dtype == DT_F64) ((double *)copy)[at] += by;
    if (t->dtype == DT_F32) ((float *)copy)[at] += (float)by;
    return copy;
}

/* Saves FIXTURE with every result spoilt (or just as it is); returns how many results it has. */
static int save_copy(const char *fixture, const char *path, bool spoil) {
    StFile f;
    Err e = {""};
    assert_int_equal(st_open(fixture, &f, &e), 0);
    StWriter w;
    st_writer_init(&w);
    st_writer_meta(&w, "config", st_meta(&f, "config"));
    void **copy = calloc((size_t)f.n, sizeof *copy);
    assert_non_null(copy);
    int results = 0;
    for (int i = 0; i < f.n; i++) {
        const StEntry *t = &f.entry[i];
        const bool result = strncmp(t->name, "in.", 3) && strncmp(t->name, "param.", 6);
        results += result;
        if (result && spoil) copy[i] = spoilt(&f, t);
        st_writer_add(&w, t->name, t->dtype, t->ndim, t->shape, copy[i] ? copy[i] : t->data);
    }
    assert_int_equal(st_writer_save(&w, path, &e), 0);
    st_writer_free(&w);
    for (int i = 0; i < f.n; i++) free(copy[i]);
    free(copy);
    st_close(&f);
    return results;
}

static void spoilt_results_fail(void **state) {
    char path[SCRATCH_PATH], expected[64], *output = malloc(OUTPUT);
    scratch_path(state, "copy.safetensors", path);
    for (size_t i = 0; i < sizeof FIXTURES / sizeof *FIXTURES; i++) {
        int results = save_copy(FIXTURES[i], path, false);
        assert_int_equal(run(path, output), 0);
        snprintf(expected, sizeof expected, "%d passed, 0 failed\n", results);
        assert_string_equal(output, expected);
        save_copy(FIXTURES[i], path, true);
        assert_int_equal(run(path, output), 1);
        snprintf(expected, sizeof expected, "\n0 passed, %d failed\n", results);
        assert_non_null(strstr(output, expected));
    }
    free(output);
}

/* Each sentence begins with the file's name and holds a word of what is wrong. */
static void bad_files_are_explained(void **state) {
    char path[SCRATCH_PATH], *output = malloc(OUTPUT);
    scratch_path(state, "bad.safetensors", path);
    FILE *f = fopen(FIXTURES[0], "rb");
    assert_non_null(f);
    char *bytes = malloc(1 << 20);
    const size_t n = fread(bytes, 1, 1 << 20, f);
    fclose(f);

    remove(path);
    assert_int_equal(run(path, output), 1);
    assert_non_null(strstr(output, path));
    assert_non_null(strstr(output, "0 passed, 1 failed\n"));

    const size_t cut[] = {0, 5, 400, n / 2, n - 1};
    for (size_t i = 0; i < sizeof cut / sizeof *cut; i++) {
        assert_int_equal(scratch_write(path, bytes, cut[i]), 0);
        assert_int_equal(run(path, output), 1);
        assert_non_null(strstr(output, path));
        assert_non_null(strstr(output, "0 passed, 1 failed\n"));
    }
    free(bytes);
    free(output);
}

/* A safetensors file of one tensor, with or without a config. */
static void save_one(const char *path, const char *name, const char *config) {
    const float x[2] = {1, 2};
    StWriter w;
    Err e = {""};
    st_writer_init(&w);
    if (config) st_writer_meta(&w, "config", config);
    st_writer_add(&w, name, DT_F32, 1, (int64_t[]){2}, x);
    assert_int_equal(st_writer_save(&w, path, &e), 0);
    st_writer_free(&w);
}

static void other_files_are_explained(void **state) {
    const struct {
        const char *tensor, *config, *word;
    } row[] = {
        {"x", NULL, "config"},
        {"x", "{\"model\": \"icecube\"}", "icecube"},
        {"x", "no JSON", "config"},
        {"x", "{\"d_model\": 33, \"n_heads\": 2, \"n_blocks\": 1, \"n_window\": 2}", "33"},
        {"in.frames", "{\"d_model\": 32, \"n_heads\": 2, \"n_blocks\": 1, \"n_window\": 2}",
         "in.frames"},
    };
    char path[SCRATCH_PATH], *output = malloc(OUTPUT);
    scratch_path(state, "other.safetensors", path);
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        save_one(path, row[i].tensor, row[i].config);
        assert_int_equal(run(path, output), 1);
        assert_non_null(strstr(output, path));
        assert_non_null(strstr(output, row[i].word));
    }
    assert_int_equal(run("", output), 1);
    assert_int_equal(run("--attn nonsense test/fixtures/wm_vid.safetensors", output), 1);
    assert_non_null(strstr(output, "nonsense"));
    free(output);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(spoilt_results_fail),
        cmocka_unit_test(bad_files_are_explained),
        cmocka_unit_test(other_files_are_explained),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
