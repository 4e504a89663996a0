#include "llmc_like/options.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_MAX_LENGTH = 40, PAGE_WIDTH = 100, HELP_COLUMN = 30 };

static const char *const KIND_NAME[] = {
    [OPT_HEADING] = "",    [OPT_INT] = "INT",         [OPT_U64] = "INT", [OPT_DOUBLE] = "NUMBER",
    [OPT_STRING] = "TEXT", [OPT_OPTIONAL] = "[TEXT]", [OPT_FLAG] = ""};

static bool is_string(const Option *r) { return r->kind == OPT_STRING || r->kind == OPT_OPTIONAL; }

const char *option_origin_name(OptionOrigin from) {
    static const char *const name[] = {"default", "preset", "checkpoint", "user"};
    return name[from];
}

/* ---- Names that are nearly right ---- */

enum { DISTANCE_MAX_LENGTH = 63 };

/* Optimal string alignment distance of a and b[0 .. nb-1]; large where one of them is long. */
static int distance(const char *a, const char *b, size_t nb) {
    size_t na = strlen(a);
    if (na > DISTANCE_MAX_LENGTH || nb > DISTANCE_MAX_LENGTH) return INT_MAX;
    int d[DISTANCE_MAX_LENGTH + 1][DISTANCE_MAX_LENGTH + 1];
    for (size_t i = 0; i <= na; i++) d[i][0] = (int)i;
    for (size_t j = 0; j <= nb; j++) d[0][j] = (int)j;
    for (size_t i = 1; i <= na; i++)
        for (size_t j = 1; j <= nb; j++) {
            int best = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            if (d[i - 1][j] + 1 < best) best = d[i - 1][j] + 1;
            if (d[i][j - 1] + 1 < best) best = d[i][j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                d[i - 2][j - 2] + 1 < best)
                best = d[i - 2][j - 2] + 1;
            d[i][j] = best;
        }
    return d[na][nb];
}

/* How far a name of the list is from what was typed. A beginning of at least three letters counts
 * as one change. */
static int farness(const char *text, const char *name, size_t n) {
    size_t typed = strlen(text);
    if (typed >= 3 && typed < n && !strncmp(text, name, typed)) return 1;
    return distance(text, name, n);
}

const char *nearest_names(const char *text, const char *list, char buf[NEAREST_TEXT]) {
    int limit = strlen(text) < 6 ? 2 : (int)strlen(text) / 3, best = limit + 1, found = 0;
    size_t used = 0;
    buf[0] = 0;
    for (int pass = 0; pass < 2; pass++) /* first the least distance, then who has it */
        for (const char *at = list; *at && found < 3;) {
            size_t n = strcspn(at, "|");
            int far = farness(text, at, n);
            if (pass == 0 && far < best) best = far;
            if (pass == 1 && far == best && far <= limit && used + n + 8 < NEAREST_TEXT)
                used += (size_t)snprintf(buf + used, NEAREST_TEXT - used, "%s'%.*s'",
                                         found++ ? " or " : "", (int)n, at);
            at += n + (at[n] == '|');
        }
    return buf;
}

/* ---- Values ---- */

static int find(const Options *o, const char *name, size_t n) {
    for (int i = 0; i < o->n; i++)
        if (o->row[i].kind != OPT_HEADING && strlen(o->row[i].name) == n &&
            !memcmp(o->row[i].name, name, n))
            return i;
    return -1;
}

static bool in_list(const char *text, const char *list) {
    size_t n = strlen(text);
    for (const char *at = list; *at;) {
        size_t k = strcspn(at, "|");
        if (k == n && !memcmp(at, text, n)) return true;
        at += k + (at[k] == '|');
    }
    return false;
}

/* "cpu, cuda" from "cpu|cuda". */
static void spell_list(const char *list, char *buf, size_t size) {
    size_t n = 0;
    for (; *list && n + 3 < size; list++) {
        buf[n++] = *list == '|' ? ',' : *list;
        if (*list == '|') buf[n++] = ' ';
    }
    buf[n] = 0;
}

static int no_number(const Option *r, const char *text, const char *what, Err *e) {
    return err_set(e, "--%s is '%.200s', but %s is expected; --help shows the default", r->name,
                   text, what);
}

