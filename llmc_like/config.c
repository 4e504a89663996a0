#include "llmc_like/config.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *config_name(const char *const *names, const char *text) {
    for (; text && *names; names++)
        if (!strcmp(*names, text)) return *names;
    return NULL;
}

/* ---- writing ---- */

__attribute__((format(printf, 3, 4))) static void append(char *text, size_t size,
                                                         const char *format, ...) {
    const size_t used = strlen(text);
    va_list args;
    va_start(args, format);
    const int n = vsnprintf(text + used, size - used, format, args);
    va_end(args);
    CHECK(n >= 0 && (size_t)n < size - used, "a config needs more than %zu bytes", size);
}

void config_write(char *text, size_t size, const char *model, const ConfigRow *row, int n) {
    *text = 0;
    append(text, size, "{\"model\": \"%s\"", model);
    for (int i = 0; i < n; i++) {
        append(text, size, ", \"%s\": ", row[i].key);
        if (row[i].kind == CONFIG_INT)
            append(text, size, "%d", *(const int *)row[i].value);
        else if (row[i].kind == CONFIG_DOUBLE)
            append(text, size, "%.9g", *(const double *)row[i].value);
        else
            append(text, size, "\"%s\"", *(const char *const *)row[i].value);
    }
    append(text, size, "}");
}

/* ---- reading ---- */

static int refuse(const char *key, const cJSON *found, const char *expected, Err *e) {
    char *text = cJSON_PrintUnformatted(found);
    CHECK(text, "no memory for the text of '%s'", key);
    err_set(e, "the config's %s is %.80s; expected is %s", key, text, expected);
    cJSON_free(text);
    return -1;
}

static int read_row(const ConfigRow *row, const cJSON *v, Err *e) {
    if (row->kind == CONFIG_NAME) {
        char list[256] = "";
        const char *name = config_name(row->names, cJSON_GetStringValue(v));
        if (name) *(const char **)row->value = name;
        for (int i = 0; !name && row->names[i]; i++)
            append(list, sizeof list, "%s%s", i ? "|" : "", row->names[i]);
        return name ? 0 : refuse(row->key, v, list, e);
    }
    const double x = cJSON_IsNumber(v) ? v->valuedouble : NAN;
    if (row->kind == CONFIG_DOUBLE) {
        if (!isfinite(x)) return refuse(row->key, v, "a number", e);
        *(double *)row->value = x;
    } else {
        if (!(fabs(x) <= 1 << 20) || x != trunc(x))
            return refuse(row->key, v, "a whole number to 1048576", e);
        *(int *)row->value = (int)x;
    }
    return 0;
}

static int read_object(const cJSON *o, const char *model, bool unnamed, const ConfigRow *row, int n,
                       Err *e) {
    const cJSON *name = cJSON_GetObjectItemCaseSensitive(o, "model");
    const char *const names[] = {model, NULL};
    const char *same = model;
    if (!cJSON_IsObject(o) || (!name && !unnamed))
        return err_set(e, "the config names no model; expected is \"model\": \"%s\"", model);
    if (name &&
        read_row(&(ConfigRow){.key = "model", .kind = CONFIG_NAME, .value = &same, .names = names},
                 name, e))
        return -1;
    for (int i = 0; i < n; i++) {
        const cJSON *v = cJSON_GetObjectItemCaseSensitive(o, row[i].key);
        if (!v && row[i].needed) return err_set(e, "the config's %s is missing", row[i].key);
        if (v && read_row(&row[i], v, e)) return -1;
    }
    return 0;
}

int config_read(const char *json, const char *model, bool unnamed, const ConfigRow *row, int n,
                Err *e) {
    cJSON *o = cJSON_Parse(json);
    const int status = read_object(o, model, unnamed, row, n, e);
    cJSON_Delete(o);
    return status;
}

/* ---- options ---- */

int config_adopt(Options *o, const ConfigRow *row, int n, Err *e) {
    char text[32];
    for (int i = 0; i < n; i++) {
        if (!row[i].option) continue;
        const char *value = text;
        if (row[i].kind == CONFIG_INT)
            snprintf(text, sizeof text, "%d", *(const int *)row[i].value);
        else if (row[i].kind == CONFIG_DOUBLE)
            snprintf(text, sizeof text, "%.17g", *(const double *)row[i].value);
        else
            value = *(const char *const *)row[i].value;
        if (options_adopt(o, row[i].option, value, e)) return -1;
    }
    return 0;
}
