#include "dev/emu/ptx.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dev/emu/parts.h"

#define PC __builtin_return_address(0)
enum { FULL = -1, ROW = 16 /* bytes of a row of ldmatrix, and of a copy */ };

/* ---- ldmatrix: row i of matrix j is at the address that lane 8 j + i gave ---- */

/* The 8 rows of a matrix lie in different groups of 4 of the 32 banks; else the instruction takes
 * several turns, and the tile's swizzle is wrong. */
static void check_banks(void *const *args, int j) {
    unsigned taken = 0;
    for (int i = 0; i < 8; i++) {
        const EmuMatrices *m = args[8 * j + i];
        const unsigned group = 1u << ((uintptr_t)m->row / ROW % 8);
        if (taken & group)
            emu_fail("%s (%s:%d): row %d of matrix %d lies in the banks of a row before it",
                     m->at.op, m->at.file, m->at.line, i, j);
        taken |= group;
    }
}

static void complete_ldmatrix(void *const *args, unsigned mask) {
    (void)mask;
    for (int j = 0; j < 4; j++) check_banks(args, j);
    for (int lane = 0; lane < EMU_LANES; lane++) {
        EmuMatrices *m = args[lane];
        for (int j = 0; j < 4; j++) {
            uint16_t pair[2];
            for (int k = 0; k < 2; k++) {
                const int row = m->trans ? lane % 4 * 2 + k : lane / 4;
                const int column = m->trans ? lane / 4 : lane % 4 * 2 + k;
                const EmuMatrices *from = args[8 * j + row];
                memcpy(&pair[k], (const char *)from->row + 2 * column, sizeof pair[k]);
            }
            memcpy(&m->r[j], pair, sizeof pair);
        }
    }
}

void emu_ldmatrix(EmuMatrices *m) {
    const EmuPlace at = m->at;
    if ((uintptr_t)m->row % ROW)
        emu_fail("%s (%s:%d): row at %p is not aligned to 16 bytes", at.op, at.file, at.line,
                 m->row);
    if (!emu_is_shared(m->row, ROW))
        emu_fail("%s (%s:%d): row at %p is not in shared memory", at.op, at.file, at.line, m->row);
    emu_read(m->row, ROW, PC);
    emu_warp((unsigned)FULL, m, complete_ldmatrix, at);
}

/* ---- mma: the fragments of all lanes become matrices, and back ---- */

static float from_bf16(uint32_t half) {
    const uint32_t bits = half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static float from_tf32(uint32_t bits) {
    bits &= 0xffffe000u;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* D (16, 8) += A (16, K) B (K, 8) */
static void multiply(void *const *args, int K, float A[16][16], float B[16][8]) {
    float D[16][8];
    for (int lane = 0; lane < EMU_LANES; lane++)
        memcpy(&D[lane / 4][lane % 4 * 2], ((EmuMma *)args[lane])->d, 2 * sizeof(float)),
            memcpy(&D[lane / 4 + 8][lane % 4 * 2], ((EmuMma *)args[lane])->d + 2,
                   2 * sizeof(float));
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < K; k++)
            for (int j = 0; j < 8; j++) D[i][j] += A[i][k] * B[k][j];
    for (int lane = 0; lane < EMU_LANES; lane++)
        memcpy(((EmuMma *)args[lane])->d, &D[lane / 4][lane % 4 * 2], 2 * sizeof(float)),
            memcpy(((EmuMma *)args[lane])->d + 2, &D[lane / 4 + 8][lane % 4 * 2],
                   2 * sizeof(float));
}

static void complete_bf16(void *const *args, unsigned mask) {
    (void)mask;
    float A[16][16], B[16][8];
    for (int lane = 0; lane < EMU_LANES; lane++) {
        const EmuMma *m = args[lane];
        const int g = lane / 4, t = lane % 4;
        for (int half = 0; half < 2; half++) {
            for (int i = 0; i < 4; i++)
                A[g + i % 2 * 8][2 * t + i / 2 * 8 + half] = from_bf16(m->a[i] >> (16 * half));
            for (int i = 0; i < 2; i++)
                B[2 * t + i * 8 + half][g] = from_bf16(m->b[i] >> (16 * half));
        }
    }
    multiply(args, 16, A, B);
}

static void complete_tf32(void *const *args, unsigned mask) {
    (void)mask;
    float A[16][16], B[16][8];
    for (int lane = 0; lane < EMU_LANES; lane++) {
        const EmuMma *m = args[lane];
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; i++) A[g + i % 2 * 8][t + i / 2 * 4] = from_tf32(m->a[i]);
        for (int i = 0; i < 2; i++) B[t + i * 4][g] = from_tf32(m->b[i]);
    }
    multiply(args, 8, A, B);
}

