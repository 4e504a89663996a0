/* A launch: blocks one after the other, a block's threads as fibers.
 *
 * A thread runs until it ends or waits. Then the next one of the queue goes on, or where the queue
 * is empty the next thread that has not begun; a thread that ends hands its stack to the next, so a
 * block without waiting uses one stack. Where nobody can go on and some wait, the kernel is wrong.
 *
 * As on the hardware since sm_70, threads that have exited are not waited for by a barrier. A
 * warp's operation waits for exactly the lanes of its mask. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dev/emu/clock.h"
#include "dev/emu/fiber.h"
#include "dev/emu/parts.h"

typedef enum State { UNSTARTED, RUNS, AT_BARRIER, AT_WARP, PARKED, EXITED } State;

typedef struct Thread {
    EmuFiber fiber;
    uint3 idx;
    State state;
    EmuPlace at;   /* where it waits */
    unsigned mask; /* AT_WARP */
    void *args;
    EmuComplete complete;
    const void *pc; /* PARKED: where, instead of at's file */
    void (*stuck)(void);
} Thread;

/* Lanes that wait with one mask. */
typedef struct Rendezvous {
    unsigned mask, come;
} Rendezvous;

typedef struct Warp {
    Rendezvous waits[EMU_LANES];
    int n_waits;
    unsigned all;                         /* what came before this one of them is known to all */
    bool partial;                         /* known is in use */
    unsigned known[EMU_LANES][EMU_LANES]; /* [u][l]: u knows what l did before this sync */
} Warp;

/* The launch under way; there is one at a time. */
static struct {
    const void *kernel;
    void (*run)(const void *);
    uint3 grid, block, at; /* at: the running block's index */
    int n, n_begun, n_exited, n_at_barrier, n_true, result;
    EmuPlace barrier;
    int queue[EMU_MAX_THREADS], head, queued;
    uint32_t phases;   /* so many there were */
    uint64_t launches; /* likewise */
} L;
static Thread threads[EMU_MAX_THREADS];
static Warp warps[EMU_MAX_THREADS / EMU_LANES];
static pthread_mutex_t one_launch = PTHREAD_MUTEX_INITIALIZER;
Now emu_now;
unsigned emu_syncs[EMU_MAX_THREADS / EMU_LANES];

uint3 emu_thread_idx(void) { return threads[emu_now.thread].idx; }
uint3 emu_block_idx(void) { return L.at; }
uint3 emu_block_dim(void) { return L.block; }
uint3 emu_grid_dim(void) { return L.grid; }
char *emu_shared_block(void) { return emu_now.shared; }
const void *emu_kernel(void) { return L.kernel; }
int emu_block_threads(void) { return L.n; }

static void queue_push(int thread) {
    L.queue[(L.head + L.queued++) % EMU_MAX_THREADS] = thread;
    threads[thread].state = RUNS;
}

static int queue_pop(void) {
    const int thread = L.queue[L.head];
    L.head = (L.head + 1) % EMU_MAX_THREADS;
    L.queued--;
    return thread;
}

/* ---- what is wrong where nobody can go on ---- */

static bool same_place(EmuPlace a, EmuPlace b) {
    return a.line == b.line && (a.file == b.file || !strcmp(a.file, b.file)) &&
           (a.op == b.op || !strcmp(a.op, b.op));
}

const char *emu_what_does(int thread, char *text, size_t size) {
    const Thread *t = &threads[thread];
    if (t->state == EXITED)
        snprintf(text, size, "has exited");
    else if (t->state == PARKED)
        snprintf(text, size, "waits at %s (%s)", t->at.op, emu_code_name(t->pc));
    else
        snprintf(text, size, "waits at %s (%s:%d)", t->at.op, t->at.file, t->at.line);
    return text;
}

/* One line for neighbours that do the same: who waits for whom is often a circle. */
static void list_threads(void) {
    char text[256];
    for (int first = 0, end; first < L.n; first = end) {
        const Thread *t = &threads[first], *u;
        end = first + 1;
        while (end < L.n && (u = &threads[end])->state == t->state &&
               (t->state == EXITED ||
                (t->state == PARKED ? u->pc == t->pc : same_place(u->at, t->at))))
            end++;
        fprintf(stderr, "emu: thread %d .. %d %s\n", first, end - 1,
                emu_what_does(first, text, sizeof text));
    }
}

