/* Ops that only move numbers: each is read once and written once. */
#include "kernels/cuda/rows.cuh"

/* ---- rows at strides ---- */

/* to = or += from, or zeros where from is NULL. */
template <typename To, typename From>
static __global__ void copy_packs(To *to, int64_t to_stride, const From *from, int64_t from_stride,
                                  int64_t n, int64_t cols, bool add) {
    const int64_t i = global_thread();
    if (i >= n) return;
    const int64_t r = i / cols, j = i - r * cols;
    put(to + r * to_stride + j, from ? from[r * from_stride + j] : From(), add);
}

/* Part of the rows of a tensor: columns from `first` on. */
typedef struct Columns {
    const void *data;
    int64_t stride, first;
} Columns;

/* cols columns of `rows` rows: to = or += from. data NULL: zeros. */
static void copy_rows(Ctx *c, DType dtype, Columns to, Columns from, int64_t rows, int64_t cols,
                      bool add) {
    const int64_t n = rows * cols, lengths = to.stride | to.first | from.stride | from.first | cols;
    with_pack(dtype, lengths, [&](auto pack) {
        typedef decltype(pack) V;
        const V *source = from.data ? (const V *)from.data + from.first / V::N : NULL;
        launch(c, copy_packs<V, V>, grid_for(n / V::N), BLOCK, 0, (V *)to.data + to.first / V::N,
               to.stride / V::N, source, from.stride / V::N, n / V::N, cols / V::N, add);
    });
}

/* A frame is `patches` numbers, then `registers`. */
typedef struct Frames {
    int64_t n, patches, size;
} Frames;

static Frames frames_of(const Tensor *patches, int64_t registers) {
    const int64_t *s = patches->shape;
    return {s[0] * s[1], s[2] * s[3], (s[2] + registers) * s[3]};
}

void cuda_append_registers_forward(Ctx *c, const OpCall *o) {
    const Frames f = frames_of(o->in[0], o->attr.registers);
    void *y = o->out[0]->data;
    copy_rows(c, c->dtype, {y, f.size, 0}, {o->in[0]->data, f.patches, 0}, f.n, f.patches, false);
    copy_rows(c, c->dtype, {y, f.size, f.patches}, {o->in[1]->data, 0, 0}, f.n, f.size - f.patches,
              false);
}

void cuda_append_registers_backward(Ctx *c, const OpCall *o) {
    const Frames f = frames_of(o->in[0], o->attr.registers);
    const char *dy = (const char *)o->out[0]->grad;
    if (o->in[0]->grad)
        copy_rows(c, c->dtype, {o->in[0]->grad, f.patches, 0}, {dy, f.size, 0}, f.n, f.patches,
                  o->in[0]->grad_set);
    if (o->in[1]->grad)
        cuda_sum_rows(c, c->dtype, dy + (size_t)f.patches * dtype_size(c->dtype), f.size, f.n,
                      o->in[1]);
}

void cuda_drop_registers_forward(Ctx *c, const OpCall *o) {
    const Frames f = frames_of(o->out[0], o->attr.registers);
    copy_rows(c, c->dtype, {o->out[0]->data, f.patches, 0}, {o->in[0]->data, f.size, 0}, f.n,
              f.patches, false);
}

void cuda_drop_registers_backward(Ctx *c, const OpCall *o) {
    const Frames f = frames_of(o->out[0], o->attr.registers);
    void *dx = o->in[0]->grad;
    const bool add = o->in[0]->grad_set;
    copy_rows(c, c->dtype, {dx, f.size, 0}, {o->out[0]->grad, f.patches, 0}, f.n, f.patches, add);
    if (!add)
        copy_rows(c, c->dtype, {dx, f.size, f.patches}, {NULL, 0, 0}, f.n, f.size - f.patches,
                  false);
}

void cuda_concat_forward(Ctx *c, const OpCall *o) {
    const int64_t rows = tensor_rows(o->in[0]), cols = tensor_cols(o->out[0]);
    for (int k = 0; k < 2; k++) {
        const int64_t n = tensor_cols(o->in[k]), first = k ? cols - n : 0;
        copy_rows(c, c->dtype, {o->out[0]->data, cols, first}, {o->in[k]->data, n, 0}, rows, n,
                  false);
    }
}

