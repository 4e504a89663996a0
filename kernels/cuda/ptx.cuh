/* The PTX instructions that the kernels use, one wrapper each. In the emulator each has a host
 * implementation (dev/emu/ptx.h) that checks what the instruction asks: alignment, bounds, that all
 * lanes of the warp take part, and the order of asynchronous copies.
 *
 * Fragments, as the PTX manual has them; lane = 4 g + t (g = lane / 4, t = lane % 4):
 *   mma_m16n8k16 (bf16), registers of two bf16 each, the lower index in the lower half:
 *     A (16, 16)  a[0] (g, 2t..2t+1)  a[1] (g + 8, 2t..)  a[2] (g, 2t + 8..)  a[3] (g + 8, 2t
 * + 8..) B (16, 8)   b[0] (k = 2t..2t+1, n = g)   b[1] (k = 2t + 8.., n = g) C, D (16, 8) float
 * d[0], d[1] (g, 2t..2t+1)   d[2], d[3] (g + 8, 2t..2t+1) mma_m16n8k8 (tf32), one number a
 * register: A (16, 8)   a[0] (g, t)  a[1] (g + 8, t)  a[2] (g, t + 4)  a[3] (g + 8, t + 4) B (8, 8)
 * b[0] (k = t, n = g)  b[1] (k = t + 4, n = g) C, D        as above */
#ifndef KERNELS_CUDA_PTX_CUH
#define KERNELS_CUDA_PTX_CUH

#include <string.h>

#include "kernels/cuda/device_code.cuh"

#ifdef LLMC_EMU
#include "dev/emu/ptx.h"
#else

static __device__ __forceinline__ uint32_t shared_address(const void *p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* Four 8 x 8 matrices of 16-bit numbers. Lane l gives the address of row l % 8 of matrix l / 8: 16
 * bytes of shared memory, aligned to 16, and the 8 rows of a matrix in different groups of 4 of the
 * 32 banks (the emulator insists on it: tiles are swizzled for that). Lane 4 g + t gets numbers 2t
 * and 2t + 1 of row g of matrix i in r[i]; trans: of column g. */
static __device__ __forceinline__ void ldmatrix_x4(uint32_t r[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

static __device__ __forceinline__ void ldmatrix_x4_trans(uint32_t r[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

/* D = A B + D over bf16, sums in float32. */
static __device__ __forceinline__ void mma_m16n8k16(float d[4], const uint32_t a[4],
                                                    const uint32_t b[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* D = A B + D over tf32: of each float32 the upper 19 bits count. */
static __device__ __forceinline__ void mma_m16n8k8(float d[4], const uint32_t a[4],
                                                   const uint32_t b[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Starts a copy of 16 bytes to shared memory, both addresses aligned to 16; where `real` is false
 * nothing is read and 16 zeros are written. */
static __device__ __forceinline__ void cp_async_16(void *to, const void *from, bool real) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(real ? 16 : 0)
                 : "memory");
}

/* Closes this thread's group of copies. */
static __device__ __forceinline__ void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Waits until at most `pending` of this thread's latest groups are under way. Other threads see the
 * data after a barrier. */
template <int pending>
static __device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

/* 2^x to 2 ulp, one instruction; subnormal results are zero; exp2_fast(-inf) = 0. */
static __device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#endif

/* Two floats rounded to bf16 in one register, `lo` in the lower half. */
static __device__ __forceinline__ uint32_t pack_bf16(float lo, float hi) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(lo, hi);
    uint32_t r;
    memcpy(&r, &both, sizeof r);
    return r;
}

#endif
