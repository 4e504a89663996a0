/* What Barriers and bulk copies know of each other, and what a TensorMap holds in the emulator. */
#ifndef DEV_EMU_BULK_H
#define DEV_EMU_BULK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EMU_MAP_MAGIC 0x70616d5f726f736eull

/* In the place of the driver's 128 bytes; x innermost. */
typedef struct EmuMap {
    uint64_t magic;
    char *base;
    uint64_t dim[4];    /* elements */
    uint64_t stride[4]; /* bytes; of x: one element's */
    uint32_t box[4];
    bool swizzled; /* by 128 bytes */
} EmuMap;

/* The Barrier at p and its phase, whose bytes a copy that begins now counts for. */
int emu_barrier_of_copy(const void *p, const char *op, const void *pc, int *phase);
void emu_barrier_brings(int barrier, int64_t bytes, const char *op, const void *pc);

/* The copies that count for this phase land: it ends. */
void emu_bulk_land(int barrier, int phase);

bool emu_is_barrier(const void *p);
size_t emu_barrier_offset(int barrier); /* in shared memory */

#endif
