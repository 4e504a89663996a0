/* The data set: what is held out, the order of events, damaged ones, and the parts of a step. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>

#include "data/icecube_data.h"
#include "test/scratch.h"
#include "test/shard_files.h"

/* The batches of the sample; event i of batch K has id 1000 K + i, its own sensors, and 1 + 7 i %
 * 40 pulses. */
enum { BATCHES = 4, MOST_EVENTS = 40, MOST_PULSES = 40 * MOST_EVENTS };
static const int NUMBER[BATCHES] = {1, 2, 3, 655};
static const int SIZE[BATCHES] = {40, 1, 23, 30};

enum Damage { NONE, CHARGE, DIRECTION };

static void write_batch(void **state, int number, int n_events, int64_t damaged,
                        enum Damage damage) {
    int64_t event_id[MOST_EVENTS], offsets[MOST_EVENTS + 1] = {0};
    float direction[2 * MOST_EVENTS], charge[MOST_PULSES];
    int16_t sensor[MOST_PULSES];
    int32_t time[MOST_PULSES];
    uint8_t auxiliary[MOST_PULSES];
    Err e = {""};
    for (int i = 0; i < n_events; i++) {
        event_id[i] = 1000 * number + i;
        offsets[i + 1] = offsets[i] + 1 + 7 * i % 40;
        direction[2 * i] = 0.1f * (float)i;
        direction[2 * i + 1] = 0.05f * (float)i;
        for (int64_t p = offsets[i]; p < offsets[i + 1]; p++) {
            sensor[p] = (int16_t)(100 * i + (p - offsets[i]) / 2);
            time[p] = (int32_t)(10000 + 1000 * i + p - offsets[i]);
            charge[p] = 1.0f + 0.01f * (float)i;
            auxiliary[p] = 0;
        }
        if (damage && event_id[i] == damaged) {
            direction[2 * i + 1] = NAN;
            if (damage == DIRECTION) direction[2 * i] = NAN;
        }
    }
    ShardArrays a = {n_events, offsets[n_events], event_id, offsets, direction, sensor, time,
                     charge,   auxiliary};
    if (shard_write(*state, number, &a, &e)) fail_msg("%s", e.text);
}

static int setup(void **state) {
    if (scratch_setup(state) || geometry_write(*state, NULL)) return -1;
    for (int b = 0; b < BATCHES; b++) write_batch(state, NUMBER[b], SIZE[b], 0, NONE);
    return 0;
}

static IceDataOptions options(void **state, const char *held_out) {
    return (IceDataOptions){
        .source = *state, .seed = 4, .held_out = held_out, .need_directions = true};
}

static void open_data(IceData *d, IceDataOptions o) {
    Err e = {""};
    if (ice_data_open(d, &o, &e)) fail_msg("%s", e.text);
}

static void expect_words(const char *text, const char *const words[4]) {
    for (int i = 0; i < 4 && words[i]; i++)
        if (!strstr(text, words[i])) fail_msg("\"%s\" is not in: %s", words[i], text);
}
#define EXPECT_WORDS(text, ...) expect_words(text, (const char *const[4]){__VA_ARGS__})

/* The ids of events first .. first + n - 1. */
static void read_ids(const IceData *d, bool held_out, uint64_t first, int n, int64_t *id) {
    IceReader *r = ice_reader_new(d);
    for (int i = 0; i < n; i++) {
        bool known;
        Err e = {""};
        const IceEvent *event =
            ice_data_event(d, r, held_out, first + (uint64_t)i, &id[i], &known, &e);
        if (!event) fail_msg("%s", e.text);
        assert_true(known);
        assert_true(event->charge[0] == 1.0f + 0.01f * (float)(id[i] % 1000));
    }
    ice_reader_free(r);
}

static bool is_batch(const int *list, int64_t number) {
    for (; *list; list++)
        if (*list == number) return true;
    return false;
}

/* Which batches, listed up to a 0, each choice holds out; the others are trained on, every event
 * once a pass. */
