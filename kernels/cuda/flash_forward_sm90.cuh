/* Fused attention in bf16 for Hopper, forward: FlashAttention-3 (Shah et al. 2024).
 *
 * A block draws items of work, 192 (D 64) or 128 (D 128) queries of one head, and visits tiles of
 * 128 keys that some of them see. One warp loads: queries of the next item while this one is
 * computed, keys and values into a ring of stages, apart, so that q k' begins before v is there. It
 * asks the mask as well, once a tile for each warpgroup, which reads the answer with the tile. The
 * other warpgroups have 64 queries each. In one of them q k' of a tile is begun before p v of the
 * tile before, and the softmax of the one runs while the tensor cores have the other; between them
 * turns order the products, so that one's softmax meets the others' products. P stays in registers.
 * Output takes the queries' place in shared memory and leaves by the copy engine.
 *
 * The softmax is that of the portable kernel: online, in base 2, and sums are left as they are
 * where no row's maximum grows by more than SLACK. Each item is computed by one block in one order,
 * so that the bits do not depend on who draws it.
 *
 * One tile of a warpgroup (64 x 128), in clocks of a multiprocessor:
 *                   D 64   D 128
 *   tensor cores     512    1024   64 x N x 16 in N / 2
 *   exponentials     512     512   8192 at 16
 *   shared memory    405     896   a, b of q k' and b of p v by each warpgroup, tiles once, at 128
 *                                  bytes
 *   instructions     350     370   as many a warp, 4 at a time: 288 of the softmax
 * So the tensor cores' rate, 920 TFLOP/s at 1.7 GHz, is the bound of both, and at D 64 of the
 * exponentials too: of three warpgroups one would have to be in its softmax at every moment, and
 * none ever wait. A quarter of the exponentials as polynomials (8 instructions for one) would bring
 * them to 384 and instructions to 460: it moves the limit by less than it costs in issue slots.
 * What is reached on hardware is open.
 *
 * Work: a tile whose second half a warpgroup does not see costs half. Frames of 65 tokens, T 1950:
 * 1.10 times the visible pairs (1.13 by whole tiles, 1.33 by blocks of 192 queries). Balance over
 * 132 blocks there, mean over longest: B 32, H 6, 0.98 (items assigned in turns 0.92), B 8 0.88
 * (0.81). Tiny documents, of a few rows, cost a warpgroup 128 to 192 keys, the portable kernel's
 * warps 64 to 96: half as much, at about half this kernel's rate, so that they stay here.
 *
 * B batch, H heads, T tokens, D head size, 64 or 128. */
#ifndef KERNELS_CUDA_FLASH_FORWARD_SM90_CUH
#define KERNELS_CUDA_FLASH_FORWARD_SM90_CUH

#include "kernels/cuda/flash_sm90.cuh"

enum {
    KEYS = 128, /* of a tile */
    HALF = 64,
    SLOTS = 2,   /* items of work whose queries are in shared memory */
    GROUP = 64,  /* queries of a warpgroup */
    STRIP = 16,  /* queries of a warp: rows of out's box */
    TURNS = 1,   /* the named barriers of turns, one a warpgroup */
    QUERIES = 4, /* those at which a warpgroup has done with its queries */
};
#define SLACK 8.0f

/* Warpgroups that compute, beside the one that loads; registers of a thread of either: together as
 * many as the block begins with, 4 x 128 or 3 x 168. */
template <int D>
struct ForwardShape {
    static constexpr int GROUPS = D == 64 ? 3 : 2, ROWS = GROUPS * GROUP,
                         THREADS = (1 + GROUPS) * WARPGROUP, STAGES = D == 64 ? 4 : 2,
                         LOADS = D == 64 ? 32 : 40, COMPUTES = D == 64 ? 160 : 232;
};

typedef struct Forward {
    TensorMap q, k, v, out;
    float *lse;
    unsigned *drawn; /* items, beyond the first of each block; 0 before and after */
    FlashMask mask;
    int heads, H, n_tiles, group;
    float scale, factor; /* factor: to scores in units of log 2, scale log2(e) */
} Forward;

