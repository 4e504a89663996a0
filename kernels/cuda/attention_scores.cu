/* The steps of attention whose scores are in memory: contract in attention_scores.cuh.
 *
 * The softmax takes a warp a row where rows are short, else a block, and goes over each row twice:
 * for the largest score and the sum (backward: for delta), and to write. Few enough rows are in
 * work at a time that the second reading is from the multiprocessor's cache. Memory sees 4 +
 * sizeof(T) bytes a score in forward and 8 + 2 sizeof(T) in backward; the products write 4 and 8
 * and read 2 and 6 (bf16) beside their 4 D and 10 D flops, so that is what the time goes into.
 *
 * delta is rowsum(P dP), not rowsum(dO out), which is the same but for rounding: where out is bf16
 * its rounding would be the largest error of dQ and dK in documents of a few rows. */
#include "kernels/cuda/attention_scores.cuh"
#include "kernels/cuda/gemm.cuh"
#include "kernels/cuda/ptx.cuh"

/* ---- the scores' layout: (B, H, Tq, ld) of the part ---- */

/* Rows begin at multiples of 64 bytes, so that packs of P end inside them. */
static int64_t row_length(int64_t keys) { return (keys + 15) / 16 * 16; }

static int64_t scores_count(const AttnArgs *part) {
    return (int64_t)part->B * part->H * part->Tq * row_length(part->Tk);
}

size_t scores_bytes(const AttnArgs *part, bool backward) {
    return sizeof(float) * (size_t)scores_count(part) * (backward ? 2 : 1);
}

/* Scores as a tensor of `dtype`: S and dP of float32, P and dS of the call's. */
static AttnStride scores_stride(const AttnArgs *part, DType dtype) {
    const int64_t t = row_length(part->Tk) * (int64_t)(sizeof(float) / dtype_size(dtype));
    return {part->H * part->Tq * t, t, part->Tq * t};
}

/* ---- products: one for each block and head ---- */

/* g, whose A, B and C are the first block's first head, with the strides of all. The library takes
 * one stride a call: that from block to head to block where it is the same, else that of the
 * longer of the two, so that there are few calls. */
static void products(Ctx *c, const AttnArgs *part, Gemm g, AttnStride A, AttnStride B,
                     AttnStride C) {
    const int64_t n = part->B, h = part->H;
    const bool even = A.b == h * A.h && B.b == h * B.h && C.b == h * C.h, blocks = !even && n > h;
    const size_t in = dtype_size(g.in), out = dtype_size(g.out);
    const char *a0 = (const char *)g.A, *b0 = (const char *)g.B;
    char *c0 = (char *)g.C;
    g.lda = A.t, g.ldb = B.t, g.ldc = C.t;
    g.batch = even ? n * h : blocks ? n : h;
    g.stride_a = blocks ? A.b : A.h;
    g.stride_b = blocks ? B.b : B.h;
    g.stride_c = blocks ? C.b : C.h;
    for (int64_t i = 0; i < n * h / g.batch; i++) {
        g.A = a0 + (size_t)(i * (blocks ? A.h : A.b)) * in;
        g.B = b0 + (size_t)(i * (blocks ? B.h : B.b)) * in;
        g.C = c0 + (size_t)(i * (blocks ? C.h : C.b)) * out;
        cuda_gemm(c, &g);
    }
}

/* s (Tq, Tk) = factor x y', of rows of queries and rows of keys. */
static void into_scores(Ctx *c, const AttnArgs *part, float factor, const void *x, AttnStride xs,
                        const void *y, AttnStride ys, float *s) {
    Gemm g = {};
    g.M = part->Tq, g.N = part->Tk, g.K = part->D;
    g.tb = true;
    g.in = part->dtype, g.out = DT_F32;
    g.A = x, g.B = y, g.C = s;
    g.alpha = factor;
    products(c, part, g, xs, ys, scores_stride(part, DT_F32));
}

/* z = factor p y, (Tq, D), or by_key: factor p' y, (Tk, D); p: P or dS. */
static void out_of_scores(Ctx *c, const AttnArgs *part, float factor, const float *p, bool by_key,
                          const void *y, AttnStride ys, void *z, AttnStride zs) {
    Gemm g = {};
    g.M = by_key ? part->Tk : part->Tq, g.N = part->D, g.K = by_key ? part->Tq : part->Tk;
    g.ta = by_key;
    g.in = g.out = part->dtype;
    g.A = p, g.B = y, g.C = z;
    g.alpha = factor;
    products(c, part, g, scores_stride(part, part->dtype), ys, zs);
}

/* ---- softmax ---- */

enum { SHORT = 128, ROW_THREADS = 128 }; /* a row of up to SHORT columns is a warp's */

/* A part's scores, as its kernels see them. */
typedef struct Scores {
    AttnArgs a, part;
    CudaMask m;
    int first;
    float *s, *dp;
    int64_t ld, n_rows;
} Scores;

