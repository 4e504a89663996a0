/* Rows in segments, of which most have one row and some have thousands. So work is shared out by
 * rows, not by segments: a team of threads, as many as a row needs, walks ROWS consecutive rows. It
 * searches the segment of the first one, and since no segment is empty, the next row belongs to the
 * same or to the next. Ten thousand segments of a row each and one of ten thousand rows cost the
 * same but for what pooling has to put together (below).
 *
 * at: the offsets. Segment m has rows at[m] .. at[m + 1] - 1. */
#include "kernels/cuda/rows.cuh"

enum { ROWS = 8 };

typedef struct Segments {
    const int32_t *at;
    int32_t M, N; /* segments, rows */
    int cols;     /* packs a row */
    int team;     /* threads: a power of two, at most a warp */
} Segments;

static Segments segments_of(const OpCall *o, int N) {
    const int cols = (int)(tensor_cols(o->in[0]) / N);
    int team = WARP;
    while (team > 1 && team / 2 >= cols) team /= 2;
    return {(const int32_t *)o->in[1]->data, (int32_t)(o->in[1]->shape[0] - 1),
            (int32_t)tensor_rows(o->in[0]), cols, team};
}

static int64_t teams_of(int64_t rows) { return div_up(rows, ROWS); }

static dim3 segment_grid(Segments s) { return grid_for(teams_of(s.N) * s.team); }

/* A team's place: row r of segment m, and the columns lane, lane + team, ... */
typedef struct Walk {
    int32_t m, r, end; /* end: of the team's rows */
    int lane;
} Walk;

static __device__ __forceinline__ Walk walk_begin(Segments s) {
    const int32_t team = (int32_t)(global_thread() / s.team);
    Walk w = {0, team * ROWS, (team + 1) * ROWS, (int)threadIdx.x % s.team};
    if (w.end > s.N) w.end = s.N;
    for (int32_t after = s.M; after - w.m > 1;) { /* at[m] <= r < at[after] */
        const int32_t middle = w.m + (after - w.m) / 2;
        if (s.at[middle] <= w.r)
            w.m = middle;
        else
            after = middle;
    }
    return w;
}

static __device__ __forceinline__ void walk_on(Walk *w, Segments s) {
    w->r++;
    if (w->r < w->end && w->r == s.at[w->m + 1]) w->m++;
}

/* Row r, and column j of it, counted in packs. */
static __device__ __forceinline__ int64_t place(Segments s, int32_t r, int j) {
    return (int64_t)r * s.cols + j;
}

/* ---- pooling ----
 *
 * A team pools the rows that it walks. A segment that lies within them is done; of one that began
 * before or goes on behind, it leaves what it has, and a block for each segment that goes on puts
 * these parts together, in the order of the rows: of 5000 rows 626 parts at most. Reads x once; for
 * eight rows at most two rows of parts are written and read. */

/* What is kept of some numbers of a column: their sum, or the largest and its row. */
typedef struct Sum {
    float v;
} Sum;
typedef struct Largest {
    float v;
    int32_t row; /* -1: of no number yet */
} Largest;

static __device__ __forceinline__ void begin(Sum *a) { a->v = 0; }
static __device__ __forceinline__ void begin(Largest *a) { *a = {0, -1}; }

static __device__ __forceinline__ void lift(Sum *a, float x, int32_t row) {
    (void)row;
    a->v = x;
}
static __device__ __forceinline__ void lift(Largest *a, float x, int32_t row) { *a = {x, row}; }

/* b comes from rows behind a's. The first one of equals stays, and a NaN is the largest of all. */
static __device__ __forceinline__ void join(Sum *a, Sum b) { a->v += b.v; }
static __device__ __forceinline__ void join(Largest *a, Largest b) {
    if (b.row >= 0 && (a->row < 0 || b.v > a->v || b.v != b.v)) *a = b;
}

