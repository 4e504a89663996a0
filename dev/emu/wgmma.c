/* Products of a warpgroup, and the registers of warpgroups.
 *
 * A product is computed when all 128 threads have come to it, from what is then in shared memory,
 * which nobody may change until it has ended. Its result is hidden: the accumulators are NaN until
 * a wgmma_wait that covers the product and names them. */
#include <stdio.h>
#include <string.h>

#include "dev/emu/clock.h"
#include "dev/emu/parts.h"
#include "dev/emu/ptx_sm90.h"

#define PC __builtin_return_address(0)

#if defined __x86_64__ && !defined __SANITIZE_ADDRESS__
#define VECTORS __attribute__((target_clones("avx2", "default")))
#else
#define VECTORS
#endif

enum { M = 64, K = 16, MAX_N = 192, MAX_EACH = MAX_N / 8 * 4, LIVE = 8, POISON = 0xff };

/* ---- a warpgroup comes together ---- */

typedef struct Meeting {
    const char *op;
    int come;
    bool there[EMU_WARPGROUP];
    const void *args[EMU_WARPGROUP];
} Meeting;

static Meeting meetings[EMU_WARPGROUPS];

static void explain_meeting(void) {
    const int first = emu_now.thread / EMU_WARPGROUP * EMU_WARPGROUP;
    const Meeting *m = &meetings[first / EMU_WARPGROUP];
    char self[256], other[256];
    for (int t = 0; t < EMU_WARPGROUP; t++)
        if (!m->there[t])
            emu_fail("%s for its warpgroup, of which thread %d does not come: it %s",
                     emu_what_does(emu_now.thread, self, sizeof self), t,
                     emu_what_does(first + t, other, sizeof other));
    emu_fail("the emulator lost a warpgroup");
}

/* Waits for the whole warpgroup; the last to come calls complete(its number, args) for all. */
static void meet(const char *op, const void *args, void (*complete)(int, const void *const *),
                 const void *pc) {
    const int self = emu_now.thread, group = self / EMU_WARPGROUP, first = group * EMU_WARPGROUP;
    emu_clocks_begin();
    if (first + EMU_WARPGROUP > emu_block_threads())
        emu_fail("%s (%s): the warpgroup has not 128 threads, the block has %d", op,
                 emu_code_name(pc), emu_block_threads());
    Meeting *m = &meetings[group];
    if (m->come && strcmp(m->op, op))
        emu_fail("%s (%s): others of the warpgroup wait at %s", op, emu_code_name(pc), m->op);
    m->op = op;
    m->there[self - first] = true;
    m->args[self - first] = args;
    if (++m->come < EMU_WARPGROUP) {
        emu_park(op, pc, explain_meeting);
        return;
    }
    complete(group, m->args);
    *m = (Meeting){0};
    for (int t = first; t < first + EMU_WARPGROUP; t++)
        if (t != self) emu_unpark(t);
}

/* ---- registers ---- */

static struct {
    int each[EMU_WARPGROUPS]; /* a thread's, by warpgroup; 0: as the block began */
    bool waits[EMU_MAX_THREADS];
} registers;

/* What a thread of a block of so many may have, and all began with. */
static int registers_at_start(void) {
    enum { REGISTERS = 65536, MOST = 240 };
    const int each = REGISTERS / emu_block_threads() / 8 * 8;
    return each < MOST ? each : MOST;
}

static int registers_free(void) {
    const int start = registers_at_start(), n = emu_block_threads() / EMU_WARPGROUP;
    int used = 0;
    for (int w = 0; w < n; w++) used += registers.each[w] ? registers.each[w] : start;
    return n * start - used;
}

typedef struct Wish {
    int n;
    const char *op;
    const void *pc;
} Wish;

static void complete_registers(int group, const void *const *args) {
    const Wish *wish = args[0];
    for (int t = 1; t < EMU_WARPGROUP; t++) {
        const Wish *other = args[t];
        if (other->n != wish->n)
            emu_fail("%s (%s): to %d and, in thread %d of the warpgroup, %d registers", wish->op,
                     emu_code_name(wish->pc), wish->n, t, other->n);
    }
    const int had = registers.each[group] ? registers.each[group] : registers_at_start();
    if (wish->n < had) registers.each[group] = wish->n;
}

