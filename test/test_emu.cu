/* The emulator: kernels that are right run, and give what a GPU would. */
extern "C" {
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
/* after those */
#include <cmocka.h>
}

#include <cublasLt.h>
#include <curand_philox4x32_x.h>

#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/ptx.cuh"

void cuda_fail(const Ctx *c, const char *call, const char *error) {
    (void)c;
    fprintf(stderr, "%s: %s\n", call, error);
    abort();
}

/* n numbers on the device, from the host or not defined. */
template <typename T>
static T *to_device(const T *from, size_t n) {
    T *p;
    CUDA(NULL, cudaMalloc(&p, n * sizeof *p));
    if (from) CUDA(NULL, cudaMemcpy(p, from, n * sizeof *p, cudaMemcpyHostToDevice));
    return p;
}

template <typename T>
static void to_host(T *to, T *from, size_t n) {
    CUDA(NULL, cudaMemcpy(to, from, n * sizeof *to, cudaMemcpyDeviceToHost));
    CUDA(NULL, cudaFree(from));
}

static __constant__ float shift[2] = {-1, 1};

static __global__ void add_kernel(float *y, const float *x, float a, int64_t n) {
    const int64_t i = global_thread();
    if (i >= n) return;
    y[i] = a + x[i] + shift[i % 2];
}

static void test_elementwise(void **) {
    enum { N = 1000 };
    float x[N], y[N];
    for (int i = 0; i < N; i++) x[i] = (float)i;
    float *dx = to_device(x, N), *dy = to_device<float>(NULL, N);
    launch(NULL, add_kernel, grid_for(N), BLOCK, 0, dy, dx, 0.5f, N);
    to_host(y, dy, N);
    for (int i = 0; i < N; i++) assert_true(y[i] == (float)i + (i % 2 ? 1.5f : -0.5f));
    CUDA(NULL, cudaFree(dx));
}

static __global__ void sum_kernel(double *y, const float *x, int n) {
    double sum = 0;
    for (int i = (int)threadIdx.x; i < n; i += (int)blockDim.x) sum += x[i + n * blockIdx.x];
    sum = block_sum(sum) + block_sum(-1.0);
    if (threadIdx.x == 0) y[blockIdx.x] = sum + blockDim.x;
}

static void test_block_sum(void **) {
    enum { N = 777, BLOCKS = 5 };
    float x[BLOCKS * N];
    double y[BLOCKS];
    for (int i = 0; i < BLOCKS * N; i++) x[i] = (float)i;
    float *dx = to_device(x, BLOCKS * N);
    double *dy = to_device<double>(NULL, BLOCKS);
    launch(NULL, sum_kernel, BLOCKS, 256, 0, dy, dx, (int)N);
    to_host(y, dy, BLOCKS);
    for (int b = 0; b < BLOCKS; b++) assert_true(y[b] == N * (N * b + (N - 1) / 2.0));
    CUDA(NULL, cudaFree(dx));
}

/* Transposes tiles of 32 x 32 by way of dynamic shared memory. */
static __global__ void transpose_kernel(bf16 *y, const bf16 *x, int n) {
    bf16(*tile)[33] = (bf16(*)[33])shared_block();
    const int bx = (int)blockIdx.x * 32, by = (int)blockIdx.y * 32;
    for (int r = (int)threadIdx.y; r < 32; r += (int)blockDim.y)
        tile[r][threadIdx.x] = x[(by + r) * n + bx + (int)threadIdx.x];
    __syncthreads();
    for (int r = (int)threadIdx.y; r < 32; r += (int)blockDim.y)
        y[(bx + r) * n + by + (int)threadIdx.x] = tile[threadIdx.x][r];
}

