/* The loader: order, buffers left alone while in use, errors where they belong, and its end at any
 * moment. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "llmc_like/loader.h"

enum { WORDS = 257 };

typedef struct Source {
    atomic_ullong calls;
    uint64_t bad;   /* this batch fails */
    bool waits;     /* from batch 2 on, fn waits until the loader stops */
    Loader *loader; /* where fn asks whether to stop */
    atomic_bool entered;
} Source;

static int fill(void *user, uint64_t index, void *buffer, Err *e) {
    Source *s = user;
    atomic_fetch_add(&s->calls, 1);
    if (index == s->bad) return err_set(e, "batch %llu is bad", (unsigned long long)index);
    uint64_t *x = buffer;
    for (int i = 0; i < WORDS; i++) x[i] = index * 1000 + (uint64_t)i;
    if (s->waits && index >= 2) {
        s->entered = true;
        while (!loader_stopping(s->loader)) sched_yield();
        return -1;
    }
    return 0;
}

static void assert_batch(const void *batch, uint64_t index) {
    const uint64_t *x = batch;
    assert_non_null(batch);
    for (int i = 0; i < WORDS; i++) assert_true(x[i] == index * 1000 + (uint64_t)i);
}

static void in_order(void **state) {
    (void)state;
    for (int n_buffers = 0; n_buffers <= 5; n_buffers++) {
        if (n_buffers == 1) continue;
        Loader l;
        Source s = {.bad = UINT64_MAX};
        Err e = {""};
        double waited = -1;
        uint64_t index = 0;
        assert_int_equal(loader_init(&l, fill, NULL, &s, WORDS * 8, n_buffers, 41, &e), 0);
        for (uint64_t i = 41; i < 241; i++) {
            const void *batch = loader_next(&l, &index, &waited, &e);
            assert_int_equal(index, i);
            assert_int_equal((uintptr_t)batch % 64, 0);
            assert_batch(batch, i);
            assert_true(waited >= 0);
            for (int k = 0; k < (int)(i % 5); k++) sched_yield();
            assert_batch(batch, i); /* untouched while it is ours */
        }
        assert_batch(loader_next(&l, NULL, NULL, NULL), 241);
        loader_stop(&l);
        loader_stop(&l);
        uint64_t made = s.calls, most = 201 + (uint64_t)(n_buffers ? n_buffers : LOADER_BUFFERS);
        assert_in_range(made, 201, most); /* runs ahead by the buffers there are, no further */
    }
}

/* Waits until the thread has made all it can. */
static void wait_for_calls(Source *s, unsigned long long n) {
    for (int k = 0; k < 20000 && s->calls < n; k++) usleep(500);
    assert_int_equal(s->calls, n);
}

static void runs_ahead(void **state) {
    (void)state;
    Loader l;
    Source s = {.bad = UINT64_MAX};
    Err e = {""};
    assert_int_equal(loader_init(&l, fill, NULL, &s, WORDS * 8, 3, 0, &e), 0);
    wait_for_calls(&s, 3); /* before anybody asked */
    const void *first = loader_next(&l, NULL, NULL, &e);
    usleep(5000);
    assert_int_equal(s.calls, 3); /* all three are in use: one here, two waiting */
    assert_batch(first, 0);
    double waited = -1;
    assert_batch(loader_next(&l, NULL, &waited, &e), 1);
    assert_true(waited == 0.0);
    wait_for_calls(&s, 4);
    loader_stop(&l);
}

