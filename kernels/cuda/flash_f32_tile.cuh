/* Tiles of fused attention in float32: what the kernels of flash_f32.cuh are made of.
 *
 * A block owns a tile of rows (queries, or keys in the backward of keys) and meets the tiles of the
 * other side, whose rows are the columns of the scores, one after the other. Two products over
 * tiles in shared memory do all the work:
 *
 *   tile_dot    (own rows, D) x (other rows, D)' -> scores, in registers
 *   tile_mix    scores, through shared memory, x (other rows, D) -> sums, in registers
 *
 * A warp owns 4 R rows and all columns. Its lane 8 y + x has rows y, y + 4, .. (R of them) and
 * columns x, x + 8, .. (C). A step of tile_dot is R + C loads of 16 bytes for 4 R C multiply-adds a
 * lane, one of tile_mix R + SUMS for 4 R SUMS. Rows of tiles are padded by 16 bytes, rows of scores
 * by 32, so the addresses that a warp asks for at once lie in different banks: the 8 of tile_dot's
 * columns or of tile_mix's run along D, the 4 of its rows.
 *
 * B batch, H heads, T tokens, D head size, padded with zeros to DP = 16, 32, 64 or 128. */
#ifndef KERNELS_CUDA_FLASH_F32_TILE_CUH
#define KERNELS_CUDA_FLASH_F32_TILE_CUH

#include "kernels/cuda/flash_mask.cuh"
#include "kernels/cuda/ptx.cuh"

/* A tile's shape: WARPS 4 R own rows, 8 C other rows. */
template <int DIM, int ROWS_A_LANE, int COLUMNS_A_LANE>
struct Tile {
    enum {
        DP = DIM,
        R = ROWS_A_LANE,
        C = COLUMNS_A_LANE,
        WARPS = DP <= 64 ? 4 : 2,
        THREADS = WARPS * WARP,
        WARP_ROWS = 4 * R,
        ROWS = WARPS * WARP_ROWS,
        COLUMNS = 8 * C,
        SUMS = DP / 8,                    /* columns of D that a lane sums */
        RUN = SUMS < 4 ? SUMS : 4,        /* of these, next to each other */
        BLOCKS = DP > 64 || R < 8 ? 2 : 3 /* on an SM: what registers may cost */
    };
    enum { ROW = DP + 4, SCORES = COLUMNS + 8 }; /* floats from row to row */
};

template <int DP>
using ForwardTile = Tile<DP, 8, 4>;
template <int DP>
using BackwardTile = Tile<DP, 4, DP <= 64 ? 8 : 4>;

/* A (B, T, H, D) view; data NULL: not wanted. */
typedef struct View {
    float *data;
    int64_t b, t, h;
} View;

/* Positions first <= i < end. */
typedef struct Span {
    int first, end;
} Span;

/* What the kernels are told. */
typedef struct Flash {
    View q, k, v, out, dout, dq, dk, dv;
    float *lse, *delta; /* (B, H, Tq) */
    Span *queries;      /* see queries_kernel */
    FlashMask mask;
    int B, H, D;
    float scale, factor; /* factor: to scores in units of log 2, scale log2(e) */
} Flash;

/* The running thread and its block: head (b, h), own rows from `first` on; of these the warp's from
 * `warp_row` on, the lane's are row, row + 4, .., counted from first; tx: its first column. */
typedef struct Place {
    int b, h, first, warp_row, row, tx;
    int64_t head;
} Place;

/* Blocks: (tile of own rows, b, h). */
template <typename S>
static __device__ __forceinline__ Place place_of(const Flash &p, int tile) {
    const int head = (int)blockIdx.x % (p.B * p.H), lane = (int)threadIdx.x % WARP;
    const int warp_row = (int)threadIdx.x / WARP * S::WARP_ROWS;
    return {head / p.H, head % p.H, tile * S::ROWS, warp_row, warp_row + lane / 8, lane % 8, head};
}

/* ---- rows in memory ---- */

/* One head's rows of a tensor. */
typedef struct Rows {
    float *at; /* row i at at + i step */
    int64_t step;
    int n, D;
    bool packs; /* 16 bytes at a time */
} Rows;

