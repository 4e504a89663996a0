/* From events to what the models read: pulses grouped by sensor, without padding.
 *
 * A batch has B events, M DOMs and N pulses. A DOM is unique to its event: the same sensor in two
 * events is two DOMs. Order: events as they were given, in each its sensors by number, in each its
 * pulses as they came (a stable counting sort). Of an event with more than max_doms DOMs those hit
 * first are kept (a DOM's time is that of its first pulse as they came; equal times: the smaller
 * sensor number), with all their pulses, and their order stays by number.
 *
 *   pulse (N, 4)            (time - 1e4) / time_scale,  log10(charge + 1e-8) / 3,  sensor / 5160,
 *                           auxiliary
 *   dom_vector (M, 4 + 3K)  x, y, z in position_scale, log1p(n) / 3 - 1 (n: all of the DOM's
 * pulses), then of each of its first K pulses (time - 1e4) / time_scale, log10(max(charge, 1e-6)) /
 * 3, auxiliary - 0.5; 0 where there are fewer
 *
 * These are the originals' features (shared by name with the specification), float32, to 1e-6 of
 * the same in float64; time_scale is 3e4 there, position_scale 500. */
#ifndef DATA_ICECUBE_BATCH_H
#define DATA_ICECUBE_BATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "data/icecube_sim.h"

typedef struct IceCollate {
    const float *xyz;      /* (5160, 3) m */
    double time_scale;     /* ns */
    double position_scale; /* m */
    int max_doms;          /* DOMs kept an event; 0: all */
    int K;                 /* pulses a DOM in dom_vector; 0: no dom_vector, but pulse */
} IceCollate;

/* What evaluation wants to know of an event besides the model's answer. */
typedef struct IceLabel {
    int64_t event_id;
    float direction[3]; /* the truth; zeros where it is unknown */
    float linefit[3];
    bool known, linefit_ok;   /* the truth is known; LineFit is defined */
    int8_t track;             /* 1 track, 0 cascade, -1 unknown */
    int32_t n_pulses, n_doms; /* of the whole event, before max_doms */
} IceLabel;

/* All arrays live in one block that grows geometrically and stays. Zero it before the first use.
 * Offsets are int32, as the ops and masks want them. Two offsets of one kind: as they are, and with
 * one row more before each segment (a class token): token[i] = offset[i] + i. */
typedef struct IceBatch {
    int B, M, N;
    float *pulse;           /* (N, 4); NULL with K > 0                  */
    float *dom_vector;      /* (M, 4 + 3K); NULL with K = 0             */
    float *xyz;             /* (M, 3), in position_scale                */
    int32_t *sensor;        /* (M)                                      */
    int32_t *dom_offsets;   /* (M + 1): first pulse of each DOM         */
    int32_t *dom_token;     /* (M + 1)                                  */
    int32_t *event_offsets; /* (B + 1): first DOM of each event         */
    int32_t *event_token;   /* (B + 1)                                  */
    float *direction;       /* (B, 3)                                   */
    IceLabel *label;        /* (B)                                      */
    void *block;            /* its memory, of block_bytes               */
    size_t block_bytes;
} IceBatch;

/* Collates events e[0 .. n-1], each of at least one pulse, into *b, overwriting what it held.
 * Labels take the events for simulated ones: event_id is the place in e, the truth is known, track
 * is the event's; who knows better writes over it (ice_step_make). linefit: whether labels get
 * LineFit, which evaluation alone wants; else it is zeros. Sensors, times and charges are the
 * caller's to have checked. A bug: 2^29 pulses or more. Aborts without memory. Any number of
 * threads, each with its own batch. */
void ice_batch_make(IceBatch *b, const IceEvent *const *e, int n, const IceCollate *how,
                    bool linefit);
void ice_batch_free(IceBatch *b); /* fine on a zeroed one */

/* What an event costs: DOMs and pulses of `e` after max_doms. */
void ice_event_size(const IceEvent *e, const IceCollate *how, int *n_doms, int *n_pulses);

/* Room for at least `capacity` pulses in an event's own arrays (zeroed: none yet), which grow
 * geometrically and keep what they hold. Aborts without memory. */
void ice_event_reserve(IceEvent *e, int capacity);
void ice_event_free(IceEvent *e); /* the arrays; fine on a zeroed one */

#endif
