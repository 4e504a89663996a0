/* Activations: value(x), and back(x, dy) = dy times the slope at x. NaN passes through each, since
 * it fails the comparisons below. */
#ifndef KERNELS_CUDA_ACTIVATION_CUH
#define KERNELS_CUDA_ACTIVATION_CUH

#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/ptx.cuh"

struct Silu {
    static __device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
    static __device__ __forceinline__ float value(float x) { return x * sigmoid(x); }
    static __device__ __forceinline__ float back(float x, float dy) {
        const float s = sigmoid(x);
        return dy * (s + x * s * (1.0f - s));
    }
};

struct Gelu {
    /* exp(-x^2 / 2) = 2^(-x^2 log2(e) / 2) */
    static __device__ __forceinline__ float bell(float x) {
        return exp2_fast(-0.72134752f * x * x);
    }

    /* Phi(-|x|), given e = bell(x): the error function's rational approximation 7.1.26 of
     * Abramowitz and Stegun, which is off by at most 1.5e-7 and shares its e with the density. 15
     * instructions, where erff has some 35 and two branches: in bf16 that would take longer than
     * moving the numbers. */
    static __device__ __forceinline__ float lower_tail(float x, float e) {
        const float t = __fdividef(1.0f, 1.0f + 0.3275911f * 0.70710678f * fabsf(x));
        float p = 1.061405429f;
        p = p * t - 1.453152027f;
        p = p * t + 1.421413741f;
        p = p * t - 0.284496736f;
        p = p * t + 0.254829592f;
        return 0.5f * p * t * e;
    }

    /* x Phi(x) = max(x, 0) - |x| Phi(-|x|): no difference of nearly equal numbers on either side.
     */
    static __device__ __forceinline__ float value(float x) {
        return (x > 0 ? x : 0) - fabsf(x) * lower_tail(x, bell(x));
    }
    static __device__ __forceinline__ float back(float x, float dy) {
        const float e = bell(x), tail = lower_tail(x, e);
        return dy * ((x > 0 ? 1.0f - tail : tail) + x * (0.39894228f * e));
    }
};

struct Relu {
    static __device__ __forceinline__ float value(float x) { return x < 0 ? 0 : x; }
    static __device__ __forceinline__ float back(float x, float dy) { return x <= 0 ? 0 : dy; }
};

struct ReluSquared {
    static __device__ __forceinline__ float value(float x) { return x < 0 ? 0 : x * x; }
    static __device__ __forceinline__ float back(float x, float dy) {
        return x <= 0 ? 0 : 2 * x * dy;
    }
};

/* y = GELU(x), max(x, 0), of n numbers; y may be x. (activation.cu) */
void cuda_gelu(Ctx *c, DType dtype, void *y, const void *x, int64_t n);
void cuda_relu(Ctx *c, DType dtype, void *y, const void *x, int64_t n);

#endif