static void held_out_batches_are_never_trained_on(void **state) {
    static const struct {
        const char *text;
        int batch[BATCHES + 1];
    } choice[] = {
        {"auto", {655}},    {"none", {0}},       {"all", {1, 2, 3, 655}},  {"2", {2}},
        {"1-3", {1, 2, 3}}, {"655,2", {2, 655}}, {"2-3,655", {2, 3, 655}}, {"1,1-2", {1, 2}}};
    for (size_t k = 0; k < sizeof choice / sizeof *choice; k++) {
        IceData d;
        open_data(&d, options(state, choice[k].text));
        int held = 0, all = 0;
        for (int b = 0; b < BATCHES; b++) {
            all += SIZE[b];
            if (is_batch(choice[k].batch, NUMBER[b])) held += SIZE[b];
        }
        assert_int_equal(d.n_held, held);
        assert_int_equal(d.n_train, all - held);
        int64_t id[BATCHES * MOST_EVENTS];
        bool seen[656][MOST_EVENTS] = {{false}};
        read_ids(&d, true, 0, held, id);
        for (int i = 0; i < held; i++) {
            assert_true(is_batch(choice[k].batch, id[i] / 1000));
            assert_true(!i || id[i] > id[i - 1]); /* the shards' order */
        }
        read_ids(&d, false, 0, all - held, id);
        for (int i = 0; i < all - held; i++) {
            assert_false(is_batch(choice[k].batch, id[i] / 1000));
            assert_false(seen[id[i] / 1000][id[i] % 1000]);
            seen[id[i] / 1000][id[i] % 1000] = true;
        }
        ice_data_close(&d);
    }
}

static void contents_say_which_batches(void **state) {
    static const struct {
        const char *held_out, *contents;
    } choice[] = {
        {"auto", "64 events to train on (batches 1-3), 30 held out (batches 655)"},
        {"2", "93 events to train on (batches 1,3,655), 1 held out (batches 2)"},
        {"none", "94 events to train on (batches 1-3,655), 0 held out"},
        {"all", "0 events to train on, 94 held out (batches 1-3,655)"},
    };
    IceData d;
    for (size_t i = 0; i < sizeof choice / sizeof *choice; i++) {
        open_data(&d, options(state, choice[i].held_out));
        assert_string_equal(d.contents, choice[i].contents);
        EXPECT_WORDS(d.description, *state, choice[i].contents);
        ice_data_close(&d);
    }
}

static void passes_have_orders_of_their_own(void **state) {
    IceData d;
    int64_t first[64], second[64], again[64];
    open_data(&d, options(state, "655"));
    assert_int_equal(d.n_train, 64);
    read_ids(&d, false, 0, 64, first);
    read_ids(&d, false, 64, 64, second);
    int same = 0, rising = 0;
    for (int i = 0; i < 64; i++) {
        same += first[i] == second[i];
        rising += i && first[i] > first[i - 1];
    }
    assert_true(same < 16 && rising < 48);
    read_ids(&d, false, 0, 64, again);
    assert_memory_equal(first, again, sizeof first);
    read_ids(&d, true, 30, 30, again); /* held out: round and round */
    read_ids(&d, true, 0, 30, second);
    assert_memory_equal(second, again, 30 * sizeof *second);
    ice_data_close(&d);
    IceDataOptions o = options(state, "655");
    o.seed = 5;
    open_data(&d, o);
    read_ids(&d, false, 0, 64, again);
    assert_memory_not_equal(first, again, sizeof first);
    ice_data_close(&d);
}