static __device__ __forceinline__ Rows head_rows(const View &x, const Place &me, int n, int D) {
    float *at = x.data + me.b * x.b + me.h * x.h;
    const bool packs = ((uintptr_t)at | (uintptr_t)(x.t * 4) | (uintptr_t)(D * 4)) % 16 == 0;
    return {at, x.t, n, D, packs};
}

/* Starts the copy of rows first .. first + COUNT - 1 into a tile, zeros for what is not there, as a
 * group of its own. */
template <typename S, int COUNT>
static __device__ __forceinline__ void load_tile(float *tile, const Rows &x, int first) {
    if (x.packs) {
        enum { PACKS = S::DP / 4 };
#pragma unroll 1
        for (int i = (int)threadIdx.x; i < COUNT * PACKS; i += S::THREADS) {
            const int row = i / PACKS, d = i % PACKS * 4;
            const bool real = first + row < x.n && d < x.D;
            cp_async_16(tile + row * S::ROW + d, real ? x.at + (first + row) * x.step + d : x.at,
                        real);
        }
    } else {
#pragma unroll 1
        for (int i = (int)threadIdx.x; i < COUNT * S::DP; i += S::THREADS) {
            const int row = i / S::DP, d = i % S::DP;
            const bool real = first + row < x.n && d < x.D;
            tile[row * S::ROW + d] = real ? x.at[(first + row) * x.step + d] : 0.0f;
        }
    }
    cp_async_commit();
}

/* What this thread and, after a barrier, the block has started to copy is there. */
static __device__ __forceinline__ void tiles_arrive() {
    cp_async_wait<0>();
    __syncthreads();
}

/* The lane's sums times factor to its rows of x. */
template <typename S>
static __device__ __forceinline__ void store_rows(const Rows &x, const Place &me, float factor,
                                                  const float (&sum)[S::R][S::SUMS]) {
#pragma unroll
    for (int i = 0; i < S::R; i++) {
        const int row = me.first + me.row + 4 * i;
        if (row >= x.n) break;
        float *to = x.at + row * x.step;
#pragma unroll
        for (int n = 0; n < S::SUMS; n += S::RUN) {
            const int d = 8 * n + S::RUN * me.tx;
            Pack<float> y;
#pragma unroll
            for (int e = 0; e < S::RUN; e++) y.at[e] = sum[i][n + e] * factor;
            if (S::RUN == 4 && x.packs) {
                if (d < x.D) *(Pack<float> *)(to + d) = y;
            } else {
#pragma unroll
                for (int e = 0; e < S::RUN; e++)
                    if (d + e < x.D) to[d + e] = y.at[e];
            }
        }
    }
}

/* ---- products of tiles ---- */

/* s = a b', a: the lane's first own row, b: its first other row. */
template <typename S>
static __device__ __forceinline__ void tile_dot(float (&s)[S::R][S::C], const float *a,
                                                const float *b) {
#pragma unroll
    for (int i = 0; i < S::R; i++)
#pragma unroll
        for (int j = 0; j < S::C; j++) s[i][j] = 0;
#pragma unroll 1
    for (int d = 0; d < S::DP; d += 4) {
        Pack<float> y[S::C];
#pragma unroll
        for (int j = 0; j < S::C; j++) y[j] = load_pack(b + 8 * j * S::ROW + d);
#pragma unroll
        for (int i = 0; i < S::R; i++) {
            const Pack<float> x = load_pack(a + 4 * i * S::ROW + d);
#pragma unroll
            for (int e = 0; e < 4; e++)
#pragma unroll
                for (int j = 0; j < S::C; j++) s[i][j] += x.at[e] * y[j].at[e];
        }
    }
}

/* The lane's scores to where tile_mix reads them: p is its first row and column. Rows of a warp are
 * read by that warp alone. */
template <typename S>
static __device__ __forceinline__ void put_scores(float *p, const float (&s)[S::R][S::C]) {
#pragma unroll
    for (int i = 0; i < S::R; i++)
#pragma unroll
        for (int j = 0; j < S::C; j++) p[4 * i * S::SCORES + 8 * j] = s[i][j];
}

