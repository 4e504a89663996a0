/* The simulated detector against the physics it claims, recomputed here in double from the formulas
 * of its header. Statistical tolerances are 4.5 standard deviations (one false alarm in 150,000)
 * and the seeds are fixed, so a test that passes once passes always. Where the trigger would bias a
 * sample, only events are taken that are bound to trigger, by their truth and not by their pulses.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "data/icecube_sim.h"

static const double RADIAN = 0.017453292519943295, C = 0.2998, SIGMAS = 4.5;
static const double DELAY_RATE = 1 / 557.0 + 0.2998 / 1.32 / 98; /* 1/ns */
static const double NOISE = 500e-9;                              /* 1/ns */

/* One simulator, its work area and an event, for each test. */
typedef struct Bench {
    IceSim *sim;
    IceSimWork *work;
    IceEvent e;
} Bench;

static IceEvent event_new(void) {
    enum { N = ICE_SIM_MAX_PULSES };
    IceEvent e = {.capacity = N,
                  .sensor = malloc(N * sizeof *e.sensor),
                  .time = malloc(N * sizeof *e.time),
                  .charge = malloc(N * sizeof *e.charge),
                  .auxiliary = malloc(N)};
    assert_true(e.sensor && e.time && e.charge && e.auxiliary);
    return e;
}

static void event_free(IceEvent *e) {
    free(e->sensor);
    free(e->time);
    free(e->charge);
    free(e->auxiliary);
}

static int bench_new(void **state) {
    Bench *b = calloc(1, sizeof *b);
    if (!b) return -1;
    b->sim = ice_sim_new(11, NULL);
    b->work = ice_sim_work_new();
    b->e = event_new();
    *state = b;
    return 0;
}

static int bench_free(void **state) {
    Bench *b = *state;
    ice_sim_free(b->sim);
    ice_sim_work_free(b->work);
    event_free(&b->e);
    free(b);
    return 0;
}

/* |got - expected| <= 4.5 sigma. */
static void assert_near(const char *what, double got, double expected, double sigma) {
    if (!(fabs(got - expected) <= SIGMAS * sigma))
        fail_msg("%s: %g where %g +- %g is expected", what, got, expected, sigma);
}

/* The regularised incomplete gamma function P(a, x), by its series. */
static double gamma_cdf(double a, double x) {
    if (x <= 0) return 0;
    double term = exp(a * log(x) - x - lgamma(a + 1)), sum = term;
    for (int k = 1; k < 1000 && term > 1e-14 * sum; k++) sum += term *= x / (a + k);
    return sum < 1 ? sum : 1;
}

typedef struct Expected {
    double mean, arrival, shape; /* pe; ns since the vertex; of the delay */
    int side; /* bit 0: light goes up; bit 1: backwards, at over 90 degrees to v */
} Expected;

/* Step by step as one would on paper: where the light starts, which way it goes. */
static Expected expect(const IceEvent *e, const float *sensor) {
    double v[3], r[3], from[3] = {0}, along = 0, length = 0, cos_psi = 0;
    const double theta = 40.7 * RADIAN;
    for (int c = 0; c < 3; c++) {
        v[c] = -(double)e->direction[c];
        r[c] = (double)sensor[c] - (double)e->vertex[c];
        along += r[c] * v[c];
        length += r[c] * r[c];
    }
    double across = sqrt(length - along * along), d = e->track ? across : sqrt(length);
    if (e->track)
        for (int c = 0; c < 3; c++) from[c] = v[c] * (along - across / tan(theta));
    double way = 0;
    for (int c = 0; c < 3; c++) way += (r[c] - from[c]) * (r[c] - from[c]);
    double cos_eta = (r[2] - from[2]) / sqrt(way);
    double d_eff = 3.1 - 3.9 * cos_eta + 4.6 * cos_eta * cos_eta + 0.84 * d;
    double dim = (double)e->energy * exp(-d_eff / 98) / d_eff;
    for (int c = 0; c < 3; c++) cos_psi += r[c] / sqrt(length) * v[c];
    double w = exp(-fabs(acos(cos_psi) - theta) / 0.5) + 0.15;
    return (Expected){.mean = e->track ? 3 * dim : 300 * w * dim / d_eff,
                      .arrival = e->track ? (along + d * tan(theta)) / C : d * 1.32 / C,
                      .shape = d_eff / 33.3,
                      .side = (cos_eta > 0) + 2 * (cos_psi < 0)};
}

