/* Bytes and the model's numbers, contact sheets, animations (read back chunk by chunk), bad
 * folders. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "data/picture.h"
#include "data/png_frames.h"
#include "data/pong.h"
#include "llmc_like/fsio.h"

static char folder[64];

static int make_folder(void **state) {
    (void)state;
    strcpy(folder, "/tmp/test_picture_XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    return rmdir(folder);
}

static const char *in_folder(const char *name) {
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void all_bytes_return(void **state) {
    (void)state;
    enum { N = 256 };
    uint8_t rgb[3 * N], back[3 * N];
    float x[3 * N];
    for (int i = 0; i < N; i++) { /* red far from grey, so that no pixel is near 0 */
        rgb[3 * i] = 250;
        rgb[3 * i + 1] = (uint8_t)i;
        rgb[3 * i + 2] = (uint8_t)(255 - i);
    }
    pixels_from_bytes(rgb, N, PONG_BACKGROUND, x);
    assert_true(fabsf(x[1] + 1.0f) < 1e-6f && fabsf(x[3 * 255 + 1] - 1.0f) < 1e-6f);
    pixels_to_bytes(x, N, PONG_BACKGROUND, back);
    assert_memory_equal(rgb, back, sizeof rgb);
}

static void background_is_zero_and_returns(void **state) {
    (void)state;
    const uint8_t rgb[9] = {6, 24, 24, 6, 24, 25, 255, 255, 255};
    const float dream[15] = {0.19f, -0.19f, 0.1f, 0.21f, 0, 0, -3, 3, 0.5f, NAN, 0, 0, 0, 0, 0};
    const uint8_t expected[15] = {6, 24, 24, 154, 128, 128, 0, 255, 191, 0, 128, 128, 6, 24, 24};
    float x[9];
    uint8_t back[15];
    pixels_from_bytes(rgb, 3, PONG_BACKGROUND, x);
    assert_true(x[0] == 0 && x[1] == 0 && x[2] == 0);
    assert_true(fabsf(x[3] - (6 / 127.5f - 1)) < 1e-6f && x[6] == 1.0f);
    pixels_to_bytes(dream, 5, PONG_BACKGROUND, back);
    assert_memory_equal(back, expected, sizeof expected);
}

static uint8_t *game_frames(int n) {
    uint8_t *frames = malloc((size_t)n * 24 * 24 * 3);
    int32_t *actions = malloc((size_t)n * sizeof *actions);
    assert_non_null(frames);
    assert_non_null(actions);
    pong_clip(1, 2, n, 24, 24, frames, actions, NULL);
    free(actions);
    return frames;
}

static void sheet_holds_every_pixel(void **state) {
    (void)state;
    enum { N = 5, COLUMNS = 3, SCALE = 2, STEP = 24 * SCALE + 1 };
    Err e = {""};
    uint8_t *frames = game_frames(N), *sheet;
    int64_t n;
    int h, w;
    assert_int_equal(picture_sheet(in_folder("0.png"), frames, N, 24, 24, COLUMNS, SCALE, &e), 0);
    assert_int_equal(png_frames_read(folder, &sheet, &n, &h, &w, &e), 0);
    assert_int_equal(n, 1);
    assert_int_equal(h, 2 * STEP - 1);
    assert_int_equal(w, 3 * STEP - 1);
    for (int i = 0; i < N; i++)
        for (int p = 0; p < 48 * 48; p++) {
            int y = p / 48, x = p % 48;
            const uint8_t *shown = sheet + 3 * ((i / 3 * STEP + y) * w + i % 3 * STEP + x);
            assert_memory_equal(shown, frames + 3 * (i * 576 + y / 2 * 24 + x / 2), 3);
        }
    const uint8_t *line = sheet + 3 * 48, *empty = sheet + 3 * ((h - 1) * w + w - 1);
    assert_memory_equal(line, empty, 3);
    free(sheet);
    free(frames);
    unlink(in_folder("0.png"));
}

static uint32_t u32(const uint8_t *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* CRC-32 bit by bit from its definition, so that it shares no code with the writer's. */
static uint32_t crc32_of(const uint8_t *p, size_t n) {
    uint32_t crc = 0xFFFFFFFFu;
    for (size_t i = 0; i < 8 * n; i++) {
        uint32_t bit = (uint32_t)(p[i / 8] >> (i % 8)) & 1u;
        crc = (crc ^ bit) & 1u ? crc >> 1 ^ 0xEDB88320u : crc >> 1;
    }
    return ~crc;
}

static void animation_is_well_formed(void **state) {
    (void)state;
    enum { N = 6, SCALE = 3 };
    Err e = {""};
    uint8_t *frames = game_frames(N);
    char *text;
    size_t size;
    assert_int_equal(picture_apng(in_folder("a.png"), frames, N, 24, 24, SCALE, 30, &e), 0);
    assert_int_equal(read_whole_file(in_folder("a.png"), &text, &size, &e), 0);
    const uint8_t *png = (const uint8_t *)text;
    assert_memory_equal(png, "\x89PNG\r\n\x1a\n", 8);
    char order[256] = "";
    uint32_t sequence = 0;
    for (size_t at = 8; at < size;) {
        assert_true(at + 12 <= size);
        uint32_t length = u32(png + at);
        const uint8_t *type = png + at + 4, *data = png + at + 8;
        assert_true(length <= size - at - 12);
        assert_int_equal(u32(data + length), crc32_of(type, length + 4));
        strncat(order, (const char *)type, 4);
        if (memcmp(type, "IHDR", 4) == 0) assert_int_equal(u32(data), 72);
        if (memcmp(type, "acTL", 4) == 0) assert_int_equal(u32(data), N);
        if (memcmp(type, "fcTL", 4) == 0) {
            assert_int_equal(u32(data), sequence++);
            assert_int_equal(u32(data + 4), 72);
            assert_int_equal(data[20] * 256 + data[21], 1);
            assert_int_equal(data[22] * 256 + data[23], 30);
        }
        if (memcmp(type, "fdAT", 4) == 0) assert_int_equal(u32(data), sequence++);
        at += 12 + length;
    }
    assert_string_equal(order, "IHDRacTLfcTLIDATfcTLfdATfcTLfdATfcTLfdATfcTLfdATfcTLfdATIEND");
    free(text);
    free(frames);
    unlink(in_folder("a.png"));
}

static void missing_folder_is_explained(void **state) {
    (void)state;
    Err e = {""};
    uint8_t *frames = game_frames(1);
    assert_int_equal(picture_sheet("/nonexistent/x.png", frames, 1, 24, 24, 1, 1, &e), -1);
    assert_non_null(strstr(e.text, "/nonexistent/x.png"));
    e.text[0] = 0;
    assert_int_equal(picture_apng("/nonexistent/x.png", frames, 1, 24, 24, 1, 30, &e), -1);
    assert_non_null(strstr(e.text, "/nonexistent/x.png"));
    free(frames);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_bytes_return),
        cmocka_unit_test(background_is_zero_and_returns),
        cmocka_unit_test(sheet_holds_every_pixel),
        cmocka_unit_test(animation_is_well_formed),
        cmocka_unit_test(missing_folder_is_explained),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
