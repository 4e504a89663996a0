/* Ops that only move numbers. */
#include "kernels/cpu/cpu.h"

typedef struct Patches {
    int64_t n, P, h, w, c; /* patches of all images; patch side; image */
} Patches;

static Patches patches_of(const OpCall *o, const Tensor *image) {
    const int64_t *s = image->shape, P = o->attr.patch;
    return (Patches){s[0] * s[1] * (s[2] / P) * (s[3] / P), P, s[2], s[3], s[4]};
}

/* Where patch i's first pixel is, in numbers from the first image's start. */
static int64_t patch_start(const Patches *p, int64_t i) {
    const int64_t wide = p->w / p->P, per_image = wide * (p->h / p->P), n = i % per_image;
    return ((i / per_image * p->h + n / wide * p->P) * p->w + n % wide * p->P) * p->c;
}

void ISA_FN(patchify_forward)(Ctx *c, const OpCall *o) {
    const Patches p = patches_of(o, o->in[0]);
    const int64_t P = p.P, taps = P * P;
#pragma omp parallel for num_threads(c->n_threads)
    for (int64_t i = 0; i < p.n; i++) {
        const float *x = (const float *)o->in[0]->data + patch_start(&p, i);
        float *y = (float *)o->out[0]->data + i * taps * p.c;
        for (int64_t j = 0; j < p.c; j++)
            for (int64_t py = 0; py < P; py++)
                for (int64_t px = 0; px < P; px++)
                    y[j * taps + py * P + px] = x[(py * p.w + px) * p.c + j];
    }
}

void ISA_FN(patchify_backward)(Ctx *c, const OpCall *o) {
    const Patches p = patches_of(o, o->in[0]);
    const int64_t P = p.P, taps = P * P;
    const bool add = o->in[0]->grad_set;
#pragma omp parallel for num_threads(c->n_threads)
    for (int64_t i = 0; i < p.n; i++) {
        const float *dy = (const float *)o->out[0]->grad + i * taps * p.c;
        float *dx = (float *)o->in[0]->grad + patch_start(&p, i);
        for (int64_t py = 0; py < P; py++)
            for (int64_t px = 0; px < P; px++)
                for (int64_t j = 0; j < p.c; j++)
                    put(&dx[(py * p.w + px) * p.c + j], dy[j * taps + py * P + px], add);
    }
}

/* A row of a patch, P pixels of 3 channels, is one run of numbers on both sides. */
void ISA_FN(unpatchify_forward)(Ctx *c, const OpCall *o) {
    const Patches p = patches_of(o, o->out[0]);
    const int64_t run = p.P * p.c;
#pragma omp parallel for num_threads(c->n_threads)
    for (int64_t i = 0; i < p.n; i++) {
        const float *x = (const float *)o->in[0]->data + i * p.P * run;
        float *y = (float *)o->out[0]->data + patch_start(&p, i);
        for (int64_t py = 0; py < p.P; py++)
            memcpy(y + py * p.w * p.c, x + py * run, sizeof(float) * (size_t)run);
    }
}

void ISA_FN(unpatchify_backward)(Ctx *c, const OpCall *o) {
    const Patches p = patches_of(o, o->out[0]);
    const int64_t run = p.P * p.c;
    const bool add = o->in[0]->grad_set;
#pragma omp parallel for num_threads(c->n_threads)
    for (int64_t i = 0; i < p.n; i++) {
        const float *dy = (const float *)o->out[0]->grad + patch_start(&p, i);
        float *dx = (float *)o->in[0]->grad + i * p.P * run;
        for (int64_t py = 0; py < p.P; py++)
            for (int64_t j = 0; j < run; j++) put(&dx[py * run + j], dy[py * p.w * p.c + j], add);
    }
}

/* A frame is N C numbers of patches, then R C of registers. */
void ISA_FN(append_registers_forward)(Ctx *c, const OpCall *o) {
    const int64_t *s = o->in[0]->shape, frames = s[0] * s[1], patches = s[2] * s[3];
    const int64_t registers = tensor_numel(o->in[1]);
#pragma omp parallel for num_threads(c->n_threads)
    for (int64_t f = 0; f < frames; f++) {
        float *y = (float *)o->out[0]->data + f * (patches + registers);
        memcpy(y, (const float *)o->in[0]->data + f * patches, sizeof(float) * (size_t)patches);
        memcpy(y + patches, o->in[1]->data, sizeof(float) * (size_t)registers);
    }
}

