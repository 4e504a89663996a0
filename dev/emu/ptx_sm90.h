/* The emulator's half of kernels/cuda/ptx_sm90.cuh: the same wrappers, on the host. That file says
 * what each does. What is checked, by part:
 *
 *   barrier.c   Barriers: made, seen by all, phases, arrivals and bytes; named barriers
 *   bulk.c      copies: maps, bounds, alignment; data lands, and sources are read, as late as may
 *               be, and what is touched meanwhile is found (access.c)
 *   wgmma.c     products: one operand of all 128 threads, descriptors, swizzle, fences, groups;
 *               accumulators are NaN until a wait that names them; registers of warpgroups
 *   clock.c     who may touch what these wrote or read, and whether writes were fenced
 *
 * The wrappers are always inlined, so that the address that a part returns to is in the kernel. */
#ifndef DEV_EMU_PTX_SM90_H
#define DEV_EMU_PTX_SM90_H

#include "dev/emu/emu.h"

#ifdef __cplusplus
extern "C" {
#endif

void emu_barrier_init(void *b, int arrivals);
void emu_barrier_fence_init(void);
void emu_barrier_arrive(void *b);
void emu_barrier_expect(void *b, int bytes);
void emu_barrier_wait(void *b, int parity);
void emu_named_barrier(int number, int threads, bool wait);

void emu_fence_shared_to_async(void);
void emu_copy_box(void *to, const void *map, void *b, const int at[4]);
void emu_copy_bytes(void *to, const void *from, int bytes, void *b);
void emu_store_box(const void *map, const void *from, const int at[4]);
void emu_store_bytes(void *to, const void *from, int bytes);
void emu_add_bytes(float *to, const float *from, int bytes);
void emu_copies_commit(void);
void emu_copies_wait(int pending, bool read);

void emu_registers(int n, bool grow);

uint64_t emu_matrix_of(const void *p, int leading, int stride);

/* One thread's part of D (64, 8 n) = or += A B. */
typedef struct EmuProduct {
    float *d; /* its n x 4 accumulators */
    int n;
    const uint32_t *a_registers; /* NULL: a */
    uint64_t a, b;
    bool a_down, b_down, add;
} EmuProduct;

void emu_wgmma(const EmuProduct *p);
void emu_wgmma_fence(float *d, int n);
void emu_wgmma_commit(void);
void emu_wgmma_wait(int pending, float *d, int n);
void emu_registers_pin(float *d, int n);

#ifdef __cplusplus
}

static __forceinline__ void barrier_init(Barrier *b, int arrivals) {
    emu_barrier_init(b, arrivals);
}
static __forceinline__ void barrier_fence_init() { emu_barrier_fence_init(); }
static __forceinline__ void barrier_arrive(Barrier *b) { emu_barrier_arrive(b); }
static __forceinline__ void barrier_expect(Barrier *b, int bytes) { emu_barrier_expect(b, bytes); }
static __forceinline__ void barrier_wait(Barrier *b, int parity) { emu_barrier_wait(b, parity); }
static __forceinline__ void named_barrier_wait(int number, int threads) {
    emu_named_barrier(number, threads, true);
}
static __forceinline__ void named_barrier_arrive(int number, int threads) {
    emu_named_barrier(number, threads, false);
}

static __forceinline__ void fence_shared_to_async() { emu_fence_shared_to_async(); }
static __forceinline__ void copy_box(void *to, const TensorMap *map, Barrier *b, int x, int y,
                                     int z, int w) {
    const int at[4] = {x, y, z, w};
    emu_copy_box(to, map, b, at);
}
static __forceinline__ void copy_bytes(void *to, const void *from, int bytes, Barrier *b) {
    emu_copy_bytes(to, from, bytes, b);
}
static __forceinline__ void store_box(const TensorMap *map, const void *from, int x, int y, int z,
                                      int w) {
    const int at[4] = {x, y, z, w};
    emu_store_box(map, from, at);
}
static __forceinline__ void store_bytes(void *to, const void *from, int bytes) {
    emu_store_bytes(to, from, bytes);
}
static __forceinline__ void add_bytes(float *to, const float *from, int bytes) {
    emu_add_bytes(to, from, bytes);
}
static __forceinline__ void copies_commit() { emu_copies_commit(); }
template <int pending>
static __forceinline__ void copies_read() {
    static_assert(pending >= 0, "a number of groups");
    emu_copies_wait(pending, true);
}
template <int pending>
static __forceinline__ void copies_wait() {
    static_assert(pending >= 0, "a number of groups");
    emu_copies_wait(pending, false);
}

template <int n>
static __forceinline__ void registers_shrink() {
    static_assert(n >= 24 && n <= 240 && n % 8 == 0, "24 .. 240, a multiple of 8");
    emu_registers(n, false);
}
template <int n>
static __forceinline__ void registers_grow() {
    static_assert(n >= 24 && n <= 240 && n % 8 == 0, "24 .. 240, a multiple of 8");
    emu_registers(n, true);
}

static __forceinline__ Matrix matrix_of(const void *p, int leading, int stride) {
    return emu_matrix_of(p, leading, stride);
}

template <int N>
static __forceinline__ void registers_pin(float (&d)[N][4]) {
    emu_registers_pin(&d[0][0], N);
}
template <int N>
static __forceinline__ void wgmma_fence(float (&d)[N][4]) {
    emu_wgmma_fence(&d[0][0], N);
}
static __forceinline__ void wgmma_commit() { emu_wgmma_commit(); }
template <int pending, int N>
static __forceinline__ void wgmma_wait(float (&d)[N][4]) {
    static_assert(pending >= 0 && pending < 8, "a number of groups");
    emu_wgmma_wait(pending, &d[0][0], N);
}

#define EMU_WGMMA(name, N)                                                                       \
    template <bool A_DOWN, bool B_DOWN>                                                          \
    static __forceinline__ void name(float(&d)[N][4], Matrix a, Matrix b, bool add) {            \
        const EmuProduct p = {&d[0][0], N, nullptr, a, b, A_DOWN, B_DOWN, add};                  \
        emu_wgmma(&p);                                                                           \
    }                                                                                            \
    template <bool B_DOWN>                                                                       \
    static __forceinline__ void name(float(&d)[N][4], const uint32_t a[4], Matrix b, bool add) { \
        const EmuProduct p = {&d[0][0], N, a, 0, b, false, B_DOWN, add};                         \
        emu_wgmma(&p);                                                                           \
    }
EMU_WGMMA(wgmma_64, 8)
EMU_WGMMA(wgmma_128, 16)
EMU_WGMMA(wgmma_192, 24)
#undef EMU_WGMMA

#endif
#endif
