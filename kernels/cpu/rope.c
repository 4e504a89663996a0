/* The packed projections become queries, keys and values: RMSNorm of each head, rotation of pairs.
 * Backward works on blocks of positions: the gradients of a learned table's rows have one writer
 * each, those of the two norms' weights a partial sum per block. */
#include <math.h>

#include "kernels/cpu/cpu.h"

enum { MAX_HEAD_SIZE = 1024 };

static float rms_rstd(const float *x, int64_t D, float eps) {
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t d = 0; d < D; d++) squares += x[d] * x[d];
    return 1.0f / sqrtf(squares / (float)D + eps);
}

static void norm_rotate(float *y, const float *x, const float *weight, const float *sine,
                        const float *cosine, int64_t D, float eps) {
    const float rstd = rms_rstd(x, D, eps);
#pragma omp simd
    for (int64_t d = 0; d < D; d += 2) {
        const float a = x[d] * rstd * weight[d], b = x[d + 1] * rstd * weight[d + 1];
        y[d] = a * cosine[d] - b * sine[d];
        y[d + 1] = b * cosine[d + 1] + a * sine[d + 1];
    }
}

void ISA_FN(qkv_rope_forward)(Ctx *c, const OpCall *o) {
    const int64_t T = o->in[0]->shape[1], H = o->attr.heads, C = o->in[0]->shape[2] / 3, D = C / H;
    const int64_t rows = tensor_rows(o->in[0]), first = o->attr.offset;
    const float *ln_q = o->in[1]->data, *ln_k = o->in[2]->data;
#pragma omp parallel for num_threads(c->n_threads)
    for (int64_t r = 0; r < rows; r++) {
        const int64_t b = r / T, t = r % T;
        const float *x = (const float *)o->in[0]->data + r * 3 * C;
        const float *sine = (const float *)o->in[3]->data + t * D;
        const float *cosine = (const float *)o->in[4]->data + t * D;
        float *k = (float *)o->out[1]->data + r * C, *v = (float *)o->out[2]->data + r * C;
        for (int64_t h = 0; h < H; h++)
            norm_rotate(k + h * D, x + C + h * D, ln_k, sine, cosine, D, o->attr.eps);
        memcpy(v, x + 2 * C, sizeof(float) * (size_t)C);
        if (t < first) continue;
        float *q = (float *)o->out[0]->data + (b * (T - first) + t - first) * C;
        for (int64_t h = 0; h < H; h++)
            norm_rotate(q + h * D, x + h * D, ln_q, sine, cosine, D, o->attr.eps);
    }
}

/* What the heads of one position and one of q, k share. dsine NULL: the tables are fixed. */
typedef struct Rotation {
    const float *weight, *sine, *cosine;
    float *dweight, *dsine, *dcosine; /* added to */
    int64_t D;
    float eps;
} Rotation;

/* One head. With n = x rstd and a, b the weighted pair, dy is turned back to `turned`, the gradient
 * by a and b; then dx = rstd (g - n mean(g n)) with g = turned weight. */
static void norm_rotate_backward(const Rotation *p, const float *dy, const float *x, float *dx,
                                 bool add) {
    const int64_t D = p->D;
    const float *weight = p->weight, *sine = p->sine, *cosine = p->cosine;
    float *dweight = p->dweight;
    const float rstd = rms_rstd(x, D, p->eps);
    float turned[MAX_HEAD_SIZE], sum = 0;
    for (int64_t d = 0; p->dsine && d < D; d += 2) {
        const float a = x[d] * rstd * weight[d], b = x[d + 1] * rstd * weight[d + 1];
        p->dcosine[d] += dy[d] * a;
        p->dcosine[d + 1] += dy[d + 1] * b;
        p->dsine[d] -= dy[d] * b;
        p->dsine[d + 1] += dy[d + 1] * a;
    }
#pragma omp simd
    for (int64_t d = 0; d < D; d += 2) {
        turned[d] = dy[d] * cosine[d] + dy[d + 1] * sine[d + 1];
        turned[d + 1] = dy[d + 1] * cosine[d + 1] - dy[d] * sine[d];
    }
#pragma omp simd reduction(+ : sum)
    for (int64_t d = 0; d < D; d++) {
        const float tn = turned[d] * (x[d] * rstd);
        dweight[d] += tn;
        sum += tn * weight[d];
    }
    if (!dx) return;
    const float mean = sum / (float)D;
#pragma omp simd
    for (int64_t d = 0; d < D; d++)
        put(&dx[d], rstd * (turned[d] * weight[d] - x[d] * rstd * mean), add);
}

