/* sdpa in float32: fused attention on the CUDA cores (FlashAttention-2, Dao 2023). Exact as the
 * CPU's, which tf32 is not; three products of tf32 parts would be.
 *
 *   s = scale q k', p = softmax(s) over the visible keys, out = p v, lse = log sum exp(s)
 *   p = exp(s - lse), dp = dout v', ds = p (dp - delta), delta = rowsum(dout out)
 *   dq = scale ds k, dk = scale ds' q, dv = p' dout
 *
 *   kernel   owns      meets     products of tiles
 *   forward  queries   keys      q k', p v
 *   keys     keys      queries   k q', v dout', ds' q, p' dout
 *   dq       queries   keys      dout v', q k', ds k
 *
 * So backward costs 7 products where sharing the scores would cost 5, and needs no atomics: each
 * sum has one owner and a fixed order. Each product of an M x N tile is 2 M N D flops.
 *
 *   D 64       tile       loads of 16 bytes    shared memory   registers   warps on an SM of Hopper
 *   forward    128 x 32   12 / 128 FMA         71 KiB          168         12
 *   backward   64 x 64    12 / 128 FMA         86 KiB          244         8
 *
 * (D 128: 64 x 32 and 32 x 32 with 76 and 71 KiB; no size needs more than the 99 KiB of the
 * smallest GPU since sm_80.) The next tile's copy (cp.async) is under way while the present one is
 * multiplied. Scores are kept in units of log 2: the softmax needs 2^x alone. Nothing is added up
 * for tiles that a warp's rows do not see. */
#ifndef KERNELS_CUDA_FLASH_F32_CUH
#define KERNELS_CUDA_FLASH_F32_CUH

#include "kernels/cuda/flash_f32_tile.cuh"

/* ---- forward ---- */

/* s becomes p = 2^(s - top) for a new running maximum; what was summed before shrinks. sum holds
 * the lane's columns alone. */
template <typename S>
static __device__ __forceinline__ void softmax_step(float (&s)[S::R][S::C], float (&top)[S::R],
                                                    float (&sum)[S::R],
                                                    float (&out)[S::R][S::SUMS]) {
#pragma unroll
    for (int i = 0; i < S::R; i++) {
        const float before = top[i];
#pragma unroll
        for (int j = 0; j < S::C; j++) top[i] = fmaxf(top[i], s[i][j]);
        for (int offset = 4; offset > 0; offset /= 2)
            top[i] = fmaxf(top[i], __shfl_xor_sync(FULL_WARP, top[i], offset));
        const float base = top[i] > -INFINITY ? top[i] : 0; /* nothing visible yet: all p are 0 */
        const float shrink = exp2_fast(before - base);
        sum[i] *= shrink;
#pragma unroll
        for (int j = 0; j < S::C; j++) {
            s[i][j] = exp2_fast(s[i][j] - base);
            sum[i] += s[i][j];
        }
#pragma unroll
        for (int n = 0; n < S::SUMS; n++) out[i][n] *= shrink;
    }
}

/* out becomes the mean of the values, and the log-sum-exps are written. */
template <typename S>
static __device__ __forceinline__ void softmax_end(const Flash &p, const Place &me,
                                                   const float (&top)[S::R],
                                                   const float (&sum)[S::R],
                                                   float (&out)[S::R][S::SUMS]) {
#pragma unroll
    for (int i = 0; i < S::R; i++) {
        float total = sum[i];
        for (int offset = 4; offset > 0; offset /= 2)
            total += __shfl_xor_sync(FULL_WARP, total, offset);
        const float share = total == 0 ? 0 : 1 / total;
#pragma unroll
        for (int n = 0; n < S::SUMS; n++) out[i][n] *= share;
        const int row = me.first + me.row + 4 * i;
        if (me.tx == 0 && row < p.mask.Tq)
            p.lse[me.head * p.mask.Tq + row] = top[i] * LN2 + logf(total);
    }
}

/* The first tile of keys at or after key `at` that the block's queries see. */
template <typename S>
static __device__ __forceinline__ int first_tile(const Flash &p, const Limits &keys,
                                                 const Place &me, int at) {
    return S::COLUMNS *
           mask_next(p.mask, keys, me.b, me.h, me.first, S::ROWS, at / S::COLUMNS, S::COLUMNS);
}

