/* safetensors: written and read back, other writers' files, and every kind of damage explained. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <signal.h>
#include <sys/resource.h>

#include "llmc_like/philox.h"
#include "llmc_like/safetensors.h"
#include "test/scratch.h"

/* A file from a header's text and `bytes` bytes of data, each byte its own number. */
static void write_raw(const char *path, const char *header, size_t bytes) {
    unsigned char file[2048] = {0};
    size_t n = strlen(header);
    assert_true(8 + n + bytes <= sizeof file);
    for (size_t i = 0; i < 8; i++) file[i] = (unsigned char)((uint64_t)n >> 8 * i);
    memcpy(file + 8, header, n);
    for (size_t i = 0; i < bytes; i++) file[8 + n + i] = (unsigned char)i;
    assert_int_equal(scratch_write(path, file, 8 + n + bytes), 0);
}

static void assert_refused(const char *path, const char *part) {
    StFile f;
    Err e = {""};
    assert_int_equal(st_open(path, &f, &e), -1);
    if (!strstr(e.text, part) || !strstr(e.text, path))
        fail_msg("\"%s\" should say \"%s\" of %s", e.text, part, path);
}

static void write_example(const char *path) {
    static const uint8_t u8[3] = {1, 2, 3};
    static const float f32[6] = {0, 1, 2, 3, 4, 5};
    static const double f64[1] = {0.1};
    static const int64_t i64[2] = {-1, INT64_MAX};
    static const int32_t i32[2] = {7, -7};
    static const uint16_t bf16[3] = {0x3f80, 0, 0xbf80};
    const int64_t two_three[] = {2, 3}, one = 1, two = 2, three = 3, none[] = {0, 4};
    StWriter w;
    Err e = {""};
    st_writer_init(&w);
    st_writer_add(&w, "bytes", DT_U8, 1, &three, u8);
    st_writer_add(&w, "param.weight", DT_F32, 2, two_three, f32);
    st_writer_add(&w, "loss", DT_F64, 0, &one, f64);
    st_writer_add(&w, "empty", DT_F32, 2, none, NULL);
    st_writer_add(&w, "long", DT_I64, 1, &two, i64);
    st_writer_add(&w, "int", DT_I32, 1, &two, i32);
    st_writer_add(&w, "half \"quoted\" \xc3\xa9", DT_BF16, 1, &three, bf16);
    st_writer_meta(&w, "step", "first");
    st_writer_meta(&w, "config", "{\"d\": 1,\n\"n\": \"x\"}");
    st_writer_meta(&w, "step", "12");
    if (st_writer_save(&w, path, &e)) fail_msg("%s", e.text);
    st_writer_free(&w);
}

static void round_trip(void **state) {
    char path[SCRATCH_PATH], text[ST_SHAPE_TEXT];
    Err e = {""};
    StFile f;
    write_example(scratch_path(state, "a.safetensors", path));
    if (st_open(path, &f, &e)) fail_msg("%s", e.text);
    static const char *const name[] = {
        "bytes", "param.weight", "loss", "empty", "long", "int", "half \"quoted\" \xc3\xa9"};
    assert_int_equal(f.n, 7);
    for (int i = 0; i < f.n; i++) {
        assert_string_equal(f.entry[i].name, name[i]); /* in the order in which they were added */
        assert_ptr_equal(st_find(&f, name[i]), &f.entry[i]);
        assert_int_equal((uintptr_t)f.entry[i].data % dtype_size(f.entry[i].dtype), 0);
        assert_null(f.copy[i]);
    }
    assert_null(st_find(&f, "byte"));
    assert_null(st_find(&f, "__metadata__"));
    const StEntry *t = st_find(&f, "param.weight");
    assert_int_equal(t->dtype, DT_F32);
    assert_int_equal(t->numel, 6);
    assert_int_equal(t->bytes, 24);
    assert_string_equal(st_shape_text(t, text), "(2, 3)");
    for (int i = 0; i < 6; i++) assert_true(((const float *)t->data)[i] == (float)i);
    t = st_find(&f, "loss");
    assert_int_equal(t->ndim, 0);
    assert_true(*(const double *)t->data == 0.1);
    assert_true(((const int64_t *)st_find(&f, "long")->data)[1] == INT64_MAX);
    assert_int_equal(((const int32_t *)st_find(&f, "int")->data)[1], -7);
    assert_int_equal(((const uint8_t *)st_find(&f, "bytes")->data)[2], 3);
    assert_int_equal(((const uint16_t *)f.entry[6].data)[2], 0xbf80);
    assert_int_equal(st_find(&f, "empty")->bytes, 0);

    assert_string_equal(st_meta(&f, "step"), "12");
    assert_string_equal(st_meta(&f, "config"), "{\"d\": 1,\n\"n\": \"x\"}");
    assert_null(st_meta(&f, "Step"));
    const char *value;
    assert_string_equal(st_meta_at(&f, 0, &value), "config");
    assert_string_equal(st_meta_at(&f, 1, &value), "step");
    assert_string_equal(value, "12");
    assert_null(st_meta_at(&f, 2, NULL));
    st_close(&f);
    st_close(&f);
}

