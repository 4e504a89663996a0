/* What the model is told besides pixels: rows of a table, and noise levels. Small work: a row for
 * each frame. */
#include <math.h>

#include "kernels/cuda/move.cuh"

/* ids are not checked on the host: one that the table lacks ends the run. */
void cuda_embedding_forward(Ctx *c, const OpCall *o) {
    const int64_t C = tensor_cols(o->in[1]), n = tensor_numel(o->out[0]);
    with_piece(c->dtype, C, [=](auto zero) {
        typedef decltype(zero) Row;
        launch(c, pick_rows<Row>, grid_for(n / Row::N), dim3(BLOCK), 0, (Row *)o->out[0]->data,
               (const Row *)o->in[1]->data, (const int32_t *)o->in[0]->data, n / Row::N, C / Row::N,
               o->in[1]->shape[0]);
    });
}

/* Column j of the sums is number j of the table: of row i what position i adds to it. */
template <typename T>
struct PickedRows {
    const T *dy;
    const int32_t *ids;
    int64_t C;
};

template <typename T>
static __device__ __forceinline__ const T *number_at(PickedRows<T> rows, int64_t i, int64_t j) {
    const int64_t id = j / rows.C;
    return rows.ids[i] == id ? rows.dy + i * rows.C + j - id * rows.C : NULL;
}

/* Every number of the table goes through all positions, which reads ids once a row of the table and
 * dy once in all. One launch: tables are small, and a second stage would take one for each chunk of
 * positions. */
void cuda_embedding_backward(Ctx *c, const OpCall *o) {
    const int64_t n = tensor_numel(o->in[0]), C = tensor_cols(o->in[1]);
    with_dtype(c->dtype, [=](auto zero) {
        typedef decltype(zero) T;
        const PickedRows<T> rows = {(const T *)o->out[0]->grad, (const int32_t *)o->in[0]->data, C};
        sum_rows(c, rows, n, n, tensor_numel(o->in[1]), o->in[1]);
    });
}

/* A thread makes a pair, in double, as on the CPU: float32 angles up to 1000 are off by 6e-5. */
template <typename T>
static __global__ void timestep_pairs(T *y, const float *t, int64_t n, int64_t C, float last) {
    const int64_t i = global_thread();
    if (i >= n) return;
    const int64_t r = i / (C / 2), j = 2 * (i - r * (C / 2));
    const double angle = (double)floorf(t[r] * last) * pow(1e4, -(double)j / (double)C);
    y[r * C + j] = from_float<T>((float)sin(angle));
    y[r * C + j + 1] = from_float<T>((float)cos(angle));
}

void cuda_timestep_embedding_forward(Ctx *c, const OpCall *o) {
    const int64_t C = tensor_cols(o->out[0]), n = tensor_numel(o->out[0]) / 2;
    with_dtype(c->dtype, [=](auto zero) {
        typedef decltype(zero) T;
        launch(c, timestep_pairs<T>, grid_for(n), dim3(BLOCK), 0, (T *)o->out[0]->data,
               (const float *)o->in[0]->data, n, C, (float)(o->attr.steps - 1));
    });
}
