/* CUDA's runtime for the emulator. A device of sm_90 with 8 GiB. Streams and events are there and
 * do nothing: each call has done its work when it returns. What a real runtime might or might not
 * notice, pointers that are no device memory or too short, ends the process with a sentence. */
#include <cuda_runtime.h>
#include <time.h>

struct CUstream_st {
    unsigned flags;
};
struct CUevent_st {
    unsigned flags;
    bool recorded;
    double at_s;
};

enum { MULTIPROCESSORS = 8 };
static __thread cudaError_t last_error;

static cudaError_t done(cudaError_t status) {
    if (status != cudaSuccess) last_error = status;
    return status;
}

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
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
    return done(device == 0 ? cudaSuccess : cudaErrorInvalidValue);
}
cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize(void) { return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
    if (device != 0) return done(cudaErrorInvalidValue);
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
    return done(cudaErrorInvalidValue);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device) {
    if (device != 0) return done(cudaErrorInvalidValue);
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
    return done(function && fits ? cudaSuccess : cudaErrorInvalidValue);
}

/* ---- memory ---- */

cudaError_t cudaMalloc(void **p, size_t bytes) {
    *p = bytes ? emu_device_alloc(bytes) : NULL;
    return done(*p || !bytes ? cudaSuccess : cudaErrorMemoryAllocation);
}

cudaError_t cudaFree(void *p) {
    if (p && !emu_device_release(p)) emu_fail("cudaFree(%p): not what cudaMalloc gave", p);
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **p, size_t bytes) {
    *p = emu_pinned_alloc(bytes);
    return done(*p ? cudaSuccess : cudaErrorMemoryAllocation);
}
cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned flags) {
    (void)flags;
    return cudaMallocHost(p, bytes);
}
cudaError_t cudaFreeHost(void *p) {
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

static cudaError_t copy(const char *call, void *to, const void *from, size_t bytes,
                        cudaMemcpyKind kind) {
    if (bytes == 0) return cudaSuccess;
    const bool guess = kind == cudaMemcpyDefault;
    check_side(call, "to", to, bytes,
               guess ? emu_is_device(to)
                     : kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice);
    check_side(call, "from", from, bytes,
               guess ? emu_is_device(from)
                     : kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice);
    emu_device_open();
    memmove(to, from, bytes);
    emu_device_close();
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    return copy("cudaMemcpy", to, from, bytes, kind);
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    (void)stream;
    return copy("cudaMemcpyAsync", to, from, bytes, kind);
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

/* ---- streams and events ---- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    *stream = malloc(sizeof **stream);
    if (*stream) (*stream)->flags = flags;
    return done(*stream ? cudaSuccess : cudaErrorMemoryAllocation);
}
cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    free(stream);
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    (void)stream;
    return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
    (void)stream;
    return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
    (void)stream, (void)flags;
    return done(event ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    *event = malloc(sizeof **event);
    if (*event) **event = (struct CUevent_st){.flags = flags};
    return done(*event ? cudaSuccess : cudaErrorMemoryAllocation);
}
cudaError_t cudaEventCreate(cudaEvent_t *event) {
    return cudaEventCreateWithFlags(event, cudaEventDefault);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    free(event);
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    (void)stream;
    event->recorded = true;
    event->at_s = seconds();
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    return done(event ? cudaSuccess : cudaErrorInvalidValue);
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
    return done(event ? cudaSuccess : cudaErrorInvalidValue);
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to) {
    const bool timed =
        from->recorded && to->recorded && !((from->flags | to->flags) & cudaEventDisableTiming);
    if (!timed) return done(cudaErrorInvalidValue);
    *ms = (float)(1e3 * (to->at_s - from->at_s));
    return cudaSuccess;
}
