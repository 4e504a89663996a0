/* The built-in detector: neutrino events of known direction, as many as one likes.
 *
 * The model of light in ice is the field's textbook one (AMANDA, "Muon track reconstruction",
 * astro-ph/0407044, section 3); units are m, ns, photo-electrons (pe). One event:
 *
 *   source    a track or a cascade, half each, through a vertex uniform within 450 m of the origin
 *             in x, y and z; velocity along v, uniform on the sphere; energy E log-uniform 1..100
 *   light     at a sensor, u the light's direction and cos(eta) = u_z (sensors look down, so 1 is
 *             light that comes straight into the photocathode):
 *               d_eff = 3.1 - 3.9 cos(eta) + 4.6 cos^2(eta) + 0.84 d
 *     track     d the distance from the line, s the way along it from the vertex, theta 40.7
 *               degrees: arrival (s + d tan theta) / c;  mean 3 E exp(-d_eff / 98) / d_eff  pe
 *     cascade   d the distance from the vertex: arrival d n / c;
 *               mean 300 E w exp(-d_eff / 98) / d_eff^2  pe,  psi the angle between u and v,
 *               w = exp(-|psi - theta| / 0.5 rad) + 0.15
 *   photons   a Poisson number, each later than the arrival by a Pandel delay (ice_delay)
 *   window    15,000 ns from 6,000 to 21,000; the first photon of the event is at 10,000, later
 *             ones than 21,000 are lost
 *   noise     500 Hz a sensor over the window
 *   charge    1 pe smeared by 30 % for each photon and noise hit, redrawn if not positive. Hits of
 *             one sensor within 15 ns of the first of them are one pulse: its time, their sum
 *   auxiliary 0 where another pulse is on the same string within two sensors (the same one counts)
 *             and 1,000 ns, that is, with local coincidence; 1 otherwise
 *   trigger   at least 8 pulses with local coincidence; else all is drawn again
 *
 * Event i of a seed is a function of (seed, i) alone (Philox, RNG_GAME), so who makes it and in
 * which order changes nothing. Between machines the C library's logf, expf and the like may differ
 * in the last bit. */
#ifndef DATA_ICECUBE_SIM_H
#define DATA_ICECUBE_SIM_H

#include <stdbool.h>
#include <stdint.h>

#include "data/icecube_geometry.h"
#include "llmc_like/philox.h"

/* No event has more (a brighter one would be drawn again; the brightest possible cascade, in the
 * densest place, expects at most half of it). */
enum { ICE_SIM_MAX_PULSES = 16384 };

#define ICE_FIRST_PHOTON_NS 10000.0f
#define ICE_WINDOW_START_NS 6000.0f
#define ICE_WINDOW_NS 15000.0f

/* The caller owns the four arrays, of `capacity` each; n of them are used. */
typedef struct IceEvent {
    int n, capacity;
    int16_t *sensor;    /* 0..5159                                                   */
    float *time;        /* ns, rising                                                */
    float *charge;      /* pe                                                        */
    uint8_t *auxiliary; /* 0 with local coincidence, 1 without                       */
    float direction[3]; /* where the neutrino comes from: unit vector, -v            */
    bool track;
    float energy;      /* E                                                           */
    float vertex[3];   /* m                                                           */
    float vertex_time; /* ns, in the time of the pulses: when the particle is at the vertex */
} IceEvent;

/* The seed and the sensors' positions: constant after ice_sim_new, so threads share one. */
typedef struct IceSim IceSim;

/* Scratch for one event at a time (0.5 MiB), one a thread. */
typedef struct IceSimWork IceSimWork;

/* xyz (5160, 3) in m, copied; NULL: ice_geometry_builtin. Abort without memory. ..._free takes
 * NULL too. */
IceSim *ice_sim_new(uint64_t seed, const float *xyz);
void ice_sim_free(IceSim *sim);
IceSimWork *ice_sim_work_new(void);
void ice_sim_work_free(IceSimWork *work);

/* The positions (5160, 3) in m that the simulator uses; owned by it. */
const float *ice_sim_positions(const IceSim *sim);

/* Event `number` of the endless data set. A capacity below ICE_SIM_MAX_PULSES is a bug, and so are
 * positions with which nothing triggers in 10,000 attempts. */
void ice_sim_event(const IceSim *sim, uint64_t number, IceSimWork *work, IceEvent *e);

/* A photon's delay past its unscattered arrival, ns: gamma distributed with shape d_eff / 33.3 m
 * and rate 1 / 557 ns + c_ice / 98 m = 1 / 243.1 ns, where c_ice = c / 1.32 (Pandel). Drawn as in
 * Marsaglia and Tsang, "A simple method for generating gamma variables", 2000. d_eff > 0. */
float ice_delay(RngStream *rng, float d_eff);

/* LineFit, the field's first guess: v = cov(r, t) / var(t) over the pulses with local coincidence,
 * weighted by charge, the least-squares velocity of a point that passes through the pulses; the
 * direction is -v / |v|. Sums in double. xyz (5160, 3). False, and direction (0, 0, 1), where that
 * is undefined: fewer than two such times, or no movement. */
bool ice_linefit(const IceEvent *e, const float *xyz, float direction[3]);

#endif