static void error_in_its_place(void **state) {
    (void)state;
    for (uint64_t bad = 0; bad < 6; bad++) {
        Loader l;
        Source s = {.bad = bad};
        Err e = {""};
        uint64_t index = 99;
        assert_int_equal(loader_init(&l, fill, NULL, &s, WORDS * 8, 3, 0, &e), 0);
        for (uint64_t i = 0; i < bad; i++) assert_batch(loader_next(&l, NULL, NULL, &e), i);
        for (int again = 0; again < 3; again++) {
            e.text[0] = 0;
            assert_null(loader_next(&l, &index, NULL, &e));
            assert_int_equal(index, bad);
            assert_non_null(strstr(e.text, "is bad"));
        }
        assert_null(loader_next(&l, NULL, NULL, NULL));
        loader_stop(&l);
        assert_int_equal(s.calls, bad + 1); /* it was not tried again */
    }
}

/* Stops while fn runs, while the thread waits for a buffer, and before anything was asked for. */
static void stops_at_any_moment(void **state) {
    (void)state;
    Err e = {""};
    Loader l;
    Source slow = {.bad = UINT64_MAX, .waits = true, .loader = &l};
    assert_int_equal(loader_init(&l, fill, NULL, &slow, WORDS * 8, 3, 0, &e), 0);
    assert_batch(loader_next(&l, NULL, NULL, &e), 0);
    for (int k = 0; k < 20000 && !slow.entered; k++) usleep(500);
    assert_true(slow.entered);
    loader_stop(&l);
    assert_int_equal(slow.calls, 3);

    Source s = {.bad = UINT64_MAX};
    assert_int_equal(loader_init(&l, fill, NULL, &s, WORDS * 8, 2, 0, &e), 0);
    wait_for_calls(&s, 2);
    loader_stop(&l);
    for (int k = 0; k < 200; k++) {
        Source quick = {.bad = UINT64_MAX};
        assert_int_equal(loader_init(&l, fill, NULL, &quick, WORDS * 8, 3, 0, &e), 0);
        if (k % 2) assert_batch(loader_next(&l, NULL, NULL, &e), 0);
        loader_stop(&l);
    }
    Loader zero;
    memset(&zero, 0, sizeof zero);
    loader_stop(&zero);
}

static void no_memory(void **state) {
    (void)state;
    Loader l;
    Err e = {""};
    Source s = {.bad = 0};
    assert_int_equal(loader_init(&l, fill, NULL, &s, SIZE_MAX / 2, 3, 0, &e), -1);
    assert_non_null(strstr(e.text, "choose a smaller batch"));
    loader_stop(&l);
}

/* A batch that owns memory of its own, which grows with the batch's number. */
typedef struct Growing {
    uint64_t *word, n;
} Growing;

static int grow(void *user, uint64_t index, void *buffer, Err *e) {
    Growing *g = buffer;
    (void)user;
    if (g->n != (index < 3 ? 0 : index - 2)) /* zeroed at first, then what it was */
        return err_set(e, "batch %d finds %d words", (int)index, (int)g->n);
    g->n = index + 1;
    g->word = realloc(g->word, g->n * sizeof *g->word);
    for (uint64_t i = 0; i < g->n; i++) g->word[i] = index;
    return 0;
}

static int released; /* a hook gets the buffer alone */

static void release(void *buffer) {
    free(((Growing *)buffer)->word);
    released++;
}

static void buffers_own_what_they_grow(void **state) {
    (void)state;
    Loader l;
    Err e = {""};
    released = 0;
    assert_int_equal(loader_init(&l, grow, release, NULL, sizeof(Growing), 3, 0, &e), 0);
    for (uint64_t i = 0; i < 20; i++) {
        const Growing *g = loader_next(&l, NULL, NULL, &e);
        assert_non_null(g);
        assert_int_equal(g->n, i + 1);
        assert_int_equal(g->word[i], i);
    }
    assert_int_equal(released, 0);
    loader_stop(&l);
    loader_stop(&l);
    assert_int_equal(released, 3);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(in_order),           cmocka_unit_test(runs_ahead),
        cmocka_unit_test(error_in_its_place), cmocka_unit_test(stops_at_any_moment),
        cmocka_unit_test(no_memory),          cmocka_unit_test(buffers_own_what_they_grow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
