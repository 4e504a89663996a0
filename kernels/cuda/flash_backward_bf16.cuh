/* Fused attention in bf16, backward: FlashAttention-2 (Dao 2023) by mma.sync, for sm_80 and later,
 * without atomics and the same bits each time.
 *
 *   p = exp(scale q k' - lse)   dp = dout v'   ds = p (dp - delta), delta = rowsum(dout out)
 *   dv = p' dout     dk = scale ds' q     dq = scale ds k
 *
 * One kernel makes all three gradients: five products a tile; one for dk and dv and another for dq
 * would need seven. A block of 8 warps takes a chunk of consecutive tiles of 128 keys of one head,
 * one after the other, and meets the tiles of queries that see each. A warp owns 16 keys: it makes
 * s' = k q' and dp' = v dout' with keys as rows, so that p' and ds' are, rounded, the A operands of
 * dv and dk, which stay in its registers; only ds goes through shared memory, for dq, whose sum
 * runs over all keys. The sums of dq are the chunk's own, in float32 in the workspace, and no other
 * block touches them: a thread continues the numbers that it left there at the chunk's tile before,
 * reading them before the products that need them, so they need neither barrier nor atomic. At the
 * end the chunks are added in their order (at B H >= 330 there is one).
 *
 * D 64, one tile (64 queries x 128 keys), 5.2 MFLOP, in clocks of a multiprocessor:
 *   tensor cores   1840  1280 products of 16 x 8 x 16 at 2.85 kFLOP, mma.sync's best on Hopper
 *   shared memory  3100  88 fragments of 512 bytes a warp (16 each for s, dp, dv and dk, 24 for
 *                        dq), 16 KiB each of ds and by cp.async, at 128 bytes
 *   exponentials    510  8192 at 16
 *   instructions   1600  about 800 a warp, 4 at a time
 * so shared memory limits, at 380 TFLOP/s. Global memory: 16 KiB of q and dout and 32 KiB of sums a
 * tile, 2.4 TB/s at 260 TFLOP/s, half of an H200's. One block of 8 warps with up to 255 registers
 * on a multiprocessor.
 *
 * Queries of a tile, as registers (the sums) and shared memory allow: 64, in 82 KiB for D 64 and
 * 114 for D 96; 32 for D 128, in 105. Where a block has less (99 KiB on sm_86 and sm_89), D 96 is
 * padded to 128 too, and a tile has 16, in 89 KiB: 1.17 times the fragments, for tensor cores that
 * are slower by more.
 *
 * B batch, H heads, T tokens, D head size, padded to 32, 64, 96 or 128. */
#ifndef KERNELS_CUDA_FLASH_BACKWARD_BF16_CUH
#define KERNELS_CUDA_FLASH_BACKWARD_BF16_CUH

#include "kernels/cuda/flash_backward.cuh"

/* ---- the first passes, built with the program alone ---- */

#if !FLEX_RUNTIME

/* Intervals, limits: one warp a tile of queries. */
static __global__ void limits_kernel(Backward p) {
    const int tile = (int)(global_thread() / WARP), size = p.cut.tile;
    if (tile >= p.cut.n_q) return;
    Interval *x = p.intervals + (int64_t)tile * size;
    for (int i = threadIdx.x % WARP; i < size; i += WARP)
        x[i] = interval_of(p.mask, tile * size + i);
    __syncwarp();
    const Limits l = mask_limits_all(p.mask, x, tile * size, size);
    if (threadIdx.x % WARP == 0) p.limits[tile] = l;
}

/* sum of x y over a chunk of 8 columns */
static __device__ __forceinline__ float chunk_dot(const bf16 *x, const bf16 *y, int n, bool wide) {
    float sum = 0;
    if (wide) {
        const Pack<bf16> a = load_pack(x), b = load_pack(y);
#pragma unroll
        for (int e = 0; e < 8; e++) sum += to_float(a.at[e]) * to_float(b.at[e]);
    } else {
        for (int e = 0; e < n; e++) sum += to_float(x[e]) * to_float(y[e]);
    }
    return sum;
}

/* RowSums: eight lanes a row, heads of one token behind each other. Reads dout and out once. */
static __global__ void rows_kernel(Backward p) {
    enum { LANES = 8 };
    const int64_t i = global_thread() / LANES;
    const int lane = threadIdx.x % LANES;
    const int h = (int)(i % p.H), t = (int)(i / p.H % p.cut.q_pad),
              b = (int)(i / p.H / p.cut.q_pad);
    float delta = 0;
    if (b < p.B && t < p.mask.Tq) {
        const bf16 *x = p.out.data + b * p.out.b + (int64_t)t * p.out.t + h * p.out.h;
        const bf16 *y = p.dout.data + b * p.dout.b + (int64_t)t * p.dout.t + h * p.dout.h;
        for (int d = 8 * lane; d < p.D; d += 8 * LANES)
            delta += chunk_dot(x + d, y + d, min(8, p.D - d), p.out.wide && p.dout.wide);
    }
    for (int lanes = LANES / 2; lanes > 0; lanes /= 2)
        delta += __shfl_xor_sync(FULL_WARP, delta, lanes);
    if (b >= p.B || lane) return;
    const int64_t head = (int64_t)b * p.H + h;
    const float lse = t < p.mask.Tq ? p.lse[head * p.mask.Tq + t] : -INFINITY;
    p.rows[head * p.cut.q_pad + t] = {lse == -INFINITY ? INFINITY : lse * LOG2E, delta};
}