/* All heads of token t in batch element b: q, k and v. */
static void backward_token(const OpCall *o, int64_t b, int64_t t, Rotation *pq, Rotation *pk) {
    const int64_t T = o->in[0]->shape[1], H = o->attr.heads, C = o->in[0]->shape[2] / 3, D = C / H;
    const int64_t first = o->attr.offset, r = b * T + t, rq = b * (T - first) + t - first;
    const bool add = o->in[0]->grad_set;
    const float *x = (const float *)o->in[0]->data + r * 3 * C;
    const float *dq = (const float *)o->out[0]->grad + rq * C;
    const float *dk = (const float *)o->out[1]->grad + r * C;
    const float *dv = (const float *)o->out[2]->grad + r * C;
    float *dqkv = o->in[0]->grad, *dx = dqkv ? dqkv + r * 3 * C : NULL;
    for (int64_t i = 0; i < C; i += D) {
        norm_rotate_backward(pk, dk + i, x + C + i, dx ? dx + C + i : NULL, add);
        if (t >= first) norm_rotate_backward(pq, dq + i, x + i, dx ? dx + i : NULL, add);
    }
    if (!dx) return;
    if (t < first && !add) memset(dx, 0, sizeof(float) * (size_t)C);
#pragma omp simd
    for (int64_t j = 0; j < C; j++) put(&dx[2 * C + j], dv[j], add);
}

void ISA_FN(qkv_rope_backward)(Ctx *c, const OpCall *o) {
    const int64_t B = o->in[0]->shape[0], T = o->in[0]->shape[1], H = o->attr.heads;
    const int64_t D = o->in[0]->shape[2] / 3 / H;
    CHECK(D <= MAX_HEAD_SIZE, "heads of %lld numbers, at most %d", (long long)D, MAX_HEAD_SIZE);
    float *const table[2] = {o->in[3]->grad, o->in[4]->grad};
    for (int i = 0; i < 2; i++)
        if (table[i] && !o->in[3 + i]->grad_set) memset(table[i], 0, tensor_bytes(o->in[3 + i]));
    const RowBlocks blocks = row_blocks(T);
    float *dln_q = ctx_workspace(c, sizeof(float) * (size_t)(2 * blocks.n * D + 2 * T * D));
    float *dln_k = dln_q + blocks.n * D, *unwanted = dln_k + blocks.n * D;
    const bool tables = table[0] || table[1];
    memset(dln_q, 0, sizeof(float) * (size_t)(2 * blocks.n * D));
#pragma omp parallel for num_threads(c->n_threads)
    for (int64_t i = 0; i < blocks.n; i++)
        for (int64_t t = i * blocks.size; t < block_end(&blocks, i); t++) {
            Rotation pq = {.weight = o->in[1]->data,
                           .sine = (const float *)o->in[3]->data + t * D,
                           .cosine = (const float *)o->in[4]->data + t * D,
                           .dweight = dln_q + i * D,
                           .D = D,
                           .eps = o->attr.eps};
            if (tables) {
                pq.dsine = (table[0] ? table[0] : unwanted) + t * D;
                pq.dcosine = (table[1] ? table[1] : unwanted + T * D) + t * D;
            }
            Rotation pk = pq;
            pk.weight = o->in[2]->data;
            pk.dweight = dln_k + i * D;
            for (int64_t b = 0; b < B; b++) backward_token(o, b, t, &pq, &pk);
        }
    if (o->in[1]->grad)
        ISA_FN(sum_partials)(c, dln_q, blocks.n, D, o->in[1]->grad, o->in[1]->grad_set);
    if (o->in[2]->grad)
        ISA_FN(sum_partials)(c, dln_k, blocks.n, D, o->in[2]->grad, o->in[2]->grad_set);
}