/* Nothing at all is a file too; and one without metadata. */
static void smallest(void **state) {
    char path[SCRATCH_PATH];
    Err e = {""};
    StFile f;
    StWriter w;
    scratch_path(state, "small.safetensors", path);
    st_writer_init(&w);
    assert_int_equal(st_writer_save(&w, path, &e), 0);
    st_writer_free(&w);
    assert_int_equal(st_open(path, &f, &e), 0);
    assert_int_equal(f.n, 0);
    assert_null(st_find(&f, "x"));
    assert_null(st_meta(&f, "x"));
    assert_null(st_meta_at(&f, 0, NULL));
    st_close(&f);
}

/* Headers of other lengths put numbers askew; and keys of entries may come in any order. */
static void foreign_file(void **state) {
    char path[SCRATCH_PATH], header[256];
    Err e = {""};
    int copies = 0;
    scratch_path(state, "foreign.safetensors", path);
    for (int spaces = 0; spaces < 4; spaces++) {
        StFile f;
        snprintf(header, sizeof header,
                 "{\"b\":{\"shape\":[2],\"data_offsets\":[1,9],\"dtype\":\"I32\"},"
                 "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}%*s",
                 spaces, "");
        write_raw(path, header, 9);
        if (st_open(path, &f, &e)) fail_msg("%s", e.text);
        const StEntry *t = st_find(&f, "b");
        assert_int_equal((uintptr_t)t->data % 4, 0);
        assert_int_equal(((const int32_t *)t->data)[0], 0x04030201);
        assert_int_equal(((const int32_t *)t->data)[1], 0x08070605);
        copies += f.copy[0] != NULL;
        st_close(&f);
    }
    assert_int_equal(copies, 3);
}

/* Our own headers are padded, whatever their length, so that mapped numbers are aligned in place.
 */
static void alignment(void **state) {
    char path[SCRATCH_PATH];
    Err e = {""};
    scratch_path(state, "aligned.safetensors", path);
    for (size_t length = 1; length <= 8; length++) {
        char name[16] = "";
        const double x = 2.5;
        const uint8_t y = 7;
        const int64_t one = 1;
        StFile f;
        StWriter w;
        memset(name, 'n', length);
        st_writer_init(&w);
        st_writer_add(&w, "byte", DT_U8, 1, &one, &y);
        st_writer_add(&w, name, DT_F64, 1, &one, &x);
        assert_int_equal(st_writer_save(&w, path, &e), 0);
        st_writer_free(&w);
        assert_int_equal(st_open(path, &f, &e), 0);
        assert_string_equal(f.entry[0].name, "byte");
        assert_null(f.copy[1]);
        assert_int_equal((uintptr_t)f.entry[1].data % 8, 0);
        assert_true(*(const double *)f.entry[1].data == 2.5);
        st_close(&f);
    }
}