static void test_transpose(void **) {
    enum { N = 96 };
    static bf16 x[N * N], y[N * N];
    for (int i = 0; i < N * N; i++) x[i] = __float2bfloat16_rn((float)(i % 256));
    bf16 *dx = to_device(x, N * N), *dy = to_device<bf16>(NULL, N * N);
    launch(NULL, transpose_kernel, dim3(N / 32, N / 32), dim3(32, 8), 32 * 33 * sizeof(bf16), dy,
           dx, (int)N);
    to_host(y, dy, N * N);
    for (int i = 0; i < N * N; i++) assert_true((float)y[i] == (float)((i % N * N + i / N) % 256));
    CUDA(NULL, cudaFree(dx));
}

/* ---- warps ---- */

static __global__ void shuffles_kernel(int *y) {
    const int lane = (int)threadIdx.x;
    int *mine = y + 8 * lane;
    mine[0] = __shfl_sync(FULL_WARP, lane, 5);
    mine[1] = __shfl_xor_sync(FULL_WARP, lane, 3);
    mine[2] = __shfl_up_sync(FULL_WARP, lane, 4);
    mine[3] = __shfl_down_sync(FULL_WARP, lane, 4, 8);
    mine[4] = (int)__ballot_sync(FULL_WARP, lane % 3 == 0);
    if (lane < 16)
        mine[5] = __shfl_xor_sync(0x0000ffffu, lane, 8) + __any_sync(0x0000ffffu, lane == 3);
    else
        mine[5] = __shfl_xor_sync(0xffff0000u, lane, 8) + __all_sync(0xffff0000u, lane > 15);
    mine[6] = __syncthreads_count(lane < 7);
    mine[7] = __syncthreads_or(lane == 31) + 2 * __syncthreads_and(lane < 31);
}

static void test_shuffles(void **) {
    int y[32][8];
    int *dy = to_device<int>(NULL, 32 * 8);
    launch(NULL, shuffles_kernel, 1, 32, 0, dy);
    to_host(&y[0][0], dy, 32 * 8);
    for (int l = 0; l < 32; l++) {
        assert_int_equal(y[l][0], 5);
        assert_int_equal(y[l][1], l ^ 3);
        assert_int_equal(y[l][2], l < 4 ? l : l - 4);
        assert_int_equal(y[l][3], l % 8 < 4 ? l + 4 : l);
        assert_int_equal(y[l][4], 0x49249249);
        assert_int_equal(y[l][5], (l ^ 8) + 1);
        assert_int_equal(y[l][6], 7);
        assert_int_equal(y[l][7], 1);
    }
}

/* Lanes exchange through shared memory with __syncwarp between; half of the threads are gone. */
static __global__ void syncwarp_kernel(int *y) {
    __shared__ int box[64];
    const int t = (int)threadIdx.x;
    if (t >= 64) return;
    int x = t;
    for (int i = 0; i < 3; i++) {
        box[t] = x;
        __syncwarp();
        x = box[t ^ 1] + 1;
        __syncwarp();
    }
    const unsigned half = t % 32 < 16 ? 0x0000ffffu : 0xffff0000u;
    box[t] = x;
    __syncwarp(half);
    x = box[t ^ 2];
    __syncthreads();
    y[t] = x + box[63 - t];
}

static void test_syncwarp(void **) {
    int y[64];
    int *dy = to_device<int>(NULL, 64);
    launch(NULL, syncwarp_kernel, 1, 128, 0, dy);
    to_host(y, dy, 64);
    for (int t = 0; t < 64; t++) assert_int_equal(y[t], (t ^ 1 ^ 2) + 3 + ((63 - t) ^ 1) + 3);
}

static __global__ void histogram_kernel(int *y, const int *x, int n) {
    __shared__ int count[8];
    const int t = (int)threadIdx.x;
    if (t < 8) count[t] = 0;
    __syncthreads();
    for (int i = t; i < n; i += (int)blockDim.x) atomicAdd(&count[x[i]], 1);
    __syncthreads();
    if (t < 8) atomicAdd(&y[t], count[t]);
}