static void one_batch_is_split(void **state) {
    char folder[] = "/tmp/llmc_like_test_XXXXXX";
    void *own = mkdtemp(folder) ? strdup(folder) : NULL;
    (void)state;
    assert_non_null(own);
    assert_int_equal(geometry_write(own, NULL), 0);
    write_batch(&own, 9, 40, 0, NONE);
    IceData d;
    int64_t id[40];
    open_data(&d, options(&own, "auto"));
    assert_int_equal(d.n_train, 38);
    assert_int_equal(d.n_held, 2);
    read_ids(&d, true, 0, 2, id);
    assert_int_equal(id[0], 9038);
    assert_int_equal(id[1], 9039);
    read_ids(&d, false, 0, 38, id);
    for (int i = 0; i < 38; i++) assert_true(id[i] < 9038);
    ice_data_close(&d);
    write_batch(&own, 9, 1, 0, NONE);
    IceDataOptions o = options(&own, "auto");
    Err e = {""};
    assert_int_equal(ice_data_open(&d, &o, &e), -1);
    EXPECT_WORDS(e.text, "one event alone", "at least 2");
    assert_int_equal(scratch_teardown(&own), 0);
}

static void bad_choices_are_explained(void **state) {
    static const char *const bad[][3] = {
        {"7", "held-out batch 7 is not there", "4 batches are, from 1 to 655"},
        {"2-655", "held-out batch 4 is not there"},
        {"3-1", "3-1", "the smaller number first"},
        {"first", "\"first\"", "655,656"},
        {"", "\"\"", "auto, none or all"},
        {"1,", "\"\"", "numbers such as"},
        {"1;2", "\";2\"", "a comma"},
        {"-1", "\"-1\"", "numbers such as"},
        {"1-3,655", "all there are", "nothing is left to train on"}};
    IceData d;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        Err e = {""};
        IceDataOptions o = options(state, bad[i][0]);
        assert_int_equal(ice_data_open(&d, &o, &e), -1);
        EXPECT_WORDS(e.text, *state, bad[i][1], bad[i][2]);
    }
    Err e = {""};
    IceDataOptions o = {.source = "sim", .held_out = "655"};
    assert_int_equal(ice_data_open(&d, &o, &e), -1);
    EXPECT_WORDS(e.text, "\"655\"", "the simulator has no batch files", "auto or none");
    o = options(state, "auto");
    o.source = "/nonexistent";
    assert_int_equal(ice_data_open(&d, &o, &e), -1);
    EXPECT_WORDS(e.text, "/nonexistent: no folder", "\"sim\"");
}

static void damaged_events_are_named_or_left_out(void **state) {
    IceData d;
    IceStepBatch s = {0};
    IceDataOptions o = options(state, "655");
    for (int damage = CHARGE; damage <= DIRECTION; damage++) {
        write_batch(state, 3, 23, 3007, (enum Damage)damage);
        open_data(&d, o);
        IceCollate how = {d.xyz, 3e4, 500, 0, 0};
        Err e = {""};
        assert_int_equal(ice_step_make(&s, &d, false, 0, 64, 0, &how, false, &e), -1);
        EXPECT_WORDS(e.text, "event 3007 of batch 3 is damaged",
                     damage == DIRECTION ? "direction is unknown" : "zenith nan", "--skip-bad");
        ice_step_free(&s);
        ice_data_close(&d);

        o.skip_bad = true;
        open_data(&d, o);
        how.xyz = d.xyz;
        assert_int_equal(ice_step_make(&s, &d, false, 0, 64, 0, &how, false, &e), 0);
        assert_int_equal(s.n_bad, 1);
        assert_int_equal(s.n_events, 63);
        assert_int_equal(s.part[0].B, 63);
        IceReader *r = ice_reader_new(&d);
        int64_t id = 0;
        bool known;
        assert_null(ice_data_event(&d, r, false, s.bad[0], &id, &known, &e));
        assert_int_equal(id, 3007);
        EXPECT_WORDS(e.text, "event 3007 of batch 3 is damaged");
        assert_null(strstr(e.text, "--skip-bad")); /* no advice that was followed already */
        ice_reader_free(r);
        for (int i = 0; i < 63; i++) assert_int_not_equal(s.part[0].label[i].event_id, 3007);
        ice_step_free(&s);
        ice_data_close(&d);
        o.skip_bad = false;
    }
    /* Not to be trained on, an event without a direction is as good as any other. */
    o.need_directions = false;
    open_data(&d, o);
    IceCollate how = {d.xyz, 3e4, 500, 0, 0};
    assert_int_equal(ice_step_make(&s, &d, false, 0, 64, 0, &how, false, NULL), 0);
    for (int i = 0; i < 64; i++) {
        const IceLabel *label = &s.part[0].label[i];
        assert_int_equal(label->known, label->event_id != 3007);
        assert_int_equal(label->track, -1);
        if (!label->known) assert_true(label->direction[0] == 0 && label->direction[2] == 0);
    }
    ice_step_free(&s);
    ice_data_close(&d);
    write_batch(state, 3, 23, 0, NONE);
}

