#include "llmc_like/safetensors.h"

#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char METADATA[] = "__metadata__";

static const char *const CODE[DT_COUNT] = {
    [DT_F32] = "F32", [DT_BF16] = "BF16", [DT_F64] = "F64",
    [DT_I32] = "I32", [DT_I64] = "I64",   [DT_U8] = "U8",
};

const char *st_shape_text(const StEntry *t, char buf[ST_SHAPE_TEXT]) {
    int n = snprintf(buf, ST_SHAPE_TEXT, "(");
    for (int i = 0; i < t->ndim; i++)
        n += snprintf(buf + n, ST_SHAPE_TEXT - (size_t)n, "%s%lld", i ? ", " : "",
                      (long long)t->shape[i]);
    snprintf(buf + n, ST_SHAPE_TEXT - (size_t)n, t->ndim == 1 ? ",)" : ")");
    return buf;
}

/* ---- Reading ---- */

/* A JSON number that is a whole one in 0 .. 2^53, which a double holds exactly. */
static bool whole_number(const cJSON *item, int64_t *out) {
    if (!cJSON_IsNumber(item)) return false;
    double v = item->valuedouble;
    if (!(v >= 0.0 && v <= 0x1p53) || v != (double)(int64_t)v) return false;
    *out = (int64_t)v;
    return true;
}

static int read_dtype(const cJSON *item, StEntry *t, Err *e) {
    if (!cJSON_IsString(item)) return err_set(e, "it has no dtype");
    for (int d = 0; d < DT_COUNT; d++) {
        if (strcmp(item->valuestring, CODE[d])) continue;
        t->dtype = (DType)d;
        return 0;
    }
    return err_set(e, "dtype '%.20s', but F32, BF16, F64, I32, I64 or U8 is expected; convert it",
                   item->valuestring);
}

static int read_shape(const cJSON *shape, StEntry *t, Err *e) {
    if (!cJSON_IsArray(shape)) return err_set(e, "it has no shape");
    t->numel = 1;
    const cJSON *dim;
    cJSON_ArrayForEach(dim, shape) {
        if (t->ndim == ST_MAX_DIMS) return err_set(e, "more than %d dimensions", ST_MAX_DIMS);
        int64_t n;
        if (!whole_number(dim, &n)) return err_set(e, "a dimension is no whole number");
        t->shape[t->ndim++] = n;
        if (__builtin_mul_overflow(t->numel, n, &t->numel))
            return err_set(e, "its shape is too large for any machine");
    }
    return 0;
}

/* Fills t from its JSON; `data` are the bytes after the header, `size` of them. */
static int read_entry(const cJSON *item, StEntry *t, const char *data, size_t size, Err *e) {
    memset(t, 0, sizeof *t);
    t->name = item->string;
    if (!cJSON_IsObject(item)) return err_set(e, "its entry is no JSON object");
    if (read_dtype(cJSON_GetObjectItemCaseSensitive(item, "dtype"), t, e) ||
        read_shape(cJSON_GetObjectItemCaseSensitive(item, "shape"), t, e))
        return -1;
    const cJSON *offsets = cJSON_GetObjectItemCaseSensitive(item, "data_offsets");
    int64_t begin, end, bytes;
    if (!cJSON_IsArray(offsets) || cJSON_GetArraySize(offsets) != 2 ||
        !whole_number(cJSON_GetArrayItem(offsets, 0), &begin) ||
        !whole_number(cJSON_GetArrayItem(offsets, 1), &end) || begin > end)
        return err_set(e, "its data_offsets are no [begin, end]");
    if ((uint64_t)end > size)
        return err_set(e,
                       "its data end at byte %lld, but only %zu are there: the file is "
                       "truncated; copy or write it again",
                       (long long)end, size);
    if (__builtin_mul_overflow(t->numel, (int64_t)dtype_size(t->dtype), &bytes) ||
        bytes != end - begin) {
        char shape[ST_SHAPE_TEXT];
        return err_set(e, "shape %s of %s does not fit its %lld bytes", st_shape_text(t, shape),
                       CODE[t->dtype], (long long)(end - begin));
    }
    t->bytes = (size_t)bytes;
    t->data = data + begin;
    return 0;
}

