#include "llmc_like/npy.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *descr; /* the header's code without the byte order */
    const char *name;
    int size;
    bool is_int;
} TYPE[NPY_COUNT] = {
    [NPY_U1] = {"u1", "uint8", 1, true},    [NPY_I1] = {"i1", "int8", 1, true},
    [NPY_U2] = {"u2", "uint16", 2, true},   [NPY_I2] = {"i2", "int16", 2, true},
    [NPY_U4] = {"u4", "uint32", 4, true},   [NPY_I4] = {"i4", "int32", 4, true},
    [NPY_U8] = {"u8", "uint64", 8, true},   [NPY_I8] = {"i8", "int64", 8, true},
    [NPY_F4] = {"f4", "float32", 4, false}, [NPY_F8] = {"f8", "float64", 8, false},
    [NPY_B1] = {"b1", "bool", 1, true},
};

int npy_size(NpyType t) { return TYPE[t].size; }
const char *npy_name(NpyType t) { return TYPE[t].name; }
bool npy_is_int(NpyType t) { return TYPE[t].is_int; }

const char *npy_shape_text(const NpyArray *a, char buf[NPY_SHAPE_TEXT]) {
    int n = snprintf(buf, NPY_SHAPE_TEXT, "(");
    for (int i = 0; i < a->ndim; i++)
        n += snprintf(buf + n, NPY_SHAPE_TEXT - (size_t)n, "%s%lld", i ? ", " : "",
                      (long long)a->shape[i]);
    snprintf(buf + n, NPY_SHAPE_TEXT - (size_t)n, a->ndim == 1 ? ",)" : ")");
    return buf;
}

/* ---- The header: a Python dict of three known keys ---- */

typedef struct Cursor {
    const char *at, *end;
} Cursor;

static void skip_space(Cursor *c) {
    while (c->at < c->end && strchr(" \t\r\n", *c->at) && *c->at) c->at++;
}

static bool take(Cursor *c, const char *token) {
    skip_space(c);
    size_t n = strlen(token);
    if ((size_t)(c->end - c->at) < n || memcmp(c->at, token, n)) return false;
    c->at += n;
    return true;
}

/* 'text' or "text" without escapes, which no header of ours has. */
static bool take_string(Cursor *c, char *out, size_t size) {
    skip_space(c);
    if (c->at == c->end || (*c->at != '\'' && *c->at != '"')) return false;
    char quote = *c->at++;
    size_t n = 0;
    while (c->at < c->end && *c->at != quote && n + 1 < size) out[n++] = *c->at++;
    out[n] = 0;
    return c->at < c->end && *c->at++ == quote;
}

static bool take_dim(Cursor *c, int64_t *out) {
    skip_space(c);
    const char *begin = c->at;
    int64_t v = 0;
    for (; c->at < c->end && *c->at >= '0' && *c->at <= '9'; c->at++)
        if (__builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, *c->at - '0', &v))
            return false;
    take(c, "L"); /* Python 2 wrote long integers so */
    *out = v;
    return c->at > begin;
}

/* (), (6,), (2, 3) and (2, 3,) into a. */
static int take_shape(Cursor *c, NpyArray *a, Err *e) {
    if (!take(c, "(")) return err_set(e, "the header's shape is no tuple");
    a->ndim = 0;
    while (!take(c, ")")) {
        if (a->ndim == NPY_MAX_DIMS)
            return err_set(e, "more than %d dimensions; reshape it in NumPy", NPY_MAX_DIMS);
        if (!take_dim(c, &a->shape[a->ndim])) return err_set(e, "the header's shape is damaged");
        a->ndim++;
        if (take(c, ",")) continue;
        if (take(c, ")")) break;
        return err_set(e, "the header's shape is damaged");
    }
    return 0;
}

