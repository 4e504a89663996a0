/* Correlations by implicit products (sm_90a): what im2col would gather is never in device memory.
 *
 * Images are cut into tiles of 8 x 8 pixels. For one place (ky, kx) of the window and 64 channels
 * the copy engine brings a tile's pixels, shifted, as one box, with the zeros outside of the image;
 * in shared memory they are a panel of 64 rows, an operand of wgmma. Eight pixels make a row of a
 * tile, and eight rows of a panel are what the swizzle repeats after: a tile that is ky rows
 * further down begins ky * 1024 bytes further on. So one box of 8 + k - 1 rows serves all ky.
 *
 * Correlation, of x forward and of dy for dx. A block has 3 tiles, one for each of 3 warpgroups,
 * and up to 192 of the R channels, in 96 registers a thread. A fourth warpgroup copies: for each
 * column of the window (64 channels, kx) the tiles into a ring of 2 stages, and for each ky that
 * part of the weight into a ring of 4. Blocks stay, and take every n-th work; the next work's boxes
 * come while this one's numbers go out.
 *
 * The weight's gradient is a product over pixels. A unit is 64 channels of x at one (ky, kx): its
 * sums over dy (64, up to 192) stay in a warpgroup's registers while its block goes through a part
 * of the tiles. Of a block's 3 units those in one column share a box, of which each further unit
 * adds one row of pixels. Parts leave partial sums, which are added in order: how many there are
 * follows from the shape alone, so the bits do not depend on the GPU.
 *
 * D = R = 192, k = 5, in clocks of a multiprocessor: a column of the window for 3 tiles, which is 5
 * products of 192 x 192 x 64; and one tile for 3 units, a product of as many.
 *                 correlation   gradient
 *   tensor cores         5760       1152   2048 multiply-adds a clock
 *   shared memory        5100       1060   128 bytes a clock; each warpgroup's part of a product
 *                                          reads 8 KiB of its own and 24 KiB that all share
 *   instructions          980        250   65 to 85 a warp for each product, 4 at a time
 *   L2                156 KiB     37 KiB   28 and 33 bytes a clock; the L2 of an H100 is said to
 *                                          give 5.5 TB/s, which is 24 to each
 * At 1.7 GHz the tensor cores of 132 make 920 TFLOP/s, of which L2 allows 810 and 680; a good
 * library reaches 600 to 700 in large products, and that, a tenth less for the gradient, is what to
 * expect. It is a count: nothing of this has been measured. Tiles at edges count whole: images of
 * 24 x 24 waste nothing, 20 x 20 three tenths; where two thirds are wasted im2col is as fast.
 *
 * D channels of the input, R of the output, k x k the window; for the gradient R are dy's. */
#include "kernels/cuda/conv_sm90.cuh"

#include "kernels/cuda/flash_sm90.cuh"
#include "kernels/cuda/tensor_map.cuh"

enum {
    TILE = 8,        /* a tile has 8 x 8 pixels of one image */
    ROW = 8 * PANEL, /* numbers of a row of a tile in a panel */
    ROW_BYTES = 2 * ROW,
    GROUPS = 3, /* warpgroups that multiply; of one more each warp has a thread that copies */
    THREADS = (GROUPS + 1) * WARPGROUP,
    WARPS = GROUPS * WARPGROUP / WARP,
    K_MAX = 5,
    X_STAGES = 2,
    W_STAGES = 4,
    STAGES = 4,       /* of the weight's gradient */
    BLOCKS = 4 * 132, /* of the weight's gradient, about: four a multiprocessor */
    LEAST_TILES = 4   /* that such a block sums */
};

/* Images in tiles, counted across, down and over the images. */
typedef struct Tiles {
    int h, w, k, panels; /* of the input */
    int across, down, n;
} Tiles;

/* A tile's first pixel. */
typedef struct Place {
    int image, y, x;
} Place;

static __device__ __forceinline__ Place tile_place(const Tiles &t, int tile) {
    return {tile / (t.across * t.down), tile / t.across % t.down * TILE, tile % t.across * TILE};
}

static __device__ __forceinline__ void place_next(const Tiles &t, Place &at) {
    at.x += TILE;
    if (at.x < t.w) return;
    at.x = 0;
    at.y += TILE;
    if (at.y < t.h) return;
    at.y = 0;
    at.image++;
}

/* ---- rings ---- */

/* The barriers of a ring (RingPlace says how they are used). */
template <int S>
struct Stages {
    Barrier full[S], empty[S];
};

/* `copies`: how many threads fill a stage. A warp reads it with one arrival for all its lanes,
 * which wait for a product together. */