/* Number `at` of y, and of the rows that the largest came from; the segment has n rows. */
template <typename V>
static __device__ __forceinline__ void finish(V *y, int32_t *from, int64_t at, const Sum *a,
                                              int32_t n) {
    (void)from;
    Pack<float, V::N> mean;
    for (int k = 0; k < V::N; k++) mean.at[k] = a[k].v / (float)n;
    put(y + at, mean, false);
}
template <typename V>
static __device__ __forceinline__ void finish(V *y, int32_t *from, int64_t at, const Largest *a,
                                              int32_t n) {
    (void)n;
    Pack<float, V::N> most;
    for (int k = 0; k < V::N; k++) {
        most.at[k] = a[k].v;
        from[at * V::N + k] = a[k].row;
    }
    put(y + at, most, false);
}

/* What teams leave: two rows of parts a team, of a segment that began before its rows and of one
 * that began in them and goes on; and this one's number, or -1. */
template <typename A>
struct Parts {
    A *part;          /* (teams, 2, columns) */
    int32_t *goes_on; /* (teams) */
};

template <typename V, typename A>
static __global__ void pool_rows(Segments s, V *y, int32_t *from, const V *x, Parts<A> parts) {
    const Walk begun = walk_begin(s);
    if (begun.r >= s.N) return;
    const int32_t team = begun.r / ROWS, first = begun.r;
    int32_t goes_on = -1;
    for (int j = begun.lane; j < s.cols; j += s.team) {
        V row[ROWS]; /* all loads are under way before the first is needed */
#pragma unroll
        for (int i = 0; i < ROWS; i++)
            if (first + i < begun.end) row[i] = x[place(s, first + i, j)];
        A pooled[V::N];
        for (int k = 0; k < V::N; k++) begin(&pooled[k]);
        int32_t m = begun.m;
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            if (first + i >= begun.end) break;
            for (int k = 0; k < V::N; k++) {
                A one;
                lift(&one, to_float(row[i].at[k]), first + i);
                join(&pooled[k], one);
            }
            const int32_t from_row = s.at[m], to_row = s.at[m + 1], next = first + i + 1;
            if (next < to_row && next < begun.end) continue;
            if (from_row >= first && next == to_row) {
                finish(y, from, place(s, m, j), pooled, next - from_row);
            } else {
                A *part = parts.part + (place(s, 2 * team + (from_row >= first), j)) * V::N;
                for (int k = 0; k < V::N; k++) part[k] = pooled[k];
                if (from_row >= first) goes_on = m;
            }
            for (int k = 0; k < V::N; k++) begin(&pooled[k]);
            m++;
        }
    }
    if (begun.lane == 0) parts.goes_on[team] = goes_on;
}

/* Block b looks after the segment that began in team b's rows and goes on, which most have not. Its
 * threads are groups as wide as a team; each joins some of the parts, one behind the other, and the
 * first group joins what the groups have. */
enum { JOIN_BLOCK = 128 };

template <typename V, typename A>
static __global__ void join_parts(Segments s, V *y, int32_t *from, Parts<A> parts) {
    __shared__ A joined[JOIN_BLOCK * V::N];
    const int32_t team = (int32_t)blockIdx.x, m = parts.goes_on[team];
    if (m < 0) return;
    const int32_t n = (s.at[m + 1] - 1) / ROWS - team + 1; /* parts */
    const int group = (int)threadIdx.x / s.team, groups = JOIN_BLOCK / s.team;
    const int lane = (int)threadIdx.x % s.team;
    const int32_t share = (n + groups - 1) / groups, begun = group * share;
    const int32_t end = begun + share < n ? begun + share : n;
    for (int j0 = 0; j0 < s.cols; j0 += s.team) {
        const int j = j0 + lane;
        A pooled[V::N];
        for (int k = 0; k < V::N; k++) begin(&pooled[k]);
#pragma unroll 4
        for (int32_t i = begun; i < (j < s.cols ? end : 0); i++) {
            const A *part = parts.part + place(s, 2 * (team + i) + (i == 0), j) * V::N;
            for (int k = 0; k < V::N; k++) join(&pooled[k], part[k]);
        }
        for (int k = 0; k < V::N; k++) joined[k * JOIN_BLOCK + threadIdx.x] = pooled[k];
        __syncthreads();
        if (group == 0 && j < s.cols) {
            for (int g = 1; g < groups; g++)
                for (int k = 0; k < V::N; k++)
                    join(&pooled[k], joined[k * JOIN_BLOCK + g * s.team + lane]);
            finish(y, from, place(s, m, j), pooled, s.at[m + 1] - s.at[m]);
        }
        __syncthreads();
    }
}

