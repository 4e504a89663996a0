/* Rung 3: tensor cores.
 *
 * A warp has 16 queries and multiplies blocks of 16 x 16 x 8 by mma.sync. Both products of
 * attention are of that kind: scores = q k' (16, 64) and out += p v. An operand is spread over a
 * warp's lanes in fragments (kernels/cuda/ptx.cuh), which ldmatrix reads from shared memory. The
 * scores come out in the layout that p must have as the left operand of the second product: they
 * are rounded to bf16 in place, and never leave the registers.
 *
 * ldmatrix reads 8 rows of 16 bytes at once. Rows of 128 bytes would all begin in the same bank and
 * take eight turns; padded by 16 bytes they begin in eight different groups of four banks.
 *
 * What it costs, a block's tile of 64 x 64, 1.05 Mflop: tensor cores 370 clocks (mma.sync reaches
 * 2850 flops a clock), shared memory 4 warps x 36 fragments of 512 bytes + 16 KiB in and 128 bytes
 * a clock: 700, exponentials 256. But within a block nothing runs beside anything else: it waits
 * for memory, then computes, then waits. Blocks on one multiprocessor fill each other's waits in
 * part: expect 100 to 150 TFLOP/s. */
#include "dev/cuda/ladder.cuh"

enum { D = HEAD_SIZE, THREADS = 128, ROWS = 64, KEYS = 64, PADDED = D + 8 };

struct Shared {
    alignas(16) bf16 q[ROWS * PADDED], k[KEYS * PADDED], v[KEYS * PADDED];
};

static __device__ void load_rows(bf16 *to, const bf16 *from) {
    for (int i = threadIdx.x; i < KEYS * D / 8; i += THREADS)
        *(Pack<bf16> *)&to[i / (D / 8) * PADDED + i % (D / 8) * 8] = load_pack(from + 8 * i);
}

/* s = q k': d in steps of 16, keys by 16. */
static __device__ __forceinline__ void scores(float (&s)[KEYS / 8][4], const bf16 *q,
                                              const bf16 *k) {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
#pragma unroll
    for (int d = 0; d < D; d += 16) {
        uint32_t a[4];
        ldmatrix_x4(a, &q[lane % 16 * PADDED + d + lane / 16 * 8]);
#pragma unroll
        for (int n = 0; n < KEYS / 8; n += 2) {
            uint32_t b[4];
            ldmatrix_x4(b, &k[(8 * n + lane % 8 + lane / 16 * 8) * PADDED + d + lane / 8 % 2 * 8]);
            mma_m16n8k16(s[n], a, b);
            mma_m16n8k16(s[n + 1], a, b + 2);
        }
    }
}

/* out += p v: keys in steps of 16, columns by 16; v is read transposed. */
static __device__ __forceinline__ void values(Rows &r, const float (&p)[KEYS / 8][4],
                                              const bf16 *v) {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n += 2) {
        uint32_t a[4];
        pack_a(a, &p[n]);
#pragma unroll
        for (int d = 0; d < D / 8; d += 2) {
            uint32_t b[4];
            ldmatrix_x4_trans(b, &v[(8 * n + lane % 16) * PADDED + 8 * d + lane / 16 * 8]);
            mma_m16n8k16(r.out[d], a, b);
            mma_m16n8k16(r.out[d + 1], a, b + 2);
        }
    }
}

static __global__ void __launch_bounds__(THREADS)
    tensor_kernel(const bf16 *q, const bf16 *k, const bf16 *v, bf16 *out, int T, bool causal) {
    __shared__ Shared shared;
    const int first_row = (gridDim.x - 1 - blockIdx.x) * ROWS; /* long rows first: they are left
                                                                  to wait for otherwise */
    const int warp_row = threadIdx.x / WARP * 16, row = first_row + warp_row;
    const int64_t head = (int64_t)blockIdx.y * T * D;
    Rows r;
    rows_begin(r);
    load_rows(shared.q, q + head + (int64_t)first_row * D);
    for (int first = 0; first < (causal ? first_row + ROWS : T); first += KEYS) {
        __syncthreads();
        load_rows(shared.k, k + head + (int64_t)first * D);
        load_rows(shared.v, v + head + (int64_t)first * D);
        __syncthreads();
        float s[KEYS / 8][4], shrink[2];
        scores(s, shared.q + warp_row * PADDED, shared.k);
        if (causal && first + KEYS > row) rows_hide(s, row, first);
        rows_softmax(r, s, shrink);
        rows_shrink(r, shrink);
        values(r, s, shared.v);
    }
    rows_store(r, out + head + (int64_t)row * D);
}

extern "C" bool rung_tensor(Ctx *c, const RungArgs *a) {
    launch(c, tensor_kernel, dim3((unsigned)(a->T / ROWS), (unsigned)a->heads), dim3(THREADS), 0,
           (const bf16 *)a->q, (const bf16 *)a->k, (const bf16 *)a->v, (bf16 *)a->out, a->T,
           a->causal);
    return true;
}
