#include "data/picture.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "llmc_like/fsio.h"

/* Static, so that its symbols stay in this file. */
#define STB_IMAGE_WRITE_STATIC
#define STB_IMAGE_WRITE_IMPLEMENTATION
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpedantic"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wmissing-prototypes"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#pragma GCC diagnostic ignored "-Wsign-compare"
#include <stb/stb_image_write.h>
#pragma GCC diagnostic pop

static const uint8_t LINE_GREY = 90;

void pixels_from_bytes(const uint8_t *rgb, int64_t n, const uint8_t background[3], float *x) {
    for (int64_t i = 0; i < n; i++) {
        const uint8_t *p = rgb + 3 * i;
        if (p[0] == background[0] && p[1] == background[1] && p[2] == background[2]) {
            x[3 * i] = x[3 * i + 1] = x[3 * i + 2] = 0.0f;
            continue;
        }
        for (int c = 0; c < 3; c++) x[3 * i + c] = (float)p[c] / 255.0f * 2.0f - 1.0f;
    }
}

static uint8_t to_byte(float v) {
    float unit = fminf(fmaxf(v, -1.0f), 1.0f) * 0.5f + 0.5f; /* fmaxf takes a NaN for the -1 */
    return (uint8_t)(unit * 255.0f + 0.5f);
}

void pixels_to_bytes(const float *x, int64_t n, const uint8_t background[3], uint8_t *rgb) {
    for (int64_t i = 0; i < n; i++) {
        const float *v = x + 3 * i;
        float far = fmaxf(fabsf(v[0]), fmaxf(fabsf(v[1]), fabsf(v[2])));
        bool finite = !isnan(v[0]) && !isnan(v[1]) && !isnan(v[2]);
        for (int c = 0; c < 3; c++)
            rgb[3 * i + c] = finite && far <= PICTURE_NEAR_ZERO ? background[c] : to_byte(v[c]);
    }
}

/* One frame (h, w, 3) into a picture `stride` bytes a row, every pixel scale x scale. */
static void enlarge(const uint8_t *frame, int h, int w, int scale, size_t stride, uint8_t *out) {
    for (int y = 0; y < h; y++) {
        uint8_t *row = out + (size_t)y * (size_t)scale * stride;
        for (int x = 0; x < w * scale; x++)
            memcpy(row + 3 * x, frame + 3 * ((int64_t)y * w + x / scale), 3);
        for (int k = 1; k < scale; k++)
            memcpy(row + (size_t)k * stride, row, 3 * (size_t)(w * scale));
    }
}

static uint8_t *allocate(size_t n, const char *path, Err *e) {
    uint8_t *p = malloc(n);
    if (!p)
        err_set(e,
                "%s: the picture needs %zu MiB, which the system does not give; choose fewer "
                "frames or a smaller scale",
                path, n >> 20);
    return p;
}

static void check_frames(int n, int h, int w, int scale) {
    CHECK(n >= 1 && h >= 1 && w >= 1 && scale >= 1, "%d frames of %d x %d, scale %d", n, h, w,
          scale);
}

/* PNG bytes of a picture, malloc'd. */
static uint8_t *compress(const char *path, const uint8_t *rgb, int h, int w, int *size, Err *e) {
    uint8_t *png = stbi_write_png_to_mem(rgb, 3 * w, w, h, 3, size);
    if (!png)
        err_set(e, "%s: no memory to compress a picture of %d x %d; choose a smaller one", path, w,
                h);
    return png;
}

int picture_png(const char *path, const uint8_t *rgb, int h, int w, Err *e) {
    check_frames(1, h, w, 1);
    int size;
    uint8_t *png = compress(path, rgb, h, w, &size, e);
    if (!png) return -1;
    int status = atomic_save(path, png, (size_t)size, e);
    free(png);
    return status;
}

int picture_sheet(const char *path, const uint8_t *frames, int n, int h, int w, int columns,
                  int scale, Err *e) {
    check_frames(n, h, w, scale);
    CHECK(columns >= 1, "%d columns", columns);
    if (columns > n) columns = n;
    int rows = (n + columns - 1) / columns, step_x = w * scale + 1, step_y = h * scale + 1;
    int width = columns * step_x - 1, height = rows * step_y - 1;
    size_t stride = 3 * (size_t)width;
    uint8_t *sheet = allocate(stride * (size_t)height, path, e);
    if (!sheet) return -1;
    memset(sheet, LINE_GREY, stride * (size_t)height);
    for (int i = 0; i < n; i++)
        enlarge(frames + (int64_t)i * h * w * 3, h, w, scale, stride,
                sheet + (size_t)(i / columns * step_y) * stride + 3 * (i % columns * step_x));
    int status = picture_png(path, sheet, height, width, e);
    free(sheet);
    return status;
}

