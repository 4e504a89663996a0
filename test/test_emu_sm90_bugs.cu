/* The emulator: wrong use of Hopper's instructions ends with a sentence. */
#include "kernels/cuda/tensor_map.cuh"
#include "test/emu_bug.h"

/* One kernel that is right, by a warpgroup and a second one that watches, and what may be wrong in
 * it: C (64, 64) = A B, the operands by the copy engine, C by it too, and added to float32. */
enum Bug_ {
    RIGHT,
    /* Barriers */
    UNMADE,
    MADE_TWICE,
    UNFENCED,
    UNSYNCED,
    MISPLACED,
    OVERWRITTEN,
    ARRIVES_TWICE,
    TOO_MANY_BYTES,
    TOO_FEW_BYTES,
    NO_ARRIVAL,
    PARITY,
    /* copies to shared memory */
    NO_WAIT,
    ONE_WAITS,
    BOX_MISPLACED,
    BOX_PAST_END,
    BOX_TWICE,
    NO_MAP,
    BYTES_UNALIGNED,
    NOBODY_WAITS,
    WRITTEN_HERE,
    /* products */
    NO_FENCE,
    CHANGED,
    CHANGED_UNDER_WAY,
    NO_COMMIT,
    NO_COMMIT_NO_WAIT,
    NO_WGMMA_WAIT,
    SOME_WAIT,
    OTHER_OPERANDS,
    MISSING_THREAD,
    NO_SWIZZLE,
    ODD_ROW,
    PAST_END,
    UNWRITTEN,
    OPERAND_UNFENCED,
    OPERAND_OVERWRITTEN,
    OPERAND_OVERWRITTEN_BY_OTHER,
    /* copies from shared memory */
    SOURCE_UNFENCED,
    SOURCE_UNORDERED,
    SOURCE_OVERWRITTEN,
    NO_COPIES_READ,
    NO_COPIES_COMMIT,
    ADDED_TWICE,
    READ_EARLY,
    /* named barriers */
    OTHER_COUNT,
    HALF_WARPS,
    NOT_ENOUGH,
    COMES_TWICE
};

typedef struct Params {
    TensorMap a, b, c;
    float *bytes, *sum;
    bf16 *ordinary;
} Params;

enum { PANEL = 64 * 64, PANEL_BYTES = PANEL * 2, SUM = 64, ALL = 2 * PANEL_BYTES + SUM * 4 };

typedef struct Shared {
    bf16 a[PANEL], b[PANEL], c[PANEL];
    float sum[SUM];
    Barrier full, late;
} Shared;

template <int bug>
static __device__ void make_barriers(Shared *s) {
    if (threadIdx.x == 0 && bug != UNMADE) {
        if (bug == MISPLACED) barrier_init((Barrier *)((char *)&s->full + 4), 1);
        barrier_init(&s->full, bug == NO_ARRIVAL ? 2 : 1);
        if (bug == MADE_TWICE) barrier_init(&s->full, 1);
        if (bug == OVERWRITTEN) s->full.state = 0;
        if (bug != UNFENCED) barrier_fence_init();
    }
    if (bug != UNSYNCED) __syncthreads();
}

template <int bug>
static __device__ void load(const Params &p, Shared *s) {
    const TensorMap none = {};
    if (bug == WRITTEN_HERE) p.ordinary[0] = from_float<bf16>(1);
    barrier_expect(&s->full, bug == TOO_MANY_BYTES  ? ALL - 16
                             : bug == TOO_FEW_BYTES ? ALL + 16
                                                    : ALL);
    copy_box(s->a + (bug == BOX_MISPLACED ? 64 : 0), bug == NO_MAP ? &none : &p.a, &s->full, 0, 0,
             0, 0);
    if (bug == BOX_TWICE) copy_box(s->a, &p.a, &s->full, 0, 0, 0, 0);
    copy_box(bug == BOX_PAST_END ? s->c + 8 * 64 : s->b, &p.b, &s->full, 0, 0, 0, 0);
    copy_bytes(s->sum, p.bytes + (bug == BYTES_UNALIGNED ? 1 : 0), SUM * 4, &s->full);
    if (bug == ARRIVES_TWICE) barrier_arrive(&s->full);
}