/* expect() for all sensors; returns the sum of the means. From 60 pe on, triggering is certain. */
static double expect_all(const Bench *b, Expected *out) {
    const float *xyz = ice_sim_positions(b->sim);
    double total = 0;
    for (int i = 0; i < ICE_SENSORS; i++) {
        out[i] = expect(&b->e, xyz + 3 * i);
        total += out[i].mean;
    }
    return total;
}
static const double BRIGHT = 60;

static void built_in_sensors_stand_where_the_real_ones_do(void **state) {
    (void)state;
    static float xyz[3 * ICE_SENSORS];
    static const struct {
        int sensor;
        float x, y, z;
    } real[] = {{0 * 60, -256.1f, -521.1f, 496.0f},      {5 * 60 + 59, 361.0f, -422.8f, -504.7f},
                {30 * 60, -570.9f, -125.1f, 499.6f},     {35 * 60 + 10, 46.3f, -34.9f, 330.8f},
                {58 * 60 + 59, 505.3f, 257.9f, -498.0f}, {74 * 60, -347.9f, 451.5f, 502.0f},
                {77 * 60 + 59, 22.1f, 509.5f, -499.6f},  {78 * 60, 31.3f, -72.9f, 188.3f},
                {79 * 60 + 9, 72.4f, -66.6f, 97.5f},     {83 * 60 + 10, 57.2f, -105.5f, -161.4f},
                {84 * 60 + 59, -9.7f, -79.5f, -499.3f}};
    ice_geometry_builtin(xyz);
    for (size_t i = 0; i < sizeof real / sizeof *real; i++) {
        const float *p = xyz + 3 * real[i].sensor;
        float off = hypotf(hypotf(p[0] - real[i].x, p[1] - real[i].y), p[2] - real[i].z);
        if (off > 12) fail_msg("sensor %d is %g m off", real[i].sensor, (double)off);
    }
    for (int s = 0; s < ICE_STRINGS; s++) { /* strings are apart, and 125 m in the grid */
        double nearest = 1e9;
        for (int t = 0; t < (s < 78 ? 78 : ICE_STRINGS); t++)
            if (t != s)
                nearest = fmin(nearest, hypot((double)(xyz[180 * s] - xyz[180 * t]),
                                              (double)(xyz[180 * s + 1] - xyz[180 * t + 1])));
        if (s < 78)
            assert_true(fabs(nearest - 125) < 0.01);
        else
            assert_true(nearest > 30 && nearest < 75);
        double step = (double)(xyz[180 * s + 3 * 58 + 2] - xyz[180 * s + 3 * 59 + 2]);
        assert_true(fabs(step - (s < 78 ? 17.02 : 7.01)) < 0.001);
    }
}

static void delays_are_gamma_distributed(void **state) {
    (void)state;
    enum { N = 20000, BINS = 20 };
    static const double d_effs[] = {5, 33.3, 100, 450}; /* shapes 0.15, 1, 3, 13.5 */
    for (int k = 0; k < 4; k++) {
        RngStream rng = {{5, (uint32_t)k, RNG_TEST}, 0};
        double a = d_effs[k] / 33.3, sum = 0, square = 0, worst = 0;
        int in_bin[BINS] = {0}; /* of equal probability, by the distribution's own CDF */
        for (int i = 0; i < N; i++) {
            double t = (double)ice_delay(&rng, (float)d_effs[k]) * DELAY_RATE;
            sum += t;
            square += t * t;
            int bin = (int)(gamma_cdf(a, t) * BINS);
            in_bin[bin < BINS ? bin : BINS - 1]++;
        }
        double mean = sum / N, variance = square / N - mean * mean;
        assert_near("mean delay", mean, a, sqrt(a / N));
        /* the fourth moment of a gamma about its mean is 3 a^2 + 6 a */
        assert_near("variance of delays", variance, a, sqrt((2 * a * a + 6 * a) / N));
        for (int i = 0; i < BINS; i++) worst = fmax(worst, fabs(in_bin[i] - N / (double)BINS));
        assert_near("delays in a bin", worst, 0, sqrt(N / (double)BINS));
    }
}

