/* Hopper's own instructions (sm_90a), one wrapper each, for kernels in files that end in _sm90. As
 * in ptx.cuh the emulator has a host implementation of each (dev/emu/ptx_sm90.h), which checks what
 * the instruction asks: lanes, alignment, phases and byte counts of barriers, bounds and swizzles
 * of copies, fences between what threads write and what the copy engine or the tensor cores read.
 *
 * A panel: rows of 64 bf16, 128 bytes, the layout that one copy of a box 64 numbers wide leaves in
 * shared memory with the swizzle of 128 bytes, and that tensor cores read: the chunk c of 16 bytes
 * of row r is at chunk c ^ (r mod 8), which is tile_at<64> of flash_tile.cuh. It begins at a
 * multiple of 1024 bytes and has a multiple of 8 rows. Matrices of 128 columns are two panels, one
 * after the other.
 *
 * Who sees what: ordinary accesses and those of the copy engine and of tensor cores to shared
 * memory (the generic and the asynchronous proxy) know of each other only
 *   - copies to shared memory: after barrier_wait for the phase that counts their bytes;
 *   - ordinary writes, then wgmma or copies from there: each writing thread calls
 *     fence_shared_to_async() after its writes and before the barrier that the reader waits for;
 *   - wgmma's reads, then ordinary writes or copies to there: after wgmma_wait, and a barrier.
 *
 * Products are asynchronous. One product of a group:
 *   wgmma_fence(d);               ordinary accesses to d, and to a in registers, come before
 *   wgmma_64(d, a, b, add); ...   as many as there are steps of 16 over k
 *   wgmma_commit();
 *   wgmma_wait<pending>(d);       all but the latest `pending` groups have ended; d may be used
 * Between them neither d nor a in registers is touched. */
#ifndef KERNELS_CUDA_PTX_SM90_CUH
#define KERNELS_CUDA_PTX_SM90_CUH

#include "kernels/cuda/ptx.cuh"

/* Counts arrivals and bytes; in shared memory, made by barrier_init. Its phases are numbered from
 * 0; a phase ends when as many threads have arrived as init said and all bytes have come that
 * arrivals announced, and the next begins. */
typedef struct Barrier {
    uint64_t state;
} Barrier;

/* What the copy engine is told of a tensor: CUtensorMap of the driver's interface, made on the host
 * (tensor_map.cu) and passed in a kernel's parameter that is const __grid_constant__.
 */
typedef struct alignas(128) TensorMap {
    uint64_t opaque[16];
} TensorMap;

/* A matrix in shared memory, as wgmma takes it. */
typedef uint64_t Matrix;

#ifdef LLMC_EMU
#include "dev/emu/ptx_sm90.h"
#else

/* ---- barriers ---- */

/* By one thread; all other threads use the barrier after barrier_fence_init by that thread and
 * __syncthreads. */
static __device__ __forceinline__ void barrier_init(Barrier *b, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(arrivals)
                 : "memory");
}
static __device__ __forceinline__ void barrier_fence_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

static __device__ __forceinline__ void barrier_arrive(Barrier *b) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}

/* Arrives and announces so many bytes of copies, for this phase. */
static __device__ __forceinline__ void barrier_expect(Barrier *b, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)),
                 "r"(bytes)
                 : "memory");
}

/* Waits until the phase of that parity (0: the first, third, ...) has ended; the caller is at most
 * one phase behind. Who waits for parity 1 of a new barrier goes on at once. */
static __device__ __forceinline__ void barrier_wait(Barrier *b, int parity) {
    uint32_t ended;
    do {
        asm volatile(
            "{\n.reg .pred p;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
            "selp.b32 %0, 1, 0, p;\n}"
            : "=r"(ended)
            : "r"(shared_address(b)), "r"(parity)
            : "memory");
    } while (!ended);
}

/* Barriers 1 .. 15 of the block by number (0 is __syncthreads): `threads`, a multiple of 32, whole
 * warps, come; those that arrive do not wait for the others. */
static __device__ __forceinline__ void named_barrier_wait(int number, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}
static __device__ __forceinline__ void named_barrier_arrive(int number, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

/* ---- the copy engine ---- */

static __device__ __forceinline__ void fence_shared_to_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* One thread. The map's box at (x, y, z, w), x innermost, to shared memory aligned to 1024; what
 * lies outside of the tensor is zero. Its bytes, those outside too, count for b's phase. */
static __device__ __forceinline__ void copy_box(void *to, const TensorMap *map, Barrier *b, int x,
                                                int y, int z, int w) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared_address(to)),
        "l"(map), "r"(shared_address(b)), "r"(x), "r"(y), "r"(z), "r"(w)
        : "memory");
}

