/* Rung 6: roles.
 *
 * One warpgroup does nothing but ask for tiles, as early as there is room: a ring of two stages,
 * each with two barriers. full: the tile is there (its phase ends with its bytes); empty: both
 * readers have done with it. Two warpgroups compute, 64 queries each, from the same tiles: a tile
 * is copied once for 128 queries. They wait for no barrier of the whole block, so that one can be
 * in its softmax while the other one's products keep the tensor cores busy.
 *
 * Registers are shared out by need (setmaxnreg): all warpgroups start with 168 a thread; the one
 * that copies keeps 24 of them, the others take 240.
 *
 * A phase of a barrier is told by its parity. Who reads waits for full's phases 0, 1, 0 ...; who
 * fills waits for empty's phase before, 1, 0, 1 ..., the first of which a new barrier lets pass.
 *
 * What it costs: the clocks of rung 5 for 64 x 128: tensor cores 512, exponentials 512, other
 * instructions 320, shared memory 450. Two warpgroups that happen to alternate hide half of the
 * softmax; expect 330 to 400 TFLOP/s. */
#include "dev/cuda/ladder.cuh"
#include "kernels/cuda/ptx_sm90.cuh"
#include "kernels/cuda/tensor_map.cuh"

enum {
    D = HEAD_SIZE,
    GROUP = 128, /* threads of a warpgroup */
    READERS = 2, /* warpgroups that compute */
    THREADS = GROUP * (READERS + 1),
    ROWS = 64 * READERS,
    KEYS = 128,
    STAGES = 2
};

struct Shared {
    bf16 q[ROWS * D], k[STAGES][KEYS * D], v[STAGES][KEYS * D];
    Barrier queries, full[STAGES], empty[STAGES];
};

struct Params {
    TensorMap q, k, v;
    bf16 *out;
    int T;
    bool causal;
};

static __device__ void fill(Shared &shared, const Params &p, int first_row, int tiles) {
    const int head = blockIdx.y;
    barrier_expect(&shared.queries, ROWS * D * (int)sizeof(bf16));
    copy_box(shared.q, &p.q, &shared.queries, 0, first_row, head, 0);
    for (int tile = 0; tile < tiles; tile++) {
        const int stage = tile % STAGES, parity = tile / STAGES % 2;
        barrier_wait(&shared.empty[stage], 1 - parity);
        barrier_expect(&shared.full[stage], 2 * KEYS * D * (int)sizeof(bf16));
        copy_box(shared.k[stage], &p.k, &shared.full[stage], 0, tile * KEYS, head, 0);
        copy_box(shared.v[stage], &p.v, &shared.full[stage], 0, tile * KEYS, head, 0);
    }
}

/* As in rung 5. */
static __device__ __forceinline__ void scores(float (&s)[KEYS / 8][4], const bf16 *q,
                                              const bf16 *k) {
    wgmma_fence(s);
#pragma unroll
    for (int d = 0; d < D; d += 16)
        wgmma<false, false>(s, matrix_along(q + d), matrix_along(k + d), d > 0);
    wgmma_commit();
    wgmma_wait<0>(s);
}

static __device__ __forceinline__ void values(Rows &r, const float (&p)[KEYS / 8][4],
                                              const bf16 *v) {
    uint32_t a[KEYS / 16][4];
#pragma unroll
    for (int n = 0; n < KEYS / 16; n++) pack_a(a[n], &p[2 * n]);
    wgmma_fence(r.out);
#pragma unroll
    for (int n = 0; n < KEYS / 16; n++)
        wgmma<true>(r.out, a[n], matrix_down(v + 16 * n * D, 0), true);
    wgmma_commit();
    wgmma_wait<0>(r.out);
}

/* `group`: this warpgroup's 64 rows of the block's. */
static __device__ void read(Shared &shared, const Params &p, int first_row, int tiles, int group) {
    const int row = first_row + 64 * group + threadIdx.x % GROUP / WARP * 16;
    Rows r;
    rows_begin(r);
    barrier_wait(&shared.queries, 0);
    for (int tile = 0; tile < tiles; tile++) {
        const int stage = tile % STAGES, first = tile * KEYS;
        barrier_wait(&shared.full[stage], tile / STAGES % 2);
        float s[KEYS / 8][4], shrink[2];
        scores(s, shared.q + 64 * group * D, shared.k[stage]);
        if (p.causal && first + KEYS > row) rows_hide(s, row, first);
        rows_softmax(r, s, shrink);
        rows_shrink(r, shrink);
        values(r, s, shared.v[stage]);
        if (threadIdx.x % WARP == 0) barrier_arrive(&shared.empty[stage]);
    }
    rows_store(r, p.out + ((int64_t)blockIdx.y * p.T + row) * D);
}

static __global__ void __launch_bounds__(THREADS, 1)
    roles_kernel(const __grid_constant__ Params p) {
    Shared &shared = *(Shared *)shared_block();
    const int first_row = (gridDim.x - 1 - blockIdx.x) * ROWS;
    const int tiles = (p.causal ? first_row + ROWS : p.T) / KEYS;
    if (threadIdx.x == 0) {
        barrier_init(&shared.queries, 1);
        for (int i = 0; i < STAGES; i++) {
            barrier_init(&shared.full[i], 1);
            barrier_init(&shared.empty[i], READERS * GROUP / WARP); /* a lane of each warp */
        }
        barrier_fence_init();
    }
    __syncthreads();
    if (threadIdx.x < GROUP) {
        registers_shrink<24>();
        if (threadIdx.x == 0) fill(shared, p, first_row, tiles);
    } else {
        registers_grow<240>();
        read(shared, p, first_row, tiles, threadIdx.x / GROUP - 1);
    }
}

extern "C" bool rung_roles(Ctx *c, const RungArgs *a) {
    if (cuda_of(c)->arch != 90) return false;
    const AttnStride s = {.b = (int64_t)a->heads * a->T * D, .t = D, .h = (int64_t)a->T * D};
    const Params p = {tensor_map(c, a->q, s, 1, a->T, a->heads, D, ROWS),
                      tensor_map(c, a->k, s, 1, a->T, a->heads, D, KEYS),
                      tensor_map(c, a->v, s, 1, a->T, a->heads, D, KEYS),
                      (bf16 *)a->out,
                      a->T,
                      a->causal};
    launch(c, roles_kernel, dim3((unsigned)(a->T / ROWS), (unsigned)a->heads), dim3(THREADS),
           sizeof(Shared), p);
    return true;
}