static void pulses_keep_order_window_and_distance(void **state) {
    Bench *b = *state;
    static float newest[ICE_SENSORS];
    for (uint64_t number = 0; number < 400; number++) {
        ice_sim_event(b->sim, number, b->work, &b->e);
        const IceEvent *e = &b->e;
        memset(newest, 0, sizeof newest);
        bool first_photon = false;
        assert_in_range(e->n, 8, ICE_SIM_MAX_PULSES);
        for (int i = 0; i < e->n; i++) {
            assert_in_range(e->sensor[i], 0, ICE_SENSORS - 1);
            assert_true(e->time[i] >= 6000 && e->time[i] <= 21000 && e->charge[i] > 0);
            assert_true(i == 0 || e->time[i] >= e->time[i - 1]);
            assert_true(e->time[i] - newest[e->sensor[i]] >= 15);
            newest[e->sensor[i]] = e->time[i];
            /* up to 15 ns earlier where it joined a noise hit */
            first_photon |= e->time[i] > 10000 - 15 && e->time[i] <= 10000;
        }
        assert_true(first_photon);
        assert_true(e->energy >= 1 && e->energy <= 100.001f);
        for (int c = 0; c < 3; c++) assert_true(fabsf(e->vertex[c]) <= 450);
    }
}

static void coincidences_equal_brute_force(void **state) {
    Bench *b = *state;
    int with = 0, without = 0;
    for (uint64_t number = 0; number < 300; number++) {
        ice_sim_event(b->sim, number, b->work, &b->e);
        const IceEvent *e = &b->e;
        int coincident = 0;
        for (int i = 0; i < e->n; i++) {
            bool found = false;
            for (int j = 0; j < e->n; j++)
                found |= j != i && e->sensor[i] / 60 == e->sensor[j] / 60 &&
                         abs(e->sensor[i] - e->sensor[j]) <= 2 &&
                         fabsf(e->time[i] - e->time[j]) <= 1000;
            assert_int_equal(e->auxiliary[i], !found);
            coincident += found;
            without += !found;
        }
        assert_true(coincident >= 8); /* the trigger */
        with += coincident;
    }
    assert_true(with > 10000 && without > 10000);
}

/* Before the first photon the window shows the noise alone: its rate, its charge, spread evenly
 * over sensors and time. */
static void noise_has_its_rate_and_charge(void **state) {
    Bench *b = *state;
    static Expected x[ICE_SENSORS];
    const double span = 10000 - 15 - 6000; /* up to where a hit may have merged with a photon */
    double events = 0, pulses = 0, charge = 0, square = 0, time = 0, sensor = 0;
    for (uint64_t number = 0; number < 400; number++) {
        ice_sim_event(b->sim, number, b->work, &b->e);
        if (expect_all(b, x) < BRIGHT) continue;
        events++;
        for (int i = 0; i < b->e.n && (double)b->e.time[i] < 6000 + span; i++) {
            double q = (double)b->e.charge[i];
            pulses++;
            charge += q;
            square += q * q;
            time += ((double)b->e.time[i] - 6000) / span;
            sensor += (b->e.sensor[i] + 0.5) / ICE_SENSORS;
        }
    }
    double expected = events * ICE_SENSORS * NOISE * span, mean = charge / pulses;
    assert_true(expected > 2000);
    assert_near("noise pulses", pulses, expected, sqrt(expected));
    assert_near("mean charge", mean, 1, 0.3 / sqrt(pulses));
    assert_near("spread of charge", sqrt(square / pulses - mean * mean), 0.3,
                0.3 / sqrt(2 * pulses));
    assert_near("mean time of noise", time / pulses, 0.5, 1 / sqrt(12 * pulses));
    assert_near("mean sensor of noise", sensor / pulses, 0.5, 1 / sqrt(12 * pulses));
}

enum { BINS = 5 };
static const double EDGE[BINS + 1] = {-3000, 0, 750, 1500, 2500, 4000}; /* ns past the arrival */

typedef struct Residuals {
    double got[BINS], expected[BINS]; /* pulses on dim sensors by time past the arrival */
    double hit[4], expected_hit[4], variance[4]; /* sensors with a pulse at all, by side */
    double charge, expected_charge;              /* of all pulses */
} Residuals;

static bool is_dim(const IceEvent *e, const Expected *x) {
    double arrival = (double)e->vertex_time + x->arrival; /* all bins inside the window */
    return x->mean > 1e-4 && x->mean < 0.1 && arrival + EDGE[0] > 6000 &&
           arrival + EDGE[BINS] < 21000;
}

