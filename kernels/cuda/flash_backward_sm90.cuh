/* HEAD */
#ifndef KERNELS_CUDA_FLASH_BACKWARD_SM90_CUH
#define KERNELS_CUDA_FLASH_BACKWARD_SM90_CUH

#include "kernels/cuda/flash_backward_bf16.cuh"
#include "kernels/cuda/flash_sm90.cuh"

enum {
    QUERIES = 64,                      /* of a tile */
    HALF = KEYS / 2,                   /* keys of a warpgroup */
    CONSUMERS = 2,                     /* warpgroups that compute; one more feeds them */
    CONSUMER_WARPS = 2 * WARPGROUP / WARP,
    SM90_THREADS = 3 * WARPGROUP,
    SUMS = QUERIES * PANEL             /* numbers of dq that a warpgroup makes at once */
};

typedef struct BackwardSm90 {
    Backward b;
    TensorMap q, k, v, dout, dk, dv; /* boxes: of QUERIES, KEYS, and of dk and dv HALF rows */
} BackwardSm90;

/* What the producer says of a stage. */
typedef struct TileNote {
    int slot;     /* of the chunk's sums; -1: the tile of keys ends, and nothing came */
    bool fresh;   /* there are no sums yet */
    Limits limits;
} TileNote;

template <int D>
struct BackwardSm90Shared {
    static constexpr int STAGES = D == 64 ? 4 : 2, KEY_STAGES = D == 64 ? 2 : 1;
    bf16 k[KEY_STAGES][KEYS * D], v[KEY_STAGES][KEYS * D];
    bf16 q[STAGES][QUERIES * D], dout[STAGES][QUERIES * D];
    bf16 ds[2][KEYS * QUERIES];   /* ds', of even and of odd slots */
    float sums[CONSUMERS][SUMS];  /* of dq, on their way out; dk and dv later */
    RowSums rows[STAGES][QUERIES];
    Interval intervals[STAGES][QUERIES];
    TileNote notes[STAGES];
    Barrier full[STAGES], empty[STAGES], keys_full[KEY_STAGES], keys_empty[KEY_STAGES];
    Barrier ds_full[2], ds_empty[2];
};

/* ---- the producer: one warp ---- */

/* The first place from `at` on whose tile of queries sees a key in first .. end - 1; n: none. The
 * tiles l[0 .. n - 1] are visited upwards, or downwards. */
static __device__ __forceinline__ int visit_next(const Limits *l, int n, bool down, int at,
                                                 int first, int end) {
    for (; at < n; at += WARP) {
        const int i = at + threadIdx.x % WARP;
        const bool sees = i < n && limits_see(l[down ? n - 1 - i : i], first, end);
        const unsigned lanes = __ballot_sync(FULL_WARP, sees);
        if (lanes) return at + __ffs((int)lanes) - 1;
    }
    return n;
}

/* One thread: the tile's rows begin to come. */
template <int D>
static __device__ __forceinline__ void queries_begin(const BackwardSm90 &p,
                                                     BackwardSm90Shared<D> &shared, int stage,
                                                     int head, int tile, const TileNote &note) {
    const int b = head / p.b.H, h = head % p.b.H, row = tile * QUERIES;
    Barrier *full = &shared.full[stage];
    shared.notes[stage] = note;
    barrier_expect(full, (int)(sizeof shared.q[0] + sizeof shared.dout[0] + sizeof shared.rows[0] +
                               sizeof shared.intervals[0]));
    panels_load<D>(shared.q[stage], &p.q, full, QUERIES, row, h, b);
    panels_load<D>(shared.dout[stage], &p.dout, full, QUERIES, row, h, b);
    copy_bytes(shared.rows[stage], p.b.rows + (int64_t)head * p.b.cut.q_pad + row,
               sizeof shared.rows[0], full);
    copy_bytes(shared.intervals[stage], p.b.intervals + row, sizeof shared.intervals[0], full);
}

