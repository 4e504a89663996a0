/* cuBLASLt for the emulator: D = alpha op(A) op(B) + beta C + bias, columns first, by one
 * float32 product of oneDNN over packed copies. What the real library takes on trust ends the
 * process with a sentence: memory that is short, addresses less aligned than the heuristic was
 * told, an algorithm made for another product, D over A or B. */
#include <cublasLt.h>
#include <dnnl.h>

#include "dev/emu/parts.h"

struct EmuMatmulDesc {
    cublasOperation_t trans_a, trans_b;
    cublasLtEpilogue_t epilogue;
    const void *bias; /* (rows of D), of D's type */
};
struct EmuMatrixLayout {
    cudaDataType type;
    int64_t rows, cols, ld, stride;
    int32_t batch;
};
struct EmuMatmulPreference {
    uint64_t workspace;
    uint32_t reductions;   /* schemes allowed; nothing is reduced here */
    uint32_t alignment[4]; /* of A, B, C, D */
};

/* What an algorithm was made for; it lives in cublasLtMatmulAlgo_t. */
typedef struct Promise {
    uint64_t workspace, product;
    uint32_t alignment[4];
} Promise;
_Static_assert(sizeof(Promise) <= sizeof(cublasLtMatmulAlgo_t), "a promise is kept in one");

const char *cublasLtGetStatusString(cublasStatus_t status) {
    switch (status) {
        case CUBLAS_STATUS_SUCCESS:
            return "CUBLAS_STATUS_SUCCESS";
        case CUBLAS_STATUS_NOT_INITIALIZED:
            return "CUBLAS_STATUS_NOT_INITIALIZED";
        case CUBLAS_STATUS_ALLOC_FAILED:
            return "CUBLAS_STATUS_ALLOC_FAILED";
        case CUBLAS_STATUS_INVALID_VALUE:
            return "CUBLAS_STATUS_INVALID_VALUE";
        case CUBLAS_STATUS_NOT_SUPPORTED:
            return "CUBLAS_STATUS_NOT_SUPPORTED";
    }
    return "an unknown status";
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    *handle = malloc(1);
    return *handle ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_ALLOC_FAILED;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    free(handle);
    return CUBLAS_STATUS_SUCCESS;
}

