#include "data/icecube_batch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "llmc_like/error.h"

static const float FIRST_PHOTON = 1e4f;         /* ns; subtracted from times */
static const float LOG10_THIRD = 0.144764827f;  /* log10(x) / 3 = LOG10_THIRD ln x */
static const float LEAST_CHARGE = 1e-8f;        /* added, in a pulse's features */
static const float LEAST_VECTOR_CHARGE = 1e-6f; /* the least, in a DOM's */

enum { ALIGN = 64, PULSE_FEATURES = 4, DOM_FEATURES = 4, VECTOR_FEATURES = 3 };
enum { MAX_PULSES = 1 << 29 }; /* so that four features each are counted with an int */
enum { HIT_WORDS = (ICE_SENSORS + 63) / 64 };

/* The counting sort of one event. Its 5160 counters are cleared by walking the bits of the sensors
 * that were hit, which gives them in order too, so an event costs what it has and not 5160. */
typedef struct Grouping {
    struct {
        int32_t count;    /* pulses; 0: not hit, or left out */
        int32_t next;     /* number in the batch of the pulse that comes next */
        int32_t row;      /* the DOM's number in the batch */
        float first_time; /* of the first pulse as they came, ns */
    } sensor[ICE_SENSORS];
    uint64_t hit[HIT_WORDS];  /* a bit a sensor */
    int16_t dom[ICE_SENSORS]; /* the sensors that are DOMs, by number ... */
    int n_doms;               /* ... and how many */
} Grouping;

static void grouping_init(Grouping *g) {
    memset(g->sensor, 0, sizeof g->sensor);
    memset(g->hit, 0, sizeof g->hit);
}

/* The k-th smallest of n distinct keys (Hoare's selection); shuffles them. */
static uint64_t select_key(uint64_t *key, int n, int k) {
    int low = 0, high = n - 1;
    while (low < high) {
        uint64_t pivot = key[low + (high - low) / 2];
        int i = low, j = high;
        while (i <= j) {
            while (key[i] < pivot) i++;
            while (key[j] > pivot) j--;
            if (i > j) break;
            uint64_t swap = key[i];
            key[i++] = key[j];
            key[j--] = swap;
        }
        if (k <= j)
            high = j;
        else if (k >= i)
            low = i;
        else
            break;
    }
    return key[k];
}

/* Rises with the time, then with the sensor's number: a float's bits rise with it once those of the
 * negative ones are turned over. */
static uint64_t dom_key(const Grouping *g, int sensor) {
    uint32_t bits;
    memcpy(&bits, &g->sensor[sensor].first_time, sizeof bits);
    bits ^= bits >> 31 ? UINT32_MAX : UINT32_C(1) << 31;
    return (uint64_t)bits << 32 | (uint32_t)sensor;
}

static void keep_earliest(Grouping *g, int max_doms) {
    uint64_t key[ICE_SENSORS];
    for (int d = 0; d < g->n_doms; d++) key[d] = dom_key(g, g->dom[d]);
    uint64_t last = select_key(key, g->n_doms, max_doms - 1);
    int kept = 0;
    for (int d = 0; d < g->n_doms; d++) {
        int s = g->dom[d];
        if (dom_key(g, s) <= last)
            g->dom[kept++] = (int16_t)s;
        else
            g->sensor[s].count = 0;
    }
    g->n_doms = kept;
}

/* Counts and orders the event's DOMs; returns how many there were before max_doms. */
static int group_event(Grouping *g, const IceEvent *e, int max_doms) {
    for (int i = 0; i < e->n; i++) {
        int s = e->sensor[i];
        if (g->sensor[s].count++) continue;
        g->sensor[s].first_time = e->time[i];
        g->hit[s / 64] |= UINT64_C(1) << s % 64;
    }
    g->n_doms = 0;
    for (int w = 0; w < HIT_WORDS; w++) {
        for (uint64_t bits = g->hit[w]; bits; bits &= bits - 1)
            g->dom[g->n_doms++] = (int16_t)(64 * w + __builtin_ctzll(bits));
        g->hit[w] = 0;
    }
    int n_doms = g->n_doms;
    if (max_doms && n_doms > max_doms) keep_earliest(g, max_doms);
    return n_doms;
}

static void forget_event(Grouping *g) {
    for (int d = 0; d < g->n_doms; d++) g->sensor[g->dom[d]].count = 0;
}

