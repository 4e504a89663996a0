/* The copy engine: boxes and bytes to shared memory, which a Barrier counts, and from there to
 * device memory, in groups of the thread that calls.
 *
 * A copy happens as late as it may. To shared memory: when somebody waits for the phase that counts
 * its bytes; until then its destination is NaN and nobody may touch it. From shared memory: its
 * source is read when its thread waits for that (or for the whole), its destination written when
 * the thread waits for the whole, or when the block has ended; until then it is NaN. */
#include "dev/emu/bulk.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dev/emu/clock.h"
#include "dev/emu/parts.h"
#include "dev/emu/ptx_sm90.h"

#define PC __builtin_return_address(0)
enum { UNIT = 16, LINE = 128, PANEL = 1024, MAP_ALIGN = 64 };

typedef enum Kind { COPY_BOX, STORE_BOX, COPY_BYTES, STORE_BYTES, ADD_BYTES } Kind;
static const char *const OP[] = {"copy_box", "store_box", "copy_bytes", "store_bytes", "add_bytes"};

typedef struct Bulk {
    Kind kind;
    char *shared, *device; /* device: of bytes, not of boxes */
    size_t bytes;          /* in shared memory */
    EmuMap map;
    int at[4];
    int barrier, phase; /* of copies to shared memory */
    int thread, group;  /* of copies from there */
    char *data;         /* ... what was read of it, in its layout; add: and what was there */
    bool read;
    const void *pc;
} Bulk;

typedef struct Bulks {
    Bulk *bulk;
    int n, max;
} Bulks;

static Bulks loads, stores;         /* under way, oldest first */
static int groups[EMU_MAX_THREADS]; /* that a thread has closed */

static void push(Bulks *b, Bulk bulk) {
    if (b->n == b->max) {
        b->max = 2 * b->max + 32;
        b->bulk = realloc(b->bulk, (size_t)b->max * sizeof *b->bulk);
        if (!b->bulk) emu_fail("no memory for the list of copies");
    }
    b->bulk[b->n++] = bulk;
}

static void drop(Bulks *b, int i) {
    free(b->bulk[i].data);
    memmove(b->bulk + i, b->bulk + i + 1, (size_t)(--b->n - i) * sizeof *b->bulk);
}

/* ---- rows: what of a copy lies in one piece of device memory ---- */

/* `bytes` of device memory, which belong `first` bytes into line `line` of `width` bytes in shared
 * memory. */
typedef struct Row {
    char *device;
    size_t line, width, first, bytes;
} Row;

/* The part of a row of the box inside of the tensor; false: there is none. */
static bool box_row(const Bulk *b, const int64_t in_box[3], Row *row) {
    const EmuMap *m = &b->map;
    row->device = m->base;
    for (int d = 1; d < 4; d++) {
        const int64_t i = b->at[d] + in_box[d - 1];
        if (i < 0 || (uint64_t)i >= m->dim[d]) return false;
        row->device += (uint64_t)i * m->stride[d];
    }
    const int64_t begin = b->at[0], end = begin + m->box[0], dim = (int64_t)m->dim[0];
    const int64_t low = begin < 0 ? 0 : begin, high = end > dim ? dim : end;
    if (low >= high) return false;
    row->device += (uint64_t)low * m->stride[0];
    row->first = (size_t)(low - begin) * m->stride[0];
    row->bytes = (size_t)(high - low) * m->stride[0];
    return true;
}

static void for_rows(const Bulk *b, void (*visit)(const Bulk *b, const Row *row)) {
    Row row = {b->device, 0, b->bytes, 0, b->bytes};
    if (b->kind >= COPY_BYTES) {
        visit(b, &row);
        return;
    }
    row.width = b->map.box[0] * b->map.stride[0];
    for (int64_t w = 0; w < b->map.box[3]; w++)
        for (int64_t z = 0; z < b->map.box[2]; z++)
            for (int64_t y = 0; y < b->map.box[1]; y++, row.line++)
                if (box_row(b, (const int64_t[]){y, z, w}, &row)) visit(b, &row);
}

/* Where byte i of a row is, in shared memory or in what was read of it. */
static char *shared_byte(const Bulk *b, const Row *row, size_t i) {
    size_t at = row->line * row->width + row->first + i;
    if (b->map.swizzled) at ^= at / LINE % 8 * UNIT;
    return (b->data ? b->data : b->shared) + at;
}

