/* What the loader of train_icecube can deliver: events in random order from shards, grouped and
 * collated into steps by its one thread, for both models; and the simulator in the place of the
 * shards. The shards are made for it, of events as icecube_law.h has them, in a folder that is
 * removed afterwards.
 *
 *   ./bench_loader [--batch N] [--events N] [--max-pulses N] [--repeats N] [--json FILE] */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/icecube_data.h"
#include "dev/bench/icecube_law.h"
#include "llmc_like/fsio.h"
#include "llmc_like/loader.h"
#include "llmc_like/options.h"
#include "llmc_like/run.h"
#include "test/scratch.h"
#include "test/shard_files.h"

enum { MAX_REPEATS = 100 };

typedef struct Bench {
    int batch, events, max_pulses, repeats;
    const char *json;
} Bench;

typedef struct Pulse {
    int32_t time;
    int16_t sensor;
} Pulse;

static int by_time(const void *a, const void *b) {
    const Pulse *x = a, *y = b;
    return (x->time > y->time) - (x->time < y->time);
}

/* An event's pulses in the order of their times; how many. */
static int make_event(RngStream *rng, Pulse *pulse) {
    int n = 0;
    for (int doms = law_doms(rng); doms > 0; doms--) {
        const int16_t sensor = (int16_t)rng_next_below(rng, ICE_SENSORS);
        for (int k = law_pulses(rng); k > 0; k--)
            pulse[n++] = (Pulse){law_between(rng, 6000, 21000), sensor};
    }
    qsort(pulse, (size_t)n, sizeof *pulse, by_time);
    return n;
}

static int write_shard(const char *folder, int number, int n_events, Err *e) {
    /* the mean is 97, so this suffices for any number of events */
    const size_t E = (size_t)n_events, P = E * 200 + LAW_MOST_PULSES;
    ShardArrays a = {.E = n_events,
                     .event_id = malloc(E * sizeof *a.event_id),
                     .offsets = malloc((E + 1) * sizeof *a.offsets),
                     .direction = malloc(2 * E * sizeof *a.direction),
                     .sensor = malloc(P * sizeof *a.sensor),
                     .time = malloc(P * sizeof *a.time),
                     .charge = malloc(P * sizeof *a.charge),
                     .auxiliary = malloc(P * sizeof *a.auxiliary)};
    CHECK(a.event_id && a.offsets && a.direction && a.sensor && a.time && a.charge && a.auxiliary,
          "no memory for %d events", n_events);
    RngStream rng = {{1, (uint32_t)number, RNG_TEST}, 0};
    a.offsets[0] = 0;
    for (int i = 0; i < n_events; i++) {
        Pulse pulse[LAW_MOST_PULSES];
        const int n = make_event(&rng, pulse);
        CHECK((size_t)(a.P + n) <= P, "%d events have more than %zu pulses", n_events, P);
        for (int k = 0; k < n; k++, a.P++) {
            a.sensor[a.P] = pulse[k].sensor;
            a.time[a.P] = pulse[k].time;
            a.charge[a.P] = 0.1f + 3.0f * rng_next_uniform(&rng);
            a.auxiliary[a.P] = rng_next_below(&rng, 10) < 7;
        }
        a.event_id[i] = i;
        a.offsets[i + 1] = a.P;
        a.direction[2 * i] = 6.28f * rng_next_uniform(&rng);
        a.direction[2 * i + 1] = 3.14f * rng_next_uniform(&rng);
    }
    int status = geometry_write(folder, e) || shard_write(folder, number, &a, e) ? -1 : 0;
    void *array[] = {a.event_id, a.offsets, a.direction, a.sensor, a.time, a.charge, a.auxiliary};
    for (size_t i = 0; i < sizeof array / sizeof *array; i++) free(array[i]);
    return status;
}

/* The loader's side: step `index` of these events; a buffer is a step. */
typedef struct Source {
    const IceData *data;
    const Bench *bench;
    IceCollate how;
} Source;

static int make_step(void *user, uint64_t index, void *buffer, Err *e) {
    Source *s = user;
    return ice_step_make(buffer, s->data, false, index * (uint64_t)s->bench->batch, s->bench->batch,
                         s->bench->max_pulses, &s->how, false, e);
}

static void free_step(void *buffer) { ice_step_free(buffer); }

typedef struct Rate {
    double events, pulses, doms; /* a second; as the models see them, after max_doms */
} Rate;