/* from: NULL for sums. */
template <typename A>
static void pool(Ctx *c, const OpCall *o, int32_t *from) {
    const int64_t C = tensor_cols(o->in[0]), teams = teams_of(tensor_rows(o->in[0]));
    const size_t part_bytes = sizeof(A) * (size_t)(2 * teams * C);
    Parts<A> parts;
    parts.part = (A *)ctx_workspace(c, part_bytes + sizeof(int32_t) * (size_t)teams);
    parts.goes_on = (int32_t *)((char *)parts.part + part_bytes);
    with_pack(c->dtype, C, [&](auto pack) {
        typedef decltype(pack) V;
        const Segments s = segments_of(o, V::N);
        V *y = (V *)o->out[0]->data;
        launch(c, pool_rows<V, A>, segment_grid(s), BLOCK, 0, s, y, from, (const V *)o->in[0]->data,
               parts);
        launch(c, join_parts<V, A>, (unsigned)teams, JOIN_BLOCK, 0, s, y, from, parts);
    });
}

void cuda_segment_mean_forward(Ctx *c, const OpCall *o) { pool<Sum>(c, o, NULL); }

void cuda_segment_max_forward(Ctx *c, const OpCall *o) {
    pool<Largest>(c, o, (int32_t *)o->saved[0]->data);
}

/* ---- backward: each row is written once, nothing is cleared first and nothing scattered ---- */

template <typename V>
static __global__ void share_out(Segments s, V *dx, const V *dy, bool add) {
    for (Walk w = walk_begin(s); w.r < w.end; walk_on(&w, s)) {
        const float share = 1.0f / (float)(s.at[w.m + 1] - s.at[w.m]);
        for (int j = w.lane; j < s.cols; j += s.team) {
            const V d = dy[place(s, w.m, j)];
            Pack<float, V::N> part;
            for (int k = 0; k < V::N; k++) part.at[k] = to_float(d.at[k]) * share;
            put(dx + place(s, w.r, j), part, add);
        }
    }
}

void cuda_segment_mean_backward(Ctx *c, const OpCall *o) {
    with_pack(c->dtype, tensor_cols(o->in[0]), [&](auto pack) {
        typedef decltype(pack) V;
        const Segments s = segments_of(o, V::N);
        launch(c, share_out<V>, segment_grid(s), BLOCK, 0, s, grad_of<V>(o->in[0]),
               (const V *)o->out[0]->grad, o->in[0]->grad_set);
    });
}

template <typename V>
static __global__ void give_to_largest(Segments s, V *dx, const V *dy, const int32_t *from,
                                       bool add) {
    for (Walk w = walk_begin(s); w.r < w.end; walk_on(&w, s))
        for (int j = w.lane; j < s.cols; j += s.team) {
            const V d = dy[place(s, w.m, j)];
            const Pack<int32_t, V::N> row = ((const Pack<int32_t, V::N> *)from)[place(s, w.m, j)];
            Pack<float, V::N> part;
            for (int k = 0; k < V::N; k++) part.at[k] = row.at[k] == w.r ? to_float(d.at[k]) : 0;
            put(dx + place(s, w.r, j), part, add);
        }
}

void cuda_segment_max_backward(Ctx *c, const OpCall *o) {
    with_pack(c->dtype, tensor_cols(o->in[0]), [&](auto pack) {
        typedef decltype(pack) V;
        const Segments s = segments_of(o, V::N);
        launch(c, give_to_largest<V>, segment_grid(s), BLOCK, 0, s, grad_of<V>(o->in[0]),
               (const V *)o->out[0]->grad, (const int32_t *)o->saved[0]->data, o->in[0]->grad_set);
    });
}

