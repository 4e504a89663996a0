/* test/cli.h for train_icecube, and shards of simulated events for it to read. */
#ifndef TEST_CLI_ICECUBE_H
#define TEST_CLI_ICECUBE_H

#define CLI_PROGRAM "train_icecube"

#include "data/icecube_sim.h"
#include "test/cli.h"
#include "test/shard_files.h"

/* A model that makes a step in milliseconds. Nothing periodic: a test asks for what it looks at. */
#define CLI_SIZES \
    "--d-model", "16", "--n-heads", "2", "--d-ff", "32", "--max-doms", "64", "--threads", "2"
#define CLI_SMALL                                                                      \
    CLI_SIZES, "--t1-layers", "1", "--t2-layers", "1", "--batch", "4", "--steps", "4", \
        "--eval-events", "6", "--eval-every", "0", "--save-every", "0"
#define CLI_FLAT                                                                                 \
    CLI_SIZES, "--model", "flat", "--n-layers", "1", "--k", "3", "--batch", "4", "--steps", "4", \
        "--eval-events", "6", "--eval-every", "0", "--save-every", "0"

enum { SHARD_EVENTS = 24, SHARD_PULSES = 1 << 18 };

typedef void SpoilFn(ShardArrays *a);

/* Batch `number` of a folder in the scratch folder: SHARD_EVENTS simulated events with the ids
 * 1000 number + i, after `spoil` (NULL: nothing) has changed them; room for SHARD_PULSES pulses. */
static inline void cli_shard(void **state, const char *folder, int number, SpoilFn *spoil) {
    static int64_t event_id[SHARD_EVENTS], offsets[SHARD_EVENTS + 1];
    static float direction[2 * SHARD_EVENTS], charge[SHARD_PULSES], time[SHARD_PULSES];
    static int16_t sensor[SHARD_PULSES];
    static int32_t time_ns[SHARD_PULSES];
    static uint8_t auxiliary[SHARD_PULSES];
    char path[SCRATCH_PATH];
    Err e = {""};
    IceSim *sim = ice_sim_new(1, NULL);
    IceSimWork *work = ice_sim_work_new();
    offsets[0] = 0;
    for (int i = 0; i < SHARD_EVENTS; i++) {
        const int64_t at = offsets[i];
        assert_true(at + ICE_SIM_MAX_PULSES <= SHARD_PULSES);
        IceEvent event = {.capacity = ICE_SIM_MAX_PULSES,
                          .sensor = sensor + at,
                          .time = time,
                          .charge = charge + at,
                          .auxiliary = auxiliary + at};
        event_id[i] = 1000 * number + i;
        ice_sim_event(sim, (uint64_t)event_id[i], work, &event);
        for (int p = 0; p < event.n; p++) time_ns[at + p] = (int32_t)time[p];
        offsets[i + 1] = at + event.n;
        const float azimuth = atan2f(event.direction[1], event.direction[0]);
        direction[2 * i] = azimuth < 0 ? azimuth + 6.2831853f : azimuth;
        direction[2 * i + 1] = acosf(event.direction[2]);
    }
    ice_sim_work_free(work);
    ice_sim_free(sim);
    ShardArrays a = {
        SHARD_EVENTS, offsets[SHARD_EVENTS], event_id, offsets, direction, sensor, time_ns, charge,
        auxiliary};
    if (spoil) spoil(&a);
    scratch_path(state, folder, path);
    if (make_dirs(path, &e) || geometry_write(path, &e) || shard_write(path, number, &a, &e))
        fail_msg("%s", e.text);
}

#endif
