/* Norms of rows. Forward: a few lanes or a warp take a row and keep it in registers between the
 * pass that sums and the one that writes. Backward, where a weight is shared by many rows: a block
 * takes a run of rows, a lane the same columns of each, and so has their sums in registers. */
#ifndef KERNELS_CUDA_NORM_CUH
#define KERNELS_CUDA_NORM_CUH

#include "kernels/cuda/rows.cuh"

/* ---- forward ---- */

/* LANES lanes share a row in packs of N; a lane has PACKS of them, LANES N columns apart, or
 * (PACKS 0) as many as there are, and reads them again in each pass. */
template <int n, int lanes, int packs>
struct RowShape {
    static constexpr bool kept = packs > 0; /* in registers */
    enum { N = n, LANES = lanes, PACKS = packs, SLOTS = kept ? packs : 1 };
};

/* f(RowShape<...>()) for rows of `cols` elements. Rows as short as a head take 8 lanes. */
template <typename T, typename F>
static inline void with_row(int cols, F f) {
    enum { N = Pack<T>::N };
    if (cols % N)
        f(RowShape<1, WARP, 0>());
    else if (cols <= 8 * N)
        f(RowShape<N, 8, 1>());
    else if (cols <= 32 * WARP)
        f(RowShape<N, WARP, 32 / N>());
    else
        f(RowShape<N, WARP, 0>());
}

/* This thread's row, its lane in it, and how many packs a lane goes through. A thread behind the
 * last row has zero columns, and takes part in the sums. */
typedef struct RowPlace {
    int64_t row;
    int lane, cols, rounds;
} RowPlace;

template <typename S>
static __device__ __forceinline__ RowPlace row_place(int64_t rows, int C) {
    RowPlace p;
    p.row = global_thread() / S::LANES;
    p.lane = (int)threadIdx.x % S::LANES;
    p.cols = p.row < rows ? C : 0;
    p.rounds = S::kept ? (int)S::PACKS : (p.cols + S::LANES * S::N - 1) / (S::LANES * S::N);
    return p;
}

/* f(j, k) for this lane's packs: number k begins at column j. */
template <typename S, typename F>
static __device__ __forceinline__ void each_pack(RowPlace p, F f) {
    for (int k = 0; k < p.rounds; k++) {
        const int j = (k * S::LANES + p.lane) * S::N;
        if (j < p.cols) f(j, k);
    }
}

/* Pack k of the row, at column j of x: from registers, or read again. */
template <typename S, typename T>
static __device__ __forceinline__ Pack<T, S::N> row_pack(const Pack<T, S::N> (&row)[S::SLOTS],
                                                         const T *x, int j, int k) {
    return S::kept ? row[k] : load_pack<S::N>(x + j);
}

/* Reads the row x (C) and returns 1 / sqrt(mean(x^2) + eps), which is saved. All lanes call it. */
template <typename S, typename T>
static __device__ __forceinline__ float row_rstd(Pack<T, S::N> (&row)[S::SLOTS], RowPlace p,
                                                 const T *x, int C, float eps, float *rstd) {
    float squares = 0;
    each_pack<S>(p, [&](int j, int k) {
        const Pack<T, S::N> v = load_pack<S::N>(x + j);
        if (S::kept) row[k] = v;
        for (int i = 0; i < S::N; i++) squares += to_float(v.at[i]) * to_float(v.at[i]);
    });
    const float s = 1.0f / sqrtf(warp_sum<S::LANES>(squares) / (float)C + eps);
    if (p.cols && p.lane == 0) rstd[p.row] = s;
    return s;
}

/* ---- backward ---- */

enum { NORM_BLOCK = 256, NORM_WARPS = NORM_BLOCK / WARP };

/* With n = (x - mean) rstd, a the factor of a column and g = dy a:
 *     dx = rstd (g - mean(g) - n mean(g n))        layer norm: a = weight
 *     dx = rstd (g - n mean(g n))                  modulated: mean = 0, a = weight (1 + scale)
 * and sums of dy n and of dy over a block's rows. mod (frames, mod_cols): a block's rows are then a
 * frame, which has shift in part `part` and scale behind it.
 * partial: layer norm (blocks, 2 C), a block's sums of dy n and of dy; modulated (blocks, C), its
 * sums of dy n times 1 + scale. */
