/* NumPy's .npy files: one array each, mapped and not copied.
 *
 * Format (numpy/lib/format.py): "\x93NUMPY", version bytes, the header's length (2 bytes in version
 * 1, 4 bytes in 2 and 3), the header: a Python dict {'descr': '<f4', 'fortran_order': False,
 * 'shape': (3, 4), }, then the numbers. Read are versions 1 to 3, little-endian, C order, integers,
 * floats and bool. */
#ifndef LLMC_LIKE_NPY_H
#define LLMC_LIKE_NPY_H

#include <stdbool.h>
#include <stdint.h>

#include "llmc_like/error.h"
#include "llmc_like/fsio.h"

/* Named as NumPy names them: kind and bytes. */
typedef enum {
    NPY_U1,
    NPY_I1,
    NPY_U2,
    NPY_I2,
    NPY_U4,
    NPY_I4,
    NPY_U8,
    NPY_I8,
    NPY_F4,
    NPY_F8,
    NPY_B1,
    NPY_COUNT
} NpyType;

enum { NPY_MAX_DIMS = 8, NPY_SHAPE_TEXT = 192 };

typedef struct NpyArray {
    NpyType dtype;
    int ndim; /* 0: a single number */
    int64_t shape[NPY_MAX_DIMS];
    int64_t numel;
    const void *data; /* numel numbers, row-major, aligned for their type; lives until npy_close */
    MappedFile map;
    void *copy; /* the numbers again where they lie askew in the file, else NULL */
} NpyArray;

/* Opens PATH. -1 and a sentence that begins with the path where the file is missing or truncated,
 * is no .npy, is in Fortran order, big-endian, or of another dtype (object, complex, text, records,
 * float16). Bytes after the array are ignored, as NumPy does. On failure *a needs no npy_close. */
int npy_open(const char *path, NpyArray *a, Err *e);
void npy_close(NpyArray *a); /* fine on a zeroed or closed one */

int npy_size(NpyType t);         /* bytes of one number */
const char *npy_name(NpyType t); /* "uint8", "float32", ... */
bool npy_is_int(NpyType t);      /* integers and bool */
const char *npy_shape_text(const NpyArray *a, char buf[NPY_SHAPE_TEXT]); /* "(31, 24, 24, 3)" */

/* Number i (row-major, checked) of any integer or bool array. A uint64 beyond int64 comes as
 * INT64_MAX. */
int64_t npy_int(const NpyArray *a, int64_t i);

/* Number i of an array of any dtype, as a double. */
double npy_number(const NpyArray *a, int64_t i);

/* Writes PATH, version 1, atomically. data: the product of shape[0 .. ndim-1] numbers of type t. */
int npy_write(const char *path, NpyType t, int ndim, const int64_t *shape, const void *data,
              Err *e);

#endif
