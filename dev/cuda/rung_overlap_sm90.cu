/* Rung 7: softmax beside the products of the same warpgroup.
 *
 * In rung 6 a warpgroup waits for its scores, then for its sums, and only another warpgroup may
 * keep the tensor cores busy meanwhile. But the scores of the next tile need nothing of this one:
 *
 *     begin  s = q k'     of tile t
 *     begin  out += p v   of tile t - 1, queued behind it
 *     wait for s alone; its softmax runs while out is under way
 *     wait for out, shrink it, and turn s into the next p
 *
 * So the exponentials cost no time of the tensor cores as long as both take equally long, which at
 * D 64 they do: 512 clocks each for 64 x 128. What a sum still needs must stay: p of the tile
 * before in its own 32 registers until out has been waited for, and v longer than k, so that the
 * two have barriers of their own. out can shrink only when nobody adds to it.
 *
 * What it costs is what rung 6 costs, but in parallel: tensor cores and exponentials 512, the other
 * instructions 320 of a multiprocessor that can issue them beside. FlashAttention-3, which this is,
 * reports 460 TFLOP/s at D 64 and T 2k. The last rung, kernels/cuda/flash_forward_sm90.cuh, is this
 * one with three warpgroups that take turns at the tensor cores, blocks that draw one item of work
 * after the other, out by the copy engine, sums that shrink only where they must, and masks. */
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
    Barrier queries, k_full[STAGES], k_empty[STAGES], v_full[STAGES], v_empty[STAGES];
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
        barrier_wait(&shared.k_empty[stage], 1 - parity);
        barrier_expect(&shared.k_full[stage], KEYS * D * (int)sizeof(bf16));
        copy_box(shared.k[stage], &p.k, &shared.k_full[stage], 0, tile * KEYS, head, 0);
        barrier_wait(&shared.v_empty[stage], 1 - parity);
        barrier_expect(&shared.v_full[stage], KEYS * D * (int)sizeof(bf16));
        copy_box(shared.v[stage], &p.v, &shared.v_full[stage], 0, tile * KEYS, head, 0);
    }
}

/* Begins s = q k'. */
static __device__ __forceinline__ void begin_scores(float (&s)[KEYS / 8][4], const bf16 *q,
                                                    const bf16 *k) {
    wgmma_fence(s);
#pragma unroll
    for (int d = 0; d < D; d += 16)
        wgmma<false, false>(s, matrix_along(q + d), matrix_along(k + d), d > 0);
    wgmma_commit();
}

/* Begins out += p v. */
static __device__ __forceinline__ void begin_values(Rows &r, const uint32_t (&p)[KEYS / 16][4],
                                                    const bf16 *v) {
    wgmma_fence(r.out);
#pragma unroll
    for (int n = 0; n < KEYS / 16; n++)
        wgmma<true>(r.out, p[n], matrix_down(v + 16 * n * D, 0), true);
    wgmma_commit();
}

static __device__ __forceinline__ void pack(uint32_t (&a)[KEYS / 16][4],
                                            const float (&p)[KEYS / 8][4]) {
#pragma unroll
    for (int n = 0; n < KEYS / 16; n++) pack_a(a[n], &p[2 * n]);
}

/* By each warp: it has done with what the barrier guards. */
static __device__ __forceinline__ void give_back(Barrier *empty) {
    if (threadIdx.x % WARP == 0) barrier_arrive(empty);
}

/* `group`: this warpgroup's 64 rows of the block's. */
static __device__ void read(Shared &shared, const Params &p, int first_row, int tiles, int group) {
    const int row = first_row + 64 * group + threadIdx.x % GROUP / WARP * 16;
    const bf16 *q = shared.q + 64 * group * D;
    float s[KEYS / 8][4], shrink[2];
    uint32_t weights[KEYS / 16][4]; /* p, as the left operand of its product */
    Rows r;
    rows_begin(r);
    barrier_wait(&shared.queries, 0);
    barrier_wait(&shared.k_full[0], 0);
    begin_scores(s, q, shared.k[0]);
    wgmma_wait<0>(s);
    give_back(&shared.k_empty[0]);
    if (p.causal && KEYS > row) rows_hide(s, row, 0);
    rows_softmax(r, s, shrink); /* out is 0 yet */
    pack(weights, s);
    for (int tile = 1; tile < tiles; tile++) {
        const int stage = tile % STAGES, before = (tile - 1) % STAGES, first = tile * KEYS;
        barrier_wait(&shared.k_full[stage], tile / STAGES % 2);
        begin_scores(s, q, shared.k[stage]);
        barrier_wait(&shared.v_full[before], (tile - 1) / STAGES % 2);
        begin_values(r, weights, shared.v[before]);
        wgmma_wait<1>(s); /* all but the latest group: out is under way */
        give_back(&shared.k_empty[stage]);
        if (p.causal && first + KEYS > row) rows_hide(s, row, first);
        rows_softmax(r, s, shrink);
        wgmma_wait<0>(r.out);
        give_back(&shared.v_empty[before]);
        rows_shrink(r, shrink);
        pack(weights, s);
    }
    const int last = (tiles - 1) % STAGES;
    barrier_wait(&shared.v_full[last], (tiles - 1) / STAGES % 2);
    begin_values(r, weights, shared.v[last]);
    wgmma_wait<0>(r.out);
    give_back(&shared.v_empty[last]);
    rows_store(r, p.out + ((int64_t)blockIdx.y * p.T + row) * D);
}

static __global__ void __launch_bounds__(THREADS, 1)
    overlap_kernel(const __grid_constant__ Params p) {
    Shared &shared = *(Shared *)shared_block();
    const int first_row = (gridDim.x - 1 - blockIdx.x) * ROWS;
    const int tiles = (p.causal ? first_row + ROWS : p.T) / KEYS;
    if (threadIdx.x == 0) {
        barrier_init(&shared.queries, 1);
        for (int i = 0; i < STAGES; i++) {
            barrier_init(&shared.k_full[i], 1);
            barrier_init(&shared.v_full[i], 1);
            barrier_init(&shared.k_empty[i], READERS * GROUP / WARP);
            barrier_init(&shared.v_empty[i], READERS * GROUP / WARP);
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

extern "C" bool rung_overlap(Ctx *c, const RungArgs *a) {
    if (cuda_of(c)->arch != 90) return false;
    const AttnStride s = {.b = (int64_t)a->heads * a->T * D, .t = D, .h = (int64_t)a->T * D};
    const Params p = {tensor_map(c, a->q, s, 1, a->T, a->heads, D, ROWS),
                      tensor_map(c, a->k, s, 1, a->T, a->heads, D, KEYS),
                      tensor_map(c, a->v, s, 1, a->T, a->heads, D, KEYS),
                      (bf16 *)a->out,
                      a->T,
                      a->causal};
    launch(c, overlap_kernel, dim3((unsigned)(a->T / ROWS), (unsigned)a->heads), dim3(THREADS),
           sizeof(Shared), p);
    return true;
}