/* An item of work: consecutive queries of one head. */
typedef struct Item {
    int b, h, row; /* row -1: there is no more work */
    bool sees;     /* whether there is a tile of keys */
} Item;

/* What a warpgroup is told of a tile of keys: that some of its queries see some of it, some of its
 * second half, all of them all (of its first half where they see no more); and that the item has no
 * further one. */
enum { SEES = 1, SECOND = 2, FULL = 4, LAST = 8, NONE = 16 };

typedef struct Tile {
    int key, look[3]; /* the first key; by warpgroup */
} Tile;

template <int D>
struct ForwardShared {
    typedef ForwardShape<D> S;
    bf16 k[S::STAGES][KEYS * D], v[S::STAGES][KEYS * D], q[SLOTS][S::ROWS * D];
    Interval rows[SLOTS][S::ROWS];
    Limits limits[S::GROUPS]; /* of each warpgroup's rows; for the warp that loads */
    Item item[SLOTS];
    Tile tile[S::STAGES];
    Barrier k_full[S::STAGES], k_empty[S::STAGES], v_full[S::STAGES], v_empty[S::STAGES];
    Barrier q_full[SLOTS], q_empty[SLOTS];
};

/* ---- the warp that loads ---- */

/* Item i: within a group of heads the last queries first, which see the most keys under a causal
 * mask. */
static __device__ __forceinline__ Item forward_place(const Forward &p, int rows, int i) {
    const int group = i / (p.group * p.n_tiles) * p.group, heads = min(p.group, p.heads - group);
    const int at = i % (p.group * p.n_tiles), head = group + at % heads;
    return {head / p.H, head % p.H, (p.n_tiles - 1 - at / heads) * rows, false};
}

/* The intervals of an item's rows, the limits of each warpgroup's, and, returned, those of all. */
template <int D>
static __device__ __forceinline__ Limits forward_limits(const Forward &p, const Item &item,
                                                        Interval *rows, Limits *limits) {
    typedef ForwardShape<D> S;
    for (int r = threadIdx.x; r < S::ROWS; r += WARP) rows[r] = interval_of(p.mask, item.row + r);
    __syncwarp();
    Limits all = {INT_MAX, 0, 0, 0};
#pragma unroll 1 /* this warp has few registers */
    for (int g = 0; g < S::GROUPS; g++) {
        const Limits l =
            mask_limits(p.mask, item.b, item.h, rows + g * GROUP, item.row + g * GROUP, GROUP);
        if ((int)threadIdx.x == g) limits[g] = l;
        all.first = min(all.first, l.first);
        all.end = max(all.end, l.end);
    }
    return all;
}

/* What warpgroup threadIdx.x, whose limits are l, is told of the tile from `key` on. */
static __device__ __forceinline__ int forward_look(const Forward &p, const Item &item,
                                                   const Limits &l, int key) {
    const int row = item.row + (int)threadIdx.x * GROUP;
    const bool first = mask_meets(p.mask, l, item.b, item.h, row, GROUP, key, key + HALF);
    const bool second = mask_meets(p.mask, l, item.b, item.h, row, GROUP, key + HALF, key + KEYS);
    const int end = key + (second ? KEYS : HALF);
    const bool full = mask_full(p.mask, l, item.b, item.h, row, GROUP, key, end);
    return (first || second ? SEES : 0) | (second ? SECOND : 0) | (full ? FULL : 0);
}

/* One tile of keys or values. */
template <int D>
static __device__ __forceinline__ void forward_copy(bf16 *to, const TensorMap *map, Barrier *b,
                                                    const Item &item, int key) {
    barrier_expect(b, KEYS * D * (int)sizeof(bf16));
    panels_load<D>(to, map, b, KEYS, key, item.h, item.b);
}