template <int bug>
static __device__ void multiply(Shared *s, float (&d)[8][4], int t) {
    if (bug == OPERAND_UNFENCED) {
        if (t == 5) s->a[0] = from_float<bf16>(1);
        named_barrier_wait(1, 128);
    }
    const bf16 *from = bug == UNWRITTEN  ? s->c
                       : bug == ODD_ROW  ? s->a + 4 * 64
                       : bug == PAST_END ? s->c + 8 * 64
                                         : s->a;
    Matrix a = matrix_along(from);
    if (bug == NO_SWIZZLE) a &= ~((Matrix)1 << 62);
    if (bug != NO_FENCE) wgmma_fence(d);
    if (bug == CHANGED) d[1][2] += 1;
    if (bug != MISSING_THREAD || t != 77)
        wgmma<false, false>(d, a, matrix_along(s->b), bug == OTHER_OPERANDS && t == 3);
    if (bug == CHANGED_UNDER_WAY) d[1][2] = 0;
    wgmma<false, false>(d, matrix_along(s->a + 16), matrix_along(s->b + 16), true);
    if (bug != NO_COMMIT && bug != NO_COMMIT_NO_WAIT) wgmma_commit();
    if (bug == OPERAND_OVERWRITTEN) s->b[t] = from_float<bf16>(0);
    if (bug == SOME_WAIT && t >= 64) wgmma_wait<0>(d);
    if (bug == SOME_WAIT) wgmma<false, false>(d, a, matrix_along(s->b), true);
    if (bug != NO_WGMMA_WAIT && bug != NO_COMMIT_NO_WAIT) wgmma_wait<0>(d);
}

template <int bug>
static __device__ void store(const Params &p, Shared *s, const float (&d)[8][4], int t) {
    for (int i = 0; i < 32; i++) s->c[t * 32 + i] = from_float<bf16>(d[i / 4][i % 4]);
    if (bug != SOURCE_UNFENCED) fence_shared_to_async();
    if (bug != SOURCE_UNORDERED) named_barrier_wait(1, 128);
    if (t) return;
    store_box(&p.c, s->c, 0, 0, 0, 0);
    if (bug == NO_COPIES_COMMIT) copies_wait<0>();
    if (bug == NO_COPIES_COMMIT) return;
    copies_commit();
    if (bug == SOURCE_OVERWRITTEN) s->c[7] = from_float<bf16>(0);
    add_bytes(p.sum, s->sum, SUM * 4);
    if (bug == ADDED_TWICE) add_bytes(p.sum, s->sum, SUM * 4);
    copies_commit();
    if (bug == READ_EARLY) copies_read<0>(), s->sum[0] = p.sum[0];
    if (bug != NO_COPIES_READ) copies_wait<0>();
}

template <int bug>
static __device__ void misuse(Shared *s, int t) {
    if (bug == OTHER_COUNT) named_barrier_wait(2, t < 32 ? 128 : 96);
    if (bug == HALF_WARPS && t % 32 < 16) named_barrier_wait(2, 64);
    if (bug == NOT_ENOUGH) named_barrier_wait(2, 256);
    if (bug == COMES_TWICE) named_barrier_arrive(2, 256), named_barrier_arrive(2, 256);
    if (bug == PARITY) barrier_wait(&s->full, 2);
}

template <int bug>
static __global__ void __launch_bounds__(256, 1) kernel(const __grid_constant__ Params p) {
    Shared *s = (Shared *)shared_block();
    const int t = threadIdx.x % 128;
    make_barriers<bug>(s);
    if (threadIdx.x >= 128) { /* who watches */
        if (bug == OPERAND_OVERWRITTEN_BY_OTHER) {
            barrier_wait(&s->full, 0);
            named_barrier_wait(3, 256);
            s->b[t] = from_float<bf16>(0);
        }
        return;
    }
    if (t == 0) load<bug>(p, s);
    misuse<bug>(s, t);
    if (bug == NOBODY_WAITS) return;
    if (bug != NO_WAIT && (bug != ONE_WAITS || t == 0)) barrier_wait(&s->full, 0);
    float d[8][4];
    if (bug == OPERAND_OVERWRITTEN_BY_OTHER) named_barrier_arrive(3, 256);
    multiply<bug>(s, d, t);
    store<bug>(p, s, d, t);
}

static TensorMap map_of(const bf16 *p, int rows) {
    return tensor_map(NULL, p, {64 * 64, 64, 64}, 1, 64, 1, 64, rows);
}

