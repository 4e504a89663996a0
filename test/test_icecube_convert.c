/* data/icecube_convert.py, started as a user does, on small folders in Kaggle's layout that
 * test/make_kaggle.py makes: what it leaves, row by row, and what the loader reads of that, event
 * by event, against the formulas by which they were made; each kind of damage; interrupted and
 * resumed runs. Skipped where `make deps` could not make build/python. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <dirent.h>
#include <math.h>
#include <sys/file.h>

#include "data/icecube_data.h"
#include "llmc_like/npy.h"
#include "test/cli_icecube.h"

#define PYTHON "build/python/bin/python"
#define CONVERTER "data/icecube_convert.py"
#define MAKER "test/make_kaggle.py"
#define REAL "../shared/data/icecube"

enum { EVENTS = 12, SENSORS = 5160, LARGE = 140000, ARGS = 12 };

static bool have_python(void) { return access(PYTHON, X_OK) == 0; }

/* Begins python with arguments; one that begins with @ is a path in the scratch folder. */
static pid_t python_start(void **state, rlim_t file_limit, const char *const *args) {
    char path[ARGS][SCRATCH_PATH], *argv[ARGS + 2] = {PYTHON};
    for (int i = 0; args[i]; i++) {
        assert_true(i < ARGS);
        if (*args[i] == '@')
            scratch_path(state, args[i] + 1, path[i]);
        else
            snprintf(path[i], sizeof path[i], "%s", args[i]);
        argv[i + 1] = path[i];
    }
    fflush(NULL);
    const pid_t pid = fork();
    if (pid == 0) cli_become(PYTHON, argv, *state, file_limit);
    assert_true(pid > 0);
    return pid;
}

#define python_begin(state, limit, ...) \
    python_start(state, limit, (const char *const[]){__VA_ARGS__, NULL})
#define python(state, ...) cli_wait(state, python_begin(state, 0, __VA_ARGS__))
#define convert(state, ...) python(state, CONVERTER, __VA_ARGS__)

static void good(Cli r, const char *word) {
    if (r.status || r.signal) fail_msg("status %d, stderr: %s", r.status, r.err);
    if (!strstr(r.out, word)) fail_msg("no '%s' in: %s", word, r.out);
    cli_free(&r);
}

/* Exit status 1 and one sentence, the last line of stderr, with all these words (separated by |).
 */
static void refused(Cli r, const char *words) {
    char word[256];
    const char *sentence = strstr(r.err, "icecube_convert: ");
    if (r.status != 1 || !sentence || strchr(sentence, '\n') != strrchr(r.err, '\n') ||
        strstr(r.err, "Traceback"))
        fail_msg("status %d where 1 and a sentence with %s were expected; stderr: %s", r.status,
                 words, r.err);
    while (*words) {
        const size_t n = strcspn(words, "|");
        snprintf(word, sizeof word, "%.*s", (int)n, words);
        if (!strstr(sentence, word)) fail_msg("no '%s' in: %s", word, sentence);
        words += n + (words[n] == '|');
    }
    cli_free(&r);
}

static int setup(void **state) {
    if (scratch_setup(state)) return -1;
    if (!have_python()) return 0;
    Cli r = python(state, MAKER, "make", "@.");
    if (r.status) print_error("%s", r.err);
    cli_free(&r);
    return r.status;
}

static NpyArray array(void **state, const char *folder, int k, const char *name, NpyType dtype) {
    char file[128], path[SCRATCH_PATH];
    NpyArray a;
    Err e = {""};
    snprintf(file, sizeof file, "%s/batch_%d/%s.npy", folder, k, name);
    if (npy_open(scratch_path(state, file, path), &a, &e)) fail_msg("%s", e.text);
    assert_int_equal(a.dtype, dtype);
    return a;
}

static int pulses(int k, int i) { return k == 2 && i == 5 ? LARGE : 1 + (7 * i + 3 * k) % 9; }

/* Batch k of a converted folder is what make_kaggle.py's formulas say, without the events whose bit
 * is set in left_out. */
