/* The interpreter: a walk over the tree that computes FLEX_LANES keys at each node. A node that
 * depends on neither key nor score is computed once for all of them. */
#include <string.h>

#include "kernels/flex/flex_math.h"
#include "kernels/flex/tree.h"

/* active: the lanes whose value anybody asks for, NULL for all. It matters to faults alone: values
 * are computed in every lane, and `?:` then chooses. */
typedef struct Lanes {
    const FlexEnv *env;
    int b, h, q, k;
    const float *score;
    FlexFault *fault;
} Lanes;

static void eval(const Lanes *at, const FlexNode *x, int n, const unsigned char *active,
                 FlexLanes *out);

static void report(const Lanes *at, const FlexNode *x, int lane, int index) {
    *at->fault = (FlexFault){x, at->b, at->h, at->q, at->k + lane, index};
}

static bool listens(const Lanes *at) { return at->fault && !at->fault->node; }

static void find_zero(const Lanes *at, const FlexNode *x, int n, const unsigned char *active,
                      const int *divisor) {
    for (int i = 0; listens(at) && i < n; i++)
        if (divisor[i] == 0 && (!active || active[i])) report(at, x, i, 0);
}

static void find_outside(const Lanes *at, const FlexNode *x, int n, const unsigned char *active,
                         const int *index, int length) {
    for (int i = 0; listens(at) && i < n; i++)
        if ((index[i] < 0 || index[i] >= length) && (!active || active[i]))
            report(at, x, i, index[i]);
}

static void eval_index(const Lanes *at, const FlexNode *x, int n, const unsigned char *active,
                       FlexLanes *out) {
    const int *array = at->env->array[x->value.i], length = at->env->length[x->value.i];
    FlexLanes index;
    if (x->arg[0]->op == FX_KEY) { /* one piece of the array, which reaches beyond the last key */
        memcpy(out->i, array + at->k, (size_t)n * sizeof *array);
        return;
    }
    eval(at, x->arg[0], n, active, &index);
    find_outside(at, x, n, active, index.i, length);
    for (int i = 0; i < n; i++) out->i[i] = array[flex_clamp(index.i[i], length)];
}

static void eval_load(const Lanes *at, const FlexNode *x, int n, const unsigned char *active,
                      FlexLanes *out) {
    const int length = x->arg[1]->value.i;
    const float *values = at->env->learned;
    FlexLanes index;
    eval(at, x->arg[0], n, active, &index);
    find_outside(at, x, n, active, index.i, length);
    for (int i = 0; i < n; i++)
        out->f[i] = values ? values[x->value.i + flex_clamp(index.i[i], length)] : 0.0f;
}

/* x's argument number `which`, of which only those lanes count where condition is `wanted`. */
static void eval_arm(const Lanes *at, const FlexNode *x, int which, int n,
                     const unsigned char *active, const FlexLanes *condition, bool wanted,
                     FlexLanes *out) {
    unsigned char inner[FLEX_LANES];
    if (!at->fault || !x->arg[which]->may_fault) {
        eval(at, x->arg[which], n, active, out);
        return;
    }
    for (int i = 0; i < n; i++)
        inner[i] = (!active || active[i]) && (condition->i[i] != 0) == wanted;
    eval(at, x->arg[which], n, inner, out);
}

static void eval_leaf(const Lanes *at, const FlexNode *x, int n, FlexLanes *out) {
    switch (x->op) {
        case FX_SCORE:
            for (int i = 0; i < n; i++) out->f[i] = at->score ? at->score[i] : 0.0f;
            return;
        case FX_KEY:
            for (int i = 0; i < n; i++) out->i[i] = at->k + i;
            return;
        case FX_BATCH:
            out->i[0] = at->b;
            return;
        case FX_HEAD:
            out->i[0] = at->h;
            return;
        case FX_QUERY:
            out->i[0] = at->q;
            return;
        default:
            out->i[0] = x->value.i;
            return; /* a literal, of either type */
    }
}

/* Each case of an op that works lane by lane. */
#define LANES_I(EXPR)                               \
    for (int i = 0; i < n; i++) out->i[i] = (EXPR); \
    return
#define LANES_F(EXPR)                               \
    for (int i = 0; i < n; i++) out->f[i] = (EXPR); \
    return