template <int bug>
static void run() {
    Params p = {};
    p.ordinary = zeros<bf16>(PANEL);
    p.a = map_of(p.ordinary, 64);
    p.b = map_of(zeros<bf16>(PANEL), 64);
    p.c = map_of(zeros<bf16>(PANEL), 64);
    p.bytes = zeros<float>(SUM + 4);
    p.sum = zeros<float>(SUM);
    launch(NULL, kernel<bug>, 1, 256, sizeof(Shared), p);
}

/* ---- what needs kernels of its own ---- */

/* A thread that waited for phase 0 does so again when phase 4 is under way. */
static __global__ void behind_kernel() {
    Barrier *b = (Barrier *)shared_block();
    if (threadIdx.x == 0) {
        barrier_init(b, 1);
        barrier_fence_init();
    }
    __syncthreads();
    if (threadIdx.x == 0) barrier_arrive(b);
    if (threadIdx.x == 128) barrier_wait(b, 0);
    __syncthreads();
    for (int i = 0; i < 3 && threadIdx.x == 0; i++) barrier_arrive(b);
    __syncthreads();
    if (threadIdx.x == 128) barrier_wait(b, 1);
}
static void behind() { launch(NULL, behind_kernel, 1, 256, sizeof(Barrier)); }

/* A producer, which asks or not whether the consumers have read. */
template <bool asks>
static __global__ void ring_kernel(float *y, const float *x) {
    float *box = (float *)shared_block();
    Barrier *full = (Barrier *)(box + 32), *empty = full + 1;
    if (threadIdx.x == 0) {
        barrier_init(full, 1);
        barrier_init(empty, 32);
        barrier_fence_init();
    }
    __syncthreads();
    for (int i = 0; i < 4; i++) {
        if (threadIdx.x == 32) {
            if (asks) barrier_wait(empty, i % 2 ^ 1);
            barrier_expect(full, 128);
            copy_bytes(box, x + 32 * i, 128, full);
        }
        if (threadIdx.x < 32) {
            barrier_wait(full, i % 2);
            y[threadIdx.x] += box[31 - threadIdx.x];
            barrier_arrive(empty);
        }
    }
}
template <bool asks>
static void ring() {
    launch(NULL, ring_kernel<asks>, 1, 64, 32 * sizeof(float) + 2 * sizeof(Barrier),
           zeros<float>(32), zeros<float>(128));
}

/* 384 threads begin with 168 registers each. */
template <int n, bool grow>
static __global__ void registers_kernel() {
    if (threadIdx.x >= 128) return;
    if (grow)
        registers_grow<n>();
    else
        registers_shrink<n>();
}
template <int threads, int n, bool grow>
static void take_registers() {
    launch(NULL, registers_kernel<n, grow>, 1, threads, 0);
}

static void box_too_tall() { map_of(zeros<bf16>(PANEL), 257); }

static void freed() {
    bf16 *x = zeros<bf16>(PANEL);
    Params p = {};
    p.a = map_of(x, 64);
    p.b = p.c = map_of(zeros<bf16>(PANEL), 64);
    p.bytes = p.sum = zeros<float>(SUM);
    CUDA(NULL, cudaFree(x));
    launch(NULL, kernel<RIGHT>, 1, 256, sizeof(Shared), p);
}

