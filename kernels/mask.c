/* Masks by name as row intervals, and expressions through flex. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/attention.h"
#include "kernels/flex/flex.h"

static const char names_help[] =
    "full, causal, frame-causal, window:W, document:LEN, or several joined by '&'";

enum { EXPRESSION_TEXT = 2048 };

typedef enum { NAME_NONE, NAME_FULL, NAME_CAUSAL, NAME_FRAME, NAME_WINDOW, NAME_DOCUMENT } Name;

/* One name of a mask's text, with the number after its ':'. */
typedef struct Part {
    Name name;
    char number[32]; /* what follows the ':', as text; "" where there is no ':' */
    bool has_number;
} Part;

/* The part that begins at text and ends at '&' or the end. NAME_NONE: not a name. */
static Part read_part(const char *text, const char **end) {
    static const char *const words[] = {"", "full", "causal", "frame-causal", "window", "document"};
    *end = strchr(text, '&') ? strchr(text, '&') : text + strlen(text);
    const char *last = *end;
    while (text < last && (*text == ' ' || *text == '\t')) text++;
    while (last > text && (last[-1] == ' ' || last[-1] == '\t')) last--;
    const char *colon = memchr(text, ':', (size_t)(last - text));
    const size_t length = (size_t)((colon ? colon : last) - text);
    Part part = {NAME_NONE, "", colon};
    for (int i = 1; i < 6; i++)
        if (strlen(words[i]) == length && !strncmp(words[i], text, length)) part.name = (Name)i;
    if (colon)
        snprintf(part.number, sizeof part.number, "%.*s", (int)(last - colon - 1), colon + 1);
    return part;
}

bool mask_is_named(const char *text) {
    for (const char *end = text;; text = end + 1) {
        if (read_part(text, &end).name == NAME_NONE) return false;
        if (!*end) return true;
    }
}

static int read_number(const Part *part, const char *text, int *out, Err *e) {
    const bool wanted = part->name == NAME_WINDOW || part->name == NAME_DOCUMENT;
    if (!wanted && part->has_number)
        return err_set(e,
                       "--mask %s: only window and document take a number after ':'; masks by "
                       "name are %s",
                       text, names_help);
    if (!wanted) return 0;
    char *end;
    const long value = strtol(part->number, &end, 10);
    if (part->number[0] < '0' || part->number[0] > '9' || *end || value < 1 || value > INT_MAX)
        return err_set(e,
                       "--mask %s: found '%s' for the number of positions in a %s; write a whole "
                       "number from 1 on, as in %s",
                       text, part->number, part->name == NAME_WINDOW ? "window" : "document",
                       part->name == NAME_WINDOW ? "window:256" : "document:128");
    *out = (int)value;
    return 0;
}

static int largest(int a, int b) { return a > b ? a : b; }
static int smallest(int a, int b) { return a < b ? a : b; }

/* Cuts query i's interval down to what the part shows of it: [from, to). */
static void intersect(Mask *m, const Part *part, int number, int S) {
    for (int i = 0; i < m->T; i++) {
        int from = 0, to = m->T;
        if (part->name == NAME_CAUSAL || part->name == NAME_WINDOW) to = i + 1;
        if (part->name == NAME_WINDOW) from = largest(0, i - number + 1);
        if (part->name == NAME_FRAME) to = i - i % S + S;
        if (part->name == NAME_DOCUMENT) {
            from = i - i % number;
            to = from > INT_MAX - number ? INT_MAX : from + number;
        }
        m->lo[i] = largest(m->lo[i], from);
        m->hi[i] = smallest(m->hi[i], to);
    }
}

/* The names' mask as flex has it, an expression: what it costs there is what any mask costs. */
static void names_as_expression(const char *text, char expr[EXPRESSION_TEXT]) {
    size_t n = 0;
    for (const char *end = text, *start = text; n < EXPRESSION_TEXT; start = end + 1) {
        const Part part = read_part(start, &end);
        const char *join = n ? " && " : "";
        char *at = expr + n;
        const size_t room = EXPRESSION_TEXT - n;
        if (part.name == NAME_FULL) n += (size_t)snprintf(at, room, "%sk >= 0", join);
        if (part.name == NAME_CAUSAL) n += (size_t)snprintf(at, room, "%sk <= q", join);
        if (part.name == NAME_FRAME)
            n += (size_t)snprintf(at, room, "%sframe[k] <= frame[q]", join);
        if (part.name == NAME_DOCUMENT) n += (size_t)snprintf(at, room, "%sdoc[k] == doc[q]", join);
        if (part.name == NAME_WINDOW)
            n += (size_t)snprintf(at, room, "%sk <= q && q - k < %s", join, part.number);
        if (!*end) return;
    }
}