static void steps_of_nothing_but_damage(void **state) {
    IceData d;
    IceStepBatch s = {0};
    write_batch(state, 2, 1, 2000, CHARGE);
    IceDataOptions o = options(state, "1,3,655");
    o.skip_bad = true;
    open_data(&d, o);
    IceCollate how = {d.xyz, 3e4, 500, 0, 0};
    assert_int_equal(ice_step_make(&s, &d, false, 0, 3, 0, &how, false, NULL), 0);
    assert_int_equal(s.n_parts, 0);
    assert_int_equal(s.n_events, 0);
    assert_int_equal(s.n_bad, 3);
    for (uint64_t i = 0; i < 3; i++) assert_int_equal(s.bad[i], i);
    ice_step_free(&s);
    ice_data_close(&d);
    o.held_out = "2";
    open_data(&d, o);
    how.xyz = d.xyz;
    assert_int_equal(ice_step_make(&s, &d, true, 0, 1, 0, &how, false, NULL), 0);
    assert_int_equal(s.n_parts, 0);
    assert_int_equal(s.n_bad, 1);
    ice_step_free(&s);
    ice_data_close(&d);
    write_batch(state, 2, 1, 0, NONE);
}

/* Event `id` of a step: its part and place in it. */
static const IceBatch *find_event(const IceStepBatch *s, int64_t id, int *place) {
    const IceBatch *found = NULL;
    *place = 0;
    for (int p = 0; p < s->n_parts; p++)
        for (int i = 0; i < s->part[p].B; i++)
            if (s->part[p].label[i].event_id == id) {
                assert_null(found);
                found = &s->part[p];
                *place = i;
            }
    assert_non_null(found);
    return found;
}

/* The same events with the same rows, whatever the parts. */
static void expect_same_event(const IceStepBatch *a, const IceStepBatch *b, int64_t id) {
    int i, j;
    const IceBatch *x = find_event(a, id, &i), *y = find_event(b, id, &j);
    const int dom_x = x->event_offsets[i], dom_y = y->event_offsets[j];
    const int n_doms = x->event_offsets[i + 1] - dom_x;
    assert_int_equal(y->event_offsets[j + 1] - dom_y, n_doms);
    assert_memory_equal(x->sensor + dom_x, y->sensor + dom_y, (size_t)n_doms * sizeof *x->sensor);
    const int first_x = x->dom_offsets[dom_x], first_y = y->dom_offsets[dom_y];
    const int n_pulses = x->dom_offsets[dom_x + n_doms] - first_x;
    assert_memory_equal(x->pulse + 4 * first_x, y->pulse + 4 * first_y,
                        (size_t)n_pulses * 4 * sizeof *x->pulse);
    const IceLabel *label = &x->label[i], *other = &y->label[j];
    assert_int_equal(label->n_pulses, other->n_pulses);
    assert_int_equal(label->n_doms, other->n_doms);
    assert_memory_equal(label->direction, other->direction, sizeof label->direction);
    assert_memory_equal(label->linefit, other->linefit, sizeof label->linefit);
}

/* Parts hold at most max_pulses, or one event; the next event would not have fitted. */
static void check_parts(const IceStepBatch *s, int n_events, int64_t max_pulses) {
    int seen = 0, before = 0;
    for (int p = 0; p < s->n_parts; p++) {
        const IceBatch *b = &s->part[p];
        assert_true(b->B >= 1 && (!max_pulses || b->N <= max_pulses || b->B == 1));
        for (int i = 0; i < b->B; i++) {
            int n = b->dom_offsets[b->event_offsets[i + 1]] - b->dom_offsets[b->event_offsets[i]];
            if (p && !i) assert_true(s->part[p - 1].N + n > max_pulses);
            assert_true(n >= before);
            before = n;
        }
        seen += b->B;
    }
    assert_int_equal(seen, n_events);
    assert_int_equal(s->n_events, n_events);
}

