/* Shards: what is read back, and every kind of damaged folder, file and event with the words that
 * its sentence must hold. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <sys/stat.h>

#include "data/icecube_batch.h"
#include "data/icecube_shards.h"
#include "test/scratch.h"
#include "test/shard_files.h"

enum { E = 3, P = 6 };

/* Three events: of 2, 1 and 3 pulses, the second without a direction. */
typedef struct Sample {
    int64_t event_id[E], offsets[E + 1];
    float direction[2 * E];
    int16_t sensor[P];
    int32_t time[P];
    float charge[P];
    uint8_t auxiliary[P];
} Sample;

static Sample good_sample(void) {
    return (Sample){.event_id = {24, 41, 59},
                    .offsets = {0, 2, 3, 6},
                    .direction = {5.0296f, 2.0874f, NAN, NAN, 0.0f, 3.14159265f},
                    .sensor = {0, 5159, 3918, 7, 7, 2000},
                    .time = {0, 5928, 6115, 2147483647, 9999, 9999},
                    .charge = {1.325f, 0.0f, 1.175f, 0.025f, 2800.0f, 1.0f},
                    .auxiliary = {1, 0, 1, 0, 0, 1}};
}

static int write_sample(void **state, int number, Sample *s) {
    ShardArrays a = {E,         P,       s->event_id, s->offsets,  s->direction,
                     s->sensor, s->time, s->charge,   s->auxiliary};
    Err e = {""};
    return geometry_write(*state, &e) || shard_write(*state, number, &a, &e);
}

static void write_good(void **state, int number) {
    Sample s = good_sample();
    assert_int_equal(write_sample(state, number, &s), 0);
}

static void expect_words(const char *text, const char *const words[3]) {
    for (int i = 0; i < 3 && words[i]; i++)
        if (!strstr(text, words[i])) fail_msg("\"%s\" is not in: %s", words[i], text);
}

/* Opens and expects the sentence to hold all the words. */
static void expect_error(const char *folder, const char *const words[3]) {
    IceShards s;
    Err e = {""};
    assert_int_equal(ice_shards_open(&s, folder, &e), -1);
    expect_words(e.text, words);
    assert_null(s.shard);
}
#define EXPECT_ERROR(folder, ...) expect_error(folder, (const char *const[3]){__VA_ARGS__})

static void events_are_read_back(void **state) {
    IceShards s;
    Err e = {""};
    IceEvent event = {0};
    const Sample want = good_sample();
    write_good(state, 660);
    write_good(state, 2);
    if (ice_shards_open(&s, *state, &e)) fail_msg("%s", e.text);
    assert_int_equal(s.n, 2);
    assert_int_equal(s.n_events, 2 * E);
    assert_int_equal(s.shard[0].number, 2);
    assert_int_equal(s.shard[1].number, 660);
    float xyz[3 * ICE_SENSORS];
    ice_geometry_builtin(xyz);
    assert_memory_equal(s.xyz, xyz, sizeof xyz);
    for (int64_t i = 0; i < 2 * E; i++) {
        const IceShard *shard = &s.shard[i / E];
        const int64_t k = i % E, first = want.offsets[k];
        char buf[ICE_FAULT_TEXT];
        int64_t id;
        bool known;
        assert_null(ice_shard_fault(shard, k, buf));
        ice_shard_event(shard, k, &event, &id, &known);
        assert_int_equal(id, want.event_id[k]);
        assert_int_equal(event.n, want.offsets[k + 1] - first);
        const size_t n = (size_t)event.n;
        assert_memory_equal(event.sensor, want.sensor + first, n * sizeof *want.sensor);
        assert_memory_equal(event.charge, want.charge + first, n * sizeof *want.charge);
        assert_memory_equal(event.auxiliary, want.auxiliary + first, n);
        for (size_t p = 0; p < n; p++)
            assert_true(event.time[p] == (float)want.time[first + (int64_t)p]);
        assert_int_equal(known, k != 1);
        const double az = (double)want.direction[2 * k], ze = (double)want.direction[2 * k + 1];
        const double truth[3] = {cos(az) * sin(ze), sin(az) * sin(ze), cos(ze)};
        for (int c = 0; c < 3; c++)
            assert_true(known ? fabs((double)event.direction[c] - truth[c]) < 1e-7
                              : event.direction[c] == 0.0f);
    }
    ice_event_free(&event);
    ice_shards_close(&s);
}