static void same_batch(void **state, const char *folder, int k, unsigned left_out) {
    NpyArray id = array(state, folder, k, "event_id", NPY_I8);
    NpyArray offsets = array(state, folder, k, "offsets", NPY_I8);
    NpyArray direction = array(state, folder, k, "direction", NPY_F4);
    NpyArray sensor = array(state, folder, k, "sensor_id", NPY_I2);
    NpyArray time = array(state, folder, k, "time", NPY_I4);
    NpyArray charge = array(state, folder, k, "charge", NPY_F4);
    NpyArray auxiliary = array(state, folder, k, "auxiliary", NPY_U1);
    int64_t row = 0, p = 0;
    for (int i = 0; i < EVENTS; i++) {
        if (left_out >> i & 1) continue;
        assert_int_equal(npy_int(&id, row), 1000 * k + 10 * i + 4);
        assert_int_equal(npy_int(&offsets, row), p);
        const float *angle = (const float *)direction.data + 2 * row++;
        if (k == 3)
            assert_true(isnan(angle[0]) && isnan(angle[1]));
        else
            assert_true(angle[0] == 0.5f * (float)i && angle[1] == 0.25f * (float)i);
        for (int j = 0; j < pulses(k, i); j++, p++) {
            assert_int_equal(npy_int(&sensor, p), (97 * i + 13 * j) % SENSORS);
            assert_int_equal(npy_int(&time, p), 9000 + 40 * i + 3 * j);
            assert_true(npy_number(&charge, p) == 0.125 * (1 + (i + j) % 40));
            assert_int_equal(npy_int(&auxiliary, p), (i + j) % 3 == 0);
        }
    }
    assert_int_equal(npy_int(&offsets, row), p);
    assert_true(id.numel == row && offsets.numel == row + 1);
    assert_true(direction.ndim == 2 && direction.shape[0] == row && direction.shape[1] == 2);
    assert_true(sensor.numel == p && time.numel == p && charge.numel == p && auxiliary.numel == p);
    NpyArray *all[] = {&id, &offsets, &direction, &sensor, &time, &charge, &auxiliary};
    for (int i = 0; i < 7; i++) npy_close(all[i]);
}

static void same(void **state, const char *folder, unsigned left_out_1, unsigned left_out_2) {
    same_batch(state, folder, 1, left_out_1);
    same_batch(state, folder, 2, left_out_2);
    same_batch(state, folder, 3, 0);
}

static void same_positions(const float *xyz) {
    for (int s = 0; s < SENSORS; s++, xyz += 3) {
        assert_true(xyz[0] == (float)(s / 60 * 10) + 0.5f);
        assert_true(xyz[1] == (float)(s % 7 * 100) + 0.25f);
        assert_true(xyz[2] == (float)(s % 60 * 17) + 0.125f);
    }
}

/* The same by the loader: each event of the three batches as a model gets it. */
static void same_events(void **state, const char *folder) {
    char path[SCRATCH_PATH];
    IceData d;
    Err e = {""};
    const IceDataOptions o = {.source = scratch_path(state, folder, path), .held_out = "all"};
    if (ice_data_open(&d, &o, &e)) fail_msg("%s", e.text);
    assert_int_equal(d.n_held, 3 * EVENTS);
    same_positions(d.xyz);
    IceReader *r = ice_reader_new(&d);
    for (int at = 0; at < 3 * EVENTS; at++) {
        const int k = 1 + at / EVENTS, i = at % EVENTS;
        const double a = 0.5 * i, z = 0.25 * i,
                     truth[] = {sin(z) * cos(a), sin(z) * sin(a), cos(z)};
        int64_t id;
        bool known;
        const IceEvent *v = ice_data_event(&d, r, true, (uint64_t)at, &id, &known, &e);
        if (!v) fail_msg("%s", e.text);
        assert_int_equal(id, 1000 * k + 10 * i + 4);
        assert_int_equal(v->n, pulses(k, i));
        assert_true(known == (k != 3));
        for (int axis = 0; known && axis < 3; axis++)
            assert_true(fabs((double)v->direction[axis] - truth[axis]) < 1e-6);
        for (int j = 0; j < v->n; j++) {
            assert_int_equal(v->sensor[j], (97 * i + 13 * j) % SENSORS);
            assert_true(v->time[j] == (float)(9000 + 40 * i + 3 * j));
            assert_true(v->charge[j] == 0.125f * (float)(1 + (i + j) % 40));
            assert_int_equal(v->auxiliary[j], (i + j) % 3 == 0);
        }
    }
    ice_reader_free(r);
    ice_data_close(&d);
}

/* Whether anything in the folder is unfinished: a *.tmp, or a batch without `done`. */
static bool has_leftovers(void **state, const char *folder) {
    char path[SCRATCH_PATH], done[2 * SCRATCH_PATH];
    DIR *d = opendir(scratch_path(state, folder, path));
    assert_non_null(d);
    bool found = false;
    for (struct dirent *f; (f = readdir(d));) {
        snprintf(done, sizeof done, "%s/%s/done", path, f->d_name);
        if (strstr(f->d_name, ".tmp")) found = true;
        if (!strncmp(f->d_name, "batch_", 6) && access(done, F_OK)) found = true;
    }
    closedir(d);
    return found;
}

