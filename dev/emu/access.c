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
 * several races on one word some are not seen; what is reported is always one. */
#include <link.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "dev/emu/cell.h"
#include "dev/emu/clock.h"
#include "dev/emu/parts.h"

#ifndef __SANITIZE_ADDRESS__

typedef struct Range {
    uintptr_t low;
    size_t bytes;
} Range;

static __thread Range own = {0, SIZE_MAX}; /* what passes: a fiber's stack; on the host all */
static __thread Range statics;             /* the thread-local segment: static shared memory */
uintptr_t emu_program;
Cell *emu_cells[3];

extern char __start_emu_constant[] __attribute__((weak));
extern char __stop_emu_constant[] __attribute__((weak));

static int find_statics(struct dl_phdr_info *info, size_t size, void *arg) {
    (void)size, (void)arg;
    for (int i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_TLS)
            statics = (Range){(uintptr_t)info->dlpi_tls_data, info->dlpi_phdr[i].p_memsz};
    emu_program = info->dlpi_addr;
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
    if (!emu_cells[SHARED]) {
        emu_cells[SHARED] = cells_for(EMU_MAX_SHARED);
        emu_cells[STATIC] = cells_for(statics.bytes);
        emu_cells[DEVICE] = cells_for(REGION_BYTES);
    }
    own = (Range){(uintptr_t)low, bytes};
}

void emu_own_everything(void) { own = (Range){0, SIZE_MAX}; }

void emu_forget_accesses(void) {
    if (!emu_cells[SHARED]) return;
    madvise(emu_cells[SHARED], cells_bytes(EMU_MAX_SHARED), MADV_DONTNEED);
    madvise(emu_cells[STATIC], cells_bytes(statics.bytes), MADV_DONTNEED);
    madvise(emu_cells[DEVICE], cells_bytes(REGION_BYTES), MADV_DONTNEED);
}

static bool in(Range r, uintptr_t at, size_t bytes) {
    return at - r.low < r.bytes && bytes <= r.bytes - (at - r.low);
}

/* ---- one cell ---- */

static void check_after_write(const Access *a, const Cell *c) {
    if (c->copying) emu_fail_copying(a, c);
    if (a->atomic && c->atomic) return;
    if (c->write_phase < emu_now.block ||
        (c->write_phase == emu_now.phase && c->writer != emu_now.thread &&
         !emu_ordered(c->writer, c->write_stamp, false)))
        emu_fail_race(a, c, -1);
}

/* scope: with which phase the block or launch began that the cell's space belongs to; what is older
 * counts no more. */
static void note_read(const Access *a, Cell *c, unsigned bytes, uint32_t scope) {
    const int self = emu_now.thread;
    cell_check_written(a, c, bytes, scope);
    if (c->write_bytes & bytes && c->write_phase >= scope) check_after_write(a, c);
    if (c->read_phase == emu_now.phase && c->readers == WARPS && c->read_bytes == bytes) return;
    if (c->read_phase >= scope && c->read_bytes & bytes) {
        bytes &= c->read_bytes;
        if (c->read_phase < emu_now.block) c->other_block_read = 1;
        if (c->read_phase != emu_now.phase) {
            if (emu_clocks_on) emu_readers_drop(c);
            c->readers = ONE;
        } else if (emu_clocks_on) {
            if (emu_readers_join(c, bytes)) return;
            c->readers = ONE;
        } else if (c->reader / EMU_LANES != self / EMU_LANES)
            c->readers = WARPS;
        else if (c->readers == ONE && c->reader != self &&
                 !emu_ordered(c->reader, c->read_stamp, false))
            c->readers = LANES;
        else if (c->readers == LANES && emu_ordered(c->reader, c->read_stamp, true))
            c->readers = ONE;
    } else {
        if (emu_clocks_on) emu_readers_drop(c);
        c->readers = ONE;
        c->other_block_read = 0;
    }
    c->read_phase = emu_now.phase;
    c->read_bytes = bytes & 15;
    c->reader = (uint16_t)self;
    c->read_stamp = emu_syncs[self / EMU_LANES];
    c->read_pc = cell_pc(a->pc);
}

