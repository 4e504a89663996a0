/* Matrix products by cuBLASLt, which thinks in columns: a row-major (M, N) matrix is to it a
 * column-major N x M one, so the row-major C = A B is its C' = B' A', with A and B exchanged and
 * nothing copied.
 *
 * A plan, that is the library's descriptions of the matrices and the algorithm that its heuristic
 * chose, is kept by all that the choice depends on, the alignment of the addresses included. Asking
 * the heuristic takes the host some tens of microseconds, a kept plan less than one. */
#include <cublasLt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifndef LLMC_EMU
#include <dlfcn.h>
#endif

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gemm.cuh"
extern "C" {
#include "llmc_like/error.h"
}

/* What is used of the library: cublasLtCreate is blas->Create. */
#define CUBLASLT_FUNCTIONS(X)       \
    X(Create)                       \
    X(Destroy)                      \
    X(GetStatusString)              \
    X(Matmul)                       \
    X(MatmulAlgoGetHeuristic)       \
    X(MatmulDescCreate)             \
    X(MatmulDescDestroy)            \
    X(MatmulDescSetAttribute)       \
    X(MatmulPreferenceCreate)       \
    X(MatmulPreferenceDestroy)      \
    X(MatmulPreferenceSetAttribute) \
    X(MatrixLayoutCreate)           \
    X(MatrixLayoutDestroy)          \
    X(MatrixLayoutSetAttribute)

typedef struct Key { /* all of one type: compared as bytes */
    int64_t M, N, K, ta, tb, in, out, lda, ldb, ldc, batch, stride_a, stride_b, stride_c, epilogue,
        align_a, align_b, align_c, align_e;
} Key;

typedef struct Plan {
    Key key;
    cublasLtMatmulDesc_t op; /* NULL: an empty place */
    cublasLtMatrixLayout_t a, b, c;
    cublasLtMatmulAlgo_t algorithm;
} Plan;

/* Batches of events have another number of rows each time, so plans come and go: one that finds the
 * PROBES places from its hash on taken overwrites the first. */
enum { PLANS = 1024, PROBES = 8 };

typedef struct CublasLt {
#define MEMBER(name) decltype(&cublasLt##name) name;
    CUBLASLT_FUNCTIONS(MEMBER)
#undef MEMBER
    cublasLtHandle_t handle;
    void *workspace;
    size_t workspace_bytes;
    Plan plan[PLANS];
} CublasLt;