static void explain_stuck(void) {
    char other[256];
    for (int i = 0; i < L.n; i++) {
        const Thread *t = &threads[i];
        if (t->state != AT_WARP && t->state != PARKED) continue;
        emu_now.thread = i;
        if (t->state == PARKED) {
            list_threads();
            t->stuck();
        }
        for (int lane = 0; lane < EMU_LANES; lane++) {
            const int j = i / EMU_LANES * EMU_LANES + lane;
            if (!(t->mask >> lane & 1u)) continue;
            if (j >= L.n)
                emu_fail("%s (%s:%d): lane %d of mask %08x does not exist", t->at.op, t->at.file,
                         t->at.line, lane, t->mask);
            if (threads[j].state != AT_WARP || threads[j].mask != t->mask)
                emu_fail("%s (%s:%d): lane %d of mask %08x does not come, it %s", t->at.op,
                         t->at.file, t->at.line, lane, t->mask,
                         emu_what_does(j, other, sizeof other));
        }
    }
    emu_fail("the emulator lost a thread");
}

/* Leaves the running thread, which waits or has ended, for the next that can go on. */
static void next_thread(bool ended) {
    EmuFiber *from = &threads[emu_now.thread].fiber;
    if (L.queued) {
        emu_now.thread = queue_pop();
        if (ended) emu_fiber_drop(from);
        emu_fiber_switch(from, &threads[emu_now.thread].fiber, ended);
    } else if (L.n_begun < L.n) {
        emu_now.thread = L.n_begun++;
        threads[emu_now.thread].state = RUNS;
        if (!ended)
            emu_fiber_begin(from, &threads[emu_now.thread].fiber);
        else
            threads[emu_now.thread].fiber = *from;
    } else if (L.n_exited == L.n) {
        emu_fiber_drop(from);
        emu_fiber_leave(from);
    } else {
        explain_stuck();
    }
}

/* ---- the block's barrier ---- */

static void barrier_opens(void) {
    L.result = L.n_true;
    L.n_at_barrier = L.n_true = 0;
    emu_now.phase = ++L.phases;
    if (emu_clocks_on) emu_clocks_sync_block();
    for (int i = 0; i < L.n; i++)
        if (threads[i].state == AT_BARRIER) queue_push(i);
}

int emu_barrier(bool predicate, EmuPlace at) {
    const int self = emu_now.thread;
    Thread *t = &threads[self];
    if (L.n_at_barrier == 0) L.barrier = at;
    if (!same_place(at, L.barrier))
        emu_fail("%s (%s:%d): others of the block wait at %s (%s:%d)", at.op, at.file, at.line,
                 L.barrier.op, L.barrier.file, L.barrier.line);
    t->at = at;
    t->state = AT_BARRIER;
    L.n_true += predicate;
    if (++L.n_at_barrier + L.n_exited == L.n) barrier_opens();
    next_thread(false);
    return L.result;
}

/* ---- the warp ---- */

static Rendezvous *find_rendezvous(Warp *w, unsigned mask) {
    for (int i = 0; i < w->n_waits; i++)
        if (w->waits[i].mask == mask) return &w->waits[i];
    Rendezvous *r = &w->waits[w->n_waits++];
    *r = (Rendezvous){mask, 0};
    return r;
}

void emu_warp(unsigned mask, void *args, EmuComplete complete, EmuPlace at) {
    const int self = emu_now.thread, lane = self % EMU_LANES, first = self - lane;
    Thread *t = &threads[self];
    Warp *w = &warps[self / EMU_LANES];
    if (!(mask >> lane & 1u))
        emu_fail("%s (%s:%d): lane %d is not in its own mask %08x", at.op, at.file, at.line, lane,
                 mask);
    *t = (Thread){t->fiber, t->idx, AT_WARP, at, mask, args, complete, NULL, NULL};
    Rendezvous *r = find_rendezvous(w, mask);
    r->come |= 1u << lane;
    if (r->come != mask) {
        next_thread(false);
        return;
    }
    *r = w->waits[--w->n_waits];
    void *all[EMU_LANES] = {NULL};
    for (unsigned m = mask; m; m &= m - 1) {
        const Thread *u = &threads[first + __builtin_ctz(m)];
        if (u->complete != complete || !same_place(u->at, at))
            emu_fail("%s (%s:%d): lane %d of mask %08x comes to another operation, %s (%s:%d)",
                     at.op, at.file, at.line, __builtin_ctz(m), mask, u->at.op, u->at.file,
                     u->at.line);
        all[__builtin_ctz(m)] = u->args;
    }
    if (complete) complete(all, mask);
    for (unsigned m = mask & ~(1u << lane); m; m &= m - 1) queue_push(first + __builtin_ctz(m));
    t->state = RUNS;
}

void emu_park(const char *op, const void *pc, void (*stuck)(void)) {
    Thread *t = &threads[emu_now.thread];
    t->state = PARKED;
    t->at.op = op;
    t->pc = pc;
    t->stuck = stuck;
    next_thread(false);
}

