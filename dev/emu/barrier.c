/* Barriers in shared memory, which count arrivals and bytes, and the named barriers of a block. */
#include <stdio.h>
#include <string.h>

#include "dev/emu/bulk.h"
#include "dev/emu/clock.h"
#include "dev/emu/parts.h"
#include "dev/emu/ptx_sm90.h"

#define PC __builtin_return_address(0)
enum { BARRIER_BYTES = 8, MAX_BYTES = (1 << 20) - 1, MAX_ARRIVALS = (1 << 20) - 1, NEVER = -1 };

typedef struct Phases {
    const char *at;
    int count, pending;        /* arrivals of a phase; those that this one still waits for */
    int64_t expected, brought; /* bytes announced for this phase; of copies that count for it */
    int phase;                 /* the number of the one that has not ended */
    int waiting;               /* threads */
    int maker;
    uint32_t made_phase, made_stamp;
    bool fenced; /* barrier_fence_init came after */
} Phases;

static Phases barriers[EMU_BARRIERS];
static int n_barriers;
static int waits_for[EMU_MAX_THREADS]; /* thread: the Barrier + 1, while it waits */

/* The last phase that a thread has waited for, and how many arrivals its warpgroup had made. */
static struct {
    int phase;
    unsigned arrivals;
} seen[EMU_BARRIERS][EMU_MAX_THREADS];
static unsigned arrivals[EMU_WARPGROUPS];

static size_t offset_of(const Phases *b) { return (size_t)(b->at - emu_now.shared); }
size_t emu_barrier_offset(int barrier) { return offset_of(&barriers[barrier]); }

bool emu_is_barrier(const void *p) {
    for (int i = 0; i < n_barriers; i++)
        if ((uintptr_t)p - (uintptr_t)barriers[i].at < BARRIER_BYTES) return true;
    return false;
}

/* ---- making, and finding ---- */

static void check_place(const void *p, const char *op, const void *pc) {
    if ((uintptr_t)p % BARRIER_BYTES || !emu_is_shared(p, BARRIER_BYTES))
        emu_fail("%s (%s): %p is not 8 aligned bytes of shared memory", op, emu_code_name(pc), p);
}

void emu_barrier_init(void *p, int count) {
    emu_clocks_begin();
    check_place(p, "barrier_init", PC);
    if (count < 1 || count > MAX_ARRIVALS)
        emu_fail("barrier_init (%s): %d arrivals; 1 .. %d", emu_code_name(PC), count, MAX_ARRIVALS);
    if (emu_is_barrier(p))
        emu_fail("barrier_init (%s): the Barrier at byte %zu of shared memory is one already",
                 emu_code_name(PC), (size_t)((char *)p - emu_now.shared));
    if (n_barriers == EMU_BARRIERS)
        emu_fail("barrier_init (%s): more than %d Barriers in a block", emu_code_name(PC),
                 EMU_BARRIERS);
    emu_copy_starts(p, BARRIER_BYTES, PC); /* nobody else may touch these bytes */
    const int i = n_barriers++;
    barriers[i] = (Phases){.at = p,
                           .count = count,
                           .pending = count,
                           .maker = emu_now.thread,
                           .made_phase = emu_now.phase,
                           .made_stamp = emu_syncs[emu_now.thread / EMU_LANES]};
    emu_clock_forget(emu_clock_arriving(i));
    emu_clock_forget(emu_clock_ended(i));
    for (int t = 0; t < emu_block_threads(); t++) {
        seen[i][t].phase = NEVER;
        seen[i][t].arrivals = arrivals[t / EMU_WARPGROUP];
    }
}

void emu_barrier_fence_init(void) {
    emu_clocks_begin();
    for (int i = 0; i < n_barriers; i++)
        if (barriers[i].maker == emu_now.thread) barriers[i].fenced = true;
}

static Phases *find(const void *p, const char *op, const void *pc) {
    emu_clocks_begin();
    check_place(p, op, pc);
    Phases *b = NULL;
    for (int i = 0; i < n_barriers && !b; i++)
        if (barriers[i].at == p) b = &barriers[i];
    if (!b)
        emu_fail("%s (%s): there is no Barrier at byte %zu of shared memory: no barrier_init", op,
                 emu_code_name(pc), (size_t)((const char *)p - emu_now.shared));
    const bool known = b->maker == emu_now.thread || b->made_phase < emu_now.phase ||
                       emu_ordered(b->maker, b->made_stamp, false);
    if (!known || (!b->fenced && b->maker != emu_now.thread))
        emu_fail(
            "%s (%s): the Barrier at byte %zu of shared memory was made by another thread with "
            "no %s between",
            op, emu_code_name(pc), offset_of(b), known ? "barrier_fence_init" : "__syncthreads");
    return b;
}