static void test_rows(void **state) {
    if (!have_python()) skip();
    good(convert(state, "@good", "@all"), "3 files, 36 events, 140174 pulses");
    same(state, "all", 0, 0);
    assert_false(has_leftovers(state, "all"));
    char path[SCRATCH_PATH];
    NpyArray xyz;
    Err e = {""};
    if (npy_open(scratch_path(state, "all/geometry.npy", path), &xyz, &e)) fail_msg("%s", e.text);
    assert_true(xyz.dtype == NPY_F4 && xyz.ndim == 2 && xyz.shape[0] == SENSORS);
    same_positions(xyz.data);
    npy_close(&xyz);
    same_events(state, "all");
}

/* The table's rows in any order make the same shards. */
static void test_rows_out_of_order(void **state) {
    if (!have_python()) skip();
    good(convert(state, "@unordered", "@unordered_out", "--jobs", "1"), "36 events");
    same(state, "unordered_out", 0, 0);
}

/* The greatest values that are allowed; angles stay in range as float32, which rounds pi up. */
static void test_limits(void **state) {
    if (!have_python()) skip();
    good(convert(state, "@limits", "@limits_out"), "36 events");
    NpyArray offsets = array(state, "limits_out", 1, "offsets", NPY_I8);
    NpyArray direction = array(state, "limits_out", 1, "direction", NPY_F4);
    NpyArray sensor = array(state, "limits_out", 1, "sensor_id", NPY_I2);
    NpyArray time = array(state, "limits_out", 1, "time", NPY_I4);
    NpyArray charge = array(state, "limits_out", 1, "charge", NPY_F4);
    const int64_t last = npy_int(&offsets, 4) - 1;
    assert_int_equal(npy_int(&sensor, last), SENSORS - 1);
    assert_int_equal(npy_int(&time, last), INT32_MAX);
    assert_true(npy_number(&charge, last) == 0);
    const double azimuth = npy_number(&direction, 6), zenith = npy_number(&direction, 7);
    assert_true(azimuth <= 2 * M_PI && azimuth > 2 * M_PI - 1e-6);
    assert_true(zenith <= M_PI && zenith > M_PI - 1e-6);
    NpyArray *all[] = {&offsets, &direction, &sensor, &time, &charge};
    for (int i = 0; i < 5; i++) npy_close(all[i]);
}

static void test_damaged_events(void **state) {
    if (!have_python()) skip();
    static const struct {
        const char *name, *words;
        unsigned left_out_1, left_out_2; /* with --skip-bad, of batches 1 and 2 */
    } cases[] = {
        {"@pulses",
         "batch_1.parquet: 8 damaged|event 1004 (sensor_id 5160, expected 0..5159)|"
         "event 1024 (sensor_id -1,|event 1044 (time -1, expected 0..2147483647)|"
         "event 1054 (time 2147483648,|event 1064 (charge nan,|event 1074 (charge inf,|"
         "event 1084 (charge -0.5,|event 1094 (charge 1e+39,|--skip-bad",
         0x3f5, 0x20},
        {"@rows",
         "batch_1.parquet: 12 damaged|event 1004 (first_pulse_index 1, last_pulse_index 3, but its "
         "pulses are 0 to 3)|event 1014 (no pulses: first_pulse_index 4, last_pulse_index 5 are "
         "other events')|event 1015 (pulses, but no row in train_meta.parquet)|event 1034 (first_"
         "pulse_index 15, last_pulse_index 22, but its pulses are 15 to 21)|event 1044 (first_"
         "pulse_index 22, last_pulse_index 1000 of a file with 60 pulses)|event 1054 (no pulses: "
         "first_pulse_index 27, last_pulse_index 0)|event 1074 (pulses, but no row|event 1079 (no "
         "pulses|event 1084 (zenith -0.1, expected 0 to pi)|event 1094 (azimuth 6.2832, expected 0 "
         "to 2 pi) and 2 more",
         0xfbb, 0},
        {"@directions", "3 damaged|1014 (azimuth nan|1024 (zenith nan|1034 (zenith 3.1416,", 0xe,
         0},
        {"@doubled", "3 damaged|event 1014 (more than one row|event 1044 (more than one|event 1064",
         0x52, 0x4},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char out[64];
        snprintf(out, sizeof out, "%s_out", cases[i].name);
        refused(convert(state, cases[i].name, out, "--batches", "1", "--jobs", "1"),
                cases[i].words);
        assert_false(has_leftovers(state, out + 1));
        good(convert(state, cases[i].name, out, "--skip-bad"), "left out: ");
        same(state, out + 1, cases[i].left_out_1, cases[i].left_out_2);
    }
    refused(convert(state, "@hopeless", "@hopeless_out", "--skip-bad"),
            "1004 (time -9000|no event");
    assert_false(has_leftovers(state, "hopeless_out"));
}