static void explain_registers(void) {
    char text[256];
    emu_fail(
        "%s for registers that nobody gives back: %d a thread are free beside those of its "
        "warpgroup",
        emu_what_does(emu_now.thread, text, sizeof text), registers_free());
}

void emu_registers(int n, bool grow) {
    const char *const op = grow ? "registers_grow" : "registers_shrink";
    const int self = emu_now.thread, group = self / EMU_WARPGROUP;
    const int has = registers.each[group] ? registers.each[group] : registers_at_start();
    if (grow ? n < has : n > has)
        emu_fail("%s (%s): to %d registers from %d", op, emu_code_name(PC), n, has);
    const Wish wish = {n, op, PC};
    meet(op, &wish, complete_registers, PC);
    for (int t = 0; t < emu_block_threads() && !grow; t++)
        if (registers.waits[t]) emu_unpark(t), registers.waits[t] = false;
    while (grow && registers.each[group] < n) {
        const int had = registers.each[group] ? registers.each[group] : registers_at_start();
        if (registers_free() + had >= n) {
            registers.each[group] = n;
        } else {
            registers.waits[self] = true;
            emu_park(op, PC, explain_registers);
        }
    }
}

/* ---- operands ---- */

uint64_t emu_matrix_of(const void *p, int leading, int stride) {
    const size_t at = (size_t)((const char *)p - emu_now.shared);
    if (at >= emu_now.shared_bytes || at % 16 || leading % 16 || stride % 16)
        emu_fail(
            "matrix (%s): at %p, and %d and %d bytes: not multiples of 16 in dynamic shared memory",
            emu_code_name(PC), p, leading, stride);
    return (uint64_t)1 << 62 | (uint64_t)(stride >> 4) << 32 | (uint64_t)(leading >> 4) << 16 |
           (uint64_t)(at >> 4);
}

/* Who reads: for sentences and checks. */
typedef struct Reader {
    const uint32_t *clock;
    int warpgroup;
    uint32_t group;
    const char *name;
    const void *pc;
} Reader;