/* Gives the event's DOMs their rows, and their pulses their places. */
static void place_doms(IceBatch *b, Grouping *g, const IceCollate *how) {
    const float position_scale = (float)how->position_scale;
    for (int d = 0; d < g->n_doms; d++) {
        int s = g->dom[d], row = b->M++;
        b->sensor[row] = s;
        for (int c = 0; c < 3; c++) b->xyz[3 * row + c] = how->xyz[3 * s + c] / position_scale;
        b->dom_offsets[row] = g->sensor[s].next = b->N;
        b->dom_token[row] = b->N + row;
        g->sensor[s].row = row;
        b->N += g->sensor[s].count;
    }
}

static void fill_pulses(IceBatch *b, Grouping *g, const IceEvent *e, const IceCollate *how) {
    const float scale = (float)how->time_scale;
    for (int i = 0; i < e->n; i++) {
        int s = e->sensor[i];
        if (!g->sensor[s].count) continue;
        float *x = b->pulse + PULSE_FEATURES * g->sensor[s].next++;
        x[0] = (e->time[i] - FIRST_PHOTON) / scale;
        x[1] = logf(e->charge[i] + LEAST_CHARGE) * LOG10_THIRD;
        x[2] = (float)s / ICE_SENSORS;
        x[3] = e->auxiliary[i];
    }
}

static void fill_vectors(IceBatch *b, Grouping *g, const IceEvent *e, const IceCollate *how) {
    const float scale = (float)how->time_scale;
    const int64_t width = DOM_FEATURES + VECTOR_FEATURES * how->K;
    for (int d = 0; d < g->n_doms; d++) {
        int s = g->dom[d], row = g->sensor[s].row;
        float *x = b->dom_vector + row * width;
        memset(x, 0, sizeof *x * (size_t)width);
        memcpy(x, b->xyz + 3 * row, sizeof *x * 3);
        x[3] = log1pf((float)g->sensor[s].count) / 3.0f - 1.0f;
    }
    for (int i = 0; i < e->n; i++) {
        int s = e->sensor[i], row = g->sensor[s].row;
        if (!g->sensor[s].count) continue;
        int k = g->sensor[s].next++ - b->dom_offsets[row];
        if (k >= how->K) continue;
        float *x = b->dom_vector + row * width + DOM_FEATURES + VECTOR_FEATURES * k;
        x[0] = (e->time[i] - FIRST_PHOTON) / scale;
        x[1] = logf(fmaxf(e->charge[i], LEAST_VECTOR_CHARGE)) * LOG10_THIRD;
        x[2] = (float)e->auxiliary[i] - 0.5f;
    }
}

static void label_event(IceBatch *b, const IceEvent *e, int n_doms, const IceCollate *how,
                        bool linefit) {
    IceLabel *label = &b->label[b->B];
    *label = (IceLabel){
        .event_id = b->B, .known = true, .track = e->track, .n_pulses = e->n, .n_doms = n_doms};
    memcpy(label->direction, e->direction, sizeof label->direction);
    memcpy(b->direction + 3 * b->B, e->direction, sizeof label->direction);
    if (linefit) label->linefit_ok = ice_linefit(e, how->xyz, label->linefit);
}

/* Takes `bytes` off *at; counts them where there is no block yet. */
static void *carve(size_t *used, char *block, size_t bytes) {
    char *p = block ? block + *used : NULL;
    *used += (bytes + ALIGN - 1) / ALIGN * ALIGN;
    return p;
}

/* Points the arrays into the block (NULL: nowhere) for n events, M DOMs, N pulses; the bytes. */
static size_t lay_out(IceBatch *b, char *block, size_t n, size_t M, size_t N, size_t K) {
    size_t used = 0, width = DOM_FEATURES + VECTOR_FEATURES * K;
    b->pulse = K ? NULL : carve(&used, block, sizeof *b->pulse * N * PULSE_FEATURES);
    b->dom_vector = K ? carve(&used, block, sizeof *b->dom_vector * M * width) : NULL;
    b->xyz = carve(&used, block, sizeof *b->xyz * M * 3);
    b->sensor = carve(&used, block, sizeof *b->sensor * M);
    b->dom_offsets = carve(&used, block, sizeof *b->dom_offsets * (M + 1));
    b->dom_token = carve(&used, block, sizeof *b->dom_token * (M + 1));
    b->event_offsets = carve(&used, block, sizeof *b->event_offsets * (n + 1));
    b->event_token = carve(&used, block, sizeof *b->event_token * (n + 1));
    b->direction = carve(&used, block, sizeof *b->direction * n * 3);
    b->label = carve(&used, block, sizeof *b->label * n);
    return used;
}

