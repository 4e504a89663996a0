/* The driver's interface, as far as kernels/cuda takes functions from it: maps of tensors, with the
 * limits that CUDA's documentation of cuTensorMapEncodeTiled gives. */
#include <cuda.h>
#include <cuda_runtime.h>
#include <string.h>

#include "dev/emu/bulk.h"
#include "dev/emu/stream.h"

_Static_assert(sizeof(EmuMap) <= sizeof(CUtensorMap), "the emulator's map fits into the driver's");

enum { RANK = 4, ALIGN = 16, MAP_ALIGN = 64, MAX_BOX = 256, SWIZZLED_LINE = 128 };
#define MAX_DIM ((uint64_t)1 << 32)
#define MAX_STRIDE ((uint64_t)1 << 40)

/* Boxes of other ranks, and with steps, are CUDA's but not ours. */
static bool fits(const EmuMap *m, const cuuint32_t *element_strides) {
    const uint64_t line = m->box[0] * m->stride[0];
    if ((uintptr_t)m->base % ALIGN || line % ALIGN || (m->swizzled && line > SWIZZLED_LINE))
        return false;
    for (int d = 0; d < RANK; d++) {
        if (!m->dim[d] || m->dim[d] > MAX_DIM || !m->box[d] || m->box[d] > MAX_BOX) return false;
        if (element_strides[d] != 1) return false;
        if (d && (m->stride[d] % ALIGN || m->stride[d] >= MAX_STRIDE)) return false;
    }
    return true;
}

CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank,
                                void *address, const cuuint64_t *dims, const cuuint64_t *strides,
                                const cuuint32_t *box, const cuuint32_t *element_strides,
                                CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
    (void)interleave, (void)promotion, (void)fill;
    if (!map || (uintptr_t)map % MAP_ALIGN || rank != RANK) return CUDA_ERROR_INVALID_VALUE;
    EmuMap m = {.magic = EMU_MAP_MAGIC,
                .base = address,
                .stride = {type == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 ? 2 : 4, strides[0], strides[1],
                           strides[2]},
                .swizzled = swizzle == CU_TENSOR_MAP_SWIZZLE_128B};
    for (int d = 0; d < RANK; d++) m.dim[d] = dims[d], m.box[d] = box[d];
    if (!fits(&m, element_strides)) return CUDA_ERROR_INVALID_VALUE;
    memset(map, 0, sizeof *map);
    memcpy(map, &m, sizeof m);
    return CUDA_SUCCESS;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned version,
                                             unsigned long long flags,
                                             cudaDriverEntryPointQueryResult *result) {
    (void)flags;
    CUresult (*const encode)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                             const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                             const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                             CUtensorMapL2promotion, CUtensorMapFloatOOBfill) =
        cuTensorMapEncodeTiled;
    const bool known = !strcmp(symbol, "cuTensorMapEncodeTiled");
    *function = NULL;
    *result = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    if (known && version < 12000) *result = cudaDriverEntryPointVersionNotSufficent;
    if (*result == cudaDriverEntryPointSuccess) memcpy(function, &encode, sizeof encode);
    return cudaSuccess;
}
