/* What the parts of the emulator share; emu.h says what they are for. */
#ifndef DEV_EMU_PARTS_H
#define DEV_EMU_PARTS_H

#include "dev/emu/emu.h"

/* What runs, for access.c and ptx.c. Phases are numbers that grow with each launch, block and
 * barrier and never come back. */
typedef struct Now {
    bool running;           /* inside a launch */
    int thread;             /* the running one, in its block */
    uint32_t launch, block; /* the first phase of this launch, of this block */
    uint32_t phase;         /* since the last barrier */
    char *shared;           /* dynamic shared memory and its size */
    size_t shared_bytes;
    const void *closure; /* the kernel's parameters */
    size_t closure_bytes;
} Now;
extern Now emu_now;
extern unsigned emu_syncs[EMU_MAX_THREADS / EMU_LANES]; /* each warp's time in this block: grows
                                                           where its lanes order something */

/* Whether what `who` (a thread, or an engine of clock.h) did in this phase, when its warp's
 * emu_syncs was `stamp`, comes before what the running thread does now; all: and what any other
 * lane of its warp did. */
bool emu_ordered(int who, uint32_t stamp, bool all);

/* What lane l did when its warp's emu_syncs was below this, thread t of the warp knows by
 * __syncwarp. */
uint32_t emu_lane_knows(int t, int l);

int emu_block_threads(void);

/* The running thread waits until another calls emu_unpark with its number. Where nobody can go on,
 * stuck() is called as that thread and explains why it waits. */
void emu_park(const char *op, const void *pc, void (*stuck)(void));
void emu_unpark(int thread);

/* "waits at ...", "has exited": for sentences; returns text. */
const char *emu_what_does(int thread, char *text, size_t size);

/* "file:line" of code, or "?"; in static memory, eight at a time. Of functions that were inlined
 * the place in the outermost that is not a wrapper of instructions. */
const char *emu_code_name(const void *pc);

/* A number for code of a module that was loaded by dlopen, and back. */
uint32_t emu_module_pc(const void *pc);
const void *emu_pc_of_module(uint32_t number);

/* The GPU that is emulated, and the shared memory of its multiprocessors and of a block at most. */
typedef struct EmuDevice {
    const char *name;
    int major, minor, shared_sm, shared_block;
} EmuDevice;
const EmuDevice *emu_device(void);

/* Name of a function by its address, as above; the kernel that runs. */
const char *emu_function_name(const void *function);
const void *emu_kernel(void);

/* The part of the stack that the running fiber owns; access.c lets it pass. On the host everything
 * passes. */
void emu_own_stack(const char *low, size_t bytes);
void emu_own_everything(void);

/* Forgets all accesses, before the numbers of phases begin again. */
void emu_forget_accesses(void);

/* Checks and notes an access of the running thread, as of one of the kernel's own instructions. */
void emu_read(const void *p, size_t bytes, const void *pc);
void emu_write(const void *p, size_t bytes, const void *pc);
void emu_read_write_atomic(const void *p, size_t bytes, const void *pc);

/* Shared memory that an asynchronous copy will write: a write now, and nobody may touch it until
 * the copy has landed (bytes written by the running thread at that moment). */
void emu_copy_starts(void *to, size_t bytes, const void *pc);
void emu_copy_lands(void *to, size_t bytes, const void *pc);
bool emu_is_shared(const void *p, size_t bytes);

/* The asynchronous proxy, for bulk copies and products; bytes are a multiple of 4. Dynamic shared
 * memory that it reads: for a group of a warpgroup's products, which know of others what clock
 * says; and for a copy of the running thread, from its start to its end. */
void emu_product_reads(const void *p, size_t bytes, const uint32_t *clock, int warpgroup,
                       uint32_t group, const void *pc);
void emu_send_starts(const void *p, size_t bytes, const void *pc);
void emu_send_ends(const void *p, size_t bytes, const void *pc);

/* Shared memory that a copy has written (emu_copy_starts was called): the write of an engine of
 * clock.h, its `stamp`th. */
void emu_bulk_lands(void *to, size_t bytes, int engine, uint32_t stamp);

/* Device memory that a copy will read or write: checks that this launch's ordinary accesses did not
 * write it; and that a copy has written, as emu_copy_lands. */
void emu_engine_touches(const void *p, size_t bytes, const void *pc);
void emu_store_lands(void *to, size_t bytes, const void *pc);
void emu_accesses_end_block(void);

/* Dynamic shared memory for a launch; what it holds is not defined. */
char *emu_shared_begin(size_t bytes);
void emu_shared_end(void);

/* Device memory: one region; open only while kernels and runtime calls are at work. */
enum { EMU_REGION_SHIFT = 33 };
extern char *emu_region;  /* its start; NULL before the first allocation, and under ASan */
extern uint8_t *emu_live; /* how many bytes of each 8 of the region may be touched */
void emu_device_open(void);
void emu_device_close(void);
bool emu_is_device(const void *p);             /* in the region, or under ASan live */
bool emu_is_live(const void *p, size_t bytes); /* inside of one live allocation */
bool emu_is_pinned(const void *p, size_t bytes);
void *emu_device_alloc(size_t bytes); /* NULL: no room */
bool emu_device_release(void *p);
void *emu_pinned_alloc(size_t bytes);
bool emu_pinned_release(void *p);
void emu_device_info(size_t *free_bytes, size_t *total_bytes);

/* A block has ended: its copies (ptx.c), Barriers, bulk copies and products are forgotten, those
 * under way that must not be are found. */
void emu_copies_forget(void);
void emu_barriers_end(void);
void emu_bulk_end(void);
void emu_products_end(void);

#endif