/* The tiles of an item that somebody sees. */
template <int D>
static __device__ __forceinline__ void forward_keys(const Forward &p, ForwardShared<D> &shared,
                                                    const Item &item, const Limits &all, int key,
                                                    RingPlace &at) {
    typedef ForwardShape<D> S;
    const bool one = threadIdx.x == 0;
    while (key < all.end) {
        const int next = HALF * mask_next(p.mask, all, item.b, item.h, item.row, S::ROWS,
                                          key / HALF + KEYS / HALF, HALF);
        barrier_wait(&shared.k_empty[at.stage], at.parity ^ 1);
        Tile &tile = shared.tile[at.stage];
        if (one) tile.key = key;
        if (threadIdx.x < S::GROUPS)
            tile.look[threadIdx.x] = forward_look(p, item, shared.limits[threadIdx.x], key) |
                                     (next < all.end ? 0 : LAST);
        __syncwarp();
        if (one) forward_copy<D>(shared.k[at.stage], &p.k, &shared.k_full[at.stage], item, key);
        barrier_wait(&shared.v_empty[at.stage], at.parity ^ 1);
        if (one) forward_copy<D>(shared.v[at.stage], &p.v, &shared.v_full[at.stage], item, key);
        __syncwarp();
        key = next;
        ring_next<S::STAGES>(at);
    }
}

/* The block's next item. Each block draws until there is none, so that the draws are as many as the
 * items, and the last one leaves the counter as it was. */
static __device__ __forceinline__ int forward_draw(const Forward &p) {
    int drawn = 0;
    if (threadIdx.x == 0) {
        drawn = (int)atomicAdd(p.drawn, 1u);
        if (drawn == p.heads * p.n_tiles - 1) atomicAnd(p.drawn, 0u);
    }
    return (int)gridDim.x + __shfl_sync(FULL_WARP, drawn, 0);
}

template <int D>
static __device__ __forceinline__ void forward_load(const Forward &p, ForwardShared<D> &shared) {
    typedef ForwardShape<D> S;
    const bool one = threadIdx.x == 0;
    RingPlace slot = {0, 0}, at = {0, 0};
    for (int i = blockIdx.x; i < p.heads * p.n_tiles; i = forward_draw(p)) {
        Item item = forward_place(p, S::ROWS, i);
        barrier_wait(&shared.q_empty[slot.stage], slot.parity ^ 1);
        const Limits all = forward_limits<D>(p, item, shared.rows[slot.stage], shared.limits);
        const int key = HALF * mask_next(p.mask, all, item.b, item.h, item.row, S::ROWS,
                                         all.first / HALF, HALF);
        item.sees = key < all.end;
        if (one) {
            Barrier *b = &shared.q_full[slot.stage];
            shared.item[slot.stage] = item;
            barrier_expect(b, S::ROWS * D * (int)sizeof(bf16));
            panels_load<D>(shared.q[slot.stage], &p.q, b, S::ROWS, item.row, item.h, item.b);
        }
        __syncwarp();
        forward_keys(p, shared, item, all, key, at);
        ring_next<SLOTS>(slot);
    }
    barrier_wait(&shared.q_empty[slot.stage], slot.parity ^ 1);
    if (one) {
        shared.item[slot.stage].row = -1;
        barrier_arrive(&shared.q_full[slot.stage]);
    }
}

/* ---- the warpgroups that compute ---- */

/* A warpgroup's queries. Lane 4 g + t of warp w has rows 16 w + g and 16 w + g + 8. */
template <int D>
struct ForwardRows {
    float out[D / 8][4];
    float top[2], sum[2];     /* the maximum in units of log 2; of 2^(s - top), this lane's part */
    uint32_t p[KEYS / 16][4]; /* 2^(s - top) of the tile before, as A */
};

/* Which of the block's warpgroups it is, and where in the rings. */
template <int D>
struct ForwardView {
    ForwardShared<D> &shared;
    int group;
    RingPlace slot, at;
};

/* The lane's first row of its item; the other is 8 further. */
static __device__ __forceinline__ int lane_row(int group) {
    return group * GROUP + threadIdx.x % WARPGROUP / WARP * STRIP + threadIdx.x % WARP / 4;
}

/* The warpgroups begin their products in turns, so that one's softmax runs while the tensor cores
 * have others' products. */