/* Damaged files and options; --skip-bad does not help. */
static void test_bad_input(void **state) {
    if (!have_python()) skip();
    static const struct {
        const char *name, *words;
    } cases[] = {
        {"@truncated", "train/batch_2.parquet: cannot be read as parquet"},
        {"@empty", "train/batch_2.parquet: cannot be read as parquet"},
        {"@truncated-table", "train_meta.parquet: cannot be read as parquet"},
        {"@no-file", "train/batch_2.parquet: there is no such file|12 events|--batches"},
        {"@no-table", "neither train_meta.parquet nor test_meta.parquet"},
        {"@no-geometry", "sensor_geometry.csv: cannot be read (No such file"},
        {"@geometry-column", "line 2 is not understood; expected are sensor_id,x,y,z"},
        {"@geometry-lost", "5159 sensors, without 77"},
        {"@geometry-doubled", "line 7 has sensor 4 a second time"},
        {"@geometry-unknown", "line 7 has sensor 5160"},
        {"@geometry-nan", "sensor 5's position is not finite"},
        {"@geometry-text", "line 7 is not understood"},
        {"@no-charge", "batch_1.parquet: there is no column charge, only sensor_id, time"},
        {"@no-zenith", "train_meta.parquet: there is no column zenith"},
        {"@half-test", "test_meta.parquet: there is no column zenith"},
        {"@time-type", "column time has type double; expected is an integer"},
        {"@sensor-type", "column sensor_id has type string; expected is an integer"},
        {"@auxiliary-type", "column auxiliary has type int64; expected is a boolean"},
        {"@row-type", "train_meta.parquet: column event_id has type double"},
        {"@null", "column time has values that are null"},
        {"@no-rows", "train_meta.parquet: it has no rows"},
        {"@both", "batch 2 is in train_meta.parquet and in test_meta.parquet"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char out[64];
        snprintf(out, sizeof out, "%s_out", cases[i].name);
        refused(convert(state, cases[i].name, out, "--skip-bad", "--jobs", "1"), cases[i].words);
        if (cli_exists(state, out + 1)) assert_false(has_leftovers(state, out + 1));
    }
    refused(convert(state, "@good"), "OUT|--help");
    refused(convert(state, "@good", "@bad_out", "--batches", "1,x"), "'x' is not understood");
    refused(convert(state, "@good", "@bad_out", "--batches", "2-1"), "'2-1' is not understood");
    refused(convert(state, "@good", "@bad_out", "--batches", "2-4"), "no event is in batch 4");
    refused(convert(state, "@good", "@bad_out", "--jobs", "0"), "--jobs 0");
    refused(convert(state, "@good", "@good/sensor_geometry.csv"),
            "sensor_geometry.csv: File exists");
    refused(python(state, "-S", CONVERTER, "@good", "@bad_out"),
            "is not installed here; 'make deps'");
    assert_false(cli_exists(state, "bad_out"));
}

static ino_t inode(void **state, const char *name) {
    char path[SCRATCH_PATH];
    struct stat s;
    assert_int_equal(stat(scratch_path(state, name, path), &s), 0);
    return s.st_ino;
}

static void leave(void **state, const char *name) {
    char path[SCRATCH_PATH];
    assert_int_equal(scratch_write(scratch_path(state, name, path), "half", 4), 0);
}

/* What kill -9 leaves is made anew, what is finished is not touched. */
static void test_resume(void **state) {
    if (!have_python()) skip();
    char path[SCRATCH_PATH];
    good(convert(state, "@good", "@resume", "--batches", "1-2"), "2 files, 24 events");
    assert_false(cli_exists(state, "resume/batch_3"));
    const ino_t finished = inode(state, "resume/batch_1/time.npy");
    assert_int_equal(unlink(scratch_path(state, "resume/batch_2/done", path)), 0);
    leave(state, "resume/batch_2/time.npy");
    assert_int_equal(mkdir(scratch_path(state, "resume/batch_3.tmp", path), 0777), 0);
    leave(state, "resume/batch_3.tmp/charge.npy");
    good(convert(state, "@good", "@resume"), "1 of 3 files are converted already");
    same(state, "resume", 0, 0);
    assert_false(has_leftovers(state, "resume"));
    assert_true(inode(state, "resume/batch_1/time.npy") == finished);
    good(convert(state, "@good", "@resume"), "all 3 files are converted already");
    refused(convert(state, REAL, "@resume"),
            access(REAL, R_OK) ? "cannot be read" : "other positions than those of IN");
}

/* Nothing that is not the converter's own is removed, nor written while another one writes. */
static void test_strangers(void **state) {
    if (!have_python()) skip();
    char path[SCRATCH_PATH];
    assert_int_equal(mkdir(scratch_path(state, "strange", path), 0777), 0);
    for (int i = 0; i < 2; i++) { /* the converter, and a process that outlived it */
        const int fd = open(scratch_path(state, i ? "strange/geometry.npy" : "strange", path), 0);
        assert_int_equal(flock(fd, LOCK_SH), 0);
        refused(convert(state, "@good", "@strange"), "another converter is writing there");
        close(fd);
        good(convert(state, "@good", "@strange", "--batches", "1"), "strange");
    }
    assert_int_equal(mkdir(scratch_path(state, "strange/batch_3", path), 0777), 0);
    leave(state, "strange/batch_3/notes.txt");
    refused(convert(state, "@good", "@strange"), "batch_3: Directory not empty");
    assert_true(cli_exists(state, "strange/batch_3/notes.txt"));
    assert_false(cli_exists(state, "strange/batch_3.tmp"));
}

/* Ctrl-C at any moment: nothing half-done stays, and the same command finishes. */
static void test_interrupt(void **state) {
    if (!have_python()) skip();
    const pid_t pid = python_begin(state, 0, CONVERTER, "@good", "@interrupt", "--jobs", "1");
    siginfo_t ended = {0};
    while (!cli_exists(state, "interrupt/batch_1.tmp") && !cli_exists(state, "interrupt/batch_1")) {
        assert_int_equal(waitid(P_PID, (id_t)pid, &ended, WEXITED | WNOHANG | WNOWAIT), 0);
        if (ended.si_pid) break;
        usleep(500);
    }
    kill(pid, SIGINT);
    Cli r = cli_wait(state, pid);
    if (r.status == 130)
        assert_non_null(strstr(r.err, "interrupted"));
    else
        assert_int_equal(r.status, 0); /* it was done before */
    cli_free(&r);
    assert_false(has_leftovers(state, "interrupt"));
    good(convert(state, "@good", "@interrupt"), "interrupt: ");
    same(state, "interrupt", 0, 0);
}

/* A limit on the size of files acts as a full disk. */
static void test_full_disk(void **state) {
    if (!have_python()) skip();
    Cli r = cli_wait(state, python_begin(state, 100000, CONVERTER, "@good", "@full"));
    refused(r, "full/batch_2.tmp: File too large; nothing of this batch was kept");
    assert_false(has_leftovers(state, "full"));
    good(convert(state, "@good", "@full"), "140");
    same(state, "full", 0, 0);
}

/* Also from end to end: a model says a direction for each. */
static void test_real_events(void **state) {
    if (!have_python() || access(REAL, R_OK)) skip();
    good(convert(state, REAL, "@real"), "2 files, 9 events, 52490 pulses");
    good(python(state, MAKER, "check", REAL, "@real"), "9 events are the same");
    free(cli_good(cli_run(state, CLI_SMALL, "--steps", "1", "--save-every", "1", "--out", "@run")));
    free(cli_good(cli_run(state, "--predict", "@run/checkpoints/last.safetensors", "--data",
                          "@real", "--csv", "@real.csv")));
    char *csv = cli_text(state, "real.csv");
    int lines = 0;
    for (const char *at = csv; (at = strchr(at, '\n')); at++) lines++;
    assert_int_equal(lines, 1 + 9);
    free(csv);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),      cmocka_unit_test(test_rows_out_of_order),
        cmocka_unit_test(test_limits),    cmocka_unit_test(test_damaged_events),
        cmocka_unit_test(test_bad_input), cmocka_unit_test(test_resume),
        cmocka_unit_test(test_strangers), cmocka_unit_test(test_interrupt),
        cmocka_unit_test(test_full_disk), cmocka_unit_test(test_real_events),
    };
    return cmocka_run_group_tests(tests, setup, scratch_teardown);
}