void cuda_concat_backward(Ctx *c, const OpCall *o) {
    const int64_t rows = tensor_rows(o->in[0]), cols = tensor_cols(o->out[0]);
    for (int k = 0; k < 2; k++) {
        const int64_t n = tensor_cols(o->in[k]), first = k ? cols - n : 0;
        if (o->in[k]->grad)
            copy_rows(c, c->dtype, {o->in[k]->grad, n, 0}, {o->out[0]->grad, cols, first}, rows, n,
                      o->in[k]->grad_set);
    }
}

/* Rounds on the way. Without columns to add, all rows are one. */
void cuda_pad_forward(Ctx *c, const OpCall *o) {
    const int64_t K = tensor_cols(o->in[0]), C = tensor_cols(o->out[0]);
    const int64_t rows = K == C ? 1 : tensor_rows(o->in[0]);
    const int64_t cols = tensor_numel(o->in[0]) / rows, stride = tensor_numel(o->out[0]) / rows;
    with_pack(c->dtype, cols | stride, [&](auto pack) {
        typedef decltype(pack) V;
        typedef Pack<float, V::N> Exact;
        launch(c, copy_packs<V, Exact>, grid_for(rows * cols / V::N), BLOCK, 0,
               (V *)o->out[0]->data, stride / V::N, (const Exact *)o->in[0]->data, cols / V::N,
               rows * cols / V::N, cols / V::N, false);
    });
    if (stride > cols)
        copy_rows(c, c->dtype, {o->out[0]->data, stride, cols}, {NULL, 0, 0}, rows, stride - cols,
                  false);
}

void cuda_copy_forward(Ctx *c, const OpCall *o) {
    CUDA(c, cudaMemcpyAsync(o->out[0]->data, o->in[0]->data, tensor_bytes(o->in[0]),
                            cudaMemcpyDeviceToDevice, cuda_of(c)->stream));
}

/* ---- patches ---- */

typedef struct Patches {
    int64_t n, wide, w; /* patches of all images; patches and pixels of an image's row */
    int P, taps, c;     /* patch side, P P; channels */
} Patches;

static Patches patches_of(const OpCall *o, const Tensor *image) {
    const int64_t *s = image->shape, P = o->attr.patch;
    return {s[0] * s[1] * (s[2] / P) * (s[3] / P), s[3] / P, s[3], (int)P, (int)(P * P), (int)s[4]};
}

/* A patch is (taps, c) in the image, where a tap's channels are neighbours, and (c, taps) when it
 * is cut out. A block turns some channels of one patch round in shared memory, so that both sides
 * are read and written in whole lines: TILE numbers at most, or those of the fewest channels, which
 * fit there for patches of up to 120 pixels a side. */
enum { TILE = 2048, TURN_BLOCK = 128 };

static int tile_channels(Patches p, int N) {
    const int fitting = TILE / p.taps / N * N, most = fitting > N ? fitting : N;
    return p.c < most ? p.c : most;
}

/* The block's part, in numbers: `cut` is its first one among the patches, `image` among the images;
 * each tap has `packs` packs of it. */
typedef struct PatchTile {
    int64_t cut, image;
    int packs;
} PatchTile;

static __device__ __forceinline__ PatchTile tile_of(Patches p, int channels, int N) {
    const int tiles = (int)div_up(p.c, channels), first = (int)(blockIdx.x % tiles) * channels;
    const int64_t patch = blockIdx.x / tiles;
    const int64_t pixel = patch / p.wide * p.P * p.w + patch % p.wide * p.P; /* the upper left */
    return {(patch * p.c + first) * p.taps, pixel * p.c + first,
            (channels < p.c - first ? channels : p.c - first) / N};
}

/* From a patch's first pixel to the one that `tap` looks at. */
static __device__ __forceinline__ int64_t tap_distance(Patches p, int tap) {
    return (tap / p.P * p.w + tap % p.P) * p.c;
}

