/* The data set that train_icecube reads: events with directions from one of two sources behind one
 * interface:
 *   "sim"     the built-in simulator (data/icecube_sim.h): endless, nothing on disk
 *   FOLDER    shards that data/icecube_convert.py made of Kaggle's files (data/icecube_shards.h),
 *             memory-mapped
 *
 * Held out: whole batch files that training never reads; of the simulator, the events whose numbers
 * have the top bit set.
 *
 * After ice_data_open everything is const: any number of threads may read events at once, each with
 * its own IceReader. */
#ifndef DATA_ICECUBE_DATA_H
#define DATA_ICECUBE_DATA_H

#include <stdbool.h>
#include <stdint.h>

#include "data/icecube_batch.h"
#include "data/icecube_shards.h"
#include "data/icecube_sim.h"
#include "llmc_like/error.h"

typedef struct IceDataOptions {
    const char *source;   /* "sim" or a folder of shards                                      */
    uint64_t seed;        /* of the simulator and of the order of events                      */
    const char *held_out; /* batch numbers held out, "655,656" or "655-659"; "auto": the last
                             one (of a single shard its last sixteenth); "none": nothing; "all":
                             everything (prediction). The simulator takes auto and none alone */
    bool skip_bad;        /* damaged events are counted and left out; else the first one is an
                             error that names it                                               */
    bool need_directions; /* training: an event without a known direction is damaged           */
} IceDataOptions;

typedef struct IceData {
    bool sim;
    IceSim *simulator;
    IceShards shards;
    float *xyz;              /* (5160, 3) m: the shards' geometry, or the built-in one  */
    int64_t n_train, n_held; /* events; 0: endless                                      */
    int64_t n_bad;           /* damaged events found when the shards were opened        */
    uint64_t seed;
    char description[256]; /* one line for a banner */
} IceData;

/* Checks everything there is to check, each event's pulses included (one pass over the shards). 0,
 * or -1 with a sentence; then there is nothing to close. */
int ice_data_open(IceData *d, const IceDataOptions *o, Err *e);
void ice_data_close(IceData *d);

/* One thread's reader: the event's arrays and the simulator's scratch. */
typedef struct IceReader IceReader;
IceReader *ice_reader_new(const IceData *d);
void ice_reader_free(IceReader *r);

/* Event `index` for the model; valid until the reader's next call. Training: index counts events
 * since the start of training; each run of n_train of them is a pass over the shards in an order of
 * its own (a bijection computed from (seed, pass) without memory). Held out: event index modulo
 * n_held, in the shards' order. *id: Kaggle's event_id, or the simulator's number. *known: whether
 * its direction is. */
const IceEvent *ice_data_event(const IceData *d, IceReader *r, bool held_out, uint64_t index,
                               int64_t *id, bool *known);

/* A step's events, collated in parts: events count * index .. count * (index + 1) - 1 of the
 * training order, sorted by pulses (equal: by number), cut into parts of at most max_pulses pulses
 * after collation (0: one part); an event larger than that is a part of its own. So the parts
 * depend on nothing but `index`, and each has events of about one length. */
typedef struct IceStepBatch {
    int n_parts, cap_parts;
    IceBatch *part;
    struct IceStepRoom *room; /* readers and copies of events */
} IceStepBatch;

void ice_step_make(IceStepBatch *s, const IceData *d, bool held_out, uint64_t index, int count,
                   int64_t max_pulses, const IceCollate *how, bool linefit);
void ice_step_free(IceStepBatch *s);

#endif
