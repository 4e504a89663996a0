/* The small matrix products that the flash kernel (flash.h) is made of, and how their operands are
 * packed. Needs flash_vec.h before it; includes nothing, since it is also compiled at run time. */
#if !defined(KERNELS_CPU_FLASH_TILE_H) && !defined(FLASH_TEXT_ONLY)
#define KERNELS_CPU_FLASH_TILE_H

typedef float Quad __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t QuadInt __attribute__((vector_size(16)));

/* A product C (M, N) = A (M, K) B (K, N), or C += with `add`: B and C row-major with rows of whole
 * vectors, A with any two strides (so a transposed A costs nothing: its elements are broadcast). */
typedef struct Product {
    int M, N, K; /* M a multiple of 4, N of VW */
    const float *A, *B;
    float *C;
    int64_t a_row, a_col, ldb, ldc;
    int add;
} Product;

/* `rows` by `vecs` vectors of C stay in registers over all of K. Both are constants here. */
FLASH_INLINE void product_block(const int rows, const int vecs, const Product *p, const float *A,
                                const float *B, float *C) {
    Vec acc[12][4];
    const int64_t a_row = p->a_row, a_col = p->a_col, ldb = p->ldb, ldc = p->ldc;
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int n = 0; n < vecs; n++)
            acc[i][n] = p->add ? vec_load(C + i * ldc + n * VW) : (Vec){0};
    for (int k = 0; k < p->K; k++) {
        Vec b[4];
#pragma GCC unroll 4
        for (int n = 0; n < vecs; n++) b[n] = vec_load(B + n * VW);
#pragma GCC unroll 12
        for (int i = 0; i < rows; i++) {
            Vec a = vec_all(A[i * a_row]);
#pragma GCC unroll 4
            for (int n = 0; n < vecs; n++) acc[i][n] += a * b[n];
        }
        A += a_col;
        B += ldb;
    }
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int n = 0; n < vecs; n++) vec_store(C + i * ldc + n * VW, acc[i][n]);
}

#define PRODUCT_BLOCK(ROWS, VECS)                                     \
    static __attribute__((noinline)) void product_##ROWS##x##VECS(    \
        const Product *p, const float *A, const float *B, float *C) { \
        product_block(ROWS, VECS, p, A, B, C);                        \
    }
/* clang-format off */
PRODUCT_BLOCK(12, 1) PRODUCT_BLOCK(4, 1)
#if defined(__AVX512F__)
PRODUCT_BLOCK(12, 2) PRODUCT_BLOCK(4, 2)
PRODUCT_BLOCK(6, 3) PRODUCT_BLOCK(4, 3)
PRODUCT_BLOCK(6, 4) PRODUCT_BLOCK(4, 4)
#else
PRODUCT_BLOCK(6, 2) PRODUCT_BLOCK(4, 2)
#endif
    /* clang-format on */

    typedef void (*ProductBlock)(const Product *, const float *, const float *, float *);

/* Enough sums in flight to hide the latency of the multiply-add, few enough to stay in registers.
 * [vectors - 1]: the tall block, its rows, and the block of 4 rows for what is left. */
static const struct {
    ProductBlock tall, rest;
    int rows;
} product_blocks[MAX_VECS] = {
#if defined(__AVX512F__)
    {product_12x1, product_4x1, 12},
    {product_12x2, product_4x2, 12},
    {product_6x3, product_4x3, 6},
    {product_6x4, product_4x4, 6},
#else
    {product_12x1, product_4x1, 12},
    {product_6x2, product_4x2, 6},
#endif
};

static inline void product(const Product *p) {
    int vecs;
    for (int n = 0; n < p->N; n += vecs * VW) {
        vecs = (p->N - n) / VW;
        if (vecs > MAX_VECS) vecs = MAX_VECS;
        ProductBlock tall = product_blocks[vecs - 1].tall, rest = product_blocks[vecs - 1].rest;
        int tall_rows = product_blocks[vecs - 1].rows, rows;
        for (int m = 0; m < p->M; m += rows) {
            int left = p->M - m; /* any multiple of 4 is made of 6s and 4s, or of 12s and 4s */
            int use_tall = tall_rows == 12 ? left >= 12 : left != 4 && left != 8;
            rows = use_tall ? tall_rows : 4;
            (use_tall ? tall : rest)(p, p->A + m * p->a_row, p->B + n, p->C + m * p->ldc + n);
        }
    }
}

/* to (d_pad rows of ld) = transposed from (n rows of D, stride t); zero beyond n (to n_pad) and
 * beyond D. n_pad: n in whole vectors. */
static inline void pack_transposed(float *to, int ld, const float *from, int64_t t, int n,
                                   int n_pad, int D) {
    int j = 0;
    for (int d = 0; d < (n < n_pad ? D : 0); d++)
        vec_store(to + (int64_t)d * ld + n_pad - VW, (Vec){0});
    for (; j + 4 <= n; j += 4) {
        const float *r = from + j * t;
        int d = 0;
        for (; d + 4 <= D; d += 4) {
            Quad a = *(const Quad *)(r + d), b = *(const Quad *)(r + t + d),
                 c = *(const Quad *)(r + 2 * t + d), e = *(const Quad *)(r + 3 * t + d);
            Quad ab = __builtin_shuffle(a, b, (QuadInt){0, 4, 1, 5}),
                 AB = __builtin_shuffle(a, b, (QuadInt){2, 6, 3, 7}),
                 ce = __builtin_shuffle(c, e, (QuadInt){0, 4, 1, 5}),
                 CE = __builtin_shuffle(c, e, (QuadInt){2, 6, 3, 7});
            float *o = to + (int64_t)d * ld + j;
            *(Quad *)o = __builtin_shuffle(ab, ce, (QuadInt){0, 1, 4, 5});
            *(Quad *)(o + ld) = __builtin_shuffle(ab, ce, (QuadInt){2, 3, 6, 7});
            *(Quad *)(o + 2 * ld) = __builtin_shuffle(AB, CE, (QuadInt){0, 1, 4, 5});
            *(Quad *)(o + 3 * ld) = __builtin_shuffle(AB, CE, (QuadInt){2, 3, 6, 7});
        }
        for (; d < D; d++)
            for (int i = 0; i < 4; i++) to[(int64_t)d * ld + j + i] = r[i * t + d];
    }
    for (; j < n; j++)
        for (int d = 0; d < D; d++) to[(int64_t)d * ld + j] = from[j * t + d];
}

/* to (n_pad rows of d_pad) = factor from (n rows of D, stride t), zero beyond. */
static inline void pack_rows(float *to, int d_pad, const float *from, int64_t t, int n, int n_pad,
                             int D, float factor) {
    for (int i = 0; i < n; i++) {
        float *o = to + (int64_t)i * d_pad;
        const float *r = from + i * t;
        for (int d = 0; d < D; d++) o[d] = factor * r[d];
        for (int d = D; d < d_pad; d++) o[d] = 0.0f;
    }
    memset(to + (int64_t)n * d_pad, 0, sizeof(float) * (size_t)(n_pad - n) * (size_t)d_pad);
}

#endif