static const Bug bugs[] = {
    {"right", run<RIGHT>, NULL, NULL},
    {"no barrier_init", run<UNMADE>, "no barrier_init", ""},
    {"barrier_init twice", run<MADE_TWICE>, "is one already", ""},
    {"no barrier_fence_init", run<UNFENCED>, "no barrier_fence_init", ""},
    {"no __syncthreads", run<UNSYNCED>, "with no __syncthreads between", ""},
    {"Barrier not aligned", run<MISPLACED>, "is not 8 aligned bytes of shared memory", ""},
    {"Barrier overwritten", run<OVERWRITTEN>, "which is a Barrier", NULL},
    {"arrives twice", run<ARRIVES_TWICE>, "has all 1 arrivals already", ""},
    {"unannounced bytes", run<TOO_MANY_BYTES>, "announced 16624 bytes; its copies bring 16640", ""},
    {"bytes never come", run<TOO_FEW_BYTES>, "lacks 0 of 1 arrivals and 16 of 16656", ""},
    {"arrival never comes", run<NO_ARRIVAL>, "lacks 1 of 2 arrivals and 0 of 16640", ""},
    {"parity of 2", run<PARITY>, "parity 2; 0 or 1", ""},
    {"falls behind", behind, "last waited for phase 0 of the Barrier", ""},
    {"ring", ring<true>, NULL, NULL},
    {"ring without empty", ring<false>, "race: ", NULL},
    {"operands not waited for", run<NO_WAIT>, "asynchronous copy", NULL},
    {"one thread waits", run<ONE_WAITS>, "which a copy that counts for the Barrier", NULL},
    {"box not aligned", run<BOX_MISPLACED>, "is not a multiple of 1024", ""},
    {"box past the end", run<BOX_PAST_END>, "of dynamic shared memory, which has", ""},
    {"box twice", run<BOX_TWICE>, "while an asynchronous copy that thread (0, 0, 0)", NULL},
    {"no TensorMap", run<NO_MAP>, "there is no TensorMap", ""},
    {"freed tensor", freed, "which are not live device memory", ""},
    {"bytes not aligned", run<BYTES_UNALIGNED>, "; multiples of 16", ""},
    {"nobody waits", run<NOBODY_WAITS>, "the block has ended while copy_box", ""},
    {"written in the launch", run<WRITTEN_HERE>, "the copy engine need not see them", NULL},
    {"no wgmma_fence", run<NO_FENCE>, "no wgmma_fence that names", ""},
    {"changed after the fence", run<CHANGED>, "were changed after their wgmma_fence", ""},
    {"changed under way", run<CHANGED_UNDER_WAY>, "was changed while products", ""},
    {"no wgmma_commit", run<NO_COMMIT>, "without wgmma_commit", ""},
    {"neither commit nor wait", run<NO_COMMIT_NO_WAIT>, "are under way: no wgmma_commit", ""},
    {"some threads wait", run<SOME_WAIT>, "only some threads of the warpgroup have waited", ""},
    {"no wgmma_wait", run<NO_WGMMA_WAIT>, "are under way: no wgmma_wait", ""},
    {"other operands", run<OTHER_OPERANDS>, "threads 0 and 3 of the warpgroup come with other", ""},
    {"passes over a product", run<MISSING_THREAD>, "come with other operands", ""},
    {"no swizzle", run<NO_SWIZZLE>, "has not the swizzle of 128 bytes", ""},
    {"odd row", run<ODD_ROW>, "not in a row that is a multiple of 8", ""},
    {"operand past the end", run<PAST_END>, "of dynamic shared memory, which has", ""},
    {"operand never written", run<UNWRITTEN>, "which nobody of this block has written yet", NULL},
    {"operand not fenced", run<OPERAND_UNFENCED>, "no fence_shared_to_async", NULL},
    {"operand overwritten", run<OPERAND_OVERWRITTEN>, "while products of warpgroup 0 may", NULL},
    {"operand overwritten by another", run<OPERAND_OVERWRITTEN_BY_OTHER>, "while products of",
     NULL},
    {"source not fenced", run<SOURCE_UNFENCED>, "no fence_shared_to_async", NULL},
    {"source not there", run<SOURCE_UNORDERED>, "which nobody of this block has written yet", NULL},
    {"source overwritten", run<SOURCE_OVERWRITTEN>, "reads it: no copies_read", NULL},
    {"no copies_read", run<NO_COPIES_READ>, "reads its shared memory: no copies_read", ""},
    {"no copies_commit", run<NO_COPIES_COMMIT>, "reads its shared memory: no copies_commit", ""},
    {"added twice", run<ADDED_TWICE>, "asynchronous copy that thread (0, 0, 0) began", NULL},
    {"read before it is there", run<READ_EARLY>, "asynchronous copy that thread (0, 0, 0)", NULL},
    {"other count", run<OTHER_COUNT>, "of which others said 128", ""},
    {"half warps", run<HALF_WARPS>, "; whole warps do", ""},
    {"not enough threads", run<NOT_ENOUGH>, "128 of 256 threads have come", ""},
    {"comes twice", run<COMES_TWICE>, "comes to barrier 2 twice", ""},
    {"grows for ever", take_registers<384, 176, true>, "registers that nobody gives back", ""},
    {"shrinks to more", take_registers<384, 176, false>, "to 176 registers from 168", ""},
    {"half a warpgroup", take_registers<64, 24, false>, "the warpgroup has not 128 threads", ""},
    {"box too tall", box_too_tall, "error 1 for (D, T, H, B)", ""},
};

int main(void) { return run_bugs(bugs); }