static void add_event(const IceEvent *e, const Expected *x, Residuals *r) {
    static char hit[ICE_SENSORS];
    memset(hit, 0, sizeof hit);
    for (int i = 0; i < e->n; i++) {
        int s = e->sensor[i];
        r->hit[x[s].side] += !hit[s];
        hit[s] = 1;
        r->charge += (double)e->charge[i];
        double late = (double)e->time[i] - (double)e->vertex_time - x[s].arrival;
        if (is_dim(e, &x[s]))
            for (int k = 0; k < BINS; k++) r->got[k] += late >= EDGE[k] && late < EDGE[k + 1];
    }
    for (int s = 0; s < ICE_SENSORS; s++) {
        double arrival = (double)e->vertex_time + x[s].arrival;
        double seen = gamma_cdf(x[s].shape, (21000 - arrival) * DELAY_RATE);
        double hits = x[s].mean * seen + NOISE * 15000, p = 1 - exp(-hits);
        r->expected_charge += hits;
        r->expected_hit[x[s].side] += p;
        r->variance[x[s].side] += p * (1 - p);
        if (!is_dim(e, &x[s])) continue;
        for (int k = 0; k < BINS; k++)
            r->expected[k] += NOISE * (EDGE[k + 1] - EDGE[k]) +
                              x[s].mean * (gamma_cdf(x[s].shape, EDGE[k + 1] * DELAY_RATE) -
                                           gamma_cdf(x[s].shape, EDGE[k] * DELAY_RATE));
    }
}

/* Numbers and times of photons, of tracks and of cascades: sensors hit above and below, before and
 * behind; all charge; and, where light is so dim that pulses do not merge, pulses by their time
 * past the unscattered arrival. Half a per cent is for merging and the float32 of the simulator. */
static void light_comes_as_the_formulas_say(void **state) {
    Bench *b = *state;
    static Expected x[ICE_SENSORS];
    static Residuals r[2];
    memset(r, 0, sizeof r);
    for (uint64_t number = 1000; number < 1900; number++) {
        ice_sim_event(b->sim, number, b->work, &b->e);
        if (expect_all(b, x) >= BRIGHT) add_event(&b->e, x, &r[b->e.track]);
    }
    for (int kind = 0; kind < 2; kind++) {
        const char *name = kind ? "a track's pulses in a bin" : "a cascade's pulses in a bin";
        for (int k = 0; k < BINS; k++) {
            double n = r[kind].expected[k];
            assert_true(n > 50);
            assert_near(name, r[kind].got[k], n, sqrt(n) + 0.005 / SIGMAS * n);
        }
        for (int side = 0; side < 4; side++) {
            double n = r[kind].expected_hit[side];
            assert_true(n > 500);
            assert_near("sensors hit", r[kind].hit[side], n,
                        sqrt(r[kind].variance[side]) + 0.005 / SIGMAS * n);
        }
        double n = r[kind].expected_charge; /* each hit 1 +- 0.3 */
        assert_near("charge", r[kind].charge, n, sqrt(1.09 * n) + 0.005 / SIGMAS * n);
    }
}

/* Above E = 50 and within 300 m of the centre all events trigger, so these are as they were
 * drawn. */
static void sources_are_uniform(void **state) {
    Bench *b = *state;
    double n = 0, tracks = 0, log_energy = 0, mean[3] = {0}, square[3] = {0}, vertex[3] = {0};
    for (uint64_t number = 0; number < 6000; number++) {
        ice_sim_event(b->sim, number, b->work, &b->e);
        const IceEvent *e = &b->e;
        double length = 0, inside = 0;
        for (int c = 0; c < 3; c++) {
            length += (double)(e->direction[c] * e->direction[c]);
            inside = fmax(inside, fabs((double)e->vertex[c]));
        }
        assert_true(fabs(length - 1) < 1e-5);
        if (inside > 300 || e->energy < 50) continue;
        n++;
        tracks += e->track;
        log_energy += log((double)e->energy / 50) / log(2);
        for (int c = 0; c < 3; c++) {
            mean[c] += (double)e->direction[c];
            square[c] += (double)(e->direction[c] * e->direction[c]);
            vertex[c] += (double)e->vertex[c] / 300;
        }
    }
    assert_true(n > 300);
    assert_near("tracks", tracks / n, 0.5, 0.5 / sqrt(n));
    assert_near("log E", log_energy / n, 0.5, 1 / sqrt(12 * n));
    for (int c = 0; c < 3; c++) { /* each component of a uniform direction is uniform in +-1 */
        assert_near("direction", mean[c] / n, 0, 1 / sqrt(3 * n));
        assert_near("direction squared", square[c] / n, 1 / 3.0, sqrt(4 / 45.0 / n));
        assert_near("vertex", vertex[c] / n, 0, 1 / sqrt(3 * n));
    }
}