/* The type that `descr` means: a sign for the byte order, then kind and bytes. */
static int set_dtype(NpyArray *a, const char *descr, Err *e) {
    const char order = descr[0];
    const char *code = descr[0] ? descr + 1 : descr;
    for (int t = 0; t < NPY_COUNT; t++) {
        if (strcmp(code, TYPE[t].descr)) continue;
        a->dtype = (NpyType)t;
        if (order == '<' || order == '|' || (order == '>' && TYPE[t].size == 1)) return 0;
        if (order == '>')
            return err_set(e,
                           "big-endian numbers ('%s'); save it again as little-endian: "
                           "np.save(path, a.astype('<%s'))",
                           descr, code);
    }
    return err_set(e,
                   "dtype '%s'%s, but integers, bool, float32 or float64 are expected; convert it "
                   "with a.astype(...) in NumPy and save it again",
                   descr, strchr(code, 'O') ? " (Python objects)" : "");
}

/* Keys may come in any order, as NumPy reads them. */
static int parse_header(NpyArray *a, const char *text, size_t n, Err *e) {
    Cursor c = {text, text + n};
    bool have_descr = false, have_order = false, have_shape = false;
    if (!take(&c, "{")) return err_set(e, "the header is no Python dict; the file is damaged");
    while (!take(&c, "}")) {
        char key[32], descr[32];
        if (!take_string(&c, key, sizeof key) || !take(&c, ":"))
            return err_set(e, "the header is damaged");
        if (!strcmp(key, "descr")) {
            if (take(&c, "["))
                return err_set(e,
                               "records (a dtype of several fields); save each field as an "
                               "array of its own");
            if (!take_string(&c, descr, sizeof descr))
                return err_set(e, "the header's dtype is damaged");
            if (set_dtype(a, descr, e)) return -1;
            have_descr = true;
        } else if (!strcmp(key, "fortran_order")) {
            if (take(&c, "True"))
                return err_set(e,
                               "columns first (Fortran order); save it again with "
                               "np.save(path, np.ascontiguousarray(a))");
            if (!take(&c, "False")) return err_set(e, "the header's fortran_order is damaged");
            have_order = true;
        } else if (!strcmp(key, "shape")) {
            if (take_shape(&c, a, e)) return -1;
            have_shape = true;
        } else {
            return err_set(e, "the header has an unknown key '%s'", key);
        }
        if (take(&c, ",")) continue;
        if (take(&c, "}")) break;
        return err_set(e, "the header is damaged");
    }
    if (have_descr && have_order && have_shape) return 0;
    return err_set(e, "the header lacks '%s'",
                   !have_descr   ? "descr"
                   : !have_order ? "fortran_order"
                                 : "shape");
}

static int parse(NpyArray *a, Err *e) {
    const unsigned char *b = a->map.data;
    size_t size = a->map.size;
    if (size < 10 || memcmp(b, "\x93NUMPY", 6))
        return err_set(e,
                       "no .npy file (%zu bytes that do not begin with \\x93NUMPY); one is made "
                       "with np.save",
                       size);
    if (b[6] < 1 || b[6] > 3)
        return err_set(e, ".npy version %d.%d, but 1 to 3 are known; save it again with np.save",
                       b[6], b[7]);
    size_t lead = b[6] == 1 ? 10 : 12, length = b[8] + 256u * b[9];
    if (lead == 12 && size >= 12) length += ((size_t)b[10] << 16) + ((size_t)b[11] << 24);
    if (size < lead || size - lead < length)
        return err_set(e, "truncated in its header: %zu bytes; copy it again", size);
    if (parse_header(a, (const char *)b + lead, length, e)) return -1;

    /* Dimensions of 0 are left out of the product, so that (0, huge, huge) is empty and no error.
     */
    int64_t n = 1, bytes;
    bool too_many = false, empty = false;
    for (int i = 0; i < a->ndim; i++) {
        empty |= a->shape[i] == 0;
        too_many |= a->shape[i] && __builtin_mul_overflow(n, a->shape[i], &n);
    }
    too_many |= __builtin_mul_overflow(n, npy_size(a->dtype), &bytes);
    a->numel = empty ? 0 : n;
    size_t have = size - lead - length;
    char shape[NPY_SHAPE_TEXT];
    if (!empty && (too_many || (uint64_t)bytes > have))
        return err_set(e,
                       "truncated: %s of %s needs more than the %zu bytes of data that are "
                       "there; copy or write it again",
                       npy_shape_text(a, shape), npy_name(a->dtype), have);
    a->data = b + lead + length;
    return 0;
}