template <int D>
static __device__ __forceinline__ void turn_wait(int group) {
    named_barrier_wait(TURNS + group, 2 * WARPGROUP);
}
template <int D>
static __device__ __forceinline__ void turn_pass(int group) {
    const int next = group + 1 == ForwardShape<D>::GROUPS ? 0 : group + 1;
    named_barrier_arrive(TURNS + next, 2 * WARPGROUP);
}

/* s = -inf where the row's query does not see the key; key: of s's first column. */
template <int D, int N>
static __device__ __forceinline__ void forward_hide(const Forward &p, const ForwardView<D> &x,
                                                    float (&s)[N][4], int key) {
    const Item &item = x.shared.item[x.slot.stage];
    const Interval *rows = x.shared.rows[x.slot.stage] + lane_row(x.group), up = rows[0],
                   down = rows[8];
    const int row = item.row + lane_row(x.group), b = item.b, h = item.h;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            if (!mask_sees(p.mask, e < 2 ? up : down, b, h, row + e / 2 * 8,
                           key + 8 * n + threadIdx.x % 4 * 2 + e % 2))
                s[n][e] = -INFINITY;
}

/* s = scale q k' becomes what the score expression makes of it, in units of log 2. */
template <int D, int N>
static __device__ __forceinline__ void forward_modify(const Forward &p, const ForwardView<D> &x,
                                                      float (&s)[N][4], int key) {
    const Item &item = x.shared.item[x.slot.stage];
    const int row = item.row + lane_row(x.group), b = item.b, h = item.h;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            s[n][e] = LOG2E * mask_score(p.mask, p.scale * s[n][e], b, h, row + e / 2 * 8,
                                         key + 8 * n + threadIdx.x % 4 * 2 + e % 2);
}

/* Makes room for the largest scores: top grows, sum shrinks with it, and so is out to. Whether. */
template <int D, int N>
static __device__ __forceinline__ bool forward_grow(ForwardRows<D> &w, const float (&s)[N][4],
                                                    float factor, float shrink[2]) {
    float top[2];
    bool grows = false;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float x = -INFINITY;
#pragma unroll
        for (int n = 0; n < N; n++) x = fmaxf(x, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
        x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, 1));
        x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, 2));
        top[half] = factor * x;
        grows |= top[half] > w.top[half] + SLACK;
        shrink[half] = 1;
    }
    if (!__any_sync(FULL_WARP, grows)) return false;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const float now = fmaxf(top[half], w.top[half]);
        if (now > -INFINITY) shrink[half] = exp2_fast(w.top[half] - now);
        w.top[half] = now;
        w.sum[half] *= shrink[half];
    }
    return true;
}

/* s becomes 2^(factor s - top), which sum counts. */
template <int D, int N>
static __device__ __forceinline__ void forward_exp(ForwardRows<D> &w, float (&s)[N][4],
                                                   float factor) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        /* nothing visible yet: all are 0 */
        const float top = w.top[half] > -INFINITY ? w.top[half] : 0.0f;
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int e = 2 * half; e < 2 * half + 2; e++) {
                s[n][e] = exp2_fast(fmaf(s[n][e], factor, -top));
                w.sum[half] += s[n][e];
            }
    }
}

/* The tile's scores and probabilities, of its first 8 N keys, and before (K > 0) out += p v of the
 * tile before, of its first 16 K keys, which goes on while they are made. Both are the template's:
 * with branches around its products ptxas lets none overlap. */
