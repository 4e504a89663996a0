/* The emulator: kernels and host code that are wrong end with a sentence. Each runs in a process of
 * its own. Races, and what host code does to device memory, are not looked for under ASan. */
#include <cublasLt.h>

#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/ptx.cuh"
#include "test/emu_bug.h"

/* ---- barriers ---- */

static __global__ void no_barrier_kernel(int *y) {
    __shared__ int box[64];
    const int t = (int)threadIdx.x;
    box[t] = t;
    y[t] = box[63 - t];
}
static void no_barrier() { launch(NULL, no_barrier_kernel, 1, 64, 0, zeros<int>(64)); }

/* The next round overwrites what others still read. */
static __global__ void no_second_barrier_kernel(int *y) {
    int *box = (int *)shared_block();
    const int t = (int)threadIdx.x;
    for (int i = 0; i < 2; i++) {
        box[t] = t + i;
        __syncthreads();
        y[t] += box[63 - t];
    }
}
static void no_second_barrier() {
    launch(NULL, no_second_barrier_kernel, 1, 64, 64 * sizeof(int), zeros<int>(64));
}

static __global__ void no_syncwarp_kernel(bf16 *y) {
    __shared__ bf16 box[32];
    const int t = (int)threadIdx.x;
    box[t] = __float2bfloat16_rn((float)t);
    __shfl_sync(FULL_WARP, t, 0); /* waits, and orders no memory */
    y[t] = box[t ^ 1];
}
static void no_syncwarp() { launch(NULL, no_syncwarp_kernel, 1, 32, 0, zeros<bf16>(32)); }

static __global__ void syncwarp_for_block_kernel(int *y) {
    __shared__ int box[64];
    const int t = (int)threadIdx.x;
    box[t] = t;
    __syncwarp();
    y[t] = box[63 - t];
}
static void syncwarp_for_block() {
    launch(NULL, syncwarp_for_block_kernel, 1, 64, 0, zeros<int>(64));
}

static __global__ void syncwarp_of_others_kernel(int *y) {
    __shared__ int box[32];
    const int t = (int)threadIdx.x;
    box[t] = t;
    __syncwarp(t < 16 ? 0x0000ffffu : 0xffff0000u);
    y[t] = box[31 - t];
}
static void syncwarp_of_others() {
    launch(NULL, syncwarp_of_others_kernel, 1, 32, 0, zeros<int>(32));
}

static __global__ void divergent_kernel(int *y) {
    if (threadIdx.x < 32) {
        y[threadIdx.x] = 1;
        __syncthreads();
    } else {
        __syncthreads();
        y[threadIdx.x] = 2;
    }
}
static void divergent() { launch(NULL, divergent_kernel, 1, 64, 0, zeros<int>(64)); }

static __global__ void divergent_warp_kernel(int *y) {
    if (threadIdx.x < 5) __syncthreads();
    y[threadIdx.x] = __shfl_sync(FULL_WARP, 1, 0);
    if (threadIdx.x >= 5) __syncthreads();
}
static void divergent_warp() { launch(NULL, divergent_warp_kernel, 1, 32, 0, zeros<int>(32)); }

/* ---- warps ---- */

static __global__ void not_in_mask_kernel(int *y) {
    y[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, (int)threadIdx.x, 1);
}
static void not_in_mask() { launch(NULL, not_in_mask_kernel, 1, 32, 0, zeros<int>(32)); }

static __global__ void exited_lane_kernel(int *y) {
    if (threadIdx.x >= 20) return;
    y[threadIdx.x] = warp_sum(1);
}
static void exited_lane() { launch(NULL, exited_lane_kernel, 1, 32, 0, zeros<int>(32)); }

static __global__ void other_operation_kernel(int *y) {
    if (threadIdx.x % 2)
        y[threadIdx.x] = __shfl_xor_sync(FULL_WARP, 1, 2);
    else
        y[threadIdx.x] = (int)__ballot_sync(FULL_WARP, 1);
}
static void other_operation() { launch(NULL, other_operation_kernel, 1, 32, 0, zeros<int>(32)); }