/* A row: the call's query that it belongs to, or -1 where it is padding, and the columns of the
 * block that it sees, from <= j < to. */
typedef struct Row {
    int b, h, query, from, to;
} Row;

static __device__ Row row_of(const Scores &w, int64_t number) {
    const int i = (int)(number % w.part.Tq), h = (int)(number / w.part.Tq % w.part.H),
              n = (int)(number / w.part.Tq / w.part.H);
    Document d = {n, 0, w.a.Tq, 0, w.a.Tk};
    if (w.first != WHOLE) d = document_of(&w.a, w.m.offsets, w.m.n_docs, w.first + n);
    Row r = {d.b, h, -1, 0, 0};
    if (i >= d.rows) return r;
    r.query = d.row + i;
    const int lo = w.m.lo[w.a.offset + r.query], hi = w.m.hi[w.a.offset + r.query];
    r.from = lo - d.col;
    r.to = (hi < w.a.Tk ? hi : w.a.Tk) - d.col;
    return r;
}

constexpr float LOG2E = 1.44269504f;

/* Columns j .. j + N - 1 of a row of scores; `hidden` for those that it does not see, which are not
 * read: they may be anything. */
template <int N>
static __device__ __forceinline__ void load_seen(float x[N], const float *s, int j, Row r,
                                                 float hidden) {
    enum { PACK = Pack<float>::N };
    if (r.from <= j && j + N <= r.to) {
        for (int i = 0; i < N; i += PACK) {
            const Pack<float> p = load_pack(s + j + i);
            for (int l = 0; l < PACK; l++) x[i + l] = p.at[l];
        }
        return;
    }
    for (int i = 0; i < N; i++) x[i] = r.from <= j + i && j + i < r.to ? s[j + i] : hidden;
}

/* x as numbers j .. j + N - 1 of a row of T. */
template <typename T>
static __device__ __forceinline__ void store_row(float *row, int j, const float *x) {
    Pack<T> p;
    for (int i = 0; i < Pack<T>::N; i++) p.at[i] = from_float<T>(x[i]);
    *(Pack<T> *)((T *)row + j) = p;
}

/* Over the threads of a row, in each of them. */
template <int THREADS>
static __device__ float row_sum(float x) {
    return THREADS == WARP ? warp_sum(x) : block_sum(x);
}

template <int THREADS>
static __device__ float row_max(float x) {
    __shared__ float part[THREADS / WARP];
    x = warp_max(x);
    if (THREADS == WARP) return x;
    if (threadIdx.x % WARP == 0) part[threadIdx.x / WARP] = x;
    __syncthreads();
    for (int i = 0; i < THREADS / WARP; i++) x = fmaxf(x, part[i]);
    return x;
}

template <int THREADS>
static __device__ void row_barrier() {
    if (THREADS == WARP)
        __syncwarp();
    else
        __syncthreads();
}

/* The row's largest score and the sum of e^(s - largest). Nothing seen: 0 and 0. */
template <int THREADS, int N>
static __device__ float2 row_statistics(const float *s, Row r, int lane) {
    float most = -INFINITY, sum = 0, x[N];
    for (int j = r.from / N * N + lane * N; j < r.to; j += THREADS * N) {
        load_seen<N>(x, s, j, r, -INFINITY);
        float top = most;
        for (int i = 0; i < N; i++) top = fmaxf(top, x[i]);
        if (top > most) sum *= exp2_fast((most - top) * LOG2E);
        most = top;
        const float base = most > -INFINITY ? most : 0;
        for (int i = 0; i < N; i++) sum += exp2_fast((x[i] - base) * LOG2E);
    }
    const float top = row_max<THREADS>(most), base = top > -INFINITY ? top : 0;
    return make_float2(base, row_sum<THREADS>(sum * exp2_fast((most - base) * LOG2E)));
}

/* rowsum(P dP), over rowsum(P): 1 but for the rounding of lse, which large scores feel. */
template <int THREADS, int N>
static __device__ float row_delta(const float *s, const float *dp, Row r, int lane, float base) {
    float sum = 0, total = 0, x[N], y[N];
    for (int j = r.from / N * N + lane * N; j < r.to; j += THREADS * N) {
        load_seen<N>(x, s, j, r, -INFINITY);
        load_seen<N>(y, dp, j, r, 0);
        for (int i = 0; i < N; i++) {
            const float p = exp2_fast((x[i] - base) * LOG2E);
            sum += p * y[i];
            total += p;
        }
    }
    return row_sum<THREADS>(sum) / row_sum<THREADS>(total);
}

static __device__ float *lse_of(const Scores &w, Row r) {
    return (float *)w.a.lse + ((int64_t)r.b * w.a.H + r.h) * w.a.Tq + r.query;
}

/* S becomes P, and lse is written. P lies below the scores of later columns and on those of its own
 * step alone: all of the row's threads have read these when one writes. */