/* `blas` is in scope where it stands. */
#define BLAS(c, call)                                                         \
    do {                                                                      \
        const cublasStatus_t status_ = (call);                                \
        if (status_ != CUBLAS_STATUS_SUCCESS)                                 \
            cuda_fail(c, "cublasLt: " #call, blas->GetStatusString(status_)); \
    } while (0)

/* ---- opening and freeing ---- */

#ifdef LLMC_EMU
static void find_functions(Ctx *, CublasLt *blas) { /* the emulator's stand-ins are linked */
#define LINKED(name) blas->name = cublasLt##name;
    CUBLASLT_FUNCTIONS(LINKED)
#undef LINKED
}
#else
#ifndef CUDA_LIB /* where the toolkit that the program was built with has its libraries */
#define CUDA_LIB "/usr/local/cuda/lib64"
#endif

/* By the loader's rules first, then in the toolkit. */
static void *open_library(Ctx *c) {
    static const char *const names[] = {"libcublasLt.so.13", CUDA_LIB "/libcublasLt.so.13",
                                        "libcublasLt.so.12", CUDA_LIB "/libcublasLt.so.12",
                                        "libcublasLt.so"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        void *library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        if (library) return library;
    }
    cuda_fail(c, "dlopen(libcublasLt.so)",
              "not found: install CUDA's cuBLAS 12 or 13, or name its folder in LD_LIBRARY_PATH");
}

static void find_functions(Ctx *c, CublasLt *blas) {
    void *library = open_library(c);
#define FIND(name)                                                       \
    blas->name = (decltype(blas->name))dlsym(library, "cublasLt" #name); \
    if (!blas->name) cuda_fail(c, "dlsym(cublasLt" #name ")", dlerror());
    CUBLASLT_FUNCTIONS(FIND)
#undef FIND
}
#endif

/* NVIDIA advises 4 MiB of workspace before Hopper and 32 on it; more lets the heuristic cut long
 * sums into more pieces. */
static CublasLt *cublas(Ctx *c) {
    Cuda *cuda = cuda_of(c);
    if (cuda->blas) return cuda->blas;
    CublasLt *blas = (CublasLt *)calloc(1, sizeof *blas);
    CHECK(blas, "no memory for %zu bytes of plans", sizeof *blas);
    find_functions(c, blas);
    BLAS(c, blas->Create(&blas->handle));
    blas->workspace_bytes = (size_t)(cuda->arch >= 90 ? 64 : 32) << 20;
    CUDA(c, cudaMalloc(&blas->workspace, blas->workspace_bytes));
    cuda->blas = blas;
    return blas;
}

static void plan_free(const CublasLt *blas, Plan *p) {
    if (!p->op) return;
    BLAS(NULL, blas->MatmulDescDestroy(p->op));
    BLAS(NULL, blas->MatrixLayoutDestroy(p->a));
    BLAS(NULL, blas->MatrixLayoutDestroy(p->b));
    BLAS(NULL, blas->MatrixLayoutDestroy(p->c));
    p->op = NULL;
}

/* The library stays open: to close and open it again costs more than it occupies. */
void cublas_free(CublasLt *blas) {
    if (!blas) return;
    for (int i = 0; i < PLANS; i++) plan_free(blas, &blas->plan[i]);
    BLAS(NULL, blas->Destroy(blas->handle));
    CUDA(NULL, cudaFree(blas->workspace));
    free(blas);
}

/* ---- plans ---- */

[[noreturn]] static void gemm_fail(Ctx *c, const Key *k, const char *error) {
    char text[256];
    snprintf(text, sizeof text,
             "cublasLtMatmul: (%lld, %lld)%s x (%lld, %lld)%s, %s to %s, batch %lld, leading "
             "dimensions %lld, %lld, %lld",
             (long long)k->M, (long long)k->K, k->ta ? "'" : "", (long long)k->K, (long long)k->N,
             k->tb ? "'" : "", dtype_name((DType)k->in), dtype_name((DType)k->out),
             (long long)k->batch, (long long)k->lda, (long long)k->ldb, (long long)k->ldc);
    cuda_fail(c, text, error);
}

static cudaDataType data_type(int64_t dtype) { return dtype == DT_BF16 ? CUDA_R_16BF : CUDA_R_32F; }

/* rows x cols in the library's words: columns that lie ld apart. */
static cublasLtMatrixLayout_t layout(Ctx *c, const CublasLt *blas, int64_t dtype, int64_t rows,
                                     int64_t cols, int64_t ld, int64_t batch, int64_t stride) {
    cublasLtMatrixLayout_t l;
    const int32_t count = (int32_t)batch;
    BLAS(c, blas->MatrixLayoutCreate(&l, data_type(dtype), (uint64_t)rows, (uint64_t)cols, ld));
    BLAS(c, blas->MatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count,
                                           sizeof count));
    BLAS(c, blas->MatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride,
                                           sizeof stride));
    return l;
}

/* Sums that are cut into pieces are added in float32, not in the output's type, which bf16 would
 * round for each piece. */
static cublasLtMatmulPreference_t preference(Ctx *c, const CublasLt *blas, const Key *k) {
    const uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    const struct {
        cublasLtMatmulPreferenceAttributes_t name;
        int64_t bytes;
    } alignment[] = {{CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, k->align_b},
                     {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, k->align_a},
                     {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, k->align_e},
                     {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, k->align_c}};
    cublasLtMatmulPreference_t p;
    BLAS(c, blas->MatmulPreferenceCreate(&p));
    BLAS(c,
         blas->MatmulPreferenceSetAttribute(p, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                            &blas->workspace_bytes, sizeof blas->workspace_bytes));
    BLAS(c, blas->MatmulPreferenceSetAttribute(p, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                               &reduction, sizeof reduction));
    for (int i = 0; i < 4; i++) {
        const uint32_t bytes = (uint32_t)alignment[i].bytes;
        BLAS(c, blas->MatmulPreferenceSetAttribute(p, alignment[i].name, &bytes, sizeof bytes));
    }
    return p;
}

/* The product's description; CUBLAS_COMPUTE_32F has float32 products and sums for float32. */
static cublasLtMatmulDesc_t operation(Ctx *c, const CublasLt *blas, const Key *k) {
    const cublasOperation_t a = k->tb ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t b = k->ta ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasLtEpilogue_t epilogue = (cublasLtEpilogue_t)k->epilogue;
    cublasLtMatmulDesc_t op;
    BLAS(c, blas->MatmulDescCreate(&op, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    BLAS(c, blas->MatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_TRANSA, &a, sizeof a));
    BLAS(c, blas->MatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_TRANSB, &b, sizeof b));
    BLAS(c, blas->MatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                                         sizeof epilogue));
    return op;
}

static void plan_make(Ctx *c, const CublasLt *blas, const Key *k, Plan *p) {
    p->key = *k;
    p->op = operation(c, blas, k);
    p->a = layout(c, blas, k->in, k->tb ? k->K : k->N, k->tb ? k->N : k->K, k->ldb, k->batch,
                  k->stride_b);
    p->b = layout(c, blas, k->in, k->ta ? k->M : k->K, k->ta ? k->K : k->M, k->lda, k->batch,
                  k->stride_a);
    p->c = layout(c, blas, k->out, k->N, k->M, k->ldc, k->batch, k->stride_c);
    const cublasLtMatmulPreference_t wishes = preference(c, blas, k);
    cublasLtMatmulHeuristicResult_t best;
    int found = 0;
    const cublasStatus_t status = blas->MatmulAlgoGetHeuristic(
        blas->handle, p->op, p->a, p->b, p->c, p->c, wishes, 1, &best, &found);
    if (status != CUBLAS_STATUS_SUCCESS) gemm_fail(c, k, blas->GetStatusString(status));
    if (found == 0) gemm_fail(c, k, "the library has no algorithm for it");
    p->algorithm = best.algo;
    BLAS(c, blas->MatmulPreferenceDestroy(wishes));
}

