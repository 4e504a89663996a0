/* What is remembered of each 4 bytes of a kernel's memories, and what is made of it: access.c keeps
 * account of ordinary accesses, cell.c of those beside the threads, and has the sentences. */
#ifndef DEV_EMU_CELL_H
#define DEV_EMU_CELL_H

#include "dev/emu/parts.h"

static inline size_t cells_of(size_t bytes) { return (bytes + 3) / 4; }

#define REGION_BYTES ((size_t)1 << EMU_REGION_SHIFT)

/* Several lanes of one warp; several warps; a set of `sets`: where clocks order threads */
typedef enum Readers { ONE, LANES, WARPS, SET } Readers;

typedef struct Cell {
    uint32_t write_phase, read_phase; /* 0: none */
    uint32_t write_pc, read_pc;       /* cell_pc */
    uint32_t write_stamp, read_stamp;
    uint16_t writer, reader;                              /* threads of their block, engines; set */
    uint8_t write_bytes : 4, read_bytes : 4, written : 4; /* written: ever in this scope */
    uint8_t readers : 2, other_block_read : 1;
    uint8_t atomic : 1, copying : 1, engine : 1; /* the write: an atomic's; of a copy under way; of
                                                    the copy engine, done */
    uint8_t sends;                               /* copies under way that read it */
} Cell;

typedef enum Space { SHARED, STATIC, DEVICE } Space;
typedef struct Access {
    const void *pc;
    Space space;
    bool write, atomic, copying;
} Access;

extern Cell *emu_cells[3];    /* by space */
extern uintptr_t emu_program; /* where the program begins */

Cell *emu_cells_at(const void *p); /* that of the 4 bytes at p, in any space */

/* Code is kept as 32 bits: where it lies in the program, or with the upper bit in a module that
 * was loaded later. */
static inline uint32_t cell_pc(const void *pc) {
    const uintptr_t offset = (uintptr_t)pc - emu_program;
    return offset >> 31 ? emu_module_pc(pc) : (uint32_t)offset;
}

/* Each ends the process with a sentence. who: one of those that read the cell, where it is their
 * race; -1: its writer's */
void emu_fail_race(const Access *a, const Cell *c, int who) __attribute__((noreturn));
void emu_fail_copying(const Access *a, const Cell *c) __attribute__((noreturn));
void emu_fail_unwritten(const Access *a, const Cell *c) __attribute__((noreturn));

static inline void cell_check_written(const Access *a, const Cell *c, unsigned bytes,
                                      uint32_t scope) {
    if (a->space != DEVICE && ((c->written & bytes) != bytes || c->write_phase < scope))
        emu_fail_unwritten(a, c);
}

/* Where clocks order threads (clock.h) a cell may have a set of readers that nothing orders.
 * join: adds the running thread, which reads these bytes, to those that read the cell in this
 * phase; false: it takes their place, since they come before it. racing: one of them that nothing
 * orders before the running thread, -1: there is none. drop: forgets the set. */
bool emu_readers_join(Cell *c, unsigned bytes);
int emu_racing_reader(const Cell *c);
void emu_readers_drop(const Cell *c);

/* A write to dynamic shared memory: is it still read beside the threads? */
void emu_check_engines(const Access *a, const Cell *c);

#endif
