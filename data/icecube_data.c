#include "data/icecube_data.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc_like/permute.h"

static const uint64_t HELD_OUT_BIT = UINT64_C(1) << 63;

enum { HELD_OUT_SHARE = 16 }; /* of a single shard, one part in so many */

/* What is held out. */

static void add_span(IceSpans *s, int64_t *n_events, const IceShard *shard, int64_t from,
                     int64_t n) {
    s->span[s->n++] = (IceSpan){.shard = shard, .from = from, .n = n, .first = *n_events};
    *n_events += n;
}

/* "655" or "655-659" at *text: marks those shards and moves *text past it. */
static int mark_range(const IceShards *s, const char **text, bool *held, Err *e) {
    int from, to, end = 0;
    if (sscanf(*text, "%9d%n", &from, &end) < 1 || from < 0)
        return err_set(e,
                       "held-out batches \"%.60s\": expected numbers such as \"655,656\" or "
                       "\"655-659\", or auto, none or all",
                       *text);
    *text += end;
    to = from;
    if (sscanf(*text, "-%9d%n", &to, &end) == 1) *text += end;
    if (to < from)
        return err_set(e, "held-out batches %d-%d: expected the smaller number first", from, to);
    for (int i = 0, number = from; number <= to; number++) {
        while (i < s->n && s->shard[i].number < number) i++;
        if (i == s->n || s->shard[i].number != number)
            return err_set(e,
                           "held-out batch %d is not there: %d batches are, from %d to %d; name "
                           "some of these",
                           number, s->n, s->shard[0].number, s->shard[s->n - 1].number);
        held[i] = true;
    }
    return 0;
}

static int mark_held(const IceShards *s, const char *text, bool *held, Err *e) {
    if (!strcmp(text, "none")) return 0;
    if (!strcmp(text, "auto")) {
        held[s->n - 1] = true;
        return 0;
    }
    if (!strcmp(text, "all")) {
        for (int i = 0; i < s->n; i++) held[i] = true;
        return 0;
    }
    for (;;) {
        if (mark_range(s, &text, held, e)) return -1;
        if (!*text) return 0;
        if (*text != ',')
            return err_set(e, "held-out batches: \"%.60s\" follows a number; expected a comma",
                           text);
        text++;
    }
}

static int split(IceData *d, const char *held_out, Err *e) {
    const IceShards *s = &d->shards;
    if (s->n == 1 && !strcmp(held_out, "auto")) {
        const IceShard *only = &s->shard[0];
        int64_t n_held = only->n_events / HELD_OUT_SHARE;
        if (n_held < 1) n_held = 1;
        if (n_held == only->n_events)
            return err_set(e,
                           "one event alone, expected at least 2, one to train on and one held "
                           "out; convert more, or hold out \"none\"");
        add_span(&d->train, &d->n_train, only, 0, only->n_events - n_held);
        add_span(&d->held, &d->n_held, only, only->n_events - n_held, n_held);
        return 0;
    }
    bool *held = calloc((size_t)s->n, sizeof *held);
    CHECK(held, "no memory for %d batches", s->n);
    int status = mark_held(s, held_out, held, e);
    for (int i = 0; !status && i < s->n; i++) {
        const IceShard *shard = &s->shard[i];
        if (held[i])
            add_span(&d->held, &d->n_held, shard, 0, shard->n_events);
        else
            add_span(&d->train, &d->n_train, shard, 0, shard->n_events);
    }
    free(held);
    if (!status && !d->n_train && strcmp(held_out, "all") != 0)
        return err_set(e,
                       "held-out batches \"%.60s\" are all there are, so nothing is left to train "
                       "on; hold out fewer",
                       held_out);
    return status;
}

/* Opening. */