static int in_range(const Option *r, const char *text, double v, Err *e) {
    if (r->min == r->max || (v >= r->min && v <= r->max)) return 0;
    return err_set(e, "--%s is %.200s, but must be from %.15g to %.15g", r->name, text, r->min,
                   r->max);
}

static int set_string(const Option *r, const char *text, Err *e) {
    if (r->choices && text && !in_list(text, r->choices)) {
        char near[NEAREST_TEXT], list[1024];
        nearest_names(text, r->choices, near);
        spell_list(r->choices, list, sizeof list);
        return err_set(e, "--%s is '%.200s', but must be one of %s%s%s%s", r->name, text, list,
                       *near ? "; did you mean " : "", near, *near ? "?" : "");
    }
    *(const char **)r->value = text;
    return 0;
}

static int set_flag(const Option *r, const char *text, Err *e) {
    bool on = in_list(text, "on|true|yes|1");
    if (!on && !in_list(text, "off|false|no|0")) return no_number(r, text, "on or off", e);
    *(bool *)r->value = on;
    return 0;
}

/* Puts the value that `text` says into row r's variable. */
static int set_value(const Option *r, const char *text, Err *e) {
    if (is_string(r)) return set_string(r, text, e);
    if (r->kind == OPT_FLAG) return set_flag(r, text, e);
    char *end;
    errno = 0;
    if (r->kind == OPT_DOUBLE) {
        double v = strtod(text, &end);
        if (end == text || *end || !(v - v == 0)) return no_number(r, text, "a number", e);
        if (in_range(r, text, v, e)) return -1;
        *(double *)r->value = v;
        return 0;
    }
    if (r->kind == OPT_U64) {
        uint64_t v = strtoull(text, &end, 10);
        if (end == text || *end || errno || strchr(text, '-'))
            return no_number(r, text, "a whole number from 0 to 18446744073709551615", e);
        if (in_range(r, text, (double)v, e)) return -1;
        *(uint64_t *)r->value = v;
        return 0;
    }
    long v = strtol(text, &end, 10);
    if (end == text || *end) return no_number(r, text, "a whole number", e);
    if (errno || v < INT_MIN || v > INT_MAX)
        return no_number(r, text, "a whole number below 2147483648", e);
    if (in_range(r, text, (double)v, e)) return -1;
    *(int *)r->value = (int)v;
    return 0;
}

/* Sets row i from text (copied; NULL: no string) and notes from whom. On failure everything stays
 * as it was. */
static int assign(Options *o, int i, const char *text, OptionOrigin from, Err *e) {
    char *copy = text ? strdup(text) : NULL;
    CHECK(copy || !text, "no memory for the value of --%s", o->row[i].name);
    if (set_value(&o->row[i], copy, e)) {
        free(copy);
        return -1;
    }
    free(o->text[i]);
    o->text[i] = copy;
    o->origin[i] = from;
    return 0;
}

void options_init(Options *o, const Option *row, int n, bool takes_args) {
    memset(o, 0, sizeof *o);
    o->row = row;
    o->n = n;
    o->takes_args = takes_args;
    o->origin = calloc((size_t)n + 1, sizeof *o->origin);
    o->text = calloc((size_t)n + 1, sizeof *o->text);
    CHECK(o->origin && o->text, "no memory for %d options", n);
    for (int i = 0; i < n; i++) {
        const Option *r = &row[i];
        if (r->kind == OPT_HEADING) continue;
        Err e = {""};
        CHECK(strlen(r->name) <= NAME_MAX_LENGTH && r->value && r->help, "row %d (%s)", i, r->name);
        CHECK(r->fallback || is_string(r), "--%s has no default", r->name);
        CHECK(find(o, r->name, strlen(r->name)) == i, "--%s is in the table twice", r->name);
        CHECK(!assign(o, i, r->fallback, FROM_DEFAULT, &e), "default of %s", e.text);
    }
}

void options_free(Options *o) {
    for (int i = 0; i < o->n; i++) free(o->text[i]);
    free(o->text);
    free(o->origin);
    free(o->arg);
    memset(o, 0, sizeof *o);
}

/* ---- The command line ---- */

