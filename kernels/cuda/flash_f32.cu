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
#include "kernels/cuda/flash_f32.cuh"

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
static __device__ __forceinline__ void softmax_end(const AttnArgs &a, const Place &me,
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
        if (me.tx == 0 && row < a.Tq)
            ((float *)a.lse)[me.head * a.Tq + row] = top[i] * LN2 + logf(total);
    }
}

/* The last tiles of queries first: under a causal mask they see most. */
template <typename S>
static __global__ void __launch_bounds__(S::THREADS, S::BLOCKS)
    forward_kernel(AttnArgs a, CudaMask m) {
    const Place me = place_of<S>(a, (int)(gridDim.x - 1 - blockIdx.x) / (a.B * a.H));
    const Rows q = head_rows(a.q, a.qs, me, a.Tq, a.D), k = head_rows(a.k, a.ks, me, a.Tk, a.D),
               v = head_rows(a.v, a.vs, me, a.Tk, a.D);
    float *q_tile = (float *)shared_block(), *k_tile = q_tile + S::ROWS * S::ROW,
          *v_tile = k_tile + S::COLUMNS * S::ROW, *p_tile = v_tile + S::COLUMNS * S::ROW;
    float *p_lane = p_tile + me.row * S::SCORES;

    const Span keys = rows_see(a, m, me.first, S::ROWS).any;
    const Seen seen = rows_see(a, m, me.first + me.warp_row, S::WARP_ROWS);
    const int begin = keys.first / S::COLUMNS * S::COLUMNS;
    float out[S::R][S::SUMS] = {}, top[S::R], sum[S::R] = {};
#pragma unroll
    for (int i = 0; i < S::R; i++) top[i] = -INFINITY;

    load_tile<S, S::ROWS>(q_tile, q, me.first);
    load_tile<S, S::COLUMNS>(k_tile, k, begin);
    tiles_arrive();
    for (int at = begin; at < keys.end; at += S::COLUMNS) {
        const bool meets = span_meets(seen.any, at, at + S::COLUMNS);
        load_tile<S, S::COLUMNS>(v_tile, v, at);
        if (meets) {
            float s[S::R][S::C];
            tile_dot<S>(s, q_tile + me.row * S::ROW, k_tile + me.tx * S::ROW);
            finish_scores<S>(s, a, m, seen.all, me, at);
            softmax_step<S>(s, top, sum, out);
            put_scores<S>(p_lane + me.tx, s);
        }
        tiles_arrive(); /* v; and nobody reads k */
        if (at + S::COLUMNS < keys.end) load_tile<S, S::COLUMNS>(k_tile, k, at + S::COLUMNS);
        if (meets) tile_mix<S>(out, p_lane, v_tile + me.tx * S::RUN);
        tiles_arrive(); /* the next k; and nobody reads v */
    }
    softmax_end<S>(a, me, top, sum, out);
    store_rows<S>(head_rows(a.out, a.os, me, a.Tq, a.D), me, 1, out);
}

/* ---- backward ---- */

/* delta (B, H, Tq) = rowsum(dout out). Eight lanes a row, rows in the order of memory. */
static __global__ void delta_kernel(AttnArgs a, float *delta) {
    const int64_t i = global_thread() / 8;
    const int lane = (int)threadIdx.x % 8, h = (int)(i % a.H), t = (int)(i / a.H % a.Tq);
    const int64_t b = i / a.H / a.Tq, at = b * a.os.b + t * a.os.t + h * a.os.h;
    const float *x = (const float *)a.dout + at, *y = (const float *)a.out + at;
    float sum = 0;
    for (int d = lane; b < a.B && d < a.D; d += 8) sum += x[d] * y[d];
    for (int offset = 4; offset > 0; offset /= 2) sum += __shfl_xor_sync(FULL_WARP, sum, offset);
    if (b < a.B && lane == 0) delta[(b * a.H + h) * a.Tq + t] = sum;
}

/* The queries from the first to the last that see a key of each group of GROUP keys: what a warp
 * that owns these keys has to meet. One warp a group. */
enum { GROUP = BackwardTile<16>::WARP_ROWS };

static __global__ void queries_kernel(AttnArgs a, CudaMask m, Span *queries) {
    const int group = (int)(global_thread() / WARP);
    if (group * GROUP >= a.Tk) return;
    Span s = {a.Tq, 0};
    for (int i = (int)threadIdx.x % WARP; i < a.Tq; i += WARP)
        if (span_meets(keys_of(a, m, i), group * GROUP, (group + 1) * GROUP))
            s = {min(s.first, i), max(s.end, i + 1)};
    s = {warp_least(s.first), -warp_least(-s.end)};
    if (threadIdx.x % WARP == 0) queries[group] = s;
}

/* What backward knows of a query: its log-sum-exp in units of log 2 (+inf, so that p = 0, where it
 * sees nothing or is none) and its delta. */
typedef struct Query {
    float lse, delta;
} Query;

