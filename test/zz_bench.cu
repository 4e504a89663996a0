#include <stdio.h>
#include <time.h>
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/ptx.cuh"
void cuda_fail(const Ctx *c, const char *call, const char *error) { abort(); }
static double now() { timespec t; clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t); return t.tv_sec + 1e-9 * t.tv_nsec; }
static __global__ void shuf(int *y, int n) { int x = threadIdx.x; for (int i = 0; i < n; i++) x += __shfl_xor_sync(FULL_WARP, x, 1); y[blockIdx.x * blockDim.x + threadIdx.x] = x; }
static __global__ void glob(float *y, const float *x, int n) { float s = 0; for (int i = 0; i < n; i++) s += x[threadIdx.x + i * 256]; y[threadIdx.x] = s; }
static __global__ void shar(float *y, int n) { float *b = (float*)shared_block(); float s = 0; b[threadIdx.x] = 1; __syncthreads(); for (int i = 0; i < n; i++) s += b[(threadIdx.x + i) & 255]; y[threadIdx.x] = s; }
static __global__ void barr(float *y, int n) { for (int i = 0; i < n; i++) __syncthreads(); y[threadIdx.x] = n; }
static __global__ void mm(float *y, int n) { float d[4] = {}; uint32_t a[4] = {}, b[2] = {}; for (int i = 0; i < n; i++) mma_m16n8k16(d, a, b); y[threadIdx.x] = d[0]; }
static __global__ void ldm(float *y, int n) { uint32_t *b = (uint32_t*)shared_block(); for (int i = 0; i < 4; i++) b[threadIdx.x * 4 + i] = 0; __syncthreads(); uint32_t r[4]; for (int i = 0; i < n; i++) ldmatrix_x4(r, b + 4 * threadIdx.x); y[threadIdx.x] = r[0]; }
static __global__ void nop(float *y) { if (threadIdx.x == 999) y[0] = 1; }
int main() {
    float *y, *x; cudaMalloc(&y, 1 << 24); cudaMalloc(&x, 1 << 26); cudaMemset(x, 0, 1 << 26);
    double t;
    for (int r = 0; r < 2; r++) {
    t = now(); launch(NULL, shuf, 1, 256, 0, (int*)y, 2000); printf("shuffle of 32: %.0f ns\n", (now() - t) / 2000 / 8 * 1e9);
    t = now(); launch(NULL, glob, 1, 256, 0, y, x, 20000); printf("global read: %.1f ns\n", (now() - t) / 20000 / 256 * 1e9);
    t = now(); launch(NULL, shar, 1, 256, 1024, y, 20000); printf("shared read: %.1f ns\n", (now() - t) / 20000 / 256 * 1e9);
    t = now(); launch(NULL, barr, 1, 256, 0, y, 2000); printf("barrier of 256: %.0f ns\n", (now() - t) / 2000 * 1e9);
    t = now(); launch(NULL, mm, 1, 128, 0, y, 1000); printf("mma: %.0f ns\n", (now() - t) / 1000 / 4 * 1e9);
    t = now(); launch(NULL, ldm, 1, 128, 16 * 128, y, 1000); printf("ldmatrix: %.0f ns\n", (now() - t) / 1000 / 4 * 1e9);
    t = now(); launch(NULL, nop, 10000, 256, 0, y); printf("thread: %.1f ns\n", (now() - t) / 10000 / 256 * 1e9);
    t = now(); for (int i = 0; i < 1000; i++) launch(NULL, nop, 1, 1, 0, y); printf("launch with %d MB: %.1f us\n", 80, (now() - t) / 1000 * 1e6);
    }
}
