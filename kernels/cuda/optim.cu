/* The update of all parameters, llmc_like/optim.h, without a word from the host: the norm, the clip
 * factor, and whether the norm is finite stay on the device.
 *
 * A kernel goes over the rows of the parameter table in one launch. A row is cut into chunks; a
 * block takes one, and finds whose it is in a table that is made and uploaded anew by each update
 * (some 100 bytes a row), so that it can never be stale. Adam's rows come first, then Muon's by
 * shape: matrices of one shape are one batch of products. */
#include <math.h>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gemm.cuh"

enum { CHUNK = 8192 }; /* numbers that a block takes */

typedef struct ParamRow {
    float *w, *m, *v; /* Param.master, .m, .v */
    bf16 *rounded;    /* the tensor's data where that is bf16, else NULL */
    const float *g;
    int64_t n;     /* numbers */
    int64_t first; /* its first chunk's number */
    int group;
    float keep; /* Muon: 1 - lr wd */
    float step; /* Muon: lr sqrt(max(1, rows / cols)) */
    int64_t x;  /* Muon: where its X begins */
} ParamRow;

/* What an update works in: parts of the workspace. */
typedef struct Scratch {
    ParamRow *row;
    double *sums; /* (chunks): of squares */
    float *scale; /* the clip factor; NaN: nothing is to change */
    void *x, *y;  /* X of all Muon's matrices in c->dtype, and its next value */
    void *a, *p;  /* X X' and the polynomial of it, of one batch */
    size_t bytes; /* of all */
    int64_t chunks, adam_chunks;
} Scratch;

/* ---- the table ---- */

static int64_t chunks_of(const Param *p) { return div_up(tensor_numel(&p->tensor), CHUNK); }

static int64_t side_of(const Param *p) { /* the shorter one */
    const int64_t *shape = p->tensor.shape;
    return shape[0] < shape[1] ? shape[0] : shape[1];
}

/* How many of Muon's rows have the shape of row i; 0 where that is not the first of them. */
static int batch_of(const ParamTable *p, int i) {
    const Tensor *t = &p->row[i].tensor;
    int n = 0;
    if (p->row[i].group != GROUP_MUON) return 0;
    CHECK(t->ndim == 2, "%s: Muon is for matrices, this has %d dimensions", t->name, t->ndim);
    for (int j = 0; j < p->n; j++) {
        if (p->row[j].group != GROUP_MUON || !tensor_same_shape(t, &p->row[j].tensor)) continue;
        if (j < i) return 0;
        n++;
    }
    return n;
}

/* Numbers from one X to the next: multiples of 256 bytes in float32 and bf16. */
static int64_t x_stride(const Param *p) {
    return round_up(tensor_numel(&p->tensor), ARENA_ALIGN / (int64_t)sizeof(bf16));
}

/* The next part of base; base NULL: only counted. */
static void *part(Scratch *s, char *base, int64_t bytes) {
    void *at = base ? base + s->bytes : NULL;
    s->bytes += (size_t)round_up(bytes, ARENA_ALIGN);
    return at;
}

static Scratch lay_out(const Ctx *c, const ParamTable *p, char *base) {
    const int64_t size = (int64_t)dtype_size(c->dtype);
    int64_t numel = 0, square = 0;
    Scratch s = {};
    for (int i = 0; i < p->n; i++) {
        const Param *row = &p->row[i];
        const int n = batch_of(p, i);
        s.chunks += chunks_of(row);
        if (row->group != GROUP_MUON) {
            s.adam_chunks += chunks_of(row);
        } else if (n > 0) {
            const int64_t products = n * side_of(row) * side_of(row);
            numel += n * x_stride(row);
            if (products > square) square = products;
        }
    }
    s.row = (ParamRow *)part(&s, base, p->n * (int64_t)sizeof(ParamRow));
    s.sums = (double *)part(&s, base, s.chunks * (int64_t)sizeof(double));
    s.scale = (float *)part(&s, base, sizeof(float));
    s.x = part(&s, base, numel * size);
    s.y = part(&s, base, numel * size);
    s.a = part(&s, base, square * size);
    s.p = part(&s, base, square * size);
    return s;
}