template <int N, int K, int D>
static __device__ __forceinline__ void forward_tile(const Forward &p, ForwardView<D> &x,
                                                    ForwardRows<D> &w, bool full) {
    typedef ForwardShape<D> S;
    const RingPlace before = ring_before<S::STAGES>(x.at);
    const float factor = FLEX_HAS_SCORE ? 1.0f : p.factor;
    const bf16 *q = x.shared.q[x.slot.stage] + x.group * GROUP * PANEL;
    float s[N][4], shrink[2];
    turn_wait<D>(x.group);
    product_along<D>(s, q, S::ROWS, x.shared.k[x.at.stage], KEYS);
    wgmma_commit();
    if (K > 0) {
        barrier_wait(&x.shared.v_full[before.stage], before.parity);
        product_down<K>(w.out, w.p, x.shared.v[before.stage], KEYS);
        wgmma_commit();
    }
    turn_pass<D>(x.group);
    wgmma_wait<(K > 0 ? 1 : 0)>(s);
    const int key = x.shared.tile[x.at.stage].key;
    warp_arrive(&x.shared.k_empty[x.at.stage]);
    if (FLEX_HAS_SCORE) forward_modify(p, x, s, key);
    if (!full) forward_hide(p, x, s, key);
    bool grows = forward_grow(w, s, factor, shrink);
    forward_exp(w, s, factor);
    /* The vote needs the sums, and the branch the vote: so the exponentials come before the wait.
     * Nothing else orders the two, and ptxas would move them behind it. */
    grows = __any_sync(FULL_WARP, grows || isnan(w.sum[0] + w.sum[1]));
    if (grows) {
        if (K > 0) wgmma_wait<0>(w.out);
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) w.out[n][e] *= shrink[e / 2];
    }
    if (K > 0) {
        wgmma_wait<0>(w.out);
        warp_arrive(&x.shared.v_empty[before.stage]);
    }
#pragma unroll
    for (int n = 0; n < N; n += 2) pack_a(w.p[n / 2], &s[n]);
    ring_next<S::STAGES>(x.at);
}

/* out += p v of the tile before, of its first 16 K keys. */
template <int K, int D>
static __device__ __forceinline__ void forward_values(ForwardView<D> &x, ForwardRows<D> &w) {
    const RingPlace before = ring_before<ForwardShape<D>::STAGES>(x.at);
    barrier_wait(&x.shared.v_full[before.stage], before.parity);
    product_down<K>(w.out, w.p, x.shared.v[before.stage], KEYS);
    wgmma_commit();
    wgmma_wait<0>(w.out);
    warp_arrive(&x.shared.v_empty[before.stage]);
}

/* A tile that none of the warpgroup's queries sees. */
template <int D>
static __device__ __forceinline__ void forward_skip(ForwardView<D> &x) {
    turn_wait<D>(x.group);
    turn_pass<D>(x.group);
    warp_arrive(&x.shared.k_empty[x.at.stage]);
    barrier_wait(&x.shared.v_full[x.at.stage], x.at.parity);
    warp_arrive(&x.shared.v_empty[x.at.stage]);
    ring_next<ForwardShape<D>::STAGES>(x.at);
}

/* Waits for the keys of the tile after one of which `look` was told. */
template <int D>
static __device__ __forceinline__ int forward_next(const ForwardView<D> &x, int look) {
    if (look & LAST) return NONE;
    barrier_wait(&x.shared.k_full[x.at.stage], x.at.parity);
    return x.shared.tile[x.at.stage].look[x.group];
}

/* All tiles of an item: rows of tiles that the warpgroup sees, the last of which may be half a one.
 */
template <int D>
static __device__ __forceinline__ void forward_tiles(const Forward &p, ForwardView<D> &x,
                                                     ForwardRows<D> &w) {
    int look = forward_next(x, x.shared.item[x.slot.stage].sees ? 0 : LAST);
    while (look != NONE) {
        if (!(look & SEES)) {
            forward_skip(x);
            look = forward_next(x, look);
        } else if (!(look & SECOND)) {
            forward_tile<HALF / 8, 0>(p, x, w, look & FULL);
            forward_values<HALF / 16>(x, w);
            look = forward_next(x, look);
        } else {
            forward_tile<KEYS / 8, 0>(p, x, w, look & FULL);
            for (look = forward_next(x, look); look & SECOND; look = forward_next(x, look))
                forward_tile<KEYS / 8, KEYS / 16>(p, x, w, look & FULL);
            if (look & SEES) {
                forward_tile<HALF / 8, KEYS / 16>(p, x, w, look & FULL);
                forward_values<HALF / 16>(x, w);
                look = forward_next(x, look);
            } else {
                forward_values<KEYS / 16>(x, w);
            }
        }
    }
}