static void apply_int(const FlexNode *x, int n, const FlexLanes *restrict a,
                      const FlexLanes *restrict b, FlexLanes *restrict out) {
    switch (x->op) {
        case FX_TO_FLOAT:
            LANES_F((float)a->i[i]);
        case FX_NEG:
            LANES_I(flex_sub(0, a->i[i]));
        case FX_NOT:
            LANES_I(a->i[i] == 0);
        case FX_BIT_OR:
            LANES_I(a->i[i] | b->i[i]);
        case FX_BIT_XOR:
            LANES_I(a->i[i] ^ b->i[i]);
        case FX_BIT_AND:
            LANES_I(a->i[i] & b->i[i]);
        case FX_EQ:
            LANES_I(a->i[i] == b->i[i]);
        case FX_NE:
            LANES_I(a->i[i] != b->i[i]);
        case FX_LT:
            LANES_I(a->i[i] < b->i[i]);
        case FX_LE:
            LANES_I(a->i[i] <= b->i[i]);
        case FX_GT:
            LANES_I(a->i[i] > b->i[i]);
        case FX_GE:
            LANES_I(a->i[i] >= b->i[i]);
        case FX_ADD:
            LANES_I(flex_add(a->i[i], b->i[i]));
        case FX_SUB:
            LANES_I(flex_sub(a->i[i], b->i[i]));
        case FX_MUL:
            LANES_I(flex_mul(a->i[i], b->i[i]));
        case FX_DIV:
            LANES_I(flex_div(a->i[i], b->i[i]));
        case FX_MOD:
            LANES_I(flex_mod(a->i[i], b->i[i]));
        case FX_MIN:
            LANES_I(flex_imin(a->i[i], b->i[i]));
        case FX_MAX:
            LANES_I(flex_imax(a->i[i], b->i[i]));
        case FX_ABS:
            LANES_I(flex_iabs(a->i[i]));
        default:
            CHECK(false, "op %d takes no ints", (int)x->op);
    }
}

static void apply_float(const FlexNode *x, int n, const FlexLanes *restrict a,
                        const FlexLanes *restrict b, FlexLanes *restrict out) {
    switch (x->op) {
        case FX_NEG:
            LANES_F(-a->f[i]);
        case FX_EQ:
            LANES_I(a->f[i] == b->f[i]);
        case FX_NE:
            LANES_I(a->f[i] != b->f[i]);
        case FX_LT:
            LANES_I(a->f[i] < b->f[i]);
        case FX_LE:
            LANES_I(a->f[i] <= b->f[i]);
        case FX_GT:
            LANES_I(a->f[i] > b->f[i]);
        case FX_GE:
            LANES_I(a->f[i] >= b->f[i]);
        case FX_ADD:
            LANES_F(a->f[i] + b->f[i]);
        case FX_SUB:
            LANES_F(a->f[i] - b->f[i]);
        case FX_MUL:
            LANES_F(a->f[i] * b->f[i]);
        case FX_DIV:
            LANES_F(a->f[i] / b->f[i]);
        case FX_MIN:
            LANES_F(flex_min(a->f[i], b->f[i]));
        case FX_MAX:
            LANES_F(flex_max(a->f[i], b->f[i]));
        case FX_ABS:
            LANES_F(flex_abs(a->f[i]));
        case FX_SIGN:
            LANES_F(flex_sign(a->f[i]));
        case FX_FLOOR:
            LANES_F(flex_floor(a->f[i]));
        case FX_CEIL:
            LANES_F(flex_ceil(a->f[i]));
        case FX_EXP:
            LANES_F(flex_exp(a->f[i]));
        case FX_EXP2:
            LANES_F(flex_exp2(a->f[i]));
        case FX_LOG:
            LANES_F(flex_log(a->f[i]));
        case FX_LOG2:
            LANES_F(flex_log2(a->f[i]));
        case FX_SQRT:
            LANES_F(flex_sqrt(a->f[i]));
        case FX_TANH:
            LANES_F(flex_tanh(a->f[i]));
        case FX_SIGMOID:
            LANES_F(flex_sigmoid(a->f[i]));
        case FX_POW: {
            const float c = x->arg[1]->value.f;
            if (c == flex_floor(c)) {
                LANES_F(flex_powi(a->f[i], (int)c));
            }
            LANES_F(flex_pow(a->f[i], c));
        }
        default:
            CHECK(false, "op %d takes no floats", (int)x->op);
    }
}

static void eval_choice(const Lanes *at, const FlexNode *x, int n, const unsigned char *active,
                        FlexLanes *out) {
    FlexLanes c, a, b;
    eval(at, x->arg[0], n, active, &c);
    eval_arm(at, x, 1, n, active, &c, x->op != FX_OR, &a);
    if (x->op == FX_AND) {
        LANES_I((c.i[i] != 0) & (a.i[i] != 0));
    }
    if (x->op == FX_OR) {
        LANES_I((c.i[i] != 0) | (a.i[i] != 0));
    }
    eval_arm(at, x, 2, n, active, &c, false, &b);
    LANES_I(c.i[i] ? a.i[i] : b.i[i]); /* floats too: their bits */
}

