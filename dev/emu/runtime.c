/* CUDA's runtime for the emulator: a device of sm_90 with 8 GiB. What a real runtime might or might
 * not notice, pointers that are no device memory or too short, ends the process with a sentence.
 * Kernels have run when their launch returns; what the host may see of that, and when, is in
 * stream.c. */
#include <cuda_runtime.h>

#include "dev/emu/parts.h"
#include "dev/emu/stream.h"

enum { MULTIPROCESSORS = 8 };
static __thread cudaError_t last_error;

cudaError_t emu_status(cudaError_t status) {
    if (status != cudaSuccess) last_error = status;
    return status;
}

const char *cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess:
            return "no error";
        case cudaErrorInvalidValue:
            return "invalid argument";
        case cudaErrorMemoryAllocation:
            return "out of memory";
        case cudaErrorInsufficientDriver:
            return "CUDA driver version is insufficient";
        case cudaErrorNoDevice:
            return "no CUDA-capable device is detected";
        case cudaErrorNotReady:
            return "device not ready";
    }
    return "unrecognized error code";
}

const char *cudaGetErrorName(cudaError_t error) {
    switch (error) {
        case cudaSuccess:
            return "cudaSuccess";
        case cudaErrorInvalidValue:
            return "cudaErrorInvalidValue";
        case cudaErrorMemoryAllocation:
            return "cudaErrorMemoryAllocation";
        case cudaErrorInsufficientDriver:
            return "cudaErrorInsufficientDriver";
        case cudaErrorNoDevice:
            return "cudaErrorNoDevice";
        case cudaErrorNotReady:
            return "cudaErrorNotReady";
    }
    return "unrecognized error code";
}

cudaError_t cudaPeekAtLastError(void) { return last_error; }
cudaError_t cudaGetLastError(void) {
    const cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

/* ---- the device ---- */

cudaError_t cudaGetDeviceCount(int *count) {
    *count = 1;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
    return emu_status(device == 0 ? cudaSuccess : cudaErrorInvalidValue);
}
cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize(void) {
    emu_stream_reach(emu_stream_end());
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
    if (device != 0) return emu_status(cudaErrorInvalidValue);
    switch (attribute) {
        case cudaDevAttrMaxThreadsPerBlock:
            *value = EMU_MAX_THREADS;
            return cudaSuccess;
        case cudaDevAttrWarpSize:
            *value = EMU_LANES;
            return cudaSuccess;
        case cudaDevAttrMultiProcessorCount:
            *value = MULTIPROCESSORS;
            return cudaSuccess;
        case cudaDevAttrComputeCapabilityMajor:
            *value = 9;
            return cudaSuccess;
        case cudaDevAttrComputeCapabilityMinor:
            *value = 0;
            return cudaSuccess;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
            *value = 228 << 10;
            return cudaSuccess;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin:
            *value = EMU_MAX_SHARED;
            return cudaSuccess;
    }
    return emu_status(cudaErrorInvalidValue);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device) {
    if (device != 0) return emu_status(cudaErrorInvalidValue);
    size_t free_bytes, total;
    emu_device_info(&free_bytes, &total);
    *properties = (cudaDeviceProp){.name = "emulated device",
                                   .totalGlobalMem = total,
                                   .sharedMemPerBlock = 48 << 10,
                                   .sharedMemPerBlockOptin = EMU_MAX_SHARED,
                                   .sharedMemPerMultiprocessor = 228 << 10,
                                   .warpSize = EMU_LANES,
                                   .maxThreadsPerBlock = EMU_MAX_THREADS,
                                   .multiProcessorCount = MULTIPROCESSORS,
                                   .major = 9,
                                   .l2CacheSize = 50 << 20};
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *function, cudaFuncAttribute attribute, int value) {
    const bool fits =
        attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value <= EMU_MAX_SHARED;
    return emu_status(function && fits ? cudaSuccess : cudaErrorInvalidValue);
}

/* ---- memory ---- */

cudaError_t cudaMalloc(void **p, size_t bytes) {
    *p = bytes ? emu_device_alloc(bytes) : NULL;
    return emu_status(*p || !bytes ? cudaSuccess : cudaErrorMemoryAllocation);
}

cudaError_t cudaFree(void *p) {
    emu_stream_reach(emu_stream_end());
    if (p && !emu_device_release(p)) emu_fail("cudaFree(%p): not what cudaMalloc gave", p);
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **p, size_t bytes) {
    *p = emu_pinned_alloc(bytes);
    return emu_status(*p ? cudaSuccess : cudaErrorMemoryAllocation);
}
cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned flags) {
    (void)flags;
    return cudaMallocHost(p, bytes);
}
cudaError_t cudaFreeHost(void *p) {
    emu_stream_reach(emu_stream_end());
    if (p && !emu_pinned_release(p)) emu_fail("cudaFreeHost(%p): not what cudaMallocHost gave", p);
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes) {
    emu_device_info(free_bytes, total_bytes);
    return cudaSuccess;
}

static void check_side(const char *call, const char *side, const void *p, size_t bytes,
                       bool device) {
    if (device && !emu_is_live(p, bytes))
        emu_fail("%s: %zu bytes %s %p, which are not live device memory", call, bytes, side, p);
    if (!device && emu_is_device(p))
        emu_fail("%s: %s %p is device memory, and the copy's kind says host", call, side, p);
}

static bool device_side(cudaMemcpyKind kind, cudaMemcpyKind other, const void *p) {
    if (kind == cudaMemcpyDefault) return emu_is_device(p);
    return kind == other || kind == cudaMemcpyDeviceToDevice;
}

/* Checks both sides and copies. */
static void copy(const char *call, void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    check_side(call, "to", to, bytes, device_side(kind, cudaMemcpyHostToDevice, to));
    check_side(call, "from", from, bytes, device_side(kind, cudaMemcpyDeviceToHost, from));
    emu_device_open();
    memmove(to, from, bytes);
    emu_device_close();
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    emu_stream_reach(emu_stream_end());
    if (bytes) copy("cudaMemcpy", to, from, bytes, kind);
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    (void)stream;
    if (bytes) copy("cudaMemcpyAsync", to, from, bytes, kind);
    if (bytes && emu_is_pinned(to, bytes)) emu_stream_arrives_late(to, bytes);
    if (bytes && emu_is_pinned(from, bytes)) emu_stream_reads_late(from, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemset(void *p, int value, size_t bytes) {
    if (bytes == 0) return cudaSuccess;
    check_side("cudaMemset", "at", p, bytes, true);
    emu_device_open();
    memset(p, value, bytes);
    emu_device_close();
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream) {
    (void)stream;
    return cudaMemset(p, value, bytes);
}
