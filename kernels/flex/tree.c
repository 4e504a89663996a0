#include "kernels/flex/tree.h"

#include <math.h>
#include <string.h>

#define FLEX_OP_ARITY(op, arity, i, f) arity,
#define FLEX_OP_INT(op, arity, i, f) i,
#define FLEX_OP_FLOAT(op, arity, i, f) f,
const int flex_arity[FX_COUNT] = {FLEX_OPS(FLEX_OP_ARITY)};
const char *const flex_int_text[FX_COUNT] = {FLEX_OPS(FLEX_OP_INT)};
const char *const flex_float_text[FX_COUNT] = {FLEX_OPS(FLEX_OP_FLOAT)};

static unsigned hash(const FlexNode *n) {
    unsigned h = (unsigned)n->op * 2654435761u + (unsigned)n->type;
    h = h * 31 + (unsigned)n->value.i;
    for (int i = 0; i < 3; i++) h = h * 8191 + (n->arg[i] ? (unsigned)n->arg[i]->id + 1 : 0);
    return (h ^ h >> 15) % FLEX_BUCKETS;
}

static bool same(const FlexNode *a, const FlexNode *b) {
    return a->op == b->op && a->type == b->type && a->value.i == b->value.i &&
           a->arg[0] == b->arg[0] && a->arg[1] == b->arg[1] && a->arg[2] == b->arg[2];
}

/* A divisor that is a literal is known to be good or bad when it is read; so is q or k as an index,
 * since arrays of int have an element for every position. */
static bool faults_itself(const FlexNode *n) {
    if (n->op == FX_INDEX) return n->arg[0]->op != FX_QUERY && n->arg[0]->op != FX_KEY;
    if (n->op == FX_LOAD) return true;
    if (n->op == FX_MOD || (n->op == FX_DIV && n->type == FLEX_INT))
        return n->arg[1]->op != FX_LITERAL || n->arg[1]->value.i == 0;
    return false;
}

/* The one node that equals n; n itself if there was none. */
static FlexNode *intern(FlexTree *t, FlexNode n) {
    FlexNode **bucket = &t->bucket[hash(&n)];
    for (FlexNode *x = *bucket; x; x = x->next)
        if (same(x, &n)) return x;
    if (t->n_nodes == FLEX_MAX_NODES) {
        t->full = true; /* the caller looks at it when the whole tree is made */
        return t->node;
    }
    n.id = t->n_nodes;
    n.at = t->at;
    n.depth = 1;
    n.may_fault = faults_itself(&n);
    for (int i = 0; i < flex_arity[n.op]; i++) {
        n.asks |= n.arg[i]->asks;
        n.may_fault |= n.arg[i]->may_fault;
        if (n.depth <= n.arg[i]->depth) n.depth = n.arg[i]->depth + 1;
    }
    n.next = *bucket;
    t->node[t->n_nodes] = n;
    return *bucket = &t->node[t->n_nodes++];
}

FlexNode *flex_int(FlexTree *t, int value) {
    return intern(t, (FlexNode){.op = FX_LITERAL, .type = FLEX_INT, .value.i = value});
}

FlexNode *flex_float(FlexTree *t, float value) {
    return intern(t, (FlexNode){.op = FX_LITERAL, .type = FLEX_FLOAT, .value.f = value});
}

FlexNode *flex_leaf(FlexTree *t, FlexOp op) {
    FlexNode n = {.op = op, .type = op == FX_SCORE ? FLEX_FLOAT : FLEX_INT};
    n.asks = op == FX_BATCH   ? ASKS_BATCH
             : op == FX_HEAD  ? ASKS_HEAD
             : op == FX_QUERY ? ASKS_QUERY
             : op == FX_KEY   ? ASKS_KEY
                              : ASKS_SCORE;
    return intern(t, n);
}

bool flex_is_literal(const FlexNode *n, float value) {
    if (n->op != FX_LITERAL) return false;
    return n->type == FLEX_INT ? (float)n->value.i == value : n->value.f == value;
}

FlexNode *flex_to_float(FlexTree *t, FlexNode *a) {
    return a->type == FLEX_FLOAT ? a : flex_node(t, FX_TO_FLOAT, 0, a, NULL, NULL);
}

static FlexType result_type(const FlexNode *n) {
    switch (n->op) {
        case FX_INDEX:
        case FX_NOT:
        case FX_OR:
        case FX_AND:
        case FX_EQ:
        case FX_NE:
        case FX_LT:
        case FX_LE:
        case FX_GT:
        case FX_GE:
            return FLEX_INT;
        case FX_LOAD:
        case FX_TO_FLOAT:
            return FLEX_FLOAT;
        case FX_COND:
            return n->arg[1]->type;
        default:
            return n->arg[0]->type;
    }
}

/* The node that n equals for every value, NaN included, or NULL. */
static FlexNode *simpler(const FlexNode *n) {
    FlexNode *a = n->arg[0], *b = n->arg[1];
    switch (n->op) {
        case FX_ADD:
            if (flex_is_literal(a, 0)) return b;
            return flex_is_literal(b, 0) ? a : NULL;
        case FX_SUB:
            return flex_is_literal(b, 0) ? a : NULL;
        case FX_MUL:
            if (flex_is_literal(a, 1)) return b;
            return flex_is_literal(b, 1) ? a : NULL;
        case FX_DIV:
        case FX_POW:
            return flex_is_literal(b, 1) ? a : NULL;
        case FX_NEG:
            return a->op == FX_NEG ? a->arg[0] : NULL;
        case FX_COND:
            if (a->op == FX_LITERAL) return a->value.i ? b : n->arg[2];
            return b == n->arg[2] && !a->may_fault ? b : NULL;
        default:
            return NULL;
    }
}

static FlexNode *folded(FlexTree *t, const FlexNode *n) {
    for (int i = 0; i < flex_arity[n->op]; i++)
        if (n->arg[i]->op != FX_LITERAL) return NULL;
    if (n->op == FX_INDEX || faults_itself(n)) return NULL;
    FlexLanes value;
    flex_eval(NULL, n, 0, 0, 0, 0, 1, NULL, &value, NULL);
    if (n->type == FLEX_INT) return flex_int(t, value.i[0]);
    return isfinite(value.f[0]) ? flex_float(t, value.f[0]) : NULL;
}

FlexNode *flex_node(FlexTree *t, FlexOp op, int value, FlexNode *a, FlexNode *b, FlexNode *c) {
    FlexNode n = {.op = op, .arg = {a, b, c}};
    if (op == FX_INDEX || op == FX_LOAD) n.value.i = value;
    if (op == FX_LOAD) n.asks = ASKS_LEARNED;
    /* how many of the arguments are asked whether they are true */
    const int truths = op == FX_NOT || op == FX_COND ? 1 : op == FX_OR || op == FX_AND ? 2 : 0;
    bool any_float = false;
    for (int i = 0; i < truths; i++)
        if (n.arg[i]->type == FLEX_FLOAT)
            n.arg[i] = flex_node(t, FX_NE, 0, n.arg[i], flex_float(t, 0), NULL);
    for (int i = truths; i < flex_arity[op]; i++) any_float |= n.arg[i]->type == FLEX_FLOAT;
    if (any_float)
        for (int i = truths; i < flex_arity[op]; i++) n.arg[i] = flex_to_float(t, n.arg[i]);
    n.type = result_type(&n);

    FlexNode *s = simpler(&n);
    if (!s) s = folded(t, &n);
    return s ? s : intern(t, n);
}
