/* From tree to C. Everything is printed from the tree, by the words of the table in tree.h and the
 * rules here. A node that is used more than once becomes a named constant, so
 * each is computed once. Both sides of ?:, && and || are computed: there are no branches, which is
 * what lets the compiler vectorise the loop that this code is put into. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/flex/flex_math.h" /* so that a change of it rebuilds this file, which embeds it */
#include "kernels/flex/tree.h"

__asm__(
    ".pushsection .rodata\n"
    "flex_math_text:\n"
    ".incbin \"kernels/flex/flex_math.h\"\n"
    ".byte 0\n"
    ".popsection\n");
extern const char flex_math_text[];

typedef struct Printer {
    FILE *out;
    int *uses; /* by node id */
    int *name; /* by node id: t1, t2, ...; 0 where it has none yet */
    int n_names;
} Printer;

static void print_node(Printer *w, const FlexNode *n);

static void count_uses(Printer *w, const FlexNode *n) {
    if (w->uses[n->id]++) return;
    for (int i = 0; i < flex_arity[n->op]; i++) count_uses(w, n->arg[i]);
}

static void print_literal(Printer *w, const FlexNode *n) {
    if (n->type == FLEX_INT) {
        if (n->value.i == -2147483647 - 1)
            fprintf(w->out, "(-2147483647 - 1)");
        else
            fprintf(w->out, n->value.i < 0 ? "(%d)" : "%d", n->value.i);
        return;
    }
    char digits[64];
    snprintf(digits, sizeof digits, "%.9g", (double)n->value.f);
    const char *point = strpbrk(digits, ".e") ? "" : ".0";
    fprintf(w->out, n->value.f < 0 ? "(%s%sf)" : "%s%sf", digits, point);
}

static bool is_truth(const FlexNode *n) { /* known to be 0 or 1 */
    return n->op == FX_NOT || n->op == FX_AND || n->op == FX_OR ||
           (n->op >= FX_EQ && n->op <= FX_GE);
}

static void print_truth(Printer *w, const FlexNode *n) {
    if (!is_truth(n)) fputs("(", w->out);
    print_node(w, n);
    if (!is_truth(n)) fputs(" != 0)", w->out);
}

static void print_index(Printer *w, const FlexNode *n) {
    const FlexNode *i = n->arg[0];
    fprintf(w->out, "env->array[%d][", n->value.i);
    if (i->op == FX_QUERY || i->op == FX_KEY) { /* positions have an element each, see flex_env */
        print_node(w, i);
    } else {
        fputs("flex_clamp(", w->out);
        print_node(w, i);
        fprintf(w->out, ", env->length[%d])", n->value.i);
    }
    fputs("]", w->out);
}

/* Not by flex_clamp: with a constant length GCC widens its result, and then gathers nothing. */
static void print_load(Printer *w, const FlexNode *n) {
    fprintf(w->out, "env->learned[%d + flex_imin(flex_imax(", n->value.i);
    print_node(w, n->arg[0]);
    fprintf(w->out, ", 0), %d)]", n->arg[1]->value.i - 1);
}

static void print_infix(Printer *w, const FlexNode *n, const char *sign,
                        void (*print)(Printer *, const FlexNode *)) {
    fputs("(", w->out);
    print(w, n->arg[0]);
    fprintf(w->out, " %s ", sign);
    print(w, n->arg[1]);
    fputs(")", w->out);
}

static void print_call(Printer *w, const FlexNode *n, const char *function, int arity) {
    fprintf(w->out, "%s(", function);
    for (int i = 0; i < arity; i++) {
        if (i) fputs(", ", w->out);
        print_node(w, n->arg[i]);
    }
    fputs(")", w->out);
}

static void print_wrapped(Printer *w, const char *before, const FlexNode *n) {
    fputs(before, w->out);
    print_node(w, n);
    fputs(")", w->out);
}

static void print_pow(Printer *w, const FlexNode *n) {
    const float c = n->arg[1]->value.f;
    if (c != flex_floor(c)) {
        print_call(w, n, "flex_pow", 2);
        return;
    }
    fputs("flex_powi(", w->out);
    print_node(w, n->arg[0]);
    fprintf(w->out, ", %d)", (int)c);
}

static void print_op(Printer *w, const FlexNode *n) {
    const bool ints = flex_arity[n->op] ? n->arg[0]->type == FLEX_INT : n->type == FLEX_INT;
    const char *text = ints ? flex_int_text[n->op] : flex_float_text[n->op];
    switch (n->op) {
        case FX_LITERAL:
            print_literal(w, n);
            return;
        case FX_INDEX:
            print_index(w, n);
            return;
        case FX_LOAD:
            print_load(w, n);
            return;
        case FX_TO_FLOAT:
            print_wrapped(w, "(float)(", n->arg[0]);
            return;
        case FX_NEG:
            print_wrapped(w, ints ? "flex_sub(0, " : "(-", n->arg[0]);
            return;
        case FX_NOT:
            print_wrapped(w, "(0 == ", n->arg[0]);
            return;
        case FX_AND:
            print_infix(w, n, "&", print_truth);
            return;
        case FX_OR:
            print_infix(w, n, "|", print_truth);
            return;
        case FX_COND:
            print_call(w, n, n->type == FLEX_INT ? "flex_iselect" : "flex_select", 3);
            return;
        case FX_POW:
            print_pow(w, n);
            return;
        default:
            break;
    }
    CHECK(text, "op %d has no C text for %s", (int)n->op, ints ? "ints" : "floats");
    if (flex_arity[n->op] == 0)
        fputs(text, w->out);
    else if (strlen(text) <= 2)
        print_infix(w, n, text, print_node);
    else
        print_call(w, n, text, flex_arity[n->op]);
}

