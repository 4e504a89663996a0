/* The data set that train_icecube reads: events with directions from one of two sources behind one
 * interface:
 *   "sim"     the built-in simulator (data/icecube_sim.h): endless, nothing on disk
 *   FOLDER    shards that data/icecube_convert.py made of Kaggle's files (data/icecube_shards.h),
 *             memory-mapped
 *
 * Held out: whole batch files that training never reads; of the simulator, the events whose numbers
 * have the top bit set.
 *
 * Damaged events are found when they are read: a pass over all of Kaggle's pulses before the first
 * step would read 230 GB. With skip_bad they are left out and listed, else the first one is an
 * error that names it.
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
    bool skip_bad;        /* damaged events are left out                                      */
    bool need_directions; /* training: an event without a known direction is damaged           */
} IceDataOptions;

/* Events from .. from + n - 1 of a shard, which are numbers first .. first + n - 1 of a part. */
typedef struct IceSpan {
    const IceShard *shard;
    int64_t from, n, first;
} IceSpan;

/* What is trained on or held out of the shards. */
typedef struct IceSpans {
    int n;
    IceSpan *span; /* in the order of the shards */
} IceSpans;

#define ICE_ENDLESS INT64_MAX

typedef struct IceData {
    bool sim, skip_bad, need_directions;
    IceSim *simulator;
    IceShards shards;
    const float *xyz;        /* (5160, 3) m: the shards' geometry, or the built-in one       */
    int64_t n_train, n_held; /* events, damaged ones too; ICE_ENDLESS: the simulator's       */
    IceSpans train, held;
    uint64_t seed;
    char description[256]; /* one line for a banner */
    char *contents;        /* what is trained on and held out, wherever the folder lies: "64 events
                              to train on (batches 1-3), 30 held out (batches 655)". With the seed
                              it fixes which events a step has, so a run goes on with the same */
} IceData;

/* Opens and checks all but the events themselves. 0, or -1 with a sentence; then there is nothing
 * to close. */
int ice_data_open(IceData *d, const IceDataOptions *o, Err *e);
void ice_data_close(IceData *d);

/* One thread's reader: the event's arrays and the simulator's scratch. Aborts without memory. */
typedef struct IceReader IceReader;
IceReader *ice_reader_new(const IceData *d);
void ice_reader_free(IceReader *r); /* takes NULL too */

/* Event `index` for the model; valid until the reader's next call. Training: index counts events
 * since the start of training; each run of n_train of them is a pass over the shards in an order of
 * its own (a bijection computed from (seed, pass) without memory). Held out: event index modulo
 * n_held, in the shards' order. No events there (n_train or n_held 0) is a bug. *id: Kaggle's
 * event_id; the simulator's: the index. *known: whether its direction is. A damaged event, also
 * with skip_bad: NULL, its *id, and a sentence with its id, its batch and what is wrong. */
const IceEvent *ice_data_event(const IceData *d, IceReader *r, bool held_out, uint64_t index,
                               int64_t *id, bool *known, Err *e);

/* A step's events, collated in parts: events first .. first + count - 1, sorted by pulses after
 * max_doms (equal: by index), cut into parts of at most max_pulses such pulses (0: one part); an
 * event larger than that is a part of its own. So the parts depend on nothing but `first` and
 * `count`, and each has events of about one length. */
typedef struct IceStepBatch {
    int n_parts, cap_parts;
    IceBatch *part; /* (n_parts) */
    int n_events;   /* of all parts: count - n_bad */
    int n_bad;
    uint64_t *bad;            /* (n_bad) the indices of damaged events left out of this step;
                                 ice_data_event says what is wrong with them */
    struct IceStepRoom *room; /* reader and copies of events */
} IceStepBatch;

/* Step i of training: first = i * count. Held out: the caller ends at n_held, beyond which events
 * come again. Zero *s before its first use; afterwards it keeps its memory, and only an event
 * larger than any before takes more. It stays with one data set. Labels say what the source knows.
 * -1 and a sentence for a damaged event without skip_bad; with it, n_parts is 0 where all are. Any
 * number of threads, each with its own *s. */
int ice_step_make(IceStepBatch *s, const IceData *d, bool held_out, uint64_t first, int count,
                  int64_t max_pulses, const IceCollate *how, bool linefit, Err *e);
void ice_step_free(IceStepBatch *s); /* fine on a zeroed one */

#endif
