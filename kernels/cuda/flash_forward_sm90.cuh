/* Fused attention in bf16 for Hopper, forward: FlashAttention-3 (Shah et al. 2024).
 *
 * B batch, H heads, T tokens, D head size, 64 or 128. */
#ifndef KERNELS_CUDA_FLASH_FORWARD_SM90_CUH
#define KERNELS_CUDA_FLASH_FORWARD_SM90_CUH

#include "kernels/cuda/flash_sm90.cuh"

enum {
    KEYS = 128,  /* of a tile */
    SLOTS = 2,   /* items of work whose queries are in shared memory */
    GROUP = 64,  /* queries of a warpgroup */
    STRIP = 16,  /* queries of a warp: rows of out's box */
    TURNS = 1,   /* the named barriers of turns, one a warpgroup */
    QUERIES = 4, /* those at which a warpgroup has done with its queries */
};
#define SLACK 8.0f

/* Warpgroups that compute, beside the one that loads; registers of a thread of either, of 65536. */
template <int D>
struct ForwardShape {
    static constexpr int GROUPS = D == 64 ? 3 : 2, ROWS = GROUPS * GROUP,
                         THREADS = (1 + GROUPS) * WARPGROUP, STAGES = D == 64 ? 4 : 2,
                         LOADS = 32, COMPUTES = D == 64 ? 160 : 240;
};

typedef struct Forward {
    TensorMap q, k, v, out;
    float *lse;
    const int32_t *lo, *hi;
    int heads, H, Tq, Tk, offset, n_tiles, group;
    float scale; /* to scores in units of log 2 */
} Forward;

/* ROWS queries of one head, and the tiles of keys that some of them see. */
typedef struct Item {
    int b, h, row, key, tiles;
} Item;

template <int D>
struct ForwardShared {
    typedef ForwardShape<D> S;
    bf16 k[S::STAGES][KEYS * D], v[S::STAGES][KEYS * D], q[SLOTS][S::ROWS * D];
    Interval rows[SLOTS][S::ROWS];
    Limits limits[SLOTS][S::GROUPS]; /* of each warpgroup's rows */
    Item item[SLOTS];
    Barrier k_full[S::STAGES], k_empty[S::STAGES], v_full[S::STAGES], v_empty[S::STAGES];
    Barrier q_full[SLOTS], q_empty[SLOTS];
};

/* ---- the warp that loads ---- */

/* Item i: within a group of heads the last queries first, which see the most keys under a causal
 * mask. */
static __device__ __forceinline__ Item forward_place(const Forward &p, int rows, int i) {
    const int group = i / (p.group * p.n_tiles) * p.group, heads = min(p.group, p.heads - group);
    const int at = i % (p.group * p.n_tiles), head = group + at % heads;
    return {head / p.H, head % p.H, (p.n_tiles - 1 - at / heads) * rows, 0, 0};
}

/* What the slot's readers are told beside its queries. */
template <int D>
static __device__ __forceinline__ Item forward_item(const Forward &p, ForwardShared<D> &shared,
                                                    int slot, int i) {
    typedef ForwardShape<D> S;
    Item item = forward_place(p, S::ROWS, i);
    Interval *rows = shared.rows[slot];
    for (int r = threadIdx.x; r < S::ROWS; r += WARP)
        rows[r] = interval_of(p.lo, p.hi, item.row + r, p.Tq, p.Tk, p.offset);
    __syncwarp();
    int first = INT_MAX, end = 0;
    for (int g = 0; g < S::GROUPS; g++) {
        const Limits l = warp_limits(rows + g * GROUP, GROUP);
        if (threadIdx.x == 0) shared.limits[slot][g] = l;
        first = min(first, l.first);
        end = max(end, l.end);
    }
    if (first < end) {
        item.key = first / GROUP * GROUP;
        item.tiles = (end - item.key + KEYS - 1) / KEYS;
    }
    if (threadIdx.x == 0) shared.item[slot] = item;
    __syncwarp();
    return item;
}

