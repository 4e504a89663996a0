/* What only device code uses: qualifiers, the built-in variables, barriers, warps, atomics and
 * arithmetic. Included by the emulator's cuda_runtime.h. */
#ifndef DEV_EMU_DEVICE_CODE_H
#define DEV_EMU_DEVICE_CODE_H

/* Shared memory is thread-local: blocks run one after the other on the launching thread, and what
 * lies in the program's thread-local segment is then known to be shared memory. ASan guards the
 * ends of static variables, not of thread-local ones. */
#define __global__
#define __device__
#define __host__
#ifdef __SANITIZE_ADDRESS__
#define __shared__ static
#else
#define __shared__ static __thread
#endif
#define __constant__ __attribute__((section("emu_constant")))
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

#define threadIdx (emu_thread_idx())
#define blockIdx (emu_block_idx())
#define blockDim (emu_block_dim())
#define gridDim (emu_grid_dim())
#define warpSize EMU_LANES

/* Default arguments that say where the call stands. */
#define EMU_AT const char *file = __builtin_FILE(), int line = __builtin_LINE()

/* ---- waiting ---- */

static inline void __syncthreads(EMU_AT) { emu_barrier(false, {"__syncthreads", file, line}); }
static inline int __syncthreads_count(int predicate, EMU_AT) {
    return emu_barrier(predicate != 0, {"__syncthreads_count", file, line});
}
static inline int __syncthreads_or(int predicate, EMU_AT) {
    return emu_barrier(predicate != 0, {"__syncthreads_or", file, line}) > 0;
}
static inline int __syncthreads_and(int predicate, EMU_AT) {
    return emu_barrier(predicate == 0, {"__syncthreads_and", file, line}) == 0;
}
static inline void __syncwarp(unsigned mask = 0xffffffffu, EMU_AT) {
    emu_warp_sync(mask, {"__syncwarp", file, line});
}

template <typename T>
static inline T emu_shuffle_as(EmuShuffle kind, unsigned mask, T x, int lane, int width,
                               EmuPlace at) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 32 or 64 bits");
    uint64_t bits = 0;
    __builtin_memcpy(&bits, &x, sizeof x);
    bits = emu_shuffle(kind, mask, bits, lane, width, at);
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}
template <typename T>
static inline T __shfl_sync(unsigned mask, T x, int lane, int width = 32, EMU_AT) {
    return emu_shuffle_as(EMU_INDEX, mask, x, lane, width, {"__shfl_sync", file, line});
}
template <typename T>
static inline T __shfl_up_sync(unsigned mask, T x, unsigned delta, int width = 32, EMU_AT) {
    return emu_shuffle_as(EMU_UP, mask, x, (int)delta, width, {"__shfl_up_sync", file, line});
}
template <typename T>
static inline T __shfl_down_sync(unsigned mask, T x, unsigned delta, int width = 32, EMU_AT) {
    return emu_shuffle_as(EMU_DOWN, mask, x, (int)delta, width, {"__shfl_down_sync", file, line});
}
template <typename T>
static inline T __shfl_xor_sync(unsigned mask, T x, int lanes, int width = 32, EMU_AT) {
    return emu_shuffle_as(EMU_XOR, mask, x, lanes, width, {"__shfl_xor_sync", file, line});
}
static inline unsigned __ballot_sync(unsigned mask, int predicate, EMU_AT) {
    return emu_ballot(mask, predicate != 0, {"__ballot_sync", file, line});
}
static inline int __any_sync(unsigned mask, int predicate, EMU_AT) {
    return emu_ballot(mask, predicate != 0, {"__any_sync", file, line}) != 0;
}
static inline int __all_sync(unsigned mask, int predicate, EMU_AT) {
    return emu_ballot(mask, predicate == 0, {"__all_sync", file, line}) == 0;
}

#define __trap() emu_fail("__trap() at %s:%d", __builtin_FILE(), __builtin_LINE())

/* ---- atomics, on integers alone: sums of floats would depend on the order ---- */

