/* What the model is told besides pixels: rows of a table, and noise levels. Small work: a row for
 * each frame. */
#include <math.h>

#include "kernels/cuda/rows.cuh"

/* ids are not checked on the host: one that the table lacks ends the run. */
void cuda_embedding_forward(Ctx *c, const OpCall *o) {
    cuda_pick_rows(c, o->out[0], o->in[1], o->in[0]);
}

/* Columns are the whole table: of position i, what it adds to its row of it. In packs. */
template <typename V>
struct PickedRows {
    const V *dy;
    const int32_t *ids;
    int64_t cols; /* a row of the table */
};

template <typename V>
static __device__ __forceinline__ void add_row(PickedRows<V> rows, int64_t i, int64_t j,
                                               Pack<float, V::N> *sum) {
    const int64_t id = j / rows.cols;
    if (rows.ids[i] != id) return;
    const V d = rows.dy[i * rows.cols + j - id * rows.cols];
    for (int k = 0; k < V::N; k++) sum->at[k] += to_float(d.at[k]);
}

/* Every number of the table goes through all positions, which reads ids once a row of the table and
 * dy once in all. One block has all positions: a table's partial sums would be as many tables. */
void cuda_embedding_backward(Ctx *c, const OpCall *o) {
    const Tensor *ids = o->in[0], *table = o->in[1];
    const int64_t C = tensor_cols(table);
    with_pack(c->dtype, C, [&](auto pack) {
        typedef decltype(pack) V;
        const PickedRows<V> rows = {(const V *)o->out[0]->grad, (const int32_t *)ids->data,
                                    C / V::N};
        sum_rows<V>(c, rows, tensor_numel(ids), tensor_numel(table) / V::N, 1, table);
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
    with_dtype(c->dtype, [&](auto zero) {
        typedef decltype(zero) T;
        launch(c, timestep_pairs<T>, grid_for(n), BLOCK, 0, (T *)o->out[0]->data,
               (const float *)o->in[0]->data, n, C, (float)(o->attr.steps - 1));
    });
}
