/* Captures: where a score expression reads its learned arrays. */
#include <string.h>

#include "kernels/flex/tree.h"

/* The loads that the score holds, each once, in the order of their nodes. */
static int find_loads(const FlexProgram *p, FlexNode *load[FLEX_MAX_NODES]) {
    bool held[FLEX_MAX_NODES] = {false};
    int n = 0;
    held[p->score->id] = true;
    for (int id = p->score->id; id >= 0; id--) { /* arguments come before what is made of them */
        const FlexNode *x = &p->tree.node[id];
        for (int i = 0; held[id] && i < flex_arity[x->op]; i++) held[x->arg[i]->id] = true;
    }
    for (int id = 0; id <= p->score->id; id++)
        if (held[id] && p->tree.node[id].op == FX_LOAD) load[n++] = &p->tree.node[id];
    return n;
}

/* The load's index, brought inside its array, in env->learned. */
static FlexNode *place_of(FlexTree *t, const FlexNode *load) {
    FlexNode *last = flex_int(t, load->arg[1]->value.i - 1);
    FlexNode *inside = flex_node(t, FX_MAX, 0, load->arg[0], flex_int(t, 0), NULL);
    inside = flex_node(t, FX_MIN, 0, inside, last, NULL);
    return flex_node(t, FX_ADD, 0, flex_int(t, load->value.i), inside, NULL);
}

int flex_find_captures(FlexProgram *p, Err *e) {
    FlexNode *load[FLEX_MAX_NODES];
    const int n = p->score ? find_loads(p, load) : 0;
    bool has[FLEX_MAX_LEARNED] = {false};
    for (int i = 0; i < n; i++) {
        FlexNode *grad = flex_derive(&p->tree, p->score, load[i]);
        if (!grad) continue;
        if (p->n_captures == FLEX_MAX_CAPTURES)
            return err_set(e, "--score: learned arrays are read at more than %d places",
                           FLEX_MAX_CAPTURES);
        p->capture[p->n_captures++] = (FlexCapture){place_of(&p->tree, load[i]), grad};
        for (int j = 0; j < p->n_learned; j++)
            if (p->learned[j].begin == load[i]->value.i) has[j] = true;
    }
    for (int j = 0; j < p->n_learned; j++)
        if (!has[j])
            return err_set(e,
                           "--learned %s: no gradient reaches this array; let --score depend on "
                           "it, as in --score 'score - %s[h]*abs(q - k)'",
                           p->learned[j].name, p->learned[j].name);
    return 0;
}

enum { SHIFT_UNKNOWN = 1 << 30, SHIFT_MOST = 1 << 20 };

/* By how much x grows where q and k both grow by 1, if that is the same everywhere. */
static int shift(const FlexNode *x) {
    int of[3] = {0, 0, 0}, sum = SHIFT_UNKNOWN;
    bool none = true;
    if (x->op == FX_QUERY || x->op == FX_KEY) return 1;
    for (int i = 0; i < flex_arity[x->op]; i++) {
        of[i] = shift(x->arg[i]);
        none &= of[i] == 0;
        if (of[i] == SHIFT_UNKNOWN) return SHIFT_UNKNOWN;
    }
    if (none) return 0;
    if (x->op == FX_ADD) sum = of[0] + of[1];
    if (x->op == FX_SUB) sum = of[0] - of[1];
    if (x->op == FX_NEG) sum = -of[0];
    if (of[0] == of[1] && (x->op == FX_MIN || x->op == FX_MAX)) sum = of[0];
    if (of[0] == of[1] && x->op >= FX_EQ && x->op <= FX_GE) sum = 0;
    return sum < -SHIFT_MOST || sum > SHIFT_MOST ? SHIFT_UNKNOWN : sum;
}

const char *flex_capture_kind(const FlexCapture *c) {
    if (!(c->index->asks & (ASKS_QUERY | ASKS_KEY))) return "FLEX_ONE_PLACE";
    return shift(c->index) == 0 ? "FLEX_BY_DISTANCE" : "FLEX_ANY_PLACE";
}

int flex_captures(const FlexProgram *p) { return p->n_captures; }

int flex_learned(const FlexProgram *p) {
    if (!p->n_learned) return 0;
    const FlexLearned *last = &p->learned[p->n_learned - 1];
    return last->begin + last->length;
}

void flex_set_learned(const FlexProgram *p, const float *values) {
    ((FlexProgram *)(uintptr_t)p)->env.learned = values; /* made here, const for its users */
}

void flex_eval_capture_row(const FlexProgram *p, int j, const float *score, int b, int h, int q,
                           int k0, int n, int *index, float *grad) {
    CHECK(j >= 0 && j < p->n_captures, "capture %d of %d", j, p->n_captures);
    FlexLanes lanes;
    for (int done = 0; done < n; done += FLEX_LANES) {
        const int now = n - done < FLEX_LANES ? n - done : FLEX_LANES;
        const size_t bytes = (size_t)now * sizeof *grad;
        flex_eval(&p->env, p->capture[j].index, b, h, q, k0 + done, now, NULL, &lanes, NULL);
        memcpy(index + done, lanes.i, bytes);
        flex_eval(&p->env, p->capture[j].grad, b, h, q, k0 + done, now, score + done, &lanes, NULL);
        memcpy(grad + done, lanes.f, bytes);
    }
}