/* out and lse of the warp's rows; its queries in shared memory make room for out. */
template <int D>
static __device__ __forceinline__ void forward_finish(const Forward &p, const ForwardView<D> &x,
                                                      ForwardRows<D> &w) {
    const Item &item = x.shared.item[x.slot.stage];
    const int row = lane_row(x.group), strip = row / STRIP * STRIP;
    bf16 *q = x.shared.q[x.slot.stage];
    float share[2];
    named_barrier_wait(QUERIES + x.group, WARPGROUP);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int at = item.row + row + 8 * half;
        float sum = w.sum[half];
        sum += __shfl_xor_sync(FULL_WARP, sum, 1);
        sum += __shfl_xor_sync(FULL_WARP, sum, 2);
        share[half] = sum == 0 ? 0.0f : 1 / sum;
        if (threadIdx.x % 4 == 0 && at < p.mask.Tq)
            p.lse[((int64_t)item.b * p.H + item.h) * p.mask.Tq + at] =
                LN2 * (w.top[half] + log2f(sum));
    }
#pragma unroll
    for (int col = 0; col < D; col += PANEL)
        tile_put<PANEL, PANEL / 8>(q + ForwardShape<D>::ROWS * col, strip, 0, &w.out[col / 8],
                                   share[0], share[1]);
    fence_shared_to_async();
    __syncwarp();
    if (threadIdx.x % WARP == 0 && item.row + strip < p.mask.Tq) {
#pragma unroll
        for (int col = 0; col < D; col += PANEL)
            store_box(&p.out, q + ForwardShape<D>::ROWS * col + strip * PANEL, col,
                      item.row + strip, item.h, item.b);
        copies_commit();
        copies_read<0>();
    }
}

template <int D>
static __device__ __forceinline__ void forward_compute(const Forward &p, ForwardShared<D> &shared,
                                                       int group) {
    typedef ForwardShape<D> S;
    ForwardView<D> x = {shared, group, {0, 0}, {0, 0}};
    if (group == S::GROUPS - 1) turn_pass<D>(group);
    for (;;) {
        barrier_wait(&shared.q_full[x.slot.stage], x.slot.parity);
        if (shared.item[x.slot.stage].row < 0) break;
        ForwardRows<D> w;
        w.top[0] = w.top[1] = -INFINITY;
        w.sum[0] = w.sum[1] = 0;
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) w.out[n][e] = 0;
        forward_tiles(p, x, w);
        forward_finish(p, x, w);
        warp_arrive(&shared.q_empty[x.slot.stage]);
        ring_next<SLOTS>(x.slot);
    }
    if (group == 0) turn_wait<D>(group); /* for the last turn that was passed */
}

template <int D>
static __device__ __forceinline__ void forward_block(const Forward &p) {
    typedef ForwardShape<D> S;
    const int warps = S::GROUPS * WARPGROUP / WARP; /* that read a stage, and say so */
    ForwardShared<D> &shared = *(ForwardShared<D> *)shared_block();
    if (threadIdx.x == 0) {
        for (int i = 0; i < S::STAGES; i++) {
            barrier_init(&shared.k_full[i], 1);
            barrier_init(&shared.v_full[i], 1);
            barrier_init(&shared.k_empty[i], warps);
            barrier_init(&shared.v_empty[i], warps);
        }
        for (int i = 0; i < SLOTS; i++) {
            barrier_init(&shared.q_full[i], 1);
            barrier_init(&shared.q_empty[i], warps);
        }
        barrier_fence_init();
    }
    __syncthreads();
    if (threadIdx.x < WARPGROUP) {
        registers_shrink<S::LOADS>();
        if (threadIdx.x < WARP) forward_load(p, shared);
    } else {
        registers_grow<S::COMPUTES>();
        forward_compute(p, shared, warpgroup_number() - 1);
    }
}

#if FLEX_RUNTIME
extern "C" __global__ void __launch_bounds__(ForwardShape<FLEX_D>::THREADS, 1)
    flex_forward(const __grid_constant__ Forward p) {
    forward_block<FLEX_D>(p);
}
#else
template <int D>
static __global__ void __launch_bounds__(ForwardShape<D>::THREADS, 1)
    forward_sm90_kernel(const __grid_constant__ Forward p) {
    forward_block<D>(p);
}
#endif

#endif