#endif

/* ---- the tiles ---- */

template <int D, int ROWS>
struct BackwardShared {
    static constexpr int DS = ROWS < 32 ? 32 : ROWS; /* a tile has 32 columns at least */
    bf16 k[KEYS * D], v[KEYS * D];
    bf16 q[2][ROWS * D], dout[2][ROWS * D];
    bf16 ds[KEYS * DS]; /* ds' */
    RowSums rows[2][ROWS];
    Interval intervals[2][ROWS];
};

/* A warp's 16 keys and values as A operands, where there are registers for them (HELD), and their
 * gradients. Lane 4 g + t has keys g and g + 8. */
template <int D>
struct Keys {
    static constexpr bool K_HELD = D != 96, V_HELD = D <= 64;
    uint32_t k[D / 16][4], v[D / 16][4];
    float dk[D / 8][4], dv[D / 8][4];
};

/* The first tile of queries from `tile` on that sees a key in first .. end - 1; n_q: none. */
template <int ROWS>
static __device__ __forceinline__ int next_tile(const Backward &p, int head, int tile, int first,
                                                int end) {
    for (; tile < p.cut.n_q; tile += WARP) {
        const int i = tile + threadIdx.x % WARP;
        const unsigned sees = __ballot_sync(
            FULL_WARP, i < p.cut.n_q && mask_meets(p.mask, p.limits[i], head / p.H, head % p.H,
                                                   i * ROWS, ROWS, first, end));
        if (sees) return tile + __ffs((int)sees) - 1;
    }
    return p.cut.n_q;
}

template <int D, int ROWS>
static __device__ __forceinline__ void queries_load(const Backward &p,
                                                    BackwardShared<D, ROWS> &shared, int stage,
                                                    int head, int tile) {
    const int b = head / p.H, h = head % p.H, row = tile * ROWS;
    tile_load<ROWS, D, THREADS>(shared.q[stage], head_rows(p.q, b, h, p.mask.Tq, p.D), row);
    tile_load<ROWS, D, THREADS>(shared.dout[stage], head_rows(p.dout, b, h, p.mask.Tq, p.D), row);
    const int i = threadIdx.x % ROWS * 2; /* two rows are 16 bytes */
    if (threadIdx.x < ROWS / 2)
        cp_async_16(&shared.rows[stage][i], p.rows + (int64_t)head * p.cut.q_pad + row + i, true);
    else if (threadIdx.x < ROWS)
        cp_async_16(&shared.intervals[stage][i - ROWS], p.intervals + row + i - ROWS, true);
}

/* s' = k q' of the warp's 16 keys, held as k or read from row `key` of a tile on; for dp': v and
 * dout. */
template <int D, int ROWS, bool HELD>
static __device__ __forceinline__ void scores(float s[ROWS / 8][4], const uint32_t k[D / 16][4],
                                              bf16 *tile, int key, bf16 *q) {
#pragma unroll
    for (int n = 0; n < ROWS / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) s[n][e] = 0;
#pragma unroll
    for (int d = 0; d < D / 16; d++) {
        uint32_t read[4];
        if (!HELD) load_a<D>(read, tile, key, 16 * d);
        const uint32_t *a = HELD ? k[d] : read;
#pragma unroll
        for (int n = 0; n < ROWS / 8; n += 2) {
            uint32_t b[4];
            load_b<D>(b, q, 8 * n, 16 * d);
            mma_m16n8k16(s[n], a, b);
            mma_m16n8k16(s[n + 1], a, b + 2);
        }
    }
}

/* s' becomes p', dp' becomes ds' without its scale. */
template <int ROWS>
static __device__ __forceinline__ void cells(float s[ROWS / 8][4], float dp[ROWS / 8][4],
                                             const RowSums *rows, float scale) {
#pragma unroll
    for (int n = 0; n < ROWS / 8; n++) {
        const Pack<float> r = load_pack(&rows[8 * n + threadIdx.x % 4 * 2].lse);
#pragma unroll
        for (int e = 0; e < 4; e++) {
            s[n][e] = exp2_fast(fmaf(s[n][e], scale, -r.at[e % 2 * 2]));
            dp[n][e] = s[n][e] * (FLEX_HAS_SCORE ? dp[n][e] : dp[n][e] - r.at[e % 2 * 2 + 1]);
        }
    }
}