static void print_node(Printer *w, const FlexNode *n) {
    if (w->name[n->id])
        fprintf(w->out, "t%d", w->name[n->id]);
    else
        print_op(w, n);
}

/* Names, in an order in which each is defined before it is used. */
static void print_names(Printer *w, const FlexNode *n) {
    if (flex_arity[n->op] == 0 || w->name[n->id]) return;
    for (int i = 0; i < flex_arity[n->op]; i++) print_names(w, n->arg[i]);
    if (w->uses[n->id] < 2) return;
    fprintf(w->out, "    const %s t%d = ", n->type == FLEX_INT ? "int" : "float", w->n_names + 1);
    print_op(w, n);
    fputs(";\n", w->out);
    w->name[n->id] = ++w->n_names;
}

/* truth: an int is asked whether it is true. */
static void print_function(FILE *out, const char *head, const FlexNode *n, bool truth,
                           const char *stand_in) {
    fprintf(out, "\n%s {\n    (void)b, (void)h, (void)q, (void)k, (void)env;\n", head);
    if (!n) {
        fprintf(out, "    return %s;\n}\n", stand_in);
        return;
    }
    Printer w = {.out = out};
    w.uses = calloc(2 * FLEX_MAX_NODES, sizeof *w.uses);
    CHECK(w.uses, "no memory for the names of %d nodes", FLEX_MAX_NODES);
    w.name = w.uses + FLEX_MAX_NODES;
    count_uses(&w, n);
    print_names(&w, n);
    fputs("    return ", out);
    (truth ? print_truth : print_node)(&w, n);
    fputs(";\n}\n", out);
    free(w.uses);
}

static void print_captures(FILE *out, const FlexProgram *p, const char *arguments) {
    const int n = p ? flex_captures(p) : 0;
    char head[160];
    fprintf(out, "\n#define FLEX_CAPTURES %d\n#define FLEX_LEARNED %d\n", n,
            p ? flex_learned(p) : 0);
    fputs(
        "enum { FLEX_ONE_PLACE, FLEX_BY_DISTANCE, FLEX_ANY_PLACE };\n"
        "#define FLEX_EACH_CAPTURE(X)",
        out);
    for (int j = 0; j < n; j++) fprintf(out, " X(%d, %s)", j, flex_capture_kind(&p->capture[j]));
    fputs("\n", out);
    for (int j = 0; j < n; j++) {
        snprintf(head, sizeof head, "FLEX_INLINE int flex_capture_index_%d(%s", j, arguments);
        print_function(out, head, p->capture[j].index, false, NULL);
        snprintf(head, sizeof head, "FLEX_INLINE float flex_capture_grad_%d(float score, %s", j,
                 arguments);
        print_function(out, head, p->capture[j].grad, false, NULL);
    }
}

char *flex_prelude(const FlexProgram *p) {
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    CHECK(out, "no memory for generated code");
    const bool score = p && p->score, mask = p && p->mask, by_document = p && p->by_document;
    fputs(flex_math_text, out);
    fprintf(out,
            "\ntypedef struct FlexEnv {\n    const int *array[8];\n    int length[8];\n"
            "    const float *learned;\n} FlexEnv;\n"
            "\n#define FLEX_HAS_SCORE %d\n#define FLEX_HAS_MASK %d\n"
            "#define FLEX_BY_DOCUMENT %d\n#define FLEX_HAS_REST %d\n",
            score, mask, by_document, by_document && p->rest);
    const char *const arguments = "int b, int h, int q, int k, const FlexEnv *env)";
    char head[160];
    snprintf(head, sizeof head, "FLEX_INLINE float flex_score(float score, %s", arguments);
    print_function(out, head, score ? p->score : NULL, false, "score");
    snprintf(head, sizeof head, "FLEX_INLINE float flex_score_grad(float score, %s", arguments);
    print_function(out, head, score ? p->grad : NULL, false, score ? "0.0f" : "1.0f");
    snprintf(head, sizeof head, "FLEX_INLINE int flex_mask(%s", arguments);
    print_function(out, head, mask ? p->mask : NULL, true, "1");
    snprintf(head, sizeof head, "FLEX_INLINE int flex_rest(%s", arguments);
    print_function(out, head, by_document ? p->rest : NULL, true, "1");
    print_captures(out, p, arguments);
    CHECK(fclose(out) == 0 && text, "no memory for generated code");
    return text;
}

const char *flex_prelude_kept(const FlexProgram *p) {
    FlexMemory *m = p->memory;
    if (!m->prelude) m->prelude = flex_prelude(p);
    return m->prelude;
}
