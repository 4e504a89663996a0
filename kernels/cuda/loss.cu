/* Rectified flow: the noisy input, and the mean squared error of what the model makes of it. */
#include "kernels/cuda/loss.cuh"

/* size: packs a frame. One pass: reads x0 and z, writes v and x_t. */
template <typename V, typename Exact>
static __global__ void add_noise(V *x_t, Exact *v, const Exact *x0, const Exact *z, const float *t,
                                 int64_t n, int64_t size) {
    const int64_t i = global_thread();
    if (i >= n) return;
    const float level = t[i / size];
    const Exact data = x0[i], noise = z[i];
    Exact velocity, noisy;
    for (int j = 0; j < V::N; j++) {
        velocity.at[j] = data.at[j] - noise.at[j];
        noisy.at[j] = data.at[j] - level * velocity.at[j];
    }
    v[i] = velocity;
    put(x_t + i, noisy, false);
}

void cuda_flow_noise_forward(Ctx *c, const OpCall *o) {
    const int64_t n = tensor_numel(o->in[0]), size = n / tensor_numel(o->in[2]);
    with_pack(c->dtype, size, [&](auto pack) {
        typedef decltype(pack) V;
        typedef Pack<float, V::N> Exact;
        launch(c, add_noise<V, Exact>, grid_for(n / V::N), BLOCK, 0, (V *)o->out[0]->data,
               (Exact *)o->out[1]->data, (const Exact *)o->in[0]->data,
               (const Exact *)o->in[1]->data, (const float *)o->in[2]->data, n / V::N, size / V::N);
    });
}

/* A sum a block. One pass: reads x and target. */
template <typename V, typename Exact>
static __global__ void sum_squared_errors(double *sums, const V *x, const Exact *target,
                                          int64_t n) {
    double sum = 0;
    for (int64_t i = global_thread(); i < n; i += (int64_t)gridDim.x * BLOCK) {
        const V got = x[i];
        const Exact want = target[i];
        for (int j = 0; j < V::N; j++) {
            const double d = to_float(got.at[j]) - want.at[j];
            sum += d * d;
        }
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

void cuda_mse_loss_forward(Ctx *c, const OpCall *o) {
    const int64_t n = tensor_numel(o->in[0]);
    double *sums = loss_sums(c);
    with_pack(c->dtype, n, [&](auto pack) {
        typedef decltype(pack) V;
        typedef Pack<float, V::N> Exact;
        const dim3 grid = loss_grid(n / V::N);
        launch(c, sum_squared_errors<V, Exact>, grid, BLOCK, 0, sums, (const V *)o->in[0]->data,
               (const Exact *)o->in[1]->data, n / V::N);
        loss_mean(c, o->out[0], sums, grid, n);
    });
}

/* dx = 2 dloss / count (x - target), and the target's is its opposite; NULL where not wanted. One
 * pass: reads x and target, writes each gradient. */
template <typename V, typename Exact>
static __global__ void squared_error_slopes(V *dx, Exact *dtarget, const V *x, const Exact *target,
                                            const double *dloss, int64_t n, double count,
                                            bool add_x, bool add_target) {
    const int64_t i = global_thread();
    if (i >= n) return;
    const float factor = (float)(2.0 * *dloss / count);
    const V got = x[i];
    const Exact want = target[i];
    Exact d, opposite;
    for (int j = 0; j < V::N; j++) {
        d.at[j] = factor * (to_float(got.at[j]) - want.at[j]);
        opposite.at[j] = -d.at[j];
    }
    if (dx) put(dx + i, d, add_x);
    if (dtarget) put(dtarget + i, opposite, add_target);
}

void cuda_mse_loss_backward(Ctx *c, const OpCall *o) {
    const Tensor *x = o->in[0], *target = o->in[1];
    const int64_t n = tensor_numel(x);
    with_pack(c->dtype, n, [&](auto pack) {
        typedef decltype(pack) V;
        typedef Pack<float, V::N> Exact;
        launch(c, squared_error_slopes<V, Exact>, grid_for(n / V::N), BLOCK, 0, grad_of<V>(x),
               grad_of<Exact>(target), (const V *)x->data, (const Exact *)target->data,
               (const double *)o->out[0]->grad, n / V::N, (double)n, x->grad_set, target->grad_set);
    });
}
