/* Who knows what, in a block whose threads are ordered by more than __syncthreads and __syncwarp:
 * by Barriers in shared memory, named barriers, and what copies and products bring.
 *
 * A thread's clock says how much it knows of each other thread: what that one did while its warp's
 * emu_syncs was below the entry comes before all that the thread does now. A release (arrive at a
 * barrier) joins the clock to the barrier's; who waited joins the barrier's to its own. What
 * happens beside the threads has entries too, its "engines": the products of each warpgroup (an
 * entry: so many groups have ended) and the copies of each Barrier (so many phases). A second row
 * of entries, `fenced`, says the same of what the asynchronous proxy sees: writes that were
 * followed by fence_shared_to_async.
 *
 * Clocks are kept from the first of Hopper's instructions in a block to the block's end. */
#ifndef DEV_EMU_CLOCK_H
#define DEV_EMU_CLOCK_H

#include "dev/emu/emu.h"

enum {
    EMU_WARPGROUP = 128,
    EMU_WARPGROUPS = EMU_MAX_THREADS / EMU_WARPGROUP,
    EMU_BARRIERS = 56, /* Barriers of a block */
    EMU_NAMED = 16,
    EMU_ENGINES = EMU_WARPGROUPS + EMU_BARRIERS,
    /* numbers of engines, beside those of threads */
    EMU_PRODUCTS = EMU_MAX_THREADS,
    EMU_COPIES = EMU_PRODUCTS + EMU_WARPGROUPS
};

extern bool emu_clocks_on; /* in this block */

void emu_clocks_begin(void);      /* by each of Hopper's instructions: from here on */
void emu_clocks_end(void);        /* the block has ended */
void emu_clocks_sync_block(void); /* __syncthreads */
void emu_clocks_sync_warp(int first, unsigned mask);

/* The clocks of threads, of barriers (arrivals of this phase, and all of the last one that ended),
 * of named barriers, and one to compute with. */
uint32_t *emu_clock_of(int thread);
uint32_t *emu_clock_arriving(int barrier);
uint32_t *emu_clock_ended(int barrier);
uint32_t *emu_clock_named(int number);
uint32_t *emu_clock_scratch(void);

void emu_clock_join(uint32_t *to, const uint32_t *from); /* to knows what either knew */
void emu_clock_meet(uint32_t *to, const uint32_t *from); /* ... what both knew */
void emu_clock_copy(uint32_t *to, const uint32_t *from);
void emu_clock_forget(uint32_t *clock);
void emu_clock_release(uint32_t *to); /* the running thread's, which then goes on to a new time */
void emu_clock_fence(void);           /* fence_shared_to_async of the running thread */
void emu_clock_learn(uint32_t *clock, int engine, uint32_t n); /* it knows of n groups or phases */

bool emu_clock_knows(const uint32_t *clock, int who, uint32_t stamp);
bool emu_clock_sees_fenced(const uint32_t *clock, int thread, uint32_t stamp);

#endif
