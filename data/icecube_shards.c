#include "data/icecube_shards.h"

#include <ctype.h>
#include <dirent.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "data/icecube_batch.h"

enum { PATH_SIZE = 4096 };

static const double PI = 3.14159265358979;
static const double ANGLE_ROUNDING = 1e-6; /* rad: pi and 2 pi as float32 are that much above */

/* The folder. */

static bool has_parquet(const char *folder) {
    DIR *dir = opendir(folder);
    bool found = false;
    for (struct dirent *f; dir && !found && (f = readdir(dir));) {
        const char *end = strrchr(f->d_name, '.');
        found = end && !strcmp(end, ".parquet");
    }
    if (dir) closedir(dir);
    return found;
}

static int explain_empty(const char *folder, Err *e) {
    if (has_parquet(folder))
        return err_set(e,
                       "%s: Kaggle's parquet files are there, expected the shards made of them; "
                       "run build/python/bin/python data/icecube_convert.py %s shards, and name "
                       "\"shards\" here",
                       folder, folder);
    return err_set(e,
                   "%s: no folder batch_K is in it, expected the shards that "
                   "data/icecube_convert.py makes; name their folder, or \"sim\" for the built-in "
                   "simulator",
                   folder);
}

/* The number of a name batch_K, or -1. */
static int batch_number(const char *name) {
    int number, end = 0;
    if (strncmp(name, "batch_", 6) || !isdigit((unsigned char)name[6])) return -1;
    return sscanf(name + 6, "%9d%n", &number, &end) == 1 && !name[6 + end] ? number : -1;
}

static int by_number(const void *a, const void *b) {
    const IceShard *x = a, *y = b;
    return (x->number > y->number) - (x->number < y->number);
}

/* Makes s->shard of the folders batch_K, sorted, not yet open. */
static int list_shards(IceShards *s, const char *folder, Err *e) {
    DIR *dir = opendir(folder);
    if (!dir)
        return err_set(e,
                       "%s: no folder that can be read; name one with the shards that "
                       "data/icecube_convert.py makes, or \"sim\" for the built-in simulator",
                       folder);
    int capacity = 0, status = 0;
    for (struct dirent *f; !status && (f = readdir(dir));) {
        int number = batch_number(f->d_name);
        if (number < 0) continue;
        if (s->n == capacity) {
            capacity = capacity ? 2 * capacity : 16;
            s->shard = realloc(s->shard, (size_t)capacity * sizeof *s->shard);
            CHECK(s->shard, "no memory for %d batches", capacity);
        }
        s->shard[s->n++] = (IceShard){.number = number};
        if (f->d_name[6] == '0' && f->d_name[7])
            status = err_set(e,
                             "%s/%s: expected the name batch_%d; rename it, or remove it where "
                             "both are there",
                             folder, f->d_name, number);
    }
    closedir(dir);
    if (status) return -1;
    if (!s->n) return explain_empty(folder, e);
    qsort(s->shard, (size_t)s->n, sizeof *s->shard, by_number);
    return 0;
}

/* One array, of `rows` (-1: any number) and, with columns > 0, two dimensions. */
static int open_array(NpyArray *a, const char *folder, const char *name, NpyType dtype,
                      int64_t rows, int64_t columns, Err *e) {
    char path[PATH_SIZE], shape[NPY_SHAPE_TEXT], expected[NPY_SHAPE_TEXT];
    if (snprintf(path, sizeof path, "%s/%s.npy", folder, name) >= PATH_SIZE)
        return err_set(e, "%.60s...: the path is too long; use a shorter one", folder);
    if (npy_open(path, a, e)) return -1;
    if (a->dtype != dtype)
        return err_set(e, "%s: dtype %s, expected %s; convert that batch file again", path,
                       npy_name(a->dtype), npy_name(dtype));
    const NpyArray want = {.ndim = columns ? 2 : 1,
                           .shape = {rows < 0 && a->ndim ? a->shape[0] : rows, columns}};
    bool good = a->ndim == want.ndim;
    for (int i = 0; good && i < want.ndim; i++) good = a->shape[i] == want.shape[i];
    if (good) return 0;
    return err_set(e, "%s: shape %s, expected %s; convert that batch file again", path,
                   npy_shape_text(a, shape), npy_shape_text(&want, expected));
}