static void parts_are_bounded_and_whole(void **state) {
    static const int64_t max_pulses[] = {1, 20, 64, 100, 100000};
    IceData d;
    IceStepBatch whole = {0}, s = {0};
    open_data(&d, options(state, "655"));
    for (int max_doms = 0; max_doms < 8; max_doms += 7) {
        IceCollate how = {d.xyz, 3e4, 500, max_doms, 0};
        assert_int_equal(ice_step_make(&whole, &d, false, 64, 50, 0, &how, true, NULL), 0);
        assert_int_equal(whole.n_parts, 1);
        check_parts(&whole, 50, 0);
        int64_t id[50];
        read_ids(&d, false, 64, 50, id);
        for (size_t m = 0; m < sizeof max_pulses / sizeof *max_pulses; m++) {
            ice_step_make(&s, &d, false, 64, 50, max_pulses[m], &how, true, NULL);
            check_parts(&s, 50, max_pulses[m]);
            for (int i = 0; i < 50; i++) expect_same_event(&whole, &s, id[i]);
        }
    }
    ice_step_free(&whole);
    ice_step_free(&s);
    ice_data_close(&d);
}

static void equal_events_are_in_order(void **state) {
    IceData d;
    IceStepBatch s = {0};
    open_data(&d, options(state, "all"));
    IceCollate how = {d.xyz, 3e4, 500, 1, 0}; /* one DOM: of one or two pulses */
    assert_int_equal(ice_step_make(&s, &d, true, 0, 94, 0, &how, false, NULL), 0);
    const IceBatch *b = &s.part[0];
    for (int i = 1; i < b->B; i++)
        assert_true(b->dom_offsets[i + 1] - b->dom_offsets[i] >
                        b->dom_offsets[i] - b->dom_offsets[i - 1] ||
                    b->label[i].event_id > b->label[i - 1].event_id);
    ice_step_free(&s);
    ice_data_close(&d);
}

/* The largest event that Kaggle has, beside one of a single pulse. */
static void an_event_of_178000_pulses_goes_through(void **state) {
    enum { MANY = 178000 };
    char folder[SCRATCH_PATH];
    int16_t *sensor = malloc((MANY + 1) * sizeof *sensor);
    int32_t *time = malloc((MANY + 1) * sizeof *time);
    float *charge = malloc((MANY + 1) * sizeof *charge);
    uint8_t *auxiliary = calloc(MANY + 1, 1);
    assert_true(sensor && time && charge && auxiliary);
    for (int p = 0; p <= MANY; p++) {
        sensor[p] = (int16_t)(p % ICE_SENSORS);
        time[p] = p;
        charge[p] = 1.0f;
    }
    ShardArrays a = {
        2,    MANY + 1, (int64_t[]){7, 8}, (int64_t[]){0, MANY, MANY + 1}, (float[4]){0}, sensor,
        time, charge,   auxiliary};
    Err e = {""};
    scratch_path(state, "large", folder);
    if (shard_write(folder, 1, &a, &e) || geometry_write(folder, &e)) fail_msg("%s", e.text);
    void *own = folder;
    IceData d;
    IceStepBatch s = {0};
    open_data(&d, options(&own, "all"));
    IceCollate how = {d.xyz, 3e4, 500, 2048, 0};
    assert_int_equal(ice_step_make(&s, &d, true, 0, 2, 8192, &how, false, NULL), 0);
    assert_int_equal(s.n_parts, 2);
    assert_int_equal(s.part[0].N, 1);
    assert_int_equal(s.part[1].M, 2048);
    assert_int_equal(s.part[1].label[0].n_pulses, MANY);
    assert_int_equal(s.part[1].label[0].n_doms, ICE_SENSORS);
    assert_int_equal(s.part[1].sensor[2047], 2047); /* the sensors were hit by number */
    ice_step_free(&s);
    ice_data_close(&d);
    free(sensor);
    free(time);
    free(charge);
    free(auxiliary);
}