static int unknown(const Options *o, const char *name, size_t n, Err *e) {
    char typed[128], list[8192], near[NEAREST_TEXT];
    snprintf(typed, sizeof typed, "%.*s", (int)n, name);
    size_t used = 0;
    list[0] = 0;
    for (int i = 0; i < o->n; i++)
        if (o->row[i].kind != OPT_HEADING && used + NAME_MAX_LENGTH + 4 < sizeof list)
            used += (size_t)snprintf(list + used, sizeof list - used, "%s--%s", used ? "|" : "",
                                     o->row[i].name);
    char dashed[132];
    snprintf(dashed, sizeof dashed, "--%s", typed);
    nearest_names(dashed, list, near);
    return err_set(e, "unknown option '--%s'%s%s; --help lists all", typed,
                   *near ? ": did you mean " : "", near);
}

/* One "--..." at argv[*i], with its value where that is the next word. */
static int parse_option(Options *o, int argc, char **argv, int *i, Err *e) {
    const char *name = argv[*i] + 2, *equals = strchr(name, '=');
    size_t n = equals ? (size_t)(equals - name) : strlen(name);
    int row = find(o, name, n);
    if (row < 0 && n > 3 && !strncmp(name, "no-", 3)) {
        row = find(o, name + 3, n - 3);
        if (row >= 0 && o->row[row].kind != OPT_FLAG)
            return err_set(e, "--%s has a value and cannot be turned off; write --%s VALUE",
                           o->row[row].name, o->row[row].name);
        if (row >= 0 && equals)
            return err_set(e, "--no-%s takes no value; write --%s=off", o->row[row].name,
                           o->row[row].name);
        if (row >= 0) return assign(o, row, "off", FROM_USER, e);
    }
    if (row < 0) return unknown(o, name, n, e);
    const Option *r = &o->row[row];
    if (equals) return assign(o, row, equals + 1, FROM_USER, e);
    if (r->kind == OPT_FLAG) return assign(o, row, "on", FROM_USER, e);
    const bool alone = *i + 1 >= argc || !strncmp(argv[*i + 1], "--", 2);
    if (alone && r->kind == OPT_OPTIONAL) return assign(o, row, "", FROM_USER, e);
    if (alone)
        return err_set(e, "--%s needs a value (%s%s%s): write --%s VALUE or --%s=VALUE", r->name,
                       r->choices ? r->choices : KIND_NAME[r->kind],
                       r->fallback ? ", default " : "", r->fallback ? r->fallback : "", r->name,
                       r->name);
    return assign(o, row, argv[++*i], FROM_USER, e);
}

int options_parse(Options *o, int argc, char **argv, Err *e) {
    free(o->arg);
    o->arg = calloc((size_t)argc + 1, sizeof *o->arg);
    CHECK(o->arg, "no memory for %d arguments", argc);
    o->n_args = 0;
    bool only_args = false;
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        if (!only_args && !strcmp(word, "--")) {
            only_args = true;
        } else if (!only_args && (!strcmp(word, "--help") || !strcmp(word, "-h"))) {
            o->help = true;
            return 0;
        } else if (!only_args && !strncmp(word, "--", 2)) {
            if (parse_option(o, argc, argv, &i, e)) return -1;
        } else if (o->takes_args && (only_args || word[0] != '-')) {
            o->arg[o->n_args++] = argv[i];
        } else {
            return err_set(e, "'%.200s' is no option%s; --help lists them", word,
                           word[0] == '-' ? ": options begin with two dashes" : "");
        }
    }
    return 0;
}

static int assign_unless_user(Options *o, const char *name, const char *text, OptionOrigin from,
                              Err *e) {
    int i = find(o, name, strlen(name));
    CHECK(i >= 0, "a %s sets --%s, which is not in the table", option_origin_name(from), name);
    return o->origin[i] == FROM_USER ? 0 : assign(o, i, text, from, e);
}

int options_preset(Options *o, const char *name, const char *text, Err *e) {
    return assign_unless_user(o, name, text, FROM_PRESET, e);
}

int options_adopt(Options *o, const char *name, const char *text, Err *e) {
    return assign_unless_user(o, name, text, FROM_CHECKPOINT, e);
}

bool option_was_set(const Options *o, const char *name) {
    int i = find(o, name, strlen(name));
    CHECK(i >= 0, "--%s is not in the table", name);
    return o->origin[i] == FROM_USER;
}

/* ---- Showing ---- */