/* ---- phases ---- */

static void wake(Phases *b) {
    const int i = (int)(b - barriers);
    for (int t = 0; t < emu_block_threads() && b->waiting; t++) {
        if (waits_for[t] != i + 1) continue;
        emu_clock_join(emu_clock_of(t), emu_clock_ended(i));
        waits_for[t] = 0;
        b->waiting--;
        emu_unpark(t);
    }
}

/* Ends the phase if nothing is missing. Copies land as late as they may: when somebody waits. */
static void advance(Phases *b, bool waited, const char *op, const void *pc) {
    const int i = (int)(b - barriers);
    if (b->pending) return;
    if (b->brought > b->expected)
        emu_fail(
            "%s (%s): phase %d of the Barrier at byte %zu of shared memory has all %d "
            "arrivals, which announced %lld bytes; its copies bring %lld",
            op, emu_code_name(pc), b->phase, offset_of(b), b->count, (long long)b->expected,
            (long long)b->brought);
    if (b->brought < b->expected || (b->expected && !waited && !b->waiting)) return;
    if (b->expected) emu_bulk_land(i, b->phase);
    uint32_t *arriving = emu_clock_arriving(i), *ended = emu_clock_ended(i);
    emu_clock_learn(arriving, EMU_COPIES + i, (uint32_t)b->phase + 1);
    emu_clock_copy(ended, arriving);
    b->phase++;
    b->pending = b->count;
    b->expected = b->brought = 0;
    wake(b);
}

static void arrive(Phases *b, int64_t bytes, const char *op, const void *pc) {
    if (!b->pending)
        emu_fail(
            "%s (%s): phase %d of the Barrier at byte %zu of shared memory has all %d arrivals "
            "already; it %s",
            op, emu_code_name(pc), b->phase, offset_of(b), b->count,
            b->brought < b->expected ? "waits for bytes"
                                     : "may end any time, and nobody has waited for it");
    b->pending--;
    b->expected += bytes;
    if (b->expected > MAX_BYTES)
        emu_fail("%s (%s): %lld bytes are announced for one phase; at most %d", op,
                 emu_code_name(pc), (long long)b->expected, MAX_BYTES);
    arrivals[emu_now.thread / EMU_WARPGROUP]++;
    emu_clock_release(emu_clock_arriving((int)(b - barriers)));
    advance(b, false, op, pc);
}

void emu_barrier_arrive(void *p) { arrive(find(p, "barrier_arrive", PC), 0, "barrier_arrive", PC); }

void emu_barrier_expect(void *p, int bytes) {
    Phases *b = find(p, "barrier_expect", PC);
    if (bytes < 0) emu_fail("barrier_expect (%s): %d bytes", emu_code_name(PC), bytes);
    arrive(b, bytes, "barrier_expect", PC);
}

/* ---- copies count their bytes ---- */

int emu_barrier_of_copy(const void *p, const char *op, const void *pc, int *phase) {
    Phases *b = find(p, op, pc);
    if (!b->fenced)
        emu_fail(
            "%s (%s): the copy engine may not see the Barrier at byte %zu of shared memory: no "
            "barrier_fence_init",
            op, emu_code_name(pc), offset_of(b));
    *phase = b->phase;
    return (int)(b - barriers);
}

void emu_barrier_brings(int barrier, int64_t bytes, const char *op, const void *pc) {
    barriers[barrier].brought += bytes;
    advance(&barriers[barrier], false, op, pc);
}

/* ---- waiting ---- */

static void explain_wait(void) {
    const Phases *b = &barriers[waits_for[emu_now.thread] - 1];
    char text[256];
    emu_fail(
        "%s for phase %d of the Barrier at byte %zu of shared memory, and nobody can go on: it "
        "lacks %d of %d arrivals and %lld of %lld announced bytes",
        emu_what_does(emu_now.thread, text, sizeof text), b->phase, offset_of(b), b->pending,
        b->count, (long long)(b->expected - b->brought), (long long)b->expected);
}

/* Parity tells two phases apart. A thread that knows no longer which phase it waits for has fallen
 * behind by two or more since it last waited, and its warpgroup arrived nowhere: one that passes
 * over phases says at least that it has. */