template <int S>
static __device__ __forceinline__ void stages_init(Stages<S> &s, int copies) {
    for (int i = 0; i < S; i++) {
        barrier_init(&s.full[i], copies);
        barrier_init(&s.empty[i], WARPS);
    }
}

template <int S>
static __device__ __forceinline__ void stage_fill(Stages<S> &s, RingPlace r, int bytes) {
    barrier_wait(&s.empty[r.stage], r.parity ^ 1);
    barrier_expect(&s.full[r.stage], bytes);
}

template <int S>
static __device__ __forceinline__ void stage_wait(Stages<S> &s, RingPlace r) {
    barrier_wait(&s.full[r.stage], r.parity);
}

template <int S>
static __device__ __forceinline__ void stage_release(Stages<S> &s, RingPlace &r) {
    if (threadIdx.x % WARP == 0) barrier_arrive(&s.empty[r.stage]);
    ring_next<S>(r);
}

/* ---- correlation ---- */

typedef struct Correlate {
    TensorMap x_map, w_map;
    const bf16 *bias;
    bf16 *y;
    bool add;
    Tiles tiles;
    int R, works; /* a work: GROUPS tiles, 8 N of the R channels */
} Correlate;

template <int N>
struct CorrelateShared {
    bf16 x[X_STAGES][GROUPS][(TILE + K_MAX - 1) * ROW];
    bf16 w[W_STAGES][N * ROW];
    bf16 out[WARPS][2 * ROW];
    Stages<X_STAGES> xs;
    Stages<W_STAGES> ws;
};

/* One thread: the tiles of warpgroup `group`. */
template <int N>
static __device__ __forceinline__ void correlate_copy_x(const Correlate &p, CorrelateShared<N> &s,
                                                        int group) {
    const Tiles &t = p.tiles;
    const int splits = p.R / (8 * N), half = t.k / 2;
    RingPlace r = {};
    for (int work = blockIdx.x; work < p.works; work += gridDim.x) {
        const Place at = tile_place(t, work / splits * GROUPS + group);
        for (int panel = 0; panel < t.panels; panel++)
            for (int kx = 0; kx < t.k; kx++) {
                stage_fill(s.xs, r, (TILE + t.k - 1) * ROW_BYTES);
                copy_box(s.x[r.stage][group], &p.x_map, &s.xs.full[r.stage], panel * PANEL,
                         at.x + kx - half, at.y - half, at.image);
                ring_next<X_STAGES>(r);
            }
    }
}

/* One thread: the weight, for each panel, kx and ky. */
template <int N>
static __device__ __forceinline__ void correlate_copy_w(const Correlate &p, CorrelateShared<N> &s) {
    const Tiles &t = p.tiles;
    const int splits = p.R / (8 * N), D = t.panels * PANEL;
    RingPlace r = {};
    for (int work = blockIdx.x; work < p.works; work += gridDim.x)
        for (int panel = 0; panel < t.panels; panel++)
            for (int i = 0; i < t.k * t.k; i++) {
                const int tap = i % t.k * t.k + i / t.k;
                stage_fill(s.ws, r, N * ROW_BYTES);
                copy_box(s.w[r.stage], &p.w_map, &s.ws.full[r.stage], tap * D + panel * PANEL,
                         work % splits * 8 * N, 0, 0);
                ring_next<W_STAGES>(r);
            }
}

/* Where a warp's two rows of pixels go. */
typedef struct Rows {
    bf16 *y;          /* the first pixel */
    int down, across; /* how many of them the image has */
} Rows;

static __device__ __forceinline__ Rows rows_of(const Correlate &p, Place at) {
    const Tiles &t = p.tiles;
    const int y = at.y + (int)(threadIdx.x % WARPGROUP / WARP) * 2;
    return {p.y + (((int64_t)at.image * t.h + y) * t.w + at.x) * p.R,
            at.image < t.n / (t.across * t.down) ? t.h - y : 0, t.w - at.x};
}

/* d (two rows of 8 pixels, 64 channels) += bias, and what y has from channel `first` on. */
static __device__ __forceinline__ void correlate_add(const Correlate &p, float (*d)[4], Rows rows,
                                                     int first) {
    const int x = threadIdx.x % WARP / 4, col = first + threadIdx.x % 4 * 2;
#pragma unroll
    for (int row = 0; row < 2; row++) {
        const bool old = p.add && row < rows.down && x < rows.across;
#pragma unroll
        for (int n = 0; n < 8; n++) {
            Pack<bf16, 2> b = {}, y = {};
            if (p.bias) b = load_pack<2>(p.bias + col + 8 * n);
            if (old) y = load_pack<2>(rows.y + (int64_t)(row * p.tiles.w + x) * p.R + col + 8 * n);
#pragma unroll
            for (int e = 0; e < 2; e++) d[n][2 * row + e] += to_float(b.at[e]) + to_float(y.at[e]);
        }
    }
}