/* The batches of some spans as --held-out takes them: " (batches 1-3,655)"; nothing for none. */
static void print_batches(FILE *f, const IceSpans *s) {
    for (int i = 0, last; i < s->n; i = last + 1) {
        const int number = s->span[i].shard->number;
        for (last = i; last + 1 < s->n; last++)
            if (s->span[last + 1].shard->number != s->span[last].shard->number + 1) break;
        fprintf(f, "%s%d", i ? "," : " (batches ", number);
        if (last > i) fprintf(f, "-%d", s->span[last].shard->number);
    }
    if (s->n) fputc(')', f);
}

static void describe(IceData *d, const IceDataOptions *o) {
    size_t size;
    FILE *f = open_memstream(&d->contents, &size);
    CHECK(f, "no memory for a line");
    if (d->sim) {
        fprintf(f, "the built-in simulator, endless%s", d->n_held ? "" : ", nothing held out");
    } else {
        fprintf(f, "%lld events to train on", (long long)d->n_train);
        print_batches(f, &d->train);
        fprintf(f, ", %lld held out", (long long)d->n_held);
        print_batches(f, &d->held);
    }
    CHECK(!fclose(f), "no memory for a line");
    if (d->sim)
        snprintf(d->description, sizeof d->description, "%s, seed %llu", d->contents,
                 (unsigned long long)o->seed);
    else
        snprintf(d->description, sizeof d->description, "%.100s: %.150s", o->source, d->contents);
}

static int open_simulator(IceData *d, const IceDataOptions *o, Err *e) {
    bool none = !strcmp(o->held_out, "none");
    if (!none && strcmp(o->held_out, "auto") != 0)
        return err_set(e,
                       "held-out batches \"%.60s\": the simulator has no batch files, expected "
                       "auto or none",
                       o->held_out);
    d->simulator = ice_sim_new(o->seed, NULL);
    d->xyz = ice_sim_positions(d->simulator);
    d->n_train = ICE_ENDLESS;
    d->n_held = none ? 0 : ICE_ENDLESS;
    return 0;
}

static int open_shards(IceData *d, const IceDataOptions *o, Err *e) {
    if (ice_shards_open(&d->shards, o->source, e)) return -1;
    const IceShards *s = &d->shards;
    d->xyz = s->xyz;
    d->train.span = malloc((size_t)s->n * sizeof *d->train.span);
    d->held.span = malloc((size_t)s->n * sizeof *d->held.span);
    CHECK(d->train.span && d->held.span, "no memory for %d batches", s->n);
    return split(d, o->held_out, e) ? err_prefix(e, "%s: ", o->source) : 0;
}

int ice_data_open(IceData *d, const IceDataOptions *o, Err *e) {
    *d = (IceData){.sim = strcmp(o->source, "sim") == 0,
                   .skip_bad = o->skip_bad,
                   .need_directions = o->need_directions,
                   .seed = o->seed};
    if ((d->sim ? open_simulator : open_shards)(d, o, e)) {
        ice_data_close(d);
        return -1;
    }
    describe(d, o);
    return 0;
}

void ice_data_close(IceData *d) {
    ice_sim_free(d->simulator);
    ice_shards_close(&d->shards);
    free(d->train.span);
    free(d->held.span);
    free(d->contents);
    *d = (IceData){0};
}

/* Reading. */

struct IceReader {
    const IceData *data;
    IceSimWork *work; /* the simulator's; else NULL */
    IceEvent event;
};

IceReader *ice_reader_new(const IceData *d) {
    IceReader *r = calloc(1, sizeof *r);
    CHECK(r, "no memory for a reader");
    r->data = d;
    if (d->sim) {
        r->work = ice_sim_work_new();
        ice_event_reserve(&r->event, ICE_SIM_MAX_PULSES);
    }
    return r;
}

void ice_reader_free(IceReader *r) {
    if (!r) return;
    ice_sim_work_free(r->work);
    ice_event_free(&r->event);
    free(r);
}