int npy_open(const char *path, NpyArray *a, Err *e) {
    memset(a, 0, sizeof *a);
    if (map_file(path, &a->map, e)) return -1;
    if (parse(a, e)) {
        npy_close(a);
        return err_prefix(e, "%s: ", path);
    }
    if ((uintptr_t)a->data % (size_t)npy_size(a->dtype)) {
        size_t bytes = (size_t)a->numel * (size_t)npy_size(a->dtype);
        a->copy = malloc(bytes + 1);
        if (!a->copy) {
            npy_close(a);
            return err_set(e, "%s: no memory for %zu bytes", path, bytes);
        }
        memcpy(a->copy, a->data, bytes);
        a->data = a->copy;
    }
    return 0;
}

void npy_close(NpyArray *a) {
    unmap_file(&a->map);
    free(a->copy);
    memset(a, 0, sizeof *a);
}

int64_t npy_int(const NpyArray *a, int64_t i) {
    CHECK(i >= 0 && i < a->numel, "element %lld of %lld", (long long)i, (long long)a->numel);
    switch (a->dtype) {
        case NPY_B1:
        case NPY_U1:
            return ((const uint8_t *)a->data)[i];
        case NPY_I1:
            return ((const int8_t *)a->data)[i];
        case NPY_U2:
            return ((const uint16_t *)a->data)[i];
        case NPY_I2:
            return ((const int16_t *)a->data)[i];
        case NPY_U4:
            return ((const uint32_t *)a->data)[i];
        case NPY_I4:
            return ((const int32_t *)a->data)[i];
        case NPY_I8:
            return ((const int64_t *)a->data)[i];
        case NPY_U8: {
            uint64_t v = ((const uint64_t *)a->data)[i];
            return v > INT64_MAX ? INT64_MAX : (int64_t)v;
        }
        default:
            CHECK(false, "npy_int of %s", npy_name(a->dtype));
    }
    return 0;
}

double npy_number(const NpyArray *a, int64_t i) {
    CHECK(i >= 0 && i < a->numel, "element %lld of %lld", (long long)i, (long long)a->numel);
    switch (a->dtype) {
        case NPY_F4:
            return (double)((const float *)a->data)[i];
        case NPY_F8:
            return ((const double *)a->data)[i];
        case NPY_U8:
            return (double)((const uint64_t *)a->data)[i];
        default:
            return (double)npy_int(a, i);
    }
}

int npy_write(const char *path, NpyType t, int ndim, const int64_t *shape, const void *data,
              Err *e) {
    CHECK(ndim >= 0 && ndim <= NPY_MAX_DIMS, "%d dimensions", ndim);
    NpyArray a = {.dtype = t, .ndim = ndim, .numel = 1};
    for (int i = 0; i < ndim; i++) {
        a.shape[i] = shape[i];
        a.numel *= shape[i];
    }
    char dims[NPY_SHAPE_TEXT], header[512];
    int n = snprintf(header + 10, sizeof header - 10,
                     "{'descr': '%c%s', 'fortran_order': False, 'shape': %s, }",
                     npy_size(t) == 1 ? '|' : '<', TYPE[t].descr, npy_shape_text(&a, dims));
    /* The numbers begin at a multiple of 64, after a newline that ends the padding. */
    size_t total = ((size_t)n + 10 + 1 + 63) / 64 * 64;
    memset(header + 10 + n, ' ', total - 10 - (size_t)n);
    header[total - 1] = '\n';
    memcpy(header, "\x93NUMPY\x01\x00", 8);
    header[8] = (char)((total - 10) & 255);
    header[9] = (char)((total - 10) >> 8);
    AtomicFile f;
    if (atomic_open(&f, path, e) || atomic_write(&f, header, total, e) ||
        atomic_write(&f, data, (size_t)a.numel * (size_t)npy_size(t), e))
        return -1;
    return atomic_commit(&f, e);
}