/* Copies an attribute that has its own size. */
static cublasStatus_t set(void *to, size_t size, const void *value, size_t bytes) {
    if (bytes != size) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(to, value, size);
    return CUBLAS_STATUS_SUCCESS;
}
#define SET(field) set(&(field), sizeof(field), value, bytes)

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *desc, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
    if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
    *desc = malloc(sizeof **desc);
    if (!*desc) return CUBLAS_STATUS_ALLOC_FAILED;
    **desc = (struct EmuMatmulDesc){.epilogue = CUBLASLT_EPILOGUE_DEFAULT};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
    free(desc);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                              cublasLtMatmulDescAttributes_t name,
                                              const void *value, size_t bytes) {
    switch (name) {
        case CUBLASLT_MATMUL_DESC_TRANSA:
            return SET(desc->trans_a);
        case CUBLASLT_MATMUL_DESC_TRANSB:
            return SET(desc->trans_b);
        case CUBLASLT_MATMUL_DESC_EPILOGUE:
            return SET(desc->epilogue);
        case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
            return SET(desc->bias);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType type,
                                          uint64_t rows, uint64_t cols, int64_t ld) {
    if (type != CUDA_R_32F && type != CUDA_R_16BF) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (!rows || !cols || ld < (int64_t)rows) return CUBLAS_STATUS_INVALID_VALUE;
    *layout = malloc(sizeof **layout);
    if (!*layout) return CUBLAS_STATUS_ALLOC_FAILED;
    **layout = (struct EmuMatrixLayout){type, (int64_t)rows, (int64_t)cols, ld, 0, 1};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
    free(layout);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t name,
                                                const void *value, size_t bytes) {
    switch (name) {
        case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
            return SET(layout->batch);
        case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
            return SET(layout->stride);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference) {
    *preference = malloc(sizeof **preference);
    if (!*preference) return CUBLAS_STATUS_ALLOC_FAILED;
    **preference = (struct EmuMatmulPreference){.reductions = CUBLASLT_REDUCTION_SCHEME_MASK,
                                                .alignment = {256, 256, 256, 256}};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
    free(preference);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t name,
                                                    const void *value, size_t bytes) {
    switch (name) {
        case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
            return SET(preference->workspace);
        case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
            return SET(preference->reductions);
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
            return SET(preference->alignment[name - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES]);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

/* ---- choosing ---- */

typedef struct Product {
    int64_t m, n, k;
    int32_t batch;
} Product;

/* False where the shapes do not fit each other. */
static bool product_of(Product *p, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t A,
                       cublasLtMatrixLayout_t B, cublasLtMatrixLayout_t C,
                       cublasLtMatrixLayout_t D) {
    const bool ta = desc->trans_a == CUBLAS_OP_T, tb = desc->trans_b == CUBLAS_OP_T;
    *p = (Product){D->rows, D->cols, ta ? A->rows : A->cols, D->batch};
    return (ta ? A->cols : A->rows) == p->m && (tb ? B->cols : B->rows) == p->k &&
           (tb ? B->rows : B->cols) == p->n && C->rows == p->m && C->cols == p->n &&
           A->type == B->type && C->type == D->type && A->batch == p->batch &&
           B->batch == p->batch && C->batch == p->batch &&
           (D->type == CUDA_R_32F || A->type == CUDA_R_16BF);
}

/* A number for the whole description. */
static uint64_t digest(cublasLtMatmulDesc_t desc, const cublasLtMatrixLayout_t layouts[4]) {
    uint64_t h =
        (uint64_t)desc->trans_a + 2 * (uint64_t)desc->trans_b + 4 * (uint64_t)desc->epilogue;
    for (int i = 0; i < 4; i++) {
        const struct EmuMatrixLayout *l = layouts[i];
        const int64_t words[] = {l->type, l->rows, l->cols, l->ld, l->stride, l->batch};
        for (int j = 0; j < 6; j++) h = (h ^ (uint64_t)words[j]) * 0x100000001b3u;
    }
    return h;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t A, cublasLtMatrixLayout_t B,
                                              cublasLtMatrixLayout_t C, cublasLtMatrixLayout_t D,
                                              cublasLtMatmulPreference_t preference, int asked,
                                              cublasLtMatmulHeuristicResult_t *results,
                                              int *found) {
    Product p;
    *found = 0;
    if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (asked < 1 || !product_of(&p, desc, A, B, C, D)) return CUBLAS_STATUS_INVALID_VALUE;
    const cublasLtMatrixLayout_t layouts[] = {A, B, C, D};
    Promise promise = {.workspace = preference->workspace, .product = digest(desc, layouts)};
    memcpy(promise.alignment, preference->alignment, sizeof promise.alignment);
    *results = (cublasLtMatmulHeuristicResult_t){.workspaceSize = preference->workspace};
    memcpy(&results->algo, &promise, sizeof promise);
    *found = 1;
    return CUBLAS_STATUS_SUCCESS;
}

/* ---- checking ---- */

static size_t type_size(cudaDataType type) { return type == CUDA_R_16BF ? 2 : 4; }

static const char *matrix_at(cublasLtMatrixLayout_t l, const void *p, int batch) {
    return (const char *)p + (int64_t)type_size(l->type) * l->stride * batch;
}

static size_t matrix_bytes(cublasLtMatrixLayout_t l) {
    return type_size(l->type) * (size_t)((l->cols - 1) * l->ld + l->rows);
}

static void check_matrix(const char *name, cublasLtMatrixLayout_t l, const void *p,
                         uint32_t alignment) {
    for (int b = 0; b < l->batch; b++) {
        const char *at = matrix_at(l, p, b);
        if (!emu_is_live(at, matrix_bytes(l)))
            emu_fail(
                "cublasLtMatmul: %s, matrix %d of %d: %zu bytes at %p are not live device "
                "memory",
                name, b, l->batch, matrix_bytes(l), (const void *)at);
        if (alignment && (uintptr_t)at % alignment)
            emu_fail(
                "cublasLtMatmul: %s, matrix %d of %d, at %p is not aligned to the %u bytes "
                "that the heuristic was told",
                name, b, l->batch, (const void *)at, alignment);
    }
}

static void check_apart(const char *name, cublasLtMatrixLayout_t l, const void *p,
                        cublasLtMatrixLayout_t layout_d, const void *D) {
    const char *begin = p, *end = matrix_at(l, p, l->batch - 1) + matrix_bytes(l);
    const char *begin_d = D;
    const char *end_d = matrix_at(layout_d, D, layout_d->batch - 1) + matrix_bytes(layout_d);
    if (begin < end_d && begin_d < end) emu_fail("cublasLtMatmul: D overlaps %s", name);
}

/* ---- computing ---- */

static float load(cudaDataType type, const char *p, int64_t i) {
    if (type == CUDA_R_32F) return ((const float *)p)[i];
    const uint32_t bits = (uint32_t)((const uint16_t *)p)[i] << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static void store(cudaDataType type, char *p, int64_t i, float x) {
    if (type == CUDA_R_32F) {
        ((float *)p)[i] = x;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    ((uint16_t *)p)[i] = nan ? 0x7fff : (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static float *packed(cublasLtMatrixLayout_t l, const char *p) {
    float *x = malloc((size_t)(l->rows * l->cols) * sizeof *x);
    if (!x) emu_fail("cublasLtMatmul: no memory for a copy");
    for (int64_t j = 0; j < l->cols; j++)
        for (int64_t i = 0; i < l->rows; i++) x[j * l->rows + i] = load(l->type, p, j * l->ld + i);
    return x;
}

static void multiply(cublasLtMatmulDesc_t desc, Product p, float alpha, cublasLtMatrixLayout_t A,
                     const char *a, cublasLtMatrixLayout_t B, const char *b, float *ab) {
    float *pa = packed(A, a), *pb = packed(B, b);
    /* Columns first is the transpose with rows first: D' = op(B)' op(A)'. */
    const dnnl_status_t status = dnnl_sgemm(desc->trans_b == CUBLAS_OP_T ? 'T' : 'N',
                                            desc->trans_a == CUBLAS_OP_T ? 'T' : 'N', p.n, p.m, p.k,
                                            alpha, pb, B->rows, pa, A->rows, 0.0f, ab, p.m);
    if (status != dnnl_success) emu_fail("cublasLtMatmul: oneDNN's status %d", (int)status);
    free(pa);
    free(pb);
}

static void finish(cublasLtMatmulDesc_t desc, Product p, const float *ab, float beta,
                   cublasLtMatrixLayout_t C, const char *c, cublasLtMatrixLayout_t D, char *d) {
    const bool bias = desc->epilogue & CUBLASLT_EPILOGUE_BIAS;
    for (int64_t j = 0; j < p.n; j++)
        for (int64_t i = 0; i < p.m; i++) {
            float x = ab[j * p.m + i];
            if (beta != 0) x += beta * load(C->type, c, j * C->ld + i);
            if (bias) x += load(D->type, desc->bias, i);
            store(D->type, d, j * D->ld + i, x);
        }
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha,
                              const void *A, cublasLtMatrixLayout_t layout_a, const void *B,
                              cublasLtMatrixLayout_t layout_b, const void *beta, const void *C,
                              cublasLtMatrixLayout_t layout_c, void *D,
                              cublasLtMatrixLayout_t layout_d, const cublasLtMatmulAlgo_t *algo,
                              void *workspace, size_t workspace_bytes, cudaStream_t stream) {
    (void)stream;
    const cublasLtMatrixLayout_t layouts[] = {layout_a, layout_b, layout_c, layout_d};
    Promise promise;
    Product p;
    if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (!product_of(&p, desc, layout_a, layout_b, layout_c, layout_d))
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(&promise, algo, sizeof promise);
    if (promise.product != digest(desc, layouts))
        emu_fail("cublasLtMatmul: the algorithm was made for another product");
    if (workspace_bytes < promise.workspace ||
        (workspace_bytes && !emu_is_live(workspace, workspace_bytes)))
        emu_fail("cublasLtMatmul: %zu bytes of workspace at %p; the heuristic was told %llu",
                 workspace_bytes, workspace, (unsigned long long)promise.workspace);
    check_matrix("A", layout_a, A, promise.alignment[0]);
    check_matrix("B", layout_b, B, promise.alignment[1]);
    check_matrix("C", layout_c, C, promise.alignment[2]);
    check_matrix("D", layout_d, D, promise.alignment[3]);
    check_apart("A", layout_a, A, layout_d, D);
    check_apart("B", layout_b, B, layout_d, D);
    if (desc->epilogue & CUBLASLT_EPILOGUE_BIAS &&
        !emu_is_live(desc->bias, (size_t)p.m * type_size(layout_d->type)))
        emu_fail("cublasLtMatmul: the bias at %p is not %lld numbers of live device memory",
                 desc->bias, (long long)p.m);
    float *ab = malloc((size_t)(p.m * p.n) * sizeof *ab);
    if (!ab) emu_fail("cublasLtMatmul: no memory for the product");
    emu_device_open();
    for (int b = 0; b < p.batch; b++) {
        multiply(desc, p, *(const float *)alpha, layout_a, matrix_at(layout_a, A, b), layout_b,
                 matrix_at(layout_b, B, b), ab);
        finish(desc, p, ab, *(const float *)beta, layout_c, matrix_at(layout_c, C, b), layout_d,
               (char *)D + (matrix_at(layout_d, D, b) - (const char *)D));
    }
    emu_device_close();
    free(ab);
    return CUBLAS_STATUS_SUCCESS;
}