static uint64_t digest(const IceEvent *e) {
    uint64_t h = UINT64_C(14695981039346656037); /* FNV-1a */
    const struct {
        const void *at;
        size_t n;
    } part[] = {{e->sensor, (size_t)e->n * sizeof *e->sensor},
                {e->time, (size_t)e->n * sizeof *e->time},
                {e->charge, (size_t)e->n * sizeof *e->charge},
                {e->auxiliary, (size_t)e->n},
                {e->direction, sizeof e->direction}};
    for (int p = 0; p < 5; p++)
        for (size_t i = 0; i < part[p].n; i++)
            h = (h ^ ((const uint8_t *)part[p].at)[i]) * UINT64_C(1099511628211);
    return h;
}

static void events_depend_on_seed_and_number_alone(void **state) {
    Bench *b = *state;
    enum { N = 200 };
    uint64_t serial[N], parallel[N];
    for (int i = 0; i < N; i++) {
        ice_sim_event(b->sim, (uint64_t)i, b->work, &b->e);
        serial[i] = digest(&b->e);
        for (int j = 0; j < i; j++) assert_true(serial[i] != serial[j]);
    }
#pragma omp parallel num_threads(3)
    {
        IceSimWork *work = ice_sim_work_new();
        IceEvent e = event_new();
#pragma omp for schedule(dynamic)
        for (int i = N - 1; i >= 0; i--) {
            ice_sim_event(b->sim, (uint64_t)i, work, &e);
            parallel[i] = digest(&e);
        }
        event_free(&e);
        ice_sim_work_free(work);
    }
    assert_memory_equal(serial, parallel, sizeof serial);
    ice_sim_event(b->sim, UINT64_C(1) << 32, b->work, &b->e);
    assert_true(digest(&b->e) != serial[0]);
    IceSim *other = ice_sim_new(12, NULL), *same = ice_sim_new(11, ice_sim_positions(b->sim));
    ice_sim_event(other, 0, b->work, &b->e);
    assert_true(digest(&b->e) != serial[0]);
    ice_sim_event(same, 0, b->work, &b->e);
    assert_true(digest(&b->e) == serial[0]);
    ice_sim_free(other);
    ice_sim_free(same);
}

static void angles_are_exact(void **state) {
    (void)state;
    const float x[3] = {1, 0, 0}, y[3] = {0, 1, 0}, minus[3] = {-1, 0, 0};
    const float near_x[3] = {1, 1e-4f, 0}, half[3] = {0.5f, 0, 0.866025404f};
    assert_true(ice_angle_deg(x, x) == 0);
    assert_true(fabs(ice_angle_deg(x, y) - 90) < 1e-9);
    assert_true(fabs(ice_angle_deg(x, minus) - 180) < 1e-9);
    assert_true(fabs(ice_angle_deg(x, near_x) * RADIAN / 1e-4 - 1) < 1e-6);
    assert_true(fabs(ice_angle_deg(half, x) - 60) < 1e-5);
}

