#include "data/icecube_sim.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "llmc_like/error.h"

static const float LIGHT_SPEED = 0.2998f;    /* m/ns */
static const float INDEX = 1.32f;            /* of refraction */
static const float CHERENKOV = 0.710349f;    /* rad: 40.7 degrees */
static const float SCATTERING = 33.3f;       /* m, Pandel's lambda */
static const float SCATTERING_TIME = 557.0f; /* ns, Pandel's tau */
static const float ABSORPTION = 98.0f;       /* m, lambda_a */
static const float VERTEX_RANGE = 450.0f;    /* m */
static const double NOISE_PER_NS = 500e-9;   /* of one sensor */
static const float MERGE_NS = 15.0f;         /* hits closer than this are one pulse */
static const float COINCIDENCE_NS = 1000.0f; /* between pulses ... */
enum { MAX_ATTEMPTS = 10000 };
enum { COINCIDENCE_SENSORS = 2, TRIGGER_PULSES = 8 }; /* ... and places on the string */

struct IceSim {
    uint64_t seed;
    float xyz[3 * ICE_SENSORS];
    float x[ICE_SENSORS], y[ICE_SENSORS], z[ICE_SENSORS]; /* the same, for vector loops */
};

/* A photon or noise hit, before pulses are made. */
typedef struct Hit {
    float time;
    int32_t sensor;
} Hit;

struct IceSimWork {
    float mean[ICE_SENSORS];   /* photo-electrons expected */
    int32_t last[ICE_SENSORS]; /* the sensor's newest pulse, or -1 */
    Hit hit[ICE_SIM_MAX_PULSES], sorted[ICE_SIM_MAX_PULSES];
    double photon_time[ICE_SIM_MAX_PULSES]; /* since the particle was at the vertex */
};

IceSim *ice_sim_new(uint64_t seed, const float *xyz) {
    IceSim *sim = malloc(sizeof *sim);
    CHECK(sim, "no memory for a simulator of %zu bytes", sizeof *sim);
    sim->seed = seed;
    if (xyz)
        memcpy(sim->xyz, xyz, sizeof sim->xyz);
    else
        ice_geometry_builtin(sim->xyz);
    for (int i = 0; i < ICE_SENSORS; i++) {
        sim->x[i] = sim->xyz[3 * i];
        sim->y[i] = sim->xyz[3 * i + 1];
        sim->z[i] = sim->xyz[3 * i + 2];
    }
    return sim;
}

void ice_sim_free(IceSim *sim) { free(sim); }

IceSimWork *ice_sim_work_new(void) {
    IceSimWork *work = malloc(sizeof *work);
    CHECK(work, "no memory for a work area of %zu bytes", sizeof *work);
    return work;
}

void ice_sim_work_free(IceSimWork *work) { free(work); }

const float *ice_sim_positions(const IceSim *sim) { return sim->xyz; }

/* Light. What the vector loops over sensors and the single photons share. */

typedef struct Source {
    float px, py, pz; /* vertex, m    */
    float vx, vy, vz; /* unit vector  */
    float energy;
    bool track;
} Source;

typedef struct Light {
    float d_eff;   /* m */
    float arrival; /* ns after the particle was at the vertex, unscattered */
    float mean;    /* photo-electrons */
} Light;

/* e^x for x <= 0 to 3e-7, written so that the compiler makes vectors of it: x log2(e) split into a
 * whole number, which becomes the exponent, and a rest in +-0.5 for 2^r's Taylor polynomial. */
static inline float exp_negative(float x) {
    float y = x * 1.44269504f;
    y = y > -125.0f ? y : -125.0f;
    int whole = (int)(y - 0.5f); /* y <= 0: the nearest */
    float r = (y - (float)whole) * 0.693147181f;
    float p = 1.0f + r * (1.0f + r * (0.5f + r * (0.166666667f +
                                                  r * (0.0416666667f + r * (0.00833333333f +
                                                                            r * 0.00138888889f)))));
    union {
        int32_t i;
        float f;
    } scale = {.i = (whole + 127) * (1 << 23)};
    return p * scale.f;
}