/* Room for the events: at most as many DOMs as they have pulses and may keep. */
static void reserve(IceBatch *b, const IceEvent *const *e, int n, const IceCollate *how) {
    int most = how->max_doms && how->max_doms < ICE_SENSORS ? how->max_doms : ICE_SENSORS;
    int64_t M = 0, N = 0;
    for (int i = 0; i < n; i++) {
        CHECK(e[i]->n >= 1, "event %d of %d has %d pulses", i, n, e[i]->n);
        M += e[i]->n < most ? e[i]->n : most;
        N += e[i]->n;
    }
    CHECK(N < MAX_PULSES, "%lld pulses in a batch", (long long)N);
    size_t need = lay_out(b, NULL, (size_t)n, (size_t)M, (size_t)N, (size_t)how->K);
    if (need > b->block_bytes) {
        free(b->block);
        b->block_bytes = need + need / 2 / ALIGN * ALIGN;
        b->block = aligned_alloc(ALIGN, b->block_bytes);
        CHECK(b->block, "no memory for a batch of %zu bytes", b->block_bytes);
    }
    lay_out(b, b->block, (size_t)n, (size_t)M, (size_t)N, (size_t)how->K);
}

void ice_batch_make(IceBatch *b, const IceEvent *const *e, int n, const IceCollate *how,
                    bool linefit) {
    CHECK(n >= 1 && how->K >= 0 && how->max_doms >= 0 && how->time_scale > 0 &&
              how->position_scale > 0,
          "%d events, K %d, max_doms %d, scales %g and %g", n, how->K, how->max_doms,
          how->time_scale, how->position_scale);
    Grouping g;
    grouping_init(&g);
    reserve(b, e, n, how);
    b->M = b->N = 0;
    for (b->B = 0; b->B < n; b->B++) {
        const IceEvent *event = e[b->B];
        b->event_offsets[b->B] = b->M;
        b->event_token[b->B] = b->M + b->B;
        int n_doms = group_event(&g, event, how->max_doms);
        place_doms(b, &g, how);
        (how->K ? fill_vectors : fill_pulses)(b, &g, event, how);
        label_event(b, event, n_doms, how, linefit);
        forget_event(&g);
    }
    b->event_offsets[n] = b->M;
    b->event_token[n] = b->M + n;
    b->dom_offsets[b->M] = b->N;
    b->dom_token[b->M] = b->N + b->M;
}

void ice_batch_free(IceBatch *b) {
    free(b->block);
    *b = (IceBatch){0};
}

void ice_event_size(const IceEvent *e, const IceCollate *how, int *n_doms, int *n_pulses) {
    Grouping g;
    grouping_init(&g);
    group_event(&g, e, how->max_doms);
    *n_doms = g.n_doms;
    *n_pulses = 0;
    for (int d = 0; d < g.n_doms; d++) *n_pulses += g.sensor[g.dom[d]].count;
}

void ice_event_reserve(IceEvent *e, int capacity) {
    if (capacity <= e->capacity) return;
    int64_t grown = e->capacity + (int64_t)e->capacity / 2;
    if (grown < capacity) grown = capacity;
    if (grown > INT32_MAX) grown = INT32_MAX;
    size_t n = (size_t)grown;
    e->sensor = realloc(e->sensor, n * sizeof *e->sensor);
    e->time = realloc(e->time, n * sizeof *e->time);
    e->charge = realloc(e->charge, n * sizeof *e->charge);
    e->auxiliary = realloc(e->auxiliary, n * sizeof *e->auxiliary);
    CHECK(e->sensor && e->time && e->charge && e->auxiliary, "no memory for %zu pulses", n);
    e->capacity = (int)grown;
}

void ice_event_free(IceEvent *e) {
    free(e->sensor);
    free(e->time);
    free(e->charge);
    free(e->auxiliary);
    *e = (IceEvent){0};
}