/* qsort's comparisons get what they compare by through the elements themselves. */
static int by_name(const void *a, const void *b) {
    return strcmp((*(const StEntry *const *)a)->name, (*(const StEntry *const *)b)->name);
}

static int by_place(const void *a, const void *b) {
    const StEntry *x = *(const StEntry *const *)a, *y = *(const StEntry *const *)b;
    if (x->data != y->data) return (uintptr_t)x->data < (uintptr_t)y->data ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes; /* empty ones before their neighbour */
}

/* The tensors must cover the data from its first byte to its last, each byte once, and have names
 * of their own. Leaves f->by_name sorted. */
static int check_together(StFile *f, const char *data, size_t size, Err *e) {
    for (int i = 0; i < f->n; i++) f->by_name[i] = &f->entry[i];
    qsort(f->by_name, (size_t)f->n, sizeof *f->by_name, by_place);
    const char *at = data, *before = "the header";
    for (int i = 0; i < f->n; i++) {
        const StEntry *t = f->by_name[i];
        if ((const char *)t->data != at)
            return err_set(e, "tensor '%.200s' and %.200s %s: the header is damaged", t->name,
                           before, (const char *)t->data < at ? "overlap" : "leave a hole");
        at += t->bytes;
        before = t->name;
    }
    if (at != data + size)
        return err_set(e, "%zu bytes after the last tensor belong to none: the file is damaged",
                       (size_t)(data + size - at));
    qsort(f->by_name, (size_t)f->n, sizeof *f->by_name, by_name);
    for (int i = 1; i < f->n; i++)
        if (!strcmp(f->by_name[i - 1]->name, f->by_name[i]->name))
            return err_set(e, "tensor '%.200s' is there twice", f->by_name[i]->name);
    return 0;
}

static int check_metadata(const cJSON *meta, Err *e) {
    if (!cJSON_IsObject(meta)) return err_set(e, "the metadata is no JSON object");
    const cJSON *pair;
    cJSON_ArrayForEach(pair, meta) {
        if (!cJSON_IsString(pair)) return err_set(e, "metadata '%.200s' is no text", pair->string);
    }
    return 0;
}

/* Parses the header's JSON. cJSON gets a copy that ends in a 0, as it was made for. */
static int parse_json(StFile *f, const char *text, size_t n, Err *e) {
    if (memchr(text, 0, n)) return err_set(e, "the header holds a zero byte: it is damaged");
    char *copy = malloc(n + 1);
    if (!copy) return err_set(e, "no memory for a header of %zu bytes", n);
    memcpy(copy, text, n);
    copy[n] = 0;
    f->json = cJSON_ParseWithOpts(copy, NULL, 1);
    free(copy);
    if (!cJSON_IsObject(f->json)) return err_set(e, "the header is no JSON object: it is damaged");
    return 0;
}

static int parse(StFile *f, Err *e) {
    const unsigned char *b = f->map.data;
    size_t size = f->map.size;
    uint64_t length = 0;
    if (size < 10)
        return err_set(e, "no safetensors file: it has %zu bytes, and the smallest has 10", size);
    for (int i = 0; i < 8; i++) length |= (uint64_t)b[i] << 8 * i;
    if (b[8] != '{')
        return err_set(e, "no safetensors file: after 8 bytes of length a JSON header is expected");
    if (length > size - 8)
        return err_set(e,
                       "the header's length is %llu bytes, but the file has %zu in all: it is "
                       "truncated or no safetensors file; copy it again",
                       (unsigned long long)length, size);
    if (parse_json(f, (const char *)b + 8, (size_t)length, e)) return -1;

    const char *data = (const char *)b + 8 + length;
    size_t data_size = size - 8 - (size_t)length;
    size_t room = (size_t)cJSON_GetArraySize(f->json) + 1; /* never an allocation of nothing */
    f->entry = calloc(room, sizeof *f->entry);
    f->by_name = calloc(room, sizeof *f->by_name);
    f->copy = calloc(room, sizeof *f->copy);
    if (!f->entry || !f->by_name || !f->copy) return err_set(e, "no memory for %zu entries", room);
    const cJSON *item;
    cJSON_ArrayForEach(item, f->json) {
        if (!strcmp(item->string, METADATA)) {
            if (check_metadata(item, e)) return -1;
            f->meta = item;
            continue;
        }
        if (read_entry(item, &f->entry[f->n], data, data_size, e))
            return err_prefix(e, "tensor '%.200s': ", item->string);
        f->n++;
    }
    return check_together(f, data, data_size, e);
}