/* sum += x y: x (16 keys, ROWS) in registers, y (ROWS, D) a tile. */
template <int D, int ROWS>
static __device__ __forceinline__ void add_queries(float sum[D / 8][4], const float x[ROWS / 8][4],
                                                   bf16 *y) {
#pragma unroll
    for (int n = 0; n < ROWS / 8; n += 2) {
        uint32_t a[4];
        pack_a(a, &x[n]);
#pragma unroll
        for (int d = 0; d < D / 8; d += 2) {
            uint32_t b[4];
            load_b_trans<D>(b, y, 8 * n, 8 * d);
            mma_m16n8k16(sum[d], a, b);
            mma_m16n8k16(sum[d + 1], a, b + 2);
        }
    }
}

/* The warp's keys against one tile of queries: adds to dk and dv, leaves ds' in shared memory.
 * full: every query sees every key. */
template <int D, int ROWS>
static __device__ __forceinline__ void keys_tile(const Backward &p, BackwardShared<D, ROWS> &shared,
                                                 int stage, Keys<D> &w, const Meeting &me,
                                                 bool full) {
    const int warp_key = threadIdx.x / WARP * 16;
    float s[ROWS / 8][4], dp[ROWS / 8][4];
    scores<D, ROWS, Keys<D>::K_HELD>(s, w.k, shared.k, warp_key, shared.q[stage]);
    scores<D, ROWS, Keys<D>::V_HELD>(dp, w.v, shared.v, warp_key, shared.dout[stage]);
    if (FLEX_HAS_SCORE) modify<ROWS>(s, dp, p, me);
    if (!full) hide<ROWS>(s, dp, p, me);
    cells<ROWS>(s, dp, me.sums, FLEX_HAS_SCORE ? 1.0f : p.scale * LOG2E);
    add_queries<D, ROWS>(w.dv, s, shared.dout[stage]);
    tile_put<BackwardShared<D, ROWS>::DS, ROWS / 8>(shared.ds, warp_key, 0, dp, 1.0f, 1.0f);
    add_queries<D, ROWS>(w.dk, dp, shared.q[stage]);
}

/* dq += ds k of 16 keys */
template <int D, int ROWS, int N>
static __device__ __forceinline__ void add_keys(float dq[N][4], bf16 *ds, bf16 *k, int key, int row,
                                                int col) {
    uint32_t a[4];
    load_a_trans<BackwardShared<D, ROWS>::DS>(a, ds, key, row);
#pragma unroll
    for (int n = 0; n < N; n += 2) {
        uint32_t b[4];
        load_b_trans<D>(b, k, key, col + 8 * n);
        mma_m16n8k16(dq[n], a, b);
        mma_m16n8k16(dq[n + 1], a, b + 2);
    }
}

/* Adds ds k to the tile's sums of dq, over those of the 128 keys from col on that are seen. sums:
 * the tile's; fresh: there are none yet. They come while the products are made. */
template <int D, int ROWS>
static __device__ __forceinline__ void queries_tile(const Backward &p,
                                                    BackwardShared<D, ROWS> &shared,
                                                    Pack<float> *sums, bool fresh, const Limits &l,
                                                    int head, int tile, int col) {
    constexpr int DOWN = QuerySums<D, ROWS>::DOWN, N = QuerySums<D, ROWS>::COLS / 8;
    const int warp = threadIdx.x / WARP, row = warp % DOWN * 16, first = warp / DOWN * 8 * N;
    const int begin = l.first - col, end = l.end - col;
    const bool planned = FLEX_RUNTIME && p.mask.visit;
    Pack<float> sum[N];
    float dq[N][4] = {};
    sums += sums_at<N>();
#pragma unroll
    for (int n = 0; n < N; n++) sum[n] = fresh ? Pack<float>{} : load_pack(sums[n * SUMS_STEP].at);
    __syncthreads(); /* ds is there */
    if (begin <= 0 && end >= KEYS && !planned) {
#pragma unroll
        for (int k = 0; k < KEYS; k += 16)
            add_keys<D, ROWS, N>(dq, shared.ds, shared.k, k, row, first);
    } else {
#pragma unroll 1
        for (int k = max(begin, 0) / 16 * 16; k < min(end, (int)KEYS); k += 16) {
            if (planned && !mask_meets(p.mask, l, head / p.H, head % p.H, tile * ROWS, ROWS,
                                       col + k, col + k + 16))
                continue; /* and so nobody has written this part of ds */
            add_keys<D, ROWS, N>(dq, shared.ds, shared.k, k, row, first);
        }
    }
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) sum[n].at[e] += dq[n][e];
        sums[n * SUMS_STEP] = sum[n];
    }
}

