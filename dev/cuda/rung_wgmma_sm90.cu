/* Rung 5: Hopper's copy engine, and the products of a warpgroup.
 *
 * Copies: one thread asks for a box of a tensor, which a TensorMap describes, and the copy engine
 * brings it: addresses, bounds and the swizzle are no longer the threads' work, and the data passes
 * no register. A Barrier counts the bytes that were announced; waiting for its phase to end is
 * waiting for the data.
 *
 * Products: wgmma multiplies 64 x 16 by 16 x 128 for the four warps of a warpgroup at once. Keys
 * and values are read from shared memory where they lie, once for 64 queries instead of once a
 * warp: no ldmatrix, no registers for them. It is asynchronous: fence, issue, commit, wait. Of its
 * operands the left one may be in registers: p, as before. Only so are tensor cores full: 4096
 * flops a clock instead of mma.sync's 2850.
 *
 * What it costs, a tile of 64 queries and 128 keys, 2.1 Mflop: tensor cores 512 clocks,
 * exponentials 512, other instructions 320, shared memory 560. A block here does one after the
 * other: copy, wait, scores, wait, softmax, out, wait. Three blocks on a multiprocessor have the
 * room to fill each other's waits, which nobody arranges: expect 250 to 300 TFLOP/s. */
#include "dev/cuda/ladder.cuh"
#include "kernels/cuda/ptx_sm90.cuh"
#include "kernels/cuda/tensor_map.cuh"

enum { D = HEAD_SIZE, THREADS = 128, ROWS = 64, KEYS = 128 };

struct Shared { /* panels, each at a multiple of 1024 bytes */
    bf16 q[ROWS * D], k[KEYS * D], v[KEYS * D];
    Barrier there;
};

struct Params {
    TensorMap q, k, v;
    bf16 *out;
    int T;
    bool causal;
};

/* s = q k': four steps of 16 over d, along the rows of both. */
static __device__ __forceinline__ void scores(float (&s)[KEYS / 8][4], const bf16 *q,
                                              const bf16 *k) {
    wgmma_fence(s);
#pragma unroll
    for (int d = 0; d < D; d += 16)
        wgmma<false, false>(s, matrix_along(q + d), matrix_along(k + d), d > 0);
    wgmma_commit();
    wgmma_wait<0>(s);
}

/* out += p v: eight steps of 16 keys, down the rows of v. */
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

static __global__ void __launch_bounds__(THREADS) wgmma_kernel(const __grid_constant__ Params p) {
    Shared &shared = *(Shared *)shared_block();
    const int first_row = (gridDim.x - 1 - blockIdx.x) * ROWS, head = blockIdx.y;
    const int row = first_row + threadIdx.x / WARP * 16;
    const int end = p.causal ? first_row + ROWS : p.T;
    if (threadIdx.x == 0) {
        barrier_init(&shared.there, 1); /* one thread arrives: the one that announces bytes */
        barrier_fence_init();
    }
    __syncthreads();
    Rows r;
    rows_begin(r);
    for (int first = 0, phase = 0; first < end; first += KEYS, phase ^= 1) {
        if (threadIdx.x == 0) {
            const int rows = 2 * KEYS + (first == 0 ? ROWS : 0);
            barrier_expect(&shared.there, rows * D * (int)sizeof(bf16));
            if (first == 0) copy_box(shared.q, &p.q, &shared.there, 0, first_row, head, 0);
            copy_box(shared.k, &p.k, &shared.there, 0, first, head, 0);
            copy_box(shared.v, &p.v, &shared.there, 0, first, head, 0);
        }
        barrier_wait(&shared.there, phase);
        float s[KEYS / 8][4], shrink[2];
        scores(s, shared.q, shared.k);
        if (p.causal && first + KEYS > row) rows_hide(s, row, first);
        rows_softmax(r, s, shrink);
        rows_shrink(r, shrink);
        values(r, s, shared.v);
        __syncthreads(); /* nobody reads the tile any more */
    }
    rows_store(r, p.out + ((int64_t)head * p.T + row) * D);
}

extern "C" bool rung_wgmma(Ctx *c, const RungArgs *a) {
    if (cuda_of(c)->arch != 90) return false;
    const AttnStride s = {.b = (int64_t)a->heads * a->T * D, .t = D, .h = (int64_t)a->T * D};
    const Params p = {tensor_map(c, a->q, s, 1, a->T, a->heads, D, ROWS),
                      tensor_map(c, a->k, s, 1, a->T, a->heads, D, KEYS),
                      tensor_map(c, a->v, s, 1, a->T, a->heads, D, KEYS),
                      (bf16 *)a->out,
                      a->T,
                      a->causal};
    launch(c, wgmma_kernel, dim3((unsigned)(a->T / ROWS), (unsigned)a->heads), dim3(THREADS),
           sizeof(Shared), p);
    return true;
}
