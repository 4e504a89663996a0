/* Grouping and features against a naive reference in float64, and against the originals' own
 * batches where their fixtures are there (GOLDEN, or ../shared/golden). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "data/icecube_batch.h"
#include "llmc_like/safetensors.h"

enum { MANY = 178000, EVENTS = 12 };

static float geometry[3 * ICE_SENSORS];

static int make_geometry(void **state) {
    (void)state;
    ice_geometry_builtin(geometry);
    return 0;
}

/* n pulses on `sensors` sensors; times on a coarse grid, so that many are equal. */
static IceEvent random_event(uint32_t number, int n, int sensors) {
    RngStream rng = {{5, number, RNG_TEST}, 0};
    IceEvent e = {.n = n, .track = number % 2};
    ice_event_reserve(&e, n);
    for (int i = 0; i < n; i++) {
        e.sensor[i] = (int16_t)(5159 - rng_next_below(&rng, (uint32_t)sensors) * (5160 / sensors));
        e.time[i] = 6000.0f + 100.0f * (float)rng_next_below(&rng, 150);
        e.charge[i] = i % 7 ? 3.0f * rng_next_uniform(&rng) : 0.0f;
        e.auxiliary[i] = (uint8_t)rng_next_below(&rng, 2);
    }
    for (int c = 0; c < 3; c++) e.direction[c] = rng_next_uniform(&rng);
    return e;
}

/* The reference: all pulses sorted by event, sensor and place by the C library. */

typedef struct Row {
    int event, sensor, place;
} Row;

static int by_place(const void *a, const void *b) {
    const Row *x = a, *y = b;
    if (x->event != y->event) return x->event - y->event;
    if (x->sensor != y->sensor) return x->sensor - y->sensor;
    return x->place - y->place;
}

typedef struct Dom {
    int event, sensor, first, n; /* rows first .. first + n - 1 */
    float time;
} Dom;

static bool is_earlier(const Dom *a, const Dom *b) {
    return a->time < b->time || (a->time == b->time && a->sensor < b->sensor);
}

/* How many DOMs of the same event come before this one. */
static int rank_of(const Dom *dom, int n, int d) {
    int rank = 0;
    for (int i = d; i >= 0 && dom[i].event == dom[d].event; i--)
        rank += is_earlier(&dom[i], &dom[d]);
    for (int i = d + 1; i < n && dom[i].event == dom[d].event; i++)
        rank += is_earlier(&dom[i], &dom[d]);
    return rank;
}

static void expect_near(float got, double want) {
    if (!(fabs((double)got - want) <= 1e-6 * fmax(1.0, fabs(want))))
        fail_msg("%.9g, expected %.9g", (double)got, want);
}

static void expect_pulse(const float *x, const IceEvent *e, const Row *row, double time_scale) {
    expect_near(x[0], ((double)e->time[row->place] - 1e4) / time_scale);
    expect_near(x[1], log10((double)e->charge[row->place] + 1e-8) / 3);
    expect_near(x[2], row->sensor / 5160.0);
    assert_true(x[3] == (float)e->auxiliary[row->place]);
}

static void expect_vector(const float *x, const IceEvent *e, const Dom *dom, const Row *row,
                          const IceCollate *how) {
    for (int c = 0; c < 3; c++)
        expect_near(x[c], (double)how->xyz[3 * dom->sensor + c] / how->position_scale);
    expect_near(x[3], log1p(dom->n) / 3 - 1);
    for (int k = 0; k < how->K; k++) {
        const float *pulse = x + 4 + 3 * k;
        if (k >= dom->n) {
            for (int c = 0; c < 3; c++) assert_true(pulse[c] == 0.0f);
            continue;
        }
        int i = row[dom->first + k].place;
        expect_near(pulse[0], ((double)e->time[i] - 1e4) / how->time_scale);
        expect_near(pulse[1], log10(fmax((double)e->charge[i], 1e-6)) / 3);
        expect_near(pulse[2], e->auxiliary[i] - 0.5);
    }
}