size_t cuda_update_workspace(const Ctx *c, const ParamTable *p) {
    return lay_out(c, p, NULL).bytes;
}

static ParamRow row_of(const Param *p, int64_t first) {
    const Tensor *t = &p->tensor;
    ParamRow r = {};
    r.w = p->master, r.m = p->m, r.v = p->v;
    r.rounded = t->dtype == DT_BF16 ? (bf16 *)t->data : NULL;
    r.g = (const float *)t->grad;
    r.n = tensor_numel(t);
    r.first = first;
    r.group = p->group;
    return r;
}

static ParamRow muon_row_of(const Param *p, int64_t first, int64_t x, const OptimRule *o,
                            double lr) {
    const double rows = (double)p->tensor.shape[0], cols = (double)p->tensor.shape[1];
    ParamRow r = row_of(p, first);
    r.keep = (float)(1 - lr * o->weight_decay);
    r.step = (float)(lr * sqrt(fmax(1, rows / cols)));
    r.x = x;
    return r;
}

/* The table in its order, on its way to the device. */
static void upload_table(Ctx *c, const Optim *o, const ParamTable *p, double lr_factor,
                         const Scratch *s) {
    const OptimRule *muon = &o->rule[GROUP_MUON];
    const size_t bytes = (size_t)p->n * sizeof(ParamRow);
    ParamRow *row = (ParamRow *)ctx_host(c, bytes);
    int64_t chunk = 0, x = 0;
    int at = 0;
    for (int i = 0; i < p->n; i++) {
        if (p->row[i].group == GROUP_MUON) continue;
        row[at++] = row_of(&p->row[i], chunk);
        chunk += chunks_of(&p->row[i]);
    }
    for (int i = 0; i < p->n; i++) {
        const int n = batch_of(p, i);
        for (int j = i, k = 0; k < n; j++) {
            const Param *r = &p->row[j];
            if (r->group != GROUP_MUON || !tensor_same_shape(&p->row[i].tensor, &r->tensor))
                continue;
            row[at++] = muon_row_of(r, chunk, x, muon, lr_factor * muon->lr);
            chunk += chunks_of(r);
            x += x_stride(r);
            k++;
        }
    }
    c->dev->queue->upload(c, s->row, row, bytes);
}

/* ---- a block's chunk ---- */

/* Numbers begin .. end - 1 of row; every array of it begins at a multiple of 256 bytes, so packs
 * do up to `whole`, and single numbers behind. */
typedef struct Chunk {
    ParamRow row;
    int64_t begin, whole, end;
} Chunk;

/* Chunk `number` is in the last of the n rows that do not begin behind it. */
static __device__ Chunk find_chunk(const ParamRow *rows, int n, int64_t number) {
    int low = 0;
    for (int high = n; high - low > 1;) {
        const int middle = (low + high) / 2;
        if (rows[middle].first <= number)
            low = middle;
        else
            high = middle;
    }
    Chunk k;
    k.row = rows[low];
    k.begin = (number - k.row.first) * CHUNK;
    k.end = k.begin + CHUNK < k.row.n ? k.begin + CHUNK : k.row.n;
    k.whole = k.end - (k.end - k.begin) % 4;
    return k;
}

/* f(i, pack) for the thread's share of a chunk: a pack of numbers, or one, from i on. */
template <typename F>
static __device__ __forceinline__ void each(const Chunk &k, F f) {
    for (int64_t i = k.begin + 4 * (int)threadIdx.x; i < k.whole; i += 4 * BLOCK)
        f(i, Pack<float>());
    const int64_t i = k.whole + threadIdx.x;
    if (i < k.end) f(i, Pack<float, 1>());
}

