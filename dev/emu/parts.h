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
extern unsigned emu_syncs[EMU_MAX_THREADS / EMU_LANES]; /* __syncwarps of each warp in this phase */

/* Whether what `thread` did in this phase, when its warp's emu_syncs was `stamp`, comes before what
 * the running thread does now; all: and what any other lane of thread's warp did. */
bool emu_ordered(int thread, uint16_t stamp, bool all);

/* "file:line" of code, or "?"; in static memory, four at a time. */
const char *emu_code_name(const void *pc);

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

/* Ends all copies of the threads of a block that has ended. */
void emu_copies_forget(void);

#endif