/* One of those that have read the cell in this phase and that nothing orders before the running
 * thread; -1: there is none. */
static inline int racing_reader(const Cell *c) {
    if (emu_clocks_on) return emu_racing_reader(c);
    const bool races = c->readers == WARPS ||
                       (c->readers == LANES && !emu_ordered(c->reader, c->read_stamp, true)) ||
                       (c->readers == ONE && c->reader != emu_now.thread &&
                        !emu_ordered(c->reader, c->read_stamp, false));
    return races ? c->reader : -1;
}

static void note_write(const Access *a, Cell *c, unsigned bytes, uint32_t scope) {
    const int self = emu_now.thread;
    const bool fresh = c->write_phase < scope;
    if (a->atomic) cell_check_written(a, c, bytes, scope);
    if (!fresh && c->write_bytes & bytes) check_after_write(a, c);
    if (c->read_phase >= scope && c->read_bytes & bytes) {
        const int racing = c->read_phase == emu_now.phase ? racing_reader(c) : -1;
        if (c->other_block_read || c->read_phase < emu_now.block || racing >= 0)
            emu_fail_race(a, c, racing >= 0 ? racing : c->reader);
        if (emu_clocks_on) emu_readers_drop(c);
        c->read_phase = 0;
    }
    if (emu_clocks_on && a->space == SHARED) emu_check_engines(a, c);
    c->write_phase = emu_now.phase;
    c->write_bytes = bytes & 15;
    c->written = ((fresh ? 0 : c->written) | bytes) & 15;
    c->writer = (uint16_t)self;
    c->write_stamp = emu_syncs[self / EMU_LANES];
    c->write_pc = cell_pc(a->pc);
    c->atomic = a->atomic;
    c->copying = a->copying;
    c->engine = 0;
}

/* cells: those of the space that the access is to, where it begins at byte `begin`. */
static inline void note(const Access *a, Cell *cells, uintptr_t begin, size_t bytes) {
    const uint32_t scope = a->space == DEVICE ? emu_now.launch : emu_now.block;
    const uintptr_t end = begin + bytes;
    for (uintptr_t w = begin / 4; w * 4 < end; w++) {
        Cell *c = &cells[w];
        unsigned mask = 15;
        if (w * 4 < begin) mask &= 15u << (begin - w * 4);
        if (w * 4 + 4 > end) mask &= 15u >> (w * 4 + 4 - end);
        if (a->write)
            note_write(a, c, mask, scope);
        else
            note_read(a, c, mask, scope);
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
    if (in_shared < emu_now.shared_bytes && bytes <= emu_now.shared_bytes - in_shared) {
        a.space = SHARED;
        note(&a, emu_cells[SHARED], in_shared, bytes);
    } else if (in_region < REGION_BYTES) {
        if (!plainly_live(in_region, bytes) && !emu_is_live(p, bytes)) fail_nowhere(&a, at, bytes);
        a.space = DEVICE;
        note(&a, emu_cells[DEVICE], in_region, bytes);
    } else if (in(statics, at, bytes)) {
        a.space = STATIC;
        note(&a, emu_cells[STATIC], at - statics.low, bytes);
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

Cell *emu_cells_at(const void *p) {
    const uintptr_t at = (uintptr_t)p, in_shared = at - (uintptr_t)emu_now.shared,
                    in_region = at - (uintptr_t)emu_region;
    if (in_shared < emu_now.shared_bytes) return emu_cells[SHARED] + in_shared / 4;
    if (in_region < REGION_BYTES) return emu_cells[DEVICE] + in_region / 4;
    return emu_cells[STATIC] + (at - statics.low) / 4;
}

void emu_copy_lands(void *to, size_t bytes, const void *pc) {
    Cell *cells = emu_cells_at(to);
    for (size_t i = 0; i < cells_of(bytes); i++) cells[i].copying = 0;
    emu_write(to, bytes, pc);
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
bool emu_is_shared(const void *p, size_t bytes) {
    (void)bytes;
    return p && !emu_is_device(p);
}

#endif