/* One thread. bytes: a multiple of 16, as both addresses are. */
static __device__ __forceinline__ void copy_bytes(void *to, const void *from, int bytes,
                                                  Barrier *b) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(shared_address(to)),
        "l"(from), "r"(bytes), "r"(shared_address(b))
        : "memory");
}

/* One thread. A box from shared memory to the tensor; what lies outside of it is not written. Ends
 * with its thread's group. */
static __device__ __forceinline__ void store_box(const TensorMap *map, const void *from, int x,
                                                 int y, int z, int w) {
    asm volatile(
        "cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], "
        "[%1];" ::"l"(map),
        "r"(shared_address(from)), "r"(x), "r"(y), "r"(z), "r"(w)
        : "memory");
}

/* One thread. From shared to device memory; bytes as above. Ends with its thread's group. */
static __device__ __forceinline__ void store_bytes(void *to, const void *from, int bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to),
                 "r"(shared_address(from)), "r"(bytes)
                 : "memory");
}

/* Likewise to[i] += from[i] over float32. Copies of two groups to one place are in order when the
 * first has ended before the second begins. */
static __device__ __forceinline__ void add_bytes(float *to, const float *from, int bytes) {
    asm volatile(
        "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to),
        "r"(shared_address(from)), "r"(bytes)
        : "memory");
}

/* The same thread's copies from shared memory: closes their group; waits until at most `pending`
 * groups still read shared memory (copies_read), or are not yet in device memory (copies_wait). */
static __device__ __forceinline__ void copies_commit() {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
template <int pending>
static __device__ __forceinline__ void copies_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(pending) : "memory");
}
template <int pending>
static __device__ __forceinline__ void copies_wait() {
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(pending) : "memory");
}

/* ---- registers ---- */

/* A whole warpgroup: gives registers back, or takes more (waits until there are). n: 24 .. 240, a
 * multiple of 8. The kernel has __launch_bounds__(threads, 1). */
template <int n>
static __device__ __forceinline__ void registers_shrink() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(n));
}
template <int n>
static __device__ __forceinline__ void registers_grow() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(n));
}

/* ---- products of a warpgroup ---- */

static __device__ __forceinline__ Matrix matrix_of(const void *p, int leading, int stride) {
    const uint64_t swizzle_128 = (uint64_t)1 << 62;
    return swizzle_128 | (uint64_t)(stride >> 4) << 32 | (uint64_t)(leading >> 4) << 16 |
           (uint64_t)((shared_address(p) & 0x3ffff) >> 4);
}

/* Keeps the compiler from moving accesses to d across. */
template <int N>
static __device__ __forceinline__ void registers_pin(float (&d)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++)
        asm volatile("" : "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])::"memory");
}

template <int N>
static __device__ __forceinline__ void wgmma_fence(float (&d)[N][4]) {
    registers_pin(d);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
static __device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int pending, int N>
static __device__ __forceinline__ void wgmma_wait(float (&d)[N][4]) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
    registers_pin(d);
}

#define WGMMA_4(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define WGMMA_32(n)                                                                             \
    WGMMA_4(n), WGMMA_4(n + 1), WGMMA_4(n + 2), WGMMA_4(n + 3), WGMMA_4(n + 4), WGMMA_4(n + 5), \
        WGMMA_4(n + 6), WGMMA_4(n + 7)
#define WGMMA_NAMES_32                         \
    "%0, %1, %2, %3, %4, %5, %6, %7, "         \
    "%8, %9, %10, %11, %12, %13, %14, %15, "   \
    "%16, %17, %18, %19, %20, %21, %22, %23, " \
    "%24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_NAMES_64                         \
    WGMMA_NAMES_32                             \
    ", "                                       \
    "%32, %33, %34, %35, %36, %37, %38, %39, " \
    "%40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, " \
    "%56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_NAMES_96                         \
    WGMMA_NAMES_64                             \
    ", "                                       \
    "%64, %65, %66, %67, %68, %69, %70, %71, " \
    "%72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, " \
    "%88, %89, %90, %91, %92, %93, %94, %95"

/* D (64, N) = A B, or (add) += A B, over 16 columns of A; sums in float32. Warp w of the warpgroup
 * has rows 16 w .. 16 w + 15 of A and D, in the fragments of mma_m16n8k16: d[n] is its D of columns
 * 8 n ... a: A in registers, or a Matrix. A_DOWN, B_DOWN: that operand's k runs down the panel's
 * rows (matrix_down), else along them (matrix_along). */