static inline int atomicAdd(int *p, int x) { return (int)emu_atomic(EMU_ADD, p, (unsigned)x); }
static inline unsigned atomicAdd(unsigned *p, unsigned x) { return emu_atomic(EMU_ADD, p, x); }
static inline int atomicMin(int *p, int x) { return (int)emu_atomic(EMU_MIN, p, (unsigned)x); }
static inline int atomicMax(int *p, int x) { return (int)emu_atomic(EMU_MAX, p, (unsigned)x); }
static inline unsigned atomicMin(unsigned *p, unsigned x) { return emu_atomic(EMU_UMIN, p, x); }
static inline unsigned atomicMax(unsigned *p, unsigned x) { return emu_atomic(EMU_UMAX, p, x); }
static inline unsigned atomicOr(unsigned *p, unsigned x) { return emu_atomic(EMU_OR, p, x); }
static inline unsigned atomicAnd(unsigned *p, unsigned x) { return emu_atomic(EMU_AND, p, x); }

/* ---- loads ---- */

template <typename T>
static __forceinline__ T __ldg(const T *p) {
    return *p;
}
template <typename T>
static __forceinline__ T __ldcs(const T *p) {
    return *p;
}
template <typename T>
static __forceinline__ void __stcs(T *p, T x) {
    *p = x;
}

/* ---- arithmetic ---- */

static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
#define __expf expf
#define __logf logf
#define __log2f log2f
#define __powf powf
#define __sinf sinf
#define __cosf cosf
static inline float __fdividef(float x, float y) { return x / y; }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __frsqrt_rn(float x) { return (float)(1.0 / sqrt((double)x)); }
static inline float __fadd_rn(float x, float y) { return x + y; }
static inline float __fsub_rn(float x, float y) { return x - y; }
static inline float __fmul_rn(float x, float y) { return x * y; }
static inline float __fdiv_rn(float x, float y) { return x / y; }
static inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
static inline float __saturatef(float x) { return fminf(fmaxf(x, 0.0f), 1.0f); }
#define __sincosf sincosf
static inline float sinpif(float x) { return (float)sin(M_PI * (double)x); }
static inline float cospif(float x) { return (float)cos(M_PI * (double)x); }
static inline void sincospif(float x, float *s, float *c) { *s = sinpif(x), *c = cospif(x); }

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline unsigned __brev(unsigned x) {
    unsigned y = 0;
    for (int i = 0; i < 32; i++) y |= (x >> i & 1u) << (31 - i);
    return y;
}
static inline unsigned __umulhi(unsigned x, unsigned y) {
    return (unsigned)((uint64_t)x * y >> 32);
}

#define EMU_CAST(name, To, From)                              \
    static inline To name(From x) {                           \
        To y;                                                 \
        static_assert(sizeof x == sizeof y, "the same bits"); \
        __builtin_memcpy(&y, &x, sizeof y);                   \
        return y;                                             \
    }
EMU_CAST(__float_as_uint, unsigned, float)
EMU_CAST(__float_as_int, int, float)
EMU_CAST(__uint_as_float, float, unsigned)
EMU_CAST(__int_as_float, float, int)
EMU_CAST(__double_as_longlong, long long, double)
EMU_CAST(__longlong_as_double, double, long long)
#undef EMU_CAST
static inline float __int2float_rn(int x) { return (float)x; }
static inline float __uint2float_rn(unsigned x) { return (float)x; }
static inline int __float2int_rn(float x) { return (int)rintf(x); }
static inline int __float2int_rd(float x) { return (int)floorf(x); }

/* As in CUDA, mixed signs compare as unsigned, mixed widths in the wider. */
#define EMU_MIN_MAX(T)                                      \
    static inline T min(T a, T b) { return b < a ? b : a; } \
    static inline T max(T a, T b) { return a < b ? b : a; }
EMU_MIN_MAX(int)
EMU_MIN_MAX(unsigned)
EMU_MIN_MAX(long)
EMU_MIN_MAX(unsigned long)
EMU_MIN_MAX(long long)
EMU_MIN_MAX(unsigned long long)
#undef EMU_MIN_MAX
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }
static inline unsigned min(int a, unsigned b) { return min((unsigned)a, b); }
static inline unsigned min(unsigned a, int b) { return min(a, (unsigned)b); }
static inline unsigned max(int a, unsigned b) { return max((unsigned)a, b); }
static inline unsigned max(unsigned a, int b) { return max(a, (unsigned)b); }

#endif
