/* Fused attention in bf16 for Hopper, backward: FlashAttention-3 (Shah et al. 2024), the same bits
 * each time.
 *
 *   p = exp(scale q k' - lse)   dp = dout v'   ds = p (dp - delta), delta = rowsum(dout out)
 *   dv = p' dout     dk = scale ds' q     dq = scale ds k
 *
 * As in the portable kernel a block takes a chunk of tiles of 128 keys of one head, meets the tiles
 * of 64 queries that see each, and has sums of dq of its own, which are added at the end. One warp
 * loads, asks the mask, and tells what it said with each tile; two warpgroups have 64 keys each.
 * They make s' = k q' and dp' = v dout' with keys as rows, so that p' and ds', rounded, are the A
 * operands of dv and dk in registers. ds' lies in shared memory for dq, whose sum runs over both
 * groups' keys: with D 64 the groups take turns (even tiles, odd tiles), with D 128 each has 64
 * columns. dq goes to the sums by the copy engine, stored the first time, then added, always by
 * one thread and when its last addition has ended: in the order of the keys.
 *
 * Tensor cores have work while a group computes p' and ds': dp' is behind s' in their queue, and
 * with D 64 dq of the tile before (later); with D 128 there are no registers for that, and dq
 * follows dv and dk of its own tile. dv begins before ds' is computed. Every other tile of keys
 * meets its queries downwards, so that those it meets first are still in L2, and their sums too.
 *
 * One tile (64 queries x 128 keys), in clocks of a multiprocessor:
 *                   D 64   D 128
 *   tensor cores    1280    2560   64 x N x 16 in N / 2
 *   shared memory   1536    3200   operands 768 and 2048; q and dout in, ds', sums in and out, and
 *                                  256 of lse and delta, at 128 bytes
 *   exponentials     512     512   8192 at 16
 *   instructions    1100    1600   about 550 and 800 a warp, 4 at a time
 * So shared memory limits, at 760 and 730 TFLOP/s at 1.7 GHz. With 40 to 80 clocks of delay a
 * product, two groups that queue for the tensor cores keep them busy for 0.95 (D 64; 0.83 were dq
 * not begun with the next tile) and 0.83 of the time. From L2 come 32 KiB a tile, 64 KiB with D
 * 128: 4.8 TB/s at that rate. Frames of 65 tokens, T 1950: 1.10 times the visible pairs, since a
 * group skips tiles that its keys do not show. What is reached on hardware is open.
 *
 * Tiny documents cost a tile of keys one or two tiles of queries here and in the portable kernel
 * alike, at a higher rate here, so that they stay.
 *
 * B batch, H heads, T tokens, D head size, 64 or 128. */
#ifndef KERNELS_CUDA_FLASH_BACKWARD_SM90_CUH
#define KERNELS_CUDA_FLASH_BACKWARD_SM90_CUH

#include "kernels/cuda/flash_backward.cuh"
#include "kernels/cuda/flash_sm90.cuh"

enum {
    QUERIES = 64,    /* of a tile */
    HALF = KEYS / 2, /* keys of a warpgroup */
    CONSUMERS = 2,   /* warpgroups that compute; one more feeds them */
    CONSUMER_WARPS = 2 * WARPGROUP / WARP,
    SM90_THREADS = 3 * WARPGROUP,
    SUMS = QUERIES * PANEL /* numbers of dq that a warpgroup makes at once */
};

typedef struct BackwardSm90 {
    Backward b;
    TensorMap q, k, v, dout, dk, dv; /* boxes: of QUERIES, KEYS, and of dk and dv HALF rows */
} BackwardSm90;

/* What the mask says of a tile of queries and one of keys. SEES, FULL: of its first half, << 1: of
 * its second; FRESH: there are no sums of dq yet. */
enum { SEES = 1, BOTH = 3, FULL = 4, FRESH = 16 };

/* What consumers are told of a stage: the tile's sums of dq among all, -1: no more queries come for
 * these keys (LAST: and no more keys); the first query and the first key. */
