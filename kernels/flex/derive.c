/* The symbolic derivative, by the score or by an element of a learned array. NULL stands for zero
 * everywhere, so that a product with it vanishes instead of becoming 0 x, which is NaN where x is
 * not finite. */
#include "kernels/flex/tree.h"

static FlexNode *op1(FlexTree *t, FlexOp op, FlexNode *a) {
    return flex_node(t, op, 0, a, NULL, NULL);
}

static FlexNode *op2(FlexTree *t, FlexOp op, FlexNode *a, FlexNode *b) {
    return flex_node(t, op, 0, a, b, NULL);
}

/* a b, with the constants of a = c and b = c' x drawn together: inner derivatives are often the
 * inverse of an outer factor, as in c tanh(score / c). */
static FlexNode *times(FlexTree *t, FlexNode *a, FlexNode *b) {
    if (a->op != FX_LITERAL && b->op == FX_LITERAL) return times(t, b, a);
    if (a->op == FX_LITERAL && b->op == FX_MUL && b->arg[0]->op == FX_LITERAL)
        return times(t, op2(t, FX_MUL, a, b->arg[0]), b->arg[1]);
    return op2(t, FX_MUL, a, b);
}

static FlexNode *choose(FlexTree *t, FlexNode *condition, FlexNode *da, FlexNode *db) {
    if (!da && !db) return NULL;
    FlexNode *zero = flex_float(t, 0.0f);
    return flex_node(t, FX_COND, 0, condition, da ? da : zero, db ? db : zero);
}

/* d (a / b) = (da - (a / b) db) / b: the quotient x itself is at hand */
static FlexNode *quotient(FlexTree *t, FlexNode *x, FlexNode *da, FlexNode *db) {
    FlexNode *top = da;
    if (db) {
        FlexNode *part = times(t, x, db);
        top = da ? op2(t, FX_SUB, da, part) : op1(t, FX_NEG, part);
    }
    return top ? op2(t, FX_DIV, top, x->arg[1]) : NULL;
}

static FlexNode *product(FlexTree *t, FlexNode *a, FlexNode *b, FlexNode *da, FlexNode *db) {
    FlexNode *left = da ? times(t, da, b) : NULL;
    FlexNode *right = db ? times(t, a, db) : NULL;
    return left && right ? op2(t, FX_ADD, left, right) : left ? left : right;
}

/* d x / d a of a function x of one argument a (and of pow by its base), expressed by x where that
 * is shorter. */
static FlexNode *slope(FlexTree *t, FlexNode *x) {
    FlexNode *a = x->arg[0], *one = flex_float(t, 1.0f);
    switch (x->op) {
        case FX_ABS:
            return op1(t, FX_SIGN, a);
        case FX_EXP:
            return x;
        case FX_EXP2:
            return times(t, flex_float(t, 0.693147181f), x);
        case FX_LOG:
            return op2(t, FX_DIV, one, a);
        case FX_LOG2:
            return op2(t, FX_DIV, flex_float(t, 1.44269504f), a);
        case FX_SQRT:
            return op2(t, FX_DIV, flex_float(t, 0.5f), x);
        case FX_TANH:
            return op2(t, FX_SUB, one, times(t, x, x));
        case FX_SIGMOID:
            return times(t, x, op2(t, FX_SUB, one, x));
        case FX_POW: {
            FlexNode *less = flex_float(t, x->arg[1]->value.f - 1.0f);
            return times(t, x->arg[1], op2(t, FX_POW, a, less));
        }
        default:
            CHECK(false, "op %d has no derivative", (int)x->op);
    }
}

static FlexNode *derive(FlexTree *t, FlexNode *n);

static FlexNode *rule(FlexTree *t, FlexNode *x) {
    const unsigned asks = t->by->op == FX_SCORE ? ASKS_SCORE : ASKS_LEARNED;
    if (x == t->by) return flex_float(t, 1.0f);
    if (!(x->asks & asks) || x->type == FLEX_INT) return NULL;
    FlexNode *a = x->arg[0], *b = x->arg[1];
    switch (x->op) {
        case FX_LOAD:     /* of another element */
        case FX_TO_FLOAT: /* of a comparison: it jumps, and is flat elsewhere */
        case FX_SIGN:
        case FX_FLOOR:
        case FX_CEIL:
            return NULL;
        case FX_COND:
            return choose(t, a, derive(t, b), derive(t, x->arg[2]));
        case FX_MIN:
            return choose(t, op2(t, FX_LT, a, b), derive(t, a), derive(t, b));
        case FX_MAX:
            return choose(t, op2(t, FX_GT, a, b), derive(t, a), derive(t, b));
        case FX_MUL:
            return product(t, a, b, derive(t, a), derive(t, b));
        case FX_DIV:
            return quotient(t, x, derive(t, a), derive(t, b));
        case FX_NEG: {
            FlexNode *da = derive(t, a);
            return da ? op1(t, FX_NEG, da) : NULL;
        }
        case FX_ADD:
        case FX_SUB: {
            FlexNode *da = derive(t, a), *db = derive(t, b);
            if (da && db) return op2(t, x->op, da, db);
            return da ? da : db && x->op == FX_SUB ? op1(t, FX_NEG, db) : db;
        }
        default: {
            FlexNode *da = derive(t, a);
            return da ? times(t, da, slope(t, x)) : NULL;
        }
    }
}

static FlexNode *derive(FlexTree *t, FlexNode *n) {
    if (!n->derived) {
        FlexNode *d = rule(t, n);
        n->derivative = d;
        n->derived = true;
    }
    return n->derivative;
}

FlexNode *flex_derive(FlexTree *t, FlexNode *n, const FlexNode *x) {
    if (t->by != x)
        for (int i = 0; i < t->n_nodes; i++) t->node[i].derived = false;
    t->by = x;
    return derive(t, n);
}