/* The animated PNG. A PNG is a signature and chunks: length, type, data, CRC-32 of type and data,
 * numbers big-endian. Each frame is compressed as a PNG of its own, and its IDAT moves into the
 * animation: as it is for the first frame, as fdAT with a sequence number for the others. */

static const uint8_t SIGNATURE[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'};

static uint32_t get_u32(const uint8_t *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void put_u32(uint8_t *p, uint32_t v) {
    for (int i = 0; i < 4; i++) p[i] = (uint8_t)(v >> (24 - 8 * i));
}

static void put_u16(uint8_t *p, uint32_t v) {
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

static uint32_t crc_add(uint32_t crc, const uint8_t *p, size_t n) {
    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (0xEDB88320u & (0u - (crc & 1u)));
    }
    return crc;
}

/* head comes before data inside the chunk: fdAT's sequence number. */
static int write_chunk(AtomicFile *f, const char type[4], const uint8_t *head, size_t n_head,
                       const uint8_t *data, size_t n, Err *e) {
    uint8_t start[8], end[4];
    put_u32(start, (uint32_t)(n_head + n));
    memcpy(start + 4, type, 4);
    uint32_t crc = crc_add(crc_add(crc_add(~0u, start + 4, 4), head, n_head), data, n);
    put_u32(end, ~crc);
    if (atomic_write(f, start, 8, e)) return -1;
    if (n_head && atomic_write(f, head, n_head, e)) return -1;
    if (n && atomic_write(f, data, n, e)) return -1;
    return atomic_write(f, end, 4, e);
}

static int write_head(AtomicFile *f, const uint8_t *png, int n_frames, Err *e) {
    uint8_t control[8];
    put_u32(control, (uint32_t)n_frames);
    put_u32(control + 4, 0); /* plays: for ever */
    if (atomic_write(f, SIGNATURE, 8, e)) return -1;
    if (write_chunk(f, "IHDR", NULL, 0, png + 16, 13, e)) return -1;
    return write_chunk(f, "acTL", NULL, 0, control, 8, e);
}

static int write_frame(AtomicFile *f, const uint8_t *png, int size, int fps, uint32_t *sequence,
                       Err *e) {
    uint8_t control[26] = {0}, number[4];
    bool first = *sequence == 0;
    put_u32(control, (*sequence)++);
    memcpy(control + 4, png + 16, 8); /* width and height, from IHDR; offsets stay 0 */
    put_u16(control + 20, 1);         /* shown for 1 / fps s */
    put_u16(control + 22, (uint32_t)fps);
    if (write_chunk(f, "fcTL", NULL, 0, control, 26, e)) return -1;
    for (int at = 8; at + 12 <= size;) {
        uint32_t length = get_u32(png + at);
        const uint8_t *data = png + at + 8;
        if (memcmp(png + at + 4, "IDAT", 4) == 0) {
            if (!first) put_u32(number, (*sequence)++);
            if (write_chunk(f, first ? "IDAT" : "fdAT", number, first ? 0 : 4, data, length, e))
                return -1;
        }
        at += 12 + (int)length;
    }
    return 0;
}

static int write_animation(AtomicFile *f, const char *path, const uint8_t *frames, int n, int h,
                           int w, int scale, int fps, uint8_t *large, Err *e) {
    uint32_t sequence = 0;
    for (int i = 0; i < n; i++) {
        int size;
        enlarge(frames + (int64_t)i * h * w * 3, h, w, scale, 3 * (size_t)(w * scale), large);
        uint8_t *png = compress(path, large, h * scale, w * scale, &size, e);
        if (!png) return -1;
        int status = i == 0 ? write_head(f, png, n, e) : 0;
        if (status == 0) status = write_frame(f, png, size, fps, &sequence, e);
        free(png);
        if (status) return -1;
    }
    return write_chunk(f, "IEND", NULL, 0, NULL, 0, e);
}

int picture_apng(const char *path, const uint8_t *frames, int n, int h, int w, int scale, int fps,
                 Err *e) {
    check_frames(n, h, w, scale);
    CHECK(fps >= 1 && fps <= 1000, "%d frames a second", fps);
    uint8_t *large = allocate(3 * (size_t)(h * scale) * (size_t)(w * scale), path, e);
    if (!large) return -1;
    AtomicFile f;
    int status = atomic_open(&f, path, e);
    if (status == 0) {
        status = write_animation(&f, path, frames, n, h, w, scale, fps, large, e);
        if (status == 0)
            status = atomic_commit(&f, e);
        else
            atomic_abort(&f);
    }
    free(large);
    return status;
}