void ISA_FN(append_registers_backward)(Ctx *c, const OpCall *o) {
    const int64_t *s = o->in[0]->shape, frames = s[0] * s[1], patches = s[2] * s[3];
    const int64_t registers = tensor_numel(o->in[1]), size = patches + registers;
    const float *dy = o->out[0]->grad;
    float *dx = o->in[0]->grad, *dreg = o->in[1]->grad;
    if (dx) {
        const bool add = o->in[0]->grad_set;
#pragma omp parallel for num_threads(c->n_threads)
        for (int64_t f = 0; f < frames; f++)
            for (int64_t j = 0; j < patches; j++) put(&dx[f * patches + j], dy[f * size + j], add);
    }
    if (!dreg) return;
#pragma omp parallel for num_threads(c->n_threads) if (frames * registers >= PARALLEL_FROM)
    for (int64_t j = 0; j < registers; j++) {
        float sum = 0;
        for (int64_t f = 0; f < frames; f++) sum += dy[f * size + patches + j];
        put(&dreg[j], sum, o->in[1]->grad_set);
    }
}

void ISA_FN(drop_registers_forward)(Ctx *c, const OpCall *o) {
    const int64_t *s = o->out[0]->shape, frames = s[0] * s[1], kept = s[2] * s[3];
    const int64_t size = kept + o->attr.registers * s[3];
#pragma omp parallel for num_threads(c->n_threads)
    for (int64_t f = 0; f < frames; f++)
        memcpy((float *)o->out[0]->data + f * kept, (const float *)o->in[0]->data + f * size,
               sizeof(float) * (size_t)kept);
}

void ISA_FN(drop_registers_backward)(Ctx *c, const OpCall *o) {
    const int64_t *s = o->out[0]->shape, frames = s[0] * s[1], kept = s[2] * s[3];
    const int64_t size = kept + o->attr.registers * s[3];
    const bool add = o->in[0]->grad_set;
#pragma omp parallel for num_threads(c->n_threads)
    for (int64_t f = 0; f < frames; f++) {
        const float *dy = (const float *)o->out[0]->grad + f * kept;
        float *dx = (float *)o->in[0]->grad + f * size;
        for (int64_t j = 0; j < kept; j++) put(&dx[j], dy[j], add);
        if (!add) memset(dx + kept, 0, sizeof(float) * (size_t)(size - kept));
    }
}

void ISA_FN(pad_forward)(Ctx *c, const OpCall *o) {
    const int64_t rows = tensor_rows(o->in[0]), K = tensor_cols(o->in[0]);
    const int64_t C = tensor_cols(o->out[0]);
#pragma omp parallel for num_threads(c->n_threads) if (rows * C >= PARALLEL_FROM)
    for (int64_t r = 0; r < rows; r++) {
        float *y = (float *)o->out[0]->data + r * C;
        memcpy(y, (const float *)o->in[0]->data + r * K, sizeof(float) * (size_t)K);
        memset(y + K, 0, sizeof(float) * (size_t)(C - K));
    }
}

void ISA_FN(concat_forward)(Ctx *c, const OpCall *o) {
    const int64_t rows = tensor_rows(o->in[0]), C = tensor_cols(o->in[0]);
    const int64_t K = tensor_cols(o->in[1]);
#pragma omp parallel for num_threads(c->n_threads) if (rows * (C + K) >= PARALLEL_FROM)
    for (int64_t r = 0; r < rows; r++) {
        float *y = (float *)o->out[0]->data + r * (C + K);
        memcpy(y, (const float *)o->in[0]->data + r * C, sizeof(float) * (size_t)C);
        memcpy(y + C, (const float *)o->in[1]->data + r * K, sizeof(float) * (size_t)K);
    }
}

void ISA_FN(concat_backward)(Ctx *c, const OpCall *o) {
    const int64_t rows = tensor_rows(o->in[0]), cols = tensor_cols(o->out[0]);
    for (int k = 0; k < 2; k++) {
        const int64_t n = tensor_cols(o->in[k]), first = k ? cols - n : 0;
        const bool add = o->in[k]->grad_set;
        float *dx = o->in[k]->grad;
        if (!dx) continue;
#pragma omp parallel for num_threads(c->n_threads) if (rows * n >= PARALLEL_FROM)
        for (int64_t r = 0; r < rows; r++) {
            const float *dy = (const float *)o->out[0]->grad + r * cols + first;
            for (int64_t j = 0; j < n; j++) put(&dx[r * n + j], dy[j], add);
        }
    }
}
