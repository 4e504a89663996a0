/* Copies and products beside the threads: shared memory that a copy will write is `copying` until
 * it lands, what one will read is counted in `sends` until it has; products leave the number of
 * their group in product_reads. */
#include "dev/emu/cell.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "dev/emu/bulk.h"
#include "dev/emu/clock.h"

#ifndef __SANITIZE_ADDRESS__

/* ---- sentences ---- */

static const char *const SPACE[] = {"byte %zu of dynamic shared memory",
                                    "a __shared__ variable (byte %zu of them)",
                                    "device memory at byte %zu"};

static const char *place(const Access *a, const Cell *c, char text[128]) {
    snprintf(text, 128, SPACE[a->space], (size_t)(c - emu_cells[a->space]) * 4);
    return text;
}

static const char *code_name(uint32_t pc) {
    return emu_code_name(pc >> 31 ? emu_pc_of_module(pc) : (const void *)(emu_program + pc));
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

void emu_fail_race(const Access *a, const Cell *c, int who) {
    const bool wrote = who < 0;
    const bool same_block = (wrote ? c->write_phase : c->read_phase) >= emu_now.block;
    char where[128], other[96] = "another block";
    if (same_block) who_name(wrote ? c->writer : who, other);
    emu_fail("race: %s %s (%s), which %s %s (%s) with no %s between", a->write ? "writes" : "reads",
             place(a, c, where), emu_code_name(a->pc), other, wrote ? "wrote" : "read",
             code_name(wrote ? c->write_pc : c->read_pc), same_block ? "barrier" : "launch");
}

void emu_fail_copying(const Access *a, const Cell *c) {
    char where[128], who[96];
    const char *const verb = a->write ? "writes" : "reads", *const at = emu_code_name(a->pc);
    place(a, c, where);
    if (a->space == SHARED && emu_is_barrier(emu_now.shared + 4 * (c - emu_cells[SHARED])))
        emu_fail("%s %s (%s), which is a Barrier", verb, where, at);
    emu_fail(
        "%s %s (%s) while an asynchronous copy that %s began (%s) is under way: it was not "
        "waited for",
        verb, where, at, who_name(c->writer, who), code_name(c->write_pc));
}

void emu_fail_unwritten(const Access *a, const Cell *c) {
    char where[128];
    emu_fail("reads %s (%s), which nobody of this block has written yet", place(a, c, where),
             emu_code_name(a->pc));
}

/* ---- readers that clocks order ---- */

/* Threads that read a cell with nothing between: their stamps + 1. Of this block. */
enum { MAX_SETS = 1 << 16 };
static uint32_t (*sets)[EMU_MAX_THREADS];
static int n_sets, n_free_sets;
static uint16_t free_sets[MAX_SETS];

/* -1: no more room */
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

void emu_readers_drop(const Cell *c) {
    if (c->read_phase >= emu_now.block && c->readers == SET) free_sets[n_free_sets++] = c->reader;
}

bool emu_readers_join(Cell *c, unsigned bytes) {
    const int self = emu_now.thread;
    if (c->readers == ONE) {
        if (c->reader == self || emu_ordered(c->reader, c->read_stamp, false)) return false;
        const int set = new_set();
        c->readers = set < 0 ? WARPS : SET;
        if (set < 0) return true;
        sets[set][c->reader] = c->read_stamp + 1;
        c->reader = (uint16_t)set;
    }
    if (c->readers == SET) sets[c->reader][self] = emu_syncs[self / EMU_LANES] + 1;
    c->read_bytes = bytes & 15;
    return true;
}

int emu_racing_reader(const Cell *c) {
    const int self = emu_now.thread;
    if (c->readers == ONE)
        return c->reader == self || emu_ordered(c->reader, c->read_stamp, false) ? -1 : c->reader;
    if (c->readers == SET) {
        for (int t = 0; t < emu_block_threads(); t++)
            if (sets[c->reader][t] && t != self && !emu_ordered(t, sets[c->reader][t] - 1, false))
                return t;
        return -1;
    }
    return -1; /* noted before there were clocks, or where there was no more room */
}

/* ---- products and copies ---- */

/* The latest group of products, by warpgroup, that reads a cell of dynamic shared memory; numbers
 * go on from block to block. */
static uint32_t product_reads[EMU_MAX_SHARED / 4][EMU_WARPGROUPS];
static uint32_t first_group, last_group; /* of this block; of all so far */

void emu_check_engines(const Access *a, const Cell *c) {
    char where[128];
    if (c->sends)
        emu_fail("writes %s (%s) while a copy to device memory reads it: no copies_read",
                 place(a, c, where), emu_code_name(a->pc));
    const uint32_t *clock = emu_clock_of(emu_now.thread),
                   *group = product_reads[c - emu_cells[SHARED]];
    for (int w = 0; w * EMU_WARPGROUP < emu_block_threads(); w++)
        if (group[w] > first_group &&
            !emu_clock_knows(clock, EMU_PRODUCTS + w, group[w] - first_group - 1))
            emu_fail(
                "writes %s (%s) while products of warpgroup %d may read it: wgmma_wait and a "
                "barrier do not come between",
                place(a, c, where), emu_code_name(a->pc), w);
}

/* A read of shared memory for who has this clock. */
static void check_async_read(const Access *a, Cell *c, const uint32_t *clock) {
    char where[128], who[96];
    cell_check_written(a, c, 15, emu_now.block);
    if (c->copying) emu_fail_copying(a, c);
    if (c->write_phase == emu_now.phase && c->writer != emu_now.thread &&
        !emu_clock_knows(clock, c->writer, c->write_stamp))
        emu_fail_race(a, c, -1);
    if (c->writer < EMU_MAX_THREADS && !emu_clock_sees_fenced(clock, c->writer, c->write_stamp))
        emu_fail(
            "reads %s (%s), which %s wrote (%s) with no fence_shared_to_async after it and before "
            "the barrier",
            place(a, c, where), emu_code_name(a->pc), who_name(c->writer, who),
            code_name(c->write_pc));
}

void emu_product_reads(const void *p, size_t bytes, const uint32_t *clock, int warpgroup,
                       uint32_t group, const void *pc) {
    const Access a = {.pc = pc, .space = SHARED};
    Cell *c = emu_cells_at(p);
    last_group = last_group > first_group + group + 1 ? last_group : first_group + group + 1;
    for (size_t i = 0; i < cells_of(bytes); i++) {
        check_async_read(&a, &c[i], clock);
        product_reads[c + i - emu_cells[SHARED]][warpgroup] = first_group + group + 1;
    }
}

void emu_send_starts(const void *p, size_t bytes, const void *pc) {
    const Access a = {.pc = pc, .space = SHARED};
    Cell *c = emu_cells_at(p);
    for (size_t i = 0; i < cells_of(bytes); i++) {
        check_async_read(&a, &c[i], emu_clock_of(emu_now.thread));
        if (++c[i].sends == 0) emu_fail("more than 255 copies read one word of shared memory");
    }
}

void emu_send_ends(const void *p, size_t bytes, const void *pc) {
    Cell *c = emu_cells_at(p);
    for (size_t i = 0; i < cells_of(bytes); i++) c[i].sends--;
    emu_read(p, bytes, pc);
}

void emu_bulk_lands(void *to, size_t bytes, int engine, uint32_t stamp) {
    Cell *c = emu_cells_at(to);
    for (size_t i = 0; i < cells_of(bytes); i++) {
        c[i].copying = 0;
        c[i].writer = (uint16_t)engine;
        c[i].write_stamp = stamp;
        c[i].write_phase = emu_now.phase;
    }
}

void emu_engine_touches(const void *p, size_t bytes, const void *pc) {
    const Cell *c = emu_cells_at(p);
    for (size_t i = 0; i < cells_of(bytes); i++)
        if (c[i].write_phase >= emu_now.launch && !c[i].engine && !c[i].copying)
            emu_fail(
                "copies from or to device memory at byte %zu (%s), which this launch wrote by "
                "ordinary accesses (%s): the copy engine need not see them",
                (size_t)(c + i - emu_cells[DEVICE]) * 4, emu_code_name(pc),
                code_name(c[i].write_pc));
}

void emu_store_lands(void *to, size_t bytes, const void *pc) {
    emu_copy_lands(to, bytes, pc);
    Cell *c = emu_cells_at(to);
    for (size_t i = 0; i < cells_of(bytes); i++) c[i].engine = 1;
}

void emu_accesses_end_block(void) {
    n_sets = n_free_sets = 0;
    first_group = last_group;
}

#else

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

#endif
