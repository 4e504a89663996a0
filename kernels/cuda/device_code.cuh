/* What device code is written with: dtypes, packs of numbers, reductions, shared memory. Nothing of
 * the host, so that it is compiled at run time too (kernels/cuda/flex_code.cu); cuda.cuh has the
 * host's half, and the rules that kernels keep to. */
#ifndef KERNELS_CUDA_DEVICE_CODE_CUH
#define KERNELS_CUDA_DEVICE_CODE_CUH

#include <cuda_bf16.h>
#include <stdint.h>

typedef __nv_bfloat16 bf16;

/* The block's dynamic shared memory, aligned to 1024 bytes. */
#ifdef LLMC_EMU
#define shared_block() emu_shared_block()
#else
extern __shared__ __align__(1024) char shared_bytes_[];
#define shared_block() (shared_bytes_)
#endif

static __host__ __device__ inline int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

static __device__ __forceinline__ int64_t global_thread() {
    return (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
}

/* ---- dtypes ---- */

static __device__ __forceinline__ float to_float(float x) { return x; }
static __device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
template <typename T>
static __device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
    return __float2bfloat16_rn(x);
}

/* *to = or (add) += x, in float32 before it is rounded. */
template <typename T>
static __device__ __forceinline__ void put(T *to, float x, bool add) {
    *to = from_float<T>(add ? to_float(*to) + x : x);
}

/* ---- packs ---- */

/* N neighbours that a thread moves at once: 16 bytes of them (Pack<T>), or one number. Beside packs
 * of eight bf16 there are as many float32, which are two loads. Kernels count in packs where all
 * their tensors are cut into packs of one length; else load_pack and put_pack take them from rows
 * of numbers. */
template <typename T, int n = 16 / (int)sizeof(T)>
struct alignas(n * sizeof(T) < 16 ? n * sizeof(T) : 16) Pack {
    typedef T Type;
    enum { N = n };
    T at[n];
};

template <int N, typename T>
static __device__ __forceinline__ Pack<T, N> load_pack(const T *p) {
    return *(const Pack<T, N> *)p;
}
template <typename T>
static __device__ __forceinline__ Pack<T> load_pack(const T *p) {
    return load_pack<Pack<T>::N>(p);
}

/* *to = or (add) += x, as above. */
template <typename T, typename S, int N>
static __device__ __forceinline__ void put(Pack<T, N> *to, const Pack<S, N> &x, bool add) {
    Pack<T, N> sum;
    if (add) sum = *to;
    for (int j = 0; j < N; j++) put(&sum.at[j], to_float(x.at[j]), add);
    *to = sum;
}
template <typename T, typename S, int N>
static __device__ __forceinline__ void put_pack(T *to, const Pack<S, N> &x, bool add) {
    put((Pack<T, N> *)to, x, add);
}

/* ---- reductions: a fixed order, the same bits each time ---- */

enum { WARP = 32 };
#define FULL_WARP 0xffffffffu

/* The sum over LANES neighbouring lanes, in each of them. V: float, double or int. */
template <int LANES = WARP, typename V>
static __device__ __forceinline__ V warp_sum(V x) {
    for (int offset = LANES / 2; offset > 0; offset /= 2)
        x += __shfl_xor_sync(FULL_WARP, x, offset);
    return x;
}

/* The largest over a warp's lanes, in each of them. */
static __device__ __forceinline__ float warp_max(float x) {
    for (int offset = WARP / 2; offset > 0; offset /= 2)
        x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, offset));
    return x;
}

/* The sum over a block of at most 1024 threads (a multiple of 32), in every thread. All threads
 * call it; ends with a barrier, so calls may follow each other. */
template <typename V>
static __device__ V block_sum(V x) {
    __shared__ V part[WARP];
    const int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
    x = warp_sum(x);
    if (lane == 0) part[warp] = x;
    __syncthreads();
    x = lane < (int)blockDim.x / WARP ? part[lane] : V(0);
    x = warp_sum(x);
    __syncthreads();
    return x;
}

/* The sum of x's n numbers, in every thread of a block; else as block_sum. */
template <typename V>
static __device__ V block_sum(const V *x, int64_t n) {
    V sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += x[i];
    return block_sum(sum);
}

#endif