/* Documents of `length` positions; the last may be shorter. doc (T): the document of each position.
 */
static void init_documents(Mask *m, int length, int *doc) {
    int32_t *offsets = m->own + 2 * (size_t)m->T;
    m->offsets = offsets;
    m->n_docs = (m->T - 1) / length + 1;
    m->longest = smallest(length, m->T);
    for (int d = 1; d < m->n_docs; d++) offsets[d] = d * length;
    offsets[m->n_docs] = m->T;
    for (int i = 0; i < m->T; i++) doc[i] = i / length;
}

/* Fills lo and hi, and documents with doc (T), from the names. */
static int init_names(Mask *m, const char *text, int S, int *doc, Err *e) {
    m->own = calloc(3 * (size_t)m->T + 1, sizeof *m->own);
    CHECK(m->own, "no memory for the intervals of %d positions", m->T);
    m->lo = m->own;
    m->hi = m->own + m->T;
    for (int i = 0; i < m->T; i++) m->hi[i] = m->T;
    for (const char *end = text, *start = text;; start = end + 1) {
        const Part part = read_part(start, &end);
        int number = 1;
        if (read_number(&part, text, &number, e)) return -1;
        intersect(m, &part, number, S);
        if (part.name == NAME_DOCUMENT) {
            if (m->offsets)
                return err_set(e, "--mask %s: document occurs twice; give one length", text);
            init_documents(m, number, doc);
        }
        if (!*end) break;
    }
    m->within = m->offsets && strchr(text, '&');
    return 0;
}

/* What expressions may name. */
typedef struct Arrays {
    FlexArray list[FLEX_MAX_ARRAYS + FLEX_MAX_LEARNED];
    int n, n_learned;
    char name[FLEX_MAX_LEARNED][FLEX_NAME]; /* of the learned ones */
} Arrays;

static void arrays_add(Arrays *a, const char *name, const int *data, int length) {
    a->list[a->n++] = (FlexArray){name, data, length};
}

/* One "name:count" that begins at text; where it ends, or NULL where there is none. */
static const char *read_declaration(const char *text, char name[FLEX_NAME], int *count) {
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_",
                      digits[] = "0123456789";
    size_t n = strspn(text, letters);
    while (n && text[n] && (strchr(letters, text[n]) || strchr(digits, text[n]))) n++;
    const char *number = text + n + 1;
    if (n == 0 || n >= FLEX_NAME || text[n] != ':' || !*number || !strchr(digits, *number))
        return NULL;
    memcpy(name, text, n);
    name[n] = '\0';
    char *end;
    const long value = strtol(number, &end, 10);
    *count = value < 1 || value > FLEX_MAX_NUMBERS ? 0 : (int)value;
    return *count ? end : NULL;
}

/* Adds the arrays of "slope:6,bias:127"; "" has none. */
static int read_learned(Arrays *a, const char *text, const char *score_text, Err *e) {
    if (*text && !(score_text && *score_text))
        return err_set(e,
                       "--learned %s: these arrays are for --score, which is not given; name them "
                       "there, as in --score 'score - slope[h]*abs(q - k)'",
                       text);
    for (const char *at = text; *at;) {
        int count;
        char *name = a->name[a->n_learned % FLEX_MAX_LEARNED];
        const char *end = NULL;
        if (a->n_learned++ < FLEX_MAX_LEARNED) end = read_declaration(at, name, &count);
        if (!end || (*end && (*end != ',' || !end[1])))
            return err_set(e,
                           "--learned %s: found '%s'; expected are up to %d arrays NAME:N, the "
                           "name of letters, digits and '_' (at most %d), N how many numbers (1 to "
                           "%d), as in slope:6 or 'slope:6,bias:127'",
                           text, at, FLEX_MAX_LEARNED, FLEX_NAME - 1, FLEX_MAX_NUMBERS);
        arrays_add(a, name, NULL, count);
        at = *end ? end + 1 : end;
    }
    return 0;
}

static int parse(FlexProgram **p, const char *mask_text, const char *score_text, const Arrays *a,
                 int T, int B, int H, Err *e) {
    return flex_parse(p, mask_text, score_text, a->list, a->n, T, B, H, e);
}