template <bool A_DOWN, bool B_DOWN>
static __device__ __forceinline__ void wgmma_64(float (&d)[8][4], Matrix a, Matrix b, bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" WGMMA_NAMES_32
        "}, "
        "%32, %33, p, 1, 1, %35, %36;\n}"
        : WGMMA_32(0)
        : "l"(a), "l"(b), "r"((int)add), "n"((int)A_DOWN), "n"((int)B_DOWN)
        : "memory");
}
template <bool B_DOWN>
static __device__ __forceinline__ void wgmma_64(float (&d)[8][4], const uint32_t a[4], Matrix b,
                                                bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" WGMMA_NAMES_32
        "}, "
        "{%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}"
        : WGMMA_32(0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add), "n"((int)B_DOWN)
        : "memory");
}
template <bool A_DOWN, bool B_DOWN>
static __device__ __forceinline__ void wgmma_128(float (&d)[16][4], Matrix a, Matrix b, bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" WGMMA_NAMES_64
        "}, "
        "%64, %65, p, 1, 1, %67, %68;\n}"
        : WGMMA_32(0), WGMMA_32(8)
        : "l"(a), "l"(b), "r"((int)add), "n"((int)A_DOWN), "n"((int)B_DOWN)
        : "memory");
}
template <bool B_DOWN>
static __device__ __forceinline__ void wgmma_128(float (&d)[16][4], const uint32_t a[4], Matrix b,
                                                 bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" WGMMA_NAMES_64
        "}, "
        "{%64, %65, %66, %67}, %68, p, 1, 1, %70;\n}"
        : WGMMA_32(0), WGMMA_32(8)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add), "n"((int)B_DOWN)
        : "memory");
}
/* From shared memory alone: the sums take 96 registers. */
template <bool A_DOWN, bool B_DOWN>
static __device__ __forceinline__ void wgmma_192(float (&d)[24][4], Matrix a, Matrix b, bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %98, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {" WGMMA_NAMES_96
        "}, "
        "%96, %97, p, 1, 1, %99, %100;\n}"
        : WGMMA_32(0), WGMMA_32(8), WGMMA_32(16)
        : "l"(a), "l"(b), "r"((int)add), "n"((int)A_DOWN), "n"((int)B_DOWN)
        : "memory");
}
#undef WGMMA_NAMES_96
#undef WGMMA_NAMES_64
#undef WGMMA_NAMES_32
#undef WGMMA_32
#undef WGMMA_4

#endif

/* What a, the A of products, is made from comes before: called ahead of their wgmma_fence. */
template <int K>
static __device__ __forceinline__ void registers_pin(uint32_t a[][4]) {
#pragma unroll
    for (int k = 0; k < K; k++)
        asm volatile("" : "+r"(a[k][0]), "+r"(a[k][1]), "+r"(a[k][2]), "+r"(a[k][3])::"memory");
}

/* The Matrix whose k runs along the rows of a panel: 16 columns from `p` on, which points to a row
 * that is a multiple of 8 and to a column that is a multiple of 16 of an unswizzled panel. */
static __device__ __forceinline__ Matrix matrix_along(const bf16 *p) {
    return matrix_of(p, 16, 1024);
}

/* The Matrix whose k runs down: 16 rows from `p` on, a row that is a multiple of 8 of a panel; its
 * other index runs along the rows, through the panels that lie panel_bytes apart. */
static __device__ __forceinline__ Matrix matrix_down(const bf16 *p, int panel_bytes) {
    return matrix_of(p, panel_bytes, 1024);
}

/* The same Matrix from `bytes` further on, a multiple of 16: one addition, where matrix_along and
 * matrix_down of another place are five instructions. */
static __device__ __forceinline__ Matrix matrix_further(Matrix m, int bytes) {
    return (m & ~(Matrix)0xffffffff) | ((uint32_t)m + (uint32_t)(bytes >> 4));
}

/* wgmma_N by the number of d's columns. */
template <bool A_DOWN, bool B_DOWN, int N>
static __device__ __forceinline__ void wgmma(float (&d)[N][4], Matrix a, Matrix b, bool add) {
    static_assert(N == 8 || N == 16 || N == 24, "64, 128 or 192 columns");
    if constexpr (N == 8)
        wgmma_64<A_DOWN, B_DOWN>(d, a, b, add);
    else if constexpr (N == 16)
        wgmma_128<A_DOWN, B_DOWN>(d, a, b, add);
    else
        wgmma_192<A_DOWN, B_DOWN>(d, a, b, add);
}
template <bool B_DOWN, int N>
static __device__ __forceinline__ void wgmma(float (&d)[N][4], const uint32_t a[4], Matrix b,
                                             bool add) {
    static_assert(N == 8 || N == 16, "64 or 128 columns");
    if constexpr (N == 8)
        wgmma_64<B_DOWN>(d, a, b, add);
    else
        wgmma_128<B_DOWN>(d, a, b, add);
}

#endif