/* The last tiles of queries first: under a causal mask they see most. */
template <typename S>
static __device__ __forceinline__ void forward_block(const Flash &p) {
    const Place me = place_of<S>(p, (int)(gridDim.x - 1 - blockIdx.x) / (p.B * p.H));
    const Rows q = head_rows(p.q, me, p.mask.Tq, p.D), k = head_rows(p.k, me, p.mask.Tk, p.D),
               v = head_rows(p.v, me, p.mask.Tk, p.D);
    float *q_tile = (float *)shared_block(), *k_tile = q_tile + S::ROWS * S::ROW,
          *v_tile = k_tile + S::COLUMNS * S::ROW, *scores = v_tile + S::COLUMNS * S::ROW;
    float *p_lane = scores + me.row * S::SCORES;

    const int warp_row = me.first + me.warp_row;
    const Limits keys = rows_see(p, me, me.first, S::ROWS),
                 warp = rows_see(p, me, warp_row, S::WARP_ROWS);
    const int begin = first_tile<S>(p, keys, me, keys.first);
    float out[S::R][S::SUMS] = {}, top[S::R], sum[S::R] = {};
#pragma unroll
    for (int i = 0; i < S::R; i++) top[i] = -INFINITY;

    load_tile<S, S::ROWS>(q_tile, q, me.first);
    load_tile<S, S::COLUMNS>(k_tile, k, begin);
    tiles_arrive();
    for (int at = begin, next; at < keys.end; at = next) {
        const bool meets =
            mask_meets(p.mask, warp, me.b, me.h, warp_row, S::WARP_ROWS, at, at + S::COLUMNS);
        next = first_tile<S>(p, keys, me, at + S::COLUMNS);
        load_tile<S, S::COLUMNS>(v_tile, v, at);
        if (meets) {
            float s[S::R][S::C], unused[S::R][S::C];
            tile_dot<S>(s, q_tile + me.row * S::ROW, k_tile + me.tx * S::ROW);
            finish_scores<S>(s, unused, p, warp, me, at);
            softmax_step<S>(s, top, sum, out);
            put_scores<S>(p_lane + me.tx, s);
        }
        tiles_arrive(); /* v; and nobody reads k */
        if (next < keys.end) load_tile<S, S::COLUMNS>(k_tile, k, next);
        if (meets) tile_mix<S>(out, p_lane, v_tile + me.tx * S::RUN);
        tiles_arrive(); /* the next k; and nobody reads v */
    }
    softmax_end<S>(p, me, top, sum, out);
    store_rows<S>(head_rows(p.out, me, p.mask.Tq, p.D), me, 1, out);
}

/* ---- backward ---- */

enum { GROUP = BackwardTile<16>::WARP_ROWS }; /* keys of a group: a warp's */

#if !FLEX_RUNTIME /* the first passes are built with the program alone */

/* delta = rowsum(dout out). Eight lanes a row, rows in the order of memory. */
static __global__ void delta_kernel(const __grid_constant__ Flash p) {
    const int64_t i = global_thread() / 8;
    const int lane = (int)threadIdx.x % 8, h = (int)(i % p.H), t = (int)(i / p.H % p.mask.Tq);
    const int64_t b = i / p.H / p.mask.Tq, at = b * p.out.b + t * p.out.t + h * p.out.h;
    const float *x = p.dout.data + at, *y = p.out.data + at;
    float sum = 0;
    for (int d = lane; b < p.B && d < p.D; d += 8) sum += x[d] * y[d];
    for (int offset = 4; offset > 0; offset /= 2) sum += __shfl_xor_sync(FULL_WARP, sum, offset);
    if (b < p.B && lane == 0) p.delta[(b * p.H + h) * p.mask.Tq + t] = sum;
}

/* The queries from the first to the last that see a key of each group of GROUP keys, of all heads:
 * what a warp that owns these keys has to meet. One warp a group. */
static __global__ void queries_kernel(const __grid_constant__ Flash p) {
    const int group = (int)(global_thread() / WARP), key = group * GROUP, Tq = p.mask.Tq;
    if (key >= p.mask.Tk) return;
    Span s = {Tq, 0};
    if (p.mask.visit) {
        const int cells = (Tq + CELL - 1) / CELL, bit = key / CELL;
        for (int i = (int)threadIdx.x % WARP; i < cells * p.mask.plan_heads; i += WARP) {
            const int row = i % cells * CELL;
            if (p.mask.visit[(int64_t)i * p.mask.words + bit / 32] >> bit % 32 & 1)
                s = {min(s.first, row), max(s.end, min(row + CELL, Tq))};
        }
    } else {
        for (int i = (int)threadIdx.x % WARP; i < Tq; i += WARP) {
            const Interval x = interval_of(p.mask, i);
            if (x.lo < key + GROUP && key < x.hi) s = {min(s.first, i), max(s.end, i + 1)};
        }
    }
    s = {warp_least(s.first), -warp_least(-s.end)};
    if (threadIdx.x % WARP == 0) p.queries[group] = s;
}