static void expect_dom(const IceBatch *b, int m, int first_pulse, const Dom *dom, const Row *row,
                       const IceEvent *e, const IceCollate *how) {
    assert_int_equal(b->sensor[m], dom->sensor);
    assert_int_equal(b->dom_offsets[m], first_pulse);
    assert_int_equal(b->dom_token[m], first_pulse + m);
    for (int c = 0; c < 3; c++)
        expect_near(b->xyz[3 * m + c], (double)how->xyz[3 * dom->sensor + c] / how->position_scale);
    if (how->K)
        expect_vector(b->dom_vector + (int64_t)m * (4 + 3 * how->K), e, dom, row, how);
    else
        for (int k = 0; k < dom->n; k++)
            expect_pulse(b->pulse + 4 * (first_pulse + k), e, &row[dom->first + k],
                         how->time_scale);
}

static void expect_label(const IceBatch *b, int i, const IceEvent *e, int n_doms) {
    const IceLabel *label = &b->label[i];
    assert_int_equal(label->n_pulses, e->n);
    assert_int_equal(label->n_doms, n_doms);
    assert_int_equal(label->track, e->track);
    assert_true(label->known);
    assert_memory_equal(label->direction, e->direction, sizeof e->direction);
    assert_memory_equal(b->direction + 3 * i, e->direction, sizeof e->direction);
}

static void check_batch(const IceBatch *b, const IceEvent *const *e, int n, const IceCollate *how) {
    int n_rows = 0, n_doms = 0, M = 0, N = 0;
    for (int i = 0; i < n; i++) n_rows += e[i]->n;
    Row *row = malloc((size_t)n_rows * sizeof *row);
    Dom *dom = malloc((size_t)n_rows * sizeof *dom);
    assert_non_null(row);
    assert_non_null(dom);
    for (int i = 0, r = 0; i < n; i++)
        for (int k = 0; k < e[i]->n; k++) row[r++] = (Row){i, e[i]->sensor[k], k};
    qsort(row, (size_t)n_rows, sizeof *row, by_place);
    for (int r = 0; r < n_rows; r++) {
        if (!n_doms || row[r].event != row[r - 1].event || row[r].sensor != row[r - 1].sensor)
            dom[n_doms++] =
                (Dom){row[r].event, row[r].sensor, r, 0, e[row[r].event]->time[row[r].place]};
        dom[n_doms - 1].n++;
    }
    assert_int_equal(b->B, n);
    for (int i = 0, d = 0; i < n; i++) {
        assert_int_equal(b->event_offsets[i], M);
        assert_int_equal(b->event_token[i], M + i);
        int begin = d, cost = N, kept = M;
        for (; d < n_doms && dom[d].event == i; d++) {
            if (how->max_doms && rank_of(dom, n_doms, d) >= how->max_doms) continue;
            expect_dom(b, M++, N, &dom[d], row, e[i], how);
            N += dom[d].n;
        }
        expect_label(b, i, e[i], d - begin);
        int size_doms, size_pulses;
        ice_event_size(e[i], how, &size_doms, &size_pulses);
        assert_int_equal(size_doms, M - kept);
        assert_int_equal(size_pulses, N - cost);
    }
    assert_int_equal(b->M, M);
    assert_int_equal(b->N, N);
    assert_int_equal(b->event_offsets[n], M);
    assert_int_equal(b->event_token[n], M + n);
    assert_int_equal(b->dom_offsets[M], N);
    assert_int_equal(b->dom_token[M], N + M);
    assert_true((b->pulse == NULL) == (how->K > 0) && (b->dom_vector == NULL) == (how->K == 0));
    free(row);
    free(dom);
}

