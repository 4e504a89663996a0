/* metrics.jsonl: exact lines, what a resume keeps, full disks; and run.json. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <cjson/cJSON.h>
#include <math.h>
#include <signal.h>
#include <sys/resource.h>

#include "llmc_like/fsio.h"
#include "llmc_like/metrics.h"
#include "test/scratch.h"

static void assert_holds(const char *path, const char *expected) {
    char *text;
    size_t n;
    Err e = {""};
    assert_int_equal(read_whole_file(path, &text, &n, &e), 0);
    assert_string_equal(text, expected);
    free(text);
}

static void add_line(Metrics *m, int64_t step, double loss) {
    Err e = {""};
    metrics_begin(m, step);
    metrics_number(m, "loss", loss);
    if (metrics_end(m, &e)) fail_msg("%s", e.text);
}

static void lines(void **state) {
    char path[SCRATCH_PATH];
    Err e = {""};
    Metrics m;
    scratch_path(state, "lines.jsonl", path);
    assert_int_equal(metrics_open(&m, path, 0, &e), 0);
    metrics_begin(&m, 7);
    metrics_number(&m, "third", 1.0 / 3);
    metrics_number(&m, "tenth", 0.1);
    metrics_number(&m, "large", 1e300);
    metrics_number(&m, "count", 12345678);
    metrics_number(&m, "nan", NAN);
    metrics_number(&m, "inf", -INFINITY);
    metrics_text(&m, "name", "a \"b\"\\\n\t\xc3\xa9");
    metrics_text(&m, "none", NULL);
    assert_int_equal(metrics_end(&m, &e), 0);
    add_line(&m, 8, 0.5);
    static const char expected[] =
        "{\"step\":7,\"third\":0.3333333333333333,\"tenth\":0.1,\"large\":1e+300,"
        "\"count\":12345678,\"nan\":null,\"inf\":null,"
        "\"name\":\"a \\\"b\\\"\\\\\\u000a\\u0009\xc3\xa9\",\"none\":null}\n"
        "{\"step\":8,\"loss\":0.5}\n";
    assert_holds(path, expected); /* at once, not only after closing */
    metrics_close(&m);
    cJSON *json = cJSON_Parse(expected);
    assert_true(cJSON_GetObjectItem(json, "third")->valuedouble == 1.0 / 3);
    assert_string_equal(cJSON_GetObjectItem(json, "name")->valuestring, "a \"b\"\\\n\t\xc3\xa9");
    cJSON_Delete(json);
    add_line(&m, 9, 0.5); /* closed: nothing happens */
    assert_holds(path, expected);
}

static void resume(void **state) {
    char path[SCRATCH_PATH];
    Err e = {""};
    Metrics m;
    scratch_path(state, "resume.jsonl", path);
    static const char before[] =
        "{\"step\":1,\"loss\":3}\n"
        "{\"note\":\"no step\"}\n"
        "not JSON\n"
        "{\"step\":2,\"loss\":2} and more\n"
        "{\"step\":2,\"loss\":2}\n"
        "{\"step\":2,\"held_out_loss\":2.5}\n"
        "{\"step\":3,\"loss\":1}\n"
        "{\"step\":4,\"lo";
    assert_int_equal(scratch_write(path, before, sizeof before - 1), 0);
    assert_int_equal(metrics_open(&m, path, 3, &e), 0);
    add_line(&m, 3, 1.5);
    metrics_close(&m);
    assert_holds(path,
                 "{\"step\":1,\"loss\":3}\n"
                 "{\"note\":\"no step\"}\n"
                 "{\"step\":2,\"loss\":2}\n"
                 "{\"step\":2,\"held_out_loss\":2.5}\n"
                 "{\"step\":3,\"loss\":1.5}\n");
    assert_int_equal(metrics_open(&m, path, 0, &e), 0); /* begins anew */
    metrics_close(&m);
    assert_holds(path, "");
    scratch_path(state, "fresh.jsonl", path);
    assert_int_equal(metrics_open(&m, path, 100, &e), 0); /* nothing to keep */
    metrics_close(&m);
    assert_holds(path, "");
}

/* A line that does not fit leaves nothing; the next one that fits stands on a line of its own. */
static void full_disk(void **state) {
    char path[SCRATCH_PATH], text[400];
    Err e = {""};
    Metrics m;
    scratch_path(state, "full.jsonl", path);
    assert_int_equal(metrics_open(&m, path, 0, &e), 0);
    add_line(&m, 1, 3);
    memset(text, 'x', sizeof text);
    text[sizeof text - 1] = 0;
    struct rlimit was, small;
    getrlimit(RLIMIT_FSIZE, &was);
    small = was;
    small.rlim_cur = 100;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    metrics_begin(&m, 2);
    metrics_text(&m, "long", text);
    int status = metrics_end(&m, &e);
    setrlimit(RLIMIT_FSIZE, &was);
    signal(SIGXFSZ, SIG_DFL);
    assert_int_equal(status, -1);
    assert_non_null(strstr(e.text, "full.jsonl"));
    add_line(&m, 3, 1);
    metrics_close(&m);
    assert_holds(path, "{\"step\":1,\"loss\":3}\n{\"step\":3,\"loss\":1}\n");
}

static void bad_places(void **state) {
    char path[SCRATCH_PATH];
    Err e = {""};
    Metrics m;
    assert_int_equal(metrics_open(&m, scratch_path(state, "no/such/m.jsonl", path), 0, &e), -1);
    assert_non_null(strstr(e.text, "make the folder first"));
    metrics_close(&m);
    assert_int_equal(metrics_open(&m, *state, 5, &e), -1);
    assert_non_null(strstr(e.text, "folder"));
    cJSON *json = cJSON_CreateObject();
    assert_int_equal(json_save(path, json, &e), -1);
    cJSON_Delete(json);
}

static void run_json(void **state) {
    char path[SCRATCH_PATH];
    Err e = {""};
    scratch_path(state, "run.json", path);
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "preset", "tiny");
    cJSON_AddNumberToObject(json, "nan", NAN);
    assert_int_equal(json_save(path, json, &e), 0);
    cJSON_Delete(json);
    assert_holds(path, "{\n\t\"preset\":\t\"tiny\",\n\t\"nan\":\tnull\n}\n");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines),      cmocka_unit_test(resume),   cmocka_unit_test(full_disk),
        cmocka_unit_test(bad_places), cmocka_unit_test(run_json),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