template <typename T, int THREADS>
static __global__ void softmax_forward(Scores w) {
    enum { N = Pack<T>::N };
    const int64_t number = global_thread() / THREADS;
    if (number >= w.n_rows) return;
    const int lane = (int)threadIdx.x % THREADS;
    const Row r = row_of(w, number);
    float *s = w.s + number * w.ld, x[N];
    const float2 most_sum = row_statistics<THREADS, N>(s, r, lane);
    const float base = most_sum.x, sum = most_sum.y, share = sum == 0 ? 0 : 1 / sum;
    if (lane == 0 && r.query >= 0) *lse_of(w, r) = base + logf(sum);
    for (int first = 0; first < w.part.Tk; first += THREADS * N) {
        const int j = first + lane * N;
        load_seen<N>(x, s, j, r, -INFINITY);
        for (int i = 0; i < N; i++) x[i] = share * exp2_fast((x[i] - base) * LOG2E);
        row_barrier<THREADS>();
        if (j < w.part.Tk) store_row<T>(s, j, x);
    }
}

/* S becomes P, dP becomes dS = P (dP - delta). Padding: 0. */
template <typename T, int THREADS>
static __global__ void softmax_backward(Scores w) {
    enum { N = Pack<T>::N };
    const int64_t number = global_thread() / THREADS;
    if (number >= w.n_rows) return;
    const int lane = (int)threadIdx.x % THREADS;
    const Row r = row_of(w, number);
    float *s = w.s + number * w.ld, *dp = w.dp + number * w.ld, p[N], ds[N];
    const float lse = r.query >= 0 ? *lse_of(w, r) : -INFINITY,
                base = lse == -INFINITY ? INFINITY : lse,
                delta = row_delta<THREADS, N>(s, dp, r, lane, base);
    for (int first = 0; first < w.part.Tk; first += THREADS * N) {
        const int j = first + lane * N;
        load_seen<N>(p, s, j, r, -INFINITY);
        load_seen<N>(ds, dp, j, r, 0);
        for (int i = 0; i < N; i++) {
            const bool hidden = p[i] == -INFINITY; /* where delta is NaN, 0 all the same */
            p[i] = exp2_fast((p[i] - base) * LOG2E);
            ds[i] = hidden ? 0 : p[i] * (ds[i] - delta);
        }
        row_barrier<THREADS>();
        if (j >= w.part.Tk) continue;
        store_row<T>(s, j, p);
        store_row<T>(dp, j, ds);
    }
}

/* Of a kernel's two forms the one for rows of that length. */
static void launch_rows(Ctx *c, void (*warp)(Scores), void (*block)(Scores), const Scores &w) {
    if (w.part.Tk <= SHORT)
        launch(c, warp, grid_for(w.n_rows * WARP), BLOCK, 0, w);
    else
        launch(c, block, dim3((unsigned)w.n_rows), ROW_THREADS, 0, w);
}

/* ---- a part ---- */

static Scores scores_of(const AttnArgs *a, CudaMask m, const AttnArgs *part, int first,
                        void *memory) {
    float *s = (float *)memory;
    return {*a,
            *part,
            m,
            first,
            s,
            s + scores_count(part),
            row_length(part->Tk),
            (int64_t)part->B * part->H * part->Tq};
}

void scores_forward(Ctx *c, const AttnArgs *a, CudaMask m, const AttnArgs *part, int first,
                    void *memory) {
    const Scores w = scores_of(a, m, part, first, memory);
    into_scores(c, part, part->scale, part->q, part->qs, part->k, part->ks, w.s);
    with_dtype(part->dtype, [&](auto zero) {
        typedef decltype(zero) T;
        launch_rows(c, softmax_forward<T, WARP>, softmax_forward<T, ROW_THREADS>, w);
    });
    out_of_scores(c, part, 1, w.s, false, part->v, part->vs, part->out, part->os);
}

void scores_backward(Ctx *c, const AttnArgs *a, CudaMask m, const AttnArgs *part, int first,
                     void *memory) {
    const Scores w = scores_of(a, m, part, first, memory);
    into_scores(c, part, part->scale, part->q, part->qs, part->k, part->ks, w.s);
    into_scores(c, part, 1, part->dout, part->os, part->v, part->vs, w.dp);
    with_dtype(part->dtype, [&](auto zero) {
        typedef decltype(zero) T;
        launch_rows(c, softmax_backward<T, WARP>, softmax_backward<T, ROW_THREADS>, w);
    });
    /* in this order: dv may take the place of v, dq of dout, dk of k */
    if (part->dv) out_of_scores(c, part, 1, w.s, true, part->dout, part->os, part->dv, part->vs);
    if (part->dq)
        out_of_scores(c, part, part->scale, w.dp, false, part->k, part->ks, part->dq, part->qs);
    if (part->dk)
        out_of_scores(c, part, part->scale, w.dp, true, part->q, part->qs, part->dk, part->ks);
}