/* A warp's 16 rows of a gradient to memory, by way of its 16 rows of `tile`. */
template <int D>
static __device__ __forceinline__ void keys_store(const FlashView &to, const Backward &p, int head,
                                                  int key, bf16 *tile, const float x[D / 8][4],
                                                  float scale) {
    const int warp_key = threadIdx.x / WARP * 16;
    if (!to.data) return;
    __syncwarp();
    tile_put<D, D / 8>(tile, warp_key, 0, x, scale, scale);
    __syncwarp();
    tile_store<D>(head_rows(to, head / p.H, head % p.H, p.mask.Tk, p.D), key, tile, warp_key, 16);
}

/* The keys of the block's tile `keys` and their first tile of queries into shared memory, and the
 * warp's keys from there. */
template <int D, int ROWS>
static __device__ __forceinline__ void keys_load(const Backward &p, BackwardShared<D, ROWS> &shared,
                                                 Keys<D> &w, int head, int keys, int tile) {
    const int b = head / p.H, h = head % p.H, warp_key = threadIdx.x / WARP * 16;
    tile_load<KEYS, D, THREADS>(shared.k, head_rows(p.k, b, h, p.mask.Tk, p.D), keys * KEYS);
    tile_load<KEYS, D, THREADS>(shared.v, head_rows(p.v, b, h, p.mask.Tk, p.D), keys * KEYS);
    queries_load(p, shared, 0, head, tile);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
#pragma unroll
    for (int d = 0; d < D / 16; d++) {
        if (w.K_HELD) load_a<D>(w.k[d], shared.k, warp_key, 16 * d);
        if (w.V_HELD) load_a<D>(w.v[d], shared.v, warp_key, 16 * d);
    }
}

template <int D, int ROWS>
static __device__ __forceinline__ void backward_block(const Backward &p) {
    BackwardShared<D, ROWS> &shared = *(BackwardShared<D, ROWS> *)shared_block();
    const Cut &cut = p.cut;
    /* the first chunks of all heads first, which the most queries see under a causal mask */
    const int head = blockIdx.x % cut.heads, chunk = blockIdx.x / cut.heads;
    const int b = head / p.H, h = head % p.H;
    const int first = chunk * cut.chunk, last = min(cut.n_k, first + cut.chunk);
    const int start = next_tile<ROWS>(p, head, 0, first * KEYS, last * KEYS);
    const int64_t slot = (int64_t)head * cut.chunks + chunk;
    if (threadIdx.x == 0) p.starts[slot] = start;
    Pack<float> *sums = p.sums + slot * cut.width * (ROWS * D / 4);

    for (int keys = first; keys < last; keys++) {
        const int col = keys * KEYS, key = col + threadIdx.x / WARP * 16;
        int stage = 0, tile = next_tile<ROWS>(p, head, start, col, col + KEYS);
        Keys<D> w;
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) w.dk[n][e] = w.dv[n][e] = 0;
        if (tile < cut.n_q) keys_load(p, shared, w, head, keys, tile);
        while (tile < cut.n_q) {
            const int next = next_tile<ROWS>(p, head, tile + 1, col, col + KEYS), row = tile * ROWS;
            const Limits l = p.limits[tile];
            cp_async_wait<0>();
            __syncthreads(); /* the tile is there; nobody reads the one before it, nor ds */
            if (next < cut.n_q) queries_load(p, shared, stage ^ 1, head, next);
            cp_async_commit();
            if (mask_meets(p.mask, l, b, h, row, ROWS, key, key + 16)) {
                const Meeting me = {b,
                                    h,
                                    row,
                                    key + (int)threadIdx.x % WARP / 4,
                                    shared.rows[stage],
                                    shared.intervals[stage]};
                keys_tile(p, shared, stage, w, me,
                          mask_full(p.mask, l, b, h, row, ROWS, key, key + 16));
            }
            if (p.dq.data) {
                const bool fresh =
                    keys == first || !mask_meets(p.mask, l, b, h, row, ROWS, first * KEYS, col);
                queries_tile(p, shared, sums + (int64_t)(tile - start) * (ROWS * D / 4), fresh, l,
                             head, tile, col);
            }
            tile = next;
            stage ^= 1;
        }
        keys_store<D>(p.dv, p, head, key, shared.v, w.dv, 1.0f);
        keys_store<D>(p.dk, p, head, key, shared.v, w.dk, p.scale);
        __syncthreads();
    }
}

#if FLEX_RUNTIME
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    flex_backward(const __grid_constant__ Backward p) {
    backward_block<FLEX_D, FLEX_ROWS>(p);
}
#else
template <int D, int ROWS>
static __global__ void __launch_bounds__(THREADS, 1)
    tiles_kernel(const __grid_constant__ Backward p) {
    backward_block<D, ROWS>(p);
}
#endif

#endif
