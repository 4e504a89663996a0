/* The emulator's half of kernels/cuda/ptx.cuh: the same wrappers, on the host. That file says what
 * each does; ptx.c checks that alignment, lanes and the order of copies are as the PTX manual asks.
 */
#ifndef DEV_EMU_PTX_H
#define DEV_EMU_PTX_H

#include "dev/emu/emu.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What the lanes bring to an instruction of the warp, and take away. */
typedef struct EmuMatrices {
    const void *row;
    uint32_t r[4];
    bool trans;
    EmuPlace at;
} EmuMatrices;

typedef struct EmuMma {
    float d[4];
    uint32_t a[4], b[2];
} EmuMma;

void emu_ldmatrix(EmuMatrices *m);
void emu_mma_bf16(EmuMma *m, EmuPlace at);
void emu_mma_tf32(EmuMma *m, EmuPlace at);

/* Copies happen as late as they may: when their thread waits for them. */
void emu_cp_async(void *to, const void *from, bool real, EmuPlace at);
void emu_cp_async_commit(void);
void emu_cp_async_wait(int pending);

float emu_exp2_fast(float x);

#ifdef __cplusplus
}

static inline void ldmatrix_x4(uint32_t r[4], const void *row, EMU_AT) {
    EmuMatrices m = {row, {}, false, {"ldmatrix_x4", file, line}};
    emu_ldmatrix(&m);
    for (int i = 0; i < 4; i++) r[i] = m.r[i];
}

static inline void ldmatrix_x4_trans(uint32_t r[4], const void *row, EMU_AT) {
    EmuMatrices m = {row, {}, true, {"ldmatrix_x4_trans", file, line}};
    emu_ldmatrix(&m);
    for (int i = 0; i < 4; i++) r[i] = m.r[i];
}

static inline EmuMma emu_mma_of(const float d[4], const uint32_t a[4], const uint32_t b[2]) {
    return {{d[0], d[1], d[2], d[3]}, {a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
}

static inline void mma_m16n8k16(float d[4], const uint32_t a[4], const uint32_t b[2], EMU_AT) {
    EmuMma m = emu_mma_of(d, a, b);
    emu_mma_bf16(&m, {"mma_m16n8k16", file, line});
    for (int i = 0; i < 4; i++) d[i] = m.d[i];
}

static inline void mma_m16n8k8(float d[4], const uint32_t a[4], const uint32_t b[2], EMU_AT) {
    EmuMma m = emu_mma_of(d, a, b);
    emu_mma_tf32(&m, {"mma_m16n8k8", file, line});
    for (int i = 0; i < 4; i++) d[i] = m.d[i];
}

static inline void cp_async_16(void *to, const void *from, bool real, EMU_AT) {
    emu_cp_async(to, from, real, {"cp_async_16", file, line});
}

static inline void cp_async_commit() { emu_cp_async_commit(); }

template <int pending>
static inline void cp_async_wait() {
    static_assert(pending >= 0, "a number of groups");
    emu_cp_async_wait(pending);
}

static inline float exp2_fast(float x) { return emu_exp2_fast(x); }

#endif
#endif