template <int D>
static __device__ __forceinline__ void produce(const BackwardSm90 &p,
                                               BackwardSm90Shared<D> &shared, int head, int chunk) {
    typedef BackwardSm90Shared<D> S;
    const Cut &cut = p.b.cut;
    const int first = chunk * cut.chunk, last = min(cut.n_k, first + cut.chunk);
    const bool leads = threadIdx.x % WARP == 0;
    const int start = visit_next(p.b.limits, cut.n_q, false, 0, first * KEYS, last * KEYS);
    const int n = cut.n_q - start -
                  visit_next(p.b.limits + start, cut.n_q - start, true, 0, first * KEYS, last * KEYS);
    const Limits *limits = p.b.limits + start;
    if (head == 0 && leads) p.b.starts[chunk] = start;
    RingPlace at = {0, 0}, k = {0, 0};
    for (int keys = first; keys < last; keys++) {
        const int col = keys * KEYS;
        const bool down = (keys - first) % 2 == 1;
        barrier_wait(&shared.keys_empty[k.stage], k.parity ^ 1);
        if (leads) {
            Barrier *full = &shared.keys_full[k.stage];
            barrier_expect(full, (int)(sizeof shared.k[0] + sizeof shared.v[0]));
            panels_load<D>(shared.k[k.stage], &p.k, full, KEYS, col, head % p.b.H, head / p.b.H);
            panels_load<D>(shared.v[k.stage], &p.v, full, KEYS, col, head % p.b.H, head / p.b.H);
        }
        ring_next<S::KEY_STAGES>(k);
        for (int i = -1; i < n;) {
            i = visit_next(limits, n, down, i + 1, col, col + KEYS);
            barrier_wait(&shared.empty[at.stage], at.parity ^ 1);
            if (leads && i < n) {
                const int slot = down ? n - 1 - i : i;
                const Limits l = limits[slot];
                queries_begin(p, shared, at.stage, head, start + slot,
                              {slot, keys == max(first, l.first / KEYS), l});
            } else if (leads) {
                shared.notes[at.stage].slot = -1;
                barrier_arrive(&shared.full[at.stage]);
            }
            ring_next<S::STAGES>(at);
        }
    }
}

/* ---- the consumers: a warpgroup of 64 keys each ---- */

/* A warpgroup's keys and values as A operands, where there are registers for them (HELD), and their
 * gradients. Lane 4 g + t of warp w has keys 16 w + g and 16 w + g + 8. */
template <int D>
struct GroupKeys {
    static constexpr bool HELD = D == 64;
    uint32_t k[D / 16][4], v[D / 16][4];
    float dk[D / 8][4], dv[D / 8][4];
};

/* Where a warpgroup is: in the rings, and in the uses of the two buffers of ds (a bit each). */
typedef struct GroupPlace {
    int group, stage, key_stage, uses;
} GroupPlace;

/* All lanes' accesses come before. */
static __device__ __forceinline__ void warp_arrive(Barrier *b) {
    __syncwarp();
    if (threadIdx.x % WARP == 0) barrier_arrive(b);
}

static __device__ __forceinline__ void group_sync(int group) {
    named_barrier_wait(1 + group, WARPGROUP);
}

/* d (64 keys, 64 queries) = a b', with a held, or in shared memory from row `key` on. */
template <int D>
static __device__ __forceinline__ void group_product(float (&d)[8][4], uint32_t (&held)[D / 16][4],
                                                     const bf16 *a, int key, const bf16 *b) {
    if constexpr (GroupKeys<D>::HELD) {
        const Matrix from = matrix_along(b);
        registers_pin<D / 16>(held);
        wgmma_fence(d);
#pragma unroll
        for (int k = 0; k < D / 16; k++)
            wgmma<false>(d, held[k], matrix_further(from, 16 * k * (int)sizeof(bf16)), k > 0);
    } else {
        product_along<D>(d, a + key * PANEL, KEYS, b, QUERIES);
    }
    wgmma_commit();
}

/* s becomes p, with 0 where the query does not see the key. key: the lane's first. */
static __device__ __forceinline__ void group_softmax(float (&s)[8][4], const RowSums *rows,
                                                     const Interval *intervals, bool full, int key,
                                                     float scale, float (&delta)[8][2]) {
    if (!full) hide<QUERIES>(s, intervals, key);
#pragma unroll
    for (int n = 0; n < 8; n++) {
        const Pack<float> r = load_pack(&rows[8 * n + threadIdx.x % 4 * 2].lse);
        delta[n][0] = r.at[1];
        delta[n][1] = r.at[3];
#pragma unroll
        for (int e = 0; e < 4; e++) s[n][e] = exp2_fast(fmaf(s[n][e], scale, -r.at[e % 2 * 2]));
    }
}