void emu_unpark(int thread) { queue_push(thread); }

bool emu_ordered(int thread, uint32_t stamp, bool all) {
    if (emu_clocks_on) return emu_clock_knows(emu_clock_of(emu_now.thread), thread, stamp);
    if (thread / EMU_LANES != emu_now.thread / EMU_LANES) return false;
    const Warp *w = &warps[thread / EMU_LANES];
    if (stamp < w->all) return true;
    const unsigned *known = w->known[emu_now.thread % EMU_LANES];
    if (!all) return stamp < known[thread % EMU_LANES];
    for (int l = 0; l < EMU_LANES; l++)
        if (l != emu_now.thread % EMU_LANES && stamp >= known[l]) return false;
    return true;
}

uint32_t emu_lane_knows(int t, int l) {
    const Warp *w = &warps[t / EMU_LANES];
    const uint32_t known = w->known[t % EMU_LANES][l % EMU_LANES];
    return known > w->all ? known : w->all;
}

/* After it, each lane of mask knows what any of them knew, and all that they did. */
static void complete_sync(void *const *args, unsigned mask) {
    (void)args;
    Warp *w = &warps[emu_now.thread / EMU_LANES];
    const unsigned syncs = ++emu_syncs[emu_now.thread / EMU_LANES];
    if (emu_clocks_on) emu_clocks_sync_warp(emu_now.thread / EMU_LANES * EMU_LANES, mask);
    if (mask == 0xffffffffu) {
        w->all = syncs;
        return;
    }
    unsigned joined[EMU_LANES] = {0};
    for (int l = 0; l < EMU_LANES; l++)
        for (int u = 0; u < EMU_LANES; u++)
            if (mask >> u & 1u && w->known[u][l] > joined[l]) joined[l] = w->known[u][l];
    for (int u = 0; u < EMU_LANES; u++)
        for (int l = 0; l < EMU_LANES && mask >> u & 1u; l++)
            w->known[u][l] = mask >> l & 1u ? syncs : joined[l];
    w->partial = true;
}

void emu_warp_sync(unsigned mask, EmuPlace at) { emu_warp(mask, NULL, complete_sync, at); }

/* ---- shuffles and votes ---- */

typedef struct Shuffle {
    EmuShuffle kind;
    uint64_t bits, result;
    int lane, width;
    EmuPlace at;
} Shuffle;

static void complete_shuffle(void *const *args, unsigned mask) {
    for (int l = 0; l < EMU_LANES; l++) {
        Shuffle *s = args[l];
        if (!s) continue;
        const int first = l & ~(s->width - 1), last = first + s->width - 1;
        int from = l;
        switch (s->kind) {
            case EMU_INDEX:
                from = first + (s->lane & (s->width - 1));
                break;
            case EMU_UP:
                from = l - s->lane < first ? l : l - s->lane;
                break;
            case EMU_DOWN:
                from = l + s->lane > last ? l : l + s->lane;
                break;
            case EMU_XOR:
                from = (l ^ s->lane) > last ? l : l ^ s->lane;
                break;
        }
        if (!(mask >> from & 1u)) {
            emu_now.thread += l - emu_now.thread % EMU_LANES;
            emu_fail("%s (%s:%d): reads lane %d, which is not in mask %08x", s->at.op, s->at.file,
                     s->at.line, from, mask);
        }
        s->result = ((const Shuffle *)args[from])->bits;
    }
}

uint64_t emu_shuffle(EmuShuffle kind, unsigned mask, uint64_t bits, int lane, int width,
                     EmuPlace at) {
    if (width < 1 || width > EMU_LANES || (width & (width - 1)))
        emu_fail("%s (%s:%d): width %d is no power of two up to 32", at.op, at.file, at.line,
                 width);
    Shuffle s = {kind, bits, 0, lane, width, at};
    emu_warp(mask, &s, complete_shuffle, at);
    return s.result;
}

static void complete_ballot(void *const *args, unsigned mask) {
    unsigned votes = 0;
    for (unsigned m = mask; m; m &= m - 1)
        votes |= *(const unsigned *)args[__builtin_ctz(m)] << __builtin_ctz(m);
    for (unsigned m = mask; m; m &= m - 1) *(unsigned *)args[__builtin_ctz(m)] = votes;
}

unsigned emu_ballot(unsigned mask, bool predicate, EmuPlace at) {
    unsigned vote = predicate;
    emu_warp(mask, &vote, complete_ballot, at);
    return vote;
}