static __device__ __forceinline__ Query query_of(const AttnArgs &a, const float *delta,
                                                 const Place &me, int i) {
    if (i >= a.Tq) return {INFINITY, 0};
    const float lse = ((const float *)a.lse)[me.head * a.Tq + i];
    return {lse == -INFINITY ? INFINITY : lse * LOG2E, delta[me.head * a.Tq + i]};
}

/* From s = k q' and dp = v dout' of own keys and the queries from `at` on: p in the place of s, ds
 * in the place of dp. */
template <typename S>
static __device__ __forceinline__ void keys_scores(float (&s)[S::R][S::C], float (&dp)[S::R][S::C],
                                                   const AttnArgs &a, const CudaMask &m,
                                                   const float *delta, const Place &me, int at) {
    const float factor = a.scale * LOG2E;
#pragma unroll
    for (int j = 0; j < S::C; j++) {
        const int i = at + me.tx + 8 * j;
        const Query query = query_of(a, delta, me, i);
        const Span keys = keys_of(a, m, min(i, a.Tq - 1));
#pragma unroll
        for (int r = 0; r < S::R; r++) {
            const int key = me.first + me.row + 4 * r;
            const bool sees = keys.first <= key && key < keys.end;
            s[r][j] = sees ? exp2_fast(s[r][j] * factor - query.lse) : 0;
            dp[r][j] = s[r][j] * (dp[r][j] - query.delta);
        }
    }
}

/* dk and dv. The first tiles of keys, which a causal mask shows to most queries, first. */
template <typename S>
static __global__ void __launch_bounds__(S::THREADS, S::BLOCKS)
    keys_kernel(AttnArgs a, CudaMask m, const float *delta, const Span *queries) {
    const Place me = place_of<S>(a, (int)blockIdx.x / (a.B * a.H));
    const Rows q = head_rows(a.q, a.qs, me, a.Tq, a.D), k = head_rows(a.k, a.ks, me, a.Tk, a.D),
               v = head_rows(a.v, a.vs, me, a.Tk, a.D),
               dout = head_rows(a.dout, a.os, me, a.Tq, a.D);
    float *k_tile = (float *)shared_block(), *v_tile = k_tile + S::ROWS * S::ROW,
          *q_tile = v_tile + S::ROWS * S::ROW, *dout_tile = q_tile + S::COLUMNS * S::ROW,
          *scores = dout_tile + S::COLUMNS * S::ROW;
    float *p_lane = scores + me.row * S::SCORES;

    Span all = {a.Tq, 0}, mine = all;
    for (int row = 0; row < S::ROWS && me.first + row < a.Tk; row += GROUP) {
        const Span s = queries[(me.first + row) / GROUP];
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
        const bool meets = span_meets(mine, at, at + S::COLUMNS);
        float p[S::R][S::C], ds[S::R][S::C];
        load_tile<S, S::COLUMNS>(dout_tile, dout, at);
        if (meets) tile_dot<S>(p, k_tile + me.row * S::ROW, q_tile + me.tx * S::ROW);
        tiles_arrive(); /* dout */
        if (meets) {
            tile_dot<S>(ds, v_tile + me.row * S::ROW, dout_tile + me.tx * S::ROW);
            keys_scores<S>(p, ds, a, m, delta, me, at);
            put_scores<S>(p_lane + me.tx, ds);
            __syncwarp();
            tile_mix<S>(dk, p_lane, q_tile + me.tx * S::RUN);
            __syncwarp();
            put_scores<S>(p_lane + me.tx, p);
        }
        __syncthreads(); /* nobody reads q */
        if (at + S::COLUMNS < all.end) load_tile<S, S::COLUMNS>(q_tile, q, at + S::COLUMNS);
        if (meets) tile_mix<S>(dv, p_lane, dout_tile + me.tx * S::RUN);
        tiles_arrive(); /* the next q; and nobody reads dout */
    }
    if (a.dk) store_rows<S>(head_rows(a.dk, a.ks, me, a.Tk, a.D), me, a.scale, dk);
    if (a.dv) store_rows<S>(head_rows(a.dv, a.vs, me, a.Tk, a.D), me, 1, dv);
}