/* arccos to 7e-5 rad (Abramowitz and Stegun 4.4.45, extended to negative x). */
static inline float arccos(float x) {
    float a = x < 0 ? -x : x;
    a = a < 1.0f ? a : 1.0f;
    float y =
        sqrtf(1.0f - a) * (1.5707288f + a * (-0.2121144f + a * (0.0742610f - a * 0.0187293f)));
    return x < 0 ? 3.14159265f - y : y;
}

static inline float effective_distance(float d, float cos_eta) {
    return 3.1f - 3.9f * cos_eta + 4.6f * cos_eta * cos_eta + 0.84f * d;
}

static inline Light track_light(const Source *o, float x, float y, float z) {
    const float cos_c = 0.758134f, sin_c = 0.652098f, tan_c = 0.860135f; /* of CHERENKOV */
    float rx = x - o->px, ry = y - o->py, rz = z - o->pz;
    float s = rx * o->vx + ry * o->vy + rz * o->vz;
    rx -= s * o->vx; /* now perpendicular to the track */
    ry -= s * o->vy;
    rz -= s * o->vz;
    float d = sqrtf(rx * rx + ry * ry + rz * rz + 1e-6f);
    float d_eff = effective_distance(d, cos_c * o->vz + sin_c * rz / d);
    return (Light){.d_eff = d_eff,
                   .arrival = (s + d * tan_c) / LIGHT_SPEED,
                   .mean = 3.0f * o->energy * exp_negative(-d_eff / ABSORPTION) / d_eff};
}

static inline Light cascade_light(const Source *o, float x, float y, float z) {
    float rx = x - o->px, ry = y - o->py, rz = z - o->pz;
    float d = sqrtf(rx * rx + ry * ry + rz * rz + 1e-6f);
    float d_eff = effective_distance(d, rz / d);
    float off = arccos((rx * o->vx + ry * o->vy + rz * o->vz) / d) - CHERENKOV;
    float w = exp_negative(off < 0 ? off * 2.0f : off * -2.0f) + 0.15f;
    return (Light){
        .d_eff = d_eff,
        .arrival = d * INDEX / LIGHT_SPEED,
        .mean = 300.0f * o->energy * w * exp_negative(-d_eff / ABSORPTION) / (d_eff * d_eff)};
}

static void expect_light(const IceSim *sim, const Source *o, float *restrict mean) {
    const Source source = *o;
    if (source.track)
        for (int i = 0; i < ICE_SENSORS; i++)
            mean[i] = track_light(&source, sim->x[i], sim->y[i], sim->z[i]).mean;
    else
        for (int i = 0; i < ICE_SENSORS; i++)
            mean[i] = cascade_light(&source, sim->x[i], sim->y[i], sim->z[i]).mean;
}

static Source draw_source(RngStream *rng) {
    Source o;
    o.track = rng_next_below(rng, 2) == 0;
    o.energy = expf(4.60517019f * rng_next_uniform(rng)); /* 1 to 100 */
    o.px = VERTEX_RANGE * (2.0f * rng_next_uniform(rng) - 1.0f);
    o.py = VERTEX_RANGE * (2.0f * rng_next_uniform(rng) - 1.0f);
    o.pz = VERTEX_RANGE * (2.0f * rng_next_uniform(rng) - 1.0f);
    o.vz = 2.0f * rng_next_uniform(rng) - 1.0f;
    float azimuth = 6.28318531f * rng_next_uniform(rng), across = sqrtf(1.0f - o.vz * o.vz);
    o.vx = across * cosf(azimuth);
    o.vy = across * sinf(azimuth);
    return o;
}

/* Gamma with rate 1. Below shape 1, Gamma(a) = Gamma(a + 1) U^(1/a). */
static float draw_gamma(RngStream *rng, float shape) {
    float boost = 1.0f;
    if (shape < 1.0f) {
        boost = powf(rng_next_uniform(rng), 1.0f / shape);
        shape += 1.0f;
    }
    float d = shape - 1.0f / 3.0f, c = 1.0f / sqrtf(9.0f * d);
    for (;;) {
        float x = rng_next_normal(rng), v = 1.0f + c * x;
        if (v <= 0) continue;
        v = v * v * v;
        if (logf(rng_next_uniform(rng)) < 0.5f * x * x + d - d * v + d * logf(v))
            return boost * d * v;
    }
}

