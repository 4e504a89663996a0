/* train_wm as a user runs it: what it prints, what it leaves, and that its options do what they
 * say. Bad input is test_train_wm_bad's, checkpoints are test_train_wm_resume's. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "data/picture.h"
#include "data/pong.h"
#include "kernels/attention.h"
#include "llmc_like/npy.h"
#include "llmc_like/safetensors.h"
#include "models/wm_options.h"
#include "test/cli_wm.h"

/* ---- pictures ---- */

static uint32_t big_endian(const uint8_t *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* CRC-32 as the PNG specification gives it (annex D), bit by bit. */
static uint32_t crc32_of(const uint8_t *p, size_t n) {
    uint32_t c = 0xffffffffu;
    for (size_t i = 0; i < n; i++) {
        c ^= p[i];
        for (int k = 0; k < 8; k++) c = c & 1 ? 0xedb88320u ^ c >> 1 : c >> 1;
    }
    return ~c;
}

/* Walks a PNG's chunks; returns its frames: 1 for a still picture, else what fcTL chunks there are,
 * which acTL must announce. */
static int picture_frames(void **state, const char *name) {
    static const uint8_t signature[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
    char path[SCRATCH_PATH], *text;
    size_t size, at = sizeof signature;
    Err e = {""};
    if (read_whole_file(scratch_path(state, name, path), &text, &size, &e)) fail_msg("%s", e.text);
    const uint8_t *p = (const uint8_t *)text;
    assert_true(size > 57);
    assert_memory_equal(p, signature, sizeof signature);
    assert_memory_equal(p + 12, "IHDR", 4);
    int announced = 0, frames = 0, data = 0;
    bool ended = false;
    while (!ended) {
        assert_true(at + 12 <= size);
        const size_t n = big_endian(p + at);
        assert_true(n <= size - at - 12);
        assert_int_equal(big_endian(p + at + 8 + n), crc32_of(p + at + 4, n + 4));
        if (!memcmp(p + at + 4, "acTL", 4)) announced = (int)big_endian(p + at + 8);
        frames += !memcmp(p + at + 4, "fcTL", 4);
        data += !memcmp(p + at + 4, "IDAT", 4);
        ended = !memcmp(p + at + 4, "IEND", 4);
        at += 12 + n;
    }
    free(text);
    assert_int_equal(at, size);
    assert_true(data >= 1);
    assert_int_equal(announced, frames);
    return frames ? frames : 1;
}

/* ---- what it prints ---- */

static void help(void **state) {
    static const char *const named[] = {
        "device",     "threads", "preset", "attn",    "mask",       "score",
        "data",       "out",     "steps",  "batch",   "accumulate", "seed",
        "resume",     "init",    "sample", "actions", "plan",       "eval-every",
        "save-every", "profile", "frames", "n-heads", "n-blocks",   "d-model"};
    char *out = cli_good(cli_run(state, "--help")), flag[64];
    WmSettings s = {.model = wm_config_default()};
    Option row[TRAIN_MAX_OPTIONS];
    const int n = wm_options(&s, row);
    for (int i = 0; i < n; i++) {
        snprintf(flag, sizeof flag, row[i].kind == OPT_FLAG ? "--[no-]%s" : "  --%s", row[i].name);
        assert_says(out, row[i].kind == OPT_HEADING ? row[i].name : flag);
    }
    for (size_t i = 0; i < sizeof named / sizeof *named; i++) {
        bool found = false;
        for (int j = 0; j < n; j++)
            found = found || (row[j].kind != OPT_HEADING && !strcmp(row[j].name, named[i]));
        if (!found) fail_msg("no --%s", named[i]);
    }
    free(out);
}

static void plan(void **state) {
    static const char *const attn[] = {"sdpa", "auto", "all"};
    for (int i = 0; i < 3; i++) {
        char *out =
            cli_good(cli_run(state, CLI_SMALL, "--plan", "--out", "@plan", "--attn", attn[i]));
        assert_says(out, "activations");
        assert_says(out, "optimiser state");
        assert_says(out, "together");
        assert_says(out, "GFLOP");
        assert_null(strstr(out, "loss"));
        free(out);
        assert_false(cli_exists(state, "plan"));
    }
}

/* Found by their names: what a share-of-memory table and a step's line must say. */
static void banner(void **state) {
    char *out = cli_good(cli_run(state, CLI_SMALL, "--out", "@banner", "--profile"));
    assert_says(out, "d 32, 2 heads of 16, 1 blocks, 3 frames of 65 tokens: T 195");
    assert_says(out, "built-in Pong");
    assert_says(out, "2 threads");
    assert_says(out, "sdpa");
    assert_says(out, "frame-causal");
    assert_says(out, "activations");
    assert_says(out, "tokens/s");
    assert_says(out, "% of peak");
    assert_says(out, " left\n");
    assert_says(out, "a step by op");
    assert_says(out, "backward");
    assert_says(out, "  attention ");
    free(out);
    assert_false(cli_exists(state, "banner/pictures")); /* 0 turns periodic things off */
    assert_false(cli_exists(state, "banner/checkpoints/last.safetensors"));
}

/* ---- what it leaves ---- */

static void check_run_json(void **state) {
    char *text = cli_text(state, "run/run.json");
    cJSON *run = cJSON_Parse(text);
    assert_non_null(run);
    free(text);
    const cJSON *options = cJSON_GetObjectItemCaseSensitive(run, "options");
    WmSettings s = {.model = wm_config_default()};
    Option row[TRAIN_MAX_OPTIONS];
    const int n = wm_options(&s, row);
    for (int i = 0; i < n; i++) {
        const cJSON *o = cJSON_GetObjectItemCaseSensitive(options, row[i].name);
        if (row[i].kind == OPT_HEADING) continue;
        if (!cJSON_HasObjectItem(o, "value") || !cJSON_HasObjectItem(o, "from"))
            fail_msg("run.json has no value and origin of --%s", row[i].name);
    }
    static const char *const from[][2] = {
        {"d-model", "user"}, {"lr-adam", "preset"}, {"weight-decay", "default"}};
    for (int i = 0; i < 3; i++) {
        const cJSON *o = cJSON_GetObjectItemCaseSensitive(options, from[i][0]);
        assert_string_equal(cJSON_GetObjectItemCaseSensitive(o, "from")->valuestring, from[i][1]);
    }
    assert_true(number(cJSON_GetObjectItemCaseSensitive(options, "d-model"), "value") == 32);
    assert_true(number(run, "parameters") > 10000);
    assert_true(number(run, "memory_bytes") > 1e6);
    assert_string_equal(cJSON_GetObjectItemCaseSensitive(run, "attention")->valuestring, "sdpa");
    cJSON_Delete(run);
}

static void outputs(void **state) {
    static const char *const step[] = {
        "loss",        "grad_norm", "lr",           "step_ms",         "forward_ms",
        "backward_ms", "update_ms", "tokens_per_s", "attn_forward_ms", "attn_backward_ms"};
    static const char *const evaluation[] = {"held_out_loss", "noise_1",        "noise_0.75",
                                             "noise_0.5",     "noise_0.25",     "noise_0.1",
                                             "noise_0",       "frames_in_rules"};
    char *out = cli_good(cli_run(state, CLI_SMALL, "--eval-every", "2", "--save-every", "2",
                                 "--cfg", "1.5", "--out", "@run"));
    assert_says(out, "held-out loss");
    assert_says(out, "paddle follows the action");
    assert_says(out, "frames/s");
    free(out);
    Lines steps = metrics(state, "run", "loss"), evals = metrics(state, "run", "held_out_loss");
    assert_int_equal(steps.n, 4);
    assert_int_equal(evals.n, 2);
    for (int i = 0; i < steps.n; i++) {
        assert_true(number(steps.line[i], "step") == i);
        for (size_t k = 0; k < sizeof step / sizeof *step; k++)
            assert_true(number(steps.line[i], step[k]) >= 0);
        const double parts = number(steps.line[i], "forward_ms") +
                             number(steps.line[i], "backward_ms") +
                             number(steps.line[i], "update_ms");
        assert_true(parts <= 1.01 * number(steps.line[i], "step_ms"));
    }
    for (int i = 0; i < evals.n; i++)
        for (size_t k = 0; k < sizeof evaluation / sizeof *evaluation; k++)
            assert_true(number(evals.line[i], evaluation[k]) >= 0);
    free_lines(&steps);
    free_lines(&evals);
    check_run_json(state);
    assert_int_equal(picture_frames(state, "run/pictures/sample_000002.png"), 1);
    assert_int_equal(picture_frames(state, "run/pictures/sample_000004.apng"), 3);
    assert_int_equal(picture_frames(state, "run/pictures/control_000002.png"), 1);
    assert_int_equal(picture_frames(state, "run/pictures/control_000004.apng"), 2);
}

static void sampling(void **state) {
    char path[SCRATCH_PATH];
    const int64_t taken[] = {0, 1, 2, 1};
    Err e = {""};
    if (!cli_exists(state, "short"))
        free(cli_good(
            cli_run(state, CLI_SMALL, "--steps", "1", "--save-every", "1", "--out", "@short")));
    scratch_path(state, "taken.npy", path);
    assert_int_equal(npy_write(path, NPY_I8, 1, (int64_t[]){4}, taken, &e), 0);
    static const char *const last = "@short/checkpoints/last.safetensors";
    char *out = cli_good(cli_run(state, "--sample", last, "--actions", "stay*2,up*3,none", "--out",
                                 "@dream", "--threads", "2"));
    assert_says(out, "6 frames");
    assert_says(out, "frames/s");
    free(out);
    assert_int_equal(picture_frames(state, "dream/sample.png"), 1);
    assert_int_equal(picture_frames(state, "dream/sample.apng"), 6);
    out = cli_good(cli_run(state, "--sample", last, "--actions", "@taken.npy", "--out", "@guided",
                           "--cfg", "1.5", "--attn", "vanilla", "--threads", "2"));
    assert_says(out, "4 frames");
    free(out);
    assert_int_equal(picture_frames(state, "guided/sample.apng"), 4);
    assert_false(cli_exists(state, "dream/metrics.jsonl"));
}

/* ---- attention ---- */

static void every_backend(void **state) {
    static const char *const fields[] = {"attn_forward_ms", "attn_backward_ms", "step_ms",
                                         "tokens_per_s",    "peak_mib",         "speed_up",
                                         "loss_diff",       "grad_diff"};
    char *out =
        cli_good(cli_run(state, CLI_SMALL, "--attn", "all", "--steps", "2", "--out", "@all"));
    char *text = cli_text(state, "all/attn_all.json");
    cJSON *all = cJSON_Parse(text);
    assert_non_null(all);
    free(text);
    int n = 0;
    for (; attn_backends[n]; n++) {
        char line[64];
        snprintf(line, sizeof line, "\n%s ", attn_backends[n]->name);
        assert_says(out, line);
        const cJSON *row = cJSON_GetArrayItem(all, n);
        assert_string_equal(cJSON_GetObjectItemCaseSensitive(row, "backend")->valuestring,
                            attn_backends[n]->name);
        const cJSON *why = cJSON_GetObjectItemCaseSensitive(row, "declined");
        if (n < 2) assert_says(why->valuestring, "it needs a mask of documents");
        if (why) continue;
        for (size_t k = 0; k < sizeof fields / sizeof *fields; k++)
            assert_true(number(row, fields[k]) >= 0);
        assert_true(number(row, "loss_diff") <= 1e-5 && number(row, "grad_diff") <= 1e-3);
    }
    assert_int_equal(cJSON_GetArraySize(all), n);
    cJSON_Delete(all);
    assert_says(out, "\nloop        --attn loop: it needs a mask of documents");
    assert_says(out, "Differences are from vanilla.");
    free(out);
    assert_false(cli_exists(state, "all/checkpoints"));
    /* one that declines has a line that says why, and the others go on */
    out = cli_good(cli_run(state, CLI_SMALL, "--attn", "all", "--steps", "1", "--mask",
                           "q >= k || frame[q] == frame[k]", "--out", "@all"));
    assert_says(out, "\nsdpa        --attn sdpa: it has no mask expressions");
    assert_says(out, "\nflex-dense ");
    free(out);
}

static void automatic(void **state) {
    char *out = cli_good(
        cli_run(state, CLI_SMALL, "--attn", "auto", "--save-every", "4", "--out", "@auto"));
    assert_says(out, "backward ms  difference");
    for (int i = 0; attn_backends[i]; i++) assert_says(out, attn_backends[i]->name);
    assert_says(out, "the fastest here");
    free(out);
    /* what it chose goes with the checkpoint, so that a resumed run has the same bits */
    char path[SCRATCH_PATH];
    StFile f;
    scratch_path(state, "auto/checkpoints/last.safetensors", path);
    assert_int_equal(st_open(path, &f, NULL), 0);
    assert_says(st_meta(&f, "options"), "\"attn\":");
    assert_null(strstr(st_meta(&f, "options"), "\"attn\":\"auto\""));
    st_close(&f);
}

/* The same mask by its name and as an expression, and a score, whose slope reaches the gradients.
 */
static void expressions(void **state) {
    free(cli_good(cli_run(state, CLI_SMALL, "--out", "@named")));
    free(cli_good(cli_run(state, CLI_SMALL, "--attn", "flex", "--mask",
                          "q >= k || frame[q] == frame[k]", "--out", "@expression")));
    assert_true(loss_difference(state, "named", "expression") <= 1e-5);
    free(cli_good(cli_run(state, CLI_SMALL, "--attn", "flex", "--score", "score - 0.01*(q - k)",
                          "--out", "@score")));
    free(cli_good(cli_run(state, CLI_SMALL, "--attn", "vanilla", "--score", "score - 0.01*(q - k)",
                          "--out", "@plain")));
    assert_true(loss_difference(state, "score", "plain") <= 1e-5);
    assert_true(loss_difference(state, "score", "named") > 1e-5);
    static const char *const masks[] = {"full", "causal", "window:70", "document:65"};
    for (int i = 0; i < 4; i++)
        free(cli_good(cli_run(state, CLI_SMALL, "--mask", masks[i], "--steps", "2", "--out",
                              "@masked", "--save-every", "0")));
}

/* ---- batches and data ---- */

/* Data and noise are keyed by example, so a batch may be cut in two. */
static void accumulate(void **state) {
    free(cli_good(cli_run(state, CLI_SMALL, "--batch", "4", "--out", "@four")));
    free(cli_good(cli_run(state, CLI_SMALL, "--accumulate", "2", "--out", "@two_by_two")));
    free(cli_good(cli_run(state, CLI_SMALL, "--out", "@two")));
    assert_true(loss_difference(state, "four", "two_by_two") <= 1e-5);
    assert_true(loss_difference(state, "four", "two") > 1e-3);
}

/* The same recording as arrays and as pictures. */
static void recordings(void **state) {
    enum { N = 20, SIDE = PONG_FRAME_SIZE, FRAME = SIDE * SIDE * 3 };
    static uint8_t frames[N * FRAME];
    int32_t taken[N];
    uint8_t bytes[N];
    char path[SCRATCH_PATH], name[64], csv[16 * N] = "frame,action\n";
    Err e = {""};
    pong_clip(3, 0, N, SIDE, SIDE, frames, taken, NULL);
    mkdir(scratch_path(state, "arrays", path), 0700);
    mkdir(scratch_path(state, "pictures", path), 0700);
    for (int i = 0; i < N; i++) {
        bytes[i] = (uint8_t)taken[i];
        snprintf(csv + strlen(csv), sizeof csv - strlen(csv), "%d,%d\n", i, taken[i]);
        snprintf(name, sizeof name, "pictures/frame_%03d.png", i);
        scratch_path(state, name, path);
        assert_int_equal(picture_png(path, frames + i * FRAME, SIDE, SIDE, &e), 0);
    }
    scratch_path(state, "arrays/frames.npy", path);
    assert_int_equal(npy_write(path, NPY_U1, 4, (int64_t[]){N, SIDE, SIDE, 3}, frames, &e), 0);
    scratch_path(state, "arrays/actions.npy", path);
    assert_int_equal(npy_write(path, NPY_U1, 1, (int64_t[]){N}, bytes, &e), 0);
    scratch_path(state, "pictures/actions.csv", path);
    assert_int_equal(scratch_write(path, csv, strlen(csv)), 0);
    char *out = cli_good(cli_run(state, CLI_SMALL, "--data", "@arrays", "--eval-every", "4",
                                 "--save-every", "4", "--out", "@from_arrays"));
    assert_says(out, "20 frames of 24x24, 4 clips of 3 to train on, 1 held out");
    assert_says(out, "background 6,24,24");
    assert_says(out, "held-out loss");
    assert_null(strstr(out, "paddle follows")); /* nobody knows the truth here */
    free(out);
    out = cli_good(cli_run(state, CLI_SMALL, "--data", "@pictures", "--out", "@from_pictures"));
    assert_says(out, "20 pictures of 24x24");
    free(out);
    assert_true(loss_difference(state, "from_arrays", "from_pictures") == 0);

    /* A dream needs the recording no more. */
    char moved[SCRATCH_PATH];
    scratch_path(state, "moved", moved);
    assert_int_equal(rename(scratch_path(state, "arrays", path), moved), 0);
    free(cli_good(cli_run(state, "--sample", "@from_arrays/checkpoints/last.safetensors",
                          "--actions", "up*2", "--out", "@dreamt", "--threads", "2")));
    assert_int_equal(picture_frames(state, "dreamt/sample.apng"), 2);
}

/* It learns: within thirty steps the loss is well below where it began. */
static void learning(void **state) {
    free(cli_good(cli_run(state, CLI_SMALL, "--steps", "30", "--batch", "4", "--lr-adam", "1e-2",
                          "--out", "@learning")));
    Lines l = metrics(state, "learning", "loss");
    assert_int_equal(l.n, 30);
    assert_true(number(l.line[29], "loss") < 0.6 * number(l.line[0], "loss"));
    free_lines(&l);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(help),       cmocka_unit_test(plan),
        cmocka_unit_test(banner),     cmocka_unit_test(outputs),
        cmocka_unit_test(sampling),   cmocka_unit_test(every_backend),
        cmocka_unit_test(automatic),  cmocka_unit_test(expressions),
        cmocka_unit_test(accumulate), cmocka_unit_test(recordings),
        cmocka_unit_test(learning),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