template <typename T>
struct NormBackward {
    const T *x, *dy, *mod;
    const float *weight, *mean, *rstd;
    T *dx, *dmod; /* NULL: not wanted */
    float *partial;
    int64_t rows;
    int block_rows, C, mod_cols, part;
    bool add_x, add_mod;
};

/* MODULATED or not; WIDE: rows are longer than what a block takes of them (blockIdx.y: which
 * columns), and so its two means are summed from memory. */
template <typename T, int N, int PACKS, bool MODULATED, bool WIDE>
struct NormKernel {
    enum { COLS = WARP * PACKS * N };

    static __device__ __forceinline__ void column_factors(const NormBackward<T> &p, int j,
                                                          float *a) {
        const Pack<float, N> weight = load_pack<N>(p.weight + j);
        for (int i = 0; i < N; i++) a[i] = weight.at[i];
        if (!MODULATED) return;
        const Pack<T, N> scale =
            load_pack<N>(p.mod + (int64_t)blockIdx.x * p.mod_cols + (p.part + 1) * p.C + j);
        for (int i = 0; i < N; i++) a[i] *= 1.0f + to_float(scale.at[i]);
    }

    /* This lane's share of the sums of g and g n over a whole row. */
    static __device__ void row_sums(const NormBackward<T> &p, int64_t r, float mean, float rstd,
                                    float *sum_g, float *sum_gn) {
        *sum_g = *sum_gn = 0;
        for (int j = (int)threadIdx.x % WARP * N; j < p.C; j += WARP * N) {
            const Pack<T, N> x = load_pack<N>(p.x + r * p.C + j),
                             d = load_pack<N>(p.dy + r * p.C + j);
            float a[N];
            column_factors(p, j, a);
            for (int i = 0; i < N; i++) {
                const float g = to_float(d.at[i]) * a[i];
                *sum_g += g;
                *sum_gn += g * (to_float(x.at[i]) - mean) * rstd;
            }
        }
    }

    /* This warp's rows of the block's: dx, and the lane's sums of dy n and of dy. */
    static __device__ __forceinline__ void rows(const NormBackward<T> &p, int j0, float *sum_dn,
                                                float *sum_d) {
        float a[PACKS * N];
        for (int k = 0; k < PACKS; k++) {
            for (int i = 0; i < N; i++) a[k * N + i] = 0;
            if (j0 + k * WARP * N < p.C) column_factors(p, j0 + k * WARP * N, a + k * N);
        }
        const int64_t first = (int64_t)blockIdx.x * p.block_rows;
        const int64_t end = min(first + p.block_rows, p.rows);
        for (int64_t r = first + threadIdx.x / WARP; r < end; r += NORM_WARPS) {
            Pack<T, N> x[PACKS], d[PACKS];
            for (int k = 0; k < PACKS; k++) {
                const int j = j0 + k * WARP * N;
                x[k] = j < p.C ? load_pack<N>(p.x + r * p.C + j) : Pack<T, N>();
                d[k] = j < p.C ? load_pack<N>(p.dy + r * p.C + j) : Pack<T, N>();
            }
            const float mean = MODULATED ? 0 : p.mean[r], rstd = p.rstd[r];
            float sum_g = 0, sum_gn = 0;
            for (int k = 0; k < PACKS; k++)
                for (int i = 0; i < N; i++) {
                    const float dy = to_float(d[k].at[i]);
                    const float dn = dy * ((to_float(x[k].at[i]) - mean) * rstd);
                    sum_d[k * N + i] += dy;
                    sum_dn[k * N + i] += dn;
                    sum_g += dy * a[k * N + i];
                    sum_gn += dn * a[k * N + i];
                }
            if (!p.dx) continue;
            if (WIDE) row_sums(p, r, mean, rstd, &sum_g, &sum_gn);
            const float centre = MODULATED ? 0 : warp_sum(sum_g) / (float)p.C;
            const float slope = warp_sum(sum_gn) / (float)p.C;
            for (int k = 0; k < PACKS; k++) {
                const int j = j0 + k * WARP * N;
                if (j >= p.C) continue;
                Pack<float, N> out;
                for (int i = 0; i < N; i++) {
                    const float n = (to_float(x[k].at[i]) - mean) * rstd;
                    out.at[i] = rstd * (to_float(d[k].at[i]) * a[k * N + i] - centre - n * slope);
                }
                put_pack(p.dx + r * p.C + j, out, p.add_x);
            }
        }
    }
};

