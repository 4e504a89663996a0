/* Directions and the angle between them: a row an event, a thread a row. */
#include <math.h>

#include "kernels/cuda/loss.cuh"

template <typename T>
static __device__ float length(const T *x, int64_t C) {
    float squares = 0;
    for (int64_t j = 0; j < C; j++) squares += to_float(x[j]) * to_float(x[j]);
    return sqrtf(squares);
}

template <typename T>
static __global__ void unit_rows(float *y, const T *x, int64_t rows, int64_t C, float eps) {
    const int64_t r = global_thread();
    if (r >= rows) return;
    x += r * C;
    const float s = length(x, C) + eps;
    for (int64_t j = 0; j < C; j++) y[r * C + j] = to_float(x[j]) / s;
}

void cuda_unit_vector_forward(Ctx *c, const OpCall *o) {
    const int64_t rows = tensor_rows(o->in[0]), C = tensor_cols(o->in[0]);
    with_dtype(c->dtype, [&](auto zero) {
        typedef decltype(zero) T;
        launch(c, unit_rows<T>, grid_for(rows), BLOCK, 0, (float *)o->out[0]->data,
               (const T *)o->in[0]->data, rows, C, o->attr.eps);
    });
}

/* With s = |x| + eps: dx = (dy - x / |x| (dy . x) / s) / s. */
template <typename T>
static __global__ void unit_slopes(T *dx, const T *x, const float *dy, int64_t rows, int64_t C,
                                   float eps, bool add) {
    const int64_t r = global_thread();
    if (r >= rows) return;
    x += r * C, dy += r * C, dx += r * C;
    const float n = length(x, C), s = n + eps;
    float dot = 0;
    for (int64_t j = 0; j < C; j++) dot += dy[j] * (to_float(x[j]) / s);
    const float along = n == 0 ? 0 : dot / n;
    for (int64_t j = 0; j < C; j++) put(dx + j, (dy[j] - to_float(x[j]) * along) / s, add);
}

void cuda_unit_vector_backward(Ctx *c, const OpCall *o) {
    const int64_t rows = tensor_rows(o->in[0]), C = tensor_cols(o->in[0]);
    with_dtype(c->dtype, [&](auto zero) {
        typedef decltype(zero) T;
        launch(c, unit_slopes<T>, grid_for(rows), BLOCK, 0, (T *)o->in[0]->grad,
               (const T *)o->in[0]->data, (const float *)o->out[0]->grad, rows, C, o->attr.eps,
               o->in[0]->grad_set);
    });
}

/* ---- the angle, in double ---- */

static const double LIMIT = 1 - 1e-4; /* where the dot product is cut: arccos is vertical at 1 */

static __device__ double cosine(const float *x, const float *target, int64_t C) {
    double dot = 0;
    for (int64_t j = 0; j < C; j++) dot += (double)x[j] * (double)target[j];
    return dot;
}

static __global__ void sum_angles(double *sums, const float *x, const float *target, int64_t rows,
                                  int64_t C) {
    double sum = 0;
    for (int64_t r = global_thread(); r < rows; r += (int64_t)gridDim.x * BLOCK) {
        const double dot = cosine(x + r * C, target + r * C, C); /* compared: a NaN stays one */
        sum += acos(dot > LIMIT ? LIMIT : dot < -LIMIT ? -LIMIT : dot);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

void cuda_angle_loss_forward(Ctx *c, const OpCall *o) {
    const int64_t rows = tensor_rows(o->in[0]);
    const dim3 grid = loss_grid(rows);
    double *sums = loss_sums(c);
    launch(c, sum_angles, grid, BLOCK, 0, sums, (const float *)o->in[0]->data,
           (const float *)o->in[1]->data, rows, tensor_cols(o->in[0]));
    loss_mean(c, o->out[0], sums, grid, rows);
}

/* dx = -dloss / (rows sin) target, and the target's likewise of x; NULL where not wanted. */
static __global__ void angle_slopes(float *dx, float *dtarget, const float *x, const float *target,
                                    const double *dloss, int64_t rows, int64_t C, bool add_x,
                                    bool add_target) {
    const int64_t r = global_thread();
    if (r >= rows) return;
    const double dot = cosine(x + r * C, target + r * C, C);
    const double d = *dloss / (double)rows;
    const float slope = (float)(fabs(dot) > LIMIT ? 0 : -d / sqrt(1 - dot * dot));
    for (int64_t j = r * C; j < (r + 1) * C; j++) {
        if (dx) put(dx + j, slope * target[j], add_x);
        if (dtarget) put(dtarget + j, slope * x[j], add_target);
    }
}

void cuda_angle_loss_backward(Ctx *c, const OpCall *o) {
    const Tensor *x = o->in[0], *target = o->in[1];
    const int64_t rows = tensor_rows(x);
    launch(c, angle_slopes, grid_for(rows), BLOCK, 0, (float *)x->grad, (float *)target->grad,
           (const float *)x->data, (const float *)target->data, (const double *)o->out[0]->grad,
           rows, tensor_cols(x), x->grad_set, target->grad_set);
}