/* They go to y. `mine` is the warp's own. */
static __device__ __forceinline__ void correlate_put(const Correlate &p, const float (*d)[4],
                                                     bf16 *mine, Rows rows, int first) {
    const int lane = threadIdx.x % WARP;
    __syncwarp(); /* what was there has been read */
    tile_put<PANEL, 8>(mine, 0, 0, d, 1, 1);
    __syncwarp();
#pragma unroll
    for (int i = lane; i < 2 * TILE * 8; i += WARP) { /* chunks of 16 bytes */
        const int row = i / 8 / TILE, x = i / 8 % TILE;
        if (row >= rows.down || x >= rows.across) continue;
        *(Pack<bf16> *)(rows.y + (int64_t)(row * p.tiles.w + x) * p.R + first + i % 8 * 8) =
            load_pack(tile_at<PANEL>(mine, i / 8, i % 8));
    }
}

template <int N>
static __device__ __forceinline__ void correlate_multiply(const Correlate &p, CorrelateShared<N> &s,
                                                          int group) {
    const Tiles &t = p.tiles;
    const int splits = p.R / (8 * N), warp = group * 4 + (int)(threadIdx.x % WARPGROUP / WARP);
    RingPlace x = {}, w = {};
    float d[N][4];
    for (int work = blockIdx.x; work < p.works; work += gridDim.x) {
        for (int column = 0; column < t.panels * t.k; column++) {
            stage_wait(s.xs, x);
            for (int ky = 0; ky < t.k; ky++) {
                stage_wait(s.ws, w);
                const bf16 *a = s.x[x.stage][group] + ky * ROW, *b = s.w[w.stage];
                wgmma_fence(d);
#pragma unroll
                for (int i = 0; i < PANEL; i += 16)
                    wgmma<false, false>(d, matrix_along(a + i), matrix_along(b + i),
                                        (column | ky | i) != 0);
                wgmma_commit();
                wgmma_wait<0>(d);
                stage_release(s.ws, w);
            }
            stage_release(s.xs, x);
        }
        const Rows rows = rows_of(p, tile_place(t, work / splits * GROUPS + group));
#pragma unroll
        for (int n = 0; n < N; n += 8) {
            const int first = (work % splits * N + n) * 8;
            correlate_add(p, d + n, rows, first);
            correlate_put(p, d + n, s.out[warp], rows, first);
        }
    }
}

template <int N>
static __global__ void __launch_bounds__(THREADS, 1)
    correlate_kernel(const __grid_constant__ Correlate p) {
    CorrelateShared<N> &s = *(CorrelateShared<N> *)shared_block();
    if (threadIdx.x == 0) {
        stages_init(s.xs, GROUPS);
        stages_init(s.ws, 1);
        barrier_fence_init();
    }
    __syncthreads();
    const int group = warpgroup_number();
    if (group == 0) {
        registers_shrink<32>();
        if (threadIdx.x % WARP) return;
        if (threadIdx.x / WARP < GROUPS)
            correlate_copy_x(p, s, (int)threadIdx.x / WARP);
        else
            correlate_copy_w(p, s);
    } else {
        registers_grow<160>();
        correlate_multiply(p, s, group - 1);
    }
}

/* ---- the weight's gradient ---- */

typedef struct Gradient {
    TensorMap x_map, x_row_map, dy_map; /* x_row_map: boxes of one row */
    float *partial;                     /* (parts, units, 64, R) */
    Tiles tiles;
    int R, units, unit_blocks, parts;
} Gradient;

template <int N>
struct GradientShared {
    bf16 x[STAGES][GROUPS * TILE * ROW], dy[STAGES][N * ROW];
    Stages<STAGES> stages;
};

/* 64 channels of x at one place of the window: unit (kx, panel, ky). A block has GROUPS units, and
 * of those that differ by ky alone one lies a row of pixels below the other. */
typedef struct Unit {
    int number, kx, panel, ky;
    int rows, end; /* rows copied for it, those for the units before it left out; and where they end
                      in a stage: its tile is the TILE rows before that */
} Unit;