const char *option_text(const Options *o, int i, char buf[OPTION_TEXT]) {
    CHECK(i >= 0 && i < o->n, "row %d of %d", i, o->n);
    const Option *r = &o->row[i];
    buf[0] = 0;
    switch (r->kind) {
        case OPT_HEADING:
            break;
        case OPT_INT:
            snprintf(buf, OPTION_TEXT, "%d", *(int *)r->value);
            break;
        case OPT_U64:
            snprintf(buf, OPTION_TEXT, "%llu", (unsigned long long)*(uint64_t *)r->value);
            break;
        case OPT_DOUBLE:
            for (int digits = 6; digits <= 17; digits++) {
                snprintf(buf, OPTION_TEXT, "%.*g", digits, *(double *)r->value);
                if (strtod(buf, NULL) == *(double *)r->value) break;
            }
            break;
        case OPT_STRING:
        case OPT_OPTIONAL:
            if (*(const char **)r->value)
                snprintf(buf, OPTION_TEXT, "%s", *(const char **)r->value);
            break;
        case OPT_FLAG:
            snprintf(buf, OPTION_TEXT, "%s", *(bool *)r->value ? "on" : "off");
            break;
    }
    return buf;
}

/* Prints text from the help column on, breaking lines between words; the cursor stands at `column`.
 */
static void wrap(FILE *out, int column, const char *text) {
    if (column >= HELP_COLUMN - 1) {
        fputc('\n', out);
        column = 0;
    }
    column += fprintf(out, "%*s", HELP_COLUMN - column, "");
    for (bool first = true; *text; first = false) {
        int n = (int)strcspn(text, " ");
        if (!first && column + 1 + n > PAGE_WIDTH) {
            column = fprintf(out, "\n%*s", HELP_COLUMN, "") - 1;
            first = true;
        }
        column += fprintf(out, "%s%.*s", first ? "" : " ", n, text);
        text += n + (text[n] == ' ');
    }
    fputc('\n', out);
}

static void help_row(const Option *r, FILE *out) {
    char text[2048], list[1024];
    int column = fprintf(out, "  --%s%s%s%s", r->kind == OPT_FLAG ? "[no-]" : "", r->name,
                         *KIND_NAME[r->kind] ? " " : "", KIND_NAME[r->kind]);
    size_t n = (size_t)snprintf(text, sizeof text, "%.900s [", r->help);
    if (r->choices) {
        spell_list(r->choices, list, sizeof list);
        n += (size_t)snprintf(text + n, sizeof text - n, "%s; ", list);
    }
    if (r->min != r->max)
        n += (size_t)snprintf(text + n, sizeof text - n, "%.15g to %.15g; ", r->min, r->max);
    const char *fallback = !r->fallback ? "none" : *r->fallback ? r->fallback : "\"\"";
    snprintf(text + n, sizeof text - n, "default %.80s]", fallback);
    wrap(out, column, text);
}

void options_help(const Options *o, const char *usage, FILE *out) {
    fprintf(out, "%s\n", usage);
    for (int i = 0; i < o->n; i++) {
        if (o->row[i].kind == OPT_HEADING)
            fprintf(out, "\n%s\n", o->row[i].name);
        else
            help_row(&o->row[i], out);
    }
}

static cJSON *value_json(const Option *r) {
    switch (r->kind) {
        case OPT_INT:
            return cJSON_CreateNumber(*(int *)r->value);
        case OPT_DOUBLE:
            return cJSON_CreateNumber(*(double *)r->value);
        case OPT_FLAG:
            return cJSON_CreateBool(*(bool *)r->value);
        case OPT_U64: {
            /* Digits as they are: a double would round seeds above 2^53. */
            char digits[24];
            snprintf(digits, sizeof digits, "%llu", (unsigned long long)*(uint64_t *)r->value);
            return cJSON_CreateRaw(digits);
        }
        default:
            break;
    }
    const char *text = *(const char **)r->value;
    return text ? cJSON_CreateString(text) : cJSON_CreateNull();
}

struct cJSON *options_json(const Options *o) {
    cJSON *all = cJSON_CreateObject();
    CHECK(all, "no memory for %d options", o->n);
    for (int i = 0; i < o->n; i++) {
        if (o->row[i].kind == OPT_HEADING) continue;
        cJSON *item = cJSON_AddObjectToObject(all, o->row[i].name);
        cJSON_AddItemToObject(item, "value", value_json(&o->row[i]));
        CHECK(cJSON_AddStringToObject(item, "from", option_origin_name(o->origin[i])),
              "no memory for --%s", o->row[i].name);
    }
    return all;
}