#define U8_AT(name, n, begin, end) \
    "\"" name "\":{\"dtype\":\"U8\",\"shape\":[" #n "],\"data_offsets\":[" #begin "," #end "]}"

static void bad_headers(void **state) {
    char path[SCRATCH_PATH];
    scratch_path(state, "bad.safetensors", path);
    static const struct {
        const char *header, *says;
    } row[] = {
        {"{" U8_AT("a", 8, 0, 8) "," U8_AT("b", 16, 0, 16) "}", "overlap"},
        {"{" U8_AT("a", 8, 0, 8) "," U8_AT("b", 9, 7, 16) "}", "overlap"},
        {"{" U8_AT("a", 16, 0, 16) "," U8_AT("b", 0, 5, 5) "}", "overlap"},
        {"{" U8_AT("a", 8, 0, 8) "," U8_AT("b", 7, 9, 16) "}", "leave a hole"},
        {"{" U8_AT("a", 12, 4, 16) "}", "leave a hole"},
        {"{" U8_AT("a", 12, 0, 12) "}", "4 bytes after the last tensor"},
        {"{}", "16 bytes after the last tensor"},
        {"{" U8_AT("a", 8, 0, 8) "," U8_AT("a", 8, 8, 16) "}", "tensor 'a' is there twice"},
        {"{" U8_AT("a", 17, 0, 17) "}", "tensor 'a': its data end at byte 17"},
        {"{" U8_AT("a", 15, 0, 16) "}", "shape (15,) of U8 does not fit its 16 bytes"},
        {"{" U8_AT("a", 16, 16, 0) "}", "data_offsets"},
        {"{" U8_AT("a", 16, -1, 15) "}", "data_offsets"},
        {"{" U8_AT("a", 16, 0.5, 16) "}", "data_offsets"},
        {"{" U8_AT("a", -16, 0, 16) "}", "no whole number"},
        {"{" U8_AT("a", 1e99, 0, 16) "}", "no whole number"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,16]}}",
         "too large"},
        {"{\"a\":{\"dtype\":\"F64\",\"shape\":[2305843009213693952],\"data_offsets\":[0,16]}}",
         "no whole number"},
        {"{\"a\":{\"dtype\":\"F64\",\"shape\":[9007199254740992,256],\"data_offsets\":[0,0]}}",
         "does not fit"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,16],\"data_offsets\":[0,16]}}",
         "dimensions"},
        {"{\"a\":{\"dtype\":\"F8_E4M3\",\"shape\":[16],\"data_offsets\":[0,16]}}",
         "dtype 'F8_E4M3'"},
        {"{\"a\":{\"dtype\":3,\"shape\":[16],\"data_offsets\":[0,16]}}", "no dtype"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":16,\"data_offsets\":[0,16]}}", "no shape"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[16]}}", "data_offsets"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[16],\"data_offsets\":[0]}}", "data_offsets"},
        {"{\"a\":[16]}", "no JSON object"},
        {"{\"__metadata__\":7}", "metadata is no JSON object"},
        {"{\"__metadata__\":{\"step\":7}}", "metadata 'step' is no text"},
        {"{\"a\":", "no JSON object: it is damaged"},
        {"{} x", "no JSON object: it is damaged"},
        {"[1,2,3]", "no safetensors file"},
        {"", "no safetensors file"},
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        write_raw(path, row[i].header, 16);
        assert_refused(path, row[i].says);
    }
}