/* The span that has number `index` of a part. */
static const IceSpan *find_span(const IceSpans *s, int64_t index) {
    int low = 0, high = s->n - 1;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (s->span[middle].first <= index)
            low = middle;
        else
            high = middle - 1;
    }
    return &s->span[low];
}

const IceEvent *ice_data_event(const IceData *d, IceReader *r, bool held_out, uint64_t index,
                               int64_t *id, bool *known, Err *e) {
    CHECK(r->data == d, "a reader of another data set");
    const uint64_t n = (uint64_t)(held_out ? d->n_held : d->n_train);
    CHECK(n > 0, "no events are %s", held_out ? "held out" : "there to train on");
    if (d->sim) {
        ice_sim_event(d->simulator, held_out ? index | HELD_OUT_BIT : index, r->work, &r->event);
        *id = (int64_t)index;
        *known = true;
        return &r->event;
    }
    uint64_t number = held_out ? index % n : permute(d->seed, index / n, n, index % n);
    const IceSpan *span = find_span(held_out ? &d->held : &d->train, (int64_t)number);
    const int64_t i = span->from + (int64_t)number - span->first;
    char buf[ICE_FAULT_TEXT];
    const char *fault = ice_shard_fault(span->shard, i, buf);
    if (!fault) {
        ice_shard_event(span->shard, i, &r->event, id, known);
        if (*known || !d->need_directions) return &r->event;
        fault = "its direction is unknown, which training needs";
    }
    *id = npy_int(&span->shard->event_id, i);
    err_set(e, "event %lld of batch %d is damaged: %s%s", (long long)*id, span->shard->number,
            fault,
            d->skip_bad ? ""
                        : "; mend or remove that batch, or leave damaged events out with "
                          "--skip-bad");
    return NULL;
}

/* Steps. */

/* A copy of an event: its arrays lie in the pool at `at`. */
typedef struct StepEvent {
    IceEvent event;
    int64_t id;
    bool known;
    int at, cost; /* cost: pulses after max_doms */
} StepEvent;

struct IceStepRoom {
    IceReader *reader;
    IceEvent pool; /* all pulses of the step, event after event */
    int n, capacity;
    StepEvent *event;
    const StepEvent **sorted;
    const IceEvent **part;
};

static struct IceStepRoom *room_for(IceStepBatch *s, const IceData *d, int count) {
    struct IceStepRoom *room = s->room;
    if (!room) {
        room = s->room = calloc(1, sizeof *room);
        CHECK(room, "no memory for a step's events");
        room->reader = ice_reader_new(d);
    }
    if (count > room->capacity) {
        size_t n = (size_t)count;
        room->event = realloc(room->event, n * sizeof *room->event);
        room->sorted = realloc(room->sorted, n * sizeof *room->sorted);
        room->part = realloc(room->part, n * sizeof *room->part);
        s->bad = realloc(s->bad, n * sizeof *s->bad);
        CHECK(room->event && room->sorted && room->part && s->bad, "no memory for %d events",
              count);
        room->capacity = count;
    }
    room->n = room->pool.n = 0;
    return room;
}

static void keep_event(struct IceStepRoom *room, const IceEvent *e, int64_t id, bool known,
                       const IceCollate *how) {
    IceEvent *pool = &room->pool;
    CHECK(pool->n <= INT32_MAX - e->n, "more than %d pulses in a step", INT32_MAX);
    ice_event_reserve(pool, pool->n + e->n);
    StepEvent *kept = &room->event[room->n++];
    *kept = (StepEvent){.event = *e, .id = id, .known = known, .at = pool->n, .cost = e->n};
    int n_doms;
    if (how->max_doms && e->n > how->max_doms) ice_event_size(e, how, &n_doms, &kept->cost);
    const size_t n = (size_t)e->n;
    memcpy(pool->sensor + pool->n, e->sensor, n * sizeof *e->sensor);
    memcpy(pool->time + pool->n, e->time, n * sizeof *e->time);
    memcpy(pool->charge + pool->n, e->charge, n * sizeof *e->charge);
    memcpy(pool->auxiliary + pool->n, e->auxiliary, n * sizeof *e->auxiliary);
    pool->n += e->n;
}