static void test_atomics(void **) {
    int x[500], y[8] = {0};
    for (int i = 0; i < 500; i++) x[i] = i * i % 8;
    int *dx = to_device(x, 500), *dy = to_device(y, 8);
    launch(NULL, histogram_kernel, 3, 96, 0, dy, dx, 500);
    to_host(y, dy, 8);
    assert_int_equal(y[0], 3 * 125);
    assert_int_equal(y[1], 3 * 250);
    assert_int_equal(y[4], 3 * 125);
    CUDA(NULL, cudaFree(dx));
}

/* ---- tensor cores: C (16, 8) = A (16, 16) B (16, 8), A by ldmatrix, B by its transpose, both
 * copied to shared memory in two groups ---- */

static __global__ void product_kernel(float *C, const bf16 *A, const bf16 *B) {
    __shared__ __align__(16) bf16 a[16][16 + 8]; /* so that rows lie in different banks */
    __shared__ __align__(16) bf16 b[16][16 + 8];
    const int lane = (int)threadIdx.x;
    cp_async_16(&a[lane / 2][lane % 2 * 8], A + lane * 8, true);
    cp_async_commit();
    cp_async_16(&b[lane / 2][lane % 2 * 8], B + lane / 2 * 8, lane % 2 == 0);
    cp_async_commit();
    cp_async_wait<1>();
    __syncwarp();
    uint32_t ra[4], rb[4];
    ldmatrix_x4(ra, &a[lane % 16][lane / 16 * 8]);
    cp_async_wait<0>();
    __syncwarp();
    ldmatrix_x4_trans(rb, &b[lane % 16][lane / 16 * 8]);
    float d[4] = {0, 0, 0, 0}, zero[4] = {0, 0, 0, 0};
    mma_m16n8k16(d, ra, rb);
    mma_m16n8k16(zero, ra, rb + 2); /* the columns that were not read */
    for (int i = 0; i < 4; i++)
        C[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i] + zero[i];
}

static void test_mma_bf16(void **) {
    bf16 A[16][16], B[16][8];
    float C[16][8];
    for (int i = 0; i < 256; i++) A[i / 16][i % 16] = __float2bfloat16_rn((float)(i % 13 - 6));
    for (int i = 0; i < 128; i++) B[i / 8][i % 8] = __float2bfloat16_rn((float)(i % 7 - 3));
    bf16 *dA = to_device(&A[0][0], 256), *dB = to_device(&B[0][0], 128);
    float *dC = to_device<float>(NULL, 128);
    launch(NULL, product_kernel, 1, 32, 0, dC, dA, dB);
    to_host(&C[0][0], dC, 128);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++) {
            float sum = 0;
            for (int k = 0; k < 16; k++) sum += (float)A[i][k] * (float)B[k][j];
            assert_true(C[i][j] == sum);
        }
    CUDA(NULL, cudaFree(dA));
    CUDA(NULL, cudaFree(dB));
}

static __global__ void product_tf32_kernel(float *C, const float *A, const float *B) {
    const int lane = (int)threadIdx.x, g = lane / 4, t = lane % 4;
    uint32_t a[4], b[2];
    for (int i = 0; i < 4; i++) a[i] = __float_as_uint(A[(g + i % 2 * 8) * 8 + t + i / 2 * 4]);
    for (int i = 0; i < 2; i++) b[i] = __float_as_uint(B[(t + i * 4) * 8 + g]);
    float d[4] = {1, 1, 1, 1};
    mma_m16n8k8(d, a, b);
    for (int i = 0; i < 4; i++) C[(g + i / 2 * 8) * 8 + t * 2 + i % 2] = d[i];
}

static void test_mma_tf32(void **) {
    float A[16][8], B[8][8], C[16][8];
    for (int i = 0; i < 128; i++) A[i / 8][i % 8] = (float)(i % 13 - 6) + 0x1p-12f;
    for (int i = 0; i < 64; i++) B[i / 8][i % 8] = (float)(i % 7 - 3);
    A[0][0] = 0; /* so that no tf32 of A has a 12th bit behind the point */
    float *dA = to_device(&A[0][0], 128), *dB = to_device(&B[0][0], 64);
    float *dC = to_device<float>(NULL, 128);
    launch(NULL, product_tf32_kernel, 1, 32, 0, dC, dA, dB);
    to_host(&C[0][0], dC, 128);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++) {
            float sum = 1;
            for (int k = 0; k < 8; k++) {
                uint32_t bits = __float_as_uint(A[i][k]) & 0xffffe000u;
                sum += __uint_as_float(bits) * B[k][j];
            }
            assert_true(C[i][j] == sum);
        }
    CUDA(NULL, cudaFree(dA));
    CUDA(NULL, cudaFree(dB));
}