/* The group's keys against a tile of queries: adds to dk and dv, leaves ds' in shared memory. */
template <int D>
static __device__ __forceinline__ void group_tile(BackwardSm90Shared<D> &shared, GroupKeys<D> &w,
                                                  const GroupPlace &at, const TileNote &note,
                                                  int key, float scale) {
    const int stage = at.stage, ds = note.slot % 2, row = HALF * at.group;
    const int warp_row = threadIdx.x % WARPGROUP / WARP * 16, lane_row = threadIdx.x % WARP / 4;
    float s[8][4], dp[8][4], delta[8][2];
    uint32_t a[4][4], b[4][4];
    group_product<D>(s, w.k, shared.k[at.key_stage], row, shared.q[stage]);
    group_product<D>(dp, w.v, shared.v[at.key_stage], row, shared.dout[stage]);
    wgmma_wait<1>(s);
    group_softmax(s, shared.rows[stage], shared.intervals[stage],
                  limits_full(note.limits, key, key + HALF), key + warp_row + lane_row, scale,
                  delta);
    wgmma_wait<0>(dp);
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) dp[n][e] = s[n][e] * (dp[n][e] - delta[n][e % 2]);
#pragma unroll
    for (int n = 0; n < 4; n++) {
        pack_a(a[n], &s[2 * n]);
        pack_a(b[n], &dp[2 * n]);
    }
    product_down<4>(w.dv, a, shared.dout[stage], QUERIES);
    product_down<4>(w.dk, b, shared.q[stage], QUERIES);
    wgmma_commit();
    barrier_wait(&shared.ds_empty[ds], (at.uses >> ds & 1) ^ 1);
    tile_put<QUERIES, 8>(shared.ds[ds], row + warp_row, 0, dp, 1.0f, 1.0f);
    fence_shared_to_async();
    warp_arrive(&shared.ds_full[ds]);
    wgmma_wait<0>(w.dv);
    wgmma_wait<0>(w.dk);
}

/* Before a warpgroup writes its sums: what lay there has been stored or added, so that two
 * additions to one place are in order too. */
static __device__ __forceinline__ void sums_free(int group) {
    if (threadIdx.x % WARPGROUP == 0) copies_wait<0>();
    group_sync(group);
}

/* dq (64 queries, 64) = ds k over `keys` rows of ds' and of one panel of k */
template <int keys>
static __device__ __forceinline__ void keys_product(float (&dq)[8][4], const bf16 *ds,
                                                    const bf16 *k) {
    const Matrix from_ds = matrix_down(ds, KEYS * PANEL_ROW), from_k = matrix_down(k, KEYS * PANEL_ROW);
    wgmma_fence(dq);
#pragma unroll
    for (int row = 0; row < keys; row += 16)
        wgmma<true, true>(dq, matrix_further(from_ds, row * PANEL_ROW),
                          matrix_further(from_k, row * PANEL_ROW), row > 0);
    wgmma_commit();
    wgmma_wait<0>(dq);
}

/* The group's 64 x 64 numbers of dq: ds k of both groups' keys, as far as they are seen, to the
 * tile's sums `to` in device memory (NULL: not wanted). */
template <int D>
static __device__ __forceinline__ void group_queries(BackwardSm90Shared<D> &shared,
                                                     const GroupPlace &at, const TileNote &note,
                                                     int col, float *to) {
    const int buffer = note.slot % 2, thread = threadIdx.x % WARPGROUP;
    const bool upper = limits_see(note.limits, col, col + HALF);
    const bool lower = limits_see(note.limits, col + HALF, col + KEYS);
    const bf16 *ds = shared.ds[buffer];
    const int part = D == 64 ? 0 : at.group; /* which 64 columns */
    const bf16 *k = shared.k[at.key_stage] + part * KEYS * PANEL;
    float *sums = shared.sums[at.group];
    float dq[8][4];
    sums_free(at.group);
    barrier_wait(&shared.ds_full[buffer], at.uses >> buffer & 1);
    if (to) {
        if (upper && lower)
            keys_product<KEYS>(dq, ds, k);
        else
            keys_product<HALF>(dq, ds + (upper ? 0 : HALF * PANEL), k + (upper ? 0 : HALF * PANEL));
    }
    warp_arrive(&shared.ds_empty[buffer]);
    if (!to) return;
#pragma unroll
    for (int n = 0; n < 8; n++)
        *(Pack<float> *)(sums + 4 * (n * WARPGROUP + thread)) = {dq[n][0], dq[n][1], dq[n][2],
                                                                 dq[n][3]};
    fence_shared_to_async();
    group_sync(at.group);
    if (thread) return;
    if (note.fresh)
        store_bytes(to + part * SUMS, sums, sizeof shared.sums[0]);
    else
        add_bytes(to + part * SUMS, sums, sizeof shared.sums[0]);
    copies_commit();
}

/* The group's 64 rows of a gradient, by way of its sums' place. */
template <int D>
static __device__ __forceinline__ void group_store(const FlashView &to, const TensorMap *map,
                                                   float *sums, int group, int key, int h, int b,
                                                   const float (&x)[D / 8][4], float scale) {
    bf16 *rows = (bf16 *)sums;
    const int warp_row = threadIdx.x % WARPGROUP / WARP * 16;
    if (!to.data) return;
    sums_free(group);
#pragma unroll
    for (int col = 0; col < D; col += PANEL)
        tile_put<PANEL, 8>(rows + HALF * col, warp_row, 0, &x[col / 8], scale, scale);
    fence_shared_to_async();
    group_sync(group);
    if (threadIdx.x % WARPGROUP) return;
    for (int col = 0; col < D; col += PANEL) store_box(map, rows + HALF * col, col, key, h, b);
    copies_commit();
}