enum { LAST = 32 };
typedef struct TileNote {
    int slot, row, key, look;
} TileNote;

template <int D>
struct BackwardSm90Shared {
    static constexpr int STAGES = D == 64 ? 4 : 2, KEY_STAGES = D == 64 ? 2 : 1;
    bf16 k[KEY_STAGES][KEYS * D], v[KEY_STAGES][KEYS * D];
    bf16 q[STAGES][QUERIES * D], dout[STAGES][QUERIES * D];
    bf16 ds[2][KEYS * QUERIES];  /* ds', of even and of odd slots */
    float sums[CONSUMERS][SUMS]; /* of dq, on their way out; dk and dv later */
    RowSums rows[STAGES][QUERIES];
    Interval intervals[STAGES][QUERIES];
    TileNote notes[STAGES];
    Barrier full[STAGES], empty[STAGES], keys_full[KEY_STAGES], keys_empty[KEY_STAGES];
    Barrier ds_full[2], ds_empty[2];
};

/* ---- the producer: one warp ---- */

/* Of `n` tiles of queries from `start` on, the first from place `at` on that sees a key in first ..
 * end - 1; n: none. They are visited upwards, or downwards. */
static __device__ __forceinline__ int visit_next(const Backward &p, int head, int start, int n,
                                                 bool down, int at, int first, int end) {
    for (; at < n; at += WARP) {
        const int i = at + threadIdx.x % WARP, tile = start + (down ? n - 1 - i : i);
        const bool sees = i < n && mask_meets(p.mask, p.limits[tile], head / p.H, head % p.H,
                                              tile * QUERIES, QUERIES, first, end);
        const unsigned lanes = __ballot_sync(FULL_WARP, sees);
        if (lanes) return at + __ffs((int)lanes) - 1;
    }
    return n;
}

/* What the mask says of a tile of queries and the tile of keys from col on, where the chunk's begin
 * at `first`. */
static __device__ __forceinline__ int tile_look(const Backward &p, int b, int h, int tile,
                                                int first, int col) {
    const int row = tile * QUERIES;
    const Limits l = p.limits[tile];
    int look = 0;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int key = col + half * HALF, end = key + HALF;
        look |= mask_meets(p.mask, l, b, h, row, QUERIES, key, end) ? SEES << half : 0;
        look |= mask_full(p.mask, l, b, h, row, QUERIES, key, end) ? FULL << half : 0;
    }
    const bool met = first < col && mask_meets(p.mask, l, b, h, row, QUERIES, first, col);
    return look | (met ? 0 : FRESH);
}

/* One thread: a tile of queries begins to come. */
template <int D>
static __device__ __forceinline__ void queries_begin(const BackwardSm90 &p,
                                                     BackwardSm90Shared<D> &shared, int stage,
                                                     int b, int h, const TileNote &note) {
    Barrier *full = &shared.full[stage];
    const RowSums *rows = p.b.rows + (int64_t)(b * p.b.H + h) * p.b.cut.q_pad + note.row;
    shared.notes[stage] = note;
    barrier_expect(full, (int)(sizeof shared.q[0] + sizeof shared.dout[0] + sizeof shared.rows[0] +
                               sizeof shared.intervals[0]));
    panels_load<D>(shared.q[stage], &p.q, full, QUERIES, note.row, h, b);
    panels_load<D>(shared.dout[stage], &p.dout, full, QUERIES, note.row, h, b);
    copy_bytes(shared.rows[stage], rows, sizeof shared.rows[0], full);
    copy_bytes(shared.intervals[stage], p.b.intervals + note.row, sizeof shared.intervals[0], full);
}

/* Likewise a tile of keys and values. */
template <int D>
static __device__ __forceinline__ void keys_begin(const BackwardSm90 &p,
                                                  BackwardSm90Shared<D> &shared, int stage, int b,
                                                  int h, int key) {
    Barrier *full = &shared.keys_full[stage];
    barrier_expect(full, (int)(sizeof shared.k[0] + sizeof shared.v[0]));
    panels_load<D>(shared.k[stage], &p.k, full, KEYS, key, h, b);
    panels_load<D>(shared.v[stage], &p.v, full, KEYS, key, h, b);
}

