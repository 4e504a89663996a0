/* CUDA's runtime for the emulator: a device with 8 GiB, by default of sm_90 (EMU_DEVICE). What a
 * real runtime might or might not notice, pointers that are no device memory or too short, ends the
 * process with a sentence.
 * Kernels have run when their launch returns; what the host may see of that, and when, is in
 * stream.c. */
#include <cuda_runtime.h>
#include <stdlib.h>
#include <string.h>

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
        case cudaErrorLaunchFailure:
            return "unspecified launch failure";
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
        case cudaErrorLaunchFailure:
            return "cudaErrorLaunchFailure";
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

const EmuDevice *emu_device(void) {
    static const EmuDevice devices[] = {{"sm_90", 9, 0, 228 << 10, EMU_MAX_SHARED},
                                        {"sm_86", 8, 6, 100 << 10, 99 << 10},
                                        {"sm_80", 8, 0, 164 << 10, 163 << 10}};
    const char *name = getenv("EMU_DEVICE");
    if (!name) return devices;
    for (size_t i = 0; i < sizeof devices / sizeof *devices; i++)
        if (!strcmp(name, devices[i].name)) return &devices[i];
    emu_fail("EMU_DEVICE=%s: expected sm_80, sm_86 or sm_90", name);
}

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
            *value = emu_device()->major;
            return cudaSuccess;
        case cudaDevAttrComputeCapabilityMinor:
            *value = emu_device()->minor;
            return cudaSuccess;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
            *value = emu_device()->shared_sm;
            return cudaSuccess;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin:
            *value = emu_device()->shared_block;
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
                                   .sharedMemPerBlockOptin = (size_t)emu_device()->shared_block,
                                   .sharedMemPerMultiprocessor = (size_t)emu_device()->shared_sm,
                                   .warpSize = EMU_LANES,
                                   .maxThreadsPerBlock = EMU_MAX_THREADS,
                                   .multiProcessorCount = MULTIPROCESSORS,
                                   .major = emu_device()->major,
                                   .minor = emu_device()->minor,
                                   .l2CacheSize = 50 << 20};
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *function, cudaFuncAttribute attribute, int value) {
    const bool fits = attribute != cudaFuncAttributeMaxDynamicSharedMemorySize ||
                      value <= emu_device()->shared_block;
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
