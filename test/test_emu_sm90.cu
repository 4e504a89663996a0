/* Hopper's instructions, in the emulator and, where this is built with nvcc, on a GPU: what is
 * right runs, and gives what plain loops do.
 *
 * C (128, N) = A B, by one block as kernels on Hopper are built: a producer warp fills two stages
 * of shared memory by the copy engine, two warpgroups of consumers have 64 rows each. A and B are
 * multiplied as they lie, k along the rows of a panel or down them, A from shared memory or from
 * registers. The result is stored as a box in bf16, and added twice to float32. On a GPU:
 *   nvcc -std=c++17 -gencode arch=compute_90a,code=sm_90a -I. -D_GNU_SOURCE test/test_emu_sm90.cu
 *       kernels/cuda/tensor_map.cu -lcmocka */
extern "C" {
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
/* after those */
#include <cmocka.h>
}

#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/flash_tile.cuh"
#include "kernels/cuda/tensor_map.cuh"

void cuda_fail(const Ctx *c, const char *call, const char *error) {
    (void)c;
    fprintf(stderr, "%s: %s\n", call, error);
    abort();
}

/* As much of a context as a launch takes: the default stream. */
static Cuda on_device;
static Ctx *context() {
    static Ctx c;
    c.device_state = &on_device;
    return &c;
}

enum { M = 128, K = 160, TILE = 64, STAGES = 2, PANEL = 64 * 64, THREADS = 3 * 128 };

typedef struct Product {
    TensorMap a, b, c;
    float *sum; /* (2, N / 2, 128): of each warpgroup register i of thread t */
} Product;

typedef struct Barriers {
    Barrier full[STAGES], empty[STAGES];
} Barriers;

template <int N>
struct Shared {
    bf16 a[STAGES][2 * PANEL], b[STAGES][N / 64 * PANEL], c[2][N / 64 * PANEL];
    float sum[2][N / 2][128];
    Barriers barriers;
};

template <int N, bool A_DOWN, bool B_DOWN>
static __device__ void produce(const Product &p, Shared<N> *s) {
    for (int tile = 0; tile * TILE < K; tile++) {
        const int stage = tile % STAGES, k = tile * TILE;
        Barrier *full = &s->barriers.full[stage];
        barrier_wait(&s->barriers.empty[stage], tile / STAGES % 2 ^ 1);
        barrier_expect(full, (int)(sizeof s->a[0] + sizeof s->b[0]));
        for (int i = 0; i < 2; i++)
            copy_box(s->a[stage] + i * PANEL, &p.a, full, A_DOWN ? 64 * i : k, A_DOWN ? k : 64 * i,
                     0, 0);
        for (int i = 0; i < N / 64; i++)
            copy_box(s->b[stage] + i * PANEL, &p.b, full, B_DOWN ? 64 * i : k, B_DOWN ? k : 64 * i,
                     0, 0);
    }
}

/* The fragment of A at row 16 warp + ... and column `col` of a panel. */
static __device__ void load_fragment(uint32_t a[4], bf16 *panel, int col) {
    const int lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane % 16;
    ldmatrix_x4(a, tile_at<64>(panel, row, col / 8 + lane / 16));
}

template <int N, bool A_DOWN, bool B_DOWN, bool REGISTERS>
static __device__ void consume(float (&d)[N / 8][4], Shared<N> *s, int group) {
    for (int tile = 0; tile * TILE < K; tile++) {
        const int stage = tile % STAGES;
        bf16 *a = s->a[stage] + group * PANEL, *b = s->b[stage];
        barrier_wait(&s->barriers.full[stage], tile / STAGES % 2);
        uint32_t ra[4][4];
        for (int k = 0; k < TILE / 16 && REGISTERS; k++) load_fragment(ra[k], a, 16 * k);
        wgmma_fence(d);
        for (int k = 0; k < TILE / 16; k++) {
            const Matrix mb = B_DOWN ? matrix_down(b + 16 * 64 * k, PANEL * sizeof(bf16))
                                     : matrix_along(b + 16 * k);
            if (REGISTERS)
                wgmma<B_DOWN>(d, ra[k], mb, tile || k);
            else
                wgmma<A_DOWN, B_DOWN>(
                    d, A_DOWN ? matrix_down(a + 16 * 64 * k, 0) : matrix_along(a + 16 * k), mb,
                    tile || k);
        }
        wgmma_commit();
        wgmma_wait<0>(d);
        __syncwarp(); /* what other lanes read by ldmatrix */
        if (threadIdx.x % WARP == 0) barrier_arrive(&s->barriers.empty[stage]);
    }
}

template <int N>
static __device__ void put(const Product &p, Shared<N> *s, float (&d)[N / 8][4], int group) {
    const int t = threadIdx.x % 128, row = t / 32 * 16 + t % 32 / 4;
    for (int i = 0; i < N / 2; i += 2) {
        bf16 *panel = s->c[group] + i / 32 * PANEL;
        const uint32_t both = pack_bf16(d[i / 4][i % 4], d[i / 4][i % 4 + 1]);
        memcpy(tile_at<64>(panel, row + i % 4 / 2 * 8, i / 4 % 8) + t % 4 * 2, &both, sizeof both);
        s->sum[group][i][t] = d[i / 4][i % 4];
        s->sum[group][i + 1][t] = d[i / 4][i % 4 + 1];
    }
    fence_shared_to_async();
    named_barrier_wait(1 + group, 128);
    if (t) return;
    for (int i = 0; i < N / 64; i++)
        store_box(&p.c, s->c[group] + i * PANEL, 64 * i, 64 * group, 0, 0);
    copies_commit();
    float *to = p.sum + group * N / 2 * 128;
    add_bytes(to, &s->sum[group][0][0], sizeof s->sum[group]);
    copies_commit();
    copies_wait<0>();
    add_bytes(to, &s->sum[group][0][0], sizeof s->sum[group]);
    copies_commit();
    copies_read<0>();
}