static __global__ void outside_of_mask_kernel(int *y) {
    const int t = (int)threadIdx.x;
    if (t < 16) y[t] = __shfl_xor_sync(0x0000ffffu, t, 16);
}
static void outside_of_mask() { launch(NULL, outside_of_mask_kernel, 1, 32, 0, zeros<int>(16)); }

static __global__ void missing_lane_kernel(int *y) { y[threadIdx.x] = warp_sum(1); }
static void missing_lane() { launch(NULL, missing_lane_kernel, 1, 16, 0, zeros<int>(16)); }

/* ---- asynchronous copies; and the same done right, by `right` ---- */

enum Copy { RIGHT, NO_WAIT, NO_COMMIT, TOO_FEW, NO_BARRIER, OVERWRITES };

template <int bug>
static __global__ void copy_kernel(float *y, const float *x) {
    float(*tile)[128] = (float(*)[128])shared_block();
    const int t = (int)threadIdx.x;
    cp_async_16(&tile[0][4 * t], x + 4 * t, true);
    cp_async_commit();
    cp_async_16(&tile[1][4 * t], x + 128 + 4 * t, true);
    if (bug != NO_COMMIT) cp_async_commit();
    if (bug == TOO_FEW)
        cp_async_wait<1>();
    else if (bug != NO_WAIT)
        cp_async_wait<0>();
    if (bug != NO_BARRIER) __syncthreads();
    y[t] = tile[0][127 - t] + tile[1][127 - t];
    if (bug != OVERWRITES) __syncthreads();
    cp_async_16(&tile[0][4 * t], x + 256 + 4 * t, true);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    y[t] += tile[0][127 - t];
}
template <int bug>
static void copy() {
    launch(NULL, copy_kernel<bug>, 1, 32, 2 * 128 * sizeof(float), zeros<float>(32),
           zeros<float>(3 * 128));
}

static __global__ void misaligned_copy_kernel(const float *x) {
    cp_async_16(shared_block() + 16 * threadIdx.x, x + 2, true);
}
static void misaligned_copy() {
    launch(NULL, misaligned_copy_kernel, 1, 32, 512, zeros<float>(32));
}

static __global__ void misaligned_row_kernel(float *y) {
    uint32_t r[4];
    float *row = (float *)shared_block() + 5 * threadIdx.x;
    for (int i = 0; i < 4; i++) row[i] = 0;
    __syncwarp();
    ldmatrix_x4(r, row);
    y[threadIdx.x] = __uint_as_float(r[0]);
}
static void misaligned_row() {
    launch(NULL, misaligned_row_kernel, 1, 32, 32 * 5 * sizeof(float), zeros<float>(32));
}

static __global__ void same_banks_kernel(float *y) {
    uint32_t r[4];
    float *row = (float *)shared_block() + 16 * threadIdx.x;
    for (int i = 0; i < 4; i++) row[i] = 0;
    __syncwarp();
    ldmatrix_x4(r, row);
    y[threadIdx.x] = __uint_as_float(r[0]);
}
static void same_banks() {
    launch(NULL, same_banks_kernel, 1, 32, 32 * 16 * sizeof(float), zeros<float>(32));
}

/* ---- bounds ---- */

static __global__ void past_tile_kernel(float *y, int n) {
    float *tile = (float *)shared_block();
    tile[threadIdx.x] = 1;
    __syncthreads();
    y[threadIdx.x] = tile[(int)threadIdx.x + n];
}
static void past_tile() {
    launch(NULL, past_tile_kernel, 1, 32, 32 * sizeof(float), zeros<float>(32), 1);
}