/* a: the arrays but doc, which is T numbers. */
static int init_parts(Mask *m, const char *mask_text, const char *score_text, Arrays *a, int S,
                      int B, int H, int *doc, Err *e) {
    const bool names = mask_is_named(mask_text);
    if (names && init_names(m, mask_text, S, doc, e)) return -1;
    m->has_mask_expr = !names;
    m->has_score_expr = score_text && *score_text;
    if (m->offsets) arrays_add(a, "doc", doc, m->T);
    char expr[EXPRESSION_TEXT];
    FlexProgram *p = NULL, *code = NULL;
    if ((m->has_mask_expr || m->has_score_expr) &&
        parse(&p, names ? NULL : mask_text, score_text, a, m->T, B, H, e))
        return -1;
    m->flex = m->code = p;
    m->n_learned = p ? flex_learned(p) : 0;
    if (!names) return 0;
    names_as_expression(mask_text, expr);
    if (parse(&code, expr, score_text, a, m->T, B, H, e)) return -1;
    m->code = code;
    return 0;
}

/* Empties *m but for the text. */
static int keep_text(Mask *m, const char *mask_text, Err *e) {
    memset(m, 0, sizeof *m);
    if (strspn(mask_text, " \t") == strlen(mask_text))
        return err_set(e, "--mask is empty; give %s, or an expression such as 'q >= k'",
                       names_help);
    if (strlen(mask_text) >= sizeof m->text)
        return err_set(e, "--mask has %zu characters; at most %zu are kept, so shorten it",
                       strlen(mask_text), sizeof m->text - 1);
    strcpy(m->text, mask_text);
    return 0;
}

int mask_init(Mask *m, const char *mask_text, const char *score_text, const char *learned_text,
              int T, int S, int B, int H, Err *e) {
    CHECK(T > 0 && S > 0 && B > 0 && H > 0, "T %d, S %d, B %d, H %d", T, S, B, H);
    if (keep_text(m, mask_text, e)) return -1;
    m->T = T;
    int *data = calloc(2 * (size_t)T, sizeof *data);
    CHECK(data, "no memory for the frames of %d positions", T);
    for (int i = 0; i < T; i++) data[i] = i / S;
    Arrays a = {.n = 0};
    arrays_add(&a, "frame", data, T);
    int status = read_learned(&a, learned_text, score_text, e);
    if (!status) status = init_parts(m, mask_text, score_text, &a, S, B, H, data + T, e);
    free(data);
    if (status) mask_free(m);
    return status;
}

/* The text of a mask over each batch's documents as an expression; NULL for names that are none. */
static const char *documents_as_expression(const char *text) {
    if (!mask_is_named(text)) return text;
    const char *end;
    const Part part = read_part(text, &end);
    return part.name == NAME_DOCUMENT && !part.has_number && !*end ? "doc[q] == doc[k]" : NULL;
}

/* The expressions are tried on documents of 1, 1, 2, 3, 5, .. 89 positions. */
static int parse_documents(FlexProgram **p, const char *expr, const char *score_text, Arrays *a,
                           int H, Err *e) {
    enum { TRIAL_DOCS = 11, TRIAL_T = 232 };
    int doc[TRIAL_T], n = 0;
    for (int d = 0, rows = 1, next = 1; d < TRIAL_DOCS; d++) {
        for (int i = 0; i < rows; i++) doc[n++] = d;
        const int sum = rows + next;
        rows = next, next = sum;
    }
    CHECK(n == TRIAL_T, "%d positions", n);
    arrays_add(a, "doc", doc, n);
    return parse(p, expr, score_text, a, n, 1, H, e);
}

