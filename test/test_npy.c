/* .npy: every layout of numbers, and every kind of bad file explained. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <limits.h>

#include "llmc_like/npy.h"
#include "llmc_like/philox.h"
#include "test/scratch.h"

/* Writes version, header text and data as a file of our own making. */
static void write_raw(const char *path, int version, const char *header, const void *data,
                      size_t bytes) {
    unsigned char file[1024] = "\x93NUMPY";
    size_t n = strlen(header), lead = version == 1 ? 10 : 12;
    assert_true(lead + n + bytes <= sizeof file);
    file[6] = (unsigned char)version;
    for (size_t i = 0; i < lead - 8; i++) file[8 + i] = (unsigned char)(n >> 8 * i);
    memcpy(file + lead, header, n);
    memcpy(file + lead + n, data, bytes);
    assert_int_equal(scratch_write(path, file, lead + n + bytes), 0);
}

/* Opening PATH must fail with a sentence that names the file and holds `part`. */
static void assert_refused(const char *path, const char *part) {
    NpyArray a;
    Err e = {""};
    assert_int_equal(npy_open(path, &a, &e), -1);
    if (!strstr(e.text, part) || !strstr(e.text, path))
        fail_msg("\"%s\" should say \"%s\" of %s", e.text, part, path);
}

static void round_trip(void **state) {
    char path[SCRATCH_PATH], text[NPY_SHAPE_TEXT];
    scratch_path(state, "a.npy", path);
    unsigned char bytes[48];
    for (int i = 0; i < 48; i++) bytes[i] = (unsigned char)(i * 37);
    for (int t = 0; t < NPY_COUNT; t++) {
        Err e = {""};
        NpyArray a;
        const int64_t shape[] = {2, 3};
        assert_int_equal(npy_write(path, (NpyType)t, 2, shape, bytes, &e), 0);
        assert_int_equal(npy_open(path, &a, &e), 0);
        assert_int_equal(a.dtype, t);
        assert_int_equal(a.ndim, 2);
        assert_int_equal(a.numel, 6);
        assert_string_equal(npy_shape_text(&a, text), "(2, 3)");
        assert_memory_equal(a.data, bytes, 6 * (size_t)npy_size((NpyType)t));
        assert_int_equal((uintptr_t)a.data % 64, 0);
        npy_close(&a);
        npy_close(&a);
    }
}

static void integers(void **state) {
    char path[SCRATCH_PATH];
    scratch_path(state, "i.npy", path);
    static const struct {
        NpyType t;
        unsigned char bytes[16];
        int64_t a, b;
    } row[] = {
        {NPY_U1, {255, 2}, 255, 2},
        {NPY_I1, {255, 2}, -1, 2},
        {NPY_B1, {1, 0}, 1, 0},
        {NPY_U2, {0xff, 0xff, 1, 2}, 65535, 513},
        {NPY_I2, {0xfe, 0xff, 1, 2}, -2, 513},
        {NPY_U4, {0xff, 0xff, 0xff, 0xff, 7}, 4294967295, 7},
        {NPY_I4, {0xff, 0xff, 0xff, 0xff, 7}, -1, 7},
        {NPY_I8, {0, 0, 0, 0, 0, 0, 0, 0x80, 9}, INT64_MIN, 9},
        {NPY_U8, {0, 0, 0, 0, 0, 0, 0, 0x80, 9}, INT64_MAX, 9},
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        NpyArray a;
        Err e = {""};
        const int64_t two = 2;
        assert_int_equal(npy_write(path, row[i].t, 1, &two, row[i].bytes, &e), 0);
        assert_int_equal(npy_open(path, &a, &e), 0);
        assert_true(npy_is_int(a.dtype));
        assert_true(npy_int(&a, 0) == row[i].a);
        assert_true(npy_int(&a, 1) == row[i].b);
        assert_true(npy_number(&a, 1) == (double)row[i].b);
        npy_close(&a);
    }
    NpyArray a;
    Err e = {""};
    const float f = -1.5f;
    const double d = 1e300;
    assert_int_equal(npy_write(path, NPY_F4, 0, NULL, &f, &e), 0);
    assert_int_equal(npy_open(path, &a, &e), 0);
    assert_false(npy_is_int(a.dtype));
    assert_int_equal(a.numel, 1);
    assert_true(npy_number(&a, 0) == -1.5);
    npy_close(&a);
    assert_int_equal(npy_write(path, NPY_F8, 0, NULL, &d, &e), 0);
    assert_int_equal(npy_open(path, &a, &e), 0);
    assert_true(npy_number(&a, 0) == 1e300);
    npy_close(&a);
}

/* What other writers make: versions 2 and 3, other spacing, bytes behind, numbers that lie askew.
 */
static void foreign_files(void **state) {
    char path[SCRATCH_PATH];
    scratch_path(state, "f.npy", path);
    const int32_t x[] = {1, -2, 3, -4, 5, 6};
    static const char *const header[] = {
        "{'descr': '<i4', 'fortran_order': False, 'shape': (6,), }\n",
        "{\"shape\":(3L,2L),\"fortran_order\":False,\"descr\":\"<i4\"}",
        "  { 'fortran_order' : False ,\t'shape' : ( 2 , 3 ) , 'descr' : '<i4' }  \n",
    };
    for (int version = 1; version <= 3; version++)
        for (size_t h = 0; h < sizeof header / sizeof *header; h++) {
            NpyArray a;
            Err e = {""};
            write_raw(path, version, header[h], x, sizeof x);
            if (npy_open(path, &a, &e)) fail_msg("%s", e.text);
            assert_int_equal(a.numel, 6);
            for (int i = 0; i < 6; i++) assert_int_equal(npy_int(&a, i), x[i]);
            assert_int_equal((uintptr_t)a.data % 4, 0);
            npy_close(&a);
        }
    NpyArray a;
    Err e = {""};
    write_raw(path, 1, "{'descr': '>u1', 'fortran_order': False, 'shape': (0, 5)}", "tail", 4);
    assert_int_equal(npy_open(path, &a, &e),
                     0); /* one byte has no order; and an array of nothing */
    assert_int_equal(a.numel, 0);
    npy_close(&a);
}

