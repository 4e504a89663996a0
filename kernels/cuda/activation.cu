/* SiLU, GELU, ReLU, its square, and the gated SiLU: one element at a time. Bound by memory: forward
 * moves 2 elements' bytes for each, backward 3 (gated: 3 and 5), and a thread 16 bytes of each
 * tensor. NaN fails each comparison below and so passes through. */
#include "kernels/cuda/rows.cuh"

static __device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

/* An activation: its value, and dy times its slope. */
struct Silu {
    static __device__ __forceinline__ float value(float x) { return x * sigmoid(x); }
    static __device__ __forceinline__ float back(float x, float dy) {
        const float s = sigmoid(x);
        return dy * (s + x * s * (1.0f - s));
    }
};

struct Gelu {
    static __device__ __forceinline__ float phi(float x) {
        return 0.5f + 0.5f * erff(0.70710678f * x);
    }
    static __device__ __forceinline__ float value(float x) { return x * phi(x); }
    static __device__ __forceinline__ float back(float x, float dy) {
        return dy * (phi(x) + x * 0.39894228f * expf(-0.5f * x * x));
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

template <typename Act, typename T, int N>
static __global__ void activation_forward(T *y, const T *x, int64_t n) {
    const int64_t first = global_thread() * N;
    if (first >= n) return;
    const int count = part_count<N>(first, n);
    const Part<T, N> in = load_part<N>(x + first, count);
    float out[N];
    for (int i = 0; i < N; i++) out[i] = Act::value(to_float(in.at[i]));
    put_part<N>(y + first, out, false, count);
}

template <typename Act, typename T, int N>
static __global__ void activation_backward(T *dx, const T *x, const T *dy, int64_t n, bool add) {
    const int64_t first = global_thread() * N;
    if (first >= n) return;
    const int count = part_count<N>(first, n);
    const Part<T, N> in = load_part<N>(x + first, count), d = load_part<N>(dy + first, count);
    float out[N];
    for (int i = 0; i < N; i++) out[i] = Act::back(to_float(in.at[i]), to_float(d.at[i]));
    put_part<N>(dx + first, out, add, count);
}

template <typename Act>
static void forward(Ctx *c, const OpCall *o) {
    with_dtype(c->dtype, [&](auto t) {
        typedef decltype(t) T;
        const T *x = (const T *)o->in[0]->data;
        T *y = (T *)o->out[0]->data;
        const int64_t n = tensor_numel(o->in[0]);
        with_part<T>(is_packed<T>(0, x, y), [&](auto part) {
            enum { N = decltype(part)::N };
            launch(c, activation_forward<Act, T, N>, grid_for((n + N - 1) / N), BLOCK, 0, y, x, n);
        });
    });
}

template <typename Act>
static void backward(Ctx *c, const OpCall *o) {
    with_dtype(c->dtype, [&](auto t) {
        typedef decltype(t) T;
        const T *x = (const T *)o->in[0]->data, *dy = (const T *)o->out[0]->grad;
        T *dx = grad_of<T>(o->in[0]);
        const int64_t n = tensor_numel(o->in[0]);
        with_part<T>(is_packed<T>(0, x, dy, dx), [&](auto part) {
            enum { N = decltype(part)::N };
            launch(c, activation_backward<Act, T, N>, grid_for((n + N - 1) / N), BLOCK, 0, dx, x,
                   dy, n, o->in[0]->grad_set);
        });
    });
}

void cuda_silu_forward(Ctx *c, const OpCall *o) { forward<Silu>(c, o); }
void cuda_silu_backward(Ctx *c, const OpCall *o) { backward<Silu>(c, o); }
void cuda_gelu_forward(Ctx *c, const OpCall *o) { forward<Gelu>(c, o); }
void cuda_gelu_backward(Ctx *c, const OpCall *o) { backward<Gelu>(c, o); }
void cuda_relu_forward(Ctx *c, const OpCall *o) { forward<Relu>(c, o); }
void cuda_relu_backward(Ctx *c, const OpCall *o) { backward<Relu>(c, o); }
void cuda_relu_squared_forward(Ctx *c, const OpCall *o) { forward<ReluSquared>(c, o); }
void cuda_relu_squared_backward(Ctx *c, const OpCall *o) { backward<ReluSquared>(c, o); }

/* ---- gated: up SiLU(gate) ---- */

template <typename T, int N>
static __global__ void gated_forward(T *y, const T *up, const T *gate, int64_t n) {
    const int64_t first = global_thread() * N;
    if (first >= n) return;
    const int count = part_count<N>(first, n);
    const Part<T, N> u = load_part<N>(up + first, count), g = load_part<N>(gate + first, count);
    float out[N];
    for (int i = 0; i < N; i++) out[i] = to_float(u.at[i]) * Silu::value(to_float(g.at[i]));
    put_part<N>(y + first, out, false, count);
}

template <typename T, int N>
static __global__ void gated_backward(T *dup, T *dgate, const T *up, const T *gate, const T *dy,
                                      int64_t n, bool add_up, bool add_gate) {
    const int64_t first = global_thread() * N;
    if (first >= n) return;
    const int count = part_count<N>(first, n);
    const Part<T, N> u = load_part<N>(up + first, count), g = load_part<N>(gate + first, count),
                     d = load_part<N>(dy + first, count);
    float by_up[N], by_gate[N];
    for (int i = 0; i < N; i++) { /* the sigmoid once for both */
        const float x = to_float(g.at[i]), s = sigmoid(x), silu = x * s;
        by_up[i] = to_float(d.at[i]) * silu;
        by_gate[i] = to_float(d.at[i]) * to_float(u.at[i]) * (s + silu * (1.0f - s));
    }
    if (dup) put_part<N>(dup + first, by_up, add_up, count);
    if (dgate) put_part<N>(dgate + first, by_gate, add_gate, count);
}

void cuda_geglu_forward(Ctx *c, const OpCall *o) {
    with_dtype(c->dtype, [&](auto t) {
        typedef decltype(t) T;
        const T *up = (const T *)o->in[0]->data, *gate = (const T *)o->in[1]->data;
        T *y = (T *)o->out[0]->data;
        const int64_t n = tensor_numel(o->in[0]);
        with_part<T>(is_packed<T>(0, up, gate, y), [&](auto part) {
            enum { N = decltype(part)::N };
            launch(c, gated_forward<T, N>, grid_for((n + N - 1) / N), BLOCK, 0, y, up, gate, n);
        });
    });
}

void cuda_geglu_backward(Ctx *c, const OpCall *o) {
    with_dtype(c->dtype, [&](auto t) {
        typedef decltype(t) T;
        const T *up = (const T *)o->in[0]->data, *gate = (const T *)o->in[1]->data;
        const T *dy = (const T *)o->out[0]->grad;
        T *dup = grad_of<T>(o->in[0]), *dgate = grad_of<T>(o->in[1]);
        const int64_t n = tensor_numel(o->in[0]);
        with_part<T>(is_packed<T>(0, up, gate, dy, dup, dgate), [&](auto part) {
            enum { N = decltype(part)::N };
            launch(c, gated_backward<T, N>, grid_for((n + N - 1) / N), BLOCK, 0, dup, dgate, up,
                   gate, dy, n, o->in[0]->grad_set, o->in[1]->grad_set);
        });
    });
}