#endif

/* What backward knows of a query: its log-sum-exp in units of log 2 (+inf, so that p = 0, where it
 * sees nothing or is none) and its delta. */
typedef struct Query {
    float lse, delta;
} Query;

static __device__ __forceinline__ Query query_of(const Flash &p, const Place &me, int i) {
    if (i >= p.mask.Tq) return {INFINITY, 0};
    const float lse = p.lse[me.head * p.mask.Tq + i];
    return {lse == -INFINITY ? INFINITY : lse * LOG2E, p.delta[me.head * p.mask.Tq + i]};
}

/* From s = k q' and dp = v dout' of own keys and the queries from `at` on: p in the place of s, ds
 * in the place of dp. */
template <typename S>
static __device__ __forceinline__ void keys_scores(float (&s)[S::R][S::C], float (&dp)[S::R][S::C],
                                                   const Flash &p, const Place &me, int at) {
#pragma unroll
    for (int j = 0; j < S::C; j++) {
        const int i = at + me.tx + 8 * j;
        const Query query = query_of(p, me, i);
        const Interval x = interval_of(p.mask, i);
#pragma unroll
        for (int r = 0; r < S::R; r++) {
            const int key = me.first + me.row + 4 * r;
            float slope;
            const float score = score_of(p, s[r][j], me, i, key, &slope);
            const bool sees = mask_sees(p.mask, x, me.b, me.h, i, key);
            s[r][j] = sees ? exp2_fast(score - query.lse) : 0;
            dp[r][j] = s[r][j] * (dp[r][j] - query.delta);
            if (FLEX_HAS_SCORE) dp[r][j] *= sees ? slope : 0;
        }
    }
}

/* dk and dv. The first tiles of keys, which a causal mask shows to most queries, first. */
template <typename S>
static __device__ __forceinline__ void keys_block(const Flash &p) {
    const Place me = place_of<S>(p, (int)blockIdx.x / (p.B * p.H));
    const Rows q = head_rows(p.q, me, p.mask.Tq, p.D), k = head_rows(p.k, me, p.mask.Tk, p.D),
               v = head_rows(p.v, me, p.mask.Tk, p.D), dout = head_rows(p.dout, me, p.mask.Tq, p.D);
    float *k_tile = (float *)shared_block(), *v_tile = k_tile + S::ROWS * S::ROW,
          *q_tile = v_tile + S::ROWS * S::ROW, *dout_tile = q_tile + S::COLUMNS * S::ROW,
          *scores = dout_tile + S::COLUMNS * S::ROW;
    float *p_lane = scores + me.row * S::SCORES;

    const int warp_key = me.first + me.warp_row;
    Span all = {p.mask.Tq, 0}, mine = all;
    for (int row = 0; row < S::ROWS && me.first + row < p.mask.Tk; row += GROUP) {
        const Span s = p.queries[(me.first + row) / GROUP];
        all = {min(all.first, s.first), max(all.end, s.end)};
        if (row == me.warp_row) mine = s;
    }
    const int begin = all.first / S::COLUMNS * S::COLUMNS;
    float dk[S::R][S::SUMS] = {}, dv[S::R][S::SUMS] = {};

    load_tile<S, S::ROWS>(k_tile, k, me.first);
    load_tile<S, S::ROWS>(v_tile, v, me.first);
    load_tile<S, S::COLUMNS>(q_tile, q, begin);
    tiles_arrive();
    for (int at = begin; at < all.end; at += S::COLUMNS) {
        const bool meets =
            span_meets(mine, at, at + S::COLUMNS) &&
            plan_meets(p.mask, me.b, me.h, at, S::COLUMNS, warp_key, warp_key + S::WARP_ROWS);
        float s[S::R][S::C], ds[S::R][S::C];
        load_tile<S, S::COLUMNS>(dout_tile, dout, at);
        if (meets) tile_dot<S>(s, k_tile + me.row * S::ROW, q_tile + me.tx * S::ROW);
        tiles_arrive(); /* dout */
        if (meets) {
            tile_dot<S>(ds, v_tile + me.row * S::ROW, dout_tile + me.tx * S::ROW);
            keys_scores<S>(s, ds, p, me, at);
            put_scores<S>(p_lane + me.tx, ds);
            __syncwarp();
            tile_mix<S>(dk, p_lane, q_tile + me.tx * S::RUN);
            __syncwarp();
            put_scores<S>(p_lane + me.tx, s);
        }
        __syncthreads(); /* nobody reads q */
        if (at + S::COLUMNS < all.end) load_tile<S, S::COLUMNS>(q_tile, q, at + S::COLUMNS);
        if (meets) tile_mix<S>(dv, p_lane, dout_tile + me.tx * S::RUN);
        tiles_arrive(); /* the next q; and nobody reads dout */
    }
    if (p.dk.data) store_rows<S>(head_rows(p.dk, me, p.mask.Tk, p.D), me, p.scale, dk);
    if (p.dv.data) store_rows<S>(head_rows(p.dv, me, p.mask.Tk, p.D), me, 1, dv);
}

