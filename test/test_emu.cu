/* The emulator: kernels that are right run, and give what a GPU would. */
extern "C" {
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
/* after those */
#include <cmocka.h>
}

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

static __global__ void add_kernel(float *y, const float *x, float a, int64_t n) {
    const int64_t i = global_thread();
    if (i >= n) return;
    y[i] = a + x[i];
}

static void test_elementwise(void **) {
    enum { N = 1000 };
    float x[N], y[N];
    for (int i = 0; i < N; i++) x[i] = (float)i;
    float *dx = to_device(x, N), *dy = to_device<float>(NULL, N);
    launch(NULL, add_kernel, grid_for(N), BLOCK, 0, dy, dx, 0.5f, N);
    to_host(y, dy, N);
    for (int i = 0; i < N; i++) assert_true(y[i] == (float)i + 0.5f);
    CUDA(NULL, cudaFree(dx));
}

static __global__ void sum_kernel(double *y, const float *x, int n) {
    double sum = 0;
    for (int i = (int)threadIdx.x; i < n; i += (int)blockDim.x) sum += x[i + n * blockIdx.x];
    sum = block_sum(sum);
    if (threadIdx.x == 0) y[blockIdx.x] = sum;
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
    for (int i = 0; i < N * N; i++) x[i] = (float)(i % 256);
    bf16 *dx = to_device(x, N * N), *dy = to_device<bf16>(NULL, N * N);
    launch(NULL, transpose_kernel, dim3(N / 32, N / 32), dim3(32, 8), 32 * 33 * sizeof(bf16), dy,
           dx, (int)N);
    to_host(y, dy, N * N);
    for (int i = 0; i < N * N; i++) assert_true((float)y[i] == (float)(i % N * N + i / N) - 256 * ((i % N * N + i / N) / 256));
    CUDA(NULL, cudaFree(dx));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_elementwise),
        cmocka_unit_test(test_block_sum),
        cmocka_unit_test(test_transpose),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