/* The master's new values, and their rounding where the model computes with that. */
template <int N>
static __device__ __forceinline__ void store_weight(const ParamRow &row, int64_t i,
                                                    const Pack<float, N> &w) {
    put_pack(row.w + i, w, false);
    if (row.rounded) put_pack(row.rounded + i, w, false);
}

/* ---- the norm ---- */

/* sums[chunk] = sum of g^2: 4 bytes a number. */
static __global__ void square_gradients(const ParamRow *rows, int n, double *sums) {
    const Chunk k = find_chunk(rows, n, blockIdx.x);
    double sum = 0;
    each(k, [&](int64_t i, auto pack) {
        enum { N = decltype(pack)::N };
        const Pack<float, N> g = load_pack<N>(k.row.g + i);
        for (int j = 0; j < N; j++) sum += (double)g.at[j] * (double)g.at[j];
    });
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

/* One block. */
static __global__ void finish_norm(const double *sums, int64_t chunks, double clip, double share,
                                   double *norm, float *scale) {
    const double x = sqrt(block_sum(sums, chunks)) / share;
    if (threadIdx.x > 0) return;
    const double clipped = clip > 0 ? fmin(1.0, clip / (x + 1e-6)) : 1;
    *norm = x;
    *scale = isfinite(x) ? (float)(clipped / share) : NAN;
}

static void gradient_norm(Ctx *c, const ParamTable *p, const Scratch *s, double clip, double share,
                          double *norm) {
    enum { LARGE_BLOCK = 1024 };
    launch(c, square_gradients, dim3((unsigned)s->chunks), BLOCK, 0, s->row, p->n, s->sums);
    launch(c, finish_norm, 1, LARGE_BLOCK, 0, s->sums, s->chunks, clip, share, norm, s->scale);
}

/* ---- Adam ---- */

/* 28 bytes a number, and 2 for its rounding. */
static __global__ void adam(const ParamRow *rows, int n, AdamStep adam_step, AdamStep adamw_step,
                            const float *scale) {
    const float grad_scale = *scale;
    if (isnan(grad_scale)) return;
    const Chunk k = find_chunk(rows, n, blockIdx.x);
    const AdamStep s = k.row.group == GROUP_ADAM ? adam_step : adamw_step;
    each(k, [&](int64_t i, auto pack) {
        enum { N = decltype(pack)::N };
        const Pack<float, N> g = load_pack<N>(k.row.g + i);
        Pack<float, N> w = load_pack<N>(k.row.w + i), m = load_pack<N>(k.row.m + i),
                       v = load_pack<N>(k.row.v + i);
        for (int j = 0; j < N; j++) {
            const float x = grad_scale * g.at[j];
            m.at[j] = s.beta1 * m.at[j] + s.one_minus_beta1 * x;
            v.at[j] = s.beta2 * v.at[j] + s.one_minus_beta2 * (x * x);
            w.at[j] = s.keep * w.at[j] - s.step * m.at[j] / (s.v_scale * sqrtf(v.at[j]) + s.eps);
        }
        put_pack(k.row.m + i, m, false);
        put_pack(k.row.v + i, v, false);
        store_weight<N>(k.row, i, w);
    });
}

/* grad_scale is the device's to know. */
static AdamStep adam_step(const OptimRule *o, double lr, int64_t t) {
    AdamStep s = {};
    s.beta1 = (float)o->beta1;
    s.beta2 = (float)o->beta2;
    s.one_minus_beta1 = (float)(1 - o->beta1);
    s.one_minus_beta2 = (float)(1 - o->beta2);
    s.keep = (float)(1 - lr * o->weight_decay);
    s.step = (float)(lr / (1 - pow(o->beta1, (double)t)));
    s.v_scale = (float)(1 / sqrt(1 - pow(o->beta2, (double)t)));
    s.eps = (float)o->eps;
    return s;
}

/* ---- Muon ----
 *
 * The momentum is a pass of its own, since X needs the norm of all of n = mu m + (1 - mu) g first;
 * the second pass makes n again from m and g instead of reading it, which costs the same bytes and
 * rounds X once. */

/* m = mu m + share g;  sums[chunk] = sum of n^2: 12 bytes a number. */
static __global__ void muon_momentum(const ParamRow *rows, int n, int64_t first, float mu,
                                     float one_minus_mu, const float *scale, double *sums) {
    const float share = one_minus_mu * *scale;
    if (isnan(share)) return;
    const Chunk k = find_chunk(rows, n, first + blockIdx.x);
    double sum = 0;
    each(k, [&](int64_t i, auto pack) {
        enum { N = decltype(pack)::N };
        const Pack<float, N> g = load_pack<N>(k.row.g + i);
        Pack<float, N> m = load_pack<N>(k.row.m + i);
        for (int j = 0; j < N; j++) {
            m.at[j] = mu * m.at[j] + share * g.at[j];
            const float x = mu * m.at[j] + share * g.at[j];
            sum += (double)x * (double)x;
        }
        put_pack(k.row.m + i, m, false);
    });
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[first + blockIdx.x] = sum;
}

/* X = n / (|n| + 1e-7): 8 bytes a number, and X. */
template <typename T>
static __global__ void muon_start(T *to, const ParamRow *rows, int n, int64_t first, float mu,
                                  float one_minus_mu, const float *scale, const double *sums) {
    const float share = one_minus_mu * *scale;
    if (isnan(share)) return;
    const Chunk k = find_chunk(rows, n, first + blockIdx.x);
    const double square = block_sum(sums + k.row.first, div_up(k.row.n, CHUNK));
    const float by = (float)(1 / (sqrt(square) + 1e-7));
    T *x = to + k.row.x;
    each(k, [&](int64_t i, auto pack) {
        enum { N = decltype(pack)::N };
        const Pack<float, N> g = load_pack<N>(k.row.g + i), m = load_pack<N>(k.row.m + i);
        Pack<float, N> out;
        for (int j = 0; j < N; j++) out.at[j] = by * (mu * m.at[j] + share * g.at[j]);
        put_pack(x + i, out, false);
    });
}

/* w = keep w - step X: 8 bytes a number, X, and 2 for the rounding. */
template <typename T>
static __global__ void muon_apply(const T *from, const ParamRow *rows, int n, int64_t first,
                                  const float *scale) {
    if (isnan(*scale)) return;
    const Chunk k = find_chunk(rows, n, first + blockIdx.x);
    each(k, [&](int64_t i, auto pack) {
        enum { N = decltype(pack)::N };
        const Pack<T, N> x = load_pack<N>(from + k.row.x + i);
        Pack<float, N> w = load_pack<N>(k.row.w + i);
        for (int j = 0; j < N; j++) w.at[j] = k.row.keep * w.at[j] - k.row.step * to_float(x.at[j]);
        store_weight<N>(k.row, i, w);
    });
}

/* One batch's Newton-Schulz steps. X is (r, k) with r the shorter side; it lies as the parameter
 * does, transposed where that has more rows than columns ("tall"), which a product can take as it
 * is, since A and P are symmetric: A = X X', P = b A + c A A, X = a X + P X. */
typedef struct Batch {
    int64_t r, k, count, stride;
    bool tall;
    DType dtype;
} Batch;

static Gemm batch_gemm(const Batch *b, int64_t M, int64_t N, int64_t K) {
    Gemm g = {};
    g.M = M, g.N = N, g.K = K;
    g.in = g.out = b->dtype;
    g.batch = b->count;
    g.alpha = 1;
    return g;
}

/* *x and *y change places with each step; *x is the result. */
static void newton_schulz(Ctx *c, const Batch *b, int steps, void *a, void *p, void **x, void **y) {
    const float ca = 3.4445f, cb = -4.7750f, cc = 2.0315f;
    const int64_t ld = b->tall ? b->r : b->k, square = b->r * b->r;
    for (int i = 0; i < steps; i++) {
        Gemm g = batch_gemm(b, b->r, b->r, b->k);
        g.ta = b->tall, g.tb = !b->tall;
        g.A = g.B = *x, g.lda = g.ldb = ld, g.stride_a = g.stride_b = b->stride;
        g.C = a, g.ldc = b->r, g.stride_c = square;
        cuda_gemm(c, &g);
        g = batch_gemm(b, b->r, b->r, b->r);
        g.A = g.B = g.E = a, g.lda = g.ldb = b->r, g.stride_a = g.stride_b = square;
        g.C = p, g.ldc = b->r, g.stride_c = square;
        g.alpha = cc, g.beta = cb;
        cuda_gemm(c, &g);
        g = batch_gemm(b, b->tall ? b->k : b->r, b->tall ? b->r : b->k, b->r);
        g.A = b->tall ? *x : p, g.lda = b->tall ? ld : b->r;
        g.B = b->tall ? p : *x, g.ldb = b->tall ? b->r : ld;
        g.stride_a = b->tall ? b->stride : square, g.stride_b = b->tall ? square : b->stride;
        g.E = *x, g.C = *y, g.ldc = ld, g.stride_c = b->stride;
        g.beta = ca;
        cuda_gemm(c, &g);
        void *swap = *x;
        *x = *y;
        *y = swap;
    }
}

/* All batches' steps; returns where the results lie. */
static void *orthogonalise(Ctx *c, const ParamTable *table, const Scratch *s, int steps) {
    const size_t size = dtype_size(c->dtype);
    char *x = (char *)s->x, *y = (char *)s->y;
    for (int i = 0; i < table->n; i++) {
        const Param *row = &table->row[i];
        Batch b = {};
        b.count = batch_of(table, i);
        if (b.count == 0) continue;
        const int64_t rows = row->tensor.shape[0], cols = row->tensor.shape[1];
        b.tall = rows > cols;
        b.r = side_of(row);
        b.k = b.tall ? rows : cols;
        b.stride = x_stride(row);
        b.dtype = c->dtype;
        void *from = x, *to = y;
        newton_schulz(c, &b, steps, s->a, s->p, &from, &to);
        x += (size_t)(b.count * b.stride) * size;
        y += (size_t)(b.count * b.stride) * size;
    }
    return steps % 2 ? s->y : s->x;
}

static void muon(Ctx *c, const OptimRule *o, const ParamTable *p, const Scratch *s) {
    const int64_t chunks = s->chunks - s->adam_chunks, first = s->adam_chunks;
    const float mu = (float)o->momentum, one_minus_mu = (float)(1 - o->momentum);
    const dim3 grid((unsigned)chunks);
    launch(c, muon_momentum, grid, BLOCK, 0, s->row, p->n, first, mu, one_minus_mu, s->scale,
           s->sums);
    with_dtype(c->dtype, [&](auto zero) {
        typedef decltype(zero) T;
        launch(c, muon_start<T>, grid, BLOCK, 0, (T *)s->x, s->row, p->n, first, mu, one_minus_mu,
               s->scale, s->sums);
        const void *x = orthogonalise(c, p, s, o->ns_steps);
        launch(c, muon_apply<T>, grid, BLOCK, 0, (const T *)x, s->row, p->n, first, s->scale);
    });
}

/* ---- both ---- */

void cuda_update(Ctx *c, Optim *o, ParamTable *p, double lr_factor, double clip, double *norm) {
    const OptimRule *adam_rule = &o->rule[GROUP_ADAM], *adamw_rule = &o->rule[GROUP_ADAMW];
    const Scratch s = lay_out(c, p, (char *)ctx_workspace(c, cuda_update_workspace(c, p)));
    upload_table(c, o, p, lr_factor, &s);
    gradient_norm(c, p, &s, clip, o->share, norm);
    launch(c, adam, dim3((unsigned)s.adam_chunks), BLOCK, 0, s.row, p->n,
           adam_step(adam_rule, lr_factor * adam_rule->lr, o->t),
           adam_step(adamw_rule, lr_factor * adamw_rule->lr, o->t), s.scale);
    muon(c, &o->rule[GROUP_MUON], p, &s);
}