template <int D>
static __device__ __forceinline__ void forward_load(const Forward &p, ForwardShared<D> &shared) {
    typedef ForwardShape<D> S;
    enum { TILE_BYTES = KEYS * D * sizeof(bf16), Q_BYTES = S::ROWS * D * sizeof(bf16) };
    const bool one = threadIdx.x == 0;
    RingPlace slot = {0, 0}, at = {0, 0};
    for (int i = blockIdx.x; i < p.heads * p.n_tiles; i += gridDim.x) {
        barrier_wait(&shared.q_empty[slot.stage], slot.parity ^ 1);
        const Item item = forward_item(p, shared, slot.stage, i);
        if (one) {
            Barrier *b = &shared.q_full[slot.stage];
            barrier_expect(b, Q_BYTES);
            panels_load<D>(shared.q[slot.stage], &p.q, b, S::ROWS, item.row, item.h, item.b);
        }
        for (int t = 0; t < item.tiles; t++) {
            const int key = item.key + t * KEYS;
            barrier_wait(&shared.k_empty[at.stage], at.parity ^ 1);
            if (one) {
                Barrier *b = &shared.k_full[at.stage];
                barrier_expect(b, TILE_BYTES);
                panels_load<D>(shared.k[at.stage], &p.k, b, KEYS, key, item.h, item.b);
            }
            barrier_wait(&shared.v_empty[at.stage], at.parity ^ 1);
            if (one) {
                Barrier *b = &shared.v_full[at.stage];
                barrier_expect(b, TILE_BYTES);
                panels_load<D>(shared.v[at.stage], &p.v, b, KEYS, key, item.h, item.b);
            }
            ring_next<S::STAGES>(at);
        }
        ring_next<SLOTS>(slot);
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

/* Which of the block's warpgroups it is, where in the rings, and what it looks at. */
template <int D>
struct ForwardView {
    ForwardShared<D> &shared;
    const bf16 *q;
    const Interval *rows; /* of this warp */
    float scale;
    int group;
    RingPlace at;
};

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

/* This warp reads the stage no more. */
static __device__ __forceinline__ void stage_leave(Barrier *empty) {
    if (threadIdx.x % WARP == 0) barrier_arrive(empty);
    __syncwarp();
}

/* s = -inf where the row's query does not see the key; key: of s's first column. */
template <int N>
static __device__ __forceinline__ void forward_hide(float (&s)[N][4], const Interval *rows,
                                                    int key) {
    const int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const Interval sees = rows[8 * half + g];
        const int lo = sees.lo - key - 2 * t, hi = sees.hi - key - 2 * t;
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int e = 0; e < 2; e++)
                if (8 * n + e < lo || 8 * n + e >= hi) s[n][2 * half + e] = -INFINITY;
    }
}

/* Makes room for the largest scores: top grows, sum shrinks with it, and out is to. Whether. */
template <int D, int N>
static __device__ __forceinline__ bool forward_grow(ForwardRows<D> &w, const float (&s)[N][4],
                                                    float scale, float shrink[2]) {
    float top[2];
    bool grows = false;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float x = -INFINITY;
#pragma unroll
        for (int n = 0; n < N; n++) x = fmaxf(x, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
        x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, 1));
        x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, 2));
        top[half] = scale * x;
        grows |= top[half] > w.top[half] + SLACK;
    }
    if (!__any_sync(FULL_WARP, grows)) return false;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const float now = fmaxf(top[half], w.top[half]);
        shrink[half] = now > -INFINITY ? exp2_fast(w.top[half] - now) : 1.0f;
        w.top[half] = now;
        w.sum[half] *= shrink[half];
    }
    return true;
}

/* s becomes 2^(scale s - top), which sum counts. */
template <int D, int N>
static __device__ __forceinline__ void forward_exp(ForwardRows<D> &w, float (&s)[N][4],
                                                   float scale) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        /* nothing visible yet: all are 0 */
        const float top = w.top[half] > -INFINITY ? w.top[half] : 0.0f;
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int e = 2 * half; e < 2 * half + 2; e++) {
                s[n][e] = exp2_fast(fmaf(s[n][e], scale, -top));
                w.sum[half] += s[n][e];
            }
    }
}