static int by_cost(const void *a, const void *b) {
    const StepEvent *x = *(const StepEvent *const *)a, *y = *(const StepEvent *const *)b;
    if (x->cost != y->cost) return x->cost < y->cost ? -1 : 1;
    return (x > y) - (x < y); /* they lie by index */
}

/* Now that the pool stays where it is. */
static void sort_events(struct IceStepRoom *room) {
    for (int i = 0; i < room->n; i++) {
        StepEvent *kept = &room->event[i];
        kept->event.sensor = room->pool.sensor + kept->at;
        kept->event.time = room->pool.time + kept->at;
        kept->event.charge = room->pool.charge + kept->at;
        kept->event.auxiliary = room->pool.auxiliary + kept->at;
        room->sorted[i] = kept;
    }
    qsort(room->sorted, (size_t)room->n, sizeof *room->sorted, by_cost);
}

static void make_part(IceStepBatch *s, bool sim, int from, int to, const IceCollate *how,
                      bool linefit) {
    struct IceStepRoom *room = s->room;
    if (s->n_parts == s->cap_parts) {
        s->cap_parts = s->cap_parts ? 2 * s->cap_parts : 4;
        s->part = realloc(s->part, (size_t)s->cap_parts * sizeof *s->part);
        CHECK(s->part, "no memory for %d parts", s->cap_parts);
        memset(s->part + s->n_parts, 0, (size_t)(s->cap_parts - s->n_parts) * sizeof *s->part);
    }
    IceBatch *b = &s->part[s->n_parts++];
    for (int i = from; i < to; i++) room->part[i - from] = &room->sorted[i]->event;
    ice_batch_make(b, room->part, to - from, how, linefit);
    for (int i = from; i < to; i++) {
        IceLabel *label = &b->label[i - from];
        label->event_id = room->sorted[i]->id;
        label->known = room->sorted[i]->known;
        if (!sim) label->track = -1;
    }
}

int ice_step_make(IceStepBatch *s, const IceData *d, bool held_out, uint64_t first, int count,
                  int64_t max_pulses, const IceCollate *how, bool linefit, Err *e) {
    CHECK(count >= 1 && max_pulses >= 0, "%d events, %lld pulses", count, (long long)max_pulses);
    struct IceStepRoom *room = room_for(s, d, count);
    s->n_parts = s->n_bad = 0;
    for (int i = 0; i < count; i++) {
        int64_t id;
        bool known;
        const uint64_t index = first + (uint64_t)i;
        const IceEvent *event =
            ice_data_event(d, room->reader, held_out, index, &id, &known, d->skip_bad ? NULL : e);
        if (event)
            keep_event(room, event, id, known, how);
        else if (d->skip_bad)
            s->bad[s->n_bad++] = index;
        else
            return -1;
    }
    s->n_events = room->n;
    sort_events(room);
    for (int from = 0, to; from < room->n; from = to) {
        int64_t n_pulses = room->sorted[from]->cost;
        for (to = from + 1; to < room->n; to++) {
            n_pulses += room->sorted[to]->cost;
            if (max_pulses && n_pulses > max_pulses) break;
        }
        make_part(s, d->sim, from, to, how, linefit);
    }
    return 0;
}

void ice_step_free(IceStepBatch *s) {
    for (int i = 0; i < s->cap_parts; i++) ice_batch_free(&s->part[i]);
    free(s->part);
    free(s->bad);
    if (s->room) {
        ice_reader_free(s->room->reader);
        ice_event_free(&s->room->pool);
        free(s->room->event);
        free(s->room->sorted);
        free(s->room->part);
        free(s->room);
    }
    memset(s, 0, sizeof *s);
}
