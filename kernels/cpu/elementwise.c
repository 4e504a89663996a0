/* Ops that look at one element at a time: bound by memory, so each reads and writes once. */
#include "kernels/cpu/cpu.h"

/* d/dx of x sigmoid(x) */
static inline float silu_slope(float x) {
    const float s = sigmoid(x);
    return s + x * s * (1.0f - s);
}

void ISA_FN(silu_forward)(Ctx *c, const OpCall *o) {
    const int64_t n = tensor_numel(o->in[0]);
    const float *x = o->in[0]->data;
    float *y = o->out[0]->data;
    EACH(n)
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * sigmoid(x[i]);
}

void ISA_FN(silu_backward)(Ctx *c, const OpCall *o) {
    const int64_t n = tensor_numel(o->in[0]);
    const bool add = o->in[0]->grad_set;
    const float *x = o->in[0]->data, *dy = o->out[0]->grad;
    float *dx = o->in[0]->grad;
    if (add) {
        EACH(n)
        for (int64_t i = 0; i < n; i++) dx[i] += dy[i] * silu_slope(x[i]);
    } else {
        EACH(n)
        for (int64_t i = 0; i < n; i++) dx[i] = dy[i] * silu_slope(x[i]);
    }
}

void ISA_FN(add_forward)(Ctx *c, const OpCall *o) {
    const int64_t n = tensor_numel(o->in[0]);
    const float *a = o->in[0]->data, *b = o->in[1]->data;
    float *y = o->out[0]->data;
    EACH(n)
    for (int64_t i = 0; i < n; i++) y[i] = a[i] + b[i];
}

void ISA_FN(add_backward)(Ctx *c, const OpCall *o) {
    const int64_t n = tensor_numel(o->in[0]);
    const float *dy = o->out[0]->grad;
    for (int j = 0; j < 2; j++) {
        float *d = o->in[j]->grad;
        const bool add = o->in[j]->grad_set;
        if (!d || d == dy) continue; /* the tape hands dy itself to the first input */
        EACH(n)
        for (int64_t i = 0; i < n; i++) put(&d[i], dy[i], add);
    }
}

void ISA_FN(geglu_forward)(Ctx *c, const OpCall *o) {
    const int64_t n = tensor_numel(o->in[0]);
    const float *up = o->in[0]->data, *gate = o->in[1]->data;
    float *y = o->out[0]->data;
    EACH(n)
    for (int64_t i = 0; i < n; i++) y[i] = up[i] * (gate[i] * sigmoid(gate[i]));
}

void ISA_FN(geglu_backward)(Ctx *c, const OpCall *o) {
    const int64_t n = tensor_numel(o->in[0]);
    const float *up = o->in[0]->data, *gate = o->in[1]->data, *dy = o->out[0]->grad;
    float *dup = o->in[0]->grad, *dgate = o->in[1]->grad;
    const bool add_up = o->in[0]->grad_set, add_gate = o->in[1]->grad_set;
    if (dup && dgate && !add_up && !add_gate) { /* as in every model: the sigmoid once for both */
        EACH(n)
        for (int64_t i = 0; i < n; i++) {
            const float s = sigmoid(gate[i]), silu = gate[i] * s;
            dup[i] = dy[i] * silu;
            dgate[i] = dy[i] * up[i] * (s + silu * (1.0f - s));
        }
        return;
    }
    if (dup) {
        EACH(n)
        for (int64_t i = 0; i < n; i++) put(&dup[i], dy[i] * (gate[i] * sigmoid(gate[i])), add_up);
    }
    if (dgate && add_gate) {
        EACH(n)
        for (int64_t i = 0; i < n; i++) dgate[i] += dy[i] * up[i] * silu_slope(gate[i]);
    } else if (dgate) {
        EACH(n)
        for (int64_t i = 0; i < n; i++) dgate[i] = dy[i] * up[i] * silu_slope(gate[i]);
    }
}

/* In pieces of whole blocks of the generator, so that threads change no number. */
void ISA_FN(normal_forward)(Ctx *c, const OpCall *o) {
    enum { PIECE = 4096 };
    const RngKey key = {o->attr.seed, o->attr.step, o->attr.layer};
    const int64_t n = tensor_numel(o->out[0]);
    float *x = o->out[0]->data;
#pragma omp parallel for num_threads(c->n_threads) if (n >= PARALLEL_FROM)
    for (int64_t i = 0; i < n; i += PIECE)
        rng_normal(key, o->attr.first + (uint64_t)i, x + i, n - i < PIECE ? n - i : PIECE);
}

