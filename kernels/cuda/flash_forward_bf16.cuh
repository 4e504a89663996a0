/* Fused attention in bf16, forward: FlashAttention-2 (Dao 2023) by mma.sync, for sm_80 and later.
 *
 * A block takes 128 queries of one head and visits tiles of 64 keys from the smallest lo to the
 * largest hi of its rows. A warp has 32 of the rows and takes 32 keys at a time, where some of
 * its rows see one. Queries lie in shared memory; keys and values come in by cp.async, the next
 * tile while this one is computed (two stages, one barrier a tile). The probabilities stay in
 * registers: the accumulators of q k' are, rounded, the A operand of p v.
 *
 * The softmax is online and in base 2 (scale log2 e is folded into its argument). Where no row's
 * maximum grows by more than SLACK, what was summed before is left as it is: numbers between 1 and
 * 2^SLACK are as exact, and the branch that shrinks sums is seldom taken.
 *
 * D 64, one tile (128 x 64), 2.1 MFLOP, in clocks of a multiprocessor:
 *   tensor cores   740   512 products of 16 x 8 x 16 at 2.85 kFLOP, mma.sync's best on Hopper
 *   shared memory  900   48 fragments of 512 bytes a warp, 16 KiB by cp.async, at 128 bytes
 *   exponentials   510   8192 at 16
 *   instructions   750   about 370 a warp for 32 keys, 4 at a time
 * so no unit but the tensor cores and shared memory limits below 500 TFLOP/s, if others' work fills
 * one warp's waits: 16 KiB of q, 2 x 16 KiB of k and v and at most 168 registers let three blocks
 * of 4 warps share a multiprocessor. Global memory: 16 KiB a tile, 2.3 TB/s at 300 TFLOP/s, mostly
 * from L2: a group of heads is computed together whose keys and values fit there.
 *
 * B batch, H heads, T tokens, D head size, padded to 32, 64, 96 or 128. */
#ifndef KERNELS_CUDA_FLASH_FORWARD_BF16_CUH
#define KERNELS_CUDA_FLASH_FORWARD_BF16_CUH

#include "kernels/cuda/flash_tile.cuh"

enum {
    ROWS = 128,    /* queries of a tile */
    COLS = 64,     /* keys of a tile */
    THREADS = 128, /* of a block */
    M = 2,         /* 16 M queries a warp */
    STEP = 32,     /* keys that a warp takes at once */
};
#define SLACK 8.0f

typedef struct Forward {
    FlashView q, k, v, out;
    float *lse;
    FlashMask mask;
    int heads, H, D, n_tiles, group;
    float scale, factor; /* factor: to scores in units of log 2, scale log2(e) */
} Forward;

template <int D>
struct ForwardShared {
    bf16 q[ROWS * D], k[2][COLS * D], v[2][COLS * D];
    Interval rows[ROWS];
    Limits warps[THREADS / WARP]; /* of each warp's rows */
};

/* Where a warp is: head h of batch b, and its first row. */
typedef struct Place {
    int b, h, row;
} Place;

/* One warp's rows. Lane 4 g + t has rows g and g + 8 of each 16. */
template <int D>
struct ForwardRows {
    float out[M][D / 8][4];
    float top[M][2],
        sum[M][2]; /* the maximum in units of log 2; of 2^(s - top), this lane's part */
};

/* Where this block is: within a group of heads the last queries first, which see the most keys
 * under a causal mask. */
static __device__ __forceinline__ void forward_place(const Forward &p, int *head, int *row) {
    const int block = blockIdx.x, group = block / (p.group * p.n_tiles) * p.group;
    const int heads = min(p.group, p.heads - group), i = block % (p.group * p.n_tiles);
    *head = group + i % heads;
    *row = (p.n_tiles - 1 - i / heads) * ROWS;
}

/* s = q k' */
template <int D>
static __device__ __forceinline__ void forward_scores(float s[M][STEP / 8][4], bf16 *q, int row,
                                                      bf16 *k, int key) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < STEP / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) s[m][n][e] = 0;
#pragma unroll
    for (int d = 0; d < D; d += 16) {
        uint32_t a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) load_a<D>(a[m], q, row + 16 * m, d);
#pragma unroll
        for (int n = 0; n < STEP / 8; n += 2) {
            uint32_t b[4];
            load_b<D>(b, k, key + 8 * n, d);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_m16n8k16(s[m][n], a[m], b);
                mma_m16n8k16(s[m][n + 1], a[m], b + 2);
            }
        }
    }
}