static float from_bf16(uint16_t half) {
    const uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Element (i, k) of an operand as `to[k][i]` (i < n), by 16 bytes at a time: along: 8 of k, down: 8
 * of i. The offsets are those of the PTX manual's canonical layouts with the swizzle of 128 bytes:
 *   along: 8 rows i of 128 bytes, the next 8 `stride` further; k runs through a row
 *   down: 64 of i in a row of 128 bytes, the next 64 `leading` further; 8 rows k, the next 8
 * `stride` and bits 4 .. 6 of the address are those xor bits 7 .. 9. */
static void load_operand(uint64_t matrix, bool down, int n, float to[K][MAX_N], const Reader *r) {
    const size_t start = (matrix & 0x3fff) << 4, leading = (matrix >> 16 & 0x3fff) << 4,
                 stride = (matrix >> 32 & 0x3fff) << 4, eight_rows = 1024;
    const size_t last =
        start / eight_rows * eight_rows +
        (down ? (size_t)(n / 64 - 1) * leading + stride : (size_t)(n / 8 - 1) * stride);
    if (matrix >> 62 != 1 || matrix >> 49 & 7)
        emu_fail("%s (%s): operand %016llx has not the swizzle of 128 bytes", r->name,
                 emu_code_name(r->pc), (unsigned long long)matrix);
    if (start % eight_rows >= (down ? 16 : 128) || start % 32)
        emu_fail("%s (%s): an operand begins at byte %zu of shared memory: %s", r->name,
                 emu_code_name(r->pc), start,
                 down ? "not the first column of row 0 or 8 of a panel's 16"
                      : "not in a row that is a multiple of 8 of its panel, and a column of 16");
    if (last + eight_rows > emu_now.shared_bytes)
        emu_fail(
            "%s (%s): an operand has its last 8 rows at byte %zu of dynamic shared memory, which "
            "has %zu",
            r->name, emu_code_name(r->pc), last, emu_now.shared_bytes);
    for (int chunk = 0; chunk < n * K / 8; chunk++) {
        const int i = down ? chunk / K * 8 : chunk / 2, k = down ? chunk % K : chunk % 2 * 8;
        size_t at = start;
        if (down)
            at += (size_t)(i % 64 * 2) + (size_t)(i / 64) * leading + (size_t)(k % 8 * 128) +
                  (size_t)(k / 8) * stride;
        else
            at += (size_t)(i % 8 * 128) + (size_t)(i / 8) * stride + (size_t)(k * 2);
        at ^= at / 128 % 8 * 16;
        uint16_t x[8];
        emu_product_reads(emu_now.shared + at, sizeof x, r->clock, r->warpgroup, r->group, r->pc);
        memcpy(x, emu_now.shared + at, sizeof x);
        for (int e = 0; e < 8; e++) to[down ? k : k + e][down ? i + e : i] = from_bf16(x[e]);
    }
}

/* A from the registers of all threads: fragments of mma_m16n8k16, warp w has rows 16 w ... */
static void load_registers(const EmuProduct *const *p, float to[K][MAX_N]) {
    for (int t = 0; t < EMU_WARPGROUP; t++) {
        const int row = t / 32 * 16 + t % 32 / 4, column = t % 4 * 2;
        for (int i = 0; i < 4; i++) {
            const uint32_t both = p[t]->a_registers[i];
            const int m = row + i % 2 * 8, k = column + i / 2 * 8;
            to[k][m] = from_bf16((uint16_t)both);
            to[k + 1][m] = from_bf16((uint16_t)(both >> 16));
        }
    }
}

VECTORS static void multiply(float D[M][MAX_N], float A[K][MAX_N], float B[K][MAX_N], int n) {
    for (int m = 0; m < M; m++)
        for (int k = 0; k < K; k++)
            for (int j = 0; j < n; j++) D[m][j] += A[k][m] * B[k][j];
}

/* ---- accumulators ---- */

/* What a thread holds. */
typedef struct Own {
    uint32_t commits, ended; /* groups closed; known to have ended */
    int turn;
    struct {
        const float *d;
        int n;
        float was[MAX_EACH];
    } fenced[LIVE]; /* accumulators as they were at their fence, until they are used */
} Own;

/* Accumulators whose products are under way, or were not asked for since. */
typedef struct Accumulators {
    float *d[EMU_WARPGROUP]; /* NULL: given back to the thread */
    int n, held;             /* held: threads that were not given theirs */
    uint32_t group;          /* the last */
    float value[M][MAX_N];
    const void *pc;
} Accumulators;

static Own owns[EMU_MAX_THREADS];
static Accumulators under_way[EMU_WARPGROUPS][LIVE];

static Accumulators *find_under_way(int thread, const float *d) {
    Accumulators *all = under_way[thread / EMU_WARPGROUP];
    for (int i = 0; i < LIVE; i++)
        if (all[i].held && all[i].d[thread % EMU_WARPGROUP] == d) return &all[i];
    return NULL;
}

/* Register i of a thread is at this row and column of D. */
static int d_row(int thread, int i) { return thread / 32 * 16 + thread % 32 / 4 + i % 4 / 2 * 8; }
static int d_column(int thread, int i) { return i / 4 * 8 + thread % 4 * 2 + i % 2; }

static void check_poison(const Accumulators *acc, int t, const char *op, const void *pc) {
    const unsigned char *bytes = (const unsigned char *)acc->d[t];
    for (size_t i = 0; i < (size_t)acc->n * 4 * sizeof(float); i++)
        if (bytes[i] != POISON)
            emu_fail(
                "%s (%s): accumulator %zu of thread %d of the warpgroup was changed while products "
                "(%s) were under way",
                op, emu_code_name(pc), i / sizeof(float), t, emu_code_name(acc->pc));
}

static void release(Accumulators *acc, int t) {
    acc->d[t] = NULL;
    acc->held--;
}

/* Gives the running thread what its ended products left in d. */
static void deliver(float *d, int n, const char *op, const void *pc) {
    const int self = emu_now.thread, t = self % EMU_WARPGROUP;
    const Own *own = &owns[self];
    Accumulators *acc = find_under_way(self, d);
    if (!acc) return;
    if (acc->n != n)
        emu_fail("%s (%s): %d x 4 accumulators, whose products (%s) have %d x 4", op,
                 emu_code_name(pc), n, emu_code_name(acc->pc), acc->n);
    if (acc->group == own->commits)
        emu_fail("%s (%s): names accumulators of products (%s) without wgmma_commit", op,
                 emu_code_name(pc), emu_code_name(acc->pc));
    if (acc->group >= own->ended) return;
    check_poison(acc, t, op, pc);
    for (int i = 0; i < n * 4; i++) d[i] = acc->value[d_row(t, i)][d_column(t, i)];
    release(acc, t);
}

void emu_registers_pin(float *d, int n) {
    emu_clocks_begin();
    deliver(d, n, "registers_pin", PC);
}

void emu_wgmma_fence(float *d, int n) {
    emu_clocks_begin();
    const int self = emu_now.thread;
    Own *own = &owns[self];
    Accumulators *acc = find_under_way(self, d);
    if (acc && acc->group >= own->ended) return; /* they stay with the products */
    if (acc) release(acc, self % EMU_WARPGROUP); /* nobody wanted them */
    int i = 0, unused = own->turn % LIVE;
    for (; i < LIVE && own->fenced[i].d != d; i++)
        if (!own->fenced[i].d) unused = i;
    if (i == LIVE) i = unused, own->turn++;
    own->fenced[i].d = d;
    own->fenced[i].n = n;
    memcpy(own->fenced[i].was, d, (size_t)n * 4 * sizeof *d);
}

void emu_wgmma_commit(void) {
    emu_clocks_begin();
    owns[emu_now.thread].commits++;
}

void emu_wgmma_wait(int pending, float *d, int n) {
    emu_clocks_begin();
    const int self = emu_now.thread;
    Own *own = &owns[self];
    if (own->commits > own->ended + (uint32_t)pending)
        own->ended = own->commits - (uint32_t)pending;
    emu_clock_learn(emu_clock_of(self), EMU_PRODUCTS + self / EMU_WARPGROUP, own->ended);
    deliver(d, n, "wgmma_wait", PC);
}

/* ---- a product ---- */

static const char *product_name(const EmuProduct *p) {
    return p->n == 8 ? "wgmma_64" : p->n == 16 ? "wgmma_128" : "wgmma_192";
}

static void check_same(const EmuProduct *const *p, int first, const void *pc) {
    for (int t = 1; t < EMU_WARPGROUP; t++) {
        const EmuProduct *a = p[0], *b = p[t];
        if (a->n != b->n || !a->a_registers != !b->a_registers || a->a != b->a || a->b != b->b ||
            a->a_down != b->a_down || a->b_down != b->b_down || a->add != b->add)
            emu_fail(
                "%s (%s): threads 0 and %d of the warpgroup come with other operands: matrices "
                "%llx, %llx and %llx, %llx, add %d and %d",
                product_name(a), emu_code_name(pc), t, (unsigned long long)a->a,
                (unsigned long long)a->b, (unsigned long long)b->a, (unsigned long long)b->b,
                a->add, b->add);
        if (owns[first].commits != owns[first + t].commits)
            emu_fail("%s (%s): threads 0 and %d of the warpgroup have committed %u and %u groups",
                     product_name(a), emu_code_name(pc), t, owns[first].commits,
                     owns[first + t].commits);
    }
}

/* Takes a thread's accumulators as they are since their fence. */
static void take(Accumulators *acc, const EmuProduct *p, int thread, const void *pc) {
    const int t = thread % EMU_WARPGROUP;
    Own *own = &owns[thread];
    int f = 0;
    while (f < LIVE && (own->fenced[f].d != p->d || own->fenced[f].n != p->n)) f++;
    emu_now.thread = thread; /* for sentences */
    if (f == LIVE)
        emu_fail(
            "%s (%s): no wgmma_fence that names these accumulators since they were last waited "
            "for",
            product_name(p), emu_code_name(pc));
    if (memcmp(own->fenced[f].was, p->d, (size_t)p->n * 4 * sizeof *p->d))
        emu_fail("%s (%s): the accumulators were changed after their wgmma_fence", product_name(p),
                 emu_code_name(pc));
    own->fenced[f].d = NULL;
    acc->d[t] = p->d;
    for (int i = 0; i < p->n * 4; i++) acc->value[d_row(t, i)][d_column(t, i)] = p->d[i];
    memset(p->d, POISON, (size_t)p->n * 4 * sizeof *p->d);
}

static Accumulators *accumulators_of(int group, const EmuProduct *const *p, const void *pc) {
    const int first = group * EMU_WARPGROUP, self = emu_now.thread;
    Accumulators *acc = find_under_way(first, p[0]->d);
    for (int t = 0; t < EMU_WARPGROUP && acc; t++) {
        if (acc->d[t] != p[t]->d || acc->n != p[0]->n)
            emu_fail(
                "%s (%s): only some threads of the warpgroup have waited for the accumulators, or "
                "their number is another",
                product_name(p[0]), emu_code_name(pc));
        check_poison(acc, t, product_name(p[0]), pc);
    }
    if (acc) return acc;
    for (acc = under_way[group]; acc < under_way[group] + LIVE && acc->held;) acc++;
    if (acc == under_way[group] + LIVE)
        emu_fail("%s (%s): more than %d accumulators under way", product_name(p[0]),
                 emu_code_name(pc), LIVE);
    for (int t = 0; t < EMU_WARPGROUP; t++) take(acc, p[t], first + t, pc);
    emu_now.thread = self;
    acc->n = p[0]->n;
    acc->held = EMU_WARPGROUP;
    return acc;
}

static const void *product_pc; /* where the last to come is */

static void complete_product(int group, const void *const *args) {
    const EmuProduct *const *p = (const EmuProduct *const *)args;
    const int first = group * EMU_WARPGROUP, n = p[0]->n * 8;
    check_same(p, first, product_pc);
    Accumulators *acc = accumulators_of(group, p, product_pc);
    acc->group = owns[first].commits;
    acc->pc = product_pc;
    uint32_t *clock = emu_clock_scratch(); /* what the first lanes of all four warps know */
    emu_clock_copy(clock, emu_clock_of(first));
    for (int t = EMU_LANES; t < EMU_WARPGROUP; t += EMU_LANES)
        emu_clock_meet(clock, emu_clock_of(first + t));
    const Reader r = {clock, group, acc->group, product_name(p[0]), product_pc};
    static float A[K][MAX_N], B[K][MAX_N];
    if (p[0]->a_registers)
        load_registers(p, A);
    else
        load_operand(p[0]->a, p[0]->a_down, M, A, &r);
    load_operand(p[0]->b, p[0]->b_down, n, B, &r);
    if (!p[0]->add) memset(acc->value, 0, sizeof acc->value);
    multiply(acc->value, A, B, n);
}

void emu_wgmma(const EmuProduct *p) {
    product_pc = PC;
    meet(product_name(p), p, complete_product, PC);
}

void emu_products_end(void) {
    for (int w = 0; w < EMU_WARPGROUPS; w++)
        for (int i = 0; i < LIVE; i++) {
            Accumulators *acc = &under_way[w][i];
            const int first = w * EMU_WARPGROUP;
            emu_now.thread = first;
            if (acc->held && acc->group >= owns[first].ended)
                emu_fail("the block has ended while products (%s) are under way: no %s",
                         emu_code_name(acc->pc),
                         acc->group < owns[first].commits ? "wgmma_wait" : "wgmma_commit");
            acc->held = 0;
        }
    for (int t = 0; t < emu_block_threads(); t++) {
        owns[t].commits = owns[t].ended = 0;
        for (int i = 0; i < LIVE; i++) owns[t].fenced[i].d = NULL;
    }
    memset(&registers, 0, sizeof registers);
}
