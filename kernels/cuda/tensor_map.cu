#include "kernels/cuda/tensor_map.cuh"

#include <cuda.h>
#include <stdio.h>

static_assert(sizeof(TensorMap) == sizeof(CUtensorMap) &&
                  alignof(TensorMap) >= alignof(CUtensorMap),
              "a TensorMap is the driver's");

/* A row of a panel: 64 numbers, the 128 bytes of the swizzle. */
enum { COLUMNS = 64 };

bool tensor_map_fits(const void *data, AttnStride s) {
    const int64_t strides[] = {s.t, s.h, s.b}, limit = (int64_t)1 << 40;
    for (int64_t stride : strides) {
        const int64_t bytes = stride * (int64_t)sizeof(bf16);
        if (bytes <= 0 || bytes >= limit || bytes % 16) return false;
    }
    return (uintptr_t)data % 16 == 0;
}

/* The driver's function, without linking to the driver: programs start on machines that have none.
 */
static decltype(&cuTensorMapEncodeTiled) driver_encode(Ctx *c) {
    enum { SINCE = 12000 };
    void *function = NULL;
    cudaDriverEntryPointQueryResult result;
    CUDA(c, cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, SINCE,
                                             cudaEnableDefault, &result));
    if (result != cudaDriverEntryPointSuccess || !function)
        cuda_fail(c, "cuTensorMapEncodeTiled",
                  "the driver has no such function; one of CUDA 12 or later does");
    return (decltype(&cuTensorMapEncodeTiled))function;
}

TensorMap tensor_map(Ctx *c, const void *data, AttnStride s, int B, int T, int H, int D, int rows) {
    const cuuint64_t dims[] = {(cuuint64_t)D, (cuuint64_t)T, (cuuint64_t)H, (cuuint64_t)B};
    const cuuint64_t strides[] = {s.t * sizeof(bf16), s.h * sizeof(bf16), s.b * sizeof(bf16)};
    const cuuint32_t box[] = {COLUMNS, (cuuint32_t)rows, 1, 1}, steps[] = {1, 1, 1, 1};
    CUtensorMap map;
    const CUresult status =
        driver_encode(c)(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, (void *)data, dims, strides,
                         box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                         CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (status != CUDA_SUCCESS) {
        char text[256];
        snprintf(text, sizeof text,
                 "error %d for boxes of %d rows of (B %d, T %d, H %d, D %d) at %p, strides %lld, "
                 "%lld, %lld",
                 (int)status, rows, B, T, H, D, data, (long long)s.b, (long long)s.t,
                 (long long)s.h);
        cuda_fail(c, "cuTensorMapEncodeTiled", text);
    }
    TensorMap opaque;
    memcpy(&opaque, &map, sizeof map);
    return opaque;
}