template <typename V>
static __global__ void cut_patches(V *y, const V *x, Patches p, int channels) {
    typedef typename V::Type T;
    T *turned = (T *)shared_block(); /* (channels, taps) */
    const PatchTile t = tile_of(p, channels, V::N);
    for (int i = (int)threadIdx.x; i < t.packs * p.taps; i += TURN_BLOCK) {
        const int tap = i / t.packs, k = i % t.packs;
        const V v = x[(t.image + tap_distance(p, tap)) / V::N + k];
        for (int j = 0; j < V::N; j++) turned[(k * V::N + j) * p.taps + tap] = v.at[j];
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < t.packs * p.taps; i += TURN_BLOCK)
        y[t.cut / V::N + i] = ((const V *)turned)[i];
}

template <typename V>
static __global__ void join_patches(V *dx, const V *dy, Patches p, int channels, bool add) {
    typedef typename V::Type T;
    T *turned = (T *)shared_block(); /* (channels, taps) */
    const PatchTile t = tile_of(p, channels, V::N);
    for (int i = (int)threadIdx.x; i < t.packs * p.taps; i += TURN_BLOCK)
        ((V *)turned)[i] = dy[t.cut / V::N + i];
    __syncthreads();
    for (int i = (int)threadIdx.x; i < t.packs * p.taps; i += TURN_BLOCK) {
        const int tap = i / t.packs, k = i % t.packs;
        V v;
        for (int j = 0; j < V::N; j++) v.at[j] = turned[(k * V::N + j) * p.taps + tap];
        put(dx + (t.image + tap_distance(p, tap)) / V::N + k, v, add);
    }
}

void cuda_patchify_forward(Ctx *c, const OpCall *o) {
    const Patches p = patches_of(o, o->in[0]);
    with_pack(c->dtype, p.c, [&](auto pack) {
        typedef decltype(pack) V;
        const int channels = tile_channels(p, V::N), tiles = (int)div_up(p.c, channels);
        launch(c, cut_patches<V>, (unsigned)(p.n * tiles), TURN_BLOCK,
               sizeof(V) / V::N * (size_t)(channels * p.taps), (V *)o->out[0]->data,
               (const V *)o->in[0]->data, p, channels);
    });
}

void cuda_patchify_backward(Ctx *c, const OpCall *o) {
    const Patches p = patches_of(o, o->in[0]);
    with_pack(c->dtype, p.c, [&](auto pack) {
        typedef decltype(pack) V;
        const int channels = tile_channels(p, V::N), tiles = (int)div_up(p.c, channels);
        launch(c, join_patches<V>, (unsigned)(p.n * tiles), TURN_BLOCK,
               sizeof(V) / V::N * (size_t)(channels * p.taps), grad_of<V>(o->in[0]),
               (const V *)o->out[0]->grad, p, channels, o->in[0]->grad_set);
    });
}

/* A row of a patch, P pixels of 3 channels, is one run of numbers on both sides. `run` and `row`,
 * an image's, are counted in packs. */
template <typename V, bool CUT>
static __global__ void move_runs(V *to, const V *from, Patches p, int64_t n, int run, int64_t row,
                                 bool add) {
    const int64_t i = global_thread();
    if (i >= n) return;
    const int64_t y = i / row, k = i - y * row, patch = y / p.P * p.wide + k / run;
    const int64_t cut = (patch * p.P + y % p.P) * run + k % run;
    put(to + (CUT ? cut : i), from[CUT ? i : cut], add);
}

template <bool CUT>
static void runs(Ctx *c, const OpCall *o, void *to, const void *from, bool add) {
    const Patches p = patches_of(o, o->out[0]);
    const int64_t n = tensor_numel(o->in[0]);
    with_pack(c->dtype, p.P * p.c, [&](auto pack) {
        typedef decltype(pack) V;
        launch(c, move_runs<V, CUT>, grid_for(n / V::N), BLOCK, 0, (V *)to, (const V *)from, p,
               n / V::N, p.P * p.c / V::N, p.w * p.c / V::N, add);
    });
}

void cuda_unpatchify_forward(Ctx *c, const OpCall *o) {
    runs<false>(c, o, o->out[0]->data, o->in[0]->data, false);
}

void cuda_unpatchify_backward(Ctx *c, const OpCall *o) {
    runs<true>(c, o, o->in[0]->grad, o->out[0]->grad, o->in[0]->grad_set);
}
