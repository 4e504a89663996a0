/* train_wm given what it cannot use: status 1, one sentence that says what was found, what was
 * expected and what to do, and nothing lost. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "data/picture.h"
#include "llmc_like/npy.h"
#include "test/cli_wm.h"

#include "test/cli_checkpoint.h"

/* ---- options ---- */

static void options(void **state) {
    static const struct {
        const char *option, *value, *words;
    } bad[] = {
        {"--stpes", "4", "--stpes|'--steps'|--help"},
        {"--steps", "many", "--steps|'many'|whole number"},
        {"--steps", "0", "--steps|0|from 1"},
        {"--preset", "tiyn", "tiyn|tiny, paper, toy-wm|did you mean 'tiny'"},
        {"--attn", "sdap", "sdap|vanilla, sdpa, flex, flex-dense, auto|did you mean 'sdpa'"},
        {"--device", "gpu", "gpu|cpu"},
        {"--rope", "ropy", "ropy|rope, learn, vid"},
        {"--n-heads", "5", "32|5|multiple"},
        {"--n-heads", "32", "pairs|even"},
        {"--d-model", "96", "96|multiple of 64"},
        {"--height", "25", "25 x 24|patches of 3"},
        {"--background", "1,2", "\"1,2\"|6,24,24"},
        {"--held-out", "0.95", "0.95|0 to 0.9"},
        {"--sample-steps", "-1", "--sample-steps|1 to"},
        {"--cfg", "nan", "--cfg|nan|number"},
        {"extra", "words", "'extra'|no option"},
        {"--init", "@none.safetensors", "none.safetensors|No such file"},
        {"--sample", "@none.safetensors", "none.safetensors|No such file"},
        {"--resume", "@none", "none/checkpoints/last.safetensors|No such file"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        cli_refused(cli_run(state, CLI_SMALL, "--out", "@bad", bad[i].option, bad[i].value),
                    bad[i].words);
    cli_refused(cli_run(state, CLI_SMALL, "--out", "@bad", "--steps"), "--steps|needs a value");
    cli_refused(cli_run(state, CLI_SMALL, "--resume", "@a", "--init", "@b", "--out", "@bad"),
                "--resume|--init|exclude");
    cli_refused(cli_run(state, CLI_SMALL, "--resume", "@a", "--attn", "all", "--out", "@bad"),
                "--attn all|--init, not --resume");
    cli_refused(cli_run(state, CLI_SMALL, "--sample", "@a", "--attn", "all", "--out", "@bad"),
                "--attn all|--sample|name one");
    cli_refused(
        cli_run(state, CLI_SMALL, "--actions", "up*2,lfet", "--eval-every", "2", "--out", "@bad"),
        "lfet|none, stay, up, down");
    cli_refused(cli_run(state, CLI_SMALL, "--attn", "sdpa", "--mask", "q >= k", "--out", "@bad"),
                "--attn sdpa|expressions|vanilla|flex");
    assert_false(cli_exists(state, "bad"));
}

static void expressions(void **state) {
    static const struct {
        const char *option, *text, *words;
    } bad[] = {
        {"--mask", "q >= && k", "--mask|'&&'|\n  q >= && k\n       ^"},
        {"--mask", "(q >= k", "--mask|')'|\n  (q >= k\n         ^"},
        {"--mask", "q >= system(1)", "'system'|an expression knows|\n       ^"},
        {"--mask", "q >= k; k", "--mask|;|^"},
        {"--mask", "q >= *k", "--mask|^"},
        {"--mask", "frame[q", "--mask|']'|^"},
        {"--mask", "k < 100 && q < 50", "leaves the query|q 50 |'|| k == q'"},
        {"--mask", "q > k", "leaves the query|q 0 "},
        {"--mask", "windw:4", "--mask|windw"},
        {"--mask", "window:0", "--mask|window"},
        {"--score", "score -", "--score|expression ends|\n         ^"},
        {"--score", "fopen(q)", "--score|'fopen'|^"},
        {"--score", "score + sin(q)", "--score|'sin'|\n          ^"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        cli_refused(cli_run(state, CLI_SMALL, "--attn", "flex", "--out", "@bad", bad[i].option,
                            bad[i].text),
                    bad[i].words);
    assert_false(cli_exists(state, "bad"));
}

/* Quickly, and before anything is allocated. */
static void sizes(void **state) {
    cli_refused(cli_run(state, CLI_SMALL, "--batch", "1000000"), "MiB|left|smaller --batch");
    cli_refused(
        cli_run(state, CLI_SMALL, "--frames", "4096", "--attn", "vanilla", "--batch", "1000"),
        "MiB|left|smaller --batch");
    cli_refused(cli_run(state, CLI_SMALL, "--frames", "4096", "--attn", "flex", "--mask", "q >= k",
                        "--batch", "1000"),
                "MiB|left|smaller --batch");
    cli_refused(cli_run(state, CLI_SMALL, "--frames", "4096", "--height", "4096", "--width", "4096",
                        "--patch", "1"),
                "68719480832 tokens|4194304|fewer --frames");
    cli_refused(cli_run(state, CLI_SMALL, "--batch", "1048576", "--frames", "4096", "--d-model",
                        "65536", "--n-blocks", "1024", "--attn", "vanilla"),
                "TiB|smaller --batch");
}

/* ---- data ---- */

enum { N = 40, SIDE = 24, FRAME = SIDE * SIDE * 3 };

static void data_npy(void **state, const char *name, NpyType t, int ndim, const int64_t *shape) {
    static const uint8_t zeros[8 * N * FRAME];
    char path[SCRATCH_PATH];
    Err e = {""};
    if (npy_write(scratch_path(state, name, path), t, ndim, shape, zeros, &e))
        fail_msg("%s", e.text);
}

static void data_folder(void **state) {
    char path[SCRATCH_PATH];
    mkdir(scratch_path(state, "data", path), 0700);
    unlink(scratch_path(state, "data/actions.csv", path));
    data_npy(state, "data/frames.npy", NPY_U1, 4, (int64_t[]){N, SIDE, SIDE, 3});
    data_npy(state, "data/actions.npy", NPY_I8, 1, (int64_t[]){N});
}

static void data_refused(void **state, const char *words) {
    cli_refused(cli_run(state, CLI_SMALL, "--data", "@data", "--out", "@bad"), words);
    assert_false(cli_exists(state, "bad"));
}

static void frames(void **state) {
    char path[SCRATCH_PATH];
    data_folder(state);
    assert_int_equal(truncate(scratch_path(state, "data/frames.npy", path), N * FRAME / 2), 0);
    data_refused(state, "frames.npy|truncated");
    assert_int_equal(truncate(path, 5), 0);
    data_refused(state, "frames.npy");
    assert_int_equal(scratch_write(path, "no array at all, but long enough", 32), 0);
    data_refused(state, "frames.npy|.npy");
    data_npy(state, "data/frames.npy", NPY_F4, 4, (int64_t[]){N, SIDE, SIDE, 3});
    data_refused(state, "frames.npy|float32|expected uint8|astype");
    data_npy(state, "data/frames.npy", NPY_U1, 4, (int64_t[]){N, 3, SIDE, SIDE});
    data_refused(state, "frames.npy|(40, 3, 24, 24)|expected (N, height, width, 3)|transpose");
    data_npy(state, "data/frames.npy", NPY_U1, 4, (int64_t[]){N, SIDE, SIDE + 3, 3});
    data_refused(state, "24 high and 27 wide|expected 24 and 24|scale them");
    data_npy(state, "data/frames.npy", NPY_U1, 4, (int64_t[]){7, SIDE, SIDE, 3});
    data_npy(state, "data/actions.npy", NPY_I8, 1, (int64_t[]){7});
    data_refused(state, "7 frames|expected at least 2|8 frames or more");
    assert_int_equal(unlink(path), 0);
    data_refused(state, "data|frames.npy|png");
    cli_refused(cli_run(state, CLI_SMALL, "--data", "@nowhere", "--out", "@bad"),
                "nowhere|no such folder|frames.npy|pong");
}

static void actions(void **state) {
    char path[SCRATCH_PATH];
    int64_t action[N] = {0};
    Err e = {""};
    data_folder(state);
    scratch_path(state, "data/actions.npy", path);
    action[17] = 3;
    assert_int_equal(npy_write(path, NPY_I8, 1, (int64_t[]){N}, action, &e), 0);
    data_refused(state, "actions.npy|3|17|0");
    action[17] = -1;
    assert_int_equal(npy_write(path, NPY_I8, 1, (int64_t[]){N}, action, &e), 0);
    data_refused(state, "actions.npy|-1|17");
    data_npy(state, "data/actions.npy", NPY_I8, 1, (int64_t[]){N - 1});
    data_refused(state, "actions.npy|39 actions for 40 frames|cut the longer");
    data_npy(state, "data/actions.npy", NPY_F4, 1, (int64_t[]){N});
    data_refused(state, "actions.npy|float32|integer");
    data_npy(state, "data/actions.npy", NPY_I8, 2, (int64_t[]){N, 1});
    data_refused(state, "actions.npy|(40, 1)");
    data_npy(state, "data/actions.npy", NPY_I8, 1, (int64_t[]){N});
    assert_int_equal(truncate(path, 200), 0);
    data_refused(state, "actions.npy|truncated");
    assert_int_equal(unlink(path), 0);
    data_refused(state, "neither actions.npy nor actions.csv|put one");
    assert_int_equal(scratch_write(scratch_path(state, "data/actions.csv", path), "0\n1\nup\n", 7),
                     0);
    data_refused(state, "actions.csv|up");
}

static void pictures(void **state) {
    char name[64], path[SCRATCH_PATH];
    static const uint8_t rgb[FRAME * 2];
    Err e = {""};
    mkdir(scratch_path(state, "data", path), 0700);
    unlink(scratch_path(state, "data/frames.npy", path));
    data_npy(state, "data/actions.npy", NPY_I8, 1, (int64_t[]){10});
    for (int i = 0; i < 10; i++) {
        snprintf(name, sizeof name, "data/f%04d.png", i);
        assert_int_equal(picture_png(scratch_path(state, name, path), rgb, SIDE, SIDE, &e), 0);
    }
    char *out = cli_good(cli_run(state, CLI_SMALL, "--data", "@data", "--out", "@pictures_good"));
    free(out);
    scratch_path(state, "data/f0005.png", path);
    assert_int_equal(picture_png(path, rgb, SIDE, SIDE + 3, &e), 0);
    data_refused(state, "f0005.png|27|24");
    assert_int_equal(truncate(path, 60), 0);
    data_refused(state, "f0005.png");
    assert_int_equal(unlink(path), 0);
    data_refused(state, "data|5");
}

/* ---- checkpoints ---- */

/* A run of two steps in folder "good", made once. */
static void good_run(void **state) {
    if (cli_exists(state, "good")) return;
    free(
        cli_good(cli_run(state, CLI_SMALL, "--steps", "2", "--save-every", "2", "--out", "@good")));
}

static void misshape(StEntry *t, float *data) {
    (void)data;
    if (!strcmp(t->name, "param.registers")) {
        t->ndim = 1;
        t->shape[0] = t->numel;
    }
    if (!strcmp(t->name, "param.blocks.0.norm1.w")) t->name = NULL;
}

static void spoil(StEntry *t, float *data) {
    if (!strcmp(t->name, "param.registers")) data[0] = NAN;
}

static void other_checkpoints(void **state) {
    static const char *const option[] = {"--resume", "--init", "--sample"};
    good_run(state);
    write_model_of(state, "icecube.safetensors", "{\"model\": \"hierarchical\", \"d_model\": 32}");
    for (int i = 0; i < 3; i++)
        cli_refused(cli_run(state, option[i], "@icecube.safetensors", "--out", "@bad"),
                    "icecube.safetensors|model is \"hierarchical\"|expected is wm");
    cli_refused(
        cli_run(state, "--resume", "@good", "--steps", "3", "--d-model", "64", "--out", "@bad"),
        "last.safetensors|does not fit|other shape|param.registers|(1, 32)|(1, 64)");
    cli_refused(
        cli_run(state, "--resume", "@good", "--steps", "3", "--n-blocks", "2", "--out", "@bad"),
        "missing|blocks.1.");
    cli_refused(cli_run(state, "--init", "@good/checkpoints/last.safetensors", "--rope", "learn",
                        "--out", "@bad"),
                "does not fit|missing");
    rewrite(state, "good/checkpoints/last.safetensors", "shape.safetensors", misshape);
    cli_refused(cli_run(state, "--init", "@shape.safetensors", "--out", "@bad"),
                "shape.safetensors|does not fit|other shape|registers");
    cli_refused(cli_run(state, "--resume", "@good"), "made 2 steps already|--steps");
    cli_refused(cli_run(state, CLI_SMALL, "--out", "@good"),
                "already holds checkpoints|--resume|another --out");
    assert_false(cli_exists(state, "bad"));
}

static void damaged_checkpoints(void **state) {
    char path[SCRATCH_PATH], *bytes;
    size_t size;
    Err e = {""};
    good_run(state);
    scratch_path(state, "good/checkpoints/last.safetensors", path);
    assert_int_equal(read_whole_file(path, &bytes, &size, &e), 0);
    scratch_path(state, "damaged.safetensors", path);
    bytes[size - 100] ^= 1;
    assert_int_equal(scratch_write(path, bytes, size), 0);
    static const char *const options[] = {"--resume", "--init", "--sample"};
    for (int i = 0; i < 3; i++)
        cli_refused(
            cli_run(state, options[i], "@damaged.safetensors", "--steps", "9", "--out", "@bad"),
            "damaged.safetensors|is damaged|checksum|another checkpoint");
    static const size_t cut[] = {0, 5, 300, 3000, 100000};
    for (int i = 0; i < 5; i++) {
        assert_true(cut[i] < size);
        assert_int_equal(scratch_write(path, bytes, cut[i]), 0);
        cli_refused(
            cli_run(state, "--resume", "@damaged.safetensors", "--steps", "9", "--out", "@bad"),
            "damaged.safetensors");
    }
    memset(bytes, 0xff, 16);
    assert_int_equal(scratch_write(path, bytes, size), 0);
    cli_refused(cli_run(state, "--init", "@damaged.safetensors", "--out", "@bad"),
                "damaged.safetensors");
    free(bytes);
    assert_false(cli_exists(state, "bad"));
}

/* ---- nothing lost ---- */

static int leftovers;

static int count_leftover(const char *path, const struct stat *s, int type, struct FTW *f) {
    (void)s;
    (void)type;
    (void)f;
    leftovers += strstr(path, ".tmp") != NULL;
    return 0;
}

static void full_disk(void **state) {
    char path[SCRATCH_PATH];
    free(
        cli_good(cli_run(state, CLI_SMALL, "--steps", "2", "--save-every", "2", "--out", "@full")));
    copy_file(state, "full/checkpoints/last.safetensors", "before.safetensors");
    const char *const args[] = {"--resume", "@full", "--steps", "4", "--save-every", "1", NULL};
    cli_refused(cli_wait(state, cli_start(state, 65536, args)), "last.safetensors|large");
    assert_true(same_file(state, "full/checkpoints/last.safetensors", "before.safetensors"));
    leftovers = 0;
    nftw(scratch_path(state, "full", path), count_leftover, 8, FTW_PHYS);
    assert_int_equal(leftovers, 0);
    free(cli_good(cli_run(state, "--resume", "@full", "--steps", "4", "--save-every", "1")));
}

/* Root may write anywhere, so the folders here cannot be made by anybody. */
static void no_folder(void **state) {
    char path[SCRATCH_PATH];
    assert_int_equal(scratch_write(scratch_path(state, "file", path), "", 0), 0);
    cli_refused(cli_run(state, CLI_SMALL, "--out", "@file/run"), "file|another folder");
    cli_refused(cli_run(state, CLI_SMALL, "--out", "/proc/nothing"), "/proc/nothing|folder");
    cli_refused(cli_run(state, CLI_SMALL, "--attn", "all", "--out", "@file/run"),
                "file|another folder");
    good_run(state);
    cli_refused(cli_run(state, CLI_SMALL, "--sample", "@good/checkpoints/last.safetensors", "--out",
                        "@file/run"),
                "file|another folder");
}

static void not_a_number(void **state) {
    good_run(state);
    rewrite(state, "good/checkpoints/last.safetensors", "nan.safetensors", spoil);
    cli_refused(cli_run(state, CLI_SMALL, "--init", "@nan.safetensors", "--out", "@nan",
                        "--save-every", "1"),
                "step 1:|loss is|nan|last good checkpoint in|--lr-muon");
    assert_false(cli_exists(state, "nan/checkpoints/last.safetensors"));
    free(cli_good(cli_run(state, CLI_SMALL, "--steps", "2", "--save-every", "2", "--out", "@nan")));
    copy_file(state, "nan/checkpoints/last.safetensors", "before.safetensors");
    cli_refused(cli_run(state, "--resume", "@nan.safetensors", "--steps", "5", "--out", "@nan",
                        "--save-every", "1"),
                "step 3:|loss is|nan");
    assert_true(same_file(state, "nan/checkpoints/last.safetensors", "before.safetensors"));
    cli_refused(cli_run(state, CLI_SMALL, "--init", "@nan.safetensors", "--out", "@nan_all",
                        "--attn", "all"),
                "step 1:|loss is");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(options),
        cmocka_unit_test(expressions),
        cmocka_unit_test(sizes),
        cmocka_unit_test(frames),
        cmocka_unit_test(actions),
        cmocka_unit_test(pictures),
        cmocka_unit_test(other_checkpoints),
        cmocka_unit_test(damaged_checkpoints),
        cmocka_unit_test(full_disk),
        cmocka_unit_test(no_folder),
        cmocka_unit_test(not_a_number),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
