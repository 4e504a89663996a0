#include "llmc_like/metrics.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "llmc_like/fsio.h"

/* ---- The line in the making ---- */

static void put(Metrics *m, const char *text, size_t n) {
    if (m->used + n > m->cap) {
        m->cap = 2 * (m->used + n) + 256;
        m->line = realloc(m->line, m->cap);
        CHECK(m->line, "no memory for a line of %zu bytes", m->cap);
    }
    memcpy(m->line + m->used, text, n);
    m->used += n;
}

static void put_string(Metrics *m, const char *text) {
    put(m, "\"", 1);
    for (const char *c = text; *c; c++) {
        char escaped[8];
        unsigned char byte = (unsigned char)*c;
        if (byte == '"' || byte == '\\')
            put(m, escaped, (size_t)snprintf(escaped, sizeof escaped, "\\%c", byte));
        else if (byte < 0x20)
            put(m, escaped, (size_t)snprintf(escaped, sizeof escaped, "\\u%04x", byte));
        else
            put(m, c, 1);
    }
    put(m, "\"", 1);
}

static void put_key(Metrics *m, const char *key) {
    put(m, m->used ? "," : "{", 1);
    put_string(m, key);
    put(m, ":", 1);
}

void metrics_begin(Metrics *m, int64_t step) {
    char text[24];
    if (m->fd < 0) return;
    m->used = 0;
    put_key(m, "step");
    put(m, text, (size_t)snprintf(text, sizeof text, "%lld", (long long)step));
}

void metrics_number(Metrics *m, const char *key, double value) {
    if (m->fd < 0) return;
    put_key(m, key);
    char text[40] = "null";
    /* 17 digits always read back as the same double; mostly fewer do. */
    for (int digits = 6; isfinite(value) && digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
    }
    put(m, text, strlen(text));
}

void metrics_text(Metrics *m, const char *key, const char *value) {
    if (m->fd < 0) return;
    put_key(m, key);
    if (value)
        put_string(m, value);
    else
        put(m, "null", 4);
}

int metrics_end(Metrics *m, Err *e) {
    if (m->fd < 0) return 0;
    CHECK(m->used, "metrics_end without metrics_begin");
    put(m, "}\n", 2);
    ssize_t k;
    do k = write(m->fd, m->line, m->used);
    while (k < 0 && errno == EINTR);
    size_t want = m->used;
    m->used = 0;
    if (k == (ssize_t)want) {
        m->size += k;
        return 0;
    }
    int number = k < 0 ? errno : ENOSPC;
    if (k > 0 && ftruncate(m->fd, m->size)) number = errno; /* takes the half line back */
    return err_set(e, "cannot write '%s': %s; this line of it is lost, the run may go on", m->path,
                   strerror(number));
}

/* ---- The file ---- */

/* Whether a line of an earlier run stays: whole, JSON, and from before first_step. */
static bool keeps(const char *line, int64_t first_step) {
    cJSON *json = cJSON_ParseWithOpts(line, NULL, 1);
    const cJSON *step = cJSON_GetObjectItemCaseSensitive(json, "step");
    bool keep = cJSON_IsObject(json) &&
                (!step || (cJSON_IsNumber(step) && step->valuedouble < (double)first_step));
    cJSON_Delete(json);
    return keep;
}

/* Moves the lines that stay to the front of text and returns their bytes. */
static size_t sift(char *text, size_t size, int64_t first_step) {
    size_t kept = 0;
    for (size_t at = 0; at < size;) {
        char *newline = memchr(text + at, '\n', size - at);
        if (!newline) break;
        size_t n = (size_t)(newline - (text + at)) + 1;
        *newline = 0; /* cJSON wants an end that it may read */
        bool keep = keeps(text + at, first_step);
        *newline = '\n';
        if (keep) {
            memmove(text + kept, text + at, n);
            kept += n;
        }
        at += n;
    }
    return kept;
}

int metrics_open(Metrics *m, const char *path, int64_t first_step, Err *e) {
    memset(m, 0, sizeof *m);
    m->fd = -1;
    char *text = NULL;
    size_t size = 0, kept = 0;
    if (first_step > 0 && !access(path, F_OK)) {
        if (read_whole_file(path, &text, &size, e)) return -1;
        kept = sift(text, size, first_step);
    }
    /* Rewritten whole rather than cut in place: a kill in between leaves the old file. */
    int status = atomic_save(path, text ? text : "", kept, e);
    free(text);
    if (status) return -1;
    m->fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
    if (m->fd < 0) return err_set(e, "cannot write '%s': %s", path, strerror(errno));
    m->path = strdup(path);
    CHECK(m->path, "no memory for a path");
    m->size = (int64_t)kept;
    return 0;
}

void metrics_close(Metrics *m) {
    if (m->fd >= 0) close(m->fd);
    free(m->path);
    free(m->line);
    memset(m, 0, sizeof *m);
    m->fd = -1;
}

int json_save(const char *path, const struct cJSON *json, Err *e) {
    char *text = cJSON_Print(json);
    CHECK(text, "no memory for the text of '%s'", path);
    size_t n = strlen(text);
    text[n] = '\n'; /* in the place of the 0, which nobody needs any more */
    int status = atomic_save(path, text, n + 1, e);
    cJSON_free(text);
    return status;
}