template <int size>
static __global__ void past_array_kernel(float *y, int n) {
    __shared__ float tile[size];
    tile[threadIdx.x] = 1;
    __syncthreads();
    y[threadIdx.x] = tile[(int)threadIdx.x + n];
}
template <int size>
static void past_array() {
    launch(NULL, past_array_kernel<size>, 1, 32, 0, zeros<float>(32), 1);
}

static __global__ void scale_kernel(float *y, int64_t n) {
    const int64_t i = global_thread();
    if (i <= n) y[i] = 2; /* < n */
}
static void past_tensor() { launch(NULL, scale_kernel, 1, 256, 0, zeros<float>(100), 100); }
static void freed() {
    float *y = zeros<float>(100);
    CUDA(NULL, cudaFree(y));
    launch(NULL, scale_kernel, 1, 256, 0, y, 50);
}
static void memory_of_host() {
    float *y = (float *)malloc(100 * sizeof *y);
    launch(NULL, scale_kernel, 1, 256, 0, y, 50);
    free(y);
}
static void host_touches() {
    volatile float *y = zeros<float>(100);
    y[3] = 1;
}
static void copy_too_long() {
    float x[20];
    CUDA(NULL, cudaMemcpy(x, zeros<float>(10), sizeof x, cudaMemcpyDeviceToHost));
}

/* The host refills a buffer that a copy still reads. */
static void refills_early() {
    float *pinned, *y = zeros<float>(10);
    CUDA(NULL, cudaMallocHost(&pinned, 10 * sizeof *pinned));
    CUDA(NULL, cudaMemcpyAsync(y, pinned, 10 * sizeof *y, cudaMemcpyHostToDevice, NULL));
    pinned[3] = 1;
    CUDA(NULL, cudaDeviceSynchronize());
}

static __global__ void misaligned_kernel(float *y, const float *x) {
    const Pack<float> p = load_pack(x + 1);
    y[threadIdx.x] = p.at[0] + p.at[3];
}
static void misaligned() {
    launch(NULL, misaligned_kernel, 1, 1, 0, zeros<float>(1), zeros<float>(8));
}

/* ---- blocks of one launch ---- */

static __global__ void same_place_kernel(float *y) {
    if (threadIdx.x == 0) *y = (float)blockIdx.x;
}
static void same_place() { launch(NULL, same_place_kernel, 2, 32, 0, zeros<float>(1)); }

static __global__ void neighbour_kernel(float *y, int towards) {
    const int i = (int)blockIdx.x;
    if (threadIdx.x == 0) y[i] = y[i + towards] + 1;
}
static void reads_earlier_block() {
    launch(NULL, neighbour_kernel, 4, 32, 0, zeros<float>(8) + 1, -1);
}
static void reads_later_block() { launch(NULL, neighbour_kernel, 4, 32, 0, zeros<float>(8), 1); }

/* ---- cuBLASLt: D = A A, 4 x 4; all is said to be aligned to 16 bytes ---- */

static void product(float *A, float *D) {
    const uint32_t alignment = 16;
    const float one = 1, zero = 0;
    cublasLtHandle_t blas;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t l;
    cublasLtMatmulPreference_t wishes;
    cublasLtMatmulHeuristicResult_t best;
    int found = 0;
    cublasLtCreate(&blas);
    cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    cublasLtMatrixLayoutCreate(&l, CUDA_R_32F, 4, 4, 4);
    cublasLtMatmulPreferenceCreate(&wishes);
    for (int i = 0; i < 4; i++)
        cublasLtMatmulPreferenceSetAttribute(
            wishes,
            (cublasLtMatmulPreferenceAttributes_t)(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES + i),
            &alignment, sizeof alignment);
    cublasLtMatmulAlgoGetHeuristic(blas, desc, l, l, l, l, wishes, 1, &best, &found);
    cublasLtMatmul(blas, desc, &one, A, l, A, l, &zero, D, l, D, l, &best.algo, NULL, 0, NULL);
}
static void product_short() { product(zeros<float>(15), zeros<float>(16)); }
static void product_unaligned() { product(zeros<float>(17) + 1, zeros<float>(16)); }
static void product_in_place() {
    float *A = zeros<float>(28);
    product(A, A + 12);
}