/* Foreign writers need not align: such tensors are copied to where they may be read as what they
 * are. */
static int align_entries(StFile *f, Err *e) {
    for (int i = 0; i < f->n; i++) {
        StEntry *t = &f->entry[i];
        if ((uintptr_t)t->data % dtype_size(t->dtype) == 0) continue;
        f->copy[i] = malloc(t->bytes + 1);
        if (!f->copy[i]) return err_set(e, "no memory for %zu bytes", t->bytes);
        memcpy(f->copy[i], t->data, t->bytes);
        t->data = f->copy[i];
    }
    return 0;
}

int st_open(const char *path, StFile *f, Err *e) {
    memset(f, 0, sizeof *f);
    if (map_file(path, &f->map, e)) return -1;
    if (!parse(f, e) && !align_entries(f, e)) return 0;
    st_close(f);
    return err_prefix(e, "%s: ", path);
}

void st_close(StFile *f) {
    for (int i = 0; i < f->n; i++) free(f->copy[i]);
    free(f->copy);
    free(f->by_name);
    free(f->entry);
    cJSON_Delete(f->json);
    unmap_file(&f->map);
    memset(f, 0, sizeof *f);
}

static int name_against(const void *name, const void *entry) {
    return strcmp(name, (*(const StEntry *const *)entry)->name);
}

const StEntry *st_find(const StFile *f, const char *name) {
    if (!f->n) return NULL;
    const StEntry *const *hit =
        bsearch(name, f->by_name, (size_t)f->n, sizeof *f->by_name, name_against);
    return hit ? *hit : NULL;
}

const char *st_meta(const StFile *f, const char *key) {
    const cJSON *pair = f->meta ? cJSON_GetObjectItemCaseSensitive(f->meta, key) : NULL;
    return pair ? pair->valuestring : NULL;
}

const char *st_meta_at(const StFile *f, int i, const char **value) {
    const cJSON *pair = f->meta ? cJSON_GetArrayItem(f->meta, i) : NULL;
    if (!pair) return NULL;
    if (value) *value = pair->valuestring;
    return pair->string;
}

/* ---- Writing ---- */

void st_writer_init(StWriter *w) {
    memset(w, 0, sizeof *w);
    w->meta = cJSON_CreateObject();
    CHECK(w->meta, "no memory for metadata");
}

void st_writer_add(StWriter *w, const char *name, DType dtype, int ndim, const int64_t *shape,
                   const void *data) {
    CHECK(ndim >= 0 && ndim <= ST_MAX_DIMS && strcmp(name, METADATA), "%s: %d dimensions", name,
          ndim);
    if (w->n == w->cap) {
        w->cap = w->cap ? 2 * w->cap : 64;
        w->entry = realloc(w->entry, (size_t)w->cap * sizeof *w->entry);
        CHECK(w->entry, "no memory for %d entries", w->cap);
    }
    StEntry t = {.name = strdup(name), .dtype = dtype, .ndim = ndim, .numel = 1, .data = data};
    CHECK(t.name, "no memory for a name");
    for (int i = 0; i < ndim; i++) {
        CHECK(shape[i] >= 0, "%s: dimension %d is %lld", name, i, (long long)shape[i]);
        t.shape[i] = shape[i];
        t.numel *= shape[i];
    }
    t.bytes = (size_t)t.numel * dtype_size(dtype);
    CHECK(data || !t.bytes, "%s: no data", name);
    w->entry[w->n++] = t;
}