/* s = scale q k' becomes what the score expression makes of it, in units of log 2. */
static __device__ __forceinline__ void forward_modify(float s[M][STEP / 8][4], const Forward &p,
                                                      const Place &me, int col) {
    const int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < STEP / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                s[m][n][e] = LOG2E * mask_score(p.mask, p.scale * s[m][n][e], me.b, me.h,
                                                me.row + 16 * m + e / 2 * 8 + g,
                                                col + 8 * n + 2 * t + e % 2);
}

/* s = -inf where the row's query does not see the key. */
static __device__ __forceinline__ void forward_hide(float s[M][STEP / 8][4], const Forward &p,
                                                    const Place &me, const Interval *rows,
                                                    int col) {
    const int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = 16 * m + 8 * half + g;
            const Interval x = rows[row];
#pragma unroll
            for (int n = 0; n < STEP / 8; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const int key = col + 8 * n + 2 * t + e;
                    if (!mask_sees(p.mask, x, me.b, me.h, me.row + row, key))
                        s[m][n][2 * half + e] = -INFINITY;
                }
        }
}

/* Makes room for the tile's largest scores: top grows, and sum and out shrink with it. */
template <int D>
static __device__ __forceinline__ void forward_grow(ForwardRows<D> &w,
                                                    const float s[M][STEP / 8][4], float scale) {
    float top[M][2];
    bool grows = false;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float x = -INFINITY;
#pragma unroll
            for (int n = 0; n < STEP / 8; n++)
                x = fmaxf(x, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
            x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, 1));
            x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, 2));
            top[m][half] = scale * x;
            grows |= top[m][half] > w.top[m][half] + SLACK;
        }
    if (!__any_sync(FULL_WARP, grows)) return;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float now = fmaxf(top[m][half], w.top[m][half]);
            const float shrink = now > -INFINITY ? exp2_fast(w.top[m][half] - now) : 1.0f;
            w.top[m][half] = now;
            w.sum[m][half] *= shrink;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                w.out[m][n][2 * half] *= shrink;
                w.out[m][n][2 * half + 1] *= shrink;
            }
        }
}

/* s becomes p = 2^(scale s - top), which sum counts. */
template <int D>
static __device__ __forceinline__ void forward_softmax(ForwardRows<D> &w, float s[M][STEP / 8][4],
                                                       float scale) {
    forward_grow(w, s, scale);
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            /* nothing visible yet: all p are 0 */
            const float top = w.top[m][half] > -INFINITY ? w.top[m][half] : 0.0f;
#pragma unroll
            for (int n = 0; n < STEP / 8; n++)
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; e++) {
                    s[m][n][e] = exp2_fast(fmaf(s[m][n][e], scale, -top));
                    w.sum[m][half] += s[m][n][e];
                }
        }
}

/* out += p v */
template <int D>
static __device__ __forceinline__ void forward_values(ForwardRows<D> &w,
                                                      const float p[M][STEP / 8][4], bf16 *v,
                                                      int key) {
#pragma unroll
    for (int n = 0; n < STEP / 8; n += 2) {
        uint32_t a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) pack_a(a[m], &p[m][n]);
#pragma unroll
        for (int d = 0; d < D / 8; d += 2) {
            uint32_t b[4];
            load_b_trans<D>(b, v, key + 8 * n, 8 * d);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_m16n8k16(w.out[m][d], a[m], b);
                mma_m16n8k16(w.out[m][d + 1], a[m], b + 2);
            }
        }
    }
}

/* out and lse of the warp's rows; its queries in shared memory make room for out. */
template <int D>
static __device__ __forceinline__ void forward_finish(const Forward &p, ForwardRows<D> &w, bf16 *q,
                                                      int warp_row, const Place &me) {
    const int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int m = 0; m < M; m++) {
        float share[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int at = me.row + 16 * m + 8 * half + g;
            float sum = w.sum[m][half];
            sum += __shfl_xor_sync(FULL_WARP, sum, 1);
            sum += __shfl_xor_sync(FULL_WARP, sum, 2);
            share[half] = sum == 0 ? 0.0f : 1 / sum;
            if (t == 0 && at < p.mask.Tq)
                p.lse[((int64_t)me.b * p.H + me.h) * p.mask.Tq + at] =
                    LN2 * (w.top[m][half] + log2f(sum));
        }
        tile_put<D, D / 8>(q, warp_row + 16 * m, 0, w.out[m], share[0], share[1]);
    }
    __syncwarp();
    tile_store<D>(head_rows(p.out, me.b, me.h, p.mask.Tq, p.D), me.row, q, warp_row, 16 * M);
}