static void bad_folders_are_explained(void **state) {
    char path[SCRATCH_PATH], missing[SHARD_PATH];
    EXPECT_ERROR("/nonexistent", "/nonexistent: no folder", "icecube_convert.py", "\"sim\"");
    EXPECT_ERROR(*state, "no folder batch_K", "icecube_convert.py", "\"sim\"");
    scratch_write(scratch_path(state, "train_meta.parquet", path), "PAR1", 4);
    EXPECT_ERROR(*state, "parquet files", "data/icecube_convert.py /");
    write_good(state, 5);
    unlink(shard_path(*state, 5, "done", missing));
    EXPECT_ERROR(*state, "batch_5: unfinished", "\"done\"", "run the converter again");
    write_good(state, 5);
    mkdir(scratch_path(state, "batch_05", path), 0777);
    EXPECT_ERROR(*state, "batch_05: expected the name batch_5", "rename");
}

static void names_of_other_files_do_not_matter(void **state) {
    static const char *const name[] = {"batch_5.tmp", "batch_", "batch_x", "notes", "batch_-1"};
    char path[SCRATCH_PATH];
    IceShards s;
    write_good(state, 0);
    for (size_t i = 0; i < sizeof name / sizeof *name; i++)
        mkdir(scratch_path(state, name[i], path), 0777);
    assert_int_equal(ice_shards_open(&s, *state, NULL), 0);
    assert_int_equal(s.n, 1);
    assert_int_equal(s.shard[0].number, 0);
    ice_shards_close(&s);
}

static void bad_geometry_is_explained(void **state) {
    char path[SCRATCH_PATH];
    float xyz[3 * ICE_SENSORS] = {0};
    write_good(state, 1);
    scratch_path(state, "geometry.npy", path);
    npy_write(path, NPY_F4, 2, (int64_t[]){ICE_SENSORS - 1, 3}, xyz, NULL);
    EXPECT_ERROR(*state, "geometry.npy: shape (5159, 3), expected (5160, 3)");
    xyz[3 * 17 + 1] = NAN;
    npy_write(path, NPY_F4, 2, (int64_t[]){ICE_SENSORS, 3}, xyz, NULL);
    EXPECT_ERROR(*state, "geometry.npy", "sensor 17", "nan");
    unlink(path);
    EXPECT_ERROR(*state, "geometry.npy");
}

/* Each array in turn: gone, cut short, of another type, one number short. */
static void bad_arrays_are_explained(void **state) {
    static const struct {
        const char *name, *type;
        int64_t rows;
    } array[] = {{"event_id", "int64", E},    {"offsets", "int64", E + 1},
                 {"direction", "float32", E}, {"sensor_id", "int16", P},
                 {"time", "int32", P},        {"charge", "float32", P},
                 {"auxiliary", "uint8", P}};
    const double zeros[64] = {0};
    for (size_t i = 0; i < sizeof array / sizeof *array; i++) {
        char name[32], path[SHARD_PATH];
        struct stat info;
        snprintf(name, sizeof name, "%s.npy", array[i].name);
        shard_path(*state, 1, name, path);
        write_good(state, 1);
        unlink(path);
        EXPECT_ERROR(*state, path, "No such file");
        write_good(state, 1);
        assert_int_equal(stat(path, &info), 0);
        assert_int_equal(truncate(path, info.st_size - 1), 0);
        EXPECT_ERROR(*state, path, "truncated");
        npy_write(path, NPY_F8, 1, (int64_t[]){array[i].rows}, zeros, NULL);
        EXPECT_ERROR(*state, path, "dtype float64, expected ", array[i].type);
        NpyType type = !strcmp(array[i].type, "int64")   ? NPY_I8
                       : !strcmp(array[i].type, "int32") ? NPY_I4
                       : !strcmp(array[i].type, "int16") ? NPY_I2
                       : !strcmp(array[i].type, "uint8") ? NPY_U1
                                                         : NPY_F4;
        npy_write(path, type, 1, (int64_t[]){array[i].rows - 1}, zeros, NULL);
        EXPECT_ERROR(*state, "shape (", "expected (", "convert that batch file again");
        npy_write(path, type, 3, (int64_t[]){array[i].rows, 1, 1}, zeros, NULL);
        EXPECT_ERROR(*state, path, ", 1, 1), expected (");
        npy_write(path, type, 0, NULL, zeros, NULL);
        EXPECT_ERROR(*state, path, "shape ()");
    }
}