static void check_behind(const Phases *b, int phase, const void *pc) {
    const int i = (int)(b - barriers), self = emu_now.thread;
    const unsigned come = arrivals[self / EMU_WARPGROUP];
    if (phase - seen[i][self].phase > 2 && come == seen[i][self].arrivals)
        emu_fail(
            "barrier_wait (%s): the thread last waited for phase %d of the Barrier at byte %zu of "
            "shared memory, and that parity is now phase %d's",
            emu_code_name(pc), seen[i][self].phase, offset_of(b), phase);
    seen[i][self].arrivals = come;
    seen[i][self].phase = phase;
}

void emu_barrier_wait(void *p, int parity) {
    Phases *b = find(p, "barrier_wait", PC);
    const int i = (int)(b - barriers), self = emu_now.thread;
    if (parity != 0 && parity != 1)
        emu_fail("barrier_wait (%s): parity %d; 0 or 1", emu_code_name(PC), parity);
    const int phase = b->phase % 2 == parity ? b->phase : b->phase - 1;
    check_behind(b, phase, PC);
    if (phase == b->phase) advance(b, true, "barrier_wait", PC);
    if (phase < b->phase) {
        emu_clock_join(emu_clock_of(self), emu_clock_ended(i));
        return;
    }
    waits_for[self] = i + 1;
    b->waiting++;
    emu_park("barrier_wait", PC, explain_wait);
}

/* ---- named barriers ---- */

typedef struct Named {
    int threads, come;
    unsigned there[EMU_MAX_THREADS / EMU_LANES], waiting[EMU_MAX_THREADS / EMU_LANES]; /* lanes */
} Named;

static Named named[EMU_NAMED];
static int waits_at[EMU_MAX_THREADS];

static void explain_named(void) {
    const Named *n = &named[waits_at[emu_now.thread]];
    char text[256];
    emu_fail("%s for barrier %d, and nobody can go on: %d of %d threads have come",
             emu_what_does(emu_now.thread, text, sizeof text), waits_at[emu_now.thread], n->come,
             n->threads);
}

static void named_opens(int number, const char *op, const void *pc) {
    Named *n = &named[number];
    uint32_t *clock = emu_clock_named(number);
    for (int w = 0; w < EMU_MAX_THREADS / EMU_LANES; w++) {
        if (n->there[w] && n->there[w] != 0xffffffffu)
            emu_fail("%s (%s): of warp %d lanes %08x have come to barrier %d; whole warps do", op,
                     emu_code_name(pc), w, n->there[w], number);
        for (unsigned m = n->waiting[w]; m; m &= m - 1) {
            const int t = w * EMU_LANES + __builtin_ctz(m);
            emu_clock_join(emu_clock_of(t), clock);
            if (t != emu_now.thread) emu_unpark(t);
        }
    }
    emu_clock_forget(clock);
    *n = (Named){0};
}

void emu_named_barrier(int number, int count, bool wait) {
    const char *const op = wait ? "named_barrier_wait" : "named_barrier_arrive";
    const int self = emu_now.thread, w = self / EMU_LANES;
    const unsigned lane = 1u << self % EMU_LANES;
    emu_clocks_begin();
    if (number < 1 || number >= EMU_NAMED || count < EMU_LANES || count % EMU_LANES ||
        count > emu_block_threads())
        emu_fail(
            "%s (%s): barrier %d of %d threads; barriers 1 .. 15, whole warps of the block's %d "
            "threads",
            op, emu_code_name(PC), number, count, emu_block_threads());
    Named *n = &named[number];
    if (n->come == 0) n->threads = count;
    if (n->threads != count)
        emu_fail("%s (%s): barrier %d of %d threads, of which others said %d", op,
                 emu_code_name(PC), number, count, n->threads);
    if (n->there[w] & lane)
        emu_fail("%s (%s): comes to barrier %d twice before all %d threads have come", op,
                 emu_code_name(PC), number, count);
    n->there[w] |= lane;
    if (wait) n->waiting[w] |= lane;
    arrivals[self / EMU_WARPGROUP]++;
    emu_clock_release(emu_clock_named(number));
    if (++n->come == count) {
        named_opens(number, op, PC);
    } else if (wait) {
        waits_at[self] = number;
        emu_park(op, PC, explain_named);
    }
}

void emu_barriers_end(void) {
    n_barriers = 0;
    memset(named, 0, sizeof named);
}
