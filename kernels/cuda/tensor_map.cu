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

/* A tensor of four dimensions in bf16, the innermost first, whose numbers are next to each other;
 * `strides` in numbers, of the others. `what` is for the sentence where the driver refuses. */
typedef struct Shape {
    cuuint64_t dims[4];
    int64_t strides[3];
    cuuint32_t box[4];
    const char *what;
} Shape;

static TensorMap map_make(Ctx *c, const void *data, const Shape &s) {
    const cuuint32_t steps[] = {1, 1, 1, 1};
    cuuint64_t strides[3];
    for (int i = 0; i < 3; i++) strides[i] = (cuuint64_t)s.strides[i] * sizeof(bf16);
    CUtensorMap map;
    const CUresult status =
        driver_encode(c)(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, (void *)data, s.dims, strides,
                         s.box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                         CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (status != CUDA_SUCCESS) {
        char text[320];
        snprintf(text, sizeof text,
                 "error %d for %s at %p: dimensions %lld, %lld, %lld, %lld, innermost first, "
                 "strides %lld, %lld, %lld numbers, boxes of %u, %u, %u, %u",
                 (int)status, s.what, data, (long long)s.dims[0], (long long)s.dims[1],
                 (long long)s.dims[2], (long long)s.dims[3], (long long)s.strides[0],
                 (long long)s.strides[1], (long long)s.strides[2], s.box[0], s.box[1], s.box[2],
                 s.box[3]);
        cuda_fail(c, "cuTensorMapEncodeTiled", text);
    }
    TensorMap opaque;
    memcpy(&opaque, &map, sizeof map);
    return opaque;
}

TensorMap tensor_map(Ctx *c, const void *data, AttnStride s, int B, int T, int H, int D, int rows) {
    return map_make(c, data,
                    {{(cuuint64_t)D, (cuuint64_t)T, (cuuint64_t)H, (cuuint64_t)B},
                     {s.t, s.h, s.b},
                     {COLUMNS, (cuuint32_t)rows, 1, 1},
                     "(D, T, H, B)"});
}

TensorMap tensor_map_image(Ctx *c, const void *data, int n, int h, int w, int D, int across,
                           int rows) {
    const int64_t row = (int64_t)w * D;
    return map_make(c, data,
                    {{(cuuint64_t)D, (cuuint64_t)w, (cuuint64_t)h, (cuuint64_t)n},
                     {D, row, h * row},
                     {COLUMNS, (cuuint32_t)across, (cuuint32_t)rows, 1},
                     "images (D, w, h, n)"});
}
