/* What the bf16 backwards share, the portable and Hopper's: how the work is cut into blocks, what
 * an element asks of the mask and the score, and the sums of dq. Device code alone. */
#ifndef KERNELS_CUDA_FLASH_BACKWARD_CUH
#define KERNELS_CUDA_FLASH_BACKWARD_CUH

#include "kernels/cuda/flash_tile.cuh"

enum {
    KEYS = 128,    /* of a tile */
    THREADS = 256, /* of a block of the portable kernel, and of the one that adds */
    BLOCKS = 330, /* as many at least, where there are tiles; not by the device: nor are the bits */
    MAX_SUMS = 1 << 29 /* bytes of sums beyond which more chunks are not made */
};

/* What backward is told of a row of queries, 16 bytes: log-sum-exp in units of log 2 (+inf for a
 * query that sees nothing or does not exist, so that p = 0), and delta. */
typedef struct RowSums {
    float lse, delta;
} RowSums;

/* How the work is cut, and where things lie in the workspace. */
typedef struct Cut {
    int heads, tile;     /* B H; queries of a tile */
    int d_pad;           /* 32, 64, 96 or 128 */
    int n_q, n_k, q_pad; /* tiles of queries and of keys; rows of n_q tiles */
    int chunk, chunks;   /* tiles of keys of a chunk; chunks of a head */
    int width;           /* tiles of queries that a chunk sees at most */
    size_t limits, intervals, rows, starts, sums, total;
} Cut;

typedef struct Backward {
    FlashView q, k, v, out, dout, dq, dk, dv;
    const float *lse;
    FlashMask mask;
    Limits *limits;      /* (n_q) of each tile of queries, over all heads */
    Interval *intervals; /* (q_pad) */
    RowSums *rows;       /* (heads, q_pad) */
    int *starts;         /* (heads, chunks): the first tile of queries that sees the chunk */
    Pack<float> *sums;   /* (heads, chunks, width, tile d_pad / 4), in the order of the threads */
    int B, H, D;
    float scale;
    Cut cut;
} Backward;

/* ---- elements ---- */

/* A warp's work on a tile of queries: head h of batch b, the queries from `row` on, the lane's
 * first key, and what is known of the queries. */
typedef struct Meeting {
    int b, h, row, key;
    const RowSums *sums;
    const Interval *intervals;
} Meeting;

/* s' = k q' becomes the modified score in units of log 2, and dp' becomes (dp' - delta) times the
 * derivative of that by the score. */
template <int ROWS>
static __device__ __forceinline__ void modify(float s[ROWS / 8][4], float dp[ROWS / 8][4],
                                              const Backward &p, const Meeting &me) {
#pragma unroll
    for (int n = 0; n < ROWS / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int i = 8 * n + threadIdx.x % 4 * 2 + e % 2, key = me.key + e / 2 * 8;
            const float score = p.scale * s[n][e];
            s[n][e] = LOG2E * mask_score(p.mask, score, me.b, me.h, me.row + i, key);
            dp[n][e] = (dp[n][e] - me.sums[i].delta) *
                       mask_slope(p.mask, score, me.b, me.h, me.row + i, key);
        }
}

/* s' = -inf where the query does not see the key; there a modified score's slope may be anything.
 */
template <int ROWS>
static __device__ __forceinline__ void hide(float s[ROWS / 8][4], float dp[ROWS / 8][4],
                                            const Backward &p, const Meeting &me) {
#pragma unroll
    for (int n = 0; n < ROWS / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int i = 8 * n + threadIdx.x % 4 * 2 + e % 2, key = me.key + e / 2 * 8;
            if (mask_sees(p.mask, me.intervals[i], me.b, me.h, me.row + i, key)) continue;
            s[n][e] = -INFINITY;
            if (FLEX_HAS_SCORE) dp[n][e] = 0;
        }
}

/* ---- the sums of dq ---- */

/* Warps divide dq (ROWS, D) so: 16 rows and COLS columns each. */
template <int D, int ROWS>
struct QuerySums {
    static constexpr int DOWN = ROWS / 16, COLS = D * DOWN / 8;
};

/* A thread's sums of a tile: packs 128 apart from here on, those of the second 128 threads after
 * all of the first. */
enum { SUMS_STEP = THREADS / 2 };
template <int N>
static __device__ __forceinline__ int sums_at() {
    return threadIdx.x / SUMS_STEP * (N * SUMS_STEP) + threadIdx.x % SUMS_STEP;
}

/* dq = scale (the chunks' sums, in their order); a block a tile of queries. */
template <int D, int ROWS>
static __global__ void __launch_bounds__(THREADS) add_kernel(Backward p) {
    constexpr int DOWN = QuerySums<D, ROWS>::DOWN, N = QuerySums<D, ROWS>::COLS / 8;
    __shared__ __align__(16) bf16 out[ROWS * D];
    const Cut &cut = p.cut;
    const int tile = blockIdx.x % cut.n_q, head = blockIdx.x / cut.n_q, warp = threadIdx.x / WARP;
    const Limits l = p.limits[tile];
    const int first = l.first / KEYS / cut.chunk, end = (l.end - 1) / KEYS / cut.chunk + 1;
    float dq[N][4] = {};
    for (int chunk = l.end ? first : end; chunk < end; chunk++) {
        const int64_t slot = (int64_t)head * cut.chunks + chunk;
        const int keys = chunk * cut.chunk * KEYS;
        if (p.mask.visit && !plan_any(p.mask, p.mask.visit, 0, head / p.H, head % p.H, tile * ROWS,
                                      ROWS, keys, keys + cut.chunk * KEYS))
            continue;
        const Pack<float> *sums =
            p.sums + (slot * cut.width + tile - p.starts[slot]) * (ROWS * D / 4) + sums_at<N>();
#pragma unroll
        for (int n = 0; n < N; n++) {
            const Pack<float> x = load_pack(sums[n * SUMS_STEP].at);
#pragma unroll
            for (int e = 0; e < 4; e++) dq[n][e] += x.at[e];
        }
    }
    tile_put<D, N>(out, warp % DOWN * 16, warp / DOWN * 8 * N, dq, p.scale, p.scale);
    __syncthreads();
    tile_store<D>(head_rows(p.dq, head / p.H, head % p.H, p.mask.Tq, p.D),
                  tile * ROWS + warp * (ROWS / 8), out, warp * (ROWS / 8), ROWS / 8);
}

#endif
