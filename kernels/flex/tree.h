/* Inside flex: the tree of an expression. Used by the files of kernels/flex alone.
 *
 * Nodes are shared: asking for a node that exists already gives the existing one, so a tree is a
 * graph in which equal subexpressions are one node, and generated code computes each once. Making a
 * node simplifies: constants are folded (never to infinity or NaN, never a division by zero), and
 * x + 0, x - 0, x * 1, x / 1 and - -x are x. x * 0 stays, since it is NaN where x is. */
#ifndef KERNELS_FLEX_TREE_H
#define KERNELS_FLEX_TREE_H

#include <stdbool.h>
#include <stddef.h>

#include "kernels/flex/flex.h"

enum { FLEX_MAX_NODES = 8192, FLEX_BUCKETS = 4096, FLEX_LANES = 64 };

typedef enum { FLEX_INT, FLEX_FLOAT } FlexType;

/*        op, arguments, generated C for ints, for floats. Text of one or two characters is an
 * operator between its arguments, longer text a function; NULL: printed by a rule of its own.
 * LOAD reads a learned array; its second argument is the array's length, a literal. */
#define FLEX_OPS(X)                      \
    X(LITERAL, 0, NULL, NULL)            \
    X(BATCH, 0, "b", NULL)               \
    X(HEAD, 0, "h", NULL)                \
    X(QUERY, 0, "q", NULL)               \
    X(KEY, 0, "k", NULL)                 \
    X(SCORE, 0, NULL, "score")           \
    X(INDEX, 1, NULL, NULL)              \
    X(LOAD, 2, NULL, NULL)               \
    X(TO_FLOAT, 1, NULL, NULL)           \
    X(NEG, 1, NULL, NULL)                \
    X(NOT, 1, NULL, NULL)                \
    X(OR, 2, NULL, NULL)                 \
    X(AND, 2, NULL, NULL)                \
    X(BIT_OR, 2, "|", NULL)              \
    X(BIT_XOR, 2, "^", NULL)             \
    X(BIT_AND, 2, "&", NULL)             \
    X(EQ, 2, "==", "==")                 \
    X(NE, 2, "!=", "!=")                 \
    X(LT, 2, "<", "<")                   \
    X(LE, 2, "<=", "<=")                 \
    X(GT, 2, ">", ">")                   \
    X(GE, 2, ">=", ">=")                 \
    X(ADD, 2, "flex_add", "+")           \
    X(SUB, 2, "flex_sub", "-")           \
    X(MUL, 2, "flex_mul", "*")           \
    X(DIV, 2, "flex_div", "flex_divide") \
    X(MOD, 2, "flex_mod", NULL)          \
    X(COND, 3, NULL, NULL)               \
    X(MIN, 2, "flex_imin", "flex_min")   \
    X(MAX, 2, "flex_imax", "flex_max")   \
    X(ABS, 1, "flex_iabs", "flex_abs")   \
    X(SIGN, 1, NULL, "flex_sign")        \
    X(FLOOR, 1, NULL, "flex_floor")      \
    X(CEIL, 1, NULL, "flex_ceil")        \
    X(EXP, 1, NULL, "flex_exp")          \
    X(EXP2, 1, NULL, "flex_exp2")        \
    X(LOG, 1, NULL, "flex_log")          \
    X(LOG2, 1, NULL, "flex_log2")        \
    X(SQRT, 1, NULL, "flex_sqrt")        \
    X(TANH, 1, NULL, "flex_tanh")        \
    X(SIGMOID, 1, NULL, "flex_sigmoid")  \
    X(POW, 2, NULL, NULL) /* second: literal */

#define FLEX_OP_ENUM(op, arity, i, f) FX_##op,
typedef enum { FLEX_OPS(FLEX_OP_ENUM) FX_COUNT } FlexOp;

/* What a node's value depends on. */
enum {
    ASKS_BATCH = 1,
    ASKS_HEAD = 2,
    ASKS_QUERY = 4,
    ASKS_KEY = 8,
    ASKS_SCORE = 16,
    ASKS_LEARNED = 32
};

typedef struct FlexNode FlexNode;
struct FlexNode {
    FlexOp op;
    FlexType type; /* of the value; arguments of one node are all of one type (COND's first: int;
                      NOT, AND and OR take ints) */
    union {
        int i; /* LITERAL; INDEX: which array; LOAD: where its array begins in env->learned */
        float f;
    } value;
    FlexNode *arg[3];
    int id, depth, at; /* at: the place in the text */
    unsigned asks;
    bool may_fault; /* holds a division by, or an index of, something not known to be good */
    FlexNode *next; /* in its hash bucket */
    bool derived;
    FlexNode *derivative; /* by FlexTree.by, once derived; NULL: zero everywhere */
};