void ISA_FN(flow_noise_forward)(Ctx *c, const OpCall *o) {
    const int64_t frames = tensor_numel(o->in[2]), n = tensor_numel(o->in[0]), size = n / frames;
    const float *t = o->in[2]->data;
#pragma omp parallel for num_threads(c->n_threads) if (n >= PARALLEL_FROM)
    for (int64_t f = 0; f < frames; f++) {
        const float *x0 = (const float *)o->in[0]->data + f * size;
        const float *z = (const float *)o->in[1]->data + f * size;
        float *x_t = (float *)o->out[0]->data + f * size, *v = (float *)o->out[1]->data + f * size;
#pragma omp simd
        for (int64_t i = 0; i < size; i++) {
            v[i] = x0[i] - z[i];
            x_t[i] = x0[i] - t[f] * v[i];
        }
    }
}

void ISA_FN(mix_forward)(Ctx *c, const OpCall *o) {
    const int64_t n = tensor_numel(o->in[0]);
    const float *x = o->in[0]->data, *y = o->in[1] ? o->in[1]->data : x;
    const float r = ((const float *)o->in[2]->data)[o->attr.part];
    const float s = ((const float *)o->in[3]->data)[o->attr.part];
    float *out = o->out[0]->data;
    EACH(n)
    for (int64_t i = 0; i < n; i++) out[i] = r * x[i] + s * y[i];
}

/* A vector of factors of which one was used gets `sum` there. */
static void put_factor(const Tensor *t, int part, double sum) {
    if (!t->grad) return;
    if (!t->grad_set) memset(t->grad, 0, tensor_bytes(t));
    ((float *)t->grad)[part] += (float)sum;
}

void ISA_FN(mix_backward)(Ctx *c, const OpCall *o) {
    const Tensor *tx = o->in[0], *ty = o->in[1] ? o->in[1] : tx;
    const float *x = tx->data, *y = ty->data, *d = o->out[0]->grad;
    const float r = ((const float *)o->in[2]->data)[o->attr.part];
    const float s = ((const float *)o->in[3]->data)[o->attr.part], rx = ty == tx ? r + s : r;
    float *dx = tx->grad, *dy = ty == tx ? NULL : ty->grad;
    const bool add_x = tx->grad_set, add_y = ty->grad_set;
    const int64_t n = tensor_numel(tx);
    const RowBlocks b = row_blocks(n);
    double part_r[MAX_ROW_BLOCKS], part_s[MAX_ROW_BLOCKS], sum_r = 0, sum_s = 0;
#pragma omp parallel for num_threads(c->n_threads) if (n >= PARALLEL_FROM)
    for (int64_t i = 0; i < b.n; i++) {
        const int64_t first = i * b.size, end = block_end(&b, i);
        double along_x = 0, along_y = 0;
#pragma omp simd reduction(+ : along_x, along_y)
        for (int64_t j = first; j < end; j++) {
            along_x += (double)d[j] * (double)x[j];
            along_y += (double)d[j] * (double)y[j];
        }
        part_r[i] = along_x;
        part_s[i] = along_y;
        if (dx) {
#pragma omp simd
            for (int64_t j = first; j < end; j++) put(&dx[j], rx * d[j], add_x);
        }
        if (dy) {
#pragma omp simd
            for (int64_t j = first; j < end; j++) put(&dy[j], s * d[j], add_y);
        }
    }
    for (int64_t i = 0; i < b.n; i++) sum_r += part_r[i], sum_s += part_s[i];
    put_factor(o->in[2], o->attr.part, sum_r);
    put_factor(o->in[3], o->attr.part, sum_s);
}

void ISA_FN(copy_forward)(Ctx *c, const OpCall *o) {
    const int64_t n = tensor_numel(o->in[0]);
    const float *x = o->in[0]->data;
    float *y = o->out[0]->data;
    EACH(n)
    for (int64_t i = 0; i < n; i++) y[i] = x[i];
}