static int check_offsets(const IceShard *s, const char *folder, Err *e) {
    const int64_t *offset = s->offsets.data;
    bool good = offset[0] == 0 && offset[s->n_events] == s->n_pulses;
    for (int64_t i = 0; i < s->n_events; i++) good &= offset[i] <= offset[i + 1];
    if (good) return 0;
    int64_t at = 0;
    if (offset[0] == 0) {
        at = 1;
        while (at < s->n_events && offset[at - 1] <= offset[at]) at++;
    }
    return err_set(e,
                   "%s/offsets.npy: number %lld is %lld, expected 0 first, %lld (the pulses) last, "
                   "and none below the one before it; convert that batch file again",
                   folder, (long long)at, (long long)offset[at], (long long)s->n_pulses);
}

static int open_shard(IceShard *s, const char *shards, Err *e) {
    char folder[PATH_SIZE], done[PATH_SIZE + 8];
    if (snprintf(folder, sizeof folder, "%s/batch_%d", shards, s->number) >= PATH_SIZE)
        return err_set(e, "%.60s...: the path is too long; use a shorter one", shards);
    snprintf(done, sizeof done, "%s/done", folder);
    if (access(done, F_OK))
        return err_set(e,
                       "%s: unfinished, there is no file \"done\" in it; run the converter again, "
                       "which finishes it, or remove it",
                       folder);
    if (open_array(&s->event_id, folder, "event_id", NPY_I8, -1, 0, e)) return -1;
    const int64_t E = s->n_events = s->event_id.numel;
    if (open_array(&s->sensor, folder, "sensor_id", NPY_I2, -1, 0, e)) return -1;
    const int64_t P = s->n_pulses = s->sensor.numel;
    if (open_array(&s->offsets, folder, "offsets", NPY_I8, E + 1, 0, e) ||
        open_array(&s->direction, folder, "direction", NPY_F4, E, 2, e) ||
        open_array(&s->time, folder, "time", NPY_I4, P, 0, e) ||
        open_array(&s->charge, folder, "charge", NPY_F4, P, 0, e) ||
        open_array(&s->auxiliary, folder, "auxiliary", NPY_U1, P, 0, e))
        return -1;
    if (!E) return err_set(e, "%s: no events are in it; remove it", folder);
    return check_offsets(s, folder, e);
}

static int open_geometry(IceShards *s, const char *folder, Err *e) {
    if (open_array(&s->geometry, folder, "geometry", NPY_F4, ICE_SENSORS, 3, e)) return -1;
    s->xyz = s->geometry.data;
    for (int i = 0; i < 3 * ICE_SENSORS; i++)
        if (!isfinite(s->xyz[i]))
            return err_set(e,
                           "%s/geometry.npy: sensor %d has a coordinate %g, expected metres; "
                           "convert sensor_geometry.csv again",
                           folder, i / 3, (double)s->xyz[i]);
    return 0;
}

static int open_checked(IceShards *s, const char *folder, Err *e) {
    if (list_shards(s, folder, e) || open_geometry(s, folder, e)) return -1;
    for (int i = 0; i < s->n; i++) {
        if (open_shard(&s->shard[i], folder, e)) return -1;
        s->n_events += s->shard[i].n_events;
    }
    return 0;
}

int ice_shards_open(IceShards *s, const char *folder, Err *e) {
    *s = (IceShards){0};
    if (!open_checked(s, folder, e)) return 0;
    ice_shards_close(s);
    return -1;
}

void ice_shards_close(IceShards *s) {
    for (int i = 0; i < s->n; i++) {
        IceShard *shard = &s->shard[i];
        NpyArray *array[] = {&shard->event_id, &shard->offsets, &shard->direction, &shard->sensor,
                             &shard->time,     &shard->charge,  &shard->auxiliary};
        for (size_t k = 0; k < sizeof array / sizeof *array; k++) npy_close(array[k]);
    }
    free(s->shard);
    npy_close(&s->geometry);
    *s = (IceShards){0};
}

/* Events. */

/* An event's part of the arrays. */
typedef struct Pulses {
    int64_t n;
    const int16_t *sensor;
    const int32_t *time;
    const float *charge;
    const uint8_t *auxiliary;
} Pulses;

static Pulses pulses_of(const IceShard *s, int64_t i) {
    const int64_t *offset = s->offsets.data, at = offset[i];
    return (Pulses){.n = offset[i + 1] - at,
                    .sensor = (const int16_t *)s->sensor.data + at,
                    .time = (const int32_t *)s->time.data + at,
                    .charge = (const float *)s->charge.data + at,
                    .auxiliary = (const uint8_t *)s->auxiliary.data + at};
}