/* ---- class rows ---- */

void cuda_segment_first_forward(Ctx *c, const OpCall *o) {
    cuda_pick_rows(c, o->out[0], o->in[0], o->in[1]);
}

template <typename V>
static __global__ void give_to_first(Segments s, V *dx, const V *dy, bool add) {
    for (Walk w = walk_begin(s); w.r < w.end; walk_on(&w, s)) {
        const bool is_first = w.r == s.at[w.m];
        for (int j = w.lane; j < s.cols && (is_first || !add); j += s.team)
            put(dx + place(s, w.r, j), is_first ? dy[place(s, w.m, j)] : V(), add);
    }
}

void cuda_segment_first_backward(Ctx *c, const OpCall *o) {
    with_pack(c->dtype, tensor_cols(o->in[0]), [&](auto pack) {
        typedef decltype(pack) V;
        const Segments s = segments_of(o, V::N);
        launch(c, give_to_first<V>, segment_grid(s), BLOCK, 0, s, grad_of<V>(o->in[0]),
               (const V *)o->out[0]->grad, o->in[0]->grad_set);
    });
}

/* Row r of segment m stands in row r + m + 1 of y, and the token in the row before the first. */
template <typename V>
static __global__ void prepend_token(Segments s, V *y, const V *x, const V *token) {
    for (Walk w = walk_begin(s); w.r < w.end; walk_on(&w, s)) {
        const bool is_first = w.r == s.at[w.m];
        for (int j = w.lane; j < s.cols; j += s.team) {
            if (is_first) y[place(s, w.r + w.m, j)] = token[j];
            y[place(s, w.r + w.m + 1, j)] = x[place(s, w.r, j)];
        }
    }
}

void cuda_segment_prepend_forward(Ctx *c, const OpCall *o) {
    with_pack(c->dtype, tensor_cols(o->in[0]), [&](auto pack) {
        typedef decltype(pack) V;
        const Segments s = segments_of(o, V::N);
        launch(c, prepend_token<V>, segment_grid(s), BLOCK, 0, s, (V *)o->out[0]->data,
               (const V *)o->in[0]->data, (const V *)o->in[2]->data);
    });
}

template <typename V>
static __global__ void leave_token(Segments s, V *dx, const V *dy, bool add) {
    for (Walk w = walk_begin(s); w.r < w.end; walk_on(&w, s))
        for (int j = w.lane; j < s.cols; j += s.team)
            put(dx + place(s, w.r, j), dy[place(s, w.r + w.m + 1, j)], add);
}

/* Each segment's first row of dy. */
template <typename V>
struct TokenRows {
    const V *dy;
    const int32_t *at;
    int64_t cols; /* packs */
};

template <typename V>
static __device__ __forceinline__ void add_row(TokenRows<V> rows, int64_t m, int64_t j,
                                               Pack<float, V::N> *sum) {
    const V d = rows.dy[(rows.at[m] + m) * rows.cols + j];
    for (int k = 0; k < V::N; k++) sum->at[k] += to_float(d.at[k]);
}

void cuda_segment_prepend_backward(Ctx *c, const OpCall *o) {
    const int64_t M = o->in[1]->shape[0] - 1, C = tensor_cols(o->in[0]);
    with_pack(c->dtype, C, [&](auto pack) {
        typedef decltype(pack) V;
        const Segments s = segments_of(o, V::N);
        const V *dy = (const V *)o->out[0]->grad;
        if (o->in[0]->grad)
            launch(c, leave_token<V>, segment_grid(s), BLOCK, 0, s, grad_of<V>(o->in[0]), dy,
                   o->in[0]->grad_set);
        if (o->in[2]->grad)
            sum_rows<V>(c, TokenRows<V>{dy, s.at, s.cols}, M, s.cols, SUM_BLOCKS, o->in[2]);
    });
}