static void bad_offsets_are_explained(void **state) {
    Sample s = good_sample();
    s.offsets[2] = 1;
    write_sample(state, 1, &s);
    EXPECT_ERROR(*state, "offsets.npy: number 2 is 1", "none below the one before");
    s = good_sample();
    s.offsets[0] = 1;
    write_sample(state, 1, &s);
    EXPECT_ERROR(*state, "offsets.npy: number 0 is 1");
    s = good_sample();
    s.offsets[E] = P + 1;
    write_sample(state, 1, &s);
    EXPECT_ERROR(*state, "offsets.npy: number 3 is 7", "6 (the pulses) last");
    ShardArrays none = {0,        0,      s.event_id, (int64_t[]){0}, s.direction,
                        s.sensor, s.time, s.charge,   s.auxiliary};
    assert_int_equal(shard_write(*state, 1, &none, NULL), 0);
    EXPECT_ERROR(*state, "batch_1: no events");
}

/* Event 2 of the sample, spoilt; the others stay good. */
static void expect_fault(void **state, Sample *s, const char *const words[3]) {
    IceShards shards;
    Err e = {""};
    char buf[ICE_FAULT_TEXT];
    assert_int_equal(write_sample(state, 1, s), 0);
    if (ice_shards_open(&shards, *state, &e)) fail_msg("%s", e.text);
    const char *fault = ice_shard_fault(&shards.shard[0], 2, buf);
    if (!fault) fail_msg("no fault where it should say %s", words[0]);
    expect_words(fault, words);
    for (int i = 0; i < 2; i++) assert_null(ice_shard_fault(&shards.shard[0], i, buf));
    ice_shards_close(&shards);
    *s = good_sample();
}
#define EXPECT_FAULT(s, ...) expect_fault(state, s, (const char *const[3]){__VA_ARGS__})

static void bad_events_are_explained(void **state) {
    Sample s = good_sample();
    s.sensor[5] = 5160;
    EXPECT_FAULT(&s, "its pulse 2 has sensor 5160", "0 to 5159");
    s.sensor[3] = -1;
    EXPECT_FAULT(&s, "its pulse 0 has sensor -1");
    s.time[4] = -1;
    EXPECT_FAULT(&s, "its pulse 1 has time -1");
    s.charge[4] = NAN;
    EXPECT_FAULT(&s, "its pulse 1 has charge", "nan");
    s.charge[4] = INFINITY;
    EXPECT_FAULT(&s, "its pulse 1 has charge inf");
    s.charge[4] = -0.5f;
    EXPECT_FAULT(&s, "its pulse 1 has charge -0.5", "at least 0");
    s.auxiliary[3] = 2;
    EXPECT_FAULT(&s, "its pulse 0 has auxiliary 2", "0 or 1");
    s.direction[4] = NAN;
    EXPECT_FAULT(&s, "azimuth", "nan", "or neither");
    s.direction[5] = NAN;
    EXPECT_FAULT(&s, "zenith", "nan");
    s.direction[4] = -0.1f;
    EXPECT_FAULT(&s, "azimuth -0.1");
    s.direction[4] = 6.2832f;
    EXPECT_FAULT(&s, "azimuth 6.2832");
    s.direction[5] = 3.1416f;
    EXPECT_FAULT(&s, "zenith 3.1416");
    s.direction[5] = INFINITY;
    EXPECT_FAULT(&s, "zenith inf");
    s = good_sample();
    s.offsets[1] = s.offsets[2] = 3;
    assert_int_equal(write_sample(state, 1, &s), 0);
    IceShards shards;
    char buf[ICE_FAULT_TEXT];
    assert_int_equal(ice_shards_open(&shards, *state, NULL), 0);
    const char *const words[3] = {"it has 0 pulses"};
    expect_words(ice_shard_fault(&shards.shard[0], 1, buf), words);
    ice_shards_close(&shards);
}

#define WITH_FOLDER(test) cmocka_unit_test_setup_teardown(test, scratch_setup, scratch_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH_FOLDER(events_are_read_back),
        WITH_FOLDER(bad_folders_are_explained),
        WITH_FOLDER(names_of_other_files_do_not_matter),
        WITH_FOLDER(bad_geometry_is_explained),
        WITH_FOLDER(bad_arrays_are_explained),
        WITH_FOLDER(bad_offsets_are_explained),
        WITH_FOLDER(bad_events_are_explained),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