static uint64_t hash(const Key *k) { /* FNV-1a over words */
    uint64_t words[sizeof *k / sizeof(uint64_t)], h = 0xcbf29ce484222325u;
    memcpy(words, k, sizeof words);
    for (uint64_t word : words) h = (h ^ word) * 0x100000001b3u;
    return h ^ h >> 32;
}

static const Plan *plan_find(Ctx *c, CublasLt *blas, const Key *k) {
    const uint64_t first = hash(k);
    Plan *empty = NULL;
    for (uint64_t i = 0; i < PROBES; i++) {
        Plan *p = &blas->plan[(first + i) % PLANS];
        if (p->op && !memcmp(&p->key, k, sizeof *k)) return p;
        if (!p->op && !empty) empty = p;
    }
    if (!empty) {
        empty = &blas->plan[first % PLANS];
        plan_free(blas, empty);
    }
    plan_make(c, blas, k, empty);
    return empty;
}

/* ---- running ---- */

/* The largest power of two up to 256 that divides the addresses of all matrices of a batch. */
static int64_t alignment(const void *p, int64_t stride, DType dtype) {
    const uint64_t bits = (uintptr_t)p | (uint64_t)stride * dtype_size(dtype) | 256;
    return (int64_t)(bits & -bits);
}

static cublasLtEpilogue_t epilogue_of(const Gemm *g) {
    return g->bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
}

void cuda_gemm(Ctx *c, const Gemm *g) {
    CublasLt *blas = cublas(c);
    const void *E = g->E ? g->E : g->C;
    const Key key = {g->M,
                     g->N,
                     g->K,
                     g->ta,
                     g->tb,
                     g->in,
                     g->out,
                     g->lda,
                     g->ldb,
                     g->ldc,
                     g->batch ? g->batch : 1,
                     g->stride_a,
                     g->stride_b,
                     g->stride_c,
                     epilogue_of(g),
                     alignment(g->A, g->stride_a, g->in),
                     alignment(g->B, g->stride_b, g->in),
                     alignment(g->C, g->stride_c, g->out),
                     alignment(E, g->stride_c, g->out)};
    const Plan *p = plan_find(c, blas, &key);
    if (g->bias)
        BLAS(c, blas->MatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &g->bias,
                                             sizeof g->bias));
    const cublasStatus_t status = blas->Matmul(
        blas->handle, p->op, &g->alpha, g->B, p->a, g->A, p->b, &g->beta, E, p->c, g->C, p->c,
        &p->algorithm, blas->workspace, blas->workspace_bytes, cuda_of(c)->stream);
    if (status != CUBLAS_STATUS_SUCCESS) gemm_fail(c, &key, blas->GetStatusString(status));
}

/* ---- the peak ---- */

/* Numbers that differ: a matrix unit that multiplies zeros takes less power, and is faster. */
template <typename T>
static __global__ void fill(T *x, int64_t n) {
    const int64_t i = global_thread();
    if (i < n) x[i] = from_float<T>((float)((uint32_t)i * 2654435761u >> 8) * 0x1p-24f - 0.5f);
}

static int compare(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Milliseconds of one product, the median. */
static float median_time(Ctx *c, const Gemm *g) {
    enum { TIMES = 9 };
    float ms[TIMES];
    cudaEvent_t begin, end;
    CUDA(c, cudaEventCreate(&begin));
    CUDA(c, cudaEventCreate(&end));
    for (int i = 0; i < 3; i++) cuda_gemm(c, g);
    for (int i = 0; i < TIMES; i++) {
        CUDA(c, cudaEventRecord(begin, cuda_of(c)->stream));
        cuda_gemm(c, g);
        CUDA(c, cudaEventRecord(end, cuda_of(c)->stream));
        CUDA(c, cudaEventSynchronize(end));
        CUDA(c, cudaEventElapsedTime(&ms[i], begin, end));
    }
    CUDA(c, cudaEventDestroy(begin));
    CUDA(c, cudaEventDestroy(end));
    qsort(ms, TIMES, sizeof *ms, compare);
    return ms[TIMES / 2];
}

double cuda_peak(Ctx *c) {
#ifdef LLMC_EMU
    const int64_t n = 64;
#else
    const int64_t n = 8192;
#endif
    const size_t bytes = (size_t)(n * n) * dtype_size(c->dtype);
    char *at = (char *)ctx_workspace(c, 3 * bytes);
    Gemm g = {};
    g.M = g.N = g.K = g.lda = g.ldb = g.ldc = n;
    g.tb = true; /* as a linear layer has it */
    g.in = g.out = c->dtype;
    g.A = at, g.B = at + bytes, g.C = at + 2 * bytes;
    g.alpha = 1;
    with_dtype(c->dtype, [&](auto zero) {
        typedef decltype(zero) T;
        launch(c, fill<T>, grid_for(2 * n * n), BLOCK, 0, (T *)at, 2 * n * n);
    });
    return 2e-6 * (double)(n * n * n) / (double)median_time(c, &g);
}