/* dq, in forward's order. */
template <typename S>
static __device__ __forceinline__ void dq_block(const Flash &p) {
    const Place me = place_of<S>(p, (int)(gridDim.x - 1 - blockIdx.x) / (p.B * p.H));
    const Rows q = head_rows(p.q, me, p.mask.Tq, p.D), k = head_rows(p.k, me, p.mask.Tk, p.D),
               v = head_rows(p.v, me, p.mask.Tk, p.D), dout = head_rows(p.dout, me, p.mask.Tq, p.D);
    float *q_tile = (float *)shared_block(), *dout_tile = q_tile + S::ROWS * S::ROW,
          *k_tile = dout_tile + S::ROWS * S::ROW, *v_tile = k_tile + S::COLUMNS * S::ROW,
          *scores = v_tile + S::COLUMNS * S::ROW;
    float *ds_lane = scores + me.row * S::SCORES;

    const int warp_row = me.first + me.warp_row;
    const Limits keys = rows_see(p, me, me.first, S::ROWS),
                 warp = rows_see(p, me, warp_row, S::WARP_ROWS);
    const int begin = first_tile<S>(p, keys, me, keys.first);
    float dq[S::R][S::SUMS] = {};
    Query query[S::R];
#pragma unroll
    for (int i = 0; i < S::R; i++) query[i] = query_of(p, me, me.first + me.row + 4 * i);

    load_tile<S, S::ROWS>(q_tile, q, me.first);
    load_tile<S, S::ROWS>(dout_tile, dout, me.first);
    load_tile<S, S::COLUMNS>(v_tile, v, begin);
    tiles_arrive();
    for (int at = begin, next; at < keys.end; at = next) {
        const bool meets =
            mask_meets(p.mask, warp, me.b, me.h, warp_row, S::WARP_ROWS, at, at + S::COLUMNS);
        float s[S::R][S::C], ds[S::R][S::C], slope[S::R][S::C];
        next = first_tile<S>(p, keys, me, at + S::COLUMNS);
        load_tile<S, S::COLUMNS>(k_tile, k, at);
        if (meets) tile_dot<S>(ds, dout_tile + me.row * S::ROW, v_tile + me.tx * S::ROW);
        tiles_arrive(); /* k; and nobody reads v */
        if (next < keys.end) load_tile<S, S::COLUMNS>(v_tile, v, next);
        if (meets) {
            tile_dot<S>(s, q_tile + me.row * S::ROW, k_tile + me.tx * S::ROW);
            finish_scores<S>(s, slope, p, warp, me, at);
#pragma unroll
            for (int i = 0; i < S::R; i++)
#pragma unroll
                for (int j = 0; j < S::C; j++)
                    ds[i][j] = exp2_fast(s[i][j] - query[i].lse) * (ds[i][j] - query[i].delta) *
                               slope[i][j];
            put_scores<S>(ds_lane + me.tx, ds);
            __syncwarp();
            tile_mix<S>(dq, ds_lane, k_tile + me.tx * S::RUN);
        }
        tiles_arrive(); /* the next v; and nobody reads k */
    }
    store_rows<S>(head_rows(p.dq, me, p.mask.Tq, p.D), me, p.scale, dq);
}

/* ---- kernels ---- */

#if FLEX_RUNTIME
#define FLASH_KERNEL(name, Shape)                                                               \
    extern "C" __global__ void __launch_bounds__(Shape<FLEX_D>::THREADS, Shape<FLEX_D>::BLOCKS) \
        flex_##name(const __grid_constant__ Flash p) {                                          \
        name##_block<Shape<FLEX_D>>(p);                                                         \
    }
#else
#define FLASH_KERNEL(name, Shape)                                                   \
    template <int DP>                                                               \
    static __global__ void __launch_bounds__(Shape<DP>::THREADS, Shape<DP>::BLOCKS) \
        name##_kernel(const __grid_constant__ Flash p) {                            \
        name##_block<Shape<DP>>(p);                                                 \
    }
#endif
FLASH_KERNEL(forward, ForwardTile)
FLASH_KERNEL(keys, BackwardTile)
FLASH_KERNEL(dq, BackwardTile)

#endif