template <int D>
static __device__ __forceinline__ void backward_load(const BackwardSm90 &p,
                                                     BackwardSm90Shared<D> &shared) {
    typedef BackwardSm90Shared<D> S;
    const Cut &cut = p.b.cut;
    const bool leads = threadIdx.x % WARP == 0;
    /* the first chunks of all heads first, which the most queries see under a causal mask */
    const int head = blockIdx.x % cut.heads, chunk = blockIdx.x / cut.heads;
    const int b = head / p.b.H, h = head % p.b.H, place = head * cut.chunks + chunk;
    const int from = chunk * cut.chunk * KEYS, to = min(cut.n_k, (chunk + 1) * cut.chunk) * KEYS;
    const int start = visit_next(p.b, head, 0, cut.n_q, false, 0, from, to), n_q = cut.n_q - start;
    const int n = n_q - visit_next(p.b, head, start, n_q, true, 0, from, to);
    RingPlace at = {0, 0}, k = {0, 0};
    if (leads) p.b.starts[place] = start;
    for (int col = from; col < to; col += KEYS) {
        const bool down = (col - from) / KEYS % 2 == 1;
        barrier_wait(&shared.keys_empty[k.stage], k.parity ^ 1);
        if (leads) keys_begin(p, shared, k.stage, b, h, col);
        ring_next<S::KEY_STAGES>(k);
        for (int i = -1; i < n; ring_next<S::STAGES>(at)) {
            i = visit_next(p.b, head, start, n, down, i + 1, col, col + KEYS);
            barrier_wait(&shared.empty[at.stage], at.parity ^ 1);
            if (leads && i < n) {
                const int nth = down ? n - 1 - i : i, tile = start + nth;
                queries_begin(p, shared, at.stage, b, h,
                              {place * cut.width + nth, tile * QUERIES, col,
                               tile_look(p.b, b, h, tile, from, col)});
            } else if (leads) {
                shared.notes[at.stage] = {-1, 0, col, col + KEYS == to ? LAST : 0};
                barrier_arrive(&shared.full[at.stage]);
            }
            __syncwarp();
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

/* Where a warpgroup is: its number, its stages of the rings, and the uses so far of the two buffers
 * of ds', whose last bits are kept: a tile takes buffer slot % 2. */
typedef struct GroupPlace {
    int group, stage, key_stage, uses;
} GroupPlace;

static __device__ __forceinline__ int uses_parity(const GroupPlace &at, int slot) {
    return at.uses >> slot % 2 & 1;
}

/* The warp has done with its part of the tile's ds'; one more use. */
template <int D>
static __device__ __forceinline__ void ds_leave(BackwardSm90Shared<D> &shared, GroupPlace &at,
                                                int slot) {
    warp_arrive(&shared.ds_full[slot % 2]);
    at.uses ^= 1 << slot % 2;
}

/* ---- dq ---- */

/* Before a warpgroup writes its sums: what lay there has been stored or added, so that two
 * additions to one place are in order too. */
static __device__ __forceinline__ void sums_free(int group) {
    if (threadIdx.x % WARPGROUP == 0) copies_wait<0>();
    group_sync(group);
}

/* Begins the group's 64 columns of dq (64 queries, 64) = ds k, of the tile that was the last to use
 * its buffer, over `keys` of the tile's keys from `first` on. */
template <int D, int keys>
static __device__ __forceinline__ void queries_product(float (&dq)[8][4],
                                                       BackwardSm90Shared<D> &shared,
                                                       const GroupPlace &at, int slot, int first) {
    const bf16 *k = shared.k[at.key_stage] + (D == 64 ? 0 : at.group * KEYS * PANEL);
    const Matrix from_ds = matrix_down(shared.ds[slot % 2] + first * PANEL, KEYS * PANEL_ROW),
                 from_k = matrix_down(k + first * PANEL, KEYS * PANEL_ROW);
    barrier_wait(&shared.ds_full[slot % 2], uses_parity(at, slot) ^ 1);
    wgmma_fence(dq);
#pragma unroll
    for (int row = 0; row < keys; row += 16)
        wgmma<true, true>(dq, matrix_further(from_ds, row * PANEL_ROW),
                          matrix_further(from_k, row * PANEL_ROW), row > 0);
    wgmma_commit();
}

/* dq, after which `pending` products were begun, to its place in shared memory, which is free. */
template <int pending, int D>
static __device__ __forceinline__ void queries_take(float (&dq)[8][4],
                                                    BackwardSm90Shared<D> &shared,
                                                    const GroupPlace &at, int slot) {
    float *sums = shared.sums[at.group] + 4 * (threadIdx.x % WARPGROUP);
    wgmma_wait<pending>(dq);
    warp_arrive(&shared.ds_empty[slot % 2]);
#pragma unroll
    for (int n = 0; n < 8; n++)
        *(Pack<float> *)(sums + 4 * n * WARPGROUP) = {dq[n][0], dq[n][1], dq[n][2], dq[n][3]};
}

/* Adds what all threads of the group have put and fenced to the tile's sums of the chunk. */
template <int D>
static __device__ __forceinline__ void queries_send(const Backward &p, const float *sums,
                                                    const TileNote &note, int group) {
    group_sync(group);
    if (threadIdx.x % WARPGROUP) return;
    float *to = (float *)p.sums + (int64_t)note.slot * (QUERIES * D) + (D == 64 ? 0 : group * SUMS);
    if (note.look & FRESH)
        store_bytes(to, sums, SUMS * (int)sizeof *sums);
    else
        add_bytes(to, sums, SUMS * (int)sizeof *sums);
    copies_commit();
}

/* The dq that was left for later, by itself. */
template <int D>
static __device__ __forceinline__ void queries_finish(const Backward &p,
                                                      BackwardSm90Shared<D> &shared,
                                                      const GroupPlace &at, TileNote &later) {
    float dq[8][4];
    if (later.slot < 0) return;
    if ((later.look & BOTH) == BOTH)
        queries_product<D, KEYS>(dq, shared, at, later.slot, 0);
    else
        queries_product<D, HALF>(dq, shared, at, later.slot, later.look & SEES ? 0 : HALF);
    sums_free(at.group);
    queries_take<0>(dq, shared, at, later.slot);
    fence_shared_to_async();
    queries_send<D>(p, shared.sums[at.group], later, at.group);
    later.slot = -1;
}

/* ---- dk and dv ---- */

/* s' becomes p'. full: every query sees every key. */
static __device__ __forceinline__ void group_softmax(float (&s)[8][4], float (&dp)[8][4],
                                                     const Backward &p, const Meeting &me,
                                                     bool full) {
    const float scale = FLEX_HAS_SCORE ? 1.0f : p.scale * LOG2E;
    const RowSums *rows = me.sums + threadIdx.x % 4 * 2;
    if (!full) hide<QUERIES>(s, dp, p, me);
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            s[n][e] = exp2_fast(fmaf(s[n][e], scale, -rows[8 * n + e % 2].lse));
}

/* dp' becomes ds' = p' (dp' - delta), without its scale. */
static __device__ __forceinline__ void group_slopes(float (&dp)[8][4], const float (&p)[8][4],
                                                    const RowSums *rows) {
    rows += threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            dp[n][e] = p[n][e] * (FLEX_HAS_SCORE ? dp[n][e] : dp[n][e] - rows[8 * n + e % 2].delta);
}

/* sum += x y: x (64 keys, 64 queries), which becomes the A operand a; y a tile of queries. */
template <int N>
static __device__ __forceinline__ void group_add(float (&sum)[N][4], uint32_t (&a)[4][4],
                                                 const float (&x)[8][4], const bf16 *y) {
#pragma unroll
    for (int n = 0; n < 4; n++) pack_a(a[n], &x[2 * n]);
    product_down<4>(sum, a, y, QUERIES);
    wgmma_commit();
}

/* The A operand b, 16 keys by 64 queries, to rows row .. row + 15 of ds'. */
static __device__ __forceinline__ void keys_put(bf16 *ds, int row, const uint32_t (&b)[4][4]) {
    const int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 16; i++) { /* rows g and g + 8 of each chunk of 8 queries */
        bf16 *to = lane_at<QUERIES>(ds + 2 * t, row + i % 2 * 8, i / 2 * 8, g, 0);
        *(uint32_t *)to = b[i / 4][i % 4];
    }
}

/* The group's keys against a tile of queries: adds to dk and dv, leaves ds' in shared memory. both:
 * dq is made alongside, of tile `other`, whose queries see keys of both groups: with D 64 of an
 * earlier tile, while p' is computed; with D 128, where there are no registers for that, of this
 * one, with dk and dv. */
template <int D, bool both>
static __device__ __forceinline__ void group_keys(const Backward &p, BackwardSm90Shared<D> &shared,
                                                  GroupKeys<D> &w, GroupPlace &at,
                                                  const Meeting &me, const TileNote &note,
                                                  const TileNote &other) {
    constexpr bool before = both && D == 64, after = both && D == 128;
    const int ds = note.slot % 2, row = HALF * at.group;
    const bool full = note.look & FULL << at.group;
    float *sums = shared.sums[at.group];
    float s[8][4], dp[8][4], dq[8][4];
    uint32_t a[4][4], b[4][4];
    group_product<D>(s, w.k, shared.k[at.key_stage], row, shared.q[at.stage]);
    group_product<D>(dp, w.v, shared.v[at.key_stage], row, shared.dout[at.stage]);
    if (before) {
        queries_product<D, KEYS>(dq, shared, at, other.slot, 0);
        sums_free(at.group);
    }
    wgmma_wait<1 + before>(s);
    if (FLEX_HAS_SCORE) {
        wgmma_wait<before>(dp);
        modify<QUERIES>(s, dp, p, me);
    }
    group_softmax(s, dp, p, me, full);
    group_add(w.dv, a, s, shared.dout[at.stage]);
    wgmma_wait<1 + before>(dp);
    group_slopes(dp, s, me.sums);
    group_add(w.dk, b, dp, shared.q[at.stage]);
    if (before) queries_take<2>(dq, shared, at, other.slot);
    if (p.dq.data) {
        barrier_wait(&shared.ds_empty[ds], uses_parity(at, note.slot) ^ 1);
        keys_put(shared.ds[ds], row + threadIdx.x % WARPGROUP / WARP * 16, b);
        fence_shared_to_async();
    }
    ds_leave(shared, at, note.slot);
    if (before) queries_send<D>(p, sums, other, at.group);
    if (after) {
        queries_product<D, KEYS>(dq, shared, at, other.slot, 0);
        sums_free(at.group);
    }
    wgmma_wait<after>(w.dv);
    wgmma_wait<after>(w.dk);
    if (after) {
        queries_take<0>(dq, shared, at, other.slot);
        fence_shared_to_async();
        queries_send<D>(p, sums, other, at.group);
    }
}

/* A tile of queries, and what the one before left for later. */
template <int D>
static __device__ __forceinline__ void group_tile(const Backward &p, BackwardSm90Shared<D> &shared,
                                                  GroupKeys<D> &w, GroupPlace &at,
                                                  const TileNote &note, TileNote &later) {
    const int head = blockIdx.x % p.cut.heads;
    const int key = note.key + (int)threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4;
    const Meeting me = {
        head / p.H, head % p.H, note.row, key, shared.rows[at.stage], shared.intervals[at.stage]};
    const bool sees = note.look & SEES << at.group;
    const TileNote other = D == 64 ? later : note;
    const bool both = p.dq.data && other.slot >= 0 && (other.look & BOTH) == BOTH && sees;
    if (!(D == 64 && both)) queries_finish<D>(p, shared, at, later);
    if (!sees)
        ds_leave(shared, at, note.slot);
    else if (both)
        group_keys<D, true>(p, shared, w, at, me, note, other);
    else
        group_keys<D, false>(p, shared, w, at, me, note, other);
    const bool mine = p.dq.data && (D == 128 ? !both : note.slot % 2 == at.group);
    later = mine ? note : TileNote{-1, 0, 0, 0};
}

/* The group's 64 rows of a gradient, by way of its sums' place. */
template <int D>
static __device__ __forceinline__ void group_store(const FlashView &to, const TensorMap *map,
                                                   float *sums, int group, int head, int H, int key,
                                                   const float (&x)[D / 8][4], float scale) {
    bf16 *rows = (bf16 *)sums;
    const int warp_row = threadIdx.x % WARPGROUP / WARP * 16;
    if (!to.data) return;
#pragma unroll
    for (int i = 0; i < D; i += PANEL) {
        sums_free(group);
        tile_put<PANEL, 8>(rows, warp_row, 0, &x[i / 8], scale, scale);
        fence_shared_to_async();
        group_sync(group);
        if (threadIdx.x % WARPGROUP == 0) {
            store_box(map, rows, i, key + HALF * group, head % H, head / H);
            copies_commit();
        }
    }
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
static __device__ __forceinline__ void backward_compute(const BackwardSm90 &p,
                                                        BackwardSm90Shared<D> &shared) {
    typedef BackwardSm90Shared<D> S;
    const int warp = threadIdx.x / WARP;
    int stages = 0; /* seen so far */
    TileNote later = {-1, 0, 0, 0};
    GroupPlace at = {};
    at.group = __shfl_sync(FULL_WARP, warp / (WARPGROUP / WARP), 0);
    for (int i = 0, look = 0; !(look & LAST); i++) {
        int key;
        GroupKeys<D> w;
        at.key_stage = i % S::KEY_STAGES;
        barrier_wait(&shared.keys_full[at.key_stage], i / S::KEY_STAGES % 2);
        group_begin<D>(w, shared.k[at.key_stage], shared.v[at.key_stage], 16 * warp);
        for (;;) {
            at.stage = stages % S::STAGES;
            barrier_wait(&shared.full[at.stage], stages++ / S::STAGES % 2);
            const TileNote note = shared.notes[at.stage];
            key = note.key;
            look = note.look;
            if (note.slot < 0) break;
            group_tile<D>(p.b, shared, w, at, note, later);
            warp_arrive(&shared.empty[at.stage]);
        }
        queries_finish<D>(p.b, shared, at, later);
        warp_arrive(&shared.empty[at.stage]);
        warp_arrive(&shared.keys_empty[at.key_stage]);
        const int head = blockIdx.x % p.b.cut.heads;
        group_store<D>(p.b.dv, &p.dv, shared.sums[at.group], at.group, head, p.b.H, key, w.dv,
                       1.0f);
        group_store<D>(p.b.dk, &p.dk, shared.sums[at.group], at.group, head, p.b.H, key, w.dk,
                       p.b.scale);
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
static __device__ __forceinline__ void backward_sm90_block(const BackwardSm90 &p) {
    BackwardSm90Shared<D> &shared = *(BackwardSm90Shared<D> *)shared_block();
    if (threadIdx.x == 0) barriers_init(shared);
    __syncthreads();
    if (threadIdx.x >= CONSUMERS * WARPGROUP) {
        registers_shrink<24>();
        if (threadIdx.x / WARP == CONSUMER_WARPS) backward_load(p, shared);
    } else {
        registers_grow<240>();
        backward_compute(p, shared);
    }
}

#if FLEX_RUNTIME
extern "C" __global__ void __launch_bounds__(SM90_THREADS, 1)
    flex_backward(const __grid_constant__ BackwardSm90 p) {
    backward_sm90_block<FLEX_D>(p);
}
#else
template <int D>
static __global__ void __launch_bounds__(SM90_THREADS, 1)
    backward_sm90_kernel(const __grid_constant__ BackwardSm90 p) {
    backward_sm90_block<D>(p);
}
#endif

#endif
