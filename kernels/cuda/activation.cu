/* SiLU, GELU, ReLU, its square, and the gated SiLU: one element at a time. Bound by memory: forward
 * moves 2 elements' bytes for each, backward 3 (gated: 3 and 5). */
#include "kernels/cuda/activation.cuh"

template <typename Act, typename V>
static __global__ void activation_forward(V *y, const V *x, int64_t n) {
    const int64_t i = global_thread();
    if (i >= n) return;
    const V in = x[i];
    Pack<float, V::N> out;
    for (int j = 0; j < V::N; j++) out.at[j] = Act::value(to_float(in.at[j]));
    put(y + i, out, false);
}

template <typename Act, typename V>
static __global__ void activation_backward(V *dx, const V *x, const V *dy, int64_t n, bool add) {
    const int64_t i = global_thread();
    if (i >= n) return;
    const V in = x[i], d = dy[i];
    Pack<float, V::N> out;
    for (int j = 0; j < V::N; j++) out.at[j] = Act::back(to_float(in.at[j]), to_float(d.at[j]));
    put(dx + i, out, add);
}

template <typename Act>
static void activate(Ctx *c, DType dtype, void *y, const void *x, int64_t n) {
    with_pack(dtype, n, [&](auto pack) {
        typedef decltype(pack) V;
        launch(c, activation_forward<Act, V>, grid_for(n / V::N), BLOCK, 0, (V *)y, (const V *)x,
               n / V::N);
    });
}

template <typename Act>
static void forward(Ctx *c, const OpCall *o) {
    activate<Act>(c, c->dtype, o->out[0]->data, o->in[0]->data, tensor_numel(o->in[0]));
}

template <typename Act>
static void backward(Ctx *c, const OpCall *o) {
    const Tensor *x = o->in[0];
    const int64_t n = tensor_numel(x);
    with_pack(c->dtype, n, [&](auto pack) {
        typedef decltype(pack) V;
        launch(c, activation_backward<Act, V>, grid_for(n / V::N), BLOCK, 0, grad_of<V>(x),
               (const V *)x->data, (const V *)o->out[0]->grad, n / V::N, x->grad_set);
    });
}

void cuda_gelu(Ctx *c, DType dtype, void *y, const void *x, int64_t n) {
    activate<Gelu>(c, dtype, y, x, n);
}

void cuda_relu(Ctx *c, DType dtype, void *y, const void *x, int64_t n) {
    activate<Relu>(c, dtype, y, x, n);
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

template <typename V>
static __global__ void gated_forward(V *y, const V *up, const V *gate, int64_t n) {
    const int64_t i = global_thread();
    if (i >= n) return;
    const V u = up[i], g = gate[i];
    Pack<float, V::N> out;
    for (int j = 0; j < V::N; j++) out.at[j] = to_float(u.at[j]) * Silu::value(to_float(g.at[j]));
    put(y + i, out, false);
}

/* NULL: not wanted. */
template <typename V>
static __global__ void gated_backward(V *dup, V *dgate, const V *up, const V *gate, const V *dy,
                                      int64_t n, bool add_up, bool add_gate) {
    const int64_t i = global_thread();
    if (i >= n) return;
    const V u = up[i], g = gate[i], d = dy[i];
    Pack<float, V::N> to_up, to_gate;
    for (int j = 0; j < V::N; j++) { /* the sigmoid once for both */
        const float x = to_float(g.at[j]), s = Silu::sigmoid(x), silu = x * s;
        to_up.at[j] = to_float(d.at[j]) * silu;
        to_gate.at[j] = to_float(d.at[j]) * to_float(u.at[j]) * (s + silu * (1.0f - s));
    }
    if (dup) put(dup + i, to_up, add_up);
    if (dgate) put(dgate + i, to_gate, add_gate);
}

void cuda_geglu_forward(Ctx *c, const OpCall *o) {
    const int64_t n = tensor_numel(o->in[0]);
    with_pack(c->dtype, n, [&](auto pack) {
        typedef decltype(pack) V;
        launch(c, gated_forward<V>, grid_for(n / V::N), BLOCK, 0, (V *)o->out[0]->data,
               (const V *)o->in[0]->data, (const V *)o->in[1]->data, n / V::N);
    });
}

void cuda_geglu_backward(Ctx *c, const OpCall *o) {
    const Tensor *up = o->in[0], *gate = o->in[1];
    const int64_t n = tensor_numel(up);
    with_pack(c->dtype, n, [&](auto pack) {
        typedef decltype(pack) V;
        launch(c, gated_backward<V>, grid_for(n / V::N), BLOCK, 0, grad_of<V>(up), grad_of<V>(gate),
               (const V *)up->data, (const V *)gate->data, (const V *)o->out[0]->grad, n / V::N,
               up->grad_set, gate->grad_set);
    });
}