static void bad_headers(void **state) {
    char path[SCRATCH_PATH];
    scratch_path(state, "bad.npy", path);
    static const struct {
        const char *header, *says;
    } row[] = {
        {"{'descr': '<f4', 'fortran_order': True, 'shape': (2, 2)}", "Fortran"},
        {"{'descr': '>f4', 'fortran_order': False, 'shape': (2,)}", "big-endian"},
        {"{'descr': '|O', 'fortran_order': False, 'shape': (2,)}", "Python objects"},
        {"{'descr': '<f2', 'fortran_order': False, 'shape': (2,)}", "dtype '<f2'"},
        {"{'descr': '<U8', 'fortran_order': False, 'shape': (2,)}", "astype"},
        {"{'descr': '', 'fortran_order': False, 'shape': (2,)}", "dtype ''"},
        {"{'descr': [('x', '<f4')], 'fortran_order': False, 'shape': (2,)}", "records"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (99,)}", "truncated: (99,) of float32"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296)}",
         "truncated"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}", "damaged"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", "damaged"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1,1,1)}", "dimensions"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1 2)}", "damaged"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': 2}", "tuple"},
        {"{'descr': '<f4', 'fortran_order': False}", "lacks 'shape'"},
        {"{'fortran_order': False, 'shape': (1,)}", "lacks 'descr'"},
        {"{'descr': '<f4', 'shape': (1,)}", "lacks 'fortran_order'"},
        {"{'descr': '<f4', 'fortran_order': Maybe, 'shape': (1,)}", "damaged"},
        {"{'descr': '<f4', 'more': 1}", "unknown key 'more'"},
        {"{'descr': '<f4' 'x'}", "damaged"},
        {"{'descr': '<f4", "damaged"},
        {"[1, 2]", "no Python dict"},
        {"", "no Python dict"},
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        write_raw(path, 1, row[i].header, "0123456789abcdef", 16);
        assert_refused(path, row[i].says);
    }
}

static void bad_files(void **state) {
    char path[SCRATCH_PATH];
    assert_refused(scratch_path(state, "none.npy", path), "No such file");
    scratch_path(state, "bad.npy", path);
    assert_int_equal(scratch_write(path, "", 0), 0);
    assert_refused(path, "no .npy file");
    assert_int_equal(scratch_write(path, "PK\3\4 this is an .npz", 20), 0);
    assert_refused(path, "no .npy file");
    write_raw(path, 9, "{}", "", 0);
    assert_refused(path, "version 9");
    assert_int_equal(scratch_write(path, "\x93NUMPY\x02\x00\xff\xff", 10), 0);
    assert_refused(path, "truncated in its header");
    assert_int_equal(scratch_write(path, "\x93NUMPY\x03\x00\xff\xff\xff\xff{", 13), 0);
    assert_refused(path, "truncated in its header");

    NpyArray a;
    Err e = {""};
    const int64_t n = 4;
    assert_int_equal(npy_open(*state, &a, &e), -1);
    assert_int_equal(
        npy_write(scratch_path(state, "no/where.npy", path), NPY_F4, 1, &n, "0123456789abcdef", &e),
        -1);
    assert_non_null(strstr(e.text, "make the folder first"));
}

/* Files cut anywhere or spoiled anywhere open or do not, but what opens can be read in full. */
static void fuzz(void **state) {
    char path[SCRATCH_PATH];
    unsigned char good[1024], bad[1024];
    scratch_path(state, "fuzz.npy", path);
    Err e = {""};
    const int64_t shape[] = {3, 5};
    int16_t x[15] = {1, 2, 3};
    assert_int_equal(npy_write(path, NPY_I2, 2, shape, x, &e), 0);
    char *text;
    size_t size;
    assert_int_equal(read_whole_file(path, &text, &size, &e), 0);
    memcpy(good, text, size);
    free(text);
    RngStream rng = {{3, 0, RNG_TEST}, 0};
    int opened = 0;
    for (int round = 0; round < 1500; round++) {
        memcpy(bad, good, size);
        size_t n = size;
        if (round < (int)size)
            n = (size_t)round; /* every truncation */
        else
            for (uint32_t k = 0; k <= rng_next_below(&rng, 3); k++)
                bad[rng_next_below(&rng, 80)] = (unsigned char)rng_next_below(&rng, 256);
        assert_int_equal(scratch_write(path, bad, n), 0);
        NpyArray a;
        if (npy_open(path, &a, &e)) {
            assert_true(round >= (int)size || strstr(e.text, path));
            continue;
        }
        assert_true(n == size);
        double sum = 0;
        for (int64_t i = 0; i < a.numel; i++) sum += npy_number(&a, i);
        opened += sum == sum;
        npy_close(&a);
    }
    assert_true(opened > 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip),  cmocka_unit_test(integers),  cmocka_unit_test(foreign_files),
        cmocka_unit_test(bad_headers), cmocka_unit_test(bad_files), cmocka_unit_test(fuzz),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