/* The warpgroup's keys come into registers where they are held there; no gradients yet. */
template <int D>
static __device__ __forceinline__ void group_begin(GroupKeys<D> &w, bf16 *k, bf16 *v, int row) {
#pragma unroll
    for (int n = 0; n < D / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) w.dk[n][e] = w.dv[n][e] = 0;
    if constexpr (GroupKeys<D>::HELD) {
#pragma unroll
        for (int d = 0; d < D / 16; d++) {
            load_a<D>(w.k[d], k, row, 16 * d);
            load_a<D>(w.v[d], v, row, 16 * d);
        }
    }
}

template <int D>
static __device__ __forceinline__ void consume(const BackwardSm90 &p,
                                               BackwardSm90Shared<D> &shared, int head, int chunk) {
    typedef BackwardSm90Shared<D> S;
    const Cut &cut = p.b.cut;
    const int first = chunk * cut.chunk, last = min(cut.n_k, first + cut.chunk);
    const int warp = threadIdx.x / WARP, b = head / p.b.H, h = head % p.b.H;
    float *sums = (float *)p.b.sums + ((int64_t)head * cut.chunks + chunk) * cut.width * QUERIES * D;
    GroupPlace at = {};
    at.group = __shfl_sync(FULL_WARP, warp / (WARPGROUP / WARP), 0);
    RingPlace ring = {0, 0}, k = {0, 0};
    for (int keys = first; keys < last; keys++) {
        const int col = keys * KEYS, key = col + HALF * at.group;
        GroupKeys<D> w;
        at.key_stage = k.stage;
        barrier_wait(&shared.keys_full[k.stage], k.parity);
        group_begin<D>(w, shared.k[k.stage], shared.v[k.stage], 16 * warp);
        for (;; ring_next<S::STAGES>(ring)) {
            at.stage = ring.stage;
            barrier_wait(&shared.full[ring.stage], ring.parity);
            const TileNote note = shared.notes[ring.stage];
            const int buffer = note.slot % 2;
            if (note.slot < 0) break;
            if (limits_see(note.limits, key, key + HALF))
                group_tile<D>(shared, w, at, note, key, p.b.scale * LOG2E);
            else
                warp_arrive(&shared.ds_full[buffer]);
            warp_arrive(&shared.empty[ring.stage]);
            if (D == 128 || buffer == at.group)
                group_queries<D>(shared, at, note, col,
                                 p.b.dq.data ? sums + (int64_t)note.slot * (QUERIES * D) : NULL);
            at.uses ^= 1 << buffer;
        }
        warp_arrive(&shared.empty[ring.stage]);
        ring_next<S::STAGES>(ring);
        warp_arrive(&shared.keys_empty[k.stage]);
        ring_next<S::KEY_STAGES>(k);
        group_store<D>(p.b.dv, &p.dv, shared.sums[at.group], at.group, key, h, b, w.dv, 1.0f);
        group_store<D>(p.b.dk, &p.dk, shared.sums[at.group], at.group, key, h, b, w.dk, p.b.scale);
    }
    if (threadIdx.x % WARPGROUP == 0) copies_read<0>();
}

/* By one thread. */
template <int D>
static __device__ __forceinline__ void barriers_init(BackwardSm90Shared<D> &shared) {
    typedef BackwardSm90Shared<D> S;
    for (int i = 0; i < S::STAGES; i++) {
        barrier_init(&shared.full[i], 1);
        barrier_init(&shared.empty[i], CONSUMER_WARPS);
    }
    for (int i = 0; i < S::KEY_STAGES; i++) {
        barrier_init(&shared.keys_full[i], 1);
        barrier_init(&shared.keys_empty[i], CONSUMER_WARPS);
    }
    for (int i = 0; i < 2; i++) {
        barrier_init(&shared.ds_full[i], CONSUMER_WARPS);
        barrier_init(&shared.ds_empty[i], D == 64 ? CONSUMER_WARPS / 2 : CONSUMER_WARPS);
    }
    barrier_fence_init();
}

template <int D>
static __global__ void __launch_bounds__(SM90_THREADS, 1)
    tiles_sm90_kernel(const __grid_constant__ BackwardSm90 p) {
    BackwardSm90Shared<D> &shared = *(BackwardSm90Shared<D> *)shared_block();
    /* the first chunks of all heads first, which the most queries see under a causal mask */
    const int head = blockIdx.x % p.b.cut.heads, chunk = blockIdx.x / p.b.cut.heads;
    if (threadIdx.x == 0) barriers_init(shared);
    __syncthreads();
    if (threadIdx.x >= CONSUMERS * WARPGROUP) {
        registers_shrink<24>();
        if (threadIdx.x / WARP == CONSUMER_WARPS) produce(p, shared, head, chunk);
    } else {
        registers_grow<240>();
        consume(p, shared, head, chunk);
    }
}

#endif