/* ---- checks ---- */

static void check_shared(Kind kind, const char *p, size_t bytes, size_t align, const void *pc) {
    const size_t at = (size_t)(p - emu_now.shared);
    if (at >= emu_now.shared_bytes)
        emu_fail("%s (%s): %p is not in dynamic shared memory", OP[kind], emu_code_name(pc),
                 (const void *)p);
    if (bytes > emu_now.shared_bytes - at)
        emu_fail("%s (%s): %zu bytes at byte %zu of dynamic shared memory, which has %zu", OP[kind],
                 emu_code_name(pc), bytes, at, emu_now.shared_bytes);
    if (at % align)
        emu_fail("%s (%s): byte %zu of shared memory is not a multiple of %zu", OP[kind],
                 emu_code_name(pc), at, align);
}

static void check_bytes(Kind kind, const void *device, int bytes, const void *pc) {
    if (bytes <= 0 || bytes % UNIT || (uintptr_t)device % UNIT)
        emu_fail("%s (%s): %d bytes of device memory at %p; multiples of 16", OP[kind],
                 emu_code_name(pc), bytes, device);
}

static EmuMap map_of(Kind kind, const void *p, const void *pc) {
    EmuMap m;
    memcpy(&m, p, sizeof m);
    if ((uintptr_t)p % MAP_ALIGN || m.magic != EMU_MAP_MAGIC)
        emu_fail("%s (%s): there is no TensorMap at %p", OP[kind], emu_code_name(pc), p);
    return m;
}

static Bulk box_bulk(Kind kind, const void *map, char *shared, const int at[4], const void *pc) {
    Bulk b = {.kind = kind, .shared = shared, .map = map_of(kind, map, pc), .pc = pc};
    const EmuMap *m = &b.map;
    memcpy(b.at, at, sizeof b.at);
    b.bytes = (size_t)m->box[0] * m->box[1] * m->box[2] * m->box[3] * m->stride[0];
    check_shared(kind, shared, b.bytes, m->swizzled ? PANEL : LINE, pc);
    return b;
}

static void check_live(const Bulk *b, const Row *row) {
    if (!emu_is_live(row->device, row->bytes))
        emu_fail("%s (%s): %zu bytes at %p, which are not live device memory", OP[b->kind],
                 emu_code_name(b->pc), row->bytes, (void *)row->device);
    emu_engine_touches(row->device, row->bytes, b->pc);
}

/* ---- to shared memory ---- */

static void begin_load(const Bulk *b, const Row *row) {
    check_live(b, row);
    emu_read(row->device, row->bytes, b->pc);
}

static void load_row(const Bulk *b, const Row *row) {
    for (size_t i = 0; i < row->bytes; i += sizeof(uint16_t))
        memcpy(shared_byte(b, row, i), row->device + i, sizeof(uint16_t));
}

static void load(Bulk b, void *barrier) {
    b.barrier = emu_barrier_of_copy(barrier, OP[b.kind], b.pc, &b.phase);
    for_rows(&b, begin_load);
    emu_copy_starts(b.shared, b.bytes, b.pc);
    memset(b.shared, 0xff, b.bytes);
    push(&loads, b);
    emu_barrier_brings(b.barrier, (int64_t)b.bytes, OP[b.kind], b.pc);
}

void emu_copy_box(void *to, const void *map, void *barrier, const int at[4]) {
    emu_clocks_begin();
    load(box_bulk(COPY_BOX, map, to, at, PC), barrier);
}

void emu_copy_bytes(void *to, const void *from, int bytes, void *barrier) {
    emu_clocks_begin();
    check_bytes(COPY_BYTES, from, bytes, PC);
    check_shared(COPY_BYTES, to, (size_t)bytes, UNIT, PC);
    Bulk b = {.kind = COPY_BYTES, .shared = to, .bytes = (size_t)bytes, .pc = PC};
    memcpy(&b.device, &from, sizeof from);
    load(b, barrier);
}