static bool good_sensor(int16_t sensor) { return sensor >= 0 && sensor < ICE_SENSORS; }
static bool good_charge(float charge) { return charge >= 0 && charge <= FLT_MAX; }

/* Whether some pulse is at fault, with nothing in the loops that keeps them from being vectors. */
static bool any_fault(const Pulses *p) {
    int bad = 0;
    for (int64_t i = 0; i < p->n; i++) bad |= !good_sensor(p->sensor[i]);
    for (int64_t i = 0; i < p->n; i++) bad |= p->time[i] < 0;
    for (int64_t i = 0; i < p->n; i++) bad |= !good_charge(p->charge[i]);
    for (int64_t i = 0; i < p->n; i++) bad |= p->auxiliary[i] > 1;
    return bad;
}

static const char *describe_fault(const Pulses *p, char buf[ICE_FAULT_TEXT]) {
    int64_t i = 0;
    while (good_sensor(p->sensor[i]) && p->time[i] >= 0 && good_charge(p->charge[i]) &&
           p->auxiliary[i] <= 1)
        i++;
    int n = snprintf(buf, ICE_FAULT_TEXT, "its pulse %lld has ", (long long)i);
    char *rest = buf + n;
    size_t size = ICE_FAULT_TEXT - (size_t)n;
    if (!good_sensor(p->sensor[i]))
        snprintf(rest, size, "sensor %d, expected 0 to %d", p->sensor[i], ICE_SENSORS - 1);
    else if (p->time[i] < 0)
        snprintf(rest, size, "time %d, expected at least 0 ns", p->time[i]);
    else if (!good_charge(p->charge[i]))
        snprintf(rest, size, "charge %g, expected a finite number of at least 0",
                 (double)p->charge[i]);
    else
        snprintf(rest, size, "auxiliary %d, expected 0 or 1", p->auxiliary[i]);
    return buf;
}

static bool direction_known(const float *angle) { return !isnan(angle[0]) && !isnan(angle[1]); }

static bool good_direction(const float *angle) {
    const double azimuth = angle[0], zenith = angle[1];
    if (isnan(azimuth) && isnan(zenith)) return true;
    return azimuth >= 0 && azimuth <= 2 * PI + ANGLE_ROUNDING && zenith >= 0 &&
           zenith <= PI + ANGLE_ROUNDING;
}

const char *ice_shard_fault(const IceShard *s, int64_t i, char buf[ICE_FAULT_TEXT]) {
    CHECK(i >= 0 && i < s->n_events, "event %lld of %lld", (long long)i, (long long)s->n_events);
    const Pulses p = pulses_of(s, i);
    const float *angle = (const float *)s->direction.data + 2 * i;
    if (p.n < 1 || p.n > ICE_SHARD_MAX_PULSES) {
        snprintf(buf, ICE_FAULT_TEXT, "it has %lld pulses, expected 1 to %d", (long long)p.n,
                 ICE_SHARD_MAX_PULSES);
        return buf;
    }
    if (any_fault(&p)) return describe_fault(&p, buf);
    if (good_direction(angle)) return NULL;
    snprintf(buf, ICE_FAULT_TEXT,
             "it has azimuth %g and zenith %g, expected 0 to 2 pi and 0 to pi, or neither",
             (double)angle[0], (double)angle[1]);
    return buf;
}

void ice_shard_event(const IceShard *s, int64_t i, IceEvent *e, int64_t *id, bool *known) {
    const Pulses p = pulses_of(s, i);
    const float *angle = (const float *)s->direction.data + 2 * i;
    ice_event_reserve(e, (int)p.n);
    memcpy(e->sensor, p.sensor, (size_t)p.n * sizeof *p.sensor);
    memcpy(e->charge, p.charge, (size_t)p.n * sizeof *p.charge);
    memcpy(e->auxiliary, p.auxiliary, (size_t)p.n * sizeof *p.auxiliary);
    for (int64_t k = 0; k < p.n; k++) e->time[k] = (float)p.time[k];
    *id = ((const int64_t *)s->event_id.data)[i];
    *known = direction_known(angle);
    *e = (IceEvent){.n = (int)p.n,
                    .capacity = e->capacity,
                    .sensor = e->sensor,
                    .time = e->time,
                    .charge = e->charge,
                    .auxiliary = e->auxiliary};
    if (!*known) return;
    const double azimuth = angle[0], zenith = angle[1];
    e->direction[0] = (float)(cos(azimuth) * sin(zenith));
    e->direction[1] = (float)(sin(azimuth) * sin(zenith));
    e->direction[2] = (float)cos(zenith);
}