static void random_events_are_grouped(void **state) {
    (void)state;
    static const int size[EVENTS] = {1, 2, 97, 3, 700, 31, 1, 260, 97, 500, 64, 5};
    static const int sensors[EVENTS] = {9, 1, 50, 3, 5160, 1, 5160, 64, 97, 130, 5160, 2};
    static const int max_doms[] = {0, 1, 5, 128, 2048}, K[] = {0, 1, 4, 16};
    IceEvent event[EVENTS];
    const IceEvent *e[EVENTS];
    IceBatch b = {0};
    for (int i = 0; i < EVENTS; i++) {
        event[i] = random_event((uint32_t)i, size[i], sensors[i]);
        e[i] = &event[i];
    }
    for (size_t m = 0; m < sizeof max_doms / sizeof *max_doms; m++)
        for (size_t k = 0; k < sizeof K / sizeof *K; k++)
            for (int n = EVENTS; n >= 1; n /= 3) { /* smaller ones into the same memory */
                IceCollate how = {geometry, k % 2 ? 3e4 : 3e3, k % 2 ? 500 : 100, max_doms[m],
                                  K[k]};
                ice_batch_make(&b, e, n, &how, false);
                check_batch(&b, e, n, &how);
            }
    for (int i = 0; i < EVENTS; i++) ice_event_free(&event[i]);
    ice_batch_free(&b);
}

static void the_largest_event_goes_through(void **state) {
    (void)state;
    IceEvent event = random_event(77, MANY, 5160), one = random_event(78, MANY, 1);
    const IceEvent *e[] = {&event, &one};
    IceBatch b = {0};
    for (int K = 0; K < 5; K += 4) {
        IceCollate how = {geometry, 3e4, 500, 2048, K};
        ice_batch_make(&b, e, 2, &how, false);
        check_batch(&b, e, 2, &how);
        assert_int_equal(b.M, 2048 + 1);
    }
    ice_event_free(&event);
    ice_event_free(&one);
    ice_batch_free(&b);
}

static void memory_is_kept(void **state) {
    (void)state;
    IceEvent event = random_event(3, 1000, 5160), small = random_event(4, 10, 5160);
    const IceEvent *e = &event, *s = &small;
    IceCollate how = {geometry, 3e4, 500, 0, 0};
    IceBatch b = {0};
    ice_batch_make(&b, &e, 1, &how, false);
    const void *block = b.block;
    for (int i = 0; i < 3; i++) {
        ice_batch_make(&b, i % 2 ? &e : &s, 1, &how, false);
        assert_ptr_equal(b.block, block);
    }
    ice_event_free(&event);
    ice_event_free(&small);
    ice_batch_free(&b);
}

static void linefit_is_given_where_asked_for(void **state) {
    (void)state;
    IceEvent event = random_event(9, 200, 5160);
    const IceEvent *e = &event;
    IceCollate how = {geometry, 3e4, 500, 10, 0};
    IceBatch b = {0};
    float want[3];
    bool ok = ice_linefit(e, geometry, want);
    ice_batch_make(&b, &e, 1, &how, true);
    assert_true(ok && b.label[0].linefit_ok);
    assert_memory_equal(b.label[0].linefit, want, sizeof want);
    ice_batch_make(&b, &e, 1, &how, false);
    assert_false(b.label[0].linefit_ok);
    assert_true(b.label[0].linefit[0] == 0.0f);
    ice_event_free(&event);
    ice_batch_free(&b);
}

/* The originals' batches. */

typedef struct Golden {
    StFile file;
    IceEvent event[64];
    const IceEvent *e[64];
    int n;
} Golden;

static const StEntry *entry(const Golden *g, const char *name, DType dtype) {
    const StEntry *t = st_find(&g->file, name);
    if (!t) fail_msg("no %s", name);
    assert_int_equal(t->dtype, dtype);
    return t;
}