/* ---- what the host sees before it waits, and after ---- */

static void test_late_copy(void **) {
    const float x = 5;
    float *dx = to_device(&x, 1), *pinned, ms;
    cudaEvent_t before, after;
    CUDA(NULL, cudaMallocHost(&pinned, sizeof *pinned));
    CUDA(NULL, cudaEventCreate(&before));
    CUDA(NULL, cudaEventCreate(&after));
    CUDA(NULL, cudaEventRecord(before, NULL));
    *pinned = 1;
    CUDA(NULL, cudaMemcpyAsync(pinned, dx, sizeof *dx, cudaMemcpyDeviceToHost, NULL));
    CUDA(NULL, cudaEventRecord(after, NULL));
    CUDA(NULL, cudaEventSynchronize(before));
    assert_true(isnan(*pinned));
    assert_int_equal(cudaEventElapsedTime(&ms, before, after), cudaErrorNotReady);
    assert_int_equal(cudaGetLastError(), cudaErrorNotReady);
    CUDA(NULL, cudaEventSynchronize(after));
    assert_true(*pinned == 5);
    CUDA(NULL, cudaEventElapsedTime(&ms, before, after));
    CUDA(NULL, cudaEventDestroy(before));
    CUDA(NULL, cudaEventDestroy(after));
    CUDA(NULL, cudaFreeHost(pinned));
    CUDA(NULL, cudaFree(dx));
}

/* ---- cuBLASLt: D (m, n) = 2 A' B + 3 C + bias, columns first, two of them ---- */

#define BLAS(call) assert_int_equal(call, CUBLAS_STATUS_SUCCESS)

static cublasLtMatrixLayout_t layout_of(cudaDataType type, uint64_t rows, uint64_t cols, int64_t ld,
                                        int64_t stride) {
    cublasLtMatrixLayout_t l;
    const int32_t two = 2;
    BLAS(cublasLtMatrixLayoutCreate(&l, type, rows, cols, ld));
    BLAS(cublasLtMatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &two, sizeof two));
    BLAS(cublasLtMatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride,
                                          sizeof stride));
    return l;
}

enum { m = 5, n = 3, k = 7, LD = 8 };

/* D in place of C. */
template <typename T>
static void multiply(cudaDataType type, T *D, const T *A, const T *B, const T *bias) {
    const cublasOperation_t transposed = CUBLAS_OP_T;
    const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    const uint32_t alignment = sizeof(T);
    const float alpha = 2, beta = 3;
    cublasLtHandle_t blas;
    cublasLtMatmulDesc_t desc;
    cublasLtMatmulPreference_t wishes;
    cublasLtMatmulHeuristicResult_t best;
    int found;
    BLAS(cublasLtCreate(&blas));
    BLAS(cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    BLAS(cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                        sizeof transposed));
    BLAS(cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                                        sizeof epilogue));
    BLAS(cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias,
                                        sizeof bias));
    BLAS(cublasLtMatmulPreferenceCreate(&wishes));
    for (int i = 0; i < 4; i++)
        BLAS(cublasLtMatmulPreferenceSetAttribute(
            wishes,
            (cublasLtMatmulPreferenceAttributes_t)(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES + i),
            &alignment, sizeof alignment));
    cublasLtMatrixLayout_t a = layout_of(type, k, m, LD, LD * m);
    cublasLtMatrixLayout_t b = layout_of(type, k, n, LD, 0);
    cublasLtMatrixLayout_t d = layout_of(type, m, n, m, m * n);
    BLAS(cublasLtMatmulAlgoGetHeuristic(blas, desc, a, b, d, d, wishes, 1, &best, &found));
    assert_int_equal(found, 1);
    BLAS(cublasLtMatmul(blas, desc, &alpha, A, a, B, b, &beta, D, d, D, d, &best.algo, NULL, 0,
                        NULL));
    BLAS(cublasLtMatrixLayoutDestroy(a));
    BLAS(cublasLtMatrixLayoutDestroy(b));
    BLAS(cublasLtMatrixLayoutDestroy(d));
    BLAS(cublasLtMatmulPreferenceDestroy(wishes));
    BLAS(cublasLtMatmulDescDestroy(desc));
    BLAS(cublasLtDestroy(blas));
}