unsigned emu_atomic(EmuAtomic op, void *p, unsigned x) {
    emu_read_write_atomic(p, sizeof x, __builtin_return_address(0));
    unsigned *at = p;
    const unsigned old = *at;
    switch (op) {
        case EMU_ADD:
            *at = old + x;
            break;
        case EMU_MIN:
            *at = (int)old < (int)x ? old : x;
            break;
        case EMU_MAX:
            *at = (int)old > (int)x ? old : x;
            break;
        case EMU_UMIN:
            *at = old < x ? old : x;
            break;
        case EMU_UMAX:
            *at = old > x ? old : x;
            break;
        case EMU_OR:
            *at = old | x;
            break;
        case EMU_AND:
            *at = old & x;
            break;
    }
    return old;
}

/* ---- blocks ---- */

/* What a fiber runs: its thread, and as long as nobody waits in the queue the next ones. */
void emu_fiber_main(void) {
    for (;;) {
        L.run(emu_now.closure);
        threads[emu_now.thread].state = EXITED;
        L.n_exited++;
        if (L.n_at_barrier > 0 && L.n_at_barrier + L.n_exited == L.n) barrier_opens();
        next_thread(true);
    }
}

static void run_block(void) {
    emu_now.block = emu_now.phase = ++L.phases;
    L.n_exited = L.n_at_barrier = L.n_true = 0;
    memset(emu_syncs, 0, sizeof emu_syncs);
    for (int w = 0; w * EMU_LANES < L.n; w++) {
        if (warps[w].partial) memset(warps[w].known, 0, sizeof warps[w].known);
        warps[w].n_waits = 0;
        warps[w].all = 0;
        warps[w].partial = false;
    }
    for (int i = 0; i < L.n; i++) threads[i].state = UNSTARTED;
    emu_now.thread = 0;
    L.n_begun = 1;
    threads[0].state = RUNS;
    emu_fiber_enter(&threads[0].fiber);
    emu_copies_forget();
    if (!emu_clocks_on) return;
    emu_products_end();
    emu_bulk_end();
    emu_barriers_end();
    emu_accesses_end_block();
    emu_clocks_end();
}

static void check_limits(uint3 grid, uint3 block, size_t shared) {
    const uint64_t n = (uint64_t)block.x * block.y * block.z;
    if (emu_now.running) emu_fail("a kernel launches another");
    if (n < 1 || n > EMU_MAX_THREADS || block.z > 64)
        emu_fail("a block of (%u, %u, %u) threads; at most 1024, and 64 in z", block.x, block.y,
                 block.z);
    if (!grid.x || !grid.y || !grid.z || grid.x > INT32_MAX || grid.y > 65535 || grid.z > 65535)
        emu_fail("a grid of (%u, %u, %u) blocks; at most (2^31 - 1, 65535, 65535), and not empty",
                 grid.x, grid.y, grid.z);
    if (shared > (size_t)emu_device()->shared_block)
        emu_fail("%zu bytes of dynamic shared memory; at most %d on %s", shared,
                 emu_device()->shared_block, emu_device()->name);
}

/* Whether the environment wants this launch to fail. */
static bool must_fail(void) {
    const char *which = getenv("EMU_FAIL_LAUNCH");
    L.launches++;
    return which && strtoull(which, NULL, 10) == L.launches;
}

bool emu_launch_raw(const void *kernel, uint3 grid, uint3 block, size_t shared,
                    void (*run)(const void *), const void *closure, size_t closure_bytes) {
    pthread_mutex_lock(&one_launch);
    if (must_fail()) {
        pthread_mutex_unlock(&one_launch);
        return false;
    }
    L.kernel = kernel;
    check_limits(grid, block, shared);
    L.grid = grid;
    L.block = block;
    L.run = run;
    L.n = (int)(block.x * block.y * block.z);
    for (int i = 0; i < L.n; i++)
        threads[i].idx = (uint3){(unsigned)i % block.x, (unsigned)i / block.x % block.y,
                                 (unsigned)i / block.x / block.y};
    if (L.phases > UINT32_MAX / 2) {
        emu_forget_accesses();
        L.phases = 0;
    }
    emu_device_open();
    emu_now = (Now){.running = true,
                    .launch = ++L.phases,
                    .shared = emu_shared_begin(shared),
                    .shared_bytes = shared,
                    .closure = closure,
                    .closure_bytes = closure_bytes};
    for (L.at.z = 0; L.at.z < grid.z; L.at.z++)
        for (L.at.y = 0; L.at.y < grid.y; L.at.y++)
            for (L.at.x = 0; L.at.x < grid.x; L.at.x++) run_block();
    emu_now.running = false;
    emu_shared_end();
    emu_device_close();
    pthread_mutex_unlock(&one_launch);
    return true;
}