static __device__ __forceinline__ Unit unit_of(const Gradient &p, int group) {
    const int k = p.tiles.k;
    Unit u = {};
    for (int g = 0; g <= group; g++) {
        u.number = (int)(blockIdx.x % p.unit_blocks) * GROUPS + g;
        u.ky = u.number % k;
        u.rows = g == 0 || u.ky == 0 ? TILE : 1;
        u.end += u.rows;
    }
    u.panel = u.number / k % p.tiles.panels;
    u.kx = u.number / k / p.tiles.panels;
    return u;
}

/* The tiles that a block sums, and which channels of dy it takes. */
typedef struct Share {
    int part, begin, end, first;
} Share;

template <int N>
static __device__ __forceinline__ Share share_of(const Gradient &p) {
    const int splits = p.R / (8 * N), i = (int)blockIdx.x / p.unit_blocks, part = i / splits;
    return {part, (int)((int64_t)p.tiles.n * part / p.parts),
            (int)((int64_t)p.tiles.n * (part + 1) / p.parts), i % splits * 8 * N};
}

/* One thread: the rows of x that the unit of warpgroup `group` adds. */
template <int N>
static __device__ __forceinline__ void gradient_copy_x(const Gradient &p, GradientShared<N> &s,
                                                       int group) {
    const Share share = share_of<N>(p);
    const Unit u = unit_of(p, group);
    const TensorMap *map = u.rows == 1 ? &p.x_row_map : &p.x_map;
    const int right = u.kx - p.tiles.k / 2, down = u.ky - p.tiles.k / 2 + TILE - u.rows;
    Place at = tile_place(p.tiles, share.begin);
    RingPlace r = {};
    for (int tile = share.begin; tile < share.end; tile++) {
        stage_fill(s.stages, r, u.rows * ROW_BYTES);
        copy_box(s.x[r.stage] + (u.end - u.rows) * ROW, map, &s.stages.full[r.stage],
                 u.panel * PANEL, at.x + right, at.y + down, at.image);
        ring_next<STAGES>(r);
        place_next(p.tiles, at);
    }
}

/* One thread: dy. */
template <int N>
static __device__ __forceinline__ void gradient_copy_dy(const Gradient &p, GradientShared<N> &s) {
    const Share share = share_of<N>(p);
    Place at = tile_place(p.tiles, share.begin);
    RingPlace r = {};
    for (int tile = share.begin; tile < share.end; tile++) {
        stage_fill(s.stages, r, N * ROW_BYTES);
#pragma unroll
        for (int n = 0; n < N; n += 8)
            copy_box(s.dy[r.stage] + n * ROW, &p.dy_map, &s.stages.full[r.stage],
                     share.first + 8 * n, at.x, at.y, at.image);
        ring_next<STAGES>(r);
        place_next(p.tiles, at);
    }
}

template <int N>
static __device__ __forceinline__ void gradient_multiply(const Gradient &p, GradientShared<N> &s,
                                                         int group) {
    const Share share = share_of<N>(p);
    const Unit u = unit_of(p, group);
    RingPlace r = {};
    float d[N][4];
    for (int tile = share.begin; tile < share.end; tile++) {
        stage_wait(s.stages, r);
        const bf16 *a = s.x[r.stage] + (u.end - TILE) * ROW, *b = s.dy[r.stage];
        wgmma_fence(d);
#pragma unroll
        for (int row = 0; row < TILE; row += 2)
            wgmma<true, true>(d, matrix_down(a + row * ROW, TILE * ROW_BYTES),
                              matrix_down(b + row * ROW, TILE * ROW_BYTES),
                              tile > share.begin || row > 0);
        wgmma_commit();
        wgmma_wait<0>(d);
        stage_release(s.stages, r);
    }
    if (u.number >= p.units) return;
    const int lane = threadIdx.x % WARP, i = threadIdx.x % WARPGROUP / WARP * 16 + lane / 4;
    float *to = p.partial + (((int64_t)share.part * p.units + u.number) * PANEL + i) * p.R +
                share.first + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < N; n++) {
        *(Pack<float, 2> *)(to + 8 * n) = {d[n][0], d[n][1]};
        *(Pack<float, 2> *)(to + 8 * p.R + 8 * n) = {d[n][2], d[n][3]};
    }
}

template <int N>
static __global__ void __launch_bounds__(THREADS, 1)
    gradient_kernel(const __grid_constant__ Gradient p) {
    GradientShared<N> &s = *(GradientShared<N> *)shared_block();
    if (threadIdx.x == 0) {
        stages_init(s.stages, GROUPS + 1);
        barrier_fence_init();
    }
    __syncthreads();
    const int group = warpgroup_number();
    if (group == 0) {
        registers_shrink<32>();
        if (threadIdx.x % WARP) return;
        if (threadIdx.x / WARP < GROUPS)
            gradient_copy_x(p, s, (int)threadIdx.x / WARP);
        else
            gradient_copy_dy(p, s);
    } else {
        registers_grow<160>();
        gradient_multiply(p, s, group - 1);
    }
}