static void bad_files(void **state) {
    char path[SCRATCH_PATH];
    assert_refused(scratch_path(state, "none.safetensors", path), "No such file");
    scratch_path(state, "bad.safetensors", path);
    assert_int_equal(scratch_write(path, "", 0), 0);
    assert_refused(path, "no safetensors file");
    assert_int_equal(scratch_write(path, "\xff\xff\xff\xff\xff\xff\xff\xff{}", 10), 0);
    assert_refused(path, "truncated");
    /* one byte more of header than there is: the bytes of the length itself do not count */
    assert_int_equal(scratch_write(path, "\x05\0\0\0\0\0\0\0{  }", 12), 0);
    assert_refused(path, "header's length is 5 bytes, but the file has 12");
    assert_int_equal(scratch_write(path, "\x05\0\0\0\0\0\0\0{\"a\0}", 13), 0);
    assert_refused(path, "zero byte");

    /* JSON nested beyond reason, and the longest possible nonsense in small */
    char *deep = malloc(100008);
    assert_non_null(deep);
    memset(deep, '{', 100008);
    const uint64_t n = 100000;
    memcpy(deep, &n, 8);
    assert_int_equal(scratch_write(path, deep, 100008), 0);
    assert_refused(path, "damaged");
    memset(deep + 9, '[', 99999);
    assert_int_equal(scratch_write(path, deep, 100008), 0);
    assert_refused(path, "damaged");
    free(deep);
}

/* Cut or spoiled anywhere: refused with a sentence, or opened and then readable to its last byte.
 */
static void fuzz(void **state) {
    char path[SCRATCH_PATH];
    Err e = {""};
    char *good;
    size_t size;
    write_example(scratch_path(state, "fuzz.safetensors", path));
    assert_int_equal(read_whole_file(path, &good, &size, &e), 0);
    char *bad = malloc(size);
    assert_non_null(bad);
    RngStream rng = {{4, 0, RNG_TEST}, 0};
    int opened = 0;
    for (int round = 0; round < 4000; round++) {
        memcpy(bad, good, size);
        size_t n = size;
        if (round < (int)size)
            n = (size_t)round;
        else
            for (uint32_t k = 0; k <= rng_next_below(&rng, 3); k++)
                bad[rng_next_below(&rng, (uint32_t)size)] =
                    (char)(rng_next_below(&rng, 2)
                               ? rng_next_below(&rng, 256)
                               : (uint32_t)good[rng_next_below(&rng, (uint32_t)size)]);
        assert_int_equal(scratch_write(path, bad, n), 0);
        StFile f;
        e.text[0] = 0;
        if (st_open(path, &f, &e)) {
            assert_non_null(strstr(e.text, path));
            continue;
        }
        assert_true(n == size);
        opened++;
        unsigned sum = 0;
        for (int i = 0; i < f.n; i++) {
            assert_ptr_equal(st_find(&f, f.entry[i].name), &f.entry[i]);
            for (size_t b = 0; b < f.entry[i].bytes; b++)
                sum += ((const unsigned char *)f.entry[i].data)[b];
        }
        assert_true(sum < 1u << 30);
        st_close(&f);
    }
    assert_true(opened > 0);
    free(bad);
    free(good);
}

static void save_fails(void **state) {
    char path[SCRATCH_PATH];
    Err e = {""};
    write_example(scratch_path(state, "keep.safetensors", path));
    static float big[4096];
    const int64_t n = 4096;
    StWriter w;
    st_writer_init(&w);
    st_writer_add(&w, "big", DT_F32, 1, &n, big);
    struct rlimit was, small;
    getrlimit(RLIMIT_FSIZE, &was);
    small = was;
    small.rlim_cur = 4096;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    int status = st_writer_save(&w, path, &e);
    setrlimit(RLIMIT_FSIZE, &was);
    signal(SIGXFSZ, SIG_DFL);
    assert_int_equal(status, -1);
    assert_non_null(strstr(e.text, "untouched"));
    StFile f;
    assert_int_equal(st_open(path, &f, &e), 0); /* the old one, whole */
    assert_int_equal(f.n, 7);
    st_close(&f);
    assert_int_equal(st_writer_save(&w, path, &e), 0); /* and with room it goes */
    st_writer_free(&w);
    assert_int_equal(st_open(path, &f, &e), 0);
    assert_int_equal(f.entry[0].numel, 4096);
    st_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip), cmocka_unit_test(smallest),    cmocka_unit_test(foreign_file),
        cmocka_unit_test(alignment),  cmocka_unit_test(bad_headers), cmocka_unit_test(bad_files),
        cmocka_unit_test(fuzz),       cmocka_unit_test(save_fails),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