int mask_init_documents(Mask *m, const char *mask_text, const char *score_text,
                        const char *learned_text, int H, Err *e) {
    CHECK(H > 0, "H %d", H);
    if (keep_text(m, mask_text, e)) return -1;
    const char *expr = documents_as_expression(mask_text);
    if (!expr)
        return err_set(e,
                       "--mask %s: documents come with each batch here, so the one mask by name is "
                       "document; give it, or an expression with the factor doc[q] == doc[k], such "
                       "as 'doc[q] == doc[k] && k <= q'",
                       mask_text);
    FlexProgram *p;
    Arrays a = {.n = 0};
    if (read_learned(&a, learned_text, score_text, e)) return -1;
    if (parse_documents(&p, expr, score_text, &a, H, e)) return -1;
    if (!flex_by_document(p)) {
        flex_free(p);
        return err_set(e,
                       "--mask %s: this does not keep the documents of a batch apart in a way that "
                       "is recognised; join 'doc[q] == doc[k]' to the rest by &&, as in "
                       "'doc[q] == doc[k] && (REST)', or give document",
                       mask_text);
    }
    m->code = p;
    m->has_mask_expr = m->within = flex_has_rest(p);
    m->has_score_expr = flex_has_score(p);
    m->n_learned = flex_learned(p);
    if (m->has_mask_expr || m->has_score_expr) m->flex = p;
    mask_set_documents(m, (const int32_t[]){0}, 0);
    return 0;
}

/* The memory holds offsets, the document of each position (padded as flex_bind wants it), lo, hi.
 */
void mask_set_documents(Mask *m, const int32_t *offsets, int n_docs) {
    CHECK(m->code && flex_by_document(m->code) && (m->T == 0 || m->own_cap),
          "mask '%s' was not made for documents that come with each batch", m->text);
    CHECK(n_docs >= 0 && offsets[0] == 0, "%d documents, the first at %d", n_docs, offsets[0]);
    const int T = offsets[n_docs];
    const size_t n = (size_t)T, wanted = 4 * n + 1 + FLEX_PAD;
    if (wanted > m->own_cap) {
        free(m->own);
        m->own_cap = wanted + wanted / 2;
        m->own = malloc(m->own_cap * sizeof *m->own);
        CHECK(m->own, "no memory for the documents of %d positions", T);
    }
    int32_t *own_offsets = m->own, *doc = m->own + n + 1, *lo = doc + n + FLEX_PAD, *hi = lo + n;
    m->T = T;
    m->n_docs = n_docs;
    m->longest = 0;
    own_offsets[0] = 0;
    for (int d = 0; d < n_docs; d++) {
        const int begin = offsets[d], end = offsets[d + 1];
        CHECK(begin < end && end <= T, "document %d has the positions %d .. %d of %d", d, begin,
              end - 1, T);
        own_offsets[d + 1] = end;
        m->longest = largest(m->longest, end - begin);
        for (int i = begin; i < end; i++) doc[i] = d, lo[i] = begin, hi[i] = end;
    }
    for (int i = 0; i < FLEX_PAD; i++) doc[T + i] = n_docs - 1;
    m->offsets = own_offsets;
    m->lo = m->has_mask_expr ? NULL : lo;
    m->hi = m->has_mask_expr ? NULL : hi;
    flex_bind((FlexProgram *)(uintptr_t)m->code, "doc", doc, T);
}

void mask_free(Mask *m) {
    free(m->own);
    if (m->code != m->flex) flex_free((FlexProgram *)(uintptr_t)m->code);
    flex_free((FlexProgram *)(uintptr_t)m->flex); /* made here, const for its users */
    memset(m, 0, sizeof *m);
}

void mask_add_learned(ParamTable *p, Tensor **slot, ParamGroup group, const Mask *mask,
                      const char *name) {
    if (!mask || !mask->n_learned) return;
    params_add(p, slot, group, INIT_ZERO, 0, 1, (int64_t[]){mask->n_learned}, "%s", name);
    params_set_exact(p);
}

void mask_set_build(Mask *m, const char *cache, const char *compiler) {
    const FlexBuild build = {compiler, cache};
    if (m->flex) flex_set_build(m->flex, &build);
    if (m->code) flex_set_build(m->code, &build);
}

bool mask_sees(const Mask *m, int b, int h, int q, int k) {
    if (m->lo) return m->lo[q] <= k && k < m->hi[q];
    return flex_eval_mask(m->flex, b, h, q, k);
}

double mask_visible(const Mask *m, int Tq, int Tk, int offset) {
    CHECK(offset >= 0 && offset + Tq <= m->T, "queries %d .. %d, the mask knows %d positions",
          offset, offset + Tq - 1, m->T);
    if (!m->lo && m->offsets)
        return flex_visible_within(m->flex, m->offsets, m->n_docs, Tq, Tk, offset);
    if (!m->lo) return flex_visible(m->flex, Tq, Tk, offset);
    int64_t n = 0;
    for (int i = offset; i < offset + Tq; i++) n += largest(0, smallest(m->hi[i], Tk) - m->lo[i]);
    return (double)n;
}
