#include "llmc_like/tensor.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "llmc_like/error.h"

static const struct {
    const char *name;
    size_t size;
} dtypes[DT_COUNT] = {
    [DT_F32] = {"float32", 4}, [DT_BF16] = {"bfloat16", 2}, [DT_F64] = {"float64", 8},
    [DT_I32] = {"int32", 4},   [DT_I64] = {"int64", 8},     [DT_U8] = {"uint8", 1},
};

size_t dtype_size(DType t) { return dtypes[t].size; }

const char *dtype_name(DType t) { return dtypes[t].name; }

uint16_t bf16_round(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x != x) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float bf16_value(uint16_t x) {
    const uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
}

int64_t tensor_numel(const Tensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->ndim; i++) n *= t->shape[i];
    return n;
}

size_t tensor_bytes(const Tensor *t) { return (size_t)tensor_numel(t) * dtype_size(t->dtype); }

int64_t tensor_cols(const Tensor *t) { return t->ndim ? t->shape[t->ndim - 1] : 1; }

int64_t tensor_rows(const Tensor *t) {
    int64_t n = 1;
    for (int i = 0; i + 1 < t->ndim; i++) n *= t->shape[i];
    return n;
}

bool tensor_same_shape(const Tensor *a, const Tensor *b) {
    if (a->ndim != b->ndim) return false;
    for (int i = 0; i < a->ndim; i++)
        if (a->shape[i] != b->shape[i]) return false;
    return true;
}

const char *tensor_shape_text(const Tensor *t, char buf[SHAPE_TEXT]) {
    size_t at = (size_t)snprintf(buf, SHAPE_TEXT, "(");
    for (int i = 0; i < t->ndim && at < SHAPE_TEXT; i++)
        at +=
            (size_t)snprintf(buf + at, SHAPE_TEXT - at, i ? ", %" PRId64 : "%" PRId64, t->shape[i]);
    if (at < SHAPE_TEXT) snprintf(buf + at, SHAPE_TEXT - at, ")");
    return buf;
}

static void *typed(const Tensor *t, DType want) {
    CHECK(t->dtype == want, "tensor %s is %s, not %s", t->name, dtype_name(t->dtype),
          dtype_name(want));
    return t->data;
}

float *tensor_f32(const Tensor *t) { return typed(t, DT_F32); }

double *tensor_f64(const Tensor *t) { return typed(t, DT_F64); }

int32_t *tensor_i32(const Tensor *t) { return typed(t, DT_I32); }

float *tensor_grad_f32(const Tensor *t) {
    typed(t, DT_F32);
    return t->grad;
}