/* grad (R, D, k k) = or (add) += the parts, in order. */
static __global__ void gradient_sum(float *grad, Gradient p, bool add) {
    const int k = p.tiles.k, D = p.tiles.panels * PANEL;
    const int64_t i = global_thread(), n = (int64_t)p.units * PANEL * p.R;
    if (i >= n) return;
    float sum = 0;
    for (int part = 0; part < p.parts; part++) sum += p.partial[part * n + i];
    const int r = (int)(i % p.R), d = (int)(i / p.R % PANEL), unit = (int)(i / p.R / PANEL);
    const int panel = unit / k % p.tiles.panels, kx = unit / k / p.tiles.panels, ky = unit % k;
    put(grad + ((int64_t)r * D + panel * PANEL + d) * k * k + ky * k + kx, sum, add);
}

/* ---- host ---- */

static int64_t tiles_of(const Correlation *s) {
    return s->n * div_up(s->h, TILE) * div_up(s->w, TILE);
}

bool conv_sm90_fits(const Ctx *c, DType dtype, const Correlation *s) {
    const int64_t tiles = tiles_of(s);
    return dtype == DT_BF16 && cuda_of(c)->arch == 90 && s->D % PANEL == 0 && s->R % PANEL == 0 &&
           s->k <= K_MAX && s->n * s->h * s->w * 3 >= tiles * TILE * TILE && tiles > 0 &&
           tiles < INT_MAX / TILE / TILE;
}

static Tiles tiles_make(const Correlation *s) {
    return {s->h,
            s->w,
            s->k,
            s->D / PANEL,
            (int)div_up(s->w, TILE),
            (int)div_up(s->h, TILE),
            (int)tiles_of(s)};
}

static TensorMap image_map(Ctx *c, const Correlation *s, const void *data, int channels, int rows) {
    return tensor_map_image(c, data, (int)s->n, s->h, s->w, channels, TILE, rows);
}

/* Calls f with an array of as many numbers as channels are taken at once, by eights. */
template <typename F>
static void with_width(int channels, F f) {
    if (channels % 192 == 0)
        f(Pack<float, 24>());
    else if (channels % 128 == 0)
        f(Pack<float, 16>());
    else
        f(Pack<float, 8>());
}

void conv_sm90(Ctx *c, const Correlation *s, const void *x, const void *packed, const void *bias,
               void *y, bool add) {
    Correlate p = {};
    p.x_map = image_map(c, s, x, s->D, TILE + s->k - 1);
    p.bias = (const bf16 *)bias;
    p.y = (bf16 *)y;
    p.add = add;
    p.tiles = tiles_make(s);
    p.R = s->R;
    with_width(s->R, [&](auto width) {
        enum { N = decltype(width)::N };
        p.w_map = tensor_map_image(c, packed, 1, 1, s->R, s->k * s->k * s->D, 8 * N, 1);
        p.works = (int)div_up(p.tiles.n, GROUPS) * (s->R / (8 * N));
        launch(c, correlate_kernel<N>, (unsigned)min(p.works, cuda_of(c)->n_sm), THREADS,
               sizeof(CorrelateShared<N>), p);
    });
}

void conv_sm90_weight(Ctx *c, const Correlation *s, const void *x, const void *dy,
                      const Tensor *weight) {
    Gradient p = {};
    p.x_map = image_map(c, s, x, s->D, TILE);
    p.x_row_map = image_map(c, s, x, s->D, 1);
    p.dy_map = image_map(c, s, dy, s->R, TILE);
    p.tiles = tiles_make(s);
    p.R = s->R;
    p.units = s->k * s->k * p.tiles.panels;
    p.unit_blocks = (int)div_up(p.units, GROUPS);
    const int64_t n = tensor_numel(weight);
    with_width(s->R, [&](auto width) {
        enum { N = decltype(width)::N };
        const int blocks = p.unit_blocks * (s->R / (8 * N));
        p.parts = max(1, min(BLOCKS / blocks, p.tiles.n / LEAST_TILES));
        p.partial = (float *)ctx_workspace(c, sizeof(float) * (size_t)(p.parts * n));
        launch(c, gradient_kernel<N>, (unsigned)(blocks * p.parts), THREADS,
               sizeof(GradientShared<N>), p);
    });
    launch(c, gradient_sum, grid_for(n), BLOCK, 0, (float *)weight->grad, p, weight->grad_set);
}
