/* safetensors: named tensors and a few strings in one file, with nothing in it that could run.
 *
 * Format (github.com/huggingface/safetensors): N as 8 bytes little-endian, N bytes of JSON, data.
 *   {"__metadata__": {"key": "text", ...},
 *    "name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...}
 * The offsets count from the first byte of data, which the tensors cover without holes or overlaps.
 * Dtypes here: those of DType (F32, BF16, F64, I32, I64, U8). */
#ifndef LLMC_LIKE_SAFETENSORS_H
#define LLMC_LIKE_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "llmc_like/error.h"
#include "llmc_like/fsio.h"
#include "llmc_like/tensor.h"

struct cJSON; /* cjson/cJSON.h */

enum { ST_MAX_DIMS = 8, ST_SHAPE_TEXT = 192 };

typedef struct StEntry {
    const char *name; /* as long as one likes; owned by the file or the writer */
    DType dtype;
    int ndim; /* 0: a single number */
    int64_t shape[ST_MAX_DIMS];
    int64_t numel;
    size_t bytes;
    const void *data; /* aligned for its dtype; NULL only in a writer's entry of no bytes */
} StEntry;

/* ---- Reading ---- */

typedef struct StFile {
    StEntry *entry; /* entry[0 .. n-1], in the order of the header */
    int n;
    const StEntry **by_name;  /* all of them, sorted by name */
    struct cJSON *json;       /* the header; owns names and metadata */
    const struct cJSON *meta; /* in json; NULL: none */
    MappedFile map;
    void **copy; /* per entry: its data again where it lies askew in the file, else NULL */
} StFile;

/* Maps PATH and checks all of the header: lengths, dtypes, shapes against offsets, offsets against
 * each other and against the file's size, repeated names. -1 and a sentence that begins with the
 * path. Whatever the bytes are, this does not crash; afterwards every entry's data may be read in
 * full. On failure *f needs no st_close. */
int st_open(const char *path, StFile *f, Err *e);
void st_close(StFile *f); /* fine on a zeroed or closed one; entries, names and metadata end here */

const StEntry *st_find(const StFile *f, const char *name); /* NULL: no such tensor */
const char *st_meta(const StFile *f, const char *key);     /* NULL: no such key */
/* Pair i of the metadata, in the file's order; NULL past the last one. *value may be NULL where
 * only the key matters. */
const char *st_meta_at(const StFile *f, int i, const char **value);

/* "(2, 3)" into buf, which is returned. */
const char *st_shape_text(const StEntry *t, char buf[ST_SHAPE_TEXT]);

/* ---- Writing ---- */

typedef struct StWriter {
    StEntry *entry;
    int n, cap;
    struct cJSON *meta;
} StWriter;

void st_writer_init(StWriter *w);

/* Notes a tensor; data is not copied and must live until st_writer_save. The name is copied, must
 * be new (a bug otherwise) and not "__metadata__". Keys keep this order. */
void st_writer_add(StWriter *w, const char *name, DType dtype, int ndim, const int64_t *shape,
                   const void *data);

/* One string of the metadata, copied; a key that is there already gets the new value. */
void st_writer_meta(StWriter *w, const char *key, const char *value);

/* Writes PATH atomically (fsio.h), straight from the tensors' memory. The data begins at a multiple
 * of 8 and wide numbers are put before narrow ones, so that every tensor is aligned for its dtype,
 * with no holes. The writer stays as it is: it can be saved again. */
int st_writer_save(const StWriter *w, const char *path, Err *e);
void st_writer_free(StWriter *w);

#endif