/* The next tile's scores and probabilities, of its first 8 N keys, and before (K > 0) out += p v of
 * the tile before, of its first 16 K keys, which goes on while they are made. */
template <int N, int K, int D>
static __device__ __forceinline__ void forward_tile(ForwardView<D> &x, ForwardRows<D> &w, int key,
                                                    bool full) {
    typedef ForwardShape<D> S;
    const RingPlace before = ring_before<S::STAGES>(x.at);
    float s[N][4], shrink[2];
    barrier_wait(&x.shared.k_full[x.at.stage], x.at.parity);
    turn_wait<D>(x.group);
    product_along<D>(s, x.q, S::ROWS, x.shared.k[x.at.stage], KEYS);
    wgmma_commit();
    if (K > 0) {
        barrier_wait(&x.shared.v_full[before.stage], before.parity);
        product_down<K>(w.out, w.p, x.shared.v[before.stage], KEYS);
        wgmma_commit();
    }
    turn_pass<D>(x.group);
    wgmma_wait<(K > 0 ? 1 : 0)>(s);
    stage_leave(&x.shared.k_empty[x.at.stage]);
    if (!full) forward_hide(s, x.rows, key);
    const bool grows = forward_grow(w, s, x.scale, shrink);
    forward_exp(w, s, x.scale);
    registers_pin(s);
    if (grows) {
        if (K > 0) wgmma_wait<0>(w.out);
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) w.out[n][e] *= shrink[e / 2];
    }
    if (K > 0) {
        wgmma_wait<0>(w.out);
        stage_leave(&x.shared.v_empty[before.stage]);
    }
#pragma unroll
    for (int n = 0; n < N; n += 2) pack_a(w.p[n / 2], &s[n]);
    ring_next<S::STAGES>(x.at);
}

/* out += p v of the tile before, of its first 16 K keys. */
template <int K, int D>
static __device__ __forceinline__ void forward_last(ForwardView<D> &x, ForwardRows<D> &w) {
    const RingPlace before = ring_before<ForwardShape<D>::STAGES>(x.at);
    barrier_wait(&x.shared.v_full[before.stage], before.parity);
    product_down<K>(w.out, w.p, x.shared.v[before.stage], KEYS);
    wgmma_commit();
    wgmma_wait<0>(w.out);
    stage_leave(&x.shared.v_empty[before.stage]);
}

/* A tile that the warpgroup's queries do not see. */
template <int D>
static __device__ __forceinline__ void forward_skip(ForwardView<D> &x) {
    turn_wait<D>(x.group);
    turn_pass<D>(x.group);
    barrier_wait(&x.shared.k_full[x.at.stage], x.at.parity);
    stage_leave(&x.shared.k_empty[x.at.stage]);
    barrier_wait(&x.shared.v_full[x.at.stage], x.at.parity);
    stage_leave(&x.shared.v_empty[x.at.stage]);
    ring_next<ForwardShape<D>::STAGES>(x.at);
}

/* All tiles of an item. Those whose second half the warpgroup does not see are the last of a row of
 * tiles that it sees, and cost half. */
template <int D>
static __device__ __forceinline__ void forward_tiles(ForwardView<D> &x, ForwardRows<D> &w,
                                                     const Limits &l, int key, int tiles) {
    enum { HALF = KEYS / 2 };
    const int end = key + tiles * KEYS;
    while (key < end) {
        if (!limits_see(l, key, key + KEYS)) {
            forward_skip(x);
        } else if (!limits_see(l, key + HALF, key + KEYS)) {
            forward_tile<HALF / 8, 0>(x, w, key, limits_full(l, key, key + HALF));
            forward_last<HALF / 16>(x, w);
        } else {
            forward_tile<KEYS / 8, 0>(x, w, key, limits_full(l, key, key + KEYS));
            for (key += KEYS; key < end && limits_see(l, key + HALF, key + KEYS); key += KEYS)
                forward_tile<KEYS / 8, KEYS / 16>(x, w, key, limits_full(l, key, key + KEYS));
            if (key < end && limits_see(l, key, key + KEYS)) {
                forward_tile<HALF / 8, KEYS / 16>(x, w, key, limits_full(l, key, key + HALF));
                forward_last<HALF / 16>(x, w);
            } else {
                forward_last<KEYS / 16>(x, w);
                continue;
            }
        }
        key += KEYS;
    }
}