static void the_simulator_is_endless(void **state) {
    (void)state;
    IceData d;
    IceStepBatch s = {0};
    IceDataOptions o = {.source = "sim", .seed = 11, .held_out = "auto", .need_directions = true};
    open_data(&d, o);
    assert_true(d.n_train == ICE_ENDLESS && d.n_held == ICE_ENDLESS);
    IceReader *r = ice_reader_new(&d);
    const uint64_t first = UINT64_C(1) << 33;
    IceCollate how = {d.xyz, 3e4, 500, 0, 4};
    for (int held = 0; held < 2; held++) {
        assert_int_equal(ice_step_make(&s, &d, held, first, 8, 500, &how, true, NULL), 0);
        check_parts(&s, 8, 500);
        for (uint64_t i = first; i < first + 8; i++) {
            int64_t id;
            bool known;
            int place;
            const IceEvent *e = ice_data_event(&d, r, held, i, &id, &known, NULL);
            assert_true(known && id == (int64_t)i);
            const IceBatch *b = find_event(&s, id, &place);
            const IceLabel *label = &b->label[place];
            assert_int_equal(label->n_pulses, e->n);
            assert_int_equal(label->track, e->track);
            assert_memory_equal(label->direction, e->direction, sizeof e->direction);
            float direction[3], linefit[3];
            memcpy(direction, e->direction, sizeof direction);
            assert_int_equal(label->linefit_ok, ice_linefit(e, d.xyz, linefit));
            assert_memory_equal(label->linefit, linefit, sizeof linefit);
            e = ice_data_event(&d, r, !held, i, &id, &known, NULL);
            assert_memory_not_equal(direction, e->direction, sizeof direction);
        }
    }
    ice_reader_free(r);
    ice_step_free(&s);
    ice_data_close(&d);
    o.held_out = "none";
    open_data(&d, o);
    assert_true(d.n_train == ICE_ENDLESS && d.n_held == 0);
    ice_data_close(&d);
}

static void memory_is_kept_from_step_to_step(void **state) {
    IceData d;
    IceStepBatch s = {0};
    open_data(&d, options(state, "655"));
    IceCollate how = {d.xyz, 3e4, 500, 0, 0};
    ice_step_make(&s, &d, false, 0, 64, 100, &how, false, NULL);
    const int n = s.n_parts;
    assert_true(n > 4);
    void *block[64];
    for (int p = 0; p < n; p++) block[p] = s.part[p].block;
    const IceBatch *part = s.part;
    for (uint64_t pass = 1; pass < 4; pass++) { /* the same events in other orders */
        ice_step_make(&s, &d, false, 64 * pass, 64, 100, &how, false, NULL);
        assert_int_equal(s.n_parts, n);
        assert_ptr_equal(s.part, part);
        for (int p = 0; p < n; p++) assert_ptr_equal(s.part[p].block, block[p]);
    }
    ice_step_free(&s);
    ice_data_close(&d);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(held_out_batches_are_never_trained_on),
        cmocka_unit_test(contents_say_which_batches),
        cmocka_unit_test(passes_have_orders_of_their_own),
        cmocka_unit_test(one_batch_is_split),
        cmocka_unit_test(bad_choices_are_explained),
        cmocka_unit_test(damaged_events_are_named_or_left_out),
        cmocka_unit_test(steps_of_nothing_but_damage),
        cmocka_unit_test(parts_are_bounded_and_whole),
        cmocka_unit_test(equal_events_are_in_order),
        cmocka_unit_test(an_event_of_178000_pulses_goes_through),
        cmocka_unit_test(the_simulator_is_endless),
        cmocka_unit_test(memory_is_kept_from_step_to_step),
    };
    return cmocka_run_group_tests(tests, setup, scratch_teardown);
}
