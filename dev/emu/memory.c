/* Device memory, pinned memory and the dynamic shared memory of a block.
 *
 * Device memory is one region of address space. It is closed (PROT_NONE) but while a kernel or a
 * runtime call is at work, so that host code that touches it dies with a sentence; on a GPU it
 * would crash. Allocations are 256 bytes aligned, have 256 bytes or more between them, and begin
 * as 0xff everywhere, which is NaN.
 *
 * Under AddressSanitizer each allocation is a malloc of its own. */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "dev/emu/parts.h"

#define REGION_BYTES ((size_t)1 << EMU_REGION_SHIFT)
enum { ALIGN = 256, PAGE = 2 << 20 };

typedef struct Block {
    char *at;
    size_t bytes;
} Block;

typedef struct Blocks { /* by address */
    Block *block;
    int n, max;
} Blocks;

char *emu_region;
uint8_t *emu_live;
static Blocks device, pinned;
static size_t device_bytes;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void blocks_insert(Blocks *b, int i, char *at, size_t bytes) {
    if (b->n == b->max) {
        b->max = 2 * b->max + 64;
        b->block = realloc(b->block, (size_t)b->max * sizeof *b->block);
        if (!b->block) emu_fail("no memory for the list of allocations");
    }
    memmove(b->block + i + 1, b->block + i, (size_t)(b->n++ - i) * sizeof *b->block);
    b->block[i] = (Block){at, bytes};
}

