#include "data/actions.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "llmc_like/fsio.h"
#include "llmc_like/npy.h"

enum { MAX_PARSED = 1 << 20 };

static const char *const NAME[ACTION_COUNT] = {"none", "stay", "up", "down"};

const char *action_name(int id) { return id >= 0 && id < ACTION_COUNT ? NAME[id] : "?"; }

static bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

/* A recording's action as the model's number. */
static int shifted(const char *path, int64_t action, int64_t index, int32_t *id, Err *e) {
    if (action < 0 || action > 2)
        return err_set(
            e,
            "%s: action %lld at index %lld is outside 0..2 (0 stay, 1 up, 2 down); it is "
            "the first such; convert the recording's actions to these three",
            path, (long long)action, (long long)index);
    *id = (int32_t)action + 1;
    return 0;
}

static int32_t *allocate(const char *what, int64_t n, Err *e) {
    int32_t *ids = malloc(sizeof *ids * (size_t)(n > 0 ? n : 1));
    if (!ids) err_set(e, "%s: no memory for %lld actions; use a shorter one", what, (long long)n);
    return ids;
}

static int from_npy(const char *path, const NpyArray *a, int32_t **ids, int64_t *n, Err *e) {
    char shape[NPY_SHAPE_TEXT];
    if (!npy_is_int(a->dtype) || a->dtype == NPY_B1)
        return err_set(e, "%s: dtype %s, expected an integer one; save actions.astype('int64')",
                       path, npy_name(a->dtype));
    if (a->ndim != 1)
        return err_set(e, "%s: shape %s, expected (N,), one action a frame; save it flattened",
                       path, npy_shape_text(a, shape));
    *n = a->numel;
    *ids = allocate(path, *n, e);
    if (!*ids) return -1;
    for (int64_t i = 0; i < *n; i++) {
        if (shifted(path, npy_int(a, i), i, *ids + i, e) == 0) continue;
        free(*ids);
        return -1;
    }
    return 0;
}

/* A whole number between white space; *end is what follows. */
static bool parse_whole(const char *text, char **end, int64_t *value) {
    errno = 0;
    *value = strtoll(text, end, 10);
    if (*end == text || errno) return false;
    while (isspace((unsigned char)**end)) (*end)++;
    return true;
}

/* "action" or "frame,action". */
static int parse_line(const char *path, const char *line, int64_t number, int64_t index,
                      int32_t *id, Err *e) {
    char *end;
    int64_t value = 0, frame = index;
    bool good = parse_whole(line, &end, &value);
    if (good && *end == ',') {
        frame = value;
        good = parse_whole(end + 1, &end, &value);
    }
    if (!good || *end)
        return err_set(
            e,
            "%s: line %lld is \"%.40s\", expected one action, or \"frame,action\", in whole "
            "numbers",
            path, (long long)number, line);
    if (frame != index)
        return err_set(
            e,
            "%s: line %lld is for frame %lld, expected frame %lld: frames count up from 0 "
            "without gaps",
            path, (long long)number, (long long)frame, (long long)index);
    return shifted(path, value, index, id, e);
}

static bool is_header(const char *line) {
    while (isspace((unsigned char)*line)) line++;
    return isalpha((unsigned char)*line) || *line == '"' || *line == '#';
}

static bool is_blank(const char *line) {
    while (isspace((unsigned char)*line)) line++;
    return *line == 0;
}

static int from_text(const char *path, char *text, int32_t *ids, int64_t *n, Err *e) {
    int64_t number = 0;
    *n = 0;
    for (char *line = text; line;) {
        char *end = strchr(line, '\n');
        if (end) *end = 0;
        number++;
        if (!is_blank(line) && !(number == 1 && is_header(line))) {
            if (parse_line(path, line, number, *n, ids + *n, e)) return -1;
            (*n)++;
        }
        line = end ? end + 1 : NULL;
    }
    return 0;
}

int actions_read(const char *path, int32_t **ids, int64_t *n, Err *e) {
    if (ends_with(path, ".npy")) {
        NpyArray a;
        if (npy_open(path, &a, e)) return -1;
        int status = from_npy(path, &a, ids, n, e);
        npy_close(&a);
        return status;
    }
    char *text;
    size_t size;
    if (read_whole_file(path, &text, &size, e)) return -1;
    int status;
    if (memchr(text, 0, size)) {
        status =
            err_set(e, "%s: a binary file, expected text of one action a line, or an .npy", path);
    } else {
        int64_t lines = 1;
        for (size_t i = 0; i < size; i++) lines += text[i] == '\n';
        *ids = allocate(path, lines, e);
        status = *ids ? from_text(path, text, *ids, n, e) : -1;
        if (status) free(*ids);
    }
    free(text);
    return status;
}

/* The id that text[0 .. length-1] names, or -1. */
static int named(const char *text, size_t length) {
    if (length == 1 && text[0] >= '0' && text[0] <= '2') return text[0] - '0' + 1;
    for (int id = 0; id < ACTION_COUNT; id++)
        if (strlen(NAME[id]) == length && strncmp(text, NAME[id], length) == 0) return id;
    return -1;
}

/* One "word" or "word*repeat" of text[0 .. length-1]. */
static int parse_item(const char *pattern, const char *text, size_t length, int *id,
                      int64_t *repeat, Err *e) {
    const char *star = memchr(text, '*', length);
    *id = named(text, star ? (size_t)(star - text) : length);
    *repeat = 1;
    char *end = NULL;
    if (star && isdigit((unsigned char)star[1])) *repeat = strtoll(star + 1, &end, 10);
    bool good = *id >= 0 && (!star || end == text + length);
    if (!good || *repeat < 1 || *repeat > MAX_PARSED)
        return err_set(
            e,
            "actions \"%.200s\": \"%.*s\" is neither a file nor an action; expected none, "
            "stay, up, down or 0 to 2, each with an optional repeat such as up*60, between "
            "commas",
            pattern, (int)(length < 200 ? length : 200), text);
    return 0;
}

static int from_pattern(const char *pattern, int32_t *ids, int64_t *n, Err *e) {
    *n = 0;
    for (const char *at = pattern;; at++) {
        size_t length = strcspn(at, ",");
        int id;
        int64_t repeat;
        if (parse_item(pattern, at, length, &id, &repeat, e)) return -1;
        if (*n + repeat > MAX_PARSED)
            return err_set(e, "actions \"%.200s\": more than %d; ask for fewer", pattern,
                           MAX_PARSED);
        for (int64_t i = 0; i < repeat; i++) ids[(*n)++] = id;
        at += length;
        if (!*at) return 0;
    }
}

int actions_parse(const char *text, int32_t **ids, int64_t *n, Err *e) {
    bool file = strchr(text, '/') || ends_with(text, ".npy") || ends_with(text, ".csv") ||
                ends_with(text, ".txt") || access(text, F_OK) == 0;
    if (file) {
        if (actions_read(text, ids, n, e)) return -1;
        if (*n >= 1 && *n <= MAX_PARSED) return 0;
        free(*ids);
        return err_set(e, "%s: %lld actions, expected 1 to %d", text, (long long)*n, MAX_PARSED);
    }
    *ids = allocate(text, MAX_PARSED, e);
    if (!*ids) return -1;
    if (from_pattern(text, *ids, n, e)) {
        free(*ids);
        return -1;
    }
    int32_t *fitted = realloc(*ids, sizeof **ids * (size_t)*n);
    if (fitted) *ids = fitted;
    return 0;
}