/* Where a modulation's gradient was not set before: zero in column j of the parts that the op does
 * not use, which are all but first .. end - 1. */
template <typename T>
static __device__ __forceinline__ void clear_modulation(T *dmod, int cols, int C, int first,
                                                        int end, int j) {
    for (int part = 0; part < cols / C; part++)
        if (part < first || part >= end) dmod[part * C + j] = from_float<T>(0);
}

template <typename T, int N, int PACKS, bool MODULATED, bool WIDE>
static __global__ void __launch_bounds__(NORM_BLOCK) norm_backward(NormBackward<T> p) {
    typedef NormKernel<T, N, PACKS, MODULATED, WIDE> K;
    __shared__ float total[NORM_WARPS * K::COLS];
    const int first = (int)blockIdx.y * K::COLS, lane = (int)threadIdx.x % WARP;
    float sum_dn[PACKS * N] = {}, sum_d[PACKS * N] = {};
    K::rows(p, first + lane * N, sum_dn, sum_d);
    const int64_t frame = (int64_t)blockIdx.x * p.mod_cols;
    T *dmod = MODULATED && p.dmod ? p.dmod + frame : NULL;
    float *partial = p.partial + (int64_t)blockIdx.x * (MODULATED ? 1 : 2) * p.C;
    sum_columns<PACKS, N>(total, sum_dn, WARP);
    for (int i = (int)threadIdx.x, j; i < K::COLS && (j = first + i) < p.C; i += NORM_BLOCK) {
        float a = 1;
        if (MODULATED) a += to_float(p.mod[frame + (p.part + 1) * p.C + j]);
        partial[j] = total[i] * a;
        if (dmod) put(dmod + (p.part + 1) * p.C + j, p.weight[j] * total[i], p.add_mod);
    }
    if (MODULATED && !dmod) return;
    sum_columns<PACKS, N>(total, sum_d, WARP);
    for (int i = (int)threadIdx.x, j; i < K::COLS && (j = first + i) < p.C; i += NORM_BLOCK) {
        if (!MODULATED) partial[p.C + j] = total[i];
        if (!dmod) continue;
        put(dmod + p.part * p.C + j, total[i], p.add_mod);
        if (!p.add_mod) clear_modulation(dmod, p.mod_cols, p.C, p.part, p.part + 2, j);
    }
}

/* Starts it on `blocks` blocks of rows. */
template <typename T, bool MODULATED>
static inline void launch_norm_backward(Ctx *c, int64_t blocks, const NormBackward<T> &p) {
    enum { N = Pack<T>::N };
    const auto start = [&](void (*kernel)(NormBackward<T>), int cols) {
        launch(c, kernel, dim3((unsigned)blocks, (unsigned)div_up(p.C, cols)), NORM_BLOCK, 0, p);
    };
    if (p.C % N)
        start(norm_backward<T, 1, 8, MODULATED, true>, 8 * WARP);
    else if (p.C <= 16 * WARP)
        start(norm_backward<T, N, 16 / N, MODULATED, false>, 16 * WARP);
    else if (p.C <= 32 * WARP)
        start(norm_backward<T, N, 32 / N, MODULATED, false>, 32 * WARP);
    else
        start(norm_backward<T, N, 16 / N, MODULATED, true>, 16 * WARP);
}

#endif