typedef struct FlexTree {
    FlexNode *node; /* FLEX_MAX_NODES of them */
    int n_nodes;
    bool full; /* no room was left: the tree must not be used */
    FlexNode *bucket[FLEX_BUCKETS];
    int at;             /* the place given to nodes made from now on */
    const FlexNode *by; /* what derivatives are by at present */
} FlexTree;

typedef struct FlexMemory FlexMemory;

typedef struct FlexLearned {
    char name[FLEX_NAME];
    int begin, length; /* in env->learned */
} FlexLearned;

/* index: into env->learned, brought inside its array */
typedef struct FlexCapture {
    FlexNode *index, *grad;
} FlexCapture;

struct FlexProgram {
    FlexTree tree;
    FlexNode *mask, *score, *grad; /* NULL: no such expression; grad is of score */
    FlexNode *rest;   /* mask without the factor doc[q] == doc[k]; NULL: nothing left */
    bool by_document; /* mask has that factor */
    char *mask_text, *score_text;
    FlexEnv env;
    int n_arrays, T, B, H;
    char name[FLEX_MAX_ARRAYS][FLEX_NAME];
    int *storage[FLEX_MAX_ARRAYS]; /* behind env */
    FlexLearned learned[FLEX_MAX_LEARNED];
    FlexCapture capture[FLEX_MAX_CAPTURES];
    int n_learned, n_captures;
    FlexMemory *memory; /* what it remembers: plans, counts, modules */
};

struct FlexMemory {
    struct FlexPlanEntry *plans;
    struct FlexCount *counts;
    struct FlexLoaded *modules;
    char *compiler, *cache; /* NULL: the default */
    char *prelude;          /* NULL: not asked for yet */
};

/* tree.c */
extern const int flex_arity[FX_COUNT];
extern const char *const flex_int_text[FX_COUNT], *const flex_float_text[FX_COUNT];

FlexNode *flex_int(FlexTree *t, int value);
FlexNode *flex_float(FlexTree *t, float value);
FlexNode *flex_leaf(FlexTree *t, FlexOp op); /* b, h, q, k, score */
/* Any other op. Arguments past its arity are NULL; they must be of types that the op takes. Done
 * here: an int beside a float becomes a float, and where C asks whether a float is true, it is
 * compared with 0. value: INDEX's and LOAD's. */
FlexNode *flex_node(FlexTree *t, FlexOp op, int value, FlexNode *a, FlexNode *b, FlexNode *c);
FlexNode *flex_to_float(FlexTree *t, FlexNode *a);
bool flex_is_literal(const FlexNode *n, float value); /* of either type */

/* parse.c: NULL and a sentence for anything outside the language. option: "--mask" or "--score". */
FlexNode *flex_parse_expression(FlexProgram *p, const char *option, const char *text,
                                bool score_allowed, Err *e);
/* Whether the language means something by this word already. */
bool flex_is_word(const char *name);
/* "option: sentence", the text and a caret under place `at`; returns -1. */
int flex_caret(Err *e, const char *option, const char *text, int at, const char *sentence);

/* derive.c: d n / d x, x the score or a LOAD; NULL where it is zero everywhere. */
FlexNode *flex_derive(FlexTree *t, FlexNode *n, const FlexNode *x);

/* capture.c: fills the program's captures from its score. -1 and a sentence for too many, and for a
 * learned array that has none. */
int flex_find_captures(FlexProgram *p, Err *e);
/* The name that the prelude gives to what a capture's index asks. */
const char *flex_capture_kind(const FlexCapture *c);

/* eval.c */
typedef struct FlexFault {
    const FlexNode *node; /* NULL: none */
    int b, h, q, k, index;
} FlexFault;

typedef union FlexLanes {
    int i[FLEX_LANES];
    float f[FLEX_LANES];
} FlexLanes;

/* n <= FLEX_LANES keys from k on; score NULL: 0. fault NULL: divisions by zero give 0 and indices
 * are clamped; otherwise the first that happens is reported too, if *fault is empty. */
void flex_eval(const FlexEnv *env, const FlexNode *x, int b, int h, int q, int k, int n,
               const float *score, FlexLanes *out, FlexFault *fault);

/* check.c: evaluates everywhere, as flex_parse promises. */
int flex_check(const FlexProgram *p, Err *e);

/* plan.c, module.c */
void flex_forget_plans(FlexMemory *m);
void flex_forget_modules(FlexMemory *m);

#endif