static void linefit_finds_a_moving_point(void **state) {
    (void)state;
    static float xyz[3 * ICE_SENSORS];
    int16_t sensor[5] = {0, 1, 2, 3, 4};
    float time[5] = {10000, 10100, 10300, 10600, 10700}, charge[5] = {1, 3, 0.5f, 2, 1}, d[3];
    uint8_t auxiliary[5] = {0, 0, 0, 0, 1};
    IceEvent e = {5, 5, sensor, time, charge, auxiliary, {0}, true, 1, {0}, 0};
    for (int i = 0; i < 4; i++) /* velocity (0.1, 0.2, -0.2); the fifth is noise far away */
        for (int c = 0; c < 3; c++)
            xyz[3 * i + c] = (time[i] - 9000) * (c == 0 ? 0.1f : c == 1 ? 0.2f : -0.2f);
    xyz[12] = 5000;
    const float from[3] = {-1 / 3.0f, -2 / 3.0f, 2 / 3.0f};
    assert_true(ice_linefit(&e, xyz, d));
    assert_true(ice_angle_deg(d, from) < 1e-3);
    /* Three pulses that no line fits: by hand, v is along sum of q (t - mean t) r. */
    e.n = 3;
    const float r[9] = {0, 0, 0, 30, 0, 0, 0, 40, 0};
    memcpy(xyz, r, sizeof r);
    charge[0] = charge[2] = 1, charge[1] = 2;
    /* mean t 10125: x 2 (-25) 30 = -1500, y 175 * 40 = 7000 */
    const double length = hypot(1500, 7000);
    const float by_hand[3] = {(float)(1500 / length), (float)(-7000 / length), 0};
    assert_true(ice_linefit(&e, xyz, d));
    assert_true(ice_angle_deg(d, by_hand) < 1e-3);
    e.n = 1;
    assert_false(ice_linefit(&e, xyz, d));
    assert_true(d[0] == 0 && d[1] == 0 && d[2] == 1);
    e.n = 0;
    assert_false(ice_linefit(&e, xyz, d));
}

static int by_value(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }

/* The first sketch of this simulator, with the real positions and another generator: LineFit 24.3
 * degrees, tracks 7.0, cascades 61.3, 67 % tracks, 127 pulses in the median on 110 sensors. Over
 * 3000 events the statistical errors (one sigma) are 0.6, 0.3, 1.3 degrees, 0.9 % and 3 pulses; the
 * sketch has its own, of unknown size, and details that its description leaves open. So the bands
 * are wide: they catch a sign or a factor of two, the tests above catch the rest. */
static void events_are_those_of_the_sketch(void **state) {
    Bench *b = *state;
    enum { N = 3000 };
    static int pulses[N], sensors[N];
    static char seen[ICE_SENSORS];
    double error[2] = {0}, count[2] = {0};
    for (int i = 0; i < N; i++) {
        ice_sim_event(b->sim, (uint64_t)i, b->work, &b->e);
        pulses[i] = b->e.n;
        memset(seen, 0, sizeof seen);
        for (int k = 0; k < b->e.n; k++) seen[b->e.sensor[k]] = 1;
        for (int s = 0; s < ICE_SENSORS; s++) sensors[i] += seen[s];
        float d[3];
        assert_true(ice_linefit(&b->e, ice_sim_positions(b->sim), d));
        error[b->e.track] += ice_angle_deg(d, b->e.direction);
        count[b->e.track]++;
    }
    qsort(pulses, N, sizeof *pulses, by_value);
    qsort(sensors, N, sizeof *sensors, by_value);
    double all = (error[0] + error[1]) / N;
    double track = error[1] / count[1], cascade = error[0] / count[0];
    print_message(
        "LineFit %.1f degrees, tracks %.1f, cascades %.1f; %.1f %% tracks; median %d "
        "pulses on %d sensors, %d and %d at 95 %%\n",
        all, track, cascade, 100 * count[1] / N, pulses[N / 2], sensors[N / 2],
        pulses[N * 95 / 100], sensors[N * 95 / 100]);
    assert_true(fabs(all - 24.3) < 4);
    assert_true(fabs(track - 7.0) < 2);
    assert_true(fabs(cascade - 61.3) < 7);
    assert_true(fabs(count[1] / N - 0.67) < 0.05);
    assert_in_range(pulses[N / 2], 95, 160);
    assert_in_range(sensors[N / 2], 80, 140);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(built_in_sensors_stand_where_the_real_ones_do),
        cmocka_unit_test(delays_are_gamma_distributed),
        cmocka_unit_test(pulses_keep_order_window_and_distance),
        cmocka_unit_test(coincidences_equal_brute_force),
        cmocka_unit_test(noise_has_its_rate_and_charge),
        cmocka_unit_test(light_comes_as_the_formulas_say),
        cmocka_unit_test(sources_are_uniform),
        cmocka_unit_test(events_depend_on_seed_and_number_alone),
        cmocka_unit_test(angles_are_exact),
        cmocka_unit_test(linefit_finds_a_moving_point),
        cmocka_unit_test(events_are_those_of_the_sketch),
    };
    return cmocka_run_group_tests(tests, bench_new, bench_free);
}