template <typename T>
static void check_product(cudaDataType type) {
    T A[2 * m * LD], B[n * LD], C[2 * n * m], D[2 * n * m], bias[m];
    for (int i = 0; i < 2 * m * LD; i++) A[i] = from_float<T>((float)(i % 5 - 2));
    for (int i = 0; i < n * LD; i++) B[i] = from_float<T>((float)(i % 4 - 1));
    for (int i = 0; i < 2 * n * m; i++) C[i] = from_float<T>((float)(i % 3));
    for (int i = 0; i < m; i++) bias[i] = from_float<T>((float)(-2 * i));
    T *dA = to_device(A, 2 * m * LD), *dB = to_device(B, n * LD);
    T *dD = to_device(C, 2 * n * m), *d_bias = to_device(bias, m);
    multiply(type, dD, dA, dB, d_bias);
    to_host(D, dD, 2 * n * m);
    for (int i = 0; i < 2 * n * m; i++) {
        const int row = i % m, column = i / m % n, batch = i / m / n;
        float sum = 3 * (float)C[i] + (float)bias[row];
        for (int l = 0; l < k; l++)
            sum += 2 * (float)A[(batch * m + row) * LD + l] * (float)B[column * LD + l];
        assert_true((float)D[i] == sum);
    }
    CUDA(NULL, cudaFree(dA));
    CUDA(NULL, cudaFree(dB));
    CUDA(NULL, cudaFree(d_bias));
}

static void test_product(void **) {
    check_product<float>(CUDA_R_32F);
    check_product<bf16>(CUDA_R_16BF);
}

/* ---- arithmetic ---- */

static void test_bf16(void **) {
    assert_true((float)__float2bfloat16_rn(1.00390625f) == 1.0f); /* half way: to even */
    assert_true((float)__float2bfloat16_rn(1.01171875f) == 1.015625f);
    assert_true((float)__float2bfloat16_rn(3.4e38f) == INFINITY);
    assert_true(isnan((float)__float2bfloat16_rn(NAN)));
    assert_true(exp2_fast(-INFINITY) == 0 && exp2_fast(-130) == 0 && exp2_fast(3) == 8);
}

/* Random123's known answers. */
static void test_philox(void **) {
    const uint4 zero = curand_Philox4x32_10(make_uint4(0, 0, 0, 0), make_uint2(0, 0));
    assert_int_equal(zero.x, 0x6627e8d5);
    assert_int_equal(zero.w, 0x9b00dbd8);
    const uint4 pi =
        curand_Philox4x32_10(make_uint4(0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344),
                             make_uint2(0xa4093822, 0x299f31d0));
    assert_int_equal(pi.x, 0xd16cfe09);
    assert_int_equal(pi.y, 0x94fdcceb);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_elementwise), cmocka_unit_test(test_block_sum),
        cmocka_unit_test(test_transpose),   cmocka_unit_test(test_shuffles),
        cmocka_unit_test(test_syncwarp),    cmocka_unit_test(test_atomics),
        cmocka_unit_test(test_mma_bf16),    cmocka_unit_test(test_mma_tf32),
        cmocka_unit_test(test_late_copy),   cmocka_unit_test(test_product),
        cmocka_unit_test(test_bf16),        cmocka_unit_test(test_philox),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
