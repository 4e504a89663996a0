/* Philox against the vectors that its authors published (Random123, kat_vectors), and the streams
 * made from it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "llmc_like/philox.h"

static void known_answers(void **state) {
    (void)state;
    static const struct {
        uint32_t counter[4], key[2], out[4];
    } vector[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof vector / sizeof *vector; i++) {
        uint32_t out[4];
        philox4x32(vector[i].counter, vector[i].key, out);
        assert_memory_equal(out, vector[i].out, sizeof out);
    }
}

/* The counter's layout is part of the checkpoint format: (index / 4 low, high, step, purpose), key
 * = seed low, high. */
static void stream_layout(void **state) {
    (void)state;
    RngKey k = {0x123456789abcdef0u, 77, RNG_TEST};
    uint64_t index = 0x500000007u;
    const uint32_t counter[4] = {(uint32_t)(index / 4), (uint32_t)(index / 4 >> 32), 77, RNG_TEST};
    const uint32_t key[2] = {0x9abcdef0u, 0x12345678u};
    uint32_t out[4];
    philox4x32(counter, key, out);
    assert_int_equal(rng_bits(k, index), out[3]);
}

enum { N = 1 << 18 };

static void moments(void **state) {
    (void)state;
    float *x = malloc(N * sizeof *x);
    assert_non_null(x);
    RngKey k = {1, 2, RNG_TEST};
    double sum[5] = {0};
    rng_uniform(k, 0, x, N);
    for (int i = 0; i < N; i++) {
        assert_true(x[i] > 0.0f && x[i] < 1.0f);
        for (int p = 1; p <= 2; p++) sum[p] += pow((double)x[i] - 0.5, p);
    }
    /* five standard errors: of the mean sqrt(1/12/N), of the variance sqrt(1/180/N) */
    assert_true(fabs(sum[1] / N) < 5 * sqrt(1.0 / 12 / N));
    assert_true(fabs(sum[2] / N - 1.0 / 12) < 5 * sqrt(1.0 / 180 / N));

    memset(sum, 0, sizeof sum);
    rng_normal(k, 0, x, N);
    double neighbours = 0;
    for (int i = 0; i < N; i++) {
        assert_true(isfinite(x[i]));
        for (int p = 1; p <= 4; p++) sum[p] += pow((double)x[i], p);
        if (i) neighbours += (double)x[i] * (double)x[i - 1];
    }
    assert_true(fabs(sum[1] / N) < 5 * sqrt(1.0 / N));
    assert_true(fabs(sum[2] / N - 1) < 5 * sqrt(2.0 / N));
    assert_true(fabs(sum[3] / N) < 5 * sqrt(15.0 / N));
    assert_true(fabs(sum[4] / N - 3) < 5 * sqrt(96.0 / N));
    assert_true(fabs(neighbours / N) < 5 * sqrt(1.0 / N));
    free(x);
}

/* However a stream is cut into calls, its numbers are the same to the bit. */
static void split_calls(void **state) {
    (void)state;
    enum { COUNT = 103 };
    RngKey k = {42, 7, RNG_NOISE};
    float whole[COUNT], parts[COUNT];
    for (int normal = 0; normal < 2; normal++) {
        void (*draw)(RngKey, uint64_t, float *, int64_t) = normal ? rng_normal : rng_uniform;
        draw(k, 5, whole, COUNT);
        for (int at = 0, n = 1; at < COUNT; at += n, n = n % 7 + 1) {
            if (n > COUNT - at) n = COUNT - at;
            draw(k, 5 + (uint64_t)at, parts + at, n);
        }
        assert_memory_equal(whole, parts, sizeof whole);
    }
    rng_uniform(k, 0, parts, 0); /* no numbers asked for: nothing is touched */
    assert_memory_equal(whole, parts, sizeof whole);
}

static void streams_differ(void **state) {
    (void)state;
    RngKey base = {42, 7, RNG_NOISE};
    RngKey other[] = {{43, 7, RNG_NOISE},
                      {42, 8, RNG_NOISE},
                      {42, 7, RNG_SAMPLE},
                      {42 + (UINT64_C(1) << 32), 7, RNG_NOISE}};
    for (size_t o = 0; o < sizeof other / sizeof *other; o++) {
        int same = 0;
        for (uint64_t i = 0; i < 256; i++) same += rng_bits(base, i) == rng_bits(other[o], i);
        assert_int_equal(same, 0);
    }
}

static void sequential(void **state) {
    (void)state;
    RngStream s = {{9, 9, RNG_GAME}, 0};
    float first[8];
    rng_uniform(s.key, 0, first, 8);
    for (int i = 0; i < 8; i++) assert_true(rng_next_uniform(&s) == first[i]);
    int count[6] = {0};
    for (int i = 0; i < 6000; i++) {
        uint32_t v = rng_next_below(&s, 6);
        assert_true(v < 6);
        count[v]++;
    }
    for (int i = 0; i < 6; i++) assert_in_range(count[i], 1000 - 145, 1000 + 145); /* 5 sigma */
    assert_true(isfinite(rng_next_normal(&s)));
    assert_int_equal(s.next, 8 + 6000 + 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_answers),  cmocka_unit_test(stream_layout),
        cmocka_unit_test(moments),        cmocka_unit_test(split_calls),
        cmocka_unit_test(streams_differ), cmocka_unit_test(sequential),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
