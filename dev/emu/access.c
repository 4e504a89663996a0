/* Each access of a kernel to memory: is it allowed there, and is it ordered with those of others?
 *
 * The compiler calls __tsan_read4(p) and its like before each access of kernels/cuda (the
 * instrumentation of -fsanitize=thread; its runtime is not linked). A thread's own stack passes at
 * once. Shared memory and device memory have a cell for each 4 bytes that remembers the last write
 * and the reads since:
 *   - shared memory: of this block. Two accesses, one of them a write, by different threads of a
 *     block need a __syncthreads between them, or a __syncwarp where both are in one warp, or what
 *     clock.h keeps account of.
 *   - device memory: of this launch. The same; and what a block writes no other block of the launch
 *     may touch. Atomics may meet atomics.
 * A cell has room for one write and one kind of reader with the bytes that they touched, so that of
 * several races on one word some are not seen; what is reported is always one.
 *
 * Copies and products beside the threads: shared memory that a copy will write is `copying` until
 * it lands, what one will read is counted in `sends` until it has; products leave the number of
 * their group in product_reads. */
#include <link.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "dev/emu/bulk.h"
#include "dev/emu/clock.h"
#include "dev/emu/parts.h"

#ifndef __SANITIZE_ADDRESS__

#define REGION_BYTES ((size_t)1 << EMU_REGION_SHIFT)

/* Several lanes of one warp; several warps; a set of `sets`: where clocks order threads */
typedef enum Readers { ONE, LANES, WARPS, SET } Readers;

typedef struct Cell {
    uint32_t write_phase, read_phase; /* 0: none in this block (shared) or launch (device) */
    uint32_t write_pc, read_pc;       /* pc_of */
    uint32_t write_stamp, read_stamp;
    uint16_t writer, reader;                              /* threads of their block, engines; set */
    uint8_t write_bytes : 4, read_bytes : 4, written : 4; /* written: ever in this scope */
    uint8_t readers : 2, other_block_read : 1;
    uint8_t atomic : 1, copying : 1, engine : 1; /* the write: an atomic's; of a copy under way; of
                                                    the copy engine, done */
    uint8_t sends;                               /* copies under way that read it */
} Cell;

typedef struct Range {
    uintptr_t low;
    size_t bytes;
} Range;

static __thread Range own = {0, SIZE_MAX}; /* what passes: a fiber's stack; on the host all */
static __thread Range statics;             /* the thread-local segment: static shared memory */
static uintptr_t code;                     /* where the program begins */
static Cell *static_cells, *device_cells;
static Cell shared_cells[EMU_MAX_SHARED / 4];

/* The latest group of products, by warpgroup, that reads a cell of dynamic shared memory; numbers
 * go on from block to block. */
static uint32_t product_reads[EMU_MAX_SHARED / 4][EMU_WARPGROUPS];
static uint32_t first_group, last_group; /* of this block; of all so far */

/* Threads that read a cell with nothing between: their stamps + 1. Of this block. */
enum { MAX_SETS = 1 << 16 };
static uint32_t (*sets)[EMU_MAX_THREADS];
static int n_sets, n_free_sets;
static uint16_t free_sets[MAX_SETS];

extern char __start_emu_constant[] __attribute__((weak));
extern char __stop_emu_constant[] __attribute__((weak));

static int find_statics(struct dl_phdr_info *info, size_t size, void *arg) {
    (void)size, (void)arg;
    for (int i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_TLS)
            statics = (Range){(uintptr_t)info->dlpi_tls_data, info->dlpi_phdr[i].p_memsz};
    code = info->dlpi_addr;
    return 1; /* the program itself is the first */
}

static size_t cells_bytes(size_t bytes) { return (bytes / 4 + 1) * sizeof(Cell); }

