/* Writes the folders of data/icecube_shards.h, for tests and benchmarks: good ones, and bad ones by
 * way of the arrays. */
#ifndef TEST_SHARD_FILES_H
#define TEST_SHARD_FILES_H

#include <stdio.h>

#include "data/icecube_geometry.h"
#include "llmc_like/fsio.h"
#include "llmc_like/npy.h"

/* What batch_K holds: E events, P pulses. */
typedef struct ShardArrays {
    int64_t E, P;
    int64_t *event_id, *offsets; /* (E), (E + 1) */
    float *direction;            /* (E, 2) */
    int16_t *sensor;             /* (P), and the rest likewise */
    int32_t *time;
    float *charge;
    uint8_t *auxiliary;
} ShardArrays;

enum { SHARD_PATH = 1024 };

/* FOLDER/batch_K/name into buf, which is returned. */
static inline const char *shard_path(const char *folder, int number, const char *name,
                                     char buf[SHARD_PATH]) {
    snprintf(buf, SHARD_PATH, "%s/batch_%d/%s", folder, number, name);
    return buf;
}

static inline int shard_write(const char *folder, int number, const ShardArrays *a, Err *e) {
    char path[SHARD_PATH];
    const struct {
        const char *name;
        NpyType type;
        int ndim;
        int64_t shape[2];
        const void *data;
    } file[] = {{"event_id.npy", NPY_I8, 1, {a->E}, a->event_id},
                {"offsets.npy", NPY_I8, 1, {a->E + 1}, a->offsets},
                {"direction.npy", NPY_F4, 2, {a->E, 2}, a->direction},
                {"sensor_id.npy", NPY_I2, 1, {a->P}, a->sensor},
                {"time.npy", NPY_I4, 1, {a->P}, a->time},
                {"charge.npy", NPY_F4, 1, {a->P}, a->charge},
                {"auxiliary.npy", NPY_U1, 1, {a->P}, a->auxiliary}};
    if (make_dirs(shard_path(folder, number, "", path), e)) return -1;
    for (size_t i = 0; i < sizeof file / sizeof *file; i++)
        if (npy_write(shard_path(folder, number, file[i].name, path), file[i].type, file[i].ndim,
                      file[i].shape, file[i].data, e))
            return -1;
    return atomic_save(shard_path(folder, number, "done", path), "", 0, e);
}

/* geometry.npy: the built-in positions. */
static inline int geometry_write(const char *folder, Err *e) {
    float xyz[3 * ICE_SENSORS];
    char path[SHARD_PATH];
    ice_geometry_builtin(xyz);
    snprintf(path, sizeof path, "%s/geometry.npy", folder);
    return npy_write(path, NPY_F4, 2, (int64_t[]){ICE_SENSORS, 3}, xyz, e);
}

#endif
