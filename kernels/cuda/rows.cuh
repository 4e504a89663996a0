/* What kernels over elements and over rows share: parts of a row in registers, stores that add, and
 * sums of columns in a fixed order.
 *
 * A part is the N neighbouring elements that one thread takes at once: 16 bytes of T (Pack<T>::N
 * elements) where addresses and the length of a row are multiples of that, else one element. The
 * host chooses once (is_packed), and the same template serves both. */
#ifndef KERNELS_CUDA_ROWS_CUH
#define KERNELS_CUDA_ROWS_CUH

#include "kernels/cuda/cuda.cuh"

/* A number of elements that a generic lambda takes as a constant. */
template <int n>
struct Int {
    enum { N = n };
};

template <typename T>
static inline bool is_packed(int64_t cols) {
    return cols % Pack<T>::N == 0;
}

/* Whether rows of `cols` elements at these addresses (NULL: absent) are made of 16-byte parts. */
template <typename T, typename... P>
static inline bool is_packed(int64_t cols, const void *p, P... rest) {
    return (uintptr_t)p % 16 == 0 && is_packed<T>(cols, rest...);
}

/* f(Int<elements of a part>()) */
template <typename T, typename F>
static inline void with_part(bool packed, F f) {
    if (packed)
        f(Int<Pack<T>::N>());
    else
        f(Int<1>());
}

/* The gradient of an activation, which has its dtype; NULL: not wanted. */
template <typename T>
static inline T *grad_of(const Tensor *t) {
    CHECK(!t->grad || !t->is_param || t->dtype == DT_F32, "%s: an op that takes activations alone",
          t->name);
    return (T *)t->grad;
}

/* ---- parts ---- */

template <typename T, int N>
struct Part {
    T at[N];
};

/* The type of the numbers may be another than that of the part's row: eight weights in float32
 * beside eight bf16 are two loads. */
template <int N, typename T>
static __device__ __forceinline__ Part<T, N> load_part(const T *p) {
    Part<T, N> part;
    if constexpr (N % Pack<T>::N == 0) {
        for (int i = 0; i < N; i += Pack<T>::N) {
            const Pack<T> pack = load_pack(p + i);
            for (int j = 0; j < Pack<T>::N; j++) part.at[i + j] = pack.at[j];
        }
    } else {
        for (int i = 0; i < N; i++) part.at[i] = p[i];
    }
    return part;
}

/* The first `count` of N elements; zeros behind. For the end of a tensor. */
template <int N, typename T>
static __device__ __forceinline__ Part<T, N> load_part(const T *p, int count) {
    if (count == N) return load_part<N>(p);
    Part<T, N> part;
    for (int i = 0; i < N; i++) part.at[i] = i < count ? p[i] : from_float<T>(0);
    return part;
}

template <int N, typename T>
static __device__ __forceinline__ Part<T, N> zero_part() {
    Part<T, N> part;
    for (int i = 0; i < N; i++) part.at[i] = from_float<T>(0);
    return part;
}

/* p = v, or (add) p += v, in float32 before it is rounded. */
template <typename T>
static __device__ __forceinline__ void put(T *p, float v, bool add) {
    *p = from_float<T>(add ? to_float(*p) + v : v);
}

template <int N, typename T>
static __device__ __forceinline__ void put_part(T *p, const float *v, bool add) {
    Part<T, N> part = add ? load_part<N>(p) : zero_part<N, T>();
    for (int i = 0; i < N; i++)
        part.at[i] = from_float<T>(add ? to_float(part.at[i]) + v[i] : v[i]);
    if constexpr (N % Pack<T>::N == 0) {
        for (int i = 0; i < N; i += Pack<T>::N) {
            Pack<T> pack;
            for (int j = 0; j < Pack<T>::N; j++) pack.at[j] = part.at[i + j];
            *(Pack<T> *)(p + i) = pack;
        }
    } else {
        for (int i = 0; i < N; i++) p[i] = part.at[i];
    }
}

template <int N, typename T>
static __device__ __forceinline__ void put_part(T *p, const float *v, bool add, int count) {
    if (count == N) {
        put_part<N>(p, v, add);
        return;
    }
    for (int i = 0; i < N; i++)
        if (i < count) put(p + i, v[i], add);
}

/* Of n elements in parts of N, how many this thread has from its first one on. */
template <int N>
static __device__ __forceinline__ int part_count(int64_t first, int64_t n) {
    return n - first < N ? (int)(n - first) : N;
}

/* ---- sums ---- */

/* The sum over LANES neighbouring lanes, in each of them. */
template <int LANES>
static __device__ __forceinline__ float lanes_sum(float x) {
    for (int offset = LANES / 2; offset > 0; offset /= 2)
        x += __shfl_xor_sync(FULL_WARP, x, offset);
    return x;
}

/* LANES neighbouring threads share a row of `width` = LANES PACKS N columns, of which a thread has
 * PACKS parts, LANES N columns apart. The sums over the rows of a block come to total[0 .. width),
 * rows in order. total: shared memory, PACKS N floats a thread. All threads call it. */
template <int LANES, int PACKS, int N>
static __device__ void sum_columns(float *total, const float *v) {
    const int width = LANES * PACKS * N, lane = (int)threadIdx.x % LANES;
    const int rows = (int)blockDim.x / LANES;
    float *mine = total + (int)threadIdx.x / LANES * width;
    __syncthreads(); /* the sums of the call before have been read */
    for (int k = 0; k < PACKS; k++)
        for (int i = 0; i < N; i++) mine[(k * LANES + lane) * N + i] = v[k * N + i];
    __syncthreads();
    for (int j = (int)threadIdx.x; j < width; j += (int)blockDim.x) {
        float sum = total[j];
        for (int r = 1; r < rows; r++) sum += total[r * width + j];
        total[j] = sum;
    }
    __syncthreads();
}

/* One or two vectors of n columns as sums over blocks: partial is (blocks, n) or (blocks, 2 n), a
 * block's share of dst[0] and behind it that of dst[1]; NULL: not wanted. Overwrites, or adds. */
typedef struct ColumnSums {
    float *dst[2];
    bool add[2];
} ColumnSums;

void cuda_sum_partials(Ctx *c, const float *partial, int64_t blocks, int n, int vectors,
                       ColumnSums to); /* elementwise.cu */

#endif