static Cell *cells_for(size_t bytes) {
    Cell *cells = mmap(NULL, cells_bytes(bytes), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (cells == MAP_FAILED) emu_fail("no address space to watch memory with");
    madvise(cells, cells_bytes(bytes), MADV_HUGEPAGE);
    return cells;
}

void emu_own_stack(const char *low, size_t bytes) {
    if (!statics.low) dl_iterate_phdr(find_statics, NULL);
    if (!static_cells) {
        static_cells = cells_for(statics.bytes);
        device_cells = cells_for(REGION_BYTES);
    }
    own = (Range){(uintptr_t)low, bytes};
}

void emu_own_everything(void) { own = (Range){0, SIZE_MAX}; }

void emu_forget_accesses(void) {
    memset(shared_cells, 0, sizeof shared_cells);
    if (!static_cells) return;
    madvise(static_cells, cells_bytes(statics.bytes), MADV_DONTNEED);
    madvise(device_cells, cells_bytes(REGION_BYTES), MADV_DONTNEED);
}

static bool in(Range r, uintptr_t at, size_t bytes) {
    return at - r.low < r.bytes && bytes <= r.bytes - (at - r.low);
}

/* ---- sentences ---- */

typedef enum Space { SHARED, STATIC, DEVICE } Space;
typedef struct Access {
    const void *pc, *at; /* at: its first byte */
    Space space;
    bool write, atomic, copying;
} Access;

static const char *const SPACE[] = {"byte %zu of dynamic shared memory",
                                    "a __shared__ variable (byte %zu of them)",
                                    "device memory at byte %zu"};

static const char *place(const Access *a, const Cell *c, char text[128]) {
    const Cell *const cells[] = {shared_cells, static_cells, device_cells};
    snprintf(text, 128, SPACE[a->space], (size_t)(c - cells[a->space]) * 4);
    return text;
}

/* Code is kept as 32 bits: where it lies in the program, or with the upper bit in a module that
 * was loaded later. */
static uint32_t pc_of(const void *pc) {
    const uintptr_t offset = (uintptr_t)pc - code;
    return offset >> 31 ? emu_module_pc(pc) : (uint32_t)offset;
}

static const char *code_name(uint32_t pc) {
    return emu_code_name(pc >> 31 ? emu_pc_of_module(pc) : (const void *)(code + pc));
}

/* Who: a thread of the block, or an engine. */
static const char *who_name(int who, char text[96]) {
    const uint3 n = emu_block_dim();
    const unsigned t = (unsigned)who;
    if (who >= EMU_COPIES)
        snprintf(text, 96, "a copy that counts for the Barrier at byte %zu of shared memory",
                 emu_barrier_offset(who - EMU_COPIES));
    else if (who >= EMU_PRODUCTS)
        snprintf(text, 96, "a product of warpgroup %d", who - EMU_PRODUCTS);
    else
        snprintf(text, 96, "thread (%u, %u, %u)", t % n.x, t / n.x % n.y, t / n.x / n.y);
    return text;
}

/* who: one of those that read the cell, where it is their race; -1: its writer's */
__attribute__((noreturn)) static void fail_race(const Access *a, const Cell *c, int who) {
    const bool wrote = who < 0;
    const bool same_block = (wrote ? c->write_phase : c->read_phase) >= emu_now.block;
    char where[128], other[96] = "another block";
    if (same_block) who_name(wrote ? c->writer : who, other);
    emu_fail("race: %s %s (%s), which %s %s (%s) with no %s between", a->write ? "writes" : "reads",
             place(a, c, where), emu_code_name(a->pc), other, wrote ? "wrote" : "read",
             code_name(wrote ? c->write_pc : c->read_pc), same_block ? "barrier" : "launch");
}

__attribute__((noreturn)) static void fail_copying(const Access *a, const Cell *c) {
    char where[128], who[96];
    const char *const verb = a->write ? "writes" : "reads", *const at = emu_code_name(a->pc);
    place(a, c, where);
    if (a->space != DEVICE && emu_is_barrier(a->at))
        emu_fail("%s %s (%s), which is a Barrier", verb, where, at);
    emu_fail(
        "%s %s (%s) while an asynchronous copy that %s began (%s) is under way: it was not "
        "waited for",
        verb, where, at, who_name(c->writer, who), code_name(c->write_pc));
}

/* ---- one cell ---- */

static void check_after_write(const Access *a, const Cell *c) {
    if (c->copying) fail_copying(a, c);
    if (a->atomic && c->atomic) return;
    if (c->write_phase < emu_now.block ||
        (c->write_phase == emu_now.phase && c->writer != emu_now.thread &&
         !emu_ordered(c->writer, c->write_stamp, false)))
        fail_race(a, c, -1);
}

static void check_written(const Access *a, const Cell *c, unsigned bytes) {
    if (a->space == DEVICE || (c->written & bytes) == bytes) return;
    char where[128];
    emu_fail("reads %s (%s), which nobody of this block has written yet", place(a, c, where),
             emu_code_name(a->pc));
}

/* Readers that nothing orders, where clocks order threads; -1: no more room. */
static int new_set(void) {
    if (!sets) {
        sets = mmap(NULL, MAX_SETS * sizeof *sets, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (sets == MAP_FAILED) emu_fail("no address space to watch memory with");
    }
    if (!n_free_sets && n_sets == MAX_SETS) return -1;
    const int i = n_free_sets ? free_sets[--n_free_sets] : n_sets++;
    memset(sets[i], 0, (size_t)emu_block_threads() * sizeof *sets[i]);
    return i;
}

static void drop_set(const Cell *c) {
    if (c->read_phase >= emu_now.block && c->readers == SET) free_sets[n_free_sets++] = c->reader;
}

/* Adds the running thread to those that read the cell in this phase; false: it takes their place,
 * since they come before it. WARPS: nobody knows any more who they are. */
static bool join_readers(Cell *c) {
    const int self = emu_now.thread;
    const uint32_t stamp = emu_syncs[self / EMU_LANES];
    if (c->readers == ONE) {
        if (c->reader == self || emu_ordered(c->reader, c->read_stamp, false)) return false;
        const int set = new_set();
        c->readers = set < 0 ? WARPS : SET;
        if (set < 0) return true;
        sets[set][c->reader] = c->read_stamp + 1;
        c->reader = (uint16_t)set;
    }
    if (c->readers == SET) sets[c->reader][self] = stamp + 1;
    return true;
}

/* One of those that have read the cell in this phase and that the running thread does not know to
 * have done so; -1: there is none. */
static int racing_reader(const Cell *c) {
    const int self = emu_now.thread;
    if (c->readers == ONE)
        return c->reader == self || emu_ordered(c->reader, c->read_stamp, false) ? -1 : c->reader;
    if (c->readers == SET) {
        for (int t = 0; t < emu_block_threads(); t++)
            if (sets[c->reader][t] && t != self && !emu_ordered(t, sets[c->reader][t] - 1, false))
                return t;
        return -1;
    }
    if (emu_clocks_on) return -1;
    return c->readers == LANES && emu_ordered(c->reader, c->read_stamp, true) ? -1 : c->reader;
}

static void note_read(const Access *a, Cell *c, unsigned bytes) {
    const int self = emu_now.thread;
    check_written(a, c, bytes);
    if (c->write_bytes & bytes) check_after_write(a, c);
    if (c->read_phase == emu_now.phase && c->readers == WARPS && c->read_bytes == bytes) return;
    if (c->read_phase && c->read_bytes & bytes) {
        bytes &= c->read_bytes;
        if (c->read_phase < emu_now.block) c->other_block_read = 1;
        if (c->read_phase != emu_now.phase) {
            drop_set(c);
            c->readers = ONE;
        } else if (emu_clocks_on) {
            if (join_readers(c)) return;
            c->readers = ONE;
        } else if (c->reader / EMU_LANES != self / EMU_LANES)
            c->readers = WARPS;
        else if (c->readers == ONE && c->reader != self &&
                 !emu_ordered(c->reader, c->read_stamp, false))
            c->readers = LANES;
        else if (c->readers == LANES && emu_ordered(c->reader, c->read_stamp, true))
            c->readers = ONE;
    } else {
        drop_set(c);
        c->readers = ONE;
        c->other_block_read = 0;
    }
    c->read_phase = emu_now.phase;
    c->read_bytes = bytes & 15;
    c->reader = (uint16_t)self;
    c->read_stamp = emu_syncs[self / EMU_LANES];
    c->read_pc = pc_of(a->pc);
}

/* A write to dynamic shared memory: is it still read beside the threads? */
static void check_engines(const Access *a, const Cell *c) {
    char where[128];
    if (c->sends)
        emu_fail("writes %s (%s) while a copy to device memory reads it: no copies_read",
                 place(a, c, where), emu_code_name(a->pc));
    const uint32_t *clock = emu_clock_of(emu_now.thread), *group = product_reads[c - shared_cells];
    for (int w = 0; w * EMU_WARPGROUP < emu_block_threads(); w++)
        if (group[w] > first_group &&
            !emu_clock_knows(clock, EMU_PRODUCTS + w, group[w] - first_group - 1))
            emu_fail(
                "writes %s (%s) while products of warpgroup %d may read it: wgmma_wait and a "
                "barrier do not come between",
                place(a, c, where), emu_code_name(a->pc), w);
}

static void note_write(const Access *a, Cell *c, unsigned bytes) {
    const int self = emu_now.thread;
    if (a->atomic) check_written(a, c, bytes);
    if (c->write_phase && c->write_bytes & bytes) check_after_write(a, c);
    if (c->read_phase && c->read_bytes & bytes) {
        const bool now = c->read_phase == emu_now.phase;
        const int racing = now ? racing_reader(c) : -1;
        if (c->other_block_read || c->read_phase < emu_now.block || racing >= 0)
            fail_race(a, c, racing >= 0 ? racing : c->reader);
        drop_set(c);
        c->read_phase = 0;
    }
    if (emu_clocks_on && a->space == SHARED) check_engines(a, c);
    c->write_phase = emu_now.phase;
    c->write_bytes = bytes & 15;
    c->written = (c->written | bytes) & 15;
    c->writer = (uint16_t)self;
    c->write_stamp = emu_syncs[self / EMU_LANES];
    c->write_pc = pc_of(a->pc);
    c->atomic = a->atomic;
    c->copying = a->copying;
    c->engine = 0;
}

/* Forgets what was before the block or launch that began with phase `scope`. */
static inline void refresh(Cell *c, uint32_t scope) {
    if (c->write_phase < scope && c->write_phase)
        c->write_phase = 0, c->write_bytes = c->written = c->copying = 0;
    if (c->read_phase < scope && c->read_phase) c->read_phase = 0;
}

/* cells: those of the space that the access is to, where it begins at byte `begin`. */
static inline void note(const Access *a, Cell *cells, uintptr_t begin, size_t bytes) {
    const uint32_t scope = a->space == DEVICE ? emu_now.launch : emu_now.block;
    const uintptr_t end = begin + bytes;
    for (uintptr_t w = begin / 4; w * 4 < end; w++) {
        Cell *c = &cells[w];
        refresh(c, scope);
        unsigned mask = 15;
        if (w * 4 < begin) mask &= 15u << (begin - w * 4);
        if (w * 4 + 4 > end) mask &= 15u >> (w * 4 + 4 - end);
        if (a->write)
            note_write(a, c, mask);
        else
            note_read(a, c, mask);
    }
}

/* ---- one access ---- */

__attribute__((noreturn)) static void fail_nowhere(const Access *a, uintptr_t at, size_t bytes) {
    const char *const verb = a->write ? "writes" : "reads";
    const char *const place = emu_code_name(a->pc);
    if (at - (uintptr_t)emu_now.shared < emu_now.shared_bytes + (4 << 10))
        emu_fail("%s %zu bytes at byte %zu of dynamic shared memory (%s), which has %zu", verb,
                 bytes, at - (uintptr_t)emu_now.shared, place, emu_now.shared_bytes);
    if (at - (uintptr_t)emu_region < REGION_BYTES)
        emu_fail("%s %zu bytes of device memory at %p (%s) outside of what is allocated", verb,
                 bytes, (const void *)at, place);
    emu_fail("%s %zu bytes at %p (%s), which is not the device's memory", verb, bytes,
             (const void *)at, place);
}

/* Not in the block's own memories: parameters, constants and pinned memory are allowed. */
static void check_elsewhere(const Access *a, uintptr_t at, size_t bytes) {
    const Range parameters = {(uintptr_t)emu_now.closure, emu_now.closure_bytes};
    const Range constants = {(uintptr_t)__start_emu_constant,
                             (size_t)(__stop_emu_constant - __start_emu_constant)};
    const bool readable = in(parameters, at, bytes) || in(constants, at, bytes);
    if (!(readable && !a->write) && !emu_is_pinned((const void *)at, bytes))
        fail_nowhere(a, at, bytes);
}

/* In one 8 bytes of the region, all of them live. */
static inline bool plainly_live(uintptr_t in_region, size_t bytes) {
    return in_region % 8 + bytes <= emu_live[in_region / 8];
}

static inline __attribute__((always_inline)) void check_access(const void *p, size_t bytes,
                                                               Access a) {
    const uintptr_t at = (uintptr_t)p, in_shared = at - (uintptr_t)emu_now.shared,
                    in_region = at - (uintptr_t)emu_region;
    if (at - own.low < own.bytes) return;
    a.at = p;
    if (in_shared < emu_now.shared_bytes && bytes <= emu_now.shared_bytes - in_shared) {
        a.space = SHARED;
        note(&a, shared_cells, in_shared, bytes);
    } else if (in_region < REGION_BYTES) {
        if (!plainly_live(in_region, bytes) && !emu_is_live(p, bytes)) fail_nowhere(&a, at, bytes);
        a.space = DEVICE;
        note(&a, device_cells, in_region, bytes);
    } else if (in(statics, at, bytes)) {
        a.space = STATIC;
        note(&a, static_cells, at - statics.low, bytes);
    } else {
        check_elsewhere(&a, at, bytes);
    }
}

void emu_read(const void *p, size_t bytes, const void *pc) {
    check_access(p, bytes, (Access){.pc = pc});
}
void emu_write(const void *p, size_t bytes, const void *pc) {
    check_access(p, bytes, (Access){.pc = pc, .write = true});
}
void emu_read_write_atomic(const void *p, size_t bytes, const void *pc) {
    check_access(p, bytes, (Access){.pc = pc, .write = true, .atomic = true});
}
void emu_copy_starts(void *to, size_t bytes, const void *pc) {
    check_access(to, bytes, (Access){.pc = pc, .write = true, .copying = true});
}

static Cell *cells_at(const void *p) {
    const uintptr_t at = (uintptr_t)p;
    if (at - (uintptr_t)emu_now.shared < emu_now.shared_bytes)
        return shared_cells + (at - (uintptr_t)emu_now.shared) / 4;
    if (at - (uintptr_t)emu_region < REGION_BYTES)
        return device_cells + (at - (uintptr_t)emu_region) / 4;
    return static_cells + (at - statics.low) / 4;
}

void emu_copy_lands(void *to, size_t bytes, const void *pc) {
    Cell *cells = cells_at(to);
    for (size_t i = 0; i < bytes / 4; i++) cells[i].copying = 0;
    emu_write(to, bytes, pc);
}

/* ---- the asynchronous proxy: what copies and products touch beside the threads ---- */

/* A read of shared memory for who has this clock. */
static void check_async_read(const Access *a, Cell *c, const uint32_t *clock) {
    char where[128], who[96];
    refresh(c, emu_now.block);
    check_written(a, c, 15);
    if (c->copying) fail_copying(a, c);
    if (c->write_phase == emu_now.phase && c->writer != emu_now.thread &&
        !emu_clock_knows(clock, c->writer, c->write_stamp))
        fail_race(a, c, -1);
    if (c->writer < EMU_MAX_THREADS && !emu_clock_sees_fenced(clock, c->writer, c->write_stamp))
        emu_fail(
            "reads %s (%s), which %s wrote (%s) with no fence_shared_to_async after it and before "
            "the barrier",
            place(a, c, where), emu_code_name(a->pc), who_name(c->writer, who),
            code_name(c->write_pc));
}

void emu_product_reads(const void *p, size_t bytes, const uint32_t *clock, int warpgroup,
                       uint32_t group, const void *pc) {
    const Access a = {.pc = pc, .at = p, .space = SHARED};
    Cell *c = cells_at(p);
    last_group = last_group > first_group + group + 1 ? last_group : first_group + group + 1;
    for (size_t i = 0; i < bytes / 4; i++) {
        check_async_read(&a, &c[i], clock);
        product_reads[c + i - shared_cells][warpgroup] = first_group + group + 1;
    }
}

void emu_send_starts(const void *p, size_t bytes, const void *pc) {
    const Access a = {.pc = pc, .at = p, .space = SHARED};
    Cell *c = cells_at(p);
    for (size_t i = 0; i < bytes / 4; i++) {
        check_async_read(&a, &c[i], emu_clock_of(emu_now.thread));
        if (++c[i].sends == 0) emu_fail("more than 255 copies read one word of shared memory");
    }
}

void emu_send_ends(const void *p, size_t bytes, const void *pc) {
    Cell *c = cells_at(p);
    for (size_t i = 0; i < bytes / 4; i++) c[i].sends--;
    emu_read(p, bytes, pc);
}

void emu_bulk_lands(void *to, size_t bytes, int engine, uint32_t stamp) {
    Cell *c = cells_at(to);
    for (size_t i = 0; i < bytes / 4; i++) {
        c[i].copying = 0;
        c[i].writer = (uint16_t)engine;
        c[i].write_stamp = stamp;
        c[i].write_phase = emu_now.phase;
    }
}

void emu_engine_touches(const void *p, size_t bytes, const void *pc) {
    const Cell *c = cells_at(p);
    for (size_t i = 0; i < bytes / 4; i++)
        if (c[i].write_phase >= emu_now.launch && !c[i].engine)
            emu_fail(
                "copies from or to device memory at byte %zu (%s), which this launch wrote by "
                "ordinary accesses (%s): the copy engine need not see them",
                (size_t)(c + i - device_cells) * 4, emu_code_name(pc), code_name(c[i].write_pc));
}

void emu_store_lands(void *to, size_t bytes, const void *pc) {
    emu_copy_lands(to, bytes, pc);
    Cell *c = cells_at(to);
    for (size_t i = 0; i < bytes / 4; i++) c[i].engine = 1;
}

void emu_accesses_end_block(void) {
    n_sets = n_free_sets = 0;
    first_group = last_group;
}

bool emu_is_shared(const void *p, size_t bytes) {
    const Range dynamic = {(uintptr_t)emu_now.shared, emu_now.shared_bytes};
    return in(dynamic, (uintptr_t)p, bytes) || in(statics, (uintptr_t)p, bytes);
}

/* ---- what the compiler calls ---- */

#define PC __builtin_return_address(0)

#define CALLED(name, check, n)                    \
    void name(const void *p);                     \
    void name(const void *p) { check(p, n, PC); } \
    void name(const void *p)
CALLED(__tsan_read1, emu_read, 1);
CALLED(__tsan_write1, emu_write, 1);
CALLED(__tsan_read2, emu_read, 2);
CALLED(__tsan_write2, emu_write, 2);
CALLED(__tsan_read4, emu_read, 4);
CALLED(__tsan_write4, emu_write, 4);
CALLED(__tsan_read8, emu_read, 8);
CALLED(__tsan_write8, emu_write, 8);
CALLED(__tsan_read16, emu_read, 16);
CALLED(__tsan_write16, emu_write, 16);
CALLED(__tsan_unaligned_read2, emu_read, 2);
CALLED(__tsan_unaligned_write2, emu_write, 2);
CALLED(__tsan_unaligned_read4, emu_read, 4);
CALLED(__tsan_unaligned_write4, emu_write, 4);
CALLED(__tsan_unaligned_read8, emu_read, 8);
CALLED(__tsan_unaligned_write8, emu_write, 8);
CALLED(__tsan_unaligned_read16, emu_read, 16);
CALLED(__tsan_unaligned_write16, emu_write, 16);

void __tsan_init(void);
void __tsan_read_range(const void *p, size_t bytes);
void __tsan_write_range(const void *p, size_t bytes);
void __tsan_init(void) {}
void __tsan_read_range(const void *p, size_t bytes) { emu_read(p, bytes, PC); }
void __tsan_write_range(const void *p, size_t bytes) { emu_write(p, bytes, PC); }

void *emu_memcpy(void *to, const void *from, size_t bytes);
void *emu_memmove(void *to, const void *from, size_t bytes);
void *emu_memset(void *to, int value, size_t bytes);
void *emu_memcpy(void *to, const void *from, size_t bytes) {
    if (bytes) emu_read(from, bytes, PC), emu_write(to, bytes, PC);
    return memcpy(to, from, bytes);
}
void *emu_memmove(void *to, const void *from, size_t bytes) {
    if (bytes) emu_read(from, bytes, PC), emu_write(to, bytes, PC);
    return memmove(to, from, bytes);
}
void *emu_memset(void *to, int value, size_t bytes) {
    if (bytes) emu_write(to, bytes, PC);
    return memset(to, value, bytes);
}

/* -fsanitize=alignment,bounds of the kernels: a GPU faults where an address is not a multiple of
 * the type's size. The structs are GCC's. */
typedef struct Source {
    const char *file;
    uint32_t line, column;
} Source;
typedef struct Mismatch {
    Source at;
    const void *type;
    uint8_t log_alignment, kind;
} Mismatch;

void __ubsan_handle_type_mismatch_v1_abort(const Mismatch *m, uintptr_t p);
void __ubsan_handle_out_of_bounds_abort(const Source *at, uintptr_t index);
void __ubsan_handle_type_mismatch_v1_abort(const Mismatch *m, uintptr_t p) {
    emu_fail("%s:%u: address %p is not aligned to %d bytes", m->at.file, m->at.line, (void *)p,
             1 << m->log_alignment);
}
void __ubsan_handle_out_of_bounds_abort(const Source *at, uintptr_t index) {
    emu_fail("%s:%u: index %zd is outside of the array", at->file, at->line, (ssize_t)index);
}

#else

void emu_own_stack(const char *low, size_t bytes) { (void)low, (void)bytes; }
void emu_own_everything(void) {}
void emu_forget_accesses(void) {}
void emu_read(const void *p, size_t bytes, const void *pc) { (void)p, (void)bytes, (void)pc; }
void emu_write(const void *p, size_t bytes, const void *pc) { (void)p, (void)bytes, (void)pc; }
void emu_read_write_atomic(const void *p, size_t bytes, const void *pc) {
    (void)p, (void)bytes, (void)pc;
}
void emu_copy_starts(void *to, size_t bytes, const void *pc) { (void)to, (void)bytes, (void)pc; }
void emu_copy_lands(void *to, size_t bytes, const void *pc) { (void)to, (void)bytes, (void)pc; }
void emu_store_lands(void *to, size_t bytes, const void *pc) { (void)to, (void)bytes, (void)pc; }
void emu_product_reads(const void *p, size_t bytes, const uint32_t *clock, int warpgroup,
                       uint32_t group, const void *pc) {
    (void)p, (void)bytes, (void)clock, (void)warpgroup, (void)group, (void)pc;
}
void emu_send_starts(const void *p, size_t bytes, const void *pc) {
    (void)p, (void)bytes, (void)pc;
}
void emu_send_ends(const void *p, size_t bytes, const void *pc) { (void)p, (void)bytes, (void)pc; }
void emu_bulk_lands(void *to, size_t bytes, int engine, uint32_t stamp) {
    (void)to, (void)bytes, (void)engine, (void)stamp;
}
void emu_engine_touches(const void *p, size_t bytes, const void *pc) {
    (void)p, (void)bytes, (void)pc;
}
void emu_accesses_end_block(void) {}
bool emu_is_shared(const void *p, size_t bytes) {
    (void)bytes;
    return p && !emu_is_device(p);
}

#endif
