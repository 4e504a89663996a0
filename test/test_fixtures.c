/* Can test_wm and test_icecube fail? Fixtures with one entry of every result spoilt must fail
 * tensor by tensor, and files that are no fixtures must give one sentence. TEST_BIN: the folder of
 * the programs, from the Makefile. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <glob.h>
#include <sys/wait.h>

#include "test/fixtures.h"
#include "test/scratch.h"

static const char *const PROGRAMS[] = {"wm", "icecube"};
enum { N_PROGRAMS = sizeof PROGRAMS / sizeof *PROGRAMS };

/* The fixtures of a program, to be freed by globfree. */
static glob_t fixtures(const char *program) {
    char pattern[64];
    glob_t found;
    snprintf(pattern, sizeof pattern, "test/fixtures/%s_*.safetensors", program);
    assert_int_equal(glob(pattern, 0, NULL, &found), 0);
    return found;
}

enum { OUTPUT = 1 << 16 };

/* Exit status of the program with these arguments; what it prints goes to output (OUTPUT bytes). */
static int run(const char *program, const char *arguments, char *output) {
    char command[2 * SCRATCH_PATH];
    snprintf(command, sizeof command, "%s/test_%s --threads 1 %s 2>&1", TEST_BIN, program,
             arguments);
    FILE *f = popen(command, "r");
    assert_non_null(f);
    const size_t n = fread(output, 1, OUTPUT - 1, f);
    output[n] = 0;
    const int status = pclose(f);
    assert_true(WIFEXITED(status)); /* no crash */
    return WEXITSTATUS(status);
}

static const StEntry *counterpart(const StFile *f, const char *kind, const char *name) {
    char key[160];
    snprintf(key, sizeof key, "%s%s", kind, strchr(name, '.'));
    return st_find(f, key);
}

static int64_t largest_at(const StEntry *t) {
    int64_t at = 0;
    for (int64_t i = 1; i < t->numel; i++)
        if (fabs(fixture_number(t, i)) > fabs(fixture_number(t, at))) at = i;
    return at;
}

/* A copy of a result with one entry wrong by a few times what is allowed: 1 for numbers that are
 * compared exactly, 1e-3 for other out.*, 1 % of the largest entry for gradients and their norm,
 * 5 % of the largest change for step1.*. */
static void *spoilt(const StFile *f, const StEntry *t) {
    void *copy = malloc(t->bytes);
    assert_non_null(copy);
    memcpy(copy, t->data, t->bytes);
    int64_t at = largest_at(t);
    double by = 1e-3;
    if (!strncmp(t->name, "grad.", 5) || !strcmp(t->name, "out.grad_norm"))
        by = 0.01 * fabs(fixture_number(t, at));
    if (!strncmp(t->name, "step1.", 6)) {
        const StEntry *before = counterpart(f, "param", t->name);
        const StEntry *grad = counterpart(f, "grad", t->name);
        assert_true(before && grad);
        by = 0;
        for (int64_t i = 0; i < t->numel; i++)
            by = fmax(by, 0.05 * fabs(fixture_number(t, i) - fixture_number(before, i)));
        at = largest_at(grad); /* where Adam's first step has a sign that is not in doubt */
    }
    if (t->dtype == DT_F64) ((double *)copy)[at] += by;
    if (t->dtype == DT_F32) ((float *)copy)[at] += (float)by;
    if (t->dtype == DT_I64) ((int64_t *)copy)[at]++;
    if (t->dtype == DT_U8) ((uint8_t *)copy)[at]++;
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
    for (int p = 0; p < N_PROGRAMS; p++) {
        glob_t file = fixtures(PROGRAMS[p]);
        for (size_t i = 0; i < file.gl_pathc; i++) {
            int results = save_copy(file.gl_pathv[i], path, false);
            assert_int_equal(run(PROGRAMS[p], path, output), 0);
            snprintf(expected, sizeof expected, "%d passed, 0 failed\n", results);
            assert_string_equal(output, expected);
            save_copy(file.gl_pathv[i], path, true);
            assert_int_equal(run(PROGRAMS[p], path, output), 1);
            snprintf(expected, sizeof expected, "\n0 passed, %d failed\n", results);
            assert_non_null(strstr(output, expected));
        }
        globfree(&file);
    }
    free(output);
}