void emu_mma_bf16(EmuMma *m, EmuPlace at) { emu_warp((unsigned)FULL, m, complete_bf16, at); }
void emu_mma_tf32(EmuMma *m, EmuPlace at) { emu_warp((unsigned)FULL, m, complete_tf32, at); }

/* ---- cp.async ---- */

typedef struct Copy {
    char *to;
    const char *from; /* NULL: zeros */
    int group;
    const void *pc;
} Copy;

typedef struct Copies {
    Copy *copy; /* under way, oldest first */
    int n, max;
    int group; /* the number of the open one */
    bool used; /* by this block */
} Copies;

static Copies copies[EMU_MAX_THREADS];
static int n_users, users[EMU_MAX_THREADS]; /* threads of this block with copies */

static Copies *own_copies(void) {
    Copies *c = &copies[emu_now.thread];
    if (!c->used) users[n_users++] = emu_now.thread;
    c->used = true;
    return c;
}

void emu_cp_async(void *to, const void *from, bool real, EmuPlace at) {
    if ((uintptr_t)to % ROW || !emu_is_shared(to, ROW))
        emu_fail("%s (%s:%d): to %p, which is not 16 aligned bytes of shared memory", at.op,
                 at.file, at.line, to);
    if ((uintptr_t)from % ROW)
        emu_fail("%s (%s:%d): from %p, which is not aligned to 16 bytes", at.op, at.file, at.line,
                 from);
    if (real && !emu_is_live(from, ROW))
        emu_fail("%s (%s:%d): from %p, which is not 16 bytes of live device memory", at.op, at.file,
                 at.line, from);
    if (real) emu_read(from, ROW, PC);
    emu_copy_starts(to, ROW, PC);
    memset(to, 0xff, ROW); /* NaN until it lands */
    Copies *c = own_copies();
    if (c->n == c->max) {
        c->max = 2 * c->max + 32;
        c->copy = realloc(c->copy, (size_t)c->max * sizeof *c->copy);
        if (!c->copy) emu_fail("no memory for the list of copies");
    }
    c->copy[c->n++] = (Copy){to, real ? from : NULL, c->group, PC};
}

void emu_cp_async_commit(void) { own_copies()->group++; }

void emu_cp_async_wait(int pending) {
    Copies *c = &copies[emu_now.thread];
    int landed = 0;
    for (; landed < c->n && c->copy[landed].group < c->group - pending; landed++) {
        const Copy *copy = &c->copy[landed];
        emu_copy_lands(copy->to, ROW, copy->pc);
        if (copy->from)
            memcpy(copy->to, copy->from, ROW);
        else
            memset(copy->to, 0, ROW);
    }
    c->n -= landed;
    if (landed) memmove(c->copy, c->copy + landed, (size_t)c->n * sizeof *c->copy);
}

void emu_copies_forget(void) {
    while (n_users) {
        Copies *c = &copies[users[--n_users]];
        c->n = c->group = 0;
        c->used = false;
    }
}

/* ---- ex2.approx.ftz ---- */

float emu_exp2_fast(float x) {
    if (fabsf(x) < 0x1p-126f) x = 0.0f;
    const float y = exp2f(x);
    return y < 0x1p-126f ? 0.0f : y;
}