float ice_delay(RngStream *rng, float d_eff) {
    CHECK(d_eff > 0, "an effective distance of %g m", (double)d_eff);
    const float rate = 1.0f / SCATTERING_TIME + LIGHT_SPEED / INDEX / ABSORPTION;
    return draw_gamma(rng, d_eff / SCATTERING) / rate;
}

/* The step to the next point of a Poisson process of rate 1. */
static double next_gap(RngStream *rng) { return -log((double)rng_next_uniform(rng)); }

/* Photons: put the sensors' means end to end; the points of a Poisson process of rate 1 on that
 * axis fall on each sensor in the right numbers, independently. Fills hit[].sensor and
 * photon_time[]; returns how many, or -1 if they are too many. */
static int draw_photons(const IceSim *sim, const Source *o, RngStream *rng, IceSimWork *w) {
    int n = 0;
    double end = 0, point = next_gap(rng);
    for (int i = 0; i < ICE_SENSORS; i++) {
        end += (double)w->mean[i];
        if (point >= end) continue;
        float x = sim->x[i], y = sim->y[i], z = sim->z[i];
        Light light = o->track ? track_light(o, x, y, z) : cascade_light(o, x, y, z);
        for (; point < end; point += next_gap(rng)) {
            if (n == ICE_SIM_MAX_PULSES) return -1;
            w->hit[n].sensor = i;
            w->photon_time[n++] = (double)light.arrival + (double)ice_delay(rng, light.d_eff);
        }
    }
    return n;
}

/* Moves the photons so that the first is where it should be, and drops those after the window.
 * *zero becomes the time of the vertex. Returns how many hits stay. */
static int place_photons(IceSimWork *w, int n, float *zero) {
    double first = w->photon_time[0];
    for (int i = 1; i < n; i++) first = fmin(first, w->photon_time[i]);
    int kept = 0;
    for (int i = 0; i < n; i++) {
        double t = w->photon_time[i] - first + (double)ICE_FIRST_PHOTON_NS;
        if (t < (double)(ICE_WINDOW_START_NS + ICE_WINDOW_NS))
            w->hit[kept++] = (Hit){(float)t, w->hit[i].sensor};
    }
    *zero = (float)((double)ICE_FIRST_PHOTON_NS - first);
    return kept;
}

/* Noise: the windows of all sensors end to end, and one Poisson process along them. Appends to the
 * n hits; returns how many there are then, or -1. */
static int add_noise(RngStream *rng, IceSimWork *w, int n) {
    const double window = (double)ICE_WINDOW_NS;
    double point = next_gap(rng) / NOISE_PER_NS;
    for (; point < window * ICE_SENSORS; point += next_gap(rng) / NOISE_PER_NS) {
        if (n == ICE_SIM_MAX_PULSES) return -1;
        int sensor = (int)(point / window);
        w->hit[n++] = (Hit){ICE_WINDOW_START_NS + (float)(point - sensor * window), sensor};
    }
    return n;
}

/* w->hit sorted by time: bytes from the least significant (the bits of positive floats rise with
 * their values), so n passes of nothing but counting; the result is in hit again. */
static void sort_hits(IceSimWork *w, int n) {
    Hit *from = w->hit, *to = w->sorted;
    for (int shift = 0; shift < 32; shift += 8) {
        int at[257] = {0};
        for (int i = 0; i < n; i++) {
            uint32_t bits;
            memcpy(&bits, &from[i].time, sizeof bits);
            at[(bits >> shift & 255) + 1]++;
        }
        for (int b = 0; b < 256; b++) at[b + 1] += at[b];
        for (int i = 0; i < n; i++) {
            uint32_t bits;
            memcpy(&bits, &from[i].time, sizeof bits);
            to[at[bits >> shift & 255]++] = from[i];
        }
        Hit *swap = from;
        from = to;
        to = swap;
    }
}

static float draw_charge(RngStream *rng) {
    for (;;) {
        float q = 1.0f + 0.3f * rng_next_normal(rng);
        if (q > 0) return q;
    }
}

/* Clears `auxiliary` of pulse i and of those before it that are in local coincidence with it. Only
 * each sensor's newest pulse need be looked at: an older one within reach of i is within reach of
 * that newer one, and was marked with it. */