/* The number of blocks that begin at p or before. */
static int blocks_before(const Blocks *b, const char *p) {
    int low = 0, high = b->n;
    while (low < high) {
        const int mid = (low + high) / 2;
        if (b->block[mid].at <= p)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

static bool blocks_have(const Blocks *b, const char *p, size_t bytes) {
    const int i = blocks_before(b, p) - 1;
    return i >= 0 && p + bytes <= b->block[i].at + b->block[i].bytes;
}

static bool blocks_remove(Blocks *b, const char *p) {
    const int i = blocks_before(b, p) - 1;
    if (i < 0 || b->block[i].at != p) return false;
    memmove(b->block + i, b->block + i + 1, (size_t)(--b->n - i) * sizeof *b->block);
    return true;
}

/* ---- the region ---- */

#ifdef __SANITIZE_ADDRESS__

void emu_device_open(void) {}
void emu_device_close(void) {}
bool emu_is_device(const void *p) { return blocks_have(&device, p, 1); }
bool emu_is_live(const void *p, size_t bytes) { return blocks_have(&device, p, bytes); }
static char *place(size_t bytes) { return malloc(bytes); }
static void displace(char *p, size_t bytes) {
    (void)bytes;
    free(p);
}
static void set_live(const char *p, size_t bytes, bool yes) { (void)p, (void)bytes, (void)yes; }
static void make_region(void) {}

#else

static char *region_top; /* nothing was ever allocated from region_top on */
static int opened;

/* Explains an access to the closed region, and the end of a fiber's stack. */
static void on_segv(int signal, siginfo_t *info, void *context) {
    (void)context;
    const char *p = info->si_addr;
    if (p >= emu_region && p < emu_region + REGION_BYTES)
        emu_fail("host code touches device memory at %p%s", (const void *)p,
                 blocks_have(&device, p, 1) ? "" : ", which is not even allocated");
    if (emu_now.running) emu_fail("segmentation fault at %p; the stack of a thread is 256 KiB", p);
    sigaction(signal, &(struct sigaction){.sa_handler = SIG_DFL}, NULL);
}

static void make_region(void) {
    if (emu_region) return;
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    char *p = mmap(NULL, REGION_BYTES + PAGE, PROT_NONE, flags, -1, 0);
    emu_live = mmap(NULL, REGION_BYTES / 8, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (p == MAP_FAILED || emu_live == MAP_FAILED) emu_fail("no address space for device memory");
    emu_region = region_top = p + PAGE - (uintptr_t)p % PAGE;
    madvise(emu_region, REGION_BYTES, MADV_HUGEPAGE); /* few mappings: opening is cheap */
    static char stack[64 << 10];
    sigaltstack(&(stack_t){.ss_sp = stack, .ss_size = sizeof stack}, NULL);
    sigaction(SIGSEGV,
              &(struct sigaction){.sa_sigaction = on_segv, .sa_flags = SA_SIGINFO | SA_ONSTACK},
              NULL);
}

static void protect(int protection) {
    if (region_top > emu_region &&
        mprotect(emu_region, (size_t)(region_top - emu_region), protection))
        emu_fail("device memory cannot be protected");
}

void emu_device_open(void) {
    pthread_mutex_lock(&lock);
    make_region();
    if (opened++ == 0) protect(PROT_READ | PROT_WRITE);
    pthread_mutex_unlock(&lock);
}

void emu_device_close(void) {
    pthread_mutex_lock(&lock);
    if (--opened == 0) protect(PROT_NONE);
    pthread_mutex_unlock(&lock);
}

bool emu_is_device(const void *p) {
    return emu_region && (const char *)p >= emu_region &&
           (const char *)p < emu_region + REGION_BYTES;
}

bool emu_is_live(const void *p, size_t bytes) {
    const uintptr_t at = (uintptr_t)((const char *)p - emu_region);
    if (!emu_region || at >= REGION_BYTES || bytes > REGION_BYTES - at) return false;
    if (bytes > 16) return blocks_have(&device, p, bytes);
    for (uintptr_t i = at / 8; i <= (at + bytes - 1) / 8; i++) {
        const uintptr_t end = at + bytes - i * 8;
        if ((end < 8 ? end : 8) > emu_live[i]) return false;
    }
    return true;
}

static void set_live(const char *p, size_t bytes, bool yes) {
    uint8_t *at = emu_live + (p - emu_region) / 8;
    memset(at, yes ? 8 : 0, (bytes + 7) / 8);
    if (yes && bytes % 8) at[bytes / 8] = (uint8_t)(bytes % 8);
}

/* The first gap that has room with ALIGN free bytes on both sides. */
static char *place(size_t bytes) {
    char *p = emu_region + ALIGN;
    for (int i = 0; i < device.n && device.block[i].at < p + bytes + ALIGN; i++) {
        p = device.block[i].at + device.block[i].bytes + ALIGN;
        p += (ALIGN - (uintptr_t)p % ALIGN) % ALIGN;
    }
    if (bytes > REGION_BYTES || p + bytes + ALIGN > emu_region + REGION_BYTES) return NULL;
    char *end = p + bytes + ALIGN;
    end += (PAGE - (uintptr_t)end % PAGE) % PAGE;
    if (end > region_top) {
        region_top = end;
        if (opened) protect(PROT_READ | PROT_WRITE);
    }
    return p;
}

static void displace(char *p, size_t bytes) { set_live(p, bytes, false); }

#endif

void *emu_device_alloc(size_t bytes) {
    pthread_mutex_lock(&lock);
    make_region();
    char *p = NULL;
    if (bytes <= REGION_BYTES - device_bytes && (p = place(bytes))) {
        blocks_insert(&device, blocks_before(&device, p), p, bytes);
        device_bytes += bytes;
        set_live(p, bytes, true);
    }
    pthread_mutex_unlock(&lock);
    if (!p) return NULL;
    emu_device_open();
    memset(p, 0xff, bytes);
    emu_device_close();
    return p;
}

bool emu_device_release(void *p) {
    pthread_mutex_lock(&lock);
    const int i = blocks_before(&device, p) - 1;
    const size_t bytes = i >= 0 ? device.block[i].bytes : 0;
    const bool there = blocks_remove(&device, p);
    if (there) {
        device_bytes -= bytes;
        displace(p, bytes);
    }
    pthread_mutex_unlock(&lock);
    return there;
}

void emu_device_info(size_t *free_bytes, size_t *total_bytes) {
    *total_bytes = REGION_BYTES;
    *free_bytes = REGION_BYTES - device_bytes;
}

/* ---- pinned memory: the host's, which kernels may touch as well ---- */

bool emu_is_pinned(const void *p, size_t bytes) { return blocks_have(&pinned, p, bytes); }

void *emu_pinned_alloc(size_t bytes) {
    char *p = NULL;
    if (posix_memalign((void **)&p, ALIGN, bytes ? bytes : 1)) return NULL;
    memset(p, 0xff, bytes);
    pthread_mutex_lock(&lock);
    blocks_insert(&pinned, blocks_before(&pinned, p), p, bytes);
    pthread_mutex_unlock(&lock);
    return p;
}

bool emu_pinned_release(void *p) {
    pthread_mutex_lock(&lock);
    const bool there = blocks_remove(&pinned, p);
    pthread_mutex_unlock(&lock);
    if (there) free(p);
    return there;
}

/* ---- dynamic shared memory: aligned to 1024 and no more; poisoned for each launch ---- */

enum { SHARED_ALIGN = 1024 };
static char *shared_memory;

char *emu_shared_begin(size_t bytes) {
    const size_t size = SHARED_ALIGN + bytes; /* ends where the block's memory ends */
    if (posix_memalign((void **)&shared_memory, 2 * SHARED_ALIGN, size))
        emu_fail("no memory for shared memory");
    memset(shared_memory, 0xff, size);
    return shared_memory + SHARED_ALIGN;
}

void emu_shared_end(void) {
    free(shared_memory);
    shared_memory = NULL;
}