/* dq, in forward's order. */
template <typename S>
static __global__ void __launch_bounds__(S::THREADS, S::BLOCKS)
    dq_kernel(AttnArgs a, CudaMask m, const float *delta) {
    const Place me = place_of<S>(a, (int)(gridDim.x - 1 - blockIdx.x) / (a.B * a.H));
    const Rows q = head_rows(a.q, a.qs, me, a.Tq, a.D), k = head_rows(a.k, a.ks, me, a.Tk, a.D),
               v = head_rows(a.v, a.vs, me, a.Tk, a.D),
               dout = head_rows(a.dout, a.os, me, a.Tq, a.D);
    float *q_tile = (float *)shared_block(), *dout_tile = q_tile + S::ROWS * S::ROW,
          *k_tile = dout_tile + S::ROWS * S::ROW, *v_tile = k_tile + S::COLUMNS * S::ROW,
          *scores = v_tile + S::COLUMNS * S::ROW;
    float *ds_lane = scores + me.row * S::SCORES;

    const Span keys = rows_see(a, m, me.first, S::ROWS).any;
    const Seen seen = rows_see(a, m, me.first + me.warp_row, S::WARP_ROWS);
    const int begin = keys.first / S::COLUMNS * S::COLUMNS;
    float dq[S::R][S::SUMS] = {};
    Query query[S::R];
#pragma unroll
    for (int i = 0; i < S::R; i++) query[i] = query_of(a, delta, me, me.first + me.row + 4 * i);

    load_tile<S, S::ROWS>(q_tile, q, me.first);
    load_tile<S, S::ROWS>(dout_tile, dout, me.first);
    load_tile<S, S::COLUMNS>(v_tile, v, begin);
    tiles_arrive();
    for (int at = begin; at < keys.end; at += S::COLUMNS) {
        const bool meets = span_meets(seen.any, at, at + S::COLUMNS);
        float s[S::R][S::C], ds[S::R][S::C];
        load_tile<S, S::COLUMNS>(k_tile, k, at);
        if (meets) tile_dot<S>(ds, dout_tile + me.row * S::ROW, v_tile + me.tx * S::ROW);
        tiles_arrive(); /* k; and nobody reads v */
        if (at + S::COLUMNS < keys.end) load_tile<S, S::COLUMNS>(v_tile, v, at + S::COLUMNS);
        if (meets) {
            tile_dot<S>(s, q_tile + me.row * S::ROW, k_tile + me.tx * S::ROW);
            finish_scores<S>(s, a, m, seen.all, me, at);
#pragma unroll
            for (int i = 0; i < S::R; i++)
#pragma unroll
                for (int j = 0; j < S::C; j++)
                    ds[i][j] = exp2_fast(s[i][j] - query[i].lse) * (ds[i][j] - query[i].delta);
            put_scores<S>(ds_lane + me.tx, ds);
            __syncwarp();
            tile_mix<S>(dq, ds_lane, k_tile + me.tx * S::RUN);
        }
        tiles_arrive(); /* the next v; and nobody reads k */
    }
    store_rows<S>(head_rows(a.dq, a.qs, me, a.Tq, a.D), me, a.scale, dq);
}

/* ---- launches ---- */

static unsigned blocks_of(const AttnArgs *a, int T, int rows) {
    return (unsigned)(a->B * a->H) * (unsigned)((T + rows - 1) / rows);
}

/* own, other: how many tiles a block holds of each side. */
template <typename S>
static size_t shared_of(int own, int other) {
    return sizeof(float) *
           (size_t)((own * S::ROWS + other * S::COLUMNS) * S::ROW + S::ROWS * S::SCORES);
}

template <typename S>
static void forward(Ctx *c, const AttnArgs *a, CudaMask m) {
    launch(c, forward_kernel<S>, dim3(blocks_of(a, a->Tq, S::ROWS)), dim3(S::THREADS),
           shared_of<S>(1, 2), *a, m);
}

void flash_forward_f32(Ctx *c, const AttnArgs *a, CudaMask m) {
    if (a->D <= 16)
        forward<ForwardTile<16>>(c, a, m);
    else if (a->D <= 32)
        forward<ForwardTile<32>>(c, a, m);
    else if (a->D <= 64)
        forward<ForwardTile<64>>(c, a, m);
    else
        forward<ForwardTile<128>>(c, a, m);
}

static int64_t delta_count(const AttnArgs *a) { return (int64_t)a->B * a->H * a->Tq; }
static int group_count(const AttnArgs *a) { return (a->Tk + GROUP - 1) / GROUP; }

size_t flash_workspace_f32(const AttnArgs *a, bool backward) {
    if (!backward) return 0;
    return sizeof(float) * (size_t)delta_count(a) + sizeof(Span) * (size_t)group_count(a);
}

template <typename S>
static void backward(Ctx *c, const AttnArgs *a, CudaMask m, const float *delta,
                     const Span *queries) {
    const size_t shared = shared_of<S>(2, 2);
    if (a->dk || a->dv)
        launch(c, keys_kernel<S>, dim3(blocks_of(a, a->Tk, S::ROWS)), dim3(S::THREADS), shared, *a,
               m, delta, queries);
    if (a->dq)
        launch(c, dq_kernel<S>, dim3(blocks_of(a, a->Tq, S::ROWS)), dim3(S::THREADS), shared, *a, m,
               delta);
}

void flash_backward_f32(Ctx *c, const AttnArgs *a, CudaMask m) {
    Span *queries = (Span *)a->workspace;
    float *delta = (float *)(queries + group_count(a));
    launch(c, delta_kernel, grid_for(delta_count(a) * 8), dim3(BLOCK), 0, *a, delta);
    launch(c, queries_kernel, grid_for((int64_t)group_count(a) * WARP), dim3(BLOCK), 0, *a, m,
           queries);
    if (a->D <= 16)
        backward<BackwardTile<16>>(c, a, m, delta, queries);
    else if (a->D <= 32)
        backward<BackwardTile<32>>(c, a, m, delta, queries);
    else if (a->D <= 64)
        backward<BackwardTile<64>>(c, a, m, delta, queries);
    else
        backward<BackwardTile<128>>(c, a, m, delta, queries);
}
