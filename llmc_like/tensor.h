/* A tensor: a contiguous, row-major block of numbers with a shape, and the place of its gradient.
 * Tensors never own memory: an arena does (arena.h), or a mapped file. */
#ifndef LLMC_LIKE_TENSOR_H
#define LLMC_LIKE_TENSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum { DT_F32, DT_BF16, DT_F64, DT_I32, DT_I64, DT_U8, DT_COUNT } DType;

enum { TENSOR_MAX_DIMS = 5 };

typedef struct Tensor {
    void *data;
    void *grad; /* d loss / d this: same shape, dtype of data, but float32 for a parameter in bf16.
                   NULL outside backward, or where no gradient is wanted */
    bool needs_grad; /* a parameter, or computed from one */
    bool grad_set; /* grad holds a value: a backward adds to it; false: a backward overwrites it */
    bool is_param; /* grad lives as long as the parameter, not just until its op's backward has run
                    */
    DType dtype;
    int ndim;
    int64_t shape[TENSOR_MAX_DIMS];
    char name[64]; /* a parameter's state_dict key, or the op that made it */
} Tensor;

size_t dtype_size(DType t);
const char *dtype_name(DType t); /* "float32", "bfloat16", ... */

/* bfloat16 is the upper half of a float32; to the nearest, ties to even, and NaN stays NaN. */
uint16_t bf16_round(float x);
float bf16_value(uint16_t x);

int64_t tensor_numel(const Tensor *t);
size_t tensor_bytes(const Tensor *t);
int64_t tensor_rows(const Tensor *t); /* product of all dimensions but the last */
int64_t tensor_cols(const Tensor *t); /* the last dimension */
bool tensor_same_shape(const Tensor *a, const Tensor *b);

/* "(2, 1950, 384)" into buf, which is returned. */
enum { SHAPE_TEXT = 96 };
const char *tensor_shape_text(const Tensor *t, char buf[SHAPE_TEXT]);

/* Typed access for kernels and tests; the dtype is checked. */
float *tensor_f32(const Tensor *t);
double *tensor_f64(const Tensor *t);
int32_t *tensor_i32(const Tensor *t);
float *tensor_grad_f32(const Tensor *t); /* NULL where there is no gradient */

#endif