void st_writer_meta(StWriter *w, const char *key, const char *value) {
    cJSON_DeleteItemFromObjectCaseSensitive(w->meta, key);
    CHECK(cJSON_AddStringToObject(w->meta, key, value), "no memory for metadata '%s'", key);
}

/* The order of the data: by size of the numbers, wide first, and as added among equals. */
static int *data_order(const StWriter *w) {
    int *order = malloc(((size_t)w->n + 1) * sizeof *order), n = 0;
    CHECK(order, "no memory for %d numbers", w->n);
    for (size_t size = 8; size > 0; size /= 2)
        for (int i = 0; i < w->n; i++)
            if (dtype_size(w->entry[i].dtype) == size) order[n++] = i;
    CHECK(n == w->n, "%d of %d tensors have a place", n, w->n);
    return order;
}

static void add_entry(cJSON *header, const StEntry *t, uint64_t begin) {
    CHECK(!cJSON_GetObjectItemCaseSensitive(header, t->name), "tensor '%s' added twice", t->name);
    cJSON *item = cJSON_AddObjectToObject(header, t->name);
    cJSON_AddStringToObject(item, "dtype", CODE[t->dtype]);
    cJSON *shape = cJSON_AddArrayToObject(item, "shape");
    for (int i = 0; i < t->ndim; i++)
        cJSON_AddItemToArray(shape, cJSON_CreateNumber((double)t->shape[i]));
    cJSON *offsets = cJSON_AddArrayToObject(item, "data_offsets");
    cJSON_AddItemToArray(offsets, cJSON_CreateNumber((double)begin));
    cJSON_AddItemToArray(offsets, cJSON_CreateNumber((double)(begin + t->bytes)));
    CHECK(cJSON_GetArraySize(offsets) == 2 && cJSON_GetArraySize(shape) == t->ndim,
          "no memory for the header");
}

static char *header_text(const StWriter *w, const int *order) {
    uint64_t *begin = malloc(((size_t)w->n + 1) * sizeof *begin), at = 0;
    cJSON *header = cJSON_CreateObject();
    CHECK(begin && header, "no memory for the header");
    for (int i = 0; i < w->n; i++) {
        begin[order[i]] = at;
        at += w->entry[order[i]].bytes;
    }
    if (cJSON_GetArraySize(w->meta))
        cJSON_AddItemToObject(header, METADATA, cJSON_Duplicate(w->meta, 1));
    for (int i = 0; i < w->n; i++) add_entry(header, &w->entry[i], begin[i]);
    char *text = cJSON_PrintUnformatted(header);
    CHECK(text, "no memory for the header");
    cJSON_Delete(header);
    free(begin);
    return text;
}

int st_writer_save(const StWriter *w, const char *path, Err *e) {
    int *order = data_order(w);
    char *text = header_text(w, order);
    size_t n = strlen(text), padded = (n + 7) / 8 * 8;
    unsigned char length[8];
    for (int i = 0; i < 8; i++) length[i] = (unsigned char)((uint64_t)padded >> 8 * i);
    AtomicFile f;
    int status = atomic_open(&f, path, e);
    if (!status) status = atomic_write(&f, length, 8, e);
    if (!status) status = atomic_write(&f, text, n, e);
    if (!status) status = atomic_write(&f, "       ", padded - n, e);
    for (int i = 0; i < w->n && !status; i++)
        status = atomic_write(&f, w->entry[order[i]].data, w->entry[order[i]].bytes, e);
    if (!status) status = atomic_commit(&f, e);
    cJSON_free(text);
    free(order);
    return status;
}

void st_writer_free(StWriter *w) {
    for (int i = 0; i < w->n; i++) free((char *)(uintptr_t)w->entry[i].name);
    free(w->entry);
    cJSON_Delete(w->meta);
    memset(w, 0, sizeof *w);
}