/* ---- limits ---- */

static void too_many_threads() { launch(NULL, scale_kernel, 1, 1025, 0, zeros<float>(1), 0); }
static void too_much_shared() {
    launch(NULL, scale_kernel, 1, 32, (227 << 10) + 1, zeros<float>(1), 0);
}

/* ---- all of them ---- */

/* A thread that runs ahead of a missing barrier finds nothing there yet. */
#define UNWRITTEN "which nobody of this block has written yet"

static const Bug bugs[] = {
    {"no barrier", no_barrier, UNWRITTEN, NULL},
    {"no second barrier", no_second_barrier, "race: reads byte 124 of dynamic shared", NULL},
    {"no syncwarp", no_syncwarp, "with no barrier between", NULL},
    {"syncwarp for a block", syncwarp_for_block, UNWRITTEN, NULL},
    {"syncwarp of others", syncwarp_of_others, UNWRITTEN, NULL},
    {"divergent barrier", divergent, "others of the block wait at __syncthreads", ""},
    {"divergent warp", divergent_warp, "does not come, it waits at __syncthreads", ""},
    {"not in its mask", not_in_mask, "lane 16 is not in its own mask 0000ffff", ""},
    {"exited lane", exited_lane, "lane 20 of mask ffffffff does not come, it has exited", ""},
    {"other operation", other_operation, "comes to another operation, __", ""},
    {"outside of the mask", outside_of_mask, "reads lane 16, which is not in mask", ""},
    {"missing lane", missing_lane, "lane 16 of mask ffffffff does not exist", ""},
    {"copy done right", copy<RIGHT>, NULL, NULL},
    {"no wait", copy<NO_WAIT>, "asynchronous copy that thread (31, 0, 0) began", NULL},
    {"no commit", copy<NO_COMMIT>, "asynchronous copy", NULL},
    {"waits for too few", copy<TOO_FEW>, "asynchronous copy", NULL},
    {"no barrier after a wait", copy<NO_BARRIER>, UNWRITTEN, NULL},
    {"copy overwrites", copy<OVERWRITES>, "race: writes byte", NULL},
    {"misaligned copy", misaligned_copy, "cp_async_16 (test/test_emu_bugs.cu:", ""},
    {"misaligned row", misaligned_row, "is not aligned to 16 bytes", ""},
    {"rows in the same banks", same_banks, "row 2 of matrix 0 lies in the banks of a row", ""},
    {"past the tile", past_tile, "at byte 128 of dynamic shared memory", "buffer-overflow"},
    {"past the array", past_array<32>, "index 32 is outside of the array", "out of bounds"},
    {"never written", past_array<33>, UNWRITTEN, NULL},
    {"past the tensor", past_tensor, "outside of what is allocated", "buffer-overflow"},
    {"freed", freed, "outside of what is allocated", "use-after-free"},
    {"host memory", memory_of_host, "which is not the device's memory", NULL},
    {"host touches", host_touches, "host code touches device memory", NULL},
    {"copy too long", copy_too_long, "not live device memory", ""},
    {"refills early", refills_early, "were changed before the host had waited", ""},
    {"misaligned", misaligned, "is not aligned to 16 bytes", "misaligned"},
    {"same place", same_place, "which another block wrote", NULL},
    {"reads an earlier block's", reads_earlier_block, "which another block wrote", NULL},
    {"reads a later block's", reads_later_block, "which another block read", NULL},
    {"product of too little", product_short, "64 bytes at ", ""},
    {"product not aligned", product_unaligned, "is not aligned to the 16 bytes", ""},
    {"product in place", product_in_place, "D overlaps A", ""},
    {"too many threads", too_many_threads, "at most 1024", ""},
    {"too much shared memory", too_much_shared, "at most 232448", ""},
};

int main(void) { return run_bugs(bugs); }