void emu_bulk_land(int barrier, int phase) {
    for (int i = 0; i < loads.n;) {
        Bulk *b = &loads.bulk[i];
        if (b->barrier != barrier || b->phase != phase) {
            i++;
            continue;
        }
        emu_bulk_lands(b->shared, b->bytes, EMU_COPIES + barrier, (uint32_t)phase);
        memset(b->shared, 0, b->bytes);
        for_rows(b, load_row);
        drop(&loads, i);
    }
}

/* ---- from shared memory ---- */

/* The destination is NaN from here on; an addition keeps what was there. */
static void begin_store(const Bulk *b, const Row *row) {
    check_live(b, row);
    emu_copy_starts(row->device, row->bytes, b->pc);
    if (b->kind == ADD_BYTES) memcpy(b->data, row->device, row->bytes);
    memset(row->device, 0xff, row->bytes);
}

static void store(Bulk b) {
    if (!(b.data = malloc(b.bytes))) emu_fail("no memory for a copy");
    b.thread = emu_now.thread;
    b.group = groups[b.thread];
    emu_send_starts(b.shared, b.bytes, b.pc);
    for_rows(&b, begin_store);
    push(&stores, b);
}

void emu_store_box(const void *map, const void *from, const int at[4]) {
    emu_clocks_begin();
    char *shared;
    memcpy(&shared, &from, sizeof from);
    store(box_bulk(STORE_BOX, map, shared, at, PC));
}

static void send_bytes(Kind kind, void *to, const void *from, int bytes, const void *pc) {
    emu_clocks_begin();
    check_bytes(kind, to, bytes, pc);
    check_shared(kind, from, (size_t)bytes, UNIT, pc);
    Bulk b = {.kind = kind, .device = to, .bytes = (size_t)bytes, .pc = pc};
    memcpy(&b.shared, &from, sizeof from);
    store(b);
}

void emu_store_bytes(void *to, const void *from, int bytes) {
    send_bytes(STORE_BYTES, to, from, bytes, PC);
}

void emu_add_bytes(float *to, const float *from, int bytes) {
    send_bytes(ADD_BYTES, to, from, bytes, PC);
}

void emu_copies_commit(void) {
    emu_clocks_begin();
    groups[emu_now.thread]++;
}

static void read_source(Bulk *b) {
    if (b->read) return;
    b->read = true;
    emu_send_ends(b->shared, b->bytes, b->pc);
    if (b->kind != ADD_BYTES) {
        memcpy(b->data, b->shared, b->bytes);
        return;
    }
    float *sum = (float *)b->data;
    for (size_t i = 0; i < b->bytes / sizeof *sum; i++) sum[i] += ((const float *)b->shared)[i];
}

static void store_row(const Bulk *b, const Row *row) {
    emu_store_lands(row->device, row->bytes, b->pc);
    for (size_t i = 0; i < row->bytes; i += sizeof(uint16_t))
        memcpy(row->device + i, shared_byte(b, row, i), sizeof(uint16_t));
}

void emu_copies_wait(int pending, bool only_read) {
    emu_clocks_begin();
    const int self = emu_now.thread;
    for (int i = 0; i < stores.n;) {
        Bulk *b = &stores.bulk[i];
        if (b->thread != self || b->group >= groups[self] - pending) {
            i++;
            continue;
        }
        read_source(b);
        if (only_read) {
            i++;
            continue;
        }
        for_rows(b, store_row);
        drop(&stores, i);
    }
}

/* ---- the block has ended ---- */

void emu_bulk_end(void) {
    if (loads.n) {
        emu_now.thread = 0;
        emu_fail(
            "the block has ended while %s (%s) writes its shared memory: nobody waited for phase "
            "%d of the Barrier at byte %zu of shared memory",
            OP[loads.bulk->kind], emu_code_name(loads.bulk->pc), loads.bulk->phase,
            emu_barrier_offset(loads.bulk->barrier));
    }
    while (stores.n) {
        const Bulk *b = &stores.bulk[0];
        emu_now.thread = b->thread;
        if (!b->read)
            emu_fail("the block has ended while %s (%s) reads its shared memory: no %s",
                     OP[b->kind], emu_code_name(b->pc),
                     b->group < groups[b->thread] ? "copies_read" : "copies_commit");
        for_rows(b, store_row);
        drop(&stores, 0);
    }
    memset(groups, 0, sizeof groups);
}

void emu_fence_shared_to_async(void) {
    emu_clocks_begin();
    emu_clock_fence();
}
