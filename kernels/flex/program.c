/* A program's life: parse, differentiate, check everywhere, free. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/flex/tree.h"

static void *allocate(size_t n, size_t size) {
    void *p = calloc(n, size);
    CHECK(p, "no memory for %zu elements of %zu bytes", n, size);
    return p;
}

static int copy_array(FlexProgram *p, const FlexArray *a, Err *e) {
    CHECK(p->n_arrays < FLEX_MAX_ARRAYS, "more than %d arrays", FLEX_MAX_ARRAYS);
    if (a->length < p->T)
        return err_set(e,
                       "array '%s' has %d elements and there are %d positions; give one "
                       "element a position",
                       a->name, a->length, p->T);
    const int i = p->n_arrays++;
    p->storage[i] = allocate((size_t)a->length + FLEX_PAD, sizeof(int));
    memcpy(p->storage[i], a->data, (size_t)a->length * sizeof(int));
    for (int j = 0; j < FLEX_PAD; j++) p->storage[i][a->length + j] = a->data[a->length - 1];
    p->env.array[i] = p->storage[i];
    p->env.length[i] = a->length;
    snprintf(p->name[i], FLEX_NAME, "%s", a->name);
    return 0;
}

static int declare_learned(FlexProgram *p, const FlexArray *a, Err *e) {
    CHECK(p->n_learned < FLEX_MAX_LEARNED, "more than %d learned arrays", FLEX_MAX_LEARNED);
    CHECK(a->length > 0 && a->length <= FLEX_MAX_NUMBERS, "%d numbers in an array", a->length);
    bool taken = flex_is_word(a->name);
    for (int i = 0; i < p->n_arrays; i++) taken |= !strcmp(p->name[i], a->name);
    for (int i = 0; i < p->n_learned; i++) taken |= !strcmp(p->learned[i].name, a->name);
    if (taken)
        return err_set(e, "--learned %s: the name is taken in expressions; choose another",
                       a->name);
    const int begin = flex_learned(p);
    FlexLearned *l = &p->learned[p->n_learned++];
    *l = (FlexLearned){.begin = begin, .length = a->length};
    snprintf(l->name, sizeof l->name, "%s", a->name);
    return 0;
}

static int take_arrays(FlexProgram *p, const FlexArray *arrays, int n, Err *e) {
    for (int i = 0; i < n; i++) {
        const FlexArray *a = &arrays[i];
        CHECK(strlen(a->name) < FLEX_NAME, "array name '%s' is too long", a->name);
        if (a->data ? copy_array(p, a, e) : declare_learned(p, a, e)) return -1;
    }
    return 0;
}

/* Whether n is doc[q] == doc[k], either side first. */
static bool is_same_document(const FlexProgram *p, const FlexNode *n) {
    if (n->op != FX_EQ) return false;
    const FlexNode *l = n->arg[0], *r = n->arg[1];
    if (l->op != FX_INDEX || r->op != FX_INDEX || l->value.i != r->value.i) return false;
    if (strcmp(p->name[l->value.i], "doc")) return false;
    const FlexOp a = l->arg[0]->op, b = r->arg[0]->op;
    return (a == FX_QUERY && b == FX_KEY) || (a == FX_KEY && b == FX_QUERY);
}

/* What is left of n without the factors that are doc[q] == doc[k], or true; NULL: nothing. */
static FlexNode *without_document(FlexProgram *p, FlexNode *n) {
    if (is_same_document(p, n)) {
        p->by_document = true;
        return NULL;
    }
    if (n->op == FX_LITERAL && n->value.i) return NULL;
    if (n->op != FX_AND) return n;
    FlexNode *l = without_document(p, n->arg[0]), *r = without_document(p, n->arg[1]);
    if (!l || !r) return l ? l : r;
    return flex_node(&p->tree, FX_AND, 0, l, r, NULL);
}

static int parse_both(FlexProgram *p, Err *e) {
    if (p->mask_text) {
        p->mask = flex_parse_expression(p, "--mask", p->mask_text, false, e);
        if (!p->mask) return -1;
        p->rest = without_document(p, p->mask);
    }
    if (p->score_text) {
        p->score = flex_parse_expression(p, "--score", p->score_text, true, e);
        if (!p->score) return -1;
        p->grad = flex_derive(&p->tree, p->score, flex_leaf(&p->tree, FX_SCORE));
    }
    const int status = flex_find_captures(p, e);
    if (p->tree.full)
        return err_set(e, "--score: the derivative has more than %d parts; shorten the expression",
                       FLEX_MAX_NODES);
    return status ? -1 : flex_check(p, e);
}

int flex_parse(FlexProgram **out, const char *mask_text, const char *score_text,
               const FlexArray *arrays, int n_arrays, int T, int B, int H, Err *e) {
    CHECK(T > 0 && B > 0 && H > 0, "T %d, B %d, H %d", T, B, H);
    *out = NULL;
    FlexProgram *p = allocate(1, sizeof *p);
    p->tree.node = allocate(FLEX_MAX_NODES, sizeof *p->tree.node);
    p->memory = allocate(1, sizeof *p->memory);
    p->T = T;
    p->B = B;
    p->H = H;
    if (mask_text && *mask_text) p->mask_text = strdup(mask_text);
    if (score_text && *score_text) p->score_text = strdup(score_text);
    if (take_arrays(p, arrays, n_arrays, e) || parse_both(p, e)) {
        flex_free(p);
        return -1;
    }
    *out = p;
    return 0;
}

void flex_free(FlexProgram *p) {
    if (!p) return;
    flex_forget_plans(p->memory);
    flex_forget_modules(p->memory);
    free(p->memory);
    for (int i = 0; i < p->n_arrays; i++) free(p->storage[i]);
    free(p->mask_text);
    free(p->score_text);
    free(p->tree.node);
    free(p);
}

bool flex_has_mask(const FlexProgram *p) { return p->mask; }
bool flex_has_score(const FlexProgram *p) { return p->score; }
bool flex_by_document(const FlexProgram *p) { return p->by_document; }
bool flex_has_rest(const FlexProgram *p) { return p->rest; }
bool flex_mask_asks_batch(const FlexProgram *p) { return p->mask && p->mask->asks & ASKS_BATCH; }
bool flex_mask_asks_head(const FlexProgram *p) { return p->mask && p->mask->asks & ASKS_HEAD; }

bool flex_score_asks(const FlexProgram *p, char name) {
    const unsigned bit = name == 'b'   ? ASKS_BATCH
                         : name == 'h' ? ASKS_HEAD
                         : name == 'q' ? ASKS_QUERY
                                       : ASKS_KEY;
    return p->score && p->score->asks & bit;
}

void flex_bind(FlexProgram *p, const char *name, const int *data, int length) {
    int i = 0;
    while (i < p->n_arrays && strcmp(p->name[i], name)) i++;
    CHECK(i < p->n_arrays, "the program has no array '%s'", name);
    p->env.array[i] = data;
    p->env.length[i] = p->T = length;
    flex_forget_plans(p->memory);
}

const FlexEnv *flex_env(const FlexProgram *p) { return &p->env; }