static void open_golden(Golden *g, const char *name) {
    char path[4096];
    const char *folder = getenv("GOLDEN");
    Err err = {""};
    memset(g, 0, sizeof *g);
    snprintf(path, sizeof path, "%s/%s", folder ? folder : "../shared/golden", name);
    if (access(path, R_OK)) skip();
    if (st_open(path, &g->file, &err)) fail_msg("%s", err.text);
    const int64_t *event = entry(g, "in.event", DT_I64)->data;
    const int64_t *sensor = entry(g, "in.sensor_id", DT_I64)->data;
    const int64_t *time = entry(g, "in.time", DT_I64)->data;
    const float *charge = entry(g, "in.charge", DT_F32)->data;
    const uint8_t *auxiliary = entry(g, "in.auxiliary", DT_U8)->data;
    g->n = (int)entry(g, "in.direction", DT_F32)->shape[0];
    for (int64_t i = 0; i < st_find(&g->file, "in.event")->numel; i++) {
        IceEvent *e = &g->event[event[i]];
        ice_event_reserve(e, e->n + 1);
        e->sensor[e->n] = (int16_t)sensor[i];
        e->time[e->n] = (float)time[i];
        e->charge[e->n] = charge[i];
        e->auxiliary[e->n++] = auxiliary[i];
    }
    for (int i = 0; i < g->n; i++) g->e[i] = &g->event[i];
}

static void close_golden(Golden *g) {
    for (int i = 0; i < g->n; i++) ice_event_free(&g->event[i]);
    st_close(&g->file);
}

static void originals_hierarchical_grouping(void **state) {
    (void)state;
    Golden g;
    open_golden(&g, "icecube_hierarchical.safetensors");
    IceCollate how = {entry(&g, "in.sensor_geometry", DT_F32)->data, 3e4, 500, 2048, 0};
    IceBatch b = {0};
    ice_batch_make(&b, g.e, g.n, &how, false);
    const StEntry *sensor = entry(&g, "out.dom_sensor_id", DT_I64);
    const int64_t *id = sensor->data, *event = entry(&g, "out.dom_event", DT_I64)->data;
    const int64_t *count = entry(&g, "out.dom_pulse_count", DT_I64)->data;
    assert_int_equal(b.M, sensor->numel);
    for (int m = 0, i = 0; m < b.M; m++) {
        while (b.event_offsets[i + 1] <= m) i++;
        assert_int_equal(b.sensor[m], id[m]);
        assert_int_equal(i, event[m]);
        assert_int_equal(b.dom_offsets[m + 1] - b.dom_offsets[m], count[m]);
    }
    ice_batch_free(&b);
    close_golden(&g);
}

static void originals_flat_vectors(void **state) {
    (void)state;
    Golden g;
    open_golden(&g, "icecube_flat.safetensors");
    const StEntry *vectors = entry(&g, "out.dom_vectors", DT_F32);
    const int max_doms = (int)vectors->shape[1], width = (int)vectors->shape[2];
    const uint8_t *valid = entry(&g, "out.dom_valid", DT_U8)->data;
    const float *want = vectors->data;
    IceCollate how = {entry(&g, "in.sensor_geometry", DT_F32)->data, 3e4, 500, max_doms,
                      (width - 4) / 3};
    IceBatch b = {0};
    ice_batch_make(&b, g.e, g.n, &how, false);
    for (int i = 0; i < g.n; i++) {
        const int n = b.event_offsets[i + 1] - b.event_offsets[i];
        for (int d = 0; d < max_doms; d++) {
            assert_int_equal(valid[i * max_doms + d], d < n);
            const int64_t row = b.event_offsets[i] + d;
            for (int c = 0; d < n && c < width; c++)
                expect_near(b.dom_vector[row * width + c],
                            (double)want[((int64_t)i * max_doms + d) * width + c]);
        }
    }
    ice_batch_free(&b);
    close_golden(&g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_events_are_grouped),
        cmocka_unit_test(the_largest_event_goes_through),
        cmocka_unit_test(memory_is_kept),
        cmocka_unit_test(linefit_is_given_where_asked_for),
        cmocka_unit_test(originals_hierarchical_grouping),
        cmocka_unit_test(originals_flat_vectors),
    };
    return cmocka_run_group_tests(tests, make_geometry, NULL);
}