/* The median of some passes over n_events, after one to warm up. */
static int measure(const Bench *o, const IceData *d, int max_doms, int K, int n_events, Rate *rate,
                   Err *e) {
    static double seconds[MAX_REPEATS];
    Source source = {.data = d, .bench = o, .how = {d->xyz, 3e4, 500, max_doms, K}};
    const int n_steps = (n_events + o->batch - 1) / o->batch;
    double pulses = 0, doms = 0;
    Loader l;
    if (loader_init(&l, make_step, free_step, &source, sizeof(IceStepBatch), 0, 0, e)) return -1;
    int status = 0;
    for (int r = -1; r < o->repeats && !status; r++) {
        const double begin = now_s();
        for (int i = 0; i < n_steps && !status; i++) {
            const IceStepBatch *step = loader_next(&l, NULL, NULL, e);
            status = step ? 0 : -1;
            if (!step || r < 0) continue;
            for (int p = 0; p < step->n_parts; p++) {
                pulses += step->part[p].N;
                doms += step->part[p].M;
            }
        }
        if (r >= 0) seconds[r] = now_s() - begin;
    }
    loader_stop(&l);
    const double passes = median(seconds, o->repeats) * o->repeats;
    *rate =
        (Rate){n_steps * (double)o->batch * o->repeats / passes, pulses / passes, doms / passes};
    return status;
}

static const struct {
    const char *name, *key;
    bool sim;
    int max_doms, K;
} CASE[] = {{"shards, hierarchical", "shards_hierarchical", false, 2048, 0},
            {"shards, flat K 16", "shards_flat", false, 128, 16},
            {"simulator, hierarchical", "simulator_hierarchical", true, 2048, 0},
            {"simulator, flat K 16", "simulator_flat", true, 128, 16}};
enum { CASES = sizeof CASE / sizeof *CASE };

static int bench(const Bench *o, const char *folder, Err *e) {
    char text[2048];
    int used =
        snprintf(text, sizeof text, "{\"batch\": %d, \"max_pulses\": %d", o->batch, o->max_pulses);
    printf("%-26s %12s %12s %12s\n", "", "events/s", "pulses/s", "DOMs/s");
    if (write_shard(folder, 1, o->events, e)) return -1;
    for (int i = 0; i < CASES; i++) {
        IceData d;
        Rate rate;
        IceDataOptions options = {.source = CASE[i].sim ? "sim" : folder, .held_out = "none"};
        if (ice_data_open(&d, &options, e)) return -1;
        int n_events = CASE[i].sim ? o->events / 10 : o->events; /* it is that much slower */
        int status = measure(o, &d, CASE[i].max_doms, CASE[i].K, n_events, &rate, e);
        ice_data_close(&d);
        if (status) return -1;
        printf("%-26s %12.0f %12.0f %12.0f\n", CASE[i].name, rate.events, rate.pulses, rate.doms);
        used += snprintf(text + used, sizeof text - (size_t)used,
                         ", \"%s_events_per_s\": %.0f, \"%s_pulses_per_s\": %.0f", CASE[i].key,
                         rate.events, CASE[i].key, rate.pulses);
    }
    snprintf(text + used, sizeof text - (size_t)used, "}\n");
    return o->json ? atomic_save(o->json, text, strlen(text), e) : 0;
}

int main(int argc, char **argv) {
    Bench o;
    const Option table[] = {
        {"batch", OPT_INT, &o.batch, "256", 1, 65536, "events a step", NULL},
        {"events", OPT_INT, &o.events, "20000", 10, 50000, "in the shard", NULL},
        {"max-pulses", OPT_INT, &o.max_pulses, "16384", 0, 1e9, "a part of a step; 0: all", NULL},
        {"repeats", OPT_INT, &o.repeats, "5", 1, MAX_REPEATS, "medians are over these", NULL},
        {"json", OPT_STRING, &o.json, NULL, 0, 0, "write the figures to this file too", NULL},
    };
    Options options;
    Err e = {""};
    void *folder;
    options_init(&options, table, sizeof table / sizeof *table, false);
    int status = options_parse(&options, argc, argv, &e);
    if (!status && options.help) {
        options_help(&options, "bench_loader [OPTIONS]", stdout);
    } else if (!status && scratch_setup(&folder)) {
        status = err_set(&e, "no folder can be made in /tmp for the shards; make room there");
    } else if (!status) {
        status = bench(&o, folder, &e);
        scratch_teardown(&folder);
    }
    options_free(&options);
    if (status) fprintf(stderr, "%s\n", e.text);
    return status ? 1 : 0;
}