/* out and lse of the warp's rows; the warpgroup's queries in shared memory make room for out. */
template <int D>
static __device__ __forceinline__ void forward_finish(const Forward &p, ForwardRows<D> &w,
                                                      const Item &item, bf16 *q, int group) {
    const int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    const int strip = group * GROUP + threadIdx.x % WARPGROUP / WARP * STRIP;
    float share[2];
    named_barrier_wait(QUERIES + group, WARPGROUP);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = item.row + strip + 8 * half + g;
        float sum = w.sum[half];
        sum += __shfl_xor_sync(FULL_WARP, sum, 1);
        sum += __shfl_xor_sync(FULL_WARP, sum, 2);
        share[half] = sum == 0 ? 0.0f : 1 / sum;
        if (t == 0 && row < p.Tq)
            p.lse[(int64_t)(item.b * p.H + item.h) * p.Tq + row] =
                LN2 * (w.top[half] + log2f(sum));
    }
#pragma unroll
    for (int col = 0; col < D; col += PANEL)
        tile_put<PANEL, PANEL / 8>(q + ForwardShape<D>::ROWS * col, strip, 0, &w.out[col / 8],
                                   share[0], share[1]);
    fence_shared_to_async();
    __syncwarp();
    if (threadIdx.x % WARP == 0) {
#pragma unroll
        for (int col = 0; col < D; col += PANEL)
            store_box(&p.out, q + ForwardShape<D>::ROWS * col + strip * PANEL, col,
                      item.row + strip, item.h, item.b);
        copies_commit();
        copies_read<0>();
    }
    __syncwarp();
}

template <int D>
static __device__ __forceinline__ void forward_compute(const Forward &p, ForwardShared<D> &shared,
                                                       int group) {
    typedef ForwardShape<D> S;
    const int strip = group * GROUP + threadIdx.x % WARPGROUP / WARP * STRIP;
    ForwardView<D> x = {shared, NULL, NULL, p.scale, group, {0, 0}};
    RingPlace slot = {0, 0};
    if (group == S::GROUPS - 1) turn_pass<D>(group);
    for (int i = blockIdx.x; i < p.heads * p.n_tiles; i += gridDim.x) {
        barrier_wait(&shared.q_full[slot.stage], slot.parity);
        const Item &item = shared.item[slot.stage];
        ForwardRows<D> w;
        w.top[0] = w.top[1] = -INFINITY;
        w.sum[0] = w.sum[1] = 0;
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) w.out[n][e] = 0;
        x.q = shared.q[slot.stage] + group * GROUP * PANEL;
        x.rows = shared.rows[slot.stage] + strip;
        forward_tiles(x, w, shared.limits[slot.stage][group], item.key, item.tiles);
        forward_finish(p, w, item, shared.q[slot.stage], group);
        stage_leave(&shared.q_empty[slot.stage]);
        ring_next<SLOTS>(slot);
    }
    if (group == 0) turn_wait<D>(group); /* the last that passed its turn waits for nobody */
}

template <int D>
static __global__ void __launch_bounds__(ForwardShape<D>::THREADS, 1)
    forward_sm90_kernel(const __grid_constant__ Forward p) {
    typedef ForwardShape<D> S;
    ForwardShared<D> &shared = *(ForwardShared<D> *)shared_block();
    if (threadIdx.x == 0) {
        const int warps = S::GROUPS * WARPGROUP / WARP;
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
        forward_compute(p, shared, (int)threadIdx.x / WARPGROUP - 1);
    }
}

#endif
