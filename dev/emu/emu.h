/* CUDA on the CPU: what emulated kernels call, and what the parts of the emulator share.
 *
 * The sources of kernels/cuda are compiled by the host's compiler with the headers of
 * dev/emu/include in the place of the toolkit's. Blocks run one after the other on the thread that
 * launches; a block's threads are fibers (launch.c) that run until they wait: at a barrier, or for
 * the lanes of their warp. Nothing here is a simulation of speed.
 *
 * What is found, each with one sentence on stderr that names kernel, block and thread, and abort():
 *   launch.c    a barrier that some threads do not reach or reach elsewhere; a lane named in a mask
 *               that does not come, or comes to another operation; limits of a launch
 *   access.c    an access outside of live memory; a race; shared memory read before it was written
 *   memory.c    host code that touches device memory
 *   ptx.c       misaligned or unordered use of the instructions of kernels/cuda/ptx.cuh
 *   cublaslt.c  products over memory that is too short or not as promised
 *
 * access.c sees each access of a kernel because the kernels are compiled with the instrumentation
 * of -fsanitize=thread, and links its own runtime in the place of ThreadSanitizer's. Under
 * AddressSanitizer (make asan emu), which excludes that, ASan checks the bounds instead and races
 * are not looked for; the rest is as before. */
#ifndef DEV_EMU_EMU_H
#define DEV_EMU_EMU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct uint3 {
    unsigned x, y, z;
} uint3;

enum {
    EMU_LANES = 32,
    EMU_MAX_THREADS = 1024,
    EMU_MAX_SHARED = 227 << 10 /* bytes of dynamic shared memory of one block */
};

/* ---- for emulated kernels ---- */

/* A thread keeps these for its life, so calls may be folded into one. */
uint3 emu_thread_idx(void) __attribute__((const));
uint3 emu_block_idx(void) __attribute__((const));
uint3 emu_block_dim(void) __attribute__((const));
uint3 emu_grid_dim(void) __attribute__((const));

/* Where a kernel waits or calls an instruction. */
typedef struct EmuPlace {
    const char *op, *file;
    int line;
} EmuPlace;

/* The block's barrier; returns the number of threads whose predicate is true. Exited threads do not
 * count. All threads of the block come to the same place. */
int emu_barrier(bool predicate, EmuPlace at);

/* Waits for the lanes of mask (which names the caller), then the last to come calls
 *     complete(args, mask)   args[lane]: what that lane gave, NULL outside of the mask
 * once for all of them. All lanes come with the same mask, complete and place. Orders no memory. */
typedef void (*EmuComplete)(void *const *args, unsigned mask);
void emu_warp(unsigned mask, void *args, EmuComplete complete, EmuPlace at);

/* __syncwarp: as emu_warp, and orders what these lanes do before and after. */
void emu_warp_sync(unsigned mask, EmuPlace at);

typedef enum EmuShuffle { EMU_INDEX, EMU_UP, EMU_DOWN, EMU_XOR } EmuShuffle;
uint64_t emu_shuffle(EmuShuffle kind, unsigned mask, uint64_t bits, int lane, int width,
                     EmuPlace at);
unsigned emu_ballot(unsigned mask, bool predicate, EmuPlace at);

/* An atomic of a kernel on a 32-bit integer; returns what was there. */
typedef enum EmuAtomic { EMU_ADD, EMU_MIN, EMU_MAX, EMU_UMIN, EMU_UMAX, EMU_OR, EMU_AND } EmuAtomic;
unsigned emu_atomic(EmuAtomic op, void *p, unsigned x);

/* The running block's dynamic shared memory, aligned to 128. */
char *emu_shared_block(void);

/* run(closure) once a thread of the grid. kernel: for its name in sentences. The closure holds the
 * kernel's parameters; threads may read it. */
void emu_launch_raw(const void *kernel, uint3 grid, uint3 block, size_t shared,
                    void (*run)(const void *), const void *closure, size_t closure_bytes);

/* ---- between the parts ---- */

typedef struct Now Now;

/* What runs, for access.c and ptx.c. Phases are numbers that grow with each launch, block and
 * barrier and never come back. */
struct Now {
    bool running;           /* inside a launch */
    int thread;             /* the running one, in its block */
    uint32_t launch, block; /* the first phase of this launch, of this block */
    uint32_t phase;         /* since the last barrier */
    char *shared;           /* dynamic shared memory and its size */
    size_t shared_bytes;
    const void *closure; /* the kernel's parameters */
    size_t closure_bytes;
};
extern Now emu_now;
extern unsigned emu_syncs[EMU_MAX_THREADS / EMU_LANES]; /* __syncwarps of each warp in this phase */

/* Whether what `thread` did in this phase, when its warp's emu_syncs was `stamp`, comes before what
 * the running thread does now; all: and what any other lane of thread's warp did. */
bool emu_ordered(int thread, uint16_t stamp, bool all);

/* Prints "emu: KERNEL, block (x, y, z), thread (x, y, z): " and the sentence, and aborts. */
void emu_fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

/* "file:line" of code, or "?"; in static memory, four at a time. */
const char *emu_code_name(const void *pc);

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

#ifdef __cplusplus
}
#endif
#endif