static void mark_coincidences(const IceSimWork *w, IceEvent *e, int i) {
    int sensor = e->sensor[i], top = sensor - sensor % ICE_SENSORS_PER_STRING;
    int from = sensor - COINCIDENCE_SENSORS, to = sensor + COINCIDENCE_SENSORS;
    if (from < top) from = top;
    if (to > top + ICE_SENSORS_PER_STRING - 1) to = top + ICE_SENSORS_PER_STRING - 1;
    for (int s = from; s <= to; s++) {
        int j = w->last[s];
        if (j >= 0 && e->time[i] - e->time[j] <= COINCIDENCE_NS)
            e->auxiliary[i] = e->auxiliary[j] = 0;
    }
}

/* Hits sorted by time become pulses. Returns how many of them have local coincidence. */
static int make_pulses(RngStream *rng, IceSimWork *w, int n_hits, IceEvent *e) {
    memset(w->last, -1, sizeof w->last);
    e->n = 0;
    for (int k = 0; k < n_hits; k++) {
        const Hit *h = &w->hit[k];
        float charge = draw_charge(rng);
        int newest = w->last[h->sensor];
        if (newest >= 0 && h->time - e->time[newest] < MERGE_NS) {
            e->charge[newest] += charge;
            continue;
        }
        int i = e->n++;
        e->sensor[i] = (int16_t)h->sensor;
        e->time[i] = h->time;
        e->charge[i] = charge;
        e->auxiliary[i] = 1;
        mark_coincidences(w, e, i);
        w->last[h->sensor] = i;
    }
    int coincident = 0;
    for (int i = 0; i < e->n; i++) coincident += !e->auxiliary[i];
    return coincident;
}

void ice_sim_event(const IceSim *sim, uint64_t number, IceSimWork *work, IceEvent *e) {
    CHECK(e->capacity >= ICE_SIM_MAX_PULSES, "room for %d pulses, not %d", e->capacity,
          ICE_SIM_MAX_PULSES);
    /* The key's step holds 32 bits of the number, the rest chooses the place in the stream. */
    RngStream rng = {{sim->seed, (uint32_t)number, RNG_GAME}, (number >> 32) << 32};
    for (int attempt = 0;; attempt++) {
        CHECK(attempt < MAX_ATTEMPTS, "none of %d events triggers with these sensor positions",
              attempt);
        Source o = draw_source(&rng);
        expect_light(sim, &o, work->mean);
        int n = draw_photons(sim, &o, &rng, work);
        if (n <= 0) continue;
        n = place_photons(work, n, &e->vertex_time);
        n = add_noise(&rng, work, n);
        if (n < 0) continue;
        sort_hits(work, n);
        if (make_pulses(&rng, work, n, e) < TRIGGER_PULSES) continue;
        e->direction[0] = -o.vx;
        e->direction[1] = -o.vy;
        e->direction[2] = -o.vz;
        e->vertex[0] = o.px;
        e->vertex[1] = o.py;
        e->vertex[2] = o.pz;
        e->track = o.track;
        e->energy = o.energy;
        return;
    }
}

bool ice_linefit(const IceEvent *e, const float *xyz, float direction[3]) {
    double weight = 0, time = 0, mean[3] = {0}, v[3] = {0}, spread = 0;
    for (int i = 0; i < e->n; i++) {
        if (e->auxiliary[i]) continue;
        weight += (double)e->charge[i];
        time += (double)e->charge[i] * (double)e->time[i];
        for (int c = 0; c < 3; c++)
            mean[c] += (double)e->charge[i] * (double)xyz[3 * e->sensor[i] + c];
    }
    for (int i = 0; i < e->n; i++) {
        if (e->auxiliary[i]) continue;
        double late = (double)e->time[i] - time / weight, q = (double)e->charge[i];
        spread += q * late * late;
        for (int c = 0; c < 3; c++)
            v[c] += q * late * ((double)xyz[3 * e->sensor[i] + c] - mean[c] / weight);
    }
    double length = sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]);
    bool defined = spread > 0 && length > 0;
    for (int c = 0; c < 3; c++)
        direction[c] = defined ? (float)(-v[c] / length) : c == 2 ? 1.0f : 0.0f;
    return defined;
}