static void eval(const Lanes *at, const FlexNode *x, int n, const unsigned char *active,
                 FlexLanes *out) {
    if (n > 1 && !(x->asks & (ASKS_KEY | ASKS_SCORE))) {
        /* in the first lane that counts, so that a fault names its key */
        const unsigned char *first = active ? memchr(active, 1, (size_t)n) : NULL;
        const unsigned char any = !active || first;
        Lanes here = *at;
        here.k += first ? (int)(first - active) : 0;
        eval(&here, x, 1, &any, out);
        const int value = out->i[0];
        LANES_I(value);
    }
    if (flex_arity[x->op] == 0) {
        eval_leaf(at, x, n, out);
        return;
    }
    if (x->op == FX_COND || x->op == FX_AND || x->op == FX_OR) {
        eval_choice(at, x, n, active, out);
        return;
    }
    if (x->op == FX_INDEX) {
        eval_index(at, x, n, active, out);
        return;
    }
    if (x->op == FX_LOAD) {
        eval_load(at, x, n, active, out);
        return;
    }
    FlexLanes a, b;
    eval(at, x->arg[0], n, active, &a);
    if (flex_arity[x->op] == 2) eval(at, x->arg[1], n, active, &b);
    if (x->arg[0]->type == FLEX_INT) {
        if (x->op == FX_DIV || x->op == FX_MOD) find_zero(at, x, n, active, b.i);
        apply_int(x, n, &a, &b, out);
    } else {
        apply_float(x, n, &a, &b, out);
    }
}

void flex_eval(const FlexEnv *env, const FlexNode *x, int b, int h, int q, int k, int n,
               const float *score, FlexLanes *out, FlexFault *fault) {
    const Lanes at = {env, b, h, q, k, score, fault};
    eval(&at, x, n, NULL, out);
}

/* Arrays reach no further, see flex_env. */
static void check_keys(const FlexProgram *p, int k0, int n) {
    CHECK(k0 >= 0 && n >= 0 && n <= p->T + FLEX_PAD - k0, "keys %d .. %d of %d positions", k0,
          k0 + n - 1, p->T);
}

void flex_eval_mask_row(const FlexProgram *p, int b, int h, int q, int k0, int n,
                        unsigned char *out) {
    check_keys(p, k0, n);
    if (!p->mask) {
        memset(out, 1, (size_t)n);
        return;
    }
    FlexLanes lanes;
    for (int done = 0; done < n; done += FLEX_LANES) {
        const int now = n - done < FLEX_LANES ? n - done : FLEX_LANES;
        flex_eval(&p->env, p->mask, b, h, q, k0 + done, now, NULL, &lanes, NULL);
        for (int i = 0; i < now; i++) out[done + i] = lanes.i[i] != 0;
    }
}

static void score_row(const FlexProgram *p, const FlexNode *x, const float *score, int b, int h,
                      int q, int k0, int n, float *out) {
    FlexLanes lanes;
    check_keys(p, k0, n);
    for (int done = 0; done < n; done += FLEX_LANES) {
        const int now = n - done < FLEX_LANES ? n - done : FLEX_LANES;
        flex_eval(&p->env, x, b, h, q, k0 + done, now, score + done, &lanes, NULL);
        memcpy(out + done, lanes.f, (size_t)now * sizeof *out);
    }
}

void flex_eval_score_row(const FlexProgram *p, const float *score, int b, int h, int q, int k0,
                         int n, float *out) {
    if (p->score)
        score_row(p, p->score, score, b, h, q, k0, n, out);
    else
        memmove(out, score, (size_t)n * sizeof *out);
}

void flex_eval_score_grad_row(const FlexProgram *p, const float *score, int b, int h, int q, int k0,
                              int n, float *out) {
    if (p->score && p->grad)
        score_row(p, p->grad, score, b, h, q, k0, n, out);
    else
        for (int i = 0; i < n; i++) out[i] = p->score ? 0.0f : 1.0f;
}

bool flex_eval_mask(const FlexProgram *p, int b, int h, int q, int k) {
    unsigned char sees;
    flex_eval_mask_row(p, b, h, q, k, 1, &sees);
    return sees;
}

float flex_eval_score(const FlexProgram *p, float score, int b, int h, int q, int k) {
    flex_eval_score_row(p, &score, b, h, q, k, 1, &score);
    return score;
}

float flex_eval_score_grad(const FlexProgram *p, float score, int b, int h, int q, int k) {
    flex_eval_score_grad_row(p, &score, b, h, q, k, 1, &score);
    return score;
}
