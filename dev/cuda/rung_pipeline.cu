/* Rung 4: copies beside the computation.
 *
 * cp.async copies 16 bytes from memory to shared memory without a register between and without
 * waiting. There is room for two tiles: while one is computed the next one is on its way, and one
 * barrier a tile is enough: behind it the tile is there for all, and nobody reads the one before
 * any more, whose room the next copies take.
 *
 * Instead of padding, rows are swizzled: the chunk c of 16 bytes of row r lies at c ^ (r mod 8), so
 * that both ldmatrix and the copies meet all banks, and a row is 128 bytes: three blocks' tiles fit
 * where two did, and it is the layout that the copy engine of rung 5 makes. tile_load, load_a and
 * load_b (kernels/cuda/flash_tile.cuh) are the loads and fragments of rung 3 in that layout.
 *
 * What it costs: the clocks of rung 3, of which shared memory's are the most: 700 for 1.05 Mflop,
 * 1500 flops a clock, 340 TFLOP/s if all the rest hides behind; expect 200 to 250. The shipped
 * kernel for all GPUs is this one with 32 queries a warp, so that a fragment of keys or values
 * serves two products (450 clocks of shared memory for the same work), with shrinking left out
 * where the maximum hardly grows, and with masks. */
#include "dev/cuda/ladder.cuh"

enum { D = HEAD_SIZE, THREADS = 128, ROWS = 64, KEYS = 64 };

struct Shared {
    bf16 q[ROWS * D], k[2][KEYS * D], v[2][KEYS * D];
};

static __device__ __forceinline__ void scores(float (&s)[KEYS / 8][4], bf16 *q, int row, bf16 *k) {
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
#pragma unroll
    for (int d = 0; d < D; d += 16) {
        uint32_t a[4];
        load_a<D>(a, q, row, d);
#pragma unroll
        for (int n = 0; n < KEYS / 8; n += 2) {
            uint32_t b[4];
            load_b<D>(b, k, 8 * n, d);
            mma_m16n8k16(s[n], a, b);
            mma_m16n8k16(s[n + 1], a, b + 2);
        }
    }
}

static __device__ __forceinline__ void values(Rows &r, const float (&p)[KEYS / 8][4], bf16 *v) {
#pragma unroll
    for (int n = 0; n < KEYS / 8; n += 2) {
        uint32_t a[4];
        pack_a(a, &p[n]);
#pragma unroll
        for (int d = 0; d < D / 8; d += 2) {
            uint32_t b[4];
            load_b_trans<D>(b, v, 8 * n, 8 * d);
            mma_m16n8k16(r.out[d], a, b);
            mma_m16n8k16(r.out[d + 1], a, b + 2);
        }
    }
}

static __global__ void __launch_bounds__(THREADS)
    pipeline_kernel(bf16 *q, bf16 *k, bf16 *v, bf16 *out, int T, bool causal) {
    Shared &shared = *(Shared *)shared_block();
    const int first_row = (gridDim.x - 1 - blockIdx.x) * ROWS;
    const int warp_row = threadIdx.x / WARP * 16, row = first_row + warp_row;
    const int tiles = (causal ? first_row + ROWS : T) / KEYS;
    const int64_t head = (int64_t)blockIdx.y * T * D;
    const FlashRows queries = {q + head, D, T, D, true}, keys = {k + head, D, T, D, true},
                    vals = {v + head, D, T, D, true};
    Rows r;
    rows_begin(r);
    tile_load<ROWS, D, THREADS>(shared.q, queries, first_row);
    tile_load<KEYS, D, THREADS>(shared.k[0], keys, 0);
    tile_load<KEYS, D, THREADS>(shared.v[0], vals, 0);
    cp_async_commit();
    for (int tile = 0; tile < tiles; tile++) {
        const int now = tile % 2, first = tile * KEYS;
        cp_async_wait<0>(); /* this thread's part of the tile is there; behind the barrier, all */
        __syncthreads();
        if (tile + 1 < tiles) {
            tile_load<KEYS, D, THREADS>(shared.k[1 - now], keys, first + KEYS);
            tile_load<KEYS, D, THREADS>(shared.v[1 - now], vals, first + KEYS);
        }
        cp_async_commit();
        float s[KEYS / 8][4], shrink[2];
        scores(s, shared.q, warp_row, shared.k[now]);
        if (causal && first + KEYS > row) rows_hide(s, row, first);
        rows_softmax(r, s, shrink);
        rows_shrink(r, shrink);
        values(r, s, shared.v[now]);
    }
    rows_store(r, out + head + (int64_t)row * D);
}

extern "C" bool rung_pipeline(Ctx *c, const RungArgs *a) {
    launch(c, pipeline_kernel, dim3((unsigned)(a->T / ROWS), (unsigned)a->heads), dim3(THREADS),
           sizeof(Shared), (bf16 *)a->q, (bf16 *)a->k, (bf16 *)a->v, (bf16 *)a->out, a->T,
           a->causal);
    return true;
}