template <int N, bool A_DOWN, bool B_DOWN, bool REGISTERS>
static __global__ void __launch_bounds__(THREADS, 1)
    product_kernel(const __grid_constant__ Product p) {
    Shared<N> *s = (Shared<N> *)shared_block();
    const int group = threadIdx.x / 128;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(&s->barriers.full[i], 1);
            barrier_init(&s->barriers.empty[i], 2 * 4);
        }
        barrier_fence_init();
    }
    __syncthreads();
    if (group == 2) {
        registers_shrink<40>();
        if (threadIdx.x == 2 * 128) produce<N, A_DOWN, B_DOWN>(p, s);
    } else {
        registers_grow<232>();
        float d[N / 8][4];
        consume<N, A_DOWN, B_DOWN, REGISTERS>(d, s, group);
        put<N>(p, s, d, group);
    }
}

/* rows x columns small numbers on the device. */
static bf16 *numbers(bf16 *x, int n, int seed) {
    for (int i = 0; i < n; i++) x[i] = __float2bfloat16_rn((float)((i * seed + i / 7) % 9 - 4));
    bf16 *p;
    CUDA(NULL, cudaMalloc(&p, n * sizeof *p));
    CUDA(NULL, cudaMemcpy(p, x, n * sizeof *p, cudaMemcpyHostToDevice));
    return p;
}

static TensorMap map_of(const bf16 *p, int rows, int columns) {
    const AttnStride s = {(int64_t)rows * columns, columns, columns};
    assert_true(tensor_map_fits(p, s));
    return tensor_map(context(), p, s, 1, rows, 1, columns, 64);
}

template <int N>
static void check(const bf16 *A, const bf16 *B, bool a_down, bool b_down, const bf16 *C,
                  const float (*sum)[N / 2][128]) {
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            float x = 0;
            for (int k = 0; k < K; k++)
                x += (float)A[a_down ? k * M + i : i * K + k] *
                     (float)B[b_down ? k * N + j : j * K + k];
            assert_true((float)C[i * N + j] == (float)__float2bfloat16_rn(x));
            const int t = i % 64 / 16 * 32 + i % 8 * 4 + j % 8 / 2,
                      r = j / 8 * 4 + i / 8 % 2 * 2 + j % 2;
            assert_true(sum[i / 64][r][t] == 2 * x + 1);
        }
}

template <int N, bool A_DOWN, bool B_DOWN, bool REGISTERS>
static void test_product(void **) {
    static bf16 A[M * K], B[N * K], C[M * N];
    static float sum[2][N / 2][128];
    bf16 *dA = numbers(A, M * K, 5), *dB = numbers(B, N * K, 3), *dC = numbers(C, M * N, 1);
    Product p = {};
    p.a = A_DOWN ? map_of(dA, K, M) : map_of(dA, M, K);
    p.b = B_DOWN ? map_of(dB, K, N) : map_of(dB, N, K);
    p.c = map_of(dC, M, N);
    for (int i = 0; i < 128 * N; i++) (&sum[0][0][0])[i] = 1;
    CUDA(NULL, cudaMalloc(&p.sum, sizeof sum));
    CUDA(NULL, cudaMemcpy(p.sum, sum, sizeof sum, cudaMemcpyHostToDevice));
    launch(context(), product_kernel<N, A_DOWN, B_DOWN, REGISTERS>, 1, THREADS, sizeof(Shared<N>),
           p);
    CUDA(NULL, cudaMemcpy(C, dC, sizeof C, cudaMemcpyDeviceToHost));
    CUDA(NULL, cudaMemcpy(sum, p.sum, sizeof sum, cudaMemcpyDeviceToHost));
    check<N>(A, B, A_DOWN, B_DOWN, C, sum);
    CUDA(NULL, cudaFree(dA));
    CUDA(NULL, cudaFree(dB));
    CUDA(NULL, cudaFree(dC));
    CUDA(NULL, cudaFree(p.sum));
}

/* What the copy engine takes: multiples of 16 bytes, strides below 2^40 of them. */
static void test_fits(void **) {
    const char *at = (const char *)4096;
    assert_true(tensor_map_fits(at, {64, 8, 8}));
    assert_true(tensor_map_fits(at + 16, {(int64_t)1 << 38, 64, 64}));
    assert_false(tensor_map_fits(at + 8, {64, 64, 64}));
    assert_false(tensor_map_fits(at, {60, 64, 64}));
    assert_false(tensor_map_fits(at, {64, 4, 64}));
    assert_false(tensor_map_fits(at, {64, 64, 1}));
    assert_false(tensor_map_fits(at, {64, 64, 0}));
    assert_false(tensor_map_fits(at, {(int64_t)1 << 39, 64, 64}));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test((test_product<64, false, false, false>)),
        cmocka_unit_test((test_product<128, false, true, false>)),
        cmocka_unit_test((test_product<64, true, true, false>)),
        cmocka_unit_test((test_product<128, true, false, false>)),
        cmocka_unit_test((test_product<64, false, true, true>)),
        cmocka_unit_test((test_product<128, false, false, true>)),
        cmocka_unit_test(test_fits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
