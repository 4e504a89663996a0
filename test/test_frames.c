/* Data sets from all three sources: alignment, order, held-out part, background; and every kind of
 * bad input with the words its sentence must hold. */
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "data/actions.h"
#include "data/frames.h"
#include "data/picture.h"
#include "llmc_like/fsio.h"

enum { H = 4, W = 5, FRAME = H * W * 3, LENGTH = 4 /* F + 1 */, MAX = 64 };

static char folder[64];

static const char *in_folder(const char *name) {
    static char path[2][512];
    static int turn;
    turn = !turn;
    snprintf(path[turn], sizeof path[turn], "%s/%s", folder, name);
    return path[turn];
}

static int make_folder(void **state) {
    (void)state;
    strcpy(folder, "/tmp/test_frames_XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    DIR *dir = opendir(folder);
    if (!dir) return -1;
    for (struct dirent *d; (d = readdir(dir));)
        if (d->d_name[0] != '.') unlink(in_folder(d->d_name));
    closedir(dir);
    return rmdir(folder);
}

/* Frame i: background, and one pixel whose red is i. */
static void fill(uint8_t *frames, int n) {
    for (int i = 0; i < n; i++) {
        for (int p = 0; p < H * W; p++) memcpy(frames + i * FRAME + 3 * p, "\x90\x48\x11", 3);
        frames[i * FRAME] = (uint8_t)i;
    }
}

static void write_frames(int n) {
    uint8_t frames[MAX * FRAME];
    fill(frames, n);
    assert_int_equal(
        npy_write(in_folder("frames.npy"), NPY_U1, 4, (int64_t[]){n, H, W, 3}, frames, NULL), 0);
}

static void write_actions(int n) {
    int32_t a[MAX];
    for (int i = 0; i < n; i++) a[i] = i % 3;
    assert_int_equal(npy_write(in_folder("actions.npy"), NPY_I4, 1, (int64_t[]){n}, a, NULL), 0);
}

static void write_text(const char *name, const char *text) {
    assert_int_equal(atomic_save(in_folder(name), text, strlen(text), NULL), 0);
}

static FrameOptions options(void) {
    return (FrameOptions){.source = folder, .n_frames = LENGTH - 1, .seed = 3, .held_out = 0.25};
}

/* Opens and expects the sentence to hold all the words. */
static void expect_error(FrameOptions o, const char *const words[4]) {
    FrameData d;
    Err e = {""};
    assert_int_equal(frames_open(&d, &o, &e), -1);
    for (int i = 0; i < 4 && words[i]; i++)
        if (!strstr(e.text, words[i])) fail_msg("\"%s\" is not in: %s", words[i], e.text);
}
#define EXPECT_ERROR(o, ...) expect_error(o, (const char *const[4]){__VA_ARGS__})

static void check_recording(const FrameData *d) {
    float x[(LENGTH - 1) * FRAME];
    int32_t actions[LENGTH - 1];
    bool seen[MAX / LENGTH] = {false};
    assert_int_equal(d->n_train, 6);
    assert_int_equal(d->n_held, 2);
    assert_memory_equal(d->background, "\x90\x48\x11", 3);
    for (uint64_t index = 0; index < 8; index++) {
        bool held = index >= 6;
        frames_clip(d, held, held ? index - 6 : index, x, actions);
        int number = (int)(index < 6 ? frames_order(d, index) : (int64_t)index);
        seen[number] = true;
        assert_true(held == (number >= 6));
        for (int i = 0; i < LENGTH - 1; i++) {
            int frame = number * LENGTH + 1 + i;
            assert_true(x[i * FRAME] == (float)frame / 255.0f * 2.0f - 1.0f);
            for (int k = 3; k < FRAME; k++) assert_true(x[i * FRAME + k] == 0.0f);
            assert_int_equal(actions[i], (frame - 1) % 3 + 1);
        }
    }
    for (int i = 0; i < 8; i++) assert_true(seen[i]);
}

static void recording_is_cut_and_aligned(void **state) {
    (void)state;
    FrameOptions o = options();
    FrameData d;
    Err e = {""};
    write_frames(34); /* 8 examples and 2 frames too many */
    write_actions(34);
    if (frames_open(&d, &o, &e)) fail_msg("%s", e.text);
    check_recording(&d);
    frames_close(&d);
}

static void every_integer_layout_is_read(void **state) {
    (void)state;
    static const NpyType type[] = {NPY_U1, NPY_I1, NPY_U2, NPY_I2, NPY_U4, NPY_I4, NPY_U8, NPY_I8};
    FrameOptions o = options();
    write_frames(34);
    for (size_t t = 0; t < sizeof type / sizeof *type; t++) {
        uint8_t bytes[34 * 8] = {0};
        for (int i = 0; i < 34; i++) bytes[i * npy_size(type[t])] = (uint8_t)(i % 3);
        npy_write(in_folder("actions.npy"), type[t], 1, (int64_t[]){34}, bytes, NULL);
        FrameData d;
        assert_int_equal(frames_open(&d, &o, NULL), 0);
        check_recording(&d);
        frames_close(&d);
    }
}

static void pictures_give_the_same(void **state) {
    (void)state;
    FrameOptions o = options();
    FrameData d;
    Err e = {""};
    uint8_t frames[34 * FRAME];
    char name[32], csv[2048] = "frame,action\n", line[32];
    fill(frames, 34);
    for (int i = 0; i < 34; i++) {
        snprintf(name, sizeof name, "f%d.png", i + 5); /* sorts wrongly as text */
        assert_int_equal(picture_png(in_folder(name), frames + i * FRAME, H, W, &e), 0);
        snprintf(line, sizeof line, "%d,%d\r\n", i, i % 3);
        strcat(csv, line);
    }
    write_text("actions.csv", csv);
    if (frames_open(&d, &o, &e)) fail_msg("%s", e.text);
    check_recording(&d);
    frames_close(&d);

    rename(in_folder("f9.png"), in_folder("keep"));
    EXPECT_ERROR(o, "gap", "f8.png", "f10.png");
    picture_png(in_folder("f9.png"), frames, W, H, &e);
    EXPECT_ERROR(o, "f9.png", "4 wide and 5 high", "expected 5 and 4");
    write_text("f9.png", "no picture");
    EXPECT_ERROR(o, "f9.png", "not a whole PNG");
    rename(in_folder("keep"), in_folder("f9.png"));
    picture_png(in_folder("g9.png"), frames, H, W, &e);
    EXPECT_ERROR(o, "f9.png", "g9.png", "same number");
}

static void game_is_aligned_and_endless(void **state) {
    (void)state;
    FrameOptions o = {.source = "pong", .n_frames = 8, .seed = 5};
    FrameData d;
    enum { PIXELS = 24 * 24, N = 9 };
    static uint8_t bytes[N * PIXELS * 3];
    static float x[(N - 1) * PIXELS * 3], again[(N - 1) * PIXELS * 3], held[(N - 1) * PIXELS * 3];
    int32_t actions[N], all[N];
    PongState truth[N];
    assert_int_equal(frames_open(&d, &o, NULL), 0);
    assert_memory_equal(d.background, PONG_BACKGROUND, 3);
    frames_clip(&d, false, 1, x, actions);
    frames_clip_bytes(&d, false, 1, bytes, all, truth);
    assert_memory_equal(actions, all, sizeof *all * (N - 1));
    pixels_from_bytes(bytes + PIXELS * 3, (N - 1) * PIXELS, d.background, again);
    assert_memory_equal(x, again, sizeof x);
    for (int i = 1; i < N; i++) {
        pong_play(&truth[i - 1], (PongAction)(actions[i - 1] - ACTION_STAY));
        assert_int_equal(truth[i - 1].right_y, truth[i].right_y);
    }
    frames_clip(&d, true, 1, held, actions);
    assert_memory_not_equal(x, held, sizeof x);
    frames_clip(&d, false, UINT64_C(1) << 40, held, actions);
    assert_memory_not_equal(x, held, sizeof x);
    frames_close(&d);
}

static void bad_frames_are_explained(void **state) {
    (void)state;
    FrameOptions o = options();
    const float one[MAX * FRAME] = {0};
    char *text;
    size_t size;
    o.source = "/nonexistent";
    EXPECT_ERROR(o, "/nonexistent", "no such folder", "pong");
    o = options();
    EXPECT_ERROR(o, folder, "neither frames.npy nor numbered pictures");
    write_frames(34);
    EXPECT_ERROR(o, folder, "neither actions.npy nor actions.csv");
    write_actions(34);
    o.h = 24;
    EXPECT_ERROR(o, "4 high and 5 wide", "expected 24 and 5");
    o = options();
    o.background = "1,2";
    EXPECT_ERROR(o, "background \"1,2\"", "auto");
    o.background = "1,2,300";
    EXPECT_ERROR(o, "0 to 255");
    o = options();
    o.held_out = 1;
    EXPECT_ERROR(o, "held-out share 1");
    o = options();
    o.n_frames = 20;
    EXPECT_ERROR(o, "34 frames", "at least 2", "42 frames");
    o = options();
    npy_write(in_folder("frames.npy"), NPY_F4, 4, (int64_t[]){34, H, W, 3}, one, NULL);
    EXPECT_ERROR(o, "frames.npy", "float32", "expected uint8");
    npy_write(in_folder("frames.npy"), NPY_U1, 4, (int64_t[]){34, 3, H, W}, one, NULL);
    EXPECT_ERROR(o, "frames.npy", "(34, 3, 4, 5)", "(N, height, width, 3)");
    npy_write(in_folder("frames.npy"), NPY_U1, 3, (int64_t[]){34, W, 3}, one, NULL);
    EXPECT_ERROR(o, "frames.npy", "(34, 5, 3)");
    write_frames(34);
    assert_int_equal(read_whole_file(in_folder("frames.npy"), &text, &size, NULL), 0);
    assert_int_equal(atomic_save(in_folder("frames.npy"), text, size - 100, NULL), 0);
    EXPECT_ERROR(o, "frames.npy", "truncated");
    free(text);
}

static void bad_actions_are_explained(void **state) {
    (void)state;
    FrameOptions o = options();
    int32_t bad[34] = {0};
    const double real[34] = {0};
    write_frames(34);
    write_actions(33);
    EXPECT_ERROR(o, "actions.npy", "33 actions for 34 frames");
    bad[17] = 3;
    bad[20] = -1;
    npy_write(in_folder("actions.npy"), NPY_I4, 1, (int64_t[]){34}, bad, NULL);
    EXPECT_ERROR(o, "actions.npy", "action 3 at index 17", "0..2");
    npy_write(in_folder("actions.npy"), NPY_F8, 1, (int64_t[]){34}, real, NULL);
    EXPECT_ERROR(o, "actions.npy", "float64", "integer");
    npy_write(in_folder("actions.npy"), NPY_I4, 2, (int64_t[]){17, 2}, bad, NULL);
    EXPECT_ERROR(o, "actions.npy", "(17, 2)", "(N,)");
    unlink(in_folder("actions.npy"));
    write_text("actions.csv", "0\n1\nup\n");
    EXPECT_ERROR(o, "actions.csv", "line 3", "\"up\"");
    write_text("actions.csv", "frame,action\n0,1\n2,1\n");
    EXPECT_ERROR(o, "actions.csv", "line 3", "frame 2", "expected frame 1");
    write_text("actions.csv", "0\n5\n");
    EXPECT_ERROR(o, "actions.csv", "action 5 at index 1");
    write_text("actions.csv", "0,\n");
    EXPECT_ERROR(o, "actions.csv", "line 1");
}

static void patterns_and_files_are_parsed(void **state) {
    (void)state;
    Err e = {""};
    int32_t *ids;
    int64_t n;
    static const int32_t expected[] = {1, 1, 2, 3, 3, 3, 0, 1, 2, 3};
    assert_int_equal(actions_parse("stay*2,up,down*3,none,0,1,2*1", &ids, &n, &e), 0);
    assert_int_equal(n, 10);
    assert_memory_equal(ids, expected, sizeof expected);
    free(ids);
    write_text("mine.txt", "0\n2\n\n1\n");
    assert_int_equal(actions_parse(in_folder("mine.txt"), &ids, &n, &e), 0);
    assert_int_equal(n, 3);
    assert_memory_equal(ids, ((int32_t[]){1, 3, 2}), 3 * sizeof *ids);
    free(ids);
    static const char *const bad[] = {"",    "left", "up*",   "up*0", "up*-1", "up,,down",
                                      "up,", "3",    "up*2x", "*3",   "up 3",  "up*99999999"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        e.text[0] = 0;
        assert_int_equal(actions_parse(bad[i], &ids, &n, &e), -1);
        assert_non_null(strstr(e.text, "none, stay, up, down"));
    }
    assert_int_equal(actions_parse("up*1000000,up*1000000", &ids, &n, &e), -1);
    assert_non_null(strstr(e.text, "more than"));
    assert_int_equal(actions_parse("missing.npy", &ids, &n, &e), -1);
    assert_non_null(strstr(e.text, "missing.npy"));
    write_text("empty.txt", "\n");
    assert_int_equal(actions_parse(in_folder("empty.txt"), &ids, &n, &e), -1);
    assert_non_null(strstr(e.text, "expected 1 to"));
    assert_string_equal(action_name(ACTION_UP), "up");
}

#define WITH_FOLDER(f) cmocka_unit_test_setup_teardown(f, make_folder, remove_folder)

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH_FOLDER(recording_is_cut_and_aligned),     WITH_FOLDER(every_integer_layout_is_read),
        WITH_FOLDER(pictures_give_the_same),           WITH_FOLDER(bad_frames_are_explained),
        WITH_FOLDER(bad_actions_are_explained),        WITH_FOLDER(patterns_and_files_are_parsed),
        cmocka_unit_test(game_is_aligned_and_endless),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