template <int D>
static __device__ __forceinline__ void forward_block(const Forward &p) {
    ForwardShared<D> &shared = *(ForwardShared<D> *)shared_block();
    int head, row;
    forward_place(p, &head, &row);
    const int b = head / p.H, h = head % p.H;
    const FlashRows q = head_rows(p.q, b, h, p.mask.Tq, p.D);
    const FlashRows k = head_rows(p.k, b, h, p.mask.Tk, p.D);
    const FlashRows v = head_rows(p.v, b, h, p.mask.Tk, p.D);
    tile_load<ROWS, D, THREADS>(shared.q, q, row);
    for (int i = threadIdx.x; i < ROWS; i += THREADS) shared.rows[i] = interval_of(p.mask, row + i);
    __syncthreads();

    const int warp_row = threadIdx.x / WARP * 16 * M;
    const Interval *rows = shared.rows + warp_row;
    const Limits block = mask_limits(p.mask, b, h, shared.rows, row, ROWS);
    Limits &mine = shared.warps[threadIdx.x / WARP]; /* not in registers: there are none left */
    const Place me = {b, h, row + warp_row};
    const Limits limits = mask_limits(p.mask, b, h, rows, me.row, 16 * M);
    if (threadIdx.x % WARP == 0) mine = limits;
    __syncwarp();
    const int end = (block.end + COLS - 1) / COLS;
    ForwardRows<D> w;
#pragma unroll
    for (int m = 0; m < M; m++) {
        w.top[m][0] = w.top[m][1] = -INFINITY;
        w.sum[m][0] = w.sum[m][1] = 0;
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) w.out[m][n][e] = 0;
    }
    int tile = mask_next(p.mask, block, b, h, row, ROWS, block.first / COLS, COLS), skipped = 0;
    if (tile < end) {
        tile_load<COLS, D, THREADS>(shared.k[tile % 2], k, tile * COLS);
        tile_load<COLS, D, THREADS>(shared.v[tile % 2], v, tile * COLS);
    }
    cp_async_commit();
    while (tile < end) {
        const int next = mask_next(p.mask, block, b, h, row, ROWS, tile + 1, COLS);
        const int stage = (tile - skipped) % 2;
        cp_async_wait<0>();
        __syncthreads(); /* the tile is there, and nobody reads the one before it any more */
        if (next < end) {
            tile_load<COLS, D, THREADS>(shared.k[stage ^ 1], k, next * COLS);
            tile_load<COLS, D, THREADS>(shared.v[stage ^ 1], v, next * COLS);
        }
        cp_async_commit();
#pragma unroll 1
        for (int key = 0; key < COLS; key += STEP) {
            const int col = tile * COLS + key;
            if (!mask_meets(p.mask, mine, b, h, me.row, 16 * M, col, col + STEP)) continue;
            float s[M][STEP / 8][4];
            forward_scores<D>(s, shared.q, warp_row, shared.k[stage], key);
            if (FLEX_HAS_SCORE) forward_modify(s, p, me, col);
            if (!mask_full(p.mask, mine, b, h, me.row, 16 * M, col, col + STEP))
                forward_hide(s, p, me, rows, col);
            forward_softmax(w, s, FLEX_HAS_SCORE ? 1.0f : p.factor);
            forward_values(w, s, shared.v[stage], key);
        }
        skipped += next - (tile + 1);
        tile = next;
    }
    cp_async_wait<0>();
    __syncthreads(); /* where there was no tile: the queries are there, and may be overwritten */
    forward_finish(p, w, shared.q, warp_row, {head / p.H, head % p.H, row + warp_row});
}

/* Blocks that share a multiprocessor: what registers may cost. */
template <int D>
struct ForwardBlocks {
    enum { N = D <= 32 ? 4 : D <= 64 ? 3 : 2 };
};

#if FLEX_RUNTIME
extern "C" __global__ void __launch_bounds__(THREADS, ForwardBlocks<FLEX_D>::N)
    flex_forward(const __grid_constant__ Forward p) {
    forward_block<FLEX_D>(p);
}
#else
template <int D>
static __global__ void __launch_bounds__(THREADS, ForwardBlocks<D>::N)
    forward_kernel(const __grid_constant__ Forward p) {
    forward_block<D>(p);
}
#endif

#endif