/* The sentence begins with the file's name, and the file counts as one failure. */
static void expect_refused(const char *program, const char *path, char *output) {
    assert_int_equal(run(program, path, output), 1);
    assert_non_null(strstr(output, path));
    assert_non_null(strstr(output, "0 passed, 1 failed\n"));
}

static void cut_files_are_explained(void **state) {
    char path[SCRATCH_PATH], *output = malloc(OUTPUT), *bytes = malloc(1 << 20);
    scratch_path(state, "bad.safetensors", path);
    for (int p = 0; p < N_PROGRAMS; p++) {
        glob_t file = fixtures(PROGRAMS[p]);
        FILE *f = fopen(file.gl_pathv[0], "rb");
        assert_non_null(f);
        const size_t n = fread(bytes, 1, 1 << 20, f), cut[] = {0, 5, 400, n / 2, n - 1};
        fclose(f);
        globfree(&file);
        remove(path);
        expect_refused(PROGRAMS[p], path, output);
        for (size_t i = 0; i < sizeof cut / sizeof *cut; i++) {
            assert_int_equal(scratch_write(path, bytes, cut[i]), 0);
            expect_refused(PROGRAMS[p], path, output);
        }
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
    static const char flat[] = "{\"model\": \"flat\"}";
    const struct {
        const char *program, *tensor, *config, *word;
    } row[] = {
        {"wm", "x", NULL, "config"},
        {"wm", "x", "{\"model\": \"icecube\"}", "icecube"},
        {"wm", "x", "no JSON", "config"},
        {"wm", "x", "{\"d_model\": 33, \"n_heads\": 2, \"n_blocks\": 1, \"n_window\": 2}", "33"},
        {"wm", "in.frames", "{\"d_model\": 32, \"n_heads\": 2, \"n_blocks\": 1, \"n_window\": 2}",
         "in.frames"},
        {"icecube", "x", NULL, "config"},
        {"icecube", "x", "{\"model\": \"wm\"}", "wm"},
        {"icecube", "x", "no JSON", "config"},
        {"icecube", "x", "{\"model\": \"hierarchical\", \"d_model\": 33}", "33"},
        {"icecube", "x", "{\"model\": \"hierarchical\", \"pooling\": \"min\"}", "pooling"},
        {"icecube", "x", "{\"model\": \"flat\", \"num_heads\": 7}", "7 heads"},
        {"icecube", "x", "{\"model\": \"flat\", \"input_mode\": \"conv\"}", "mlp"},
        {"icecube", "x",
         "{\"model\": \"flat\", \"input_mode\": \"none\", \"max_pulses_per_dom\": 42}", "up to 41"},
        {"icecube", "x", flat, "in.sensor_geometry"},
        {"icecube", "in.sensor_geometry", flat, "in.sensor_geometry"},
    };
    char path[SCRATCH_PATH], *output = malloc(OUTPUT);
    scratch_path(state, "other.safetensors", path);
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        save_one(path, row[i].tensor, row[i].config);
        expect_refused(row[i].program, path, output);
        assert_non_null(strstr(output, row[i].word));
    }
    for (int p = 0; p < N_PROGRAMS; p++) {
        glob_t file = fixtures(PROGRAMS[p]);
        char arguments[SCRATCH_PATH];
        snprintf(arguments, sizeof arguments, "--attn nonsense %s", file.gl_pathv[0]);
        assert_int_equal(run(PROGRAMS[p], arguments, output), 1);
        assert_non_null(strstr(output, "nonsense"));
        assert_int_equal(run(PROGRAMS[p], "", output), 1);
        globfree(&file);
    }
    free(output);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(spoilt_results_fail),
        cmocka_unit_test(cut_files_are_explained),
        cmocka_unit_test(other_files_are_explained),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
