/* CUDA on the CPU: what emulated kernels call.
 *
 * The sources of kernels/cuda are compiled by the host's compiler with the headers of
 * dev/emu/include in the place of the toolkit's. Blocks run one after the other on the thread that
 * launches; a block's threads are fibers that run until they wait: at a barrier, or for the lanes
 * of their warp. Nothing here is a simulation of speed, and a GPU may still differ in what it
 * rounds, in what cuBLASLt accepts, and where blocks wait for each other, which they may not here.
 *
 * What is found, each with one sentence on stderr that names kernel, block and thread, and abort():
 *   launch.c    a barrier that some threads do not reach or reach elsewhere; a lane named in a mask
 *               that does not come, or comes to another operation; limits of a launch
 *   access.c    an access outside of live memory; a race, in shared or device memory, within a
 *               block or between blocks; shared memory read before it was written
 *   memory.c    host code that touches device memory
 *   stream.c    pinned memory that is changed while a copy reads it; what arrives there is NaN
 *               before the host has waited
 *   ptx.c       wrong use of the instructions of kernels/cuda/ptx.cuh: alignment, asynchronous
 *               copies that were not waited for, bank conflicts of ldmatrix
 *   barrier.c, bulk.c, wgmma.c, clock.c
 *               wrong use of Hopper's instructions (ptx_sm90.h)
 *   cublaslt.c  products over memory that is too short or not as promised
 *
 * access.c sees each access of a kernel because the kernels are compiled with the instrumentation
 * of -fsanitize=thread, and has its own functions in the place of ThreadSanitizer's. Under
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
    EMU_MAX_SHARED = 227 << 10 /* bytes of dynamic shared memory of one block, on any device */
};

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

/* The running block's dynamic shared memory, aligned to 1024. */
char *emu_shared_block(void);

/* run(closure) once a thread of the grid. kernel: for its name in sentences. The closure holds the
 * kernel's parameters; threads may read it. false: this is the process's launch number
 * EMU_FAIL_LAUNCH (1, 2, ..), so it fails and nothing has run. */
bool emu_launch_raw(const void *kernel, uint3 grid, uint3 block, size_t shared,
                    void (*run)(const void *), const void *closure, size_t closure_bytes);

/* Prints "emu: KERNEL, block (x, y, z), thread (x, y, z): " and the sentence, and aborts. */
void emu_fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

#ifdef __cplusplus
}
#endif
#endif
