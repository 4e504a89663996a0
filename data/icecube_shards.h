/* Events on disk: what data/icecube_convert.py makes of Kaggle's files. A folder has
 *
 *   geometry.npy         float32 (5160, 3), m
 *   batch_K/             one folder a batch file, K its number
 *     event_id.npy       int64   (E)
 *     offsets.npy        int64   (E + 1)   pulses offsets[i] .. offsets[i + 1] - 1 are event i's
 *     direction.npy      float32 (E, 2)    azimuth, zenith in rad; NaN, NaN where unknown
 *     sensor_id.npy      int16   (P)
 *     time.npy           int32   (P)       ns
 *     charge.npy         float32 (P)       photo-electrons
 *     auxiliary.npy      uint8   (P)       0 or 1
 *     done               written last, empty: a folder without it is unfinished and refused
 *
 * All arrays are memory-mapped and never copied whole. Pulses of an event are in recorded order.
 * The true direction as a unit vector: (cos az sin ze, sin az sin ze, cos ze). */
#ifndef DATA_ICECUBE_SHARDS_H
#define DATA_ICECUBE_SHARDS_H

#include <stdbool.h>
#include <stdint.h>

#include "data/icecube_sim.h"
#include "llmc_like/error.h"
#include "llmc_like/npy.h"

/* More in one event is a fault: ninety times the largest that the detector recorded. */
enum { ICE_SHARD_MAX_PULSES = 1 << 24 };

typedef struct IceShard {
    int number; /* K */
    int64_t n_events, n_pulses;
    NpyArray event_id, offsets, direction, sensor, time, charge, auxiliary;
} IceShard;

typedef struct IceShards {
    int n;
    IceShard *shard; /* by number */
    int64_t n_events;
    NpyArray geometry;
    const float *xyz; /* (5160, 3) m: the geometry's data */
} IceShards;

/* Opens and maps; checks shapes, dtypes, lengths, positions and that offsets rise, but reads no
 * pulse: of all of Kaggle's events the offsets are 1 GB, the pulses 230. -1 and a sentence that
 * names the file for a missing, truncated or wrong one, an unfinished or doubled batch; a folder
 * with Kaggle's parquet files is told about the converter. Then there is nothing to close. */
int ice_shards_open(IceShards *s, const char *folder, Err *e);
void ice_shards_close(IceShards *s);

/* What is wrong with event i of a shard: NULL where nothing is, else a clause with the value found,
 * into buf: no pulses or too many; a sensor outside 0..5159; a time below 0; a charge that is NaN,
 * infinite or negative; auxiliary neither 0 nor 1; a direction with one angle unknown, an azimuth
 * outside 0..2 pi or a zenith outside 0..pi (by more than rounding to float32). Reads the event's
 * pulses once, which costs less than fetching them. */
enum { ICE_FAULT_TEXT = 128 };
const char *ice_shard_fault(const IceShard *s, int64_t i, char buf[ICE_FAULT_TEXT]);

/* Event i, which has no fault, into *e, whose arrays grow (ice_event_reserve) where its capacity is
 * too small. *known: whether its direction is; else it is zeros. What the simulator alone knows
 * (track, energy, vertex) becomes 0. */
void ice_shard_event(const IceShard *s, int64_t i, IceEvent *e, int64_t *id, bool *known);

#endif