/* sum += p b, p: the lane's first row of scores, b: the other rows from the lane's first column. */
template <typename S>
static __device__ __forceinline__ void tile_mix(float (&sum)[S::R][S::SUMS], const float *p,
                                                const float *b) {
    struct alignas(4 * S::RUN) Run {
        float at[S::RUN];
    };
#pragma unroll 1
    for (int j = 0; j < S::COLUMNS; j += 4) {
        Pack<float> x[S::R];
#pragma unroll
        for (int i = 0; i < S::R; i++) x[i] = load_pack(p + 4 * i * S::SCORES + j);
#pragma unroll
        for (int e = 0; e < 4; e++)
#pragma unroll
            for (int n = 0; n < S::SUMS; n += S::RUN) {
                const Run y = *(const Run *)(b + (j + e) * S::ROW + 8 * n);
#pragma unroll
                for (int i = 0; i < S::R; i++)
#pragma unroll
                    for (int w = 0; w < S::RUN; w++) sum[i][n + w] += x[i].at[e] * y.at[w];
            }
    }
}

/* ---- masks and scores ---- */

static __device__ __forceinline__ bool span_meets(Span s, int first, int end) {
    return first < s.end && s.first < end;
}

static __device__ __forceinline__ int warp_least(int x) {
    for (int offset = WARP / 2; offset > 0; offset /= 2)
        x = min(x, __shfl_xor_sync(FULL_WARP, x, offset));
    return x;
}

/* What the queries first .. first + n - 1 see, as far as there are such; by a warp. */
static __device__ Limits rows_see(const Flash &p, const Place &me, int first, int n) {
    if (FLEX_RUNTIME && p.mask.visit) return mask_limits(p.mask, me.b, me.h, NULL, first, n);
    Limits l = {INT_MAX, 0, 0, INT_MAX};
    for (int i = first + (int)threadIdx.x % WARP; i < min(first + n, p.mask.Tq); i += WARP) {
        const Interval x = interval_of(p.mask, i);
        l = {min(l.first, x.lo), max(l.end, x.hi), max(l.full_first, x.lo), min(l.full_end, x.hi)};
    }
    return warp_limits(l);
}

/* The score of a product of a query and a key, in units of log 2; *slope: the derivative, in
 * natural units, of what it became by what it was. */
static __device__ __forceinline__ float score_of(const Flash &p, float dot, const Place &me,
                                                 int row, int key, float *slope) {
    *slope = 1;
    if (!FLEX_HAS_SCORE) return dot * p.factor;
    *slope = mask_slope(p.mask, p.scale * dot, me.b, me.h, row, key);
    return LOG2E * mask_score(p.mask, p.scale * dot, me.b, me.h, row, key);
}

/* s, products of own queries and the keys from `at` on, becomes scores in units of log 2, -inf
 * where a query does not see the key; slope: of each, as score_of has it. warp: what the warp's
 * queries see. */
template <typename S>
static __device__ __forceinline__ void finish_scores(float (&s)[S::R][S::C],
                                                     float (&slope)[S::R][S::C], const Flash &p,
                                                     const Limits &warp, const Place &me, int at) {
    const bool full = mask_full(p.mask, warp, me.b, me.h, me.first + me.warp_row, S::WARP_ROWS, at,
                                at + S::COLUMNS);
#pragma unroll
    for (int i = 0; i < S::R; i++) {
        const int row = me.first + me.row + 4 * i;
        Interval x = {0, 0};
        if (!full) x = interval_of(p.mask, row);
#pragma unroll
        for (int j = 0; j < S::C; j++) {
            const int key = at + me.tx + 8 * j;
            const float score = score_of(p, s[i][j], me, row, key, &slope[i][j]);
            const bool sees = full || mask_sees(p.mask, x, me.b, me.h, row, key);
            s[i][j] = sees ? score : -INFINITY;
            if (FLEX_HAS_SCORE && !sees) slope[i][j] = 0;
        }
    }
}

#endif
