#include "dev/emu/clock.h"

#include <cuda_runtime.h>
#include <string.h>

#include "dev/emu/parts.h"

/* Loops over clocks are most of what they cost. ASan's own start comes too late for the choice of
 * an instruction set. */
#if defined __x86_64__ && !defined __SANITIZE_ADDRESS__
#define VECTORS __attribute__((target_clones("avx2", "default")))
#else
#define VECTORS
#endif

enum {
    BARRIER_ROWS = EMU_MAX_THREADS, /* two each */
    NAMED_ROWS = BARRIER_ROWS + 2 * EMU_BARRIERS,
    SCRATCH_ROW = NAMED_ROWS + EMU_NAMED,
    ROWS,
    MAX_LENGTH = EMU_ENGINES + 2 * EMU_MAX_THREADS
};

static uint32_t rows[(size_t)ROWS * MAX_LENGTH];
static int n, length; /* threads of the block; entries of a clock: engines, threads, fenced */
bool emu_clocks_on;

static uint32_t *row(int i) { return rows + (size_t)i * (size_t)length; }
uint32_t *emu_clock_of(int thread) { return row(thread); }
uint32_t *emu_clock_arriving(int barrier) { return row(BARRIER_ROWS + 2 * barrier); }
uint32_t *emu_clock_ended(int barrier) { return row(BARRIER_ROWS + 2 * barrier + 1); }
uint32_t *emu_clock_named(int number) { return row(NAMED_ROWS + number); }
uint32_t *emu_clock_scratch(void) { return row(SCRATCH_ROW); }

VECTORS static void take_larger(uint32_t *restrict to, const uint32_t *restrict from, int count) {
    for (int i = 0; i < count; i++) to[i] = to[i] > from[i] ? to[i] : from[i];
}

VECTORS static void take_smaller(uint32_t *restrict to, const uint32_t *restrict from, int count) {
    for (int i = 0; i < count; i++) to[i] = to[i] < from[i] ? to[i] : from[i];
}

void emu_clock_join(uint32_t *to, const uint32_t *from) { take_larger(to, from, length); }
void emu_clock_meet(uint32_t *to, const uint32_t *from) { take_smaller(to, from, length); }
void emu_clock_copy(uint32_t *to, const uint32_t *from) {
    memcpy(to, from, (size_t)length * sizeof *to);
}
void emu_clock_forget(uint32_t *clock) { memset(clock, 0, (size_t)length * sizeof *clock); }

void emu_clocks_begin(void) {
    if (emu_clocks_on) return;
    int major = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
    if (major != 9) emu_fail("an instruction of sm_90a on a device that is no sm_90");
    n = emu_block_threads();
    length = EMU_ENGINES + 2 * n;
    memset(rows, 0, (size_t)n * (size_t)length * sizeof *rows);
    memset(row(NAMED_ROWS), 0, (size_t)EMU_NAMED * (size_t)length * sizeof *rows);
    for (int t = 0; t < n; t++)
        for (int l = t / EMU_LANES * EMU_LANES; l < n && l / EMU_LANES == t / EMU_LANES; l++)
            row(t)[EMU_ENGINES + l] = emu_lane_knows(t, l);
    emu_clocks_on = true;
}

void emu_clocks_end(void) { emu_clocks_on = false; }

static void share(int first, int end, unsigned mask) {
    uint32_t *all = emu_clock_scratch();
    emu_clock_forget(all);
    for (int t = first; t < end; t++) {
        if (!(mask >> t % EMU_LANES & 1u)) continue;
        row(t)[EMU_ENGINES + t] = emu_syncs[t / EMU_LANES];
        emu_clock_join(all, row(t));
    }
    for (int t = first; t < end; t++)
        if (mask >> t % EMU_LANES & 1u) emu_clock_copy(row(t), all);
}

void emu_clocks_sync_block(void) {
    for (int w = 0; w * EMU_LANES < n; w++) emu_syncs[w]++;
    share(0, n, 0xffffffffu);
}

void emu_clocks_sync_warp(int first, unsigned mask) {
    share(first, first + EMU_LANES < n ? first + EMU_LANES : n, mask);
}

/* All that the thread did so far has smaller stamps than what it does from here on. */
static uint32_t advance(void) {
    const int self = emu_now.thread;
    return row(self)[EMU_ENGINES + self] = ++emu_syncs[self / EMU_LANES];
}

void emu_clock_release(uint32_t *to) {
    advance();
    emu_clock_join(to, row(emu_now.thread));
}

void emu_clock_fence(void) { row(emu_now.thread)[EMU_ENGINES + n + emu_now.thread] = advance(); }

void emu_clock_learn(uint32_t *clock, int engine, uint32_t count) {
    uint32_t *entry = &clock[engine - EMU_MAX_THREADS];
    if (*entry < count) *entry = count;
}

bool emu_clock_knows(const uint32_t *clock, int who, uint32_t stamp) {
    return stamp < clock[who < EMU_MAX_THREADS ? EMU_ENGINES + who : who - EMU_MAX_THREADS];
}

bool emu_clock_sees_fenced(const uint32_t *clock, int thread, uint32_t stamp) {
    return stamp < clock[EMU_ENGINES + n + thread];
}
